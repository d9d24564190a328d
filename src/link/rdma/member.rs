//! A peer and its connections: what the cards say of them, and which of them are lost.

use std::time::{Duration, Instant};

use super::pair::{PATHS_MAX, Pair};
use super::queue::{Mark, Queue};
use crate::error::Result;
use crate::rdma::{Completion, Registered, verbs};
use crate::sys::memory::Pages;
use crate::types::Rank;

/// The status of requests that were given up because another had failed.
pub(super) const FLUSHED: i32 = verbs::IBV_WC_WR_FLUSH_ERR.cast_signed();

/// Where a card does not say that all its places to receive at are empty, as rxe does not, what had
/// come has been told after so long: it told of it before it was stopped.
const DRAINED: Duration = Duration::from_millis(50);

/// A path that brings nothing any more.
#[derive(Clone, Copy, Debug)]
struct Loss {
    since: Instant,
    /// What had come has been taken.
    settled: bool,
}

/// A peer and its connections.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) peer: Rank,
    pub(super) pair: Pair<Queue>,
    /// The peer has ended the connection.
    pub(super) gone: bool,
    /// When it has ended each path: if it ends them all, that is one after another.
    ended: [Option<Instant>; PATHS_MAX],
    lost: [Option<Loss>; PATHS_MAX],
    /// What the card said when a request failed.
    pub(super) fault: Option<(i32, String)>,
    _held: Vec<Registered>,
    _pages: Pages,
}

impl Member {
    /// `peer`, whose pair stands on these pages.
    pub(super) fn new(
        peer: Rank,
        pair: Pair<Queue>,
        (held, pages): (Vec<Registered>, Pages),
    ) -> Self {
        let (gone, fault, ended, lost) = (false, None, [None; PATHS_MAX], [None; PATHS_MAX]);
        Self { peer, pair, gone, ended, lost, fault, _held: held, _pages: pages }
    }

    /// Takes a completion that is a success.
    pub(super) fn take(&mut self, mark: Mark, completion: &Completion) -> Result<()> {
        let stopped = self.pair.is_halted() || self.lost[mark.path].is_some();
        let Some(path) = self.pair.paths.get_mut(mark.path) else { return Ok(()) };
        if !mark.receive {
            path.port.end(mark.number);
            return Ok(());
        }
        let frame = path.port.frame_in(mark.number);
        path.port.came();
        if !stopped && let Err(error) = path.port.offer(mark.number) {
            self.lose(mark.path, (error.native, error.detail.into()));
        }
        if self.lost[mark.path].is_some_and(|loss| loss.settled) {
            return Ok(());
        }
        if completion.opcode == verbs::IBV_WC_RECV {
            self.pair.frame(mark.path, &frame)?;
            // What the peer has given up is of no use here.
            for path in 0..self.pair.paths.len() {
                if self.pair.is_forsaken(path) {
                    self.lose(path, (FLUSHED, "the peer has given it up".to_owned()));
                }
            }
            return Ok(());
        }
        // SAFETY: completions of writes with an immediate have one.
        let bits = u32::from_be(unsafe { completion.__bindgen_anon_1.imm_data });
        self.pair.immediate(mark.path, bits)
    }

    /// Takes one that is none, of a path that may be lost already; `text` says what it says.
    pub(super) fn take_failure(&mut self, mark: Mark, status: i32, text: impl FnOnce() -> String) {
        if let Some(path) = self.pair.paths.get_mut(mark.path)
            && mark.receive
        {
            path.port.came();
        }
        let uses = self.uses(mark.path);
        if uses || status != FLUSHED {
            self.blame((status, text()));
        }
        if uses {
            self.give_up(mark.path);
        }
    }

    /// Notes why a path was lost. One request says why; others were flushed for it.
    fn blame(&mut self, fault: (i32, String)) {
        if self.fault.as_ref().is_none_or(|(known, _)| *known == FLUSHED) {
            self.fault = Some(fault);
        }
    }

    /// The peer has ended the connection of a path.
    pub(super) fn end(&mut self, path: usize) {
        self.ended[path].get_or_insert_with(Instant::now);
        let open = |index: usize| self.ended[index].is_none() && self.lost[index].is_none();
        self.gone = !(0..self.pair.paths.len()).any(open);
    }

