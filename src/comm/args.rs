//! Every collective by its raw arguments: what the C ABI, and programs that choose types at run
//! time, call with.

use crate::call::Call;
use crate::comm::call::{Buffers, Operation};
use crate::comm::{Communicator, Key};
use crate::error::Result;
use crate::types::{Collective, Dtype, Rank, ReduceOp};

/// The arguments of a call. Fields a collective does not use are not looked at.
#[derive(Clone, Copy, Debug)]
pub struct Args<'a> {
    /// What to do.
    pub collective: Collective,
    /// Element type.
    pub dtype: Dtype,
    /// Operation of reductions.
    pub operation: Operation,
    /// Root of rooted collectives, peer of send and recv.
    pub root: i64,
    /// First element to send.
    pub send: *const u8,
    /// First element received.
    pub recv: *mut u8,
    /// Elements: of the buffer (all_reduce, reduce, broadcast, send, recv), of one block
    /// (all_gather, reduce_scatter, gather, scatter, all_to_all), of the own block (gather_v,
    /// scatter_v).
    pub count: u64,
    /// all_to_all_v, scatter_v at the root: elements for each rank.
    pub send_counts: &'a [u64],
    /// Where each begins; `None`: one after the other.
    pub send_displacements: Option<&'a [u64]>,
    /// all_gather_v, reduce_scatter_v, all_to_all_v, gather_v at the root: elements of each rank's
    /// block.
    pub recv_counts: &'a [u64],
    /// Where each begins; `None`: one after the other. Not used by reduce_scatter_v.
    pub recv_displacements: Option<&'a [u64]>,
}

impl Args<'_> {
    /// Nothing sent, nothing received.
    #[must_use]
    pub fn new(collective: Collective, dtype: Dtype) -> Self {
        Self {
            collective,
            dtype,
            operation: ReduceOp::Sum.into(),
            root: 0,
            send: std::ptr::null(),
            recv: std::ptr::null_mut(),
            count: 0,
            send_counts: &[],
            send_displacements: None,
            recv_counts: &[],
            recv_displacements: None,
        }
    }

    /// What tells this call from others, if it has neither lists of counts nor a factor.
    fn key(&self) -> Option<Key> {
        let key = Key {
            send: self.send,
            recv: self.recv,
            count: self.count,
            root: self.root,
            dtype: self.dtype.number().into(),
            op: self.operation.op.number().into(),
            collective: self.collective,
        };
        key.of_plain().filter(|_| self.operation.op != ReduceOp::PreMulSum)
    }
}

impl Communicator {
    /// Makes the call that `args` describe, and waits for its end. Inside a group it is only
    /// collected.
    ///
    /// # Safety
    /// As for [`Communicator::run`].
    ///
    /// # Errors
    /// Those of [`Communicator::prepare`], and whatever ended the call.
    pub unsafe fn run_args(&self, args: &Args<'_>) -> Result<()> {
        match args.key() {
            // SAFETY: passed on.
            Some(key) => unsafe { self.run_again(key, || self.prepare(args)) },
            // SAFETY: passed on.
            None => unsafe { self.run(self.prepare(args)?) },
        }
    }

    /// The call that `args` describe, checked; hand it to [`Communicator::run`] or
    /// [`Communicator::start`].
    ///
    /// # Errors
    /// A usage error (100 to 112) that names the argument and its value.
    pub fn prepare(&self, args: &Args<'_>) -> Result<Call> {
        use Collective as C;
        let seat = self.seat();
        let kind = args.collective;
        let buffers = Buffers { send: args.send, recv: args.recv, dtype: args.dtype };
        let root = match kind {
            C::Send | C::Recv => seat.peer(args.root, "peer")?,
            _ if kind.rooted() => seat.peer(args.root, "root")?,
            _ => Rank(0),
        };
        let sent = (args.send_counts, args.send_displacements);
        let received = (args.recv_counts, args.recv_displacements);
        let mut call = match kind {
            C::AllReduce | C::Reduce | C::Broadcast => {
                seat.whole(kind, buffers, args.count, args.operation, root)
            }
            C::AllGather | C::ReduceScatter | C::Gather | C::Scatter | C::AllToAll => {
                seat.blocks(kind, buffers, args.count, args.operation, root)
            }
            C::AllGatherV => {
                seat.all_gather_v(&mut self.spare_blocks(), buffers, received.0, received.1)
            }
            C::ReduceScatterV => {
                seat.reduce_scatter_v(&mut self.spare_blocks(), buffers, received.0, args.operation)
            }
            C::GatherV => seat.gather_v(
                &mut self.spare_blocks(),
                buffers,
                args.count,
                received.0,
                received.1,
                root,
            ),
            C::ScatterV => {
                seat.scatter_v(&mut self.spare_blocks(), buffers, args.count, sent.0, sent.1, root)
            }
            C::AllToAllV => seat.all_to_all_v(&mut self.spare_blocks(), buffers, sent, received),
            C::Barrier => Ok(seat.barrier()),
            C::Send | C::Recv => seat.message(kind, buffers, args.count, root),
        }?;
        if let Some(gpu) = self.gpu() {
            call.place = gpu.place(&call, seat)?;
        }
        Ok(call)
    }
}
