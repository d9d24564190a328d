//! Tables of Markdown.

use std::collections::{BTreeMap, BTreeSet};

use super::runner::Seen;

/// Ours and the floor, by the names their columns have.
pub(super) const OURS: &str = "Unisono";
pub(super) const FLOOR: &str = "floor";

/// A table; the first column is text, the others numbers.
pub(super) fn markdown(head: &[String], rows: &[Vec<String>]) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let rule = format!("|---|{}\n", "---:|".repeat(head.len().saturating_sub(1)));
    let rows: String = rows.iter().map(|row| line(row)).collect();
    line(head) + &rule + &rows
}

/// Bytes in the largest unit that leaves a whole number.
pub(super) fn size(bytes: u64) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    let whole = |shift: u32| bytes > 0 && bytes.trailing_zeros() >= shift;
    let unit = units.into_iter().find(|&(shift, _)| whole(shift));
    unit.map_or_else(|| format!("{bytes} B"), |(shift, name)| format!("{} {name}", bytes >> shift))
}

/// Three digits that mean something.
pub(super) fn number(value: f64) -> String {
    match value.abs() {
        at if at < 10.0 => format!("{value:.2}"),
        at if at < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

fn cell(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), number)
}

/// A sweep's table, and below it what its ratios come to.
///
/// `best / ours` is the fastest peer's time over ours: above 1, ours is the faster. `floor / ours`
/// is the part of our time that the machine needs at least.
pub(super) fn sweep(seen: &[Seen]) -> String {
    let medians: Vec<BTreeMap<u64, f64>> = seen.iter().map(Seen::medians).collect();
    let of = |name: &str| seen.iter().position(|seen| seen.name == name);
    let (ours, floor) = (of(OURS), of(FLOOR));
    let peers: Vec<usize> =
        (0..seen.len()).filter(|&at| Some(at) != ours && Some(at) != floor).collect();
    let mut head = vec!["size".to_owned()];
    head.extend(seen.iter().map(|seen| format!("{} (us)", seen.name)));
    head.extend((!peers.is_empty()).then(|| "best / ours".to_owned()));
    head.extend(floor.map(|_| "floor / ours".to_owned()));
    let sizes: BTreeSet<u64> = medians.iter().flat_map(BTreeMap::keys).copied().collect();
    let (mut rows, mut ratios) = (Vec::new(), Vec::new());
    for &bytes in &sizes {
        let at = |index: usize| medians[index].get(&bytes).copied();
        let own = ours.and_then(at).filter(|&time| time > 0.0);
        let over = |time: Option<f64>| Some(time? / own?);
        let best = peers.iter().filter_map(|&peer| at(peer)).reduce(f64::min);
        let mut row = vec![size(bytes)];
        row.extend((0..seen.len()).map(|index| cell(at(index))));
        if !peers.is_empty() {
            row.push(cell(over(best)));
            ratios.extend(over(best));
        }
        row.extend(floor.map(|floor| cell(over(at(floor)))));
        rows.push(row);
    }
    let summary = geometric_mean(&ratios).map_or_else(String::new, |mean| {
        let worst = ratios.iter().copied().fold(f64::INFINITY, f64::min);
        format!(
            "\nbest / ours: geometric mean {} over {} sizes, least {}.\n",
            number(mean),
            ratios.len(),
            number(worst)
        )
    });
    markdown(&head, &rows) + &summary
}

/// Times of element types at equal counts, each beside the first type's.
pub(super) fn types(seen: &[Seen]) -> String {
    let medians: Vec<BTreeMap<u64, f64>> = seen.iter().map(Seen::medians).collect();
    let Some((first, base)) = seen.first().zip(medians.first()) else { return String::new() };
    let mut head = vec!["elements".to_owned(), format!("{} (us)", first.name)];
    for other in &seen[1..] {
        head.extend([format!("{} (us)", other.name), format!("/ {}", first.name)]);
    }
    let row = |(&count, &time): (&u64, &f64)| {
        let mut row = vec![count.to_string(), number(time)];
        for medians in &medians[1..] {
            let other = medians.get(&count).copied();
            row.extend([cell(other), cell(other.map(|other| other / time))]);
        }
        row
    };
    markdown(&head, &base.iter().map(row).collect::<Vec<_>>())
}

fn geometric_mean(values: &[f64]) -> Option<f64> {
    let count = u32::try_from(values.len()).ok().filter(|&count| count > 0)?;
    let sum: f64 = values.iter().map(|value| value.ln()).sum();
    Some((sum / f64::from(count)).exp())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A contestant with one figure at each size.
    pub(in super::super) fn seen(name: &str, rows: &[(u64, f64)]) -> Seen {
        let mut seen = Seen::new(name);
        seen.rows = rows.iter().map(|&(bytes, time)| (bytes, vec![time])).collect();
        seen
    }

    #[test]
    fn sizes_and_numbers_are_short() {
        let sizes = [8, 1024, 1536, 2 << 20, 128 << 20, 0].map(size);
        assert_eq!(sizes, ["8 B", "1 KiB", "1536 B", "2 MiB", "128 MiB", "0 B"]);
        assert_eq!([0.344, 34.44, 344.4, 34444.0].map(number), ["0.34", "34.4", "344", "34444"]);
    }

    #[test]
    fn a_sweep_has_ratios_and_gaps() {
        let text = sweep(&[
            seen(OURS, &[(8, 0.5), (64, 2.0)]),
            seen(FLOOR, &[(8, 0.25)]),
            seen("One", &[(8, 1.0), (64, 4.0)]),
            seen("Two", &[(8, 2.0), (64, 1.0)]),
        ]);
        let wanted = "\
| size | Unisono (us) | floor (us) | One (us) | Two (us) | best / ours | floor / ours |
|---|---:|---:|---:|---:|---:|---:|
| 8 B | 0.50 | 0.25 | 1.00 | 2.00 | 2.00 | 0.50 |
| 64 B | 2.00 | - | 4.00 | 1.00 | 0.50 | - |

best / ours: geometric mean 1.00 over 2 sizes, least 0.50.
";
        assert_eq!(text, wanted);
    }

    #[test]
    fn without_peers_and_floor_ours_stands_alone() {
        let text = sweep(&[seen(OURS, &[(8, 0.5)])]);
        assert_eq!(text, "| size | Unisono (us) |\n|---|---:|\n| 8 B | 0.50 |\n");
        assert!(sweep(&[seen(OURS, &[])]).ends_with("|---|---:|\n"));
    }

    #[test]
    fn types_stand_beside_the_first() {
        let text = types(&[seen("f32", &[(2, 1.0)]), seen("f16", &[(2, 0.6)])]);
        assert!(text.ends_with("| 2 | 1.00 | 0.60 | 0.60 |\n"), "{text}");
    }
}
