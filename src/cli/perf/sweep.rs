//! `--sweep-algos`: every algorithm that can do a call, beside the one that is chosen for it.
//!
//! All are timed in one run on the same buffers, in turn in every round, so that a machine that
//! gets slower is slower for all of them. How far the choice is behind another algorithm is the
//! median, over the rounds, of the ratio of their times in that round.

use unisono::plan::Algorithm;
use unisono::{Communicator, Result};

use super::measure::{self, Patterned, Row, Totals};
use super::{Options, able, report::Report};
use crate::cli::data::pattern::Patterns;
use crate::cli::data::shape::{Kind, Shape};

/// What a call that needs no plan is called.
pub(super) const FLAT: &str = "flat";

/// The figures of one algorithm, or of the choice.
#[derive(Clone, Debug)]
pub(super) struct Timed {
    /// Asked for; `None`: the tuner chose.
    asked: Option<Algorithm>,
    /// What carried the call out, where nothing was asked for; `None`: it needed no plan.
    taken: Option<Algorithm>,
    /// Each round's mean time of a call, in seconds.
    rounds: Vec<f64>,
    /// Wrong elements on all ranks; `None` when not checked.
    pub(super) wrong: Option<u64>,
}

impl Timed {
    fn new(asked: Option<Algorithm>) -> Self {
        Self { asked, taken: asked, rounds: Vec::new(), wrong: None }
    }

    /// Whether this is what the tuner chose.
    pub(super) fn chosen(&self) -> bool {
        self.asked.is_none()
    }

    pub(super) fn name(&self) -> &'static str {
        self.taken.map_or(FLAT, Algorithm::name)
    }

    pub(super) fn median_us(&self) -> f64 {
        measure::median(&self.rounds) * 1e6
    }

    pub(super) fn min_us(&self) -> f64 {
        self.rounds.iter().copied().fold(f64::INFINITY, f64::min) * 1e6
    }

    /// How much longer than `other` it takes, in percent; below 0: it is faster.
    fn behind(&self, other: &Self) -> f64 {
        let ratios: Vec<f64> = self.rounds.iter().zip(&other.rounds).map(|(a, b)| a / b).collect();
        (measure::median(&ratios) - 1.0) * 100.0
    }
}

/// The figures of one size: the choice first.
#[derive(Clone, Debug)]
pub(super) struct Sweep {
    pub(super) all: Vec<Timed>,
    /// Which of them is the fastest.
    pub(super) fastest: usize,
    /// How much longer than the fastest the choice takes, in percent.
    pub(super) behind: f64,
}

impl Sweep {
    fn new(all: Vec<Timed>) -> Self {
        let time = |at: &usize| all[*at].median_us();
        let fastest = (0..all.len()).min_by(|a, b| time(a).total_cmp(&time(b))).unwrap_or(0);
        let behind = all[0].behind(&all[fastest]).max(0.0);
        Self { all, fastest, behind }
    }
}

/// Everything the options ask for.
///
/// # Errors
/// Whatever ended a call.
pub(super) fn all(comm: &Communicator, options: &Options) -> Result<Totals> {
    let mut totals = Totals::default();
    let world = comm.world_size();
    let mut patterns = Patterns::new(options.seed, world as usize);
    let report = Report::new(comm, options);
    let mut worst: Option<(f64, Kind, Row)> = None;
    for &kind in options.kinds() {
        let candidates = candidates(options, kind, world);
        if candidates.is_empty() {
            report.left_out_of_sweep(kind);
            continue;
        }
        report.begin_sweep(kind, &candidates);
        for row in measure::rows(kind, world, options) {
            if measure::lost(comm)? {
                return Ok(totals);
            }
            let shape = Shape { in_place: options.in_place, ..row.shape.clone() };
            let row = Row { shape, ..row };
            let sweep = time(comm, options, &row, &candidates, &mut patterns)?;
            sweep.all.iter().for_each(|timed| totals.wrong += timed.wrong.unwrap_or(0));
            report.sweep(&row, &sweep, &candidates);
            if worst.as_ref().is_none_or(|(behind, ..)| sweep.behind > *behind) {
                worst = Some((sweep.behind, kind, row));
            }
        }
    }
    report.end_sweep(worst.as_ref());
    Ok(totals)
}

/// The algorithms that do every call asked for of `kind`; none where there is nothing to choose.
pub(super) fn candidates(options: &Options, kind: Kind, world: u32) -> Vec<Algorithm> {
    if kind.point_to_point() || options.in_place && !kind.has_in_place() {
        return Vec::new();
    }
    able::every(options, kind, world).unwrap_or_default()
}

fn time(
    comm: &Communicator,
    options: &Options,
    row: &Row,
    candidates: &[Algorithm],
    patterns: &mut Patterns,
) -> Result<Sweep> {
    let mut case = Patterned::new(comm, options, &row.shape, patterns)?;
    let calls = measure::calls(options, row.moved(comm.world_size()));
    let choice = std::iter::once(Timed::new(None));
    let asked = candidates.iter().map(|&algorithm| Timed::new(Some(algorithm)));
    let mut all: Vec<Timed> = choice.chain(asked).collect();
    for round in 0..options.warmup + options.rounds {
        // Who comes first differs from round to round.
        for turn in 0..all.len() {
            let at = (round as usize + turn) % all.len();
            let timed = &mut all[at];
            let slowest = case.round(timed.asked, calls)?;
            if round >= options.warmup {
                timed.rounds.push(slowest);
            }
            if timed.asked.is_none() {
                timed.taken = case.taken;
            }
        }
    }
    for timed in &mut all {
        timed.wrong = case.verify(timed.asked, options, patterns)?;
    }
    case.free()?;
    Ok(Sweep::new(all))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_choice_is_compared_round_by_round() {
        // The machine gets twice as slow; the choice takes 10 % more than doubling throughout.
        let timed = |asked, rounds: [f64; 3]| Timed { rounds: rounds.into(), ..Timed::new(asked) };
        let choice = timed(None, [1.1, 1.65, 2.2]);
        let doubling = timed(Some(Algorithm::Doubling), [1.0, 1.5, 2.0]);
        let ring = timed(Some(Algorithm::Ring), [3.0, 3.0, 3.0]);
        let sweep = Sweep::new(vec![choice.clone(), ring.clone(), doubling]);
        assert_eq!((sweep.fastest, sweep.all[2].name()), (2, "doubling"));
        assert!((sweep.behind - 10.0).abs() < 1e-9, "{}", sweep.behind);
        let sweep = Sweep::new(vec![choice, ring]);
        assert_eq!((sweep.fastest, sweep.behind, sweep.all[0].name()), (0, 0.0, FLAT));
    }
}
