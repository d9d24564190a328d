//! Proves the plans of a whole world: every Output ends with what the collective is defined to
//! give, in every schedule, on links with few slots, in place or not.
//!
//! Three passes. `structure` looks at each step alone. `values` runs all lanes of all ranks with
//! symbolic values (`expr`) and vector clocks (`order`): nothing is counted twice, rounded early or
//! left out, and no two accesses to one place depend on luck. `flow` runs them over links with the
//! least room that the engine guarantees, with windows of 1, 2 and 3 tiles, long enough for lanes
//! to run far ahead of each other, in several orders: nobody may get stuck.
//!
//! The engine as it is modelled: links take a window and one message by themselves; more waits in
//! outboxes. A lane begins a block of tiles only when nothing that it posted waits; a step that
//! settles runs only when nothing waits that reads what it writes; a fused step only when nothing
//! waits in front of its link. What an engine may do besides, and no right plan minds: deliver from
//! an outbox early or late; run a step whose target is what it sends as a forward or as a post;
//! hold a lane at the start of a block until all that it posted has been received. Messages without
//! elements are not sent after the first tile: no plan may count on them for order, which small
//! worlds show.
//!
//! Stages are modelled as the least they may be: two blocks of tiles that outlive the call. What
//! [`super`] asks of a plan so that no call writes over what another still loads is checked too.
//!
//! Worlds of up to 128 ranks. Not here: links, time, real data.

mod expr;
mod flow;
mod memory;
mod order;
mod places;
mod structure;
#[cfg(test)]
mod tests;
pub(in crate::plan) mod trace;
mod values;

use std::fmt;

use self::expr::Exprs;
use self::flow::{Flow, Order, Schedule};
use self::places::{Places, Shape};
use self::values::Values;
use super::{Plan, Step};
use crate::types::{Collective, Rank};

pub(in crate::plan) use self::structure::buffers;

/// How thoroughly to check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Tiles to run when values are watched, at least 1. More than `window`, so that scratch is
    /// used again. Direct plans run with one.
    pub tiles: u32,
    /// Tiles in flight then, at least 1.
    pub window: u32,
    /// Whether to check the call in place as well. Direct all_to_all is not offered in place and is
    /// left out by itself.
    pub in_place: bool,
    /// Runs without values, in which lanes may run ahead. Three are one with each window.
    pub runs: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { tiles: 3, window: 2, in_place: true, runs: RUNS.len() }
    }
}

impl Options {
    /// Thorough for small worlds, fewer runs for large ones.
    #[must_use]
    pub fn for_world(world: usize) -> Self {
        let runs = match world {
            0..=16 => RUNS.len(),
            17..=32 => 5,
            _ => 3,
        };
        Self { runs, ..Self::default() }
    }
}

/// A schedule that settles late, when others have posted all they can.
const fn late(order: Order, post_copies: bool, slow_links: bool) -> Schedule {
    Schedule { order, settle_last: true, post_copies, slow_links }
}

/// Runs without values, the most telling in front: how many tiles are in flight, and the order.
const RUNS: [(u32, Schedule); 8] = [
    (2, late(Order::Descending, true, false)),
    (1, late(Order::Shuffled(0x5eed_0001), true, true)),
    (3, late(Order::Ascending, true, true)),
    (2, late(Order::Shuffled(0x5eed_0002), true, true)),
    (2, late(Order::Ascending, false, false)),
    (1, late(Order::Descending, false, false)),
    (3, late(Order::Shuffled(0x5eed_0003), false, false)),
    (2, Schedule { settle_last: false, ..late(Order::Descending, true, false) }),
];

/// The largest worlds that are also run with chunks that have no elements in the last tile.
const SHORT_WORLD_MAX: usize = 24;

/// Tiles of a run without values: enough for a lane to be blocks ahead of what links take.
const fn tiles_ahead(window: u32) -> u32 {
    3 * window + 2
}

/// What is known of plans that passed. Counts are of one tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof {
    /// Every reduced result is the balanced tree over the ranks, operands in rank order. True where
    /// nothing is reduced.
    pub ordered: bool,
    /// Messages of all ranks.
    pub messages: u32,
    /// Chunks sent by the rank that sends most; in direct plans, loaded from and stored to peers.
    pub sent_max: u32,
    /// The longest chain of messages (or phases) that depend on each other.
    pub rounds: u32,
    /// Steps of the longest plan.
    pub steps_max: usize,
}

