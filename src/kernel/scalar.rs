//! The oracle: every rule of the module in the plainest code, one element at a time.
//!
//! Tests compare all other kernels with this one bit for bit, so nothing here is clever. It can be
//! selected like any other set, for a user who suspects a kernel.

use half::{bf16, f16};

use super::{Convert, Fold, Form, Kernels, Scalar, Source, Stage};
use crate::types::{Dtype, ReduceOp};

/// The bits of the canonical NaN of both 8-bit floats.
const F8_NAN: u8 = 0x7f;

/// One element type by the book.
pub(super) trait Item: 'static {
    /// The caller's type.
    type Native: Copy;
    /// The accumulator.
    type Wide: Copy;

    /// Exact.
    fn widen(native: Self::Native) -> Self::Wide;
    /// Rounded to nearest even; a NaN becomes the canonical one.
    fn narrow(wide: Self::Wide) -> Self::Native;
    /// `a` of the lower-numbered subtree with `b` of the higher.
    fn combine(op: ReduceOp, a: Self::Wide, b: Self::Wide) -> Self::Wide;
    /// The quotient by a world size.
    fn divide(wide: Self::Wide, ranks: u32) -> Self::Wide;
    /// NaNs become the canonical one.
    fn canonical(wide: Self::Wide) -> Self::Wide;
    /// What logical operations see: 1 where not zero.
    #[inline(always)]
    fn truth(wide: Self::Wide) -> Self::Wide {
        wide
    }
}

macro_rules! integer {
    ($($int:ident, $big:ident;)+) => { $(
        impl Item for $int {
            type Native = Self;
            type Wide = Self;

            #[inline(always)]
            fn widen(native: Self) -> Self {
                native
            }

            #[inline(always)]
            fn narrow(wide: Self) -> Self {
                wide
            }

            #[inline(always)]
            fn combine(op: ReduceOp, a: Self, b: Self) -> Self {
                match op {
                    ReduceOp::Sum | ReduceOp::Avg | ReduceOp::PreMulSum => a.wrapping_add(b),
                    ReduceOp::Prod => a.wrapping_mul(b),
                    ReduceOp::Min => a.min(b),
                    ReduceOp::Max => a.max(b),
                    ReduceOp::Band => a & b,
                    ReduceOp::Bor => a | b,
                    ReduceOp::Bxor => a ^ b,
                    ReduceOp::Land => Self::from(a != 0 && b != 0),
                    ReduceOp::Lor => Self::from(a != 0 || b != 0),
                }
            }

            #[inline(always)]
            fn divide(wide: Self, ranks: u32) -> Self {
                let quotient = $big::from(wide) / $big::from(ranks);
                #[expect(
                    clippy::allow_attributes,
                    reason = "the cast is lossy for some of the types only"
                )]
                #[allow(clippy::cast_possible_truncation, reason = "no larger than the dividend")]
                #[allow(clippy::unnecessary_cast, reason = "the largest types are $big")]
                {
                    quotient as Self
                }
            }

            #[inline(always)]
            fn canonical(wide: Self) -> Self {
                wide
            }

            #[inline(always)]
            fn truth(wide: Self) -> Self {
                Self::from(wide != 0)
            }
        }
    )+ };
}

integer! {
    i8, i64;
    u8, u64;
    i16, i64;
    u16, u64;
    i32, i64;
    u32, u64;
    i64, i64;
    u64, u64;
}

