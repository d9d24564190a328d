//! Many ranks' output as one: whole lines, each with its rank in front.
//!
//! Pure: bytes come in by [`Screen::feed`], and what is to be written waits in two queues, one for
//! stdout and one for stderr (one for both when both are the same terminal).
//!
//! On files and pipes a line ends with a newline, and nothing but the label is added: what follows
//! a carriage return inside a line gets a label too, since it is shown in the label's place.
//!
//! On a terminal, rank 0 may draw. Whatever it has written since its last newline (a progress bar,
//! a prompt) stands in the terminal's last row, cut to its width; lines of all ranks scroll by
//! above. Of a line that was drawn over, only what it showed last is left.

use std::collections::VecDeque;

/// Which of a rank's two outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Out = 0,
    Err = 1,
}

impl Stream {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Out => "stdout",
            Self::Err => "stderr",
        }
    }
}

/// Lines longer than this are broken up, so that a rank without newlines takes bounded memory.
const LINE_MAX: usize = 1 << 20;

/// What a stream leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// A file or pipe: bytes matter.
    File,
    /// A terminal of so many columns.
    Terminal(usize),
}

/// How lines look.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Style {
    /// Lines begin with "[rank] ".
    pub(crate) label: bool,
    /// Labels on terminals have a colour per rank.
    pub(crate) color: bool,
}

/// The two outputs of all ranks.
#[derive(Debug)]
pub(crate) struct Screen {
    style: Style,
    targets: [Target; 2],
    queues: [VecDeque<u8>; 2],
    /// What each rank has written on each stream since its last newline.
    open: Vec<[Vec<u8>; 2]>,
    /// The stream on which rank 0 draws, and what stands in the last row.
    drawing: Option<(Stream, Vec<u8>)>,
}

impl Screen {
    pub(crate) fn new(ranks: usize, style: Style, targets: [Target; 2]) -> Self {
        Self {
            style,
            targets,
            queues: Default::default(),
            open: (0..ranks).map(|_| Default::default()).collect(),
            drawing: None,
        }
    }

    /// The bytes that wait to be written to `stream`.
    pub(crate) fn queue(&mut self, stream: Stream) -> &mut VecDeque<u8> {
        &mut self.queues[stream as usize]
    }

    /// `rank` has written `bytes`.
    pub(crate) fn feed(&mut self, rank: usize, stream: Stream, bytes: &[u8]) {
        let mut open = std::mem::take(&mut self.open[rank][stream as usize]);
        // Only the new bytes can hold the newline.
        let mut seen = open.len();
        open.extend_from_slice(bytes);
        let mut start = 0;
        while let Some(length) = open[seen..].iter().position(|&byte| byte == b'\n') {
            let end = seen + length + 1;
            self.line(rank, stream, &open[start..end]);
            (start, seen) = (end, end);
        }
        open.drain(..start);
        if open.len() > LINE_MAX {
            if self.style.label {
                open.push(b'\n');
            }
            self.line(rank, stream, &open);
            open.clear();
        }
        self.open[rank][stream as usize] = open;
        if rank == 0 && self.is_terminal(stream) {
            self.draw(stream);
        }
    }

    /// `rank` will write no more to `stream`.
    pub(crate) fn end(&mut self, rank: usize, stream: Stream) {
        let mut rest = std::mem::take(&mut self.open[rank][stream as usize]);
        if rank == 0 && self.drawing.as_ref().is_some_and(|(at, _)| *at == stream) {
            self.erase();
        }
        if rest.is_empty() {
            return;
        }
        if self.style.label || self.is_terminal(stream) {
            rest.push(b'\n');
        }
        self.line(rank, stream, &rest);
    }

    /// Somebody has pressed Enter: what rank 0 has drawn, a prompt as a rule, stays where it is,
    /// and the cursor is in the row below.
    pub(crate) fn entered(&mut self) {
        if let Some((stream, _)) = self.drawing.take() {
            self.open[0][stream as usize].clear();
        }
    }

    /// The launcher's own word, on stderr.
    pub(crate) fn note(&mut self, text: &str) {
        let drawn = self.lift(Stream::Err);
        self.push(Stream::Err, format!("unisono: {text}\n").as_bytes());
        self.put_back(drawn);
    }

