//! How each kind of case is measured and told.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::cases::{self, Case, Kind, Link, Sweep};
use super::chart::Axis;
use super::document::Section;
use super::floor;
use super::mpis;
use super::options::Options;
use super::peers::{Peer, Range};
use super::runner::{Job, Outcome, Schedule, Seen, median};
use super::table::{self, FLOOR, OURS, markdown, number};
use super::worker::hidden;

/// Each size is so many times the one before, from the smallest.
const STEP: u64 = 8;
const LEAST: u64 = 8;
/// What the case `overlap` reduces.
const OVERLAP_BYTES: u64 = 64 << 20;

const TYPES: &str = "\
Equal numbers of elements; each type's time is also given over that of f32.
";

const START: &str = "\
From the start of the launcher to the end of the last rank's first all_reduce of 8 bytes, and to the
end of the launcher.
";

const MEMORY: &str = "\
What a rank's process has in memory after every collective ran once on blocks of 128 KiB, less what
it had before its communicator was made, when its buffers were written: Rss and Pss of
`/proc/self/smaps_rollup`. Rss counts memory that processes share in each of them, Pss divides it.
";

const IDLE: &str = "\
A rank waits in a barrier for another that comes late. Below is the processor time of its process as
a share of the time it waits.
";

const OVERLAP: &str = "\
2 ranks over TCP, each with a thread that computes in registers and one that makes the call go on.
Hidden is the time by which both together take less than one after the other, as a share of the
call's own.
";

/// Who is measured.
pub(super) struct Contestants {
    /// The program `unisono`.
    pub(super) unisono: String,
    /// This program, which is the floor and the ranks of the cases that are no sweep; without it
    /// these are left out.
    pub(super) report: Option<String>,
    pub(super) peers: Vec<Peer>,
}

const OVER_MPI: &str = "\
In one process, on the same buffers, in turn: MPI_Allreduce on a duplicate of MPI_COMM_WORLD, and
unisono_all_reduce on the MPI backend with calls not compared (`UNISONO_CHECK=0`) and compared, back
to back. What ours adds is the median of the differences of neighbouring rounds.
";

/// The largest size of the case `mpi`, and the figures of its lines.
const OVER_MPI_MOST: u64 = 16 << 20;
const OVER_MPI_KEYS: [&str; 5] = ["raw_us", "off_us", "adds_off_us", "on_us", "adds_on_us"];

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

impl Contestants {
    /// `unisono perf`.
    fn perf(&self, name: &str, op: &str, ranks: usize, range: Range) -> Job {
        let Range { lo, hi, step } = range;
        let [n, lo, hi, step] = [ranks as u64, lo, hi, step].map(|number| number.to_string());
        let mut all = words(&[&self.unisono, "perf", op, "-n", &n, "-b", &lo, "-e", &hi]);
        all.extend(words(&["-f", &step, "--json"]));
        // MPI broadcasts in place.
        all.extend((op == "broadcast").then(|| "--in-place".to_owned()));
        Job::new(name, all)
    }

    /// Ranks of this program under `unisono run`.
    fn ranks(&self, name: &str, ranks: usize, arguments: &[&str]) -> Option<Job> {
        let report = self.report.as_ref()?;
        let mut all = words(&[&self.unisono, "run", "-n", &ranks.to_string(), "--no-label", "--"]);
        all.extend(words(&[report, "rank"]));
        all.extend(words(arguments));
        Some(Job::new(name, all))
    }

    fn sweep(&self, sweep: &Sweep, range: Range) -> Vec<Job> {
        let mut ours = self.perf(OURS, sweep.op, sweep.ranks, range);
        ours.words.extend(words(&["--link", sweep.link.name()]));
        ours.words.extend(sweep.registered.then(|| "--registered".to_owned()));
        let mut jobs = vec![ours];
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        if let Some(report) = self.report.as_ref().filter(|_| floor::exists(sweep, cores)) {
            let mut all = words(&[report, "floor", sweep.op, sweep.link.name()]);
            let Range { lo, hi, step } = range;
            all.extend([sweep.ranks as u64, lo, hi, step].map(|number| number.to_string()));
            jobs.push(Job::new(FLOOR, all));
        }
        jobs.extend(self.peers.iter().filter_map(|peer| peer.sweep(sweep, range)));
        jobs
    }
}

