//! Elements as numbers: the inputs, and the arithmetic of the results, written apart from the
//! library's.
//!
//! Results are exact in any order: floats are small integers (every partial sum fits the
//! accumulator), products are of powers of two and one other mantissa, complex products are of
//! Gaussian integers none of whose products has a part that is zero, minimum and maximum see zeros
//! of both signs and NaNs.

use unisono::kernel::Scalar;
use unisono::types::Class;
use unisono::{Dtype, ReduceOp};

/// One element, before it is rounded to its type.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Value {
    /// Two's complement bits; those above the type's width mean nothing.
    Int(u64),
    /// A real number.
    Real(f64),
    /// Real and imaginary part.
    Complex(f64, f64),
}

/// SplitMix64: one step from `state`.
pub(crate) const fn hash(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The bits that decide element `index` of `rank`.
pub(crate) const fn random(seed: u64, rank: usize, index: usize) -> u64 {
    hash(hash(seed ^ ((rank as u64) << 40)).wrapping_add(index as u64))
}

/// Integers up to here are exact in the type, and sums over any world in its accumulator.
const fn limit(dtype: Dtype) -> u32 {
    match dtype {
        Dtype::F8E4M3 => 15,
        Dtype::F8E5M2 => 7,
        Dtype::Bf16 => 255,
        Dtype::F64 | Dtype::Complex128 => 1 << 30,
        _ => 511,
    }
}

/// An integer from -limit to limit.
fn whole(bits: u64, dtype: Dtype) -> f64 {
    let span = 2 * u64::from(limit(dtype)) + 1;
    let value = u32::try_from(bits % span).expect("below 2^32");
    f64::from(value) - f64::from(limit(dtype))
}

/// The input of `rank` of `world` at `index`.
pub(crate) fn input(
    (dtype, op): (Dtype, ReduceOp),
    seed: u64,
    (rank, world): (usize, usize),
    index: usize,
) -> Value {
    let bits = random(seed, rank, index);
    match dtype.class() {
        Class::Integer => Value::Int(match op {
            ReduceOp::Land if bits.is_multiple_of(8) => 0,
            ReduceOp::Lor if !bits.is_multiple_of(8) => 0,
            _ => bits >> 3,
        }),
        Class::Complex if op == ReduceOp::Prod => gaussian(bits, rank),
        Class::Complex => {
            Value::Complex(whole(bits >> 32, dtype), whole(bits & 0xffff_ffff, dtype))
        }
        Class::Float => Value::Real(match op {
            ReduceOp::Prod => power(bits, rank, index % world == rank),
            ReduceOp::Min | ReduceOp::Max => match bits % 37 {
                0 => f64::NAN,
                1..=4 => -0.0,
                5..=8 => 0.0,
                _ => whole(bits >> 8, dtype),
            },
            _ => whole(bits >> 8, dtype),
        }),
    }
}

/// A power of two of either sign, 1.5 times that at one rank; the product of all stays normal.
fn power(bits: u64, rank: usize, odd: bool) -> f64 {
    let sign = if bits & 4 == 0 { 1.0 } else { -1.0 };
    let magnitude = match bits % 3 {
        0 if rank < 6 => 0.5,
        1 if rank < 6 => 2.0,
        _ => 1.0,
    };
    sign * magnitude * if odd { 1.5 } else { 1.0 }
}

/// An associate of 2 + i at the first ranks, 1 at the others.
fn gaussian(bits: u64, rank: usize) -> Value {
    match bits % 4 {
        _ if rank >= 8 => Value::Complex(1.0, 0.0),
        0 => Value::Complex(2.0, 1.0),
        1 => Value::Complex(-1.0, 2.0),
        2 => Value::Complex(-2.0, -1.0),
        _ => Value::Complex(1.0, -2.0),
    }
}

/// `pre_mul_sum`'s factor of `rank` as a number.
fn factor_value(dtype: Dtype, rank: usize) -> Value {
    match (dtype.class(), rank % 3) {
        (Class::Integer, r) => Value::Int(r as u64 + 1),
        (Class::Float, 0) => Value::Real(1.0),
        (Class::Float, 1) => Value::Real(2.0),
        (Class::Float, _) => Value::Real(0.5),
        (Class::Complex, 0) => Value::Complex(1.0, 0.0),
        (Class::Complex, 1) => Value::Complex(2.0, 0.0),
        (Class::Complex, _) => Value::Complex(1.0, 1.0),
    }
}

/// `pre_mul_sum`'s factor of `rank`, as calls take it.
pub(crate) fn factor(dtype: Dtype, rank: usize) -> Scalar {
    let mut bytes = [0; 16];
    let wide = dtype.accumulator();
    store(wide, factor_value(dtype, rank), &mut bytes[..wide.bytes()]);
    Scalar(bytes)
}

/// The result of `op` over `inputs`, in rank order.
pub(crate) fn reduced(
    dtype: Dtype,
    op: ReduceOp,
    inputs: impl ExactSizeIterator<Item = Value>,
) -> Value {
    let world = inputs.len();
    let prepared = inputs.enumerate().map(|(rank, value)| match op {
        ReduceOp::PreMulSum => combine(dtype, ReduceOp::Prod, value, factor_value(dtype, rank)),
        // One operand alone counts as 0 or 1, too.
        ReduceOp::Land | ReduceOp::Lor => combine(dtype, op, value, value),
        _ => value,
    });
    let folded = prepared.reduce(|a, b| combine(dtype, op, a, b)).expect("a world has ranks");
    if op == ReduceOp::Avg { divide(dtype, folded, world) } else { folded }
}

fn combine(dtype: Dtype, op: ReduceOp, a: Value, b: Value) -> Value {
    match (a, b) {
        (Value::Int(a), Value::Int(b)) => Value::Int(integer(dtype, op, a, b)),
        (Value::Real(a), Value::Real(b)) => Value::Real(match op {
            ReduceOp::Prod => a * b,
            ReduceOp::Min => -larger(-a, -b),
            ReduceOp::Max => larger(a, b),
            _ => a + b,
        }),
        (Value::Complex(ar, ai), Value::Complex(br, bi)) if op == ReduceOp::Prod => {
            Value::Complex(ar * br - ai * bi, ar * bi + ai * br)
        }
        (Value::Complex(ar, ai), Value::Complex(br, bi)) => Value::Complex(ar + br, ai + bi),
        _ => unreachable!("one type a call"),
    }
}

/// NaN wins, +0 is above -0.
fn larger(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() {
        f64::NAN
    } else if a > b || (a == b && a.is_sign_positive()) {
        a
    } else {
        b
    }
}

fn integer(dtype: Dtype, op: ReduceOp, a: u64, b: u64) -> u64 {
    let truth = |x: u64| number(dtype, x) != 0;
    match op {
        ReduceOp::Prod => a.wrapping_mul(b),
        ReduceOp::Min if number(dtype, a) < number(dtype, b) => a,
        ReduceOp::Max if number(dtype, a) > number(dtype, b) => a,
        ReduceOp::Min | ReduceOp::Max => b,
        ReduceOp::Band => a & b,
        ReduceOp::Bor => a | b,
        ReduceOp::Bxor => a ^ b,
        ReduceOp::Land => u64::from(truth(a) && truth(b)),
        ReduceOp::Lor => u64::from(truth(a) || truth(b)),
        _ => a.wrapping_add(b),
    }
}

const fn signed(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::I8 | Dtype::I16 | Dtype::I32 | Dtype::I64)
}

