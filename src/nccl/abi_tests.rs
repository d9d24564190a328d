//! Our header, and what is said here of NCCL's versions, beside every `nccl.h` that is installed.

use std::collections::BTreeMap;

use super::abi::{IN_PROGRESS, SUCCESS, raw};
use super::settings::config_bytes;
use super::version::{BuiltIn, Feature, OLDEST, Type, Version};
use crate::bindings::{self, bare, constants};

/// Header, and what bindgen makes of it.
const REAL: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/nccl_headers.rs"));

const OURS: &str = include_str!(concat!(env!("OUT_DIR"), "/nccl.rs"));

/// The functions of a header.
fn declared(text: &str) -> BTreeMap<String, String> {
    bindings::declared(&bare(text).replace("ncclConfig_t", "config"), "nccl")
}

/// Those of our bindings.
fn bound(text: &str) -> BTreeMap<String, String> {
    bindings::bound(&bare(text).replace("ncclConfig_t", "config"), "nccl")
}

/// Offset of each field of the configuration, by name, and its size as the field "".
fn config(text: &str) -> BTreeMap<String, usize> {
    let alias = text.split("pub type ncclConfig_t = ").nth(1).and_then(|r| r.split(';').next());
    let name = alias.expect("a configuration");
    let text: String = text.chars().filter(|c| !c.is_whitespace()).collect();
    let number = |text: &str| text.split("usize").next().and_then(|n| n.parse().ok());
    let begin = format!("Offsetoffield:{name}::");
    let fields = text.split(&begin).skip(1).filter_map(|part| {
        let (field, rest) = part.split_once('"')?;
        let (_, offset) = rest.split_once(&format!("{field})-"))?;
        Some((field.to_owned(), number(offset)?))
    });
    let mut found: BTreeMap<String, usize> = fields.collect();
    let size = text.split(&format!("size_of::<{name}>()-")).nth(1).and_then(number);
    found.insert(String::new(), size.expect("a size"));
    found
}

#[test]
fn functions_and_constants_are_those_of_real_headers() {
    if REAL.is_empty() {
        eprintln!("no nccl.h was found when this was built");
        return;
    }
    for (header, text) in REAL {
        let (own, real) = (bound(OURS), declared(text));
        let shared = own.iter().filter_map(|(name, ours)| Some((name, ours, real.get(name)?)));
        let mut compared = 0;
        for (name, ours, theirs) in shared {
            assert_eq!(ours, theirs, "{name} of {header}");
            compared += 1;
        }
        assert!(compared >= 24, "only {compared} functions of {header} compared: {text}");
        let (own, real) = (constants(OURS), constants(text));
        let shared = own.iter().filter_map(|(name, ours)| Some((name, ours, real.get(name)?)));
        let mut compared = 0;
        for (name, ours, theirs) in shared {
            assert_eq!(ours, theirs, "{name} of {header}");
            compared += 1;
        }
        assert!(compared >= 26, "only {compared} constants of {header} compared");
    }
}

/// Fields lie where each version has them, and end where it ends.
#[test]
fn the_configuration_is_that_of_real_headers() {
    let own = config(OURS);
    for (header, text) in REAL {
        let version = Version(u32::try_from(constants(text)["NCCL_VERSION_CODE"]).expect("one"));
        let bytes = config_bytes(version);
        let real = config(text);
        for (field, offset) in own.iter().filter(|(field, _)| !field.is_empty()) {
            match real.get(field) {
                Some(theirs) => assert_eq!(offset, theirs, "{field} of {header}"),
                // Where a version has no such field it has padding, or ends.
                None => assert!(*offset + 4 >= real[""], "{field} of {header}"),
            }
        }
        if version == version.known() {
            assert_eq!(bytes, real[""], "{header}");
        } else {
            assert!(bytes <= real[""], "{header}");
        }
    }
    assert_eq!(own[""], config_bytes(Version(u32::MAX)));
}

/// A header has the calls of a feature exactly from the version on that is written down for it.
#[test]
fn features_are_those_of_real_headers() {
    for (header, text) in REAL {
        let version = Version(u32::try_from(constants(text)["NCCL_VERSION_CODE"]).expect("one"));
        assert!(version >= OLDEST, "{header}");
        let real = declared(text);
        for feature in Feature::ALL {
            for call in feature.calls() {
                let has = version >= feature.since();
                assert_eq!(real.contains_key(*call), has, "{call} of {header}");
            }
        }
        let names = constants(text);
        for (name, dtype) in
            [("ncclFloat8e4m3", crate::Dtype::F8E4M3), ("ncclInt8", crate::Dtype::I8)]
        {
            assert_eq!(names.contains_key(name), Type::of(dtype, version).is_some(), "{header}");
        }
    }
}

#[test]
fn numbers_are_those_of_the_header() {
    assert_eq!([SUCCESS, IN_PROGRESS], [raw::ncclSuccess, raw::ncclInProgress]);
    let types = [
        (Type::I8, raw::ncclInt8),
        (Type::U8, raw::ncclUint8),
        (Type::I32, raw::ncclInt32),
        (Type::U32, raw::ncclUint32),
        (Type::I64, raw::ncclInt64),
        (Type::U64, raw::ncclUint64),
        (Type::F16, raw::ncclFloat16),
        (Type::F32, raw::ncclFloat32),
        (Type::F64, raw::ncclFloat64),
        (Type::Bf16, raw::ncclBfloat16),
        (Type::F8E4M3, raw::ncclFloat8e4m3),
        (Type::F8E5M2, raw::ncclFloat8e5m2),
    ];
    assert!(types.iter().all(|(ours, theirs)| ours.number() == *theirs));
    let ops = [
        (BuiltIn::Sum, raw::ncclSum),
        (BuiltIn::Prod, raw::ncclProd),
        (BuiltIn::Max, raw::ncclMax),
        (BuiltIn::Min, raw::ncclMin),
        (BuiltIn::Avg, raw::ncclAvg),
    ];
    assert!(ops.iter().all(|(ours, theirs)| ours.number() == *theirs));
}
