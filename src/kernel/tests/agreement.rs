//! Every set gives the oracle's bits, whatever the shape of the call.

use super::super::copy;
use super::super::cuda::trial::layout;
use super::*;

const FOLD_COUNTS: &[usize] = &[0, 1, 3, 15, 16, 17, 255, 256, 257, 1000];
const FEW_COUNTS: &[usize] = &[3, 17, 257, 1000];

/// Untouched bytes on either side of a target.
const GUARD: usize = 64;

/// The filler of targets, so that a byte too many shows.
const FILLER: u8 = 0xa5;

/// Bytes at a chosen distance from a cache line.
#[derive(Clone)]
struct Buffer {
    bytes: Vec<u8>,
    start: usize,
}

impl Buffer {
    /// `past` bytes after a line, with a guard before and after.
    fn new(len: usize, past: usize) -> Self {
        let bytes = vec![FILLER; len + 3 * GUARD + past + 64];
        let start = bytes.as_ptr().align_offset(64) + GUARD + past;
        Self { bytes, start }
    }

    fn at(&mut self) -> *mut u8 {
        self.bytes[self.start..].as_mut_ptr()
    }

    /// The contents, after checking the guards.
    fn checked(&self, len: usize) -> &[u8] {
        let end = self.start + len;
        let guards = self.bytes[..self.start].iter().chain(&self.bytes[end..]);
        assert!(guards.copied().all(|byte| byte == FILLER), "wrote outside the target");
        &self.bytes[self.start..end]
    }
}

/// Bits of one real element: mostly ordinary numbers, some special, sometimes anything.
fn part_bits(random: &mut Random, part: Dtype) -> u64 {
    const F32: &[u32] = &[
        0,
        1 << 31,
        1,
        0x007f_ffff,
        0x8080_0000,
        0x3f80_0000,
        0x3380_0000,
        0x7f7f_ffff,
        0x7f80_0000,
        0xff80_0000,
        0x7fc0_0001,
        0xffa0_0000,
    ];
    let any = random.next();
    if part.class() == Class::Integer || random.chance(16) {
        return if random.chance(4) { any % 3 } else { any };
    }
    if random.chance(12) {
        // Infinities and NaNs hide what else happens, so they are rare.
        let kinds = if random.chance(8) { F32.len() } else { F32.len() - 4 };
        let value = f32::from_bits(F32[random.below(kinds)]);
        return match part {
            Dtype::F64 => f64::from(value).to_bits(),
            Dtype::F16 => u64::from(half::f16::from_f32(value).to_bits()),
            Dtype::Bf16 => u64::from(value.to_bits() >> 16),
            Dtype::F32 => u64::from(value.to_bits()),
            _ => any,
        };
    }
    // An exponent near 1 and few mantissa bits, so that sums are often ties.
    let mask = [u64::MAX, !0 << 40, !0 << 50][random.below(3)];
    let (exponent, mantissa, width) = layout(part);
    let fraction = (any & mask) >> (64 - mantissa);
    let sign = (random.next() >> 63) << (width - 1);
    sign | ((exponent + (any & 7)) << mantissa) | fraction
}

fn fill(random: &mut Random, part: Dtype, target: &mut [u8]) {
    let bytes = part.bytes();
    for element in target.chunks_exact_mut(bytes) {
        element.copy_from_slice(&part_bits(random, part).to_le_bytes()[..bytes]);
    }
}

/// One call, and the buffers it starts from.
struct Case {
    dtype: Dtype,
    op: ReduceOp,
    count: usize,
    sources: Vec<(Buffer, Form)>,
    targets: Vec<usize>,
    target_form: Form,
    in_place: Option<usize>,
    stage: Stage,
    streaming: usize,
}

impl Case {
    fn new(random: &mut Random, dtype: Dtype, op: ReduceOp, n: usize, count: usize) -> Self {
        let form = |random: &mut Random, wide_one_in| {
            if random.chance(wide_one_in) { Form::Wide } else { Form::Native }
        };
        let mixed = random.chance(2);
        let common = form(random, 3);
        let sources: Vec<(Buffer, Form)> = (0..n)
            .map(|_| {
                let form = if mixed { form(random, 2) } else { common };
                let len = count * bytes_of(dtype, form);
                let mut buffer = Buffer::new(len, random.below(5));
                let start = buffer.start;
                fill(random, part_of(dtype, form), &mut buffer.bytes[start..start + len]);
                (buffer, form)
            })
            .collect();
        let target_form = form(random, 3);
        let past = if random.chance(2) { 0 } else { dtype.accumulator().bytes() };
        let alike = random.chance(2);
        let stage = if random.chance(2) {
            Stage::Plain
        } else {
            let ranks = [n, 3, 1, 7, 64][random.below(5)];
            Stage::Finish { ranks: u32::try_from(ranks).expect("small") }
        };
        Self {
            dtype,
            op,
            count,
            targets: (0..=random.below(3))
                .map(|_| if alike { past } else { random.below(64) })
                .collect(),
            target_form,
            in_place: (0..n).find(|&s| sources[s].1 == target_form && random.chance(3)),
            sources,
            stage,
            streaming: random.below(4),
        }
    }

