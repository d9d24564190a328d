//! Unix stream sockets in the abstract namespace, and descriptors passed over them.
//!
//! An abstract name lives in the network namespace and vanishes with its last socket: nothing is
//! left in a file system, and a container with another network namespace cannot reach it.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

use super::{check, length_of, own};
use crate::error::{Code, Error, Result};

/// The most descriptors one message may carry.
pub(crate) const FDS_MAX: usize = 4;

/// Room for the control message of [`FDS_MAX`] descriptors, in 8-byte words for its alignment.
const CONTROL_WORDS: usize = 8;

/// A non-blocking listener under an abstract name.
pub(crate) fn listen(name: &[u8]) -> Result<UnixListener> {
    let listener = SocketAddr::from_abstract_name(name)
        .and_then(|address| UnixListener::bind_addr(&address))
        .map_err(|error| Error::os(&error, "binding an abstract Unix socket"))?;
    listener.set_nonblocking(true).map_err(|error| Error::os(&error, "O_NONBLOCK"))?;
    Ok(listener)
}

/// Connects to an abstract name without waiting. `None` when the listener's queue is full for the
/// moment; a Unix socket is connected at once or not at all. The stream is non-blocking.
pub(crate) fn connect(name: &[u8]) -> Result<Option<UnixStream>> {
    // SAFETY: all zeros is a valid sockaddr_un, a struct of integers.
    let mut address: libc::sockaddr_un = unsafe { MaybeUninit::zeroed().assume_init() };
    address.sun_family = libc::sa_family_t::try_from(libc::AF_UNIX).expect("a small constant");
    // A leading zero byte makes the name abstract.
    let Some(room) = address.sun_path.get_mut(1..=name.len()) else {
        return Err(Error::new(Code::InvalidArgument, "a Unix socket's name is too long"));
    };
    for (to, &from) in room.iter_mut().zip(name) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    let length = std::mem::offset_of!(libc::sockaddr_un, sun_path) + 1 + name.len();
    let length = libc::socklen_t::try_from(length).expect("a socket's name is short");
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: the call reads plain integers.
    let fd = own(unsafe { libc::socket(libc::AF_UNIX, kind, 0) }, "socket")?;
    // SAFETY: the pointer and length describe an initialised local address.
    if unsafe { libc::connect(fd.as_raw_fd(), (&raw const address).cast(), length) } < 0 {
        let error = io::Error::last_os_error();
        if error.kind() == io::ErrorKind::WouldBlock {
            return Ok(None);
        }
        return Err(Error::os(&error, "connecting to a Unix socket"));
    }
    Ok(Some(UnixStream::from(fd)))
}

/// The next connection a listener holds, non-blocking; `None` when there is none.
pub(crate) fn accept(listener: &UnixListener) -> Result<Option<UnixStream>> {
    match listener.accept() {
        Ok((stream, _)) => {
            stream.set_nonblocking(true).map_err(|error| Error::os(&error, "O_NONBLOCK"))?;
            Ok(Some(stream))
        }
        Err(error) if super::socket::may_accept_later(&error) => Ok(None),
        Err(error) => Err(Error::os(&error, "accept")),
    }
}

/// The number of the process that connected (or listened); 0 when it is not visible from here.
pub(crate) fn peer_pid(stream: &UnixStream) -> Result<i32> {
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = length_of::<libc::ucred>();
    // SAFETY: both pointers are to locals of the stated size.
    let got = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut length,
        )
    };
    check(got, "SO_PEERCRED")?;
    Ok(peer.pid)
}

/// Sends `bytes` (not empty) with copies of descriptors. Returns how many bytes went; the
/// descriptors went with the first. `Ok(0)`: the socket is full, nothing went.
pub(crate) fn send_with_fds(stream: &UnixStream, bytes: &[u8], fds: &[RawFd]) -> Result<usize> {
    if fds.len() > FDS_MAX || bytes.is_empty() {
        return Err(Error::new(Code::Internal, "a message with too many descriptors or no bytes"));
    }
    let mut control = [0u64; CONTROL_WORDS];
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut message = header(&mut part, &mut control);
    message.msg_controllen = control_space(fds.len());
    if fds.is_empty() {
        message.msg_control = std::ptr::null_mut();
    } else {
        // SAFETY: `control` is larger than the space of FDS_MAX descriptors, so the first header
        // and its data lie inside it; both are aligned to a word.
        unsafe {
            let first = libc::CMSG_FIRSTHDR(&raw const message);
            (*first).cmsg_level = libc::SOL_SOCKET;
            (*first).cmsg_type = libc::SCM_RIGHTS;
            (*first).cmsg_len = libc::CMSG_LEN(fds_bytes(fds.len())) as usize;
            let data = libc::CMSG_DATA(first).cast::<RawFd>();
            std::ptr::copy_nonoverlapping(fds.as_ptr(), data, fds.len());
        }
    }
    // SAFETY: `message` points to locals that live through the call.
    let sent = unsafe { libc::sendmsg(stream.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) };
    match usize::try_from(sent) {
        Ok(sent) => Ok(sent),
        Err(_) => transient("sending descriptors").map(|()| 0),
    }
}

/// What [`recv_with_fds`] found.
#[derive(Debug)]
pub(crate) struct Received {
    /// How many bytes were read; 0 is the end of the stream.
    pub bytes: usize,
    /// The descriptors that came with them, close-on-exec.
    pub fds: Vec<OwnedFd>,
}

