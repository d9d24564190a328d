//! The checker's proofs: every algorithm, collective, world and placement, and the roots that may
//! make a difference: the first two, the middle and the last (not that, on worlds above 64).

use super::*;
use crate::plan::check::{Options, Proof, check};
use Collective as C;

const LARGE: [u32; 5] = [65, 96, 100, 127, 128];

fn key(collective: Collective, algorithm: Algorithm, world: u32) -> Key {
    Key { collective, algorithm, world, rank: Rank(0), root: Rank(0), prepared: false }
}

/// The plans of all ranks, or `None` if there are none. All ranks agree on that.
fn plans(key: &Key, hosts: Option<&Hosts>) -> Option<Vec<Plan>> {
    let of = |r| plan(&Key { rank: Rank(r), ..key.clone() }, hosts);
    let plans: Vec<Option<Plan>> = (0..key.world).map(of).collect();
    let some = plans.iter().flatten().count();
    assert!(some == 0 || some == plans.len(), "{key:?}: {some} ranks have a plan");
    plans.into_iter().collect()
}

/// Proves one call; `None` if there is no plan.
fn prove(key: &Key, hosts: Option<&Hosts>) -> Option<Proof> {
    let plans = plans(key, hosts)?;
    let options = Options {
        in_place: in_place(key.algorithm, key.collective),
        ..Options::for_world(plans.len())
    };
    let proof = check(&plans, options);
    let Key { algorithm, collective, world, root, prepared, .. } = key;
    let name = format!(
        "{} {collective} of {world}, root {root}, prepared {prepared}, hosts {hosts:?}",
        algorithm.name()
    );
    let proof = proof.unwrap_or_else(|flaw| panic!("{name}: {flaw}"));
    Some(proof)
}

/// Proves one world with all roots that may matter; returns the proof for root 0, unprepared.
fn prove_world(
    collective: Collective,
    algorithm: Algorithm,
    world: u32,
    hosts: Option<&Hosts>,
) -> Option<Proof> {
    let mut roots =
        if collective.rooted() { vec![0, 1 % world, world / 2, world - 1] } else { vec![0] };
    roots.dedup();
    if LARGE.contains(&world) {
        roots.truncate(3);
    }
    let mut first = None;
    let mut in_order = true;
    for root in roots {
        for prepared in [false, true] {
            if prepared && !collective.reduces() {
                continue;
            }
            let key = Key { root: Rank(root), prepared, ..key(collective, algorithm, world) };
            let proof = prove(&key, hosts);
            in_order &= proof.is_none_or(|p| p.ordered);
            if root == 0 && !prepared {
                first = Some(proof);
            }
        }
    }
    let first = first.flatten();
    if collective.reduces() && first.is_some() {
        let promised = ordered(algorithm, collective, world, hosts);
        assert_eq!(
            in_order, promised,
            "{algorithm:?} {collective} of {world} in tree order, {hosts:?}"
        );
    }
    first
}

fn worlds() -> impl Iterator<Item = u32> {
    (1..=64).chain(LARGE)
}

/// Proves all worlds and hands each proof to `costs`.
fn prove_all(algorithm: Algorithm, costs: impl Fn(Collective, u32, Proof)) {
    for collective in Collective::ALL.iter().copied().filter(|c| !c.point_to_point()) {
        for world in worlds() {
            let proof = prove_world(collective, algorithm, world, None);
            let expected = offers(algorithm, collective) && !excepted(algorithm, collective, world);
            assert_eq!(proof.is_some(), expected, "{algorithm:?} {collective} of {world}");
            if let Some(proof) = proof.filter(|_| world > 1) {
                costs(collective, world, proof);
            }
        }
    }
}

/// Worlds that an algorithm leaves out.
fn excepted(algorithm: Algorithm, collective: Collective, world: u32) -> bool {
    let halves = match algorithm {
        Algorithm::Doubling => matches!(collective, C::AllGather | C::AllGatherV),
        Algorithm::Halving => matches!(collective, C::ReduceScatter | C::ReduceScatterV),
        _ => false,
    };
    halves && !world.is_power_of_two()
}

/// Asserts a world's costs: messages of all ranks, chunks sent by the busiest, hops.
#[track_caller]
fn cost(proof: Proof, messages: u32, sent: u32, hops: u32) {
    assert_eq!((proof.messages, proof.sent_max, proof.rounds), (messages, sent, hops));
}

