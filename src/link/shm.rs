//! Links between processes of one host: every rank owns a segment with the rings its local peers
//! write to it, and passes it on when the communicator forms. Nothing has a name.
//!
//! ```text
//!  0          4096                  8192
//!  | header   | row of the board,   | for each local peer (in rank order) and lane:
//!  | (boot's) | doze flag at 512    |   ring control 256 | ring data
//! ```
//!
//! Memory from [`HostBoard::alloc`] is a segment too; its descriptor goes to the local peers when
//! it is made, so a peer that reads a notice naming it finds it in its socket.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::ptr::NonNull;
use std::sync::Arc;

use bytemuck::{Pod, Zeroable, bytes_of, pod_read_unaligned};

use crate::engine::link::{Board, Notice, Place};
use crate::engine::wires::FABRIC_LANES;
use crate::error::{Code, Error, Result};
use crate::link::board::{ROW_BYTES, Row, Rows};
use crate::link::doze::{Doze, Flag, Waker};
use crate::link::mem::RING_BYTES;
use crate::link::ring::{CONTROL_BYTES, Memory, RingRx, RingTx};
use crate::link::{AnyBoard, AnyRx, AnyTx, Links};
use crate::sys::bell::Bell;
use crate::sys::memory::Segment;
use crate::sys::unix::{recv_with_fds, send_with_fds};

const ROW_AT: usize = 4096;
const FLAG_AT: usize = ROW_AT + 512;
const RINGS_AT: usize = 8192;
const _: () = assert!(ROW_BYTES <= 512);

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
            let tx = RingTx::new(outward, waker.clone());
            let rx = RingRx::new(inward, waker);
            links.join(peer.rank, lane, AnyTx::Ring(tx), AnyRx::Ring(rx));
        }
    }
}

/// The board of a world whose ranks are all neighbours, in order.
pub(crate) fn board(neighbours: &[&Neighbour], me: usize) -> AnyBoard {
    let rows = neighbours.iter().map(|n| n.row()).collect();
    let waker = |(index, n): (usize, &&Neighbour)| (index != me).then(|| Waker::to(n.doze.clone()));
    let wakers = neighbours.iter().enumerate().map(waker).collect();
    let keep = neighbours.iter().map(|n| n.segment.clone() as _).collect();
    // SAFETY: every segment has a row at ROW_AT, zero at first, kept alive by `keep`.
    let rows = unsafe { Rows::new(me, rows, wakers, keep) };
    let sockets = neighbours.iter().map(|n| n.socket.clone()).collect();
    AnyBoard::Host(HostBoard { rows, sockets, own: Vec::new(), next: 0, foreign: HashMap::new() })
}

/// What goes over a local socket beside a descriptor.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Gift {
    magic: u32,
    /// 1: a new segment, with its descriptor; 2: it is gone.
    kind: u32,
    number: u64,
    bytes: u64,
}

const GIFT_MAGIC: u32 = 0x554e_4731;
const GIFT_BYTES: usize = size_of::<Gift>();
/// BOUND: segments a peer may have given us at a time.
const FOREIGN_MAX: usize = 65_536;

/// The board of processes, and the memory they have given out.
#[derive(Debug)]
pub(crate) struct HostBoard {
    rows: Rows,
    sockets: Box<[Option<Arc<UnixStream>>]>,
    /// Segments given out, with their numbers.
    own: Vec<(u32, Segment)>,
    next: u32,
    /// Segments of others, by rank and number.
    foreign: HashMap<(usize, u32), Segment>,
}

impl HostBoard {
    /// Zeroed memory that every rank of the world can map.
    pub(crate) fn alloc(&mut self, bytes: usize) -> Result<*mut u8> {
        self.take_all_gifts()?;
        let segment = Segment::create("unisono-memory", bytes)?;
        let gift =
            Gift { magic: GIFT_MAGIC, kind: 1, number: u64::from(self.next), bytes: bytes as u64 };
        for socket in self.sockets.iter().flatten() {
            give(socket, &gift, Some(&segment))?;
        }
        let at = segment.as_ptr();
        self.own.push((self.next, segment));
        self.next += 1;
        Ok(at)
    }

    /// Gives memory of [`HostBoard::alloc`] back; false when it is none.
    pub(crate) fn free(&mut self, at: *mut u8) -> Result<bool> {
        let Some(index) = self.own.iter().position(|(_, s)| s.as_ptr() == at) else {
            return Ok(false);
        };
        self.take_all_gifts()?;
        let (number, segment) = self.own.swap_remove(index);
        let gift = Gift {
            magic: GIFT_MAGIC,
            kind: 2,
            number: u64::from(number),
            bytes: segment.len() as u64,
        };
        for socket in self.sockets.iter().flatten() {
            give(socket, &gift, None)?;
        }
        Ok(true)
    }

