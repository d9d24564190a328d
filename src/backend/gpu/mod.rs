//! Calls on memory of GPUs, beside a whole native backend: the *side*.
//!
//! Calls on host memory are the side's own. A call on device memory is a job: NCCL makes it
//! ([`Moved`]); or a device that reaches all ranks' buffers does ([`Led`]), or it goes by way of
//! host memory through native calls ([`Staged`]). Either way the ranks show each other its head on
//! the side, so that mismatches, deadlines, deaths and aborts end it by the same code and in the
//! same words as on host memory.
//!
//! A call waits for its end, or it has its place in a stream of CUDA's: then it has ended for its
//! caller as soon as that place is taken, and goes on *unattended*. What comes later in the stream
//! waits for a [`Mark`] that this backend sets when the call is over, well or not. What NCCL makes
//! needs none: NCCL puts it into the stream itself.
//!
//! Rules:
//!
//! - Native calls begin in the order of the calls they are made for, as on every rank. So a
//!   collective makes its first when those before it have made their last. Messages have an order
//!   of their own for each peer and direction.
//! - What the device may still read or write is never given back: after a failure it stays where
//!   it is, for good.

mod direct;
pub(crate) mod kernels;
mod marks;
mod moved;
mod moves;
mod piece;
mod staged;
mod steps;

use std::collections::VecDeque;
use std::ffi::c_void;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(crate) use self::direct::Reach;
use self::direct::{Direct, Led, Step};
use self::marks::{Mark, Marks};
use self::moved::Moved;
pub(crate) use self::moved::Nccl;
use self::staged::{Spare, Staged};
use crate::backend::Backend;
use crate::backend::native::Native;
use crate::call::{Call, Guise, Head, Place, Ragged};
use crate::cuda::{Context, Device, Event, Stream, StreamRef, Timing};
use crate::engine::{Hurried, Known, Progress};
use crate::error::{Code, Error, Result, Scope};
use crate::link::doze::Doze;
use crate::plan::Algorithm;
use crate::sync::{AtomicU32, Ordering};
use crate::types::{Collective, Rank};

/// How long a rank sleeps at most while the device, which rings no bell, works for it.
const NAP: Duration = Duration::from_micros(20);

/// Calls under way after which the next in a stream waits until one is over.
const UNATTENDED_MAX: usize = 1000;

/// Numbers of native calls made here begin with this bit; those of callers' tickets do not.
const OWN: u32 = 1 << 31;

/// Numbers for native calls.
#[derive(Debug)]
struct Numbers(u32);

impl Numbers {
    /// Gives the side a native call that shows `head`; its number.
    ///
    /// # Safety
    /// As for [`Backend::submit`].
    unsafe fn pass(&mut self, mut call: Call, head: Head, side: &mut Native) -> u32 {
        self.0 = self.0.wrapping_add(1) | OWN;
        call.guise = Guise::Of(Box::new(head));
        // SAFETY: the caller's promise is passed on.
        unsafe { side.submit(call, self.0) };
        self.0
    }
}

/// Events that nothing waits for.
#[derive(Debug, Default)]
struct Events(Vec<Event>);

impl Events {
    /// One that says when all that is in `stream` now is done.
    ///
    /// # Errors
    /// CUDA's own.
    fn record(&mut self, stream: &StreamRef, context: &Arc<Context>) -> Result<Event> {
        let event = match self.0.pop() {
            Some(event) => event,
            None => Event::new(context, Timing::Without)?,
        };
        stream.record(&event)?;
        Ok(event)
    }

    fn put_back(&mut self, event: Option<Event>) {
        self.0.extend(event);
    }
}

/// What a rank has of its GPU.
#[derive(Debug)]
struct Tools {
    context: Arc<Context>,
    /// Copies from the device, and to it.
    inward: Stream,
    outward: Stream,
    /// Multiprocessors, and compute capability.
    processors: u32,
    capability: (u32, u32),
    me: Rank,
    world: u32,
}

