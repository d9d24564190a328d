//! One open MPI: which it is, whether it runs, and on which threads it may be called.

use std::ffi::{c_int, c_void};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use libloading::os::unix::{Library as Shared, RTLD_GLOBAL, RTLD_NOW};

use super::find::{Candidate, candidates};
use super::{Api, Constants, Handle, SUCCESS};
use crate::error::{Code, Error, Result, quoted, shown};
use crate::sync::{Ordering, StaticU32};
use crate::sys::process::forks;

/// Why a build has no MPI.
const WITHOUT: &str = "this library was built without MPI, for want of libclang: install it \
                       (Debian: libclang-dev) and build again";

/// How an MPI is opened: for its components too, and for good, since MPIs do not survive closing.
const MODE: c_int = RTLD_NOW | RTLD_GLOBAL | libc::RTLD_NODELETE;

/// Bytes of the longest text that MPI writes, in any ABI.
pub(super) const TEXT_MAX: usize = 8192;

/// The version of the standard ABI whose header we have.
const ABI_MAJOR: c_int = 1;

/// Which threads may call MPI, ascending.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// There is one thread only.
    Single,
    /// The one that initialised MPI.
    Funneled,
    /// Any, one at a time.
    Serialized,
    /// Any, at once.
    Multiple,
}

impl Level {
    /// The standard's name.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Single => "MPI_THREAD_SINGLE",
            Self::Funneled => "MPI_THREAD_FUNNELED",
            Self::Serialized => "MPI_THREAD_SERIALIZED",
            Self::Multiple => "MPI_THREAD_MULTIPLE",
        }
    }
}

/// What the calling thread may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Thread {
    pub(crate) level: Level,
    /// It is the one that initialised MPI.
    pub(crate) main: bool,
}

/// An open MPI.
#[derive(Debug)]
pub(crate) struct Library {
    api: Box<dyn Api>,
    /// What it says it is, in one line.
    pub(crate) name: String,
    /// Which ABI it has.
    pub(crate) abi: &'static str,
    /// Where it was found, and why there.
    pub(crate) place: String,
    /// [`forks`] where it was opened.
    forks: u32,
}

/// The MPI that this library has initialised, to be finalised when the process ends. Global, as
/// MPI is: it can be initialised once.
static STARTED: OnceLock<Arc<Library>> = OnceLock::new();

/// 1 once a communicator has failed: then finalising may never end.
static FAILED: StaticU32 = StaticU32::new(0);

impl Library {
    /// The MPI of this process: one that is loaded, else the one in `named`, else that of the
    /// launcher, else the usual ones.
    ///
    /// # Errors
    /// `UNSUPPORTED` where there is none, or none whose ABI is known; the text says what was tried.
    pub(crate) fn open(named: Option<&str>) -> Result<Arc<Self>> {
        if let Some(started) = STARTED.get() {
            return Ok(started.clone());
        }
        if cfg!(not(unisono_mpi)) {
            return Err(Error::new(Code::Unsupported, WITHOUT));
        }
        let mut tried = Vec::new();
        for candidate in candidates(named)? {
            match Self::load(&candidate) {
                Ok(made) => return Ok(Arc::new(made)),
                // What was asked for by name, or runs already, is not passed over.
                Err(error) if candidate.binding => return Err(error),
                Err(error) => tried.push(error.detail.into_string()),
            }
        }
        let text = format!(
            "no MPI was found: set UNISONO_MPI_LIB to its libmpi.so, or start the program with its \
             mpirun; tried {}",
            tried.join("; ")
        );
        Err(Error::new(Code::Unsupported, text))
    }

    /// Opens one and asks it what it is.
    pub(super) fn load(candidate: &Candidate) -> Result<Self> {
        let name = candidate.name.to_string_lossy().into_owned();
        let refuse = |why: &str| {
            let text = format!("{} ({}): {why}", quoted(&name), candidate.why);
            Error::new(Code::Unsupported, text)
        };
        // SAFETY: an MPI's constructors do what libraries' do; whoever names another library has
        // chosen to load it. Components of older Open MPIs look for symbols of the whole process.
        let shared = unsafe { Shared::open(Some(&candidate.name), MODE) };
        let shared = shared.map_err(|error| refuse(&error.to_string()))?;
        let version = library_version(&shared)
            .ok_or_else(|| refuse("it is no MPI: MPI_Get_library_version is missing"))?;
        let abi = recognise(&shared, &version).map_err(|why| refuse(&why))?;
        let place = format!("{name}, {}", candidate.why);
        let api = bind(abi, shared).map_err(|error| refuse(&error.detail))?;
        Ok(Self { api, name: first_line(&version), abi: abi.name(), place, forks: forks() })
    }

    pub(crate) fn api(&self) -> &dyn Api {
        &*self.api
    }

