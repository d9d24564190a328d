//! What one of the ranks does: times every algorithm at every point, and makes rows of that.

use std::time::{Duration, Instant};

use unisono::call::Call;
use unisono::config::Config;
use unisono::engine::Reach;
use unisono::plan::Algorithm;
use unisono::tune::Memory;
use unisono::tune::table::{Pick, Place, Row};
use unisono::{Collective, Communicator, Dtype, ReduceOp, Result};

use crate::cli::data::memory::Source;
use crate::cli::data::pattern::{Flavor, Patterns};
use crate::cli::data::shape::{Kind, Shape};
use crate::cli::output;
use crate::cli::perf::measure::{Patterned, median};
use crate::cli::ranks::Link;
use crate::cli::table::bytes as shown;
use crate::cli::tuner::tuner;

/// What is measured.
const COLLECTIVES: [Collective; 8] = [
    Collective::AllReduce,
    Collective::AllGather,
    Collective::ReduceScatter,
    Collective::Broadcast,
    Collective::AllToAll,
    Collective::Reduce,
    Collective::Gather,
    Collective::Scatter,
];
/// Sizes: of the buffer, or of one block.
const SIZES: [u64; 9] =
    [64, 512, 2 << 10, 8 << 10, 32 << 10, 128 << 10, 512 << 10, 2 << 20, 8 << 20];
/// All blocks of a call together are not larger.
const CALL_BYTES_MAX: u64 = 16 << 20;
/// Rounds of each.
const ROUNDS: usize = 7;
/// A round makes as many calls as take about so long, in seconds, and no more than so many.
const ROUND: (f64, f64) = (0.001, 200.0);
/// Who takes so many times as long as the fastest is not looked at again.
const HOPELESS: f64 = 2.5;
/// After the first so many rounds, only those go on that take at most so many times the fastest.
const SHORTLIST: (usize, f64) = (3, 1.2);
/// A row must gain this much, and not be slower in more than so many rounds.
const GAIN: (f64, usize) = (0.05, 1);

/// What was found for one collective.
#[derive(Debug)]
pub(super) struct Series {
    place: Place,
    /// What to take at each size.
    points: Vec<(u64, Pick)>,
    /// The first size there was no time for.
    left_out: Option<u64>,
}

/// Everything there is time for.
///
/// # Errors
/// Whatever ended a call.
pub(super) fn points(comm: &Communicator, link: Link, limit: Duration) -> Result<Vec<Series>> {
    let (start, world) = (Instant::now(), comm.world_size());
    // Where they share no memory ranks do not know that they share a host.
    let (hosts, reach) =
        if link == Link::Tcp { (world, Reach::Messages) } else { (1, Reach::Stages) };
    let place = |collective| Place { collective, ranks: world, hosts, reach };
    let series = |c| Series { place: place(c), points: Vec::new(), left_out: None };
    let mut all = COLLECTIVES.map(series);
    let mut patterns = Patterns::new(1, world as usize);
    for bytes in SIZES {
        for series in &mut all {
            let blocks = if divided(series.place.collective) { u64::from(world) } else { 1 };
            if series.left_out.is_some() || bytes * blocks > CALL_BYTES_MAX {
                continue;
            }
            // All ranks see the end of time at the same point.
            let mut over = [u8::from(start.elapsed() >= limit)];
            comm.all_reduce_in_place(&mut over, ReduceOp::Max)?;
            if over[0] > 0 {
                series.left_out = Some(bytes);
            } else {
                series.points.push((bytes, point(comm, series.place, bytes, &mut patterns)?));
            }
        }
    }
    Ok(all.into())
}

/// Whether every rank has a block of its own.
fn divided(collective: Collective) -> bool {
    use Collective as C;
    !matches!(collective, C::AllReduce | C::Reduce | C::Broadcast)
}

/// One of those that are timed at a point.
struct Timed {
    asked: Option<Algorithm>,
    rounds: Vec<f64>,
}

/// What to take of calls of `bytes`.
fn point(comm: &Communicator, place: Place, bytes: u64, patterns: &mut Patterns) -> Result<Pick> {
    let dtype = Dtype::F32;
    let kind = Kind::Collective(place.collective);
    let count = usize::try_from(bytes / dtype.bytes() as u64).unwrap_or(usize::MAX);
    let shape = Shape::new(kind, dtype, count, comm.world_size() as usize);
    let flavor = if kind.reduces() { Flavor::Exact } else { Flavor::Bits };
    let mut case = Patterned::of(comm, &shape, (flavor, Source::Plain), patterns)?;
    let asked = able(place).into_iter().map(Some);
    let mut all: Vec<Timed> =
        [None].into_iter().chain(asked).map(|asked| Timed { asked, rounds: Vec::new() }).collect();
    // Plans are made and memory is touched in the first call.
    let mut first = Vec::new();
    for timed in &all {
        case.round(timed.asked, 1)?;
        first.push(case.round(timed.asked, 2)?);
    }
    // Every rank has the same figures, so all go on alike.
    let least = first.iter().copied().fold(f64::INFINITY, f64::min);
    let mut times = first.into_iter();
    all.retain(|timed| {
        let time = times.next().unwrap_or(f64::INFINITY);
        timed.asked.is_none() || time <= HOPELESS * least
    });
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "1 to ROUND.1")]
    let calls = (ROUND.0 / least).clamp(1.0, ROUND.1) as u32;
    let mut taken = None;
    for round in 0..ROUNDS {
        if round == SHORTLIST.0 {
            let time = |timed: &Timed| median(&timed.rounds);
            let least = all.iter().map(time).fold(f64::INFINITY, f64::min);
            all.retain(|one| one.asked.is_none() || time(one) <= SHORTLIST.1 * least);
        }
        for turn in 0..all.len() {
            let at = (round + turn) % all.len();
            let timed = &mut all[at];
            timed.rounds.push(case.round(timed.asked, calls)?);
            if timed.asked.is_none() {
                taken = case.taken;
            }
        }
    }
    case.free()?;
    Ok(pick(&all, taken))
}

