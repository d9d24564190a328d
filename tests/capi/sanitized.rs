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
    for name in ["hello.c", "bucket.c"] {
        let source = format!("ffi/examples/{name}");
        let flags = [&["-std=c99"][..], sanitize].concat();
        let program = compile(&format!("asan-{name}"), &[&source], &flags);
        ranks(2, || watched(&program));
    }
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
    for name in ["hello.c", "bucket.c", "hello.cpp", "bucket.cpp"] {
        let standard = if name.ends_with("pp") { "-std=c++17" } else { "-std=c99" };
        let source = format!("ffi/examples/{name}");
        let program = compile(&format!("valgrind-{name}"), &[&source], &[standard]);
        ranks(2, || under(&program));
    }
    let errors = compile("valgrind-errors.c", &["ffi/examples/errors.c"], &["-std=c99"]);
    succeed(&mut under(&errors));
    succeed(&mut under(&calls_program("valgrind-calls", &[])));
}
