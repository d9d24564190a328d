//! Stochastic rounding beside its definition, in `f64`, which holds every distance exactly.

use super::random::Random;
use super::{Trial, Work};
use crate::kernel::Form;
use crate::kernel::cuda::DeviceRound;
use crate::types::Dtype;

/// One rounding of random numbers.
#[derive(Clone, Copy, Debug)]
pub struct RoundTrial {
    /// f16, bf16, f8e4m3 or f8e5m2.
    pub dtype: Dtype,
    /// Elements.
    pub count: usize,
}

impl RoundTrial {
    /// With memory and random numbers, to be launched.
    #[must_use]
    pub fn trial(&self, random: &mut Random) -> Trial {
        let &Self { dtype, count } = self;
        let numbers: Vec<f32> = (0..count).map(|_| number(random)).collect();
        let (seed, first) = (random.next(), random.next());
        let past = random.below(4);
        let pasts = (past * 4, random.pick(&[past, 1]) * dtype.bytes());
        let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_bits().to_le_bytes()).collect();
        let code = |(number, index): (&f32, u64)| {
            let bits = random_bits(seed, first.wrapping_add(index));
            rounded(dtype, *number, bits).to_le_bytes().into_iter().take(dtype.bytes())
        };
        let expected: Vec<u8> = numbers.iter().zip(0..).flat_map(code).collect();
        let what = format!(
            "f32 to {dtype}, {count} elements at {pasts:?}, seed {seed:#x}, first {first:#x}"
        );
        let mut trial = Trial::new(what, Work::Pack(Vec::new(), 0));
        let source = trial.place("the source", (dtype, Form::Wide), &bytes, pasts.0);
        let poison = vec![0x5a; expected.len()];
        let target = trial.place("the target", (dtype, Form::Native), &poison, pasts.1);
        trial.expect(target, &expected, false);
        let (source, target, count) = (source as u64, target as u64, count as u64);
        trial.work = Work::Round(DeviceRound { dtype, source, target, count, seed, first });
        trial
    }
}

/// Around what is subnormal, ordinary and too large in all four types; at times anything.
fn number(random: &mut Random) -> f32 {
    let bits = u32::try_from(random.next() >> 32).expect("32 bits");
    let near = (bits & 0x807f_ffff) | ((95 + (bits >> 24 & 63)) << 23);
    f32::from_bits(if random.chance(4) { bits } else { near })
}

/// The value of a code without its sign, and of one past the largest where there is one.
#[must_use]
pub fn value(dtype: Dtype, code: u32) -> f64 {
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

/// What `number` is rounded to by these random bits.
#[must_use]
pub fn rounded(dtype: Dtype, number: f32, random: u32) -> u32 {
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
