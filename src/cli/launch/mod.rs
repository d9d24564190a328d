//! Ranks of a program on this machine: started, shown, signalled, and ended together.
//!
//! One thread waits for everything at once: the ranks' outputs, their ends (SIGCHLD), signals to
//! pass on, and room in our own outputs. Every rank leads a process group of its own, so a signal
//! reaches all it has started, and the terminal's Ctrl-C comes here first.
//!
//! However this process ends, the ranks end: orderly by what is below; when it is killed, by the
//! kernel (the ranks themselves) and by the guard (what they have started).
//!
//! Not here: a scheduler, other hosts, and restarts.

mod job;
mod screen;

use std::ffi::OsString;
use std::io;
use std::time::Duration;

pub(crate) use self::screen::{Screen, Stream, Style, Target};

/// Ranks a launch may have.
pub(crate) const RANKS_MAX: u32 = 4096;

/// Where the ranks' output goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    /// Whole lines, "[rank] " before each.
    Labelled,
    /// Whole lines as they are.
    Plain,
}

/// Which processors a rank may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Bind {
    /// Any
    None,
    /// An equal share of those this process may use, at least one
    Core,
}

/// What to start, and how to go on with it.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    /// How many ranks, 1 to [`RANKS_MAX`].
    pub(crate) ranks: u32,
    /// A path, or a name looked up in PATH.
    pub(crate) program: OsString,
    pub(crate) args: Vec<OsString>,
    /// Variables the ranks get besides this process's own and their places.
    pub(crate) env: Vec<(OsString, OsString)>,
    pub(crate) output: Output,
    /// A rank that fails does not end the others.
    pub(crate) keep_going: bool,
    /// All ranks are ended after this time.
    pub(crate) timeout: Option<Duration>,
    /// From SIGTERM to SIGKILL.
    pub(crate) grace: Duration,
    pub(crate) bind: Bind,
}

impl Launch {
    /// `ranks` ranks of `program`, labelled, ended with the first that fails.
    pub(crate) fn new(ranks: u32, program: impl Into<OsString>) -> Self {
        Self {
            ranks,
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
            output: Output::Labelled,
            keep_going: false,
            timeout: None,
            grace: Duration::from_secs(5),
            bind: Bind::None,
        }
    }
}

/// The status of a job that was ended because its time was over, as `timeout` has it.
pub(crate) const TIMED_OUT: i32 = 124;

/// Runs the job and returns its exit status: 0, or that of the first rank that failed (128 and the
/// signal's number for one that was killed), or [`TIMED_OUT`], or what [`loss`] says when our own
/// output came first. Failures are told on stderr.
///
/// [`loss`]: super::output::loss
///
/// Call it from the process's first thread, with no other thread running: signals are taken over.
///
/// # Errors
/// The program cannot be started (`NotFound`, `PermissionDenied`), or the system lacks processes or
/// descriptors. No rank is left then.
pub(crate) fn launch(launch: &Launch) -> io::Result<i32> {
    job::run(launch)
}
