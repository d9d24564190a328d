//! Non-blocking calls on borrowed slices: all of them have ended when the scope does.
//!
//! ```no_run
//! # use unisono::{Communicator, Result, types::ReduceOp};
//! # fn overlap(comm: &Communicator, sent: &[f32], sums: &mut [f32]) -> Result<()> {
//! comm.scope(|scope| {
//!     scope.all_reduce(sent, sums, ReduceOp::Sum)?;
//!     // compute something else meanwhile
//!     Ok(())
//! })
//! # }
//! ```

use std::cell::RefCell;
use std::marker::PhantomData;

use crate::call::Call;
use crate::comm::call::{Buffers, Operation};
use crate::comm::safe::{Element, buffers, part, same};
use crate::comm::{Communicator, Request};
use crate::error::Result;
use crate::types::{Collective, Rank, ReduceOp};

/// Calls started here have ended when [`Communicator::scope`] returns.
#[derive(Debug)]
pub struct Scope<'comm, 'env> {
    comm: &'comm Communicator,
    requests: RefCell<Vec<Request>>,
    /// Slices are borrowed for all of `'env`, and `'env` may not be shortened.
    env: PhantomData<&'env mut &'env ()>,
}

impl Communicator {
    /// Runs `body`, which may start calls on slices that outlive the scope, then waits for all of
    /// them.
    ///
    /// # Errors
    /// Of `body`, else of the first call that failed.
    pub fn scope<'env, R>(&self, body: impl FnOnce(&Scope<'_, 'env>) -> Result<R>) -> Result<R> {
        let scope = Scope { comm: self, requests: RefCell::default(), env: PhantomData };
        // Dropping the scope waits too, should the body panic.
        let outcome = body(&scope);
        let ended = scope.wait();
        outcome.and_then(|value| self.note(ended).map(|()| value))
    }
}

impl<'env> Scope<'_, 'env> {
    fn start(&self, call: Result<Call>) -> Result<()> {
        // SAFETY: the slices behind the call are borrowed for `'env`, which outlives the scope, and
        // the scope waits for every request before it ends.
        let started = call.and_then(|call| unsafe { self.comm.start(call) });
        self.requests.borrow_mut().push(self.comm.note(started)?);
        Ok(())
    }

    /// Waits for everything started; the first failure.
    fn wait(&self) -> Result<()> {
        let mut first = Ok(());
        for mut request in self.requests.take() {
            // Without a limit a wait ends only with its call.
            let ended = request.wait(None).map(drop);
            first = first.and(ended);
        }
        first
    }

    /// As [`Communicator::all_reduce`], without waiting.
    ///
    /// # Errors
    /// A usage error; what ends the call is the scope's.
    pub fn all_reduce<T: Element>(
        &self,
        send: &'env [T],
        recv: &'env mut [T],
        operation: impl Into<Operation>,
    ) -> Result<()> {
        same(recv.len(), send.len(), "the output of all_reduce")?;
        let (count, both) = (send.len() as u64, buffers(send, recv));
        let operation = operation.into();
        self.start(self.comm.seat().whole(Collective::AllReduce, both, count, operation, Rank(0)))
    }

    /// As [`Communicator::reduce`], without waiting.
    ///
    /// # Errors
    /// A usage error; what ends the call is the scope's.
    pub fn reduce<T: Element>(
        &self,
        send: &'env [T],
        recv: &'env mut [T],
        operation: impl Into<Operation>,
        root: Rank,
    ) -> Result<()> {
        self.comm.seat().peer(i64::from(root.0), "root")?;
        if self.comm.rank() == root {
            same(recv.len(), send.len(), "the output of reduce")?;
        }
        let (count, both) = (send.len() as u64, buffers(send, recv));
        let operation = operation.into();
        self.start(self.comm.seat().whole(Collective::Reduce, both, count, operation, root))
    }

    /// As [`Communicator::broadcast`], without waiting.
    ///
    /// # Errors
    /// A usage error; what ends the call is the scope's.
    pub fn broadcast<T: Element>(&self, data: &'env mut [T], root: Rank) -> Result<()> {
        self.comm.seat().peer(i64::from(root.0), "root")?;
        let recv = data.as_mut_ptr().cast::<u8>();
        let both = Buffers { send: recv.cast_const(), recv, dtype: T::DTYPE };
        let (count, sum) = (data.len() as u64, ReduceOp::Sum.into());
        self.start(self.comm.seat().whole(Collective::Broadcast, both, count, sum, root))
    }

    /// As [`Communicator::all_to_all`], without waiting.
    ///
    /// # Errors
    /// A usage error; what ends the call is the scope's.
    pub fn all_to_all<T: Element>(&self, send: &'env [T], recv: &'env mut [T]) -> Result<()> {
        same(recv.len(), send.len(), "the output of all_to_all")?;
        let count = part(send.len(), self.comm.world_size(), "the input of all_to_all")?;
        let (both, sum) = (buffers(send, recv), ReduceOp::Sum.into());
        self.start(self.comm.seat().blocks(Collective::AllToAll, both, count, sum, Rank(0)))
    }

    /// As [`Communicator::all_gather`], without waiting.
    ///
    /// # Errors
    /// A usage error; what ends the call is the scope's.
    pub fn all_gather<T: Element>(&self, send: &'env [T], recv: &'env mut [T]) -> Result<()> {
        let world = self.comm.world_size() as usize;
        same(recv.len(), send.len() * world, "the output of all_gather")?;
        let (count, both) = (send.len() as u64, buffers(send, recv));
        let sum = ReduceOp::Sum.into();
        self.start(self.comm.seat().blocks(Collective::AllGather, both, count, sum, Rank(0)))
    }

    /// As [`Communicator::reduce_scatter`], without waiting.
    ///
    /// # Errors
    /// A usage error; what ends the call is the scope's.
    pub fn reduce_scatter<T: Element>(
        &self,
        send: &'env [T],
        recv: &'env mut [T],
        operation: impl Into<Operation>,
    ) -> Result<()> {
        let world = self.comm.world_size();
        let count = part(send.len(), world, "the input of reduce_scatter")?;
        same(send.len(), recv.len() * world as usize, "the input of reduce_scatter")?;
        let (kind, both) = (Collective::ReduceScatter, buffers(send, recv));
        self.start(self.comm.seat().blocks(kind, both, count, operation.into(), Rank(0)))
    }

    /// As [`Communicator::send`], without waiting.
    ///
    /// # Errors
    /// A usage error; what ends the call is the scope's.
    pub fn send<T: Element>(&self, data: &'env [T], peer: Rank) -> Result<()> {
        self.comm.seat().peer(i64::from(peer.0), "peer")?;
        let (count, both) = (data.len() as u64, buffers(data, &mut []));
        self.start(self.comm.seat().message(Collective::Send, both, count, peer))
    }

    /// As [`Communicator::recv`], without waiting.
    ///
    /// # Errors
    /// A usage error; what ends the call is the scope's.
    pub fn recv<T: Element>(&self, data: &'env mut [T], peer: Rank) -> Result<()> {
        self.comm.seat().peer(i64::from(peer.0), "peer")?;
        let (count, both) = (data.len() as u64, buffers(&[], data));
        self.start(self.comm.seat().message(Collective::Recv, both, count, peer))
    }
}

impl Drop for Scope<'_, '_> {
    fn drop(&mut self) {
        // The scope's function has already reported; this is for a body that panicked.
        let _ = self.wait();
    }
}
