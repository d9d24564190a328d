//! What a review should not have to look for: layers, unsafe code, lengths, words, files.
#![allow(missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Each module of `src` with all it may name of the crate. Data flows down and never back up:
///
/// ```text
/// types <- error <- kernel <- call                  sys (types, error)      sync
///                   plan <- algo                       |                      |
///                      engine (links and planners are its traits)             |
///              tune ---^    ^--- link (sys, sync) <- health                   |
///                    mpi, cuda, nccl -> backend <- comm (boot) <- capi, cli
///                    rdma (sys) -> link, boot, comm
/// ```
///
/// `tune` implements the engine's `Planner` and `link` its `Fabric`: both stand above the engine,
/// which knows neither.
const LAYERS: &[(&str, &[&str])] = &[
    ("types", &[]),
    ("error", &["types"]),
    ("sync", &[]),
    ("sys", &["error"]),
    ("plan", &["types"]),
    ("algo", &["plan", "types"]),
    ("kernel", &["error", "types"]),
    ("call", &["kernel", "types"]),
    ("config", &["error", "obs", "plan", "tune"]),
    ("engine", &["call", "error", "kernel", "plan", "types"]),
    ("tune", &["algo", "call", "engine", "error", "plan", "types"]),
    ("rdma", &["error", "sys"]),
    ("link", &["call", "engine", "error", "rdma", "sync", "sys", "types"]),
    ("boot", &["config", "error", "log", "obs", "rdma", "sys", "types"]),
    ("obs", &["error", "sync", "types"]),
    ("log", &["error", "sync", "types"]),
    ("mpi", &["error", "sync", "sys"]),
    ("cuda", &["error", "kernel", "sync", "sys", "types"]),
    ("nccl", &["error", "sync", "sys", "types"]),
    ("health", &["call", "error", "link", "log", "obs", "sync", "sys", "types"]),
    (
        "backend",
        &[
            "call", "cuda", "engine", "error", "health", "kernel", "link", "log", "mpi", "nccl",
            "obs", "plan", "sync", "sys", "tune", "types",
        ],
    ),
    (
        "comm",
        &[
            "algo", "backend", "boot", "call", "config", "cuda", "engine", "error", "health",
            "kernel", "link", "log", "mpi", "nccl", "obs", "plan", "rdma", "sync", "sys", "tune",
            "types",
        ],
    ),
];

/// Above everything: may name the whole library.
const TOP: &[&str] = &["capi", "cli", "lib", "main"];

/// What pure modules never name.
const PURE: &[&str] = &["types", "error", "plan", "algo", "tune", "engine", "call"];
const IMPURE: &[&str] = &["std::net", "std::fs", "std::thread", "std::process", "Instant::now"];

/// Where unsafe code may stand, and why safe code is not enough there.
const UNSAFE: &[(&str, &str)] = &[
    ("src/sys/", "system calls"),
    ("src/kernel/", "vector instructions, and buffers given as addresses"),
    ("src/capi/", "pointers from C"),
    ("src/call.rs", "a call carries addresses between threads"),
    ("src/backend/", "passes calls with their promises on to the engine"),
    ("src/mpi/", "calls of a foreign library"),
    ("src/cuda/", "calls of a foreign library"),
    ("src/nccl/", "calls of a foreign library"),
    ("src/rdma/", "calls of foreign libraries"),
    ("src/comm/", "calls on borrowed and on raw buffers"),
    ("src/engine/", "buffers of a call by address, and windows into links"),
    ("src/link/board.rs", "rows in shared memory"),
    ("src/link/doze.rs", "a flag in shared memory"),
    ("src/link/gift.rs", "a counter in segments of other processes"),
    ("src/link/mem.rs", "one arena for the rings of all threads"),
    ("src/link/mod.rs", "passes unsafe calls on to the kind of link"),
    ("src/link/rdma/", "memory that cards write to, and requests with addresses"),
    ("src/link/without_rdma.rs", "promises that nobody can call on"),
    ("src/link/ring.rs", "counters and bytes in shared memory"),
    ("src/link/shm.rs", "segments of other processes"),
    ("src/link/sim.rs", "links hand out windows by address"),
    ("src/link/tcp.rs", "bytes of a call by address, straight to the socket"),
    ("src/cli/", "buffers whose type is chosen at run time"),
];

