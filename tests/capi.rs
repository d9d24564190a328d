//! The C ABI from outside: C and C++ programs against the installed and the built libraries.
//!
//! `make lib` makes the libraries first (it does nothing where they are fresh). A tool that is
//! missing is installed where this may be done (`apt-get`, as root), else the test is skipped and
//! says so in a line that begins with "skipped:".

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::{env, fs, io};

#[path = "capi/device.rs"]
mod device;
#[path = "capi/instructions.rs"]
mod instructions;
#[path = "support/library.rs"]
mod library;
#[path = "capi/sanitized.rs"]
mod sanitized;
#[path = "support/standin.rs"]
mod standin;
#[path = "support/standin_nccl.rs"]
#[allow(dead_code, reason = "other tests build other kinds")]
mod standin_nccl;
#[path = "capi/training.rs"]
mod training;

/// Ends a program that hangs.
const WATCHDOG_SECONDS: &str = "120";
const STRICT: &[&str] = &["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-g", "-O1"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A command that sees neither cargo's variables nor a launcher's.
fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root()).stdin(Stdio::null());
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let cargos =
            text.starts_with("CARGO") && text != "CARGO_TARGET_DIR" && text != "CARGO_HOME";
        if cargos || text.starts_with("UNISONO_") || text.starts_with("RUST_") || text == "RUSTC" {
            command.env_remove(&name);
        }
    }
    command
}

fn text(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&both).into_owned()
}

#[track_caller]
fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {}\n{}", output.status, text(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Held while something is made that other tests use too: each test may be a process of its own.
fn alone() -> fs::File {
    fs::create_dir_all(root().join("build")).expect("build");
    let lock = fs::File::create(root().join("build/tests.lock")).expect("lock");
    lock.lock().expect("lock");
    lock
}

/// The folder of the built libraries.
fn build() -> &'static Path {
    static BUILD: OnceLock<PathBuf> = OnceLock::new();
    BUILD.get_or_init(|| {
        let _alone = alone();
        succeed(command("make").args(["--no-print-directory", "lib"]));
        root().join("build")
    })
}

/// A new folder below the build folder; stays for whoever looks into a failure.
fn scratch(name: &str) -> PathBuf {
    let at = build().join("tests").join(name);
    match fs::remove_dir_all(&at) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            panic!("{}: {error}", at.display())
        }
        _ => {}
    }
    fs::create_dir_all(&at).expect("scratch");
    at
}

fn system_libraries() -> Vec<String> {
    let list = succeed(command("make").args(["-s", "--no-print-directory", "libs-private"]));
    list.split_whitespace().map(str::to_owned).collect()
}

/// Whether the program is younger than all it may be made of.
fn fresh(program: &Path, sources: &[&str]) -> bool {
    let changed = |path: &Path| fs::metadata(path).and_then(|m| m.modified()).ok();
    let Some(made) = changed(program) else { return false };
    let files = |folder: &str| fs::read_dir(root().join(folder)).expect("folder");
    let headers = ["ffi/include", "ffi/examples", "ffi/examples/lm", "tests/capi"];
    let headers = headers.into_iter().flat_map(files).map(|f| f.expect("file").path());
    let sources = sources.iter().map(|s| root().join(s));
    let library = [build().join("libunisono.a"), root().join("tests/capi.rs")];
    headers.chain(sources).chain(library).all(|f| changed(&f).is_some_and(|at| at < made))
}

/// Compiles and links a program with the static library; once for all processes of a test run.
#[track_caller]
fn compile(name: &str, sources: &[&str], flags: &[&str]) -> PathBuf {
    let program = build().join("tests").join(name).join("program");
    let _alone = alone();
    if fresh(&program, sources) {
        return program;
    }
    scratch(name);
    let cpp = sources.iter().any(|s| s.ends_with(".cpp"));
    let mut compiler = command(if cpp { "c++" } else { "cc" });
    compiler.args(STRICT).args(flags).arg("-Iffi/include").args(sources);
    compiler.arg(build().join("libunisono.a")).args(system_libraries()).arg("-o").arg(&program);
    succeed(&mut compiler);
    program
}

/// The command of a program under a watchdog.
fn watched(program: &Path) -> Command {
    let mut watched = command("timeout");
    watched.args(["-k", "5", WATCHDOG_SECONDS]).arg(program);
    watched
}

