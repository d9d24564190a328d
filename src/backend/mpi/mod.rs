//! The MPI backend: MPI moves the data, and the native engine sees to it that all ranks mean the
//! same.
//!
//! Beside MPI's communicator stands a whole native backend, the *side*: links, board, control
//! connections. Before MPI begins a collective, its ranks meet there in a gate: a native all_reduce
//! of two words that shows the head of the call it stands for. So mismatches are named before MPI
//! can take one call's data for another's, a deadline names who has not come, the dead are noticed
//! and an abort is heard, by the same code and in the same words as on the native backend. MPI
//! alone can do none of that: a call that waits cannot be ended. The gate costs a native all_reduce
//! of 16 bytes, and makes every collective wait for all ranks; it can be left out.
//!
//! Rules:
//!
//! - MPI wants collectives begun in the same order on all ranks. So jobs begin one after the other:
//!   a call's first step waits until MPI has begun the last step of the call before.
//! - MPI wants all ranks to make a call in the same form, waiting or not. The gate says
//!   whether some rank cannot wait; then none does. Without gates the form is the caller's.
//! - gather_v, scatter_v and all_to_all_v have counts that two ranks share. Their gate is an
//!   all_to_all, in which everyone also hears whether all counts fit.
//! - A message has a gate of its own: a native message without data, with its head.
//! - Below `MPI_THREAD_SERIALIZED` one thread alone may call MPI. On others nothing moves.
//!
//! What is left: a rank whose deadline passes in the very moment in which the last one comes. That
//! one may enter MPI before it hears of it, and wait there for good.
//!
//! When a call fails while MPI has it under way, MPI keeps the buffers: nothing in MPI takes them
//! back. Docs say so (docs/mpi.md).

mod job;
mod ops;
mod script;

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use self::job::{Cells, Ground, Job, State};
use self::ops::Ops;
use self::script::{INT_MAX, Rules};
use crate::backend::native::Native;
use crate::backend::{BLOCKING, Backend};
use crate::call::{Call, Guise, Head, Ragged};
use crate::engine::wires::mismatch;
use crate::engine::{Hurried, Known, Progress};
use crate::error::{Code, Error, Result};
use crate::link::doze::Doze;
use crate::mpi::{Handle, Level, Library};
use crate::plan::Algorithm;
use crate::types::{Collective, Dtype, Rank};

/// How long a rank sleeps at most while MPI, which rings no bell, has something under way.
const NAP: Duration = Duration::from_micros(50);

/// A rank that has not listened for so long listens before it enters MPI, where it cannot: the
/// others may have given the call up, and what they showed in the gate before stands there still.
const LISTEN: Duration = Duration::from_millis(20);

/// Calls without a gate after which the peers are looked after.
const WATCH_EVERY: u32 = 256;

/// What an MPI backend is made from, besides its side.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) library: Arc<Library>,
    /// Ours: it is freed with the backend.
    pub(crate) comm: Handle,
    pub(crate) rank: Rank,
    pub(crate) world: u32,
    pub(crate) deterministic: bool,
    /// Calls pass a gate.
    pub(crate) checks: bool,
    /// Elements that one call of MPI may have.
    pub(crate) limit: u64,
}

/// One rank's side of everything in flight.
#[derive(Debug)]
pub(crate) struct Mpi {
    side: Native,
    parts: Parts,
    ops: Ops,
    large: bool,
    limit: u64,
    /// The only thread that may call MPI, where there is one.
    only: Option<ThreadId>,
    jobs: VecDeque<Job>,
    spare: Vec<Job>,
    /// The gate of a call that is hurried, and what it exchanges.
    gate: Call,
    cells: Cells,
    /// Collectives so far.
    seq: u64,
    numbers: u32,
    uncounted: u32,
    ended: VecDeque<(u32, Result<()>)>,
    spent: Vec<Ragged>,
}

// SAFETY: the addresses inside belong to calls whose makers promise them valid on any thread, or
// to boxes of its own.
unsafe impl Send for Mpi {}

