//! Builds the stand-in for libibverbs and librdmacm of `tests/standin`, once for what it is made
//! of.

use std::collections::hash_map::DefaultHasher;
use std::fs::{self, File};
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The stand-in: one library that is both.
pub(crate) fn rdma() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let source = root.join("tests/standin/rdma.cpp");
    let mut hash = DefaultHasher::new();
    fs::read(&source).expect("a source").hash(&mut hash);
    for folder in ["tests/standin/rdma", "ffi/rdma"] {
        let entries = fs::read_dir(root.join(folder)).expect("a folder").flatten();
        let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        files.sort();
        files.iter().for_each(|file| fs::read(file).expect("a source").hash(&mut hash));
    }
    // Beside the folder of the test's own program.
    let program = std::env::current_exe().expect("an own name");
    let home = program.ancestors().nth(3).expect("target/profile/deps").join("tmp");
    let folder = home.join(format!("standin-rdma-{:016x}", hash.finish()));
    let library = folder.join("standin_rdma.so");
    fs::create_dir_all(&folder).expect("a folder");
    // One builds it, and the others wait.
    let lock = File::create(folder.join("lock")).expect("a file");
    lock.lock().expect("a lock");
    if library.exists() {
        return library;
    }
    let made = folder.join("made");
    let mut command = Command::new("c++");
    command.args(["-std=c++17", "-O2", "-g", "-shared", "-fPIC", "-pthread"]);
    command.args(["-Wall", "-Wextra", "-Werror"]).arg("-I").arg(root.join("ffi/rdma"));
    let output = command.arg(&source).arg("-o").arg(&made).output().expect("c++");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fs::rename(&made, &library).expect("renamed");
    library
}
