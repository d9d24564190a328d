//! The elements of a buffer may outnumber 32 bits.

use std::sync::{Mutex, PoisonError};

use unisono::comm::Communicator;
use unisono::config::Config;
use unisono::types::{Rank, ReduceOp};

use crate::support::skip;

const COUNT: usize = (4 << 30) + 5;

/// Two at once need twice the memory.
static ALONE: Mutex<()> = Mutex::new(());

/// Whether two such buffers fit into memory; if not, the test is skipped.
fn fits(test: &str) -> bool {
    let info = std::fs::read_to_string("/proc/meminfo").expect("meminfo");
    let line = info.lines().find(|l| l.starts_with("MemAvailable:")).expect("MemAvailable");
    let kib: usize = line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("KiB");
    if kib < 11 << 20 {
        skip(test, &format!("needs 11 GiB of free memory, {} are there", kib >> 20));
        return false;
    }
    true
}

#[test]
fn more_than_four_gibi_elements() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    if !fits("more_than_four_gibi_elements") {
        return;
    }
    let comms = Communicator::init_all(2, &Config::default()).expect("init");
    std::thread::scope(|scope| {
        for comm in comms {
            scope.spawn(move || {
                let root = comm.rank() == Rank(0);
                let mut data = vec![0u8; COUNT];
                if root {
                    data[COUNT - 1] = 7;
                    data[(4 << 30) - 1] = 8;
                    data[1 << 31] = 9;
                }
                comm.broadcast(&mut data, Rank(0)).expect("broadcast");
                assert_eq!([data[COUNT - 1], data[(4 << 30) - 1], data[1 << 31]], [7, 8, 9]);
                comm.all_reduce_in_place(&mut data[COUNT - 100..], ReduceOp::Max).expect("max");
            });
        }
    });
}

#[test]
fn more_than_four_gibi_elements_are_reduced_through_shared_memory() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    if !fits("more_than_four_gibi_elements_are_reduced_through_shared_memory") {
        return;
    }
    let id = unisono::unique_id().expect("an id");
    let mut config = Config::default();
    config.set_links("shm").expect("links");
    let reduce = |rank: u8| {
        let comm = Communicator::init_rank(&id, i64::from(rank), 2, &config).expect("init");
        let mut data = vec![rank + 1; COUNT];
        let marks = [0, 1 << 31, (4 << 30) - 1, 4 << 30, COUNT - 1];
        marks.iter().for_each(|&at| data[at] = 10 * (rank + 1));
        comm.all_reduce_in_place(&mut data, ReduceOp::Sum).expect("sum");
        for at in marks {
            assert_eq!(data[at], 30, "element {at}");
            data[at] = 3;
        }
        for (number, chunk) in data.chunks(1 << 20).enumerate() {
            assert!(chunk.iter().all(|&x| x == 3), "in the {number}-th MiB of rank {rank}");
        }
        comm.destroy().expect("destroy");
    };
    std::thread::scope(|scope| {
        for rank in 0..2 {
            let reduce = &reduce;
            scope.spawn(move || reduce(rank));
        }
    });
}
