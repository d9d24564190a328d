//! Which NCCL is the process's: where to look, in order.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use super::library::Library;
use super::version::Feature;
use crate::error::{Code, Error, Result};
use crate::sys::loaded;

/// A library that may be the one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    /// Path, or a name that the system looks for.
    pub(super) name: OsString,
    /// Why it is one.
    pub(super) why: &'static str,
    /// It is the one, or there is none.
    pub(super) binding: bool,
}

/// What the file is called.
const FILE: &str = "libnccl.so.2";

/// Libraries to try, the best first.
///
/// # Errors
/// `INVALID_STATE` when the process has loaded two.
pub(super) fn candidates(named: Option<&str>) -> Result<Vec<Candidate>> {
    candidates_in(named, loaded::libraries(), &|name| std::env::var_os(name))
}

/// The same for a process that has loaded `running`, in this environment.
fn candidates_in(
    named: Option<&str>,
    mut running: Vec<PathBuf>,
    variable: &dyn Fn(&str) -> Option<OsString>,
) -> Result<Vec<Candidate>> {
    running.retain(|path| is_nccl(path));
    running.sort();
    running.dedup();
    match &running[..] {
        [] => {}
        [one] => {
            let name = one.clone().into_os_string();
            return Ok(vec![Candidate { name, why: "loaded already", binding: true }]);
        }
        [first, second, ..] => {
            let (first, second) = (first.display(), second.display());
            let text = format!("the process has loaded two NCCLs: {first} and {second}");
            return Err(Error::new(Code::InvalidState, text));
        }
    }
    if let Some(name) = named {
        let why = "named by UNISONO_NCCL_LIB";
        return Ok(vec![Candidate { name: name.into(), why, binding: true }]);
    }
    let mut found = Vec::new();
    let mut add = |name: OsString, why| found.push(Candidate { name, why, binding: false });
    for (home, why) in [("NCCL_HOME", "of NCCL_HOME"), ("CUDA_HOME", "of CUDA_HOME")] {
        let prefix = variable(home).filter(|home| !home.is_empty());
        let folders = prefix.iter().flat_map(|prefix| ["lib", "lib64"].map(|lib| (prefix, lib)));
        let files = folders.map(|(prefix, lib)| Path::new(prefix).join(lib).join(FILE));
        files.filter(|file| file.is_file()).for_each(|file| add(file.into(), why));
    }
    add(FILE.into(), "by the system's search");
    wheels(variable).into_iter().for_each(|file| add(file.into(), "of a Python environment"));
    Ok(found)
}

/// Whether a loaded file is an NCCL, and not a plugin of one.
fn is_nccl(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name == "libnccl.so" || name.starts_with("libnccl.so.")
}

/// What Python's packages have brought: those of the active environment, else of the `python3` that
/// the shell would start. The files tell; no Python is run.
fn wheels(variable: &dyn Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let mut prefixes: Vec<PathBuf> = Vec::new();
    prefixes.extend(variable("VIRTUAL_ENV").filter(|active| !active.is_empty()).map(Into::into));
    let path = variable("PATH").unwrap_or_default();
    let absolute = std::env::split_paths(&path).filter(|folder| folder.is_absolute());
    if let Some(python) = absolute.map(|f| f.join("python3")).find(|python| python.is_file()) {
        // As it is called, then as what it is a link to: an environment's is a link to another's.
        let real = python.canonicalize().ok();
        for program in [Some(&python), real.as_ref()].into_iter().flatten() {
            prefixes.extend(program.ancestors().nth(2).map(Path::to_path_buf));
        }
    }
    if prefixes.iter().any(|prefix| prefix == Path::new("/usr")) {
        prefixes.push("/usr/local".into());
        prefixes.extend(variable("HOME").map(|home| Path::new(&home).join(".local")));
    }
    let mut found: Vec<PathBuf> = Vec::new();
    for file in prefixes.iter().flat_map(|prefix| wheels_in(prefix)) {
        if !found.contains(&file) {
            found.push(file);
        }
    }
    found
}

/// What the packages under a prefix of Python have brought.
fn wheels_in(prefix: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for lib in ["lib", "lib64"].map(|lib| prefix.join(lib)) {
        let entries = std::fs::read_dir(&lib).into_iter().flatten().flatten();
        let mut pythons: Vec<OsString> = entries.map(|entry| entry.file_name()).collect();
        pythons.retain(|name| is_python(name));
        pythons.sort();
        for (python, packages) in pythons.iter().flat_map(|python| {
            ["site-packages", "dist-packages"].map(|packages| (python, packages))
        }) {
            let wheel = lib.join(python).join(packages).join("nvidia/nccl/lib").join(FILE);
            found.extend(Some(wheel).filter(|file| file.is_file()));
        }
    }
    found
}

