use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;

use super::*;
use crate::boot::key::Key;
use crate::boot::rendezvous::{Rendezvous, join};
use crate::boot::trade::{OFFER_BYTES, OFFER_MAGIC, YES};
use crate::sys::process::Process;

const LONG: Duration = Duration::from_secs(60);

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

struct Field {
    listeners: Vec<LocalListener>,
    names: Vec<Option<String>>,
    key: Key,
}

fn field(world: usize) -> Field {
    let listeners: Vec<_> = (0..world).map(|_| LocalListener::new().expect("listen")).collect();
    let names = listeners.iter().map(|one| Some(one.name().to_owned())).collect();
    Field { listeners, names, key: Key::random().expect("key") }
}

type Done = (Segment, Bell, Vec<Option<LocalPeer>>);

fn trade(field: &Arc<Field>, who: &[u32], deadline: Instant) -> Vec<Done> {
    let (send, receive) = mpsc::channel();
    for &rank in who {
        let (send, field) = (send.clone(), Arc::clone(field));
        thread::spawn(move || {
            let world = u32::try_from(field.names.len()).expect("small");
            let place = Place { rank, world, key: &field.key, epoch: 1, deadline };
            let segment = Segment::create("test", 8192).expect("segment");
            let bell = Bell::open().expect("bell");
            let own = &field.listeners[Rank(rank).index()];
            let peers = exchange_local(&place, own, &field.names, (&segment, 1), &bell, None);
            let _ = send.send((rank, (segment, bell, peers.expect("local"))));
        });
    }
    let mut results = BTreeMap::new();
    for _ in who {
        let (rank, result) = receive.recv_timeout(LONG).expect("a rank hangs or panicked");
        results.insert(rank, result);
    }
    results.into_values().collect()
}

#[test]
fn worlds_of_1_2_and_4_share_segments_and_bells() {
    for world in [1usize, 2, 4] {
        let field = Arc::new(field(world));
        let who: Vec<u32> = (0..u32::try_from(world).expect("small")).collect();
        let done = trade(&field, &who, soon());
        for (rank, (segment, bell, peers)) in done.iter().enumerate() {
            assert!(peers[rank].is_none());
            let (owner, token) = segment.header(1).expect("header");
            assert_eq!(Rank(owner).index(), rank);
            for (_, _, others) in done.iter().filter(|(_, _, others)| others[rank].is_some()) {
                let seen = others[rank].as_ref().expect("peer");
                assert_eq!(seen.segment.header(1).expect("header"), (owner, token));
                seen.bell.ring();
                assert!(bell.drain());
                assert!(!has_hung_up(seen));
                assert!(seen.process.as_ref().is_none_or(Process::alive));
            }
            let known = done.iter().filter(|(_, _, others)| others[rank].is_some()).count();
            assert_eq!(known, world - 1);
        }
    }
}

#[test]
fn a_dropped_peer_shows_as_a_hang_up() {
    let mut done = trade(&Arc::new(field(2)), &[0, 1], soon());
    drop(done.pop());
    assert!(has_hung_up(done[0].2[1].as_ref().expect("peer")));
}

#[test]
fn an_unknown_name_or_an_absent_rank_is_not_local() {
    let mut some = field(3);
    some.names[0] = Some("unisono-nobody".to_owned());
    some.names[2] = None;
    let deadline = Instant::now() + Duration::from_millis(200);
    let done = trade(&Arc::new(some), &[0, 1], deadline);
    assert!(done.iter().all(|(_, _, peers)| peers.iter().all(Option::is_none)));
}

#[test]
fn strangers_at_the_unix_door_disturb_nothing() {
    let field = Arc::new(field(2));
    let name = field.names[0].clone().expect("name");
    let mut strangers = Vec::new();
    for index in 0..20 {
        let stream = unix::connect(name.as_bytes()).expect("connect").expect("room");
        if index % 2 == 0 {
            let copy = stream.try_clone().expect("dup");
            unix::send_with_fds(&stream, &[7; 100], &[copy.as_raw_fd()]).expect("send");
        }
        strangers.push(stream);
    }
    let done = trade(&field, &[0, 1], soon());
    assert!(done[0].2[1].is_some() && done[1].2[0].is_some());
}

