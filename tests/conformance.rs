//! The program's own suite and measurements, run as a user runs them.
#![allow(missing_docs)]

use std::process::{Command, Output};

#[path = "support/library.rs"]
mod library;
#[path = "support/standin_rdma.rs"]
mod standin_rdma;

fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_unisono"));
    // Whoever runs the tests may be a rank of something else.
    for (name, _) in std::env::vars() {
        if name.starts_with("UNISONO_") {
            command.env_remove(name);
        }
    }
    command.args(arguments);
    command
}

fn unisono(arguments: &[&str]) -> Output {
    program(arguments).output().expect("the program starts")
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[test]
fn the_quick_suite_passes_on_every_link() {
    let output = unisono(&["check", "--quick"]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains(" 0 failed"), "{}", text(&output));
    // A line for each link and world, with cases that passed in each.
    for link in ["mem", "shm", "tcp"] {
        for world in ["1", "2", "3", "4", "5", "8"] {
            let row = text(&output).lines().any(|line| {
                let words: Vec<&str> = line.split_whitespace().collect();
                words.starts_with(&[link, world]) && words[2] != "0"
            });
            assert!(row, "{link} {world}: {}", text(&output));
        }
    }
}

/// By the stand-in for libibverbs and librdmacm: one card, two that share the bytes, one whose
/// writes tell nothing by themselves (iWARP), and one whose requests carry nothing in themselves.
#[test]
fn the_quick_suite_passes_over_rdma() {
    let library = standin_rdma::rdma();
    for (ranks, variable) in [
        ("2,3", ("STANDIN_RDMA_DEVICES", "1")),
        ("2", ("STANDIN_RDMA_DEVICES", "2")),
        ("2", ("STANDIN_RDMA_IWARP", "1")),
        ("4", ("STANDIN_RDMA_INLINE", "0")),
    ] {
        let mut command = program(&["check", "--quick", "--link", "rdma", "-n", ranks]);
        command.env("UNISONO_IBVERBS_LIB", &library).env("UNISONO_RDMACM_LIB", &library);
        command.env(variable.0, variable.1);
        let output = command.output().expect("the program starts");
        assert!(output.status.success(), "{variable:?}: {}", text(&output));
        assert!(text(&output).contains(" 0 failed"), "{variable:?}: {}", text(&output));
    }
}

/// The same by sockets: as they are, and where the library takes little at a time.
#[test]
fn the_quick_suite_passes_over_rsockets() {
    let library = standin_rdma::rdma();
    for (ranks, short) in [("2,3", "0"), ("2", "3000")] {
        let mut command = program(&["check", "--quick", "--link", "rsocket", "-n", ranks]);
        command.env("UNISONO_IBVERBS_LIB", &library).env("UNISONO_RDMACM_LIB", &library);
        command.env("STANDIN_RSOCKET_SHORT", short);
        let output = command.output().expect("the program starts");
        assert!(output.status.success(), "{short}: {}", text(&output));
        assert!(text(&output).contains(" 0 failed"), "{short}: {}", text(&output));
    }
}

#[test]
fn a_filter_chooses_cases_and_one_that_fits_none_is_an_error() {
    let some = ["--quick", "--filter", "together: an empty group"];
    let output = unisono(&[&["check", "-n", "2"], &some[..]].concat());
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("3 passed, 0 failed, 0 skipped"), "{}", text(&output));
    let output = unisono(&[&["check", "-n", "2", "--list"], &some[..]].concat());
    assert_eq!(text(&output), "2 ranks, together: an empty group\n");
    for list in [&[][..], &["--list"]] {
        let output = unisono(&[&["check", "--filter", "no such case"], list].concat());
        assert_eq!(output.status.code(), Some(2), "{}", text(&output));
        assert!(text(&output).contains("no case has \"no such case\""), "{}", text(&output));
    }
}

