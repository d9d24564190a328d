use std::sync::Arc;

use super::*;
use crate::algo::{self, Hosts};
use crate::plan::{Key, Plan, Verb};
use crate::types::Rank;

fn facts(world: u32, memory: Memory) -> Facts {
    Facts {
        rank: Rank(0),
        world,
        hosts: Arc::new(Hosts::new(&vec![0; world as usize]).expect("a world")),
        deterministic: false,
        algorithm: None,
        tile_bytes: 64 << 10,
        window: 2,
        capacity: 256 << 10,
        memory,
        table: None,
    }
}

/// What the model says of: all that it knows of, in each world.
fn known() -> impl Iterator<Item = (Collective, Algorithm)> {
    let all = Collective::ALL.iter().filter(|c| !c.point_to_point());
    let pairs = all.flat_map(|&c| Algorithm::ALL.iter().map(move |&a| (c, a)));
    pairs.filter(|&(c, a)| {
        algo::offers(a, c) && !matches!(a, Algorithm::Direct | Algorithm::Hierarchical)
    })
}

fn best(facts: &Facts, collective: Collective, bytes: u64) -> Algorithm {
    let able = Algorithm::ALL.iter().filter(|&&a| {
        let key = Key {
            collective,
            algorithm: a,
            world: facts.world,
            rank: Rank(0),
            root: Rank(0),
            prepared: false,
        };
        a != Algorithm::Staged && algo::plan(&key, None).is_some()
    });
    let time = |&a: &Algorithm| estimate(facts, collective, a, bytes).unwrap_or(u64::MAX);
    able.copied().min_by_key(time).expect("one")
}

#[test]
fn every_plan_has_an_estimate_that_grows_with_the_bytes() {
    for (collective, algorithm) in known() {
        for world in [2, 3, 4, 7, 8, 64, 1000, 16_384] {
            for memory in [Memory::Apart, Memory::Given] {
                let facts = facts(world, memory);
                let mut last = 0;
                for shift in 0..64 {
                    let time = estimate(&facts, collective, algorithm, 1 << shift);
                    let time = time.unwrap_or_else(|| panic!("{collective} by {algorithm:?}"));
                    assert!(time >= last, "{collective} by {algorithm:?}, {world} ranks, {shift}");
                    last = time;
                }
            }
        }
    }
    for &collective in Collective::ALL.iter().filter(|c| !c.point_to_point()) {
        let time = estimate(&facts(1, Memory::Apart), collective, Algorithm::Pairwise, 1 << 20);
        assert!(time.unwrap_or(0) == 0, "nothing moves in a world of one");
    }
}

/// Messages of the rank that sends, or receives, most.
fn messages(plans: &[Plan]) -> u64 {
    let sends = |verb| matches!(verb, Verb::Send | Verb::RecvReduceSend | Verb::RecvCopySend);
    let busiest = plans.iter().map(|plan| {
        let sent = plan.steps.iter().filter(|step| sends(step.verb)).count();
        let received = plan.steps.iter().map(|step| match step.verb {
            Verb::Recv | Verb::RecvReduce | Verb::RecvReduceSend | Verb::RecvCopySend => 1,
            Verb::Fold if plan.stage_chunks == 0 => plan.groups[step.from as usize].len() - 1,
            _ => 0,
        });
        sent.max(received.sum())
    });
    busiest.max().unwrap_or(0) as u64
}

#[test]
fn loads_are_what_the_plans_have() {
    let mut wrong = Vec::new();
    for (collective, algorithm) in known() {
        for world in (2..=17).chain([32, 33]) {
            let key = |rank| Key {
                collective,
                algorithm,
                world,
                rank: Rank(rank),
                root: Rank(0),
                prepared: false,
            };
            let plans: Option<Vec<Plan>> =
                (0..world).map(|rank| algo::plan(&key(rank), None)).collect();
            let Some(plans) = plans.filter(|_| algorithm != Algorithm::Staged) else { continue };
            let load = load(algorithm, collective, world, 1 << 20).expect("a load");
            let name = format!("{collective} by {algorithm:?}, {world} ranks: {load:?}");
            let counted = messages(&plans);
            let barrier = collective == Collective::Barrier;
            let parts = |load: u64, plan: u32| barrier || load == u64::from(plan);
            if !(counted..=2 * counted).contains(&load.messages)
                || !parts(load.range, plans[0].range_max)
                || !parts(load.parts, plans[0].chunks)
            {
                let (range, chunks) = (plans[0].range_max, plans[0].chunks);
                wrong.push(format!("{name}: {counted} messages of {range}, {chunks} chunks"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn few_hops_win_while_small_and_few_bytes_when_large() {
    use Algorithm as A;
    use Collective as C;
    let mut wrong = Vec::new();
    let (kib, mib) = (1 << 10, 1 << 20);
    for (world, collective, bytes, wanted) in [
        (2, C::AllReduce, 8, A::Doubling),
        (2, C::AllReduce, 32 * kib, A::Doubling),
        (4, C::AllReduce, 8, A::Doubling),
        (4, C::AllReduce, 64 * mib, A::Pairwise),
        (16, C::AllReduce, kib, A::Doubling),
        (64, C::AllReduce, 8, A::Doubling),
        (63, C::AllReduce, 256 * mib, A::Ring),
        (4, C::Broadcast, 8, A::Binomial),
        (4, C::Broadcast, 64 * mib, A::Pairwise),
        (4, C::Reduce, 8, A::Binomial),
        (16, C::AllToAll, 8, A::Bruck),
        (16, C::AllToAll, mib, A::Pairwise),
        (63, C::AllGather, 8, A::Bruck),
        (63, C::AllGather, 16 * mib, A::Ring),
        (4, C::Gather, mib, A::Pairwise),
        (64, C::Gather, 8, A::Binomial),
        (4, C::ReduceScatter, mib, A::Pairwise),
        (63, C::ReduceScatter, 16 * mib, A::Ring),
        (8, C::Barrier, 0, A::Doubling),
    ] {
        let found = best(&facts(world, Memory::Apart), collective, bytes);
        if found != wanted {
            wrong.push(format!("{found:?} for {collective} of {bytes} B by {world} ranks"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
