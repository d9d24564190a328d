//! `unisono perf --vs`: a folder of scripts in the place of nccl-tests' programs, which print what
//! those print or go wrong, and ours on the stand-ins for the CUDA driver and for NCCL.
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

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use program::{clean, text};
use serde_json::Value;

/// A folder with nccl-tests' all_reduce and sendrecv, which goes wrong as `fault` says.
fn tests(name: &str, fault: &str) -> PathBuf {
    let program = std::env::current_exe().expect("an own name");
    let home = program.ancestors().nth(3).expect("target/profile/deps");
    // A name that has to be quoted.
    let folder = home.join("tmp/versus of tests").join(name);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).expect("a folder");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/versus/nccl_tests.sh");
    for program in ["all_reduce_perf", "sendrecv_perf"] {
        symlink(&script, folder.join(program)).expect("a link");
    }
    fs::write(folder.join("FAULT"), fault).expect("a file");
    folder
}

fn perf(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let (cuda, nccl) = (standin::cuda(), standin_nccl::nccl());
    let mut command = clean(env!("CARGO_BIN_EXE_unisono"));
    command.env("UNISONO_CUDA_LIB", cuda).env("UNISONO_NCCL_LIB", nccl);
    command.env("STANDIN_CUDA_DEVICES", "2").arg("perf").args(arguments);
    command.envs(variables.iter().copied()).output().expect("the program starts")
}

/// The usual arguments, and `more`.
fn versus(folder: &Path, more: &[&str]) -> Output {
    let folder = folder.to_str().expect("UTF-8");
    let fixed = ["all_reduce", "--device", "0", "-b", "8", "-e", "64", "--iters", "2"];
    let given = if more.contains(&"-n") { &[][..] } else { &["-n", "1"] };
    perf(&[&fixed[..], &["--vs", folder], given, more].concat(), &[])
}

#[test]
fn both_sides_stand_beside_each_other() {
    let output = versus(&tests("good", ""), &[]);
    assert!(output.status.success(), "{}", text(&output));
    let said = text(&output);
    let rows: Vec<Vec<&str>> = said
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(rows.iter().map(|row| row[0]).collect::<Vec<_>>(), ["8", "64"], "{said}");
    for row in &rows {
        assert_eq!((row.len(), row[1], row[3], row[7]), (13, "9.50", "0.02", "8.50"), "{said}");
        let (ours, ratio): (f64, f64) = (row[2].parse().expect("us"), row[5].parse().expect("x"));
        assert!((9.5 / ours / ratio - 1.0).abs() < 0.05, "{said}");
    }
    for words in ["Geometric mean ratio", "of 4 figures", "Wrong elements : 0 OK", "3 turns"] {
        assert!(said.contains(words), "{words}: {said}");
    }
}

#[test]
fn lines_of_json_have_both_sides_and_end_with_the_mean() {
    let output = versus(&tests("json", ""), &["--json", "--out-of-place", "--turns", "4"]);
    assert!(output.status.success(), "{}", text(&output));
    let lines: Vec<Value> =
        text(&output).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let [first, second, sum] = &lines[..] else { panic!("{}", text(&output)) };
    assert_eq!((&first["bytes"], &second["bytes"]), (&8.into(), &64.into()));
    assert_eq!((&first["theirs_us"], &first["in_place"]), (&9.5.into(), &false.into()));
    assert_eq!((&first["against"], &first["turns"]), (&"nccl-tests".into(), &4.into()));
    let ratio = 9.5 / first["ours_us"].as_f64().expect("a time");
    assert!((ratio / first["ratio"].as_f64().expect("a ratio") - 1.0).abs() < 0.02, "{first}");
    assert_eq!((&sum["figures"], &sum["wrong"]), (&2.into(), &0.into()));
}

#[test]
fn nccl_tests_are_asked_for_the_same_and_find_their_libraries() {
    let folder = tests("asked", "");
    let at = folder.to_str().expect("UTF-8");
    let fixed = ["sendrecv_perf", "-n", "2", "--device", "local_rank", "--vs", at, "-b", "16"];
    let more = ["-e", "48", "-i", "16", "-d", "bf16", "--iters", "3", "-w", "2", "-c", "0"];
    let output = perf(&[&fixed[..], &more].concat(), &[("LD_LIBRARY_PATH", "/some/where:/else")]);
    assert!(output.status.success(), "{}", text(&output));
    let said = fs::read_to_string(folder.join("SAID")).expect("what it was asked");
    let wanted = "device=0\nshared=\nlibraries=/some/where:/else\narguments=-g 2 -b 16 -e 48 \
                  -i 16 -d bfloat16 -o sum -r 0 -n 3 -w 6 -c 0\n";
    assert_eq!(said, wanted);
    assert!(text(&output).contains("2 ranks on devices 0 to 1"), "{}", text(&output));
}

#[track_caller]
fn fails(name: &str, more: &[&str], words: &[&str]) -> PathBuf {
    let folder = tests(&format!("fault {name}"), name);
    let output = versus(&folder, more);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    for word in words {
        assert!(text(&output).contains(word), "{word}: {}", text(&output));
    }
    folder
}

