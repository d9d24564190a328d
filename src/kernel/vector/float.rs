//! Floats in registers. `f16` widens to `f32` lanes on loading and rounds on storing.

use std::marker::PhantomData;

use super::super::Scalar;
use super::super::element::{Element, Ordered};
use super::super::scalar::{ranks_f32, scalar};
use super::simd::Simd;

/// The canonical NaN of `f32`.
const NAN_F32: u32 = 0x7fc0_0000;

/// The canonical NaN of `f64`.
const NAN_F64: u64 = 0x7ff8_0000_0000_0000;

/// Every lane the same `f32`.
#[inline(always)]
pub(in crate::kernel) unsafe fn splat_f<S: Simd>(value: f32) -> S::F {
    // SAFETY: the caller vouches for the CPU.
    unsafe { S::to_f(S::splat32(value.to_bits())) }
}

/// Every lane the same `f64`.
#[inline(always)]
unsafe fn splat_d<S: Simd>(value: f64) -> S::D {
    // SAFETY: the caller vouches for the CPU.
    unsafe { S::to_d(S::splat64(value.to_bits())) }
}

/// NaNs become the canonical one.
#[inline(always)]
pub(in crate::kernel) unsafe fn canonical_f<S: Simd>(a: S::F) -> S::F {
    // SAFETY: the caller vouches for the CPU.
    unsafe { S::replace_nan_f(a, S::to_f(S::splat32(NAN_F32))) }
}

/// NaNs become the canonical one.
#[inline(always)]
unsafe fn canonical_d<S: Simd>(a: S::D) -> S::D {
    // SAFETY: the caller vouches for the CPU.
    unsafe { S::replace_nan_d(a, S::to_d(S::splat64(NAN_F64))) }
}

/// `minimum`. Where the instruction is not that already, it gives its second operand for a NaN and
/// for two zeros, so of the two orders at least one gives the NaN or -0, and the bitwise or keeps
/// either.
#[inline(always)]
pub(in crate::kernel) unsafe fn minimum_f<S: Simd>(a: S::F, b: S::F) -> S::F {
    // SAFETY: the caller vouches for the CPU.
    unsafe { S::to_f(S::or(S::of_f(S::min_f(a, b)), S::of_f(S::min_f(b, a)))) }
}

/// `maximum` is `minimum` with all signs turned.
#[inline(always)]
pub(in crate::kernel) unsafe fn maximum_f<S: Simd>(a: S::F, b: S::F) -> S::F {
    // SAFETY: the caller vouches for the CPU.
    unsafe {
        let sign = S::splat32(1 << 31);
        let a = S::to_f(S::xor(S::of_f(a), sign));
        let b = S::to_f(S::xor(S::of_f(b), sign));
        S::to_f(S::xor(S::of_f(minimum_f::<S>(a, b)), sign))
    }
}

/// As [`minimum_f`].
#[inline(always)]
unsafe fn minimum_d<S: Simd>(a: S::D, b: S::D) -> S::D {
    // SAFETY: the caller vouches for the CPU.
    unsafe { S::to_d(S::or(S::of_d(S::min_d(a, b)), S::of_d(S::min_d(b, a)))) }
}

/// As [`maximum_f`].
#[inline(always)]
unsafe fn maximum_d<S: Simd>(a: S::D, b: S::D) -> S::D {
    // SAFETY: the caller vouches for the CPU.
    unsafe {
        let sign = S::splat64(1 << 63);
        let a = S::to_d(S::xor(S::of_d(a), sign));
        let b = S::to_d(S::xor(S::of_d(b), sign));
        S::to_d(S::xor(S::of_d(minimum_d::<S>(a, b)), sign))
    }
}

#[inline(always)]
pub(in crate::kernel) unsafe fn load_f32<S: Simd>(at: *const u8) -> S::F {
    // SAFETY: the caller vouches for the CPU and the pointer.
    unsafe { S::to_f(S::load(at)) }
}

#[inline(always)]
pub(in crate::kernel) unsafe fn store_f32<S: Simd, const STREAM: bool>(at: *mut u8, a: S::F) {
    // SAFETY: the caller vouches for the CPU and the pointer.
    unsafe { S::store::<STREAM>(at, S::of_f(a)) };
}

#[inline(always)]
unsafe fn load_f16<S: Simd>(at: *const u8) -> S::F {
    // SAFETY: the caller vouches for the CPU and the pointer.
    unsafe { S::load_f16(at) }
}

#[inline(always)]
unsafe fn store_f16<S: Simd, const STREAM: bool>(at: *mut u8, a: S::F) {
    // SAFETY: the caller vouches for the CPU and the pointer.
    unsafe { S::store_f16::<STREAM>(at, canonical_f::<S>(a)) };
}

