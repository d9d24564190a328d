//! The CUDA kernels, run by their host twin, give the oracle's bits whatever the shape of the call.
#![allow(missing_docs)]

mod cuda;
mod support;

use std::collections::BTreeSet;

use cuda::{Buffer, Random, Twin, assert_agree, bytes_of, factor, fill, names, part_of, twin};
use unisono::kernel::cuda::{
    DeviceChecksum, DeviceConvert, DeviceFold, DeviceRound, DeviceSource, FAN, Move, PackTable,
    checksum, pack,
};
use unisono::kernel::{Convert, Fold, Form, Isa, Scalar, Source, Stage, select_for};
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

/// Bytes past a line for an operand of a form: the same number of elements, or any that is aligned.
fn past(random: &mut Random, dtype: Dtype, form: Form, alike: Option<usize>) -> usize {
    let part = part_of(dtype, form);
    match alike {
        Some(elements) => elements * bytes_of(dtype, form) % 64,
        None => random.below(64) / part.bytes() * part.bytes(),
    }
}

/// One fold and what it starts from.
struct Case {
    dtype: Dtype,
    op: ReduceOp,
    count: usize,
    sources: Vec<(Vec<u8>, Form, usize)>,
    factors: Option<Vec<Scalar>>,
    targets: Vec<usize>,
    target_form: Form,
    in_place: Option<usize>,
    stage: Stage,
    sms: u32,
    grid: Option<(u32, u32)>,
}

impl Case {
    fn new(random: &mut Random, dtype: Dtype, op: ReduceOp, n: usize, count: usize) -> Self {
        let form = |random: &mut Random, wide_one_in| {
            if random.chance(wide_one_in) { Form::Wide } else { Form::Native }
        };
        let mixed = random.chance(3);
        let alike = (!random.chance(3)).then(|| random.below(16));
        let common = form(random, 4);
        let sources: Vec<(Vec<u8>, Form, usize)> = (0..n)
            .map(|_| {
                let form = if mixed { form(random, 2) } else { common };
                let mut bytes = vec![0; count * bytes_of(dtype, form)];
                fill(random, part_of(dtype, form), &mut bytes);
                (bytes, form, past(random, dtype, form, alike))
            })
            .collect();
        let target_form = if mixed { form(random, 2) } else { form(random, 6) };
        let targets = if random.chance(20) { FAN } else { 1 + random.below(3) };
        let fused = op == ReduceOp::PreMulSum && !random.chance(3);
        let ranks = [n, 3, 1, 7, 64, 4_000_000_000][random.below(6)];
        Self {
            dtype,
            op,
            count,
            factors: fused.then(|| (0..n).map(|_| factor(random, dtype)).collect()),
            targets: (0..targets).map(|_| past(random, dtype, target_form, alike)).collect(),
            target_form,
            in_place: (0..n).find(|&s| sources[s].1 == target_form && random.chance(4)),
            sources,
            stage: if random.chance(2) {
                Stage::Plain
            } else {
                Stage::Finish { ranks: u32::try_from(ranks).expect("32 bits") }
            },
            sms: random.pick(&[1, 2, 132]),
            grid: random.chance(3).then(|| (random.pick(&[1, 2]), random.pick(&[32, 96]))),
        }
    }

    /// What the oracle makes of it.
    fn expected(&self) -> Vec<u8> {
        let kernels = select_for(Isa::Scalar, self.dtype, self.op).expect("supported");
        let mut sources: Vec<(Vec<u8>, Form)> =
            self.sources.iter().map(|(bytes, form, _)| (bytes.clone(), *form)).collect();
        for (source, factor) in sources.iter_mut().zip(self.factors.iter().flatten()) {
            let mut wide = vec![0; self.count * bytes_of(self.dtype, Form::Wide)];
            // SAFETY: both hold `count` elements of their forms.
            unsafe {
                (kernels.convert)(&Convert {
                    source: Source { at: source.0.as_ptr(), form: source.1 },
                    target: wide.as_mut_ptr(),
                    target_form: Form::Wide,
                    count: self.count,
                    stage: Stage::Prepare(*factor),
                });
            }
            *source = (wide, Form::Wide);
        }
        let operands: Vec<Source> = sources
            .iter()
            .map(|(bytes, form)| Source { at: bytes.as_ptr(), form: *form })
            .collect();
        let mut target = vec![0; self.count * bytes_of(self.dtype, self.target_form)];
        // SAFETY: all hold `count` elements of their forms and are apart.
        unsafe {
            (kernels.fold)(&Fold {
                sources: &operands,
                targets: &[target.as_mut_ptr()],
                target_form: self.target_form,
                count: self.count,
                stage: self.stage,
                streaming: 0,
            });
        }
        target
    }

