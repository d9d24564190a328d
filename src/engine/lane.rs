//! One lane of a running plan: where it stands, and one attempt to move on.
//!
//! A lane's position is (block, step, tile of the block, chunk of the range, elements done).
//! Positions grow in that order, so "step s has run on tile t" is a comparison.

use crate::call::{Call, Head};
use crate::engine::bind::{Bound, Operand, PeerBuffers};
use crate::engine::link::{Board, Fabric, Rx, Tx};
use crate::engine::wires::{Outgoing, Payload, Wires, send_head};
use crate::error::{Code, Error, Result};
use crate::kernel::{Form, Source};
use crate::plan::{NO_STEP, Plan, Region, Step, Verb, flag};
use crate::types::Collective;

/// The most elements' bytes a direct step handles before it looks up again.
const SLICE_BYTES: usize = 1 << 20;

/// Phases a direct plan may have; numbers on the board are `turn * PHASES + phase`.
pub(crate) const PHASES: u64 = 8;

/// Where a lane stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cursor {
    pub(crate) block: u64,
    pub(crate) step: u16,
    /// Tile inside the block.
    pub(crate) tile: u64,
    /// Chunk inside the step's range.
    pub(crate) chunk: u32,
    /// Elements of the present message already handled.
    pub(crate) at: usize,
    /// The head of the present message has gone out (fused steps).
    pub(crate) opened: bool,
    /// Senders whose head of the present message has been taken, in group order.
    pub(crate) heads: u32,
    pub(crate) done: bool,
}

/// What an attempt came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    /// The present message is complete.
    Complete,
    /// Something moved, more is to come.
    Moved,
    /// Nothing can move now.
    Blocked,
}

/// What a lane needs to run.
pub(crate) struct Context<'a, F> {
    pub(crate) wires: &'a mut Wires<F>,
    pub(crate) plan: &'a Plan,
    pub(crate) call: &'a Call,
    pub(crate) bound: &'a Bound,
    pub(crate) peers: &'a [PeerBuffers],
    pub(crate) head: &'a Head,
    /// Identifies the call on every link; never 0.
    pub(crate) stamp: u64,
    /// The call's number on the board.
    pub(crate) turn: u64,
    /// Where folds list their operands.
    pub(crate) sources: &'a mut Vec<Source>,
    pub(crate) targets: &'a mut Vec<*mut u8>,
}

impl<F> Context<'_, F> {
    /// The head of a message from or into this chunk: the call's, and where only two ranks know a
    /// count, that count.
    fn head_of(&self, (region, chunk): (Region, u32)) -> Head {
        use Collective as C;
        match self.call.collective {
            C::GatherV | C::ScatterV | C::AllToAllV => {
                Head { count: self.bound.whole_count(self.call, region, chunk), ..*self.head }
            }
            _ => *self.head,
        }
    }
}

impl Cursor {
    /// Runs the lane until it blocks or ends; true when it moved.
    pub(crate) fn advance<F: Fabric>(
        &mut self,
        lane: usize,
        lanes: &[Self],
        cx: &mut Context<'_, F>,
    ) -> Result<bool> {
        let steps = cx.plan.lane(lane);
        let mut moved = false;
        if steps.is_empty() {
            self.done = true;
        }
        while !self.done {
            let step = &steps[usize::from(self.step)];
            if !self.may_run(step, lanes, cx)? {
                return Ok(moved);
            }
            match self.attempt(step, lane, cx)? {
                Flow::Complete => self.next(step, steps.len(), cx.bound),
                // Give abort and the other lanes a look-in.
                Flow::Moved => return Ok(true),
                Flow::Blocked => return Ok(moved),
            }
            moved = true;
        }
        Ok(moved)
    }

