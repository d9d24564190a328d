//! `unisono perf --kernels`: the bandwidth of the CUDA kernels beside that of copies on the GPU.
//!
//! A round times a copy and then each kernel, many launches back to back by the events of a stream.
//! Bandwidths are bytes read and written by time; a ratio is the median, over the rounds, of that
//! to the copy in the same round, so that a clock that goes down goes down for both.

use std::process::ExitCode;

use serde_json::json;
use unisono::comm::{DeviceKernels, Room};
use unisono::config::Config;
use unisono::kernel::cuda::trial::{Random, fill};
use unisono::kernel::cuda::{DeviceConvert, DeviceFold, DeviceRound, DeviceSource, Launch};
use unisono::kernel::{Form, Stage};
use unisono::types::{Dtype, ReduceOp};
use unisono::{Code, Error, Result};

use super::Options;
use super::measure::median;
use crate::cli::{output, table};

/// The share of the copy's bandwidth that kernels are to have.
const TARGET: f64 = 0.92;

/// The types that are measured.
const TYPES: [Dtype; 5] = [Dtype::F32, Dtype::Bf16, Dtype::F16, Dtype::F8E4M3, Dtype::F8E5M2];

/// How many sources folds have.
const SOURCES: [usize; 3] = [2, 4, 8];

/// Buffers of a size's bytes: the most sources, and a target.
const BUFFERS: u64 = 9;

/// Buffers begin at a multiple of this.
const LINE: u64 = 256;

/// Bytes that one round of one row moves at least, so that starting it is nothing beside them.
const ROUND_BYTES: u64 = 2 << 30;

/// What is measured.
#[derive(Clone, Copy, Debug)]
enum Row {
    Copy,
    /// So many sources to one target.
    Fold(Dtype, usize),
    /// From `f32`, to nearest.
    Narrow(Dtype),
    /// From `f32`, at random.
    Round(Dtype),
    /// To `f32`.
    Widen(Dtype),
    /// One native form to the same, divided.
    Finish(Dtype),
}

impl Row {
    fn all() -> Vec<Self> {
        let folds = TYPES.iter().flat_map(|&dtype| SOURCES.map(|n| Self::Fold(dtype, n)));
        let small = TYPES.iter().filter(|dtype| **dtype != Dtype::F32);
        let converts =
            small.flat_map(|&dtype| [Self::Narrow(dtype), Self::Round(dtype), Self::Widen(dtype)]);
        let rest = [Self::Finish(Dtype::F32)];
        [Self::Copy].into_iter().chain(folds).chain(rest).chain(converts).collect()
    }

    fn name(self) -> String {
        match self {
            Self::Copy => "copy".to_owned(),
            Self::Fold(_, sources) => format!("sum of {sources}"),
            Self::Narrow(dtype) => format!("f32 to {dtype}"),
            Self::Round(dtype) => format!("f32 to {dtype}, stochastic"),
            Self::Widen(dtype) => format!("{dtype} to f32"),
            Self::Finish(_) => "divided".to_owned(),
        }
    }

    fn dtype(self) -> Option<Dtype> {
        match self {
            Self::Copy => None,
            Self::Fold(dtype, _)
            | Self::Narrow(dtype)
            | Self::Round(dtype)
            | Self::Widen(dtype)
            | Self::Finish(dtype) => Some(dtype),
        }
    }

    /// Elements of a size's bytes: those of the wider side.
    fn count(self, bytes: u64) -> u64 {
        match self {
            Self::Copy => bytes,
            Self::Fold(dtype, _) | Self::Finish(dtype) => bytes / dtype.bytes() as u64,
            Self::Narrow(_) | Self::Round(_) | Self::Widen(_) => bytes / 4,
        }
    }

    /// Bytes read and written for a size.
    fn moved(self, bytes: u64) -> u64 {
        let count = self.count(bytes);
        let size = self.dtype().map_or(1, Dtype::bytes) as u64;
        match self {
            Self::Copy | Self::Finish(_) => 2 * count * size,
            Self::Fold(_, sources) => (sources as u64 + 1) * count * size,
            Self::Narrow(_) | Self::Round(_) | Self::Widen(_) => count * (4 + size),
        }
    }

    /// The launch; `None` of a copy.
    fn launch(self, memory: &Room, bytes: u64, sms: u32) -> Result<Option<Launch>> {
        let stride = bytes.next_multiple_of(LINE);
        let at = |index: u64| memory.address() + index * stride;
        let (target, count) = (at(0), self.count(bytes));
        let convert = |dtype, from, to, stage| {
            let source = DeviceSource { at: at(1), form: from };
            let op = ReduceOp::Avg;
            DeviceConvert { dtype, op, source, target, target_form: to, count, stage }.launch(sms)
        };
        let (native, wide) = (Form::Native, Form::Wide);
        match self {
            Self::Copy => return Ok(None),
            Self::Fold(dtype, sources) => {
                let source = |index| DeviceSource { at: at(index), form: native };
                let operands: Vec<DeviceSource> = (1..=sources as u64).map(source).collect();
                let fold = DeviceFold {
                    dtype,
                    op: ReduceOp::Sum,
                    sources: &operands,
                    factors: None,
                    targets: &[target],
                    target_form: native,
                    count,
                    // As the last kernel of a call has it.
                    stage: Stage::Finish { ranks: 2 },
                };
                fold.launch(sms)
            }
            Self::Narrow(dtype) => convert(dtype, wide, native, Stage::Plain),
            Self::Widen(dtype) => convert(dtype, native, wide, Stage::Plain),
            Self::Finish(dtype) => convert(dtype, native, native, Stage::Finish { ranks: 3 }),
            Self::Round(dtype) => {
                DeviceRound { dtype, source: at(1), target, count, seed: 1, first: 0 }.launch(sms)
            }
        }
        .map(Some)
    }
}

