//! Sockets whose peers are not as they should be; the streams are the stand-in's.

use super::super::frame::{FRAME_BYTES, Frame, Remote};
use super::super::pair::RING_BYTES;
use super::*;
use crate::boot::doors::Wanted;
use crate::boot::gate::{self, Gate};
use crate::error::{Code, Error};
use crate::rdma::Library;
use crate::{alone, standin_rdma};

fn by_itself(test: &str) -> bool {
    alone::by_itself(&format!("link::rdma::sockets::tests::{test}"), &[])
}

/// A stream of a peer, which says what it likes, and the end that hears it.
fn end(gate: &mut Gate) -> (Stream, Opened, Ends) {
    let target = gate.offer.addresses[0];
    let peer = Stream::connecting(&gate.library, gate.address, target).expect("a stream");
    let limit = Instant::now() + Duration::from_secs(20);
    let own = loop {
        if let Some(own) = gate.listener.accept().expect("a listener") {
            break own;
        }
        assert!(Instant::now() < limit);
        std::thread::yield_now();
    };
    let ends = Ends::default();
    let fitted = Fitted::new(Rank(1), own).expect("memory");
    let opened = Opened::launch(vec![fitted], gate.card.clone(), ends.clone()).expect("HELLO");
    (peer, opened, ends)
}

fn open() -> Gate {
    let library = standin_rdma::rdma();
    let library = library.to_str().expect("UTF-8");
    let library = Library::open(Some(library), Some(library)).expect("the stand-in");
    gate::open(&library, Wanted::Any, None).expect("a gate")
}

/// What the end notes of a peer that says this, then sends `bytes` to it.
fn noted(gate: &mut Gate, said: &[u8], bytes: usize) -> Error {
    let (mut peer, opened, ends) = end(gate);
    let limit = Instant::now() + Duration::from_secs(20);
    let mut sent = 0;
    let source = vec![1u8; bytes];
    loop {
        if sent < said.len() {
            sent += peer.send(&said[sent..]).unwrap_or(0);
        }
        opened.sockets.with(|sockets| {
            let open = sockets.members[0].pair.is_open();
            sockets.on(0, (), |pair| {
                if open && sent == said.len() && bytes > 0 {
                    // SAFETY: the source stays until the end is gone.
                    unsafe { pair.place(0, source.as_ptr(), source.len(), false)? };
                }
                Ok(())
            });
            sockets.missed(0);
        });
        if let Some(error) = ends.first() {
            drop(opened);
            return error.clone();
        }
        assert!(Instant::now() < limit, "nothing is noted");
    }
}

fn hello(address: u64, key: u32) -> [u8; FRAME_BYTES] {
    let rings = Remote { address, key };
    Frame::Hello { path: 0, frames: 256, rings, ring: RING_BYTES as u64 }.encode()
}

#[test]
fn what_a_hostile_peer_says_is_refused() {
    if !by_itself("what_a_hostile_peer_says_is_refused") {
        return;
    }
    let mut gate = open();
    let bytes = 100_000;
    let advert = |address, key, bytes: usize| {
        let place = Remote { address, key };
        Frame::Advert { lane: 0, message: 0, place, bytes: bytes as u64 }.encode()
    };
    let first = 1u64 << 32;
    let cases: [(&str, Vec<u8>, usize); 7] = [
        ("no frame", vec![0xff; 3 * FRAME_BYTES], 0),
        ("data before HELLO", Frame::Note { bits: 5 }.encode().to_vec(), 0),
        ("HELLO twice", [hello(first, 1), hello(first, 1)].concat(), 0),
        ("a note of nothing", [hello(first, 1), Frame::Note { bits: !0 }.encode()].concat(), 0),
        ("of no map", [hello(first, 1), advert(5, 0, bytes)].concat(), bytes),
        ("past a map", [hello(first, 1), advert(2 * first - 1, 1, bytes)].concat(), bytes),
        ("not mapped", [hello(first, 1), advert(7 * first, 7, bytes)].concat(), bytes),
    ];
    for (what, said, bytes) in cases {
        let error = noted(&mut gate, &said, bytes);
        assert_eq!((error.code, error.peer), (Code::Protocol, Some(Rank(1))), "{what}: {error}");
    }
}

/// Half a frame, and the end.
#[test]
fn a_peer_that_goes_is_gone() {
    if !by_itself("a_peer_that_goes_is_gone") {
        return;
    }
    let mut gate = open();
    let (mut peer, opened, ends) = end(&mut gate);
    peer.send(&hello(1 << 32, 1)[..30]).expect("sent");
    close(vec![peer], LAST_WORDS);
    let limit = Instant::now() + Duration::from_secs(20);
    while ends.first().is_none() {
        opened.sockets.with(|sockets| {
            sockets.on(0, (), |_| Ok(()));
            sockets.missed(0);
        });
        assert!(Instant::now() < limit, "nothing is noted");
    }
    let error = ends.first().expect("an end");
    assert_eq!((error.code, error.peer), (Code::PeerLost, Some(Rank(1))), "{error}");
}
