//! Forms a communicator: from an id or an environment to connected, authenticated links.
//!
//! The order, the same on every rank: listen; give a card and get everyone's; trade segments with
//! the ranks of this host and agree who shares memory; connect sockets to everyone (one for
//! control, and lanes to those without shared memory); meet once more, so that nobody goes on
//! before all are ready.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::algo::Hosts;
use crate::backend::Backend;
use crate::backend::gpu::{self, Nccl, Reach};
use crate::backend::native::Native;
use crate::boot::env::Launch;
use crate::boot::id::UniqueId;
use crate::boot::interface::choose;
use crate::boot::local::{LocalListener, LocalPeer, exchange_local, host_hint, settle};
use crate::boot::mesh::{self, PeerSockets, Place, connect_mesh};
use crate::boot::rendezvous::{Joined, check_place, decline, join};
use crate::comm::card::{Card, GpuCard, apply_terms, encode_terms};
use crate::comm::device::Gpu;
use crate::comm::ground::{self, Ground};
use crate::comm::{nccl, rdma, rsocket};
use crate::config::{Config, Device, Family, Tuning};
use crate::engine::Engine;
use crate::engine::link::Fabric;
use crate::engine::wires::FABRIC_LANES;
use crate::error::{Code, Error, Result};
use crate::health::Health;
use crate::health::control::{Control, Controls};
use crate::health::threads::Thread;
use crate::link::doze::Doze;
use crate::link::ends::Ends;
use crate::link::layout::LAYOUT;
use crate::link::shm::{self, Neighbour};
use crate::link::tcp::{TcpRx, TcpTx};
use crate::link::{AnyRx, AnyTx, Links, capacity, mem};
use crate::nccl::Library;
use crate::sys::affinity;
use crate::sys::bell::Bell;
use crate::sys::limits;
use crate::sys::memory::Segment;
use crate::sys::poll::{Interest, Poller};
use crate::sys::process::Process;
use crate::sys::socket::set_keepalive;
use crate::tune::{Facts, Memory, Tuner};
use crate::types::Rank;

/// Trading segments takes milliseconds; a rank that has not done it by then uses sockets.
/// Of the memory, one in so many parts may stay registered at RDMA cards for calls that use it.
const CACHE_SHARE: usize = 16;
const LOCAL_LIMIT: Duration = Duration::from_secs(10);

/// A rank's backend, and what was decided on the way.
#[derive(Debug)]
pub(crate) struct Formed {
    pub(crate) backend: Box<dyn Backend>,
    /// What the backend stands on besides: what a split needs.
    pub(crate) ground: Option<Ground>,
    /// This rank's GPU, where it has one.
    pub(crate) gpu: Option<Gpu>,
    pub(crate) config: Config,
    /// Every rank of this host can have a processor for itself.
    pub(crate) own_cores: bool,
    /// What was chosen and why, a line each.
    pub(crate) notes: Vec<String>,
}

/// Backends for `world` threads of this process.
pub(crate) fn threads(world: u32, config: &Config) -> Result<Vec<Formed>> {
    check_place(0, world)?;
    if config.backend == Family::Mpi {
        let text = "ranks that are threads of one process are no ranks of MPI's";
        return Err(Error::new(Code::Unsupported, text));
    }
    let config = &with_table(config)?;
    let count = world as usize;
    let hosts = Arc::new(one_host(count)?);
    let own_cores = count <= affinity::count();
    let links = mem::connect(count)?;
    let gpus = Gpu::of_threads(config, world)?;
    let comms = threads_of_nccl(&gpus, config)?;
    let reach = if comms.is_empty() { Gpu::join(&gpus) } else { None };
    let (mut gpus, mut comms) = (gpus.into_iter(), comms.into_iter());
    let healths = Thread::all(links.iter().map(|l| l.doze().clone()).collect());
    let mut form = |(rank, (links, health)): (u32, (Links, Thread))| {
        let poller = Poller::new()?;
        poller.add(links.doze().bell().fd(), 0, Interest::Read)?;
        let facts = facts(Rank(rank), world, &hosts, config, &links, Memory::All);
        let engine = engine(links, facts, 0);
        let native = Native::new(engine, Health::Threads(health), poller);
        let gpu = gpus.next();
        let mut notes = vec![format!("{world} ranks are threads of one process")];
        notes.extend(table_note(config));
        let mover = match comms.next() {
            Some((library, nccl)) => {
                notes.push(format!("NCCL {} makes them: {}", library.version, library.place));
                (Some(nccl), None)
            }
            None => (None, reach.clone()),
        };
        let place = (Rank(rank), world);
        let backend = on_gpu(native, gpu.as_ref(), place, mover, (config, &mut notes))?;
        let device = gpu.as_ref().map_or(Device::None, Gpu::device);
        let config = Config { device, ..config.clone() };
        Ok(Formed { backend, ground: None, gpu, config, own_cores, notes })
    };
    (0..).zip(links.into_iter().zip(healths)).map(&mut form).collect()
}

