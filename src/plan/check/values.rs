//! What every chunk holds, and whether every access to it is ordered against every other.
//!
//! A run under one schedule stands for all of them: values can differ between schedules only where two
//! accesses to one place are not ordered by what happens before what, and such a pair is a flaw here.
//! A posted message reads its source at some time between the post and the moment that it is known to
//! have left: when the receiver has it, or when a settling step has run.

use super::super::{Key, LANES_MAX, Plan, Region, Step, Verb, flag};
use super::expr::{Expr, Exprs, NOTHING};
use super::flow::{Watch, senders};
use super::order::{Clocks, Moment, Stamp, number};
use super::structure::buffers;
use super::{Flaw, Site};
use crate::types::{Collective, Rank};

/// What stands in a place or travels in a message.
#[derive(Clone, Copy, Debug)]
struct Value {
    expr: Expr,
    tile: u32,
    finished: bool,
}

const NEVER: Moment = Moment { lane: 0, tick: 0 };
const END: u32 = u32::MAX;

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

/// A message that reads a place when it leaves.
#[derive(Clone, Copy, Debug)]
struct Post {
    message: u32,
    posted: Moment,
    next: u32,
}

#[derive(Debug)]
struct Message {
    stamp: Stamp,
    received: Moment,
    first: u32,
    count: u32,
    wide: bool,
    tile: u32,
    next: u32,
}

/// A step that waited until everything its rank had posted was gone.
#[derive(Clone, Copy, Debug)]
struct Settled {
    moment: Moment,
    /// The own rank's ticks known then: what was posted up to these has left.
    known: [u32; LANES_MAX],
}

#[derive(Clone, Copy, Debug, Default)]
struct Base {
    input: u32,
    output: u32,
    work: u32,
    inputs: u32,
}

/// What a run of the plans does besides filling buffers. Counts are of one tile.
#[derive(Clone, Debug, Default)]
pub(super) struct Cost {
    pub(super) messages: u32,
    pub(super) sent: Vec<u32>,
    pub(super) rounds: u32,
}

/// Watches a run and keeps the books.
#[derive(Debug)]
pub(super) struct Values<'a> {
    plans: &'a [Plan],
    exprs: &'a mut Exprs,
    clocks: Clocks,
    lanes: usize,
    tiles: u32,
    window: u32,
    in_place: bool,
    bases: Vec<Base>,
    places: Vec<Place>,
    messages: Vec<Message>,
    payload: Vec<Value>,
    posts: Vec<Post>,
    /// First and last message under way per link.
    links: Vec<(u32, u32)>,
    settled: Vec<Vec<Settled>>,
    /// Stamps of steps that others wait for: where those of a step begin, and the stamps by tile.
    awaited: Vec<Vec<u32>>,
    stamps: Vec<Option<Stamp>>,
    phases: Vec<Vec<Stamp>>,
    moved: Vec<Value>,
    taken: Vec<u32>,
    parts: Vec<Expr>,
    pub(super) cost: Cost,
}

impl<'a> Values<'a> {
    pub(super) fn new(
        plans: &'a [Plan],
        exprs: &'a mut Exprs,
        (tiles, window): (u32, u32),
        in_place: bool,
    ) -> Self {
        let world = plans.len();
        let lanes = plans.iter().map(Plan::lanes).max().unwrap_or(0);
        let mut values = Self {
            plans,
            exprs,
            clocks: Clocks::new(world, lanes),
            lanes,
            tiles,
            window,
            in_place,
            bases: Vec::new(),
            places: Vec::new(),
            messages: Vec::new(),
            payload: Vec::new(),
            posts: Vec::new(),
            links: vec![(END, END); world * world * lanes],
            settled: vec![Vec::new(); world],
            awaited: Vec::new(),
            stamps: Vec::new(),
            phases: vec![Vec::new(); world],
            moved: Vec::new(),
            taken: Vec::new(),
            parts: Vec::new(),
            cost: Cost {
                sent: vec![0; world],
                ..Cost::default()
            },
        };
        for plan in plans {
            values.lay_out(plan);
            values.note_waits(plan);
        }
        values
    }

