//! What every chunk holds, and whether every access to it is ordered against every other.
//!
//! A run under one schedule stands for all of them: values can differ between schedules only where
//! two accesses to one place are not ordered by what happens before what, and such a pair is a flaw
//! here. A posted message reads its source at some time between the post and the moment that it is
//! known to have left: when the receiver has it, or when a step has settled that writes there.

use super::super::{Key, NO_STEP, Plan, Region, Step, Verb, flag};
use super::expr::{Expr, Exprs, NOTHING};
use super::flow::{Watch, senders};
use super::memory::{END, Memory, Value};
use super::order::{Clocks, Stamp, number};
use super::places::{Places, Shape};
use super::structure::buffers;
use super::{Flaw, Site};
use crate::types::{Collective, Rank};

#[derive(Debug)]
struct Message {
    stamp: Stamp,
    first: u32,
    count: u32,
    wide: bool,
    stored: bool,
    tile: u32,
    /// It has no elements.
    absent: bool,
    next: u32,
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
    memory: Memory<'a>,
    messages: Vec<Message>,
    payload: Vec<Value>,
    /// First and last message under way per link.
    links: Vec<(u32, u32)>,
    /// Stamps of steps that others wait for: where those of a step begin, and the stamps by tile.
    awaited: Vec<Vec<u32>>,
    stamps: Vec<Option<Stamp>>,
    phases: Vec<Vec<Stamp>>,
    places: &'a Places<'a>,
    moved: Vec<Value>,
    taken: Vec<u32>,
    parts: Vec<Expr>,
    /// The sum of each chunk in tree order, once it was asked for.
    sums: Vec<Expr>,
    /// Parts from this one on have no elements in the last tile.
    parts_full: u32,
    pub(super) cost: Cost,
}

impl<'a> Values<'a> {
    pub(super) fn new(plans: &'a [Plan], places: &'a Places<'a>, exprs: &'a mut Exprs) -> Self {
        let world = plans.len();
        let Shape { lanes, tiles, window, .. } = places.shape;
        let memory = Memory::new(plans, places, exprs);
        let mut values = Self {
            plans,
            exprs,
            clocks: Clocks::new(world, lanes),
            lanes,
            tiles,
            window,
            memory,
            messages: Vec::new(),
            payload: Vec::new(),
            links: vec![(END, END); world * world * lanes],
            awaited: Vec::new(),
            stamps: Vec::new(),
            phases: vec![Vec::new(); world],
            places,
            moved: Vec::new(),
            taken: Vec::new(),
            parts: Vec::new(),
            sums: Vec::new(),
            parts_full: u32::MAX,
            cost: Cost { sent: vec![0; world], ..Cost::default() },
        };
        for plan in plans {
            values.note_waits(plan);
        }
        values
    }

    /// The same call with parts from `full` on so short that they have no elements in the last
    /// tile: messages without elements are not sent (but for those of the first tile), so nothing
    /// can be known from them.
    pub(super) fn short(self, full: u32) -> Self {
        Self { parts_full: full, ..self }
    }

    /// Gives every step that another waits for a place for its stamps.
    fn note_waits(&mut self, plan: &Plan) {
        let mut awaited = vec![END; plan.steps.len()];
        for step in &plan.steps {
            if step.wait_step != NO_STEP {
                let lane = usize::from(step.wait_lane);
                let at = usize::from(plan.lane_starts[lane]) + usize::from(step.wait_step);
                if awaited[at] == END {
                    awaited[at] = number(self.stamps.len());
                    self.stamps.resize(self.stamps.len() + self.tiles as usize, None);
                }
            }
        }
        self.awaited.push(awaited);
    }

    /// Whether the region holds the wide form.
    fn wide(&self, region: Region) -> bool {
        region == Region::Work && self.plans[0].key.collective.reduces()
    }

