//! Connections in the making: open cards, and memory to which connections are fitted.
//!
//! [`Cards`] is what is opened before anybody is connected; a [`Berth`] is the memory of one peer's
//! lanes, and the queue pairs that stand on it; a [`Yard`] is all of them, from which the fleet is
//! launched once the ranks have agreed who is connected.

use std::sync::Arc;
use std::time::Instant;

use super::fleet::{Fleet, Launched};
use super::pair::{DEPTH, Memory, PATHS_MAX, Pair};
use super::port::Keys;
use super::queue::{FRAMES_IN, FRAMES_OUT, INLINE_BYTES, Own, Queue, SENDS};
use super::regions::Regions;
use super::shared::Shared;
use super::worth;
use crate::error::{Code, Error, Result};
use crate::link::ends::Ends;
use crate::rdma::{Channel, Completions, Device, Domain, Id, Registered, Sizes};
use crate::sys::memory::Pages;
use crate::types::Rank;

/// An open card.
#[derive(Debug)]
pub(super) struct Card {
    pub(super) device: Device,
    /// The port that its connections go by, and since when that is down.
    pub(super) port: u8,
    pub(super) down: Option<Instant>,
    pub(super) domain: Arc<Domain>,
    pub(super) completions: Arc<Completions>,
}

/// The cards that a rank uses.
#[derive(Debug)]
pub(crate) struct Cards {
    /// In the order in which peers' are met.
    pub(super) list: Vec<Card>,
    /// Where connections tell what becomes of them.
    pub(super) channel: Arc<Channel>,
}

impl Cards {
    /// Opens devices, each to be used by a port, with room for `peers` peers.
    pub(crate) fn open(
        channel: Arc<Channel>,
        bound: Vec<(Device, u8)>,
        peers: usize,
    ) -> Result<Self> {
        let open = |(device, port): (Device, u8)| {
            let (requests, room) = device.limits()?;
            let name = device.name();
            let wanted = peers as u64 * u64::from(SENDS + DEPTH);
            let wanted = u32::try_from(wanted).unwrap_or(u32::MAX);
            if wanted > room || requests < SENDS {
                let text = format!("card {name} takes {room} completions, {wanted} are needed");
                return Err(Error::new(Code::Limit, text));
            }
            let (domain, completions) = (device.domain()?, device.completions(wanted)?);
            Ok(Card { device, port, down: None, domain, completions })
        };
        let list = bound.into_iter().take(PATHS_MAX).map(open).collect::<Result<_>>()?;
        Ok(Self { list, channel })
    }
}

/// The memory of a peer's lanes, registered with each card, and the connections fitted so far.
#[derive(Debug)]
struct Berth {
    peer: Rank,
    /// Dropped in this order: connections first.
    queues: Vec<Option<Queue>>,
    held: Vec<Registered>,
    own: Vec<Own>,
    pages: Pages,
}

impl Berth {
    /// For the lanes to `peer`.
    ///
    /// # Errors
    /// `LIMIT` where so much memory may not be locked.
    fn new(cards: &Cards, peer: Rank) -> Result<Self> {
        let paths = cards.list.len();
        let frames = FRAMES_IN + FRAMES_OUT;
        let rest = Memory::BYTES + paths * frames;
        let pages = Pages::new(Memory::BYTES + rest)?;
        let rings = pages.at().as_ptr();
        let mirrors = rings.wrapping_add(Memory::BYTES);
        let (mut held, mut own) = (Vec::new(), Vec::new());
        for (path, card) in cards.list.iter().enumerate() {
            // SAFETY: the pages stay as long as the registrations, which are dropped before them.
            // Peers may write to the rings, and know that nothing there is trusted.
            let (open, closed) = unsafe {
                (
                    card.domain.register(rings, Memory::BYTES, true)?,
                    card.domain.register(mirrors, rest, false)?,
                )
            };
            let ((local, remote), (rest, _)) = (open.keys(), closed.keys());
            let frames_in = mirrors.wrapping_add(Memory::BYTES + path * frames);
            let frames_out = frames_in.wrapping_add(FRAMES_IN);
            let memory = Memory { rings, mirrors };
            let rings = Keys { local, remote };
            own.push(Own { memory, rings, rest, frames_in, frames_out });
            held.extend([open, closed]);
        }
        let queues = (0..paths).map(|_| None).collect();
        Ok(Self { peer, queues, held, own, pages })
    }
}

