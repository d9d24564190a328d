//! 256-bit registers.

use std::arch::x86_64::*;

use super::super::vector::simd::{Simd, direct};

/// The registers of AVX2 and F16C.
#[derive(Debug)]
pub(in crate::kernel) enum Avx2Registers {}

type I = __m256i;
type F = __m256;
type D = __m256d;

impl Simd for Avx2Registers {
    type I = I;
    type F = F;
    type D = D;
    const BYTES: usize = 32;

    #[inline(always)]
    unsafe fn store<const STREAM: bool>(at: *mut u8, a: I) {
        // SAFETY: the caller vouches for the CPU and the pointer.
        unsafe {
            if STREAM {
                _mm256_stream_si256(at.cast(), a);
            } else {
                _mm256_storeu_si256(at.cast(), a);
            }
        }
    }

    #[inline(always)]
    unsafe fn store_f16<const STREAM: bool>(at: *mut u8, a: F) {
        // SAFETY: the caller vouches for the CPU and the pointer.
        unsafe { store128::<STREAM>(at, _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(a)) };
    }

    direct! {
        load(at: *const u8) -> I = _mm256_loadu_si256(at.cast());
        load_f16(at: *const u8) -> F = _mm256_cvtph_ps(_mm_loadu_si128(at.cast()));

        to_f(a: I) -> F = _mm256_castsi256_ps(a);
        to_d(a: I) -> D = _mm256_castsi256_pd(a);
        of_f(a: F) -> I = _mm256_castps_si256(a);
        of_d(a: D) -> I = _mm256_castpd_si256(a);
        splat32(a: u32) -> I = _mm256_set1_epi32(a.cast_signed());
        splat64(a: u64) -> I = _mm256_set1_epi64x(a.cast_signed());
        splat128(a: u128) -> I =
            _mm256_broadcastsi128_si256(std::mem::transmute::<u128, __m128i>(a));

        and(a: I, b: I) -> I = _mm256_and_si256(a, b);
        or(a: I, b: I) -> I = _mm256_or_si256(a, b);
        xor(a: I, b: I) -> I = _mm256_xor_si256(a, b);
        add8(a: I, b: I) -> I = _mm256_add_epi8(a, b);
        add16(a: I, b: I) -> I = _mm256_add_epi16(a, b);
        add32(a: I, b: I) -> I = _mm256_add_epi32(a, b);
        add64(a: I, b: I) -> I = _mm256_add_epi64(a, b);
        mul8(a: I, b: I) -> I = {
            let even = _mm256_and_si256(_mm256_mullo_epi16(a, b), _mm256_set1_epi16(0xff));
            let odd = _mm256_mullo_epi16(_mm256_srli_epi16::<8>(a), _mm256_srli_epi16::<8>(b));
            _mm256_or_si256(even, _mm256_slli_epi16::<8>(odd))
        };
        mul16(a: I, b: I) -> I = _mm256_mullo_epi16(a, b);
        mul32(a: I, b: I) -> I = _mm256_mullo_epi32(a, b);
        mul64(a: I, b: I) -> I = {
            let left = _mm256_mul_epu32(_mm256_srli_epi64::<32>(a), b);
            let right = _mm256_mul_epu32(a, _mm256_srli_epi64::<32>(b));
            let upper = _mm256_slli_epi64::<32>(_mm256_add_epi64(left, right));
            _mm256_add_epi64(_mm256_mul_epu32(a, b), upper)
        };
        upward32(a: I) -> I = _mm256_slli_epi32::<16>(a);
        round_halves(even: F, odd: F) -> I = {
            let (even, odd) = (_mm256_castps_si256(even), _mm256_castps_si256(odd));
            let kept = _mm256_blend_epi16::<0xaa>(_mm256_srli_epi32::<16>(even), odd);
            let dropped = _mm256_blend_epi16::<0xaa>(even, _mm256_slli_epi32::<16>(odd));
            // Up where more than half is dropped, or half of an odd number: or its lowest bit on.
            let one = _mm256_set1_epi16(1);
            let weight = _mm256_or_si256(dropped, _mm256_and_si256(kept, one));
            let above = _mm256_subs_epu16(weight, _mm256_set1_epi16(i16::MIN));
            _mm256_add_epi16(kept, _mm256_min_epu16(above, one))
        };
        evens_f(a: F, b: F) -> F = in_order(_mm256_shuffle_ps::<0x88>(a, b));
        odds_f(a: F, b: F) -> F = in_order(_mm256_shuffle_ps::<0xdd>(a, b));
        zip_low_f(a: F, b: F) -> F = _mm256_permute2f128_ps::<0x20>(
            _mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b)
        );
        zip_high_f(a: F, b: F) -> F = _mm256_permute2f128_ps::<0x31>(
            _mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b)
        );
        min_i8(a: I, b: I) -> I = _mm256_min_epi8(a, b);
        min_i16(a: I, b: I) -> I = _mm256_min_epi16(a, b);
        min_i32(a: I, b: I) -> I = _mm256_min_epi32(a, b);
        min_i64(a: I, b: I) -> I = _mm256_blendv_epi8(a, b, _mm256_cmpgt_epi64(a, b));
        max_i8(a: I, b: I) -> I = _mm256_max_epi8(a, b);
        max_i16(a: I, b: I) -> I = _mm256_max_epi16(a, b);
        max_i32(a: I, b: I) -> I = _mm256_max_epi32(a, b);
        max_i64(a: I, b: I) -> I = _mm256_blendv_epi8(b, a, _mm256_cmpgt_epi64(a, b));
        min_u8(a: I, b: I) -> I = _mm256_min_epu8(a, b);
        min_u16(a: I, b: I) -> I = _mm256_min_epu16(a, b);
        min_u32(a: I, b: I) -> I = _mm256_min_epu32(a, b);
        min_u64(a: I, b: I) -> I = _mm256_blendv_epi8(a, b, above_u64(a, b));
        max_u8(a: I, b: I) -> I = _mm256_max_epu8(a, b);
        max_u16(a: I, b: I) -> I = _mm256_max_epu16(a, b);
        max_u32(a: I, b: I) -> I = _mm256_max_epu32(a, b);
        max_u64(a: I, b: I) -> I = _mm256_blendv_epi8(b, a, above_u64(a, b));

        add_f(a: F, b: F) -> F = _mm256_add_ps(a, b);
        mul_f(a: F, b: F) -> F = _mm256_mul_ps(a, b);
        div_f(a: F, b: F) -> F = _mm256_div_ps(a, b);
        min_f(a: F, b: F) -> F = _mm256_min_ps(a, b);
        replace_nan_f(a: F, other: F) -> F =
            _mm256_blendv_ps(a, other, _mm256_cmp_ps::<_CMP_UNORD_Q>(a, a));
        complex_f(a: F, b: F) -> F = {
            let direct = _mm256_mul_ps(_mm256_moveldup_ps(a), b);
            let crossed = _mm256_mul_ps(_mm256_movehdup_ps(a), _mm256_permute_ps::<0xb1>(b));
            _mm256_addsub_ps(direct, crossed)
        };
        add_d(a: D, b: D) -> D = _mm256_add_pd(a, b);
        mul_d(a: D, b: D) -> D = _mm256_mul_pd(a, b);
        div_d(a: D, b: D) -> D = _mm256_div_pd(a, b);
        min_d(a: D, b: D) -> D = _mm256_min_pd(a, b);
        replace_nan_d(a: D, other: D) -> D =
            _mm256_blendv_pd(a, other, _mm256_cmp_pd::<_CMP_UNORD_Q>(a, a));
        complex_d(a: D, b: D) -> D = {
            let direct = _mm256_mul_pd(_mm256_movedup_pd(a), b);
            let imaginary = _mm256_permute_pd::<0xf>(a);
            _mm256_addsub_pd(direct, _mm256_mul_pd(imaginary, _mm256_permute_pd::<0x5>(b)))
        };
    }
}

/// All ones where `a > b` as unsigned numbers: moving both by half the range makes them signed.
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
unsafe fn above_u64(a: I, b: I) -> I {
    // SAFETY: the caller vouches for the CPU.
    unsafe {
        let half = _mm256_set1_epi64x(i64::MIN);
        _mm256_cmpgt_epi64(_mm256_xor_si256(a, half), _mm256_xor_si256(b, half))
    }
}

/// Stores half a register.
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
unsafe fn store128<const STREAM: bool>(at: *mut u8, a: __m128i) {
    // SAFETY: the caller vouches for the CPU and the pointer.
    unsafe {
        if STREAM {
            _mm_stream_si128(at.cast(), a);
        } else {
            _mm_storeu_si128(at.cast(), a);
        }
    }
}

/// A shuffle works in 128-bit halves: this puts its 64-bit parts where they belong.
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
unsafe fn in_order(a: F) -> F {
    // SAFETY: the caller vouches for the CPU.
    unsafe { _mm256_castpd_ps(_mm256_permute4x64_pd::<0xd8>(_mm256_castps_pd(a))) }
}
