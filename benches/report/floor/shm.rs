//! Collectives in memory that all ranks see.

use std::sync::atomic::{AtomicU64, Ordering};

use super::buffer::Buffer;
use super::fold::fold;
use super::line::{Lines, wait};
use super::{Made, Way};

/// Letters of more bytes are never the faster way.
const LETTER_MAX: usize = 64 << 10;
/// What a line holds beside its turn.
const IN_LINE: usize = 56;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    AllReduce,
    AllGather,
    ReduceScatter,
    AllToAll,
}

impl Op {
    pub(super) fn from_name(name: &str) -> Result<Self, String> {
        Ok(match name {
            "all_reduce" => Self::AllReduce,
            "all_gather" => Self::AllGather,
            "reduce_scatter" => Self::ReduceScatter,
            "all_to_all" => Self::AllToAll,
            _ => return Err(format!("{name} has no floor")),
        })
    }
}

/// All ways of `op` on `bytes`, nccl-tests' bytes.
pub(super) fn ways(op: Op, ranks: usize, bytes: usize) -> impl Iterator<Item = Made> {
    let call = Call::new(op, ranks, bytes);
    let letters = (call.sent() <= LETTER_MAX).then_some(());
    let streaming = op == Op::AllReduce && cfg!(target_arch = "x86_64");
    let direct = [false, true].into_iter().filter(move |&stream| streaming || !stream);
    let letters = letters.into_iter().map(move |()| Ok(Box::new(Letters::new(call)) as _));
    letters.chain(direct.map(move |stream| Ok(Box::new(Direct::new(call, stream)) as _)))
}

/// A collective and its counts, in floats.
#[derive(Clone, Copy, Debug)]
struct Call {
    op: Op,
    ranks: usize,
    /// A rank's block; of an all_reduce the buffer.
    block: usize,
}

impl Call {
    fn new(op: Op, ranks: usize, bytes: usize) -> Self {
        let parts = if op == Op::AllReduce { 1 } else { ranks };
        Self { op, ranks, block: (bytes / size_of::<f32>() / parts).max(1) }
    }

    fn whole(&self) -> usize {
        if self.op == Op::AllReduce { self.block } else { self.block * self.ranks }
    }

    /// Bytes of a rank that others need.
    fn sent(&self) -> usize {
        size_of::<f32>() * if self.op == Op::AllGather { self.block } else { self.whole() }
    }

    /// Makes the output of `me` from all inputs.
    ///
    /// # Safety
    /// Every source holds an input and `target` takes an output; nobody writes to either.
    unsafe fn pull(&self, me: usize, sources: &[*const f32], target: *mut f32) {
        let block = self.block;
        // SAFETY: the caller promises inputs and outputs of the call's sizes.
        unsafe {
            match self.op {
                Op::AllReduce => fold(sources, &[target], block, false),
                Op::ReduceScatter => {
                    let mine: Vec<_> = sources.iter().map(|at| at.add(me * block)).collect();
                    fold(&mine, &[target], block, false);
                }
                Op::AllGather => {
                    for (rank, source) in sources.iter().enumerate() {
                        target.add(rank * block).copy_from_nonoverlapping(*source, block);
                    }
                }
                Op::AllToAll => {
                    for (rank, source) in sources.iter().enumerate() {
                        let source = source.add(me * block);
                        target.add(rank * block).copy_from_nonoverlapping(source, block);
                    }
                }
            }
        }
    }
}

/// Whole numbers, whose sums are exact.
fn value(rank: usize, i: usize) -> f32 {
    f32::from(u8::try_from((3 * rank + i) % 251).unwrap_or(0))
}

/// A rank's input and output.
struct Pair {
    input: Buffer,
    output: Buffer,
}

fn pairs(call: &Call) -> Vec<Pair> {
    let pair = |rank| {
        let bytes = call.whole() * size_of::<f32>();
        let pair = Pair { input: Buffer::new(bytes), output: Buffer::new(bytes) };
        pair.input.fill(call.whole(), |i| value(rank, i));
        pair.output.fill(call.whole(), |_| -1.0);
        pair
    };
    (0..call.ranks).map(pair).collect()
}

/// Loads from the others' inputs where they lie, between two exchanges.
struct Direct {
    call: Call,
    pairs: Vec<Pair>,
    lines: Lines,
    streaming: bool,
}

impl Direct {
    fn new(call: Call, streaming: bool) -> Self {
        Self { call, pairs: pairs(&call), lines: Lines::new(call.ranks), streaming }
    }

    /// Folds the own share, whole lines of it, to all outputs.
    fn share(&self, me: usize) {
        let count = self.call.block;
        let each = count.div_ceil(self.call.ranks).next_multiple_of(16);
        let (from, to) = ((each * me).min(count), (each * (me + 1)).min(count));
        // SAFETY: inside the buffers; no other rank has this share.
        unsafe {
            let input = |pair: &Pair| pair.input.floats().cast_const().add(from);
            let sources: Vec<_> = self.pairs.iter().map(input).collect();
            let output = |pair: &Pair| pair.output.floats().add(from);
            let targets: Vec<_> = self.pairs.iter().map(output).collect();
            fold(&sources, &targets, to - from, self.streaming);
        }
    }
}

