//! What the buffers of all ranks hold, chunk by chunk and tile by tile, and who may touch them
//! when.

use std::ops::Range;

use super::super::{LANES_MAX, Plan, Region};
use super::expr::{Expr, Exprs, NOTHING};
use super::order::{Clocks, Moment, number};
use super::places::Places;
use super::structure::buffers;
use crate::types::Rank;

/// What stands in a place or travels in a message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Value {
    pub(super) expr: Expr,
    pub(super) tile: u32,
    pub(super) finished: bool,
}

/// Before everything.
pub(super) const NEVER: Moment = Moment { lane: 0, tick: 0 };
/// No place, no message, no list.
pub(super) const END: u32 = u32::MAX;

/// One chunk of one tile of a buffer.
#[derive(Clone, Debug)]
struct Place {
    value: Value,
    written: Moment,
    /// The last read by each lane of its own rank, since it was written.
    read: [u32; LANES_MAX],
    /// Reads by lanes of other ranks.
    read_far: Vec<Moment>,
    /// Head of the list of posts that read it.
    posts: u32,
}

impl Place {
    fn holding(value: Value) -> Self {
        Self { value, written: NEVER, read: [0; LANES_MAX], read_far: Vec::new(), posts: END }
    }
}

/// A message that reads a place when it leaves.
#[derive(Clone, Copy, Debug)]
struct Post {
    message: u32,
    posted: Moment,
    /// When a step that settled had waited for it to leave.
    left: Moment,
    next: u32,
}

#[derive(Debug)]
pub(super) struct Memory<'a> {
    lanes: usize,
    map: &'a Places<'a>,
    places: Vec<Place>,
    posts: Vec<Post>,
    /// When each message was received.
    received: Vec<Moment>,
}

impl<'a> Memory<'a> {
    /// All Inputs filled, nothing else.
    pub(super) fn new(plans: &[Plan], map: &'a Places<'a>, exprs: &Exprs) -> Self {
        let empty = Value { expr: NOTHING, tile: 0, finished: false };
        let mut memory = Self {
            lanes: map.shape.lanes,
            map,
            places: vec![Place::holding(empty); map.count()],
            posts: Vec::new(),
            received: Vec::new(),
        };
        for plan in plans {
            let rank = plan.key.rank;
            for chunk in 0..buffers(&plan.key, rank, plan.chunks).0 {
                for tile in 0..map.shape.tiles {
                    let expr = exprs.leaf(rank.0, chunk);
                    let at = memory.place(rank.0, Region::Input, chunk, tile);
                    memory.places[at].value = Value { expr, tile, finished: false };
                }
            }
        }
        memory
    }

    /// Where a chunk of a region of `rank` is.
    pub(super) fn place(&self, rank: u32, region: Region, chunk: u32, tile: u32) -> usize {
        self.map.at(rank, region, chunk, tile)
    }

    /// What stands there now, whoever looks.
    pub(super) fn holds(&self, at: usize) -> Value {
        self.places[at].value
    }

    /// Puts a value of no elements into a place: nothing is touched.
    pub(super) fn pretend(&mut self, at: usize, value: Value) {
        self.places[at].value = value;
    }

    fn lanes(&self, rank: u32) -> Range<usize> {
        let first = rank as usize * self.lanes;
        first..first + self.lanes
    }

    fn who(&self, moment: Moment) -> String {
        let (lane, lanes) = (moment.lane as usize, self.lanes);
        format!("lane {} of rank {}", lane % lanes, lane / lanes)
    }

    /// Lane `me` (numbered through the world) reads a place of `rank`.
    pub(super) fn read(
        &mut self,
        clocks: &Clocks,
        me: usize,
        (rank, at): (u32, usize),
    ) -> Result<Value, String> {
        self.begun(clocks, me, rank)?;
        let place = &self.places[at];
        if !clocks.knows(me, place.written) {
            let by = self.who(place.written);
            return Err(format!("reads what {by} writes at the same time or later"));
        }
        if place.value.expr == NOTHING {
            return Err("reads what nothing was written to".into());
        }
        let (now, own) = (clocks.now(me), self.lanes(rank));
        let place = &mut self.places[at];
        if own.contains(&me) {
            place.read[me - own.start] = now.tick;
        } else {
            match place.read_far.iter_mut().find(|m| m.lane == now.lane) {
                Some(before) => *before = now,
                None => place.read_far.push(now),
            }
        }
        Ok(place.value)
    }

