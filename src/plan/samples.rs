//! Small hand-written worlds for the tests of this folder. They are right; tests break them.

use super::build::Builder;
use super::{Algorithm, Key, Plan, Region, Step, flag};
use crate::types::{Collective, Rank};

pub(in crate::plan) fn key(
    collective: Collective,
    algorithm: Algorithm,
    world: u32,
    rank: u32,
) -> Key {
    Key { collective, algorithm, world, rank: Rank(rank), root: Rank(0), prepared: false }
}

/// All worlds, with a name and whether they are in tree order.
pub(in crate::plan) fn all() -> Vec<(&'static str, Vec<Plan>, bool)> {
    let world = |n: u32, make: fn(u32, u32) -> Plan| (0..n).map(|r| make(n, r)).collect();
    vec![
        ("ring of 3", world(3, ring), false),
        ("ring of 4", world(4, ring), false),
        ("prepared ring of 3", world(3, prepared_ring), false),
        ("fold of 3", world(3, fold), true),
        ("doubling of 4", world(4, doubling), true),
        ("exchange of 3", world(3, exchange), true),
        ("relay of 4", world(4, relay), true),
        ("crossing of 2", world(2, crossing), true),
        ("direct of 3", world(3, direct), true),
        ("staged of 3", world(3, staged), true),
        ("barrier of 4", world(4, barrier), true),
    ]
}

/// A ring all_reduce: partial sums travel once around, then results do.
pub(in crate::plan) fn ring(n: u32, rank: u32) -> Plan {
    ring_of(key(Collective::AllReduce, Algorithm::Ring, n, rank))
}

fn prepared_ring(n: u32, rank: u32) -> Plan {
    let key = key(Collective::AllReduce, Algorithm::Ring, n, rank);
    ring_of(Key { prepared: true, ..key })
}

fn ring_of(key: Key) -> Plan {
    let (n, rank) = (key.world, key.rank.0);
    let mut b = Builder::new(key, n);
    let (next, prev) = (Rank((rank + 1) % n), Rank((rank + n - 1) % n));
    let chunk = |back: u32| (rank + 2 * n - back) % n;
    b.load(n);
    let own = b.contribution();
    b.push(0, Step::send(next, own, chunk(0)).with(flag::WIDE));
    for s in 1..n - 1 {
        b.push(0, Step::recv_reduce_send(prev, (own, chunk(s)), next));
    }
    let last = chunk(n - 1);
    let step = Step::recv_reduce(prev, (own, last), (Region::Output, last));
    b.push(0, step.with(flag::FINISH));
    b.push(0, Step::send(next, Region::Output, last));
    for s in 0..n - 2 {
        b.push(0, Step::recv_copy_send(prev, Region::Output, chunk(s), next));
    }
    b.push(0, Step::recv(prev, Region::Output, chunk(n - 2)));
    b.finish()
}

/// A reduce_scatter in which the owner of a block folds all contributions at once.
pub(in crate::plan) fn fold(n: u32, rank: u32) -> Plan {
    let mut b = Builder::new(key(Collective::ReduceScatter, Algorithm::Pairwise, n, rank), 1);
    for s in 1..n {
        let to = (rank + s) % n;
        b.push(0, Step::send(Rank(to), Region::Input, to));
    }
    let group = b.group(&(0..n).map(Rank).collect::<Vec<_>>());
    let step = Step::fold(group, (Region::Input, rank), (Region::Output, 0));
    b.push(0, step.with(flag::FINISH));
    b.finish()
}

/// Recursive doubling, for a power of two of ranks.
pub(in crate::plan) fn doubling(n: u32, rank: u32) -> Plan {
    let mut b = Builder::new(key(Collective::AllReduce, Algorithm::Doubling, n, rank), 1);
    let mut source = (Region::Input, 0);
    let mut bit = 1;
    while bit < n {
        let peer = Rank(rank ^ bit);
        let last = bit * 2 == n;
        let target = if last { Region::Output } else { Region::Work };
        let order = if peer.0 < rank { flag::INCOMING_FIRST } else { 0 };
        let finish = if last { flag::FINISH } else { 0 };
        b.push(0, Step::send(peer, source.0, 0).wide(bit > 1));
        let step = Step::recv_reduce(peer, source, (target, 0)).wide(bit > 1);
        b.push(0, step.with(order | finish));
        source = (Region::Work, 0);
        bit *= 2;
    }
    b.finish()
}

