//! One tree over the ranks, cut as law 3 cuts it: at the largest power of two below the number.
//!
//! Each subtree is a range of consecutive ranks and its top is its lowest rank, but the subtrees
//! that hold the root have the root on top. So results come straight to any root, operands stay in
//! rank order, and what a subtree gathers is a range of consecutive blocks.
//!
//! ```text
//! 6 ranks, root 0:   0 <---- 4      root 5:   5 <---- 0
//!                    | \     |                |       | \
//!                    1  2    5                4       1  2
//!                       |                                |
//!                       3                                3
//! ```
//!
//! | collective | messages sent | moved per rank | hops, l = ceil(log2 n) |
//! |---|---|---|---|
//! | reduce | 1 | the buffer, received up to l times | l |
//! | broadcast | up to l | the buffer, received once | l |
//! | all_reduce (up lane 0, down lane 1) | up to l | as both | 2l |
//! | gather, scatter | 1 or up to l | the blocks of the subtree | l |
//! | barrier | up to l | nothing | 2l |
//!
//! Order of operands: the tree order, in every world, with every root.

use std::ops::Range;

use super::{Incoming, Team, combine, pass_on, prepared, send_contribution, small, split};
use crate::plan::build::{Builder, StepId};
use crate::plan::{Key, Region, Step};
use crate::types::Collective;

pub(super) fn plan(key: &Key, team: Team<'_>) -> Option<Builder> {
    use Collective as C;
    let mut b = Builder::new(key.clone(), 1);
    let place = Place::of(team.len(), team.me, key.root.index());
    match key.collective {
        C::AllReduce => {
            let place = Place::of(team.len(), team.me, 0);
            b.load(1);
            let whole = up(&mut b, team, &place);
            down(&mut b, 1, team, &place, Region::Output, whole);
        }
        C::Reduce => {
            b.load(1);
            up(&mut b, team, &place);
        }
        C::Broadcast => broadcast(&mut b, team, &place),
        C::Gather => gather(&mut b, team, &place),
        C::Scatter => scatter(&mut b, team, &place),
        C::Barrier => barrier(&mut b, team, &Place::of(team.len(), team.me, 0)),
        _ => return None,
    }
    Some(b)
}

/// A rank's place in the tree.
#[derive(Debug)]
pub(super) struct Place {
    parent: Option<usize>,
    /// The tops of the subtrees below and the ranks in them, the smallest subtree first.
    children: Vec<(usize, Range<usize>)>,
    /// The ranks of the own subtree.
    range: Range<usize>,
}

impl Place {
    pub(super) fn of(n: usize, me: usize, root: usize) -> Self {
        let mut place = Self { parent: None, children: Vec::new(), range: 0..n };
        let (mut range, mut top) = (0..n, root);
        while range.len() > 1 {
            let middle = range.start + split(range.len());
            let (left, right) = (range.start..middle, middle..range.end);
            // The half with the top keeps it; the other half's lowest rank reports to it.
            let (kept, other) = if top < middle { (left, right) } else { (right, left) };
            if me == top {
                place.children.push((other.start, other.clone()));
            } else if me == other.start {
                place.parent = Some(top);
                place.range = other.clone();
            }
            if other.contains(&me) {
                top = other.start;
                range = other;
            } else {
                range = kept;
            }
        }
        place.children.reverse();
        place
    }
}

/// Lane 0: sums the subtree and hands it to the parent, or finishes it in Output at the top.
fn up(b: &mut Builder, team: Team<'_>, place: &Place) -> Option<StepId> {
    let parent = place.parent.map(|p| team.ranks[p]);
    let mut sum = (b.contribution(), 0);
    let mut whole = None;
    if let (Some(parent), true) = (parent, place.children.is_empty()) {
        send_contribution(b, parent, 0, 1);
    }
    for (i, (child, range)) in place.children.iter().enumerate() {
        let message = Incoming {
            from: team.ranks[*child],
            wide: range.len() > 1 || prepared(b),
            first: *child < team.me,
        };
        let last = i + 1 == place.children.len();
        match parent {
            Some(parent) if last => {
                b.push(0, pass_on(message, sum, parent));
            }
            None if last => whole = Some(combine(b, message, sum, (Region::Output, 0), 1)),
            _ => {
                combine(b, message, sum, (Region::Work, 0), 1);
                sum = (Region::Work, 0);
            }
        }
    }
    whole
}

