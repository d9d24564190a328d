//! When a path of several is lost: what did not come by it goes by the others.
//!
//! An end that finds a path broken stops its queue pair, so that no more comes by it, takes what
//! had come, and tells the peer by another path how many immediates and frames that were
//! (GIVEN_UP). The peer does the same. Then each knows what of its own has not been taken, and
//! sends it again: bytes of rings in their order before any others, pieces of placed messages by
//! whatever path has room. Both go where they would have gone, so bytes that had come without being
//! told are written once more, and the same.
//!
//! Invariant: what may have to be sent again stays as it is. Bytes in a mirror do until the peer
//! has taken them; a source is lent until its request has ended well, or its repetition has.

use std::sync::Arc;

use super::frame::{Frame, Remote, Told};
use super::outward::Lent;
use super::pair::{PATHS_MAX, Pair};
use super::port::{Keys, Port};
use super::regions::Region;
use crate::error::{Code, Error, Result};

/// How a path is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    /// What goes, goes by it.
    Up,
    /// It was given up here, and the peer has not said what it has taken.
    Lost,
    /// Both ends know what it brought.
    Over,
}

/// Bytes that were written to the peer.
#[derive(Clone, Debug)]
pub(super) struct Written {
    pub(super) lane: usize,
    pub(super) from: *const u8,
    pub(super) bytes: usize,
    pub(super) request: u64,
    /// They are the caller's, not the mirror's.
    pub(super) lent: bool,
    pub(super) region: Option<Arc<Region>>,
    pub(super) told: Told,
    /// On each path where they go.
    pub(super) places: [Option<Remote>; PATHS_MAX],
}

impl Written {
    /// Whether it reads some of a caller's memory from `from` to `to`, for `lane`.
    fn reads(&self, lane: usize, from: usize, to: usize) -> bool {
        let at = self.from as usize;
        self.lent && self.lane == lane && at < to && from < at + self.bytes
    }

    /// Whether it is of the ring of a lane.
    fn is_ring(&self) -> bool {
        matches!(self.told, Told::Ring { .. })
    }
}

impl<P: Port> Pair<P> {
    /// The path by which bytes of rings go, while they may.
    pub(super) fn ring_path(&self) -> Option<usize> {
        let first = self.paths.iter().position(|path| path.condition != Condition::Over)?;
        let waits = self.again.iter().any(Written::is_ring);
        (self.paths[first].condition == Condition::Up && !waits).then_some(first)
    }

    /// Remembers what was just written by path `index`, until the peer has taken it.
    pub(super) fn remember(&mut self, index: usize, one: impl FnOnce() -> Written) {
        if self.paths.len() > 1 {
            let path = &mut self.paths[index];
            path.log.push_back((path.sent, one()));
        }
    }

    /// Gives up path `index`: it brings nothing any more, and what it had brought has been taken.
    pub(super) fn lose(&mut self, index: usize) -> Result<()> {
        let path = &mut self.paths[index];
        if path.condition != Condition::Up {
            return Ok(());
        }
        path.condition = Condition::Lost;
        path.wishes.clear();
        // What this one was to tell of others is told again: saying it twice does no harm.
        let lost =
            self.paths.iter().enumerate().filter(|(_, path)| path.condition != Condition::Up);
        self.given_up = lost.map(|(index, path)| (index, path.taken)).collect();
        self.settle_path(index);
        self.tend()
    }

    /// The peer has given up path `index`, and had taken so much; false where that cannot be.
    pub(super) fn heard_given_up(&mut self, index: usize, taken: u64) -> bool {
        let Some(path) = self.paths.get_mut(index) else { return false };
        if path.heard.is_some() {
            return path.heard == Some(taken);
        }
        path.heard = Some(taken);
        let fits = (path.acknowledged..=path.sent).contains(&taken);
        self.settle_path(index);
        fits
    }

    /// Whether the peer has given up path `index`, and this end has not.
    pub(super) fn is_forsaken(&self, index: usize) -> bool {
        let path = &self.paths[index];
        path.condition == Condition::Up && path.heard.is_some()
    }

    /// Once both ends have given up path `index`, what the peer has not taken is to go again.
    fn settle_path(&mut self, index: usize) {
        let path = &mut self.paths[index];
        let (Condition::Lost, Some(taken)) = (path.condition, path.heard) else { return };
        path.condition = Condition::Over;
        self.retell = true;
        // What waits to go again is younger.
        let ended = path.port.ended();
        for (_, one) in path.log.drain(..).rev().filter(|(number, _)| *number > taken) {
            // A source that the card has given back cannot be read again: the card has told of a
            // request as done that the other end's has not.
            self.unsure |= one.lent && one.request <= ended;
            self.again.push_front(one);
        }
        for out in &mut self.out {
            out.forget_path(index);
        }
    }

    /// Asks the peer to tell what it has taken by path `index`.
    pub(super) fn ask(&mut self, index: usize) -> Result<()> {
        if self.may_tell(index) {
            let path = &mut self.paths[index];
            path.port.frame(&Frame::Ask.encode())?;
            path.sent += 1;
            path.asked_at = path.sent;
        }
        Ok(())
    }

    /// Whether something that is to go again reads some of a caller's memory from `from` to `to`.
    pub(super) fn reads_again(&self, lane: usize, from: usize, to: usize) -> bool {
        self.again.iter().any(|one| one.reads(lane, from, to))
    }

    /// Says what was given up, and sends again what may go.
    pub(super) fn send_again(&mut self) -> Result<()> {
        while let Some(&(lost, taken)) = self.given_up.front()
            && let Some(index) = (0..self.paths.len()).find(|index| self.may_tell(*index))
        {
            self.given_up.pop_front();
            let path = u8::try_from(lost).unwrap_or(u8::MAX);
            self.paths[index].port.frame(&Frame::GivenUp { path, taken }.encode())?;
            self.paths[index].sent += 1;
        }
        while let Some(one) = self.again.front() {
            let usable = |index: &usize| one.places[*index].is_some() && self.may_tell(*index);
            let first = self.paths.iter().position(|path| path.condition != Condition::Over);
            let found = if one.is_ring() {
                first.filter(usable)
            } else {
                (0..self.paths.len()).find(usable)
            };
            let Some(index) = found else { break };
            let Some(one) = self.again.pop_front() else { break };
            self.repeat(index, one)?;
        }
        Ok(())
    }

    fn repeat(&mut self, index: usize, mut one: Written) -> Result<()> {
        let path = &mut self.paths[index];
        let keys = match &one.region {
            Some(region) => Some(region.keys(index)),
            None => path.port.keys(one.from, one.bytes).map(|held| held.keys),
        };
        let (Some(Keys { local, .. }), Some(to)) = (keys, one.places[index]) else {
            return Err(Error::new(Code::Internal, "bytes that are out of reach now"));
        };
        let (from, told) = ((one.from, local), Some(one.told.bits()));
        // SAFETY: the source is lent since it was first sent; the mirror's bytes stay until the
        // peer has taken them.
        let request = unsafe { path.port.write(from, one.bytes, to, told, one.lent)? };
        path.sent += 1;
        if one.lent {
            let (at, bytes, region) = (one.from as usize, one.bytes, one.region.clone());
            let lent = Lent { at, bytes, path: index, request, _region: region };
            self.out[one.lane].lend(lent);
        }
        one.request = request;
        self.remember(index, || one);
        Ok(())
    }
}
