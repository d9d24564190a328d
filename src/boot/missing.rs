//! Names sets of ranks in a few words.

/// How many runs of ranks a text names at most; the rest become a count.
const RUNS_MAX: usize = 24;

/// `"rank 3"`, `"ranks 3, 5-7"`: rising rank numbers as text.
pub(crate) fn ranks_text(ranks: &[u32]) -> String {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for &rank in ranks {
        match runs.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(rank) => *last = rank,
            _ => runs.push((rank, rank)),
        }
    }
    let shown = runs.iter().take(RUNS_MAX).map(|&(first, last)| match last - first {
        0 => format!("{first}"),
        1 => format!("{first}, {last}"),
        _ => format!("{first}-{last}"),
    });
    let mut text = shown.collect::<Vec<_>>().join(", ");
    if runs.len() > RUNS_MAX {
        text.push_str(", ...");
    }
    format!("{} {text}", if ranks.len() == 1 { "rank" } else { "ranks" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_ranks_are_compressed() {
        assert_eq!(ranks_text(&[3]), "rank 3");
        assert_eq!(ranks_text(&[3, 5, 6, 7]), "ranks 3, 5-7");
        assert_eq!(ranks_text(&[0, 1, 9]), "ranks 0, 1, 9");
        assert_eq!(ranks_text(&[u32::MAX - 1, u32::MAX]), "ranks 4294967294, 4294967295");
    }

    #[test]
    fn a_long_list_is_cut() {
        let odd: Vec<u32> = (0..2000).map(|rank| 2 * rank).collect();
        let text = ranks_text(&odd);
        assert!(text.len() < 200 && text.ends_with("..."), "{text}");
    }
}
