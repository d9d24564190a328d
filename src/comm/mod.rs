//! Communicators: what a program holds, calls and waits on.
//!
//! A [`Communicator`] is one rank's place in a group of ranks. Its calls are the collectives; each
//! rank makes the same calls in the same order. Blocking calls return when this rank's part is
//! done; non-blocking ones return a [`Request`]. One thread may be inside a communicator at a time
//! (a second gets `BUSY`), but any number of communicators may be used at once, and `abort`, `wait`
//! and `test` work from any thread.
//!
//! The safe methods take slices. The raw ones ([`Communicator::run`], [`Communicator::start`]) take
//! a [`Call`] and are the C ABI's.
//!
//! Not here: how a call is carried out (the backend), and agreement on who is left after a failure,
//! which is MPI's where there is any.

mod again;
mod args;
pub(crate) mod call;
pub(crate) mod card;
pub(crate) mod core;
pub(crate) mod device;
mod device_memory;
pub(crate) mod form;
mod fuse;
#[cfg(test)]
mod gpu_tests;
pub(crate) mod ground;
mod group;
mod kernels;
mod nccl;
#[cfg_attr(not(unisono_rdma), path = "without_rdma.rs")]
mod rdma;
#[cfg(all(test, unisono_rdma, not(loom)))]
mod rdma_tests;
mod request;
#[cfg_attr(not(unisono_rdma), path = "without_rsocket.rs")]
mod rsocket;
#[cfg(all(test, unisono_rdma, not(loom)))]
mod rsocket_tests;
mod safe;
mod scope;
mod start;
mod table;
#[cfg(test)]
mod tests;
mod uneven;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

pub(crate) use self::again::Key;
pub use self::args::Args;
pub use self::call::Operation;
use self::call::{Seat, apart};
use self::core::Core;
use self::device::Gpu;
pub use self::device::cuda;
pub use self::device_memory::{DeviceMemory, DeviceStream};
use self::form::Formed;
use self::ground::Ground;
pub use self::ground::{mpi, nccl};
pub use self::kernels::{DeviceKernels, Room};
pub use self::rdma::rdma;
pub use self::request::Request;
pub use self::safe::{Element, F8E4M3, F8E5M2};
pub use self::scope::Scope;
pub use self::start::{bind_to_core, unique_id};
pub(crate) use self::table::lock;
use crate::backend::drive::Patience;
use crate::call::{Call, Ragged};
use crate::config::Config;
use crate::error::{self, Code, Error, Result};
use crate::obs::log::{Level, line};
use crate::plan::Algorithm;
use crate::sync::{AtomicU32, Ordering};
use crate::sys::process::block_signals;
use crate::types::Rank;

/// One rank's place in a group of ranks.
#[derive(Debug)]
pub struct Communicator {
    core: Arc<Core>,
    /// What a split stands on, on a foreign backend.
    ground: Option<Ground>,
    /// Its GPU, where it has one.
    gpu: Option<Gpu>,
    seat: Seat,
    config: Config,
    notes: Vec<String>,
    /// 1 while a thread is inside a call.
    inside: AtomicU32,
    /// Memory that calls will use often: first addresses and bytes.
    registered: Mutex<Vec<(usize, usize)>>,
    group: Mutex<Option<Vec<Call>>>,
    /// Whether there is a group: spares calls outside of one its lock.
    collects: AtomicU32,
    last_error: Mutex<Option<Error>>,
    progress: Mutex<Option<JoinHandle<()>>>,
    stop: Arc<AtomicU32>,
}

/// Marks that a thread is inside; unmarks when dropped.
struct Inside<'a>(&'a AtomicU32);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        // ORDERING: release pairs with the acquire in `enter`: the next thread sees what we did.
        self.0.store(0, Ordering::Release);
    }
}

