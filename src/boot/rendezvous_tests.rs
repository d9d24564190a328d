use std::io::{Read, Write};
use std::sync::mpsc;
use std::thread;

use super::*;

const LONG: Duration = Duration::from_secs(60);

fn start() -> (Rendezvous, UniqueId) {
    let local = ["127.0.0.1:0".parse().expect("address")];
    let server = Rendezvous::listen(&local, Key::random().expect("key")).expect("listen");
    let id = server.unique_id().expect("id");
    (server, id)
}

/// Runs one closure per entry as a rank and returns the results in order; a watchdog ends a hang.
fn ranks<T: Send + 'static>(count: u32, body: impl Fn(u32) -> T + Send + Sync + 'static) -> Vec<T> {
    let (send, receive) = mpsc::channel();
    let body = Arc::new(body);
    for rank in 0..count {
        let (send, body) = (send.clone(), Arc::clone(&body));
        thread::spawn(move || send.send((rank, body(rank))));
    }
    let mut results: Vec<Option<T>> = (0..count).map(|_| None).collect();
    for _ in 0..count {
        let (rank, result) = receive.recv_timeout(LONG).expect("a rank hangs or panicked");
        results[Rank(rank).index()] = Some(result);
    }
    results.into_iter().map(|result| result.expect("all ranks")).collect()
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

fn form(world: u32, id: &UniqueId) {
    let id = id.clone();
    let tables = ranks(world, move |rank| {
        let card = vec![u8::try_from(rank).expect("small"); 100];
        let terms = format!("terms of {rank}");
        let mut joined = join(&id, rank, world, &card, terms.as_bytes(), soon()).expect("join");
        assert_eq!(joined.terms, b"terms of 0");
        for round in 0..3u8 {
            let all = joined.exchange(&[round, card[0]], soon()).expect("exchange");
            let expected: Vec<Vec<u8>> = joined.cards.iter().map(|c| vec![round, c[0]]).collect();
            assert_eq!(all, expected);
        }
        joined.cards
    });
    for table in &tables {
        assert_eq!(table.len(), Rank(world).index());
        for (rank, card) in (0u8..).zip(table) {
            assert_eq!(card, &vec![rank; 100]);
        }
    }
}

#[test]
fn worlds_of_1_2_and_8_get_the_same_table_and_the_server_ends_by_itself() {
    for world in [1, 2, 8] {
        let (server, id) = start();
        form(world, &id);
        server.join_thread().expect("server");
    }
}

#[test]
fn missing_ranks_are_named_to_everyone_who_came() {
    let (server, id) = start();
    let errors = ranks(3, move |index| {
        let rank = [0, 1, 4][Rank(index).index()];
        let deadline = Instant::now() + Duration::from_millis(800);
        join(&id, rank, 8, b"", b"", deadline).expect_err("missing")
    });
    for error in errors {
        assert_eq!(error.code, Code::MissingRanks, "{error}");
        assert!(error.detail.contains("ranks 2, 3, 5-7 of 8"), "{error}");
    }
    server.stop().expect("stop");
}

#[test]
fn a_rank_that_comes_after_the_failure_gets_its_reason() {
    let (server, id) = start();
    let deadline = Instant::now() + Duration::from_millis(300);
    let first = join(&id, 0, 2, b"", b"", deadline).expect_err("missing");
    assert_eq!(first.code, Code::MissingRanks);
    let late = join(&id, 1, 2, b"", b"", soon()).expect_err("late");
    assert_eq!((late.code, late.detail), (first.code, first.detail));
    server.stop().expect("stop");
}

#[test]
fn two_ranks_of_one_number_fail_the_job_with_the_reason() {
    let (server, id) = start();
    let errors = ranks(3, move |index| {
        let rank = [0, 1, 1][Rank(index).index()];
        join(&id, rank, 4, b"", b"", soon()).expect_err("duplicate")
    });
    for error in errors {
        assert_eq!((error.code, error.peer), (Code::InvalidArgument, Some(Rank(1))), "{error}");
        assert!(error.detail.contains("rank 1 came twice"), "{error}");
    }
    server.stop().expect("stop");
}

#[test]
fn ranks_of_different_worlds_are_told_both() {
    let (server, id) = start();
    let errors =
        ranks(2, move |rank| join(&id, rank, 2 + rank, b"", b"", soon()).expect_err("world"));
    for error in errors {
        assert_eq!(error.code, Code::Mismatch, "{error}");
        assert!(error.detail.contains("of 2") && error.detail.contains("of 3"), "{error}");
    }
    server.stop().expect("stop");
}

#[test]
fn a_world_of_0_or_a_rank_outside_it_fails_for_the_culprit_and_for_all() {
    for (rank, world, code) in [
        (1, 0, Code::InvalidArgument),
        (9, 2, Code::RankOutOfRange),
        (0, WORLD_MAX + 1, Code::InvalidArgument),
    ] {
        let (server, id) = start();
        let errors = ranks(2, move |index| {
            let (rank, world) = if index == 0 { (0, 2) } else { (rank, world) };
            join(&id, rank, world, b"", b"", soon()).expect_err("place")
        });
        assert_eq!(errors[0].code, code, "{}", errors[0]);
        assert_eq!(errors[1].code, code, "{}", errors[1]);
        server.stop().expect("stop");
    }
}

#[test]
fn a_rank_that_leaves_or_aborts_fails_the_exchange_of_the_others() {
    for abort in [false, true] {
        let (server, id) = start();
        let results = ranks(3, move |rank| {
            let mut joined = join(&id, rank, 3, b"", b"", soon()).expect("join");
            joined.exchange(b"x", soon()).expect("exchange");
            if rank == 1 && abort {
                joined.abort(&Error::new(Code::OutOfMemory, "no room"));
                return None;
            }
            if rank == 1 {
                return None;
            }
            Some(joined.exchange(b"y", soon()).expect_err("left"))
        });
        for error in results.into_iter().flatten() {
            let code = if abort { Code::OutOfMemory } else { Code::PeerLost };
            assert_eq!((error.code, error.peer), (code, Some(Rank(1))), "{error}");
        }
        server.stop().expect("stop");
    }
}

#[test]
fn a_rank_that_declines_fails_the_others_whether_they_come_before_or_after_it() {
    for early in [false, true] {
        let (server, id) = start();
        let results = ranks(2, move |rank| {
            if (rank == 1) == early {
                thread::sleep(Duration::from_millis(100));
            }
            if rank == 1 {
                decline(&id, 1, 2, &Error::new(Code::Limit, "no files"), soon());
                return None;
            }
            Some(join(&id, 0, 2, b"", b"", soon()).expect_err("rank 1 does not come"))
        });
        let error = results.into_iter().flatten().next().expect("rank 0");
        assert_eq!((error.code, error.peer), (Code::Limit, Some(Rank(1))), "{error}");
        assert!(error.detail.contains("rank 1 failed: no files"), "{error}");
        server.stop().expect("stop");
    }
}

#[test]
fn a_rank_that_somebody_has_met_is_not_named_as_missing() {
    let (server, id) = start();
    let gate = Arc::new(std::sync::Barrier::new(3));
    let results = ranks(3, move |rank| {
        let mut joined = join(&id, rank, 3, b"", b"", soon()).expect("join");
        // Rank 1 stays silent, and rank 2 waits for it.
        let soon = Instant::now() + Duration::from_millis(300);
        let result = (rank == 0).then(|| joined.exchange_having_met(b"", &[0b100], soon));
        gate.wait();
        result
    });
    let error = results.into_iter().flatten().next().expect("rank 0").expect_err("missing");
    assert_eq!((error.code, error.peer), (Code::MissingRanks, Some(Rank(1))), "{error}");
    assert!(error.detail.contains("rank 1 of 3 did not arrive"), "{error}");
    server.stop().expect("stop");
}

#[test]
fn a_missing_exchange_names_who_did_not_come() {
    let (server, id) = start();
    let (done, wait) = mpsc::channel::<()>();
    let gate = std::sync::Mutex::new((Some(done), Some(wait)));
    let results = ranks(2, move |rank| {
        let mut joined = join(&id, rank, 2, b"", b"", soon()).expect("join");
        if rank == 1 {
            // Stays, silent, until rank 0 has its answer and drops the other end.
            let wait = gate.lock().expect("gate").1.take().expect("one waits");
            let _ = wait.recv_timeout(LONG);
            return None;
        }
        let _done = gate.lock().expect("gate").0.take();
        let error = joined.exchange(b"", Instant::now() + Duration::from_millis(300));
        Some(error.expect_err("missing"))
    });
    let error = results.into_iter().flatten().next().expect("rank 0");
    assert_eq!((error.code, error.peer), (Code::MissingRanks, Some(Rank(1))), "{error}");
    server.stop().expect("stop");
}

#[test]
fn a_wrong_key_is_unauthenticated_and_the_job_forms_without_it() {
    let (server, id) = start();
    let wrong = UniqueId::new(id.addresses(), Key::random().expect("key")).expect("id");
    let error = join(&wrong, 0, 2, b"", b"", soon()).expect_err("key");
    assert_eq!(error.code, Code::Unauthenticated);
    form(2, &id);
    server.join_thread().expect("server");
}

#[test]
fn garbage_half_open_and_slow_strangers_disturb_nothing() {
    let (server, id) = start();
    let to = id.addresses()[0];
    let idle: Vec<TcpStream> = (0..300).map(|_| TcpStream::connect(to).expect("connect")).collect();
    let mut garbage = TcpStream::connect(to).expect("connect");
    garbage.write_all(&[0x55; 4096]).expect("write");
    let mut slow = TcpStream::connect(to).expect("connect");
    slow.write_all(b"UNSO").expect("write");
    form(8, &id);
    // The table is bounded, so the first of the idle ones have been sent away.
    let mut first = &idle[0];
    first.set_read_timeout(Some(LONG)).expect("timeout");
    assert!(matches!(first.read(&mut [0; 1]), Ok(0) | Err(_)));
    server.join_thread().expect("server");
}

#[test]
fn a_server_nobody_visits_ends_and_an_absent_server_is_a_missing_rank_0() {
    let listener = socket::listen("127.0.0.1:0".parse().expect("address")).expect("listen");
    let key = Key::random().expect("key");
    let server = Rendezvous::serve(vec![listener], key, Duration::from_millis(50)).expect("serve");
    let id = server.unique_id().expect("id");
    server.join_thread().expect("server");
    let deadline = Instant::now() + Duration::from_millis(200);
    let error = join(&id, 1, 2, b"", b"", deadline).expect_err("nobody");
    assert_eq!((error.code, error.peer), (Code::MissingRanks, Some(Rank(0))));
    assert!(error.detail.contains("rank 0's rendezvous at 127.0.0.1:"), "{error}");
}

#[test]
fn a_card_that_is_too_large_is_refused() {
    let (server, id) = start();
    let error = join(&id, 0, 1, &[0; ITEM_MAX + 1], b"", soon()).expect_err("card");
    assert_eq!(error.code, Code::Limit);
    server.stop().expect("stop");
}
