//! Connects every pair of ranks over TCP: one control connection and some lanes each.
//!
//! The higher rank connects to the lower one. All of a rank's connections are made by one thread
//! at once, so that no two ranks wait for each other. A peer's addresses are tried in order of
//! their routes; its lanes go where its control connection went. Strangers at the listeners
//! disturb nothing.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::auth::{Expect, Handshake, Hello, Purpose};
use super::conn::{Conn, ours};
use super::interface::route;
use super::key::Key;
use super::missing::ranks_text;
use super::porch::{Guest, NEWS, Porch, STRANGERS_MAX, TOKENS_FROM};
use super::rendezvous::Joined;
use crate::error::{Code, Error, Result};
use crate::sys::poll::{Interest, Poller};
use crate::sys::{interface, socket};
use crate::types::Rank;

/// Attempts under way at once; more would only fill the queues of listeners.
const ATTEMPTS_MAX: usize = 128;
/// How long one address may take to accept a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// How long the handshake may take then; a peer may be busy with hundreds of others.
const SHAKE_LIMIT: Duration = Duration::from_secs(20);
/// How long a peer rests after none of its addresses answered.
const PAUSE: Duration = Duration::from_millis(50);

/// A rank's place in its job, and until when it may take to connect.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'a> {
    /// Its number.
    pub rank: u32,
    /// The number of ranks.
    pub world: u32,
    /// The job's key.
    pub key: &'a Key,
    /// The incarnation of the communicator.
    pub epoch: u64,
    /// When start-up fails.
    pub deadline: Instant,
}

/// The connections to one peer, all non-blocking and with small messages sent at once.
#[derive(Debug)]
pub(crate) struct PeerSockets {
    /// For fingerprints, failures and other small things.
    pub control: TcpStream,
    /// For data.
    pub lanes: Vec<TcpStream>,
    /// The peer's end of the control connection.
    pub address: SocketAddr,
    /// Why this address was taken.
    pub why: String,
}

/// Listeners at these addresses, on any ports.
pub(crate) fn listen(addresses: &[IpAddr]) -> Result<Vec<TcpListener>> {
    addresses.iter().map(|&address| socket::listen(SocketAddr::new(address, 0))).collect()
}

/// Connects to every peer that has addresses; an empty list means no connection with that peer,
/// and both must mean it. `lanes` says how many lanes each peer gets beside its control connection.
/// Strangers' connections at `listeners` are dropped. `joined` tells of failures elsewhere.
///
/// # Errors
/// `MissingRanks` names the peers that were not connected by the deadline, with the last failure.
/// What made another rank fail, as soon as it is told.
pub(crate) fn connect_mesh(
    place: &Place<'_>,
    listeners: &[TcpListener],
    peers: &[Vec<SocketAddr>],
    lanes: &[u16],
    joined: Option<&mut Joined>,
) -> Result<Vec<Option<PeerSockets>>> {
    super::rendezvous::check_place(place.rank, place.world)?;
    if peers.len() != Rank(place.world).index() || lanes.len() != peers.len() {
        return Err(Error::new(
            Code::Internal,
            "one list of addresses and a lane count for each rank",
        ));
    }
    Mesh::new(place, listeners, peers, lanes)?.run(joined)
}

/// What one peer still lacks.
#[derive(Debug)]
struct Slots {
    control: Option<TcpStream>,
    lanes: Vec<Option<TcpStream>>,
    /// The peer's addresses, best first, when we are to connect.
    ways: Vec<(SocketAddr, String)>,
    /// The way the control connection took.
    taken: usize,
    last_error: Option<Error>,
}

impl Slots {
    fn is_full(&self) -> bool {
        self.control.is_some() && self.lanes.iter().all(Option::is_some)
    }

    fn place(&mut self, purpose: Purpose) -> Option<&mut Option<TcpStream>> {
        match purpose {
            Purpose::Control => Some(&mut self.control),
            Purpose::Lane(lane) => self.lanes.get_mut(usize::from(lane)),
            Purpose::Rendezvous | Purpose::Local => None,
        }
    }

    fn finish(self) -> Option<PeerSockets> {
        let control = self.control?;
        let address = control.peer_addr().ok()?;
        let why = self.ways.get(self.taken).map(|(_, why)| why.clone());
        let why = why.unwrap_or_else(|| "the address the peer connected from".to_owned());
        Some(PeerSockets {
            control,
            lanes: self.lanes.into_iter().flatten().collect(),
            address,
            why,
        })
    }
}

/// One connection to make.
#[derive(Clone, Copy, Debug)]
struct Job {
    peer: u32,
    purpose: Purpose,
    /// Which of the peer's addresses.
    way: usize,
    not_before: Instant,
}

#[derive(Debug)]
enum Attempt {
    Connecting { job: Job, stream: TcpStream, limit: Instant },
    Shaking { job: Job, conn: Box<Conn<TcpStream>>, interest: Interest },
}

impl Attempt {
    const fn limit(&self) -> Instant {
        match self {
            Self::Connecting { limit, .. } => *limit,
            Self::Shaking { conn, .. } => conn.limit,
        }
    }