    fn lay_out(&mut self, plan: &Plan) {
        let (inputs, outputs) = buffers(&plan.key, plan.key.rank, plan.chunks);
        let empty = Place {
            value: Value {
                expr: NOTHING,
                tile: 0,
                finished: false,
            },
            written: NEVER,
            read: [0; LANES_MAX],
            read_far: Vec::new(),
            posts: END,
        };
        let input = number(self.places.len());
        let output = input + inputs * self.tiles;
        let work = output + outputs * self.tiles;
        self.bases.push(Base {
            input,
            output,
            work,
            inputs,
        });
        let end = work + plan.work_chunks * self.window;
        self.places.resize(end as usize, empty);
        for chunk in 0..inputs {
            for tile in 0..self.tiles {
                let expr = self.exprs.leaf(plan.key.rank.0, chunk);
                let at = (input + chunk * self.tiles + tile) as usize;
                self.places[at].value = Value {
                    expr,
                    tile,
                    finished: false,
                };
            }
        }
    }

    fn note_waits(&mut self, plan: &Plan) {
        let mut awaited = vec![END; plan.steps.len()];
        for step in &plan.steps {
            if step.wait_step != super::super::NO_STEP {
                let lane = usize::from(step.wait_lane);
                let at = usize::from(plan.lane_starts[lane]) + usize::from(step.wait_step);
                if awaited[at] == END {
                    awaited[at] = number(self.stamps.len());
                    self.stamps
                        .resize(self.stamps.len() + self.tiles as usize, None);
                }
            }
        }
        self.awaited.push(awaited);
    }

    /// Where a chunk of a region of `rank` is.
    fn place(&self, rank: u32, region: Region, chunk: u32, tile: u32) -> usize {
        let base = self.bases[rank as usize];
        let at = match region {
            Region::Input | Region::PeerInput => base.input + chunk * self.tiles + tile,
            Region::Output | Region::PeerOutput => match self.shared(rank, chunk) {
                Some(input) => base.input + input * self.tiles + tile,
                None => base.output + chunk * self.tiles + tile,
            },
            Region::Work => base.work + chunk * self.window + tile % self.window,
            Region::None => END,
        };
        at as usize
    }

    /// The Input chunk that is the same memory as this Output chunk when the call works in place.
    fn shared(&self, rank: u32, chunk: u32) -> Option<u32> {
        use Collective as C;
        let inputs = self.bases[rank as usize].inputs;
        let input = match self.plans[rank as usize].key.collective {
            _ if !self.in_place => None,
            C::AllReduce | C::Reduce | C::Broadcast | C::AllToAll | C::AllToAllV => Some(chunk),
            C::AllGather | C::AllGatherV | C::Gather | C::GatherV => (chunk == rank).then_some(0),
            C::ReduceScatter | C::ReduceScatterV | C::Scatter | C::ScatterV => Some(rank),
            C::Barrier | C::Send | C::Recv => None,
        };
        input.filter(|&i| i < inputs)
    }

    /// Whether the region holds the wide form.
    fn wide(&self, region: Region) -> bool {
        region == Region::Work && self.plans[0].key.collective.reduces()
    }

    fn moment(&self, moment: Moment) -> String {
        let (rank, lane) = (
            moment.lane as usize / self.lanes,
            moment.lane as usize % self.lanes,
        );
        format!("lane {lane} of rank {rank}")
    }

