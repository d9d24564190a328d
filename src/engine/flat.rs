//! Small calls of ranks that share memory: each shows what it contributes, and takes from the
//! others what it needs. One step, whatever the world's size; no plan.
//!
//! ```text
//! up to 48 bytes   in the notice itself: one cache line carries call and data
//! up to 32 KiB     in the rank's area of the board, in front of the notice
//! ```
//!
//! Turns use two places in turn. That a place is free again follows from the notices: see `meet`.
//! Folds take all contributions in rank order, so the result is in tree order, like that of every
//! other path.

use std::ptr;

use crate::call::Call;
use crate::engine::link::{Board, FLAT_BYTES, Fabric, INLINE_BYTES, NOTICE_WORDS};
use crate::engine::meet::hear;
use crate::engine::tile::{Cut, Layout};
use crate::engine::{Engine, Planner, Run};
use crate::error::{Code, Error, Result};
use crate::kernel::{self, Fold, Form, Source, Stage};
use crate::types::Collective;

/// From here on a contribution is shown past the caches, where ranks have cores of their own: see
/// [`super::Machine`].
const STREAM_BYTES: usize = 16 << 10;

/// The bytes a rank contributes to `call`, end to end; `None` where they do not go this way: the
/// counts are not known to all, the contribution is not the caller's own memory, or they are too
/// many.
fn flat_bytes(call: &Call, rank: usize, world: usize) -> Option<usize> {
    use Collective as C;
    let blocks = || call.recv_blocks.counts.iter().try_fold(0u64, |sum, n| sum.checked_add(*n));
    let all = || call.count.checked_mul(world as u64);
    let elements = match call.collective {
        C::AllReduce | C::Reduce | C::AllGather | C::Gather => call.count,
        C::ReduceScatter | C::AllToAll => all()?,
        C::ReduceScatterV => blocks()?,
        C::AllGatherV => call.recv_blocks.counts.get(rank).copied()?,
        C::Broadcast if rank == call.root.index() => call.count,
        C::Scatter if rank == call.root.index() => all()?,
        C::Broadcast | C::Scatter | C::Barrier => 0,
        C::GatherV | C::ScatterV | C::AllToAllV | C::Send | C::Recv => return None,
    };
    let bytes = usize::try_from(elements.checked_mul(call.dtype.bytes() as u64)?).ok()?;
    (bytes <= FLAT_BYTES).then_some(bytes)
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
    /// Puts this rank's contribution where the others will find it; the words of its notice.
    pub(super) fn put_flat(&mut self, run: &Run) -> Result<[u64; NOTICE_WORDS]> {
        let me = self.wires.me;
        let mut words = [0; NOTICE_WORDS];
        let bytes = flat_bytes(&run.call, me, self.wires.world).ok_or_else(wrong_route)?;
        let board = self.wires.fabric.board().ok_or_else(wrong_route)?;
        let to = match bytes {
            0 => return Ok(words),
            1..=INLINE_BYTES => words.as_mut_ptr().cast(),
            _ => board.flat(me, run.turn),
        };
        let streaming = self.machine.own_cores && bytes >= STREAM_BYTES;
        // SAFETY: the call's input has these bytes (it was validated), and both places have room
        // for them: `flat_bytes` keeps within FLAT_BYTES.
        unsafe { kernel::copy(to, run.call.send, bytes, streaming) };
        Ok(words)
    }

    /// Hears those whose contributions this rank needs; with all there, takes them.
    pub(super) fn poll_flat(&mut self, run: &mut Run) -> Result<bool> {
        let (me, world) = (self.wires.me, self.wires.world);
        let mut moved = false;
        while run.heard < world {
            let rank = run.heard;
            if rank == me || !needs(&run.call, me, rank) {
                self.inline_words(rank, [0; NOTICE_WORDS]);
            } else {
                let Some(heard) = hear(&mut self.wires, rank, (run.turn, &run.head))? else {
                    return Ok(moved);
                };
                self.seen[rank] = run.turn;
                self.inline_words(rank, heard.words);
                moved = true;
            }
            run.heard += 1;
        }
        self.take_flat(run)?;
        run.done = true;
        Ok(true)
    }

    /// Keeps the words of a notice: what is inline is used from the copy.
    fn inline_words(&mut self, rank: usize, words: [u64; NOTICE_WORDS]) {
        if self.inline.len() <= rank {
            self.inline.resize(rank + 1, [0; NOTICE_WORDS]);
        }
        self.inline[rank] = words;
    }

    /// Where the contribution of `rank` stands.
    fn contribution(&mut self, run: &Run, rank: usize) -> Result<*const u8> {
        let world = self.wires.world;
        if rank == self.wires.me {
            return Ok(run.call.send);
        }
        let bytes = flat_bytes(&run.call, rank, world).ok_or_else(wrong_route)?;
        if bytes <= INLINE_BYTES {
            return Ok(self.inline[rank].as_ptr().cast());
        }
        let board = self.wires.fabric.board().ok_or_else(wrong_route)?;
        Ok(board.flat(rank, run.turn).cast_const())
    }

    /// Makes this rank's output from the contributions.
    fn take_flat(&mut self, run: &Run) -> Result<()> {
        use Collective as C;
        let (call, me) = (&run.call, self.wires.me);
        let size = call.dtype.bytes();
        let number = |elements: u64| usize::try_from(elements).unwrap_or(usize::MAX);
        let root = call.root.index();
        let own = |cut: Cut| {
            let block = u32::try_from(me).unwrap_or(u32::MAX);
            let piece = Layout::new(call, me, 1, u64::MAX / 4).piece(cut, call, block, 0);
            (number(piece.offset) * size, number(piece.count))
        };
        let blocks = Cut::Blocks { count: call.count };
        match call.collective {
            C::AllReduce => self.fold_flat(run, 0, number(call.count)),
            C::Reduce if me == root => self.fold_flat(run, 0, number(call.count)),
            C::ReduceScatter | C::ReduceScatterV => {
                let cut =
                    if call.collective == C::ReduceScatter { blocks } else { Cut::RecvBlocks };
                let (skip, count) = own(cut);
                self.fold_flat(run, skip, count)
            }
            C::AllGather | C::AllGatherV | C::AllToAll => self.gather_flat(run),
            C::Gather if me == root => self.gather_flat(run),
            C::Broadcast | C::Scatter => {
                let skip = if call.collective == C::Scatter { own(blocks).0 } else { 0 };
                let from = self.contribution(run, root)?.wrapping_add(skip);
                // SAFETY: the root's contribution has the own block (its call has the same count,
                // as its notice has shown), and the output was validated.
                unsafe { keep(from, call.recv, number(call.count) * size) };
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Every rank's block into its place in the output.
    fn gather_flat(&mut self, run: &Run) -> Result<()> {
        let (call, me) = (&run.call, self.wires.me);
        let size = call.dtype.bytes();
        let number = |elements: u64| usize::try_from(elements).unwrap_or(usize::MAX);
        let layout = Layout::new(call, me, 1, u64::MAX / 4);
        for rank in 0..self.wires.world {
            let block = u32::try_from(rank).unwrap_or(u32::MAX);
            let piece = layout.piece(layout.output, call, block, 0);
            // An all_to_all contributes a block for each rank, the others their own alone.
            let skip = match call.collective {
                Collective::AllToAll => number(call.count) * size * me,
                _ => 0,
            };
            let from = self.contribution(run, rank)?.wrapping_add(skip);
            let to = call.recv.wrapping_add(number(piece.offset) * size);
            // SAFETY: the contribution has the block: all ranks make the same call, as its notice
            // has shown. The output was validated.
            unsafe { keep(from, to, number(piece.count) * size) };
        }
        Ok(())
    }

    /// Folds `count` elements of every contribution, `skip` bytes into it.
    fn fold_flat(&mut self, run: &Run, skip: usize, count: usize) -> Result<()> {
        let call = &run.call;
        let kernels = kernel::select(call.dtype, call.op)?;
        self.sources.clear();
        for rank in 0..self.wires.world {
            let at = self.contribution(run, rank)?.wrapping_add(skip);
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