    /// MPI's error `code` of `call`.
    #[cold]
    #[track_caller]
    pub(crate) fn error(&self, code: c_int, call: &str) -> Error {
        let mut text = vec![0; TEXT_MAX];
        let mut length = 0;
        let said = self.api.error_string(code, &mut text, &mut length);
        let bytes = usize::try_from(length).unwrap_or(0).min(TEXT_MAX);
        let words = if said == SUCCESS { shown(&text[..bytes]) } else { String::new() };
        let text = format!("{call} of {}: {} (code {code})", self.name, words.trim());
        Error { native: code, ..Error::new(Code::Backend, text) }
    }

    /// An error unless `code` says that `call` has worked.
    #[inline]
    #[track_caller]
    pub(crate) fn check(&self, code: c_int, call: &str) -> Result<()> {
        if code == SUCCESS { Ok(()) } else { Err(self.error(code, call)) }
    }

    /// Whether this is a forked child's copy: MPI is the parent's, and must not be called.
    pub(crate) fn is_copy(&self) -> bool {
        forks() != self.forks
    }

    /// Whether MPI runs: initialised, and not finalised.
    ///
    /// # Errors
    /// `INVALID_STATE` when it has been finalised.
    pub(crate) fn runs(&self) -> Result<bool> {
        let mut initialized = 0;
        self.check(self.api.initialized(&mut initialized), "MPI_Initialized")?;
        self.running()?;
        Ok(initialized != 0)
    }

    /// Refuses calls of an MPI that is over.
    ///
    /// # Errors
    /// `INVALID_STATE` when it has been finalised.
    pub(crate) fn running(&self) -> Result<()> {
        if !self.is_finalized() {
            return Ok(());
        }
        let text = format!("{} has been finalised in this process", self.name);
        Err(Error::new(Code::InvalidState, text))
    }

    /// Whether MPI has been finalised: then any call ends the process.
    #[inline]
    pub(crate) fn is_finalized(&self) -> bool {
        let mut finalized = 0;
        self.api.finalized(&mut finalized) != SUCCESS || finalized != 0
    }

    /// Whether this library has initialised MPI.
    pub(crate) fn is_ours(&self) -> bool {
        STARTED.get().is_some()
    }

    /// Initialises MPI, and sees to it that it is finalised when the process ends.
    ///
    /// # Errors
    /// MPI's own.
    pub(crate) fn start(self: &Arc<Self>) -> Result<()> {
        let mut provided = 0;
        let multiple = self.api.constants().levels[Level::Multiple as usize];
        self.check(self.api.init_thread(multiple, &mut provided), "MPI_Init_thread")?;
        if STARTED.set(self.clone()).is_ok() {
            // Fails only for want of memory; then MPI is left as it is.
            // SAFETY: the handler is a function of this library.
            unsafe { libc::atexit(finish) };
        }
        Ok(())
    }

    /// What the calling thread may do with MPI, which runs.
    pub(crate) fn thread(&self) -> Result<Thread> {
        let (mut provided, mut main) = (0, 0);
        self.check(self.api.query_thread(&mut provided), "MPI_Query_thread")?;
        self.check(self.api.is_thread_main(&mut main), "MPI_Is_thread_main")?;
        let levels = [Level::Single, Level::Funneled, Level::Serialized, Level::Multiple];
        let known = self.api.constants().levels;
        let level = levels.into_iter().zip(known).rev().find(|(_, number)| provided >= *number);
        Ok(Thread { level: level.map_or(Level::Single, |(level, _)| level), main: main != 0 })
    }

    /// Whether communicators can be revoked and shrunk here: MPI has the calls, and was started so
    /// that it goes on when ranks die.
    pub(crate) fn survives(&self) -> bool {
        let Constants { survives, comm_world, .. } = self.api.constants();
        let Some(key) = survives.filter(|_| self.api.has_shrink()) else { return false };
        let mut on = None;
        let code = self.api.comm_attribute(*comm_world, key, &mut on);
        code == SUCCESS && on == Some(1)
    }

    /// Runs `what` with errors of `comm` returned, and gives it back the handler it had.
    pub(crate) fn quietly<R>(&self, comm: Handle, what: impl FnOnce() -> Result<R>) -> Result<R> {
        let mut handler = Handle::NONE;
        self.check(self.api.get_errhandler(comm, &mut handler), "MPI_Comm_get_errhandler")?;
        let quiet = self.api.set_errhandler(comm, self.api.constants().errors_return);
        self.check(quiet, "MPI_Comm_set_errhandler")?;
        let outcome = what();
        let restored = self.api.set_errhandler(comm, handler);
        // The reference that asking for it has made.
        self.api.errhandler_free(handler);
        let made = outcome?;
        self.check(restored, "MPI_Comm_set_errhandler")?;
        Ok(made)
    }

    /// A communicator has failed, so others may not come to finalise.
    pub(crate) fn has_failed() {
        FAILED.store(1, Ordering::Relaxed);
    }
}

