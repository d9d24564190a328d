//! Sockets of librdmacm: streams whose peer may also write to memory that is mapped for it.
//!
//! Nothing here waits. What a socket does besides what its manual page says, and what becomes of
//! that here:
//!
//! - A map reaches the peer with the next bytes that are sent, before them.
//! - A write is copied by the library before it goes: what it reads is free when it returns. One
//!   past the end of the peer's map may go around without end, so whoever writes keeps within it.
//! - Closing waits until the peer's card has taken everything, which a dead peer's never does. So
//!   threads do it, and one that waits for ever is left alone.
//! - Closing with a live map never returns: maps go first.
//! - A peer that was killed may not be noticed.
//! - Of late a thread of the library looks after all sockets of the process, in a table that it
//!   keeps reading after it has moved to grow. A table that has grown stays large, and each start
//!   of the thread adds to it: so the first socket is preceded by many that are closed at once, and
//!   there are never more than the table then holds.

use std::ffi::{c_int, c_uint, c_void};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use super::abi::rsocket as abi;
use super::library::{Library, check, failed};
use super::memory::refused;
use crate::error::{Code, Error, Result};
use crate::sys::socket::Raw;

/// Maps of a socket: the most that the library counts exactly.
const MAPS_MAX: c_int = 128;
/// Places to receive at. The library tells the peer of free ones when half of them are.
const RECEIVES: c_int = 768;

/// What the library locks for a connection, if it is set up as usual.
const BUFFER_BYTES: usize = 256 << 10;

/// How often the library's threads are to be started and ended before there are sockets, how often
/// that is tried, and how many places each time adds to a table. One place is the thread's own.
const STARTS: usize = 128;
const TRIES: usize = 4 * STARTS;
const STARTS_LISTENING: usize = 8;
const PLACES: usize = 4;

/// Connections that there are, those that are closing included.
static STREAMS: AtomicUsize = AtomicUsize::new(0);
/// How many there may be: what the table holds.
static STREAMS_MAX: OnceLock<Result<usize>> = OnceLock::new();

/// One end of a connection, or a listener.
#[derive(Debug)]
pub(crate) struct Stream {
    library: Arc<Library>,
    /// -1 once somebody else closes it.
    fd: c_int,
    /// What the peer may write to: addresses and bytes.
    maps: Vec<(usize, usize)>,
    /// There may be a peer.
    connects: bool,
}

impl Stream {
    /// A listener at an address of this host, on any port.
    ///
    /// # Errors
    /// `UNSUPPORTED` where the library has none.
    pub(crate) fn listening(library: &Arc<Library>, at: IpAddr, backlog: c_int) -> Result<Self> {
        STREAMS_MAX.get_or_init(|| enlarge(library, at)).clone()?;
        Self::listener(library, at, backlog)
    }

    fn listener(library: &Arc<Library>, at: IpAddr, backlog: c_int) -> Result<Self> {
        let mut made = Self::new(library, at)?;
        made.bind(at)?;
        // SAFETY: the socket is open.
        check(unsafe { library.rsocket.rlisten(made.fd, backlog) }, "listening by an rsocket")?;
        Ok(made)
    }

    /// One that begins to connect from an address of this host; what is sent waits until that has
    /// come about.
    ///
    /// # Errors
    /// `LIMIT` where this process has too many.
    pub(crate) fn connecting(
        library: &Arc<Library>,
        from: IpAddr,
        target: SocketAddr,
    ) -> Result<Self> {
        let mut made = Self::new(library, from)?;
        made.bind(from)?;
        made.connects = take_place()?;
        made.connect(target)?;
        Ok(made)
    }