/// Runs `world` ranks of a job; what each said.
#[track_caller]
fn ranks(world: usize, mut of: impl FnMut() -> Command) -> Vec<String> {
    static JOBS: AtomicU32 = AtomicU32::new(0);
    let job = format!("{}-{}", std::process::id(), JOBS.fetch_add(1, Ordering::Relaxed));
    let start = |rank: usize| {
        let (rank, world) = (rank.to_string(), world.to_string());
        let mut command = of();
        command.env("UNISONO_RANK", &rank).env("UNISONO_LOCAL_RANK", &rank);
        command.env("UNISONO_WORLD", &world).env("UNISONO_LOCAL_WORLD", &world);
        command.env("UNISONO_JOB_ID", &job).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("spawn")
    };
    let started: Vec<_> = (0..world).map(start).collect();
    let ended = started.into_iter().map(|one| one.wait_with_output().expect("wait"));
    let ended: Vec<Output> = ended.collect();
    for (rank, output) in ended.iter().enumerate() {
        assert!(output.status.success(), "rank {rank}: {}\n{}", output.status, text(output));
    }
    ended.iter().map(text).collect()
}

fn has(tool: &str) -> bool {
    Command::new(tool).arg("--version").output().is_ok_and(|o| o.status.success())
}

/// Whether the tool is here, or could be installed.
fn need(tool: &str, package: &str) -> bool {
    static INSTALLING: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _one = INSTALLING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if has(tool) {
        return true;
    }
    let installed = command("apt-get").args(["install", "-y", "-qq", package]).output();
    if installed.is_ok_and(|o| o.status.success()) && has(tool) {
        return true;
    }
    skip(&format!("{tool} is missing and {package} cannot be installed here"));
    false
}

/// A skip that the summary counts.
fn skip(why: &str) {
    println!("skipped: {why}");
    if let Some(path) = env::var_os("UNISONO_TEST_SKIPS") {
        let file = fs::OpenOptions::new().append(true).create(true).open(path);
        let written =
            file.and_then(|mut f| io::Write::write_all(&mut f, format!("{why}\n").as_bytes()));
        written.expect("the list of skips");
    }
}

macro_rules! bad_input {
    ($($case:ident,)+) => {
        mod bad_input {
            $(
                /// See the case of this name in tests/capi/bad.c.
                #[test]
                fn $case() {
                    super::bad(stringify!($case));
                }
            )+
        }

        const BAD_CASES: &[&str] = &[$(stringify!($case),)+];
    };
}

bad_input! {
    null_buffer, null_output, misaligned, overlap, count_overflow, unknown_value, made_operation,
    rank_out_of_range, destroyed_handle, foreign_handle, reported_request, nothing_to_wait_for,
    aborted, mismatch, damaged_id, environment, world_of_0, busy, unsupported, configuration,
    group_order, foreign_memory, bad_counts, overlapping_blocks, last_errors,
}

fn bad_program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| compile("bad", &["tests/capi/bad.c"], &["-std=c11", "-pthread"]))
}

#[track_caller]
fn bad(case: &str) {
    succeed(watched(bad_program()).arg(case));
}

#[test]
fn every_case_of_bad_input_is_run_here() {
    let source = fs::read_to_string(root().join("tests/capi/bad.c")).expect("bad.c");
    let listed = source.lines().filter_map(|l| l.trim().strip_prefix("{\"")?.split('"').next());
    assert_eq!(listed.collect::<Vec<_>>(), BAD_CASES);
}

#[test]
fn every_function_of_the_header_is_called() {
    let header = fs::read_to_string(root().join("ffi/include/unisono.h")).expect("header");
    let calls = fs::read_to_string(root().join("tests/capi/calls.c")).expect("calls.c")
        + &fs::read_to_string(root().join("tests/capi/bad.c")).expect("bad.c")
        + &fs::read_to_string(root().join("tests/capi/harness.h")).expect("harness.h")
        // Under every MPI, by tests/mpi.rs.
        + &fs::read_to_string(root().join("ffi/tests/mpi.c")).expect("mpi.c");
    let mut count = 0;
    for symbol in exported_symbols() {
        assert!(header.contains(&format!("{symbol}(")), "{symbol} is not in the header");
        assert!(calls.contains(&format!("{symbol}(")), "{symbol} is not called by the C tests");
        count += 1;
    }
    let declared = header.lines().filter(|l| !l.starts_with([' ', '/', '#', 't']));
    assert_eq!(declared.filter(|l| l.contains("unisono_") && l.contains('(')).count(), count);
}

