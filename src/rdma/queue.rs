//! Completion queues and their channels.

use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use super::abi::verbs as abi;
use super::library::{Library, check_errno, failed};
use crate::error::Result;
use crate::sys::socket;

pub(crate) use super::abi::verbs::ibv_wc as Completion;

/// Where requests of a card end.
#[derive(Debug)]
pub(crate) struct Completions {
    library: Arc<Library>,
    channel: NonNull<abi::ibv_comp_channel>,
    queue: NonNull<abi::ibv_cq>,
}

// SAFETY: libibverbs may be called from any thread.
unsafe impl Send for Completions {}
// SAFETY: as above.
unsafe impl Sync for Completions {}

impl Completions {
    /// For at most `room` completions at a time, on the device of `context`.
    ///
    /// # Safety
    /// The context is open, and stays.
    pub(super) unsafe fn new(
        library: Arc<Library>,
        context: *mut abi::ibv_context,
        room: u32,
    ) -> Result<Arc<Self>> {
        // SAFETY: the caller's promise.
        let channel = unsafe { library.verbs.ibv_create_comp_channel(context) };
        let channel = NonNull::new(channel).ok_or_else(|| failed("a completion channel"))?;
        let room = std::ffi::c_int::try_from(room).unwrap_or(std::ffi::c_int::MAX);
        // SAFETY: as above; the channel was just made.
        let queue = unsafe {
            library.verbs.ibv_create_cq(context, room, ptr::null_mut(), channel.as_ptr(), 0)
        };
        let Some(queue) = NonNull::new(queue) else {
            let error = failed(format!("a queue of {room} completions"));
            // SAFETY: nothing uses the channel.
            unsafe { library.verbs.ibv_destroy_comp_channel(channel.as_ptr()) };
            return Err(error);
        };
        let made = Self { library, channel, queue };
        socket::set_nonblocking(made.fd())?;
        Ok(Arc::new(made))
    }

    pub(super) const fn at(&self) -> *mut abi::ibv_cq {
        self.queue.as_ptr()
    }

    /// Readable when a completion has come after [`Completions::arm`].
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the channel has a descriptor as long as it lives.
        unsafe { BorrowedFd::borrow_raw((*self.channel.as_ptr()).fd) }
    }

    /// Moves completions into `into`; how many.
    pub(crate) fn poll(&self, into: &mut [Completion]) -> Result<usize> {
        let room = std::ffi::c_int::try_from(into.len()).unwrap_or(std::ffi::c_int::MAX);
        // SAFETY: the queue is alive, and its device's table has the call.
        let found = unsafe {
            let ops = &(*(*self.at()).context).ops;
            ops.poll_cq.map_or(-1, |poll| poll(self.at(), room, into.as_mut_ptr()))
        };
        usize::try_from(found).map_err(|_| failed("polling an RDMA card"))
    }

    /// Asks that the next completion be told at the descriptor.
    pub(crate) fn arm(&self) -> Result<()> {
        // SAFETY: as in `poll`.
        let done = unsafe {
            let ops = &(*(*self.at()).context).ops;
            ops.req_notify_cq.map_or(libc::ENOSYS, |arm| arm(self.at(), 0))
        };
        check_errno(done, "arming an RDMA card")
    }

    /// Takes what was told at the descriptor.
    pub(crate) fn quiet(&self) {
        let (mut queue, mut context) = (ptr::null_mut(), ptr::null_mut());
        // BOUND: each arming tells once; the descriptor does not block.
        for _ in 0..64 {
            // SAFETY: the channel is alive; the call writes two pointers.
            let got = unsafe {
                self.library.verbs.ibv_get_cq_event(
                    self.channel.as_ptr(),
                    &raw mut queue,
                    &raw mut context,
                )
            };
            if got != 0 {
                return;
            }
            // SAFETY: one event was taken.
            unsafe { self.library.verbs.ibv_ack_cq_events(queue, 1) };
        }
    }
}

impl Drop for Completions {
    fn drop(&mut self) {
        self.quiet();
        // SAFETY: made once; queue pairs keep this alive.
        unsafe {
            self.library.verbs.ibv_destroy_cq(self.at());
            self.library.verbs.ibv_destroy_comp_channel(self.channel.as_ptr());
        }
    }
}
