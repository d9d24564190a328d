//! `unisono plan`: not written yet.

use std::process::ExitCode;

/// Print, check or draw the plan of a collective
#[derive(clap::Args, Debug)]
pub(crate) struct Options {}

/// Runs the subcommand.
pub(crate) fn main(_options: &Options) -> ExitCode {
    super::fail("plan: not written yet")
}
