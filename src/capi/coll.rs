//! The blocking collectives and messages.
//!
//! One function each, thin: [`super::args`] does the work. Each has a twin in [`super::icoll`].

use std::ffi::{c_int, c_void};
use std::ptr::{null, null_mut};

use super::args::{Given, run_both};
use super::dtype::UNISONO_U8;
use super::handle::Comm;
use crate::types::Collective as C;

/// Every rank's `recv` = the reduction of all ranks' `send`, `count` elements each. In place: recv
/// == send.
///
/// # Safety
/// Buffers, counts and displacements this rank uses are valid for what the call reads and writes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisono_all_reduce(
    send: *const c_void,
    recv: *mut c_void,
    count: u64,
    dtype: c_int,
    op: c_int,
    comm: *mut Comm,
) -> c_int {
    let given = Given { op, ..Given::new(C::AllReduce, send, recv, count, dtype) };
    // SAFETY: the caller's promise.
    unsafe { given.run(comm) }
}

/// The root's `recv` = the reduction of all ranks' `send`, `count` elements each. Other ranks'
/// `recv` is not used and may be NULL. In place at the root: recv == send.
///
/// # Safety
/// Buffers, counts and displacements this rank uses are valid for what the call reads and writes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisono_reduce(
    send: *const c_void,
    recv: *mut c_void,
    count: u64,
    dtype: c_int,
    op: c_int,
    root: c_int,
    comm: *mut Comm,
) -> c_int {
    let given = Given { op, root, ..Given::new(C::Reduce, send, recv, count, dtype) };
    // SAFETY: the caller's promise.
    unsafe { given.run(comm) }
}

/// Every rank's `recv` = the root's `send`, `count` elements. Other ranks' `send` is not used and
/// may be NULL; at the root `recv` may be NULL or equal to `send`.
///
/// # Safety
/// Buffers, counts and displacements this rank uses are valid for what the call reads and writes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisono_broadcast(
    send: *const c_void,
    recv: *mut c_void,
    count: u64,
    dtype: c_int,
    root: c_int,
    comm: *mut Comm,
) -> c_int {
    let given = Given { root, ..Given::new(C::Broadcast, send, recv, count, dtype) };
    // SAFETY: the caller's promise.
    unsafe { given.run(comm) }
}

/// Every rank's `recv` (world times `send_count` elements) = all ranks' `send`, in rank order. In
/// place: send == recv + rank * send_count elements.
///
/// # Safety
/// Buffers, counts and displacements this rank uses are valid for what the call reads and writes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisono_all_gather(
    send: *const c_void,
    recv: *mut c_void,
    send_count: u64,
    dtype: c_int,
    comm: *mut Comm,
) -> c_int {
    let given = Given::new(C::AllGather, send, recv, send_count, dtype);
    // SAFETY: the caller's promise.
    unsafe { given.run(comm) }
}

/// `recv` = block `rank` of the reduction of all ranks' `send` (world times `recv_count` elements).
/// In place: recv == send + rank * recv_count elements; the rest of `send` is then undefined.
///
/// # Safety
/// Buffers, counts and displacements this rank uses are valid for what the call reads and writes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisono_reduce_scatter(
    send: *const c_void,
    recv: *mut c_void,
    recv_count: u64,
    dtype: c_int,
    op: c_int,
    comm: *mut Comm,
) -> c_int {
    let given = Given { op, ..Given::new(C::ReduceScatter, send, recv, recv_count, dtype) };
    // SAFETY: the caller's promise.
    unsafe { given.run(comm) }
}

/// The root's `recv` (world times `send_count` elements) = all ranks' `send`, in rank order. Other
/// ranks' `recv` may be NULL. In place at the root: send == recv + rank * send_count elements.
///
/// # Safety
/// Buffers, counts and displacements this rank uses are valid for what the call reads and writes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisono_gather(
    send: *const c_void,
    recv: *mut c_void,
    send_count: u64,
    dtype: c_int,
    root: c_int,
    comm: *mut Comm,
) -> c_int {
    let given = Given { root, ..Given::new(C::Gather, send, recv, send_count, dtype) };
    // SAFETY: the caller's promise.
    unsafe { given.run(comm) }
}

