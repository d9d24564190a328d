//! 512-bit registers.

use std::arch::x86_64::*;

use super::super::vector::simd::{Simd, direct};

/// The registers of AVX-512 F, BW, DQ and VL.
#[derive(Debug)]
pub(in crate::kernel) enum Avx512Registers {}

/// The table of a fix-up that keeps the first operand where the second is a NaN, else takes the
/// second: four bits for each kind of number, quiet and signalling NaN the lowest.
const UNLESS_NAN: i32 = 0x1111_1100;

type I = __m512i;
type F = __m512;
type D = __m512d;

impl Simd for Avx512Registers {
    type I = I;
    type F = F;
    type D = D;
    const BYTES: usize = 64;

    #[inline(always)]
    unsafe fn store<const STREAM: bool>(at: *mut u8, a: I) {
        // SAFETY: the caller vouches for the CPU and the pointer.
        unsafe {
            if STREAM {
                _mm512_stream_si512(at.cast(), a);
            } else {
                _mm512_storeu_si512(at.cast(), a);
            }
        }
    }

    #[inline(always)]
    unsafe fn store_f16<const STREAM: bool>(at: *mut u8, a: F) {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        // SAFETY: the caller vouches for the CPU and the pointer.
        unsafe { store256::<STREAM>(at, _mm512_cvtps_ph::<NEAREST>(a)) };
    }