/// Measures `case`; `None` when this machine or these contestants have nothing for it.
pub(super) fn measure(
    case: &Case,
    who: &Contestants,
    options: &Options,
    schedule: &Schedule<'_>,
) -> Option<Section> {
    let mut section = Section {
        name: case.name.clone(),
        title: case.title.clone(),
        body: String::new(),
        chart: None,
        faults: Vec::new(),
    };
    match case.kind {
        Kind::Sweep(sweep) => {
            let hi = sweep.most.unwrap_or(options.most).min(options.most);
            let range = Range { lo: LEAST, hi, step: STEP };
            let seen = schedule.times(&who.sweep(&sweep, range), "bytes");
            section.body = table::sweep(&seen);
            section.faults = faults(&seen);
            section.chart = Some((Axis::Bytes, seen));
        }
        Kind::Types => types(&mut section, who, options, schedule),
        Kind::Start { ranks } => start(&mut section, ranks, who, schedule)?,
        Kind::Memory { ranks } => memory(&mut section, ranks, who, schedule)?,
        Kind::Idle => idle(&mut section, who, options, schedule)?,
        Kind::Overlap => overlap(&mut section, who, options, schedule)?,
        Kind::OverMpi => over_mpi(&mut section, who, options, schedule)?,
    }
    Some(section)
}

fn faults(seen: &[Seen]) -> Vec<String> {
    let named = |seen: &Seen| {
        let name = seen.name.clone();
        seen.faults.iter().map(move |fault| format!("{name}: {fault}")).collect::<Vec<_>>()
    };
    seen.iter().flat_map(named).collect()
}

fn types(section: &mut Section, who: &Contestants, options: &Options, schedule: &Schedule<'_>) {
    let (_, base) = cases::TYPES[0];
    let job = |&(name, bytes): &(&str, u64)| {
        // As many elements of each.
        let [lo, hi] = [LEAST, options.most].map(|size| size / base * bytes);
        let mut job = who.perf(name, "all_reduce", 2, Range { lo, hi, step: STEP });
        job.words.extend(words(&["-d", name]));
        job
    };
    let jobs: Vec<Job> = cases::TYPES.iter().map(job).collect();
    let seen = schedule.times(&jobs, "count");
    section.body = format!("{TYPES}\n{}", table::types(&seen));
    section.faults = faults(&seen);
    section.chart = Some((Axis::Elements, seen));
}

/// Figures of each round, by contestant, that `read` finds in an outcome.
fn figures<const N: usize>(
    jobs: &[Job],
    schedule: &Schedule<'_>,
    section: &mut Section,
    read: impl Fn(&Outcome) -> Option<[f64; N]>,
) -> Vec<[f64; N]> {
    let mut seen: Vec<Seen> = jobs.iter().map(|job| Seen::new(&job.name)).collect();
    schedule.run(jobs, |index, outcome| {
        if let Some(found) = read(&outcome) {
            for (column, value) in (0..).zip(found) {
                seen[index].rows.entry(column).or_default().push(value);
            }
        }
        if let Some(fault) = outcome.fault {
            seen[index].fault(fault);
        }
    });
    section.faults.extend(faults(&seen));
    let middle = |seen: &Seen, column| seen.rows.get(&column).and_then(|all| median(all));
    let row = |seen: &Seen| {
        let mut columns = 0..;
        [(); N].map(|()| columns.next().and_then(|c| middle(seen, c)).unwrap_or(f64::NAN))
    };
    seen.iter().map(row).collect()
}

/// A number of every line that has it.
fn all(lines: &[Value], key: &str) -> Vec<f64> {
    lines.iter().filter_map(|line| line[key].as_f64()).collect()
}

/// A row for each job: its name and its figures; none where there was no figure.
fn rows<const N: usize>(jobs: &[Job], figures: &[[f64; N]]) -> Vec<Vec<String>> {
    let cell = |value: &f64| if value.is_finite() { number(*value) } else { "-".to_owned() };
    let row = |(job, figures): (&Job, &[f64; N])| {
        std::iter::once(job.name.clone()).chain(figures.iter().map(cell)).collect()
    };
    jobs.iter().zip(figures).map(row).collect()
}

