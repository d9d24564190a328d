//! Waiting: spin briefly, then yield, then sleep in the kernel.
//!
//! Spinning pays only while the peer runs on another core. So the budget is generous where every
//! local rank has a core of its own, and tiny where ranks share cores: there a yield lets the peer
//! do what we wait for. Deadline, abort and the peers' health are looked at every few dozen empty
//! polls, and always around a sleep.

use std::time::{Duration, Instant};

use crate::backend::Backend;
use crate::engine::Progress;

/// Empty polls between two looks at clock and peers.
const LOOK_EVERY: u32 = 64;
/// Yields before sleeping, where ranks share cores.
const YIELDS: u32 = 200;
/// No sleep lasts longer: a bound on noticing anything that rings no bell.
const DOZE_MAX: Duration = Duration::from_millis(100);
/// How often peers are looked after while polling.
const WATCH_EVERY: Duration = Duration::from_millis(5);

/// How a rank waits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// Spin this long before yielding.
    pub(crate) spin: Duration,
    /// Yield between polls from the start.
    pub(crate) shares_cores: bool,
}

impl Patience {
    /// For `ranks` ranks on this host with `cores` cores.
    pub(crate) fn new(ranks: usize, cores: usize, spin: Option<Duration>) -> Self {
        let shares_cores = ranks > cores;
        let usual = if shares_cores { Duration::ZERO } else { Duration::from_micros(200) };
        Self { spin: spin.unwrap_or(usual), shares_cores }
    }
}

/// Why [`drive`] came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// `done` said so.
    Done,
    /// Nothing is pending any more.
    Idle,
    /// The deadline passed.
    Deadline,
    /// `interrupted` said so.
    Interrupted,
}

/// Polls `backend` until `done` says so (asked after anything moved), nothing is pending,
/// `deadline` passes, or `interrupted` says so (asked before every pause, so it must be cheap).
pub(crate) fn drive(
    backend: &mut dyn Backend,
    patience: Patience,
    deadline: Option<Instant>,
    interrupted: impl Fn() -> bool,
    mut done: impl FnMut(&mut dyn Backend) -> bool,
) -> Outcome {
    let mut wait = Wait::new(patience);
    // BOUND: every turn moves something, or pauses, which ends at the deadline.
    loop {
        let progress = backend.poll();
        if progress != Progress::Blocked {
            if done(backend) {
                return Outcome::Done;
            }
            if progress == Progress::Idle {
                return Outcome::Idle;
            }
            wait.empty = 0;
        } else if interrupted() {
            return Outcome::Interrupted;
        } else if !wait.pause(backend, deadline) {
            return Outcome::Deadline;
        }
    }
}

struct Wait {
    patience: Patience,
    /// Empty polls since something moved.
    empty: u32,
    since: Instant,
    watched: Instant,
}

impl Wait {
    fn new(patience: Patience) -> Self {
        let now = Instant::now();
        Self { patience, empty: 0, since: now, watched: now }
    }

    /// One pause between two polls; false when the deadline has passed.
    fn pause(&mut self, backend: &mut dyn Backend, deadline: Option<Instant>) -> bool {
        self.empty = self.empty.saturating_add(1);
        if self.empty == 1 {
            self.since = Instant::now();
        }
        if !self.empty.is_multiple_of(LOOK_EVERY) {
            if self.patience.shares_cores {
                std::thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
            return true;
        }
        let now = Instant::now();
        if deadline.is_some_and(|d| now >= d) {
            return false;
        }
        if now - self.watched >= WATCH_EVERY {
            self.watched = now;
            backend.watch();
        }
        let spun = now - self.since >= self.patience.spin;
        if !self.patience.shares_cores && !spun {
            return true;
        }
        if self.empty < YIELDS {
            std::thread::yield_now();
            return true;
        }
        self.sleep(backend, deadline, now);
        true
    }

    fn sleep(&mut self, backend: &mut dyn Backend, deadline: Option<Instant>, now: Instant) {
        let bell = backend.bell();
        bell.lie_down();
        // Whatever came before the flag was seen would ring no bell: look once more.
        if backend.poll() == Progress::Blocked {
            let left = deadline.map_or(DOZE_MAX, |d| d.saturating_duration_since(now));
            backend.doze(left.min(DOZE_MAX));
            backend.watch();
        } else {
            self.empty = 0;
        }
        bell.get_up();
        // Woken for nothing, the rank goes back to sleep soon, not after a full spin.
        self.empty = self.empty.min(YIELDS - LOOK_EVERY);
    }
}