    /// What the twin stores to each target.
    fn run(&self, twin: &Twin) -> Vec<Vec<u8>> {
        let mut sources: Vec<Buffer> =
            self.sources.iter().map(|(bytes, _, past)| Buffer::of(bytes, *past)).collect();
        let len = self.count * bytes_of(self.dtype, self.target_form);
        let mut targets: Vec<Buffer> =
            self.targets.iter().map(|&past| Buffer::new(len, past)).collect();
        let operands: Vec<DeviceSource> = sources
            .iter_mut()
            .zip(&self.sources)
            .map(|(buffer, &(_, form, _))| DeviceSource { at: buffer.address(), form })
            .collect();
        let mut at: Vec<u64> = targets.iter_mut().map(Buffer::address).collect();
        if let Some(source) = self.in_place {
            at[0] = operands[source].at;
        }
        let fold = DeviceFold {
            dtype: self.dtype,
            op: self.op,
            sources: &operands,
            factors: self.factors.as_deref(),
            targets: &at,
            target_form: self.target_form,
            count: self.count as u64,
            stage: self.stage,
        };
        let launch = fold.launch(self.sms).expect("a fold");
        let (grid, block) = self.grid.unwrap_or((launch.grid, launch.block));
        twin.run_as(&launch, grid, block);
        let untouched = |(index, source): (usize, &Buffer)| {
            let bytes = source.checked();
            assert!(self.in_place == Some(index) || bytes == self.sources[index].0);
        };
        sources.iter().enumerate().for_each(untouched);
        let mut results: Vec<Vec<u8>> = targets.iter().map(|t| t.checked().to_vec()).collect();
        if let Some(source) = self.in_place {
            results[0] = sources[source].checked().to_vec();
        }
        results
    }

    fn check(&self, twin: &Twin) {
        let expected = self.expected();
        let what = || {
            let sources: Vec<_> = self.sources.iter().map(|s| (s.1, s.2)).collect();
            format!(
                "{} {} count {} {sources:?} to {:?} at {:?}, {:?}, in place {:?}, factors {}",
                self.dtype,
                self.op,
                self.count,
                self.target_form,
                self.targets,
                self.stage,
                self.in_place,
                self.factors.is_some(),
            )
        };
        let free = nan_is_free(self.dtype, self.target_form, self.stage);
        for got in self.run(twin) {
            assert_agree(self.dtype, self.target_form, free, (&got, &expected), &what);
        }
    }
}

/// Whether the rules leave NaN payloads open.
fn nan_is_free(dtype: Dtype, form: Form, stage: Stage) -> bool {
    let rounded = form == Form::Native && dtype != dtype.accumulator();
    !rounded && !matches!(stage, Stage::Finish { .. })
}

#[test]
fn folds_agree_for_every_type_operation_and_number_of_sources() {
    let twin = twin_or_skip!("folds of the CUDA kernels");
    let mut random = Random::new(1);
    for (dtype, op) in supported() {
        for n in 1..=FAN {
            let counts = if n <= 5 { COUNTS } else { FEW_COUNTS };
            for &count in counts {
                Case::new(&mut random, dtype, op, n, count).check(twin);
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
            let mut case = Case::new(&mut random, dtype, op, n, count);
            case.grid = Some((1 + u32::try_from(n).expect("small") % 3, 64));
            case.check(twin);
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
            let mut case = Case::new(&mut random, dtype, op, 2, count);
            for (bytes, form, past) in &mut case.sources {
                *form = Form::Native;
                *past = 0;
                bytes.resize(count * dtype.bytes(), 0);
                fill(&mut random, part_of(dtype, Form::Native), bytes);
            }
            (case.targets, case.target_form) = (vec![0], Form::Native);
            case.in_place = None;
            case.check(twin);
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
            let mut case = Case::new(&mut random, dtype, ReduceOp::Avg, n, 37);
            (case.target_form, case.stage) = (Form::Native, stage);
            let expected = case.expected();
            let wide = 37 * bytes_of(dtype, Form::Wide);
            let mut buffers: Vec<(Buffer, Form)> =
                case.sources.iter().map(|(b, form, _)| (Buffer::of(b, 0), *form)).collect();
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
                    check_convert(twin, &mut random, (dtype, op), count, (from, to), stage);
                }
            }
        }
    }
}

