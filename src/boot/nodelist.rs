//! Slurm's short form of host lists.

/// The first host of a list such as `gpu[03-07,9],x1`; `None` when it makes no sense.
pub(crate) fn first_host(list: &str) -> Option<String> {
    let mut host = String::new();
    let mut rest = list.trim();
    // BOUND: every turn takes at least a letter of the list.
    while let Some(at) = rest.find(['[', ',']) {
        host.push_str(&rest[..at]);
        if rest[at..].starts_with(',') {
            return valid(host);
        }
        let close = rest[at..].find(']')? + at;
        let first = rest[at + 1..close].split([',', '-']).next()?;
        if first.is_empty() || !first.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        host.push_str(first);
        rest = &rest[close + 1..];
    }
    host.push_str(rest);
    valid(host)
}

fn valid(host: String) -> Option<String> {
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
    (!host.is_empty() && host.bytes().all(letter)).then_some(host)
}

#[cfg(test)]
mod tests {
    use super::first_host;

    #[test]
    fn the_first_host_of_a_list_is_found() {
        for (list, host) in [
            ("gpu[03-07,9],x1", "gpu03"),
            ("node1", "node1"),
            ("node1,node2", "node1"),
            ("a[1-2]b[3-4]-ib", "a1b3-ib"),
            ("n[7,9]", "n7"),
            (" x.cluster.example ", "x.cluster.example"),
        ] {
            assert_eq!(first_host(list).as_deref(), Some(host), "{list}");
        }
    }

    #[test]
    fn nonsense_is_no_list() {
        for list in ["", ",", "a[", "a[]", "a[x-y]", "a]b[1", "a b", "[-3]"] {
            assert_eq!(first_host(list), None, "{list}");
        }
    }
}
