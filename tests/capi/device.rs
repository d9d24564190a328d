//! train_lm on memory of GPUs: on stand-ins for the CUDA driver and for NCCL, and on a GPU where
//! this machine has one.

use super::training::{program, result};
use super::*;

/// A short run, with these variables.
fn demo(arguments: &[&str], variables: &[(&str, &str)]) -> Command {
    let mut command = watched(&program());
    command.args(["--deterministic", "--width", "32", "--layers", "1", "--bucket-kib", "16"]);
    command.args(["--steps", "4"]).args(arguments).arg("ffi/examples/train_lm.c");
    command.envs(variables.iter().copied());
    command
}

/// The same on every rank of a job; what each said.
#[track_caller]
fn job(world: usize, arguments: &[&str], variables: &[(&str, &str)]) -> Vec<String> {
    ranks(world, || demo(&[&["--json"], arguments].concat(), variables))
}

#[track_caller]
fn checksum_in_host_memory(world: usize, arguments: &[&str]) -> String {
    let said = job(world, &[&["--device", "none"], arguments].concat(), &[]);
    assert_eq!(
        (result(&said, "backend"), result(&said, "device")),
        ("native".into(), "null".into())
    );
    result(&said, "checksum")
}

/// The libraries in the place of CUDA's driver and of NCCL.
fn stand_ins() -> &'static (String, String) {
    static BOTH: OnceLock<(String, String)> = OnceLock::new();
    let text = |path: PathBuf| path.into_os_string().into_string().expect("UTF-8");
    BOTH.get_or_init(|| (text(standin::cuda()), text(standin_nccl::nccl())))
}

/// Variables for a job on the stand-in for the driver, whose work begins late: what is not in order
/// is too early then.
fn cuda() -> [(&'static str, &'static str); 2] {
    [("UNISONO_CUDA_LIB", &stand_ins().0), ("STANDIN_CUDA_DELAY_US", "200")]
}

/// Variables for a job that shares the stand-in's GPU on `backend`.
pub(super) fn sharing(backend: &'static str) -> Vec<(&'static str, &'static str)> {
    let nccl = ("UNISONO_NCCL_LIB", &*stand_ins().1);
    let more = [("UNISONO_BACKEND", backend), nccl, ("NCCL_MULTI_RANK_GPU_ENABLE", "1")];
    [&cuda()[..], &more].concat()
}

/// Runs a job on `backend` that leaves nothing behind on the GPU; what each rank said.
#[track_caller]
fn on_gpu(world: usize, backend: &'static str, arguments: &[&str]) -> Vec<String> {
    let folder = scratch(&format!("device-{world}-{backend}-{}", arguments.concat()));
    let leaks = folder.join("%p").into_os_string().into_string().expect("UTF-8");
    let mut variables: Vec<(&str, &str)> = sharing(backend);
    variables.push(("STANDIN_CUDA_LEAKS", &leaks));
    let said = job(world, arguments, &variables);
    assert_eq!((result(&said, "backend"), result(&said, "device")), (backend.into(), "0".into()));
    let place = format!("exchanging in memory of GPU 0, backend {backend}");
    assert!(said[0].contains(&place), "{}", said[0]);
    let files: Vec<_> = fs::read_dir(&folder).expect("folder").collect();
    assert_eq!(files.len(), world, "each process says what it leaves");
    for file in files {
        let text = fs::read_to_string(file.expect("file").path()).expect("what is left");
        let left: Vec<_> = text.lines().filter(|line| !line.ends_with(" 0")).collect();
        assert!(left.is_empty(), "{left:?}");
    }
    said
}

#[test]
fn the_weights_are_those_of_host_memory() {
    let exact = checksum_in_host_memory(1, &[]);
    for (world, mode) in [(1, "allreduce"), (2, "allreduce"), (4, "allreduce"), (2, "sharded")] {
        let said = on_gpu(world, "native", &["--mode", mode]);
        assert_eq!(result(&said, "checksum"), exact, "{mode} on {world} ranks");
    }
    for mode in ["allreduce", "sharded"] {
        let said = on_gpu(2, "nccl", &["--mode", mode]);
        assert_eq!(result(&said, "checksum"), exact, "{mode} by NCCL");
    }
    let local = ["--mode", "local", "--average-every", "2"];
    let averaged = checksum_in_host_memory(2, &local);
    for backend in ["native", "nccl"] {
        assert_eq!(result(&on_gpu(2, backend, &local), "checksum"), averaged, "{backend}");
    }
}

#[test]
fn what_keeps_nccl_away_is_said() {
    let mut variables = cuda().to_vec();
    variables.push(("UNISONO_NCCL_LIB", &stand_ins().1));
    let said = &job(2, &[], &variables)[0];
    assert!(said.contains("backend native (not by NCCL: ranks 0 and 1 share a GPU"), "{said}");
}

#[test]
fn a_checkpoint_goes_from_one_kind_of_memory_to_the_other() {
    let exact = checksum_in_host_memory(1, &[]);
    let file = scratch("device-checkpoint").join("checkpoint");
    let file = ["--checkpoint", file.to_str().expect("text")];
    let first = [&file[..], &["--steps", "2", "--mode", "sharded"]].concat();
    on_gpu(2, "native", &first);
    let resumed = [&file[..], &["--resume"]].concat();
    assert_eq!(checksum_in_host_memory(2, &resumed), exact, "host memory goes on");
    on_gpu(2, "native", &first);
    assert_eq!(result(&on_gpu(2, "nccl", &resumed), "checksum"), exact, "the GPU goes on");
}

