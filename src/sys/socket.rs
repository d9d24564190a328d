//! TCP sockets: non-blocking connects, listeners of one family, and the options we set.

use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use super::poll::{Interest, wait_one};
use super::{check, length_of, own};
use crate::error::{Code, Error, Result};

/// Connections the kernel may hold for us before we accept them; it cuts this to its own limit.
const BACKLOG: libc::c_int = 4096;

/// A silent connection is probed after so long. The system's two hours outlast most jobs.
const IDLE_S: libc::c_int = 10;
/// Between probes: several, since a network may drop packets for seconds while it finds new ways.
const INTERVAL_S: libc::c_int = 5;
const PROBES: libc::c_int = 3;
/// What is sent and not acknowledged ends the connection after as long as silence does.
const GONE_MS: libc::c_int = (IDLE_S + INTERVAL_S * PROBES) * 1000;

/// An address in the system's form.
#[derive(Clone, Copy)]
pub(crate) struct Raw {
    storage: libc::sockaddr_storage,
    length: libc::socklen_t,
}

impl Raw {
    pub(crate) fn new(address: SocketAddr) -> Self {
        // SAFETY: all zeros is a valid sockaddr_storage, a struct of integers.
        let storage: libc::sockaddr_storage = unsafe { MaybeUninit::zeroed().assume_init() };
        let mut raw = Self { storage, length: 0 };
        match address {
            SocketAddr::V4(v4) => {
                // SAFETY: all zeros is a valid sockaddr_in, a struct of integers.
                let mut to: libc::sockaddr_in = unsafe { MaybeUninit::zeroed().assume_init() };
                to.sin_family = family(&address);
                to.sin_port = v4.port().to_be();
                to.sin_addr.s_addr = u32::from(*v4.ip()).to_be();
                // SAFETY: a sockaddr_storage has room and alignment for every address.
                unsafe { (&raw mut raw.storage).cast::<libc::sockaddr_in>().write(to) };
                raw.length = length_of::<libc::sockaddr_in>();
            }
            SocketAddr::V6(v6) => {
                // SAFETY: all zeros is a valid sockaddr_in6, a struct of integers.
                let mut to: libc::sockaddr_in6 = unsafe { MaybeUninit::zeroed().assume_init() };
                to.sin6_family = family(&address);
                to.sin6_port = v6.port().to_be();
                to.sin6_addr.s6_addr = v6.ip().octets();
                to.sin6_scope_id = v6.scope_id();
                // SAFETY: a sockaddr_storage has room and alignment for every address.
                unsafe {
                    (&raw mut raw.storage).cast::<libc::sockaddr_in6>().write(to);
                }
                raw.length = length_of::<libc::sockaddr_in6>();
            }
        }
        raw
    }

    pub(crate) const fn at(&self) -> *const libc::sockaddr {
        (&raw const self.storage).cast()
    }

    /// Its length in bytes.
    pub(crate) const fn length(&self) -> libc::socklen_t {
        self.length
    }

    /// The same for calls that ask for more than they need.
    pub(crate) const fn at_mut(&mut self) -> *mut libc::sockaddr {
        (&raw mut self.storage).cast()
    }
}

/// A call on this descriptor, which somebody else owns, is not to wait.
pub(crate) fn set_nonblocking(fd: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: the descriptor is open; the calls read plain integers.
    let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
    check(flags, "O_NONBLOCK")?;
    // SAFETY: as above.
    let done = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) };
    check(done, "O_NONBLOCK").map(drop)
}

fn family(address: &SocketAddr) -> libc::sa_family_t {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    libc::sa_family_t::try_from(family).expect("a small constant")
}

fn open(address: &SocketAddr) -> Result<OwnedFd> {
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: the call reads plain integers.
    own(unsafe { libc::socket(family(address).into(), kind, 0) }, "socket")
}

fn set_option(
    fd: &impl AsRawFd,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
    what: &str,
) -> Result<()> {
    let length = length_of::<libc::c_int>();
    // SAFETY: the value is a local of the stated size.
    let done =
        unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const value).cast(), length) };
    check(done, what).map(drop)
}

