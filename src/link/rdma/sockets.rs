//! All connections of a rank by sockets of librdmacm, one for each peer.
//!
//! They are for cards and drivers where only those work. The protocol is that of queue pairs; what
//! is placed, or goes to a ring, is copied once more, by the library at the sending end.
//!
//! A look at a lane looks at its peer's socket, and at that of one other by turns. Nothing tells
//! when something has come: a rank that waits sleeps for short times, which grow. A peer that was
//! killed is not noticed here, but by its control connection.
//!
//! Owns: the sockets, and the memory of rings and mirrors. Sockets go first.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use super::end::Carrier;
use super::fleet::{DOWN, LAST_WORDS, PORTS_EVERY};
use super::pair::{Memory, Pair};
use super::shared::Shared;
use super::socket::{Found, Socket};
use crate::error::Result;
use crate::link::ends::Ends;
use crate::rdma::{Device, Stream, close};
use crate::sys::memory::Pages;
use crate::sys::timer::Timer;
use crate::types::Rank;

/// Looks at one stream in a row.
const LOOKS: usize = 8;

/// A rank that waits looks again after so long at first, and at the latest.
const NAP_MIN: Duration = Duration::from_micros(50);
const NAP_MAX: Duration = Duration::from_millis(1);

/// A socket on the memory of its peer's lanes, which has told nothing yet.
#[derive(Debug)]
pub(crate) struct Fitted {
    peer: Rank,
    /// Dropped before the pages, which the peer may write to.
    socket: Socket,
    memory: Memory,
    pages: Pages,
}

// SAFETY: the addresses are of the pages.
unsafe impl Send for Fitted {}

impl Fitted {
    /// The connection with `peer`, which has proved itself.
    ///
    /// # Errors
    /// `LIMIT` where so much memory may not be locked.
    pub(crate) fn new(peer: Rank, stream: Stream) -> Result<Self> {
        let pages = Pages::new(2 * Memory::BYTES)?;
        let rings = pages.at().as_ptr();
        let memory = Memory { rings, mirrors: rings.wrapping_add(Memory::BYTES) };
        // SAFETY: the pages stay as long as the socket. The peer may write to the rings, and
        // nothing there is trusted.
        let socket = unsafe { Socket::new(stream, rings)? };
        Ok(Self { peer, socket, memory, pages })
    }
}

/// A peer and its connection.
#[derive(Debug)]
struct Member {
    peer: Rank,
    pair: Pair<Socket>,
    /// The peer has ended the connection.
    gone: bool,
    /// What the system said when it broke.
    fault: Option<(i32, String)>,
    /// Nothing had come when it was last looked at.
    quiet: bool,
    _pages: Pages,
}

/// All of a rank's.
#[derive(Debug)]
pub(crate) struct Sockets {
    members: Vec<Member>,
    ends: Ends,
    /// Whose turn it is to be looked at beside another.
    turn: usize,
    /// The next sleep.
    nap: Duration,
    timer: Timer,
    /// The card that they go by, its port, and since when that is down.
    card: (Device, u8),
    down: Option<Instant>,
    looked: Instant,
    /// The program's memory that peers may write to.
    regions: Vec<(usize, usize)>,
    /// No connection takes anything any more.
    is_cut: bool,
}

/// A rank's connections by sockets.
#[derive(Clone, Debug)]
pub(crate) struct Opened {
    pub(super) sockets: Shared<Sockets>,
}

impl Opened {
    /// The connections by `card` with the peers for which all is fitted. They say HELLO.
    pub(crate) fn launch(fitted: Vec<Fitted>, card: (Device, u8), ends: Ends) -> Result<Self> {
        let member = |Fitted { peer, socket, memory, pages }: Fitted| {
            // SAFETY: the member keeps the pages, which are fresh; of them the rings are mapped.
            let pair = unsafe { Pair::new(peer, memory, vec![socket])? };
            Ok(Member { peer, pair, gone: false, fault: None, quiet: true, _pages: pages })
        };
        let members = fitted.into_iter().map(member).collect::<Result<_>>()?;
        let sockets = Sockets {
            members,
            ends,
            turn: 0,
            nap: NAP_MIN,
            timer: Timer::new()?,
            card,
            down: None,
            looked: Instant::now(),
            regions: Vec::new(),
            is_cut: false,
        };
        // SAFETY: the ends of one rank's links hold clones; inside a call of `with` nothing calls
        // it again.
        Ok(Self { sockets: unsafe { Shared::new(sockets) } })
    }

