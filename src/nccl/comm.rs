//! One rank's communicator of NCCL: how it begins, how it ends, and what is made from it.
//!
//! ```text
//! begin, join --> pending --poll--> ready --finalize--> pending --poll--> destroy
//!                    |                |  |
//!                    |                |  '-- split, shrink, grow --> Birth --poll_birth--> take
//!                    '----- abort ----'  (at any time, as dropping does)
//! ```
//!
//! NCCL writes the handle of a new communicator when it is ready, on a thread of its own. So the
//! place for it, a [`Slot`], is on the heap, and the parent keeps it until the child is taken.

use std::ffi::{c_char, c_int, c_void};
use std::ptr;
use std::sync::atomic::AtomicPtr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::abi::raw;
use super::settings::{config, number};
use super::{Feature, Library, Progress, Wishes};
use crate::error::{Code, Error, Result};
use crate::sync::Ordering;
use crate::types::Rank;

/// What brings the ranks of a new communicator together.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Id(pub(crate) [u8; 128]);

impl std::fmt::Debug for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Who knows it may join.
        f.write_str("Id(..)")
    }
}

impl Id {
    /// A new one, for one communicator. The process that makes it serves the ranks that meet.
    ///
    /// # Errors
    /// NCCL's own: no network, say.
    pub(crate) fn new(library: &Library) -> Result<Self> {
        library.usable()?;
        let mut id = raw::ncclUniqueId { internal: [0; 128] };
        // SAFETY: the place is a local.
        library.done(unsafe { library.api.unique_id(&raw mut id) }, "ncclGetUniqueId")?;
        Ok(Self::of(id))
    }

    pub(super) fn of(id: raw::ncclUniqueId) -> Self {
        Self(id.internal.map(c_char::cast_unsigned))
    }

    pub(super) fn raw(&self) -> raw::ncclUniqueId {
        raw::ncclUniqueId { internal: self.0.map(u8::cast_signed) }
    }
}

/// Where NCCL writes a handle, of a communicator or of a window, now or later.
#[derive(Debug)]
pub(super) struct Slot(pub(super) AtomicPtr<c_void>);

impl Slot {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self(AtomicPtr::new(ptr::null_mut())))
    }

    /// For NCCL to write to.
    pub(super) fn place(&self) -> *mut raw::ncclComm_t {
        self.0.as_ptr().cast()
    }

    /// What NCCL has written there; NULL while it has not.
    pub(super) fn pointer(&self) -> *mut c_void {
        // ORDERING: pairs with NCCL's release when what it makes is ready.
        self.0.load(Ordering::Acquire)
    }

    /// The same of a communicator.
    pub(super) fn handle(&self) -> raw::ncclComm_t {
        self.pointer().cast()
    }
}

/// One rank's communicator.
#[derive(Debug)]
pub(crate) struct Comm {
    pub(super) library: Arc<Library>,
    slot: Arc<Slot>,
    /// Of what was begun from this one and not yet taken.
    pub(super) births: Mutex<Vec<Arc<Slot>>>,
    /// Of what is registered with all ranks.
    pub(super) windows: Mutex<Vec<Arc<Slot>>>,
    /// NCCL has freed the handle.
    ended: bool,
}

impl Comm {
    /// Begins rank `rank` of the `world` that meets by `id`, on the current device. [`Comm::poll`]
    /// says when all have come.
    ///
    /// # Errors
    /// NCCL's own.
    pub(crate) fn begin(
        library: &Arc<Library>,
        id: &Id,
        rank: Rank,
        world: u32,
        wishes: &Wishes,
    ) -> Result<Self> {
        library.usable()?;
        let mut config = config(library.version, wishes);
        Self::make(library, "ncclCommInitRankConfig", |place| {
            let (rank, world) = (number(rank.0), number(world));
            // SAFETY: the place stays until the communicator ends, and the configuration is read
            // by the call.
            unsafe { library.api.init(place, world, id.raw(), rank, &raw mut config) }
        })
    }

    /// Begins rank `rank` of a world that ranks of another communicator make larger with
    /// [`Comm::grow`]; `id` is what one of them got from [`Comm::grow_id`].
    ///
    /// # Errors
    /// `UNSUPPORTED` before 2.29, else NCCL's own.
    pub(crate) fn join(
        library: &Arc<Library>,
        id: &Id,
        rank: Rank,
        world: u32,
        wishes: &Wishes,
    ) -> Result<Self> {
        library.usable()?;
        library.need(Feature::Grow)?;
        let mut config = config(library.version, wishes);
        let id = id.raw();
        Self::make(library, "ncclCommGrow", |place| {
            let (rank, world) = (number(rank.0), number(world));
            let none = ptr::null_mut();
            // SAFETY: as in `begin`; a rank that joins has no communicator, and its id is read by
            // the call.
            unsafe { library.api.grow(none, world, &raw const id, rank, place, &raw mut config) }
        })
    }

    pub(super) fn of(library: Arc<Library>, slot: Arc<Slot>) -> Self {
        let (births, windows) = (Mutex::default(), Mutex::default());
        Self { library, slot, births, windows, ended: false }
    }

    /// A communicator whose handle `call` writes.
    #[track_caller]
    fn make(
        library: &Arc<Library>,
        name: &str,
        call: impl FnOnce(*mut raw::ncclComm_t) -> u32,
    ) -> Result<Self> {
        let slot = Slot::new();
        let result = call(slot.place());
        let made = Self::of(library.clone(), slot);
        // Where the call has failed and left a handle, that is aborted.
        library.done(result, name)?;
        if made.slot.handle().is_null() {
            let text = format!("{name} of NCCL {}: no communicator was made", library.version);
            return Err(Error::new(Code::Backend, text));
        }
        Ok(made)
    }

