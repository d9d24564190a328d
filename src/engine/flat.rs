//! Small calls of ranks that share memory: each shows what it contributes, and takes from the
//! others what it needs. One step, whatever the world's size; no plan.
//!
//! ```text
//! up to 80 bytes   in the notice itself: one cache line, or two, carries call and data
//! up to 32 KiB     in a piece of the rank's area (`area`), in front of the notice
//! ```
//!
//! From 8 KiB on it is faster to load the others' buffers where they lie, if all can be mapped,
//! which takes a meeting to know. So with such a contribution a notice tells where the buffers are;
//! if all could have been mapped, the next call of that size meets.
//!
//! Folds take all contributions in rank order, so the result is in tree order, like that of every
//! other path.

use std::ptr;

use crate::call::Call;
use crate::engine::area::{Pieces, Timing};
use crate::engine::link::{Board, FLAT_BYTES, Fabric, INLINE_BYTES, NOTICE_WORDS, Place};
use crate::engine::meet::{buffers, shown_places};
use crate::engine::tile::Layout;
use crate::engine::{Engine, Planner, Stand};
use crate::error::{Code, Error, Result};
use crate::kernel::{self, Fold, Form, Source, Stage};
use crate::types::{Collective, Rank};

/// From here on a contribution is shown past the caches, where that is faster ([`Board::past`]).
const STREAM_BYTES: usize = 4 << 10;

/// Bytes of the longest contribution to `call`, the same on all ranks.
pub(super) fn shown_bytes(call: &Call, world: usize) -> usize {
    let longest = match call.collective {
        Collective::AllGatherV => call.recv_blocks.counts.iter().copied().max().unwrap_or(0),
        // That of the root, where it alone has one.
        _ => return buffers(call, call.root.index(), world).0,
    };
    number(longest).saturating_mul(call.dtype.bytes())
}

/// Bytes of the areas' piece for contributions of up to `shown` bytes: what stands in the notice
/// needs none.
pub(super) const fn piece_bytes(shown: usize) -> u64 {
    if shown <= INLINE_BYTES { 0 } else { shown as u64 }
}

/// From here on loading buffers where they lie is faster than showing contributions.
pub(crate) const PLACES_BYTES: usize = 8 << 10;

/// Whether notices of a flat `call` with contributions of `shown` bytes tell where the buffers are,
/// and everyone hears everyone's.
pub(super) const fn tells_places(call: &Call, shown: usize) -> bool {
    use Collective as C;
    shown >= PLACES_BYTES
        && matches!(call.collective, C::AllReduce | C::AllGather | C::ReduceScatter | C::AllToAll)
}

/// Whom rank `me` has to hear.
pub(super) const fn needs(call: &Call, me: usize, rank: usize) -> bool {
    let root = call.root.0 as usize;
    match call.collective {
        Collective::Broadcast | Collective::Scatter => rank == root,
        Collective::Reduce | Collective::Gather => me == root || rank == me,
        _ => true,
    }
}

impl<F: Fabric, P: Planner> Engine<F, P> {
    /// Puts this rank's contribution where the others will find it; how many words of its notice
    /// that takes.
    pub(super) fn put_flat(
        &mut self,
        call: &Call,
        stand: &mut Stand,
        words: &mut [u64; NOTICE_WORDS],
    ) -> Result<usize> {
        let (me, world) = (self.wires.me, self.wires.world);
        let told = if stand.tells { self.places(call, stand, words) } else { 0 };
        let bytes = buffers(call, me, world).0;
        let inline = self.flat.bytes() == 0;
        if bytes > if inline { INLINE_BYTES } else { FLAT_BYTES } {
            return Err(wrong_route());
        }
        let timing = self.begin_timing(stand);
        let board = self.wires.fabric.board().ok_or_else(wrong_route)?;
        let piece = || board.area(me).wrapping_add(place(&self.flat));
        let to = if inline { words.as_mut_ptr().cast() } else { piece() };
        let streaming = bytes >= STREAM_BYTES && self.flat.way(0, board.past()).past;
        // SAFETY: the call's input has these bytes (it was validated), and both places have room
        // for them, as has just been seen.
        unsafe { kernel::copy(to, call.send, bytes, streaming) };
        if let Some(timing) = timing {
            timing.end(bytes, &mut self.wires.fabric);
        }
        Ok(if inline { bytes.div_ceil(8) } else { told })
    }

