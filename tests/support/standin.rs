//! Builds the stand-ins of `tests/standin`, each once for what it is made of.

use std::collections::hash_map::DefaultHasher;
use std::fs::{self, File};
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Beside the folder of the test's own program.
fn home() -> PathBuf {
    let program = std::env::current_exe().expect("an own name");
    program.ancestors().nth(3).expect("target/profile/deps").join("tmp")
}

/// The stand-in for the CUDA driver, with the kernels' twins of `cuda/` where they are.
pub(crate) fn cuda() -> PathBuf {
    let twin = root().join("cuda/twin.cpp");
    let source = twin.exists().then(|| fs::read_to_string(&twin).expect("a source"));
    cuda_with(source.as_deref(), &[])
}

/// The same with these twins, or none, and flags of the compiler.
pub(crate) fn cuda_with(twins: Option<&str>, flags: &[&str]) -> PathBuf {
    let mut sources = vec![root().join("tests/standin/cuda.cpp")];
    let mut hash = DefaultHasher::new();
    (twins, flags).hash(&mut hash);
    let headers = fs::read_dir(root().join("cuda")).into_iter().flatten().flatten();
    let mut inputs: Vec<PathBuf> = headers.map(|entry| entry.path()).collect();
    inputs.sort();
    inputs.extend([sources[0].clone(), root().join("ffi/cuda/driver.h")]);
    inputs.iter().filter(|path| path.is_file()).for_each(|path| {
        fs::read(path).expect("a source").hash(&mut hash);
    });
    let folder = home().join(format!("standin-cuda-{:016x}", hash.finish()));
    let library = folder.join("libcuda.so.1");
    fs::create_dir_all(&folder).expect("a folder");
    // One builds it, and the others wait.
    let lock = File::create(folder.join("lock")).expect("a file");
    lock.lock().expect("a lock");
    if library.exists() {
        return library;
    }
    if let Some(twins) = twins {
        let source = folder.join("twin.cpp");
        fs::write(&source, twins).expect("a source");
        sources.push(source);
    }
    let made = folder.join("made");
    let mut command = Command::new("c++");
    command.args(["-std=c++17", "-O1", "-g", "-shared", "-fPIC", "-pthread"]);
    command.args(["-Wall", "-Wextra", "-Werror"]).args(flags);
    command.arg("-I").arg(root().join("ffi/cuda")).arg("-I").arg(root().join("cuda"));
    let output = command.args(sources).arg("-o").arg(&made).output().expect("c++");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fs::rename(&made, &library).expect("renamed");
    library
}
