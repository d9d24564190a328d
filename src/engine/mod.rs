//! Runs plans over links. Never blocks; knows no clock and no system call.
//!
//! One engine belongs to one rank of one communicator and is driven by one thread at a time:
//! [`Engine::submit`] puts calls in, [`Engine::poll`] moves everything that can move, and
//! [`Engine::take_ended`] hands out the requests that have ended. Collectives run one at a time, in
//! the order submitted, which is the order on every rank; point-to-point messages run beside them.
//!
//! Where the ranks share memory, a call may begin with a *meeting*: each rank shows a notice of its
//! call on the board and reads all others', so that the ranks know of each other's buffers and
//! choose the plan together.
//!
//! The first error breaks the engine: all that is pending ends with it.
//!
//! Not here: which algorithm (a [`Planner`] says), waiting, deadlines, who is alive.

pub(crate) mod bind;
pub(crate) mod lane;
pub mod link;
pub(crate) mod p2p;
pub(crate) mod tile;
pub mod wires;

use std::collections::VecDeque;
use std::ptr;
use std::sync::Arc;

use crate::call::{Call, Head, Ragged, head_flag};
use crate::engine::bind::{Bound, PeerBuffers, work_bytes};
use crate::engine::lane::{Context, Cursor};
use crate::engine::link::{Board, Fabric, Notice, Place};
use crate::engine::p2p::PointToPoint;
use crate::engine::tile::Layout;
use crate::engine::wires::{Wires, mismatch};
use crate::error::{Code, Error, Result};
use crate::kernel::Source;
use crate::plan::{LANES_MAX, Plan, Region, Verb, flag};
use crate::types::{Collective, Rank};

/// How a call is to be carried out.
#[derive(Clone, Debug)]
pub struct Choice {
    /// What to do.
    pub plan: Arc<Plan>,
    /// The largest tile, in elements.
    pub tile: u64,
    /// Tiles in flight.
    pub window: u64,
    /// Same on all ranks if and only if they chose the same.
    pub hash: u32,
}

/// Chooses plans, from facts all ranks agree on.
pub trait Planner {
    /// Whether ranks with memory links should meet before `call`.
    fn meets(&self, call: &Call) -> bool;

    /// The plan for `call`. `shared`: every rank can map every other's buffers of this call.
    ///
    /// # Errors
    /// No algorithm can do it.
    fn choose(&mut self, call: &Call, shared: bool) -> Result<Choice>;
}

/// Whether a poll got anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Something moved; poll again.
    Moved,
    /// Calls are pending and nothing can move now.
    Blocked,
    /// Nothing is pending.
    Idle,
}

#[derive(Debug)]
struct Running {
    plan: Arc<Plan>,
    bound: Bound,
    cursors: [Cursor; LANES_MAX],
}

/// Calls whose heads are remembered. A rank is rarely this far ahead of one that waits for it.
const RECENT: usize = 8;

/// A submitted collective.
#[derive(Debug)]
struct Run {
    call: Call,
    ticket: u32,
    head: Head,
    /// Position on the board when the ranks meet, else 0.
    turn: u64,
    /// `None` while the ranks meet.
    running: Option<Running>,
}

/// One rank's side of everything in flight.
#[derive(Debug)]
pub struct Engine<F, P> {
    wires: Wires<F>,
    planner: P,
    epoch: u32,
    deterministic: bool,
    seq: u64,
    turns: u64,
    stamp: u64,
    /// The last calls' heads, by number.
    recent: [Option<Head>; RECENT],
    queue: VecDeque<(Call, u32)>,
    run: Option<Run>,
    p2p: PointToPoint,
    peers: Vec<PeerBuffers>,
    work: Vec<u128>,
    sources: Vec<Source>,
    targets: Vec<*mut u8>,
    ended: VecDeque<(u32, Result<()>)>,
    spent: Vec<Ragged>,
    broken: Option<Error>,
}

// SAFETY: raw addresses inside belong to calls whose makers promise them valid on any thread; the
// engine itself is driven by one thread at a time (`&mut self`).
unsafe impl<F: Send, P: Send> Send for Engine<F, P> {}

