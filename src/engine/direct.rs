//! Steps that need no message: in this rank's memory, or straight in its peers' (their buffers or
//! their stages).
//!
//! They run a slice at a time, so that deadline, abort and the peers' health are looked at in
//! between.
//!
//! A peer whose call has failed has its buffers back, and may have written to what this rank loads
//! of them. So before each slice, and before it tells that it has loaded the last, a rank looks
//! whether such a peer has given the call up. Then it does not go on, and waits to hear of the
//! fault. A slice under way when a peer gives up may still be stored to that peer's output.

use crate::engine::bind::{Operand, PeerBuffers};
use crate::engine::lane::{Context, Cursor, Flow, at_element};
use crate::engine::link::{Board, Fabric};
use crate::kernel::Form;
use crate::plan::{Region, Step, Verb, flag};

/// The most bytes handled at a time.
const SLICE_BYTES: usize = 1 << 20;

impl<F: Fabric> Context<'_, F> {
    /// Whether a rank that `step` of a direct plan loads from or stores to, or whose buffers it
    /// lets go, has given up this call.
    pub(super) fn forsaken(&mut self, step: &Step) -> bool {
        let Some(board) = self.wires.fabric.board() else { return false };
        let given_up = |rank| board.given_up(rank, self.turn);
        let me = self.plan.key.rank.index();
        match step.verb {
            Verb::Copy if step.source.is_peer() || step.target.is_peer() => {
                given_up(step.from as usize)
            }
            Verb::Fold | Verb::Post => {
                let used = |p: &PeerBuffers| !(p.input.is_null() && p.output.is_null());
                let mut peers = self.peers.iter().enumerate();
                peers.any(|(rank, peer)| rank != me && used(peer) && given_up(rank))
            }
            _ => false,
        }
    }
}

impl Cursor {
    /// Copies the source, as the step's stage says.
    pub(super) fn copy<F: Fabric>(
        &mut self,
        (step, tile): (&Step, u64),
        source: Operand,
        target: Operand,
        cx: &mut Context<'_, F>,
    ) -> Flow {
        let widest = cx.bound.bytes(source.form).max(cx.bound.bytes(target.form));
        let left = target.count - self.at;
        // Buffers that lap over each other can only be moved in one go.
        let laps = (source.at as usize).abs_diff(target.at as usize) < target.count * widest;
        let count = if laps { left } else { left.min(SLICE_BYTES / widest) };
        let (bound, done) = (cx.bound, self.at);
        let part = |operand: Operand| Operand {
            at: at_element(bound, operand, done).at.cast_mut(),
            ..operand
        };
        let stages = step.source == Region::PeerStage || step.target == Region::Stage;
        let way = stages.then(|| cx.bound.way(tile));
        let timing = way.and_then(|way| way.begin(&mut cx.wires.fabric));
        let streaming = !laps && cx.bound.streams(step.target, tile);
        cx.bound.copy(step, (part(source), part(target)), count, streaming);
        if let Some(timing) = timing {
            timing.end(count * widest, &mut cx.wires.fabric);
        }
        self.at += count;
        if self.at >= target.count { Flow::Complete } else { Flow::Moved }
    }

    /// Folds what stands in the members' own memory, a slice a time: their inputs, or the own input
    /// and the others' stages.
    pub(super) fn fold_peers<F: Fabric>(
        &mut self,
        step: &Step,
        target: Operand,
        tile: u64,
        cx: &mut Context<'_, F>,
    ) -> Flow {
        let plan = cx.plan;
        let group = &plan.groups[step.from as usize];
        let count = (target.count - self.at).min(SLICE_BYTES / cx.bound.bytes(Form::Native));
        let chunk = |region, first: u32, rank: u32| {
            let place = (region, first + self.chunk);
            cx.bound.operand(cx.call, cx.peers, place, rank, tile)
        };
        cx.sources.clear();
        cx.targets.clear();
        let staged = step.source == Region::PeerStage;
        let spread = step.has(flag::SPREAD);
        let mut streaming = 0;
        if staged || !spread {
            cx.targets.push(at_element(cx.bound, target, self.at).at.cast_mut());
            streaming += usize::from(cx.bound.streams(step.target, tile));
        }
        if staged && spread {
            let own = chunk(Region::Stage, step.source_chunk, 0);
            let at = at_element(cx.bound, own, self.at).at.cast_mut();
            let streams = cx.bound.streams(Region::Stage, tile);
            // What is streamed stands in front.
            cx.targets.insert(usize::from(!streams), at);
            streaming += usize::from(streams);
        }
        for rank in group.iter() {
            let from =
                if staged && rank.0 != plan.key.rank.0 { step.source } else { Region::PeerInput };
            let input = chunk(from, step.source_chunk, rank.0);
            cx.sources.push(at_element(cx.bound, input, self.at));
            if spread && !staged {
                let output = chunk(Region::PeerOutput, step.target_chunk, rank.0);
                cx.targets.push(at_element(cx.bound, output, self.at).at.cast_mut());
                streaming += usize::from(cx.bound.streams(step.target, tile));
            }
        }
        let way = staged.then(|| cx.bound.way(tile));
        let timing = way.and_then(|way| way.begin(&mut cx.wires.fabric));
        cx.bound.fold(step, cx.sources, (cx.targets, streaming), target.form, count);
        if let Some(timing) = timing {
            // The others' stages are loaded; to the own one goes as much as one of them.
            let stages = group.len() - 1 + usize::from(spread || step.target == Region::Stage);
            timing.end(count * stages * cx.bound.bytes(Form::Native), &mut cx.wires.fabric);
        }
        self.at += count;
        if self.at >= target.count { Flow::Complete } else { Flow::Moved }
    }
}
