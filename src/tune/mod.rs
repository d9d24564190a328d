//! Which algorithm, tile and window a call gets, from facts all ranks agree on.
//!
//! Pure: the choice depends on the call's agreed values (collective, count, type, operation), the
//! world, the hosts, and settings taken from rank 0. So ranks cannot differ; should they all the
//! same, the hash in every message's head says so.
//!
//! The first that can do the call is taken:
//!
//! 1. the algorithm asked for;
//! 2. what rank 0's table of measured points says ([`table`]);
//! 3. between hosts of several ranks hierarchical, and between buffers that all can map direct:
//!    what these save no estimate knows;
//! 4. the one with the lowest estimate ([`cost`]).
//!
//! Whether a call is so small that it needs no plan is asked before all that ([`Tuner::route`]); a
//! row of the table that names an algorithm says that it does. The last few choices are kept, so
//! that a program that repeats its calls pays for neither.

mod choice;
mod cost;
pub mod table;

use std::sync::Arc;

use crate::algo::{self, Hosts};
use crate::call::Call;
use crate::engine::link::{FLAT_BYTES, STAGE_BYTES};
use crate::engine::{Choice, Planner, Reach, Route};
use crate::error::{Code, Error, Result};
use crate::plan::cache::Cache;
use crate::plan::{Algorithm, Key, Plan};
pub use crate::tune::choice::{Chosen, Reason};
use crate::tune::choice::{Question, Recent};
use crate::tune::table::{Pick, Row, Table};
use crate::types::{Collective, Rank, ReduceOp};

/// Up to here a rank reads all contributions to a small call, of all ranks together.
const FLAT_BYTES_ALL: u64 = 128 << 10;
/// Stages of one block of tiles: so many tiles, where they are long enough.
const STAGED_WINDOW: u64 = 4;
/// Input tiles of one fold together stay below this share of a typical second-level cache.
const FOLD_BYTES: u64 = 512 << 10;
/// Bytes of a message's head and rounding on a link, with some to spare.
const OVERHEAD: u64 = 128;
/// With several sockets at once tiles need not be longer than this. If there is only one, they had
/// better be up to four times as long (two ranks, 16 MiB: 12.7 ms instead of 15.5).
const SOCKET_TILE_BYTES: u64 = 64 << 10;
/// No tile shrinks below this.
const TILE_BYTES_MIN: u64 = 4 << 10;

/// What memory all ranks of a world can map of each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// None.
    Apart,
    /// What was allocated for it: whether a call's buffers are such, a meeting tells.
    Given,
    /// Everything: the ranks are threads of one process.
    All,
}

/// What a tuner knows of its communicator.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Own rank.
    pub rank: Rank,
    /// World size.
    pub world: u32,
    /// Host of each rank.
    pub hosts: Arc<Hosts>,
    /// Only plans in tree order.
    pub deterministic: bool,
    /// An algorithm asked for by the user.
    pub algorithm: Option<Algorithm>,
    /// Largest tile, in bytes on the wire.
    pub tile_bytes: u64,
    /// Tiles in flight.
    pub window: u64,
    /// Bytes every link takes on by itself.
    pub capacity: u64,
    /// What memory ranks can map of each other.
    pub memory: Memory,
    /// Measured points.
    pub table: Option<Arc<Table>>,
}

/// Chooses, and keeps the plans it has chosen.
#[derive(Debug)]
pub struct Tuner {
    facts: Facts,
    cache: Cache,
    /// The table's rows for this world.
    rows: Box<[Row]>,
    recent: Recent,
    chosen: Option<Chosen>,
}

impl Tuner {
    /// A tuner with an empty cache.
    #[must_use]
    pub fn new(facts: Facts) -> Self {
        let (ranks, hosts) = (facts.world, facts.hosts.count());
        let here = |row: &&Row| row.place.ranks == ranks && row.place.hosts as usize == hosts;
        let rows = facts.table.iter().flat_map(|table| table.rows()).filter(here).copied();
        Self {
            rows: rows.collect(),
            facts,
            cache: Cache::default(),
            recent: Recent::default(),
            chosen: None,
        }
    }

