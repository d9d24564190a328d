//! Recursive doubling: exchanges with partners at distance 1, 2, 4 and so on.
//!
//! All_reduce in tree order for every world: n is cut into blocks of descending powers of two, A,
//! B, C (11 = 8 + 2 + 1). Each block doubles inside, so all its ranks know its total. The tree
//! wants `A + (B + C)`: while A is still doubling, the later blocks' totals come to its lowest
//! ranks just as they get ready, are combined there from the right, and spread over A by doubling,
//! too. In the end each rank of A combines both and hands the result to at most one later rank.
//!
//! ```text
//! 11 ranks        round 0        round 1          round 2          round 3       round 4
//! A = 0..8      x <-> x^1      x <-> x^2        x <-> x^4
//! B = 8,9         8 <-> 9     8->0, 9->1 +C
//! C = 10         10 -> 0       0 -> 1 (C)     0->2, 1->3 (B+C)  0..4 -> 4..8   0,1,2 -> 8,9,10
//! ```
//!
//! | collective | messages sent, l = floor(log2 n) | moved per rank | hops |
//! |---|---|---|---|
//! | all_reduce, power of two | l | the buffer l times | l |
//! | all_reduce, else | at most 2l + 1 | the buffer at most 2l + 1 times | l + 2 |
//! | all_gather, power of two only | l | n-1 of n blocks | l |
//! | barrier (dissemination, Hensgen et al. 1988) | ceil(log2 n) | nothing | ceil(log2 n) |

use super::{Incoming, Team, combine, prepared, small};
use crate::plan::build::Builder;
use crate::plan::{Key, Region, Step, flag};
use crate::types::Collective;

pub(super) fn plan(key: &Key, team: Team<'_>) -> Option<Builder> {
    use Collective as C;
    let mut b = Builder::new(key.clone(), 1);
    match key.collective {
        C::AllReduce => all_reduce(&mut b, team),
        C::AllGather | C::AllGatherV if team.len().is_power_of_two() => all_gather(&mut b, team),
        C::Barrier => barrier(&mut b, team),
        _ => return None,
    }
    Some(b)
}

/// A run of ranks whose number is a power of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) start: usize,
    pub(super) len: usize,
}

impl Block {
    /// `0..n` in blocks of descending size.
    pub(super) fn all(n: usize) -> Vec<Self> {
        let mut blocks = Vec::new();
        let mut start = 0;
        while start < n {
            let len = 1 << (n - start).ilog2();
            blocks.push(Self { start, len });
            start += len;
        }
        blocks
    }

    /// The number of rounds of doubling.
    pub(super) const fn rounds(self) -> u32 {
        self.len.ilog2()
    }
}

/// Hands out scratch chunks one after the other: none is used twice, so no send is waited for.
struct Slots(u32);

impl Slots {
    const fn next(&mut self) -> (Region, u32) {
        self.0 += 1;
        (Region::Work, self.0 - 1)
    }
}

fn all_reduce(b: &mut Builder, team: Team<'_>) {
    let blocks = Block::all(team.len());
    b.load(1);
    let mut slots = Slots(u32::from(prepared(b)));
    if team.me < blocks[0].len {
        first_block(b, team, &blocks, &mut slots);
    } else {
        later_block(b, team, &blocks, &mut slots);
    }
}

/// Posts `sum` to the partner of `round`.
fn offer(b: &mut Builder, team: Team<'_>, block: Block, round: u32, sum: (Region, u32)) {
    let partner = block.start + ((team.me - block.start) ^ (1 << round));
    let wide = round > 0 || prepared(b);
    b.push(0, Step::send(team.ranks[partner], sum.0, sum.1).wide(wide));
}

/// Combines `sum` with what the partner of `round` offered.
fn take(
    b: &mut Builder,
    team: Team<'_>,
    block: Block,
    round: u32,
    sum: (Region, u32),
    target: (Region, u32),
) {
    let partner = block.start + ((team.me - block.start) ^ (1 << round));
    let message = Incoming {
        from: team.ranks[partner],
        wide: round > 0 || prepared(b),
        first: partner < team.me,
    };
    combine(b, message, sum, target, 1);
}