    fn run(&self, isa: Isa) -> Vec<Vec<u8>> {
        let len = self.count * bytes_of(self.dtype, self.target_form);
        let mut sources: Vec<Buffer> = Vec::new();
        for (buffer, _) in &self.sources {
            let from = &buffer.bytes[buffer.start..];
            let mut copied = Buffer::new(buffer.bytes.len(), buffer.start % 5);
            let start = copied.start;
            copied.bytes[start..start + from.len()].copy_from_slice(from);
            sources.push(copied);
        }
        let mut targets: Vec<Buffer> =
            self.targets.iter().map(|&past| Buffer::new(len, past)).collect();
        let mut at: Vec<*mut u8> = targets.iter_mut().map(Buffer::at).collect();
        let operands: Vec<Source> = sources
            .iter_mut()
            .zip(&self.sources)
            .map(|(buffer, &(_, form))| Source { at: buffer.at(), form })
            .collect();
        if let Some(source) = self.in_place {
            at[0] = operands[source].at.cast_mut();
        }
        let kernels = select_for(isa, self.dtype, self.op).expect("supported");
        // SAFETY: buffers hold `count` elements of their forms; only the in-place pair is shared.
        unsafe {
            (kernels.fold)(&Fold {
                sources: &operands,
                targets: &at,
                target_form: self.target_form,
                count: self.count,
                stage: self.stage,
                streaming: self.streaming,
            });
        }
        let mut results: Vec<Vec<u8>> =
            targets.iter().map(|target| target.checked(len).to_vec()).collect();
        if let Some(source) = self.in_place {
            let start = sources[source].start;
            results[0] = sources[source].bytes[start..start + len].to_vec();
        }
        results
    }
}

/// Bits agree, but a NaN without canonical bits agrees with any NaN.
fn assert_agree(dtype: Dtype, form: Form, got: &[u8], expected: &[u8], what: &dyn Fn() -> String) {
    let part = part_of(dtype, form);
    let bytes = part.bytes();
    assert_eq!(got.len(), expected.len());
    if got == expected {
        return;
    }
    let pairs = got.chunks_exact(bytes).zip(expected.chunks_exact(bytes));
    for (index, (got, expected)) in pairs.enumerate() {
        let both_nan = is_nan(part, got) && is_nan(part, expected);
        assert!(
            got == expected || both_nan,
            "part {index}: {got:x?}, not {expected:x?}: {}",
            what()
        );
    }
}

/// Whether the rules leave NaN payloads open.
fn nan_is_free(dtype: Dtype, form: Form, stage: Stage) -> bool {
    let rounded = form == Form::Native && dtype != dtype.accumulator();
    !rounded && !matches!(stage, Stage::Finish { .. })
}

fn check(case: &Case) {
    let expected = case.run(Isa::Scalar);
    for isa in Isa::available().skip(1) {
        let what = || {
            let forms: Vec<Form> = case.sources.iter().map(|source| source.1).collect();
            format!(
                "{isa} {} {} count {} {forms:?} to {:?} at {:?}, {:?}, in place {:?}, streaming {}",
                case.dtype,
                case.op,
                case.count,
                case.target_form,
                case.targets,
                case.stage,
                case.in_place,
                case.streaming,
            )
        };
        for (got, expected) in case.run(isa).iter().zip(&expected) {
            if nan_is_free(case.dtype, case.target_form, case.stage) {
                assert_agree(case.dtype, case.target_form, got, expected, &what);
            } else {
                assert!(got == expected, "{got:x?}, not {expected:x?}: {}", what());
            }
        }
    }
}

fn supported() -> impl Iterator<Item = (Dtype, ReduceOp)> {
    let pairs = Dtype::ALL.iter().flat_map(|&d| ReduceOp::ALL.iter().map(move |&op| (d, op)));
    pairs.filter(|(dtype, op)| op.supports(*dtype))
}

#[test]
fn folds_of_up_to_seventeen_sources_agree_for_every_type_and_operation() {
    let mut random = Random::new(1);
    for (dtype, op) in supported() {
        for n in (1..=17).chain([33]) {
            let counts = if n <= 4 { FOLD_COUNTS } else { FEW_COUNTS };
            for &count in counts {
                check(&Case::new(&mut random, dtype, op, n, count));
            }
        }
    }
}

