//! The command line: one module per subcommand, each with its `Options` and a `main`.
//!
//! Exit status: 0 when all is well, 1 for a failure, 2 for a usage error; `run` ends with the
//! status of the first rank that failed. Errors are one line on stderr that begins with "unisono:
//! ". Everything is written by [`output`], which knows what becomes of output that is lost.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod check;
mod data;
mod demo;
mod info;
mod launch;
mod output;
mod perf;
mod plan;
mod ranks;
mod run;
mod sys;
mod table;
mod tune;
mod tuner;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

/// The subcommands, in the order in which `--help` shows them.
#[derive(clap::Subcommand, Debug)]
enum Command {
    Run(run::Options),
    Perf(perf::Options),
    Check(check::Options),
    Info(info::Options),
    Tune(tune::Options),
    Plan(plan::Options),
    Demo(demo::Options),
}

/// Collective communication for training and serving large language models.
#[derive(Parser, Debug)]
#[command(name = "unisono", version, disable_help_subcommand = true, max_term_width = 100)]
#[command(subcommand_required = true, arg_required_else_help = true)]
#[command(
    after_help = "Exit status: 0 when all is well, 1 for a failure (output that cannot be written \
    is one), 2 for a usage error, 141 when the reader of the output has gone away, as with `| head`."
)]
struct Program {
    #[command(subcommand)]
    command: Command,
}

/// Reads the command line and does what it says.
pub(crate) fn main() -> ExitCode {
    let program = match Program::try_parse() {
        Ok(program) => program,
        Err(error) => return refuse(&error),
    };
    let code = match program.command {
        Command::Run(options) => run::main(&options),
        Command::Perf(options) => perf::main(&options),
        Command::Check(options) => check::main(&options),
        Command::Info(options) => info::main(&options),
        Command::Tune(options) => tune::main(&options),
        Command::Plan(options) => plan::main(&options),
        Command::Demo(options) => demo::main(&options),
    };
    output::settle(code)
}

/// Help and version as they come; whatever is wrong in one line.
fn refuse(error: &clap::Error) -> ExitCode {
    use ErrorKind as E;
    match error.kind() {
        E::DisplayHelp | E::DisplayVersion => {
            output::note(error.print().and_then(|()| std::io::stdout().flush()));
            return output::settle(ExitCode::SUCCESS);
        }
        E::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            return ExitCode::from(2);
        }
        _ => {}
    }
    let text = error.to_string();
    // The message comes first, then a blank line, then advice.
    let message: Vec<&str> =
        text.lines().take_while(|line| !line.trim().is_empty()).map(str::trim).collect();
    let message = message.join(" ");
    let message = message.strip_prefix("error: ").unwrap_or(&message);
    let tip = text.lines().find_map(|line| line.trim().strip_prefix("tip: "));
    let tip = tip.map_or_else(String::new, |tip| format!("; {tip}"));
    usage(format_args!("{message}{tip}; --help explains"))
}

/// Reports a failure in one line; the exit status for it.
pub(crate) fn fail(what: impl std::fmt::Display) -> ExitCode {
    output::complain(what);
    ExitCode::FAILURE
}

/// Reports a usage error in one line; the exit status for it.
pub(crate) fn usage(what: impl std::fmt::Display) -> ExitCode {
    output::complain(what);
    ExitCode::from(2)
}

/// Prints to stdout; the exit status of a subcommand that does no more.
pub(crate) fn print(text: &str) -> ExitCode {
    output::text(text);
    ExitCode::SUCCESS
}