/// Milliseconds from the start of a command to the moment that the last of its `ranks` was done.
fn until_done(outcome: &Outcome, ranks: usize) -> Option<f64> {
    let done: Vec<u64> = outcome.lines.iter().filter_map(|l| l["done_ns"].as_u64()).collect();
    let last = done.iter().copied().max().filter(|_| done.len() == ranks)?;
    let ns = u64::try_from(u128::from(last).checked_sub(outcome.started_ns)?).ok()?;
    Some(Duration::from_nanos(ns).as_secs_f64() * 1e3)
}

fn start(
    section: &mut Section,
    ranks: usize,
    who: &Contestants,
    schedule: &Schedule<'_>,
) -> Option<()> {
    let mut jobs = vec![who.ranks(OURS, ranks, &["start"])?];
    jobs.extend(who.peers.iter().filter_map(|peer| peer.start(ranks)));
    let found = figures(&jobs, schedule, section, |outcome| {
        (outcome.fault.is_none()).then_some(())?;
        Some([until_done(outcome, ranks)?, outcome.took.as_secs_f64() * 1e3])
    });
    let names = words(&["", "first collective done (ms)", "command over (ms)"]);
    section.body = format!("{START}\n{}", markdown(&names, &rows(&jobs, &found)));
    Some(())
}

fn memory(
    section: &mut Section,
    ranks: usize,
    who: &Contestants,
    schedule: &Schedule<'_>,
) -> Option<()> {
    let jobs = [who.ranks("all ranks' mean", ranks, &["memory"])?];
    let found = figures(&jobs, schedule, section, |outcome| {
        let means = ["rss_kib", "pss_kib"].map(|key| {
            let all = all(&outcome.lines, key);
            let count = u32::try_from(all.len()).ok().filter(|&count| count as usize == ranks)?;
            Some(all.iter().sum::<f64>() / f64::from(count) / 1024.0)
        });
        Some([means[0]?, means[1]?])
    });
    let names = words(&["", "Rss (MiB)", "Pss (MiB)"]);
    section.body = format!("{MEMORY}\n{}", markdown(&names, &rows(&jobs, &found)));
    Some(())
}

fn idle(
    section: &mut Section,
    who: &Contestants,
    options: &Options,
    schedule: &Schedule<'_>,
) -> Option<()> {
    let seconds = if options.quick { "2" } else { "10" };
    let mut jobs = Vec::new();
    for link in [Link::Shm, Link::Tcp] {
        let mut job = who.ranks(link.name(), 2, &["idle", seconds])?;
        job.env.push(("UNISONO_LINKS".to_owned(), link.name().to_owned()));
        jobs.push(job);
    }
    let found = figures(&jobs, schedule, section, |outcome| {
        let one = |key| all(&outcome.lines, key).first().copied();
        Some([one("waited_s")?, one("processor")? * 100.0])
    });
    let names = words(&["link", "waited (s)", "processor (%)"]);
    section.body = format!("{IDLE}\n{}", markdown(&names, &rows(&jobs, &found)));
    Some(())
}

fn overlap(
    section: &mut Section,
    who: &Contestants,
    options: &Options,
    schedule: &Schedule<'_>,
) -> Option<()> {
    let bytes = if options.quick { options.most } else { OVERLAP_BYTES }.min(OVERLAP_BYTES);
    let mut job = who.ranks(OURS, 2, &["overlap", &bytes.to_string()])?;
    job.env.push(("UNISONO_LINKS".to_owned(), Link::Tcp.name().to_owned()));
    let jobs = [job];
    let found = figures(&jobs, schedule, section, |outcome| {
        let one = |key| all(&outcome.lines, key).first().copied();
        let (call, alone, both) = (one("call_ms")?, one("alone_ms")?, one("both_ms")?);
        Some([call, alone, both, 100.0 * hidden(call, alone, both)])
    });
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    section.title = format!("all_reduce of {} behind a computation", table::size(bytes));
    let names = words(&["", "call (ms)", "computation (ms)", "both (ms)", "hidden (%)"]);
    let table = markdown(&names, &rows(&jobs, &found));
    section.body = format!("{OVERLAP}\nCores: {cores}.\n\n{table}");
    Some(())
}

