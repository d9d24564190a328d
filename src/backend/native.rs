//! The native backend: the engine over this project's own links.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::backend::Backend;
use crate::call::{Call, Head, Ragged};
use crate::engine::link::Fabric;
use crate::engine::{Engine, Hurried, Known, Progress};
use crate::error::{Code, Error, Result};
use crate::health::{GRACE, Health, LINK_GRACE, Left, News, STALL, STALL_LONG};
use crate::link::doze::Doze;
use crate::link::{AnyBoard, Links};
use crate::plan::Algorithm;
use crate::sys::memory::Segment;
use crate::sys::poll::{EVENTS_MAX, Event, Poller};
use crate::tune::Tuner;
use crate::types::Rank;

/// A peer that left may have data under way to us: so long it may take to arrive.
const FAREWELL: Duration = Duration::from_millis(500);

/// Calls after which a rank that never waits listens all the same.
const LISTEN_EVERY: u32 = 256;

/// Calls after which such a rank looks for memory that peers have given out.
const LOOK_EVERY: u32 = 32;

/// One rank's engine, and what it waits on.
#[derive(Debug)]
pub(crate) struct Native {
    engine: Engine<Links, Tuner>,
    health: Health,
    news: News,
    /// Bell, control connections, processes and data sockets.
    poller: Poller,
    events: Vec<Event>,
    bell: Arc<Doze>,
    /// When something last moved.
    moved: Instant,
    stale: bool,
    /// When the peers were last looked after.
    watched: Instant,
    /// When the first end of a connection was seen.
    lost_since: Option<Instant>,
    /// Since when nothing had moved when others were told whom this rank waits for, and how many
    /// times: the ranks waited for, then all.
    asked: (Instant, usize),
    /// Some were told, and nothing has moved since.
    told: bool,
    /// Calls since this rank last listened.
    unheard: u32,
    /// Where ranks are listed.
    ranks: Vec<Rank>,
    /// Memory given out that no peer can map.
    private: HashMap<usize, Segment>,
}

impl Native {
    /// A backend over `engine`; `poller` must know everything that may wake it.
    pub(crate) fn new(mut engine: Engine<Links, Tuner>, health: Health, poller: Poller) -> Self {
        let bell = engine.fabric().doze().clone();
        let world = engine.peers().count() + 1;
        // Room for what is heard when somebody is late: a steady run allocates none.
        let news = News {
            asked: Vec::with_capacity(world),
            waits: Vec::with_capacity(world * world.min(16)),
            ..News::default()
        };
        Self {
            engine,
            health,
            news,
            poller,
            events: Vec::with_capacity(EVENTS_MAX),
            bell,
            moved: Instant::now(),
            stale: false,
            watched: Instant::now(),
            lost_since: None,
            asked: (Instant::now(), 0),
            told: false,
            unheard: 0,
            ranks: Vec::with_capacity(world),
            private: HashMap::new(),
        }
    }

    /// What ranks would compare of `call`.
    pub(crate) fn head_of(&self, call: &Call) -> Head {
        self.engine.head_of(call)
    }

    /// Whether every rank is still there for what follows the last call: what is known counts at
    /// once, and who has given that call up will say why.
    pub(crate) fn is_whole(&mut self) -> bool {
        self.bury();
        self.engine.broken().is_none() && !self.engine.is_forsaken()
    }

    /// What the dead have sent no longer counts.
    fn bury(&mut self) {
        if let Some((rank, why, _)) = &self.news.dead
            && self.engine.broken().is_none()
        {
            let text = format!("rank {rank} is gone: {why}");
            self.fail(Error::new(Code::PeerLost, text).with_peer(*rank));
        }
    }

    /// What is done about the peers when a call comes.
    pub(crate) fn before_call(&mut self) {
        self.bury();
        // A call that has only just been made has not stood still for long.
        self.stale = true;
        self.unheard += 1;
        if self.unheard >= LISTEN_EVERY {
            self.unheard = 0;
            self.watch();
        } else if self.unheard.is_multiple_of(LOOK_EVERY) {
            self.look();
        }
    }

