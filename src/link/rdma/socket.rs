//! A socket of librdmacm as a [`Port`]: frames are the stream's bytes, and what is placed, or goes
//! to a ring, is written to memory that the peer has mapped.
//!
//! Requests wait here, in order, where the socket takes nothing now. One has ended when the library
//! has copied its bytes. Writes tell nothing by themselves: a NOTE follows each.
//!
//! Memory that the peer may write to has a number, which is its key, and begins at that number
//! times 4 GiB, as the peer counts. Numbers are given once: what the peer knows of a map that is
//! gone leads nowhere. The rings are number 1.

use std::cell::Cell;
use std::collections::VecDeque;

use super::frame::{FRAME_BYTES, Frame, Remote};
use super::pair::Memory;
use super::port::{Keys, Port};
use super::regions::Held;
use crate::error::{Code, Error, Result};
use crate::rdma::Stream;

/// Requests that may wait.
pub(super) const REQUESTS_MAX: usize = 128;
/// What is given to the library at a time, and in a row before the other direction is looked at.
const WRITE_BYTES: usize = 256 << 10;
const WRITES: usize = 4;
/// Bytes of the stream that are taken at a time.
const INBOX_BYTES: usize = 64 * FRAME_BYTES;

/// Where maps begin, as bits of their offset; the library counts their bytes in 32.
const NUMBER_AT: u32 = 32;
/// Bytes of a map, at the most.
const MAP_BYTES: usize = 1 << (NUMBER_AT - 1);
const NUMBER_MAX: u32 = u32::MAX >> 1;

/// What waits.
#[derive(Clone, Copy, Debug)]
enum Request {
    Write { from: *const u8, bytes: usize, to: i64 },
    Frame { bytes: [u8; FRAME_BYTES], sent: usize },
}

/// Memory that the peer may write to.
#[derive(Clone, Copy, Debug)]
struct Map {
    from: usize,
    bytes: usize,
    number: u32,
    /// It was added so often.
    times: usize,
}

impl Map {
    const fn offset(&self) -> u64 {
        (self.number as u64) << NUMBER_AT
    }

    const fn holds(&self, at: usize, bytes: usize) -> bool {
        self.from <= at && at - self.from <= self.bytes && bytes <= self.bytes - (at - self.from)
    }
}

/// What a look at the stream has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing, now.
    Nothing,
    /// Bytes: see [`Socket::next`].
    Bytes,
    /// The connection has ended, by the peer or by this error of the system.
    End(i32),
}

/// One connected socket.
#[derive(Debug)]
pub(super) struct Socket {
    stream: Stream,
    maps: Vec<Map>,
    /// The one found last.
    last: Cell<usize>,
    number: u32,
    requests: VecDeque<Request>,
    posted: u64,
    ended: u64,
    /// What the system said when nothing would go any more.
    broken: Option<i32>,
    /// Nothing goes and comes any more.
    stopped: bool,
    inbox: Box<[u8; INBOX_BYTES]>,
    /// Where in the inbox what was not taken is.
    fresh: (usize, usize),
}

// SAFETY: the addresses are of memory that owners and callers keep, and no thread's.
unsafe impl Send for Socket {}

impl Socket {
    /// The port of a stream whose peer has proved itself. The rings are mapped; the peer hears of
    /// that with the first frame.
    ///
    /// # Safety
    /// The rings are valid as long as this is, and the peer may write to them.
    ///
    /// # Errors
    /// `LIMIT` where so much memory may not be locked.
    pub(super) unsafe fn new(stream: Stream, rings: *mut u8) -> Result<Self> {
        let mut made = Self {
            stream,
            maps: Vec::with_capacity(8),
            last: Cell::new(0),
            number: 0,
            requests: VecDeque::with_capacity(REQUESTS_MAX),
            posted: 0,
            ended: 0,
            broken: None,
            stopped: false,
            inbox: Box::new([0; INBOX_BYTES]),
            fresh: (0, 0),
        };
        // SAFETY: the caller's promise.
        unsafe { made.map(rings as usize, Memory::BYTES)? };
        Ok(made)
    }

    /// Maps a part that is not mapped.
    unsafe fn map(&mut self, from: usize, bytes: usize) -> Result<()> {
        if self.number == NUMBER_MAX {
            return Err(Error::new(Code::Limit, "an rsocket has had all its maps"));
        }
        self.number += 1;
        let map = Map { from, bytes, number: self.number, times: 1 };
        // SAFETY: the caller's promise.
        unsafe { self.stream.map(from as *mut u8, bytes, map.offset().cast_signed())? };
        self.maps.push(map);
        Ok(())
    }