/// What one row of one size gave.
#[derive(Clone, Debug)]
struct Timed {
    row: Row,
    bytes: u64,
    moved: u64,
    /// Each round's time of one launch, in seconds.
    rounds: Vec<f64>,
    /// The median of the copy's time for its bytes by this one's.
    ratio: f64,
}

impl Timed {
    fn seconds(&self) -> f64 {
        median(&self.rounds)
    }

    /// Bytes read and written, in GB/s.
    fn bandwidth(&self) -> f64 {
        rate(self.moved, self.seconds()) / 1e9
    }

    /// Each round's bandwidth by that of the copy in the same round.
    fn beside(&self, copy: &Self) -> f64 {
        let pairs = self.rounds.iter().zip(&copy.rounds);
        let ratios: Vec<f64> =
            pairs.map(|(own, copy_s)| rate(self.moved, *own) / rate(copy.moved, *copy_s)).collect();
        median(&ratios)
    }
}

#[expect(clippy::cast_precision_loss, reason = "a figure to be read")]
fn rate(bytes: u64, seconds: f64) -> f64 {
    bytes as f64 / seconds
}

/// Runs `unisono perf --kernels` on this device.
pub(super) fn main(options: &Options, device: u32) -> ExitCode {
    if options.begin > options.end {
        let (begin, end) = (options.begin, options.end);
        return crate::cli::usage(format_args!(
            "perf: the smallest size {begin} is above the largest {end}"
        ));
    }
    // What a round's last elements are made of would be nothing.
    if options.begin < 16 {
        return crate::cli::usage("perf: --kernels measures 16 bytes and more");
    }
    match measure(options, device) {
        Ok(timed) => verdict(options, &timed),
        Err(error) => crate::cli::fail(format_args!("perf: {error}")),
    }
}

fn measure(options: &Options, number: u32) -> Result<Vec<Timed>> {
    let config = Config::from_env()?;
    let mut device = DeviceKernels::open(&config, number)?;
    let free = device.free_bytes()?;
    let needed = |bytes: u64| BUFFERS.saturating_mul(bytes.next_multiple_of(LINE));
    // What the driver and other programs take meanwhile stays theirs.
    let most = free / 16 * 15;
    let (sizes, large): (Vec<u64>, Vec<u64>) =
        options.sizes().into_iter().partition(|&bytes| needed(bytes) <= most);
    let Some(&last) = sizes.last() else {
        let text = format!(
            "{BUFFERS} buffers of {} bytes, and device {number} has {free} left: give a smaller \
             size by -b and -e",
            options.begin
        );
        return Err(Error::new(Code::OutOfMemory, text));
    };
    let memory = device.room(usize::try_from(needed(last)).unwrap_or(usize::MAX))?;
    let mut numbers = vec![0; memory.bytes().min(4 << 20)];
    fill(&mut Random::new(options.seed), Dtype::U8, &mut numbers);
    device.fill(&memory, &numbers)?;
    begin(options, &device, &large);
    let mut all = Vec::new();
    for bytes in sizes {
        if output::is_lost() {
            break;
        }
        let timed = time(options, &mut device, &memory, bytes)?;
        timed.iter().for_each(|one| show(options, one));
        all.extend(timed);
    }
    Ok(all)
}

/// Times every row of one size, in turn in each round.
fn time(
    options: &Options,
    device: &mut DeviceKernels,
    memory: &Room,
    bytes: u64,
) -> Result<Vec<Timed>> {
    let sms = device.processors();
    let mut all = Vec::new();
    for row in Row::all() {
        let timed = Timed { row, bytes, moved: row.moved(bytes), rounds: Vec::new(), ratio: 1.0 };
        all.push((timed, row.launch(memory, bytes, sms)?));
    }
    for round in 0..options.warmup + options.rounds {
        for (timed, launch) in &mut all {
            let calls = match options.iters {
                0 => (ROUND_BYTES / timed.moved.max(1)).clamp(1, 50),
                calls => u64::from(calls),
            };
            device.start()?;
            for _ in 0..calls {
                enqueue(device, memory, bytes, launch.as_ref())?;
            }
            let seconds = device.stop()? / f64::from(u32::try_from(calls).unwrap_or(u32::MAX));
            if round >= options.warmup {
                timed.rounds.push(seconds);
            }
        }
    }
    let mut timed: Vec<Timed> = all.into_iter().map(|(timed, _)| timed).collect();
    let copy = timed[0].clone();
    timed.iter_mut().skip(1).for_each(|one| one.ratio = one.beside(&copy));
    Ok(timed)
}