    /// Lane `me` writes a place of `rank`.
    pub(super) fn write(
        &mut self,
        clocks: &Clocks,
        me: usize,
        (rank, at): (u32, usize),
        value: Value,
    ) -> Result<(), String> {
        self.begun(clocks, me, rank)?;
        let place = &self.places[at];
        if !clocks.knows(me, place.written) {
            let by = self.who(place.written);
            return Err(format!("writes what {by} writes at the same time or later"));
        }
        let near = self.lanes(rank).zip(place.read);
        let near = near.map(|(lane, tick)| Moment { lane: number(lane), tick });
        let mut reads = near.chain(place.read_far.iter().copied());
        if let Some(by) = reads.find(|&m| !clocks.knows(me, m)) {
            let by = self.who(by);
            return Err(format!("writes what {by} reads at the same time or later"));
        }
        let mut next = place.posts;
        while next != END {
            let post = self.posts[next as usize];
            if !self.left(clocks, me, post) {
                let by = self.who(post.posted);
                return Err(format!("overwrites what {by} posted and what may not have left"));
            }
            next = post.next;
        }
        let place = &mut self.places[at];
        place.read_far.clear();
        place.read = [0; LANES_MAX];
        place.posts = END;
        place.value = value;
        place.written = clocks.now(me);
        Ok(())
    }

    /// A peer's memory can be used once its call is known to have begun.
    fn begun(&self, clocks: &Clocks, me: usize, rank: u32) -> Result<(), String> {
        let own = self.lanes(rank);
        if own.contains(&me) || clocks.begun(me, own.start) {
            return Ok(());
        }
        Err(format!("uses memory of rank {rank}, which may not have begun"))
    }

    /// The next message leaves some time from now.
    pub(super) fn message(&mut self) -> u32 {
        self.received.push(NEVER);
        number(self.received.len() - 1)
    }

    /// `message` reads a place when it leaves.
    pub(super) fn post(&mut self, at: usize, message: u32, posted: Moment) {
        let head = number(self.posts.len());
        let next = std::mem::replace(&mut self.places[at].posts, head);
        self.posts.push(Post { message, posted, left: NEVER, next });
    }

    /// `message` has left, as everyone knows who knows of `moment`.
    pub(super) fn receive(&mut self, message: u32, moment: Moment) {
        self.received[message as usize] = moment;
    }

    /// Lane `me` has waited until what it knows to be posted from a place has left.
    pub(super) fn settle(&mut self, clocks: &Clocks, me: usize, at: usize) {
        let mut next = self.places[at].posts;
        while next != END {
            let post = self.posts[next as usize];
            if clocks.knows(me, post.posted) && !self.left(clocks, me, post) {
                self.posts[next as usize].left = clocks.now(me);
            }
            next = post.next;
        }
    }

    /// Whether `me` can know that a post has left.
    fn left(&self, clocks: &Clocks, me: usize, post: Post) -> bool {
        let known = |moment| moment != NEVER && clocks.knows(me, moment);
        known(self.received[post.message as usize]) || known(post.left)
    }

    /// When `rank` ends, all have done with the stages of all blocks but the last.
    pub(super) fn stages_done(&self, clocks: &Clocks, rank: Rank) -> Result<(), String> {
        let shape = self.map.shape;
        let last = (shape.tiles - 1) / shape.window;
        for place in &self.places[self.map.stage(rank)] {
            let known = |m| self.lanes(rank.0).any(|lane| clocks.knows(lane, m));
            let late = place.read_far.iter().copied().find(|&m| !known(m));
            if let Some(late) = late.filter(|_| place.value.tile / shape.window < last) {
                let by = self.who(late);
                return Err(format!("may end while {by} still loads a stage of an earlier block"));
            }
        }
        Ok(())
    }

    /// Nobody touches the buffers of `rank` once it has ended.
    pub(super) fn left_alone(&self, clocks: &Clocks, rank: Rank) -> Result<(), String> {
        for place in &self.places[self.map.buffers(rank)] {
            let mut touched = place.read_far.iter().copied().chain([place.written]);
            let known = |m| self.lanes(rank.0).any(|lane| clocks.knows(lane, m));
            if let Some(late) = touched.find(|&m| !known(m)) {
                let by = self.who(late);
                return Err(format!("may end while {by} still uses its memory"));
            }
        }
        Ok(())
    }
}