fn calls_program(name: &str, flags: &[&str]) -> PathBuf {
    let flags = [&["-std=c11", "-pthread"], flags].concat();
    compile(name, &["tests/capi/calls.c"], &flags)
}

#[test]
fn every_call_gives_its_result_on_one_to_four_ranks() {
    succeed(&mut watched(&calls_program("calls", &[])));
}

#[test]
fn a_request_ends_when_its_deadline_has_passed() {
    let program = compile("deadline", &["tests/capi/deadline.c"], &["-std=c11", "-pthread"]);
    succeed(&mut watched(&program));
    for links in ["shm", "tcp"] {
        ranks(2, || {
            let mut rank = watched(&program);
            rank.arg("rank").env("UNISONO_LINKS", links);
            rank
        });
    }
}

#[test]
fn the_header_stands_alone_in_c99_and_in_cpp() {
    for (compiler, standard, language) in
        [("cc", "-std=c99", "c"), ("cc", "-std=c11", "c"), ("c++", "-std=c++17", "c++")]
    {
        let mut compile = command(compiler);
        compile.args(STRICT).args([standard, "-x", language, "-fsyntax-only"]);
        succeed(compile.arg("ffi/include/unisono.h").arg("-Wno-pragma-once-outside-header"));
    }
}

#[test]
fn examples_in_c_and_cpp_compile_strictly_and_run() {
    for (name, standard) in [
        ("hello.c", "-std=c99"),
        ("bucket.c", "-std=c99"),
        ("hello.cpp", "-std=c++17"),
        ("bucket.cpp", "-std=c++17"),
    ] {
        let source = format!("ffi/examples/{name}");
        let program = compile(&format!("example-{name}"), &[&source], &[standard]);
        let said = ranks(2, || watched(&program));
        assert!(said.iter().all(|s| !s.is_empty()), "{name}: {said:?}");
    }
    let errors = compile("example-errors.c", &["ffi/examples/errors.c"], &["-std=c99"]);
    let said = succeed(&mut watched(&errors));
    for expected in ["NULL_POINTER", "element type 99", "root 7", "band on f32", "OK"] {
        assert!(said.contains(expected), "{expected} in:\n{said}");
    }
}

#[test]
fn the_cpp_header_works_with_and_without_exceptions() {
    for (name, flags) in [
        ("hpp", &["-std=c++17"][..]),
        ("hpp-20", &["-std=c++20"]),
        ("hpp-noexcept", &["-std=c++17", "-fno-exceptions"]),
    ] {
        let program = compile(name, &["ffi/tests/hpp.cpp"], flags);
        for world in [1, 2, 3] {
            for said in ranks(world, || watched(&program)) {
                assert!(said.contains(" 0 wrong"), "{name} on {world}: {said}");
            }
        }
    }
}

fn symbols(flags: &[&str], file: &Path) -> Vec<(String, String)> {
    let listed = succeed(command("nm").args(flags).arg(file));
    let words = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [.., kind, name] = words[..] else { return None };
        (kind.len() == 1).then(|| (kind.to_owned(), name.to_owned()))
    };
    listed.lines().filter_map(words).collect()
}

fn exported_symbols() -> Vec<String> {
    let defined = symbols(&["--extern-only", "--defined-only"], &build().join("libunisono.a"));
    defined.into_iter().map(|(_, name)| name).collect()
}

#[test]
fn the_libraries_define_nothing_but_unisono_symbols() {
    let archive = build().join("libunisono.a");
    let shared = build().join("libunisono.so");
    let exported = exported_symbols();
    assert!(
        exported.len() > 50 && exported.iter().all(|s| s.starts_with("unisono_")),
        "{exported:?}"
    );
    // Neither weak symbols, nor unique ones, nor common ones: nothing that another archive could
    // meet.
    for (kind, name) in symbols(&["--defined-only"], &archive) {
        let local = kind.chars().all(|c| c.is_ascii_lowercase() && !"uvwi".contains(c));
        assert!(local || name.starts_with("unisono_"), "{kind} {name}");
    }
    let dynamic = symbols(&["--dynamic", "--defined-only"], &shared);
    let dynamic: Vec<String> = dynamic.into_iter().map(|(_, name)| name).collect();
    assert_eq!(dynamic, exported, "the shared library exports the same");
    let groups = succeed(command("readelf").args(["--section-groups", "--wide"]).arg(&archive));
    assert!(groups.contains("no section groups"), "{groups}");
    let about = succeed(command("readelf").args(["--dynamic", "--wide"]).arg(&shared));
    // Versions that may break programs have names of their own: before 1.0 the minor ones.
    let name = match (env!("CARGO_PKG_VERSION_MAJOR"), env!("CARGO_PKG_VERSION_MINOR")) {
        ("0", minor) => format!("libunisono.so.0.{minor}"),
        (major, _) => format!("libunisono.so.{major}"),
    };
    assert!(about.contains(&format!("Library soname: [{name}]")), "{about}");
}

