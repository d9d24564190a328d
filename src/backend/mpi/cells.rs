//! What the ranks of a call tell each other in its gate.
//!
//! Most gates are an all_reduce of two words, in place:
//!
//! ```text
//! left    the sum of what counts between ranks leave over: 0 where they fit
//! flags   how many ranks say LATER, LATE and DIVIDED, 20 bits each
//! ```
//!
//! Where counts are between two ranks it is an all_to_all of those words with a count before them.

use crate::backend::pair::{expected, pairs, sent};
use crate::call::{Call, hash_counts};
use crate::types::{Collective, Dtype, WORLD_MAX};

/// The call came by a form that may not wait.
const LATER: u64 = 1;
/// The rank has not been heard of for a while.
const LATE: u64 = 1 << FIELD;
/// The rank's counts are more than a call of MPI takes.
const DIVIDED: u64 = 1 << (2 * FIELD);

/// Bits in which the ranks that say one thing are counted.
const FIELD: u32 = 20;
const _: () = assert!(WORLD_MAX < 1 << FIELD);

/// A count and the two words.
type Word = [u64; WORDS];
const WORDS: usize = 3;

/// What a rank says of itself, or of at least one of them is true.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Says {
    /// Not in calls that wait.
    pub(super) later: bool,
    /// The others may have given it up: who waits for it may have a deadline.
    pub(super) late: bool,
    /// With messages, as many as it takes.
    pub(super) divided: bool,
}

impl Says {
    fn word(self) -> u64 {
        let flag = |said: bool, one: u64| if said { one } else { 0 };
        flag(self.later, LATER) | flag(self.late, LATE) | flag(self.divided, DIVIDED)
    }

    fn of(sum: u64) -> Self {
        let any = |one: u64| (sum / one) & ((1 << FIELD) - 1) != 0;
        Self { later: any(LATER), late: any(LATE), divided: any(DIVIDED) }
    }
}

/// What a gate exchanges.
#[derive(Debug)]
pub(super) struct Cells {
    says: Vec<Word>,
    hears: Vec<Word>,
}

impl Cells {
    pub(super) fn new(world: usize) -> Self {
        Self { says: vec![[0; WORDS]; world], hears: vec![[0; WORDS]; world] }
    }

    /// Fills in what this rank says in `call`; the native call that takes it to the others.
    pub(super) fn gate(&mut self, call: &Call, me: usize, says: Says) -> Call {
        if !pairs(call) {
            self.say(says);
            let mut gate = Call::new(Collective::AllReduce, Dtype::U64);
            gate.count = 2;
            gate.recv = (&raw mut self.hears[0][1]).cast();
            gate.send = gate.recv.cast_const();
            return gate;
        }
        let mut left = 0u64;
        for peer in 0..self.says.len() {
            let (sends, expects) = (sent(call, me, peer), expected(call, me, peer));
            left = left.wrapping_add(mark(me, peer, sends)).wrapping_sub(mark(peer, me, expects));
            self.says[peer][0] = sends;
        }
        self.says.iter_mut().for_each(|word| (word[1], word[2]) = (left, says.word()));
        let mut gate = Call::new(Collective::AllToAll, Dtype::U64);
        gate.count = WORDS as u64;
        (gate.send, gate.recv) = (self.says.as_ptr().cast(), self.hears.as_mut_ptr().cast());
        gate
    }

    /// What this rank says in a gate that is an all_reduce.
    #[inline]
    pub(super) fn say(&mut self, says: Says) {
        self.hears[0] = [0, 0, says.word()];
    }

    /// What has been heard in a gate that is an all_reduce: what some rank says.
    #[inline]
    pub(super) fn summed(&self) -> Says {
        Says::of(self.hears[0][2])
    }

    /// What has been heard in the gate of `call`: whether all counts fit, and what some rank says.
    pub(super) fn heard(&self, call: &Call) -> (bool, Says) {
        let words = if pairs(call) { &self.hears[..] } else { &self.hears[..1] };
        let sum = |at: usize| words.iter().fold(0, |sum: u64, word| sum.wrapping_add(word[at]));
        (sum(1) == 0, Says::of(sum(2)))
    }