impl Tools {
    /// A stream of the program's, by its handle.
    fn stream(&self, handle: usize) -> StreamRef {
        // SAFETY: whoever gave it has promised that it is one, and stays.
        unsafe { StreamRef::of(self.context.driver(), handle as *mut c_void) }
    }
}

/// A call under way, on memory of either kind.
#[derive(Debug)]
struct Job {
    call: Call,
    ticket: u32,
    way: Way,
    /// What is before it in the program's stream, until that is done.
    ready: Option<Event>,
    /// What waits for it in the stream.
    mark: Option<Mark>,
    /// It is of a group that has not all come: nothing in the stream waits for it yet.
    grouped: bool,
    /// Its caller has been told that it has ended, or will be when fewer are unattended.
    unattended: bool,
    deadline: Option<Instant>,
}

/// What a look at a job has found.
#[derive(Clone, Copy, Debug, Default)]
struct Looked {
    moved: bool,
    over: bool,
    /// NCCL goes on with it by itself, and takes nothing else.
    waits: bool,
}

/// A message's direction and peer; `None`: a collective.
type Lane = Option<(Collective, Rank)>;

/// How a call is made.
#[derive(Debug)]
enum Way {
    /// On host memory, by the side alone; it has been given to the side or not.
    Host {
        sent: bool,
    },
    Moved(Box<Moved>),
    Led(Led),
    Staged(Staged),
}

impl Job {
    fn new(call: Call, ticket: u32, way: Way) -> Self {
        Self {
            call,
            ticket,
            way,
            ready: None,
            mark: None,
            grouped: false,
            unattended: false,
            deadline: None,
        }
    }

    /// Whether the side has been given all of it.
    fn has_sent(&self) -> bool {
        match &self.way {
            Way::Host { sent } => *sent,
            Way::Moved(moved) => moved.has_sent(),
            Way::Led(led) => led.has_sent(),
            Way::Staged(staged) => staged.has_sent(),
        }
    }

    fn is_on_device(&self) -> bool {
        let at_work = match &self.way {
            Way::Host { .. } => false,
            Way::Moved(moved) => moved.is_on_device(),
            Way::Led(led) => led.is_on_device(),
            Way::Staged(staged) => staged.is_on_device(),
        };
        at_work || self.ready.is_some()
    }

    /// Whether something of it may have to be looked after, whatever stands before it.
    fn is_under_way(&self) -> bool {
        match &self.way {
            Way::Staged(staged) => self.ready.is_none() && staged.is_on_device(),
            Way::Moved(_) => true,
            Way::Host { .. } | Way::Led(_) => self.has_sent(),
        }
    }

    /// Native calls of jobs with equal lanes begin one job after the other.
    fn lane(&self) -> Lane {
        let kind = self.call.collective;
        kind.point_to_point().then_some((kind, self.call.root))
    }
}

/// One rank's side of everything in flight.
#[derive(Debug)]
pub(crate) struct Gpu {
    // Before the side, which has the memory of its stages.
    spare: Spare,
    jobs: VecDeque<Job>,
    /// Where jobs stand that others must not pass, while they are looked at.
    line: Vec<Lane>,
    /// Calls whose callers wait until fewer are unattended.
    held: VecDeque<u32>,
    /// How a device makes calls on all ranks' memory, where one reaches it.
    direct: Option<Direct>,
    nccl: Option<Nccl>,
    marks: Marks,
    tools: Tools,
    side: Native,
    events: Events,
    numbers: Numbers,
    timeout: Option<Duration>,
    unattended: Arc<AtomicU32>,
    ended: VecDeque<(u32, Result<()>)>,
    /// Native calls of our own that have ended, and whose jobs have not been told.
    own_ends: VecDeque<(u32, Result<()>)>,
    spent: Vec<Ragged>,
}

// SAFETY: the addresses inside belong to calls whose makers promise them valid on any thread, to
// memory of the side, or to the device.
unsafe impl Send for Gpu {}

