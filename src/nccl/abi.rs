//! NCCL's functions as they are called: the bindings, or where there are none, their types alone.
//!
//! [`Api`] is the loaded functions. A library may lack some: [`Api::lacks`] looks for those that
//! every version has, [`Api::has`] for the others. A call of what is missing is a bug.
//!
//! Not here: what a result means.

#[cfg(unisono_nccl)]
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
pub(super) mod raw {
    include!(concat!(env!("OUT_DIR"), "/nccl.rs"));
}

/// The types of `ffi/nccl/nccl.h`, for builds that cannot read it. No library is opened there.
#[cfg(not(unisono_nccl))]
#[allow(non_camel_case_types, non_snake_case, dead_code, reason = "C's names")]
pub(super) mod raw {
    use std::ffi::{c_char, c_int, c_uint, c_void};

    pub(crate) type ncclComm_t = *mut c_void;
    pub(crate) type ncclWindow_t = *mut c_void;
    pub(crate) type cudaStream_t = *mut c_void;
    pub(crate) type ncclResult_t = c_uint;
    pub(crate) type ncclDataType_t = c_uint;
    pub(crate) type ncclRedOp_t = c_uint;
    pub(crate) type ncclScalarResidence_t = c_uint;

    #[derive(Clone, Copy)]
    #[repr(C)]
    pub(crate) struct ncclUniqueId {
        pub(crate) internal: [c_char; 128],
    }

    #[repr(C)]
    pub(crate) struct ncclConfig_t {
        pub(crate) size: usize,
        pub(crate) magic: c_uint,
        pub(crate) version: c_uint,
        pub(crate) blocking: c_int,
        pub(crate) cgaClusterSize: c_int,
        pub(crate) minCTAs: c_int,
        pub(crate) maxCTAs: c_int,
        pub(crate) netName: *const c_char,
        pub(crate) splitShare: c_int,
        pub(crate) trafficClass: c_int,
        pub(crate) commName: *const c_char,
        pub(crate) collnetEnable: c_int,
        pub(crate) CTAPolicy: c_int,
        pub(crate) shrinkShare: c_int,
        pub(crate) nvlsCTAs: c_int,
        pub(crate) nChannelsPerNetPeer: c_int,
        pub(crate) nvlinkCentricSched: c_int,
        pub(crate) graphUsageMode: c_int,
        pub(crate) numRmaCtx: c_int,
        pub(crate) maxP2pPeers: c_int,
        pub(crate) graphStreamOrdering: c_int,
    }
}

use std::ffi::{c_char, c_int, c_uint, c_void};

use libloading::os::unix::Library;

use self::raw::{
    cudaStream_t, ncclComm_t, ncclConfig_t, ncclDataType_t, ncclRedOp_t, ncclResult_t,
    ncclScalarResidence_t, ncclUniqueId, ncclWindow_t,
};
#[cfg(not(unisono_nccl))]
use super::library::WITHOUT;
use crate::error::{Code, Error, Result};

macro_rules! calls {
    (
        always $($always:ident)+;
        $(fn $function:ident = $call:ident($($argument:ident: $type:ty),*) -> $result:ty;)+
    ) => {
        /// The functions of a loaded NCCL.
        pub(super) struct Api {
            #[cfg(unisono_nccl)]
            lib: raw::Nccl,
            #[cfg(not(unisono_nccl))]
            never: std::convert::Infallible,
        }

        impl Api {
            $(
                /// The call of NCCL's header.
                ///
                /// # Safety
                /// What NCCL's documentation asks of its caller; and the library has it.
                #[inline]
                #[allow(clippy::too_many_arguments, reason = "they are NCCL's")]
                pub(super) unsafe fn $function(&self, $($argument: $type),*) -> $result {
                    #[cfg(unisono_nccl)]
                    {
                        // SAFETY: as the caller promises.
                        unsafe { self.lib.$call($($argument),*) }
                    }
                    #[cfg(not(unisono_nccl))]
                    {
                        $(let _ = $argument;)*
                        match self.never {}
                    }
                }
            )+

            /// The first of the calls every version has that this library lacks.
            pub(super) fn lacks(&self) -> Option<&'static str> {
                [$(stringify!($always)),+].into_iter().find(|name| !self.has(name))
            }

            /// Whether the library has the call of this name.
            pub(super) fn has(&self, name: &str) -> bool {
                #[cfg(unisono_nccl)]
                {
                    match name {
                        $(stringify!($call) => self.lib.$call.is_ok(),)+
                        _ => false,
                    }
                }
                #[cfg(not(unisono_nccl))]
                {
                    let _ = name;
                    match self.never {}
                }
            }
        }
    };
}

