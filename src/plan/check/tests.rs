use super::*;
use crate::plan::build::Builder;
use crate::plan::{Algorithm, Key, Region, flag};

fn key(collective: Collective, world: u32, rank: u32) -> Key {
    Key {
        collective,
        algorithm: Algorithm::Ring,
        world,
        rank: Rank(rank),
        root: Rank(0),
        prepared: false,
    }
}

/// A ring all_reduce: partial sums travel once around, then results do.
fn ring(n: u32, rank: u32) -> Plan {
    let mut b = Builder::new(key(Collective::AllReduce, n, rank), n);
    let (next, prev) = (Rank((rank + 1) % n), Rank((rank + n - 1) % n));
    let chunk = |back: u32| (rank + 2 * n - back) % n;
    let send = Step::send(next, Region::Input, chunk(0)).with(flag::WIDE);
    b.push(0, send);
    for s in 1..n - 1 {
        b.push(
            0,
            Step::recv_reduce_send(prev, (Region::Input, chunk(s)), next),
        );
    }
    let last = chunk(n - 1);
    let step = Step::recv_reduce(prev, (Region::Input, last), (Region::Output, last));
    b.push(0, step.with(flag::FINISH));
    b.push(0, Step::send(next, Region::Output, last));
    for s in 0..n - 2 {
        b.push(
            0,
            Step::recv_copy_send(prev, Region::Output, chunk(s), next),
        );
    }
    b.push(0, Step::recv(prev, Region::Output, chunk(n - 2)));
    b.finish()
}

fn world(n: u32) -> Vec<Plan> {
    (0..n).map(|r| ring(n, r)).collect()
}

#[test]
fn a_ring_passes() {
    for n in 2..=9 {
        let plans = world(n);
        let proof = check(&plans, Options::default()).unwrap_or_else(|f| panic!("{n}: {f}"));
        assert_eq!(proof.rounds, 2 * (n - 1));
        assert_eq!(proof.messages, 2 * (n - 1) * n);
        assert_eq!(proof.sent_max, 2 * (n - 1));
        assert!(!proof.ordered);
    }
}
