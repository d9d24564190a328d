//! Turns the arguments of a C call into the Rust API's.

use std::ffi::{c_int, c_void};
use std::slice;

use super::dtype::dtype;
use super::handle::{Comm, Held, RequestHandle};
use super::op::{MADE, UNISONO_SUM, operation};
use super::{input, on_comm, output};
use crate::call::Call;
use crate::comm::{Args, Key};
use crate::error::Result;
use crate::types::Collective;

/// The arguments as they came. What a collective does not use is not looked at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Given {
    pub(super) collective: Collective,
    pub(super) send: *const c_void,
    pub(super) recv: *mut c_void,
    pub(super) count: u64,
    pub(super) dtype: c_int,
    pub(super) op: c_int,
    /// Root or peer.
    pub(super) root: c_int,
    pub(super) send_counts: *const u64,
    pub(super) send_displacements: *const u64,
    pub(super) recv_counts: *const u64,
    pub(super) recv_displacements: *const u64,
}

impl Given {
    pub(super) const fn new(
        collective: Collective,
        send: *const c_void,
        recv: *mut c_void,
        count: u64,
        dtype: c_int,
    ) -> Self {
        let none = std::ptr::null();
        Self {
            collective,
            send,
            recv,
            count,
            dtype,
            op: UNISONO_SUM,
            root: 0,
            send_counts: none,
            send_displacements: none,
            recv_counts: none,
            recv_displacements: none,
        }
    }

    /// # Safety
    /// The counts and displacements this rank uses have an entry a rank, or are NULL.
    unsafe fn prepare(&self, held: &Held) -> Result<Call> {
        let kind = self.collective;
        let mut args = Args::new(kind, dtype(self.dtype)?);
        if kind.reduces() {
            args.operation = operation(held, self.op, args.dtype)?;
        }
        args.root = i64::from(self.root);
        (args.send, args.recv, args.count) = (self.send.cast(), self.recv.cast(), self.count);
        let world = held.comm.world_size() as usize;
        let at_root = i64::from(held.comm.rank().0) == args.root;
        // SAFETY: the caller's promise.
        let (counts, places) = unsafe {
            (
                |at: *const u64, name| list(at, world, name),
                |at: *const u64, name| optional_list(at, world, name),
            )
        };
        let sends = match kind {
            Collective::AllToAllV => true,
            Collective::ScatterV => at_root,
            _ => false,
        };
        if sends {
            args.send_counts = counts(self.send_counts, "send_counts")?;
            args.send_displacements = places(self.send_displacements, "send_displacements")?;
        }
        let receives = match kind {
            Collective::AllToAllV | Collective::AllGatherV | Collective::ReduceScatterV => true,
            Collective::GatherV => at_root,
            _ => false,
        };
        if receives {
            args.recv_counts = counts(self.recv_counts, "recv_counts")?;
            args.recv_displacements = places(self.recv_displacements, "recv_displacements")?;
        }
        held.comm.prepare(&args)
    }

    /// Makes the call.
    ///
    /// # Safety
    /// As the header words it: buffers, counts and displacements that this rank uses are valid
    /// until this returns (inside a group: buffers until the group has ended).
    pub(super) unsafe fn run(&self, comm: *mut Comm) -> c_int {
        // SAFETY: the caller's promise.
        on_comm(comm, |held| unsafe {
            match self.key() {
                Some(key) => held.comm.run_again(key, || self.prepare(held)),
                None => held.comm.run(self.prepare(held)?),
            }
        })
    }

    /// What tells this call from others, if it has neither lists of counts nor an operation that
    /// the program has made.
    #[inline]
    fn key(&self) -> Option<Key> {
        let key = Key {
            send: self.send.cast(),
            recv: self.recv.cast(),
            count: self.count,
            root: self.root.into(),
            dtype: self.dtype,
            op: self.op,
            collective: self.collective,
        };
        key.of_plain().filter(|_| self.op < MADE)
    }

    /// Starts the call.
    ///
    /// # Safety
    /// As [`Given::run`], with buffers valid until the request has ended; `request` is valid.
    pub(super) unsafe fn start(&self, comm: *mut Comm, request: *mut *mut RequestHandle) -> c_int {
        on_comm(comm, |held| {
            let at = output(request, "request")?;
            // SAFETY: the caller's promise.
            unsafe {
                let made = held.comm.start(self.prepare(held)?)?;
                at.write(held.give_request(made));
            }
            Ok(())
        })
    }
}

/// A send and a receive as one call.
///
/// # Safety
/// As [`Given::run`].
pub(super) unsafe fn run_both(send: &Given, recv: &Given, comm: *mut Comm) -> c_int {
    // SAFETY: the caller's promise.
    on_comm(comm, |held| unsafe { held.comm.run_pair(send.prepare(held)?, recv.prepare(held)?) })
}

/// A send and a receive as one request.
///
/// # Safety
/// As [`Given::start`].
pub(super) unsafe fn start_both(
    send: &Given,
    recv: &Given,
    comm: *mut Comm,
    request: *mut *mut RequestHandle,
) -> c_int {
    on_comm(comm, |held| {
        let at = output(request, "request")?;
        // SAFETY: the caller's promise.
        unsafe {
            let made = held.comm.start_pair(send.prepare(held)?, recv.prepare(held)?)?;
            at.write(held.give_request(made));
        }
        Ok(())
    })
}

/// # Safety
/// `at` is NULL or valid for `world` entries, for as long as the result is used.
unsafe fn list<'a>(at: *const u64, world: usize, name: &str) -> Result<&'a [u64]> {
    let at = input(at, name)?;
    // SAFETY: neither NULL nor misaligned; the caller promises the rest.
    Ok(unsafe { slice::from_raw_parts(at, world) })
}

/// # Safety
/// As [`list`].
unsafe fn optional_list<'a>(at: *const u64, world: usize, name: &str) -> Result<Option<&'a [u64]>> {
    if at.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller's promise.
    unsafe { list(at, world, name) }.map(Some)
}
