//! A memory barrier on every running thread of this process: membarrier(2).

use libc::{c_int, c_long};

const REGISTER: c_int = 1 << 4;
const PRIVATE_EXPEDITED: c_int = 1 << 3;

fn membarrier(command: c_int) -> c_long {
    // SAFETY: the call takes plain integers.
    unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) }
}

/// Whether [`all_threads`] works here, from now on.
pub(crate) fn register() -> bool {
    membarrier(REGISTER) == 0 && membarrier(PRIVATE_EXPEDITED) == 0
}

/// Every thread of the process passes a full barrier before this returns. Needs [`register`].
pub(crate) fn all_threads() {
    let done = membarrier(PRIVATE_EXPEDITED);
    debug_assert_eq!(done, 0, "registered");
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_barrier_runs_where_it_registers() {
        if super::register() {
            super::all_threads();
        }
    }
}