    fn read(&mut self, me: usize, rank: u32, at: usize) -> Result<Value, String> {
        let mine = me / self.lanes == rank as usize;
        let place = &self.places[at];
        if !self.clocks.knows(me, place.written) {
            let by = self.moment(place.written);
            return Err(format!("reads what {by} writes at the same time or later"));
        }
        if place.value.expr == NOTHING {
            return Err("reads what nothing was written to".into());
        }
        if !mine && !self.clocks.knows(me, self.start(rank)) {
            return Err(format!(
                "reads memory of rank {rank}, which may not have begun"
            ));
        }
        let now = self.clocks.now(me);
        let place = &mut self.places[at];
        if mine {
            place.read[me % self.lanes] = now.tick;
        } else {
            match place.read_far.iter_mut().find(|m| m.lane == now.lane) {
                Some(before) => *before = now,
                None => place.read_far.push(now),
            }
        }
        Ok(place.value)
    }

    fn write(&mut self, me: usize, rank: u32, at: usize, value: Value) -> Result<(), String> {
        let mine = me / self.lanes == rank as usize;
        if !mine && !self.clocks.knows(me, self.start(rank)) {
            return Err(format!(
                "writes memory of rank {rank}, which may not have begun"
            ));
        }
        let place = &self.places[at];
        if !self.clocks.knows(me, place.written) {
            let by = self.moment(place.written);
            return Err(format!("writes what {by} writes at the same time or later"));
        }
        let near = place
            .read
            .iter()
            .take(self.lanes)
            .enumerate()
            .map(|(lane, &tick)| Moment {
                lane: rank * number(self.lanes) + number(lane),
                tick,
            });
        let mut reads = near.chain(place.read_far.iter().copied());
        if let Some(by) = reads.find(|&m| !self.clocks.knows(me, m)) {
            let by = self.moment(by);
            return Err(format!("writes what {by} reads at the same time or later"));
        }
        let mut next = place.posts;
        while next != END {
            let post = self.posts[next as usize];
            if !self.left(me, rank, post) {
                let by = self.moment(post.posted);
                return Err(format!(
                    "overwrites what {by} posted and what may not have left"
                ));
            }
            next = post.next;
        }
        let written = self.clocks.now(me);
        let place = &mut self.places[at];
        place.read = [0; LANES_MAX];
        place.read_far.clear();
        place.posts = END;
        place.value = value;
        place.written = written;
        Ok(())
    }

    /// The moment a rank begins.
    fn start(&self, rank: u32) -> Moment {
        Moment {
            lane: rank * number(self.lanes),
            tick: 1,
        }
    }

    /// Whether `me` can know that a post of `rank` has left.
    fn left(&self, me: usize, rank: u32, post: Post) -> bool {
        let received = self.messages[post.message as usize].received;
        if received != NEVER && self.clocks.knows(me, received) {
            return true;
        }
        let lane = post.posted.lane as usize % self.lanes;
        let mut settled = self.settled[rank as usize].iter().rev();
        settled.any(|s| s.known[lane] >= post.posted.tick && self.clocks.knows(me, s.moment))
    }

    fn store(&mut self, at: &At<'_>, chunk: u32, value: Value) -> Result<(), String> {
        let region = at.step.target;
        let owner = if region == Region::PeerOutput {
            at.step.from
        } else {
            at.site.rank.0
        };
        self.store_at(at, (owner, region, at.step.target_chunk + chunk), value)
    }

    fn store_at(
        &mut self,
        at: &At<'_>,
        (owner, region, chunk): (u32, Region, u32),
        value: Value,
    ) -> Result<(), String> {
        if !self.wide(region) && !value.finished && !self.exact(value.expr) {
            let (what, region) = (self.exprs.text(value.expr), region.name());
            return Err(format!(
                "rounds the partial result {what} by putting it into {region}"
            ));
        }
        let place = self.place(owner, region, chunk, at.site.tile);
        self.write(at.me, owner, place, value)
    }

    fn exact(&self, expr: Expr) -> bool {
        expr == NOTHING || self.exprs.exact(expr)
    }

    fn load(&mut self, at: &At<'_>, chunk: u32) -> Result<Value, String> {
        let region = at.step.source;
        let peer = matches!(region, Region::PeerInput | Region::PeerOutput);
        let owner = if peer { at.step.from } else { at.site.rank.0 };
        self.load_at(at, (owner, region, at.step.source_chunk + chunk))
    }

