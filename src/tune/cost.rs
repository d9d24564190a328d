//! What a call costs by each algorithm: the estimate that decides where nothing was measured.
//!
//! Two halves. A [`Load`] says what an algorithm asks of its busiest rank: how many messages stand
//! in a chain, how many one rank sends (or receives, if that is more), in how many pieces, how many
//! bytes pass through it, how many it folds. It is a closed formula of collective, world and bytes:
//! the tables at the heads of the files in [`crate::algo`], which the tests count again in the
//! plans. So every rank gets the same load, whatever its own part. [`Figures`] say what each of
//! these takes on a kind of link. The estimate is the sum of their products, in picoseconds and
//! whole numbers, so that all machines get the same.
//!
//! ```text
//! hops * latency  +  messages * tiles * message  +  moved * byte  +  folded * byte
//! ```
//!
//! Small calls are ruled by the first two terms, so few hops and messages win; large ones by the
//! last two, so algorithms that cut the buffer into parts win. Tiles count since an algorithm with
//! long messages, or with many at once, must cut them short.
//!
//! What it does not know, and who decides then: hosts of several ranks, where what is between hosts
//! counts (hierarchical comes first); buffers that all can map (direct comes first); ranks that
//! share cores; caches. A table of measured points knows better ([`super::table`]).

use super::{Facts, Memory, tile_elements};
use crate::plan::Algorithm;
use crate::types::Collective;

/// From here on so many links at once slow each other down.
const CROWD: u32 = 16;
/// No call is larger than this, for the model.
const BYTES_MAX: u64 = 1 << 40;

/// What a kind of link takes, in picoseconds.
#[derive(Clone, Copy, Debug)]
struct Figures {
    /// Until a message is there.
    hop: u64,
    /// The work of one message, or of one tile of it.
    message: u64,
    /// A KiB through a rank.
    moved: u64,
    /// A KiB folded.
    folded: u64,
}

/// One socket between two ranks of one host: 9 us for an exchange, 1.4 GB/s.
const SOCKETS: Figures =
    Figures { hop: 5_000_000, message: 4_000_000, moved: 700_000, folded: 50_000 };
/// Rings in shared memory.
const RINGS: Figures = Figures { hop: 200_000, message: 100_000, moved: 150_000, folded: 50_000 };
/// Stages: a hop is a phase that all tell and wait for.
const STAGES: Figures = Figures { hop: 250_000, message: 0, moved: 120_000, folded: 50_000 };

/// What an algorithm asks of the busiest rank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Load {
    /// Messages that wait for each other, one after the other.
    hops: u64,
    /// Messages that one rank sends, or receives if those are more, for one tile.
    messages: u64,
    /// Into how many parts the buffer, or the block, is cut.
    parts: u64,
    /// Parts of the longest message, as plans state it.
    range: u64,
    /// Bytes through a rank, sent or received, whichever is more.
    moved: u64,
    /// Bytes it combines.
    folded: u64,
    /// Tiles that must be through a rank before the last one starts.
    fill: u64,
    /// Waits for many messages at once and folds them together.
    gathers: bool,
}

/// The estimate for `bytes` (of the buffer, or of a block), in picoseconds; `None`: not for the
/// model to say.
#[must_use]
pub(super) fn estimate(
    facts: &Facts,
    collective: Collective,
    algorithm: Algorithm,
    bytes: u64,
) -> Option<u64> {
    let bytes = bytes.min(BYTES_MAX);
    let load = load(algorithm, collective, facts.world, bytes)?;
    let figures = match (algorithm, facts.memory) {
        (Algorithm::Staged, _) => STAGES,
        (_, Memory::Apart) => SOCKETS,
        (_, Memory::Given | Memory::All) => RINGS,
    };
    let tile = tile_elements(facts, load.range.max(1), 1, load.gathers && load.folded > 0);
    let piece = bytes / load.parts.max(1);
    let tiles = piece.div_ceil(tile).max(1);
    let crowded = load.gathers && facts.world > CROWD && load.messages > 1;
    let moved = load.moved + load.moved / 2 * u64::from(crowded) + load.fill * piece.min(tile);
    let per_kib = |bytes: u64, figure: u64| u128::from(bytes) * u128::from(figure) / 1024;
    let sum = u128::from(load.hops * figures.hop)
        + u128::from(load.messages * figures.message) * u128::from(tiles)
        + per_kib(moved, figures.moved)
        + per_kib(load.folded, figures.folded);
    Some(u64::try_from(sum).unwrap_or(u64::MAX))
}

