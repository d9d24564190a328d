//! Ranks whose only link is RDMA, over the stand-in for its libraries: each test in a process of
//! its own, whose ranks are threads that form by an id.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use super::{Communicator, unique_id};
use crate::config::Config;
use crate::error::{Code, Result};
use crate::sys::watch::Watch;
use crate::types::{Rank, ReduceOp};
use crate::{alone, standin_rdma};

/// Whether this is the process of the test, with these variables; else it has been run there.
macro_rules! alone {
    ($test:ident $(, $name:literal = $value:expr)*) => {
        let name = concat!("comm::rdma_tests::", stringify!($test));
        if !alone::by_itself(name, &[$(($name, $value)),*]) {
            return;
        }
    };
}

/// Far more than any of these calls takes.
pub(super) const LONG: Duration = Duration::from_secs(20);

fn config() -> Config {
    let library = standin_rdma::rdma().to_str().expect("UTF-8").to_owned();
    let libraries = (Some(library.clone()), Some(library));
    let (ibverbs_lib, rdmacm_lib) = libraries;
    let (shm, tcp, timeout) = (false, false, Some(LONG));
    Config { shm, tcp, timeout, ibverbs_lib, rdmacm_lib, ..Config::default() }
}

/// Runs `rank` on `world` threads, each with a communicator of `config`.
pub(super) fn ranks<R: Send>(
    world: u32,
    config: &Config,
    rank: impl Fn(Communicator) -> R + Sync,
) -> Vec<R> {
    let id = unique_id().expect("an id");
    thread::scope(|scope| {
        let start = |me: u32| {
            let (id, rank) = (&id, &rank);
            scope.spawn(move || {
                let made = Communicator::init_rank(id, i64::from(me), i64::from(world), config);
                rank(made.unwrap_or_else(|error| panic!("rank {me}: {error}")))
            })
        };
        let threads: Vec<_> = (0..world).map(start).collect();
        threads.into_iter().map(|thread| thread.join().expect("a rank")).collect()
    })
}

/// Sums of so many elements, many times; what is wrong is told.
fn sums(comm: &Communicator, count: usize, times: usize) -> Result<()> {
    let me = f32::from(u16::try_from(comm.rank().0).expect("few"));
    let world = f32::from(u16::try_from(comm.world_size()).expect("few"));
    for time in 0..times {
        let value = f32::from(u16::try_from(time % 100).expect("few")) + me;
        let send = vec![value; count];
        let mut recv = vec![0.0; count];
        comm.all_reduce(&send, &mut recv, ReduceOp::Sum)?;
        let wanted = (value - me) * world + world * (world - 1.0) / 2.0;
        assert!(recv.iter().all(|one| *one == wanted), "{:?}, not {wanted}", &recv[..1]);
    }
    Ok(())
}

#[test]
fn calls_of_all_sizes_are_right_over_one_card_two_cards_and_without_immediates() {
    for variables in [
        &[][..],
        &[("STANDIN_RDMA_DEVICES", "2")],
        &[("STANDIN_RDMA_IWARP", "1")],
        &[("STANDIN_RDMA_INLINE", "0")],
    ] {
        let name = "comm::rdma_tests::calls_of_all_sizes_are_right_over_one_card_two_cards_and_\
                    without_immediates";
        if !alone::by_itself(name, variables) {
            continue;
        }
        ranks(3, &config(), |comm| {
            for count in [1, 100, 5000, 70_000, 1_000_000] {
                sums(&comm, count, 3).expect("a sum");
            }
        });
        return;
    }
}

/// A call on two buffers.
type Step<'a> = dyn Fn(&mut [f32], &mut [f32]) -> Result<()> + 'a;

/// Memory that the cards reach.
#[test]
fn no_byte_of_registered_memory_is_copied_by_a_processor() {
    alone!(no_byte_of_registered_memory_is_copied_by_a_processor);
    const BYTES: usize = 3 << 20;
    // Of memory that is not registered, nothing is kept.
    let config = Config { rdma_cache: Some(0), ..config() };
    ranks(2, &config, |comm| {
        let memory = || {
            let at = comm.alloc(BYTES).expect("memory").cast::<f32>();
            // SAFETY: so much is there until the communicator ends, and nobody else's.
            unsafe { std::slice::from_raw_parts_mut(at, BYTES / 4) }
        };
        let (send, recv) = (memory(), memory());
        let half = BYTES / 8;
        let peer = Rank(1 - comm.rank().0);
        let mut check = |what: &str, call: &Step<'_>| {
            for _ in 0..3 {
                send.fill(1.5);
                let before = comm.bytes_copied();
                call(send, recv).expect(what);
                assert_eq!(comm.bytes_copied() - before, 0, "{what}: bytes were copied");
            }
        };
        check("all_reduce", &|send, recv| comm.all_reduce(send, recv, ReduceOp::Sum));
        check("all_gather", &|send, recv| comm.all_gather(&send[..half], recv));
        check("broadcast", &|send, _| comm.broadcast(send, Rank(1)));
        check("all_to_all", &|send, recv| comm.all_to_all(send, recv));
        check("reduce_scatter", &|send, recv| {
            comm.reduce_scatter(send, &mut recv[..half], ReduceOp::Sum)
        });
        check("a message", &|send, recv| match comm.rank().0 {
            0 => comm.send(send, peer),
            _ => comm.recv(recv, peer),
        });
        let before = comm.bytes_copied();
        // And of plain memory they are, which shows that it is counted.
        let (plain, mut into) = (vec![1f32; half], vec![0f32; half]);
        comm.all_reduce(&plain, &mut into, ReduceOp::Sum).expect("a sum");
        assert!(comm.bytes_copied() > before);
    });
}

