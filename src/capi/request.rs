//! Requests: the ends of non-blocking calls.
//!
//! Whoever uses a request has it alone; see [`super::handle`].

use std::any::Any;
use std::ffi::c_int;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::time::Duration;

use super::error::{UNISONO_IN_PROGRESS, UNISONO_OK};
use super::handle::{HeldRequest, RequestHandle, hold_request};
use super::{guard, guard_status, output, panicked};
use crate::comm::Request;
use crate::error::{Code, Error, Result};

/// -1: the call's own deadline alone.
fn limit(timeout_ms: i64) -> Result<Option<Duration>> {
    match u64::try_from(timeout_ms) {
        Ok(ms) => Ok(Some(Duration::from_millis(ms))),
        Err(_) if timeout_ms == -1 => Ok(None),
        Err(_) => {
            let text = format!("timeout_ms {timeout_ms}: expected -1 or more");
            Err(Error::new(Code::InvalidArgument, text))
        }
    }
}

/// Runs `body` on a request; its error stays on the communicator, a panic breaks that.
fn on_request<T>(
    held: &mut HeldRequest,
    body: impl FnOnce(&mut Request) -> Result<T>,
) -> Result<T> {
    let panicked = |held: &HeldRequest, panic: &(dyn Any + Send)| {
        held.abort();
        panicked(panic)
    };
    let result = match catch_unwind(AssertUnwindSafe(|| body(held))) {
        Ok(result) => result,
        Err(panic) => Err(panicked(held, &*panic)),
    };
    held.note(result)
}

/// Whether the call has ended, to `*done`: 1 once it has, and the status is the call's own then. A
/// NULL `*request` has ended. What has ended, well or not, is freed and `*request` becomes NULL.
///
/// # Safety
/// `request` and `done` are valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisono_test(request: *mut *mut RequestHandle, done: *mut c_int) -> c_int {
    guard(|| {
        let request = output(request, "request")?;
        let done = output(done, "done")?;
        // SAFETY: neither NULL nor misaligned; the caller promises that they are valid.
        let (handle, set) = unsafe { (request.read(), |value| done.write(value)) };
        if handle.is_null() {
            set(1);
            return Ok(());
        }
        let mut held = hold_request(handle, 0)?;
        let ended = on_request(&mut held, Request::test);
        set(c_int::from(held.reported()));
        if held.reported() {
            // SAFETY: as above.
            unsafe { request.write(ptr::null_mut()) };
        }
        ended.map(drop)
    })
}

/// Waits for the call's end, at most `timeout_ms` (-1: the communicator's deadline alone), and
/// gives the call's status. UNISONO_IN_PROGRESS when the time ran out first: the call goes on, and
/// the request stays. A NULL `*request` has ended well. What has ended, well or not, is freed and
/// `*request` becomes NULL.
///
/// # Safety
/// `request` is valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisono_wait(request: *mut *mut RequestHandle, timeout_ms: i64) -> c_int {
    guard_status(|| {
        let request = output(request, "request")?;
        let limit = limit(timeout_ms)?;
        // SAFETY: neither NULL nor misaligned; the caller promises that it is valid.
        let handle = unsafe { request.read() };
        if handle.is_null() {
            return Ok(UNISONO_OK);
        }
        let mut held = hold_request(handle, 0)?;
        let ended = on_request(&mut held, |request| request.wait(limit));
        if held.reported() {
            // SAFETY: as above.
            unsafe { request.write(ptr::null_mut()) };
        }
        ended.map(|ended| if ended { UNISONO_OK } else { UNISONO_IN_PROGRESS })
    })
}

/// Waits for one of `count` requests, at most `timeout_ms` (-1: their own deadlines alone). The
/// index of the one that ended goes to `*index`, also when its call failed: the status is the
/// call's. NULL entries are skipped; where all are NULL the status is UNISONO_INVALID_ARGUMENT,
/// since there is nothing to wait for. What has ended is freed and its entry becomes NULL.
/// UNISONO_IN_PROGRESS when the time ran out first.
///
/// # Safety
/// `requests` has `count` entries; `index` is valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisono_wait_any(
    requests: *mut *mut RequestHandle,
    count: usize,
    timeout_ms: i64,
    index: *mut usize,
) -> c_int {
    guard_status(|| {
        let requests = output(requests, "requests")?;
        let index = output(index, "index")?;
        let limit = limit(timeout_ms)?;
        if count > isize::MAX.unsigned_abs() / size_of::<*mut RequestHandle>() {
            return Err(Error::new(Code::CountOverflow, format!("{count} requests")));
        }
        let mut held = Vec::new();
        for at in 0..count {
            // SAFETY: the caller promises `count` entries.
            let handle = unsafe { requests.add(at).read() };
            if !handle.is_null() {
                held.push((at, hold_request(handle, at)?));
            }
        }
        if held.is_empty() {
            let text = format!("all of {count} requests are NULL");
            return Err(Error::new(Code::InvalidArgument, text));
        }
        let waited = catch_unwind(AssertUnwindSafe(|| {
            let mut all: Vec<&mut Request> = held.iter_mut().map(|(_, r)| &mut **r).collect();
            Request::wait_any(&mut all, limit)
        }));
        let waited = waited.unwrap_or_else(|panic| {
            held.iter().for_each(|(_, request)| request.abort());
            Err(panicked(&*panic))
        });
        let Some((at, ended)) = held.iter().find(|(_, request)| request.reported()) else {
            return waited.map(|_| UNISONO_IN_PROGRESS);
        };
        // SAFETY: `at` is below `count`; neither is NULL or misaligned.
        unsafe {
            requests.add(*at).write(ptr::null_mut());
            index.write(*at);
        }
        ended.note(waited).map(|_| UNISONO_OK)
    })
}
