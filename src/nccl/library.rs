//! One open NCCL: its version, what it has, and what its errors mean.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::fmt;
use std::ptr;
use std::sync::Arc;

use libloading::os::unix::{Library as Shared, RTLD_LOCAL, RTLD_NOW};

use super::Progress;
use super::abi::{Api, IN_PROGRESS, SUCCESS, raw};
use super::find::{Candidate, candidates};
use super::version::{Feature, OLDEST, Version};
use crate::error::{Code, Error, Result, cut, quoted, shown};
use crate::sys::loaded;
use crate::sys::process::forks;

/// Why a build has no NCCL.
pub(super) const WITHOUT: &str = "this library was built without NCCL, for want of libclang: \
                                  install it (Debian: libclang-dev) and build again";

/// How it is opened: for good, since threads of its own outlive communicators.
const MODE: c_int = RTLD_NOW | RTLD_LOCAL | libc::RTLD_NODELETE;

/// Bytes of NCCL's words that an error repeats.
const WORDS_MAX: usize = 400;

/// An open NCCL.
pub(crate) struct Library {
    pub(super) api: Api,
    pub(crate) version: Version,
    /// Where it was found, and why there.
    pub(crate) place: String,
    /// [`forks`] where it was opened.
    forks: u32,
}

impl fmt::Debug for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NCCL {} ({})", self.version, self.place)
    }
}

/// What NCCL's results mean that are errors. Kept as the number in [`Error::native`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// A call of CUDA has failed, maybe one made before NCCL's.
    Cuda,
    /// A call of the operating system has.
    System,
    /// A bug of NCCL.
    Internal,
    /// An argument it does not take.
    Argument,
    /// A call that it does not allow there.
    Usage,
    /// A rank or the network to it is gone.
    Remote,
    /// Something took too long.
    Timeout,
    /// A number this library does not know.
    Unknown,
}

impl Failure {
    /// What result `code` is.
    pub(crate) const fn of(code: i32) -> Self {
        match code {
            1 => Self::Cuda,
            2 => Self::System,
            3 => Self::Internal,
            4 => Self::Argument,
            5 => Self::Usage,
            6 => Self::Remote,
            8 => Self::Timeout,
            _ => Self::Unknown,
        }
    }

    /// In words; NCCL has its own for what is not known here.
    const fn words(self) -> Option<&'static str> {
        match self {
            Self::Cuda => Some("unhandled CUDA error"),
            Self::System => Some("unhandled system error"),
            Self::Internal => Some("internal error"),
            Self::Argument => Some("invalid argument"),
            Self::Usage => Some("invalid usage"),
            Self::Remote => Some("a rank has ended, or the network to it"),
            Self::Timeout => Some("timeout"),
            Self::Unknown => None,
        }
    }
}

/// How NCCL's releases say that two ranks are on one GPU.
const SHARED_GPU: &[&str] = &[
    "Duplicate GPU detected",
    "ranks detected using the same GPU",
    "Ranks are using the same GPU",
];

impl Library {
    /// The NCCL of this process: one that is loaded, else the one in `named`, else that of
    /// `NCCL_HOME` or `CUDA_HOME`, else the system's, else that of a Python environment.
    ///
    /// # Errors
    /// `UNSUPPORTED` where there is none, or none that can be used; the text says what was tried.
    /// `INVALID_STATE` where the process has loaded two.
    pub(crate) fn open(named: Option<&str>) -> Result<Arc<Self>> {
        if cfg!(not(unisono_nccl)) {
            return Err(Error::new(Code::Unsupported, WITHOUT));
        }
        let mut tried = Vec::new();
        for candidate in candidates(named)? {
            match Self::load(&candidate) {
                Ok(made) => return Ok(Arc::new(made)),
                // What was asked for by name, or is loaded already, is not passed over.
                Err(error) if candidate.binding => return Err(error),
                Err(error) => tried.push(error.detail.into_string()),
            }
        }
        let text = format!(
            "no NCCL was found: install it (the package libnccl2 or nccl, or nvidia-nccl-cu13 of \
             PyPI), or set UNISONO_NCCL_LIB to its libnccl.so.2; tried {}",
            tried.join("; ")
        );
        Err(Error::new(Code::Unsupported, text))
    }