    /// Takes in what peers have sent, so that their sockets do not fill up.
    fn take_all_gifts(&mut self) -> Result<()> {
        (0..self.sockets.len()).try_for_each(|peer| self.take_gifts(peer))
    }

    /// Takes in what `peer` has sent over its local socket.
    fn take_gifts(&mut self, peer: usize) -> Result<()> {
        let Some(socket) = self.sockets[peer].clone() else {
            return Ok(());
        };
        // BOUND: ends when the socket is empty; a flood of gifts meets FOREIGN_MAX.
        loop {
            let mut bytes = [0u8; GIFT_BYTES];
            let got = match recv_with_fds(&socket, &mut bytes, 1) {
                // A peer that left without having read all of ours; its end is noticed elsewhere.
                Err(error) if error.native == libc::ECONNRESET => return Ok(()),
                got => got?,
            };
            let Some(got) = got else {
                return Ok(());
            };
            if got.bytes == 0 {
                return Ok(());
            }
            if got.bytes != GIFT_BYTES {
                return Err(Error::new(Code::Protocol, "a cut message on a local socket"));
            }
            let gift: Gift = pod_read_unaligned(&bytes);
            self.take(peer, gift, got.fds)?;
        }
    }

    fn take(&mut self, peer: usize, gift: Gift, mut fds: Vec<OwnedFd>) -> Result<()> {
        let bad = |text: &str| Error::new(Code::Protocol, format!("rank {peer} sent {text}"));
        let number = u32::try_from(gift.number).map_err(|_| bad("a segment number too large"))?;
        match (gift.magic, gift.kind, fds.pop()) {
            (GIFT_MAGIC, 1, Some(fd)) => {
                if self.foreign.len() >= FOREIGN_MAX {
                    return Err(bad("too many segments"));
                }
                let bytes = usize::try_from(gift.bytes).map_err(|_| bad("a huge segment"))?;
                self.foreign.insert((peer, number), Segment::open(fd, bytes)?);
            }
            (GIFT_MAGIC, 2, None) => {
                self.foreign.remove(&(peer, number));
            }
            _ => return Err(bad("an unknown message on the local socket")),
        }
        Ok(())
    }
}

fn give(socket: &UnixStream, gift: &Gift, segment: Option<&Segment>) -> Result<()> {
    let fds: Vec<_> = segment.iter().map(|s| s.fd().as_raw_fd()).collect();
    let sent = match send_with_fds(socket, bytes_of(gift), &fds) {
        // A peer that has left needs no gift; its death is noticed elsewhere.
        Err(error) if error.native == libc::EPIPE || error.native == libc::ECONNRESET => {
            return Ok(());
        }
        other => other?,
    };
    if sent != GIFT_BYTES {
        let text =
            format!("a peer has not taken {sent} of {GIFT_BYTES} bytes of a segment's notice");
        return Err(Error::new(Code::Limit, format!("{text} ({:?})", ErrorKind::WouldBlock)));
    }
    Ok(())
}

/// Whether `[at, at + bytes)` lies in `segment`; its offset then.
fn inside(segment: &Segment, at: *const u8, bytes: usize) -> Option<u64> {
    let offset = (at as usize).checked_sub(segment.as_ptr() as usize)?;
    (offset.checked_add(bytes)? <= segment.len()).then_some(offset as u64)
}

impl Board for HostBoard {
    fn place(&mut self, at: *const u8, bytes: usize) -> Place {
        let found = |(number, segment): &(u32, Segment)| {
            let bytes_there = bytes as u64;
            inside(segment, at, bytes).map(|offset| Place {
                segment: *number,
                offset,
                bytes: bytes_there,
            })
        };
        self.own.iter().find_map(found).unwrap_or(Place::NOWHERE)
    }

    fn publish(&mut self, turn: u64, notice: &Notice) {
        self.rows.publish(turn, notice);
    }

    fn notice(&mut self, peer: usize, turn: u64) -> Result<Option<Notice>> {
        self.rows.notice(peer, turn)
    }

    fn resolve(&mut self, peer: usize, place: Place) -> Result<*mut u8> {
        let key = (peer, place.segment);
        if !self.foreign.contains_key(&key) {
            self.take_gifts(peer)?;
        }
        let bad = |text: String| Error::new(Code::Protocol, text);
        let segment = self
            .foreign
            .get(&key)
            .ok_or_else(|| bad(format!("rank {peer} names segment {} it never gave", key.1)))?;
        let number = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
        let (offset, bytes) = (number(place.offset), number(place.bytes));
        if offset.checked_add(bytes).is_none_or(|end| end > segment.len()) {
            let text = format!("rank {peer} names {bytes} bytes at {offset} of {}", segment.len());
            return Err(bad(text));
        }
        Ok(segment.as_ptr().wrapping_add(offset))
    }

    fn post(&mut self, phase: u64) {
        self.rows.post(phase);
    }

    fn reached(&mut self, peer: usize) -> u64 {
        self.rows.reached(peer)
    }
}