impl<F: Fabric, P: Planner> Engine<F, P> {
    /// An engine for rank `me` of `world`, with nothing in flight.
    pub fn new(
        fabric: F,
        planner: P,
        me: Rank,
        world: u32,
        epoch: u32,
        deterministic: bool,
    ) -> Self {
        let world = world as usize;
        Self {
            wires: Wires::new(fabric, me.index(), world),
            planner,
            epoch,
            deterministic,
            seq: 0,
            turns: 0,
            stamp: 0,
            recent: [None; RECENT],
            queue: VecDeque::with_capacity(64),
            run: None,
            p2p: PointToPoint::new(world),
            peers: Vec::new(),
            work: Vec::new(),
            sources: Vec::with_capacity(world),
            targets: Vec::with_capacity(world),
            ended: VecDeque::with_capacity(64),
            spent: Vec::new(),
            broken: None,
        }
    }

    /// The links, for whoever waits on them.
    pub fn fabric(&mut self) -> &mut F {
        &mut self.wires.fabric
    }

    /// The chooser.
    pub fn planner(&mut self) -> &mut P {
        &mut self.planner
    }

    /// Number of collectives begun so far: the present or last call's number.
    #[must_use]
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// The collective under way.
    #[must_use]
    pub fn present(&self) -> Option<Head> {
        self.run.as_ref().map(|run| run.head)
    }

    /// Compares `peer`'s call of a number this rank has reached with the own call of that number,
    /// if that is remembered.
    ///
    /// # Errors
    /// `MISMATCH` names both.
    pub fn compare(&self, peer: Rank, theirs: &Head) -> Result<()> {
        let own = self.recent.iter().flatten().find(|own| own.seq == theirs.seq);
        // How the call is carried out may not be settled on one side; messages carry that.
        match own.map(|own| Head { plan: theirs.plan, ..*own }) {
            Some(own) if own != *theirs => Err(mismatch(self.wires.me, &own, peer.index(), theirs)),
            _ => Ok(()),
        }
    }

    /// The error that broke the engine.
    #[must_use]
    pub fn broken(&self) -> Option<&Error> {
        self.broken.as_ref()
    }

    /// Takes a call; its end will be told under `ticket`.
    ///
    /// # Errors
    /// The engine is broken; the call has not been taken.
    pub fn submit(&mut self, call: Call, ticket: u32) -> Result<()> {
        if let Some(error) = &self.broken {
            return Err(error.clone());
        }
        if call.collective.point_to_point() {
            let head = self.head(&call, 0, 0);
            let posted = self.p2p.submit(&mut self.wires, &call, head, ticket);
            self.end_sent();
            if let Err(error) = posted {
                self.fail(error.clone());
                return Err(error);
            }
            return Ok(());
        }
        self.queue.push_back((call, ticket));
        Ok(())
    }

    /// The next request that has ended, with its result.
    pub fn take_ended(&mut self) -> Option<(u32, Result<()>)> {
        self.ended.pop_front()
    }

    /// A list of counts of an ended call, to be used again.
    pub fn take_spent(&mut self) -> Option<Ragged> {
        self.spent.pop()
    }

    /// Moves whatever can move. Errors end in [`Engine::take_ended`] and [`Engine::broken`].
    pub fn poll(&mut self) -> Progress {
        if self.broken.is_some() {
            return Progress::Idle;
        }
        match self.try_poll() {
            Ok(true) => Progress::Moved,
            Ok(false) if self.run.is_none() && self.queue.is_empty() && self.p2p_idle() => {
                Progress::Idle
            }
            Ok(false) => Progress::Blocked,
            Err(error) => {
                let seq = self.seq;
                self.fail(if error.seq.is_none() { error.with_seq(seq) } else { error });
                Progress::Moved
            }
        }
    }

    fn p2p_idle(&self) -> bool {
        self.p2p.idle() && self.wires.p2p_flushed()
    }

    /// Breaks the engine: everything pending ends with `error`. The first error stays.
    pub fn fail(&mut self, error: Error) {
        if self.broken.is_some() {
            return;
        }
        if let Some(run) = self.run.take() {
            self.ended.push_back((run.ticket, Err(error.clone())));
        }
        for (_, ticket) in self.queue.drain(..) {
            self.ended.push_back((ticket, Err(error.clone())));
        }
        let ended = &mut self.ended;
        self.p2p.clear(|ticket| ended.push_back((ticket, Err(error.clone()))));
        self.wires.clear(|ticket| ended.push_back((ticket, Err(error.clone()))));
        self.broken = Some(error);
    }

