//! The open driver: where it is looked for, what its errors mean.

use std::ffi::{CStr, OsString, c_char, c_int};
use std::fmt;
use std::path::PathBuf;
use std::ptr;
use std::sync::Arc;

use libloading::os::unix::{Library as Shared, RTLD_NOW};

use super::abi::{self, CUcontext, CUresult, Calls};
use super::{Device, cu};
use crate::error::{Code, Error, Result, quoted, shown};
use crate::sys::loaded;
use crate::sys::process::forks;

/// Why a build has no CUDA.
const WITHOUT: &str = "this library was built without CUDA, for want of libclang: install it \
                       (Debian: libclang-dev) and build again";

/// What the driver's library is called.
const USUAL: &str = "libcuda.so.1";

/// How the library is opened: for good, since drivers do not survive closing.
const MODE: c_int = RTLD_NOW | libc::RTLD_NODELETE;

/// The oldest driver that has every call: that of CUDA 12.0, as the driver counts.
const OLDEST: c_int = 12_000;

/// The CUDA driver of this process.
pub(crate) struct Driver {
    calls: Calls,
    /// Where it was found, and why there.
    pub(crate) place: String,
    version: c_int,
    /// [`forks`] where it was opened.
    forks: u32,
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").field("place", &self.place).finish_non_exhaustive()
    }
}

impl Driver {
    /// The driver that the process has loaded, else the one in `named`, else the system's;
    /// initialised.
    ///
    /// # Errors
    /// `UNSUPPORTED` where there is none, the library is not one, it is too old, or it finds no
    /// device; the driver's own.
    pub(crate) fn open(named: Option<&str>) -> Result<Arc<Self>> {
        let (name, why) = match (of_program(), named) {
            (Some(path), _) => (path.into_os_string(), "loaded by the program"),
            (None, Some(name)) => (name.into(), "named by UNISONO_CUDA_LIB"),
            (None, None) => (USUAL.into(), "the usual name"),
        };
        let made = Self::load(&name, why, MODE)?;
        // SAFETY: the flags must be 0.
        unsafe { cu!(made, cuInit(0)) }.map_err(|error| match error.native.cast_unsigned() {
            abi::CUDA_ERROR_NO_DEVICE => Error { code: Code::Unsupported, ..error },
            _ => error,
        })?;
        Ok(Arc::new(made))
    }

    /// The driver that the program has loaded, if it has, and may have initialised: this does
    /// neither. Of a library that is no driver nothing is made.
    pub(crate) fn of_process() -> Option<Arc<Self>> {
        let path = of_program()?;
        let mode = MODE | libc::RTLD_NOLOAD;
        Self::load(&path.into_os_string(), "loaded by the program", mode).ok().map(Arc::new)
    }

    fn load(name: &OsString, why: &str, mode: c_int) -> Result<Self> {
        if cfg!(not(unisono_cuda)) {
            return Err(Error::new(Code::Unsupported, WITHOUT));
        }
        let shown_name = name.to_string_lossy().into_owned();
        let place = format!("{}, {why}", shown(shown_name.as_bytes()));
        let refuse = |what: String| {
            let text = format!("{} ({why}): {what}", quoted(&shown_name));
            Error::new(Code::Unsupported, text)
        };
        // SAFETY: a driver's constructors do what libraries' do; whoever names another library has
        // chosen to load it.
        let shared = unsafe { Shared::open(Some(name), mode) }.map_err(|error| {
            refuse(format!(
                "no CUDA driver there: {error}; install NVIDIA's driver, give the container its \
                 GPUs, or set UNISONO_CUDA_LIB"
            ))
        })?;
        // Before anything else, so that an old driver is called old and not incomplete.
        let version = version_of(&shared)
            .ok_or_else(|| refuse("it is no CUDA driver: cuDriverGetVersion is missing".into()))?;
        if version < OLDEST {
            let (found, wanted) = (dotted(version), dotted(OLDEST));
            let text = format!("it is a driver of CUDA {found}, and {wanted} or later is needed");
            return Err(refuse(text));
        }
        let calls = bind(shared).map_err(|what| refuse(format!("it is no CUDA driver: {what}")))?;
        Ok(Self { calls, place, version, forks: forks() })
    }

    /// The CUDA it is a driver of, as "13.0".
    pub(crate) fn version(&self) -> String {
        dotted(self.version)
    }

