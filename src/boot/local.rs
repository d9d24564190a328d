//! Connects the ranks of one host through shared memory.
//!
//! Every rank listens at an abstract Unix name of random letters, which its card tells. The higher
//! rank connects to the lower one; both prove the job's key, then pass a segment and a bell, and
//! each checks that the token the other names stands in the segment it got: that, not a host name,
//! is the proof of one host. Last, each says whether all was well, so that both come to the same
//! verdict; [`settle`] makes it the same for sure.
//!
//! A peer that cannot be reached this way is not an error. It is simply not local.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use super::auth::{Expect, Handshake, Hello, Purpose};
use super::conn::{Conn, ours};
use super::mesh::Place;
use super::porch::{Guest, NEWS, Porch, STRANGERS_MAX, TOKENS_FROM};
use super::rendezvous::Joined;
pub(crate) use super::trade::LocalPeer;
use super::trade::{Mine, Trade, Traded};
use crate::error::Result;
use crate::sys::bell::Bell;
use crate::sys::memory::Segment;
use crate::sys::poll::{Interest, Poller};
use crate::sys::{random, unix};
use crate::types::Rank;

/// Pause before a full queue is tried again.
const PAUSE: Duration = Duration::from_millis(5);

/// A rank's door for the other ranks of its host.
#[derive(Debug)]
pub(crate) struct LocalListener {
    listener: UnixListener,
    name: String,
}

impl LocalListener {
    /// A listener with a fresh name.
    pub(crate) fn new() -> Result<Self> {
        let tail: [u8; 16] = random::bytes()?;
        let name = format!("unisono-{:032x}", u128::from_le_bytes(tail));
        Ok(Self { listener: unix::listen(name.as_bytes())?, name })
    }

    /// The name to put into this rank's card.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

/// What ranks of one host and one network namespace share, to choose candidates by. Equal texts
/// prove nothing; different ones save an attempt.
pub(crate) fn host_hint() -> [u8; 32] {
    let boot = std::fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let net = std::fs::read_link("/proc/self/ns/net").unwrap_or_default();
    let mut hasher = blake3::Hasher::new();
    hasher.update(&boot);
    hasher.update(net.as_os_str().as_encoded_bytes());
    *hasher.finalize().as_bytes()
}

/// Trades segments and bells with every candidate: `names[rank]` is the name in that rank's card,
/// `None` for ranks that are not to be tried. Both ends must try. `segment` has room for its
/// header, which is written here; a peer whose segment has another size or layout is not local.
///
/// Candidates that are not done after 7/8 of the time to the deadline are `None`: give it a few
/// seconds, not all of start-up's.
pub(crate) fn exchange_local(
    place: &Place<'_>,
    listener: &LocalListener,
    names: &[Option<String>],
    (segment, layout): (&Segment, u32),
    bell: &Bell,
    joined: Option<&mut Joined>,
) -> Result<Vec<Option<LocalPeer>>> {
    // Who waits in vain still needs time to tell the others, and to be told who is missing.
    let left = place.deadline.saturating_duration_since(Instant::now());
    let place = &Place { deadline: place.deadline - left / 8, ..*place };
    let token: [u8; 32] = random::bytes()?;
    segment.write_header(place.rank, token, layout)?;
    let poller = Poller::new()?;
    let expect = Expect::Local { rank: place.rank, epoch: place.epoch };
    let strangers_max = STRANGERS_MAX + names.len();
    let doors = vec![&listener.listener];
    let porch = Porch::new(doors, place.key, expect, strangers_max, &poller)?;
    let mine = Mine::new((segment, layout), bell, token);
    let mut local = Local { place, poller, porch, mine, dials: Vec::new(), pairs: BTreeMap::new() };
    for (peer, name) in (0u32..).zip(names) {
        let Some(name) = name else { continue };
        if peer < place.rank {
            local.dials.push((peer, name));
        }
        if peer != place.rank {
            local.pairs.insert(peer, Pair::Absent);
        }
    }
    local.run(names.len(), joined)
}

/// Agrees with every rank on who is local to whom: a pair counts when both ends say so. True, on
/// every rank, when all pairs of the world are local. Every rank must call it.
pub(crate) fn settle(
    joined: &mut Joined,
    rank: u32,
    peers: &mut [Option<LocalPeer>],
    deadline: Instant,
) -> Result<bool> {
    let mut mine = vec![0u8; peers.len().div_ceil(8)];
    for (peer, _) in peers.iter().enumerate().filter(|(_, peer)| peer.is_some()) {
        mine[peer / 8] |= 1 << (peer % 8);
    }
    let all = joined.exchange_having_met(&mine, &mine, deadline)?;
    let me = Rank(rank).index();
    for (peer, theirs) in peers.iter_mut().zip(&all) {
        let agreed = theirs.get(me / 8).is_some_and(|byte| byte >> (me % 8) & 1 == 1);
        if !agreed {
            *peer = None;
        }
    }
    let says = |a: usize, b: usize| all[a].get(b / 8).is_some_and(|byte| byte >> (b % 8) & 1 == 1);
    let world = all.len();
    Ok((0..world).all(|a| (0..world).all(|b| a == b || says(a, b))))
}

/// How far we are with one candidate.
#[derive(Debug)]
enum Pair {
    /// Nothing yet, or nothing any more and the higher rank may come again.
    Absent,
    Shaking(Box<Conn<UnixStream>>),
    Trading(Box<Trade>),
    Local(Box<LocalPeer>),
    /// It will not become local.
    Remote,
}

struct Local<'a> {
    place: &'a Place<'a>,
    poller: Poller,
    porch: Porch<&'a UnixListener>,
    mine: Mine<'a>,
    /// Lower ranks that are still to be connected to.
    dials: Vec<(u32, &'a String)>,
    pairs: BTreeMap<u32, Pair>,
}

impl Local<'_> {
    fn run(
        mut self,
        world: usize,
        mut joined: Option<&mut Joined>,
    ) -> Result<Vec<Option<LocalPeer>>> {
        if let Some(joined) = &joined {
            self.poller.add(joined.stream().as_fd(), NEWS, Interest::Read)?;
        }
        let mut events = Vec::new();
        let mut guests = Vec::new();
        // BOUND: the deadline.
        loop {
            // A call may settle a pair at once, with no event to follow.
            self.dial()?;
            joined.as_deref_mut().map_or(Ok(()), Joined::heed)?;
            let now = Instant::now();
            self.porch.check_shortage(now)?;
            let settled = |pair: &Pair| matches!(pair, Pair::Local(_) | Pair::Remote);
            if self.pairs.values().all(settled) || now >= self.place.deadline {
                break;
            }
            let mut wake = self.porch.expire(&self.poller, now)?.unwrap_or(self.place.deadline);
            if !self.dials.is_empty() {
                wake = wake.min(now + PAUSE);
            }
            let wake = wake.min(self.place.deadline);
            self.poller.wait(Some(wake.saturating_duration_since(now)), &mut events)?;
            let now = Instant::now();
            for &event in &events {
                if event.token >= TOKENS_FROM {
                    self.porch.handle(event, &self.poller, now, &mut guests);
                } else if let Ok(peer) = u32::try_from(event.token) {
                    self.advance(peer)?;
                }
            }
            for guest in guests.drain(..) {
                self.admit(guest)?;
            }
        }
        let mut peers: Vec<Option<LocalPeer>> = (0..world).map(|_| None).collect();
        for (peer, pair) in self.pairs {
            if let Pair::Local(local) = pair {
                peers[Rank(peer).index()] = Some(*local);
            }
        }
        Ok(peers)
    }

