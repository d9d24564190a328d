//! `unisono info`: what was found on this machine, what was chosen and why.

mod foreign;
mod machine;
mod tables;
mod tuning;

use std::process::ExitCode;

use clap::ArgAction::SetTrue;
use serde_json::{Map, Value};

use super::ranks::Link;
use super::{print, usage};

/// Say what was found on this machine, what was chosen and why
///
/// Without options: the machine, what communicators would use of it, and what else is installed.
/// With --types, --plans, --tuning or --knobs: those tables instead.
#[derive(clap::Args, Debug)]
#[command(verbatim_doc_comment)]
pub(crate) struct Options {
    /// Element types and operations, and the rules of rounding and NaN
    #[arg(long, action = SetTrue)]
    types: bool,
    /// Collectives and the algorithms that do them
    #[arg(long, action = SetTrue)]
    plans: bool,
    /// What is chosen by size: route, algorithm, tile and window, and why
    #[arg(long, action = SetTrue)]
    tuning: bool,
    /// Environment variables, their values and defaults
    #[arg(long, action = SetTrue)]
    knobs: bool,
    /// Ranks for --tuning, all on one host
    #[arg(short = 'n', long, value_name = "N", default_value_t = 4, requires = "tuning")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=i64::from(unisono::types::WORLD_MAX)))]
    ranks: u32,
    /// Collective for --tuning [default: all that choose by size]
    #[arg(long, value_name = "NAME", requires = "tuning")]
    collective: Option<String>,
    /// How the ranks of --tuning reach each other
    #[arg(long, value_enum, default_value = "shm", requires = "tuning")]
    link: Link,
    /// Buffers for --tuning that all ranks can map, not plain memory
    #[arg(long, requires = "tuning")]
    registered: bool,
    /// One JSON object
    #[arg(long, action = SetTrue)]
    json: bool,
}

/// A part of the report: lines for people, values for programs.
pub(super) struct Part {
    name: &'static str,
    title: String,
    text: String,
    value: Value,
}

/// Runs the subcommand.
pub(crate) fn main(options: &Options) -> ExitCode {
    let mut parts = Vec::new();
    if options.types {
        parts.push(tables::types());
    }
    if options.plans {
        parts.push(tables::plans());
    }
    if options.tuning {
        match tuning::part(options) {
            Ok(part) => parts.push(part),
            Err(what) => return usage(format_args!("info: {what}")),
        }
    }
    if options.knobs {
        parts.push(tables::knobs());
    }
    if parts.is_empty() {
        parts = vec![
            machine::processor(),
            machine::memory(),
            machine::network(),
            machine::launcher(),
            machine::mpi(),
            foreign::kernels(),
            foreign::cuda(),
            foreign::nccl(),
            foreign::rdma(),
            machine::settings(),
        ];
    }
    if options.json {
        let mut object = Map::new();
        object.insert("version".to_owned(), env!("CARGO_PKG_VERSION").into());
        object.extend(parts.into_iter().map(|part| (part.name.to_owned(), part.value)));
        return print(&format!("{}\n", Value::Object(object)));
    }
    let mut text = format!("unisono {}\n", env!("CARGO_PKG_VERSION"));
    for part in &parts {
        text += &format!("\n{}\n{}", part.title, part.text);
    }
    print(&text)
}
