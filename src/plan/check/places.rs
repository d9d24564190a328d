//! The memory of a world, chunk by chunk and tile by tile: which places are the same.

use std::ops::Range;

use super::super::{Plan, Region};
use super::memory::END;
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
    inputs: u32,
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
            count = work + plan.work_chunks * shape.window;
            Base { input, output, work, inputs }
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
            Region::None => END,
        };
        at as usize
    }

    /// The caller's buffers of a rank.
    pub(super) fn buffers(&self, rank: Rank) -> Range<usize> {
        let base = self.bases[rank.index()];
        base.input as usize..base.work as usize
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