    /// Asks for `algorithm` from now on; every rank must, from the same call on.
    pub fn prefer(&mut self, algorithm: Option<Algorithm>) {
        self.facts.algorithm = algorithm;
        self.recent = Recent::default();
    }

    /// What was last chosen, if that was since this was last asked.
    pub fn take_chosen(&mut self) -> Option<Chosen> {
        self.chosen.take()
    }

    /// What it knows.
    #[must_use]
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// The plan for `call`: by the algorithm asked for where it applies, else by the best that
    /// does.
    ///
    /// # Errors
    /// No algorithm does it: a bug, since pairwise and binomial between them do everything.
    pub fn plan(&mut self, call: &Call, reach: Reach) -> Result<Arc<Plan>> {
        let question = Question::new(call, agreed_bytes(call), reach);
        if let Some(chosen) = self.recent.find(&question)
            && let Some(plan) = self.planned(call, chosen.algorithm)
        {
            self.chosen = Some(chosen);
            return Ok(plan);
        }
        for chosen in self.preference(call, reach) {
            if let Some(plan) = self.plan_by(chosen.algorithm, call, reach) {
                self.recent.keep(question, chosen);
                self.chosen = Some(chosen);
                return Ok(plan);
            }
        }
        let text = format!("no algorithm for {} on {}", call.collective, call.dtype);
        Err(Error::new(Code::Internal, text))
    }

    /// Algorithms from the best to the last resort.
    fn preference(&self, call: &Call, reach: Reach) -> impl Iterator<Item = Chosen> + use<> {
        use Algorithm as A;
        let facts = &self.facts;
        let of = |algorithm: Option<A>, reason| algorithm.map(|a| Chosen { algorithm: a, reason });
        let row = self.row(call, reach);
        let measured = row.and_then(|row| match row.pick {
            Pick::By(algorithm) => of(Some(algorithm), Reason::Table(row)),
            Pick::Model => None,
        });
        let hosts = facts.hosts.count();
        let levels = (hosts > 1 && hosts < facts.world as usize).then_some(A::Hierarchical);
        let mapped = (reach >= Reach::Buffers).then_some(A::Direct);
        let bytes = agreed_bytes(call);
        let estimate = |a: A| cost::estimate(facts, call.collective, a, bytes);
        let mut estimates = ESTIMATED.map(|a| (estimate(a).unwrap_or(u64::MAX), a));
        // Stable: of equals the first.
        estimates.sort_by_key(|&(time, _)| time);
        let known = estimates.into_iter().filter(|&(time, _)| time < u64::MAX);
        let first = [
            of(facts.algorithm, Reason::Asked),
            measured,
            of(mapped, Reason::Mapped),
            of(levels, Reason::Levels),
        ];
        first.into_iter().flatten().chain(
            known.map(|(time, algorithm)| Chosen { algorithm, reason: Reason::Estimate(time) }),
        )
    }

    /// What the table says of such calls.
    #[must_use]
    pub fn row(&self, call: &Call, reach: Reach) -> Option<Row> {
        let mut rows = self.rows.iter();
        let here = |row: &&Row| row.place.collective == call.collective && row.place.reach == reach;
        // Most communicators have no rows.
        let bytes = if self.rows.is_empty() { 0 } else { agreed_bytes(call) };
        rows.find(|row| here(row) && bytes <= row.bytes).copied()
    }

    /// Whether the table says that a small call had better have a plan.
    fn planned_though_small(&self, call: &Call) -> bool {
        let reach = match self.facts.memory {
            Memory::Apart => Reach::Messages,
            // What is mapped of a call is known only after a meeting, which costs as much.
            Memory::Given => Reach::Stages,
            Memory::All => Reach::Buffers,
        };
        self.row(call, reach).is_some_and(|row| matches!(row.pick, Pick::By(_)))
    }

