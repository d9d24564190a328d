//! The host twin of the CUDA kernels, compiled once, and buffers to run it on.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use unisono::kernel::cuda::{Kernel, Launch};
use unisono::kernel::{Form, Scalar};
use unisono::types::{Class, Dtype};

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

/// xorshift64*: the same numbers on every run.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from((self.next() >> 16) % bound as u64).expect("below a usize")
    }

    pub(crate) fn chance(&mut self, one_in: usize) -> bool {
        self.below(one_in) == 0
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
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

/// Bytes of one element of `dtype` in `form`.
pub(crate) fn bytes_of(dtype: Dtype, form: Form) -> usize {
    if form == Form::Wide { dtype.accumulator().bytes() } else { dtype.bytes() }
}

/// The real type an element of `dtype` in `form` is made of.
pub(crate) fn part_of(dtype: Dtype, form: Form) -> Dtype {
    match dtype {
        Dtype::Complex64 => Dtype::F32,
        Dtype::Complex128 => Dtype::F64,
        _ if form == Form::Wide => dtype.accumulator(),
        _ => dtype,
    }
}

/// Exponent bias less 3, stored bits of the mantissa, and bits of a real type.
fn layout(part: Dtype) -> (u64, u32, u32) {
    match part {
        Dtype::F64 => (1020, 52, 64),
        Dtype::F32 => (124, 23, 32),
        Dtype::Bf16 => (124, 7, 16),
        Dtype::F16 => (12, 10, 16),
        Dtype::F8E4M3 => (4, 3, 8),
        _ => (12, 2, 8),
    }
}

/// Bits of one real element: mostly near 1 with few digits, so that sums are often ties; at times
/// anything, and rarely what is infinite or no number, which hides all else.
fn part_bits(random: &mut Random, part: Dtype) -> u64 {
    let any = random.next();
    if part.class() == Class::Integer {
        return if random.chance(4) { any % 3 } else { any };
    }
    let (exponent, mantissa, width) = layout(part);
    let sign = (any >> 63) << (width - 1);
    let top = (1 << (width - 1)) - (1 << mantissa);
    match random.below(96) {
        0 => sign | top,
        1 => sign | top | (any & ((1 << mantissa) - 1)),
        2..6 => sign,
        6..12 => sign | (any & ((1 << mantissa) - 1)),
        12..18 => any & (u64::MAX >> (64 - width)),
        _ => {
            let keep = [u64::MAX, !0 << 40, !0 << 50][random.below(3)];
            let fraction = (random.next() & keep) >> (64 - mantissa);
            sign | ((exponent + (any & 7)) << mantissa) | fraction
        }
    }
}

pub(crate) fn fill(random: &mut Random, part: Dtype, target: &mut [u8]) {
    let bytes = part.bytes();
    for element in target.chunks_exact_mut(bytes) {
        element.copy_from_slice(&part_bits(random, part).to_le_bytes()[..bytes]);
    }
}

pub(crate) fn factor(random: &mut Random, dtype: Dtype) -> Scalar {
    let mut factor = Scalar([0; 16]);
    let bytes = bytes_of(dtype, Form::Wide);
    fill(random, part_of(dtype, Form::Wide), &mut factor.0[..bytes]);
    factor
}

fn is_nan(part: Dtype, bytes: &[u8]) -> bool {
    let mut wide = [0; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    let bits = u64::from_le_bytes(wide);
    match part {
        Dtype::F32 => bits & 0x7fff_ffff > 0x7f80_0000,
        Dtype::F64 => bits & (u64::MAX >> 1) > 0x7ff0_0000_0000_0000,
        _ => false,
    }
}

/// Bits agree; where the rules leave the payload of a NaN open, it agrees with any NaN.
pub(crate) fn assert_agree(
    dtype: Dtype,
    form: Form,
    free: bool,
    (got, expected): (&[u8], &[u8]),
    what: &dyn Fn() -> String,
) {
    assert_eq!(got.len(), expected.len(), "{}", what());
    if got == expected {
        return;
    }
    let part = part_of(dtype, form);
    let bytes = part.bytes();
    let pairs = got.chunks_exact(bytes).zip(expected.chunks_exact(bytes));
    for (index, (got, expected)) in pairs.enumerate() {
        let both_nan = free && is_nan(part, got) && is_nan(part, expected);
        assert!(
            got == expected || both_nan,
            "part {index}: {got:x?}, not {expected:x?}: {}",
            what()
        );
    }
}

/// Every kernel there is, with its name.
pub(crate) fn names() -> impl Iterator<Item = (Kernel, std::ffi::CString)> {
    Kernel::all().into_iter().map(|kernel| (kernel, kernel.name()))
}
