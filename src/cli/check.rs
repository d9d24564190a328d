//! `unisono check`: not written yet.

use std::process::ExitCode;

/// Run the conformance suite of this build on this machine
#[derive(clap::Args, Debug)]
pub(crate) struct Options {}

/// Runs the subcommand.
pub(crate) fn main(_options: &Options) -> ExitCode {
    super::fail("check: not written yet")
}