/// Reads bytes and at most `fds_max` descriptors. More than that is an error and all of them are
/// closed. `Ok(None)`: nothing is there yet.
pub(crate) fn recv_with_fds(
    stream: &UnixStream,
    bytes: &mut [u8],
    fds_max: usize,
) -> Result<Option<Received>> {
    let mut control = [0u64; CONTROL_WORDS];
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let mut message = header(&mut part, &mut control);
    message.msg_controllen = control_space(FDS_MAX);
    // SAFETY: `message` points to locals that live through the call.
    let got =
        unsafe { libc::recvmsg(stream.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
    let Ok(got) = usize::try_from(got) else {
        return transient("receiving descriptors").map(|()| None);
    };
    let fds = collect_fds(&message);
    // The kernel drops what does not fit and says so; what did fit is closed with `fds`.
    let cut = message.msg_flags & libc::MSG_CTRUNC != 0;
    if fds.len() > fds_max || cut && fds.len() == FDS_MAX {
        return Err(Error::new(Code::Protocol, "a peer passed more descriptors than agreed"));
    }
    if cut {
        // There was room in the message: it is our table of descriptors that had none.
        let full = io::Error::from_raw_os_error(libc::EMFILE);
        return Err(Error::os(&full, "receiving descriptors"));
    }
    Ok(Some(Received { bytes: got, fds }))
}

/// Owns every descriptor in a received message.
fn collect_fds(message: &libc::msghdr) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    // SAFETY: the kernel filled the control buffer and its length, the macros stay inside both;
    // every descriptor in an SCM_RIGHTS message is new and ours alone.
    unsafe {
        let mut next = libc::CMSG_FIRSTHDR(message);
        // BOUND: the macro ends with the control buffer, which holds CONTROL_WORDS words.
        while !next.is_null() {
            if (*next).cmsg_level == libc::SOL_SOCKET && (*next).cmsg_type == libc::SCM_RIGHTS {
                let head = libc::CMSG_LEN(0) as usize;
                let count = ((*next).cmsg_len.saturating_sub(head)) / size_of::<RawFd>();
                let data = libc::CMSG_DATA(next).cast::<RawFd>();
                for index in 0..count {
                    fds.push(OwnedFd::from_raw_fd(data.add(index).read_unaligned()));
                }
            }
            next = libc::CMSG_NXTHDR(message, next);
        }
    }
    fds
}

fn header(part: &mut libc::iovec, control: &mut [u64; CONTROL_WORDS]) -> libc::msghdr {
    // SAFETY: all zeros is a valid msghdr: null pointers and zero lengths.
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_iov = part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message
}

fn fds_bytes(count: usize) -> u32 {
    u32::try_from(count * size_of::<RawFd>()).expect("at most FDS_MAX descriptors")
}

fn control_space(count: usize) -> usize {
    if count == 0 {
        return 0;
    }
    // SAFETY: plain arithmetic on a small number.
    let space = unsafe { libc::CMSG_SPACE(fds_bytes(count)) } as usize;
    debug_assert!(space <= CONTROL_WORDS * 8);
    space
}

/// `Ok` when errno says "not now", else the error.
fn transient(what: &str) -> Result<()> {
    let error = io::Error::last_os_error();
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(()),
        _ => Err(Error::os(&error, what)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::sys::bell::Bell;

    fn pair() -> (UnixStream, UnixStream) {
        let (one, two) = UnixStream::pair().expect("pair");
        one.set_nonblocking(true).expect("nonblocking");
        two.set_nonblocking(true).expect("nonblocking");
        (one, two)
    }

    #[test]
    fn a_passed_bell_rings_the_original() {
        let (one, two) = pair();
        let bell = Bell::open().expect("bell");
        let far = bell.far_end().expect("open").as_raw_fd();
        let sent = send_with_fds(&one, b"x", &[far]).expect("send");
        assert_eq!(sent, 1);
        let mut bytes = [0; 8];
        let mut got = recv_with_fds(&two, &mut bytes, 1).expect("recv").expect("some");
        assert_eq!((got.bytes, got.fds.len()), (1, 1));
        Bell::from_fd(got.fds.pop().expect("one")).expect("bell").ring();
        assert!(bell.drain());
    }

    #[test]
    fn nothing_yet_is_none_and_the_end_is_zero_bytes() {
        let (one, two) = pair();
        let mut bytes = [0; 8];
        assert!(recv_with_fds(&two, &mut bytes, 1).expect("recv").is_none());
        drop(one);
        assert_eq!(recv_with_fds(&two, &mut bytes, 1).expect("recv").expect("end").bytes, 0);
    }

    #[test]
    fn unexpected_descriptors_are_closed() {
        let (one, two) = pair();
        // A socket whose far end we have closed shows the end when every passed copy is closed.
        let (read, write) = pair();
        let fds = [write.as_raw_fd(), write.as_raw_fd()];
        send_with_fds(&one, b"x", &fds).expect("send");
        drop(write);
        let mut bytes = [0; 8];
        let error = recv_with_fds(&two, &mut bytes, 1).expect_err("too many");
        assert_eq!(error.code, Code::Protocol);
        assert_eq!(io::Read::read(&mut { read }, &mut bytes).expect("read"), 0);
    }

    #[test]
    fn an_abstract_name_connects_until_its_listener_is_gone() {
        let name = format!("unisono-test-{}", std::process::id());
        let listener = listen(name.as_bytes()).expect("listen");
        assert!(listen(name.as_bytes()).is_err());
        let mine = connect(name.as_bytes()).expect("connect").expect("room");
        let theirs = accept(&listener).expect("accept").expect("one");
        assert!(accept(&listener).expect("accept").is_none());
        assert_eq!(peer_pid(&theirs).expect("pid"), peer_pid(&mine).expect("pid"));
        assert!(theirs.as_fd().as_raw_fd() >= 0);
        drop(listener);
        assert!(connect(name.as_bytes()).is_err());
        assert!(connect(&[b'x'; 200]).is_err());
    }
}
