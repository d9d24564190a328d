//! All lanes between two ranks over their cards: the protocol, without a card.
//!
//! Each end has for each lane a *ring* that the peer writes to, and a *mirror* of the peer's ring,
//! in which it makes what it will write there. What is large and goes as it is, without being
//! folded on arrival, is *placed*: the receiver tells where it wants it (an advert), and the sender
//! writes it there from where it lies. What is to be folded goes to the ring, and where the card
//! reaches the source, straight from there. So no byte of registered memory is copied by a
//! processor: it is written where it belongs, or folded out of the ring.
//!
//! A lane is a stream. Positions count its ring's bytes from the beginning:
//!
//! ```text
//!  sender    [head                    posted         written         head + RING_BYTES)
//!             | there, not yet taken    | in the mirror | free         |
//!  receiver  [taken          arrived)
//! ```
//!
//! *Placeable* messages ([`PLACE_BYTES`] or more, not folded on arrival: the engine says which) are
//! counted on both ends. Each goes whole by one way: by its advert, in up to 64 pieces over all
//! paths; or by the ring, where a card does not reach the receiver's memory or the sender's, or the
//! sender needs its source back before the receiver has come to it. Bytes of the ring are stamped
//! with the number of placeable messages before them. So a receiver that waits for a placeable
//! message knows whether they are its bytes.
//!
//! Every immediate and frame takes a place in the peer's receive queue. A path has as many as the
//! peer said in its HELLO; the last [`RESERVE`] are for STATE alone, by which places come back. So
//! two ends that are full of each other's data still tell what they have taken.
//!
//! Owns nothing but numbers: rings and mirrors are the maker's. Invariants: a place in the receive
//! queue is taken before anything is posted; nothing of the peer's bounds an access before it is
//! checked; what was lent is let go only when its request has ended. Thread rule: one at a time.
//! `outward.rs` is the sending side, `inward.rs` the receiving one, `detour.rs` what happens when
//! one path of several is lost. Not here: cards, waiting, who
//! is alive.

use std::collections::VecDeque;

use super::detour::{Condition, Written};
use super::frame::{ADVERTS_MAX, FRAME_BYTES, Frame, PIECES_MAX, RUN_MAX, Remote, STAMPS};
use super::inward::In;
use super::outward::Out;
use super::port::Port;
use crate::engine::wires::FABRIC_LANES;
use crate::error::{Code, Error, Result};
use crate::types::Rank;

/// Bytes that a sending end takes on while the peer does nothing.
pub(crate) const CAPACITY: usize = 256 << 10;
/// Bytes of a lane's ring.
pub(super) const RING_BYTES: usize = CAPACITY + CAPACITY / 2;
/// What is taken of a ring is told when it is so much.
const TELL_BYTES: u64 = RING_BYTES as u64 / 4;
const _: () = assert!(RING_BYTES - RING_BYTES / 4 >= CAPACITY);
/// Messages begin at multiples of it.
const LINE: usize = 64;
const _: () = assert!(RING_BYTES.is_multiple_of(LINE) && RING_BYTES + LINE <= RUN_MAX);

/// Messages of this size and more are placed, if they are not folded; the last of a row of such
/// may be shorter.
pub(crate) const PLACE_BYTES: usize = 16 << 10;
// How far a sender may be ahead in placeable messages: by adverts, then by the ring, where at most
// every other one is short.
const _: () = assert!(ADVERTS_MAX + 2 * RING_BYTES / PLACE_BYTES < STAMPS);
/// Bytes of a piece of a placed message, at the least.
const PIECE_BYTES: usize = 64 << 10;

/// Places in a receive queue.
pub(super) const DEPTH: u32 = 256;
/// Those that only STATE may take.
pub(super) const RESERVE: u64 = 32;
/// What is taken of the receive queue is told when it is so much.
const TELL_FRAMES: u64 = RESERVE / 2;
/// The most places that a peer may say it has.
const DEPTH_MAX: u64 = 1 << 16;
/// Cards, at most.
pub(crate) const PATHS_MAX: usize = 4;

/// Which way the message at hand goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// It has not begun.
    New,
    /// By the ring.
    Ring,
    /// It is placeable, and which way is not known.
    Open,
    /// By its advert.
    Placed,
}

/// An advert to be sent: where placeable message `message` of `lane` is wanted; of no bytes: in the
/// ring.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wish {
    pub(super) lane: usize,
    pub(super) message: u32,
    pub(super) place: Remote,
    pub(super) bytes: u64,
}

/// A connection by one card.
#[derive(Debug)]
pub(super) struct Path<P> {
    pub(super) port: P,
    /// The peer's rings, by its card; none before its HELLO.
    pub(super) rings: Option<Remote>,
    /// Immediates and frames sent, and how many of them the peer has taken.
    pub(super) sent: u64,
    pub(super) acknowledged: u64,
    /// How many may be under way.
    depth: u64,
    /// Those taken here, and what the peer has been told of them.
    pub(super) taken: u64,
    told: u64,
    /// Adverts for which there was no place.
    pub(super) wishes: VecDeque<Wish>,
    /// The peer has asked for a STATE.
    asked: bool,
    /// How much had been sent when the peer was asked.
    pub(super) asked_at: u64,
    pub(super) condition: Condition,
    /// What was written and the peer has not said to have taken, by number: kept where there are
    /// several paths.
    pub(super) log: VecDeque<(u64, Written)>,
    /// How many the peer had taken when it gave up this path.
    pub(super) heard: Option<u64>,
}

