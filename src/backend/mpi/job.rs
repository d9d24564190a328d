//! One call under way: first its gate, then its script.
//!
//! ```text
//! Waiting -> Gate (-> Gate) -> Ready -> (steps) -> over        where calls are compared
//!                              Ready -> (steps) -> over        where they are not
//!            Gate -> Doomed                                    counts between two ranks differ
//! ```

use std::ffi::c_int;
use std::sync::Arc;
use std::time::Instant;

use crate::backend::mpi::cells::Cells;
use crate::backend::mpi::script::{Move, Rules, Script, Step};
use crate::call::Call;
use crate::error::{Code, Error, Result};
use crate::kernel::{Convert, Fold, Kernels, Source, Stage};
use crate::mpi::{Handle, Kind, Library, Primitive, Tested};
use crate::types::Rank;

/// How far a call has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Calls before it have not passed their gates.
    Waiting,
    /// Every rank's call is compared with the others'.
    Gate,
    /// Counts between some ranks differ; who sees which, tells.
    Doomed,
    /// MPI may begin. With `waits` in calls that wait, as on every rank.
    Ready { waits: bool },
}

/// A call under way.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) call: Option<Call>,
    /// The caller's name for it.
    pub(super) ticket: u32,
    /// Our name for its gate.
    pub(super) number: u32,
    /// Its number among the collectives.
    pub(super) seq: u64,
    pub(super) state: State,
    /// The call came by a form that may not wait.
    pub(super) later: bool,
    /// Its gate's cells are the backend's own.
    pub(super) hurried: bool,
    /// Its counts are more than MPI takes at once: all ranks use messages.
    pub(super) divided: bool,
    /// Its second gate is under way; until then no deadline ends it.
    pub(super) overtime: Option<Instant>,
    /// What the gate exchanges.
    pub(super) cells: Cells,
    script: Script,
    /// The next step.
    at: usize,
    requests: Vec<Pending>,
}

/// A request of MPI's.
#[derive(Clone, Copy, Debug)]
struct Pending {
    request: Handle,
    kind: Kind,
    /// Elements that a receive expects, and their type.
    count: u64,
    unit: Handle,
    peer: c_int,
}

/// What a script runs on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ground<'a> {
    pub(super) library: &'a Arc<Library>,
    pub(super) comm: Handle,
}

impl Job {
    pub(super) fn new(world: usize) -> Self {
        Self {
            call: None,
            ticket: 0,
            number: 0,
            seq: 0,
            state: State::Gate,
            later: false,
            hurried: false,
            divided: false,
            overtime: None,
            cells: Cells::new(world),
            script: Script::default(),
            at: 0,
            requests: Vec::new(),
        }
    }

    /// Takes on `call`.
    pub(super) fn begin(&mut self, call: &Call, rules: Rules<'_>) -> Result<()> {
        (self.state, self.overtime) = (State::Gate, None);
        self.restart();
        self.script.write(call, rules)
    }

    /// Takes on the call before once more.
    pub(super) fn restart(&mut self) {
        self.at = 0;
        self.requests.clear();
    }

    /// Whether MPI has begun everything it will do for this call.
    pub(super) fn has_begun(&self) -> bool {
        self.at == self.script.steps.len()
    }

    /// Whether the call is over.
    pub(super) fn is_over(&self) -> bool {
        self.has_begun() && self.requests.is_empty()
    }

    /// Whether MPI has something of this call under way.
    pub(super) fn pends(&self) -> bool {
        !self.requests.is_empty()
    }

    /// The rank that a message under way is waited for from, or by.
    pub(super) fn peer(&self) -> Option<Rank> {
        let messages = self.requests.iter().filter(|p| p.kind.is_message());
        messages.filter_map(|p| u32::try_from(p.peer).ok()).map(Rank).next()
    }

    /// Goes on as far as it can; whether it moved. With `waits`, collectives wait.
    pub(super) fn advance(&mut self, on: Ground<'_>, waits: bool) -> Result<bool> {
        let mut moved = false;
        loop {
            if !self.requests.is_empty() {
                moved |= self.test(on)?;
                if !self.requests.is_empty() {
                    return Ok(moved);
                }
            }
            match self.script.steps.get(self.at) {
                None => return Ok(moved),
                Some(Step::Mpi { .. }) => self.mpi(on, waits)?,
                // SAFETY: a step's addresses lie in the call's buffers, which its maker promised,
                // or in the script's scratch.
                Some(&local) => unsafe { self.local(local) },
            }
            moved = true;
        }
    }

