//! Messages of bounded size over a proved stream, each with a tag of the session's key.
//!
//! ```text
//! 0  payload bytes, u32     4  kind, u8     5  zero     8  tag, 32 bytes     40  payload
//! ```
//!
//! The tag covers a counter, so frames cannot be dropped, repeated or moved between connections or
//! directions. Memory grows with what has arrived, never with what a header announces.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::sync::Arc;

use super::conn::waits;
use super::key::Key;
use crate::error::{Code, Error, Result};

const HEAD_BYTES: usize = 8;
const HEADER_BYTES: usize = HEAD_BYTES + Key::BYTES;
/// How much is read at a time.
const PIECE_BYTES: usize = 64 << 10;

const TO_SERVER: &str = "unisono 2026 frames to the server v1";
const TO_CLIENT: &str = "unisono 2026 frames to the client v1";

/// Which end of the stream this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// The end that accepted.
    Server,
    /// The end that connected.
    Client,
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    /// What it says.
    pub kind: u8,
    /// Its content.
    pub payload: Vec<u8>,
}

/// Both directions of one stream's messages.
#[derive(Debug)]
pub(crate) struct Frames {
    send_key: Key,
    receive_key: Key,
    sent: u64,
    received: u64,
    /// The largest payload taken in.
    pub limit_bytes: usize,
    input: Vec<u8>,
    output: VecDeque<Arc<[u8]>>,
    /// How much of the first output is written.
    written: usize,
}

impl Frames {
    /// The messages of a session; payloads above `limit_bytes` are refused.
    pub(crate) fn new(session: &Key, side: Side, limit_bytes: usize) -> Self {
        let (server, client) = (session.derive(TO_SERVER), session.derive(TO_CLIENT));
        let (send_key, receive_key) = match side {
            Side::Server => (client, server),
            Side::Client => (server, client),
        };
        Self {
            send_key,
            receive_key,
            sent: 0,
            received: 0,
            limit_bytes,
            input: Vec::new(),
            output: VecDeque::new(),
            written: 0,
        }
    }

    /// Queues a message.
    pub(crate) fn push(&mut self, kind: u8, payload: Arc<[u8]>) {
        let length = u32::try_from(payload.len()).expect("payloads are below 4 GiB");
        let mut header = [0; HEADER_BYTES];
        header[..4].copy_from_slice(&length.to_le_bytes());
        header[4] = kind;
        let tag = self.send_key.tag(&[&self.sent.to_le_bytes(), &header[..HEAD_BYTES], &payload]);
        header[HEAD_BYTES..].copy_from_slice(&tag);
        self.sent += 1;
        self.output.push_back(Arc::from(header.as_slice()));
        if !payload.is_empty() {
            self.output.push_back(payload);
        }
    }

    /// Whether everything queued has been written.
    pub(crate) fn is_flushed(&self) -> bool {
        self.output.is_empty()
    }

    /// Writes what can be written without waiting.
    pub(crate) fn flush(&mut self, to: &mut impl Write) -> Result<()> {
        // BOUND: every turn writes a byte of a finite queue, or returns.
        while let Some(first) = self.output.front() {
            match to.write(&first[self.written..]) {
                Ok(0) => return Err(lost()),
                Ok(count) => {
                    self.written += count;
                    if self.written == first.len() {
                        self.output.pop_front();
                        self.written = 0;
                    }
                }
                Err(error) if waits(&error) => return Ok(()),
                Err(error) if gone(&error) => return Err(lost()),
                Err(error) => return Err(Error::os(&error, "writing a message")),
            }
        }
        Ok(())
    }

    /// The next whole message; `None` when it has not all arrived.
    pub(crate) fn poll(&mut self, from: &mut impl Read) -> Result<Option<Frame>> {
        // BOUND: every turn reads a byte of a message of bounded size, or returns.
        loop {
            let length = self.payload_bytes()?;
            let whole = length.map_or(HEADER_BYTES, |length| HEADER_BYTES + length);
            let have = self.input.len();
            if have == whole && length.is_some() {
                return self.take().map(Some);
            }
            self.input.resize(whole.min(have + PIECE_BYTES), 0);
            let got = from.read(&mut self.input[have..]);
            self.input.truncate(have + got.as_ref().copied().unwrap_or(0));
            match got {
                Ok(0) => return Err(lost()),
                Ok(_) => {}
                Err(error) if waits(&error) => return Ok(None),
                Err(error) if gone(&error) => return Err(lost()),
                Err(error) => return Err(Error::os(&error, "reading a message")),
            }
        }
    }

    /// What the header announces, once it has arrived, checked against the limit.
    fn payload_bytes(&self) -> Result<Option<usize>> {
        if self.input.len() < HEADER_BYTES {
            return Ok(None);
        }
        let mut word = [0; 4];
        word.copy_from_slice(&self.input[..4]);
        let length = usize::try_from(u32::from_le_bytes(word)).unwrap_or(usize::MAX);
        if length > self.limit_bytes {
            let text = format!("a message of {length} bytes, at most {}", self.limit_bytes);
            return Err(Error::new(Code::Protocol, text));
        }
        Ok(Some(length))
    }

