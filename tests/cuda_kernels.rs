//! The CUDA kernels, run by their host twin, give the oracle's bits whatever the shape of the call.
#![allow(missing_docs)]

mod cuda;
mod support;

use std::collections::BTreeSet;

use cuda::{Buffer, Twin, names, twin};
use unisono::kernel::cuda::trial::{
    ConvertTrial, FoldTrial, Forms, Random, RoundTrial, bytes_of, factor, fill, rounded, value,
};
use unisono::kernel::cuda::{
    DeviceChecksum, DeviceFold, DeviceRound, DeviceSource, FAN, Move, PackTable, checksum, pack,
};
use unisono::kernel::{Form, Stage};
use unisono::types::{Dtype, ReduceOp};

const COUNTS: &[usize] = &[0, 1, 3, 15, 16, 17, 257, 1000];
const FEW_COUNTS: &[usize] = &[3, 17, 1000];

macro_rules! twin_or_skip {
    ($what:literal) => {
        match twin() {
            Ok(twin) => twin,
            Err(why) => return support::skip($what, &why),
        }
    };
}

fn supported() -> impl Iterator<Item = (Dtype, ReduceOp)> {
    let pairs = Dtype::ALL.iter().flat_map(|&d| ReduceOp::ALL.iter().map(move |&op| (d, op)));
    pairs.filter(|(dtype, op)| op.supports(*dtype))
}

/// A fold, on what part of a device it runs, and by which grid if not by its own.
fn fold(random: &mut Random, kind: (Dtype, ReduceOp), n: usize, count: usize) -> FoldTrial {
    FoldTrial::new(random, kind, n, count, Forms::Any)
}

fn try_out(twin: &Twin, random: &mut Random, fold: &FoldTrial) {
    let grid = random.chance(3).then(|| (random.pick(&[1, 2]), random.pick(&[32, 96])));
    twin.try_out(&mut fold.trial(), random.pick(&[1, 2, 132]), grid);
}

#[test]
fn folds_agree_for_every_type_operation_and_number_of_sources() {
    let twin = twin_or_skip!("folds of the CUDA kernels");
    let mut random = Random::new(1);
    for (dtype, op) in supported() {
        for n in 1..=FAN {
            let counts = if n <= 5 { COUNTS } else { FEW_COUNTS };
            for &count in counts {
                let fold = fold(&mut random, (dtype, op), n, count);
                try_out(twin, &mut random, &fold);
            }
        }
    }
}

#[test]
fn folds_whose_threads_take_several_vectors_agree() {
    let twin = twin_or_skip!("large folds of the CUDA kernels");
    let mut random = Random::new(2);
    for (dtype, op) in supported() {
        for (n, count) in [(1, 9001), (2, 9001), (2, 20_011), (4, 5003), (9, 3001)] {
            let fold = fold(&mut random, (dtype, op), n, count);
            let grid = (1 + u32::try_from(n).expect("small") % 3, 64);
            twin.try_out(&mut fold.trial(), 1, Some(grid));
        }
    }
}

/// Two native sources to one native target are what training asks for.
#[test]
fn folds_of_two_native_sources_agree() {
    let twin = twin_or_skip!("folds of two by the CUDA kernels");
    let mut random = Random::new(3);
    for (dtype, op) in supported() {
        for count in [1, 31, 32, 33, 63, 64, 65, 1000] {
            let mut fold = FoldTrial::new(&mut random, (dtype, op), 2, count, Forms::Native);
            fold.sources.iter_mut().for_each(|source| source.past = 0);
            (fold.targets, fold.in_place) = (vec![0], None);
            try_out(twin, &mut random, &fold);
        }
    }
}