impl Gpu {
    /// A backend for memory of `context`'s device, whose ranks have met as `side`.
    ///
    /// # Errors
    /// CUDA's own.
    pub(crate) fn new(
        side: Native,
        (context, device): (Arc<Context>, &Device),
        (me, world): (Rank, u32),
        (nccl, reach): (Option<Nccl>, Option<Reach>),
        timeout: Option<Duration>,
    ) -> Result<Self> {
        let _entered = context.enter()?;
        let (inward, outward) = (Stream::new(&context)?, Stream::new(&context)?);
        let Device { processors, capability, .. } = *device;
        let direct = reach.map(|reach| Direct::new(reach, me, &context)).transpose()?;
        Ok(Self {
            spare: Spare::default(),
            jobs: VecDeque::new(),
            line: Vec::new(),
            held: VecDeque::new(),
            nccl,
            direct: direct.flatten(),
            marks: Marks::new(&context)?,
            tools: Tools {
                context: context.clone(),
                inward,
                outward,
                processors,
                capability,
                me,
                world,
            },
            side,
            events: Events::default(),
            numbers: Numbers(0),
            timeout,
            unattended: Arc::new(AtomicU32::new(0)),
            ended: VecDeque::new(),
            own_ends: VecDeque::new(),
            spent: Vec::new(),
        })
    }

    /// Takes on a call: one on device memory, or one on host memory that others stand before.
    ///
    /// # Errors
    /// CUDA's own.
    fn enqueue(&mut self, call: Call, ticket: u32) -> Result<()> {
        let head = self.side.head_of(&call);
        let way = match call.place {
            Place::Host => Way::Host { sent: false },
            // NCCL takes messages in the order of calls alone: who sends first, and then receives,
            // would wait for ever. Here messages go beside each other and beside collectives.
            _ if self.nccl.is_some() && !call.collective.point_to_point() => {
                self.move_by_nccl(call, ticket, head);
                return Ok(());
            }
            _ if self.direct.is_some() && Direct::takes(&call) => Way::Led(Led::new(head)),
            _ => Way::Staged(Staged::new(&call, head, &self.tools)),
        };
        let mut job = Job::new(call, ticket, way);
        let Place::Stream { handle, more } = job.call.place else {
            self.jobs.push_back(job);
            return Ok(());
        };
        let stream = self.tools.stream(handle);
        let placed = self.take_place(&stream).map(|ready| {
            job.ready = Some(ready);
            job.deadline = self.deadline();
            job.grouped = true;
            self.jobs.push_back(job);
        });
        // Calls of a group have one place: nothing of the stream waits between them.
        let marked = if more { Ok(()) } else { self.mark_group(&stream) };
        if let Err(error) = placed {
            self.ended.push_back((ticket, Err(error.clone())));
            return if error.scope() == Scope::Call { marked } else { Err(error) };
        }
        marked
    }

    /// When a call that begins now must be over, if nobody waits for it.
    fn deadline(&self) -> Option<Instant> {
        self.timeout.and_then(|timeout| Instant::now().checked_add(timeout))
    }

    /// Lets what comes later in `stream` wait for the last jobs, whose place is there.
    fn mark_group(&mut self, stream: &StreamRef) -> Result<()> {
        for index in 0..self.jobs.len() {
            if std::mem::take(&mut self.jobs[index].grouped) {
                self.jobs[index].mark = Some(self.marks.take(stream)?);
                self.leave(index);
            }
        }
        Ok(())
    }

    /// A job has its place in its stream: its caller goes on.
    fn leave(&mut self, index: usize) {
        let crowd = self.jobs.len();
        let job = &mut self.jobs[index];
        job.unattended = true;
        if crowd <= UNATTENDED_MAX {
            self.ended.push_back((job.ticket, Ok(())));
        } else {
            self.held.push_back(job.ticket);
        }
        // ORDERING: of this and the look of a progress thread about to sleep, one sees the other.
        self.unattended.fetch_add(1, Ordering::SeqCst);
    }

