//! Our headers of RDMA beside every installed one.

use std::collections::BTreeMap;

/// Header, part, and what bindgen makes of it.
const REAL: &[(&str, &str, &str)] = include!(concat!(env!("OUT_DIR"), "/rdma_headers.rs"));

/// Part, and the bindings.
const OURS: &[(&str, &str)] = &[
    ("verbs", include_str!(concat!(env!("OUT_DIR"), "/rdma_verbs.rs"))),
    ("cma", include_str!(concat!(env!("OUT_DIR"), "/rdma_cma.rs"))),
    ("rsocket", include_str!(concat!(env!("OUT_DIR"), "/rdma_rsocket.rs"))),
];

/// What headers of older versions lack. Everything else is in all of them.
const LATER: &[&str] = &[
    "ibv_reg_mr_iova2",
    "ibv_reg_dmabuf_mr",
    "IBV_ACCESS_RELAXED_ORDERING",
    "RDMA_OPTION_ID_ACK_TIMEOUT",
];

fn bare(text: &str) -> String {
    let text: String = text.chars().filter(|c| !c.is_whitespace()).collect();
    text.replace("::std::os::raw::", "").replace(",)", ")")
}

/// Types of the arguments between `(` and the `)` that closes it, and what follows up to `end`.
fn signature(text: &str, end: &str) -> String {
    let close = text.find(')').unwrap_or(0);
    let arguments = text[1..close].split(',').filter(|a| !a.is_empty());
    let types: Vec<&str> = arguments.map(|a| a.split_once(':').map_or(a, |(_, t)| t)).collect();
    let rest = &text[close + 1..];
    format!("({}){}", types.join(","), &rest[..rest.find(end).unwrap_or(0)])
}

/// Every function of a header, by name.
fn declared(text: &str) -> BTreeMap<String, String> {
    let text = bare(text);
    let parts = text.split("pubfn").skip(1).filter_map(|part| {
        let (name, rest) = part.split_at(part.find('(')?);
        Some((name.to_owned(), signature(rest, ";")))
    });
    parts.collect()
}

/// Every function of our bindings, by name.
fn bound(text: &str) -> BTreeMap<String, String> {
    let text = bare(text);
    let parts = text.split("pub").skip(1).filter_map(|part| {
        let (name, rest) = part.split_once(":Result<unsafeextern\"C\"fn")?;
        Some((name.to_owned(), signature(rest, ",::libloading")))
    });
    parts.collect()
}

/// Every constant of numbers, by name.
fn constants(text: &str) -> BTreeMap<String, String> {
    let lines = text.lines().filter_map(|line| line.trim().strip_prefix("pub const "));
    let parts = lines.filter_map(|line| {
        let (name, rest) = line.split_once(':')?;
        let value: i64 = rest.split_once('=')?.1.trim().trim_end_matches(';').parse().ok()?;
        Some((name.to_owned(), value.to_string()))
    });
    parts.collect()
}

/// Every size, alignment and offset, by its name in the bindings.
fn layout(text: &str) -> BTreeMap<String, String> {
    let text: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut found = BTreeMap::new();
    for kind in ["Size of ", "Alignment of ", "Offset of field: "] {
        for part in text.split(&format!("[\"{kind}")).skip(1) {
            let (name, rest) = part.split_once('"').expect("the end of a name");
            let (_, number) = rest.split_once(" - ").expect("a number");
            let number = number.split("usize").next().expect("its type");
            found.insert(format!("{kind}{name}"), number.to_owned());
        }
    }
    found
}

/// Says where the two differ. All of ours is in the other, but for what came later.
fn compare(ours: &BTreeMap<String, String>, theirs: &BTreeMap<String, String>, header: &str) {
    for (name, own) in ours {
        match theirs.get(name) {
            Some(real) => assert_eq!(own, real, "{name} of {header}"),
            None if LATER.contains(&name.as_str()) => eprintln!("{header} has no {name} yet"),
            None => panic!("{header} has no {name}"),
        }
    }
}

#[test]
fn our_headers_say_what_the_real_ones_say() {
    if REAL.is_empty() {
        eprintln!("no headers of rdma-core were found when this was built");
        return;
    }
    for (header, part, text) in REAL {
        let (_, own) = OURS.iter().find(|(name, _)| name == part).expect("a part");
        compare(&bound(own), &declared(text), header);
        compare(&constants(own), &constants(text), header);
        compare(&layout(own), &layout(text), header);
    }
}

/// What is compared is all there is: a change of how bindgen writes does not empty the lists.
#[test]
fn our_bindings_are_read_in_full() {
    let header = |part: &str| match part {
        "verbs" => include_str!("../../ffi/rdma/verbs.h"),
        "cma" => include_str!("../../ffi/rdma/cma.h"),
        _ => include_str!("../../ffi/rdma/rsocket.h"),
    };
    for (part, own) in OURS {
        let text = header(part);
        let functions = bound(own);
        // A function's declaration begins a line with its type, and has the name before `(`.
        let lines = text.lines().filter(|l| l.starts_with(|c: char| c.is_ascii_lowercase()));
        let names = lines.filter_map(|line| {
            let name = line.split_once('(')?.0.rsplit([' ', '*']).next()?;
            name.starts_with(['i', 'r']).then_some(name)
        });
        let names: Vec<&str> = names.collect();
        assert!(names.iter().all(|name| functions.contains_key(*name)), "{part}: {names:?}");
        assert_eq!(names.len(), functions.len(), "{part}");
        let found = constants(own);
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let is_constant =
            |word: &&str| ["IBV_", "RDMA_", "SOL_"].iter().any(|begin| word.starts_with(begin));
        for word in words.filter(is_constant) {
            assert!(found.contains_key(word), "{word} of {part}");
        }
        let sizes = layout(own);
        // Only the parts with structures have any, and each has its size and its fields.
        let is_whole = |l: &&str| l.starts_with("struct ") && l.ends_with('{');
        for name in text.lines().filter(is_whole).filter_map(|l| l.split(' ').nth(1)) {
            assert!(sizes.contains_key(&format!("Size of {name}")), "{name} of {part}");
            let field = format!("Offset of field: {name}::");
            assert!(sizes.keys().any(|key| key.starts_with(&field)), "{name} of {part}");
        }
    }
}