/// The same with bounds for what is sent and the hops.
#[track_caller]
fn cost_within(proof: Proof, messages: u32, sent: u32, hops: u32) {
    assert_eq!(proof.messages, messages);
    assert!(proof.sent_max <= sent, "{} chunks sent, at most {sent}", proof.sent_max);
    assert!(proof.rounds <= hops, "{} hops, at most {hops}", proof.rounds);
}

#[test]
fn ring_is_proven() {
    prove_all(Algorithm::Ring, |collective, n, proof| match collective {
        C::AllReduce => cost(proof, 2 * n * (n - 1), 2 * (n - 1), 2 * (n - 1)),
        C::Reduce | C::Broadcast => cost(proof, n - 1, 1, n - 1),
        _ => cost(proof, n * (n - 1), n - 1, n - 1),
    });
}

#[test]
fn binomial_is_proven() {
    prove_all(Algorithm::Binomial, |collective, n, proof| {
        let l = n.next_power_of_two().ilog2();
        match collective {
            C::AllReduce | C::Barrier => cost_within(proof, 2 * (n - 1), l + 1, 2 * l),
            C::Reduce => cost_within(proof, n - 1, 1, l),
            C::Broadcast => cost_within(proof, n - 1, l, l),
            _ => cost_within(proof, n - 1, n - 1, l),
        }
    });
}

#[test]
fn tree_is_proven() {
    prove_all(Algorithm::Tree, |collective, n, proof| {
        let l = n.ilog2();
        match collective {
            C::AllReduce => cost_within(proof, 4 * (n - 1), 4, 2 * l + 2),
            C::Reduce => cost_within(proof, 2 * (n - 1), 2, l + 2),
            _ => cost_within(proof, 2 * (n - 1), 3, l + 2),
        }
    });
}

#[test]
fn doubling_is_proven() {
    prove_all(Algorithm::Doubling, |collective, n, proof| {
        let (l, ceil) = (n.ilog2(), n.next_power_of_two().ilog2());
        match collective {
            C::Barrier => cost(proof, n * ceil, ceil, ceil),
            C::AllReduce if n.is_power_of_two() => cost(proof, n * l, l, l),
            C::AllReduce => cost_within(proof, proof.messages, 2 * l + 1, l + 2),
            _ => cost(proof, n * l, n - 1, l),
        }
    });
}

#[test]
fn halving_is_proven() {
    prove_all(Algorithm::Halving, |collective, n, proof| {
        let l = n.ilog2();
        let p = 1 << l;
        match collective {
            C::AllReduce if n == p => cost(proof, 2 * n * l, 2 * (p - 1), 2 * l),
            C::AllReduce => cost_within(proof, proof.messages, 2 * p, 2 * l),
            _ => cost_within(proof, proof.messages, n, l + 1),
        }
    });
}

#[test]
fn pairwise_is_proven() {
    prove_all(Algorithm::Pairwise, |collective, n, proof| match collective {
        C::AllReduce => cost(proof, 2 * n * (n - 1), 2 * (n - 1), 2),
        C::Reduce if n == 2 => cost(proof, 1, 1, 1),
        C::Reduce => cost(proof, n * (n - 1), n - 1, 2),
        C::Broadcast => cost(proof, (n - 1) * (n - 1), n - 1, n.min(3) - 1),
        C::Gather | C::GatherV => cost(proof, n - 1, 1, 1),
        C::Scatter | C::ScatterV => cost(proof, n - 1, n - 1, 1),
        _ => cost(proof, n * (n - 1), n - 1, 1),
    });
}

#[test]
fn direct_is_proven() {
    prove_all(Algorithm::Direct, |collective, n, proof| match collective {
        C::AllReduce => cost(proof, 0, 2 * (n - 1), 2),
        C::Barrier => cost(proof, 0, 0, 1),
        C::Broadcast | C::Scatter => cost(proof, 0, 1, 2),
        _ => cost(proof, 0, n - 1, 2),
    });
}

#[test]
fn staged_is_proven() {
    prove_all(Algorithm::Staged, |collective, n, proof| match collective {
        C::AllReduce => cost(proof, 0, 2 * (n - 1), 2),
        C::Reduce => cost_within(proof, 0, 2 * (n - 1), 3),
        // In quarters.
        C::Broadcast => cost(proof, 0, 4, 2),
        C::Scatter => cost(proof, 0, 1, 2),
        _ => cost_within(proof, 0, n - 1, 2),
    });
}

#[test]
fn bruck_is_proven() {
    prove_all(Algorithm::Bruck, |collective, n, proof| {
        let ceil = n.next_power_of_two().ilog2();
        if collective == C::AllToAll {
            cost_within(proof, n * ceil, n / 2 * ceil, ceil);
        } else {
            assert!(proof.messages <= 2 * n * ceil);
            cost(proof, proof.messages, n - 1, ceil);
        }
    });
}