    /// The algorithms that can carry out `call` here: any of them is what [`Tuner::plan`] takes
    /// when it is asked for.
    pub fn able(&mut self, call: &Call, reach: Reach) -> Vec<Algorithm> {
        let all = Algorithm::ALL.iter().copied();
        all.filter(|&algorithm| self.plan_by(algorithm, call, reach).is_some()).collect()
    }

    /// The plan for `call` by `algorithm`, if it applies.
    fn plan_by(&mut self, algorithm: Algorithm, call: &Call, reach: Reach) -> Option<Arc<Plan>> {
        let reached = match algorithm {
            Algorithm::Direct => reach >= Reach::Buffers,
            Algorithm::Staged => reach >= Reach::Stages,
            _ => true,
        };
        if !reached || !self.allowed(algorithm, call) {
            return None;
        }
        let plan = self.planned(call, algorithm)?;
        let able = match plan.stage_chunks {
            0 => plan.direct || self.fits(&plan),
            chunks => staged_tile(&self.facts, chunks, call.dtype.bytes() as u64).is_some(),
        };
        able.then_some(plan)
    }

    /// Whether a call is so small that ranks had better show all they contribute at once.
    fn flat(&self, call: &Call) -> bool {
        use Collective as C;
        let (bytes, world) = (agreed_bytes(call), u64::from(self.facts.world));
        let all = bytes.saturating_mul(world);
        // What a rank shows, and what one reads.
        let (shown, read) = match call.collective {
            C::AllReduce | C::Reduce | C::AllGather | C::Gather => (bytes, all),
            C::ReduceScatter | C::AllToAll => (all, all),
            C::Scatter => (all, bytes),
            C::Barrier => (0, 0),
            _ => (bytes, bytes),
        };
        let factors = call.collective.reduces() && call.op == ReduceOp::PreMulSum;
        !factors && shown <= FLAT_BYTES as u64 && read <= FLAT_BYTES_ALL
    }

    /// Whether it pays to ask whether all ranks' buffers can be mapped.
    fn worth_meeting(&self, call: &Call) -> bool {
        self.facts.algorithm == Some(Algorithm::Direct)
            || agreed_bytes(call) > 0
            || call.collective == Collective::Barrier
    }

    /// Whether the links take `window + 1` tiles of the plan's longest messages, the tiles of one
    /// element: with less room ranks could wait for each other's links for ever.
    fn fits(&self, plan: &Plan) -> bool {
        let facts = &self.facts;
        let element = 16;
        (facts.window + 1) * u64::from(plan.range_max) * (OVERHEAD + element) <= facts.capacity
    }

    fn allowed(&self, algorithm: Algorithm, call: &Call) -> bool {
        let facts = &self.facts;
        let tree_order =
            || algo::ordered(algorithm, call.collective, facts.world, Some(&facts.hosts));
        algo::offers(algorithm, call.collective)
            && (!call.collective.reduces() || !facts.deterministic || tree_order())
            && (!matches!(algorithm, Algorithm::Direct | Algorithm::Staged) || directly(call))
            && (!call.in_place_all_to_all() || algo::in_place(algorithm, call.collective))
    }

    /// The plan by `algorithm`, from the cache if it was made before.
    fn planned(&mut self, call: &Call, algorithm: Algorithm) -> Option<Arc<Plan>> {
        let has_root = call.collective.rooted();
        let key = Key {
            collective: call.collective,
            algorithm,
            world: self.facts.world,
            rank: self.facts.rank,
            root: if has_root { call.root } else { Rank(0) },
            prepared: call.collective.reduces() && call.op == ReduceOp::PreMulSum,
        };
        let hosts = &self.facts.hosts;
        self.cache.get_or_make(&key, || algo::plan(&key, Some(hosts))).cloned()
    }
}

impl Planner for Tuner {
    fn route(&self, call: &Call) -> Route {
        use Algorithm as A;
        let Facts { memory, algorithm, world, .. } = self.facts;
        let free = |a: A| algorithm.is_none_or(|asked| asked == a) && self.allowed(a, call);
        if memory == Memory::Apart || world == 1 {
            Route::Links
        } else if algorithm.is_none() && self.flat(call) && !self.planned_though_small(call) {
            Route::Flat
        } else if free(A::Direct) && (memory == Memory::All || self.worth_meeting(call)) {
            Route::Meet
        } else if free(A::Staged) {
            Route::Staged
        } else {
            Route::Links
        }
    }

