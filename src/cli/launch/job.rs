//! One job, from the first fork to the last byte.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{Bind, Launch, Output, RANKS_MAX, Screen, Stream, Style, TIMED_OUT, Target};
use crate::cli::output;
use crate::cli::sys::{self, Ended, Guard, Signal, Signals, Waiting};

/// Output that waits to be written; beyond it the ranks must wait too.
const BACKLOG_MAX: usize = 1 << 20;
/// Read at once from a rank.
const READ_BYTES: usize = 64 << 10;
/// A pipe that is found writable takes as much without blocking (PIPE_BUF).
const WRITE_BYTES: usize = 4096;

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

/// A rank.
struct Member {
    child: Child,
    /// Its stdout and stderr while they are open.
    pipes: [Option<File>; 2],
    ended: Option<Ended>,
}

impl Member {
    /// Makes the pipes that were made for the child ours; the way to its stdin, if there is one.
    fn take_pipes(&mut self) -> io::Result<Option<Keyboard>> {
        let out = self.child.stdout.take().map(|pipe| File::from(OwnedFd::from(pipe)));
        let err = self.child.stderr.take().map(|pipe| File::from(OwnedFd::from(pipe)));
        self.pipes = [out, err];
        for pipe in self.pipes.iter().flatten() {
            sys::set_nonblocking(pipe.as_fd())?;
        }
        let Some(to) = self.child.stdin.take() else {
            return Ok(None);
        };
        let to = File::from(OwnedFd::from(to));
        sys::set_nonblocking(to.as_fd())?;
        let from = File::from(io::stdin().as_fd().try_clone_to_owned()?);
        Ok(Some(Keyboard { from, to, typed: Vec::new() }))
    }
}

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

/// Our own terminal, passed on to rank 0.
struct Keyboard {
    from: File,
    to: File,
    /// Read and not yet passed on.
    typed: Vec<u8>,
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

/// Starts every rank, or none.
fn start(
    launch: &Launch,
    signals: &Signals,
    guard: &mut Guard,
) -> io::Result<(Vec<Member>, Option<Keyboard>)> {
    let mut members: Vec<Member> = Vec::new();
    let mut keyboard: Option<Keyboard> = None;
    let id = job_id()?;
    let cpus = sys::processors();
    for rank in 0..launch.ranks {
        let mut command = command(launch, rank, &id, &cpus, signals);
        let started = command.spawn().and_then(|child| {
            members.push(Member { child, pipes: [None, None], ended: None });
            let member = members.last_mut().expect("just pushed");
            guard.watch(member.child.id())?;
            if let Some(found) = member.take_pipes()? {
                keyboard = Some(found);
            }
            Ok(())
        });
        if let Err(error) = started {
            for member in &mut members {
                sys::signal_group(member.child.id(), sys::SIGKILL);
                let _ = member.child.wait();
            }
            return Err(error);
        }
    }
    Ok((members, keyboard))
}

/// 128 random bits in hexadecimal.
fn job_id() -> io::Result<String> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(format!("{:032x}", u128::from_ne_bytes(bytes)))
}

fn command(launch: &Launch, rank: u32, id: &str, cpus: &[usize], signals: &Signals) -> Command {
    let mut command = Command::new(&launch.program);
    command.args(&launch.args);
    // A meeting place from outside belongs to another job.
    for name in ["UNISONO_ID", "UNISONO_ROOT", "UNISONO_PORT", "UNISONO_JOB_KEY"] {
        command.env_remove(name);
    }
    command.envs(launch.env.iter().map(|(name, value)| (name, value)));
    let world = launch.ranks.to_string();
    for (name, value) in [
        ("UNISONO_RANK", rank.to_string().as_str()),
        ("UNISONO_WORLD", &world),
        ("UNISONO_LOCAL_RANK", &rank.to_string()),
        ("UNISONO_LOCAL_WORLD", &world),
        ("UNISONO_JOB_ID", id),
    ] {
        command.env(name, value);
    }
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    // A process group in the background may not read the terminal, so what is typed is passed on.
    command.stdin(match rank {
        0 if io::stdin().is_terminal() => Stdio::piped(),
        0 => Stdio::inherit(),
        _ => Stdio::null(),
    });
    let share: Vec<usize> = match launch.bind {
        Bind::None => Vec::new(),
        Bind::Core => share(cpus, rank as usize, launch.ranks as usize).to_vec(),
    };
    sys::tie_to_us(&mut command, signals.before(), &share);
    command
}