#[test]
fn settling_keeps_a_pair_only_when_both_ends_have_it() {
    let local = ["127.0.0.1:0".parse().expect("address")];
    let server = Rendezvous::listen(&local, Key::random().expect("key")).expect("listen");
    let id = server.unique_id().expect("id");
    let done = trade(&Arc::new(field(3)), &[0, 1, 2], soon());
    let (send, receive) = mpsc::channel();
    for (rank, (_segment, _bell, mut peers)) in (0u32..).zip(done) {
        let (send, id) = (send.clone(), id.clone());
        thread::spawn(move || {
            let mut joined = join(&id, rank, 3, b"", b"", soon()).expect("join");
            if rank == 2 {
                peers[1] = None;
            }
            settle(&mut joined, rank, &mut peers, soon()).expect("settle");
            let known: Vec<bool> = peers.iter().map(Option::is_some).collect();
            let _ = send.send((rank, known));
        });
    }
    for _ in 0..3 {
        let (rank, known) = receive.recv_timeout(LONG).expect("a rank hangs or panicked");
        let expected = [[false, true, true], [true, false, false], [true, false, false]];
        assert_eq!(known, expected[Rank(rank).index()]);
    }
    server.join_thread().expect("server");
}

/// Whether rank 0, whose segment has 8192 bytes, takes in a rank 1 that knows the key, and offers
/// `bytes` bytes with `token` and `layout` in the header and 2s in the offer.
fn takes(bytes: usize, token: [u8; 32], layout: u32) -> bool {
    let field = field(2);
    let name = field.names[0].clone().expect("name");
    let deadline = Instant::now() + Duration::from_secs(5);
    thread::scope(|scope| {
        let honest = scope.spawn(|| {
            let place = Place { rank: 0, world: 2, key: &field.key, epoch: 1, deadline };
            let segment = Segment::create("test", 8192).expect("segment");
            let bell = Bell::open().expect("bell");
            exchange_local(&place, &field.listeners[0], &field.names, (&segment, 1), &bell, None)
        });
        let hello = Hello { rank: 1, to: 0, world: 2, epoch: 1, purpose: Purpose::Local };
        let stream = unix::connect(name.as_bytes()).expect("connect").expect("room");
        let shake = Handshake::connector(&field.key, hello).expect("shake");
        let (stream, _) = Conn::new(stream, shake, deadline).complete().expect("proved");
        let segment = Segment::create("test", bytes).expect("segment");
        segment.write_header(1, token, layout).expect("header");
        let bell = Bell::open().expect("bell");
        let mut offer = [2; OFFER_BYTES];
        offer[..8].copy_from_slice(OFFER_MAGIC);
        offer[8..16].copy_from_slice(&(bytes as u64).to_le_bytes());
        let fds = [segment.fd().as_raw_fd(), bell.far_end().expect("open").as_raw_fd()];
        unix::send_with_fds(&stream, &offer, &fds).expect("send");
        // It may have been refused by now.
        let _ = unix::send_with_fds(&stream, &[YES], &[]);
        let peers = honest.join().expect("thread").expect("local");
        peers[1].is_some()
    })
}

#[test]
fn a_segment_with_another_token_size_or_layout_is_not_local() {
    assert!(takes(8192, [2; 32], 1));
    assert!(!takes(8192, [1; 32], 1));
    assert!(!takes(4096, [2; 32], 1));
    assert!(!takes(1 << 30, [2; 32], 1));
    assert!(!takes(8192, [2; 32], 0));
}

#[test]
fn the_host_hint_is_the_same_twice() {
    assert_eq!(host_hint(), host_hint());
    // A TCP listener has nothing to do with it.
    let _other = TcpListener::bind("127.0.0.1:0").expect("bind");
    assert_ne!(host_hint(), [0; 32]);
}
