//! What a call on device memory is in calls of NCCL, folds and copies. Pure: a list.
//!
//! NCCL makes what it has. Types and operations that it lacks, and every reduction where bits must
//! not depend on who makes it, are a gather (or an exchange of blocks) and a fold of ours: the bits
//! of the native backend. Calls with counts of their own are messages, as is all that older
//! versions have no call for.
//!
//! ```text
//! all_reduce       all_reduce        or   all_gather -> scratch, fold
//! reduce           reduce            or   messages -> scratch at the root, fold
//! reduce_scatter   reduce_scatter    or   messages -> scratch, fold
//! *_v              messages; reduce_scatter_v: a reduce to each rank, in a group
//! pre_mul_sum      as NCCL's         or   prepared into scratch first, then as sum, in wide form
//! ```

use super::piece::bytes;
use crate::call::Call;
use crate::kernel::{Form, Stage};
use crate::nccl::{Feature, Library, Type, capability, reduces};
use crate::types::{Collective, Rank, ReduceOp};

/// Where bytes are: in the caller's memory, or at an offset of scratch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum At {
    Memory(usize),
    Scratch(usize),
}

impl At {
    fn plus(self, offset: usize) -> Self {
        match self {
            Self::Memory(at) => Self::Memory(at.wrapping_add(offset)),
            Self::Scratch(at) => Self::Scratch(at + offset),
        }
    }
}

/// A message to or from another rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) peer: Rank,
    pub(super) at: At,
    pub(super) bytes: usize,
    pub(super) sends: bool,
}

/// One of NCCL's collectives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    AllReduce,
    Reduce,
    Broadcast,
    AllGather,
    ReduceScatter,
    AllToAll,
    Gather,
    Scatter,
}

/// A call of one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Primitive {
    pub(super) kind: Kind,
    pub(super) send: At,
    pub(super) recv: At,
    pub(super) count: usize,
    pub(super) unit: Type,
    pub(super) op: ReduceOp,
    pub(super) root: Rank,
}

/// Elements of `count` sources, `stride` bytes apart, combined into one target.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Fold {
    pub(super) from: At,
    pub(super) form: Form,
    pub(super) sources: u32,
    pub(super) stride: usize,
    pub(super) to: At,
    pub(super) count: u64,
}

/// One step: what follows comes after it in the stream.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    Nccl(Primitive),
    /// Together: all are begun before any is waited for.
    Reduces(Vec<Primitive>),
    Messages(Vec<Message>),
    Fold(Fold),
    /// The caller's elements times its factor, in wide form.
    Prepare {
        from: At,
        to: At,
        count: u64,
        stage: Stage,
    },
    Copy {
        from: At,
        to: At,
        bytes: usize,
    },
}

/// What decides how calls are made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules<'a> {
    pub(super) library: &'a Library,
    pub(super) me: Rank,
    pub(super) world: u32,
    pub(super) deterministic: bool,
    /// Compute capability of the GPU.
    pub(super) capability: (u32, u32),
}

/// All steps of a call, and the scratch they need.
#[derive(Clone, Debug, Default)]
pub(super) struct Script {
    pub(super) steps: Vec<Step>,
    pub(super) scratch: usize,
}

/// Scratch begins at multiples of so many bytes.
const ALIGN: usize = 256;

impl Script {
    fn take(&mut self, bytes: usize) -> At {
        let at = self.scratch.next_multiple_of(ALIGN);
        self.scratch = at + bytes;
        At::Scratch(at)
    }