#[test]
fn one_message_is_proven() {
    for from in [0, 1] {
        let of = |rank| {
            let collective = if rank == from { C::Send } else { C::Recv };
            let key = Key {
                rank: Rank(rank),
                root: Rank(1 - rank),
                ..key(collective, Algorithm::Pairwise, 2)
            };
            plan(&key, None).expect("a plan")
        };
        let proof = check(&[of(0), of(1)], Options::default());
        cost(proof.unwrap_or_else(|flaw| panic!("{flaw}")), 1, 1, 1);
    }
    let own = key(C::Send, Algorithm::Pairwise, 2);
    assert_eq!(plan(&own, None), None, "no rank sends to itself");
}

#[test]
fn arguments_that_fit_no_plan_get_none() {
    let right = key(C::AllReduce, Algorithm::Hierarchical, 4);
    let hosts = |n: u32| Hosts::new(&vec![7; n as usize]);
    assert!(plan(&right, hosts(4).as_ref()).is_some());
    assert_eq!(plan(&right, None), None, "no hosts");
    assert_eq!(plan(&right, hosts(5).as_ref()), None, "hosts of another world");
    let right = key(C::AllReduce, Algorithm::Ring, 4);
    assert!(plan(&right, None).is_some());
    for wrong in [
        Key { world: 0, ..right.clone() },
        Key { world: WORLD_MAX + 1, ..right.clone() },
        Key { rank: Rank(4), ..right.clone() },
        Key { root: Rank(4), ..right.clone() },
        Key { algorithm: Algorithm::Bruck, ..right.clone() },
        Key { collective: C::AllGather, prepared: true, ..right.clone() },
        Key { algorithm: Algorithm::Direct, prepared: true, ..right },
    ] {
        assert_eq!(plan(&wrong, None), None, "{wrong:?}");
    }
    assert_eq!(Hosts::new(&[]), None);
}

#[test]
fn the_largest_worlds_have_plans() {
    for world in [1000, WORLD_MAX] {
        let marks: Vec<u32> = (0..world).map(|r| r / 8).collect();
        let hosts = Hosts::new(&marks).expect("a world of ranks");
        for &algorithm in Algorithm::ALL {
            for &collective in Collective::ALL.iter().filter(|c| offers(algorithm, **c)) {
                for rank in [0, world - 1] {
                    let key = Key {
                        rank: Rank(rank),
                        root: Rank(world / 3),
                        ..key(collective, algorithm, world)
                    };
                    let bruck = (algorithm, collective) == (Algorithm::Bruck, C::AllToAll);
                    let left_out = excepted(algorithm, collective, world)
                        || (bruck && world > BRUCK_WORLD_MAX);
                    let found = plan(&key, Some(&hosts)).is_some();
                    assert_eq!(found, !left_out, "{key:?}");
                }
            }
        }
    }
}

#[test]
fn hosts_too_unequal_get_no_plan() {
    let marks: Vec<u32> = (0..WORLD_MAX).map(|r| r.saturating_sub(WORLD_MAX / 2)).collect();
    let hosts = Hosts::new(&marks).expect("a world of ranks");
    for collective in [C::AllReduce, C::AllGather, C::ReduceScatter] {
        for rank in [0, WORLD_MAX - 1] {
            let key =
                Key { rank: Rank(rank), ..key(collective, Algorithm::Hierarchical, WORLD_MAX) };
            assert_eq!(plan(&key, Some(&hosts)), None);
        }
    }
}

#[test]
fn hosts_nest_where_the_tree_splits_between_them() {
    let nest = |sizes: &[u32]| {
        let runs = sizes.iter().enumerate();
        let marks: Vec<u32> = runs.flat_map(|(h, s)| vec![small(h); *s as usize]).collect();
        Hosts::new(&marks).expect("a world of ranks").nest()
    };
    for sizes in [&[5][..], &[4, 4], &[4, 4, 4], &[4, 4, 3], &[8, 1], &[1, 1, 1], &[2, 2, 3]] {
        assert!(nest(sizes), "{sizes:?}");
    }
    for sizes in [&[3, 3][..], &[4, 3, 4], &[1, 8], &[4, 2, 1], &[6, 2]] {
        assert!(!nest(sizes), "{sizes:?}");
    }
    let interleaved = Hosts::new(&[9, 4, 9, 4]).expect("a world of ranks");
    assert!(!interleaved.nest());
    assert_eq!((interleaved.count(), interleaved.of(Rank(3))), (2, 1));
    assert_eq!(interleaved.members(0), [Rank(0), Rank(2)]);
}

