//! The collectives on slices: safe, blocking, typed.

use half::{bf16, f16};

use crate::call::Call;
use crate::comm::Communicator;
use crate::comm::call::{Buffers, Operation};
use crate::error::{Code, Error, Result};
use crate::types::{Collective, Dtype, Rank, ReduceOp};

mod sealed {
    pub trait Sealed {}
}

/// Types that collectives move and reduce.
pub trait Element: sealed::Sealed + Copy + Send + 'static {
    /// The element type.
    const DTYPE: Dtype;
}

/// An 8-bit float of 4 exponent bits (OCP OFP8 E4M3), by its bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct F8E4M3(pub u8);

/// An 8-bit float of 5 exponent bits (OCP OFP8 E5M2), by its bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct F8E5M2(pub u8);

macro_rules! elements {
    ($($rust:ty => $dtype:ident,)+) => {
        $(
            impl sealed::Sealed for $rust {}
            impl Element for $rust { const DTYPE: Dtype = Dtype::$dtype; }
        )+
    };
}

elements! {
    i8 => I8, u8 => U8, i16 => I16, u16 => U16, i32 => I32, u32 => U32, i64 => I64, u64 => U64,
    f16 => F16, bf16 => Bf16, F8E4M3 => F8E4M3, F8E5M2 => F8E5M2, f32 => F32, f64 => F64,
    [f32; 2] => Complex64, [f64; 2] => Complex128,
}

pub(super) fn buffers<T: Element>(send: &[T], recv: &mut [T]) -> Buffers {
    Buffers { send: send.as_ptr().cast(), recv: recv.as_mut_ptr().cast(), dtype: T::DTYPE }
}

/// The elements of one of `parts` equal parts of `total`.
pub(super) fn part(total: usize, parts: u32, what: &str) -> Result<u64> {
    let parts = parts as usize;
    if !total.is_multiple_of(parts) {
        let text = format!("{what} of {total} elements in {parts} equal blocks");
        return Err(Error::new(Code::InvalidArgument, text));
    }
    Ok((total / parts) as u64)
}

pub(super) fn same(have: usize, need: usize, what: &str) -> Result<()> {
    if have == need {
        return Ok(());
    }
    Err(Error::new(Code::InvalidArgument, format!("{what} has {have} elements, needs {need}")))
}

impl Communicator {
    /// Runs a call whose buffers are borrowed for as long as this takes.
    pub(super) fn run_borrowed(&self, call: Result<Call>) -> Result<()> {
        // SAFETY: the callers below borrow the slices the call was made of until this returns.
        self.note(call.and_then(|call| unsafe { self.run_now(call) }))
    }

    /// `recv` = the reduction of every rank's `send`, on every rank.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` when the lengths differ; `UNSUPPORTED`; whatever ends the call.
    pub fn all_reduce<T: Element>(
        &self,
        send: &[T],
        recv: &mut [T],
        operation: impl Into<Operation>,
    ) -> Result<()> {
        same(recv.len(), send.len(), "the output of all_reduce")?;
        let (count, operation) = (send.len() as u64, operation.into());
        let kind = Collective::AllReduce;
        self.run_borrowed(self.seat().whole(kind, buffers(send, recv), count, operation, Rank(0)))
    }

    /// `data` = the reduction of every rank's `data`, on every rank.
    ///
    /// # Errors
    /// As [`Communicator::all_reduce`].
    pub fn all_reduce_in_place<T: Element>(
        &self,
        data: &mut [T],
        operation: impl Into<Operation>,
    ) -> Result<()> {
        let recv = data.as_mut_ptr().cast::<u8>();
        let both = Buffers { send: recv.cast_const(), recv, dtype: T::DTYPE };
        let (count, operation) = (data.len() as u64, operation.into());
        self.run_borrowed(self.seat().whole(Collective::AllReduce, both, count, operation, Rank(0)))
    }

    /// `recv` at `root` = the reduction of every rank's `send`; elsewhere `recv` may be empty.
    ///
    /// # Errors
    /// As [`Communicator::all_reduce`]; `RANK_OUT_OF_RANGE`.
    pub fn reduce<T: Element>(
        &self,
        send: &[T],
        recv: &mut [T],
        operation: impl Into<Operation>,
        root: Rank,
    ) -> Result<()> {
        self.seat().peer(i64::from(root.0), "root")?;
        if self.rank() == root {
            same(recv.len(), send.len(), "the output of reduce")?;
        }
        let (count, operation) = (send.len() as u64, operation.into());
        let kind = Collective::Reduce;
        self.run_borrowed(self.seat().whole(kind, buffers(send, recv), count, operation, root))
    }

    /// `data` = the root's `data`, on every rank.
    ///
    /// # Errors
    /// `RANK_OUT_OF_RANGE`; whatever ends the call.
    pub fn broadcast<T: Element>(&self, data: &mut [T], root: Rank) -> Result<()> {
        self.seat().peer(i64::from(root.0), "root")?;
        let recv = data.as_mut_ptr().cast::<u8>();
        let both = Buffers { send: recv.cast_const(), recv, dtype: T::DTYPE };
        let (count, sum) = (data.len() as u64, ReduceOp::Sum.into());
        self.run_borrowed(self.seat().whole(Collective::Broadcast, both, count, sum, root))
    }

