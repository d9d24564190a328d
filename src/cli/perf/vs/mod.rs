//! `--vs`: nccl-tests' programs, or NCCL through this program, in turn with ours.
//!
//! Each turn is a process on either side that goes through all sizes, so that a machine that gets
//! slower is slower for both. [`side`] writes the two command lines, [`child`] runs them, [`parse`]
//! reads what they print, which is not to be trusted, and [`show`] prints medians over the turns.
//!
//! nccl-tests numbers the GPUs of a process one after the other from `NCCL_TESTS_DEVICE`, so its
//! ranks share a GPU only where each is a process, which takes a build with MPI. It times a loop of
//! calls by the clock and takes the mean of the ranks; ours is the device's clock and the slowest
//! rank.

mod child;
mod parse;
mod show;
mod side;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use unisono::config::Family;

use super::Options as Perf;
use super::measure::median;
use crate::cli::data::shape::Kind;
use crate::cli::{fail, output, ranks, usage};
use parse::{Cell, Line};

/// What `--vs` takes.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct Versus {
    /// Run nccl-tests' programs in this folder in turn with ours, or, for `nccl`, NCCL through this
    /// program, and print both, size by size. Of nccl-tests: 1 rank; several with --device
    /// local_rank, which is its `-g N`; several on one GPU with --mpirun. DIR has 20 calls a size
    /// and one round a turn, if --iters says nothing else
    #[arg(long, value_name = "DIR|nccl", requires = "device", value_parser = parse_against)]
    #[arg(conflicts_with_all = ["sweep_algos", "min_bw", "kernels"])]
    pub(super) vs: Option<Against>,
    /// With --vs: how often each side runs; figures are the medians
    #[arg(long, requires = "vs", default_value_t = 3)]
    #[arg(value_parser = clap::value_parser!(u32).range(3..=1000))]
    turns: u32,
    /// With --vs: end a side that takes longer for a turn, in seconds
    #[arg(long, requires = "vs", default_value_t = 300)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=86_400))]
    turn_timeout: u64,
    /// With --vs DIR: nccl-tests was built with MPI; `mpirun` starts its ranks, all on one GPU
    #[arg(long, requires = "vs")]
    mpirun: bool,
}

/// What ours is compared with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Against {
    /// nccl-tests' programs in this folder.
    Tests(PathBuf),
    /// This program on the NCCL backend.
    Nccl,
}

impl Against {
    fn name(&self) -> &'static str {
        match self {
            Self::Tests(_) => "nccl-tests",
            Self::Nccl => "nccl",
        }
    }
}

fn parse_against(text: &str) -> Result<Against, String> {
    match text {
        "" => Err("a folder, or nccl".to_owned()),
        "nccl" => Ok(Against::Nccl),
        folder => Ok(Against::Tests(folder.into())),
    }
}

/// One size on both sides.
#[derive(Clone, Debug)]
struct Pair {
    /// The size asked for.
    bytes: u64,
    theirs: Line,
    ours: Line,
}

impl Pair {
    /// Their time by ours out of place, or in place: above 1 ours is faster. `None` where one of
    /// them is missing, or where they call for nothing.
    fn ratio(&self, in_place: bool) -> Option<f64> {
        let (theirs, ours) = (self.theirs.places[usize::from(in_place)]?, self.ours_at(in_place)?);
        let comparable = self.theirs.bytes > 0 && theirs.time_us > 0.0 && ours.time_us > 0.0;
        comparable.then(|| theirs.time_us / ours.time_us)
    }

    fn ours_at(&self, in_place: bool) -> Option<Cell> {
        self.ours.places[usize::from(in_place)]
    }

    fn wrong(&self) -> u64 {
        let cells = self.theirs.places.iter().chain(&self.ours.places).flatten();
        cells.filter_map(|cell| cell.wrong).fold(0, u64::saturating_add)
    }
}

/// What a collective's sizes come to.
#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    rows: u32,
    faster: u32,
    logarithms: f64,
    wrong: u64,
}

impl Sum {
    fn of(pairs: &[Pair], places: &[bool]) -> Self {
        let mut sum = Self::default();
        for pair in pairs {
            sum.wrong = sum.wrong.saturating_add(pair.wrong());
            for ratio in places.iter().filter_map(|&in_place| pair.ratio(in_place)) {
                sum.rows += 1;
                sum.faster += u32::from(ratio > 1.0);
                sum.logarithms += ratio.ln();
            }
        }
        sum
    }

    /// The geometric mean of the ratios; `None` when there are none.
    fn mean(&self) -> Option<f64> {
        (self.rows > 0).then(|| (self.logarithms / f64::from(self.rows)).exp())
    }
}

/// Runs the subcommand with `--vs`.
pub(super) fn main(options: &Perf, against: &Against) -> ExitCode {
    if ranks::is_rank() {
        return usage("--vs starts ranks itself: call it without a launcher");
    }
    let kinds = match validate(options, against) {
        Ok(kinds) => kinds,
        Err(text) => return usage(text),
    };
    let left: Vec<&str> = options
        .kinds()
        .iter()
        .filter(|kind| !kinds.contains(kind))
        .map(|kind| kind.name())
        .collect();
    if !left.is_empty() && !options.json {
        output::line(format_args!("# left out, not in nccl-tests: {}", left.join(", ")));
    }
    let mut code = ExitCode::SUCCESS;
    for kind in kinds {
        match compare(options, against, kind) {
            Ok(sum) if sum.wrong == 0 => {}
            Ok(sum) => code = fail(format_args!("{}: {} wrong elements", kind.name(), sum.wrong)),
            Err(text) => code = fail(text),
        }
        if output::is_lost() {
            break;
        }
    }
    code
}

