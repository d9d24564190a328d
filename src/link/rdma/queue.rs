//! A queue pair as a [`Port`]: requests, and places to receive at.

use super::frame::{FRAME_BYTES, Frame, Remote};
use super::pair::{DEPTH, Memory};
use super::port::{Keys, Port};
use super::regions::{Held, Regions};
use super::shared::Shared;
use crate::error::{Code, Error, Result};
use crate::rdma::{Id, verbs};

/// Requests of a queue pair.
pub(super) const SENDS: u32 = 256;
/// Bytes that a request may carry in itself, where the card can.
pub(super) const INLINE_BYTES: u32 = 192;
/// Of requests that nobody waits for, every so many tell their end.
const TELL_EVERY: u64 = 16;

/// Bytes of frames that come, and of frames that go.
pub(super) const FRAMES_IN: usize = DEPTH as usize * FRAME_BYTES;
pub(super) const FRAMES_OUT: usize = SENDS as usize * FRAME_BYTES;
const FRAME_LENGTH: u32 = 64;
const _: () = assert!(FRAME_LENGTH as usize == FRAME_BYTES);

/// Where in frames the one of a place, or of a request, is.
fn slot(number: u64, of: u32) -> usize {
    usize::try_from(number % u64::from(of)).unwrap_or(0) * FRAME_BYTES
}

/// Which completion a request has: whose, on which path, and which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) member: usize,
    pub(super) path: usize,
    pub(super) receive: bool,
    /// Number of the request, or of the place.
    pub(super) number: u64,
}

const NUMBER_BITS: u32 = 40;
const PATH_AT: u32 = 41;
const MEMBER_AT: u32 = 44;

impl Mark {
    /// As a number for the card.
    #[must_use]
    pub(super) const fn bits(self) -> u64 {
        (self.member as u64) << MEMBER_AT
            | (self.path as u64) << PATH_AT
            | (self.receive as u64) << NUMBER_BITS
            | self.number & ((1 << NUMBER_BITS) - 1)
    }

    /// What a number means.
    pub(super) const fn of(bits: u64) -> Self {
        Self {
            member: (bits >> MEMBER_AT) as usize,
            path: (bits >> PATH_AT & 7) as usize,
            receive: bits >> NUMBER_BITS & 1 == 1,
            number: bits & ((1 << NUMBER_BITS) - 1),
        }
    }
}

/// Memory of a queue pair besides rings.
#[derive(Clone, Copy, Debug)]
pub(super) struct Own {
    pub(super) memory: Memory,
    /// Of rings and of everything else.
    pub(super) rings: Keys,
    pub(super) rest: u32,
    pub(super) frames_in: *mut u8,
    pub(super) frames_out: *mut u8,
}

/// One connected queue pair.
#[derive(Debug)]
pub(super) struct Queue {
    id: Id,
    own: Own,
    mark: Mark,
    regions: Shared<Regions>,
    inline: usize,
    immediates: bool,
    posted: u64,
    ended: u64,
    /// Places to receive at that are posted and have not come back.
    places: u32,
    /// Why the card took a request or a place no more.
    failed: Option<Error>,
}

// SAFETY: the addresses are of memory that the owner keeps, and no thread's.
unsafe impl Send for Queue {}

impl Queue {
    /// The queue pair of `id`, of `member` on `path`. Posts all places to receive at.
    ///
    /// # Safety
    /// `own` is valid as long as this is, and registered under its keys.
    pub(super) unsafe fn new(
        mut id: Id,
        own: Own,
        (member, path): (usize, usize),
        regions: Shared<Regions>,
        (inline, immediates): (u32, bool),
    ) -> Result<Self> {
        let mark = Mark { member, path, receive: false, number: 0 };
        for place in 0..u64::from(DEPTH) {
            // SAFETY: the caller's promise.
            unsafe { offer(&mut id, &own, mark, place)? };
        }
        let inline = usize::try_from(inline).unwrap_or(0);
        let (posted, ended, places, failed) = (0, 0, DEPTH, None);
        Ok(Self { id, own, mark, regions, inline, immediates, posted, ended, places, failed })
    }