    /// A rank whose count is not what this one expects of it, with both counts.
    pub(super) fn unlike(&self, call: &Call, me: usize) -> Option<(usize, u64, u64)> {
        let told = self.hears.iter().map(|word| word[0]).enumerate();
        let mut pairs = told.map(|(peer, count)| (peer, count, expected(call, me, peer)));
        pairs.find(|(_, told, expected)| told != expected)
    }
}

/// A word for a count from one rank to another: sums of them differ, as good as always, where
/// counts do.
fn mark(from: usize, to: usize, count: u64) -> u64 {
    hash_counts(&[from as u64, to as u64, count])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_to_all_v(sends: &[u64], recvs: &[u64]) -> Call {
        let mut call = Call::new(Collective::AllToAllV, Dtype::F32);
        call.send_blocks.set(sends, None);
        call.recv_blocks.set(recvs, None);
        call
    }

    /// What every rank hears when each says what its gate has.
    fn exchange(calls: &[Call]) -> Vec<Cells> {
        let world = calls.len();
        let mut all: Vec<Cells> = (0..world).map(|_| Cells::new(world)).collect();
        for (me, call) in calls.iter().enumerate() {
            all[me].gate(call, me, Says::default());
        }
        for me in 0..world {
            for peer in 0..world {
                all[me].hears[peer] = all[peer].says[me];
            }
        }
        all
    }

    #[test]
    fn counts_that_fit_leave_nothing_over() {
        let calls = [all_to_all_v(&[1, 2], &[1, 7]), all_to_all_v(&[7, 0], &[2, 0])];
        for (me, cells) in exchange(&calls).iter().enumerate() {
            assert_eq!(cells.heard(&calls[me]), (true, Says::default()));
            assert_eq!(cells.unlike(&calls[me], me), None);
        }
    }

    #[test]
    fn everyone_hears_of_a_count_that_does_not_fit_and_its_receiver_sees_which() {
        let calls = [all_to_all_v(&[1, 2], &[1, 7]), all_to_all_v(&[7, 0], &[3, 0])];
        let all = exchange(&calls);
        assert!(all.iter().zip(&calls).all(|(cells, call)| !cells.heard(call).0));
        assert_eq!(all[0].unlike(&calls[0], 0), None);
        assert_eq!(all[1].unlike(&calls[1], 1), Some((0, 2, 3)));
    }

    #[test]
    fn rooted_counts_are_compared_between_the_root_and_each() {
        let mut root = Call::new(Collective::GatherV, Dtype::U8);
        root.recv_blocks.set(&[4, 5], None);
        root.count = 4;
        let mut other = Call::new(Collective::GatherV, Dtype::U8);
        other.count = 6;
        let all = exchange(&[root.clone(), other.clone()]);
        assert_eq!(all[0].unlike(&root, 0), Some((1, 6, 5)));
        assert_eq!(all[1].unlike(&other, 1), None);
        assert!(!all[1].heard(&other).0);
    }

    #[test]
    fn what_any_rank_says_is_heard_and_nothing_else() {
        let call = Call::new(Collective::AllReduce, Dtype::F32);
        let (no, yes) = (Says::default(), Says { late: true, ..Says::default() });
        let later = Says { later: true, divided: true, late: false };
        let all = |says: &[Says]| {
            let mut cells = Cells::new(says.len());
            cells.hears[0] = [0, 0, says.iter().map(|one| one.word()).sum()];
            cells.heard(&call)
        };
        assert_eq!(all(&[no, no, no]), (true, no));
        assert_eq!(all(&[no, yes, yes]), (true, yes));
        assert_eq!(all(&[later, yes]), (true, Says { late: true, ..later }));
        assert_eq!(all(&vec![later; WORLD_MAX as usize]), (true, later));
    }
}
