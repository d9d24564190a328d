//! Builds the stand-in for libibverbs and librdmacm of `tests/standin`, once for what it is made
//! of.

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};

use crate::library;

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
    library::built(("rdma", "standin_rdma.so", hash.finish()), |command, _| {
        command.arg("-O2").arg("-I").arg(root.join("ffi/rdma")).arg(&source);
    })
}
