//! Calls on memory of GPUs, on stand-ins for the CUDA driver and for NCCL: the program's own suite,
//! and what users see where something is missing.
#![allow(missing_docs)]

#[path = "support/library.rs"]
mod library;
#[path = "support/program.rs"]
mod program;
#[path = "support/standin.rs"]
mod standin;
#[path = "support/standin_nccl.rs"]
#[allow(dead_code, reason = "other tests build other kinds")]
mod standin_nccl;

use std::process::Output;

use program::{clean, text};

/// The program, with nothing of the environment but what is given.
fn unisono(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = clean(env!("CARGO_BIN_EXE_unisono"));
    command.args(arguments).envs(variables.iter().copied());
    command.output().expect("the program starts")
}

fn passes(arguments: &[&str], variables: &[(&str, &str)]) {
    let output = unisono(arguments, variables);
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains(" 0 failed"), "{}", text(&output));
}

fn on_device(arguments: &[&str]) {
    let cuda = standin::cuda();
    let all = [&["check", "--quick", "--device", "0"], arguments].concat();
    passes(&all, &[("UNISONO_CUDA_LIB", cuda.to_str().expect("UTF-8"))]);
}

/// One device makes the calls on all ranks' memory, with the kernels.
#[test]
fn the_quick_suite_passes_on_device_memory_of_threads() {
    on_device(&["--link", "mem", "-n", "1,2"]);
}

/// The same by way of CUDA IPC.
#[test]
fn the_quick_suite_passes_on_device_memory_of_processes() {
    on_device(&["--link", "shm", "-n", "2"]);
}

/// Two devices, which take a share each; two ranks have one of them.
#[test]
fn ranks_with_devices_of_their_own_share_the_work() {
    let cuda = standin::cuda();
    let variables =
        [("UNISONO_CUDA_LIB", cuda.to_str().expect("UTF-8")), ("STANDIN_CUDA_DEVICES", "2")];
    for link in ["mem", "shm"] {
        let fixed = ["check", "--quick", "--device", "local_rank", "-n", "3", "--link", link];
        passes(&[&fixed[..], &["--filter", "blocks"]].concat(), &variables);
        passes(&[&fixed[..], &["--filter", "types"]].concat(), &variables);
    }
}

/// By way of host memory.
#[test]
fn calls_on_device_memory_pass_over_sockets() {
    on_device(&["--link", "tcp", "-n", "2", "--filter", "counts"]);
    on_device(&["--link", "tcp", "-n", "3", "--filter", "together"]);
}

fn with_nccl(arguments: &[&str]) {
    let (cuda, nccl) = (standin::cuda(), standin_nccl::nccl());
    let all = [&["check", "--quick", "--device", "0", "--backend", "nccl"], arguments].concat();
    let variables = [
        ("UNISONO_CUDA_LIB", cuda.to_str().expect("UTF-8")),
        ("UNISONO_NCCL_LIB", nccl.to_str().expect("UTF-8")),
        ("NCCL_MULTI_RANK_GPU_ENABLE", "1"),
    ];
    passes(&all, &variables);
}

#[test]
fn the_quick_suite_passes_with_nccl_on_one_rank() {
    with_nccl(&["--link", "mem", "-n", "1"]);
}

#[test]
fn the_quick_suite_passes_with_nccl_on_two_processes() {
    with_nccl(&["--link", "shm", "-n", "2"]);
}

/// Older ones lack calls and types, which are made of others.
#[test]
fn old_versions_of_nccl_give_the_same_results() {
    let (cuda, nccl) = (standin::cuda(), standin_nccl::nccl());
    for (version, cases) in [("21805", "blocks"), ("22304", "types")] {
        let variables = [
            ("UNISONO_CUDA_LIB", cuda.to_str().expect("UTF-8")),
            ("UNISONO_NCCL_LIB", nccl.to_str().expect("UTF-8")),
            ("STANDIN_CUDA_DEVICES", "2"),
            ("STANDIN_NCCL_VERSION", version),
        ];
        let fixed = ["check", "--quick", "--device", "local_rank", "--backend", "nccl"];
        passes(
            &[&fixed[..], &["--link", "mem", "-n", "2", "--filter", cases]].concat(),
            &variables,
        );
    }
}