#[test]
fn blocks_of_sixteen_and_their_partials_are_the_tree_of_all() {
    let twin = twin_or_skip!("folds of many by the CUDA kernels");
    let mut random = Random::new(4);
    for dtype in [Dtype::F32, Dtype::F16, Dtype::F8E4M3, Dtype::Complex64] {
        for n in [17, 32, 33, 40, 255, 256] {
            let stage = Stage::Finish { ranks: u32::try_from(n).expect("small") };
            let mut all = fold(&mut random, (dtype, ReduceOp::Avg), n, 37);
            (all.target_form, all.stage) = (Form::Native, stage);
            let expected = all.expected();
            let wide = 37 * bytes_of(dtype, Form::Wide);
            let mut buffers: Vec<(Buffer, Form)> =
                all.sources.iter().map(|s| (Buffer::of(&s.bytes, 0), s.form)).collect();
            let mut target = Buffer::new(37 * dtype.bytes(), 0);
            let fold = |sources: &mut [(Buffer, Form)], at, target_form, stage| {
                let operands: Vec<DeviceSource> = sources
                    .iter_mut()
                    .map(|(buffer, form)| DeviceSource { at: buffer.address(), form: *form })
                    .collect();
                let fold = DeviceFold {
                    dtype,
                    op: ReduceOp::Avg,
                    sources: &operands,
                    factors: None,
                    targets: &[at],
                    target_form,
                    count: 37,
                    stage,
                };
                twin.run(&fold.launch(1).expect("a fold"));
            };
            while buffers.len() > FAN {
                let partials = buffers.chunks_mut(FAN).map(|block| {
                    let mut partial = Buffer::new(wide, 0);
                    fold(block, partial.address(), Form::Wide, Stage::Plain);
                    (partial, Form::Wide)
                });
                buffers = partials.collect();
            }
            fold(&mut buffers, target.address(), Form::Native, stage);
            assert_eq!(target.checked(), expected, "{dtype} of {n}");
        }
    }
}

#[test]
fn converts_agree_for_every_type_operation_form_and_stage() {
    let twin = twin_or_skip!("converts of the CUDA kernels");
    let mut random = Random::new(5);
    for (dtype, op) in supported() {
        for &count in COUNTS {
            for (from, to) in [
                (Form::Native, Form::Native),
                (Form::Native, Form::Wide),
                (Form::Wide, Form::Native),
                (Form::Wide, Form::Wide),
            ] {
                let ranks = random.pick(&[1, 2, 3, 48, 300]);
                for stage in [
                    Stage::Plain,
                    Stage::Finish { ranks },
                    Stage::Prepare(factor(&mut random, dtype)),
                ] {
                    let convert = ConvertTrial { dtype, op, forms: (from, to), stage };
                    let mut trial = convert.trial(&mut random, count);
                    let (sms, block) = (random.pick(&[1, 132]), random.pick(&[32, 256]));
                    let grid = (block != 256).then_some((2, block));
                    twin.try_out(&mut trial, sms, grid);
                }
            }
        }
    }
}

const SMALL: [Dtype; 4] = [Dtype::F16, Dtype::Bf16, Dtype::F8E4M3, Dtype::F8E5M2];

fn round(
    twin: &Twin,
    dtype: Dtype,
    (source, past_source): (&[f32], usize),
    past_target: usize,
    (seed, first): (u64, u64),
) -> Vec<u32> {
    let bytes: Vec<u8> = source.iter().flat_map(|x| x.to_bits().to_le_bytes()).collect();
    let mut from = Buffer::of(&bytes, past_source);
    let mut to = Buffer::new(source.len() * dtype.bytes(), past_target);
    let (count, at) = (source.len() as u64, from.address());
    let round = DeviceRound { dtype, source: at, target: to.address(), count, seed, first };
    let launch = round.launch(2).expect("a rounding");
    twin.run(&launch);
    let code = |bytes: &[u8]| bytes.iter().rev().fold(0, |code, &b| code << 8 | u32::from(b));
    to.checked().chunks_exact(dtype.bytes()).map(code).collect()
}

#[test]
fn stochastic_rounding_is_its_definition() {
    let twin = twin_or_skip!("stochastic rounding by the CUDA kernels");
    let mut random = Random::new(6);
    for dtype in SMALL {
        for count in [0, 1, 3, 4, 5, 17, 257, 5000] {
            let mut trial = RoundTrial { dtype, count }.trial(&mut random);
            twin.try_out(&mut trial, 2, None);
        }
    }
}