    /// The bytes of the frame at a place.
    pub(super) fn frame_in(&self, place: u64) -> [u8; FRAME_BYTES] {
        let at = slot(place, DEPTH);
        // SAFETY: inside the frames, which the card does not write until the place is posted again.
        unsafe { self.own.frames_in.wrapping_add(at).cast::<[u8; FRAME_BYTES]>().read_volatile() }
    }

    /// A place has come back: taken, or empty because the card takes nothing more.
    pub(super) fn came(&mut self) {
        self.places = self.places.saturating_sub(1);
    }

    /// Places to receive at that the card has.
    pub(super) fn places(&self) -> u32 {
        self.places
    }

    /// Posts a place again.
    pub(super) fn offer(&mut self, place: u64) -> Result<()> {
        self.places += 1;
        // SAFETY: the promise given to `new`.
        unsafe { offer(&mut self.id, &self.own, self.mark, place) }
    }

    /// Request `number` has ended, and all before it.
    pub(super) fn end(&mut self, number: u64) {
        let mask = (1 << NUMBER_BITS) - 1;
        let ahead = number.wrapping_sub(self.ended) & mask;
        if ahead <= self.posted - self.ended {
            self.ended += ahead;
        }
    }

    /// Requests under way.
    pub(super) fn under_way(&self) -> u64 {
        self.posted - self.ended
    }

    /// Why the card takes nothing any more, told once.
    pub(super) fn failure(&mut self) -> Option<Error> {
        self.failed.take()
    }

    /// From now on nothing of the peer's comes to memory here.
    pub(super) fn stop(&mut self) {
        self.id.stop();
    }

    /// The connection.
    pub(super) fn id(&mut self) -> &mut Id {
        &mut self.id
    }

    /// Whether the end of a request says that its bytes are in the peer's memory: it does not where
    /// a connection is TCP's (iWARP).
    pub(super) fn ends_there(&self) -> bool {
        self.immediates
    }

    /// Posts a request that does nothing. Its end tells that of all before it, and that the peer's
    /// card answers.
    pub(super) fn probe(&mut self) -> Result<()> {
        if self.room() == 0 {
            return Ok(());
        }
        let flags = verbs::IBV_SEND_SIGNALED;
        let mut request = verbs::ibv_send_wr { send_flags: flags, ..verbs::ibv_send_wr::default() };
        request.opcode = verbs::IBV_WR_RDMA_WRITE;
        // It writes no byte, so no card looks for the key.
        request.wr.rdma.rkey = 0;
        // SAFETY: it reads and writes nothing.
        unsafe { self.post(request, (std::ptr::null(), 0, 0), true) }.map(drop)
    }

    /// Ends the connection.
    pub(super) fn disconnect(&mut self) {
        self.id.disconnect();
    }

    /// Fills in what all requests have, and posts it.
    ///
    /// # Safety
    /// As [`Id::post`].
    unsafe fn post(
        &mut self,
        mut request: verbs::ibv_send_wr,
        (at, bytes, key): (*const u8, usize, u32),
        waited: bool,
    ) -> Result<u64> {
        self.posted += 1;
        let number = self.posted;
        request.wr_id = Mark { number, ..self.mark }.bits();
        let mut data = verbs::ibv_sge {
            addr: at as u64,
            length: u32::try_from(bytes)
                .map_err(|_| Error::new(Code::Internal, "a request of 4 GiB or more"))?,
            lkey: key,
        };
        request.sg_list = &raw mut data;
        request.num_sge = i32::from(bytes > 0);
        // What is copied into the request is not read when it is repeated by another path.
        let short = bytes <= self.inline && !waited;
        if short {
            request.send_flags |= verbs::IBV_SEND_INLINE;
        }
        if waited || number.is_multiple_of(TELL_EVERY) {
            request.send_flags |= verbs::IBV_SEND_SIGNALED;
        }
        // SAFETY: the caller's promise; the list is copied by the call.
        if let Err(error) = unsafe { self.id.post(&mut request) } {
            // As a request that never ends: the path is given up for it.
            self.failed.get_or_insert(error);
        }
        Ok(number)
    }
}