    fn load_at(
        &mut self,
        at: &At<'_>,
        (owner, region, chunk): (u32, Region, u32),
    ) -> Result<Value, String> {
        let place = self.place(owner, region, chunk, at.site.tile);
        let value = self
            .read(at.me, owner, place)
            .map_err(|what| format!("{what}: {}[{chunk}]", region.name()))?;
        if value.tile != at.site.tile {
            let (tile, region) = (value.tile, region.name());
            return Err(format!(
                "reads {region}[{chunk}], which still holds tile {tile}"
            ));
        }
        Ok(value)
    }

    fn combine(&mut self, a: Value, b: Value) -> Result<Value, String> {
        if let Some(v) = [a, b].iter().find(|v| v.finished) {
            return Err(format!("combines the finished {}", self.exprs.text(v.expr)));
        }
        Ok(Value {
            expr: self.exprs.combine(a.expr, b.expr)?,
            ..a
        })
    }

    fn finish(&mut self, step: &Step, mut value: Value) -> Result<Value, String> {
        if step.has(flag::PREPARE) {
            value.expr = self.exprs.prepare(value.expr)?;
        }
        if step.has(flag::FINISH) {
            if value.finished {
                return Err(format!("finishes {} twice", self.exprs.text(value.expr)));
            }
            let missing = everyone(self.plans.len()) & !self.exprs.ranks(value.expr);
            if missing != 0 {
                let (what, rank) = (self.exprs.text(value.expr), missing.trailing_zeros());
                return Err(format!("finishes {what}, which lacks rank {rank}"));
            }
            value.finished = true;
        }
        Ok(value)
    }

    fn link(&self, from: u32, to: u32, lane: usize) -> usize {
        (from as usize * self.plans.len() + to as usize) * self.lanes + lane
    }

    /// Posts `self.moved`; `source` is what it reads until it has left.
    fn send(&mut self, at: &At<'_>, source: Option<(Region, u32)>) -> Result<(), String> {
        let wide = at.step.has(flag::WIDE);
        if !wide
            && let Some(v) = self
                .moved
                .iter()
                .find(|v| !v.finished && !self.exact(v.expr))
        {
            let what = self.exprs.text(v.expr);
            return Err(format!(
                "rounds the partial result {what} by sending it in native form"
            ));
        }
        let message = number(self.messages.len());
        self.messages.push(Message {
            stamp: self.clocks.stamp(at.me),
            received: NEVER,
            first: number(self.payload.len()),
            count: number(self.moved.len()),
            wide,
            tile: at.site.tile,
            next: END,
        });
        self.payload.extend_from_slice(&self.moved);
        let link = self.link(at.site.rank.0, at.step.to, at.site.lane);
        match self.links[link] {
            (END, _) => self.links[link] = (message, message),
            (_, ref mut last) => {
                self.messages[*last as usize].next = message;
                *last = message;
            }
        }
        if at.site.tile == 0 {
            self.cost.messages += 1;
            self.cost.sent[at.site.rank.index()] += at.step.chunks;
        }
        let Some((region, first)) = source else {
            return Ok(());
        };
        let posted = self.clocks.now(at.me);
        for chunk in first..first + at.step.chunks {
            let place = self.place(at.site.rank.0, region, chunk, at.site.tile);
            let next = self.places[place].posts;
            self.places[place].posts = number(self.posts.len());
            self.posts.push(Post {
                message,
                posted,
                next,
            });
        }
        Ok(())
    }

