//! Links between processes of one host: every rank owns a segment with the rings its local peers
//! write to it, and passes it on when the communicator forms. Nothing has a name.
//!
//! ```text
//!  0          ROW_AT              AREA_AT           RINGS_AT
//!  | header   | row of the board,   | area of the     | for each local peer (in rank order) and
//!  | (boot's) | doze flag,          | board           | lane: ring control 256 | ring data
//!  |          | gifts sent          |                 |
//! ```
//!
//! Memory from [`HostBoard::alloc`] is a segment too; its descriptor goes to the local peers when
//! it is made, so a peer that reads a notice naming it finds it in its socket. Then the count of
//! gifts sent grows, so that peers look into their sockets when there is something and no oftener.
//!
//! A call under way holds plain addresses into peers' segments. So what a peer says is gone stays
//! mapped until no call can be under way: until the next notice, or [`HostBoard::sweep`].

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::ptr::NonNull;
use std::sync::Arc;

use bytemuck::pod_read_unaligned;

use crate::call::Head;
use crate::engine::link::{AREA_BYTES, Board, Notice, Place};
use crate::engine::wires::FABRIC_LANES;
use crate::error::{Code, Error, Result};
use crate::link::board::{ROW_BYTES, Row, Rows};
use crate::link::doze::{Doze, Flag, Waker};
use crate::link::gift::{
    FOREIGN_MAX, GIFT_BYTES, GIFT_MAGIC, GIFTS_MAX, GIVEN, GONE, Gift, Peer, bad, blame, give,
};
use crate::link::mem::RING_BYTES;
use crate::link::ring::{CONTROL_BYTES, Memory, RingRx, RingTx};
use crate::link::{AnyBoard, AnyRx, AnyTx, Links};
use crate::sync::Ordering;
use crate::sys::bell::Bell;
use crate::sys::memory::Segment;
use crate::sys::unix::recv_with_fds;
use crate::types::Rank;

const ROW_AT: usize = 4096;
const FLAG_AT: usize = ROW_AT + ROW_BYTES;
pub(super) const GIFTS_AT: usize = FLAG_AT + 128;
const AREA_AT: usize = (GIFTS_AT + 128).next_multiple_of(4096);
const RINGS_AT: usize = AREA_AT + AREA_BYTES;

/// Where everything in a segment begins.
pub(super) const SEGMENT: [usize; 5] = [ROW_AT, FLAG_AT, GIFTS_AT, AREA_AT, RINGS_AT];

/// Bytes of the segment of one of `local` ranks on a host.
pub(crate) fn segment_bytes(local: usize) -> usize {
    RINGS_AT + local.saturating_sub(1) * FABRIC_LANES * (CONTROL_BYTES + RING_BYTES)
}

/// One rank of this host, as the others see it.
#[derive(Debug)]
pub(crate) struct Neighbour {
    pub(crate) rank: usize,
    pub(crate) segment: Arc<Segment>,
    pub(crate) doze: Arc<Doze>,
    /// Where descriptors of later segments come and go; `None` for the own rank.
    pub(crate) socket: Option<Arc<UnixStream>>,
}

impl Neighbour {
    /// The rank whose segment and bell these are.
    pub(crate) fn new(
        rank: usize,
        segment: Segment,
        bell: Bell,
        socket: Option<UnixStream>,
    ) -> Self {
        let segment = Arc::new(segment);
        // SAFETY: every segment has the flag at FLAG_AT (its size was checked when it was mapped).
        let doze = unsafe {
            let flag = NonNull::new_unchecked(segment.as_ptr().add(FLAG_AT)).cast::<Flag>();
            Doze::at(flag, bell, segment.clone())
        };
        Self { rank, segment, doze: Arc::new(doze), socket: socket.map(Arc::new) }
    }

    fn row(&self) -> NonNull<Row> {
        // SAFETY: inside the segment.
        unsafe { NonNull::new_unchecked(self.segment.as_ptr().add(ROW_AT)).cast() }
    }

    fn area(&self) -> NonNull<u8> {
        // SAFETY: inside the segment.
        unsafe { NonNull::new_unchecked(self.segment.as_ptr().add(AREA_AT)) }
    }

