//! The checker against plans broken on purpose, and against a second reading of what plans mean.

mod chaos;

use self::chaos::Chaos;
use super::flow::random;
use super::*;
use crate::plan::build::Builder;
use crate::plan::samples::{self, key};
use crate::plan::{Algorithm, NO_STEP, Region, Verb, flag};

fn world(n: u32, make: fn(u32, u32) -> Plan) -> Vec<Plan> {
    (0..n).map(|rank| make(n, rank)).collect()
}

/// The flaw that `change` brings to a world.
fn flaw(mut plans: Vec<Plan>, change: impl FnOnce(&mut [Plan])) -> String {
    assert_eq!(check(&plans, Options::default()).err(), None, "right before the change");
    change(&mut plans);
    match check(&plans, Options::default()) {
        Ok(proof) => panic!("passed: {proof:?}\n{}", plans[1]),
        Err(flaw) => flaw.to_string(),
    }
}

fn set_steps(plan: &mut Plan, lane: usize, change: impl FnOnce(&mut Vec<Step>)) {
    let mut lanes: Vec<Vec<Step>> = (0..plan.lanes()).map(|l| plan.lane(l).to_vec()).collect();
    change(&mut lanes[lane]);
    let mut start = 0;
    plan.lane_starts = std::iter::once(0)
        .chain(lanes.iter().map(|l| {
            start += u16::try_from(l.len()).unwrap();
            start
        }))
        .collect();
    plan.steps = lanes.concat().into();
}

#[test]
fn right_plans_pass() {
    for (name, plans, ordered) in samples::all() {
        let proof = check(&plans, Options::default()).unwrap_or_else(|f| panic!("{name}: {f}"));
        assert_eq!(proof.ordered, ordered, "{name}");
    }
}

#[test]
fn a_proof_counts() {
    for n in 2..=9 {
        let proof = check(&world(n, samples::ring), Options::default()).unwrap();
        assert_eq!((proof.rounds, proof.messages), (2 * (n - 1), 2 * (n - 1) * n));
        assert_eq!((proof.sent_max, proof.steps_max), (2 * (n - 1), 2 * n as usize));
    }
    let proof = check(&world(8, samples::doubling), Options::default()).unwrap();
    assert_eq!((proof.rounds, proof.messages, proof.ordered), (3, 24, true));
    let proof = check(&world(5, samples::fold), Options::default()).unwrap();
    assert_eq!((proof.rounds, proof.messages, proof.ordered), (1, 20, true));
    let proof = check(&world(5, samples::direct), Options::default()).unwrap();
    assert_eq!((proof.rounds, proof.messages, proof.ordered), (2, 0, true));
}

#[test]
fn a_missing_step_is_found() {
    for index in 0..8 {
        flaw(world(4, samples::ring), |plans| {
            set_steps(&mut plans[1], 0, |steps| {
                steps.remove(index);
            });
        });
    }
}

#[test]
fn swapped_steps_are_found() {
    for index in 0..7 {
        flaw(world(4, samples::ring), |plans| {
            plans[1].steps.swap(index, index + 1);
        });
    }
}

#[test]
fn a_message_that_is_said_to_be_stored_and_is_folded_is_found() {
    let text = flaw(world(4, samples::ring), |plans| plans[1].steps[0].flags ^= flag::STORED);
    assert!(text.contains("is to be stored, and is not"), "{text}");
    let text = flaw(world(4, samples::ring), |plans| {
        let step = plans[1].steps.iter_mut().find(|step| step.has(flag::STORED));
        step.expect("results go around").flags ^= flag::STORED;
    });
    assert!(text.contains("is to be folded, and is not"), "{text}");
}

#[test]
fn a_wrong_peer_is_found() {
    let text = flaw(world(4, samples::ring), |plans| plans[1].steps[1].to = 3);
    assert!(text.contains("combines what does not belong together"), "{text}");
    let text = flaw(world(4, samples::ring), |plans| plans[1].steps[7].from = 3);
    assert!(text.contains("nobody can move"), "{text}");
    let text = flaw(world(4, samples::ring), |plans| plans[1].steps[0].to = 1);
    assert!(text.ends_with("`to` is 1, not another rank of 4"), "{text}");
}

