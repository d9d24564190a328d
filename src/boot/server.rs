//! The rendezvous itself: one thread that waits for every rank and tells each about all.
//!
//! It gathers joins, sends the table, and then serves exchanges until every rank has left. The
//! first failure (a rank that is lost, two of the same number, a deadline) goes to every rank that
//! is or comes here, with its reason. It ends by itself and owns nothing that outlives it.

use std::collections::BTreeMap;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::auth::Expect;
use super::frame::{Frames, Side};
use super::key::Key;
use super::message::{Answer, REQUEST_MAX, Request};
use super::missing::ranks_text;
use super::porch::{Guest, Porch, STRANGERS_MAX, TOKENS_FROM};
use crate::error::{Code, Error, Result};
use crate::sys::bell::Bell;
use crate::sys::poll::{Event, Interest, Poller};
use crate::types::{Rank, WORLD_MAX};

/// The token of the bell that calls the server off.
const STOP: u64 = 0;
/// How long a proved connection may take to say who it is, and to take in an answer.
const MEMBER_LIMIT: Duration = Duration::from_secs(10);
/// How long latecomers are told why the job failed.
const LINGER: Duration = Duration::from_secs(30);
/// The longest wait a rank may ask for: what a peer says must not overflow a clock.
const PATIENCE_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

/// One connection that knows the key.
#[derive(Debug)]
struct Member {
    stream: TcpStream,
    frames: Frames,
    /// Its number, once it has joined.
    rank: Option<u32>,
    /// The number it came with.
    named: u32,
    from: String,
    interest: Interest,
    /// When it is dropped unless it has joined and taken in what it was sent.
    limit: Option<Instant>,
}

#[derive(Debug)]
enum Phase {
    /// Waiting for ranks. Their cards, and the first's terms.
    Joining,
    /// Every rank is here and may exchange.
    Running { round: u64 },
    /// Everyone gets this; over at the given time.
    Failed { error: Error, until: Instant },
}

/// The server's whole state; driven by [`Server::run`].
#[derive(Debug)]
pub(crate) struct Server {
    poller: Poller,
    porch: Porch<TcpListener>,
    stop: Arc<Bell>,
    members: BTreeMap<u64, Member>,
    next_token: u64,
    phase: Phase,
    /// 0 until the first rank has said it.
    world: u32,
    /// What each rank has given to the round in progress: its card, then its part.
    parts: Vec<Option<Vec<u8>>>,
    /// Ranks that one of those has met.
    met: Vec<bool>,
    arrived: usize,
    terms: Vec<u8>,
    /// When the round in progress fails: the earliest deadline of those who wait.
    deadline: Option<Instant>,
    /// When the server gives up if nobody ever comes.
    idle_until: Instant,
    /// Rank 0's answer, kept back until everyone else's is with the kernel: rank 0's process is
    /// mostly ours, and may exit as soon as it has its answer.
    held: Option<(u8, Arc<[u8]>)>,
}

impl Server {
    /// A server behind these listeners.
    pub(crate) fn new(
        listeners: Vec<TcpListener>,
        key: &Key,
        stop: Arc<Bell>,
        idle_until: Instant,
    ) -> Result<Self> {
        let poller = Poller::new()?;
        poller.add(stop.fd(), STOP, Interest::Read)?;
        let porch = Porch::new(listeners, key, Expect::Rendezvous, STRANGERS_MAX, &poller)?;
        Ok(Self {
            poller,
            porch,
            stop,
            members: BTreeMap::new(),
            next_token: STOP + 1,
            phase: Phase::Joining,
            world: 0,
            parts: Vec::new(),
            met: Vec::new(),
            arrived: 0,
            terms: Vec::new(),
            deadline: None,
            idle_until,
            held: None,
        })
    }

