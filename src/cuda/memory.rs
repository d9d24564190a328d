//! Memory of devices, and memory of the host that devices reach.
//!
//! Having and giving back is no part of a capture, and spoils none.

use std::ffi::c_void;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use super::abi::{self, CUdeviceptr};
use super::{Context, Stream, StreamRef, cu};
use crate::error::{Code, Error, Result};

/// Memory of a device. Giving it back waits for the device.
#[derive(Debug)]
pub(crate) struct DeviceMemory {
    context: Arc<Context>,
    at: CUdeviceptr,
    bytes: usize,
}

impl DeviceMemory {
    /// So many bytes, at least one, of the device of `context`; their values are whatever they are.
    ///
    /// # Errors
    /// `OUT_OF_MEMORY`; the driver's own.
    pub(crate) fn new(context: &Arc<Context>, bytes: usize) -> Result<Self> {
        let _here = context.enter_relaxed()?;
        let mut at = 0;
        // SAFETY: the place is valid; a context is current.
        unsafe { cu!(context.driver(), cuMemAlloc_v2(&raw mut at, bytes)) }
            .map_err(|error| wanted(error, bytes))?;
        Ok(Self { context: context.clone(), at, bytes })
    }

    /// Its address, on the device.
    pub(crate) const fn address(&self) -> u64 {
        self.at
    }

    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) const fn context(&self) -> &Arc<Context> {
        &self.context
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        let _here = self.context.enter_relaxed();
        // SAFETY: had once, given back once.
        let _ = unsafe { cu!(self.context.driver(), cuMemFree_v2(self.at)) };
    }
}

/// Memory of a device that is had and given back in the order of a stream of ours.
#[derive(Debug)]
pub(crate) struct OrderedMemory {
    stream: Arc<Stream>,
    at: CUdeviceptr,
    bytes: usize,
}

impl OrderedMemory {
    /// So many bytes, at least one, for what is submitted from now on.
    ///
    /// # Errors
    /// `OUT_OF_MEMORY`; the driver's own.
    pub(crate) fn new(stream: &Arc<Stream>, bytes: usize) -> Result<Self> {
        // SAFETY: it is given back on this stream, which lives until then.
        let at = unsafe { stream.allocate(bytes) }?;
        Ok(Self { stream: stream.clone(), at, bytes })
    }

    /// Its address, on the device.
    pub(crate) const fn address(&self) -> u64 {
        self.at
    }

    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for OrderedMemory {
    fn drop(&mut self) {
        // SAFETY: had once, given back once; whoever drops it submits no more that uses it.
        let _ = unsafe { self.stream.release(self.at) };
    }
}

impl StreamRef {
    /// So many bytes of its device, at least one, for what is submitted from now on.
    ///
    /// # Errors
    /// `OUT_OF_MEMORY`; the driver's own.
    ///
    /// # Safety
    /// Other streams must wait for this one before they use it. It is the caller's to release.
    pub(crate) unsafe fn allocate(&self, bytes: usize) -> Result<u64> {
        let mut at = 0;
        // SAFETY: the place is valid, the stream alive.
        unsafe { cu!(self.driver(), cuMemAllocAsync(&raw mut at, bytes, self.handle())) }
            .map_err(|error| wanted(error, bytes))?;
        Ok(at)
    }

