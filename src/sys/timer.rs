//! A timer with a descriptor, for waits that are shorter than the milliseconds of epoll.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use super::{check, own};
use crate::error::Result;

/// Readable once, some time after it was set.
#[derive(Debug)]
pub(crate) struct Timer {
    fd: OwnedFd,
}

impl Timer {
    /// One that is not set.
    pub(crate) fn new() -> Result<Self> {
        let flags = libc::TFD_NONBLOCK | libc::TFD_CLOEXEC;
        // SAFETY: the call reads plain integers.
        let fd = unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, flags) };
        Ok(Self { fd: own(fd, "timerfd_create")? })
    }

    /// Readable in so long, less than a second and not at once; what was set before is forgotten.
    pub(crate) fn set(&self, after: Duration) -> Result<()> {
        // SAFETY: all zeros is a valid itimerspec, a struct of integers.
        let mut time: libc::itimerspec = unsafe { MaybeUninit::zeroed().assume_init() };
        time.it_value.tv_nsec = after.subsec_nanos().into();
        // SAFETY: the descriptor is open, and the time is a local that lives through the call.
        let done = unsafe {
            libc::timerfd_settime(self.fd.as_raw_fd(), 0, &raw const time, std::ptr::null_mut())
        };
        check(done, "timerfd_settime").map(drop)
    }

    /// Not readable any more.
    pub(crate) fn clear(&self) -> Result<()> {
        // Setting it takes away what it has told; 0 is never.
        self.set(Duration::ZERO)
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::super::poll::{Interest, wait_one};
    use super::*;

    #[test]
    fn a_timer_tells_once_it_is_time_until_it_is_cleared() {
        let timer = Timer::new().expect("a timer");
        let told = |limit| wait_one(timer.as_fd(), Interest::Read, Some(limit)).expect("poll");
        assert!(!told(Duration::ZERO));
        timer.set(Duration::from_micros(50)).expect("set");
        assert!(told(Duration::from_secs(20)));
        timer.clear().expect("cleared");
        assert!(!told(Duration::from_millis(2)));
    }
}