#[test]
fn a_wrong_chunk_is_found() {
    let text = flaw(world(4, samples::ring), |plans| {
        plans[1].steps[2].source_chunk = 1;
    });
    assert!(
        text.starts_with(
            "rank 1 lane 0 step 2 tile 0: recv_reduce_send  from 0 to 2  input[1] + message(wide) \
             -> message(wide): combines what does not belong together: 1[1] + (0+3)[3]"
        ),
        "{text}"
    );
    let text = flaw(world(4, samples::ring), |plans| {
        plans[1].steps[7].target_chunk = 4;
    });
    assert!(text.ends_with("output[4], but rank 1 has 4"), "{text}");
}

#[test]
fn counting_twice_is_found() {
    let text = flaw(world(4, samples::doubling), |plans| {
        for (plan, peer) in plans.iter_mut().zip([1, 0, 3, 2]) {
            (plan.steps[2].to, plan.steps[3].from) = (peer, peer);
        }
    });
    assert!(text.contains("counts rank 0 twice: (0+1)[0] + (0+1)[0]"), "{text}");
}

/// Each step that settles does so for what it writes itself: none makes another's settle idle.
#[test]
fn a_missing_settle_is_found() {
    for number in 0..2 {
        let text = flaw(world(3, samples::exchange), |plans| {
            let mut settling = plans[1].steps.iter_mut().filter(|s| s.has(flag::SETTLE));
            settling.nth(number).unwrap().flags &= !flag::SETTLE;
        });
        assert!(text.contains("what lane 0 of rank 1 posted and what may not have left"), "{text}");
        assert!(text.ends_with("(in place)"), "{text}");
    }
}

#[test]
fn settling_for_nothing_is_found() {
    let text = flaw(world(3, samples::exchange), |plans| {
        let send = plans[1].steps.iter_mut().find(|s| s.verb == Verb::Send).unwrap();
        send.flags |= flag::SETTLE;
    });
    assert!(text.ends_with("settles, but writes nothing here"), "{text}");
}

/// Two lanes that run ahead of each other: each rank's receiving lane settles while its sending
/// lane has more posted than the link takes. That is fine as long as it waits for its own place
/// only.
#[test]
fn settling_waits_for_its_own_place_only() {
    let plans = world(2, samples::crossing);
    assert_eq!(check(&plans, Options::default()).err(), None);
    let (window, slots) = (2, 3);
    let run = |tiles: u32, all: bool, schedule| {
        let places = Places::new(&plans, Shape::of(&plans, (tiles, window), true));
        let flow = Flow::new(&plans, &places, slots, schedule);
        if all { flow.settling_all().run(&mut ()) } else { flow.run(&mut ()) }
    };
    let schedule = late(Order::Ascending, true, false);
    assert_eq!(run(3, true, schedule), Ok(()), "the links take that much");
    assert_eq!(run(8, false, schedule), Ok(()));
    let text = run(8, true, schedule).unwrap_err().to_string();
    assert!(text.contains("nobody can move, with 3 slots a link"), "{text}");
    assert!(text.contains("waits for what it posted to ranks [1] to leave"), "{text}");
    // Every run of the checker is long enough to show it.
    for (window, schedule) in RUNS {
        let shape = Shape::of(&plans, (tiles_ahead(window), window), true);
        let places = Places::new(&plans, shape);
        let flow = Flow::new(&plans, &places, window + 1, schedule).settling_all();
        let stuck = flow.run(&mut ()).is_err();
        assert!(stuck || !schedule.settle_last || schedule.slow_links, "window {window}");
    }
}

