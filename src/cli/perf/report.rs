//! Tables and JSON lines. Only rank 0 prints.

use serde_json::json;
use unisono::Communicator;
use unisono::config::Config;
use unisono::plan::Algorithm;

use super::Options;
use super::measure::{Figure, Row, Totals};
use super::sweep::Sweep;
use crate::cli::data::shape::Kind;
use crate::cli::output;
use crate::cli::ranks;

/// Where figures go.
#[derive(Debug)]
pub(super) struct Report<'a> {
    options: &'a Options,
    comm: &'a Communicator,
    link: &'static str,
}

impl<'a> Report<'a> {
    pub(super) fn new(comm: &'a Communicator, options: &'a Options) -> Self {
        let chosen = ranks::is_child() || !ranks::is_rank();
        let link = if chosen { options.link.name() } else { "auto" };
        Self { options, comm, link }
    }

    fn silent(&self) -> bool {
        self.comm.rank().0 != 0
    }

    /// Says which collectives are not among the `kinds` to come.
    pub(super) fn left_out(&self, kinds: &[Kind]) {
        let asked = self.options.kinds().iter();
        let names: Vec<_> = asked.filter(|k| !kinds.contains(k)).map(|k| k.name()).collect();
        let Some(algorithm) = self.options.algo.filter(|_| !names.is_empty()) else { return };
        if !self.silent() && !self.options.json {
            let names = names.join(", ");
            output::line(format_args!("# left out, not done by {}: {names}", algorithm.name()));
        }
    }

    /// What is measured, and how.
    fn title(&self, kind: Kind, algorithm: &str) {
        let (options, world) = (self.options, self.comm.world_size());
        let memory = if options.registered { "registered" } else { "plain" };
        let mode = if options.deterministic { ", deterministic" } else { "" };
        output::line(format_args!(
            "# unisono {}: {}, {world} ranks, link {}, {memory} memory, {algorithm}{mode}",
            env!("CARGO_PKG_VERSION"),
            kind.name(),
            self.link
        ));
        for note in self.comm.notes() {
            output::line(format_args!("# {note}"));
        }
        output::line(format_args!(
            "# time: median of {} rounds, each the slowest rank's mean; GB/s are 10^9 bytes",
            options.rounds
        ));
        output::line(
            "# size: what a call moves: the size asked for, down to whole elements, at least one a rank",
        );
    }

    /// The lines above a collective's table.
    pub(super) fn begin(&self, kind: Kind) {
        if self.silent() || self.options.json {
            return;
        }
        let options = self.options;
        let algorithm = options.algo.map_or_else(|| preferred(options), Algorithm::name);
        self.title(kind, &format!("algorithm {algorithm}"));
        let placements: String = options
            .placements()
            .iter()
            .map(|in_place| format!("{:^42}", if *in_place { "in place" } else { "out of place" }))
            .collect();
        output::line(format_args!("#{:>51} {placements}", ""));
        let columns = format!("{:>12}{:>10}{:>10}{:>10}", "time", "algbw", "busbw", "#wrong");
        output::line(format_args!(
            "#{:>12}{:>13}{:>11}{:>10}{:>5} {}",
            "size",
            "count",
            "type",
            "redop",
            "root",
            columns.repeat(options.placements().len())
        ));
        let units = format!("{:>12}{:>10}{:>10}{:>10}", "(us)", "(GB/s)", "(GB/s)", "");
        output::line(format_args!(
            "#{:>12}{:>13}{:>26} {}",
            "(B)",
            "(elements)",
            "",
            units.repeat(options.placements().len())
        ));
    }

    /// One size.
    pub(super) fn row(&self, row: &Row, figures: &[Figure]) {
        if self.silent() {
            return;
        }
        let shape = &row.shape;
        let reduction = if shape.kind.reduces() { shape.op.name() } else { "none" };
        let root = if shape.kind.rooted() { i64::from(shape.root) } else { -1 };
        if self.options.json {
            for figure in figures {
                output::line(self.json(row, figure, reduction, root));
            }
            return;
        }
        let mut line = format!(
            "{:>13}{:>13}{:>11}{:>10}{:>5} ",
            row.moved(self.comm.world_size()),
            shape.count,
            shape.dtype.name(),
            reduction,
            root
        );
        for figure in figures {
            let wrong = figure.wrong.map_or_else(|| "N/A".to_owned(), |wrong| wrong.to_string());
            line += &format!(
                "{:>12.2}{:>10.3}{:>10.3}{wrong:>10}",
                figure.median_us, figure.algbw, figure.busbw
            );
        }
        if row.moved(self.comm.world_size()) > row.bytes {
            line += &format!("  # {} asked for: an element a rank is the least", row.bytes);
        }
        output::line(line);
    }

    fn json(&self, row: &Row, figure: &Figure, reduction: &str, root: i64) -> serde_json::Value {
        json!({
            "op": row.shape.kind.name(),
            "ranks": self.comm.world_size(),
            "bytes": row.bytes,
            "moved": row.moved(self.comm.world_size()),
            "count": row.shape.count,
            "dtype": row.shape.dtype.name(),
            "redop": reduction,
            "root": root,
            "in_place": figure.in_place,
            "link": self.link,
            "algo": self.options.algo.map_or("auto", Algorithm::name),
            "registered": self.options.registered,
            "deterministic": self.options.deterministic,
            "median_us": round(figure.median_us, 3),
            "min_us": round(figure.min_us, 3),
            "algbw": round(figure.algbw, 6),
            "busbw": round(figure.busbw, 6),
            "wrong": figure.wrong,
        })
    }
}

