//! What can be said of a plan by looking at each step alone: fields in range, operands where the
//! verb needs them and nowhere else, flags that mean something.

use super::super::{Key, LANES_MAX, NO_RANK, NO_STEP, PHASES_MAX, Plan, Region, Step, Verb, flag};
use super::{Flaw, Site};
use crate::types::{Collective, Rank};

/// Chunks of Input and Output that rank `rank` has in this call; 0 where the caller gives no
/// buffer.
pub(in crate::plan) fn buffers(key: &Key, rank: Rank, chunks: u32) -> (u32, u32) {
    use Collective as C;
    let at_root = |n: u32| if rank == key.root { n } else { 0 };
    match key.collective {
        C::AllReduce => (chunks, chunks),
        C::Reduce => (chunks, at_root(chunks)),
        C::Broadcast => (at_root(chunks), chunks),
        C::AllGather | C::AllGatherV => (1, key.world),
        C::Gather | C::GatherV => (1, at_root(key.world)),
        C::ReduceScatter | C::ReduceScatterV => (key.world, 1),
        C::Scatter | C::ScatterV => (at_root(key.world), 1),
        C::AllToAll | C::AllToAllV => (key.world, key.world),
        C::Barrier => (1, 1),
        C::Send => (1, 0),
        C::Recv => (0, 1),
    }
}

/// The plans fit each other: one per rank, made for the same call.
pub(super) fn world(plans: &[Plan]) -> Result<(), Flaw> {
    let first = &plans[0];
    for (index, plan) in plans.iter().enumerate() {
        let fail = |what: String| Err(Flaw::of_rank(Rank::at(index), what));
        if plan.key.rank.index() != index {
            return fail(format!("its plan is made for rank {}", plan.key.rank));
        }
        let p2p = first.key.collective.point_to_point();
        let peer = if p2p { first.key.root } else { plan.key.root };
        let expected = Key {
            rank: plan.key.rank,
            root: if p2p { plan.key.root } else { first.key.root },
            collective: if p2p && plan.key.collective.point_to_point() {
                plan.key.collective
            } else {
                first.key.collective
            },
            ..first.key.clone()
        };
        if plan.key != expected
            || first.key.world as usize != plans.len()
            || peer.0 >= expected.world
        {
            return fail(format!("its key {:?} does not fit {:?}", plan.key, first.key));
        }
        let cut = |plan: &Plan| (plan.chunks, plan.stage_chunks, plan.direct);
        if cut(plan) != cut(first) {
            return fail(format!(
                "it has (chunks, staged, direct) {:?}; rank 0 has {:?}",
                cut(plan),
                cut(first)
            ));
        }
    }
    if plans.len() > 128 {
        return Err(Flaw::of_rank(Rank(0), "worlds over 128 ranks are beyond the checker".into()));
    }
    Ok(())
}

/// Far more chunks than an algorithm can want.
const CHUNKS_MAX: u32 = 1 << 16;

/// One plan, step by step.
pub(super) fn plan(plan: &Plan) -> Result<(), Flaw> {
    let fail = |what: String| Err(Flaw::of_rank(plan.key.rank, what));
    let buffer_wide = matches!(
        plan.key.collective,
        Collective::AllReduce | Collective::Reduce | Collective::Broadcast
    );
    if plan.chunks == 0 || (plan.chunks > 1 && !buffer_wide) {
        return fail(format!("{} chunks", plan.chunks));
    }
    if plan.chunks.max(plan.work_chunks).max(plan.stage_chunks) > CHUNKS_MAX {
        return fail(format!("more than {CHUNKS_MAX} chunks or chunks of scratch"));
    }
    let starts = &plan.lane_starts;
    if starts.first() != Some(&0)
        || !starts.is_sorted()
        || starts.last().map(|&end| usize::from(end)) != Some(plan.steps.len())
        || plan.lanes() > LANES_MAX
    {
        return fail(format!("lanes starting at {starts:?} for {} steps", plan.steps.len()));
    }
    for (number, group) in plan.groups.iter().enumerate() {
        let sorted = group.windows(2).all(|pair| pair[0] < pair[1]);
        let inside = group.iter().all(|r| r.0 < plan.key.world);
        if !sorted || !inside || !group.contains(&plan.key.rank) {
            return fail(format!("group {number} is not an ascending list with the own rank"));
        }
    }
    let mut phase = None;
    for lane in 0..plan.lanes() {
        for (index, step) in plan.lane(lane).iter().enumerate() {
            let site = Site { rank: plan.key.rank, lane, index, tile: 0 };
            let flawed = |what: String| Flaw::at(site, step, what);
            Shape::of(step).check(step, plan, lane, index).map_err(flawed)?;
            if step.verb == Verb::Post {
                let next = phase.map_or(1, |(_, p)| p + 1);
                let other_lane = phase.is_some_and(|(l, _)| l != lane);
                if other_lane || step.source_chunk != next || next > PHASES_MAX {
                    return Err(flawed("phases are posted by one lane, in order from 1".into()));
                }
                phase = Some((lane, next));
            }
        }
    }
    Ok(())
}

