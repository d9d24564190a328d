//! A collective as data: what one rank does, as short lists of fused verbs on chunks.
//!
//! [`crate::algo`] makes plans, [`check`] proves them for whole worlds, the engine runs them on any
//! link. A plan holds chunk numbers, never bytes or addresses, so one plan serves every size and
//! every buffer. Pure: no clock, no system call, no unsafe code.
//!
//! # Words
//!
//! *Region*: a buffer a step may name. `Input` and `Output` are the caller's (native form). `Work`
//! is scratch of this rank, in native form for collectives that only move data, in wide form
//! ([`crate::kernel::Form`]) for those that reduce. On memory links only: `PeerInput` and
//! `PeerOutput` are a peer's buffers; `Stage` is scratch of this rank that its peers can load,
//! always in native form, and `PeerStage` that of a peer.
//!
//! *Chunk*: a part of a region, numbered from 0. Which parts there are depends on the collective:
//!
//! | collective | Input | Output |
//! |---|---|---|
//! | all_reduce, reduce, broadcast | `chunks` parts of the buffer | the same parts |
//! | all_gather, gather | 1: the own block | n: block r of rank r |
//! | reduce_scatter, scatter | n: block r of rank r | 1: the own block |
//! | all_to_all | n: block s for rank s | n: block s from rank s |
//! | barrier | 1, empty | 1, empty |
//! | send, recv | 1 | 1 |
//!
//! A buffer that a rank does not have is absent, whatever the caller passes: the input of broadcast
//! and scatter exists at the root only, and so does the output of reduce and gather. In a call in
//! place Input and Output are the same memory where they hold the same elements. A chunk of `Work`
//! or `Stage` is as long as the chunk of its number (modulo `chunks`) of the larger buffer, and
//! holds no other; where Input is the own block alone, `Stage` has one chunk, which holds it.
//!
//! *Tile*: the pipeline's unit. The engine runs the whole plan on tile 0 of every chunk, then on
//! tile 1, and so on: a plan's length never depends on the byte count. (For the buffer-wide
//! collectives a tile of all chunks is one contiguous segment, so ranges of chunks are contiguous
//! there.) The order inside a lane is: blocks of W tiles; inside a block the steps in order; for
//! each step the W tiles. So W tiles are in flight and both ends of every link agree on the order
//! of its messages.
//!
//! *Lane*: an ordered stream of steps, and the ordered stream of messages it exchanges with each
//! peer. Lanes advance independently and meet only where a step waits for a step of another lane
//! (for the same tile). Such a wait never reaches across blocks: `Work`, used again every W tiles,
//! therefore belongs to one lane, chunk by chunk. Message k that lane l of rank a sends to rank b
//! is the k-th one lane l of b receives from a, and both ends say the same range for it. Messages
//! without elements are sent for the first tile only.
//!
//! *Posting*: `Send` (and `RecvCopySend`, of what it received; and where a link places messages,
//! `RecvReduceSend`, of a finished result that it stored) only queues its source in an outbox, and
//! the lane goes on. The source must not change until the message has *left*: until it is
//! copied into the link's own memory, received or not. Every link takes W + 1 messages of the
//! longest range ([`Plan::range_max`]) while its other end does nothing. A call ends only when all
//! outboxes are empty.
//!
//! - A step with [`flag::SETTLE`] runs only when nothing that this rank posted, on any lane, waits
//!   in an outbox and reads memory the step is about to write. What reads other memory does not
//!   matter: waiting for everything would let two ranks wait for each other. [`build::Builder`]
//!   marks every step that may need it, and the checker makes sure.
//! - A lane is *held* at the start of a block until nothing that it posted itself waits in an
//!   outbox. That bounds the outboxes; no plan relies on it for what it writes.
//! - `RecvReduceSend` writes to the link itself, once nothing waits in front of it.
//!
//! *Stage*: a block of tiles is only sure to be apart from the block before, across calls too; any
//! earlier one may have stood in the same place. Nothing else keeps a rank from writing over what a
//! peer still loads: a plan must see to it that before a rank writes the tiles of one block, it
//! knows that all have done with the block before the last; that before it writes those of its
//! second block, all are known to have begun the call (and so to have ended the one before); and
//! that when it ends, all have done with all blocks but the last.
//!
//! Not here: branches, loops, expressions, sizes, types, and any optimiser.

pub mod build;
pub mod cache;
pub mod check;
pub mod show;
pub mod svg;

#[cfg(test)]
mod samples;

use crate::types::{Collective, Rank};

