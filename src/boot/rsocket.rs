//! Connects ranks by sockets of librdmacm, and proves that they are of the job.
//!
//! A rank tells in its card where it listens, with a nonce. The higher of two ranks connects to the
//! lower, and they say three things, each with a tag that the job's key makes of both nonces, both
//! ranks, the epoch, the world and the number of the step. Nonces are fresh, so a tag of another
//! time is worth nothing, and what was heard says nothing of the next step. No memory is mapped
//! before all three are proved. A listener keeps the first connection of a peer that has said all.
//!
//! ```text
//! 1 request, 2 answer, 3 confirmation:
//!   version (2) | step (1) | 0 (1) | rank (4) | to (4) | tag (32) | 0 (20)
//! ```
//!
//! A peer that cannot be reached so is not an error: it is reached by other links, as for RDMA
//! ([`super::rdma::agree`]).

use std::io;
use std::time::{Duration, Instant};

use super::gate::Gate;
use super::key::Key;
use super::mesh::Place;
use super::offer::Offer;
use super::rendezvous::Joined;
use crate::error::{Code, Error, Result};
use crate::rdma::{Stream, not_connected};
use crate::types::Rank;

const VERSION: u16 = 1;
const CONTEXT: &str = "unisono 2026 rsocket connection v1";
const GREETING_BYTES: usize = 64;
/// Between two looks, where nothing has moved: nothing tells when something has come.
const NAP: Duration = Duration::from_micros(200);
/// How often a connection is tried, and for how long each time.
const ATTEMPTS: u32 = 4;
const ATTEMPT: Duration = Duration::from_secs(3);
/// Strangers, and peers that have not proved themselves, that may be there at a time, and how long.
const HALVES_MAX: usize = 64;
const HALF: Duration = Duration::from_secs(5);

type Greeting = [u8; GREETING_BYTES];

/// A connection on which greetings go.
#[derive(Debug)]
struct Talk {
    stream: Stream,
    /// Steps that are done.
    step: u8,
    /// Bytes of the next one that are sent, or have come.
    moved: usize,
    heard: Greeting,
    limit: Instant,
}

impl Talk {
    const fn new(stream: Stream, limit: Instant) -> Self {
        Self { stream, step: 0, moved: 0, heard: [0; GREETING_BYTES], limit }
    }

    /// What is left of `greeting` goes, as far as it can; whether all has.
    fn say(&mut self, greeting: &Greeting) -> Result<bool> {
        while self.moved < GREETING_BYTES {
            match self.stream.send(&greeting[self.moved..]) {
                Ok(count) => self.moved += count,
                Err(error) if waits(&error) => return Ok(false),
                Err(error) => return Err(not_connected(&error)),
            }
        }
        Ok(self.end_step())
    }

    /// Takes the rest of the next greeting, as far as it has come; whether all has.
    fn hear(&mut self) -> Result<bool> {
        while self.moved < GREETING_BYTES {
            match self.stream.receive(&mut self.heard[self.moved..]) {
                Ok(0) => return Err(Error::new(Code::PeerLost, "the peer ended it")),
                Ok(count) => self.moved += count,
                Err(error) if waits(&error) => return Ok(false),
                Err(error) => return Err(not_connected(&error)),
            }
        }
        Ok(self.end_step())
    }

    const fn end_step(&mut self) -> bool {
        (self.step, self.moved) = (self.step + 1, 0);
        true
    }
}

