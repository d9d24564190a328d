//! From a [`Fold`] or [`Convert`] to passes: groups of eight, blocks in L1, aligned streaming.
//!
//! Eight sources starting at a multiple of eight are a subtree of the fold order, and so is the
//! shorter group at the end. With more than eight sources each block of elements is therefore
//! folded group by group into temporaries, which are then sources of the same kind of pass.

use std::mem::MaybeUninit;

use super::element::{Element, Op, Set};
use super::pass::{FAN, Last, Pass};
use super::{Convert, Fold, Form, Kernels, Source, Stage};

/// Bytes of one temporary: eight of them fit half of a 32 KiB L1.
const BLOCK_BYTES: usize = 2048;

/// Below this many bytes a streaming store saves nothing.
const STREAM_BYTES_MIN: usize = 4096;

/// Bytes of a cache line.
const LINE_BYTES: usize = 64;

/// What the driver must know of a kernel.
struct Shape {
    native_bytes: usize,
    wide_bytes: usize,
    average: bool,
    pass: unsafe fn(&Pass<'_>),
}

impl Shape {
    const fn of<S: Set, E: Element, O: Op<E>, const AVERAGE: bool>() -> Self {
        Self {
            native_bytes: E::NATIVE,
            wide_bytes: E::WIDE,
            average: AVERAGE,
            pass: S::run::<E, O>,
        }
    }

    fn bytes(&self, form: Form) -> usize {
        match form {
            Form::Native => self.native_bytes,
            Form::Wide => self.wide_bytes,
        }
    }

    fn last(&self, stage: &Stage) -> Last {
        match *stage {
            Stage::Plain => Last::PLAIN,
            Stage::Prepare(factor) => Last { factor: Some(factor), ..Last::PLAIN },
            Stage::Finish { ranks } => Last {
                factor: None,
                // A division by 1 changes nothing but costs the same as any other.
                ranks: if self.average && ranks > 1 { ranks } else { 0 },
                canonical: true,
            },
        }
    }
}

/// The kernels of one element and operation.
pub(super) fn kernels<S: Set, E: Element, O: Op<E>, const AVERAGE: bool>() -> Kernels {
    Kernels { fold: fold::<S, E, O, AVERAGE>, convert: convert::<S, E, O, AVERAGE> }
}

/// # Safety
/// As for [`Kernels::fold`], and the CPU must have the instructions of `S`.
unsafe fn fold<S: Set, E: Element, O: Op<E>, const AVERAGE: bool>(fold: &Fold<'_>) {
    // SAFETY: passed on.
    unsafe { fold_shape(fold, &Shape::of::<S, E, O, AVERAGE>()) };
}

/// # Safety
/// As for [`Kernels::convert`], and the CPU must have the instructions of `S`.
unsafe fn convert<S: Set, E: Element, O: Op<E>, const AVERAGE: bool>(convert: &Convert) {
    // SAFETY: passed on.
    unsafe { convert_shape(convert, &Shape::of::<S, E, O, AVERAGE>()) };
}

/// # Safety
/// As for [`convert`].
unsafe fn convert_shape(convert: &Convert, shape: &Shape) {
    if convert.count == 0 {
        return;
    }
    let native_bytes = shape.bytes(convert.source.form);
    let same = native_bytes == shape.bytes(convert.target_form);
    // SAFETY: the caller vouches for both sides; equal pointers are skipped, so the rest is apart.
    unsafe {
        if same && convert.stage == Stage::Plain {
            if !std::ptr::eq(convert.source.at, convert.target) {
                let bytes = convert.count * native_bytes;
                convert.source.at.copy_to_nonoverlapping(convert.target, bytes);
            }
            return;
        }
        (shape.pass)(&Pass {
            sources: &[convert.source],
            source_skip: 0,
            targets: &[convert.target],
            target_skip: 0,
            target_form: convert.target_form,
            count: convert.count,
            last: shape.last(&convert.stage),
            streaming: 0,
        });
    }
}

/// # Safety
/// As for [`fold`].
unsafe fn fold_shape(fold: &Fold<'_>, shape: &Shape) {
    debug_assert!(!fold.sources.is_empty() && !fold.targets.is_empty());
    debug_assert!(!matches!(fold.stage, Stage::Prepare(_)), "a fold does not prepare");
    if fold.count == 0 {
        return;
    }
    let mut job = Job { fold, shape, last: shape.last(&fold.stage), streaming: 0 };
    let (head, streaming) = stream_head(fold, shape.bytes(fold.target_form));
    // SAFETY: the ranges split `count`.
    unsafe {
        if streaming == 0 {
            job.run(0, fold.count);
            return;
        }
        job.run(0, head);
        job.streaming = streaming;
        job.run(head, fold.count);
    }
    fence();
}

/// Elements before the streamed targets start a cache line, and how many targets to stream: those
/// asked for, up to the first that lies otherwise in its line than they do.
fn stream_head(fold: &Fold<'_>, bytes: usize) -> (usize, usize) {
    let past = fold.targets[0].addr() % LINE_BYTES;
    let gap = (LINE_BYTES - past) % LINE_BYTES;
    if fold.count * bytes < STREAM_BYTES_MIN || !gap.is_multiple_of(bytes) {
        return (0, 0);
    }
    let asked = fold.targets.iter().take(fold.streaming);
    (gap / bytes, asked.take_while(|target| target.addr() % LINE_BYTES == past).count())
}

/// Orders streaming stores before whatever tells a reader that they are done.
pub(super) fn fence() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: sfence is part of every x86-64 CPU.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    };
}

