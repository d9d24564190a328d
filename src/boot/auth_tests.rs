use super::*;

const HELLO: Hello = Hello { rank: 3, to: 1, world: 8, epoch: 77, purpose: Purpose::Lane(5) };
const EXPECT: Expect = Expect::Mesh { rank: 1, epoch: 77 };

fn key(byte: u8) -> Key {
    Key::new([byte; 32])
}

/// Moves everything `from` has to say into `to`; returns what went over the wire.
fn pump(from: &mut Handshake, to: &mut Handshake) -> (Vec<u8>, Result<()>) {
    let bytes = from.output().to_vec();
    from.wrote(bytes.len());
    let fed = feed_all(to, &bytes);
    (bytes, fed)
}

/// Feeds byte by byte, as a slow peer would, stopping at an error.
fn feed_all(to: &mut Handshake, bytes: &[u8]) -> Result<()> {
    for byte in bytes {
        if to.want() == 0 {
            break;
        }
        to.feed(&[*byte])?;
    }
    Ok(())
}

fn ends(connector: &Key, listener: &Key, hello: Hello) -> (Handshake, Handshake) {
    (
        Handshake::connector(connector, hello).expect("connector"),
        Handshake::listener(listener, EXPECT).expect("listener"),
    )
}

#[test]
fn two_ends_with_one_key_agree_on_the_hello_and_a_session_key() {
    let (mut one, mut two) = ends(&key(1), &key(1), HELLO);
    for _ in 0..2 {
        pump(&mut one, &mut two).1.expect("to listener");
        pump(&mut two, &mut one).1.expect("to connector");
    }
    let (one, two) = (one.outcome().expect("done"), two.outcome().expect("done"));
    assert_eq!((one.hello, two.hello), (HELLO, HELLO));
    assert_eq!(one.session, two.session);
    assert_ne!(one.session, key(1));
}

#[test]
fn sessions_of_one_key_differ() {
    let session = || {
        let (mut one, mut two) = ends(&key(1), &key(1), HELLO);
        for _ in 0..2 {
            pump(&mut one, &mut two).1.expect("to listener");
            pump(&mut two, &mut one).1.expect("to connector");
        }
        one.outcome().expect("done").session
    };
    assert_ne!(session(), session());
}

#[test]
fn a_wrong_key_is_refused_at_both_ends() {
    let (mut one, mut two) = ends(&key(1), &key(2), HELLO);
    pump(&mut one, &mut two).1.expect("greeting");
    pump(&mut two, &mut one).1.expect("greeting");
    let error = pump(&mut one, &mut two).1.expect_err("proof");
    assert_eq!(error.code, Code::Unauthenticated);
    let (verdict, fed) = pump(&mut two, &mut one);
    assert_eq!(fed.expect_err("verdict").code, Code::Unauthenticated);
    assert_eq!(verdict[8..], [0; 32], "a stranger gets no tag");
    assert!(one.outcome().is_none() && two.outcome().is_none());
}

#[test]
fn an_echo_of_our_own_bytes_proves_nothing() {
    let (mut one, _) = ends(&key(1), &key(1), HELLO);
    let echo = one.output().to_vec();
    one.wrote(echo.len());
    assert_eq!(feed_all(&mut one, &echo).expect_err("echo").code, Code::Unauthenticated);
}

#[test]
fn an_echo_that_changes_the_role_proves_nothing() {
    let (mut one, _) = ends(&key(1), &key(1), HELLO);
    let mut echo = one.output().to_vec();
    one.wrote(echo.len());
    echo[7] = 2;
    feed_all(&mut one, &echo).expect("looks like a listener");
    let proof = one.output().to_vec();
    one.wrote(proof.len());
    let mut verdict = vec![0; STATUS_BYTES];
    verdict.extend_from_slice(&proof[HELLO_BYTES..]);
    assert_eq!(feed_all(&mut one, &verdict).expect_err("tag").code, Code::Unauthenticated);
}

#[test]
fn a_replayed_connector_is_refused() {
    let (mut one, mut two) = ends(&key(1), &key(1), HELLO);
    let (greeting, fed) = pump(&mut one, &mut two);
    fed.expect("greeting");
    pump(&mut two, &mut one).1.expect("greeting");
    let (proof, fed) = pump(&mut one, &mut two);
    fed.expect("proof");
    let mut again = Handshake::listener(&key(1), EXPECT).expect("listener");
    feed_all(&mut again, &greeting).expect("greeting");
    assert_eq!(feed_all(&mut again, &proof).expect_err("replay").code, Code::Unauthenticated);
}

