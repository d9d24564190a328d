//! Waiting: spin briefly, then yield, then sleep in the kernel.
//!
//! Spinning pays only while the peer runs on another core. So the budget is generous where every
//! local rank has a core of its own, and tiny where ranks share cores: there a yield lets the peer
//! do what we wait for. Deadline, abort and the peers' health are looked at every few dozen polls,
//! whether or not they move something (a peer may trickle), and always around a sleep.

use std::time::{Duration, Instant};

use crate::backend::Backend;
use crate::engine::Progress;

/// Polls between two looks at clock and peers.
const LOOK_EVERY: u32 = 64;
/// Empty polls, at the least, before sleeping.
const YIELDS: u32 = 200;
/// Looks at a small call at once, where ranks have cores of their own: a few microseconds.
const HASTY_POLLS: u32 = 128;
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
    /// For a rank that has a core for itself or shares one with others.
    pub(crate) fn new(shares_cores: bool, spin: Option<Duration>) -> Self {
        let usual = if shares_cores { Duration::ZERO } else { Duration::from_micros(200) };
        Self { spin: spin.unwrap_or(usual), shares_cores }
    }

    /// How often a call is looked at before it is waited for in earnest.
    pub(crate) fn polls(self) -> u32 {
        if self.shares_cores || self.spin.is_zero() { 1 } else { HASTY_POLLS }
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
    let mut wait = Wait { patience, empty: 0, since: None };
    let mut polls = 0u32;
    // BOUND: the deadline, looked at every few polls.
    loop {
        let progress = backend.poll();
        if progress != Progress::Blocked {
            if done(backend) {
                return Outcome::Done;
            }
            if progress == Progress::Idle {
                return Outcome::Idle;
            }
            (wait.empty, wait.since) = (0, None);
        } else if interrupted() {
            return Outcome::Interrupted;
        } else {
            wait.pause();
        }
        polls = polls.wrapping_add(1);
        if polls.is_multiple_of(LOOK_EVERY) {
            if interrupted() {
                return Outcome::Interrupted;
            }
            if !wait.look(backend, deadline) {
                return Outcome::Deadline;
            }
        }
    }
}

struct Wait {
    patience: Patience,
    /// Empty polls since something moved.
    empty: u32,
    /// The first look since something moved.
    since: Option<Instant>,
}

impl Wait {
    /// Between an empty poll and the next.
    fn pause(&mut self) {
        self.empty = self.empty.saturating_add(1);
        if self.patience.shares_cores {
            std::thread::yield_now();
        } else {
            std::hint::spin_loop();
        }
    }

    /// Looks at clock and peers, and sleeps when nothing has moved for long; false when the
    /// deadline has passed.
    fn look(&mut self, backend: &mut dyn Backend, deadline: Option<Instant>) -> bool {
        let now = Instant::now();
        // Before the deadline: who only tests, or waits in short steps, hears of a death as well.
        if now.saturating_duration_since(backend.watched()) >= WATCH_EVERY {
            backend.watch();
        }
        if deadline.is_some_and(|d| now >= d) {
            return false;
        }
        if self.empty >= LOOK_EVERY {
            let spun = now - *self.since.get_or_insert(now) >= self.patience.spin;
            if spun && self.empty >= YIELDS {
                self.sleep(backend, deadline, now);
            }
        }
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
            (self.empty, self.since) = (0, None);
        }
        bell.get_up();
        // Woken for nothing, the rank goes back to sleep soon, not after a full spin.
        self.empty = self.empty.min(YIELDS - LOOK_EVERY);
    }
}
