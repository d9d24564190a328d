//! Pieces: where in its area of the board a rank puts what others load.
//!
//! A piece is what a rank shows in a flat call, or one block of tiles of a staged plan. Pieces go
//! around the area, the same way on all ranks:
//!
//! ```text
//!  0        4 KiB    8 KiB                                    area_room
//!  | pages for single  | around here and back: all other pieces |
//!    small pieces, in turn
//! ```
//!
//! Two places in turn would do for all, but then a rank stores to lines that others have just
//! loaded, and each must be taken out of their caches again. By the time a whole area has gone by,
//! caches have dropped it by themselves (256 KiB all_reduce, two ranks: 14 us instead of 24). For a
//! small piece it is worth more to have two places in the first-level cache. Pieces begin at pages:
//! who loads one makes the processor fetch the lines behind it too, up to the end of the page, and
//! the next piece must not be there (512 bytes: 0.4 us instead of 1.3).
//!
//! Invariant: no piece laps over the one before it, which others may still load; none is longer
//! than a third of the room. That they have done with all earlier ones follows from the notices
//! (`engine::meet`) and, inside a call, from the plan (`crate::plan`, "Stage").

use crate::engine::link::{Board, FLAT_BYTES, Fabric, STAGE_BYTES, area_room};

/// Pieces begin at multiples of this.
const PAGE: u64 = 4096;

/// Where those begin that go around: behind two pages.
const RING_AT: u64 = 2 * PAGE;

/// Where the next piece goes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Next {
    /// Bytes behind [`RING_AT`].
    at: u64,
    /// Of all pieces ever put.
    number: u64,
    /// Of single small ones.
    small: u64,
}

/// How a piece is stored.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Way {
    /// Past the caches.
    pub(crate) past: bool,
    pub(crate) timed: bool,
}

/// A store to a piece, or a load out of it, that is timed: see `link::pace`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timing {
    past: bool,
    began: u64,
}

impl Way {
    /// Begins to time what is done with such a piece, if it is one to judge by.
    pub(crate) fn begin<F: Fabric>(self, fabric: &mut F) -> Option<Timing> {
        let board = fabric.board().filter(|_| self.timed)?;
        Some(Timing { past: self.past, began: board.clock() })
    }
}

impl Timing {
    /// `bytes` bytes have been stored or loaded.
    pub(crate) fn end<F: Fabric>(self, bytes: usize, fabric: &mut F) {
        if let Some(board) = fabric.board() {
            board.took(self.past, bytes, board.clock().saturating_sub(self.began));
        }
    }
}

/// The pieces of one call, all of one length.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pieces {
    first: u64,
    /// How many follow each other before they begin anew at 0, and each time around after that.
    run: u64,
    around: u64,
    bytes: u64,
    /// The number of the first, of all pieces ever put.
    number: u64,
}

impl Next {
    /// Takes `count` pieces of `bytes` bytes, on areas for `world` ranks.
    pub(crate) fn take(&mut self, world: usize, bytes: u64, count: u64) -> Pieces {
        let (room, bytes) = (area_room(world) as u64 - RING_AT, bytes.next_multiple_of(PAGE));
        debug_assert!(bytes <= room / 3, "a piece of {bytes} bytes");
        if bytes == 0 || count == 0 {
            return Pieces::NONE;
        }
        let number = self.number;
        self.number += count;
        if bytes == PAGE && count == 1 {
            self.small += 1;
            return Pieces { first: self.small % 2 * PAGE, run: 1, around: 1, bytes, number };
        }
        let first = if self.at + bytes > room { 0 } else { self.at };
        let (run, around) = ((room - first) / bytes, room / bytes);
        let pieces = Pieces { first: RING_AT + first, run, around, bytes, number };
        self.at = pieces.at(count - 1) + bytes - RING_AT;
        pieces
    }
}

impl Pieces {
    /// None.
    pub(crate) const NONE: Self = Self { first: 0, run: 0, around: 1, bytes: 0, number: 0 };

    /// Where piece `index` of the call begins, in bytes.
    #[inline]
    pub(crate) const fn at(&self, index: u64) -> u64 {
        if index < self.run {
            self.first + index * self.bytes
        } else {
            RING_AT + (index - self.run) % self.around * self.bytes
        }
    }

    /// Length of each.
    #[inline]
    pub(crate) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether piece `index` is stored past the caches, where `usual` says how others are, and
    /// whether its stores and loads are to be timed: see `link::pace`. Two in 64 are, one in each
    /// way, and of the first 64 more, spread so that no program's rhythm avoids them.
    #[inline]
    pub(crate) const fn way(&self, index: u64, usual: bool) -> Way {
        let number = self.number + index;
        let rare = if number < 64 { 61 } else { 58 };
        match (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> rare {
            0 => Way { past: false, timed: true },
            1 => Way { past: true, timed: true },
            _ => Way { past: usual, timed: false },
        }
    }
}

const _: () = assert!(FLAT_BYTES <= STAGE_BYTES);
const _: () = assert!(STAGE_BYTES as u64 <= (area_room(usize::MAX) as u64 - RING_AT) / 3);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever calls follow each other, a piece is in the room and apart from the one before.
        #[test]
        fn a_piece_never_laps_over_the_one_before(
            world in 1usize..20,
            calls in prop::collection::vec((0..=STAGE_BYTES as u64, 0u64..40), 1..60),
        ) {
            let room = area_room(world) as u64;
            let (mut next, mut before) = (Next::default(), (0, 0));
            let mut number = 0;
            for (bytes, count) in calls {
                let pieces = next.take(world, bytes, count);
                for index in 0..if bytes == 0 { 0 } else { count } {
                    let at = pieces.at(index);
                    prop_assert!(at % PAGE == 0 && at + bytes <= room);
                    prop_assert!(at >= before.1 || at + bytes <= before.0, "{at} {before:?}");
                    prop_assert_eq!(pieces.number + index, number);
                    (before, number) = ((at, at + bytes), number + 1);
                }
            }
        }
    }

    #[test]
    fn some_pieces_are_timed_in_any_rhythm() {
        for every in 1..40 {
            let pieces = Next::default().take(2, 64, 64_000);
            let timed = |past| {
                let ways = (0..64_000 / every).map(|i| pieces.way(i * every, false));
                ways.filter(|way| way.timed && way.past == past).count()
            };
            for past in [false, true] {
                let share = usize::try_from(64_000 / every).unwrap() / timed(past).max(1);
                assert!((30..160).contains(&share), "every {every}, past {past}: one in {share}");
            }
        }
    }
}
