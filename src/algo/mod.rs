//! Every collective as a plan: pure functions from collective, algorithm, world, rank and root.
//!
//! One file per algorithm. Each is written over a team (an ascending list of ranks), so that
//! `hierarchical` can run it inside a host or between hosts. [`plan`] is the only door; which
//! algorithm to take is not decided here, and neither tiles nor sizes nor links are known here.
//!
//! What holds in all of them:
//!
//! - Contributions travel as they are; partial results travel wide and stand in `Work`; the last
//!   combination writes `Output` with the finish stage; finished results travel as they are.
//! - `Work` belongs to one lane. What only passes finished results on has lanes of its own, so that
//!   it overlaps with the reduction of later tiles.
//! - Sends rotate (rank r begins with r + 1), so that no rank is everyone's first target.
//! - Every plan is right in place, but for [`in_place`].
//!
//! The checker proves each plan for whole worlds; the tests assert the costs in the files' headers.

mod binomial;
mod bruck;
mod direct;
mod doubling;
mod halving;
mod hierarchical;
mod pairwise;
mod ring;
mod staged;
#[cfg(test)]
mod tests;
mod tree;

use crate::plan::build::{Builder, StepId};
use crate::plan::{Algorithm, Key, Plan, Region, Step, flag};
use crate::types::{Collective, Rank, WORLD_MAX};

/// The plan of one rank, or `None` when the algorithm does not do that collective, world or root.
///
/// `hosts` matters to [`Algorithm::Hierarchical`] alone, which needs it (of the key's world). Every
/// rank of the call must ask with the same arguments but for the rank (and, in send and recv, the
/// collective and the root).
#[must_use]
pub fn plan(key: &Key, hosts: Option<&Hosts>) -> Option<Plan> {
    let n = key.world;
    let sane = n > 0 && n <= WORLD_MAX && key.rank.0 < n && key.root.0 < n;
    let plainly = matches!(key.algorithm, Algorithm::Direct | Algorithm::Staged);
    let loads = key.prepared && (!key.collective.reduces() || plainly);
    if !sane || loads || !offers(key.algorithm, key.collective) {
        return None;
    }
    if key.algorithm == Algorithm::Hierarchical && hosts.is_none_or(|h| h.world() != n) {
        return None;
    }
    if n == 1 {
        return alone(key);
    }
    let ranks: Box<[Rank]> = (0..n).map(Rank).collect();
    let team = Team { ranks: &ranks, me: key.rank.index() };
    let b = match key.algorithm {
        Algorithm::Ring => ring::plan(key, team),
        Algorithm::Binomial => binomial::plan(key, team),
        Algorithm::Tree => tree::plan(key, team),
        Algorithm::Doubling => doubling::plan(key, team),
        Algorithm::Halving => halving::plan(key, team),
        Algorithm::Pairwise => pairwise::plan(key, team),
        Algorithm::Direct => direct::plan(key, team),
        Algorithm::Staged => staged::plan(key, team),
        Algorithm::Bruck => bruck::plan(key, team),
        Algorithm::Hierarchical => hierarchical::plan(key, hosts?),
    };
    Some(b?.finish())
}

/// Whether `algorithm` does `collective` in some world.
///
/// Where it does, it does so in every world, with these exceptions: doubling all_gather and halving
/// reduce_scatter need a power of two, Bruck all_to_all goes up to [`BRUCK_WORLD_MAX`], send and
/// recv need a peer, direct and staged know no `prepared`, and hierarchical refuses hosts so
/// unequal that its plan would outgrow its limits.
#[must_use]
pub fn offers(algorithm: Algorithm, collective: Collective) -> bool {
    use Algorithm as A;
    use Collective as C;
    match collective {
        C::AllReduce => algorithm != A::Bruck,
        C::Reduce => !matches!(algorithm, A::Doubling | A::Halving | A::Bruck),
        C::Broadcast => !matches!(algorithm, A::Doubling | A::Halving | A::Bruck),
        C::AllGather | C::AllGatherV => !matches!(algorithm, A::Binomial | A::Tree | A::Halving),
        C::ReduceScatter | C::ReduceScatterV => {
            !matches!(algorithm, A::Binomial | A::Tree | A::Doubling | A::Bruck)
        }
        C::Gather | C::Scatter => {
            matches!(algorithm, A::Binomial | A::Pairwise | A::Direct | A::Staged)
        }
        C::GatherV | C::ScatterV => matches!(algorithm, A::Pairwise | A::Direct),
        C::AllToAll => matches!(algorithm, A::Pairwise | A::Bruck | A::Direct | A::Staged),
        C::AllToAllV | C::Send | C::Recv => algorithm == A::Pairwise,
        C::Barrier => matches!(algorithm, A::Binomial | A::Doubling | A::Direct),
    }
}

