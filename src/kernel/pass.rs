//! The one loop behind every kernel: up to eight sources, one read of each, one store per target.
//!
//! A chunk is [`UNROLL`] registers. All sources of a chunk are read before any target of it is
//! written, so a target may be the memory of a source. Choices that hold for a whole pass (forms,
//! stage, streaming, number of sources) are branches per chunk: they are always predicted, and
//! compiling a loop for each combination would make the crate hundreds of times larger. Only the
//! commonest pass, two native sources to one native target, has a loop of its own.
//!
//! Not here: more than eight sources, and aligning for streaming stores (`drive`).

use std::mem::MaybeUninit;

use super::element::{Element, Op};
use super::{Form, Scalar, Source};

/// The most sources one pass combines in registers.
pub(super) const FAN: usize = 8;

/// Registers a chunk keeps in flight.
const UNROLL: usize = 4;

/// Bytes of the largest accumulator of any set, in wide form.
const ACCUMULATOR_BYTES: usize = 256;

/// What happens to the accumulator between folding and storing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Last {
    /// Multiply by this.
    pub(super) factor: Option<Scalar>,
    /// Divide by this, unless 0.
    pub(super) ranks: u32,
    /// Make every NaN canonical.
    pub(super) canonical: bool,
}

impl Last {
    /// Store as it is.
    pub(super) const PLAIN: Self = Self { factor: None, ranks: 0, canonical: false };

    fn is_plain(&self) -> bool {
        self.factor.is_none() && self.ranks == 0 && !self.canonical
    }
}

/// One pass over memory.
#[derive(Debug)]
pub(super) struct Pass<'a> {
    /// 1 to [`FAN`] of them.
    pub(super) sources: &'a [Source],
    /// Elements to skip in every source.
    pub(super) source_skip: usize,
    /// At least one.
    pub(super) targets: &'a [*mut u8],
    /// Elements to skip in every target.
    pub(super) target_skip: usize,
    /// The form of all targets.
    pub(super) target_form: Form,
    /// Elements.
    pub(super) count: usize,
    /// Before storing.
    pub(super) last: Last,
    /// How many of the targets, from the first, are stored past the caches; the first element of
    /// each of those starts a cache line.
    pub(super) streaming: usize,
}

/// Runs `pass`; to be inlined into a function that enables the set's instructions.
///
/// # Safety
/// The CPU must have the set's instructions; sources and targets must be valid for
/// `skip + count` elements of their form.
#[inline(always)]
pub(super) unsafe fn body<E: Element, O: Op<E>>(pass: &Pass<'_>) {
    // SAFETY: passed on.
    unsafe {
        // Accumulators of several registers fill the register file sooner.
        match E::REGISTERS {
            1 => chunks::<E, O, UNROLL>(pass),
            2 => chunks::<E, O, { UNROLL / 2 }>(pass),
            _ => chunks::<E, O, 1>(pass),
        }
    }
}

/// Runs `pass` by chunks of `U` accumulators.
///
/// # Safety
/// As for [`body`].
#[inline(always)]
unsafe fn chunks<E: Element, O: Op<E>, const U: usize>(pass: &Pass<'_>) {
    const { assert!(E::LANES * E::WIDE <= ACCUMULATOR_BYTES) };
    let chunk = U * E::LANES;
    // SAFETY: every chunk lies inside `count`, the partial one is bounded by what is left of it.
    unsafe {
        let mut index = pairs::<E, O, U>(pass);
        while pass.count - index >= chunk {
            let acc = tree::<E, O, U>(pass.sources, pass.source_skip + index);
            emit::<E, U>(pass, index, acc);
            index += chunk;
        }
        while pass.count - index >= E::LANES {
            let acc = tree::<E, O, 1>(pass.sources, pass.source_skip + index);
            emit::<E, 1>(pass, index, acc);
            index += E::LANES;
        }
        if index < pass.count {
            partial::<E, O>(pass, index);
        }
    }
}

/// Runs the whole chunks of a pass from two native sources to a native target and gives the
/// elements done; of any other pass none.
///
/// # Safety
/// As for [`body`].
#[inline(always)]
unsafe fn pairs<E: Element, O: Op<E>, const U: usize>(pass: &Pass<'_>) -> usize {
    let ([a, b], [target]) = (pass.sources, pass.targets) else {
        return 0;
    };
    let forms = [a.form, b.form, pass.target_form];
    if E::NATIVE != E::WIDE && forms != [Form::Native; 3] || !pass.last.is_plain() {
        return 0;
    }
    // SAFETY: passed on; the pointers skip what the pass skips.
    unsafe {
        let skip = pass.source_skip * E::NATIVE;
        let (a, b) = (a.at.add(skip), b.at.add(skip));
        let target = target.add(pass.target_skip * E::NATIVE);
        if pass.streaming > 0 {
            pair::<E, O, true, U>(a, b, target, pass.count)
        } else {
            pair::<E, O, false, U>(a, b, target, pass.count)
        }
    }
}