impl Way for Direct {
    fn call(&self, me: usize, turn: u64) -> Result<(), String> {
        self.lines.exchange(me, 2 * turn);
        if self.call.op == Op::AllReduce {
            self.share(me);
        } else {
            let input = |pair: &Pair| pair.input.floats().cast_const();
            let sources: Vec<_> = self.pairs.iter().map(input).collect();
            // SAFETY: inputs do not change, and each rank writes its own output alone.
            unsafe { self.call.pull(me, &sources, self.pairs[me].output.floats()) };
        }
        self.lines.exchange(me, 2 * turn + 1);
        Ok(())
    }
}

/// Every rank shows a copy. There are two of each: who writes the letter of turn k has seen
/// everyone's of turn k - 1, so all are done with those of turn k - 2.
///
/// ```text
/// letter: | turn (8) | data, up to 56 bytes |     or     | turn (8) | unused (56) | data ... |
/// ```
struct Letters {
    call: Call,
    pairs: Vec<Pair>,
    letters: Vec<[Buffer; 2]>,
}

impl Letters {
    fn new(call: Call) -> Self {
        let letter = || Buffer::new(64 + call.sent());
        let letters = (0..call.ranks).map(|_| [letter(), letter()]).collect();
        Self { call, pairs: pairs(&call), letters }
    }

    fn line(&self, rank: usize, turn: u64) -> &AtomicU64 {
        let letter = &self.letters[rank][usize::from(turn % 2 == 1)];
        // SAFETY: a letter begins with its turn, at a page's begin, and lives as long as `self`.
        unsafe { AtomicU64::from_ptr(letter.at().cast()) }
    }

    fn data(&self, rank: usize, turn: u64) -> *mut u8 {
        let letter = &self.letters[rank][usize::from(turn % 2 == 1)];
        let offset = if self.call.sent() <= IN_LINE { 8 } else { 64 };
        // SAFETY: a letter has room for both.
        unsafe { letter.at().add(offset) }
    }
}

impl Way for Letters {
    fn call(&self, me: usize, turn: u64) -> Result<(), String> {
        let (input, data) = (self.pairs[me].input.at(), self.data(me, turn));
        // SAFETY: nobody reads this letter any more; both hold what is sent.
        unsafe { data.copy_from_nonoverlapping(input, self.call.sent()) };
        // ORDERING: release is the partner of the acquire in `wait`.
        self.line(me, turn).store(turn, Ordering::Release);
        for rank in 0..self.call.ranks {
            wait(self.line(rank, turn), turn);
        }
        let source = |rank| self.data(rank, turn).cast_const().cast();
        let sources: Vec<*const f32> = (0..self.call.ranks).map(source).collect();
        // SAFETY: the letters of this turn are written, and each rank writes its own output alone.
        unsafe { self.call.pull(me, &sources, self.pairs[me].output.floats()) };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::timing;
    use super::*;

    /// Element i of what `me` has in the end.
    fn wanted(call: &Call, me: usize, i: usize) -> f32 {
        let sum = |i: usize| (0..call.ranks).map(|rank| value(rank, i)).sum();
        let (from, at) = (i / call.block, i % call.block);
        match call.op {
            Op::AllReduce => sum(i),
            Op::ReduceScatter if from == 0 => sum(me * call.block + i),
            Op::ReduceScatter => -1.0,
            Op::AllGather => value(from, at),
            Op::AllToAll => value(from, me * call.block + at),
        }
    }

    fn check(call: &Call, pairs: &[Pair], way: &dyn Way) {
        timing::rounds(way, call.ranks, 128 << 20, 1).expect("run");
        for (me, pair) in pairs.iter().enumerate() {
            for i in 0..call.whole() {
                // SAFETY: inside the output, and the ranks have ended.
                let found = unsafe { pair.output.floats().add(i).read() };
                assert_eq!(found.to_bits(), wanted(call, me, i).to_bits(), "{call:?} {me} {i}");
            }
        }
    }

    #[test]
    fn every_way_of_every_collective_gives_its_result() {
        for op in [Op::AllReduce, Op::AllGather, Op::ReduceScatter, Op::AllToAll] {
            for (ranks, bytes) in [(2, 8), (2, 4096), (3, 4000)] {
                let call = Call::new(op, ranks, bytes);
                let letters = Letters::new(call);
                check(&call, &letters.pairs, &letters);
                for streaming in
                    [false, true].into_iter().take(1 + usize::from(op == Op::AllReduce))
                {
                    let direct = Direct::new(call, streaming);
                    check(&call, &direct.pairs, &direct);
                }
            }
        }
    }
}
