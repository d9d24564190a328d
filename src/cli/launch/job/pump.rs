//! Moves bytes: what the ranks write to our own outputs, what is typed to rank 0.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;

use super::Job;
use crate::cli::launch::{Screen, Stream};
use crate::cli::output;
use crate::cli::sys::{self, Waiting};

/// Output that waits to be written; beyond it the ranks must wait too.
const BACKLOG_MAX: usize = 1 << 20;
/// Read at once from a rank.
const READ_BYTES: usize = 64 << 10;
/// A pipe that is found writable takes as much without blocking (PIPE_BUF).
const WRITE_BYTES: usize = 4096;

/// Our own terminal, passed on to rank 0.
pub(super) struct Keyboard {
    pub(super) from: File,
    pub(super) to: File,
    /// Read and not yet passed on.
    pub(super) typed: Vec<u8>,
}

impl Job<'_> {
    pub(super) fn list(&mut self, waiting: &mut Waiting) {
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

    pub(super) fn move_bytes(&mut self, waiting: &Waiting) {
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
    pub(super) fn drain(&mut self, rank: usize, close: bool) {
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