    /// Gives back what [`StreamRef::allocate`] gave, once all is done that was submitted.
    ///
    /// # Errors
    /// The driver's own.
    ///
    /// # Safety
    /// Nothing may use it later, in whatever stream.
    pub(crate) unsafe fn release(&self, at: u64) -> Result<()> {
        // SAFETY: promised by the caller.
        unsafe { cu!(self.driver(), cuMemFreeAsync(at, self.handle())) }
    }
}

/// Memory of the host that stays where it is, and that every device reaches. Giving it back waits.
#[derive(Debug)]
pub(crate) struct PinnedMemory {
    context: Arc<Context>,
    at: NonNull<c_void>,
    device: CUdeviceptr,
    bytes: usize,
}

// SAFETY: memory like any other; who may use it when is its user's to say.
unsafe impl Send for PinnedMemory {}
// SAFETY: as above.
unsafe impl Sync for PinnedMemory {}

impl PinnedMemory {
    /// So many bytes, at least one; they are 0.
    ///
    /// # Errors
    /// `OUT_OF_MEMORY`; the driver's own.
    pub(crate) fn new(context: &Arc<Context>, bytes: usize) -> Result<Self> {
        let _here = context.enter_relaxed()?;
        let flags = abi::CU_MEMHOSTALLOC_PORTABLE | abi::CU_MEMHOSTALLOC_DEVICEMAP;
        let mut at: *mut c_void = ptr::null_mut();
        // SAFETY: the place is valid; a context is current.
        unsafe { cu!(context.driver(), cuMemHostAlloc(&raw mut at, bytes, flags)) }
            .map_err(|error| wanted(error, bytes))?;
        let null = || Error::new(Code::Backend, "cuMemHostAlloc gave no memory");
        let at = NonNull::new(at).ok_or_else(null)?;
        // From here on it is given back whatever happens.
        let mut made = Self { context: context.clone(), at, device: 0, bytes };
        made.device = device_address(context, at)?;
        // SAFETY: so many bytes, which are ours alone.
        unsafe { ptr::write_bytes(at.as_ptr().cast::<u8>(), 0, bytes) };
        Ok(made)
    }

    /// Its address on the host.
    pub(crate) const fn as_ptr(&self) -> *mut u8 {
        self.at.as_ptr().cast()
    }

    /// Its address on devices.
    pub(crate) const fn device_address(&self) -> u64 {
        self.device
    }

    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for PinnedMemory {
    fn drop(&mut self) {
        let _here = self.context.enter_relaxed();
        // SAFETY: had once, given back once.
        let _ = unsafe { cu!(self.context.driver(), cuMemFreeHost(self.at.as_ptr())) };
    }
}

/// Memory of the host that somebody else owns, pinned while this lives.
#[derive(Debug)]
pub(crate) struct Registered {
    context: Arc<Context>,
    at: NonNull<c_void>,
    device: CUdeviceptr,
}

// SAFETY: as for pinned memory.
unsafe impl Send for Registered {}
// SAFETY: as above.
unsafe impl Sync for Registered {}

impl Registered {
    /// Pins `bytes` bytes at `at` and lets every device in.
    ///
    /// # Errors
    /// The driver's own; `BACKEND` with its code where some of it is registered already.
    ///
    /// # Safety
    /// The memory must be there until this is dropped.
    pub(crate) unsafe fn new(context: &Arc<Context>, at: *mut u8, bytes: usize) -> Result<Self> {
        let null = || Error::new(Code::NullPointer, "memory to register");
        let at = NonNull::new(at.cast::<c_void>()).ok_or_else(null)?;
        let _here = context.enter_relaxed()?;
        let flags = abi::CU_MEMHOSTREGISTER_PORTABLE | abi::CU_MEMHOSTREGISTER_DEVICEMAP;
        // SAFETY: promised by the caller; a context is current.
        unsafe { cu!(context.driver(), cuMemHostRegister_v2(at.as_ptr(), bytes, flags)) }?;
        // From here on it is given back whatever happens.
        let mut made = Self { context: context.clone(), at, device: 0 };
        made.device = device_address(context, at)?;
        Ok(made)
    }

    /// Its address on devices.
    pub(crate) const fn device_address(&self) -> u64 {
        self.device
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let _here = self.context.enter_relaxed();
        // SAFETY: registered once, given back once.
        let _ = unsafe { cu!(self.context.driver(), cuMemHostUnregister(self.at.as_ptr())) };
    }
}

/// Where devices see pinned memory; the context is current.
fn device_address(context: &Context, at: NonNull<c_void>) -> Result<CUdeviceptr> {
    let mut device = 0;
    // SAFETY: the place is valid; the flags must be 0.
    unsafe {
        cu!(context.driver(), cuMemHostGetDevicePointer_v2(&raw mut device, at.as_ptr(), 0))
    }?;
    Ok(device)
}

/// The same error, with how much was asked for.
#[cold]
fn wanted(mut error: Error, bytes: usize) -> Error {
    error.detail = format!("{bytes} bytes: {}", error.detail).into_boxed_str();
    error
}
