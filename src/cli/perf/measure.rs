//! Rounds, and the verification that goes with them.

use std::time::Instant;

use unisono::comm::DeviceStream;
use unisono::plan::Algorithm;
use unisono::{Collective, Communicator, Dtype, ReduceOp, Result};

use super::{Options, able, bus_factor, report};
use crate::cli::data::Case;
use crate::cli::data::memory::Source;
use crate::cli::data::pattern::{Flavor, Patterns};
use crate::cli::data::shape::{Kind, Shape};
use crate::cli::output;

/// What one placement of one size gave.
#[derive(Clone, Copy, Debug)]
pub(super) struct Figure {
    pub(super) in_place: bool,
    pub(super) median_us: f64,
    pub(super) min_us: f64,
    pub(super) algbw: f64,
    pub(super) busbw: f64,
    /// Wrong elements on all ranks; `None` when not checked.
    pub(super) wrong: Option<u64>,
}

/// One size: everything about it but its figures.
#[derive(Clone, Debug)]
pub(super) struct Row {
    /// As asked.
    pub(super) bytes: u64,
    pub(super) shape: Shape,
}

impl Row {
    /// The bytes that a call moves, which times and bandwidths are of.
    pub(super) fn moved(&self, world: u32) -> u64 {
        let parts = if divided(self.shape.kind) { u64::from(world) } else { 1 };
        self.shape.count as u64 * self.shape.dtype.bytes() as u64 * parts
    }
}

/// What all sizes gave together.
#[derive(Debug, Default)]
pub(super) struct Totals {
    pub(super) wrong: u64,
    busbw: f64,
    figures: u32,
}

impl Totals {
    fn add(&mut self, figure: &Figure) {
        self.wrong += figure.wrong.unwrap_or(0);
        self.busbw += figure.busbw;
        self.figures += 1;
    }

    /// The mean bus bandwidth over all rows and placements, in GB/s.
    pub(super) fn average(&self) -> f64 {
        self.busbw / f64::from(self.figures.max(1))
    }
}

/// Everything the options ask for.
///
/// # Errors
/// Whatever ended a call.
pub(super) fn all(comm: &Communicator, options: &Options) -> Result<Totals> {
    let mut totals = Totals::default();
    let mut patterns = Patterns::new(options.seed, comm.world_size() as usize);
    let report = report::Report::new(comm, options);
    let kinds = able::kinds(options, comm.world_size()).unwrap_or_default();
    report.left_out(&kinds);
    for kind in kinds {
        report.begin(kind);
        for row in rows(kind, comm.world_size(), options) {
            if lost(comm)? {
                return Ok(totals);
            }
            let mut figures = Vec::new();
            for &in_place in options.placements() {
                if in_place && !kind.has_in_place() {
                    continue;
                }
                let shape = Shape { in_place, ..row.shape.clone() };
                let figure =
                    time(comm, options, &shape, row.moved(comm.world_size()), &mut patterns)?;
                totals.add(&figure);
                figures.push(figure);
            }
            report.row(&row, &figures);
        }
    }
    Ok(totals)
}

/// Whether rank 0 has nobody to print for any more. Every rank must ask: all end together.
pub(super) fn lost(comm: &Communicator) -> Result<bool> {
    let mut lost = [u8::from(output::is_lost())];
    comm.all_reduce_in_place(&mut lost, ReduceOp::Max)?;
    Ok(lost[0] > 0)
}

/// Every combination of type, operation, root and size that means something.
pub(super) fn rows(kind: Kind, world: u32, options: &Options) -> Vec<Row> {
    let any = |list: Result<Vec<u32>, String>| list.unwrap_or_default();
    let (dtypes, ops) = (options.dtypes(), options.reductions());
    let roots = if kind.rooted() { any(options.roots(world)) } else { vec![0] };
    let mut rows = Vec::new();
    let barrier = kind == Kind::Collective(Collective::Barrier);
    let dtypes = if barrier { vec![Dtype::U8] } else { dtypes.unwrap_or_default() };
    let ops = if kind.reduces() { ops.unwrap_or_default() } else { vec![ReduceOp::Sum] };
    for &dtype in &dtypes {
        for &op in ops.iter().filter(|op| op.supports(dtype)) {
            for &root in &roots {
                let sizes = if barrier { vec![0] } else { options.sizes() };
                rows.extend(sizes.into_iter().map(|bytes| {
                    let count = elements(kind, bytes, dtype.bytes() as u64, world);
                    let shape = Shape::new(kind, dtype, count, world as usize);
                    Row { bytes, shape: Shape { op, root, ..shape } }
                }));
            }
        }
    }
    rows
}

/// Elements of the buffer, or of each rank's block where a size means all blocks: what fits
/// `bytes`, but at least one, so that a row of any size but 0 moves data.
fn elements(kind: Kind, bytes: u64, element: u64, world: u32) -> usize {
    let parts = if divided(kind) { u64::from(world) } else { 1 };
    let fit = bytes / element / parts;
    usize::try_from(fit.max(bytes.min(1))).unwrap_or(usize::MAX)
}

/// Whether a size means the blocks of all ranks together.
fn divided(kind: Kind) -> bool {
    use Collective as C;
    !kind.point_to_point()
        && !matches!(kind, Kind::Collective(C::AllReduce | C::Reduce | C::Broadcast))
}

pub(super) fn calls(options: &Options, bytes: u64) -> u32 {
    match (options.iters, bytes) {
        (0, 0..=65_536) => 500,
        (0, 65_537..=1_048_576) => 100,
        (0, 1_048_577..=16_777_216) => 10,
        (0, _) => 3,
        (given, _) => given,
    }
}