    /// Lets the peer write to `bytes` bytes at `at`, in parts where they are many. What does not
    /// come about is not reached: messages go by the ring then.
    ///
    /// # Safety
    /// The memory stays until it is forgotten, or this is dropped.
    pub(super) unsafe fn add(&mut self, at: usize, bytes: usize) {
        if self.stopped {
            return;
        }
        for (from, bytes) in parts(at, bytes) {
            let same = |map: &&mut Map| (map.from, map.bytes) == (from, bytes);
            if let Some(map) = self.maps.iter_mut().find(same) {
                map.times += 1;
            } else {
                // SAFETY: the caller's promise.
                let _ = unsafe { self.map(from, bytes) };
            }
        }
    }

    /// The peer may no longer write there.
    pub(super) fn forget(&mut self, at: usize, bytes: usize) {
        for (from, bytes) in parts(at, bytes) {
            let same = |map: &Map| (map.from, map.bytes) == (from, bytes);
            let Some(found) = self.maps.iter().position(same) else { continue };
            self.maps[found].times -= 1;
            if self.maps[found].times == 0 {
                self.maps.swap_remove(found);
                self.stream.unmap(from as *mut u8, bytes);
            }
        }
    }

    /// From now on nothing goes to the peer, and nothing of its comes to memory here.
    pub(super) fn stop(&mut self) {
        self.stopped = true;
        self.stream.unmap_all();
        self.maps.clear();
        self.requests.clear();
    }

    /// The stream, to be closed.
    pub(super) fn into_stream(self) -> Stream {
        self.stream
    }

    /// Takes bytes of the stream.
    pub(super) fn receive(&mut self) -> Found {
        if self.stopped {
            return Found::Nothing;
        }
        let (from, to) = self.fresh;
        self.inbox.copy_within(from..to, 0);
        self.fresh = (0, to - from);
        match self.stream.receive(&mut self.inbox[to - from..]) {
            Ok(0) => {
                // An end that was seen in sending, and is not the peer's, has said its name there.
                let named = [self.stream.fault(), self.broken.unwrap_or(0)];
                let peers = [0, libc::ECONNRESET, libc::EPIPE, libc::ENOTCONN];
                Found::End(named.into_iter().find(|errno| !peers.contains(errno)).unwrap_or(0))
            }
            Ok(bytes) => {
                self.fresh.1 += bytes;
                Found::Bytes
            }
            Err(error) if waits(&error) => match self.broken {
                Some(errno) => Found::End(errno),
                None => Found::Nothing,
            },
            Err(error) => Found::End(error.raw_os_error().unwrap_or(libc::EIO)),
        }
    }

    /// The next frame that has come whole.
    pub(super) fn next(&mut self) -> Option<[u8; FRAME_BYTES]> {
        let (from, to) = self.fresh;
        let frame = self.inbox[from..to].first_chunk().copied()?;
        self.fresh.0 += FRAME_BYTES;
        Some(frame)
    }

    /// Gives the socket what it takes now; whether it took anything.
    ///
    /// # Errors
    /// `PROTOCOL` where the peer has not mapped what it has told.
    pub(super) fn pump(&mut self) -> Result<bool> {
        let (mut any, mut writes) = (false, 0);
        while self.broken.is_none()
            && !self.stopped
            && writes < WRITES
            && let Some(request) = self.requests.front_mut()
        {
            let (went, over) = match request {
                Request::Write { from, bytes, to } => {
                    writes += 1;
                    let part = (*bytes).min(WRITE_BYTES);
                    // SAFETY: who posted it has promised the source until it has ended.
                    let went = unsafe { self.stream.write(*from, part, *to) };
                    if let Ok(count) = went {
                        *from = from.wrapping_add(count);
                        *to += i64::try_from(count).unwrap_or(0);
                        *bytes -= count;
                    }
                    if matches!(went, Ok(0)) {
                        let text = "an address over RDMA at which nothing is mapped";
                        return Err(Error::new(Code::Protocol, text));
                    }
                    (went, *bytes == 0)
                }
                Request::Frame { bytes, sent } => {
                    let went = self.stream.send(&bytes[*sent..]);
                    *sent += went.as_ref().map_or(0, |count| *count);
                    (went, *sent == FRAME_BYTES)
                }
            };
            match went {
                Ok(count) => any |= count > 0,
                Err(error) if waits(&error) => break,
                Err(error) => self.broken = Some(error.raw_os_error().unwrap_or(libc::EIO)),
            }
            if over {
                self.requests.pop_front();
                self.ended += 1;
            }
        }
        Ok(any)
    }