fn load(algorithm: Algorithm, collective: Collective, world: u32, bytes: u64) -> Option<Load> {
    use Collective as C;
    let team = Team::new(world);
    let load = match collective {
        C::AllReduce => team.all_reduce(algorithm, bytes),
        C::Reduce => team.reduce(algorithm, bytes),
        C::Broadcast => team.broadcast(algorithm, bytes),
        C::AllGather | C::AllToAll | C::ReduceScatter | C::Gather | C::Scatter => {
            team.blocks(algorithm, collective, bytes)
        }
        // The bytes are those of all blocks together.
        C::AllGatherV => team.blocks(algorithm, C::AllGather, bytes / team.n),
        C::ReduceScatterV => team.blocks(algorithm, C::ReduceScatter, bytes / team.n),
        C::GatherV => team.blocks(algorithm, C::Gather, bytes / team.n),
        C::ScatterV => team.blocks(algorithm, C::Scatter, bytes / team.n),
        C::AllToAllV | C::Send | C::Recv => team.blocks(algorithm, C::AllToAll, bytes / team.n),
        C::Barrier => team.barrier(algorithm),
    }?;
    Some(if world == 1 { Load::default() } else { load })
}

/// A world and what is often asked of its size.
struct Team {
    n: u64,
    /// Rounds of doubling until at least all ranks, and at most all ranks, are reached.
    up: u64,
    down: u64,
    /// The largest power of two in it.
    power: u64,
}

impl Team {
    fn new(world: u32) -> Self {
        let down = world.max(1).ilog2();
        let up = world.next_power_of_two().ilog2();
        Self { n: u64::from(world.max(1)), up: up.into(), down: down.into(), power: 1 << down }
    }

    fn is_power(&self) -> bool {
        self.n == self.power
    }

    /// `k` of the world's parts of `bytes`.
    fn share(&self, bytes: u64, k: u64) -> u64 {
        bytes / self.n * k + bytes % self.n * k / self.n
    }

    fn all_reduce(&self, algorithm: Algorithm, bytes: u64) -> Option<Load> {
        use Algorithm as A;
        let &Self { n, up, down, power, .. } = self;
        let once = self.share(bytes, n - 1);
        let whole = Load { parts: 1, range: 1, ..Load::default() };
        Some(match algorithm {
            A::Ring => {
                let hops = 2 * (n - 1);
                Load { hops, messages: hops, parts: n, moved: 2 * once, folded: once, ..whole }
            }
            A::Binomial => {
                let moved = up * bytes;
                Load { hops: 2 * up, messages: up, moved, folded: moved, fill: up, ..whole }
            }
            A::Tree => {
                let (hops, moved) = (2 * down + 2, 2 * bytes);
                Load { hops, messages: 4, parts: 2, moved, folded: bytes, fill: down, ..whole }
            }
            A::Doubling if self.is_power() => {
                let moved = down * bytes;
                Load { hops: down, messages: down, moved, folded: moved, ..whole }
            }
            A::Doubling => {
                let moved = (down + 2) * bytes;
                let messages = 2 * down + 1;
                Load { hops: down + 2, messages, moved, folded: moved, ..whole }
            }
            A::Halving => {
                let cut = Load { parts: power, range: n, hops: 2 * down, ..whole };
                if self.is_power() {
                    Load { messages: 2 * down, moved: 2 * once, folded: once, ..cut }
                } else {
                    let messages = (2 * down + 1).max(power + 1);
                    Load { messages, moved: 2 * bytes, folded: bytes, ..cut }
                }
            }
            A::Pairwise => {
                let (messages, gathers) = (2 * (n - 1), true);
                let cut = Load { messages, parts: n, gathers, ..whole };
                Load { hops: 2, moved: 2 * once, folded: once, ..cut }
            }
            A::Staged => Load { hops: 2, moved: 2 * once, folded: once, ..whole },
            A::Direct | A::Bruck | A::Hierarchical => return None,
        })
    }