/// Whether an error only means "not now".
fn waits(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// How far a connection is that this rank makes.
#[derive(Debug)]
struct Dial {
    peer: u32,
    talk: Option<Talk>,
    attempts: u32,
    failed: Option<String>,
}

/// Connects with each peer that is to be: `peers[rank]` is its offer, where there is to be one.
/// Returns the streams that came about, by rank, and why others did not.
///
/// # Errors
/// What another rank has failed by.
pub(crate) fn connect(
    place: &Place<'_>,
    gate: &mut Gate,
    peers: &[Option<Offer>],
    joined: &mut Joined,
) -> Result<(Vec<Option<Stream>>, Vec<String>)> {
    let wanted = (0u32..).zip(peers).filter(|(_, offer)| offer.is_some()).map(|(peer, _)| peer);
    let (lower, higher): (Vec<u32>, Vec<u32>) = wanted.partition(|peer| *peer < place.rank);
    let dial = |peer| Dial { peer, talk: None, attempts: 0, failed: None };
    let proofs = Proofs { place, own: gate.offer.nonce, peers, key: place.key.derive(CONTEXT) };
    let mut making = Making {
        proofs,
        gate,
        dials: lower.into_iter().map(dial).collect(),
        halves: Vec::new(),
        made: peers.iter().map(|_| None).collect(),
        expected: higher.len(),
    };
    making.run(joined)?;
    let Making { dials, made, .. } = making;
    let lacks = |rank: &u32| made[Rank(*rank).index()].is_none();
    let dialled = dials.iter().filter(|dial| lacks(&dial.peer)).map(|dial| {
        format!("rank {}: {}", dial.peer, dial.failed.as_deref().unwrap_or("no answer"))
    });
    let missed = higher.iter().filter(|rank| lacks(rank));
    let missed = missed.map(|rank| format!("rank {rank}: it has not connected"));
    let failed = dialled.chain(missed).collect();
    Ok((made, failed))
}

struct Making<'a> {
    proofs: Proofs<'a>,
    gate: &'a mut Gate,
    dials: Vec<Dial>,
    /// Those who have connected, and the rank that each has proved to be.
    halves: Vec<(Talk, Option<u32>)>,
    made: Vec<Option<Stream>>,
    /// Peers that connect to this rank, and have not yet.
    expected: usize,
}

impl Making<'_> {
    fn run(&mut self, joined: &mut Joined) -> Result<()> {
        for index in 0..self.dials.len() {
            self.dial(index);
        }
        // BOUND: the deadline.
        while self.expected > 0 || self.dials.iter().any(|dial| dial.talk.is_some()) {
            if Instant::now() >= self.proofs.place.deadline {
                break;
            }
            joined.heed()?;
            let before = self.done();
            for index in 0..self.dials.len() {
                self.advance(index);
            }
            self.accept();
            self.meet();
            if self.done() == before {
                std::thread::sleep(NAP);
            }
        }
        Ok(())
    }

    fn done(&self) -> usize {
        self.made.iter().flatten().count()
    }

    /// Begins a connection, again.
    fn dial(&mut self, index: usize) {
        let dial = &mut self.dials[index];
        dial.attempts += 1;
        let Some(target) = self.proofs.target(dial.peer) else {
            dial.failed = Some("it listens nowhere".to_owned());
            return;
        };
        let gate = &self.gate;
        match Stream::connecting(&gate.library, gate.address, target) {
            Ok(stream) => dial.talk = Some(Talk::new(stream, Instant::now() + ATTEMPT)),
            Err(error) => dial.failed = Some(error.detail.into()),
        }
    }

    /// Takes a connection of ours further.
    fn advance(&mut self, index: usize) {
        let dial = &mut self.dials[index];
        let Some(talk) = &mut dial.talk else { return };
        let outcome = if Instant::now() >= talk.limit {
            Err(Error::new(Code::TimedOut, "no answer"))
        } else {
            self.proofs.ask(talk, dial.peer)
        };
        match outcome {
            Ok(false) => {}
            Ok(true) => {
                let stream = dial.talk.take().map(|talk| talk.stream);
                self.made[Rank(dial.peer).index()] = stream;
            }
            Err(error) => {
                dial.talk = None;
                dial.failed = Some(error.detail.into());
                if dial.attempts < ATTEMPTS {
                    self.dial(index);
                }
            }
        }
    }

    /// Takes in those who connect, as long as there is room for them.
    fn accept(&mut self) {
        // BOUND: the room; what fails is a stranger's.
        while self.halves.len() < HALVES_MAX {
            let Ok(Some(stream)) = self.gate.listener.accept() else { break };
            self.halves.push((Talk::new(stream, Instant::now() + HALF), None));
        }
    }

    /// Hears those who have connected. Who says what is wrong, or nothing for long, is let go.
    fn meet(&mut self) {
        let (mut at, now) = (0, Instant::now());
        while at < self.halves.len() {
            let (talk, peer) = &mut self.halves[at];
            let outcome = if now >= talk.limit {
                Err(Error::new(Code::TimedOut, "nothing was said"))
            } else {
                self.proofs.answer(talk, peer)
            };
            let peer = *peer;
            match outcome {
                Ok(false) => at += 1,
                Ok(true) => {
                    let (talk, _) = self.halves.swap_remove(at);
                    let place = peer.and_then(|peer| self.made.get_mut(Rank(peer).index()));
                    // What is established stays.
                    if let Some(place) = place.filter(|place| place.is_none()) {
                        *place = Some(talk.stream);
                        self.expected = self.expected.saturating_sub(1);
                    }
                }
                Err(_) => drop(self.halves.swap_remove(at)),
            }
        }
    }
}

