//! What ranks tell each other before a device makes their call: where each one's buffers are, and
//! the blocks that only two of them know of.
//!
//! ```text
//! row of a rank:   Told | for each peer, in calls with such blocks: Pair
//! ```
//!
//! Rows are words of eight bytes; all ranks of a call have rows of one length.

use bytemuck::{Pod, Zeroable};

use super::moves::Copy;
use crate::backend::pair::{expected, expected_at, pairs, sent, sent_from};
use crate::call::{Call, Head};
use crate::cuda::HANDLE_BYTES;
use crate::engine::wires::mismatch;
use crate::error::Result;
use crate::types::Rank;

/// Where a buffer is, for other ranks.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Area {
    /// [`NOTHING`], [`ADDRESS`], [`SHARED`] or [`HIDDEN`].
    pub(super) kind: u64,
    /// Its address, for ranks of the same process.
    pub(super) at: u64,
    /// Its offset in what the name stands for.
    pub(super) offset: u64,
    /// What CUDA calls the allocation between processes.
    pub(super) name: [u8; HANDLE_BYTES],
}

/// This rank uses no such buffer.
pub(super) const NOTHING: u64 = 0;
/// At its address, for threads of the same process.
pub(super) const ADDRESS: u64 = 1;
/// In an allocation that can be mapped.
pub(super) const SHARED: u64 = 2;
/// Where no other rank reaches it.
pub(super) const HIDDEN: u64 = 3;

/// What a rank tells the others of its part in a call.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Told {
    pub(super) send: Area,
    pub(super) recv: Area,
    pub(super) factor: [u8; 16],
    /// 1: the call is made in place.
    pub(super) in_place: u64,
}

/// What a rank sends to a peer, and expects of it: first elements in its buffers, and counts.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct Pair {
    sent_from: u64,
    sent: u64,
    expected_at: u64,
    expected: u64,
}

const WORD: usize = size_of::<u64>();
const TOLD_WORDS: usize = size_of::<Told>() / WORD;
const PAIR_WORDS: usize = size_of::<Pair>() / WORD;
const _: () = assert!(size_of::<Told>().is_multiple_of(WORD));

/// What all ranks of a call have told.
#[derive(Debug, Default)]
pub(super) struct Rows {
    words: Vec<u64>,
    /// Words of each.
    row: usize,
}

impl Rows {
    /// Makes room for `world` rows, of which that of rank `me`, whose call this is, is filled.
    pub(super) fn begin(&mut self, call: &Call, me: Rank, world: u32, told: Told) {
        let world = Rank(world).index();
        self.row = TOLD_WORDS + if pairs(call) { world * PAIR_WORDS } else { 0 };
        self.words.clear();
        self.words.resize(world * self.row, 0);
        let me = me.index();
        let row = &mut self.words[me * self.row..][..self.row];
        let (first, rest) = row.split_at_mut(TOLD_WORDS);
        bytemuck::cast_slice_mut::<u64, Told>(first)[0] = told;
        for (peer, pair) in bytemuck::cast_slice_mut::<u64, Pair>(rest).iter_mut().enumerate() {
            *pair = Pair {
                sent_from: sent_from(call, me, peer),
                sent: sent(call, me, peer),
                expected_at: expected_at(call, me, peer),
                expected: expected(call, me, peer),
            };
        }
    }

    /// Words of a row; where they all begin, and where those of rank `me` do.
    pub(super) fn gathered(&mut self, me: Rank) -> (u64, *mut u64, *const u64) {
        let all = self.words.as_mut_ptr();
        (self.row as u64, all, all.wrapping_add(me.index() * self.row).cast_const())
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Told> {
        let rows = self.words.chunks_exact(self.row.max(1));
        rows.map(|row| &bytemuck::cast_slice::<u64, Told>(&row[..TOLD_WORDS])[0])
    }

    fn pair(&self, rank: usize, peer: usize) -> Pair {
        let at = rank * self.row + TOLD_WORDS + peer * PAIR_WORDS;
        bytemuck::cast_slice::<u64, Pair>(&self.words[at..][..PAIR_WORDS])[0]
    }

    /// Whether every rank expects what the other sends.
    ///
    /// # Errors
    /// `MISMATCH` names two ranks that do not: on all ranks the same two.
    pub(super) fn agree(&self, call: &Call, head: &Head, me: Rank) -> Result<()> {
        if !pairs(call) {
            return Ok(());
        }
        let world = self.words.len() / self.row.max(1);
        for (from, to) in (0..world).flat_map(|from| (0..world).map(move |to| (from, to))) {
            let (sent, expected) = (self.pair(from, to).sent, self.pair(to, from).expected);
            if sent != expected {
                let of = |count: u64| Head { count, ..*head };
                let (sent, expected) = (of(sent), of(expected));
                return Err(if me.index() == from {
                    mismatch(from, &sent, to, &expected)
                } else {
                    mismatch(to, &expected, from, &sent)
                });
            }
        }
        Ok(())
    }

    /// What goes from rank `from` to rank `to`.
    pub(super) fn block(&self, from: Rank, to: Rank) -> Copy {
        let (gives, gets) =
            (self.pair(from.index(), to.index()), self.pair(to.index(), from.index()));
        Copy { from: (from, gives.sent_from), to: (to, gets.expected_at), count: gives.sent }
    }
}
