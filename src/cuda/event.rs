//! Events: points in streams that others can wait for, in this process and in others.

use std::ptr;
use std::sync::Arc;

use super::abi::{self, CUevent, CUipcEventHandle};
use super::share::{HANDLE_BYTES, bytes_of, chars_of};
use super::{Context, cu};
use crate::error::Result;

/// Whether an event knows when it was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Timing {
    /// It does not, and is quicker for it.
    Without,
    With,
    /// It does not, and other processes can open it.
    Shared,
}

/// An event. One that was never recorded is done.
#[derive(Debug)]
pub(crate) struct Event {
    context: Arc<Context>,
    handle: CUevent,
}

// SAFETY: an event may be used on any thread; the driver sees to the rest.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// A new one, for streams of `context` to be recorded in.
    ///
    /// # Errors
    /// The driver's own.
    pub(crate) fn new(context: &Arc<Context>, timing: Timing) -> Result<Self> {
        let flags = match timing {
            Timing::Without => abi::CU_EVENT_DISABLE_TIMING,
            Timing::With => abi::CU_EVENT_DEFAULT,
            Timing::Shared => abi::CU_EVENT_DISABLE_TIMING | abi::CU_EVENT_INTERPROCESS,
        };
        let mut handle: CUevent = ptr::null_mut();
        let _here = context.enter()?;
        // SAFETY: the place is valid; a context is current.
        unsafe { cu!(context.driver(), cuEventCreate(&raw mut handle, flags)) }?;
        Ok(Self { context: context.clone(), handle })
    }

    /// The event that another process has shared by this handle.
    ///
    /// # Errors
    /// The driver's own: the other process is gone, or is this one.
    pub(crate) fn open(context: &Arc<Context>, handle: &[u8; HANDLE_BYTES]) -> Result<Self> {
        let name = CUipcEventHandle { reserved: chars_of(handle) };
        let mut handle: CUevent = ptr::null_mut();
        let _here = context.enter()?;
        // SAFETY: the place is valid; the driver checks what the handle says.
        unsafe { cu!(context.driver(), cuIpcOpenEventHandle(&raw mut handle, name)) }?;
        Ok(Self { context: context.clone(), handle })
    }

    /// By which another process opens it, if it is [`Timing::Shared`].
    ///
    /// # Errors
    /// The driver's own.
    pub(crate) fn share(&self) -> Result<[u8; HANDLE_BYTES]> {
        let mut name = CUipcEventHandle { reserved: [0; HANDLE_BYTES] };
        // SAFETY: the place is valid, the event alive.
        unsafe { cu!(self.context.driver(), cuIpcGetEventHandle(&raw mut name, self.handle)) }?;
        Ok(bytes_of(name.reserved))
    }

    pub(super) const fn handle(&self) -> CUevent {
        self.handle
    }

    /// Whether what it was last recorded behind is done.
    ///
    /// # Errors
    /// The driver's own; those of the work.
    pub(crate) fn query(&self) -> Result<bool> {
        // SAFETY: the event is alive.
        unsafe { cu!(self.context.driver(), poll cuEventQuery(self.handle)) }
    }

    /// Waits until what it was last recorded behind is done.
    ///
    /// # Errors
    /// The driver's own; those of the work.
    pub(crate) fn synchronize(&self) -> Result<()> {
        // SAFETY: the event is alive.
        unsafe { cu!(self.context.driver(), cuEventSynchronize(self.handle)) }
    }

    /// Milliseconds since `start` was done; both are [`Timing::With`], and done.
    ///
    /// # Errors
    /// The driver's own.
    pub(crate) fn elapsed_ms(&self, start: &Self) -> Result<f32> {
        let mut milliseconds = 0f32;
        let (from, to) = (start.handle, self.handle);
        // SAFETY: the place is valid, both events are alive.
        unsafe { cu!(self.context.driver(), cuEventElapsedTime(&raw mut milliseconds, from, to)) }?;
        Ok(milliseconds)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // Streams that wait for it go on to.
        // SAFETY: made once, destroyed once.
        let _ = unsafe { cu!(self.context.driver(), cuEventDestroy_v2(self.handle)) };
    }
}