/// An all_to_all: in place, posted blocks must have left before others come into their place.
pub(in crate::plan) fn exchange(n: u32, rank: u32) -> Plan {
    let mut b = Builder::new(key(Collective::AllToAll, Algorithm::Pairwise, n, rank), 1);
    b.push(0, Step::copy((Region::Input, rank), (Region::Output, rank)));
    for s in 1..n {
        let to = (rank + s) % n;
        b.push(0, Step::send(Rank(to), Region::Input, to));
    }
    for s in 1..n {
        let from = (rank + n - s) % n;
        b.push(0, Step::recv(Rank(from), Region::Output, from));
    }
    b.finish()
}

/// A broadcast down a line whose hops use lanes 0 and 1 in turn, so that lanes must wait.
pub(in crate::plan) fn relay(n: u32, rank: u32) -> Plan {
    let mut b = Builder::new(key(Collective::Broadcast, Algorithm::Ring, n, rank), 1);
    let (back, on) = ((rank as usize + 1) % 2, rank as usize % 2);
    let here = if rank == 0 {
        b.push(1, Step::copy((Region::Input, 0), (Region::Output, 0)))
    } else {
        b.push(back, Step::recv(Rank(rank - 1), Region::Output, 0))
    };
    if rank + 1 < n {
        b.push(on, Step::send(Rank(rank + 1), Region::Output, 0).after(here));
    }
    b.finish()
}

/// An all_reduce by two owners: sums go up in lane 0, results come down in a lane per owner, which
/// run far ahead of each other.
pub(in crate::plan) fn crossing(n: u32, rank: u32) -> Plan {
    let mut b = Builder::new(key(Collective::AllReduce, Algorithm::Tree, n, rank), n);
    let peer = 1 - rank;
    b.push(0, Step::send(Rank(peer), Region::Input, peer));
    let order = if rank == 0 { 0 } else { flag::INCOMING_FIRST };
    let step = Step::recv_reduce(Rank(peer), (Region::Input, rank), (Region::Output, rank));
    let whole = b.push(0, step.wide(false).with(order | flag::FINISH));
    let step = Step::send(Rank(peer), Region::Output, rank);
    b.push(1 + rank as usize, step.after(whole));
    b.push(1 + peer as usize, Step::recv(Rank(peer), Region::Output, peer));
    b.finish()
}

/// An all_reduce in peers' memory: every rank folds its chunk of all and stores it to all.
pub(in crate::plan) fn direct(n: u32, rank: u32) -> Plan {
    let mut b = Builder::new(key(Collective::AllReduce, Algorithm::Direct, n, rank), n);
    let others = || (1..n).map(|s| Rank((rank + s) % n));
    let group = b.group(&(0..n).map(Rank).collect::<Vec<_>>());
    for peer in others() {
        b.push(0, Step::wait_for(peer, 0));
    }
    let step = Step::fold(group, (Region::PeerInput, rank), (Region::Output, rank));
    b.push(0, step.with(flag::FINISH | flag::SPREAD));
    b.push(0, Step::post(1));
    for peer in others() {
        b.push(0, Step::wait_for(peer, 1));
    }
    b.finish()
}

/// An all_reduce by way of stages: contributions, then results.
pub(in crate::plan) fn staged(n: u32, rank: u32) -> Plan {
    let mut b = Builder::new(key(Collective::AllReduce, Algorithm::Staged, n, rank), n);
    let others = || (1..n).map(|s| Rank((rank + s) % n));
    let group = b.group(&(0..n).map(Rank).collect::<Vec<_>>());
    for peer in others() {
        b.push(0, Step::copy((Region::Input, peer.0), (Region::Stage, peer.0)));
    }
    b.push(0, Step::post(1));
    for peer in others() {
        b.push(0, Step::wait_for(peer, 1));
    }
    let step = Step::fold(group, (Region::PeerStage, rank), (Region::Output, rank));
    b.push(0, step.with(flag::FINISH | flag::SPREAD));
    b.push(0, Step::post(2));
    for peer in others() {
        b.push(0, Step::wait_for(peer, 2));
        let step = Step::copy((Region::PeerStage, peer.0), (Region::Output, peer.0));
        b.push(0, Step { from: peer.0, ..step });
    }
    b.finish()
}

/// A barrier by dissemination.
pub(in crate::plan) fn barrier(n: u32, rank: u32) -> Plan {
    let mut b = Builder::new(key(Collective::Barrier, Algorithm::Doubling, n, rank), 1);
    let mut far = 1;
    while far < n {
        b.push(0, Step::send(Rank((rank + far) % n), Region::Input, 0));
        b.push(0, Step::recv(Rank((rank + n - far) % n), Region::Output, 0));
        far *= 2;
    }
    b.finish()
}
