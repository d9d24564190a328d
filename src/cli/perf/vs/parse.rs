//! Tables of nccl-tests, and our own lines of JSON.
//!
//! nccl-tests' columns are those of its head line, since versions differ in what they print:
//! `# size count type redop root time algbw busbw #wrong time algbw busbw #wrong`, the first four
//! figures out of place, the last in place. Whatever else it and NCCL print is passed over; a row
//! that is cut short or holds no numbers is an error.

use super::child::plain;

/// One placement of one size.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Cell {
    pub(super) time_us: f64,
    pub(super) busbw: f64,
    /// `None` when not checked.
    pub(super) wrong: Option<u64>,
}

/// One size: out of place, in place.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Line {
    /// What a call moves.
    pub(super) bytes: u64,
    pub(super) places: [Option<Cell>; 2],
}

impl Line {
    pub(super) fn has_wrong(&self) -> bool {
        self.places.iter().flatten().any(|cell| cell.wrong.is_some_and(|wrong| wrong > 0))
    }
}

/// What a program of nccl-tests printed.
#[derive(Debug, PartialEq)]
pub(super) struct Table {
    /// How many ranks it said it ran, where it said so.
    pub(super) ranks: Option<u32>,
    pub(super) lines: Vec<Line>,
}

/// Where the figures of a placement stand in a row.
#[derive(Clone, Copy, Debug)]
struct Columns {
    time: usize,
    busbw: usize,
    wrong: Option<usize>,
}

/// Reads a table of nccl-tests.
///
/// # Errors
/// What is not understood.
pub(super) fn nccl_tests(text: &str) -> Result<Table, String> {
    let mut columns: Option<[Columns; 2]> = None;
    let (mut ranks, mut cut) = (None, false);
    let mut lines = Vec::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match (&words[..], &columns) {
            (["#", "Rank", number, ..], _) => {
                let rank: Option<u32> = number.parse().ok();
                ranks = rank.and_then(|rank| rank.checked_add(1)).max(ranks);
                cut |= line.trim_end().ends_with("...");
            }
            (["#", "size", "count", "type", ..], _) => columns = Some(head(&words[1..], line)?),
            ([first, ..], Some(places)) if first.bytes().all(|b| b.is_ascii_digit()) => {
                lines.push(row(&words, places).ok_or_else(|| {
                    format!("its output is not understood: a row \"{}\"", plain(line))
                })?);
            }
            _ => {}
        }
    }
    if columns.is_none() {
        let said = text.lines().rfind(|line| !line.trim().is_empty()).map(plain);
        let said = said.map_or_else(|| "nothing".to_owned(), |line| format!("\"{line}\""));
        return Err(format!("its output is not understood: no table's head; it ends with {said}"));
    }
    Ok(Table { ranks: ranks.filter(|_| !cut), lines })
}

fn head(names: &[&str], line: &str) -> Result<[Columns; 2], String> {
    let times = names.iter().enumerate().filter(|(_, name)| matches!(**name, "time" | "cputime"));
    let placed: Vec<Columns> = times
        .filter(|(at, _)| names.get(at + 2) == Some(&"busbw"))
        .map(|(at, _)| {
            let wrong = (names.get(at + 3) == Some(&"#wrong")).then_some(at + 3);
            Columns { time: at, busbw: at + 2, wrong }
        })
        .collect();
    let both: Result<[Columns; 2], _> = placed.try_into();
    both.map_err(|_| format!("its output is not understood: the head \"{}\"", plain(line)))
}

fn row(words: &[&str], places: &[Columns; 2]) -> Option<Line> {
    let number = |at: usize| {
        let number: f64 = words.get(at)?.parse().ok()?;
        (number.is_finite() && number >= 0.0).then_some(number)
    };
    let cell = |columns: Columns| {
        let wrong = match columns.wrong {
            Some(at) if *words.get(at)? != "N/A" => Some(whole(number(at)?)),
            _ => None,
        };
        Some(Cell { time_us: number(columns.time)?, busbw: number(columns.busbw)?, wrong })
    };
    let places = [Some(cell(places[0])?), Some(cell(places[1])?)];
    Some(Line { bytes: words.first()?.parse().ok()?, places })
}

