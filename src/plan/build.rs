//! Collects the steps of a plan, lane by lane, and works out what an algorithm need not think
//! about.
//!
//! That is: how much scratch there is, the longest range, and where a step has to wait for posted
//! sends ([`flag::SETTLE`]), assuming the worst: that the caller works in place.

use super::{Algorithm, Key, LANES_MAX, Plan, Region, Step, Verb, flag};
use crate::types::{Collective, Rank};

/// Names a step already added, for [`Step::after`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepId {
    /// The lane.
    pub lane: u8,
    /// The index inside the lane.
    pub index: u16,
}

/// A plan in the making.
#[derive(Debug)]
pub struct Builder {
    key: Key,
    chunks: u32,
    lanes: Vec<Vec<Step>>,
    groups: Vec<Box<[Rank]>>,
}

impl Builder {
    /// An empty plan for `key`, its buffer in `chunks` parts (1 for collectives made of blocks).
    #[must_use]
    pub fn new(key: Key, chunks: u32) -> Self {
        Self { key, chunks, lanes: Vec::new(), groups: Vec::new() }
    }

    /// What the plan is for.
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Adds `step` at the end of `lane`.
    ///
    /// Panics when the plan outgrows its limits ([`LANES_MAX`], 65,534 steps a lane): a bug of the
    /// algorithm, found by the checker long before a user could meet it.
    pub fn push(&mut self, lane: usize, step: Step) -> StepId {
        assert!(lane < LANES_MAX, "lane {lane} of at most {LANES_MAX}");
        while self.lanes.len() <= lane {
            self.lanes.push(Vec::new());
        }
        let index = u16::try_from(self.lanes[lane].len()).expect("a lane has at most 65,534 steps");
        let number = u8::try_from(lane).expect("lanes are few");
        self.lanes[lane].push(Step { lane: number, ..step });
        StepId { lane: number, index }
    }

    /// The last step of `lane` so far.
    #[must_use]
    pub fn last(&self, lane: usize) -> Option<StepId> {
        let index = self.lanes.get(lane)?.len().checked_sub(1)?;
        Some(StepId { lane: u8::try_from(lane).ok()?, index: u16::try_from(index).ok()? })
    }

    /// Registers a group of ranks for [`Step::fold`], once; ascending order is the fold's order.
    pub fn group(&mut self, ranks: &[Rank]) -> u32 {
        debug_assert!(ranks.is_sorted(), "a group is in rank order");
        let known = self.groups.iter().position(|group| **group == *ranks);
        let group = known.unwrap_or(self.groups.len());
        if known.is_none() {
            self.groups.push(ranks.into());
        }
        u32::try_from(group).expect("groups are few")
    }

    /// Where this rank's contribution to a reduction lives: `Input`, or `Work` (wide) once
    /// [`Builder::load`] has multiplied it.
    #[must_use]
    pub fn contribution(&self) -> Region {
        if self.key.prepared { Region::Work } else { Region::Input }
    }

    /// Begins lane 0 of a reduction: multiplies Input chunks `0..chunks` into Work where
    /// `pre_mul_sum` asks for it, else nothing.
    pub fn load(&mut self, chunks: u32) {
        if self.key.prepared {
            let step = Step::copy((Region::Input, 0), (Region::Work, 0)).over(chunks);
            self.push(0, step.with(flag::PREPARE));
        }
    }

    /// The finished plan, of at least one lane.
    #[must_use]
    pub fn finish(mut self) -> Plan {
        if self.lanes.is_empty() {
            self.lanes.push(Vec::new());
        }
        let reduces = self.key.collective.reduces();
        self.lanes.iter_mut().flatten().for_each(|step| mark_stored(step, reduces));
        settle(&mut self.lanes, self.key.collective, self.key.rank);
        let mut lane_starts = vec![0u16];
        let mut steps = Vec::new();
        for lane in &self.lanes {
            steps.extend_from_slice(lane);
            lane_starts.push(u16::try_from(steps.len()).expect("a plan has at most 65,535 steps"));
        }
        let work = |s: &Step| {
            let end = |region, chunk| {
                if region == Region::Work { chunk + s.chunks } else { 0 }
            };
            end(s.source, s.source_chunk).max(end(s.target, s.target_chunk))
        };
        let staged = self.key.algorithm == Algorithm::Staged && self.key.world > 1;
        Plan {
            work_chunks: steps.iter().map(work).max().unwrap_or(0),
            stage_chunks: if staged { stage_chunks(&self.key, self.chunks) } else { 0 },
            range_max: range_bound(&self.key, self.chunks),
            direct: self.key.algorithm == Algorithm::Direct,
            key: self.key,
            chunks: self.chunks,
            groups: self.groups.into(),
            steps: steps.into(),
            lane_starts: lane_starts.into(),
        }
    }
}

