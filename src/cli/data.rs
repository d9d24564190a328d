//! Data with a known result, and calls laid out in guarded memory.
//!
//! [`pattern`] makes inputs that are a pure function of (seed, rank, element, type, operation) and
//! the results they must give. [`shape`] says which elements of which buffer a call reads and
//! writes. [`memory`] holds buffers between guard bytes. [`Case`] puts the three together: fill,
//! run, compare every byte, those that must not change included.

pub(crate) mod memory;
pub(crate) mod pattern;
pub(crate) mod shape;
pub(crate) mod value;

use unisono::comm::{Args, DeviceStream, Operation};
use unisono::{Collective, Communicator, Request, Result};

use memory::{Buffer, Source};
use pattern::{Flavor, Patterns};
use shape::{Kind, Layout, Shape};

/// One call of one rank: its buffers, filled and to be compared.
#[derive(Debug)]
pub(crate) struct Case {
    shape: Shape,
    layout: Layout,
    flavor: Flavor,
    /// Where in the patterns this call's data begins: no two calls move the same bytes.
    phase: usize,
    factor: Operation,
    send: Option<Buffer>,
    recv: Buffer,
}

impl Case {
    /// Lays the call out in memory of `source`.
    ///
    /// # Errors
    /// No memory.
    pub(crate) fn new(
        shape: &Shape,
        comm: &Communicator,
        flavor: Flavor,
        source: Source,
    ) -> Result<Self> {
        let layout = Layout::new(shape, comm.rank().index(), comm.world_size() as usize);
        let buffer = |elements| Buffer::new(comm, source, elements, shape.dtype, shape.skew);
        // In place the receive buffer is the one that holds both.
        let send = if shape.in_place { None } else { Some(buffer(layout.send_elements)?) };
        let recv = buffer(layout.recv_elements)?;
        let factor = value::factor(shape.dtype, comm.rank().index());
        let factor = Operation { op: shape.op, scalar: factor };
        Ok(Self { shape: shape.clone(), layout, flavor, phase: 0, factor, send, recv })
    }

    /// Fills the inputs and poisons everything else.
    ///
    /// # Errors
    /// CUDA's own.
    pub(crate) fn fill(&mut self, patterns: &mut Patterns, phase: usize) -> Result<()> {
        self.phase = phase;
        let (shape, flavor) = (&self.shape, self.flavor);
        if let Some(send) = &mut self.send {
            send.fill(&self.layout.send_before, patterns, shape, flavor, phase)?;
        }
        self.recv.fill(&self.layout.recv_before, patterns, shape, flavor, phase)
    }

    /// Elements that are not what they must be; guard bytes count as elements.
    ///
    /// # Errors
    /// CUDA's own.
    pub(crate) fn wrong(&self, patterns: &mut Patterns) -> Result<u64> {
        let (shape, flavor, phase) = (&self.shape, self.flavor, self.phase);
        let mut wrong = 0;
        if let Some(send) = &self.send {
            wrong += send.wrong(&self.layout.send_before, patterns, shape, flavor, phase)?;
        }
        Ok(wrong + self.recv.wrong(&self.layout.recv_after, patterns, shape, flavor, phase)?)
    }

    fn args(&self, collective: Collective) -> Args<'_> {
        let layout = &self.layout;
        let recv = self.recv.element(0);
        let send = self.send.as_ref().map_or(recv, |send| send.element(0));
        let mut args = Args::new(collective, self.shape.dtype);
        args.operation = self.factor;
        args.root = i64::from(match (self.shape.kind, collective) {
            (kind, Collective::Send) if kind.point_to_point() => layout.next,
            (kind, _) if kind.point_to_point() => layout.previous,
            _ => self.shape.root,
        });
        args.count = layout.count;
        args.send = send.wrapping_add(layout.send_at * self.shape.dtype.bytes());
        args.recv = recv.wrapping_add(layout.recv_at * self.shape.dtype.bytes());
        args.send_counts = &layout.send_counts;
        args.send_displacements = layout.send_displacements.as_deref();
        args.recv_counts = &layout.recv_counts;
        args.recv_displacements = layout.recv_displacements.as_deref();
        args
    }

    /// What is called.
    pub(crate) fn kind(&self) -> Kind {
        self.shape.kind
    }

    /// The calls this rank makes.
    fn calls(&self, comm: &Communicator) -> &[Collective] {
        self.shape.kind.calls(comm.rank().index(), comm.world_size() as usize)
    }

    /// Makes the call and waits for its end.
    ///
    /// # Errors
    /// Whatever ended it.
    pub(crate) fn run(&mut self, comm: &Communicator) -> Result<()> {
        match self.shape.kind {
            Kind::Collective(collective) => {
                // SAFETY: the buffers are this case's own, borrowed until the call has ended.
                unsafe { comm.run_args(&self.args(collective)) }
            }
            Kind::SendRecv => {
                comm.group_start()?;
                let collected = self.collect(comm);
                let ended = comm.group_end();
                collected.and(ended)
            }
            Kind::PingPong => {
                // SAFETY: as above.
                let run = |one: &Collective| unsafe { comm.run_args(&self.args(*one)) };
                self.calls(comm).iter().try_for_each(run)
            }
        }
    }

    /// Makes the call in `stream`, which is empty, and waits until the stream has passed it.
    ///
    /// # Errors
    /// Whatever ended it.
    pub(crate) fn run_in(&mut self, comm: &Communicator, stream: &DeviceStream) -> Result<()> {
        // SAFETY: the stream outlives the communicator's use of it, which ends below.
        unsafe { comm.set_stream(Some(stream.raw()))? };
        stream.start()?;
        let made = self.run(comm);
        // Its buffers are the case's own again once the stream has passed it.
        let passed = stream.stop();
        // SAFETY: no stream is given.
        unsafe { comm.set_stream(None)? };
        made?;
        passed?;
        comm.broken().map_or(Ok(()), Err)
    }

    /// Adds the call to the open group.
    ///
    /// # Errors
    /// Usage errors.
    pub(crate) fn collect(&mut self, comm: &Communicator) -> Result<()> {
        for &collective in self.calls(comm) {
            let call = comm.prepare(&self.args(collective))?;
            // SAFETY: the buffers are this case's own, and its owner ends the group before it drops
            // or looks at the case.
            unsafe { comm.run(call) }?;
        }
        Ok(())
    }

    /// Starts the call; the case must outlive the requests.
    ///
    /// # Errors
    /// Usage errors, `LIMIT`.
    pub(crate) fn start(&mut self, comm: &Communicator) -> Result<Vec<Request>> {
        let mut requests = Vec::new();
        for &collective in self.calls(comm) {
            let call = comm.prepare(&self.args(collective))?;
            // SAFETY: the buffers are this case's own, and its owner waits for the requests before
            // it drops or looks at the case.
            requests.push(unsafe { comm.start(call) }?);
        }
        Ok(requests)
    }

    /// Gives registered memory back.
    ///
    /// # Errors
    /// It was not the communicator's.
    pub(crate) fn free(self, comm: &Communicator) -> Result<()> {
        if let Some(send) = self.send {
            send.free(comm)?;
        }
        self.recv.free(comm)
    }
}
