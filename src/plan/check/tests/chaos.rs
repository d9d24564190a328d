//! A second reading of what plans mean, to hold the checker against: plain and slow, all ranks in
//! one random order after another, values as lists of contributions. It shares no code with the
//! checker.

use std::collections::{BTreeMap, VecDeque};

use crate::plan::{NO_STEP, Plan, Region, Step, Verb, flag};
use crate::types::{Collective, Rank};

/// What a chunk holds.
#[derive(Clone, Debug, PartialEq, Default)]
struct Value {
    /// Rank, chunk and whether prepared; in no particular order.
    parts: Vec<(u32, u32, bool)>,
    finished: u32,
    /// A partial result went through the native form.
    rounded: bool,
    tile: u32,
}

/// Rank, region, chunk, tile (or slot of scratch).
type Place = (u32, u8, u32, u32);

#[derive(Debug)]
enum Item {
    Read(Vec<Place>),
    Held(Vec<Value>),
}

#[derive(Debug, Default)]
struct Link {
    outbox: VecDeque<(Item, bool)>,
    slots: VecDeque<(Vec<Value>, bool)>,
}

#[derive(Clone, Copy, Debug)]
enum Move {
    Begin(u32),
    End(u32),
    Step(u32, usize),
    Leave(u32, u32, usize),
}

pub(super) struct Chaos<'a> {
    plans: &'a [Plan],
    tiles: u32,
    window: u32,
    in_place: bool,
    seed: u64,
    memory: BTreeMap<Place, Value>,
    links: BTreeMap<(u32, u32, usize), Link>,
    /// Per rank and lane: everything it will run, in order, and how much it has.
    scripts: Vec<Vec<Vec<(usize, u32)>>>,
    done: Vec<Vec<usize>>,
    begun: Vec<bool>,
    ended: Vec<bool>,
    /// The last phase of each rank and tile.
    phases: BTreeMap<(u32, u32), u32>,
}

type Fault = String;

impl<'a> Chaos<'a> {
    pub(super) fn new(plans: &'a [Plan], in_place: bool, seed: u64) -> Self {
        let (tiles, window) = match &plans[0] {
            plan if plan.direct => (1, 1),
            plan if plan.stage_chunks > 0 => (7, 2),
            _ => (3, 2),
        };
        let script = |steps: usize| {
            let mut script = Vec::new();
            for block in (0..tiles).step_by(window as usize) {
                for step in 0..steps {
                    script.extend((block..tiles.min(block + window)).map(|tile| (step, tile)));
                }
            }
            script
        };
        let scripts: Vec<Vec<_>> = plans
            .iter()
            .map(|p| (0..p.lanes()).map(|lane| script(p.lane(lane).len())).collect())
            .collect();
        let n = plans.len();
        Self {
            plans,
            tiles,
            window,
            in_place,
            seed: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            memory: BTreeMap::new(),
            links: BTreeMap::new(),
            done: scripts.iter().map(|s| vec![0; s.len()]).collect(),
            scripts,
            begun: vec![false; n],
            ended: vec![false; n],
            phases: BTreeMap::new(),
        }
    }

    fn random(&mut self, below: usize) -> usize {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        usize::try_from(self.seed >> 16).expect("48 bits") % below
    }

    /// Runs to the end; says what went wrong.
    pub(super) fn run(mut self) -> Result<(), Fault> {
        let style = self.random(4);
        while !self.ended.iter().all(|&e| e) {
            let mut moves = self.moves();
            // Styles: anything; posts leave late; lanes from behind; one favoured rank.
            match style {
                1 if moves.iter().any(|m| !matches!(m, Move::Leave(..))) => {
                    moves.retain(|m| !matches!(m, Move::Leave(..)));
                }
                2 => drop(moves.drain(..moves.len().saturating_sub(1))),
                3 => moves.truncate(1),
                _ => {}
            }
            if moves.is_empty() {
                return Err("stuck".into());
            }
            let chosen = moves[self.random(moves.len())];
            self.perform(chosen)?;
        }
        let left = self.links.values().any(|l| !l.outbox.is_empty() || !l.slots.is_empty());
        if left { Err("messages left over".into()) } else { Ok(()) }
    }

    fn next(&self, rank: u32, lane: usize) -> Option<(&'a Step, u32)> {
        let at = self.done[rank as usize][lane];
        let &(step, tile) = self.scripts[rank as usize][lane].get(at)?;
        Some((&self.plans[rank as usize].lane(lane)[step], tile))
    }

    fn outboxes_empty(&self, rank: u32) -> bool {
        self.links.iter().all(|(key, link)| key.0 != rank || link.outbox.is_empty())
    }

