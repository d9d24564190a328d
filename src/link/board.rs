//! The board: where ranks that share memory show each other their calls and phases.
//!
//! ```text
//! row of a rank:
//!  0        128    256      384                            512
//!  | phase  | past | gave up | turn digest words(10) | head | the same for the next turn | ...
//! ```
//!
//! Beside its row a rank has an *area*, where it puts what others load: see `engine::area`.
//!
//! A notice is published by storing its words, then its turn: turn, digest and the first six words
//! are one cache line, so one miss brings all; processors fetch the second line of such a pair
//! along with the first. The head at the end is for errors. A notice gives way to a later one,
//! which is published when all ranks are known to be through with it: see `engine::meet`.
//!
//! *Past* says which way of storing what others load this rank finds the faster: see `pace`.
//!
//! *Gave up* is the first turn that this rank does not end well, or 0. It is stored before callers
//! get their buffers back. So who has loaded such a buffer, and then finds no such turn there, has
//! loaded what belonged to the call, as a reader of a seqlock has.

use std::mem::offset_of;
use std::ptr::NonNull;
use std::sync::Arc;

use bytemuck::{cast, pod_read_unaligned};

use crate::call::Head;
use crate::engine::link::{NOTICE_WORDS, NOTICES, Notice, notice_slot};
use crate::error::{Code, Error, Result};
use crate::link::doze::Waker;
use crate::link::pace::Pace;
use crate::sync::{AtomicU64, Ordering, fence};
use crate::types::Rank;

/// One rank's part of the board.
#[derive(Debug)]
#[repr(C, align(128))]
pub(crate) struct Row {
    phase: Line<1>,
    past: Line<1>,
    /// On a line that all keep in their caches: it changes once.
    gave_up: Line<1>,
    notices: [Line<16>; NOTICES],
}

impl Row {
    #[inline]
    fn notice(&self, turn: u64) -> &Line<16> {
        &self.notices[notice_slot(turn)]
    }
}

/// Words on cache lines of their own.
#[derive(Debug)]
#[repr(C, align(128))]
struct Line<const WORDS: usize>([AtomicU64; WORDS]);

/// Where in a notice's line its parts begin.
const WORDS_AT: usize = 2;
const HEAD_AT: usize = WORDS_AT + NOTICE_WORDS;

/// Bytes of one rank's part.
pub(crate) const ROW_BYTES: usize = 128 * (3 + NOTICES);
#[cfg(not(loom))]
const _: () = assert!(size_of::<Row>() == ROW_BYTES);

/// Where everything in it lies.
pub(crate) const ROW: [usize; 7] = [
    ROW_BYTES,
    offset_of!(Row, phase),
    offset_of!(Row, past),
    offset_of!(Row, gave_up),
    offset_of!(Row, notices),
    WORDS_AT,
    HEAD_AT,
];

