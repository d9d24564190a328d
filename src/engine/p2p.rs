//! Messages between two ranks, outside any plan.
//!
//! They have a lane of their own, so a message nobody receives yet holds up no collective. Messages
//! from one rank to another keep their order; the k-th receive takes the k-th send, and both must
//! name the same type and count. All posted sends and receives progress side by side.

use std::collections::VecDeque;

use crate::call::{Call, Head};
use crate::engine::link::{Fabric, Rx};
use crate::engine::wires::{Outgoing, P2P_LANE, Payload, Ticket, Wires, mismatch};
use crate::error::{Error, Result};
use crate::types::{Collective, Rank};

/// Messages that a report names; of the others it gives the number.
const LISTED_MAX: usize = 8;

#[derive(Debug)]
struct Incoming {
    ticket: u32,
    head: Head,
    at: *mut u8,
    bytes: usize,
    got: usize,
    opened: bool,
}

/// A message of a rank to itself.
#[derive(Debug)]
struct Own {
    ticket: u32,
    head: Head,
    at: *mut u8,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Pair {
    sent: u64,
    received: u64,
    incoming: VecDeque<Incoming>,
    listed: bool,
}

/// Posted receives and message numbers of every peer.
#[derive(Debug)]
pub(crate) struct PointToPoint {
    pairs: Box<[Pair]>,
    /// Peers with posted receives.
    listening: Vec<usize>,
    own_sends: VecDeque<Own>,
    own_recvs: VecDeque<Own>,
}

// SAFETY: the addresses are promised valid until the call is done, on whichever thread it runs.
unsafe impl Send for PointToPoint {}

impl PointToPoint {
    pub(crate) fn new(world: usize) -> Self {
        Self {
            pairs: (0..world).map(|_| Pair::default()).collect(),
            listening: Vec::new(),
            own_sends: VecDeque::new(),
            own_recvs: VecDeque::new(),
        }
    }

    /// Posts a send or a receive; `head` is the call's, without a number. The ticket is in a list
    /// here or in `wires` afterwards, also after an error.
    pub(crate) fn submit<F: Fabric>(
        &mut self,
        wires: &mut Wires<F>,
        call: &Call,
        mut head: Head,
        ticket: u32,
    ) -> Result<()> {
        let peer = call.root.index();
        let sends = call.collective == Collective::Send;
        // Both ends describe the message in the same words.
        head.kind = Collective::Send.number();
        head.root = 0;
        let number =
            if sends { &mut self.pairs[peer].sent } else { &mut self.pairs[peer].received };
        *number += 1;
        head.seq = *number;
        #[expect(clippy::cast_possible_truncation, reason = "validated to fit the address space")]
        let bytes = call.count as usize * call.dtype.bytes();
        if peer == wires.me {
            let (at, queue) = if sends {
                (call.send.cast_mut(), &mut self.own_sends)
            } else {
                (call.recv, &mut self.own_recvs)
            };
            queue.push_back(Own { ticket, head, at, bytes });
            return self.meet_self(wires);
        }
        if sends {
            let stored = wires.places(bytes);
            if stored {
                wires.fabric.cover(call.send, bytes, false);
            }
            let payload = Payload::Plain { at: call.send, bytes, stored };
            let ticket = Some(Ticket { number: ticket, at: call.send, bytes });
            let out = Outgoing { head: Some(head), payload, ticket };
            return wires.post(peer, P2P_LANE, out, None);
        }
        let incoming = Incoming { ticket, head, at: call.recv, bytes, got: 0, opened: false };
        let pair = &mut self.pairs[peer];
        let before = pair.incoming.iter().filter(|one| wires.places(one.bytes)).count();
        pair.incoming.push_back(incoming);
        if !pair.listed {
            pair.listed = true;
            self.listening.push(peer);
        }
        if !wires.places(bytes) {
            return Ok(());
        }
        wires.fabric.cover(call.recv, bytes, true);
        let later = u32::try_from(before).unwrap_or(u32::MAX);
        // SAFETY: the receive buffer is valid until the call is done, or the engine has failed; the
        // message is taken in its turn.
        unsafe { wires.fabric.rx(peer, P2P_LANE).expect(later, call.recv, bytes) }
    }

    /// Moves messages between this rank's own sends and receives.
    fn meet_self<F>(&mut self, wires: &mut Wires<F>) -> Result<()> {
        while let (Some(send), Some(recv)) = (self.own_sends.front(), self.own_recvs.front()) {
            if send.head != recv.head {
                return Err(unlike(wires.me, &recv.head, wires.me, &send.head));
            }
            if send.bytes > 0 {
                // SAFETY: both are `bytes` bytes of buffers valid until their calls are done.
                unsafe { std::ptr::copy(send.at, recv.at, send.bytes) };
            }
            wires.sent.extend([send.ticket, recv.ticket]);
            self.own_sends.pop_front();
            self.own_recvs.pop_front();
        }
        Ok(())
    }

