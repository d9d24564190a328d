//! The heart of a communicator: one backend, driven by one thread at a time.
//!
//! Whoever waits drives: the caller of a blocking call, of `wait`, or the progress thread. The
//! others leave calls in the inbox, ring the bell and wait to be told. A blocking call with nothing
//! else in flight takes one uncontended lock and never leaves its thread.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, TryLockError};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use crate::backend::Backend;
use crate::backend::drive::{Outcome, Patience, drive};
use crate::boot::missing::ranks_text;
use crate::call::{Call, Ragged};
use crate::comm::again::{Driven, Key};
use crate::comm::fuse::{Pack, pack};
use crate::comm::table::{BLOCKING, Table, lock};
use crate::engine::{Hurried, Known};
use crate::error::{Code, Error, Result, Scope};
use crate::link::doze::Doze;
use crate::sync::{AtomicU32, Ordering};
use crate::sys::process::forks;

/// The progress thread lets others at the backend this often.
const SLICE: Duration = Duration::from_millis(20);
/// Lists of counts kept for later calls.
const SPARE_MAX: usize = 16;
/// How long a waiter whose call another thread drives looks before it sleeps.
const GLANCE: Duration = Duration::from_micros(20);

/// Why [`Core::heed_abort`] ends everything; the values of `Core::abort`.
const ABORT: u32 = 1;
const DROP: u32 = 2;

/// Whoever may drive.
type Driver<'a> = MutexGuard<'a, Driven>;

/// What a communicator's handles share.
#[derive(Debug)]
pub(crate) struct Core {
    backend: Mutex<Driven>,
    pub(crate) table: Table,
    inbox: Mutex<VecDeque<(Call, u32)>>,
    /// Lists of counts that ended calls no longer need.
    pub(crate) spare: Mutex<Vec<Ragged>>,
    /// Packs under way, by the ticket of the call that reduces each.
    packs: Mutex<Vec<(u32, Pack)>>,
    /// Entries of `packs`, to look without locking.
    packed: AtomicU32,
    /// Entries of the inbox, to look without locking.
    posted: AtomicU32,
    /// The error that broke the backend, as last seen by whoever drove it.
    first: Mutex<Option<Error>>,
    /// [`ABORT`] or [`DROP`] once that was asked for, else 0.
    abort: AtomicU32,
    /// Told whenever a request ends or the progress thread has work.
    told: Condvar,
    ear: Mutex<()>,
    /// Threads that listen.
    listeners: AtomicU32,
    bell: Arc<Doze>,
    patience: Patience,
    /// [`forks`] where this was made.
    forks: u32,
    /// The only thread that may drive, where there is one.
    only: Option<ThreadId>,
    /// See [`Backend::lets_go`].
    lets_go: bool,
    /// See [`Backend::unattended`].
    unattended: Option<Arc<AtomicU32>>,
}

impl Core {
    pub(crate) fn new(backend: Box<dyn Backend>, patience: Patience) -> Self {
        Self {
            bell: backend.bell(),
            only: backend.only_thread(),
            lets_go: backend.lets_go(),
            unattended: backend.unattended(),
            backend: Mutex::new(Driven::new(backend)),
            table: Table::new(),
            inbox: Mutex::new(VecDeque::with_capacity(64)),
            spare: Mutex::new(Vec::new()),
            packs: Mutex::new(Vec::new()),
            packed: AtomicU32::new(0),
            posted: AtomicU32::new(0),
            first: Mutex::new(None),
            abort: AtomicU32::new(0),
            told: Condvar::new(),
            ear: Mutex::new(()),
            listeners: AtomicU32::new(0),
            patience,
            forks: forks(),
        }
    }

    /// Whether this is a copy in a forked child, which shares links with the parent: a byte moved
    /// here would be missing there.
    pub(crate) fn copied(&self) -> bool {
        forks() != self.forks
    }

    /// Refuses the use of a copy.
    pub(crate) fn original(&self) -> Result<()> {
        if !self.copied() {
            return Ok(());
        }
        let text = "the communicator was made before a fork: only the parent may use it";
        Err(Error::new(Code::InvalidState, text))
    }

    /// Refuses calls on a thread that must not drive the backend.
    #[inline]
    pub(crate) fn may_drive(&self) -> Result<()> {
        if self.is_driver() { Ok(()) } else { Err(wrong_thread()) }
    }

