//! Health of ranks in other processes: one control connection to each, and its process where it is
//! on this host.
//!
//! A frame is 24 bytes and a text of at most [`TEXT_MAX`], little endian:
//!
//! ```text
//!  0       4      6            8      12     16    24
//!  | magic | kind | text bytes | code | peer | seq | text ...
//! ```

use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::time::Instant;

use bytemuck::{Pod, Zeroable, bytes_of, pod_read_unaligned};

use crate::call::{HEAD_BYTES, Head, Tally};
use crate::error::{Code, Error, cut, shown};
use crate::health::{News, retold};
use crate::sys::process::Process;
use crate::sys::socket::send;
use crate::types::Rank;

const MAGIC: u32 = 0x554e_4343;
const FAULT: u16 = 1;
/// The text is the tally of the sender's calls; none if its communicator is broken.
const GOODBYE: u16 = 2;
/// The text is the head of a call in which the sender waits for this rank.
const CALL: u16 = 3;
/// The text is a list of ranks, `u32` each, that the sender waits for; none when it goes on.
const WAIT: u16 = 4;
const NO_PEER: u32 = u32::MAX;
/// The longest text: a fault's, cut, or as many ranks waited for as fit.
const TEXT_MAX: usize = 1024;
const WAITS_MAX: usize = TEXT_MAX / 4;
const FRAME_BYTES: usize = size_of::<Frame>();
const TALLY_BYTES: usize = size_of::<Tally>();
/// Room for questions from the start, so that a steady run allocates none.
const ROOM: usize = 4096;

#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct Frame {
    magic: u32,
    kind: u16,
    text_bytes: u16,
    code: i32,
    peer: u32,
    seq: u64,
}

/// A frame that tells of no fault.
fn plain(kind: u16, seq: u64, text_bytes: usize) -> Frame {
    let text_bytes = u16::try_from(text_bytes).unwrap_or(0);
    Frame { magic: MAGIC, kind, text_bytes, code: 0, peer: NO_PEER, seq }
}

/// The control connection to one peer.
#[derive(Debug)]
pub(crate) struct Control {
    rank: Rank,
    stream: TcpStream,
    process: Option<Process>,
    /// Bytes of a frame that has not fully arrived.
    partial: Vec<u8>,
    /// What the socket has not taken.
    unsent: Vec<u8>,
    /// The peer was told that this rank waits, and not yet that it goes on.
    waits_told: bool,
    /// Nothing more is to be heard: the peer has left or died.
    closed: bool,
}

impl Control {
    /// A non-blocking, authenticated connection to `rank`, and its process if it runs on this host.
    pub(crate) fn new(rank: Rank, stream: TcpStream, process: Option<Process>) -> Self {
        Self {
            rank,
            stream,
            process,
            partial: Vec::with_capacity(ROOM),
            unsent: Vec::with_capacity(ROOM),
            waits_told: false,
            closed: false,
        }
    }

    /// What to wait on.
    pub(crate) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// The peer's process.
    pub(crate) fn process(&self) -> Option<&Process> {
        self.process.as_ref()
    }

    fn watch(&mut self, news: &mut News, world: usize) {
        if self.closed {
            return;
        }
        self.flush();
        // Asked first: whatever a process said before it ended can be read afterwards.
        let mut gone = self.process.as_ref().filter(|p| !p.alive());
        let mut bytes = [0u8; 4096];
        // BOUND: one pass over what has arrived; a peer that floods is cut off by `parse`.
        let end = loop {
            match self.stream.read(&mut bytes) {
                Ok(0) => break Some("its connection closed".to_owned()),
                Ok(count) => self.partial.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break None,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => break Some(error.to_string()),
            }
            if self.partial.len() > 4 * (FRAME_BYTES + TEXT_MAX) {
                // Not all it said has been read: the next look tells.
                gone = None;
                break None;
            }
        };
        let end = end.or_else(|| gone.map(|p| format!("its process {} ended", p.pid())));
        self.parse(news, world);
        if let Some(why) = end
            && !self.closed
        {
            self.closed = true;
            if news.dead.is_none() {
                news.dead = Some((self.rank, why, Instant::now()));
            }
        }
    }

