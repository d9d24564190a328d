//! Pieces: where in its area of the board a rank puts what others load.
//!
//! A piece is what a rank shows in a flat call, or one block of tiles of a staged plan. Pieces go
//! around the area, the same way on all ranks:
//!
//! ```text
//!  0           8 KiB      136 KiB                                  area_room
//!  | two pages | 32 pages | around here and back: all other pieces |
//!    for single small pieces, in turn
//! ```
//!
//! Two places in turn would do for all, but then a rank stores to lines that others have just
//! loaded, and each must be taken out of their caches again. By the time a whole area has gone by,
//! caches have dropped it by themselves (256 KiB all_reduce, two ranks: 14 us instead of 24). For a
//! small piece it is worth more to have two places in the first-level cache. Pieces begin at pages:
//! who loads one makes the processor fetch the lines behind it too, up to the end of the page, and
//! the next piece must not be there (512 bytes: 0.4 us instead of 1.3).
//!
//! In a flat call with a root some wait for nobody, and may be many calls ahead; for that it has
//! more pages.
//!
//! Invariant: nobody stores to a piece that another may still load. With its pieces a call learns
//! *after* which turn they are free: all must have shown that one, and so have ended those before
//! it (`engine::meet`). A page is free when the call that used it has ended everywhere; a piece
//! that goes around, when the last such call has been begun by all: no piece laps over the one
//! before it, and that all have done with earlier ones follows from the plan (`crate::plan`,
//! "Stage"). No piece is longer than a third of the room.

use crate::engine::link::{AHEAD, Board, FLAT_BYTES, Fabric, STAGE_BYTES, area_room};

/// Pieces begin at multiples of this.
pub(crate) const PAGE: u64 = 4096;

/// Pages for single small pieces of plans, and of flat calls in which everyone waits for everyone.
pub(crate) const TIGHT_PAGES: usize = 2;

/// Those for flat calls in which some wait for nobody.
const LOOSE_PAGES: usize = AHEAD;

pub(crate) const PAGES: usize = TIGHT_PAGES + LOOSE_PAGES;

/// Where those begin that go around: behind the pages.
const RING_AT: u64 = PAGES as u64 * PAGE;

/// Where the next piece goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Next {
    /// Bytes behind [`RING_AT`].
    at: u64,
    /// Of all pieces ever put.
    number: u64,
    /// The last turn with pieces that go around.
    around: u64,
    /// The page last used by calls in which everyone waits for everyone, and by others.
    page: [usize; 2],
    /// The last turn that used each page.
    pages: [u64; PAGES],
}

/// The call that takes pieces.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Taker {
    pub(crate) turn: u64,
    /// Some ranks wait for nobody in it.
    pub(crate) loose: bool,
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
    /// They are free when all ranks have shown this turn.
    pub(crate) after: u64,
}

impl Default for Next {
    fn default() -> Self {
        Self { at: 0, number: 0, around: 0, page: [0; 2], pages: [0; PAGES] }
    }
}

impl Next {
    /// Takes `count` pieces of `bytes` bytes, on areas for `world` ranks.
    pub(crate) fn take(&mut self, world: usize, taker: Taker, bytes: u64, count: u64) -> Pieces {
        let (room, bytes) = (area_room(world) as u64 - RING_AT, bytes.next_multiple_of(PAGE));
        debug_assert!(bytes <= room / 3, "a piece of {bytes} bytes");
        if bytes == 0 || count == 0 {
            return Pieces::NONE;
        }
        let number = self.number;
        self.number += count;
        if bytes == PAGE && count == 1 {
            let (kind, first, pages) = match taker.loose {
                false => (0, 0, TIGHT_PAGES),
                true => (1, TIGHT_PAGES, LOOSE_PAGES),
            };
            self.page[kind] = (self.page[kind] + 1) % pages;
            let page = first + self.page[kind];
            let after = self.page_free(page);
            self.pages[page] = taker.turn;
            return Pieces { first: page as u64 * PAGE, run: 1, around: 1, bytes, number, after };
        }
        let after = std::mem::replace(&mut self.around, taker.turn);
        let first = if self.at + bytes > room { 0 } else { self.at };
        let (run, around) = ((room - first) / bytes, room / bytes);
        let pieces = Pieces { first: RING_AT + first, run, around, bytes, number, after };
        self.at = pieces.at(count - 1) + bytes - RING_AT;
        pieces
    }

    /// The turn after which any pieces that a plan may take next are free.
    pub(crate) fn after(&self) -> u64 {
        let page = (self.page[0] + 1) % TIGHT_PAGES;
        self.around.max(self.page_free(page))
    }

    /// The turn after which a page is free: that after the one that used it last.
    fn page_free(&self, page: usize) -> u64 {
        let last = self.pages[page];
        if last == 0 { 0 } else { last + 1 }
    }
}

impl Pieces {
    /// None.
    pub(crate) const NONE: Self =
        Self { first: 0, run: 0, around: 1, bytes: 0, number: 0, after: 0 };

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
        /// Whatever calls follow each other, a piece is in the room and apart from the one before
        /// it in its call; the first, from the last ones of all calls that may not have ended
        /// elsewhere.
        #[test]
        fn a_piece_never_laps_over_one_that_may_be_loaded(
            world in 1usize..20,
            calls in prop::collection::vec(
                (prop_oneof![0..=STAGE_BYTES as u64, 1..=PAGE], 0u64..40, any::<bool>()),
                1..90,
            ),
        ) {
            let room = area_room(world) as u64;
            let mut next = Next::default();
            let mut last: Vec<(u64, (u64, u64))> = Vec::new();
            let mut number = 0;
            for ((bytes, count, loose), turn) in calls.into_iter().zip(1..) {
                let count = if bytes <= PAGE && count % 8 > 0 { 1 } else { count };
                let any = next.after();
                let pieces = next.take(world, Taker { turn, loose }, bytes, count);
                prop_assert!(any < turn && pieces.after < turn);
                prop_assert!(loose || pieces.after <= any);
                last.retain(|&(turn, _)| turn >= pieces.after);
                let mut before = None;
                for index in 0..if bytes == 0 { 0 } else { count } {
                    let at = pieces.at(index);
                    prop_assert!(at % PAGE == 0 && at + bytes <= room);
                    // Who stages a second piece has waited for all to have begun the call.
                    let others = last.iter().filter(|_| index == 0).map(|l| l.1);
                    for (from, to) in others.chain(before) {
                        prop_assert!(at >= to || at + bytes <= from, "{at} {from} {to}");
                    }
                    prop_assert_eq!(pieces.number + index, number);
                    (before, number) = (Some((at, at + bytes)), number + 1);
                }
                last.extend(before.map(|before| (turn, before)));
            }
        }

        /// As many small calls may follow each other unseen as there are pages for.
        #[test]
        fn a_root_may_be_ahead(bytes in 1..=PAGE) {
            let mut next = Next::default();
            for turn in 1..100 {
                let taker = Taker { turn, loose: true };
                let pages = LOOSE_PAGES as u64;
                let after = next.take(2, taker, bytes, 1).after;
                prop_assert_eq!(after, if turn > pages { turn - pages + 1 } else { 0 });
            }
        }
    }

    #[test]
    fn some_pieces_are_timed_in_any_rhythm() {
        for every in 1..40 {
            let taker = Taker { turn: 1, loose: false };
            let pieces = Next::default().take(2, taker, 64, 64_000);
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