    #[inline]
    fn is_driver(&self) -> bool {
        self.only.is_none_or(|only| only == std::thread::current().id())
    }

    /// Runs one call to its end on this thread if it can.
    pub(crate) fn run(&self, call: Call, timeout: Option<Duration>) -> Result<()> {
        let Some(mut backend) = self.try_backend() else {
            self.table.begin(BLOCKING, 1, timeout);
            self.post(call, BLOCKING);
            return self.end(None);
        };
        self.take_posted(&mut **backend);
        if self.table.pending() > 0 {
            self.table.begin(BLOCKING, 1, timeout);
            self.submit(&mut **backend, call, BLOCKING);
        } else if self.hurry(&mut **backend, (&call, &mut Known::default()), timeout) {
            return Ok(());
        }
        self.end(Some(backend))
    }

    /// As [`Core::run`], for a call that may be the same as the last; else `prepare` makes it.
    #[inline]
    pub(crate) fn run_again(
        &self,
        key: Key,
        timeout: Option<Duration>,
        prepare: impl FnOnce() -> Result<Call>,
    ) -> Result<()> {
        let Some(mut backend) = self.try_backend() else {
            return self.run(prepare()?, timeout);
        };
        self.take_posted(&mut **backend);
        if self.table.pending() > 0 {
            drop(backend);
            return self.run(prepare()?, timeout);
        }
        let (driven, call, known) = backend.again(key, prepare)?;
        if self.hurry(driven, (call, known), timeout) {
            return Ok(());
        }
        self.end(Some(backend))
    }

    /// Waits for the end of a blocking call that has begun.
    fn end(&self, driver: Option<Driver<'_>>) -> Result<()> {
        if let Some(mut backend) = driver {
            self.turn(&mut **backend, BLOCKING, self.table.deadline(BLOCKING));
        }
        self.wait(BLOCKING, None)?;
        self.table.result(BLOCKING)
    }

    /// Makes a blocking call that nothing else is pending beside; whether it is over already.
    fn hurry(
        &self,
        backend: &mut dyn Backend,
        (call, known): (&Call, &mut Known),
        timeout: Option<Duration>,
    ) -> bool {
        self.heed_abort(backend);
        // SAFETY: as in `submit`. Nobody else waits to be moved on or told; the call's own end, if
        // it is not over at once, is told after the table knows of it.
        let hurried = unsafe { backend.hurry((call, known), BLOCKING, self.patience.polls()) };
        if hurried == Hurried::Ended {
            if self.is_unattended() {
                self.tell();
            }
            return true;
        }
        self.table.begin(BLOCKING, 1, timeout);
        if hurried == Hurried::Left {
            self.submit(backend, call.clone(), BLOCKING);
        }
        false
    }

    /// Whether calls are under way that nobody waits for.
    #[inline]
    fn is_unattended(&self) -> bool {
        // ORDERING: as a listener.s count: of the two, one sees the other.
        self.unattended.as_ref().is_some_and(|calls| calls.load(Ordering::SeqCst) > 0)
    }

    /// Whether anything is under way.
    fn is_busy(&self) -> bool {
        self.table.pending() > 0 || self.is_unattended()
    }

    /// The backend, unless somebody drives it, or this thread must not.
    fn try_backend(&self) -> Option<Driver<'_>> {
        if !self.is_driver() {
            return None;
        }
        match self.backend.try_lock() {
            Ok(backend) => Some(backend),
            Err(TryLockError::Poisoned(poisoned)) => Some(self.recover(poisoned.into_inner())),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// The backend, once nobody drives it.
    fn lock_backend(&self) -> Driver<'_> {
        let locked = self.backend.lock();
        locked.unwrap_or_else(|poisoned| self.recover(poisoned.into_inner()))
    }

