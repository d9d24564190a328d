//! `unisono run`: not written yet.

use std::process::ExitCode;

/// Start ranks of a program on this machine
#[derive(clap::Args, Debug)]
pub(crate) struct Options {}

/// Runs the subcommand.
pub(crate) fn main(_options: &Options) -> ExitCode {
    super::fail("run: not written yet")
}
