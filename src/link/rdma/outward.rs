//! The sending side of a pair's lanes.

use std::collections::VecDeque;
use std::sync::Arc;

use super::detour::{Condition, Written};
use super::frame::{ADVERTS_MAX, Remote, Told};
use super::pair::{PATHS_MAX, Pair, RING_BYTES, Way, ahead, before_wrap, line_up, spot};
use super::port::Port;
use super::regions::{Held, Region};
use crate::engine::link::Window;
use crate::error::{Code, Error, Result};

/// Messages up to here are gathered in the mirror, even from memory that the card reaches.
pub(super) const GATHER_BYTES: usize = 4 << 10;
/// What gathers there is posted at the latest when it is so much.
const PUBLISH_BYTES: u64 = 32 << 10;

/// Memory that a request under way reads.
#[derive(Debug)]
pub(super) struct Lent {
    pub(super) at: usize,
    pub(super) bytes: usize,
    pub(super) path: usize,
    pub(super) request: u64,
    /// By which the card reads.
    pub(super) _region: Option<Arc<Region>>,
}

/// Where the peer wants a message: on each path by its key there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Advert {
    pub(super) message: u32,
    /// 0: in the ring.
    pub(super) bytes: u64,
    pub(super) places: [Option<Remote>; PATHS_MAX],
}

/// The sending end of a lane.
#[derive(Debug)]
pub(super) struct Out {
    mirror: *mut u8,
    /// What the peer has taken, what is posted, and what is written, in positions of the ring.
    head: u64,
    posted: u64,
    written: u64,
    /// Stamps of what is written and not posted, and up to where each goes.
    stamps: VecDeque<(u32, u64)>,
    /// Bytes between messages that need no writing: they are told with what follows.
    gap: u64,
    pub(super) way: Way,
    /// The message at hand goes straight from its source to the ring.
    pub(super) straight: bool,
    /// It is placeable.
    pub(super) counts: bool,
    /// Placeable messages that have ended.
    pub(super) message: u32,
    /// Bytes of the message at hand that are posted by its advert, and those of a piece.
    pub(super) placed: usize,
    pub(super) piece: usize,
    /// Where it goes by its advert, what each card reads it by.
    pub(super) held: [Option<Held>; PATHS_MAX],
    adverts: VecDeque<Advert>,
    lent: Vec<Lent>,
}

impl Out {
    pub(super) fn new(mirror: *mut u8) -> Self {
        Self {
            mirror,
            head: 0,
            posted: 0,
            written: 0,
            stamps: VecDeque::with_capacity(8),
            gap: 0,
            way: Way::New,
            straight: false,
            counts: false,
            message: 0,
            placed: 0,
            piece: 0,
            held: Default::default(),
            adverts: VecDeque::with_capacity(ADVERTS_MAX),
            lent: Vec::with_capacity(64),
        }
    }

    /// The peer has taken the ring up to `head`; false where that cannot be.
    pub(super) fn took(&mut self, head: u64) -> bool {
        // It may have passed the gap after a message whose end is still to be noted here. What
        // comes by another path may be older.
        self.head = self.head.max(head.min(self.written));
        head <= line_up(self.written)
    }

    /// The peer wants message `message` at `place`; false where that cannot be.
    pub(super) fn wanted(&mut self, path: usize, message: u32, place: Remote, bytes: u64) -> bool {
        let first = ahead(message, self.message);
        if first < 0 {
            // It has gone by the ring.
            return true;
        }
        if let Some(known) = self.adverts.iter_mut().find(|one| one.message == message) {
            let fits = known.bytes == bytes && known.places[path].is_none();
            known.places[path] = Some(place);
            return fits;
        }
        let mut advert = Advert { message, bytes, places: [None; PATHS_MAX] };
        advert.places[path] = Some(place);
        let fits = usize::try_from(first).is_ok_and(|first| first < ADVERTS_MAX);
        if fits {
            self.adverts.push_back(advert);
        }
        fits
    }