calls! {
    always
        ncclGetErrorString ncclGetLastError ncclGetUniqueId ncclCommInitRankConfig
        ncclCommFinalize ncclCommDestroy ncclCommAbort ncclCommGetAsyncError ncclCommCount
        ncclCommUserRank ncclCommCuDevice ncclCommSplit ncclGroupStart ncclGroupEnd
        ncclRedOpCreatePreMulSum ncclRedOpDestroy ncclAllReduce ncclReduce ncclBroadcast
        ncclAllGather ncclReduceScatter ncclSend ncclRecv;

    fn error_string = ncclGetErrorString(result: ncclResult_t) -> *const c_char;
    fn last_error = ncclGetLastError(comm: ncclComm_t) -> *const c_char;

    fn unique_id = ncclGetUniqueId(id: *mut ncclUniqueId) -> ncclResult_t;
    fn init = ncclCommInitRankConfig(
        made: *mut ncclComm_t, ranks: c_int, id: ncclUniqueId, rank: c_int,
        config: *mut ncclConfig_t) -> ncclResult_t;
    fn finalize = ncclCommFinalize(comm: ncclComm_t) -> ncclResult_t;
    fn destroy = ncclCommDestroy(comm: ncclComm_t) -> ncclResult_t;
    fn abort = ncclCommAbort(comm: ncclComm_t) -> ncclResult_t;
    fn revoke = ncclCommRevoke(comm: ncclComm_t, flags: c_int) -> ncclResult_t;
    fn async_error = ncclCommGetAsyncError(
        comm: ncclComm_t, result: *mut ncclResult_t) -> ncclResult_t;
    fn count = ncclCommCount(comm: ncclComm_t, count: *mut c_int) -> ncclResult_t;
    fn user_rank = ncclCommUserRank(comm: ncclComm_t, rank: *mut c_int) -> ncclResult_t;
    fn device = ncclCommCuDevice(comm: ncclComm_t, device: *mut c_int) -> ncclResult_t;
    fn split = ncclCommSplit(
        comm: ncclComm_t, color: c_int, key: c_int, made: *mut ncclComm_t,
        config: *mut ncclConfig_t) -> ncclResult_t;
    fn shrink = ncclCommShrink(
        comm: ncclComm_t, without: *mut c_int, count: c_int, made: *mut ncclComm_t,
        config: *mut ncclConfig_t, flags: c_int) -> ncclResult_t;
    fn grow_id = ncclCommGetUniqueId(comm: ncclComm_t, id: *mut ncclUniqueId) -> ncclResult_t;
    fn grow = ncclCommGrow(
        comm: ncclComm_t, ranks: c_int, id: *const ncclUniqueId, rank: c_int,
        made: *mut ncclComm_t, config: *mut ncclConfig_t) -> ncclResult_t;

    fn mem_alloc = ncclMemAlloc(at: *mut *mut c_void, bytes: usize) -> ncclResult_t;
    fn mem_free = ncclMemFree(at: *mut c_void) -> ncclResult_t;
    fn register = ncclCommRegister(
        comm: ncclComm_t, at: *mut c_void, bytes: usize,
        handle: *mut *mut c_void) -> ncclResult_t;
    fn deregister = ncclCommDeregister(comm: ncclComm_t, handle: *mut c_void) -> ncclResult_t;
    fn window_register = ncclCommWindowRegister(
        comm: ncclComm_t, at: *mut c_void, bytes: usize, window: *mut ncclWindow_t,
        flags: c_int) -> ncclResult_t;
    fn window_deregister = ncclCommWindowDeregister(
        comm: ncclComm_t, window: ncclWindow_t) -> ncclResult_t;

    fn group_start = ncclGroupStart() -> ncclResult_t;
    fn group_end = ncclGroupEnd() -> ncclResult_t;
    fn op_create = ncclRedOpCreatePreMulSum(
        op: *mut ncclRedOp_t, scalar: *mut c_void, kind: ncclDataType_t,
        residence: ncclScalarResidence_t, comm: ncclComm_t) -> ncclResult_t;
    fn op_destroy = ncclRedOpDestroy(op: ncclRedOp_t, comm: ncclComm_t) -> ncclResult_t;

    fn all_reduce = ncclAllReduce(
        send: *const c_void, recv: *mut c_void, count: usize, kind: ncclDataType_t,
        op: ncclRedOp_t, comm: ncclComm_t, stream: cudaStream_t) -> ncclResult_t;
    fn reduce = ncclReduce(
        send: *const c_void, recv: *mut c_void, count: usize, kind: ncclDataType_t,
        op: ncclRedOp_t, root: c_int, comm: ncclComm_t, stream: cudaStream_t) -> ncclResult_t;
    fn broadcast = ncclBroadcast(
        send: *const c_void, recv: *mut c_void, count: usize, kind: ncclDataType_t,
        root: c_int, comm: ncclComm_t, stream: cudaStream_t) -> ncclResult_t;
    fn all_gather = ncclAllGather(
        send: *const c_void, recv: *mut c_void, count: usize, kind: ncclDataType_t,
        comm: ncclComm_t, stream: cudaStream_t) -> ncclResult_t;
    fn reduce_scatter = ncclReduceScatter(
        send: *const c_void, recv: *mut c_void, count: usize, kind: ncclDataType_t,
        op: ncclRedOp_t, comm: ncclComm_t, stream: cudaStream_t) -> ncclResult_t;
    fn all_to_all = ncclAlltoAll(
        send: *const c_void, recv: *mut c_void, count: usize, kind: ncclDataType_t,
        comm: ncclComm_t, stream: cudaStream_t) -> ncclResult_t;
    fn gather = ncclGather(
        send: *const c_void, recv: *mut c_void, count: usize, kind: ncclDataType_t,
        root: c_int, comm: ncclComm_t, stream: cudaStream_t) -> ncclResult_t;
    fn scatter = ncclScatter(
        send: *const c_void, recv: *mut c_void, count: usize, kind: ncclDataType_t,
        root: c_int, comm: ncclComm_t, stream: cudaStream_t) -> ncclResult_t;
    fn send = ncclSend(
        send: *const c_void, count: usize, kind: ncclDataType_t, peer: c_int,
        comm: ncclComm_t, stream: cudaStream_t) -> ncclResult_t;
    fn recv = ncclRecv(
        recv: *mut c_void, count: usize, kind: ncclDataType_t, peer: c_int,
        comm: ncclComm_t, stream: cudaStream_t) -> ncclResult_t;
}

/// A result that says nothing is wrong: the call has worked.
pub(super) const SUCCESS: c_uint = 0;
/// Nothing is wrong either: the call goes on by itself.
pub(super) const IN_PROGRESS: c_uint = 7;

impl Api {
    /// Binds what the library has.
    ///
    /// # Errors
    /// `UNSUPPORTED` in a build without bindings.
    pub(super) fn bind(library: Library) -> Result<Self> {
        #[cfg(unisono_nccl)]
        {
            // SAFETY: the functions have the types of NCCL's header, as whoever has the names has.
            let bound = unsafe { raw::Nccl::from_library(libloading::Library::from(library)) };
            let error = |error: libloading::Error| Error::new(Code::Backend, error.to_string());
            Ok(Self { lib: bound.map_err(error)? })
        }
        #[cfg(not(unisono_nccl))]
        {
            drop(library);
            Err(Error::new(Code::Unsupported, WITHOUT))
        }
    }
}