impl Mpi {
    /// A backend on `parts`, whose ranks have met as `side`.
    ///
    /// # Errors
    /// MPI's own.
    pub(crate) fn new(side: Native, parts: Parts) -> Result<Self> {
        let ops = Ops::new(&parts.library)?;
        let thread = parts.library.thread()?;
        let only = (thread.level < Level::Serialized).then(|| std::thread::current().id());
        Ok(Self {
            large: parts.library.api().has_large_counts(),
            limit: parts.limit.clamp(1, INT_MAX),
            side,
            parts,
            ops,
            only,
            jobs: VecDeque::new(),
            spare: Vec::new(),
            gate: Call::new(Collective::AllReduce, Dtype::U64),
            cells: Cells::new(1),
            seq: 0,
            numbers: 0,
            uncounted: 0,
            ended: VecDeque::new(),
            spent: Vec::new(),
        })
    }

    fn rules(&self) -> Rules<'_> {
        Rules {
            constants: self.parts.library.api().constants(),
            ops: &self.ops,
            me: self.parts.rank.index(),
            world: Rank(self.parts.world).index(),
            deterministic: self.parts.deterministic,
            limit: self.limit,
            large: self.large,
        }
    }

    /// Whether nothing is known to have failed, now that a gate has been passed.
    fn still_whole(&mut self) -> bool {
        if self.side.watched().elapsed() >= LISTEN {
            self.side.watch();
        }
        self.side.broken().is_none()
    }

    /// Whether this thread may call MPI.
    fn may_call(&self) -> bool {
        self.only.is_none_or(|only| only == std::thread::current().id())
    }

    /// What a call on another thread than MPI's gets.
    #[cold]
    fn wrong_thread() -> Error {
        let text = "MPI was initialised for one thread only, and this is another: make the call on \
                    the thread that initialised it, or initialise it with MPI_THREAD_MULTIPLE";
        Error::new(Code::InvalidState, text)
    }

    /// A job without a call, used before if there is one.
    fn blank(&mut self) -> Job {
        let world = Rank(self.parts.world).index();
        self.spare.pop().unwrap_or_else(|| Job::new(world))
    }

    /// Makes `call` at once, while nothing else is under way, and waits in MPI; whether it is over.
    /// What takes several messages may not be: then it is in line.
    fn run(&mut self, call: &Call, ticket: u32) -> Result<bool> {
        let mut job = self.blank();
        let on = Ground { library: &self.parts.library, comm: self.parts.comm };
        let outcome = job.begin(call, self.rules()).and_then(|()| job.advance(on, true));
        let over = outcome.is_ok() && job.is_over();
        if over {
            self.spare.push(job);
        } else {
            (job.ticket, job.state) = (ticket, State::Ready { waits: true });
            job.call = Some(call.clone());
            self.jobs.push_back(job);
        }
        outcome.map(|_| over)
    }

    /// Puts `call` in line, and its gate on its way.
    fn enqueue(&mut self, call: Call, ticket: u32) -> Result<()> {
        let mut job = self.blank();
        self.numbers = self.numbers.wrapping_add(1);
        self.seq += u64::from(!call.collective.point_to_point());
        (job.ticket, job.number, job.seq) = (ticket, self.numbers, self.seq);
        (job.later, job.hurried) = (ticket != BLOCKING, false);
        let written = job.begin(&call, self.rules());
        if written.is_ok() {
            if self.parts.checks {
                let gate = self.gate_of(&call, &mut job);
                // SAFETY: the gate's buffers are the job's cells, which stay where they are while
                // the job is in line; it leaves the line when the gate has ended, or with a side
                // that is broken and touches nothing any more.
                unsafe { self.side.submit(gate, job.number) };
            } else {
                job.state = State::Ready { waits: !job.later };
            }
        }
        job.call = Some(call);
        self.jobs.push_back(job);
        written
    }

    /// The native call in which the ranks of `call` meet.
    fn gate_of(&self, call: &Call, job: &mut Job) -> Call {
        let mut gate = if call.collective.point_to_point() {
            Call { root: call.root, ..Call::new(call.collective, Dtype::U8) }
        } else {
            job.cells.gate(call, self.parts.rank.index(), job.later)
        };
        gate.guise = Guise::Of(Box::new(self.side.head_of(call)));
        gate
    }

    /// A gate has been passed.
    fn passed(&mut self, number: u32) -> Result<()> {
        let (me, cells) = (self.parts.rank.index(), &self.cells);
        let Some(job) = self.jobs.iter_mut().find(|job| job.number == number) else {
            return Ok(());
        };
        let Some(call) = &job.call else { return Ok(()) };
        if call.collective.point_to_point() {
            job.state = State::Ready { waits: false };
            return Ok(());
        }
        let cells = if job.hurried { cells } else { &job.cells };
        let (fit, later) = cells.heard(call);
        if fit {
            job.state = State::Ready { waits: !later };
            return Ok(());
        }
        job.state = State::Doomed;
        let Some((peer, told, expected)) = cells.unlike(call, me) else { return Ok(()) };
        let head = Head { seq: job.seq, ..self.side.head_of(call) };
        let of = |count: u64| Head { count, ..head };
        Err(mismatch(me, &of(expected), peer, &of(told)))
    }

    /// Lets every job go on that may; whether any moved.
    fn advance(&mut self) -> Result<bool> {
        let on = Ground { library: &self.parts.library, comm: self.parts.comm };
        let (mut moved, mut free, mut index) = (false, true, 0);
        while index < self.jobs.len() {
            let job = &mut self.jobs[index];
            let message = job.call.as_ref().is_some_and(|c| c.collective.point_to_point());
            if let State::Ready { waits } = job.state
                && (message || free || job.pends())
            {
                moved |= job.advance(on, waits)?;
                free &= message || job.has_begun();
            } else {
                free &= message;
            }
            if matches!(job.state, State::Ready { .. }) && job.is_over() {
                if let Some(mut job) = self.jobs.remove(index) {
                    self.ended.push_back((job.ticket, Ok(())));
                    self.spent.extend(job.call.take().into_iter().flat_map(Call::into_lists));
                    self.spare.push(job);
                }
                moved = true;
            } else {
                index += 1;
            }
        }
        Ok(moved)
    }

    /// Ends every job with `error`.
    fn end_all(&mut self, error: &Error) {
        Library::has_failed();
        let library = self.parts.library.clone();
        let may_call = self.may_call();
        for job in self.jobs.drain(..) {
            self.ended.push_back((job.ticket, Err(error.clone())));
            if may_call {
                job.abandon(&library);
            } else {
                std::mem::forget(job);
            }
        }
    }

    /// Moves what can move; errors end everything.
    fn turn(&mut self) -> Result<bool> {
        let mut moved = false;
        while let Some((number, result)) = self.side.take_ended() {
            result?;
            self.passed(number)?;
            moved = true;
        }
        if moved && !self.still_whole() {
            return Ok(true);
        }
        if self.may_call() {
            moved |= self.advance()?;
        }
        Ok(moved)
    }
}

