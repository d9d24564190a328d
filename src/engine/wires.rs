//! All links of a rank with what waits in front of them: posted messages and expected heads.
//!
//! Invariant: messages of one link leave in the order they were posted; a fused step writes to a
//! link only when nothing waits in front of it.

use std::collections::VecDeque;

use bytemuck::{bytes_of, cast};

use crate::call::{HEAD_BYTES, Head};
use crate::engine::bind::{Bound, Operand};
use crate::engine::link::{Fabric, Rx, Tx};
use crate::error::{Code, Error, Result};
use crate::kernel::{Form, Stage};
use crate::types::Rank;

/// Lanes of a fabric: those of plans, then one for point-to-point messages.
pub const FABRIC_LANES: usize = crate::plan::LANES_MAX + 1;
/// Messages that may wait in front of a link before its outbox grows.
const POSTS: usize = 16;
/// The lane of point-to-point messages.
pub(crate) const P2P_LANE: usize = crate::plan::LANES_MAX;

/// What is left to send of a message.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Payload {
    /// Bytes as they lie in memory; `stored`: as they will lie at the receiver.
    Plain { at: *const u8, bytes: usize, stored: bool },
    /// Elements that change form on the way.
    Converted { source: Operand, wire: Form },
}

impl Payload {
    /// Whether some of what is left lies in `bytes` bytes at `at`.
    fn touches(&self, at: *const u8, bytes: usize, bound: &Bound) -> bool {
        let (from, length) = match *self {
            Self::Plain { at, bytes, .. } => (at as usize, bytes),
            Self::Converted { source, .. } => {
                (source.at as usize, source.count * bound.bytes(source.form))
            }
        };
        from < at as usize + bytes && (at as usize) < from + length
    }
}

/// A posted message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outgoing {
    /// Goes first, when this is the first message of a call on the link.
    pub(crate) head: Option<Head>,
    pub(crate) payload: Payload,
    /// The request that ends with this message (point to point).
    pub(crate) ticket: Option<Ticket>,
}

/// A request that ends when no link reads its payload any more.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticket {
    pub(crate) number: u32,
    pub(crate) at: *const u8,
    pub(crate) bytes: usize,
}

#[derive(Debug, Default)]
struct Port {
    /// Posted and not yet taken by the link, oldest first.
    waiting: VecDeque<Outgoing>,
    /// Stamp of the last call that sent its head here.
    opened_tx: u64,
    /// Stamp of the last call whose head was read here.
    opened_rx: u64,
    /// The link may hold bytes it has not pushed out.
    dirty: bool,
    /// It is in `Wires::busy`.
    listed: bool,
}

/// The links of one rank and their outboxes.
#[derive(Debug)]
pub(crate) struct Wires<F> {
    pub(crate) fabric: F,
    pub(crate) me: usize,
    pub(crate) world: usize,
    ports: Box<[Port]>,
    /// Ports with something waiting or unflushed: of plans, then of point-to-point messages.
    busy: [Vec<usize>; 2],
    /// Messages that wait in outboxes, of each lane.
    waiting: [usize; FABRIC_LANES],
    /// Requests that ended with a message that has now left.
    pub(crate) sent: Vec<u32>,
    /// Those whose messages have left, and are still read: by which port.
    read: Vec<(usize, Ticket)>,
}

impl<F: Fabric> Wires<F> {
    pub(crate) fn new(fabric: F, me: usize, world: usize) -> Self {
        let ports = (0..world * FABRIC_LANES).map(|_| Port::default()).collect();
        Self {
            fabric,
            me,
            world,
            ports,
            busy: [Vec::new(), Vec::new()],
            waiting: [0; FABRIC_LANES],
            sent: Vec::new(),
            read: Vec::new(),
        }
    }

    /// Whether messages of so many bytes may be placed.
    pub(crate) fn places(&self, bytes: usize) -> bool {
        self.fabric.places().is_some_and(|least| bytes >= least)
    }

    /// Nothing that plans posted waits, and their links have pushed out what they took.
    pub(crate) fn flushed(&self) -> bool {
        self.busy[0].is_empty()
    }

