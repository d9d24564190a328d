//! Turns arguments into a validated [`Call`], or names the argument that is wrong.
//!
//! Checked here, once, in release too: numbers against their range, buffers against NULL, alignment
//! and overlap, counts against the address space. A buffer that a rank does not use (the receive
//! buffer of a reduce away from the root, say) is never looked at and may be NULL.
//!
//! In place: all_reduce, reduce, broadcast and all_to_all with equal buffers; all_gather and gather
//! with the input inside the output where the own block belongs; reduce_scatter and scatter with
//! the output inside the input where the own block lies. Any other overlap is refused.

use crate::call::{Call, Ragged};
use crate::error::{Code, Error, Result};
use crate::kernel::Scalar;
use crate::types::{Collective, Dtype, Rank, ReduceOp};

/// A reduction as the caller names it: an operation and, for `pre_mul_sum`, this rank's factor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Operation {
    /// The operation.
    pub op: ReduceOp,
    /// The factor in wide form; not looked at by other operations.
    pub scalar: Scalar,
}

impl From<ReduceOp> for Operation {
    fn from(op: ReduceOp) -> Self {
        Self { op, scalar: Scalar([0; 16]) }
    }
}

/// Where a call is made from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seat {
    pub(crate) rank: Rank,
    pub(crate) world: u32,
}

/// A stretch of memory an argument names.
#[derive(Clone, Copy, Debug)]
struct Extent {
    at: usize,
    bytes: usize,
}

impl Extent {
    fn overlaps(self, other: Self) -> bool {
        self.bytes > 0
            && other.bytes > 0
            && self.at < other.at.wrapping_add(other.bytes)
            && other.at < self.at.wrapping_add(self.bytes)
    }
}

/// The arguments every collective has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Buffers {
    pub(crate) send: *const u8,
    pub(crate) recv: *mut u8,
    pub(crate) dtype: Dtype,
}

impl Seat {
    /// A rank number as a caller gave it.
    pub(crate) fn peer(&self, number: i64, what: &str) -> Result<Rank> {
        u32::try_from(number).ok().filter(|&r| r < self.world).map(Rank).ok_or_else(|| {
            let text = format!("{what} {number} in a world of {}", self.world);
            Error::new(Code::RankOutOfRange, text)
        })
    }

    fn is(&self, rank: Rank) -> bool {
        self.rank == rank
    }

    /// The buffer-wide collectives: all_reduce, reduce, broadcast.
    pub(crate) fn whole(
        &self,
        kind: Collective,
        buffers: Buffers,
        count: u64,
        operation: Operation,
        root: Rank,
    ) -> Result<Call> {
        let mut call = self.start(kind, buffers, operation, root)?;
        call.count = count;
        let at_root = kind == Collective::AllReduce || self.is(root);
        let sends = kind != Collective::Broadcast || at_root;
        // The root of a broadcast copies to its own output, unless it is the input or NULL.
        let receives = match kind {
            Collective::Broadcast => !at_root || !buffers.recv.is_null(),
            _ => at_root,
        };
        let send = self.input(&call, if sends { count } else { 0 })?;
        let recv = self.output(&call, if receives { count } else { 0 })?;
        if kind == Collective::Broadcast && at_root && buffers.recv.is_null() {
            call.recv = buffers.send.cast_mut();
        }
        disjoint_or(send, recv, send.at == recv.at)?;
        Ok(call)
    }

    /// The collectives of equal blocks.
    pub(crate) fn blocks(
        &self,
        kind: Collective,
        buffers: Buffers,
        count: u64,
        operation: Operation,
        root: Rank,
    ) -> Result<Call> {
        use Collective as C;
        let mut call = self.start(kind, buffers, operation, root)?;
        call.count = count;
        let all = count.checked_mul(u64::from(self.world)).ok_or_else(|| self.too_many(&call))?;
        let at_root = self.is(root);
        let (sends, receives) = match kind {
            C::AllGather => (count, all),
            C::ReduceScatter => (all, count),
            C::Gather => (count, if at_root { all } else { 0 }),
            C::Scatter => (if at_root { all } else { 0 }, count),
            _ => (all, all),
        };
        let send = self.input(&call, sends)?;
        let recv = self.output(&call, receives)?;
        let own = self.bytes(&call, count)?.saturating_mul(self.rank.index());
        let in_place = match kind {
            C::AllGather | C::Gather => send.at == recv.at.wrapping_add(own),
            C::ReduceScatter | C::Scatter => recv.at == send.at.wrapping_add(own),
            _ => send.at == recv.at,
        };
        disjoint_or(send, recv, in_place)?;
        Ok(call)
    }