/// What a verb takes.
struct Shape {
    sources: &'static [Region],
    targets: &'static [Region],
    from: bool,
    to: bool,
    flags: u8,
}

const OWN: &[Region] = &[Region::Input, Region::Output, Region::Work];
const COPIED: &[Region] = &[
    Region::Input,
    Region::Output,
    Region::Work,
    Region::PeerInput,
    Region::PeerOutput,
    Region::PeerStage,
];
const FOLDED: &[Region] =
    &[Region::Input, Region::Output, Region::Work, Region::PeerInput, Region::PeerStage];
const WRITTEN: &[Region] = &[Region::Output, Region::Work];
const WRITTEN_OR_STAGE: &[Region] = &[Region::Output, Region::Work, Region::Stage];
const COPIED_TO: &[Region] = &[Region::Output, Region::Work, Region::PeerOutput, Region::Stage];
const WRITTEN_OR_NONE: &[Region] = &[Region::Output, Region::Work, Region::None];
const NONE: &[Region] = &[Region::None];
const COMBINED: u8 = flag::WIDE | flag::INCOMING_FIRST | flag::FINISH;

impl Shape {
    fn of(step: &Step) -> Self {
        let shape = |sources, targets, from, to, flags| Self { sources, targets, from, to, flags };
        match step.verb {
            Verb::Send => shape(OWN, NONE, false, true, flag::WIDE),
            Verb::Recv => shape(NONE, WRITTEN, true, false, flag::WIDE),
            Verb::Copy => {
                let peer = step.source.is_peer() || step.target.is_peer();
                shape(COPIED, COPIED_TO, peer, false, flag::FINISH | flag::PREPARE)
            }
            Verb::Reduce => shape(OWN, WRITTEN, false, false, flag::FINISH),
            Verb::RecvReduce => shape(OWN, WRITTEN, true, false, COMBINED),
            Verb::RecvReduceSend => shape(OWN, WRITTEN_OR_NONE, true, true, COMBINED),
            Verb::RecvCopySend => shape(NONE, WRITTEN, true, true, flag::WIDE),
            Verb::Fold => {
                let flags = flag::WIDE | flag::FINISH | flag::SPREAD;
                shape(FOLDED, WRITTEN_OR_STAGE, true, false, flags)
            }
            Verb::Post => shape(NONE, NONE, false, false, 0),
            Verb::Await => shape(NONE, NONE, true, false, 0),
        }
    }

    fn check(&self, step: &Step, plan: &Plan, lane: usize, index: usize) -> Result<(), String> {
        if usize::from(step.lane) != lane || step.reserved != 0 {
            return Err(format!("lane {} and reserved {} in its record", step.lane, step.reserved));
        }
        if !self.sources.contains(&step.source) || !self.targets.contains(&step.target) {
            return Err(format!(
                "a {} cannot go from {} to {}",
                step.verb,
                step.source.name(),
                step.target.name()
            ));
        }
        self.flags(step, plan)?;
        self.peers(step, plan)?;
        waits(step, plan, index)?;
        ranges(step, plan)
    }

    fn flags(&self, step: &Step, plan: &Plan) -> Result<(), String> {
        let key = &plan.key;
        let stored = if step.sends() { flag::STORED } else { 0 };
        if step.flags & !(self.flags | flag::SETTLE | stored) != 0 {
            return Err(format!("flags {:#04x} mean nothing to a {}", step.flags, step.verb));
        }
        if step.has(flag::SETTLE) && !step.writes_here() {
            return Err("settles, but writes nothing here".into());
        }
        let combines = matches!(
            step.verb,
            Verb::Reduce | Verb::RecvReduce | Verb::RecvReduceSend | Verb::Fold
        );
        if !key.collective.reduces() && (combines || step.has(flag::WIDE | flag::FINISH)) {
            return Err(format!("{} combines nothing", key.collective));
        }
        if step.has(flag::PREPARE) {
            if !key.prepared || !key.collective.reduces() {
                return Err("prepares, but the call has no factor".into());
            }
            if (step.source, step.target) != (Region::Input, Region::Work) {
                return Err("prepares, but not from input to work".into());
            }
        }
        if step.has(flag::SPREAD) && !(step.source.is_peer() && step.target == Region::Output) {
            return Err("spreads, but not from peers' memory to output".into());
        }
        if step.verb == Verb::Fold && step.source.is_peer() && step.has(flag::WIDE) {
            return Err("takes no message that could be wide".into());
        }
        Ok(())
    }