/// NCCL for threads of this process, each with one of `gpus`; none where NCCL is not to serve them.
fn threads_of_nccl(gpus: &[Gpu], config: &Config) -> Result<Vec<(Arc<Library>, Nccl)>> {
    let mut unsaid = Vec::new();
    let card = |gpu: Option<&Gpu>| Card {
        hint: [0; 32],
        name: String::new(),
        addresses: Vec::new(),
        processors: Vec::new(),
        foreign: None,
        family: config.backend,
        gpu: gpu.map(Gpu::card),
        rdma: None,
        rsocket: None,
    };
    let cards: Vec<Card> = match gpus {
        [] => vec![card(None)],
        gpus => gpus.iter().map(|gpu| card(Some(gpu))).collect(),
    };
    let Some(library) = nccl::choose(&cards, gpus.first(), config, &mut unsaid)? else {
        return Ok(Vec::new());
    };
    let comms = nccl::form_threads(library, gpus, super::start::deadline(config))?;
    let terms = nccl::terms(&cards, config);
    let made = |comm| (library.clone(), Nccl::new(library.clone(), comm, terms));
    Ok(comms.into_iter().map(made).collect())
}

/// The backend over `native`, for memory of `gpu` too where there is one.
fn on_gpu(
    native: Native,
    gpu: Option<&Gpu>,
    place: (Rank, u32),
    mover: (Option<Nccl>, Option<Reach>),
    (config, notes): (&Config, &mut Vec<String>),
) -> Result<Box<dyn Backend>> {
    let Some(gpu) = gpu else { return Ok(Box::new(native)) };
    notes.push(format!("calls may be on memory of {}", gpu.describe()));
    let device = (gpu.context().clone(), gpu.facts());
    Ok(Box::new(gpu::Gpu::new(native, device, place, mover, config.timeout)?))
}

/// How ranks that share host memory reach each other's device memory, if all have a GPU, and every
/// GPU reaches every other, which is tried. All ranks call this where they share memory.
fn reach(
    cards: &[Card],
    gpu: Option<&Gpu>,
    joined: &mut Joined,
    deadline: Instant,
) -> Result<Option<Reach>> {
    let all: Option<Vec<GpuCard>> = cards.iter().map(|card| card.gpu).collect();
    let (Some(all), Some(gpu)) = (all, gpu) else { return Ok(None) };
    // Nothing fails on one rank alone: what it lacks is a verdict.
    let sample = if gpu.reaches(&all) { gpu.sample().ok() } else { None };
    let told = sample.as_ref().map_or(Vec::new(), |(_, name)| name.to_vec());
    let names = joined.exchange(&told, deadline)?;
    let found = sample.is_some() && gpu.finds(&all, &names);
    let verdicts = joined.exchange(&[u8::from(found)], deadline)?;
    let places: Vec<_> = all.iter().map(GpuCard::place).collect();
    Ok(verdicts.iter().all(|verdict| verdict == &[1]).then(|| Reach::of(&places)))
}

/// The same with the table in its file read.
fn with_table(config: &Config) -> Result<Config> {
    let table = config.tuning.as_ref().map(Tuning::table).transpose()?;
    Ok(Config { tuning: table.map(Tuning::Table), ..config.clone() })
}

fn table_note(config: &Config) -> Option<String> {
    let Some(Tuning::Table(table)) = &config.tuning else { return None };
    Some(format!("algorithms by a table of {} measured points", table.rows().len()))
}

