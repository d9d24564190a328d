//! What the program says of the CUDA driver: the stand-in of `tests/standin`, or none.
#![allow(missing_docs)]

#[path = "support/library.rs"]
mod library;
#[path = "support/standin.rs"]
mod standin;

use std::path::Path;
use std::process::Command;

fn info(library: &Path, variables: &[(&str, &str)], json: bool) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_unisono"));
    command.arg("info").args(json.then_some("--json")).env("UNISONO_CUDA_LIB", library);
    let output = command.envs(variables.iter().copied()).output().expect("the program");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn info_names_the_driver_and_its_devices() {
    let library = standin::cuda();
    let variables = [("STANDIN_CUDA_DEVICES", "2"), ("STANDIN_CUDA_VERSION", "12040")];
    let text = info(&library, &variables, false);
    let driver = format!("CUDA 12.4: {}, named by UNISONO_CUDA_LIB", library.display());
    let device = "device 1: Stand-in GPU, compute capability 9.0, 4 multiprocessors, 1024 MiB, at \
                  0000:02:00.0";
    assert!(text.contains(&driver) && text.contains(device), "{text}");
    let value: serde_json::Value =
        serde_json::from_str(&info(&library, &variables, true)).expect("JSON");
    assert_eq!(value["cuda"]["driver"], driver);
    assert_eq!(value["cuda"]["devices"][1], device);
}

#[test]
fn info_says_why_there_is_no_driver() {
    let text = info(Path::new("/no/libcuda.so"), &[], false);
    let line = text.lines().find(|line| line.contains("no CUDA driver there"));
    assert!(line.is_some_and(|line| line.contains("UNISONO_CUDA_LIB")), "{text}");
    let text = info(&standin::cuda(), &[("STANDIN_CUDA_DEVICES", "0")], false);
    assert!(text.contains("CUDA_ERROR_NO_DEVICE"), "{text}");
}