/// Marks a step whose message is no part of a sum: where nothing is reduced all are such, else
/// results that are finished. In scratch they look like others: there an algorithm says it.
fn mark_stored(step: &mut Step, reduces: bool) {
    let stored = match step.verb {
        Verb::Send => !reduces || step.source == Region::Output,
        Verb::RecvReduceSend => step.has(flag::FINISH),
        Verb::RecvCopySend => true,
        _ => false,
    };
    if stored {
        step.flags |= flag::STORED;
    }
}

/// No message of any rank's plan has more chunks than this. Every rank must come to the same
/// number, because tiles are cut by it.
fn range_bound(key: &Key, chunks: u32) -> u32 {
    use Collective as C;
    let whole = matches!(key.collective, C::AllReduce | C::Reduce | C::Broadcast | C::Barrier);
    match key.algorithm {
        Algorithm::Ring | Algorithm::Tree | Algorithm::Pairwise => 1,
        Algorithm::Direct | Algorithm::Staged => 1,
        Algorithm::Binomial if whole => 1,
        Algorithm::Doubling if whole => 1,
        Algorithm::Binomial
        | Algorithm::Doubling
        | Algorithm::Halving
        | Algorithm::Bruck
        | Algorithm::Hierarchical => key.world.max(chunks),
    }
}

/// Chunks of Stage: the parts or blocks of the call, or the own block alone.
fn stage_chunks(key: &Key, chunks: u32) -> u32 {
    use Collective as C;
    match key.collective {
        C::AllGather | C::AllGatherV | C::Gather => 1,
        C::ReduceScatter | C::ReduceScatterV | C::Scatter | C::AllToAll => key.world,
        _ => chunks,
    }
}

/// A range of chunks of one buffer; Input and Output chunks that in-place calls put in one place
/// have the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    work: bool,
    first: u32,
    end: u32,
}

impl Place {
    /// Whether the two overlap or follow each other.
    const fn meets(self, other: Self) -> bool {
        self.first <= other.end && other.first <= self.end
    }
}

fn place(region: Region, chunk: u32, chunks: u32, collective: Collective, rank: Rank) -> Place {
    use Collective as C;
    let one_block = match collective {
        C::AllGather | C::AllGatherV | C::Gather | C::GatherV => region == Region::Input,
        C::ReduceScatter | C::ReduceScatterV | C::Scatter | C::ScatterV => region == Region::Output,
        _ => false,
    };
    let first = if one_block { rank.0 } else { chunk };
    Place { work: region == Region::Work, first, end: first + chunks }
}

/// Marks every step that writes where a posted send may still read.
///
/// A step that settles knows only that what is posted from where it writes has left. Each lane is
/// walked twice: scratch is used again by the next block of tiles.
fn settle(lanes: &mut [Vec<Step>], collective: Collective, rank: Rank) {
    let mut earlier: Vec<Place> = Vec::new();
    for lane in lanes.iter_mut() {
        let mut posted = earlier.clone();
        for round in 0..2 {
            // Caller's buffers have another address in the next block: only scratch stays posted.
            posted.retain(|p| round == 0 || p.work);
            for step in lane.iter_mut() {
                let at = |region, chunk| place(region, chunk, step.chunks, collective, rank);
                let target = at(step.target, step.target_chunk);
                let leaves = match step.verb {
                    Verb::Send => Some(at(step.source, step.source_chunk)),
                    _ if step.sends_target() => Some(target),
                    _ => None,
                };
                if step.writes_here() && take_out(&mut posted, target) {
                    step.flags |= flag::SETTLE;
                }
                if let Some(place) = leaves {
                    note(&mut posted, place);
                    note(&mut earlier, place);
                }
            }
        }
    }
}

/// Takes `place` out of `places`; whether any of it was there.
fn take_out(places: &mut Vec<Place>, place: Place) -> bool {
    let hits = |p: &Place| p.work == place.work && p.first < place.end && place.first < p.end;
    let mut found = false;
    let mut index = 0;
    while let Some(&old) = places.get(index) {
        if !hits(&old) {
            index += 1;
            continue;
        }
        found = true;
        places.swap_remove(index);
        let below = Place { end: place.first, ..old };
        let above = Place { first: place.end, ..old };
        places.extend([below, above].into_iter().filter(|rest| rest.first < rest.end));
    }
    found
}

/// Adds `place`, which often continues the one before: worlds are large.
fn note(places: &mut Vec<Place>, place: Place) {
    match places.last_mut() {
        Some(last) if last.work == place.work && last.meets(place) => {
            last.first = last.first.min(place.first);
            last.end = last.end.max(place.end);
        }
        _ => places.push(place),
    }
}