    direct! {
        load(at: *const u8) -> I = _mm512_loadu_si512(at.cast());
        load_f16(at: *const u8) -> F = _mm512_cvtph_ps(_mm256_loadu_si256(at.cast()));

        to_f(a: I) -> F = _mm512_castsi512_ps(a);
        to_d(a: I) -> D = _mm512_castsi512_pd(a);
        of_f(a: F) -> I = _mm512_castps_si512(a);
        of_d(a: D) -> I = _mm512_castpd_si512(a);
        splat32(a: u32) -> I = _mm512_set1_epi32(a.cast_signed());
        splat64(a: u64) -> I = _mm512_set1_epi64(a.cast_signed());
        splat128(a: u128) -> I = _mm512_broadcast_i32x4(std::mem::transmute::<u128, __m128i>(a));

        and(a: I, b: I) -> I = _mm512_and_si512(a, b);
        or(a: I, b: I) -> I = _mm512_or_si512(a, b);
        xor(a: I, b: I) -> I = _mm512_xor_si512(a, b);
        add8(a: I, b: I) -> I = _mm512_add_epi8(a, b);
        add16(a: I, b: I) -> I = _mm512_add_epi16(a, b);
        add32(a: I, b: I) -> I = _mm512_add_epi32(a, b);
        add64(a: I, b: I) -> I = _mm512_add_epi64(a, b);
        mul8(a: I, b: I) -> I = {
            let even = _mm512_mullo_epi16(a, b);
            let odd = _mm512_mullo_epi16(_mm512_srli_epi16::<8>(a), _mm512_srli_epi16::<8>(b));
            _mm512_mask_blend_epi8(0xaaaa_aaaa_aaaa_aaaa, even, _mm512_slli_epi16::<8>(odd))
        };
        mul16(a: I, b: I) -> I = _mm512_mullo_epi16(a, b);
        mul32(a: I, b: I) -> I = _mm512_mullo_epi32(a, b);
        mul64(a: I, b: I) -> I = _mm512_mullo_epi64(a, b);
        upward32(a: I) -> I = _mm512_slli_epi32::<16>(a);
        round_halves(even: F, odd: F) -> I = {
            let (even, odd) = (_mm512_castps_si512(even), _mm512_castps_si512(odd));
            let upper = _mm512_set1_epi32(!0xffff);
            let kept = _mm512_srli_epi32::<16>(even);
            let kept = _mm512_ternarylogic_epi32::<0xf8>(kept, odd, upper);
            let dropped = _mm512_slli_epi32::<16>(odd);
            let dropped = _mm512_ternarylogic_epi32::<0xf4>(dropped, even, upper);
            // Up where more than half is dropped, or half of an odd number: or its lowest bit on.
            let one = _mm512_set1_epi16(1);
            let weight = _mm512_ternarylogic_epi32::<0xf8>(dropped, kept, one);
            let above = _mm512_subs_epu16(weight, _mm512_set1_epi16(i16::MIN));
            _mm512_add_epi16(kept, _mm512_min_epu16(above, one))
        };
        evens_f(a: F, b: F) -> F = _mm512_permutex2var_ps(a, counting(0, 2, 0), b);
        odds_f(a: F, b: F) -> F = _mm512_permutex2var_ps(a, counting(1, 2, 0), b);
        zip_low_f(a: F, b: F) -> F = _mm512_permutex2var_ps(a, counting(0, 1, 16), b);
        zip_high_f(a: F, b: F) -> F = _mm512_permutex2var_ps(a, counting(8, 1, 16), b);
        min_i8(a: I, b: I) -> I = _mm512_min_epi8(a, b);
        min_i16(a: I, b: I) -> I = _mm512_min_epi16(a, b);
        min_i32(a: I, b: I) -> I = _mm512_min_epi32(a, b);
        min_i64(a: I, b: I) -> I = _mm512_min_epi64(a, b);
        max_i8(a: I, b: I) -> I = _mm512_max_epi8(a, b);
        max_i16(a: I, b: I) -> I = _mm512_max_epi16(a, b);
        max_i32(a: I, b: I) -> I = _mm512_max_epi32(a, b);
        max_i64(a: I, b: I) -> I = _mm512_max_epi64(a, b);
        min_u8(a: I, b: I) -> I = _mm512_min_epu8(a, b);
        min_u16(a: I, b: I) -> I = _mm512_min_epu16(a, b);
        min_u32(a: I, b: I) -> I = _mm512_min_epu32(a, b);
        min_u64(a: I, b: I) -> I = _mm512_min_epu64(a, b);
        max_u8(a: I, b: I) -> I = _mm512_max_epu8(a, b);
        max_u16(a: I, b: I) -> I = _mm512_max_epu16(a, b);
        max_u32(a: I, b: I) -> I = _mm512_max_epu32(a, b);
        max_u64(a: I, b: I) -> I = _mm512_max_epu64(a, b);

        add_f(a: F, b: F) -> F = _mm512_add_ps(a, b);
        mul_f(a: F, b: F) -> F = _mm512_mul_ps(a, b);
        div_f(a: F, b: F) -> F = _mm512_div_ps(a, b);
        min_f(a: F, b: F) -> F = _mm512_min_ps(a, b);
        replace_nan_f(a: F, other: F) -> F =
            _mm512_fixupimm_ps::<0>(other, a, _mm512_set1_epi32(UNLESS_NAN));
        complex_f(a: F, b: F) -> F = {
            let direct = _mm512_mul_ps(_mm512_moveldup_ps(a), b);
            let crossed = _mm512_mul_ps(_mm512_movehdup_ps(a), _mm512_permute_ps::<0xb1>(b));
            let sum = _mm512_add_ps(direct, crossed);
            _mm512_mask_sub_ps(sum, 0x5555, direct, crossed)
        };
        add_d(a: D, b: D) -> D = _mm512_add_pd(a, b);
        mul_d(a: D, b: D) -> D = _mm512_mul_pd(a, b);
        div_d(a: D, b: D) -> D = _mm512_div_pd(a, b);
        min_d(a: D, b: D) -> D = _mm512_min_pd(a, b);
        replace_nan_d(a: D, other: D) -> D =
            _mm512_fixupimm_pd::<0>(other, a, _mm512_set1_epi64(i64::from(UNLESS_NAN)));
        complex_d(a: D, b: D) -> D = {
            let direct = _mm512_mul_pd(_mm512_movedup_pd(a), b);
            let imaginary = _mm512_permute_pd::<0xff>(a);
            let crossed = _mm512_mul_pd(imaginary, _mm512_permute_pd::<0x55>(b));
            let sum = _mm512_add_pd(direct, crossed);
            _mm512_mask_sub_pd(sum, 0x55, direct, crossed)
        };
    }
}

/// Stores half a register.
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
unsafe fn store256<const STREAM: bool>(at: *mut u8, a: __m256i) {
    // SAFETY: the caller vouches for the CPU and the pointer.
    unsafe {
        if STREAM {
            _mm256_stream_si256(at.cast(), a);
        } else {
            _mm256_storeu_si256(at.cast(), a);
        }
    }
}

/// Lane numbers: from `first` by `step`; with `other`, every second one is that much above the one
/// before it.
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
unsafe fn counting(first: i32, step: i32, other: i32) -> I {
    let mut lanes = [first; 16];
    let mut lane = 0;
    let mut next = first;
    while lane < 16 {
        lanes[lane] = next;
        next += step;
        if other != 0 {
            lanes[lane + 1] = lanes[lane] + other;
            lane += 1;
        }
        lane += 1;
    }
    // SAFETY: the caller vouches for the CPU; the array is a register's size.
    unsafe { _mm512_loadu_si512(lanes.as_ptr().cast()) }
}