/// A lane is held at the start of a block, so what it posts is bounded.
#[test]
fn lanes_are_held_between_blocks() {
    struct Ahead(u32);
    impl flow::Watch for Ahead {
        fn step(&mut self, site: Site, _: &Step) -> Result<(), Flaw> {
            let tile = if site.lane == 0 { site.tile } else { 0 };
            self.0 = self.0.max(tile);
            // The receiver does nothing.
            if site.rank == Rank(1) { Err(Flaw::of_rank(Rank(1), String::new())) } else { Ok(()) }
        }
    }
    let make = |rank: u32| {
        let mut b = Builder::new(key(Collective::Broadcast, Algorithm::Tree, 2, rank), 1);
        if rank == 0 {
            b.push(0, Step::send(Rank(1), Region::Input, 0));
            b.push(1, Step::copy((Region::Input, 0), (Region::Output, 0)));
        } else {
            b.push(0, Step::recv(Rank(0), Region::Output, 0));
        }
        b.finish()
    };
    let plans: Vec<Plan> = (0..2).map(make).collect();
    assert_eq!(check(&plans, Options::default()).err(), None);
    let places = Places::new(&plans, Shape::of(&plans, (20, 2), true));
    for (slow_links, last) in [(false, 3), (true, 1)] {
        let mut ahead = Ahead(0);
        let schedule = late(Order::Ascending, true, slow_links);
        Flow::new(&plans, &places, 3, schedule).run(&mut ahead).unwrap_err();
        assert_eq!(ahead.0, last, "slow links {slow_links}");
    }
}

/// What orders two lanes here is a round trip of chunk 1. Where the last tile has none of it, there
/// is no such message, and nothing orders what they do with chunk 0.
#[test]
fn order_by_messages_without_elements_is_found() {
    let make = |rank: u32| {
        let mut b = Builder::new(key(Collective::Broadcast, Algorithm::Tree, 2, rank), 2);
        let peer = Rank(1 - rank);
        if rank == 0 {
            b.push(0, Step::send(peer, Region::Input, 0));
            b.push(0, Step::send(peer, Region::Input, 1));
            b.push(0, Step::copy((Region::Input, 0), (Region::Output, 0)).over(2));
            let back = b.push(0, Step::recv(peer, Region::Work, 1));
            b.push(1, Step::send(peer, Region::Input, 1).after(back));
        } else {
            b.push(0, Step::recv(peer, Region::Output, 0));
            b.push(0, Step::recv(peer, Region::Output, 1));
            b.push(0, Step::send(peer, Region::Output, 1));
            b.push(1, Step::recv(peer, Region::Work, 1));
            b.push(1, Step::copy((Region::Output, 0), (Region::Work, 0)));
        }
        b.finish()
    };
    let mut plans: Vec<Plan> = (0..2).map(make).collect();
    let text = check(&plans, Options::default()).unwrap_err().to_string();
    assert!(text.contains("reads what lane 0 of rank 1 writes at the same time"), "{text}");
    assert!(text.ends_with("output[0] (with empty chunks)"), "{text}");
    let got = crate::plan::build::StepId { lane: 0, index: 0 };
    set_steps(&mut plans[1], 1, |steps| steps[1] = steps[1].after(got));
    assert_eq!(check(&plans, Options::default()).err(), None);
}

/// Scratch is as long as the chunk of its number; another chunk may be longer.
#[test]
fn scratch_of_another_length_is_found() {
    let text = flaw(samples::all().swap_remove(2).1, |plans| {
        // Rank 1 puts its contributions one further on, and reads them there.
        for step in &mut plans[1].steps {
            step.source_chunk += u32::from(step.source == Region::Work);
            step.target_chunk += u32::from(step.target == Region::Work);
        }
        plans[1].work_chunks += 1;
    });
    assert!(text.ends_with("which has another length"), "{text}");
}

#[test]
fn a_missing_wait_is_found() {
    let text = flaw(world(4, samples::relay), |plans| {
        set_steps(&mut plans[2], 0, |steps| {
            (steps[0].wait_step, steps[0].wait_lane) = (NO_STEP, 0);
        });
    });
    assert!(text.contains("reads what nothing was written to"), "{text}");
}

