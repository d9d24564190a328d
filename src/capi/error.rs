//! Status codes, their texts, and the last error.

use std::cell::RefCell;
use std::ffi::{CStr, c_char, c_int};

use super::handle::{self, Comm};
use super::{copy_text, guard, output};
use crate::error::{Code, Error};

/// Success.
pub const UNISONO_OK: c_int = 0;
/// Not complete yet; no error.
pub const UNISONO_IN_PROGRESS: c_int = 1;
/// An argument is out of its range.
pub const UNISONO_INVALID_ARGUMENT: c_int = 100;
/// A pointer that must not be NULL is NULL.
pub const UNISONO_NULL_POINTER: c_int = 101;
/// A buffer is not aligned to its element type.
pub const UNISONO_MISALIGNED: c_int = 102;
/// Buffers overlap in a way the call does not allow.
pub const UNISONO_OVERLAP: c_int = 103;
/// Counts times element size exceed the address space.
pub const UNISONO_COUNT_OVERFLOW: c_int = 104;
/// A number names no known type, operation or option.
pub const UNISONO_UNKNOWN_VALUE: c_int = 105;
/// A root or peer is not a rank of the communicator.
pub const UNISONO_RANK_OUT_OF_RANGE: c_int = 106;
/// A handle is destroyed or was never one.
pub const UNISONO_INVALID_HANDLE: c_int = 107;
/// Another thread is inside a call on this communicator.
pub const UNISONO_BUSY: c_int = 108;
/// The combination has no meaning or is not available here.
pub const UNISONO_UNSUPPORTED: c_int = 109;
/// The call is not allowed in this state.
pub const UNISONO_INVALID_STATE: c_int = 110;
/// Environment variables are missing or contradict each other.
pub const UNISONO_INVALID_ENVIRONMENT: c_int = 111;
/// The unique id is damaged or not one.
pub const UNISONO_INVALID_ID: c_int = 112;
/// No launcher has set its environment variables.
pub const UNISONO_NO_LAUNCHER: c_int = 113;
/// Ranks made different calls.
pub const UNISONO_MISMATCH: c_int = 120;
/// The operating system refused.
pub const UNISONO_SYSTEM: c_int = 200;
/// Memory could not be had.
pub const UNISONO_OUT_OF_MEMORY: c_int = 201;
/// A configured or system limit is reached.
pub const UNISONO_LIMIT: c_int = 202;
/// No usable network address was found.
pub const UNISONO_NO_ADDRESS: c_int = 203;
/// A rank died or its connections broke.
pub const UNISONO_PEER_LOST: c_int = 300;
/// The deadline passed.
pub const UNISONO_TIMED_OUT: c_int = 301;
/// A peer sent what it must not.
pub const UNISONO_PROTOCOL: c_int = 302;
/// A peer runs another version.
pub const UNISONO_VERSION_MISMATCH: c_int = 303;
/// A peer does not know the job's key.
pub const UNISONO_UNAUTHENTICATED: c_int = 304;
/// Ranks did not arrive before the start-up deadline.
pub const UNISONO_MISSING_RANKS: c_int = 305;
/// The connection to a rank broke, and the rank may be well.
pub const UNISONO_LINK_LOST: c_int = 306;
/// The communicator was aborted.
pub const UNISONO_ABORTED: c_int = 400;
/// The communicator failed earlier.
pub const UNISONO_BROKEN: c_int = 401;
/// A peer belongs to another incarnation of the communicator.
pub const UNISONO_STALE_EPOCH: c_int = 402;
/// A foreign library failed.
pub const UNISONO_BACKEND: c_int = 500;
/// A bug in unisono.
pub const UNISONO_INTERNAL: c_int = 900;
/// A panic was stopped at the C boundary.
pub const UNISONO_PANIC: c_int = 901;

thread_local! {
    /// The last error of a call this thread has made.
    static LAST: RefCell<Option<Error>> = const { RefCell::new(None) };
}

/// Keeps an error as the thread's last one; its status.
pub(super) fn keep(error: Error) -> c_int {
    let status = error.code as c_int;
    // At the thread's end there is nobody left to ask for it.
    let _ = LAST.try_with(|last| last.borrow_mut().replace(error));
    status
}

/// The thread's last error.
pub(super) fn kept() -> Option<Error> {
    LAST.try_with(|last| last.borrow().clone()).ok().flatten()
}

/// What C gets to read: the status's name is not in it, since the program has the status.
fn line(error: &Error) -> String {
    let mut text = error.code.text().to_owned();
    if !error.detail.is_empty() {
        text += &format!(": {}", error.detail);
    }
    if let Some(peer) = error.peer {
        text += &format!(" [rank {peer}]");
    }
    if let Some(seq) = error.seq {
        text += &format!(" [call {seq}]");
    }
    text
}

fn last(comm: *const Comm) -> crate::Result<Option<Error>> {
    if comm.is_null() {
        return Ok(kept());
    }
    Ok(handle::hold(comm)?.comm.last_error())
}

const fn known(status: c_int, name: bool) -> &'static CStr {
    match (status, Code::from_number(status)) {
        (UNISONO_OK, _) if name => c"OK",
        (UNISONO_OK, _) => c"success",
        (UNISONO_IN_PROGRESS, _) if name => c"IN_PROGRESS",
        (UNISONO_IN_PROGRESS, _) => c"not complete yet",
        (_, Some(code)) if name => code.c_name(),
        (_, Some(code)) => code.c_text(),
        _ if name => c"UNKNOWN",
        _ => c"no status of this library",
    }
}

/// The name of a status, without `UNISONO_`: static text, never NULL.
#[unsafe(no_mangle)]
pub extern "C" fn unisono_status_name(status: c_int) -> *const c_char {
    known(status, true).as_ptr()
}