/// Where the rings of all lanes, then their mirrors, follow each other.
#[derive(Clone, Copy, Debug)]
pub(super) struct Memory {
    pub(super) rings: *mut u8,
    pub(super) mirrors: *mut u8,
}

impl Memory {
    /// Bytes of each.
    pub(super) const BYTES: usize = FABRIC_LANES * RING_BYTES;
}

/// Both directions of all lanes to a peer.
#[derive(Debug)]
pub(super) struct Pair<P> {
    peer: Rank,
    pub(super) out: [Out; FABRIC_LANES],
    pub(super) inward: [In; FABRIC_LANES],
    pub(super) paths: Vec<Path<P>>,
    /// Paths of which the peer is to know that they are given up, and how much they had brought.
    pub(super) given_up: VecDeque<(usize, u64)>,
    /// What was sent by paths that are lost, and goes again.
    pub(super) again: VecDeque<Written>,
    /// What was taken is to be told even so.
    pub(super) retell: bool,
    /// Cards do not agree on what one of them has brought.
    pub(super) unsure: bool,
    /// Nothing goes any more; what has come may still be taken.
    halted: bool,
    /// Bytes of messages that a processor has copied here.
    pub(super) copied: u64,
}

// SAFETY: the addresses are of rings that the maker keeps, and of buffers of calls, which are valid
// on any thread; one thread at a time uses a pair.
unsafe impl<P: Send> Send for Pair<P> {}

/// Where the message after `position` begins.
pub(super) fn line_up(position: u64) -> u64 {
    position.next_multiple_of(LINE as u64)
}

/// Where in a ring a position is.
#[expect(clippy::cast_possible_truncation, reason = "less than RING_BYTES")]
pub(super) const fn spot(position: u64) -> usize {
    (position % RING_BYTES as u64) as usize
}

/// Of `bytes` bytes from `position` on, those before the wrap.
pub(super) fn before_wrap(position: u64, bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX).min(RING_BYTES - spot(position))
}

/// Bytes of each piece but the last of a placed message of `bytes`.
pub(super) fn piece_bytes(bytes: usize) -> usize {
    bytes.div_ceil(PIECES_MAX).next_multiple_of(4096).max(PIECE_BYTES)
}

/// How far a count is ahead of another, where counts go around.
pub(super) const fn ahead(number: u32, of: u32) -> i32 {
    number.wrapping_sub(of).cast_signed()
}

impl<P: Port> Pair<P> {
    /// The lanes to `peer` over `ports`, in `memory`. Says HELLO on each path.
    ///
    /// # Safety
    /// `memory` is zeroed, the pair's alone and outlives it; what [`Port::keys`] tells of the rings
    /// lets the peer write there, and nowhere else.
    pub(super) unsafe fn new(peer: Rank, memory: Memory, ports: Vec<P>) -> Result<Self> {
        debug_assert!(ports.len() <= PATHS_MAX);
        let part = |base: *mut u8, lane: usize| base.wrapping_add(lane * RING_BYTES);
        let path = |port: P| Path {
            port,
            rings: None,
            sent: 0,
            acknowledged: 0,
            // The HELLO itself, which every end has room for.
            depth: RESERVE + 1,
            taken: 0,
            told: 0,
            wishes: VecDeque::with_capacity(4),
            asked: false,
            asked_at: 0,
            condition: Condition::Up,
            log: VecDeque::new(),
            heard: None,
        };
        let mut pair = Self {
            peer,
            out: std::array::from_fn(|lane| Out::new(part(memory.mirrors, lane))),
            inward: std::array::from_fn(|lane| In::new(part(memory.rings, lane))),
            paths: ports.into_iter().map(path).collect(),
            given_up: VecDeque::new(),
            again: VecDeque::new(),
            retell: false,
            unsure: false,
            halted: false,
            copied: 0,
        };
        for (index, path) in (0u8..).zip(&mut pair.paths) {
            let keys = path.port.keys(memory.rings, Memory::BYTES);
            let keys = keys.ok_or_else(|| Error::new(Code::Internal, "rings out of reach"))?;
            let address = path.port.address(memory.rings, keys.keys);
            let rings = Remote { address, key: keys.keys.remote };
            let frames = DEPTH;
            let hello = Frame::Hello { path: index, frames, rings, ring: RING_BYTES as u64 };
            path.port.frame(&hello.encode())?;
            path.sent += 1;
        }
        Ok(pair)
    }

    /// Whether the peer has said HELLO on every path.
    pub(super) fn is_open(&self) -> bool {
        self.paths.iter().all(|path| path.rings.is_some())
    }