#[test]
fn what_goes_wrong_in_nccl_tests_is_named() {
    fails("wrong", &[], &["36/0", "Wrong elements : 72 FAILED", "all_reduce: 72 wrong elements"]);
    fails("crash", &[], &["all_reduce_perf: was killed by SIGSEGV", "internal error"]);
    fails("garbage", &[], &["all_reduce_perf: its output is not understood"]);
    fails("short", &[], &["it printed 1 of 2 sizes", "missing is 64 B"]);
    fails("rows", &[], &["not understood: a row \"8 "]);
    fails("silent", &[], &["ended with status 3"]);
}

#[test]
fn nccl_tests_that_hang_are_ended_with_all_they_started() {
    let words = ["all_reduce_perf: has not ended after 1 s and was killed"];
    let folder = fails("hang", &["--turn-timeout", "1"], &words);
    let sleeps = fs::read_to_string(folder.join("SLEEPS")).expect("a number");
    // Whoever is to wait for it may not have done so yet.
    let status = Path::new("/proc").join(sleeps.trim()).join("status");
    let status = fs::read_to_string(status).unwrap_or_default();
    let ended = status.is_empty() || status.lines().any(|line| line.starts_with("State:\tZ"));
    assert!(ended, "process {sleeps} is left: {status}");
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let folder = tests("refused", "");
    let at = folder.to_str().expect("UTF-8");
    let nowhere = folder.join("nowhere");
    let refused = |arguments: &[&str], status: i32, words: &str| {
        let output = perf(arguments, &[]);
        assert_eq!(output.status.code(), Some(status), "{}", text(&output));
        assert!(text(&output).contains(words), "{words}: {}", text(&output));
    };
    let one = ["-n", "1", "--device", "0", "-e", "8", "--vs"];
    let with =
        |op: &'static str, at, more: &[&'static str]| [&[op][..], &one, &[at], more].concat();
    refused(&with("reduce", at, &[]), 1, "there is no reduce_perf in");
    let nowhere = nowhere.to_str().expect("UTF-8");
    refused(&with("reduce", nowhere, &[]), 2, "there is no folder");
    refused(&with("all_to_all_v", at, &[]), 2, "nccl-tests has no program for all_to_all_v");
    refused(&with("all_reduce", at, &["-d", "i16"]), 2, "nccl-tests has no type i16");
    refused(&with("all_reduce", at, &["-d", "i32", "-o", "bor"]), 2, "no reduction bor");
    refused(&with("all_reduce", at, &["-b", "0"]), 2, "from 1 byte on");
    refused(&with("all_reduce", at, &["-d", "all"]), 2, "one type");
    refused(&with("all_reduce", "nccl", &["--backend", "nccl"]), 2, "another backend");
    refused(&["all_reduce", "-n", "2", "--device", "0", "--vs", at], 2, "local_rank");
    refused(&["all_reduce", "-n", "1", "--vs", at], 2, "--device");
}

/// An `mpirun` that starts one rank only, as it does for programs without MPI.
#[test]
fn a_build_without_mpi_is_told_from_one_with_it() {
    let folder = tests("mpirun", "");
    let mpirun = folder.join("mpirun");
    fs::write(&mpirun, "#!/bin/sh\nshift 2\nexec \"$@\"\n").expect("a file");
    assert!(Command::new("chmod").arg("+x").arg(&mpirun).status().expect("chmod").success());
    let at = folder.to_str().expect("UTF-8");
    let path = format!("{at}:{}", std::env::var("PATH").expect("PATH"));
    let two = ["all_reduce", "-n", "2", "--device", "1", "-e", "8", "--vs", at, "--mpirun"];
    let output = perf(&two, &[("PATH", &path)]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("it ran 1 ranks, not 2"), "{}", text(&output));
    let said = fs::read_to_string(folder.join("SAID")).expect("what it was asked");
    assert!(said.contains("device=1\nshared=1\n") && said.contains("-g 1 "), "{said}");
}

#[test]
fn backends_of_ours_are_compared_on_one_gpu() {
    let fixed = ["all_reduce", "-n", "2", "--device", "0", "-e", "64", "--vs", "nccl"];
    let few = ["--iters", "2", "--rounds", "1"];
    let output = perf(&[&fixed[..], &few].concat(), &[]);
    assert!(output.status.success(), "{}", text(&output));
    for words in ["# nccl: perf --backend nccl", "--backend native", "of 4 figures", ": 0 OK"] {
        assert!(text(&output).contains(words), "{words}: {}", text(&output));
    }
    // The other side's failure is told by its own words.
    let none = [("UNISONO_NCCL_LIB", "/nowhere/libnccl.so.2")];
    let output = perf(&fixed, &none);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let words = ["perf --backend nccl: ended with status 1", "/nowhere/libnccl.so.2"];
    assert!(words.iter().all(|word| text(&output).contains(word)), "{}", text(&output));
}