    /// Takes on a call for NCCL; its gate is under way at once.
    fn move_by_nccl(&mut self, call: Call, ticket: u32, head: Head) {
        let Some(nccl) = &self.nccl else { return };
        let mut moved = Box::new(Moved::new(&call, head, nccl, &self.tools));
        if !moved.has_sent() {
            moved.meet(&call, &mut self.side, &self.tools, &mut self.numbers);
        }
        let way = Way::Moved(moved);
        let in_stream = matches!(call.place, Place::Stream { .. });
        let deadline = if in_stream { self.deadline() } else { None };
        let grouped =
            matches!(call.place, Place::Stream { more: true, .. } | Place::Device { more: true });
        self.jobs.push_back(Job { deadline, grouped, ..Job::new(call, ticket, way) });
    }

    /// Takes a place in the program's stream: the event says when what comes before is done.
    fn take_place(&mut self, stream: &StreamRef) -> Result<Event> {
        if stream.is_capturing()? {
            let text = "graphs are captured with NCCL only: the native backend works on the host, \
                        too";
            return Err(Error::new(Code::Unsupported, text));
        }
        self.events.record(stream, &self.tools.context)
    }

    /// Lets every job go on that may; whether any moved.
    fn advance(&mut self) -> Result<bool> {
        let (mut moved_on, mut waits, mut index) = (false, false, 0);
        let mut line = std::mem::take(&mut self.line);
        line.clear();
        while index < self.jobs.len() {
            let job = &mut self.jobs[index];
            let lane = job.lane();
            let first = !line.contains(&lane);
            if !first && !job.is_under_way() {
                index += 1;
                continue;
            }
            if let Some(ready) = &job.ready {
                if !ready.query()? {
                    line.push(lane);
                    index += 1;
                    continue;
                }
                self.events.put_back(job.ready.take());
            }
            if job.grouped && matches!(job.way, Way::Moved(_)) && !waits {
                waits = !self.begin_group(index)?;
                moved_on |= !waits;
            }
            let looked = self.look_after(index, first, waits)?;
            moved_on |= looked.moved;
            waits |= looked.waits;
            let over = looked.over;
            let job = &self.jobs[index];
            if !over {
                if !job.has_sent() {
                    line.push(lane);
                }
                index += 1;
                continue;
            }
            moved_on = true;
            if let Some(job) = self.jobs.remove(index) {
                self.end(job, Ok(()));
            }
        }
        self.line = line;
        Ok(moved_on)
    }

    /// Looks after one job, which is `first` of its lane or not. With `waits` NCCL takes nothing.
    fn look_after(&mut self, index: usize, first: bool, waits: bool) -> Result<Looked> {
        let mut looked = Looked::default();
        let job = &mut self.jobs[index];
        match &mut job.way {
            Way::Moved(moved) => {
                // NCCL takes calls in their order.
                let Some(nccl) = self.nccl.as_mut().filter(|_| !waits) else { return Ok(looked) };
                if !moved.is_issued() {
                    let tools = (&self.tools, &mut self.events);
                    looked.moved = moved.issue(&job.call, nccl, tools)?;
                    looked.waits = !moved.is_issued();
                }
                looked.over = moved.is_over(&mut self.events)?;
                let placed = moved.is_issued() && !job.unattended;
                if placed && matches!(job.call.place, Place::Stream { .. }) {
                    self.leave(index);
                }
            }
            Way::Host { sent } => {
                if first && !std::mem::replace(sent, true) {
                    // SAFETY: the promise of the call's maker is passed on.
                    unsafe { self.side.submit(job.call.clone(), job.ticket) };
                    looked.moved = true;
                }
                looked.over = *sent;
            }
            Way::Led(led) => {
                let Some(direct) = &mut self.direct else { return Ok(looked) };
                let tools = (&self.tools, direct, &mut self.numbers, &mut self.events);
                let step = led.advance(&job.call, &mut self.side, first, tools)?;
                looked.moved = step != Step::Waits;
                looked.over = led.is_over();
                if step == Step::OutOfReach {
                    let head = self.side.head_of(&job.call);
                    job.way = Way::Staged(Staged::new(&job.call, head, &self.tools));
                }
            }
            Way::Staged(staged) => {
                let tools = (&self.tools, &mut self.spare, &mut self.numbers);
                looked.moved = staged.advance(&job.call, &mut self.side, first, tools)?;
                looked.over = staged.is_over();
            }
        }
        Ok(looked)
    }

