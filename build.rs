//! Makes the bindings to foreign libraries from the headers in `ffi/`; nothing else.
//!
//! bindgen needs libclang. Where that is missing the library is built without MPI and CUDA: a
//! warning says what to install, and `unisono info` says the same. No header of an MPI or of CUDA
//! is needed; those that are found are read as well, for the tests that compare them with ours.

use std::env;
use std::fmt::Write;
use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::process::Command;

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

fn main() {
    println!("cargo::rustc-check-cfg=cfg(unisono_mpi)");
    println!("cargo::rustc-check-cfg=cfg(unisono_cuda)");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=ffi/mpi");
    println!("cargo::rerun-if-changed={DRIVER}");
    for variable in [HEADERS, "MPI_HOME", CUDA_HEADERS, "CUDA_HOME", "LIBCLANG_PATH"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    // bindgen panics where it cannot load libclang.
    let made = catch_unwind(|| {
        mpi(&out);
        cuda(&out);
    });
    match made {
        Ok(()) => {
            println!("cargo::rustc-cfg=unisono_mpi");
            println!("cargo::rustc-cfg=unisono_cuda");
        }
        Err(panic) => {
            fs::write(out.join("cuda_driver.rs"), constants()).expect("OUT_DIR is writable");
            let text = panic.downcast_ref::<String>().map_or("", String::as_str);
            let why = text.lines().next().unwrap_or_default();
            println!(
                "cargo::warning=built without MPI and CUDA, for want of libclang (Debian: \
                 libclang-dev; or set LIBCLANG_PATH): {why}"
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
