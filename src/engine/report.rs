//! What an engine says of itself: whom it waits for, where it stands, how its calls compare.

use crate::call::Head;
use crate::engine::flat::needs;
use crate::engine::link::{Board, Fabric};
use crate::engine::meet::Seen;
use crate::engine::wires::{Wires, mismatch};
use crate::engine::{Engine, Planner, Route, Run, Running};
use crate::error::Result;
use crate::plan::Verb;
use crate::types::Rank;

impl<F: Fabric, P: Planner> Engine<F, P> {
    /// Compares `peer`'s call of a number this rank has reached with the own call of that number,
    /// if that is remembered.
    ///
    /// # Errors
    /// `MISMATCH` names both.
    pub fn compare(&self, peer: Rank, theirs: &Head) -> Result<()> {
        let own = self.recent.iter().flatten().find(|own| own.seq == theirs.seq);
        // How the call is carried out may not be settled on one side; messages carry that.
        match own.map(|own| Head { plan: theirs.plan, ..*own }) {
            Some(own) if own != *theirs => Err(mismatch(self.wires.me, &own, peer.index(), theirs)),
            _ => Ok(()),
        }
    }

    /// Puts the ranks that something pending waits for into `ranks`, ascending, each once.
    pub fn awaited(&mut self, ranks: &mut Vec<Rank>) {
        ranks.clear();
        if let Some(run) = &self.run {
            match &self.running {
                Some(running) if run.stand.shown => {
                    awaited_by_lanes(running, &mut self.wires, ranks);
                }
                _ => awaited_on_board(run, &self.seen, &mut self.wires, ranks),
            }
        }
        self.p2p.awaited(ranks);
        // What a call does without waiting it does not with the buffers of who has given it up.
        if let (true, Some(run)) = (ranks.is_empty(), &self.run) {
            let turn = run.stand.turn;
            ranks.extend(self.forsaken(turn));
        }
        // Who does not take what was posted may itself be waiting for one of those above.
        if ranks.is_empty() {
            self.wires.slow_peers(ranks);
        }
        ranks.sort_unstable();
        ranks.dedup();
    }

    /// Where everything in flight stands, for the report of a call that did not end.
    #[must_use]
    pub fn standing(&self) -> String {
        let messages = self.p2p.standing(&self.wires);
        match &self.run {
            None if messages.is_empty() => "no collective is running".to_owned(),
            None => messages,
            Some(run) if messages.is_empty() => run.standing(self.running.as_ref()),
            Some(run) => format!("{}; {messages}", run.standing(self.running.as_ref())),
        }
    }
}

impl Run {
    fn standing(&self, running: Option<&Running>) -> String {
        let Some(running) = running.filter(|_| self.stand.shown) else {
            return format!("{}: meeting", self.stand.head.describe());
        };
        let mut text = self.stand.head.describe();
        for (lane, cursor) in running.cursors[..running.plan.lanes()].iter().enumerate() {
            if cursor.done {
                text += &format!("; lane {lane} done");
                continue;
            }
            let step = &running.plan.lane(lane)[usize::from(cursor.step)];
            let tile = cursor.block * running.bound.window + cursor.tile;
            let tiles = running.bound.tiles;
            text += &format!(
                "; lane {lane} step {} of {} ({step}), tile {tile} of {tiles}, {} elements done",
                cursor.step,
                running.plan.lane(lane).len(),
                cursor.at
            );
        }
        text
    }
}

/// Whose notices a call waits for, of its turn or, before it shows its own, of an earlier one.
fn awaited_on_board<F: Fabric>(
    run: &Run,
    seen: &Seen,
    wires: &mut Wires<F>,
    ranks: &mut Vec<Rank>,
) {
    let me = wires.me;
    let turn = if run.stand.shown { run.stand.turn } else { run.stand.after };
    let flat = run.stand.shown && run.stand.route == Route::Flat;
    let needed = |peer: &usize| *peer != me && (!flat || needs(&run.call, me, *peer));
    for peer in (0..wires.world).filter(needed).filter(|&peer| !seen.has(peer, turn)) {
        let board = wires.fabric.board();
        if board.is_some_and(|b| matches!(b.notice(peer, turn), Ok(None))) {
            ranks.push(Rank::at(peer));
        }
    }
}

fn awaited_by_lanes<F: Fabric>(running: &Running, wires: &mut Wires<F>, ranks: &mut Vec<Rank>) {
    for (lane, cursor) in running.cursors[..running.plan.lanes()].iter().enumerate() {
        if cursor.done {
            continue;
        }
        let step = &running.plan.lane(lane)[usize::from(cursor.step)];
        match step.verb {
            Verb::Fold if !step.source.is_peer() => {
                let group = &running.plan.groups[step.from as usize];
                let me = wires.me;
                let others = || group.iter().filter(|r| r.index() != me);
                // Heads are taken in this order, and a sender of nothing sends no more than that.
                let heads = cursor.heads as usize;
                let known = if heads < others().count() { heads } else { 0 };
                let silent = |r: &&Rank| !wires.heard(r.index(), lane);
                ranks.extend(others().skip(known).filter(silent));
            }
            Verb::Await => ranks.push(Rank(step.from)),
            _ if step.receives() => ranks.push(Rank(step.from)),
            _ => {}
        }
    }
}