    /// What `call` is.
    pub(super) fn of(call: &Call, rules: Rules<'_>) -> Self {
        use Collective as C;
        let mut made = Self::default();
        let (send, recv) = (At::Memory(call.send as usize), At::Memory(call.recv as usize));
        let (count, element) = (call.count, call.dtype.bytes());
        let unit = Type::U8;
        let whole = bytes(count, element);
        let nothing = count == 0 && !call.collective.ragged() && call.collective != C::Barrier;
        if nothing {
            return made;
        }
        let (root, op) = (call.root, call.op);
        let move_by = |kind| {
            Step::Nccl(Primitive { kind, send, recv, count: whole, unit, op: ReduceOp::Sum, root })
        };
        let blocks = rules.library.has(Feature::Blocks);
        match call.collective {
            C::AllReduce | C::Reduce | C::ReduceScatter | C::ReduceScatterV => {
                made.reduction(call, rules, op);
            }
            C::Broadcast => made.steps.push(move_by(Kind::Broadcast)),
            C::AllGather => made.steps.push(move_by(Kind::AllGather)),
            C::Gather if blocks => made.steps.push(move_by(Kind::Gather)),
            C::Scatter if blocks => made.steps.push(move_by(Kind::Scatter)),
            C::AllToAll if blocks && !call.in_place_all_to_all() => {
                made.steps.push(move_by(Kind::AllToAll));
            }
            C::Barrier => {
                let word = made.take(1);
                let op = ReduceOp::Sum;
                let primitive = Primitive {
                    kind: Kind::AllReduce,
                    send: word,
                    recv: word,
                    count: 1,
                    unit,
                    op,
                    root,
                };
                made.steps.push(Step::Nccl(primitive));
            }
            // They go by way of host memory: see `enqueue`.
            C::Send | C::Recv => {}
            C::Gather
            | C::Scatter
            | C::AllToAll
            | C::AllGatherV
            | C::GatherV
            | C::ScatterV
            | C::AllToAllV => made.exchange(call, rules),
        }
        made
    }

    /// A reduction by NCCL, or by a fold of ours.
    fn reduction(&mut self, call: &Call, rules: Rules<'_>, op: ReduceOp) {
        use Collective as C;
        let unit = reduces(rules.library.version, call.dtype, op)
            .filter(|_| !rules.deterministic && rules.capability >= capability(call.dtype))
            // NCCL rounds the factor, and the product, to the small type.
            .filter(|_| op != ReduceOp::PreMulSum || call.dtype.accumulator() == call.dtype);
        let Some(unit) = unit else { return self.composed(call, rules) };
        let (send, recv) = (At::Memory(call.send as usize), At::Memory(call.recv as usize));
        let count = bytes(call.count, 1);
        let root = call.root;
        let one = |kind| Step::Nccl(Primitive { kind, send, recv, count, unit, op, root });
        match call.collective {
            C::AllReduce => self.steps.push(one(Kind::AllReduce)),
            C::Reduce => self.steps.push(one(Kind::Reduce)),
            C::ReduceScatter => self.steps.push(one(Kind::ReduceScatter)),
            _ => {
                let blocks = &call.recv_blocks;
                let list = blocks.counts.iter().zip(&blocks.displacements).enumerate();
                let reduces =
                    list.filter(|(_, (count, _))| **count > 0).map(|(rank, (&n, &from))| {
                        let send = send.plus(bytes(from, call.dtype.bytes()));
                        let (count, root) = (bytes(n, 1), Rank::at(rank));
                        Primitive { kind: Kind::Reduce, send, recv, count, unit, op, root }
                    });
                self.steps.push(Step::Reduces(reduces.collect()));
            }
        }
    }

    /// Everything to where it is folded, then the fold.
    fn composed(&mut self, call: &Call, rules: Rules<'_>) {
        use Collective as C;
        let (me, world) = (rules.me, Rank(rules.world).index());
        let (mut send, recv) = (At::Memory(call.send as usize), At::Memory(call.recv as usize));
        let (mut form, mut element) = (Form::Native, call.dtype.bytes());
        let blocks = &call.recv_blocks;
        let list: Vec<(u64, u64)> = match call.collective {
            C::ReduceScatterV => {
                blocks.counts.iter().copied().zip(blocks.displacements.iter().copied()).collect()
            }
            C::ReduceScatter => {
                (0..rules.world).map(|r| (call.count, u64::from(r) * call.count)).collect()
            }
            _ => vec![(call.count, 0)],
        };
        if call.op == ReduceOp::PreMulSum {
            let all = list.iter().map(|(count, from)| from + count).max().unwrap_or(0);
            (form, element) = (Form::Wide, call.dtype.accumulator().bytes());
            let to = self.take(bytes(all, element));
            let stage = Stage::Prepare(call.scalar);
            self.steps.push(Step::Prepare { from: send, to, count: all, stage });
            send = to;
        }
        let own = match call.collective {
            C::AllReduce | C::Reduce => call.count,
            _ => list[me.index()].0,
        };
        let (stride, root) = (bytes(own, element), call.root);
        let folds = call.collective != C::Reduce || me == root;
        let all = self.take(if folds { stride * world } else { 0 });
        if call.collective == C::AllReduce {
            let (kind, op) = (Kind::AllGather, ReduceOp::Sum);
            let unit = Type::U8;
            let gather = Primitive { kind, send, recv: all, count: stride, unit, op, root };
            self.steps.push(Step::Nccl(gather));
        } else {
            let at = |peer: Rank| {
                let (count, from) = *list.get(peer.index()).unwrap_or(&list[0]);
                let gives = call.collective != C::Reduce || peer == root;
                let length = if gives { bytes(count, element) } else { 0 };
                (send.plus(bytes(from, element)), length)
            };
            self.blocks_to(all, if folds { stride } else { 0 }, at, rules);
        }
        if folds && own > 0 {
            let sources = rules.world;
            self.steps.push(Step::Fold(Fold {
                from: all,
                form,
                sources,
                stride,
                to: recv,
                count: own,
            }));
        }
    }

