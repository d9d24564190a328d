//! Store and forward in ceil(log2 n) rounds (Bruck et al. 1997), for blocks so small that messages
//! count and bytes do not.
//!
//! All_gather: after round k a rank knows the 2^(k+1) blocks from its own one on, around the ring.
//! The blocks stay where they belong in Output, so nothing is rotated at the end, and a run that
//! wraps around the end of the world is two messages.
//!
//! All_to_all: the block for the rank `i` further on makes its way there by the bits of i. What
//! leaves in a round is packed into one message.
//!
//! ```text
//! 5 ranks, block for the rank 3 further on:   r --(bit 0)--> r + 1 --(bit 1)--> r + 3
//! ```
//!
//! | collective | messages sent | blocks moved per rank | hops |
//! |---|---|---|---|
//! | all_gather | at most 2 ceil(log2 n) | n-1 | ceil(log2 n) |
//! | all_to_all | ceil(log2 n) | at most n/2 in each round | ceil(log2 n) |

use super::{BRUCK_WORLD_MAX, Team, small};
use crate::plan::build::Builder;
use crate::plan::{Key, Region, Step};
use crate::types::Collective;

pub(super) fn plan(key: &Key, team: Team<'_>) -> Option<Builder> {
    use Collective as C;
    let mut b = Builder::new(key.clone(), 1);
    match key.collective {
        C::AllGather | C::AllGatherV => all_gather(&mut b, team),
        C::AllToAll if key.world <= BRUCK_WORLD_MAX => all_to_all(&mut b, team),
        _ => return None,
    }
    Some(b)
}

/// `len` chunks from `start` on, around the ring of `n`, in one or two runs (start, length).
fn runs(start: usize, len: usize, n: usize) -> impl Iterator<Item = (u32, u32)> {
    let before_end = len.min(n - start);
    [(start, before_end), (0, len - before_end)]
        .into_iter()
        .filter(|(_, len)| *len > 0)
        .map(|(start, len)| (small(start), small(len)))
}

fn all_gather(b: &mut Builder, team: Team<'_>) {
    let n = team.len();
    let own = (Region::Output, small(team.me));
    b.push(0, Step::copy((Region::Input, 0), own));
    let mut known = 1;
    while known < n {
        let count = known.min(n - known);
        let to = team.ranks[team.before(known)];
        let from = team.after(known);
        for (start, len) in runs(team.me, count, n) {
            b.push(0, Step::send(to, Region::Output, start).over(len));
        }
        for (start, len) in runs(from, count, n) {
            let step = Step::recv(team.ranks[from], Region::Output, start);
            b.push(0, step.over(len));
        }
        known += count;
    }
}

fn all_to_all(b: &mut Builder, team: Team<'_>) {
    let n = team.len();
    // Where the block that has still to go by the higher bits of i stands.
    let mut at: Vec<(Region, u32)> =
        (0..n).map(|i| (Region::Input, small(team.after(i)))).collect();
    let mut scratch = 0;
    let mut distance = 1;
    while distance < n {
        let leaving: Vec<usize> = (1..n).filter(|i| i & distance != 0).collect();
        let count = small(leaving.len());
        let to = team.ranks[team.after(distance)];
        let from = team.ranks[team.before(distance)];
        let packed = scratch;
        for run in leaving.chunk_by(|a, b| follows(at[*a], at[*b])) {
            let offset = leaving.partition_point(|i| *i < run[0]);
            let target = (Region::Work, packed + small(offset));
            b.push(0, Step::copy(at[run[0]], target).over(small(run.len())));
        }
        b.push(0, Step::send(to, Region::Work, packed).over(count));
        let arrived = packed + count;
        b.push(0, Step::recv(from, Region::Work, arrived).over(count));
        for (offset, i) in leaving.iter().enumerate() {
            at[*i] = (Region::Work, arrived + small(offset));
        }
        scratch = arrived + count;
        distance *= 2;
    }
    for (i, source) in at.into_iter().enumerate() {
        let target = (Region::Output, small(team.before(i)));
        b.push(0, Step::copy(source, target));
    }
}

fn follows(a: (Region, u32), b: (Region, u32)) -> bool {
    a.0 == b.0 && a.1 + 1 == b.1
}