    fn is_terminal(&self, stream: Stream) -> bool {
        self.targets[stream as usize] != Target::File
    }

    /// Both streams share a queue when both are terminals, so that they stay in order.
    fn push(&mut self, stream: Stream, bytes: &[u8]) {
        let both = self.targets.iter().all(|t| *t != Target::File);
        let at = if both { Stream::Out } else { stream };
        self.queues[at as usize].extend(bytes);
    }

    fn label(&self, rank: usize, stream: Stream) -> Vec<u8> {
        if !self.style.label {
            return Vec::new();
        }
        if self.style.color && self.is_terminal(stream) {
            // Green, yellow, blue, magenta, cyan; red is for alarms.
            return format!("\x1b[{}m[{rank}]\x1b[0m ", 32 + rank % 5).into_bytes();
        }
        format!("[{rank}] ").into_bytes()
    }

    /// Writes a whole line (or the last, unfinished one).
    fn line(&mut self, rank: usize, stream: Stream, line: &[u8]) {
        let label = self.label(rank, stream);
        if self.is_terminal(stream) {
            let drawn = self.lift(stream);
            self.push(stream, &label);
            self.push(stream, shown(line));
            self.push(stream, b"\n");
            self.put_back(drawn);
            return;
        }
        let mut rest = line;
        // Each part ends after its carriage return; the line's own end is no part.
        while !label.is_empty()
            && let Some(at) = rest.iter().position(|&byte| byte == b'\r')
            && !matches!(&rest[at + 1..], b"" | b"\n")
        {
            if at > 0 {
                self.push(stream, &label);
            }
            self.push(stream, &rest[..=at]);
            rest = &rest[at + 1..];
        }
        self.push(stream, &label);
        self.push(stream, rest);
    }

    /// Shows rank 0's open line in the last row.
    fn draw(&mut self, stream: Stream) {
        let open = &self.open[0][stream as usize];
        if open.is_empty() {
            if self.drawing.as_ref().is_some_and(|(at, _)| *at == stream) {
                self.erase();
            }
            return;
        }
        let Target::Terminal(columns) = self.targets[stream as usize] else {
            return;
        };
        let label_columns = if self.style.label { 4 } else { 0 };
        let text = cut(shown(open), columns.saturating_sub(label_columns + 1));
        let row = [self.label(0, stream), text].concat();
        if self.drawing.as_ref().is_some_and(|(_, now)| *now == row) {
            return;
        }
        self.erase();
        self.push(stream, &row);
        self.drawing = Some((stream, row));
    }

    /// Clears the last row, where rank 0 has drawn.
    fn erase(&mut self) {
        if let Some((stream, _)) = self.drawing.take() {
            self.push(stream, b"\r\x1b[K");
        }
    }

    /// Clears the last row for a line on `stream`; what stood there.
    fn lift(&mut self, stream: Stream) -> Option<(Stream, Vec<u8>)> {
        // A stream that goes to a file does not disturb the terminal.
        let drawn = self.drawing.clone().filter(|_| self.is_terminal(stream));
        if drawn.is_some() {
            self.erase();
        }
        drawn
    }

    fn put_back(&mut self, drawn: Option<(Stream, Vec<u8>)>) {
        // The line may have been the drawing's own, ended now.
        let Some((stream, row)) = drawn.filter(|(s, _)| !self.open[0][*s as usize].is_empty())
        else {
            return;
        };
        self.push(stream, &row);
        self.drawing = Some((stream, row));
    }
}

/// What a line shows on a terminal: the last thing that was drawn over the rest.
fn shown(line: &[u8]) -> &[u8] {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.rsplit(|&byte| byte == b'\r').find(|part| !part.is_empty()).unwrap_or_default()
}

