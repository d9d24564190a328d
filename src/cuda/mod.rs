//! The CUDA driver as it is found at run time, one small file a noun.
//!
//! [`Driver`] is the open library; [`Device`] what is known of one; [`Context`] a device's primary
//! context; [`Stream`], [`StreamRef`] and [`Event`] order work; `memory`, `copy` and `share` have
//! memory of devices and processes; [`Module`] has kernels. The bindings are made by `build.rs`
//! from `ffi/cuda/driver.h`; a build without libclang has the types, and no driver.
//!
//! Owns the handles it has made, each given back once, and what they stand on: a stream keeps its
//! context, a context its driver. The library itself is never closed. Errors in giving back are
//! nobody's to handle and are not told, so the end of a process, which ends the driver first, is
//! quiet.
//!
//! Thread rule: the driver's own, any call on any thread; calls that need a current context make
//! it current for themselves, except where their text says otherwise. A forked child is refused:
//! CUDA is its parent's.
//!
//! Not here: which stream a call belongs to, what is copied when, and the CUDA run-time library,
//! which shares primary contexts with this.
#![cfg_attr(
    not(unisono_cuda),
    allow(unused_unsafe, unreachable_code, reason = "no call is there to be unsafe, or to return")
)]

mod context;
mod copy;
mod device;
mod driver;
mod event;
#[cfg(test)]
pub(crate) mod graph;
mod memory;
mod module;
mod recognise;
mod share;
mod stream;

#[cfg(all(test, unisono_cuda))]
mod abi_tests;
#[cfg(all(test, unisono_cuda))]
mod tests;

pub(crate) use self::context::{Context, Entered};
pub(crate) use self::device::Device;
pub(crate) use self::driver::{Driver, Relaxed, describe, is_lost};
pub(crate) use self::event::{Event, Timing};
pub(crate) use self::memory::{DeviceMemory, OrderedMemory, PinnedMemory, Registered};
pub(crate) use self::module::{Function, Module};
pub(crate) use self::recognise::Memory;
pub(crate) use self::share::{HANDLE_BYTES, Imported, SharedMemory};
pub(crate) use self::stream::{Capture, Compare, HostFunction, Stream, StreamRef};

#[allow(
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    unreachable_pub,
    unused_qualifications,
    dead_code,
    missing_debug_implementations,
    clippy::all,
    clippy::pedantic,
    clippy::undocumented_unsafe_blocks,
    clippy::ptr_as_ptr,
    clippy::use_self,
    unsafe_op_in_unsafe_fn,
    reason = "bindgen's"
)]
mod abi {
    include!(concat!(env!("OUT_DIR"), "/cuda_driver.rs"));

    #[cfg(not(unisono_cuda))]
    include!("without.rs");
}

/// A call of the driver by its symbol; what it does with the answer is `call` or the method named
/// before the symbol. Stands in an unsafe block whose comment says why the arguments are valid.
#[cfg(unisono_cuda)]
macro_rules! cu {
    ($driver:expr, $name:ident($($argument:expr),*)) => {
        cu!($driver, call $name($($argument),*))
    };
    ($driver:expr, $how:ident $name:ident($($argument:expr),*)) => {
        $driver.$how(stringify!($name), |calls| calls.$name($($argument),*))
    };
}
#[cfg(not(unisono_cuda))]
macro_rules! cu {
    ($driver:expr, $name:ident($($argument:expr),*)) => {
        cu!($driver, call $name($($argument),*))
    };
    ($driver:expr, $how:ident $name:ident($($argument:expr),*)) => {{
        let _ = ($($argument,)*);
        $driver.$how(stringify!($name), |calls| match *calls {})
    }};
}
use cu;
