//! A call under way, and which way it goes.

use std::time::Instant;

use super::direct::Led;
use super::moved::Moved;
use super::staged::Staged;
use super::words::{Flag, Mark};
use crate::call::{Call, Place};
use crate::types::{Collective, Rank};

/// A call under way, on memory of either kind.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) call: Call,
    pub(super) ticket: u32,
    pub(super) way: Way,
    /// Calls on device memory with one number are a group: they have one place in a stream, and
    /// NCCL gets them together.
    pub(super) group: u32,
    /// What is before it in the program's stream, until the stream has come there.
    pub(super) ready: Option<Flag>,
    /// What waits for it in the stream.
    pub(super) mark: Option<Mark>,
    /// Its caller goes on when the group has its place.
    pub(super) takes_place: bool,
    /// Its caller has been told that it has ended, or will be when fewer are unattended.
    pub(super) unattended: bool,
    /// When it must be over, once it can begin and nobody waits for it.
    pub(super) deadline: Option<Instant>,
}

/// A message's direction and peer; `None`: a collective.
pub(super) type Lane = Option<(Collective, Rank)>;

/// How a call is made.
#[derive(Debug)]
pub(super) enum Way {
    /// On host memory, by the side alone; it has been given to the side or not.
    Host {
        sent: bool,
    },
    Moved(Box<Moved>),
    Led(Led),
    Staged(Staged),
}

impl Job {
    pub(super) fn new(call: Call, ticket: u32, way: Way, group: u32) -> Self {
        let takes_place = matches!(call.place, Place::Stream { .. });
        Self {
            call,
            ticket,
            way,
            group,
            ready: None,
            mark: None,
            takes_place,
            unattended: false,
            deadline: None,
        }
    }

    /// Whether NCCL has still to be given some of it.
    pub(super) fn is_for_nccl(&self) -> bool {
        matches!(&self.way, Way::Moved(moved) if !moved.is_issued())
    }

    /// Whether the side has been given all of it.
    pub(super) fn has_sent(&self) -> bool {
        match &self.way {
            Way::Host { sent } => *sent,
            Way::Moved(moved) => moved.has_sent(),
            Way::Led(led) => led.has_sent(),
            Way::Staged(staged) => staged.has_sent(),
        }
    }

    /// Whether the device works for it, or will when a stream comes to it.
    pub(super) fn is_on_device(&self) -> bool {
        let at_work = match &self.way {
            Way::Host { .. } => false,
            Way::Moved(moved) => moved.is_on_device(),
            Way::Led(led) => led.is_on_device(),
            Way::Staged(staged) => staged.is_on_device(),
        };
        at_work || self.ready.is_some()
    }

    /// Whether something of it may have to be looked after, whatever stands before it.
    pub(super) fn is_under_way(&self) -> bool {
        match &self.way {
            Way::Staged(staged) => self.ready.is_none() && staged.is_on_device(),
            Way::Moved(_) => true,
            Way::Host { .. } | Way::Led(_) => self.has_sent(),
        }
    }

    /// Native calls of jobs with equal lanes begin one job after the other.
    pub(super) fn lane(&self) -> Lane {
        let kind = self.call.collective;
        kind.point_to_point().then_some((kind, self.call.root))
    }
}
