//! x86-64: the registers of its sets, and the 8-bit floats over them.

mod avx2;
mod avx512;
mod f8;
mod f8_avx2;
mod f8_avx512;

use super::element::{Element, Op, Set};
use super::pass::{self, Pass};
use super::vector::{bf16, float, integer};
use avx2::Avx2Registers;
use avx512::Avx512Registers;

/// AVX2 with F16C.
#[derive(Debug)]
pub(super) enum Avx2 {}

/// AVX-512 F, BW, DQ and VL.
#[derive(Debug)]
pub(super) enum Avx512 {}

/// [`Avx512`] with its VBMI, for the 8-bit floats.
#[derive(Debug)]
pub(super) enum Avx512Vbmi {}

/// Whether this CPU can run [`Avx2`].
pub(super) fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c")
}

/// Whether this CPU can run [`Avx512`].
pub(super) fn has_avx512() -> bool {
    has_avx2()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
}

/// Whether this CPU can run [`Avx512Vbmi`].
pub(super) fn has_avx512_vbmi() -> bool {
    has_avx512() && is_x86_feature_detected!("avx512vbmi")
}

#[target_feature(enable = "avx2,f16c")]
unsafe fn run_avx2<E: Element, O: Op<E>>(pass: &Pass<'_>) {
    // SAFETY: passed on; the instructions are enabled.
    unsafe { pass::body::<E, O>(pass) };
}

#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn run_avx512<E: Element, O: Op<E>>(pass: &Pass<'_>) {
    // SAFETY: passed on; the instructions are enabled.
    unsafe { pass::body::<E, O>(pass) };
}

#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
unsafe fn run_avx512_vbmi<E: Element, O: Op<E>>(pass: &Pass<'_>) {
    // SAFETY: passed on; the instructions are enabled.
    unsafe { pass::body::<E, O>(pass) };
}

macro_rules! set {
    ($set:ident, $registers:ident, $bytes:ident, $run:ident) => {
        impl Set for $set {
            type I8 = integer::I8<$registers>;
            type U8 = integer::U8<$registers>;
            type I16 = integer::I16<$registers>;
            type U16 = integer::U16<$registers>;
            type I32 = integer::I32<$registers>;
            type U32 = integer::U32<$registers>;
            type I64 = integer::I64<$registers>;
            type U64 = integer::U64<$registers>;
            type F16 = float::F16<$registers>;
            type Bf16 = bf16::Bf16<$registers>;
            type F8E4M3 = f8::F8E4M3<$bytes>;
            type F8E5M2 = f8::F8E5M2<$bytes>;
            type F32 = float::F32<$registers>;
            type F64 = float::F64<$registers>;
            type Complex64 = float::Complex64<$registers>;
            type Complex128 = float::Complex128<$registers>;

            unsafe fn run<E: Element, O: Op<E>>(pass: &Pass<'_>) {
                // SAFETY: the caller vouches for the CPU and the memory.
                unsafe { $run::<E, O>(pass) };
            }
        }
    };
}

set!(Avx2, Avx2Registers, Avx2Registers, run_avx2);
// Without VBMI there is nothing to gain from wider registers of bytes.
set!(Avx512, Avx512Registers, Avx2Registers, run_avx512);
set!(Avx512Vbmi, Avx512Registers, Avx512Registers, run_avx512_vbmi);