#[test]
fn lanes_that_cross_are_found() {
    let text = flaw(world(4, samples::relay), |plans| {
        // Rank 1 sends on lane 0 what rank 2 expects on lane 1.
        let recv = plans[1].lane(0)[0];
        let send = Step { lane: 0, wait_step: NO_STEP, ..plans[1].lane(1)[0] };
        let mut b = Builder::new(plans[1].key.clone(), 1);
        b.push(0, recv);
        b.push(0, send);
        plans[1] = b.finish();
    });
    assert!(text.contains("nobody can move"), "{text}");
    assert!(text.contains("waits for message 0 of rank 1"), "{text}");
}

/// In place, the root's copy does nothing, so another lane may read at the same time.
#[test]
fn a_copy_onto_itself_touches_nothing() {
    let make = |rank: u32| {
        let mut b = Builder::new(key(Collective::Broadcast, Algorithm::Tree, 2, rank), 1);
        if rank == 0 {
            b.push(0, Step::copy((Region::Input, 0), (Region::Output, 0)));
            b.push(1, Step::send(Rank(1), Region::Input, 0));
        } else {
            b.push(1, Step::recv(Rank(0), Region::Output, 0));
        }
        b.finish()
    };
    let plans: Vec<Plan> = (0..2).map(make).collect();
    assert_eq!(check(&plans, Options::default()).err(), None);
}

/// Scratch that one lane fills and another empties is filled again by the next block of tiles.
#[test]
fn scratch_reused_under_another_lane_is_found() {
    let make = |rank: u32| {
        let mut b = Builder::new(key(Collective::Broadcast, Algorithm::Tree, 2, rank), 1);
        if rank == 0 {
            b.push(0, Step::copy((Region::Input, 0), (Region::Output, 0)));
            b.push(0, Step::send(Rank(1), Region::Input, 0));
        } else {
            let here = b.push(0, Step::recv(Rank(0), Region::Work, 0));
            b.push(1, Step::copy((Region::Work, 0), (Region::Output, 0)).after(here));
        }
        b.finish()
    };
    let plans: Vec<Plan> = (0..2).map(make).collect();
    let text = check(&plans, Options::default()).unwrap_err().to_string();
    assert!(
        text.contains("reads what lane 0 of rank 1 writes at the same time or later"),
        "{text}"
    );
    let one_block = Options { tiles: 2, ..Options::default() };
    assert_eq!(check(&plans, one_block).err(), None);
}

#[test]
fn forms_and_stages_are_found() {
    let with = |at: usize, change: fn(&mut u8)| {
        flaw(world(4, samples::ring), |plans| {
            change(&mut plans[1].steps[at].flags);
        })
    };
    let text = with(1, |f| *f &= !flag::WIDE);
    assert!(text.ends_with("the message of rank 0 is wide, the step takes native"), "{text}");
    let text = with(0, |f| *f &= !flag::WIDE);
    assert!(text.ends_with("the message of rank 1 is native, the step takes wide"), "{text}");
    let text = with(3, |f| *f &= !flag::FINISH);
    assert!(text.contains("rounds the partial result (1+(0+(3+2)))[2]"), "{text}");
    let text = with(2, |f| *f |= flag::FINISH);
    assert!(text.ends_with("finishes (1+(0+3))[3], which lacks rank 2"), "{text}");
    let text = flaw(world(4, samples::ring), |plans| {
        set_steps(&mut plans[1], 0, |steps| {
            let step = Step::copy((Region::Output, 2), (Region::Output, 2)).with(flag::FINISH);
            steps.insert(4, step);
        });
    });
    assert!(text.ends_with("finishes (1+(0+(3+2)))[2] twice"), "{text}");
    let prepared = samples::all().swap_remove(2).1;
    let text = flaw(prepared, |plans| plans[1].steps[0].flags &= !flag::PREPARE);
    assert!(text.contains("combines what does not belong together"), "{text}");
    let text = flaw(world(3, samples::exchange), |plans| {
        plans[1].steps[0].flags |= flag::FINISH;
    });
    assert!(text.ends_with("all_to_all combines nothing"), "{text}");
}