    /// The ring in this rank's segment that its `writer`-th neighbour fills.
    fn ring(&self, writer: usize, lane: usize) -> Memory {
        let index = writer * FABRIC_LANES + lane;
        let at = RINGS_AT + index * (CONTROL_BYTES + RING_BYTES);
        debug_assert!(at + CONTROL_BYTES + RING_BYTES <= self.segment.len());
        // SAFETY: inside the segment, page aligned plus multiples of 256; one writer, one reader.
        unsafe {
            let at = NonNull::new_unchecked(self.segment.as_ptr().add(at));
            Memory::at(at, RING_BYTES, self.segment.clone())
        }
    }
}

/// Puts rings to every neighbour into `links`. `candidates` are the ranks of this host in order, as
/// all of them see it; `None` for those that turned out not to share memory with this rank. `me` is
/// the index of the own rank among them.
pub(crate) fn join(links: &mut Links, candidates: &[Option<Neighbour>], me: usize) {
    let Some(own) = &candidates[me] else { return };
    // A rank has no ring to itself: later ranks move down by one.
    let place_of = |writer: usize, owner: usize| writer - usize::from(writer > owner);
    for (index, peer) in candidates.iter().enumerate() {
        let Some(peer) = peer.as_ref().filter(|_| index != me) else {
            continue;
        };
        for lane in 0..FABRIC_LANES {
            let outward = peer.ring(place_of(me, index), lane);
            let inward = own.ring(place_of(index, me), lane);
            let waker = Waker::to(peer.doze.clone());
            let rank = Rank::at(peer.rank);
            let tx = RingTx::new(outward, rank, waker.clone());
            let rx = RingRx::new(inward, rank, waker);
            links.join(peer.rank, lane, AnyTx::Ring(tx), AnyRx::Ring(rx));
        }
    }
}

/// The board of a world whose ranks are all neighbours, in order.
pub(crate) fn board(neighbours: &[&Neighbour], me: usize) -> AnyBoard {
    let rows = neighbours.iter().map(|n| n.row()).collect();
    let waker = |(index, n): (usize, &&Neighbour)| (index != me).then(|| Waker::to(n.doze.clone()));
    let wakers = neighbours.iter().enumerate().map(waker).collect();
    let areas = neighbours.iter().map(|n| n.area()).collect();
    let keep = neighbours.iter().map(|n| n.segment.clone() as _).collect();
    // SAFETY: every segment has a row at ROW_AT, zero at first, and an area at AREA_AT, and `keep`
    // keeps them alive.
    let rows = unsafe { Rows::new(me, rows, areas, wakers, keep) };
    let peer =
        |n: &&Neighbour| Peer { segment: n.segment.clone(), socket: n.socket.clone(), seen: 0 };
    let peers = neighbours.iter().map(peer).collect();
    let (own, foreign, gone) = (Vec::new(), HashMap::new(), Vec::new());
    AnyBoard::Host(HostBoard { rows, me, peers, own, next: 0, foreign, gone })
}

/// The board of processes, and the memory they have given out.
#[derive(Debug)]
pub(crate) struct HostBoard {
    rows: Rows,
    me: usize,
    peers: Box<[Peer]>,
    /// Segments given out, with their numbers.
    own: Vec<(u32, Segment)>,
    next: u32,
    /// Segments of others, by rank and number, and whether their ranks have taken them back.
    foreign: HashMap<(usize, u32), (Segment, bool)>,
    /// Those that were taken back.
    gone: Vec<(usize, u32)>,
}

impl HostBoard {
    /// Zeroed memory that every rank of the world can map.
    pub(crate) fn alloc(&mut self, bytes: usize) -> Result<*mut u8> {
        self.look()?;
        let segment = Segment::create("unisono-memory", bytes)?;
        let number = self.next;
        if number >= Place::EMPTY.segment {
            return Err(Error::new(Code::Limit, format!("{number} segments were made")));
        }
        // Never used again, even when not everybody is told of it.
        self.next += 1;
        if let Err(error) = self.tell(GIVEN, number, bytes, Some(&segment)) {
            let _ = self.tell(GONE, number, bytes, None);
            return Err(error);
        }
        let at = segment.as_ptr();
        self.own.push((number, segment));
        Ok(at)
    }

