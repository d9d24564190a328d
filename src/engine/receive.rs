//! Steps that take messages: received, folded, folded and passed on.
//!
//! Each runs on as much as has arrived and fits, and remembers in the cursor how far it came.

use crate::call::Head;
use crate::engine::bind::{Bound, Operand};
use crate::engine::lane::{Context, Cursor, Flow, at_element};
use crate::engine::link::{Fabric, Rx, Tx};
use crate::engine::wires::send_head;
use crate::error::Result;
use crate::kernel::Source;
use crate::plan::{NO_STEP, Region, Step, flag};

/// How many messages a step tells ahead.
const AHEAD_MAX: u64 = 8;

/// Whether there is a message at all: empty ones exist for the first tile only, as bare heads.
pub(super) fn absent(count: usize, tile: u64) -> bool {
    count == 0 && tile > 0
}

impl Cursor {
    pub(super) fn recv<F: Fabric>(
        &mut self,
        step: &Step,
        target: Operand,
        lane: usize,
        tile: u64,
        cx: &mut Context<'_, F>,
    ) -> Result<Flow> {
        if absent(target.count, tile) {
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
        let stored = cx.places((step.target, step.target_chunk + self.chunk), wire);
        if stored {
            self.tell_ahead(step, lane, cx)?;
        }
        let rx = cx.wires.fabric.rx(from, lane);
        let before = self.at;
        while self.at < total {
            let (into, left) = (target.at.wrapping_add(self.at), total - self.at);
            // SAFETY: `target` is `total` writable bytes of a live buffer, which this step alone
            // touches until it is complete, or the engine has failed.
            let got = unsafe { if stored { rx.take(into, left)? } else { rx.read(into, left)? } };
            if got == 0 {
                return Ok(if self.at > before { Flow::Moved } else { Flow::Blocked });
            }
            self.at += got;
        }
        rx.end();
        Ok(Flow::Complete)
    }

    /// Tells where the messages after the present one are wanted, as far as this step takes them
    /// in this block. Those of a step that waits for others are not told: their places may be in
    /// use. What a step before this one read or wrote there it has done for the whole block.
    fn tell_ahead<F: Fabric>(
        &mut self,
        step: &Step,
        lane: usize,
        cx: &mut Context<'_, F>,
    ) -> Result<()> {
        let chunks = u64::from(step.chunks);
        let present = self.tile * chunks + u64::from(self.chunk);
        let first = self.block * cx.bound.window;
        let all = cx.bound.window.min(cx.bound.tiles - first) * chunks;
        if self.told > present || step.has(flag::SETTLE) || step.wait_step != NO_STEP {
            return Ok(());
        }
        let wire = Bound::incoming(step);
        let mut later = 0;
        for index in present..all.min(present + AHEAD_MAX) {
            let tile = first + index / chunks;
            let chunk = u32::try_from(index % chunks).unwrap_or(0);
            let place = (step.target, step.target_chunk + chunk);
            let target = cx.bound.operand(cx.call, cx.peers, place, step.from, tile);
            if absent(target.count, tile) || !cx.places(place, wire) {
                continue;
            }
            let bytes = target.count * cx.bound.bytes(target.form);
            if bytes > 0 {
                let rx = cx.wires.fabric.rx(step.from as usize, lane);
                // SAFETY: this step alone touches the target until it has taken the message, or the
                // engine has failed.
                unsafe { rx.expect(later, target.at, bytes)? };
                later += 1;
            }
        }
        self.told = present + AHEAD_MAX / 2;
        Ok(())
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
            cx.bound.copy(step, (source, Operand { at, ..target }), count, false);
            rx.release(count * width);
            self.at += count;
        }
        rx.end();
        Ok(Flow::Complete)
    }

    pub(super) fn recv_reduce<F: Fabric>(
        &mut self,
        step: &Step,
        (source, target): (Operand, Operand),
        lane: usize,
        tile: u64,
        cx: &mut Context<'_, F>,
    ) -> Result<Flow> {
        if absent(target.count, tile) {
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

    pub(super) fn recv_reduce_send<F: Fabric>(
        &mut self,
        step: &Step,
        (source, target): (Operand, Operand),
        lane: usize,
        tile: u64,
        cx: &mut Context<'_, F>,
    ) -> Result<Flow> {
        if absent(source.count, tile) {
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
            let into = at_element(cx.bound, target, self.at).at.cast_mut();
            let both = [outgoing.at, into];
            if step.target == Region::None {
                cx.bound.combine(step, own, message, &both[..1], gives, count);
            } else if target.form == gives {
                cx.bound.combine(step, own, message, &both, gives, count);
            } else {
                cx.bound.combine(step, own, message, &both[..1], gives, count);
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

    pub(super) fn fold_messages<F: Fabric>(
        &mut self,
        step: &Step,
        (source, target): (Operand, Operand),
        lane: usize,
        tile: u64,
        cx: &mut Context<'_, F>,
    ) -> Result<Flow> {
        if absent(target.count, tile) {
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
            cx.bound.fold(step, cx.sources, (&[into], 0), target.form, count);
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
    let taken = cx.wires.open_rx(from, lane, cx.head.seq, head, empty)?;
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
    if cursor.opened || !(cx.wires.needs_head(to, lane, cx.head.seq) || empty) {
        return Ok(true);
    }
    if !send_head(cx.wires.fabric.tx(to, lane), cx.head)? {
        return Ok(false);
    }
    cx.wires.open_tx(to, lane, cx.head.seq);
    cursor.opened = true;
    Ok(true)
}
