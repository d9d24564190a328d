//! Reductions and conversions on raw memory, chosen once for a type, an operation and a CPU.
//!
//! A *fold* combines n sources element by element in the order of the balanced binary tree over the
//! sources, splitting at the largest power of two below their number: `(0+1)+(2+3)`, and for five
//! `((0+1)+(2+3))+4`. A *convert* copies one source, changing its form. Neither allocates, fails or
//! looks at anything but its arguments.
//!
//! An element has two forms. `Native` is the caller's type; `Wide` is the accumulator, which differs
//! for the half and 8-bit floats only (`f32`). Folding always happens in the wide form and rounds
//! once, when the target is native.
//!
//! Not here: which chunk, which peer, which tile (the engine), and threads.

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
    /// Multiply by the factor (first step of `pre_mul_sum`); the product is rounded to the wide form.
    Prepare(Scalar),
    /// The result is final: divide by the world size for `avg`, turn any NaN into the canonical one.
    Finish {
        /// The world size, at least 1.
        ranks: u32,
    },
}

/// Folds `sources` and stores the result to every target.
#[derive(Debug)]
pub struct Fold<'a> {
    /// At least one; a target may be the same memory as a source of the same form, else they do not overlap.
    pub sources: &'a [Source],
    /// At least one; none overlaps another.
    pub targets: &'a [*mut u8],
    /// The form of all targets.
    pub target_form: Form,
    /// Elements.
    pub count: usize,
    /// `Plain` or `Finish`.
    pub stage: Stage,
    /// Store past the caches: the targets are larger than the cache and not read soon.
    pub streaming: bool,
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
