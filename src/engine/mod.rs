//! Runs plans over links. Never blocks; knows no clock and no system call.
//!
//! One engine belongs to one rank of one communicator and is driven by one thread at a time:
//! [`Engine::submit`] puts calls in, [`Engine::poll`] moves everything that can move, and
//! [`Engine::take_ended`] hands out the requests that have ended. Collectives run one at a time, in
//! the order submitted, which is the order on every rank; point-to-point messages run beside them.
//!
//! Where the ranks share memory, each shows a notice of its call on the board. A small call is over
//! with that ([`flat`]). A larger one may begin with a *meeting*: each rank reads all others'
//! notices, so that the ranks know of each other's buffers and choose the plan together.
//!
//! The first error breaks the engine: all that is pending ends with it. Every call taken ends
//! exactly once, whatever fails and where: a call is in a list from which [`Engine::fail`] ends it
//! until its end is in the list of ends.
//!
//! Not here: which algorithm (a [`Planner`] says), waiting, deadlines, who is alive.

pub(crate) mod area;
pub(crate) mod bind;
mod direct;
pub(crate) mod flat;
pub(crate) mod lane;
pub mod link;
mod meet;
pub(crate) mod p2p;
mod receive;
mod report;
pub(crate) mod tile;
pub mod wires;

use std::collections::VecDeque;
use std::sync::Arc;

use bytemuck::Zeroable;

use crate::call::{Call, Guise, Head, Ragged, Tally, head_flag};
use crate::engine::area::{Pieces, Taker};
use crate::engine::bind::{Before, Bound, LastKernels, PeerBuffers, work_bytes};
use crate::engine::lane::{Context, Cursor};
use crate::engine::link::{AHEAD, Board, Fabric, NOTICE_WORDS, Place};
use crate::engine::meet::Seen;
use crate::engine::p2p::PointToPoint;
use crate::engine::tile::Layout;
use crate::engine::wires::Wires;
use crate::error::{Code, Error, Result, Scope};
use crate::kernel::Source;
use crate::plan::{LANES_MAX, Plan};
use crate::types::Rank;

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

/// How ranks go about a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// By messages over links.
    Links,
    /// They meet and then choose the plan.
    Meet,
    /// A plan that uses the ranks' stages.
    Staged,
    /// Each shows what it contributes, and takes what it needs.
    Flat,
}

/// What ranks can load of each other in a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// Nothing: they send messages.
    Messages,
    /// Their stages.
    Stages,
    /// Every rank's buffers of this call too.
    Buffers,
}

/// Chooses plans, from facts all ranks agree on.
pub trait Planner {
    /// How to go about `call`; without memory links it goes over [`Route::Links`].
    fn route(&self, call: &Call) -> Route;

    /// The plan for `call`.
    ///
    /// # Errors
    /// No algorithm can do it.
    fn choose(&mut self, call: &Call, reach: Reach) -> Result<Choice>;
}

/// What became of a call that was to be hurried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hurried {
    /// It has ended well, and its end is not told again.
    Ended,
    /// It is under way, as if submitted.
    Taken,
    /// It was not for this; submit it.
    Left,
}

/// What an engine knows of a call that it has hurried, for the next time that it is made.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// That of the engine when it learnt this; 0: nothing.
    version: u32,
    /// Without its number.
    head: Head,
    /// Bytes of the longest contribution.
    bytes: usize,
    /// The notice tells where the buffers are.
    tells: bool,
    /// Some ranks wait for nobody.
    loose: bool,
    /// What a backend above the engine calls that which it knows; 0: nothing.
    pub(crate) memo: u64,
}

