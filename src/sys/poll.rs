//! Waiting for many descriptors: epoll, level-triggered unless asked otherwise, with a token for
//! each.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use super::{check, own};
use crate::error::{Error, Result};

/// What to wait for on a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interest {
    /// Something to read.
    Read,
    /// Room to write.
    Write,
    /// Either.
    Both,
    /// Either, told once each time it becomes so: whoever waits has tried already.
    Edge,
}

impl Interest {
    const fn epoll(self) -> u32 {
        match self {
            Self::Read => IN,
            Self::Write => OUT,
            Self::Both => IN | OUT,
            Self::Edge => IN | OUT | EDGE,
        }
    }
}

// The kernel's numbers are unsigned; the libc crate has them as signed ones.
const IN: u32 = 0x1;
const OUT: u32 = 0x4;
const ERR: u32 = 0x8;
const HUP: u32 = 0x10;
const EDGE: u32 = 1 << 31;

/// One descriptor that is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    /// The number given when the descriptor was added.
    pub token: u64,
    /// A read will not block; it may return the end or an error.
    pub readable: bool,
    /// A write will not block; it may return an error.
    pub writable: bool,
    /// The other end is gone or the descriptor is in error.
    pub hangup: bool,
}

/// How many events one wait returns at most; the rest come with the next.
pub(crate) const EVENTS_MAX: usize = 256;

/// A set of descriptors to wait for. A descriptor must be removed before it is closed when copies
/// of it live on elsewhere.
#[derive(Debug)]
pub(crate) struct Poller {
    fd: OwnedFd,
}

impl Poller {
    /// An empty set.
    pub(crate) fn new() -> Result<Self> {
        // SAFETY: the call reads a plain integer.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        Ok(Self { fd: own(fd, "epoll_create1")? })
    }

    /// Adds a descriptor under `token`.
    pub(crate) fn add(&self, fd: impl AsFd, token: u64, interest: Interest) -> Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd.as_fd(), token, interest)
    }

    /// Changes what is waited for on a descriptor in the set.
    pub(crate) fn modify(&self, fd: impl AsFd, token: u64, interest: Interest) -> Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd.as_fd(), token, interest)
    }

    /// Takes a descriptor out of the set.
    pub(crate) fn remove(&self, fd: impl AsFd) -> Result<()> {
        // What it is not waited for any more is ignored.
        self.control(libc::EPOLL_CTL_DEL, fd.as_fd(), 0, Interest::Read)
    }

    fn control(
        &self,
        operation: libc::c_int,
        fd: BorrowedFd<'_>,
        token: u64,
        interest: Interest,
    ) -> Result<()> {
        let mut event = libc::epoll_event { events: interest.epoll(), u64: token };
        // SAFETY: both descriptors are open and `event` is a local that lives through the call.
        let done = unsafe {
            libc::epoll_ctl(self.fd.as_raw_fd(), operation, fd.as_raw_fd(), &raw mut event)
        };
        check(done, "epoll_ctl").map(drop)
    }

    /// Waits until something is ready, `timeout` has passed (`None`: for ever) or a signal came,
    /// and replaces `events` by what is ready.
    pub(crate) fn wait(
        &mut self,
        timeout: Option<Duration>,
        events: &mut Vec<Event>,
    ) -> Result<()> {
        events.clear();
        let mut ready = [libc::epoll_event { events: 0, u64: 0 }; EVENTS_MAX];
        let room = libc::c_int::try_from(EVENTS_MAX).expect("a small constant");
        // SAFETY: `ready` has room for the stated number of events.
        let found = unsafe {
            libc::epoll_wait(self.fd.as_raw_fd(), ready.as_mut_ptr(), room, milliseconds(timeout))
        };
        if found < 0 {
            let error = std::io::Error::last_os_error();
            if error.kind() == std::io::ErrorKind::Interrupted {
                return Ok(());
            }
            return Err(Error::os(&error, "epoll_wait"));
        }
        let found = usize::try_from(found).unwrap_or(0);
        for event in &ready[..found] {
            let bits = event.events;
            let hangup = bits & (HUP | ERR) != 0;
            events.push(Event {
                token: event.u64,
                readable: hangup || bits & IN != 0,
                writable: hangup || bits & OUT != 0,
                hangup,
            });
        }
        Ok(())
    }

    /// The set as a descriptor of its own, readable when something in it is ready.
    #[cfg(test)]
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Waits for one descriptor; false when `timeout` passed (or a signal came) first.
pub(crate) fn wait_one(
    fd: BorrowedFd<'_>,
    interest: Interest,
    timeout: Option<Duration>,
) -> Result<bool> {
    let events = match interest {
        Interest::Read => libc::POLLIN,
        Interest::Write => libc::POLLOUT,
        Interest::Both | Interest::Edge => libc::POLLIN | libc::POLLOUT,
    };
    let mut entry = libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 };
    // SAFETY: one entry, a local that lives through the call.
    let found = unsafe { libc::poll(&raw mut entry, 1, milliseconds(timeout)) };
    if found < 0 {
        let error = std::io::Error::last_os_error();
        if error.kind() == std::io::ErrorKind::Interrupted {
            return Ok(false);
        }
        return Err(Error::os(&error, "poll"));
    }
    Ok(found > 0)
}

/// A timeout as the system wants it, rounded up so that a wait never ends early and then spins.
fn milliseconds(timeout: Option<Duration>) -> libc::c_int {
    let Some(timeout) = timeout else { return -1 };
    let rounded = timeout.as_nanos().div_ceil(1_000_000);
    libc::c_int::try_from(rounded).unwrap_or(libc::c_int::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::bell::Bell;

    #[test]
    fn a_rung_bell_is_reported_under_its_token_until_drained() {
        let mut poller = Poller::new().expect("poller");
        let (one, two) = (Bell::new().expect("bell"), Bell::new().expect("bell"));
        poller.add(one.fd(), 1, Interest::Read).expect("add");
        poller.add(two.fd(), 2, Interest::Read).expect("add");
        let mut events = Vec::new();
        poller.wait(Some(Duration::ZERO), &mut events).expect("wait");
        assert!(events.is_empty());
        two.ring();
        for _ in 0..2 {
            poller.wait(Some(Duration::from_secs(20)), &mut events).expect("wait");
            assert_eq!(events.len(), 1);
            assert_eq!((events[0].token, events[0].readable), (2, true));
        }
        assert!(wait_one(poller.fd(), Interest::Read, Some(Duration::ZERO)).expect("poll"));
        two.drain();
        poller.wait(Some(Duration::ZERO), &mut events).expect("wait");
        assert!(events.is_empty());
        two.ring();
        poller.remove(two.fd()).expect("remove");
        poller.wait(Some(Duration::ZERO), &mut events).expect("wait");
        assert!(events.is_empty());
    }

    #[test]
    fn timeouts_round_up_and_saturate() {
        assert_eq!(milliseconds(None), -1);
        assert_eq!(milliseconds(Some(Duration::ZERO)), 0);
        assert_eq!(milliseconds(Some(Duration::from_nanos(1))), 1);
        assert_eq!(milliseconds(Some(Duration::MAX)), libc::c_int::MAX);
    }
}
