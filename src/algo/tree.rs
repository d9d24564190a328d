//! Two binary trees, each for half of the buffer (Sanders, Speck and Träff 2009; NCCL's double
//! tree).
//!
//! In a binary tree half of the ranks are leaves, which only send or only receive. The second tree
//! is the first one mirrored (even worlds) or shifted by one (odd worlds), so that its inner ranks
//! are the first one's leaves: every rank moves the buffer about twice, in log n hops.
//!
//! ```text
//! 8 ranks, first tree     0              second tree    7
//!                         4                             3
//!                      2     6                       5     1
//!                     1 3   5 7                     6 4   2 0
//! ```
//!
//! Lane 0 carries both trees upwards, lanes 1 and 2 one tree each downwards. A rank is inner in one
//! tree only (but for rank 0 of odd worlds, which is the first tree's top besides), so one lane
//! costs nothing upwards: what a leaf has to send it posts first.
//!
//! For reduce and broadcast the trees stand on the ranks without the root, each top next to the
//! root.
//!
//! | collective | messages sent | chunks moved per rank | hops, l = floor(log2 n) |
//! |---|---|---|---|
//! | all_reduce | at most 4 | at most 4 of 2 | at most 2l + 2 |
//! | reduce | at most 2 | at most 2 of 2 | at most l + 2 |
//! | broadcast | at most 3 | at most 3 of 2 | at most l + 2 |
//!
//! Order of operands: a node's between those of its subtrees. Only worlds up to 2 are in tree
//! order.

use super::{Incoming, Team, combine, pass_on, prepared, send_contribution, small};
use crate::plan::build::{Builder, StepId};
use crate::plan::{Key, Region, Step};
use crate::types::{Collective, Rank};

pub(super) fn plan(key: &Key, team: Team<'_>) -> Option<Builder> {
    let mut b = Builder::new(key.clone(), 2);
    match key.collective {
        Collective::AllReduce => {
            b.load(2);
            let nodes = [false, true].map(|second| Node::of(team, team.me, second));
            let tops = up_both(&mut b, &nodes, None);
            for (chunk, node) in nodes.iter().enumerate() {
                down(&mut b, chunk, node, Region::Output, tops[chunk]);
            }
        }
        Collective::Reduce | Collective::Broadcast => rooted(&mut b, team),
        _ => return None,
    }
    Some(b)
}

/// A rank's place in one of the trees.
#[derive(Clone, Debug)]
struct Node {
    me: Rank,
    parent: Option<Rank>,
    /// At most two, in rank order before the mirroring.
    children: Vec<(Rank, bool)>,
}

impl Node {
    /// The place of member `member` of `team`. A child comes with whether it has children itself.
    fn of(team: Team<'_>, member: usize, second: bool) -> Self {
        let n = team.len();
        let mirror = n & 1 == 0;
        // Both ways: mirroring undoes itself.
        let into = |index: usize| match (second, mirror) {
            (false, _) => index,
            (true, true) => n - 1 - index,
            (true, false) => (index + n - 1) % n,
        };
        let back = |index: usize| {
            team.ranks[match (second, mirror) {
                (false, _) => index,
                (true, true) => n - 1 - index,
                (true, false) => (index + 1) % n,
            }]
        };
        let at = into(member);
        Self {
            me: team.ranks[member],
            parent: parent(n, at).map(back),
            children: children(n, at)
                .map(|child| (back(child), children(n, child).next().is_some()))
                .collect(),
        }
    }
}

/// The parent in the tree of `n`: 0 is the top; below it, numbers with k trailing zeros stand k
/// levels above the leaves.
fn parent(n: usize, at: usize) -> Option<usize> {
    if at == 0 {
        return None;
    }
    let bit = at & at.wrapping_neg();
    let up = (at ^ bit) | (bit << 1);
    Some(if up < n { up } else { at ^ bit })
}

