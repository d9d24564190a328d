//! The CUDA kernels checked and measured by the program, on a stand-in for the driver.
#![cfg(feature = "cli")]
#![allow(missing_docs)]

#[path = "support/library.rs"]
mod library;
#[path = "support/program.rs"]
mod program;
#[path = "support/standin.rs"]
mod standin;
mod support;

use std::path::Path;
use std::process::Output;

use program::{clean, text};
use unisono::kernel::cuda::bytes_image;

/// The program on a stand-in, with nothing of the environment but what is given.
fn unisono(driver: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = clean(env!("CARGO_BIN_EXE_unisono"));
    command.env("UNISONO_CUDA_LIB", driver).args(arguments).envs(variables.iter().copied());
    command.output().expect("the program starts")
}

fn ends(output: &Output, code: i32, words: &[&str]) {
    assert_eq!(output.status.code(), Some(code), "{}", text(output));
    for word in words {
        assert!(text(output).contains(word), "no {word:?} in: {}", text(output));
    }
}

/// Ends a test of a build without kernels.
macro_rules! with_kernels {
    ($what:literal) => {
        if bytes_image().is_none() {
            return support::skip($what, "this build has no CUDA kernels, for want of nvcc");
        }
    };
}

const CHECK: [&str; 4] = ["check", "--kernels", "--device", "0"];
const PERF: [&str; 4] = ["perf", "--kernels", "--device", "0"];

#[test]
fn every_kernel_passes_on_the_twin() {
    with_kernels!("the check of CUDA kernels");
    let output = unisono(&standin::cuda(), &[&CHECK[..], &["--quick"]].concat(), &[]);
    ends(&output, 0, &[" passed, 0 failed, 0 skipped", "bf16", "bytes"]);
}

#[test]
fn a_part_of_the_check_has_a_seed_a_list_and_an_object_for_its_counts() {
    with_kernels!("a part of the check of CUDA kernels");
    let cuda = standin::cuda();
    let some = ["--seed", "5", "--filter", "f8e4m3: max of", "--full"];
    let listed = unisono(&cuda, &[&CHECK[..], &some, &["--list"]].concat(), &[]);
    ends(&listed, 0, &["f8e4m3: max of 16, mixed forms\n"]);
    let names = String::from_utf8_lossy(&listed.stdout).lines().count();
    assert_eq!(names, 32, "1 to 16 sources, native and mixed");
    let output = unisono(&cuda, &[&CHECK[..], &some, &["--json"]].concat(), &[]);
    ends(&output, 0, &[]);
    let counts: serde_json::Value =
        serde_json::from_slice(&output.stdout).expect("one object, for nothing has failed");
    assert_eq!((&counts["passed"], &counts["failed"]), (&names.into(), &0.into()), "{counts}");
    assert_eq!((&counts["seed"], &counts["skipped"]), (&5.into(), &0.into()), "{counts}");
    let large = ["--filter", "f32: sum of 2, large", "-v"];
    let output = unisono(&cuda, &[&CHECK[..], &large].concat(), &[]);
    ends(&output, 0, &["passed  f32 f32: sum of 2, large\n", "1 passed, 0 failed, 0 skipped"]);
}

/// The smaller of two for the larger, and a byte past the end.
fn broken() -> std::path::PathBuf {
    let twin = Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda/twin.cpp");
    let twin = std::fs::read_to_string(twin).expect("a source");
    let launch = "int unisono_twin_launch(";
    let (head, tail) = twin.split_once(launch).expect("a launch");
    let tail = tail.replacen("find(name)", "find(broken(name))", 1);
    let tail = tail.replacen("    return 0;", "    touch(name, arguments);\n    return 0;", 1);
    let faults = r#"
static const char *broken(const char *name) {
    return strcmp(name, "unisono_fold_f32_max_4") ? name : "unisono_fold_f32_min_4";
}

static void touch(const char *name, const void *arguments) {
    if (strcmp(name, "unisono_round_bf16")) return;
    const unisono_round_arguments *of = static_cast<const unisono_round_arguments *>(arguments);
    reinterpret_cast<char *>(of->target)[2 * of->count] = 0;
}
"#;
    standin::cuda_with(Some(&format!("{head}{faults}\n{launch}{tail}")), &[])
}

