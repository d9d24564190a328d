//! Reductions that NCCL lacks: everything to where it is folded, then a fold of ours, window by
//! window as long as scratch has room. Pure, as [`super::steps`].

use super::piece::bytes;
use super::steps::{At, Fold, Kind, Local, Primitive, Round, Rules, Script};
use crate::call::Call;
use crate::kernel::{Form, Stage};
use crate::nccl::Type;
use crate::types::{Collective, Rank, ReduceOp};

/// Bytes of scratch for what is gathered and folded: longer calls take several rounds.
const SCRATCH_BYTES: usize = 64 << 20;

/// Rounds begin at multiples of so many elements.
const GRAIN: u64 = 256;

/// Where a composed reduction has its windows in scratch.
#[derive(Clone, Copy, Debug)]
struct Places {
    /// Every rank's, `stride` bytes apart.
    all: At,
    /// The own blocks' after their preparation, as far apart.
    wide: Option<At>,
    stride: usize,
    /// Bytes of an element there.
    element: usize,
    form: Form,
}

impl Script {
    /// Blocks of each rank's input: count and first element.
    fn blocks_of(call: &Call, world: u32) -> Vec<(u64, u64)> {
        use Collective as C;
        let blocks = &call.recv_blocks;
        match call.collective {
            C::ReduceScatterV => {
                blocks.counts.iter().copied().zip(blocks.displacements.iter().copied()).collect()
            }
            C::ReduceScatter => {
                (0..world).map(|r| (call.count, u64::from(r) * call.count)).collect()
            }
            _ => vec![(call.count, 0)],
        }
    }

    /// Everything to where it is folded, then the fold: a round for each window of every block, as
    /// long as scratch has room for.
    pub(super) fn composed(&mut self, call: &Call, rules: Rules<'_>) {
        let list = Self::blocks_of(call, rules.world);
        let prepares = call.op == ReduceOp::PreMulSum;
        let (form, element) = if prepares {
            (Form::Wide, call.dtype.accumulator().bytes())
        } else {
            (Form::Native, call.dtype.bytes())
        };
        let world = Rank(rules.world).index();
        let parts = world + if prepares { list.len() } else { 0 };
        let room = (SCRATCH_BYTES / (parts * element)) as u64 / GRAIN * GRAIN;
        let longest = list.iter().map(|(count, _)| *count).max().unwrap_or(0);
        let unit = room.max(GRAIN).min(longest.next_multiple_of(GRAIN));
        if longest == 0 {
            // One that folds nothing is a round on every rank.
            self.rounds.push(Round::default());
            return;
        }
        let stride = bytes(unit, element);
        let all = self.take(stride * world);
        let wide = prepares.then(|| self.take(stride * list.len()));
        let places = Places { all, wide, stride, element, form };
        for from in (0..longest).step_by(bytes(unit, 1)) {
            let window =
                |block: &(u64, u64)| (block.0.saturating_sub(from).min(unit), block.1 + from);
            let list: Vec<(u64, u64)> = list.iter().map(window).collect();
            self.rounds.push(Round::composed(call, rules, (&list, from), places));
        }
    }
}

impl Round {
    /// One window, from element `from` of every block on, of a gather and a fold; `list` has each
    /// block's part of it.
    fn composed(
        call: &Call,
        rules: Rules<'_>,
        (list, from): (&[(u64, u64)], u64),
        places: Places,
    ) -> Self {
        use Collective as C;
        let mut round = Self::default();
        let (me, root) = (rules.me, call.root);
        let Places { all, wide, stride, element, form } = places;
        let memory = At::Memory(call.send as usize);
        // Where the window of block `index` is, and its elements.
        let mut part = |index: usize| {
            let (count, first) = list[index];
            let there = memory.plus(bytes(first, call.dtype.bytes()));
            let Some(wide) = wide.filter(|_| count > 0) else { return (there, count) };
            let to = wide.plus(index * stride);
            let stage = Stage::Prepare(call.scalar);
            round.before.push(Local::Prepare { from: there, to, count, stage });
            (to, count)
        };
        let parts: Vec<(At, u64)> = (0..list.len()).map(&mut part).collect();
        let own = match call.collective {
            C::AllReduce | C::Reduce => parts[0].1,
            _ => parts[me.index()].1,
        };
        let folds = own > 0 && (call.collective != C::Reduce || me == root);
        if call.collective == C::AllReduce {
            let (send, count) = (parts[0].0, bytes(own, element));
            let (kind, op, unit) = (Kind::AllGather, ReduceOp::Sum, Type::U8);
            round.calls.push(Primitive { kind, send, recv: all, count, unit, op, root });
        } else {
            for peer in (0..rules.world).map(Rank) {
                let (at, count) = *parts.get(peer.index()).unwrap_or(&parts[0]);
                let gives = call.collective != C::Reduce || peer == root;
                let there = all.plus(peer.index() * bytes(own, element));
                if peer == me && folds {
                    let bytes = bytes(own, element);
                    round.before.push(Local::Copy { from: at, to: there, bytes });
                } else if peer != me {
                    round.message(peer, true, (at, if gives { bytes(count, element) } else { 0 }));
                    round.message(
                        peer,
                        false,
                        (there, if folds { bytes(own, element) } else { 0 }),
                    );
                }
            }
        }
        if folds {
            let to = At::Memory(call.recv as usize).plus(bytes(from, call.dtype.bytes()));
            let (stride, sources) = (bytes(own, element), rules.world);
            round.after.push(Local::Fold(Fold {
                from: all,
                form,
                sources,
                stride,
                to,
                count: own,
            }));
        }
        round
    }
}