impl Communicator {
    fn new(formed: Formed, seat: Seat) -> Self {
        let Formed { backend, ground, gpu, config, own_cores, notes } = formed;
        let patience = Patience::new(!own_cores, config.spin);
        let mut made = Self {
            core: Arc::new(Core::new(backend, patience)),
            ground,
            gpu,
            seat,
            config,
            notes: Vec::new(),
            inside: AtomicU32::new(0),
            registered: Mutex::default(),
            group: Mutex::new(None),
            collects: AtomicU32::new(0),
            last_error: Mutex::new(None),
            progress: Mutex::new(None),
            stop: Arc::new(AtomicU32::new(0)),
        };
        notes.into_iter().for_each(|note| made.say(Level::Info, note));
        if let Some(algorithm) = made.config.algorithm {
            let note =
                format!("{} is preferred, and passed over where it does not fit", algorithm.name());
            made.say(Level::Info, note);
        }
        made
    }

    /// Who speaks, in the log.
    fn who(&self) -> String {
        let name = &self.config.name;
        let gap = if name.is_empty() { "" } else { " " };
        format!("{name}{gap}rank {} of {}", self.seat.rank, self.seat.world)
    }

    fn say(&mut self, level: Level, note: String) {
        line(self.config.log, level, &self.who(), &note);
        self.notes.push(note);
    }

    /// This rank.
    #[must_use]
    pub fn rank(&self) -> Rank {
        self.seat.rank
    }

    /// Number of ranks.
    #[must_use]
    pub fn world_size(&self) -> u32 {
        self.seat.world
    }

