//! RDMA between the ranks of a communicator: whether there are cards, and connections by them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::boot::doors::{self, Wanted};
use crate::boot::mesh::Place;
use crate::boot::offer::Offer;
use crate::boot::rdma::{self as boot, Fit};
use crate::boot::rendezvous::Joined;
use crate::comm::form::local_rank;
use crate::comm::rsocket;
use crate::config::Config;
use crate::error::{Code, Error, Result};
use crate::link::ends::Ends;
pub(crate) use crate::link::rdma::PLACE_BYTES;
use crate::link::rdma::{Cards, Launched, PATHS_MAX, Yard};
use crate::rdma::{Card, Id, Library, Port, cards};
use crate::sys::affinity;
use crate::types::Rank;

/// Connecting takes milliseconds; what has not come about by then goes by other links.
pub(crate) const LIMIT: Duration = Duration::from_secs(15);

/// The RDMA cards of this host, a line each, and which of them a rank would use.
///
/// # Errors
/// `UNSUPPORTED` where the libraries or cards are missing.
pub fn rdma(config: &Config) -> Result<(Vec<String>, String)> {
    let library = Library::open(config.ibverbs_lib.as_deref(), config.rdmacm_lib.as_deref())?;
    let port = |port: &Port| {
        let state = if port.up { "up" } else { "down" };
        let kind = if port.ethernet { "Ethernet" } else { "InfiniBand" };
        let addresses: Vec<String> = port.addresses.iter().map(ToString::to_string).collect();
        format!("port {} {state}, {kind} {}", port.number, addresses.join(" "))
            .trim_end()
            .to_owned()
    };
    let line = |card: &Card| {
        let node = card.node.map_or_else(String::new, |node| format!(", at memory node {node}"));
        let kind = if card.iwarp { ", iWARP" } else { "" };
        let ports: Vec<String> = card.ports.iter().map(port).collect();
        format!("{}: {}{kind}{node}", card.name, ports.join("; "))
    };
    let lines = cards(&library).iter().map(line).collect();
    let choice = match prepare(config, local_rank())? {
        Ok(doors) => format!("{}; libraries {}", doors.note, library.place),
        Err(why) => format!("not used: {why}"),
    };
    if !config.rsocket {
        return Ok((lines, choice));
    }
    let other = match rsocket::prepare(config, local_rank())? {
        Ok(door) => door.note,
        Err(why) => format!("rsocket is not used: {why}"),
    };
    Ok((lines, format!("{choice}; {other}")))
}

/// Listeners of this rank's cards.
pub(crate) use crate::boot::doors::Doors;

/// Which cards a rank is to use.
pub(crate) fn wanted(config: &Config, local_rank: Option<u32>) -> Wanted<'_> {
    match config.rdma_device.as_deref() {
        None => Wanted::Any,
        Some("local_rank") => Wanted::Number(local_rank.unwrap_or(0)),
        Some(list) => Wanted::Named(list),
    }
}

/// The cards of this rank, or why there are none.
///
/// # Errors
/// What was asked for and is not there.
pub(crate) fn prepare(config: &Config, local_rank: Option<u32>) -> Result<Result<Doors, String>> {
    if !config.rdma {
        return Ok(Err("RDMA is not among the links".to_owned()));
    }
    let wanted = wanted(config, local_rank);
    let opened = Library::open(config.ibverbs_lib.as_deref(), config.rdmacm_lib.as_deref())
        .and_then(|library| doors::open(&library, wanted, affinity::node(), PATHS_MAX));
    match opened {
        Ok(doors) => Ok(Ok(doors)),
        Err(error) if error.code == Code::Unsupported && wanted != Wanted::Any => Err(error),
        Err(error) if error.code == Code::InvalidArgument => Err(error),
        Err(error) => Ok(Err(error.detail.into())),
    }
}

/// What a rank tells of its cards.
pub(crate) fn offer(doors: &Doors) -> Offer {
    doors.offer.clone()
}

/// Connections to some of the ranks.
#[derive(Debug)]
pub(crate) struct Connected {
    pub(crate) launched: Launched,
    /// Which number each rank has that is connected.
    pub(crate) member: Vec<Option<usize>>,
}

struct Fitting {
    yard: Yard,
    /// Numbers of ranks.
    index: Vec<Option<usize>>,
}

impl Fitting {
    fn at(&self, peer: u32) -> Option<usize> {
        self.index.get(Rank(peer).index()).copied().flatten()
    }
}

impl Fit for Fitting {
    fn fit(&mut self, peer: u32, path: usize, id: Id) -> Result<()> {
        let lost = || Error::new(Code::Internal, "a connection with a rank that has no place");
        let index = self.at(peer).ok_or_else(lost)?;
        self.yard.fit(index, path, id)
    }

