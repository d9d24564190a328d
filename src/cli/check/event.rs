//! What ranks tell, as values between threads and as lines between processes.

/// How a case ended on one rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Passed,
    /// Not run, and why.
    Skipped(String),
    /// What was seen, with what it takes to see it again.
    Failed(String),
}

/// Something a rank tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// Case `0` begins.
    Begin(String),
    /// The case begun last has ended.
    End(Verdict),
    /// All cases are through.
    Done,
    /// The rank is gone: nothing more will come. Only a collector makes this.
    Gone,
}

/// Begins every line that is an event.
const MARK: char = '\u{1}';

impl Event {
    /// One line, without its end.
    pub(super) fn encode(&self) -> String {
        let (kind, text) = match self {
            Self::Begin(name) => ('b', name.as_str()),
            Self::End(Verdict::Passed) => ('p', ""),
            Self::End(Verdict::Skipped(reason)) => ('s', reason.as_str()),
            Self::End(Verdict::Failed(what)) => ('f', what.as_str()),
            Self::Done => ('d', ""),
            Self::Gone => ('g', ""),
        };
        format!("{MARK}{kind}{}", text.replace('\n', "; "))
    }

    /// The event on a line, or `None` when the line is something else.
    pub(super) fn decode(line: &str) -> Option<Self> {
        let mut rest = line.strip_prefix(MARK)?.chars();
        let kind = rest.next()?;
        let text = rest.as_str().to_owned();
        match kind {
            'b' => Some(Self::Begin(text)),
            'p' => Some(Self::End(Verdict::Passed)),
            's' => Some(Self::End(Verdict::Skipped(text))),
            'f' => Some(Self::End(Verdict::Failed(text))),
            'd' => Some(Self::Done),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_survive_their_line() {
        for event in [
            Event::Begin("types: all_reduce".into()),
            Event::End(Verdict::Passed),
            Event::End(Verdict::Skipped("no".into())),
            Event::End(Verdict::Failed("3 wrong".into())),
            Event::Done,
        ] {
            assert_eq!(Event::decode(&event.encode()), Some(event));
        }
        assert_eq!(Event::decode("a line of somebody else"), None);
    }
}
