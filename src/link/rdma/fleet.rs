//! All connections of a rank by its RDMA cards.
//!
//! The fleet looks at the cards whenever an end of a lane is looked at, and gives what has come to
//! the pair it is for. A connection that breaks sends nothing more; what has come by it may still
//! be taken, and when nothing is left it notes its end, as others do.
//!
//! Owns: protection domains, queues, memory of rings, registrations of the program's memory. They
//! go in an order that the cards like: connections, memory, domains.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::end::Carrier;
use super::member::{FLUSHED, Member};
use super::pair::{PATHS_MAX, Pair};
use super::queue::{Mark, Queue};
use super::regions::{Region, Regions};
use super::shared::Shared;
use super::yard::{Card, Cards};
use crate::error::{Code, Error, Result};
use crate::link::ends::Ends;
use crate::rdma::{Completion, Kind, Registered, verbs};
use crate::sys::memory::Pages;
use crate::sys::watch::Watch;
use crate::types::Rank;

/// Completions taken at a time, and how often in a row.
const BATCH: usize = 32;
const BATCHES: usize = 8;

/// How long a connection that ends waits for what it has sent to be there.
pub(super) const LAST_WORDS: Duration = Duration::from_secs(1);

/// How often ports are looked at, and peers that are silent are probed, while a rank waits, and how
/// long one may be down: a cable that is put back goes on where it was.
pub(super) const PORTS_EVERY: Duration = Duration::from_millis(500);
pub(super) const DOWN: Duration = Duration::from_secs(5);

/// Completions as they are taken.
struct Batch([Completion; BATCH]);

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Batch")
    }
}

/// All connections of a rank.
#[derive(Debug)]
pub(crate) struct Fleet {
    members: Vec<Member>,
    cards: Cards,
    ends: Ends,
    /// Where completions are put.
    batch: Batch,
    /// The cards had nothing when they were last looked at.
    quiet: bool,
    /// Some path is lost, and what it had brought may not all have been taken.
    draining: bool,
    /// When the ports were last looked at.
    looked: Instant,
    /// No connection takes anything any more.
    is_cut: bool,
}

/// A rank's connections, and memory that the cards reach.
#[derive(Clone, Debug)]
pub(crate) struct Launched {
    pub(super) fleet: Shared<Fleet>,
    pub(super) regions: Shared<Regions>,
    /// Memory of so many bytes and more is worth registering for a call.
    pub(super) cover_bytes: usize,
}

impl Launched {
    /// Lets the cards reach `bytes` bytes at `at`.
    ///
    /// # Safety
    /// The memory must stay until it is forgotten, or until all ends are gone.
    ///
    /// # Errors
    /// `LIMIT` where so much memory may not be locked.
    pub(crate) unsafe fn register(&self, at: *mut u8, bytes: usize) -> Result<()> {
        // SAFETY: the caller's promise.
        let region = unsafe { self.reach(at, bytes, true)? };
        self.regions.with(|regions| regions.add(region));
        Ok(())
    }

    /// # Safety
    /// The memory must stay as long as peers may write to it.
    unsafe fn reach(&self, at: *mut u8, bytes: usize, written: bool) -> Result<Arc<Region>> {
        let held = self.fleet.with(|fleet| {
            // SAFETY: the caller's promise.
            let one = |card: &Card| unsafe { card.domain.register(at, bytes, written) };
            fleet.cards.list.iter().map(one).collect::<Result<Vec<_>>>()
        })?;
        Ok(Region::new(at as usize, bytes, held, written))
    }

    /// A call is to read `bytes` bytes at `at`, or have them `written`: lets the cards reach them,
    /// if that pays, the program has not registered them, and the memory can be watched.
    pub(crate) fn cover(&self, at: *const u8, bytes: usize, written: bool) {
        if bytes < self.cover_bytes {
            return;
        }
        if !self.regions.with(|regions| regions.lacks(at as usize, bytes, written)) {
            return;
        }
        // Watched first: what goes from now on is noticed.
        let Some(watch) = Watch::new(at as usize, bytes) else { return };
        // BOUND: what is kept.
        loop {
            // SAFETY: peers write to it where a message is wanted, and the message keeps the
            // registration. What the program gives back is used no more.
            match unsafe { self.reach(at.cast_mut(), bytes, written) } {
                Ok(region) => return self.regions.with(|regions| regions.keep(region, watch)),
                // It is memory that no card may write to.
                Err(error) if error.code != Code::Limit => return,
                // Less may be locked than was thought.
                Err(_) if self.regions.with(Regions::drop_oldest) => {}
                Err(_) => return self.regions.with(|regions| regions.refuse(bytes)),
            }
        }
    }

