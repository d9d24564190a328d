//! Builds a library of C++ for tests, once for what it is made of.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The library `file` of stand-in `name`, where `hash` stands for all that it is made of; `add`
/// puts sources and what else they need to the command, and may write to the library's folder.
pub(crate) fn built(
    (name, file, hash): (&str, &str, u64),
    add: impl FnOnce(&mut Command, &Path),
) -> PathBuf {
    // Beside the folder of the test's own program.
    let program = std::env::current_exe().expect("an own name");
    let home = program.ancestors().nth(3).expect("target/profile/deps").join("tmp");
    let folder = home.join(format!("standin-{name}-{hash:016x}"));
    let library = folder.join(file);
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
    command.args(["-Wall", "-Wextra", "-Werror"]);
    add(&mut command, &folder);
    let output = command.arg("-o").arg(&made).output().expect("c++");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fs::rename(&made, &library).expect("renamed");
    library
}
