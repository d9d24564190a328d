//! The documents say what the code says: tables that are written twice are compared.
//!
//! `UNISONO_UPDATE_DOCS=1 cargo test --test docs` writes the tables anew instead of comparing them.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use unisono::config::KNOBS;
use unisono::error::{Code, Scope};
use unisono::types::{Dtype, ReduceOp};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Every document of the project.
fn documents() -> Vec<PathBuf> {
    let docs = std::fs::read_dir(root().join("docs")).expect("docs");
    let mut files: Vec<PathBuf> = docs.map(|entry| entry.expect("docs").path()).collect();
    let names =
        ["README.md", "ARCHITECTURE.md", "BENCHMARKS.md", "CONTRIBUTING.md", "CHANGELOG.md"];
    files.extend(names.map(|name| root().join(name)));
    files.retain(|file| file.extension().is_some_and(|e| e == "md"));
    files
}

/// Tests run side by side, and two may write tables of one file.
static WRITING: Mutex<()> = Mutex::new(());

/// Compares what stands between `<!-- begin NAME -->` and `<!-- end NAME -->` with `wanted`.
fn compare(file: &str, name: &str, wanted: &str) {
    let _alone = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
    let path = root().join(file);
    let text = read(&path);
    let (begin, end) = (format!("<!-- begin {name} -->\n"), format!("<!-- end {name} -->"));
    let from = text.find(&begin).unwrap_or_else(|| panic!("{file}: no {begin}")) + begin.len();
    let to = text.find(&end).unwrap_or_else(|| panic!("{file}: no {end}"));
    assert!(from <= to, "{file}: the marks of {name} are in the wrong order");
    if std::env::var_os("UNISONO_UPDATE_DOCS").is_some() {
        let made = format!("{}{wanted}{}", &text[..from], &text[to..]);
        std::fs::write(&path, made).unwrap_or_else(|e| panic!("{file}: {e}"));
        return;
    }
    assert_eq!(
        &text[from..to],
        wanted,
        "{file} is not what the code says of {name}; \
         `UNISONO_UPDATE_DOCS=1 cargo test --test docs` writes it anew"
    );
}

/// A table of Markdown.
fn table(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut text = format!("| {} |\n|{}\n", head.join(" | "), "---|".repeat(head.len()));
    for row in rows {
        assert_eq!(row.len(), head.len(), "a row of {row:?}");
        writeln!(text, "| {} |", row.join(" | ")).expect("writing to a string");
    }
    text
}

/// The knobs of docs/environment.md are those of `config::KNOBS`.
#[test]
fn the_table_of_knobs_is_the_code_s() {
    let rows = KNOBS.iter().map(|knob| {
        vec![
            format!("`{}`", knob.variable),
            knob.default.to_owned(),
            knob.range.to_owned(),
            if knob.agreed { "rank 0's" } else { "each rank's" }.to_owned(),
            knob.text.to_owned(),
        ]
    });
    let head = ["variable", "default", "values", "which holds", "what it does"];
    compare("docs/environment.md", "knobs", &table(&head, rows));
}

/// The types and operations of docs/numerics.md are those `supports` allows.
#[test]
fn the_table_of_types_and_operations_is_the_code_s() {
    let head: Vec<&str> =
        ["type"].into_iter().chain(ReduceOp::ALL.iter().map(|op| op.name())).collect();
    let rows = Dtype::ALL.iter().map(|&dtype| {
        let cell = |op: &ReduceOp| if op.supports(dtype) { "yes" } else { "-" }.to_owned();
        std::iter::once(format!("`{dtype}`")).chain(ReduceOp::ALL.iter().map(cell)).collect()
    });
    compare("docs/numerics.md", "types and operations", &table(&head, rows));
}

/// Sizes, alignments and accumulators of docs/numerics.md are the code's.
#[test]
fn the_table_of_types_is_the_code_s() {
    let head = ["type", "C constant", "number", "bytes", "alignment", "accumulated in"];
    let rows = Dtype::ALL.iter().map(|&dtype| {
        vec![
            format!("`{dtype}`"),
            format!("`UNISONO_{}`", dtype.name().to_uppercase()),
            dtype.number().to_string(),
            dtype.bytes().to_string(),
            dtype.align().to_string(),
            format!("`{}`", dtype.accumulator()),
        ]
    });
    compare("docs/numerics.md", "types", &table(&head, rows));
}

/// Every code stands in docs/errors.md with its number, its scope and its text.
#[test]
fn the_table_of_errors_is_the_code_s() {
    let rows = Code::ALL.iter().map(|&code| {
        let scope = match code.scope() {
            Scope::Call => "call",
            Scope::Communicator => "communicator",
            Scope::Process => "process",
        };
        vec![
            (code as i32).to_string(),
            format!("`UNISONO_{}`", code.name()),
            scope.to_owned(),
            code.text().to_owned(),
        ]
    });
    compare("docs/errors.md", "codes", &table(&["number", "constant", "breaks", "meaning"], rows));
}