    fn may_run<F: Fabric>(
        &self,
        step: &Step,
        lanes: &[Self],
        cx: &mut Context<'_, F>,
    ) -> Result<bool> {
        if step.wait_step != NO_STEP {
            let other = &lanes[usize::from(step.wait_lane)];
            let past =
                (other.block, other.step, other.tile) > (self.block, step.wait_step, self.tile);
            if !past && !other.done {
                return Ok(false);
            }
        }
        let block_begins = (self.step, self.tile, self.chunk, self.at) == (0, 0, 0, 0);
        // What bounds the outboxes: a lane is at most one block ahead of its links. The checker
        // proves that lanes may be held here, and that a settle is sure to end only if they are.
        if block_begins && cx.wires.waiting(usize::from(step.lane)) > 0 {
            return Ok(false);
        }
        if !step.has(flag::SETTLE) || self.at > 0 || cx.wires.flushed() {
            return Ok(true);
        }
        let tile = self.block * cx.bound.window + self.tile;
        let place = (step.target, step.target_chunk + self.chunk);
        let target = cx.bound.operand(cx.call, cx.peers, place, step.from, tile);
        cx.wires.settle(target.at, target.count * cx.bound.bytes(target.form), cx.bound)
    }

    /// Moves to the next message.
    fn next(&mut self, step: &Step, steps: usize, bound: &Bound) {
        (self.at, self.opened, self.heads) = (0, false, 0);
        self.chunk += 1;
        if self.chunk < step.chunks {
            return;
        }
        self.chunk = 0;
        self.tile += 1;
        let first = self.block * bound.window;
        if self.tile < bound.window.min(bound.tiles - first) {
            return;
        }
        self.tile = 0;
        self.step += 1;
        if usize::from(self.step) < steps {
            return;
        }
        self.step = 0;
        self.block += 1;
        self.done = self.block * bound.window >= bound.tiles;
    }

    fn attempt<F: Fabric>(
        &mut self,
        step: &Step,
        lane: usize,
        cx: &mut Context<'_, F>,
    ) -> Result<Flow> {
        let tile = self.block * cx.bound.window + self.tile;
        let operand = |region: Region, chunk: u32| {
            let place = (region, chunk + self.chunk);
            cx.bound.operand(cx.call, cx.peers, place, step.from, tile)
        };
        let source = operand(step.source, step.source_chunk);
        let target = operand(step.target, step.target_chunk);
        match step.verb {
            Verb::Send => {
                let place = (step.source, step.source_chunk + self.chunk);
                post(step, place, source, lane, tile, cx)
            }
            Verb::Recv => self.recv(step, target, lane, tile, cx),
            Verb::RecvCopySend => {
                let flow = self.recv(step, target, lane, tile, cx)?;
                let place = (step.target, step.target_chunk + self.chunk);
                match flow {
                    Flow::Complete => post(step, place, target, lane, tile, cx),
                    other => Ok(other),
                }
            }
            Verb::Copy => {
                cx.bound.copy(step, source, target, target.count);
                Ok(Flow::Complete)
            }
            Verb::Reduce => {
                let own = |o: Operand| Source { at: o.at, form: o.form };
                let operands = [own(source), own(target)];
                cx.bound.fold(step, &operands, &[target.at], target.form, target.count);
                Ok(Flow::Complete)
            }
            Verb::RecvReduce => self.recv_reduce(step, (source, target), lane, tile, cx),
            Verb::RecvReduceSend => self.recv_reduce_send(step, (source, target), lane, tile, cx),
            Verb::Fold if step.source == Region::PeerInput => {
                self.fold_peers(step, target, tile, cx)
            }
            Verb::Fold => self.fold_messages(step, (source, target), lane, tile, cx),
            Verb::Post => {
                let phase = cx.turn * PHASES + u64::from(step.source_chunk);
                board(cx.wires)?.post(phase);
                Ok(Flow::Complete)
            }
            // Phase 0 is the meeting, and the plan was chosen when that was over.
            Verb::Await if step.source_chunk == 0 => Ok(Flow::Complete),
            Verb::Await => {
                let phase = cx.turn * PHASES + u64::from(step.source_chunk);
                let reached = board(cx.wires)?.reached(step.from as usize) >= phase;
                Ok(if reached { Flow::Complete } else { Flow::Blocked })
            }
        }
    }

