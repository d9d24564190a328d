//! The processors a thread may run on.

use super::check;
use crate::error::{Code, Error, Result};

/// The processors the calling thread may run on, in rising order.
pub(crate) fn allowed() -> Result<Vec<usize>> {
    // SAFETY: a cpu_set_t is plain bits, for which all zeros is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is a local of the stated size; 0 means the calling thread.
    let got = unsafe { libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) };
    check(got, "sched_getaffinity")?;
    // SAFETY: the index stays below the set's size.
    Ok((0..set_size()).filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &set) }).collect())
}

/// The same as bits, 64 to a word; none when the system does not say.
pub(crate) fn mask() -> Vec<u64> {
    let mut words = Vec::new();
    for cpu in allowed().unwrap_or_default() {
        if words.len() <= cpu / 64 {
            words.resize(cpu / 64 + 1, 0);
        }
        words[cpu / 64] |= 1 << (cpu % 64);
    }
    words
}

/// Whether a thread that may run on `mine` can have a processor for itself, with threads that may
/// run on `all`, itself among them: whether those that have no other choice than `mine` are no more
/// than its processors (Hall's condition, which is all there is to know where masks are equal,
/// apart, or one inside the other).
pub(crate) fn suffices(mine: &[u64], all: &[&[u64]]) -> bool {
    let inside = |mask: &&&[u64]| {
        let outside = |(index, word): (usize, &u64)| word & !mine.get(index).copied().unwrap_or(0);
        mask.iter().enumerate().map(outside).all(|bits| bits == 0)
    };
    let processors: u32 = mine.iter().map(|word| word.count_ones()).sum();
    all.iter().filter(inside).count() <= processors.max(1) as usize
}

/// How many processors the calling thread may run on; at least 1.
pub(crate) fn count() -> usize {
    allowed().map_or(1, |cpus| cpus.len().max(1))
}

/// The memory node of the processors the calling thread may run on, where they are at one.
pub(crate) fn node() -> Option<u32> {
    let mine = allowed().ok().filter(|cpus| !cpus.is_empty())?;
    let nodes = std::fs::read_dir("/sys/devices/system/node").ok()?;
    nodes.flatten().find_map(|entry| {
        let number = entry.file_name().to_str()?.strip_prefix("node")?.parse().ok()?;
        let list = std::fs::read_to_string(entry.path().join("cpulist")).ok()?;
        let there = cpus(list.trim())?;
        mine.iter().all(|cpu| there.iter().any(|range| range.contains(cpu))).then_some(number)
    })
}

/// A list of processors as the system writes it: "0-3,8".
fn cpus(list: &str) -> Option<Vec<std::ops::RangeInclusive<usize>>> {
    let one = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse().ok()?..=last.parse().ok()?)
    };
    list.split(',').filter(|part| !part.is_empty()).map(one).collect()
}

/// Lets the calling thread run on these processors only.
pub(crate) fn set(cpus: &[usize]) -> Result<()> {
    // SAFETY: a cpu_set_t is plain bits, for which all zeros is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for &cpu in cpus {
        if cpu >= set_size() {
            return Err(Error::new(Code::InvalidArgument, format!("there is no processor {cpu}")));
        }
        // SAFETY: the index is below the set's size.
        unsafe { libc::CPU_SET(cpu, &mut set) };
    }
    // SAFETY: `set` is a local of the stated size; 0 means the calling thread.
    let done = unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) };
    check(done, format!("running on processors {cpus:?}")).map(drop)
}

const fn set_size() -> usize {
    size_of::<libc::cpu_set_t>() * 8
}

#[cfg(test)]
mod tests {
    use super::suffices;

    #[test]
    fn a_rank_has_a_processor_for_itself_unless_others_need_it() {
        let (low, high, both, far): ([u64; 1], [u64; 1], [u64; 1], [u64; 2]) =
            ([1], [2], [3], [0, 1]);
        // As a launcher binds them, and as none does.
        assert!(suffices(&low, &[&low, &high]) && suffices(&high, &[&low, &high]));
        assert!(suffices(&both, &[&both, &both]));
        assert!(!suffices(&both, &[&both, &both, &both]));
        // Two on one processor share it, whatever a third may use.
        assert!(!suffices(&low, &[&low, &low, &both]));
        assert!(!suffices(&both, &[&low, &low, &both]));
        assert!(suffices(&far, &[&low, &low, &far]));
        // Of one that the system does not name.
        assert!(suffices(&[], &[&[]]) && !suffices(&[], &[&[], &[]]));
    }

    #[test]
    fn a_mask_is_the_list_in_bits() {
        let count: u32 = super::mask().iter().map(|word| word.count_ones()).sum();
        assert_eq!(count as usize, super::count());
    }

    #[test]
    fn a_thread_runs_where_it_is_told() {
        let all = super::allowed().expect("allowed");
        assert_eq!(all.len(), super::count());
        let first = all[0];
        let seen = std::thread::spawn(move || {
            super::set(&[first]).expect("set");
            super::allowed().expect("allowed")
        });
        assert_eq!(seen.join().expect("thread"), [first]);
        assert!(super::set(&[]).is_err());
        assert!(super::set(&[1 << 20]).is_err());
    }
}