    /// Takes the next message of `from`; returns where its values begin.
    fn receive(&mut self, at: &At<'_>, from: u32) -> Result<u32, String> {
        let link = self.link(from, at.site.rank.0, at.site.lane);
        let (number, last) = self.links[link];
        let message = &mut self.messages[number as usize];
        self.links[link] = if number == last {
            (END, END)
        } else {
            (message.next, last)
        };
        self.clocks.join(at.me, &message.stamp, 1);
        self.clocks.release(&message.stamp);
        message.received = self.clocks.now(at.me);
        let form = |wide| if wide { "wide" } else { "native" };
        if message.wide != at.step.has(flag::WIDE) {
            let (is, takes) = (form(message.wide), form(!message.wide));
            return Err(format!(
                "the message of rank {from} is {is}, the step takes {takes}"
            ));
        }
        if message.count != at.step.chunks || message.tile != at.site.tile {
            return Err(format!(
                "the message of rank {from} has {} chunks of tile {}, the step takes {} of {}",
                message.count, message.tile, at.step.chunks, at.site.tile
            ));
        }
        Ok(message.first)
    }

    fn fold(&mut self, at: &At<'_>) -> Result<(), String> {
        let (plan, step, own) = (&self.plans[at.site.rank.index()], at.step, at.site.rank);
        let group = &plan.groups[step.from as usize];
        let direct = step.source == Region::PeerInput;
        self.taken.clear();
        for from in senders(plan, step) {
            let first = self.receive(at, from)?;
            self.taken.push(first);
        }
        for chunk in 0..step.chunks {
            self.parts.clear();
            let mut taken = 0;
            for &member in group {
                let value = if direct {
                    self.load_at(at, (member.0, Region::PeerInput, step.source_chunk + chunk))?
                } else if member == own {
                    self.load(at, chunk)?
                } else {
                    taken += 1;
                    self.payload[(self.taken[taken - 1] + chunk) as usize]
                };
                if value.finished {
                    return Err(format!(
                        "combines the finished {}",
                        self.exprs.text(value.expr)
                    ));
                }
                self.parts.push(value.expr);
            }
            let expr = self.exprs.tree(&self.parts)?;
            let value = Value {
                expr,
                tile: at.site.tile,
                finished: false,
            };
            let value = self.finish(step, value)?;
            self.store(at, chunk, value)?;
            let far = group
                .iter()
                .filter(|&&r| r != own && step.has(flag::SPREAD));
            for &member in far {
                self.store_at(
                    at,
                    (member.0, Region::PeerOutput, step.target_chunk + chunk),
                    value,
                )?;
            }
            self.count_far(at, &group[..], direct, step.has(flag::SPREAD));
        }
        Ok(())
    }

    /// Loads from and stores to peers' memory count as chunks moved.
    fn count_far(&mut self, at: &At<'_>, group: &[Rank], loads: bool, stores: bool) {
        let times = number(group.len() - 1) * (u32::from(loads) + u32::from(stores));
        self.cost.sent[at.site.rank.index()] += times;
    }

    fn run(&mut self, at: &At<'_>) -> Result<(), String> {
        let step = at.step;
        self.moved.clear();
        let barrier = self.plans[0].key.collective == Collective::Barrier;
        match step.verb {
            Verb::Post => {
                let stamp = self.clocks.stamp(at.me);
                self.phases[at.site.rank.index()].push(stamp);
            }
            Verb::Await => self.await_phase(at),
            _ if barrier => {
                if step.receives() {
                    self.receive(at, step.from)?;
                }
                if step.sends() {
                    self.moved.resize(
                        step.chunks as usize,
                        Value {
                            expr: NOTHING,
                            tile: at.site.tile,
                            finished: false,
                        },
                    );
                    self.send(at, None)?;
                }
            }
            Verb::Fold => self.fold(at)?,
            Verb::Copy => {
                for chunk in 0..step.chunks {
                    let value = self.load(at, chunk)?;
                    let value = self.finish(step, value)?;
                    self.store(at, chunk, value)?;
                }
                if step.from < number(self.plans.len()) {
                    self.cost.sent[at.site.rank.index()] += step.chunks;
                }
            }
            _ => self.exchange(at)?,
        }
        Ok(())
    }

