//! Who may run when: all lanes of all ranks over links with few slots, without looking at values.
//!
//! The state is how far each lane has come and, per link, how many messages were posted and
//! received. Whatever fits moves from the outbox into the slots, so with K slots the outbox is
//! empty exactly while `posted <= received + K`. All conditions but [`flag::SETTLE`] stay true once
//! they are true, so the order in which lanes run decides nothing else: schedules differ in what
//! they do with it.

use super::super::{NO_STEP, Plan, Step, Verb, flag};
use super::{Flaw, Site};
use crate::types::Rank;

/// Sees each step as it runs.
pub(super) trait Watch {
    /// `step` runs now.
    fn step(&mut self, site: Site, step: &Step) -> Result<(), Flaw>;
}

/// Watches nothing.
impl Watch for () {
    fn step(&mut self, _: Site, _: &Step) -> Result<(), Flaw> {
        Ok(())
    }
}

/// The order in which lanes are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Lower ranks and lanes first.
    Ascending,
    /// Higher ranks and lanes first.
    Descending,
    /// Another order each time, from this seed.
    Shuffled(u64),
}

/// One way to run a world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Schedule {
    pub(super) order: Order,
    /// Steps that settle run only when nothing else can: others have then posted all they can.
    pub(super) settle_last: bool,
    /// `RecvCopySend` posts its target instead of needing room on the link.
    pub(super) post_copies: bool,
    /// A lane begins a block only when all that it posted in the one before has left, so that what
    /// it has posted is bounded.
    pub(super) hold_blocks: bool,
}

/// How many waiting lanes are told of besides the first.
const SHOWN: usize = 16;

/// Where a lane stands.
#[derive(Clone, Copy, Debug, Default)]
struct Cursor {
    block: u32,
    step: u32,
    tile: u32,
    done: bool,
}

/// The world being run.
pub(super) struct Flow<'a> {
    plans: &'a [Plan],
    /// Lanes of the plan with the most.
    lanes: usize,
    tiles: u32,
    window: u32,
    slots: u32,
    schedule: Schedule,
    cursors: Vec<Cursor>,
    posted: Vec<u32>,
    received: Vec<u32>,
    /// Links of a rank with a message that has not left.
    backlog: Vec<u32>,
    /// The last phase each rank has posted.
    phases: Vec<u32>,
}

impl<'a> Flow<'a> {
    pub(super) fn new(
        plans: &'a [Plan],
        (tiles, window, slots): (u32, u32, u32),
        schedule: Schedule,
    ) -> Self {
        let world = plans.len();
        let lanes = plans.iter().map(Plan::lanes).max().unwrap_or(0);
        let cursor = |index: usize| Cursor {
            done: {
                let (plan, lane) = (&plans[index / lanes], index % lanes);
                lane >= plan.lanes() || plan.lane(lane).is_empty()
            },
            ..Cursor::default()
        };
        Self {
            plans,
            lanes,
            tiles,
            window,
            slots,
            schedule,
            cursors: (0..world * lanes).map(cursor).collect(),
            posted: vec![0; world * world * lanes],
            received: vec![0; world * world * lanes],
            backlog: vec![0; world],
            phases: vec![0; world],
        }
    }

    /// Runs all lanes to their ends.
    pub(super) fn run(mut self, watch: &mut impl Watch) -> Result<(), Flaw> {
        let mut order: Vec<usize> = (0..self.cursors.len()).collect();
        let mut seed = 0;
        match self.schedule.order {
            Order::Ascending => {}
            Order::Descending => order.reverse(),
            Order::Shuffled(s) => seed = s | 1,
        }
        loop {
            order.retain(|&g| !self.cursors[g].done);
            if order.is_empty() {
                return self.drained();
            }
            if seed != 0 {
                shuffle(&mut order, &mut seed);
            }
            let mut moved = false;
            for &g in &order {
                while self.ready(g, !self.schedule.settle_last) {
                    self.fire(g, watch)?;
                    moved = true;
                }
            }
            if !moved {
                let Some(&g) = order.iter().find(|&&g| self.ready(g, true)) else {
                    return Err(self.stuck());
                };
                self.fire(g, watch)?;
            }
        }
    }

    fn link(&self, from: usize, to: usize, lane: usize) -> usize {
        (from * self.plans.len() + to) * self.lanes + lane
    }