    /// Gives NCCL the group that begins with job `index`, all of it at once; false where it has not
    /// all come, or NCCL takes nothing yet. What is more than one call of NCCL's comes afterwards.
    fn begin_group(&mut self, index: usize) -> Result<bool> {
        let Some(nccl) = &mut self.nccl else { return Ok(false) };
        let Some(last) = (index..self.jobs.len()).find(|&i| !self.jobs[i].grouped) else {
            return Ok(false);
        };
        if !nccl.takes()? {
            return Ok(false);
        }
        let library = nccl.library.clone();
        let jobs = &mut self.jobs;
        let begun = library.group(|| {
            for job in jobs.range_mut(index..=last) {
                job.grouped = false;
                if let Way::Moved(moved) = &mut job.way
                    && moved.is_one_call()
                {
                    // What goes on by itself shows in the communicator after the group.
                    let _ = moved.begin(&job.call, nccl, &self.tools)?;
                }
            }
            Ok(())
        });
        begun.map(|_| true)
    }

    /// A job is over.
    fn end(&mut self, job: Job, result: Result<()>) {
        if let Some(mark) = job.mark {
            self.marks.set(mark);
        }
        if job.unattended {
            self.unattended.fetch_sub(1, Ordering::Relaxed);
            self.ended.extend(self.held.pop_front().map(|ticket| (ticket, result)));
        } else if !matches!(job.way, Way::Host { sent: true }) {
            // The side tells the end of what it has.
            self.ended.push_back((job.ticket, result));
        }
        match job.way {
            Way::Host { .. } | Way::Moved(_) => {}
            Way::Led(led) => led.abandon(),
            Way::Staged(staged) => staged.abandon(),
        }
        self.spent.extend(job.call.into_lists());
    }

    /// Ends every job with `error`.
    fn end_all(&mut self, error: &Error) {
        if let Some(nccl) = &mut self.nccl {
            nccl.abort();
        }
        while let Some(job) = self.jobs.pop_front() {
            self.end(job, Err(error.clone()));
        }
        self.own_ends.clear();
    }

    /// Parts the ends of callers' calls from those of our own.
    fn sort_ends(&mut self) {
        while let Some((number, result)) = self.side.take_ended() {
            let own = number & OWN != 0;
            let list = if own { &mut self.own_ends } else { &mut self.ended };
            list.push_back((number, result));
        }
    }

    /// Moves what can move; errors end everything.
    fn turn(&mut self) -> Result<bool> {
        let mut moved = false;
        self.sort_ends();
        while let Some((number, result)) = self.own_ends.pop_front() {
            moved = true;
            result?;
            for job in &mut self.jobs {
                let found = match &mut job.way {
                    Way::Host { .. } => false,
                    Way::Moved(moved) => moved.ended(number, &job.call, self.tools.me)?,
                    Way::Led(led) => led.ended(number),
                    Way::Staged(staged) => staged.ended(number, &self.tools)?,
                };
                if found {
                    break;
                }
            }
        }
        Ok(self.advance()? || moved)
    }
}

impl Backend for Gpu {
    unsafe fn submit(&mut self, call: Call, ticket: u32) {
        if let Some(error) = self.side.broken() {
            self.ended.push_back((ticket, Err(error.clone())));
            return;
        }
        if call.place.is_host() && self.jobs.is_empty() {
            // SAFETY: the caller's promise is passed on.
            unsafe { self.side.submit(call, ticket) };
            return;
        }
        let context = self.tools.context.clone();
        let outcome = context.enter().and_then(|_entered| {
            self.enqueue(call, ticket)?;
            self.advance()
        });
        if let Err(error) = outcome {
            self.fail(error);
        }
    }