    fn peers(&self, step: &Step, plan: &Plan) -> Result<(), String> {
        let key = &plan.key;
        let rank = |name: &str, used: bool, value: u32| {
            if !used && value != NO_RANK {
                return Err(format!(
                    "names rank {value} as `{name}`, which a {} has not",
                    step.verb
                ));
            }
            if used && (value >= key.world || value == key.rank.0) {
                return Err(format!("`{name}` is {value}, not another rank of {}", key.world));
            }
            Ok(())
        };
        if step.verb == Verb::Fold {
            if step.from as usize >= plan.groups.len() {
                return Err(format!("group {} of {}", step.from, plan.groups.len()));
            }
        } else {
            rank("from", self.from, step.from)?;
        }
        rank("to", self.to, step.to)?;
        let names =
            |regions: &[Region]| regions.contains(&step.source) || regions.contains(&step.target);
        if names(&[Region::PeerInput, Region::PeerOutput]) && !plan.direct {
            return Err("needs peers' buffers in a plan that is not direct".into());
        }
        if names(&[Region::Stage, Region::PeerStage]) && plan.stage_chunks == 0 {
            return Err("needs stages in a plan that has none".into());
        }
        if matches!(step.verb, Verb::Post | Verb::Await) && !plan.has_phases() {
            return Err("needs phases in a plan for links of messages".into());
        }
        if step.source.is_peer() && step.target.is_peer() {
            return Err("both operands are the peer's".into());
        }
        Ok(())
    }
}

fn waits(step: &Step, plan: &Plan, index: usize) -> Result<(), String> {
    if step.wait_step == NO_STEP {
        return match step.wait_lane {
            0 => Ok(()),
            lane => Err(format!("waits for no step of lane {lane}")),
        };
    }
    let (lane, wait) = (usize::from(step.wait_lane), usize::from(step.wait_step));
    if lane >= plan.lanes() || wait >= plan.lane(lane).len() {
        return Err(format!("waits for lane {lane} step {wait}, which is not there"));
    }
    if step.wait_lane == step.lane && wait >= index {
        return Err("waits for itself or a later step of its own lane".into());
    }
    Ok(())
}

fn ranges(step: &Step, plan: &Plan) -> Result<(), String> {
    let message = step.sends() || step.receives() || step.verb == Verb::Fold;
    if step.chunks == 0 || message && step.chunks > plan.range_max {
        return Err(format!("a range of {} chunks, at most {}", step.chunks, plan.range_max));
    }
    let phase = matches!(step.verb, Verb::Post | Verb::Await);
    if phase && step.chunks != 1 {
        return Err("a phase has no range".into());
    }
    let inside = |region: Region, first: u32, owner: Rank| {
        let (input, output) = buffers(&plan.key, owner, plan.chunks);
        let len = match region {
            Region::Input | Region::PeerInput => input,
            Region::Output | Region::PeerOutput => output,
            Region::Work => plan.work_chunks,
            Region::Stage | Region::PeerStage => plan.stage_chunks,
            Region::None if first == 0 => return Ok(()),
            Region::None => return Err(format!("chunk {first} of no region")),
        };
        if u64::from(first) + u64::from(step.chunks) > u64::from(len) {
            let last = u64::from(first) + u64::from(step.chunks) - 1;
            return Err(format!("{}[{last}], but rank {owner} has {len}", region.name()));
        }
        Ok(())
    };
    let owner = |region: Region| {
        if region.is_peer() { Rank(step.from) } else { plan.key.rank }
    };
    if step.verb == Verb::Fold && step.source == Region::PeerStage {
        inside(Region::Input, step.source_chunk, plan.key.rank)?;
        inside(Region::Stage, step.source_chunk, plan.key.rank)?;
    } else if step.verb == Verb::Fold && step.source == Region::PeerInput {
        for &member in &plan.groups[step.from as usize] {
            inside(step.source, step.source_chunk, member)?;
            if step.has(flag::SPREAD) {
                inside(Region::PeerOutput, step.target_chunk, member)?;
            }
        }
    } else if !phase {
        inside(step.source, step.source_chunk, owner(step.source))?;
    }
    inside(step.target, step.target_chunk, owner(step.target))?;
    let apart = step.source_chunk.abs_diff(step.target_chunk);
    if step.source == step.target && apart != 0 && apart < step.chunks {
        return Err("source and target overlap without being the same".into());
    }
    Ok(())
}
