//! Every rank exchanges with every other directly; an owner sums its chunk in one pass.
//!
//! ```text
//! all_reduce, 4 ranks      lane 0: contributions     lane 1: results
//!                          1 --chunk 0--> 0          0 --chunk 0--> 1
//!                          2 --chunk 0--> 0 fold     0 --chunk 0--> 2     (and so 1, 2, 3)
//!                          3 --chunk 0--> 0          0 --chunk 0--> 3
//! ```
//!
//! | collective | messages sent | chunks moved per rank | hops |
//! |---|---|---|---|
//! | all_reduce | 2(n-1) | 2(n-1) of n | 2 |
//! | reduce, broadcast (scatter and all_gather, van de Geijn) | n-1 | at most n-1 of n-1 | 2 |
//! | reduce_scatter, all_gather, all_to_all | n-1 | n-1 of n | 1 |
//! | gather, scatter | root 0 or n-1, else 1 or 0 | root n-1, else 1 | 1 |
//! | send, recv | 1 | 1 | 1 |
//!
//! Order of operands: the fold's, so the tree order, in every world.

use super::{Team, prepared, send_contribution, small};
use crate::plan::build::{Builder, StepId};
use crate::plan::{Key, Region, Step, flag};
use crate::types::{Collective, Rank};

pub(super) fn plan(key: &Key, team: Team<'_>) -> Option<Builder> {
    use Collective as C;
    let n = team.len();
    let chunks = match key.collective {
        C::AllReduce => n,
        C::Reduce | C::Broadcast => n - 1,
        _ => 1,
    };
    let mut b = Builder::new(key.clone(), small(chunks));
    match key.collective {
        C::AllReduce => all_reduce(&mut b, team),
        C::ReduceScatter | C::ReduceScatterV => {
            sum(&mut b, team, n, (Region::Output, 0));
        }
        C::Reduce => reduce(&mut b, team),
        C::Broadcast => broadcast(&mut b, team),
        C::AllGather | C::AllGatherV => all_gather(&mut b, team),
        C::AllToAll | C::AllToAllV => all_to_all(&mut b, team),
        C::Gather | C::GatherV => gather(&mut b, team),
        C::Scatter | C::ScatterV => scatter(&mut b, team),
        C::Send | C::Recv if key.root == key.rank => return None,
        C::Send => {
            b.push(0, Step::send(key.root, Region::Input, 0));
        }
        C::Recv => {
            b.push(0, Step::recv(key.root, Region::Output, 0));
        }
        C::Barrier => return None,
    }
    Some(b)
}

/// Sends each other rank its chunk of `chunks` and folds the own chunk into `target`.
fn sum(b: &mut Builder, team: Team<'_>, chunks: usize, target: (Region, u32)) -> StepId {
    b.load(small(chunks));
    for p in team.others() {
        send_contribution(b, team.ranks[p], small(p), 1);
    }
    fold(b, team.ranks, small(team.me), target)
}

/// Folds the own contribution `chunk` with those of `group` into `target`.
fn fold(b: &mut Builder, group: &[Rank], chunk: u32, target: (Region, u32)) -> StepId {
    let group = b.group(group);
    let step = Step::fold(group, (b.contribution(), chunk), target);
    let wide = prepared(b);
    b.push(0, step.with(flag::FINISH).wide(wide))
}

fn all_reduce(b: &mut Builder, team: Team<'_>) {
    let own = small(team.me);
    let mut folded = Some(sum(b, team, team.len(), (Region::Output, own)));
    for p in team.others() {
        let step = Step::send(team.ranks[p], Region::Output, own);
        let step = folded.take().map_or(step, |id| step.after(id));
        b.push(1, step);
    }
    for p in team.senders() {
        b.push(1, Step::recv(team.ranks[p], Region::Output, small(p)));
    }
}