/// What proves that a peer is of the job.
struct Proofs<'a> {
    place: &'a Place<'a>,
    own: [u8; 32],
    peers: &'a [Option<Offer>],
    key: Key,
}

impl Proofs<'_> {
    fn offer(&self, peer: u32) -> Option<&Offer> {
        self.peers.get(Rank(peer).index())?.as_ref()
    }

    fn target(&self, peer: u32) -> Option<std::net::SocketAddr> {
        self.offer(peer)?.addresses.first().copied()
    }

    /// What is said in a step: the first and third by the higher rank.
    fn greeting(&self, peer: u32, step: u8) -> Greeting {
        let own = self.place.rank;
        let (low, high) = (own.min(peer), own.max(peer));
        let (from, to) = if step == 2 { (low, high) } else { (high, low) };
        let theirs = self.offer(peer).map_or([0; 32], |offer| offer.nonce);
        let nonces = if from == own { [self.own, theirs] } else { [theirs, self.own] };
        let numbers = [from, to, u32::from(step), self.place.world].map(u32::to_le_bytes);
        let epoch = self.place.epoch.to_le_bytes();
        let tag = self.key.tag(&[&nonces.concat(), &numbers.concat(), &epoch]);
        let mut bytes = [0; GREETING_BYTES];
        bytes[..2].copy_from_slice(&VERSION.to_le_bytes());
        bytes[2] = step;
        bytes[4..8].copy_from_slice(&from.to_le_bytes());
        bytes[8..12].copy_from_slice(&to.to_le_bytes());
        bytes[12..44].copy_from_slice(&tag);
        bytes
    }

    /// # Errors
    /// `UNAUTHENTICATED` where what was heard is not what `peer` says in that step.
    fn check(&self, heard: &Greeting, peer: u32, step: u8) -> Result<()> {
        let wanted = self.greeting(peer, step);
        if subtle::ConstantTimeEq::ct_eq(wanted.as_slice(), heard.as_slice()).into() {
            return Ok(());
        }
        Err(Error::new(Code::Unauthenticated, "the peer does not know the job's key"))
    }

    /// Takes the higher rank's part further; whether all is said.
    fn ask(&self, talk: &mut Talk, peer: u32) -> Result<bool> {
        // BOUND: each turn ends a step, or returns.
        while talk.step < 3 {
            let went = if talk.step == 1 {
                talk.hear()?
            } else {
                let greeting = self.greeting(peer, talk.step + 1);
                talk.say(&greeting)?
            };
            if !went {
                return Ok(false);
            }
            if talk.step == 2 {
                self.check(&talk.heard, peer, 2)?;
            }
        }
        Ok(true)
    }

    /// Takes the lower rank's part further, with who says to be a rank; whether all is said.
    fn answer(&self, talk: &mut Talk, peer: &mut Option<u32>) -> Result<bool> {
        // BOUND: each turn ends a step, or returns.
        while talk.step < 3 {
            let went = match *peer {
                Some(peer) if talk.step == 1 => {
                    let greeting = self.greeting(peer, 2);
                    talk.say(&greeting)?
                }
                _ => talk.hear()?,
            };
            if !went {
                return Ok(false);
            }
            if talk.step == 2 {
                continue;
            }
            let [_, _, _, _, a, b, c, d, ..] = talk.heard;
            let named = u32::from_le_bytes([a, b, c, d]);
            if named <= self.place.rank || self.offer(named).is_none() {
                return Err(Error::new(Code::Unauthenticated, "no rank that is to connect"));
            }
            self.check(&talk.heard, named, talk.step)?;
            *peer = Some(named);
        }
        Ok(true)
    }
}

#[cfg(all(test, not(loom)))]
#[path = "rsocket_tests.rs"]
mod tests;