    /// The connection has ended, or is to: no card reads what was lent any more.
    pub(super) fn halt(&mut self) {
        self.halted = true;
    }

    /// Whether it has.
    pub(super) const fn is_halted(&self) -> bool {
        self.halted
    }

    /// What is the peer's fault.
    pub(super) fn bad(&self, what: &str) -> Error {
        let text = format!("rank {} sent {what} over RDMA", self.peer);
        Error::new(Code::Protocol, text).with_peer(self.peer)
    }

    /// Takes an immediate that came on path `index`.
    ///
    /// # Errors
    /// `PROTOCOL` where the peer must not say that.
    pub(super) fn immediate(&mut self, index: usize, bits: u32) -> Result<()> {
        let path = &mut self.paths[index];
        path.taken += 1;
        if path.rings.is_none() {
            return Err(self.bad("data before HELLO"));
        }
        self.note(bits)
    }

    /// Takes a frame that came on path `index`.
    ///
    /// # Errors
    /// `PROTOCOL` or `VERSION_MISMATCH` where the peer must not say that.
    pub(super) fn frame(&mut self, index: usize, bytes: &[u8; FRAME_BYTES]) -> Result<()> {
        let frame = Frame::decode(bytes).map_err(|error| error.with_peer(self.peer))?;
        let path = &mut self.paths[index];
        path.taken += 1;
        if path.rings.is_some() == matches!(frame, Frame::Hello { .. }) {
            return Err(self.bad("HELLO out of turn"));
        }
        match frame {
            Frame::Hello { path: number, frames, rings, ring } => {
                let depth = u64::from(frames);
                if usize::from(number) != index || ring != RING_BYTES as u64 {
                    return Err(self.bad("a HELLO of another connection"));
                }
                if !(2 * RESERVE..=DEPTH_MAX).contains(&depth) {
                    return Err(self.bad("a HELLO without room"));
                }
                (path.rings, path.depth) = (Some(rings), depth);
            }
            Frame::State { frames, heads } => {
                if frames < path.acknowledged || frames > path.sent {
                    return Err(self.bad("a count of frames that were not sent"));
                }
                path.acknowledged = frames;
                while path.log.front().is_some_and(|(number, _)| *number <= frames) {
                    path.log.pop_front();
                }
                for (out, head) in self.out.iter_mut().zip(heads) {
                    if !out.took(head) {
                        return Err(self.bad("a position that was not written"));
                    }
                }
            }
            Frame::Advert { lane, message, place, bytes } => {
                if !self.out[lane].wanted(index, message, place, bytes) {
                    return Err(self.bad("an advert that cannot be"));
                }
            }
            Frame::Note { bits } => return self.note(bits),
            Frame::Ask => {
                path.asked = true;
                return self.tend();
            }
            Frame::GivenUp { path, taken } => {
                let lost = usize::from(path);
                if lost == index || !self.heard_given_up(lost, taken) {
                    return Err(self.bad("a path given up that cannot be"));
                }
                return self.tend();
            }
        }
        Ok(())
    }

    /// Whether `path` takes another immediate, or frame besides STATE.
    pub(super) fn may_tell(&self, index: usize) -> bool {
        let path = &self.paths[index];
        let up = !self.halted && path.condition == Condition::Up;
        up && path.port.room() > 1 && path.sent - path.acknowledged + RESERVE < path.depth
    }

    /// Says what is due: where messages are wanted, and what was taken here.
    ///
    /// # Errors
    /// The connection is broken.
    pub(super) fn tend(&mut self) -> Result<()> {
        if self.halted {
            return Ok(());
        }
        if self.unsure {
            let text =
                format!("a lost RDMA path to rank {} cannot be told from a good one", self.peer);
            return Err(Error::new(Code::LinkLost, text).with_peer(self.peer));
        }
        if !(self.given_up.is_empty() && self.again.is_empty()) {
            self.send_again()?;
        }
        let mut far = self.retell || self.inward.iter().any(|lane| lane.untold() >= TELL_BYTES);
        for index in 0..self.paths.len() {
            if self.paths[index].condition != Condition::Up {
                continue;
            }
            while self.may_tell(index)
                && let Some(wish) = self.paths[index].wishes.pop_front()
            {
                self.say(index, wish)?;
            }
            let path = &self.paths[index];
            let due = path.taken - path.told >= TELL_FRAMES || path.asked || far;
            if due && path.port.room() > 0 && path.sent - path.acknowledged < path.depth {
                self.tell(index)?;
                self.retell = false;
            }
            // By the first path that is up.
            far = false;
        }
        Ok(())
    }

    /// Sends STATE.
    fn tell(&mut self, index: usize) -> Result<()> {
        let heads = std::array::from_fn(|lane| self.inward[lane].tell());
        let path = &mut self.paths[index];
        path.port.frame(&Frame::State { frames: path.taken, heads }.encode())?;
        path.sent += 1;
        path.told = path.taken;
        path.asked = false;
        Ok(())
    }
}

#[cfg(all(test, not(loom)))]
#[path = "pair_tests.rs"]
mod tests;
