//! Inside each host first, then between hosts, then inside each host again.
//!
//! Hosts may have any sizes and any ranks. What is to be reduced is cut into rails, as many as the
//! largest host has ranks; each host deals the rails to its ranks in runs, so that every rank talks
//! to other hosts about its own rails, all ranks at once, and a byte crosses to another host once.
//!
//! ```text
//! all_reduce, 2 hosts of 2 ranks: chunk rail * hosts + h ends on host h
//!
//!   host 0          host 1        lane 0: fold each rail inside the host (1 message a pair),
//!   0: rail 0 <---> 2: rail 0             fold each chunk over the hosts
//!   1: rail 1 <---> 3: rail 1     lane 1: results between hosts     lane 2: inside the host
//! ```
//!
//! With h hosts of s ranks each (n = h s):
//!
//! | collective | messages sent | chunks moved per rank | hops |
//! |---|---|---|---|
//! | all_reduce | 2(s-1) + 2(h-1) | (s-1) of s inside, (h-1) of n between hosts, each twice | 4 |
//! | reduce | (s-1) + (h-1) + 1 | (s-1) of s inside, h of n besides | 3 |
//! | reduce_scatter, all_gather | h(s-1) + h-1 | n-h of n inside, h-1 of n between hosts | 2 |
//! | broadcast (binomial, twice) | up to ceil(log2 h) + ceil(log2 s) | the buffer, once | as many |
//!
//! Order of operands: tree order inside hosts, then over hosts, which is the tree order over all
//! ranks where the hosts nest ([`Hosts::nest`]).

use std::ops::Range;

use super::{Hosts, Team, binomial, last_step, prepared, send_contribution, small};
use crate::plan::build::{Builder, StepId};
use crate::plan::{Key, Region, Step, flag};
use crate::types::{Collective, Rank};

pub(super) fn plan(key: &Key, hosts: &Hosts) -> Option<Builder> {
    use Collective as C;
    let view = View::of(hosts, key.rank);
    if view.steps() > STEPS_MAX {
        return None;
    }
    let chunks = match key.collective {
        C::AllReduce | C::Reduce => view.rails * hosts.count(),
        _ => 1,
    };
    let mut b = Builder::new(key.clone(), small(chunks));
    match key.collective {
        C::AllReduce => {
            let folded = sum(&mut b, &view);
            spread(&mut b, &view, folded);
        }
        C::Reduce => reduce(&mut b, &view),
        C::ReduceScatter | C::ReduceScatterV => reduce_scatter(&mut b, &view),
        C::AllGather | C::AllGatherV => all_gather(&mut b, &view),
        C::Broadcast => broadcast(&mut b, &view),
        _ => return None,
    }
    Some(b)
}

/// More would not fit a plan.
const STEPS_MAX: usize = 60_000;

/// The world as one rank sees it.
struct View<'a> {
    hosts: &'a Hosts,
    host: usize,
    /// The own host.
    team: Team<'a>,
    rails: usize,
}

impl<'a> View<'a> {
    fn of(hosts: &'a Hosts, rank: Rank) -> Self {
        let host = hosts.of(rank);
        let ranks = hosts.members(host);
        Self {
            hosts,
            host,
            team: Team { ranks, me: ranks.binary_search(&rank).expect("a rank is on its host") },
            rails: (0..hosts.count()).map(|h| hosts.members(h).len()).max().unwrap_or(1),
        }
    }

    /// A bound, equal on all ranks, for the steps of any plan of any rank.
    fn steps(&self) -> usize {
        let sizes: Vec<usize> =
            (0..self.hosts.count()).map(|h| self.hosts.members(h).len()).collect();
        let (count, least) = (sizes.len(), sizes.iter().min().copied().unwrap_or(1));
        let dealt = self.rails.div_ceil(least);
        let sums = count * (self.rails + 3 * dealt) + 3 * self.rails;
        let handed = |here: usize| sizes.iter().map(|s| s.div_ceil(here) * here).sum::<usize>();
        let blocks = sizes.iter().map(|s| handed(*s)).max().unwrap_or(0);
        sums.max(blocks + 2 * self.hosts.world() as usize + count)
    }

    /// The rails of member `member` of `host`.
    fn dealt(&self, host: usize, member: usize) -> Range<usize> {
        let members = self.hosts.members(host).len();
        (member * self.rails).div_ceil(members)..((member + 1) * self.rails).div_ceil(members)
    }

    /// Who has `rail` on `host`.
    fn owner(&self, host: usize, rail: usize) -> Rank {
        let members = self.hosts.members(host);
        members[rail * members.len() / self.rails]
    }

    /// The chunk of `rail` that ends on `host`.
    fn chunk(&self, rail: usize, host: usize) -> u32 {
        small(rail * self.hosts.count() + host)
    }

    /// All chunks of `rails`: the first, and how many.
    fn chunks(&self, rails: &Range<usize>) -> (u32, u32) {
        let count = self.hosts.count();
        (small(rails.start * count), small(rails.len() * count))
    }

