//! Makes the bindings to foreign libraries from the headers in `ffi/`, and the images of the CUDA
//! kernels (`cuda/build.rs`); nothing else.
//!
//! bindgen needs libclang. Where that is missing the library is built without MPI, CUDA, NCCL and
//! RDMA: a warning says what to install, and `unisono info` says the same. No foreign header is
//! needed; those that are found are read as well, for the tests that compare them with ours.

#[path = "cuda/build.rs"]
mod cuda;

use std::env;
use std::fmt::Write;
use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::process::Command;

use bindgen::callbacks::{DeriveTrait, ImplementsTrait, ParseCallbacks};

/// The ABIs of MPI: header in `ffi/mpi`, name of the loaded library, the installations' header.
const ABIS: &[(&str, &str, &str)] = &[
    ("openmpi", "OpenMpi", "mpi.h"),
    ("mpich", "Mpich", "mpi.h"),
    ("standard", "Standard", "mpi_abi.h"),
];

/// Folders with headers of installed MPIs, besides those of `mpicc` and the usual places.
const HEADERS: &str = "UNISONO_MPI_HEADERS";

/// Our header of the CUDA driver.
const DRIVER: &str = "ffi/cuda/driver.h";

/// Folders with headers of CUDA, besides the usual places.
const CUDA_HEADERS: &str = "UNISONO_CUDA_HEADERS";

/// Folders with a `nccl.h`, besides the usual places.
const NCCL_HEADERS: &str = "UNISONO_NCCL_HEADERS";

/// Folders with headers of rdma-core (`infiniband/verbs.h`), besides the usual place.
const RDMA_HEADERS: &str = "UNISONO_RDMA_HEADERS";

/// The parts of RDMA: header in `ffi/rdma`, name of the loaded library, the installation's header,
/// types and functions of it, constants of it that no type has.
const RDMA_PARTS: &[(&str, &str, &str, &str, &str)] = &[
    ("verbs", "Verbs", "infiniband/verbs.h", "_?ibv_.*", "IBV_.*"),
    ("cma", "Cma", "rdma/rdma_cma.h", "rdma_.*", "RDMA_(MAX|OPTION)_.*"),
    ("rsocket", "Rsocket", "rdma/rsocket.h", RSOCKET, "SOL_RDMA|RDMA_[A-Z]+"),
];

/// The functions of rsocket, whose names begin with a letter that many others begin with.
const RSOCKET: &str = "r(socket|bind|listen|accept|connect|shutdown|close|recv|send|poll|\
                       (get|set)sockopt|get(sock|peer)name|fcntl|iomap|iounmap|iowrite)";

/// The C library's types in them, which Rust has from libc.
const RDMA_LIBC: &str = "sockaddr(_in|_in6|_storage)?|pollfd|socklen_t|nfds_t|off_t|\
                         sa_family_t|in_port_t|in_addr(_t)?|in6_addr.*";

/// What a `nccl.h` includes of CUDA's, as far as it needs it.
const CUDA_FOR_NCCL: &str = "#include <stddef.h>\n\
                             typedef struct CUstream_st *cudaStream_t;\n\
                             typedef struct CUevent_st *cudaEvent_t;\n";

