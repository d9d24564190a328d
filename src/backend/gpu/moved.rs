//! A collective that NCCL makes, in its stream.
//!
//! NCCL begins at once; that all ranks mean the same is found out beside it, on the side: in a gate
//! with the call's head, which costs the device nothing. Where they do not, the failure aborts
//! NCCL's communicator, and the stream goes on. A call is over when it has passed its gate and the
//! device has come to its end.
//!
//! NCCL is told of one step after the other: while it goes on with one by itself it takes no other.

use std::ffi::c_void;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::steps::{At, Fold, Kind, Message, Primitive, Rules, Script, Step};
use super::{Events, Numbers, Tools, address};
use crate::backend::native::Native;
use crate::backend::pair::{expected, pairs, sent};
use crate::call::{Call, Head, Place};
use crate::cuda::{Event, StreamRef};
use crate::engine::wires::mismatch;
use crate::error::{Code, Error, Result};
use crate::kernel::cuda::{DeviceConvert, DeviceFold, DeviceSource, FAN, Move, pack};
use crate::kernel::{Form, Stage};
use crate::nccl::{self, BuiltIn, Comm, Library, Op, Progress, Type};
use crate::types::{Collective, Dtype, Rank, ReduceOp};

/// How long NCCL may take to end a communicator in good order.
const FAREWELL: Duration = Duration::from_secs(1);

/// NCCL for one rank.
#[derive(Debug)]
pub(crate) struct Nccl {
    pub(crate) library: Arc<Library>,
    /// `None` once it is aborted.
    pub(crate) comm: Option<Comm>,
    pub(crate) deterministic: bool,
    /// Calls pass a gate.
    pub(crate) checks: bool,
}

impl Nccl {
    pub(crate) fn new(
        library: Arc<Library>,
        comm: Comm,
        deterministic: bool,
        checks: bool,
    ) -> Self {
        Self { library, comm: Some(comm), deterministic, checks }
    }

    /// Whether NCCL takes a call now.
    ///
    /// # Errors
    /// NCCL's own.
    pub(super) fn takes(&self) -> Result<bool> {
        Ok(self.comm()?.poll()? == Progress::Done)
    }

    fn comm(&self) -> Result<&Comm> {
        self.comm.as_ref().ok_or_else(|| Error::new(Code::Broken, "NCCL was aborted"))
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

    fn rules<'a>(&'a self, tools: &Tools) -> Rules<'a> {
        Rules {
            library: &self.library,
            me: tools.me,
            world: tools.world,
            deterministic: self.deterministic,
            capability: tools.capability,
        }
    }
}

/// Whether all ranks mean the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gate {
    Before,
    /// A native call, by its number.
    At(u32),
    Passed,
}

/// A call under way.
#[derive(Debug)]
pub(super) struct Moved {
    head: Head,
    gate: Gate,
    /// What this rank tells each other of its counts, and what it hears.
    says: Vec<u64>,
    hears: Vec<u64>,
    script: Script,
    at: usize,
    /// Its address, while it is to be released.
    scratch: Option<u64>,
    /// An operation made for this call.
    op: Option<Op>,
    stream: StreamRef,
    /// Set once all is in the stream; `None` in a graph.
    done: Option<Event>,
    issued: bool,
}

impl Moved {
    pub(super) fn new(call: &Call, head: Head, nccl: &Nccl, tools: &Tools) -> Self {
        let stream = match call.place {
            Place::Stream { handle, .. } => tools.stream(handle),
            Place::Host | Place::Device { .. } => StreamRef::clone(&tools.outward),
        };
        Self {
            head,
            gate: if nccl.checks && tools.world > 1 { Gate::Before } else { Gate::Passed },
            says: Vec::new(),
            hears: Vec::new(),
            script: Script::of(call, nccl.rules(tools)),
            at: 0,
            scratch: None,
            op: None,
            stream,
            done: None,
            issued: false,
        }
    }

    /// Whether everything has its place in the stream.
    pub(super) fn is_issued(&self) -> bool {
        self.issued
    }

    pub(super) fn has_sent(&self) -> bool {
        self.gate != Gate::Before
    }

    pub(super) fn is_on_device(&self) -> bool {
        !self.issued || self.done.is_some()
    }

    /// Whether it is over: passed, issued and, as far as that can be seen, done.
    ///
    /// # Errors
    /// CUDA's own.
    pub(super) fn is_over(&mut self, events: &mut Events) -> Result<bool> {
        if self.issued
            && let Some(done) = &self.done
            && done.query()?
        {
            events.put_back(self.done.take());
        }
        Ok(self.issued && self.done.is_none() && self.gate == Gate::Passed)
    }