    fn new(library: &Arc<Library>, like: IpAddr) -> Result<Self> {
        if !library.has_streams() {
            let text = format!("{} has no rsocket with riowrite", library.place);
            return Err(Error::new(Code::Unsupported, text));
        }
        let family = if like.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        // SAFETY: the call reads plain integers.
        let fd = unsafe { library.rsocket.rsocket(family, libc::SOCK_STREAM, 0) };
        if fd < 0 {
            return Err(failed("an rsocket"));
        }
        let made = Self { library: library.clone(), fd, maps: Vec::new(), connects: false };
        // Those that a listener accepts have its options.
        made.set(abi::RDMA_IOMAPSIZE, MAPS_MAX)?;
        made.set(abi::RDMA_RQSIZE, RECEIVES)?;
        made.set_nonblocking()?;
        Ok(made)
    }

    fn set(&self, option: c_uint, value: c_int) -> Result<()> {
        let level = abi::SOL_RDMA.cast_signed();
        let bytes = libc::socklen_t::try_from(size_of::<c_int>()).unwrap_or(4);
        let at = (&raw const value).cast();
        // SAFETY: the socket is open, and the value is a local of so many bytes.
        let done = unsafe {
            self.library.rsocket.rsetsockopt(self.fd, level, option.cast_signed(), at, bytes)
        };
        check(done, "an option of an rsocket")
    }

    fn set_nonblocking(&self) -> Result<()> {
        let call = self.library.rsocket.rfcntl.as_ref();
        let call = call.map_err(|_| Error::new(Code::Unsupported, "librdmacm has no rfcntl"))?;
        // SAFETY: the socket is open, and the command takes an int.
        check(unsafe { call(self.fd, libc::F_SETFL, libc::O_NONBLOCK) }, "O_NONBLOCK")
    }

    /// Closes what has no peer.
    fn close_at_once(mut self) {
        // SAFETY: made once. Nobody is at the other end, so the call does not wait.
        unsafe { self.library.rsocket.rclose(self.fd) };
        self.fd = -1;
    }

    fn bind(&mut self, at: IpAddr) -> Result<()> {
        let raw = Raw::new(SocketAddr::new(at, 0));
        // SAFETY: the socket is open, and the address is a local that lives through the call.
        let done = unsafe { self.library.rsocket.rbind(self.fd, raw.at(), raw.length()) };
        check(done, "binding an rsocket")
    }

    /// The port it is bound to.
    pub(crate) fn port(&self) -> Result<u16> {
        // SAFETY: all zeros is a valid sockaddr_in6, a struct of integers.
        let mut at: libc::sockaddr_in6 = unsafe { std::mem::zeroed() };
        let mut bytes = libc::socklen_t::try_from(size_of_val(&at)).unwrap_or(0);
        let to = (&raw mut at).cast();
        // SAFETY: the socket is open; the call writes no more than the stated bytes.
        let done = unsafe { self.library.rsocket.rgetsockname(self.fd, to, &raw mut bytes) };
        check(done, "the address of an rsocket")?;
        // Both kinds of address have their port in one place.
        Ok(u16::from_be(at.sin6_port))
    }

    /// Somebody who has connected, if there is one, and room for one.
    pub(crate) fn accept(&mut self) -> Result<Option<Self>> {
        let Ok(connects) = take_place() else { return Ok(None) };
        let (address, bytes) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the socket is open; the call may leave the address out.
        let fd = unsafe { self.library.rsocket.raccept(self.fd, address, bytes) };
        if fd < 0 {
            let error = io::Error::last_os_error();
            STREAMS.fetch_sub(1, Ordering::Relaxed);
            let waits = error.kind() == io::ErrorKind::WouldBlock;
            return if waits { Ok(None) } else { Err(Error::os(&error, "accepting an rsocket")) };
        }
        let made = Self { library: self.library.clone(), fd, maps: Vec::new(), connects };
        made.set_nonblocking()?;
        Ok(Some(made))
    }

