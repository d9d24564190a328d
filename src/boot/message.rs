//! What ranks and their rendezvous say to each other, inside frames.

use std::sync::Arc;
use std::time::Duration;

use super::auth::NO_RANK;
use super::frame::{Fields, Frame, put_item};
use crate::error::{Code, Error, Result, cut, shown};
use crate::types::{Rank, WORLD_MAX};

/// The most bytes a card, the terms or one rank's part of an exchange may have.
pub(crate) const ITEM_MAX: usize = 4096;
/// The most bytes of an error's text that travel.
const TEXT_MAX: usize = 1024;
/// The largest frame a rank sends.
pub(crate) const REQUEST_MAX: usize = 64 + 2 * ITEM_MAX;

const JOIN: u8 = 1;
const TABLE: u8 = 2;
const OFFER: u8 = 3;
const ALL: u8 = 4;
const FAILED: u8 = 5;

/// The largest frame that answers a rank of this world.
pub(crate) fn answer_max(world: u32) -> usize {
    let ranks = usize::try_from(world.min(WORLD_MAX)).expect("a world fits memory");
    64 + TEXT_MAX + (ranks + 1) * (ITEM_MAX + 4)
}

/// What a rank says to the rendezvous.
#[derive(Debug)]
pub(crate) enum Request {
    /// Here I am.
    Join {
        /// Its number.
        rank: u32,
        /// The world it believes in.
        world: u32,
        /// How long it will wait.
        patience: Duration,
        /// What the others are to know about it.
        card: Vec<u8>,
        /// What everyone is to know; counts from rank 0 only.
        terms: Vec<u8>,
    },
    /// Its part of an exchange.
    Offer {
        /// The number of the exchange.
        round: u64,
        /// How long it will wait.
        patience: Duration,
        /// Its part.
        item: Vec<u8>,
        /// A bit for each rank it has met since the table.
        met: Vec<u8>,
    },
    /// It has failed and so has the job.
    Failed(Error),
}

/// What the rendezvous answers.
#[derive(Debug)]
pub(crate) enum Answer {
    /// Everyone is here.
    Table {
        /// Every rank's card.
        cards: Vec<Vec<u8>>,
        /// Rank 0's terms.
        terms: Vec<u8>,
    },
    /// Everyone's part of an exchange.
    All {
        /// The number of the exchange.
        round: u64,
        /// Every rank's part.
        items: Vec<Vec<u8>>,
    },
    /// The job failed for everyone, for this reason.
    Failed(Error),
}

fn put_patience(payload: &mut Vec<u8>, patience: Duration) {
    let milliseconds = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
    payload.extend_from_slice(&milliseconds.to_le_bytes());
}

impl Request {
    /// The request as a frame's kind and payload.
    pub(crate) fn encode(&self) -> (u8, Arc<[u8]>) {
        let mut payload = Vec::new();
        let kind = match self {
            Self::Join { rank, world, patience, card, terms } => {
                payload.extend_from_slice(&rank.to_le_bytes());
                payload.extend_from_slice(&world.to_le_bytes());
                put_patience(&mut payload, *patience);
                put_item(&mut payload, card);
                put_item(&mut payload, terms);
                JOIN
            }
            Self::Offer { round, patience, item, met } => {
                payload.extend_from_slice(&round.to_le_bytes());
                put_patience(&mut payload, *patience);
                put_item(&mut payload, item);
                put_item(&mut payload, met);
                OFFER
            }
            Self::Failed(error) => {
                put_error(&mut payload, error);
                FAILED
            }
        };
        (kind, payload.into())
    }

    /// The request in a frame.
    pub(crate) fn decode(frame: &Frame) -> Result<Self> {
        let mut fields = Fields(&frame.payload);
        let request = match frame.kind {
            JOIN => Self::Join {
                rank: fields.u32()?,
                world: fields.u32()?,
                patience: Duration::from_millis(fields.u64()?),
                card: fields.item(ITEM_MAX)?.to_vec(),
                terms: fields.item(ITEM_MAX)?.to_vec(),
            },
            OFFER => Self::Offer {
                round: fields.u64()?,
                patience: Duration::from_millis(fields.u64()?),
                item: fields.item(ITEM_MAX)?.to_vec(),
                met: fields.item(ITEM_MAX)?.to_vec(),
            },
            FAILED => Self::Failed(error(&mut fields)?),
            kind => return Err(unknown(kind)),
        };
        fields.end()?;
        Ok(request)
    }
}

impl Answer {
    /// The table as a frame's kind and payload; one copy serves every rank.
    pub(crate) fn table(cards: &[Vec<u8>], terms: &[u8]) -> (u8, Arc<[u8]>) {
        let mut payload = Vec::new();
        put_item(&mut payload, terms);
        cards.iter().for_each(|card| put_item(&mut payload, card));
        (TABLE, payload.into())
    }

