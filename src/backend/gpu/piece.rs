//! A call on device memory in pieces that go by way of host memory.
//!
//! Every block of a call is cut at the same elements: piece `k` holds elements `k * unit` up to
//! `(k + 1) * unit` of each, where it has them. What is left is a call of the same kind on host
//! memory, the *stage*, and lists of what to copy there and back. Pure: addresses are numbers here.
//!
//! ```text
//! stage of a piece:   | what this rank sends | what it receives |     or one region for both
//! ```

use crate::call::{Call, Ragged};
use crate::types::{Collective, Rank};

/// Bytes that are at one place on the device and at another in the stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    /// Address on the device.
    pub(super) device: usize,
    /// Offset in the stage.
    pub(super) stage: usize,
    pub(super) bytes: usize,
}

/// One piece of a call.
#[derive(Debug)]
pub(super) struct Piece {
    /// To the stage, before.
    pub(super) ins: Vec<Span>,
    /// From the stage, after.
    pub(super) outs: Vec<Span>,
    /// Where in the stage the call's output begins.
    pub(super) output: usize,
    /// Bytes of the stage.
    pub(super) bytes: usize,
    /// The call on the stage, but for its addresses.
    pub(super) host: Call,
}

/// Elements of the longest block of `call`, as far as this rank knows.
pub(super) fn longest(call: &Call) -> u64 {
    let lists = call.send_blocks.counts.iter().chain(&call.recv_blocks.counts);
    lists.copied().max().unwrap_or(0).max(call.count)
}

/// Whether ranks know blocks that other ranks do not, and so cannot tell how many pieces there are.
pub(super) fn is_private(kind: Collective) -> bool {
    matches!(kind, Collective::GatherV | Collective::ScatterV | Collective::AllToAllV)
}

/// Elements of a block that a piece holds, so that no rank's stage has more than `bytes`.
pub(super) fn unit(call: &Call, world: u32, bytes: usize) -> u64 {
    use Collective as C;
    let blocks = match call.collective {
        C::AllReduce | C::Reduce | C::Broadcast | C::Send | C::Recv => 1,
        C::AllToAll | C::AllToAllV => 2 * u64::from(world),
        _ => 1 + u64::from(world),
    };
    (bytes as u64 / call.dtype.bytes() as u64 / blocks).max(1)
}

/// How many pieces of `unit` elements blocks of at most `longest` have: one even of nothing, since
/// calls about nothing are compared, too.
pub(super) fn count(longest: u64, unit: u64) -> u64 {
    longest.div_ceil(unit).max(1)
}

/// Elements that a piece holds of a block.
#[derive(Clone, Copy, Debug)]
struct Window {
    from: u64,
    length: u64,
}

impl Window {
    fn of(self, count: u64) -> u64 {
        count.saturating_sub(self.from).min(self.length)
    }
}

/// A count that is known to fit the address space, in bytes.
#[expect(clippy::cast_possible_truncation, reason = "validated calls fit the address space")]
pub(super) fn bytes(elements: u64, element: usize) -> usize {
    elements as usize * element
}

impl Piece {
    pub(super) fn new(call: &Call) -> Self {
        Self {
            ins: Vec::new(),
            outs: Vec::new(),
            output: 0,
            bytes: 0,
            host: Call::new(call.collective, call.dtype),
        }
    }

    /// Takes on the piece that begins at element `from` of every block of `call`.
    pub(super) fn cut(&mut self, call: &Call, (me, world): (Rank, u32), from: u64, length: u64) {
        use Collective as C;
        let window = Window { from, length };
        (self.output, self.bytes) = (0, 0);
        self.ins.clear();
        self.outs.clear();
        let host = &mut self.host;
        (host.collective, host.dtype, host.op) = (call.collective, call.dtype, call.op);
        (host.scalar, host.root, host.count) = (call.scalar, call.root, window.of(call.count));
        for blocks in [&mut host.send_blocks, &mut host.recv_blocks] {
            blocks.counts.clear();
            blocks.displacements.clear();
        }
        let at_root = me == call.root;
        match call.collective {
            C::AllReduce | C::Reduce | C::Broadcast | C::Send | C::Recv => {
                self.whole(call, at_root, window);
            }
            C::AllGather => self.equal(call, (1, world), window),
            C::ReduceScatter => self.equal(call, (world, 1), window),
            C::AllToAll => self.equal(call, (world, world), window),
            C::Gather => self.equal(call, (1, if at_root { world } else { 0 }), window),
            C::Scatter => self.equal(call, (if at_root { world } else { 0 }, 1), window),
            C::AllGatherV | C::ReduceScatterV | C::GatherV | C::ScatterV | C::AllToAllV => {
                self.ragged(call, window);
            }
            C::Barrier => {}
        }
    }