    /// Lets peers write to `bytes` bytes at `at`, as far as their sockets take more maps.
    ///
    /// # Safety
    /// The memory must stay until it is forgotten, or until all ends are gone.
    pub(crate) unsafe fn register(&self, at: *mut u8, bytes: usize) {
        self.sockets.with(|sockets| {
            for socket in sockets.live() {
                // SAFETY: the caller's promise.
                unsafe { socket.add(at as usize, bytes) };
            }
            sockets.regions.push((at as usize, bytes));
        });
    }

    /// Takes it back: what begins there and was added last.
    pub(crate) fn forget(&self, at: *mut u8) {
        self.sockets.with(|sockets| {
            let found = sockets.regions.iter().rposition(|(from, _)| *from == at as usize);
            if let Some((from, bytes)) = found.map(|index| sockets.regions.swap_remove(index)) {
                sockets.live().for_each(|socket| socket.forget(from, bytes));
            }
        });
    }

    /// Looks at the sockets, before a sleep, which is short; false when something has come.
    pub(crate) fn may_sleep(&self) -> bool {
        self.sockets.with(|sockets| !sockets.poll() && sockets.set_timer())
    }

    /// After a sleep.
    pub(crate) fn wake(&self) {
        self.sockets.with(|sockets| drop(sockets.timer.clear()));
    }

    /// Looks at the card, now and then.
    pub(crate) fn watch(&self) {
        self.sockets.with(Sockets::watch);
    }

    /// Ends all connections: nothing of peers' comes to memory of callers any more.
    pub(crate) fn cut(&self) {
        self.sockets.with(|sockets| {
            if !std::mem::replace(&mut sockets.is_cut, true) {
                sockets.members.iter_mut().for_each(Member::halt);
            }
        });
    }

    /// Whether the peer of this number has said HELLO.
    pub(crate) fn is_open(&self, index: usize) -> bool {
        self.sockets.with(|sockets| {
            sockets.poll();
            let member = &sockets.members[index];
            member.pair.is_open() && !member.pair.is_halted()
        })
    }

    /// A descriptor that is readable when a sleep is over.
    pub(crate) fn add_to(&self, add: impl FnOnce(BorrowedFd<'_>) -> Result<()>) -> Result<()> {
        self.sockets.with(|sockets| add(sockets.timer.as_fd()))
    }

    /// Bytes of messages that a processor has copied here, those apart that the library copies.
    #[cfg(test)]
    pub(crate) fn copied(&self) -> u64 {
        self.sockets.with(|sockets| sockets.members.iter().map(|member| member.pair.copied).sum())
    }
}

impl Sockets {
    fn live(&mut self) -> impl Iterator<Item = &mut Socket> {
        self.members.iter_mut().map(Member::socket)
    }

    /// Takes and gives what can be; whether there was anything.
    fn poll(&mut self) -> bool {
        let mut any = false;
        for index in 0..self.members.len() {
            any |= self.look(index);
        }
        any
    }

    /// The same with one peer.
    fn look(&mut self, index: usize) -> bool {
        let member = &mut self.members[index];
        let moved = member.look().unwrap_or_else(|error| {
            member.halt();
            self.ends.note(error, member.peer);
            true
        });
        member.quiet = !moved;
        if moved {
            self.nap = NAP_MIN;
        }
        moved
    }

    /// Whether a sleep will end.
    fn set_timer(&mut self) -> bool {
        let set = self.timer.set(self.nap).is_ok();
        self.nap = (2 * self.nap).min(NAP_MAX);
        set
    }

