//! Other processes: a handle that becomes readable when the process ends, and who they are.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use super::poll::{Interest, wait_one};
use super::{length_of, own};
use crate::error::{Code, Error, Result};

/// A process that cannot be confused with a later one of the same number.
#[derive(Debug)]
pub(crate) struct Process {
    fd: OwnedFd,
    pid: i32,
}

impl Process {
    /// The process with this number.
    pub(crate) fn open(pid: i32) -> Result<Self> {
        if pid <= 0 {
            return Err(Error::new(Code::System, "the process is not visible from here"));
        }
        // SAFETY: the call reads plain integers.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        let fd = libc::c_int::try_from(fd).unwrap_or(-1);
        Ok(Self { fd: own(fd, format!("pidfd_open of process {pid}"))?, pid })
    }

    /// The process at the other end of a Unix socket.
    pub(crate) fn of_peer(stream: &UnixStream) -> Result<Self> {
        let pid = super::unix::peer_pid(stream)?;
        let mut fd: libc::c_int = -1;
        let mut length = length_of::<libc::c_int>();
        // A kernel that gives the handle itself leaves no moment in which the number could be
        // taken by another process.
        // SAFETY: both pointers are to locals of the stated size.
        let got = unsafe {
            libc::getsockopt(
                stream.as_raw_fd(),
                libc::SOL_SOCKET,
                SO_PEERPIDFD,
                (&raw mut fd).cast(),
                &raw mut length,
            )
        };
        if got == 0 && pid > 0 {
            return Ok(Self { fd: own(fd, "SO_PEERPIDFD")?, pid });
        }
        Self::open(pid)
    }

    /// Whether the process has not ended.
    pub(crate) fn alive(&self) -> bool {
        !wait_one(self.fd.as_fd(), Interest::Read, Some(std::time::Duration::ZERO)).unwrap_or(false)
    }

    /// Its number, for messages.
    pub(crate) const fn pid(&self) -> i32 {
        self.pid
    }

    /// The descriptor that is readable once the process has ended.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Linux 6.5; the libc crate may not have it for every target.
const SO_PEERPIDFD: libc::c_int = 77;

/// When process `pid` started, in clock ticks since boot; `None` when there is no such process.
/// With the number it names a process for the life of the machine.
pub(crate) fn start_ticks(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses and may hold anything, so count from
    // the last one: state is the first field after it and the start time the twentieth.
    let after = &stat[stat.rfind(')')? + 1..];
    after.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// The parent of process `pid` and the first 15 letters of the parent's name.
fn parent_of(pid: u32) -> Option<(u32, String)> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    let parent: u32 = line.trim().parse().ok().filter(|&parent| parent > 0)?;
    let name = std::fs::read_to_string(format!("/proc/{parent}/comm")).ok()?;
    Some((parent, name.trim_end().to_owned()))
}

/// This process's ancestors, the nearest first, with their names: at most 16.
pub(crate) fn ancestors() -> impl Iterator<Item = (u32, String)> {
    let mut pid = std::process::id();
    // BOUND: a fixed number of generations.
    (0..16).map_while(move |_| {
        let (parent, name) = parent_of(pid)?;
        pid = parent;
        Some((parent, name))
    })
}

/// Forks between the first process that asked and this one.
static FORKS: AtomicU32 = AtomicU32::new(0);

extern "C" fn count_fork() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}

/// A number that differs between a process and the one it was forked from, from the first call on.
/// A child of `clone` or `vfork` is not told apart.
pub(crate) fn forks() -> u32 {
    static ASKED: Once = Once::new();
    ASKED.call_once(|| {
        // Fails only for want of memory; then a child is not told apart.
        // SAFETY: the handler does nothing but add to an atomic.
        unsafe { libc::pthread_atfork(None, None, Some(count_fork)) };
    });
    FORKS.load(Ordering::Relaxed)
}

/// The effective user this process runs as.
pub(crate) fn user_id() -> u32 {
    // SAFETY: the call takes nothing and cannot fail.
    unsafe { libc::geteuid() }
}

/// Keeps signals away from the calling thread: a library's thread must not run its host's handlers.
pub(crate) fn block_signals() {
    let mut all = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the first call initialises the local set that the second one reads; neither can fail
    // for these arguments.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_BLOCK, all.as_ptr(), std::ptr::null_mut());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_alive_until_it_ends() {
        let mut child = std::process::Command::new("sleep").arg("600").spawn().expect("spawn");
        let pid = i32::try_from(child.id()).expect("pid");
        let process = Process::open(pid).expect("open");
        assert_eq!(process.pid(), pid);
        assert!(process.alive());
        assert!(start_ticks(child.id()).is_some());
        child.kill().expect("kill");
        let limit = Some(std::time::Duration::from_secs(20));
        assert!(wait_one(process.fd(), Interest::Read, limit).expect("wait"));
        assert!(!process.alive());
        child.wait().expect("wait");
        assert!(Process::open(pid).is_err());
    }

    #[test]
    fn the_far_end_of_a_socket_is_this_process() {
        let (one, _two) = UnixStream::pair().expect("pair");
        let process = Process::of_peer(&one).expect("peer");
        assert_eq!(u32::try_from(process.pid()).expect("pid"), std::process::id());
    }

    #[test]
    fn our_parent_is_found() {
        let (parent, name) = parent_of(std::process::id()).expect("parent");
        assert_eq!(parent, std::os::unix::process::parent_id());
        assert!(!name.is_empty());
        assert_eq!(parent_of(u32::MAX), None);
    }

    #[test]
    fn process_zero_is_refused() {
        assert!(Process::open(0).is_err());
        assert!(Process::open(-5).is_err());
    }
}