    /// The other hosts, rotated.
    fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let (host, count) = (self.host, self.hosts.count());
        (1..count).map(move |i| (host + i) % count)
    }

    /// The member of `host` that stands for `rank` there; `rank` itself on its own host.
    fn deputy(&self, rank: Rank, host: usize) -> Rank {
        let home = self.hosts.members(self.hosts.of(rank));
        let at = home.binary_search(&rank).expect("a rank is on its host");
        let members = self.hosts.members(host);
        let at = at * members.len() / home.len();
        // Small hosts would all burden the first members.
        let turn = if home.len() < members.len() { self.hosts.of(rank) } else { 0 };
        members[(at + turn) % members.len()]
    }

    /// The ranks of `host` that `rank` stands for.
    fn wards(&self, rank: Rank, host: usize) -> impl Iterator<Item = Rank> {
        let here = self.hosts.of(rank);
        let all = self.hosts.members(host).iter().copied();
        all.filter(move |r| self.deputy(*r, here) == rank)
    }
}

/// Folds `chunks` chunks from `first` over the own host, into scratch; on a host of one, only sees
/// to it that they stand there wide if others' do (`wide`). Returns where the host's part is.
fn fold_host(b: &mut Builder, team: Team<'_>, first: u32, chunks: u32, wide: bool) -> Region {
    let own = b.contribution();
    let step = if team.len() > 1 {
        let group = b.group(team.ranks);
        Step::fold(group, (own, first), (Region::Work, first)).wide(prepared(b))
    } else if own == Region::Input && wide {
        Step::copy((own, first), (Region::Work, first))
    } else {
        return own;
    };
    b.push(0, step.over(chunks));
    Region::Work
}

/// Folds one chunk over `group`, one rank of each host or one host, and finishes it.
fn fold_hosts(
    b: &mut Builder,
    group: impl Iterator<Item = Rank>,
    source: (Region, u32),
    target: (Region, u32),
    wide: bool,
) {
    let mut group: Vec<Rank> = group.collect();
    group.sort_unstable();
    let group = b.group(&group);
    let step = Step::fold(group, source, target).with(flag::FINISH);
    b.push(0, step.wide(wide));
}

/// Whether hosts' parts are wide: they are sums somewhere, or products.
fn parts_wide(b: &Builder, view: &View<'_>) -> bool {
    view.rails > 1 || prepared(b)
}

/// Lane 0: sums every rail inside the host and every chunk over the hosts. The chunks of the own
/// rails that belong to the own host end in Output where there is one, else in scratch.
fn sum(b: &mut Builder, view: &View<'_>) -> StepId {
    let (team, count) = (view.team, view.hosts.count());
    b.load(small(view.rails * count));
    for p in team.others() {
        let (first, chunks) = view.chunks(&view.dealt(view.host, p));
        if chunks > 0 {
            send_contribution(b, team.ranks[p], first, chunks);
        }
    }
    let output = b.key().collective == Collective::AllReduce || b.key().rank == b.key().root;
    let target = if output { Region::Output } else { Region::Work };
    let mine = view.dealt(view.host, team.me);
    let (first, chunks) = view.chunks(&mine);
    if count == 1 {
        let group = b.group(team.ranks);
        let step = Step::fold(group, (b.contribution(), first), (target, first));
        let wide = prepared(b);
        return b.push(0, step.over(chunks).wide(wide).with(flag::FINISH));
    }
    let wide = parts_wide(b, view);
    let part = fold_host(b, team, first, chunks, wide);
    for host in view.others() {
        for rail in mine.clone() {
            let step = Step::send(view.owner(host, rail), part, view.chunk(rail, host));
            b.push(0, step.wide(wide));
        }
    }
    for rail in mine {
        let chunk = view.chunk(rail, view.host);
        let group = (0..count).map(|h| view.owner(h, rail));
        fold_hosts(b, group, (part, chunk), (target, chunk), wide);
    }
    last_step(b)
}

/// Lanes 1 and 2: finished chunks between hosts, then whole rails inside the host.
fn spread(b: &mut Builder, view: &View<'_>, folded: StepId) {
    let team = view.team;
    let mine = view.dealt(view.host, team.me);
    let mut after = Some(folded);
    let mut whole = folded;
    for host in view.others() {
        for rail in mine.clone() {
            let chunk = view.chunk(rail, view.host);
            let step = Step::send(view.owner(host, rail), Region::Output, chunk);
            b.push(1, after.take().map_or(step, |id| step.after(id)));
        }
    }
    for host in view.others() {
        for rail in mine.clone() {
            let from = view.owner(host, rail);
            whole = b.push(1, Step::recv(from, Region::Output, view.chunk(rail, host)));
        }
    }
    let (first, chunks) = view.chunks(&mine);
    let mut after = Some(whole);
    for p in team.others() {
        let step = Step::send(team.ranks[p], Region::Output, first).over(chunks);
        b.push(2, after.take().map_or(step, |id| step.after(id)));
    }
    for p in team.senders() {
        let (first, chunks) = view.chunks(&view.dealt(view.host, p));
        let step = Step::recv(team.ranks[p], Region::Output, first);
        b.push(2, step.over(chunks));
    }
}