/// Whether the result of a reduction is in the tree order over ranks, so that its bits depend on
/// inputs and rank numbers alone. `hosts` as in [`plan`].
#[must_use]
pub fn ordered(
    algorithm: Algorithm,
    collective: Collective,
    world: u32,
    hosts: Option<&Hosts>,
) -> bool {
    if !offers(algorithm, collective) || !collective.reduces() {
        return false;
    }
    match algorithm {
        Algorithm::Ring | Algorithm::Tree => world <= 2,
        Algorithm::Hierarchical => world == 1 || hosts.is_some_and(Hosts::nest),
        _ => true,
    }
}

/// Whether the plan is right when the call is in place. All are, but for direct all_to_all, where a
/// rank's output would grow over the input that others still load.
#[must_use]
pub fn in_place(algorithm: Algorithm, collective: Collective) -> bool {
    !(algorithm == Algorithm::Direct && collective == Collective::AllToAll)
}

/// The largest world of Bruck's all_to_all: its packing takes n/2 log n steps.
pub const BRUCK_WORLD_MAX: u32 = 4096;

/// Which ranks share a host. Hosts are numbered in the order of their first ranks.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Hosts {
    of_rank: Box<[u32]>,
    members: Box<[Box<[Rank]>]>,
}

impl Hosts {
    /// Ranks with equal `marks` share a host; the marks mean nothing else.
    ///
    /// `None` for no ranks, or for more than [`WORLD_MAX`].
    #[must_use]
    pub fn new(marks: &[u32]) -> Option<Self> {
        if marks.is_empty() || marks.len() > WORLD_MAX as usize {
            return None;
        }
        let mut numbers = std::collections::HashMap::new();
        let mut members: Vec<Vec<Rank>> = Vec::new();
        let mut of_rank = Vec::with_capacity(marks.len());
        for (r, mark) in marks.iter().enumerate() {
            let host = *numbers.entry(*mark).or_insert(members.len());
            if host == members.len() {
                members.push(Vec::new());
            }
            members[host].push(Rank::at(r));
            of_rank.push(small(host));
        }
        Some(Self {
            of_rank: of_rank.into(),
            members: members.into_iter().map(Into::into).collect(),
        })
    }

    /// Number of ranks.
    #[must_use]
    pub fn world(&self) -> u32 {
        small(self.of_rank.len())
    }

    /// Number of hosts.
    #[must_use]
    pub fn count(&self) -> usize {
        self.members.len()
    }

    /// The host of `rank`.
    #[must_use]
    pub fn of(&self, rank: Rank) -> usize {
        self.of_rank[rank.index()] as usize
    }

    /// The ranks of `host`, ascending.
    #[must_use]
    pub fn members(&self, host: usize) -> &[Rank] {
        &self.members[host]
    }

    /// Whether folding each host in tree order, then the hosts' results in tree order, is the tree
    /// order over all ranks. So it is for one host, and for hosts of consecutive ranks and one
    /// power-of-two size (the last may be smaller).
    #[must_use]
    pub fn nest(&self) -> bool {
        fn nests(hosts: &[Box<[Rank]>]) -> bool {
            if hosts.len() == 1 {
                return true;
            }
            let ranks: usize = hosts.iter().map(|h| h.len()).sum();
            let (left, right) = hosts.split_at(split(hosts.len()));
            let left_ranks: usize = left.iter().map(|h| h.len()).sum();
            left_ranks == split(ranks) && nests(left) && nests(right)
        }
        self.of_rank.is_sorted() && nests(&self.members)
    }
}

