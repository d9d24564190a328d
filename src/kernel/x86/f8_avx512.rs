//! Registers of 64 bytes as 8-bit floats, with the byte permutes of AVX-512 VBMI.
//!
//! Widening looks both halves of a bfloat16, which holds every 8-bit float exactly, up by the seven
//! bits of the magnitude: one permute for each half. Subnormals, infinities and NaNs are entries
//! like any other.

use std::arch::x86_64::*;

use super::super::rounding::{E4M3, E5M2, Format, Rounding};
use super::super::vector::simd::Simd;
use super::avx512::Avx512Registers;
use super::f8::{Bytes, FORMATS};

type I = __m512i;
type F = __m512;

/// The upper and the lower bytes of the bfloat16 of every magnitude.
#[repr(align(64))]
struct Table([[u8; 128]; 2]);

impl Table {
    const fn of(format: Format) -> Self {
        let mut bytes = [[0; 128]; 2];
        let mut code = 0;
        while code < 128 {
            let [upper, lower] = format.bf16(code).to_be_bytes();
            bytes[0][code as usize] = upper;
            bytes[1][code as usize] = lower;
            code += 1;
        }
        Self(bytes)
    }
}

static WIDE_E4M3: Table = Table::of(E4M3);
static WIDE_E5M2: Table = Table::of(E5M2);

/// One value in every lane.
///
/// # Safety
/// As for [`Bytes`].
#[inline(always)]
unsafe fn splat(value: u32) -> I {
    // SAFETY: the caller vouches for the CPU.
    unsafe { _mm512_set1_epi32(value.cast_signed()) }
}

/// One half of each code's entry.
///
/// # Safety
/// As for [`Bytes`].
#[inline(always)]
unsafe fn entry(half: &[u8; 128], codes: I) -> I {
    let from = half.as_ptr().cast::<I>();
    // SAFETY: the caller vouches for the CPU; a table's half is two registers, at a line's start.
    unsafe {
        _mm512_permutex2var_epi8(_mm512_load_si512(from), codes, _mm512_load_si512(from.add(1)))
    }
}

/// The bfloat16 in the lower half of each lane.
///
/// # Safety
/// As for [`Bytes`].
#[inline(always)]
unsafe fn even(pair: I) -> F {
    // SAFETY: the caller vouches for the CPU.
    unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(pair)) }
}

/// The bfloat16 in the upper half of each lane.
///
/// # Safety
/// As for [`Bytes`].
#[inline(always)]
unsafe fn odd(pair: I) -> F {
    // SAFETY: the caller vouches for the CPU.
    unsafe { _mm512_castsi512_ps(_mm512_and_si512(pair, _mm512_set1_epi32(!0xffff))) }
}

/// Loads and widens by table.
///
/// # Safety
/// As for [`Bytes`].
#[inline(always)]
unsafe fn load(at: *const u8, table: &Table) -> [F; 4] {
    // SAFETY: the caller vouches for the CPU and the pointer; a table's half is two registers.
    unsafe {
        let codes = _mm512_loadu_si512(at.cast());
        // The permute does not look at the sign: or it on.
        let sign = _mm512_set1_epi8(i8::MIN);
        let upper = _mm512_ternarylogic_epi32::<0xf8>(entry(&table.0[0], codes), codes, sign);
        let lower = entry(&table.0[1], codes);
        let low = _mm512_unpacklo_epi8(lower, upper);
        let high = _mm512_unpackhi_epi8(lower, upper);
        [even(low), odd(low), even(high), odd(high)]
    }
}

