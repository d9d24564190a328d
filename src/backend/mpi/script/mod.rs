//! What a call of ours is in calls of MPI: a short list of steps, done one after the other.
//!
//! ```text
//! f32 sum                 MPI_Allreduce
//! bf16 sum                widen | MPI_Allreduce of f32 | round        a piece at a time
//! f32 avg                 MPI_Allreduce | divide
//! f32 sum, deterministic  MPI_Alltoallv of the parts | fold in tree order | MPI_Allgatherv
//! all_gather              MPI_Allgather
//! ```
//!
//! So what MPI lacks obeys the rules of `kernel` all the same: halves are summed in `f32` and
//! rounded once, `avg` divides once. `min` and `max` of floats and products of complex numbers are
//! operations of our own (`ops`), since MPI's treat NaN, zeros and infinities otherwise. What
//! MPI sums itself keeps a NaN a NaN, but not always the canonical one.
//!
//! A step's buffers are addresses in the call's buffers or in the job's scratch, of at most
//! [`SCRATCH_BYTES`] and what one element of every rank takes; but an in-place reduce_scatter needs
//! its own block, and an in-place all_to_all on more elements than MPI can count all of them.

mod moves;
mod reduce;

use std::ffi::{c_int, c_void};
use std::ptr;

use crate::backend::mpi::ops::Ops;
use crate::call::{Call, Ragged};
use crate::error::{Code, Error, Result};
use crate::kernel::{self, Form, Kernels, Stage};
use crate::mpi::{BuiltIn, Constants, Handle, Kind, Lists, Primitive, Unit};
use crate::types::{Collective, Dtype, Rank, ReduceOp};

/// Scratch of a reduction that needs any: larger calls go in pieces.
const SCRATCH_BYTES: usize = 4 << 20;

/// Up to here a deterministic reduction gathers all inputs: one call of MPI, not two.
const GATHER_BYTES: usize = 16 << 10;

/// What an `int` can count.
pub(super) const INT_MAX: u64 = c_int::MAX.cast_unsigned() as u64;

/// Messages of a user's own; those of our scripts have another tag.
const USER_TAG: c_int = 0;
const SCRIPT_TAG: c_int = 1;

/// One step.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    /// MPI's part; `lists` says which of the script's lists it uses. Messages that follow each
    /// other are posted together.
    Mpi { call: Primitive, lists: usize },
    /// Elements change form, or are scaled.
    Convert(Move, Kernels, Stage),
    /// As many blocks as there are ranks, `stride` bytes apart, become one.
    Fold { one: Move, kernels: Kernels, stride: usize, sources: usize },
    /// Bytes move as they are.
    Copy { from: *const u8, to: *mut u8, bytes: usize },
}

/// Elements from one place to another.
#[derive(Clone, Copy, Debug)]
pub(super) struct Move {
    pub(super) from: *const u8,
    pub(super) form: Form,
    pub(super) to: *mut u8,
    pub(super) to_form: Form,
    pub(super) count: usize,
}

/// The steps of a call, and the memory they need.
#[derive(Debug, Default)]
pub(super) struct Script {
    pub(super) steps: Vec<Step>,
    lists: Vec<[Lists; 2]>,
    /// How many of `lists` are in use: the others keep their memory for later calls.
    listed: usize,
    scratch: Vec<u128>,
}

// SAFETY: the addresses are promised valid until the call is done, on whichever thread it runs.
unsafe impl Send for Script {}

/// What scripts depend on besides the call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules<'a> {
    pub(super) constants: &'a Constants,
    pub(super) ops: &'a Ops,
    pub(super) me: usize,
    pub(super) world: usize,
    pub(super) deterministic: bool,
    /// Elements that a call of MPI may have.
    pub(super) limit: u64,
    /// MPI has calls for more.
    pub(super) large: bool,
    /// The ranks have met before the script runs.
    pub(super) gated: bool,
    /// Some rank's counts are too many, and all know it.
    pub(super) divided: bool,
}

/// Whether `call` has counts, or places, that are too many for a call of MPI, which other ranks
/// cannot know.
pub(super) fn divides(call: &Call, rules: Rules<'_>) -> bool {
    use Collective as C;
    let most = match call.collective {
        C::GatherV | C::ScatterV | C::AllToAllV => {
            extent(&call.send_blocks).max(extent(&call.recv_blocks)).max(call.count)
        }
        C::AllGatherV => extent(&call.recv_blocks),
        _ => 0,
    };
    !rules.large && most > rules.limit
}

/// Writes the script of one call.
struct Writer<'a> {
    rules: Rules<'a>,
    call: &'a Call,
    script: &'a mut Script,
}

impl Script {
    /// The lists of a step.
    pub(super) fn lists(&self, index: usize) -> &[Lists; 2] {
        &self.lists[index]
    }

