//! One call under way: first its gate, then its script.
//!
//! ```text
//! Gate -> Ready -> (steps) -> over        where calls are compared
//!         Ready -> (steps) -> over        where they are not
//! Gate -> Doomed                          where counts between two ranks differ
//! ```

use std::ffi::c_int;
use std::sync::Arc;

use crate::backend::mpi::script::{Move, Rules, Script, Step};
use crate::call::{Call, hash_counts};
use crate::error::{Code, Error, Result};
use crate::kernel::{Convert, Fold, Kernels, Source, Stage};
use crate::mpi::{Handle, Kind, Library, Primitive, Tested};
use crate::types::{Collective, Dtype, Rank};

/// How far a call has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
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
    /// Its gate's byte is the backend's own.
    pub(super) hurried: bool,
    /// What the gate exchanges.
    pub(super) cells: Cells,
    pub(super) script: Script,
    /// The next step.
    at: usize,
    requests: Vec<Pending>,
}

/// What a gate exchanges.
///
/// Most gates are an all_reduce of [`Cells::WORDS`] - 1 words, in place: the sum of what counts
/// between ranks leave over, which is 0 where they fit, and how many ranks may not wait. Where
/// counts are between two ranks, it is an all_to_all of those words with a count before them.
#[derive(Debug)]
pub(super) struct Cells {
    says: Vec<[u64; Self::WORDS]>,
    hears: Vec<[u64; Self::WORDS]>,
}

impl Cells {
    pub(super) const WORDS: usize = 3;

    pub(super) fn new(world: usize) -> Self {
        Self { says: vec![[0; Self::WORDS]; world], hears: vec![[0; Self::WORDS]; world] }
    }

    /// Fills in what this rank says in `call`; the native call that takes it to the others.
    pub(super) fn gate(&mut self, call: &Call, me: usize, later: bool) -> Call {
        if !pairs(call) {
            let word = &mut self.hears[0];
            *word = [0, 0, u64::from(later)];
            let mut gate = Call::new(Collective::AllReduce, Dtype::U64);
            gate.count = 2;
            gate.recv = (&raw mut word[1]).cast();
            gate.send = gate.recv.cast_const();
            return gate;
        }
        let mut left = 0u64;
        for peer in 0..self.says.len() {
            let (sends, expects) = (sent(call, me, peer), expected(call, me, peer));
            left = left.wrapping_add(mark(me, peer, sends)).wrapping_sub(mark(peer, me, expects));
            self.says[peer][0] = sends;
        }
        self.says.iter_mut().for_each(|word| (word[1], word[2]) = (left, u64::from(later)));
        let mut gate = Call::new(Collective::AllToAll, Dtype::U64);
        gate.count = Self::WORDS as u64;
        (gate.send, gate.recv) = (self.says.as_ptr().cast(), self.hears.as_mut_ptr().cast());
        gate
    }

    /// What has been heard: whether all counts fit, and whether some rank may not wait.
    pub(super) fn heard(&self, call: &Call) -> (bool, bool) {
        let words = if pairs(call) { &self.hears[..] } else { &self.hears[..1] };
        let sum = |at: usize| words.iter().fold(0, |sum: u64, word| sum.wrapping_add(word[at]));
        (sum(1) == 0, sum(2) != 0)
    }

    /// A rank whose count is not what this one expects of it, with both counts.
    pub(super) fn unlike(&self, call: &Call, me: usize) -> Option<(usize, u64, u64)> {
        let told = self.hears.iter().map(|word| word[0]).enumerate();
        let mut pairs = told.map(|(peer, count)| (peer, count, expected(call, me, peer)));
        pairs.find(|(_, told, expected)| told != expected)
    }
}

/// Whether counts of `call` are between two ranks.
fn pairs(call: &Call) -> bool {
    use Collective as C;
    matches!(call.collective, C::GatherV | C::ScatterV | C::AllToAllV)
}

/// Elements that rank `me` sends to `peer`.
fn sent(call: &Call, me: usize, peer: usize) -> u64 {
    let root = call.root.index();
    match call.collective {
        Collective::GatherV if peer == root => call.count,
        Collective::ScatterV if me != root => 0,
        _ => call.send_blocks.counts.get(peer).copied().unwrap_or(0),
    }
}

/// Elements that rank `me` expects of `peer`.
fn expected(call: &Call, me: usize, peer: usize) -> u64 {
    let root = call.root.index();
    match call.collective {
        Collective::ScatterV if peer == root => call.count,
        Collective::GatherV if me != root => 0,
        _ => call.recv_blocks.counts.get(peer).copied().unwrap_or(0),
    }
}

