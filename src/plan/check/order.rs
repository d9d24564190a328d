//! What happens before what: a vector clock per lane.
//!
//! Lanes tick once a step. A message, a wait and a phase carry the clock of where they come from,
//! so two events are ordered in every schedule exactly when one clock knows of the other. Clocks
//! are copied only when they changed since the last copy.

use std::ops::Range;

/// A moment of a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moment {
    /// The lane, numbered through the world.
    pub(super) lane: u32,
    /// Its tick; 0 is before everything.
    pub(super) tick: u32,
}

/// What is known at a moment: kept until [`Clocks::release`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Stamp {
    pub(super) moment: Moment,
    copy: u32,
    /// The longest chain of messages that led here.
    pub(super) hops: u32,
}

#[derive(Debug)]
pub(super) struct Clocks {
    lanes: usize,
    /// One row per lane: the last tick of each lane that it knows of.
    rows: Vec<u32>,
    hops: Vec<u32>,
    /// The copy of each row, while nothing but its own tick changed.
    fresh: Vec<Option<u32>>,
    copies: Vec<Vec<u32>>,
    holders: Vec<u32>,
    free: Vec<u32>,
}

impl Clocks {
    /// Clocks for `world` ranks of `lanes` lanes; every lane knows its own rank's start, tick 1.
    pub(super) fn new(world: usize, lanes: usize) -> Self {
        let all = world * lanes;
        let mut rows = vec![0; all * all];
        for lane in 0..all {
            let first = lane - lane % lanes;
            rows[lane * all + first..lane * all + first + lanes].fill(1);
        }
        Self {
            lanes: all,
            rows,
            hops: vec![0; all],
            fresh: vec![None; all],
            copies: Vec::new(),
            holders: Vec::new(),
            free: Vec::new(),
        }
    }

    fn row(&self, lane: usize) -> &[u32] {
        &self.rows[lane * self.lanes..][..self.lanes]
    }

    /// The next step of `lane` begins.
    pub(super) fn tick(&mut self, lane: usize) -> Moment {
        let own = &mut self.rows[lane * self.lanes + lane];
        *own += 1;
        Moment { lane: number(lane), tick: *own }
    }

    /// The present moment of `lane`.
    pub(super) fn now(&self, lane: usize) -> Moment {
        Moment { lane: number(lane), tick: self.row(lane)[lane] }
    }

    /// The longest chain of messages that led to where `lane` is.
    pub(super) fn hops(&self, lane: usize) -> u32 {
        self.hops[lane]
    }

    /// Whether `moment` is known to `lane` now: it happened before in every schedule.
    pub(super) fn knows(&self, lane: usize, moment: Moment) -> bool {
        moment.tick == 0 || self.row(lane)[moment.lane as usize] >= moment.tick
    }

    /// What `lane` knows now.
    pub(super) fn stamp(&mut self, lane: usize) -> Stamp {
        let copy = self.fresh[lane].unwrap_or_else(|| {
            let copy = self.free.pop().unwrap_or_else(|| {
                self.copies.push(vec![0; self.lanes]);
                self.holders.push(0);
                number(self.copies.len() - 1)
            });
            let row = &self.rows[lane * self.lanes..][..self.lanes];
            self.copies[copy as usize].copy_from_slice(row);
            self.holders[copy as usize] = 1;
            self.fresh[lane] = Some(copy);
            copy
        });
        self.holders[copy as usize] += 1;
        Stamp { moment: self.now(lane), copy, hops: self.hops[lane] }
    }

    /// `lane` learns what `stamp` knew, `hops` messages later.
    pub(super) fn join(&mut self, lane: usize, stamp: &Stamp, hops: u32) {
        self.hops[lane] = self.hops[lane].max(stamp.hops + hops);
        if self.knows(lane, stamp.moment) {
            return;
        }
        if let Some(copy) = self.fresh[lane].take() {
            self.drop_one(copy);
        }
        let row = &mut self.rows[lane * self.lanes..][..self.lanes];
        for (mine, theirs) in row.iter_mut().zip(&self.copies[stamp.copy as usize]) {
            *mine = (*mine).max(*theirs);
        }
        row[stamp.moment.lane as usize] = stamp.moment.tick;
    }

    /// `lane` learns that the rank with `lanes` has begun, one hop away.
    pub(super) fn join_start(&mut self, lane: usize, lanes: Range<usize>) {
        self.hops[lane] = self.hops[lane].max(1);
        if let Some(copy) = self.fresh[lane].take() {
            self.drop_one(copy);
        }
        for tick in &mut self.rows[lane * self.lanes..][lanes] {
            *tick = (*tick).max(1);
        }
    }

    /// Whether `lane` knows that the rank with lane `other` has begun.
    pub(super) fn begun(&self, lane: usize, other: usize) -> bool {
        self.row(lane)[other] >= 1
    }

    /// `stamp` is not needed any more.
    pub(super) fn release(&mut self, stamp: &Stamp) {
        self.drop_one(stamp.copy);
    }

    fn drop_one(&mut self, copy: u32) {
        let holders = &mut self.holders[copy as usize];
        *holders -= 1;
        if *holders == 0 {
            self.free.push(copy);
        }
    }
}

pub(super) fn number(index: usize) -> u32 {
    u32::try_from(index).expect("tables of the checker are small")
}
