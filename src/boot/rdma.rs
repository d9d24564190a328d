//! Connects the ranks that have RDMA cards, and proves that they are of the job.
//!
//! A rank opens a listener at the address of each card that it uses, and tells them in its card
//! (the one it gives at the rendezvous), with a nonce. Path k of two ranks is between the k-th card
//! of each. The higher rank connects to the lower one. Its request carries a tag, which the job's
//! key makes of both nonces, both ranks, the epoch and the path; the answer carries another, of
//! the same for the other direction. Nonces are fresh, so a tag of another time is worth nothing,
//! and no memory key is told before both tags are proved. Of the requests of a peer for a path a
//! listener takes the last, until one is established.
//!
//! ```text
//! request, answer:  version (2) | path (1) | 0 (1) | rank (4) | to (4) | tag (32) | 0 (12)
//! ```
//!
//! A peer that cannot be reached so is not an error: it is reached by other links. [`agree`] makes
//! both ends say the same.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::doors::{Doors, LISTENERS};
use super::key::Key;
use super::mesh::Place;
use super::offer::Offer;
use super::rendezvous::Joined;
use crate::error::{Code, Error, Result};
use crate::rdma::{Event, Id, Kind, PRIVATE_BYTES};
use crate::sys::poll::{Interest, Poller};
use crate::types::Rank;

const VERSION: u16 = 1;
const CONTEXT: &str = "unisono 2026 rdma connection v1";
/// Between two looks at whether other ranks have failed.
const LOOK: Duration = Duration::from_millis(100);
/// How long one step of a connection may take, in milliseconds.
const STEP_MS: i32 = 2000;
/// How often a connection is tried, and for how long each time: a lost request is sent again by the
/// system only after several seconds.
const ATTEMPTS: u32 = 4;
const ATTEMPT: Duration = Duration::from_secs(3);

/// What is made of a connection as it comes about.
pub(crate) trait Fit {
    /// Gives the connection with `peer` on `path` a queue pair, and keeps it.
    fn fit(&mut self, peer: u32, path: usize, id: Id) -> Result<()>;
    /// The connection that was fitted there.
    fn id(&mut self, peer: u32, path: usize) -> Option<&mut Id>;
    /// It did not come about.
    fn unfit(&mut self, peer: u32, path: usize);
    /// The number that its events carry.
    fn number(&self, peer: u32, path: usize) -> Option<usize>;
}

/// How far a connection is that this rank makes.
#[derive(Debug)]
struct Dial {
    peer: u32,
    path: usize,
    /// Until it is fitted.
    id: Option<Id>,
    attempts: u32,
    limit: Instant,
    done: bool,
    failed: Option<String>,
}

/// Connects with each peer that is to be: `peers[rank]` is its offer and the number of paths to it,
/// 0 for those that are not. What did not come about by the deadline is left out.
///
/// # Errors
/// What another rank has failed by, and what this one lacks.
pub(crate) fn connect(
    place: &Place<'_>,
    doors: &Doors,
    peers: &[(Offer, usize)],
    fit: &mut dyn Fit,
    joined: &mut Joined,
) -> Result<Vec<String>> {
    let mut dials: Vec<Dial> = Vec::new();
    let mut expected = 0;
    for (peer, (_, paths)) in (0u32..).zip(peers) {
        if peer > place.rank {
            expected += paths;
        }
        let dial = |path| Dial {
            peer,
            path,
            id: None,
            attempts: 0,
            limit: place.deadline,
            done: false,
            failed: None,
        };
        if peer < place.rank {
            dials.extend((0..*paths).map(dial));
        }
    }
    let key = place.key.derive(CONTEXT);
    let mut making = Making { place, doors, peers, fit, key, dials, met: Vec::new(), expected };
    making.run(joined)?;
    making.clear();
    let text = |dial: &Dial| {
        let why = dial.failed.as_deref().unwrap_or("no answer");
        format!("rank {} by path {}: {why}", dial.peer, dial.path)
    };
    Ok(making.dials.iter().filter(|dial| !dial.done).map(text).collect())
}

struct Making<'a> {
    place: &'a Place<'a>,
    doors: &'a Doors,
    peers: &'a [(Offer, usize)],
    fit: &'a mut dyn Fit,
    key: Key,
    dials: Vec<Dial>,
    /// Connections that peers have made: which, and whether they are established.
    met: Vec<(u32, usize, bool)>,
    expected: usize,
}