/// How a collective is carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Algorithm {
    /// Chunks travel around the ring of ranks: least bytes, n - 1 hops a phase. Not in tree order.
    Ring = 0,
    /// Binomial tree over ranks: log n hops, whole buffers. In tree order.
    Binomial = 1,
    /// Two binary trees, each for half of the data: log n hops, full bandwidth. Not in tree order.
    Tree = 2,
    /// Recursive doubling: whole buffers, log n exchanges. In tree order.
    Doubling = 3,
    /// Recursive halving, then doubling: least bytes in log n exchanges.
    Halving = 4,
    /// Every rank exchanges with every other directly; owners fold once. In tree order.
    Pairwise = 5,
    /// Loads and stores in the peers' own buffers (memory links only). In tree order.
    Direct = 6,
    /// Store and forward in log n rounds, for small blocks of all_gather and all_to_all.
    Bruck = 7,
    /// Inside each host first, then between hosts, then inside each host again.
    Hierarchical = 8,
    /// As direct, by way of memory that every rank can load (memory links only). In tree order.
    Staged = 9,
}

impl Algorithm {
    /// Every algorithm, in numeric order.
    pub const ALL: &'static [Self] = &[
        Self::Ring,
        Self::Binomial,
        Self::Tree,
        Self::Doubling,
        Self::Halving,
        Self::Pairwise,
        Self::Direct,
        Self::Bruck,
        Self::Hierarchical,
        Self::Staged,
    ];

    /// The name used on command lines and in logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ring => "ring",
            Self::Binomial => "binomial",
            Self::Tree => "tree",
            Self::Doubling => "doubling",
            Self::Halving => "halving",
            Self::Pairwise => "pairwise",
            Self::Direct => "direct",
            Self::Bruck => "bruck",
            Self::Hierarchical => "hierarchical",
            Self::Staged => "staged",
        }
    }

    /// The algorithm with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|a| a.name() == name)
    }
}

/// What a step does. `from`, `to`, `source` and `target` are fields of [`Step`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Verb {
    /// Post `source` to rank `to`.
    Send = 0,
    /// Message of rank `from` into `target`.
    Recv = 1,
    /// `source` into `target`. Nothing when they are the same memory and no stage applies.
    /// With a peer region, `from` is the peer.
    Copy = 2,
    /// `target` = `source` combined with `target`.
    Reduce = 3,
    /// `target` = `source` combined with the message of `from`.
    RecvReduce = 4,
    /// Send to `to`: `source` combined with the message of `from`; stored in `target` unless
    /// `None`. [`flag::WIDE`] speaks of the incoming message; the outgoing one is wide unless
    /// finished.
    RecvReduceSend = 5,
    /// The message of `from` into `target` and on to `to`.
    RecvCopySend = 6,
    /// `target` = the fold, in group order, of `source` (own place) and one message from each other
    /// rank of group `from` ([`Plan::groups`]). With source `PeerInput`: of every member's own
    /// Input chunk, loaded from its memory; with [`flag::SPREAD`] stored to every member's Output
    /// too. With source `PeerStage`: of the own Input chunk and every other member's Stage chunk;
    /// with [`flag::SPREAD`] stored to the same chunk of the own Stage too.
    Fold = 7,
    /// Tell everyone (memory links) that phase `source_chunk` of this tile is reached here.
    Post = 8,
    /// Wait until rank `from` has posted phase `source_chunk` of this tile (memory links). Phase 0
    /// is posted by the engine when the call starts.
    Await = 9,
}

/// A buffer a step may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Region {
    /// The caller's input, native form, never written.
    Input = 0,
    /// The caller's output, native form.
    Output = 1,
    /// This rank's scratch.
    Work = 2,
    /// The input of rank `from`.
    PeerInput = 3,
    /// The output of rank `from`.
    PeerOutput = 4,
    /// Nothing.
    None = 5,
    /// This rank's scratch that its peers can load.
    Stage = 6,
    /// That of rank `from`.
    PeerStage = 7,
}

impl Region {
    /// Whether it is memory of another rank.
    #[must_use]
    pub const fn is_peer(self) -> bool {
        matches!(self, Self::PeerInput | Self::PeerOutput | Self::PeerStage)
    }
}

/// Bits of [`Step::flags`].
pub mod flag {
    /// Messages of this step are in wide form (partial results).
    pub const WIDE: u8 = 1;
    /// The message is the first operand of the combination: it comes from lower ranks.
    pub const INCOMING_FIRST: u8 = 2;
    /// The result is final: the kernel's finish stage applies.
    pub const FINISH: u8 = 4;
    /// Wait until what this rank posted from the memory that the step writes has left, then run.
    pub const SETTLE: u8 = 8;
    /// The kernel's prepare stage applies (the factor of `pre_mul_sum`).
    pub const PREPARE: u8 = 16;
    /// Also store the result to the same chunk of every group member's Output, or, where the fold
    /// loads stages, of the own Stage.
    pub const SPREAD: u8 = 32;
    /// Who receives what this step sends stores it as it is, and folds it with nothing: so a link
    /// may place it. Set by [`super::build::Builder`], except on finished results in Work.
    pub const STORED: u8 = 64;
}

