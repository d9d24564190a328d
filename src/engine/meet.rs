//! How ranks that share memory meet: each shows a notice of its call on the board.
//!
//! A rank shows its notices in order, each after it has ended the turn before. So whoever has seen
//! everyone's notice of a turn knows that all have ended those before it, and what was put on the
//! board for them is free again. How far a rank may be ahead of another follows: to the next notice
//! that would stand in the place of one not known to be done with, or the next piece of an area
//! (`engine::area`). Every notice is compared once, in order, with the call of its turn: in the
//! turn itself by those who wait for that rank, else when its place is needed again.
//!
//! What a peer's notice says is read once; everything later goes by that copy, whatever the peer
//! writes to the board meanwhile.

use std::ptr;

use bytemuck::Zeroable;

use crate::call::{Call, Head, Ragged};
use crate::engine::bind::PeerBuffers;
use crate::engine::link::{
    Board, Fabric, NOTICE_WORDS, NOTICES, Notice, PLACE_WORDS, Place, notice_slot,
};
use crate::engine::wires::{Wires, mismatch};
use crate::engine::{Engine, Planner, Reach, Route, Stand};
use crate::error::{Code, Error, Result};
use crate::plan::{Plan, Region, Verb, flag};
use crate::types::{Collective, Rank};

/// Which notices have been seen, and the own ones that they are compared with.
#[derive(Debug)]
pub(crate) struct Seen {
    /// Of each rank all up to this turn.
    turns: Box<[u64]>,
    /// Those of the last turns.
    shown: [Head; NOTICES],
}

impl Seen {
    /// Rank `me` of `world` has seen none; nobody need wait for its own.
    pub(super) fn new(me: usize, world: usize) -> Self {
        let turns = (0..world).map(|rank| if rank == me { u64::MAX } else { 0 }).collect();
        Self { turns, shown: [Head::zeroed(); NOTICES] }
    }

    /// The own notice of `turn`.
    fn shown(&mut self, turn: u64) -> &mut Head {
        &mut self.shown[notice_slot(turn)]
    }

    /// Whether `peer` has shown its notice of `turn`; compares those not seen before.
    #[inline]
    pub(super) fn greet<F: Fabric>(
        &mut self,
        wires: &mut Wires<F>,
        peer: usize,
        turn: u64,
    ) -> Result<bool> {
        while self.turns[peer] < turn {
            let next = self.turns[peer] + 1;
            if !hear(wires, peer, (next, self.shown(next)))? {
                return Ok(false);
            }
            self.turns[peer] = next;
        }
        Ok(true)
    }

    /// Whether `peer`'s notice of `turn` has been seen.
    pub(super) fn has(&self, peer: usize, turn: u64) -> bool {
        self.turns[peer] >= turn
    }
}

/// Whether `peer` shows its notice of `turn`, whose call here has `head`; compares the two.
fn hear<F: Fabric>(wires: &mut Wires<F>, peer: usize, (turn, head): (u64, &Head)) -> Result<bool> {
    let me = wires.me;
    let Some(board) = wires.fabric.board() else { return Ok(false) };
    let Some(digest) = board.notice(peer, turn)? else { return Ok(false) };
    if digest == head.digest() {
        return Ok(true);
    }
    let theirs = board.head(peer, turn);
    if theirs == *head {
        let text = format!("rank {peer} shows a call with another digest than its own");
        return Err(Error::new(Code::Protocol, text).with_peer(Rank::at(peer)));
    }
    Err(mismatch(me, head, peer, &theirs))
}

