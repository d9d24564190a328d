//! The non-blocking twins of [`super::coll`].

use std::ffi::{c_int, c_void};
use std::ptr::{null, null_mut};

use super::args::{Given, start_both};
use super::dtype::UNISONO_U8;
use super::handle::{Comm, RequestHandle};
use crate::types::Collective as C;

/// unisono_all_reduce as a request: returns at once; `*request` ends when the call has. Until then
/// its buffers belong to the library. Counts and displacements are copied here and may go at once.
///
/// # Safety
/// Buffers, counts and displacements this rank uses are valid for what the call reads and writes;
/// the buffers until the request has ended.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisono_iall_reduce(
    send: *const c_void,
    recv: *mut c_void,
    count: u64,
    dtype: c_int,
    op: c_int,
    comm: *mut Comm,
    request: *mut *mut RequestHandle,
) -> c_int {
    let given = Given { op, ..Given::new(C::AllReduce, send, recv, count, dtype) };
    // SAFETY: the caller's promise.
    unsafe { given.start(comm, request) }
}

/// unisono_reduce as a request: returns at once; `*request` ends when the call has.
///
/// # Safety
/// Buffers, counts and displacements this rank uses are valid for what the call reads and writes;
/// the buffers until the request has ended.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisono_ireduce(
    send: *const c_void,
    recv: *mut c_void,
    count: u64,
    dtype: c_int,
    op: c_int,
    root: c_int,
    comm: *mut Comm,
    request: *mut *mut RequestHandle,
) -> c_int {
    let given = Given { op, root, ..Given::new(C::Reduce, send, recv, count, dtype) };
    // SAFETY: the caller's promise.
    unsafe { given.start(comm, request) }
}

/// unisono_broadcast as a request: returns at once; `*request` ends when the call has.
///
/// # Safety
/// Buffers, counts and displacements this rank uses are valid for what the call reads and writes;
/// the buffers until the request has ended.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisono_ibroadcast(
    send: *const c_void,
    recv: *mut c_void,
    count: u64,
    dtype: c_int,
    root: c_int,
    comm: *mut Comm,
    request: *mut *mut RequestHandle,
) -> c_int {
    let given = Given { root, ..Given::new(C::Broadcast, send, recv, count, dtype) };
    // SAFETY: the caller's promise.
    unsafe { given.start(comm, request) }
}

/// unisono_all_gather as a request: returns at once; `*request` ends when the call has.
///
/// # Safety
/// Buffers, counts and displacements this rank uses are valid for what the call reads and writes;
/// the buffers until the request has ended.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisono_iall_gather(
    send: *const c_void,
    recv: *mut c_void,
    send_count: u64,
    dtype: c_int,
    comm: *mut Comm,
    request: *mut *mut RequestHandle,
) -> c_int {
    let given = Given::new(C::AllGather, send, recv, send_count, dtype);
    // SAFETY: the caller's promise.
    unsafe { given.start(comm, request) }
}

/// unisono_reduce_scatter as a request: returns at once; `*request` ends when the call has.
///
/// # Safety
/// Buffers, counts and displacements this rank uses are valid for what the call reads and writes;
/// the buffers until the request has ended.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisono_ireduce_scatter(
    send: *const c_void,
    recv: *mut c_void,
    recv_count: u64,
    dtype: c_int,
    op: c_int,
    comm: *mut Comm,
    request: *mut *mut RequestHandle,
) -> c_int {
    let given = Given { op, ..Given::new(C::ReduceScatter, send, recv, recv_count, dtype) };
    // SAFETY: the caller's promise.
    unsafe { given.start(comm, request) }
}

/// unisono_gather as a request: returns at once; `*request` ends when the call has.
///
/// # Safety
/// Buffers, counts and displacements this rank uses are valid for what the call reads and writes;
/// the buffers until the request has ended.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisono_igather(
    send: *const c_void,
    recv: *mut c_void,
    send_count: u64,
    dtype: c_int,
    root: c_int,
    comm: *mut Comm,
    request: *mut *mut RequestHandle,
) -> c_int {
    let given = Given { root, ..Given::new(C::Gather, send, recv, send_count, dtype) };
    // SAFETY: the caller's promise.
    unsafe { given.start(comm, request) }
}

