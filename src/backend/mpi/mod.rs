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
//!   all_to_all, in which everyone also hears whether all counts fit. The gate also says whether
//!   some rank's counts are too many for MPI; then all use messages.
//! - A rank that comes late says so, and then all pass a second gate: whoever waited for it may
//!   have given up when it passed the first. Who is not late comes before any deadline.
//! - A message has a gate of its own: a native message without data, with its head.
//! - Below `MPI_THREAD_SERIALIZED` one thread alone may call MPI. On others nothing moves.
//!
//! Programs make the same call again and again. So the script and the gate of the last such
//! call that waits stay (`hot`), and nothing is written anew when it comes again.
//!
//! What is left: who dies after it has come to the gate is missed only when its connection is seen
//! to end ([`LISTEN`]), and who aborts when it shows that. A rank that has passed by then enters
//! MPI and waits there for good, where MPI itself does not notice.
//!
//! An MPI that goes on when ranks die (ULFM) lets them out of calls that cannot end: a failure
//! revokes the communicator, and what is left may be shrunk (`comm`).
//!
//! When a call fails while MPI has it under way, MPI keeps the buffers: nothing in MPI takes them
//! back. Docs say so (docs/mpi.md).

mod cells;
mod hot;
mod job;
mod ops;
mod script;

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use self::cells::Says;
use self::hot::Hot;
use self::job::{Ground, Job, State};
use self::ops::Ops;
use self::script::{INT_MAX, Rules, divides};
use crate::backend::native::Native;
use crate::backend::{BLOCKING, Backend};
use crate::call::{Call, Guise, Head, Ragged};
use crate::engine::wires::mismatch;
use crate::engine::{Hurried, Known, Progress};
use crate::error::{Code, Error, Result, Scope};
use crate::link::doze::Doze;
use crate::mpi::{Handle, Level, Library};
use crate::plan::Algorithm;
use crate::types::{Collective, Dtype, Rank};

/// How long a rank sleeps at most while MPI, which rings no bell, has something under way.
const NAP: Duration = Duration::from_micros(50);

/// A rank that has not listened for so long listens before it enters MPI, where it cannot: the
/// others may have given the call up, and what they showed in the gate before stands there still.
const LISTEN: Duration = Duration::from_millis(2);

/// A rank that has not come to a gate for so long is late for the next.
const LATE: Duration = Duration::from_millis(20);

/// How long the side is asked, at most, for whom MPI refuses a call.
const CULPRIT: Duration = Duration::from_millis(100);

/// How long a second gate may take, deadlines or not: all ranks are on their way to it.
const OVERTIME: Duration = Duration::from_secs(10);

/// Jobs that are kept for later calls, with the memory they have.
const SPARE_MAX: usize = 8;

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
    /// The deadline of calls.
    pub(crate) timeout: Option<Duration>,
}

/// What a rank has of MPI.
#[derive(Debug)]
struct Tools {
    parts: Parts,
    ops: Ops,
    /// MPI has calls for large counts.
    large: bool,
    /// MPI goes on when ranks die, and lets ranks out of calls that cannot end.
    survives: bool,
}

impl Tools {
    fn me(&self) -> usize {
        self.parts.rank.index()
    }

    fn world(&self) -> usize {
        Rank(self.parts.world).index()
    }

    /// What a job runs on.
    fn ground(&self) -> Ground<'_> {
        Ground { library: &self.parts.library, comm: self.parts.comm }
    }

    /// With `divided`, for counts that are too many for MPI on some rank.
    fn rules(&self, divided: bool) -> Rules<'_> {
        Rules {
            constants: self.parts.library.api().constants(),
            ops: &self.ops,
            me: self.me(),
            world: self.world(),
            deterministic: self.parts.deterministic,
            limit: self.parts.limit,
            large: self.large,
            gated: self.parts.checks,
            divided,
        }
    }
}

/// One rank's side of everything in flight.
#[derive(Debug)]
pub(crate) struct Mpi {
    side: Native,
    tools: Tools,
    /// The only thread that may call MPI, where there is one.
    only: Option<ThreadId>,
    jobs: VecDeque<Job>,
    spare: Vec<Job>,
    hot: Hot,
    /// When this rank last came to a gate, and the time after which it is late for the next.
    came: Instant,
    late: Duration,
    /// Collectives so far.
    seq: u64,
    numbers: u32,
    uncounted: u32,
    ended: VecDeque<(u32, Result<()>)>,
    spent: Vec<Ragged>,
    /// Every rank has been let out of MPI, for good.
    revoked: bool,
}