fn is_python(name: &OsStr) -> bool {
    name.to_string_lossy().starts_with("python3")
}

/// The NCCL that would be opened and what it has, in a line, or why there is none: for `unisono
/// info`. The library is loaded for that, and asked for its version only.
///
/// # Errors
/// As [`Library::open`].
pub(crate) fn describe(named: Option<&str>) -> Result<String> {
    let found = Library::open(named)?;
    let features = Feature::ALL.iter().filter(|feature| found.has(**feature));
    let features: Vec<&str> = features.map(|feature| feature.name()).collect();
    let features =
        if features.is_empty() { "nothing newer".to_owned() } else { features.join(", ") };
    Ok(format!("NCCL {}: {}; has {features}", found.version, found.place))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    /// A folder of its own for a test, gone with it.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let name = format!("unisono-nccl-{name}-{}", std::process::id());
            let folder = std::env::temp_dir().join(name);
            std::fs::create_dir_all(&folder).expect("a folder");
            Self(folder)
        }

        /// An empty file there.
        fn file(&self, path: &str) -> OsString {
            let file = self.0.join(path);
            std::fs::create_dir_all(file.parent().expect("a folder")).expect("a folder");
            std::fs::write(&file, "").expect("a file");
            file.into_os_string()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn names(found: &[Candidate]) -> Vec<OsString> {
        found.iter().map(|one| one.name.clone()).collect()
    }

    #[test]
    fn plugins_are_no_nccl() {
        for name in ["/a/libnccl.so", "libnccl.so.2", "/b/libnccl.so.2.30.7"] {
            assert!(is_nccl(Path::new(name)), "{name}");
        }
        for name in ["libnccl-net.so", "libnccl-net.so.0", "libnccl_static.a", "libncclx.so", ""] {
            assert!(!is_nccl(Path::new(name)), "{name}");
        }
    }

    #[test]
    fn a_loaded_one_is_the_one_and_two_are_refused() {
        let none = |_: &str| None;
        let one = vec!["/a/libnccl.so.2".into(), "/a/libc.so.6".into()];
        let found = candidates_in(Some("/b/libnccl.so"), one, &none).expect("one is loaded");
        assert_eq!(names(&found), ["/a/libnccl.so.2"]);
        let two = vec!["/a/libnccl.so.2".into(), "/b/libnccl.so.2".into()];
        let error = candidates_in(None, two, &none).expect_err("two are loaded");
        assert_eq!(error.code, Code::InvalidState);
        assert!(error.detail.contains("/a/libnccl.so.2 and /b/libnccl.so.2"), "{error}");
    }

    #[test]
    fn what_is_named_is_the_only_candidate() {
        let found = candidates_in(Some("/no/libnccl.so"), Vec::new(), &|_| None).expect("a list");
        assert_eq!(names(&found), ["/no/libnccl.so"]);
        assert!(found[0].binding);
    }

    #[test]
    fn homes_come_first_then_the_system_then_pythons_packages() {
        let folder = Folder::new("order");
        let wheel = "lib/python3.12/site-packages/nvidia/nccl/lib/libnccl.so.2";
        let files = [
            folder.file("nccl/lib/libnccl.so.2"),
            folder.file("cuda/lib64/libnccl.so.2"),
            folder.file(&format!("venv/{wheel}")),
            folder.file(&format!("other/{wheel}")),
        ];
        folder.file("other/bin/python3");
        let of = |name: &str| folder.0.join(name).into_os_string();
        let variables = HashMap::from([
            ("NCCL_HOME", of("nccl")),
            ("CUDA_HOME", of("cuda")),
            ("VIRTUAL_ENV", of("venv")),
            ("PATH", OsString::from(format!("relative:/no:{}/other/bin", folder.0.display()))),
        ]);
        let look = |name: &str| variables.get(name).cloned();
        let [nccl, cuda, venv, other] = files;
        let found = candidates_in(None, Vec::new(), &look).expect("a list");
        assert_eq!(names(&found), [nccl, cuda, FILE.into(), venv, other]);
        assert!(found.iter().all(|one| !one.binding));
        let found = candidates_in(None, Vec::new(), &|_| None).expect("a list");
        assert_eq!(names(&found), [FILE]);
    }
}
