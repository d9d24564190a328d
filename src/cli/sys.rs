//! The program's raw system calls: signals, process groups, and waiting for many things at once.
//!
//! The library keeps its own in a module the program cannot see; these are the launcher's. All
//! unsafe code of the program is here (but for `perf` and `check`, which call with raw buffers).

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

pub(crate) use libc::{
    SIGCHLD, SIGCONT, SIGHUP, SIGINT, SIGKILL, SIGPIPE, SIGQUIT, SIGTERM, SIGTSTP, SIGUSR1, SIGUSR2,
};

/// A signal's number.
pub(crate) type Signal = libc::c_int;

fn check(returned: libc::c_int) -> io::Result<libc::c_int> {
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(returned) }
}

fn own(returned: RawFd) -> io::Result<OwnedFd> {
    let fd = check(returned)?;
    // SAFETY: the call has just made this descriptor for us, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Some signals, read from a descriptor instead of interrupting; as before when dropped.
#[derive(Debug)]
pub(crate) struct Signals {
    file: File,
    before: Mask,
}

/// A set of signals. Copied into children, which get the mask the program itself began with.
#[derive(Clone, Copy)]
pub(crate) struct Mask(libc::sigset_t);

impl std::fmt::Debug for Mask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Mask")
    }
}

impl Mask {
    fn of(signals: &[Signal]) -> Self {
        let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: the first call initialises the local set; the others change it.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for &signal in signals {
                libc::sigaddset(set.as_mut_ptr(), signal);
            }
            Self(set.assume_init())
        }
    }

    /// The calling thread's.
    pub(crate) fn current() -> io::Result<Self> {
        Self::of(&[]).set(libc::SIG_BLOCK)
    }

    /// Makes this the calling thread's mask; the one before.
    fn set(self, how: libc::c_int) -> io::Result<Self> {
        let mut before = Self::of(&[]);
        // SAFETY: both sets are initialised locals. pthread_sigmask is async-signal-safe.
        let failed = unsafe { libc::pthread_sigmask(how, &raw const self.0, &raw mut before.0) };
        if failed == 0 { Ok(before) } else { Err(io::Error::from_raw_os_error(failed)) }
    }
}

impl Signals {
    /// From here on `signals` come through [`Signals::next`]. Call it from the only thread: others
    /// would still be interrupted.
    pub(crate) fn take(signals: &[Signal]) -> io::Result<Self> {
        // Ends of children would not be told if our own parent had us ignore them.
        // SAFETY: the default action is set, no handler.
        unsafe { libc::signal(SIGCHLD, libc::SIG_DFL) };
        let mask = Mask::of(signals);
        let before = mask.set(libc::SIG_BLOCK)?;
        let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
        // SAFETY: the set is initialised; -1 asks for a new descriptor.
        let fd = own(unsafe { libc::signalfd(-1, &raw const mask.0, flags) });
        match fd {
            Ok(fd) => Ok(Self { file: File::from(fd), before }),
            Err(error) => {
                let _ = before.set(libc::SIG_SETMASK);
                Err(error)
            }
        }
    }

    /// The next signal that has come, if any.
    pub(crate) fn next(&mut self) -> Option<Signal> {
        let mut bytes = [0; size_of::<libc::signalfd_siginfo>()];
        let got = self.file.read(&mut bytes).ok()?;
        // The number is the first field.
        let number = bytes.first_chunk::<4>().filter(|_| got == bytes.len())?;
        Signal::try_from(u32::from_ne_bytes(*number)).ok()
    }

    /// The mask from before, for children.
    pub(crate) const fn before(&self) -> Mask {
        self.before
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        let _ = self.before.set(libc::SIG_SETMASK);
    }
}

/// Makes `command` start a process that leads its own group, ends when the calling thread does, has
/// the signal mask `mask`, and runs on `cpus` only (none given: anywhere).
pub(crate) fn tie_to_us(command: &mut Command, mask: Mask, cpus: &[usize]) {
    let launcher = std::process::id();
    // SAFETY: a cpu_set_t is plain bits, for which all zeros is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for &cpu in cpus.iter().filter(|&&cpu| cpu < size_of::<libc::cpu_set_t>() * 8) {
        // SAFETY: the index is below the set's size.
        unsafe { libc::CPU_SET(cpu, &mut set) };
    }
    let bound = !cpus.is_empty();
    let prepare = move || {
        let parent_end = libc::c_ulong::try_from(SIGKILL).unwrap_or(9);
        // SAFETY: the call reads plain integers.
        check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, parent_end, 0, 0, 0) })?;
        // The launcher may have ended before the line above: then nobody would tell us.
        if std::os::unix::process::parent_id() != launcher {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        if bound {
            // SAFETY: `set` is of the stated size; 0 means this process.
            check(unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) })?;
        }
        mask.set(libc::SIG_SETMASK).map(drop)
    };
    command.process_group(0);
    // SAFETY: between fork and exec only async-signal-safe calls are made and nothing is allocated:
    // errors are made of numbers.
    unsafe { command.pre_exec(prepare) };
}