macro_rules! float {
    ($($float:ident, $combine:ident, $nan:literal, $ranks:expr;)+) => { $(
        #[inline(always)]
        fn $combine(op: ReduceOp, a: $float, b: $float) -> $float {
            match op {
                ReduceOp::Sum | ReduceOp::Avg | ReduceOp::PreMulSum => a + b,
                ReduceOp::Prod => a * b,
                ReduceOp::Min | ReduceOp::Max if a.is_nan() || b.is_nan() => {
                    $float::from_bits($nan)
                }
                ReduceOp::Min if a < b || (a == b && a.is_sign_negative()) => a,
                ReduceOp::Max if a > b || (a == b && a.is_sign_positive()) => a,
                ReduceOp::Min | ReduceOp::Max => b,
                _ => unreachable!("{op} is for integers"),
            }
        }

        impl Item for $float {
            type Native = Self;
            type Wide = Self;

            #[inline(always)]
            fn widen(native: Self) -> Self {
                native
            }

            #[inline(always)]
            fn narrow(wide: Self) -> Self {
                wide
            }

            #[inline(always)]
            fn combine(op: ReduceOp, a: Self, b: Self) -> Self {
                $combine(op, a, b)
            }

            #[inline(always)]
            fn divide(wide: Self, ranks: u32) -> Self {
                let divisor: fn(u32) -> Self = $ranks;
                wide / divisor(ranks)
            }

            #[inline(always)]
            fn canonical(wide: Self) -> Self {
                if wide.is_nan() { Self::from_bits($nan) } else { wide }
            }
        }

        impl Item for [$float; 2] {
            type Native = Self;
            type Wide = Self;

            #[inline(always)]
            fn widen(native: Self) -> Self {
                native
            }

            #[inline(always)]
            fn narrow(wide: Self) -> Self {
                wide
            }

            #[inline(always)]
            fn combine(op: ReduceOp, a: Self, b: Self) -> Self {
                if op == ReduceOp::Prod {
                    return [a[0] * b[0] - a[1] * b[1], a[0] * b[1] + a[1] * b[0]];
                }
                [$combine(op, a[0], b[0]), $combine(op, a[1], b[1])]
            }

            #[inline(always)]
            fn divide(wide: Self, ranks: u32) -> Self {
                wide.map(|part| $float::divide(part, ranks))
            }

            #[inline(always)]
            fn canonical(wide: Self) -> Self {
                wide.map($float::canonical)
            }
        }
    )+ };
}

float! {
    f32, combine_f32, 0x7fc0_0000, ranks_f32;
    f64, combine_f64, 0x7ff8_0000_0000_0000, f64::from;
}

/// A world size as an `f32`, rounded; exact up to 2^24, far above any world.
#[expect(clippy::cast_precision_loss, reason = "the rule is to round")]
#[inline(always)]
pub(super) fn ranks_f32(ranks: u32) -> f32 {
    ranks as f32
}