    /// A native call of this one has ended; whether it was one.
    ///
    /// # Errors
    /// `MISMATCH` where a count is not what this rank expects.
    pub(super) fn ended(&mut self, number: u32, call: &Call, me: Rank) -> Result<bool> {
        if self.gate != Gate::At(number) {
            return Ok(false);
        }
        self.gate = Gate::Passed;
        if pairs(call) {
            for (peer, &told) in self.hears.iter().enumerate() {
                let expected = expected(call, me.index(), peer);
                if told != expected {
                    let of = |count: u64| Head { count, ..self.head };
                    return Err(mismatch(me.index(), &of(expected), peer, &of(told)));
                }
            }
        }
        Ok(true)
    }

    /// Sends this rank to the gate.
    pub(super) fn meet(
        &mut self,
        call: &Call,
        side: &mut Native,
        tools: &Tools,
        numbers: &mut Numbers,
    ) {
        let world = Rank(tools.world).index();
        let gate = if pairs(call) {
            self.says.extend((0..world).map(|peer| sent(call, tools.me.index(), peer)));
            self.hears.resize(world, 0);
            let mut gate = Call::new(Collective::AllToAll, Dtype::U64);
            gate.count = 1;
            (gate.send, gate.recv) = (self.says.as_ptr().cast(), self.hears.as_mut_ptr().cast());
            gate
        } else {
            Call::new(Collective::Barrier, Dtype::U8)
        };
        // SAFETY: the words are this call's, which stays until its gate has ended, or until the
        // side is broken and touches nothing any more.
        self.gate = Gate::At(unsafe { numbers.pass(gate, self.head, side) });
    }

    /// Gives NCCL what it takes; whether anything moved.
    ///
    /// # Errors
    /// NCCL's and CUDA's own.
    pub(super) fn issue(
        &mut self,
        call: &Call,
        nccl: &mut Nccl,
        (tools, events): (&Tools, &mut Events),
    ) -> Result<bool> {
        if self.issued || !nccl.takes()? {
            return Ok(false);
        }
        if self.begin(call, nccl, tools)? == Progress::Pending {
            return Ok(true);
        }
        if let Some(op) = self.op.take() {
            nccl.comm()?.free_op(op)?;
        }
        if let Some(scratch) = self.scratch.take() {
            // SAFETY: whatever uses it is before this in the stream.
            unsafe { self.stream.release(scratch)? };
        }
        if !self.stream.is_capturing()? {
            self.done = Some(events.record(&self.stream, &tools.context)?);
        }
        self.issued = true;
        Ok(true)
    }

    /// Whether it is nothing but a call of NCCL's.
    pub(super) fn is_one_call(&self) -> bool {
        let kernel = |step: &Step| !matches!(step, Step::Nccl(_) | Step::Messages(_));
        self.script.steps.len() <= 1 && !self.script.steps.iter().any(kernel)
    }

    /// Puts steps into the stream until NCCL goes on by itself.
    ///
    /// # Errors
    /// NCCL's and CUDA's own.
    pub(super) fn begin(
        &mut self,
        call: &Call,
        nccl: &mut Nccl,
        tools: &Tools,
    ) -> Result<Progress> {
        if self.at == 0 && self.script.scratch > 0 {
            // SAFETY: used in this stream alone, and released where all is issued.
            self.scratch = Some(unsafe { self.stream.allocate(self.script.scratch)? });
        }
        while self.at < self.script.steps.len() {
            let step = self.script.steps[self.at].clone();
            self.at += 1;
            if self.step(&step, call, nccl, tools)? == Progress::Pending {
                return Ok(Progress::Pending);
            }
        }
        Ok(Progress::Done)
    }

    fn address(&self, at: At) -> usize {
        match at {
            At::Memory(at) => at,
            At::Scratch(at) => self.scratch.map_or(0, |scratch| address(scratch) + at),
        }
    }