/// Hosts of these sizes, over and over until the world is full.
fn sized(world: u32, sizes: &[u32]) -> Vec<u32> {
    let run = |(host, size): (usize, &u32)| vec![small(host); *size as usize];
    sizes.iter().cycle().enumerate().flat_map(run).take(world as usize).collect()
}

/// Hosts of a world: one, a rank each, halves, and others equal and unequal, in runs and
/// interleaved. Small worlds have all of the others, larger ones take turns with the unequal.
fn layouts(world: u32) -> Vec<Hosts> {
    let by = |f: fn(u32) -> u32| -> Vec<u32> { (0..world).map(f).collect() };
    let mut layouts = vec![
        sized(world, &[world]),
        sized(world, &[1]),
        sized(world, &[world.div_ceil(2), world.div_ceil(2)]),
    ];
    let unequal = [
        sized(world, &[1, 5, 2]),
        by(|r| r * r % 7 % 4),
        sized(world, &[7, 1]),
        by(|r| if r % 9 == 4 { r } else { 0 }),
        sized(world, &[3, 6]),
    ];
    if world <= 20 {
        let equal = [2, 3, 4, 8].map(|size| sized(world, &[size]));
        layouts.extend(equal.into_iter().chain(unequal));
        layouts.extend([by(|r| r % 2), by(|r| r % 3 * 10), by(|r| r % 5)]);
    } else {
        layouts.push(unequal[world as usize % unequal.len()].clone());
    }
    let hosts = layouts.iter().map(|marks| Hosts::new(marks).expect("a world of ranks"));
    let mut layouts: Vec<Hosts> = hosts.collect();
    layouts.sort_by(|a, b| a.of_rank.cmp(&b.of_rank));
    layouts.dedup();
    layouts
}

#[test]
fn every_world_is_laid_out_in_four_ways() {
    for world in worlds() {
        let layouts = layouts(world);
        let sizes = |hosts: &Hosts| -> Vec<usize> {
            (0..hosts.count()).map(|host| hosts.members(host).len()).collect()
        };
        let has = |wanted: &dyn Fn(&[usize]) -> bool| layouts.iter().any(|h| wanted(&sizes(h)));
        let spread = |s: &[usize]| s.iter().max() > s.iter().min().map(|least| least + 1).as_ref();
        assert!(has(&|s| s.len() == 1), "one host of {world}");
        assert!(has(&|s| s.len() == world as usize), "a rank a host of {world}");
        assert!(world < 2 || has(&|s| s.len() == 2 && !spread(s)), "halves of {world}");
        assert!(world < 4 || has(&spread), "unequal hosts of {world}");
    }
}

fn prove_hosts(collective: Collective, hosts: &Hosts) -> Option<Proof> {
    let world = hosts.world();
    let proof = prove_world(collective, Algorithm::Hierarchical, world, Some(hosts));
    assert_eq!(proof.is_some(), offers(Algorithm::Hierarchical, collective));
    proof
}

fn prove_layouts(collectives: &[Collective]) {
    for collective in collectives {
        for world in worlds() {
            for hosts in layouts(world) {
                prove_hosts(*collective, &hosts);
            }
        }
    }
}

#[test]
fn hierarchical_is_proven() {
    prove_layouts(&[C::AllReduce, C::Broadcast, C::AllGather, C::AllGatherV]);
}

#[test]
fn hierarchical_is_proven_for_one_sided_results() {
    prove_layouts(&[C::Reduce, C::ReduceScatter, C::ReduceScatterV]);
}

#[test]
fn hierarchical_costs_what_it_says_on_equal_hosts() {
    for (h, s) in [(2, 2), (2, 8), (8, 2), (3, 5), (4, 16)] {
        let n = h * s;
        let marks: Vec<u32> = (0..n).map(|r| r / s).collect();
        let hosts = Hosts::new(&marks).expect("a world of ranks");
        let proof = |collective| prove_hosts(collective, &hosts).expect("a plan");
        cost(proof(C::AllReduce), 2 * n * (s + h - 2), 2 * (n - 1), 4);
        cost(proof(C::Reduce), n * (s + h - 2) + n - 1, n, 3);
        cost(proof(C::ReduceScatter), n * (n - 1), n - 1, 2);
        cost(proof(C::AllGather), n * (n - 1), n - 1, 2);
        let hops = h.next_power_of_two().ilog2() + s.next_power_of_two().ilog2();
        cost_within(proof(C::Broadcast), n - 1, hops, hops);
    }
}