    /// Whether there is a message at all: empty ones exist for the first tile only, as bare heads.
    fn absent(count: usize, tile: u64) -> bool {
        count == 0 && tile > 0
    }

    fn recv<F: Fabric>(
        &mut self,
        step: &Step,
        target: Operand,
        lane: usize,
        tile: u64,
        cx: &mut Context<'_, F>,
    ) -> Result<Flow> {
        if Self::absent(target.count, tile) {
            return Ok(Flow::Complete);
        }
        let from = step.from as usize;
        let head = cx.head_of((step.target, step.target_chunk + self.chunk));
        if !take_head(self, 0, (from, lane), target.count == 0, &head, cx)? {
            return Ok(Flow::Blocked);
        }
        let wire = Bound::incoming(step);
        if cx.bound.bytes(wire) != cx.bound.bytes(target.form) {
            return self.recv_converted(step, target, lane, cx);
        }
        // `at` counts bytes here: a stream may stop inside an element.
        let total = target.count * cx.bound.bytes(target.form);
        let rx = cx.wires.fabric.rx(from, lane);
        let before = self.at;
        while self.at < total {
            // SAFETY: `target` is `total` writable bytes of a live buffer.
            let got = unsafe { rx.read(target.at.wrapping_add(self.at), total - self.at)? };
            if got == 0 {
                return Ok(if self.at > before { Flow::Moved } else { Flow::Blocked });
            }
            self.at += got;
        }
        rx.end();
        Ok(Flow::Complete)
    }

    /// Receives finished values that travelled wide, rounding them.
    fn recv_converted<F: Fabric>(
        &mut self,
        step: &Step,
        target: Operand,
        lane: usize,
        cx: &mut Context<'_, F>,
    ) -> Result<Flow> {
        let form = Bound::incoming(step);
        let width = cx.bound.bytes(form);
        let rx = cx.wires.fabric.rx(step.from as usize, lane);
        let before = self.at;
        while self.at < target.count {
            let window = rx.peek((target.count - self.at) * width)?;
            let count = (window.bytes / width).min(target.count - self.at);
            if count == 0 {
                return Ok(if self.at > before { Flow::Moved } else { Flow::Blocked });
            }
            let at = at_element(cx.bound, target, self.at).at.cast_mut();
            let source = Operand { at: window.at, form, count };
            cx.bound.copy(step, source, Operand { at, ..target }, count);
            rx.release(count * width);
            self.at += count;
        }
        rx.end();
        Ok(Flow::Complete)
    }

    fn recv_reduce<F: Fabric>(
        &mut self,
        step: &Step,
        (source, target): (Operand, Operand),
        lane: usize,
        tile: u64,
        cx: &mut Context<'_, F>,
    ) -> Result<Flow> {
        if Self::absent(target.count, tile) {
            return Ok(Flow::Complete);
        }
        let from = step.from as usize;
        if !take_head(self, 0, (from, lane), target.count == 0, cx.head, cx)? {
            return Ok(Flow::Blocked);
        }
        let wire = Bound::incoming(step);
        let width = cx.bound.bytes(wire);
        let rx = cx.wires.fabric.rx(from, lane);
        let before = self.at;
        while self.at < target.count {
            let window = rx.peek((target.count - self.at) * width)?;
            let count = (window.bytes / width).min(target.count - self.at);
            if count == 0 {
                return Ok(if self.at > before { Flow::Moved } else { Flow::Blocked });
            }
            let own = at_element(cx.bound, source, self.at);
            let into = at_element(cx.bound, target, self.at);
            let message = Source { at: window.at, form: wire };
            cx.bound.combine(step, own, message, &[into.at.cast_mut()], target.form, count);
            rx.release(count * width);
            self.at += count;
        }
        rx.end();
        Ok(Flow::Complete)
    }