    /// all_gather_v: `counts` and `displacements` describe every rank's block of the output.
    pub(crate) fn all_gather_v(
        &self,
        spare: &mut Vec<Ragged>,
        buffers: Buffers,
        counts: &[u64],
        displacements: Option<&[u64]>,
    ) -> Result<Call> {
        let sum = ReduceOp::Sum.into();
        let mut call = self.start(Collective::AllGatherV, buffers, sum, Rank(0))?;
        call.recv_blocks = self.ragged(spare, &call, counts, displacements, "receive")?;
        let own = counts[self.rank.index()];
        let send = self.input(&call, own)?;
        let recv = self.output(&call, extent(&call.recv_blocks))?;
        let place = call.recv_blocks.displacements[self.rank.index()];
        let in_place = send.at == recv.at.wrapping_add(self.bytes(&call, place)?);
        disjoint_or(send, recv, in_place)?;
        call.count = own;
        Ok(call)
    }

    /// reduce_scatter_v: `counts` are every rank's block of the input, end to end.
    pub(crate) fn reduce_scatter_v(
        &self,
        spare: &mut Vec<Ragged>,
        buffers: Buffers,
        counts: &[u64],
        operation: Operation,
    ) -> Result<Call> {
        let mut call = self.start(Collective::ReduceScatterV, buffers, operation, Rank(0))?;
        call.recv_blocks = self.ragged(spare, &call, counts, None, "receive")?;
        let own = counts[self.rank.index()];
        let send = self.input(&call, extent(&call.recv_blocks))?;
        let recv = self.output(&call, own)?;
        let place = call.recv_blocks.displacements[self.rank.index()];
        let in_place = recv.at == send.at.wrapping_add(self.bytes(&call, place)?);
        disjoint_or(send, recv, in_place)?;
        call.count = own;
        Ok(call)
    }

    /// gather_v: the root's `counts` and `displacements` describe its output; others give none.
    pub(crate) fn gather_v(
        &self,
        spare: &mut Vec<Ragged>,
        buffers: Buffers,
        count: u64,
        counts: &[u64],
        displacements: Option<&[u64]>,
        root: Rank,
    ) -> Result<Call> {
        let sum = ReduceOp::Sum.into();
        let mut call = self.start(Collective::GatherV, buffers, sum, root)?;
        call.count = count;
        let send = self.input(&call, count)?;
        if self.is(root) {
            call.recv_blocks = self.ragged(spare, &call, counts, displacements, "receive")?;
            own_count(counts[self.rank.index()], count, "send_count")?;
            let recv = self.output(&call, extent(&call.recv_blocks))?;
            let place = call.recv_blocks.displacements[self.rank.index()];
            let in_place = send.at == recv.at.wrapping_add(self.bytes(&call, place)?);
            disjoint_or(send, recv, in_place)?;
        }
        Ok(call)
    }

    /// scatter_v: the root's `counts` and `displacements` describe its input; others give none.
    pub(crate) fn scatter_v(
        &self,
        spare: &mut Vec<Ragged>,
        buffers: Buffers,
        count: u64,
        counts: &[u64],
        displacements: Option<&[u64]>,
        root: Rank,
    ) -> Result<Call> {
        let sum = ReduceOp::Sum.into();
        let mut call = self.start(Collective::ScatterV, buffers, sum, root)?;
        call.count = count;
        let recv = self.output(&call, count)?;
        if self.is(root) {
            call.send_blocks = self.ragged(spare, &call, counts, displacements, "send")?;
            own_count(counts[self.rank.index()], count, "recv_count")?;
            let send = self.input(&call, extent(&call.send_blocks))?;
            let place = call.send_blocks.displacements[self.rank.index()];
            let in_place = recv.at == send.at.wrapping_add(self.bytes(&call, place)?);
            disjoint_or(send, recv, in_place)?;
        }
        Ok(call)
    }