/// The processors this process may run on.
pub(crate) fn processors() -> Vec<usize> {
    // SAFETY: a cpu_set_t is plain bits, for which all zeros is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is a local of the stated size; 0 means the calling thread.
    if unsafe { libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) } < 0 {
        return Vec::new();
    }
    // SAFETY: the index stays below the set's size.
    (0..size_of_val(&set) * 8).filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &set) }).collect()
}

/// Sends `signal` to every process of the group `leader` leads. A group that is gone is not an
/// error.
pub(crate) fn signal_group(leader: u32, signal: Signal) {
    if let Ok(leader) = libc::pid_t::try_from(leader)
        && leader > 0
    {
        // SAFETY: the call reads plain integers.
        unsafe { libc::kill(-leader, signal) };
    }
}

/// Stops this process, as Ctrl-Z would, until somebody continues it.
pub(crate) fn stop_self() {
    // SAFETY: the call reads a plain integer.
    unsafe { libc::raise(libc::SIGSTOP) };
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It returned this status.
    Exited(i32),
    /// This signal ended it; true: it left a core file.
    Killed(Signal, bool),
}

/// How the child `pid` has ended, or `None` while it runs. It stays a zombie, so that its number,
/// and its group's, belong to nobody else until [`reap`].
pub(crate) fn ended(pid: u32) -> Option<Ended> {
    // SAFETY: siginfo_t is plain data, for which all zeros is valid.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: `info` is a local that lives through the call.
    let done = unsafe { libc::waitid(libc::P_PID, pid, &raw mut info, options) };
    // SAFETY: waitid fills these fields; they are 0 while the child runs.
    let (who, status) = unsafe { (info.si_pid(), info.si_status()) };
    if done < 0 {
        // Somebody else has waited for it: how it ended cannot be known.
        return Some(Ended::Exited(255));
    }
    match info.si_code {
        _ if who == 0 => None,
        libc::CLD_EXITED => Some(Ended::Exited(status)),
        libc::CLD_DUMPED => Some(Ended::Killed(status, true)),
        _ => Some(Ended::Killed(status, false)),
    }
}

/// A signal's name, such as `SIGTERM`.
pub(crate) fn signal_name(signal: Signal) -> String {
    let known = [
        (SIGHUP, "SIGHUP"),
        (SIGINT, "SIGINT"),
        (SIGQUIT, "SIGQUIT"),
        (libc::SIGILL, "SIGILL"),
        (libc::SIGTRAP, "SIGTRAP"),
        (libc::SIGABRT, "SIGABRT"),
        (libc::SIGBUS, "SIGBUS"),
        (libc::SIGFPE, "SIGFPE"),
        (SIGKILL, "SIGKILL"),
        (SIGUSR1, "SIGUSR1"),
        (libc::SIGSEGV, "SIGSEGV"),
        (SIGUSR2, "SIGUSR2"),
        (SIGPIPE, "SIGPIPE"),
        (libc::SIGALRM, "SIGALRM"),
        (SIGTERM, "SIGTERM"),
        (libc::SIGXCPU, "SIGXCPU"),
        (libc::SIGXFSZ, "SIGXFSZ"),
        (libc::SIGSYS, "SIGSYS"),
    ];
    let name = known.iter().find(|(number, _)| *number == signal);
    name.map_or_else(|| format!("signal {signal}"), |(_, name)| (*name).to_owned())
}

/// What to wait for, and what came.
#[derive(Debug)]
pub(crate) struct Waiting(Vec<libc::pollfd>);

impl Waiting {
    pub(crate) const fn new() -> Self {
        Self(Vec::new())
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// Also waits until `fd` can be read (or its other end is gone).
    pub(crate) fn read(&mut self, fd: BorrowedFd<'_>) {
        self.0.push(libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 });
    }

