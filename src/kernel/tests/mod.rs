//! Every rule by hand against the oracle, and every set against the oracle.

mod agreement;
mod narrowing;
mod rules;

use super::{Convert, Fold, Form, Isa, Scalar, Source, Stage, select_for};
use crate::types::{Class, Dtype, ReduceOp};

/// xorshift64*: the same numbers on every run.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(super) fn below(&mut self, bound: usize) -> usize {
        let bound = u64::try_from(bound).expect("usize fits u64");
        usize::try_from((self.next() >> 16) % bound).expect("below a usize")
    }

    pub(super) fn chance(&mut self, one_in: usize) -> bool {
        self.below(one_in) == 0
    }
}

/// Bytes of one element of `dtype` in `form`.
pub(super) fn bytes_of(dtype: Dtype, form: Form) -> usize {
    match form {
        Form::Native => dtype.bytes(),
        Form::Wide => dtype.accumulator().bytes(),
    }
}

/// Folds native sources with one target.
pub(super) fn fold(
    isa: Isa,
    dtype: Dtype,
    op: ReduceOp,
    sources: &[&[u8]],
    target_form: Form,
    stage: Stage,
) -> Vec<u8> {
    let count = sources[0].len() / dtype.bytes();
    let mut target = vec![0xa5; count * bytes_of(dtype, target_form)];
    let operands: Vec<Source> =
        sources.iter().map(|source| Source { at: source.as_ptr(), form: Form::Native }).collect();
    let kernels = select_for(isa, dtype, op).expect("supported");
    // SAFETY: sources and target hold `count` elements.
    unsafe {
        (kernels.fold)(&Fold {
            sources: &operands,
            targets: &[target.as_mut_ptr()],
            target_form,
            count,
            stage,
            streaming: 0,
        });
    }
    target
}

/// Converts one buffer.
pub(super) fn convert(
    isa: Isa,
    dtype: Dtype,
    op: ReduceOp,
    source: (&[u8], Form),
    target_form: Form,
    stage: Stage,
) -> Vec<u8> {
    let count = source.0.len() / bytes_of(dtype, source.1);
    let mut target = vec![0xa5; count * bytes_of(dtype, target_form)];
    let kernels = select_for(isa, dtype, op).expect("supported");
    // SAFETY: source and target hold `count` elements.
    unsafe {
        (kernels.convert)(&Convert {
            source: Source { at: source.0.as_ptr(), form: source.1 },
            target: target.as_mut_ptr(),
            target_form,
            count,
            stage,
        });
    }
    target
}

/// A factor from the bytes of one wide element.
pub(super) fn scalar(bytes: &[u8]) -> Scalar {
    let mut scalar = Scalar([0; 16]);
    scalar.0[..bytes.len()].copy_from_slice(bytes);
    scalar
}

/// The real type an element of `dtype` in `form` is made of.
pub(super) fn part_of(dtype: Dtype, form: Form) -> Dtype {
    match dtype {
        Dtype::Complex64 => Dtype::F32,
        Dtype::Complex128 => Dtype::F64,
        _ if form == Form::Wide => dtype.accumulator(),
        _ => dtype,
    }
}

/// Whether one real element is a NaN.
pub(super) fn is_nan(part: Dtype, bytes: &[u8]) -> bool {
    if part.class() != Class::Float {
        return false;
    }
    let mut wide = [0; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    let bits = u64::from_le_bytes(wide);
    match part {
        Dtype::F16 => bits & 0x7fff > 0x7c00,
        Dtype::Bf16 => bits & 0x7fff > 0x7f80,
        Dtype::F8E4M3 => bits & 0x7f == 0x7f,
        Dtype::F8E5M2 => bits & 0x7f > 0x7c,
        Dtype::F32 => bits & 0x7fff_ffff > 0x7f80_0000,
        _ => bits & (u64::MAX >> 1) > 0x7ff0_0000_0000_0000,
    }
}