    /// Bytes that are written now are of this stamp.
    fn stamp(&mut self, bytes: u64) {
        self.written += bytes;
        match self.stamps.back_mut() {
            Some((stamp, until)) if *stamp == self.message => *until = self.written,
            _ => self.stamps.push_back((self.message, self.written)),
        }
    }

    /// A source is read until a request has ended.
    pub(super) fn lend(&mut self, lent: Lent) {
        self.lent.push(lent);
    }

    /// Requests of this path read nothing any more.
    pub(super) fn forget_path(&mut self, path: usize) {
        self.lent.retain(|one| one.path != path);
    }

    fn free(&self) -> u64 {
        self.head + RING_BYTES as u64 - self.written
    }

    pub(super) fn advert(&self) -> Option<Advert> {
        self.adverts.iter().find(|one| one.message == self.message).copied()
    }
}

impl<P: Port> Pair<P> {
    /// Room in the mirror for the next bytes.
    pub(super) fn window(&self, lane: usize) -> Window {
        let out = &self.out[lane];
        let at = out.mirror.wrapping_add(spot(out.written));
        Window { at, bytes: before_wrap(out.written, out.free()) }
    }

    /// The first `bytes` bytes of the last window are to go.
    pub(super) fn commit(&mut self, lane: usize, bytes: usize) -> Result<()> {
        let out = &mut self.out[lane];
        out.stamp(bytes as u64);
        if out.written - out.posted >= PUBLISH_BYTES { self.publish(lane) } else { Ok(()) }
    }

    /// Posts what is in the mirror, as far as the peer has places for it.
    pub(super) fn publish(&mut self, lane: usize) -> Result<()> {
        while let Some(&(stamp, until)) = self.out[lane].stamps.front()
            && let Some(path) = self.ring_path().filter(|path| self.may_tell(*path))
        {
            let out = &mut self.out[lane];
            let bytes = before_wrap(out.posted, until - out.posted);
            let from = out.mirror.wrapping_add(spot(out.posted));
            if out.posted + bytes as u64 == until {
                out.stamps.pop_front();
            }
            let Some(keys) = self.paths[path].port.keys(from, bytes) else {
                return Err(Error::new(Code::Internal, "a mirror out of reach"));
            };
            // SAFETY: the mirror's bytes stay as they are until the peer has taken them.
            unsafe { self.post_run(lane, path, (from, &keys, false), (bytes, stamp))? };
        }
        Ok(())
    }

    /// Writes `bytes` bytes at `from` to the place of `posted` in the peer's ring.
    ///
    /// # Safety
    /// As [`Port::write`]; they do not reach beyond the wrap.
    unsafe fn post_run(
        &mut self,
        lane: usize,
        index: usize,
        (from, held, lent): (*const u8, &Held, bool),
        (bytes, stamp): (usize, u32),
    ) -> Result<()> {
        let out = &mut self.out[lane];
        let at = (lane * RING_BYTES + spot(out.posted)) as u64;
        let place = |rings: Remote| Remote { address: rings.address.wrapping_add(at), ..rings };
        let mut places = [None; PATHS_MAX];
        for (at, path) in places.iter_mut().zip(&self.paths) {
            *at = path.rings.map(place);
        }
        let (path, to) = (&mut self.paths[index], places[index]);
        let Some(to) = to else {
            return Err(Error::new(Code::Internal, "data before the peer's HELLO"));
        };
        let gap = usize::try_from(std::mem::take(&mut out.gap)).unwrap_or(0);
        let told = Told::Ring { lane, message: stamp, bytes: bytes + gap };
        // SAFETY: passed on.
        let request = unsafe {
            path.port.write((from, held.keys.local), bytes, to, Some(told.bits()), lent)?
        };
        path.sent += 1;
        out.posted += bytes as u64;
        if lent {
            let (at, region) = (from as usize, held.region.clone());
            out.lend(Lent { at, bytes, path: index, request, _region: region });
        }
        let region = &held.region;
        self.remember(index, || {
            let region = region.clone();
            Written { lane, from, bytes, request, lent, region, told, places }
        });
        Ok(())
    }

