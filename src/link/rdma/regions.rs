//! Memory of the program that the cards reach: what it has registered, and what is kept of the
//! rest.
//!
//! Registering costs more than a short message, so memory that calls use is registered at its first
//! use and kept: a *cache*. It is bounded by bytes, what was used longest ago goes first, and what
//! the program has given back meanwhile ([`Watch`]) is used no more. Where memory cannot be
//! watched, nothing is kept: its bytes go by the rings.
//!
//! Invariant: a registration lives as long as a message that uses it. Whoever looks a stretch up
//! gets a share of it ([`Held`]), so nothing here needs to know what is under way.

use std::sync::Arc;

use super::pair::PATHS_MAX;
use super::port::Keys;
use crate::rdma::Registered;
use crate::sys::watch::Watch;

/// How many stretches are kept.
const KEPT_MAX: usize = 1024;

/// A stretch of memory, by each card.
#[derive(Debug)]
pub(super) struct Region {
    from: usize,
    to: usize,
    keys: [Keys; PATHS_MAX],
    /// What the cards hold.
    _held: Vec<Registered>,
}

impl Region {
    /// `bytes` bytes at `at`, which each card holds, and peers may write to if `written`.
    pub(super) fn new(at: usize, bytes: usize, held: Vec<Registered>, written: bool) -> Arc<Self> {
        let mut keys = [Keys { local: 0, remote: 0 }; PATHS_MAX];
        for (keys, held) in keys.iter_mut().zip(&held) {
            let (local, remote) = held.keys();
            *keys = Keys { local, remote: if written { remote } else { 0 } };
        }
        Arc::new(Self { from: at, to: at + bytes, keys, _held: held })
    }

    /// The keys of `card`.
    pub(super) fn keys(&self, card: usize) -> Keys {
        self.keys[card]
    }

    fn bytes(&self) -> usize {
        self.to - self.from
    }

    fn holds(&self, at: usize, bytes: usize) -> bool {
        self.from <= at && at + bytes <= self.to
    }

    /// Peers may write there.
    fn is_written(&self) -> bool {
        self.keys[0].remote != 0
    }

    /// Does whatever another does.
    fn covers(&self, other: &Self) -> bool {
        let rights = self.is_written() || !other.is_written();
        rights && self.holds(other.from, other.bytes())
    }
}

/// Keys, and what they are of.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) keys: Keys,
    /// None: memory that outlives all messages.
    pub(super) region: Option<Arc<Region>>,
}

/// A stretch that was registered for a call.
#[derive(Debug)]
struct Kept {
    region: Arc<Region>,
    watch: Watch,
    /// When it was used last, in uses of any.
    used: u64,
}

/// All of it.
#[derive(Debug)]
pub(super) struct Regions {
    list: Vec<Arc<Region>>,
    /// The one found last.
    last: usize,
    kept: Vec<Kept>,
    uses: u64,
    /// Bytes that are kept, and how many may be.
    bytes: usize,
    limit: usize,
    /// What was refused with nothing kept, at the least.
    refused: usize,
}

impl Regions {
    /// None yet; so many bytes of what the program has not registered may be kept.
    pub(super) fn new(limit: usize) -> Self {
        let (list, kept, refused) = (Vec::new(), Vec::new(), usize::MAX);
        Self { list, last: 0, kept, uses: 0, bytes: 0, limit, refused }
    }

    /// Adds what the program has registered.
    pub(super) fn add(&mut self, region: Arc<Region>) {
        self.list.push(region);
    }

    /// Takes away what begins at `at` and was added last; whether there was such.
    pub(super) fn remove(&mut self, at: usize) -> bool {
        let found = self.list.iter().rposition(|region| region.from == at);
        found.inspect(|index| drop(self.list.swap_remove(*index))).is_some()
    }

    /// The keys of `bytes` bytes at `at` by `card`.
    #[inline]
    pub(super) fn find(&mut self, at: usize, bytes: usize, card: usize) -> Option<Held> {
        let holds = |region: &Arc<Region>| region.holds(at, bytes);
        let region = match self.list.get(self.last).filter(|region| holds(region)) {
            Some(region) => region,
            None => match self.list.iter().position(holds) {
                Some(index) => {
                    self.last = index;
                    &self.list[index]
                }
                None => self.find_kept(at, bytes)?,
            },
        };
        Some(Held { keys: region.keys[card], region: Some(region.clone()) })
    }

    /// The same among what is kept, if the program still has all of it.
    fn find_kept(&mut self, at: usize, bytes: usize) -> Option<&Arc<Region>> {
        let holds = |kept: &Kept| kept.region.holds(at, bytes);
        let written = self.kept.iter().position(|kept| holds(kept) && kept.region.is_written());
        let index = written.or_else(|| self.kept.iter().position(holds))?;
        if !self.kept[index].watch.holds() {
            self.give_up(index);
            return None;
        }
        self.uses += 1;
        self.kept[index].used = self.uses;
        Some(&self.kept[index].region)
    }

    fn give_up(&mut self, index: usize) {
        let kept = self.kept.swap_remove(index);
        self.bytes -= kept.region.bytes();
    }

    /// Whether `bytes` bytes at `at` are to be registered and kept, so that peers may write there
    /// if
    /// `written`. If so there is room for them.
    pub(super) fn lacks(&mut self, at: usize, bytes: usize, written: bool) -> bool {
        let serves = |held: Held| !written || held.keys.remote != 0;
        let most = self.limit.min(self.refused.saturating_sub(1));
        if bytes > most || self.find(at, bytes, 0).is_some_and(serves) {
            return false;
        }
        while self.bytes + bytes > self.limit || self.kept.len() >= KEPT_MAX {
            if !self.drop_oldest() {
                return false;
            }
        }
        true
    }

    /// Gives up what was used longest ago; false where nothing is kept.
    pub(super) fn drop_oldest(&mut self) -> bool {
        let kept = self.kept.iter().enumerate();
        let oldest = kept.min_by_key(|(_, kept)| kept.used).map(|(index, _)| index);
        oldest.inspect(|index| self.give_up(*index)).is_some()
    }

    /// Keeps `region`, watched since before it was registered. What it covers is kept no more.
    pub(super) fn keep(&mut self, region: Arc<Region>, watch: Watch) {
        let mut index = 0;
        while index < self.kept.len() {
            if region.covers(&self.kept[index].region) {
                self.give_up(index);
            } else {
                index += 1;
            }
        }
        self.uses += 1;
        self.bytes += region.bytes();
        self.kept.push(Kept { region, watch, used: self.uses });
    }

    /// So many bytes are not to be had, even with nothing else kept.
    pub(super) fn refuse(&mut self, bytes: usize) {
        self.refused = self.refused.min(bytes);
    }
}