/// What `--sweep-algos` prints.
impl Report<'_> {
    /// Says that there is nothing to choose.
    pub(super) fn left_out_of_sweep(&self, kind: Kind) {
        if !self.silent() && !self.options.json {
            output::line(format_args!("# left out, without a choice: {}", kind.name()));
        }
    }

    /// The lines above a collective's table.
    pub(super) fn begin_sweep(&self, kind: Kind, candidates: &[Algorithm]) {
        if self.silent() || self.options.json {
            return;
        }
        self.title(kind, "every algorithm beside the choice");
        output::line("# behind: how much longer than the fastest (*) the choice takes");
        let names: String = candidates.iter().map(|a| format!("{:>14}", a.name())).collect();
        let head = ["size", "type", "redop", "choice", "time", "behind"];
        output::line(format_args!("#{}{names}", sweep_cells(&head)));
        let units = ["(B)", "", "", "", "(us)", "(%)"];
        let times = format!("{:>13} ", "(us)").repeat(candidates.len());
        output::line(format_args!("#{}{}", sweep_cells(&units), times.trim_end()));
    }

    /// One size.
    pub(super) fn sweep(&self, row: &Row, sweep: &Sweep, candidates: &[Algorithm]) {
        if self.silent() {
            return;
        }
        if self.options.json {
            for at in 0..sweep.all.len() {
                output::line(self.sweep_json(row, sweep, at));
            }
            return;
        }
        debug_assert_eq!(sweep.all.len(), candidates.len() + 1, "the choice and all others");
        let time = |at: usize| {
            let mark = if at == sweep.fastest { "*" } else { "" };
            format!("{:.2}{mark}", sweep.all[at].median_us())
        };
        let reduction = if row.shape.kind.reduces() { row.shape.op.name() } else { "none" };
        let cells = sweep_cells(&[
            &row.moved(self.comm.world_size()).to_string(),
            row.shape.dtype.name(),
            reduction,
            sweep.all[0].name(),
            &time(0),
            &format!("{:.1}", sweep.behind),
        ]);
        let times: String = (1..sweep.all.len()).map(|at| format!("{:>14}", time(at))).collect();
        let wrong: u64 = sweep.all.iter().map(|timed| timed.wrong.unwrap_or(0)).sum();
        let wrong = if wrong > 0 { format!("  # {wrong} wrong") } else { String::new() };
        output::line(format_args!(" {cells}{times}{wrong}"));
    }

    /// The line below the last table.
    pub(super) fn end_sweep(&self, worst: Option<&(f64, Kind, Row)>) {
        if let Some((behind, kind, row)) = worst
            && !self.silent()
            && !self.options.json
        {
            let (bytes, name) = (row.moved(self.comm.world_size()), kind.name());
            output::line(format_args!(
                "# the choice is at most {behind:.1} % behind the fastest: {name} of {bytes} B"
            ));
        }
    }

    fn sweep_json(&self, row: &Row, sweep: &Sweep, at: usize) -> serde_json::Value {
        let (shape, timed) = (&row.shape, &sweep.all[at]);
        json!({
            "op": shape.kind.name(),
            "ranks": self.comm.world_size(),
            "bytes": row.bytes,
            "moved": row.moved(self.comm.world_size()),
            "count": shape.count,
            "dtype": shape.dtype.name(),
            "redop": if shape.kind.reduces() { shape.op.name() } else { "none" },
            "root": if shape.kind.rooted() { i64::from(shape.root) } else { -1 },
            "in_place": shape.in_place,
            "link": self.link,
            "registered": self.options.registered,
            "deterministic": self.options.deterministic,
            "algo": timed.name(),
            "chosen": timed.chosen(),
            "fastest": at == sweep.fastest,
            "behind_percent": if timed.chosen() { Some(round(sweep.behind, 2)) } else { None },
            "median_us": round(timed.median_us(), 3),
            "min_us": round(timed.min_us(), 3),
            "wrong": timed.wrong,
        })
    }
}

/// The columns of a sweep before those of its algorithms.
fn sweep_cells(cells: &[&str; 6]) -> String {
    let [size, dtype, reduction, choice, time, behind] = cells;
    format!("{size:>12}{dtype:>8}{reduction:>12}{choice:>14}{time:>12}{behind:>9}")
}

pub(super) fn round(value: f64, digits: i32) -> f64 {
    let scale = 10f64.powi(digits);
    (value * scale).round() / scale
}

/// The lines below the last table.
pub(super) fn footer(totals: &Totals, checked: bool) {
    if checked {
        let verdict = if totals.wrong == 0 { "OK" } else { "FAILED" };
        output::line(format_args!("# Wrong elements : {} {verdict}", totals.wrong));
    } else {
        output::line("# Wrong elements : not checked");
    }
    output::line(format_args!("# Avg bus bandwidth : {:.4} GB/s", totals.average()));
}

/// How the algorithm comes about when the command line names none.
fn preferred(options: &Options) -> &'static str {
    let asked = options.config(None).is_ok_and(|Config { algorithm, .. }| algorithm.is_some());
    if asked { "UNISONO_ALGORITHM where it fits, else chosen by size" } else { "chosen by size" }
}