#[test]
fn the_archive_links_beside_another_rust_archive() {
    let at = scratch("two-archives");
    let rust = at.join("other.rs");
    fs::write(
        &rust,
        "#[unsafe(no_mangle)]\n\
         pub extern \"C\" fn other_sum(n: u32) -> u64 {\n\
             let work = |i| std::thread::spawn(move || u64::from(i));\n\
             let threads: Vec<_> = (0..n).map(work).collect();\n\
             let caught = std::panic::catch_unwind(|| panic!(\"on purpose\")).is_err();\n\
             threads.into_iter().map(|t| t.join().unwrap()).sum::<u64>() + u64::from(caught)\n\
         }\n",
    )
    .expect("write");
    let c = at.join("main.c");
    fs::write(
        &c,
        "#include <stdint.h>\n#include <stdio.h>\n#include <unisono.h>\n\
         uint64_t other_sum(uint32_t n);\n\
         int main(void) {\n\
             unisono_comm_t *comm = NULL; float x = 2.0f; int bad = 0;\n\
             bad |= unisono_comm_init_all(&comm, 1, NULL);\n\
             bad |= unisono_all_reduce(&x, &x, 1, UNISONO_F32, UNISONO_SUM, comm);\n\
             bad |= unisono_comm_destroy(comm);\n\
             return bad || x != 2.0f || other_sum(5) != 11;\n\
         }\n",
    )
    .expect("write");
    let other = at.join("libother.a");
    let mut rustc = command("rustc");
    rustc.args(["--edition", "2024", "--crate-type", "staticlib", "-O", "-o"]).arg(&other);
    succeed(rustc.arg(&rust));
    let ours = build().join("libunisono.a");
    for (name, archives) in [("first", [&ours, &other]), ("second", [&other, &ours])] {
        let program = at.join(name);
        let mut cc = command("cc");
        cc.args(["-std=c99", "-Iffi/include"]).arg(&c).args(archives);
        // Whole: every symbol of both meets every other.
        succeed(cc.args(system_libraries()).arg("-o").arg(&program));
        succeed(&mut watched(&program));
        let mut whole = command("cc");
        whole.args(["-std=c99", "-Iffi/include"]).arg(&c).arg("-Wl,--whole-archive").arg(&ours);
        whole.arg("-Wl,--no-whole-archive").arg(&other).args(system_libraries());
        succeed(whole.arg("-o").arg(&program));
        succeed(&mut watched(&program));
    }
}

#[test]
fn the_list_of_system_libraries_is_the_compilers() {
    let at = scratch("native-libs");
    let rust = at.join("empty.rs");
    fs::write(&rust, "").expect("write");
    let mut rustc = command("rustc");
    rustc.args(["--crate-type", "staticlib", "--print", "native-static-libs", "-o"]);
    let output = rustc.arg(at.join("libempty.a")).arg(&rust).output().expect("rustc");
    let said = text(&output);
    let list = said.split("native-static-libs:").nth(1).expect("a list").lines().next();
    let list: Vec<String> = list.unwrap_or("").split_whitespace().map(str::to_owned).collect();
    assert_eq!(system_libraries(), list);
}

/// Makes `target` for a prefix with its libraries in `lib`.
fn make(target: &str, prefix: &Path, lib: &str) {
    let _alone = alone();
    let mut make = command("make");
    make.args(["--no-print-directory", target]).arg(format!("PREFIX={}", prefix.display()));
    succeed(make.arg(format!("LIBDIR={}", prefix.join(lib).display())));
}

/// An installation of the test's own, with its prefix.
fn installed(test: &str, lib: &str) -> PathBuf {
    let prefix = scratch(&format!("install-{test}")).join("prefix");
    make("install", &prefix, lib);
    prefix
}

