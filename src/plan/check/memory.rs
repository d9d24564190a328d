//! The buffers of all ranks, chunk by chunk and tile by tile, and who may touch them when.

use std::ops::Range;

use super::super::{LANES_MAX, Plan, Region};
use super::expr::{Expr, Exprs, NOTHING};
use super::order::{Clocks, Moment, number};
use super::structure::buffers;
use crate::types::{Collective, Rank};

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
    next: u32,
}

/// A step that waited until everything its rank had posted was gone.
#[derive(Clone, Copy, Debug)]
struct Settled {
    moment: Moment,
    /// The own rank's ticks known then: what was posted up to these has left.
    known: [u32; LANES_MAX],
}

/// Where the places of a rank begin.
#[derive(Clone, Copy, Debug)]
struct Base {
    input: u32,
    output: u32,
    work: u32,
    inputs: u32,
}

/// The shape of a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) lanes: usize,
    pub(super) tiles: u32,
    pub(super) window: u32,
    pub(super) in_place: bool,
}

#[derive(Debug)]
pub(super) struct Memory<'a> {
    plans: &'a [Plan],
    shape: Shape,
    bases: Vec<Base>,
    places: Vec<Place>,
    posts: Vec<Post>,
    /// When each message was received.
    received: Vec<Moment>,
    settled: Vec<Vec<Settled>>,
}

impl<'a> Memory<'a> {
    /// All Inputs filled, nothing else.
    pub(super) fn new(plans: &'a [Plan], shape: Shape, exprs: &Exprs) -> Self {
        let mut memory = Self {
            plans,
            shape,
            bases: Vec::new(),
            places: Vec::new(),
            posts: Vec::new(),
            received: Vec::new(),
            settled: vec![Vec::new(); plans.len()],
        };
        for plan in plans {
            memory.lay_out(plan, exprs);
        }
        memory
    }

    fn lay_out(&mut self, plan: &Plan, exprs: &Exprs) {
        let Shape { tiles, window, .. } = self.shape;
        let (inputs, outputs) = buffers(&plan.key, plan.key.rank, plan.chunks);
        let input = number(self.places.len());
        let output = input + inputs * tiles;
        let work = output + outputs * tiles;
        self.bases.push(Base { input, output, work, inputs });
        for chunk in 0..inputs {
            let expr = exprs.leaf(plan.key.rank.0, chunk);
            let filled = (0..tiles).map(|tile| Value { expr, tile, finished: false });
            self.places.extend(filled.map(Place::holding));
        }
        let end = work + plan.work_chunks * window;
        let empty = Value { expr: NOTHING, tile: 0, finished: false };
        self.places.resize(end as usize, Place::holding(empty));
    }

    /// Where a chunk of a region of `rank` is.
    pub(super) fn place(&self, rank: u32, region: Region, chunk: u32, tile: u32) -> usize {
        let base = self.bases[rank as usize];
        let Shape { tiles, window, .. } = self.shape;
        let at = match region {
            Region::Input | Region::PeerInput => base.input + chunk * tiles + tile,
            Region::Output | Region::PeerOutput => match self.shared(rank, chunk) {
                Some(input) => base.input + input * tiles + tile,
                None => base.output + chunk * tiles + tile,
            },
            Region::Work => base.work + chunk * window + tile % window,
            Region::None => END,
        };
        at as usize
    }

    /// The Input chunk that is the same memory as this Output chunk when the call works in place.
    fn shared(&self, rank: u32, chunk: u32) -> Option<u32> {
        use Collective as C;
        let inputs = self.bases[rank as usize].inputs;
        let input = match self.plans[rank as usize].key.collective {
            _ if !self.shape.in_place => None,
            C::AllReduce | C::Reduce | C::Broadcast | C::AllToAll | C::AllToAllV => Some(chunk),
            C::AllGather | C::AllGatherV | C::Gather | C::GatherV => (chunk == rank).then_some(0),
            C::ReduceScatter | C::ReduceScatterV | C::Scatter | C::ScatterV => Some(rank),
            C::Barrier | C::Send | C::Recv => None,
        };
        input.filter(|&i| i < inputs)
    }

    /// What stands there now, whoever looks.
    pub(super) fn holds(&self, at: usize) -> Value {
        self.places[at].value
    }

    fn lanes(&self, rank: u32) -> Range<usize> {
        let first = rank as usize * self.shape.lanes;
        first..first + self.shape.lanes
    }

    fn who(&self, moment: Moment) -> String {
        let (lane, lanes) = (moment.lane as usize, self.shape.lanes);
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
            if !self.left(clocks, me, rank, post) {
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
        self.posts.push(Post { message, posted, next });
    }

    /// `message` has left, as everyone knows who knows of `moment`.
    pub(super) fn receive(&mut self, message: u32, moment: Moment) {
        self.received[message as usize] = moment;
    }

    /// Everything that lane `me` of `rank` knows to be posted by its rank has left.
    pub(super) fn settle(&mut self, clocks: &Clocks, me: usize, rank: Rank) {
        let mut known = [0; LANES_MAX];
        for (tick, lane) in known.iter_mut().zip(self.lanes(rank.0)) {
            *tick = clocks.known(me, lane);
        }
        self.settled[rank.index()].push(Settled { moment: clocks.now(me), known });
    }

    /// Whether `me` can know that a post of `rank` has left.
    fn left(&self, clocks: &Clocks, me: usize, rank: u32, post: Post) -> bool {
        let received = self.received[post.message as usize];
        if received != NEVER && clocks.knows(me, received) {
            return true;
        }
        let lane = post.posted.lane as usize % self.shape.lanes;
        let mut settled = self.settled[rank as usize].iter().rev();
        settled.any(|s| s.known[lane] >= post.posted.tick && clocks.knows(me, s.moment))
    }

    /// Nobody touches the buffers of `rank` once it has ended.
    pub(super) fn left_alone(&self, clocks: &Clocks, rank: Rank) -> Result<(), String> {
        let base = self.bases[rank.index()];
        for place in &self.places[base.input as usize..base.work as usize] {
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