    fn next(&self, g: usize) -> Option<&'a Step> {
        let cursor = self.cursors[g];
        (!cursor.done)
            .then(|| &self.plans[g / self.lanes].lane(g % self.lanes)[cursor.step as usize])
    }

    fn tile(&self, cursor: Cursor) -> u32 {
        cursor.block * self.window + cursor.tile
    }

    fn passed(&self, g: usize, step: u32, tile: u32) -> bool {
        let c = self.cursors[g];
        c.done || (tile / self.window, step, tile % self.window) < (c.block, c.step, c.tile)
    }

    fn awaits(&self, g: usize, step: &Step) -> bool {
        let waited = g - g % self.lanes + usize::from(step.wait_lane);
        step.wait_step == NO_STEP
            || self.passed(waited, u32::from(step.wait_step), self.tile(self.cursors[g]))
    }

    fn incoming(&self, from: u32, g: usize) -> bool {
        let link = self.link(from as usize, g / self.lanes, g % self.lanes);
        self.posted[link] > self.received[link]
    }

    fn needs_room(&self, step: &Step) -> bool {
        match step.verb {
            Verb::RecvReduceSend => true,
            Verb::RecvCopySend => !self.schedule.post_copies,
            _ => false,
        }
    }

    fn room(&self, g: usize, step: &Step) -> bool {
        let link = self.link(g / self.lanes, step.to as usize, g % self.lanes);
        self.posted[link] < self.received[link].saturating_add(self.slots)
    }

    /// Whether a lane waits between two blocks for what it posted to leave.
    fn held(&self, g: usize) -> bool {
        let Cursor { block, step, tile, .. } = self.cursors[g];
        let first = self.schedule.hold_blocks && block > 0 && step == 0 && tile == 0;
        first && self.backlog[g / self.lanes] > 0 && {
            let mut links =
                (0..self.plans.len()).map(|to| self.link(g / self.lanes, to, g % self.lanes));
            links.any(|link| self.posted[link] > self.received[link].saturating_add(self.slots))
        }
    }

    fn ready(&self, g: usize, settle: bool) -> bool {
        let Some(step) = self.next(g) else {
            return false;
        };
        let settled = !step.has(flag::SETTLE) || (settle && self.backlog[g / self.lanes] == 0);
        settled
            && self.awaits(g, step)
            && !self.held(g)
            && match step.verb {
                Verb::Fold => self.senders(g, step).all(|from| self.incoming(from, g)),
                Verb::Await => self.phases[step.from as usize] >= step.source_chunk,
                _ => {
                    (!step.receives() || self.incoming(step.from, g))
                        && (!self.needs_room(step) || self.room(g, step))
                }
            }
    }

    /// The ranks whose messages a fold takes.
    fn senders(&self, g: usize, step: &Step) -> impl Iterator<Item = u32> + use<'a> {
        let plan = &self.plans[g / self.lanes];
        senders(plan, step)
    }

    fn fire(&mut self, g: usize, watch: &mut impl Watch) -> Result<(), Flaw> {
        let (rank, lane) = (g / self.lanes, g % self.lanes);
        let cursor = self.cursors[g];
        let steps = self.plans[rank].lane(lane);
        let step = &steps[cursor.step as usize];
        match step.verb {
            Verb::Fold => {
                for from in senders(&self.plans[rank], step) {
                    self.receive(from as usize, rank, lane);
                }
            }
            Verb::Post => self.phases[rank] = step.source_chunk,
            _ if step.receives() => self.receive(step.from as usize, rank, lane),
            _ => {}
        }
        if step.sends() {
            let link = self.link(rank, step.to as usize, lane);
            self.posted[link] += 1;
            if self.posted[link] == self.received[link].saturating_add(self.slots) + 1 {
                self.backlog[rank] += 1;
            }
        }
        let index = cursor.step as usize;
        let tile = self.tile(cursor);
        let next = &mut self.cursors[g];
        next.tile += 1;
        if next.tile == self.window || tile + 1 == self.tiles {
            next.tile = 0;
            next.step += 1;
        }
        if next.step as usize == steps.len() {
            next.step = 0;
            next.block += 1;
            next.done = next.block * self.window >= self.tiles;
        }
        watch.step(Site { rank: Rank::at(rank), lane, index, tile }, step)
    }

    fn receive(&mut self, from: usize, to: usize, lane: usize) {
        let link = self.link(from, to, lane);
        if self.posted[link] == self.received[link].saturating_add(self.slots) + 1 {
            self.backlog[from] -= 1;
        }
        self.received[link] += 1;
    }

    /// Nothing is left on any link.
    fn drained(&self) -> Result<(), Flaw> {
        let Some(link) = (0..self.posted.len()).find(|&l| self.posted[l] != self.received[l])
        else {
            return Ok(());
        };
        let (pair, lane) = (link / self.lanes, link % self.lanes);
        let (from, to) = (pair / self.plans.len(), pair % self.plans.len());
        let (sent, got) = (self.posted[link], self.received[link]);
        Err(Flaw::of_rank(
            Rank::at(from),
            format!("lane {lane} sends {sent} messages to rank {to}, which receives {got}"),
        ))
    }

    /// Nobody can move: who waits for what.
    fn stuck(&self) -> Flaw {
        let mut text = format!("nobody can move, with {} slots a link:", self.slots);
        let mut waiting = (0..self.cursors.len()).filter_map(|g| Some((g, self.next(g)?)));
        let site = |g: usize| Site {
            rank: Rank::at(g / self.lanes),
            lane: g % self.lanes,
            index: self.cursors[g].step as usize,
            tile: self.tile(self.cursors[g]),
        };
        let first = waiting.next().map(|(g, step)| {
            text.push_str(&format!(" it waits for {}", self.reason(g, step)));
            (site(g), *step)
        });
        for (g, step) in waiting.by_ref().take(SHOWN) {
            let reason = self.reason(g, step);
            text.push_str(&format!("; {} ({step}) waits for {reason}", site(g)));
        }
        match waiting.count() {
            0 => {}
            more => text.push_str(&format!("; and {more} more lanes")),
        }
        Flaw { rank: first.map_or(Rank(0), |(site, _)| site.rank), step: first, what: text }
    }

    fn reason(&self, g: usize, step: &Step) -> String {
        let (rank, lane) = (g / self.lanes, g % self.lanes);
        if !self.awaits(g, step) {
            return format!("lane {} step {}", step.wait_lane, step.wait_step);
        }
        if self.held(g) {
            return "what it posted for the tiles before to leave".into();
        }
        if step.has(flag::SETTLE) && self.backlog[rank] > 0 {
            let full = |to: &usize| {
                (0..self.lanes).any(|l| {
                    let link = self.link(rank, *to, l);
                    self.posted[link] > self.received[link].saturating_add(self.slots)
                })
            };
            let peers: Vec<usize> = (0..self.plans.len()).filter(full).collect();
            return format!("what it posted to ranks {peers:?} to leave");
        }
        let missing = match step.verb {
            Verb::Fold => self.senders(g, step).find(|&from| !self.incoming(from, g)),
            _ if step.receives() && !self.incoming(step.from, g) => Some(step.from),
            _ => None,
        };
        if let Some(from) = missing {
            let had = self.received[self.link(from as usize, rank, lane)];
            return format!("message {had} of rank {from}");
        }
        match step.verb {
            Verb::Await => format!("phase {} of rank {}", step.source_chunk, step.from),
            _ => format!("room on the link to rank {}", step.to),
        }
    }
}

/// The ranks whose messages a fold takes, in group order.
pub(super) fn senders<'a>(plan: &'a Plan, step: &Step) -> impl Iterator<Item = u32> + use<'a> {
    let group: &[Rank] = if step.source == super::super::Region::PeerInput {
        &[]
    } else {
        &plan.groups[step.from as usize]
    };
    group.iter().filter(|&&r| r != plan.key.rank).map(|r| r.0)
}

/// The next number of a small generator (xorshift64*).
pub(super) fn random(seed: &mut u64) -> u64 {
    *seed ^= *seed >> 12;
    *seed ^= *seed << 25;
    *seed ^= *seed >> 27;
    seed.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
}

fn shuffle(order: &mut [usize], seed: &mut u64) {
    for i in (1..order.len()).rev() {
        let j = random(seed) % (i as u64 + 1);
        order.swap(i, usize::try_from(j).expect("an index of the list"));
    }
}
