//! Placeable messages on the sending side: which way they go, and their pieces.

use super::detour::{Condition, Written};
use super::frame::{Remote, Told};
use super::outward::{Advert, GATHER_BYTES, Lent};
use super::pair::{PATHS_MAX, Pair, Way, piece_bytes};
use super::port::Port;
use super::regions::Held;
use crate::error::{Code, Error, Result};

impl<P: Port> Pair<P> {
    /// As [`Pair::write`], of a message that the receiver takes by [`Pair::take`]. With `stage`
    /// what has not begun to go by an advert goes by the ring, at once, and is copied.
    ///
    /// # Safety
    /// As [`Pair::write`].
    pub(super) unsafe fn place(
        &mut self,
        lane: usize,
        from: *const u8,
        bytes: usize,
        stage: bool,
    ) -> Result<usize> {
        // Whoever is to take it must have what goes before.
        self.publish(lane)?;
        let out = &mut self.out[lane];
        if out.way == Way::New {
            (out.counts, out.straight) = (true, bytes > GATHER_BYTES);
            out.way = Way::Open;
        }
        if out.way == Way::Open {
            self.choose(lane, from, bytes, stage)?;
        }
        match self.out[lane].way {
            Way::New | Way::Open => Ok(0),
            // SAFETY: passed on.
            Way::Ring if stage => unsafe { self.stage(lane, from, bytes) },
            // SAFETY: as above.
            Way::Ring => unsafe { self.write(lane, from, bytes) },
            // SAFETY: as above.
            Way::Placed => unsafe { self.post_pieces(lane, from, bytes) },
        }
    }

    /// Which way a placeable message goes, once that is known.
    fn choose(&mut self, lane: usize, from: *const u8, bytes: usize, stage: bool) -> Result<()> {
        // By all cards or by none.
        let mut held: [Option<Held>; PATHS_MAX] = Default::default();
        let mut reached = true;
        for (held, path) in held.iter_mut().zip(&self.paths) {
            if path.condition != Condition::Over {
                *held = path.port.keys(from, bytes);
                reached &= held.is_some();
            }
        }
        let untold = |advert: &Advert| {
            let mut paths = self.paths.iter().zip(advert.places);
            paths.any(|(path, place)| path.condition == Condition::Up && place.is_none())
        };
        let way = match self.out[lane].advert() {
            Some(Advert { bytes: 0, .. }) => Way::Ring,
            // The ranks have called different things. The receiver sees that by the head before.
            Some(advert) if advert.bytes != bytes as u64 => return Ok(()),
            _ if !reached => Way::Ring,
            // Each path has its own, and may have to do another's work.
            Some(advert) if untold(&advert) && stage => Way::Ring,
            Some(advert) if untold(&advert) => return Ok(()),
            Some(_) => Way::Placed,
            None if stage => Way::Ring,
            None => return Ok(()),
        };
        let out = &mut self.out[lane];
        (out.way, out.placed, out.piece) = (way, 0, piece_bytes(bytes));
        out.held = held;
        Ok(())
    }

    /// Posts pieces of the message at hand, each on the path that has most room.
    ///
    /// # Safety
    /// As [`Pair::write`].
    unsafe fn post_pieces(&mut self, lane: usize, from: *const u8, bytes: usize) -> Result<usize> {
        let Some(advert) = self.out[lane].advert() else {
            return Err(Error::new(Code::Internal, "a placed message without an advert"));
        };
        let mut done = 0;
        while done < bytes {
            let held = &self.out[lane].held;
            let ready = |index: &usize| {
                advert.places[*index].is_some() && held[*index].is_some() && self.may_tell(*index)
            };
            let room = |index: &usize| (self.paths[*index].port.room(), PATHS_MAX - *index);
            let best = (0..self.paths.len()).filter(ready).max_by_key(room);
            let found = best.and_then(|index| Some((index, held[index].clone()?)));
            let Some((index, Held { keys, region })) = found else { break };
            let (out, path) = (&mut self.out[lane], &mut self.paths[index]);
            let (at, count) = (from.wrapping_add(done), out.piece.min(bytes - done));
            let piece = out.placed / out.piece;
            let told = Told::Placed { lane, message: advert.message, piece };
            let offset = out.placed as u64;
            let place = |one: Remote| Remote { address: one.address.wrapping_add(offset), ..one };
            let places = advert.places.map(|one| one.map(place));
            let Some(to) = places[index] else { break };
            let bits = Some(told.bits());
            // SAFETY: the caller promises the source.
            let request = unsafe { path.port.write((at, keys.local), count, to, bits, true)? };
            path.sent += 1;
            let (from, bytes) = (at, count);
            let _region = region.clone();
            out.lend(Lent { at: at as usize, bytes, path: index, request, _region });
            out.placed += count;
            done += count;
            self.remember(index, || Written {
                lane,
                from,
                bytes,
                request,
                lent: true,
                region,
                told,
                places,
            });
        }
        Ok(done)
    }
}