#[test]
fn large_folds_agree_when_streaming_and_when_many_levels_deep() {
    let mut random = Random::new(2);
    for (dtype, op) in supported() {
        for (n, count) in [(2, 6001), (3, 5000), (9, 4999)] {
            let mut case = Case::new(&mut random, dtype, op, n, count);
            for targets in [vec![0], vec![0, 3], vec![16, 16, 0], vec![32, 0, 32]] {
                for streaming in 0..=targets.len() {
                    case.targets.clone_from(&targets);
                    case.streaming = streaming;
                    check(&case);
                }
            }
        }
    }
    for n in [63, 64, 65, 127, 300, 513, 600] {
        for dtype in [Dtype::F32, Dtype::F16, Dtype::I64, Dtype::Complex128] {
            check(&Case::new(&mut random, dtype, ReduceOp::Sum, n, 270));
        }
    }
}

/// The one pass with a loop of its own.
#[test]
fn two_native_sources_to_one_native_target_agree() {
    let mut random = Random::new(6);
    for (dtype, op) in supported() {
        for count in [1, 63, 64, 65, 127, 128, 129, 1000, 5000] {
            let native = |case: &Case| {
                let forms = case.sources.iter().map(|source| source.1);
                forms.chain([case.target_form]).all(|form| form == Form::Native)
            };
            let mut tries = (0..100).map(|_| Case::new(&mut random, dtype, op, 2, count));
            let mut case = tries.find(native).expect("natives are common");
            case.stage = Stage::Plain;
            case.targets.truncate(1);
            for streaming in [0, 1] {
                case.streaming = streaming;
                check(&case);
            }
        }
    }
}

#[test]
fn converts_agree_for_every_type_operation_form_and_stage() {
    let mut random = Random::new(3);
    for (dtype, op) in supported() {
        for count in [0, 1, 3, 17, 64, 257] {
            for (from, to) in [
                (Form::Native, Form::Native),
                (Form::Native, Form::Wide),
                (Form::Wide, Form::Native),
                (Form::Wide, Form::Wide),
            ] {
                let mut factor = [0; 16];
                fill(&mut random, part_of(dtype, Form::Wide), &mut factor);
                let mut stages = vec![Stage::Plain, Stage::Finish { ranks: 3 }];
                if op == ReduceOp::PreMulSum {
                    stages.push(Stage::Prepare(Scalar(factor)));
                }
                let mut source = vec![0; count * bytes_of(dtype, from)];
                fill(&mut random, part_of(dtype, from), &mut source);
                for stage in stages {
                    let run = |isa| convert(isa, dtype, op, (&source, from), to, stage);
                    let expected = run(Isa::Scalar);
                    for isa in Isa::available().skip(1) {
                        let what = || format!("{isa} {dtype} {op} {from:?} {to:?} {stage:?}");
                        assert_agree(dtype, to, &run(isa), &expected, &what);
                    }
                }
            }
        }
    }
}

#[test]
fn a_convert_in_place_gives_what_one_aside_gives() {
    let mut random = Random::new(4);
    for (dtype, op) in supported() {
        let stage = Stage::Finish { ranks: 5 };
        let mut bytes = vec![0; 333 * dtype.bytes()];
        fill(&mut random, part_of(dtype, Form::Native), &mut bytes);
        for isa in Isa::available() {
            let aside = convert(isa, dtype, op, (&bytes, Form::Native), Form::Native, stage);
            let mut inside = bytes.clone();
            let at = inside.as_mut_ptr();
            let kernels = select_for(isa, dtype, op).expect("supported");
            // SAFETY: the buffer holds 333 elements; source and target are the same memory.
            unsafe {
                (kernels.convert)(&Convert {
                    source: Source { at, form: Form::Native },
                    target: at,
                    target_form: Form::Native,
                    count: 333,
                    stage,
                });
            }
            assert_eq!(inside, aside, "{isa} {dtype} {op}");
        }
    }
}

#[test]
fn copies_of_any_size_and_alignment_are_exact_and_stay_inside() {
    let mut random = Random::new(5);
    for len in [0, 1, 63, 64, 4095, 4096, 4097, 4159, 10_000] {
        for streaming in [false, true] {
            for (from, to) in [(0, 0), (1, 0), (0, 1), (7, 63)] {
                let mut source = Buffer::new(len, from);
                let start = source.start;
                fill(&mut random, Dtype::U8, &mut source.bytes[start..start + len]);
                let mut target = Buffer::new(len, to);
                // SAFETY: both buffers hold `len` bytes.
                unsafe { copy(target.at(), source.at(), len, streaming) };
                assert_eq!(target.checked(len), &source.bytes[start..start + len]);
            }
        }
    }
}