macro_rules! real {
    ($($(#[$doc:meta])* $name:ident: $bytes:literal, $load:ident, $store:ident;)+) => { $(
        $(#[$doc])*
        #[derive(Debug)]
        pub(in crate::kernel) struct $name<S>(PhantomData<S>);

        impl<S: Simd> Element for $name<S> {
            type Acc = S::F;
            const LANES: usize = S::BYTES / 4;
            const NATIVE: usize = $bytes;
            const WIDE: usize = 4;

            #[inline(always)]
            unsafe fn load<const IS_WIDE: bool>(at: *const u8) -> S::F {
                // SAFETY: passed on.
                unsafe { if IS_WIDE { load_f32::<S>(at) } else { $load::<S>(at) } }
            }

            #[inline(always)]
            unsafe fn store<const IS_WIDE: bool, const STREAM: bool>(at: *mut u8, acc: S::F) {
                // SAFETY: passed on.
                unsafe {
                    if IS_WIDE {
                        store_f32::<S, STREAM>(at, acc);
                    } else {
                        $store::<S, STREAM>(at, acc);
                    }
                }
            }

            #[inline(always)]
            unsafe fn scale(acc: S::F, factor: &Scalar) -> S::F {
                // SAFETY: passed on.
                unsafe { S::mul_f(acc, splat_f::<S>(scalar(factor))) }
            }

            #[inline(always)]
            unsafe fn divide(acc: S::F, ranks: u32) -> S::F {
                // SAFETY: passed on.
                unsafe { S::div_f(acc, splat_f::<S>(ranks_f32(ranks))) }
            }

            #[inline(always)]
            unsafe fn canonical(acc: S::F) -> S::F {
                // SAFETY: passed on.
                unsafe { canonical_f::<S>(acc) }
            }

            #[inline(always)]
            unsafe fn sum(a: S::F, b: S::F) -> S::F {
                // SAFETY: passed on.
                unsafe { S::add_f(a, b) }
            }

            #[inline(always)]
            unsafe fn prod(a: S::F, b: S::F) -> S::F {
                // SAFETY: passed on.
                unsafe { S::mul_f(a, b) }
            }
        }

        impl<S: Simd> Ordered for $name<S> {
            #[inline(always)]
            unsafe fn min(a: S::F, b: S::F) -> S::F {
                // SAFETY: passed on.
                unsafe { minimum_f::<S>(a, b) }
            }

            #[inline(always)]
            unsafe fn max(a: S::F, b: S::F) -> S::F {
                // SAFETY: passed on.
                unsafe { maximum_f::<S>(a, b) }
            }
        }
    )+ };
}

real! {
    /// `f32`.
    F32: 4, load_f32, store_f32;
    /// `f16`.
    F16: 2, load_f16, store_f16;
}

/// Elements whose accumulator is a register as loaded.
macro_rules! plain {
    ($($(#[$doc:meta])* $name:ident: $acc:ident, $bytes:literal, $to:ident, $of:ident,
        $add:ident, $mul:ident, $div:ident, $canonical:ident,
        |$factor:ident| $splat:expr, |$ranks:ident| $divisor:expr;)+) => { $(
        $(#[$doc])*
        #[derive(Debug)]
        pub(in crate::kernel) struct $name<S>(PhantomData<S>);

        impl<S: Simd> Element for $name<S> {
            type Acc = S::$acc;
            const LANES: usize = S::BYTES / $bytes;
            const NATIVE: usize = $bytes;
            const WIDE: usize = $bytes;

            #[inline(always)]
            unsafe fn load<const IS_WIDE: bool>(at: *const u8) -> S::$acc {
                // SAFETY: passed on.
                unsafe { S::$to(S::load(at)) }
            }

            #[inline(always)]
            unsafe fn store<const IS_WIDE: bool, const STREAM: bool>(at: *mut u8, acc: S::$acc) {
                // SAFETY: passed on.
                unsafe { S::store::<STREAM>(at, S::$of(acc)) };
            }

            #[inline(always)]
            unsafe fn scale(acc: S::$acc, $factor: &Scalar) -> S::$acc {
                // SAFETY: passed on.
                unsafe { S::$mul(acc, $splat) }
            }

            #[inline(always)]
            unsafe fn divide(acc: S::$acc, $ranks: u32) -> S::$acc {
                // SAFETY: passed on.
                unsafe { S::$div(acc, $divisor) }
            }

            #[inline(always)]
            unsafe fn canonical(acc: S::$acc) -> S::$acc {
                // SAFETY: passed on.
                unsafe { $canonical::<S>(acc) }
            }

            #[inline(always)]
            unsafe fn sum(a: S::$acc, b: S::$acc) -> S::$acc {
                // SAFETY: passed on.
                unsafe { S::$add(a, b) }
            }

            #[inline(always)]
            unsafe fn prod(a: S::$acc, b: S::$acc) -> S::$acc {
                // SAFETY: passed on.
                unsafe { S::$mul(a, b) }
            }
        }
    )+ };
}

plain! {
    /// `f64`.
    F64: D, 8, to_d, of_d, add_d, mul_d, div_d, canonical_d,
        |factor| splat_d::<S>(scalar(factor)), |ranks| splat_d::<S>(f64::from(ranks));
    /// Pairs of `f32`.
    Complex64: F, 8, to_f, of_f, add_f, complex_f, div_f, canonical_f,
        |factor| S::to_f(S::splat64(scalar(factor))), |ranks| splat_f::<S>(ranks_f32(ranks));
    /// Pairs of `f64`.
    Complex128: D, 16, to_d, of_d, add_d, complex_d, div_d, canonical_d,
        |factor| S::to_d(S::splat128(scalar(factor))), |ranks| splat_d::<S>(f64::from(ranks));
}

impl<S: Simd> Ordered for F64<S> {
    #[inline(always)]
    unsafe fn min(a: S::D, b: S::D) -> S::D {
        // SAFETY: passed on.
        unsafe { minimum_d::<S>(a, b) }
    }

    #[inline(always)]
    unsafe fn max(a: S::D, b: S::D) -> S::D {
        // SAFETY: passed on.
        unsafe { maximum_d::<S>(a, b) }
    }
}