#[test]
fn perf_measures_device_memory_in_a_stream_and_without() {
    let cuda = standin::cuda();
    let variables = [("UNISONO_CUDA_LIB", cuda.to_str().expect("UTF-8"))];
    for more in [&[][..], &["--wait"]] {
        let fixed = ["perf", "all_reduce", "--device", "0", "--link", "shm", "-n", "2", "-b", "8"];
        let sizes = ["-e", "4K", "-f", "64", "--rounds", "2", "--iters", "5"];
        let output = unisono(&[&fixed[..], &sizes, more].concat(), &variables);
        assert!(output.status.success(), "{}", text(&output));
        assert!(text(&output).contains("Wrong elements : 0 OK"), "{}", text(&output));
    }
}

fn refused(arguments: &[&str], variables: &[(&str, &str)], words: &[&str]) {
    let output = unisono(arguments, variables);
    assert!(!output.status.success(), "{}", text(&output));
    for word in words {
        assert!(text(&output).contains(word), "{word}: {}", text(&output));
    }
}

const PERF: &[&str] =
    &["perf", "all_reduce", "-b", "8", "-e", "8", "--link", "mem", "-n", "1", "--device"];

#[test]
fn what_is_missing_is_named() {
    let cuda = standin::cuda();
    let cuda = cuda.to_str().expect("UTF-8");
    let on = |device: &'static str| [PERF, &[device]].concat();
    let nowhere = [("UNISONO_CUDA_LIB", "/nowhere/libcuda.so.1")];
    refused(&on("0"), &nowhere, &["UNSUPPORTED", "/nowhere/libcuda.so.1"]);
    refused(&on("0"), &[("UNISONO_CUDA_LIB", "libm.so.6")], &["UNSUPPORTED", "no CUDA driver"]);
    let old = [("UNISONO_CUDA_LIB", cuda), ("STANDIN_CUDA_VERSION", "11040")];
    refused(&on("0"), &old, &["UNSUPPORTED", "11.4", "12.0"]);
    refused(&on("7"), &[("UNISONO_CUDA_LIB", cuda)], &["device"]);
    let small = [("UNISONO_CUDA_LIB", cuda), ("STANDIN_CUDA_MEMORY", "100")];
    refused(&on("0"), &small, &["OUT_OF_MEMORY"]);
    let lost = [("UNISONO_CUDA_LIB", cuda), ("STANDIN_CUDA_FAIL", "cuLaunchKernel:*:719")];
    refused(&on("0"), &lost, &["BACKEND", "lost"]);
    let none = [("UNISONO_CUDA_LIB", cuda), ("UNISONO_NCCL_LIB", "/nowhere/libnccl.so.2")];
    let nccl = [&on("0")[..], &["--backend", "nccl"]].concat();
    refused(&nccl, &none, &["UNSUPPORTED", "/nowhere/libnccl.so.2"]);
    let without = ["perf", "all_reduce", "--backend", "nccl", "--link", "mem", "-n", "1"];
    refused(&without, &none, &["UNSUPPORTED", "rank 0 has no GPU"]);
}

#[test]
fn ranks_that_share_a_gpu_are_not_nccls_unless_it_is_told_so() {
    let (cuda, nccl) = (standin::cuda(), standin_nccl::nccl());
    let variables = [
        ("UNISONO_CUDA_LIB", cuda.to_str().expect("UTF-8")),
        ("UNISONO_NCCL_LIB", nccl.to_str().expect("UTF-8")),
    ];
    let two = ["perf", "all_reduce", "-b", "8", "-e", "8", "--link", "shm", "-n", "2"];
    let asked = [&two[..], &["--device", "0", "--backend", "nccl"]].concat();
    refused(&asked, &variables, &["UNSUPPORTED", "ranks 0 and 1 share a GPU"]);
    let left = [&two[..], &["--device", "0", "--iters", "5"]].concat();
    let output = unisono(&left, &variables);
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("not by NCCL: ranks 0 and 1 share a GPU"), "{}", text(&output));
}