/// What can be compared of what is asked for.
fn validate(options: &Perf, against: &Against) -> Result<Vec<Kind>, String> {
    options.validate(options.ranks)?;
    if options.begin == 0 {
        return Err("--vs compares sizes from 1 byte on".to_owned());
    }
    if options.dtypes()?.len() > 1 || options.reductions()?.len() > 1 || options.root == "all" {
        return Err("--vs compares one type, one reduction and one root at a time".to_owned());
    }
    let Against::Tests(folder) = against else {
        if options.backend == Some(Family::Nccl) || options.versus.mpirun {
            let text = "--vs nccl compares another backend with NCCL through this program";
            return Err(text.to_owned());
        }
        return Ok(options.kinds().to_vec());
    };
    if options.ranks > 1 && !options.has_gpu_each() && !options.versus.mpirun {
        return Err(format!(
            "nccl-tests gives each of the {} ranks of a process a GPU of its own: --device \
             local_rank does the same here, --mpirun has ranks of an MPI build share one, --vs \
             nccl compares with NCCL through this program",
            options.ranks
        ));
    }
    side::dtype(options.dtypes()?[0])?;
    let reduction = options.reductions()?[0];
    let mut kinds = options.kinds().to_vec();
    kinds.retain(|&kind| side::program(kind).is_some());
    if kinds.is_empty() {
        return Err(format!("nccl-tests has no program for {}", options.kinds()[0].name()));
    }
    if kinds.iter().any(|kind| kind.reduces()) {
        side::reduction(reduction)?;
    }
    if !folder.is_dir() {
        return Err(format!("--vs: there is no folder {}", folder.display()));
    }
    Ok(kinds)
}

/// All turns of one collective, printed.
fn compare(options: &Perf, against: &Against, kind: Kind) -> Result<Sum, String> {
    let sizes = options.sizes();
    let theirs = side::theirs(options, against, kind)?;
    let ours = side::ours(options, against, kind)?;
    let limit = Duration::from_secs(options.versus.turn_timeout);
    let (mut all_theirs, mut all_ours) = (Vec::new(), Vec::new());
    for _ in 0..options.versus.turns {
        all_theirs.push(theirs.turn(limit, &sizes)?);
        all_ours.push(ours.turn(limit, &sizes)?);
    }
    let rows = sizes.iter().enumerate().map(|(at, &bytes)| Pair {
        bytes,
        theirs: middle(&all_theirs, at),
        ours: middle(&all_ours, at),
    });
    let pairs: Vec<Pair> = rows.collect();
    let wanted = |in_place: &bool| match in_place {
        false => !options.in_place || !kind.has_in_place(),
        true => !options.out_of_place && kind.has_in_place(),
    };
    let places: Vec<bool> = [false, true].into_iter().filter(wanted).collect();
    let sum = Sum::of(&pairs, &places);
    show::Show { options, against, kind, theirs: &theirs.title, places: &places }.all(&pairs, &sum);
    Ok(sum)
}

/// The medians of row `at` over all turns; wrong elements of all turns together.
fn middle(turns: &[Vec<Line>], at: usize) -> Line {
    let lines: Vec<&Line> = turns.iter().filter_map(|lines| lines.get(at)).collect();
    let place = |place: usize| {
        let cells: Vec<Cell> = lines.iter().filter_map(|line| line.places[place]).collect();
        let over = |of: fn(&Cell) -> f64| median(&cells.iter().map(of).collect::<Vec<_>>());
        let checked = cells.iter().filter_map(|cell| cell.wrong);
        let wrong = checked.reduce(u64::saturating_add);
        let cell = Cell { time_us: over(|c| c.time_us), busbw: over(|c| c.busbw), wrong };
        (!cells.is_empty()).then_some(cell)
    };
    let bytes = lines.first().map_or(0, |line| line.bytes);
    Line { bytes, places: [place(0), place(1)] }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(bytes: u64, times: [f64; 2], wrong: u64) -> Line {
        let cell = |time_us| Some(Cell { time_us, busbw: 1.0, wrong: Some(wrong) });
        Line { bytes, places: times.map(cell) }
    }

    #[test]
    fn medians_are_over_turns_and_wrong_elements_add_up() {
        let turn = |time, wrong| vec![line(8, [time, 2.0 * time], wrong)];
        let middle = middle(&[turn(1.0, 0), turn(9.0, 3), turn(2.0, 0)], 0);
        let [Some(apart), Some(within)] = middle.places else { panic!("{middle:?}") };
        assert_eq!((apart.time_us, within.time_us, apart.wrong), (2.0, 4.0, Some(3)));
    }

    #[test]
    fn ratios_above_one_are_ours_and_rows_of_nothing_do_not_count() {
        let pair = |bytes, theirs, ours| Pair {
            bytes: 8,
            theirs: line(bytes, [theirs, theirs], 0),
            ours: line(8, [ours, ours], 0),
        };
        let pairs = [pair(8, 8.0, 2.0), pair(8, 1.0, 1.0), pair(0, 5.0, 1.0), pair(8, 0.0, 1.0)];
        let sum = Sum::of(&pairs, &[false]);
        assert_eq!((sum.rows, sum.faster, sum.wrong), (2, 1, 0));
        assert!((sum.mean().expect("rows") - 2.0).abs() < 1e-12, "{sum:?}");
        assert_eq!(
            (Sum::of(&[], &[true]).mean(), parse_against("")),
            (None, Err("a folder, or nccl".into()))
        );
    }
}