    /// Whether the library's thread looks after it from now on.
    fn connect(&mut self, target: SocketAddr) -> Result<bool> {
        let raw = Raw::new(target);
        // SAFETY: the socket is open, and the address is a local that lives through the call.
        let done = unsafe { self.library.rsocket.rconnect(self.fd, raw.at(), raw.length()) };
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            _ if done == 0 => Ok(false),
            Some(libc::EINPROGRESS) => Ok(true),
            _ => Err(not_connected(&error)),
        }
    }

    /// Sends what goes now of some bytes.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (from, count) = (bytes.as_ptr().cast::<c_void>(), bytes.len());
        // SAFETY: the socket is open; the bytes are copied by the call.
        let sent = unsafe { self.library.rsocket.rsend(self.fd, from, count, 0) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    /// Takes what has come; 0 when the connection has ended.
    pub(crate) fn receive(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let (to, count) = (into.as_mut_ptr().cast::<c_void>(), into.len());
        // SAFETY: the socket is open; the call writes no more than the stated bytes.
        let got = unsafe { self.library.rsocket.rrecv(self.fd, to, count, 0) };
        usize::try_from(got).map_err(|_| io::Error::last_os_error())
    }

    /// What the connection has ended by; 0 where the peer has ended it, or nothing has.
    pub(crate) fn fault(&self) -> i32 {
        let mut error: c_int = 0;
        let mut bytes = libc::socklen_t::try_from(size_of::<c_int>()).unwrap_or(4);
        let at = (&raw mut error).cast();
        let (level, option) = (libc::SOL_SOCKET, libc::SO_ERROR);
        // SAFETY: the socket is open, and the value is a local of so many bytes.
        let done =
            unsafe { self.library.rsocket.rgetsockopt(self.fd, level, option, at, &raw mut bytes) };
        if done == 0 { error } else { 0 }
    }

    /// Lets the peer write to `bytes` bytes at `at`, from `offset` on as it counts, once it has
    /// got the next bytes.
    ///
    /// # Safety
    /// The memory stays until it is unmapped, or this is dropped. The peer may write to it at any
    /// time.
    ///
    /// # Errors
    /// `LIMIT` where the process may lock no more memory, or the peer takes no more maps.
    pub(crate) unsafe fn map(&mut self, at: *mut u8, bytes: usize, offset: i64) -> Result<()> {
        let access = libc::PROT_WRITE;
        // SAFETY: the socket is open; the caller promises the memory.
        let given =
            unsafe { self.library.rsocket.riomap(self.fd, at.cast(), bytes, access, 0, offset) };
        if given != offset {
            return Err(refused(&io::Error::last_os_error(), bytes));
        }
        self.maps.push((at as usize, bytes));
        Ok(())
    }

    /// The peer no longer may, from now on.
    pub(crate) fn unmap(&mut self, at: *mut u8, bytes: usize) {
        let Some(found) = self.maps.iter().position(|map| *map == (at as usize, bytes)) else {
            return;
        };
        self.maps.swap_remove(found);
        // SAFETY: the socket is open, and the map is one of its.
        let done = unsafe { self.library.rsocket.riounmap(self.fd, at.cast(), bytes) };
        debug_assert!(done == 0, "an rsocket does not know its map");
    }

    /// The same for everything.
    pub(crate) fn unmap_all(&mut self) {
        while let Some(&(at, bytes)) = self.maps.last() {
            self.unmap(at as *mut u8, bytes);
        }
    }

    /// Copies what goes now of `bytes` bytes at `from`, to be written from `offset` on as the peer
    /// counts; 0 where it has mapped nothing.
    ///
    /// # Safety
    /// `from` is readable for `bytes` bytes.
    pub(crate) unsafe fn write(
        &mut self,
        from: *const u8,
        bytes: usize,
        offset: i64,
    ) -> io::Result<usize> {
        // SAFETY: the socket is open; the caller promises the source.
        let sent = unsafe { self.library.rsocket.riowrite(self.fd, from.cast(), bytes, offset, 0) };
        // It says -1 in a type that has no sign.
        if sent > bytes { Err(io::Error::last_os_error()) } else { Ok(sent) }
    }
}

/// Why a connection has not come about; where memory was short, with the remedy.
pub(crate) fn not_connected(error: &io::Error) -> Error {
    if error.raw_os_error() == Some(libc::ENOMEM) {
        return refused(error, BUFFER_BYTES);
    }
    Error::os(error, "connecting by an rsocket")
}

