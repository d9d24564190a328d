//! `unisono perf`: not written yet.

use std::process::ExitCode;

/// Time collectives and verify their results
#[derive(clap::Args, Debug)]
pub(crate) struct Options {}

/// Runs the subcommand.
pub(crate) fn main(_options: &Options) -> ExitCode {
    super::fail("perf: not written yet")
}
