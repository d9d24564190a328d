//! NCCL as it is found at run time: its calls with types of ours, from version 2.18 on.
//!
//! [`Library::open`] finds it and refuses what is too old. What came later is a [`Feature`], which
//! needs the version *and* the calls. [`Comm`] is one rank's communicator. It is always
//! non-blocking: a call that NCCL goes on with by itself is [`Progress::Pending`], and the
//! communicator takes no other call until [`Comm::poll`] says [`Progress::Done`].
//!
//! Owns the open library, which is never closed, and communicators. A communicator that is dropped
//! is aborted. Invariant: where NCCL writes handles on threads of its own stays in place until the
//! communicator ends.
//!
//! Thread rule: NCCL's own. One thread at a time calls a communicator; [`Comm::poll`] may run
//! beside that. A group belongs to the thread that begins it. A forked child must not call.
//!
//! Source: NCCL's documentation and `nccl.h`; `ffi/nccl` has what is used of it. Not here: what a
//! collective of ours is in calls of NCCL, streams, waiting.

mod abi;
#[cfg(all(test, unisono_nccl))]
mod abi_tests;
mod call;
mod child;
mod comm;
mod find;
mod library;
mod memory;
mod settings;
#[cfg(all(test, unisono_nccl))]
mod tests;
mod version;

use std::ffi::c_void;

pub(crate) use self::call::{Call, Kind, Op};
pub(crate) use self::child::Birth;
pub(crate) use self::comm::{Comm, Id};
pub(crate) use self::find::describe;
pub(crate) use self::library::{Failure, Library};
pub(crate) use self::memory::{Registration, Window};
pub(crate) use self::settings::Wishes;
pub(crate) use self::version::{BuiltIn, Feature, Type, Version, capability, reduces};

/// How far a call of NCCL has come that is not in error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "what is pending must be polled before the next call"]
pub(crate) enum Progress {
    Done,
    /// NCCL goes on by itself.
    Pending,
}

/// A stream of CUDA, by address; NULL is the default one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stream(pub(crate) *mut c_void);
