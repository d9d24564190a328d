//! bfloat16 in registers: two accumulators, one of the even elements and one of the odd.
//!
//! An odd element is the upper half of its 32-bit lane already, an even one is a shift away, so
//! neither loading nor storing has to spread or pack 16-bit values. The wide form is in order and
//! pays for it with shuffles.

use std::marker::PhantomData;

use super::super::Scalar;
use super::super::element::{Element, Ordered};
use super::super::scalar::{ranks_f32, scalar};
use super::float::{canonical_f, load_f32, maximum_f, minimum_f, splat_f, store_f32};
use super::simd::Simd;

/// The upper half of a 32-bit lane.
const UPPER: u32 = 0xffff_0000;

/// `bf16`.
#[derive(Debug)]
pub(in crate::kernel) struct Bf16<S>(PhantomData<S>);

/// Even and odd elements.
type Pair<S> = [<S as Simd>::F; 2];

impl<S: Simd> Element for Bf16<S> {
    type Acc = Pair<S>;
    const LANES: usize = S::BYTES / 2;
    const REGISTERS: usize = 2;
    const NATIVE: usize = 2;
    const WIDE: usize = 4;

    #[inline(always)]
    unsafe fn load<const IS_WIDE: bool>(at: *const u8) -> Pair<S> {
        // SAFETY: passed on; in wide form the elements take two registers.
        unsafe {
            if IS_WIDE {
                let (low, high) = (load_f32::<S>(at), load_f32::<S>(at.add(S::BYTES)));
                return [S::evens_f(low, high), S::odds_f(low, high)];
            }
            let both = S::load(at);
            [S::to_f(S::upward32(both)), S::to_f(S::and(both, S::splat32(UPPER)))]
        }
    }

    #[inline(always)]
    unsafe fn store<const IS_WIDE: bool, const STREAM: bool>(at: *mut u8, acc: Pair<S>) {
        let [even, odd] = acc;
        // SAFETY: passed on; in wide form the elements take two registers.
        unsafe {
            if IS_WIDE {
                store_f32::<S, STREAM>(at, S::zip_low_f(even, odd));
                store_f32::<S, STREAM>(at.add(S::BYTES), S::zip_high_f(even, odd));
                return;
            }
            // In integers, because the instruction for it flushes subnormals to zero.
            let both = S::round_halves(canonical_f::<S>(even), canonical_f::<S>(odd));
            S::store::<STREAM>(at, both);
        }
    }

    #[inline(always)]
    unsafe fn scale(acc: Pair<S>, factor: &Scalar) -> Pair<S> {
        // SAFETY: passed on.
        unsafe {
            let factor = splat_f::<S>(scalar(factor));
            [S::mul_f(acc[0], factor), S::mul_f(acc[1], factor)]
        }
    }

    #[inline(always)]
    unsafe fn divide(acc: Pair<S>, ranks: u32) -> Pair<S> {
        // SAFETY: passed on.
        unsafe {
            let ranks = splat_f::<S>(ranks_f32(ranks));
            [S::div_f(acc[0], ranks), S::div_f(acc[1], ranks)]
        }
    }

    #[inline(always)]
    unsafe fn canonical(acc: Pair<S>) -> Pair<S> {
        // SAFETY: passed on.
        unsafe { [canonical_f::<S>(acc[0]), canonical_f::<S>(acc[1])] }
    }

    #[inline(always)]
    unsafe fn sum(a: Pair<S>, b: Pair<S>) -> Pair<S> {
        // SAFETY: passed on.
        unsafe { [S::add_f(a[0], b[0]), S::add_f(a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn prod(a: Pair<S>, b: Pair<S>) -> Pair<S> {
        // SAFETY: passed on.
        unsafe { [S::mul_f(a[0], b[0]), S::mul_f(a[1], b[1])] }
    }
}

impl<S: Simd> Ordered for Bf16<S> {
    #[inline(always)]
    unsafe fn min(a: Pair<S>, b: Pair<S>) -> Pair<S> {
        // SAFETY: passed on.
        unsafe { [minimum_f::<S>(a[0], b[0]), minimum_f::<S>(a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn max(a: Pair<S>, b: Pair<S>) -> Pair<S> {
        // SAFETY: passed on.
        unsafe { [maximum_f::<S>(a[0], b[0]), maximum_f::<S>(a[1], b[1])] }
    }
}
