//! Calls one after the other of kinds, sizes and memory that nobody has chosen, with ranks that
//! come late, and many in which some wait for nobody: whatever path a call takes, it must leave the
//! next one its places on the board and links.

use std::time::Duration;

use unisono::config::{Config, Device};
use unisono::plan::Algorithm;
use unisono::{Dtype, Result};

use super::event::Verdict;
use super::rank::Bench;
use super::special::{compare, keep_on_error, start_all};
use crate::cli::data::memory::Source;
use crate::cli::data::shape::{Kind, Shape};

/// Rounds of a few calls each.
const ROUNDS: usize = 60;
const CALLS: usize = 4;
/// A block has less than this many elements.
const COUNT_BITS: u64 = 16;
const LATEST_US: u64 = 300;
/// Small calls that follow each other.
const RUN: usize = 150;
/// What the communicators of small calls ask for.
const ASKED: [Option<Algorithm>; 3] = [None, Some(Algorithm::Direct), Some(Algorithm::Staged)];

/// The same numbers on every rank (splitmix64, Steele et al. 2014).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31) % below
    }

    fn index(&mut self, below: usize) -> usize {
        usize::try_from(self.roll(below as u64)).unwrap_or(0)
    }

    /// Small counts as often as large ones.
    fn count(&mut self) -> usize {
        let bits = self.roll(COUNT_BITS + 1);
        self.index(1 << bits)
    }

    fn shape(&mut self, kinds: &[Kind], world: usize) -> Shape {
        let kind = kinds[self.index(kinds.len())];
        let dtype = [Dtype::F32, Dtype::U8, Dtype::Bf16][self.index(3)];
        let root = u32::try_from(self.index(world)).unwrap_or(0);
        let in_place = kind.has_in_place() && self.roll(3) == 0;
        let shape = Shape { root, in_place, ..Shape::new(kind, dtype, self.count(), world) };
        let counts = if kind.ragged() {
            (0..world).map(|_| self.count()).collect()
        } else {
            shape.counts.clone()
        };
        Shape { counts, ..shape }
    }
}

/// Small calls in which some ranks wait for nobody, more in a row than anybody may be ahead, with
/// others among them and a rank that comes late.
pub(super) fn ahead(bench: &mut Bench<'_>) -> Result<Verdict> {
    let mut dice = Dice(bench.world() as u64);
    for algorithm in ASKED {
        let config = Config { algorithm, ..bench.config.clone() };
        let comm = bench.home.fresh(&config)?;
        let mut bench = Bench {
            comm: &comm,
            config: &config,
            patterns: &mut *bench.patterns,
            stream: None,
            ..*bench
        };
        for round in 0..8 {
            if let Verdict::Failed(why) = far(&mut bench, &mut dice, round)? {
                let asked = algorithm.map_or("chosen", Algorithm::name);
                return Ok(Verdict::Failed(format!("{asked}, round {round}: {why}")));
            }
        }
        comm.destroy()?;
    }
    Ok(Verdict::Passed)
}

fn far(bench: &mut Bench<'_>, dice: &mut Dice, round: usize) -> Result<Verdict> {
    let world = bench.world();
    let all: Vec<Kind> = Kind::all().collect();
    let rooted: Vec<Kind> =
        all.iter().copied().filter(|kind| kind.rooted() && !kind.ragged()).collect();
    let kind = rooted[round % rooted.len()];
    let (mut root, late) = (dice.index(world), dice.index(world));
    let mut menu = Vec::new();
    for call in 0..RUN {
        // One root a round, then a root a call.
        root = if round < rooted.len() { root } else { dice.index(world) };
        let kind = match dice.roll(8) {
            0 if call > RUN / 2 => all[dice.index(all.len())],
            1 => rooted[dice.index(rooted.len())],
            _ => kind,
        };
        let bits = dice.index(12);
        let count = dice.index(1 << bits);
        let plain = Shape::new(kind, Dtype::F32, count, world);
        let shape = Shape { root: u32::try_from(root).unwrap_or(0), ..plain };
        menu.push((bench.filled(&shape, Source::Plain)?, shape));
    }
    if late == bench.me() {
        std::thread::sleep(Duration::from_micros(10 * LATEST_US));
    }
    let outcome = menu.iter_mut().try_for_each(|(case, _)| case.run(bench.comm));
    let ((), menu) = keep_on_error(outcome, menu)?;
    compare(bench, &menu)
}

pub(super) fn any(bench: &mut Bench<'_>) -> Result<Verdict> {
    let (me, world) = (bench.me(), bench.world());
    let kinds: Vec<Kind> = Kind::all().collect();
    let mut dice = Dice(world as u64);
    for round in 0..ROUNDS {
        let mut menu = Vec::new();
        for _ in 0..CALLS {
            let shape = dice.shape(&kinds, world);
            // All have memory that others can map, none has, or some have.
            let mapped = match dice.roll(8) {
                0..3 => true,
                3 => (dice.roll(1 << 16) >> (me % 16)) & 1 == 1,
                _ => false,
            };
            // On a GPU all ranks' buffers must be there.
            let mapped = mapped && bench.comm.config().device == Device::None;
            let source = if mapped { Source::Registered } else { Source::Plain };
            menu.push((bench.filled(&shape, source)?, shape));
        }
        let at_once = dice.roll(4) == 0;
        let lags: Vec<_> = (0..CALLS).map(|_| (dice.index(world), dice.roll(LATEST_US))).collect();
        let outcome = if at_once {
            start_all(bench, &mut menu).and_then(|mut requests| {
                requests.iter_mut().try_for_each(|request| request.wait(None).map(drop))
            })
        } else {
            menu.iter_mut().zip(lags).try_for_each(|((case, _), (late, us))| {
                if late == me && us > LATEST_US / 2 {
                    std::thread::sleep(Duration::from_micros(us));
                }
                case.run(bench.comm)
            })
        };
        let ((), menu) = keep_on_error(outcome, menu)?;
        if let Verdict::Failed(why) = compare(bench, &menu)? {
            return Ok(Verdict::Failed(format!("round {round}: {why}")));
        }
    }
    Ok(Verdict::Passed)
}
