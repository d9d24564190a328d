//! Compiles the CUDA kernels to images, for the root build script; nothing else.
//!
//! One fatbin a unit of `kernels.cu`: machine code for the architectures below, and PTX. Code for
//! 8.0 and 10.0 runs on the rest of its generation, 9.0 has none. Every later generation is above
//! 9.0, so PTX of 9.0 serves all of them, with that one's conversions of 8-bit floats.
//!
//! What nvcc leaves of PTX tells the names of the kernels, for a test.
//!
//! Results are kept under the target folder by a hash of sources, flags and compiler: the other
//! profiles and a rebuild take them from there. Where nvcc is missing or fails the library is
//! built without kernels, with a warning that says so.

use std::collections::hash_map::DefaultHasher;
use std::env;
use std::fmt::Write;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::thread;

/// Longest first, so that two jobs end together.
const UNITS: &[&str] = &[
    "i8",
    "f8e4m3",
    "f8e5m2",
    "i16",
    "i64",
    "f16",
    "bf16",
    "i32",
    "f32",
    "f64",
    "complex64",
    "complex128",
    "bytes",
];

const SOURCES: &[&str] = &[
    "cuda/arguments.h",
    "cuda/bytes.cuh",
    "cuda/element.cuh",
    "cuda/fold.cuh",
    "cuda/kernels.cu",
    "cuda/platform.cuh",
];

/// Architectures with machine code, and the one with PTX.
const MACHINE: &[u32] = &[80, 90, 100];
const PTX: u32 = 90;

/// No contraction to fused operations: kernels give the bits of the CPU.
const FLAGS: &[&str] = &["-std=c++17", "-fmad=false", "-fatbin"];

const JOBS: usize = 2;

/// What to do about a missing compiler.
const WAY_OUT: &str = "install CUDA's toolkit, or PyPI's nvidia-cuda-nvcc, nvidia-nvvm, \
                       nvidia-cuda-crt, nvidia-cuda-runtime and nvidia-cuda-cccl, and set NVCC";