    /// all_to_all_v: counts and displacements of both sides.
    pub(crate) fn all_to_all_v(
        &self,
        spare: &mut Vec<Ragged>,
        buffers: Buffers,
        (send_counts, send_displacements): (&[u64], Option<&[u64]>),
        (recv_counts, recv_displacements): (&[u64], Option<&[u64]>),
    ) -> Result<Call> {
        let sum = ReduceOp::Sum.into();
        let mut call = self.start(Collective::AllToAllV, buffers, sum, Rank(0))?;
        call.send_blocks = self.ragged(spare, &call, send_counts, send_displacements, "send")?;
        call.recv_blocks = self.ragged(spare, &call, recv_counts, recv_displacements, "receive")?;
        let me = self.rank.index();
        own_count(send_counts[me], recv_counts[me], "the own block's receive count")?;
        let send = self.input(&call, extent(&call.send_blocks))?;
        let recv = self.output(&call, extent(&call.recv_blocks))?;
        let in_place = send.at == recv.at && call.send_blocks == call.recv_blocks;
        disjoint_or(send, recv, in_place)?;
        Ok(call)
    }

    /// barrier.
    pub(crate) fn barrier(&self) -> Call {
        Call::new(Collective::Barrier, Dtype::U8)
    }

    /// send or recv: `buffers` holds the one buffer in its place.
    pub(crate) fn message(
        &self,
        kind: Collective,
        buffers: Buffers,
        count: u64,
        peer: Rank,
    ) -> Result<Call> {
        let mut call = self.start(kind, buffers, ReduceOp::Sum.into(), peer)?;
        call.count = count;
        if kind == Collective::Send {
            self.input(&call, count)?;
        } else {
            self.output(&call, count)?;
        }
        Ok(call)
    }

    #[inline]
    fn start(
        &self,
        kind: Collective,
        buffers: Buffers,
        operation: Operation,
        root: Rank,
    ) -> Result<Call> {
        if kind.reduces() && !operation.op.supports(buffers.dtype) {
            let text = format!(
                "{} on {} has no meaning; `unisono info --types` lists what has",
                operation.op, buffers.dtype
            );
            return Err(Error::new(Code::Unsupported, text));
        }
        let mut call = Call::new(kind, buffers.dtype);
        (call.send, call.recv, call.root) = (buffers.send, buffers.recv, root);
        if kind.reduces() {
            (call.op, call.scalar) = (operation.op, operation.scalar);
        }
        Ok(call)
    }

    fn too_many(&self, call: &Call) -> Error {
        let bytes = call.dtype.bytes();
        let text = format!("count {} of {bytes} bytes in a world of {}", call.count, self.world);
        Error::new(Code::CountOverflow, text)
    }

    #[inline]
    fn bytes(&self, call: &Call, elements: u64) -> Result<usize> {
        let bytes = elements.checked_mul(call.dtype.bytes() as u64);
        let fits = bytes.and_then(|b| isize::try_from(b).ok());
        fits.map(isize::unsigned_abs).ok_or_else(|| overflow(call.dtype, elements))
    }

    fn input(&self, call: &Call, elements: u64) -> Result<Extent> {
        self.extent(call, call.send as usize, elements, "send")
    }

    fn output(&self, call: &Call, elements: u64) -> Result<Extent> {
        self.extent(call, call.recv as usize, elements, "receive")
    }

    #[inline]
    fn extent(&self, call: &Call, at: usize, elements: u64, which: &str) -> Result<Extent> {
        let bytes = self.bytes(call, elements)?;
        if bytes == 0 {
            return Ok(Extent { at, bytes });
        }
        // Types are aligned to powers of two.
        let aligned = at & (call.dtype.align() - 1) == 0;
        if at == 0 || !aligned || at.checked_add(bytes).is_none() {
            return Err(bad_buffer(call, at, bytes, which));
        }
        Ok(Extent { at, bytes })
    }

