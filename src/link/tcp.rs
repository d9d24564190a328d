//! One lane over one TCP connection, both directions.
//!
//! Small pieces gather in a staging buffer and leave together with what follows; large pieces go
//! straight between the caller's memory and the socket. A receiver looks ahead by at most
//! [`AHEAD_BYTES`], so that a small message costs one system call and a large one lands where it
//! belongs. The connection was authenticated when it was made ([`crate::boot`]).
//!
//! A broken or closed connection falls silent and notes its end: whether the peer is gone, and
//! whose fault that is, is heard on other ways ([`crate::health`]). Memory that runs out here is
//! `SYSTEM`.

use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::sync::Arc;

use crate::engine::link::{Rx, Tx, Window};
use crate::error::Result;
use crate::link::ends::Ends;
use crate::sys::socket::{send, send_two};
use crate::types::Rank;

/// Bytes a sending end takes on while the peer does not read. See [`Tx::stage`].
pub(crate) const STAGING_BYTES: usize = 1 << 20;
/// Pieces up to here are staged, larger ones go straight to the socket.
const GATHER_BYTES: usize = 4 << 10;
/// Staged bytes are pushed out at the latest when so many have gathered.
const PUSH_BYTES: usize = 32 << 10;
/// How far a receiver reads beyond what it was asked for.
const AHEAD_BYTES: usize = 4 << 10;
/// The largest window a receiver gathers.
const PEEK_BYTES: usize = 64 << 10;

/// The sending end.
#[derive(Debug)]
pub(crate) struct TcpTx {
    stream: Arc<TcpStream>,
    peer: Rank,
    ends: Ends,
    /// Made at first use: most lanes of most worlds stay silent.
    staging: Vec<u8>,
    /// Staged bytes lie in `[sent, filled)`.
    sent: usize,
    filled: usize,
}

impl TcpTx {
    pub(crate) fn new(stream: Arc<TcpStream>, peer: Rank, ends: Ends) -> Self {
        Self { stream, peer, ends, staging: Vec::new(), sent: 0, filled: 0 }
    }

    /// Pushes staged bytes, then `more`; how many of `more` went.
    fn push(&mut self, more: &[u8]) -> Result<usize> {
        // BOUND: every turn sends at least a byte, meets a signal, or ends.
        loop {
            let staged = &self.staging[self.sent..self.filled];
            let sent = match (staged.is_empty(), more.is_empty()) {
                (true, true) => return Ok(0),
                (true, false) => send(&*self.stream, more),
                (false, true) => send(&*self.stream, staged),
                (false, false) => send_two(&*self.stream, staged, more),
            };
            match sent {
                Ok(count) if count >= staged.len() => {
                    let extra = count - staged.len();
                    (self.sent, self.filled) = (0, 0);
                    return Ok(extra);
                }
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(0),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return self.ends.broken(self.peer, &error).map(|()| 0),
            }
        }
    }
}

// SAFETY: windows lie in the staging buffer.
unsafe impl Tx for TcpTx {
    fn window(&mut self) -> Result<Window> {
        if self.staging.is_empty() {
            self.staging = vec![0; STAGING_BYTES];
        }
        // Room in front is room: what is promised to fit must fit, in whole elements.
        if STAGING_BYTES - self.filled < PUSH_BYTES && self.sent > 0 || self.filled == STAGING_BYTES
        {
            self.push(&[])?;
            self.staging.copy_within(self.sent..self.filled, 0);
            (self.sent, self.filled) = (0, self.filled - self.sent);
        }
        let free = &mut self.staging[self.filled..];
        Ok(Window { at: free.as_mut_ptr(), bytes: free.len() })
    }

    fn commit(&mut self, bytes: usize) -> Result<()> {
        self.filled += bytes;
        if self.filled - self.sent >= PUSH_BYTES {
            self.push(&[])?;
        }
        Ok(())
    }

    unsafe fn write(&mut self, from: *const u8, bytes: usize) -> Result<usize> {
        if bytes <= GATHER_BYTES {
            // SAFETY: the caller's promise is passed on.
            return unsafe { self.stage(from, bytes) };
        }
        // SAFETY: the caller promises `bytes` readable bytes.
        self.push(unsafe { std::slice::from_raw_parts(from, bytes) })
    }

    fn end(&mut self) -> Result<()> {
        Ok(())
    }

    fn flush(&mut self) -> Result<bool> {
        self.push(&[])?;
        Ok(self.filled == 0)
    }
}

/// The receiving end.
#[derive(Debug)]
pub(crate) struct TcpRx {
    stream: Arc<TcpStream>,
    peer: Rank,
    ends: Ends,
    /// Made at first use.
    staging: Vec<u8>,
    /// Arrived bytes lie in `[taken, filled)`.
    taken: usize,
    filled: usize,
}

impl TcpRx {
    pub(crate) fn new(stream: Arc<TcpStream>, peer: Rank, ends: Ends) -> Self {
        Self { stream, peer, ends, staging: Vec::new(), taken: 0, filled: 0 }
    }

    fn receive(from: (&TcpStream, Rank, &Ends), into: &mut [u8]) -> Result<usize> {
        let (mut stream, peer, ends) = from;
        loop {
            match stream.read(into) {
                Ok(0) => {
                    ends.closed(peer);
                    return Ok(0);
                }
                Ok(count) => return Ok(count),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(0),
                // BOUND: a signal at a time.
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return ends.broken(peer, &error).map(|()| 0),
            }
        }
    }
}

// SAFETY: windows lie in the staging buffer.
unsafe impl Rx for TcpRx {
    fn peek(&mut self, want: usize) -> Result<Window> {
        let want = want.min(PEEK_BYTES);
        if self.filled - self.taken < want {
            if self.staging.is_empty() {
                self.staging = vec![0; PEEK_BYTES + AHEAD_BYTES];
            }
            if self.taken + want > PEEK_BYTES {
                self.staging.copy_within(self.taken..self.filled, 0);
                (self.taken, self.filled) = (0, self.filled - self.taken);
            }
            let end = (self.taken + want.max(AHEAD_BYTES)).min(self.staging.len());
            let free = &mut self.staging[self.filled..end];
            self.filled += Self::receive((&self.stream, self.peer, &self.ends), free)?;
        }
        let ready = &mut self.staging[self.taken..self.filled];
        Ok(Window { at: ready.as_mut_ptr(), bytes: ready.len() })
    }

    fn release(&mut self, bytes: usize) {
        self.taken += bytes;
        if self.taken == self.filled {
            (self.taken, self.filled) = (0, 0);
        }
    }

    unsafe fn read(&mut self, into: *mut u8, bytes: usize) -> Result<usize> {
        if self.taken == self.filled && bytes > AHEAD_BYTES {
            // SAFETY: the caller promises `bytes` writable bytes, and the socket only writes them.
            let into = unsafe { std::slice::from_raw_parts_mut(into, bytes) };
            return Self::receive((&self.stream, self.peer, &self.ends), into);
        }
        let window = if self.taken == self.filled { self.peek(bytes)? } else { self.peek(0)? };
        let count = window.bytes.min(bytes);
        // SAFETY: the window holds `count` bytes; the caller promises `bytes` writable ones.
        unsafe { std::ptr::copy_nonoverlapping(window.at, into, count) };
        self.release(count);
        Ok(count)
    }

    fn end(&mut self) {}
}