fn main() {
    for part in ["mpi", "cuda", "nccl", "rdma"] {
        println!("cargo::rustc-check-cfg=cfg(unisono_{part})");
    }
    for input in ["build.rs", "ffi/mpi", "ffi/nccl", "ffi/rdma", DRIVER] {
        println!("cargo::rerun-if-changed={input}");
    }
    let homes = ["MPI_HOME", "NCCL_HOME", "CUDA_HOME", "VIRTUAL_ENV", "LIBCLANG_PATH"];
    for variable in [HEADERS, NCCL_HEADERS, CUDA_HEADERS, RDMA_HEADERS].iter().chain(&homes) {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    cuda::build(&out);
    // bindgen panics where it cannot load libclang.
    let made = catch_unwind(|| {
        mpi(&out);
        cuda(&out);
        nccl(&out);
        rdma(&out);
    });
    match made {
        Ok(()) => {
            println!("cargo::rustc-cfg=unisono_mpi");
            println!("cargo::rustc-cfg=unisono_cuda");
            println!("cargo::rustc-cfg=unisono_nccl");
            println!("cargo::rustc-cfg=unisono_rdma");
        }
        Err(panic) => {
            fs::write(out.join("cuda_driver.rs"), constants()).expect("OUT_DIR is writable");
            let text = panic.downcast_ref::<String>().map_or("", String::as_str);
            let why = text.lines().next().unwrap_or_default();
            println!(
                "cargo::warning=built without MPI, CUDA, NCCL and RDMA, for want of libclang \
                 (Debian: libclang-dev; or set LIBCLANG_PATH): {why}"
            );
            // A file that is never there: the next build tries again.
            println!("cargo::rerun-if-changed={}", out.join("libclang").display());
        }
    }
}

fn mpi(out: &Path) {
    for (abi, library, _) in ABIS {
        let bindings = bindgen::Builder::default()
            .header(format!("ffi/mpi/{abi}.h"))
            .dynamic_library_name(*library)
            .allowlist_function("MPIX?_.*")
            .allowlist_type("MPI_.*")
            .allowlist_var("UNISONO_.*")
            .layout_tests(true)
            .derive_default(true)
            .rust_edition(bindgen::RustEdition::Edition2024)
            .rust_target(bindgen::RustTarget::stable(85, 0).expect("a version"))
            .generate()
            .expect("our own header");
        bindings.write_to_file(out.join(format!("mpi_{abi}.rs"))).expect("OUT_DIR is writable");
    }
    fs::write(out.join("mpi_headers.rs"), real_headers()).expect("OUT_DIR is writable");
}

/// What bindgen makes of the headers of installed MPIs, as a Rust list of (header, ABI, text).
fn real_headers() -> String {
    let mut list = "&[\n".to_owned();
    for folder in folders() {
        for (abi, _, name) in ABIS {
            let header = folder.join(name);
            let text = fs::read_to_string(&header).unwrap_or_default();
            // Open MPI and the MPICH family call their headers the same.
            let is_open_mpi = text.contains("OMPI_MAJOR_VERSION");
            if text.is_empty() || *name == "mpi.h" && is_open_mpi != (*abi == "openmpi") {
                continue;
            }
            println!("cargo::rerun-if-changed={}", header.display());
            let made = bindgen::Builder::default()
                .header(header.display().to_string())
                .allowlist_function("MPI_.*")
                .allowlist_type("MPI_.*")
                .layout_tests(true)
                .generate();
            if let Ok(bindings) = made {
                let entry = (header.display().to_string(), abi, bindings.to_string());
                writeln!(list, "{entry:?},").expect("a string takes it");
            }
        }
    }
    list + "]\n"
}

/// Where headers of MPIs may be, each once.
fn folders() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = Vec::new();
    if let Some(list) = env::var_os(HEADERS) {
        found.extend(env::split_paths(&list));
    }
    found.extend(env::var_os("MPI_HOME").map(|home| PathBuf::from(home).join("include")));
    for arguments in [&["-show"][..], &["--showme:compile"]] {
        let Ok(said) = Command::new("mpicc").args(arguments).output() else { break };
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        found.extend(said.split_whitespace().filter_map(|w| w.strip_prefix("-I")).map(Into::into));
    }
    let arch = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    let usual = ["openmpi/include", "mpich/include"].map(|kind| {
        let triple = format!("/usr/lib/{arch}-linux-gnu");
        Path::new(&triple).join(kind)
    });
    found.extend(usual);
    // What the tests have installed for themselves.
    let own = fs::read_dir("build/venv").into_iter().flatten().flatten();
    found.extend(own.map(|entry| entry.path().join("include")));
    once(&found)
}

/// Those of the folders that are there, each once.
fn once(found: &[PathBuf]) -> Vec<PathBuf> {
    let real: Vec<PathBuf> = found.iter().filter_map(|f| f.canonicalize().ok()).collect();
    let mut once: Vec<PathBuf> = Vec::new();
    for folder in real {
        if !once.contains(&folder) {
            once.push(folder);
        }
    }
    once
}

fn cuda(out: &Path) {
    let bindings = bindgen::Builder::default()
        .header(DRIVER)
        .dynamic_library_name("Calls")
        .dynamic_link_require_all(true)
        .allowlist_function("cu.*")
        .allowlist_var("CU.*")
        .prepend_enum_name(false)
        .layout_tests(true)
        .derive_default(true)
        .rust_edition(bindgen::RustEdition::Edition2024)
        .rust_target(bindgen::RustTarget::stable(85, 0).expect("a version"))
        .generate()
        .expect("our own header");
    bindings.write_to_file(out.join("cuda_driver.rs")).expect("OUT_DIR is writable");
    fs::write(out.join("cuda_headers.rs"), real_cuda()).expect("OUT_DIR is writable");
}