/// Who owns which chunk of reduce and broadcast: the n - 1 ranks besides the root, in rank order.
/// So nothing moves both to its owner and back, and the root moves the buffer once.
fn owned(p: usize, root: usize) -> u32 {
    small(if p < root { p } else { p - 1 })
}

fn reduce(b: &mut Builder, team: Team<'_>) {
    let root = b.key().root.index();
    let n = team.len();
    if n == 2 {
        // The only other rank would sum for the root: a hop and a copy for nothing.
        b.load(1);
        if team.me == root {
            fold(b, team.ranks, 0, (Region::Output, 0));
        } else {
            send_contribution(b, team.ranks[root], 0, 1);
        }
        return;
    }
    b.load(small(n - 1));
    for p in team.others().filter(|p| *p != root) {
        send_contribution(b, team.ranks[p], owned(p, root), 1);
    }
    if team.me == root {
        for p in team.senders() {
            let step = Step::recv(team.ranks[p], Region::Output, owned(p, root));
            b.push(0, step.wide(true));
        }
    } else {
        // Only the root has an Output: the result waits, finished, in scratch.
        let chunk = owned(team.me, root);
        fold(b, team.ranks, chunk, (Region::Work, chunk));
        let step = Step::send(team.ranks[root], Region::Work, chunk);
        b.push(0, step.wide(true).with(flag::STORED));
    }
}

fn broadcast(b: &mut Builder, team: Team<'_>) {
    let root = b.key().root.index();
    let chunks = small(team.len() - 1);
    if team.me == root {
        for p in team.others() {
            let step = Step::send(team.ranks[p], Region::Input, owned(p, root));
            b.push(0, step);
        }
        let step = Step::copy((Region::Input, 0), (Region::Output, 0));
        b.push(0, step.over(chunks));
        return;
    }
    let chunk = owned(team.me, root);
    let recv = Step::recv(team.ranks[root], Region::Output, chunk);
    let mut got = Some(b.push(0, recv));
    for p in team.others().filter(|p| *p != root) {
        let step = Step::send(team.ranks[p], Region::Output, chunk);
        let step = got.take().map_or(step, |id| step.after(id));
        b.push(1, step);
    }
    for p in team.senders().filter(|p| *p != root) {
        let step = Step::recv(team.ranks[p], Region::Output, owned(p, root));
        b.push(1, step);
    }
}

fn all_gather(b: &mut Builder, team: Team<'_>) {
    for p in team.others() {
        b.push(0, Step::send(team.ranks[p], Region::Input, 0));
    }
    let place = (Region::Output, small(team.me));
    b.push(0, Step::copy((Region::Input, 0), place));
    for p in team.senders() {
        b.push(0, Step::recv(team.ranks[p], Region::Output, small(p)));
    }
}

fn all_to_all(b: &mut Builder, team: Team<'_>) {
    for p in team.others() {
        b.push(0, Step::send(team.ranks[p], Region::Input, small(p)));
    }
    let own = small(team.me);
    b.push(0, Step::copy((Region::Input, own), (Region::Output, own)));
    for p in team.senders() {
        b.push(0, Step::recv(team.ranks[p], Region::Output, small(p)));
    }
}

fn gather(b: &mut Builder, team: Team<'_>) {
    let root = b.key().root;
    if team.ranks[team.me] != root {
        b.push(0, Step::send(root, Region::Input, 0));
        return;
    }
    let place = (Region::Output, small(team.me));
    b.push(0, Step::copy((Region::Input, 0), place));
    for p in team.others() {
        b.push(0, Step::recv(team.ranks[p], Region::Output, small(p)));
    }
}

fn scatter(b: &mut Builder, team: Team<'_>) {
    let root = b.key().root;
    if team.ranks[team.me] != root {
        b.push(0, Step::recv(root, Region::Output, 0));
        return;
    }
    for p in team.others() {
        b.push(0, Step::send(team.ranks[p], Region::Input, small(p)));
    }
    let place = (Region::Input, small(team.me));
    b.push(0, Step::copy(place, (Region::Output, 0)));
}