    /// Replaces the script by that of `call`.
    ///
    /// # Errors
    /// `OUT_OF_MEMORY`.
    #[inline]
    pub(super) fn write(&mut self, call: &Call, rules: Rules<'_>) -> Result<()> {
        self.steps.clear();
        self.listed = 0;
        if self.lists.is_empty() {
            self.lists.push([Lists::default(), Lists::default()]);
        }
        Writer { rules, call, script: self }.write()
    }

    /// Scratch of at least so many bytes. It may move when it grows, so the first to ask in a
    /// script asks for the most.
    fn scratch(&mut self, bytes: usize) -> Result<*mut u8> {
        let words = bytes.div_ceil(16);
        if self.scratch.len() < words {
            let more = words - self.scratch.len();
            self.scratch
                .try_reserve_exact(more)
                .map_err(|_| Error::new(Code::OutOfMemory, format!("{bytes} bytes of scratch")))?;
            self.scratch.resize(words, 0);
        }
        Ok(self.scratch.as_mut_ptr().cast())
    }

    /// Room for lists that no step uses yet: its index from 1 on (0 is empty).
    fn list(&mut self) -> (usize, &mut [Lists; 2]) {
        self.listed += 1;
        if self.lists.len() <= self.listed {
            self.lists.push([Lists::default(), Lists::default()]);
        }
        (self.listed, &mut self.lists[self.listed])
    }
}

/// The type of MPI that elements of ours are, for moving and for reducing.
fn unit(dtype: Dtype) -> Unit {
    match dtype {
        Dtype::I8 => Unit::I8,
        Dtype::U8 | Dtype::F8E4M3 | Dtype::F8E5M2 => Unit::U8,
        Dtype::I16 => Unit::I16,
        Dtype::U16 | Dtype::F16 | Dtype::Bf16 => Unit::U16,
        Dtype::I32 => Unit::I32,
        Dtype::U32 => Unit::U32,
        Dtype::I64 => Unit::I64,
        Dtype::U64 => Unit::U64,
        Dtype::F32 => Unit::F32,
        Dtype::F64 => Unit::F64,
        Dtype::Complex64 => Unit::Complex64,
        Dtype::Complex128 => Unit::Complex128,
    }
}

fn number(value: u64) -> usize {
    // Validated to fit the address space.
    usize::try_from(value).unwrap_or(usize::MAX)
}

fn int(value: usize) -> c_int {
    c_int::try_from(value).unwrap_or(c_int::MAX)
}

