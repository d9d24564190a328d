//! Protection domains and memory that cards reach.

use std::ptr::NonNull;
use std::sync::Arc;

use super::abi::verbs as abi;
use super::library::{Library, check_errno, failed};
use crate::error::{Code, Error, Result};

/// What a card's memory and queues belong to.
#[derive(Debug)]
pub(crate) struct Domain {
    library: Arc<Library>,
    at: NonNull<abi::ibv_pd>,
}

// SAFETY: libibverbs may be called from any thread.
unsafe impl Send for Domain {}
// SAFETY: as above.
unsafe impl Sync for Domain {}

impl Domain {
    /// One on the device of `context`.
    ///
    /// # Safety
    /// The context is open, and stays.
    pub(super) unsafe fn new(
        library: Arc<Library>,
        context: *mut abi::ibv_context,
    ) -> Result<Arc<Self>> {
        // SAFETY: the caller's promise.
        let at = unsafe { library.verbs.ibv_alloc_pd(context) };
        let at = NonNull::new(at).ok_or_else(|| failed("a protection domain"))?;
        Ok(Arc::new(Self { library, at }))
    }

    pub(super) const fn at(&self) -> *mut abi::ibv_pd {
        self.at.as_ptr()
    }

    /// Lets the card read `bytes` bytes at `at`, and write them where they are writable; with
    /// `remote` peers too, who know the key.
    ///
    /// # Safety
    /// The memory stays as long as the result. Peers may write to it at any time.
    ///
    /// # Errors
    /// `LIMIT` where the process may lock no more memory, with the remedy.
    pub(crate) unsafe fn register(
        self: &Arc<Self>,
        at: *mut u8,
        bytes: usize,
        remote: bool,
    ) -> Result<Registered> {
        let write = abi::IBV_ACCESS_LOCAL_WRITE;
        let access = if remote { write | abi::IBV_ACCESS_REMOTE_WRITE } else { write };
        let made = |access: u32| {
            let access = std::ffi::c_int::try_from(access).unwrap_or(0);
            // SAFETY: the caller's promise; the library checks the range.
            unsafe { self.library.verbs.ibv_reg_mr(self.at(), at.cast(), bytes, access) }
        };
        let mut found = NonNull::new(made(access));
        let mut error = std::io::Error::last_os_error();
        // Memory that may only be read.
        if found.is_none() && error.raw_os_error() == Some(libc::EFAULT) && !remote {
            found = NonNull::new(made(0));
            error = std::io::Error::last_os_error();
        }
        let found = found.ok_or_else(|| refused(&error, bytes))?;
        Ok(Registered { domain: self.clone(), at: found })
    }
}

/// Why memory was not registered.
pub(super) fn refused(error: &std::io::Error, bytes: usize) -> Error {
    let errno = error.raw_os_error().unwrap_or(0);
    if errno != libc::ENOMEM && errno != libc::EAGAIN && errno != libc::EPERM {
        return Error::os(error, format!("{bytes} bytes at an RDMA card"));
    }
    let limit = crate::sys::limits::locked();
    let limit =
        limit.map_or_else(|| "unlimited".to_owned(), |limit| format!("{} KiB", limit >> 10));
    let text = format!(
        "an RDMA card may not lock {bytes} bytes more: the process's limit of locked memory is \
         {limit}; raise it (`ulimit -l unlimited`, LimitMEMLOCK=infinity in a systemd unit, the \
         container's --ulimit memlock=-1)"
    );
    Error { native: errno, ..Error::new(Code::Limit, text) }
}

impl Drop for Domain {
    fn drop(&mut self) {
        // SAFETY: made once; what belongs to it keeps it.
        unsafe { self.library.verbs.ibv_dealloc_pd(self.at()) };
    }
}

/// Memory that a card reaches.
#[derive(Debug)]
pub(crate) struct Registered {
    domain: Arc<Domain>,
    at: NonNull<abi::ibv_mr>,
}

// SAFETY: libibverbs may be called from any thread.
unsafe impl Send for Registered {}
// SAFETY: as above; what is read of the record never changes.
unsafe impl Sync for Registered {}

impl Registered {
    /// The keys of this rank and of peers.
    pub(crate) fn keys(&self) -> (u32, u32) {
        // SAFETY: the record lives until it is deregistered.
        unsafe { (self.at.as_ref().lkey, self.at.as_ref().rkey) }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        // SAFETY: made once. Requests that still use it fail, as they should.
        let done = unsafe { self.domain.library.verbs.ibv_dereg_mr(self.at.as_ptr()) };
        debug_assert!(check_errno(done, "deregistering").is_ok());
    }
}