    /// A port that is down says nothing of it: the library's requests wait, on some cards without
    /// end.
    fn watch(&mut self) {
        if self.looked.elapsed() < PORTS_EVERY || self.is_cut {
            return;
        }
        self.looked = Instant::now();
        let (device, port) = &self.card;
        if device.is_up(*port) {
            self.down = None;
        } else if self.down.get_or_insert_with(Instant::now).elapsed() >= DOWN {
            for member in self.members.iter_mut().filter(|member| !member.pair.is_halted()) {
                let text = format!("a port here has been down for {} s", DOWN.as_secs());
                member.fault = Some((0, text));
                member.halt();
            }
        }
    }
}

impl Carrier for Sockets {
    type Port = Socket;

    fn on<R>(
        &mut self,
        index: usize,
        otherwise: R,
        use_it: impl FnOnce(&mut Pair<Socket>) -> Result<R>,
    ) -> R {
        self.look(index);
        self.turn = (self.turn + 1) % self.members.len();
        if self.turn != index {
            self.look(self.turn);
        }
        self.unseen(index, otherwise, use_it)
    }

    fn unseen<R>(
        &mut self,
        index: usize,
        otherwise: R,
        use_it: impl FnOnce(&mut Pair<Socket>) -> Result<R>,
    ) -> R {
        let member = &mut self.members[index];
        let outcome = use_it(&mut member.pair).and_then(|it| member.pair.tend().map(|()| it));
        outcome.unwrap_or_else(|error| {
            member.halt();
            self.ends.note(error, member.peer);
            otherwise
        })
    }

    fn missed(&mut self, index: usize) {
        let member = &self.members[index];
        // What has come is taken first.
        if !member.quiet || self.is_cut {
            return;
        }
        match &member.fault {
            _ if member.gone => self.ends.closed(member.peer),
            Some((errno, text)) => self.ends.lost(member.peer, *errno, text),
            None => {}
        }
    }
}

impl Member {
    fn socket(&mut self) -> &mut Socket {
        &mut self.pair.paths[0].port
    }

    /// Gives what waits, and takes what has come; whether there was anything.
    fn look(&mut self) -> Result<bool> {
        if self.gone || self.pair.is_halted() {
            return Ok(false);
        }
        let mut any = self.socket().pump()?;
        // BOUND: peers that send without end are looked at again soon.
        for _ in 0..LOOKS {
            match self.socket().receive() {
                Found::Nothing => break,
                Found::Bytes => any = true,
                Found::End(0) => {
                    self.gone = true;
                    break;
                }
                Found::End(errno) => {
                    let error = std::io::Error::from_raw_os_error(errno);
                    self.fault = Some((errno, error.to_string()));
                    self.halt();
                    break;
                }
            }
            while let Some(frame) = self.socket().next() {
                self.pair.frame(0, &frame)?;
            }
        }
        if any {
            self.pair.tend()?;
        }
        Ok(any)
    }

    /// Nothing goes to the peer any more, and nothing of its comes.
    fn halt(&mut self) {
        self.pair.halt();
        self.socket().stop();
    }
}

impl Drop for Sockets {
    /// What was sent must be there before the connections go.
    fn drop(&mut self) {
        let limit = Instant::now() + LAST_WORDS;
        let waits = |member: &Member| {
            let over = member.gone || member.pair.is_halted();
            !over && !super::port::Port::is_through(&member.pair.paths[0].port)
        };
        // BOUND: the limit.
        while self.members.iter().any(waits) && Instant::now() < limit {
            if !self.poll() {
                std::thread::yield_now();
            }
        }
        let left = limit.saturating_duration_since(Instant::now());
        let sockets = self.members.iter_mut().flat_map(|member| member.pair.paths.drain(..));
        close(sockets.map(|path| path.port.into_stream()).collect(), left);
    }
}

#[cfg(all(test, not(loom)))]
#[path = "sockets_tests.rs"]
mod tests;
