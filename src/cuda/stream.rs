//! Streams: our own, and those of callers.

use std::ffi::{c_int, c_uint, c_void};
use std::ops::Deref;
use std::ptr;
use std::sync::Arc;

use super::abi::{self, CUcontext, CUgraph, CUgraphNode, CUstream};
use super::{Context, Driver, Event, cu};
use crate::error::Result;

/// A function that a stream calls on a thread of the driver's. It must not call the driver.
pub(crate) type HostFunction = unsafe extern "C" fn(*mut c_void);

/// What a stream waits for a value to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compare {
    /// At least this, as counters that wrap are compared: the difference is not negative.
    AtLeast,
    Equal,
}

/// Whether a stream's work is captured instead of done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Capture {
    None,
    /// The capture has this number, which no other of the process has.
    Active(u64),
    /// It was, until something happened that captures forbid.
    Invalid,
}

/// A stream, whoever has made it. While it is one of the default streams, calls on it are made with
/// its context current.
#[derive(Clone, Debug)]
pub(crate) struct StreamRef {
    driver: Arc<Driver>,
    handle: CUstream,
}

// SAFETY: a stream may be used on any thread; the driver sees to the rest.
unsafe impl Send for StreamRef {}
// SAFETY: as above.
unsafe impl Sync for StreamRef {}

impl StreamRef {
    /// A caller's `CUstream` or `cudaStream_t`; NULL and 1 are the legacy default stream of the
    /// current context, 2 the thread's own.
    ///
    /// # Safety
    /// It must be a stream, and must not be destroyed while this or a copy of it is used.
    pub(crate) unsafe fn of(driver: &Arc<Driver>, handle: *mut c_void) -> Self {
        Self { driver: driver.clone(), handle: handle.cast() }
    }

    pub(crate) fn raw(&self) -> *mut c_void {
        self.handle.cast()
    }

    pub(super) const fn handle(&self) -> CUstream {
        self.handle
    }

    pub(crate) const fn driver(&self) -> &Arc<Driver> {
        &self.driver
    }

    /// `event` will be done when all is that was submitted so far.
    ///
    /// # Errors
    /// The driver's own.
    pub(crate) fn record(&self, event: &Event) -> Result<()> {
        // SAFETY: both are alive.
        unsafe { cu!(self.driver, cuEventRecord(event.handle(), self.handle)) }
    }

    /// What is submitted from now on waits for what `event` was last recorded behind.
    ///
    /// # Errors
    /// The driver's own.
    pub(crate) fn wait(&self, event: &Event) -> Result<()> {
        // SAFETY: both are alive.
        unsafe { cu!(self.driver, cuStreamWaitEvent(self.handle, event.handle(), 0)) }
    }

    /// Waits until all is done that was submitted.
    ///
    /// # Errors
    /// The driver's own; those of the work.
    pub(crate) fn synchronize(&self) -> Result<()> {
        // SAFETY: the stream is alive.
        unsafe { cu!(self.driver, cuStreamSynchronize(self.handle)) }
    }

    /// Whether all is done that was submitted.
    ///
    /// # Errors
    /// The driver's own; those of the work.
    pub(crate) fn query(&self) -> Result<bool> {
        // SAFETY: the stream is alive.
        unsafe { cu!(self.driver, poll cuStreamQuery(self.handle)) }
    }

    /// Whether it is captured, and in which capture.
    ///
    /// # Errors
    /// The driver's own; for the legacy default stream also that another stream is captured, which
    /// that call has made invalid.
    pub(crate) fn capture(&self) -> Result<Capture> {
        let (mut status, mut id) = (0, 0);
        let graph: *mut CUgraph = ptr::null_mut();
        let nodes: *mut *const CUgraphNode = ptr::null_mut();
        let count: *mut usize = ptr::null_mut();
        // SAFETY: the places are valid; those that are NULL are not asked for.
        unsafe {
            cu!(
                self.driver,
                cuStreamGetCaptureInfo_v2(
                    self.handle,
                    &raw mut status,
                    &raw mut id,
                    graph,
                    nodes,
                    count
                )
            )
        }?;
        Ok(match status {
            abi::CU_STREAM_CAPTURE_STATUS_NONE => Capture::None,
            abi::CU_STREAM_CAPTURE_STATUS_ACTIVE => Capture::Active(id),
            _ => Capture::Invalid,
        })
    }

    /// Whether work that is submitted is captured, or would be if the capture were valid.
    ///
    /// # Errors
    /// As [`StreamRef::capture`].
    pub(crate) fn is_capturing(&self) -> Result<bool> {
        let mut status = 0;
        // SAFETY: the place is valid.
        unsafe { cu!(self.driver, cuStreamIsCapturing(self.handle, &raw mut status)) }?;
        Ok(status != abi::CU_STREAM_CAPTURE_STATUS_NONE)
    }