    /// Whether `bytes` at `at` may be written: nothing that plans posted from there waits any more,
    /// and no link reads it. What waits is moved into the links' own memory as far as it fits.
    pub(crate) fn settle(&mut self, at: *const u8, bytes: usize, bound: &Bound) -> Result<bool> {
        for index in 0..self.busy[0].len() {
            let port = self.busy[0][index];
            let touches = |out: &Outgoing| out.payload.touches(at, bytes, bound);
            if self.ports[port].waiting.iter().any(touches) {
                self.stage(port, bound)?;
            }
            // What has begun to go without being copied may just have ended so.
            let tx = self.fabric.tx(port / FABRIC_LANES, port % FABRIC_LANES);
            if tx.reads(at, bytes) || self.ports[port].waiting.iter().any(touches) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Moves what waits in front of the link to `to` into the link's own memory; true when nothing
    /// waits any more.
    pub(crate) fn clear_way(&mut self, to: usize, lane: usize, bound: &Bound) -> Result<bool> {
        self.stage(to * FABRIC_LANES + lane, bound)
    }

    fn stage(&mut self, port: usize, bound: &Bound) -> Result<bool> {
        let tx = self.fabric.tx(port / FABRIC_LANES, port % FABRIC_LANES);
        let entry = &mut self.ports[port];
        while let Some(out) = entry.waiting.front_mut() {
            if !transmit(tx, out, Some(bound), true)? {
                return Ok(false);
            }
            entry.waiting.pop_front();
            self.waiting[port % FABRIC_LANES] -= 1;
        }
        Ok(true)
    }

    /// As [`Wires::flushed`], for point-to-point messages.
    pub(crate) fn p2p_flushed(&self) -> bool {
        self.busy[1].is_empty()
    }

    /// Point-to-point messages that wait: for which rank, and how many bytes of each are left.
    pub(crate) fn p2p_waiting(&self) -> impl Iterator<Item = (usize, usize)> {
        self.busy[1].iter().flat_map(|&port| {
            self.ports[port].waiting.iter().filter_map(move |out| match out.payload {
                Payload::Plain { bytes, .. } => Some((port / FABRIC_LANES, bytes)),
                Payload::Converted { .. } => None,
            })
        })
    }

    /// Ranks that have not taken what was posted to them.
    pub(crate) fn slow_peers(&self, ranks: &mut Vec<Rank>) {
        ranks.extend(self.busy.iter().flatten().map(|p| Rank::at(p / FABRIC_LANES)));
    }

    /// Whether bytes of rank `from` wait to be read.
    pub(crate) fn heard(&mut self, from: usize, lane: usize) -> bool {
        self.fabric.rx(from, lane).peek(1).is_ok_and(|window| window.bytes > 0)
    }

    fn mark(&mut self, port: usize) {
        if !self.ports[port].listed {
            self.ports[port].listed = true;
            self.busy[usize::from(port % FABRIC_LANES == P2P_LANE)].push(port);
        }
    }

    /// Messages posted on `lane` that no link has taken yet.
    pub(crate) fn waiting(&self, lane: usize) -> usize {
        self.waiting[lane]
    }

    /// Forgets everything posted, giving each request to `ended`.
    pub(crate) fn clear(&mut self, mut ended: impl FnMut(u32)) {
        for port in &mut self.ports {
            port.waiting.drain(..).filter_map(|out| out.ticket).for_each(|one| ended(one.number));
            port.listed = false;
        }
        self.read.drain(..).for_each(|(_, ticket)| ended(ticket.number));
        self.busy.iter_mut().for_each(Vec::clear);
        self.waiting = [0; FABRIC_LANES];
    }

    /// Whether the call with `stamp` still has to send its head on this link.
    pub(crate) fn needs_head(&self, to: usize, lane: usize, stamp: u64) -> bool {
        self.ports[to * FABRIC_LANES + lane].opened_tx != stamp
    }

    /// As [`Wires::needs_head`], and takes it as sent from now on.
    pub(crate) fn open_tx(&mut self, to: usize, lane: usize, stamp: u64) -> bool {
        let port = &mut self.ports[to * FABRIC_LANES + lane];
        let first = port.opened_tx != stamp;
        port.opened_tx = stamp;
        first
    }

    /// Posts a message; what the link takes at once is gone at once. After an error it waits, like
    /// one the link did not take, for whoever ends what waits.
    pub(crate) fn post(
        &mut self,
        to: usize,
        lane: usize,
        mut out: Outgoing,
        bound: Option<&Bound>,
    ) -> Result<()> {
        let port = to * FABRIC_LANES + lane;
        self.ports[port].dirty = true;
        self.mark(port);
        // Room from the first use on: whether a message must wait is chance, and a later call that
        // finds it must should not be the one that allocates.
        let waiting = &mut self.ports[port].waiting;
        if waiting.capacity() == 0 {
            waiting.reserve(POSTS);
        }
        let gone = if self.ports[port].waiting.is_empty() {
            transmit(self.fabric.tx(to, lane), &mut out, bound, false)
        } else {
            Ok(false)
        };
        if let Ok(true) = gone {
            self.leave(port, out.ticket);
            return Ok(());
        }
        self.waiting[lane] += 1;
        self.ports[port].waiting.push_back(out);
        gone.map(drop)
    }

    /// Notes that a fused step has written to the link itself.
    pub(crate) fn touch(&mut self, to: usize, lane: usize) {
        let port = to * FABRIC_LANES + lane;
        self.ports[port].dirty = true;
        self.mark(port);
    }

    /// Moves on whatever waits; true when something moved.
    pub(crate) fn flush(&mut self, bound: Option<&Bound>) -> Result<bool> {
        let plans = self.flush_kind(0, bound)?;
        Ok(self.flush_kind(1, bound)? || plans)
    }

    fn flush_kind(&mut self, kind: usize, bound: Option<&Bound>) -> Result<bool> {
        let mut moved = false;
        let mut index = 0;
        while index < self.busy[kind].len() {
            let port = self.busy[kind][index];
            let (to, lane) = (port / FABRIC_LANES, port % FABRIC_LANES);
            while let Some(out) = self.ports[port].waiting.front_mut() {
                if !transmit(self.fabric.tx(to, lane), out, bound, false)? {
                    break;
                }
                let ticket = out.ticket;
                self.ports[port].waiting.pop_front();
                self.waiting[lane] -= 1;
                self.leave(port, ticket);
                moved = true;
            }
            moved |= self.take_back(port);
            let entry = &mut self.ports[port];
            entry.dirty = !self.fabric.tx(to, lane).flush()?;
            if entry.waiting.is_empty() && !entry.dirty {
                entry.listed = false;
                self.busy[kind].swap_remove(index);
                self.take_back(port);
                moved = true;
            } else {
                index += 1;
            }
        }
        Ok(moved)
    }

    /// The message of a request has left.
    fn leave(&mut self, port: usize, ticket: Option<Ticket>) {
        let Some(ticket) = ticket else { return };
        let tx = self.fabric.tx(port / FABRIC_LANES, port % FABRIC_LANES);
        if tx.reads(ticket.at, ticket.bytes) {
            self.read.push((port, ticket));
        } else {
            self.sent.push(ticket.number);
        }
    }

    /// Ends requests whose payload is no longer read; whether there were any.
    fn take_back(&mut self, port: usize) -> bool {
        let before = self.read.len();
        let Self { read, fabric, sent, .. } = self;
        read.retain(|(of, ticket)| {
            let tx = fabric.tx(of / FABRIC_LANES, of % FABRIC_LANES);
            let kept = *of != port || tx.reads(ticket.at, ticket.bytes);
            if !kept {
                sent.push(ticket.number);
            }
            kept
        });
        self.read.len() < before
    }

    /// Reads the head that opens the messages of call `stamp` on a link (`empty` messages always
    /// have one) and compares it with `own`; false while it has not arrived.
    pub(crate) fn open_rx(
        &mut self,
        from: usize,
        lane: usize,
        stamp: u64,
        own: &Head,
        empty: bool,
    ) -> Result<bool> {
        let port = from * FABRIC_LANES + lane;
        if self.ports[port].opened_rx == stamp && !empty {
            return Ok(true);
        }
        let Some(head) = self.read_head(from, lane)? else {
            return Ok(false);
        };
        if head != *own {
            return Err(mismatch(self.me, own, from, &head));
        }
        self.ports[port].opened_rx = stamp;
        if empty {
            self.fabric.rx(from, lane).end();
        }
        Ok(true)
    }

    /// The head at the front of a link, once it has arrived.
    pub(crate) fn read_head(&mut self, from: usize, lane: usize) -> Result<Option<Head>> {
        let rx = self.fabric.rx(from, lane);
        let window = rx.peek(HEAD_BYTES)?;
        if window.bytes < HEAD_BYTES {
            return Ok(None);
        }
        // SAFETY: the window holds at least `HEAD_BYTES` bytes until it is released, and any bytes
        // are a head. Volatile: a peer may write to them at any time, so they are read once.
        let head: Head = cast(unsafe { window.at.cast::<[u8; HEAD_BYTES]>().read_volatile() });
        rx.release(HEAD_BYTES);
        Ok(Some(head))
    }
}

/// The error that names both calls and both ranks.
pub(crate) fn mismatch(me: usize, own: &Head, peer: usize, theirs: &Head) -> Error {
    let (first, second) =
        if me < peer { ((me, own), (peer, theirs)) } else { ((peer, theirs), (me, own)) };
    let say = |(rank, head): (usize, &Head)| {
        format!("rank {rank} made call {} ({})", head.seq, head.describe())
    };
    let reason = if own.epoch != theirs.epoch {
        return Error::new(
            Code::StaleEpoch,
            format!("rank {peer} speaks for epoch {}, this is epoch {}", theirs.epoch, own.epoch),
        )
        .with_peer(Rank::at(peer));
    } else if (Head { plan: own.plan, ..*theirs }) == *own {
        "; the calls agree but the settings that choose the algorithm do not"
    } else {
        ""
    };
    Error::new(Code::Mismatch, format!("{}, {}{reason}", say(first), say(second)))
        .with_peer(Rank::at(peer))
        .with_seq(own.seq)
}

/// Gives `head` to the link; false when there is no room for it yet.
pub(crate) fn send_head<T: Tx>(tx: &mut T, head: &Head) -> Result<bool> {
    let window = tx.window()?;
    if window.bytes < HEAD_BYTES {
        return Ok(false);
    }
    // SAFETY: the window is writable for at least `HEAD_BYTES`; the head is a plain record.
    unsafe { std::ptr::copy_nonoverlapping(bytes_of(head).as_ptr(), window.at, HEAD_BYTES) };
    tx.commit(HEAD_BYTES)?;
    Ok(true)
}

/// Gives the link as much of `out` as it takes (with `stage`, into its own memory); true when all
/// of it has gone.
fn transmit<T: Tx>(
    tx: &mut T,
    out: &mut Outgoing,
    bound: Option<&Bound>,
    stage: bool,
) -> Result<bool> {
    if let Some(head) = &out.head {
        if !send_head(tx, head)? {
            return Ok(false);
        }
        out.head = None;
    }
    let done = match (&mut out.payload, bound) {
        (Payload::Plain { at, bytes, stored }, _) => {
            transmit_plain(tx, at, bytes, (*stored, stage))?
        }
        (Payload::Converted { source, wire }, Some(bound)) => {
            transmit_converted(tx, source, *wire, bound)?
        }
        (Payload::Converted { .. }, None) => {
            return Err(Error::new(Code::Internal, "a conversion was posted without a plan"));
        }
    };
    if done {
        tx.end()?;
    }
    Ok(done)
}

fn transmit_plain<T: Tx>(
    tx: &mut T,
    at: &mut *const u8,
    bytes: &mut usize,
    (stored, stage): (bool, bool),
) -> Result<bool> {
    while *bytes > 0 {
        // SAFETY: the payload is inside a buffer that stays valid until the call is done.
        let sent = unsafe {
            match (stored, stage) {
                (true, true) => tx.stage_placed(*at, *bytes)?,
                (true, false) => tx.place(*at, *bytes)?,
                (false, true) => tx.stage(*at, *bytes)?,
                (false, false) => tx.write(*at, *bytes)?,
            }
        };
        if sent == 0 {
            return Ok(false);
        }
        *at = at.wrapping_add(sent);
        *bytes -= sent;
    }
    Ok(true)
}

fn transmit_converted<T: Tx>(
    tx: &mut T,
    source: &mut Operand,
    wire: Form,
    bound: &Bound,
) -> Result<bool> {
    while source.count > 0 {
        let window = tx.window()?;
        let count = (window.bytes / bound.bytes(wire)).min(source.count);
        if count == 0 {
            return Ok(false);
        }
        let target = Operand { at: window.at, form: wire, count };
        bound.convert(*source, target, count, Stage::Plain);
        tx.commit(count * bound.bytes(wire))?;
        source.at = source.at.wrapping_add(count * bound.bytes(source.form));
        source.count -= count;
    }
    Ok(true)
}
