//! Names, layouts and refusals. `tests/cuda_kernels.rs` runs what is launched.

use std::collections::BTreeSet;

use super::super::{Form, Scalar, Stage};
use super::*;
use crate::error::{Code, Result};
use crate::types::{Dtype, ReduceOp};

/// (unit, kernel) as nvcc has compiled them.
#[cfg(unisono_cuda_kernels)]
const COMPILED: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/cuda_names.rs"));

#[cfg(unisono_cuda_kernels)]
#[test]
fn images_hold_every_kernel_that_can_be_asked_for_and_no_other() {
    let compiled: BTreeSet<String> = COMPILED.iter().map(|(_, name)| (*name).to_owned()).collect();
    let asked = Kernel::all().into_iter().map(|k| k.name().into_string().expect("ASCII"));
    assert_eq!(asked.collect::<BTreeSet<_>>(), compiled);
    for kernel in Kernel::all() {
        let name = kernel.name().into_string().expect("ASCII");
        let (unit, _) = COMPILED.iter().find(|(_, other)| *other == name).expect("compiled");
        let image = kernel.image().expect("an image");
        let own = Dtype::from_name(unit).map_or_else(bytes_image, image_of);
        assert!(own.is_some_and(|own| std::ptr::eq(own, image)), "{name} is in {unit}");
    }
    assert!(!ARCHITECTURES.is_empty());
}

#[cfg(unisono_cuda_kernels)]
fn image_of(dtype: Dtype) -> Option<&'static [u8]> {
    image(dtype)
}

/// An image begins with a number, its version, the length of its header and that of the rest.
#[cfg(unisono_cuda_kernels)]
#[test]
fn images_are_whole_and_aligned() {
    for &dtype in Dtype::ALL {
        let image = image(dtype).expect("built");
        assert!(image.as_ptr().addr().is_multiple_of(16));
        assert_eq!(image[..4], 0xba55_ed50_u32.to_le_bytes());
        let header = u16::from_le_bytes([image[6], image[7]]);
        let rest = u64::from_le_bytes(image[8..16].try_into().expect("8 bytes"));
        assert_eq!(u64::from(header) + rest, image.len() as u64);
    }
}

#[cfg(not(unisono_cuda_kernels))]
#[test]
fn without_a_compiler_there_are_no_images() {
    assert!(Kernel::all().iter().all(|kernel| kernel.image().is_none()));
    assert!(ARCHITECTURES.is_empty());
}

#[test]
fn constants_are_those_of_the_header() {
    let header = include_str!("../../../cuda/arguments.h");
    let number = |name: &str| -> u64 {
        let line = header.lines().find_map(|l| l.strip_prefix(&format!("#define UNISONO_{name} ")));
        line.expect(name).trim_end_matches('u').parse().expect("a number")
    };
    for (name, ours) in [
        ("BLOCK", u64::from(BLOCK)),
        ("FAN", FAN as u64),
        ("PACK_INLINE", PACK_INLINE as u64),
        ("PACK_PIECE_BYTES", PACK_PIECE_BYTES),
        ("TARGET_WIDE", u64::from(arguments::TARGET_WIDE)),
        ("FINISH", u64::from(arguments::FINISH)),
        ("SIGNED", u64::from(arguments::SIGNED)),
        ("SOURCE_WIDE", u64::from(arguments::SOURCE_WIDE)),
        ("FACTOR", u64::from(arguments::FACTOR)),
        ("TRUTH", u64::from(arguments::TRUTH)),
        ("LENGTH", u64::from(arguments::LENGTH)),
    ] {
        assert_eq!(number(name), ours, "{name}");
    }
}

const SOURCES: [DeviceSource; 2] = [
    DeviceSource { at: 0x1000, form: Form::Native },
    DeviceSource { at: 0x2000, form: Form::Native },
];

fn fold() -> DeviceFold<'static> {
    DeviceFold {
        dtype: Dtype::F16,
        op: ReduceOp::Sum,
        sources: &SOURCES,
        factors: None,
        targets: &[0x3000],
        target_form: Form::Native,
        count: 100,
        stage: Stage::Plain,
    }
}

#[track_caller]
fn refused<T>(result: Result<T>, code: Code, word: &str) {
    let error = result.map(|_| ()).expect_err("refused");
    assert_eq!(error.code, code, "{error}");
    assert!(error.detail.contains(word), "{error}");
}

#[test]
fn folds_that_have_no_meaning_are_refused() {
    let factors = [Scalar([0; 16]); 3];
    let many = [SOURCES[0]; 17];
    let cases = [
        (DeviceFold { op: ReduceOp::Band, ..fold() }, Code::Unsupported, "band"),
        (DeviceFold { sources: &[], ..fold() }, Code::InvalidArgument, "0 sources"),
        (DeviceFold { sources: &many, ..fold() }, Code::InvalidArgument, "17 sources"),
        (DeviceFold { targets: &[], ..fold() }, Code::InvalidArgument, "0 targets"),
        (DeviceFold { targets: &[64; 17], ..fold() }, Code::InvalidArgument, "17 targets"),
        (DeviceFold { factors: Some(&factors), ..fold() }, Code::InvalidArgument, "sum"),
        (
            DeviceFold { factors: Some(&factors), op: ReduceOp::PreMulSum, ..fold() },
            Code::InvalidArgument,
            "3 factors for 2",
        ),
        (
            DeviceFold { stage: Stage::Prepare(factors[0]), ..fold() },
            Code::InvalidArgument,
            "factor",
        ),
        (
            DeviceFold { stage: Stage::Finish { ranks: 0 }, ..fold() },
            Code::InvalidArgument,
            "0 ranks",
        ),
    ];
    for (fold, code, word) in cases {
        refused(fold.launch(1), code, word);
    }
}

