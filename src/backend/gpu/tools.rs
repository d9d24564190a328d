//! What every way of making a call has at hand: the rank's GPU, native calls, events.

use std::ffi::c_void;
use std::sync::Arc;

use super::kernels::{Kernels, without};
use crate::backend::Backend;
use crate::backend::native::Native;
use crate::call::{Call, Guise, Head};
use crate::cuda::{Context, Event, Stream, StreamRef, Timing};
use crate::error::Result;
use crate::kernel::cuda::Launch;
use crate::types::Rank;

/// Numbers of native calls made here begin with this bit; those of callers' tickets do not.
pub(super) const OWN: u32 = 1 << 31;

/// Numbers for native calls.
#[derive(Debug)]
pub(super) struct Numbers(pub(super) u32);

impl Numbers {
    /// Gives the side a native call that shows `head`; its number.
    ///
    /// # Safety
    /// As for [`Backend::submit`].
    pub(super) unsafe fn pass(&mut self, mut call: Call, head: Head, side: &mut Native) -> u32 {
        self.0 = self.0.wrapping_add(1) | OWN;
        call.guise = Guise::Of(Box::new(head));
        // SAFETY: the caller's promise is passed on.
        unsafe { side.submit(call, self.0) };
        self.0
    }
}

/// Events that nothing waits for.
#[derive(Debug, Default)]
pub(super) struct Events(Vec<Event>);

impl Events {
    /// One that says when all that is in `stream` now is done.
    ///
    /// # Errors
    /// CUDA's own.
    pub(super) fn record(&mut self, stream: &StreamRef, context: &Arc<Context>) -> Result<Event> {
        let event = match self.0.pop() {
            Some(event) => event,
            None => Event::new(context, Timing::Without)?,
        };
        stream.record(&event)?;
        Ok(event)
    }

    pub(super) fn put_back(&mut self, event: Option<Event>) {
        self.0.extend(event);
    }
}

/// What a rank has of its GPU.
#[derive(Debug)]
pub(super) struct Tools {
    pub(super) context: Arc<Context>,
    /// Copies from the device, and to it.
    pub(super) inward: Stream,
    pub(super) outward: Arc<Stream>,
    /// Where this rank may launch any.
    pub(super) kernels: Option<Arc<Kernels>>,
    /// Multiprocessors.
    pub(super) processors: u32,
    pub(super) me: Rank,
    pub(super) world: u32,
}

impl Tools {
    /// A stream of the program's, by its handle.
    pub(super) fn stream(&self, handle: usize) -> StreamRef {
        // SAFETY: whoever gave it has promised that it is one, and stays.
        unsafe { StreamRef::of(self.context.driver(), handle as *mut c_void) }
    }

    /// Puts a launch into `stream`.
    ///
    /// # Safety
    /// What the arguments name must be valid until the stream has passed it.
    ///
    /// # Errors
    /// `UNSUPPORTED` where there are no kernels; CUDA's own.
    pub(super) unsafe fn launch(&self, launch: &Launch, stream: &StreamRef) -> Result<()> {
        let kernels = self.kernels.as_ref().ok_or_else(without)?;
        // SAFETY: the caller's promise is passed on.
        unsafe { kernels.launch(launch, stream) }
    }
}

/// An address of the device's, as the host's pointers are wide.
#[expect(clippy::cast_possible_truncation, reason = "CUDA is there on 64-bit hosts only")]
pub(super) fn address(at: u64) -> usize {
    at as usize
}