#[test]
fn direct_plans_wait_for_peers() {
    let without = |index: usize| {
        flaw(world(3, samples::direct), |plans| {
            set_steps(&mut plans[1], 0, |steps| {
                steps.remove(index);
            });
        })
    };
    let text = without(0);
    assert!(
        text.ends_with("uses memory of rank 2, which may not have begun: peer.input[1]"),
        "{text}"
    );
    let text = without(5);
    assert!(text.contains("rank 1: may end while lane 0 of rank 0 still uses"), "{text}");
    let text = without(3);
    assert!(text.contains("waits for phase 1 of rank 1"), "{text}");
}

#[test]
fn stages_are_not_overwritten_too_soon() {
    let without = |index: usize| {
        flaw(world(3, samples::staged), |plans| {
            for plan in plans {
                set_steps(plan, 0, |steps| {
                    steps.remove(index);
                });
            }
        })
    };
    // The first wait of each rank is for the next.
    let text = without(3);
    assert!(text.contains("may not have begun: peer.stage[1]"), "{text}");
    let text = without(7);
    assert!(text.contains("reads what nothing was written to: peer.stage[0]"), "{text}");
    // One that loads nothing and waits for nobody would overtake the others.
    let text = flaw(world(3, samples::staged), |plans| {
        for plan in plans {
            set_steps(plan, 0, |steps| steps.retain(|step| step.verb != Verb::Await));
        }
    });
    assert!(text.contains("peer.stage["), "{text}");
}

/// A root that stages and never waits runs into what the others still load.
#[test]
fn a_root_waits_for_those_who_load() {
    let make = |rank: u32, waits: bool| {
        let key = key(Collective::Broadcast, Algorithm::Staged, 3, rank);
        let mut b = Builder::new(key, 1);
        if rank > 0 {
            b.push(0, Step::wait_for(Rank(0), 1));
            let step = Step::copy((Region::PeerStage, 0), (Region::Output, 0));
            b.push(0, Step { from: 0, ..step });
            b.push(0, Step::post(1));
            return b.finish();
        }
        b.push(0, Step::copy((Region::Input, 0), (Region::Stage, 0)));
        b.push(0, Step::post(1));
        b.push(0, Step::copy((Region::Input, 0), (Region::Output, 0)));
        b.push(0, Step::wait_for(Rank(1), 1));
        if waits {
            b.push(0, Step::wait_for(Rank(2), 1));
        }
        b.finish()
    };
    let plans = |waits: bool| (0..3).map(|rank| make(rank, waits)).collect::<Vec<_>>();
    assert_eq!(check(&plans(true), Options::default()).err(), None);
    let text = check(&plans(false), Options::default()).unwrap_err().to_string();
    assert!(text.contains("stages more than a block before rank 2 has begun"), "{text}");
    // One tile is one block: what it leaves behind is for the next call to mind.
    let one = Options { tiles: 1, window: 1, ..Options::default() };
    assert!(check(&plans(true), one).is_ok());
}

#[test]
fn a_barrier_hears_of_everyone() {
    let text = flaw(world(4, samples::barrier), |plans| {
        for plan in plans {
            set_steps(plan, 0, |steps| steps.truncate(2));
        }
    });
    assert!(text.ends_with("leaves the barrier before it knows that rank 1 came"), "{text}");
}

/// More than the slots of a link in one circle of blocking steps.
#[test]
fn a_circle_without_room_is_found() {
    let make = |rank: u32| {
        let mut b = Builder::new(key(Collective::AllReduce, Algorithm::Ring, 2, rank), 8);
        let peer = Rank(1 - rank);
        for chunk in (rank * 4)..(rank * 4 + 4) {
            b.push(0, Step::send(peer, Region::Input, chunk).wide(true));
        }
        for chunk in ((1 - rank) * 4)..((1 - rank) * 4 + 4) {
            let step = Step::recv_reduce_send(peer, (Region::Input, chunk), peer);
            b.push(0, step.into((Region::Output, chunk)).with(flag::FINISH));
        }
        for chunk in (rank * 4)..(rank * 4 + 4) {
            b.push(0, Step::recv(peer, Region::Output, chunk).wide(true));
        }
        b.finish()
    };
    let plans: Vec<Plan> = (0..2).map(make).collect();
    let text = check(&plans, Options::default()).unwrap_err().to_string();
    assert!(text.contains("nobody can move, with 3 slots a link: it waits for room"), "{text}");
}