    fn parse(&mut self, news: &mut News, world: usize) {
        let mut at = 0;
        while let Some(bytes) = self.partial.get(at..at + FRAME_BYTES) {
            let frame: Frame = pod_read_unaligned(bytes);
            let text_bytes = usize::from(frame.text_bytes);
            if frame.magic != MAGIC || text_bytes > TEXT_MAX {
                let text = format!("rank {} sent no control frame", self.rank);
                news.fault = Some(Error::new(Code::Protocol, text).with_peer(self.rank));
                self.closed = true;
                break;
            }
            let from = at + FRAME_BYTES;
            let Some(text) = self.partial.get(from..from + text_bytes) else {
                break;
            };
            at = from + text_bytes;
            match frame.kind {
                CALL if text.len() == HEAD_BYTES => {
                    news.asks(self.rank, pod_read_unaligned(text));
                }
                WAIT if text.len() % 4 == 0 => {
                    let ranks = text.chunks_exact(4).map(pod_read_unaligned).map(Rank);
                    news.stalls(self.rank, ranks.filter(|rank| rank.index() < world));
                }
                GOODBYE => {
                    self.closed = true;
                    let tally = (text.len() == TALLY_BYTES).then(|| pod_read_unaligned(text));
                    news.leaves(self.rank, tally);
                }
                FAULT if news.fault.is_none() => {
                    let code = Code::from_number(frame.code).unwrap_or(Code::Broken);
                    let mut told = Error::new(code, shown(text));
                    told.peer = Some(Rank(frame.peer)).filter(|rank| rank.index() < world);
                    told.seq = Some(frame.seq).filter(|seq| *seq > 0);
                    news.fault = Some(retold(self.rank, &told));
                }
                // A later version may say more than this one understands.
                _ => {}
            }
        }
        self.partial.drain(..at.min(self.partial.len()));
    }

    /// Best effort: a peer that does not take a few hundred bytes has worse troubles.
    fn send(&mut self, frame: &Frame, text: &[u8]) {
        if self.closed {
            return;
        }
        // A peer that never waits seldom listens, and its socket may fill: frames stay whole, and a
        // question more tells it nothing. That a wait it was told of is over it must hear.
        let waits = frame.kind == WAIT && !text.is_empty();
        if self.unsent.is_empty() || !(frame.kind == CALL || waits) {
            self.waits_told |= waits;
            self.unsent.extend_from_slice(bytes_of(frame));
            self.unsent.extend_from_slice(text);
        }
        self.flush();
    }

    /// Sends what the socket takes now.
    fn flush(&mut self) {
        if !self.unsent.is_empty()
            && let Ok(sent) = send(&self.stream, &self.unsent)
        {
            self.unsent.drain(..sent);
        }
    }
}

/// The control connections of a rank: one to each other rank of its world.
#[derive(Debug)]
pub(crate) struct Controls(pub(crate) Vec<Control>);

impl Controls {
    pub(crate) fn watch(&mut self, news: &mut News) {
        let world = self.0.len() + 1;
        self.0.iter_mut().for_each(|c| c.watch(news, world));
    }

    pub(crate) fn tell(&mut self, error: &Error) {
        let text = cut(&error.detail, TEXT_MAX).as_bytes();
        let frame = Frame {
            magic: MAGIC,
            kind: FAULT,
            text_bytes: u16::try_from(text.len()).unwrap_or(0),
            code: error.code as i32,
            peer: error.peer.map_or(NO_PEER, |r| r.0),
            seq: error.seq.unwrap_or(0),
        };
        self.0.iter_mut().for_each(|c| c.send(&frame, text));
    }

    pub(crate) fn ask(&mut self, head: Option<&Head>, awaited: &[Rank], all: bool) {
        let seq = head.map_or(0, |head| head.seq);
        let told = &awaited[..awaited.len().min(WAITS_MAX)];
        let mut text = [0; TEXT_MAX];
        for (bytes, rank) in text.chunks_exact_mut(4).zip(told) {
            bytes.copy_from_slice(&rank.0.to_le_bytes());
        }
        let waits = plain(WAIT, seq, 4 * told.len());
        let call = head.map(|head| (plain(CALL, seq, HEAD_BYTES), head));
        for control in self.0.iter_mut().filter(|c| all || awaited.contains(&c.rank)) {
            control.send(&waits, &text[..4 * told.len()]);
            if let Some((frame, head)) = &call {
                control.send(frame, bytes_of(*head));
            }
        }
    }

    pub(crate) fn go_on(&mut self) {
        for control in &mut self.0 {
            if std::mem::take(&mut control.waits_told) {
                control.send(&plain(WAIT, 0, 0), &[]);
            }
        }
    }