impl Default for Known {
    fn default() -> Self {
        let (head, bytes) = (Head::zeroed(), 0);
        Self { version: 0, head, bytes, tells: false, loose: false, memo: 0 }
    }
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

/// Calls whose heads are remembered: more than a rank on the board is ahead of any other.
const RECENT: usize = 2 * AHEAD;

/// A submitted collective.
#[derive(Debug)]
struct Run {
    call: Call,
    ticket: u32,
    stand: Stand,
}

/// How a call is made, and how far it has come.
#[derive(Clone, Copy, Debug)]
struct Stand {
    head: Head,
    route: Route,
    /// Position on the board, or 0 over links.
    turn: u64,
    /// The turn that all must have shown before this rank shows this one.
    after: u64,
    /// The notice has been shown; over links there is none to show.
    shown: bool,
    /// The notice of a flat call tells where the buffers are.
    tells: bool,
    /// No peer can map the own buffers.
    hidden: bool,
    /// Bytes of the longest contribution to a flat call.
    bytes: usize,
    /// How many ranks' notices of a flat call have been seen.
    heard: usize,
    /// They were there when it first looked.
    early: bool,
    /// A flat call is through.
    done: bool,
}

/// One rank's side of everything in flight.
#[derive(Debug)]
pub struct Engine<F, P> {
    wires: Wires<F>,
    planner: P,
    epoch: u32,
    deterministic: bool,
    /// Collectives begun; the present one's number.
    tally: Tally,
    seen: Seen,
    /// What calls on the board have used up so far.
    before: Before,
    /// Where the ranks show what they contribute to the present flat call.
    flat: Pieces,
    kernels: LastKernels,
    /// Every rank's buffers could be mapped in the last call that told: the same on all ranks.
    shared: bool,
    /// Counts what changes how calls are made.
    version: u32,
    /// The last calls' heads, by number.
    recent: [Option<Head>; RECENT],
    queue: VecDeque<(Call, u32)>,
    run: Option<Run>,
    /// Its plan: none while the ranks meet, and in a flat call.
    running: Option<Running>,
    p2p: PointToPoint,
    /// Input and output of the call that the ranks meet for, as read so far, in rank order.
    notices: Vec<[Place; 2]>,
    /// The words of notices of a flat call, by rank.
    inline: Box<[[u64; NOTICE_WORDS]]>,
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
            tally: Tally::default(),
            seen: Seen::new(me.index(), world),
            before: Before::default(),
            flat: Pieces::NONE,
            kernels: LastKernels::default(),
            shared: false,
            version: 1,
            recent: [None; RECENT],
            queue: VecDeque::with_capacity(64),
            run: None,
            running: None,
            p2p: PointToPoint::new(world),
            notices: Vec::with_capacity(world),
            inline: vec![[0; NOTICE_WORDS]; world].into(),
            peers: Vec::with_capacity(world),
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

    /// The chooser. Whoever changes what it chooses says so by [`Engine::forget`].
    pub fn planner(&mut self) -> &mut P {
        &mut self.planner
    }

    /// What is known of calls no longer holds.
    pub fn forget(&mut self) {
        self.version += 1;
    }

    /// Number of collectives begun so far: the present or last call's number.
    #[must_use]
    pub fn seq(&self) -> u64 {
        self.tally.calls
    }

    /// The collectives begun so far, for those who compare at the end.
    #[must_use]
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// The collective under way.
    #[must_use]
    pub fn present(&self) -> Option<Head> {
        self.run.as_ref().map(|run| run.stand.head)
    }

    /// The error that broke the engine.
    #[must_use]
    pub fn broken(&self) -> Option<&Error> {
        self.broken.as_ref()
    }

    /// Takes a call; its end will be told under `ticket`, also when the engine is or gets broken.
    ///
    /// # Safety
    /// The call must be validated for this rank and world, and its buffers valid, and touched by
    /// nobody else, until its end has been told.
    pub unsafe fn submit(&mut self, call: Call, ticket: u32) {
        if let Some(error) = &self.broken {
            self.ended.push_back((ticket, Err(error.clone())));
            return;
        }
        if !call.collective.point_to_point() {
            self.queue.push_back((call, ticket));
            return;
        }
        let head = self.head(&call, 0, 0);
        let posted = self.p2p.submit(&mut self.wires, &call, head, ticket);
        self.end_sent();
        if let Err(error) = posted {
            self.fail(error);
        }
    }

