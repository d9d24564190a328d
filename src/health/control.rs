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

use crate::call::{HEAD_BYTES, Head};
use crate::error::{Code, Error};
use crate::health::{News, retold};
use crate::sys::process::Process;
use crate::sys::socket::send;
use crate::types::Rank;

const MAGIC: u32 = 0x554e_4343;
const FAULT: u16 = 1;
const GOODBYE: u16 = 2;
/// The text is the head of a call in which the sender waits for this rank.
const CALL: u16 = 3;
const NO_PEER: u32 = u32::MAX;
/// The longest text of a fault.
const TEXT_MAX: usize = 1024;
const FRAME_BYTES: usize = size_of::<Frame>();
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

    fn watch(&mut self, news: &mut News) {
        if self.closed {
            return;
        }
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
                break None;
            }
        };
        self.parse(news);
        let gone = self.process.as_ref().filter(|p| !p.alive());
        let end = end.or_else(|| gone.map(|p| format!("its process {} ended", p.pid())));
        if let Some(why) = end
            && !self.closed
        {
            self.closed = true;
            if news.dead.is_none() {
                news.dead = Some((self.rank, why, Instant::now()));
            }
        }
    }

    fn parse(&mut self, news: &mut News) {
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
                GOODBYE => {
                    self.closed = true;
                    news.left.push(self.rank);
                }
                FAULT if news.fault.is_none() => {
                    let code = Code::from_number(frame.code).unwrap_or(Code::Broken);
                    let peer = (frame.peer != NO_PEER).then_some(Rank(frame.peer));
                    let text = String::from_utf8_lossy(text);
                    news.fault = Some(retold(self.rank, code, peer, &text));
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
        // question more tells it nothing.
        if self.unsent.is_empty() || frame.kind != CALL {
            self.unsent.extend_from_slice(bytes_of(frame));
            self.unsent.extend_from_slice(text);
        }
        if let Ok(sent) = send(&self.stream, &self.unsent) {
            self.unsent.drain(..sent);
        }
    }
}

/// The control connections of a rank.
#[derive(Debug)]
pub(crate) struct Controls(pub(crate) Vec<Control>);

impl Controls {
    pub(crate) fn watch(&mut self, news: &mut News) {
        self.0.iter_mut().for_each(|c| c.watch(news));
    }

    pub(crate) fn tell(&mut self, error: &Error) {
        let mut end = error.detail.len().min(TEXT_MAX);
        while !error.detail.is_char_boundary(end) {
            end -= 1;
        }
        let frame = Frame {
            magic: MAGIC,
            kind: FAULT,
            text_bytes: u16::try_from(end).unwrap_or(0),
            code: error.code as i32,
            peer: error.peer.map_or(NO_PEER, |r| r.0),
            seq: error.seq.unwrap_or(0),
        };
        let text = &error.detail.as_bytes()[..end];
        self.0.iter_mut().for_each(|c| c.send(&frame, text));
    }

    pub(crate) fn ask(&mut self, head: &Head, ranks: &[Rank]) {
        let frame = Frame {
            magic: MAGIC,
            kind: CALL,
            text_bytes: u16::try_from(HEAD_BYTES).unwrap_or(0),
            code: 0,
            peer: NO_PEER,
            seq: head.seq,
        };
        let asked = self.0.iter_mut().filter(|c| ranks.contains(&c.rank));
        asked.for_each(|c| c.send(&frame, bytes_of(head)));
    }

    pub(crate) fn leave(&mut self) {
        let frame =
            Frame { magic: MAGIC, kind: GOODBYE, text_bytes: 0, code: 0, peer: NO_PEER, seq: 0 };
        self.0.iter_mut().for_each(|c| c.send(&frame, &[]));
    }
}
