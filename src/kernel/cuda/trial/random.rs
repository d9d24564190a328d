//! Random elements: mostly ordinary, with all that arithmetic goes wrong on among them.

use crate::kernel::{Form, Scalar};
use crate::types::{Class, Dtype};

/// xorshift64*: the same numbers on every run.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The numbers of this seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Any number.
    #[expect(clippy::should_implement_trait, reason = "there is always a next one")]
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from((self.next() >> 16) % bound as u64).expect("below a usize")
    }

    /// True once in so many times.
    pub fn chance(&mut self, one_in: usize) -> bool {
        self.below(one_in) == 0
    }

    /// One of these, of which there is one.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// Bytes of one element of `dtype` in `form`.
#[must_use]
pub fn bytes_of(dtype: Dtype, form: Form) -> usize {
    if form == Form::Wide { dtype.accumulator().bytes() } else { dtype.bytes() }
}

/// The real type an element of `dtype` in `form` is made of.
#[must_use]
pub fn part_of(dtype: Dtype, form: Form) -> Dtype {
    match dtype {
        Dtype::Complex64 => Dtype::F32,
        Dtype::Complex128 => Dtype::F64,
        _ if form == Form::Wide => dtype.accumulator(),
        _ => dtype,
    }
}

/// Exponent bias less 3, stored bits of the mantissa, and bits of a real type.
pub(crate) fn layout(part: Dtype) -> (u64, u32, u32) {
    match part {
        Dtype::F64 => (1020, 52, 64),
        Dtype::F32 => (124, 23, 32),
        Dtype::Bf16 => (124, 7, 16),
        Dtype::F16 => (12, 10, 16),
        Dtype::F8E4M3 => (4, 3, 8),
        _ => (12, 2, 8),
    }
}

/// Bits of one real element: floats mostly near 1 with few digits, so that sums are often ties; at
/// times anything, and rarely what is infinite or no number, which hides all else. Integers are
/// anything, at times close to 0, at times an end of their range, with a sign or without.
fn part_bits(random: &mut Random, part: Dtype) -> u64 {
    let any = random.next();
    if part.class() == Class::Integer {
        let top = 1 << (part.bytes() * 8 - 1);
        return match random.below(16) {
            0..4 => any % 3,
            4 => [u64::MAX, top, top - 1, u64::MAX - 1][random.below(4)],
            _ => any,
        };
    }
    let (exponent, mantissa, width) = layout(part);
    let sign = (any >> 63) << (width - 1);
    let top = (1 << (width - 1)) - (1 << mantissa);
    match random.below(96) {
        0 => sign | top,
        1 => sign | top | (any & ((1 << mantissa) - 1)),
        2..6 => sign,
        6..12 => sign | (any & ((1 << mantissa) - 1)),
        12..18 => any & (u64::MAX >> (64 - width)),
        _ => {
            let keep = [u64::MAX, !0 << 40, !0 << 50][random.below(3)];
            let fraction = (random.next() & keep) >> (64 - mantissa);
            sign | ((exponent + (any & 7)) << mantissa) | fraction
        }
    }
}

/// Fills `target` with elements of the real type `part`.
pub fn fill(random: &mut Random, part: Dtype, target: &mut [u8]) {
    let bytes = part.bytes();
    for element in target.chunks_exact_mut(bytes) {
        element.copy_from_slice(&part_bits(random, part).to_le_bytes()[..bytes]);
    }
}

/// A factor of `pre_mul_sum` on `dtype`.
pub fn factor(random: &mut Random, dtype: Dtype) -> Scalar {
    let mut factor = Scalar([0; 16]);
    let bytes = bytes_of(dtype, Form::Wide);
    fill(random, part_of(dtype, Form::Wide), &mut factor.0[..bytes]);
    factor
}

/// Bytes past a line for an operand of a form: the same number of elements, or any that is aligned.
pub(super) fn past(random: &mut Random, dtype: Dtype, form: Form, alike: Option<usize>) -> usize {
    let part = part_of(dtype, form);
    match alike {
        Some(elements) => elements * bytes_of(dtype, form) % 64,
        None => random.below(64) / part.bytes() * part.bytes(),
    }
}

/// Whether the bytes are a NaN of a type whose NaNs may have any payload.
pub(super) fn is_nan(part: Dtype, bytes: &[u8]) -> bool {
    let mut wide = [0; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    let bits = u64::from_le_bytes(wide);
    match part {
        Dtype::F32 => bits & 0x7fff_ffff > 0x7f80_0000,
        Dtype::F64 => bits & (u64::MAX >> 1) > 0x7ff0_0000_0000_0000,
        _ => false,
    }
}