    fn reduce(&self, algorithm: Algorithm, bytes: u64) -> Option<Load> {
        use Algorithm as A;
        let &Self { n, up, down, .. } = self;
        let whole = Load { parts: 1, range: 1, moved: bytes, folded: bytes, ..Load::default() };
        Some(match algorithm {
            A::Ring => Load { hops: n - 1, messages: 1, fill: n.saturating_sub(2), ..whole },
            A::Binomial => {
                let moved = up * bytes;
                Load { hops: up, messages: up, moved, folded: moved, ..whole }
            }
            A::Tree => Load { hops: down + 2, messages: 2, parts: 2, fill: down, ..whole },
            A::Pairwise => self.among_others(whole),
            A::Staged => {
                let once = self.share(bytes, n - 1);
                Load { hops: 2, moved: 2 * once, folded: once, ..whole }
            }
            _ => return None,
        })
    }

    fn broadcast(&self, algorithm: Algorithm, bytes: u64) -> Option<Load> {
        use Algorithm as A;
        let &Self { n, up, down, .. } = self;
        let whole = Load { parts: 1, range: 1, moved: bytes, ..Load::default() };
        Some(match algorithm {
            A::Ring => Load { hops: n - 1, messages: 1, fill: n.saturating_sub(2), ..whole },
            A::Binomial => Load { hops: up, messages: up, moved: up * bytes, ..whole },
            A::Tree => {
                let moved = bytes + bytes / 2;
                Load { hops: down + 2, messages: 3, parts: 2, moved, fill: down, ..whole }
            }
            A::Pairwise => self.among_others(whole),
            A::Staged => Load { hops: 1, ..whole },
            _ => return None,
        })
    }

    /// Pairwise reduce and broadcast: the ranks but the root deal with a part each.
    fn among_others(&self, whole: Load) -> Load {
        let parts = (self.n - 1).max(1);
        Load { hops: parts.min(2), messages: parts, parts, gathers: true, ..whole }
    }

    /// `bytes` are those of a block.
    fn blocks(&self, algorithm: Algorithm, collective: Collective, bytes: u64) -> Option<Load> {
        use Algorithm as A;
        use Collective as C;
        let &Self { n, up, down, .. } = self;
        let (others, half) = (n - 1, n.div_ceil(2));
        let moved = others * bytes;
        let folded = if collective.reduces() { moved } else { 0 };
        let plain = Load { parts: 1, range: 1, moved, folded, ..Load::default() };
        Some(match (algorithm, collective) {
            (A::Pairwise, _) => Load { hops: 1, messages: others, gathers: true, ..plain },
            (A::Staged, _) => Load { hops: 1, ..plain },
            (A::Ring, _) => Load { hops: others, messages: others, ..plain },
            (A::Doubling, C::AllGather) => Load { hops: up, messages: up, range: n, ..plain },
            (A::Bruck, C::AllGather) => Load { hops: up, messages: 2 * up, range: n, ..plain },
            (A::Bruck, C::AllToAll) => {
                // What leaves in a round is packed first.
                let moved = 2 * up * half * bytes;
                Load { hops: up, messages: up, range: n, moved, ..plain }
            }
            (A::Halving, C::ReduceScatter) => {
                let (rounds, moved) = (down + 1, n * bytes);
                Load { hops: rounds, messages: rounds, range: n, moved, ..plain }
            }
            (A::Binomial, C::Gather | C::Scatter) => {
                let moved = moved + (half - 1) * bytes;
                Load { hops: up, messages: up, range: n, moved, ..plain }
            }
            _ => return None,
        })
    }

    fn barrier(&self, algorithm: Algorithm) -> Option<Load> {
        let rounds = match algorithm {
            Algorithm::Doubling => self.up,
            Algorithm::Binomial => 2 * self.up,
            _ => return None,
        };
        Some(Load { hops: rounds, messages: self.up, ..Load::default() })
    }
}

#[cfg(test)]
#[path = "cost_tests.rs"]
mod tests;