    /// Puts the ranks that something pending waits for into `ranks`, ascending, each once.
    pub fn awaited(&mut self, ranks: &mut Vec<Rank>) {
        ranks.clear();
        if let Some(run) = &self.run {
            match &run.running {
                None => {
                    let turn = run.turn;
                    for peer in (0..self.wires.world).filter(|&p| p != self.wires.me) {
                        let board = self.wires.fabric.board();
                        if board.is_some_and(|b| matches!(b.notice(peer, turn), Ok(None))) {
                            ranks.push(Rank::at(peer));
                        }
                    }
                }
                Some(running) => awaited_by_lanes(running, &mut self.wires, ranks),
            }
        }
        self.p2p.awaited(ranks);
        // Who does not take what was posted may itself be waiting for one of those above.
        if ranks.is_empty() {
            self.wires.slow_peers(ranks);
        }
        ranks.sort_unstable();
        ranks.dedup();
    }

    /// Every other rank.
    pub fn peers(&self) -> impl Iterator<Item = Rank> + use<F, P> {
        let me = self.wires.me;
        (0..self.wires.world).filter(move |&r| r != me).map(Rank::at)
    }

    /// Where everything in flight stands, for the report of a call that did not end.
    #[must_use]
    pub fn standing(&self) -> String {
        let Some(run) = &self.run else { return "no collective is running".to_owned() };
        let Some(running) = &run.running else {
            return format!("{}: meeting", run.head.describe());
        };
        let mut text = run.head.describe();
        for (lane, cursor) in running.cursors[..running.plan.lanes()].iter().enumerate() {
            if cursor.done {
                text += &format!("; lane {lane} done");
                continue;
            }
            let step = &running.plan.lane(lane)[usize::from(cursor.step)];
            let tile = cursor.block * running.bound.window + cursor.tile;
            let tiles = running.bound.tiles;
            text += &format!(
                "; lane {lane} step {} of {} ({step}), tile {tile} of {tiles}, {} elements done",
                cursor.step,
                running.plan.lane(lane).len(),
                cursor.at
            );
        }
        text
    }

    fn head(&self, call: &Call, seq: u64, plan: u32) -> Head {
        let mut flags = 0;
        if self.deterministic && call.collective.reduces() {
            flags |= head_flag::DETERMINISTIC;
        }
        let all_to_all = matches!(call.collective, Collective::AllToAll | Collective::AllToAllV);
        if call.packed.is_some() {
            flags |= head_flag::PACKED;
        }
        if all_to_all && ptr::eq(call.send, call.recv) {
            flags |= head_flag::IN_PLACE;
        }
        Head {
            seq,
            count: call.agreed_count(),
            epoch: self.epoch,
            root: if call.collective.rooted() { call.root.0 } else { 0 },
            kind: call.collective.number(),
            dtype: call.dtype.number(),
            op: call.op.number(),
            flags,
            plan,
        }
    }

    fn end_sent(&mut self) {
        self.ended.extend(self.wires.sent.drain(..).map(|ticket| (ticket, Ok(()))));
    }

    fn try_poll(&mut self) -> Result<bool> {
        let mut moved = false;
        if self.run.is_none()
            && let Some((call, ticket)) = self.queue.pop_front()
        {
            self.begin(call, ticket)?;
            moved = true;
        }
        moved |= self.poll_run()?;
        if !self.p2p.idle() {
            moved |= self.p2p.poll(&mut self.wires)?;
        }
        let bound = self.run.as_ref().and_then(|r| r.running.as_ref()).map(|r| &r.bound);
        moved |= self.wires.flush(bound)?;
        if !self.wires.sent.is_empty() {
            self.end_sent();
        }
        self.finish_run();
        Ok(moved)
    }

    /// Ends the present collective once every lane is through and everything posted has left.
    fn finish_run(&mut self) {
        let done = self
            .run
            .as_ref()
            .and_then(|r| r.running.as_ref())
            .is_some_and(|r| r.cursors[..r.plan.lanes()].iter().all(|c| c.done));
        if done
            && self.wires.flushed()
            && let Some(run) = self.run.take()
        {
            let lists = [run.call.send_blocks, run.call.recv_blocks];
            self.spent.extend(lists.into_iter().filter(|blocks| blocks.counts.capacity() > 0));
            self.ended.push_back((run.ticket, Ok(())));
        }
    }

