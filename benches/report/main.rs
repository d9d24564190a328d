//! `make bench`: times this library beside its peers and the machine's own floor, and writes
//! `BENCHMARKS.md` with a chart for each table.
//!
//! Each contestant is a command that prints a line of JSON for each size. Every round runs each
//! once, in turn, so that a machine that drifts drifts under all of them; a cell is the median over
//! the rounds. What a command printed before its time was over counts.
//!
//! `floor ...` and `rank ...` as first arguments make this program the floor's contestant, or a
//! rank of the cases that are no sweep over sizes.
//!
//! Not here: other machines' figures, GPUs, and any verdict: a slow result is a result.
#![cfg_attr(
    test,
    allow(dead_code, unused_imports, reason = "the tests run from tests/bench.rs, without `main`")
)]

mod cases;
mod chart;
mod document;
mod floor;
mod machine;
mod mpis;
mod options;
mod over;
mod peers;
mod runner;
mod section;
mod session;
mod table;
mod worker;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match arguments.first().map(String::as_str) {
        Some("floor") => floor::main(&arguments[1..]),
        Some("rank") => worker::main(&arguments[1..]),
        _ => session::main(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            eprintln!("bench: {text}");
            ExitCode::FAILURE
        }
    }
}
