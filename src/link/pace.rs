//! Which way of storing what others load is faster here: in the caches, or past them.
//!
//! To take a line out of another core's cache, and to give it back for the next store, costs 2 to 9
//! ns where the cores share a cache, and 40 where they do not; what passes the caches by costs 9 or
//! so everywhere. Nothing the system says tells the two apart for sure, and virtual machines move
//! between them within seconds. So it is measured: some pieces (`engine::area`) are stored the one
//! way and some the other, whichever is in use, and the time of all stores and loads of those is
//! summed up. Bits do not depend on it, so ranks need not agree.

use std::time::Instant;

/// Costs of one way: recent bytes and the nanoseconds they took.
#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    bytes: f64,
    nanoseconds: f64,
}

/// What a rank has measured.
#[derive(Debug)]
pub(crate) struct Pace {
    began: Instant,
    /// In the caches, past the caches.
    costs: [Cost; 2],
    past: bool,
}

/// Costs are of about so many recent bytes.
const RECENT_BYTES: f64 = 512e3;
/// No judgement on less.
const ENOUGH_BYTES: f64 = 64e3;
/// A time counts for at most so many times the usual: more is somebody else's turn on the core.
const OUTLIER: f64 = 4.0;
/// The same before anything is usual, in nanoseconds a byte.
const SLOWEST: f64 = 1.0;
/// The other way must be so much faster to be taken.
const MARGIN: f64 = 0.9;

impl Pace {
    pub(crate) fn new() -> Self {
        Self { began: Instant::now(), costs: [Cost::default(); 2], past: false }
    }

    /// Nanoseconds since the beginning.
    pub(crate) fn clock(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Notes that stores or loads of `bytes` bytes, stored `past` the caches or not, took so long.
    /// Whether past is the faster way now.
    #[expect(clippy::cast_precision_loss, reason = "a measurement")]
    pub(crate) fn took(&mut self, past: bool, bytes: usize, nanoseconds: u64) -> bool {
        let bytes = bytes as f64;
        let cost = &mut self.costs[usize::from(past)];
        let known = cost.bytes >= ENOUGH_BYTES;
        let most = if known { OUTLIER * cost.nanoseconds / cost.bytes } else { SLOWEST };
        cost.bytes += bytes;
        cost.nanoseconds += (nanoseconds as f64).min(bytes * most);
        if cost.bytes > RECENT_BYTES {
            (cost.bytes, cost.nanoseconds) = (cost.bytes / 2.0, cost.nanoseconds / 2.0);
        }
        if self.costs.iter().all(|cost| cost.bytes >= ENOUGH_BYTES) {
            let [inside, past] = self.costs.map(|cost| cost.nanoseconds / cost.bytes);
            self.past = if self.past { inside > past * MARGIN } else { past < inside * MARGIN };
        }
        self.past
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cores that come near each other, part, and come near again.
    #[test]
    fn a_pace_follows_the_machine() {
        let mut pace = Pace::new();
        let mut way = |inside: u64, past: u64, times: usize| {
            let mut now = false;
            for _ in 0..times {
                // Nanoseconds a line of 64 bytes.
                pace.took(false, 64 << 10, inside * 1024);
                now = pace.took(true, 64 << 10, past * 1024);
            }
            now
        };
        assert!(!way(4, 9, 20), "near");
        assert!(way(40, 9, 20), "far");
        assert!(way(9, 9, 20), "no reason to change");
        assert!(!way(4, 9, 20), "near again");
        assert!(!way(9, 9, 20), "no reason to change");
    }

    #[test]
    fn one_pause_changes_nothing() {
        let mut pace = Pace::new();
        for _ in 0..20 {
            pace.took(false, 64 << 10, 4 * 1024);
            pace.took(true, 64 << 10, 9 * 1024);
        }
        assert!(!pace.took(false, 32 << 10, 4_000_000));
        assert!(!pace.took(true, 64 << 10, 9 * 1024));
    }
}
