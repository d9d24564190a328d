//! What two ends tell each other: immediates of 32 bits, and frames of 64 bytes.
//!
//! An *immediate* comes with bytes that the peer has written. Its bits, the highest first:
//!
//! ```text
//!  31   30..28   27..20      19..0
//! | 0 | lane   | message   | bytes                          |  so many more bytes of the ring
//! | 1 | lane   | message   | piece (19..14), 0 (13..0)      |  this piece has been placed
//! ```
//!
//! `message` counts the placeable messages of the lane before those bytes, or before the one that
//! the piece is of, modulo 256: a sender is never so many ahead.
//!
//! A *frame* is a message of its own. Numbers are little-endian:
//!
//! ```text
//!        0     1     2..4     4..8      8..16     16..24   24..28  28..32  32..64
//! HELLO  kind  path  version  frames    address   ring     key     lanes   0
//! STATE  kind  0     0        0         frames    heads: 8 bytes for each of up to 6 lanes
//! ADVERT kind  lane  0        message   address   bytes    key     0       0
//! NOTE   kind  0     0        immediate 0 ...
//! GIVEN_UP kind path 0        0         taken
//! ASK    kind  0 ...
//! ```
//!
//! HELLO is the first frame of a connection: where the rings of its sender begin, their length, and
//! how many frames it takes at a time. STATE says how many immediates and frames its sender has
//! taken, and up to which position the rings. GIVEN_UP says that its sender takes nothing more from
//! another path, and how many immediates and frames it has taken from that. ADVERT says where a
//! placeable message of a lane is wanted; without bytes: in the ring. NOTE is an immediate where
//! the card has none (iWARP).

use crate::engine::wires::FABRIC_LANES;
use crate::error::{Code, Error, Result};

/// The protocol that these are of.
pub(super) const VERSION: u16 = 1;
/// Bytes of a frame.
pub(super) const FRAME_BYTES: usize = 64;
/// Adverts of a lane that may be open.
pub(super) const ADVERTS_MAX: usize = 16;
/// Pieces of one message: they go by 6 bits.
pub(super) const PIECES_MAX: usize = 64;

const HELLO: u8 = 1;
const STATE: u8 = 2;
const ADVERT: u8 = 3;
const NOTE: u8 = 4;
const GIVEN_UP: u8 = 5;
const ASK: u8 = 6;

const LANE_AT: u32 = 28;
const NUMBER_AT: u32 = 20;
const NUMBER_BITS: u32 = 8;
const PIECE_AT: u32 = 14;
const PLACED: u32 = 1 << 31;
/// Numbers of messages before they repeat.
pub(super) const STAMPS: usize = 1 << NUMBER_BITS;
/// The most bytes that one immediate tells of.
pub(super) const RUN_MAX: usize = (1 << NUMBER_AT) - 1;

const _: () = assert!(FABRIC_LANES <= 6, "a lane is 3 bits, and STATE has room for 6 heads");
const _: () = assert!(PIECES_MAX <= 1 << (NUMBER_AT - PIECE_AT));
const _: () = assert!(16 + 8 * FABRIC_LANES <= FRAME_BYTES);

/// An immediate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// `bytes` more bytes of the ring of `lane` are there.
    Ring { lane: usize, message: u32, bytes: usize },
    /// So is piece `piece` of a message, where it was wanted.
    Placed { lane: usize, message: u32, piece: usize },
}

impl Told {
    /// As 32 bits.
    pub(super) fn bits(self) -> u32 {
        let number = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        let low = |value: u32| (value % (1 << NUMBER_BITS)) << NUMBER_AT;
        match self {
            Self::Ring { lane, message, bytes } => {
                debug_assert!(bytes <= RUN_MAX);
                number(lane) << LANE_AT | low(message) | number(bytes)
            }
            Self::Placed { lane, message, piece } => {
                PLACED | number(lane) << LANE_AT | low(message) | number(piece) << PIECE_AT
            }
        }
    }

