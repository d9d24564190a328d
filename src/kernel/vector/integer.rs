//! Integers in registers. Sums, products and bits do not care about the sign.

use std::marker::PhantomData;

use super::super::Scalar;
use super::super::element::{Bits, Element, Ordered};
use super::super::scalar::{self, Item};
use super::simd::Simd;

/// Bytes of the largest register.
const REGISTER_BYTES: usize = 64;

/// An element's bytes repeated over 64 bits, from its first `bytes` bytes.
#[inline(always)]
fn repeated(factor: &Scalar, bytes: usize) -> u64 {
    let value = scalar::scalar::<u64>(factor);
    match bytes {
        1 => (value & 0xff) * 0x0101_0101_0101_0101,
        2 => (value & 0xffff) * 0x0001_0001_0001_0001,
        4 => (value & 0xffff_ffff) * 0x0000_0001_0000_0001,
        _ => value,
    }
}

macro_rules! integer {
    ($($(#[$doc:meta])* $name:ident: $int:ident, $add:ident, $mul:ident, $min:ident, $max:ident,
        $below:ident;)+) => { $(
        $(#[$doc])*
        #[derive(Debug)]
        pub(in crate::kernel) struct $name<S>(PhantomData<S>);

        impl<S: Simd> Element for $name<S> {
            type Acc = S::I;
            const LANES: usize = S::BYTES / size_of::<$int>();
            const NATIVE: usize = size_of::<$int>();
            const WIDE: usize = size_of::<$int>();

            #[inline(always)]
            unsafe fn load<const IS_WIDE: bool>(at: *const u8) -> S::I {
                // SAFETY: passed on.
                unsafe { S::load(at) }
            }

            #[inline(always)]
            unsafe fn store<const IS_WIDE: bool, const STREAM: bool>(at: *mut u8, acc: S::I) {
                // SAFETY: passed on.
                unsafe { S::store::<STREAM>(at, acc) };
            }

            #[inline(always)]
            unsafe fn scale(acc: S::I, factor: &Scalar) -> S::I {
                // SAFETY: passed on.
                unsafe { S::$mul(acc, S::splat64(repeated(factor, size_of::<$int>()))) }
            }

            // There is no vector division of integers; the result of an average is divided once.
            #[inline(always)]
            unsafe fn divide(acc: S::I, ranks: u32) -> S::I {
                let mut lanes: [$int; REGISTER_BYTES / size_of::<$int>()] = [0; _];
                // SAFETY: `lanes` holds the largest register.
                unsafe {
                    S::store::<false>(lanes.as_mut_ptr().cast(), acc);
                    for lane in &mut lanes[..Self::LANES] {
                        *lane = <$int as Item>::divide(*lane, ranks);
                    }
                    S::load(lanes.as_ptr().cast())
                }
            }

            #[inline(always)]
            unsafe fn canonical(acc: S::I) -> S::I {
                acc
            }

            #[inline(always)]
            unsafe fn sum(a: S::I, b: S::I) -> S::I {
                // SAFETY: passed on.
                unsafe { S::$add(a, b) }
            }

            #[inline(always)]
            unsafe fn prod(a: S::I, b: S::I) -> S::I {
                // SAFETY: passed on.
                unsafe { S::$mul(a, b) }
            }
        }

        impl<S: Simd> Ordered for $name<S> {
            #[inline(always)]
            unsafe fn min(a: S::I, b: S::I) -> S::I {
                // SAFETY: passed on.
                unsafe { S::$min(a, b) }
            }

            #[inline(always)]
            unsafe fn max(a: S::I, b: S::I) -> S::I {
                // SAFETY: passed on.
                unsafe { S::$max(a, b) }
            }
        }

        impl<S: Simd> Bits for $name<S> {
            #[inline(always)]
            unsafe fn and(a: S::I, b: S::I) -> S::I {
                // SAFETY: passed on.
                unsafe { S::and(a, b) }
            }

            #[inline(always)]
            unsafe fn or(a: S::I, b: S::I) -> S::I {
                // SAFETY: passed on.
                unsafe { S::or(a, b) }
            }

            #[inline(always)]
            unsafe fn xor(a: S::I, b: S::I) -> S::I {
                // SAFETY: passed on.
                unsafe { S::xor(a, b) }
            }

            #[inline(always)]
            unsafe fn truth(a: S::I) -> S::I {
                let mut one = Scalar([0; 16]);
                one.0[0] = 1;
                // SAFETY: passed on.
                unsafe { S::$below(a, S::splat64(repeated(&one, size_of::<$int>()))) }
            }
        }
    )+ };
}

integer! {
    /// `i8`.
    I8: i8, add8, mul8, min_i8, max_i8, min_u8;
    /// `u8`.
    U8: u8, add8, mul8, min_u8, max_u8, min_u8;
    /// `i16`.
    I16: i16, add16, mul16, min_i16, max_i16, min_u16;
    /// `u16`.
    U16: u16, add16, mul16, min_u16, max_u16, min_u16;
    /// `i32`.
    I32: i32, add32, mul32, min_i32, max_i32, min_u32;
    /// `u32`.
    U32: u32, add32, mul32, min_u32, max_u32, min_u32;
    /// `i64`.
    I64: i64, add64, mul64, min_i64, max_i64, min_u64;
    /// `u64`.
    U64: u64, add64, mul64, min_u64, max_u64, min_u64;
}
