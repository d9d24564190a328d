//! The set every CPU has: arrays of elements, left to the compiler to vectorise.
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

/// Elements of an accumulator: enough for a loop over them to fill vectors.
const LANES: usize = 16;

/// A few elements of the oracle's type `T`.
#[derive(Debug)]
pub(super) struct Many<T>(PhantomData<T>);

/// The same done to each element.
#[inline(always)]
fn each<A: Copy, B: Copy>(a: [A; LANES], one: impl Fn(A) -> B) -> [B; LANES] {
    let mut done = [one(a[0]); LANES];
    for (done, &a) in done.iter_mut().zip(&a) {
        *done = one(a);
    }
    done
}

/// The same done to each pair of elements.
#[inline(always)]
fn both<A: Copy>(mut a: [A; LANES], b: [A; LANES], one: impl Fn(A, A) -> A) -> [A; LANES] {
    for (a, &b) in a.iter_mut().zip(&b) {
        *a = one(*a, b);
    }
    a
}

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

impl<T: Forms> Element for Many<T> {
    type Acc = [T::Wide; LANES];
    const LANES: usize = LANES;
    const REGISTERS: usize = 4;
    const NATIVE: usize = size_of::<T::Native>();
    const WIDE: usize = size_of::<T::Wide>();

    #[inline(always)]
    unsafe fn load<const IS_WIDE: bool>(at: *const u8) -> [T::Wide; LANES] {
        // SAFETY: the caller vouches for the elements of the form; the read needs no alignment.
        unsafe {
            if IS_WIDE {
                at.cast::<[T::Wide; LANES]>().read_unaligned()
            } else {
                each(at.cast::<[T::Native; LANES]>().read_unaligned(), <T as Forms>::widen)
            }
        }
    }

    #[inline(always)]
    unsafe fn store<const IS_WIDE: bool, const STREAM: bool>(at: *mut u8, acc: [T::Wide; LANES]) {
        // SAFETY: the caller vouches for the elements of the form; the write needs no alignment.
        unsafe {
            if IS_WIDE {
                at.cast::<[T::Wide; LANES]>().write_unaligned(acc);
            } else {
                let native = each(acc, <T as Forms>::narrow);
                at.cast::<[T::Native; LANES]>().write_unaligned(native);
            }
        }
    }

    #[inline(always)]
    unsafe fn scale(acc: [T::Wide; LANES], factor: &Scalar) -> [T::Wide; LANES] {
        let factor = scalar::scalar::<T::Wide>(factor);
        each(acc, |a| T::combine(ReduceOp::Prod, a, factor))
    }

    #[inline(always)]
    unsafe fn divide(acc: [T::Wide; LANES], ranks: u32) -> [T::Wide; LANES] {
        each(acc, |a| T::divide(a, ranks))
    }

    #[inline(always)]
    unsafe fn canonical(acc: [T::Wide; LANES]) -> [T::Wide; LANES] {
        each(acc, T::canonical)
    }

    #[inline(always)]
    unsafe fn sum(a: [T::Wide; LANES], b: [T::Wide; LANES]) -> [T::Wide; LANES] {
        both(a, b, |a, b| T::combine(ReduceOp::Sum, a, b))
    }

    #[inline(always)]
    unsafe fn prod(a: [T::Wide; LANES], b: [T::Wide; LANES]) -> [T::Wide; LANES] {
        both(a, b, |a, b| T::combine(ReduceOp::Prod, a, b))
    }
}

impl<T: Forms> Ordered for Many<T> {
    #[inline(always)]
    unsafe fn min(a: [T::Wide; LANES], b: [T::Wide; LANES]) -> [T::Wide; LANES] {
        both(a, b, |a, b| T::combine(ReduceOp::Min, a, b))
    }

    #[inline(always)]
    unsafe fn max(a: [T::Wide; LANES], b: [T::Wide; LANES]) -> [T::Wide; LANES] {
        both(a, b, |a, b| T::combine(ReduceOp::Max, a, b))
    }
}

impl<T: Forms> Bits for Many<T> {
    #[inline(always)]
    unsafe fn and(a: [T::Wide; LANES], b: [T::Wide; LANES]) -> [T::Wide; LANES] {
        both(a, b, |a, b| T::combine(ReduceOp::Band, a, b))
    }

    #[inline(always)]
    unsafe fn or(a: [T::Wide; LANES], b: [T::Wide; LANES]) -> [T::Wide; LANES] {
        both(a, b, |a, b| T::combine(ReduceOp::Bor, a, b))
    }

    #[inline(always)]
    unsafe fn xor(a: [T::Wide; LANES], b: [T::Wide; LANES]) -> [T::Wide; LANES] {
        both(a, b, |a, b| T::combine(ReduceOp::Bxor, a, b))
    }

    #[inline(always)]
    unsafe fn truth(a: [T::Wide; LANES]) -> [T::Wide; LANES] {
        each(a, T::truth)
    }
}

impl Set for Portable {
    type I8 = Many<i8>;
    type U8 = Many<u8>;
    type I16 = Many<i16>;
    type U16 = Many<u16>;
    type I32 = Many<i32>;
    type U32 = Many<u32>;
    type I64 = Many<i64>;
    type U64 = Many<u64>;
    type F16 = Many<scalar::F16>;
    type Bf16 = Many<scalar::Bf16>;
    type F8E4M3 = Many<scalar::F8E4M3>;
    type F8E5M2 = Many<scalar::F8E5M2>;
    type F32 = Many<f32>;
    type F64 = Many<f64>;
    type Complex64 = Many<[f32; 2]>;
    type Complex128 = Many<[f64; 2]>;

    unsafe fn run<E: Element, O: Op<E>>(pass: &Pass<'_>) {
        // SAFETY: passed on; the set needs nothing of the CPU.
        unsafe { pass::body::<E, O>(pass) };
    }
}