    /// What `bits` say; `None` where they say nothing.
    pub(super) fn of(bits: u32) -> Option<Self> {
        let field = |at: u32, width: u32| bits >> at & ((1 << width) - 1);
        let index = |value: u32| usize::try_from(value).unwrap_or(usize::MAX);
        let lane = index(field(LANE_AT, 3));
        let number = field(NUMBER_AT, NUMBER_BITS);
        if lane >= FABRIC_LANES {
            return None;
        }
        if bits & PLACED == 0 {
            return Some(Self::Ring { lane, message: number, bytes: index(field(0, NUMBER_AT)) });
        }
        let piece = index(field(PIECE_AT, NUMBER_AT - PIECE_AT));
        (field(0, PIECE_AT) == 0).then_some(Self::Placed { lane, message: number, piece })
    }
}

/// The number near `known`, at or after it, whose low bits are `low`.
pub(super) fn after(known: u32, low: u32) -> u32 {
    let mask = (1 << NUMBER_BITS) - 1;
    known.wrapping_add(low.wrapping_sub(known) & mask)
}

/// Where a peer may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Remote {
    pub(super) address: u64,
    pub(super) key: u32,
}

/// A frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// `rings` is where those of all lanes follow each other, `ring` bytes each; `frames` may be
    /// under way at a time.
    Hello { path: u8, frames: u32, rings: Remote, ring: u64 },
    /// What the sender has taken.
    State { frames: u64, heads: [u64; FABRIC_LANES] },
    /// Where the `bytes` bytes of placeable message `message` of `lane` are to be; 0: in the ring.
    Advert { lane: usize, message: u32, place: Remote, bytes: u64 },
    /// An immediate.
    Note { bits: u32 },
    /// Nothing more is taken from this path; so many were.
    GivenUp { path: u8, taken: u64 },
    /// A STATE of this path is wanted now.
    Ask,
}

impl Frame {
    /// As bytes.
    pub(super) fn encode(self) -> [u8; FRAME_BYTES] {
        let mut bytes = [0; FRAME_BYTES];
        let byte = |value: usize| u8::try_from(value).unwrap_or(u8::MAX);
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        match self {
            Self::Hello { path, frames, rings, ring } => {
                put(0, &[HELLO, path]);
                put(2, &VERSION.to_le_bytes());
                put(4, &frames.to_le_bytes());
                put(8, &rings.address.to_le_bytes());
                put(16, &ring.to_le_bytes());
                put(24, &rings.key.to_le_bytes());
                put(28, &u32::from(byte(FABRIC_LANES)).to_le_bytes());
            }
            Self::State { frames, heads } => {
                put(0, &[STATE]);
                put(8, &frames.to_le_bytes());
                for (lane, head) in heads.iter().enumerate() {
                    put(16 + 8 * lane, &head.to_le_bytes());
                }
            }
            Self::Advert { lane, message, place, bytes } => {
                put(0, &[ADVERT, byte(lane)]);
                put(4, &message.to_le_bytes());
                put(8, &place.address.to_le_bytes());
                put(16, &bytes.to_le_bytes());
                put(24, &place.key.to_le_bytes());
            }
            Self::Note { bits } => {
                put(0, &[NOTE]);
                put(4, &bits.to_le_bytes());
            }
            Self::Ask => put(0, &[ASK]),
            Self::GivenUp { path, taken } => {
                put(0, &[GIVEN_UP, path]);
                put(8, &taken.to_le_bytes());
            }
        }
        bytes
    }

