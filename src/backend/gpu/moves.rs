//! What a call is in folds and copies on the ranks' own buffers, where one device reaches them all.
//!
//! Each *share* of the work is a part of every block, so that several devices can take one each.
//! Whatever a share reads and writes no other writes, in place or not. Pure: offsets are elements.

use crate::call::Call;
use crate::types::{Collective, Rank};

/// Elements of every rank's input, from one offset on, combined and stored to some outputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fold {
    pub(super) from: u64,
    /// Ranks whose outputs get the result, and where: all of them, or one.
    pub(super) to: Targets,
    pub(super) at: u64,
    pub(super) count: u64,
}

/// Who gets the result of a fold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Targets {
    All,
    One(Rank),
}

/// Elements of a rank's input that go to a rank's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Copy {
    pub(super) from: (Rank, u64),
    pub(super) to: (Rank, u64),
    pub(super) count: u64,
}

/// All of a share.
#[derive(Debug, Default)]
pub(super) struct Moves {
    pub(super) folds: Vec<Fold>,
    pub(super) copies: Vec<Copy>,
}

/// One of several shares.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share {
    pub(super) index: u32,
    pub(super) of: u32,
}

/// Shares begin at multiples of so many elements: 16 bytes of every type.
const GRAIN: u64 = 16;

impl Share {
    /// Its part of `count` elements: where it begins, and how many there are.
    fn of(self, count: u64) -> (u64, u64) {
        let grains = count.div_ceil(GRAIN);
        let cut = |index: u32| {
            let parts = u64::from(self.of);
            let (each, more) = (grains / parts, grains % parts);
            let index = u64::from(index);
            ((index * each + index.min(more)) * GRAIN).min(count)
        };
        let from = cut(self.index);
        (from, cut(self.index + 1) - from)
    }
}

/// Whether calls of this kind are made of moves: all that move anything between all ranks.
pub(super) fn has_moves(kind: Collective) -> bool {
    !kind.point_to_point() && kind != Collective::Barrier
}

impl Moves {
    /// Takes on a share of `call` among `world` ranks; `block_of` says what goes from one to
    /// another where only those two know.
    pub(super) fn list(
        &mut self,
        call: &Call,
        world: u32,
        share: Share,
        block_of: impl Fn(Rank, Rank) -> Copy,
    ) {
        use Collective as C;
        self.folds.clear();
        self.copies.clear();
        let (count, root) = (call.count, call.root);
        let ranks = || (0..world).map(Rank);
        let block = |rank: Rank| u64::from(rank.0) * count;
        match call.collective {
            C::AllReduce => self.fold(0, Targets::All, count, share),
            C::Reduce => self.fold(0, Targets::One(root), count, share),
            C::ReduceScatter => {
                ranks().for_each(|r| self.fold(block(r), Targets::One(r), count, share));
            }
            C::ReduceScatterV => {
                let blocks = &call.recv_blocks;
                for (rank, (&count, &from)) in
                    ranks().zip(blocks.counts.iter().zip(&blocks.displacements))
                {
                    self.fold(from, Targets::One(rank), count, share);
                }
            }
            C::Broadcast => ranks().for_each(|r| self.copy((root, 0), (r, 0), count, share)),
            C::AllGather => {
                for to in ranks() {
                    ranks().for_each(|r| self.copy((r, 0), (to, block(r)), count, share));
                }
            }
            C::AllGatherV => {
                let blocks = &call.recv_blocks;
                for to in ranks() {
                    for (rank, (&count, &at)) in
                        ranks().zip(blocks.counts.iter().zip(&blocks.displacements))
                    {
                        self.copy((rank, 0), (to, at), count, share);
                    }
                }
            }
            C::Gather => ranks().for_each(|r| self.copy((r, 0), (root, block(r)), count, share)),
            C::Scatter => ranks().for_each(|r| self.copy((root, block(r)), (r, 0), count, share)),
            C::AllToAll => {
                for to in ranks() {
                    ranks().for_each(|r| self.copy((r, block(to)), (to, block(r)), count, share));
                }
            }
            C::GatherV | C::ScatterV | C::AllToAllV => {
                for (to, from) in ranks().flat_map(|to| ranks().map(move |from| (to, from))) {
                    let Copy { from, to, count } = block_of(from, to);
                    self.copy(from, to, count, share);
                }
            }
            C::Barrier | C::Send | C::Recv => {}
        }
    }