    fn store(&mut self, at: &At<'_>, chunk: u32, value: Value) -> Result<(), String> {
        let region = at.step.target;
        let owner = if region == Region::PeerOutput { at.step.from } else { at.site.rank.0 };
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
            return Err(format!("rounds the partial result {what} by putting it into {region}"));
        }
        self.fits(owner, region, chunk, value)?;
        if region == Region::Stage && at.site.tile >= self.window {
            self.all_have_begun(at)?;
        }
        let place = self.memory.place(owner, region, chunk, at.site.tile);
        if self.empty(owner, region, chunk, at.site.tile) {
            self.memory.pretend(place, value);
            return Ok(());
        }
        self.memory.write(&self.clocks, at.me, (owner, place), value)
    }

    /// Who stages its second block overwrites what the call before may have left there.
    fn all_have_begun(&self, at: &At<'_>) -> Result<(), String> {
        match (0..self.plans.len()).find(|rank| !self.clocks.begun(at.me, rank * self.lanes)) {
            None => Ok(()),
            Some(rank) => Err(format!("stages more than a block before rank {rank} has begun")),
        }
    }

    /// Whether a copy has nothing to do for a chunk: it would change neither place nor value.
    fn still(&self, at: &At<'_>, chunk: u32) -> bool {
        let (step, rank) = (at.step, at.site.rank.0);
        let place = |region, first| self.memory.place(rank, region, first + chunk, at.site.tile);
        let own = |region| matches!(region, Region::Input | Region::Output | Region::Work);
        own(step.source)
            && own(step.target)
            && !step.has(flag::FINISH | flag::PREPARE)
            && place(step.source, step.source_chunk) == place(step.target, step.target_chunk)
    }

    /// The step has waited until nothing posted reads what it is about to write.
    fn settle(&mut self, at: &At<'_>) {
        let step = at.step;
        if !step.writes_here() {
            return;
        }
        for chunk in step.target_chunk..step.target_chunk + step.chunks {
            let place = self.memory.place(at.site.rank.0, step.target, chunk, at.site.tile);
            self.memory.settle(&self.clocks, at.me, place);
        }
    }

    /// Whether a chunk has no elements in a tile.
    fn empty(&self, owner: u32, region: Region, chunk: u32, tile: u32) -> bool {
        let part = part(&self.plans[owner as usize], region, chunk);
        tile > 0 && tile + 1 == self.tiles && part.is_some_and(|part| part >= self.parts_full)
    }

    /// Whether a value is as long as the chunk it is put into: scratch chunks are as long as those
    /// of the same number.
    fn fits(&self, owner: u32, region: Region, chunk: u32, value: Value) -> Result<(), String> {
        use Collective as C;
        let plan = &self.plans[owner as usize];
        let own = match plan.key.collective {
            C::AllGatherV | C::GatherV => self.exprs.ranks(value.expr).trailing_zeros(),
            _ => self.exprs.chunk(value.expr),
        };
        match part(plan, region, chunk) {
            Some(part) if part != own => {
                let (what, region) = (self.exprs.text(value.expr), region.name());
                Err(format!("puts {what} into {region}[{chunk}], which has another length"))
            }
            _ => Ok(()),
        }
    }

    fn exact(&self, expr: Expr) -> bool {
        expr == NOTHING || self.exprs.exact(expr)
    }

    fn load(&mut self, at: &At<'_>, chunk: u32) -> Result<Value, String> {
        let region = at.step.source;
        let owner = if region.is_peer() { at.step.from } else { at.site.rank.0 };
        self.load_at(at, (owner, region, at.step.source_chunk + chunk))
    }

    fn load_at(
        &mut self,
        at: &At<'_>,
        (owner, region, chunk): (u32, Region, u32),
    ) -> Result<Value, String> {
        let place = self.memory.place(owner, region, chunk, at.site.tile);
        if self.empty(owner, region, chunk, at.site.tile) {
            return Ok(self.memory.holds(place));
        }
        let value = self
            .memory
            .read(&self.clocks, at.me, (owner, place))
            .map_err(|what| format!("{what}: {}[{chunk}]", region.name()))?;
        if value.tile != at.site.tile {
            let (tile, region) = (value.tile, region.name());
            return Err(format!("reads {region}[{chunk}], which still holds tile {tile}"));
        }
        Ok(value)
    }

    fn combine(&mut self, a: Value, b: Value) -> Result<Value, String> {
        if let Some(v) = [a, b].iter().find(|v| v.finished) {
            return Err(format!("combines the finished {}", self.exprs.text(v.expr)));
        }
        Ok(Value { expr: self.exprs.combine(a.expr, b.expr)?, ..a })
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
        let wide = at.step.sends_wide();
        if !wide && let Some(v) = self.moved.iter().find(|v| !v.finished && !self.exact(v.expr)) {
            let what = self.exprs.text(v.expr);
            return Err(format!("rounds the partial result {what} by sending it in native form"));
        }
        let message = self.memory.message();
        let read = match at.step.verb {
            _ if at.step.sends_target() => (at.step.target, at.step.target_chunk),
            _ => (at.step.source, at.step.source_chunk),
        };
        let empty = |chunk| self.empty(at.site.rank.0, read.0, chunk, at.site.tile);
        let absent = (read.1..read.1 + at.step.chunks).all(empty);
        self.messages.push(Message {
            stamp: self.clocks.stamp(at.me),
            first: number(self.payload.len()),
            count: number(self.moved.len()),
            wide,
            stored: at.step.has(flag::STORED),
            tile: at.site.tile,
            absent,
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
            if self.empty(at.site.rank.0, region, chunk, at.site.tile) {
                continue;
            }
            let place = self.memory.place(at.site.rank.0, region, chunk, at.site.tile);
            self.memory.post(place, message, posted);
        }
        Ok(())
    }

    /// Takes the next message of `from`; returns where its values begin.
    fn receive(&mut self, at: &At<'_>, from: u32) -> Result<u32, String> {
        let link = self.link(from, at.site.rank.0, at.site.lane);
        let (number, last) = self.links[link];
        let message = &mut self.messages[number as usize];
        self.links[link] = if number == last { (END, END) } else { (message.next, last) };
        if !message.absent {
            self.clocks.join(at.me, &message.stamp, 1);
        }
        self.clocks.release(&message.stamp);
        self.memory.receive(number, self.clocks.now(at.me));
        let form = |wide| if wide { "wide" } else { "native" };
        if message.wide != at.step.has(flag::WIDE) {
            let (is, takes) = (form(message.wide), form(!message.wide));
            return Err(format!("the message of rank {from} is {is}, the step takes {takes}"));
        }
        if message.stored != matches!(at.step.verb, Verb::Recv | Verb::RecvCopySend) {
            let takes = if message.stored { "to be stored" } else { "to be folded" };
            return Err(format!("the message of rank {from} is {takes}, and is not"));
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
        let staged = step.source == Region::PeerStage;
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
                } else if staged {
                    let own = if member == own { Region::Input } else { Region::PeerStage };
                    self.load_at(at, (member.0, own, step.source_chunk + chunk))?
                } else if member == own {
                    self.load(at, chunk)?
                } else {
                    taken += 1;
                    self.payload[(self.taken[taken - 1] + chunk) as usize]
                };
                if value.finished {
                    return Err(format!("combines the finished {}", self.exprs.text(value.expr)));
                }
                self.parts.push(value.expr);
            }
            let expr = self.exprs.tree(&self.parts)?;
            let value = Value { expr, tile: at.site.tile, finished: false };
            let value = self.finish(step, value)?;
            self.store(at, chunk, value)?;
            if staged && step.has(flag::SPREAD) {
                self.store_at(at, (own.0, Region::Stage, step.source_chunk + chunk), value)?;
            }
            let far = group.iter().filter(|&&r| r != own && direct && step.has(flag::SPREAD));
            for &member in far {
                self.store_at(
                    at,
                    (member.0, Region::PeerOutput, step.target_chunk + chunk),
                    value,
                )?;
            }
            self.count_far(at, &group[..], direct || staged, direct && step.has(flag::SPREAD));
        }
        Ok(())
    }

    /// Loads from and stores to peers' memory count as chunks moved.
    fn count_far(&mut self, at: &At<'_>, group: &[Rank], loads: bool, stores: bool) {
        let times = number(group.len() - 1) * (u32::from(loads) + u32::from(stores));
        if at.site.tile > 0 {
            return;
        }
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
                        Value { expr: NOTHING, tile: at.site.tile, finished: false },
                    );
                    self.send(at, None)?;
                }
            }
            Verb::Fold => self.fold(at)?,
            Verb::Copy => {
                for chunk in 0..step.chunks {
                    if self.still(at, chunk) {
                        continue;
                    }
                    let value = self.load(at, chunk)?;
                    let value = self.finish(step, value)?;
                    self.store(at, chunk, value)?;
                }
                if step.from < number(self.plans.len()) && at.site.tile == 0 {
                    self.cost.sent[at.site.rank.index()] += step.chunks;
                }
            }
            _ => self.exchange(at)?,
        }
        Ok(())
    }

    fn await_phase(&mut self, at: &At<'_>) {
        let from = at.step.from as usize;
        let number = self.places.posted(at.step.from, at.step.source_chunk, at.site.tile);
        if number == 0 {
            self.clocks.join_start(at.me, from * self.lanes..(from + 1) * self.lanes);
        } else {
            let stamp = self.phases[from][number as usize - 1];
            self.clocks.join(at.me, &stamp, 1);
        }
    }

    /// `Send`, `Recv`, `Reduce` and the fused verbs.
    fn exchange(&mut self, at: &At<'_>) -> Result<(), String> {
        let step = at.step;
        let first = if step.receives() { self.receive(at, step.from)? } else { 0 };
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
                    let (a, b) = (self.load(at, chunk)?, self.payload[(first + chunk) as usize]);
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
            _ if step.sends_target() => self.send(at, Some((step.target, step.target_chunk))),
            Verb::RecvReduceSend => self.send(at, None),
            _ => Ok(()),
        }
    }

    /// After the run: every Output holds what the call is for. Returns whether all reductions are
    /// in tree order.
    pub(super) fn finished(&mut self) -> Result<bool, Flaw> {
        let mut ordered = true;
        for (index, plan) in self.plans.iter().enumerate() {
            let rank = Rank::at(index);
            let flaw = |what| Flaw::of_rank(rank, what);
            self.memory.left_alone(&self.clocks, rank).map_err(flaw)?;
            self.memory.stages_done(&self.clocks, rank).map_err(flaw)?;
            if plan.key.collective == Collective::Barrier {
                self.heard(rank).map_err(|what| Flaw::of_rank(rank, what))?;
                continue;
            }
            let (_, outputs) = buffers(&plan.key, rank, plan.chunks);
            for chunk in 0..outputs {
                for tile in 0..self.tiles {
                    ordered &= self.ends_right(&plan.key, chunk, tile)?;
                }
            }
        }
        Ok(ordered)
    }

    /// Whether a chunk of Output is in tree order; a flaw if it is not right.
    fn ends_right(&mut self, key: &Key, chunk: u32, tile: u32) -> Result<bool, Flaw> {
        let place = self.memory.place(key.rank.0, Region::Output, chunk, tile);
        let value = self.memory.holds(place);
        self.expected(key, chunk, value).map_err(|expected| {
            let holds = self.exprs.text(value.expr);
            let form = if value.finished { "" } else { " (not finished)" };
            let place = format!("output[{chunk}] of tile {tile}");
            Flaw::of_rank(key.rank, format!("ends with {holds}{form} in {place}, not {expected}"))
        })
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
        Ok(value.expr == self.sum_in_order(key, source)?)
    }

    /// Chunk `chunk` of every rank, summed in tree order.
    fn sum_in_order(&mut self, key: &Key, chunk: u32) -> Result<Expr, String> {
        let at = chunk as usize;
        if self.sums.len() <= at {
            self.sums.resize(at + 1, NOTHING);
        }
        if self.sums[at] == NOTHING {
            self.parts.clear();
            for rank in 0..key.world {
                let leaf = self.exprs.leaf(rank, chunk);
                self.parts.push(if key.prepared { self.exprs.prepare(leaf)? } else { leaf });
            }
            self.sums[at] = self.exprs.tree(&self.parts)?;
        }
        Ok(self.sums[at])
    }

    /// The end of a barrier: every rank is known to have begun.
    fn heard(&self, rank: Rank) -> Result<(), String> {
        let lanes = rank.index() * self.lanes..(rank.index() + 1) * self.lanes;
        let unheard = (0..self.plans.len()).find(|other| {
            let start = other * self.lanes;
            *other != rank.index() && !lanes.clone().any(|lane| self.clocks.begun(lane, start))
        });
        match unheard {
            Some(other) => {
                Err(format!("leaves the barrier before it knows that rank {other} came"))
            }
            None => Ok(()),
        }
    }
}

/// The part of the call that a chunk is, where parts may differ in length and the plan must not mix
/// them: a chunk of a buffer-wide call, the block of a rank in a call with counts.
fn part(plan: &Plan, region: Region, chunk: u32) -> Option<u32> {
    use Collective as C;
    let own = Some(plan.key.rank.0);
    match (plan.key.collective, region) {
        (C::AllReduce | C::Reduce | C::Broadcast, _) => Some(chunk % plan.chunks),
        (
            C::AllGatherV | C::GatherV,
            Region::Input | Region::PeerInput | Region::Stage | Region::PeerStage,
        ) => own,
        (C::ReduceScatterV | C::ScatterV, Region::Output | Region::PeerOutput) => own,
        (C::AllGatherV | C::GatherV | C::ReduceScatterV | C::ScatterV, _) => Some(chunk),
        _ => None,
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
        if step.wait_step != NO_STEP && step.wait_lane != step.lane {
            let waited = start(usize::from(step.wait_lane)) + usize::from(step.wait_step);
            let first = self.awaited[site.rank.index()][waited];
            let stamp = self.stamps[(first + site.tile) as usize];
            self.clocks.join(me, &stamp.expect("the step it waits for has run"), 0);
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