/// The children in the tree of `n`, ascending.
fn children(n: usize, at: usize) -> impl Iterator<Item = usize> {
    let bit = if at == 0 { n.next_power_of_two() } else { at & at.wrapping_neg() };
    let half = bit / 2;
    let low = (at > 0 && half > 0).then(|| at - half);
    // The right subtree has what is left of the world: its top is the first that exists.
    let high = std::iter::successors(Some(half), |step| Some(step / 2))
        .take_while(|step| *step > 0)
        .map(|step| at + step)
        .find(|child| *child < n);
    low.into_iter().chain(high)
}

/// Lane 0: both trees upwards, chunk 0 in the first, chunk 1 in the second. Tops finish in Output,
/// or send to `root`. Returns the finishing steps.
fn up_both(b: &mut Builder, nodes: &[Node; 2], root: Option<Rank>) -> [Option<StepId>; 2] {
    let mut tops = [None; 2];
    let leaf = |node: &Node| node.children.is_empty();
    for (chunk, node) in nodes.iter().enumerate().filter(|(_, node)| leaf(node)) {
        if let Some(to) = node.parent.or(root) {
            send_contribution(b, to, small(chunk), 1);
        }
    }
    for (chunk, node) in nodes.iter().enumerate().rev() {
        tops[chunk] = up(b, small(chunk), node, root);
    }
    tops
}

fn up(b: &mut Builder, chunk: u32, node: &Node, root: Option<Rank>) -> Option<StepId> {
    let to = node.parent.or(root);
    let mut sum = (b.contribution(), chunk);
    for (i, (child, inner)) in node.children.iter().enumerate() {
        let message =
            Incoming { from: *child, wide: *inner || prepared(b), first: *child < node.me };
        let last = i + 1 == node.children.len();
        match to {
            Some(to) if last => {
                b.push(0, pass_on(message, sum, to));
            }
            None if last => return Some(combine(b, message, sum, (Region::Output, chunk), 1)),
            _ => {
                combine(b, message, sum, (Region::Work, chunk), 1);
                sum = (Region::Work, chunk);
            }
        }
    }
    None
}

/// Chunk `chunk` downwards in its lane, from `source` at the top, after `whole`.
fn down(b: &mut Builder, chunk: usize, node: &Node, source: Region, mut whole: Option<StepId>) {
    let lane = chunk + 1;
    let number = small(chunk);
    let mut children = node.children.iter().map(|(child, _)| *child);
    if let Some(parent) = node.parent {
        let step = children.next().map_or_else(
            || Step::recv(parent, Region::Output, number),
            |child| Step::recv_copy_send(parent, Region::Output, number, child),
        );
        b.push(lane, step);
    }
    let source = if node.parent.is_some() { Region::Output } else { source };
    for child in children {
        let step = Step::send(child, source, number);
        b.push(lane, whole.take().map_or(step, |id| step.after(id)));
    }
}

/// Reduce and broadcast: the trees stand on the others, and their tops next to the root.
fn rooted(b: &mut Builder, team: Team<'_>) {
    let root = b.key().root;
    let reduces = b.key().collective == Collective::Reduce;
    let others: Vec<Rank> = team.ranks.iter().copied().filter(|r| *r != root).collect();
    let others = Team { ranks: &others, me: others.binary_search(&b.key().rank).unwrap_or(0) };
    if reduces {
        b.load(2);
    }
    let trees = [false, true];
    if team.ranks[team.me] != root {
        let nodes = trees.map(|second| Node::of(others, others.me, second));
        if reduces {
            up_both(b, &nodes, Some(root));
            return;
        }
        for (chunk, node) in nodes.into_iter().enumerate() {
            let parent = node.parent.or(Some(root));
            down(b, chunk, &Node { parent, ..node }, Region::Output, None);
        }
        return;
    }
    for (chunk, second) in trees.into_iter().enumerate() {
        let member = (0..others.len()).find(|m| Node::of(others, *m, second).parent.is_none());
        let top = Node::of(others, member.expect("a tree has a top"), second);
        let node =
            Node { me: root, parent: None, children: vec![(top.me, !top.children.is_empty())] };
        if reduces {
            up(b, small(chunk), &node, None);
        } else {
            down(b, chunk, &node, Region::Input, None);
        }
    }
    if !reduces {
        b.push(0, Step::copy((Region::Input, 0), (Region::Output, 0)).over(2));
    }
}
