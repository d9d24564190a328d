//! Which MPI is the process's: where to look, in order.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::library::Library;
use crate::error::{Code, Error, Result};
use crate::sys::loaded;
use crate::sys::process::ancestors;

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

/// What the files are called: Open MPI's, the MPICH family's, the standard ABI's.
const NAMES: &[&str] =
    &["libmpi.so.40", "libmpi.so.12", "libmpich.so.12", "libmpi_abi.so.1", "libmpi.so"];

/// The same for a launcher of the MPICH family: both may lie in one folder.
const NAMES_OF_HYDRA: &[&str] =
    &["libmpi.so.12", "libmpich.so.12", "libmpi_abi.so.1", "libmpi.so", "libmpi.so.40"];

/// Launchers that belong to an MPI, by the beginnings of their programs' names.
const LAUNCHERS: &[&str] = &["mpirun", "mpiexec", "orterun", "prterun", "prted", "orted", "hydra"];

/// Libraries to try, the best first.
///
/// # Errors
/// `INVALID_STATE` when the process has loaded two.
pub(super) fn candidates(named: Option<&str>) -> Result<Vec<Candidate>> {
    let mut running: Vec<PathBuf> = loaded::libraries();
    running.retain(|path| is_mpi(path));
    running.sort();
    running.dedup();
    match &running[..] {
        [] => {}
        [one] => {
            let name = one.clone().into_os_string();
            return Ok(vec![Candidate { name, why: "loaded by the program", binding: true }]);
        }
        [first, second, ..] => {
            let (first, second) = (first.display(), second.display());
            let text = format!("the process has loaded two MPIs: {first} and {second}");
            return Err(Error::new(Code::InvalidState, text));
        }
    }
    if let Some(name) = named {
        let why = "named by UNISONO_MPI_LIB";
        return Ok(vec![Candidate { name: name.into(), why, binding: true }]);
    }
    let mut found: Vec<Candidate> = Vec::new();
    let of_environment = environment_folders().map(|folder| (folder, NAMES));
    for (folder, names) in launcher_folders().chain(of_environment) {
        let there = names.iter().map(|name| folder.join(name)).filter(|path| path.is_file());
        // `libmpi_abi` lies beside the same MPI's own: one of a folder is enough.
        found.extend(there.take(1).map(|path| Candidate {
            name: path.canonicalize().unwrap_or(path).into_os_string(),
            why: "of the launcher",
            binding: false,
        }));
    }
    let usual = NAMES.iter().map(|name| Candidate {
        name: name.into(),
        why: "a usual name",
        binding: false,
    });
    found.extend(usual);
    Ok(found)
}

/// Whether a loaded file is an MPI, and not its part for another language.
fn is_mpi(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let stem = name.split(".so").next().unwrap_or("");
    name.contains(".so") && ["libmpi", "libmpich", "libmpi_abi"].contains(&stem)
}

/// Where the launcher's MPI lies, if this process was started by one, and what it may be called.
fn launcher_folders() -> impl Iterator<Item = (PathBuf, &'static [&'static str])> {
    let launchers = ancestors().filter(|(_, name)| LAUNCHERS.iter().any(|l| name.starts_with(l)));
    launchers.filter_map(|(pid, _)| std::fs::read_link(format!("/proc/{pid}/exe")).ok()).flat_map(
        |program| {
            let hydra = program.to_string_lossy().contains("hydra");
            let names = if hydra { NAMES_OF_HYDRA } else { NAMES };
            // PREFIX/bin/mpirun and PREFIX/lib; a launcher may lie deeper.
            let prefixes = program.ancestors().skip(2).take(3);
            let folders = prefixes.flat_map(library_folders).map(|folder| (folder, names));
            folders.collect::<Vec<_>>()
        },
    )
}

/// Where the environment says that an MPI lies.
fn environment_folders() -> impl Iterator<Item = PathBuf> {
    ["I_MPI_ROOT", "OPAL_PREFIX", "MPI_HOME"]
        .into_iter()
        .filter_map(std::env::var_os)
        .flat_map(|prefix| library_folders(Path::new(&prefix)))
}

fn library_folders(prefix: &Path) -> Vec<PathBuf> {
    let triple = format!("lib/{}-linux-gnu", std::env::consts::ARCH);
    ["lib", "lib64", "lib/release", &triple].iter().map(|folder| prefix.join(folder)).collect()
}

/// The MPI that would be opened, in a line, or why there is none: for `unisono info`. The library
/// is loaded for that, and not initialised.
///
/// # Errors
/// As [`Library::open`].
pub(crate) fn describe(named: Option<&str>) -> Result<String> {
    let found = Library::open(named)?;
    Ok(format!("{} ({}): {}", found.name, found.abi, found.place))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_for_other_languages_are_no_mpi() {
        for name in ["/a/libmpi.so", "libmpi.so.40.30.4", "/b/libmpich.so.12", "libmpi_abi.so.1"] {
            assert!(is_mpi(Path::new(name)), "{name}");
        }
        for name in ["libmpi_cxx.so.40", "libmpifort.so.12", "libmpi_mpifh.so", "mpi.txt", "a.so"] {
            assert!(!is_mpi(Path::new(name)), "{name}");
        }
    }

    #[test]
    fn what_is_named_is_the_only_candidate() {
        let found = candidates(Some("/no/libmpi.so")).expect("no MPI is loaded here");
        assert_eq!(found.len(), 1);
        let error = Library::load(&found[0]).expect_err("no such file");
        assert_eq!(error.code, Code::Unsupported);
        assert!(error.detail.contains("/no/libmpi.so") && error.detail.contains("UNISONO_MPI_LIB"));
    }

    #[test]
    fn a_library_that_is_no_mpi_is_refused() {
        let name = "libm.so.6".into();
        let error = Library::load(&Candidate { name, why: "a test", binding: true });
        let said = error.expect_err("no MPI").detail;
        assert!(said.contains("it is no MPI"), "{said}");
    }
}