    /// The end of an exchange as a frame's kind and payload.
    pub(crate) fn all(round: u64, items: &[Vec<u8>]) -> (u8, Arc<[u8]>) {
        let mut payload = round.to_le_bytes().to_vec();
        items.iter().for_each(|item| put_item(&mut payload, item));
        (ALL, payload.into())
    }

    /// A failure as a frame's kind and payload.
    pub(crate) fn failed(error: &Error) -> (u8, Arc<[u8]>) {
        let mut payload = Vec::new();
        put_error(&mut payload, error);
        (FAILED, payload.into())
    }

    /// The answer in a frame to a rank of `world`.
    pub(crate) fn decode(frame: &Frame, world: u32) -> Result<Self> {
        let mut fields = Fields(&frame.payload);
        let answer = match frame.kind {
            TABLE => {
                let terms = fields.item(ITEM_MAX)?.to_vec();
                Self::Table { terms, cards: items(&mut fields, world)? }
            }
            ALL => Self::All { round: fields.u64()?, items: items(&mut fields, world)? },
            FAILED => Self::Failed(error(&mut fields)?),
            kind => return Err(unknown(kind)),
        };
        fields.end()?;
        Ok(answer)
    }
}

fn items(fields: &mut Fields<'_>, world: u32) -> Result<Vec<Vec<u8>>> {
    // BOUND: the world this rank was told by its own caller; a short message ends it sooner.
    (0..world).map(|_| fields.item(ITEM_MAX).map(<[u8]>::to_vec)).collect()
}

fn unknown(kind: u8) -> Error {
    Error::new(Code::Protocol, format!("a message of unknown kind {kind}"))
}

fn put_error(payload: &mut Vec<u8>, error: &Error) {
    payload.extend_from_slice(&(error.code as i32).to_le_bytes());
    payload.extend_from_slice(&error.peer.map_or(NO_RANK, |rank| rank.0).to_le_bytes());
    put_item(payload, cut(&error.detail, TEXT_MAX).as_bytes());
}

/// An error another process met.
fn error(fields: &mut Fields<'_>) -> Result<Error> {
    let number = i32::from_le_bytes(fields.u32()?.to_le_bytes());
    let peer = fields.u32()?;
    let text = shown(fields.item(TEXT_MAX)?);
    let code = Code::from_number(number).unwrap_or(Code::Protocol);
    let error = Error::new(code, text);
    Ok(if peer == NO_RANK { error } else { error.with_peer(Rank(peer)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame((kind, payload): (u8, Arc<[u8]>)) -> Frame {
        Frame { kind, payload: payload.to_vec() }
    }

    #[test]
    fn requests_and_answers_survive_their_bytes() {
        let join = Request::Join {
            rank: 3,
            world: 8,
            patience: Duration::from_secs(60),
            card: vec![1; ITEM_MAX],
            terms: vec![2; ITEM_MAX],
        };
        let bytes = join.encode();
        assert!(bytes.1.len() <= REQUEST_MAX);
        let again = Request::decode(&frame(bytes)).expect("join");
        assert_eq!(format!("{join:?}"), format!("{again:?}"));
        let cards = [vec![1], vec![], vec![2, 3]];
        let Answer::Table { cards: again, terms } =
            Answer::decode(&frame(Answer::table(&cards, b"t")), 3).expect("table")
        else {
            panic!("another kind")
        };
        assert_eq!((again.as_slice(), terms.as_slice()), (&cards[..], &b"t"[..]));
        let sent = Error::new(Code::PeerLost, "a\nb").with_peer(Rank(4));
        let Answer::Failed(got) = Answer::decode(&frame(Answer::failed(&sent)), 3).expect("failed")
        else {
            panic!("another kind")
        };
        assert_eq!((got.code, got.peer, &*got.detail), (Code::PeerLost, Some(Rank(4)), "a b"));
    }

    #[test]
    fn every_truncation_and_many_changes_are_refused_or_harmless() {
        let whole = frame(Answer::all(7, &[vec![1; 10], vec![2; 10]]));
        for end in 0..whole.payload.len() {
            let cut = Frame { kind: whole.kind, payload: whole.payload[..end].to_vec() };
            assert!(Answer::decode(&cut, 2).is_err());
        }
        assert!(Answer::decode(&whole, 3).is_err());
        assert!(Answer::decode(&whole, 1).is_err());
        for at in 0..whole.payload.len() {
            for value in [0, 1, 127, 128, 255] {
                let mut bad = whole.clone();
                bad.payload[at] = value;
                for kind in 0..8 {
                    bad.kind = kind;
                    let _ = Answer::decode(&bad, 2);
                    let _ = Request::decode(&bad);
                }
            }
        }
    }
}
