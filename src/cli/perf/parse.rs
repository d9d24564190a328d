//! Words of the command line as values.

/// Bytes, with a binary suffix: 512, 64K, 8MiB, 1G.
pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    let bad = || format!("{text:?} is no size such as 512, 64K, 8M or 1G");
    let upper = text.trim().to_ascii_uppercase();
    let digits = upper.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match &upper[digits.len()..] {
        "" | "B" => 0,
        "K" | "KB" | "KIB" => 10,
        "M" | "MB" | "MIB" => 20,
        "G" | "GB" | "GIB" => 30,
        _ => return Err(bad()),
    };
    let number: u64 = digits.parse().map_err(|_| bad())?;
    let bytes = number.checked_mul(1 << shift).filter(|&b| b <= 1 << 46);
    bytes.ok_or_else(|| format!("{text:?} is more than there can be"))
}

/// A size that leads on: with a step of nothing every size would be the first.
pub(super) fn parse_step(text: &str) -> Result<u64, String> {
    parse_size(text).and_then(|step| if step > 0 { Ok(step) } else { Err("at least 1".into()) })
}

/// A bandwidth that a measured one can be below: no comparison with NaN is ever true.
pub(super) fn parse_bandwidth(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|least: &f64| least.is_finite() && *least >= 0.0);
    number.ok_or_else(|| "not a number of GB/s".to_owned())
}

/// One of `all`, or all of those.
pub(super) fn pick<T: Copy>(
    text: &str,
    what: &str,
    all: &[T],
    name: fn(T) -> &'static str,
) -> Result<Vec<T>, String> {
    if text == "all" {
        return Ok(all.to_vec());
    }
    let found: Vec<T> = all.iter().copied().filter(|&one| name(one) == text).collect();
    if found.is_empty() {
        let names: Vec<_> = all.iter().map(|&one| name(one)).collect();
        return Err(format!("{what} \"{text}\": there are {} and all", names.join(", ")));
    }
    Ok(found)
}

/// A share of another bandwidth.
pub(super) fn parse_ratio(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|least: &f64| least.is_finite() && *least >= 0.0);
    number.ok_or_else(|| "not a ratio such as 0.92".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_binary_suffixes_and_nonsense_is_refused() {
        for (text, bytes) in [("8", 8), ("64k", 65_536), ("2MiB", 2 << 20), ("1G", 1 << 30)] {
            assert_eq!(parse_size(text), Ok(bytes));
        }
        for text in ["", "M", "-1", "1X", "1.5M", "99999999999G"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
        assert_eq!((parse_step("0").is_err(), parse_step("1K")), (true, Ok(1024)));
    }

    #[test]
    fn bandwidths_are_numbers_that_can_be_compared() {
        assert_eq!((parse_bandwidth("0"), parse_bandwidth("1.5")), (Ok(0.0), Ok(1.5)));
        for text in ["nan", "NaN", "inf", "-1", "", "fast"] {
            assert!(parse_bandwidth(text).is_err() && parse_ratio(text).is_err(), "{text}");
        }
        assert_eq!(parse_ratio("0.92"), Ok(0.92));
    }
}