fn one_host(world: usize) -> Result<Hosts> {
    Hosts::new(&vec![0; world]).ok_or_else(|| Error::new(Code::InvalidArgument, "a world of 0"))
}

fn facts(
    rank: Rank,
    world: u32,
    hosts: &Arc<Hosts>,
    config: &Config,
    links: &Links,
    memory: Memory,
) -> Facts {
    Facts {
        rank,
        world,
        hosts: hosts.clone(),
        deterministic: config.deterministic,
        algorithm: config.algorithm,
        tile_bytes: u64::from(config.tile_bytes),
        window: u64::from(config.window),
        capacity: links.capacity() as u64,
        memory,
        table: match &config.tuning {
            Some(Tuning::Table(table)) => Some(table.clone()),
            Some(Tuning::File(_)) | None => None,
        },
    }
}

fn engine(links: Links, facts: Facts, epoch: u32) -> Engine<Links, Tuner> {
    let (rank, world, deterministic) = (facts.rank, facts.world, facts.deterministic);
    Engine::new(links, Tuner::new(facts), rank, world, epoch, deterministic)
}

/// What a rank has before the others hear of it: most of what it may lack.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// Why it listens where it listens.
    reason: String,
    listeners: Vec<TcpListener>,
    door: LocalListener,
    bell: Bell,
    /// What this rank decides for all if it is the first.
    terms: Vec<u8>,
    /// Makes room for the connection to the rendezvous: a later failure is told over that.
    spare: TcpListener,
    gpu: Option<Gpu>,
    /// Listeners of RDMA cards, or why there are none.
    rdma: Result<rdma::Doors, String>,
    /// The listener for sockets of librdmacm, or why there is none.
    rsocket: Result<rsocket::Door, String>,
}

impl Prepared {
    /// What the others are told.
    fn card(&self, config: &Config, ground: Option<&Ground>) -> Card {
        Card {
            hint: host_hint(),
            name: self.door.name().to_owned(),
            addresses: self.listeners.iter().filter_map(|l| l.local_addr().ok()).collect(),
            processors: affinity::mask(),
            foreign: ground.map(Ground::card),
            family: config.backend,
            gpu: self.gpu.as_ref().map(Gpu::card),
            rdma: self.rdma.as_ref().ok().map(rdma::offer),
            rsocket: self.rsocket.as_ref().ok().map(rsocket::offer),
        }
    }
}

/// This rank's number on its host, as the launcher says.
pub(super) fn local_rank() -> Option<u32> {
    Launch::from_env(0).ok().and_then(|launch| launch.local_rank)
}

/// Gets what can be had without the others. Only the `first` of them reads the table in its file.
pub(crate) fn prepare(config: &Config, first: bool) -> Result<Prepared> {
    let terms = encode_terms(&if first { with_table(config)? } else { config.clone() });
    // A world of a few hundred ranks needs more descriptors than the usual soft limit.
    let _ = limits::raise_files();
    let choice = choose(config.interface.as_deref())?;
    let listeners = mesh::listen(&choice.addresses)?;
    let first =
        listeners.first().ok_or_else(|| Error::new(Code::NoAddress, "no address to listen at"))?;
    let spare = first.try_clone().map_err(|error| Error::os(&error, "a descriptor to spare"))?;
    let (door, bell) = (LocalListener::new()?, Bell::open()?);
    let gpu = if config.backend == Family::Mpi { None } else { Gpu::of(config, local_rank())? };
    let rdma = rdma::prepare(config, local_rank())?;
    let rsocket = rsocket::prepare(config, local_rank())?;
    let reason = choice.reason;
    Ok(Prepared { reason, listeners, door, bell, terms, spare, gpu, rdma, rsocket })
}

/// The backend of `rank` in the job of `id`. Blocks until every rank has come, at most the
/// configured start-up time.
pub(crate) fn processes(
    id: &UniqueId,
    rank: i64,
    world: i64,
    config: &Config,
    epoch: u32,
    ground: Option<&Ground>,
) -> Result<Formed> {
    let (rank, world) = place(rank, world)?;
    let deadline = super::start::deadline(config);
    match prepare(config, rank == 0) {
        Ok(prepared) => gather(id, (rank, world), config, epoch, (prepared, ground)),
        Err(error) => {
            decline(id, rank, world, &error, deadline);
            Err(error)
        }
    }
}