    /// Serves one job.
    pub(crate) fn run(mut self) -> Result<()> {
        let mut events = Vec::new();
        let mut guests = Vec::new();
        // BOUND: ends when all ranks have left, at `idle_until` when none came, at the ranks'
        // earliest deadline plus LINGER when some did, or when it is called off.
        loop {
            let now = Instant::now();
            let expiry = self.porch.expire(&self.poller, now)?;
            self.keep_time(now);
            if let Err(error) = self.porch.check_shortage(now) {
                let text = format!("the rendezvous of rank 0: {}", error.detail);
                self.fail(Error { detail: text.into(), ..error }.with_peer(Rank(0)), now);
            }
            self.release_held(now);
            if self.is_over(now) {
                return Ok(());
            }
            let wake = self.wake_time(expiry);
            let timeout = wake.map(|at| at.saturating_duration_since(Instant::now()));
            self.poller.wait(timeout, &mut events)?;
            let now = Instant::now();
            for &event in &events {
                if event.token == STOP {
                    self.stop.drain();
                    if self.is_called_off(now) {
                        return Ok(());
                    }
                    continue;
                }
                if event.token >= TOKENS_FROM {
                    self.porch.handle(event, &self.poller, now, &mut guests);
                } else {
                    self.serve(event, now);
                }
            }
            for guest in guests.drain(..) {
                self.admit(guest, now);
            }
        }
    }

    /// This process is done with start-up. That is the end, unless its rank 0 has joined a job that
    /// goes on. After a failure it may want the port for another attempt.
    fn is_called_off(&mut self, now: Instant) -> bool {
        let joined = self.members.values().any(|member| member.rank == Some(0));
        match self.phase {
            Phase::Running { .. } => return false,
            Phase::Joining if joined => return false,
            Phase::Joining | Phase::Failed { .. } => {}
        }
        let error = Error::new(Code::PeerLost, "rank 0 failed before it joined");
        // What a socket does not take at once is lost: its rank sees the connection end.
        self.fail(error.with_peer(Rank(0)), now);
        true
    }

    fn is_over(&self, now: Instant) -> bool {
        match &self.phase {
            Phase::Joining => self.members.is_empty() && now >= self.idle_until,
            Phase::Running { .. } => self.members.is_empty(),
            Phase::Failed { until, .. } => now >= *until,
        }
    }

    fn wake_time(&self, expiry: Option<Instant>) -> Option<Instant> {
        let end = match &self.phase {
            Phase::Joining if self.members.is_empty() => Some(self.idle_until),
            Phase::Failed { until, .. } => Some(*until),
            _ => None,
        };
        let limits = self.members.values().filter_map(|member| member.limit);
        limits.chain(expiry).chain(end).chain(self.deadline).min()
    }