    fn take(&mut self) -> Result<Frame> {
        let (header, payload) = self.input.split_at(HEADER_BYTES);
        let (head, tag) = header.split_at(HEAD_BYTES);
        if !self.receive_key.verifies(&[&self.received.to_le_bytes(), head, payload], tag) {
            return Err(Error::new(Code::Unauthenticated, "a message's tag is wrong"));
        }
        self.received += 1;
        let frame = Frame { kind: head[4], payload: payload.to_vec() };
        self.input.clear();
        Ok(frame)
    }
}

fn gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}

#[track_caller]
fn lost() -> Error {
    Error::new(Code::PeerLost, "the other end closed the connection")
}

/// Reads a payload's fields in order; every read is checked against what is there.
#[derive(Debug)]
pub(crate) struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    /// The next `count` bytes.
    pub(crate) fn bytes(&mut self, count: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self
            .0
            .split_at_checked(count)
            .ok_or_else(|| Error::new(Code::Protocol, "a message is shorter than it says"))?;
        self.0 = rest;
        Ok(taken)
    }

    /// The next `N` bytes.
    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let wrong = |_| Error::new(Code::Internal, "a field has the wrong size");
        self.bytes(N)?.try_into().map_err(wrong)
    }

    /// The next byte.
    pub(crate) fn u8(&mut self) -> Result<u8> {
        self.array().map(u8::from_le_bytes)
    }

    /// The next little-endian number.
    pub(crate) fn u16(&mut self) -> Result<u16> {
        self.array().map(u16::from_le_bytes)
    }

    /// The next little-endian number.
    pub(crate) fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    /// The next little-endian number.
    pub(crate) fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// The next bytes that carry their own length, at most `limit` of them.
    pub(crate) fn item(&mut self, limit: usize) -> Result<&'a [u8]> {
        let length = usize::try_from(self.u32()?).unwrap_or(usize::MAX);
        if length > limit {
            let text = format!("an item of {length} bytes, at most {limit}");
            return Err(Error::new(Code::Protocol, text));
        }
        self.bytes(length)
    }

    /// Checks that nothing is left.
    pub(crate) fn end(&self) -> Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        Err(Error::new(Code::Protocol, "a message is longer than it says"))
    }
}

/// Appends an item as [`Fields::item`] reads it.
pub(crate) fn put_item(payload: &mut Vec<u8>, item: &[u8]) {
    let length = u32::try_from(item.len()).expect("items are below 4 GiB");
    payload.extend_from_slice(&length.to_le_bytes());
    payload.extend_from_slice(item);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends() -> (Frames, Frames) {
        let session = Key::new([7; 32]);
        (Frames::new(&session, Side::Client, 1000), Frames::new(&session, Side::Server, 1000))
    }

    fn written(frames: &mut Frames) -> Vec<u8> {
        let mut bytes = Vec::new();
        frames.flush(&mut bytes).expect("flush");
        assert!(frames.is_flushed());
        bytes
    }

    #[test]
    fn frames_arrive_whole_and_in_order_and_the_end_is_an_error() {
        let (mut one, mut two) = ends();
        one.push(1, Arc::from(&b"hello"[..]));
        one.push(2, Arc::from(&b""[..]));
        let bytes = written(&mut one);
        let mut from = &bytes[..];
        let first = two.poll(&mut from).expect("first").expect("whole");
        assert_eq!((first.kind, first.payload.as_slice()), (1, &b"hello"[..]));
        let second = two.poll(&mut from).expect("second").expect("whole");
        assert_eq!((second.kind, second.payload.len()), (2, 0));
        assert_eq!(two.poll(&mut from).expect_err("end").code, Code::PeerLost);
    }

    #[test]
    fn flipped_bits_replays_and_reflections_are_refused() {
        let (mut one, _) = ends();
        one.push(1, Arc::from(&b"hello"[..]));
        let bytes = written(&mut one);
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(ends().1.poll(&mut &bad[..]).is_err(), "bit {bit}");
        }
        let (_, mut two) = ends();
        two.poll(&mut &bytes[..]).expect("first").expect("whole");
        let error = two.poll(&mut &bytes[..]).expect_err("replay");
        assert_eq!(error.code, Code::Unauthenticated);
        let error = one.poll(&mut &bytes[..]).expect_err("reflection");
        assert_eq!(error.code, Code::Unauthenticated);
    }

    #[test]
    fn a_huge_announcement_takes_no_memory() {
        let (_, mut two) = ends();
        two.limit_bytes = 1 << 30;
        let mut bytes = [0; HEADER_BYTES];
        bytes[..4].copy_from_slice(&(1u32 << 30).to_le_bytes());
        assert!(two.poll(&mut &bytes[..]).is_err());
        assert!(two.input.capacity() < 1 << 20);
        two.limit_bytes = 1000;
        assert_eq!(two.poll(&mut &bytes[..]).expect_err("limit").code, Code::Protocol);
    }

    #[test]
    fn fields_check_every_length() {
        let mut payload = 7u32.to_le_bytes().to_vec();
        put_item(&mut payload, b"abc");
        let mut fields = Fields(&payload);
        assert_eq!(fields.u32().expect("number"), 7);
        assert_eq!(fields.item(3).expect("item"), b"abc");
        fields.end().expect("end");
        assert!(fields.u64().is_err());
        assert!(Fields(&payload[4..]).item(2).is_err());
        assert!(Fields(&payload[4..9]).item(9).is_err());
        assert!(Fields(&payload).end().is_err());
    }
}