#[test]
fn a_rank_without_a_gpu_keeps_the_others_in_host_memory() {
    let mut nth = 0;
    let said = ranks(2, || {
        nth += 1;
        let mut command = demo(&["--json"], &cuda());
        if nth == 2 {
            command.env("UNISONO_CUDA_LIB", "/nowhere/libcuda.so.1");
        }
        command
    });
    assert_eq!(result(&said, "device"), "null");
    let words = "exchanging in host memory, backend native (no GPU: another rank has none)";
    assert!(said[0].contains(words), "{}", said[0]);
}

/// The stand-in for the driver, and another variable.
fn with<'a>(name: &'a str, value: &'a str) -> [(&'a str, &'a str); 2] {
    [cuda()[0], (name, value)]
}

/// What a run that must fail with status 1 says.
#[track_caller]
fn failed(arguments: &[&str], variables: &[(&str, &str)], words: &[&str]) {
    let output = demo(arguments, variables).output().expect("train_lm");
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for word in words {
        assert!(said.contains(word), "{word}: {said}");
    }
}

/// A rank that runs far ahead of a late one: what it puts behind a call comes after it.
#[test]
fn work_behind_a_call_waits_for_a_late_rank() {
    let flags = ["-std=c11", "-pthread", "-O2"];
    let behind = compile("behind", &["tests/capi/behind.c"], &flags);
    for backend in ["native", "nccl"] {
        let said = ranks(2, || {
            let mut command = watched(&behind);
            command.args(["1000", "100"]).envs(sharing(backend));
            command
        });
        assert!(said.iter().all(|text| text.contains("all of it came after the call")), "{said:?}");
    }
}

#[test]
fn what_is_missing_or_fails_is_named() {
    let missing = [("UNISONO_CUDA_LIB", "/nowhere/libcuda.so.1")];
    failed(&["--device", "0"], &missing, &["--device 0: no CUDA driver: /nowhere/libcuda.so.1"]);
    let said = job(1, &[], &missing);
    assert!(said[0].contains("host memory, backend native (no GPU: no CUDA driver"), "{said:?}");
    let other = [("UNISONO_CUDA_LIB", "libm.so.6")];
    failed(&["--device", "0"], &other, &["libm.so.6 is no CUDA driver: it has no cuInit"]);
    failed(&["--device", "3"], &cuda(), &["there is no GPU 3: they are numbered from 0 to 0"]);
    failed(&[], &with("UNISONO_DEVICE", "3"), &["there is no GPU 3"]);
    let old = with("STANDIN_CUDA_VERSION", "11040");
    failed(&["--device", "0"], &old, &["UNSUPPORTED", "11.4"]);
    assert_eq!(result(&job(1, &[], &old), "device"), "null", "the library takes no such driver");
    assert_eq!(result(&job(1, &[], &with("STANDIN_CUDA_DEVICES", "0")), "device"), "null");
    assert_eq!(result(&job(1, &[], &with("UNISONO_DEVICE", "none")), "device"), "null");
    let small = with("STANDIN_CUDA_MEMORY", "100000");
    failed(&[], &small, &["rank 0: GPU 0: cuMemAlloc: ", "CUDA_ERROR_OUT_OF_MEMORY, 2"]);
    // The communicator that is made to see whether there is one ends with two of the last.
    for call in ["cuMemcpyHtoDAsync_v2:5", "cuMemcpyDtoHAsync_v2:5", "cuStreamSynchronize:3"] {
        let fails = format!("{call}:719");
        failed(&[], &with("STANDIN_CUDA_FAIL", &fails), &["GPU 0: cu", "LAUNCH_FAILED, 719"]);
    }
    for call in ["cuDevicePrimaryCtxRetain", "cuCtxSetCurrent", "cuStreamCreateWithPriority"] {
        let fails = format!("{call}:1:2");
        let said = job(1, &[], &with("STANDIN_CUDA_FAIL", &fails));
        assert!(said[0].contains(&format!("(no GPU: {call}: ")), "{said:?}");
    }
}

#[test]
fn ranks_spread_over_the_gpus_of_their_host() {
    let said = job(4, &["--quiet"], &with("STANDIN_CUDA_DEVICES", "2"));
    assert_eq!(result(&said, "checksum"), checksum_in_host_memory(1, &[]));
}

/// The driver of this machine, if it has one.
#[test]
fn the_weights_are_the_same_on_a_real_gpu() {
    let probe = demo(&["--device", "0", "--steps", "0"], &[]).output().expect("train_lm");
    if !probe.status.success() {
        skip(&format!("no GPU: {}", text(&probe).trim()));
        return;
    }
    let exact = checksum_in_host_memory(1, &[]);
    for world in [1, 2, 4] {
        let said = job(world, &["--device", "0"], &[("UNISONO_BACKEND", "native")]);
        assert_eq!(result(&said, "checksum"), exact, "{world} ranks");
    }
}