fn later_block(b: &mut Builder, team: Team<'_>, blocks: &[Block], slots: &mut Slots) {
    let block =
        *blocks.iter().rfind(|block| block.start <= team.me).expect("the first block starts at 0");
    let mut sum = (b.contribution(), 0);
    for round in 0..block.rounds() {
        let target = slots.next();
        offer(b, team, block, round, sum);
        take(b, team, block, round, sum, target);
        sum = target;
    }
    if sum.0 == Region::Input {
        // Alone in its block; totals of blocks travel wide.
        let target = slots.next();
        b.push(0, Step::copy(sum, target));
        sum = target;
    }
    let to = team.ranks[team.me - block.start];
    // What the last block sends is the first that is known of any later one.
    let stored = block.start + block.len == team.len();
    b.push(0, Step::send(to, sum.0, sum.1).wide(true).with(stored_if(stored)));
    let from = team.ranks[team.me - blocks[0].len];
    b.push(0, Step::recv(from, Region::Output, 0));
}

fn first_block(b: &mut Builder, team: Team<'_>, blocks: &[Block], slots: &mut Slots) {
    let (block, later) = (blocks[0], &blocks[1..]);
    let rounds = block.rounds();
    let mut sum = (b.contribution(), 0);
    let mut rest = None;
    for time in 0..=rounds {
        if time < rounds {
            offer(b, team, block, time, sum);
        }
        rest = pass_rest(b, team, (later, block.len), slots, time, rest);
        if time < rounds {
            let last = time + 1 == rounds && later.is_empty();
            let target = if last { (Region::Output, 0) } else { slots.next() };
            take(b, team, block, time, sum, target);
            sum = target;
        }
    }
    if later.is_empty() {
        return;
    }
    match rest {
        // The upper half hears of the later blocks last.
        None => {
            let message =
                Incoming { from: team.ranks[team.me - block.len / 2], wide: true, first: false };
            combine(b, message, sum, (Region::Output, 0), 1);
        }
        Some(rest) => {
            b.push(0, Step::reduce(sum, rest));
            let step = Step::copy(rest, (Region::Output, 0));
            b.push(0, step.with(flag::FINISH));
        }
    }
    if let Some(to) = team.ranks.get(block.len + team.me) {
        b.push(0, Step::send(*to, Region::Output, 0));
    }
}

/// The flag of a partial result that its receiver only keeps.
const fn stored_if(stored: bool) -> u8 {
    if stored { flag::STORED } else { 0 }
}

/// In the first, of `block` ranks: takes in what arrives of the later blocks' sum at `time` and
/// sends it on.
/// `rest` is where it stands, if it is known here; returns the same for afterwards.
fn pass_rest(
    b: &mut Builder,
    team: Team<'_>,
    (later, block): (&[Block], usize),
    slots: &mut Slots,
    time: u32,
    mut rest: Option<(Region, u32)>,
) -> Option<(Region, u32)> {
    let me = team.me;
    // Whatever is known, the ranks below this know it now; the lower half of them did before.
    let known = (1_usize << time) / 2;
    if later.iter().any(|l| 2 * l.len <= known) && (known / 2..known).contains(&me) {
        let target = slots.next();
        let from = team.ranks[me - known / 2];
        b.push(0, Step::recv(from, target.0, target.1).wide(true));
        rest = Some(target);
    }
    if let Some(l) = later.iter().find(|l| l.len == known && me < known) {
        let target = slots.next();
        let from = team.ranks[l.start + me];
        if let Some(rest) = rest {
            let message = Incoming { from, wide: true, first: true };
            combine(b, message, rest, target, 1);
        } else {
            b.push(0, Step::recv(from, target.0, target.1).wide(true));
        }
        rest = Some(target);
    }
    if let Some(rest) = rest.filter(|_| me < known) {
        let to = team.ranks[me + known];
        // Who hears of it last folds it at once.
        let last = 2 * known == block;
        b.push(0, Step::send(to, rest.0, rest.1).wide(true).with(stored_if(!last)));
    }
    rest
}

fn all_gather(b: &mut Builder, team: Team<'_>) {
    let own = (Region::Output, small(team.me));
    b.push(0, Step::copy((Region::Input, 0), own));
    for round in 0..team.len().ilog2() {
        let distance = 1_usize << round;
        let partner = team.me ^ distance;
        let start = |rank: usize| small(rank & !(distance - 1));
        let chunks = small(distance);
        let rank = team.ranks[partner];
        let send = if round == 0 {
            Step::send(rank, Region::Input, 0)
        } else {
            Step::send(rank, Region::Output, start(team.me))
        };
        b.push(0, send.over(chunks));
        let recv = Step::recv(rank, Region::Output, start(partner));
        b.push(0, recv.over(chunks));
    }
}

fn barrier(b: &mut Builder, team: Team<'_>) {
    let mut distance = 1;
    while distance < team.len() {
        let to = team.ranks[team.after(distance)];
        let from = team.ranks[team.before(distance)];
        b.push(0, Step::send(to, Region::Input, 0));
        b.push(0, Step::recv(from, Region::Output, 0));
        distance *= 2;
    }
}