/// Begins to load the line of `at`, where the processor can be told to.
fn prefetch<T>(at: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint; the instruction is part of every x86-64 CPU.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(at).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Everyone's rows, as one rank sees them.
#[derive(Debug)]
pub(crate) struct Rows {
    me: usize,
    rows: Box<[NonNull<Row>]>,
    areas: Box<[NonNull<u8>]>,
    wakers: Box<[Option<Waker>]>,
    pace: Pace,
    _keep: Vec<Arc<dyn std::any::Any + Send + Sync>>,
}

// SAFETY: rows are atomics in memory that `_keep` keeps alive; areas are bare memory there, which a
// rank writes only when the others are known to have done with it: `engine::area`.
unsafe impl Send for Rows {}

impl Rows {
    /// The rows and areas, one a rank; `wakers` has none for rank `me`.
    ///
    /// # Safety
    /// Every row must be [`ROW_BYTES`] bytes, aligned to 128, zero at first, and every area
    /// [`crate::engine::link::AREA_BYTES`] bytes, aligned to 64; `keep` keeps them alive.
    pub(crate) unsafe fn new(
        me: usize,
        rows: Box<[NonNull<Row>]>,
        areas: Box<[NonNull<u8>]>,
        wakers: Box<[Option<Waker>]>,
        keep: Vec<Arc<dyn std::any::Any + Send + Sync>>,
    ) -> Self {
        Self { me, rows, areas, wakers, pace: Pace::new(), _keep: keep }
    }

    fn row(&self, rank: usize) -> &Row {
        // SAFETY: `new` promised live rows.
        unsafe { self.rows[rank].as_ref() }
    }

    fn wake_all(&self) {
        Waker::wake_all(self.wakers.iter().flatten());
    }

    pub(crate) fn publish(&mut self, turn: u64, notice: Notice<'_>) {
        let line = self.row(self.me).notice(turn);
        let head: [u64; 4] = cast(notice.head);
        for (word, value) in line.0[HEAD_AT..].iter().zip(head) {
            word.store(value, Ordering::Relaxed);
        }
        for (word, &value) in line.0[WORDS_AT..].iter().zip(notice.words) {
            word.store(value, Ordering::Relaxed);
        }
        line.0[1].store(notice.head.digest(), Ordering::Relaxed);
        // ORDERING: release pairs with the acquire in `notice`: the words come before the turn.
        line.0[0].store(turn, Ordering::Release);
        self.wake_all();
    }

    #[inline]
    pub(crate) fn notice(&self, peer: usize, turn: u64) -> Result<Option<u64>> {
        let line = self.row(peer).notice(turn);
        // ORDERING: acquire pairs with the release in `publish`.
        let seen = line.0[0].load(Ordering::Acquire);
        if seen < turn {
            return Ok(None);
        }
        if seen > turn {
            let text = format!("rank {peer} is at turn {seen} of the board, this rank at {turn}");
            return Err(Error::new(Code::Protocol, text).with_peer(Rank::at(peer)));
        }
        Ok(Some(line.0[1].load(Ordering::Relaxed)))
    }

    pub(crate) fn expect(&self, peer: usize, turn: u64) {
        prefetch(self.row(peer).notice(turn));
    }

    #[inline]
    pub(crate) fn words(&self, peer: usize, turn: u64, words: &mut [u64]) {
        let line = self.row(peer).notice(turn);
        for (word, shown) in words.iter_mut().zip(&line.0[WORDS_AT..HEAD_AT]) {
            *word = shown.load(Ordering::Relaxed);
        }
    }

    pub(crate) fn head(&self, peer: usize, turn: u64) -> Head {
        let line = self.row(peer).notice(turn);
        let mut words = [0u64; 4];
        for (value, word) in words.iter_mut().zip(&line.0[HEAD_AT..]) {
            *value = word.load(Ordering::Relaxed);
        }
        pod_read_unaligned(bytemuck::cast_slice(&words))
    }

    pub(crate) fn area(&self, rank: usize) -> *mut u8 {
        self.areas[rank].as_ptr()
    }

    /// Whether half of the ranks or more find it faster to store past the caches.
    pub(crate) fn past(&self) -> bool {
        let past = |&rank: &usize| self.row(rank).past.0[0].load(Ordering::Relaxed) != 0;
        2 * (0..self.rows.len()).filter(past).count() >= self.rows.len()
    }

    pub(crate) fn clock(&self) -> u64 {
        self.pace.clock()
    }

    pub(crate) fn took(&mut self, past: bool, bytes: usize, nanoseconds: u64) {
        let now = u64::from(self.pace.took(past, bytes, nanoseconds));
        let shown = &self.row(self.me).past.0[0];
        // Others read it on every call: no store where nothing changes.
        if shown.load(Ordering::Relaxed) != now {
            shown.store(now, Ordering::Relaxed);
        }
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

    pub(crate) fn give_up(&mut self, turn: u64) {
        self.row(self.me).gave_up.0[0].store(turn, Ordering::Relaxed);
        // ORDERING: release pairs with the acquire in `given_up`: whoever loads what is written to
        // the buffers from now on sees the turn.
        fence(Ordering::Release);
    }

    #[inline]
    pub(crate) fn given_up(&self, peer: usize, turn: u64) -> bool {
        // ORDERING: acquire pairs with the release in `give_up`: what was loaded comes before.
        fence(Ordering::Acquire);
        let from = self.row(peer).gave_up.0[0].load(Ordering::Relaxed);
        from != 0 && from <= turn
    }
}
