//! Who is alive, who has left, and what broke: told to every rank.
//!
//! A fault is told once, by the rank that saw it, to all; whoever hears of it ends its calls with
//! the same error. A rank that ends its communicator says goodbye first, so an end of stream
//! without a goodbye is a death. Data a rank sent before it died may still be under way, so a death
//! ends calls only once nothing has moved for [`GRACE`]. A data connection that ends says less: its
//! rank may have died, or ended because of another. Only when nothing else is heard for
//! [`LINK_GRACE`] is the connection itself what failed.
//!
//! A rank whose call has not moved for [`STALL`] tells those it waits for which call it makes.
//! Ranks that wait for each other in different calls, neither of which sends first, learn of it
//! that way. After [`STALL_LONG`] it tells everyone, so that whose deadline passes can blame who
//! has not come.
//!
//! Not here: what to do about it (the backend), and heartbeats.

pub(crate) mod control;
pub(crate) mod threads;

use std::time::{Duration, Instant};

use crate::call::{Head, Tally};
use crate::error::{Code, Error, Scope};
use crate::types::Rank;

/// How long nothing must have moved after a death before pending calls end.
pub(crate) const GRACE: Duration = Duration::from_millis(20);

/// How long after the end of a data connection its reason may take to be heard.
pub(crate) const LINK_GRACE: Duration = Duration::from_millis(250);

/// How long a call must not have moved before the ranks it waits for are told of it.
pub(crate) const STALL: Duration = Duration::from_millis(50);

/// How long a call must not have moved before all ranks are told of it.
pub(crate) const STALL_LONG: Duration = Duration::from_secs(1);

/// What peers report, and what is reported to them.
#[derive(Debug)]
pub(crate) enum Health {
    /// Ranks in other processes.
    Processes(control::Controls),
    /// Ranks that are threads of this process.
    Threads(threads::Thread),
}

/// What has been heard.
#[derive(Debug, Default)]
pub(crate) struct News {
    /// A fault a peer has told.
    pub(crate) fault: Option<Error>,
    /// The first rank found dead, with why we think so, and when.
    pub(crate) dead: Option<(Rank, String, Instant)>,
    /// Ranks that have ended their communicator.
    pub(crate) left: Vec<Left>,
    /// Calls in which peers wait for this rank: the latest of each.
    pub(crate) asked: Vec<(Rank, Head)>,
    /// The last call in which each rank was heard to wait, for whomever.
    pub(crate) waits: Vec<(Rank, u64)>,
}

/// A rank that has ended its communicator.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Left {
    pub(crate) rank: Rank,
    /// What it called; `None` if its communicator was broken.
    pub(crate) tally: Option<Tally>,
    /// When that was heard.
    pub(crate) since: Instant,
}

impl News {
    /// `rank` has ended its communicator.
    fn leaves(&mut self, rank: Rank, tally: Option<Tally>) {
        self.left.push(Left { rank, tally, since: Instant::now() });
    }

    /// Whether `rank` has ended its communicator.
    pub(crate) fn has_left(&self, rank: Rank) -> bool {
        self.left.iter().any(|left| left.rank == rank)
    }

    /// `rank` waits for this one in the call of `head`.
    fn asks(&mut self, rank: Rank, head: Head) {
        self.asked.retain(|(other, _)| *other != rank);
        self.asked.push((rank, head));
        match self.waits.iter_mut().find(|(other, _)| *other == rank) {
            Some(entry) => entry.1 = head.seq,
            None => self.waits.push((rank, head.seq)),
        }
    }
}

/// The engine is at work on buffers. Dropped when the work panics, it ends the work and tells the
/// others, which wait for that end and load from our buffers.
#[derive(Debug)]
#[must_use]
pub(crate) struct Work<'a>(Option<&'a threads::Thread>);

impl Work<'_> {
    /// The engine has stopped working on buffers for now.
    #[inline]
    pub(crate) fn done(self) {
        if let Some(thread) = self.0 {
            thread.end();
        }
        std::mem::forget(self);
    }
}

impl Drop for Work<'_> {
    fn drop(&mut self) {
        if let Some(thread) = self.0 {
            thread.panicked();
        }
    }
}

impl Health {
    /// Leave for the engine to work on buffers now, if it may; it ends with [`Work::done`].
    #[inline]
    pub(crate) fn begin(&self) -> Option<Work<'_>> {
        match self {
            Self::Processes(_) => Some(Work(None)),
            Self::Threads(thread) => thread.begin().then_some(Work(Some(thread))),
        }
    }

    /// Looks for news without waiting.
    pub(crate) fn watch(&mut self, news: &mut News) {
        match self {
            Self::Processes(controls) => controls.watch(news),
            Self::Threads(thread) => thread.watch(news),
        }
    }

    /// Tells every peer of `error`.
    pub(crate) fn tell(&mut self, error: &Error) {
        match self {
            Self::Processes(controls) => controls.tell(error),
            Self::Threads(thread) => thread.tell(error),
        }
    }

    /// Tells `ranks` that they are waited for in the call of `head`.
    pub(crate) fn ask(&mut self, head: &Head, ranks: &[Rank]) {
        match self {
            Self::Processes(controls) => controls.ask(head, ranks),
            Self::Threads(thread) => thread.ask(head, ranks),
        }
    }

    /// Says goodbye to every peer, and what this rank called unless its communicator is broken.
    pub(crate) fn leave(&mut self, tally: Option<Tally>) {
        match self {
            Self::Processes(controls) => controls.leave(tally),
            Self::Threads(thread) => thread.leave(tally),
        }
    }
}

/// The error of a rank that hears of the fault `told`: the first teller's words, with the teller
/// named.
pub(crate) fn retold(teller: Rank, told: &Error) -> Error {
    let mut error = if told.code == Code::Aborted {
        Error::new(Code::Aborted, format!("aborted on rank {teller}")).with_peer(teller)
    } else if told.code.scope() == Scope::Call {
        // What failed a call there has ended the communicator here, and the code must say so.
        let text = format!("{}: {} (told by rank {teller})", told.code, told.detail);
        Error::new(Code::Broken, text)
    } else {
        Error::new(told.code, format!("{} (told by rank {teller})", told.detail))
    };
    error.peer = error.peer.or(told.peer);
    error.seq = told.seq;
    error
}