    /// Takes what has arrived; finished requests go to `wires.sent`. True when something moved.
    pub(crate) fn poll<F: Fabric>(&mut self, wires: &mut Wires<F>) -> Result<bool> {
        let mut moved = false;
        let mut index = 0;
        while index < self.listening.len() {
            let peer = self.listening[index];
            while let Some(incoming) = self.pairs[peer].incoming.front_mut() {
                let before = (incoming.got, incoming.opened);
                let complete = incoming.poll(wires, peer)?;
                moved |= complete || before != (incoming.got, incoming.opened);
                if !complete {
                    break;
                }
                wires.sent.push(incoming.ticket);
                self.pairs[peer].incoming.pop_front();
            }
            if self.pairs[peer].incoming.is_empty() {
                self.pairs[peer].listed = false;
                self.listening.swap_remove(index);
            } else {
                index += 1;
            }
        }
        Ok(moved)
    }

    /// No send or receive is posted.
    pub(crate) fn idle(&self) -> bool {
        self.listening.is_empty() && self.own_sends.is_empty() && self.own_recvs.is_empty()
    }

    /// Ranks whose messages are waited for.
    pub(crate) fn awaited(&self, ranks: &mut Vec<Rank>) {
        ranks.extend(self.listening.iter().map(|&p| Rank::at(p)));
    }

    /// What is posted and has not ended, in words; nothing where nothing is.
    pub(crate) fn standing<F: Fabric>(&self, wires: &Wires<F>) -> String {
        let from = |&peer: &usize| {
            let incoming = self.pairs[peer].incoming.iter();
            incoming.map(move |one| one.describe(peer))
        };
        let to = |(peer, bytes)| format!("send to rank {peer}, {bytes} bytes left");
        let alone = |what: &str, own: &Own| {
            let text = "a message of this rank to itself has no partner";
            format!("{text}: {what} of {}", own.head.measure())
        };
        let own_sends = self.own_sends.iter().map(|one| alone("send", one));
        let own_recvs = self.own_recvs.iter().map(|one| alone("recv", one));
        let others = self.listening.iter().flat_map(from).chain(wires.p2p_waiting().map(to));
        let mut all = others.chain(own_sends).chain(own_recvs);
        let mut listed: Vec<String> = all.by_ref().take(LISTED_MAX).collect();
        match all.count() {
            0 => {}
            more => listed.push(format!("{more} more")),
        }
        listed.join("; ")
    }

    /// Forgets everything posted, giving each request to `ended`.
    pub(crate) fn clear(&mut self, mut ended: impl FnMut(u32)) {
        for pair in &mut self.pairs {
            pair.incoming.drain(..).for_each(|i| ended(i.ticket));
            pair.listed = false;
        }
        self.listening.clear();
        self.own_sends.drain(..).chain(self.own_recvs.drain(..)).for_each(|o| ended(o.ticket));
    }
}

/// Both ends describe a message as it was sent; what the receiver called is a receive.
fn unlike(me: usize, own: &Head, peer: usize, theirs: &Head) -> Error {
    let own = Head { kind: Collective::Recv.number(), ..*own };
    // A message has no number among the calls.
    Error { seq: None, ..mismatch(me, &own, peer, theirs) }
}

impl Incoming {
    fn describe(&self, peer: usize) -> String {
        let mut text = format!("recv from rank {peer} of {}", self.head.measure());
        if self.opened {
            text += &format!(", {} of {} bytes here", self.got, self.bytes);
        }
        text
    }

    fn poll<F: Fabric>(&mut self, wires: &mut Wires<F>, peer: usize) -> Result<bool> {
        if !self.opened {
            let Some(head) = wires.read_head(peer, P2P_LANE)? else {
                return Ok(false);
            };
            if head != self.head {
                return Err(unlike(wires.me, &self.head, peer, &head));
            }
            self.opened = true;
        }
        let stored = wires.places(self.bytes);
        let rx = wires.fabric.rx(peer, P2P_LANE);
        while self.got < self.bytes {
            let (into, left) = (self.at.wrapping_add(self.got), self.bytes - self.got);
            // SAFETY: the receive buffer holds `bytes` bytes and is valid until the call is done,
            // or the engine has failed.
            let got = unsafe { if stored { rx.take(into, left)? } else { rx.read(into, left)? } };
            if got == 0 {
                return Ok(false);
            }
            self.got += got;
        }
        rx.end();
        Ok(true)
    }
}
