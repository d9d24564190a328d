//! 128-bit registers.

use std::arch::aarch64::*;
use std::arch::asm;

use super::super::vector::simd::{Simd, direct};

/// The registers of NEON.
#[derive(Debug)]
pub(in crate::kernel) enum NeonRegisters {}

type I = uint8x16_t;
type F = float32x4_t;
type D = float64x2_t;

/// An operation on integers of another type than bytes.
macro_rules! on {
    ($of:ident, $to:ident: $call:ident($($arg:expr),+)) => { $to($call($($of($arg)),+)) };
}

/// One of two values, by a mask from comparing the other two.
macro_rules! pick {
    ($of:ident, $compare:ident($a:expr, $b:expr)) => {
        vbslq_u8(vreinterpretq_u8_u64($compare($of($a), $of($b))), $a, $b)
    };
}

impl Simd for NeonRegisters {
    type I = I;
    type F = F;
    type D = D;
    const BYTES: usize = 16;

    #[inline(always)]
    unsafe fn store<const STREAM: bool>(at: *mut u8, a: I) {
        // SAFETY: the caller vouches for the pointer.
        unsafe { vst1q_u8(at, a) };
    }

    #[inline(always)]
    unsafe fn store_f16<const STREAM: bool>(at: *mut u8, a: F) {
        // SAFETY: the caller vouches for the pointer; the instruction only computes.
        unsafe {
            let half: uint8x8_t;
            asm!("fcvtn {0:v}.4h, {1:v}.4s", out(vreg) half, in(vreg) a,
                options(pure, nomem, nostack, preserves_flags));
            vst1_u8(at, half);
        }
    }