    /// Ends what has taken too long.
    fn keep_time(&mut self, now: Instant) {
        let late = |member: &Member| member.limit.is_some_and(|limit| limit <= now);
        let tokens = self.members.iter().filter(|(_, member)| late(member));
        for token in tokens.map(|(&token, _)| token).collect::<Vec<_>>() {
            self.lose(token, now);
        }
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            let error = self.missing();
            self.fail(error, now);
        }
    }

    fn missing(&self) -> Error {
        let absent = (0..self.world).filter(|&rank| self.parts[Rank(rank).index()].is_none());
        let mut absent: Vec<u32> = absent.collect();
        // Who was met may itself wait for one that nobody has met.
        if absent.iter().any(|&rank| !self.met[Rank(rank).index()]) {
            absent.retain(|&rank| !self.met[Rank(rank).index()]);
        }
        let step = match self.phase {
            Phase::Running { round } => format!(" at start-up exchange {round}"),
            _ => String::new(),
        };
        let names = ranks_text(&absent);
        let text = format!("{names} of {} did not arrive{step}{}", self.world, self.porch.note());
        let error = Error::new(Code::MissingRanks, text);
        if absent.len() == 1 { error.with_peer(Rank(absent[0])) } else { error }
    }

    fn admit(&mut self, guest: Guest<TcpStream>, now: Instant) {
        let token = self.next_token;
        self.next_token += 1;
        let interest = Interest::Read;
        if self.poller.add(guest.stream.as_fd(), token, interest).is_err() {
            return;
        }
        let frames = Frames::new(&guest.outcome.session, Side::Server, REQUEST_MAX);
        let limit = Some(now + MEMBER_LIMIT);
        let Guest { stream, from, outcome } = guest;
        let (rank, named) = (None, outcome.hello.rank);
        let member = Member { stream, frames, rank, named, from, interest, limit };
        self.members.insert(token, member);
    }

    fn serve(&mut self, event: Event, now: Instant) {
        // BOUND: a rank has at most one request under way; a chatty one is stopped by its frames'
        // tags and the order of rounds.
        while let Some(member) = self.members.get_mut(&event.token) {
            let request = match member.frames.poll(&mut member.stream) {
                Ok(Some(frame)) => Request::decode(&frame),
                Ok(None) => break,
                Err(error) => Err(error),
            };
            let done = match request {
                Ok(Request::Join { rank, world, patience, card, terms }) => {
                    self.join(event.token, (rank, world), (card, terms), patience, now)
                }
                Ok(Request::Offer { round, patience, item, met }) => {
                    self.offer(event.token, round, patience, (item, &met), now)
                }
                Ok(Request::Failed(error)) => {
                    self.told(event.token, &error, now);
                    return;
                }
                Err(_) => {
                    self.lose(event.token, now);
                    return;
                }
            };
            if let Err(error) = done {
                self.fail(error, now);
            }
        }
        self.flush(event.token, now);
    }

    fn join(
        &mut self,
        token: u64,
        (rank, world): (u32, u32),
        (card, terms): (Vec<u8>, Vec<u8>),
        patience: Duration,
        now: Instant,
    ) -> Result<()> {
        let Some(member) = self.members.get_mut(&token) else {
            return Ok(());
        };
        member.limit = None;
        if let Phase::Failed { error, .. } = &self.phase {
            let (kind, payload) = Answer::failed(error);
            member.frames.push(kind, payload);
            member.limit = Some(now + MEMBER_LIMIT);
            return Ok(());
        }
        let from = member.from.clone();
        if member.rank.is_some() {
            return Err(Error::new(Code::Protocol, format!("{from} joined twice")));
        }
        if world == 0 || world > WORLD_MAX {
            let text = format!("{from} asks for a world of {world}, not 1 to {WORLD_MAX}");
            return Err(Error::new(Code::InvalidArgument, text));
        }
        if rank >= world {
            let text = format!("{from} is rank {rank} in a world of {world}");
            return Err(Error::new(Code::RankOutOfRange, text).with_peer(Rank(rank)));
        }
        if self.world == 0 {
            self.world = world;
            self.parts = vec![None; Rank(world).index()];
            self.met = vec![false; Rank(world).index()];
        }
        if world != self.world {
            let text = format!(
                "rank {rank} ({from}) has a world of {world}, those before it of {}",
                self.world
            );
            return Err(Error::new(Code::Mismatch, text).with_peer(Rank(rank)));
        }
        let same = self.members.values().find(|other| other.rank == Some(rank));
        if let Some(same) = same {
            let text = format!("rank {rank} came twice, from {} and from {from}", same.from);
            return Err(Error::new(Code::InvalidArgument, text).with_peer(Rank(rank)));
        }
        if let Some(member) = self.members.get_mut(&token) {
            member.rank = Some(rank);
        }
        if rank == 0 {
            self.terms = terms;
        }
        self.contribute(rank, card, patience, now);
        Ok(())
    }

    fn offer(
        &mut self,
        token: u64,
        round: u64,
        patience: Duration,
        (item, met): (Vec<u8>, &[u8]),
        now: Instant,
    ) -> Result<()> {
        let Some(rank) = self.members.get(&token).and_then(|member| member.rank) else {
            return Err(Error::new(Code::Protocol, "an exchange before a join"));
        };
        match self.phase {
            // The failure is on its way to this rank.
            Phase::Failed { .. } => return Ok(()),
            Phase::Running { round: current } if current == round => {}
            _ => {
                let text = format!("rank {rank} is at exchange {round}, the others are not");
                return Err(Error::new(Code::Protocol, text).with_peer(Rank(rank)));
            }
        }
        if self.parts[Rank(rank).index()].is_some() {
            let text = format!("rank {rank} gave two parts to exchange {round}");
            return Err(Error::new(Code::Protocol, text).with_peer(Rank(rank)));
        }
        for (index, known) in self.met.iter_mut().enumerate() {
            *known |= met.get(index / 8).is_some_and(|byte| byte >> (index % 8) & 1 == 1);
        }
        self.contribute(rank, item, patience, now);
        if let Some(gone) = self.gone() {
            return Err(left(gone));
        }
        Ok(())
    }

    /// A rank that has joined and is here no more.
    fn gone(&self) -> Option<u32> {
        let joined = self.members.values().filter(|member| member.rank.is_some()).count();
        if joined == self.parts.len() || matches!(self.phase, Phase::Joining) {
            return None;
        }
        (0..self.world).find(|&rank| self.members.values().all(|member| member.rank != Some(rank)))
    }

    fn contribute(&mut self, rank: u32, part: Vec<u8>, patience: Duration, now: Instant) {
        self.parts[Rank(rank).index()] = Some(part);
        self.arrived += 1;
        let deadline = now + patience.min(PATIENCE_MAX);
        self.deadline = Some(self.deadline.map_or(deadline, |other| other.min(deadline)));
        if self.arrived < self.parts.len() {
            return;
        }
        let parts: Vec<Vec<u8>> =
            self.parts.iter_mut().map(|part| part.take().unwrap_or_default()).collect();
        self.arrived = 0;
        self.met.fill(false);
        self.deadline = None;
        let (answer, round) = match self.phase {
            Phase::Running { round } => (Answer::all(round, &parts), round + 1),
            _ => (Answer::table(&parts, &self.terms), 0),
        };
        self.phase = Phase::Running { round };
        self.tell(answer, false, now);
    }

    /// Queues an answer for every rank, rank 0's last, or at once when it is `urgent`.
    fn tell(&mut self, (kind, payload): (u8, Arc<[u8]>), urgent: bool, now: Instant) {
        // A round that has ended has ended for rank 0 too, whatever fails after it.
        if let Some((kind, payload)) = self.held.take() {
            let first = self.members.values_mut().find(|member| member.rank == Some(0));
            if let Some(member) = first {
                member.frames.push(kind, payload);
            }
        }
        for member in self.members.values_mut() {
            if urgent || member.rank.is_some_and(|rank| rank != 0) {
                member.frames.push(kind, Arc::clone(&payload));
                member.limit = Some(now + MEMBER_LIMIT);
            }
        }
        self.held = if urgent { None } else { Some((kind, payload)) };
        for token in self.members.keys().copied().collect::<Vec<_>>() {
            self.flush(token, now);
        }
    }

    fn release_held(&mut self, now: Instant) {
        let ready = |member: &Member| member.rank == Some(0) || member.frames.is_flushed();
        if self.held.is_none() || !self.members.values().all(ready) {
            return;
        }
        let Some((kind, payload)) = self.held.take() else {
            return;
        };
        let first = self.members.iter_mut().find(|(_, member)| member.rank == Some(0));
        if let Some((&token, member)) = first {
            member.frames.push(kind, payload);
            member.limit = Some(now + MEMBER_LIMIT);
            self.flush(token, now);
        }
    }

    fn flush(&mut self, token: u64, now: Instant) {
        let Some(member) = self.members.get_mut(&token) else {
            return;
        };
        if member.frames.flush(&mut member.stream).is_err() {
            self.lose(token, now);
            return;
        }
        let flushed = member.frames.is_flushed();
        if flushed && member.rank.is_some() {
            member.limit = None;
        }
        let interest = if flushed { Interest::Read } else { Interest::Both };
        if interest != member.interest {
            member.interest = interest;
            // A failure shows as a member that takes nothing in, which its limit takes care of.
            let _ = self.poller.modify(member.stream.as_fd(), token, interest);
        }
    }

    /// A rank says that it has failed, be it before it could join.
    fn told(&mut self, token: u64, error: &Error, now: Instant) {
        let Some(rank) = self.members.get(&token).map(|m| m.rank.unwrap_or(m.named)) else {
            return;
        };
        self.lose_quietly(token);
        let text = format!("rank {rank} failed: {}", error.detail);
        let blamed = error.peer.unwrap_or(Rank(rank));
        self.fail(Error::new(error.code, text).with_peer(blamed), now);
    }

    /// A connection has ended. That fails the round in progress, if it was a rank's.
    fn lose(&mut self, token: u64, now: Instant) {
        let Some(rank) = self.lose_quietly(token) else {
            return;
        };
        let waiting = matches!(self.phase, Phase::Joining) || self.arrived > 0;
        if waiting && !matches!(self.phase, Phase::Failed { .. }) {
            self.fail(left(rank), now);
        }
    }

    fn lose_quietly(&mut self, token: u64) -> Option<u32> {
        let member = self.members.remove(&token)?;
        let _ = self.poller.remove(member.stream.as_fd());
        member.rank
    }

    fn fail(&mut self, error: Error, now: Instant) {
        if matches!(self.phase, Phase::Failed { .. }) {
            return;
        }
        self.deadline = None;
        let answer = Answer::failed(&error);
        self.phase = Phase::Failed { error, until: now + LINGER };
        self.tell(answer, true, now);
    }
}

fn left(rank: u32) -> Error {
    let text = format!("rank {rank} left during start-up");
    Error::new(Code::PeerLost, text).with_peer(Rank(rank))
}