    /// Opens one and asks it for its version.
    pub(super) fn load(candidate: &Candidate) -> Result<Self> {
        let name = candidate.name.to_string_lossy().into_owned();
        let refuse = |why: &str| {
            let text = format!("{} ({}): {why}", quoted(&name), candidate.why);
            Error::new(Code::Unsupported, text)
        };
        // SAFETY: NCCL's constructors do what libraries' do; whoever names another library has
        // chosen to load it.
        let shared = unsafe { Shared::open(Some(&candidate.name), MODE) };
        let shared = shared.map_err(|error| refuse(&shown(error.to_string().as_bytes())))?;
        let version = version(&shared)
            .ok_or_else(|| refuse("it is no NCCL: ncclGetVersion is missing or fails"))?;
        if version < OLDEST {
            let why = format!("it is NCCL {version}, and {OLDEST} is the oldest that can be used");
            return Err(refuse(&why));
        }
        let api = Api::bind(shared)?;
        if let Some(missing) = api.lacks() {
            return Err(refuse(&format!("NCCL {version} without {missing}")));
        }
        let place = format!("{}, {}", file(&name), candidate.why);
        Ok(Self { api, version, place, forks: forks() })
    }

    /// Whether it has `feature`: its version does, and all of the calls are there.
    pub(crate) fn has(&self, feature: Feature) -> bool {
        self.version >= feature.since() && feature.calls().iter().all(|call| self.api.has(call))
    }

    /// Refuses what it does not have.
    ///
    /// # Errors
    /// `UNSUPPORTED` names the version that has it.
    pub(crate) fn need(&self, feature: Feature) -> Result<()> {
        if self.has(feature) {
            return Ok(());
        }
        let name = feature.name();
        let text = if self.version < feature.since() {
            format!("NCCL {} has no {name}: {} and later have", self.version, feature.since())
        } else {
            format!("NCCL {} has no {name}: a call of it is missing there", self.version)
        };
        Err(Error::new(Code::Unsupported, text))
    }

    /// Refuses calls in a forked child: NCCL and its threads are the parent's.
    ///
    /// # Errors
    /// `INVALID_STATE` there.
    pub(crate) fn usable(&self) -> Result<()> {
        if forks() == self.forks {
            return Ok(());
        }
        let text = "this process was forked from one that has opened NCCL, which only that one may \
                    call";
        Err(Error::new(Code::InvalidState, text))
    }

    /// What the result of `call` says.
    ///
    /// # Errors
    /// `BACKEND` with NCCL's number and words, unless the call has worked or goes on.
    #[inline]
    #[track_caller]
    pub(crate) fn check(&self, code: c_uint, call: &str) -> Result<Progress> {
        match code {
            SUCCESS => Ok(Progress::Done),
            IN_PROGRESS => Ok(Progress::Pending),
            _ => Err(self.error(code, call)),
        }
    }

    /// [`Library::check`] where nothing is waited for.
    #[inline]
    #[track_caller]
    pub(crate) fn done(&self, code: c_uint, call: &str) -> Result<()> {
        self.check(code, call).map(|_| ())
    }

    /// NCCL's error `code` of `call`.
    #[cold]
    #[track_caller]
    fn error(&self, code: c_uint, call: &str) -> Error {
        let native = code.cast_signed();
        let words = Failure::of(native).words().map_or_else(|| self.words(code), str::to_owned);
        let mut text = format!("{call} of NCCL {}: {words}", self.version);
        let last = self.last_error();
        if !last.is_empty() {
            text += &format!(": {last}");
        }
        text += &format!(" (code {code})");
        if SHARED_GPU.iter().any(|said| last.contains(said)) {
            text += if self.has(Feature::SharedGpu) {
                "; give each rank a GPU of its own, or set NCCL_MULTI_RANK_GPU_ENABLE=1, or use \
                 --backend native"
            } else {
                "; give each rank a GPU of its own, or use --backend native, or NCCL 2.30 with \
                 NCCL_MULTI_RANK_GPU_ENABLE=1"
            };
        }
        Error { native, ..Error::new(Code::Backend, text) }
    }