/// Hands the buffer down the tree, from `source` at the top, into Output below; waits for `after`.
pub(super) fn down(
    b: &mut Builder,
    lane: usize,
    team: Team<'_>,
    place: &Place,
    source: Region,
    mut after: Option<StepId>,
) -> Option<StepId> {
    let mut got = None;
    let mut children = place.children.iter().rev().map(|(child, _)| team.ranks[*child]);
    if let Some(parent) = place.parent {
        let parent = team.ranks[parent];
        let step = children.next().map_or_else(
            || Step::recv(parent, Region::Output, 0),
            |child| Step::recv_copy_send(parent, Region::Output, 0, child),
        );
        got = Some(b.push(lane, step));
    }
    let source = if got.is_some() { Region::Output } else { source };
    for child in children {
        let step = Step::send(child, source, 0);
        b.push(lane, after.take().map_or(step, |id| step.after(id)));
    }
    got
}

fn broadcast(b: &mut Builder, team: Team<'_>, place: &Place) {
    down(b, 0, team, place, Region::Input, None);
    if place.parent.is_none() {
        b.push(0, Step::copy((Region::Input, 0), (Region::Output, 0)));
    }
}

fn gather(b: &mut Builder, team: Team<'_>, place: &Place) {
    let Some(parent) = place.parent else {
        b.push(0, Step::copy((Region::Input, 0), (Region::Output, small(team.me))));
        for (child, range) in &place.children {
            let step = Step::recv(team.ranks[*child], Region::Output, small(range.start));
            b.push(0, step.over(small(range.len())));
        }
        return;
    };
    let parent = team.ranks[parent];
    if place.children.is_empty() {
        b.push(0, Step::send(parent, Region::Input, 0));
        return;
    }
    // Scratch holds the subtree's blocks, the first of them first: right for equal blocks.
    let at = |rank: usize| small(rank - place.range.start);
    b.push(0, Step::copy((Region::Input, 0), (Region::Work, at(team.me))));
    for (child, range) in &place.children {
        let step = Step::recv(team.ranks[*child], Region::Work, at(range.start));
        b.push(0, step.over(small(range.len())));
    }
    let step = Step::send(parent, Region::Work, 0);
    b.push(0, step.over(small(place.range.len())));
}

fn scatter(b: &mut Builder, team: Team<'_>, place: &Place) {
    let leaf = place.children.is_empty();
    let (source, first) = match place.parent {
        None => (Region::Input, 0),
        Some(parent) if leaf => {
            b.push(0, Step::recv(team.ranks[parent], Region::Output, 0));
            return;
        }
        Some(parent) => {
            let step = Step::recv(team.ranks[parent], Region::Work, 0);
            b.push(0, step.over(small(place.range.len())));
            (Region::Work, place.range.start)
        }
    };
    for (child, range) in place.children.iter().rev() {
        let step = Step::send(team.ranks[*child], source, small(range.start - first));
        b.push(0, step.over(small(range.len())));
    }
    let own = (source, small(team.me - first));
    b.push(0, Step::copy(own, (Region::Output, 0)));
}

fn barrier(b: &mut Builder, team: Team<'_>, place: &Place) {
    for (child, _) in &place.children {
        b.push(0, Step::recv(team.ranks[*child], Region::Output, 0));
    }
    if let Some(parent) = place.parent {
        b.push(0, Step::send(team.ranks[parent], Region::Input, 0));
        b.push(0, Step::recv(team.ranks[parent], Region::Output, 0));
    }
    for (child, _) in place.children.iter().rev() {
        b.push(0, Step::send(team.ranks[*child], Region::Output, 0));
    }
}
