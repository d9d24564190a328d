//! `unisono tune`: measures what each algorithm takes on this machine, and writes a table to choose
//! by.
//!
//! For every link and number of ranks this starts ranks, which go through the sizes from the
//! smallest to the largest and through the collectives at each size. At a point the choice of a
//! communicator without a table and every algorithm that can do the call are timed in turn, several
//! rounds of all, so that a machine that gets slower is slower for all of them. Who is far behind
//! is not timed to the end.
//!
//! A row names an algorithm only where it clearly takes less than that choice, and was the faster
//! in nearly every round: so noise makes few rows. Hierarchical is not measured, since the ranks
//! here are on one host. Time is limited: when it is over the larger sizes are left out, the table
//! says which, and its rows end where measuring ended.

mod points;

use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use unisono::Communicator;
use unisono::config::Config;
use unisono::tune::table::{ROWS_MAX, Table};

use super::ranks::{self, Link};
use super::{fail, print, usage};

/// Measure this machine and write a table to choose algorithms by
///
/// Set `UNISONO_TUNING` to the table's path: rank 0 reads it, and all ranks choose by it.
#[derive(clap::Args, Clone, Debug)]
#[command(verbatim_doc_comment)]
pub(crate) struct Options {
    /// Ranks to measure with; may be given more than once [default: 2, 4 and the number of cores]
    #[arg(short = 'n', long, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(2..=1024))]
    ranks: Vec<u32>,
    /// Links to measure; may be given more than once [default: shm and tcp]
    #[arg(long, value_enum)]
    link: Vec<Link>,
    /// Where the table goes [default: stdout]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Time for all of it, in seconds; sizes that are too much for it are left out
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
}

/// Runs the subcommand.
pub(crate) fn main(options: &Options) -> ExitCode {
    if ranks::is_child() {
        return as_rank(options);
    }
    if ranks::is_rank() {
        return usage("tune: it starts its ranks itself, so it is no program for a launcher");
    }
    if options.link.contains(&Link::Mem) {
        return usage("tune: ranks are processes here; there are shm and tcp");
    }
    let text = match table(options) {
        Ok(text) => text,
        Err(error) => return fail(error),
    };
    match &options.output {
        None => print(&text),
        Some(path) => match std::fs::write(path, text) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(format_args!("writing {}: {error}", path.display())),
        },
    }
}

/// Every number of ranks over every link.
fn table(options: &Options) -> Result<String, String> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let usual = [2, 4, u32::try_from(cores).unwrap_or(2).clamp(2, 1024)];
    let mut worlds = if options.ranks.is_empty() { usual.to_vec() } else { options.ranks.clone() };
    worlds.sort_unstable();
    worlds.dedup();
    let usual = [Link::Shm, Link::Tcp];
    let links = if options.link.is_empty() { usual.to_vec() } else { options.link.clone() };
    let runs = u64::try_from(worlds.len() * links.len()).unwrap_or(1);
    let share = Duration::from_secs(options.seconds) / u32::try_from(runs).unwrap_or(1);
    let (mut notes, mut text) = (heading(cores), String::new());
    for &link in &links {
        for &world in &worlds {
            let said = measure(link, world, share)?;
            let (about, rows): (Vec<&str>, Vec<&str>) =
                said.lines().partition(|line| line.starts_with('#'));
            notes.extend(about.into_iter().map(str::to_owned));
            text.extend(rows.into_iter().map(|row| format!("{row}\n")));
        }
    }
    let head = Table::default().to_string();
    let rows: Vec<&str> = text.lines().collect();
    if rows.len() > ROWS_MAX {
        notes.push(format!("# left out: {} rows, of which there are {ROWS_MAX}", rows.len()));
    }
    let kept = rows.iter().take(ROWS_MAX).map(|row| format!("{row}\n"));
    let text: String = notes.iter().map(|note| format!("{note}\n")).chain(kept).collect();
    let text = head + &text;
    // What is written can be read.
    Table::parse(&text).map_err(|(line, why)| format!("line {line} of the table: {why}"))?;
    Ok(text)
}

/// What the table is of.
fn heading(cores: usize) -> Vec<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let (year, month, day) = date(since.as_secs() / 86_400);
    vec![
        format!("# unisono {}, {year}-{month:02}-{day:02}", env!("CARGO_PKG_VERSION")),
        format!("# machine {}, {cores} cores for this process", name.trim()),
        "# bytes: of the buffer, or of one block where every rank has its own".to_owned(),
    ]
}

/// The day so many days after 1970-01-01.
fn date(mut days: u64) -> (u64, u64, u64) {
    let leap =
        |year: u64| year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    (year, month, days + 1)
}

/// Starts `world` ranks; what their first one says.
fn measure(link: Link, world: u32, limit: Duration) -> Result<String, String> {
    let seconds = limit.as_secs().max(1).to_string();
    let arguments =
        ["tune", "--link", link.name(), "-n", &world.to_string(), "--seconds", &seconds]
            .map(str::to_owned);
    let failed = |what: String| format!("{world} ranks over {}: {what}", link.name());
    let started = ranks::Ranks::start(world as usize, &arguments, true);
    let mut ranks = started.map_err(|error| failed(error.to_string()))?;
    let mut text = String::new();
    for mut out in ranks.outputs() {
        // BOUND: as long as that rank runs; it limits its time itself.
        out.read_to_string(&mut text).map_err(|error| failed(error.to_string()))?;
    }
    let statuses = ranks.wait(None);
    let well = statuses.iter().all(|status| status.is_some_and(|status| status.success()));
    if well { Ok(text) } else { Err(failed("a rank has failed".to_owned())) }
}

/// This process is one of the ranks.
fn as_rank(options: &Options) -> ExitCode {
    ranks::follow_parent();
    let [link] = options.link[..] else { return usage("tune: a rank has one link") };
    let formed = Config::from_env().and_then(|mut config| {
        (config.algorithm, config.tuning, config.progress_thread) = (None, None, false);
        link.apply(&mut config);
        Communicator::init_env(&config)
    });
    let limit = Duration::from_secs(options.seconds);
    let measured = formed.and_then(|comm| {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        if comm.world_size() as usize <= cores {
            unisono::comm::bind_to_core(comm.rank().index())?;
        }
        let all = points::points(&comm, link, limit)?;
        if comm.rank().0 == 0 {
            points::tell(&all, link, comm.world_size());
        }
        Ok(())
    });
    match measured {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_have_dates() {
        for (days, wanted) in [
            (0, (1970, 1, 1)),
            (59, (1970, 3, 1)),
            (11_016, (2000, 2, 29)),
            (20_818, (2026, 12, 31)),
        ] {
            assert_eq!(date(days), wanted);
        }
    }
}
