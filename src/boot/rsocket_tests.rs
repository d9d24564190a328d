//! What proves a peer, and what does not; the streams are the stand-in's.

use super::super::doors::Wanted;
use super::super::gate;
use super::*;
use crate::rdma::Library;
use crate::{alone, standin_rdma};

fn place(key: &Key, rank: u32, epoch: u64) -> Place<'_> {
    let deadline = Instant::now() + Duration::from_secs(20);
    Place { rank, world: 3, key, epoch, deadline }
}

fn offers(nonces: [u8; 3]) -> Vec<Option<Offer>> {
    nonces.iter().map(|n| Some(Offer { nonce: [*n; 32], addresses: Vec::new() })).collect()
}

fn proofs<'a>(place: &'a Place<'a>, peers: &'a [Option<Offer>]) -> Proofs<'a> {
    let own = peers[Rank(place.rank).index()].as_ref().expect("an offer").nonce;
    Proofs { place, own, peers, key: place.key.derive(CONTEXT) }
}

#[test]
fn both_ends_say_the_same_and_every_bit_of_it_counts() {
    let key = Key::from_text(b"a job");
    let (low, high) = (place(&key, 0, 7), place(&key, 2, 7));
    let peers = offers([1, 2, 3]);
    let (low, high) = (proofs(&low, &peers), proofs(&high, &peers));
    for step in 1..=3 {
        let said = high.greeting(0, step);
        assert_eq!(said, low.greeting(2, step), "step {step}");
        low.check(&said, 2, step).expect("what the peer says");
        for bit in 0..8 * GREETING_BYTES {
            let mut spoiled = said;
            spoiled[bit / 8] ^= 1 << (bit % 8);
            low.check(&spoiled, 2, step).expect_err("another greeting");
        }
        for other in (1..=3).filter(|other| *other != step) {
            low.check(&said, 2, other).expect_err("of another step");
        }
    }
}

#[test]
fn what_was_said_elsewhere_proves_nothing() {
    let (key, other) = (Key::from_text(b"a job"), Key::from_text(b"another"));
    let (peers, later) = (offers([1, 2, 3]), offers([9, 2, 3]));
    let own = place(&key, 0, 7);
    let own = proofs(&own, &peers);
    for (place, peers) in [
        (place(&other, 2, 7), &peers),
        (place(&key, 2, 8), &peers),
        (place(&key, 1, 7), &peers),
        (place(&key, 2, 7), &later),
    ] {
        let said = proofs(&place, peers).greeting(0, 1);
        let error = own.check(&said, 2, 1).expect_err("no proof");
        assert_eq!(error.code, Code::Unauthenticated);
    }
}

/// Two connected streams of the stand-in, as who connects and who accepts.
fn pair() -> (Talk, Talk) {
    let library = standin_rdma::rdma();
    let library = library.to_str().expect("UTF-8");
    let library = Library::open(Some(library), Some(library)).expect("the stand-in");
    let mut gate = gate::open(&library, Wanted::Any, None).expect("a gate");
    let target = gate.offer.addresses[0];
    let one = Stream::connecting(&library, gate.address, target).expect("a stream");
    let limit = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(two) = gate.listener.accept().expect("a listener") {
            return (Talk::new(one, limit), Talk::new(two, limit));
        }
        assert!(Instant::now() < limit);
        std::thread::yield_now();
    }
}

fn by_itself(test: &str) -> bool {
    alone::by_itself(&format!("boot::rsocket::tests::{test}"), &[])
}

#[test]
fn two_ranks_prove_themselves_over_streams() {
    if !by_itself("two_ranks_prove_themselves_over_streams") {
        return;
    }
    let key = Key::from_text(b"a job");
    let (low, high) = (place(&key, 0, 7), place(&key, 2, 7));
    let peers = offers([1, 2, 3]);
    let (low, high) = (proofs(&low, &peers), proofs(&high, &peers));
    let (mut one, mut two) = pair();
    let (mut asked, mut answered, mut peer) = (false, false, None);
    while !(asked && answered) {
        asked = asked || high.ask(&mut one, 0).expect("an answer");
        answered = answered || low.answer(&mut two, &mut peer).expect("a request");
        assert!(Instant::now() < one.limit);
    }
    assert_eq!(peer, Some(2));
}

/// What a listener makes of who says this.
fn heard(said: &[u8]) -> Error {
    let key = Key::from_text(b"a job");
    let low = place(&key, 1, 7);
    let peers = offers([1, 2, 3]);
    let low = proofs(&low, &peers);
    let (mut one, mut two) = pair();
    let mut sent = 0;
    let mut peer = None;
    loop {
        if sent < said.len() {
            sent += one.stream.send(&said[sent..]).unwrap_or(0);
        }
        match low.answer(&mut two, &mut peer) {
            Ok(done) => assert!(!done && Instant::now() < two.limit),
            Err(error) => {
                assert_eq!(peer, None, "nothing was answered");
                return error;
            }
        }
    }
}

#[test]
fn strangers_are_let_go_unanswered() {
    if !by_itself("strangers_are_let_go_unanswered") {
        return;
    }
    // Of no rank, of one that does not connect to this one, of one, and of no rank there is.
    for rank in [u32::MAX, 0, 2, 3] {
        let mut said = [0x55; 2 * GREETING_BYTES];
        said[4..8].copy_from_slice(&rank.to_le_bytes());
        assert_eq!(heard(&said).code, Code::Unauthenticated, "{rank}");
    }
}
