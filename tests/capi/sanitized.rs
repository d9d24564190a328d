//! C and C++ programs under the sanitizers of the compiler and under valgrind.

use super::*;

#[test]
fn the_address_sanitizer_finds_nothing() {
    let sanitize = &["-fsanitize=address,undefined", "-fno-sanitize-recover=all"];
    let mut leaks = watched(&calls_program("calls-asan", sanitize));
    succeed(leaks.env("ASAN_OPTIONS", "detect_leaks=1:halt_on_error=1"));
    let flags = [&["-std=c11", "-pthread"][..], sanitize].concat();
    let program = compile("bad-asan", &["tests/capi/bad.c"], &flags);
    // A request of more memory than there is must be refused by us, not by the sanitizer.
    succeed(watched(&program).env("ASAN_OPTIONS", "allocator_may_return_null=1"));
    for (name, standard) in EXAMPLES {
        let source = format!("ffi/examples/{name}");
        let flags = [&[*standard][..], sanitize].concat();
        let program = compile(&format!("asan-{name}"), &[&source], &flags);
        ranks(2, || watched(&program));
    }
    let flags = [&["-std=c99"][..], sanitize].concat();
    succeed(&mut watched(&compile("asan-errors.c", &["ffi/examples/errors.c"], &flags)));
    let train = training::train_lm("asan-train_lm", sanitize);
    for (name, device, backend) in
        [("asan", "none", "native"), ("asan-gpu", "0", "native"), ("asan-nccl", "0", "nccl")]
    {
        for arguments in tiny_training(name, device) {
            ranks(2, || {
                let mut command = watched(&train);
                command.args(&arguments);
                if device == "0" {
                    command.envs(device::sharing(backend));
                }
                command
            });
        }
    }
}

const EXAMPLES: &[(&str, &str)] = &[
    ("hello.c", "-std=c99"),
    ("bucket.c", "-std=c99"),
    ("hello.cpp", "-std=c++17"),
    ("bucket.cpp", "-std=c++17"),
];

/// Arguments of short runs that reach all of train_lm: every mode, the gradients' check, a
/// checkpoint written and resumed, a sample.
fn tiny_training(name: &str, device: &str) -> Vec<Vec<String>> {
    let file = scratch(&format!("tiny-{name}")).join("checkpoint");
    let file = file.to_str().expect("text");
    let words = |line: String| line.split(' ').map(str::to_owned).collect();
    let small = "--batch 2 --context 8 --layers 1 --heads 2 --width 8";
    let small = format!("{small} --device {device}");
    let text = "ffi/examples/hello.c";
    [
        format!("{small} --steps 2 --checkpoint {file} --sample 4 {text}"),
        format!("{small} --steps 3 --checkpoint {file} --resume --mode sharded --json {text}"),
        format!("{small} --steps 2 --mode local --average-every 2 --progress {text}"),
    ]
    .map(words)
    .into()
}

#[test]
fn valgrind_finds_neither_errors_nor_leaks() {
    if !need("valgrind", "valgrind") {
        return;
    }
    let under = |program: &Path| {
        let mut valgrind = command("timeout");
        valgrind.args(["-k", "5", WATCHDOG_SECONDS, "valgrind", "--quiet", "--error-exitcode=99"]);
        valgrind.args(["--leak-check=full", "--show-leak-kinds=definite,indirect"]);
        valgrind.args(["--errors-for-leak-kinds=definite,indirect"]).arg(program);
        valgrind
    };
    for (name, standard) in EXAMPLES {
        let source = format!("ffi/examples/{name}");
        let program = compile(&format!("valgrind-{name}"), &[&source], &[standard]);
        ranks(2, || under(&program));
    }
    let train = training::train_lm("valgrind-train_lm", &[]);
    for (name, device) in [("valgrind", "none"), ("valgrind-nccl", "0")] {
        for arguments in tiny_training(name, device) {
            ranks(2, || {
                let mut command = under(&train);
                command.args(&arguments);
                if device == "0" {
                    command.envs(device::sharing("nccl"));
                }
                command
            });
        }
    }
    let errors = compile("valgrind-errors.c", &["ffi/examples/errors.c"], &["-std=c99"]);
    succeed(&mut under(&errors));
    succeed(&mut under(&calls_program("valgrind-calls", &[])));
}
