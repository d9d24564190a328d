//! Both sides, size by size.

use serde_json::json;

use super::{Against, Pair, Perf, Sum};
use crate::cli::check::number_of;
use crate::cli::data::shape::Kind;
use crate::cli::output;
use crate::cli::perf::report::round;

/// One collective, and where its figures go.
#[derive(Debug)]
pub(super) struct Show<'a> {
    pub(super) options: &'a Perf,
    pub(super) against: &'a Against,
    pub(super) kind: Kind,
    /// What the other side runs.
    pub(super) theirs: &'a str,
    /// Whether in place, for each placement.
    pub(super) places: &'a [bool],
}

impl Show<'_> {
    pub(super) fn all(&self, pairs: &[Pair], sum: &Sum) {
        if self.options.json {
            for pair in pairs {
                self.places.iter().for_each(|&place| output::line(self.json(pair, place)));
            }
            output::line(self.json_sum(sum));
            return;
        }
        self.head();
        pairs.iter().for_each(|pair| self.row(pair));
        self.foot(sum);
    }

    fn ours(&self) -> String {
        let usual = if *self.against == Against::Nccl { "native" } else { "auto" };
        let backend = self.options.backend.map_or(usual, unisono::config::Family::name);
        format!("unisono perf --backend {backend}")
    }

    fn reduction(&self) -> &str {
        if self.kind.reduces() { &self.options.reduction } else { "none" }
    }

    fn head(&self) {
        let (options, theirs) = (self.options, self.against.name());
        let device = options.device.map_or(0, number_of);
        let place = match (options.ranks, options.has_gpu_each()) {
            (1, _) | (_, false) => format!("on device {device}"),
            (ranks, true) => format!("on devices {device} to {}", device + ranks - 1),
        };
        output::line(format_args!(
            "# unisono {}: {} {} {}, {} ranks {place}, {} turns",
            env!("CARGO_PKG_VERSION"),
            self.kind.name(),
            options.dtype,
            self.reduction(),
            options.ranks,
            options.versus.turns
        ));
        output::line(format_args!("# {theirs}: {}", self.theirs));
        output::line(format_args!("# ours: {}", self.ours()));
        output::line("# medians over the turns; ratio: their time by ours, above 1 ours is faster");
        let title = |in_place: &bool| {
            let title = if *in_place { "in place" } else { "out of place" };
            format!("{title:^62}")
        };
        let titles: String = self.places.iter().map(title).collect();
        output::line(format_args!("#{:>12} {}", "", titles.trim_end()));
        let both = |unit: &str| format!("{:>11}{:>11}", theirs, format!("ours{unit}"));
        let names = format!("{}{}{:>8}{:>10}", both(""), both(""), "ratio", "#wrong");
        output::line(format_args!("#{:>12} {}", "size", names.repeat(self.places.len())));
        let units =
            format!("{:>11}{:>11}{:>11}{:>11}{:>18}", "(us)", "(us)", "(GB/s)", "(GB/s)", "");
        let units = units.repeat(self.places.len());
        output::line(format_args!("#{:>12} {}", "(B)", units.trim_end()));
    }

    fn row(&self, pair: &Pair) {
        let mut line = format!("{:>13} ", pair.bytes);
        for &in_place in self.places {
            let at = usize::from(in_place);
            let (theirs, ours) = (pair.theirs.places[at], pair.ours.places[at]);
            let number = |number: Option<f64>| {
                number.map_or_else(|| "-".to_owned(), |number| format!("{number:.2}"))
            };
            let checked =
                |cell: Option<u64>| cell.map_or_else(|| "N/A".to_owned(), |n| n.to_string());
            let wrong = match (theirs.and_then(|c| c.wrong), ours.and_then(|c| c.wrong)) {
                (Some(0), Some(0)) => "0".to_owned(),
                (None, None) => "N/A".to_owned(),
                (theirs, ours) => format!("{}/{}", checked(theirs), checked(ours)),
            };
            line += &format!(
                "{:>11}{:>11}{:>11}{:>11}{:>8}{wrong:>10}",
                number(theirs.map(|c| c.time_us)),
                number(ours.map(|c| c.time_us)),
                number(theirs.map(|c| c.busbw)),
                number(ours.map(|c| c.busbw)),
                pair.ratio(in_place).map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.3}")),
            );
        }
        if pair.theirs.bytes != pair.ours.bytes {
            let (theirs, ours) = (pair.theirs.bytes, pair.ours.bytes);
            line += &format!("  # {} B by {}, {ours} B by ours", theirs, self.against.name());
        }
        output::line(line);
    }

    fn foot(&self, sum: &Sum) {
        let Some(mean) = sum.mean() else {
            output::line("# Ratio : none, no size can be compared");
            return;
        };
        output::line(format_args!("# Geometric mean ratio : {mean:.3}"));
        output::line(format_args!("# Ours is faster : {} of {} figures", sum.faster, sum.rows));
        let verdict = if sum.wrong == 0 { "OK" } else { "FAILED" };
        output::line(format_args!("# Wrong elements : {} {verdict}", sum.wrong));
    }

    fn json(&self, pair: &Pair, in_place: bool) -> serde_json::Value {
        let at = usize::from(in_place);
        let (theirs, ours) = (pair.theirs.places[at], pair.ours.places[at]);
        json!({
            "op": self.kind.name(),
            "ranks": self.options.ranks,
            "bytes": pair.bytes,
            "dtype": self.options.dtype,
            "redop": self.reduction(),
            "in_place": in_place,
            "against": self.against.name(),
            "turns": self.options.versus.turns,
            "theirs_moved": pair.theirs.bytes,
            "ours_moved": pair.ours.bytes,
            "theirs_us": theirs.map(|cell| round(cell.time_us, 3)),
            "ours_us": ours.map(|cell| round(cell.time_us, 3)),
            "theirs_busbw": theirs.map(|cell| round(cell.busbw, 6)),
            "ours_busbw": ours.map(|cell| round(cell.busbw, 6)),
            "ratio": pair.ratio(in_place).map(|ratio| round(ratio, 4)),
            "theirs_wrong": theirs.and_then(|cell| cell.wrong),
            "ours_wrong": ours.and_then(|cell| cell.wrong),
        })
    }

    fn json_sum(&self, sum: &Sum) -> serde_json::Value {
        json!({
            "op": self.kind.name(),
            "ranks": self.options.ranks,
            "against": self.against.name(),
            "figures": sum.rows,
            "ours_faster": sum.faster,
            "geometric_mean_ratio": sum.mean().map(|mean| round(mean, 4)),
            "wrong": sum.wrong,
        })
    }
}