    /// `recv` = every rank's `send`, in rank order, on every rank.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` when `recv` is not world times as long; whatever ends the call.
    pub fn all_gather<T: Element>(&self, send: &[T], recv: &mut [T]) -> Result<()> {
        same(recv.len(), send.len() * self.world_size() as usize, "the output of all_gather")?;
        self.equal(Collective::AllGather, send, recv, send.len() as u64, ReduceOp::Sum.into())
    }

    /// `recv` = this rank's block of the reduction of every rank's `send`.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` when `send` is not world times as long; whatever ends the call.
    pub fn reduce_scatter<T: Element>(
        &self,
        send: &[T],
        recv: &mut [T],
        operation: impl Into<Operation>,
    ) -> Result<()> {
        let count = part(send.len(), self.world_size(), "the input of reduce_scatter")?;
        same(send.len(), recv.len() * self.world_size() as usize, "the input of reduce_scatter")?;
        self.equal(Collective::ReduceScatter, send, recv, count, operation.into())
    }

    /// Block s of `send` goes to rank s; block s of `recv` comes from rank s.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` when lengths differ or are no multiple of the world; whatever ends the
    /// call.
    pub fn all_to_all<T: Element>(&self, send: &[T], recv: &mut [T]) -> Result<()> {
        same(recv.len(), send.len(), "the output of all_to_all")?;
        let count = part(send.len(), self.world_size(), "the input of all_to_all")?;
        self.equal(Collective::AllToAll, send, recv, count, ReduceOp::Sum.into())
    }

    /// `recv` at `root` = every rank's `send`, in rank order; elsewhere `recv` may be empty.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` when the root's `recv` is not world times as long; `RANK_OUT_OF_RANGE`;
    /// whatever ends the call.
    pub fn gather<T: Element>(&self, send: &[T], recv: &mut [T], root: Rank) -> Result<()> {
        self.seat().peer(i64::from(root.0), "root")?;
        if self.rank() == root {
            same(recv.len(), send.len() * self.world_size() as usize, "the output of gather")?;
        }
        let (count, sum) = (send.len() as u64, ReduceOp::Sum.into());
        let both = buffers(send, recv);
        self.run_borrowed(self.seat().blocks(Collective::Gather, both, count, sum, root))
    }

    /// `recv` = this rank's block of the root's `send`; elsewhere `send` may be empty.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` when the root's `send` is not world times as long; `RANK_OUT_OF_RANGE`;
    /// whatever ends the call.
    pub fn scatter<T: Element>(&self, send: &[T], recv: &mut [T], root: Rank) -> Result<()> {
        self.seat().peer(i64::from(root.0), "root")?;
        if self.rank() == root {
            same(send.len(), recv.len() * self.world_size() as usize, "the input of scatter")?;
        }
        let (count, sum) = (recv.len() as u64, ReduceOp::Sum.into());
        let both = buffers(send, recv);
        self.run_borrowed(self.seat().blocks(Collective::Scatter, both, count, sum, root))
    }

    fn equal<T: Element>(
        &self,
        kind: Collective,
        send: &[T],
        recv: &mut [T],
        count: u64,
        operation: Operation,
    ) -> Result<()> {
        let call = self.seat().blocks(kind, buffers(send, recv), count, operation, Rank(0));
        self.run_borrowed(call)
    }

    /// Returns once every rank has called it.
    ///
    /// # Errors
    /// Whatever ends the call.
    pub fn barrier(&self) -> Result<()> {
        self.run_borrowed(Ok(self.seat().barrier()))
    }

    /// Sends `data` to `peer`, which must receive as much of the same type.
    ///
    /// # Errors
    /// `RANK_OUT_OF_RANGE`; whatever ends the call.
    pub fn send<T: Element>(&self, data: &[T], peer: Rank) -> Result<()> {
        self.seat().peer(i64::from(peer.0), "peer")?;
        let both = buffers(data, &mut []);
        self.run_borrowed(self.seat().message(Collective::Send, both, data.len() as u64, peer))
    }

    /// Receives into `data` what `peer` sends.
    ///
    /// # Errors
    /// `RANK_OUT_OF_RANGE`; whatever ends the call.
    pub fn recv<T: Element>(&self, data: &mut [T], peer: Rank) -> Result<()> {
        self.seat().peer(i64::from(peer.0), "peer")?;
        let count = data.len() as u64;
        let both = buffers(&[], data);
        self.run_borrowed(self.seat().message(Collective::Recv, both, count, peer))
    }

    /// Sends `data` to `to` while receiving into `into` what `from` sends.
    ///
    /// # Errors
    /// `RANK_OUT_OF_RANGE`; whatever ends either message.
    pub fn send_recv<T: Element>(
        &self,
        data: &[T],
        to: Rank,
        into: &mut [T],
        from: Rank,
    ) -> Result<()> {
        self.seat().peer(i64::from(to.0), "peer")?;
        self.seat().peer(i64::from(from.0), "peer")?;
        let (sent, received) = (data.len() as u64, into.len() as u64);
        let both = buffers(data, into);
        let send = self.seat().message(Collective::Send, both, sent, to);
        let recv = self.seat().message(Collective::Recv, both, received, from);
        // SAFETY: the slices are borrowed until this returns, and both have ended by then.
        self.note(send.and_then(|send| unsafe { self.run_pair_now(send, recv?) }))
    }
}
