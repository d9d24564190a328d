//! One table of everything that can go wrong.
//!
//! The table below makes the Rust enum [`Code`], the numbers of the C ABI, their names and their
//! texts. Bands: 0 success, 1 in progress; 100 usage; 200 the local system; 300 a peer; 400 the
//! communicator; 500 a foreign backend (its own code is kept in [`Error::native`]); 900 our bug.
//! A number is never reused.

use std::ffi::CStr;
use std::fmt;
use std::panic::Location;

use crate::types::Rank;

/// The largest thing an error breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// The call failed; the communicator goes on as if it had not been made.
    Call,
    /// The communicator must be rebuilt; others in the process are untouched.
    Communicator,
    /// Nothing in this process can be relied on.
    Process,
}

const fn terminated(text: &'static str) -> &'static CStr {
    match CStr::from_bytes_with_nul(text.as_bytes()) {
        Ok(text) => text,
        Err(_) => panic!("a text of the table holds a NUL"),
    }
}

macro_rules! codes {
    ($($name:ident = $number:literal, $c:literal, $scope:ident, $text:literal;)+) => {
        /// What went wrong. Numbers are those of the C ABI.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(i32)]
        #[non_exhaustive]
        pub enum Code { $(#[doc = $text] $name = $number,)+ }

        impl Code {
            /// Every code, in numeric order.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The code with this number.
            #[must_use]
            pub const fn from_number(number: i32) -> Option<Self> {
                match number { $($number => Some(Self::$name),)+ _ => None }
            }

            /// The C constant's name without its prefix.
            #[must_use]
            pub const fn name(self) -> &'static str { match self { $(Self::$name => $c,)+ } }

            /// One sentence that explains the code.
            #[must_use]
            pub const fn text(self) -> &'static str { match self { $(Self::$name => $text,)+ } }

            /// What the error breaks.
            #[must_use]
            pub const fn scope(self) -> Scope { match self { $(Self::$name => Scope::$scope,)+ } }

            /// [`Code::name`] as C wants it.
            pub(crate) const fn c_name(self) -> &'static CStr {
                match self { $(Self::$name => terminated(concat!($c, "\0")),)+ }
            }

            /// [`Code::text`] as C wants it.
            pub(crate) const fn c_text(self) -> &'static CStr {
                match self { $(Self::$name => terminated(concat!($text, "\0")),)+ }
            }
        }
    };
}

codes! {
    InvalidArgument = 100, "INVALID_ARGUMENT", Call, "an argument is out of its range";
    NullPointer = 101, "NULL_POINTER", Call, "a pointer that must not be NULL is NULL";
    Misaligned = 102, "MISALIGNED", Call, "a buffer is not aligned to its element type";
    Overlap = 103, "OVERLAP", Call, "buffers overlap in a way the call does not allow";
    CountOverflow = 104, "COUNT_OVERFLOW", Call, "counts times element size exceed the address space";
    UnknownValue = 105, "UNKNOWN_VALUE", Call, "a number names no known type, operation or option";
    RankOutOfRange = 106, "RANK_OUT_OF_RANGE", Call, "a root or peer is not a rank of the communicator";
    InvalidHandle = 107, "INVALID_HANDLE", Call, "a handle is destroyed or was never one";
    Busy = 108, "BUSY", Call, "another thread is inside a call on this communicator";
    Unsupported = 109, "UNSUPPORTED", Call, "the combination has no meaning or is not available here";
    InvalidState = 110, "INVALID_STATE", Call, "the call is not allowed in this state";
    InvalidEnvironment = 111, "INVALID_ENVIRONMENT", Call, "environment variables are missing or contradict each other";
    InvalidId = 112, "INVALID_ID", Call, "the unique id is damaged or not one";
    NoLauncher = 113, "NO_LAUNCHER", Call, "no launcher has set its environment variables";
    Mismatch = 120, "MISMATCH", Communicator, "ranks made different calls";
    System = 200, "SYSTEM", Communicator, "the operating system refused";
    OutOfMemory = 201, "OUT_OF_MEMORY", Call, "memory could not be had";
    Limit = 202, "LIMIT", Call, "a configured or system limit is reached";
    NoAddress = 203, "NO_ADDRESS", Call, "no usable network address was found";
    PeerLost = 300, "PEER_LOST", Communicator, "a rank died or its connections broke";
    TimedOut = 301, "TIMED_OUT", Communicator, "the deadline passed";
    Protocol = 302, "PROTOCOL", Communicator, "a peer sent what it must not";
    VersionMismatch = 303, "VERSION_MISMATCH", Communicator, "a peer runs another version";
    Unauthenticated = 304, "UNAUTHENTICATED", Communicator, "a peer does not know the job's key";
    MissingRanks = 305, "MISSING_RANKS", Communicator, "ranks did not arrive before the start-up deadline";
    LinkLost = 306, "LINK_LOST", Communicator, "the connection to a rank broke, and the rank may be well";
    Aborted = 400, "ABORTED", Communicator, "the communicator was aborted";
    Broken = 401, "BROKEN", Communicator, "the communicator failed earlier";
    StaleEpoch = 402, "STALE_EPOCH", Communicator, "a peer belongs to another incarnation of the communicator";
    Backend = 500, "BACKEND", Communicator, "a foreign library failed";
    Internal = 900, "INTERNAL", Communicator, "a bug in unisono";
    Panic = 901, "PANIC", Communicator, "a panic was stopped at the C boundary";
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// An error with its culprit, its call and its place.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Error {
    /// What went wrong.
    pub code: Code,
    /// The rank to blame, where one is known.
    pub peer: Option<Rank>,
    /// The call's number on its communicator, where the error belongs to one.
    pub seq: Option<u64>,
    /// The errno or the foreign library's own code; 0 where there is none.
    pub native: i32,
    /// Where in the library it was raised.
    pub at: &'static Location<'static>,
    /// The offending value and what to do, in one line.
    pub detail: Box<str>,
}

/// What fallible functions return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error with its detail line.
    #[track_caller]
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self {
            code,
            peer: None,
            seq: None,
            native: 0,
            at: Location::caller(),
            detail: detail.into().into_boxed_str(),
        }
    }

    /// [`Code::System`] from the calling thread's errno, with what was attempted.
    #[track_caller]
    pub fn last_os(what: impl fmt::Display) -> Self {
        Self::os(&std::io::Error::last_os_error(), what)
    }

    /// [`Code::System`] (or [`Code::OutOfMemory`] for ENOMEM) from an I/O error.
    #[track_caller]
    pub fn os(error: &std::io::Error, what: impl fmt::Display) -> Self {
        let native = error.raw_os_error().unwrap_or(0);
        let code = if native == libc::ENOMEM { Code::OutOfMemory } else { Code::System };
        let mut made = Self::new(code, format!("{what}: {error}"));
        made.native = native;
        made
    }

    /// The same error, blaming `peer`.
    #[must_use]
    pub fn with_peer(mut self, peer: Rank) -> Self {
        self.peer = Some(peer);
        self
    }

    /// The same error, belonging to call `seq`.
    #[must_use]
    pub fn with_seq(mut self, seq: u64) -> Self {
        self.seq = Some(seq);
        self
    }

    /// What the error breaks.
    #[must_use]
    pub const fn scope(&self) -> Scope {
        self.code.scope()
    }
}