/// A fold under way.
struct Job<'a> {
    fold: &'a Fold<'a>,
    shape: &'a Shape,
    last: Last,
    streaming: usize,
}

/// One temporary.
#[repr(align(64))]
struct Block([MaybeUninit<u8>; BLOCK_BYTES]);

impl Job<'_> {
    /// Folds the elements from `start` to `end`.
    ///
    /// # Safety
    /// As for [`fold`]; the range must lie inside the count.
    unsafe fn run(&self, start: usize, end: usize) {
        // SAFETY: passed on; blocks split the range.
        unsafe {
            if self.fold.sources.len() <= FAN {
                self.last_pass(self.fold.sources, start, start, end - start);
                return;
            }
            let block = BLOCK_BYTES / self.shape.wide_bytes;
            let mut at = start;
            while at < end {
                let count = block.min(end - at);
                self.group(self.fold.sources, at, count, None);
                at += count;
            }
        }
    }

    /// Folds any number of sources over one block, into `into` in wide form or to the targets.
    ///
    /// # Safety
    /// As for [`Job::run`]; `count` elements of wide form must fit a block.
    unsafe fn group(&self, sources: &[Source], at: usize, count: usize, into: Option<*mut u8>) {
        // SAFETY: sources are passed on; a temporary holds `count` wide elements and each pass
        // writes all of them before the next one reads them.
        unsafe {
            if sources.len() <= FAN {
                self.pass(sources, at, at, count, into);
                return;
            }
            let mut span = FAN;
            while span * FAN < sources.len() {
                span *= FAN;
            }
            let mut blocks = [const { Block([MaybeUninit::uninit(); BLOCK_BYTES]) }; FAN];
            let mut parts = [sources[0]; FAN];
            let mut used = 0;
            for group in sources.chunks(span) {
                let temporary = blocks[used].0.as_mut_ptr().cast::<u8>();
                self.group(group, at, count, Some(temporary));
                parts[used] = Source { at: temporary, form: Form::Wide };
                used += 1;
            }
            self.pass(&parts[..used], 0, at, count, into);
        }
    }

    /// One pass into a temporary or to the targets.
    ///
    /// # Safety
    /// As for [`Job::group`].
    unsafe fn pass(
        &self,
        sources: &[Source],
        source_skip: usize,
        target_skip: usize,
        count: usize,
        into: Option<*mut u8>,
    ) {
        let Some(temporary) = into else {
            // SAFETY: passed on.
            unsafe { self.last_pass(sources, source_skip, target_skip, count) };
            return;
        };
        // SAFETY: passed on.
        unsafe {
            (self.shape.pass)(&Pass {
                sources,
                source_skip,
                targets: &[temporary],
                target_skip: 0,
                target_form: Form::Wide,
                count,
                last: Last::PLAIN,
                streaming: 0,
            });
        }
    }

    /// One pass to the targets.
    ///
    /// # Safety
    /// As for [`Job::group`].
    unsafe fn last_pass(
        &self,
        sources: &[Source],
        source_skip: usize,
        target_skip: usize,
        count: usize,
    ) {
        // SAFETY: passed on.
        unsafe {
            (self.shape.pass)(&Pass {
                sources,
                source_skip,
                targets: self.fold.targets,
                target_skip,
                target_form: self.fold.target_form,
                count,
                last: self.last,
                streaming: self.streaming,
            });
        }
    }
}
