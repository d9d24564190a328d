//! A run of one tile as a picture: which step comes in which column, and what leads from where to
//! where.
//!
//! A step takes a column: the first after the step before it, after the senders of its messages,
//! the phases and the step it waits for. Steps that follow each other and do the same for several
//! peers share one.

use std::collections::{BTreeMap, VecDeque};

use super::super::{NO_STEP, Plan, Step, Verb, flag};
use super::flow::{Flow, Order, Schedule, Watch, senders};
use super::places::{Places, Shape};
use super::{Flaw, Site};
use crate::types::Rank;

/// One step, or several that do the same for several peers.
#[derive(Clone, Debug)]
pub(in crate::plan) struct Mark {
    pub(in crate::plan) rank: Rank,
    pub(in crate::plan) lane: usize,
    pub(in crate::plan) column: usize,
    /// At least one.
    pub(in crate::plan) steps: Vec<Step>,
    /// Whether something leads on from here.
    leads_on: bool,
}

impl Mark {
    /// The step that stands for all.
    pub(in crate::plan) fn step(&self) -> &Step {
        &self.steps[0]
    }

    /// Whether `step`, which comes next in the lane, is more of the same.
    fn takes(&self, step: &Step) -> bool {
        let kind = |s: &Step| (s.verb, s.source, s.target, s.flags & !flag::SETTLE);
        let alike =
            kind(step) == kind(self.step()) && step.wait_step == NO_STEP && !step.has(flag::SETTLE);
        alike
            && match step.verb {
                Verb::Send => true,
                Verb::Recv => !self.leads_on,
                Verb::Await => !self.leads_on && step.source_chunk == self.step().source_chunk,
                _ => false,
            }
    }
}

/// What leads from one mark to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::plan) enum Lead {
    /// A message in native form.
    Message,
    /// A message in wide form.
    Wide,
    /// A phase that is reached and awaited.
    Phase,
    /// A step that a step of another lane waits for.
    Wait,
}

/// A run: marks in an order in which they can happen, and what leads from mark to mark.
#[derive(Debug, Default)]
pub(in crate::plan) struct Trace {
    pub(in crate::plan) marks: Vec<Mark>,
    pub(in crate::plan) leads: Vec<(usize, usize, Lead)>,
}

/// The trace of one tile, with room for all messages; as far as it goes, and what stops it there.
pub(in crate::plan) fn trace(plans: &[Plan]) -> (Trace, Option<Flaw>) {
    let order = Schedule {
        order: Order::Ascending,
        settle_last: false,
        post_copies: true,
        slow_links: false,
    };
    let mut tracer = Tracer {
        plans,
        trace: Trace::default(),
        last: BTreeMap::new(),
        links: BTreeMap::new(),
        phases: BTreeMap::new(),
        steps: BTreeMap::new(),
    };
    let places = Places::new(plans, Shape::of(plans, (1, 1), false));
    let flaw = Flow::new(plans, &places, u32::MAX / 2, order).run(&mut tracer).err();
    (tracer.trace, flaw)
}

struct Tracer<'a> {
    plans: &'a [Plan],
    trace: Trace,
    /// The last mark of each lane of each rank.
    last: BTreeMap<(Rank, usize), usize>,
    /// The marks whose messages are under way, by sender, receiver and lane.
    links: BTreeMap<(Rank, u32, usize), VecDeque<(usize, bool)>>,
    phases: BTreeMap<(u32, u32), usize>,
    steps: BTreeMap<(Rank, usize, usize), usize>,
}

impl Tracer<'_> {
    /// The mark for a step: a new one, or the one before it.
    fn mark(&mut self, site: Site, step: &Step) -> usize {
        let before = self.last.get(&(site.rank, site.lane)).copied();
        let marks = &mut self.trace.marks;
        if let Some(at) = before.filter(|&at| marks[at].takes(step)) {
            marks[at].steps.push(*step);
            return at;
        }
        let Site { rank, lane, .. } = site;
        let column = before.map_or(0, |at| marks[at].column + 1);
        marks.push(Mark { rank, lane, column, steps: vec![*step], leads_on: false });
        self.last.insert((rank, lane), marks.len() - 1);
        marks.len() - 1
    }

    fn lead(&mut self, from: usize, to: usize, lead: Lead) {
        self.trace.marks[from].leads_on = true;
        let after = self.trace.marks[from].column + 1;
        let column = &mut self.trace.marks[to].column;
        *column = (*column).max(after);
        self.trace.leads.push((from, to, lead));
    }

    fn receive(&mut self, from: u32, to: Rank, lane: usize, mark: usize) {
        let queue = self.links.get_mut(&(Rank(from), to.0, lane));
        let sent = queue.and_then(VecDeque::pop_front);
        if let Some((sent, wide)) = sent {
            self.lead(sent, mark, if wide { Lead::Wide } else { Lead::Message });
        }
    }
}

impl Watch for Tracer<'_> {
    fn step(&mut self, site: Site, step: &Step) -> Result<(), Flaw> {
        let Site { rank, lane, index, .. } = site;
        let mark = self.mark(site, step);
        self.steps.insert((rank, lane, index), mark);
        if step.wait_step != NO_STEP {
            let waited = (rank, usize::from(step.wait_lane), usize::from(step.wait_step));
            if let Some(&from) = self.steps.get(&waited).filter(|&&from| from != mark) {
                self.lead(from, mark, Lead::Wait);
            }
        }
        if step.receives() {
            self.receive(step.from, rank, lane, mark);
        }
        if step.verb == Verb::Fold {
            let froms: Vec<u32> = senders(&self.plans[rank.index()], step).collect();
            for from in froms {
                self.receive(from, rank, lane, mark);
            }
        }
        if step.sends() {
            let link = self.links.entry((rank, step.to, lane)).or_default();
            link.push_back((mark, step.sends_wide()));
        }
        if step.verb == Verb::Post {
            self.phases.insert((rank.0, step.source_chunk), mark);
        }
        if step.verb == Verb::Await
            && let Some(&from) = self.phases.get(&(step.from, step.source_chunk))
        {
            self.lead(from, mark, Lead::Phase);
        }
        Ok(())
    }
}
