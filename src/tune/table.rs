//! Measured points: what `unisono tune` writes and a communicator's ranks choose by.
//!
//! A small text, one row a line:
//!
//! ```text
//! unisono-tuning 1
//! # anything: the machine, the day, the version
//! all_reduce ranks=2 hosts=1 reach=messages bytes<=65536 doubling
//! all_reduce ranks=2 hosts=1 reach=messages bytes=any model
//! ```
//!
//! A row holds for calls of one collective by so many ranks on so many hosts that can reach so much
//! of each other's memory ([`Reach`]), of at most so many bytes and more than those of the row
//! before it. The bytes are those of the buffer, or of one block where every rank has its own (in
//! the `v` forms: of all blocks). What is taken is an algorithm, or `model`: what would be taken
//! without a table.
//!
//! Rank 0's table holds for all: it travels with the other settings that rank 0 decides, as rows of
//! [`ROW_BYTES`]. Both forms are read strictly, and neither may be large.

use std::fmt;

use crate::engine::Reach;
use crate::plan::Algorithm;
use crate::types::{Collective, WORLD_MAX};

/// The first line.
const MAGIC: &str = "unisono-tuning 1";
/// The most rows a table may have: so many travel when a communicator forms.
pub const ROWS_MAX: usize = 256;
/// The most bytes of its text.
pub const TEXT_MAX: usize = 64 << 10;
/// Bytes of a row on its way: collective, pick, reach (1 each), ranks, hosts (2 each), bytes (8).
const ROW_BYTES: usize = 15;

/// What a row says to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pick {
    /// What would be taken without a table.
    Model,
    /// This algorithm, where it fits.
    By(Algorithm),
}

/// For which calls a row may hold, their size apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// What is called.
    pub collective: Collective,
    /// By how many ranks.
    pub ranks: u32,
    /// On how many hosts.
    pub hosts: u32,
    /// That can load so much of each other.
    pub reach: Reach,
}

/// One line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// For which calls.
    pub place: Place,
    /// Up to so many bytes; `u64::MAX`: any.
    pub bytes: u64,
    /// What to take.
    pub pick: Pick,
}

/// Rows in the order in which they are looked through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    rows: Vec<Row>,
}

impl Table {
    /// A table of `rows`.
    ///
    /// # Errors
    /// There are too many, or one can never hold: its number, from 0, and why.
    pub fn new(rows: Vec<Row>) -> Result<Self, (usize, String)> {
        for (number, row) in rows.iter().enumerate() {
            let bad = |why: &str| Err((number, why.to_owned()));
            if number == ROWS_MAX {
                return Err((number, format!("more than {ROWS_MAX} rows")));
            }
            let Place { collective, ranks, hosts, .. } = row.place;
            if collective.point_to_point() {
                return bad("between two ranks there is no choice");
            }
            if !(1..=WORLD_MAX).contains(&ranks) {
                return Err((number, format!("ranks={ranks} is not 1 to {WORLD_MAX}")));
            }
            if !(1..=ranks).contains(&hosts) {
                return Err((number, format!("hosts={hosts} is not 1 to the {ranks} ranks")));
            }
            let before = rows[..number].iter().rfind(|other| other.place == row.place);
            if let Some(before) = before.filter(|before| before.bytes >= row.bytes) {
                let limit = Limit(before.bytes);
                return Err((number, format!("a row before it holds for bytes{limit} already")));
            }
        }
        Ok(Self { rows })
    }