    /// Carries out or begins MPI's part; of messages all that follow each other.
    fn mpi(&mut self, on: Ground<'_>, waits: bool) -> Result<()> {
        let api = on.library.api();
        let mut first = true;
        while let Some(Step::Mpi { call, lists }) = self.script.steps.get(self.at)
            && (first || call.kind.is_message())
        {
            let lists = self.script.lists(*lists);
            self.at += 1;
            if waits && !call.kind.is_message() {
                // SAFETY: as in `advance`; the call has ended when this returns.
                let code = unsafe { api.call(call, lists, on.comm, None) };
                return on.library.check(code, call.kind.name());
            }
            let mut request = Handle::NONE;
            // SAFETY: as in `advance`; lists and scratch stay until the request has ended, or for
            // good.
            let code = unsafe { api.call(call, lists, on.comm, Some(&mut request)) };
            on.library.check(code, call.kind.name())?;
            let &Primitive { kind, count, unit, root: peer, .. } = call;
            self.requests.push(Pending { request, kind, count, unit, peer });
            if !kind.is_message() {
                return Ok(());
            }
            first = false;
        }
        Ok(())
    }

    /// Asks MPI what has ended; whether anything has.
    fn test(&mut self, on: Ground<'_>) -> Result<bool> {
        let mut moved = false;
        let mut index = 0;
        while index < self.requests.len() {
            let pending = &mut self.requests[index];
            let unit = (pending.kind == Kind::Recv).then_some(pending.unit);
            let mut tested = Tested::default();
            let code = on.library.api().test(&mut pending.request, unit, &mut tested);
            on.library.check(code, pending.kind.name())?;
            if !tested.done {
                index += 1;
                continue;
            }
            moved = true;
            let Pending { count, peer, .. } = self.requests.swap_remove(index);
            if let Some(got) = tested.elements.filter(|got| *got != count) {
                let text = format!("a message of {got} elements came where {count} were expected");
                let peer = Rank(u32::try_from(peer).unwrap_or(0));
                return Err(Error::new(Code::Mismatch, text).with_peer(peer));
            }
        }
        Ok(moved)
    }

    /// Carries out a step of our own.
    ///
    /// # Safety
    /// The step's addresses must be valid for what it does.
    unsafe fn local(&mut self, step: Step) {
        self.at += 1;
        match step {
            // SAFETY: the caller's promise; steps are made so that buffers are apart, or the same.
            Step::Copy { from, to, bytes } => unsafe { std::ptr::copy(from, to, bytes) },
            Step::Convert(one, kernels, stage) => {
                // SAFETY: the caller's promise.
                unsafe { convert(one, kernels, stage) };
            }
            Step::Fold { one, kernels, stride, sources } => {
                let source = |index: usize| Source {
                    at: one.from.wrapping_add(index * stride),
                    form: one.form,
                };
                let sources: Vec<Source> = (0..sources).map(source).collect();
                let ranks = u32::try_from(sources.len()).unwrap_or(u32::MAX);
                let fold = Fold {
                    sources: &sources,
                    targets: &[one.to],
                    target_form: one.to_form,
                    count: one.count,
                    stage: Stage::Finish { ranks },
                    streaming: 0,
                };
                // SAFETY: the caller's promise.
                unsafe { (kernels.fold)(&fold) };
            }
            Step::Mpi { .. } => {}
        }
    }

    /// Ends what MPI has under way as far as it lets us. What cannot be ended keeps its scratch and
    /// lists for good: MPI may still read and write there.
    pub(super) fn abandon(mut self, library: &Library) {
        let mut kept = false;
        let none = library.api().constants().request_null;
        for pending in self.requests.iter_mut().filter(|pending| pending.request != none) {
            if pending.kind == Kind::Recv {
                library.api().cancel(&mut pending.request);
            }
            let mut tested = Tested::default();
            library.api().test(&mut pending.request, None, &mut tested);
            kept |= !tested.done;
        }
        if kept {
            std::mem::forget(self);
        }
    }
}

/// # Safety
/// The places must be valid for the elements.
unsafe fn convert(one: Move, kernels: Kernels, stage: Stage) {
    let convert = Convert {
        source: Source { at: one.from, form: one.form },
        target: one.to,
        target_form: one.to_form,
        count: one.count,
        stage,
    };
    // SAFETY: the caller's promise.
    unsafe { (kernels.convert)(&convert) };
}