/// As [`processes`], with what this rank has got already.
pub(crate) fn gather(
    id: &UniqueId,
    (rank, world): (u32, u32),
    config: &Config,
    epoch: u32,
    (prepared, ground): (Prepared, Option<&Ground>),
) -> Result<Formed> {
    let deadline = super::start::deadline(config);
    let card = prepared.card(config, ground);
    let Prepared { reason, listeners, door, bell, terms, spare, gpu, rdma, rsocket } = prepared;
    drop(spare);
    let mut joined = join(id, rank, world, &card.encode(), &terms, deadline)?;
    let outcome = (|| {
        let mut config = config.clone();
        apply_terms(&mut config, &joined.terms)?;
        // What is made of this communicator has the same.
        config.device = gpu.as_ref().map_or(Device::None, Gpu::device);
        let cards = joined.cards.iter().enumerate();
        let cards = cards.map(|(r, c)| Card::decode(c, r)).collect::<Result<Vec<_>>>()?;
        let ranks = ground::agree(&cards, rank)?;
        let place = Place { rank, world, key: id.key(), epoch: u64::from(epoch), deadline };
        let notes = [reason].into_iter().chain(table_note(&config)).collect();
        let mut forming = Forming { place, cards, config, notes };
        let (neighbours, me, memory) = forming.neighbours(&door, bell, &mut joined)?;
        let far = forming.connect((rdma, rsocket), &neighbours, &mut joined)?;
        let sockets = forming.sockets(&listeners, (&neighbours, &far), &mut joined)?;
        let Finished { native, cards, mut config, own_cores, mut notes } =
            forming.finish(neighbours, me, (sockets, far), memory, epoch)?;
        joined.exchange(&[], deadline)?;
        let Some(ground) = ground else {
            let place = (Rank(rank), world);
            let library = nccl::choose(&cards, gpu.as_ref(), &config, &mut notes)?;
            let mover = match (library, &gpu) {
                (Some(library), Some(gpu)) => {
                    let comm = nccl::form(library, (rank, world), gpu, &mut joined, deadline)?;
                    let terms = nccl::terms(&cards, &config);
                    (Some(Nccl::new(library.clone(), comm, terms)), None)
                }
                _ if memory => (None, reach(&cards, gpu.as_ref(), &mut joined, deadline)?),
                _ => (None, None),
            };
            let backend = on_gpu(native, gpu.as_ref(), place, mover, (&config, &mut notes))?;
            if cards.iter().any(|card| card.gpu.is_some()) {
                // What a GPU lacked here is told before others go on.
                joined.exchange(&[], deadline)?;
            }
            return Ok(Formed { backend, ground: None, gpu, config, own_cores, notes });
        };
        // Nothing fails on one rank alone from here on, but what MPI itself refuses.
        let settings = (&mut config, &mut notes);
        let (backend, ground) = ground.build(native, &ranks, (Rank(rank), id), settings)?;
        // Whoever goes on may revoke what others are still making.
        joined.exchange(&[], deadline)?;
        Ok(Formed { backend, ground: Some(ground), gpu: None, config, own_cores, notes })
    })();
    match outcome {
        Err(error) => {
            joined.abort(&error);
            Err(error)
        }
        formed => formed,
    }
}

/// Rank and world as a caller gave them.
pub(crate) fn place(rank: i64, world: i64) -> Result<(u32, u32)> {
    let bad = |what: &str, value: i64| {
        Error::new(Code::InvalidArgument, format!("{what} {value} is not a number of ranks"))
    };
    let world_size = u32::try_from(world).map_err(|_| bad("a world of", world))?;
    let out = || Error::new(Code::RankOutOfRange, format!("rank {rank} in a world of {world}"));
    let rank = u32::try_from(rank).map_err(|_| out())?;
    check_place(rank, world_size)?;
    Ok((rank, world_size))
}

