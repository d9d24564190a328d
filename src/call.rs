//! A validated call, and the fingerprint by which ranks recognise that they make the same one.
//!
//! [`Call`] is what the communicator hands to a backend: every value checked, addresses raw. Who
//! makes one promises that the buffers stay valid, and are touched by nobody else, until the call
//! is done.
//!
//! [`Head`] opens the first message of a call on every link, as 32 bytes, little endian:
//!
//! ```text
//!  0        8        16       20       24    25      26    27      28      32
//!  | seq    | count  | epoch  | root   | kind| dtype | op  | flags | plan  |
//! ```
//!
//! `count` is what all ranks must agree on: elements for equal counts, a hash of all counts for
//! all_gather_v, reduce_scatter_v and the calls of a group that travel as one; for gather_v,
//! scatter_v and all_to_all_v, where counts are between two ranks, that of the pair. `plan` is a
//! hash of algorithm, tile and window.

use bytemuck::{Pod, Zeroable};

use crate::kernel::Scalar;
use crate::types::{Collective, Dtype, Rank, ReduceOp};

/// Counts and displacements of a `v` form, in elements, one entry a rank.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ragged {
    /// Elements of each rank's block.
    pub counts: Vec<u64>,
    /// Where each block begins.
    pub displacements: Vec<u64>,
}

impl Ragged {
    /// Takes over counts and displacements (`None`: blocks follow each other), keeping allocations.
    pub fn set(&mut self, counts: &[u64], displacements: Option<&[u64]>) {
        self.counts.clear();
        self.counts.extend_from_slice(counts);
        self.displacements.clear();
        if let Some(given) = displacements {
            self.displacements.extend_from_slice(given);
            return;
        }
        let mut next = 0u64;
        for &count in counts {
            self.displacements.push(next);
            next = next.saturating_add(count);
        }
    }
}

/// What a call shows the other ranks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Guise {
    /// What it is.
    #[default]
    Own,
    /// Several calls of a group, packed into this one: a hash of their counts.
    Packed(u64),
    /// A call that another backend is about to make, but for number, epoch and plan. In a box, so
    /// that calls stay small: they are copied often.
    Of(Box<Head>),
}

/// Where a call's buffers lie, and when it runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Place {
    /// In host memory.
    #[default]
    Host,
    /// In memory that the communicator's GPU reaches; the call waits until all is done.
    Device {
        /// The next call is of the same group: neither waits for the other.
        more: bool,
    },
    /// The same, in the order of a stream of CUDA's: the call returns once it has its place there.
    Stream {
        /// The stream's handle.
        handle: usize,
        /// The next call is of the same group, and has the same place.
        more: bool,
    },
}

impl Place {
    /// Whether the buffers are in host memory.
    #[must_use]
    pub const fn is_host(self) -> bool {
        matches!(self, Self::Host)
    }

    /// The same place for a call that has a request: that waits.
    #[must_use]
    pub const fn waiting(self) -> Self {
        match self {
            Self::Stream { .. } => Self::Device { more: false },
            other => other,
        }
    }

    /// The same place, with more of its group to come or not.
    #[must_use]
    pub const fn followed(self, more: bool) -> Self {
        match self {
            Self::Stream { handle, .. } => Self::Stream { handle, more },
            Self::Device { .. } => Self::Device { more },
            other => other,
        }
    }
}

/// One call of one rank.
#[derive(Clone, Debug)]
pub struct Call {
    /// What is done.
    pub collective: Collective,
    /// Element type.
    pub dtype: Dtype,
    /// Operation; `Sum` for collectives that do not reduce.
    pub op: ReduceOp,
    /// This rank's factor for `pre_mul_sum`.
    pub scalar: Scalar,
    /// Root, or the peer of send and recv; rank 0 where there is none.
    pub root: Rank,
    /// First element to send; may be null where this rank sends nothing.
    pub send: *const u8,
    /// First element received; may be null where this rank receives nothing.
    pub recv: *mut u8,
    /// Elements: of the buffer (buffer-wide collectives), of one block (the others), of the
    /// message.
    pub count: u64,
    /// Where the buffers lie.
    pub place: Place,
    /// What it is taken for.
    pub guise: Guise,
    /// Blocks of the send buffer, for scatter_v and all_to_all_v.
    pub send_blocks: Ragged,
    /// Blocks of the receive buffer (for reduce_scatter_v: of the input).
    pub recv_blocks: Ragged,
}

// SAFETY: the addresses are promised valid until the call is done, on whichever thread it runs.
unsafe impl Send for Call {}

impl Call {
    /// A call that moves nothing: a starting point to fill in.
    #[must_use]
    pub fn new(collective: Collective, dtype: Dtype) -> Self {
        Self {
            collective,
            dtype,
            op: ReduceOp::Sum,
            scalar: Scalar([0; 16]),
            root: Rank(0),
            send: std::ptr::null(),
            recv: std::ptr::null_mut(),
            count: 0,
            place: Place::Host,
            guise: Guise::Own,
            send_blocks: Ragged::default(),
            recv_blocks: Ragged::default(),
        }
    }

