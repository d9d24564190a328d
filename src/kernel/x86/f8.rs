//! 8-bit floats in x86 registers: four accumulators, so that memory is moved by whole registers.

use std::marker::PhantomData;

use super::super::Scalar;
use super::super::element::{Element, Ordered};
use super::super::rounding::{E4M3, E5M2, Format};
use super::super::scalar::{ranks_f32, scalar};
use super::super::vector::float::{canonical_f, maximum_f, minimum_f, splat_f};
use super::super::vector::simd::Simd;

/// The formats.
pub(super) const FORMATS: [Format; 2] = [E4M3, E5M2];

/// Index of [`E4M3`] in [`FORMATS`].
const INDEX_E4M3: usize = 0;

/// Index of [`E5M2`] in [`FORMATS`].
const INDEX_E5M2: usize = 1;

/// `f8e4m3`.
pub(in crate::kernel) type F8E4M3<S> = F8<S, INDEX_E4M3>;

/// `f8e5m2`.
pub(in crate::kernel) type F8E5M2<S> = F8<S, INDEX_E5M2>;

/// One of [`FORMATS`].
#[derive(Debug)]
pub(in crate::kernel) struct F8<S, const FORMAT: usize>(PhantomData<S>);

/// Four registers in the set's own order.
type Spread<S> = [<S as Simd>::F; 4];

/// What the 8-bit floats need: a register of bytes is four registers of `f32`, *spread* over them.
///
/// Both sets spread alike, so that widening and packing take instructions that stay within 128
/// bits. Of each 16 elements the first register has the even ones of the lower eight, the second
/// the odd ones; the third and the fourth have those of the upper eight.
///
/// # Safety of all methods
/// As for [`Simd`].
pub(in crate::kernel) trait Bytes: Simd {
    /// Loads four registers of `f32`.
    unsafe fn load_spread(at: *const u8) -> [Self::F; 4];
    /// Stores four registers of `f32`.
    unsafe fn store_spread<const STREAM: bool>(at: *mut u8, a: [Self::F; 4]);
    /// Loads and widens a register of E4M3.
    unsafe fn load_e4m3(at: *const u8) -> [Self::F; 4];
    /// Loads and widens a register of E5M2.
    unsafe fn load_e5m2(at: *const u8) -> [Self::F; 4];
    /// Rounds to a register of bytes and stores; `FORMAT` is an index of [`FORMATS`].
    unsafe fn store_f8<const FORMAT: usize, const STREAM: bool>(at: *mut u8, a: [Self::F; 4]);
}

/// Calls a function on each register. Not a closure's work: that would be compiled without the
/// set's instructions.
macro_rules! each {
    ($one:expr, $a:expr) => {{
        let a = $a;
        [$one(a[0]), $one(a[1]), $one(a[2]), $one(a[3])]
    }};
    ($one:expr, $a:expr, all $b:expr) => {{
        let (a, b) = ($a, $b);
        [$one(a[0], b), $one(a[1], b), $one(a[2], b), $one(a[3], b)]
    }};
    ($one:expr, $a:expr, $b:expr) => {{
        let (a, b) = ($a, $b);
        [$one(a[0], b[0]), $one(a[1], b[1]), $one(a[2], b[2]), $one(a[3], b[3])]
    }};
}

impl<S: Bytes, const FORMAT: usize> Element for F8<S, FORMAT> {
    type Acc = Spread<S>;
    const LANES: usize = S::BYTES;
    const REGISTERS: usize = 4;
    const NATIVE: usize = 1;
    const WIDE: usize = 4;

    #[inline(always)]
    unsafe fn load<const IS_WIDE: bool>(at: *const u8) -> Spread<S> {
        // SAFETY: passed on; in wide form the elements take four registers.
        unsafe {
            match FORMAT {
                _ if IS_WIDE => S::load_spread(at),
                INDEX_E4M3 => S::load_e4m3(at),
                _ => S::load_e5m2(at),
            }
        }
    }

    #[inline(always)]
    unsafe fn store<const IS_WIDE: bool, const STREAM: bool>(at: *mut u8, acc: Spread<S>) {
        // SAFETY: passed on; in wide form the elements take four registers.
        unsafe {
            if IS_WIDE {
                S::store_spread::<STREAM>(at, acc);
            } else {
                S::store_f8::<FORMAT, STREAM>(at, acc);
            }
        }
    }

    #[inline(always)]
    unsafe fn scale(acc: Spread<S>, factor: &Scalar) -> Spread<S> {
        // SAFETY: passed on.
        unsafe { each!(S::mul_f, acc, all splat_f::<S>(scalar(factor))) }
    }

    #[inline(always)]
    unsafe fn divide(acc: Spread<S>, ranks: u32) -> Spread<S> {
        // SAFETY: passed on.
        unsafe { each!(S::div_f, acc, all splat_f::<S>(ranks_f32(ranks))) }
    }

    #[inline(always)]
    unsafe fn canonical(acc: Spread<S>) -> Spread<S> {
        // SAFETY: passed on.
        unsafe { each!(canonical_f::<S>, acc) }
    }

    #[inline(always)]
    unsafe fn sum(a: Spread<S>, b: Spread<S>) -> Spread<S> {
        // SAFETY: passed on.
        unsafe { each!(S::add_f, a, b) }
    }

    #[inline(always)]
    unsafe fn prod(a: Spread<S>, b: Spread<S>) -> Spread<S> {
        // SAFETY: passed on.
        unsafe { each!(S::mul_f, a, b) }
    }
}

impl<S: Bytes, const FORMAT: usize> Ordered for F8<S, FORMAT> {
    #[inline(always)]
    unsafe fn min(a: Spread<S>, b: Spread<S>) -> Spread<S> {
        // SAFETY: passed on.
        unsafe { each!(minimum_f::<S>, a, b) }
    }

    #[inline(always)]
    unsafe fn max(a: Spread<S>, b: Spread<S>) -> Spread<S> {
        // SAFETY: passed on.
        unsafe { each!(maximum_f::<S>, a, b) }
    }
}