/// A native backend whose ranks have met, and what was decided on the way.
struct Finished {
    native: Native,
    cards: Vec<Card>,
    config: Config,
    own_cores: bool,
    notes: Vec<String>,
}

/// Connections by RDMA.
struct Far {
    connected: Option<rdma::Connected>,
    /// The same by sockets of librdmacm.
    plugged: Option<rsocket::Connected>,
    /// Some two ranks of the world have one.
    any: bool,
    ends: Ends,
}

impl Far {
    /// Whether this rank has one with `rank`.
    fn has(&self, rank: usize) -> bool {
        self.connected.as_ref().is_some_and(|made| made.member[rank].is_some())
            || self.plugged.as_ref().is_some_and(|made| made.member[rank].is_some())
    }
}

struct Forming<'a> {
    place: Place<'a>,
    cards: Vec<Card>,
    config: Config,
    notes: Vec<String>,
}

/// The ranks of this host: their numbers, and those that share memory with this one.
type Neighbours = Vec<(usize, Option<(Neighbour, Option<Process>)>)>;

impl Forming<'_> {
    fn me(&self) -> usize {
        Rank(self.place.rank).index()
    }

    /// Trades segments with the ranks of this host. Also: the own index among them, and whether the
    /// whole world shares memory.
    fn neighbours(
        &mut self,
        door: &LocalListener,
        bell: Bell,
        joined: &mut Joined,
    ) -> Result<(Neighbours, usize, bool)> {
        let me = self.me();
        let hint = self.cards[me].hint;
        let same = |r: &usize| self.config.shm && self.cards[*r].hint == hint || *r == me;
        let candidates: Vec<usize> = (0..self.cards.len()).filter(same).collect();
        let index = candidates.iter().position(|&r| r == me).unwrap_or(0);
        let segment = Segment::create("unisono-rings", shm::segment_bytes(candidates.len()))?;
        let names: Vec<Option<String>> = (0..self.cards.len())
            .map(|r| (candidates.contains(&r) && r != me).then(|| self.cards[r].name.clone()))
            .collect();
        let deadline = self.place.deadline.min(Instant::now() + LOCAL_LIMIT);
        let place = Place { deadline, ..self.place };
        let own = (&segment, LAYOUT);
        let mut peers = exchange_local(&place, door, &names, own, &bell, Some(&mut *joined))?;
        let memory = settle(joined, self.place.rank, &mut peers, self.place.deadline)?;
        let mut own = Some(Neighbour::new(me, segment, bell, None));
        let neighbour = |&rank: &usize| {
            if rank == me {
                return (rank, own.take().map(|n| (n, None)));
            }
            let made = peers[rank].take().map(|LocalPeer { segment, bell, process, socket }| {
                (Neighbour::new(rank, segment, bell, Some(socket)), process)
            });
            (rank, made)
        };
        let neighbours: Neighbours = candidates.iter().map(neighbour).collect();
        let shared = neighbours.iter().filter(|(_, n)| n.is_some()).count();
        self.notes.push(format!("{shared} of {} ranks share memory here", self.cards.len()));
        Ok((neighbours, index, memory))
    }

    /// Connects by RDMA with those that share no memory with this rank, where both have cards.
    fn connect(
        &mut self,
        (doors, door): (Result<rdma::Doors, String>, Result<rsocket::Door, String>),
        neighbours: &Neighbours,
        joined: &mut Joined,
    ) -> Result<Far> {
        let me = self.me();
        let offers: Vec<_> = self.cards.iter().map(|card| card.rdma.clone()).collect();
        let near = |rank: usize| neighbours.iter().any(|(n, found)| *n == rank && found.is_some());
        let wanted = |rank: usize| rank != me && !near(rank) && self.config.rdma;
        let wanted: Vec<bool> = (0..offers.len()).map(wanted).collect();
        let ends = Ends::default();
        let mut far = Far { connected: None, plugged: None, any: false, ends: ends.clone() };
        let doors = doors.map_err(|why| {
            if wanted.contains(&true) {
                self.notes.push(format!("no RDMA here: {why}"));
            }
        });
        if self.config.rdma && self.may_connect(|card| card.rdma.is_some()) {
            let doors = doors.ok();
            let cache = self.config.rdma_cache.unwrap_or_else(|| limits::memory() / CACHE_SHARE);
            let told = (cache, &ends, &mut self.notes);
            (far.connected, far.any) =
                rdma::connect(&self.place, doors, &offers, &wanted, told, joined)?;
        }
        let wanted = |rank: usize| rank != me && !near(rank) && !far.has(rank);
        let wanted: Vec<bool> = (0..offers.len()).map(wanted).collect();
        self.plug(door, &wanted, &mut far, joined)?;
        Ok(far)
    }

    /// Connects by sockets of librdmacm with those that are left.
    fn plug(
        &mut self,
        door: Result<rsocket::Door, String>,
        wanted: &[bool],
        far: &mut Far,
        joined: &mut Joined,
    ) -> Result<()> {
        let door = door.map_err(|why| {
            if self.config.rsocket && wanted.contains(&true) {
                self.notes.push(format!("no rsocket (RDMA) here: {why}"));
            }
        });
        if !self.config.rsocket || !self.may_connect(|card| card.rsocket.is_some()) {
            return Ok(());
        }
        let offers: Vec<_> = self.cards.iter().map(|card| card.rsocket.clone()).collect();
        let told = (&far.ends, &mut self.notes);
        let (plugged, any) =
            rsocket::connect(&self.place, door.ok(), &offers, wanted, told, joined)?;
        (far.plugged, far.any) = (plugged, far.any || any);
        Ok(())
    }

    /// Whether two ranks may come to be connected by RDMA, as every rank reads it from the cards.
    fn may_connect(&self, able: impl Fn(&Card) -> bool) -> bool {
        let able = |card: &&Card| able(card);
        let apart = |one: &Card, two: &Card| !(self.config.shm && one.hint == two.hint);
        let mut able = self.cards.iter().filter(able);
        let first = able.next();
        // Who shares no host with the first, or with one that does: some two are apart.
        first.is_some_and(|first| able.any(|card| apart(first, card)))
    }

    /// Connects to everyone: lanes only where there is neither shared memory nor RDMA.
    fn sockets(
        &mut self,
        listeners: &[TcpListener],
        (neighbours, far): (&Neighbours, &Far),
        joined: &mut Joined,
    ) -> Result<Vec<Option<PeerSockets>>> {
        let me = self.me();
        let lanes_max = u16::try_from(FABRIC_LANES).unwrap_or(u16::MAX);
        let lanes: Vec<u16> = (0..self.cards.len())
            .map(|r| {
                let near = neighbours.iter().any(|(n, found)| *n == r && found.is_some());
                if near || far.has(r) { 0 } else { lanes_max }
            })
            .collect();
        let lacks = |&r: &usize| r != me && lanes[r] > 0 && !self.config.tcp;
        if let Some(far) = (0..lanes.len()).find(lacks) {
            let why = self.notes.iter().rfind(|note| note.contains("RDMA"));
            let why = why.filter(|_| self.config.rdma || self.config.rsocket);
            let why = why.map_or(String::new(), |why| format!("; {why}"));
            let text = format!(
                "rank {far} shares neither memory nor RDMA with rank {me} and links exclude tcp{why}"
            );
            return Err(Error::new(Code::Unsupported, text).with_peer(Rank::at(far)));
        }
        let addresses: Vec<Vec<SocketAddr>> =
            self.cards.iter().map(|c| c.addresses.clone()).collect();
        let sockets = connect_mesh(&self.place, listeners, &addresses, &lanes, Some(joined))?;
        for (rank, peer) in sockets.iter().enumerate() {
            if let Some(peer) = peer.as_ref().filter(|p| !p.lanes.is_empty()) {
                self.notes.push(format!("rank {rank} at {}: {}", peer.address, peer.why));
            }
        }
        Ok(sockets)
    }

    fn finish(
        self,
        neighbours: Neighbours,
        index: usize,
        (sockets, far): (Vec<Option<PeerSockets>>, Far),
        memory: bool,
        epoch: u32,
    ) -> Result<Finished> {
        let me = self.me();
        let world = self.cards.len();
        let mut processes: Vec<Option<Process>> = (0..world).map(|_| None).collect();
        let mut found = Vec::new();
        for (rank, neighbour) in neighbours {
            let (neighbour, process) = neighbour.unzip();
            processes[rank] = process.flatten();
            found.push(neighbour);
        }
        let doze = match &found[index] {
            Some(own) => own.doze.clone(),
            None => Arc::new(Doze::new()?),
        };
        // Whatever carries their bytes, ranks of one host share its cores.
        let here = self.cards.iter().filter(|c| c.hint == self.cards[me].hint);
        let masks: Vec<&[u64]> = here.map(|c| &c.processors[..]).collect();
        let own_cores = affinity::suffices(&self.cards[me].processors, &masks);
        let hosts = Arc::new(self.hosts()?);
        // All ranks must agree on it, so what counts is who could share memory, not who does.
        let apart = hosts.count() == world;
        let mut links = Links::new(world, doze, capacity(apart && !far.any), far.ends);
        shm::join(&mut links, &found, index);
        if memory && world > 1 {
            let all: Vec<&Neighbour> = found.iter().flatten().collect();
            links.set_board(shm::board(&all, index));
        }
        let poller = Poller::new()?;
        poller.add(links.doze().bell().fd(), 0, Interest::Read)?;
        if far.any {
            links.set_places(rdma::PLACE_BYTES);
        }
        if let Some(rdma::Connected { launched, member }) = far.connected {
            launched.add_to(|fd| poller.add(fd, 4, Interest::Read))?;
            links.set_rdma(launched, &member);
        }
        if let Some(rsocket::Connected { opened, member }) = far.plugged {
            opened.add_to(|fd| poller.add(fd, 4, Interest::Read))?;
            links.set_rsocket(opened, &member);
        }
        let controls = self.controls(sockets, processes, &mut links, &poller)?;
        let rank = Rank(self.place.rank);
        let given = if memory { Memory::Given } else { Memory::Apart };
        let facts = facts(rank, self.place.world, &hosts, &self.config, &links, given);
        let native =
            Native::new(engine(links, facts, epoch), Health::Processes(Controls(controls)), poller);
        let Self { cards, config, notes, .. } = self;
        Ok(Finished { native, cards, config, own_cores, notes })
    }

    /// Puts the sockets in their places; returns the connections for control.
    fn controls(
        &self,
        sockets: Vec<Option<PeerSockets>>,
        mut processes: Vec<Option<Process>>,
        links: &mut Links,
        poller: &Poller,
    ) -> Result<Vec<Control>> {
        let me = self.me();
        let mut controls = Vec::new();
        for (rank, peer) in sockets.into_iter().enumerate() {
            let Some(peer) = peer.filter(|_| rank != me) else {
                continue;
            };
            for (lane, stream) in peer.lanes.into_iter().enumerate() {
                poller.add(&stream, 1, Interest::Edge)?;
                let stream = Arc::new(stream);
                let ends = links.ends().clone();
                let tx = TcpTx::new(stream.clone(), Rank::at(rank), ends.clone());
                let rx = TcpRx::new(stream, Rank::at(rank), ends);
                links.join(rank, lane, AnyTx::Tcp(tx), AnyRx::Tcp(rx));
            }
            let control = Control::new(Rank::at(rank), peer.control, processes[rank].take());
            // The kernel notices a peer's host that is gone without a word.
            set_keepalive(control.stream())?;
            poller.add(control.stream(), 2, Interest::Edge)?;
            if let Some(process) = control.process() {
                poller.add(process.fd(), 3, Interest::Edge)?;
            }
            controls.push(control);
        }
        Ok(controls)
    }

    /// Which ranks share a host, as every rank reads it from the cards.
    fn hosts(&self) -> Result<Hosts> {
        let first = |r: usize| {
            let same = |c: &Card| self.config.shm && c.hint == self.cards[r].hint;
            let first = self.cards.iter().position(same).unwrap_or(r);
            u32::try_from(first).unwrap_or(u32::MAX)
        };
        let marks: Vec<u32> = (0..self.cards.len()).map(first).collect();
        Hosts::new(&marks).ok_or_else(|| Error::new(Code::InvalidArgument, "a world of 0"))
    }
}

#[cfg(test)]
#[path = "form_tests.rs"]
mod tests;
