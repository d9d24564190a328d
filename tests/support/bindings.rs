//! Reads what bindgen makes of a header: functions and constants, by name.

use std::collections::BTreeMap;

/// The text without spaces, and with short names of C's types.
pub(crate) fn bare(text: &str) -> String {
    let text: String = text.chars().filter(|c| !c.is_whitespace()).collect();
    text.replace("::std::os::raw::", "").replace(",)", ")")
}

/// Types of the arguments between `(` and the `)` that closes it, and what follows up to `end`.
fn signature(text: &str, end: &str) -> String {
    let (mut depth, mut close) = (0, 0);
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' if depth == 1 => {
                close = at;
                break;
            }
            ')' => depth -= 1,
            _ => {}
        }
    }
    let arguments = text[1..close].split(',').filter(|a| !a.is_empty());
    let types: Vec<&str> = arguments.map(|a| a.split_once(':').map_or(a, |(_, t)| t)).collect();
    let rest = &text[close + 1..];
    format!("({}){}", types.join(","), &rest[..rest.find(end).unwrap_or(0)])
}

/// Every function of a header whose name begins so, in a [`bare`] text.
pub(crate) fn declared(text: &str, begin: &str) -> BTreeMap<String, String> {
    let mark = format!("pubfn{begin}");
    let parts = text.split(&mark).skip(1).filter_map(|part| {
        let (name, rest) = part.split_at(part.find('(')?);
        Some((format!("{begin}{name}"), signature(rest, ";")))
    });
    parts.collect()
}

/// Every function of our bindings whose name begins so, in a [`bare`] text.
pub(crate) fn bound(text: &str, begin: &str) -> BTreeMap<String, String> {
    let mark = format!("pub{begin}");
    let parts = text.split(&mark).skip(1).filter_map(|part| {
        let (name, rest) = part.split_once(":Result<unsafeextern\"C\"fn")?;
        Some((format!("{begin}{name}"), signature(rest, ",::libloading")))
    });
    parts.collect()
}

/// Every constant of numbers.
pub(crate) fn constants(text: &str) -> BTreeMap<String, i64> {
    let lines = text.lines().filter_map(|line| line.trim().strip_prefix("pub const "));
    let parts = lines.filter_map(|line| {
        let (name, rest) = line.split_once(':')?;
        let value = rest.split_once('=')?.1.trim().trim_end_matches(';');
        Some((name.to_owned(), value.parse().ok()?))
    });
    parts.collect()
}