/// unisono_scatter as a request: returns at once; `*request` ends when the call has.
///
/// # Safety
/// Buffers, counts and displacements this rank uses are valid for what the call reads and writes;
/// the buffers until the request has ended.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisono_iscatter(
    send: *const c_void,
    recv: *mut c_void,
    recv_count: u64,
    dtype: c_int,
    root: c_int,
    comm: *mut Comm,
    request: *mut *mut RequestHandle,
) -> c_int {
    let given = Given { root, ..Given::new(C::Scatter, send, recv, recv_count, dtype) };
    // SAFETY: the caller's promise.
    unsafe { given.start(comm, request) }
}

/// unisono_all_to_all as a request: returns at once; `*request` ends when the call has.
///
/// # Safety
/// Buffers, counts and displacements this rank uses are valid for what the call reads and writes;
/// the buffers until the request has ended.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisono_iall_to_all(
    send: *const c_void,
    recv: *mut c_void,
    count: u64,
    dtype: c_int,
    comm: *mut Comm,
    request: *mut *mut RequestHandle,
) -> c_int {
    let given = Given::new(C::AllToAll, send, recv, count, dtype);
    // SAFETY: the caller's promise.
    unsafe { given.start(comm, request) }
}

/// unisono_all_gather_v as a request: returns at once; `*request` ends when the call has.
///
/// # Safety
/// Buffers, counts and displacements this rank uses are valid for what the call reads and writes;
/// the buffers until the request has ended.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisono_iall_gather_v(
    send: *const c_void,
    recv: *mut c_void,
    counts: *const u64,
    displacements: *const u64,
    dtype: c_int,
    comm: *mut Comm,
    request: *mut *mut RequestHandle,
) -> c_int {
    let given = Given {
        recv_counts: counts,
        recv_displacements: displacements,
        ..Given::new(C::AllGatherV, send, recv, 0, dtype)
    };
    // SAFETY: the caller's promise.
    unsafe { given.start(comm, request) }
}

/// unisono_reduce_scatter_v as a request: returns at once; `*request` ends when the call has.
///
/// # Safety
/// Buffers, counts and displacements this rank uses are valid for what the call reads and writes;
/// the buffers until the request has ended.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisono_ireduce_scatter_v(
    send: *const c_void,
    recv: *mut c_void,
    counts: *const u64,
    dtype: c_int,
    op: c_int,
    comm: *mut Comm,
    request: *mut *mut RequestHandle,
) -> c_int {
    let given =
        Given { op, recv_counts: counts, ..Given::new(C::ReduceScatterV, send, recv, 0, dtype) };
    // SAFETY: the caller's promise.
    unsafe { given.start(comm, request) }
}

/// unisono_gather_v as a request: returns at once; `*request` ends when the call has.
///
/// # Safety
/// Buffers, counts and displacements this rank uses are valid for what the call reads and writes;
/// the buffers until the request has ended.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisono_igather_v(
    send: *const c_void,
    send_count: u64,
    recv: *mut c_void,
    counts: *const u64,
    displacements: *const u64,
    dtype: c_int,
    root: c_int,
    comm: *mut Comm,
    request: *mut *mut RequestHandle,
) -> c_int {
    let given = Given {
        root,
        recv_counts: counts,
        recv_displacements: displacements,
        ..Given::new(C::GatherV, send, recv, send_count, dtype)
    };
    // SAFETY: the caller's promise.
    unsafe { given.start(comm, request) }
}