    /// Takes in what peers have sent of their memory, so that they may send more.
    fn look(&mut self) {
        if let Some(AnyBoard::Host(board)) = self.engine.fabric().board()
            && let Err(error) = board.look()
        {
            self.fail(error);
        }
    }

    /// Ends pending calls when what has been heard leaves them no hope.
    fn judge(&mut self) {
        if self.engine.broken().is_some() {
            return;
        }
        if let Some(fault) = self.news.fault.take() {
            self.engine.fail(fault);
            return;
        }
        let moved = self.moved;
        let still = |since: Instant| since.max(moved).elapsed();
        if let Some((rank, why, since)) = &self.news.dead
            && still(*since) >= GRACE
        {
            let text = format!("rank {rank} is gone: {why}");
            self.fail(Error::new(Code::PeerLost, text).with_peer(*rank));
            return;
        }
        if let Some(lost) = self.engine.fabric().ends().first().cloned() {
            let since = *self.lost_since.get_or_insert_with(Instant::now);
            // Who has left well says nothing more, and all it sent has been read. Who left broken
            // had a reason, which is still to be heard.
            let left_well = |peer: &Rank| {
                self.news.left.iter().any(|left| left.rank == *peer && left.tally.is_some())
            };
            if self.news.dead.is_none()
                && let Some(rank) = lost.peer.filter(left_well)
            {
                self.fail(missed(rank));
                return;
            }
            if since.elapsed() >= LINK_GRACE {
                self.fail(lost);
                return;
            }
        }
        if let Err(error) = self.compare_calls() {
            self.fail(error);
            return;
        }
        let gone = |left: &Left| still(left.since) >= FAREWELL;
        if self.news.left.iter().any(gone) {
            self.engine.awaited(&mut self.ranks);
            let awaited = &self.ranks;
            let mut left = self.news.left.iter().filter(|left| gone(left));
            if let Some(&Left { rank, .. }) = left.find(|left| awaited.contains(&left.rank)) {
                self.fail(missed(rank));
            }
        }
    }

    /// Compares calls with the ranks that wait for this one, and tells those this one waits for.
    fn compare_calls(&mut self) -> Result<()> {
        let engine = &self.engine;
        let mut outcome = Ok(());
        // What a rank asks of a call not yet made here is kept until it is.
        self.news.asked.retain(|(rank, head)| {
            if head.seq <= engine.seq() && outcome.is_ok() {
                outcome = engine.compare(*rank, head);
            }
            head.seq > engine.seq()
        });
        outcome?;
        if self.asked.0 != self.moved {
            self.asked = (self.moved, 0);
        }
        let stalls = [STALL, STALL_LONG];
        if stalls.get(self.asked.1).is_some_and(|stall| self.moved.elapsed() >= *stall) {
            self.asked.1 += 1;
            self.engine.awaited(&mut self.ranks);
            let head = self.engine.present();
            if self.ranks.is_empty() && head.is_none() {
                return Ok(());
            }
            self.told = true;
            let all = self.asked.1 == stalls.len();
            self.health.ask(head.as_ref(), &self.ranks, all);
        }
        Ok(())
    }
}

/// A call waits for a rank that said goodbye.
fn missed(rank: Rank) -> Error {
    let text = format!("rank {rank} has ended its communicator, and a call waits for it");
    Error::new(Code::PeerLost, text).with_peer(rank)
}

impl Backend for Native {
    unsafe fn submit(&mut self, call: Call, ticket: u32) {
        self.before_call();
        // SAFETY: the caller's promise is passed on.
        unsafe { self.engine.submit(call, ticket) };
    }

    unsafe fn hurry(
        &mut self,
        (call, known): (&Call, &mut Known),
        ticket: u32,
        polls: u32,
    ) -> Hurried {
        if !self.engine.may_hurry(call, known) {
            return Hurried::Left;
        }
        self.before_call();
        let Some(work) = self.health.begin() else { return Hurried::Left };
        // SAFETY: the caller's promise is passed on.
        let hurried = unsafe { self.engine.hurry((call, known), ticket, polls) };
        work.done();
        // A broken engine takes no call: what is broken now is news to the others.
        if let (Hurried::Taken, Some(error)) = (hurried, self.engine.broken()) {
            self.health.tell(error);
        }
        hurried
    }

