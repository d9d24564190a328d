//! What carries out whole calls: the native engine, MPI, and what serves memory of GPUs.
//!
//! A backend is driven by one thread at a time. It never waits except in [`Backend::doze`].

pub(crate) mod drive;
pub(crate) mod gpu;

pub(crate) mod mpi;
pub(crate) mod native;
mod pair;

use std::sync::Arc;
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use crate::call::{Call, Ragged};
use crate::engine::{Hurried, Known, Progress};
use crate::error::{Error, Result};
use crate::link::doze::Doze;
use crate::plan::Algorithm;
use crate::sync::AtomicU32;
use crate::types::Rank;

/// The ticket of the one call that waits; all others have other tickets.
pub(crate) const BLOCKING: u32 = 0;

/// Carries out calls for one rank of one communicator.
pub(crate) trait Backend: Send + std::fmt::Debug {
    /// Takes a call; its end will be told under `ticket`, once, whatever happens.
    ///
    /// # Safety
    /// The call must be validated for this rank and world, and its buffers valid, and touched by
    /// nobody else, until its end has been told.
    unsafe fn submit(&mut self, call: Call, ticket: u32);

    /// Takes a call that stands first in line, if it is one to hurry, and looks for its end up to
    /// `polls` times. What is known of the call is kept for its next time.
    ///
    /// # Safety
    /// As for [`Backend::submit`], if it is taken.
    unsafe fn hurry(&mut self, call: (&Call, &mut Known), ticket: u32, polls: u32) -> Hurried;

    /// Moves whatever can move.
    fn poll(&mut self) -> Progress;

    /// The next request that has ended, with its result.
    fn take_ended(&mut self) -> Option<(u32, Result<()>)>;

    /// A list of counts of an ended call, to be used again.
    fn take_spent(&mut self) -> Option<Ragged>;

    /// Until when no deadline may end anything: all ranks of a call have come, and are about to
    /// know that of each other. `None`: deadlines hold.
    fn overtime(&self) -> Option<Instant> {
        None
    }

    /// The only thread that may drive this, where there is one.
    fn only_thread(&self) -> Option<ThreadId> {
        None
    }

    /// Whether buffers are nobody's but their owner's once a call has failed.
    fn lets_go(&self) -> bool {
        true
    }

    /// Counts the calls under way that have ended for their callers, who wait in a stream of CUDA's
    /// at most: while there are any, somebody has to drive. `None`: there never are.
    fn unattended(&self) -> Option<Arc<AtomicU32>> {
        None
    }

    /// Whether the deadline of such a call has passed.
    fn is_overdue(&self, _: Instant) -> bool {
        false
    }

    /// Looks after the peers: who has died, aborted or failed. Called now and then while waiting.
    fn watch(&mut self);

    /// When the peers were last looked after.
    fn watched(&self) -> Instant;

    /// Sleeps until something may have changed, at most `timeout`.
    fn doze(&mut self, timeout: Duration);

    /// What wakes [`Backend::doze`] from another thread.
    fn bell(&self) -> Arc<Doze>;

    /// Ends everything pending with `error`, and tells the peers. The first error stays.
    fn fail(&mut self, error: Error);

    /// The error that broke the backend.
    fn broken(&self) -> Option<&Error>;

    /// Ranks that something pending waits for.
    fn awaited(&mut self) -> Vec<Rank>;

    /// Where everything in flight stands, in one line.
    fn standing(&self) -> String;

    /// Number of the collective under way.
    fn present(&self) -> Option<u64>;

    /// Zeroed memory that local ranks can map.
    fn alloc(&mut self, bytes: usize) -> Result<*mut u8>;

    /// Gives memory back.
    fn free(&mut self, memory: *mut u8) -> Result<()>;

    /// Is told of memory that calls will use often: what it can gain by that it does now.
    ///
    /// # Safety
    /// The memory must stay until it is deregistered, or until this is closed.
    unsafe fn register(&mut self, _: *mut u8, _: usize) -> Result<()> {
        Ok(())
    }

    /// The memory that was registered from here on may go. No call uses it.
    fn deregister(&mut self, _: *mut u8) -> Result<()> {
        Ok(())
    }

    /// Prefers `algorithm` from the next call on. Nothing is pending.
    fn prefer(&mut self, algorithm: Option<Algorithm>);

    /// The algorithm of the last call that began since this was last asked; `None`: it needed none.
    fn take_chosen(&mut self) -> Option<Algorithm>;

    /// Compares the calls made with those of the peers that have said goodbye. Nothing is pending.
    ///
    /// # Errors
    /// `MISMATCH` names one that made others.
    fn compare_ends(&mut self) -> Result<()>;

    /// Says goodbye to the peers. No call comes afterwards.
    fn close(&mut self);

    /// Bytes of messages over RDMA that a processor has copied.
    #[cfg(test)]
    fn bytes_copied(&mut self) -> u64 {
        0
    }
}
