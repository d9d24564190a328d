//! Reductions and conversions on raw memory, chosen once for a type, an operation and a CPU.
//!
//! A *fold* combines n sources element by element. A *convert* copies one source, changing its
//! form. Neither allocates, fails or looks at anything but its arguments. Thread rule: none;
//! kernels are plain functions.
//!
//! An element has two forms. `Native` is the caller's type; `Wide` is the accumulator, which
//! differs for the half and 8-bit floats only (`f32`).
//!
//! # Rules
//!
//! Every kernel gives the bits these rules give, on every instruction set, for every count,
//! alignment, mix of forms, number of targets and kind of store. The floating-point environment
//! must be the default one (round to nearest, subnormals kept).
//!
//! 1. *Order.* The balanced binary tree over the sources that splits at the largest power of two
//!    strictly below their number: `(0+1)+(2+3)`, and for five `((0+1)+(2+3))+4`. The first operand
//!    is the lower-numbered subtree. Nothing is reassociated or fused.
//! 2. *Form.* Sources are widened, folded in wide form, and rounded once if the target is native.
//!    Sources of one fold may have different forms.
//! 3. *Floats.* `sum` and `prod` are IEEE 754 operations, round to nearest even. `min` and `max`
//!    are `minimum` and `maximum` of IEEE 754-2019: a NaN wins, -0 is below +0.
//! 4. *NaN.* With [`Stage::Finish`], and whenever a value is rounded from wide to native, every NaN
//!    becomes the canonical one: f16 0x7e00, bf16 0x7fc0, f32 0x7fc00000, f64 0x7ff8000000000000,
//!    f8 0x7f, complex by component. Elsewhere a NaN stays a NaN with any payload.
//! 5. *Narrowing* rounds to nearest even and keeps subnormals. Too large a number becomes infinity
//!    in f16 and bf16, and the largest finite of its sign in f8e4m3 (448) and f8e5m2 (57344), as do
//!    infinities. Widening is exact.
//! 6. *Integers.* `sum` and `prod` wrap. `land` and `lor` see 1 where an element is not zero, so
//!    their results are 0 or 1, with one source too.
//! 7. *Avg* is `sum`, and [`Stage::Finish`] divides the wide sum by the world size: floats by a
//!    true
//!    division rounded to the wide form, complex by component, integers truncate towards zero.
//! 8. *`pre_mul_sum`* is `sum`; [`Stage::Prepare`] multiplies the widened element by the factor and
//!    rounds to the wide form.
//! 9. *Complex* products are `(ar*br - ai*bi, ar*bi + ai*br)`, each operation rounded.
//! 10. *Convert* between equal forms with [`Stage::Plain`] is a copy, bit for bit.
//! 11. A count of 0 touches nothing.
//!
//! Kernels for CUDA devices follow the same rules; [`cuda`] describes their launches.
//!
//! Not here: which chunk, which peer, which tile (the engine), and threads.

#[cfg(target_arch = "aarch64")]
mod arm;
mod copy;
pub mod cuda;
mod dispatch;
mod drive;
mod element;
mod pass;
mod portable;
mod rounding;
mod scalar;
#[cfg(test)]
mod tests;
#[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
mod vector;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use copy::copy;
pub use dispatch::{Isa, select, select_for};

/// How an element stands in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The caller's own type.
    Native,
    /// Its accumulator, [`crate::Dtype::accumulator`].
    Wide,
}

/// One operand of a fold or a convert.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// First element; aligned to one byte only.
    pub at: *const u8,
    /// The form of its elements.
    pub form: Form,
}

/// One element in wide form (a factor of `pre_mul_sum`), in the first bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scalar(pub [u8; 16]);

/// What is done to the accumulator besides folding, before it is stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Stage {
    /// Nothing.
    Plain,
    /// Multiply by the factor (first step of `pre_mul_sum`); the product is rounded to the wide
    /// form.
    Prepare(Scalar),
    /// The result is final: divide by the world size for `avg`, turn any NaN into the canonical
    /// one.
    Finish {
        /// The world size, at least 1.
        ranks: u32,
    },
}

/// Folds `sources` and stores the result to every target.
#[derive(Debug)]
pub struct Fold<'a> {
    /// At least one; a target may be the same memory as a source of the same form, else they do not
    /// overlap.
    pub sources: &'a [Source],
    /// At least one; none overlaps another.
    pub targets: &'a [*mut u8],
    /// The form of all targets.
    pub target_form: Form,
    /// Elements.
    pub count: usize,
    /// `Plain` or `Finish`.
    pub stage: Stage,
    /// How many of the targets, from the first, are stored past the caches: those that are larger
    /// than the cache and not read soon.
    pub streaming: usize,
}

/// Copies `source` to `target`, changing form and applying the stage.
#[derive(Debug)]
pub struct Convert {
    /// Where from.
    pub source: Source,
    /// Where to: the same memory as the source (when forms agree) or apart from it.
    pub target: *mut u8,
    /// The form of the target.
    pub target_form: Form,
    /// Elements.
    pub count: usize,
    /// Any stage.
    pub stage: Stage,
}

/// The kernels of one type and operation on one CPU.
#[derive(Clone, Copy, Debug)]
pub struct Kernels {
    /// Runs a [`Fold`].
    ///
    /// # Safety
    /// Every source must be readable and every target writable for `count` elements of its form.
    pub fold: unsafe fn(&Fold<'_>),
    /// Runs a [`Convert`].
    ///
    /// # Safety
    /// As for `fold`.
    pub convert: unsafe fn(&Convert),
}
