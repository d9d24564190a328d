//! Builds the stand-ins of `tests/standin`, each once for what it is made of.

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};

use crate::library;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
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
    library::built(("cuda", "libcuda.so.1", hash.finish()), |command, folder| {
        if let Some(twins) = twins {
            let source = folder.join("twin.cpp");
            fs::write(&source, twins).expect("a source");
            sources.push(source);
        }
        command
            .args(flags)
            .arg("-I")
            .arg(root().join("ffi/cuda"))
            .arg("-I")
            .arg(root().join("cuda"));
        command.args(sources);
    })
}
