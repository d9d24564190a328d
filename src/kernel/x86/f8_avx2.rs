//! Registers of 32 bytes as 8-bit floats.
//!
//! E4M3 widens through bfloat16, which holds it exactly: its upper byte is a matter of the code's
//! upper four bits and its lower byte of the lower four, except for subnormals, whose bytes both
//! depend on the lower. E5M2 is the upper half of a binary16, for which there is an instruction.

use std::arch::x86_64::*;

use super::super::rounding::{E4M3, Rounding};
use super::super::vector::simd::Simd;
use super::avx2::Avx2Registers;
use super::f8::{Bytes, FORMATS};

type I = __m256i;
type F = __m256;

/// The upper bytes of bfloat16 by the upper four bits of a normal E4M3, sign included.
const NORMAL: [u8; 16] = {
    let mut bytes = [0; 16];
    let mut code = 0;
    while code < 8 {
        // With the lowest bit of the exponent, which no upper byte has, none is a subnormal.
        let [upper, _] = E4M3.bf16((code << 4) | 8).to_be_bytes();
        bytes[code as usize] = upper;
        bytes[code as usize + 8] = upper | 0x80;
        code += 1;
    }
    bytes
};

/// The upper and the lower bytes of bfloat16 by the lower four bits of a subnormal E4M3.
const SUBNORMAL: [[u8; 16]; 2] = {
    let mut bytes = [[0; 16]; 2];
    let mut code = 0;
    while code < 8 {
        let [upper, lower] = E4M3.bf16(code).to_be_bytes();
        bytes[0][code as usize] = upper;
        bytes[1][code as usize] = lower;
        code += 1;
    }
    bytes
};

/// The same 16 bytes in both halves.
///
/// # Safety
/// As for [`Bytes`].
#[inline(always)]
unsafe fn twice(bytes: [u8; 16]) -> I {
    // SAFETY: the caller vouches for the CPU.
    unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(bytes.as_ptr().cast())) }
}

/// One value in every lane.
///
/// # Safety
/// As for [`Bytes`].
#[inline(always)]
unsafe fn splat(value: u32) -> I {
    // SAFETY: the caller vouches for the CPU.
    unsafe { _mm256_set1_epi32(value.cast_signed()) }
}

/// The bfloat16 in the lower half of each lane.
///
/// # Safety
/// As for [`Bytes`].
#[inline(always)]
unsafe fn even(pair: I) -> F {
    // SAFETY: the caller vouches for the CPU.
    unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(pair)) }
}

/// The bfloat16 in the upper half of each lane.
///
/// # Safety
/// As for [`Bytes`].
#[inline(always)]
unsafe fn odd(pair: I) -> F {
    // SAFETY: the caller vouches for the CPU.
    unsafe { _mm256_castsi256_ps(halves(_mm256_setzero_si256(), pair)) }
}

/// Puts `odd`'s upper halves of the lanes over `even`'s.
///
/// # Safety
/// As for [`Bytes`].
#[inline(always)]
unsafe fn halves(even: I, odd: I) -> I {
    // SAFETY: the caller vouches for the CPU.
    unsafe { _mm256_blend_epi16::<0xaa>(even, odd) }
}

/// Rounds; the code without its sign is in the low 8 bits of each lane, the rest is anything.
///
/// # Safety
/// As for [`Bytes`].
#[inline(always)]
unsafe fn round<const FORMAT: usize>(a: F) -> I {
    const EXPONENT: i32 = 0x7f80_0000;
    let rounding = const { Rounding::of(FORMATS[FORMAT]) };
    // SAFETY: the caller vouches for the CPU.
    unsafe {
        let magnitude = _mm256_and_ps(a, _mm256_castsi256_ps(splat(0x7fff_ffff)));
        let bounded = _mm256_min_ps(magnitude, _mm256_castsi256_ps(splat(rounding.largest)));
        let exponent = _mm256_and_si256(_mm256_castps_si256(bounded), _mm256_set1_epi32(EXPONENT));
        let exponent = _mm256_max_epi32(exponent, splat(rounding.smallest));
        let power = _mm256_castsi256_ps(_mm256_add_epi32(exponent, splat(rounding.raise)));
        let counted = _mm256_castps_si256(_mm256_add_ps(bounded, power));
        let scale = _mm256_srl_epi32(exponent, _mm_cvtsi32_si128(rounding.shift.cast_signed()));
        _mm256_add_epi32(counted, scale)
    }
}

/// The codes of two registers without their signs.
///
/// # Safety
/// As for [`Bytes`].
#[inline(always)]
unsafe fn codes<const FORMAT: usize>(even: F, odd: F) -> I {
    // SAFETY: the caller vouches for the CPU.
    unsafe {
        let odd = _mm256_slli_epi32::<16>(round::<FORMAT>(odd));
        _mm256_and_si256(halves(round::<FORMAT>(even), odd), _mm256_set1_epi16(0xff))
    }
}

/// The signs of two registers.
///
/// # Safety
/// As for [`Bytes`].
#[inline(always)]
unsafe fn signs(even: F, odd: F) -> I {
    // SAFETY: the caller vouches for the CPU.
    unsafe {
        let even = _mm256_srli_epi32::<16>(_mm256_castps_si256(even));
        halves(even, _mm256_castps_si256(odd))
    }
}

/// All ones where two registers are NaN.
///
/// # Safety
/// As for [`Bytes`].
#[inline(always)]
unsafe fn nans(even: F, odd: F) -> I {
    // SAFETY: the caller vouches for the CPU.
    unsafe {
        let even = _mm256_cmp_ps::<_CMP_UNORD_Q>(even, even);
        let odd = _mm256_cmp_ps::<_CMP_UNORD_Q>(odd, odd);
        halves(_mm256_castps_si256(even), _mm256_castps_si256(odd))
    }
}