    #[inline]
    fn poll(&mut self) -> Progress {
        let Some(work) = self.health.begin() else {
            // Another thread has failed: hear what it was, which ends our calls.
            self.watch();
            return Progress::Idle;
        };
        let progress = self.engine.poll();
        work.done();
        if progress == Progress::Moved {
            self.stale = true;
            if std::mem::take(&mut self.told) {
                self.health.go_on();
            }
            // An error the engine itself has found is news to the others.
            if let Some(error) = self.engine.broken() {
                self.health.tell(error);
            }
        }
        progress
    }

    fn take_ended(&mut self) -> Option<(u32, Result<()>)> {
        self.engine.take_ended()
    }

    fn take_spent(&mut self) -> Option<Ragged> {
        self.engine.take_spent()
    }

    fn watch(&mut self) {
        self.watched = Instant::now();
        if std::mem::take(&mut self.stale) {
            self.moved = self.watched;
        }
        self.look();
        if let Some(rdma) = self.engine.fabric().rdma() {
            rdma.watch();
        }
        if let Some(rsocket) = self.engine.fabric().rsocket() {
            rsocket.watch();
        }
        self.health.watch(&mut self.news);
        self.judge();
        // After the news: a rank that fails says so before it gives its memory back.
        if self.engine.present().is_none()
            && let Some(AnyBoard::Host(board)) = self.engine.fabric().board()
        {
            board.sweep();
        }
    }

    fn watched(&self) -> Instant {
        self.watched
    }

    fn doze(&mut self, timeout: Duration) {
        // A death is waited out in small steps; see `judge`.
        let suspect = self.news.dead.is_some() || self.engine.fabric().ends().first().is_some();
        let timeout = if suspect { timeout.min(GRACE) } else { timeout };
        if self.engine.fabric().rdma().is_some_and(|rdma| !rdma.may_sleep())
            || self.engine.fabric().rsocket().is_some_and(|rsocket| !rsocket.may_sleep())
        {
            return;
        }
        // A failed wait only costs a turn: the loop around looks at everything again.
        let _ = self.poller.wait(Some(timeout), &mut self.events);
        if let Some(rdma) = self.engine.fabric().rdma() {
            rdma.wake();
        }
        if let Some(rsocket) = self.engine.fabric().rsocket() {
            rsocket.wake();
        }
    }

    fn bell(&self) -> Arc<Doze> {
        self.bell.clone()
    }

    fn fail(&mut self, error: Error) {
        if self.engine.broken().is_none() {
            self.health.tell(&error);
            self.engine.fail(error);
        }
    }

    fn broken(&self) -> Option<&Error> {
        self.engine.broken()
    }

    fn awaited(&mut self) -> Vec<Rank> {
        let mut awaited = Vec::new();
        self.engine.awaited(&mut awaited);
        self.news.to_blame(self.engine.rank(), awaited)
    }

    fn standing(&self) -> String {
        self.engine.standing()
    }

    fn present(&self) -> Option<u64> {
        self.engine.present().map(|head| head.seq)
    }

    fn alloc(&mut self, bytes: usize) -> Result<*mut u8> {
        if let Some(AnyBoard::Host(board)) = self.engine.fabric().board() {
            return board.alloc(bytes);
        }
        let segment = Segment::create("unisono-memory", bytes)?;
        let at = segment.as_ptr();
        if let Some(rdma) = self.engine.fabric().rdma() {
            // Without, messages are copied once at each end.
            // SAFETY: the segment stays until it is forgotten.
            let _ = unsafe { rdma.register(at, bytes) };
        }
        if let Some(rsocket) = self.engine.fabric().rsocket() {
            // SAFETY: as above.
            unsafe { rsocket.register(at, bytes) };
        }
        self.private.insert(at as usize, segment);
        Ok(at)
    }

