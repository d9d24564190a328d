//! `BENCHMARKS.md` and its charts.

use std::fmt::Write as _;
use std::path::Path;

use super::chart::{self, Axis};
use super::runner::Seen;

/// The charts' folder, beside the report.
const CHARTS: &str = "docs/charts";

/// What stands above all tables.
pub(super) struct Head {
    pub(super) date: String,
    pub(super) command: String,
    pub(super) facts: Vec<(String, String)>,
    pub(super) rounds: usize,
    /// Processes that wanted to run before the first case.
    pub(super) load: String,
    /// Cases that are still to come.
    pub(super) missing: usize,
}

/// One case of the report.
pub(super) struct Section {
    pub(super) name: String,
    pub(super) title: String,
    /// What it says, tables among it.
    pub(super) body: String,
    /// Lines to draw.
    pub(super) chart: Option<(Axis, Vec<Seen>)>,
    /// What went wrong, by contestant.
    pub(super) faults: Vec<String>,
}

const ABOUT: &str = "\
How long collectives take here, beside other libraries and beside the least time this machine needs
for the same movement of data. `make bench` wrote this page; CONTRIBUTING.md says how to add
libraries. Figures of another machine differ, and so do those of a busy one.

- Every contestant is a command of its own. Each round runs each once, in turn; a cell is the median
  over the rounds. The command's own figure is the median of 7 of its rounds, each the slowest
  rank's mean time of a call, back to back, out of place (broadcast in place, as MPI has it), on
  floats, after a round that warms up. Data is verified; a size with wrong data has no figure.
- Sizes are nccl-tests': the buffer of a rank for all_reduce and broadcast, the blocks of all ranks
  together for the others.
- `best / ours` is the fastest other library's time over ours: above 1, ours is the faster.
  `floor / ours` is the share of our time that the machine needs at least.
";

const FLOOR: &str = "\
The **floor** is the same movement of data with nothing else: ranks are threads on cores of their
own that spin, with no matching of calls, no deadline, no errors.

- mem: two exchanges of cache lines. In an exchange each rank writes a line of its own and reads
  those of all others.
- shm: every buffer is in memory that all ranks see. Either each rank shows a copy of its data in
  one exchange and each makes its output from the copies; or between two exchanges each loads what
  it needs where it lies (of an all_reduce its share of all inputs, which it adds and stores to all
  outputs, with ordinary stores or past the caches). The least of these at each size.
- tcp: each rank sends to its right and receives from its left neighbour the bytes that an
  all_reduce must move, 2(n-1)/n of the buffer, over loopback sockets, and adds nothing. The least
  over pieces of 16 KiB to 1 MiB a system call.

A broadcast has no floor here, since its root waits for nobody; nor have ranks that share cores.
";

/// The text of the page.
pub(super) fn text(head: &Head, sections: &[Section]) -> String {
    let mut text = format!("# Benchmarks\n\n{ABOUT}\n{FLOOR}\n## This run\n\n");
    if head.missing > 0 {
        text += &format!("Not finished: {} more cases.\n\n", head.missing);
    }
    text += "| | |\n|---|---|\n";
    let rounds = head.rounds.to_string();
    let run = [
        ("date", &head.date),
        ("command", &format!("`{}`", head.command)),
        ("rounds", &rounds),
        ("load average at the start", &head.load),
    ];
    let own = head.facts.iter().map(|(name, value)| (name.as_str(), value));
    for (name, value) in run.into_iter().chain(own) {
        // A bar would end the cell.
        writeln!(text, "| {name} | {} |", value.replace('|', "/")).expect("writing to a string");
    }
    for section in sections {
        text += &format!("\n## {}\n\n{}", section.title, section.body);
        if section.chart.is_some() {
            let name = &section.name;
            text += &format!("\n![{name}]({CHARTS}/{name}.svg)\n");
        }
        for fault in &section.faults {
            text += &format!("\nNot all went well: {}\n", short(fault));
        }
    }
    text
}

/// Fits a line of the page.
fn short(text: &str) -> String {
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if line.chars().count() <= 80 {
        line
    } else {
        line.chars().take(77).collect::<String>() + "..."
    }
}

/// Writes the page and its charts below `folder`; a section whose chart has too few points loses
/// it.
///
/// # Errors
/// A file that cannot be written.
pub(super) fn write(folder: &Path, head: &Head, sections: &mut [Section]) -> Result<(), String> {
    let failed = |path: &Path, error: std::io::Error| format!("{}: {error}", path.display());
    let charts = folder.join(CHARTS);
    std::fs::create_dir_all(&charts).map_err(|error| failed(&charts, error))?;
    for section in &mut *sections {
        let Some((axis, seen)) = &section.chart else { continue };
        match chart::draw(&section.title, *axis, seen)? {
            Some(picture) => {
                let path = charts.join(format!("{}.svg", section.name));
                std::fs::write(&path, picture).map_err(|error| failed(&path, error))?;
            }
            None => section.chart = None,
        }
    }
    let path = folder.join("BENCHMARKS.md");
    std::fs::write(&path, text(head, sections)).map_err(|error| failed(&path, error))
}

#[cfg(test)]
mod tests {
    use super::super::table::tests::seen;
    use super::*;

    fn section(name: &str, rows: &[(u64, f64)]) -> Section {
        Section {
            name: name.to_owned(),
            title: format!("Case {name}"),
            body: "| a |\n".to_owned(),
            chart: Some((Axis::Bytes, vec![seen("Unisono", rows)])),
            faults: vec!["One: ended after 300 s\nand more ".repeat(9)],
        }
    }

    #[test]
    fn the_page_shows_cases_charts_and_faults() {
        let head = Head {
            date: "2000-01-01".to_owned(),
            command: "make bench".to_owned(),
            facts: vec![("processor".to_owned(), "One | Two".to_owned())],
            rounds: 5,
            load: "0.00".to_owned(),
            missing: 0,
        };
        let folder = std::env::temp_dir().join(format!("unisono-page-{}", std::process::id()));
        let mut sections = [section("two", &[(8, 1.0), (64, 2.0)]), section("one", &[(8, 1.0)])];
        write(&folder, &head, &mut sections).expect("written");
        let text = std::fs::read_to_string(folder.join("BENCHMARKS.md")).expect("a page");
        let drawn = folder.join("docs/charts/two.svg").exists();
        let alone = folder.join("docs/charts/one.svg").exists();
        std::fs::remove_dir_all(&folder).expect("removed");
        assert!(drawn && !alone);
        assert!(text.contains("![two](docs/charts/two.svg)") && !text.contains("one.svg"));
        assert!(text.contains("| processor | One / Two |") && text.contains("2000-01-01"));
        assert!(!text.contains("Not finished"));
        for line in text.lines() {
            assert!(line.chars().count() <= 100, "{line}");
        }
    }
}