/// The fastest, if it gains enough over the choice, which is the first and took `taken`.
fn pick(all: &[Timed], taken: Option<Algorithm>) -> Pick {
    let time = |timed: &Timed| median(&timed.rounds);
    let fastest = all.iter().min_by(|a, b| time(a).total_cmp(&time(b)));
    let (Some(choice), Some(fastest)) = (all.first(), fastest) else { return Pick::Model };
    let pairs = || fastest.rounds.iter().zip(&choice.rounds);
    let ratios: Vec<f64> = pairs().map(|(fast, slow)| fast / slow).collect();
    let lost = pairs().filter(|(fast, slow)| fast >= slow).count();
    let gains = median(&ratios) < 1.0 - GAIN.0 && lost <= GAIN.1;
    match fastest.asked {
        Some(algorithm) if gains && taken != Some(algorithm) => Pick::By(algorithm),
        _ => Pick::Model,
    }
}

/// The algorithms that can do it.
fn able(place: Place) -> Vec<Algorithm> {
    let memory = if place.reach == Reach::Messages { Memory::Apart } else { Memory::Given };
    let mut call = Call { count: 1, ..Call::new(place.collective, Dtype::F32) };
    // Input and output are apart.
    call.recv = std::ptr::NonNull::dangling().as_ptr();
    let tuner = tuner(&Config::default(), place.ranks, memory);
    let mut able = tuner.map(|mut tuner| tuner.able(&call, place.reach)).unwrap_or_default();
    able.retain(|&algorithm| algorithm != Algorithm::Hierarchical);
    able
}

/// Prints the rows, and what was left out.
pub(super) fn tell(all: &[Series], link: Link, world: u32) {
    let most = all.iter().filter_map(|series| series.points.last()).map(|&(bytes, _)| bytes).max();
    let name = link.name();
    output::line(format_args!("# {name}, {world} ranks: up to {}", shown(most.unwrap_or(0))));
    for series in all {
        if let Some(bytes) = series.left_out {
            let collective = series.place.collective;
            output::line(format_args!(
                "# left out for lack of time: {collective} of {} and more, {name}, {world} ranks",
                shown(bytes)
            ));
        }
        rows(series).iter().for_each(output::line);
    }
}

/// Neighbours that say the same are one row; between two sizes the limit is their geometric mean.
fn rows(series: &Series) -> Vec<Row> {
    let points = &series.points;
    if points.iter().all(|&(_, pick)| pick == Pick::Model) {
        return Vec::new();
    }
    let mut rows = Vec::new();
    for (at, &(bytes, pick)) in points.iter().enumerate() {
        let limit = match points.get(at + 1) {
            Some(&(_, next)) if next == pick => continue,
            Some(&(next, _)) => (bytes * next).isqrt(),
            // Nothing is known of what was left out.
            None if series.left_out.is_some() => bytes,
            None => u64::MAX,
        };
        rows.push(Row { place: series.place, bytes: limit, pick });
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_must_gain_enough_and_neighbours_are_one() {
        let timed = |asked, time| Timed { asked, rounds: vec![time; 3] };
        let (ring, tree) = (Algorithm::Ring, Algorithm::Tree);
        let measured = |time| [timed(None, 1.0), timed(Some(ring), time), timed(Some(tree), 2.0)];
        assert_eq!(pick(&measured(0.96), None), Pick::Model, "too little");
        assert_eq!(pick(&measured(0.94), None), Pick::By(ring));
        assert_eq!(pick(&measured(0.94), Some(ring)), Pick::Model, "it is what was chosen");
        let mut noisy = measured(0.5);
        noisy[1].rounds = vec![0.5, 1.1, 0.5, 1.1, 0.5];
        noisy[0].rounds = vec![1.0; 5];
        assert_eq!(pick(&noisy, None), Pick::Model, "not in most rounds");

        let place =
            Place { collective: Collective::Reduce, ranks: 2, hosts: 2, reach: Reach::Messages };
        let of = |picks: &[(u64, Pick)], left_out| {
            let all = Series { place, points: picks.to_vec(), left_out };
            rows(&all).iter().map(|row| (row.bytes, row.pick)).collect::<Vec<_>>()
        };
        let (model, ring) = (Pick::Model, Pick::By(ring));
        assert_eq!(of(&[(64, model), (512, model)], None), []);
        let found = of(&[(64, model), (256, ring), (512, ring), (2048, model)], None);
        assert_eq!(found, [(128, model), (1024, ring), (u64::MAX, model)]);
        assert_eq!(of(&[(64, ring), (256, ring)], Some(512)), [(256, ring)]);
    }
}