/// No step to wait for.
pub const NO_STEP: u16 = u16::MAX;
/// No rank.
pub const NO_RANK: u32 = u32::MAX;

/// One record of a plan: 32 bytes, no pointers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Step {
    /// What to do.
    pub verb: Verb,
    /// The lane it belongs to.
    pub lane: u8,
    /// [`flag`] bits.
    pub flags: u8,
    /// Read from here.
    pub source: Region,
    /// Write to here.
    pub target: Region,
    /// Lane of the step to wait for.
    pub wait_lane: u8,
    /// Index inside that lane, or [`NO_STEP`].
    pub wait_step: u16,
    /// Sending rank, or a group for [`Verb::Fold`].
    pub from: u32,
    /// Receiving rank.
    pub to: u32,
    /// First chunk read, or the phase.
    pub source_chunk: u32,
    /// First chunk written.
    pub target_chunk: u32,
    /// How many chunks follow each other from there, at least 1.
    pub chunks: u32,
    /// Always 0.
    pub reserved: u32,
}

const _: () = assert!(size_of::<Step>() == 32, "a step is half a cache line");

/// Everything a plan depends on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// What is done.
    pub collective: Collective,
    /// How.
    pub algorithm: Algorithm,
    /// Number of ranks.
    pub world: u32,
    /// Whose plan.
    pub rank: Rank,
    /// Root of rooted collectives, peer of send and recv; else rank 0.
    pub root: Rank,
    /// Whether the input is multiplied first (`pre_mul_sum`): contributions then live in `Work`,
    /// wide.
    pub prepared: bool,
}

/// What one rank does in one collective.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What it was made for.
    pub key: Key,
    /// All steps, lane after lane.
    pub steps: Box<[Step]>,
    /// Where each lane begins in `steps`; one more entry than lanes, the last is the step count.
    pub lane_starts: Box<[u16]>,
    /// Parts of the buffer for the buffer-wide collectives; 1 otherwise.
    pub chunks: u32,
    /// Chunks of scratch per tile.
    pub work_chunks: u32,
    /// Chunks of `Stage` per tile; the same on all ranks.
    pub stage_chunks: u32,
    /// No message of any rank has more chunks than this: a link must take W + 1 tiles times this.
    /// The same on all ranks. Copies inside a rank may have longer ranges.
    pub range_max: u32,
    /// Lists of ranks that folds refer to, each ascending and with the own rank.
    pub groups: Box<[Box<[Rank]>]>,
    /// Whether it needs peers' buffers ([`Region::PeerInput`] and the like); such plans run as one
    /// tile.
    pub direct: bool,
}

/// The most lanes a plan may have.
pub const LANES_MAX: usize = 4;

/// The most phases a rank may post for a tile.
pub const PHASES_MAX: u32 = 4;

impl Plan {
    /// Number of lanes.
    #[must_use]
    pub fn lanes(&self) -> usize {
        self.lane_starts.len() - 1
    }

    /// Whether it tells phases, and so needs links that are memory.
    #[must_use]
    pub const fn has_phases(&self) -> bool {
        self.direct || self.stage_chunks > 0
    }

    /// The steps of one lane, in order.
    #[must_use]
    pub fn lane(&self, lane: usize) -> &[Step] {
        &self.steps[usize::from(self.lane_starts[lane])..usize::from(self.lane_starts[lane + 1])]
    }
}

impl Step {
    const fn of(verb: Verb) -> Self {
        Self {
            verb,
            lane: 0,
            flags: 0,
            source: Region::None,
            target: Region::None,
            wait_lane: 0,
            wait_step: NO_STEP,
            from: NO_RANK,
            to: NO_RANK,
            source_chunk: 0,
            target_chunk: 0,
            chunks: 1,
            reserved: 0,
        }
    }

    /// Post `source` chunk `chunk` to `to`.
    #[must_use]
    pub const fn send(to: Rank, source: Region, chunk: u32) -> Self {
        Self { to: to.0, source, source_chunk: chunk, ..Self::of(Verb::Send) }
    }

    /// The message of `from` into `target` chunk `chunk`.
    #[must_use]
    pub const fn recv(from: Rank, target: Region, chunk: u32) -> Self {
        Self { from: from.0, target, target_chunk: chunk, ..Self::of(Verb::Recv) }
    }

    /// `source` chunk into `target` chunk.
    #[must_use]
    pub const fn copy(source: (Region, u32), target: (Region, u32)) -> Self {
        Self { ..Self::of(Verb::Copy) }.between(source, target)
    }