/// The loop of [`pairs`].
///
/// # Safety
/// As for [`body`].
#[inline(always)]
unsafe fn pair<E: Element, O: Op<E>, const STREAM: bool, const U: usize>(
    a: *const u8,
    b: *const u8,
    target: *mut u8,
    count: usize,
) -> usize {
    let chunk = U * E::LANES;
    let done = count / chunk * chunk;
    let mut at = 0;
    // SAFETY: every chunk lies inside `count`.
    unsafe {
        while at < done * E::NATIVE {
            let low = registers::<E, O, false, U>(a.add(at));
            let high = registers::<E, O, false, U>(b.add(at));
            let acc = join::<E, O, U>(low, high);
            scatter::<E, false, STREAM, U>(target.add(at), &acc);
            at += chunk * E::NATIVE;
        }
    }
    done
}

/// Fewer elements than a register, by way of the stack: no load or store may leave the buffers.
///
/// # Safety
/// As for [`body`].
#[inline(always)]
unsafe fn partial<E: Element, O: Op<E>>(pass: &Pass<'_>, index: usize) {
    #[repr(align(64))]
    struct Padded(#[expect(dead_code, reason = "used by address")] [u8; ACCUMULATOR_BYTES]);
    let left = pass.count - index;
    // What a register holds is set before it is loaded, and no more: zeros for all of it would take
    // longer than all the rest of a small call.
    let mut inputs = [const { MaybeUninit::<Padded>::uninit() }; FAN];
    let mut output = MaybeUninit::<Padded>::uninit();
    let mut sources = [pass.sources[0]; FAN];
    let count = pass.sources.len().min(FAN);
    // SAFETY: `left` is below LANES, so `left` elements of either form fit ACCUMULATOR_BYTES, and
    // they are the last of each source and target. LANES elements of each input are set before one
    // register of it is loaded, and the register stored sets LANES elements of the output.
    unsafe {
        for slot in 0..count {
            let source = pass.sources[slot];
            let bytes = bytes_of::<E>(source.form);
            let from = source.at.add((pass.source_skip + index) * bytes);
            let input = inputs[slot].as_mut_ptr().cast::<u8>();
            input.write_bytes(0, E::LANES * bytes);
            from.copy_to_nonoverlapping(input, left * bytes);
            sources[slot] = Source { at: input, form: source.form };
        }
        let acc = tree::<E, O, 1>(&sources[..count], 0);
        let output = output.as_mut_ptr().cast::<u8>();
        let inner = Pass { targets: &[output], target_skip: 0, streaming: 0, ..*pass };
        emit::<E, 1>(&inner, 0, acc);
        let bytes = bytes_of::<E>(pass.target_form);
        for &target in pass.targets {
            let to = target.add((pass.target_skip + index) * bytes);
            output.copy_to_nonoverlapping(to, left * bytes);
        }
    }
}

/// Bytes of one element in `form`.
#[inline(always)]
fn bytes_of<E: Element>(form: Form) -> usize {
    match form {
        Form::Native => E::NATIVE,
        Form::Wide => E::WIDE,
    }
}

/// Up to eight sources in tree order.
///
/// # Safety
/// As for [`body`].
#[inline(always)]
unsafe fn tree<E: Element, O: Op<E>, const U: usize>(
    sources: &[Source],
    index: usize,
) -> [E::Acc; U] {
    // SAFETY: passed on.
    unsafe {
        if let [a, b, c, d, rest @ ..] = sources {
            let low = join::<E, O, U>(gather::<E, O, U>(a, index), gather::<E, O, U>(b, index));
            let high = join::<E, O, U>(gather::<E, O, U>(c, index), gather::<E, O, U>(d, index));
            let four = join::<E, O, U>(low, high);
            if rest.is_empty() {
                return four;
            }
            return join::<E, O, U>(four, small::<E, O, U>(rest, index));
        }
        small::<E, O, U>(sources, index)
    }
}

/// One to four sources in tree order.
///
/// # Safety
/// As for [`body`].
#[inline(always)]
unsafe fn small<E: Element, O: Op<E>, const U: usize>(
    sources: &[Source],
    index: usize,
) -> [E::Acc; U] {
    // SAFETY: passed on.
    unsafe {
        let first = gather::<E, O, U>(&sources[0], index);
        let [_, second, rest @ ..] = sources else {
            return first;
        };
        let two = join::<E, O, U>(first, gather::<E, O, U>(second, index));
        match rest {
            [] => two,
            [third] => join::<E, O, U>(two, gather::<E, O, U>(third, index)),
            [third, fourth, ..] => {
                let third = gather::<E, O, U>(third, index);
                let fourth = gather::<E, O, U>(fourth, index);
                join::<E, O, U>(two, join::<E, O, U>(third, fourth))
            }
        }
    }
}

/// Loads `U` registers of one source.
///
/// # Safety
/// As for [`body`].
#[inline(always)]
unsafe fn gather<E: Element, O: Op<E>, const U: usize>(
    source: &Source,
    index: usize,
) -> [E::Acc; U] {
    // SAFETY: the caller keeps `index` and the U registers after it inside the source.
    unsafe {
        if E::NATIVE != E::WIDE && source.form == Form::Wide {
            return registers::<E, O, true, U>(source.at.add(index * E::WIDE));
        }
        registers::<E, O, false, U>(source.at.add(index * E::NATIVE))
    }
}

/// Loads `U` registers of one form.
///
/// # Safety
/// As for [`body`].
#[inline(always)]
unsafe fn registers<E: Element, O: Op<E>, const IS_WIDE: bool, const U: usize>(
    at: *const u8,
) -> [E::Acc; U] {
    let stride = E::LANES * if IS_WIDE { E::WIDE } else { E::NATIVE };
    // SAFETY: the caller vouches for U registers' worth of elements.
    unsafe {
        let mut acc = [O::enter(E::load::<IS_WIDE>(at)); U];
        let mut unit = 1;
        while unit < U {
            acc[unit] = O::enter(E::load::<IS_WIDE>(at.add(unit * stride)));
            unit += 1;
        }
        acc
    }
}

/// Combines two subtrees.
///
/// # Safety
/// As for [`body`].
#[inline(always)]
unsafe fn join<E: Element, O: Op<E>, const U: usize>(
    mut low: [E::Acc; U],
    high: [E::Acc; U],
) -> [E::Acc; U] {
    let mut unit = 0;
    while unit < U {
        // SAFETY: the caller vouches for the CPU.
        low[unit] = unsafe { O::combine(low[unit], high[unit]) };
        unit += 1;
    }
    low
}

/// Finishes `U` registers and stores them to every target.
///
/// # Safety
/// As for [`body`].
#[inline(always)]
unsafe fn emit<E: Element, const U: usize>(pass: &Pass<'_>, index: usize, mut acc: [E::Acc; U]) {
    let last = &pass.last;
    let at = pass.target_skip + index;
    // SAFETY: the caller keeps `index` and the U registers after it inside every target, and
    // aligned where the pass streams.
    unsafe {
        let mut unit = 0;
        while unit < U {
            if let Some(factor) = &last.factor {
                acc[unit] = E::scale(acc[unit], factor);
            }
            if last.ranks != 0 {
                acc[unit] = E::divide(acc[unit], last.ranks);
            }
            if last.canonical {
                acc[unit] = E::canonical(acc[unit]);
            }
            unit += 1;
        }
        for (slot, &target) in pass.targets.iter().enumerate() {
            let streaming = slot < pass.streaming;
            if E::NATIVE != E::WIDE && pass.target_form == Form::Wide {
                let to = target.add(at * E::WIDE);
                if streaming {
                    scatter::<E, true, true, U>(to, &acc);
                } else {
                    scatter::<E, true, false, U>(to, &acc);
                }
            } else {
                let to = target.add(at * E::NATIVE);
                if streaming {
                    scatter::<E, false, true, U>(to, &acc);
                } else {
                    scatter::<E, false, false, U>(to, &acc);
                }
            }
        }
    }
}

/// Stores `U` registers to one target.
///
/// # Safety
/// As for [`body`].
#[inline(always)]
unsafe fn scatter<E: Element, const IS_WIDE: bool, const STREAM: bool, const U: usize>(
    at: *mut u8,
    acc: &[E::Acc; U],
) {
    let stride = E::LANES * if IS_WIDE { E::WIDE } else { E::NATIVE };
    let mut unit = 0;
    while unit < U {
        // SAFETY: the caller vouches for U registers' worth of elements.
        unsafe { E::store::<IS_WIDE, STREAM>(at.add(unit * stride), acc[unit]) };
        unit += 1;
    }
}
