//! The committed C header is what cbindgen makes of `src/capi`.
//!
//! `UNISONO_UPDATE=1 cargo test --test capi_header` writes it anew.

use std::fs;
use std::path::Path;

/// In the order in which a reader meets them.
const SOURCES: &[&str] = &[
    "version", "error", "dtype", "op", "handle", "config", "comm", "mem", "coll", "icoll",
    "request", "group",
];

fn generated(root: &Path) -> String {
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).expect("cbindgen.toml");
    let mut builder = cbindgen::Builder::new().with_config(config);
    for source in SOURCES {
        builder = builder.with_src(root.join(format!("src/capi/{source}.rs")));
    }
    let mut bytes = Vec::new();
    builder.generate().expect("cbindgen").write(&mut bytes);
    tidy(&String::from_utf8(bytes).expect("text"))
}

/// Comments in as few lines as they need, without what only Rust's readers want (`# Safety`), and
/// constants without gaps.
fn tidy(text: &str) -> String {
    let mut kept: Vec<String> = Vec::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let indent = &line[..line.len() - line.trim_start().len()];
        if line.trim() != "/*" {
            let after_blank = kept.last().is_some_and(String::is_empty);
            if !(line.is_empty() && after_blank) {
                kept.push(line.to_owned());
            }
            continue;
        }
        let mut comment: Vec<&str> = Vec::new();
        for line in lines.by_ref() {
            if line.trim() == "*/" {
                break;
            }
            comment.push(line.trim());
        }
        let end = comment.iter().position(|&l| l == "# Safety").unwrap_or(comment.len());
        let end = comment[..end].iter().rposition(|l| !l.is_empty()).map_or(0, |last| last + 1);
        let of_constant = lines.peek().is_some_and(|next| next.starts_with("#define"));
        if of_constant && kept.len() > 1 && kept[kept.len() - 2].starts_with("#define UNISONO_") {
            kept.pop();
        }
        for (number, line) in comment[..end].iter().enumerate() {
            let open = if number == 0 { "/* " } else { " * " };
            let close = if number + 1 == end { " */" } else { "" };
            kept.push(format!("{indent}{}{close}", format!("{open}{line}").trim_end()));
        }
    }
    kept.join("\n") + "\n"
}

#[test]
fn the_committed_header_is_the_generated_one() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = root.join("ffi/include/unisono.h");
    let made = generated(root);
    if std::env::var_os("UNISONO_UPDATE").is_some() {
        fs::write(&path, &made).expect("write");
    }
    let committed = fs::read_to_string(&path).expect("header");
    if let Some((number, (old, new))) =
        committed.lines().zip(made.lines()).enumerate().find(|(_, (old, new))| old != new)
    {
        panic!(
            "ffi/include/unisono.h is stale at line {}:\n  committed {old}\n  generated {new}\n\
             UNISONO_UPDATE=1 cargo test --test capi_header",
            number + 1
        );
    }
    assert_eq!(committed.lines().count(), made.lines().count(), "stale at its end");
}