#[test]
fn check_fails_when_nothing_is_right() {
    let output = unisono(&["check", "-n", "0"]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
}

/// Every operation on every link, its lines parsed and its data found right.
#[test]
fn perf_prints_a_line_of_json_for_each_size() {
    let ops = [
        "all_reduce",
        "all_gather",
        "reduce_scatter",
        "broadcast",
        "reduce",
        "gather",
        "scatter",
        "all_to_all",
        "all_to_all_v",
        "all_gather_v",
        "reduce_scatter_v",
        "gather_v",
        "scatter_v",
        "sendrecv",
        "barrier",
    ];
    for link in ["mem", "shm", "tcp"] {
        for op in ops {
            let sizes = ["-b", "8", "-e", "128K", "-f", "128", "--iters", "3", "--rounds", "2"];
            let output =
                unisono(&[&["perf", op, "-n", "3", "--link", link, "--json"], &sizes[..]].concat());
            assert!(output.status.success(), "{link} {op}: {}", text(&output));
            let lines: Vec<serde_json::Value> = String::from_utf8_lossy(&output.stdout)
                .lines()
                .map(|line| serde_json::from_str(line).expect("a line of JSON"))
                .collect();
            let bytes: Vec<u64> = lines.iter().filter_map(|line| line["bytes"].as_u64()).collect();
            let expected: &[u64] = if op == "barrier" { &[0] } else { &[8, 1024, 131_072] };
            assert_eq!(bytes, expected, "{link} {op}");
            // 8 bytes are two elements: none for one of three ranks, so each moves one.
            let least = match op {
                "barrier" => 0,
                "all_reduce" | "broadcast" | "reduce" | "sendrecv" => 8,
                _ => 12,
            };
            assert_eq!(lines[0]["moved"], least, "{link} {op}");
            for line in &lines {
                assert_eq!((&line["op"], &line["link"]), (&op.into(), &link.into()));
                assert_eq!((&line["ranks"], &line["wrong"]), (&3.into(), &0.into()), "{line}");
                for key in ["median_us", "min_us"] {
                    assert!(line[key].as_f64().is_some_and(|us| us > 0.0), "{key} of {line}");
                }
                assert!(line["algbw"].is_number() && line["busbw"].is_number(), "{line}");
            }
        }
    }
}

#[test]
fn perf_takes_every_type_reduction_and_root() {
    let rest = ["-b", "4K", "-e", "4K", "--iters", "1", "--rounds", "1", "-n", "2"];
    for extra in [
        &["all_reduce", "-d", "all", "-o", "all"][..],
        &["broadcast", "-r", "all"],
        &["reduce", "--deterministic", "-o", "sum", "-d", "all"],
        &["all_gather", "--registered"],
        &["alltoall", "--in-place"],
        &["all_reduce", "--algo", "ring", "-c", "3"],
    ] {
        let output = unisono(&[&["perf"], extra, &rest[..]].concat());
        assert!(output.status.success(), "{extra:?}: {}", text(&output));
        assert!(text(&output).contains("# Wrong elements : 0 OK"), "{extra:?}: {}", text(&output));
    }
}

/// The rows of JSON of a short run between two ranks.
fn rows(arguments: &[&str]) -> Vec<serde_json::Value> {
    let short = ["--iters", "2", "--rounds", "2", "-n", "2", "--json"];
    let output = unisono(&[&["perf", "all_reduce"], arguments, &short[..]].concat());
    assert!(output.status.success(), "{arguments:?}: {}", text(&output));
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    lines.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

#[test]
fn perf_steps_through_sizes_and_places_as_asked() {
    let sizes = |arguments: &[&str]| -> Vec<u64> {
        rows(arguments).iter().filter_map(|row| row["bytes"].as_u64()).collect()
    };
    assert_eq!(sizes(&["-b", "1K", "-e", "4K", "-i", "1K"]), [1024, 2048, 3072, 4096]);
    assert_eq!(sizes(&["-b", "1K", "-e", "9K", "-f", "3"]), [1024, 3072, 9216]);
    assert_eq!(sizes(&["-b", "64", "-e", "64", "-w", "3", "-t", "30", "--seed", "9"]), [64]);
    let places = |arguments: &[&str]| -> Vec<bool> {
        let all = [arguments, &["-b", "64", "-e", "64"]].concat();
        rows(&all).iter().filter_map(|row| row["in_place"].as_bool()).collect()
    };
    assert_eq!(places(&["--out-of-place"]), [false]);
    assert_eq!(places(&["--in-place"]), [true]);
    // The table has both unless one is asked for.
    let table = |arguments: &[&str]| {
        let short = ["perf", "all_reduce", "-b", "64", "-e", "64", "--iters", "1", "--rounds", "1"];
        let output = unisono(&[&short[..], arguments].concat());
        assert!(output.status.success(), "{arguments:?}: {}", text(&output));
        text(&output)
    };
    let both = table(&[]);
    assert!(both.contains("out of place") && both.contains("in place   "), "{both}");
    let apart = table(&["--out-of-place"]);
    assert_eq!(apart.matches("busbw").count() + 1, both.matches("busbw").count(), "{apart}");
}

#[test]
fn perf_binds_ranks_and_fails_below_a_bandwidth() {
    let run = |arguments: &[&str]| {
        let short = ["perf", "all_reduce", "-n", "2", "-b", "4K", "-e", "4K", "--rounds", "1"];
        unisono(&[&short[..], &["--iters", "2"], arguments].concat())
    };
    for bind in ["auto", "always", "never"] {
        let output = run(&["--bind", bind]);
        assert!(output.status.success(), "{bind}: {}", text(&output));
    }
    assert_eq!(run(&["--bind", "sometimes"]).status.code(), Some(2));
    let slow = run(&["--min-bw", "1e9"]);
    assert_eq!(slow.status.code(), Some(1), "{}", text(&slow));
    assert!(text(&slow).contains("is below 1000000000 GB/s"), "{}", text(&slow));
    assert!(run(&["--min-bw", "0"]).status.success());
}

#[test]
fn perf_refuses_what_it_does_not_know() {
    for arguments in [
        &["perf", "no_such_op"][..],
        &["perf", "all_reduce", "-d", "f31"],
        &["perf", "all_reduce", "-o", "median"],
        &["perf", "all_reduce", "-o", "band", "-d", "f32"],
        &["perf", "broadcast", "-r", "2", "-n", "2"],
        &["perf", "all_reduce", "-b", "12X"],
        &["perf", "all_reduce", "-b", "2M", "-e", "1M"],
        &["perf", "all_reduce", "--algo", "best"],
        &["perf", "all_reduce", "-n", "0"],
        &["perf", "all_reduce", "-t", "0"],
        &["perf", "all_reduce", "-f", "2", "-i", "8"],
        &["perf", "all_reduce", "-f", "1"],
        &["perf", "all_reduce", "--in-place", "--out-of-place"],
        &["perf", "all_reduce", "--seed", "x"],
    ] {
        let output = unisono(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", text(&output));
    }
}