    /// NCCL's words for a result, without its advice on logging.
    fn words(&self, code: c_uint) -> String {
        // SAFETY: takes any number, and returns a constant text.
        let text = text_at(unsafe { self.api.error_string(code) });
        text.split(" (run with").next().unwrap_or_default().to_owned()
    }

    /// What NCCL has said last of an error in this process; empty if nothing.
    pub(crate) fn last_error(&self) -> String {
        // SAFETY: takes no communicator, and returns a text that stays where it is.
        text_at(unsafe { self.api.last_error(ptr::null_mut()) })
    }

    /// Memory of NCCL's, on the current device: what it can register best.
    ///
    /// # Errors
    /// `UNSUPPORTED` before 2.19, else NCCL's own.
    pub(crate) fn mem_alloc(&self, bytes: usize) -> Result<*mut c_void> {
        self.usable()?;
        self.need(Feature::Memory)?;
        let mut at = ptr::null_mut();
        // SAFETY: the place is a local.
        self.done(unsafe { self.api.mem_alloc(&raw mut at, bytes) }, "ncclMemAlloc")?;
        Ok(at)
    }

    /// Gives memory back.
    ///
    /// # Safety
    /// It is of [`Library::mem_alloc`], and nobody uses it any more.
    ///
    /// # Errors
    /// NCCL's own.
    pub(crate) unsafe fn mem_free(&self, at: *mut c_void) -> Result<()> {
        self.usable()?;
        self.need(Feature::Memory)?;
        // SAFETY: as the caller promises.
        self.done(unsafe { self.api.mem_free(at) }, "ncclMemFree")
    }

    /// Makes the calls of NCCL that `what` makes on this thread begin together when it returns.
    /// They have begun when what is returned, and every communicator among them, is done.
    ///
    /// # Errors
    /// The first of those of `what` and of the group.
    pub(crate) fn group<R>(&self, what: impl FnOnce() -> Result<R>) -> Result<(R, Progress)> {
        self.usable()?;
        // SAFETY: takes nothing; the end is below, whatever happens.
        self.done(unsafe { self.api.group_start() }, "ncclGroupStart")?;
        let mut open = Group { library: self, open: true };
        let outcome = what();
        open.open = false;
        // SAFETY: takes nothing; the group was begun above.
        let ended = self.check(unsafe { self.api.group_end() }, "ncclGroupEnd");
        Ok((outcome?, ended?))
    }
}

/// A group that a panic may leave: the thread must not stay in it.
struct Group<'a> {
    library: &'a Library,
    open: bool,
}

impl Drop for Group<'_> {
    fn drop(&mut self) {
        if self.open {
            // SAFETY: takes nothing; the group has begun.
            unsafe { self.library.api.group_end() };
        }
    }
}

/// A text of NCCL's, fit for one line.
fn text_at(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: NCCL's texts end with NUL, and stay where they are.
    let text = unsafe { CStr::from_ptr(text) };
    let line = shown(text.to_bytes());
    cut(line.trim(), WORDS_MAX).to_owned()
}

type GetVersion = unsafe extern "C" fn(*mut c_int) -> raw::ncclResult_t;

/// Which version a library is; `None` for one that is no NCCL.
fn version(shared: &Shared) -> Option<Version> {
    // SAFETY: whoever has this symbol is an NCCL, and all have it with this type.
    let get = unsafe { shared.get::<GetVersion>(b"ncclGetVersion\0") }.ok()?;
    let mut code = 0;
    // SAFETY: the place is a local; the call does nothing else.
    let result = unsafe { get(&raw mut code) };
    u32::try_from(code).ok().filter(|code| result == SUCCESS && *code > 0).map(Version)
}

/// The file that a name has led to, if the system was asked to find it.
fn file(name: &str) -> String {
    let find = || loaded::libraries().into_iter().find(|path| path.ends_with(name));
    let found = if name.contains('/') { None } else { find() };
    found.map_or_else(|| name.to_owned(), |path| path.display().to_string())
}
