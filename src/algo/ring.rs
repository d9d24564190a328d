//! Chunks travel around the ring of ranks (Patarasu and Yuan 2009; in Gloo and NCCL as well).
//!
//! ```text
//! all_reduce, 4 ranks: chunk 2 starts at rank 3, is whole at rank 2, then makes a second round
//!
//!   rank 3 --own--> rank 0 --+own--> rank 1 --+own--> rank 2: finish
//!      ^                                                 |
//!      '------------- finished chunk, n - 1 hops --------'
//! ```
//!
//! | collective | messages sent | chunks moved per rank | hops |
//! |---|---|---|---|
//! | all_reduce | 2(n-1) | 2(n-1) of n | 2(n-1) |
//! | reduce_scatter, all_gather | n-1 | n-1 of n | n-1 |
//! | reduce, broadcast (a chain) | 1 | the buffer once | n-1 |
//!
//! Order of operands: chunk c is `((c+1)+(c+2))+...+c`, so only worlds up to 2 are in tree order.

use super::{Incoming, Team, combine, pass_on, prepared, send_contribution, small};
use crate::plan::build::Builder;
use crate::plan::{Key, Region, Step, flag};
use crate::types::{Collective, Rank};

pub(super) fn plan(key: &Key, team: Team<'_>) -> Option<Builder> {
    use Collective as C;
    let chunks = if key.collective == C::AllReduce { team.len() } else { 1 };
    let mut b = Builder::new(key.clone(), small(chunks));
    match key.collective {
        C::AllReduce => {
            scatter_sums(&mut b, team, Some(small(team.me)));
            circulate(&mut b, team, false);
        }
        C::ReduceScatter | C::ReduceScatterV => scatter_sums(&mut b, team, None),
        C::AllGather | C::AllGatherV => circulate(&mut b, team, true),
        C::Reduce => chain_in(&mut b, team, key.root),
        C::Broadcast => chain_out(&mut b, team, key.root),
        _ => return None,
    }
    Some(b)
}

/// The next and the previous rank.
fn neighbours(team: Team<'_>) -> (Rank, Rank) {
    (team.ranks[team.after(1)], team.ranks[team.before(1)])
}

/// Sums every chunk at its owner. With `spread`, that is Output chunk `spread`, sent on at once;
/// else Output's only chunk.
fn scatter_sums(b: &mut Builder, team: Team<'_>, spread: Option<u32>) {
    let n = team.len();
    let (next, previous) = neighbours(team);
    let first = previous < team.ranks[team.me];
    b.load(small(n));
    let own = b.contribution();
    send_contribution(b, next, small(team.before(1)), 1);
    for hop in 1..n {
        let chunk = small(team.before(hop + 1));
        let message = Incoming { from: previous, wide: hop > 1 || prepared(b), first };
        let last = hop == n - 1;
        match spread {
            None if last => {
                combine(b, message, (own, chunk), (Region::Output, 0), 1);
            }
            Some(whole) if last => {
                let step = pass_on(message, (own, chunk), next);
                b.push(0, step.into((Region::Output, whole)).with(flag::FINISH));
            }
            _ => {
                b.push(0, pass_on(message, (own, chunk), next));
            }
        }
    }
}

/// Every rank's chunk to every rank. With `load`, the chunk is the own Input and goes first.
fn circulate(b: &mut Builder, team: Team<'_>, load: bool) {
    let n = team.len();
    let (next, previous) = neighbours(team);
    if load {
        b.push(0, Step::send(next, Region::Input, 0));
        let place = (Region::Output, small(team.me));
        b.push(0, Step::copy((Region::Input, 0), place));
    }
    for hop in 1..n {
        let chunk = small(team.before(hop));
        b.push(
            0,
            if hop < n - 1 {
                Step::recv_copy_send(previous, Region::Output, chunk, next)
            } else {
                Step::recv(previous, Region::Output, chunk)
            },
        );
    }
}

/// The whole buffer, summed along the chain that ends at the root.
fn chain_in(b: &mut Builder, team: Team<'_>, root: Rank) {
    let n = team.len();
    let (next, previous) = neighbours(team);
    let hop = (team.me + 2 * n - root.index() - 1) % n;
    b.load(1);
    if hop == 0 {
        send_contribution(b, next, 0, 1);
        return;
    }
    let message = Incoming {
        from: previous,
        wide: hop > 1 || prepared(b),
        first: previous < team.ranks[team.me],
    };
    let own = (b.contribution(), 0);
    if hop < n - 1 {
        b.push(0, pass_on(message, own, next));
    } else {
        combine(b, message, own, (Region::Output, 0), 1);
    }
}

/// The whole buffer, handed along the chain that begins at the root.
fn chain_out(b: &mut Builder, team: Team<'_>, root: Rank) {
    let n = team.len();
    let (next, previous) = neighbours(team);
    match (team.me + n - root.index()) % n {
        0 => {
            b.push(0, Step::send(next, Region::Input, 0));
            b.push(0, Step::copy((Region::Input, 0), (Region::Output, 0)));
        }
        hop if hop < n - 1 => {
            b.push(0, Step::recv_copy_send(previous, Region::Output, 0, next));
        }
        _ => {
            b.push(0, Step::recv(previous, Region::Output, 0));
        }
    }
}