    fn choose(&mut self, call: &Call, reach: Reach) -> Result<Choice> {
        let plan = self.plan(call, reach)?;
        let reduces = call.collective.reduces();
        let wire = if reduces { call.dtype.accumulator() } else { call.dtype }.bytes() as u64;
        let folds = plan.key.algorithm == Algorithm::Pairwise && reduces;
        let staged = staged_tile(&self.facts, plan.stage_chunks, call.dtype.bytes() as u64);
        let (tile, window) = if plan.direct {
            (u64::MAX / 2 / u64::from(self.facts.world), 1)
        } else if let Some(staged) = staged {
            staged
        } else {
            (tile_elements(&self.facts, u64::from(plan.range_max), wire, folds), self.facts.window)
        };
        let number = u64::from(plan.key.algorithm as u8);
        #[expect(clippy::cast_possible_truncation, reason = "a hash")]
        let hash = (number << 56 ^ window << 48 ^ tile).wrapping_mul(0x9e37_79b9_7f4a_7c15) as u32;
        Ok(Choice { plan, tile, window, hash })
    }
}

/// The call's size as every rank sees it: of the buffer or block; of all blocks where counts
/// differ; endless where only two ranks know.
fn agreed_bytes(call: &Call) -> u64 {
    use Collective as C;
    let elements = match call.collective {
        C::AllGatherV | C::ReduceScatterV => {
            call.recv_blocks.counts.iter().copied().fold(0, u64::saturating_add)
        }
        C::GatherV | C::ScatterV | C::AllToAllV => u64::MAX,
        _ => call.count,
    };
    elements.saturating_mul(call.dtype.bytes() as u64)
}

/// Whether peers know enough to use each other's buffers: not the factors of `pre_mul_sum`, nor
/// where the root of scatter_v keeps their blocks.
fn directly(call: &Call) -> bool {
    let factors = call.collective.reduces() && call.op == ReduceOp::PreMulSum;
    !factors && call.collective != Collective::ScatterV
}

/// Elements of a tile such that `window + 1` messages of `range` tiles fit every link, heads and
/// rounding included.
fn tile_elements(facts: &Facts, range: u64, element: u64, folds: bool) -> u64 {
    let room = (facts.capacity / (facts.window + 1)).saturating_sub(OVERHEAD * range);
    let share = FOLD_BYTES / u64::from(facts.world);
    let cache = match facts.memory {
        _ if folds => share.max(TILE_BYTES_MIN),
        Memory::Apart => share.max(SOCKET_TILE_BYTES),
        Memory::Given | Memory::All => u64::MAX,
    };
    let bytes = facts.tile_bytes.min(cache).min(room / range);
    let elements = (bytes / element).max(1);
    if elements >= 64 { elements / 64 * 64 } else { elements }
}

/// Tile, in elements, and window with which `chunks` chunks a tile fit a rank's stages; `None` for
/// no chunks or too many.
fn staged_tile(facts: &Facts, chunks: u32, element: u64) -> Option<(u64, u64)> {
    let room = STAGE_BYTES as u64 / element;
    let most = facts.tile_bytes / element;
    let tile = |window| {
        let tile = room.checked_div(u64::from(chunks) * window)?.min(most);
        let tile = if tile >= 64 { tile / 64 * 64 } else { tile };
        (tile > 0).then_some((tile, window))
    };
    tile(STAGED_WINDOW).or_else(|| tile(1))
}

/// Algorithms that have estimates; of equal ones the first is taken.
const ESTIMATED: [Algorithm; 8] = [
    Algorithm::Staged,
    Algorithm::Doubling,
    Algorithm::Binomial,
    Algorithm::Pairwise,
    Algorithm::Ring,
    Algorithm::Halving,
    Algorithm::Bruck,
    Algorithm::Tree,
];

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
