//! Lines on standard error, for operators.
//!
//! Levels mean: `error`, a communicator is lost; `warn`, it works but somebody should know; `info`,
//! what was chosen and why, once per communicator. Nothing is logged on a call's path.

/// How much is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Nothing.
    Off,
    /// Lost communicators.
    Error,
    /// And what somebody should know.
    Warn,
    /// And choices with their reasons.
    Info,
}

impl Level {
    /// The level with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Off, Self::Error, Self::Warn, Self::Info].into_iter().find(|l| l.name() == name)
    }

    /// The name used in the environment and in lines.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
        }
    }
}

/// Writes one line, if `enabled` goes as far as `level`.
pub(crate) fn line(enabled: Level, level: Level, who: &str, text: &str) {
    if level <= enabled {
        use std::io::Write;
        // One write a line: ranks share the terminal. Nobody is helped by failing over a log line.
        let line = format!("unisono {}: {who}: {text}\n", level.name());
        let _ = std::io::stderr().write_all(line.as_bytes());
    }
}