/// unisono_scatter_v as a request: returns at once; `*request` ends when the call has.
///
/// # Safety
/// Buffers, counts and displacements this rank uses are valid for what the call reads and writes;
/// the buffers until the request has ended.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisono_iscatter_v(
    send: *const c_void,
    counts: *const u64,
    displacements: *const u64,
    recv: *mut c_void,
    recv_count: u64,
    dtype: c_int,
    root: c_int,
    comm: *mut Comm,
    request: *mut *mut RequestHandle,
) -> c_int {
    let given = Given {
        root,
        send_counts: counts,
        send_displacements: displacements,
        ..Given::new(C::ScatterV, send, recv, recv_count, dtype)
    };
    // SAFETY: the caller's promise.
    unsafe { given.start(comm, request) }
}

/// unisono_all_to_all_v as a request: returns at once; `*request` ends when the call has.
///
/// # Safety
/// Buffers, counts and displacements this rank uses are valid for what the call reads and writes;
/// the buffers until the request has ended.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisono_iall_to_all_v(
    send: *const c_void,
    send_counts: *const u64,
    send_displacements: *const u64,
    recv: *mut c_void,
    recv_counts: *const u64,
    recv_displacements: *const u64,
    dtype: c_int,
    comm: *mut Comm,
    request: *mut *mut RequestHandle,
) -> c_int {
    let given = Given {
        send_counts,
        send_displacements,
        recv_counts,
        recv_displacements,
        ..Given::new(C::AllToAllV, send, recv, 0, dtype)
    };
    // SAFETY: the caller's promise.
    unsafe { given.start(comm, request) }
}

/// unisono_barrier as a request: returns at once; `*request` ends when the call has.
///
/// # Safety
/// Buffers, counts and displacements this rank uses are valid for what the call reads and writes;
/// the buffers until the request has ended.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisono_ibarrier(
    comm: *mut Comm,
    request: *mut *mut RequestHandle,
) -> c_int {
    let given = Given::new(C::Barrier, null(), null_mut(), 0, UNISONO_U8);
    // SAFETY: the caller's promise.
    unsafe { given.start(comm, request) }
}

/// unisono_send as a request: returns at once; `*request` ends when the call has.
///
/// # Safety
/// Buffers, counts and displacements this rank uses are valid for what the call reads and writes;
/// the buffers until the request has ended.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisono_isend(
    send: *const c_void,
    count: u64,
    dtype: c_int,
    peer: c_int,
    comm: *mut Comm,
    request: *mut *mut RequestHandle,
) -> c_int {
    let given = Given { root: peer, ..Given::new(C::Send, send, null_mut(), count, dtype) };
    // SAFETY: the caller's promise.
    unsafe { given.start(comm, request) }
}

/// unisono_recv as a request: returns at once; `*request` ends when the call has.
///
/// # Safety
/// Buffers, counts and displacements this rank uses are valid for what the call reads and writes;
/// the buffers until the request has ended.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisono_irecv(
    recv: *mut c_void,
    count: u64,
    dtype: c_int,
    peer: c_int,
    comm: *mut Comm,
    request: *mut *mut RequestHandle,
) -> c_int {
    let given = Given { root: peer, ..Given::new(C::Recv, null(), recv, count, dtype) };
    // SAFETY: the caller's promise.
    unsafe { given.start(comm, request) }
}

/// unisono_send_recv as a request: returns at once; `*request` ends when the call has.
///
/// # Safety
/// Buffers, counts and displacements this rank uses are valid for what the call reads and writes;
/// the buffers until the request has ended.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisono_isend_recv(
    send: *const c_void,
    send_count: u64,
    to: c_int,
    recv: *mut c_void,
    recv_count: u64,
    from: c_int,
    dtype: c_int,
    comm: *mut Comm,
    request: *mut *mut RequestHandle,
) -> c_int {
    let out = Given { root: to, ..Given::new(C::Send, send, null_mut(), send_count, dtype) };
    let back = Given { root: from, ..Given::new(C::Recv, null(), recv, recv_count, dtype) };
    // SAFETY: the caller's promise.
    unsafe { start_both(&out, &back, comm, request) }
}
