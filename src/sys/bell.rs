//! A bell another process can ring to wake us: an eventfd.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::{check, own};
use crate::error::{Code, Error, Result};

/// Readable while it has been rung and not drained. Ringing never blocks.
#[derive(Debug)]
pub(crate) struct Bell {
    fd: OwnedFd,
}

impl Bell {
    /// A silent bell.
    pub(crate) fn new() -> Result<Self> {
        // SAFETY: the call reads plain integers.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        Ok(Self { fd: own(fd, "eventfd")? })
    }

    /// The bell a peer has passed; refused when it is not a non-blocking eventfd, since ringing it
    /// would then write into something else or block.
    pub(crate) fn from_fd(fd: OwnedFd) -> Result<Self> {
        // SAFETY: `fd` is open; the call reads plain integers.
        let flags = check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) }, "F_GETFL")?;
        // Without /proc the kind cannot be told, and the peer has at least proved the job's key.
        let kind = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).ok();
        let other = kind.is_some_and(|kind| kind.as_os_str() != "anon_inode:[eventfd]");
        if other || flags & libc::O_NONBLOCK == 0 {
            return Err(Error::new(Code::Protocol, "a peer's bell is not a non-blocking eventfd"));
        }
        Ok(Self { fd })
    }

    /// Wakes whoever waits on the bell.
    pub(crate) fn ring(&self) {
        let one = 1u64;
        // The only failure is a full counter, and then the bell rings already.
        // SAFETY: the buffer is a local of exactly 8 bytes.
        unsafe { libc::write(self.fd.as_raw_fd(), (&raw const one).cast(), 8) };
    }

    /// Silences the bell; returns whether it had been rung.
    pub(crate) fn drain(&self) -> bool {
        let mut count = 0u64;
        // SAFETY: the buffer is a local of exactly 8 bytes.
        unsafe { libc::read(self.fd.as_raw_fd(), (&raw mut count).cast(), 8) == 8 }
    }

    /// The descriptor to wait on or to pass to a peer.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::memory::Segment;

    #[test]
    fn a_bell_rings_through_a_passed_descriptor() {
        let mine = Bell::new().expect("bell");
        let theirs = Bell::from_fd(mine.fd().try_clone_to_owned().expect("dup")).expect("from");
        assert!(!mine.drain());
        theirs.ring();
        theirs.ring();
        assert!(mine.drain());
        assert!(!mine.drain());
    }

    #[test]
    fn a_segment_is_no_bell() {
        let segment = Segment::create("test", 4096).expect("segment");
        let copy = segment.fd().try_clone_to_owned().expect("dup");
        assert_eq!(Bell::from_fd(copy).expect_err("not a bell").code, Code::Protocol);
    }
}