    fn recv_reduce_send<F: Fabric>(
        &mut self,
        step: &Step,
        (source, target): (Operand, Operand),
        lane: usize,
        tile: u64,
        cx: &mut Context<'_, F>,
    ) -> Result<Flow> {
        if Self::absent(source.count, tile) {
            return Ok(Flow::Complete);
        }
        let (from, to) = (step.from as usize, step.to as usize);
        if !cx.wires.clear_way(to, lane, cx.bound)?
            || !take_head(self, 0, (from, lane), source.count == 0, cx.head, cx)?
            || !give_head(self, to, lane, source.count == 0, cx)?
        {
            return Ok(Flow::Blocked);
        }
        let (wire, gives) = (Bound::incoming(step), Bound::outgoing(step));
        let (width, width_out) = (cx.bound.bytes(wire), cx.bound.bytes(gives));
        let before = self.at;
        while self.at < source.count {
            let left = source.count - self.at;
            let incoming = cx.wires.fabric.rx(from, lane).peek(left * width)?;
            let outgoing = cx.wires.fabric.tx(to, lane).window()?;
            let count = (incoming.bytes / width).min(outgoing.bytes / width_out).min(left);
            if count == 0 {
                cx.wires.touch(to, lane);
                return Ok(if self.at > before { Flow::Moved } else { Flow::Blocked });
            }
            let own = at_element(cx.bound, source, self.at);
            let message = Source { at: incoming.at, form: wire };
            cx.bound.combine(step, own, message, &[outgoing.at], gives, count);
            if step.target != Region::None {
                let into = at_element(cx.bound, target, self.at).at.cast_mut();
                let sent = Operand { at: outgoing.at, form: gives, count };
                cx.bound.keep(sent, Operand { at: into, ..target }, count);
            }
            cx.wires.fabric.rx(from, lane).release(count * width);
            cx.wires.fabric.tx(to, lane).commit(count * width_out)?;
            self.at += count;
        }
        cx.wires.fabric.rx(from, lane).end();
        cx.wires.fabric.tx(to, lane).end()?;
        cx.wires.touch(to, lane);
        Ok(Flow::Complete)
    }

    fn fold_messages<F: Fabric>(
        &mut self,
        step: &Step,
        (source, target): (Operand, Operand),
        lane: usize,
        tile: u64,
        cx: &mut Context<'_, F>,
    ) -> Result<Flow> {
        if Self::absent(target.count, tile) {
            return Ok(Flow::Complete);
        }
        let plan = cx.plan;
        let group = &plan.groups[step.from as usize];
        let me = cx.wires.me;
        let others = || group.iter().map(|r| r.index()).filter(move |&r| r != me);
        for (index, from) in (0..).zip(others()) {
            if !take_head(self, index, (from, lane), target.count == 0, cx.head, cx)? {
                return Ok(Flow::Blocked);
            }
        }
        let wire = Bound::incoming(step);
        let width = cx.bound.bytes(wire);
        let before = self.at;
        while self.at < target.count {
            let mut count = target.count - self.at;
            cx.sources.clear();
            for rank in group.iter().map(|r| r.index()) {
                if rank == me {
                    cx.sources.push(at_element(cx.bound, source, self.at));
                    continue;
                }
                let window = cx.wires.fabric.rx(rank, lane).peek(count * width)?;
                count = count.min(window.bytes / width);
                cx.sources.push(Source { at: window.at, form: wire });
            }
            if count == 0 {
                return Ok(if self.at > before { Flow::Moved } else { Flow::Blocked });
            }
            let into = at_element(cx.bound, target, self.at).at.cast_mut();
            cx.bound.fold(step, cx.sources, &[into], target.form, count);
            for from in others() {
                cx.wires.fabric.rx(from, lane).release(count * width);
            }
            self.at += count;
        }
        for from in others() {
            cx.wires.fabric.rx(from, lane).end();
        }
        Ok(Flow::Complete)
    }

