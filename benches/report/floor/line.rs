//! Exchanges of cache lines.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{Made, Way};

/// Two lines, since processors fetch them in pairs.
#[repr(align(128))]
#[derive(Default)]
struct Line(AtomicU64);

/// A line a rank.
pub(super) struct Lines(Vec<Line>);

impl Lines {
    pub(super) fn new(ranks: usize) -> Self {
        Self((0..ranks).map(|_| Line::default()).collect())
    }

    /// Returns when all ranks have come to `turn`, which grows from call to call.
    pub(super) fn exchange(&self, me: usize, turn: u64) {
        // ORDERING: release and acquire are partners: what a rank wrote before, all see after.
        self.0[me].0.store(turn, Ordering::Release);
        for line in &self.0 {
            wait(&line.0, turn);
        }
    }
}

/// Spins until `line` has come to `turn`.
pub(super) fn wait(line: &AtomicU64, turn: u64) {
    let mut polls = 0u32;
    // BOUND: the others are threads that do the same; the command's time limit ends it.
    while line.load(Ordering::Acquire) < turn {
        polls += 1;
        // After the time of a hundred exchanges: one more is not seen, and a rank that has no core
        // gets one.
        if polls.is_multiple_of(1 << 10) {
            std::thread::yield_now();
        }
        std::hint::spin_loop();
    }
}

/// Two exchanges and nothing else.
struct Twice(Lines);

pub(super) fn twice(ranks: usize) -> Made {
    Ok(Box::new(Twice(Lines::new(ranks))))
}

impl Way for Twice {
    fn call(&self, me: usize, turn: u64) -> Result<(), String> {
        self.0.exchange(me, 2 * turn);
        self.0.exchange(me, 2 * turn + 1);
        Ok(())
    }
}