    /// Also waits until `fd` can be written (or its other end is gone).
    pub(crate) fn write(&mut self, fd: BorrowedFd<'_>) {
        self.0.push(libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLOUT, revents: 0 });
    }

    /// Waits until something is ready, at most until `deadline`.
    pub(crate) fn wait(&mut self, deadline: Option<Instant>) {
        let limit = deadline.map_or(-1, |deadline| {
            let left =
                deadline.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            libc::c_int::try_from(left.as_millis()).unwrap_or(libc::c_int::MAX)
        });
        let count = libc::nfds_t::try_from(self.0.len()).unwrap_or(0);
        // SAFETY: the entries live through the call and are as many as stated.
        let got = unsafe { libc::poll(self.0.as_mut_ptr(), count, limit) };
        if got < 0 {
            // Interrupted: nothing is known to be ready, and the caller looks again.
            self.0.iter_mut().for_each(|one| one.revents = 0);
        }
    }

    /// Whether `fd` was found ready.
    pub(crate) fn is_ready(&self, fd: BorrowedFd<'_>) -> bool {
        self.0.iter().any(|one| one.fd == fd.as_raw_fd() && one.revents != 0)
    }
}

/// Makes reads and writes of `fd` return at once. For pipes of our own only: the flag belongs to
/// the open file, which others may share.
pub(crate) fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the descriptor is open; the call reads plain integers.
    let flags = check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) })?;
    // SAFETY: as above.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) }).map(drop)
}

/// The columns of a terminal; `None` when it does not tell.
pub(crate) fn columns(fd: BorrowedFd<'_>) -> Option<usize> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: `size` is a local of the type this request fills.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    Some(usize::from(size.ws_col)).filter(|&columns| done == 0 && columns > 0)
}

/// Whether this process may read from the terminal `fd` without being stopped.
pub(crate) fn in_foreground(fd: BorrowedFd<'_>) -> bool {
    // SAFETY: both calls read plain integers.
    unsafe { libc::tcgetpgrp(fd.as_raw_fd()) == libc::getpgrp() }
}

/// A process that ends groups when this one is killed, and does nothing when this one ends well.
///
/// The kernel ends the ranks themselves with their parent; what they have started in turn is left
/// to the guard, which notices that its pipe has closed.
#[derive(Debug)]
pub(crate) struct Guard {
    pipe: File,
    pid: libc::pid_t,
}

/// Groups a guard can hold.
const GUARDED_MAX: usize = 4096;

impl Guard {
    /// Starts the guard. Call it before there are ranks and their pipes.
    pub(crate) fn start() -> io::Result<Self> {
        let (read, write) = io::pipe()?;
        // SAFETY: the child makes async-signal-safe calls only, allocates nothing and never
        // returns.
        let pid = check(unsafe { libc::fork() })?;
        if pid == 0 {
            // SAFETY: `read` is an open descriptor; both ends were made above.
            unsafe { guard(read.as_raw_fd()) }
        }
        Ok(Self { pipe: File::from(OwnedFd::from(write)), pid })
    }

    /// Also guards the group that `leader` leads.
    pub(crate) fn watch(&mut self, leader: u32) -> io::Result<()> {
        io::Write::write_all(&mut self.pipe, &leader.to_ne_bytes())
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // A zero says that all is well.
        if io::Write::write_all(&mut self.pipe, &0u32.to_ne_bytes()).is_ok() {
            let mut status = 0;
            // SAFETY: `status` is a local; the child ends by itself after the zero.
            unsafe { libc::waitpid(self.pid, &raw mut status, 0) };
        }
    }
}

/// The guard's life.
///
/// # Safety
/// Only for a fresh fork's child; `pipe` must be open.
unsafe fn guard(pipe: RawFd) -> ! {
    let mut leaders = [0i32; GUARDED_MAX];
    let mut count = 0;
    // SAFETY: all calls are async-signal-safe; buffers are locals of the stated size. The
    // terminal's signals do not reach a new session, and the launcher's own copy of the pipe's
    // other end and everything else but the pipe is closed.
    unsafe {
        libc::setsid();
        libc::dup2(pipe, 0);
        if libc::syscall(libc::SYS_close_range, 1, libc::c_uint::MAX, 0) < 0 {
            for fd in 1..4096 {
                libc::close(fd);
            }
        }
        // BOUND: until the launcher says 0 or is gone.
        loop {
            let mut leader = 0i32;
            let got = libc::read(0, (&raw mut leader).cast(), size_of::<i32>());
            if got < 0 && *libc::__errno_location() == libc::EINTR {
                continue;
            }
            if got != 4 {
                break;
            }
            if leader == 0 {
                libc::_exit(0);
            }
            if count < GUARDED_MAX && leader > 1 {
                leaders[count] = leader;
                count += 1;
            }
        }
        for &leader in &leaders[..count] {
            libc::kill(-leader, SIGKILL);
        }
        libc::_exit(1)
    }
}
