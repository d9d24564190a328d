//! Brings the ranks of a job together: each gives a card and gets everyone's.
//!
//! One process (mostly rank 0's) runs the server in a thread of its own; every rank, that one
//! included, joins as a client. See `server` for what the server does and `auth` for who may come.

use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::auth::{Handshake, Hello, NO_RANK, Purpose};
use super::conn::{Conn, ours, waits};
use super::frame::{Frames, Side};
use super::id::UniqueId;
use super::key::Key;
use super::message::{Answer, ITEM_MAX, Request, answer_max};
use super::server::Server;
use crate::error::{Code, Error, Result};
use crate::sys::bell::Bell;
use crate::sys::poll::{Interest, wait_one};
use crate::sys::process::block_signals;
use crate::sys::socket;
use crate::types::{Rank, WORLD_MAX};

/// How long a server waits when nobody ever comes.
pub(crate) const IDLE: Duration = Duration::from_secs(600);
/// How long one address may take before the next is tried.
const ATTEMPT: Duration = Duration::from_secs(2);
/// Pauses between rounds of attempts, first and longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(500));
/// How long a rank whose own numbers are wrong takes to tell the others.
const COURTESY: Duration = Duration::from_secs(2);

/// A running rendezvous. Dropping the handle leaves the server to its own end, which comes when
/// its job is served, nobody has come for [`IDLE`], or it is called off.
#[derive(Debug)]
pub(crate) struct Rendezvous {
    addresses: Vec<SocketAddr>,
    key: Key,
    /// Calls it off.
    stop: Arc<Bell>,
    #[cfg_attr(not(test), expect(dead_code, reason = "the server ends by itself"))]
    thread: JoinHandle<Result<()>>,
}

impl Rendezvous {
    /// Listens at these addresses (port 0: any) and serves one job in a background thread.
    pub(crate) fn listen(addresses: &[SocketAddr], key: Key) -> Result<Self> {
        let listeners: Vec<TcpListener> =
            addresses.iter().map(|&address| socket::listen(address)).collect::<Result<_>>()?;
        Self::serve(listeners, key, IDLE)
    }

    /// Serves one job behind these listeners.
    pub(crate) fn serve(listeners: Vec<TcpListener>, key: Key, idle: Duration) -> Result<Self> {
        if listeners.is_empty() {
            return Err(Error::new(Code::NoAddress, "a rendezvous needs an address"));
        }
        let addresses = listeners
            .iter()
            .map(|listener| listener.local_addr().map_err(|e| Error::os(&e, "getsockname")))
            .collect::<Result<_>>()?;
        let stop = Arc::new(Bell::new()?);
        let server = Server::new(listeners, &key, Arc::clone(&stop), Instant::now() + idle)?;
        let thread = std::thread::Builder::new()
            .name("unisono-meet".to_owned())
            .spawn(move || {
                block_signals();
                server.run()
            })
            .map_err(|error| Error::os(&error, "starting the rendezvous thread"))?;
        Ok(Self { addresses, key, stop, thread })
    }

    /// Where it listens.
    pub(crate) fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The id to give to every rank.
    pub(crate) fn unique_id(&self) -> Result<UniqueId> {
        UniqueId::new(&self.addresses, self.key.clone())
    }

    /// Ends the server, unless rank 0 has joined and the job goes on. Ranks that wait are told that
    /// rank 0 does not come, and the ports are free again.
    pub(crate) fn call_off(&self) {
        self.stop.ring();
    }

    /// Calls the server off and waits for its thread.
    #[cfg(test)]
    pub(crate) fn stop(self) -> Result<()> {
        self.call_off();
        self.join_thread()
    }

    /// Waits for the server to end by itself.
    #[cfg(test)]
    pub(crate) fn join_thread(self) -> Result<()> {
        let crashed = |_| Err(Error::new(Code::Internal, "the rendezvous thread panicked"));
        self.thread.join().unwrap_or_else(crashed)
    }
}

/// A rank's place in its job, with the connection on which ranks can exchange more. Dropping it
/// leaves the rendezvous.
#[derive(Debug)]
pub(crate) struct Joined {
    /// Every rank's card.
    pub cards: Vec<Vec<u8>>,
    /// What rank 0 said to all.
    pub terms: Vec<u8>,
    world: u32,
    stream: TcpStream,
    frames: Frames,
    round: u64,
}