    /// Nothing in an outbox of `rank` reads what the step writes.
    fn settled(&self, rank: u32, step: &Step, tile: u32) -> bool {
        let targets: Vec<Place> = (step.target_chunk..step.target_chunk + step.chunks)
            .map(|chunk| self.place(rank, step.target, chunk, tile))
            .collect();
        let reads = |item: &Item| match item {
            Item::Read(places) => places.iter().any(|place| targets.contains(place)),
            Item::Held(_) => false,
        };
        let mut own = self.links.iter().filter(|(key, _)| key.0 == rank);
        !own.any(|(_, link)| link.outbox.iter().any(|(item, _)| reads(item)))
    }

    fn moves(&self) -> Vec<Move> {
        let mut moves = Vec::new();
        for (&(from, to, lane), link) in &self.links {
            if !link.outbox.is_empty() && link.slots.len() <= self.window as usize {
                moves.push(Move::Leave(from, to, lane));
            }
        }
        for rank in 0..self.plans[0].key.world {
            if !self.begun[rank as usize] {
                moves.push(Move::Begin(rank));
                continue;
            }
            let lanes = self.scripts[rank as usize].len();
            if (0..lanes).all(|lane| self.next(rank, lane).is_none()) {
                if !self.ended[rank as usize] && self.outboxes_empty(rank) {
                    moves.push(Move::End(rank));
                }
                continue;
            }
            moves.extend(
                (0..lanes).filter(|&lane| self.able(rank, lane)).map(|lane| Move::Step(rank, lane)),
            );
        }
        moves
    }

    fn able(&self, rank: u32, lane: usize) -> bool {
        let Some((step, tile)) = self.next(rank, lane) else {
            return false;
        };
        let arrived = |from: u32| {
            self.links.get(&(from, rank, lane)).is_some_and(|link| !link.slots.is_empty())
        };
        let room = || {
            self.links.get(&(rank, step.to, lane)).is_none_or(|link| {
                link.outbox.is_empty() && link.slots.len() <= self.window as usize
            })
        };
        if step.wait_step != NO_STEP {
            let other = usize::from(step.wait_lane);
            let script = &self.scripts[rank as usize][other];
            let at = script.iter().position(|&s| s == (usize::from(step.wait_step), tile));
            if at.is_none_or(|at| self.done[rank as usize][other] <= at) {
                return false;
            }
        }
        if step.has(flag::SETTLE) && !self.settled(rank, step, tile) {
            return false;
        }
        let begins = self.done[rank as usize][lane] > 0 && tile % self.window == 0;
        if begins && std::ptr::eq(step, &raw const self.plans[rank as usize].lane(lane)[0]) {
            let own = |key: &(u32, u32, usize)| key.0 == rank && key.2 == lane;
            if self.links.iter().any(|(key, link)| own(key) && !link.outbox.is_empty()) {
                return false;
            }
        }
        match step.verb {
            Verb::Await if step.source_chunk == 0 => self.begun[step.from as usize],
            Verb::Await => {
                self.phases.get(&(step.from, tile)).is_some_and(|&p| p >= step.source_chunk)
            }
            Verb::Fold => {
                matches!(step.source, Region::PeerInput | Region::PeerStage)
                    || self.members(rank, step).iter().all(|&r| r == Rank(rank) || arrived(r.0))
            }
            Verb::Recv | Verb::RecvReduce => arrived(step.from),
            Verb::RecvReduceSend | Verb::RecvCopySend => arrived(step.from) && room(),
            _ => true,
        }
    }