/// What bindgen makes of an installation's cuda.h, as a Rust list of (header, text).
fn real_cuda() -> String {
    let ours = fs::read_to_string(DRIVER).expect("our own header");
    let words = ours.split(|c: char| !c.is_alphanumeric() && c != '_');
    let is_function = |word: &&str| word.starts_with("cu") && !word.starts_with("cuuint");
    let functions: Vec<&str> = words.filter(is_function).collect();
    let mut list = "&[\n".to_owned();
    for folder in cuda_folders() {
        let header = folder.join("cuda.h");
        if !header.is_file() {
            continue;
        }
        println!("cargo::rerun-if-changed={}", header.display());
        let made = bindgen::Builder::default()
            .header(header.display().to_string())
            // Symbols by their own names, old ones too.
            .clang_arg("-D__CUDA_API_VERSION_INTERNAL")
            .allowlist_function(functions.join("|"))
            .allowlist_type("CUuuid|CUipc.*|CU.*_attribute")
            .allowlist_var("CU_MEMHOST.*")
            .allowlist_type("cudaError_enum|CUmemorytype_enum|CUmemAttach_flags_enum|CUipc.*")
            .allowlist_type("CU(stream|event).*_enum")
            .prepend_enum_name(false)
            .layout_tests(true)
            .generate_comments(false)
            .generate();
        if let Ok(bindings) = made {
            let entry = (header.display().to_string(), bindings.to_string());
            writeln!(list, "{entry:?},").expect("a string takes it");
        }
    }
    list + "]\n"
}

/// Where a cuda.h may be.
fn cuda_folders() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = Vec::new();
    if let Some(list) = env::var_os(CUDA_HEADERS) {
        found.extend(env::split_paths(&list));
    }
    let home = env::var_os("CUDA_HOME").unwrap_or_else(|| "/usr/local/cuda".into());
    found.push(Path::new(&home).join("include"));
    // What the tests have installed for themselves: lib/pythonX.Y/site-packages/nvidia/cuN/include.
    let inside = |folder: PathBuf| fs::read_dir(folder).into_iter().flatten().flatten();
    for python in inside("build/venv/cuda/lib".into()) {
        let packages = python.path().join("site-packages/nvidia");
        found.extend(inside(packages).map(|entry| entry.path().join("include")));
    }
    found
}

/// The constants of our header as Rust, where bindgen cannot read it.
fn constants() -> String {
    let text = fs::read_to_string(DRIVER).expect("our own header");
    let mut made = String::new();
    for line in text.lines().map(str::trim) {
        let constant = line.trim_end_matches(',').split_once(" = ");
        let macro_ = line.strip_prefix("#define ").and_then(|line| line.split_once(' '));
        if let Some((name, value)) = constant.or(macro_) {
            writeln!(made, "pub const {name}: u32 = {value};").expect("a string takes it");
        }
    }
    made
}

fn nccl(out: &Path) {
    let bindings = nccl_builder("ffi/nccl/nccl.h")
        .dynamic_library_name("Nccl")
        .derive_default(true)
        .rust_edition(bindgen::RustEdition::Edition2024)
        .rust_target(bindgen::RustTarget::stable(85, 0).expect("a version"))
        .generate()
        .expect("our own header");
    bindings.write_to_file(out.join("nccl.rs")).expect("OUT_DIR is writable");
    // Real headers are read without CUDA's, which may be missing or of another version.
    let cuda = out.join("nccl_cuda");
    fs::create_dir_all(&cuda).expect("OUT_DIR is writable");
    for (name, text) in
        [("cuda_runtime.h", CUDA_FOR_NCCL), ("cuda_fp16.h", ""), ("cuda_bf16.h", "")]
    {
        fs::write(cuda.join(name), text).expect("OUT_DIR is writable");
    }
    let mut list = "&[\n".to_owned();
    for header in nccl_folders().iter().map(|folder| folder.join("nccl.h")) {
        if !header.is_file() {
            continue;
        }
        println!("cargo::rerun-if-changed={}", header.display());
        let name = header.display().to_string();
        let include = format!("-I{}", cuda.display());
        // What cannot be read is for the test to complain of.
        let made = nccl_builder(&name).clang_arg(include).generate();
        let text = made.map_or_else(|error| error.to_string(), |bindings| bindings.to_string());
        writeln!(list, "{:?},", (name, text)).expect("a string takes it");
    }
    fs::write(out.join("nccl_headers.rs"), list + "]\n").expect("OUT_DIR is writable");
}

/// Constants keep the names they have in C.
fn nccl_builder(header: &str) -> bindgen::Builder {
    bindgen::Builder::default()
        .header(header)
        .allowlist_function("nccl.*")
        .allowlist_type("nccl.*")
        .allowlist_var("NCCL_.*")
        .prepend_enum_name(false)
        .layout_tests(true)
}

