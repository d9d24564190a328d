//! The only home of raw system calls: one small safe wrapper per noun.
//!
//! Owns nothing but the descriptors and mappings it hands out. Every descriptor is close-on-exec.
//! Nothing here knows a rank, a message or a deadline policy.

pub(crate) mod affinity;
pub(crate) mod barrier;
pub(crate) mod bell;
pub(crate) mod interface;
pub(crate) mod limits;
pub(crate) mod loaded;
pub(crate) mod memory;
pub(crate) mod poll;
pub(crate) mod process;
pub(crate) mod random;
pub(crate) mod socket;
#[cfg(unisono_rdma)]
pub(crate) mod timer;
pub(crate) mod unix;
pub(crate) mod watch;

use std::fmt;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use crate::error::{Error, Result};

/// The result of a call that returns -1 and sets errno, as a `Result`.
#[track_caller]
fn check(returned: libc::c_int, what: impl fmt::Display) -> Result<libc::c_int> {
    if returned < 0 {
        return Err(Error::last_os(what));
    }
    Ok(returned)
}

/// A descriptor a call has just returned, as an owned one; -1 becomes an error with errno.
#[track_caller]
fn own(returned: RawFd, what: impl fmt::Display) -> Result<OwnedFd> {
    let fd = check(returned, what)?;
    // SAFETY: the call has just made this descriptor for us, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The size of `T` as the system's length type.
fn length_of<T>() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<T>()).expect("a struct's size fits 32 bits")
}