impl<F: Fabric, P: Planner> Engine<F, P> {
    /// Shows this rank's notice of the call; false while somebody may need what stands in the
    /// places that the call uses.
    pub(super) fn show(&mut self, call: &Call, stand: &mut Stand) -> Result<bool> {
        for peer in 0..self.wires.world {
            if self.seen.has(peer, stand.after) {
                continue;
            }
            // As far as it has come, not to look for it in every call.
            let all = self.seen.greet(&mut self.wires, peer, stand.turn - 1)?;
            if !all && !self.seen.has(peer, stand.after) {
                return Ok(false);
            }
        }
        let mut words = [0; NOTICE_WORDS];
        let used = match stand.route {
            Route::Meet => self.places(call, stand, &mut words),
            Route::Flat => self.put_flat(call, stand, &mut words)?,
            Route::Staged | Route::Links => 0,
        };
        if let Some(board) = self.wires.fabric.board() {
            board.publish(stand.turn, Notice { head: stand.head, words: &words[..used] });
        }
        if stand.route == Route::Flat {
            self.keep_own(call);
        }
        *self.seen.shown(stand.turn) = stand.head;
        stand.shown = true;
        Ok(true)
    }

    /// Puts where this rank's buffers are into the words of a notice; how many it took.
    pub(super) fn places(
        &mut self,
        call: &Call,
        stand: &mut Stand,
        words: &mut [u64; NOTICE_WORDS],
    ) -> usize {
        let (input, output) = buffers(call, self.wires.me, self.wires.world);
        let Some(board) = self.wires.fabric.board() else { return 0 };
        let mut place = |at, bytes| match bytes {
            0 => Place::EMPTY,
            _ => board.place(at, bytes),
        };
        let places = [place(call.send, input), place(call.recv, output)];
        stand.hidden = places.contains(&Place::NOWHERE);
        words[..PLACE_WORDS].copy_from_slice(places.map(Place::words).as_flattened());
        PLACE_WORDS
    }

    /// Reads the other ranks' notices; with all there, chooses the plan.
    pub(super) fn meet(&mut self, call: &Call, stand: &mut Stand) -> Result<bool> {
        let world = self.wires.world;
        // Judged by the notices alone, the same on every rank: what one hides, none can load.
        let mut shared = !stand.hidden;
        while shared && self.notices.len() < world {
            let rank = self.notices.len();
            if !self.seen.greet(&mut self.wires, rank, stand.turn)? {
                return Ok(false);
            }
            let Some(board) = self.wires.fabric.board() else { return Ok(false) };
            let notice = shown_places(board, rank, stand.turn);
            shared = !notice.contains(&Place::NOWHERE);
            self.notices.push(notice);
        }
        self.note_shared(shared);
        // Its buffers are no longer the call's. Why, its fault says, which is on its way.
        if shared && self.forsaken(stand.turn).next().is_some() {
            return Ok(false);
        }
        let reach = if shared { Reach::Buffers } else { Reach::Stages };
        let running = self.bind(call, &mut stand.head, reach)?;
        self.resolve(&running.plan, call)?;
        self.running = Some(running);
        Ok(true)
    }

    /// The ranks that have given `turn` up.
    pub(super) fn forsaken(&mut self, turn: u64) -> impl Iterator<Item = Rank> {
        let (me, world) = (self.wires.me, self.wires.world);
        let board = self.wires.fabric.board().filter(|_| turn > 0);
        let all = board.into_iter().flat_map(move |board| {
            let board = &*board;
            (0..world).filter(move |&rank| rank != me && board.given_up(rank, turn))
        });
        all.map(Rank::at)
    }

    /// Whether a rank has given up the last call that was made on the board.
    pub fn is_forsaken(&mut self) -> bool {
        self.forsaken(self.before.turns).next().is_some()
    }

    /// Notes whether all ranks' buffers could be mapped in a call that told of them.
    pub(super) fn note_shared(&mut self, shared: bool) {
        if self.shared != shared {
            self.shared = shared;
            self.forget();
        }
    }