/// Registered at its first use, and watched.
#[test]
fn no_byte_of_plain_memory_is_copied_by_a_processor() {
    alone!(no_byte_of_plain_memory_is_copied_by_a_processor);
    const COUNT: usize = 700_000;
    ranks(2, &config(), |comm| {
        let peer = Rank(1 - comm.rank().0);
        let (send, mut recv) = (vec![1f32; COUNT], vec![0f32; COUNT]);
        let before = comm.bytes_copied();
        for _ in 0..3 {
            comm.all_reduce(&send, &mut recv, ReduceOp::Sum).expect("a sum");
            match comm.rank().0 {
                0 => comm.send(&send, peer),
                _ => comm.recv(&mut recv, peer),
            }
            .expect("a message");
        }
        let copied = comm.bytes_copied() - before;
        if Watch::new(send.as_ptr() as usize, 4096).is_some() {
            assert_eq!(copied, 0, "bytes were copied");
        } else {
            println!("the kernel does not let memory be watched: {copied} bytes were copied");
        }
    });
}

/// Less is kept than the calls use, by the setting and by what the system lets cards lock.
#[test]
fn what_is_kept_is_bounded() {
    for variables in [&[][..], &[("STANDIN_RDMA_LOCKED", "20000000")]] {
        if !alone::by_itself("comm::rdma_tests::what_is_kept_is_bounded", variables) {
            continue;
        }
        let kept = if variables.is_empty() { Some(5 << 20) } else { None };
        let config = Config { rdma_cache: kept, ..config() };
        ranks(2, &config, |comm| {
            let me = f32::from(u16::try_from(comm.rank().0).expect("few"));
            let mut buffers: Vec<Vec<f32>> = (1..9).map(|n| vec![me; n * 100_000]).collect();
            for turn in 0..40 {
                let buffer = &mut buffers[turn * 5 % 8];
                buffer.fill(me);
                comm.all_reduce_in_place(buffer, ReduceOp::Sum).expect("a sum");
                assert!(buffer.iter().all(|one| *one == 1.0), "turn {turn}");
            }
        });
        return;
    }
}

/// Both ranks are told, and nobody waits for the deadline.
#[test]
fn a_card_that_dies_ends_calls_with_its_status() {
    alone!(a_card_that_dies_ends_calls_with_its_status, "STANDIN_RDMA_FAIL" = "standin0:400");
    let begun = Instant::now();
    let errors =
        ranks(2, &config(), |comm| sums(&comm, 100_000, 10_000).expect_err("the card dies"));
    assert!(begun.elapsed() < LONG, "{errors:?}");
    for error in &errors {
        assert!(matches!(error.code, Code::LinkLost | Code::PeerLost), "{error}");
    }
    assert!(errors.iter().any(|error| error.code == Code::LinkLost && error.native != 0));
}

/// What it did not bring is sent again by the other, and the ranks go on.
#[test]
fn a_card_of_two_that_dies_is_done_without() {
    for fails in ["standin0:100", "standin0:4000", "standin1:100", "standin1:1500"] {
        let variables = [("STANDIN_RDMA_DEVICES", "2"), ("STANDIN_RDMA_FAIL", fails)];
        let name = "comm::rdma_tests::a_card_of_two_that_dies_is_done_without";
        if !alone::by_itself(name, &variables) {
            continue;
        }
        ranks(3, &config(), |comm| {
            for count in [10, 5000, 1_000_000, 300, 70_000] {
                sums(&comm, count, 30).expect("by the other card");
            }
        });
        return;
    }
}

#[test]
fn a_rank_that_leaves_has_sent_what_it_sent() {
    alone!(a_rank_that_leaves_has_sent_what_it_sent);
    for _ in 0..20 {
        let together = Barrier::new(2);
        ranks(2, &config(), |comm| {
            if comm.rank().0 == 0 {
                comm.send(&[7f32; 3000], Rank(1)).expect("sent");
                drop(comm);
                together.wait();
            } else {
                together.wait();
                let mut got = [0f32; 3000];
                comm.recv(&mut got, Rank(0)).expect("it was sent");
                assert!(got.iter().all(|one| *one == 7.0));
            }
        });
    }
}

#[test]
fn memory_that_may_not_be_locked_is_named_with_the_remedy() {
    alone!(
        memory_that_may_not_be_locked_is_named_with_the_remedy,
        "STANDIN_RDMA_LOCKED" = "1000000"
    );
    let id = unique_id().expect("an id");
    let config = config();
    thread::scope(|scope| {
        for me in 0..2 {
            let (id, config) = (&id, &config);
            scope.spawn(move || {
                let error = Communicator::init_rank(id, me, 2, config).expect_err("no memory");
                assert_eq!(error.code, Code::Unsupported);
                assert!(error.detail.contains("ulimit -l"), "{error}");
            });
        }
    });
}

#[test]
fn without_a_card_ranks_use_other_links_and_say_why() {
    alone!(without_a_card_ranks_use_other_links_and_say_why, "STANDIN_RDMA_NONE" = "1");
    let config = Config { tcp: true, ..config() };
    ranks(2, &config, |comm| {
        sums(&comm, 1000, 2).expect("by tcp");
        let notes = comm.notes().join("\n");
        assert!(notes.contains("no RDMA here: no RDMA card is there"), "{notes}");
    });
}