    /// Takes what fits of `bytes` bytes at `from`, the rest of a message, into the ring: copied if
    /// they are few or out of the card's reach, else straight from there, and then
    /// [`Pair::reads`] them for a while.
    ///
    /// # Safety
    /// `from` is readable for `bytes` bytes, until they are no longer read.
    pub(super) unsafe fn write(
        &mut self,
        lane: usize,
        from: *const u8,
        bytes: usize,
    ) -> Result<usize> {
        let first = self.paths.iter().find(|path| path.condition != Condition::Over);
        let held = first.and_then(|path| path.port.keys(from, bytes));
        let out = &mut self.out[lane];
        if out.way == Way::New {
            (out.way, out.straight) = (Way::Ring, bytes > GATHER_BYTES);
        }
        let Some(held) = held.filter(|_| out.straight) else {
            // SAFETY: passed on.
            return unsafe { self.stage(lane, from, bytes) };
        };
        self.publish(lane)?;
        let mut done = 0;
        while done < bytes
            && self.out[lane].stamps.is_empty()
            && let Some(path) = self.ring_path().filter(|path| self.may_tell(*path))
        {
            let out = &mut self.out[lane];
            let count = before_wrap(out.written, out.free()).min(bytes - done);
            if count == 0 {
                break;
            }
            let (at, stamp) = (from.wrapping_add(done), out.message);
            out.written += count as u64;
            // SAFETY: the caller promises the source.
            unsafe { self.post_run(lane, path, (at, &held, true), (count, stamp))? };
            done += count;
        }
        Ok(done)
    }

    /// Copies what fits of `bytes` bytes at `from` into the mirror.
    ///
    /// # Safety
    /// `from` is readable for `bytes` bytes.
    pub(super) unsafe fn stage(
        &mut self,
        lane: usize,
        from: *const u8,
        bytes: usize,
    ) -> Result<usize> {
        let mut done = 0;
        while done < bytes {
            let window = self.window(lane);
            let count = window.bytes.min(bytes - done).min(GATHER_BYTES);
            if count == 0 {
                break;
            }
            // SAFETY: the caller promises the source; the window is free memory of the mirror.
            unsafe { std::ptr::copy_nonoverlapping(from.add(done), window.at, count) };
            self.copied += count as u64;
            self.commit(lane, count)?;
            done += count;
        }
        Ok(done)
    }

    /// The message ends here.
    pub(super) fn end_out(&mut self, lane: usize) -> Result<()> {
        let out = &mut self.out[lane];
        let pad = line_up(out.written) - out.written;
        if out.stamps.is_empty() {
            out.written += pad;
            out.posted += pad;
            out.gap += pad;
        } else if pad > 0 {
            out.stamp(pad);
        }
        out.way = Way::New;
        out.held = Default::default();
        if std::mem::take(&mut out.counts) {
            let message = out.message;
            out.adverts.retain(|one| one.message != message);
            out.message = message.wrapping_add(1);
        }
        self.publish(lane)
    }

    /// Whether a request under way reads some of `bytes` bytes at `at`.
    pub(super) fn reads(&self, lane: usize, at: *const u8, bytes: usize) -> bool {
        if self.is_halted() {
            return false;
        }
        let (from, to) = (at as usize, at as usize + bytes);
        let under_way = |one: &Lent| self.paths[one.path].port.ended() < one.request;
        let touches = |one: &&Lent| one.at < to && from < one.at + one.bytes;
        self.out[lane].lent.iter().filter(touches).any(under_way)
            || self.reads_again(lane, from, to)
    }

    /// Whether everything is posted, and nothing of the callers' is read any more.
    pub(super) fn flushed(&mut self, lane: usize) -> bool {
        let again = self.reads_again(lane, 0, usize::MAX) && !self.is_halted();
        let (halted, out, paths) = (self.is_halted(), &mut self.out[lane], &self.paths);
        out.lent.retain(|one| !halted && paths[one.path].port.ended() < one.request);
        let through = halted || paths.iter().all(|path| path.port.is_through());
        through && !again && out.lent.is_empty() && out.stamps.is_empty()
    }
}