    /// The rows.
    #[must_use]
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Reads the text.
    ///
    /// # Errors
    /// The number of the line that is wrong, and what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, (usize, String)> {
        if text.len() > TEXT_MAX {
            return Err((1, format!("a table of {} bytes, at most {TEXT_MAX}", text.len())));
        }
        let mut lines = (1..).zip(text.lines());
        if lines.next().is_none_or(|(_, line)| line.trim_end() != MAGIC) {
            return Err((1, format!("a table begins with the line \"{MAGIC}\"")));
        }
        let (mut rows, mut numbers) = (Vec::new(), Vec::new());
        for (number, line) in lines {
            let line = line.trim();
            if !line.is_empty() && !line.starts_with('#') {
                rows.push(row(line).map_err(|why| (number, why))?);
                numbers.push(number);
            }
        }
        Self::new(rows).map_err(|(row, why)| (numbers[row], why))
    }

    /// As it travels.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.rows.len() * ROW_BYTES);
        for Row { place, bytes: limit, pick } in &self.rows {
            let small = |number: u32| u16::try_from(number).unwrap_or(u16::MAX).to_le_bytes();
            bytes.extend([place.collective.number(), number(*pick), place.reach as u8]);
            bytes.extend(small(place.ranks).into_iter().chain(small(place.hosts)));
            bytes.extend(limit.to_le_bytes());
        }
        bytes
    }

    /// What [`Table::encode`] made; `None`: damaged.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (rows, rest) = bytes.as_chunks::<ROW_BYTES>();
        if !rest.is_empty() || rows.len() > ROWS_MAX {
            return None;
        }
        let row = |row: &[u8; ROW_BYTES]| {
            let &[collective, pick, reach, r0, r1, h0, h1, ref limit @ ..] = row;
            let found = Collective::ALL.iter().copied().find(|c| c.number() == collective);
            let place = Place {
                collective: found?,
                ranks: u16::from_le_bytes([r0, r1]).into(),
                hosts: u16::from_le_bytes([h0, h1]).into(),
                reach: REACHES.into_iter().map(|(reach, _)| reach).find(|&r| r as u8 == reach)?,
            };
            let pick = picks().find(|&one| number(one) == pick)?;
            Some(Row { place, bytes: u64::from_le_bytes(*limit), pick })
        };
        Self::new(rows.iter().map(row).collect::<Option<_>>()?).ok()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{MAGIC}")?;
        self.rows.iter().try_for_each(|row| writeln!(f, "{row}"))
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { collective, ranks, hosts, reach } = self.place;
        let (reach, limit, pick) = (reach_name(reach), Limit(self.bytes), self.pick);
        write!(f, "{collective} ranks={ranks} hosts={hosts} reach={reach} bytes{limit} {pick}")
    }
}

impl fmt::Display for Pick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Model => "model",
            Self::By(algorithm) => algorithm.name(),
        })
    }
}

/// What follows the word `bytes`.
struct Limit(u64);

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == u64::MAX { f.write_str("=any") } else { write!(f, "<={}", self.0) }
    }
}

const REACHES: [(Reach, &str); 3] =
    [(Reach::Messages, "messages"), (Reach::Stages, "stages"), (Reach::Buffers, "buffers")];

fn reach_name(reach: Reach) -> &'static str {
    REACHES.iter().find(|(one, _)| *one == reach).map_or("?", |(_, name)| name)
}

/// Everything a row may say to take.
fn picks() -> impl Iterator<Item = Pick> {
    let algorithms = Algorithm::ALL.iter().map(|&algorithm| Pick::By(algorithm));
    std::iter::once(Pick::Model).chain(algorithms)
}

/// Its number on the way.
const fn number(pick: Pick) -> u8 {
    match pick {
        Pick::Model => u8::MAX,
        Pick::By(algorithm) => algorithm as u8,
    }
}

/// A line that is a row.
fn row(line: &str) -> Result<Row, String> {
    let mut words = line.split_whitespace();
    let mut word = |what: &str| words.next().ok_or_else(|| format!("no {what}"));
    let name = word("collective")?;
    let collective =
        Collective::from_name(name).ok_or_else(|| format!("no collective {}", quoted(name)))?;
    let ranks = value(word("ranks=N")?, "ranks=")?;
    let hosts = value(word("hosts=N")?, "hosts=")?;
    let text = word("reach=")?;
    let found = REACHES.iter().find(|(_, name)| text.strip_prefix("reach=") == Some(name));
    let Some(&(reach, _)) = found else {
        return Err(format!("{}: expected reach=messages, stages or buffers", quoted(text)));
    };
    let text = word("bytes<=N")?;
    let bytes = if text == "bytes=any" { u64::MAX } else { value(text, "bytes<=")? };
    let name = word("algorithm")?;
    let pick = picks().find(|pick| pick.to_string() == name);
    let pick = pick.ok_or_else(|| format!("no algorithm {}", quoted(name)))?;
    if let Some(more) = words.next() {
        return Err(format!("{} follows the algorithm", quoted(more)));
    }
    Ok(Row { place: Place { collective, ranks, hosts, reach }, bytes, pick })
}

fn value<N: std::str::FromStr>(word: &str, before: &str) -> Result<N, String> {
    let number = word.strip_prefix(before).filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
    let number = number.and_then(|text| text.parse().ok());
    number.ok_or_else(|| format!("{}: expected {before} and a number", quoted(word)))
}

fn quoted(text: &str) -> String {
    crate::error::quoted(text)
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