/// The mean is off by no more than chance: five standard deviations of a coin that is thrown.
#[test]
fn stochastic_rounding_is_unbiased() {
    let twin = twin_or_skip!("the mean of stochastic rounding by the CUDA kernels");
    const THROWS: u32 = 1 << 16;
    let mut random = Random::new(7);
    for dtype in SMALL {
        for (case, scale) in [1.0f32, -3.0, 100.0, 2e-3, 2e-6, 3e-8].into_iter().enumerate() {
            let low = value(dtype, 1);
            let share = random.below(1 << 20) as f32 / (1 << 20) as f32;
            let number = scale * (1.0 + share);
            let got = round(twin, dtype, (&vec![number; THROWS as usize], 0), 0, (9, case as u64));
            let sign = if number < 0.0 { -1.0 } else { 1.0 };
            let top = if dtype.bytes() == 2 { 0x7fff } else { 0x7f };
            let sum: f64 = got.iter().map(|code| sign * value(dtype, code & top)).sum();
            let (below, above) = (rounded(dtype, number, u32::MAX), rounded(dtype, number, 0));
            let step = (value(dtype, above & top) - value(dtype, below & top)).max(low);
            let (mean, throws) = (sum / f64::from(THROWS), f64::from(THROWS));
            let bound = 5.0 * step * 0.5 / throws.sqrt();
            let off = (mean - f64::from(number)).abs();
            assert!(off <= bound, "{dtype}: the mean of {number:e} is {mean:e}");
        }
    }
}

#[test]
fn a_buffer_may_be_rounded_in_parts() {
    let twin = twin_or_skip!("stochastic rounding in parts by the CUDA kernels");
    let numbers: Vec<f32> = (0..100u8).map(|i| 1.0 + f32::from(i) / 1000.0).collect();
    for dtype in SMALL {
        let whole = round(twin, dtype, (&numbers, 0), 0, (3, 0));
        let mut parts = round(twin, dtype, (&numbers[..37], 0), 0, (3, 0));
        parts.extend(round(twin, dtype, (&numbers[37..], 0), 0, (3, 37)));
        assert_eq!(whole, parts);
        assert_ne!(whole, round(twin, dtype, (&numbers, 0), 0, (4, 0)), "another seed");
    }
}

/// Moves between random places of one buffer and those of another that do not overlap.
fn moves(random: &mut Random, from: u64, to: u64, number: usize) -> (Vec<Move>, usize, usize) {
    let (mut source, mut target) = (0, 0);
    let mut list = Vec::new();
    for _ in 0..number {
        source += random.pick(&[0, 1, 4, 8, 16, 21]);
        target += random.pick(&[0, 1, 4, 8, 16, 21]);
        let bytes = match random.below(40) {
            0 => 32_768 + random.below(70_000),
            1..10 => 0,
            _ => random.below(300),
        };
        let (at, into) = (from + source as u64, to + target as u64);
        list.push(Move { source: at, target: into, bytes: bytes as u64 });
        (source, target) = (source + bytes, target + bytes);
    }
    (list, source, target)
}

#[test]
fn packs_copy_every_block_and_nothing_else() {
    let twin = twin_or_skip!("packs by the CUDA kernels");
    let mut random = Random::new(8);
    for number in [0, 1, 2, 5, 63, 64, 65, 200, 1000] {
        for _ in 0..4 {
            let room = 24 * number + 105_000 * number.min(200) + 64;
            let mut from = Buffer::new(room, random.below(16));
            fill(&mut random, Dtype::U8, from.contents());
            let mut to = Buffer::new(room, random.below(16));
            let (from_at, to_at) = (from.address(), to.address());
            let (list, read, written) = moves(&mut random, from_at, to_at, number);
            assert!(read <= room && written <= room, "the buffers are too small for this seed");
            let mut wanted = to.contents().to_vec();
            for one in &list {
                let place = |at: u64, start: u64| usize::try_from(at - start).expect("inside");
                let (source, target) = (place(one.source, from_at), place(one.target, to_at));
                let bytes = usize::try_from(one.bytes).expect("small");
                wanted[target..target + bytes]
                    .copy_from_slice(&from.contents()[source..source + bytes]);
            }
            let table = PackTable::new(&list).expect("apart");
            let mut entries = Buffer::of(table.bytes(), 8);
            let launch = table.launch(entries.address(), 3).expect("a pack");
            let block = random.pick(&[32, 256]);
            twin.run_as(&launch, random.pick(&[1, launch.grid, 7]), block);
            assert!(to.checked() == wanted, "{number} blocks");

            // And back: what was read is there again.
            let back: Vec<Move> = list
                .iter()
                .map(|one| Move { source: one.target, target: one.source, bytes: one.bytes })
                .collect();
            let before = from.contents().to_vec();
            let table = PackTable::new(&back).expect("apart");
            let mut entries = Buffer::of(table.bytes(), 0);
            twin.run(&table.launch(entries.address(), 2).expect("a pack"));
            assert!(from.checked() == before, "{number} blocks back");
        }
    }
}