/// `text`, cut between characters to at most `bytes` bytes.
pub(crate) fn cut(text: &str, bytes: usize) -> &str {
    let mut end = text.len().min(bytes);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// A text that another process has sent, fit to be shown: control characters could do things to a
/// terminal.
pub(crate) fn shown(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A value somebody has given, in quotes, fit for one line: without control, cut where it is long.
pub(crate) fn quoted(value: &str) -> String {
    const BYTES_MAX: usize = 80;
    let end = if value.len() > BYTES_MAX { "..." } else { "" };
    format!("\"{}\"{end}", shown(cut(value, BYTES_MAX).as_bytes()))
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): {}", self.code.name(), self.code as i32, self.code.text())?;
        if !self.detail.is_empty() {
            write!(f, ": {}", self.detail)?;
        }
        if let Some(peer) = self.peer {
            write!(f, " [rank {peer}]")?;
        }
        if let Some(seq) = self.seq {
            write!(f, " [call {seq}]")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} at {}:{}", self.at.file(), self.at.line())
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_round_trip_and_are_sorted_inside_their_bands() {
        for pair in Code::ALL.windows(2) {
            assert!((pair[0] as i32) < pair[1] as i32, "{} before {}", pair[0], pair[1]);
        }
        for &code in Code::ALL {
            assert_eq!(Code::from_number(code as i32), Some(code));
            assert!(!code.text().is_empty());
        }
        assert_eq!(Code::from_number(99), None);
    }

    #[test]
    fn texts_are_cut_between_characters_and_shown_without_control() {
        assert_eq!([cut("aé", 3), cut("aé", 2), cut("aé", 0), cut("", 9)], ["aé", "a", "", ""]);
        assert_eq!(shown(b"a\x1b[2J\nb\xff"), "a [2J b\u{fffd}");
        assert_eq!(quoted("a\nb"), "\"a b\"");
        assert_eq!(quoted(&"x".repeat(100_000)), format!("\"{}\"...", "x".repeat(80)));
    }

    #[test]
    fn an_error_says_code_value_rank_and_call() {
        let error = Error::new(Code::RankOutOfRange, "root 7 in a world of 4")
            .with_peer(Rank(7))
            .with_seq(12);
        assert_eq!(
            error.to_string(),
            "RANK_OUT_OF_RANGE (106): a root or peer is not a rank of the communicator: \
             root 7 in a world of 4 [rank 7] [call 12]"
        );
    }
}