macro_rules! small_float {
    ($($(#[$doc:meta])* $name:ident, $native:ty, $widen:expr, $narrow:expr;)+) => { $(
        $(#[$doc])*
        #[derive(Debug)]
        pub(super) enum $name {}

        impl Item for $name {
            type Native = $native;
            type Wide = f32;

            #[inline(always)]
            fn widen(native: $native) -> f32 {
                let widen: fn($native) -> f32 = $widen;
                widen(native)
            }

            #[inline(always)]
            fn narrow(wide: f32) -> $native {
                let narrow: fn(f32) -> $native = $narrow;
                narrow(f32::canonical(wide))
            }

            #[inline(always)]
            fn combine(op: ReduceOp, a: f32, b: f32) -> f32 {
                combine_f32(op, a, b)
            }

            #[inline(always)]
            fn divide(wide: f32, ranks: u32) -> f32 {
                f32::divide(wide, ranks)
            }

            #[inline(always)]
            fn canonical(wide: f32) -> f32 {
                f32::canonical(wide)
            }
        }
    )+ };
}

small_float! {
    /// IEEE 754 binary16.
    F16, u16, |bits| f16::from_bits(bits).to_f32(), |wide| f16::from_f32(wide).to_bits();
    /// bfloat16.
    Bf16, u16, |bits| bf16::from_bits(bits).to_f32(), |wide| bf16::from_f32(wide).to_bits();
    /// OCP E4M3.
    F8E4M3, u8, decode_e4m3, |wide| nearest_f8(wide, decode_e4m3, 0x7e);
    /// OCP E5M2.
    F8E5M2, u8, decode_e5m2, |wide| nearest_f8(wide, decode_e5m2, 0x7b);
}

/// E4M3 by its definition: bias 7, no infinities, one NaN per sign.
pub(super) fn decode_e4m3(code: u8) -> f32 {
    let mantissa = f32::from(code & 7);
    let magnitude = match (code >> 3) & 15 {
        15 if code & 7 == 7 => f32::NAN,
        0 => mantissa / 8.0 * 2f32.powi(-6),
        exponent => (1.0 + mantissa / 8.0) * 2f32.powi(i32::from(exponent) - 7),
    };
    if code & 0x80 != 0 { -magnitude } else { magnitude }
}

/// E5M2 by its definition: bias 15, infinities and NaNs.
pub(super) fn decode_e5m2(code: u8) -> f32 {
    let mantissa = f32::from(code & 3);
    let magnitude = match (code >> 2) & 31 {
        31 if code & 3 == 0 => f32::INFINITY,
        31 => f32::NAN,
        0 => mantissa / 4.0 * 2f32.powi(-14),
        exponent => (1.0 + mantissa / 4.0) * 2f32.powi(i32::from(exponent) - 15),
    };
    if code & 0x80 != 0 { -magnitude } else { magnitude }
}

/// The nearest code, the even one of two, saturated at `largest`. Codes from 0 up ascend in value.
fn nearest_f8(value: f32, decode: fn(u8) -> f32, largest: u8) -> u8 {
    if value.is_nan() {
        return F8_NAN;
    }
    let sign = if value.is_sign_negative() { 0x80 } else { 0 };
    let magnitude = value.abs();
    if magnitude >= decode(largest) {
        return sign | largest;
    }
    let (mut below, mut above) = (0, largest);
    while above - below > 1 {
        let middle = u8::midpoint(below, above);
        if decode(middle) <= magnitude {
            below = middle;
        } else {
            above = middle;
        }
    }
    let down = f64::from(magnitude) - f64::from(decode(below));
    let up = f64::from(decode(above)) - f64::from(magnitude);
    let to_above = up < down || (up == down && below % 2 == 1);
    sign | if to_above { above } else { below }
}

/// Reads element `index`, widened; logical operations see 0 or 1.
unsafe fn read<T: Item>(op: ReduceOp, source: &Source, index: usize) -> T::Wide {
    // SAFETY: the caller vouches for `index`; the read needs no alignment.
    let wide = unsafe {
        match source.form {
            Form::Native => T::widen(source.at.cast::<T::Native>().add(index).read_unaligned()),
            Form::Wide => source.at.cast::<T::Wide>().add(index).read_unaligned(),
        }
    };
    match op {
        ReduceOp::Land | ReduceOp::Lor => T::truth(wide),
        _ => wide,
    }
}

/// Applies the stage.
fn finish<T: Item>(op: ReduceOp, stage: &Stage, wide: T::Wide) -> T::Wide {
    match stage {
        Stage::Plain => wide,
        Stage::Prepare(factor) => T::combine(ReduceOp::Prod, wide, scalar::<T::Wide>(factor)),
        Stage::Finish { ranks } if op == ReduceOp::Avg => T::canonical(T::divide(wide, *ranks)),
        Stage::Finish { .. } => T::canonical(wide),
    }
}

/// The factor as a value.
#[inline(always)]
pub(super) fn scalar<W: Copy>(factor: &Scalar) -> W {
    const { assert!(size_of::<W>() <= 16) };
    // SAFETY: W is one of the wide types, all of whose bit patterns are values, and fits.
    unsafe { factor.0.as_ptr().cast::<W>().read_unaligned() }
}

/// Rounds to the form and writes element `index`.
unsafe fn write<T: Item>(target: *mut u8, form: Form, index: usize, wide: T::Wide) {
    // SAFETY: the caller vouches for `index`; the write needs no alignment.
    unsafe {
        match form {
            Form::Native => {
                let at = target.cast::<T::Native>().add(index);
                at.write_unaligned(T::narrow(wide));
            }
            Form::Wide => target.cast::<T::Wide>().add(index).write_unaligned(wide),
        }
    }
}

/// Element `index` of all sources in tree order.
unsafe fn tree<T: Item>(op: ReduceOp, sources: &[Source], index: usize) -> T::Wide {
    // SAFETY: passed on.
    unsafe {
        if let [only] = sources {
            return read::<T>(op, only, index);
        }
        let split = sources.len().next_power_of_two() / 2;
        let (low, high) = sources.split_at(split);
        T::combine(op, tree::<T>(op, low, index), tree::<T>(op, high, index))
    }
}

fn op_of(number: u8) -> ReduceOp {
    ReduceOp::from_number(i64::from(number)).expect("the number comes from an operation")
}

unsafe fn fold<T: Item, const OP: u8>(fold: &Fold<'_>) {
    let op = op_of(OP);
    for index in 0..fold.count {
        // SAFETY: `index` is below the count the caller vouches for.
        unsafe {
            let folded = tree::<T>(op, fold.sources, index);
            let wide = finish::<T>(op, &fold.stage, folded);
            for &target in fold.targets {
                write::<T>(target, fold.target_form, index, wide);
            }
        }
    }
}

unsafe fn convert<T: Item, const OP: u8>(convert: &Convert) {
    let op = op_of(OP);
    let native = size_of::<T::Native>();
    let alike = native == size_of::<T::Wide>() || convert.source.form == convert.target_form;
    if alike && convert.stage == Stage::Plain {
        let bytes = match convert.source.form {
            Form::Native => native,
            Form::Wide => size_of::<T::Wide>(),
        };
        let from = convert.source.at;
        // SAFETY: both sides hold `count` elements of the same size.
        unsafe { from.copy_to(convert.target, convert.count * bytes) };
        return;
    }
    for index in 0..convert.count {
        // SAFETY: `index` is below the count the caller vouches for.
        unsafe {
            let wide = read::<T>(op, &convert.source, index);
            let wide = finish::<T>(op, &convert.stage, wide);
            write::<T>(convert.target, convert.target_form, index, wide);
        }
    }
}

fn with_op<T: Item>(op: ReduceOp) -> Kernels {
    macro_rules! pick {
        ($($name:ident)+) => {
            match op {
                $(ReduceOp::$name => Kernels {
                    fold: fold::<T, { ReduceOp::$name as u8 }>,
                    convert: convert::<T, { ReduceOp::$name as u8 }>,
                },)+
            }
        };
    }
    pick!(Sum Prod Min Max Avg PreMulSum Band Bor Bxor Land Lor)
}

/// The oracle's kernels; `op` must support `dtype`.
pub(super) fn kernels(dtype: Dtype, op: ReduceOp) -> Kernels {
    match dtype {
        Dtype::I8 => with_op::<i8>(op),
        Dtype::U8 => with_op::<u8>(op),
        Dtype::I16 => with_op::<i16>(op),
        Dtype::U16 => with_op::<u16>(op),
        Dtype::I32 => with_op::<i32>(op),
        Dtype::U32 => with_op::<u32>(op),
        Dtype::I64 => with_op::<i64>(op),
        Dtype::U64 => with_op::<u64>(op),
        Dtype::F16 => with_op::<F16>(op),
        Dtype::Bf16 => with_op::<Bf16>(op),
        Dtype::F8E4M3 => with_op::<F8E4M3>(op),
        Dtype::F8E5M2 => with_op::<F8E5M2>(op),
        Dtype::F32 => with_op::<f32>(op),
        Dtype::F64 => with_op::<f64>(op),
        Dtype::Complex64 => with_op::<[f32; 2]>(op),
        Dtype::Complex128 => with_op::<[f64; 2]>(op),
    }
}
