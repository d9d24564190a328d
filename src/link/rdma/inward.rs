//! The receiving side of a pair's lanes.

use std::collections::VecDeque;
use std::sync::Arc;

use super::detour::Condition;
use super::frame::{ADVERTS_MAX, Frame, Remote, Told, after};
use super::pair::{
    PATHS_MAX, Pair, RING_BYTES, Way, Wish, ahead, before_wrap, line_up, piece_bytes, spot,
};
use super::port::Port;
use super::regions::{Held, Region};
use crate::engine::link::Window;
use crate::error::Result;

/// A placeable message of which the peer is told where it is wanted.
#[derive(Debug)]
struct Expected {
    message: u32,
    bytes: usize,
    /// Bytes of each piece but the last, and which pieces have come.
    piece: usize,
    got: u64,
    /// Where the peer may write until then.
    _region: Option<Arc<Region>>,
}

impl Expected {
    fn pieces(&self) -> usize {
        self.bytes.div_ceil(self.piece)
    }

    /// Bytes in front that have come without a hole.
    fn front(&self) -> usize {
        (self.got.trailing_ones() as usize * self.piece).min(self.bytes)
    }
}

/// The receiving end of a lane.
#[derive(Debug)]
pub(super) struct In {
    ring: *mut u8,
    /// What is taken, and what has come, in positions of the ring. The gap after a message may be
    /// taken before it comes.
    taken: u64,
    arrived: u64,
    /// What the peer has been told of `taken`.
    told: u64,
    /// Stamps of what has come, and up to where each goes.
    stamps: VecDeque<(u32, u64)>,
    way: Way,
    /// The message at hand is placeable.
    counts: bool,
    /// Placeable messages that have ended.
    message: u32,
    expected: VecDeque<Expected>,
    /// Bytes of the message at hand that have been reported.
    placed: usize,
}

impl In {
    pub(super) fn new(ring: *mut u8) -> Self {
        Self {
            ring,
            taken: 0,
            arrived: 0,
            told: 0,
            stamps: VecDeque::with_capacity(8),
            way: Way::New,
            counts: false,
            message: 0,
            expected: VecDeque::with_capacity(ADVERTS_MAX),
            placed: 0,
        }
    }

    /// Bytes taken of which the peer does not know.
    pub(super) fn untold(&self) -> u64 {
        self.taken - self.told
    }

    /// What the peer is to know, and knows from now on.
    pub(super) fn tell(&mut self) -> u64 {
        self.told = self.taken;
        self.taken
    }

    /// `bytes` more bytes have come, behind `message` placeable messages; false where that cannot
    /// be.
    fn came(&mut self, message: u32, bytes: usize) -> bool {
        let end = self.arrived + bytes as u64;
        let (last, _) = self.stamps.back().copied().unwrap_or((self.message, 0));
        let stamp = after(self.message, message);
        if end > line_up(self.told) + RING_BYTES as u64 || ahead(stamp, last) < 0 {
            return false;
        }
        self.arrived = end;
        match self.stamps.back_mut() {
            Some((same, until)) if *same == stamp => *until = end,
            _ => self.stamps.push_back((stamp, end)),
        }
        true
    }

    /// A piece has been placed; false where that cannot be.
    fn placed(&mut self, message: u32, piece: usize) -> bool {
        let message = after(self.message, message);
        let Some(one) = self.expected.iter_mut().find(|one| one.message == message) else {
            return false;
        };
        let fits = piece < one.pieces() && one.got >> piece & 1 == 0;
        one.got |= 1 << (piece % 64);
        fits
    }

    /// Bytes that are there.
    fn ready(&self) -> u64 {
        self.arrived.saturating_sub(self.taken)
    }

    /// Whether the next byte of the ring is one of the message at hand.
    fn is_own(&mut self) -> bool {
        while let Some(&(_, until)) = self.stamps.front()
            && until <= self.taken
        {
            self.stamps.pop_front();
        }
        self.ready() > 0 && self.stamps.front().is_some_and(|(stamp, _)| *stamp == self.message)
    }
}

impl<P: Port> Pair<P> {
    /// Takes what an immediate says.
    pub(super) fn note(&mut self, bits: u32) -> Result<()> {
        let fits = match Told::of(bits) {
            None => false,
            Some(Told::Ring { lane, message, bytes }) => self.inward[lane].came(message, bytes),
            Some(Told::Placed { lane, message, piece }) => self.inward[lane].placed(message, piece),
        };
        if fits {
            Ok(())
        } else {
            Err(self.bad(&format!("immediate {bits:#010x}, which cannot be")))
        }
    }

    /// Tells where a message is wanted.
    pub(super) fn say(&mut self, index: usize, wish: Wish) -> Result<()> {
        let Wish { lane, message, place, bytes } = wish;
        let path = &mut self.paths[index];
        path.port.frame(&Frame::Advert { lane, message, place, bytes }.encode())?;
        path.sent += 1;
        Ok(())
    }

