use std::sync::Barrier;
use std::thread;

use super::*;
use crate::boot::key::Key;
use crate::boot::rendezvous::Rendezvous;

fn job() -> UniqueId {
    let local = ["127.0.0.1:0".parse().expect("address")];
    let server = Rendezvous::listen(&local, Key::random().expect("key")).expect("listen");
    server.unique_id().expect("id")
}

/// What a rank lacks before it comes is told to those who wait for it.
#[test]
fn a_rank_that_cannot_come_says_so() {
    let id = job();
    let form = |rank, interface: Option<&str>| {
        let interface = interface.map(str::to_owned);
        let config = Config { interface, ..Config::default() };
        processes(&id, rank, 2, &config, 0, None).map(drop).expect_err("rank 1 has no address")
    };
    let errors = thread::scope(|scope| {
        let waits = scope.spawn(|| form(0, None));
        let fails = scope.spawn(|| form(1, Some("nothing0")));
        [waits, fails].map(|rank| rank.join().expect("no panic"))
    });
    assert_eq!((errors[0].code, errors[0].peer), (Code::NoAddress, Some(Rank(1))));
    assert!(errors[0].detail.contains("rank 1 failed: "), "{}", errors[0]);
    assert_eq!((errors[1].code, errors[1].peer), (Code::NoAddress, None));
}

/// Rank 1 comes and then says nothing, as if it were stopped. Rank 2 has come later than rank 0 and
/// still waits for rank 1 when rank 0's time is over.
#[test]
fn a_rank_that_stops_after_it_came_is_named_alone() {
    let (id, gate) = (job(), Barrier::new(3));
    let form = |rank, seconds| {
        let init_timeout = Duration::from_secs(seconds);
        let config = Config { init_timeout, ..Config::default() };
        let result = processes(&id, rank, 3, &config, 0, None);
        gate.wait();
        result.map(drop).expect_err("rank 1 is silent")
    };
    let errors = thread::scope(|scope| {
        let silent = scope.spawn(|| {
            let door = LocalListener::new().expect("door");
            let (hint, name) = (host_hint(), door.name().to_owned());
            let (addresses, processors) = (Vec::new(), vec![1]);
            let card = Card {
                hint,
                name,
                addresses,
                processors,
                foreign: None,
                family: Family::Auto,
                gpu: None,
                rdma: None,
                rsocket: None,
            }
            .encode();
            let deadline = Instant::now() + Duration::from_secs(30);
            let joined = join(&id, 1, 3, &card, b"", deadline);
            gate.wait();
            joined.map(drop)
        });
        let (first, last) = (scope.spawn(|| form(0, 3)), scope.spawn(|| form(2, 6)));
        silent.join().expect("no panic").expect("it came");
        [first, last].map(|rank| rank.join().expect("no panic"))
    });
    for error in errors {
        assert_eq!((error.code, error.peer), (Code::MissingRanks, Some(Rank(1))), "{error}");
        assert!(error.detail.contains("rank 1 of 3"), "{error}");
    }
}