    const fn job(&self) -> Job {
        match self {
            Self::Connecting { job, .. } | Self::Shaking { job, .. } => *job,
        }
    }
}

struct Mesh<'a> {
    place: &'a Place<'a>,
    poller: Poller,
    porch: Porch<&'a TcpListener>,
    /// One for each peer that is to be connected.
    table: BTreeMap<u32, Slots>,
    jobs: VecDeque<Job>,
    attempts: BTreeMap<u64, Attempt>,
    next_token: u64,
}

impl<'a> Mesh<'a> {
    fn new(
        place: &'a Place<'a>,
        listeners: &'a [TcpListener],
        peers: &[Vec<SocketAddr>],
        lanes: &[u16],
    ) -> Result<Self> {
        let poller = Poller::new()?;
        let interfaces = interface::list()?;
        let mut table = BTreeMap::new();
        let mut jobs = VecDeque::new();
        for ((peer, addresses), &lanes) in (0u32..).zip(peers).zip(lanes) {
            if peer == place.rank || addresses.is_empty() {
                continue;
            }
            let mut ways = Vec::new();
            if peer < place.rank {
                ways = addresses.iter().map(|&to| (route(&interfaces, to.ip()), to)).collect();
                ways.sort_by_key(|((quality, _), _)| *quality);
                let now = Instant::now();
                jobs.push_back(Job { peer, purpose: Purpose::Control, way: 0, not_before: now });
            }
            let ways = ways.into_iter().map(|((_, why), to)| (to, why)).collect();
            let lanes = (0..lanes).map(|_| None).collect();
            let slots = Slots { control: None, lanes, ways, taken: 0, last_error: None };
            table.insert(peer, slots);
        }
        let expect = Expect::Mesh { rank: place.rank, epoch: place.epoch };
        // Every peer may come with all its connections at once, on top of strangers.
        let expected: usize = table.values().map(|s: &Slots| 1 + s.lanes.len()).sum();
        let strangers_max = STRANGERS_MAX + expected;
        let doors = listeners.iter().collect();
        let porch = Porch::new(doors, place.key, expect, strangers_max, &poller)?;
        Ok(Self { place, poller, porch, table, jobs, attempts: BTreeMap::new(), next_token: 0 })
    }

    fn run(mut self, mut joined: Option<&mut Joined>) -> Result<Vec<Option<PeerSockets>>> {
        if let Some(joined) = &joined {
            self.poller.add(joined.stream().as_fd(), NEWS, Interest::Read)?;
        }
        let mut events = Vec::new();
        let mut guests = Vec::new();
        // BOUND: the deadline.
        while !self.table.values().all(Slots::is_full) {
            let now = Instant::now();
            if now >= self.place.deadline {
                return Err(self.missing());
            }
            joined.as_deref_mut().map_or(Ok(()), Joined::heed)?;
            self.porch.check_shortage(now)?;
            self.start_jobs(now)?;
            self.expire(now);
            let expiry = self.porch.expire(&self.poller, now)?;
            let timeout = self.wake_time(expiry).saturating_duration_since(Instant::now());
            self.poller.wait(Some(timeout), &mut events)?;
            let now = Instant::now();
            for &event in &events {
                if event.token >= TOKENS_FROM {
                    self.porch.handle(event, &self.poller, now, &mut guests);
                } else if event.token != NEWS {
                    self.advance(event.token, now);
                }
            }
            for guest in guests.drain(..) {
                self.admit(guest);
            }
        }
        let mut sockets: Vec<Option<PeerSockets>> = (0..self.place.world).map(|_| None).collect();
        for (peer, slots) in self.table {
            sockets[Rank(peer).index()] = Some(slots.finish().ok_or_else(|| {
                let text = format!("rank {peer} left while others still connected");
                Error::new(Code::PeerLost, text).with_peer(Rank(peer))
            })?);
        }
        Ok(sockets)
    }

    fn wake_time(&self, expiry: Option<Instant>) -> Instant {
        let limits = self.attempts.values().map(Attempt::limit);
        // With all attempts taken, a job waits for one of them to end, not for a time.
        let room = self.attempts.len() < ATTEMPTS_MAX;
        let starts = self.jobs.iter().filter(|_| room).map(|job| job.not_before);
        limits.chain(starts).chain(expiry).fold(self.place.deadline, Instant::min)
    }

    fn start_jobs(&mut self, now: Instant) -> Result<()> {
        for _ in 0..self.jobs.len() {
            if self.attempts.len() >= ATTEMPTS_MAX {
                break;
            }
            let Some(job) = self.jobs.pop_front() else {
                break;
            };
            if job.not_before > now {
                self.jobs.push_back(job);
            } else if let Err(error) = self.start(job, now) {
                if ours(&error) {
                    return Err(error);
                }
                self.failed(job, error, now);
            }
        }
        Ok(())
    }

