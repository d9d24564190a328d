//! All that the program itself writes to stdout and stderr.
//!
//! Output that cannot be written is lost once and for all: the first failure is told on stderr,
//! later output is dropped, and [`settle`] makes it the exit status of a program that otherwise
//! did well. A reader that has gone away (`| head`) is told nobody; its status is that of programs
//! which SIGPIPE ends, so that a check cut short is no check passed.
//!
//! Whoever works on after output should ask [`is_lost`] now and then: nobody would read the rest.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;
use std::sync::OnceLock;

/// The status when the reader has gone away: 128 and the number of SIGPIPE.
pub(crate) const READER_GONE: u8 = 128 + 13;

/// The exit status that lost output makes.
static LOST: OnceLock<u8> = OnceLock::new();

/// Writes `text` to stdout at once: whoever reads along sees it now.
pub(crate) fn text(text: &str) {
    if is_lost() {
        return;
    }
    let mut out = io::stdout().lock();
    note(out.write_all(text.as_bytes()).and_then(|()| out.flush()));
}

/// Writes a line to stdout at once.
pub(crate) fn line(line: impl Display) {
    text(&format!("{line}\n"));
}

/// Says what went wrong in a line on stderr.
pub(crate) fn complain(what: impl Display) {
    // There is nowhere to say that stderr cannot be written; the exit status speaks.
    let _ = io::stderr().write_all(format!("unisono: {what}\n").as_bytes());
}

/// Takes note of how a write to stdout ended.
pub(crate) fn note(outcome: io::Result<()>) {
    let Err(error) = outcome else { return };
    let (status, what) = loss("stdout", &error);
    // Two threads may fail at once: one of them tells.
    if LOST.set(status).is_ok()
        && let Some(what) = what
    {
        complain(what);
    }
}

/// Whether output was lost, so that nobody would read more.
pub(crate) fn is_lost() -> bool {
    LOST.get().is_some()
}

/// The exit status of a program that would end with `code`: its own failure comes first.
pub(crate) fn settle(code: ExitCode) -> ExitCode {
    match LOST.get() {
        Some(&status) if code == ExitCode::SUCCESS => ExitCode::from(status),
        _ => code,
    }
}

/// What follows from an error of writing to `stream`: the exit status, and what is to be said.
pub(crate) fn loss(stream: &str, error: &io::Error) -> (u8, Option<String>) {
    if error.kind() == ErrorKind::BrokenPipe {
        return (READER_GONE, None);
    }
    (1, Some(format!("writing to {stream}: {error}")))
}
