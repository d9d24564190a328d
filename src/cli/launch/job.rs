//! One job, from the first fork to the last byte: signals, ends, deadlines and what follows.
//!
//! `start` starts the ranks, `pump` moves their bytes.

mod pump;
mod start;

use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use super::{Launch, Output, RANKS_MAX, Screen, Stream, Style, TIMED_OUT, Target};
use crate::cli::sys::{self, Ended, Guard, Signal, Signals, Waiting};
use pump::Keyboard;
use start::{Member, start};

const SIGNALS: &[Signal] = &[
    sys::SIGCHLD,
    sys::SIGINT,
    sys::SIGTERM,
    sys::SIGHUP,
    sys::SIGQUIT,
    sys::SIGUSR1,
    sys::SIGUSR2,
    sys::SIGTSTP,
    sys::SIGCONT,
];

/// How far the end of the job has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// Nobody wants it yet.
    No,
    /// SIGTERM is sent; SIGKILL follows then.
    Asked(Instant),
    /// SIGKILL is sent.
    Killed,
}

struct Job<'a> {
    launch: &'a Launch,
    signals: Signals,
    members: Vec<Member>,
    screen: Screen,
    /// Our own stdout and stderr; `None` once nobody reads them.
    sinks: [Option<File>; 2],
    keyboard: Option<Keyboard>,
    ending: Ending,
    /// The status of the first failure.
    failed: Option<i32>,
    interrupted: bool,
    deadline: Option<Instant>,
    /// Held to the last: it guards while it is not told that all is well.
    _guard: Guard,
}

/// See [`super::launch`].
pub(super) fn run(launch: &Launch) -> io::Result<i32> {
    if !(1..=RANKS_MAX).contains(&launch.ranks) {
        let text = format!("{} ranks: from 1 to {RANKS_MAX} can be started", launch.ranks);
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let signals = Signals::take(SIGNALS)?;
    let mut guard = Guard::start()?;
    let (members, keyboard) = start(launch, &signals, &mut guard)?;
    let (out, err) = (io::stdout(), io::stderr());
    let sinks = [out.as_fd(), err.as_fd()];
    let targets = sinks.map(target);
    let label = launch.output == Output::Labelled;
    let style = Style { label, color: std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()) };
    let mut job = Job {
        launch,
        signals,
        screen: Screen::new(members.len(), style, targets),
        members,
        sinks: sinks.map(|fd| fd.try_clone_to_owned().ok().map(File::from)),
        keyboard,
        ending: Ending::No,
        failed: None,
        interrupted: false,
        deadline: launch.timeout.map(|t| Instant::now() + t),
        _guard: guard,
    };
    Ok(job.run())
}

/// A terminal that cannot move its cursor is as good as a file.
fn target(fd: std::os::fd::BorrowedFd<'_>) -> Target {
    let dumb = std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
    if dumb || !fd.is_terminal() {
        return Target::File;
    }
    Target::Terminal(sys::columns(fd).unwrap_or(80))
}