#[test]
fn a_replayed_listener_is_refused() {
    let (mut one, mut two) = ends(&key(1), &key(1), HELLO);
    let mut replay = Vec::new();
    for _ in 0..2 {
        pump(&mut one, &mut two).1.expect("to listener");
        let (bytes, fed) = pump(&mut two, &mut one);
        fed.expect("to connector");
        replay.push(bytes);
    }
    let mut again = Handshake::connector(&key(1), HELLO).expect("connector");
    feed_all(&mut again, &replay[0]).expect("greeting");
    let error = feed_all(&mut again, &replay[1]).expect_err("replay");
    assert_eq!(error.code, Code::Unauthenticated);
}

#[test]
fn every_flipped_bit_fails_and_never_panics() {
    for message in 0..4usize {
        let size = [GREETING_BYTES, GREETING_BYTES, PROOF_BYTES, VERDICT_BYTES][message];
        for bit in 0..size * 8 {
            let (mut one, mut two) = ends(&key(1), &key(1), HELLO);
            let mut failed = false;
            for step in 0..4 {
                let (from, to) =
                    if step % 2 == 0 { (&mut one, &mut two) } else { (&mut two, &mut one) };
                let mut bytes = from.output().to_vec();
                from.wrote(bytes.len());
                if step == message {
                    bytes[bit / 8] ^= 1 << (bit % 8);
                }
                failed |= feed_all(to, &bytes).is_err();
            }
            assert!(failed, "bit {bit} of message {message}");
            assert!(one.outcome().is_none(), "bit {bit} of message {message}");
        }
    }
}

#[test]
fn truncated_messages_leave_the_handshake_waiting() {
    let (mut one, mut two) = ends(&key(1), &key(1), HELLO);
    let bytes = one.output()[..GREETING_BYTES - 1].to_vec();
    one.wrote(bytes.len());
    feed_all(&mut two, &bytes).expect("part");
    assert_eq!(two.want(), 1);
    assert!(two.output().is_empty() && two.outcome().is_none());
}

#[test]
fn garbage_gets_no_answer() {
    let mut state = 1u32;
    for _ in 0..200 {
        let mut two = Handshake::listener(&key(1), EXPECT).expect("listener");
        let garbage: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_le_bytes()[3]
        })
        .take(500)
        .collect();
        assert!(feed_all(&mut two, &garbage).is_err());
        assert!(two.output().is_empty());
        assert_eq!(two.want(), 0);
    }
}

#[test]
fn another_version_is_named_at_both_ends() {
    let (mut one, mut two) = ends(&key(1), &key(1), HELLO);
    let mut bytes = one.output().to_vec();
    bytes[6] = 99;
    assert_eq!(feed_all(&mut two, &bytes).expect_err("version").code, Code::VersionMismatch);
    let mut answer = two.output().to_vec();
    assert_eq!(answer.len(), GREETING_BYTES);
    answer[6] = 98;
    let error = feed_all(&mut one, &answer).expect_err("version");
    assert_eq!(error.code, Code::VersionMismatch);
    assert!(error.detail.contains(".98"), "{error}");
}

#[test]
fn another_rank_epoch_or_purpose_is_refused_with_its_reason() {
    let cases = [
        (Hello { to: 2, ..HELLO }, Code::Protocol),
        (Hello { epoch: 78, ..HELLO }, Code::StaleEpoch),
        (Hello { purpose: Purpose::Local, ..HELLO }, Code::Protocol),
        (Hello { purpose: Purpose::Rendezvous, to: NO_RANK, ..HELLO }, Code::Protocol),
    ];
    for (hello, code) in cases {
        let (mut one, mut two) = ends(&key(1), &key(1), hello);
        pump(&mut one, &mut two).1.expect("greeting");
        pump(&mut two, &mut one).1.expect("greeting");
        assert!(pump(&mut one, &mut two).1.is_err());
        assert_eq!(pump(&mut two, &mut one).1.expect_err("verdict").code, code);
    }
}

#[test]
fn a_hello_survives_its_bytes_and_unknown_ones_are_refused() {
    let purposes = [Purpose::Rendezvous, Purpose::Control, Purpose::Lane(9), Purpose::Local];
    for purpose in purposes {
        let hello = Hello { purpose, ..HELLO };
        assert_eq!(Hello::decode(&hello.encode()), Some(hello));
    }
    for (at, value) in [(22, 0), (22, 5), (22, 2), (23, 1)] {
        let mut bytes = HELLO.encode();
        bytes[at] = value;
        assert_eq!(Hello::decode(&bytes), None);
    }
}
