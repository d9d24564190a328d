//! Communicators that are made from others: by splitting, shrinking and growing.

use std::ffi::c_int;
use std::ptr;
use std::sync::Arc;

use super::abi::raw;
use super::comm::{Slot, lock};
use super::settings::{config, number};
use super::{Comm, Feature, Id, Progress, Wishes};
use crate::error::Result;
use crate::types::Rank;

/// Of a split: this rank becomes part of no communicator.
const NO_COLOR: c_int = -1;
/// Of a shrink: what runs on the parent is ended first.
const SHRINK_ABORT: c_int = 1;

/// A communicator that is being made from another.
#[derive(Debug)]
pub(crate) struct Birth(Arc<Slot>);

impl Comm {
    /// Begins a communicator of the ranks with this color, in the order of their keys; `None`: of
    /// no part of any. All ranks do this.
    ///
    /// # Errors
    /// NCCL's own.
    pub(crate) fn split(&self, color: Option<u32>, key: u32, wishes: &Wishes) -> Result<Birth> {
        let comm = self.handle()?;
        let mut config = config(self.library.version, wishes);
        let color = color.map_or(NO_COLOR, number);
        self.bear("ncclCommSplit", |place| {
            // SAFETY: a live handle; the place stays while this communicator does, and the
            // configuration is read by the call.
            unsafe { self.library.api.split(comm, color, number(key), place, &raw mut config) }
        })
    }

    /// Begins a communicator without these ranks, in the order of this one. All others do this.
    /// With `end`, what runs on this one is ended first.
    ///
    /// # Errors
    /// `UNSUPPORTED` before 2.27, else NCCL's own.
    pub(crate) fn shrink(&self, without: &[Rank], end: bool, wishes: &Wishes) -> Result<Birth> {
        self.library.need(Feature::Shrink)?;
        let comm = self.handle()?;
        let mut config = config(self.library.version, wishes);
        let mut without: Vec<c_int> = without.iter().map(|rank| number(rank.0)).collect();
        let count = c_int::try_from(without.len()).unwrap_or(c_int::MAX);
        let flags = if end { SHRINK_ABORT } else { 0 };
        self.bear("ncclCommShrink", |place| {
            let (list, config) = (without.as_mut_ptr(), &raw mut config);
            // SAFETY: as in `split`; NCCL sorts the list and keeps a copy.
            unsafe { self.library.api.shrink(comm, list, count, place, config, flags) }
        })
    }

    /// What ranks [join](Comm::join) a larger world by. One rank asks for it, and then gives it to
    /// [`Comm::grow`].
    ///
    /// # Errors
    /// `UNSUPPORTED` before 2.29, else NCCL's own.
    pub(crate) fn grow_id(&self) -> Result<Id> {
        self.library.need(Feature::Grow)?;
        let comm = self.handle()?;
        let mut id = raw::ncclUniqueId { internal: [0; 128] };
        // SAFETY: a live handle and a local.
        let asked = unsafe { self.library.api.grow_id(comm, &raw mut id) };
        self.library.done(asked, "ncclCommGetUniqueId")?;
        Ok(Id::of(id))
    }

    /// Begins a communicator of `world` ranks: those of this one, with their numbers, and some that
    /// [join](Comm::join). All ranks do this, the one that asked for the id with it.
    ///
    /// # Errors
    /// `UNSUPPORTED` before 2.29, else NCCL's own.
    pub(crate) fn grow(&self, world: u32, id: Option<&Id>, wishes: &Wishes) -> Result<Birth> {
        self.library.need(Feature::Grow)?;
        let comm = self.handle()?;
        let mut config = config(self.library.version, wishes);
        let id = id.map(Id::raw);
        let id = id.as_ref().map_or(ptr::null(), ptr::from_ref);
        self.bear("ncclCommGrow", |place| {
            let config = &raw mut config;
            // SAFETY: as in `split`; the id is read by the call.
            unsafe { self.library.api.grow(comm, number(world), id, -1, place, config) }
        })
    }

    /// A communicator from this one whose handle `call` writes, now or later.
    #[track_caller]
    fn bear(&self, name: &str, call: impl FnOnce(*mut raw::ncclComm_t) -> u32) -> Result<Birth> {
        let slot = Slot::new();
        lock(&self.births).push(slot.clone());
        let result = call(slot.place());
        self.library.done(result, name)?;
        Ok(Birth(slot))
    }

    /// Whether what was begun from this communicator is ready to be [taken](Comm::take).
    ///
    /// # Errors
    /// What has gone wrong. What there is of it ends with this communicator.
    pub(crate) fn poll_birth(&self, birth: &Birth) -> Result<Progress> {
        self.library.usable()?;
        // A rank that grows can ask the new one from the start. Others are told by the parent.
        if birth.0.handle().is_null() && self.poll()? == Progress::Pending {
            return Ok(Progress::Pending);
        }
        if birth.0.handle().is_null() { Ok(Progress::Done) } else { self.poll_slot(&birth.0) }
    }

    /// What was begun from this communicator and is done; `None` where this rank is no part of it.
    pub(crate) fn take(&self, birth: Birth) -> Option<Self> {
        let Birth(slot) = birth;
        lock(&self.births).retain(|other| !Arc::ptr_eq(other, &slot));
        let library = self.library.clone();
        let is_there = !slot.handle().is_null();
        is_there.then(|| Self::of(library, slot))
    }
}
