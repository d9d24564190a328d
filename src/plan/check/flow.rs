//! Who may run when: all lanes of all ranks over links with few slots, without looking at values.
//!
//! The state is how far each lane has come and, per link, how many messages were posted and
//! received. Whatever fits moves from the outbox into the slots, so with K slots the outbox is
//! empty exactly while `posted <= received + K`, and holds the youngest messages otherwise.
//!
//! In worlds that pass `values` every condition stays true once it is true: whoever posts again
//! from a place that has settled has to wait for the write that settled it. Then the order in which
//! lanes run decides nothing, and longer calls bring nothing new, for all ranks could run block by
//! block, with empty links in between. What is run here shows it rather than relying on it. (Only a
//! copy onto itself settles without a write; that it does so last is the worst case.)

use std::collections::VecDeque;

use super::super::{NO_STEP, Plan, Region, Step, Verb, flag};
use super::places::{Places, Shape};
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
    /// What lies in the target of `RecvCopySend` and `RecvReduceSend` too is posted from there
    /// instead of needing room on the link.
    pub(super) post_copies: bool,
    /// Links take nothing on before their other end receives it, unless a step needs it to: a lane
    /// is then held at the start of a block until all that it posted has been received.
    pub(super) slow_links: bool,
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

/// What a message in an outbox reads: so many chunks of a region, of one tile.
#[derive(Clone, Copy, Debug)]
struct Reads {
    region: Region,
    chunk: u32,
    chunks: u32,
    tile: u32,
}

/// The world being run.
pub(super) struct Flow<'a> {
    plans: &'a [Plan],
    places: &'a Places<'a>,
    /// Lanes of the plan with the most.
    lanes: usize,
    tiles: u32,
    window: u32,
    slots: u32,
    schedule: Schedule,
    /// A step that settles waits for everything its rank posted: a mistake that tests make.
    settle_all: bool,
    cursors: Vec<Cursor>,
    posted: Vec<u32>,
    received: Vec<u32>,
    /// What the messages of each link read that are in the outbox.
    outboxes: Vec<VecDeque<Reads>>,
    /// Messages of each lane that are in outboxes.
    waiting: Vec<u32>,
    /// Messages of each lane that have not been received.
    under_way: Vec<u32>,
    /// How many messages in outboxes read each place.
    readers: Vec<u32>,
    /// How many phases each rank has posted, over all tiles.
    phases: Vec<u32>,
    /// Lanes for which something has changed since they were last tried.
    roused: Vec<bool>,
    /// How many senders of the fold that a lane stands at are known to have posted.
    seen: Vec<usize>,
}

impl<'a> Flow<'a> {
    pub(super) fn new(
        plans: &'a [Plan],
        places: &'a Places<'a>,
        slots: u32,
        schedule: Schedule,
    ) -> Self {
        let world = plans.len();
        let Shape { lanes, tiles, window, .. } = places.shape;
        let cursor = |index: usize| Cursor {
            done: {
                let (plan, lane) = (&plans[index / lanes], index % lanes);
                lane >= plan.lanes() || plan.lane(lane).is_empty()
            },
            ..Cursor::default()
        };
        Self {
            plans,
            places,
            lanes,
            tiles,
            window,
            slots,
            schedule,
            settle_all: false,
            cursors: (0..world * lanes).map(cursor).collect(),
            posted: vec![0; world * world * lanes],
            received: vec![0; world * world * lanes],
            outboxes: vec![VecDeque::new(); world * world * lanes],
            waiting: vec![0; world * lanes],
            under_way: vec![0; world * lanes],
            readers: vec![0; places.count()],
            phases: vec![0; world],
            roused: vec![true; world * lanes],
            seen: vec![0; world * lanes],
        }
    }