/// `recv` = block `rank` of the root's `send` (world times `recv_count` elements). Other ranks'
/// `send` may be NULL. In place at the root: recv == send + rank * recv_count elements.
///
/// # Safety
/// Buffers, counts and displacements this rank uses are valid for what the call reads and writes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisono_scatter(
    send: *const c_void,
    recv: *mut c_void,
    recv_count: u64,
    dtype: c_int,
    root: c_int,
    comm: *mut Comm,
) -> c_int {
    let given = Given { root, ..Given::new(C::Scatter, send, recv, recv_count, dtype) };
    // SAFETY: the caller's promise.
    unsafe { given.run(comm) }
}

/// Block r of `recv` = this rank's block of rank r's `send`; blocks have `count` elements. In
/// place: recv == send, on all ranks or none.
///
/// # Safety
/// Buffers, counts and displacements this rank uses are valid for what the call reads and writes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisono_all_to_all(
    send: *const c_void,
    recv: *mut c_void,
    count: u64,
    dtype: c_int,
    comm: *mut Comm,
) -> c_int {
    let given = Given::new(C::AllToAll, send, recv, count, dtype);
    // SAFETY: the caller's promise.
    unsafe { given.run(comm) }
}

/// As unisono_all_gather, where rank r sends counts[r] elements, which lie from displacements[r] on
/// in every rank's `recv`. `counts` and `displacements` have an entry a rank, in elements; counts
/// may be 0. `displacements` may be NULL: blocks follow each other. The same on all ranks.
///
/// # Safety
/// Buffers, counts and displacements this rank uses are valid for what the call reads and writes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisono_all_gather_v(
    send: *const c_void,
    recv: *mut c_void,
    counts: *const u64,
    displacements: *const u64,
    dtype: c_int,
    comm: *mut Comm,
) -> c_int {
    let given = Given {
        recv_counts: counts,
        recv_displacements: displacements,
        ..Given::new(C::AllGatherV, send, recv, 0, dtype)
    };
    // SAFETY: the caller's promise.
    unsafe { given.run(comm) }
}

/// As unisono_reduce_scatter, where rank r gets the next counts[r] elements. The same `counts` on
/// all ranks.
///
/// # Safety
/// Buffers, counts and displacements this rank uses are valid for what the call reads and writes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisono_reduce_scatter_v(
    send: *const c_void,
    recv: *mut c_void,
    counts: *const u64,
    dtype: c_int,
    op: c_int,
    comm: *mut Comm,
) -> c_int {
    let given =
        Given { op, recv_counts: counts, ..Given::new(C::ReduceScatterV, send, recv, 0, dtype) };
    // SAFETY: the caller's promise.
    unsafe { given.run(comm) }
}

/// As unisono_gather, where rank r sends `send_count` = counts[r] elements, which lie from
/// displacements[r] on in the root's `recv`. `recv`, `counts` and `displacements` are only used at
/// the root; `displacements` may be NULL there: blocks follow each other.
///
/// # Safety
/// Buffers, counts and displacements this rank uses are valid for what the call reads and writes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisono_gather_v(
    send: *const c_void,
    send_count: u64,
    recv: *mut c_void,
    counts: *const u64,
    displacements: *const u64,
    dtype: c_int,
    root: c_int,
    comm: *mut Comm,
) -> c_int {
    let given = Given {
        root,
        recv_counts: counts,
        recv_displacements: displacements,
        ..Given::new(C::GatherV, send, recv, send_count, dtype)
    };
    // SAFETY: the caller's promise.
    unsafe { given.run(comm) }
}

