//! Memory of devices that other processes open.
//!
//! A handle names a whole allocation. Handles come from other processes: the driver checks them,
//! and what it gives is no larger than the allocation it finds.

use std::ffi::c_char;
use std::sync::Arc;

use super::abi::{self, CUdeviceptr, CUipcMemHandle};
use super::{Context, cu};
use crate::error::Result;

/// Bytes of a handle.
pub(crate) const HANDLE_BYTES: usize = 64;

/// Where a piece of memory is, for other processes of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SharedMemory {
    /// Of the allocation.
    pub(crate) handle: [u8; HANDLE_BYTES],
    /// Where the memory begins in it.
    pub(crate) offset: u64,
    /// From there to the allocation's end.
    pub(crate) bytes: u64,
}

impl Context {
    /// How other processes find what is at `at`, an address of this context's device. The memory
    /// must not be given back while they have it open.
    ///
    /// # Errors
    /// The driver's own: `at` is no memory of a device, or was allocated in a stream's order.
    pub(crate) fn share(&self, at: u64) -> Result<SharedMemory> {
        let _here = self.enter()?;
        let (base, bytes) = self.driver().range(at)?;
        let mut name = CUipcMemHandle { reserved: [0; HANDLE_BYTES] };
        // SAFETY: the place is valid; the driver checks the address.
        unsafe { cu!(self.driver(), cuIpcGetMemHandle(&raw mut name, base)) }?;
        let offset = at - base;
        Ok(SharedMemory { handle: bytes_of(name.reserved), offset, bytes: bytes as u64 - offset })
    }
}

/// An allocation of another process, open here.
#[derive(Debug)]
pub(crate) struct Imported {
    context: Arc<Context>,
    base: CUdeviceptr,
}

impl Imported {
    /// Opens it for kernels and copies of `context`, whose device is let in if it is another.
    ///
    /// # Errors
    /// The driver's own: the other process is gone, has given it back, or is this one.
    pub(crate) fn open(context: &Arc<Context>, handle: &[u8; HANDLE_BYTES]) -> Result<Self> {
        let name = CUipcMemHandle { reserved: chars_of(handle) };
        let flags = abi::CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS;
        let mut base = 0;
        let _here = context.enter_relaxed()?;
        // SAFETY: the place is valid; the driver checks what the handle says.
        unsafe { cu!(context.driver(), cuIpcOpenMemHandle_v2(&raw mut base, name, flags)) }?;
        Ok(Self { context: context.clone(), base })
    }

    /// Where the allocation begins here.
    pub(crate) const fn address(&self) -> u64 {
        self.base
    }

    /// How many bytes it has.
    ///
    /// # Errors
    /// The driver's own.
    pub(crate) fn bytes(&self) -> Result<usize> {
        let _here = self.context.enter()?;
        self.context.driver().range(self.base).map(|(_, bytes)| bytes)
    }
}

impl Drop for Imported {
    fn drop(&mut self) {
        let _here = self.context.enter_relaxed();
        // SAFETY: opened once, closed once.
        let _ = unsafe { cu!(self.context.driver(), cuIpcCloseMemHandle(self.base)) };
    }
}

/// The same bytes as C's characters.
pub(super) fn chars_of(bytes: &[u8; HANDLE_BYTES]) -> [c_char; HANDLE_BYTES] {
    bytes.map(|byte| c_char::from_ne_bytes([byte]))
}

pub(super) fn bytes_of(chars: [c_char; HANDLE_BYTES]) -> [u8; HANDLE_BYTES] {
    chars.map(|c| c.to_ne_bytes()[0])
}