    fn post(&mut self, request: Request) -> Result<u64> {
        self.posted += 1;
        self.requests.push_back(request);
        self.pump()?;
        Ok(self.posted)
    }

    fn find(&self, at: usize, bytes: usize) -> Option<&Map> {
        let holds = |map: &&Map| map.holds(at, bytes);
        if let Some(map) = self.maps.get(self.last.get()).filter(holds) {
            return Some(map);
        }
        self.last.set(self.maps.iter().position(|map| map.holds(at, bytes))?);
        self.maps.get(self.last.get())
    }
}

/// A stretch of memory in parts that can be mapped.
fn parts(at: usize, bytes: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..bytes).step_by(MAP_BYTES).map(move |skip| (at + skip, MAP_BYTES.min(bytes - skip)))
}

/// Whether an error only means "not now".
fn waits(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted)
}

/// Where the peer has mapped `bytes` bytes, as the library counts; `None` where that cannot be.
fn offset(to: Remote, bytes: usize) -> Option<i64> {
    let first = u64::from(to.key) << NUMBER_AT;
    let inside = to.address.checked_sub(first)?.checked_add(bytes as u64)?;
    let fits = (1..=NUMBER_MAX).contains(&to.key) && inside <= MAP_BYTES as u64;
    i64::try_from(to.address).ok().filter(|_| fits)
}

impl Port for Socket {
    fn room(&self) -> usize {
        REQUESTS_MAX.saturating_sub(self.requests.len())
    }

    unsafe fn write(
        &mut self,
        (from, _): (*const u8, u32),
        bytes: usize,
        to: Remote,
        told: Option<u32>,
        _: bool,
    ) -> Result<u64> {
        let Some(to) = offset(to, bytes) else {
            return Err(Error::new(Code::Protocol, "an address over RDMA that cannot be"));
        };
        let number = self.post(Request::Write { from, bytes, to })?;
        if let Some(bits) = told {
            self.frame(&Frame::Note { bits }.encode())?;
        }
        Ok(number)
    }

    fn frame(&mut self, frame: &[u8; FRAME_BYTES]) -> Result<u64> {
        self.post(Request::Frame { bytes: *frame, sent: 0 })
    }

    fn ended(&self) -> u64 {
        self.ended
    }

    /// Any memory can be read: its bytes are copied. The peer writes to what is mapped.
    fn keys(&self, at: *const u8, bytes: usize) -> Option<Held> {
        let remote = self.find(at as usize, bytes).map_or(0, |map| map.number);
        Some(Held { keys: Keys { local: 0, remote }, region: None })
    }

    fn address(&self, at: *const u8, keys: Keys) -> u64 {
        let found = self.maps.iter().find(|map| map.number == keys.remote);
        found.map_or(0, |map| map.offset() + (at as usize).wrapping_sub(map.from) as u64)
    }

    fn is_through(&self) -> bool {
        self.requests.is_empty() || self.broken.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_peer_tells_leads_into_one_map() {
        let first = 7u64 << NUMBER_AT;
        let told = |address, bytes| offset(Remote { address, key: 7 }, bytes);
        assert_eq!(told(first + 5, 100), Some(first.cast_signed() + 5));
        assert_eq!(told(first, MAP_BYTES), Some(first.cast_signed()));
        assert_eq!(told(first + 1, MAP_BYTES), None, "past the largest map");
        assert_eq!(told(first - 1, 1), None, "in another map");
        assert_eq!(told(u64::MAX, 1), None);
        assert_eq!(offset(Remote { address: 5, key: 0 }, 1), None, "no map");
        let (address, key) = (u64::from(u32::MAX) << NUMBER_AT, u32::MAX);
        assert_eq!(offset(Remote { address, key }, 1), None, "no offset");
    }

    #[test]
    fn a_stretch_that_is_long_is_mapped_in_parts() {
        let all: Vec<_> = parts(4096, MAP_BYTES + 10).collect();
        assert_eq!(all, [(4096, MAP_BYTES), (4096 + MAP_BYTES, 10)]);
        assert_eq!(parts(4096, 0).count(), 0);
    }
}