    /// `target` = `source` combined with `target`.
    #[must_use]
    pub const fn reduce(source: (Region, u32), target: (Region, u32)) -> Self {
        Self { ..Self::of(Verb::Reduce) }.between(source, target)
    }

    /// `target` = `source` combined with the (wide) message of `from`.
    #[must_use]
    pub const fn recv_reduce(from: Rank, source: (Region, u32), target: (Region, u32)) -> Self {
        Self { from: from.0, flags: flag::WIDE, ..Self::of(Verb::RecvReduce) }
            .between(source, target)
    }

    /// Send on to `to`: `source` combined with the (wide) message of `from`.
    #[must_use]
    pub const fn recv_reduce_send(from: Rank, source: (Region, u32), to: Rank) -> Self {
        Self { from: from.0, to: to.0, flags: flag::WIDE, ..Self::of(Verb::RecvReduceSend) }
            .between(source, (Region::None, 0))
    }

    /// The message of `from` into `target` chunk `chunk` and on to `to`.
    #[must_use]
    pub const fn recv_copy_send(from: Rank, target: Region, chunk: u32, to: Rank) -> Self {
        Self { to: to.0, ..Self::recv(from, target, chunk) }.verb(Verb::RecvCopySend)
    }

    /// `target` = the fold of `source` and a message from each other member of `group`.
    #[must_use]
    pub const fn fold(group: u32, source: (Region, u32), target: (Region, u32)) -> Self {
        Self { from: group, ..Self::of(Verb::Fold) }.between(source, target)
    }

    /// Tell all that `phase` is reached.
    #[must_use]
    pub const fn post(phase: u32) -> Self {
        Self { source_chunk: phase, ..Self::of(Verb::Post) }
    }

    /// Wait until `from` has reached `phase`.
    #[must_use]
    pub const fn wait_for(from: Rank, phase: u32) -> Self {
        Self { from: from.0, source_chunk: phase, ..Self::of(Verb::Await) }
    }

    const fn between(mut self, source: (Region, u32), target: (Region, u32)) -> Self {
        (self.source, self.source_chunk) = source;
        (self.target, self.target_chunk) = target;
        self
    }

    const fn verb(mut self, verb: Verb) -> Self {
        self.verb = verb;
        self
    }

    /// The same step with `bits` of [`flag`] set.
    #[must_use]
    pub const fn with(mut self, bits: u8) -> Self {
        self.flags |= bits;
        self
    }

    /// The same step with [`flag::WIDE`] set or cleared.
    #[must_use]
    pub const fn wide(mut self, wide: bool) -> Self {
        self.flags = if wide { self.flags | flag::WIDE } else { self.flags & !flag::WIDE };
        self
    }

    /// The same step over `chunks` consecutive chunks (of source and target alike).
    #[must_use]
    pub const fn over(mut self, chunks: u32) -> Self {
        self.chunks = chunks;
        self
    }

    /// The same step, storing to `target` as well ([`Verb::RecvReduceSend`]).
    #[must_use]
    pub const fn into(mut self, target: (Region, u32)) -> Self {
        (self.target, self.target_chunk) = target;
        self
    }

    /// The same step, run only after `step` has run on the same tile.
    #[must_use]
    pub const fn after(mut self, step: build::StepId) -> Self {
        self.wait_lane = step.lane;
        self.wait_step = step.index;
        self
    }

    /// Whether any of `bits` is set.
    #[must_use]
    pub const fn has(&self, bits: u8) -> bool {
        self.flags & bits != 0
    }

    /// Whether the step takes a message from `from` (folds take one from each group member).
    #[must_use]
    pub const fn receives(&self) -> bool {
        matches!(
            self.verb,
            Verb::Recv | Verb::RecvReduce | Verb::RecvReduceSend | Verb::RecvCopySend
        )
    }

    /// Whether the message given to `to` is in wide form.
    #[must_use]
    pub const fn sends_wide(&self) -> bool {
        match self.verb {
            Verb::RecvReduceSend => !self.has(flag::FINISH),
            _ => self.has(flag::WIDE),
        }
    }

    /// Whether the step writes memory of its own rank: only such a step can settle.
    #[must_use]
    pub const fn writes_here(&self) -> bool {
        matches!(self.target, Region::Output | Region::Work)
    }

    /// Whether what it gives to `to` lies in its target too, so that it may be posted from there.
    #[must_use]
    pub const fn sends_target(&self) -> bool {
        match self.verb {
            Verb::RecvCopySend => true,
            Verb::RecvReduceSend => self.has(flag::STORED) && self.writes_here(),
            _ => false,
        }
    }

    /// Whether the step gives a message to `to`.
    #[must_use]
    pub const fn sends(&self) -> bool {
        matches!(self.verb, Verb::Send | Verb::RecvReduceSend | Verb::RecvCopySend)
    }
}