    /// Finds the peers' memory that the plan touches, and no other: a rank whose buffers nobody
    /// touches may be through with the call already, and have given its memory back.
    pub(super) fn resolve(&mut self, plan: &Plan, call: &Call) -> Result<()> {
        let (me, world) = (self.wires.me, self.wires.world);
        self.peers.clear();
        self.peers.resize(world, PeerBuffers::NONE);
        let own = &mut self.peers[me];
        (own.input, own.output) = (call.send.cast_mut(), call.recv);
        let Some(board) = self.wires.fabric.board().filter(|_| plan.has_phases()) else {
            return Ok(());
        };
        for (rank, known) in self.peers.iter_mut().enumerate() {
            known.area = board.area(rank);
        }
        for step in plan.steps.iter().filter(|_| plan.direct) {
            let loads = step.source == Region::PeerInput;
            let stores = step.target == Region::PeerOutput || step.has(flag::SPREAD);
            let one = [Rank(step.from)];
            let touched: &[Rank] = match step.verb {
                Verb::Fold => &plan.groups[step.from as usize],
                _ if loads || stores => &one,
                _ => &[],
            };
            for rank in touched.iter().map(|r| r.index()).filter(|&rank| rank != me) {
                let [input_at, output_at] = self.notices[rank];
                let (input, output) = buffers(call, rank, world);
                let known = &mut self.peers[rank];
                if loads && known.input.is_null() {
                    known.input = find(board, call, (me, rank), input_at, input)?;
                }
                if stores && known.output.is_null() {
                    known.output = find(board, call, (me, rank), output_at, output)?;
                }
            }
        }
        Ok(())
    }
}

/// Input and output, as the notice of `rank` tells them.
pub(super) fn shown_places<B: Board>(board: &B, rank: usize, turn: u64) -> [Place; 2] {
    let mut words = [0; PLACE_WORDS];
    board.words(rank, turn, &mut words);
    let [a, b, c, d, e, f] = words;
    [Place::of_words([a, b, c]), Place::of_words([d, e, f])]
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

/// Tells of each stretch of memory that messages of a call read or write, and which it is. Of
/// buffers that are cut in blocks, what is between those is not the call's.
pub(super) fn spans(
    call: &Call,
    rank: usize,
    world: usize,
    mut tell: impl FnMut(*const u8, usize, bool),
) {
    let (input, output) = buffers(call, rank, world);
    let (read, written) = (call.send as usize, call.recv as usize);
    if input > 0 && output > 0 && read < written + output && written < read + input {
        // In place: one stretch, so that the parts do not take turns.
        let (first, last) = (read.min(written), (read + input).max(written + output));
        let at = if read < written { call.send } else { call.recv.cast_const() };
        tell(at, last - first, true);
    } else {
        tell(call.recv, output, true);
        tell(call.send, input, false);
    }
    let root = rank == call.root.index();
    let (sent, received) = match call.collective {
        Collective::GatherV => (false, root),
        Collective::ScatterV => (root, false),
        Collective::AllToAllV => (true, true),
        Collective::AllGatherV => (false, true),
        _ => return,
    };
    let mut blocks = |blocks: &Ragged, at: *const u8, written: bool| {
        let size = call.dtype.bytes() as u64;
        let bytes = |elements: u64| usize::try_from(elements.saturating_mul(size)).unwrap_or(0);
        let (mut first, mut last) = (0, 0);
        for (count, begin) in blocks.counts.iter().zip(&blocks.displacements) {
            if *begin != last {
                tell(at.wrapping_add(bytes(first)), bytes(last - first), written);
                first = *begin;
            }
            last = begin.saturating_add(*count);
        }
        tell(at.wrapping_add(bytes(first)), bytes(last - first), written);
    };
    if sent {
        blocks(&call.send_blocks, call.send, false);
    }
    if received {
        blocks(&call.recv_blocks, call.recv.cast_const(), true);
    }
}

/// Bytes of `rank`'s input and output in `call` (as far as another rank can know them).
pub(super) fn buffers(call: &Call, rank: usize, world: usize) -> (usize, usize) {
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