    /// The settings in force.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What was chosen when the communicator formed, and why; a line each.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Lists of counts that earlier calls have done with.
    fn spare_blocks(&self) -> std::sync::MutexGuard<'_, Vec<Ragged>> {
        lock(&self.core.spare)
    }

    pub(crate) fn ground(&self) -> Option<&Ground> {
        self.ground.as_ref()
    }

    pub(crate) fn gpu(&self) -> Option<&Gpu> {
        self.gpu.as_ref()
    }

    pub(crate) fn seat(&self) -> &Seat {
        &self.seat
    }

    /// From here on calls on device memory have their place in `stream`, a stream of CUDA's by its
    /// handle: they return at once, come after what is in the stream before them, and what is put
    /// there later comes after them. `None`: they wait for their end, as at first. An error of a
    /// call that has returned shows in the next, and in [`Communicator::broken`]; its stream goes
    /// on.
    ///
    /// # Safety
    /// `stream` must be a stream's handle, and the stream must stay until the communicator has
    /// another, or is gone. Buffers of calls in it must stay valid until the stream has passed
    /// them.
    ///
    /// # Errors
    /// `UNSUPPORTED` where the communicator has no GPU, `INVALID_ARGUMENT` for a stream of another
    /// device, `INVALID_STATE` without a progress thread, and inside a group; `BUSY`.
    pub unsafe fn set_stream(&self, stream: Option<usize>) -> Result<()> {
        let _inside = self.enter()?;
        self.no_group()?;
        let Some(gpu) = &self.gpu else {
            let text = "the communicator has no GPU: UNISONO_DEVICE names one, or a CUDA context of \
                        the thread that forms the communicator";
            return Err(Error::new(Code::Unsupported, text));
        };
        if stream.is_some() && !self.config.progress_thread {
            let text = "calls in a stream need the progress thread, which the settings forbid";
            return Err(Error::new(Code::InvalidState, text));
        }
        // SAFETY: the caller's promise is passed on.
        unsafe { gpu.set_stream(stream)? };
        self.core.forget_last();
        if stream.is_some() {
            self.ensure_progress()?;
        }
        Ok(())
    }

    /// Prefers `algorithm` from the next call on, as the setting does; `None`: chooses by size. For
    /// those who measure: every rank must do the same between the same two calls.
    ///
    /// # Errors
    /// `BUSY`, and `INVALID_STATE` while calls are outstanding.
    pub fn prefer(&self, algorithm: Option<Algorithm>) -> Result<()> {
        let _inside = self.enter()?;
        self.no_group()?;
        if self.core.table.pending() > 0 {
            let text = "calls are outstanding, and they began under another preference";
            return Err(Error::new(Code::InvalidState, text));
        }
        self.core.with_backend(|backend| backend.prefer(algorithm));
        Ok(())
    }

    /// The algorithm of the last collective that began here since this was last asked; `None`:
    /// there was none, or it was so small that it needed no plan.
    pub fn take_chosen(&self) -> Option<Algorithm> {
        self.core.with_backend(|backend| backend.take_chosen())
    }

    /// The error that broke the communicator, or `None` while it is usable.
    #[must_use]
    pub fn broken(&self) -> Option<Error> {
        self.core.broken()
    }

    /// The last error of a call on this communicator.
    #[must_use]
    pub fn last_error(&self) -> Option<Error> {
        lock(&self.last_error).clone().or_else(|| self.broken())
    }

    /// Keeps `result`'s error as the last one.
    pub(crate) fn note<T>(&self, result: Result<T>) -> Result<T> {
        if let Err(error) = &result {
            let mut last = lock(&self.last_error);
            let fatal = |e: &Error| e.scope() >= error::Scope::Communicator;
            if fatal(error) && !last.as_ref().is_some_and(fatal) {
                line(self.config.log, Level::Error, &self.who(), &error.to_string());
            }
            *last = Some(error.clone());
        }
        result
    }

    /// Ends everything pending and refuses everything later, on every rank, with `ABORTED`. From
    /// any thread; idempotent.
    pub fn abort(&self) {
        self.core.abort();
    }

    /// Whether this is a forked child's copy.
    pub(crate) fn is_copy(&self) -> bool {
        self.core.copied()
    }

    fn enter(&self) -> Result<Inside<'_>> {
        self.core.original()?;
        self.core.may_drive()?;
        // ORDERING: acquire pairs with the release of the last to leave.
        match self.inside.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => Ok(Inside(&self.inside)),
            Err(_) => Err(Error::new(
                Code::Busy,
                format!("rank {}: calls on one communicator come one at a time", self.seat.rank),
            )),
        }
    }

    /// Makes a call and waits for its end. Inside a group it is only collected.
    ///
    /// # Safety
    /// The call's buffers must be valid, and touched by nobody else, until this returns (inside a
    /// group: until the group has ended).
    ///
    /// # Errors
    /// Whatever ended the call.
    pub unsafe fn run(&self, call: Call) -> Result<()> {
        let _inside = self.enter()?;
        if self.collects()
            && let Some(calls) = &mut *lock(&self.group)
        {
            calls.push(call);
            return Ok(());
        }
        self.core.run(call, self.config.timeout)
    }

    /// As [`Communicator::run`], of what `prepare` makes of the arguments that `key` stands for.
    ///
    /// # Safety
    /// As for [`Communicator::run`].
    #[inline]
    pub(crate) unsafe fn run_again(
        &self,
        key: Key,
        prepare: impl FnOnce() -> Result<Call>,
    ) -> Result<()> {
        let _inside = self.enter()?;
        if self.collects()
            && let Some(calls) = &mut *lock(&self.group)
        {
            calls.push(prepare()?);
            return Ok(());
        }
        self.core.run_again(key, self.config.timeout, prepare)
    }

    /// As [`Communicator::run`], but refused inside a group: the call has ended when this returns.
    ///
    /// # Safety
    /// The call's buffers must be valid, and touched by nobody else, until this returns.
    unsafe fn run_now(&self, call: Call) -> Result<()> {
        let _inside = self.enter()?;
        self.no_slices_in_group()?;
        self.core.run(call, self.config.timeout)
    }

    /// Whether a group is open. Only asked, and changed, by the thread that is inside.
    fn collects(&self) -> bool {
        self.collects.load(Ordering::Relaxed) != 0
    }

    /// Borrowed buffers may be gone when a group ends.
    fn no_slices_in_group(&self) -> Result<()> {
        if !self.collects() {
            return Ok(());
        }
        let text = "calls on slices cannot be collected: end the group first";
        Err(Error::new(Code::InvalidState, text))
    }

    /// Starts a call.
    ///
    /// # Safety
    /// The call's buffers must be valid, and touched by nobody else, until the request has ended.
    ///
    /// # Errors
    /// `BUSY`, `LIMIT`, `INVALID_STATE` inside a group.
    pub unsafe fn start(&self, mut call: Call) -> Result<Request> {
        let _inside = self.enter()?;
        self.no_group()?;
        call.place = call.place.waiting();
        self.ensure_progress()?;
        let ticket = self.core.table.take()?;
        self.core.table.begin(ticket, 1, self.config.timeout);
        self.core.post(call, ticket);
        Ok(self.posted(ticket))
    }

    /// Calls that start a request of their own are refused inside a group.
    fn no_group(&self) -> Result<()> {
        if !self.collects() {
            return Ok(());
        }
        let text = "inside a group every call is part of the group's request";
        Err(Error::new(Code::InvalidState, text))
    }

    /// Sends and receives at once, and waits for both. Inside a group they are only collected.
    ///
    /// # Safety
    /// As [`Communicator::run`], for each of the two.
    ///
    /// # Errors
    /// `OVERLAP`; whatever ended the one that failed.
    pub unsafe fn run_pair(&self, send: Call, recv: Call) -> Result<()> {
        let _inside = self.enter()?;
        apart(&send, &recv)?;
        if self.collects()
            && let Some(group) = &mut *lock(&self.group)
        {
            group.extend([send, recv]);
            return Ok(());
        }
        // SAFETY: the caller's promise is passed on.
        unsafe { self.post_all(&[send, recv])? }.wait(None).map(drop)
    }

    /// As [`Communicator::run_pair`], but refused inside a group: both have ended when this
    /// returns.
    ///
    /// # Safety
    /// As [`Communicator::run_now`], for each of the two.
    unsafe fn run_pair_now(&self, send: Call, recv: Call) -> Result<()> {
        let _inside = self.enter()?;
        self.no_slices_in_group()?;
        apart(&send, &recv)?;
        // SAFETY: the caller's promise is passed on.
        unsafe { self.post_all(&[send, recv])? }.wait(None).map(drop)
    }

    /// Starts a send and a receive that share a request.
    ///
    /// # Safety
    /// As [`Communicator::start`], for each of the two.
    ///
    /// # Errors
    /// As [`Communicator::start`]; `OVERLAP`.
    pub unsafe fn start_pair(&self, send: Call, recv: Call) -> Result<Request> {
        let _inside = self.enter()?;
        self.no_group()?;
        apart(&send, &recv)?;
        let mut pair = [send, recv];
        pair.iter_mut().for_each(|call| call.place = call.place.waiting());
        // SAFETY: the caller's promise is passed on.
        unsafe { self.post_all(&pair) }
    }

    /// Posts calls that share a request.
    ///
    /// # Safety
    /// As [`Communicator::start`], for each call.
    unsafe fn post_all(&self, mut calls: &[Call]) -> Result<Request> {
        // Nothing may fail once the first call is posted.
        self.ensure_progress()?;
        let table = &self.core.table;
        let (ticket, mut packs) = self.tickets(calls)?;
        let count = u32::try_from(calls.len()).unwrap_or(u32::MAX);
        table.begin(ticket, count, self.config.timeout);
        while !calls.is_empty() {
            let (run, rest) = calls.split_at(fuse::run_length(calls));
            calls = rest;
            match run {
                [one] => {
                    let mut one = one.clone();
                    let more = calls.iter().any(|call| !call.place.is_host());
                    one.place = one.place.followed(more);
                    self.core.post(one, ticket);
                }
                many => {
                    let own = packs.pop().unwrap_or(ticket);
                    // SAFETY: the caller's promise is passed on.
                    unsafe { self.core.post_packed(many, own, ticket) };
                }
            }
        }
        Ok(self.posted(ticket))
    }

    /// A ticket for `calls`, and one for each pack of them: all or none, so that what is fused does
    /// not depend on how many requests this rank has outstanding.
    fn tickets(&self, mut calls: &[Call]) -> Result<(u32, Vec<u32>)> {
        let table = &self.core.table;
        let ticket = table.take()?;
        let mut packs = Vec::new();
        while !calls.is_empty() {
            let length = fuse::run_length(calls);
            calls = &calls[length..];
            if length == 1 {
                continue;
            }
            match table.take() {
                Ok(own) => packs.push(own),
                Err(error) => {
                    packs.into_iter().chain([ticket]).for_each(|t| table.untake(t));
                    return Err(error);
                }
            }
        }
        Ok((ticket, packs))
    }

    /// The request whose calls have just been posted.
    fn posted(&self, ticket: u32) -> Request {
        // Whatever can go out at once should: the peers are waiting.
        self.core.nudge();
        Request::new(self.core.clone(), ticket)
    }

    /// Starts the progress thread where one is wanted and none is there.
    fn ensure_progress(&self) -> Result<()> {
        let mut progress = lock(&self.progress);
        if self.config.progress_thread && progress.is_none() {
            let (core, stop) = (self.core.clone(), self.stop.clone());
            let drive = move || {
                // The program's signals are for its own threads.
                block_signals();
                // After a panic, whoever next takes the backend ends everything: at once, here.
                if catch_unwind(AssertUnwindSafe(|| core.progress(&stop))).is_err() {
                    core.nudge();
                }
            };
            let thread = std::thread::Builder::new()
                .name(format!("unisono-{}", self.seat.rank))
                .spawn(drive)
                .map_err(|e| Error::os(&e, "starting the progress thread"))?;
            *progress = Some(thread);
        }
        Ok(())
    }

    /// Zeroed, page-aligned memory that local ranks can map: calls on it copy nothing on the way.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for 0 bytes, `OUT_OF_MEMORY`, `SYSTEM`.
    pub fn alloc(&self, bytes: usize) -> Result<*mut u8> {
        if bytes == 0 {
            return Err(Error::new(Code::InvalidArgument, "0 bytes of memory"));
        }
        self.core.original()?;
        self.core.with_backend(|b| b.alloc(bytes))
    }

    /// Bytes of messages over RDMA that a processor has copied here.
    #[cfg(test)]
    pub(crate) fn bytes_copied(&self) -> u64 {
        self.core.with_backend(|b| b.bytes_copied())
    }

    /// Gives memory of [`Communicator::alloc`] back.
    ///
    /// # Safety
    /// No call may be using it, and nobody may touch it afterwards.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` when it is not memory of this communicator.
    pub unsafe fn free(&self, memory: *mut u8) -> Result<()> {
        self.core.original()?;
        self.core.with_backend(|b| b.free(memory))
    }

    /// Tells the communicator of memory, of the host or of its GPU, that calls will use often: what
    /// it can gain by that it does now. No result depends on it, and ranks need not do alike.
    ///
    /// # Safety
    /// The memory must stay until it is deregistered, or until the communicator ends.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for 0 bytes, `OVERLAP` where some of it is registered already; those of
    /// the backend.
    pub unsafe fn register(&self, memory: *mut u8, bytes: usize) -> Result<()> {
        self.core.original()?;
        let at = memory.addr();
        if bytes == 0 || at.checked_add(bytes).is_none() {
            let text = format!("{bytes} bytes at {memory:p} to register");
            return Err(Error::new(Code::InvalidArgument, text));
        }
        let mut known = lock(&self.registered);
        if let Some((from, length)) =
            known.iter().find(|(from, length)| *from < at + bytes && at < from + length)
        {
            let text = format!("{bytes} bytes at {memory:p}: {length} at {from:#x} are registered");
            return Err(Error::new(Code::Overlap, text));
        }
        // SAFETY: the caller's promise is passed on.
        self.core.with_backend(|backend| unsafe { backend.register(memory, bytes) })?;
        known.push((at, bytes));
        Ok(())
    }

    /// The memory that was registered at this address may go. No call uses it.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` where none was; those of the backend.
    pub fn deregister(&self, memory: *mut u8) -> Result<()> {
        self.core.original()?;
        let mut known = lock(&self.registered);
        let Some(index) = known.iter().position(|(from, _)| *from == memory.addr()) else {
            let text = format!("no memory is registered at {memory:p}");
            return Err(Error::new(Code::InvalidArgument, text));
        };
        known.swap_remove(index);
        self.core.with_backend(|backend| backend.deregister(memory))
    }

    /// Memory of the communicator's GPU; `None` where it has none.
    ///
    /// # Errors
    /// `OUT_OF_MEMORY`; CUDA's own.
    pub fn device_memory(&self, bytes: usize) -> Result<Option<DeviceMemory>> {
        self.gpu.as_ref().map(|gpu| DeviceMemory::new(gpu, bytes)).transpose()
    }

    /// A stream of the communicator's GPU; `None` where it has none.
    ///
    /// # Errors
    /// CUDA's own.
    pub fn device_stream(&self) -> Result<Option<DeviceStream>> {
        self.gpu.as_ref().map(DeviceStream::new).transpose()
    }

    /// Ranks with equal `color` form a communicator, ordered by `key`, then by rank. A negative
    /// color takes part and gets `None`. A rank that lacks files or memory for it fails its color;
    /// the other colors and this communicator go on.
    ///
    /// # Errors
    /// As a collective and as [`Communicator::init_rank`].
    pub fn split(&self, color: i32, key: i32) -> Result<Option<Self>> {
        group::split(self, color, key)
    }

    /// A communicator of the ranks that are left, in their order, once some have died or this one
    /// has failed. All of them call this. What is under way here ends, and this one stays broken.
    /// Where another rank dies meanwhile all that are left may call it again.
    ///
    /// # Errors
    /// `UNSUPPORTED` on the native backend, and where MPI does not go on when ranks die; `BUSY`;
    /// else as [`Communicator::init_mpi`].
    pub fn shrink(&self) -> Result<Self> {
        group::shrink(self)
    }

    /// Waits for what is outstanding (at most the deadline), says goodbye, and gives everything
    /// back.
    ///
    /// # Errors
    /// `TIMED_OUT` when calls were still outstanding and did not complete: they end with `ABORTED`,
    /// or with `TIMED_OUT` where their own deadline was the first to pass. When they end by another
    /// error, that. `MISMATCH` when a rank that ended its communicator before made other collective
    /// calls than this one, which no call could show.
    pub fn destroy(self) -> Result<()> {
        if self.core.copied() {
            // A copy goes without a word: the parent goes on.
            return Ok(());
        }
        // What has ended before is no news: its requests tell why.
        let whole = self.core.table.pending() > 0 && self.core.broken().is_none();
        let settled = self.core.settle(self.config.timeout);
        if settled.is_err() {
            // Nobody may touch a buffer once this has returned.
            self.core.abort();
            return settled;
        }
        // A call's own deadline, or another rank that gives up, may be the first to end the calls.
        match self.core.broken().filter(|_| whole) {
            Some(error) if [Code::TimedOut, Code::Aborted].contains(&error.code) => {
                let text = format!("calls were outstanding: {}", error.detail);
                Err(Error::new(Code::TimedOut, text))
            }
            Some(error) => Err(error),
            None => self.core.with_backend(|b| b.compare_ends()),
        }
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        if self.core.copied() {
            // The thread is not here.
            std::mem::forget(lock(&self.progress).take());
            return;
        }
        // Whoever drives without a deadline would keep the progress thread from ending.
        self.core.abandon();
        // ORDERING: of this and the progress thread's last look, one sees the other.
        self.stop.store(1, Ordering::SeqCst);
        self.core.tell();
        if let Some(thread) = lock(&self.progress).take() {
            // It has no panic to pass on: whatever it drove has ended with an error.
            let _ = thread.join();
        }
        self.core.close();
    }
}
