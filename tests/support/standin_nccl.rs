//! Builds the stand-ins for NCCL of `tests/standin`, each once for what it is made of.

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};

use crate::library;

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
    let file = format!("standin_{name}.so");
    library::built((name, &file, hash.finish()), |command, _| {
        command.arg("-I").arg(root.join("ffi/nccl")).arg(&source).arg("-ldl");
    })
}