impl Writer<'_> {
    fn write(mut self) -> Result<()> {
        use Collective as C;
        let (call, kind) = (self.call, self.call.collective);
        match kind {
            // The gate was one.
            C::Barrier if self.rules.gated => {}
            C::Barrier => self.plain(Kind::Barrier, (ptr::null(), ptr::null_mut()), 0),
            C::Send => self.message(Kind::Send, call.send.cast_mut(), call.root, call.count),
            C::Recv => self.message(Kind::Recv, call.recv, call.root, call.count),
            _ if !kind.ragged() && call.count == 0 => {}
            _ if self.rules.world == 1 => return self.alone(),
            C::AllReduce | C::Reduce => return self.whole(),
            C::ReduceScatter | C::ReduceScatterV => return self.scattered(),
            C::Broadcast => self.broadcast(),
            C::AllGather => self.all_gather(),
            C::Gather | C::Scatter => self.rooted(),
            C::AllToAll => return self.all_to_all(),
            C::AllGatherV => return self.all_gather_v(),
            C::GatherV | C::ScatterV => return self.rooted_v(),
            C::AllToAllV => return self.all_to_all_v(),
        }
        Ok(())
    }

    fn push(&mut self, step: Step) {
        self.script.steps.push(step);
    }

    /// Bytes of an element.
    fn bytes(&self) -> usize {
        self.call.dtype.bytes()
    }

    fn in_place(&self) -> *const c_void {
        self.rules.constants.in_place
    }

    /// Whether MPI can take counts and displacements up to `most` in one call.
    fn fits(&self, most: u64) -> bool {
        most <= self.rules.limit || self.rules.large
    }

    /// Whether a call takes the form with large counts: where MPI has it, and needs it.
    fn wide(&self, most: u64) -> bool {
        self.rules.large && most > self.rules.limit
    }

    /// The type that elements are moved as.
    fn mover(&self) -> Handle {
        self.rules.constants.units[unit(self.call.dtype) as usize]
    }

    fn primitive(&self, kind: Kind, (send, recv): (*const u8, *mut u8), count: u64) -> Primitive {
        Primitive {
            kind,
            send: send.cast(),
            recv: recv.cast(),
            count,
            unit: self.mover(),
            op: self.rules.constants.ops[BuiltIn::Sum as usize],
            root: int(self.call.root.index()),
            tag: SCRIPT_TAG,
            wide: self.wide(count),
        }
    }

    fn plain(&mut self, kind: Kind, buffers: (*const u8, *mut u8), count: u64) {
        let call = self.primitive(kind, buffers, count);
        self.push(Step::Mpi { call, lists: 0 });
    }

    fn copy(&mut self, from: *const u8, to: *mut u8, elements: u64) {
        let bytes = number(elements) * self.bytes();
        if bytes > 0 && !ptr::eq(from, to) {
            self.push(Step::Copy { from, to, bytes });
        }
    }

    /// A message of any length: as many of MPI's as that takes.
    fn message(&mut self, kind: Kind, at: *mut u8, peer: Rank, count: u64) {
        let own = self.call.collective.point_to_point();
        // One without elements is a message, too.
        let empty = (count == 0).then_some((0, 0));
        for (done, some) in pieces(count, self.most(count)).chain(empty) {
            let at = at.wrapping_add(number(done) * self.bytes());
            let mut call = self.primitive(kind, (at, at), some);
            call.root = int(peer.index());
            call.tag = if own { USER_TAG } else { SCRIPT_TAG };
            self.push(Step::Mpi { call, lists: 0 });
        }
    }

    /// How many of `count` elements one call of MPI may have.
    fn most(&self, count: u64) -> u64 {
        if self.rules.large { count } else { self.rules.limit }
    }

    /// A world of one: what reductions do to an element besides combining it.
    fn alone(&mut self) -> Result<()> {
        let call = self.call;
        let (mut from, mut to, mut count) = (call.send, call.recv, call.count);
        if call.collective.ragged() {
            let first = |blocks: &Ragged| places(blocks).next().unwrap_or((0, 0));
            let sends = first(&call.send_blocks);
            let recvs = first(&call.recv_blocks);
            if matches!(call.collective, Collective::ScatterV | Collective::AllToAllV) {
                from = from.wrapping_add(number(sends.0) * self.bytes());
                count = sends.1;
            }
            if call.collective != Collective::ScatterV && !call.collective.reduces() {
                to = to.wrapping_add(number(recvs.0) * self.bytes());
                count = recvs.1;
            }
        }
        if !call.collective.reduces() {
            self.copy(from, to, count);
            return Ok(());
        }
        let kernels = kernel::select(call.dtype, call.op)?;
        let mut form = Form::Native;
        let wide = call.dtype.accumulator().bytes();
        let piece = count.min((SCRATCH_BYTES / wide) as u64);
        for (done, some) in pieces(count, piece) {
            let (done, some) = (number(done), number(some));
            let mut at = from.wrapping_add(done * self.bytes());
            if call.op == ReduceOp::PreMulSum {
                let scratch = self.script.scratch(number(piece) * wide)?;
                let scale = Stage::Prepare(call.scalar);
                let one = Move {
                    from: at,
                    form: Form::Native,
                    to: scratch,
                    to_form: Form::Wide,
                    count: some,
                };
                self.push(Step::Convert(one, kernels, scale));
                (at, form) = (scratch.cast_const(), Form::Wide);
            }
            let to = to.wrapping_add(done * self.bytes());
            let one = Move { from: at, form, to, to_form: Form::Native, count: some };
            self.push(Step::Fold { one, kernels, stride: 0, sources: 1 });
        }
        Ok(())
    }
}

/// `count` elements in pieces of at most `most`: where each begins, and its elements.
fn pieces(count: u64, most: u64) -> impl Iterator<Item = (u64, u64)> {
    let most = most.max(1);
    (0..count.div_ceil(most)).map(move |piece| (piece * most, most.min(count - piece * most)))
}

/// Where blocks begin, and their elements.
fn places(blocks: &Ragged) -> impl Iterator<Item = (u64, u64)> {
    blocks.displacements.iter().copied().zip(blocks.counts.iter().copied())
}

/// One past the last element of any block.
fn extent(blocks: &Ragged) -> u64 {
    places(blocks).map(|(at, count)| at + count).max().unwrap_or(0)
}

/// Puts blocks (where each begins, and its elements) into `lists`; the largest number in them.
fn fill(lists: &mut Lists, blocks: impl Iterator<Item = (u64, u64)>) -> u64 {
    let Lists { counts, displacements, wide_counts, wide_displacements } = lists;
    counts.clear();
    displacements.clear();
    wide_counts.clear();
    wide_displacements.clear();
    let mut most = 0;
    for (at, count) in blocks {
        most = most.max(at + count);
        counts.push(c_int::try_from(count).unwrap_or(c_int::MAX));
        displacements.push(c_int::try_from(at).unwrap_or(c_int::MAX));
        wide_counts.push(i64::try_from(count).unwrap_or(i64::MAX));
        wide_displacements.push(isize::try_from(at).unwrap_or(isize::MAX));
    }
    most
}
