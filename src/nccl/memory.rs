//! Memory that NCCL knows: registered with one communicator, or with all of its ranks.

use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::Arc;

use super::comm::{Slot, lock};
use super::{Comm, Feature, Progress};
use crate::error::Result;

/// Of a window: its memory lies at the same place of every rank's.
const WINDOW_SYMMETRIC: c_int = 1;

/// Memory registered with one communicator.
#[derive(Debug)]
pub(crate) struct Registration(*mut c_void);

// SAFETY: a name of NCCL's, which any thread may give back.
unsafe impl Send for Registration {}

/// Memory registered with all ranks of a communicator.
#[derive(Debug)]
pub(crate) struct Window(Arc<Slot>);

impl Comm {
    /// Registers memory, so that NCCL may use it without copies.
    ///
    /// # Safety
    /// The memory stays until it is [deregistered](Comm::deregister).
    ///
    /// # Errors
    /// `UNSUPPORTED` before 2.19, else NCCL's own.
    pub(crate) unsafe fn register(&self, at: *mut c_void, bytes: usize) -> Result<Registration> {
        self.library.need(Feature::Register)?;
        let (comm, mut handle) = (self.handle()?, ptr::null_mut());
        // SAFETY: a live handle and a local; the memory as the caller promises.
        let made = unsafe { self.library.api.register(comm, at, bytes, &raw mut handle) };
        self.library.done(made, "ncclCommRegister")?;
        Ok(Registration(handle))
    }

    /// Gives a registration back.
    ///
    /// # Errors
    /// NCCL's own.
    #[expect(clippy::needless_pass_by_value, reason = "it is no more")]
    pub(crate) fn deregister(&self, registration: Registration) -> Result<()> {
        self.library.need(Feature::Register)?;
        let comm = self.handle()?;
        // SAFETY: a live handle; the registration is given back once.
        let result = unsafe { self.library.api.deregister(comm, registration.0) };
        self.library.done(result, "ncclCommDeregister")
    }

    /// Begins to register memory of [`mem_alloc`](super::Library::mem_alloc) with all ranks, who do
    /// the same with theirs. It is registered when the communicator is done.
    ///
    /// # Safety
    /// The memory stays until the window is [closed](Comm::close_window).
    ///
    /// # Errors
    /// `UNSUPPORTED` before 2.27, else NCCL's own.
    pub(crate) unsafe fn open_window(
        &self,
        at: *mut c_void,
        bytes: usize,
    ) -> Result<(Window, Progress)> {
        self.library.need(Feature::Window)?;
        let comm = self.handle()?;
        let slot = Slot::new();
        lock(&self.windows).push(slot.clone());
        let (place, flags) = (slot.0.as_ptr().cast(), WINDOW_SYMMETRIC);
        // SAFETY: a live handle; the place stays while this communicator does, and the memory as
        // the caller promises.
        let made = unsafe { self.library.api.window_register(comm, at, bytes, place, flags) };
        Ok((Window(slot), self.library.check(made, "ncclCommWindowRegister")?))
    }

    /// Gives a window back. All ranks do this.
    ///
    /// # Errors
    /// NCCL's own.
    #[expect(clippy::needless_pass_by_value, reason = "it is no more")]
    pub(crate) fn close_window(&self, window: Window) -> Result<Progress> {
        self.library.need(Feature::Window)?;
        let comm = self.handle()?;
        lock(&self.windows).retain(|other| !Arc::ptr_eq(other, &window.0));
        let handle = window.0.pointer().cast();
        // SAFETY: a live handle; the window is given back once.
        let result = unsafe { self.library.api.window_deregister(comm, handle) };
        self.library.check(result, "ncclCommWindowDeregister")
    }
}