    /// Gives memory of [`HostBoard::alloc`] back; false when it is none. After an error it is still
    /// there, to be given back later.
    pub(crate) fn free(&mut self, at: *mut u8) -> Result<bool> {
        let Some(index) = self.own.iter().position(|(_, s)| s.as_ptr() == at) else {
            return Ok(false);
        };
        self.look()?;
        let (number, bytes) = (self.own[index].0, self.own[index].1.len());
        self.tell(GONE, number, bytes, None)?;
        self.own.swap_remove(index);
        Ok(true)
    }

    /// Tells every peer of a segment of ours.
    fn tell(&self, kind: u32, number: u32, bytes: usize, segment: Option<&Segment>) -> Result<()> {
        let number = u64::from(number);
        let gift = Gift { magic: GIFT_MAGIC, kind, number, bytes: bytes as u64 };
        let mut outcome = Ok(());
        for (rank, peer) in self.peers.iter().enumerate() {
            if let (Some(socket), Ok(())) = (&peer.socket, &outcome) {
                outcome = give(socket, rank, &gift, segment);
            }
        }
        // ORDERING: release pairs with the acquire in `has_news`.
        self.peers[self.me].sent().fetch_add(1, Ordering::Release);
        outcome
    }

    /// Takes in what peers have sent, so that their sockets do not fill up.
    pub(crate) fn look(&mut self) -> Result<()> {
        for rank in 0..self.peers.len() {
            if self.peers[rank].has_news() {
                self.take_gifts(rank)?;
            }
        }
        Ok(())
    }

    /// Unmaps what peers have taken back. No call may be under way.
    pub(crate) fn sweep(&mut self) {
        for key in self.gone.drain(..) {
            self.foreign.remove(&key);
        }
    }

    /// Takes in what `rank` has sent over its local socket.
    fn take_gifts(&mut self, rank: usize) -> Result<()> {
        let Some(socket) = self.peers[rank].socket.clone() else {
            return Ok(());
        };
        for _ in 0..GIFTS_MAX {
            let mut bytes = [0u8; GIFT_BYTES];
            let got = match recv_with_fds(&socket, &mut bytes, 1) {
                // A peer that left without having read all of ours; its end is noticed elsewhere.
                Err(error) if error.native == libc::ECONNRESET => return Ok(()),
                got => got.map_err(|error| blame(error, rank))?,
            };
            let Some(got) = got.filter(|got| got.bytes > 0) else {
                return Ok(());
            };
            if got.bytes != GIFT_BYTES {
                return Err(bad(rank, "a cut message on its local socket"));
            }
            self.take(rank, pod_read_unaligned(&bytes), got.fds)?;
        }
        Ok(())
    }

    fn take(&mut self, rank: usize, gift: Gift, mut fds: Vec<OwnedFd>) -> Result<()> {
        let number = u32::try_from(gift.number);
        let number = number.map_err(|_| bad(rank, "a segment number too large"))?;
        let key = (rank, number);
        match (gift.magic, gift.kind, fds.pop()) {
            (GIFT_MAGIC, GIVEN, Some(fd)) => {
                if self.foreign.len() >= FOREIGN_MAX {
                    return Err(bad(rank, "too many segments"));
                }
                // A call may hold addresses into the one there.
                if self.foreign.contains_key(&key) {
                    return Err(bad(rank, &format!("segment {number} twice")));
                }
                let bytes = usize::try_from(gift.bytes).map_err(|_| bad(rank, "a huge segment"))?;
                let segment = Segment::open(fd, bytes).map_err(|error| blame(error, rank))?;
                self.foreign.insert(key, (segment, false));
            }
            (GIFT_MAGIC, GONE, None) => {
                if let Some((_, gone)) = self.foreign.get_mut(&key)
                    && !std::mem::replace(gone, true)
                {
                    self.gone.push(key);
                }
            }
            _ => return Err(bad(rank, "an unknown message on its local socket")),
        }
        Ok(())
    }
}