fn check_convert(
    twin: &Twin,
    random: &mut Random,
    (dtype, op): (Dtype, ReduceOp),
    count: usize,
    (from, to): (Form, Form),
    stage: Stage,
) {
    let mut bytes = vec![0; count * bytes_of(dtype, from)];
    fill(random, part_of(dtype, from), &mut bytes);
    let mut expected = vec![0; count * bytes_of(dtype, to)];
    let kernels = select_for(Isa::Scalar, dtype, op).expect("supported");
    // SAFETY: both hold `count` elements of their forms.
    unsafe {
        (kernels.convert)(&Convert {
            source: Source { at: bytes.as_ptr(), form: from },
            target: expected.as_mut_ptr(),
            target_form: to,
            count,
            stage,
        });
    }
    let alike = (!random.chance(3)).then(|| random.below(16));
    let mut source = Buffer::of(&bytes, past(random, dtype, from, alike));
    let mut target = Buffer::new(expected.len(), past(random, dtype, to, alike));
    let in_place = bytes_of(dtype, from) == bytes_of(dtype, to) && random.chance(3);
    let launch = DeviceConvert {
        dtype,
        op,
        source: DeviceSource { at: source.address(), form: from },
        target: if in_place { source.address() } else { target.address() },
        target_form: to,
        count: count as u64,
        stage,
    };
    let launch = launch.launch(random.pick(&[1, 132])).expect("a convert");
    twin.run_as(&launch, launch.grid, random.pick(&[32, 256]));
    let got = if in_place { source.checked() } else { target.checked() };
    let what = || format!("{dtype} {op} {from:?} {to:?} {stage:?} count {count}");
    let free = !matches!(stage, Stage::Finish { .. });
    assert_agree(dtype, to, free, (got, &expected), &what);
}

/// The value of a code without its sign, and of one past the largest where there is one.
fn value(dtype: Dtype, code: u32) -> f64 {
    let (mantissa, bias) = match dtype {
        Dtype::F16 => (10, 15),
        Dtype::Bf16 => (7, 127),
        Dtype::F8E4M3 => (3, 7),
        _ => (2, 15),
    };
    let exponent = i32::try_from(code >> mantissa).expect("small");
    let fraction = f64::from(code & ((1 << mantissa) - 1)) / f64::from(1 << mantissa);
    if exponent == 0 {
        return fraction * 2f64.powi(1 - bias);
    }
    (1.0 + fraction) * 2f64.powi(exponent - bias)
}

/// Stochastic rounding by its definition, in `f64`, which holds every distance exactly.
fn rounded(dtype: Dtype, number: f32, random: u32) -> u32 {
    let (largest, nan, sign) = match dtype {
        Dtype::F16 => (0x7c00, 0x7e00, 0x8000),
        Dtype::Bf16 => (0x7f80, 0x7fc0, 0x8000),
        Dtype::F8E4M3 => (0x7e, 0x7f, 0x80),
        _ => (0x7b, 0x7f, 0x80),
    };
    if number.is_nan() {
        return nan;
    }
    let sign = if number.is_sign_negative() { sign } else { 0 };
    let magnitude = f64::from(number.abs());
    if magnitude >= value(dtype, largest) {
        return sign | largest;
    }
    let (mut below, mut above) = (0, largest);
    while above - below > 1 {
        let middle = u32::midpoint(below, above);
        *(if value(dtype, middle) <= magnitude { &mut below } else { &mut above }) = middle;
    }
    let (low, high) = (value(dtype, below), value(dtype, above));
    let fraction = ((magnitude - low) / (high - low) * 2f64.powi(32)).floor();
    sign | if fraction > f64::from(random) { above } else { below }
}

fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn random_bits(seed: u64, index: u64) -> u32 {
    let step = (index.wrapping_add(1)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    u32::try_from(mix(mix(seed).wrapping_add(step)) >> 32).expect("32 bits")
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
            let numbers: Vec<f32> = (0..count)
                .map(|_| {
                    let bits = u32::try_from(random.next() >> 32).expect("32 bits");
                    // Around what is subnormal, ordinary and too large in all four types.
                    let near = (bits & 0x807f_ffff) | ((95 + (bits >> 24 & 63)) << 23);
                    f32::from_bits(if random.chance(4) { bits } else { near })
                })
                .collect();
            let (seed, first) = (random.next(), random.next());
            let past = random.below(4);
            let lie = (past * 4, random.pick(&[past, 1]) * dtype.bytes());
            let got = round(twin, dtype, (&numbers, lie.0), lie.1, (seed, first));
            for (index, (&number, got)) in numbers.iter().zip(got).enumerate() {
                let bits = random_bits(seed, first.wrapping_add(index as u64));
                let wanted = rounded(dtype, number, bits);
                assert_eq!(got, wanted, "{dtype}: {number:e} ({:x})", number.to_bits());
            }
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
