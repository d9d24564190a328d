//! The board: where ranks that share memory show each other their calls and phases.
//!
//! ```text
//! per rank, 384 bytes:
//!  0        128                           256
//!  | phase  | turn head(4) in(3) out(3)   | the same, for odd turns |
//! ```
//!
//! A notice is published by storing its words, then its turn. Two notices suffice: a rank publishes
//! turn k + 2 only after it has seen every notice of turn k + 1, and a rank shows its notice of
//! turn k + 1 only after it has read every notice of turn k.

use std::ptr::NonNull;
use std::sync::Arc;

use bytemuck::{cast, pod_read_unaligned};

use crate::call::Head;
use crate::engine::link::{Notice, Place};
use crate::error::{Code, Error, Result};
use crate::link::doze::Waker;
use crate::sync::{AtomicU64, Ordering};
use crate::types::Rank;

/// One rank's part of the board.
#[derive(Debug)]
#[repr(C, align(128))]
pub(crate) struct Row {
    phase: Line<1>,
    notices: [Line<11>; 2],
}

/// Words on cache lines of their own.
#[derive(Debug)]
#[repr(C, align(128))]
struct Line<const WORDS: usize>([AtomicU64; WORDS]);

/// Bytes of one rank's part.
pub(crate) const ROW_BYTES: usize = 384;
#[cfg(not(loom))]
const _: () = assert!(size_of::<Row>() == ROW_BYTES);

/// Everyone's rows, as one rank sees them.
#[derive(Debug)]
pub(crate) struct Rows {
    me: usize,
    rows: Box<[NonNull<Row>]>,
    wakers: Box<[Option<Waker>]>,
    _keep: Vec<Arc<dyn std::any::Any + Send + Sync>>,
}

// SAFETY: rows are atomics in memory that `_keep` keeps alive.
unsafe impl Send for Rows {}

impl Rows {
    /// The rows at `rows`, one a rank; `wakers` has none for rank `me`.
    ///
    /// # Safety
    /// Every row must be [`ROW_BYTES`] bytes, aligned to 128, zero at first, kept alive by `keep`.
    pub(crate) unsafe fn new(
        me: usize,
        rows: Box<[NonNull<Row>]>,
        wakers: Box<[Option<Waker>]>,
        keep: Vec<Arc<dyn std::any::Any + Send + Sync>>,
    ) -> Self {
        Self { me, rows, wakers, _keep: keep }
    }

    fn row(&self, rank: usize) -> &Row {
        // SAFETY: `new` promised live rows.
        unsafe { self.rows[rank].as_ref() }
    }

    fn wake_all(&self) {
        self.wakers.iter().flatten().for_each(Waker::wake);
    }

    pub(crate) fn publish(&mut self, turn: u64, notice: &Notice) {
        let line = &self.row(self.me).notices[usize::from(turn % 2 == 1)];
        let head: [u64; 4] = cast(notice.head);
        let places = [
            u64::from(notice.input.segment),
            notice.input.offset,
            notice.input.bytes,
            u64::from(notice.output.segment),
            notice.output.offset,
            notice.output.bytes,
        ];
        for (word, value) in line.0[1..].iter().zip(head.into_iter().chain(places)) {
            word.store(value, Ordering::Relaxed);
        }
        // ORDERING: release pairs with the acquire in `notice`: the words come before the turn.
        line.0[0].store(turn, Ordering::Release);
        self.wake_all();
    }

    pub(crate) fn notice(&self, peer: usize, turn: u64) -> Result<Option<Notice>> {
        let line = &self.row(peer).notices[usize::from(turn % 2 == 1)];
        // ORDERING: acquire pairs with the release in `publish`.
        let seen = line.0[0].load(Ordering::Acquire);
        if seen < turn {
            return Ok(None);
        }
        if seen > turn {
            let text = format!("rank {peer} is at turn {seen} of the board, this rank at {turn}");
            return Err(Error::new(Code::Protocol, text).with_peer(Rank::at(peer)));
        }
        let mut words = [0u64; 10];
        for (value, word) in words.iter_mut().zip(&line.0[1..]) {
            *value = word.load(Ordering::Relaxed);
        }
        let head: Head = pod_read_unaligned(bytemuck::cast_slice(&words[..4]));
        let place = |at: usize| {
            let segment = u32::try_from(words[at]).unwrap_or(Place::PRIVATE);
            Place { segment, offset: words[at + 1], bytes: words[at + 2] }
        };
        Ok(Some(Notice { head, input: place(4), output: place(7) }))
    }

    pub(crate) fn post(&mut self, phase: u64) {
        // ORDERING: release pairs with the acquire in `reached`: all we wrote comes before.
        self.row(self.me).phase.0[0].store(phase, Ordering::Release);
        self.wake_all();
    }

    pub(crate) fn reached(&self, peer: usize) -> u64 {
        // ORDERING: acquire pairs with the release in `post`.
        self.row(peer).phase.0[0].load(Ordering::Acquire)
    }
}
