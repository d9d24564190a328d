//! The functions and types of libibverbs and librdmacm, as bindgen makes them of `ffi/rdma`.
//!
//! A library may lack functions that came later: the field of that name is an error then, and a
//! call of it is a bug. `rfcntl` takes any number of arguments, so it is a field alone.
//!
//! Not here: what a result means, and builds without bindings.

#[allow(
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
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
mod bindings {
    pub(crate) mod verbs {
        include!(concat!(env!("OUT_DIR"), "/rdma_verbs.rs"));
    }

    pub(crate) mod cma {
        include!(concat!(env!("OUT_DIR"), "/rdma_cma.rs"));
    }

    pub(crate) mod rsocket {
        include!(concat!(env!("OUT_DIR"), "/rdma_rsocket.rs"));
    }
}

pub(crate) use self::bindings::{cma, rsocket, verbs};
