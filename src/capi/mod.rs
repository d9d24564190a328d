//! The C ABI: what `ffi/include/unisono.h` declares, one file per C object.
//!
//! Every function is a thin door: it checks handles, pointers and numbers (in release too), calls
//! the Rust API, keeps the error's text, and returns a status. Outputs are written last. A panic
//! stops at the door, becomes `PANIC` and aborts the communicator, so that its peers wake.
//!
//! The header is generated from the files here by a pinned cbindgen; `tests/capi_header.rs`
//! compares. Its text is the doc comments below, so they speak to a C programmer.
//!
//! Not here: anything a Rust program could want.
#![allow(
    rustdoc::broken_intra_doc_links,
    reason = "the texts are the C header's, where counts[r] is an element and no link"
)]

mod args;
pub mod coll;
pub mod comm;
pub mod config;
pub mod dtype;
pub mod error;
pub mod group;
pub mod handle;
pub mod icoll;
pub mod mem;
pub mod op;
pub mod request;
pub mod version;

use std::any::Any;
use std::ffi::{c_char, c_int};
use std::panic::{AssertUnwindSafe, catch_unwind};

use self::error::UNISONO_OK;
use self::handle::{Comm, Held};
use crate::error::{Code, Error, Result, cut};

/// Runs the body of a C function that has no communicator.
fn guard(body: impl FnOnce() -> Result<()>) -> c_int {
    guard_status(|| body().map(|()| UNISONO_OK))
}

/// As [`guard`], where success has more than one status.
fn guard_status(body: impl FnOnce() -> Result<c_int>) -> c_int {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(status)) => status,
        Ok(Err(error)) => error::keep(error),
        Err(panic) => error::keep(panicked(&*panic)),
    }
}

/// Runs the body of a C function on a communicator and keeps its error there too.
fn on_comm(comm: *const Comm, body: impl FnOnce(&Held) -> Result<()>) -> c_int {
    guard(|| {
        let held = handle::hold(comm)?;
        let result = match catch_unwind(AssertUnwindSafe(|| body(&held))) {
            Ok(result) => result,
            Err(panic) => {
                held.comm.abort();
                Err(panicked(&*panic))
            }
        };
        held.comm.note(result)
    })
}

fn panicked(panic: &(dyn Any + Send)) -> Error {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    Error::new(Code::Panic, text.unwrap_or_default())
}

/// An output pointer: neither NULL nor misaligned.
fn output<T>(at: *mut T, name: &str) -> Result<*mut T> {
    input(at.cast_const(), name).map(<*const T>::cast_mut)
}

/// An input pointer: neither NULL nor misaligned.
fn input<T>(at: *const T, name: &str) -> Result<*const T> {
    if at.is_null() {
        return Err(Error::new(Code::NullPointer, name));
    }
    if !at.is_aligned() {
        let text = format!("{name} {at:p} of a type of {} bytes", align_of::<T>());
        return Err(Error::new(Code::Misaligned, text));
    }
    Ok(at)
}

/// Copies `text` to `at`, NUL-terminated and cut, between characters, where it is too long.
///
/// # Safety
/// `at` must be valid for writes of `bytes` bytes, or NULL.
unsafe fn copy_text(text: &str, at: *mut c_char, bytes: usize) -> Result<()> {
    let at = output(at, "text")?;
    if bytes == 0 {
        return Err(Error::new(Code::InvalidArgument, "0 bytes for a text"));
    }
    let text = cut(text, bytes - 1);
    // SAFETY: the caller promises `bytes` bytes; the text and the NUL are within.
    unsafe {
        at.copy_from_nonoverlapping(text.as_ptr().cast(), text.len());
        at.add(text.len()).write(0);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_a_status_and_aborts_the_communicator() {
        let status = guard(|| panic!("on purpose, without a communicator"));
        assert_eq!(status, Code::Panic as i32);
        assert!(error::kept().is_some_and(|e| e.detail.contains("on purpose")));

        let config = crate::config::Config::default();
        let made = crate::Communicator::init_all(2, &config).expect("two ranks");
        let handles: Vec<*mut Comm> = made.into_iter().map(handle::give).collect();
        assert_eq!(on_comm(handles[0], |_| panic!("{} on purpose", "formatted")), 901);
        let peer = handles[1];
        assert_eq!(on_comm(peer, |inner| inner.comm.barrier()), Code::Aborted as i32);
        assert_eq!(on_comm(handles[0], |inner| inner.comm.barrier()), Code::Aborted as i32);
        for handle in handles {
            // SAFETY: these are handles, and nobody uses them afterwards.
            assert_eq!(unsafe { comm::unisono_comm_destroy(handle) }, 0);
            assert_eq!(on_comm(handle, |_| Ok(())), Code::InvalidHandle as i32);
        }
    }

    #[test]
    fn texts_are_cut_between_characters() {
        let mut room: [c_char; 5] = [7; 5];
        // SAFETY: the room has as many bytes as said.
        let copy = |text, bytes, room: &mut [c_char; 5]| unsafe {
            copy_text(text, room.as_mut_ptr(), bytes)
        };
        copy("aé¿", 5, &mut room).expect("room");
        let bytes: Vec<u8> = room.iter().map(|c| c.to_ne_bytes()[0]).collect();
        assert_eq!(bytes, [b'a', 0xc3, 0xa9, 0, 7]);
        copy("abc", 1, &mut room).expect("room for nothing");
        assert_eq!(room[0], 0);
        assert_eq!(copy("abc", 0, &mut room).expect_err("none").code, Code::InvalidArgument);
    }
}