    fn dial(&mut self) -> Result<()> {
        for (peer, name) in std::mem::take(&mut self.dials) {
            let stream = match unix::connect(name.as_bytes()) {
                Ok(Some(stream)) => stream,
                Ok(None) => {
                    self.dials.push((peer, name));
                    continue;
                }
                Err(error) if ours(&error) => return Err(error),
                Err(_) => {
                    self.pairs.insert(peer, Pair::Remote);
                    continue;
                }
            };
            let hello = Hello {
                rank: self.place.rank,
                to: peer,
                world: self.place.world,
                epoch: self.place.epoch,
                purpose: Purpose::Local,
            };
            let shake = Handshake::connector(self.place.key, hello)?;
            self.poller.add(stream.as_fd(), u64::from(peer), Interest::Read)?;
            let conn = Conn::new(stream, shake, self.place.deadline);
            self.pairs.insert(peer, Pair::Shaking(Box::new(conn)));
            self.advance(peer)?;
        }
        Ok(())
    }

    fn admit(&mut self, guest: Guest<UnixStream>) -> Result<()> {
        let hello = guest.outcome.hello;
        let fresh = matches!(self.pairs.get(&hello.rank), Some(Pair::Absent));
        if !fresh || hello.rank <= self.place.rank || hello.world != self.place.world {
            return Ok(());
        }
        let token = u64::from(hello.rank);
        if self.poller.add(guest.stream.as_fd(), token, Interest::Read).is_ok() {
            let trade = Trade::new(guest.stream);
            self.pairs.insert(hello.rank, Pair::Trading(Box::new(trade)));
            self.advance(hello.rank)?;
        }
        Ok(())
    }

    fn advance(&mut self, peer: u32) -> Result<()> {
        let Some(pair) = self.pairs.get_mut(&peer) else {
            return Ok(());
        };
        let was = std::mem::replace(pair, Pair::Remote);
        let next = match was {
            Pair::Shaking(conn) => shake(conn, &self.mine, peer),
            Pair::Trading(going) => trade(&self.mine, going, peer),
            settled => Ok(settled),
        };
        // Whatever else went wrong, the peer is not local; its end sees the closed connection.
        let next = match next {
            Err(error) if ours(&error) => return Err(error),
            next => next.unwrap_or(Pair::Remote),
        };
        if let Pair::Local(local) = &next {
            let _ = self.poller.remove(local.socket.as_fd());
        }
        *pair = next;
        Ok(())
    }
}

fn shake(mut conn: Box<Conn<UnixStream>>, mine: &Mine<'_>, peer: u32) -> Result<Pair> {
    if !conn.advance()? {
        return Ok(Pair::Shaking(conn));
    }
    match conn.finish() {
        Some((stream, _)) => trade(mine, Box::new(Trade::new(stream)), peer),
        None => Ok(Pair::Remote),
    }
}

fn trade(mine: &Mine<'_>, trade: Box<Trade>, peer: u32) -> Result<Pair> {
    Ok(match mine.trade(trade, peer)? {
        Traded::Pending(trade) => Pair::Trading(trade),
        Traded::Done(local) => Pair::Local(local),
        Traded::Refused => Pair::Remote,
    })
}

/// Whether a local peer's connection has ended.
#[cfg(test)]
pub(crate) fn has_hung_up(peer: &LocalPeer) -> bool {
    use std::io::Read;
    match (&peer.socket).read(&mut [0; 1]) {
        Ok(0) => true,
        Ok(_) => false,
        Err(error) => !super::conn::waits(&error),
    }
}

#[cfg(test)]
#[path = "local_tests.rs"]
mod tests;