#[test]
fn a_pack_of_a_few_blocks_needs_no_table() {
    let twin = twin_or_skip!("a pack of few blocks by the CUDA kernels");
    let mut from = Buffer::of(&[1, 2, 3, 4, 5, 6, 7, 8], 0);
    let mut to = Buffer::new(4, 3);
    let (source, target) = (from.address() + 2, to.address());
    twin.run(&pack(&[Move { source, target, bytes: 4 }], 1).expect("a pack"));
    assert_eq!(to.checked(), [3, 4, 5, 6]);
}

/// The checksum that the twin makes with a grid of its own.
fn device_checksum(twin: &Twin, bytes: &[u8], past: usize, grid: u32, block: u32) -> u64 {
    let mut source = Buffer::of(bytes, past);
    let mut target = Buffer::of(&[0; 8], 0);
    let sum = DeviceChecksum {
        source: source.address(),
        bytes: bytes.len() as u64,
        target: target.address(),
        skip: 0,
        length: Some(bytes.len() as u64),
    };
    twin.run_as(&sum.launch(2).expect("a checksum"), grid, block);
    u64::from_le_bytes(target.checked().try_into().expect("8 bytes"))
}

#[test]
fn a_checksum_is_the_same_for_every_grid_and_alignment_and_on_the_host() {
    let twin = twin_or_skip!("checksums by the CUDA kernels");
    let mut random = Random::new(9);
    for len in [0, 1, 7, 8, 9, 63, 64, 1000, 4096, 70_001] {
        let mut bytes = vec![0; len];
        fill(&mut random, Dtype::U8, &mut bytes);
        let wanted = checksum(&bytes);
        for (past, grid, block) in [(0, 1, 32), (8, 3, 256), (1, 2, 64), (12, 8, 256)] {
            let got = device_checksum(twin, &bytes, past, grid, block);
            assert_eq!(got, wanted, "{len} bytes, {past} past a line, {grid} blocks of {block}");
        }
    }
}

#[test]
fn checksums_of_parts_add_up() {
    let twin = twin_or_skip!("checksums of parts by the CUDA kernels");
    let mut random = Random::new(10);
    let mut bytes = vec![0; 5003];
    fill(&mut random, Dtype::U8, &mut bytes);
    let mut source = Buffer::of(&bytes, 0);
    let mut target = Buffer::of(&[0; 8], 0);
    for (from, to) in [(0, 800), (2400, 5003), (800, 2400)] {
        let part = DeviceChecksum {
            source: source.address() + from,
            bytes: to - from,
            target: target.address(),
            skip: from,
            length: (to == 800).then_some(5003),
        };
        twin.run(&part.launch(1).expect("a checksum"));
    }
    assert_eq!(target.checked(), checksum(&bytes).to_le_bytes());
}

#[test]
fn a_checksum_tells_any_bit_any_length_and_any_order() {
    let twin = twin_or_skip!("what checksums by the CUDA kernels tell");
    let mut random = Random::new(11);
    let mut bytes = vec![0; 203];
    fill(&mut random, Dtype::U8, &mut bytes);
    let mut seen = BTreeSet::from([device_checksum(twin, &bytes, 0, 1, 32)]);
    let mut tell = |bytes: &[u8], what: &str| {
        assert!(seen.insert(device_checksum(twin, bytes, 0, 1, 32)), "{what}");
    };
    for bit in 0..bytes.len() * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        tell(&bytes, &format!("bit {bit}"));
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
    for len in 0..bytes.len() {
        tell(&bytes[..len], &format!("the first {len} bytes"));
        tell(&vec![0; len + 1], &format!("{} zeros", len + 1));
    }
    for (one, other) in [(0, 8), (8, 192), (3, 4), (0, 7)] {
        bytes.swap(one, other);
        tell(&bytes, &format!("bytes {one} and {other} exchanged"));
        bytes.swap(one, other);
    }
    let (low, rest) = bytes.split_at_mut(8);
    low.swap_with_slice(&mut rest[..8]);
    tell(&bytes, "words exchanged");
}

#[test]
fn the_twin_has_every_kernel_that_can_be_asked_for() {
    let twin = twin_or_skip!("the names of the CUDA kernels");
    for (kernel, name) in names() {
        assert!(twin.has(&name), "{kernel:?} is not in the twin");
    }
    for unknown in [c"unisono_fold_f32_mean_2", c""] {
        assert!(!twin.has(unknown) && twin.refuses(unknown));
        assert_eq!(twin.size(unknown), 0);
    }
}
