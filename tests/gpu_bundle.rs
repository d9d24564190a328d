//! The folder for GPU machines: put together of what this test run has built, and its script run on
//! the stand-ins for the CUDA driver and for NCCL.
#![cfg(feature = "cli")]
#![allow(missing_docs)]

#[path = "support/library.rs"]
mod library;
#[path = "support/program.rs"]
mod program;
#[path = "support/standin.rs"]
#[allow(dead_code, reason = "other tests build other kinds")]
mod standin;
#[path = "support/standin_nccl.rs"]
#[allow(dead_code, reason = "other tests build other kinds")]
mod standin_nccl;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use program::{clean, text};

const PROGRAM: &str = env!("CARGO_BIN_EXE_unisono");

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A new folder of this test's, whose name has to be quoted.
fn home(test: &str) -> PathBuf {
    let program = std::env::current_exe().expect("an own name");
    let home = program.ancestors().nth(3).expect("target/profile/deps");
    let home = home.join("tmp/gpu bundle; it's a test").join(test);
    let _ = fs::remove_dir_all(&home);
    fs::create_dir_all(&home).expect("a folder");
    home
}

fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = clean(program);
    for (name, _) in std::env::vars() {
        if name.starts_with("CARGO_") && name != "CARGO_TARGET_DIR" && name != "CARGO_HOME" {
            command.env_remove(name);
        }
    }
    command.current_dir(root());
    command
}

fn succeed(command: &mut Command) -> String {
    let output = command.output().expect("it starts");
    assert!(output.status.success(), "{command:?}: {}", text(&output));
    text(&output)
}

/// The command that puts the folder together, in `home`.
fn bundle(home: &Path, library: &Path) -> (Command, PathBuf) {
    let out = home.join("gpu-bundle");
    let mut command = command("scripts/gpu_bundle.sh");
    command.env("PROGRAM", PROGRAM).env("LIBRARY", library).arg(&out);
    (command, out)
}

/// The static library, as the tests of the C interface have it.
fn library() -> PathBuf {
    let build = root().join("build");
    fs::create_dir_all(&build).expect("build");
    // Others make it, too.
    let lock = fs::File::create(build.join("tests.lock")).expect("lock");
    lock.lock().expect("lock");
    succeed(command("make").args(["--no-print-directory", "lib"]));
    build.join("libunisono.a")
}

fn run(bundle: &Path, arguments: &[&str], cuda: &Path) -> Output {
    let mut command = command(bundle.join("run.sh"));
    command.current_dir("/").args(arguments);
    command.env("UNISONO_CUDA_LIB", cuda).env("UNISONO_NCCL_LIB", standin_nccl::nccl());
    command.output().expect("it starts")
}

/// The rows of the summary's table below `title`, each by its first cell.
fn rows(summary: &str, title: &str) -> BTreeMap<String, Vec<String>> {
    let part = summary.split(title).nth(1).expect("the title").split("\n## ").next();
    let lines = part.expect("a part").lines().filter(|line| line.starts_with("| ")).skip(1);
    let cells = |line: &str| line.split('|').map(|cell| cell.trim().to_owned()).skip(1).collect();
    lines.map(cells).map(|row: Vec<String>| (row[0].clone(), row)).collect()
}