impl Job<'_> {
    fn run(&mut self) -> i32 {
        let mut waiting = Waiting::new();
        // BOUND: each pass waits for an event; the job ends with its ranks and their outputs.
        loop {
            self.pass_on_signals();
            self.watch_ends();
            self.keep_time();
            if self.over() {
                break;
            }
            self.list(&mut waiting);
            waiting.wait(self.next_deadline());
            self.move_bytes(&waiting);
        }
        for member in &mut self.members {
            // Whatever a rank has left in its group ends with the job. The zombie still holds the
            // group's number, so it is nobody else's.
            sys::signal_group(member.child.id(), sys::SIGKILL);
            let _ = member.child.wait();
        }
        self.failed.unwrap_or(0)
    }

    /// All ranks have ended and all they wrote is out.
    fn over(&mut self) -> bool {
        let ended = self.members.iter().all(|m| m.ended.is_some());
        let open = self.members.iter().any(|m| m.pipes.iter().any(Option::is_some));
        if !ended {
            return false;
        }
        if open && self.ending == Ending::No {
            // Only what ranks have left behind can hold them.
            self.ask();
        }
        if open && self.ending != Ending::Killed {
            return false;
        }
        if open {
            // Nobody of the groups is left; strangers who hold a pipe are not waited for.
            for rank in 0..self.members.len() {
                self.drain(rank, true);
            }
        }
        [Stream::Out, Stream::Err].into_iter().all(|stream| {
            self.sinks[stream as usize].is_none() || self.screen.queue(stream).is_empty()
        })
    }

    fn alive(&self) -> usize {
        self.members.iter().filter(|m| m.ended.is_none()).count()
    }

    fn send(&self, signal: Signal) {
        for member in &self.members {
            sys::signal_group(member.child.id(), signal);
        }
    }

    /// SIGTERM to all, and SIGKILL when the grace is over.
    fn ask(&mut self) {
        if self.ending == Ending::No {
            self.send(sys::SIGTERM);
            // Who is stopped could not end.
            self.send(sys::SIGCONT);
            self.ending = Ending::Asked(Instant::now() + self.launch.grace);
        }
    }

    fn kill(&mut self) {
        self.send(sys::SIGKILL);
        self.ending = Ending::Killed;
    }

    fn pass_on_signals(&mut self) {
        while let Some(signal) = self.signals.next() {
            match signal {
                sys::SIGCHLD => {}
                sys::SIGINT | sys::SIGTERM | sys::SIGQUIT | sys::SIGHUP => {
                    if signal == sys::SIGINT && self.interrupted {
                        self.screen.note("interrupted twice: ranks are killed");
                        self.kill();
                        continue;
                    }
                    if signal == sys::SIGINT {
                        self.screen.note("interrupt passed on to all ranks; once more kills them");
                        self.interrupted = true;
                    }
                    self.send(signal);
                    self.send(sys::SIGCONT);
                }
                sys::SIGTSTP => {
                    self.send(signal);
                    sys::stop_self();
                }
                _ => self.send(signal),
            }
        }
    }

    /// Notices ranks that have ended, and what follows from it.
    fn watch_ends(&mut self) {
        let mut failures = Vec::new();
        for rank in 0..self.members.len() {
            if self.members[rank].ended.is_some() {
                continue;
            }
            let Some(ended) = sys::ended(self.members[rank].child.id()) else {
                continue;
            };
            self.members[rank].ended = Some(ended);
            // Its last words come before the word about its end.
            self.drain(rank, false);
            if ended != Ended::Exited(0) {
                failures.push((rank, ended));
            }
        }
        // Of several that ended since the last look, one that was killed is the likelier cause.
        failures.sort_by_key(|(_, ended)| matches!(ended, Ended::Exited(_)));
        for (rank, ended) in failures {
            // Those that end because we asked them have not failed.
            if self.ending != Ending::No && self.failed.is_some() {
                break;
            }
            self.report(rank, ended);
        }
    }

    fn report(&mut self, rank: usize, ended: Ended) {
        let (how, status) = match ended {
            Ended::Exited(status) => (format!("exited with status {status}"), status),
            Ended::Killed(signal, core) => {
                let core = if core { ", core dumped" } else { "" };
                let name = sys::signal_name(signal);
                (format!("was killed by {name} (signal {signal}{core})"), 128 + signal)
            }
        };
        self.failed.get_or_insert(status);
        let pid = self.members[rank].child.id();
        let others = match (self.launch.keep_going, self.alive()) {
            (_, 0) => String::new(),
            (true, 1) => "; the other one goes on".to_owned(),
            (true, left) => format!("; the other {left} go on"),
            (false, 1) => "; ending the other one".to_owned(),
            (false, left) => format!("; ending the other {left}"),
        };
        // That output was lost is said already, or is no news where its reader has gone.
        let follows = self.sinks.iter().any(Option::is_none);
        if !(follows && matches!(ended, Ended::Killed(sys::SIGPIPE, _))) {
            self.screen.note(&format!("rank {rank} (process {pid}) {how}{others}"));
        }
        if !self.launch.keep_going && self.ending == Ending::No {
            self.ask();
        }
    }

    fn keep_time(&mut self) {
        let now = Instant::now();
        if self.deadline.is_some_and(|deadline| now >= deadline) {
            self.deadline = None;
            if self.alive() > 0 && self.ending == Ending::No {
                let seconds = self.launch.timeout.unwrap_or_default().as_secs_f64();
                let left = self.alive();
                self.screen.note(&format!("{seconds} s have passed; ending {left} ranks"));
                self.failed.get_or_insert(TIMED_OUT);
                self.ask();
            }
        }
        if matches!(self.ending, Ending::Asked(limit) if now >= limit) {
            if self.alive() > 0 {
                let grace = self.launch.grace.as_secs_f64();
                let left = self.alive();
                let text = format!("{left} ranks have not ended within {grace} s; they are killed");
                self.screen.note(&text);
            }
            self.kill();
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let asked = match self.ending {
            Ending::Asked(limit) => Some(limit),
            _ => None,
        };
        // A terminal that belongs to another group now may come back to ours without an event.
        let look = Instant::now() + Duration::from_secs(1);
        let keyboard = self.keyboard.as_ref().map(|_| look);
        [asked, self.deadline, keyboard].into_iter().flatten().min()
    }
}

impl std::fmt::Debug for Job<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sinks = self.sinks.iter().flatten().map(|sink| sink.as_raw_fd());
        f.debug_struct("Job").field("sinks", &sinks.collect::<Vec<_>>()).finish_non_exhaustive()
    }
}
