//! Runs one world, hears what its ranks tell, ends it when it hangs, and counts.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, IsTerminal};
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use unisono::config::{Config, Device};

use super::event::{Event, Verdict};
use super::{Options, rank, suite};
use crate::cli::output;
use crate::cli::ranks::{self, Link};

/// What became of the cases of one link and world.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) passed: usize,
    pub(super) skipped: BTreeMap<String, usize>,
    /// Case and what was seen.
    pub(super) failed: Vec<(String, String)>,
    pub(super) seconds: f64,
    pub(super) hung: bool,
}

/// Rank and event.
pub(super) type Told = (usize, Event);

/// Runs the suite on one link and world.
///
/// # Errors
/// The ranks could not start.
pub(super) fn world(options: &Options, link: Link, world: u32) -> unisono::Result<Tally> {
    let started = Instant::now();
    let cases: usize = suite::sections(world, link, options.depth())
        .map(|s| s.cases.iter().filter(|c| s.selects(c, &options.filter)).count())
        .sum();
    let bar = bar(cases, format!("{} {world}", link.name()), options.verbose);
    let (sender, receiver) = channel();
    let size = world as usize;
    let patience = Duration::from_secs(options.patience);
    let collector = Collector::new(size, bar, options.verbose);
    let mut tally = if link == Link::Mem {
        threads(options, size, &sender);
        drop(sender);
        collector.run(&receiver, patience)
    } else {
        let mut ranks = ranks::Ranks::start(size, &options.arguments(link), true)?;
        for (rank, output) in ranks.outputs().into_iter().enumerate() {
            let sender = sender.clone();
            std::thread::spawn(move || read(rank, output, &sender));
        }
        drop(sender);
        let tally = collector.run(&receiver, patience);
        if tally.hung || output::is_lost() {
            ranks.end();
        }
        ranks.wait(Some(Duration::from_secs(5)));
        tally
    };
    tally.seconds = started.elapsed().as_secs_f64();
    Ok(tally)
}

