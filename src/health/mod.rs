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
//! that way. After [`STALL_LONG`] it tells everyone. With that it says whom it waits for, in
//! collectives and messages, and takes it back when it gets on. So whose deadline passes can follow
//! who waits for whom, and blame who waits for nobody.
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
    /// Ranks that wait now, each with one of those that it waits for.
    pub(crate) waits: Vec<(Rank, Rank)>,
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
    }

    /// `rank` waits for `ranks` now; with none it goes on.
    fn stalls(&mut self, rank: Rank, ranks: impl IntoIterator<Item = Rank>) {
        self.waits.retain(|(other, _)| *other != rank);
        let others = ranks.into_iter().filter(|other| *other != rank);
        self.waits.extend(others.map(|other| (rank, other)));
    }

    /// Who is to blame when rank `me` waits for `awaited` in vain: of these and of those that they
    /// are heard to wait for in turn, the ones that wait for nobody. All of them where they wait
    /// for each other.
    pub(crate) fn to_blame(&self, me: Rank, awaited: Vec<Rank>) -> Vec<Rank> {
        let (mut chain, mut silent) = (awaited.clone(), Vec::new());
        let mut at = 0;
        // BOUND: the ranks of the world, each once.
        while let Some(&rank) = chain.get(at) {
            at += 1;
            let mut whom = self.waits.iter().filter(|wait| wait.0 == rank).peekable();
            if whom.peek().is_none() && rank != me {
                silent.push(rank);
            }
            for &(_, other) in whom {
                if !chain.contains(&other) {
                    chain.push(other);
                }
            }
        }
        silent.sort_unstable();
        if silent.is_empty() { awaited } else { silent }
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

    /// Tells `awaited`, or `all` ranks, that this one waits for `awaited`, and in which collective,
    /// if it is one.
    pub(crate) fn ask(&mut self, head: Option<&Head>, awaited: &[Rank], all: bool) {
        match self {
            Self::Processes(controls) => controls.ask(head, awaited, all),
            Self::Threads(thread) => thread.ask(head, awaited, all),
        }
    }

    /// Takes back that this rank waits.
    pub(crate) fn go_on(&mut self) {
        match self {
            Self::Processes(controls) => controls.go_on(),
            Self::Threads(thread) => thread.go_on(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_for_nobody_is_to_blame() {
        let mut news = News::default();
        let blamed = |news: &News, awaited: &[u32]| {
            let awaited = awaited.iter().copied().map(Rank).collect();
            news.to_blame(Rank(1), awaited).iter().map(|rank| rank.0).collect::<Vec<_>>()
        };
        assert_eq!(blamed(&news, &[0]), [0]);
        news.stalls(Rank(0), [Rank(2), Rank(3)]);
        news.stalls(Rank(3), [Rank(1), Rank(4)]);
        assert_eq!(blamed(&news, &[0]), [2, 4]);
        assert_eq!(blamed(&news, &[0, 5]), [2, 4, 5]);
        // It goes on, and may be late by itself.
        news.stalls(Rank(3), []);
        assert_eq!(blamed(&news, &[0]), [2, 3]);
        // They wait for each other.
        news.stalls(Rank(0), [Rank(1)]);
        assert_eq!(blamed(&news, &[0]), [0]);
    }
}