/// Whether `[at, at + bytes)` lies in `segment`; its offset then.
fn inside(segment: &Segment, at: *const u8, bytes: usize) -> Option<u64> {
    let offset = (at as usize).checked_sub(segment.as_ptr() as usize)?;
    (offset.checked_add(bytes)? <= segment.len()).then_some(offset as u64)
}

// SAFETY: a place is checked against the bounds of a mapping that stays until the next call.
unsafe impl Board for HostBoard {
    fn place(&mut self, at: *const u8, bytes: usize) -> Place {
        let found = |(number, segment): &(u32, Segment)| {
            let offset = inside(segment, at, bytes)?;
            Some(Place { segment: *number, offset, bytes: bytes as u64 })
        };
        self.own.iter().find_map(found).unwrap_or(Place::NOWHERE)
    }

    fn publish(&mut self, turn: u64, notice: Notice<'_>) {
        // Collectives run one at a time: the call before this one is over.
        self.sweep();
        self.rows.publish(turn, notice);
    }

    #[inline]
    fn notice(&mut self, peer: usize, turn: u64) -> Result<Option<u64>> {
        self.rows.notice(peer, turn)
    }

    #[inline]
    fn words(&self, peer: usize, turn: u64, words: &mut [u64]) {
        self.rows.words(peer, turn, words);
    }

    fn expect(&self, peer: usize, turn: u64) {
        self.rows.expect(peer, turn);
    }

    fn head(&self, peer: usize, turn: u64) -> Head {
        self.rows.head(peer, turn)
    }

    fn area(&self, rank: usize) -> *mut u8 {
        self.rows.area(rank)
    }

    fn past(&self) -> bool {
        self.rows.past()
    }

    fn clock(&self) -> u64 {
        self.rows.clock()
    }

    fn took(&mut self, past: bool, bytes: usize, nanoseconds: u64) {
        self.rows.took(past, bytes, nanoseconds);
    }

    fn resolve(&mut self, peer: usize, place: Place) -> Result<*mut u8> {
        let key = (peer, place.segment);
        if !self.foreign.contains_key(&key) {
            self.take_gifts(peer)?;
        }
        let Some((segment, _)) = self.foreign.get(&key) else {
            return Err(bad(peer, &format!("no segment {}, and names it", key.1)));
        };
        let number = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
        let (offset, bytes) = (number(place.offset), number(place.bytes));
        if offset.checked_add(bytes).is_none_or(|end| end > segment.len()) {
            let there = segment.len();
            return Err(bad(peer, &format!("a place of {bytes} bytes at {offset} of {there}")));
        }
        Ok(segment.as_ptr().wrapping_add(offset))
    }

    fn post(&mut self, phase: u64) {
        self.rows.post(phase);
    }

    fn reached(&mut self, peer: usize) -> u64 {
        self.rows.reached(peer)
    }

    fn give_up(&mut self, turn: u64) {
        self.rows.give_up(turn);
    }

