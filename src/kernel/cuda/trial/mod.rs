//! Trials of the kernels: a launch, what memory holds before it, and what it must hold after.
//!
//! ```text
//! base                                                        a multiple of 64
//!  | guard | past | source 0 | guard | ... | past | target 0 | guard |
//! ```
//!
//! All buffers of a trial are in one piece of memory between guards, each any number of bytes past
//! a line. Whoever has the memory, a device or a host twin, copies [`Trial::before`] there, runs
//! the launch, and shows [`Trial::fault`] the whole piece: sources and guards must be what they
//! were, targets what the scalar oracle makes, bit for bit, but for the payloads of NaNs that the
//! rules of [`crate::kernel`] leave open.
//!
//! Pure data, made of random numbers: the same seed gives the same trial. Thread rule: none. Not
//! here: which trials are made, and memory.

mod bytes;
mod fold;
mod random;
mod round;
#[cfg(test)]
mod tests;

use std::fmt;

pub use self::bytes::{checksum_trial, pack_trial};
pub use self::fold::{ConvertTrial, FoldTrial, Forms, Operand};
use self::random::is_nan;
#[cfg(test)]
pub(crate) use self::random::layout;
pub use self::random::{Random, bytes_of, factor, fill, part_of};
pub use self::round::{RoundTrial, rounded, value};
use super::{
    DeviceChecksum, DeviceConvert, DeviceFold, DeviceRound, DeviceSource, Launch, Move, PackTable,
};
use crate::error::Result;
use crate::kernel::{Form, Scalar, Stage};
use crate::types::{Dtype, ReduceOp};

/// What the address of a trial's memory is a multiple of.
pub const LINE: usize = 64;

/// Bytes between buffers that nobody may touch.
const GUARD: usize = 64;

/// What they hold.
const FILLER: u8 = 0xa5;

/// A launch with its memory.
#[derive(Clone, Debug)]
pub struct Trial {
    /// Counts, forms and places, for who looks for the fault.
    pub what: String,
    before: Vec<u8>,
    after: Vec<u8>,
    buffers: Vec<Buffer>,
    work: Work,
}

/// One buffer of a trial.
#[derive(Clone, Debug)]
struct Buffer {
    name: String,
    at: usize,
    bytes: usize,
    /// Bytes of an element.
    element: usize,
    /// The real type that elements are made of.
    part: Dtype,
    /// The rules leave the payloads of its NaNs open.
    free: bool,
}

/// A launch whose addresses are offsets in the trial's memory.
#[derive(Clone, Debug)]
enum Work {
    Fold {
        dtype: Dtype,
        op: ReduceOp,
        sources: Vec<DeviceSource>,
        factors: Option<Vec<Scalar>>,
        targets: Vec<u64>,
        target_form: Form,
        count: u64,
        stage: Stage,
    },
    Convert(DeviceConvert),
    Round(DeviceRound),
    /// The moves, and where their table is.
    Pack(Vec<Move>, usize),
    Checksum(DeviceChecksum),
}

impl Trial {
    fn new(what: String, work: Work) -> Self {
        Self { what, before: Vec::new(), after: Vec::new(), buffers: Vec::new(), work }
    }

    /// Adds a buffer `past` bytes behind a line; its offset.
    fn place(
        &mut self,
        name: impl Into<String>,
        (dtype, form): (Dtype, Form),
        contents: &[u8],
        past: usize,
    ) -> usize {
        let at = self.before.len().next_multiple_of(LINE) + GUARD + past;
        for memory in [&mut self.before, &mut self.after] {
            memory.resize(at, FILLER);
            memory.extend(contents);
            memory.resize(at + contents.len() + GUARD, FILLER);
        }
        self.buffers.push(Buffer {
            name: name.into(),
            at,
            bytes: contents.len(),
            element: bytes_of(dtype, form),
            part: part_of(dtype, form),
            free: false,
        });
        at
    }

    /// Says what the buffer at `at` must hold afterwards.
    fn expect(&mut self, at: usize, bytes: &[u8], free: bool) {
        self.after[at..at + bytes.len()].copy_from_slice(bytes);
        for buffer in self.buffers.iter_mut().filter(|buffer| buffer.at == at) {
            buffer.free = free;
        }
    }

    /// What memory has to hold before; known once [`Trial::launch`] has said where it is.
    #[must_use]
    pub fn before(&self) -> &[u8] {
        &self.before
    }