/// What the low bits mean in the type.
fn number(dtype: Dtype, bits: u64) -> i128 {
    let span = 1i128 << (8 * dtype.bytes());
    let low = i128::from(bits) & (span - 1);
    if signed(dtype) && low >= span / 2 { low - span } else { low }
}

fn divide(dtype: Dtype, value: Value, world: usize) -> Value {
    let ranks = u32::try_from(world).expect("worlds are bounded");
    match value {
        Value::Int(bits) => {
            let quotient = number(dtype, bits) / i128::from(ranks);
            let low = quotient & i128::from(u64::MAX);
            Value::Int(u64::try_from(low).expect("masked"))
        }
        Value::Real(x) => Value::Real(quotient(dtype, x, ranks)),
        Value::Complex(r, i) => {
            Value::Complex(quotient(dtype, r, ranks), quotient(dtype, i, ranks))
        }
    }
}

/// A division rounded to the accumulator.
fn quotient(dtype: Dtype, x: f64, ranks: u32) -> f64 {
    if matches!(dtype, Dtype::F64 | Dtype::Complex128) {
        return x / f64::from(ranks);
    }
    f64::from(single(x) / single(f64::from(ranks)))
}

/// Rounded to binary32.
#[expect(clippy::cast_possible_truncation, reason = "the rule is to round")]
const fn single(x: f64) -> f32 {
    x as f32
}