/// A non-blocking listener at `address` (port 0: any), for its own address family only, so that
/// the same port can be had on both.
pub(crate) fn listen(address: SocketAddr) -> Result<TcpListener> {
    let fd = open(&address)?;
    set_option(&fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1, "SO_REUSEADDR")?;
    if address.is_ipv6() {
        set_option(&fd, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1, "IPV6_V6ONLY")?;
    }
    let raw = Raw::new(address);
    // SAFETY: the pointer and length describe an initialised address of that family.
    let bound = unsafe { libc::bind(fd.as_raw_fd(), raw.at(), raw.length) };
    check(bound, format!("binding {address}"))?;
    // SAFETY: the call reads plain integers.
    let done = unsafe { libc::listen(fd.as_raw_fd(), BACKLOG) };
    check(done, format!("listening at {address}"))?;
    Ok(TcpListener::from(fd))
}

/// Starts to connect, from the address `source` where one is given. The stream is non-blocking
/// and becomes writable when the attempt has ended; ask [`connected`] then.
pub(crate) fn connect_start(address: SocketAddr, source: Option<IpAddr>) -> Result<TcpStream> {
    let fd = open(&address)?;
    // Else the port this connection gets could not be listened at for a minute after its end.
    set_option(&fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1, "SO_REUSEADDR")?;
    if let Some(source) = source {
        let raw = Raw::new(SocketAddr::new(source, 0));
        // SAFETY: the pointer and length describe an initialised address of that family.
        let bound = unsafe { libc::bind(fd.as_raw_fd(), raw.at(), raw.length) };
        check(bound, format!("binding the source address {source}"))?;
    }
    let raw = Raw::new(address);
    // SAFETY: the pointer and length describe an initialised address of that family.
    if unsafe { libc::connect(fd.as_raw_fd(), raw.at(), raw.length) } < 0 {
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EINPROGRESS) {
            return Err(Error::os(&error, format!("connecting to {address}")));
        }
    }
    Ok(TcpStream::from(fd))
}

/// Whether a started connect has ended well: an error when it failed, false when it goes on.
pub(crate) fn connected(stream: &TcpStream) -> Result<bool> {
    match stream.take_error() {
        Ok(None) => {}
        Ok(Some(error)) | Err(error) => return Err(Error::os(&error, "connecting")),
    }
    match stream.peer_addr() {
        // Nobody listens, and the port the system chose for us was that very one.
        Ok(peer) if stream.local_addr().is_ok_and(|own| own == peer) => {
            let refused = io::Error::from_raw_os_error(libc::ECONNREFUSED);
            Err(Error::os(&refused, format!("connecting to {peer}")))
        }
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(false),
        Err(error) => Err(Error::os(&error, "connecting")),
    }
}

/// Connects within the deadline. The stream is non-blocking.
pub(crate) fn connect(address: SocketAddr, deadline: Instant) -> Result<TcpStream> {
    let stream = connect_start(address, None)?;
    // BOUND: the deadline.
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        wait_one(stream.as_fd(), Interest::Write, Some(left))?;
        if connected(&stream)? {
            return Ok(stream);
        }
        if left.is_zero() {
            return Err(Error::new(Code::TimedOut, format!("connecting to {address}")));
        }
    }
}

/// Sends small messages at once instead of gathering them.
pub(crate) fn set_nodelay(stream: &TcpStream) -> Result<()> {
    stream.set_nodelay(true).map_err(|error| Error::os(&error, "TCP_NODELAY"))
}

/// Lets the kernel probe a silent connection, and end it when the other host is gone.
pub(crate) fn set_keepalive(stream: &TcpStream) -> Result<()> {
    let options = [
        (libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1, "SO_KEEPALIVE"),
        (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, IDLE_S, "TCP_KEEPIDLE"),
        (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, INTERVAL_S, "TCP_KEEPINTVL"),
        (libc::IPPROTO_TCP, libc::TCP_KEEPCNT, PROBES, "TCP_KEEPCNT"),
        (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, GONE_MS, "TCP_USER_TIMEOUT"),
    ];
    options
        .iter()
        .try_for_each(|&(level, name, value, what)| set_option(stream, level, name, value, what))
}