    fn id(&mut self, peer: u32, path: usize) -> Option<&mut Id> {
        let index = self.at(peer)?;
        self.yard.id(index, path)
    }

    fn unfit(&mut self, peer: u32, path: usize) {
        if let Some(index) = self.at(peer) {
            self.yard.drop_path(index, path);
        }
    }

    fn number(&self, peer: u32, path: usize) -> Option<usize> {
        self.at(peer).map(|index| index * PATHS_MAX + path)
    }
}

/// Connects with those of the ranks that `wanted` says, which say the same of this one. Every rank
/// of the world calls it if any does. Also: whether any two ranks are connected so.
///
/// # Errors
/// What this rank lacks, and what others have failed by.
pub(crate) fn connect(
    place: &Place<'_>,
    doors: Option<Doors>,
    offers: &[Option<Offer>],
    wanted: &[bool],
    (cache, ends, notes): (usize, &Ends, &mut Vec<String>),
    joined: &mut Joined,
) -> Result<(Option<Connected>, bool)> {
    let world = offers.len();
    let mut mine = vec![0; world];
    let mut made = None;
    if let Some(mut doors) = doors {
        let paths_to = |rank: usize| {
            let there = offers[rank].as_ref().map_or(0, |offer| offer.addresses.len());
            if wanted[rank] { there.min(doors.offer.addresses.len()) } else { 0 }
        };
        let paths: Vec<usize> = (0..world).map(paths_to).collect();
        let ranks: Vec<Rank> = (0..world).filter(|r| paths[*r] > 0).map(Rank::at).collect();
        let place = Place { deadline: place.deadline.min(Instant::now() + LIMIT), ..*place };
        notes.push(std::mem::take(&mut doors.note));
        let bound = doors.bound.iter().map(|(device, port, _)| (device.clone(), *port)).collect();
        let opened = Cards::open(Arc::clone(&doors.channel), bound, ranks.len())
            .and_then(|cards| Yard::new(cards, &ranks, cache, ends.clone()));
        match opened {
            Ok(yard) => {
                let mut index = vec![None; world];
                (0..).zip(&ranks).for_each(|(at, rank)| index[rank.index()] = Some(at));
                let mut fitting = Fitting { yard, index };
                let peers: Vec<(Offer, usize)> = offers
                    .iter()
                    .zip(&paths)
                    .map(|(offer, paths)| (offer.clone().unwrap_or_default(), *paths))
                    .collect();
                let failed = boot::connect(&place, &doors, &peers, &mut fitting, joined)?;
                notes.extend(failed.into_iter().map(|why| format!("not by RDMA: {why}")));
                for (rank, index) in fitting.index.iter().enumerate() {
                    let fitted = index.is_some_and(|index| fitting.yard.has(index, paths[rank]));
                    mine[rank] = if fitted { paths[rank] } else { 0 };
                }
                made = Some((fitting, doors));
            }
            // Too little memory may be locked, say: other links do without.
            Err(error) => notes.push(format!("not by RDMA: {}", error.detail)),
        }
    }
    let (kept, any) = boot::agree(joined, place.rank, &mine, place.deadline)?;
    let Some((fitting, doors)) = made else { return Ok((None, any)) };
    let Fitting { yard, index } = fitting;
    let by_member: Vec<usize> =
        (0..world).filter(|rank| index[*rank].is_some()).map(|r| kept[r]).collect();
    let launched = yard.launch(&by_member)?;
    drop(doors);
    let member: Vec<Option<usize>> =
        (0..world).map(|rank| index[rank].filter(|_| kept[rank] > 0)).collect();
    greet(|index| launched.is_open(index), "RDMA", &member, place.deadline, joined)?;
    Ok((Some(Connected { launched, member }), any))
}

/// Waits until all of `member` have said HELLO, which `is_open` tells by number: then the way,
/// which is by `what`, has been tried in both directions.
pub(crate) fn greet(
    is_open: impl Fn(usize) -> bool,
    what: &str,
    member: &[Option<usize>],
    deadline: Instant,
    joined: &mut Joined,
) -> Result<()> {
    let mut rank = 0;
    // BOUND: the deadline.
    while rank < member.len() {
        match member[rank] {
            Some(index) if !is_open(index) => {
                if Instant::now() >= deadline {
                    let text = format!("rank {rank} is connected by {what} and says nothing");
                    return Err(Error::new(Code::LinkLost, text).with_peer(Rank::at(rank)));
                }
                joined.heed()?;
                std::thread::sleep(Duration::from_micros(50));
            }
            _ => rank += 1,
        }
    }
    Ok(())
}