#[test]
fn addresses_that_kernels_cannot_use_are_refused() {
    let with = |targets, count| DeviceFold { targets, count, ..fold() }.launch(1);
    refused(with(&[0], 1), Code::NullPointer, "null");
    refused(with(&[0x3001], 1), Code::Misaligned, "0x3001");
    refused(with(&[0x3000], u64::MAX / 2), Code::CountOverflow, "2^64");
    refused(with(&[u64::MAX - 15], 100), Code::CountOverflow, "2^64");
    refused(with(&[0x1002], 100), Code::Overlap, "0x1000");
    refused(with(&[0x3000, 0x3010], 100), Code::Overlap, "0x3000");
    assert!(with(&[0x1000, 0x3000], 100).is_ok(), "in place");
    assert!(with(&[0], 0).is_ok(), "nothing to do");
    let wide = DeviceFold { targets: &[0x1000], target_form: Form::Wide, ..fold() };
    refused(wide.launch(1), Code::Overlap, "0x1000");
    let round = DeviceRound {
        dtype: Dtype::F32,
        source: 0x1000,
        target: 0x2000,
        count: 1,
        seed: 0,
        first: 0,
    };
    refused(round.launch(1), Code::Unsupported, "f32");
}

#[test]
fn packs_and_checksums_that_kernels_cannot_do_are_refused() {
    let one = |source, target, bytes| Move { source, target, bytes };
    refused(pack(&[one(0, 64, 1)], 1), Code::NullPointer, "source");
    refused(pack(&[one(64, 66, 4)], 1), Code::Overlap, "0x40");
    refused(pack(&[one(64, 128, 4), one(256, 130, 4)], 1), Code::Overlap, "targets");
    refused(pack(&[one(64, 128, 4), one(129, 256, 4)], 1), Code::Overlap, "0x81");
    refused(pack(&[one(64, u64::MAX - 1, 4)], 1), Code::CountOverflow, "2^64");
    let many: Vec<Move> = (1..=65).map(|i| one(i * 64, 0x10_0000 + i * 64, 64)).collect();
    refused(pack(&many, 1), Code::Limit, "65");
    let table = PackTable::new(&many).expect("apart");
    refused(table.launch(0, 1), Code::NullPointer, "table");
    refused(table.launch(0x1004, 1), Code::Misaligned, "0x1004");
    assert_eq!(table.bytes().len(), 65 * 32);
    assert!(pack(&[one(64, 64, 4), one(0, 0, 0)], 1).is_ok(), "nothing to do");
    let sum = |source, target, skip| {
        DeviceChecksum { source, bytes: 64, target, skip, length: None }.launch(1)
    };
    refused(sum(0x1000, 0x2004, 0), Code::Misaligned, "0x2004");
    refused(sum(0x1000, 0x1008, 0), Code::Overlap, "0x1000");
    refused(sum(0x1000, 0x2000, 4), Code::InvalidArgument, "4 bytes");
}

#[test]
fn grids_hold_what_there_is_to_do_and_no_more_than_runs_at_once() {
    let grid = |count, sms| DeviceFold { count, ..fold() }.launch(sms).map(|l| l.grid);
    let fold = DeviceFold { targets: &[1 << 40], ..fold() };
    assert_eq!(grid(0, 132), Ok(1));
    assert_eq!(grid(256 * 8, 132), Ok(1));
    let far = [1u64 << 42, 1 << 43];
    let sources = far.map(|at| DeviceSource { at, form: Form::Native });
    let large = DeviceFold { sources: &sources, count: 1 << 32, ..fold };
    assert_eq!(large.launch(132).map(|l| l.grid), Ok(132 * 4));
    assert_eq!(large.launch(1).map(|l| l.grid), Ok(4));
    assert_eq!(large.launch(0).map(|l| l.grid), Ok(1));
}

#[test]
fn elements_are_cut_where_all_operands_meet_a_line() {
    let cut = |sources: &[DeviceSource], target, target_form| {
        let fold = DeviceFold { sources, targets: &[target], target_form, ..fold() };
        match fold.launch(1).expect("a fold").arguments {
            Arguments::Fold(a) => (a.head, a.vectors),
            _ => unreachable!("a fold"),
        }
    };
    let at = |at, form| DeviceSource { at, form };
    let (native, wide) = (Form::Native, Form::Wide);
    assert_eq!(cut(&[at(0x1000, native)], 0x3000, native), (0, 12));
    assert_eq!(cut(&[at(0x1002, native)], 0x3002, native), (7, 11));
    assert_eq!(cut(&[at(0x1002, native)], 0x3004, native), (0, 0));
    // Four wide elements are 16 bytes, four native ones 8.
    assert_eq!(cut(&[at(0x1002, native)], 0x3004, wide), (3, 24));
    assert_eq!(cut(&[at(0x1008, native)], 0x3000, wide), (0, 25));
    assert_eq!(cut(&[at(0x1004, native)], 0x3004, wide), (0, 0));
}
