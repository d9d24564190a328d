//! Calls that are posted and end together.

use std::ffi::c_int;

use super::handle::{Comm, RequestHandle};
use super::{on_comm, output};

/// From here on the blocking calls on `comm` are only checked and collected; their buffers belong
/// to the library until the group has ended. Non-blocking calls are refused with
/// UNISONO_INVALID_STATE. A call that is refused is not part of the group. Groups do not nest.
///
/// # Safety
/// `comm` is a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisono_group_start(comm: *mut Comm) -> c_int {
    on_comm(comm, |held| held.comm.group_start())
}

/// Posts the collected calls together and waits for all of them. Where some fail, the status is
/// that of the first.
///
/// # Safety
/// The buffers of the group's calls are valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisono_group_end(comm: *mut Comm) -> c_int {
    on_comm(comm, |held| held.comm.group_end())
}

/// Posts the collected calls together; `*request` ends when all have, and is NULL where there are
/// none.
///
/// # Safety
/// The buffers of the group's calls are valid until the request has ended; `request` is valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisono_igroup_end(
    comm: *mut Comm,
    request: *mut *mut RequestHandle,
) -> c_int {
    on_comm(comm, |held| {
        let at = output(request, "request")?;
        let made = held.comm.group_start_all()?;
        let made = made.map_or(std::ptr::null_mut(), |made| held.give_request(made));
        // SAFETY: neither NULL nor misaligned; the caller promises that it is valid.
        unsafe { at.write(made) };
        Ok(())
    })
}
