use super::*;
use crate::types::Dtype;

fn tuner(world: u32, deterministic: bool, algorithm: Option<Algorithm>) -> Tuner {
    let hosts = Hosts::new(&vec![0; world as usize]).expect("a world");
    Tuner::new(Facts {
        rank: Rank(0),
        world,
        hosts: Arc::new(hosts),
        deterministic,
        algorithm,
        tile_bytes: 64 << 10,
        window: 2,
        capacity: 256 << 10,
        memory: Memory::Given,
        table: None,
    })
}

#[test]
fn an_algorithm_that_is_able_is_taken_when_asked_for_and_no_other() {
    for &collective in Collective::ALL.iter().filter(|c| !c.point_to_point()) {
        for (world, deterministic) in [(1, false), (2, true), (6, false), (6, true), (1024, false)]
        {
            for reach in [Reach::Messages, Reach::Stages, Reach::Buffers] {
                let call = Call { count: 1, ..Call::new(collective, Dtype::F32) };
                let able = tuner(world, deterministic, None).able(&call, reach);
                assert!(!able.is_empty(), "{collective} by {world}");
                for &asked in Algorithm::ALL {
                    let plan = tuner(world, deterministic, Some(asked)).plan(&call, reach);
                    let taken = plan.expect("a plan").key.algorithm == asked;
                    assert_eq!(taken, able.contains(&asked), "{asked:?} {collective} {world}");
                }
            }
        }
    }
}

#[test]
fn ranks_that_ask_for_direct_meet_whatever_the_size() {
    let call = Call { count: 1, ..Call::new(Collective::AllReduce, Dtype::F32) };
    assert_eq!(tuner(4, false, None).route(&call), Route::Flat);
    assert_eq!(tuner(4, false, Some(Algorithm::Direct)).route(&call), Route::Meet);
    assert_eq!(tuner(4, false, Some(Algorithm::Staged)).route(&call), Route::Staged);
    assert_eq!(tuner(4, false, Some(Algorithm::Ring)).route(&call), Route::Links);
}

fn with_table(world: u32, memory: Memory, rows: &str) -> Tuner {
    let table = Table::parse(&format!("unisono-tuning 1\n{rows}")).expect("a table");
    let facts = tuner(world, false, None).facts;
    Tuner::new(Facts { memory, table: Some(Arc::new(table)), ..facts })
}

fn all_reduce(count: u64) -> Call {
    Call { count, ..Call::new(Collective::AllReduce, Dtype::F32) }
}

#[test]
fn a_table_decides_before_the_model_and_after_what_is_asked_for() {
    let rows = "all_reduce ranks=4 hosts=1 reach=messages bytes<=64 ring
        all_reduce ranks=4 hosts=1 reach=messages bytes<=128 bruck
        all_reduce ranks=4 hosts=1 reach=messages bytes=any tree
        all_reduce ranks=5 hosts=1 reach=messages bytes=any binomial";
    let mut tuner = with_table(4, Memory::Apart, rows);
    let mut taken = |count| {
        let choice = tuner.choose(&all_reduce(count), Reach::Messages).expect("a choice");
        let chosen = tuner.take_chosen().expect("it was just made");
        assert_eq!(choice.plan.key.algorithm, chosen.algorithm);
        chosen
    };
    for _ in 0..2 {
        assert_eq!((taken(1).algorithm, taken(16).algorithm), (Algorithm::Ring, Algorithm::Ring));
        let passed_over = taken(17);
        assert!(matches!(passed_over.reason, Reason::Estimate(_)), "bruck does no all_reduce");
        assert_eq!(taken(33).algorithm, Algorithm::Tree);
        assert!(matches!(taken(33).reason, Reason::Table(row) if row.bytes == u64::MAX));
    }
    tuner.prefer(Some(Algorithm::Halving));
    tuner.choose(&all_reduce(1), Reach::Messages).expect("a choice");
    let asked = Chosen { algorithm: Algorithm::Halving, reason: Reason::Asked };
    assert_eq!((tuner.take_chosen(), tuner.take_chosen()), (Some(asked), None));
}

#[test]
fn a_table_can_give_a_small_call_a_plan() {
    let rows = "all_reduce ranks=4 hosts=1 reach=stages bytes<=8 model
        all_reduce ranks=4 hosts=1 reach=stages bytes<=16 model
        all_reduce ranks=4 hosts=1 reach=stages bytes<=32 doubling";
    let tuner = with_table(4, Memory::Given, rows);
    let route = |count| tuner.route(&all_reduce(count));
    let routes = [route(2), route(4), route(8), route(9)];
    assert_eq!(routes, [Route::Flat, Route::Flat, Route::Meet, Route::Flat]);
}

#[test]
fn all_ranks_choose_the_same() {
    for world in [2, 3, 8, 17] {
        for &collective in Collective::ALL.iter().filter(|c| !c.point_to_point()) {
            for shift in (0..34).step_by(3) {
                let call = Call { count: 1 << shift, ..Call::new(collective, Dtype::F32) };
                let chosen = |rank| {
                    let facts = tuner(world, false, None).facts;
                    let mut tuner = Tuner::new(Facts { rank: Rank(rank), ..facts });
                    let choice = tuner.choose(&call, Reach::Messages).expect("a choice");
                    (tuner.take_chosen(), choice.tile, choice.window, choice.hash)
                };
                let first = chosen(0);
                assert!((1..world).all(|rank| chosen(rank) == first), "{collective} {world}");
            }
        }
    }
}
