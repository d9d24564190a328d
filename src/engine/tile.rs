//! Where chunk c of tile t lies in a buffer, and how long it is.
//!
//! All lengths and offsets are elements. A *tile* is a fixed number of elements of each chunk. In a
//! buffer-wide collective the buffer is cut into segments of `chunks * tile` elements, so that the
//! chunks of one tile follow each other in memory; the last segment is shared out evenly, in
//! multiples of [`GRAIN`]. In a collective made of blocks, a chunk is a rank's block and a tile a
//! stretch of it.

use crate::call::{Call, Ragged};
use crate::types::Collective;

/// Chunks of a shared-out segment begin at multiples of this many elements, so that two ranks never
/// write one cache line (64 bytes of the smallest type).
pub(crate) const GRAIN: u64 = 64;

/// A stretch of elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// First element.
    pub(crate) offset: u64,
    /// Elements.
    pub(crate) count: u64,
}

/// How a region is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// `count` elements in `chunks` parts, segment by segment.
    Even { count: u64, chunks: u64 },
    /// One block of `count` elements a chunk, one after the other.
    Blocks { count: u64 },
    /// One chunk of `count` elements.
    One { count: u64 },
    /// As the call's send blocks say.
    SendBlocks,
    /// As the call's receive blocks say.
    RecvBlocks,
}

/// The cuts of input and output, and the tile.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    pub(crate) input: Cut,
    pub(crate) output: Cut,
    /// Elements of a tile.
    pub(crate) tile: u64,
    /// Whether chunk lengths of scratch follow the input (else the output).
    pub(crate) work_follows_input: bool,
}

impl Layout {
    /// The layout of `call` for rank `me`, a plan of `chunks` parts and a tile of at most
    /// `tile_max`.
    pub(crate) fn new(call: &Call, me: usize, chunks: u32, tile_max: u64) -> Self {
        use Collective as C;
        let count = call.count;
        let own = |blocks: &Ragged| Cut::One { count: blocks.counts.get(me).copied().unwrap_or(0) };
        let (input, output) = match call.collective {
            C::AllReduce | C::Reduce | C::Broadcast => {
                let cut = Cut::Even { count, chunks: u64::from(chunks) };
                (cut, cut)
            }
            C::AllGather | C::Gather => (Cut::One { count }, Cut::Blocks { count }),
            C::ReduceScatter | C::Scatter => (Cut::Blocks { count }, Cut::One { count }),
            C::AllToAll => (Cut::Blocks { count }, Cut::Blocks { count }),
            C::AllGatherV => (own(&call.recv_blocks), Cut::RecvBlocks),
            C::ReduceScatterV => (Cut::RecvBlocks, own(&call.recv_blocks)),
            C::GatherV => (Cut::One { count }, Cut::RecvBlocks),
            C::ScatterV => (Cut::SendBlocks, Cut::One { count }),
            C::AllToAllV => (Cut::SendBlocks, Cut::RecvBlocks),
            C::Barrier => (Cut::One { count: 0 }, Cut::One { count: 0 }),
            C::Send | C::Recv => (Cut::One { count }, Cut::One { count }),
        };
        let tile = match input {
            Cut::Even { count, chunks } => even_tile(count, chunks, tile_max),
            _ => tile_max,
        };
        let work_follows_input = !matches!(input, Cut::One { .. });
        Self { input, output, tile: tile.max(1), work_follows_input }
    }

    /// Tiles this rank goes through: at least 1.
    pub(crate) fn tiles(&self, call: &Call) -> u64 {
        self.tiles_of(self.input, call).max(self.tiles_of(self.output, call)).max(1)
    }

    fn tiles_of(&self, cut: Cut, call: &Call) -> u64 {
        let longest = |blocks: &Ragged| blocks.counts.iter().copied().max().unwrap_or(0);
        match cut {
            Cut::Even { count, chunks } => count.div_ceil(self.tile * chunks),
            Cut::Blocks { count } | Cut::One { count } => count.div_ceil(self.tile),
            Cut::SendBlocks => longest(&call.send_blocks).div_ceil(self.tile),
            Cut::RecvBlocks => longest(&call.recv_blocks).div_ceil(self.tile),
        }
    }

    /// Elements of chunk `chunk` under `cut`, over all tiles, where a chunk is a rank's block.
    pub(crate) fn chunk_count(&self, cut: Cut, call: &Call, chunk: u32) -> u64 {
        let listed =
            |blocks: &Ragged| blocks.counts.get(chunk as usize).copied().unwrap_or_default();
        match cut {
            Cut::Even { count, .. } | Cut::Blocks { count } | Cut::One { count } => count,
            Cut::SendBlocks => listed(&call.send_blocks),
            Cut::RecvBlocks => listed(&call.recv_blocks),
        }
    }