    fn start(&mut self, job: Job, now: Instant) -> Result<()> {
        let way = self.table.get(&job.peer).and_then(|slots| slots.ways.get(job.way));
        let Some(&(address, _)) = way else {
            return Err(Error::new(Code::Internal, "a job without an address"));
        };
        let stream = socket::connect_start(address, None)?;
        socket::set_nodelay(&stream)?;
        let token = self.next_token;
        self.next_token += 1;
        self.poller.add(stream.as_fd(), token, Interest::Write)?;
        let limit = now + CONNECT_LIMIT;
        self.attempts.insert(token, Attempt::Connecting { job, stream, limit });
        Ok(())
    }

    fn advance(&mut self, token: u64, now: Instant) {
        let Some(attempt) = self.attempts.remove(&token) else {
            return;
        };
        let job = attempt.job();
        match self.step(token, attempt, now) {
            Ok(Some(attempt)) => {
                self.attempts.insert(token, attempt);
            }
            Ok(None) => {}
            Err(error) => self.failed(job, error, now),
        }
    }

    /// Takes an attempt further; `None` when it has ended well.
    fn step(&mut self, token: u64, attempt: Attempt, now: Instant) -> Result<Option<Attempt>> {
        let (job, mut conn, mut interest) = match attempt {
            Attempt::Connecting { job, stream, limit } => {
                if !socket::connected(&stream)? {
                    return Ok(Some(Attempt::Connecting { job, stream, limit }));
                }
                let hello = Hello {
                    rank: self.place.rank,
                    to: job.peer,
                    world: self.place.world,
                    epoch: self.place.epoch,
                    purpose: job.purpose,
                };
                let shake = Handshake::connector(self.place.key, hello)?;
                (job, Box::new(Conn::new(stream, shake, now + SHAKE_LIMIT)), Interest::Write)
            }
            Attempt::Shaking { job, conn, interest } => (job, conn, interest),
        };
        if conn.advance()? {
            self.poller.remove(conn.stream().as_fd())?;
            let Some((stream, _)) = conn.finish() else {
                return Ok(None);
            };
            self.connected(job, stream, now);
            return Ok(None);
        }
        if conn.interest() != interest {
            interest = conn.interest();
            self.poller.modify(conn.stream().as_fd(), token, interest)?;
        }
        Ok(Some(Attempt::Shaking { job, conn, interest }))
    }

    fn connected(&mut self, job: Job, stream: TcpStream, now: Instant) {
        let Some(slots) = self.table.get_mut(&job.peer) else {
            return;
        };
        if job.purpose == Purpose::Control {
            slots.taken = job.way;
            let lanes = u16::try_from(slots.lanes.len()).unwrap_or(u16::MAX);
            self.jobs.extend((0..lanes).map(|lane| Job {
                purpose: Purpose::Lane(lane),
                not_before: now,
                ..job
            }));
        }
        if let Some(place) = slots.place(job.purpose) {
            *place = Some(stream);
        }
    }

    fn failed(&mut self, mut job: Job, error: Error, now: Instant) {
        let Some(slots) = self.table.get_mut(&job.peer) else {
            return;
        };
        slots.last_error = Some(error);
        job.not_before = now;
        if job.purpose == Purpose::Control {
            job.way = (job.way + 1) % slots.ways.len().max(1);
        }
        if job.purpose != Purpose::Control || job.way == 0 {
            job.not_before = now + PAUSE;
        }
        self.jobs.push_back(job);
    }

    fn expire(&mut self, now: Instant) {
        let late = self.attempts.iter().filter(|(_, attempt)| attempt.limit() <= now);
        for token in late.map(|(&token, _)| token).collect::<Vec<_>>() {
            let Some(attempt) = self.attempts.remove(&token) else {
                continue;
            };
            let error = Error::new(Code::TimedOut, "no answer");
            self.failed(attempt.job(), error, now);
        }
    }

    /// A proved connection takes its place. The newest wins: whoever connects again has given up
    /// the one before.
    fn admit(&mut self, guest: Guest<TcpStream>) {
        let hello = guest.outcome.hello;
        if hello.rank <= self.place.rank || hello.world != self.place.world {
            return;
        }
        let Some(slots) = self.table.get_mut(&hello.rank) else {
            return;
        };
        if let Some(place) = slots.place(hello.purpose) {
            *place = Some(guest.stream);
        }
    }

    fn missing(&self) -> Error {
        let lacking = || self.table.iter().filter(|(_, slots)| !slots.is_full());
        let ranks: Vec<u32> = lacking().map(|(&rank, _)| rank).collect();
        let reason = lacking().find_map(|(rank, slots)| {
            let error = slots.last_error.as_ref()?;
            let to = slots.ways.iter().map(|(to, _)| to.to_string()).collect::<Vec<_>>();
            Some(format!("; rank {rank} at {}: {}", to.join(", "), error.detail))
        });
        let text = format!(
            "{} of {} were not connected{}{}",
            ranks_text(&ranks),
            self.place.world,
            reason.unwrap_or_default(),
            self.porch.note()
        );
        let error = Error::new(Code::MissingRanks, text);
        if ranks.len() == 1 { error.with_peer(Rank(ranks[0])) } else { error }
    }
}

#[cfg(test)]
#[path = "mesh_tests.rs"]
mod tests;
