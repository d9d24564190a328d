//! The calls that move and reduce data, as NCCL has them: enqueued on a stream, done later.

use std::ffi::c_void;

use super::settings::number;
use super::version::{BuiltIn, Type};
use super::{Comm, Feature, Progress, Stream};
use crate::error::Result;

/// Where a scalar is: in host memory, read by the call.
const HOST_IMMEDIATE: u32 = 1;

/// An operation: NCCL's own, or one made for a communicator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Op(u32);

impl From<BuiltIn> for Op {
    fn from(op: BuiltIn) -> Self {
        Self(op.number())
    }
}

impl Op {
    const fn number(self) -> u32 {
        self.0
    }
}

/// What one call of NCCL does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// With the operation.
    AllReduce(Op),
    /// With the operation, to the root.
    Reduce(Op, u32),
    /// From the root.
    Broadcast(u32),
    AllGather,
    /// With the operation.
    ReduceScatter(Op),
    /// [`Feature::Blocks`].
    AllToAll,
    /// To the root. [`Feature::Blocks`].
    Gather(u32),
    /// From the root. [`Feature::Blocks`].
    Scatter(u32),
    /// To the rank.
    Send(u32),
    /// From the rank.
    Recv(u32),
}

impl Kind {
    /// NCCL's name, for errors.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::AllReduce(_) => "ncclAllReduce",
            Self::Reduce(..) => "ncclReduce",
            Self::Broadcast(_) => "ncclBroadcast",
            Self::AllGather => "ncclAllGather",
            Self::ReduceScatter(_) => "ncclReduceScatter",
            Self::AllToAll => "ncclAlltoAll",
            Self::Gather(_) => "ncclGather",
            Self::Scatter(_) => "ncclScatter",
            Self::Send(_) => "ncclSend",
            Self::Recv(_) => "ncclRecv",
        }
    }
}

/// One call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    pub(crate) kind: Kind,
    /// What this rank gives; of a receive, nothing.
    pub(crate) send: *const c_void,
    /// Where this rank gets; of a send, nothing.
    pub(crate) recv: *mut c_void,
    /// Elements: of the whole, or of one block where ranks have blocks.
    pub(crate) count: usize,
    pub(crate) of: Type,
}

impl Comm {
    /// Enqueues a call on a stream. It has begun when the communicator, or the group it is in, is
    /// done; it is carried out when the stream comes to it and all other ranks have made theirs.
    ///
    /// # Safety
    /// The stream is of the communicator's device. Buffers are valid there, for what the call says,
    /// until the stream has passed it. No other thread is in a call of this communicator.
    ///
    /// # Errors
    /// `UNSUPPORTED` where this version has no such call, else NCCL's own. NCCL keeps those, of
    /// arguments too: the communicator is good for [`Comm::abort`] only.
    pub(crate) unsafe fn call(&self, call: &Call, stream: Stream) -> Result<Progress> {
        if matches!(call.kind, Kind::AllToAll | Kind::Gather(_) | Kind::Scatter(_)) {
            self.library.need(Feature::Blocks)?;
        }
        let (comm, api) = (self.handle()?, &self.library.api);
        let &Call { kind, send, recv, count, of } = call;
        let (of, stream) = (of.number(), stream.0.cast());
        // SAFETY: a live handle; the rest as the caller promises.
        let result = unsafe {
            match kind {
                Kind::AllReduce(op) => {
                    api.all_reduce(send, recv, count, of, op.number(), comm, stream)
                }
                Kind::Reduce(op, root) => {
                    let root = number(root);
                    api.reduce(send, recv, count, of, op.number(), root, comm, stream)
                }
                Kind::Broadcast(root) => {
                    api.broadcast(send, recv, count, of, number(root), comm, stream)
                }
                Kind::AllGather => api.all_gather(send, recv, count, of, comm, stream),
                Kind::ReduceScatter(op) => {
                    api.reduce_scatter(send, recv, count, of, op.number(), comm, stream)
                }
                Kind::AllToAll => api.all_to_all(send, recv, count, of, comm, stream),
                Kind::Gather(root) => api.gather(send, recv, count, of, number(root), comm, stream),
                Kind::Scatter(root) => {
                    api.scatter(send, recv, count, of, number(root), comm, stream)
                }
                Kind::Send(peer) => api.send(send, count, of, number(peer), comm, stream),
                Kind::Recv(peer) => api.recv(recv, count, of, number(peer), comm, stream),
            }
        };
        self.library.check(result, kind.name())
    }

    /// The operation that multiplies this rank's elements of `kind` by `scalar`, one of them, and
    /// adds them up.
    ///
    /// # Errors
    /// NCCL's own.
    pub(crate) fn make_op(&self, kind: Type, scalar: &[u8; 8]) -> Result<Op> {
        let (comm, mut op) = (self.handle()?, 0);
        let mut scalar = scalar.to_owned();
        let at = scalar.as_mut_ptr().cast();
        // SAFETY: a live handle and locals; no type is larger, and the scalar is read by the call.
        let made = unsafe {
            self.library.api.op_create(&raw mut op, at, kind.number(), HOST_IMMEDIATE, comm)
        };
        self.library.done(made, "ncclRedOpCreatePreMulSum")?;
        Ok(Op(op))
    }

    /// Gives an operation back; calls that were issued with it are not touched.
    ///
    /// # Errors
    /// NCCL's own: it is a built-in one, say.
    pub(crate) fn free_op(&self, op: Op) -> Result<()> {
        let comm = self.handle()?;
        // SAFETY: a live handle; NCCL knows its operations.
        let result = unsafe { self.library.api.op_destroy(op.number(), comm) };
        self.library.done(result, "ncclRedOpDestroy")
    }
}