    fn step(
        &mut self,
        step: &Step,
        call: &Call,
        nccl: &mut Nccl,
        tools: &Tools,
    ) -> Result<Progress> {
        match step {
            Step::Nccl(one) => self.primitive(one, call, nccl),
            Step::Reduces(many) => {
                let library = nccl.library.clone();
                let all =
                    || many.iter().try_for_each(|one| self.primitive(one, call, nccl).map(drop));
                library.group(all).map(|((), progress)| progress)
            }
            Step::Messages(many) if many.is_empty() => Ok(Progress::Done),
            Step::Messages(many) => {
                let all = || many.iter().try_for_each(|one| self.message(one, nccl));
                nccl.library.group(all).map(|((), progress)| progress)
            }
            Step::Fold(fold) => self.fold(fold, call, tools),
            &Step::Prepare { from, to, count, stage } => {
                let launch = DeviceConvert {
                    dtype: call.dtype,
                    op: call.op,
                    source: DeviceSource { at: self.address(from) as u64, form: Form::Native },
                    target: self.address(to) as u64,
                    target_form: Form::Wide,
                    count,
                    stage,
                }
                .launch(tools.processors)?;
                // SAFETY: the call's maker has promised its buffers; scratch stays until the stream
                // has passed its release.
                unsafe { tools.launch(&launch, &self.stream)? };
                Ok(Progress::Done)
            }
            &Step::Copy { from, to, bytes } => {
                if bytes > 0 {
                    let (source, target) = (self.address(from) as u64, self.address(to) as u64);
                    let one = Move { source, target, bytes: bytes as u64 };
                    let launch = pack(&[one], tools.processors)?;
                    // SAFETY: as above.
                    unsafe { tools.launch(&launch, &self.stream)? };
                }
                Ok(Progress::Done)
            }
        }
    }

    fn op(&mut self, one: &Primitive, call: &Call, comm: &Comm) -> Result<Op> {
        if let Some(built_in) = BuiltIn::of(one.op) {
            return Ok(built_in.into());
        }
        debug_assert_eq!(one.op, ReduceOp::PreMulSum);
        if let Some(made) = self.op {
            return Ok(made);
        }
        let mut scalar = [0; 8];
        scalar.copy_from_slice(&call.scalar.0[..8]);
        let made = comm.make_op(one.unit, &scalar)?;
        self.op = Some(made);
        Ok(made)
    }

    fn primitive(&mut self, one: &Primitive, call: &Call, nccl: &Nccl) -> Result<Progress> {
        let comm = nccl.comm()?;
        let op = self.op(one, call, comm)?;
        let root = one.root.0;
        let kind = match one.kind {
            Kind::AllReduce => nccl::Kind::AllReduce(op),
            Kind::Reduce => nccl::Kind::Reduce(op, root),
            Kind::Broadcast => nccl::Kind::Broadcast(root),
            Kind::AllGather => nccl::Kind::AllGather,
            Kind::ReduceScatter => nccl::Kind::ReduceScatter(op),
            Kind::AllToAll => nccl::Kind::AllToAll,
            Kind::Gather => nccl::Kind::Gather(root),
            Kind::Scatter => nccl::Kind::Scatter(root),
        };
        let send = self.address(one.send) as *const c_void;
        let recv = self.address(one.recv) as *mut c_void;
        let call = nccl::Call { kind, send, recv, count: one.count, of: one.unit };
        // SAFETY: as in `step`; one thread at a time drives a backend.
        unsafe { comm.call(&call, self.of_nccl()) }
    }

    fn message(&self, one: &Message, nccl: &Nccl) -> Result<()> {
        let at = self.address(one.at) as *mut c_void;
        let peer = one.peer.0;
        let kind = if one.sends { nccl::Kind::Send(peer) } else { nccl::Kind::Recv(peer) };
        let call =
            nccl::Call { kind, send: at.cast_const(), recv: at, count: one.bytes, of: Type::U8 };
        // SAFETY: as above. In a group nothing is pending before its end.
        unsafe { nccl.comm()?.call(&call, self.of_nccl()).map(drop) }
    }

    fn of_nccl(&self) -> nccl::Stream {
        nccl::Stream(self.stream.raw())
    }

    fn fold(&self, fold: &Fold, call: &Call, tools: &Tools) -> Result<Progress> {
        let count = Rank(fold.sources).index();
        if count > FAN {
            let text = format!(
                "{} on {} by NCCL among {count} ranks: NCCL has no such reduction, and ours takes at \
                 most {FAN}; use --backend native",
                call.op, call.dtype
            );
            return Err(Error::new(Code::Unsupported, text));
        }
        let from = self.address(fold.from);
        let source = |index: usize| DeviceSource {
            at: (from + index * fold.stride) as u64,
            form: fold.form,
        };
        let sources: [DeviceSource; FAN] = std::array::from_fn(source);
        let launch = DeviceFold {
            dtype: call.dtype,
            op: call.op,
            sources: &sources[..count],
            factors: None,
            targets: &[self.address(fold.to) as u64],
            target_form: Form::Native,
            count: fold.count,
            stage: Stage::Finish { ranks: tools.world },
        }
        .launch(tools.processors)?;
        // SAFETY: as in `step`.
        unsafe { tools.launch(&launch, &self.stream)? };
        Ok(Progress::Done)
    }
}