/// Makes the images and the list of them in `out`.
pub(crate) fn build(out: &Path) {
    println!("cargo::rustc-check-cfg=cfg(unisono_cuda_kernels)");
    println!("cargo::rerun-if-changed=cuda/build.rs");
    for source in SOURCES {
        println!("cargo::rerun-if-changed={source}");
    }
    for variable in ["NVCC", "CUDA_HOME", "CUDA_PATH", "VIRTUAL_ENV"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    match images(out) {
        Ok(()) => println!("cargo::rustc-cfg=unisono_cuda_kernels"),
        Err(why) => println!("cargo::warning=built without CUDA kernels: {why}"),
    }
}

fn images(out: &Path) -> Result<(), String> {
    let nvcc = Nvcc::find()?;
    println!("cargo::rerun-if-changed={}", nvcc.program.display());
    let store = store(out).join(format!("{:016x}", nvcc.key()?));
    fs::create_dir_all(&store).map_err(|e| format!("{}: {e}", store.display()))?;
    nvcc.compile_all(&store)?;
    let mut list = "const IMAGES: &[(&str, &[u8])] = &[\n".to_owned();
    let mut names = "&[\n".to_owned();
    for unit in UNITS {
        let name = format!("{unit}.fatbin");
        let copied = fs::copy(store.join(&name), out.join(&name));
        copied.map_err(|e| format!("{name}: {e}"))?;
        let bytes = format!("include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{name}\"))");
        writeln!(list, "({unit:?}, &Aligned(*{bytes}).0),").expect("a string takes it");
        let entries = fs::read_to_string(store.join(format!("{unit}.names")));
        let entries = entries.map_err(|e| format!("the names of {unit}: {e}"))?;
        for name in entries.lines() {
            writeln!(names, "({unit:?}, {name:?}),").expect("a string takes it");
        }
    }
    fs::write(out.join("cuda_names.rs"), names + "]\n").map_err(|e| format!("names: {e}"))?;
    let architectures = nvcc.architectures();
    writeln!(
        list,
        "];\n/// What the images are for: `sm_90` is machine code, `compute_90` is PTX for later \
         devices.\npub const ARCHITECTURES: &[&str] = &{architectures:?};"
    )
    .expect("a string takes it");
    fs::write(out.join("cuda_images.rs"), list).map_err(|e| format!("the list of images: {e}"))
}

/// A folder that all builds of one target folder share.
fn store(out: &Path) -> PathBuf {
    // Cargo marks a target folder, and says so there; one may lie inside another.
    let marked = |folder: &&Path| {
        let mark = fs::read_to_string(folder.join("CACHEDIR.TAG"));
        mark.is_ok_and(|text| text.contains("cargo"))
    };
    out.ancestors().filter(marked).last().unwrap_or(out).join("cuda")
}

struct Nvcc {
    program: PathBuf,
    version: String,
    /// Those it knows of ours.
    machine: Vec<u32>,
    ptx: bool,
    /// Whether it can be told to compress well: a tenth of the size.
    compresses: bool,
}

impl Nvcc {
    fn find() -> Result<Self, String> {
        if let Some(named) = env::var_os("NVCC") {
            let program = PathBuf::from(named);
            let shown = program.display().to_string();
            return Self::at(program).ok_or_else(|| format!("NVCC={shown} cannot be run"));
        }
        let found = candidates().into_iter().find_map(Self::at);
        found.or_else(|| wheel_of_python().and_then(Self::at)).ok_or_else(|| WAY_OUT.to_owned())
    }

    fn at(program: PathBuf) -> Option<Self> {
        let version = say(&program, "--version")?;
        let known = say(&program, "--list-gpu-arch")?;
        let knows = |number: &u32| known.lines().any(|l| l.trim() == format!("compute_{number}"));
        let machine: Vec<u32> = MACHINE.iter().copied().filter(knows).collect();
        let compresses = say(&program, "--help").is_some_and(|t| t.contains("--compress-mode"));
        Some(Self { program, version, machine, ptx: knows(&PTX), compresses })
    }

    fn architectures(&self) -> Vec<String> {
        let machine = self.machine.iter().map(|number| format!("sm_{number}"));
        machine.chain(self.ptx.then(|| format!("compute_{PTX}"))).collect()
    }

    fn flags(&self) -> Vec<String> {
        let mut flags: Vec<String> = FLAGS.iter().map(|flag| (*flag).to_owned()).collect();
        for &number in &self.machine {
            let ptx =
                if self.ptx && number == PTX { format!(",compute_{PTX}") } else { String::new() };
            flags.push(format!("-gencode=arch=compute_{number},code=[sm_{number}{ptx}]"));
        }
        flags.extend(self.compresses.then(|| "--compress-mode=size".to_owned()));
        flags
    }

    /// A hash of all that makes the images what they are.
    fn key(&self) -> Result<u64, String> {
        let mut hasher = DefaultHasher::new();
        self.version.hash(&mut hasher);
        self.flags().hash(&mut hasher);
        for source in SOURCES {
            fs::read(source).map_err(|e| format!("{source}: {e}"))?.hash(&mut hasher);
        }
        Ok(hasher.finish())
    }

    /// Those that are missing in `store`; the first failure is told.
    fn compile_all(&self, store: &Path) -> Result<(), String> {
        if self.machine.is_empty() {
            return Err(format!("{} knows no architecture from sm_80", self.program.display()));
        }
        let missing = |unit: &&&str| !store.join(format!("{unit}.fatbin")).is_file();
        let queue = Mutex::new(UNITS.iter().filter(missing).copied().collect::<Vec<_>>());
        queue.lock().expect("nobody panics").reverse();
        let work = || -> Result<(), String> {
            loop {
                let next = queue.lock().expect("nobody panics").pop();
                let Some(unit) = next else { return Ok(()) };
                if let Err(why) = self.compile(unit, store) {
                    queue.lock().expect("nobody panics").clear();
                    return Err(why);
                }
            }
        };
        thread::scope(|scope| {
            let jobs: Vec<_> = (0..JOBS).map(|_| scope.spawn(work)).collect();
            let ends = jobs.into_iter().map(|job| job.join().expect("nobody panics"));
            ends.collect::<Vec<_>>().into_iter().collect()
        })
    }

    fn compile(&self, unit: &str, store: &Path) -> Result<(), String> {
        // Another build may be at the same unit: each has a folder of its own until all is whole.
        let folder = store.join(format!("{unit}.{}", std::process::id()));
        fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        let done = self.compile_in(unit, &folder).and_then(|()| {
            // The image last: with it the unit is done.
            for name in [format!("{unit}.names"), format!("{unit}.fatbin")] {
                let moved = fs::rename(folder.join(&name), store.join(&name));
                moved.map_err(|e| format!("{name}: {e}"))?;
            }
            Ok(())
        });
        let _ = fs::remove_dir_all(&folder);
        done
    }

    fn compile_in(&self, unit: &str, folder: &Path) -> Result<(), String> {
        let mut command = Command::new(&self.program);
        command.args(self.flags()).arg(format!("-DUNISONO_UNIT_{unit}"));
        command.arg("--keep").arg("--keep-dir").arg(folder).arg("cuda/kernels.cu");
        let ended = command.arg("-o").arg(folder.join(format!("{unit}.fatbin"))).output();
        let ended = ended.map_err(|e| format!("{}: {e}", self.program.display()))?;
        if !ended.status.success() {
            let text = String::from_utf8_lossy(&ended.stderr).into_owned();
            let line = text.lines().find(|l| l.contains("error")).or_else(|| text.lines().next());
            let why = line.unwrap_or_default().to_owned();
            return Err(format!("{} fails: {why}", self.program.display()));
        }
        let names = names(folder)?;
        fs::write(folder.join(format!("{unit}.names")), names).map_err(|e| format!("names: {e}"))
    }
}

/// The kernels of a unit, a line each: those that PTX of every architecture has.
fn names(folder: &Path) -> Result<String, String> {
    let mut all: Option<Vec<String>> = None;
    for entry in fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))?.flatten() {
        if entry.path().extension().is_none_or(|extension| extension != "ptx") {
            continue;
        }
        let text = fs::read_to_string(entry.path()).map_err(|e| format!("PTX: {e}"))?;
        let name =
            |line: &str| Some(line.split_once(".entry ")?.1.trim_end_matches('(').to_owned());
        let found: Vec<String> = text.lines().filter_map(name).collect();
        let both =
            |others: Vec<String>| found.iter().filter(|n| others.contains(n)).cloned().collect();
        all = Some(all.take().map_or_else(|| found.clone(), both));
    }
    all.map(|names| names.join("\n")).ok_or_else(|| "nvcc has kept no PTX".to_owned())
}

