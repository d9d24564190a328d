//! Copies in the order of a stream.
//!
//! Of each: both ranges must be valid, and nobody else may change them, until the copy is done.
//! Plain memory of the host is the exception that makes copies slow: what is read is read before
//! the call returns, and what is written is written when it does.

use std::ffi::c_void;

use super::{Context, StreamRef, cu};
use crate::error::Result;

impl StreamRef {
    /// From wherever `source` is to wherever `target` is, by their addresses.
    ///
    /// # Errors
    /// The driver's own.
    ///
    /// # Safety
    /// See the module.
    pub(crate) unsafe fn copy(&self, target: u64, source: u64, bytes: usize) -> Result<()> {
        // SAFETY: promised by the caller.
        unsafe { cu!(self.driver(), cuMemcpyAsync(target, source, bytes, self.handle())) }
    }

    /// From the host to a device.
    ///
    /// # Errors
    /// The driver's own.
    ///
    /// # Safety
    /// See the module.
    pub(crate) unsafe fn copy_in(
        &self,
        target: u64,
        source: *const u8,
        bytes: usize,
    ) -> Result<()> {
        let (driver, stream) = (self.driver(), self.handle());
        // SAFETY: promised by the caller.
        unsafe { cu!(driver, cuMemcpyHtoDAsync_v2(target, source.cast::<c_void>(), bytes, stream)) }
    }

    /// From a device to the host.
    ///
    /// # Errors
    /// The driver's own.
    ///
    /// # Safety
    /// See the module.
    pub(crate) unsafe fn copy_out(&self, target: *mut u8, source: u64, bytes: usize) -> Result<()> {
        let (driver, stream) = (self.driver(), self.handle());
        // SAFETY: promised by the caller.
        unsafe { cu!(driver, cuMemcpyDtoHAsync_v2(target.cast::<c_void>(), source, bytes, stream)) }
    }

    /// On one device, or between devices that reach each other.
    ///
    /// # Errors
    /// The driver's own.
    ///
    /// # Safety
    /// See the module.
    pub(crate) unsafe fn copy_across(&self, target: u64, source: u64, bytes: usize) -> Result<()> {
        // SAFETY: promised by the caller.
        unsafe { cu!(self.driver(), cuMemcpyDtoDAsync_v2(target, source, bytes, self.handle())) }
    }

    /// From the memory of one context's device to that of another's, whether or not they reach each
    /// other.
    ///
    /// # Errors
    /// The driver's own.
    ///
    /// # Safety
    /// See the module.
    pub(crate) unsafe fn copy_between(
        &self,
        (target, to): (u64, &Context),
        (source, from): (u64, &Context),
        bytes: usize,
    ) -> Result<()> {
        let (driver, stream) = (self.driver(), self.handle());
        let (to, from) = (to.handle(), from.handle());
        // SAFETY: promised by the caller.
        unsafe { cu!(driver, cuMemcpyPeerAsync(target, to, source, from, bytes, stream)) }
    }

    /// Sets each byte.
    ///
    /// # Errors
    /// The driver's own.
    ///
    /// # Safety
    /// See the module.
    pub(crate) unsafe fn fill(&self, target: u64, byte: u8, bytes: usize) -> Result<()> {
        // SAFETY: promised by the caller.
        unsafe { cu!(self.driver(), cuMemsetD8Async(target, byte, bytes, self.handle())) }
    }
}
