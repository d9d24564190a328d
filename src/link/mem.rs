//! Links between ranks that are threads of one process: rings in one arena, and a board on which
//! addresses mean the same to everyone.

use std::sync::Arc;

use crate::call::Head;
use crate::engine::link::{AREA_BYTES, Board, Notice, Place};
use crate::engine::wires::FABRIC_LANES;
use crate::error::Result;
use crate::link::board::{ROW_BYTES, Row, Rows};
use crate::link::doze::{Doze, Waker};
use crate::link::ends::Ends;
use crate::link::ring::{CONTROL_BYTES, Memory, RingRx, RingTx};
use crate::link::{AnyBoard, AnyRx, AnyTx, Links};
use crate::sys::memory::Pages;
use crate::types::Rank;

/// Bytes a ring holds.
pub(crate) const RING_BYTES: usize = 256 << 10;

/// Bytes a ring holds in a world of threads: there are world x world x lanes of them, in one
/// allocation.
const fn ring_bytes(world: usize) -> usize {
    match world {
        0..=16 => RING_BYTES,
        17..=64 => RING_BYTES / 4,
        _ => RING_BYTES / 16,
    }
}

/// Memory for the rows, areas and rings of `world` threads, given back when the last rank leaves.
fn arena(world: usize) -> Result<Pages> {
    let rings = world * world * FABRIC_LANES;
    Pages::new(rings * (CONTROL_BYTES + ring_bytes(world)) + rings_at(world.max(1)))
}

/// Where the areas of `world` threads begin, behind their rows.
const fn areas_at(world: usize) -> usize {
    (world * ROW_BYTES).next_multiple_of(4096)
}

/// Where their rings begin.
const fn rings_at(world: usize) -> usize {
    areas_at(world) + world * AREA_BYTES
}

/// The links of `world` threads, rank by rank.
///
/// # Errors
/// Memory or descriptors ran out.
pub(crate) fn connect(world: usize) -> Result<Vec<Links>> {
    connect_in(&Arc::new(arena(world)?), world)
}

fn connect_in(arena: &Arc<Pages>, world: usize) -> Result<Vec<Links>> {
    let capacity = ring_bytes(world);
    let ring_bytes = CONTROL_BYTES + capacity;
    let dozes = (0..world).map(|_| Doze::new().map(Arc::new)).collect::<Result<Vec<_>>>()?;
    let ring = |from: usize, to: usize, lane: usize| {
        let index = (from * world + to) * FABRIC_LANES + lane;
        // SAFETY: inside the arena; every (from, to, lane) has a stretch of its own, used by one
        // writer (rank `from`) and one reader (rank `to`).
        unsafe {
            let at = arena.at().add(rings_at(world) + index * ring_bytes);
            Memory::at(at, capacity, arena.clone())
        }
    };
    let links = |me: usize| {
        let waker = |peer: usize| Waker::to(dozes[peer].clone());
        // SAFETY: the arena begins with the rows, zero and aligned, and the areas.
        let rows = unsafe {
            let row = |r: usize| arena.at().add(r * ROW_BYTES).cast::<Row>();
            let area = |r: usize| arena.at().add(areas_at(world) + r * AREA_BYTES);
            let (areas, ranks) = ((0..world).map(area).collect(), 0..world);
            let wakers = (0..world).map(|p| (p != me).then(|| waker(p))).collect();
            Rows::new(me, ranks.map(row).collect(), areas, wakers, vec![arena.clone()])
        };
        let mut links = Links::new(world, dozes[me].clone(), capacity, Ends::default());
        for peer in (0..world).filter(|&p| p != me) {
            for lane in 0..FABRIC_LANES {
                let rank = Rank::at(peer);
                let tx = RingTx::new(ring(me, peer, lane), rank, waker(peer));
                let rx = RingRx::new(ring(peer, me, lane), rank, waker(peer));
                links.join(peer, lane, AnyTx::Ring(tx), AnyRx::Ring(rx));
            }
        }
        links.set_board(AnyBoard::Process(ProcessBoard(rows)));
        links
    };
    Ok((0..world).map(links).collect())
}

/// The board of threads: addresses are the same for all.
#[derive(Debug)]
pub(crate) struct ProcessBoard(Rows);

// SAFETY: threads share an address space: a peer vouches for the buffers in its notice.
unsafe impl Board for ProcessBoard {
    fn place(&mut self, at: *const u8, bytes: usize) -> Place {
        Place { segment: 0, offset: at as u64, bytes: bytes as u64 }
    }

    fn publish(&mut self, turn: u64, notice: Notice<'_>) {
        self.0.publish(turn, notice);
    }

    #[inline]
    fn notice(&mut self, peer: usize, turn: u64) -> Result<Option<u64>> {
        self.0.notice(peer, turn)
    }

    #[inline]
    fn words(&self, peer: usize, turn: u64, words: &mut [u64]) {
        self.0.words(peer, turn, words);
    }

    fn expect(&self, peer: usize, turn: u64) {
        self.0.expect(peer, turn);
    }

    fn head(&self, peer: usize, turn: u64) -> Head {
        self.0.head(peer, turn)
    }

    fn area(&self, rank: usize) -> *mut u8 {
        self.0.area(rank)
    }

    fn past(&self) -> bool {
        self.0.past()
    }

    fn clock(&self) -> u64 {
        self.0.clock()
    }

    fn took(&mut self, past: bool, bytes: usize, nanoseconds: u64) {
        self.0.took(past, bytes, nanoseconds);
    }

    fn resolve(&mut self, _peer: usize, place: Place) -> Result<*mut u8> {
        // The peer is a thread of this process, and its call was validated there.
        Ok(std::ptr::with_exposed_provenance_mut(usize::try_from(place.offset).unwrap_or(0)))
    }

    fn post(&mut self, phase: u64) {
        self.0.post(phase);
    }

    fn reached(&mut self, peer: usize) -> u64 {
        self.0.reached(peer)
    }

    fn give_up(&mut self, turn: u64) {
        self.0.give_up(turn);
    }

    #[inline]
    fn given_up(&self, peer: usize, turn: u64) -> bool {
        self.0.given_up(peer, turn)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::engine::link::{Fabric, Tx};

    /// A world of threads costs what it uses, not what it could use.
    #[test]
    fn silent_rings_take_no_memory() {
        let pages = Arc::new(arena(16).expect("arena"));
        let mut links = connect_in(&pages, 16).expect("links");
        assert_eq!(pages.resident(), 0);
        let window = links[3].tx(5, 0).window().expect("window");
        assert_eq!(window.bytes, RING_BYTES);
        links[3].tx(5, 0).commit(64).expect("sent");
        links[3].tx(5, 0).flush().expect("shown");
        assert!(pages.resident() > 0 && pages.resident() < 256 << 10);
    }
}