/// A word for a count from one rank to another: sums of them differ, as good as always, where
/// counts do.
fn mark(from: usize, to: usize, count: u64) -> u64 {
    hash_counts(&[from as u64, to as u64, count])
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
            cells: Cells::new(world),
            script: Script::default(),
            at: 0,
            requests: Vec::new(),
        }
    }

    /// Takes on `call`.
    pub(super) fn begin(&mut self, call: &Call, rules: Rules<'_>) -> Result<()> {
        (self.at, self.state) = (0, State::Gate);
        self.requests.clear();
        self.script.write(call, rules)
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
            let Some(&step) = self.script.steps.get(self.at) else { return Ok(moved) };
            moved = true;
            match step {
                Step::Mpi { .. } => self.mpi(on, waits)?,
                // SAFETY: a step's addresses lie in the call's buffers, which its maker promised,
                // or in the script's scratch.
                local => unsafe { self.local(local) },
            }
        }
    }

    /// Carries out or begins MPI's part; of messages all that follow each other.
    fn mpi(&mut self, on: Ground<'_>, waits: bool) -> Result<()> {
        let api = on.library.api();
        let mut first = true;
        while let Some(&Step::Mpi { call, lists }) = self.script.steps.get(self.at)
            && (first || call.kind.is_message())
        {
            let lists = self.script.lists(lists);
            self.at += 1;
            if waits && !call.kind.is_message() {
                // SAFETY: as in `advance`; the call has ended when this returns.
                let code = unsafe { api.call(&call, lists, on.comm, None) };
                return on.library.check(code, call.kind.name());
            }
            let mut request = Handle::NONE;
            // SAFETY: as in `advance`; lists and scratch stay until the request has ended, or for
            // good.
            let code = unsafe { api.call(&call, lists, on.comm, Some(&mut request)) };
            on.library.check(code, call.kind.name())?;
            let Primitive { kind, count, unit, root: peer, .. } = call;
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
        for pending in &mut self.requests {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn all_to_all_v(sends: &[u64], recvs: &[u64]) -> Call {
        let mut call = Call::new(Collective::AllToAllV, Dtype::F32);
        call.send_blocks.set(sends, None);
        call.recv_blocks.set(recvs, None);
        call
    }

    /// What every rank hears when each says what its gate has.
    fn exchange(calls: &[Call]) -> Vec<Cells> {
        let world = calls.len();
        let mut all: Vec<Cells> = (0..world).map(|_| Cells::new(world)).collect();
        for (me, call) in calls.iter().enumerate() {
            all[me].gate(call, me, false);
        }
        for me in 0..world {
            for peer in 0..world {
                all[me].hears[peer] = all[peer].says[me];
            }
        }
        all
    }

    #[test]
    fn counts_that_fit_leave_nothing_over() {
        let calls = [all_to_all_v(&[1, 2], &[1, 7]), all_to_all_v(&[7, 0], &[2, 0])];
        for (me, cells) in exchange(&calls).iter().enumerate() {
            assert_eq!(cells.heard(&calls[me]), (true, false));
            assert_eq!(cells.unlike(&calls[me], me), None);
        }
    }

    #[test]
    fn everyone_hears_of_a_count_that_does_not_fit_and_its_receiver_sees_which() {
        let calls = [all_to_all_v(&[1, 2], &[1, 7]), all_to_all_v(&[7, 0], &[3, 0])];
        let all = exchange(&calls);
        assert!(all.iter().zip(&calls).all(|(cells, call)| !cells.heard(call).0));
        assert_eq!(all[0].unlike(&calls[0], 0), None);
        assert_eq!(all[1].unlike(&calls[1], 1), Some((0, 2, 3)));
    }

    #[test]
    fn rooted_counts_are_compared_between_the_root_and_each() {
        let mut root = Call::new(Collective::GatherV, Dtype::U8);
        root.recv_blocks.set(&[4, 5], None);
        root.count = 4;
        let mut other = Call::new(Collective::GatherV, Dtype::U8);
        other.count = 6;
        let all = exchange(&[root.clone(), other.clone()]);
        assert_eq!(all[0].unlike(&root, 0), Some((1, 6, 5)));
        assert_eq!(all[1].unlike(&other, 1), None);
        assert!(!all[1].heard(&other).0);
    }
}