/// How long finalising may take after a failure.
const FINISH: Duration = Duration::from_secs(5);

/// Ends the MPI that this library has initialised, with the process.
extern "C" fn finish() {
    let Some(library) = STARTED.get() else { return };
    if library.is_copy() || !library.runs().unwrap_or(false) {
        return;
    }
    // MPI ends on the thread on which it has begun, unless any may call it.
    if !library.thread().is_ok_and(|thread| thread.main || thread.level == Level::Multiple) {
        return;
    }
    if FAILED.load(Ordering::Relaxed) != 0 {
        // Ranks that are gone, or what they left unfinished, may keep MPI from ending.
        let watch = std::thread::Builder::new().spawn(|| {
            std::thread::sleep(FINISH);
            // SAFETY: the process is ending, and would not; what the program has printed is kept.
            unsafe {
                libc::fflush(std::ptr::null_mut());
                libc::_exit(1);
            }
        });
        if watch.is_err() {
            return;
        }
    }
    // Nobody is left to tell of an error.
    library.api.finalize();
}

type GetLibraryVersion = unsafe extern "C" fn(*mut u8, *mut c_int) -> c_int;
type AbiGetVersion = unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int;

/// What the library says it is; `None` for one that is no MPI. The same in all ABIs, and allowed
/// before MPI is initialised.
fn library_version(shared: &Shared) -> Option<String> {
    // SAFETY: whoever has this symbol is an MPI, and all have it with this type.
    let get = unsafe { shared.get::<GetLibraryVersion>(b"MPI_Get_library_version\0") }.ok()?;
    let mut text = vec![0; TEXT_MAX + 1];
    let mut length = 0;
    // SAFETY: no ABI writes more than `TEXT_MAX` bytes.
    unsafe { get(text.as_mut_ptr(), &raw mut length) };
    text.truncate(usize::try_from(length).unwrap_or(0).min(TEXT_MAX));
    Some(String::from_utf8_lossy(&text).into_owned())
}

fn first_line(version: &str) -> String {
    let line = version.lines().next().unwrap_or("").trim_end_matches('\0');
    let line = line.split(", package").next().unwrap_or(line);
    let words: Vec<&str> = line.split_whitespace().collect();
    // MPICH begins with "MPICH Version:".
    shown(words.join(" ").replace(" Version:", "").as_bytes())
}

/// The ABIs there are bindings for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Abi {
    OpenMpi,
    Mpich,
    Standard,
}

impl Abi {
    const fn name(self) -> &'static str {
        match self {
            Self::OpenMpi => "Open MPI's ABI",
            Self::Mpich => "the MPICH family's ABI",
            Self::Standard => "the standard ABI",
        }
    }
}

/// Which ABI a library has, by what is in it.
fn recognise(shared: &Shared, version: &str) -> Result<Abi, String> {
    let has = |name: &[u8]| {
        // SAFETY: the symbol is looked for and not used.
        unsafe { shared.get::<*mut c_void>(name) }.is_ok()
    };
    if has(b"ompi_mpi_comm_world\0") {
        return Ok(Abi::OpenMpi);
    }
    // SAFETY: whoever has this symbol has it with the standard's type.
    if let Ok(get) = unsafe { shared.get::<AbiGetVersion>(b"MPI_Abi_get_version\0") } {
        let (mut major, mut minor) = (-1, -1);
        // SAFETY: both places are valid; allowed before MPI is initialised.
        unsafe { get(&raw mut major, &raw mut minor) };
        match major {
            ABI_MAJOR => return Ok(Abi::Standard),
            // It is built for an ABI of its own.
            other if other < 0 => {}
            _ => {
                return Err(format!(
                    "it has version {major}.{minor} of the standard ABI, and this library knows \
                     version {ABI_MAJOR}"
                ));
            }
        }
    }
    let family = ["MPICH", "Intel(R) MPI", "MVAPICH", "CRAY MPICH", "ParaStation MPI"];
    if family.iter().any(|name| version.contains(name)) {
        return Ok(Abi::Mpich);
    }
    let said = quoted(&first_line(version));
    Err(format!(
        "its ABI is not known: it says it is {said}; known are Open MPI, MPICH and those \
                 that share its ABI, and the standard ABI of MPI 5"
    ))
}

#[cfg(unisono_mpi)]
fn bind(abi: Abi, shared: Shared) -> Result<Box<dyn Api>> {
    use super::abi::{Mpich, OpenMpi, Standard};
    let library = libloading::Library::from(shared);
    Ok(match abi {
        Abi::OpenMpi => Box::new(OpenMpi::bind(library)?),
        Abi::Mpich => Box::new(Mpich::bind(library)?),
        Abi::Standard => Box::new(Standard::bind(library)?),
    })
}

#[cfg(not(unisono_mpi))]
fn bind(_: Abi, _: Shared) -> Result<Box<dyn Api>> {
    Err(Error::new(Code::Unsupported, WITHOUT))
}