    #[inline]
    fn given_up(&self, peer: usize, turn: u64) -> bool {
        self.rows.given_up(peer, turn)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::os::fd::AsRawFd;

    use bytemuck::Zeroable;

    use super::*;
    use crate::call::Head;

    /// The board of rank 0 of two, and the far end of rank 1's socket.
    fn board() -> (HostBoard, Arc<Segment>, UnixStream) {
        let (near, far) = UnixStream::pair().expect("pair");
        let (small, length) = (1i32, 4);
        let (level, name) = (libc::SOL_SOCKET, libc::SO_SNDBUF);
        let value = (&raw const small).cast();
        // SAFETY: the value is a local of 4 bytes.
        let set = unsafe { libc::setsockopt(near.as_raw_fd(), level, name, value, length) };
        assert_eq!(set, 0);
        near.set_nonblocking(true).expect("non-blocking");
        far.set_nonblocking(true).expect("non-blocking");
        let segment = || Segment::create("test", segment_bytes(2)).expect("segment");
        let bell = || Bell::new().expect("bell");
        let own = Neighbour::new(0, segment(), bell(), None);
        let peer = Neighbour::new(1, segment(), bell(), Some(near));
        let theirs = peer.segment.clone();
        let AnyBoard::Host(board) = super::board(&[&own, &peer], 0) else { panic!("a host board") };
        (board, theirs, far)
    }

    /// Rank 1 sends a gift and counts it.
    fn send(to: &UnixStream, theirs: &Arc<Segment>, kind: u32, segment: Option<&Segment>) {
        let gift = Gift { magic: GIFT_MAGIC, kind, number: 5, bytes: 4096 };
        give(to, 0, &gift, segment).expect("given");
        let peer = Peer { segment: theirs.clone(), socket: None, seen: 0 };
        peer.sent().fetch_add(1, Ordering::Release);
    }

    fn read(at: *mut u8) -> u8 {
        // SAFETY: the tests read what they have resolved; a fault is what they look for.
        unsafe { at.read_volatile() }
    }

    const PLACE: Place = Place { segment: 5, offset: 8, bytes: 16 };

    #[test]
    fn what_a_call_has_resolved_stays_mapped_until_the_next_one() {
        let (mut board, theirs, far) = board();
        let memory = Segment::create("test", 4096).expect("segment");
        send(&far, &theirs, GIVEN, Some(&memory));
        let at = board.resolve(1, PLACE).expect("resolved");
        // SAFETY: inside the segment.
        unsafe { memory.as_ptr().add(8).write_volatile(77) };
        send(&far, &theirs, GONE, None);
        send(&far, &theirs, GONE, None);
        board.look().expect("looked");
        assert_eq!(read(at), 77);
        // The number is taken as long as the memory is there.
        send(&far, &theirs, GIVEN, Some(&memory));
        let error = board.look().expect_err("twice");
        assert_eq!((error.code, error.peer), (Code::Protocol, Some(Rank(1))));
        assert_eq!(read(at), 77);
        board.publish(1, Notice { head: Head::zeroed(), words: &[] });
        assert!(board.foreign.is_empty() && board.gone.is_empty());
        let error = board.resolve(1, PLACE).expect_err("gone");
        assert_eq!((error.code, error.peer), (Code::Protocol, Some(Rank(1))));
    }

    #[test]
    fn places_and_messages_that_make_no_sense_name_their_rank() {
        let (mut board, theirs, far) = board();
        let memory = Segment::create("test", 4096).expect("segment");
        send(&far, &theirs, GIVEN, Some(&memory));
        for offset in [4090, u64::MAX] {
            let error = board.resolve(1, Place { offset, ..PLACE }).expect_err("outside");
            assert_eq!((error.code, error.peer), (Code::Protocol, Some(Rank(1))));
        }
        for kind in [GIVEN, GONE, 9] {
            let descriptor = (kind == GONE).then_some(&memory);
            send(&far, &theirs, kind, descriptor);
            let error = board.look().expect_err("no sense");
            assert_eq!((error.code, error.peer), (Code::Protocol, Some(Rank(1))));
        }
    }

    /// A rank that allocates all the time is not stopped by one that only makes calls.
    #[test]
    fn looking_makes_room_and_a_full_socket_takes_no_memory_back() {
        let (mut board, theirs, far) = board();
        let memory = Segment::create("test", 4096).expect("segment");
        for _ in 0..2000 {
            send(&far, &theirs, GIVEN, Some(&memory));
            send(&far, &theirs, GONE, None);
            board.look().expect("looked");
            board.sweep();
        }
        let at = board.alloc(4096).expect("alloc");
        let full = loop {
            match board.alloc(4096) {
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert_eq!((full.code, full.peer), (Code::Limit, Some(Rank(1))));
        assert_eq!(board.free(at).expect_err("full").code, Code::Limit);
        assert_eq!(read(at), 0);
        let mut bytes = [0; GIFT_BYTES];
        for _ in 0..2 {
            recv_with_fds(&far, &mut bytes, 1).expect("recv").expect("some");
        }
        assert!(board.free(at).expect("room again"));
        assert!(!board.free(at).expect("nothing there"));
    }
}