/// One call, laid out and filled, and who makes it.
#[derive(Debug)]
pub(in crate::cli) struct Patterned<'a> {
    comm: &'a Communicator,
    case: Case,
    /// The stream that timed calls are in, on a GPU.
    stream: Option<DeviceStream>,
    /// The algorithm of the last round that asked for none; `None`: the call needed no plan.
    pub(in crate::cli) taken: Option<Algorithm>,
}

impl<'a> Patterned<'a> {
    pub(super) fn new(
        comm: &'a Communicator,
        options: &Options,
        shape: &Shape,
        patterns: &mut Patterns,
    ) -> Result<Self> {
        let flavor = match (shape.kind.reduces(), options.deterministic) {
            (false, _) => Flavor::Bits,
            (true, false) => Flavor::Exact,
            (true, true) => Flavor::Ordered,
        };
        let source = if options.registered { Source::Registered } else { Source::Plain };
        let mut made = Self::of(comm, shape, (flavor, source), patterns)?;
        if !options.wait && !options.registered {
            made.stream = comm.device_stream()?;
        }
        Ok(made)
    }

    /// A case with inputs of `flavor` in memory of `source`.
    ///
    /// # Errors
    /// No memory.
    pub(in crate::cli) fn of(
        comm: &'a Communicator,
        shape: &Shape,
        (flavor, source): (Flavor, Source),
        patterns: &mut Patterns,
    ) -> Result<Self> {
        let mut case = Case::new(shape, comm, flavor, source)?;
        case.fill(patterns, 0)?;
        Ok(Self { comm, case, stream: None, taken: None })
    }

    /// A round of `calls`, by the algorithm `asked` for: the slowest rank's mean time, in seconds.
    ///
    /// # Errors
    /// Whatever ended a call.
    pub(in crate::cli) fn round(&mut self, asked: Option<Algorithm>, calls: u32) -> Result<f64> {
        let comm = self.comm;
        comm.barrier()?;
        self.prefer(asked)?;
        comm.take_chosen();
        let mine = self.calls(calls)? / f64::from(calls) / self.case.kind().trips();
        self.taken = comm.take_chosen();
        self.prefer(None)?;
        let mut slowest = [0.0];
        comm.all_reduce(&[mine], &mut slowest, ReduceOp::Max)?;
        Ok(slowest[0])
    }

    /// How long `calls` calls take, in seconds: by the device's clock where they are in a stream.
    fn calls(&mut self, calls: u32) -> Result<f64> {
        let Some(stream) = &self.stream else {
            let start = Instant::now();
            for _ in 0..calls {
                self.case.run(self.comm)?;
            }
            return Ok(start.elapsed().as_secs_f64());
        };
        // SAFETY: the stream stays until it is taken back below, and the buffers as long.
        unsafe { self.comm.set_stream(Some(stream.raw()))? };
        stream.start()?;
        for _ in 0..calls {
            self.case.run(self.comm)?;
        }
        let seconds = stream.stop()?;
        // SAFETY: no stream is given.
        unsafe { self.comm.set_stream(None)? };
        Ok(seconds)
    }

    /// As [`verify`], by the algorithm `asked` for.
    pub(super) fn verify(
        &mut self,
        asked: Option<Algorithm>,
        options: &Options,
        patterns: &mut Patterns,
    ) -> Result<Option<u64>> {
        self.prefer(asked)?;
        let wrong = verify(self.comm, options, &mut self.case, patterns)?;
        self.prefer(None)?;
        Ok(wrong)
    }

    /// What the settings say holds again where nothing is asked for.
    fn prefer(&self, asked: Option<Algorithm>) -> Result<()> {
        self.comm.prefer(asked.or_else(|| self.comm.config().algorithm))
    }

    /// Gives registered memory back.
    ///
    /// # Errors
    /// It was not the communicator's.
    pub(in crate::cli) fn free(self) -> Result<()> {
        self.case.free(self.comm)
    }
}

/// The middle one of the figures; of an even number, the upper of the two in the middle.
pub(in crate::cli) fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn time(
    comm: &Communicator,
    options: &Options,
    shape: &Shape,
    moved: u64,
    patterns: &mut Patterns,
) -> Result<Figure> {
    let mut case = Patterned::new(comm, options, shape, patterns)?;
    let calls = calls(options, moved);
    let mut rounds = Vec::new();
    for round in 0..options.warmup + options.rounds {
        let slowest = case.round(None, calls)?;
        if round >= options.warmup {
            rounds.push(slowest);
        }
    }
    let wrong = case.verify(None, options, patterns)?;
    case.free()?;
    let least = rounds.iter().copied().fold(f64::INFINITY, f64::min);
    let median = median(&rounds);
    #[expect(clippy::cast_precision_loss, reason = "a figure to show")]
    let algbw = moved as f64 / median / 1e9;
    Ok(Figure {
        in_place: shape.in_place,
        median_us: median * 1e6,
        min_us: least * 1e6,
        algbw,
        busbw: algbw * bus_factor(shape.kind, comm.world_size()),
        wrong,
    })
}

/// Wrong elements of all ranks over as many calls as are to be checked, each with other data.
fn verify(
    comm: &Communicator,
    options: &Options,
    case: &mut Case,
    patterns: &mut Patterns,
) -> Result<Option<u64>> {
    if options.check == 0 {
        return Ok(None);
    }
    let mut wrong = 0;
    for call in 0..options.check as usize {
        case.fill(patterns, 1 + 131 * call)?;
        comm.barrier()?;
        case.run(comm)?;
        wrong += case.wrong(patterns)?;
    }
    let mut all = [0];
    comm.all_reduce(&[wrong], &mut all, ReduceOp::Sum)?;
    Ok(Some(all[0]))
}