    fn members(&self, rank: u32, step: &Step) -> &'a [Rank] {
        &self.plans[rank as usize].groups[step.from as usize]
    }

    fn place(&self, rank: u32, region: Region, chunk: u32, tile: u32) -> Place {
        use Collective as C;
        let plan = &self.plans[rank as usize];
        let rooted_elsewhere = plan.key.collective.rooted() && plan.key.root.0 != rank;
        match region {
            Region::Work => (rank, 2, chunk, tile % self.window),
            Region::Stage | Region::PeerStage => (rank, 3, chunk, tile % (2 * self.window)),
            Region::Input | Region::PeerInput => (rank, 0, chunk, tile),
            _ if !self.in_place => (rank, 1, chunk, tile),
            _ => match plan.key.collective {
                C::AllReduce | C::Reduce | C::AllToAll => (rank, 0, chunk, tile),
                C::Broadcast if !rooted_elsewhere => (rank, 0, chunk, tile),
                C::AllGather if chunk == rank => (rank, 0, 0, tile),
                C::ReduceScatter => (rank, 0, rank, tile),
                _ => (rank, 1, chunk, tile),
            },
        }
    }

    fn perform(&mut self, chosen: Move) -> Result<(), Fault> {
        match chosen {
            Move::Begin(rank) => self.begin(rank),
            Move::End(rank) => return self.end(rank),
            Move::Leave(from, to, lane) => {
                let link = self.links.get_mut(&(from, to, lane)).expect("listed");
                let (item, wide) = link.outbox.pop_front().expect("listed");
                let values = match item {
                    Item::Held(values) => values,
                    Item::Read(places) => {
                        let get = |p| self.memory.get(p).cloned().unwrap_or_default();
                        let values: Vec<_> = places.iter().map(get).collect();
                        values.into_iter().map(|v| formed(v, wide)).collect()
                    }
                };
                self.links
                    .get_mut(&(from, to, lane))
                    .expect("listed")
                    .slots
                    .push_back((values, wide));
            }
            Move::Step(rank, lane) => {
                let (step, tile) = self.next(rank, lane).expect("listed");
                self.done[rank as usize][lane] += 1;
                self.step(rank, lane, step, tile)?;
            }
        }
        Ok(())
    }

    fn begin(&mut self, rank: u32) {
        let key = &self.plans[rank as usize].key;
        let chunks = match key.collective {
            Collective::AllReduce | Collective::Broadcast => self.plans[0].chunks,
            Collective::ReduceScatter | Collective::AllToAll => key.world,
            _ => 1,
        };
        for (chunk, tile) in (0..chunks).flat_map(|c| (0..self.tiles).map(move |t| (c, t))) {
            let value = Value { parts: vec![(rank, chunk, false)], tile, ..Value::default() };
            self.memory.insert((rank, 0, chunk, tile), value);
        }
        self.begun[rank as usize] = true;
    }

    /// The caller looks at its output and uses its buffers for something else.
    fn end(&mut self, rank: u32) -> Result<(), Fault> {
        let key = &self.plans[rank as usize].key;
        let n = key.world;
        let everyone = |chunk| (0..n).map(|r| (r, chunk, key.prepared)).collect();
        let expected: Vec<Vec<(u32, u32, bool)>> = match key.collective {
            Collective::AllReduce => (0..self.plans[0].chunks).map(everyone).collect(),
            Collective::ReduceScatter => vec![everyone(rank)],
            Collective::Broadcast => {
                (0..self.plans[0].chunks).map(|c| vec![(key.root.0, c, false)]).collect()
            }
            Collective::AllToAll => (0..n).map(|s| vec![(s, rank, false)]).collect(),
            Collective::Barrier if self.begun.iter().all(|&b| b) => vec![],
            Collective::Barrier => return Err("left a barrier early".into()),
            other => return Err(format!("no model of {other}")),
        };
        let finished = u32::from(key.collective.reduces());
        for (chunk, parts) in (0u32..).zip(&expected) {
            for tile in 0..self.tiles {
                let place = self.place(rank, Region::Output, chunk, tile);
                let mut value = self.memory.get(&place).cloned().unwrap_or_default();
                value.parts.sort_unstable();
                let right = Value { parts: parts.clone(), finished, rounded: false, tile };
                if value != right {
                    return Err(format!("rank {rank} chunk {chunk} tile {tile}: {value:?}"));
                }
            }
        }
        self.memory.retain(|place, _| place.0 != rank || place.1 >= 2);
        self.ended[rank as usize] = true;
        Ok(())
    }

    fn load(&self, place: Place, tile: u32) -> Result<Value, Fault> {
        if place.1 != 2 && !self.begun[place.0 as usize] {
            return Err("memory of a rank that has not begun".into());
        }
        let value = self.memory.get(&place).cloned().unwrap_or_default();
        let barrier = self.plans[0].key.collective == Collective::Barrier;
        if !barrier && (value.parts.is_empty() || value.tile != tile) {
            return Err(format!("{place:?} holds {value:?}"));
        }
        Ok(value)
    }

    fn store(&mut self, place: Place, value: Value) -> Result<(), Fault> {
        if self.ended[place.0 as usize] || !self.begun[place.0 as usize] {
            return Err("memory of a rank that has ended or not begun".into());
        }
        let wide = place.1 == 2 && self.plans[0].key.collective.reduces();
        self.memory.insert(place, formed(value, wide));
        Ok(())
    }

    fn take(&mut self, from: u32, to: u32, lane: usize, step: &Step) -> Result<Vec<Value>, Fault> {
        let link = self.links.get_mut(&(from, to, lane)).ok_or("no such link")?;
        let (values, wide) = link.slots.pop_front().ok_or("nothing there")?;
        if wide != step.has(flag::WIDE) || values.len() != step.chunks as usize {
            return Err("a message of another form or length".into());
        }
        Ok(values)
    }

    fn post(&mut self, rank: u32, lane: usize, step: &Step, item: Item) {
        let link = self.links.entry((rank, step.to, lane)).or_default();
        link.outbox.push_back((item, step.sends_wide()));
    }

    fn step(&mut self, rank: u32, lane: usize, step: &Step, tile: u32) -> Result<(), Fault> {
        if matches!(step.verb, Verb::Post) {
            self.phases.insert((rank, tile), step.source_chunk);
        }
        if matches!(step.verb, Verb::Post | Verb::Await) {
            return Ok(());
        }
        let chunks = 0..step.chunks;
        let owner = |region| match region {
            Region::PeerInput | Region::PeerOutput | Region::PeerStage => step.from,
            _ => rank,
        };
        let sources: Vec<Place> = chunks
            .clone()
            .map(|c| self.place(owner(step.source), step.source, step.source_chunk + c, tile))
            .collect();
        let targets: Vec<Place> = chunks
            .clone()
            .map(|c| self.place(owner(step.target), step.target, step.target_chunk + c, tile))
            .collect();
        if step.verb == Verb::Send {
            self.post(rank, lane, step, Item::Read(sources));
            return Ok(());
        }
        if step.verb == Verb::Fold {
            return self.fold(rank, lane, step, tile);
        }
        let message =
            if step.receives() { self.take(step.from, rank, lane, step)? } else { vec![] };
        let mut results = Vec::new();
        for c in chunks.map(|c| c as usize) {
            let value = match step.verb {
                Verb::Copy => self.load(sources[c], tile)?,
                Verb::Reduce => sum(&[self.load(sources[c], tile)?, self.load(targets[c], tile)?]),
                Verb::RecvReduce | Verb::RecvReduceSend => {
                    sum(&[self.load(sources[c], tile)?, message[c].clone()])
                }
                _ => message[c].clone(),
            };
            let value = staged(value, step);
            if step.target != Region::None {
                self.store(targets[c], value.clone())?;
            }
            results.push(value);
        }
        match step.verb {
            _ if step.sends_target() && self.random(2) == 0 => {
                self.post(rank, lane, step, Item::Read(targets));
            }
            Verb::RecvReduceSend | Verb::RecvCopySend => {
                self.post(rank, lane, step, Item::Held(results));
            }
            _ => {}
        }
        Ok(())
    }

    fn fold(&mut self, rank: u32, lane: usize, step: &Step, tile: u32) -> Result<(), Fault> {
        let (direct, by_stages) =
            (step.source == Region::PeerInput, step.source == Region::PeerStage);
        let members = self.members(rank, step);
        let mut columns = vec![Vec::new(); step.chunks as usize];
        for member in members {
            if !direct && !by_stages && member.0 != rank {
                let values = self.take(member.0, rank, lane, step)?;
                columns.iter_mut().zip(values).for_each(|(column, value)| column.push(value));
                continue;
            }
            for (c, column) in (0u32..).zip(&mut columns) {
                let own = by_stages && member.0 == rank;
                let source = if own { Region::Input } else { step.source };
                let place = self.place(member.0, source, step.source_chunk + c, tile);
                column.push(self.load(place, tile)?);
            }
        }
        for (c, column) in (0u32..).zip(columns) {
            let value = staged(sum(&column), step);
            if by_stages && step.has(flag::SPREAD) {
                let place = self.place(rank, Region::Stage, step.source_chunk + c, tile);
                self.store(place, value.clone())?;
            }
            let far = direct && step.has(flag::SPREAD);
            let spread = members.iter().filter(|m| m.0 == rank || far);
            for member in spread {
                let place = self.place(member.0, step.target, step.target_chunk + c, tile);
                self.store(place, value.clone())?;
            }
        }
        Ok(())
    }
}

fn sum(values: &[Value]) -> Value {
    let mut total = values[0].clone();
    for value in &values[1..] {
        total.parts.extend_from_slice(&value.parts);
        // A finished result is no operand: no count of finishes makes that right again.
        total.finished += value.finished + 100 * u32::from(value.finished + total.finished > 0);
        total.rounded |= value.rounded;
    }
    total
}

fn staged(mut value: Value, step: &Step) -> Value {
    value.finished += u32::from(step.has(flag::FINISH));
    if step.has(flag::PREPARE) {
        // Prepared twice shows as a part that no result has.
        value.parts.iter_mut().for_each(|p| *p = (p.0 + 1000 * u32::from(p.2), p.1, true));
    }
    value
}

/// The value after it stood in this form.
fn formed(mut value: Value, wide: bool) -> Value {
    let exact = value.parts.len() < 2 && value.parts.iter().all(|p| !p.2);
    value.rounded |= !wide && value.finished == 0 && !exact;
    value
}
