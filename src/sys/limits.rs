//! Limits of this process.

use super::check;
use crate::error::Result;

/// Raises the number of open files to what the process is allowed at most, and returns it.
pub(crate) fn raise_files() -> Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a local that lives through the call.
    let done = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    check(done, "RLIMIT_NOFILE")?;
    if limit.rlim_cur < limit.rlim_max {
        let raised = libc::rlimit { rlim_cur: limit.rlim_max, ..limit };
        // SAFETY: `raised` is a local that lives through the call.
        let done = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) };
        check(done, "RLIMIT_NOFILE")?;
    }
    Ok(limit.rlim_max)
}

/// Bytes of the machine's memory.
pub(crate) fn memory() -> usize {
    // SAFETY: the calls read plain integers.
    let (pages, page) =
        unsafe { (libc::sysconf(libc::_SC_PHYS_PAGES), libc::sysconf(libc::_SC_PAGESIZE)) };
    let number = |value: libc::c_long| usize::try_from(value).unwrap_or(0);
    number(pages).saturating_mul(number(page))
}

/// Bytes that the process may lock in memory; `None`: as many as there are.
pub(crate) fn locked() -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a local that lives through the call.
    let done = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) };
    (done == 0 && limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}

#[cfg(test)]
mod tests {
    #[test]
    fn raising_twice_gives_the_same_limit() {
        let first = super::raise_files().expect("raise");
        assert!(first > 0);
        assert_eq!(super::raise_files().expect("raise"), first);
    }
}