    /// Chunk `chunk` of tile `tile` under `cut`.
    #[inline]
    pub(crate) fn piece(&self, cut: Cut, call: &Call, chunk: u32, tile: u64) -> Piece {
        let chunk_index = chunk as usize;
        let block = |start: u64, count: u64| {
            let begin = (tile * self.tile).min(count);
            Piece { offset: start + begin, count: self.tile.min(count - begin) }
        };
        match cut {
            Cut::Even { count, chunks } => self.even(count, chunks, u64::from(chunk), tile),
            Cut::Blocks { count } => block(u64::from(chunk) * count, count),
            Cut::One { count } => block(0, count),
            Cut::SendBlocks => ragged(&call.send_blocks, chunk_index, block),
            Cut::RecvBlocks => ragged(&call.recv_blocks, chunk_index, block),
        }
    }

    #[inline]
    fn even(&self, count: u64, chunks: u64, chunk: u64, tile: u64) -> Piece {
        let segment = self.tile * chunks;
        let begin = (tile * segment).min(count);
        let left = count - begin;
        if left >= segment {
            return Piece { offset: begin + chunk * self.tile, count: self.tile };
        }
        let share = left.div_ceil(chunks).next_multiple_of(GRAIN).min(self.tile);
        // `share * chunks >= left` still holds: the tile is either a multiple of the grain or
        // covers the even share (see `even_tile`).
        let from = (chunk * share).min(left);
        Piece { offset: begin + from, count: share.min(left - from) }
    }

    /// Length of chunk `chunk` of what `owner` stages of tile `tile`.
    #[inline]
    pub(crate) fn stage_count(&self, call: &Call, owner: u32, chunk: u32, tile: u64) -> u64 {
        // Where the input is the owner's block alone, that is what it stages.
        let chunk = if self.work_follows_input { chunk } else { owner };
        self.work_count(call, chunk, tile)
    }

    /// Length of scratch chunk `chunk` of tile `tile`: that of the chunk it stands for.
    #[inline]
    pub(crate) fn work_count(&self, call: &Call, chunk: u32, tile: u64) -> u64 {
        let cut = if self.work_follows_input { self.input } else { self.output };
        let chunk = match cut {
            Cut::Even { chunks, .. } => u32::try_from(u64::from(chunk) % chunks).unwrap_or(0),
            _ => chunk,
        };
        self.piece(cut, call, chunk, tile).count
    }
}

fn ragged(blocks: &Ragged, chunk: usize, block: impl Fn(u64, u64) -> Piece) -> Piece {
    let count = blocks.counts.get(chunk).copied().unwrap_or(0);
    block(blocks.displacements.get(chunk).copied().unwrap_or(0), count)
}

/// The tile that cuts `count` elements in `chunks` parts into segments of nearly equal length.
fn even_tile(count: u64, chunks: u64, tile_max: u64) -> u64 {
    if count == 0 {
        return 1;
    }
    let segments = count.div_ceil(tile_max * chunks);
    let even = count.div_ceil(segments * chunks);
    even.next_multiple_of(GRAIN).min(tile_max.max(even))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Dtype;

    /// Every element of the buffer is in exactly one piece, whatever count, chunks and tile.
    #[test]
    fn even_cuts_cover_the_buffer_once() {
        for count in [0, 1, 63, 64, 65, 1000, 4096, 100_003] {
            for chunks in [1u32, 2, 3, 7, 8, 64] {
                for tile_max in [1, 64, 100, 1024, u64::MAX / 128] {
                    let mut call = Call::new(Collective::AllReduce, Dtype::F32);
                    call.count = count;
                    let layout = Layout::new(&call, 0, chunks, tile_max);
                    let mut seen = vec![0u8; usize::try_from(count).unwrap()];
                    for tile in 0..layout.tiles(&call) {
                        for chunk in 0..chunks {
                            let p = layout.piece(layout.input, &call, chunk, tile);
                            assert!(p.count <= layout.tile);
                            for i in p.offset..p.offset + p.count {
                                seen[usize::try_from(i).unwrap()] += 1;
                            }
                        }
                    }
                    assert!(
                        seen.iter().all(|&n| n == 1),
                        "count {count} chunks {chunks} tile {tile_max}"
                    );
                }
            }
        }
    }

    #[test]
    fn ragged_cuts_follow_counts_and_displacements() {
        let mut call = Call::new(Collective::AllGatherV, Dtype::U8);
        call.recv_blocks.set(&[5, 0, 3], Some(&[10, 0, 20]));
        let layout = Layout::new(&call, 2, 1, 4);
        assert_eq!(layout.tiles(&call), 2);
        assert_eq!(layout.piece(layout.output, &call, 0, 1), Piece { offset: 14, count: 1 });
        assert_eq!(layout.piece(layout.output, &call, 1, 0), Piece { offset: 0, count: 0 });
        assert_eq!(layout.piece(layout.input, &call, 0, 0), Piece { offset: 0, count: 3 });
    }
}