/// By size, each figure of [`OVER_MPI_KEYS`] of every round.
type OverMpi = BTreeMap<u64, [Vec<f64>; 5]>;

fn over_mpi(
    section: &mut Section,
    who: &Contestants,
    options: &Options,
    schedule: &Schedule<'_>,
) -> Option<()> {
    let report = who.report.as_ref()?;
    let sizes = [LEAST, options.most.min(OVER_MPI_MOST), STEP].map(|size| size.to_string());
    let mut rank = words(&[report, "rank", "mpi"]);
    rank.extend(sizes);
    let jobs = mpis::jobs(Path::new(env!("CARGO_MANIFEST_DIR")), &rank);
    // By job, as what its ranks call themselves; by size, the figures of each round.
    let mut seen: Vec<(String, OverMpi)> =
        jobs.iter().map(|job| (job.name.clone(), BTreeMap::new())).collect();
    let mut faults: Vec<String> = Vec::new();
    schedule.run(&jobs, |index, outcome| {
        let (name, rows) = &mut seen[index];
        for line in &outcome.lines {
            let (Some(mpi), Some(bytes)) = (line["mpi"].as_str(), line["bytes"].as_u64()) else {
                continue;
            };
            mpi.clone_into(name);
            let row = rows.entry(bytes).or_default();
            for (figures, key) in row.iter_mut().zip(OVER_MPI_KEYS) {
                figures.extend(line[key].as_f64());
            }
        }
        faults.extend(outcome.fault.map(|fault| format!("{name}: {fault}")));
    });
    let tables = seen.iter().filter(|(_, rows)| !rows.is_empty()).map(|(name, rows)| {
        let middle = |figures: &Vec<f64>| median(figures).unwrap_or(f64::NAN);
        let row = |(bytes, figures): (&u64, &[Vec<f64>; 5])| {
            let [raw, off, adds_off, on, adds_on] = figures.each_ref().map(middle);
            let share = 100.0 * adds_off / raw;
            let numbers = [raw, off, adds_off, share, on, adds_on].map(number);
            std::iter::once(table::size(*bytes)).chain(numbers).collect()
        };
        let head = words(&[
            "size",
            "MPI (us)",
            "not compared (us)",
            "adds (us)",
            "adds (%)",
            "compared (us)",
            "adds (us)",
        ]);
        format!("\n{name}:\n\n{}", markdown(&head, &rows.iter().map(row).collect::<Vec<_>>()))
    });
    section.body = OVER_MPI.to_owned() + &tables.collect::<String>();
    faults.dedup();
    section.faults = faults;
    (!jobs.is_empty()).then_some(())
}

#[cfg(test)]
mod tests {
    use super::super::runner::objects;
    use super::*;

    #[test]
    fn a_start_is_over_when_its_last_rank_is_done() {
        let lines = objects("{\"done_ns\":7000000}\n[1] {\"done_ns\":5000000}\n");
        let outcome = Outcome { lines, started_ns: 4_500_000, took: Duration::ZERO, fault: None };
        assert_eq!(until_done(&outcome, 2), Some(2.5));
        assert_eq!(until_done(&outcome, 3), None);
        assert_eq!(until_done(&Outcome { started_ns: 8_000_000, ..outcome }, 2), None);
    }

    #[test]
    fn ours_is_perf_with_the_link_and_memory_of_the_case() {
        let who = Contestants { unisono: "unisono".to_owned(), report: None, peers: Vec::new() };
        let sweep =
            Sweep { op: "broadcast", ranks: 4, link: Link::Tcp, registered: true, most: None };
        let range = Range { lo: 8, hi: 64, step: 8 };
        let jobs = who.sweep(&sweep, range);
        let command = jobs[0].words.join(" ");
        let wanted = "unisono perf broadcast -n 4 -b 8 -e 64 -f 8 --json --in-place --link tcp \
                      --registered";
        assert_eq!((jobs.len(), command.as_str()), (1, wanted));
    }
}
