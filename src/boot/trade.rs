//! The trade between two ranks of one host on a proved connection: a segment and a bell for each.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use super::conn::ours;
use super::frame::Fields;
use crate::error::{Code, Error, Result};
use crate::sys::bell::Bell;
use crate::sys::memory::Segment;
use crate::sys::process::Process;
use crate::sys::unix;

/// The message that goes with the descriptors: magic (8), bytes of the segment (8), token (32).
pub(super) const OFFER_BYTES: usize = 48;
pub(super) const OFFER_MAGIC: &[u8; 8] = b"UNILOCL1";
pub(super) const YES: u8 = 1;

/// A rank of this host.
#[derive(Debug)]
pub(crate) struct LocalPeer {
    /// Its memory.
    pub segment: Segment,
    /// Its bell.
    pub bell: Bell,
    /// Its process, where the system can tell; else only its connections say that it has died.
    pub process: Option<Process>,
    /// The connection. What goes over it from here on is its users' affair.
    pub socket: UnixStream,
}

/// What this rank gives to every other of its host.
pub(super) struct Mine<'a> {
    segment: &'a Segment,
    layout: u32,
    bell: &'a Bell,
    offer: [u8; OFFER_BYTES],
}

/// The trade on a proved connection.
#[derive(Debug)]
pub(super) struct Trade {
    stream: UnixStream,
    sent: usize,
    input: Vec<u8>,
    fds: Vec<OwnedFd>,
    /// What they gave, once it is checked and we have said yes.
    taken: Option<(Segment, Bell)>,
}

/// How far a trade has come.
#[derive(Debug)]
pub(super) enum Traded {
    /// It waits for the peer.
    Pending(Box<Trade>),
    Done(Box<LocalPeer>),
    /// One end was not content.
    Refused,
}

impl Trade {
    /// On a fresh connection.
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream, sent: 0, input: Vec::new(), fds: Vec::new(), taken: None }
    }

    /// Reads up to `whole` bytes and what descriptors come with them; false: not all is there.
    fn fill(&mut self, whole: usize) -> Result<bool> {
        let mut bytes = [0; OFFER_BYTES];
        // BOUND: every turn reads a byte of a message of fixed size, or returns.
        while self.input.len() < whole {
            let lacking = whole - self.input.len();
            let room = 2 - self.fds.len().min(2);
            let got = unix::recv_with_fds(&self.stream, &mut bytes[..lacking], room)?;
            let Some(got) = got else { return Ok(false) };
            if got.bytes == 0 {
                return Err(Error::new(Code::PeerLost, "the other end closed the connection"));
            }
            self.input.extend_from_slice(&bytes[..got.bytes]);
            self.fds.extend(got.fds);
        }
        Ok(true)
    }

    /// What the peer offered, checked: its segment must have `bytes` bytes and this layout, as all
    /// of a host have.
    fn accept(&mut self, peer: u32, bytes: usize, layout: u32) -> Result<(Segment, Bell)> {
        let mut fields = Fields(&self.input);
        let magic = fields.bytes(8)?;
        let size = fields.u64()?;
        let token = fields.array()?;
        let (Some(bell), Some(segment), None) = (self.fds.pop(), self.fds.pop(), self.fds.pop())
        else {
            return Err(Error::new(Code::Protocol, "not one segment and one bell"));
        };
        if magic != OFFER_MAGIC || size != bytes as u64 {
            return Err(Error::new(Code::Protocol, "an offer that makes no sense"));
        }
        let segment = Segment::open(segment, bytes)?;
        if segment.header(layout)? != (peer, token) {
            return Err(Error::new(Code::Protocol, "the segment is not the one the peer wrote"));
        }
        Ok((segment, Bell::from_fd(bell)?))
    }
}

impl<'a> Mine<'a> {
    /// The own part; `token` stands in the segment's header.
    pub(super) fn new(
        (segment, layout): (&'a Segment, u32),
        bell: &'a Bell,
        token: [u8; 32],
    ) -> Self {
        let mut offer = [0; OFFER_BYTES];
        offer[..8].copy_from_slice(OFFER_MAGIC);
        offer[8..16].copy_from_slice(&(segment.len() as u64).to_le_bytes());
        offer[16..].copy_from_slice(&token);
        Self { segment, layout, bell, offer }
    }

    /// Takes a trade as far as it goes without waiting.
    pub(super) fn trade(&self, mut trade: Box<Trade>, peer: u32) -> Result<Traded> {
        // The offer and the verdict are far smaller than a socket's buffer, so a socket that does
        // not take them at once belongs to a peer that does not read.
        if trade.sent == 0 {
            let fds = [self.segment.fd().as_raw_fd(), self.bell.far_end()?.as_raw_fd()];
            trade.sent = unix::send_with_fds(&trade.stream, &self.offer, &fds)?;
            if trade.sent != OFFER_BYTES {
                return Err(Error::new(Code::Protocol, "the peer does not read"));
            }
        }
        if trade.taken.is_none() {
            if !trade.fill(OFFER_BYTES)? {
                return Ok(Traded::Pending(trade));
            }
            trade.taken = Some(trade.accept(peer, self.segment.len(), self.layout)?);
            if unix::send_with_fds(&trade.stream, &[YES], &[])? != 1 {
                return Err(Error::new(Code::Protocol, "the peer does not read"));
            }
        }
        if !trade.fill(OFFER_BYTES + 1)? {
            return Ok(Traded::Pending(trade));
        }
        let Trade { stream, input, taken, fds, .. } = *trade;
        let (Some((segment, bell)), Some(&YES), []) = (taken, input.last(), fds.as_slice()) else {
            return Ok(Traded::Refused);
        };
        let process = match Process::of_peer(&stream) {
            Err(error) if ours(&error) => return Err(error),
            process => process.ok(),
        };
        Ok(Traded::Done(Box::new(LocalPeer { segment, bell, process, socket: stream })))
    }
}
