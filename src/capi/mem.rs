//! Memory that local ranks can map, and memory that is registered.

use std::ffi::{c_int, c_void};

use super::handle::Comm;
use super::{input, on_comm, output};

/// Zeroed, page-aligned memory that the ranks of this host can map: calls on it copy nothing on the
/// way. It goes back by `unisono_mem_free`, or when the communicator ends.
///
/// # Safety
/// `memory` is valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisono_mem_alloc(
    comm: *mut Comm,
    bytes: usize,
    memory: *mut *mut c_void,
) -> c_int {
    on_comm(comm, |held| {
        let memory = output(memory, "memory")?;
        let made = held.comm.alloc(bytes)?;
        // SAFETY: neither NULL nor misaligned; the caller promises that it is valid.
        unsafe { memory.write(made.cast()) };
        Ok(())
    })
}

/// Gives memory of `unisono_mem_alloc` back. No call may be using it.
///
/// # Safety
/// Nobody uses the memory.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisono_mem_free(comm: *mut Comm, memory: *mut c_void) -> c_int {
    on_comm(comm, |held| {
        input(memory.cast_const().cast::<u8>(), "memory")?;
        // SAFETY: the caller's promise.
        unsafe { held.comm.free(memory.cast()) }
    })
}

/// Tells the communicator of memory, of the host or of its GPU, that calls will use often: what it
/// can gain by that it does now. Nothing else changes, and ranks need not do alike. The memory must
/// stay until `unisono_mem_deregister`, or until the communicator ends. `UNISONO_OVERLAP` where
/// some of it is registered already.
///
/// # Safety
/// The memory stays.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisono_mem_register(
    comm: *mut Comm,
    memory: *mut c_void,
    bytes: usize,
) -> c_int {
    on_comm(comm, |held| {
        input(memory.cast_const().cast::<u8>(), "memory")?;
        // SAFETY: the caller's promise.
        unsafe { held.comm.register(memory.cast(), bytes) }
    })
}

/// The memory that was registered at this address may go. No call may be using it.
///
/// # Safety
/// `comm` is a communicator.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisono_mem_deregister(comm: *mut Comm, memory: *mut c_void) -> c_int {
    on_comm(comm, |held| {
        input(memory.cast_const().cast::<u8>(), "memory")?;
        held.comm.deregister(memory.cast())
    })
}