    /// Hears those whose contributions this rank needs; with all there, takes them.
    pub(super) fn poll_flat(&mut self, call: &Call, stand: &mut Stand) -> Result<bool> {
        let (me, world) = (self.wires.me, self.wires.world);
        let mut moved = false;
        while stand.heard < world {
            let rank = stand.heard;
            if rank != me && needs(call, me, rank) {
                if !self.seen.greet(&mut self.wires, rank, stand.turn)? {
                    stand.early = false;
                    return Ok(moved);
                }
                self.expect(call, rank, stand);
                // What is inline is used from a copy made once.
                if self.flat.bytes() == 0
                    && let Some(board) = self.wires.fabric.board()
                {
                    let words = stand.bytes.div_ceil(8);
                    board.words(rank, stand.turn, &mut self.inline[rank][..words]);
                }
                moved = true;
            }
            stand.heard += 1;
        }
        if stand.tells {
            self.hear_places(stand);
        }
        let timing = self.begin_timing(stand);
        self.take_flat(call)?;
        if let Some(timing) = timing {
            timing.end(self.loaded_bytes(call, stand.bytes), &mut self.wires.fabric);
        }
        stand.done = true;
        Ok(true)
    }

    /// Begins to load the next notices of a rank that is ahead.
    fn expect(&mut self, call: &Call, rank: usize, stand: &Stand) {
        if stand.early
            && call.collective.rooted()
            && let Some(board) = self.wires.fabric.board()
        {
            board.expect(rank, stand.turn + 1);
            board.expect(rank, stand.turn + 2);
        }
    }

    /// Remembers whether all buffers could have been mapped.
    fn hear_places(&mut self, stand: &Stand) {
        let (me, world) = (self.wires.me, self.wires.world);
        let Some(board) = self.wires.fabric.board() else { return };
        let mapped = |rank| !shown_places(board, rank, stand.turn).contains(&Place::NOWHERE);
        let shared = !stand.hidden && (0..world).filter(|&rank| rank != me).all(mapped);
        self.note_shared(shared);
    }

    /// Begins to time the stores or loads of contributions, if this call is one to judge by.
    fn begin_timing(&mut self, stand: &Stand) -> Option<Timing> {
        let large = stand.bytes >= STREAM_BYTES;
        large.then(|| self.flat.way(0, false))?.begin(&mut self.wires.fabric)
    }

    /// Bytes that this rank takes out of others' pieces, of which the longest has `shown`.
    fn loaded_bytes(&self, call: &Call, shown: usize) -> usize {
        use Collective as C;
        let (me, world) = (self.wires.me, self.wires.world);
        let others = (0..world).filter(|&rank| rank != me && needs(call, me, rank)).count();
        let each = match call.collective {
            C::ReduceScatter | C::ReduceScatterV | C::AllToAll | C::Scatter => shown / world,
            _ => shown,
        };
        others * each
    }

    /// Where the contribution of `rank` stands.
    fn contribution(&mut self, call: &Call, rank: usize) -> Result<*const u8> {
        if rank == self.wires.me {
            return Ok(call.send);
        }
        if self.flat.bytes() == 0 {
            return Ok(self.inline[rank].as_ptr().cast());
        }
        let board = self.wires.fabric.board().ok_or_else(wrong_route)?;
        Ok(board.area(rank).wrapping_add(place(&self.flat)).cast_const())
    }

    /// Makes this rank's output from the contributions.
    fn take_flat(&mut self, call: &Call) -> Result<()> {
        use Collective as C;
        let me = self.wires.me;
        // What of a contribution is for this rank: all of it, or the block of its number.
        let (skip, count) = match call.collective {
            C::AllReduce | C::Reduce | C::Broadcast => (0, number(call.count)),
            _ => stretch(&layout(call, me), true, call, me),
        };
        let at_root = me == call.root.index();
        match call.collective {
            C::AllReduce | C::ReduceScatter | C::ReduceScatterV => {
                self.fold_flat(call, skip, count)
            }
            C::Reduce if at_root => self.fold_flat(call, skip, count),
            C::AllGather | C::AllGatherV | C::AllToAll => self.gather_flat(call, skip),
            C::Gather if at_root => self.gather_flat(call, skip),
            C::Broadcast | C::Scatter => {
                let from = self.contribution(call, call.root.index())?.wrapping_add(skip);
                // SAFETY: the root's contribution has the own block (its call has the same count,
                // as its notice has shown), and the output was validated.
                unsafe { keep(from, call.recv, count * call.dtype.bytes()) };
                Ok(())
            }
            C::Reduce | C::Gather | C::Barrier => Ok(()),
            C::GatherV | C::ScatterV | C::AllToAllV | C::Send | C::Recv => Err(wrong_route()),
        }
    }

