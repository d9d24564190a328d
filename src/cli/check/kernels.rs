//! `unisono check --kernels`: every CUDA kernel of this build on a GPU, beside the scalar code.
//!
//! A thread runs the cases and tells of them as a rank would, so that a kernel which does not end
//! is a case that hangs.

use std::collections::{BTreeMap, HashSet};
use std::process::ExitCode;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;
use unisono::Code;
use unisono::comm::DeviceKernels;
use unisono::config::Config;
use unisono::kernel::cuda::Kernel;

use super::event::{Event, Verdict};
use super::trials::{Case, Group, groups};
use super::watch::{Collector, Tally, Told, bar};
use super::{Depth, Options, nothing_selected};
use crate::cli::output;

/// The name of the last case.
const ALL: &str = "all: every kernel was launched";

/// The device, and what is known so far.
#[derive(Debug)]
struct Bench {
    device: DeviceKernels,
    launched: HashSet<Kernel>,
    /// Why nothing more can be run.
    over: Option<&'static str>,
}

impl Bench {
    fn run(&mut self, case: &Case, (seed, depth): (u64, Depth)) -> Verdict {
        if let Some(why) = self.over {
            return Verdict::Skipped(why.to_owned());
        }
        let sms = self.device.processors();
        let outcome =
            case.trials((seed, depth), sms, |trial, sms| match self.device.run(trial, sms) {
                Ok((launch, None)) => {
                    self.launched.insert(launch.kernel);
                    Ok(())
                }
                Ok((launch, Some(fault))) => {
                    self.launched.insert(launch.kernel);
                    let name = launch.kernel.name();
                    let name = name.to_string_lossy();
                    Err(format!("{name}: {fault} [{}]", trial.what))
                }
                Err(error) => {
                    if DeviceKernels::is_lost(&error) {
                        self.over = Some("the device was lost before");
                    } else if error.code == Code::OutOfMemory {
                        self.over = Some("the device had no memory before");
                    }
                    Err(format!("{error} [{}]", trial.what))
                }
            });
        outcome.map_or_else(Verdict::Failed, |()| Verdict::Passed)
    }

    /// Whether there is a kernel that no case has launched.
    fn rest(&self) -> Verdict {
        if let Some(why) = self.over {
            return Verdict::Skipped(why.to_owned());
        }
        let rest = Kernel::all().into_iter().filter(|kernel| !self.launched.contains(kernel));
        let names: Vec<String> =
            rest.map(|kernel| kernel.name().to_string_lossy().into_owned()).collect();
        if names.is_empty() { Verdict::Passed } else { Verdict::Failed(names.join(", ")) }
    }
}

/// Runs `unisono check --kernels` on this device.
pub(super) fn main(options: &Options, device: u32) -> ExitCode {
    let mut selected = groups(options.depth());
    for group in &mut selected {
        group.cases.retain(|case| case.name.contains(&options.filter));
    }
    selected.retain(|group| !group.cases.is_empty());
    if selected.is_empty() {
        return nothing_selected(options, "unisono check --kernels --device 0 --list");
    }
    if options.list {
        let names = selected.iter().flat_map(|group| &group.cases);
        return crate::cli::print(&names.map(|case| case.name.clone() + "\n").collect::<String>());
    }
    let opened = Config::from_env().and_then(|config| DeviceKernels::open(&config, device));
    let opened = match opened {
        Ok(opened) => opened,
        Err(error) => return crate::cli::fail(format_args!("check: {error}")),
    };
    if !options.json {
        output::line(format_args!("# {}", opened.describe()));
    }
    let bench = Bench { device: opened, launched: HashSet::new(), over: None };
    let bench = Arc::new(Mutex::new(bench));
    let mut tallies = Vec::new();
    for group in selected {
        let name = group.name;
        let tally = run(options, group, &bench);
        let hung = tally.hung;
        tallies.push((name, tally));
        if hung || output::is_lost() {
            // Whoever has the device has it for good.
            return report(options, &tallies);
        }
    }
    if options.filter.is_empty() {
        let verdict = bench.lock().unwrap_or_else(PoisonError::into_inner).rest();
        let mut tally = Tally::default();
        match verdict {
            Verdict::Passed => tally.passed = 1,
            Verdict::Skipped(why) => tally.skipped = BTreeMap::from([(why, 1)]),
            Verdict::Failed(names) => tally.failed.push((ALL.to_owned(), names)),
        }
        tallies.push(("all", tally));
    }
    report(options, &tallies)
}