/// How far a part of the suite is, for whoever looks on.
pub(super) fn bar(cases: usize, prefix: String, verbose: bool) -> ProgressBar {
    let bar = if std::io::stderr().is_terminal() && !verbose {
        ProgressBar::new(cases as u64)
    } else {
        ProgressBar::hidden()
    };
    let style = ProgressStyle::with_template("{prefix} {bar:30} {pos}/{len} {wide_msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_prefix(prefix);
    bar
}

/// Runs the suite as one rank of several that `mpirun` has started. Each counts for itself; rank 0
/// prints, the others only what failed with them.
pub(super) fn launched(options: &Options) -> ExitCode {
    let (sender, receiver) = channel();
    let patience = Duration::from_secs(options.patience);
    let collector = Collector::new(1, ProgressBar::hidden(), options.verbose);
    let hung = options.clone();
    let started = Instant::now();
    let collecting = std::thread::spawn(move || {
        let mut tally = collector.run(&receiver, patience);
        if tally.hung {
            // The rank is inside a call that does not end.
            tally.seconds = started.elapsed().as_secs_f64();
            report(&hung, &[(Link::Mpi, 0, tally)]);
            std::process::exit(1);
        }
        tally
    });
    let made = rank::launched(options, &mut |event| {
        // A collector that has given up ends this process.
        let _ = sender.send((0, event));
    });
    let _ = sender.send((0, Event::Gone));
    drop(sender);
    let comm = match made {
        Ok(comm) => comm,
        Err(error) => return crate::cli::fail(error),
    };
    let Ok(mut tally) = collecting.join() else { return ExitCode::FAILURE };
    tally.seconds = started.elapsed().as_secs_f64();
    let mut failed = vec![0u64; comm.world_size() as usize];
    if let Err(error) = comm.all_gather(&[tally.failed.len() as u64], &mut failed) {
        return crate::cli::fail(error);
    }
    let rank = comm.rank().index();
    if rank > 0 {
        for (name, what) in tally.failed {
            output::line(format_args!("FAILED  on rank {rank}  {name}: {what}"));
        }
    } else {
        for (rank, count) in failed.iter().enumerate().skip(1).filter(|(_, count)| **count > 0) {
            let text = format!("{count} cases failed there");
            tally.failed.push((format!("rank {rank}"), text));
        }
        report(options, &[(Link::Mpi, comm.world_size(), tally)]);
    }
    if failed.iter().all(|count| *count == 0) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Starts a thread that runs the ranks as threads of this process.
fn threads(options: &Options, world: usize, sender: &Sender<Told>) {
    let (options, sender) = (options.clone(), sender.clone());
    std::thread::spawn(move || {
        let meeting = rank::Meeting::new(world);
        let end = |rank| (rank, Event::Gone);
        // What the cases make has the GPU; what they meet by needs none.
        let config = Config { device: Device::None, ..Config::default() };
        let outcome = ranks::threads(world, &config, |comm| {
            let rank = comm.rank().index();
            let tell = sender.clone();
            rank::thread(&options, comm, &meeting, move |event| {
                // A collector that has given up needs no more news.
                let _ = tell.send((rank, event));
            });
            let _ = sender.send(end(rank));
        });
        if outcome.is_err() {
            for rank in 0..world {
                let _ = sender.send(end(rank));
            }
        }
    });
}

/// Passes a rank process's events on, and shows whatever else it prints.
fn read(rank: usize, output: std::process::ChildStdout, sender: &Sender<Told>) {
    for line in BufReader::new(output).lines().map_while(Result::ok) {
        match Event::decode(&line) {
            Some(event) => {
                let _ = sender.send((rank, event));
            }
            None => output::line(format_args!("rank {rank}: {line}")),
        }
    }
    let _ = sender.send((rank, Event::Gone));
}

/// What is known of a case while ranks differ in how far they are.
#[derive(Debug, Default)]
struct Open {
    ended: usize,
    skipped: Option<String>,
    failed: Vec<String>,
}

/// Hears what ranks tell, and counts.
pub(super) struct Collector {
    world: usize,
    bar: ProgressBar,
    verbose: bool,
    /// The case each rank is in.
    current: Vec<Option<String>>,
    done: Vec<bool>,
    gone: Vec<bool>,
    open: BTreeMap<String, Open>,
    tally: Tally,
}

impl Collector {
    pub(super) fn new(world: usize, bar: ProgressBar, verbose: bool) -> Self {
        Self {
            world,
            bar,
            verbose,
            current: vec![None; world],
            done: vec![false; world],
            gone: vec![false; world],
            open: BTreeMap::new(),
            tally: Tally::default(),
        }
    }

    pub(super) fn run(mut self, receiver: &Receiver<Told>, patience: Duration) -> Tally {
        // BOUND: every wait ends after `patience`.
        while self.gone.iter().any(|gone| !gone) && !output::is_lost() {
            match receiver.recv_timeout(patience) {
                Ok((rank, event)) => self.hear(rank, event),
                Err(RecvTimeoutError::Timeout) => {
                    self.hang(patience);
                    break;
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        for (name, open) in std::mem::take(&mut self.open) {
            if !open.failed.is_empty() {
                self.tally.failed.push((name, open.failed.join("; ")));
            }
        }
        self.bar.finish_and_clear();
        self.tally
    }

    fn hear(&mut self, rank: usize, event: Event) {
        match event {
            Event::Begin(name) => {
                if rank == 0 {
                    self.bar.set_message(name.clone());
                }
                self.current[rank] = Some(name);
            }
            Event::End(verdict) => self.end(rank, verdict),
            Event::Done => self.done[rank] = true,
            Event::Gone => {
                self.gone[rank] = true;
                if !self.done[rank] {
                    let text = "the rank ended before the suite did".to_owned();
                    if self.current[rank].is_none() {
                        self.current[rank] = Some("start".to_owned());
                    }
                    self.end(rank, Verdict::Failed(text));
                }
            }
        }
    }

    fn end(&mut self, rank: usize, verdict: Verdict) {
        let Some(name) = self.current[rank].take() else { return };
        let open = self.open.entry(name.clone()).or_default();
        open.ended += 1;
        match verdict {
            Verdict::Passed => {}
            Verdict::Skipped(reason) => open.skipped = Some(reason),
            Verdict::Failed(what) => open.failed.push(format!("rank {rank}: {what}")),
        }
        if open.ended < self.world {
            return;
        }
        let open = self.open.remove(&name).unwrap_or_default();
        self.bar.inc(1);
        let word = if !open.failed.is_empty() {
            self.tally.failed.push((name.clone(), open.failed.join("; ")));
            "FAILED"
        } else if let Some(reason) = open.skipped {
            *self.tally.skipped.entry(reason).or_default() += 1;
            "skipped"
        } else {
            self.tally.passed += 1;
            "passed"
        };
        if self.verbose {
            output::line(format_args!("{word:>8}  {} {name}", self.bar.prefix()));
        }
    }

    fn hang(&mut self, patience: Duration) {
        self.tally.hung = true;
        for rank in 0..self.world {
            let text = format!("nothing heard for {} s", patience.as_secs());
            if self.current[rank].is_some() {
                self.end(rank, Verdict::Failed(text));
            }
        }
    }
}

/// Prints failures, reasons of skips and the table; the exit status.
pub(super) fn report(options: &Options, tallies: &[(Link, u32, Tally)]) -> ExitCode {
    const SHOWN: usize = 20;
    let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
    for (link, world, tally) in tallies {
        for (reason, count) in &tally.skipped {
            *reasons.entry(reason).or_default() += count;
        }
        for (name, what) in tally.failed.iter().take(SHOWN) {
            output::line(format_args!("FAILED  {} {world}  {name}", link.name()));
            output::line(format_args!("        {what}"));
            output::line(format_args!("        {}", options.replay(*link, *world, name)));
        }
        if tally.failed.len() > SHOWN {
            output::line(format_args!("        and {} more", tally.failed.len() - SHOWN));
        }
    }
    for (reason, count) in reasons {
        output::line(format_args!("skipped {count}: {reason}"));
    }
    output::line(format_args!(
        "{:>6}{:>7}{:>9}{:>9}{:>9}{:>9}",
        "link", "ranks", "passed", "failed", "skipped", "s"
    ));
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for (link, world, tally) in tallies {
        let skips: usize = tally.skipped.values().sum();
        output::line(format_args!(
            "{:>6}{world:>7}{:>9}{:>9}{skips:>9}{:>9.1}{}",
            link.name(),
            tally.passed,
            tally.failed.len(),
            tally.seconds,
            if tally.hung { "  ended: it hung" } else { "" }
        ));
        passed += tally.passed;
        failed += tally.failed.len();
        skipped += skips;
    }
    output::line(format_args!("{passed} passed, {failed} failed, {skipped} skipped"));
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
