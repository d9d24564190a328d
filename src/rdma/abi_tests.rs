//! Our headers of RDMA beside every installed one.

use std::collections::BTreeMap;
use std::fmt::Debug;

use crate::bindings::{bare, bound, constants, declared};

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
fn compare<V>(ours: &BTreeMap<String, V>, theirs: &BTreeMap<String, V>, header: &str)
where
    V: PartialEq + Debug,
{
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
        compare(&bound(&bare(own), ""), &declared(&bare(text), ""), header);
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
        let functions = bound(&bare(own), "");
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
