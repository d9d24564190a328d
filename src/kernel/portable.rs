//! The set every CPU has: one element per register, left to the compiler to vectorise.
//!
//! Arithmetic is the oracle's; the conversions are the branchless ones, which vectorise.

use std::marker::PhantomData;

use super::Scalar;
use super::element::{Bits, Element, Op, Ordered, Set};
use super::pass::{self, Pass};
use super::rounding::{self, narrow};
use super::scalar::{self, Item};
use crate::types::ReduceOp;

/// The set.
#[derive(Debug)]
pub(super) enum Portable {}

/// One element of the oracle's type `T`.
#[derive(Debug)]
pub(super) struct One<T>(PhantomData<T>);

/// Conversions between the forms.
pub(super) trait Forms: Item {
    /// Exact.
    fn widen(native: Self::Native) -> Self::Wide;
    /// Rounded as the oracle does.
    fn narrow(wide: Self::Wide) -> Self::Native;
}

macro_rules! same_form {
    ($($name:ty),+) => { $(
        impl Forms for $name {
            #[inline(always)]
            fn widen(native: Self) -> Self {
                native
            }

            #[inline(always)]
            fn narrow(wide: Self) -> Self {
                wide
            }
        }
    )+ };
}

same_form!(i8, u8, i16, u16, i32, u32, i64, u64, f32, f64, [f32; 2], [f64; 2]);

macro_rules! two_forms {
    ($($name:ident, $native:ident, $widen:expr, $format:ident;)+) => { $(
        impl Forms for scalar::$name {
            #[inline(always)]
            fn widen(native: $native) -> f32 {
                $widen(native)
            }

            #[inline(always)]
            fn narrow(wide: f32) -> $native {
                #[expect(clippy::cast_possible_truncation, reason = "codes have that many bits")]
                {
                    narrow(wide, rounding::$format) as $native
                }
            }
        }
    )+ };
}

two_forms! {
    F16, u16, rounding::widen_f16, F16;
    F8E4M3, u8, rounding::widen_e4m3, E4M3;
    F8E5M2, u8, rounding::widen_e5m2, E5M2;
}

impl Forms for scalar::Bf16 {
    #[inline(always)]
    fn widen(native: u16) -> f32 {
        f32::from_bits(u32::from(native) << 16)
    }

    #[inline(always)]
    fn narrow(wide: f32) -> u16 {
        rounding::narrow_bf16(wide)
    }
}

impl<T: Forms> Element for One<T> {
    type Acc = T::Wide;
    const LANES: usize = 1;
    const NATIVE: usize = size_of::<T::Native>();
    const WIDE: usize = size_of::<T::Wide>();

    #[inline(always)]
    unsafe fn load<const IS_WIDE: bool>(at: *const u8) -> T::Wide {
        // SAFETY: the caller vouches for one element of the form; the read needs no alignment.
        unsafe {
            if IS_WIDE {
                at.cast::<T::Wide>().read_unaligned()
            } else {
                <T as Forms>::widen(at.cast::<T::Native>().read_unaligned())
            }
        }
    }

    #[inline(always)]
    unsafe fn store<const IS_WIDE: bool, const STREAM: bool>(at: *mut u8, acc: T::Wide) {
        // SAFETY: the caller vouches for one element of the form; the write needs no alignment.
        unsafe {
            if IS_WIDE {
                at.cast::<T::Wide>().write_unaligned(acc);
            } else {
                let native = <T as Forms>::narrow(acc);
                at.cast::<T::Native>().write_unaligned(native);
            }
        }
    }

    #[inline(always)]
    unsafe fn scale(acc: T::Wide, factor: &Scalar) -> T::Wide {
        T::combine(ReduceOp::Prod, acc, scalar::scalar::<T::Wide>(factor))
    }

    #[inline(always)]
    unsafe fn divide(acc: T::Wide, ranks: u32) -> T::Wide {
        T::divide(acc, ranks)
    }

    #[inline(always)]
    unsafe fn canonical(acc: T::Wide) -> T::Wide {
        T::canonical(acc)
    }

    #[inline(always)]
    unsafe fn sum(a: T::Wide, b: T::Wide) -> T::Wide {
        T::combine(ReduceOp::Sum, a, b)
    }

    #[inline(always)]
    unsafe fn prod(a: T::Wide, b: T::Wide) -> T::Wide {
        T::combine(ReduceOp::Prod, a, b)
    }
}

impl<T: Forms> Ordered for One<T> {
    #[inline(always)]
    unsafe fn min(a: T::Wide, b: T::Wide) -> T::Wide {
        T::combine(ReduceOp::Min, a, b)
    }

    #[inline(always)]
    unsafe fn max(a: T::Wide, b: T::Wide) -> T::Wide {
        T::combine(ReduceOp::Max, a, b)
    }
}

impl<T: Forms> Bits for One<T> {
    #[inline(always)]
    unsafe fn and(a: T::Wide, b: T::Wide) -> T::Wide {
        T::combine(ReduceOp::Band, a, b)
    }

    #[inline(always)]
    unsafe fn or(a: T::Wide, b: T::Wide) -> T::Wide {
        T::combine(ReduceOp::Bor, a, b)
    }

    #[inline(always)]
    unsafe fn xor(a: T::Wide, b: T::Wide) -> T::Wide {
        T::combine(ReduceOp::Bxor, a, b)
    }

    #[inline(always)]
    unsafe fn truth(a: T::Wide) -> T::Wide {
        T::truth(a)
    }
}

impl Set for Portable {
    type I8 = One<i8>;
    type U8 = One<u8>;
    type I16 = One<i16>;
    type U16 = One<u16>;
    type I32 = One<i32>;
    type U32 = One<u32>;
    type I64 = One<i64>;
    type U64 = One<u64>;
    type F16 = One<scalar::F16>;
    type Bf16 = One<scalar::Bf16>;
    type F8E4M3 = One<scalar::F8E4M3>;
    type F8E5M2 = One<scalar::F8E5M2>;
    type F32 = One<f32>;
    type F64 = One<f64>;
    type Complex64 = One<[f32; 2]>;
    type Complex128 = One<[f64; 2]>;

    unsafe fn run<E: Element, O: Op<E>>(pass: &Pass<'_>) {
        // SAFETY: passed on; the set needs nothing of the CPU.
        unsafe { pass::body::<E, O>(pass) };
    }
}
