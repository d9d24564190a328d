//! Which algorithm, tile and window a call gets, from facts all ranks agree on.
//!
//! Pure: the choice depends on the call's agreed values (collective, count, type, operation), the
//! world, the hosts, and settings taken from rank 0. So ranks cannot differ; should they all the
//! same, the hash in every message's head says so.

use std::sync::Arc;

use crate::algo::{self, Hosts};
use crate::call::Call;
use crate::engine::link::{FLAT_BYTES, STAGE_BYTES};
use crate::engine::{Choice, Planner, Reach, Route};
use crate::error::{Code, Error, Result};
use crate::plan::cache::Cache;
use crate::plan::{Algorithm, Key, Plan};
use crate::types::{Collective, Rank, ReduceOp};

/// Up to here whole buffers travel (latency counts); above, parts (bytes count).
const SMALL_BYTES: u64 = 16 << 10;
/// Up to here a rank reads all contributions to a small call, of all ranks together.
const FLAT_BYTES_ALL: u64 = 128 << 10;
/// Stages of one block of tiles: so many tiles, where they are long enough.
const STAGED_WINDOW: u64 = 4;
/// Up to here blocks of all_gather and all_to_all are stored and forwarded on large worlds.
const BRUCK_BYTES: u64 = 1 << 10;
/// From here on the ring's n - 1 hops cost less than owners reading n links at once.
const RING_WORLD: u32 = 16;
/// Input tiles of one fold together stay below this share of a typical second-level cache.
const FOLD_BYTES: u64 = 512 << 10;
/// Bytes of a message's head and rounding on a link, with some to spare.
const OVERHEAD: u64 = 128;
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
}

/// What was chosen for a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// How it is carried out.
    pub algorithm: Algorithm,
}

/// Chooses, and keeps the plans it has chosen.
#[derive(Debug)]
pub struct Tuner {
    facts: Facts,
    cache: Cache,
    chosen: Option<Chosen>,
}

impl Tuner {
    /// A tuner with an empty cache.
    #[must_use]
    pub fn new(facts: Facts) -> Self {
        Self { facts, cache: Cache::default(), chosen: None }
    }

    /// Asks for `algorithm` from now on; every rank must, from the same call on.
    pub fn prefer(&mut self, algorithm: Option<Algorithm>) {
        self.facts.algorithm = algorithm;
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
        let asked = self.facts.algorithm;
        let candidates = asked.into_iter().chain(preference(call, &self.facts, reach));
        for algorithm in candidates {
            if let Some(plan) = self.plan_by(algorithm, call, reach) {
                return Ok(plan);
            }
        }
        let text = format!("no algorithm for {} on {}", call.collective, call.dtype);
        Err(Error::new(Code::Internal, text))
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
        } else if algorithm.is_none() && self.flat(call) {
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
        self.chosen = Some(Chosen { algorithm: plan.key.algorithm });
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
    let cache = if folds { share.max(TILE_BYTES_MIN) } else { u64::MAX };
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

/// Algorithms from the best to the last resort.
fn preference(call: &Call, facts: &Facts, reach: Reach) -> impl Iterator<Item = Algorithm> + use<> {
    use Algorithm as A;
    use Collective as C;
    let bytes = agreed_bytes(call);
    let small = bytes <= SMALL_BYTES;
    let wide_world = facts.world > RING_WORLD;
    let hosts = facts.hosts.count();
    let levels = hosts > 1 && hosts < facts.world as usize;
    let best: &'static [A] = match call.collective {
        C::AllReduce if small => &[A::Doubling, A::Pairwise],
        C::AllReduce if wide_world => &[A::Ring, A::Halving, A::Pairwise],
        C::Reduce | C::Broadcast if small => &[A::Binomial, A::Pairwise],
        C::Broadcast if facts.world == 2 => &[A::Binomial],
        C::AllGather | C::AllToAll if bytes <= BRUCK_BYTES && facts.world > 4 => {
            &[A::Bruck, A::Pairwise]
        }
        C::AllGather if wide_world => &[A::Ring, A::Pairwise],
        C::ReduceScatter if wide_world => &[A::Ring, A::Halving, A::Pairwise],
        C::Barrier => &[A::Doubling, A::Binomial],
        _ => &[A::Pairwise],
    };
    ((reach >= Reach::Buffers).then_some(A::Direct).into_iter())
        .chain((reach >= Reach::Stages).then_some(A::Staged))
        .chain(levels.then_some(A::Hierarchical))
        .chain(best.iter().copied())
        .chain([A::Pairwise, A::Binomial, A::Ring])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Dtype;

    fn tuner(world: u32, deterministic: bool, algorithm: Option<Algorithm>) -> Tuner {
        let hosts = Hosts::new(&vec![0; world as usize]).expect("a world");
        Tuner::new(Facts {
            rank: Rank(0),
            world,
            hosts: Arc::new(hosts),
            deterministic,
            algorithm,
            tile_bytes: 64 << 10,
            window: 2,
            capacity: 256 << 10,
            memory: Memory::Given,
        })
    }

    #[test]
    fn an_algorithm_that_is_able_is_taken_when_asked_for_and_no_other() {
        for &collective in Collective::ALL.iter().filter(|c| !c.point_to_point()) {
            for (world, deterministic) in
                [(1, false), (2, true), (6, false), (6, true), (1024, false)]
            {
                for reach in [Reach::Messages, Reach::Stages, Reach::Buffers] {
                    let call = Call { count: 1, ..Call::new(collective, Dtype::F32) };
                    let able = tuner(world, deterministic, None).able(&call, reach);
                    assert!(!able.is_empty(), "{collective} by {world}");
                    for &asked in Algorithm::ALL {
                        let plan = tuner(world, deterministic, Some(asked)).plan(&call, reach);
                        let taken = plan.expect("a plan").key.algorithm == asked;
                        assert_eq!(taken, able.contains(&asked), "{asked:?} {collective} {world}");
                    }
                }
            }
        }
    }

    #[test]
    fn ranks_that_ask_for_direct_meet_whatever_the_size() {
        let call = Call { count: 1, ..Call::new(Collective::AllReduce, Dtype::F32) };
        assert_eq!(tuner(4, false, None).route(&call), Route::Flat);
        assert_eq!(tuner(4, false, Some(Algorithm::Direct)).route(&call), Route::Meet);
        assert_eq!(tuner(4, false, Some(Algorithm::Staged)).route(&call), Route::Staged);
        assert_eq!(tuner(4, false, Some(Algorithm::Ring)).route(&call), Route::Links);
    }
}