    /// The handle, where calls are allowed.
    pub(super) fn handle(&self) -> Result<raw::ncclComm_t> {
        self.library.usable()?;
        Ok(self.slot.handle())
    }

    /// Whether NCCL is done with what it does by itself, start-up included. Any thread may ask.
    ///
    /// # Errors
    /// What has gone wrong since: the communicator is good for [`Comm::abort`] only.
    pub(crate) fn poll(&self) -> Result<Progress> {
        self.library.usable()?;
        self.poll_slot(&self.slot)
    }

    pub(super) fn poll_slot(&self, slot: &Slot) -> Result<Progress> {
        let mut result = 0;
        let call = "ncclCommGetAsyncError";
        // SAFETY: the handle is not NULL and has not ended; the place is a local.
        let asked = unsafe { self.library.api.async_error(slot.handle(), &raw mut result) };
        self.library.done(asked, call)?;
        self.library.check(result, call)
    }

    /// How many ranks it has.
    ///
    /// # Errors
    /// NCCL's own: it is not ready, say.
    pub(crate) fn world(&self) -> Result<u32> {
        let (mut world, comm) = (0, self.handle()?);
        // SAFETY: a live handle and a local.
        let asked = unsafe { self.library.api.count(comm, &raw mut world) };
        self.library.done(asked, "ncclCommCount")?;
        self.natural(world, "ncclCommCount")
    }

    /// Which of them this is.
    ///
    /// # Errors
    /// As for [`Comm::world`].
    pub(crate) fn rank(&self) -> Result<Rank> {
        let (mut rank, comm) = (0, self.handle()?);
        // SAFETY: a live handle and a local.
        let asked = unsafe { self.library.api.user_rank(comm, &raw mut rank) };
        self.library.done(asked, "ncclCommUserRank")?;
        self.natural(rank, "ncclCommUserRank").map(Rank)
    }

    /// The device it is on, by CUDA's number in this process.
    ///
    /// # Errors
    /// As for [`Comm::world`].
    pub(crate) fn device(&self) -> Result<u32> {
        let (mut device, comm) = (0, self.handle()?);
        // SAFETY: a live handle and a local.
        let asked = unsafe { self.library.api.device(comm, &raw mut device) };
        self.library.done(asked, "ncclCommCuDevice")?;
        self.natural(device, "ncclCommCuDevice")
    }

    fn natural(&self, value: c_int, call: &str) -> Result<u32> {
        u32::try_from(value).map_err(|_| {
            let text = format!("{call} of NCCL {} says {value}", self.library.version);
            Error::new(Code::Backend, text)
        })
    }

    /// Begins the end: what was issued is carried out. All ranks do this, then poll, then
    /// [`Comm::destroy`].
    ///
    /// # Errors
    /// NCCL's own.
    pub(crate) fn finalize(&self) -> Result<Progress> {
        let comm = self.handle()?;
        // SAFETY: a live handle.
        self.library.check(unsafe { self.library.api.finalize(comm) }, "ncclCommFinalize")
    }

    /// Frees it, after [`Comm::finalize`] or [`Comm::revoke`]. What was being made from it ends.
    ///
    /// # Errors
    /// NCCL's own; it is gone even so.
    pub(crate) fn destroy(mut self) -> Result<()> {
        let comm = self.handle()?;
        self.ended = true;
        // SAFETY: the handle was live, and nobody has it any more.
        let result = unsafe { self.library.api.destroy(comm) };
        self.end_births();
        self.library.done(result, "ncclCommDestroy")
    }

    /// Ends whatever runs on it on this rank, start-up included, and frees it. Other ranks are not
    /// told.
    ///
    /// # Errors
    /// NCCL's own; it is gone even so.
    pub(crate) fn abort(mut self) -> Result<()> {
        self.library.usable()?;
        self.abort_now()
    }

    fn abort_now(&mut self) -> Result<()> {
        self.ended = true;
        let comm = self.slot.handle();
        if comm.is_null() {
            return Ok(());
        }
        // SAFETY: the handle was live, and nobody has it any more.
        let result = unsafe { self.library.api.abort(comm) };
        self.end_births();
        self.library.done(result, "ncclCommAbort")
    }

    /// Ends whatever runs on it on this rank. Once it is done it can be shrunk, split and destroyed
    /// and not finalised.
    ///
    /// # Errors
    /// `UNSUPPORTED` before 2.28.7, else NCCL's own.
    pub(crate) fn revoke(&self) -> Result<Progress> {
        self.library.need(Feature::Revoke)?;
        let comm = self.handle()?;
        // SAFETY: a live handle.
        self.library.check(unsafe { self.library.api.revoke(comm, 0) }, "ncclCommRevoke")
    }

    /// Aborts what was begun from this communicator and never taken. NCCL writes no handle of it
    /// any more: this one has ended.
    fn end_births(&self) {
        for slot in std::mem::take(&mut *lock(&self.births)) {
            let comm = slot.handle();
            if !comm.is_null() {
                // Nobody is left to tell of an error.
                // SAFETY: a live handle that nobody else has.
                unsafe { self.library.api.abort(comm) };
            }
        }
    }
}

impl Drop for Comm {
    fn drop(&mut self) {
        // A forked child has a copy of what is the parent's.
        if !self.ended && self.library.usable().is_ok() {
            // Nobody is left to tell of an error.
            let _ = self.abort_now();
        }
    }
}

pub(super) fn lock(slots: &Mutex<Vec<Arc<Slot>>>) -> MutexGuard<'_, Vec<Arc<Slot>>> {
    slots.lock().unwrap_or_else(PoisonError::into_inner)
}