    /// The launch on a device of `sms` multiprocessors, or on so many of them, with the memory at
    /// `base`, a multiple of [`LINE`].
    ///
    /// # Errors
    /// As for [`DeviceFold::launch`].
    pub fn launch(&mut self, base: u64, sms: u32) -> Result<Launch> {
        let source = |source: &DeviceSource| DeviceSource { at: source.at + base, ..*source };
        match &self.work {
            Work::Fold { dtype, op, sources, factors, targets, target_form, count, stage } => {
                let sources: Vec<DeviceSource> = sources.iter().map(source).collect();
                let targets: Vec<u64> = targets.iter().map(|at| at + base).collect();
                let fold = DeviceFold {
                    dtype: *dtype,
                    op: *op,
                    sources: &sources,
                    factors: factors.as_deref(),
                    targets: &targets,
                    target_form: *target_form,
                    count: *count,
                    stage: *stage,
                };
                fold.launch(sms)
            }
            Work::Convert(of) => {
                let (source, target) = (source(&of.source), of.target + base);
                DeviceConvert { source, target, ..*of }.launch(sms)
            }
            Work::Round(of) => {
                let (source, target) = (of.source + base, of.target + base);
                DeviceRound { source, target, ..*of }.launch(sms)
            }
            Work::Pack(moves, at) => {
                let one = |one: &Move| Move {
                    source: one.source + base,
                    target: one.target + base,
                    bytes: one.bytes,
                };
                let table = PackTable::new(&moves.iter().map(one).collect::<Vec<Move>>())?;
                let place = *at..at + table.bytes().len();
                self.before[place.clone()].copy_from_slice(table.bytes());
                self.after[place].copy_from_slice(table.bytes());
                table.launch(base + *at as u64, sms)
            }
            Work::Checksum(of) => {
                let (source, target) = (of.source + base, of.target + base);
                DeviceChecksum { source, target, ..*of }.launch(sms)
            }
        }
    }

    /// What is wrong with memory after the launch, if anything is.
    #[must_use]
    pub fn fault(&self, seen: &[u8]) -> Option<Fault> {
        assert_eq!(seen.len(), self.after.len(), "all of the trial's memory");
        if seen == self.after {
            return None;
        }
        let mut found: Option<Fault> = None;
        for buffer in &self.buffers {
            buffer.compare(seen, &self.after, &mut found);
        }
        self.compare_guards(seen, &mut found);
        found
    }

    fn compare_guards(&self, seen: &[u8], found: &mut Option<Fault>) {
        let mut from = 0;
        let ends = self.buffers.iter().map(|buffer| (buffer.at, buffer.at + buffer.bytes));
        for (at, next) in ends.chain([(seen.len(), seen.len())]) {
            let touched = seen[from..at].iter().position(|byte| *byte != FILLER);
            if let Some(index) = touched {
                let place = from + index;
                let of = self.buffers.iter().rev().find(|buffer| buffer.at <= place);
                let (name, past) = of.map_or(("the memory", place), |buffer| {
                    (&buffer.name, place - buffer.at - buffer.bytes)
                });
                let wrong = seen[from..at].iter().filter(|byte| **byte != FILLER).count();
                let fault = found.get_or_insert_with(|| Fault {
                    place: format!("the byte {past} past the end of {name}"),
                    got: format!("{:#04x}", seen[place]),
                    expected: format!("{FILLER:#04x}, as before"),
                    wrong: 0,
                    outside: 0,
                });
                fault.outside += wrong;
            }
            from = next;
        }
    }
}

impl Buffer {
    fn compare(&self, seen: &[u8], wanted: &[u8], found: &mut Option<Fault>) {
        let range = self.at..self.at + self.bytes;
        let (seen, wanted) = (&seen[range.clone()], &wanted[range]);
        if seen == wanted {
            return;
        }
        let size = self.part.bytes();
        let agree = |(got, wanted): (&[u8], &[u8])| {
            got == wanted || self.free && is_nan(self.part, got) && is_nan(self.part, wanted)
        };
        let elements = seen.chunks_exact(self.element).zip(wanted.chunks_exact(self.element));
        for (index, (got, wanted)) in elements.enumerate() {
            if got.chunks_exact(size).zip(wanted.chunks_exact(size)).all(agree) {
                continue;
            }
            let fault = found.get_or_insert_with(|| Fault {
                place: format!("element {index} of {}", self.name),
                got: self.shown(got),
                expected: self.shown(wanted),
                wrong: 0,
                outside: 0,
            });
            fault.wrong += 1;
        }
    }

    /// The bits of an element, part by part.
    fn shown(&self, element: &[u8]) -> String {
        let part = |part: &[u8]| {
            let digits = part.iter().rev().map(|byte| format!("{byte:02x}"));
            format!("0x{}", digits.collect::<String>())
        };
        let parts: Vec<String> = element.chunks_exact(self.part.bytes()).map(part).collect();
        parts.join(" ")
    }
}

/// The first thing that is wrong, and how much more is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Element and buffer.
    pub place: String,
    /// Its bits.
    pub got: String,
    /// What they should be.
    pub expected: String,
    /// Elements that are wrong, in all buffers.
    pub wrong: usize,
    /// Bytes outside of buffers that have changed.
    pub outside: usize,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, got, expected, wrong, outside } = self;
        write!(f, "{place}: got {got}, expected {expected}; {wrong} wrong")?;
        if *outside > 0 {
            write!(f, ", {outside} bytes outside of buffers written")?;
        }
        Ok(())
    }
}