/// Where a `nccl.h` may be, each folder once.
fn nccl_folders() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = Vec::new();
    if let Some(list) = env::var_os(NCCL_HEADERS) {
        found.extend(env::split_paths(&list));
    }
    let homes = ["NCCL_HOME", "CUDA_HOME"].into_iter().filter_map(env::var_os);
    found.extend(homes.map(|home| PathBuf::from(home).join("include")));
    let mut asked = Command::new("pkg-config");
    if let Ok(said) = asked.args(["--variable=includedir", "nccl"]).output() {
        found.push(String::from_utf8_lossy(&said.stdout).trim().into());
    }
    found.push("/usr/include".into());
    // Wheels: of the active environment, and what the tests have installed for themselves.
    let own = fs::read_dir("build/venv").into_iter().flatten().flatten();
    let environments = own.map(|entry| entry.path());
    let active = env::var_os("VIRTUAL_ENV").map(PathBuf::from);
    for environment in active.into_iter().chain(environments) {
        let pythons = fs::read_dir(environment.join("lib")).into_iter().flatten().flatten();
        found.extend(pythons.map(|p| p.path().join("site-packages/nvidia/nccl/include")));
    }
    once(&found)
}

fn rdma(out: &Path) {
    for (part, library, ..) in RDMA_PARTS {
        let name = format!("ffi/rdma/{part}.h");
        let mut builder = rdma_builder(&name, part)
            .dynamic_library_name(*library)
            .derive_default(true)
            .rust_edition(bindgen::RustEdition::Edition2024)
            .rust_target(bindgen::RustTarget::stable(85, 0).expect("a version"))
            .parse_callbacks(Box::new(Elsewhere))
            .blocklist_type(RDMA_LIBC);
        // Types of verbs are the same in both.
        if *part == "cma" {
            builder = builder.blocklist_type("_?(compat_)?ibv_.*|_*(pthread|atomic)_.*");
            builder = builder.raw_line("use super::verbs::*;");
            builder = builder.raw_line("use libc::{sockaddr, sockaddr_in, sockaddr_in6};");
            builder = builder.raw_line("use libc::sockaddr_storage;");
        }
        if *part == "rsocket" {
            builder = builder.raw_line("use libc::{nfds_t, off_t, pollfd, sockaddr};");
            builder = builder.raw_line("use libc::socklen_t;");
        }
        let bindings = builder.generate().expect("our own header");
        bindings.write_to_file(out.join(format!("rdma_{part}.rs"))).expect("OUT_DIR is writable");
    }
    fs::write(out.join("rdma_headers.rs"), real_rdma()).expect("OUT_DIR is writable");
}

/// What bindgen makes of the headers of rdma-core, as a Rust list of (header, part, text).
fn real_rdma() -> String {
    let mut found: Vec<PathBuf> = Vec::new();
    if let Some(list) = env::var_os(RDMA_HEADERS) {
        found.extend(env::split_paths(&list));
    }
    found.push("/usr/include".into());
    let mut list = "&[\n".to_owned();
    for folder in once(&found) {
        for (part, _, name, ..) in RDMA_PARTS {
            let header = folder.join(name);
            if !header.is_file() {
                continue;
            }
            println!("cargo::rerun-if-changed={}", header.display());
            let name = header.display().to_string();
            let include = format!("-I{}", folder.display());
            // What cannot be read is for the test to complain of.
            let made = rdma_builder(&name, part).clang_arg(include).generate();
            let text = made.map_or_else(|error| error.to_string(), |made| made.to_string());
            writeln!(list, "{:?},", (name, part, text)).expect("a string takes it");
        }
    }
    list + "]\n"
}

/// Constants keep the names they have in C.
fn rdma_builder(header: &str, part: &str) -> bindgen::Builder {
    let (.., names, constants) = RDMA_PARTS.iter().find(|p| p.0 == part).expect("a part");
    bindgen::Builder::default()
        .header(header)
        .allowlist_function(names)
        .allowlist_type(names)
        .allowlist_var(constants)
        .prepend_enum_name(false)
        .generate_comments(false)
        .layout_tests(true)
}

/// What bindgen may believe of types that it finds, but does not write down.
#[derive(Debug)]
struct Elsewhere;

impl ParseCallbacks for Elsewhere {
    fn blocklisted_type_implements_trait(
        &self,
        _: &str,
        asked: DeriveTrait,
    ) -> Option<ImplementsTrait> {
        Some(match asked {
            DeriveTrait::Copy => ImplementsTrait::Yes,
            // libc's have none: who holds one begins as zeros.
            DeriveTrait::Default => ImplementsTrait::Manually,
            _ => ImplementsTrait::No,
        })
    }
}