fn files_below(at: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(at).expect("a folder").map(|entry| entry.expect("an entry").path());
    let below = |path: PathBuf| match path.is_dir() && !path.is_symlink() {
        true => files_below(&path),
        false => vec![path],
    };
    entries.flat_map(below).collect()
}

#[test]
fn uninstall_takes_away_what_install_put_there() {
    let prefix = installed("uninstall", "lib/some-system");
    let files = files_below(&prefix);
    for name in ["unisono.h", "libunisono.a", "libunisono.so", "unisono.pc", "LICENSE-MIT"] {
        assert!(files.iter().any(|file| file.ends_with(name)), "{name}: {files:?}");
    }
    let libraries = files.iter().filter(|file| file.to_string_lossy().contains("libunisono"));
    assert!(libraries.into_iter().all(|file| file.starts_with(prefix.join("lib/some-system"))));
    let own = prefix.join("include/of-somebody-else.h");
    fs::write(&own, "").expect("write");
    make("uninstall", &prefix, "lib/some-system");
    assert_eq!(files_below(&prefix), [own]);
}

#[test]
fn an_installation_is_found_by_pkg_config() {
    if !need("pkg-config", "pkg-config") {
        return;
    }
    let prefix = installed("pkg-config", "lib/some-system");
    assert!(prefix.join("bin/unisono").is_file());
    for (flags, name) in [(&["--static"][..], "static"), (&[], "shared")] {
        let mut ask = command("pkg-config");
        ask.args(["--cflags", "--libs"]).args(flags).arg("unisono");
        let said = succeed(ask.env("PKG_CONFIG_PATH", prefix.join("lib/some-system/pkgconfig")));
        let mut words: Vec<String> = said.split_whitespace().map(str::to_owned).collect();
        if name == "static" {
            // Both libraries are installed, and -l prefers the shared one.
            words
                .iter_mut()
                .filter(|w| *w == "-lunisono")
                .for_each(|w| *w = "-l:libunisono.a".into());
        }
        let program = scratch(&format!("pkg-config-{name}")).join("program");
        let mut cc = command("cc");
        succeed(cc.args(["-std=c99", "ffi/examples/hello.c"]).args(&words).arg("-o").arg(&program));
        let said = ranks(2, || {
            let mut run = watched(&program);
            run.env("LD_LIBRARY_PATH", prefix.join("lib/some-system"));
            run
        });
        assert!(said[1].contains("rank 1 of 2: 2 1 1"), "{said:?}");
    }
    let mut version = command("pkg-config");
    version.args(["--modversion", "unisono"]);
    let version = succeed(version.env("PKG_CONFIG_PATH", prefix.join("lib/some-system/pkgconfig")));
    assert_eq!(version.trim(), env!("CARGO_PKG_VERSION"));
}

#[test]
fn an_installation_is_found_by_cmake() {
    if !need("cmake", "cmake") {
        return;
    }
    let at = scratch("cmake");
    let hello = root().join("ffi/examples/hello.c");
    fs::write(
        at.join("CMakeLists.txt"),
        format!(
            "cmake_minimum_required(VERSION 3.16)\nproject(hello C)\n\
             find_package(unisono {} REQUIRED)\n\
             foreach(kind unisono static)\n\
                 add_executable(hello-${{kind}} {})\n\
                 target_link_libraries(hello-${{kind}} unisono::${{kind}})\n\
             endforeach()\n",
            env!("CARGO_PKG_VERSION"),
            hello.display()
        ),
    )
    .expect("write");
    for lib in ["lib", "lib/some-system"] {
        let name = lib.replace('/', "-");
        let (built, prefix) = (at.join(&name), installed(&format!("cmake-{name}"), lib));
        // It may move: what it was installed as is not there any more.
        let moved = prefix.with_file_name("moved");
        fs::rename(&prefix, &moved).expect("rename");
        let mut configure = command("cmake");
        configure.arg("-S").arg(&at).arg("-B").arg(&built);
        let package = moved.join(lib).join("cmake/unisono");
        succeed(configure.arg(format!("-Dunisono_DIR={}", package.display())));
        succeed(command("cmake").arg("--build").arg(&built));
        for kind in ["unisono", "static"] {
            let program = built.join(format!("hello-{kind}"));
            let said = ranks(2, || watched(&program));
            assert!(said[0].contains("rank 0 of 2: 2 1 1"), "{said:?}");
        }
    }
}