    /// Bytes that have come by the ring and stay until released, up to the wrap.
    pub(super) fn peek(&self, lane: usize) -> Window {
        let inward = &self.inward[lane];
        let at = inward.ring.wrapping_add(spot(inward.taken));
        Window { at, bytes: before_wrap(inward.taken, inward.ready()) }
    }

    /// Gives back the first `bytes` bytes of the last window.
    pub(super) fn release(&mut self, lane: usize, bytes: usize) {
        self.inward[lane].taken += bytes as u64;
    }

    /// Copies up to `bytes` bytes that have come by the ring to `into`.
    ///
    /// # Safety
    /// `into` is writable for `bytes` bytes.
    pub(super) unsafe fn read(&mut self, lane: usize, into: *mut u8, bytes: usize) -> usize {
        let mut done = 0;
        while done < bytes {
            let window = self.peek(lane);
            let count = window.bytes.min(bytes - done);
            if count == 0 {
                break;
            }
            // SAFETY: the window holds `count` bytes; the caller promises the target.
            unsafe { std::ptr::copy_nonoverlapping(window.at, into.add(done), count) };
            self.copied += count as u64;
            self.release(lane, count);
            done += count;
        }
        done
    }

    /// Tells the peer where the `bytes` bytes of the message after the next `later` are wanted,
    /// ahead of [`Pair::take`] of the same: an offer that may be passed over.
    ///
    /// # Safety
    /// `into` is writable for `bytes` bytes, and nobody else touches them until the message has
    /// been taken, or the peer can no longer write here.
    pub(super) unsafe fn expect(
        &mut self,
        lane: usize,
        later: u32,
        into: *mut u8,
        bytes: usize,
    ) -> Result<()> {
        let inward = &mut self.inward[lane];
        let message = inward.message.wrapping_add(later);
        let known = inward.expected.iter().any(|one| one.message == message);
        // The sender is at the same message or ahead.
        let far = usize::try_from(later).is_ok_and(|later| later >= ADVERTS_MAX);
        if known || far || inward.expected.len() >= ADVERTS_MAX {
            return Ok(());
        }
        // By all cards or by none.
        let mut all: [Option<Held>; PATHS_MAX] = Default::default();
        let mut reached = true;
        for (held, path) in all.iter_mut().zip(&self.paths) {
            if path.condition != Condition::Over {
                *held = path.port.keys(into, bytes).filter(|held| held.keys.remote != 0);
                reached &= held.is_some();
            }
        }
        let region = all.iter().flatten().next().and_then(|held| held.region.clone());
        let _region = region.filter(|_| reached);
        let piece = piece_bytes(bytes);
        inward.expected.push_back(Expected { message, bytes, piece, got: 0, _region });
        for (path, held) in self.paths.iter_mut().zip(all) {
            let (place, bytes) = match held.filter(|_| reached) {
                Some(Held { keys, .. }) => {
                    let address = path.port.address(into, keys);
                    (Remote { address, key: keys.remote }, bytes as u64)
                }
                None => (Remote { address: 0, key: 0 }, 0),
            };
            if path.condition == Condition::Up {
                path.wishes.push_back(Wish { lane, message, place, bytes });
            }
        }
        self.tend()
    }

    /// Takes up to `bytes` bytes, the rest of a message that the peer gives by [`Pair::place`], to
    /// `into`, and says how many are there.
    ///
    /// # Safety
    /// As [`Pair::expect`].
    pub(super) unsafe fn take(
        &mut self,
        lane: usize,
        into: *mut u8,
        bytes: usize,
    ) -> Result<usize> {
        if self.inward[lane].way == Way::New {
            let inward = &mut self.inward[lane];
            (inward.counts, inward.placed) = (true, 0);
            inward.way = Way::Open;
            // What has come already came by the ring.
            if !inward.is_own() {
                // SAFETY: passed on.
                unsafe { self.expect(lane, 0, into, bytes)? };
            }
        }
        let inward = &mut self.inward[lane];
        if inward.way == Way::Open && inward.is_own() {
            inward.way = Way::Ring;
        }
        if inward.way == Way::Ring {
            // SAFETY: passed on.
            return Ok(unsafe { self.read(lane, into, bytes) });
        }
        let message = inward.message;
        let found = inward.expected.iter().find(|one| one.message == message);
        let front = found.map_or(0, Expected::front);
        Ok(front - std::mem::replace(&mut inward.placed, front))
    }

    /// The message ends here.
    pub(super) fn end_in(&mut self, lane: usize) -> Result<()> {
        let inward = &mut self.inward[lane];
        inward.taken = line_up(inward.taken);
        inward.way = Way::New;
        if std::mem::take(&mut inward.counts) {
            let message = inward.message;
            inward.expected.retain(|one| one.message != message);
            inward.message = message.wrapping_add(1);
        }
        self.tend()
    }
}
