//! Memory of the program that the cards reach.

use super::pair::PATHS_MAX;
use super::port::Keys;
use crate::rdma::Registered;

/// A stretch of it.
#[derive(Debug)]
struct Region {
    from: usize,
    to: usize,
    /// By each card.
    keys: [Keys; PATHS_MAX],
    /// What the cards hold.
    _held: Vec<Registered>,
}

/// All of it.
#[derive(Debug, Default)]
pub(super) struct Regions {
    list: Vec<Region>,
    /// The one found last.
    last: usize,
}

impl Regions {
    /// Adds `bytes` bytes at `at`, which each card holds, and peers may write to.
    pub(super) fn add(&mut self, at: usize, bytes: usize, held: Vec<Registered>) {
        let mut keys = [Keys { local: 0, remote: 0 }; PATHS_MAX];
        for (keys, held) in keys.iter_mut().zip(&held) {
            let (local, remote) = held.keys();
            *keys = Keys { local, remote };
        }
        self.list.push(Region { from: at, to: at + bytes, keys, _held: held });
    }

    /// Takes away what begins at `at` and was added last; whether there was such.
    pub(super) fn remove(&mut self, at: usize) -> bool {
        let found = self.list.iter().rposition(|region| region.from == at);
        found.inspect(|index| drop(self.list.swap_remove(*index))).is_some()
    }

    /// The keys of `bytes` bytes at `at` by `card`.
    #[inline]
    pub(super) fn keys(&mut self, at: usize, bytes: usize, card: usize) -> Option<Keys> {
        let holds = |region: &Region| region.from <= at && at + bytes <= region.to;
        if let Some(region) = self.list.get(self.last).filter(|region| holds(region)) {
            return Some(region.keys[card]);
        }
        self.last = self.list.iter().position(holds)?;
        Some(self.list[self.last].keys[card])
    }
}