    pub(crate) fn leave(&mut self, tally: Option<Tally>) {
        let text = tally.as_ref().map_or(&[][..], bytes_of);
        let frame = plain(GOODBYE, 0, text.len());
        self.0.iter_mut().for_each(|c| c.send(&frame, text));
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;

    /// Rank 1's control connection to rank 0, and rank 0's end.
    fn connection() -> (Controls, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
        let near = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
        let (far, _) = listener.accept().expect("accept");
        near.set_nonblocking(true).expect("non-blocking");
        (Controls(vec![Control::new(Rank(0), near, None)]), far)
    }

    fn told(frame: Frame, text: &[u8]) -> Error {
        let (mut controls, far) = connection();
        let bytes = [bytes_of(&frame), text].concat();
        assert_eq!(send(&far, &bytes).expect("send"), bytes.len());
        drop(far);
        let mut news = News::default();
        // BOUND: the end of the stream.
        while news.dead.is_none() {
            controls.watch(&mut news);
        }
        news.fault.expect("a fault")
    }

    const FRAME: Frame =
        Frame { magic: MAGIC, kind: FAULT, text_bytes: 6, code: 120, peer: 1, seq: 9 };

    #[test]
    fn a_fault_is_told_with_call_and_culprit_and_without_what_makes_no_sense() {
        let error = told(FRAME, b"a\x1b[2Jb");
        assert_eq!((error.code, error.peer, error.seq), (Code::Mismatch, Some(Rank(1)), Some(9)));
        assert_eq!(&*error.detail, "a [2Jb (told by rank 0)");
        // No rank of a world of 2, and codes that would leave the communicator whole.
        for (code, kept) in [(100, Code::Broken), (202, Code::Broken), (300, Code::PeerLost)] {
            let error = told(Frame { code, peer: 2, seq: 0, ..FRAME }, b"abcdef");
            assert_eq!((error.code, error.peer, error.seq), (kept, None, None));
        }
    }

    #[test]
    fn whom_a_rank_waits_for_is_told_taken_back_and_checked() {
        let (controls, far) = connection();
        // Of a world of 5.
        let mut control = { controls }.0.remove(0);
        let mut news = News::default();
        let mut hear = |ranks: &[u32], cut: usize| {
            let text: Vec<u8> = ranks.iter().flat_map(|rank| rank.to_le_bytes()).collect();
            let text = &text[..text.len() - cut];
            let bytes = [bytes_of(&plain(WAIT, 9, text.len())), text].concat();
            assert_eq!(send(&far, &bytes).expect("send"), bytes.len());
            // Loopback may take a moment: a fault behind it tells that all has come.
            assert_eq!(send(&far, bytes_of(&Frame { text_bytes: 0, ..FRAME })).expect("send"), 24);
            news.fault = None;
            // BOUND: the fault arrives.
            while news.fault.is_none() {
                control.watch(&mut news, 5);
            }
            news.waits.clone()
        };
        let waits = |ranks: &[u32]| ranks.iter().map(|&r| (Rank(0), Rank(r))).collect::<Vec<_>>();
        assert_eq!(hear(&[3, 2], 0), waits(&[3, 2]));
        // Itself, and ranks that there are not.
        assert_eq!(hear(&[0, 4, 5, u32::MAX], 0), waits(&[4]));
        // No list.
        assert_eq!(hear(&[1, 2], 1), waits(&[4]));
        assert_eq!(hear(&[], 0), waits(&[]));
    }

    #[test]
    fn that_a_rank_goes_on_is_told_to_those_who_heard_that_it_waits() {
        let (mut controls, mut far) = connection();
        controls.go_on();
        controls.ask(None, &[Rank(3)], false);
        controls.ask(None, &[Rank(0), Rank(3)], false);
        controls.go_on();
        controls.go_on();
        drop(controls);
        let mut heard = Vec::new();
        far.read_to_end(&mut heard).expect("all");
        let (waits, on) = (plain(WAIT, 0, 8), plain(WAIT, 0, 0));
        let ranks = [0u32.to_le_bytes(), 3u32.to_le_bytes()].concat();
        assert_eq!(heard, [bytes_of(&waits), &ranks, bytes_of(&on)].concat());
    }

    #[test]
    fn what_the_socket_did_not_take_goes_out_later() {
        let (mut controls, mut far) = connection();
        let fault = Error::new(Code::Mismatch, "x".repeat(TEXT_MAX));
        let mut frames = 0;
        while controls.0[0].unsent.is_empty() {
            controls.tell(&fault);
            frames += 1;
        }
        far.set_nonblocking(true).expect("non-blocking");
        let mut news = News::default();
        let (mut bytes, mut got) = ([0; 65536], 0);
        // BOUND: everything sent arrives.
        while got < frames * (FRAME_BYTES + TEXT_MAX) {
            got += far.read(&mut bytes).unwrap_or(0);
            controls.watch(&mut news);
        }
        assert!(controls.0[0].unsent.is_empty());
    }
}