/// Rounds; the code is in the low 8 bits of each lane, whose upper bits are 0.
///
/// # Safety
/// As for [`Bytes`].
#[inline(always)]
unsafe fn round<const FORMAT: usize>(a: F) -> I {
    // The smaller magnitude of two, without its sign.
    const MAGNITUDE: i32 = 0b1010;
    const EXPONENT: i32 = 0x7f80_0000;
    let rounding = const { Rounding::of(FORMATS[FORMAT]) };
    // SAFETY: the caller vouches for the CPU.
    unsafe {
        let number = _mm512_cmp_ps_mask::<_CMP_ORD_Q>(a, a);
        let largest = _mm512_castsi512_ps(splat(rounding.largest));
        let bounded = _mm512_range_ps::<MAGNITUDE>(a, largest);
        let exponent = _mm512_and_si512(_mm512_castps_si512(bounded), _mm512_set1_epi32(EXPONENT));
        let exponent = _mm512_max_epi32(exponent, splat(rounding.smallest));
        let power = _mm512_castsi512_ps(_mm512_add_epi32(exponent, splat(rounding.raise)));
        let counted = _mm512_castps_si512(_mm512_add_ps(bounded, power));
        let scale = _mm512_srl_epi32(exponent, _mm_cvtsi32_si128(rounding.shift.cast_signed()));
        // A lane that is no number takes the NaN's code and no sign.
        let magnitude = _mm512_set1_epi32(0x7f);
        let code = _mm512_mask_add_epi32(magnitude, number, counted, scale);
        let sign = _mm512_maskz_srli_epi32::<24>(number, _mm512_castps_si512(a));
        // The code where the mask has ones, else the sign.
        _mm512_ternarylogic_epi32::<0xca>(magnitude, code, sign)
    }
}

/// Turns rows of four 128-bit blocks into columns, and columns into rows.
///
/// # Safety
/// As for [`Bytes`].
#[inline(always)]
unsafe fn transposed(rows: [F; 4]) -> [F; 4] {
    // SAFETY: the caller vouches for the CPU.
    unsafe {
        let [a, b, c, d] = rows;
        let (ab, cd) = (_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0x44>(c, d));
        let (ef, gh) = (_mm512_shuffle_f32x4::<0xee>(a, b), _mm512_shuffle_f32x4::<0xee>(c, d));
        [
            _mm512_shuffle_f32x4::<0x88>(ab, cd),
            _mm512_shuffle_f32x4::<0xdd>(ab, cd),
            _mm512_shuffle_f32x4::<0x88>(ef, gh),
            _mm512_shuffle_f32x4::<0xdd>(ef, gh),
        ]
    }
}

impl Bytes for Avx512Registers {
    #[inline(always)]
    unsafe fn load_spread(at: *const u8) -> [F; 4] {
        // SAFETY: the caller vouches for the CPU and the pointer.
        unsafe {
            let row = at.cast::<f32>();
            let [a, b, c, d] = transposed([
                _mm512_loadu_ps(row),
                _mm512_loadu_ps(row.add(16)),
                _mm512_loadu_ps(row.add(32)),
                _mm512_loadu_ps(row.add(48)),
            ]);
            [
                _mm512_shuffle_ps::<0x88>(a, b),
                _mm512_shuffle_ps::<0xdd>(a, b),
                _mm512_shuffle_ps::<0x88>(c, d),
                _mm512_shuffle_ps::<0xdd>(c, d),
            ]
        }
    }

    #[inline(always)]
    unsafe fn store_spread<const STREAM: bool>(at: *mut u8, a: [F; 4]) {
        // SAFETY: the caller vouches for the CPU and the pointer.
        unsafe {
            let rows = transposed([
                _mm512_unpacklo_ps(a[0], a[1]),
                _mm512_unpackhi_ps(a[0], a[1]),
                _mm512_unpacklo_ps(a[2], a[3]),
                _mm512_unpackhi_ps(a[2], a[3]),
            ]);
            let mut to = at;
            for row in rows {
                Self::store::<STREAM>(to, _mm512_castps_si512(row));
                to = to.add(Self::BYTES);
            }
        }
    }

    #[inline(always)]
    unsafe fn load_e4m3(at: *const u8) -> [F; 4] {
        // SAFETY: passed on.
        unsafe { load(at, &WIDE_E4M3) }
    }

    #[inline(always)]
    unsafe fn load_e5m2(at: *const u8) -> [F; 4] {
        // SAFETY: passed on.
        unsafe { load(at, &WIDE_E5M2) }
    }

    #[inline(always)]
    unsafe fn store_f8<const FORMAT: usize, const STREAM: bool>(at: *mut u8, a: [F; 4]) {
        // SAFETY: the caller vouches for the CPU and the pointer.
        unsafe {
            let [a, b, c, d] = a;
            let low = _mm512_slli_epi32::<16>(round::<FORMAT>(b));
            let low = _mm512_or_si512(round::<FORMAT>(a), low);
            let high = _mm512_slli_epi32::<16>(round::<FORMAT>(d));
            let high = _mm512_or_si512(round::<FORMAT>(c), high);
            Self::store::<STREAM>(at, _mm512_packus_epi16(low, high));
        }
    }
}