    /// The same, with steps that settle waiting for too much.
    #[cfg(test)]
    pub(super) fn settling_all(self) -> Self {
        Self { settle_all: true, ..self }
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
                if !std::mem::take(&mut self.roused[g]) {
                    continue;
                }
                while self.ready(g, !self.schedule.settle_last) {
                    self.fire(g, watch)?;
                    moved = true;
                }
            }
            // Now that all have posted what they can, each may settle once.
            if !moved {
                for &g in &order {
                    if self.ready(g, true) {
                        self.fire(g, watch)?;
                        moved = true;
                    }
                }
            }
            if !moved {
                return Err(self.stuck());
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
            Verb::RecvReduceSend | Verb::RecvCopySend => {
                !(self.schedule.post_copies && step.sends_target())
            }
            _ => false,
        }
    }

    fn room(&self, g: usize, step: &Step) -> bool {
        let link = self.link(g / self.lanes, step.to as usize, g % self.lanes);
        self.posted[link] < self.received[link].saturating_add(self.slots)
    }

    /// Whether a lane waits at the start of a block for what it posted before to leave.
    fn held(&self, g: usize) -> bool {
        let Cursor { step, tile, .. } = self.cursors[g];
        let left = if self.schedule.slow_links { &self.under_way } else { &self.waiting };
        (step, tile) == (0, 0) && left[g] > 0
    }

    /// Whether no message in an outbox reads what a step that settles is about to write.
    fn settled(&self, g: usize, step: &Step) -> bool {
        let rank = g / self.lanes;
        let waiting = &self.waiting[rank * self.lanes..][..self.lanes];
        if waiting.iter().all(|&n| n == 0) {
            return true;
        }
        !self.settle_all && self.written(g, step).all(|place| self.readers[place] == 0)
    }

    /// The places of its own rank that a step writes.
    fn written(&self, g: usize, step: &Step) -> impl Iterator<Item = usize> + use<'a> {
        let (places, rank, tile) =
            (self.places, Rank::at(g / self.lanes), self.tile(self.cursors[g]));
        let chunks = if step.writes_here() { step.chunks } else { 0 };
        let (target, first) = (step.target, step.target_chunk);
        (first..first + chunks).map(move |chunk| places.at(rank.0, target, chunk, tile))
    }

    fn ready(&mut self, g: usize, settle: bool) -> bool {
        let Some(step) = self.next(g) else {
            return false;
        };
        let settled = !step.has(flag::SETTLE) || (settle && self.settled(g, step));
        settled
            && self.awaits(g, step)
            && !self.held(g)
            && match step.verb {
                Verb::Fold => self.all_posted(g, step),
                Verb::Await => {
                    let tile = self.tile(self.cursors[g]);
                    let number = self.places.posted(step.from, step.source_chunk, tile);
                    self.phases[step.from as usize] >= number
                }
                _ => {
                    (!step.receives() || self.incoming(step.from, g))
                        && (!self.needs_room(step) || self.room(g, step))
                }
            }
    }

    /// Whether there is a message of every sender of a fold.
    fn all_posted(&mut self, g: usize, step: &Step) -> bool {
        for from in self.senders(g, step).skip(self.seen[g]) {
            if !self.incoming(from, g) {
                return false;
            }
            self.seen[g] += 1;
        }
        true
    }

    /// Lets the lanes of a rank be tried again.
    fn rouse(&mut self, rank: usize) {
        self.roused[rank * self.lanes..][..self.lanes].fill(true);
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
            Verb::Post => {
                self.phases[rank] += 1;
                self.roused.fill(true);
            }
            _ if step.receives() => self.receive(step.from as usize, rank, lane),
            _ => {}
        }
        if step.sends() {
            let link = self.link(rank, step.to as usize, lane);
            self.posted[link] += 1;
            self.under_way[g] += 1;
            self.roused[step.to as usize * self.lanes + lane] = true;
            if self.posted[link] > self.received[link].saturating_add(self.slots) {
                self.wait_outside(g, link, step);
            }
        }
        self.rouse(rank);
        self.seen[g] = 0;
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

    /// A message that the link has no room for waits in the outbox.
    fn wait_outside(&mut self, g: usize, link: usize, step: &Step) {
        let tile = self.tile(self.cursors[g]);
        let (region, chunk) = match step.verb {
            Verb::Send => (step.source, step.source_chunk),
            _ => (step.target, step.target_chunk),
        };
        let reads = Reads { region, chunk, chunks: step.chunks, tile };
        self.outboxes[link].push_back(reads);
        self.waiting[g] += 1;
        self.count(g / self.lanes, reads, |n| *n += 1);
    }

    fn count(&mut self, rank: usize, reads: Reads, change: impl Fn(&mut u32)) {
        let Reads { region, chunk, chunks, tile } = reads;
        for chunk in chunk..chunk + chunks {
            let place = self.places.at(Rank::at(rank).0, region, chunk, tile);
            change(&mut self.readers[place]);
        }
    }

    /// Makes room on a link, which the oldest message in the outbox takes.
    fn receive(&mut self, from: usize, to: usize, lane: usize) {
        let link = self.link(from, to, lane);
        let sender = from * self.lanes + lane;
        self.received[link] += 1;
        self.under_way[sender] -= 1;
        if let Some(reads) = self.outboxes[link].pop_front() {
            self.waiting[sender] -= 1;
            self.count(from, reads, |n| *n -= 1);
        }
        self.rouse(from);
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
        if step.has(flag::SETTLE) && !self.settled(g, step) {
            let full = |to: &usize| {
                (0..self.lanes).any(|l| !self.outboxes[self.link(rank, *to, l)].is_empty())
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
    let group: &[Rank] = if step.source.is_peer() { &[] } else { &plan.groups[step.from as usize] };
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
