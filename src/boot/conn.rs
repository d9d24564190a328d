//! Moves a handshake's bytes over a non-blocking socket.

use std::io::{self, Read};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use super::auth::{Handshake, Outcome};
use crate::error::{Code, Error, Result};
use crate::sys::poll::{Interest, wait_one};
use crate::sys::socket;

/// A stream socket: TCP or Unix.
pub(crate) trait Socket: Read + AsFd {
    /// Writes without raising a signal when the other end is gone: our host process may be a C
    /// program that such a signal would kill.
    fn send(&self, bytes: &[u8]) -> io::Result<usize>;
}

impl Socket for TcpStream {
    fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        socket::send(self, bytes)
    }
}

impl Socket for UnixStream {
    fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        socket::send(self, bytes)
    }
}

/// A connection that has not proved itself yet.
#[derive(Debug)]
pub(crate) struct Conn<S> {
    stream: S,
    shake: Handshake,
    /// When it is given up.
    pub limit: Instant,
}

impl<S: Socket> Conn<S> {
    /// A handshake over `stream`, which must be non-blocking.
    pub(crate) const fn new(stream: S, shake: Handshake, limit: Instant) -> Self {
        Self { stream, shake, limit }
    }

    /// Does what can be done without waiting. True: the handshake is done.
    pub(crate) fn advance(&mut self) -> Result<bool> {
        let mut buffer = [0; 64];
        // BOUND: every turn moves a byte of a handshake of fixed size, or returns.
        loop {
            self.flush()?;
            if self.shake.is_done() {
                return Ok(true);
            }
            let want = self.shake.want().min(buffer.len());
            if want == 0 {
                return Ok(false);
            }
            match self.stream.read(&mut buffer[..want]) {
                Ok(0) => return Err(closed()),
                Ok(got) => {
                    if let Err(error) = self.shake.feed(&buffer[..got]) {
                        // The refusal is a courtesy: whether it goes out changes nothing.
                        let _ = self.flush();
                        return Err(error);
                    }
                }
                Err(error) if waits(&error) => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    return Err(closed());
                }
                Err(error) => return Err(Error::os(&error, "reading a handshake")),
            }
        }
    }

    fn flush(&mut self) -> Result<()> {
        // BOUND: every turn writes a byte of a handshake of fixed size, or returns.
        while !self.shake.output().is_empty() {
            match self.stream.send(self.shake.output()) {
                Ok(0) => return Err(closed()),
                Ok(count) => self.shake.wrote(count),
                Err(error) if waits(&error) => return Ok(()),
                Err(error) => return Err(Error::os(&error, "writing a handshake")),
            }
        }
        Ok(())
    }

    /// What to wait for before the next [`Conn::advance`].
    pub(crate) fn interest(&self) -> Interest {
        if self.shake.output().is_empty() { Interest::Read } else { Interest::Write }
    }

    /// The socket.
    pub(crate) const fn stream(&self) -> &S {
        &self.stream
    }

    /// The socket and what was proved; `None` unless done.
    pub(crate) fn finish(self) -> Option<(S, Outcome)> {
        let outcome = self.shake.outcome()?;
        Some((self.stream, outcome))
    }

    /// Waits for the handshake to end, until the connection's limit.
    pub(crate) fn complete(mut self) -> Result<(S, Outcome)> {
        // BOUND: the connection's limit.
        while !self.advance()? {
            let left = self.limit.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::new(Code::TimedOut, "the other end did not finish a handshake"));
            }
            wait_one(self.stream.as_fd(), self.interest(), Some(left))?;
        }
        self.finish().ok_or_else(|| Error::new(Code::Internal, "a handshake ended without outcome"))
    }
}

/// Whether an I/O error only means "not now".
pub(crate) fn waits(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// Whether this process or host has run out of something: no peer is to blame, and to try again at
/// once makes it worse.
pub(crate) fn ours(error: &Error) -> bool {
    [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM].contains(&error.native)
}

fn closed() -> Error {
    Error::new(Code::PeerLost, "the other end closed the connection during the handshake")
}
