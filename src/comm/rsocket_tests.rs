//! Ranks whose only link is sockets of librdmacm, over the stand-in: each test in a process of its
//! own, whose ranks are threads that form by an id.

use std::time::Instant;

use super::Communicator;
use super::rdma_tests::{LONG, ranks};
use crate::config::Config;
use crate::error::{Code, Result};
use crate::types::{Rank, ReduceOp};
use crate::{alone, standin_rdma};

/// Whether this is the process of the test, with these variables; else it has been run there.
macro_rules! alone {
    ($test:ident $(, $name:literal = $value:expr)*) => {
        let name = concat!("comm::rsocket_tests::", stringify!($test));
        if !alone::by_itself(name, &[$(($name, $value)),*]) {
            return;
        }
    };
}

fn config() -> Config {
    let library = standin_rdma::rdma().to_str().expect("UTF-8").to_owned();
    let (ibverbs_lib, rdmacm_lib) = (Some(library.clone()), Some(library));
    let (shm, rdma, rsocket, tcp, timeout) = (false, false, true, false, Some(LONG));
    Config { shm, rdma, rsocket, tcp, timeout, ibverbs_lib, rdmacm_lib, ..Config::default() }
}

fn sum(comm: &Communicator, count: usize) -> Result<()> {
    let me = f32::from(u16::try_from(comm.rank().0).expect("few"));
    let world = f32::from(u16::try_from(comm.world_size()).expect("few"));
    let (send, mut recv) = (vec![me; count], vec![0.0; count]);
    comm.all_reduce(&send, &mut recv, ReduceOp::Sum)?;
    let wanted = world * (world - 1.0) / 2.0;
    assert!(recv.iter().all(|one| *one == wanted), "{:?}, not {wanted}", &recv[..1]);
    Ok(())
}

#[test]
fn calls_of_all_sizes_are_right_even_where_little_goes_at_a_time() {
    for variables in [&[][..], &[("STANDIN_RSOCKET_SHORT", "5000")]] {
        let name = "comm::rsocket_tests::calls_of_all_sizes_are_right_even_where_little_goes_at_a_\
                    time";
        if !alone::by_itself(name, variables) {
            continue;
        }
        ranks(3, &config(), |comm| {
            for count in [1, 100, 5000, 70_000, 1_000_000] {
                (0..3).for_each(|_| sum(&comm, count).expect("a sum"));
            }
        });
        return;
    }
}

/// Here, that is: the library copies what is sent once more, and nobody can count that.
#[test]
fn no_byte_of_registered_memory_is_copied_by_us() {
    alone!(no_byte_of_registered_memory_is_copied_by_us);
    const BYTES: usize = 3 << 20;
    ranks(2, &config(), |comm| {
        let memory = || {
            let at = comm.alloc(BYTES).expect("memory").cast::<f32>();
            // SAFETY: so much is there until the communicator ends, and nobody else's.
            unsafe { std::slice::from_raw_parts_mut(at, BYTES / 4) }
        };
        let (send, recv) = (memory(), memory());
        let peer = Rank(1 - comm.rank().0);
        for _ in 0..3 {
            send.fill(1.5);
            let before = comm.bytes_copied();
            match comm.rank().0 {
                0 => comm.send(send, peer),
                _ => comm.recv(recv, peer),
            }
            .expect("a message");
            comm.all_reduce(send, recv, ReduceOp::Sum).expect("a sum");
            assert_eq!(comm.bytes_copied() - before, 0, "bytes were copied");
        }
        // Into plain memory they are copied out of the ring, which shows that it is counted.
        let before = comm.bytes_copied();
        let mut into = vec![0f32; BYTES / 4];
        match comm.rank().0 {
            0 => comm.send(send, peer).expect("sent"),
            _ => {
                comm.recv(&mut into, peer).expect("received");
                assert!(comm.bytes_copied() > before);
            }
        }
    });
}

/// More than a socket takes maps.
#[test]
fn memory_that_a_socket_does_not_take_goes_by_the_ring() {
    alone!(memory_that_a_socket_does_not_take_goes_by_the_ring);
    ranks(2, &config(), |comm| {
        let all: Vec<*mut u8> = (0..140).map(|_| comm.alloc(64 << 10).expect("memory")).collect();
        for at in all.iter().copied() {
            // SAFETY: so much is there until it is freed, and nobody else's.
            let part = unsafe { std::slice::from_raw_parts_mut(at.cast::<f32>(), 16 << 10) };
            part.fill(2.0);
            comm.broadcast(part, Rank(1)).expect("a broadcast");
            assert!(part.iter().all(|one| *one == 2.0));
        }
        for at in all {
            // SAFETY: nobody uses it any more.
            unsafe { comm.free(at) }.expect("freed");
        }
        // Their places are free again.
        let at = comm.alloc(1 << 20).expect("memory").cast::<f32>();
        // SAFETY: as above.
        let part = unsafe { std::slice::from_raw_parts_mut(at, 1 << 18) };
        let before = comm.bytes_copied();
        comm.broadcast(part, Rank(0)).expect("a broadcast");
        assert_eq!(comm.bytes_copied(), before);
    });
}

/// Nobody waits for the deadline.
#[test]
fn a_rank_that_leaves_is_noticed_and_has_sent_what_it_sent() {
    alone!(a_rank_that_leaves_is_noticed_and_has_sent_what_it_sent);
    let begun = Instant::now();
    ranks(2, &config(), |comm| {
        if comm.rank().0 == 0 {
            comm.send(&[7f32; 30_000], Rank(1)).expect("sent");
        } else {
            let mut got = [0f32; 30_000];
            comm.recv(&mut got, Rank(0)).expect("it was sent");
            assert!(got.iter().all(|one| *one == 7.0));
            let error = comm.recv(&mut got, Rank(0)).expect_err("nothing more");
            assert!(matches!(error.code, Code::PeerLost | Code::Mismatch), "{error}");
        }
    });
    assert!(begun.elapsed() < LONG);
}

#[test]
fn without_a_card_ranks_use_other_links_and_say_why() {
    alone!(without_a_card_ranks_use_other_links_and_say_why, "STANDIN_RDMA_NONE" = "1");
    let config = Config { tcp: true, ..config() };
    ranks(2, &config, |comm| {
        sum(&comm, 1000).expect("by tcp");
        let notes = comm.notes().join("\n");
        assert!(notes.contains("no rsocket (RDMA) here: no RDMA card is there"), "{notes}");
    });
}

/// Who may use both goes by queue pairs.
#[test]
fn rdma_is_preferred() {
    alone!(rdma_is_preferred);
    let config = Config { rdma: true, ..config() };
    ranks(2, &config, |comm| {
        sum(&comm, 1000).expect("a sum");
        let notes = comm.notes().join("\n");
        assert!(notes.contains("RDMA by standin0"), "{notes}");
    });
}
