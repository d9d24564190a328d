//! `unisono demo`: not written yet.

use std::process::ExitCode;

/// Show in a few seconds what the library does
#[derive(clap::Args, Debug)]
pub(crate) struct Options {}

/// Runs the subcommand.
pub(crate) fn main(_options: &Options) -> ExitCode {
    super::fail("demo: not written yet")
}