#[test]
fn a_bundle_checks_and_measures_what_it_finds() {
    let home = home("whole");
    let (mut make, bundle) = bundle(&home, &library());
    let said = succeed(&mut make);
    assert!(said.contains(" KiB") && home.join("gpu-bundle.tar.gz").is_file(), "{said}");
    let about = fs::read_to_string(bundle.join("README.txt")).expect("README.txt");
    assert!(about.contains("glibc 2.") && !about.contains('@'), "{about}");
    // As it is on the other machine: nothing but the folder.
    let tests = home.join("nccl tests");
    fs::create_dir_all(&tests).expect("a folder");
    let script = root().join("tests/versus/nccl_tests.sh");
    symlink(script, tests.join("all_reduce_perf")).expect("a link");
    let results = home.join("the results");
    let (at, out) = (tests.to_str().expect("UTF-8"), results.to_str().expect("UTF-8"));
    let output = run(&bundle, &["--quick", "--nccl-tests", at, "--out", out], &standin::cuda());
    let summary = fs::read_to_string(results.join("summary.md")).expect("a summary");

    let steps = rows(&summary, "## Steps");
    for (name, row) in &steps {
        assert_eq!(row[2], "passed", "{name}: {summary}\n{}", text(&output));
    }
    for name in [
        "device",
        "nccl-1-rank",
        "native-threads-4",
        "native-processes-4",
        "kernels",
        "c-calls",
        "c-bad",
        "behind",
        "behind-nccl",
        "cpp-header",
        "train-lm-bits",
        "kernel-speed",
        "nccl-4-ranks-all_reduce",
        "nccl-tests-all_reduce",
        "latency-processes",
    ] {
        assert!(steps.contains_key(name), "{name}: {summary}");
    }
    assert_eq!(output.status.code(), Some(0), "{summary}");
    let targets = rows(&summary, "## Targets");
    assert_eq!(targets.len(), 6, "{summary}");
    for (name, row) in targets {
        assert!(row[3] == "met" || row[3] == "not met", "{name}: {summary}");
    }
    assert!(summary.contains("1 rank: nccl-tests (theirs)"), "{summary}");
    assert!(summary.contains("| all_reduce | 1 | 8 | false | 9.500 |"), "{summary}");
    let info = fs::read_to_string(results.join("info.txt")).expect("info.txt");
    assert!(info.contains("device 0: Stand-in GPU"), "{info}");
    let left = fs::read_dir(&results).expect("results").flatten();
    let hidden = left.filter(|entry| entry.file_name().to_string_lossy().starts_with('.'));
    assert_eq!(hidden.count(), 0);
}

#[test]
fn without_a_driver_or_time_every_step_says_so() {
    let home = home("broken");
    let (mut make, bundle) = bundle(&home, Path::new(""));
    succeed(&mut make);
    let out = home.join("out");
    let at = out.to_str().expect("UTF-8");
    let output = run(&bundle, &["--quick", "--out", at], Path::new("/nowhere/libcuda.so.1"));
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let summary = fs::read_to_string(out.join("summary.md")).expect("a summary");
    let steps = rows(&summary, "## Steps");
    for name in ["device", "nccl-1-rank", "native-threads-2", "native-processes-2", "kernels"] {
        assert_eq!(steps[name][2], "failed", "{summary}");
    }
    assert!(steps["native-processes-2"][4].contains("/nowhere/libcuda.so.1"), "{summary}");
    assert_eq!((&*steps["info"][2], &*steps["c-programs"][2]), ("passed", "skipped"), "{summary}");
    assert_eq!(steps["nccl-tests"][4], "--nccl-tests DIR was not given", "{summary}");
    assert!(rows(&summary, "## Targets").values().all(|row| row[3].starts_with("not measured")));

    let output = run(&bundle, &["--budget", "0", "--out", at], &standin::cuda());
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let summary = fs::read_to_string(out.join("summary.md")).expect("a summary");
    let row = &rows(&summary, "## Steps")["native-threads-2"];
    assert_eq!((&*row[2], &*row[4]), ("skipped", "the 0 s are over"), "{summary}");

    for (arguments, words) in [
        (&["--device", "all"][..], "\"all\" is no number"),
        (&["--nccl-tests", "/nowhere"], "there is no folder /nowhere"),
        (&["--fast"], "--fast is not known"),
        (&["--out"], "--out needs a value"),
    ] {
        let output = run(&bundle, arguments, &standin::cuda());
        assert_eq!(output.status.code(), Some(2), "{}", text(&output));
        assert!(text(&output).contains(words), "{}", text(&output));
    }
}

#[test]
fn a_bundle_that_is_too_large_is_refused() {
    let (mut make, _) = bundle(&home("large"), Path::new(""));
    let output = make.env("MOST_KIB", "1000").output().expect("it starts");
    assert!(!output.status.success() && text(&output).contains("1000 are too many"));
}