/// Joins a job and waits for all its ranks. `terms` count from rank 0 only and reach everyone.
///
/// # Errors
/// `MissingRanks` names who did not come in time; a failure of any rank is everyone's, with its
/// reason.
pub(crate) fn join(
    id: &UniqueId,
    rank: u32,
    world: u32,
    card: &[u8],
    terms: &[u8],
    deadline: Instant,
) -> Result<Joined> {
    if card.len() > ITEM_MAX || terms.len() > ITEM_MAX {
        let text = format!("{} bytes, at most {ITEM_MAX}", card.len().max(terms.len()));
        return Err(Error::new(Code::Limit, text));
    }
    let wrong = check_place(rank, world);
    let deadline = match wrong {
        Ok(()) => deadline,
        Err(_) => deadline.min(Instant::now() + COURTESY),
    };
    let attempt = join_as(id, rank, world, (card, terms), deadline);
    // A rank with a wrong number still goes, so that the others need not wait for it.
    wrong.and(attempt)
}

/// Checks a rank and its world before anybody is asked.
pub(crate) fn check_place(rank: u32, world: u32) -> Result<()> {
    if world == 0 || world > WORLD_MAX {
        let text = format!("a world of {world} ranks, not 1 to {WORLD_MAX}");
        return Err(Error::new(Code::InvalidArgument, text));
    }
    if rank >= world {
        return Err(Error::new(Code::RankOutOfRange, format!("rank {rank} in a world of {world}")));
    }
    Ok(())
}

/// Tells the rendezvous that this rank cannot come, and why: then nobody waits for it.
pub(crate) fn decline(id: &UniqueId, rank: u32, world: u32, error: &Error, deadline: Instant) {
    let deadline = deadline.min(Instant::now() + COURTESY);
    let hello = Hello { rank, to: NO_RANK, world, epoch: 0, purpose: Purpose::Rendezvous };
    // Where the rendezvous is not reached the others wait in vain; there is no other way to them.
    let Ok((mut stream, session)) = reach(id, hello, deadline) else { return };
    let mut frames = Frames::new(&session, Side::Client, answer_max(world));
    let (kind, payload) = Request::Failed(error.clone()).encode();
    frames.push(kind, payload);
    // A few bytes: a fresh connection takes them at once.
    let _ = frames.flush(&mut stream);
    // It ends the connection once it has read them; rank 0 ends the rendezvous itself after this.
    let mut bytes = [0; 64];
    // BOUND: the deadline.
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || wait_one(stream.as_fd(), Interest::Read, Some(left)).is_err() {
            return;
        }
        match stream.read(&mut bytes) {
            Ok(0) => return,
            Err(error) if !waits(&error) => return,
            _ => {}
        }
    }
}

fn join_as(
    id: &UniqueId,
    rank: u32,
    world: u32,
    (card, terms): (&[u8], &[u8]),
    deadline: Instant,
) -> Result<Joined> {
    let hello = Hello { rank, to: NO_RANK, world, epoch: 0, purpose: Purpose::Rendezvous };
    let (stream, session) = reach(id, hello, deadline)?;
    let frames = Frames::new(&session, Side::Client, answer_max(world));
    let mut joined =
        Joined { cards: Vec::new(), terms: Vec::new(), world, stream, frames, round: 0 };
    let request = Request::Join {
        rank,
        world,
        patience: patience(deadline),
        card: card.to_vec(),
        terms: terms.to_vec(),
    };
    match joined.ask(&request, deadline)? {
        Answer::Table { cards, terms } => {
            joined.cards = cards;
            joined.terms = terms;
            Ok(joined)
        }
        Answer::Failed(error) => Err(error),
        Answer::All { .. } => Err(Error::new(Code::Protocol, "an exchange before the table")),
    }
}

/// A little less than what is left, so that the server's answer, which names the missing, comes
/// before our own deadline, which cannot.
fn patience(deadline: Instant) -> Duration {
    let left = deadline.saturating_duration_since(Instant::now());
    left - (left / 10).min(Duration::from_millis(500))
}

