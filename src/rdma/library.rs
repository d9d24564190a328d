//! The open libraries: where they are looked for, what their errors mean.

use std::ffi::{CStr, c_int};
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use libloading::os::unix::{Library as Shared, RTLD_LOCAL, RTLD_NOW};

use super::abi::cma::Cma;
use super::abi::rsocket::Rsocket;
use super::abi::verbs::{Verbs, ibv_wc_status};
use crate::error::{Code, Error, Result, quoted, shown};

/// How they are opened: for good, since drivers of cards do not survive closing.
const MODE: c_int = RTLD_NOW | RTLD_LOCAL | libc::RTLD_NODELETE;

/// What the libraries are called.
const USUAL: [&str; 2] = ["libibverbs.so.1", "librdmacm.so.1"];

/// libibverbs and librdmacm.
pub(crate) struct Library {
    pub(super) verbs: Verbs,
    pub(super) cma: Cma,
    /// Of librdmacm too.
    pub(super) rsocket: Rsocket,
    /// Where they were found.
    pub(crate) place: String,
}

impl fmt::Debug for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Library").field("place", &self.place).finish_non_exhaustive()
    }
}

impl Library {
    /// Opens those of these names, or the system's.
    ///
    /// # Errors
    /// `UNSUPPORTED` where one cannot be opened, or lacks a call.
    pub(crate) fn open(verbs: Option<&str>, cma: Option<&str>) -> Result<Arc<Self>> {
        let names = [verbs.unwrap_or(USUAL[0]), cma.unwrap_or(USUAL[1])];
        let refuse = |name: &str, why: &str| {
            let text = format!(
                "{}: {why}; RDMA needs rdma-core (Debian: libibverbs1, ibverbs-providers, \
                 librdmacm1), or UNISONO_IBVERBS_LIB and UNISONO_RDMACM_LIB that name them",
                quoted(name)
            );
            Error::new(Code::Unsupported, text)
        };
        let open = |name: &str| {
            // SAFETY: the constructors do what libraries' do; whoever names another library has
            // chosen to load it.
            let shared = unsafe { Shared::open(Some(Path::new(name)), MODE) };
            shared.map_err(|error| refuse(name, &shown(error.to_string().as_bytes())))
        };
        let (first, second, third) = (open(names[0])?, open(names[1])?, open(names[1])?);
        // SAFETY: the bindings are of these libraries; calls that are missing are refused below.
        let (verbs, cma, rsocket) = unsafe {
            let verbs = Verbs::from_library(first);
            let cma = Cma::from_library(second);
            let rsocket = Rsocket::from_library(third);
            (
                verbs.map_err(|error| refuse(names[0], &error.to_string()))?,
                cma.map_err(|error| refuse(names[1], &error.to_string()))?,
                rsocket.map_err(|error| refuse(names[1], &error.to_string()))?,
            )
        };
        let lacks = |missing: bool| missing.then_some("a call that is needed is missing");
        if let Some(why) = lacks(verbs.ibv_reg_mr.is_err() || verbs.ibv_create_cq.is_err()) {
            return Err(refuse(names[0], why));
        }
        if let Some(why) = lacks(cma.rdma_create_qp.is_err() || cma.rdma_accept.is_err()) {
            return Err(refuse(names[1], why));
        }
        Ok(Arc::new(Self { verbs, cma, rsocket, place: names.join(", ") }))
    }

    /// Whether librdmacm has sockets whose peers may write to memory.
    pub(super) fn has_streams(&self) -> bool {
        let calls = &self.rsocket;
        calls.rsocket.is_ok() && calls.riomap.is_ok() && calls.riowrite.is_ok()
    }

    /// What a completion that is no success says.
    pub(crate) fn status(&self, status: ibv_wc_status) -> String {
        // SAFETY: the call reads a number, and returns a text of the library's.
        let text = unsafe { CStr::from_ptr(self.verbs.ibv_wc_status_str(status)) };
        format!("{} ({status})", text.to_string_lossy())
    }
}

/// The error of a call that has set `errno`.
#[track_caller]
pub(super) fn failed(what: impl fmt::Display) -> Error {
    Error::last_os(what.to_string())
}

/// The same for a call that returns -1, and sets it.
#[track_caller]
pub(super) fn check(result: c_int, what: &str) -> Result<()> {
    if result == 0 { Ok(()) } else { Err(failed(what)) }
}

/// The same for a call that returns it.
#[track_caller]
pub(super) fn check_errno(result: c_int, what: &str) -> Result<()> {
    if result == 0 {
        return Ok(());
    }
    let errno = if result < 0 { -result } else { result };
    Err(Error::os(&std::io::Error::from_raw_os_error(errno), what))
}
