//! Our headers beside those of the MPIs that are installed here.

use std::path::Path;
use std::process::Command;

use crate::bindings::{bare, bound, declared};

/// Header, ABI, and what bindgen makes of it.
const REAL: &[(&str, &str, &str)] = include!(concat!(env!("OUT_DIR"), "/mpi_headers.rs"));

const OURS: &[(&str, &str)] = &[
    ("openmpi", include_str!(concat!(env!("OUT_DIR"), "/mpi_openmpi.rs"))),
    ("mpich", include_str!(concat!(env!("OUT_DIR"), "/mpi_mpich.rs"))),
    ("standard", include_str!(concat!(env!("OUT_DIR"), "/mpi_standard.rs"))),
];

/// Bytes of a status.
fn status_bytes(text: &str) -> Option<u32> {
    let text = bare(text);
    let alias = text.split("pubtypeMPI_Status=").nth(1).and_then(|rest| rest.split(';').next());
    let name = alias.unwrap_or("MPI_Status");
    let size = text.split(&format!("size_of::<{name}>()-")).nth(1)?;
    size.split("usize").next()?.parse().ok()
}

#[test]
fn functions_and_the_status_are_those_of_real_headers() {
    if REAL.is_empty() {
        eprintln!("no header of an MPI was found when this was built");
        return;
    }
    for (header, abi, text) in REAL {
        let (_, own) = OURS.iter().find(|(name, _)| name == abi).expect("an ABI of ours");
        let (own_status, status) = (status_bytes(own), status_bytes(text));
        assert_eq!(own_status, status, "the status of {header}");
        assert!(status.is_some(), "{header}");
        let (own, real) = (bound(&bare(own), "MPI_"), declared(&bare(text), "MPI_"));
        let mut compared = 0;
        for (name, ours) in &own {
            if let Some(theirs) = real.get(name) {
                assert_eq!(ours, theirs, "{name} of {header}");
                compared += 1;
            }
        }
        assert!(compared > 50, "only {compared} functions of {header} compared");
    }
}

/// The constants in the text of our header of an ABI, by name.
fn constants(abi: &str) -> Vec<(String, String)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("ffi/mpi/{abi}.h"));
    let text = std::fs::read_to_string(path).expect("our header");
    let lines = text.lines().filter_map(|line| line.strip_prefix("#define UNISONO_"));
    lines.filter_map(|l| l.split_once(' ')).map(|(n, v)| (n.to_owned(), v.to_owned())).collect()
}

/// The last number of an expression, in whatever base.
fn number(text: &str) -> Option<i64> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
    let value = |word: &str| match word.strip_prefix("0x") {
        Some(hex) => i64::from_str_radix(hex, 16).ok(),
        None => word.parse().ok(),
    };
    words.filter(|word| !word.is_empty()).filter_map(value).next_back()
}

/// The preprocessor says what a header's constants are; enumerators stay what they are.
#[test]
fn constants_are_those_of_real_headers() {
    for (header, abi, _) in REAL {
        let wanted = constants(abi);
        let mut text = format!("#include \"{header}\"\n");
        for (name, _) in &wanted {
            text += &format!("unisono_constant {name} = MPI_{name};\n");
        }
        let name = format!("unisono-mpi-{}-{abi}.c", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, text).expect("a file");
        let output = Command::new("cc").args(["-E", "-P"]).arg(&path).output().expect("cc");
        std::fs::remove_file(&path).expect("it was there");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let output = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut compared = 0;
        for (name, value) in &wanted {
            let begin = format!("unisono_constant {name} = ");
            let line = output.lines().find_map(|line| line.strip_prefix(&begin));
            let said = line.unwrap_or_else(|| panic!("{name} of {header}"));
            if said.trim_end_matches(';') == format!("MPI_{name}") {
                continue;
            }
            compared += 1;
            match value.strip_prefix('"') {
                Some(symbol) => {
                    let symbol = symbol.trim_end_matches('"');
                    let words = said.split(|c: char| !c.is_alphanumeric() && c != '_');
                    assert!(words.into_iter().any(|w| w == symbol), "{name} of {header}: {said}");
                }
                None => assert_eq!(number(said), number(value), "{name} of {header}: {said}"),
            }
        }
        assert!(compared >= 25, "only {compared} constants of {header} compared");
    }
}