/// As unisono_scatter, where rank r gets `recv_count` = counts[r] elements, which lie from
/// displacements[r] on in the root's `send`. `send`, `counts` and `displacements` are only used at
/// the root; `displacements` may be NULL there: blocks follow each other.
///
/// # Safety
/// Buffers, counts and displacements this rank uses are valid for what the call reads and writes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisono_scatter_v(
    send: *const c_void,
    counts: *const u64,
    displacements: *const u64,
    recv: *mut c_void,
    recv_count: u64,
    dtype: c_int,
    root: c_int,
    comm: *mut Comm,
) -> c_int {
    let given = Given {
        root,
        send_counts: counts,
        send_displacements: displacements,
        ..Given::new(C::ScatterV, send, recv, recv_count, dtype)
    };
    // SAFETY: the caller's promise.
    unsafe { given.run(comm) }
}

/// As unisono_all_to_all, where send_counts[r] elements from send_displacements[r] on go to rank r,
/// and recv_counts[r] elements from rank r lie from recv_displacements[r] on. Displacements may be
/// NULL: blocks follow each other. What one rank sends to another, that one must expect.
///
/// # Safety
/// Buffers, counts and displacements this rank uses are valid for what the call reads and writes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisono_all_to_all_v(
    send: *const c_void,
    send_counts: *const u64,
    send_displacements: *const u64,
    recv: *mut c_void,
    recv_counts: *const u64,
    recv_displacements: *const u64,
    dtype: c_int,
    comm: *mut Comm,
) -> c_int {
    let given = Given {
        send_counts,
        send_displacements,
        recv_counts,
        recv_displacements,
        ..Given::new(C::AllToAllV, send, recv, 0, dtype)
    };
    // SAFETY: the caller's promise.
    unsafe { given.run(comm) }
}

/// Complete once every rank has called it.
///
/// # Safety
/// Buffers, counts and displacements this rank uses are valid for what the call reads and writes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisono_barrier(comm: *mut Comm) -> c_int {
    let given = Given::new(C::Barrier, null(), null_mut(), 0, UNISONO_U8);
    // SAFETY: the caller's promise.
    unsafe { given.run(comm) }
}

/// Sends `count` elements to rank `peer`, which must receive as many of the same type. Messages
/// between two ranks arrive in the order they were sent.
///
/// # Safety
/// Buffers, counts and displacements this rank uses are valid for what the call reads and writes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisono_send(
    send: *const c_void,
    count: u64,
    dtype: c_int,
    peer: c_int,
    comm: *mut Comm,
) -> c_int {
    let given = Given { root: peer, ..Given::new(C::Send, send, null_mut(), count, dtype) };
    // SAFETY: the caller's promise.
    unsafe { given.run(comm) }
}

/// Receives `count` elements from rank `peer`.
///
/// # Safety
/// Buffers, counts and displacements this rank uses are valid for what the call reads and writes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisono_recv(
    recv: *mut c_void,
    count: u64,
    dtype: c_int,
    peer: c_int,
    comm: *mut Comm,
) -> c_int {
    let given = Given { root: peer, ..Given::new(C::Recv, null(), recv, count, dtype) };
    // SAFETY: the caller's promise.
    unsafe { given.run(comm) }
}

/// unisono_send to rank `to` and unisono_recv from rank `from` at the same time, so that rings of
/// them do not block each other. The buffers must not overlap.
///
/// # Safety
/// Buffers, counts and displacements this rank uses are valid for what the call reads and writes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisono_send_recv(
    send: *const c_void,
    send_count: u64,
    to: c_int,
    recv: *mut c_void,
    recv_count: u64,
    from: c_int,
    dtype: c_int,
    comm: *mut Comm,
) -> c_int {
    let out = Given { root: to, ..Given::new(C::Send, send, null_mut(), send_count, dtype) };
    let back = Given { root: from, ..Given::new(C::Recv, null(), recv, recv_count, dtype) };
    // SAFETY: the caller's promise.
    unsafe { run_both(&out, &back, comm) }
}