    /// Takes it back; whether there was such memory.
    pub(crate) fn forget(&self, at: *mut u8) -> bool {
        self.regions.with(|regions| regions.remove(at as usize))
    }

    /// Looks at the cards, before a sleep; false when something has come meanwhile.
    pub(crate) fn may_sleep(&self) -> bool {
        self.fleet.with(|fleet| {
            // A card that is gone tells of nothing, and is waited for by nobody.
            let mut ready = true;
            for (path, card) in fleet.cards.list.iter().enumerate() {
                let armed = card.completions.arm().is_ok();
                ready &= armed || !fleet.members.iter().any(|member| member.uses(path));
            }
            ready && !fleet.poll()
        })
    }

    /// After a sleep.
    pub(crate) fn wake(&self) {
        self.fleet.with(|fleet| fleet.cards.list.iter().for_each(|card| card.completions.quiet()));
    }

    /// Looks at what became of connections.
    pub(crate) fn watch(&self) {
        self.fleet.with(Fleet::watch);
    }

    /// Ends all connections: nothing of peers' comes to memory of callers any more.
    pub(crate) fn cut(&self) {
        self.fleet.with(Fleet::cut);
    }

    /// Whether every peer of these numbers has said HELLO.
    pub(crate) fn is_open(&self, index: usize) -> bool {
        self.fleet.with(|fleet| {
            fleet.poll();
            fleet.members[index].pair.is_open() && !fleet.members[index].pair.is_halted()
        })
    }

    /// Descriptors that are readable when something may have come: of completions, once armed, and
    /// of connections.
    pub(crate) fn add_to(
        &self,
        mut add: impl FnMut(std::os::fd::BorrowedFd<'_>) -> Result<()>,
    ) -> Result<()> {
        self.fleet.with(|fleet| {
            fleet.cards.list.iter().try_for_each(|card| add(card.completions.fd()))?;
            add(fleet.cards.channel.fd())
        })
    }

    /// Bytes of messages that a processor has copied.
    #[cfg(test)]
    pub(crate) fn copied(&self) -> u64 {
        self.fleet.with(|fleet| fleet.members.iter().map(|member| member.pair.copied).sum())
    }
}

impl Fleet {
    /// No connections yet, by `cards`.
    pub(super) fn new(cards: Cards, ends: Ends) -> Self {
        let batch = Batch([Completion::default(); BATCH]);
        let looked = Instant::now();
        let (members, quiet, draining, is_cut) = (Vec::new(), false, false, false);
        Self { members, cards, ends, batch, quiet, draining, looked, is_cut }
    }

    /// Adds `peer`, whose pair stands on these pages.
    pub(super) fn add(
        &mut self,
        peer: Rank,
        pair: Pair<Queue>,
        (held, pages): (Vec<Registered>, Pages),
    ) {
        self.members.push(Member::new(peer, pair, (held, pages)));
    }

    /// Takes what the cards have for this rank; whether there was anything.
    pub(super) fn poll(&mut self) -> bool {
        let (mut any, mut empty) = (false, [false; PATHS_MAX]);
        for (card, empty) in (0..self.cards.list.len()).zip(&mut empty) {
            // BOUND: peers that send without end are looked at again soon.
            for _ in 0..BATCHES {
                let completions = &self.cards.list[card].completions;
                let found = match completions.poll(&mut self.batch.0) {
                    Ok(found) => found,
                    Err(error) => {
                        self.lose_card(card, &error);
                        break;
                    }
                };
                for index in 0..found {
                    let completion = self.batch.0[index];
                    self.take(card, &completion);
                }
                any |= found > 0;
                if found < BATCH {
                    *empty = true;
                    break;
                }
            }
        }
        if self.draining {
            self.settle(empty);
        }
        any
    }

    /// A card does not tell any more what has come.
    fn lose_card(&mut self, card: usize, error: &Error) {
        for member in &mut self.members {
            member.lose(card, (error.native, error.detail.to_string()));
            self.draining |= member.drains();
        }
    }