/// Writes to a stream socket without raising SIGPIPE when the other end is gone.
pub(crate) fn send(socket: &impl AsRawFd, bytes: &[u8]) -> io::Result<usize> {
    let flags = libc::MSG_NOSIGNAL;
    // SAFETY: the pointer and length are those of a live slice.
    let sent = unsafe { libc::send(socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// As [`send`], from two places in one call.
pub(crate) fn send_two(socket: &impl AsRawFd, first: &[u8], then: &[u8]) -> io::Result<usize> {
    let part = |bytes: &[u8]| libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    let mut parts = [part(first), part(then)];
    // SAFETY: all zeros is a valid msghdr: null pointers and zero lengths.
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    (message.msg_iov, message.msg_iovlen) = (parts.as_mut_ptr(), parts.len());
    let flags = libc::MSG_NOSIGNAL;
    // SAFETY: `message` points to locals and live slices; the kernel only reads them.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, flags) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// The next connection a listener holds, non-blocking and close-on-exec; `None` when there is none.
pub(crate) fn accept(listener: &TcpListener) -> Result<Option<(TcpStream, SocketAddr)>> {
    match listener.accept() {
        Ok((stream, from)) => {
            stream.set_nonblocking(true).map_err(|error| Error::os(&error, "O_NONBLOCK"))?;
            Ok(Some((stream, from)))
        }
        Err(error) if may_accept_later(&error) => Ok(None),
        Err(error) => Err(Error::os(&error, "accept")),
    }
}

/// A connection that died in the queue is its owner's trouble, not the listener's.
pub(crate) fn may_accept_later(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted
    )
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::time::Duration;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    fn pair(at: &str) -> (TcpStream, TcpStream) {
        let listener = listen(at.parse().expect("address")).expect("listen");
        let to = listener.local_addr().expect("address");
        let mine = connect(to, soon()).expect("connect");
        wait_one(listener.as_fd(), Interest::Read, Some(Duration::from_secs(20))).expect("wait");
        let (theirs, from) = accept(&listener).expect("accept").expect("one");
        assert_eq!(from, mine.local_addr().expect("address"));
        (mine, theirs)
    }

    #[test]
    fn both_families_carry_bytes_and_take_options() {
        for at in ["127.0.0.1:0", "[::1]:0"] {
            let (mut mine, mut theirs) = pair(at);
            set_nodelay(&mine).expect("nodelay");
            set_keepalive(&mine).expect("keepalive");
            mine.write_all(b"hello").expect("write");
            wait_one(theirs.as_fd(), Interest::Read, Some(Duration::from_secs(20))).expect("wait");
            let mut bytes = [0; 5];
            theirs.read_exact(&mut bytes).expect("read");
            assert_eq!(&bytes, b"hello");
        }
    }

    #[test]
    fn a_refused_connect_is_an_error_with_its_address() {
        let listener = listen("127.0.0.1:0".parse().expect("address")).expect("listen");
        let to = listener.local_addr().expect("address");
        drop(listener);
        let error = connect(to, soon()).expect_err("refused");
        assert_eq!(error.native, libc::ECONNREFUSED);
    }

    #[test]
    fn a_source_address_is_used() {
        let listener = listen("127.0.0.1:0".parse().expect("address")).expect("listen");
        let to = listener.local_addr().expect("address");
        let source = "127.0.0.7".parse().expect("address");
        let stream = connect_start(to, Some(source)).expect("connect");
        assert_eq!(stream.local_addr().expect("address").ip(), source);
        assert!(connect_start(to, Some("203.0.113.1".parse().expect("address"))).is_err());
    }

    #[test]
    fn nobody_connects_to_himself() {
        let listener = listen("127.0.0.1:0".parse().expect("address")).expect("listen");
        let own = listener.local_addr().expect("address");
        drop(listener);
        let fd = open(&own).expect("socket");
        let raw = Raw::new(own);
        // SAFETY: the pointer and length describe an initialised address of that family.
        let bound = unsafe { libc::bind(fd.as_raw_fd(), raw.at(), raw.length) };
        assert_eq!(bound, 0);
        // SAFETY: as above.
        unsafe { libc::connect(fd.as_raw_fd(), raw.at(), raw.length) };
        let stream = TcpStream::from(fd);
        wait_one(stream.as_fd(), Interest::Write, Some(Duration::from_secs(5))).expect("wait");
        assert_eq!(connected(&stream).expect_err("itself").native, libc::ECONNREFUSED);
    }

    #[test]
    fn a_port_once_used_to_connect_can_be_listened_at() {
        let listener = listen("127.0.0.1:0".parse().expect("address")).expect("listen");
        let stream = connect(listener.local_addr().expect("address"), soon()).expect("connect");
        let used = stream.local_addr().expect("address");
        // The end that closes first is the one that lingers.
        drop(stream);
        listen(used).expect("the port is free");
    }

    #[test]
    fn an_idle_listener_has_nobody() {
        let listener = listen("127.0.0.1:0".parse().expect("address")).expect("listen");
        assert!(accept(&listener).expect("accept").is_none());
    }
}
