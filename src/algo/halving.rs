//! Recursive halving of the buffer, then doubling (Rabenseifner 2004), at distance 1 first.
//!
//! Distance 1 first keeps the operands in tree order: after round j a rank holds, for its part of
//! the buffer, the total of the 2^(j+1) ranks around it. For other worlds n is cut into blocks of
//! descending powers of two as in [`super::doubling`]: each block halves by itself, the later block
//! hands its sums to the ranks of the block before it, part by part, just as those get ready for
//! them, and the results go back the same way. So no rank moves more than twice the buffer, and the
//! odd ranks cost no hop.
//!
//! ```text
//! all_reduce, 4 ranks, chunks 0..4     round 0 (x^1)       round 1 (x^2)
//!                              rank 0  keeps 0,1           keeps 0       then back: doubling
//!                              rank 1  keeps 2,3           keeps 2
//!                              rank 2  keeps 0,1           keeps 1
//!                              rank 3  keeps 2,3           keeps 3
//! ```
//!
//! | collective | messages sent, l = floor(log2 n) | chunks moved per rank, p = 2^l | hops |
//! |---|---|---|---|
//! | all_reduce, power of two | 2l | 2(p-1) of p | 2l |
//! | all_reduce, else | at most 2l + 1, later ranks up to p + 1 | at most 2p of p | 2l |
//! | reduce_scatter, power of two only | at most l + 1 | at most n of n | at most l + 1 |
//!
//! After halving, rank r of n holds the chunk whose number is r with its bits reversed:
//! reduce_scatter needs one more message to bring it home.
//!
//! Order of operands: the tree order, in every world.

use std::ops::Range;

use super::{Incoming, Team, combine, doubling::Block, last_step, prepared, small};
use crate::plan::build::{Builder, StepId};
use crate::plan::{Key, Region, Step, flag};
use crate::types::Collective;

pub(super) fn plan(key: &Key, team: Team<'_>) -> Option<Builder> {
    use Collective as C;
    let n = team.len();
    match key.collective {
        C::AllReduce => {
            let blocks = Block::all(n);
            let mut b = Builder::new(key.clone(), small(blocks[0].len));
            all_reduce(&mut b, team, &blocks);
            Some(b)
        }
        C::ReduceScatter | C::ReduceScatterV if n.is_power_of_two() => {
            let mut b = Builder::new(key.clone(), 1);
            reduce_scatter(&mut b, team);
            Some(b)
        }
        _ => None,
    }
}

/// The chunks, of `chunks`, that rank `x` of a block holds after `rounds` rounds.
fn part(x: usize, rounds: u32, chunks: usize) -> Range<usize> {
    let mut part = 0..chunks;
    for round in 0..rounds {
        let middle = part.start + part.len() / 2;
        part = if x >> round & 1 == 0 { part.start..middle } else { middle..part.end };
    }
    part
}

/// Halves inside the block; the last round writes `target`, finished if asked. Returns where the
/// sum of the own part stands.
fn halve(b: &mut Builder, team: Team<'_>, block: Block, chunks: usize, target: Target) -> Region {
    let x = team.me - block.start;
    let mut sum = b.contribution();
    for round in 0..block.rounds() {
        let partner = x ^ (1 << round);
        let rank = team.ranks[block.start + partner];
        let (keep, give) = (part(x, round + 1, chunks), part(partner, round + 1, chunks));
        let wide = round > 0 || prepared(b);
        let step = Step::send(rank, sum, small(give.start));
        b.push(0, step.over(small(give.len())).wide(wide));
        let message = Incoming { from: rank, wide, first: partner < x };
        let start = small(keep.start);
        let (region, chunk, finish) = if round + 1 == block.rounds() {
            (target.region, target.chunk.unwrap_or(start), target.finish)
        } else {
            (Region::Work, start, false)
        };
        let step = message.mark(Step::recv_reduce(rank, (sum, start), (region, chunk)));
        let finish = if finish { flag::FINISH } else { 0 };
        b.push(0, step.over(small(keep.len())).with(finish));
        sum = region;
    }
    sum
}

/// What the last round of halving writes.
#[derive(Clone, Copy)]
struct Target {
    region: Region,
    /// Where, if not at the chunk's own place.
    chunk: Option<u32>,
    finish: bool,
}