fn reduce(b: &mut Builder, view: &View<'_>) {
    sum(b, view);
    let root = b.key().root;
    let mine = |host: usize, member: usize| {
        let rails = view.dealt(host, member);
        rails.map(move |rail| view.chunk(rail, host))
    };
    if b.key().rank != root {
        for chunk in mine(view.host, view.team.me) {
            let step = Step::send(root, Region::Work, chunk);
            b.push(0, step.wide(true).with(flag::STORED));
        }
        return;
    }
    for host in std::iter::once(view.host).chain(view.others()) {
        for (member, rank) in view.hosts.members(host).iter().enumerate() {
            for chunk in mine(host, member).filter(|_| *rank != root) {
                let step = Step::recv(*rank, Region::Output, chunk);
                b.push(0, step.wide(true));
            }
        }
    }
}

fn reduce_scatter(b: &mut Builder, view: &View<'_>) {
    let (team, count) = (view.team, view.hosts.count());
    let me = team.ranks[team.me];
    b.load(view.hosts.world());
    // All of the host deal the blocks in this order, their own last: the others have further to go.
    let order = view.others().chain([view.host]);
    let blocks: Vec<(Rank, Rank)> = order
        .flat_map(|host| view.hosts.members(host))
        .map(|block| (*block, view.deputy(*block, view.host)))
        .collect();
    for (block, to) in blocks.iter().filter(|(_, to)| *to != me) {
        let step = Step::send(*to, b.contribution(), block.0);
        let wide = prepared(b);
        b.push(0, step.wide(wide));
    }
    let wide = parts_wide(b, view);
    let mut part = b.contribution();
    if count == 1 {
        let wide = prepared(b);
        let group = team.ranks.iter().copied();
        fold_hosts(b, group, (part, me.0), (Region::Output, 0), wide);
        return;
    }
    for (block, _) in blocks.iter().filter(|(_, to)| *to == me) {
        part = fold_host(b, team, block.0, 1, wide);
        if *block != me {
            b.push(0, Step::send(*block, part, block.0).wide(wide));
        }
    }
    let group = (0..count).map(|h| view.deputy(me, h));
    fold_hosts(b, group, (part, me.0), (Region::Output, 0), wide);
}

fn all_gather(b: &mut Builder, view: &View<'_>) {
    let team = view.team;
    let me = team.ranks[team.me];
    for host in view.others() {
        b.push(0, Step::send(view.deputy(me, host), Region::Input, 0));
    }
    for p in team.others() {
        b.push(1, Step::send(team.ranks[p], Region::Input, 0));
    }
    b.push(0, Step::copy((Region::Input, 0), (Region::Output, me.0)));
    // Lane 0 takes blocks in from other hosts; lane 1 hands them around in the own one.
    let mut taken = Vec::new();
    for host in view.others() {
        for rank in view.wards(me, host) {
            taken.push((rank, b.push(0, Step::recv(rank, Region::Output, rank.0))));
        }
    }
    for p in team.senders() {
        let rank = team.ranks[p];
        b.push(1, Step::recv(rank, Region::Output, rank.0));
    }
    for (rank, got) in taken {
        for p in team.others() {
            let step = Step::send(team.ranks[p], Region::Output, rank.0);
            b.push(1, step.after(got));
        }
    }
    for host in view.others() {
        for p in team.senders() {
            for rank in view.wards(team.ranks[p], host) {
                b.push(1, Step::recv(team.ranks[p], Region::Output, rank.0));
            }
        }
    }
}

/// Binomial over one rank of each host, the root for its own, then binomial inside each host.
fn broadcast(b: &mut Builder, view: &View<'_>) {
    let root = b.key().root;
    let home = view.hosts.of(root);
    let lead = |host: usize| {
        if host == home { root } else { view.hosts.members(host)[0] }
    };
    let me = view.team.ranks[view.team.me];
    let mut got = None;
    if me == lead(view.host) {
        let leads: Vec<Rank> = (0..view.hosts.count()).map(lead).collect();
        let leads = Team { ranks: &leads, me: view.host };
        let place = binomial::Place::of(leads.len(), leads.me, home);
        got = binomial::down(b, 0, leads, &place, Region::Input, None);
        if me == root {
            b.push(0, Step::copy((Region::Input, 0), (Region::Output, 0)));
        }
    }
    let top = view.team.ranks.binary_search(&lead(view.host));
    let top = top.expect("the lead is on its host");
    let place = binomial::Place::of(view.team.len(), view.team.me, top);
    let source = if me == root { Region::Input } else { Region::Output };
    binomial::down(b, 1, view.team, &place, source, got);
}
