use std::io::{Read, Write};
use std::sync::{Arc, mpsc};
use std::thread;

use super::*;
use crate::sys::poll::wait_one;

const LONG: Duration = Duration::from_secs(60);

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

/// Everyone's listeners and addresses.
struct Field {
    listeners: Vec<Vec<TcpListener>>,
    peers: Vec<Vec<SocketAddr>>,
    key: Key,
}

fn field(world: u32, at: &[&str]) -> Field {
    let addresses: Vec<IpAddr> = at.iter().map(|text| text.parse().expect("address")).collect();
    let listeners: Vec<Vec<TcpListener>> =
        (0..world).map(|_| listen(&addresses).expect("listen")).collect();
    let peers = listeners
        .iter()
        .map(|own| own.iter().map(|one| one.local_addr().expect("address")).collect())
        .collect();
    Field { listeners, peers, key: Key::random().expect("key") }
}

type Sockets = Result<Vec<Option<PeerSockets>>>;

/// Connects as every rank in `who`; a watchdog ends a hang.
fn connect(field: &Arc<Field>, who: &[u32], lanes: u16, deadline: Instant) -> Vec<Sockets> {
    let (send, receive) = mpsc::channel();
    for &rank in who {
        let (send, field) = (send.clone(), Arc::clone(field));
        thread::spawn(move || {
            let world = u32::try_from(field.peers.len()).expect("small");
            let place = Place { rank, world, key: &field.key, epoch: 5, deadline };
            let own = &field.listeners[Rank(rank).index()];
            let _ = send.send((
                rank,
                connect_mesh(&place, own, &field.peers, &vec![lanes; field.peers.len()], None),
            ));
        });
    }
    let mut results: BTreeMap<u32, Sockets> = BTreeMap::new();
    for _ in who {
        let (rank, result) = receive.recv_timeout(LONG).expect("a rank hangs or panicked");
        results.insert(rank, result);
    }
    results.into_values().collect()
}

/// Sends a byte each way on every connection and checks that it comes from the right peer.
fn check(tables: Vec<Sockets>, lanes: u16) {
    let tables: Vec<_> = tables.into_iter().map(|table| table.expect("mesh")).collect();
    let mark = |rank: usize, lane: usize| u8::try_from(rank * 16 + lane).expect("small");
    for (rank, table) in tables.iter().enumerate() {
        assert!(table[rank].is_none());
        for sockets in table.iter().flatten() {
            assert_eq!(sockets.lanes.len(), usize::from(lanes));
            assert!(!sockets.why.is_empty());
            (&sockets.control).write_all(&[mark(rank, 15)]).expect("write");
            for (lane, stream) in sockets.lanes.iter().enumerate() {
                assert!(stream.nodelay().expect("nodelay"));
                (&*stream).write_all(&[mark(rank, lane)]).expect("write");
            }
        }
    }
    for table in &tables {
        for (peer, sockets) in table.iter().enumerate() {
            let Some(sockets) = sockets else { continue };
            let all = sockets.lanes.iter().enumerate().chain([(15, &sockets.control)]);
            for (lane, stream) in all {
                let mut byte = [0];
                assert!(wait_one(stream.as_fd(), Interest::Read, Some(LONG)).expect("wait"));
                (&*stream).read_exact(&mut byte).expect("read");
                assert_eq!(byte[0], mark(peer, lane));
                // Non-blocking: a second read does not wait.
                let error = (&*stream).read(&mut byte).expect_err("empty");
                assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
            }
        }
    }
}

#[test]
fn worlds_of_1_2_5_and_8_connect_over_both_families() {
    for (world, lanes) in [(1, 1), (2, 0), (2, 3), (5, 2), (8, 1)] {
        for at in ["127.0.0.1", "::1"] {
            let field = Arc::new(field(world, &[at]));
            let who: Vec<u32> = (0..world).collect();
            check(connect(&field, &who, lanes, soon()), lanes);
        }
    }
}

#[test]
fn an_address_that_leads_nowhere_or_to_another_rank_is_passed_over() {
    let mut bad = field(3, &["127.0.0.1"]);
    let closed = socket::listen("127.0.0.1:0".parse().expect("address")).expect("listen");
    let nowhere = closed.local_addr().expect("address");
    drop(closed);
    let wrong = bad.peers[1][0];
    bad.peers[0] = vec![nowhere, wrong, bad.peers[0][0]];
    check(connect(&Arc::new(bad), &[0, 1, 2], 2, soon()), 2);
}

#[test]
fn strangers_at_a_listener_disturb_nothing() {
    let field = Arc::new(field(3, &["127.0.0.1"]));
    let mut strangers = Vec::new();
    for addresses in &field.peers {
        for index in 0..50 {
            let mut stream = TcpStream::connect(addresses[0]).expect("connect");
            if index % 2 == 0 {
                stream
                    .write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n aaaaaaaaaaaaaa")
                    .expect("write");
            }
            strangers.push(stream);
        }
    }
    check(connect(&field, &[0, 1, 2], 1, soon()), 1);
}

#[test]
fn missing_peers_are_named_with_the_last_failure() {
    let field = Arc::new(field(4, &["127.0.0.1"]));
    let deadline = Instant::now() + Duration::from_millis(500);
    for result in connect(&field, &[1, 3], 1, deadline) {
        let error = result.expect_err("missing");
        assert_eq!(error.code, Code::MissingRanks);
        assert!(error.detail.contains("ranks 0, 2 of 4"), "{error}");
    }
}

#[test]
fn a_peer_with_another_key_or_epoch_is_missing() {
    let one = field(2, &["127.0.0.1"]);
    let deadline = Instant::now() + Duration::from_millis(500);
    let other = Key::random().expect("key");
    thread::scope(|scope| {
        let place = Place { rank: 0, world: 2, key: &one.key, epoch: 5, deadline };
        let zero = scope.spawn(move || place);
        let place = zero.join().expect("thread");
        let listen = scope.spawn({
            let (own, peers) = (&one.listeners[0], &one.peers);
            move || connect_mesh(&place, own, peers, &[0, 0], None).expect_err("stranger")
        });
        let stranger = Place { rank: 1, world: 2, key: &other, epoch: 5, deadline };
        let error =
            connect_mesh(&stranger, &one.listeners[1], &one.peers, &[0, 0], None).expect_err("key");
        assert!(error.detail.contains("key"), "{error}");
        let error = listen.join().expect("thread");
        assert_eq!((error.code, error.peer), (Code::MissingRanks, Some(Rank(1))));
        assert!(error.detail.contains("refused"), "{error}");
    });
}

#[test]
fn peers_without_addresses_are_left_out() {
    let mut some = field(3, &["127.0.0.1"]);
    some.peers[2].clear();
    let tables = connect(&Arc::new(some), &[0, 1], 1, soon());
    for table in tables {
        assert_eq!(table.expect("mesh").iter().flatten().count(), 1);
    }
}