/// Where nvcc may be, first choice first.
fn candidates() -> Vec<PathBuf> {
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os);
    let mut found: Vec<PathBuf> = homes.map(|home| Path::new(&home).join("bin/nvcc")).collect();
    if let Some(path) = env::var_os("PATH") {
        found.extend(env::split_paths(&path).map(|folder| folder.join("nvcc")));
    }
    found.push("/usr/local/cuda/bin/nvcc".into());
    let virtual_env = env::var_os("VIRTUAL_ENV").map(PathBuf::from);
    // The second is what the tests have installed for themselves.
    for environment in virtual_env.into_iter().chain([PathBuf::from("build/venv/cuda")]) {
        for library in fs::read_dir(environment.join("lib")).into_iter().flatten().flatten() {
            found.push(library.path().join("site-packages").join(WHEEL));
        }
    }
    found.retain(|program| program.is_file());
    found
}

/// nvcc in a folder of Python packages.
const WHEEL: &str = "nvidia/cu13/bin/nvcc";

fn wheel_of_python() -> Option<PathBuf> {
    let question = "import sysconfig; print(sysconfig.get_path('platlib'))";
    let said = Command::new("python3").args(["-c", question]).output().ok()?;
    let folder = String::from_utf8_lossy(&said.stdout).trim().to_owned();
    let program = Path::new(&folder).join(WHEEL);
    program.is_file().then_some(program)
}

fn say(program: &Path, question: &str) -> Option<String> {
    let said = Command::new(program).arg(question).output().ok()?;
    said.status.success().then(|| String::from_utf8_lossy(&said.stdout).into_owned())
}