    /// Path `index` brings nothing any more: others do its work, or the connection ends.
    pub(super) fn lose(&mut self, index: usize, fault: (i32, String)) {
        if self.uses(index) {
            self.blame(fault);
            self.give_up(index);
        }
    }

    fn give_up(&mut self, index: usize) {
        let others = (0..self.pair.paths.len()).any(|other| other != index && self.uses(other));
        if !others {
            return self.halt();
        }
        self.pair.paths[index].port.stop();
        self.lost[index] = Some(Loss { since: Instant::now(), settled: false });
    }

    /// Gives up paths whose cards take nothing any more.
    pub(super) fn heed(&mut self) {
        for index in 0..self.pair.paths.len() {
            if let Some(error) = self.pair.paths[index].port.failure() {
                self.lose(index, (error.native, error.detail.into()));
            }
        }
    }

    /// The last words: from now on it is waited until they are there.
    pub(super) fn take_leave(&mut self) -> Result<()> {
        for index in 0..self.pair.paths.len() {
            if !self.uses(index) {
                continue;
            }
            if !self.pair.paths[index].port.ends_there() {
                self.pair.ask(index)?;
            }
            let port = &mut self.pair.paths[index].port;
            if port.under_way() > 0 {
                port.probe()?;
            }
        }
        Ok(())
    }

    /// Sees whether the peer's cards answer where nothing is under way that would show it.
    pub(super) fn probe(&mut self) -> Result<()> {
        for index in 0..self.pair.paths.len() {
            if self.uses(index) && self.pair.paths[index].port.under_way() == 0 {
                self.pair.paths[index].port.probe()?;
            }
        }
        Ok(())
    }

    /// Whether what was sent may not be there yet.
    pub(super) fn is_sending(&self) -> bool {
        let under_way = |index: usize| self.pair.paths[index].port.under_way() > 0;
        let paths = 0..self.pair.paths.len();
        let detours = !self.pair.again.is_empty() || self.drains();
        // Where a request's end does not say so, the peer does.
        let untold = |index: usize| {
            let path = &self.pair.paths[index];
            !path.port.ends_there() && path.acknowledged < path.asked_at
        };
        let sending = |index: usize| self.uses(index) && (under_way(index) || untold(index));
        let over = self.gone || self.pair.is_halted();
        !over && (detours || paths.into_iter().any(sending))
    }

    /// Whether a path is lost and what it had brought may not all have been taken.
    pub(super) fn drains(&self) -> bool {
        let ends = |index: usize| self.ended[index].is_some() && self.uses(index);
        self.lost.iter().flatten().any(|loss| !loss.settled)
            || !self.gone && (0..self.pair.paths.len()).any(ends)
    }

    /// Settles lost paths of which all is taken, of those whose cards have just had nothing more.
    pub(super) fn settle(&mut self, empty: [bool; PATHS_MAX]) -> Result<()> {
        for (index, empty) in (0..self.pair.paths.len()).zip(empty) {
            // The peer has ended this one alone.
            let alone = self.ended[index].filter(|since| since.elapsed() >= DRAINED);
            if alone.is_some() && !self.gone {
                self.lose(index, (FLUSHED, "the peer has ended it".to_owned()));
            }
            let waits = |loss: &&mut Loss| !loss.settled && empty;
            let Some(loss) = self.lost[index].as_mut().filter(waits) else { continue };
            if self.pair.paths[index].port.places() == 0 || loss.since.elapsed() >= DRAINED {
                loss.settled = true;
                self.pair.lose(index)?;
            }
        }
        Ok(())
    }

    /// Whether path `index` carries anything.
    pub(super) fn uses(&self, index: usize) -> bool {
        !self.pair.is_halted() && index < self.pair.paths.len() && self.lost[index].is_none()
    }

    /// Nothing goes to the peer any more, and nothing of its comes.
    pub(super) fn halt(&mut self) {
        self.pair.halt();
        self.pair.paths.iter_mut().for_each(|path| path.port.stop());
    }
}
