//! `unisono info`: not written yet.

use std::process::ExitCode;

/// Say what was found on this machine, what was chosen and why
#[derive(clap::Args, Debug)]
pub(crate) struct Options {}

/// Runs the subcommand.
pub(crate) fn main(_options: &Options) -> ExitCode {
    super::fail("info: not written yet")
}
