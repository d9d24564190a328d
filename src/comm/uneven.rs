//! The collectives of uneven blocks on slices: safe, blocking, typed. Blocks lie end to end, in
//! rank order; a rank's block may be empty.

use crate::comm::safe::{Element, same};
use crate::comm::{Args, Communicator, Operation};
use crate::error::{Code, Error, Result};
use crate::types::{Collective, Rank};

/// Elements of all blocks, of which there must be one a rank.
fn total(counts: &[u64], world: u32, what: &str) -> Result<usize> {
    same(counts.len(), world as usize, what)?;
    let total = counts.iter().try_fold(0u64, |sum, &count| sum.checked_add(count));
    total.and_then(|total| usize::try_from(total).ok()).ok_or_else(|| {
        Error::new(Code::CountOverflow, format!("{what} add up to more than there can be"))
    })
}

fn args<'a, T: Element>(kind: Collective, send: &[T], recv: &mut [T]) -> Args<'a> {
    let mut args = Args::new(kind, T::DTYPE);
    (args.send, args.recv) = (send.as_ptr().cast(), recv.as_mut_ptr().cast());
    args
}

impl Communicator {
    /// `recv` = every rank's `send`, in rank order, on every rank; `counts`: elements of each.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` when a length does not fit `counts`; `MISMATCH` when the ranks' counts
    /// differ; whatever ends the call.
    pub fn all_gather_v<T: Element>(
        &self,
        send: &[T],
        recv: &mut [T],
        counts: &[u64],
    ) -> Result<()> {
        let all = total(counts, self.world_size(), "the counts of all_gather_v")?;
        same(recv.len(), all, "the output of all_gather_v")?;
        self.own_block(counts, send.len(), "the input of all_gather_v")?;
        let mut args = args(Collective::AllGatherV, send, recv);
        args.recv_counts = counts;
        self.run_borrowed(self.prepare(&args))
    }

    /// `recv` = this rank's block of the reduction of every rank's `send`; `counts`: elements of
    /// each rank's block.
    ///
    /// # Errors
    /// As [`Communicator::all_gather_v`]; `UNSUPPORTED`.
    pub fn reduce_scatter_v<T: Element>(
        &self,
        send: &[T],
        recv: &mut [T],
        counts: &[u64],
        operation: impl Into<Operation>,
    ) -> Result<()> {
        let all = total(counts, self.world_size(), "the counts of reduce_scatter_v")?;
        same(send.len(), all, "the input of reduce_scatter_v")?;
        self.own_block(counts, recv.len(), "the output of reduce_scatter_v")?;
        let mut args = args(Collective::ReduceScatterV, send, recv);
        (args.recv_counts, args.operation) = (counts, operation.into());
        self.run_borrowed(self.prepare(&args))
    }

    /// `recv` at `root` = every rank's `send`, in rank order; `counts`: elements of each, which
    /// only the root need give.
    ///
    /// # Errors
    /// As [`Communicator::all_gather_v`]; `RANK_OUT_OF_RANGE`.
    pub fn gather_v<T: Element>(
        &self,
        send: &[T],
        recv: &mut [T],
        counts: &[u64],
        root: Rank,
    ) -> Result<()> {
        if self.rank() == root {
            let all = total(counts, self.world_size(), "the counts of gather_v")?;
            same(recv.len(), all, "the output of gather_v")?;
        }
        let mut args = args(Collective::GatherV, send, recv);
        (args.count, args.recv_counts) = (send.len() as u64, counts);
        args.root = i64::from(root.0);
        self.run_borrowed(self.prepare(&args))
    }

    /// `recv` = this rank's block of the root's `send`; `counts`: elements of each, which only the
    /// root need give.
    ///
    /// # Errors
    /// As [`Communicator::gather_v`].
    pub fn scatter_v<T: Element>(
        &self,
        send: &[T],
        counts: &[u64],
        recv: &mut [T],
        root: Rank,
    ) -> Result<()> {
        if self.rank() == root {
            let all = total(counts, self.world_size(), "the counts of scatter_v")?;
            same(send.len(), all, "the input of scatter_v")?;
        }
        let mut args = args(Collective::ScatterV, send, recv);
        (args.count, args.send_counts) = (recv.len() as u64, counts);
        args.root = i64::from(root.0);
        self.run_borrowed(self.prepare(&args))
    }

    /// Block s of `send` goes to rank s; block s of `recv` comes from rank s.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` when a length does not fit its counts; `MISMATCH` when two ranks disagree
    /// on what one sends the other; whatever ends the call.
    pub fn all_to_all_v<T: Element>(
        &self,
        send: &[T],
        send_counts: &[u64],
        recv: &mut [T],
        recv_counts: &[u64],
    ) -> Result<()> {
        let world = self.world_size();
        same(send.len(), total(send_counts, world, "the send counts")?, "the input")?;
        same(recv.len(), total(recv_counts, world, "the receive counts")?, "the output")?;
        let mut args = args(Collective::AllToAllV, send, recv);
        (args.send_counts, args.recv_counts) = (send_counts, recv_counts);
        self.run_borrowed(self.prepare(&args))
    }

    fn own_block(&self, counts: &[u64], have: usize, what: &str) -> Result<()> {
        let own = usize::try_from(counts[self.rank().index()]).unwrap_or(usize::MAX);
        same(have, own, what)
    }
}