fn enqueue(
    device: &mut DeviceKernels,
    memory: &Room,
    bytes: u64,
    launch: Option<&Launch>,
) -> Result<()> {
    let (target, stride) = (memory.address(), bytes.next_multiple_of(LINE));
    let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
    // SAFETY: the memory holds all buffers of this size, and lives until the clock is stopped,
    // which waits for the stream; where that fails nothing is enqueued any more, and CUDA waits for
    // what is before it takes memory back.
    unsafe {
        match launch {
            Some(launch) => device.launch(launch),
            None => device.copy(target, target + stride, bytes),
        }
    }
}

/// The lines above the table.
fn begin(options: &Options, device: &DeviceKernels, large: &[u64]) {
    if options.json {
        return;
    }
    output::line(format_args!("# {}", device.describe()));
    output::line(format_args!(
        "# medians of {} rounds; bandwidth: bytes read and written by time; ratio: to the copy of \
         that size",
        options.rounds
    ));
    if !large.is_empty() {
        let names: Vec<String> = large.iter().map(|&bytes| table::bytes(bytes)).collect();
        output::line(format_args!("# left out, for want of memory: {}", names.join(", ")));
    }
    output::line(format_args!(
        "#{:>12}{:>9}  {:<24}{:>12}{:>12}{:>8}",
        "size", "type", "kernel", "time", "bandwidth", "ratio"
    ));
    output::line(format_args!("#{:>12}{:>9}  {:<24}{:>12}{:>12}", "(B)", "", "", "(us)", "(GB/s)"));
}

fn show(options: &Options, timed: &Timed) {
    let (row, seconds) = (timed.row, timed.seconds());
    let dtype = row.dtype().map(Dtype::name);
    let is_copy = matches!(row, Row::Copy);
    if options.json {
        output::line(json!({
            "kernel": row.name(),
            "dtype": dtype,
            "bytes": timed.bytes,
            "moved": timed.moved,
            "median_us": seconds * 1e6,
            "bandwidth": timed.bandwidth(),
            "ratio": if is_copy { None } else { Some(timed.ratio) },
        }));
        return;
    }
    let ratio = if is_copy { String::new() } else { format!("{:.3}", timed.ratio) };
    let line = format!(
        "{:>13}{:>9}  {:<24}{:>12.2}{:>12.1}{ratio:>8}",
        timed.bytes,
        dtype.unwrap_or(""),
        row.name(),
        seconds * 1e6,
        timed.bandwidth(),
    );
    output::line(line.trim_end());
}

/// The closing line; the exit status.
fn verdict(options: &Options, all: &[Timed]) -> ExitCode {
    let kernels = || all.iter().filter(|timed| !matches!(timed.row, Row::Copy));
    let (rows, least) = (kernels().count(), options.min_ratio.unwrap_or(TARGET));
    let reached = kernels().filter(|timed| timed.ratio >= TARGET).count();
    let lowest = kernels().min_by(|a, b| a.ratio.total_cmp(&b.ratio));
    let worst = lowest.map_or(f64::NAN, |timed| timed.ratio);
    if options.json {
        output::line(
            json!({ "rows": rows, "target": TARGET, "reached": reached, "lowest": worst }),
        );
    } else {
        output::line(format_args!(
            "{reached} of {rows} rows have {TARGET} of the copy's bandwidth or more, the target; \
             the lowest has {worst:.3}"
        ));
    }
    // What is no number is not enough.
    let enough = |timed: &&Timed| timed.ratio >= least;
    let low: Vec<&Timed> = kernels().filter(|timed| !enough(timed)).collect();
    if options.min_ratio.is_none() || low.is_empty() {
        return ExitCode::SUCCESS;
    }
    crate::cli::fail(format_args!("{} of {rows} rows have less than {least}", low.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_those_read_and_written() {
        assert_eq!(Row::Copy.moved(1 << 20), 2 << 20);
        assert_eq!(Row::Fold(Dtype::F16, 4).moved(1 << 20), 5 << 20);
        assert_eq!(Row::Narrow(Dtype::F8E4M3).moved(4 << 20), 5 << 20);
        assert_eq!(Row::Widen(Dtype::Bf16).moved(4 << 20), 6 << 20);
        assert_eq!(Row::all().len(), 1 + 15 + 1 + 12);
    }

    #[test]
    fn a_ratio_is_that_to_the_copy_of_the_same_round() {
        let timed = |row, moved, rounds: [f64; 3]| Timed {
            row,
            bytes: 100,
            moved,
            rounds: rounds.into(),
            ratio: 1.0,
        };
        // The clock goes down to half; the kernel is 10 % behind throughout.
        let copy = timed(Row::Copy, 200, [1.0, 1.5, 2.0]);
        let fold = timed(Row::Fold(Dtype::F32, 2), 300, [1.5 / 0.9, 2.25 / 0.9, 3.0 / 0.9]);
        assert!((fold.beside(&copy) - 0.9).abs() < 1e-12);
    }
}