/// A random change of one plan.
struct Change {
    what: String,
    /// It concerns only when a step runs, which often does not matter.
    timing: bool,
}

/// Changes one thing of one plan; `None` where the choice happens to change nothing.
fn mutate(plans: &mut [Plan], seed: &mut u64) -> Option<Change> {
    let mut pick = |below: usize| usize::try_from(random(seed)).unwrap() % below.max(1);
    let rank = pick(plans.len());
    let plan = &mut plans[rank];
    let at = pick(plan.steps.len());
    let (world, steps) = (plan.key.world as usize, plan.steps.len());
    let lane = usize::from(plan.steps[at].lane);
    let index = at - usize::from(plan.lane_starts[lane]);
    let before = plan.clone();
    let kind = pick(14);
    let mut number = |below: usize| u32::try_from(pick(below)).unwrap();
    let step = &mut plan.steps[at];
    let own = [Region::Input, Region::Output, Region::Work, Region::PeerInput];
    match kind {
        0 => step.verb = Verb::ALL[pick(Verb::ALL.len())],
        1 | 2 => step.flags ^= 1 << number(6),
        3 => step.source = own[pick(4)],
        4 => step.target = [Region::Output, Region::Work, Region::None][pick(3)],
        5 => step.from = number(world),
        6 => step.to = number(world),
        7 => step.source_chunk = number(world),
        8 => step.target_chunk = number(world),
        9 => step.chunks = 1 + number(2),
        10 => step.wait_step = if step.wait_step == NO_STEP { 0 } else { NO_STEP },
        11 => set_steps(plan, lane, |steps| {
            steps.remove(index);
        }),
        12 => plan.steps.swap(at, (at + 1) % steps),
        _ => set_steps(plan, lane, |steps| steps.insert(index, steps[index])),
    }
    if *plan == before {
        return None;
    }
    let settle = kind <= 2 && (plan.steps[at].flags ^ before.steps[at].flags) == flag::SETTLE;
    Some(Change {
        what: format!("change {kind} of rank {rank} lane {lane} step {index}"),
        timing: settle || kind == 10 || kind == 12,
    })
}

/// What the checker lets pass is right in every order of things that the second reading tries, and
/// of changes to what a step does it lets hardly any pass.
#[test]
fn random_changes_are_found_or_harmless() {
    let mut seed = 0x1234_5678_9abc_def1;
    let (mut changed, mut passed, mut timing, mut failing) = (0, 0, 0, 0);
    for (name, plans, _) in samples::all() {
        for _ in 0..400 {
            let mut plans = plans.clone();
            let Some(change) = mutate(&mut plans, &mut seed) else {
                continue;
            };
            changed += usize::from(!change.timing);
            let result = check(&plans, Options::default());
            let sound = structure::world(&plans).is_ok()
                && plans.iter().all(|p| structure::plan(p).is_ok());
            if !sound {
                continue;
            }
            let fault = (0..40).find_map(|run| Chaos::new(&plans, run % 2 == 1, run).run().err());
            failing += usize::from(fault.is_some());
            if result.is_ok() {
                timing += usize::from(change.timing);
                passed += usize::from(!change.timing);
                let what = &change.what;
                assert_eq!(fault, None, "{name}, {what}: passes\n{}", plans[0]);
            }
        }
    }
    println!(
        "{changed} changes, {passed} harmless, and {timing} of timing; {failing} fail when run"
    );
    assert!(passed * 20 < changed, "{passed} of {changed} changes pass");
}
