//! Where connections wait until they have proved themselves.
//!
//! A porch accepts from its listeners and runs the handshake of every newcomer. Strangers cost one
//! entry of a bounded table, each for a few seconds: when the table is full the oldest leaves. One
//! thread drives it through a [`Poller`] whose other tokens stay below [`TOKENS_FROM`].

use std::collections::BTreeMap;
use std::fmt;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use super::auth::{Expect, Handshake, Outcome};
use super::conn::{Conn, Socket, ours};
use super::key::Key;
use crate::error::{Error, Result};
use crate::sys::poll::{Event, Interest, Poller};
use crate::sys::{socket, unix};

/// Tokens from here on belong to the porch.
pub(crate) const TOKENS_FROM: u64 = 1 << 63;
/// The token of the connection to the rendezvous, where it is waited on beside a porch.
pub(crate) const NEWS: u64 = TOKENS_FROM - 1;
/// Strangers that may wait at once; a real one needs a slot for a round trip or two.
pub(crate) const STRANGERS_MAX: usize = 256;
/// How long one may take to prove itself.
const STRANGER_LIMIT: Duration = Duration::from_secs(5);
/// How many are accepted before others get their turn.
const ACCEPTS_MAX: usize = 64;
/// How long a listener rests when the process is out of descriptors.
const REST: Duration = Duration::from_millis(100);
/// How long a process may have no descriptor for a newcomer; then strangers make room, or there is
/// none to be made.
const SHORTAGE_MAX: Duration = Duration::from_secs(1);

/// A listener, TCP or Unix.
pub(crate) trait Door: AsFd {
    /// What it accepts.
    type Stream: Socket;
    /// The next connection and where it is from.
    fn accept(&self) -> Result<Option<(Self::Stream, String)>>;
}

impl Door for TcpListener {
    type Stream = TcpStream;
    fn accept(&self) -> Result<Option<(TcpStream, String)>> {
        let Some((stream, from)) = socket::accept(self)? else {
            return Ok(None);
        };
        // One that is reset already shows it soon enough.
        let _ = socket::set_nodelay(&stream);
        Ok(Some((stream, from.to_string())))
    }
}

impl Door for UnixListener {
    type Stream = UnixStream;
    fn accept(&self) -> Result<Option<(UnixStream, String)>> {
        let Some(stream) = unix::accept(self)? else {
            return Ok(None);
        };
        let from = unix::peer_pid(&stream).map_or(String::new(), |pid| format!("process {pid}"));
        Ok(Some((stream, from)))
    }
}

impl<D: Door> Door for &D {
    type Stream = D::Stream;
    fn accept(&self) -> Result<Option<(D::Stream, String)>> {
        (*self).accept()
    }
}

struct Stranger<S> {
    conn: Conn<S>,
    from: String,
    interest: Interest,
}

/// Someone who has proved to know the key.
pub(crate) struct Guest<S> {
    /// The connection.
    pub stream: S,
    /// What was proved.
    pub outcome: Outcome,
    /// Where it comes from.
    pub from: String,
}

/// Listeners and the strangers at them.
pub(crate) struct Porch<D: Door> {
    doors: Vec<D>,
    strangers: BTreeMap<u64, Stranger<D::Stream>>,
    strangers_max: usize,
    next_token: u64,
    key: Key,
    expect: Expect,
    rest_until: Option<Instant>,
    /// Since when nobody could be accepted, and why.
    shortage: Option<(Instant, Error)>,
    refused: u64,
    last_refusal: String,
}

impl<D: Door> Porch<D> {
    /// A porch behind non-blocking listeners, added to `poller`.
    pub(crate) fn new(
        doors: Vec<D>,
        key: &Key,
        expect: Expect,
        strangers_max: usize,
        poller: &Poller,
    ) -> Result<Self> {
        let next_token = TOKENS_FROM + doors.len() as u64;
        let porch = Self {
            doors,
            strangers: BTreeMap::new(),
            strangers_max,
            next_token,
            key: key.clone(),
            expect,
            rest_until: None,
            shortage: None,
            refused: 0,
            last_refusal: String::new(),
        };
        porch.open(poller)?;
        Ok(porch)
    }

    fn open(&self, poller: &Poller) -> Result<()> {
        for (token, door) in (TOKENS_FROM..).zip(&self.doors) {
            poller.add(door.as_fd(), token, Interest::Read)?;
        }
        Ok(())
    }

    /// Takes an event with a token from [`TOKENS_FROM`] on; appends those who proved themselves.
    /// Their sockets are out of the poller.
    pub(crate) fn handle(
        &mut self,
        event: Event,
        poller: &Poller,
        now: Instant,
        guests: &mut Vec<Guest<D::Stream>>,
    ) {
        let door = usize::try_from(event.token - TOKENS_FROM).unwrap_or(usize::MAX);
        if door < self.doors.len() {
            self.accept(door, poller, now, guests);
        } else {
            self.advance(event.token, poller, guests);
        }
    }

