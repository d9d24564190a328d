//! A device's primary context: the one that the CUDA run-time library uses too.

use std::marker::PhantomData;
use std::ptr;
use std::sync::Arc;

use super::abi::{self, CUcontext};
use super::{Driver, Relaxed, cu, device};
use crate::error::Result;

/// The primary context of a device, held until this is dropped.
#[derive(Debug)]
pub(crate) struct Context {
    driver: Arc<Driver>,
    handle: CUcontext,
    ordinal: u32,
}

// SAFETY: a context may be used on any thread; the driver sees to the rest.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    /// That of the device with this number. The first one of a process takes the driver a while.
    ///
    /// # Errors
    /// The driver's own.
    pub(crate) fn retain(driver: &Arc<Driver>, ordinal: u32) -> Result<Arc<Self>> {
        let device = device::handle(driver, ordinal)?;
        let mut handle: CUcontext = ptr::null_mut();
        // SAFETY: the place is valid.
        unsafe { cu!(driver, cuDevicePrimaryCtxRetain(&raw mut handle, device)) }?;
        Ok(Arc::new(Self { driver: driver.clone(), handle, ordinal }))
    }

    pub(crate) const fn driver(&self) -> &Arc<Driver> {
        &self.driver
    }

    /// Its device's number.
    pub(crate) const fn ordinal(&self) -> u32 {
        self.ordinal
    }

    /// What tells it from other contexts of the process.
    pub(crate) fn id(&self) -> usize {
        self.handle.addr()
    }

    pub(super) const fn handle(&self) -> CUcontext {
        self.handle
    }

    /// Makes it the calling thread's current one until the guard is dropped; then the one before
    /// is current again.
    ///
    /// # Errors
    /// The driver's own.
    pub(crate) fn enter(&self) -> Result<Entered<'_>> {
        // SAFETY: the context is held.
        unsafe { cu!(self.driver, cuCtxPushCurrent_v2(self.handle)) }?;
        Ok(Entered { context: self, _here: PhantomData })
    }

    /// As [`Context::enter`], for calls that captures forbid and that are no part of one.
    pub(crate) fn enter_relaxed(&self) -> Result<(Relaxed<'_>, Entered<'_>)> {
        Ok((self.driver.relax()?, self.enter()?))
    }

    /// Waits for everything that was begun in it.
    ///
    /// # Errors
    /// The driver's own; those of the work.
    pub(crate) fn synchronize(&self) -> Result<()> {
        let _here = self.enter()?;
        // SAFETY: takes nothing; a context is current.
        unsafe { cu!(self.driver, cuCtxSynchronize()) }
    }

    /// Lets kernels of this context into the memory of `peer`; that they may already is fine.
    ///
    /// # Errors
    /// The driver's own.
    pub(crate) fn reach(&self, peer: &Self) -> Result<()> {
        let _here = self.enter()?;
        // SAFETY: both contexts are held; the flags must be 0.
        let code = unsafe { cu!(self.driver, ask cuCtxEnablePeerAccess(peer.handle, 0)) }?;
        match code {
            abi::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED => Ok(()),
            code => self.driver.check(code, "cuCtxEnablePeerAccess"),
        }
    }

    /// Bytes of the device's memory that are left, and all of them.
    ///
    /// # Errors
    /// The driver's own.
    pub(crate) fn memory(&self) -> Result<(usize, usize)> {
        let _here = self.enter()?;
        let (mut left, mut total) = (0usize, 0usize);
        // SAFETY: the places are valid; a context is current.
        unsafe { cu!(self.driver, cuMemGetInfo_v2(&raw mut left, &raw mut total)) }?;
        Ok((left, total))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        let Ok(device) = device::handle(&self.driver, self.ordinal) else { return };
        // SAFETY: what was retained once is released once, after all that stands on it.
        let _ = unsafe { cu!(self.driver, cuDevicePrimaryCtxRelease_v2(device)) };
    }
}

/// A stretch in which a context is current.
#[derive(Debug)]
pub(crate) struct Entered<'a> {
    context: &'a Context,
    /// Current is current on a thread.
    _here: PhantomData<*const ()>,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let mut left: CUcontext = ptr::null_mut();
        // SAFETY: the place is valid.
        let _ = unsafe { cu!(self.context.driver, cuCtxPopCurrent_v2(&raw mut left)) };
    }
}