/// A count that was printed as a float, such as `1.04858e+06`. Some wrong stays some.
fn whole(count: f64) -> u64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "counts are not negative, and casts of floats saturate"
    )]
    {
        count.ceil() as u64
    }
}

/// Reads the lines of `perf --json --both`.
///
/// # Errors
/// What is not understood.
pub(super) fn ours(text: &str) -> Result<Vec<Line>, String> {
    let mut lines: Vec<(u64, Line)> = Vec::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let bad = || format!("its output is not understood: a line \"{}\"", plain(line));
        let value: serde_json::Value = serde_json::from_str(line).map_err(|_| bad())?;
        let number = |name: &str| value.get(name).and_then(serde_json::Value::as_f64);
        let count = |name: &str| value.get(name).and_then(serde_json::Value::as_u64);
        let in_place = value.get("in_place").and_then(serde_json::Value::as_bool);
        let (Some(asked), Some(bytes), Some(in_place)) = (count("bytes"), count("moved"), in_place)
        else {
            return Err(bad());
        };
        let (Some(time_us), Some(busbw)) = (number("median_us"), number("busbw")) else {
            return Err(bad());
        };
        let cell = Cell { time_us, busbw, wrong: count("wrong") };
        if lines.last().is_none_or(|(last, _)| *last != asked) {
            lines.push((asked, Line { bytes, places: [None, None] }));
        }
        if let Some((_, last)) = lines.last_mut() {
            last.places[usize::from(in_place)] = Some(cell);
        }
    }
    Ok(lines.into_iter().map(|(_, line)| line).collect())
}