// SAFETY: the addresses inside belong to calls whose makers promise them valid on any thread, or
// to boxes of its own.
unsafe impl Send for Mpi {}

impl Mpi {
    /// A backend on `parts`, whose ranks have met as `side`.
    ///
    /// # Errors
    /// MPI's own.
    pub(crate) fn new(side: Native, mut parts: Parts) -> Result<Self> {
        let ops = Ops::new(&parts.library)?;
        let thread = parts.library.thread()?;
        let only = (thread.level < Level::Serialized).then(|| std::thread::current().id());
        let late = parts.timeout.map_or(LATE, |timeout| LATE.min(timeout / 4));
        parts.limit = parts.limit.clamp(1, INT_MAX);
        let large = parts.library.api().has_large_counts();
        let survives = parts.library.survives();
        Ok(Self {
            side,
            only,
            jobs: VecDeque::new(),
            spare: Vec::new(),
            hot: Hot::new(Rank(parts.world).index()),
            came: Instant::now(),
            late,
            seq: 0,
            numbers: 0,
            uncounted: 0,
            ended: VecDeque::new(),
            spent: Vec::new(),
            revoked: false,
            tools: Tools { parts, ops, large, survives },
        })
    }

    /// Whether this rank comes late to a gate: longer after the one before than others may wait.
    fn is_late(&self, now: Instant) -> bool {
        now.duration_since(self.came) >= self.late
    }

    /// Whether nothing is known to have failed, now that a gate has been passed.
    fn still_whole(&mut self, now: Instant) -> bool {
        if now.duration_since(self.side.watched()) >= LISTEN {
            self.side.watch();
        }
        self.side.is_whole()
    }