    fn fold(&mut self, from: u64, to: Targets, count: u64, share: Share) {
        let (at, count) = share.of(count);
        if count > 0 {
            self.folds.push(Fold { from: from + at, to, at, count });
        }
    }

    fn copy(&mut self, from: (Rank, u64), to: (Rank, u64), count: u64, share: Share) {
        let (at, count) = share.of(count);
        if count > 0 {
            let (from, to) = ((from.0, from.1 + at), (to.0, to.1 + at));
            self.copies.push(Copy { from, to, count });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::types::Dtype;

    #[test]
    fn shares_are_all_of_a_block_and_do_not_meet() {
        for of in 1..6 {
            for count in [0, 1, 15, 16, 17, 100, 1000] {
                let mut end = 0;
                for index in 0..of {
                    let (from, length) = Share { index, of }.of(count);
                    assert_eq!(from, end);
                    end += length;
                }
                assert_eq!(end, count);
            }
        }
    }

    /// Each element of an output: where it comes from. `None`: of everyone, at this offset.
    type Written = BTreeMap<(u32, u64), (Option<u32>, u64)>;

    /// What goes from one rank to another where only they know: all of it differs.
    fn between(from: Rank, to: Rank) -> Copy {
        let (there, back) = (u64::from(from.0), u64::from(to.0));
        let count = 5 * there + 7 * back;
        Copy { from: (from, 100 * back), to: (to, 100 * there), count }
    }

    fn written(call: &Call, world: u32, of: u32) -> Written {
        let mut all = Written::new();
        let mut moves = Moves::default();
        for index in 0..of {
            moves.list(call, world, Share { index, of }, between);
            for fold in &moves.folds {
                for rank in (0..world).map(Rank) {
                    if fold.to == Targets::All || fold.to == Targets::One(rank) {
                        for i in 0..fold.count {
                            let before = all.insert((rank.0, fold.at + i), (None, fold.from + i));
                            assert_eq!(before, None, "written twice");
                        }
                    }
                }
            }
            for copy in &moves.copies {
                for i in 0..copy.count {
                    let from = (Some(copy.from.0.0), copy.from.1 + i);
                    let before = all.insert((copy.to.0.0, copy.to.1 + i), from);
                    assert_eq!(before, None, "written twice");
                }
            }
        }
        all
    }

    #[test]
    fn every_output_gets_what_the_collective_says() {
        use Collective as C;
        let (world, count) = (3u32, 37u64);
        let counts = [20, 0, 37];
        for kind in C::ALL.iter().copied() {
            let mut call = Call::new(kind, Dtype::F32);
            (call.count, call.root) = (count, Rank(1));
            (call.send, call.recv) = (0x1000 as *const u8, 0x9000 as *mut u8);
            if kind.ragged() {
                call.recv_blocks.set(&counts, None);
            }
            if !has_moves(kind) {
                continue;
            }
            let places = call.recv_blocks.displacements.clone();
            for of in [1, 2, 5] {
                let all = written(&call, world, of);
                let mut expected = Written::new();
                for (me, peer) in (0..world).flat_map(|me| (0..world).map(move |peer| (me, peer))) {
                    let Copy { from, to, count } = between(Rank(peer), Rank(me));
                    if matches!(kind, C::GatherV | C::ScatterV | C::AllToAllV) {
                        expected
                            .extend((0..count).map(|i| ((me, to.1 + i), (Some(peer), from.1 + i))));
                    }
                }
                for me in 0..world {
                    let mut put = |at, from| expected.insert((me, at), from);
                    for i in 0..count {
                        for peer in 0..world {
                            let own = u64::from(peer) * count + i;
                            let mine = u64::from(me) * count + i;
                            match kind {
                                C::AllReduce => put(i, (None, i)),
                                C::Reduce if me == 1 => put(i, (None, i)),
                                C::Broadcast => put(i, (Some(1), i)),
                                C::AllGather => put(own, (Some(peer), i)),
                                C::Gather if me == 1 => put(own, (Some(peer), i)),
                                C::ReduceScatter => put(i, (None, mine)),
                                C::Scatter => put(i, (Some(1), mine)),
                                C::AllToAll => put(own, (Some(peer), mine)),
                                C::AllGatherV if i < counts[peer as usize] => {
                                    put(places[peer as usize] + i, (Some(peer), i))
                                }
                                C::ReduceScatterV if i < counts[me as usize] => {
                                    put(i, (None, places[me as usize] + i))
                                }
                                _ => None,
                            };
                        }
                    }
                }
                assert_eq!(all, expected, "{kind}, {of} shares");
            }
        }
    }
}