    /// What tells its context from others, as [`Context::id`].
    ///
    /// # Errors
    /// The driver's own.
    pub(crate) fn context(&self) -> Result<usize> {
        let mut context: CUcontext = ptr::null_mut();
        // SAFETY: the place is valid.
        unsafe { cu!(self.driver, cuStreamGetCtx(self.handle, &raw mut context)) }?;
        Ok(context.addr())
    }

    /// The number of its device.
    ///
    /// # Errors
    /// The driver's own.
    pub(crate) fn device(&self) -> Result<u32> {
        let (mut context, mut left): (CUcontext, CUcontext) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: the places are valid; a stream's context lives while the stream does.
        unsafe {
            cu!(self.driver, cuStreamGetCtx(self.handle, &raw mut context))?;
            cu!(self.driver, cuCtxPushCurrent_v2(context))?;
        }
        let device = self.driver.device_of_current();
        // SAFETY: the place is valid.
        unsafe { cu!(self.driver, cuCtxPopCurrent_v2(&raw mut left)) }?;
        device
    }

    /// Calls `function` once all is done that was submitted, unless the device is lost before.
    ///
    /// # Errors
    /// The driver's own; then it is not called.
    ///
    /// # Safety
    /// `data` must be what the function expects until it has been called; in a capture, whenever
    /// the graph is launched.
    pub(crate) unsafe fn host(&self, function: HostFunction, data: *mut c_void) -> Result<()> {
        // SAFETY: promised by the caller.
        unsafe { cu!(self.driver, cuLaunchHostFunc(self.handle, Some(function), data)) }
    }

    /// What is submitted from now on waits until the word at the device's address `at` compares.
    ///
    /// # Errors
    /// The driver's own.
    ///
    /// # Safety
    /// The word must live until the wait is over.
    pub(crate) unsafe fn wait_value(&self, at: u64, value: u32, compare: Compare) -> Result<()> {
        let flags = match compare {
            Compare::AtLeast => abi::CU_STREAM_WAIT_VALUE_GEQ,
            Compare::Equal => abi::CU_STREAM_WAIT_VALUE_EQ,
        };
        // SAFETY: promised by the caller.
        unsafe { cu!(self.driver, cuStreamWaitValue32_v2(self.handle, at, value, flags)) }
    }

    /// Writes the word at the device's address `at` once all is done that was submitted; whoever
    /// sees it sees what came before.
    ///
    /// # Errors
    /// The driver's own.
    ///
    /// # Safety
    /// The word must live until it is written.
    pub(crate) unsafe fn write_value(&self, at: u64, value: u32) -> Result<()> {
        let flags: c_uint = abi::CU_STREAM_WRITE_VALUE_DEFAULT;
        // SAFETY: promised by the caller.
        unsafe { cu!(self.driver, cuStreamWriteValue32_v2(self.handle, at, value, flags)) }
    }
}

/// A stream of our own, which does not wait for the legacy default stream.
#[derive(Debug)]
pub(crate) struct Stream {
    stream: StreamRef,
    context: Arc<Context>,
}

impl Stream {
    /// A new one of `context`.
    ///
    /// # Errors
    /// The driver's own.
    pub(crate) fn new(context: &Arc<Context>) -> Result<Self> {
        Self::with_priority(context, 0)
    }

    /// One whose work goes before that of other streams, and does not stand in one queue of the
    /// device's with it.
    ///
    /// # Errors
    /// The driver's own.
    pub(crate) fn urgent(context: &Arc<Context>) -> Result<Self> {
        // The driver takes the highest there is.
        Self::with_priority(context, -1000)
    }

    fn with_priority(context: &Arc<Context>, priority: c_int) -> Result<Self> {
        let driver = context.driver().clone();
        let mut handle: CUstream = ptr::null_mut();
        let flags = abi::CU_STREAM_NON_BLOCKING;
        let _here = context.enter()?;
        // SAFETY: the place is valid; a context is current.
        unsafe { cu!(driver, cuStreamCreateWithPriority(&raw mut handle, flags, priority)) }?;
        Ok(Self { stream: StreamRef { driver, handle }, context: context.clone() })
    }

    pub(crate) const fn context(&self) -> &Arc<Context> {
        &self.context
    }
}

impl Deref for Stream {
    type Target = StreamRef;

    fn deref(&self) -> &StreamRef {
        &self.stream
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // What it still has to do it does.
        // SAFETY: made once, destroyed once.
        let _ = unsafe { cu!(self.stream.driver, cuStreamDestroy_v2(self.stream.handle)) };
    }
}