    /// Whether `call` is one to hurry: small, and nothing stands before it. Learns what there is to
    /// know of it.
    #[inline]
    pub fn may_hurry(&mut self, call: &Call, known: &mut Known) -> bool {
        let free = self.broken.is_none() && self.run.is_none() && self.queue.is_empty();
        free && self.wires.flushed() && (known.version == self.version || self.learn(call, known))
    }

    fn learn(&mut self, call: &Call, known: &mut Known) -> bool {
        let small = !call.collective.ragged()
            && !call.collective.point_to_point()
            && self.route(call) == Route::Flat;
        if small {
            *known = Known { memo: known.memo, ..self.flat_known(call) };
        }
        small
    }

    /// What there is to know of a flat call.
    fn flat_known(&self, call: &Call) -> Known {
        let bytes = flat::shown_bytes(call, self.wires.world);
        Known {
            version: self.version,
            head: self.head(call, 0, 0),
            bytes,
            tells: flat::tells_places(call, bytes),
            loose: call.collective.rooted(),
            memo: 0,
        }
    }

    /// Takes a call that [`Engine::may_hurry`], unless the engine has been broken since, and looks
    /// at it up to `polls` times at once.
    ///
    /// # Safety
    /// As for [`Engine::submit`], if it is taken.
    pub unsafe fn hurry(
        &mut self,
        (call, known): (&Call, &Known),
        ticket: u32,
        polls: u32,
    ) -> Hurried {
        if self.broken.is_some() {
            return Hurried::Left;
        }
        let mut stand = self.stand(Route::Flat, known);
        let mut outcome = Ok(false);
        for _ in 0..polls {
            outcome = self.poll_board(call, &mut stand);
            if stand.done {
                return Hurried::Ended;
            }
            if outcome.is_err() {
                break;
            }
            std::hint::spin_loop();
        }
        // Its lists of counts are empty: nothing is allocated, but for the gate of a foreign call.
        self.run = Some(Run { call: call.clone(), ticket, stand });
        if let Err(error) = outcome {
            self.break_with(error);
        }
        Hurried::Taken
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
                self.break_with(error);
                Progress::Moved
            }
        }
    }

    /// Breaks the engine with what it has found itself.
    fn break_with(&mut self, error: Error) {
        let number = error.seq.or_else(|| self.present().map(|head| head.seq));
        self.fail(Error { seq: number, ..error });
    }

    fn p2p_idle(&self) -> bool {
        self.p2p.idle() && self.wires.p2p_flushed()
    }

    /// Breaks the engine: everything pending ends with `error`. The first error stays.
    pub fn fail(&mut self, error: Error) {
        if self.broken.is_some() {
            return;
        }
        // What ends one call elsewhere (no memory, a limit) ends the communicator here: the peers
        // have begun the call.
        let error = match error.scope() {
            Scope::Call => Error { code: Code::System, ..error },
            _ => error,
        };
        // Before anybody gets a buffer back that a peer may still load or store.
        let present = self.run.as_ref().is_some_and(|run| run.stand.turn > 0);
        let lost = self.before.turns + u64::from(!present);
        if let Some(board) = self.wires.fabric.board() {
            board.give_up(lost);
        }
        self.wires.fabric.cut();
        self.end_sent();
        self.running = None;
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

    /// The own rank.
    #[must_use]
    pub fn rank(&self) -> Rank {
        Rank::at(self.wires.me)
    }

    /// Every other rank.
    pub fn peers(&self) -> impl Iterator<Item = Rank> + use<F, P> {
        let me = self.wires.me;
        (0..self.wires.world).filter(move |&r| r != me).map(Rank::at)
    }

    /// The head of `call`, without number and plan.
    #[must_use]
    pub fn head_of(&self, call: &Call) -> Head {
        self.head(call, 0, 0)
    }

    fn head(&self, call: &Call, seq: u64, plan: u32) -> Head {
        if let Guise::Of(head) = &call.guise {
            return Head { seq, epoch: self.epoch, plan, ..**head };
        }
        let mut flags = 0;
        if self.deterministic && call.collective.reduces() {
            flags |= head_flag::DETERMINISTIC;
        }
        if matches!(call.guise, Guise::Packed(_)) {
            flags |= head_flag::PACKED;
        }
        if call.in_place_all_to_all() {
            flags |= head_flag::IN_PLACE;
        }
        if !call.place.is_host() {
            flags |= head_flag::DEVICE;
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
            let route = self.route(&call);
            self.begin(call, ticket, route)?;
            moved = true;
        }
        moved |= self.poll_run()?;
        if !self.p2p.idle() {
            moved |= self.p2p.poll(&mut self.wires)?;
        }
        let bound = self.running.as_ref().map(|r| &r.bound);
        moved |= self.wires.flush(bound)?;
        if !self.wires.sent.is_empty() {
            self.end_sent();
        }
        self.finish_run();
        Ok(moved)
    }

    /// Ends the present collective once every lane is through and everything posted has left.
    fn finish_run(&mut self) {
        let through = |r: &Running| r.cursors[..r.plan.lanes()].iter().all(|cursor| cursor.done);
        let done = self.run.as_ref().is_some_and(|run| run.stand.done)
            || self.running.as_ref().is_some_and(through);
        if done
            && self.wires.flushed()
            && let Some(run) = self.run.take()
        {
            self.running = None;
            self.spent.extend(run.call.into_lists());
            self.ended.push_back((run.ticket, Ok(())));
        }
    }

    fn route(&mut self, call: &Call) -> Route {
        if self.wires.fabric.board().is_none() {
            return Route::Links;
        }
        match self.planner.route(call) {
            Route::Flat if self.shared => {
                let shown = flat::shown_bytes(call, self.wires.world);
                if flat::tells_places(call, shown) { Route::Meet } else { Route::Flat }
            }
            route => route,
        }
    }

    fn begin(&mut self, call: Call, ticket: u32, route: Route) -> Result<()> {
        let known = match route {
            Route::Flat => self.flat_known(&call),
            _ => Known { head: self.head(&call, 0, 0), ..Known::default() },
        };
        let mut stand = self.stand(route, &known);
        let chosen = matches!(route, Route::Links | Route::Staged);
        let bound = if chosen { self.prepare(&call, &mut stand) } else { Ok(()) };
        self.run = Some(Run { call, ticket, stand });
        bound
    }

    /// Counts a call, and where it is made on the board takes its place there.
    fn stand(&mut self, route: Route, known: &Known) -> Stand {
        let head = Head { seq: self.seq() + 1, ..known.head };
        self.tally.add(&head);
        let slot = self.seq() % RECENT as u64;
        self.recent[usize::try_from(slot).unwrap_or(0)] = Some(head);
        let links = route == Route::Links;
        let (mut turn, mut after) = (0, 0);
        if !links {
            self.before.turns += 1;
            self.notices.clear();
            turn = self.before.turns;
            // What pieces it takes is known only with the plan.
            after = if route == Route::Meet { self.before.pieces.after() } else { 0 };
            after = after.max(turn.saturating_sub(AHEAD as u64));
        }
        if route == Route::Flat {
            let taker = Taker { turn, loose: known.loose };
            let piece = flat::piece_bytes(known.bytes);
            self.flat = self.before.pieces.take(self.wires.world, taker, piece, 1);
            after = after.max(self.flat.after);
        }
        Stand {
            head,
            route,
            turn,
            after,
            shown: links,
            tells: known.tells,
            hidden: false,
            bytes: known.bytes,
            heard: 0,
            early: true,
            done: false,
        }
    }

    /// Chooses the plan of a call whose ranks need not meet first.
    fn prepare(&mut self, call: &Call, stand: &mut Stand) -> Result<()> {
        let reach = if stand.turn == 0 { Reach::Messages } else { Reach::Stages };
        let running = self.bind(call, &mut stand.head, reach)?;
        if reach == Reach::Messages && self.wires.fabric.places().is_some() {
            let (me, world) = (self.wires.me, self.wires.world);
            let fabric = &mut self.wires.fabric;
            meet::spans(call, me, world, |at, bytes, written| fabric.cover(at, bytes, written));
            let bytes = self.work.len() * size_of::<u128>();
            self.wires.fabric.cover(self.work.as_ptr().cast(), bytes, true);
        }
        stand.after = stand.after.max(running.bound.pieces.after);
        self.resolve(&running.plan, call)?;
        self.running = Some(running);
        Ok(())
    }

    fn bind(&mut self, call: &Call, head: &mut Head, reach: Reach) -> Result<Running> {
        let Choice { plan, tile, window, hash } = self.planner.choose(call, reach)?;
        head.plan = hash;
        let layout = Layout::new(call, self.wires.me, plan.chunks, tile);
        let window = window.min(layout.tiles(call)).max(1);
        let bytes = work_bytes(&plan, call, layout.tile, window);
        let words = usize::try_from(bytes.div_ceil(16))
            .map_err(|_| Error::new(Code::OutOfMemory, format!("{bytes} bytes of scratch")))?;
        if self.work.len() < words {
            let more = words - self.work.len();
            self.work
                .try_reserve_exact(more)
                .map_err(|_| Error::new(Code::OutOfMemory, format!("{bytes} bytes of scratch")))?;
            self.work.resize(words, 0);
        }
        let work = self.work.as_mut_ptr().cast();
        let past = plan.stage_chunks > 0 && self.wires.fabric.board().is_some_and(|b| b.past());
        let reduces = call.collective.reduces();
        let kernels = if reduces { Some(self.kernels.of(call.dtype, call.op)?) } else { None };
        let bound =
            Bound::new(&plan, call, layout, window, (work, kernels), &mut self.before, past);
        Ok(Running { plan, bound, cursors: [Cursor::default(); LANES_MAX] })
    }

    /// Takes a call on the board to where its plan can run; whether anything moved.
    fn poll_board(&mut self, call: &Call, stand: &mut Stand) -> Result<bool> {
        let mut moved = false;
        if !stand.shown {
            if !self.show(call, stand)? {
                return Ok(false);
            }
            moved = true;
        }
        match stand.route {
            Route::Flat if !stand.done => Ok(self.poll_flat(call, stand)? || moved),
            Route::Meet if self.running.is_none() => Ok(self.meet(call, stand)? || moved),
            _ => Ok(moved),
        }
    }

    fn poll_run(&mut self) -> Result<bool> {
        let planned = self.running.is_some();
        let waits = |run: &Run| !(run.stand.shown && planned);
        let mut moved = false;
        if self.run.as_ref().is_some_and(waits)
            && let Some(mut run) = self.run.take()
        {
            let outcome = self.poll_board(&run.call, &mut run.stand);
            self.run = Some(run);
            moved = outcome?;
        }
        let Some(run) = self.run.as_mut().filter(|run| run.stand.shown) else {
            return Ok(moved);
        };
        let Some(running) = &mut self.running else {
            return Ok(moved);
        };
        let mut cx = Context {
            wires: &mut self.wires,
            plan: &running.plan,
            call: &run.call,
            bound: &running.bound,
            peers: &self.peers,
            head: &run.stand.head,
            turn: run.stand.turn,
            seen: &mut self.seen,
            sources: &mut self.sources,
            targets: &mut self.targets,
        };
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