    direct! {
        load(at: *const u8) -> I = vld1q_u8(at);
        load_f16(at: *const u8) -> F = {
            let half = vld1_u8(at);
            let wide: F;
            asm!("fcvtl {0:v}.4s, {1:v}.4h", out(vreg) wide, in(vreg) half,
                options(pure, nomem, nostack, preserves_flags));
            wide
        };

        to_f(a: I) -> F = vreinterpretq_f32_u8(a);
        to_d(a: I) -> D = vreinterpretq_f64_u8(a);
        of_f(a: F) -> I = vreinterpretq_u8_f32(a);
        of_d(a: D) -> I = vreinterpretq_u8_f64(a);
        splat32(a: u32) -> I = vreinterpretq_u8_u32(vdupq_n_u32(a));
        splat64(a: u64) -> I = vreinterpretq_u8_u64(vdupq_n_u64(a));
        splat128(a: u128) -> I = std::mem::transmute::<u128, I>(a);

        and(a: I, b: I) -> I = vandq_u8(a, b);
        or(a: I, b: I) -> I = vorrq_u8(a, b);
        xor(a: I, b: I) -> I = veorq_u8(a, b);
        add8(a: I, b: I) -> I = vaddq_u8(a, b);
        add16(a: I, b: I) -> I = on!(vreinterpretq_u16_u8, vreinterpretq_u8_u16: vaddq_u16(a, b));
        add32(a: I, b: I) -> I = on!(vreinterpretq_u32_u8, vreinterpretq_u8_u32: vaddq_u32(a, b));
        add64(a: I, b: I) -> I = on!(vreinterpretq_u64_u8, vreinterpretq_u8_u64: vaddq_u64(a, b));
        mul8(a: I, b: I) -> I = vmulq_u8(a, b);
        mul16(a: I, b: I) -> I = on!(vreinterpretq_u16_u8, vreinterpretq_u8_u16: vmulq_u16(a, b));
        mul32(a: I, b: I) -> I = on!(vreinterpretq_u32_u8, vreinterpretq_u8_u32: vmulq_u32(a, b));
        mul64(a: I, b: I) -> I = {
            let a = std::mem::transmute::<I, [u64; 2]>(a);
            let b = std::mem::transmute::<I, [u64; 2]>(b);
            let product = [a[0].wrapping_mul(b[0]), a[1].wrapping_mul(b[1])];
            std::mem::transmute::<[u64; 2], I>(product)
        };
        upward32(a: I) -> I = on!(vreinterpretq_u32_u8, vreinterpretq_u8_u32: upward(a));
        round_halves(even: F, odd: F) -> I =
            vreinterpretq_u8_u32(vsriq_n_u32::<16>(rounded(odd), rounded(even)));
        evens_f(a: F, b: F) -> F = vuzp1q_f32(a, b);
        odds_f(a: F, b: F) -> F = vuzp2q_f32(a, b);
        zip_low_f(a: F, b: F) -> F = vzip1q_f32(a, b);
        zip_high_f(a: F, b: F) -> F = vzip2q_f32(a, b);
        min_i8(a: I, b: I) -> I = on!(vreinterpretq_s8_u8, vreinterpretq_u8_s8: vminq_s8(a, b));
        min_i16(a: I, b: I) -> I = on!(vreinterpretq_s16_u8, vreinterpretq_u8_s16: vminq_s16(a, b));
        min_i32(a: I, b: I) -> I = on!(vreinterpretq_s32_u8, vreinterpretq_u8_s32: vminq_s32(a, b));
        min_i64(a: I, b: I) -> I = pick!(vreinterpretq_s64_u8, vcltq_s64(a, b));
        max_i8(a: I, b: I) -> I = on!(vreinterpretq_s8_u8, vreinterpretq_u8_s8: vmaxq_s8(a, b));
        max_i16(a: I, b: I) -> I = on!(vreinterpretq_s16_u8, vreinterpretq_u8_s16: vmaxq_s16(a, b));
        max_i32(a: I, b: I) -> I = on!(vreinterpretq_s32_u8, vreinterpretq_u8_s32: vmaxq_s32(a, b));
        max_i64(a: I, b: I) -> I = pick!(vreinterpretq_s64_u8, vcgtq_s64(a, b));
        min_u8(a: I, b: I) -> I = vminq_u8(a, b);
        min_u16(a: I, b: I) -> I = on!(vreinterpretq_u16_u8, vreinterpretq_u8_u16: vminq_u16(a, b));
        min_u32(a: I, b: I) -> I = on!(vreinterpretq_u32_u8, vreinterpretq_u8_u32: vminq_u32(a, b));
        min_u64(a: I, b: I) -> I = pick!(vreinterpretq_u64_u8, vcltq_u64(a, b));
        max_u8(a: I, b: I) -> I = vmaxq_u8(a, b);
        max_u16(a: I, b: I) -> I = on!(vreinterpretq_u16_u8, vreinterpretq_u8_u16: vmaxq_u16(a, b));
        max_u32(a: I, b: I) -> I = on!(vreinterpretq_u32_u8, vreinterpretq_u8_u32: vmaxq_u32(a, b));
        max_u64(a: I, b: I) -> I = pick!(vreinterpretq_u64_u8, vcgtq_u64(a, b));

        add_f(a: F, b: F) -> F = vaddq_f32(a, b);
        mul_f(a: F, b: F) -> F = vmulq_f32(a, b);
        div_f(a: F, b: F) -> F = vdivq_f32(a, b);
        min_f(a: F, b: F) -> F = vminq_f32(a, b);
        replace_nan_f(a: F, other: F) -> F = vbslq_f32(vceqq_f32(a, a), a, other);
        complex_f(a: F, b: F) -> F = {
            let direct = vmulq_f32(vtrn1q_f32(a, a), b);
            let crossed = vmulq_f32(vtrn2q_f32(a, a), vrev64q_f32(b));
            // Adding the negative is subtracting.
            let signs = vreinterpretq_u32_u64(vdupq_n_u64(1 << 31));
            let crossed = veorq_u32(vreinterpretq_u32_f32(crossed), signs);
            vaddq_f32(direct, vreinterpretq_f32_u32(crossed))
        };
        add_d(a: D, b: D) -> D = vaddq_f64(a, b);
        mul_d(a: D, b: D) -> D = vmulq_f64(a, b);
        div_d(a: D, b: D) -> D = vdivq_f64(a, b);
        min_d(a: D, b: D) -> D = vminq_f64(a, b);
        replace_nan_d(a: D, other: D) -> D = vbslq_f64(vceqq_f64(a, a), a, other);
        complex_d(a: D, b: D) -> D = {
            let direct = vmulq_f64(vdupq_laneq_f64::<0>(a), b);
            let crossed = vmulq_f64(vdupq_laneq_f64::<1>(a), vextq_f64::<1>(b, b));
            let signs = vcombine_u64(vdup_n_u64(1 << 63), vdup_n_u64(0));
            let crossed = veorq_u64(vreinterpretq_u64_f64(crossed), signs);
            vaddq_f64(direct, vreinterpretq_f64_u64(crossed))
        };
    }
}

/// Left by 16 bits.
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
unsafe fn upward(a: uint32x4_t) -> uint32x4_t {
    // SAFETY: the caller vouches for the CPU.
    unsafe { vshlq_n_u32::<16>(a) }
}

/// Adds to each lane what makes the upper half the nearest even.
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
unsafe fn rounded(a: F) -> uint32x4_t {
    // SAFETY: the caller vouches for the CPU.
    unsafe {
        let bits = vreinterpretq_u32_f32(a);
        let odd = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
        vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), odd)
    }
}