/// Swaps the inner two of four 128-bit blocks in two registers.
///
/// # Safety
/// As for [`Bytes`].
#[inline(always)]
unsafe fn swapped(low: F, high: F) -> [F; 2] {
    // SAFETY: the caller vouches for the CPU.
    unsafe {
        [_mm256_permute2f128_ps::<0x20>(low, high), _mm256_permute2f128_ps::<0x31>(low, high)]
    }
}

impl Bytes for Avx2Registers {
    #[inline(always)]
    unsafe fn load_spread(at: *const u8) -> [F; 4] {
        // SAFETY: the caller vouches for the CPU and the pointer.
        unsafe {
            let row = at.cast::<f32>();
            let [a, b] = swapped(_mm256_loadu_ps(row), _mm256_loadu_ps(row.add(16)));
            let [c, d] = swapped(_mm256_loadu_ps(row.add(8)), _mm256_loadu_ps(row.add(24)));
            [
                _mm256_shuffle_ps::<0x88>(a, b),
                _mm256_shuffle_ps::<0xdd>(a, b),
                _mm256_shuffle_ps::<0x88>(c, d),
                _mm256_shuffle_ps::<0xdd>(c, d),
            ]
        }
    }

    #[inline(always)]
    unsafe fn store_spread<const STREAM: bool>(at: *mut u8, a: [F; 4]) {
        // SAFETY: the caller vouches for the CPU and the pointer.
        unsafe {
            let low = (_mm256_unpacklo_ps(a[0], a[1]), _mm256_unpackhi_ps(a[0], a[1]));
            let high = (_mm256_unpacklo_ps(a[2], a[3]), _mm256_unpackhi_ps(a[2], a[3]));
            let [first, third] = swapped(low.0, low.1);
            let [second, fourth] = swapped(high.0, high.1);
            let mut to = at;
            for row in [first, second, third, fourth] {
                Self::store::<STREAM>(to, _mm256_castps_si256(row));
                to = to.add(Self::BYTES);
            }
        }
    }

    #[inline(always)]
    unsafe fn load_e4m3(at: *const u8) -> [F; 4] {
        // SAFETY: the caller vouches for the CPU and the pointer.
        unsafe {
            let codes = Self::load(at);
            let nibble = _mm256_set1_epi8(0x0f);
            let sign = _mm256_set1_epi8(i8::MIN);
            let below = _mm256_and_si256(codes, nibble);
            let above = _mm256_and_si256(_mm256_srli_epi16::<4>(codes), nibble);
            let upper = _mm256_shuffle_epi8(twice(NORMAL), above);
            let lower = _mm256_andnot_si256(nibble, _mm256_slli_epi16::<4>(codes));
            let exponent = _mm256_and_si256(codes, _mm256_set1_epi8(0x78));
            let subnormal = _mm256_cmpeq_epi8(exponent, _mm256_setzero_si256());
            let signs = _mm256_and_si256(codes, sign);
            let small = _mm256_or_si256(_mm256_shuffle_epi8(twice(SUBNORMAL[0]), below), signs);
            let upper = _mm256_blendv_epi8(upper, small, subnormal);
            let small = _mm256_shuffle_epi8(twice(SUBNORMAL[1]), below);
            let lower = _mm256_blendv_epi8(lower, small, subnormal);
            // Ones in the upper byte over the lower byte of 480 are a NaN.
            let ones = _mm256_set1_epi8(-1);
            let nan = _mm256_cmpeq_epi8(_mm256_or_si256(codes, sign), ones);
            let upper = _mm256_or_si256(upper, nan);
            let low = _mm256_unpacklo_epi8(lower, upper);
            let high = _mm256_unpackhi_epi8(lower, upper);
            [even(low), odd(low), even(high), odd(high)]
        }
    }

    #[inline(always)]
    unsafe fn load_e5m2(at: *const u8) -> [F; 4] {
        // SAFETY: the caller vouches for the CPU and the pointer.
        unsafe {
            let codes = Self::load(at);
            // Of each 16 elements the lower eight to the lower half.
            let even = _mm256_permute4x64_epi64::<0xd8>(_mm256_slli_epi16::<8>(codes));
            let odd = _mm256_andnot_si256(_mm256_set1_epi16(0xff), codes);
            let odd = _mm256_permute4x64_epi64::<0xd8>(odd);
            [
                _mm256_cvtph_ps(_mm256_castsi256_si128(even)),
                _mm256_cvtph_ps(_mm256_castsi256_si128(odd)),
                _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(even)),
                _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(odd)),
            ]
        }
    }

    #[inline(always)]
    unsafe fn store_f8<const FORMAT: usize, const STREAM: bool>(at: *mut u8, a: [F; 4]) {
        // SAFETY: the caller vouches for the CPU and the pointer.
        unsafe {
            let [a, b, c, d] = a;
            let code = _mm256_packus_epi16(codes::<FORMAT>(a, b), codes::<FORMAT>(c, d));
            // Signed packing keeps signs, and all ones.
            let sign = _mm256_packs_epi16(signs(a, b), signs(c, d));
            let nan = _mm256_packs_epi16(nans(a, b), nans(c, d));
            let magnitude = _mm256_set1_epi8(0x7f);
            let signed = _mm256_or_si256(code, _mm256_andnot_si256(magnitude, sign));
            Self::store::<STREAM>(at, _mm256_blendv_epi8(signed, magnitude, nan));
        }
    }
}