/// Rounds `value` to the type and stores it; a NaN is stored as the canonical one.
pub(crate) fn store(dtype: Dtype, value: Value, at: &mut [u8]) {
    let real = |at: &mut [u8], x: f64| {
        let x = if x.is_nan() { f64::NAN } else { x };
        match dtype {
            Dtype::F16 => at.copy_from_slice(&half::f16::from_f32(single(x)).to_le_bytes()),
            Dtype::Bf16 => at.copy_from_slice(&half::bf16::from_f32(single(x)).to_le_bytes()),
            Dtype::F8E4M3 => at[0] = eight_bits(x, 3, 0x7e),
            Dtype::F8E5M2 => at[0] = eight_bits(x, 2, 0x7b),
            Dtype::F32 | Dtype::Complex64 => at.copy_from_slice(&single(x).to_le_bytes()),
            _ => at.copy_from_slice(&x.to_le_bytes()),
        }
    };
    match value {
        Value::Int(bits) => at.copy_from_slice(&bits.to_le_bytes()[..at.len()]),
        Value::Real(x) => real(at, x),
        Value::Complex(r, i) => {
            let (first, second) = at.split_at_mut(at.len() / 2);
            real(first, r);
            real(second, i);
        }
    }
}

/// The nearest 8-bit float with `mantissa` bits, the even one of two, the largest where out of
/// range.
fn eight_bits(x: f64, mantissa: u32, largest: u8) -> u8 {
    if x.is_nan() {
        return 0x7f;
    }
    let bias = (1i32 << (6 - mantissa)) - 1;
    let scale = f64::from(1u32 << mantissa);
    let decode = |code: u8| {
        let fraction = f64::from(u32::from(code) & ((1 << mantissa) - 1)) / scale;
        match i32::from(code >> mantissa) {
            0 => fraction * 2f64.powi(1 - bias),
            exponent => (1.0 + fraction) * 2f64.powi(exponent - bias),
        }
    };
    let distance = |code: u8| ((decode(code) - x.abs()).abs(), code & 1);
    let nearer = |a: u8, b: u8| if distance(b) < distance(a) { b } else { a };
    let code = (0..=largest).reduce(nearer).unwrap_or(0);
    if x.is_sign_negative() { code | 0x80 } else { code }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_bit_floats_round_to_the_nearest_even_code_and_saturate() {
        for (x, e4m3, e5m2) in
            [(1.0, 0x38, 0x3c), (1.0625, 0x38, 0x3c), (-2.0, 0xc0, 0xc0), (1e9, 0x7e, 0x7b)]
        {
            assert_eq!((eight_bits(x, 3, 0x7e), eight_bits(x, 2, 0x7b)), (e4m3, e5m2), "{x}");
        }
    }

    #[test]
    fn results_are_the_same_in_reverse_rank_order() {
        for &dtype in Dtype::ALL {
            for &op in ReduceOp::ALL.iter().filter(|op| op.supports(dtype)) {
                for world in [1, 2, 3, 8, 17] {
                    for index in 0..300 {
                        let at = |r| input((dtype, op), 7, (r, world), index);
                        let forward = reduced(dtype, op, (0..world).map(at));
                        let mut bytes = [[0; 16]; 2];
                        store(dtype, forward, &mut bytes[0][..dtype.bytes()]);
                        if op != ReduceOp::PreMulSum {
                            let back = reduced(dtype, op, (0..world).rev().map(at));
                            store(dtype, back, &mut bytes[1][..dtype.bytes()]);
                            assert_eq!(bytes[0], bytes[1], "{dtype} {op} world {world} at {index}");
                        }
                    }
                }
            }
        }
    }
}