/// The constants of the C header are the code's: none is missing, none has another number.
#[test]
fn the_header_s_constants_are_the_code_s() {
    let header = read(&root().join("ffi/include/unisono.h"));
    let defined = |name: &str, number: i64| {
        let line = format!("#define UNISONO_{name} {number}");
        header.lines().any(|l| l == line)
    };
    let codes = Code::ALL.iter().map(|&c| (c.name().to_owned(), i64::from(c as i32)));
    let types = Dtype::ALL.iter().map(|d| (d.name().to_uppercase(), i64::from(d.number())));
    let ops = ReduceOp::ALL.iter().map(|o| (o.name().to_uppercase(), i64::from(o.number())));
    let missing: Vec<_> = codes.chain(types).chain(ops).filter(|(n, v)| !defined(n, *v)).collect();
    assert!(missing.is_empty(), "not in unisono.h: {missing:?}");
}

/// The functions of unisono.h all stand in docs/porting.md, and it names no others.
#[test]
fn the_porting_guide_knows_every_function() {
    let names = |text: &str, wanted: &dyn Fn(&str, &str) -> bool| -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for (at, _) in text.match_indices("unisono_") {
            let before = text[..at].chars().next_back();
            let rest = &text[at..];
            let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let end = rest.find(|c| !word(c)).unwrap_or(rest.len());
            if wanted(&rest[..end], &rest[end..]) && !before.is_some_and(word) {
                found.insert(rest[..end].to_owned());
            }
        }
        found
    };
    let called = |_: &str, after: &str| after.starts_with('(');
    let no_type = |name: &str, _: &str| !name.ends_with("_t");
    let header = names(&read(&root().join("ffi/include/unisono.h")), &called);
    let guide = names(&read(&root().join("docs/porting.md")), &no_type);
    let unsaid: Vec<_> = header.difference(&guide).collect();
    let unknown: Vec<_> = guide.difference(&header).collect();
    assert!(unsaid.is_empty(), "not in docs/porting.md: {unsaid:?}");
    assert!(unknown.is_empty(), "in docs/porting.md and not in unisono.h: {unknown:?}");
}

/// Links between the documents lead to files that exist.
#[test]
fn links_between_documents_lead_somewhere() {
    for file in documents() {
        let text = read(&file);
        for (at, _) in text.match_indices("](") {
            let target = text[at + 2..].split([')', '#']).next().unwrap_or_default();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            let to = file.parent().expect("a directory").join(target);
            assert!(to.exists(), "{}: a link to {target}", file.display());
        }
    }
}

/// Lines of prose end before column 100; tables, whose rows cannot be broken, may go on.
#[test]
fn documents_keep_to_100_columns() {
    for file in documents() {
        for (number, line) in (1..).zip(read(&file).lines()) {
            let columns = line.chars().count();
            let fits = columns <= 100 || line.starts_with('|');
            assert!(fits, "{}:{number}: {columns} columns", file.display());
        }
    }
}

/// The program in the README is the example, to the letter.
#[test]
fn the_readme_s_program_is_the_example() {
    let program = format!("```c\n{}```\n", read(&root().join("ffi/examples/hello.c")));
    assert!(read(&root().join("README.md")).contains(&program), "ffi/examples/hello.c has changed");
}

/// Where a document names a command's output, it stands there, and tells nothing of the machine.
#[test]
fn outputs_stand_where_they_are_named() {
    for file in documents() {
        let text = read(&file);
        for part in text.split("<!-- output: ").skip(1) {
            let (command, rest) = part.split_once(" -->\n").expect("the end of a mark");
            let name = format!("{}: {command}", file.display());
            let output = rest.strip_prefix("```text\n").and_then(|rest| rest.split_once("```"));
            let (output, _) = output.unwrap_or_else(|| panic!("{name}: no output"));
            assert!(output.lines().count() > 1, "{name}: {output}");
            let words = output.split(|c: char| c.is_whitespace() || c == '/');
            let addresses: Vec<_> =
                words.filter(|word| word.parse::<std::net::IpAddr>().is_ok()).collect();
            assert!(addresses.is_empty(), "{name}: {addresses:?}");
            assert!(!output.contains("/home/") && !output.contains("/root/"), "{name}: {output}");
        }
    }
}

/// docs/tests.md knows every family of tests.
#[test]
fn every_test_file_is_in_the_list_of_families() {
    let list = read(&root().join("docs/tests.md"));
    for entry in std::fs::read_dir(root().join("tests")).expect("tests") {
        let name = entry.expect("tests").file_name().to_string_lossy().into_owned();
        let known = !name.ends_with(".rs") || list.contains(&format!("`tests/{name}`"));
        assert!(known, "docs/tests.md does not name tests/{name}");
    }
}
