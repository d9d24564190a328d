//! `unisono run`: ranks of a program on this machine.

use std::ffi::OsString;
use std::io;
use std::process::ExitCode;
use std::time::Duration;

use super::launch::{Bind, Launch, Output, RANKS_MAX, launch};
use super::{fail, usage};

/// Start ranks of a program on this machine
///
/// Each rank finds its place in UNISONO_RANK, UNISONO_WORLD, UNISONO_LOCAL_RANK and
/// UNISONO_LOCAL_WORLD; unisono_comm_init_env and Communicator::init_env read them. Standard input
/// goes to rank 0. Signals are passed on to all ranks; a second Ctrl-C kills them.
///
/// The exit status is that of the first rank that failed, 128 and the signal's number if a signal
/// killed it; 124 when --timeout passed, 126 or 127 when the program cannot be started.
#[derive(clap::Args, Debug)]
#[command(verbatim_doc_comment)]
pub(crate) struct Options {
    /// Number of ranks
    #[arg(short = 'n', long = "ranks", value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=i64::from(RANKS_MAX)))]
    ranks: u32,
    /// Let the others go on when a rank fails
    #[arg(long)]
    keep_going: bool,
    /// Do not put "[rank] " before lines of output
    #[arg(long)]
    no_label: bool,
    /// End all ranks after this time
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    timeout: Option<Duration>,
    /// Time between SIGTERM and SIGKILL when ranks are ended
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "5")]
    grace: Duration,
    /// Processors of each rank
    #[arg(long, value_enum, default_value = "none")]
    bind_to: Bind,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "PROGRAM")]
    command: Vec<OsString>,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().and_then(|s: f64| Duration::try_from_secs_f64(s).ok());
    seconds.ok_or_else(|| "not a number of seconds".to_owned())
}

/// Runs the subcommand.
pub(crate) fn main(options: &Options) -> ExitCode {
    let Some((program, args)) = options.command.split_first() else {
        return usage("run: no program given");
    };
    let output = if options.no_label { Output::Plain } else { Output::Labelled };
    let job = Launch {
        args: args.to_vec(),
        output,
        keep_going: options.keep_going,
        timeout: options.timeout,
        grace: options.grace,
        bind: options.bind_to,
        ..Launch::new(options.ranks, program)
    };
    match launch(&job) {
        Ok(status) => ExitCode::from(u8::try_from(status).unwrap_or(u8::MAX)),
        Err(error) => {
            let name = program.to_string_lossy();
            match error.kind() {
                io::ErrorKind::NotFound => {
                    let place = if name.contains('/') { "" } else { " in PATH" };
                    let _ = fail(format_args!("run: program not found{place}: {name}"));
                    ExitCode::from(127)
                }
                io::ErrorKind::PermissionDenied => {
                    let _ = fail(format_args!("run: program cannot be executed: {name}"));
                    ExitCode::from(126)
                }
                _ => fail(format_args!("run: starting {name}: {error}")),
            }
        }
    }
}