    /// A driver panicked, so the backend is in no state to go on. Everything pending ends, here and
    /// on every rank.
    fn recover<'a>(&self, mut backend: Driver<'a>) -> Driver<'a> {
        self.backend.clear_poison();
        let error = Error::new(Code::Internal, "a thread panicked while it drove the communicator");
        backend.fail(error.clone());
        self.collect(&mut **backend);
        // What the panicking thread had in its hands.
        self.table.end_all(&error);
        self.tell();
        backend
    }

    /// Waits until nothing is pending, at most `timeout`.
    pub(crate) fn settle(&self, timeout: Option<Duration>) -> Result<()> {
        let until = timeout.and_then(|t| Instant::now().checked_add(t));
        // BOUND: the deadline, where there is one.
        while self.is_busy() {
            let now = Instant::now();
            if until.is_some_and(|u| now >= u) {
                return Err(Error::new(Code::TimedOut, "calls were outstanding"));
            }
            let slice = now + SLICE;
            if let Some(mut backend) = self.try_backend() {
                self.take_posted(&mut **backend);
                self.turn_all(&mut **backend, until.map_or(slice, |u| u.min(slice)));
            } else {
                std::thread::yield_now();
            }
        }
        Ok(())
    }

    /// Leaves a call to whoever drives.
    pub(crate) fn post(&self, call: Call, ticket: u32) {
        lock(&self.inbox).push_back((call, ticket));
        // ORDERING: a hint; the inbox itself is read under its lock. The bell's fence orders it
        // before the sleeper's last look.
        self.posted.fetch_add(1, Ordering::Release);
        self.bell.wake();
        self.tell();
    }

    /// Leaves `calls`, as one under the ticket `own`, to whoever drives.
    ///
    /// # Safety
    /// The calls' buffers must be valid until the request has ended.
    pub(crate) unsafe fn post_packed(&self, calls: &[Call], own: u32, ticket: u32) {
        self.table.begin(own, 1, None);
        // SAFETY: the caller's promise is passed on.
        let (pack, call) = unsafe { pack(calls, ticket) };
        lock(&self.packs).push((own, pack));
        self.packed.fetch_add(1, Ordering::Release);
        self.post(call, own);
    }

    /// Waits for a request: until it ends (true), or until `limit` (false).
    pub(crate) fn wait(&self, ticket: u32, limit: Option<Instant>) -> Result<bool> {
        let started = Instant::now();
        // BOUND: the request's own deadline ends it, and `limit` ends the wait.
        while self.table.is_pending(ticket) {
            let own = self.table.deadline(ticket);
            let until = [own, limit].into_iter().flatten().min();
            if let Some(mut backend) = self.try_backend() {
                self.take_posted(&mut **backend);
                self.turn(&mut **backend, ticket, until);
            } else if started.elapsed() > GLANCE {
                self.listen(ticket, until);
            } else {
                std::hint::spin_loop();
            }
            if self.posted.load(Ordering::Relaxed) != 0 {
                // Somebody wants the backend: a mutex is not fair.
                std::thread::yield_now();
            }
            let now = Instant::now();
            if self.table.is_pending(ticket) && own.is_some_and(|d| now >= d) {
                self.expire(ticket);
            } else if limit.is_some_and(|l| now >= l) {
                return Ok(!self.table.is_pending(ticket));
            }
        }
        Ok(true)
    }

    /// Moves things on once, without waiting.
    pub(crate) fn nudge(&self) {
        if let Some(mut backend) = self.try_backend() {
            self.take_posted(&mut **backend);
            self.turn(&mut **backend, BLOCKING, Some(Instant::now()));
        }
    }

    /// Ends everything pending, here and on every rank.
    pub(crate) fn abort(&self) {
        self.abort_for(ABORT);
    }

    /// As [`Core::abort`], when the communicator goes while calls are pending.
    pub(crate) fn abandon(&self) {
        if self.is_busy() {
            self.abort_for(DROP);
        }
    }

    fn abort_for(&self, why: u32) {
        if self.copied() {
            return;
        }
        // ORDERING: a flag alone, and the first stays; the bell's fence orders it before the
        // sleeper's last look.
        let _ = self.abort.compare_exchange(0, why, Ordering::Release, Ordering::Relaxed);
        self.bell.wake();
        // Nobody may be driving: then tell the peers from here.
        if let Some(mut backend) = self.try_backend() {
            self.heed_abort(&mut **backend);
            self.collect(&mut **backend);
        }
    }

    /// Ends everything pending, here and on every rank, with `error`, before this returns.
    pub(crate) fn give_up(&self, error: Error) {
        self.with_backend(|backend| {
            backend.fail(error);
            self.collect(backend);
        });
    }

    fn heed_abort(&self, backend: &mut dyn Backend) {
        if let Some(error) = self.aborted() {
            backend.fail(error);
        }
    }

    fn aborted(&self) -> Option<Error> {
        let text = match self.abort.load(Ordering::Acquire) {
            0 => return None,
            ABORT => "aborted on this rank",
            _ => "the communicator was dropped with calls outstanding",
        };
        Some(Error::new(Code::Aborted, text))
    }

    /// The error that broke the communicator: the first, whatever came after.
    pub(crate) fn broken(&self) -> Option<Error> {
        if let Err(error) = self.original() {
            return Some(error);
        }
        if let Some(backend) = self.try_backend() {
            *lock(&self.first) = backend.broken().cloned();
        }
        let first = lock(&self.first).clone();
        first.or_else(|| self.aborted())
    }

    /// Says goodbye. Whatever is still pending ends, here and on every rank.
    pub(crate) fn close(&self) {
        self.with_backend(|backend| {
            self.heed_abort(backend);
            self.collect(backend);
            backend.close();
        });
    }

    /// The next call is thought about, whatever it is like.
    pub(crate) fn forget_last(&self) {
        self.claim_backend().forget();
    }

    /// Runs `what` on the backend, once nobody else drives it.
    pub(crate) fn with_backend<R>(&self, what: impl FnOnce(&mut dyn Backend) -> R) -> R {
        what(&mut **self.claim_backend())
    }

    /// The backend, from whoever drives it.
    fn claim_backend(&self) -> Driver<'_> {
        // ORDERING: whoever drives sees the count, comes back, and lets us in.
        self.posted.fetch_add(1, Ordering::Release);
        self.bell.wake();
        let backend = self.lock_backend();
        self.posted.fetch_sub(1, Ordering::Release);
        backend
    }

    /// The progress thread: drives while anything is pending, until `stop`.
    pub(crate) fn progress(&self, stop: &AtomicU32) {
        while stop.load(Ordering::Acquire) == 0 {
            if !self.is_busy() {
                let guard = lock(&self.ear);
                self.listeners.fetch_add(1, Ordering::SeqCst);
                if !self.is_busy() && stop.load(Ordering::SeqCst) == 0 {
                    // A missed call would cost this long at most.
                    let _ = self.told.wait_timeout(guard, Duration::from_secs(1));
                }
                self.listeners.fetch_sub(1, Ordering::SeqCst);
                continue;
            }
            {
                let mut backend = self.lock_backend();
                self.take_posted(&mut **backend);
                self.turn_all(&mut **backend, Instant::now() + SLICE);
                if backend.is_overdue(Instant::now()) {
                    give_out(&mut **backend);
                    self.collect(&mut **backend);
                }
            }
            if let Some((at, ticket)) = self.table.next_deadline()
                && Instant::now() >= at
            {
                self.expire(ticket);
            }
            // A mutex is not fair: let a waiter have it.
            std::thread::yield_now();
        }
    }

    /// Wakes whoever listens.
    pub(crate) fn tell(&self) {
        if self.listeners.load(Ordering::SeqCst) > 0 {
            drop(lock(&self.ear));
            self.told.notify_all();
        }
    }

    fn listen(&self, ticket: u32, until: Option<Instant>) {
        let guard = lock(&self.ear);
        self.listeners.fetch_add(1, Ordering::SeqCst);
        if self.table.is_pending(ticket) {
            let left = until.map_or(SLICE, |u| u.saturating_duration_since(Instant::now()));
            let _ = self.told.wait_timeout(guard, left.min(SLICE));
        }
        self.listeners.fetch_sub(1, Ordering::SeqCst);
    }

    fn take_posted(&self, backend: &mut dyn Backend) {
        if self.posted.load(Ordering::Acquire) == 0 {
            return;
        }
        // BOUND: the inbox holds at most one entry a ticket of a group.
        loop {
            let Some((call, ticket)) = lock(&self.inbox).pop_front() else {
                return;
            };
            self.posted.fetch_sub(1, Ordering::Release);
            self.submit(backend, call, ticket);
        }
    }

    fn submit(&self, backend: &mut dyn Backend, call: Call, ticket: u32) {
        self.heed_abort(backend);
        // SAFETY: calls come from `Communicator`'s unsafe functions, whose callers promise the
        // buffers, and from `pack`, whose buffer lives until the call's end is told.
        unsafe { backend.submit(call, ticket) };
    }

    fn collect(&self, backend: &mut dyn Backend) {
        while let Some((ticket, result)) = backend.take_ended() {
            self.ended(ticket, result);
        }
        while let Some(blocks) = backend.take_spent() {
            let mut spare = lock(&self.spare);
            if spare.len() < SPARE_MAX {
                spare.push(blocks);
            }
        }
    }

    fn ended(&self, ticket: u32, result: Result<()>) {
        if let Err(error) = &result
            && error.scope() >= Scope::Communicator
        {
            lock(&self.first).get_or_insert_with(|| error.clone());
        }
        if self.packed.load(Ordering::Acquire) > 0
            && let Some(pack) = self.take_pack(ticket)
        {
            if result.is_ok() {
                pack.unpack();
            }
            self.table.detach(ticket);
            for _ in 0..pack.len() {
                self.ended(pack.parent, result.clone());
            }
            if result.is_err() && !self.lets_go {
                // Somebody may still write there.
                std::mem::forget(pack);
            }
        }
        if self.table.end(ticket, result) {
            self.tell();
        }
    }

    fn take_pack(&self, ticket: u32) -> Option<Pack> {
        let mut packs = lock(&self.packs);
        let index = packs.iter().position(|(own, _)| *own == ticket)?;
        self.packed.fetch_sub(1, Ordering::Release);
        Some(packs.swap_remove(index).1)
    }

    fn turn(&self, backend: &mut dyn Backend, ticket: u32, until: Option<Instant>) {
        self.turn_until(backend, until, || !self.table.is_pending(ticket));
    }

    fn turn_all(&self, backend: &mut dyn Backend, until: Instant) {
        self.turn_until(backend, Some(until), || !self.is_busy());
    }

    /// Drives until `done`, until nothing is pending, or until `until`.
    fn turn_until(
        &self,
        backend: &mut dyn Backend,
        until: Option<Instant>,
        done: impl Fn() -> bool,
    ) {
        let interrupted = || {
            // ORDERING: flags alone; see `post` and `abort`.
            self.posted.load(Ordering::Relaxed) != 0 || self.abort.load(Ordering::Relaxed) != 0
        };
        // BOUND: as `drive`; an interruption is dealt with once.
        loop {
            let outcome = drive(backend, self.patience, until, interrupted, |backend| {
                self.collect(backend);
                done()
            });
            self.collect(backend);
            if outcome != Outcome::Interrupted {
                return;
            }
            self.heed_abort(backend);
            self.collect(backend);
            let before = self.posted.load(Ordering::Relaxed);
            self.take_posted(backend);
            // Somebody wants the backend itself (`with_backend`).
            if before != 0 && self.posted.load(Ordering::Relaxed) == before {
                return;
            }
        }
    }

    /// The request's deadline has passed: everything ends, naming the ranks that were waited for.
    pub(crate) fn expire(&self, ticket: u32) {
        self.with_backend(|backend| {
            self.take_posted(backend);
            if !self.table.is_pending(ticket) {
                return;
            }
            if let Some(until) = backend.overtime().filter(|until| Instant::now() < *until) {
                return self.table.extend(ticket, until);
            }
            give_out(backend);
            self.collect(backend);
            debug_assert!(!self.table.is_pending(ticket), "a call was lost");
        });
    }
}

/// A deadline has passed: everything ends, naming the ranks that were waited for.
fn give_out(backend: &mut dyn Backend) {
    let ranks = backend.awaited();
    let text = if ranks.is_empty() {
        "no other rank was waited for".to_owned()
    } else {
        format!("waited for {}", ranks_text(&ranks.iter().map(|r| r.0).collect::<Vec<_>>()))
    };
    let text = format!("{text} ({})", backend.standing());
    let mut error = Error::new(Code::TimedOut, text);
    // That of the collective under way, if there is one: a message has no number.
    (error.peer, error.seq) = (ranks.first().copied(), backend.present());
    backend.fail(error);
}

/// What a call on another thread than the backend's gets.
#[cold]
fn wrong_thread() -> Error {
    let text = "MPI was initialised for one thread only, and this is another: make the call on the \
                thread that initialised it, or initialise it with MPI_THREAD_MULTIPLE";
    Error::new(Code::InvalidState, text)
}