/// Files over 400 lines (tests apart), and why they are whole. None may pass 800.
const LONG: &[(&str, &str)] = &[
    ("src/backend/gpu/direct.rs", "one state machine"),
    ("src/backend/mpi/mod.rs", "the backend's one state"),
    ("src/backend/native.rs", "the backend's one state"),
    ("src/mpi/abi.rs", "every call of MPI, once for all ABIs"),
    ("src/comm/form.rs", "one order of start-up"),
    ("src/config.rs", "one table of settings"),
    ("src/boot/env.rs", "one table of launchers and its reading"),
    ("src/boot/server.rs", "one state machine"),
    ("src/cli/perf.rs", "one table of options and its reading"),
    ("src/cli/check/special.rs", "one case after the other"),
    ("src/cli/check/suite.rs", "one case after the other"),
    ("src/comm/mod.rs", "the public calls"),
    ("src/comm/call.rs", "every argument check"),
    ("src/comm/core.rs", "one lock and who holds it"),
    ("src/engine/lane.rs", "one verb after the other"),
    ("src/engine/mod.rs", "the engine's one state"),
    ("src/engine/wires.rs", "outboxes and heads of all links"),
    ("src/kernel/scalar.rs", "every rule in plain code"),
    ("src/link/sim.rs", "a whole world"),
    ("src/plan/check/flow.rs", "one run of a plan"),
    ("src/plan/check/values.rs", "one table of rules"),
    ("src/plan/mod.rs", "the words of plans"),
    ("src/plan/svg.rs", "one drawing"),
    ("src/boot/mesh.rs", "one handshake, both sides"),
];

/// Functions of 70 lines and more, and why they are whole.
const LONG_FUNCTIONS: &[(&str, &str, &str)] =
    &[("src/cli/data/shape.rs", "ends", "one arm a collective: a table")];

const LINES_SOFT: usize = 400;
const LINES_HARD: usize = 800;
const FUNCTION_LINES: usize = 70;
const COLUMNS: usize = 100;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn walk(at: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(at).expect("a directory").map(|e| e.expect("an entry").path()) {
        if entry.is_dir() {
            walk(&entry, found);
        } else {
            found.push(entry);
        }
    }
}