    /// One region for what is sent and what is received.
    fn whole(&mut self, call: &Call, at_root: bool, window: Window) {
        use Collective as C;
        let (sends, receives) = match call.collective {
            C::AllReduce => (true, true),
            C::Reduce => (true, at_root),
            C::Broadcast => (at_root, !at_root || !std::ptr::eq(call.send, call.recv)),
            kind => (kind == C::Send, kind == C::Recv),
        };
        let element = call.dtype.bytes();
        let (offset, length) = (bytes(window.from, element), bytes(self.host.count, element));
        let span = |base: usize| Span { device: base + offset, stage: 0, bytes: length };
        self.bytes = length;
        if length > 0 {
            self.ins.extend(sends.then(|| span(call.send as usize)));
            self.outs.extend(receives.then(|| span(call.recv as usize)));
        }
    }

    /// Blocks of one length: as many are sent, and as many received.
    fn equal(&mut self, call: &Call, (sends, receives): (u32, u32), window: Window) {
        let element = call.dtype.bytes();
        let (offset, length) = (bytes(window.from, element), bytes(self.host.count, element));
        let stride = bytes(call.count, element);
        let blocks = |base: usize, number: u32, stage: usize| {
            (0..Rank(number).index()).map(move |block| Span {
                device: base + block * stride + offset,
                stage: stage + block * length,
                bytes: length,
            })
        };
        self.output = Rank(sends).index() * length;
        self.bytes = self.output + Rank(receives).index() * length;
        if length > 0 {
            self.ins.extend(blocks(call.send as usize, sends, 0));
            self.outs.extend(blocks(call.recv as usize, receives, self.output));
        }
    }

    /// Blocks of lengths of their own.
    fn ragged(&mut self, call: &Call, window: Window) {
        use Collective as C;
        let element = call.dtype.bytes();
        let list = |base: usize, blocks: &Ragged, stage: usize, spans: &mut Vec<Span>| {
            let mut end = stage;
            for (&count, &place) in blocks.counts.iter().zip(&blocks.displacements) {
                let length = bytes(window.of(count), element);
                let device = base.wrapping_add(bytes(place + window.from, element));
                spans.extend((length > 0).then_some(Span { device, stage: end, bytes: length }));
                end += length;
            }
            end
        };
        let one = |base: usize, stage: usize, spans: &mut Vec<Span>| {
            let length = bytes(window.of(call.count), element);
            let device = base.wrapping_add(bytes(window.from, element));
            spans.extend((length > 0).then_some(Span { device, stage, bytes: length }));
            stage + length
        };
        let (send, recv) = (call.send as usize, call.recv as usize);
        let input = match call.collective {
            C::ReduceScatterV => Some(&call.recv_blocks),
            C::ScatterV | C::AllToAllV => Some(&call.send_blocks),
            _ => None,
        };
        self.output = match input {
            Some(blocks) => list(send, blocks, 0, &mut self.ins),
            None => one(send, 0, &mut self.ins),
        };
        self.bytes = match call.collective {
            C::ReduceScatterV | C::ScatterV => one(recv, self.output, &mut self.outs),
            _ => list(recv, &call.recv_blocks, self.output, &mut self.outs),
        };
        clip(&mut self.host.send_blocks, &call.send_blocks, window);
        clip(&mut self.host.recv_blocks, &call.recv_blocks, window);
    }
}