    fn await_phase(&mut self, at: &At<'_>) {
        let phase = at.step.source_chunk as usize;
        let from = at.step.from as usize;
        if phase == 0 {
            self.clocks
                .join_start(at.me, from * self.lanes..(from + 1) * self.lanes);
        } else {
            let stamp = self.phases[from][phase - 1];
            self.clocks.join(at.me, &stamp, 1);
        }
    }

    /// `Send`, `Recv`, `Reduce` and the fused verbs.
    fn exchange(&mut self, at: &At<'_>) -> Result<(), String> {
        let step = at.step;
        let first = if step.receives() {
            self.receive(at, step.from)?
        } else {
            0
        };
        for chunk in 0..step.chunks {
            let value = match step.verb {
                Verb::Send => self.load(at, chunk)?,
                Verb::Recv | Verb::RecvCopySend => self.payload[(first + chunk) as usize],
                Verb::Reduce => {
                    let target = (at.site.rank.0, step.target, step.target_chunk + chunk);
                    let (a, b) = (self.load(at, chunk)?, self.load_at(at, target)?);
                    self.combine(a, b)?
                }
                _ => {
                    let (a, b) = (
                        self.load(at, chunk)?,
                        self.payload[(first + chunk) as usize],
                    );
                    if step.has(flag::INCOMING_FIRST) {
                        self.combine(b, a)?
                    } else {
                        self.combine(a, b)?
                    }
                }
            };
            let value = self.finish(step, value)?;
            if step.target != Region::None {
                self.store(at, chunk, value)?;
            }
            self.moved.push(value);
        }
        match step.verb {
            Verb::Send => self.send(at, Some((step.source, step.source_chunk))),
            Verb::RecvCopySend => self.send(at, Some((step.target, step.target_chunk))),
            Verb::RecvReduceSend => self.send(at, None),
            _ => Ok(()),
        }
    }

    fn settle(&mut self, at: &At<'_>) {
        let first = at.me - at.site.lane;
        let mut known = [0; LANES_MAX];
        for (lane, tick) in known.iter_mut().enumerate().take(self.lanes) {
            *tick = self.clocks.known(at.me, first + lane);
        }
        let moment = self.clocks.now(at.me);
        self.settled[at.site.rank.index()].push(Settled { moment, known });
    }

    /// After the run: every Output holds what the call is for. Returns whether all reductions are in
    /// tree order.
    pub(super) fn finished(&mut self) -> Result<bool, Flaw> {
        let mut ordered = true;
        for (index, plan) in self.plans.iter().enumerate() {
            let rank = Rank::at(index);
            self.left_alone(rank)
                .map_err(|what| Flaw::of_rank(rank, what))?;
            if plan.key.collective == Collective::Barrier {
                self.heard(rank).map_err(|what| Flaw::of_rank(rank, what))?;
                continue;
            }
            let (_, outputs) = buffers(&plan.key, rank, plan.chunks);
            for chunk in 0..outputs {
                for tile in 0..self.tiles {
                    let place = self.place(rank.0, Region::Output, chunk, tile);
                    let value = self.places[place].value;
                    ordered &= self.expected(&plan.key, chunk, value).map_err(|expected| {
                        let holds = self.exprs.text(value.expr);
                        let form = if value.finished { "" } else { " (not finished)" };
                        let what = format!(
                            "ends with {holds}{form} in output[{chunk}] of tile {tile}, not {expected}"
                        );
                        Flaw::of_rank(rank, what)
                    })?;
                }
            }
        }
        Ok(ordered)
    }

