//! RDMA as it is found at run time: libibverbs and librdmacm, one small file a noun.
//!
//! [`Library`] is the two open libraries; [`cards`] what cards there are; [`Channel`] and [`Id`]
//! make connections; [`Domain`], [`Registered`] and [`Completions`] are memory and queues;
//! [`Stream`] is a socket of librdmacm. The bindings are made by `build.rs` from `ffi/rdma`; a
//! build without libclang has none of this.
//!
//! Owns the handles it has made, each given back once, and what they stand on: a queue pair keeps
//! its completions, an id its channel. The libraries are never closed. Errors in giving back are
//! nobody's to handle and are not told.
//!
//! Thread rule: the libraries', any call on any thread. Source: rdma-core's manual pages. Not
//! here: what is sent, who may connect.

mod abi;
#[cfg(test)]
mod abi_tests;
mod channel;
mod connection;
mod device;
mod library;
mod memory;
mod queue;
mod stream;

pub(crate) use self::abi::verbs;
pub(crate) use self::channel::{Channel, Event, Kind, PRIVATE_BYTES};
pub(crate) use self::connection::{Id, Sizes};
pub(crate) use self::device::{Card, Device, Port, cards};
pub(crate) use self::library::Library;
pub(crate) use self::memory::{Domain, Registered};
pub(crate) use self::queue::{Completion, Completions};
pub(crate) use self::stream::{Stream, close, not_connected};