/// Berths for all peers.
#[derive(Debug)]
pub(crate) struct Yard {
    cards: Cards,
    ends: Ends,
    regions: Shared<Regions>,
    berths: Vec<Berth>,
}

// SAFETY: addresses in berths are of memory that they own.
unsafe impl Send for Yard {}

impl Yard {
    /// Berths for `peers` at `cards`. So many bytes that the program has not registered may be kept
    /// registered.
    pub(crate) fn new(cards: Cards, peers: &[Rank], cache: usize, ends: Ends) -> Result<Self> {
        let berths = peers.iter().map(|peer| Berth::new(&cards, *peer)).collect::<Result<_>>()?;
        // SAFETY: the yard, then the ends of one rank's links, hold clones; inside a call of
        // `with` nothing calls it again.
        let regions = unsafe { Shared::new(Regions::new(cache)) };
        Ok(Self { cards, ends, regions, berths })
    }

    /// Gives `id`, which is to be connected with peer number `index` on `path`, a queue pair, and
    /// keeps it. The handshake goes on by [`Yard::id`].
    pub(crate) fn fit(&mut self, index: usize, path: usize, mut id: Id) -> Result<()> {
        let (card, berth) = (&self.cards.list[path], &mut self.berths[index]);
        let sizes = Sizes { sends: SENDS, receives: DEPTH, inline: INLINE_BYTES };
        let inline = id.make_queues(&card.domain, &card.completions, sizes)?;
        let card = (inline, card.device.has_immediates());
        let (own, regions) = (berth.own[path], self.regions.clone());
        // SAFETY: the berth's memory stays until its queues are gone.
        let queue = unsafe { Queue::new(id, own, (index, path), regions, card)? };
        berth.queues[path] = Some(queue);
        Ok(())
    }

    /// The id of a connection that was fitted.
    pub(crate) fn id(&mut self, index: usize, path: usize) -> Option<&mut Id> {
        self.berths.get_mut(index)?.queues.get_mut(path)?.as_mut().map(Queue::id)
    }

    /// Gives up what was fitted there.
    pub(crate) fn drop_path(&mut self, index: usize, path: usize) {
        self.berths[index].queues[path] = None;
    }

    /// Whether peer number `index` has connections on the first `paths` paths.
    pub(crate) fn has(&self, index: usize, paths: usize) -> bool {
        let queues = &self.berths[index].queues;
        paths > 0 && queues.len() >= paths && queues[..paths].iter().all(Option::is_some)
    }

    /// The connections with the peers for which `kept` has a number of paths: 0 for those that go
    /// by other links. They say HELLO.
    pub(crate) fn launch(self, kept: &[usize]) -> Result<Launched> {
        let cover_bytes = self.cards.list.first().map_or(usize::MAX, worth::cover_bytes);
        let mut fleet = Fleet::new(self.cards, self.ends);
        for (berth, &paths) in self.berths.into_iter().zip(kept) {
            let Berth { peer, queues, held, own, pages } = berth;
            let queues: Vec<Queue> = queues.into_iter().take(paths).flatten().collect();
            // SAFETY: the fleet keeps the pages, and the keys of rings are those of its card.
            let pair = unsafe { Pair::new(peer, own[0].memory, queues)? };
            fleet.add(peer, pair, (held, pages));
        }
        // SAFETY: the ends of one rank's links hold clones; inside a call of `with` nothing calls
        // it again.
        let fleet = unsafe { Shared::new(fleet) };
        Ok(Launched { fleet, regions: self.regions, cover_bytes })
    }
}
