//! One run of the report: options, contestants, cases, files.

use std::path::{Path, PathBuf};

use super::cases::{self, Case};
use super::document::{self, Head};
use super::machine;
use super::options::{Options, USAGE};
use super::peers;
use super::runner::Schedule;
use super::section::{self, Contestants};

/// The project.
fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Says on stderr how far we are.
fn tell(text: &str) {
    eprintln!("{text}");
}

/// # Errors
/// What is not understood, and files that cannot be read or written. A contestant that fails is no
/// error: the report says so.
pub(super) fn main(arguments: &[String]) -> Result<(), String> {
    let options = Options::parse(arguments)?;
    let cases = cases::choose(&options.cases)?;
    if options.help {
        println!("{USAGE}");
        return Ok(());
    }
    if options.list {
        cases.iter().for_each(|case| println!("{:<30} {}", case.name, case.title));
        return Ok(());
    }
    let report = std::env::current_exe().map_err(|error| format!("this program: {error}"))?;
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let who = Contestants {
        unisono: env!("CARGO_BIN_EXE_unisono").to_owned(),
        report: Some(report.to_string_lossy().into_owned()),
        peers: peers::all(&root(), &folder, &tell)?,
    };
    let usual = if options.is_full() { root() } else { root().join("build/bench") };
    let out = options.out.clone().unwrap_or(usual);
    run(&options, &cases, &who, &out)?;
    tell(&format!("wrote {}", out.join("BENCHMARKS.md").display()));
    Ok(())
}

/// Measures `cases` and writes the report below `out`, anew after each, so that what was measured
/// is there when the rest is not to be.
pub(super) fn run(
    options: &Options,
    cases: &[Case],
    who: &Contestants,
    out: &Path,
) -> Result<(), String> {
    let mut facts = machine::facts(&root(), &who.unisono);
    let version = |peer: &peers::Peer| {
        if peer.version.is_empty() { "named by PEERS" } else { &peer.version }.to_owned()
    };
    facts.extend(who.peers.iter().map(|peer| (peer.name.clone(), version(peer))));
    let mut head = Head {
        date: machine::date(),
        command: command(options),
        facts,
        rounds: options.rounds,
        load: machine::load(),
        missing: cases.len(),
    };
    let mut sections = Vec::new();
    for (index, case) in cases.iter().enumerate() {
        let told = |round: usize, name: &str| {
            let (at, all, rounds) = (index + 1, cases.len(), options.rounds);
            tell(&format!("[{at}/{all}] {}, round {round} of {rounds}: {name}", case.name));
        };
        let schedule = Schedule { rounds: options.rounds, limit: options.limit, tell: &told };
        sections.extend(section::measure(case, who, options, &schedule));
        head.missing = cases.len() - index - 1;
        document::write(out, &head, &mut sections)?;
    }
    Ok(())
}

/// What makes a report like this one.
fn command(options: &Options) -> String {
    let usual = if options.quick {
        Options { quick: true, rounds: 2, most: 2 << 20, ..Options::default() }
    } else {
        Options::default()
    };
    let mut words = Vec::new();
    words.extend(options.quick.then(|| "--quick".to_owned()));
    words.extend((options.rounds != usual.rounds).then(|| format!("--rounds {}", options.rounds)));
    words.extend((options.most != usual.most).then(|| format!("--to {}", options.most)));
    let limit = options.limit.as_secs();
    words.extend((options.limit != usual.limit).then(|| format!("--limit {limit}")));
    words.extend(options.cases.iter().cloned());
    if words.is_empty() {
        "make bench".to_owned()
    } else {
        format!("make bench BENCH=\"{}\"", words.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_says_what_is_unusual() {
        let mut options = Options::default();
        assert_eq!(command(&options), "make bench");
        (options.rounds, options.cases) = (9, vec!["tcp".to_owned()]);
        assert_eq!(command(&options), "make bench BENCH=\"--rounds 9 tcp\"");
    }

    /// One small case with the program itself, from its command to the page.
    #[test]
    fn a_small_case_becomes_a_page() {
        let folder = std::env::temp_dir().join(format!("unisono-bench-{}", std::process::id()));
        let options = Options { quick: true, rounds: 1, most: 64, ..Options::default() };
        let cases = cases::choose(&["shm-all_reduce-2-registered".to_owned()]).expect("a case");
        let unisono = env!("CARGO_BIN_EXE_unisono").to_owned();
        let who = Contestants { unisono, report: None, peers: Vec::new() };
        run(&options, &cases, &who, &folder).expect("a report");
        let text = std::fs::read_to_string(folder.join("BENCHMARKS.md")).expect("a page");
        let chart = folder.join("docs/charts/shm-all_reduce-2-registered.svg").exists();
        std::fs::remove_dir_all(&folder).expect("removed");
        assert!(text.contains("\n| 8 B | ") && text.contains("\n| 64 B | "), "{text}");
        assert!(chart && !text.contains("Not all went well"), "{text}");
    }
}