    unsafe fn hurry(
        &mut self,
        (call, known): (&Call, &mut Known),
        ticket: u32,
        polls: u32,
    ) -> Hurried {
        if call.place.is_host() && self.jobs.is_empty() {
            // SAFETY: the caller's promise is passed on.
            return unsafe { self.side.hurry((call, known), ticket, polls) };
        }
        if matches!(call.place, Place::Stream { .. }) && self.ended.is_empty() {
            // SAFETY: the caller's promise is passed on.
            unsafe { self.submit(call.clone(), ticket) };
            if let Some((_, Ok(()))) = self.ended.front()
                && self.ended.len() == 1
            {
                self.ended.clear();
                return Hurried::Ended;
            }
            return Hurried::Taken;
        }
        Hurried::Left
    }

    fn poll(&mut self) -> Progress {
        let side = self.side.poll();
        if self.jobs.is_empty() {
            // What is told is the side's own.
            return side;
        }
        let context = self.tools.context.clone();
        let turned = match self.side.broken() {
            Some(_) => Ok(false),
            None => context.enter().and_then(|_entered| self.turn()),
        };
        if let Err(error) = turned {
            self.fail(error);
            return Progress::Moved;
        }
        if let Some(error) = self.side.broken().cloned() {
            self.end_all(&error);
            return Progress::Moved;
        }
        if matches!(turned, Ok(true)) || side == Progress::Moved {
            Progress::Moved
        } else if self.jobs.is_empty() {
            side
        } else {
            Progress::Blocked
        }
    }

    fn take_ended(&mut self) -> Option<(u32, Result<()>)> {
        self.sort_ends();
        self.ended.pop_front()
    }

    fn take_spent(&mut self) -> Option<Ragged> {
        self.spent.pop().or_else(|| self.side.take_spent())
    }

    /// The device may still copy.
    fn lets_go(&self) -> bool {
        false
    }

    fn unattended(&self) -> Option<Arc<AtomicU32>> {
        Some(self.unattended.clone())
    }

    fn is_overdue(&self, now: Instant) -> bool {
        self.jobs.iter().any(|job| job.deadline.is_some_and(|deadline| now >= deadline))
    }

    fn watch(&mut self) {
        self.side.watch();
        if let Some(Err(error)) = self.nccl.as_ref().map(Nccl::watch) {
            self.fail(error);
        }
    }

    fn watched(&self) -> Instant {
        self.side.watched()
    }

    fn doze(&mut self, timeout: Duration) {
        if self.jobs.iter().any(Job::is_on_device) {
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
        let native = error.native;
        self.side.fail(error.clone());
        let error = Error { native, ..self.side.broken().cloned().unwrap_or(error) };
        self.end_all(&error);
    }

    fn broken(&self) -> Option<&Error> {
        self.side.broken()
    }

    fn awaited(&mut self) -> Vec<Rank> {
        self.side.awaited()
    }

    fn standing(&self) -> String {
        let on_device = |job: &&Job| job.is_on_device();
        match self.jobs.iter().find(on_device) {
            Some(job) if self.side.present().is_none() => {
                format!("{}: on the device", self.side.head_of(&job.call).describe())
            }
            _ => self.side.standing(),
        }
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

    fn prefer(&mut self, algorithm: Option<Algorithm>) {
        self.side.prefer(algorithm);
    }

    fn take_chosen(&mut self) -> Option<Algorithm> {
        self.side.take_chosen()
    }

    fn compare_ends(&mut self) -> Result<()> {
        self.side.compare_ends()
    }

    fn close(&mut self) {
        if self.side.broken().is_none()
            && let Some(nccl) = &mut self.nccl
        {
            nccl.close();
        }
        self.side.close();
    }
}