/// Some ranks in ascending order, and the own index among them.
#[derive(Clone, Copy, Debug)]
struct Team<'a> {
    ranks: &'a [Rank],
    me: usize,
}

impl<'a> Team<'a> {
    const fn len(self) -> usize {
        self.ranks.len()
    }

    /// The index `steps` after the own one, around the ring.
    const fn after(self, steps: usize) -> usize {
        (self.me + steps) % self.len()
    }

    /// The index `steps` before the own one, around the ring; `steps` is at most the length.
    const fn before(self, steps: usize) -> usize {
        (self.me + self.len() - steps) % self.len()
    }

    /// The other members' indices, rotated: first the next one.
    fn others(self) -> impl Iterator<Item = usize> + use<'a> {
        (1..self.len()).map(move |i| self.after(i))
    }

    /// The other members' indices in the order in which their rotated sends reach this one.
    fn senders(self) -> impl Iterator<Item = usize> + use<'a> {
        (1..self.len()).map(move |i| self.before(i))
    }
}

/// A chunk number. Worlds are bounded, so it fits.
fn small(index: usize) -> u32 {
    u32::try_from(index).expect("chunk numbers fit u32")
}

/// Where the tree over `n` operands, at least two, splits: the largest power of two below `n`.
const fn split(n: usize) -> usize {
    n.next_power_of_two() / 2
}

/// Whether the plan's own contribution is wide.
fn prepared(b: &Builder) -> bool {
    b.key().prepared
}

/// Posts chunks of this rank's contribution.
fn send_contribution(b: &mut Builder, to: Rank, chunk: u32, chunks: u32) {
    let step = Step::send(to, b.contribution(), chunk).over(chunks);
    let wide = prepared(b);
    b.push(0, step.wide(wide));
}

/// A partial result on its way to where it is combined.
#[derive(Clone, Copy)]
struct Incoming {
    from: Rank,
    /// A bare contribution travels as it is; everything else, wide.
    wide: bool,
    /// It comes from lower ranks than `source`.
    first: bool,
}

impl Incoming {
    /// `step`, which takes this message, with the flags that say so.
    const fn mark(self, step: Step) -> Step {
        let first = if self.first { flag::INCOMING_FIRST } else { 0 };
        step.wide(self.wide).with(first)
    }
}

/// The last step of lane 0, which must have one.
fn last_step(b: &Builder) -> StepId {
    b.last(0).expect("lane 0 has steps")
}

/// Lane 0: `target` = `source` combined with the message; what goes to Output is finished.
fn combine(
    b: &mut Builder,
    message: Incoming,
    source: (Region, u32),
    target: (Region, u32),
    chunks: u32,
) -> StepId {
    let finish = if target.0 == Region::Output { flag::FINISH } else { 0 };
    let step = Step::recv_reduce(message.from, source, target);
    b.push(0, message.mark(step).over(chunks).with(finish))
}

/// The message, combined with `source`, goes on to `to`.
const fn pass_on(message: Incoming, source: (Region, u32), to: Rank) -> Step {
    message.mark(Step::recv_reduce_send(message.from, source, to))
}

/// A world of one: the result is the own input.
fn alone(key: &Key) -> Option<Plan> {
    if key.collective.point_to_point() {
        return None;
    }
    let mut b = Builder::new(key.clone(), 1);
    if key.collective.reduces() {
        b.load(1);
        let step = Step::copy((b.contribution(), 0), (Region::Output, 0));
        b.push(0, step.with(flag::FINISH));
    } else if key.collective != Collective::Barrier {
        b.push(0, Step::copy((Region::Input, 0), (Region::Output, 0)));
    }
    Some(b.finish())
}
