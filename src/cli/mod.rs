//! The command line: one module per subcommand, each with its `Options` and a `main`.
//!
//! Exit status: 0 when all is well, 1 for a failure, 2 for a usage error; `run` ends with the status
//! of the first rank that failed. Errors are one line on stderr that begins with "unisono: ".

mod check;
mod data;
mod demo;
mod info;
mod perf;
mod plan;
mod ranks;
mod run;

use std::process::ExitCode;

use clap::Parser;

/// The subcommands, in the order in which `--help` shows them.
#[derive(clap::Subcommand, Debug)]
enum Command {
    Run(run::Options),
    Perf(perf::Options),
    Check(check::Options),
    Info(info::Options),
    Plan(plan::Options),
    Demo(demo::Options),
}

/// Collective communication for training and serving large language models.
#[derive(Parser, Debug)]
#[command(name = "unisono", version, disable_help_subcommand = true)]
#[command(subcommand_required = true, arg_required_else_help = true)]
struct Program {
    #[command(subcommand)]
    command: Command,
}

/// Reads the command line and does what it says.
pub(crate) fn main() -> ExitCode {
    match Program::parse().command {
        Command::Run(options) => run::main(&options),
        Command::Perf(options) => perf::main(&options),
        Command::Check(options) => check::main(&options),
        Command::Info(options) => info::main(&options),
        Command::Plan(options) => plan::main(&options),
        Command::Demo(options) => demo::main(&options),
    }
}

/// Reports a failure in one line; the exit status for it.
pub(crate) fn fail(what: impl std::fmt::Display) -> ExitCode {
    eprintln!("unisono: {what}");
    ExitCode::FAILURE
}

/// Reports a usage error in one line; the exit status for it.
pub(crate) fn usage(what: impl std::fmt::Display) -> ExitCode {
    eprintln!("unisono: {what}");
    ExitCode::from(2)
}
