//! Builds the stand-ins for NCCL of `tests/standin`, each once for what it is made of.

use std::collections::hash_map::DefaultHasher;
use std::fs::{self, File};
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The stand-in for NCCL.
pub(crate) fn nccl() -> PathBuf {
    built("nccl")
}

/// What says that it is an NCCL, and has nothing else.
pub(crate) fn nccl_bare() -> PathBuf {
    built("nccl_bare")
}

/// The library made of `tests/standin/NAME.cpp`. Its file is not called as NCCL's is: who looks for
/// a loaded NCCL does not find it.
fn built(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let source = root.join(format!("tests/standin/{name}.cpp"));
    let mut hash = DefaultHasher::new();
    for input in [&source, &root.join("ffi/nccl/nccl.h")] {
        fs::read(input).expect("a source").hash(&mut hash);
    }
    // Beside the folder of the test's own program.
    let program = std::env::current_exe().expect("an own name");
    let home = program.ancestors().nth(3).expect("target/profile/deps").join("tmp");
    let folder = home.join(format!("standin-{name}-{:016x}", hash.finish()));
    let library = folder.join(format!("standin_{name}.so"));
    fs::create_dir_all(&folder).expect("a folder");
    // One builds it, and the others wait.
    let lock = File::create(folder.join("lock")).expect("a file");
    lock.lock().expect("a lock");
    if library.exists() {
        return library;
    }
    let made = folder.join("made");
    let mut command = Command::new("c++");
    command.args(["-std=c++17", "-O1", "-g", "-shared", "-fPIC", "-pthread"]);
    command.args(["-Wall", "-Wextra", "-Werror"]).arg("-I").arg(root.join("ffi/nccl"));
    let output = command.arg(&source).arg("-ldl").arg("-o").arg(&made).output().expect("c++");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fs::rename(&made, &library).expect("renamed");
    library
}