    /// What `bytes` say.
    ///
    /// # Errors
    /// `PROTOCOL` where they are no frame, `VERSION_MISMATCH` where they are of another version.
    pub(super) fn decode(bytes: &[u8; FRAME_BYTES]) -> Result<Self> {
        let u32_at = |at: usize| u32::from_le_bytes(part(bytes, at));
        let u64_at = |at: usize| u64::from_le_bytes(part(bytes, at));
        let place = Remote { address: u64_at(8), key: u32_at(24) };
        let bad = |what: &str| Error::new(Code::Protocol, format!("an RDMA frame with {what}"));
        match bytes[0] {
            HELLO => {
                let version = u16::from_le_bytes(part(bytes, 2));
                if version != VERSION {
                    let text =
                        format!("the peer's RDMA link is of version {version}, not {VERSION}");
                    return Err(Error::new(Code::VersionMismatch, text));
                }
                if usize::try_from(u32_at(28)) != Ok(FABRIC_LANES) {
                    return Err(bad("another number of lanes"));
                }
                Ok(Self::Hello {
                    path: bytes[1],
                    frames: u32_at(4),
                    rings: place,
                    ring: u64_at(16),
                })
            }
            STATE => {
                let mut heads = [0; FABRIC_LANES];
                for (lane, head) in heads.iter_mut().enumerate() {
                    *head = u64_at(16 + 8 * lane);
                }
                Ok(Self::State { frames: u64_at(8), heads })
            }
            ADVERT => {
                let lane = usize::from(bytes[1]);
                if lane >= FABRIC_LANES {
                    return Err(bad("a lane that is none"));
                }
                Ok(Self::Advert { lane, message: u32_at(4), place, bytes: u64_at(16) })
            }
            NOTE => Ok(Self::Note { bits: u32_at(4) }),
            ASK => Ok(Self::Ask),
            GIVEN_UP => Ok(Self::GivenUp { path: bytes[1], taken: u64_at(8) }),
            _ => Err(bad("a kind that is none")),
        }
    }
}

/// `N` of the bytes, from `at` on.
fn part<const N: usize>(bytes: &[u8; FRAME_BYTES], at: usize) -> [u8; N] {
    let mut part = [0; N];
    part.copy_from_slice(&bytes[at..at + N]);
    part
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn immediates_come_back_as_they_went(
            lane in 0..FABRIC_LANES,
            number in 0u32..1 << NUMBER_BITS,
            bytes in 0..=RUN_MAX,
            piece in 0..PIECES_MAX,
        ) {
            let ring = Told::Ring { lane, message: number, bytes };
            prop_assert_eq!(Told::of(ring.bits()), Some(ring));
            let placed = Told::Placed { lane, message: number, piece };
            prop_assert_eq!(Told::of(placed.bits()), Some(placed));
        }

        #[test]
        fn any_bits_are_an_immediate_or_refused(bits: u32) {
            if let Some(told) = Told::of(bits) {
                prop_assert_eq!(told.bits(), bits);
            }
        }

        #[test]
        fn a_number_is_found_by_its_low_bits(known: u32, ahead in 0u32..1 << NUMBER_BITS) {
            let number = known.wrapping_add(ahead);
            prop_assert_eq!(after(known, number % (1 << NUMBER_BITS)), number);
        }

        #[test]
        fn frames_come_back_as_they_went(
            (address, key, bytes) in any::<(u64, u32, u64)>(),
            (number, lane, frames) in (any::<u32>(), 0..FABRIC_LANES, any::<u64>()),
            heads: [u64; FABRIC_LANES],
        ) {
            let place = Remote { address, key };
            for frame in [
                Frame::Hello { path: 3, frames: number, rings: place, ring: bytes },
                Frame::State { frames, heads },
                Frame::Advert { lane, message: number, place, bytes },
                Frame::Note { bits: number },
                Frame::GivenUp { path: 3, taken: bytes },
                Frame::Ask,
            ] {
                prop_assert_eq!(Frame::decode(&frame.encode()).expect("a frame"), frame);
            }
        }
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        let decode = |frame: [u8; FRAME_BYTES]| Frame::decode(&frame).expect_err("no frame").code;
        assert_eq!(decode([0; FRAME_BYTES]), Code::Protocol);
        assert_eq!(decode([9; FRAME_BYTES]), Code::Protocol);
        let rings = Remote { address: 1, key: 2 };
        let hello = Frame::Hello { path: 0, frames: 8, rings, ring: 64 }.encode();
        let spoiled = |at: usize| {
            let mut frame = hello;
            frame[at] ^= 0x40;
            decode(frame)
        };
        assert_eq!((spoiled(2), spoiled(28)), (Code::VersionMismatch, Code::Protocol));
        let place = rings;
        let mut advert = Frame::Advert { lane: 0, message: 1, place, bytes: 2 }.encode();
        advert[1] = 200;
        assert_eq!(decode(advert), Code::Protocol);
    }
}