/// Runs one group on a thread of its own, and counts.
fn run(options: &Options, group: Group, bench: &Arc<Mutex<Bench>>) -> Tally {
    let started = Instant::now();
    let bar = bar(group.cases.len(), group.name.to_owned(), options.verbose);
    let (sender, receiver) = channel::<Told>();
    let bench = bench.clone();
    let how = (options.seed, options.depth());
    std::thread::spawn(move || {
        let mut bench = bench.lock().unwrap_or_else(PoisonError::into_inner);
        // A collector that has given up needs no more news.
        let tell = |event| sender.send((0, event)).is_ok();
        for case in &group.cases {
            if !tell(Event::Begin(case.name.clone())) {
                return;
            }
            tell(Event::End(bench.run(case, how)));
        }
        tell(Event::Done);
        tell(Event::Gone);
    });
    let collector = Collector::new(1, bar, options.verbose);
    let mut tally = collector.run(&receiver, Duration::from_secs(options.patience));
    tally.seconds = started.elapsed().as_secs_f64();
    for (_, what) in &mut tally.failed {
        // There are no others.
        *what = what.trim_start_matches("rank 0: ").to_owned();
    }
    tally
}

/// The command that runs one case again.
fn replay(options: &Options, case: &str) -> String {
    let depth = options.selection().map(|flag| format!(" {flag}")).unwrap_or_default();
    let (device, seed) = (options.device.map_or(0, super::number_of), options.seed);
    let filter = if case == ALL { String::new() } else { format!(" --filter \"{case}\"") };
    format!("unisono check --kernels --device {device}{depth} --seed {seed}{filter}")
}

/// Prints failures, reasons of skips and the table; the exit status.
fn report(options: &Options, tallies: &[(&str, Tally)]) -> ExitCode {
    const SHOWN: usize = 5;
    let skips = |tally: &Tally| tally.skipped.values().sum::<usize>();
    let passed: usize = tallies.iter().map(|(_, tally)| tally.passed).sum();
    let failed: usize = tallies.iter().map(|(_, tally)| tally.failed.len()).sum();
    let skipped: usize = tallies.iter().map(|(_, tally)| skips(tally)).sum();
    let ended = if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    if options.json {
        for (case, what) in tallies.iter().flat_map(|(_, tally)| &tally.failed) {
            let again = replay(options, case);
            output::line(json!({ "case": case, "failed": what, "repeat": again }));
        }
        let counts = (options.seed, passed, failed, skipped);
        let (seed, passed, failed, skipped) = counts;
        output::line(
            json!({ "seed": seed, "passed": passed, "failed": failed, "skipped": skipped }),
        );
        return ended;
    }
    let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
    for (name, tally) in tallies {
        for (reason, count) in &tally.skipped {
            *reasons.entry(reason).or_default() += count;
        }
        for (case, what) in tally.failed.iter().take(SHOWN) {
            output::line(format_args!("FAILED  {case}"));
            output::line(format_args!("        {what}"));
            output::line(format_args!("        {}", replay(options, case)));
        }
        if tally.failed.len() > SHOWN {
            let more = tally.failed.len() - SHOWN;
            output::line(format_args!("        and {more} more of {name}"));
        }
    }
    for (reason, count) in reasons {
        output::line(format_args!("skipped {count}: {reason}"));
    }
    let head = ("kernels", "passed", "failed", "skipped", "s");
    output::line(format_args!(
        "{:>10}{:>9}{:>9}{:>9}{:>9}",
        head.0, head.1, head.2, head.3, head.4
    ));
    for (name, tally) in tallies {
        output::line(format_args!(
            "{name:>10}{:>9}{:>9}{:>9}{:>9.1}{}",
            tally.passed,
            tally.failed.len(),
            skips(tally),
            tally.seconds,
            if tally.hung { "  ended: it hung" } else { "" }
        ));
    }
    output::line(format_args!("{passed} passed, {failed} failed, {skipped} skipped"));
    ended
}