    /// Folds the members' inputs in their own memory, a slice a time.
    fn fold_peers<F: Fabric>(
        &mut self,
        step: &Step,
        target: Operand,
        tile: u64,
        cx: &mut Context<'_, F>,
    ) -> Result<Flow> {
        let plan = cx.plan;
        let group = &plan.groups[step.from as usize];
        let count = (target.count - self.at).min(SLICE_BYTES / cx.bound.bytes(Form::Native));
        let chunk = |region, first: u32, rank: u32| {
            let place = (region, first + self.chunk);
            cx.bound.operand(cx.call, cx.peers, place, rank, tile)
        };
        cx.sources.clear();
        cx.targets.clear();
        if !step.has(flag::SPREAD) {
            cx.targets.push(at_element(cx.bound, target, self.at).at.cast_mut());
        }
        for rank in group.iter() {
            let input = chunk(Region::PeerInput, step.source_chunk, rank.0);
            cx.sources.push(at_element(cx.bound, input, self.at));
            if step.has(flag::SPREAD) {
                let output = chunk(Region::PeerOutput, step.target_chunk, rank.0);
                cx.targets.push(at_element(cx.bound, output, self.at).at.cast_mut());
            }
        }
        cx.bound.fold(step, cx.sources, cx.targets, target.form, count);
        self.at += count;
        Ok(if self.at >= target.count { Flow::Complete } else { Flow::Moved })
    }
}

fn board<F: Fabric>(wires: &mut Wires<F>) -> Result<&mut F::Board> {
    wires
        .fabric
        .board()
        .ok_or_else(|| Error::new(Code::Internal, "a direct plan without memory links"))
}

/// The operand's element number `at`.
fn at_element(bound: &Bound, operand: Operand, at: usize) -> Source {
    Source { at: operand.at.wrapping_add(at * bound.bytes(operand.form)), form: operand.form }
}

/// Takes the head in front of the present message of the `index`-th sender, where there is one;
/// false while it is not there.
fn take_head<F: Fabric>(
    cursor: &mut Cursor,
    index: u32,
    (from, lane): (usize, usize),
    empty: bool,
    head: &Head,
    cx: &mut Context<'_, F>,
) -> Result<bool> {
    if cursor.heads > index {
        return Ok(true);
    }
    let taken = cx.wires.open_rx(from, lane, cx.stamp, head, empty)?;
    cursor.heads += u32::from(taken);
    Ok(taken)
}

/// Gives the head in front of the present message (fused steps); false while there is no room.
fn give_head<F: Fabric>(
    cursor: &mut Cursor,
    to: usize,
    lane: usize,
    empty: bool,
    cx: &mut Context<'_, F>,
) -> Result<bool> {
    if cursor.opened || !(cx.wires.needs_head(to, lane, cx.stamp) || empty) {
        return Ok(true);
    }
    if !send_head(cx.wires.fabric.tx(to, lane), cx.head)? {
        return Ok(false);
    }
    cx.wires.open_tx(to, lane, cx.stamp);
    cursor.opened = true;
    Ok(true)
}

/// Posts one message.
fn post<F: Fabric>(
    step: &Step,
    place: (Region, u32),
    source: Operand,
    lane: usize,
    tile: u64,
    cx: &mut Context<'_, F>,
) -> Result<Flow> {
    if Cursor::absent(source.count, tile) {
        return Ok(Flow::Complete);
    }
    let to = step.to as usize;
    let wire = Bound::outgoing(step);
    let first = cx.wires.open_tx(to, lane, cx.stamp);
    let payload = if cx.bound.bytes(wire) == cx.bound.bytes(source.form) {
        Payload::Plain { at: source.at, bytes: source.count * cx.bound.bytes(source.form) }
    } else {
        Payload::Converted { source, wire }
    };
    let head = (first || source.count == 0).then(|| cx.head_of(place));
    let out = Outgoing { head, payload, ticket: None };
    cx.wires.post(to, lane, out, Some(cx.bound))?;
    Ok(Flow::Complete)
}
