//! The structs of `cuda/arguments.h`, field by field, and its constants.
//!
//! Both sides assert the same layouts. Not here: what makes the numbers right (`launch`, `bytes`).

use std::mem::offset_of;

use bytemuck::{Pod, Zeroable};

/// Threads of a block, in every launch.
pub const BLOCK: u32 = 256;

/// The most sources, and the most targets, of one fold.
pub const FAN: usize = 16;

/// The most entries of a pack that travel in its arguments.
pub const PACK_INLINE: usize = 64;

/// What one block of threads copies at a time.
pub const PACK_PIECE_BYTES: u64 = 32_768;

pub(super) const TARGET_WIDE: u32 = 1;
pub(super) const FINISH: u32 = 2;
pub(super) const SIGNED: u32 = 4;
pub(super) const SOURCE_WIDE: u32 = 8;
pub(super) const FACTOR: u32 = 16;
pub(super) const TRUTH: u32 = 32;
pub(super) const LENGTH: u32 = 64;

/// `unisono_fold_arguments`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct FoldArguments {
    pub(super) sources: [u64; FAN],
    pub(super) targets: [u64; FAN],
    pub(super) count: u64,
    pub(super) head: u64,
    pub(super) vectors: u64,
    pub(super) source_count: u32,
    pub(super) target_count: u32,
    pub(super) sources_wide: u32,
    pub(super) flags: u32,
    pub(super) ranks: u32,
    pub(super) reserved: u32,
    pub(super) factors: [[u8; 16]; FAN],
}

/// `unisono_convert_arguments`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct ConvertArguments {
    pub(super) source: u64,
    pub(super) target: u64,
    pub(super) count: u64,
    pub(super) head: u64,
    pub(super) vectors: u64,
    pub(super) flags: u32,
    pub(super) ranks: u32,
    pub(super) factor: [u8; 16],
}

/// `unisono_round_arguments`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct RoundArguments {
    pub(super) source: u64,
    pub(super) target: u64,
    pub(super) count: u64,
    pub(super) head: u64,
    pub(super) vectors: u64,
    pub(super) seed: u64,
    pub(super) first: u64,
}

/// `unisono_block`: an entry of a pack, as it stands in a table in device memory too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Block {
    pub(super) source: u64,
    pub(super) target: u64,
    pub(super) bytes: u64,
    pub(super) piece: u64,
}

/// `unisono_pack_arguments`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct PackArguments {
    pub(super) table: u64,
    pub(super) pieces: u64,
    pub(super) block_count: u32,
    pub(super) reserved: u32,
    pub(super) blocks: [Block; PACK_INLINE],
}

/// `unisono_checksum_arguments`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct ChecksumArguments {
    pub(super) source: u64,
    pub(super) target: u64,
    pub(super) bytes: u64,
    pub(super) first: u64,
    pub(super) length: u64,
    pub(super) flags: u32,
    pub(super) reserved: u32,
}

const _: () = {
    assert!(size_of::<FoldArguments>() == 560);
    assert!(offset_of!(FoldArguments, targets) == 128);
    assert!(offset_of!(FoldArguments, count) == 256);
    assert!(offset_of!(FoldArguments, source_count) == 280);
    assert!(offset_of!(FoldArguments, ranks) == 296);
    assert!(offset_of!(FoldArguments, factors) == 304);
    assert!(size_of::<ConvertArguments>() == 64);
    assert!(offset_of!(ConvertArguments, flags) == 40);
    assert!(offset_of!(ConvertArguments, factor) == 48);
    assert!(size_of::<RoundArguments>() == 56);
    assert!(offset_of!(RoundArguments, seed) == 40);
    assert!(size_of::<Block>() == 32);
    assert!(size_of::<PackArguments>() == 2072);
    assert!(offset_of!(PackArguments, blocks) == 24);
    assert!(size_of::<ChecksumArguments>() == 48);
    assert!(offset_of!(ChecksumArguments, flags) == 40);
};

/// What one launch is given, by value.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::large_enum_variant, reason = "a launch lives for a call; a box would allocate")]
pub enum Arguments {
    /// Of a fold.
    Fold(FoldArguments),
    /// Of a convert.
    Convert(ConvertArguments),
    /// Of stochastic rounding.
    Round(RoundArguments),
    /// Of a pack.
    Pack(PackArguments),
    /// Of a checksum.
    Checksum(ChecksumArguments),
}

impl Arguments {
    /// The struct as the driver takes it: the address of its first byte is the one kernel
    /// parameter.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Fold(arguments) => bytemuck::bytes_of(arguments),
            Self::Convert(arguments) => bytemuck::bytes_of(arguments),
            Self::Round(arguments) => bytemuck::bytes_of(arguments),
            Self::Pack(arguments) => bytemuck::bytes_of(arguments),
            Self::Checksum(arguments) => bytemuck::bytes_of(arguments),
        }
    }
}