impl Backend for Mpi {
    unsafe fn submit(&mut self, call: Call, ticket: u32) {
        if let Some(error) = self.side.broken() {
            self.ended.push_back((ticket, Err(error.clone())));
            return;
        }
        if !self.may_call() {
            self.ended.push_back((ticket, Err(Self::wrong_thread())));
            return;
        }
        if let Err(error) = self.enqueue(call, ticket) {
            self.fail(error);
        }
    }

    unsafe fn hurry(
        &mut self,
        (call, known): (&Call, &mut Known),
        ticket: u32,
        polls: u32,
    ) -> Hurried {
        let kind = call.collective;
        if !self.jobs.is_empty()
            || kind.ragged()
            || kind.point_to_point()
            || self.side.broken().is_some()
            || !self.may_call()
        {
            return Hurried::Left;
        }
        if self.parts.checks {
            let head = self.side.head_of(call);
            let mut gate = self.cells.gate(call, self.parts.rank.index(), false);
            gate.guise = match std::mem::take(&mut self.gate.guise) {
                Guise::Of(mut place) => {
                    *place = head;
                    Guise::Of(place)
                }
                _ => Guise::Of(Box::new(head)),
            };
            self.gate = gate;
            self.numbers = self.numbers.wrapping_add(1);
            // SAFETY: the cells are our own, and the gate's alone until it has ended.
            let hurried = unsafe { self.side.hurry((&self.gate, known), self.numbers, polls) };
            if hurried == Hurried::Left {
                return Hurried::Left;
            }
            self.seq += 1;
            let state = match hurried {
                Hurried::Ended if self.cells.heard(call).1 => Some(State::Ready { waits: false }),
                Hurried::Ended if self.still_whole() => None,
                // Under way, or broken: then what broke it ends the call with the others.
                _ => Some(State::Gate),
            };
            if let Some(state) = state {
                self.take(call, ticket, state);
                return Hurried::Taken;
            }
        } else {
            self.uncounted += 1;
            if self.uncounted.is_multiple_of(WATCH_EVERY) {
                self.side.watch();
            }
        }
        match self.run(call, ticket) {
            Ok(true) => Hurried::Ended,
            Ok(false) => Hurried::Taken,
            Err(error) => {
                // The call is in line and ends with the others.
                self.fail(error);
                Hurried::Taken
            }
        }
    }

