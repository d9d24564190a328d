//! By way of memory that every rank of the host can load: each puts there what others need of it.
//!
//! ```text
//! all_reduce   stage the others' chunks | tell all | wait until all have told
//!              | fold the own input with every stage, into the output and the own stage | tell all
//!              | as each tells: load its result
//! ```
//!
//! For buffers that no peer can map. Tiles are small and stages are used again and again, so what
//! is staged is loaded from a cache.
//!
//! | collective | chunks staged per rank | loaded per rank | phases |
//! |---|---|---|---|
//! | all_reduce | n of n | 2(n-1) of n | 2 |
//! | reduce | n of n, the root n-1 | n-1 of n, the root 2(n-1) | 2 |
//! | reduce_scatter, all_to_all | n-1 of n | n-1 of n | 1 |
//! | all_gather | 1 of 1 | n-1 of 1 | 1 |
//! | broadcast | the root 1 of 1, in 4 parts | the others 1 | 4 |
//! | scatter | the root n-1 of n | the others 1 | 1 |
//! | gather | the others 1 | the root n-1 | 1 |
//!
//! Where all wait for all, what was staged for one block of tiles is known to be loaded once the
//! others have told of the next block. Where only one waits, the others tell it that they have done
//! with the tile. Order of operands: the fold's, so the tree order, in every world. Not with
//! `pre_mul_sum`, whose contributions are wide.

use super::{Team, small};
use crate::plan::build::Builder;
use crate::plan::{Key, PHASES_MAX, Region, Step, flag};
use crate::types::{Collective, Rank};

/// Parts of a broadcast's buffer, a phase each.
const PARTS: u32 = 4;
const _: () = assert!(PARTS <= PHASES_MAX);

pub(super) fn plan(key: &Key, team: Team<'_>) -> Option<Builder> {
    use Collective as C;
    let chunks = match key.collective {
        C::AllReduce | C::Reduce => small(team.len()),
        C::Broadcast => PARTS,
        _ => 1,
    };
    let mut b = Builder::new(key.clone(), chunks);
    match key.collective {
        C::AllReduce | C::Reduce => reduce(&mut b, team),
        C::ReduceScatter | C::ReduceScatterV => {
            stage_others(&mut b, team);
            tell_and_wait(&mut b, team);
            fold(&mut b, team, (Region::Output, 0), 0);
        }
        C::AllGather | C::AllGatherV => {
            stage(&mut b);
            load_from_all(&mut b, team, 0);
        }
        C::AllToAll => {
            stage_others(&mut b, team);
            load_from_all(&mut b, team, small(team.me));
        }
        C::Broadcast => broadcast(&mut b, team),
        C::Scatter => scatter(&mut b, team),
        C::Gather => to_root(&mut b, team),
        _ => return None,
    }
    Some(b)
}

/// What the own block's number is in Input, where Input has other ranks' blocks too.
fn own_chunk(b: &Builder, team: Team<'_>) -> u32 {
    use Collective as C;
    match b.key().collective {
        C::AllToAll => small(team.me),
        _ => 0,
    }
}

/// The whole Input into the own stage.
fn stage(b: &mut Builder) {
    b.push(0, Step::copy((Region::Input, 0), (Region::Stage, 0)));
}

/// Every chunk of Input but the own one into the own stage.
fn stage_others(b: &mut Builder, team: Team<'_>) {
    let (own, all) = (small(team.me), small(team.len()));
    for (first, end) in [(0, own), (own + 1, all)] {
        if first < end {
            let step = Step::copy((Region::Input, first), (Region::Stage, first));
            b.push(0, step.over(end - first));
        }
    }
}

fn tell_and_wait(b: &mut Builder, team: Team<'_>) {
    b.push(0, Step::post(1));
    for p in team.others() {
        b.push(0, Step::wait_for(team.ranks[p], 1));
    }
}

/// The own chunk of everyone, finished, into `target`.
fn fold(b: &mut Builder, team: Team<'_>, target: (Region, u32), flags: u8) {
    let group = b.group(team.ranks);
    let step = Step::fold(group, (Region::PeerStage, small(team.me)), target);
    b.push(0, step.with(flags | flag::FINISH));
}

/// Chunk `chunk` of a peer's stage into `target`, a chunk of Output.
fn load(b: &mut Builder, peer: Rank, chunk: u32, target: u32) {
    let step = Step::copy((Region::PeerStage, chunk), (Region::Output, target));
    b.push(0, Step { from: peer.0, ..step });
}

fn reduce(b: &mut Builder, team: Team<'_>) {
    let all = b.key().collective == Collective::AllReduce;
    let own = small(team.me);
    let receives = all || b.key().root == b.key().rank;
    stage_others(b, team);
    tell_and_wait(b, team);
    match receives {
        true if all => fold(b, team, (Region::Output, own), flag::SPREAD),
        true => fold(b, team, (Region::Output, own), 0),
        false => fold(b, team, (Region::Stage, own), 0),
    }
    b.push(0, Step::post(2));
    for p in team.others().filter(|_| receives) {
        b.push(0, Step::wait_for(team.ranks[p], 2));
        load(b, team.ranks[p], small(p), small(p));
    }
}

/// Tells that the own stage is filled, and loads chunk `chunk` of everyone's.
fn load_from_all(b: &mut Builder, team: Team<'_>, chunk: u32) {
    let own = own_chunk(b, team);
    b.push(0, Step::post(1));
    b.push(0, Step::copy((Region::Input, own), (Region::Output, small(team.me))));
    for p in team.others() {
        b.push(0, Step::wait_for(team.ranks[p], 1));
        load(b, team.ranks[p], chunk, small(p));
    }
}

/// Part by part, so that the others load one while the root stages the next.
fn broadcast(b: &mut Builder, team: Team<'_>) {
    let (root, me) = (b.key().root, b.key().rank);
    for part in 0..PARTS {
        if me == root {
            b.push(0, Step::copy((Region::Input, part), (Region::Stage, part)));
            b.push(0, Step::post(part + 1));
        } else {
            b.push(0, Step::wait_for(root, part + 1));
            load(b, root, part, part);
        }
    }
    if me != root {
        b.push(0, Step::post(1));
        return;
    }
    let all = Step::copy((Region::Input, 0), (Region::Output, 0)).over(PARTS);
    b.push(0, all);
    for p in team.others() {
        b.push(0, Step::wait_for(team.ranks[p], 1));
    }
}

fn scatter(b: &mut Builder, team: Team<'_>) {
    let (root, me) = (b.key().root, b.key().rank);
    if me != root {
        b.push(0, Step::wait_for(root, 1));
        load(b, root, small(team.me), 0);
        b.push(0, Step::post(1));
        return;
    }
    stage_others(b, team);
    b.push(0, Step::post(1));
    b.push(0, Step::copy((Region::Input, small(team.me)), (Region::Output, 0)));
    for p in team.others() {
        b.push(0, Step::wait_for(team.ranks[p], 1));
    }
}

fn to_root(b: &mut Builder, team: Team<'_>) {
    let (root, me) = (b.key().root, b.key().rank);
    if me != root {
        stage(b);
        b.push(0, Step::post(1));
        b.push(0, Step::wait_for(root, 1));
        return;
    }
    b.push(0, Step::copy((Region::Input, 0), (Region::Output, small(team.me))));
    for p in team.others() {
        b.push(0, Step::wait_for(team.ranks[p], 1));
        load(b, team.ranks[p], 0, small(p));
    }
    b.push(0, Step::post(1));
}
