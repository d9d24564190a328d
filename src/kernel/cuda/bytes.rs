//! Packs and checksums of device memory, as launches, and the checksum of host memory.

use super::arguments::{
    Arguments, Block, ChecksumArguments, LENGTH, PACK_INLINE, PACK_PIECE_BYTES, PackArguments,
};
use super::launch::{Launch, Range};
use super::name::Kernel;
use crate::error::{Code, Error, Result};

use bytemuck::Zeroable;

/// Steps of SplitMix64's state.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// Bytes that one block of a checksum takes at a time: four words a thread.
const CHECKSUM_UNROLL: u64 = 4;

/// Bytes that a pack copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// Where from.
    pub source: u64,
    /// Where to; a move onto itself is left out.
    pub target: u64,
    /// How many.
    pub bytes: u64,
}

/// The entries of a pack of any size, to be put in device memory.
#[derive(Clone, Debug)]
pub struct PackTable {
    blocks: Vec<Block>,
    pieces: u64,
}

impl PackTable {
    /// The table of `moves`.
    ///
    /// # Errors
    /// [`Code::Overlap`] where a target overlaps a source or another target;
    /// [`Code::NullPointer`] and [`Code::CountOverflow`] for addresses; [`Code::Limit`] for 2^32
    /// moves.
    pub fn new(moves: &[Move]) -> Result<Self> {
        check(moves)?;
        let mut blocks = Vec::with_capacity(moves.len());
        let mut pieces = 0;
        for one in moves.iter().filter(|one| one.bytes > 0 && one.source != one.target) {
            let &Move { source, target, bytes } = one;
            blocks.push(Block { source, target, bytes, piece: pieces });
            // Targets do not overlap, so there are fewer pieces than addresses.
            pieces += bytes.div_ceil(PACK_PIECE_BYTES);
        }
        if u32::try_from(blocks.len()).is_err() {
            let detail = format!("{} moves in one pack; it has fewer than 2^32", blocks.len());
            return Err(Error::new(Code::Limit, detail));
        }
        Ok(Self { blocks, pieces })
    }

    /// What has to be in device memory when the launch runs.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.blocks)
    }

    /// Whether the entries fit the arguments, so that no table is needed.
    #[must_use]
    pub fn is_inline(&self) -> bool {
        self.blocks.len() <= PACK_INLINE
    }

    /// The launch on a device of `sms` multiprocessors, or on so many of them. `table` is where
    /// [`PackTable::bytes`] will be; it is not used if they fit the arguments.
    ///
    /// # Errors
    /// [`Code::NullPointer`] and [`Code::Misaligned`] for the table's address.
    pub fn launch(&self, table: u64, sms: u32) -> Result<Launch> {
        let mut arguments = PackArguments::zeroed();
        arguments.pieces = self.pieces;
        arguments.block_count = u32::try_from(self.blocks.len()).expect("checked in new");
        if self.is_inline() {
            arguments.blocks[..self.blocks.len()].copy_from_slice(&self.blocks);
        } else {
            let size = size_of::<Block>() as u64;
            arguments.table = Range::new("the table", table, self.blocks.len() as u64, size, 8)?.at;
        }
        // A block of threads takes a piece.
        let threads = self.pieces.saturating_mul(u64::from(super::BLOCK));
        Ok(Launch::new(Kernel::Pack, threads, sms, Arguments::Pack(arguments)))
    }
}

/// The launch that copies at most [`PACK_INLINE`] blocks. Unpacking is the same with sources and
/// targets exchanged.
///
/// # Errors
/// [`Code::Limit`] for more; else as for [`PackTable::new`].
pub fn pack(moves: &[Move], sms: u32) -> Result<Launch> {
    let table = PackTable::new(moves)?;
    if !table.is_inline() {
        let detail = format!("{} moves in arguments for {PACK_INLINE}; use a table", moves.len());
        return Err(Error::new(Code::Limit, detail));
    }
    table.launch(0, sms)
}

fn check(moves: &[Move]) -> Result<()> {
    let mut targets = Vec::with_capacity(moves.len());
    for one in moves {
        Range::new("a source", one.source, one.bytes, 1, 1)?;
        let target = Range::new("a target", one.target, one.bytes, 1, 1)?;
        if target.bytes > 0 {
            targets.push(target);
        }
    }
    targets.sort_unstable_by_key(|range| range.at);
    for pair in targets.windows(2) {
        pair[0].apart(pair[1], "targets")?;
    }
    for one in moves.iter().filter(|one| one.bytes > 0) {
        let source = Range { at: one.source, bytes: one.bytes };
        let past = targets.partition_point(|target| target.end() <= source.at);
        let reached = targets[past..].iter().take_while(|target| target.at < source.end());
        for &target in reached {
            let itself = one.source == one.target && target.at == one.target;
            if !itself {
                source.apart(target, "source and target")?;
            }
        }
    }
    Ok(())
}

/// A checksum of device memory, added to a 64-bit number there, which the caller zeroes before.
///
/// The checksum of a whole is the sum of those of its parts, modulo 2^64, if every part but the
/// last has a multiple of 8 bytes and one of them adds the whole's length. It is that of
/// [`checksum`].
#[derive(Clone, Copy, Debug)]
pub struct DeviceChecksum {
    /// The first byte.
    pub source: u64,
    /// Bytes.
    pub bytes: u64,
    /// The number that is added to; aligned to 8 bytes.
    pub target: u64,
    /// Bytes of the whole before these: a multiple of 8.
    pub skip: u64,
    /// Bytes of the whole, if this part is to add them.
    pub length: Option<u64>,
}

impl DeviceChecksum {
    /// The launch on a device of `sms` multiprocessors, or on so many of them.
    ///
    /// # Errors
    /// [`Code::InvalidArgument`] for a part that begins inside a word; addresses as for
    /// [`super::DeviceFold::launch`].
    pub fn launch(&self, sms: u32) -> Result<Launch> {
        let source = Range::new("the source", self.source, self.bytes, 1, 1)?;
        let target = Range::new("the target", self.target, 1, 8, 8)?;
        source.apart(target, "source and target")?;
        if !self.skip.is_multiple_of(8) {
            let detail = format!("a part after {} bytes; it begins with a word of 8", self.skip);
            return Err(Error::new(Code::InvalidArgument, detail));
        }
        let arguments = ChecksumArguments {
            source: self.source,
            target: self.target,
            bytes: self.bytes,
            first: self.skip / 8,
            length: self.length.unwrap_or_default(),
            flags: if self.length.is_some() { LENGTH } else { 0 },
            reserved: 0,
        };
        let items = (self.bytes / 8).div_ceil(CHECKSUM_UNROLL);
        Ok(Launch::new(Kernel::Checksum, items, sms, Arguments::Checksum(arguments)))
    }
}

/// The checksum of host memory, bit for bit that of the kernel: the sum of a term for each word of
/// 8 bytes, the last filled up with zeros, and one for the length.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u64 {
    let mut sum = mixed(!(bytes.len() as u64));
    for (word, index) in bytes.chunks(8).zip(1u64..) {
        let mut filled = [0; 8];
        filled[..word.len()].copy_from_slice(word);
        let term = mixed(u64::from_le_bytes(filled) ^ index.wrapping_mul(STEP));
        sum = sum.wrapping_add(term);
    }
    sum
}

/// The finaliser of SplitMix64.
const fn mixed(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
