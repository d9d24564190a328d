//! Loads and stores in the peers' own buffers, where the links are memory.
//!
//! ```text
//! all_reduce   wait until all have called | fold chunk r of all inputs into all outputs | tell all
//!              | wait until all have told
//! ```
//!
//! Phase 0 is reached by calling, phase 1 by having touched peers' memory for the last time.
//!
//! | collective | chunks moved per rank | phases |
//! |---|---|---|
//! | all_reduce | loads n-1, stores n-1, of n | 2 |
//! | reduce_scatter, all_gather, all_to_all | loads n-1 of n | 2 |
//! | reduce, gather, scatter_v | the root all, the others nothing | 2 |
//! | broadcast, scatter | the root nothing, the others what they get | 2 |
//! | barrier | nothing | 1 |
//!
//! Order of operands: the fold's, so the tree order, in every world. Not with `pre_mul_sum`, whose
//! contributions exist in nobody's input; not for all_to_all_v, where neither side knows where the
//! other one's block is.

use super::{Team, small};
use crate::plan::build::Builder;
use crate::plan::{Key, Region, Step, flag};
use crate::types::{Collective, Rank};

pub(super) fn plan(key: &Key, team: Team<'_>) -> Option<Builder> {
    use Collective as C;
    let chunks = match key.collective {
        C::AllReduce => team.len(),
        _ => 1,
    };
    let mut b = Builder::new(key.clone(), small(chunks));
    let own = small(team.me);
    match key.collective {
        C::AllReduce => {
            wait_all(&mut b, team, 0);
            fold(&mut b, team, own, own, flag::SPREAD);
            together(&mut b, team);
        }
        C::ReduceScatter | C::ReduceScatterV => {
            wait_all(&mut b, team, 0);
            fold(&mut b, team, own, 0, 0);
            together(&mut b, team);
        }
        C::AllGather | C::AllGatherV => {
            collect(&mut b, team, 0);
            together(&mut b, team);
        }
        C::AllToAll => {
            collect(&mut b, team, own);
            together(&mut b, team);
        }
        C::Reduce => one_sided(&mut b, team, true, |b| {
            wait_all(b, team, 0);
            fold(b, team, 0, 0, 0);
        }),
        C::Gather | C::GatherV => one_sided(&mut b, team, true, |b| collect(b, team, 0)),
        C::ScatterV => one_sided(&mut b, team, true, |b| push(b, team)),
        C::Broadcast => one_sided(&mut b, team, false, |b| pull(b, 0)),
        C::Scatter => one_sided(&mut b, team, false, |b| pull(b, own)),
        C::Barrier => wait_all(&mut b, team, 0),
        _ => return None,
    }
    Some(b)
}

fn wait_all(b: &mut Builder, team: Team<'_>, phase: u32) {
    for p in team.others() {
        b.push(0, Step::wait_for(team.ranks[p], phase));
    }
}

/// All are done with each other's memory.
fn together(b: &mut Builder, team: Team<'_>) {
    b.push(0, Step::post(1));
    wait_all(b, team, 1);
}

fn fold(b: &mut Builder, team: Team<'_>, source: u32, target: u32, flags: u8) {
    let group = b.group(team.ranks);
    let step = Step::fold(group, (Region::PeerInput, source), (Region::Output, target));
    b.push(0, step.with(flags | flag::FINISH));
}

fn copy(peer: Rank, source: (Region, u32), target: (Region, u32)) -> Step {
    Step { from: peer.0, ..Step::copy(source, target) }
}

/// Chunk `chunk` of every rank's input into the own output, as each of them calls.
fn collect(b: &mut Builder, team: Team<'_>, chunk: u32) {
    let own = (Region::Output, small(team.me));
    b.push(0, Step::copy((Region::Input, chunk), own));
    for p in team.others() {
        let peer = team.ranks[p];
        b.push(0, Step::wait_for(peer, 0));
        let target = (Region::Output, small(p));
        b.push(0, copy(peer, (Region::PeerInput, chunk), target));
    }
}

/// The root's blocks into the others' outputs, as each of them calls.
fn push(b: &mut Builder, team: Team<'_>) {
    let own = (Region::Input, small(team.me));
    b.push(0, Step::copy(own, (Region::Output, 0)));
    for p in team.others() {
        let peer = team.ranks[p];
        b.push(0, Step::wait_for(peer, 0));
        let source = (Region::Input, small(p));
        b.push(0, copy(peer, source, (Region::PeerOutput, 0)));
    }
}

/// Chunk `chunk` of the root's input into the own output.
fn pull(b: &mut Builder, chunk: u32) {
    let (root, me) = (b.key().root, b.key().rank);
    if me == root {
        b.push(0, Step::copy((Region::Input, chunk), (Region::Output, 0)));
    } else {
        b.push(0, Step::wait_for(root, 0));
        let source = (Region::PeerInput, chunk);
        b.push(0, copy(root, source, (Region::Output, 0)));
    }
}

/// The root (`at_root`) or everyone else does the work; the other side waits until it is done.
fn one_sided(b: &mut Builder, team: Team<'_>, at_root: bool, work: impl FnOnce(&mut Builder)) {
    let root = b.key().root;
    let is_root = b.key().rank == root;
    if is_root == at_root {
        work(b);
        b.push(0, Step::post(1));
    } else if is_root {
        work(b);
        wait_all(b, team, 1);
    } else {
        b.push(0, Step::wait_for(root, 1));
    }
}