    fn ragged(
        &self,
        spare: &mut Vec<Ragged>,
        call: &Call,
        counts: &[u64],
        displacements: Option<&[u64]>,
        which: &str,
    ) -> Result<Ragged> {
        let world = self.world as usize;
        if counts.len() != world || displacements.is_some_and(|d| d.len() != world) {
            let given = displacements.map_or(counts.len(), |d| d.len().min(counts.len()));
            let text = format!("{given} {which} counts or displacements in a world of {world}");
            return Err(Error::new(Code::InvalidArgument, text));
        }
        let mut blocks = spare.pop().unwrap_or_default();
        blocks.set(counts, displacements);
        for (rank, (&count, &from)) in blocks.counts.iter().zip(&blocks.displacements).enumerate() {
            let end = from.checked_add(count).filter(|&end| self.bytes(call, end).is_ok());
            if end.is_none() {
                let bytes = call.dtype.bytes();
                let text = format!(
                    "the {which} block of rank {rank}: count {count} at displacement {from}, of \
                     {bytes} bytes each"
                );
                return Err(Error::new(Code::CountOverflow, text));
            }
        }
        if which == "receive" && blocks_overlap(&blocks) {
            return Err(Error::new(Code::Overlap, "two receive blocks overlap"));
        }
        Ok(blocks)
    }
}

#[cold]
fn overflow(dtype: Dtype, elements: u64) -> Error {
    let text = format!("{elements} elements of {} bytes", dtype.bytes());
    Error::new(Code::CountOverflow, text)
}

/// What is wrong with a buffer of `bytes` bytes.
#[cold]
fn bad_buffer(call: &Call, at: usize, bytes: usize, which: &str) -> Error {
    let (kind, dtype, align) = (call.collective, call.dtype, call.dtype.align());
    if at == 0 {
        return Error::new(Code::NullPointer, format!("the {which} buffer of {kind}"));
    }
    if !at.is_multiple_of(align) {
        let text = format!("the {which} buffer {at:#x} for {dtype} of {align} bytes");
        return Error::new(Code::Misaligned, text);
    }
    Error::new(Code::CountOverflow, format!("{bytes} bytes at {at:#x}"))
}

/// Whether two blocks share an element. Blocks in order, the usual case, need no memory to tell.
fn blocks_overlap(blocks: &Ragged) -> bool {
    let all = || {
        let pairs = blocks.displacements.iter().zip(&blocks.counts).filter(|(_, c)| **c > 0);
        pairs.map(|(&from, &count)| (from, from + count))
    };
    let mut end = 0;
    let in_order = all().all(|(from, to)| {
        let after = from >= end;
        end = to;
        after
    });
    if in_order {
        return false;
    }
    let mut sorted: Vec<(u64, u64)> = all().collect();
    sorted.sort_unstable();
    sorted.windows(2).any(|w| w[0].1 > w[1].0)
}

/// One past the last element of any block.
fn extent(blocks: &Ragged) -> u64 {
    let ends = blocks.counts.iter().zip(&blocks.displacements);
    ends.filter(|(c, _)| **c > 0).map(|(c, d)| c + d).max().unwrap_or(0)
}

fn own_count(listed: u64, given: u64, what: &str) -> Result<()> {
    if listed == given {
        return Ok(());
    }
    let text = format!("the own block has {listed} elements in the counts, {given} as {what}");
    Err(Error::new(Code::InvalidArgument, text))
}

fn disjoint_or(send: Extent, recv: Extent, in_place: bool) -> Result<()> {
    if in_place || !send.overlaps(recv) {
        return Ok(());
    }
    let text = format!(
        "send {:#x}..{:#x} and receive {:#x}..{:#x}",
        send.at,
        send.at + send.bytes,
        recv.at,
        recv.at + recv.bytes
    );
    Err(Error::new(Code::Overlap, text))
}

/// A message sent and one received at once must lie apart.
pub(crate) fn apart(send: &Call, recv: &Call) -> Result<()> {
    let extent = |at: usize, call: &Call| Extent {
        at,
        // The call has been validated: its bytes fit the address space.
        bytes: usize::try_from(call.count).unwrap_or(usize::MAX) * call.dtype.bytes(),
    };
    disjoint_or(extent(send.send as usize, send), extent(recv.recv as usize, recv), false)
}
