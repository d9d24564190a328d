//! What a call on device memory is in calls of NCCL, folds and copies. Pure: lists.
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
    pub(super) fn plus(self, offset: usize) -> Self {
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

/// What this rank's device does by itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Local {
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
    Fold(Fold),
}

/// What comes in one call or group of NCCL's, and what this device does before and after. Each of
/// the three may be nothing; all ranks have as many rounds of a call.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Round {
    pub(super) before: Vec<Local>,
    pub(super) calls: Vec<Primitive>,
    pub(super) messages: Vec<Message>,
    pub(super) after: Vec<Local>,
}

/// What decides how calls are made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules<'a> {
    pub(super) library: &'a Library,
    pub(super) me: Rank,
    pub(super) world: u32,
    pub(super) deterministic: bool,
    /// The least compute capability of the ranks' GPUs.
    pub(super) capability: (u32, u32),
}

impl Rules<'_> {
    /// NCCL's type for a reduction that is NCCL's to make, if it is.
    pub(super) fn unit(&self, call: &Call) -> Option<Type> {
        reduces(self.library.version, call.dtype, call.op)
            .filter(|_| !self.deterministic && self.capability >= capability(call.dtype))
            // NCCL rounds the factor, and the product, to the small type.
            .filter(|_| call.op != ReduceOp::PreMulSum || call.dtype.accumulator() == call.dtype)
    }
}

/// All rounds of a call, and the scratch they need.
#[derive(Clone, Debug, Default)]
pub(super) struct Script {
    pub(super) rounds: Vec<Round>,
    pub(super) scratch: usize,
}

/// Scratch begins at multiples of so many bytes.
const ALIGN: usize = 256;

impl Script {
    pub(super) fn take(&mut self, bytes: usize) -> At {
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
        let (root, op) = (call.root, ReduceOp::Sum);
        let move_by = |kind| Primitive { kind, send, recv, count: whole, unit, op, root };
        let blocks = rules.library.has(Feature::Blocks);
        match call.collective {
            C::AllReduce | C::Reduce | C::ReduceScatter | C::ReduceScatterV => {
                match rules.unit(call) {
                    Some(unit) => made.reduction(call, unit),
                    None => made.composed(call, rules),
                }
            }
            C::Broadcast => made.call(move_by(Kind::Broadcast)),
            C::AllGather => made.call(move_by(Kind::AllGather)),
            C::Gather if blocks => made.call(move_by(Kind::Gather)),
            C::Scatter if blocks => made.call(move_by(Kind::Scatter)),
            C::AllToAll if blocks && !call.in_place_all_to_all() => {
                made.call(move_by(Kind::AllToAll));
            }
            C::Barrier => {
                let word = made.take(1);
                let (kind, count) = (Kind::AllReduce, 1);
                made.call(Primitive { kind, send: word, recv: word, count, unit, op, root });
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

    /// A round of one call.
    fn call(&mut self, one: Primitive) {
        self.rounds.push(Round { calls: vec![one], ..Round::default() });
    }

    /// A reduction by NCCL.
    fn reduction(&mut self, call: &Call, unit: Type) {
        use Collective as C;
        let (send, recv) = (At::Memory(call.send as usize), At::Memory(call.recv as usize));
        let (count, root, op) = (bytes(call.count, 1), call.root, call.op);
        let one = |kind| Primitive { kind, send, recv, count, unit, op, root };
        match call.collective {
            C::AllReduce => self.call(one(Kind::AllReduce)),
            C::Reduce => self.call(one(Kind::Reduce)),
            C::ReduceScatter => self.call(one(Kind::ReduceScatter)),
            _ => {
                let blocks = &call.recv_blocks;
                let list = blocks.counts.iter().zip(&blocks.displacements).enumerate();
                let reduces =
                    list.filter(|(_, (count, _))| **count > 0).map(|(rank, (&n, &from))| {
                        let send = send.plus(bytes(from, call.dtype.bytes()));
                        let (count, root) = (bytes(n, 1), Rank::at(rank));
                        Primitive { kind: Kind::Reduce, send, recv, count, unit, op, root }
                    });
                self.rounds.push(Round { calls: reduces.collect(), ..Round::default() });
            }
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
        let mut round = Round::default();
        if in_place {
            // What is received would be sent on.
            let all =
                (0..rules.world).map(|r| gives(Rank(r))).map(|(at, n)| at + n).max().unwrap_or(0);
            let to = self.take(all);
            round.before.push(Local::Copy { from: send, to, bytes: all });
            send = to;
        }
        for peer in (0..rules.world).map(Rank) {
            let ((from, out), (to, back)) = (gives(peer), gets(peer));
            let (from, to) = (send.plus(from), recv.plus(to));
            if peer != me {
                round.message(peer, true, (from, out));
                round.message(peer, false, (to, back));
            } else if out > 0 && out == back && from != to {
                round.before.push(Local::Copy { from, to, bytes: out });
            }
        }
        self.rounds.push(round);
    }
}

impl Round {
    pub(super) fn message(&mut self, peer: Rank, sends: bool, (at, bytes): (At, usize)) {
        if bytes > 0 {
            self.messages.push(Message { peer, at, bytes, sends });
        }
    }
}