/// One more connection; always true.
fn take_place() -> Result<bool> {
    let room = STREAMS_MAX.get().and_then(|room| room.as_ref().ok()).map_or(0, |room| *room);
    // ORDERING: a count alone.
    if STREAMS.fetch_add(1, Ordering::Relaxed) < room {
        return Ok(true);
    }
    STREAMS.fetch_sub(1, Ordering::Relaxed);
    let text = format!("this process has {room} rsockets, the most that are safe");
    Err(Error::new(Code::Limit, text))
}

/// Makes the library's tables large, by sockets at an address of this host that are closed at once.
/// Returns how many connections the table holds.
fn enlarge(library: &Arc<Library>, at: IpAddr) -> Result<usize> {
    for _ in 0..STARTS_LISTENING {
        Stream::listener(library, at, 1)?.close_at_once();
    }
    // Nobody is there: the discard port.
    let nowhere = SocketAddr::new(at, 9);
    let mut starts = 0;
    for _ in 0..TRIES {
        let mut one = Stream::new(library, at)?;
        one.bind(at)?;
        // What has failed at once was never in the table.
        starts += usize::from(matches!(one.connect(nowhere), Ok(true)));
        one.close_at_once();
        if starts == STARTS {
            break;
        }
    }
    // The first that stays starts the thread once more.
    Ok((starts + 1) * PLACES - 1)
}

/// Says the end to a peer, and waits until its card has taken all: then `done` is told. Closes when
/// `go` is, or is dropped.
fn end(library: &Library, fd: c_int, done: &Sender<()>, go: &Receiver<()>) {
    // SAFETY: the socket is open, and closed below alone. One that never was connected refuses.
    unsafe { library.rsocket.rshutdown(fd, libc::SHUT_RDWR) };
    let _ = done.send(());
    let _ = go.recv();
    // SAFETY: nobody else has it any more, and its maps are gone.
    unsafe { library.rsocket.rclose(fd) };
    STREAMS.fetch_sub(1, Ordering::Relaxed);
}

/// A stream on its way out.
struct Ending {
    done: Receiver<()>,
    go: Sender<()>,
    thread: JoinHandle<()>,
}

impl Ending {
    /// Where no thread is to be had, the socket stays until the process ends.
    fn begin(stream: &Stream) -> Option<Self> {
        let (library, fd) = (stream.library.clone(), stream.fd);
        let ((said, done), (go, heard)) = (channel(), channel());
        let body = move || end(&library, fd, &said, &heard);
        let thread = Builder::new().name("unisono-rclose".to_owned()).spawn(body).ok()?;
        Some(Self { done, go, thread })
    }
}

/// Closes streams, each when its peer's card has taken all that was sent; after `limit` without
/// that. Peers may write to their maps until then.
pub(crate) fn close(streams: Vec<Stream>, limit: Duration) {
    let until = Instant::now() + limit;
    let endings: Vec<_> = streams.iter().map(Ending::begin).collect();
    let left = || until.saturating_duration_since(Instant::now());
    let wait = |ending: &Ending| ending.done.recv_timeout(left()).is_ok();
    let ended: Vec<bool> = endings.iter().map(|ending| ending.as_ref().is_some_and(wait)).collect();
    for mut stream in streams {
        stream.unmap_all();
        stream.fd = -1;
    }
    for (ending, ended) in endings.into_iter().zip(ended) {
        let Some(Ending { done, go, thread }) = ending else { continue };
        drop((done, go));
        if ended {
            // What is left to do takes no peer.
            let _ = thread.join();
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.fd < 0 {
            return;
        }
        self.unmap_all();
        if self.connects {
            // The thread closes it when it can.
            drop(Ending::begin(self));
        } else {
            // A listener's waits while the library's thread accepts somebody, who may be slow.
            let (library, fd) = (self.library.clone(), self.fd);
            // SAFETY: made once, and nobody else has it any more.
            let body = move || unsafe { library.rsocket.rclose(fd) };
            let _ = Builder::new().name("unisono-rclose".to_owned()).spawn(body);
        }
    }
}
