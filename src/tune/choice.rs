//! What was chosen for which call, and why; and the last few choices, kept.

use crate::call::Call;
use crate::engine::Reach;
use crate::plan::Algorithm;
use crate::tune::table::Row;
use crate::types::{Collective, Dtype, Rank, ReduceOp};

/// Choices that are kept.
const RECENT: usize = 8;

/// What was chosen for a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// How it is carried out.
    pub algorithm: Algorithm,
    /// Why.
    pub reason: Reason,
}

/// Why an algorithm was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It was asked for.
    Asked,
    /// The table says so.
    Table(Row),
    /// All ranks can map the buffers.
    Mapped,
    /// There are hosts of several ranks.
    Levels,
    /// Of those that can do it, it has the lowest estimate: so many picoseconds.
    Estimate(u64),
}

/// All that the choice of one communicator depends on from call to call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Question {
    collective: Collective,
    root: Rank,
    bytes: u64,
    dtype: Dtype,
    factors: bool,
    in_place: bool,
    reach: Reach,
}

impl Question {
    /// What `call` of `bytes` asks where ranks reach so far.
    pub(super) fn new(call: &Call, bytes: u64, reach: Reach) -> Self {
        Self {
            collective: call.collective,
            root: if call.collective.rooted() { call.root } else { Rank(0) },
            bytes,
            dtype: call.dtype,
            factors: call.collective.reduces() && call.op == ReduceOp::PreMulSum,
            in_place: call.in_place_all_to_all(),
            reach,
        }
    }
}

/// The last few choices.
#[derive(Debug, Default)]
pub(super) struct Recent {
    kept: [Option<(Question, Chosen)>; RECENT],
    /// The next to go.
    oldest: usize,
}

impl Recent {
    pub(super) fn find(&self, question: &Question) -> Option<Chosen> {
        let mut kept = self.kept.iter().flatten();
        kept.find(|(asked, _)| asked == question).map(|&(_, chosen)| chosen)
    }

    pub(super) fn keep(&mut self, question: Question, chosen: Chosen) {
        self.kept[self.oldest] = Some((question, chosen));
        self.oldest = (self.oldest + 1) % RECENT;
    }
}