    fn begin(&mut self, call: Call, ticket: u32) -> Result<()> {
        self.seq += 1;
        self.stamp += 1;
        let mut head = self.head(&call, self.seq, 0);
        let slot = self.seq % RECENT as u64;
        self.recent[usize::try_from(slot).unwrap_or(0)] = Some(head);
        let meets = self.planner.meets(&call);
        let turn = match self.wires.fabric.board() {
            Some(board) if meets => {
                self.turns += 1;
                let (input, output) = buffers(&call, self.wires.me, self.wires.world);
                let mut place = |at, bytes| match bytes {
                    0 => Place::EMPTY,
                    _ => board.place(at, bytes),
                };
                let (input, output) = (place(call.send, input), place(call.recv, output));
                let notice = Notice { head, input, output };
                board.publish(self.turns, &notice);
                self.turns
            }
            _ => 0,
        };
        let running = if turn == 0 { Some(self.bind(&call, &mut head, false)?) } else { None };
        self.run = Some(Run { call, ticket, head, turn, running });
        Ok(())
    }

    fn bind(&mut self, call: &Call, head: &mut Head, shared: bool) -> Result<Running> {
        let Choice { plan, tile, window, hash } = self.planner.choose(call, shared)?;
        head.plan = hash;
        let layout = Layout::new(call, self.wires.me, plan.chunks, tile);
        let window = window.min(layout.tiles(call)).max(1);
        let bytes = work_bytes(&plan, call, layout.tile, window);
        let words = usize::try_from(bytes.div_ceil(16))
            .map_err(|_| Error::new(Code::OutOfMemory, format!("{bytes} bytes of scratch")))?;
        if self.work.len() < words {
            self.work.resize(words, 0);
        }
        let work = self.work.as_mut_ptr().cast();
        let bound = Bound::new(&plan, call, layout, window, work)?;
        Ok(Running { plan, bound, cursors: [Cursor::default(); LANES_MAX] })
    }

    /// Reads the other ranks' notices; with all there, chooses the plan.
    fn meet(&mut self) -> Result<bool> {
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
        // Judged by the notices alone, the same on every rank.
        let mut shared = true;
        for rank in 0..world {
            let Some(notice) = board.notice(rank, run.turn)? else { return Ok(false) };
            if notice.head != run.head {
                return Err(mismatch(me, &run.head, rank, &notice.head));
            }
            shared &= ![notice.input, notice.output].contains(&Place::NOWHERE);
        }
        let running = self.bind(&run.call, &mut run.head, shared)?;
        self.resolve(&running.plan, run)?;
        run.running = Some(running);
        Ok(true)
    }

    /// Finds the peers' buffers that the plan touches, and no others: a rank whose buffers nobody
    /// touches may be through with the call already, and have given its memory back.
    fn resolve(&mut self, plan: &Plan, run: &Run) -> Result<()> {
        let (me, world, call) = (self.wires.me, self.wires.world, &run.call);
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
                let Some(notice) = board.notice(rank, run.turn)? else {
                    return Err(Error::new(Code::Internal, "a notice went after it was read"));
                };
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

    fn poll_run(&mut self) -> Result<bool> {
        match &self.run {
            None => return Ok(false),
            Some(run) if run.running.is_none() => {
                if !self.meet()? {
                    return Ok(false);
                }
            }
            Some(_) => {}
        }
        let Some(run) = &mut self.run else {
            return Ok(false);
        };
        let Some(running) = &mut run.running else {
            return Ok(false);
        };
        let mut cx = Context {
            wires: &mut self.wires,
            plan: &running.plan,
            call: &run.call,
            bound: &running.bound,
            peers: &self.peers,
            head: &run.head,
            stamp: self.stamp,
            turn: run.turn,
            sources: &mut self.sources,
            targets: &mut self.targets,
        };
        let mut moved = false;
        for lane in 0..running.plan.lanes() {
            let mut cursor = running.cursors[lane];
            if cursor.done {
                continue;
            }
            moved |= cursor.advance(lane, &running.cursors, &mut cx)?;
            running.cursors[lane] = cursor;
        }
        Ok(moved)
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

fn awaited_by_lanes<F: Fabric>(running: &Running, wires: &mut Wires<F>, ranks: &mut Vec<Rank>) {
    for (lane, cursor) in running.cursors[..running.plan.lanes()].iter().enumerate() {
        if cursor.done {
            continue;
        }
        let step = &running.plan.lane(lane)[usize::from(cursor.step)];
        match step.verb {
            Verb::Fold => {
                let group = &running.plan.groups[step.from as usize];
                let silent = |r: &&Rank| r.index() != wires.me && !wires.heard(r.index(), lane);
                ranks.extend(group.iter().filter(silent));
            }
            Verb::Await => ranks.push(Rank(step.from)),
            _ if step.receives() => ranks.push(Rank(step.from)),
            _ => {}
        }
    }
}