    /// Puts the own block of a gathering call into its place: while the others' are under way.
    pub(super) fn keep_own(&self, call: &Call) {
        let me = self.wires.me;
        if !gathers(call, me) {
            return;
        }
        let layout = layout(call, me);
        let (skip, _) = stretch(&layout, true, call, me);
        let (place, count) = stretch(&layout, false, call, me);
        // SAFETY: input and output were validated, for these blocks too: in place they are the
        // same, else apart.
        unsafe {
            keep(
                call.send.wrapping_add(skip),
                call.recv.wrapping_add(place),
                count * call.dtype.bytes(),
            );
        }
    }

    /// What every other rank contributes, from `skip` bytes on, into its place in the output.
    fn gather_flat(&mut self, call: &Call, skip: usize) -> Result<()> {
        let me = self.wires.me;
        let layout = layout(call, me);
        for rank in (0..self.wires.world).filter(|&rank| rank != me) {
            let (place, count) = stretch(&layout, false, call, rank);
            let from = self.contribution(call, rank)?.wrapping_add(skip);
            let to = call.recv.wrapping_add(place);
            // SAFETY: the contribution has the block: all ranks make the same call, as its notice
            // has shown. The output was validated.
            unsafe { keep(from, to, count * call.dtype.bytes()) };
        }
        Ok(())
    }

    /// Folds `count` elements of every contribution, `skip` bytes into it.
    fn fold_flat(&mut self, call: &Call, skip: usize, count: usize) -> Result<()> {
        let kernels = self.kernels.of(call.dtype, call.op)?;
        self.sources.clear();
        for rank in 0..self.wires.world {
            let at = self.contribution(call, rank)?.wrapping_add(skip);
            self.sources.push(Source { at, form: Form::Native });
        }
        let ranks = u32::try_from(self.wires.world).unwrap_or(u32::MAX);
        let fold = Fold {
            sources: &self.sources,
            targets: &[call.recv],
            target_form: Form::Native,
            count,
            stage: Stage::Finish { ranks },
            streaming: 0,
        };
        // SAFETY: every contribution has the elements: all ranks make the same call, as their
        // notices have shown. The output was validated; in place it is the own contribution.
        unsafe { (kernels.fold)(&fold) };
        Ok(())
    }
}

/// Whether rank `me` puts blocks of several ranks into its output.
fn gathers(call: &Call, me: usize) -> bool {
    use Collective as C;
    match call.collective {
        C::AllGather | C::AllGatherV | C::AllToAll => true,
        C::Gather => me == call.root.index(),
        _ => false,
    }
}

/// The buffers of a call in one tile.
fn layout(call: &Call, me: usize) -> Layout {
    Layout::new(call, me, 1, u64::MAX / 4)
}

/// Where block `block` of the input or output lies, in bytes, and its elements.
fn stretch(layout: &Layout, input: bool, call: &Call, block: usize) -> (usize, usize) {
    let cut = if input { layout.input } else { layout.output };
    let piece = layout.piece(cut, call, Rank::at(block).0, 0);
    (number(piece.offset) * call.dtype.bytes(), number(piece.count))
}

/// Where in the areas the contributions to the present call stand.
fn place(piece: &Pieces) -> usize {
    number(piece.at(0))
}

/// Elements or bytes of a flat call, which is small and was validated.
fn number(elements: u64) -> usize {
    usize::try_from(elements).unwrap_or(usize::MAX)
}

/// Copies where the two are not the same.
///
/// # Safety
/// Both must have `bytes` bytes; they are the same or apart.
unsafe fn keep(from: *const u8, to: *mut u8, bytes: usize) {
    if bytes > 0 && !ptr::eq(from, to) {
        // SAFETY: passed on; they are not the same.
        unsafe { ptr::copy_nonoverlapping(from, to, bytes) };
    }
}

fn wrong_route() -> Error {
    Error::new(Code::Internal, "a call that is not for the board")
}
