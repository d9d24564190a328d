//! What the generic fold needs from an element type on an instruction set, and the operations on
//! it.
//!
//! An [`Element`] is one dtype in the registers of one instruction set; a [`Set`] names the
//! elements of all dtypes. The loops in `pass` are written once over these traits and compiled per
//! set. Everything here is `#[inline(always)]`, because a function only gets the wide instructions
//! when it becomes part of a caller that enables them.

use super::Scalar;
use super::pass::Pass;

/// One dtype in registers: [`Element::LANES`] accumulators, loaded, combined and stored together.
///
/// # Safety of all methods
/// The CPU must have the instructions of the set; loads and stores must be valid for `LANES`
/// elements of the form, on any alignment except for `STREAM`, which needs 64 bytes at a line's
/// start.
pub(super) trait Element: 'static {
    /// The accumulators of `LANES` elements.
    type Acc: Copy;
    /// Elements an accumulator holds.
    const LANES: usize;
    /// Registers an accumulator takes.
    const REGISTERS: usize = 1;
    /// Bytes of one native element.
    const NATIVE: usize;
    /// Bytes of one wide element; equal to `NATIVE` where the forms do not differ.
    const WIDE: usize;

    /// Loads and widens.
    unsafe fn load<const IS_WIDE: bool>(at: *const u8) -> Self::Acc;
    /// Rounds to the form and stores, past the caches with `STREAM`.
    unsafe fn store<const IS_WIDE: bool, const STREAM: bool>(at: *mut u8, acc: Self::Acc);
    /// The product with one wide scalar.
    unsafe fn scale(acc: Self::Acc, factor: &Scalar) -> Self::Acc;
    /// The quotient by a world size.
    unsafe fn divide(acc: Self::Acc, ranks: u32) -> Self::Acc;
    /// The same with every NaN replaced by the canonical one.
    unsafe fn canonical(acc: Self::Acc) -> Self::Acc;
    /// Lane by lane sum.
    unsafe fn sum(a: Self::Acc, b: Self::Acc) -> Self::Acc;
    /// Lane by lane product.
    unsafe fn prod(a: Self::Acc, b: Self::Acc) -> Self::Acc;
}

/// An element with an order.
pub(super) trait Ordered: Element {
    /// IEEE 754-2019 `minimum`.
    unsafe fn min(a: Self::Acc, b: Self::Acc) -> Self::Acc;
    /// IEEE 754-2019 `maximum`.
    unsafe fn max(a: Self::Acc, b: Self::Acc) -> Self::Acc;
}

/// An element with bits that mean something: an integer.
pub(super) trait Bits: Ordered {
    /// Bitwise and.
    unsafe fn and(a: Self::Acc, b: Self::Acc) -> Self::Acc;
    /// Bitwise or.
    unsafe fn or(a: Self::Acc, b: Self::Acc) -> Self::Acc;
    /// Bitwise exclusive or.
    unsafe fn xor(a: Self::Acc, b: Self::Acc) -> Self::Acc;
    /// 1 where not zero.
    unsafe fn truth(a: Self::Acc) -> Self::Acc;
}

/// The elements of one instruction set and the way into code compiled for it.
pub(super) trait Set: 'static {
    /// `i8`.
    type I8: Bits;
    /// `u8`.
    type U8: Bits;
    /// `i16`.
    type I16: Bits;
    /// `u16`.
    type U16: Bits;
    /// `i32`.
    type I32: Bits;
    /// `u32`.
    type U32: Bits;
    /// `i64`.
    type I64: Bits;
    /// `u64`.
    type U64: Bits;
    /// `f16`.
    type F16: Ordered;
    /// `bf16`.
    type Bf16: Ordered;
    /// `f8e4m3`.
    type F8E4M3: Ordered;
    /// `f8e5m2`.
    type F8E5M2: Ordered;
    /// `f32`.
    type F32: Ordered;
    /// `f64`.
    type F64: Ordered;
    /// `complex64`.
    type Complex64: Element;
    /// `complex128`.
    type Complex128: Element;

    /// Runs one pass with the set's instructions enabled.
    ///
    /// # Safety
    /// The CPU must have them, and the pass's memory must be valid.
    unsafe fn run<E: Element, O: Op<E>>(pass: &Pass<'_>);
}

/// A reduction on an element.
pub(super) trait Op<E: Element>: 'static {
    /// Done to each source's elements before combining.
    ///
    /// # Safety
    /// As for [`Element`].
    #[inline(always)]
    unsafe fn enter(acc: E::Acc) -> E::Acc {
        acc
    }

    /// `a` of the lower-numbered subtree with `b` of the higher.
    ///
    /// # Safety
    /// As for [`Element`].
    unsafe fn combine(a: E::Acc, b: E::Acc) -> E::Acc;
}

macro_rules! ops {
    ($($(#[$doc:meta])* $name:ident: $bound:ident, $method:ident $(, $enter:ident)?;)+) => { $(
        $(#[$doc])*
        #[derive(Debug)]
        pub(super) enum $name {}

        impl<E: $bound> Op<E> for $name {
            $(
                #[inline(always)]
                unsafe fn enter(acc: E::Acc) -> E::Acc {
                    // SAFETY: the caller vouches for the CPU.
                    unsafe { E::$enter(acc) }
                }
            )?

            #[inline(always)]
            unsafe fn combine(a: E::Acc, b: E::Acc) -> E::Acc {
                // SAFETY: the caller vouches for the CPU.
                unsafe { E::$method(a, b) }
            }
        }
    )+ };
}

ops! {
    /// Sum, and the folding of `avg` and `pre_mul_sum`.
    Sum: Element, sum;
    /// Product.
    Prod: Element, prod;
    /// Minimum.
    Min: Ordered, min;
    /// Maximum.
    Max: Ordered, max;
    /// Bitwise and.
    Band: Bits, and;
    /// Bitwise or.
    Bor: Bits, or;
    /// Bitwise exclusive or.
    Bxor: Bits, xor;
    /// Logical and.
    Land: Bits, and, truth;
    /// Logical or.
    Lor: Bits, or, truth;
}
