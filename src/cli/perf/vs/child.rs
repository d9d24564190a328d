//! A program of somebody else under a deadline: what it prints and how it ends.
//!
//! It leads a process group, which is ended with it, and with this program, however that ends.

use std::io::{ErrorKind, Read};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::cli::sys::{self, Ended, Guard, Mask, SIGKILL, SIGTERM, Waiting};

/// More than this on either stream is no table.
const OUTPUT_MAX: usize = 8 << 20;
/// Between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(2);
/// How often to look whether it has ended: something it started may hold its output open.
const LOOK: Duration = Duration::from_millis(20);
/// Lines and characters of each that an error shows.
const TAIL: (usize, usize) = (5, 200);

/// What a program did.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) ended: Ended,
    pub(super) out: String,
    err: String,
}

impl Run {
    /// Its last lines, fit to be shown on a terminal.
    pub(super) fn tail(&self) -> String {
        tail(&self.out, &self.err)
    }
}

fn tail(out: &str, err: &str) -> String {
    let said = if err.trim().is_empty() { out } else { err };
    let lines: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
    let last = &lines[lines.len().saturating_sub(TAIL.0)..];
    let shown: Vec<String> = last.iter().map(|line| format!("\"{}\"", plain(line))).collect();
    if shown.is_empty() {
        "it printed nothing".to_owned()
    } else {
        format!("its last lines: {}", shown.join(", "))
    }
}

/// A line of somebody else's without what a terminal would obey, and not longer than is shown.
pub(super) fn plain(line: &str) -> String {
    let safe = |c: char| if c.is_control() { '?' } else { c };
    line.trim().chars().map(safe).take(TAIL.1).collect()
}

/// How it ended, in words.
pub(super) fn how(ended: Ended) -> String {
    match ended {
        Ended::Exited(status) => format!("ended with status {status}"),
        Ended::Killed(signal, _) => format!("was killed by {}", sys::signal_name(signal)),
    }
}

/// Runs `command` for at most `limit`.
///
/// # Errors
/// It could not start, did not end in time, or printed without end.
pub(super) fn run(mut command: Command, limit: Duration) -> Result<Run, String> {
    let said = |what: &str, error: std::io::Error| format!("{what}: {error}");
    let mask = Mask::current().map_err(|error| said("signals", error))?;
    // Before there are pipes of ours that it would keep open.
    let mut guard = Guard::start().map_err(|error| said("starting a guard", error))?;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    sys::tie_to_us(&mut command, mask, &[]);
    let child = command.spawn().map_err(|error| said("cannot be started", error))?;
    let mut group = Group { child };
    guard.watch(group.child.id()).map_err(|error| said("telling the guard", error))?;
    let (out, err) = (group.child.stdout.take(), group.child.stderr.take());
    let mut streams = [Stream::new(out)?, Stream::new(err)?];
    let until = Instant::now() + limit;
    let mut waiting = Waiting::new();
    // BOUND: `until`, and what may be printed.
    let ended = loop {
        let ended = sys::ended(group.child.id());
        streams.iter_mut().for_each(Stream::read);
        if streams.iter().any(|stream| stream.bytes.len() > OUTPUT_MAX) {
            return Err(format!("prints more than {} MiB", OUTPUT_MAX >> 20));
        }
        if let Some(ended) = ended {
            break ended;
        }
        let now = Instant::now();
        if now >= until {
            let [out, err] = streams.map(|stream| stream.text());
            let tail = tail(&out, &err);
            return Err(format!(
                "has not ended after {} s and was killed; {tail}",
                limit.as_secs()
            ));
        }
        waiting.clear();
        streams.iter().filter_map(|s| s.pipe.as_ref()).for_each(|pipe| waiting.read(pipe.as_fd()));
        waiting.wait(Some(until.min(now + LOOK)));
    };
    let [out, err] = streams.map(|stream| stream.text());
    Ok(Run { ended, out, err })
}