impl Making<'_> {
    fn is_done(&self) -> bool {
        let settled = |dial: &Dial| dial.done || dial.failed.is_some();
        self.dials.iter().all(settled)
            && self.met.iter().filter(|(_, _, established)| *established).count() == self.expected
    }

    fn run(&mut self, joined: &mut Joined) -> Result<()> {
        let mut poller = Poller::new()?;
        poller.add(self.doors.channel.fd(), 0, Interest::Read)?;
        poller.add(joined.stream().as_fd(), 1, Interest::Read)?;
        for index in 0..self.dials.len() {
            self.dial(index)?;
        }
        let mut events = Vec::new();
        // BOUND: the deadline.
        while !self.is_done() {
            let left = self.place.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            joined.heed()?;
            poller.wait(Some(left.min(LOOK)), &mut events)?;
            while let Some(event) = self.doors.channel.next()? {
                self.handle(event)?;
            }
            let now = Instant::now();
            for index in 0..self.dials.len() {
                let Dial { limit, done, ref failed, .. } = self.dials[index];
                if !done && failed.is_none() && now >= limit {
                    self.fail(index, "no answer")?;
                }
            }
        }
        Ok(())
    }

    /// What has not come about is nothing.
    fn clear(&mut self) {
        let dials = self.dials.iter().filter(|dial| !dial.done);
        let met = self.met.iter().filter(|(_, _, established)| !established);
        let open = dials.map(|dial| (dial.peer, dial.path)).chain(met.map(|(r, p, _)| (*r, *p)));
        for (peer, path) in open.collect::<Vec<_>>() {
            self.fit.unfit(peer, path);
        }
    }

    /// Begins a connection, again.
    fn dial(&mut self, index: usize) -> Result<()> {
        let Dial { peer, path, .. } = self.dials[index];
        let (offer, _) = &self.peers[Rank(peer).index()];
        let (target, (.., source)) = (offer.addresses[path], &self.doors.bound[path]);
        self.dials[index].attempts += 1;
        self.dials[index].limit = Instant::now() + ATTEMPT;
        let number = self.number(peer, path)?;
        let mut id = Id::new(&self.doors.channel, number)?;
        match id.resolve(*source, target, STEP_MS) {
            Ok(()) => self.dials[index].id = Some(id),
            Err(error) => self.dials[index].failed = Some(error.detail.into()),
        }
        Ok(())
    }

    fn number(&self, peer: u32, path: usize) -> Result<usize> {
        let lost = || Error::new(Code::Internal, "a connection with a rank that has no place");
        self.fit.number(peer, path).ok_or_else(lost)
    }

    fn handle(&mut self, event: Event) -> Result<()> {
        if event.kind == Kind::Request {
            return self.meet(event);
        }
        let number = event.number;
        if let Some(index) = self
            .dials
            .iter()
            .position(|dial| !dial.done && self.fit.number(dial.peer, dial.path) == Some(number))
        {
            let outcome = self.advance(index, &event);
            if let Err(error) = outcome {
                self.fail(index, &error.detail)?;
            }
            return Ok(());
        }
        let own = |(peer, path, _): &&mut (u32, usize, bool)| {
            self.fit.number(*peer, *path) == Some(number)
        };
        let Some((peer, path, established)) = self.met.iter_mut().find(own) else {
            return Ok(());
        };
        match event.kind {
            Kind::Established => *established = true,
            Kind::Failed(_) | Kind::Ended | Kind::Removed => {
                // The peer tries again.
                let (peer, path) = (*peer, *path);
                self.fit.unfit(peer, path);
                self.met.retain(|(p, k, _)| (*p, *k) != (peer, path));
            }
            _ => {}
        }
        Ok(())
    }

    /// Takes a connection of ours further.
    fn advance(&mut self, index: usize, event: &Event) -> Result<()> {
        let Dial { peer, path, .. } = self.dials[index];
        match event.kind {
            Kind::AddressFound => match &mut self.dials[index].id {
                Some(id) => id.route(STEP_MS),
                None => Ok(()),
            },
            Kind::RouteFound => {
                let Some(id) = self.dials[index].id.take() else { return Ok(()) };
                self.fit.fit(peer, path, id)?;
                let private = self.greeting(peer, path, self.place.rank, peer);
                match self.fit.id(peer, path) {
                    Some(id) => id.connect(&private),
                    None => Ok(()),
                }
            }
            Kind::Established => {
                if !self.proves(&event.private, peer, path, peer, self.place.rank) {
                    let text = "the peer does not know the job's key";
                    return Err(Error::new(Code::Unauthenticated, text));
                }
                self.dials[index].done = true;
                Ok(())
            }
            Kind::Failed(why) => {
                Err(Error::new(Code::PeerLost, format!("{why} ({})", event.status)))
            }
            Kind::Ended => Err(Error::new(Code::PeerLost, "the peer ended it")),
            Kind::Removed => Err(Error::new(Code::PeerLost, "the card here is gone")),
            Kind::Request | Kind::Other => Ok(()),
        }
    }

    fn fail(&mut self, index: usize, why: &str) -> Result<()> {
        let Dial { peer, path, attempts, .. } = self.dials[index];
        self.dials[index].id = None;
        self.fit.unfit(peer, path);
        if attempts < ATTEMPTS && Instant::now() < self.place.deadline {
            return self.dial(index);
        }
        self.dials[index].failed = Some(why.to_owned());
        Ok(())
    }

    /// Somebody asks for a connection. Strangers are turned away.
    fn meet(&mut self, event: Event) -> Result<()> {
        let Some(mut id) = event.new else { return Ok(()) };
        let private = &event.private;
        let word = |at: usize| {
            u32::from_le_bytes([private[at], private[at + 1], private[at + 2], private[at + 3]])
        };
        let (peer, path) = (word(4), usize::from(private[2]));
        let known = self.peers.get(Rank(peer).index());
        let fits = peer > self.place.rank && known.is_some_and(|(_, paths)| path < *paths);
        let listener = event.number.checked_sub(LISTENERS);
        let proved = fits
            && listener == Some(path)
            && self.proves(private, peer, path, peer, self.place.rank);
        // The tag is good for the whole of the start-up; what is established stays.
        let taken = self.met.iter().any(|(p, k, done)| (*p, *k) == (peer, path) && *done);
        if !proved || taken {
            id.reject();
            return Ok(());
        }
        // Whoever asks again has given up the one before.
        self.met.retain(|(p, k, _)| (*p, *k) != (peer, path));
        self.fit.unfit(peer, path);
        id.renumber(self.number(peer, path)?);
        let greeting = self.greeting(peer, path, self.place.rank, peer);
        // What fails here is for the peer to find out, and to try again.
        let accept = || {
            self.fit.fit(peer, path, id)?;
            self.fit.id(peer, path).map_or(Ok(()), |id| id.accept(&greeting))
        };
        match accept() {
            Ok(()) => self.met.push((peer, path, false)),
            Err(error) if error.code == Code::Limit => return Err(error),
            Err(_) => self.fit.unfit(peer, path),
        }
        Ok(())
    }

    /// The tag that `from` gives to `to`, where `peer` is the other one of the two.
    fn tag(&self, peer: u32, path: usize, (from, to): (u32, u32)) -> [u8; 32] {
        let theirs = &self.peers[Rank(peer).index()].0.nonce;
        let ours = &self.doors.offer.nonce;
        let nonces = if from == self.place.rank { [ours, theirs] } else { [theirs, ours] };
        let numbers = [from, to, u32::try_from(path).unwrap_or(u32::MAX), self.place.world];
        let numbers = numbers.map(u32::to_le_bytes).concat();
        let epoch = self.place.epoch.to_le_bytes();
        self.key.tag(&[nonces[0], nonces[1], &numbers, &epoch])
    }

    fn greeting(&self, peer: u32, path: usize, from: u32, to: u32) -> [u8; PRIVATE_BYTES] {
        let mut bytes = [0; PRIVATE_BYTES];
        bytes[..2].copy_from_slice(&VERSION.to_le_bytes());
        bytes[2] = u8::try_from(path).unwrap_or(u8::MAX);
        bytes[4..8].copy_from_slice(&from.to_le_bytes());
        bytes[8..12].copy_from_slice(&to.to_le_bytes());
        bytes[12..44].copy_from_slice(&self.tag(peer, path, (from, to)));
        bytes
    }

    /// Whether a greeting is what `from` says to `to`.
    fn proves(
        &self,
        private: &[u8; PRIVATE_BYTES],
        peer: u32,
        path: usize,
        from: u32,
        to: u32,
    ) -> bool {
        let wanted = self.greeting(peer, path, from, to);
        subtle::ConstantTimeEq::ct_eq(wanted.as_slice(), private.as_slice()).into()
    }
}

/// Agrees with every rank on how many paths there are between any two: `mine[rank]` is what this
/// one has. Returns what both ends of each pair of this rank have, and whether anybody has any.
pub(crate) fn agree(
    joined: &mut Joined,
    rank: u32,
    mine: &[usize],
    deadline: Instant,
) -> Result<(Vec<usize>, bool)> {
    let told: Vec<u8> = mine.iter().map(|paths| u8::try_from(*paths).unwrap_or(0)).collect();
    let all = joined.exchange(&told, deadline)?;
    let says = |a: usize, b: usize| all.get(a).and_then(|row| row.get(b)).copied().unwrap_or(0);
    let me = Rank(rank).index();
    let both = |a: usize, b: usize| says(a, b).min(says(b, a));
    let kept = (0..all.len()).map(|peer| usize::from(both(me, peer))).collect();
    let any = (0..all.len()).any(|a| (0..a).any(|b| both(a, b) > 0));
    Ok((kept, any))
}