    fn free(&mut self, memory: *mut u8) -> Result<()> {
        if let Some(AnyBoard::Host(board)) = self.engine.fabric().board()
            && board.free(memory)?
        {
            return Ok(());
        }
        let found = self.private.remove(&(memory as usize));
        if let (Some(rdma), Some(_)) = (self.engine.fabric().rdma(), &found) {
            rdma.forget(memory);
        }
        if let (Some(rsocket), Some(_)) = (self.engine.fabric().rsocket(), &found) {
            rsocket.forget(memory);
        }
        found.map(drop).ok_or_else(|| {
            let text = format!("{memory:p} is not memory of this communicator");
            Error::new(Code::InvalidArgument, text)
        })
    }

    unsafe fn register(&mut self, memory: *mut u8, bytes: usize) -> Result<()> {
        if let Some(rdma) = self.engine.fabric().rdma() {
            // SAFETY: the caller's promise is passed on.
            unsafe { rdma.register(memory, bytes)? };
        }
        if let Some(rsocket) = self.engine.fabric().rsocket() {
            // SAFETY: as above.
            unsafe { rsocket.register(memory, bytes) };
        }
        Ok(())
    }

    fn deregister(&mut self, memory: *mut u8) -> Result<()> {
        if let Some(rdma) = self.engine.fabric().rdma() {
            rdma.forget(memory);
        }
        if let Some(rsocket) = self.engine.fabric().rsocket() {
            rsocket.forget(memory);
        }
        Ok(())
    }

    fn prefer(&mut self, algorithm: Option<Algorithm>) {
        self.engine.planner().prefer(algorithm);
        self.engine.forget();
    }

    fn take_chosen(&mut self) -> Option<Algorithm> {
        self.engine.planner().take_chosen().map(|chosen| chosen.algorithm)
    }

    fn compare_ends(&mut self) -> Result<()> {
        self.watch();
        if self.engine.broken().is_some() {
            return Ok(());
        }
        let own = self.engine.tally();
        for &Left { rank, tally, .. } in &self.news.left {
            if let Some(text) = tally.and_then(|theirs| own.differs(rank, &theirs)) {
                return Err(Error::new(Code::Mismatch, text).with_peer(rank));
            }
        }
        Ok(())
    }

    #[cfg(test)]
    fn bytes_copied(&mut self) -> u64 {
        use crate::link::rdma::{Launched, Opened};

        let fabric = self.engine.fabric();
        fabric.rdma().map_or(0, Launched::copied) + fabric.rsocket().map_or(0, Opened::copied)
    }

    fn close(&mut self) {
        let whole = self.engine.broken().is_none();
        self.health.leave(whole.then(|| self.engine.tally()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Communicator;
    use crate::config::Config;

    /// What a rank sent before it left may still be on its way when a receive is posted.
    #[test]
    fn a_receive_after_a_long_silence_waits_for_what_a_rank_that_left_has_sent() {
        let mut comms = Communicator::init_all(2, &Config::default()).expect("two ranks");
        drop(comms.pop());
        std::thread::sleep(FAREWELL);
        let posted = Instant::now();
        let error = comms[0].recv(&mut [0f32; 4], Rank(1)).expect_err("nobody is there");
        assert_eq!((error.code, error.peer), (Code::PeerLost, Some(Rank(1))));
        assert!(posted.elapsed() >= FAREWELL);
    }

    /// And when it leaves while this rank has long been waiting.
    #[test]
    fn a_receive_that_waited_long_still_waits_for_what_a_rank_that_leaves_has_sent() {
        let mut comms = Communicator::init_all(2, &Config::default()).expect("two ranks");
        let (leaver, stays) = (comms.pop(), comms.pop().expect("rank 0"));
        let left = std::thread::spawn(move || {
            std::thread::sleep(FAREWELL + FAREWELL / 2);
            let now = Instant::now();
            drop(leaver);
            now
        });
        let error = stays.recv(&mut [0f32; 4], Rank(1)).expect_err("nobody is there");
        assert_eq!((error.code, error.peer), (Code::PeerLost, Some(Rank(1))));
        assert!(left.join().expect("it left").elapsed() >= FAREWELL);
    }
}