    /// Settles the paths that are lost, where cards have just had nothing more.
    fn settle(&mut self, empty: [bool; PATHS_MAX]) {
        for member in &mut self.members {
            if let Err(error) = member.settle(empty) {
                member.halt();
                self.ends.note(error, member.peer);
            }
        }
        self.draining = self.members.iter().any(Member::drains);
    }

    fn take(&mut self, card: usize, completion: &Completion) {
        let mark = Mark::of(completion.wr_id);
        let Some(member) = self.members.get_mut(mark.member) else { return };
        if completion.status != verbs::IBV_WC_SUCCESS {
            let status = i32::try_from(completion.status).unwrap_or(i32::MAX);
            let library = self.cards.list[card].device.library();
            member.take_failure(mark, status, || library.status(completion.status));
            self.draining |= member.drains();
        } else if let Err(error) = member.take(mark, completion) {
            member.halt();
            self.ends.note(error, member.peer);
        } else {
            self.draining |= member.drains();
        }
    }

    /// What the connections' ends, and the cards' ports, have to say.
    fn watch(&mut self) {
        // BOUND: a few events for each connection, and strangers' are none: nobody listens.
        for _ in 0..64 {
            let Ok(Some(event)) = self.cards.channel.next() else { break };
            let Some(member) = self.members.get_mut(event.number / PATHS_MAX) else { continue };
            let path = event.number % PATHS_MAX;
            match event.kind {
                Kind::Ended => member.end(path),
                // The own one, which is not the peer's doing. Requests may yet say more.
                Kind::Removed => member.lose(path, (FLUSHED, "the card here is gone".to_owned())),
                _ => {}
            }
            self.draining |= member.drains();
        }
        if self.looked.elapsed() >= PORTS_EVERY && !self.is_cut {
            self.looked = Instant::now();
            self.look_at_ports();
            self.members.iter_mut().for_each(|member| drop(member.probe()));
        }
    }

    /// A port that is down may say nothing of it: requests wait, on some cards without end.
    fn look_at_ports(&mut self) {
        for (path, card) in self.cards.list.iter_mut().enumerate() {
            let since = *card.down.get_or_insert_with(Instant::now);
            if card.device.is_up(card.port) {
                card.down = None;
            } else if since.elapsed() >= DOWN {
                for member in self.members.iter_mut().filter(|member| member.uses(path)) {
                    let text = format!("a port here has been down for {} s", DOWN.as_secs());
                    member.lose(path, (0, text));
                    self.draining |= member.drains();
                }
            }
        }
    }

    fn cut(&mut self) {
        if !std::mem::replace(&mut self.is_cut, true) {
            self.members.iter_mut().for_each(Member::halt);
        }
    }
}

impl Carrier for Fleet {
    type Port = Queue;

    fn on<R>(
        &mut self,
        index: usize,
        otherwise: R,
        use_it: impl FnOnce(&mut Pair<Queue>) -> Result<R>,
    ) -> R {
        self.quiet = !self.poll();
        self.unseen(index, otherwise, use_it)
    }

    fn unseen<R>(
        &mut self,
        index: usize,
        otherwise: R,
        use_it: impl FnOnce(&mut Pair<Queue>) -> Result<R>,
    ) -> R {
        let member = &mut self.members[index];
        let outcome = use_it(&mut member.pair).and_then(|it| member.pair.tend().map(|()| it));
        member.heed();
        self.draining |= member.drains();
        outcome.unwrap_or_else(|error| {
            member.halt();
            self.ends.note(error, member.peer);
            otherwise
        })
    }

    fn missed(&mut self, index: usize) {
        let member = &self.members[index];
        // What has come is taken first.
        if !self.quiet || self.is_cut {
            return;
        }
        match &member.fault {
            _ if member.gone => self.ends.closed(member.peer),
            Some((status, text)) if member.pair.is_halted() => {
                self.ends.lost(member.peer, *status, text);
            }
            _ => {}
        }
    }
}

impl Drop for Fleet {
    /// What was sent must be there before the connections go.
    fn drop(&mut self) {
        let limit = Instant::now() + LAST_WORDS;
        self.members.iter_mut().for_each(|member| drop(member.take_leave()));
        // BOUND: the limit.
        while self.members.iter().any(Member::is_sending) && Instant::now() < limit {
            if !self.poll() {
                std::thread::yield_now();
                self.watch();
                self.members.iter_mut().for_each(|member| drop(member.pair.tend()));
            }
        }
        for path in self.members.iter_mut().flat_map(|member| &mut member.pair.paths) {
            path.port.disconnect();
        }
    }
}
