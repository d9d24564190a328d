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

/// How many processors the calling thread may run on; at least 1.
pub(crate) fn count() -> usize {
    allowed().map_or(1, |cpus| cpus.len().max(1))
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