/// The processors of one rank of `ranks`: consecutive, equally many, at least one.
fn share(cpus: &[usize], rank: usize, ranks: usize) -> &[usize] {
    if cpus.is_empty() {
        return cpus;
    }
    if ranks > cpus.len() {
        let at = rank % cpus.len();
        return &cpus[at..=at];
    }
    &cpus[rank * cpus.len() / ranks..(rank + 1) * cpus.len() / ranks]
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

    fn list(&mut self, waiting: &mut Waiting) {
        waiting.clear();
        waiting.read(self.signals.as_fd());
        for stream in [Stream::Out, Stream::Err] {
            if let Some(sink) = &self.sinks[stream as usize]
                && !self.screen.queue(stream).is_empty()
            {
                waiting.write(sink.as_fd());
            }
        }
        if !self.is_full() {
            for pipe in self.members.iter().flat_map(|m| m.pipes.iter().flatten()) {
                waiting.read(pipe.as_fd());
            }
        }
        if let Some(keyboard) = &self.keyboard {
            if !keyboard.typed.is_empty() {
                waiting.write(keyboard.to.as_fd());
            } else if sys::in_foreground(keyboard.from.as_fd()) {
                waiting.read(keyboard.from.as_fd());
            }
        }
    }

    fn is_full(&mut self) -> bool {
        [Stream::Out, Stream::Err].into_iter().any(|s| self.screen.queue(s).len() > BACKLOG_MAX)
    }

    fn move_bytes(&mut self, waiting: &Waiting) {
        for stream in [Stream::Out, Stream::Err] {
            let sink = self.sinks[stream as usize].as_ref();
            if sink.is_some_and(|sink| waiting.is_ready(sink.as_fd())) {
                self.write(stream);
            }
        }
        for rank in 0..self.members.len() {
            let pipes = self.members[rank].pipes.iter().flatten();
            if pipes.map(|p| p.as_fd()).any(|fd| waiting.is_ready(fd)) {
                self.drain(rank, false);
            }
        }
        if let Some(keyboard) = &mut self.keyboard
            && !keyboard.pass_on(waiting, &mut self.screen)
        {
            self.keyboard = None;
        }
    }

    /// Takes what `rank` has written, at most what we have room for; with `close`, no more comes,
    /// and who holds the pipe and writes on and on is heard for a backlog more.
    fn drain(&mut self, rank: usize, close: bool) {
        let mut bytes = [0; READ_BYTES];
        for stream in [Stream::Out, Stream::Err] {
            let mut left = if close { BACKLOG_MAX } else { usize::MAX };
            // BOUND: a rank that writes on and on must wait once the backlog is full; at the end
            // only so much is taken.
            while left > 0 && (self.screen.queue(stream).len() <= BACKLOG_MAX || close) {
                let Some(pipe) = &mut self.members[rank].pipes[stream as usize] else {
                    break;
                };
                match pipe.read(&mut bytes) {
                    Ok(0) => {
                        self.close(rank, stream);
                        break;
                    }
                    Ok(got) => {
                        self.screen.feed(rank, stream, &bytes[..got]);
                        left = left.saturating_sub(got);
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => break,
                }
            }
            if close {
                self.close(rank, stream);
            }
        }
    }

    fn close(&mut self, rank: usize, stream: Stream) {
        if self.members[rank].pipes[stream as usize].take().is_some() {
            self.screen.end(rank, stream);
        }
    }

    /// Writes some of what waits for `stream`, which was found writable.
    fn write(&mut self, stream: Stream) {
        let Some(sink) = &mut self.sinks[stream as usize] else {
            return;
        };
        let queue = self.screen.queue(stream);
        let chunk = queue.as_slices().0;
        let chunk = &chunk[..chunk.len().min(WRITE_BYTES)];
        match sink.write(chunk) {
            Ok(wrote) => drop(queue.drain(..wrote)),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
                ) => {}
            Err(error) => self.lose(stream, &error),
        }
    }

    /// Nobody takes what is written to `stream`: the ranks find out as they would without us, by
    /// writing. Those that have written all they wanted to would end well, and the job must not.
    fn lose(&mut self, stream: Stream, error: &io::Error) {
        self.screen.queue(stream).clear();
        self.sinks[stream as usize] = None;
        for member in &mut self.members {
            member.pipes[stream as usize] = None;
        }
        let (status, what) = output::loss(stream.name(), error);
        self.failed.get_or_insert_with(|| i32::from(status));
        if let Some(what) = what {
            self.screen.note(&what);
        }
    }
}

impl Keyboard {
    /// Moves what was typed; false when there will be no more, or nobody who wants it.
    fn pass_on(&mut self, waiting: &Waiting, screen: &mut Screen) -> bool {
        let from_ready = waiting.is_ready(self.from.as_fd());
        if self.typed.is_empty() && from_ready && sys::in_foreground(self.from.as_fd()) {
            let mut bytes = [0; WRITE_BYTES];
            match self.from.read(&mut bytes) {
                Ok(got) if got > 0 => {
                    self.typed.extend_from_slice(&bytes[..got]);
                    if bytes[..got].contains(&b'\n') {
                        screen.entered();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                _ => return false,
            }
        }
        if self.typed.is_empty() {
            return true;
        }
        match self.to.write(&self.typed) {
            Ok(wrote) => drop(self.typed.drain(..wrote)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return false,
        }
        true
    }
}

impl std::fmt::Debug for Job<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sinks = self.sinks.iter().flatten().map(|sink| sink.as_raw_fd());
        f.debug_struct("Job").field("sinks", &sinks.collect::<Vec<_>>()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::share;

    #[test]
    fn processors_are_shared_out_evenly() {
        let cpus = [0, 1, 4, 5, 6];
        let of = |ranks: usize| (0..ranks).map(|r| share(&cpus, r, ranks)).collect::<Vec<_>>();
        assert_eq!(of(1), [&cpus[..]]);
        assert_eq!(of(2), [&[0, 1][..], &[4, 5, 6]]);
        assert_eq!(of(7)[5..], [&[0][..], &[1]]);
        assert!(share(&[], 3, 4).is_empty());
    }
}