    /// The value of [`Head::count`] for this call.
    #[must_use]
    pub fn agreed_count(&self) -> u64 {
        use Collective as C;
        if let Guise::Packed(counts) = self.guise {
            return counts;
        }
        match self.collective {
            C::AllGatherV | C::ReduceScatterV => hash_counts(&self.recv_blocks.counts),
            C::GatherV | C::ScatterV | C::AllToAllV => 0,
            _ => self.count,
        }
    }

    /// Its lists of counts, to be used again once it is over.
    pub(crate) fn into_lists(self) -> impl Iterator<Item = Ragged> {
        let lists = [self.send_blocks, self.recv_blocks].into_iter();
        lists.filter(|blocks| blocks.counts.capacity() > 0)
    }

    /// Whether rank `me`, whose call this is, has anything to send, and anything to receive.
    #[must_use]
    pub fn uses(&self, me: Rank) -> (bool, bool) {
        use Collective as C;
        let (any, at_root) = (self.count > 0, me == self.root);
        let listed = |blocks: &Ragged| blocks.counts.iter().any(|&count| count > 0);
        let (to, from) = (listed(&self.send_blocks), listed(&self.recv_blocks));
        match self.collective {
            C::AllReduce | C::AllGather | C::ReduceScatter | C::AllToAll => (any, any),
            C::Reduce | C::Gather => (any, any && at_root),
            C::Broadcast | C::Scatter => (any && at_root, any),
            C::AllGatherV | C::GatherV => (any, from),
            C::ReduceScatterV => (from, any),
            C::ScatterV => (to, any),
            C::AllToAllV => (to, from),
            C::Barrier => (false, false),
            C::Send => (any, false),
            C::Recv => (false, any),
        }
    }

    /// Whether this is an all_to_all over one buffer. Where blocks have lengths of their own the
    /// plan is the same in place; and no data is in place nowhere, whatever the addresses.
    pub(crate) fn in_place_all_to_all(&self) -> bool {
        self.collective == Collective::AllToAll
            && self.count > 0
            && std::ptr::eq(self.send, self.recv)
    }
}

/// FNV-1a over the counts, never 0 so that it cannot pass for "not compared".
pub(crate) fn hash_counts<'a>(counts: impl IntoIterator<Item = &'a u64>) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in counts.into_iter().flat_map(|c| c.to_le_bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash.max(1)
}

/// Bits of [`Head::flags`].
pub mod head_flag {
    /// The deterministic mode is on.
    pub const DETERMINISTIC: u8 = 1;
    /// all_to_all works in place (all ranks or none).
    pub const IN_PLACE: u8 = 2;
    /// Several calls of a group travel as one; `count` is a hash of their counts.
    pub const PACKED: u8 = 4;
    /// Buffers are in memory of GPUs (on all ranks or none).
    pub const DEVICE: u8 = 8;
}

/// What ranks compare before they believe a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Head {
    /// Number of the call on its communicator.
    pub seq: u64,
    /// See the module header.
    pub count: u64,
    /// Incarnation of the communicator.
    pub epoch: u32,
    /// Root, or 0.
    pub root: u32,
    /// [`Collective`] number.
    pub kind: u8,
    /// [`Dtype`] number.
    pub dtype: u8,
    /// [`ReduceOp`] number.
    pub op: u8,
    /// [`head_flag`] bits.
    pub flags: u8,
    /// Hash of algorithm, tile and window.
    pub plan: u32,
}

/// Bytes of a head on the wire.
pub const HEAD_BYTES: usize = 32;
const _: () = assert!(size_of::<Head>() == HEAD_BYTES && align_of::<Head>() == 8);
const _: () = assert!(cfg!(target_endian = "little"), "the wire is little endian");

impl Head {
    /// A word that differs, as good as always, where heads differ. For comparing with peers that
    /// have proved the key: it is no defence.
    #[must_use]
    pub fn digest(&self) -> u64 {
        let words: [u64; 4] = bytemuck::cast(*self);
        // Each step is one to one in its word, so heads that differ in one word never meet.
        words.iter().fold(0x9e37_79b9_7f4a_7c15, |digest: u64, word| {
            let mixed = (digest.rotate_left(23) ^ word).wrapping_mul(0xff51_afd7_ed55_8ccd);
            mixed ^ mixed >> 32
        })
    }

    /// Its elements in words.
    #[must_use]
    pub(crate) fn measure(&self) -> String {
        let dtype = Dtype::from_number(i64::from(self.dtype));
        dtype.map_or_else(|| self.count.to_string(), |dtype| format!("{} {dtype}", self.count))
    }

