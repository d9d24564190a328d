//! Calls on memory of GPUs, beside a whole native backend: the *side*.
//!
//! Calls on host memory are the side's own. A call on device memory is a job: NCCL makes it
//! ([`moved`]); or a device that reaches all ranks' buffers does ([`direct`]), or it goes by way of
//! host memory through native calls ([`staged`]). Either way the ranks show each other its head on
//! the side, so that mismatches, deadlines, deaths and aborts end it by the same code and in the
//! same words as on host memory.
//!
//! A call waits for its end, or it has its place in a stream of CUDA's: then it has ended for its
//! caller as soon as that place is taken, and goes on *unattended*. What comes later in the stream
//! waits for a *mark* ([`words`]) that this backend sets when the call is over, well or not. What
//! NCCL makes needs none: NCCL puts it into the stream itself.
//!
//! Rules:
//!
//! - Native calls begin in the order of the calls they are made for, as on every rank. So a
//!   collective makes its first when those before it have made their last. Messages have an order
//!   of their own for each peer and direction.
//! - Once a stream waits for a mark nothing is called that CUDA may let wait for that stream:
//!   kernels are loaded before the first call, stages are had before the call takes its place,
//!   mappings and stages are given back when nothing is under way. A failure sets all marks first.
//! - What the device may still read or write is given back when it is done.

mod compose;
mod direct;
mod job;
pub(crate) mod kernels;
mod line;
mod moved;
mod moves;
mod nccl;
mod piece;
mod staged;
mod steps;
mod told;
mod tools;
mod words;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::direct::Direct;
pub(crate) use self::direct::Reach;
use self::job::{Job, Lane};
use self::kernels::Kernels;
pub(crate) use self::kernels::are_for;
pub(crate) use self::nccl::{Nccl, NcclTerms};
use self::staged::Spare;
use self::tools::{Events, Numbers, Tools};
use self::words::Words;
use crate::backend::Backend;
use crate::backend::native::Native;
use crate::call::{Call, Place, Ragged};
use crate::cuda::{Context, Device, Memory, Stream};
use crate::engine::{Hurried, Known, Progress};
use crate::error::{Code, Error, Result, Scope};
use crate::health::LINK_GRACE;
use crate::link::doze::Doze;
use crate::plan::Algorithm;
use crate::sync::AtomicU32;
use crate::types::Rank;

/// How long a rank sleeps at most while the device, which rings no bell, works for it.
const NAP: Duration = Duration::from_micros(20);

/// Calls under way after which the next in a stream waits until one is over.
const UNATTENDED_MAX: usize = 1000;

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
    /// What NCCL has said that went wrong, and when: whoever is to blame may show by himself.
    suspect: Option<(Error, Instant)>,
    /// The group of the last call on device memory, and the last group that has all come.
    group: u32,
    complete: u32,
    words: Words,
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
        let (inward, outward) = (Stream::urgent(&context)?, Arc::new(Stream::urgent(&context)?));
        let Device { processors, capability, .. } = *device;
        let direct = reach.and_then(|reach| Direct::new(reach, me));
        let launches = nccl.is_some() || direct.as_ref().is_some_and(Direct::leads);
        let kernels =
            (launches && are_for(capability)).then(|| Kernels::of(&context)).transpose()?;
        Ok(Self {
            spare: Spare::default(),
            jobs: VecDeque::new(),
            line: Vec::new(),
            held: VecDeque::new(),
            nccl,
            direct,
            suspect: None,
            group: 0,
            complete: 0,
            words: Words::new(&context),
            tools: Tools {
                context: context.clone(),
                inward,
                outward,
                kernels,
                processors,
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
}

impl Gpu {
    /// NCCL says that something went wrong. A rank that has died is named by the side in a moment.
    fn suspect(&mut self, error: Error) {
        self.suspect.get_or_insert_with(|| (error, Instant::now()));
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
        if self.jobs.is_empty()
            && let Some(direct) = &mut self.direct
        {
            direct.tidy();
        }
        let context = self.tools.context.clone();
        let outcome = context.enter_relaxed().and_then(|_entered| {
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
            None => context.enter_relaxed().and_then(|_entered| self.turn()),
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
        let context = self.tools.context.clone();
        let Ok(_entered) = context.enter_relaxed() else { return };
        if let Some(Err(error)) = self.nccl.as_ref().map(Nccl::watch) {
            self.suspect(error);
        }
        // What waits for words would not see that the device is lost.
        if !self.jobs.is_empty()
            && let Err(error) = self.tools.outward.query()
        {
            return self.fail(error);
        }
        let late = |(_, since): &(Error, Instant)| since.elapsed() >= 2 * LINK_GRACE;
        if self.suspect.as_ref().is_some_and(late)
            && let Some((error, _)) = self.suspect.take()
        {
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
        let error = match error.scope() {
            Scope::Call => Error { code: Code::Backend, ..error },
            _ => error,
        };
        let first = self.side.broken().is_none();
        self.side.fail(error.clone());
        let mut broken = self.side.broken().cloned().unwrap_or_else(|| error.clone());
        if first {
            broken.native = error.native;
        }
        self.end_all(&broken);
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

    unsafe fn register(&mut self, memory: *mut u8, bytes: usize) -> Result<()> {
        let context = self.tools.context.clone();
        let _entered = context.enter_relaxed()?;
        let kind = context.driver().recognise(memory.cast_const().cast())?;
        match &mut self.nccl {
            // SAFETY: the caller's promise is passed on.
            Some(nccl) if matches!(kind, Memory::Device { .. }) => unsafe {
                nccl.register(memory, bytes)
            },
            _ => Ok(()),
        }
    }

    fn deregister(&mut self, memory: *mut u8) -> Result<()> {
        let context = self.tools.context.clone();
        let _entered = context.enter_relaxed()?;
        self.nccl.as_mut().map_or(Ok(()), |nccl| nccl.deregister(memory))
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
        let context = self.tools.context.clone();
        let _entered = context.enter_relaxed();
        if self.side.broken().is_none()
            && let Some(nccl) = &mut self.nccl
        {
            nccl.close();
        }
        self.side.close();
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        self.words.set_all();
        let context = self.tools.context.clone();
        let _entered = context.enter_relaxed();
        // After a failure the device may still copy, and fold: what it uses goes when it is done.
        // What it says changes nothing.
        let _ = (self.tools.inward.synchronize(), self.tools.outward.synchronize());
    }
}
