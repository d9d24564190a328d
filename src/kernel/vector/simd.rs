//! What one instruction set does with its registers, so that elements are written once.
//!
//! Names are the operation and the width in bits of a lane: `add16`, `min_i8`. A *half* is as many
//! 16-bit values as a register has 32-bit lanes.

macro_rules! declare {
    ($($(#[$doc:meta])* $name:ident($($arg:ident: $type:ty),*) $(-> $ret:ty)?;)+) => { $(
        $(#[$doc])*
        unsafe fn $name($($arg: $type),*) $(-> $ret)?;
    )+ };
}

/// The registers of one instruction set.
///
/// # Safety of all methods
/// The CPU must have the instructions; pointers must be valid for what is read or written, on any
/// alignment except for `STREAM`, which needs the size of the store (up to a line).
pub(in crate::kernel) trait Simd: 'static {
    /// Integers of any width.
    type I: Copy;
    /// 32-bit floats.
    type F: Copy;
    /// 64-bit floats.
    type D: Copy;
    /// Bytes of a register.
    const BYTES: usize;

    /// Stores a register.
    unsafe fn store<const STREAM: bool>(at: *mut u8, a: Self::I);
    /// Rounds each lane to binary16, nearest even, and stores.
    unsafe fn store_f16<const STREAM: bool>(at: *mut u8, a: Self::F);

    declare! {
        /// Loads a register.
        load(at: *const u8) -> Self::I;
        /// Loads binary16 values.
        load_f16(at: *const u8) -> Self::F;

        /// The same bits.
        to_f(a: Self::I) -> Self::F;
        /// The same bits.
        to_d(a: Self::I) -> Self::D;
        /// The same bits.
        of_f(a: Self::F) -> Self::I;
        /// The same bits.
        of_d(a: Self::D) -> Self::I;
        /// One value in every lane.
        splat32(a: u32) -> Self::I;
        /// One value in every lane.
        splat64(a: u64) -> Self::I;
        /// One value in every lane.
        splat128(a: u128) -> Self::I;

        /// Bitwise and.
        and(a: Self::I, b: Self::I) -> Self::I;
        /// Bitwise or.
        or(a: Self::I, b: Self::I) -> Self::I;
        /// Bitwise exclusive or.
        xor(a: Self::I, b: Self::I) -> Self::I;
        /// Wrapping sum.
        add8(a: Self::I, b: Self::I) -> Self::I;
        /// Wrapping sum.
        add16(a: Self::I, b: Self::I) -> Self::I;
        /// Wrapping sum.
        add32(a: Self::I, b: Self::I) -> Self::I;
        /// Wrapping sum.
        add64(a: Self::I, b: Self::I) -> Self::I;
        /// Wrapping product.
        mul8(a: Self::I, b: Self::I) -> Self::I;
        /// Wrapping product.
        mul16(a: Self::I, b: Self::I) -> Self::I;
        /// Wrapping product.
        mul32(a: Self::I, b: Self::I) -> Self::I;
        /// Wrapping product.
        mul64(a: Self::I, b: Self::I) -> Self::I;
        /// Left by 16 bits.
        upward32(a: Self::I) -> Self::I;
        /// Rounds to the upper halves of the lanes, nearest even: `even`'s in the lower halves,
        /// `odd`'s in the upper. No lane may be a NaN with a payload.
        round_halves(even: Self::F, odd: Self::F) -> Self::I;
        /// The even lanes of two registers side by side.
        evens_f(a: Self::F, b: Self::F) -> Self::F;
        /// The odd lanes of two registers side by side.
        odds_f(a: Self::F, b: Self::F) -> Self::F;
        /// The lower halves of two registers, lane by lane in turn.
        zip_low_f(a: Self::F, b: Self::F) -> Self::F;
        /// The upper halves of two registers, lane by lane in turn.
        zip_high_f(a: Self::F, b: Self::F) -> Self::F;
        /// Signed minimum.
        min_i8(a: Self::I, b: Self::I) -> Self::I;
        /// Signed minimum.
        min_i16(a: Self::I, b: Self::I) -> Self::I;
        /// Signed minimum.
        min_i32(a: Self::I, b: Self::I) -> Self::I;
        /// Signed minimum.
        min_i64(a: Self::I, b: Self::I) -> Self::I;
        /// Signed maximum.
        max_i8(a: Self::I, b: Self::I) -> Self::I;
        /// Signed maximum.
        max_i16(a: Self::I, b: Self::I) -> Self::I;
        /// Signed maximum.
        max_i32(a: Self::I, b: Self::I) -> Self::I;
        /// Signed maximum.
        max_i64(a: Self::I, b: Self::I) -> Self::I;
        /// Unsigned minimum.
        min_u8(a: Self::I, b: Self::I) -> Self::I;
        /// Unsigned minimum.
        min_u16(a: Self::I, b: Self::I) -> Self::I;
        /// Unsigned minimum.
        min_u32(a: Self::I, b: Self::I) -> Self::I;
        /// Unsigned minimum.
        min_u64(a: Self::I, b: Self::I) -> Self::I;
        /// Unsigned maximum.
        max_u8(a: Self::I, b: Self::I) -> Self::I;
        /// Unsigned maximum.
        max_u16(a: Self::I, b: Self::I) -> Self::I;
        /// Unsigned maximum.
        max_u32(a: Self::I, b: Self::I) -> Self::I;
        /// Unsigned maximum.
        max_u64(a: Self::I, b: Self::I) -> Self::I;

        /// Sum.
        add_f(a: Self::F, b: Self::F) -> Self::F;
        /// Product.
        mul_f(a: Self::F, b: Self::F) -> Self::F;
        /// Quotient.
        div_f(a: Self::F, b: Self::F) -> Self::F;
        /// The smaller; where either is NaN or both are zeros, `b`, or what `minimum` gives.
        min_f(a: Self::F, b: Self::F) -> Self::F;
        /// `other` where `a` is NaN, else `a`.
        replace_nan_f(a: Self::F, other: Self::F) -> Self::F;
        /// Product of pairs (real, imaginary), each operation rounded.
        complex_f(a: Self::F, b: Self::F) -> Self::F;
        /// Sum.
        add_d(a: Self::D, b: Self::D) -> Self::D;
        /// Product.
        mul_d(a: Self::D, b: Self::D) -> Self::D;
        /// Quotient.
        div_d(a: Self::D, b: Self::D) -> Self::D;
        /// The smaller; where either is NaN or both are zeros, `b`, or what `minimum` gives.
        min_d(a: Self::D, b: Self::D) -> Self::D;
        /// `other` where `a` is NaN, else `a`.
        replace_nan_d(a: Self::D, other: Self::D) -> Self::D;
        /// Product of pairs (real, imaginary), each operation rounded.
        complex_d(a: Self::D, b: Self::D) -> Self::D;
    }
}

/// Methods that are one expression each.
macro_rules! direct {
    ($($name:ident($($arg:ident: $type:ty),*) -> $ret:ty = $call:expr;)+) => { $(
        #[inline(always)]
        unsafe fn $name($($arg: $type),*) -> $ret {
            // SAFETY: the caller vouches for the CPU and for pointers.
            unsafe { $call }
        }
    )+ };
}

pub(in crate::kernel) use direct;
