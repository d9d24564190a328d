//! One lane of a running plan: where it stands, and one attempt to move on.
//!
//! A lane's position is (block, step, tile of the block, chunk of the range, elements done).
//! Positions grow in that order, so "step s has run on tile t" is a comparison.

use crate::call::{Call, Head};
use crate::engine::bind::{Bound, Operand, PeerBuffers};
use crate::engine::link::{Board, Fabric};
use crate::engine::meet::Seen;
use crate::engine::receive::absent;
use crate::engine::wires::{Outgoing, Payload, Wires};
use crate::error::{Code, Error, Result};
use crate::kernel::{Form, Source};
use crate::plan::{NO_STEP, PHASES_MAX, Plan, Region, Step, Verb, flag};
use crate::types::Collective;

/// How far a rank's counter on the board goes on with each tile of a plan.
pub(crate) const TILE_PHASES: usize = PHASES_MAX as usize;

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
    /// Messages of the present step in this block whose places have been told ahead.
    pub(crate) told: u64,
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
    /// The call's number on the board.
    pub(crate) turn: u64,
    pub(crate) seen: &'a mut Seen,
    /// Where folds list their operands.
    pub(crate) sources: &'a mut Vec<Source>,
    pub(crate) targets: &'a mut Vec<*mut u8>,
}

impl<F: Fabric> Context<'_, F> {
    /// What a rank's counter on the board shows once it has posted `phase` of `tile`: a number that
    /// only grows, as calls, blocks, phases and tiles do.
    fn phase(&self, phase: u32, tile: u64) -> u64 {
        let Bound { window, tiles, .. } = *self.bound;
        let first = tile - tile % window;
        let wide = window.min(tiles - first);
        let before = first * u64::from(PHASES_MAX) + u64::from(phase - 1) * wide;
        self.bound.phases_before + before + (tile - first) + 1
    }

    /// Whether the message of `tile` from or into this chunk is placed, if it is stored as it is:
    /// by the length of the first tile's, since a short last one is no reason to copy.
    pub(crate) fn places(&self, place: (Region, u32), wire: Form) -> bool {
        let first = self.bound.operand(self.call, self.peers, place, 0, 0);
        self.bound.stores(wire) && self.wires.places(first.count * self.bound.bytes(wire))
    }

    /// The head of a message from or into this chunk: the call's, and where only two ranks know a
    /// count, that count.
    pub(crate) fn head_of(&self, (region, chunk): (Region, u32)) -> Head {
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
        if step.verb == Verb::Copy && !step.has(flag::FINISH | flag::PREPARE) {
            let place = (step.source, step.source_chunk + self.chunk);
            let source = cx.bound.operand(cx.call, cx.peers, place, step.from, tile);
            // In place: nothing is written.
            if (source.at, source.form) == (target.at, target.form) {
                return Ok(true);
            }
        }
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
        (self.tile, self.told) = (0, 0);
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
            _ if cx.plan.direct && cx.forsaken(step) => Ok(Flow::Blocked),
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
            Verb::Copy => Ok(self.copy((step, tile), source, target, cx)),
            Verb::Reduce => {
                let own = |o: Operand| Source { at: o.at, form: o.form };
                let operands = [own(source), own(target)];
                cx.bound.fold(step, &operands, (&[target.at], 0), target.form, target.count);
                Ok(Flow::Complete)
            }
            Verb::RecvReduce => self.recv_reduce(step, (source, target), lane, tile, cx),
            Verb::RecvReduceSend if step.sends_target() && cx.wires.fabric.places().is_some() => {
                let flow = self.recv_reduce(step, (source, target), lane, tile, cx)?;
                let place = (step.target, step.target_chunk + self.chunk);
                match flow {
                    Flow::Complete => post(step, place, target, lane, tile, cx),
                    other => Ok(other),
                }
            }
            Verb::RecvReduceSend => self.recv_reduce_send(step, (source, target), lane, tile, cx),
            Verb::Fold if step.source.is_peer() => Ok(self.fold_peers(step, target, tile, cx)),
            Verb::Fold => self.fold_messages(step, (source, target), lane, tile, cx),
            Verb::Post => {
                let phase = cx.phase(step.source_chunk, tile);
                board(cx.wires)?.post(phase);
                Ok(Flow::Complete)
            }
            // Phase 0 is the meeting, and the plan was chosen when that was over.
            Verb::Await if step.source_chunk == 0 => Ok(Flow::Complete),
            Verb::Await => {
                let (from, phase) = (step.from as usize, cx.phase(step.source_chunk, tile));
                // A peer that makes another call may never come to this phase.
                let heard = cx.seen.greet(cx.wires, from, cx.turn)?;
                let reached = heard && board(cx.wires)?.reached(from) >= phase;
                Ok(if reached { Flow::Complete } else { Flow::Blocked })
            }
        }
    }
}

fn board<F: Fabric>(wires: &mut Wires<F>) -> Result<&mut F::Board> {
    wires
        .fabric
        .board()
        .ok_or_else(|| Error::new(Code::Internal, "a direct plan without memory links"))
}

/// The operand's element number `at`.
pub(super) fn at_element(bound: &Bound, operand: Operand, at: usize) -> Source {
    Source { at: operand.at.wrapping_add(at * bound.bytes(operand.form)), form: operand.form }
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
    if absent(source.count, tile) {
        return Ok(Flow::Complete);
    }
    let to = step.to as usize;
    let wire = Bound::outgoing(step);
    let first = cx.wires.open_tx(to, lane, cx.head.seq);
    let payload = if cx.bound.bytes(wire) == cx.bound.bytes(source.form) {
        let stored = step.has(flag::STORED) && cx.places(place, wire);
        let bytes = source.count * cx.bound.bytes(source.form);
        Payload::Plain { at: source.at, bytes, stored }
    } else {
        Payload::Converted { source, wire }
    };
    let head = (first || source.count == 0).then(|| cx.head_of(place));
    let out = Outgoing { head, payload, ticket: None };
    cx.wires.post(to, lane, out, Some(cx.bound))?;
    Ok(Flow::Complete)
}
