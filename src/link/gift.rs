//! Messages about memory that a rank gives to the others of its host: a gift goes over the local
//! socket, with the descriptor of a new segment, and is counted in the giver's segment so that
//! nobody looks into a socket in vain.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use bytemuck::{Pod, Zeroable, bytes_of};

use crate::error::{Code, Error, Result};
use crate::link::shm::GIFTS_AT;
use crate::sync::{AtomicU64, Ordering};
use crate::sys::memory::Segment;
use crate::sys::unix::send_with_fds;
use crate::types::Rank;

/// What goes over a local socket beside a descriptor.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Gift {
    pub(super) magic: u32,
    pub(super) kind: u32,
    pub(super) number: u64,
    pub(super) bytes: u64,
}

pub(super) const GIFT_MAGIC: u32 = 0x554e_4731;
pub(super) const GIFT_BYTES: usize = size_of::<Gift>();
/// A new segment, with its descriptor.
pub(super) const GIVEN: u32 = 1;
/// A segment is gone.
pub(super) const GONE: u32 = 2;
/// BOUND: segments that peers may have given us at a time.
pub(super) const FOREIGN_MAX: usize = 65_536;
/// BOUND: gifts taken from a socket at a time, more than a socket holds.
pub(super) const GIFTS_MAX: usize = 4096;

/// A rank's end of the traffic of gifts.
#[derive(Debug)]
pub(super) struct Peer {
    /// Holds the count of gifts the rank has sent.
    pub(super) segment: Arc<Segment>,
    /// `None` for the own rank.
    pub(super) socket: Option<Arc<UnixStream>>,
    /// The count when we last looked.
    pub(super) seen: u64,
}

impl Peer {
    pub(super) fn sent(&self) -> &AtomicU64 {
        // SAFETY: every segment has the count at GIFTS_AT, aligned, zero at first, only ever used
        // as an atomic (its size was checked when it was mapped).
        unsafe { &*self.segment.as_ptr().add(GIFTS_AT).cast::<AtomicU64>() }
    }

    /// Whether gifts have come since the last look; there will not be any again until more come.
    pub(super) fn has_news(&mut self) -> bool {
        // ORDERING: acquire pairs with the release in `tell`: what is counted is in the socket.
        let sent = self.sent().load(Ordering::Acquire);
        self.socket.is_some() && std::mem::replace(&mut self.seen, sent) != sent
    }
}

/// What `rank` sent is none of ours.
pub(super) fn bad(rank: usize, what: &str) -> Error {
    let text = format!("rank {rank} sent {what}");
    Error::new(Code::Protocol, text).with_peer(Rank::at(rank))
}

/// A breach of the protocol on the socket of `rank` is its doing, our own troubles are not.
pub(super) fn blame(error: Error, rank: usize) -> Error {
    if error.code == Code::Protocol { error.with_peer(Rank::at(rank)) } else { error }
}

pub(super) fn give(
    socket: &UnixStream,
    rank: usize,
    gift: &Gift,
    segment: Option<&Segment>,
) -> Result<()> {
    let fds: Vec<_> = segment.iter().map(|s| s.fd().as_raw_fd()).collect();
    let sent = match send_with_fds(socket, bytes_of(gift), &fds) {
        // A peer that has left needs no gift; its death is noticed elsewhere.
        Err(error) if error.native == libc::EPIPE || error.native == libc::ECONNRESET => {
            return Ok(());
        }
        other => other?,
    };
    if sent != GIFT_BYTES {
        let text = format!("rank {rank} has many notices of segments unread: let it make a call");
        return Err(Error::new(Code::Limit, text).with_peer(Rank::at(rank)));
    }
    Ok(())
}