    /// How many devices it sees.
    ///
    /// # Errors
    /// The driver's own.
    pub(crate) fn device_count(&self) -> Result<u32> {
        let mut count = 0;
        // SAFETY: the place is valid.
        unsafe { cu!(self, cuDeviceGetCount(&raw mut count)) }?;
        Ok(u32::try_from(count).unwrap_or(0))
    }

    /// The device of the calling thread's current context, if there is one.
    ///
    /// # Errors
    /// The driver's own.
    pub(crate) fn current_device(&self) -> Result<Option<u32>> {
        let mut context: CUcontext = ptr::null_mut();
        // SAFETY: the place is valid.
        let code = unsafe { cu!(self, ask cuCtxGetCurrent(&raw mut context)) }?;
        if code == abi::CUDA_ERROR_NOT_INITIALIZED {
            return Ok(None);
        }
        self.check(code, "cuCtxGetCurrent")?;
        if context.is_null() { Ok(None) } else { self.device_of_current().map(Some) }
    }

    /// The device of the current context, which is there.
    pub(super) fn device_of_current(&self) -> Result<u32> {
        let mut device = 0;
        // SAFETY: the place is valid.
        unsafe { cu!(self, cuCtxGetDevice(&raw mut device)) }?;
        Ok(u32::try_from(device).unwrap_or(0))
    }

    /// Until it is dropped, calls of this thread that a capture under way forbids are not held
    /// against that capture: they are this library's own, and no part of it.
    ///
    /// # Errors
    /// The driver's own.
    pub(crate) fn relax(&self) -> Result<Relaxed<'_>> {
        let mut before = abi::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the place is valid and has a known mode.
        unsafe { cu!(self, cuThreadExchangeStreamCaptureMode(&raw mut before)) }?;
        Ok(Relaxed { driver: self, before, _here: std::marker::PhantomData })
    }

    /// Whether this is a forked child's copy: CUDA is the parent's, and must not be called.
    pub(crate) fn is_copy(&self) -> bool {
        forks() != self.forks
    }

    /// Makes one call and gives its code.
    #[inline]
    #[track_caller]
    pub(super) fn ask(
        &self,
        name: &str,
        call: impl FnOnce(&Calls) -> CUresult,
    ) -> Result<CUresult> {
        if self.is_copy() {
            let text = format!(
                "{name}: this process was forked from one that uses CUDA, and must not; start it \
                 anew (exec, or Python's spawn)"
            );
            return Err(Error::new(Code::InvalidState, text));
        }
        Ok(call(&self.calls))
    }

    /// Makes one call, which must work.
    #[inline]
    #[track_caller]
    pub(super) fn call(&self, name: &str, call: impl FnOnce(&Calls) -> CUresult) -> Result<()> {
        let code = self.ask(name, call)?;
        self.check(code, name)
    }

    /// Makes one call that asks whether something has come to pass.
    #[inline]
    #[track_caller]
    pub(super) fn poll(&self, name: &str, call: impl FnOnce(&Calls) -> CUresult) -> Result<bool> {
        match self.ask(name, call)? {
            abi::CUDA_ERROR_NOT_READY => Ok(false),
            code => self.check(code, name).map(|()| true),
        }
    }

    /// An error unless `code` says that the call has worked.
    #[inline]
    #[track_caller]
    pub(super) fn check(&self, code: CUresult, call: &str) -> Result<()> {
        if code == abi::CUDA_SUCCESS { Ok(()) } else { Err(self.error(code, call)) }
    }

    /// The driver's error `code` of `call`.
    #[cold]
    #[track_caller]
    fn error(&self, code: CUresult, call: &str) -> Error {
        let (mut name, mut words): (*const c_char, *const c_char) = (ptr::null(), ptr::null());
        // SAFETY: the places are valid. A code that the driver does not know leaves NULL.
        unsafe {
            let _ = cu!(self, cuGetErrorName(code, &raw mut name));
            let _ = cu!(self, ask cuGetErrorString(code, &raw mut words));
        }
        // SAFETY: texts of the driver's, which live as long as it does.
        let (name, words) = unsafe { (text(name), text(words)) };
        let version = self.version();
        let mut detail = format!("{call} of CUDA {version}: {words} ({name}, code {code})");
        if LOST.contains(&code) {
            detail += "; the device is lost to this process: its context cannot be used again";
        }
        let ours =
            if code == abi::CUDA_ERROR_OUT_OF_MEMORY { Code::OutOfMemory } else { Code::Backend };
        Error { native: code.cast_signed(), ..Error::new(ours, detail) }
    }
}