    /// To each rank what `at` says, and from each `stride` bytes to its place in `all`.
    fn blocks_to(
        &mut self,
        all: At,
        stride: usize,
        at: impl Fn(Rank) -> (At, usize),
        rules: Rules<'_>,
    ) {
        let me = rules.me;
        let mut messages = Vec::new();
        for peer in (0..rules.world).map(Rank) {
            self.message(&mut messages, me, (peer, true), at(peer));
            let to = all.plus(peer.index() * stride);
            self.message(&mut messages, me, (peer, false), (to, stride));
        }
        if stride > 0 {
            let to = all.plus(me.index() * stride);
            self.steps.push(Step::Copy { from: at(me).0, to, bytes: stride });
        }
        self.steps.push(Step::Messages(messages));
    }

    fn message(
        &self,
        messages: &mut Vec<Message>,
        me: Rank,
        (peer, sends): (Rank, bool),
        (at, bytes): (At, usize),
    ) {
        if peer != me && bytes > 0 {
            messages.push(Message { peer, at, bytes, sends });
        }
    }

    /// Blocks between ranks as messages; the own block is copied.
    fn exchange(&mut self, call: &Call, rules: Rules<'_>) {
        use Collective as C;
        let (me, element) = (rules.me, call.dtype.bytes());
        let (mut send, recv) = (At::Memory(call.send as usize), At::Memory(call.recv as usize));
        let at_root = me == call.root;
        let whole = bytes(call.count, element);
        let listed = |blocks: &crate::call::Ragged, peer: Rank| {
            let place = blocks.displacements.get(peer.index()).copied().unwrap_or(0);
            let count = blocks.counts.get(peer.index()).copied().unwrap_or(0);
            (bytes(place, element), bytes(count, element))
        };
        // What this rank gives `peer`, and gets of it: offset and bytes.
        let gives = |peer: Rank| match call.collective {
            C::AllGatherV => (0, whole),
            C::Gather | C::GatherV if peer == call.root => (0, whole),
            C::Scatter if at_root => (peer.index() * whole, whole),
            C::AllToAll => (peer.index() * whole, whole),
            C::ScatterV | C::AllToAllV => listed(&call.send_blocks, peer),
            _ => (0, 0),
        };
        let gets = |peer: Rank| match call.collective {
            C::Gather if at_root => (peer.index() * whole, whole),
            C::Scatter | C::ScatterV if peer == call.root => (0, whole),
            C::AllToAll => (peer.index() * whole, whole),
            C::AllGatherV | C::GatherV | C::AllToAllV => listed(&call.recv_blocks, peer),
            _ => (0, 0),
        };
        let in_place = matches!(call.collective, C::AllToAll | C::AllToAllV)
            && std::ptr::eq(call.send, call.recv);
        if in_place {
            // What is received would be sent on.
            let all =
                (0..rules.world).map(|r| gives(Rank(r))).map(|(at, n)| at + n).max().unwrap_or(0);
            let to = self.take(all);
            self.steps.push(Step::Copy { from: send, to, bytes: all });
            send = to;
        }
        let mut messages = Vec::new();
        for peer in (0..rules.world).map(Rank) {
            let ((from, out), (to, back)) = (gives(peer), gets(peer));
            self.message(&mut messages, me, (peer, true), (send.plus(from), out));
            self.message(&mut messages, me, (peer, false), (recv.plus(to), back));
            if peer == me && out > 0 && out == back && send.plus(from) != recv.plus(to) {
                self.steps.push(Step::Copy {
                    from: send.plus(from),
                    to: recv.plus(to),
                    bytes: out,
                });
            }
        }
        self.steps.push(Step::Messages(messages));
    }
}