/// Which step of which rank, on which tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Site {
    /// The rank.
    pub rank: Rank,
    /// The lane.
    pub lane: usize,
    /// The index of the step inside the lane.
    pub index: usize,
    /// The tile.
    pub tile: u32,
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rank, lane, index, tile } = self;
        write!(f, "rank {rank} lane {lane} step {index} tile {tile}")
    }
}

/// What is wrong with plans, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flaw {
    /// The rank concerned.
    pub rank: Rank,
    /// The step, where one is to blame.
    pub step: Option<(Site, Step)>,
    /// What is wrong.
    pub what: String,
}

impl Flaw {
    fn of_rank(rank: Rank, what: String) -> Self {
        Self { rank, step: None, what }
    }

    fn at(site: Site, step: &Step, what: String) -> Self {
        Self { rank: site.rank, step: Some((site, *step)), what }
    }
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.step {
            Some((site, step)) => write!(f, "{site}: {step}: {}", self.what),
            None => write!(f, "rank {}: {}", self.rank, self.what),
        }
    }
}

impl std::error::Error for Flaw {}

/// Proves the plans of all ranks of a world, ordered by rank, or says what is wrong with them.
///
/// # Errors
/// The first flaw found.
pub fn check(plans: &[Plan], options: Options) -> Result<Proof, Flaw> {
    shaped(plans)?;
    let first = &plans[0];
    let tiles = if first.direct { 1 } else { options.tiles.max(1) };
    let window = options.window.clamp(1, tiles);
    // Two blocks use stages in turn: a third shows whether the first has done.
    let tiles = if first.stage_chunks > 0 { tiles.max(2 * window + 1) } else { tiles };
    let plain = Schedule {
        order: Order::Ascending,
        settle_last: false,
        post_copies: false,
        slow_links: false,
    };
    let chunks = plans.iter().map(|p| buffers(&p.key, p.key.rank, p.chunks).0).max().unwrap_or(1);
    let mut exprs = Exprs::new(first.key.world, chunks.max(1));
    let all_to_all = matches!(first.key.collective, Collective::AllToAll | Collective::AllToAllV);
    let offered = options.in_place && !(first.direct && all_to_all);
    let mut proof = None;
    for in_place in [false, true] {
        if in_place && !offered {
            continue;
        }
        let places = Places::new(plans, Shape::of(plans, (tiles, window), in_place));
        let mut values = Values::new(plans, &places, &mut exprs);
        let told = |flaw: Flaw| {
            let place = if in_place { " (in place)" } else { "" };
            Flaw { what: flaw.what + place, ..flaw }
        };
        Flow::new(plans, &places, window + 1, plain).run(&mut values).map_err(told)?;
        let ordered = values.finished().map_err(told)?;
        proof.get_or_insert_with(|| Proof {
            ordered,
            messages: values.cost.messages,
            sent_max: values.cost.sent.iter().copied().max().unwrap_or(0),
            rounds: values.cost.rounds,
            steps_max: plans.iter().map(|p| p.steps.len()).max().unwrap_or(0),
        });
    }
    if plans.len() <= SHORT_WORLD_MAX {
        let places = Places::new(plans, Shape::of(plans, (tiles, window), offered));
        let full = plans[0].chunks.max(first.key.world) / 2;
        for full in [1, full.max(1)] {
            let mut values = Values::new(plans, &places, &mut exprs).short(full);
            let told = |flaw: Flaw| Flaw { what: flaw.what + " (with empty chunks)", ..flaw };
            Flow::new(plans, &places, window + 1, plain).run(&mut values).map_err(told)?;
        }
    }
    for &(window, schedule) in RUNS.iter().take(options.runs) {
        let tiles = if first.direct { 1 } else { tiles_ahead(window) };
        // In place more memory is shared, so steps that settle wait for more.
        let places = Places::new(plans, Shape::of(plans, (tiles, window), offered));
        Flow::new(plans, &places, window + 1, schedule).run(&mut ())?;
    }
    Ok(proof.expect("the plans were run at least once"))
}

/// Whether every step is sound by itself, and the plans are made for one call.
pub(in crate::plan) fn shaped(plans: &[Plan]) -> Result<(), Flaw> {
    if plans.is_empty() {
        return Err(Flaw::of_rank(Rank(0), "a world of no ranks".into()));
    }
    structure::world(plans)?;
    plans.iter().try_for_each(structure::plan)
}
