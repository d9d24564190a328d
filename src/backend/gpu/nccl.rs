//! NCCL for one rank: what it is given, what it knows, how it ends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::steps::Rules;
use super::tools::Tools;
use crate::call::Call;
use crate::error::{Code, Error, Result};
use crate::kernel::cuda::FAN;
use crate::nccl::{Comm, Feature, Library, Progress, Registration};
use crate::types::Rank;

/// How long NCCL may take to end a communicator in good order.
const FAREWELL: Duration = Duration::from_secs(5);

/// NCCL for one rank.
#[derive(Debug)]
pub(crate) struct Nccl {
    pub(super) library: Arc<Library>,
    /// `None` once it is aborted.
    comm: Option<Comm>,
    pub(super) terms: NcclTerms,
    /// By its first address.
    registered: Vec<(usize, Registration)>,
}

/// What all ranks have agreed on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NcclTerms {
    pub(crate) deterministic: bool,
    /// Calls pass a gate.
    pub(crate) checks: bool,
    /// The least compute capability of the ranks' GPUs.
    pub(crate) capability: (u32, u32),
    /// Every rank has kernels.
    pub(crate) folds: bool,
}

impl Nccl {
    pub(crate) fn new(library: Arc<Library>, comm: Comm, terms: NcclTerms) -> Self {
        Self { library, comm: Some(comm), terms, registered: Vec::new() }
    }

    /// Whether NCCL makes `call`, with folds of ours or without; all ranks say the same.
    pub(super) fn makes(&self, call: &Call, tools: &Tools) -> bool {
        // Messages it takes in the order of calls alone: who sends first, and then receives, would
        // wait for ever. On the side they go beside each other and beside collectives.
        let composed = call.collective.reduces() && self.rules(tools).unit(call).is_none();
        let may_fold = self.terms.folds && Rank(tools.world).index() <= FAN;
        !call.collective.point_to_point() && (may_fold || !composed)
    }

    /// Whether NCCL takes a call now.
    ///
    /// # Errors
    /// NCCL's own.
    pub(super) fn takes(&self) -> Result<bool> {
        Ok(self.comm()?.poll()? == Progress::Done)
    }

    pub(super) fn comm(&self) -> Result<&Comm> {
        self.comm.as_ref().ok_or_else(|| Error::new(Code::Broken, "NCCL was aborted"))
    }

    /// Registers memory of the device, where NCCL can.
    ///
    /// # Safety
    /// It must stay until it is deregistered, or until this is closed.
    ///
    /// # Errors
    /// NCCL's own.
    pub(super) unsafe fn register(&mut self, memory: *mut u8, bytes: usize) -> Result<()> {
        if !self.library.has(Feature::Register) {
            return Ok(());
        }
        self.settle()?;
        // SAFETY: the caller's promise.
        let made = unsafe { self.comm()?.register(memory.cast(), bytes)? };
        self.registered.push((memory.addr(), made));
        Ok(())
    }

    /// Forgets memory again, if it is registered.
    ///
    /// # Errors
    /// NCCL's own.
    pub(super) fn deregister(&mut self, memory: *mut u8) -> Result<()> {
        let found = self.registered.iter().position(|(at, _)| *at == memory.addr());
        let Some(index) = found else { return Ok(()) };
        self.settle()?;
        let (_, registration) = self.registered.swap_remove(index);
        self.comm()?.deregister(registration)
    }

    /// Waits until NCCL takes a call: it may still go on with the last one.
    fn settle(&self) -> Result<()> {
        let until = Instant::now() + FAREWELL;
        // BOUND: the farewell.
        while !self.takes()? {
            if Instant::now() >= until {
                return Err(Error::new(Code::Backend, "NCCL is still busy with an earlier call"));
            }
            std::thread::sleep(Duration::from_micros(50));
        }
        Ok(())
    }

    /// What NCCL says that went wrong meanwhile.
    ///
    /// # Errors
    /// NCCL's own.
    pub(super) fn watch(&self) -> Result<()> {
        self.comm.as_ref().map_or(Ok(()), |comm| comm.poll().map(drop))
    }

    /// Ends everything of this rank's, now.
    pub(super) fn abort(&mut self) {
        // What it says changes nothing.
        let _ = self.comm.take().map(Comm::abort);
    }

    /// Ends NCCL's communicator, on which nothing is under way: in good order if the other ranks do
    /// so too in a moment, else at once.
    pub(super) fn close(&mut self) {
        let Some(comm) = self.comm.take() else { return };
        let until = Instant::now() + FAREWELL;
        for (_, registration) in self.registered.drain(..) {
            // What it says changes nothing.
            let _ = comm.deregister(registration);
        }
        let mut ended = comm.finalize();
        // BOUND: the farewell.
        while matches!(ended, Ok(Progress::Pending)) && Instant::now() < until {
            std::thread::sleep(Duration::from_micros(200));
            ended = comm.poll();
        }
        // What either says changes nothing.
        let _ = match ended {
            Ok(Progress::Done) => comm.destroy(),
            _ => comm.abort(),
        };
    }

    pub(super) fn rules<'a>(&'a self, tools: &Tools) -> Rules<'a> {
        Rules {
            library: &self.library,
            me: tools.me,
            world: tools.world,
            deterministic: self.terms.deterministic,
            capability: self.terms.capability,
        }
    }
}
