//! A bell that another thread or another process can ring to wake us.
//!
//! Inside a process it is an eventfd. Between processes it is a pair of Unix sockets: we listen at
//! one and pass the other on. An eventfd would not do there. Whoever holds one can clear the
//! `O_NONBLOCK` that all its holders share and fill its counter, and then our write to it blocks.
//! A send to a socket says for itself that it does not wait.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use super::{check, length_of, own};
use crate::error::{Code, Error, Result};

/// Rings that one look takes in; a peer that rings without end only makes the bell ring again.
const RINGS_MAX: usize = 64;

/// Readable while it has been rung and not drained. Ringing never blocks.
#[derive(Debug)]
pub(crate) struct Bell(Kind);

#[derive(Debug)]
enum Kind {
    /// An eventfd that no other process has.
    Inside(OwnedFd),
    /// Ours, for others to ring: where we listen, and what they get.
    Open { near: OwnedFd, far: OwnedFd },
    /// A peer's.
    Foreign(OwnedFd),
}

impl Bell {
    /// A silent bell for the threads of this process.
    pub(crate) fn new() -> Result<Self> {
        // SAFETY: the call reads plain integers.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        Ok(Self(Kind::Inside(own(fd, "eventfd")?)))
    }

    /// A silent bell that other processes may ring, too.
    pub(crate) fn open() -> Result<Self> {
        let (near, far) = UnixStream::pair().map_err(|error| Error::os(&error, "a bell"))?;
        Ok(Self(Kind::Open { near: near.into(), far: far.into() }))
    }

    /// The bell a peer has passed; refused when it is not a Unix stream socket, since ringing it
    /// would then write into something else or block.
    pub(crate) fn from_fd(fd: OwnedFd) -> Result<Self> {
        let is = |name, wanted| option(&fd, name).is_ok_and(|found| found == wanted);
        if is(libc::SO_DOMAIN, libc::AF_UNIX) && is(libc::SO_TYPE, libc::SOCK_STREAM) {
            return Ok(Self(Kind::Foreign(fd)));
        }
        Err(Error::new(Code::Protocol, "a peer's bell is not a Unix stream socket"))
    }

    /// Wakes whoever waits on the bell.
    pub(crate) fn ring(&self) {
        match &self.0 {
            Kind::Inside(fd) => {
                let one = 1u64;
                // The only failure is a full counter, and then the bell rings already.
                // SAFETY: the buffer is a local of exactly 8 bytes.
                unsafe { libc::write(fd.as_raw_fd(), (&raw const one).cast(), 8) };
            }
            Kind::Open { far, .. } | Kind::Foreign(far) => {
                let one = 1u8;
                let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
                // A full socket rings already, and a rank that is gone needs no waking.
                // SAFETY: the buffer is a local of exactly 1 byte.
                unsafe { libc::send(far.as_raw_fd(), (&raw const one).cast(), 1, flags) };
            }
        }
    }

    /// Silences the bell; returns whether it had been rung.
    pub(crate) fn drain(&self) -> bool {
        match &self.0 {
            Kind::Inside(fd) => {
                let mut count = 0u64;
                // SAFETY: the buffer is a local of exactly 8 bytes.
                unsafe { libc::read(fd.as_raw_fd(), (&raw mut count).cast(), 8) == 8 }
            }
            Kind::Open { near, .. } => {
                let mut rings = [0u8; RINGS_MAX];
                let room = rings.as_mut_ptr().cast();
                // SAFETY: the buffer is a local of the stated size.
                let got =
                    unsafe { libc::recv(near.as_raw_fd(), room, rings.len(), libc::MSG_DONTWAIT) };
                got > 0
            }
            Kind::Foreign(_) => false,
        }
    }

    /// The descriptor to wait on. A peer's bell never rings here.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        match &self.0 {
            Kind::Inside(fd) | Kind::Open { near: fd, .. } | Kind::Foreign(fd) => fd.as_fd(),
        }
    }

    /// The descriptor to pass to a peer, of a bell made by [`Bell::open`].
    pub(crate) fn far_end(&self) -> Result<BorrowedFd<'_>> {
        match &self.0 {
            Kind::Open { far, .. } => Ok(far.as_fd()),
            _ => Err(Error::new(Code::Internal, "this bell is not for other processes")),
        }
    }
}

/// An integer option of a socket.
fn option(fd: &OwnedFd, name: libc::c_int) -> Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut length = length_of::<libc::c_int>();
    let at = (&raw mut value).cast();
    // SAFETY: both pointers are to locals of the stated size.
    let got =
        unsafe { libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, name, at, &raw mut length) };
    check(got, "getsockopt").map(|_| value)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;
    use crate::sys::memory::Segment;

    fn passed(bell: &Bell) -> OwnedFd {
        bell.far_end().expect("open").try_clone_to_owned().expect("dup")
    }

    #[test]
    fn a_bell_rings_through_a_passed_descriptor() {
        let mine = Bell::open().expect("bell");
        let theirs = Bell::from_fd(passed(&mine)).expect("from");
        assert!(!mine.drain());
        theirs.ring();
        theirs.ring();
        mine.ring();
        assert!(mine.drain());
        assert!(!mine.drain());
        assert!(!theirs.drain());
    }

    #[test]
    fn a_bell_inside_the_process_rings_and_is_not_passed_on() {
        let bell = Bell::new().expect("bell");
        assert!(!bell.drain());
        bell.ring();
        assert!(bell.drain());
        assert!(!bell.drain());
        assert_eq!(bell.far_end().expect_err("inside").code, Code::Internal);
    }

    #[test]
    fn segments_counters_and_other_sockets_are_no_bells() {
        let segment = Segment::create("test", 4096).expect("segment");
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
        let counter = Bell::new().expect("bell");
        for fd in [segment.fd(), udp.as_fd(), counter.fd()] {
            let copy = fd.try_clone_to_owned().expect("dup");
            assert_eq!(Bell::from_fd(copy).expect_err("not a bell").code, Code::Protocol);
        }
    }

    /// Whatever a peer does with its copy, we do not wait for it.
    #[test]
    fn a_full_bell_that_its_owner_made_blocking_does_not_block_who_rings() {
        let (done, wait) = mpsc::channel();
        std::thread::spawn(move || {
            let theirs = Bell::open().expect("bell");
            let ours = Bell::from_fd(passed(&theirs)).expect("from");
            // SAFETY: the descriptor is open; the call reads plain integers.
            let set = unsafe { libc::fcntl(passed(&theirs).as_raw_fd(), libc::F_SETFL, 0) };
            assert_eq!(set, 0);
            (0..100_000).for_each(|_| ours.ring());
            assert!(theirs.drain());
            drop(theirs);
            ours.ring();
            let _ = done.send(());
        });
        wait.recv_timeout(Duration::from_secs(60)).expect("ringing blocks");
    }
}