/// Whether `lines` are those of `sizes`, which both sides cut to whole elements and nccl-tests to
/// blocks of 16 bytes a rank.
///
/// # Errors
/// Which are missing, or do not fit.
pub(super) fn fit(lines: &[Line], sizes: &[u64], world: u32, element: u64) -> Result<(), String> {
    if let Some(missing) = sizes.get(lines.len()) {
        return Err(format!(
            "it printed {} of {} sizes; the first that is missing is {missing} B (nccl-tests \
             leaves out what does not fit the GPU's memory)",
            lines.len(),
            sizes.len()
        ));
    }
    if lines.len() > sizes.len() {
        return Err(format!("it printed {} sizes, not {}", lines.len(), sizes.len()));
    }
    let slack = (16 + element) * u64::from(world) + element;
    let other = |(line, size): &(&Line, &u64)| line.bytes.abs_diff(**size) > slack;
    match lines.iter().zip(sizes).find(other) {
        Some((line, size)) => {
            Err(format!("it printed a row of {} B where {size} B were asked for", line.bytes))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As version 2.19 prints it.
    const TABLE: &str = concat!(
        "# nccl-tests version 2.19.6 nccl-headers=23007 nccl-library=23007\n",
        "# Collective test starting: all_reduce_perf\n",
        "#\n",
        "# Using devices\n",
        "#  Rank  0 Group  0 Pid   4242 on     gpuhost device  0 [0000:18:00] NVIDIA H200\n",
        "#  Rank  1 Group  0 Pid   4242 on     gpuhost device  1 [0000:2a:00] NVIDIA H200\n",
        "NCCL version 2.30.7+cuda13.0\n",
        "#\n",
        "#                                                              out-of-place                       in-place          \n",
        "#       size         count      type   redop    root     time   algbw   busbw  #wrong     time   algbw   busbw  #wrong \n",
        "#        (B)    (elements)                               (us)  (GB/s)  (GB/s)             (us)  (GB/s)  (GB/s)         \n",
        "           8             2     float     sum      -1    11.52    0.00    0.00       0    11.43    0.00    0.00       0\n",
        "     1048576        262144     float     sum      -1    21.70   48.32   48.32       0    2.1e+4   48.40   48.40     N/A\n",
        "# Out of bounds values : 0 OK\n",
        "# Avg bus bandwidth    : 24.18\n",
    );

    #[test]
    fn tables_are_read_by_their_head() {
        let table = nccl_tests(TABLE).expect("a table");
        assert_eq!((table.ranks, table.lines.len()), (Some(2), 2));
        let cell = |time_us, busbw, wrong| Some(Cell { time_us, busbw, wrong });
        let first = [cell(11.52, 0.0, Some(0)), cell(11.43, 0.0, Some(0))];
        assert_eq!(table.lines[0], Line { bytes: 8, places: first });
        let second = [cell(21.7, 48.32, Some(0)), cell(21_000.0, 48.4, None)];
        assert_eq!(table.lines[1], Line { bytes: 1 << 20, places: second });
        // Another column, and one more behind them.
        let other = TABLE.replace("redop    root", "redop    root extra");
        let other =
            other.replace("sum      -1", "sum      -1  x").replace("       0\n", " 0  12:00:01\n");
        assert_eq!(nccl_tests(&other).expect("a table").lines, table.lines);
        let wrong = TABLE.replace("48.32       0", "48.32   1e+06");
        let lines = nccl_tests(&wrong).expect("a table").lines;
        assert_eq!((lines[0].has_wrong(), lines[1].has_wrong()), (false, true));
        assert_eq!(lines[1].places[0].and_then(|cell| cell.wrong), Some(1_000_000));
    }

    #[test]
    fn what_is_no_table_is_refused_with_its_words() {
        let refused = |text: &str| nccl_tests(text).expect_err(text);
        assert!(refused("").contains("nothing"));
        assert!(refused("hello\u{1b}[2J\n").contains("\"hello?[2J\""));
        for (from, to) in [
            ("    11.52 ", "      nan "),
            ("    11.52 ", "      -1 "),
            ("    11.52 ", "   NCCL WARN "),
            ("48.40   48.40     N/A", ""),
            ("           8  ", " 99999999999999999999999  "),
        ] {
            let text = TABLE.replace(from, to);
            assert_ne!(text, TABLE, "{from}");
            assert!(refused(&text).contains("not understood: a row"), "{to}");
        }
        let single = TABLE.replace("#wrong     time", "#wrong     rate");
        assert!(refused(&single).contains("the head"));
    }

    #[test]
    fn any_cut_of_a_table_is_read_or_refused() {
        for end in 0..TABLE.len() {
            let _ = nccl_tests(&TABLE[..end]);
            let _ = ours(&TABLE[..end]);
        }
    }

    #[test]
    fn our_lines_are_put_together_by_size() {
        let line = |bytes: u64, in_place: bool, time: f64| {
            format!(
                "{{\"bytes\":{bytes},\"moved\":{bytes},\"in_place\":{in_place},\
                 \"median_us\":{time},\"busbw\":1.5,\"wrong\":0}}\n"
            )
        };
        let text = line(8, false, 1.0) + &line(8, true, 2.0) + &line(64, false, 3.0);
        let lines = ours(&text).expect("lines");
        let times = |line: &Line| line.places.map(|cell| cell.map(|cell| cell.time_us));
        assert_eq!(times(&lines[0]), [Some(1.0), Some(2.0)]);
        assert_eq!((lines[1].bytes, times(&lines[1])), (64, [Some(3.0), None]));
        assert!(ours("no json\n").is_err() && ours("{\"bytes\":8}\n").is_err());
    }

    #[test]
    fn sizes_that_are_missing_are_named() {
        let line = |bytes| Line { bytes, places: [None, None] };
        let fits = |lines: &[u64], sizes: &[u64]| {
            fit(&lines.iter().copied().map(line).collect::<Vec<_>>(), sizes, 2, 4)
        };
        // A rank's block is a multiple of 16 bytes there.
        assert_eq!(fits(&[0, 64, 512], &[8, 64, 512]), Ok(()));
        assert!(fits(&[8], &[8, 64]).expect_err("one").contains("missing is 64 B"));
        assert!(fits(&[8, 64], &[8]).expect_err("more").contains("2 sizes, not 1"));
        assert!(fits(&[8, 4096], &[8, 64]).expect_err("other").contains("4096 B where 64 B"));
    }
}