/// Connects to whichever address answers with the right key.
fn reach(id: &UniqueId, hello: Hello, deadline: Instant) -> Result<(TcpStream, Key)> {
    let mut pause = PAUSE.0;
    // BOUND: the deadline.
    loop {
        let mut last = None;
        let mut refusals = 0;
        for &address in id.addresses() {
            match knock(address, id.key(), hello, deadline) {
                Ok(reached) => return Ok(reached),
                Err(error) if ours(&error) => return Err(error),
                Err(error) => {
                    let final_codes = [Code::Unauthenticated, Code::VersionMismatch];
                    refusals += usize::from(final_codes.contains(&error.code));
                    last = Some((address, error));
                }
            }
        }
        let Some((address, mut error)) = last else {
            return Err(Error::new(Code::InvalidId, "it has no address"));
        };
        // Whoever answers with another key or version will not change its mind.
        let hopeless = refusals == id.addresses().len();
        if hopeless {
            let text = format!("the rendezvous at {address} was not reached: {}", error.detail);
            error.detail = text.into();
            return Err(error);
        }
        if Instant::now() + pause >= deadline {
            error.code = Code::MissingRanks;
            let text =
                format!("rank 0's rendezvous at {address} was not reached: {}", error.detail);
            error.detail = text.into();
            return Err(error.with_peer(Rank(0)));
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(PAUSE.1);
    }
}

fn knock(
    address: SocketAddr,
    key: &Key,
    hello: Hello,
    deadline: Instant,
) -> Result<(TcpStream, Key)> {
    let limit = deadline.min(Instant::now() + ATTEMPT);
    let stream = socket::connect(address, limit)?;
    socket::set_nodelay(&stream)?;
    // A connected server may be busy with hundreds of others, so it gets more time.
    let limit = deadline.min(Instant::now() + 5 * ATTEMPT);
    let (stream, outcome) =
        Conn::new(stream, Handshake::connector(key, hello)?, limit).complete()?;
    Ok((stream, outcome.session))
}

impl Joined {
    /// Gives `item` to every rank and gets everyone's, in rank order. Every rank must call it, and
    /// all in the same order.
    pub(crate) fn exchange(&mut self, item: &[u8], deadline: Instant) -> Result<Vec<Vec<u8>>> {
        self.exchange_having_met(item, &[], deadline)
    }

    /// As [`Joined::exchange`]. `met` has a bit for each rank this one has heard of since the
    /// table: should some not come, those it has met are not the first to be named.
    pub(crate) fn exchange_having_met(
        &mut self,
        item: &[u8],
        met: &[u8],
        deadline: Instant,
    ) -> Result<Vec<Vec<u8>>> {
        if item.len() > ITEM_MAX {
            let text = format!("an exchange of {} bytes, at most {ITEM_MAX}", item.len());
            return Err(Error::new(Code::Limit, text));
        }
        let round = self.round;
        let patience = patience(deadline);
        let request = Request::Offer { round, patience, item: item.to_vec(), met: met.to_vec() };
        self.round += 1;
        match self.ask(&request, deadline)? {
            Answer::All { round: answered, items } if answered == round => Ok(items),
            Answer::Failed(error) => Err(error),
            _ => Err(Error::new(Code::Protocol, "the answer to another exchange")),
        }
    }

    /// What to wait on besides, while this rank is busy elsewhere: see [`Joined::heed`].
    pub(crate) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Hears without waiting whether another rank's failure has ended the start-up. Between
    /// exchanges the rendezvous has nothing else to say.
    pub(crate) fn heed(&mut self) -> Result<()> {
        let Some(frame) = self.frames.poll(&mut self.stream).map_err(server_lost)? else {
            return Ok(());
        };
        match Answer::decode(&frame, self.world)? {
            Answer::Failed(error) => Err(error),
            _ => Err(Error::new(Code::Protocol, "an answer to no exchange")),
        }
    }

    /// Leaves with a failure, which becomes everyone's.
    pub(crate) fn abort(mut self, error: &Error) {
        let (kind, payload) = Request::Failed(error.clone()).encode();
        self.frames.push(kind, payload);
        // When it does not go out, the closed connection says as much.
        let _ = self.frames.flush(&mut self.stream);
    }

    fn ask(&mut self, request: &Request, deadline: Instant) -> Result<Answer> {
        let (kind, payload) = request.encode();
        self.frames.push(kind, payload);
        // BOUND: the deadline.
        loop {
            // A server that has failed answers and may close before it reads all we write, so a
            // lost connection counts only when there is nothing to read either.
            let flushed = self.frames.flush(&mut self.stream);
            if let Some(frame) = self.frames.poll(&mut self.stream).map_err(server_lost)? {
                return Answer::decode(&frame, self.world);
            }
            flushed.map_err(server_lost)?;
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let text = "rank 0's rendezvous did not answer";
                return Err(Error::new(Code::MissingRanks, text).with_peer(Rank(0)));
            }
            let interest = if self.frames.is_flushed() { Interest::Read } else { Interest::Both };
            wait_one(self.stream.as_fd(), interest, Some(left))?;
        }
    }
}

fn server_lost(error: Error) -> Error {
    if error.code == Code::PeerLost {
        let text = "the process that ran the rendezvous (rank 0's, mostly) is gone";
        return Error::new(Code::PeerLost, text).with_peer(Rank(0));
    }
    error
}

#[cfg(test)]
#[path = "rendezvous_tests.rs"]
mod tests;
