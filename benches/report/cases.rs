//! What is measured.

/// How the ranks reach each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    Mem,
    Shm,
    Tcp,
}

impl Link {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Mem => "mem",
            Self::Shm => "shm",
            Self::Tcp => "tcp",
        }
    }

    const fn words(self) -> &'static str {
        match self {
            Self::Mem => "threads of one process",
            Self::Shm => "shared memory",
            Self::Tcp => "TCP over loopback",
        }
    }
}

/// One collective over sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sweep {
    pub(super) op: &'static str,
    pub(super) ranks: usize,
    pub(super) link: Link,
    /// Memory that local ranks can map.
    pub(super) registered: bool,
    /// The largest size, where it is not the session's.
    pub(super) most: Option<u64>,
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Sweep(Sweep),
    /// all_reduce of as many elements of each float type.
    Types,
    /// From the start of a command to the end of its ranks' first collective.
    Start {
        ranks: usize,
    },
    /// Resident memory that the library adds to a rank.
    Memory {
        ranks: usize,
    },
    /// Processor time of a rank that waits.
    Idle,
    /// How much of a non-blocking call a computation hides.
    Overlap,
    /// What the MPI backend adds to MPI's own calls.
    OverMpi,
}

/// One section of the report.
#[derive(Clone, Debug)]
pub(super) struct Case {
    /// By which it is chosen, and its chart's file.
    pub(super) name: String,
    pub(super) title: String,
    pub(super) kind: Kind,
}

/// Element types of [`Kind::Types`], the one to compare with first, with their bytes.
pub(super) const TYPES: &[(&str, u64)] =
    &[("f32", 4), ("bf16", 2), ("f16", 2), ("f8e4m3", 1), ("f8e5m2", 1)];

fn sweep(op: &'static str, ranks: usize, link: Link) -> Sweep {
    Sweep { op, ranks, link, registered: false, most: None }
}

fn of_sweep(sweep: Sweep) -> Case {
    let Sweep { op, ranks, link, registered, .. } = sweep;
    let (suffix, memory) =
        if registered { ("-registered", ", registered memory") } else { ("", "") };
    Case {
        name: format!("{}-{op}-{ranks}{suffix}", link.name()),
        title: format!("{op}, {ranks} ranks, {}{memory}", link.words()),
        kind: Kind::Sweep(sweep),
    }
}

fn other(name: &str, title: &str, kind: Kind) -> Case {
    Case { name: name.to_owned(), title: title.to_owned(), kind }
}

/// Every case, in the order of the report.
pub(super) fn all() -> Vec<Case> {
    let mut sweeps = vec![
        sweep("all_reduce", 2, Link::Shm),
        Sweep { registered: true, ..sweep("all_reduce", 2, Link::Shm) },
        sweep("all_reduce", 4, Link::Shm),
        sweep("all_reduce", 8, Link::Shm),
    ];
    for op in ["all_gather", "reduce_scatter", "broadcast", "all_to_all"] {
        sweeps.extend([2, 4].map(|ranks| sweep(op, ranks, Link::Shm)));
    }
    sweeps.extend([2, 4].map(|ranks| sweep("all_reduce", ranks, Link::Tcp)));
    sweeps.push(Sweep { most: Some(8), ..sweep("all_reduce", 2, Link::Mem) });
    let mut cases: Vec<Case> = sweeps.into_iter().map(of_sweep).collect();
    cases.extend([
        other("types", "all_reduce of float types, 2 ranks, shared memory", Kind::Types),
        other("start-2", "start of 2 local ranks", Kind::Start { ranks: 2 }),
        other("start-8", "start of 8 local ranks", Kind::Start { ranks: 8 }),
        other("memory", "resident memory, 8 local ranks", Kind::Memory { ranks: 8 }),
        other("idle", "a rank that waits", Kind::Idle),
        other("mpi", "all_reduce on the MPI backend, 2 ranks, over MPI's own", Kind::OverMpi),
        other("overlap", "all_reduce of 64 MiB behind a computation, 2 ranks, TCP", Kind::Overlap),
    ]);
    cases
}

/// The cases whose names begin with one of `names`; all when there is none.
///
/// # Errors
/// A name that fits no case.
pub(super) fn choose(names: &[String]) -> Result<Vec<Case>, String> {
    let cases = all();
    let fits = |case: &Case, name: &String| case.name.starts_with(name.as_str());
    if let Some(name) = names.iter().find(|name| !cases.iter().any(|case| fits(case, name))) {
        return Err(format!("no case begins with {name:?}; --list shows them"));
    }
    let wanted = |case: &Case| names.is_empty() || names.iter().any(|name| fits(case, name));
    Ok(cases.into_iter().filter(wanted).collect())
}

/// `lo` and all its multiples by `step` up to `hi`.
pub(super) fn sizes(lo: u64, hi: u64, step: u64) -> Vec<u64> {
    let next = |size: &u64| size.checked_mul(step);
    std::iter::successors(Some(lo), next).take_while(|size| *size <= hi).collect()
}

/// Calls in a round: the same for all that time themselves, those of `unisono perf`.
pub(super) fn calls(bytes: u64) -> u32 {
    match bytes {
        0..=65_536 => 500,
        65_537..=1_048_576 => 100,
        1_048_577..=16_777_216 => 10,
        _ => 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_choose_by_their_beginning() {
        let names: std::collections::BTreeSet<_> = all().into_iter().map(|c| c.name).collect();
        assert_eq!(names.len(), all().len());
        let some = choose(&["shm-all_reduce-2".to_owned(), "idle".to_owned()]).expect("there");
        let some: Vec<_> = some.iter().map(|case| case.name.as_str()).collect();
        assert_eq!(some, ["shm-all_reduce-2", "shm-all_reduce-2-registered", "idle"]);
        assert!(choose(&["shm-all_reduce-3".to_owned()]).is_err());
    }

    #[test]
    fn sizes_end_with_the_last_that_fits() {
        assert_eq!(sizes(8, 4096, 8), [8, 64, 512, 4096]);
        assert_eq!(sizes(8, 4095, 8), [8, 64, 512]);
    }
}