/// Posts place `place`.
///
/// # Safety
/// `own` is valid and registered.
unsafe fn offer(id: &mut Id, own: &Own, mark: Mark, place: u64) -> Result<()> {
    let at = slot(place, DEPTH);
    let mut data = verbs::ibv_sge {
        addr: own.frames_in.wrapping_add(at) as u64,
        length: FRAME_LENGTH,
        lkey: own.rest,
    };
    let mut request = verbs::ibv_recv_wr {
        wr_id: Mark { receive: true, number: place, ..mark }.bits(),
        sg_list: &raw mut data,
        num_sge: 1,
        ..verbs::ibv_recv_wr::default()
    };
    // SAFETY: the caller's promise; the list is copied by the call.
    unsafe { id.post_receive(&mut request) }
}

impl Port for Queue {
    fn room(&self) -> usize {
        usize::try_from(u64::from(SENDS) - self.under_way()).unwrap_or(0)
    }

    unsafe fn write(
        &mut self,
        (from, key): (*const u8, u32),
        bytes: usize,
        to: Remote,
        told: Option<u32>,
        waited: bool,
    ) -> Result<u64> {
        let mut request = verbs::ibv_send_wr::default();
        request.wr.rdma.remote_addr = to.address;
        request.wr.rdma.rkey = to.key;
        let (kind, told) = match told {
            Some(bits) if self.immediates => {
                request.__bindgen_anon_1.imm_data = bits.to_be();
                (verbs::IBV_WR_RDMA_WRITE_WITH_IMM, None)
            }
            told => (verbs::IBV_WR_RDMA_WRITE, told),
        };
        request.opcode = kind;
        // SAFETY: the caller's promise.
        let number = unsafe { self.post(request, (from, bytes, key), waited)? };
        if let Some(bits) = told {
            self.frame(&Frame::Note { bits }.encode())?;
        }
        Ok(number)
    }

    fn frame(&mut self, frame: &[u8; FRAME_BYTES]) -> Result<u64> {
        let at = self.own.frames_out.wrapping_add(slot(self.posted, SENDS));
        // SAFETY: inside the frames; there was room, so the request that read this has ended.
        unsafe { at.cast::<[u8; FRAME_BYTES]>().write(*frame) };
        let request =
            verbs::ibv_send_wr { opcode: verbs::IBV_WR_SEND, ..verbs::ibv_send_wr::default() };
        // SAFETY: the frame stays until the request has ended.
        unsafe { self.post(request, (at, FRAME_BYTES, self.own.rest), false) }
    }

    fn ended(&self) -> u64 {
        self.ended
    }

    fn keys(&self, at: *const u8, bytes: usize) -> Option<Held> {
        let inside = |base: *mut u8| {
            let offset = (at as usize).wrapping_sub(base as usize);
            offset < Memory::BYTES && bytes <= Memory::BYTES - offset
        };
        if inside(self.own.memory.mirrors) {
            let keys = Keys { local: self.own.rest, remote: 0 };
            return Some(Held { keys, region: None });
        }
        if inside(self.own.memory.rings) {
            return Some(Held { keys: self.own.rings, region: None });
        }
        self.regions.with(|regions| regions.find(at as usize, bytes, self.mark.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_come_back_as_they_went() {
        for receive in [false, true] {
            let mark = Mark { member: 65_535, path: 3, receive, number: (1 << NUMBER_BITS) - 1 };
            assert_eq!(Mark::of(mark.bits()), mark);
        }
    }
}
