//! How ranks that share memory meet before a call, and where its peers' buffers are.
//!
//! Each rank's notice is read once, when it has come; everything later goes by that copy, whatever
//! the peer writes to the board meanwhile.

use std::ptr;

use crate::call::{Call, Head};
use crate::engine::bind::PeerBuffers;
use crate::engine::link::{Board, Fabric, Notice, Place};
use crate::engine::wires::mismatch;
use crate::engine::{Engine, Planner, Run};
use crate::error::{Code, Error, Result};
use crate::plan::{Plan, Region, Verb, flag};
use crate::types::{Collective, Rank};

impl<F: Fabric, P: Planner> Engine<F, P> {
    /// Shows this rank's notice of the call where ranks meet; the call's turn on the board, or 0.
    pub(super) fn show(&mut self, call: &Call, head: Head) -> u64 {
        let meets = self.planner.meets(call);
        let Some(board) = self.wires.fabric.board().filter(|_| meets) else {
            return 0;
        };
        self.turns += 1;
        self.notices.clear();
        let (input, output) = buffers(call, self.wires.me, self.wires.world);
        let mut place = |at, bytes| match bytes {
            0 => Place::EMPTY,
            _ => board.place(at, bytes),
        };
        let (input, output) = (place(call.send, input), place(call.recv, output));
        board.publish(self.turns, &Notice { head, input, output });
        self.turns
    }

    /// Reads the other ranks' notices; with all there, chooses the plan.
    pub(super) fn meet(&mut self) -> Result<bool> {
        let Some(mut run) = self.run.take() else {
            return Ok(false);
        };
        let outcome = self.try_meet(&mut run);
        self.run = Some(run);
        outcome
    }

    fn try_meet(&mut self, run: &mut Run) -> Result<bool> {
        let (me, world) = (self.wires.me, self.wires.world);
        let Some(board) = self.wires.fabric.board() else { return Ok(false) };
        while self.notices.len() < world {
            let rank = self.notices.len();
            let Some(notice) = board.notice(rank, run.turn)? else { return Ok(false) };
            if notice.head != run.head {
                return Err(mismatch(me, &run.head, rank, &notice.head));
            }
            self.notices.push(notice);
        }
        // Judged by the notices alone, the same on every rank.
        let hidden = |n: &Notice| [n.input, n.output].contains(&Place::NOWHERE);
        let shared = !self.notices.iter().any(hidden);
        let running = self.bind(&run.call, &mut run.head, shared)?;
        self.resolve(&running.plan, &run.call)?;
        run.running = Some(running);
        Ok(true)
    }

    /// Finds the peers' buffers that the plan touches, and no others: a rank whose buffers nobody
    /// touches may be through with the call already, and have given its memory back.
    fn resolve(&mut self, plan: &Plan, call: &Call) -> Result<()> {
        let (me, world) = (self.wires.me, self.wires.world);
        self.peers.clear();
        self.peers.resize(world, PeerBuffers { input: ptr::null_mut(), output: ptr::null_mut() });
        self.peers[me] = PeerBuffers { input: call.send.cast_mut(), output: call.recv };
        let Some(board) = self.wires.fabric.board().filter(|_| plan.direct) else {
            return Ok(());
        };
        for step in &plan.steps {
            let loads = step.source == Region::PeerInput;
            let stores = step.target == Region::PeerOutput || step.has(flag::SPREAD);
            let one = [Rank(step.from)];
            let touched: &[Rank] = match step.verb {
                Verb::Fold => &plan.groups[step.from as usize],
                _ if loads || stores => &one,
                _ => &[],
            };
            for rank in touched.iter().map(|r| r.index()).filter(|&rank| rank != me) {
                let notice = self.notices[rank];
                let (input, output) = buffers(call, rank, world);
                let known = &mut self.peers[rank];
                if loads && known.input.is_null() {
                    known.input = find(board, call, (me, rank), notice.input, input)?;
                }
                if stores && known.output.is_null() {
                    known.output = find(board, call, (me, rank), notice.output, output)?;
                }
            }
        }
        Ok(())
    }
}

/// Where this process finds a peer's buffer, which must have the bytes this rank expects.
fn find<B: Board>(
    board: &mut B,
    call: &Call,
    (me, peer): (usize, usize),
    place: Place,
    bytes: usize,
) -> Result<*mut u8> {
    if place.bytes != bytes as u64 {
        let kind = call.collective;
        let text = format!(
            "{kind}: rank {peer} has {} bytes where rank {me} expects {bytes}",
            place.bytes
        );
        return Err(Error::new(Code::Mismatch, text).with_peer(Rank::at(peer)));
    }
    if bytes == 0 { Ok(ptr::null_mut()) } else { board.resolve(peer, place) }
}

/// Bytes of `rank`'s input and output in `call` (as far as another rank can know them).
fn buffers(call: &Call, rank: usize, world: usize) -> (usize, usize) {
    use Collective as C;
    let root = rank == call.root.index();
    let at_root = |elements: u64| if root { elements } else { 0 };
    let all = call.count.saturating_mul(world as u64);
    let of = |counts: &[u64]| counts.get(rank).copied().unwrap_or(0);
    let total = |counts: &[u64]| counts.iter().copied().fold(0, u64::saturating_add);
    let (input, output) = match call.collective {
        C::AllReduce => (call.count, call.count),
        C::Reduce => (call.count, at_root(call.count)),
        C::Broadcast => (at_root(call.count), if root { 0 } else { call.count }),
        C::AllGather => (call.count, all),
        C::ReduceScatter => (all, call.count),
        C::Gather => (call.count, at_root(all)),
        C::Scatter => (at_root(all), call.count),
        C::AllToAll => (all, all),
        C::AllGatherV => (of(&call.recv_blocks.counts), 0),
        // Only the root knows the others' counts, and only it needs them.
        C::GatherV if call.recv_blocks.counts.is_empty() => (call.count, 0),
        C::GatherV => (of(&call.recv_blocks.counts), 0),
        C::ReduceScatterV => (total(&call.recv_blocks.counts), 0),
        _ => (0, 0),
    };
    let bytes = |elements: u64| {
        usize::try_from(elements).unwrap_or(usize::MAX).saturating_mul(call.dtype.bytes())
    };
    (bytes(input), bytes(output))
}