#[test]
fn a_kernel_that_is_wrong_is_named_with_what_it_takes_to_see_it_again() {
    with_kernels!("the check of CUDA kernels that are wrong");
    let broken = broken();
    let some = ["--quick", "--seed", "3", "--filter", "f32: m"];
    let output = unisono(&broken, &[&CHECK[..], &some].concat(), &[]);
    let words = [
        "FAILED  f32: max of 3",
        "unisono_fold_f32_max_4: element ",
        " of target 0: got 0x",
        ", expected 0x",
        "f32 max, 17 elements from Native+",
        "unisono check --kernels --device 0 --quick --seed 3 --filter \"f32: max of 3\"",
        "failed, 0 skipped",
    ];
    ends(&output, 1, &words);
    for word in ["FAILED  f32: min", "rank 0"] {
        assert!(!text(&output).contains(word), "{}", text(&output));
    }
    let again = ["--quick", "--seed", "3", "--filter", "f32: max of 3", "--json"];
    let output = unisono(&broken, &[&CHECK[..], &again].concat(), &[]);
    ends(&output, 1, &[]);
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    let first = lines.lines().next().expect("a line");
    let failure: serde_json::Value = serde_json::from_str(first).expect("an object");
    assert_eq!(failure["case"], "f32: max of 3");
    let what = failure["failed"].as_str().expect("a text");
    assert!(text(&unisono(&broken, &[&CHECK[..], &some].concat(), &[])).contains(what), "{what}");
}

#[test]
fn a_kernel_that_writes_past_its_target_is_named() {
    with_kernels!("the check of CUDA kernels that write too much");
    let some = ["--quick", "--filter", "stochastic"];
    let output = unisono(&broken(), &[&CHECK[..], &some].concat(), &[]);
    let words = [
        "FAILED  bf16: stochastic rounding from f32",
        "unisono_round_bf16: the byte 0 past the end of the target: got 0x00, expected 0xa5",
        "3 passed, 1 failed, 0 skipped",
    ];
    ends(&output, 1, &words);
}

#[test]
fn what_the_check_lacks_is_named() {
    let cuda = standin::cuda();
    let quick = |device: &'static str| ["check", "--kernels", "--quick", "--device", device];
    if bytes_image().is_none() {
        return ends(
            &unisono(&cuda, &quick("0"), &[]),
            1,
            &["UNSUPPORTED", "without CUDA kernels"],
        );
    }
    let nowhere = Path::new("/nowhere/libcuda.so.1");
    let words = ["UNSUPPORTED", "/nowhere/libcuda.so.1", "no CUDA driver"];
    ends(&unisono(nowhere, &quick("0"), &[]), 1, &words);
    let words = ["INVALID_ARGUMENT", "no device 7", "has 1"];
    ends(&unisono(&cuda, &quick("7"), &[]), 1, &words);
    let none = [("STANDIN_CUDA_DEVICES", "0")];
    ends(&unisono(&cuda, &quick("0"), &none), 1, &["UNSUPPORTED", "CUDA_ERROR_NO_DEVICE"]);
    let small = [("STANDIN_CUDA_MEMORY", "100")];
    let words = ["OUT_OF_MEMORY", "0 passed, 1 failed", "the device had no memory before"];
    ends(&unisono(&cuda, &quick("0"), &small), 1, &words);
    let lost = [("STANDIN_CUDA_FAIL", "cuLaunchKernel:9:719")];
    let words = ["BACKEND", "lost to this process", " 1 failed", "the device was lost before"];
    ends(&unisono(&cuda, &quick("0"), &lost), 1, &words);
    let nothing = [&CHECK[..], &["--filter", "no such case"]].concat();
    ends(&unisono(&cuda, &nothing, &[]), 2, &["no case has \"no such case\""]);
}