/// The ranks of the `wider` block that hold parts of what rank `x` of the `narrower` one holds.
fn partners(x: usize, narrower: Block, wider: Block) -> impl Iterator<Item = usize> {
    (x..wider.len).step_by(narrower.len)
}

/// The parts that rank `x` of `block` holds after all rounds.
fn held(block: Block, x: usize, chunks: usize) -> Range<usize> {
    part(x, block.rounds(), chunks)
}

fn all_reduce(b: &mut Builder, team: Team<'_>, blocks: &[Block]) {
    b.load(small(blocks[0].len));
    let own = blocks
        .iter()
        .rposition(|block| block.start <= team.me)
        .expect("the first block starts at 0");
    sums_in(b, team, blocks, own);
    let whole = (own == 0).then(|| last_step(b));
    results_out(b, team, blocks, own, whole);
}

/// Lane 0: halve, add what the next block holds of the own part, hand it to the block before.
fn sums_in(b: &mut Builder, team: Team<'_>, blocks: &[Block], own: usize) {
    let (chunks, block) = (blocks[0].len, blocks[own]);
    let x = team.me - block.start;
    let next = blocks.get(own + 1);
    let target = |last: bool| {
        let last = last && own == 0;
        Target {
            region: if last { Region::Output } else { Region::Work },
            chunk: None,
            finish: last,
        }
    };
    let mut sum = halve(b, team, block, chunks, target(next.is_none()));
    if let Some(next) = next {
        let mine = held(block, x, chunks);
        let start = small(mine.start);
        let message = Incoming {
            from: team.ranks[next.start + x % next.len],
            wide: next.len > 1 || prepared(b),
            first: false,
        };
        let region = target(true).region;
        combine(b, message, (sum, start), (region, start), small(mine.len()));
        sum = region;
    }
    if own > 0 {
        let before = blocks[own - 1];
        let wide = block.len > 1 || prepared(b);
        for y in partners(x, block, before) {
            let theirs = held(before, y, chunks);
            let step = Step::send(team.ranks[before.start + y], sum, small(theirs.start));
            b.push(0, step.over(small(theirs.len())).wide(wide));
        }
    }
}

/// Lane 1: results the same way back. The first block has its own after `whole`.
fn results_out(
    b: &mut Builder,
    team: Team<'_>,
    blocks: &[Block],
    own: usize,
    mut whole: Option<StepId>,
) {
    let (chunks, block) = (blocks[0].len, blocks[own]);
    let x = team.me - block.start;
    if own > 0 {
        let before = blocks[own - 1];
        for y in partners(x, block, before) {
            let theirs = held(before, y, chunks);
            let from = team.ranks[before.start + y];
            let step = Step::recv(from, Region::Output, small(theirs.start));
            b.push(1, step.over(small(theirs.len())));
        }
    }
    let mut send = |b: &mut Builder, to: usize, part: Range<usize>| {
        let step = Step::send(team.ranks[to], Region::Output, small(part.start));
        let step = step.over(small(part.len()));
        b.push(1, whole.take().map_or(step, |id| step.after(id)));
    };
    if let Some(next) = blocks.get(own + 1) {
        send(b, next.start + x % next.len, held(block, x, chunks));
    }
    for round in (0..block.rounds()).rev() {
        let partner = x ^ (1 << round);
        send(b, block.start + partner, part(x, round + 1, chunks));
        let theirs = part(partner, round + 1, chunks);
        let from = team.ranks[block.start + partner];
        let step = Step::recv(from, Region::Output, small(theirs.start));
        b.push(1, step.over(small(theirs.len())));
    }
}

/// Halving leaves rank r with chunk reverse(r); the rank it belongs to gets it in one more message.
fn reduce_scatter(b: &mut Builder, team: Team<'_>) {
    let n = team.len();
    let block = Block { start: 0, len: n };
    let mine = part(team.me, block.rounds(), n).start;
    b.load(small(n));
    let home = mine == team.me;
    let target = Target {
        region: if home { Region::Output } else { Region::Work },
        chunk: home.then_some(0),
        finish: true,
    };
    halve(b, team, block, n, target);
    if !home {
        // Reversal undoes itself: the own chunk comes from the rank that the held one goes to.
        let rank = team.ranks[mine];
        let step = Step::send(rank, Region::Work, small(mine)).wide(true);
        b.push(0, step.with(flag::STORED));
        b.push(0, Step::recv(rank, Region::Output, 0).wide(true));
    }
}