/// What a status means, in a sentence: static text, never NULL.
#[unsafe(no_mangle)]
pub extern "C" fn unisono_status_text(status: c_int) -> *const c_char {
    known(status, false).as_ptr()
}

/// Copies the text of the last error to `text`, NUL-terminated and cut at `bytes`: of a call on
/// `comm`, or, where `comm` is NULL, of any call of this thread. Empty where there was none. The
/// text names the offending value. The next error replaces it; success does not.
///
/// # Safety
/// `text` has room for `bytes` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisono_last_error(
    comm: *const Comm,
    text: *mut c_char,
    bytes: usize,
) -> c_int {
    let mut status = UNISONO_OK;
    // An error here is a status alone: it must not replace what was asked for.
    let guarded = guard(|| {
        let written = last(comm).and_then(|error| {
            let error = error.as_ref().map(line).unwrap_or_default();
            // SAFETY: the caller's promise.
            unsafe { copy_text(&error, text, bytes) }
        });
        status = written.map_or_else(|error| error.code as c_int, |()| UNISONO_OK);
        Ok(())
    });
    if guarded == UNISONO_OK { status } else { guarded }
}

/// The rank that the last error blames (see `unisono_last_error`), or -1 where it blames none.
///
/// # Safety
/// `rank` is valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisono_last_error_rank(comm: *const Comm, rank: *mut c_int) -> c_int {
    let mut status = UNISONO_OK;
    let guarded = guard(|| {
        let written = last(comm).and_then(|error| {
            let at = output(rank, "rank")?;
            let peer = error.and_then(|e| e.peer).and_then(|r| c_int::try_from(r.0).ok());
            // SAFETY: neither NULL nor misaligned; the caller promises that it is valid.
            unsafe { at.write(peer.unwrap_or(-1)) };
            Ok(())
        });
        status = written.map_or_else(|error| error.code as c_int, |()| UNISONO_OK);
        Ok(())
    });
    if guarded == UNISONO_OK { status } else { guarded }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_constant_is_the_number_of_its_code() {
        let constants = [
            (Code::InvalidArgument, UNISONO_INVALID_ARGUMENT, "INVALID_ARGUMENT"),
            (Code::NullPointer, UNISONO_NULL_POINTER, "NULL_POINTER"),
            (Code::Misaligned, UNISONO_MISALIGNED, "MISALIGNED"),
            (Code::Overlap, UNISONO_OVERLAP, "OVERLAP"),
            (Code::CountOverflow, UNISONO_COUNT_OVERFLOW, "COUNT_OVERFLOW"),
            (Code::UnknownValue, UNISONO_UNKNOWN_VALUE, "UNKNOWN_VALUE"),
            (Code::RankOutOfRange, UNISONO_RANK_OUT_OF_RANGE, "RANK_OUT_OF_RANGE"),
            (Code::InvalidHandle, UNISONO_INVALID_HANDLE, "INVALID_HANDLE"),
            (Code::Busy, UNISONO_BUSY, "BUSY"),
            (Code::Unsupported, UNISONO_UNSUPPORTED, "UNSUPPORTED"),
            (Code::InvalidState, UNISONO_INVALID_STATE, "INVALID_STATE"),
            (Code::InvalidEnvironment, UNISONO_INVALID_ENVIRONMENT, "INVALID_ENVIRONMENT"),
            (Code::InvalidId, UNISONO_INVALID_ID, "INVALID_ID"),
            (Code::NoLauncher, UNISONO_NO_LAUNCHER, "NO_LAUNCHER"),
            (Code::Mismatch, UNISONO_MISMATCH, "MISMATCH"),
            (Code::System, UNISONO_SYSTEM, "SYSTEM"),
            (Code::OutOfMemory, UNISONO_OUT_OF_MEMORY, "OUT_OF_MEMORY"),
            (Code::Limit, UNISONO_LIMIT, "LIMIT"),
            (Code::NoAddress, UNISONO_NO_ADDRESS, "NO_ADDRESS"),
            (Code::PeerLost, UNISONO_PEER_LOST, "PEER_LOST"),
            (Code::TimedOut, UNISONO_TIMED_OUT, "TIMED_OUT"),
            (Code::Protocol, UNISONO_PROTOCOL, "PROTOCOL"),
            (Code::VersionMismatch, UNISONO_VERSION_MISMATCH, "VERSION_MISMATCH"),
            (Code::Unauthenticated, UNISONO_UNAUTHENTICATED, "UNAUTHENTICATED"),
            (Code::MissingRanks, UNISONO_MISSING_RANKS, "MISSING_RANKS"),
            (Code::LinkLost, UNISONO_LINK_LOST, "LINK_LOST"),
            (Code::Aborted, UNISONO_ABORTED, "ABORTED"),
            (Code::Broken, UNISONO_BROKEN, "BROKEN"),
            (Code::StaleEpoch, UNISONO_STALE_EPOCH, "STALE_EPOCH"),
            (Code::Backend, UNISONO_BACKEND, "BACKEND"),
            (Code::Internal, UNISONO_INTERNAL, "INTERNAL"),
            (Code::Panic, UNISONO_PANIC, "PANIC"),
        ];
        assert_eq!(constants.map(|(code, ..)| code), Code::ALL);
        for (code, number, name) in constants {
            assert_eq!((code as c_int, code.name()), (number, name));
            assert_eq!(known(number, true).to_str(), Ok(name));
            assert_eq!(known(number, false).to_str(), Ok(code.text()));
        }
        assert_eq!(known(-5, true), c"UNKNOWN");
        assert_eq!(known(UNISONO_OK, true), c"OK");
    }
}
