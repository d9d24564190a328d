//! The host twin of the CUDA kernels, compiled once, and buffers to run it on.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use unisono::kernel::cuda::trial::{LINE, Trial};
use unisono::kernel::cuda::{Kernel, Launch};

const SOURCES: &[&str] = &[
    "arguments.h",
    "bytes.cuh",
    "element.cuh",
    "fold.cuh",
    "kernels.cu",
    "platform.cuh",
    "twin.cpp",
];

const FLAGS: &[&str] =
    &["-std=c++17", "-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-fPIC", "-shared"];

/// The functions of `cuda/twin.cpp`.
pub(crate) struct Twin {
    has: unsafe extern "C" fn(*const c_char) -> c_int,
    size: unsafe extern "C" fn(*const c_char) -> usize,
    launch: unsafe extern "C" fn(*const c_char, c_uint, c_uint, *const c_void) -> c_int,
}

impl Twin {
    pub(crate) fn has(&self, name: &CStr) -> bool {
        // SAFETY: the name is a C string.
        unsafe { (self.has)(name.as_ptr()) != 0 }
    }

    pub(crate) fn size(&self, name: &CStr) -> usize {
        // SAFETY: the name is a C string.
        unsafe { (self.size)(name.as_ptr()) }
    }

    /// Runs a launch whose addresses are those of buffers of this process.
    pub(crate) fn run(&self, launch: &Launch) {
        self.run_as(launch, launch.grid, launch.block);
    }

    /// As [`Twin::run`], with another grid.
    pub(crate) fn run_as(&self, launch: &Launch, grid: u32, block: u32) {
        let name = launch.kernel.name();
        let arguments = launch.arguments.bytes();
        assert_eq!(self.size(&name), arguments.len(), "{name:?}");
        // SAFETY: the struct is the kernel's; its addresses were made from live buffers.
        let code = unsafe {
            (self.launch)(name.as_ptr(), grid, block, arguments.as_ptr().cast::<c_void>())
        };
        assert_eq!(code, 0, "{name:?} is not in the twin");
    }

    /// Runs a trial as a device of so many multiprocessors, with this grid or the launch's own.
    #[track_caller]
    pub(crate) fn try_out(&self, trial: &mut Trial, sms: u32, grid: Option<(u32, u32)>) {
        let bytes = trial.before().len();
        let mut memory = vec![0; bytes + LINE];
        let start = memory.as_ptr().align_offset(LINE);
        let memory = &mut memory[start..start + bytes];
        let base = memory.as_mut_ptr().expose_provenance() as u64;
        let launch = trial.launch(base, sms).expect("a launch");
        memory.copy_from_slice(trial.before());
        let (grid, block) = grid.unwrap_or((launch.grid, launch.block));
        self.run_as(&launch, grid, block);
        // Written behind the compiler's back.
        let memory = std::hint::black_box(memory);
        if let Some(fault) = trial.fault(memory) {
            panic!("{:?} {grid} {block}: {fault} [{}]", launch.kernel, trial.what);
        }
    }

    pub(crate) fn refuses(&self, name: &CStr) -> bool {
        // SAFETY: the twin looks at the arguments of kernels it knows only.
        unsafe { (self.launch)(name.as_ptr(), 1, 1, std::ptr::null()) == -1 }
    }
}

/// The twin, or why there is none.
pub(crate) fn twin() -> Result<&'static Twin, String> {
    static TWIN: OnceLock<Result<Twin, String>> = OnceLock::new();
    TWIN.get_or_init(|| open(&compile()?)).as_ref().map_err(String::clone)
}

fn open(library: &Path) -> Result<Twin, String> {
    // SAFETY: our own library; its only initialisers make a list.
    let library = unsafe { libloading::Library::new(library) }.map_err(|e| e.to_string())?;
    let library: &'static libloading::Library = Box::leak(Box::new(library));
    // SAFETY: the types are those of the definitions.
    unsafe {
        Ok(Twin {
            has: *library.get(b"unisono_twin_has\0").map_err(|e| e.to_string())?,
            size: *library.get(b"unisono_twin_size\0").map_err(|e| e.to_string())?,
            launch: *library.get(b"unisono_twin_launch\0").map_err(|e| e.to_string())?,
        })
    }
}

/// The compiled twin, kept by a hash of its sources. Test processes wait for the one that compiles.
fn compile() -> Result<PathBuf, String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda");
    let mut hasher = DefaultHasher::new();
    FLAGS.hash(&mut hasher);
    for source in SOURCES {
        fs::read(folder.join(source)).expect(source).hash(&mut hasher);
    }
    let stem = format!("cuda-twin-{:016x}", hasher.finish());
    let made = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let library = made.join(format!("{stem}.so"));
    let lock = File::create(made.join(format!("{stem}.lock"))).expect("a lock file");
    lock.lock().expect("a lock");
    if library.is_file() {
        return Ok(library);
    }
    let begun = made.join(format!("{stem}.begun"));
    let mut command = Command::new("c++");
    let ended = command.args(FLAGS).arg(folder.join("twin.cpp")).arg("-o").arg(&begun).output();
    let ended = ended.map_err(|e| format!("c++ cannot be run: {e}"))?;
    let text = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(ended.status.success() && text.is_empty(), "the twin does not compile: {text}");
    fs::rename(&begun, &library).expect("renamed");
    Ok(library)
}

/// Untouched bytes on either side of a buffer.
const GUARD: usize = 64;

const FILLER: u8 = 0xa5;

/// Bytes at a chosen distance from a line of 64, with a guard before and after.
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Buffer {
    pub(crate) fn new(len: usize, past: usize) -> Self {
        let bytes = vec![FILLER; len + 2 * GUARD + past + 64];
        let start = bytes.as_ptr().align_offset(64) + GUARD + past;
        Self { bytes, start, len }
    }

    pub(crate) fn of(contents: &[u8], past: usize) -> Self {
        let mut buffer = Self::new(contents.len(), past);
        buffer.contents().copy_from_slice(contents);
        buffer
    }

    pub(crate) fn contents(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }

    pub(crate) fn at(&mut self) -> *mut u8 {
        self.bytes[self.start..].as_mut_ptr()
    }

    /// The address as kernels take it. What is written there is seen through [`Buffer::checked`].
    pub(crate) fn address(&mut self) -> u64 {
        self.at().expose_provenance() as u64
    }

    /// The contents, after checking the guards.
    pub(crate) fn checked(&self) -> &[u8] {
        let end = self.start + self.len;
        let guards = self.bytes[..self.start].iter().chain(&self.bytes[end..]);
        assert!(guards.copied().all(|byte| byte == FILLER), "wrote outside the target");
        &self.bytes[self.start..end]
    }
}

/// Every kernel there is, with its name.
pub(crate) fn names() -> impl Iterator<Item = (Kernel, std::ffi::CString)> {
    Kernel::all().into_iter().map(|kernel| (kernel, kernel.name()))
}