/// After these every call of the context fails: the driver says so of the kernel's faults, and
/// hardware that is gone stays gone.
const LOST: &[CUresult] = &[
    abi::CUDA_ERROR_DEVICE_UNAVAILABLE,
    abi::CUDA_ERROR_ECC_UNCORRECTABLE,
    abi::CUDA_ERROR_NVLINK_UNCORRECTABLE,
    abi::CUDA_ERROR_CONTAINED,
    abi::CUDA_ERROR_ILLEGAL_ADDRESS,
    abi::CUDA_ERROR_LAUNCH_TIMEOUT,
    abi::CUDA_ERROR_CONTEXT_IS_DESTROYED,
    abi::CUDA_ERROR_ASSERT,
    abi::CUDA_ERROR_HARDWARE_STACK_ERROR,
    abi::CUDA_ERROR_ILLEGAL_INSTRUCTION,
    abi::CUDA_ERROR_MISALIGNED_ADDRESS,
    abi::CUDA_ERROR_INVALID_ADDRESS_SPACE,
    abi::CUDA_ERROR_INVALID_PC,
    abi::CUDA_ERROR_LAUNCH_FAILED,
    abi::CUDA_ERROR_TENSOR_MEMORY_LEAK,
    abi::CUDA_ERROR_MPS_CLIENT_TERMINATED,
];

/// Whether an error of this module says that the device, or its context, is lost.
pub(crate) fn is_lost(error: &Error) -> bool {
    error.code == Code::Backend && LOST.contains(&error.native.cast_unsigned())
}

/// A stretch of [`Driver::relax`].
#[derive(Debug)]
pub(crate) struct Relaxed<'a> {
    driver: &'a Driver,
    before: u32,
    /// The mode is the thread's.
    _here: std::marker::PhantomData<*const ()>,
}

impl Drop for Relaxed<'_> {
    fn drop(&mut self) {
        // SAFETY: the place is valid and has the mode that the driver gave.
        let _ =
            unsafe { cu!(self.driver, cuThreadExchangeStreamCaptureMode(&raw mut self.before)) };
    }
}

/// The driver's library that this process has loaded.
fn of_program() -> Option<PathBuf> {
    loaded::libraries().into_iter().find(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name == "libcuda.so" || name.starts_with("libcuda.so.")
    })
}

type GetVersion = unsafe extern "C" fn(*mut c_int) -> CUresult;

/// What CUDA a library is a driver of; `None` for one that is none.
fn version_of(shared: &Shared) -> Option<c_int> {
    // SAFETY: whoever has this symbol is a driver, and all have it with this type.
    let get = unsafe { shared.get::<GetVersion>(b"cuDriverGetVersion\0") }.ok()?;
    let mut version = 0;
    // SAFETY: the place is valid; allowed before the driver is initialised.
    unsafe { get(&raw mut version) };
    Some(version)
}

#[cfg(unisono_cuda)]
fn bind(shared: Shared) -> Result<Calls, String> {
    // SAFETY: the library's constructors have run; the bindings are those of its ABI.
    unsafe { Calls::from_library(shared) }.map_err(|error| error.to_string())
}

#[cfg(not(unisono_cuda))]
fn bind(_: Shared) -> Result<Calls, String> {
    Err(WITHOUT.to_owned())
}

fn dotted(version: c_int) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

/// # Safety
/// NULL, or a text with its NUL that lives meanwhile.
unsafe fn text(at: *const c_char) -> String {
    if at.is_null() {
        return "unknown to this driver".to_owned();
    }
    // SAFETY: promised by the caller.
    shown(unsafe { CStr::from_ptr(at) }.to_bytes())
}

/// The driver that would be opened, and its devices, a line each: for `unisono info`.
///
/// # Errors
/// As [`Driver::open`].
pub(crate) fn describe(named: Option<&str>) -> Result<Vec<String>> {
    let driver = Driver::open(named)?;
    let mut lines = vec![format!("CUDA {}: {}", driver.version(), driver.place)];
    for ordinal in 0..driver.device_count()? {
        lines.push(Device::find(&driver, ordinal)?.to_string());
    }
    Ok(lines)
}