    fn poll(&mut self) -> Progress {
        let side = self.side.poll();
        let turned = if self.side.broken().is_some() { Ok(false) } else { self.turn() };
        if let Err(error) = turned {
            self.fail(error);
            return Progress::Moved;
        }
        if let Some(error) = self.side.broken().cloned() {
            let any = !self.jobs.is_empty();
            self.end_all(&error);
            return if any { Progress::Moved } else { Progress::Idle };
        }
        match (turned, side) {
            (Ok(true), _) | (_, Progress::Moved) => Progress::Moved,
            _ if self.jobs.is_empty() => side,
            _ => Progress::Blocked,
        }
    }

    fn take_ended(&mut self) -> Option<(u32, Result<()>)> {
        self.ended.pop_front()
    }

    fn take_spent(&mut self) -> Option<Ragged> {
        // The gates have none.
        self.spent.pop()
    }

    fn watch(&mut self) {
        self.side.watch();
    }

    fn watched(&self) -> Instant {
        self.side.watched()
    }

    fn doze(&mut self, timeout: Duration) {
        if self.jobs.iter().any(Job::pends) {
            std::thread::sleep(timeout.min(NAP));
        } else {
            self.side.doze(timeout);
        }
    }

    fn bell(&self) -> Arc<Doze> {
        self.side.bell()
    }

    fn fail(&mut self, error: Error) {
        // What ends one call elsewhere ends the communicator here: the peers have begun the call.
        self.side.fail(error.clone());
        let error = self.side.broken().cloned().unwrap_or(error);
        self.end_all(&error);
    }

    fn broken(&self) -> Option<&Error> {
        self.side.broken()
    }

    fn awaited(&mut self) -> Vec<Rank> {
        let mut ranks = self.side.awaited();
        ranks.extend(self.jobs.iter().filter_map(Job::peer));
        ranks.sort_unstable();
        ranks.dedup();
        ranks
    }

    fn standing(&self) -> String {
        let name = &self.parts.library.name;
        let under_way = |job: &Job| {
            let call = job.call.as_ref()?;
            let text = format!("{}: with {name}", self.side.head_of(call).describe());
            job.pends().then_some(text)
        };
        let mut parts: Vec<String> = self.jobs.iter().filter_map(under_way).take(4).collect();
        if parts.is_empty() || self.side.present().is_some() {
            parts.insert(0, self.side.standing());
        }
        parts.join("; ")
    }

    fn present(&self) -> Option<u64> {
        self.side.present()
    }

    fn alloc(&mut self, bytes: usize) -> Result<*mut u8> {
        self.side.alloc(bytes)
    }

    fn free(&mut self, memory: *mut u8) -> Result<()> {
        self.side.free(memory)
    }

    /// MPI chooses for itself.
    fn prefer(&mut self, _: Option<Algorithm>) {}

    fn take_chosen(&mut self) -> Option<Algorithm> {
        None
    }

    fn compare_ends(&mut self) -> Result<()> {
        self.side.compare_ends()
    }

    fn close(&mut self) {
        self.side.close();
    }
}

impl Mpi {
    /// A hurried call takes its place in line: its gate is not passed, or some rank's may not wait.
    fn take(&mut self, call: &Call, ticket: u32, state: State) {
        let mut job = self.blank();
        (job.ticket, job.number, job.seq) = (ticket, self.numbers, self.seq);
        (job.later, job.hurried) = (false, true);
        let written = job.begin(call, self.rules());
        job.state = state;
        job.call = Some(call.clone());
        self.jobs.push_back(job);
        if let Err(error) = written {
            self.fail(error);
        }
    }
}

impl Drop for Mpi {
    fn drop(&mut self) {
        let library = self.parts.library.clone();
        let whole = self.side.broken().is_none() && self.jobs.is_empty();
        // A broken communicator may have calls that MPI never ends.
        if whole && self.may_call() && library.runs().unwrap_or(false) {
            self.ops.free(&library);
            library.api().comm_free(self.parts.comm);
        }
    }
}
