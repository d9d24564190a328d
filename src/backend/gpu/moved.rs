//! A collective that NCCL makes, in its stream.
//!
//! NCCL begins at once; that all ranks mean the same is found out beside it, on the side: in a gate
//! with the call's head, which costs the device nothing. Where they do not, the failure aborts
//! NCCL's communicator, and the stream goes on. A call is over when it has passed its gate and the
//! device has come to its end.
//!
//! A call is a few *rounds*: what the device does by itself, NCCL's part, and what the device does
//! with that. The calls of a group go through their rounds together, so what NCCL gets at once is
//! the same on all ranks. While it goes on with something by itself it takes nothing else.

use std::ffi::c_void;

use super::nccl::Nccl;
use super::steps::{At, Fold, Kind, Local, Message, Primitive, Round, Script};
use super::tools::{Events, Numbers, Tools, address};
use crate::backend::native::Native;
use crate::backend::pair::{expected, pairs, sent};
use crate::call::{Call, Head, Place};
use crate::cuda::{Event, StreamRef};
use crate::engine::wires::mismatch;
use crate::error::Result;
use crate::kernel::cuda::{DeviceConvert, DeviceFold, DeviceSource, FAN};
use crate::kernel::{Form, Stage};
use crate::nccl::{self, BuiltIn, Comm, Op, Progress, Type};
use crate::types::{Collective, Dtype, Rank, ReduceOp};

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
    /// The round that is to begin, or has begun.
    at: usize,
    /// What the round has for NCCL, NCCL has.
    entered: bool,
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
            gate: if nccl.terms.checks && tools.world > 1 { Gate::Before } else { Gate::Passed },
            says: Vec::new(),
            hears: Vec::new(),
            script: Script::of(call, nccl.rules(tools)),
            at: 0,
            entered: false,
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

    /// Begins the next round: puts what comes before NCCL's part into the stream. What comes after
    /// the part of the last one goes there first; false where there is no next round, and
    /// everything has its place.
    ///
    /// # Errors
    /// CUDA's own.
    pub(super) fn next_round(
        &mut self,
        call: &Call,
        nccl: &Nccl,
        (tools, events): (&Tools, &mut Events),
    ) -> Result<bool> {
        if self.entered {
            self.locals(call, tools, |round| &round.after)?;
            self.entered = false;
            self.at += 1;
        }
        if self.at == self.script.rounds.len() {
            self.settle(nccl, tools, events)?;
            return Ok(false);
        }
        if self.at == 0 && self.script.scratch > 0 {
            // SAFETY: used in this stream alone; `release` gives it back, in its order.
            self.scratch = Some(unsafe { self.stream.allocate(self.script.scratch)? });
        }
        self.locals(call, tools, |round| &round.before)?;
        Ok(true)
    }

    /// Everything is in the stream.
    fn settle(&mut self, nccl: &Nccl, tools: &Tools, events: &mut Events) -> Result<()> {
        if let Some(op) = self.op.take() {
            nccl.comm()?.free_op(op)?;
        }
        self.release()?;
        if !self.stream.is_capturing()? {
            self.done = Some(events.record(&self.stream, &tools.context)?);
        }
        self.issued = true;
        Ok(())
    }

    /// Gives scratch back, once the stream has passed what uses it.
    fn release(&mut self) -> Result<()> {
        match self.scratch.take() {
            // SAFETY: whatever uses it is before this in the stream.
            Some(scratch) => unsafe { self.stream.release(scratch) },
            None => Ok(()),
        }
    }

    /// The call has failed, and NCCL was aborted, with the operations it has made.
    pub(super) fn abandon(&mut self) {
        // What it says changes nothing.
        let _ = self.release();
    }

    /// How much NCCL gets in this round.
    fn parts(&self) -> usize {
        let round = self.script.rounds.get(self.at);
        round.map_or(0, |round| round.calls.len() + round.messages.len())
    }

    /// Gives NCCL its part of the round, in a group or alone.
    fn enter(&mut self, call: &Call, nccl: &Nccl) -> Result<Progress> {
        self.entered = true;
        let mut progress = Progress::Done;
        let Some(round) = self.script.rounds.get_mut(self.at) else { return Ok(progress) };
        let (calls, messages) =
            (std::mem::take(&mut round.calls), std::mem::take(&mut round.messages));
        let mut note =
            |one: Progress| progress = if one == Progress::Pending { one } else { progress };
        for one in &calls {
            note(self.primitive(one, call, nccl)?);
        }
        for one in &messages {
            note(self.message(one, nccl)?);
        }
        Ok(progress)
    }

    /// What this device does by itself, before NCCL's part or after.
    fn locals(&self, call: &Call, tools: &Tools, of: impl Fn(&Round) -> &Vec<Local>) -> Result<()> {
        let Some(round) = self.script.rounds.get(self.at) else { return Ok(()) };
        of(round).iter().try_for_each(|local| self.local(local, call, tools))
    }

    fn address(&self, at: At) -> usize {
        match at {
            At::Memory(at) => at,
            At::Scratch(at) => self.scratch.map_or(0, |scratch| address(scratch) + at),
        }
    }

    fn local(&self, local: &Local, call: &Call, tools: &Tools) -> Result<()> {
        match *local {
            Local::Fold(ref fold) => self.fold(fold, call, tools),
            Local::Prepare { from, to, count, stage } => {
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
                unsafe { tools.launch(&launch, &self.stream) }
            }
            Local::Copy { from, to, bytes } => {
                let (source, target) = (self.address(from) as u64, self.address(to) as u64);
                // SAFETY: as above.
                unsafe { self.stream.copy(target, source, bytes) }
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
        // SAFETY: as in `local`; one thread at a time drives a backend.
        unsafe { comm.call(&call, self.of_nccl()) }
    }

    fn message(&self, one: &Message, nccl: &Nccl) -> Result<Progress> {
        let at = self.address(one.at) as *mut c_void;
        let peer = one.peer.0;
        let kind = if one.sends { nccl::Kind::Send(peer) } else { nccl::Kind::Recv(peer) };
        let call =
            nccl::Call { kind, send: at.cast_const(), recv: at, count: one.bytes, of: Type::U8 };
        // SAFETY: as above.
        unsafe { nccl.comm()?.call(&call, self.of_nccl()) }
    }

    fn of_nccl(&self) -> nccl::Stream {
        nccl::Stream(self.stream.raw())
    }

    fn fold(&self, fold: &Fold, call: &Call, tools: &Tools) -> Result<()> {
        // No more than a fold takes: see `makes`.
        let count = Rank(fold.sources).index().min(FAN);
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
        // SAFETY: as in `local`.
        unsafe { tools.launch(&launch, &self.stream) }
    }
}

/// Gives NCCL what `members` have for it in their rounds, all of it together.
///
/// # Errors
/// NCCL's own.
pub(super) fn enter(nccl: &Nccl, members: &mut [(&Call, &mut Moved)]) -> Result<Progress> {
    let parts: usize = members.iter().map(|(_, moved)| moved.parts()).sum();
    let mut all = || {
        let mut progress = Progress::Done;
        for (call, moved) in &mut *members {
            let one = moved.enter(call, nccl)?;
            progress = if one == Progress::Pending { one } else { progress };
        }
        Ok(progress)
    };
    match parts {
        0 | 1 => all(),
        _ => nccl.library.group(all).map(|(_, progress)| progress),
    }
}