    fn accept(
        &mut self,
        door: usize,
        poller: &Poller,
        now: Instant,
        guests: &mut Vec<Guest<D::Stream>>,
    ) {
        // BOUND: ACCEPTS_MAX; what is left makes the listener ready again.
        for _ in 0..ACCEPTS_MAX {
            let (stream, from) = match self.doors[door].accept() {
                Ok(Some(newcomer)) => newcomer,
                Ok(None) => return,
                Err(error) => {
                    // Mostly too many open files: rest rather than spin.
                    self.refuse("a newcomer", &error);
                    if ours(&error) {
                        self.shortage.get_or_insert((now, error));
                    }
                    self.rest(poller, now);
                    return;
                }
            };
            self.shortage = None;
            if self.strangers.len() >= self.strangers_max
                && let Some((_, oldest)) = self.strangers.pop_first()
            {
                self.refuse(&oldest.from, &"it made room for newer connections");
            }
            let Ok(shake) = Handshake::listener(&self.key, self.expect) else {
                continue;
            };
            let token = self.next_token;
            self.next_token += 1;
            let conn = Conn::new(stream, shake, now + STRANGER_LIMIT);
            if poller.add(conn.stream().as_fd(), token, Interest::Read).is_ok() {
                let interest = Interest::Read;
                self.strangers.insert(token, Stranger { conn, from, interest });
                // Its greeting has often come along with it.
                self.advance(token, poller, guests);
            }
        }
    }

    fn advance(&mut self, token: u64, poller: &Poller, guests: &mut Vec<Guest<D::Stream>>) {
        let Some(stranger) = self.strangers.get_mut(&token) else {
            return;
        };
        match stranger.conn.advance() {
            Ok(false) => {
                let interest = stranger.conn.interest();
                if interest != stranger.interest {
                    stranger.interest = interest;
                    // A failure shows as a stranger that never ends, which its limit takes care of.
                    let _ = poller.modify(stranger.conn.stream().as_fd(), token, interest);
                }
            }
            Ok(true) => {
                let Some(stranger) = self.strangers.remove(&token) else {
                    return;
                };
                let _ = poller.remove(stranger.conn.stream().as_fd());
                if let Some((stream, outcome)) = stranger.conn.finish() {
                    guests.push(Guest { stream, outcome, from: stranger.from });
                }
            }
            Err(error) => {
                let Some(stranger) = self.strangers.remove(&token) else {
                    return;
                };
                self.refuse(&stranger.from, &error);
            }
        }
    }

    fn refuse(&mut self, from: &str, why: &dyn fmt::Display) {
        self.refused += 1;
        self.last_refusal = format!("{from}: {why}");
    }

    fn rest(&mut self, poller: &Poller, now: Instant) {
        if self.rest_until.is_none() {
            for door in &self.doors {
                let _ = poller.remove(door.as_fd());
            }
            self.rest_until = Some(now + REST);
        }
    }

    /// Sends those away whose time is over; returns when to come back at the latest.
    pub(crate) fn expire(&mut self, poller: &Poller, now: Instant) -> Result<Option<Instant>> {
        if self.rest_until.is_some_and(|until| until <= now) {
            self.rest_until = None;
            self.open(poller)?;
        }
        // Newer ones have later limits, so the first that may stay ends the search.
        while let Some(first) = self.strangers.first_entry() {
            if first.get().conn.limit > now {
                break;
            }
            let stranger = first.remove();
            self.refuse(&stranger.from, &"it did not finish the handshake in time");
        }
        let limit = self.strangers.values().next().map(|stranger| stranger.conn.limit);
        Ok(match (limit, self.rest_until) {
            (Some(limit), Some(until)) => Some(limit.min(until)),
            (limit, until) => limit.or(until),
        })
    }

    /// What this process itself has had too little of for so long that nobody can come any more.
    pub(crate) fn check_shortage(&mut self, now: Instant) -> Result<()> {
        let Some((since, error)) = &self.shortage else { return Ok(()) };
        if now.duration_since(*since) < SHORTAGE_MAX {
            return Ok(());
        }
        if self.strangers.is_empty() {
            return Err(error.clone());
        }
        // Nobody was accepted since, so all have had long enough to prove themselves. To send one
        // away earlier would be to lose a rank in the middle of its handshake.
        self.strangers.clear();
        self.shortage = None;
        Ok(())
    }

    /// A clause about refused connections for an error's text; empty when there were none.
    pub(crate) fn note(&self) -> String {
        if self.refused == 0 {
            return String::new();
        }
        format!("; {} connections were refused, the last from {}", self.refused, self.last_refusal)
    }
}

impl<D: Door> fmt::Debug for Porch<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Porch").field("strangers", &self.strangers.len()).finish_non_exhaustive()
    }
}