/// The first `columns` characters; escape sequences take no room and are kept.
fn cut(text: &[u8], columns: usize) -> Vec<u8> {
    let mut kept = Vec::with_capacity(text.len());
    let mut room = columns;
    let mut escaped = false;
    let mut in_escape = false;
    for &byte in text {
        if in_escape {
            in_escape = !(byte.is_ascii_alphabetic() || byte == b'~');
        } else if byte == 0x1b {
            (in_escape, escaped) = (true, true);
        } else if byte & 0xc0 != 0x80 {
            // The first byte of a character; the others follow it for free.
            if room == 0 {
                if escaped {
                    kept.extend_from_slice(b"\x1b[0m");
                }
                return kept;
            }
            room -= 1;
        }
        kept.push(byte);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILES: [Target; 2] = [Target::File, Target::File];
    const TERMINALS: [Target; 2] = [Target::Terminal(20), Target::Terminal(20)];

    fn screen(label: bool, targets: [Target; 2]) -> Screen {
        Screen::new(4, Style { label, color: false }, targets)
    }

    fn written(screen: &mut Screen, stream: Stream) -> String {
        let bytes: Vec<u8> = screen.queue(stream).drain(..).collect();
        String::from_utf8(bytes).expect("text")
    }

    #[test]
    fn lines_are_whole_and_labelled_whatever_the_pieces() {
        let mut s = screen(true, FILES);
        s.feed(0, Stream::Out, b"he");
        s.feed(1, Stream::Out, b"other\nhalf");
        s.feed(0, Stream::Out, b"llo\nworld\n");
        s.feed(1, Stream::Err, b"error\n");
        assert_eq!(written(&mut s, Stream::Out), "[1] other\n[0] hello\n[0] world\n");
        assert_eq!(written(&mut s, Stream::Err), "[1] error\n");
        s.end(1, Stream::Out);
        s.end(0, Stream::Out);
        assert_eq!(written(&mut s, Stream::Out), "[1] half\n");
    }

    #[test]
    fn without_labels_every_byte_passes_unchanged() {
        let mut s = screen(false, FILES);
        let bytes: Vec<u8> = (0..=255).collect();
        s.feed(2, Stream::Out, &bytes);
        s.end(2, Stream::Out);
        assert_eq!(s.queue(Stream::Out).drain(..).collect::<Vec<_>>(), bytes);
    }

    #[test]
    fn in_files_carriage_returns_stay_and_what_follows_is_labelled() {
        let mut s = screen(true, FILES);
        s.feed(0, Stream::Out, b"\r10%\r20%\ncrlf\r\n");
        assert_eq!(written(&mut s, Stream::Out), "\r[0] 10%\r[0] 20%\n[0] crlf\r\n");
    }

    #[test]
    fn a_line_without_end_is_broken_up() {
        let mut s = screen(true, FILES);
        s.feed(3, Stream::Out, &vec![b'x'; LINE_MAX + 1]);
        assert_eq!(s.queue(Stream::Out).len(), LINE_MAX + 1 + "[3] \n".len());
    }

    #[test]
    fn on_a_terminal_lines_scroll_above_what_rank_0_draws() {
        let mut s = screen(true, TERMINALS);
        s.feed(0, Stream::Err, b"\r10%");
        assert_eq!(written(&mut s, Stream::Out), "[0] 10%");
        s.feed(1, Stream::Out, b"hello\npart");
        assert_eq!(written(&mut s, Stream::Out), "\r\x1b[K[1] hello\n[0] 10%");
        s.feed(0, Stream::Err, b"\r20%");
        assert_eq!(written(&mut s, Stream::Out), "\r\x1b[K[0] 20%");
        s.note("a word");
        assert_eq!(written(&mut s, Stream::Out), "\r\x1b[Kunisono: a word\n[0] 20%");
        s.feed(0, Stream::Err, b"\rdone\n");
        assert_eq!(written(&mut s, Stream::Out), "\r\x1b[K[0] done\n");
        s.feed(1, Stream::Out, b"\n");
        assert_eq!(written(&mut s, Stream::Out), "[1] part\n");
    }

    #[test]
    fn an_answered_prompt_is_not_repeated() {
        let mut s = screen(true, TERMINALS);
        s.feed(0, Stream::Out, b"name? ");
        s.entered();
        s.feed(0, Stream::Out, b"hello\n");
        assert_eq!(written(&mut s, Stream::Out), "[0] name? [0] hello\n");
    }

    #[test]
    fn what_is_drawn_is_cut_to_the_terminal() {
        let mut s = screen(true, TERMINALS);
        s.feed(0, Stream::Err, "\r\x1b[1mäbcdefghijklmnopqrstuvw".as_bytes());
        assert_eq!(written(&mut s, Stream::Out), "[0] \x1b[1mäbcdefghijklmno\x1b[0m");
    }
}
