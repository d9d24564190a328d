//! The memory of a world, chunk by chunk and tile by tile: which places are the same.

use std::ops::Range;

use super::super::{Plan, Region, Verb};
use super::memory::END;
use super::order::number;
use super::structure::buffers;
use crate::types::{Collective, Rank};

/// The shape of a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// Lanes of the plan with the most.
    pub(super) lanes: usize,
    pub(super) tiles: u32,
    pub(super) window: u32,
    pub(super) in_place: bool,
}

impl Shape {
    pub(super) fn of(plans: &[Plan], (tiles, window): (u32, u32), in_place: bool) -> Self {
        let lanes = plans.iter().map(Plan::lanes).max().unwrap_or(0);
        Self { lanes, tiles, window, in_place }
    }
}

/// Where the places of a rank begin.
#[derive(Clone, Copy, Debug)]
struct Base {
    input: u32,
    output: u32,
    work: u32,
    stage: u32,
    inputs: u32,
    /// Phases that the rank posts for a tile.
    posts: u32,
}

/// All places of a world, numbered from 0.
#[derive(Debug)]
pub(super) struct Places<'a> {
    plans: &'a [Plan],
    pub(super) shape: Shape,
    bases: Vec<Base>,
    count: u32,
}

impl<'a> Places<'a> {
    pub(super) fn new(plans: &'a [Plan], shape: Shape) -> Self {
        let mut count = 0;
        let base = |plan: &Plan| {
            let (inputs, outputs) = buffers(&plan.key, plan.key.rank, plan.chunks);
            let input = count;
            let output = input + inputs * shape.tiles;
            let work = output + outputs * shape.tiles;
            let stage = work + plan.work_chunks * shape.window;
            count = stage + plan.stage_chunks * 2 * shape.window;
            let posts = plan.steps.iter().filter(|step| step.verb == Verb::Post).count();
            Base { input, output, work, stage, inputs, posts: number(posts) }
        };
        let bases = plans.iter().map(base).collect();
        Self { plans, shape, bases, count }
    }

    pub(super) fn count(&self) -> usize {
        self.count as usize
    }

    /// Where a chunk of a region of `rank` is.
    pub(super) fn at(&self, rank: u32, region: Region, chunk: u32, tile: u32) -> usize {
        let base = self.bases[rank as usize];
        let Shape { tiles, window, .. } = self.shape;
        let at = match region {
            Region::Input | Region::PeerInput => base.input + chunk * tiles + tile,
            Region::Output | Region::PeerOutput => match self.shared(rank, chunk) {
                Some(input) => base.input + input * tiles + tile,
                None => base.output + chunk * tiles + tile,
            },
            Region::Work => base.work + chunk * window + tile % window,
            Region::Stage | Region::PeerStage => {
                base.stage + chunk * 2 * window + tile % (2 * window)
            }
            Region::None => END,
        };
        at as usize
    }

    /// The caller's buffers of a rank.
    pub(super) fn buffers(&self, rank: Rank) -> Range<usize> {
        let base = self.bases[rank.index()];
        base.input as usize..base.work as usize
    }

    /// How many phases `rank` has posted, over all tiles, once it has posted `phase` of `tile`.
    pub(super) fn posted(&self, rank: u32, phase: u32, tile: u32) -> u32 {
        let Shape { tiles, window, .. } = self.shape;
        let first = tile - tile % window;
        let wide = window.min(tiles - first);
        let before = first * self.bases[rank as usize].posts;
        if phase == 0 { 0 } else { before + (phase - 1) * wide + (tile - first) + 1 }
    }

    /// What peers can load of a rank.
    pub(super) fn stage(&self, rank: Rank) -> Range<usize> {
        let Shape { window, .. } = self.shape;
        let first = self.bases[rank.index()].stage;
        let chunks = self.plans[rank.index()].stage_chunks;
        first as usize..(first + chunks * 2 * window) as usize
    }

    /// The Input chunk that is the same memory as this Output chunk when the call works in place.
    fn shared(&self, rank: u32, chunk: u32) -> Option<u32> {
        use Collective as C;
        let inputs = self.bases[rank as usize].inputs;
        let input = match self.plans[rank as usize].key.collective {
            _ if !self.shape.in_place => None,
            C::AllReduce | C::Reduce | C::Broadcast | C::AllToAll | C::AllToAllV => Some(chunk),
            C::AllGather | C::AllGatherV | C::Gather | C::GatherV => (chunk == rank).then_some(0),
            C::ReduceScatter | C::ReduceScatterV | C::Scatter | C::ScatterV => Some(rank),
            C::Barrier | C::Send | C::Recv => None,
        };
        input.filter(|&i| i < inputs)
    }
}