    /// MPI has refused a call. Where the reason is that a rank is gone, the side hears of it soon,
    /// and knows which.
    #[cold]
    fn look_for_culprit(&mut self) {
        let until = Instant::now() + CULPRIT;
        while self.side.broken().is_none() && Instant::now() < until {
            self.side.watch();
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Whether this thread may call MPI, and MPI still runs.
    fn may_call(&self) -> bool {
        let library = &self.tools.parts.library;
        self.only.is_none_or(|only| only == std::thread::current().id())
            && !library.is_copy()
            && !library.is_finalized()
    }

    /// A job without a call, used before if there is one.
    fn blank(&mut self) -> Job {
        self.spare.pop().unwrap_or_else(|| Job::new(self.tools.world()))
    }

    /// Sees to it that script and gate of `call` are at hand; `known` says if they are already.
    ///
    /// # Errors
    /// `OUT_OF_MEMORY`.
    #[inline]
    fn prepare(&mut self, call: &Call, known: &mut Known) -> Result<()> {
        if !self.hot.is(known) {
            known.memo = self.hot.make(call, self.side.head_of(call), self.tools.rules(false))?;
        }
        Ok(())
    }

    /// Makes the call that is at hand, while nothing else is under way, and waits in MPI; whether
    /// it is over. What takes several messages may not be: then it is in line.
    #[inline]
    fn run(&mut self, call: &Call, ticket: u32) -> Result<bool> {
        let outcome = self.hot.run(self.tools.ground());
        if matches!(outcome, Ok(true)) {
            return outcome;
        }
        let blank = self.blank();
        let mut job = self.hot.take_job(blank);
        (job.ticket, job.state) = (ticket, State::Ready { waits: true });
        job.call = Some(call.clone());
        self.jobs.push_back(job);
        outcome
    }

    /// Puts `call` in line, and its gate on its way.
    fn enqueue(&mut self, call: Call, ticket: u32) -> Result<()> {
        let mut job = self.blank();
        self.numbers = self.numbers.wrapping_add(1);
        self.seq += u64::from(!call.collective.point_to_point());
        (job.ticket, job.number, job.seq) = (ticket, self.numbers, self.seq);
        (job.later, job.hurried) = (ticket != BLOCKING, false);
        let checks = self.tools.parts.checks;
        job.divided = checks && divides(&call, self.tools.rules(false));
        let written = job.begin(&call, self.tools.rules(job.divided));
        if let Err(error) = &written
            && !checks
            && error.scope() == Scope::Call
        {
            // Nobody has been told of this call.
            self.ended.push_back((ticket, Err(error.clone())));
            return Ok(());
        }
        job.state = if checks { State::Waiting } else { State::Ready { waits: !job.later } };
        let message = call.collective.point_to_point();
        job.call = Some(call);
        self.jobs.push_back(job);
        if written.is_ok() && checks {
            if message {
                self.meet(self.jobs.len() - 1, false);
            } else {
                self.meet_next();
            }
        }
        written
    }

    /// Sends this rank to the next gate, unless it stands in one. One after the other, since nobody
    /// knows before a gate is passed whether it is passed once more.
    fn meet_next(&mut self) {
        let of_all = |job: &Job| job.call.as_ref().is_some_and(|c| !c.collective.point_to_point());
        let mut line = self.jobs.iter().enumerate().filter(|(_, job)| of_all(job));
        let first = line.find(|(_, job)| matches!(job.state, State::Waiting | State::Gate));
        if let Some((index, job)) = first
            && job.state == State::Waiting
        {
            let now = Instant::now();
            let late = self.is_late(now);
            self.came = now;
            self.meet(index, late);
        }
    }

    /// Sends this rank to a job's gate.
    fn meet(&mut self, index: usize, late: bool) {
        let job = &mut self.jobs[index];
        let Some(call) = &job.call else { return };
        let mut gate = if call.collective.point_to_point() {
            Call { root: call.root, ..Call::new(call.collective, Dtype::U8) }
        } else {
            let says = Says { later: job.later, late, divided: job.divided };
            job.cells.gate(call, self.tools.me(), says)
        };
        gate.guise = Guise::Of(Box::new(self.side.head_of(call)));
        (job.state, job.hurried) = (State::Gate, false);
        // SAFETY: the gate's buffers are the job's cells, which stay where they are while the job
        // is in line; it leaves the line when the gate has ended, or with a side that is broken and
        // touches nothing any more.
        unsafe { self.side.submit(gate, job.number) };
    }

    /// A gate has been passed.
    fn passed(&mut self, number: u32) -> Result<()> {
        let Some(index) = self.jobs.iter().position(|job| job.number == number) else {
            return Ok(());
        };
        let job = &mut self.jobs[index];
        let Some(call) = job.call.take() else { return Ok(()) };
        job.overtime = None;
        let message = call.collective.point_to_point();
        let cells = if job.hurried { self.hot.cells() } else { &job.cells };
        let (fits, says) = if message { (true, Says::default()) } else { cells.heard(&call) };
        let mut written = Ok(());
        if fits && says.divided && !job.divided {
            written = job.begin(&call, self.tools.rules(true));
        }
        job.state =
            if fits { State::Ready { waits: !message && !says.later } } else { State::Doomed };
        job.call = Some(call);
        if !fits {
            return self.doomed(index);
        }
        if says.late {
            // This time nobody is, and nobody may leave: who passes the gate goes into MPI.
            job.overtime = Some(Instant::now() + OVERTIME);
            self.meet(index, false);
        } else {
            self.meet_next();
        }
        written
    }

    /// Counts of a job differ between two ranks: whoever sees which, says so.
    fn doomed(&mut self, index: usize) -> Result<()> {
        let (me, job) = (self.tools.me(), &self.jobs[index]);
        let Some(call) = &job.call else { return Ok(()) };
        let Some((peer, told, expected)) = job.cells.unlike(call, me) else { return Ok(()) };
        let head = Head { seq: job.seq, ..self.side.head_of(call) };
        let of = |count: u64| Head { count, ..head };
        Err(mismatch(me, &of(expected), peer, &of(told)))
    }

    /// Lets every job go on that may; whether any moved.
    fn advance(&mut self) -> Result<bool> {
        let on = self.tools.ground();
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
                    if self.spare.len() < SPARE_MAX {
                        self.spare.push(job);
                    }
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
        let library = self.tools.parts.library.clone();
        let may_call = self.may_call();
        if self.tools.survives && may_call && !std::mem::replace(&mut self.revoked, true) {
            // Others may wait in MPI, where they hear nothing. What it says changes nothing.
            library.api().comm_revoke(self.tools.parts.comm);
        }
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
            moved = true;
            // Else its job stays at the gate until it is known who has failed.
            if self.still_whole(Instant::now()) {
                self.passed(number)?;
            }
        }
        if self.may_call() {
            moved |= self.advance()?;
        }
        Ok(moved)
    }
}

impl Backend for Mpi {
    unsafe fn submit(&mut self, call: Call, ticket: u32) {
        if let Err(error) = self.tools.parts.library.running() {
            self.fail(error);
        }
        if let Some(error) = self.side.broken() {
            self.ended.push_back((ticket, Err(error.clone())));
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
        if !self.may_hurry(call.collective) || self.prepare(call, known).is_err() {
            return Hurried::Left;
        }
        if self.tools.parts.checks {
            let now = Instant::now();
            self.numbers = self.numbers.wrapping_add(1);
            self.hot.say(Says { late: self.is_late(now), ..Says::default() });
            // SAFETY: the cells are our own, and the gate's alone until it has ended.
            let gate = unsafe { self.side.hurry((self.hot.gate(), known), self.numbers, polls) };
            if gate == Hurried::Left {
                return gate;
            }
            self.seq += 1;
            self.came = now;
            let passed = gate == Hurried::Ended && self.still_whole(now);
            if !passed || self.hot.said() != Says::default() {
                self.line_up(call, ticket, passed);
                return Hurried::Taken;
            }
        } else {
            self.uncounted += 1;
            if self.uncounted.is_multiple_of(WATCH_EVERY) {
                self.side.watch();
                if !self.side.is_whole() {
                    return Hurried::Left;
                }
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

    fn overtime(&self) -> Option<Instant> {
        self.jobs.iter().filter_map(|job| job.overtime).max()
    }

    fn only_thread(&self) -> Option<ThreadId> {
        self.only
    }

    /// MPI may have some of them under way, and takes nothing back.
    fn lets_go(&self) -> bool {
        false
    }

    fn watch(&mut self) {
        self.side.watch();
        if self.may_call() {
            // Who waits natively for a peer must let MPI go on for it; what it answers is nothing.
            self.tools.parts.library.api().progress(self.tools.parts.comm);
        }
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
        if error.code == Code::Backend {
            self.look_for_culprit();
        }
        let native = error.native;
        // What ends one call elsewhere ends the communicator here: the peers have begun the call.
        self.side.fail(error.clone());
        let error = Error { native, ..self.side.broken().cloned().unwrap_or(error) };
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
        let name = &self.tools.parts.library.name;
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
    /// Whether a call of this kind may be made at once.
    #[inline]
    fn may_hurry(&self, kind: Collective) -> bool {
        self.jobs.is_empty()
            && !kind.ragged()
            && !kind.point_to_point()
            && self.side.broken().is_none()
            && !self.tools.parts.library.is_finalized()
    }

    /// A hurried call takes its place in line. Its gate is passed, but some rank may not wait, or
    /// came late; or it is under way, or some rank has failed, which ends it with the others.
    fn line_up(&mut self, call: &Call, ticket: u32, passed: bool) {
        let mut job = self.blank();
        (job.ticket, job.number, job.seq) = (ticket, self.numbers, self.seq);
        (job.later, job.hurried, job.divided) = (false, true, false);
        let written = job.begin(call, self.tools.rules(false));
        job.call = Some(call.clone());
        self.jobs.push_back(job);
        let passed = if passed { self.passed(self.numbers) } else { Ok(()) };
        if let Err(error) = written.and(passed) {
            self.fail(error);
        }
    }
}

impl Drop for Mpi {
    fn drop(&mut self) {
        let library = self.tools.parts.library.clone();
        // A broken communicator may have calls that MPI never ends.
        let whole = self.side.broken().is_none() && self.jobs.is_empty();
        if whole && self.may_call() {
            self.tools.ops.free(&library);
            library.api().comm_free(self.tools.parts.comm);
        }
    }
}