    /// The call in words, as errors show it.
    #[must_use]
    pub fn describe(&self) -> String {
        let Some(kind) = Collective::from_number(i64::from(self.kind)) else {
            return format!("unknown call kind {}", self.kind);
        };
        let mut text = kind.name().to_owned();
        if let Some(dtype) = Dtype::from_number(i64::from(self.dtype))
            && kind != Collective::Barrier
        {
            text += &format!(" {dtype}");
        }
        if let Some(op) = ReduceOp::from_number(i64::from(self.op))
            && kind.reduces()
        {
            text += &format!(" {op}");
        }
        match kind {
            Collective::Barrier => {}
            // On a link: what one rank gives the other. Where all ranks compare, nothing.
            Collective::GatherV | Collective::ScatterV | Collective::AllToAllV => {
                if self.count > 0 {
                    text += &format!(" block of {}", self.count);
                }
            }
            Collective::AllGatherV | Collective::ReduceScatterV => {
                text += &format!(" counts {:08x}", self.count & 0xffff_ffff);
            }
            _ if self.flags & head_flag::PACKED != 0 => {
                text += &format!(" of a group, counts {:08x}", self.count & 0xffff_ffff);
            }
            _ => text += &format!(" count {}", self.count),
        }
        if kind.rooted() {
            text += &format!(" root {}", self.root);
        }
        if self.flags & head_flag::DETERMINISTIC != 0 {
            text += " deterministic";
        }
        if self.flags & head_flag::IN_PLACE != 0 {
            text += " in place";
        }
        if self.flags & head_flag::DEVICE != 0 {
            text += " in device memory";
        }
        text
    }
}

/// What a rank has called so far: ranks that leave well have the same.
///
/// Two ranks that exchange no message in a rooted call do not compare that call; this does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Tally {
    /// Collectives begun.
    pub calls: u64,
    /// Depends on their heads and order, not on how they were carried out.
    pub digest: u64,
}

impl Tally {
    /// Adds the next call.
    #[inline]
    pub fn add(&mut self, head: &Head) {
        self.calls += 1;
        let words: [u64; HEAD_BYTES / 8] = bytemuck::cast(Head { plan: 0, ..*head });
        for word in words {
            // Fibonacci hashing, after Knuth, TAOCP 3, 6.4: enough against accidents.
            self.digest = (self.digest ^ word).rotate_left(29).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
    }

    /// What is wrong when `peer` has left with the tally `theirs`.
    #[must_use]
    pub fn differs(&self, peer: Rank, theirs: &Self) -> Option<String> {
        if self.calls != theirs.calls {
            return Some(format!(
                "rank {peer} made {} collective calls before it ended its communicator, this rank {}",
                theirs.calls, self.calls
            ));
        }
        (self.digest != theirs.digest).then(|| {
            format!("among {} collective calls, rank {peer} made others than this rank", self.calls)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tally_tells_number_content_and_order_but_not_the_plan() {
        let head = |seq: u64, root: u32, plan: u32| Head { seq, root, plan, ..Head::zeroed() };
        let tally = |heads: &[Head]| {
            let mut tally = Tally::default();
            heads.iter().for_each(|head| tally.add(head));
            tally
        };
        let [one, two] = [head(1, 0, 5), head(2, 1, 5)];
        let ours = tally(&[one, two]);
        assert_eq!(ours, tally(&[head(1, 0, 6), head(2, 1, 7)]));
        let fewer = ours.differs(Rank(3), &tally(&[one])).expect("fewer");
        assert_eq!(
            fewer,
            "rank 3 made 1 collective calls before it ended its communicator, this rank 2"
        );
        let other = ours.differs(Rank(3), &tally(&[one, head(2, 0, 5)])).expect("another root");
        assert_eq!(other, "among 2 collective calls, rank 3 made others than this rank");
        assert_ne!(ours, tally(&[two, one]));
    }

    #[test]
    fn a_head_says_what_was_called() {
        let head = Head {
            seq: 3,
            count: 10,
            epoch: 0,
            root: 1,
            kind: Collective::Reduce.number(),
            dtype: Dtype::Bf16.number(),
            op: ReduceOp::Max.number(),
            flags: head_flag::DETERMINISTIC,
            plan: 7,
        };
        assert_eq!(head.describe(), "reduce bf16 max count 10 root 1 deterministic");
        assert_eq!(Head { kind: 200, ..head }.describe(), "unknown call kind 200");
    }

    #[test]
    fn missing_displacements_put_blocks_end_to_end() {
        let mut blocks = Ragged::default();
        blocks.set(&[3, 0, 2], None);
        assert_eq!(blocks.displacements, [0, 3, 3]);
        blocks.set(&[1, 1], Some(&[5, 9]));
        assert_eq!(blocks.displacements, [5, 9]);
    }
}