    /// Whether a result is right; and if so, in tree order.
    fn expected(&mut self, key: &Key, chunk: u32, value: Value) -> Result<bool, String> {
        use Collective as C;
        let from = |rank: u32, chunk: u32| {
            let expected = self.exprs.leaf(rank, chunk);
            if value.expr == expected && !value.finished {
                return Ok(true);
            }
            Err(self.exprs.text(expected))
        };
        let source = match key.collective {
            C::AllReduce | C::Reduce => chunk,
            C::ReduceScatter | C::ReduceScatterV => key.rank.0,
            C::Broadcast => return from(key.root.0, chunk),
            C::AllGather | C::AllGatherV | C::Gather | C::GatherV => return from(chunk, 0),
            C::Scatter | C::ScatterV => return from(key.root.0, key.rank.0),
            C::AllToAll | C::AllToAllV => return from(chunk, key.rank.0),
            C::Recv => return from(key.root.0, 0),
            C::Barrier | C::Send => return Ok(true),
        };
        let right = value.expr != NOTHING
            && value.finished
            && self.exprs.ranks(value.expr) == everyone(self.plans.len())
            && self.exprs.chunk(value.expr) == source
            && self.exprs.prepared(value.expr) == key.prepared;
        if !right {
            return Err(format!("chunk {source} of every rank, finished"));
        }
        let mut leaves = Vec::with_capacity(self.plans.len());
        for rank in 0..key.world {
            let leaf = self.exprs.leaf(rank, source);
            leaves.push(if key.prepared {
                self.exprs.prepare(leaf)?
            } else {
                leaf
            });
        }
        Ok(value.expr == self.exprs.tree(&leaves)?)
    }

    /// Nobody touches the rank's buffers once it has ended.
    fn left_alone(&mut self, rank: Rank) -> Result<(), String> {
        let lanes = rank.index() * self.lanes..(rank.index() + 1) * self.lanes;
        let base = self.bases[rank.index()];
        for at in base.input as usize..base.work as usize {
            let place = &self.places[at];
            let mut touched = place.read_far.iter().copied().chain([place.written]);
            let late = touched.find(|&m| !lanes.clone().any(|lane| self.clocks.knows(lane, m)));
            if let Some(by) = late {
                let by = self.moment(by);
                return Err(format!("may end while {by} still uses its memory"));
            }
        }
        Ok(())
    }

    /// The end of a barrier: every rank is known to have begun.
    fn heard(&self, rank: Rank) -> Result<(), String> {
        let lanes = rank.index() * self.lanes..(rank.index() + 1) * self.lanes;
        for other in 0..number(self.plans.len()) {
            let start = self.start(other);
            if other != rank.0 && !lanes.clone().any(|lane| self.clocks.knows(lane, start)) {
                return Err(format!(
                    "leaves the barrier before it knows that rank {other} came"
                ));
            }
        }
        Ok(())
    }
}

/// A step as it runs.
struct At<'s> {
    site: Site,
    step: &'s Step,
    /// The lane, numbered through the world.
    me: usize,
}

fn everyone(world: usize) -> u128 {
    u128::MAX >> (128 - world)
}

impl Watch for Values<'_> {
    fn step(&mut self, site: Site, step: &Step) -> Result<(), Flaw> {
        let me = site.rank.index() * self.lanes + site.lane;
        let at = At { site, step, me };
        self.clocks.tick(me);
        let plan = &self.plans[site.rank.index()];
        let start = |lane: usize| usize::from(plan.lane_starts[lane]);
        if step.wait_step != super::super::NO_STEP && step.wait_lane != step.lane {
            let waited = start(usize::from(step.wait_lane)) + usize::from(step.wait_step);
            let first = self.awaited[site.rank.index()][waited];
            let stamp = self.stamps[(first + site.tile) as usize];
            self.clocks
                .join(me, &stamp.expect("the step it waits for has run"), 0);
        }
        if step.has(flag::SETTLE) {
            self.settle(&at);
        }
        self.run(&at).map_err(|what| Flaw::at(site, step, what))?;
        let own = self.awaited[site.rank.index()][start(site.lane) + site.index];
        if own != END {
            self.stamps[(own + site.tile) as usize] = Some(self.clocks.stamp(me));
        }
        if site.tile < self.window {
            self.cost.rounds = self.cost.rounds.max(self.clocks.hops(me));
        }
        Ok(())
    }
}