/// What a window holds of `blocks`, one after the other.
fn clip(made: &mut Ragged, blocks: &Ragged, window: Window) {
    let mut next = 0;
    for &count in &blocks.counts {
        let count = window.of(count);
        made.counts.push(count);
        made.displacements.push(next);
        next += count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Dtype;

    fn call(kind: Collective, count: u64) -> Call {
        let mut call = Call::new(kind, Dtype::F32);
        (call.send, call.recv) = (0x1000 as *const u8, 0x9000 as *mut u8);
        call.count = count;
        call
    }

    fn spans(piece: &[Span]) -> Vec<(usize, usize, usize)> {
        piece.iter().map(|s| (s.device, s.stage, s.bytes)).collect()
    }

    #[test]
    fn every_block_is_cut_at_the_same_elements() {
        let gather = call(Collective::AllGather, 5);
        let mut piece = Piece::new(&gather);
        piece.cut(&gather, (Rank(1), 2), 4, 4);
        assert_eq!(spans(&piece.ins), [(0x1010, 0, 4)]);
        assert_eq!(spans(&piece.outs), [(0x9010, 4, 4), (0x9024, 8, 4)]);
        assert_eq!((piece.output, piece.bytes, piece.host.count), (4, 12, 1));
    }

    #[test]
    fn blocks_that_have_ended_are_empty_in_later_pieces() {
        let mut all = call(Collective::AllToAllV, 0);
        all.send_blocks.set(&[1, 5], None);
        all.recv_blocks.set(&[1, 3], Some(&[10, 20]));
        assert_eq!((longest(&all), count(longest(&all), 2)), (5, 3));
        let mut piece = Piece::new(&all);
        piece.cut(&all, (Rank(0), 2), 2, 2);
        assert_eq!(spans(&piece.ins), [(0x100c, 0, 8)]);
        assert_eq!(spans(&piece.outs), [(0x9058, 8, 4)]);
        assert_eq!(piece.host.send_blocks.counts, [0, 2]);
        assert_eq!(piece.host.recv_blocks.counts, [0, 1]);
        assert_eq!(piece.host.recv_blocks.displacements, [0, 0]);
    }

    /// Whatever the collective, all pieces together copy every byte that the call names, once.
    #[test]
    fn pieces_hold_all_of_a_call_and_nothing_twice() {
        use Collective as C;
        let world = 3;
        for kind in C::ALL.iter().copied() {
            for me in (0..world).map(Rank) {
                let mut one = call(kind, 7);
                one.root = Rank(1);
                let counts: [u64; 3] = [4, 0, 7];
                if kind.ragged() {
                    one.count = counts[me.index()];
                    let sends = matches!(kind, C::AllToAllV) || kind == C::ScatterV && me.0 == 1;
                    let receives = kind != C::ScatterV && (kind != C::GatherV || me.0 == 1);
                    if sends {
                        one.send_blocks.set(&counts, None);
                    }
                    if receives {
                        one.recv_blocks.set(&counts, None);
                    }
                }
                let mut whole = Piece::new(&one);
                whole.cut(&one, (me, world), 0, u64::MAX);
                let copied = |spans: &[Span]| {
                    let mut bytes: Vec<usize> =
                        spans.iter().flat_map(|s| s.device..s.device + s.bytes).collect();
                    bytes.sort_unstable();
                    bytes
                };
                let (mut ins, mut outs) = (Vec::new(), Vec::new());
                let mut piece = Piece::new(&one);
                for number in 0..count(longest(&one), 2) {
                    piece.cut(&one, (me, world), 2 * number, 2);
                    ins.extend_from_slice(&piece.ins);
                    outs.extend_from_slice(&piece.outs);
                }
                assert_eq!(copied(&ins), copied(&whole.ins), "{kind} in, rank {me}");
                assert_eq!(copied(&outs), copied(&whole.outs), "{kind} out, rank {me}");
                let distinct = copied(&outs);
                assert!(distinct.windows(2).all(|w| w[0] < w[1]), "{kind}: a byte twice");
            }
        }
    }
}
