//! Our header of the driver beside the cuda.h of installations.

use std::collections::BTreeMap;

/// Header, and what bindgen makes of it.
const REAL: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/cuda_headers.rs"));

const OURS: &str = include_str!(concat!(env!("OUT_DIR"), "/cuda_driver.rs"));

fn bare(text: &str) -> String {
    let text: String = text.chars().filter(|c| !c.is_whitespace()).collect();
    text.replace("::std::os::raw::", "").replace(",)", ")")
}

/// Types of the arguments between `(` and the `)` that closes it, and what is returned.
fn signature(text: &str) -> String {
    let close = text.find(')').expect("no function takes a function's type by itself");
    let arguments = text[1..close].split(',').filter(|a| !a.is_empty());
    let types: Vec<&str> = arguments.map(|a| a.split_once(':').map_or(a, |(_, t)| t)).collect();
    let end = text[close..].find([';', ',', '{']).map_or(text.len(), |at| close + at);
    format!("({}){}", types.join(","), &text[close + 1..end])
}

/// Functions by name; `begin` stands before a name and `between` before its arguments.
fn functions(text: &str, begin: &str, between: &str) -> BTreeMap<String, String> {
    let text = bare(text);
    let parts = text.split(begin).skip(1).filter_map(|part| {
        let (name, rest) = part.split_once(between)?;
        Some((format!("cu{name}"), signature(&format!("({rest}"))))
    });
    parts.filter(|(name, _)| name.chars().all(|c| c.is_alphanumeric() || c == '_')).collect()
}

/// Constants by name.
fn constants(text: &str) -> BTreeMap<String, String> {
    let text = bare(text);
    let parts = text.split("pubconstCU").skip(1).filter_map(|part| {
        let (name, rest) = part.split_once(':')?;
        let value = rest.split_once('=')?.1.split(';').next()?;
        Some((format!("CU{name}"), value.to_owned()))
    });
    parts.collect()
}

/// Sizes and places that bindgen asserts of our structs.
fn layouts(text: &str) -> Vec<String> {
    let text = bare(text);
    let words = ["CUuuid_st", "CUipcMemHandle_st", "CUipcEventHandle_st"];
    let lines = text.split("[\"").skip(1).filter_map(|part| part.split(';').next());
    let mut found: Vec<String> =
        lines.filter(|l| words.iter().any(|w| l.contains(w))).map(str::to_owned).collect();
    found.sort();
    found
}

#[test]
fn functions_constants_and_layouts_are_those_of_real_headers() {
    if REAL.is_empty() {
        eprintln!("no cuda.h was found when this was built");
        return;
    }
    let (own, own_constants) = (functions(OURS, "pubcu", ":unsafeextern\"C\"fn("), constants(OURS));
    assert!(own.len() > 70 && own_constants.len() > 70, "{} {}", own.len(), own_constants.len());
    for (header, text) in REAL {
        let (real, real_constants) = (functions(text, "pubfncu", "("), constants(text));
        for (name, ours) in &own {
            let theirs = real.get(name).unwrap_or_else(|| panic!("{name} is not in {header}"));
            assert_eq!(ours, theirs, "{name} of {header}");
        }
        for (name, ours) in &own_constants {
            let theirs = real_constants.get(name);
            let theirs = theirs.unwrap_or_else(|| panic!("{name} is not in {header}"));
            assert_eq!(ours, theirs, "{name} of {header}");
        }
        assert_eq!(layouts(OURS), layouts(text), "{header}");
        assert!(layouts(OURS).len() >= 9);
    }
}

/// What a build without libclang reads by itself.
#[test]
fn constants_can_be_read_without_bindgen() {
    let text = include_str!("../../ffi/cuda/driver.h");
    let lines = text.lines().map(str::trim);
    let of_enum = lines.clone().filter_map(|l| l.trim_end_matches(',').split_once(" = "));
    let of_macro = lines.filter_map(|l| l.strip_prefix("#define ")?.split_once(' '));
    let read = of_enum.chain(of_macro).map(|(n, v)| (n.to_owned(), v.to_owned()));
    assert_eq!(read.collect::<BTreeMap<_, _>>(), constants(OURS));
}