#[test]
fn options_that_do_not_go_together_are_refused() {
    let cuda = standin::cuda();
    for arguments in [
        &["check", "--kernels"][..],
        &["check", "--json"],
        &["check", "--kernels", "--device", "0", "--link", "mem"],
        &["perf"],
        &["perf", "--kernels"],
        &["perf", "all_reduce", "--min-ratio", "0.5"],
        &["perf", "all_reduce", "--kernels", "--device", "0"],
        &["perf", "--kernels", "--device", "0", "-d", "f32"],
        &["perf", "--kernels", "--device", "0", "--min-ratio", "nan"],
        &["perf", "--kernels", "--device", "0", "-b", "8"],
        &["perf", "--kernels", "--device", "0", "-b", "2G"],
    ] {
        ends(&unisono(&cuda, arguments, &[]), 2, &["unisono: "]);
    }
}

const SMALL: [&str; 10] = ["-b", "1000", "-e", "16K", "-f", "16", "--rounds", "3", "--iters", "2"];

#[test]
fn perf_prints_every_kernel_beside_the_copy() {
    with_kernels!("perf of CUDA kernels");
    let cuda = standin::cuda();
    let output = unisono(&cuda, &[&PERF[..], &SMALL].concat(), &[]);
    let words = ["sum of 8", "f8e5m2 to f32", "f32 to bf16, stochastic", " of 56 rows have 0.92"];
    ends(&output, 0, &words);
    let output = unisono(&cuda, &[&PERF[..], &SMALL, &["--json"]].concat(), &[]);
    ends(&output, 0, &[]);
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    let all: Vec<serde_json::Value> =
        lines.lines().map(|line| serde_json::from_str(line).expect("an object")).collect();
    assert_eq!(all.len(), 2 * 29 + 1);
    let (last, rows) = all.split_last().expect("lines");
    assert_eq!((&last["rows"], &last["target"]), (&56.into(), &0.92.into()), "{last}");
    let fold = |row: &&serde_json::Value| {
        row["kernel"] == "sum of 4" && row["dtype"] == "f8e4m3" && row["bytes"] == 16_000
    };
    let fold = rows.iter().find(fold).expect("a fold");
    assert_eq!(fold["moved"], 5 * 16_000);
    let number = |name: &str| fold[name].as_f64().expect("a number");
    let bandwidth = number("moved") / number("median_us") / 1e3;
    assert!((number("bandwidth") / bandwidth - 1.0).abs() < 1e-6, "{fold}");
    assert!(number("ratio") > 0.0);
    assert_eq!((&rows[0]["kernel"], &rows[0]["ratio"]), (&"copy".into(), &().into()));
}

#[test]
fn perf_fails_below_the_ratio_that_is_asked_for() {
    with_kernels!("perf of CUDA kernels that are slow");
    let cuda = standin::cuda();
    let with = |ratio| [&PERF[..], &SMALL, &["--min-ratio", ratio]].concat();
    ends(&unisono(&cuda, &with("0"), &[]), 0, &[]);
    ends(&unisono(&cuda, &with("1e9"), &[]), 1, &["56 of 56 rows have less than 1000000000"]);
}

#[test]
fn perf_measures_what_there_is_memory_for() {
    with_kernels!("perf of CUDA kernels in little memory");
    let cuda = standin::cuda();
    let little = [("STANDIN_CUDA_MEMORY", "1048576")];
    let sizes = ["-b", "4K", "-e", "1M", "-f", "16", "--rounds", "1", "--iters", "1"];
    let output = unisono(&cuda, &[&PERF[..], &sizes].concat(), &little);
    ends(&output, 0, &["left out, for want of memory: 1 MiB", " of 56 rows"]);
    let large = [&PERF[..], &["-b", "1M", "-e", "1M"]].concat();
    let words = ["OUT_OF_MEMORY", "9 buffers of 1048576 bytes", "-b and -e"];
    ends(&unisono(&cuda, &large, &little), 1, &words);
    ends(&unisono(Path::new("/nowhere"), &PERF, &[]), 1, &["UNSUPPORTED", "no CUDA driver"]);
    let lost = [("STANDIN_CUDA_FAIL", "cuLaunchKernel:9:719")];
    ends(&unisono(&cuda, &[&PERF[..], &SMALL].concat(), &lost), 1, &["BACKEND", "lost"]);
}