/// A child and all in its group; ended when dropped.
#[derive(Debug)]
struct Group {
    child: Child,
}

impl Drop for Group {
    fn drop(&mut self) {
        let leader = self.child.id();
        if sys::ended(leader).is_none() {
            // A launcher ends what it has started elsewhere.
            sys::signal_group(leader, SIGTERM);
            let until = Instant::now() + GRACE;
            // BOUND: `until`.
            while sys::ended(leader).is_none() && Instant::now() < until {
                std::thread::sleep(LOOK);
            }
        }
        // Not reaped yet, so the group's number is still its own.
        sys::signal_group(leader, SIGKILL);
        let _ = self.child.wait();
    }
}

/// What comes out of one of its pipes.
#[derive(Debug)]
struct Stream<P> {
    /// `None` once it has ended.
    pipe: Option<P>,
    bytes: Vec<u8>,
}

/// Either of a child's pipes.
trait Pipe: Read + AsFd + Send {}
impl<P: Read + AsFd + Send> Pipe for P {}

impl Stream<Box<dyn Pipe>> {
    fn new(pipe: Option<impl Pipe + 'static>) -> Result<Self, String> {
        let pipe = pipe.map(|pipe| Box::new(pipe) as Box<dyn Pipe>);
        if let Some(pipe) = &pipe {
            sys::set_nonblocking(pipe.as_fd()).map_err(|error| format!("its output: {error}"))?;
        }
        Ok(Self { pipe, bytes: Vec::new() })
    }

    /// Reads what is there.
    fn read(&mut self) {
        let mut chunk = [0; 1 << 14];
        // BOUND: what may be printed.
        while let Some(pipe) = &mut self.pipe
            && self.bytes.len() <= OUTPUT_MAX
        {
            match pipe.read(&mut chunk) {
                Ok(0) => self.pipe = None,
                Ok(count) => self.bytes.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => self.pipe = None,
            }
        }
    }

    fn text(self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit_ms: u64) -> Result<Run, String> {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        run(command, Duration::from_millis(limit_ms))
    }

    #[test]
    fn output_and_end_of_a_program_are_told() {
        let run = shell("echo one; echo two >&2; exit 3", 20_000).expect("it ran");
        assert_eq!((run.ended, run.out.as_str()), (Ended::Exited(3), "one\n"));
        assert_eq!(
            (how(run.ended), run.tail()),
            ("ended with status 3".into(), "its last lines: \"two\"".into())
        );
        let killed = shell("kill -KILL $$", 20_000).expect("it ran");
        assert_eq!(
            (how(killed.ended), killed.tail()),
            ("was killed by SIGKILL".into(), "it printed nothing".into())
        );
    }

    #[test]
    fn what_hangs_is_killed_with_all_it_has_started() {
        let marker = format!("{}.25", 70_000 + std::process::id() % 10_000);
        let error = shell(&format!("trap '' TERM; sleep {marker} & echo said; wait"), 300);
        let error = error.expect_err("it hangs");
        assert!(error.contains("has not ended") && error.contains("\"said\""), "{error}");
        let left = Command::new("pgrep").args(["-f", &format!("^sleep {marker}$")]).status();
        assert!(left.is_err() || !left.expect("pgrep").success(), "sleep {marker} is left");
    }

    #[test]
    fn output_held_open_by_others_and_output_without_end_do_not_hang() {
        let run = shell("sleep 60 & echo done", 20_000).expect("it ran");
        assert_eq!(run.out, "done\n");
        let error = shell("yes", 20_000).expect_err("too much");
        assert!(error.contains("more than"), "{error}");
    }

    #[test]
    fn terminals_are_safe_from_what_is_shown() {
        assert_eq!(plain(" \u{1b}[31mred\u{7} "), "?[31mred?");
        assert_eq!(plain(&"x".repeat(1000)).len(), TAIL.1);
    }
}
