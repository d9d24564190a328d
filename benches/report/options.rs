//! The command line.

use std::path::PathBuf;
use std::time::Duration;

pub(super) const USAGE: &str = "\
usage: make bench BENCH=\"[OPTIONS] [CASE...]\", where CASE is the beginning of a case's name

  --quick            sizes up to 2 MiB, 2 rounds, shorter waits
  --rounds N         rounds of all contestants [5]
  --to BYTES         largest size [134217728]
  --limit SECONDS    time of each command [300]
  --out DIR          where the report goes [the project for all cases at full length,
                     build/bench for everything else]
  --list             only the names of the cases

PEERS=FILE names others to measure: lines `name = command`; see CONTRIBUTING.md.
MPICC and MPIRUN name an MPI that is not on PATH; set to nothing they leave it out.";

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Options {
    pub(super) quick: bool,
    pub(super) rounds: usize,
    pub(super) most: u64,
    pub(super) limit: Duration,
    pub(super) out: Option<PathBuf>,
    pub(super) list: bool,
    pub(super) help: bool,
    pub(super) cases: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            quick: false,
            rounds: 5,
            most: 128 << 20,
            limit: Duration::from_secs(300),
            out: None,
            list: false,
            help: false,
            cases: Vec::new(),
        }
    }
}

impl Options {
    /// # Errors
    /// What is not understood.
    pub(super) fn parse(arguments: &[String]) -> Result<Self, String> {
        let mut made = Self::default();
        if arguments.iter().any(|word| word == "--quick") {
            (made.quick, made.rounds, made.most) = (true, 2, 2 << 20);
        }
        let mut words = arguments.iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
            let number = |text: &String| {
                let number = text.parse::<u64>().ok().filter(|&number| number > 0);
                number.ok_or_else(|| format!("{word} {text}: not a whole number above 0"))
            };
            match word.as_str() {
                // Cargo says this to every bench.
                "--bench" | "--quick" => {}
                "--rounds" => {
                    made.rounds = usize::try_from(number(value()?)?).map_err(|e| e.to_string())?;
                }
                "--to" => made.most = number(value()?)?,
                "--limit" => made.limit = Duration::from_secs(number(value()?)?),
                "--out" => made.out = Some(PathBuf::from(value()?)),
                "--list" => made.list = true,
                "--help" | "-h" => made.help = true,
                name if name.starts_with('-') => return Err(format!("{name}?\n{USAGE}")),
                name => made.cases.push(name.to_owned()),
            }
        }
        Ok(made)
    }

    /// Whether the figures are the ones the project shows.
    pub(super) fn is_full(&self) -> bool {
        let usual = Self::default();
        self.cases.is_empty() && self.most >= usual.most && self.rounds >= usual.rounds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Options, String> {
        let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        Options::parse(&words)
    }

    #[test]
    fn what_is_said_overrides_quick_in_any_order() {
        let options = parse("--rounds 3 --bench --quick shm --to 64").expect("understood");
        assert_eq!((options.rounds, options.most, options.quick), (3, 64, true));
        assert_eq!(options.cases, ["shm"]);
        assert!(!options.is_full());
        assert!(parse("").expect("nothing").is_full());
    }

    #[test]
    fn what_is_wrong_is_said() {
        for text in ["--rounds", "--rounds 0", "--to much", "--no-such"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