/// Files under `folder`, relative to the root, sorted.
fn files(folder: &str, extension: &str) -> Vec<String> {
    let mut found = Vec::new();
    if root().join(folder).is_dir() {
        walk(&root().join(folder), &mut found);
    }
    let name = |p: &PathBuf| p.strip_prefix(root()).expect("inside").display().to_string();
    let mut names: Vec<String> =
        found.iter().filter(|p| p.extension().is_some_and(|e| e == extension)).map(name).collect();
    names.sort();
    names
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// Whether the file is tests alone.
fn is_test(name: &str) -> bool {
    name.starts_with("tests/")
        || name.contains("/tests/")
        || name.ends_with("/tests.rs")
        || name.ends_with("_tests.rs")
        || name.ends_with("/samples.rs")
}

/// The code of a file: without comments, and without the test module at its end.
fn code(name: &str) -> Vec<(usize, String)> {
    let mut lines = Vec::new();
    let text = read(name);
    let all: Vec<&str> = text.lines().collect();
    for (index, line) in all.iter().enumerate() {
        let trimmed = line.trim_start();
        let opens_tests = trimmed.starts_with("#[cfg(test)]")
            || trimmed.starts_with("#[cfg(all(test")
            || trimmed.starts_with("#[cfg(loom)]");
        if opens_tests && all.get(index + 1).is_some_and(|l| l.trim_start().starts_with("mod ")) {
            if all[index + 1].trim_end().ends_with('{') {
                break;
            }
            continue;
        }
        let bare = trimmed.split("//").next().unwrap_or("");
        lines.push((index + 1, bare.to_owned()));
    }
    lines
}

fn module_of(name: &str) -> &str {
    let inside = name.strip_prefix("src/").expect("in src");
    inside.split('/').next().expect("a part").trim_end_matches(".rs")
}

/// Words after `crate::`, braces of one `use` included.
fn names_of_crate(line: &str) -> Vec<String> {
    let mut names = Vec::new();
    for part in line.split("crate::").skip(1) {
        let inner = part.strip_prefix('{').map_or(part, |p| p.split('}').next().unwrap_or(p));
        let braces = part.starts_with('{');
        for piece in inner.split(if braces { ',' } else { '\u{0}' }) {
            let word: String =
                piece.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            names.push(word);
        }
    }
    names
}

fn complain(faults: &[String]) {
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn modules_name_only_what_lies_below_them() {
    let layers: BTreeMap<&str, &[&str]> = LAYERS.iter().copied().collect();
    let mut faults = Vec::new();
    for name in files("src", "rs").iter().filter(|n| !is_test(n)) {
        let module = module_of(name);
        if TOP.contains(&module) {
            continue;
        }
        let Some(allowed) = layers.get(module) else {
            faults.push(format!("{name}: the module {module} is in no layer; see LAYERS"));
            continue;
        };
        for (number, line) in code(name) {
            for other in names_of_crate(&line) {
                let known = layers.contains_key(other.as_str()) || TOP.contains(&other.as_str());
                if known && other != module && !allowed.contains(&other.as_str()) {
                    faults.push(format!("{name}:{number}: {module} names {other}"));
                }
            }
        }
    }
    complain(&faults);
}

/// The layers themselves have no cycle.
#[test]
fn layers_have_an_order() {
    let mut placed = BTreeSet::new();
    while placed.len() < LAYERS.len() {
        let before = placed.len();
        for (module, below) in LAYERS {
            if below.iter().all(|b| placed.contains(b)) {
                placed.insert(*module);
            }
        }
        assert!(placed.len() > before, "a cycle among the layers that are not in {placed:?}");
    }
}

#[test]
fn pure_modules_know_no_clock_and_no_system() {
    let mut faults = Vec::new();
    for name in files("src", "rs").iter().filter(|n| !is_test(n)) {
        if !PURE.contains(&module_of(name)) {
            continue;
        }
        for (number, line) in code(name) {
            for word in IMPURE.iter().chain(&["crate::sys"]) {
                if line.contains(word) {
                    faults.push(format!("{name}:{number}: {word}"));
                }
            }
        }
    }
    complain(&faults);
}

#[test]
fn unsafe_code_stands_where_it_may() {
    let mut faults = Vec::new();
    for name in files("src", "rs") {
        let allowed = UNSAFE.iter().any(|(place, _)| name.starts_with(place));
        if allowed {
            continue;
        }
        for (number, line) in code(&name) {
            let words: Vec<&str> = line.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
            if words.contains(&"unsafe") {
                faults.push(format!("{name}:{number}: unsafe"));
            }
        }
    }
    complain(&faults);
}

/// The comment mark that a line begins with, indentation included.
fn comment_mark(line: &str) -> Option<&str> {
    let indent = line.len() - line.trim_start().len();
    let mark = ["//! ", "/// ", "// "].iter().find(|m| line[indent..].starts_with(**m))?;
    Some(&line[..indent + mark.len()])
}

/// Breaks comments that are too long; what is over goes to the next line of the paragraph. With
/// `UNISONO_TIDY_WRAP` set the test writes the result back.
fn wrap(text: &str) -> String {
    let mut done: Vec<String> = Vec::new();
    let mut fenced = false;
    let mut carry: Option<(String, String)> = None;
    for line in text.lines() {
        let mut line = line.to_owned();
        let mark = comment_mark(&line).map(str::to_owned);
        let body = mark.as_ref().map_or("", |m| &line[m.len()..]).to_owned();
        let own_line = body.starts_with(['|', '-', '#', '`', ' ', '*'])
            || body.split('.').next().is_some_and(|n| n.parse::<u32>().is_ok());
        if let Some((over_mark, over)) = carry.take() {
            if mark.as_ref() == Some(&over_mark) && !own_line && !body.is_empty() {
                line = format!("{over_mark}{over} {body}");
            } else {
                done.push(format!("{over_mark}{over}"));
            }
        }
        if body.starts_with("```") {
            fenced = !fenced;
        }
        if let Some(mark) = mark.filter(|_| !fenced && !line.contains("// |"))
            && line.chars().count() > COLUMNS
            && !line[mark.len()..].starts_with('|')
        {
            let end = line.char_indices().nth(COLUMNS).map_or(line.len(), |(at, _)| at);
            if let Some(at) = line[..=end].rfind(' ').filter(|at| *at > mark.len()) {
                carry = Some((mark, line[at + 1..].to_owned()));
                line.truncate(at);
            }
        }
        done.push(line);
    }
    done.extend(carry.map(|(mark, over)| format!("{mark}{over}")));
    done.join("\n") + "\n"
}

#[test]
fn lines_and_files_are_short() {
    let mut faults = Vec::new();
    for folder in ["src", "tests"] {
        for name in files(folder, "rs") {
            let mut text = read(&name);
            if std::env::var_os("UNISONO_TIDY_WRAP").is_some() && wrap(&text) != text {
                text = wrap(&text);
                fs::write(root().join(&name), &text).expect("written");
            }
            for (number, line) in (1..).zip(text.lines()) {
                let columns = line.chars().count();
                // Rows of tables cannot be broken, nor can literals.
                let row = line.contains("// |")
                    || line.contains("//! |")
                    || line.contains("/// |")
                    || comment_mark(line).is_none() && line.contains('"');
                if columns > COLUMNS && !row {
                    faults.push(format!("{name}:{number}: {columns} columns"));
                }
            }
            let length = if is_test(&name) { 0 } else { code(&name).len() };
            let listed = LONG.iter().any(|(long, _)| *long == name);
            if length > LINES_HARD || length > LINES_SOFT && !listed {
                faults.push(format!("{name}: {length} lines without tests; see LONG"));
            }
        }
    }
    for name in cuda_sources() {
        for (number, line) in (1..).zip(read(&name).lines()) {
            let columns = line.chars().count();
            if columns > COLUMNS {
                faults.push(format!("{name}:{number}: {columns} columns"));
            }
        }
    }
    complain(&faults);
}

/// The kernels, their twin and their build.
fn cuda_sources() -> Vec<String> {
    ["cuh", "cu", "cpp", "h", "rs"].iter().flat_map(|e| files("cuda", e)).collect()
}

#[test]
fn functions_are_short() {
    let mut faults = Vec::new();
    for name in files("src", "rs").iter().filter(|n| !is_test(n)) {
        let mut open: Option<(usize, usize, String)> = None;
        let text = read(name);
        for (number, line) in (1..).zip(text.lines()) {
            let indent = line.len() - line.trim_start().len();
            let words: Vec<&str> = line.split_whitespace().collect();
            let begins = words.iter().take(5).any(|w| *w == "fn") && !line.contains("//");
            match &open {
                None if begins && !line.trim_end().ends_with([';', '}']) => {
                    let at = words.iter().position(|w| *w == "fn").expect("begins");
                    let function = words.get(at + 1).copied().unwrap_or("?").to_owned();
                    open = Some((number, indent, function));
                }
                Some((from, depth, function)) if indent == *depth && line.trim() == "}" => {
                    let listed = |(file, word, _): &(&str, &str, &str)| {
                        file == name && function.split('(').next() == Some(word)
                    };
                    if number - from >= FUNCTION_LINES && !LONG_FUNCTIONS.iter().any(listed) {
                        let lines = number - from + 1;
                        faults.push(format!("{name}:{from}: {function} has {lines} lines"));
                    }
                    open = None;
                }
                Some((_, depth, _)) if indent == *depth && line.trim_end().ends_with(';') => {
                    // A declaration without a body.
                    open = None;
                }
                _ => {}
            }
        }
    }
    complain(&faults);
}

/// Words that belong to how something was written, not to what it is.
#[test]
fn words() {
    // Assembled here, so that this file does not hold them.
    let banned = [["sub", "agent"].concat(), ["chat", "gpt"].concat(), ["/wo", "rk/"].concat()];
    let issue = ["TO", "DO"].concat();
    let mut faults = Vec::new();
    for (folder, extension) in [
        ("src", "rs"),
        ("tests", "rs"),
        ("ffi", "c"),
        ("ffi", "h"),
        ("scripts", "sh"),
        ("docs", "md"),
        ("cuda", "cuh"),
        ("cuda", "cu"),
        ("cuda", "cpp"),
        ("cuda", "h"),
        ("cuda", "rs"),
    ] {
        for name in files(folder, extension) {
            for (number, line) in (1..).zip(read(&name).lines()) {
                let lower = line.to_lowercase();
                for word in banned.iter().filter(|w| lower.contains(w.as_str())) {
                    faults.push(format!("{name}:{number}: {word}"));
                }
                let owned = line.contains(&format!("{issue}(#"));
                if line.contains(&issue) && !owned {
                    faults.push(format!("{name}:{number}: {issue} without an issue's number"));
                }
            }
        }
    }
    complain(&faults);
}

/// Every file in `src` belongs to the crate: some file declares it.
#[test]
fn every_file_is_reachable() {
    let names = files("src", "rs");
    let mut faults = Vec::new();
    for name in &names {
        let path = Path::new(name);
        let stem = path.file_stem().expect("a name").to_string_lossy().into_owned();
        if ["lib", "main"].contains(&stem.as_str()) && path.parent() == Some(Path::new("src")) {
            continue;
        }
        let folder = path.parent().expect("a folder");
        let (home, module) = if stem == "mod" {
            let name = folder.file_name().expect("a name").to_string_lossy().into_owned();
            (folder.parent().expect("a folder").to_path_buf(), name)
        } else {
            (folder.to_path_buf(), stem)
        };
        let file = path.file_name().expect("a name").to_string_lossy().into_owned();
        let declares = |owner: &String| {
            let text = read(owner);
            text.contains(&format!("mod {module};")) || text.contains(&format!("\"{file}\""))
        };
        // The folder's own file, a file beside the folder, or a neighbour that names the path.
        let beside = format!("{}.rs", home.display());
        let owners = names.iter().filter(|n| {
            *n != name && (Path::new(n.as_str()).parent() == Some(&home) || **n == beside)
        });
        if !owners.into_iter().any(declares) {
            faults.push(format!("{name}: no file declares it"));
        }
    }
    complain(&faults);
}
