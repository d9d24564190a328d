//! What `--algo` can be asked for, and what `--sweep-algos` asks for: the tuner says which calls an
//! algorithm can carry out.
//!
//! A setting of the environment is a preference, so the tuner passes it over where it does not fit.
//! Figures under the name of an algorithm must be that algorithm's, so here it is refused.

use std::ptr;

use unisono::algo;
use unisono::call::Call;
use unisono::config::Config;
use unisono::engine::{Planner, Reach, Route};
use unisono::plan::Algorithm;
use unisono::tune::Memory;
use unisono::{Collective, Dtype, ReduceOp};

use super::Options;
use crate::cli::data::shape::Kind;
use crate::cli::ranks::{self, Link};
use crate::cli::tuner::tuner;

/// The collectives asked for that `--algo` does.
///
/// # Errors
/// It does none of them: why not the first, and what does that.
pub(super) fn kinds(options: &Options, world: u32) -> Result<Vec<Kind>, String> {
    let Some(algorithm) = options.algo else {
        return Ok(options.kinds().to_vec());
    };
    let (mut able, mut refusals) = (Vec::new(), Vec::new());
    for &kind in options.kinds() {
        match refusal(options, kind, algorithm, world)? {
            None => able.push(kind),
            Some(text) => refusals.push(text),
        }
    }
    match refusals.into_iter().next() {
        Some(text) if able.is_empty() => Err(text),
        _ => Ok(able),
    }
}

/// The algorithms that do all that is asked for of `kind`.
///
/// # Errors
/// The options make no sense.
pub(super) fn every(options: &Options, kind: Kind, world: u32) -> Result<Vec<Algorithm>, String> {
    let mut every = Vec::new();
    for &algorithm in Algorithm::ALL {
        if refusal(options, kind, algorithm, world)?.is_none() {
            every.push(algorithm);
        }
    }
    Ok(every)
}

/// Why `algorithm` does not do all that is asked for of `kind`, or `None` when it does.
fn refusal(
    options: &Options,
    kind: Kind,
    algorithm: Algorithm,
    world: u32,
) -> Result<Option<String>, String> {
    let (dtypes, mut ops) = (options.dtypes()?, options.reductions()?);
    ops.retain(|op| dtypes.iter().any(|&dtype| op.supports(dtype)));
    if !kind.reduces() {
        ops = vec![ReduceOp::Sum];
    }
    let config = options.config(None).map_err(|error| error.to_string())?;
    for op in ops {
        for &in_place in options.placements().iter().filter(|&&at| !at || kind.has_in_place()) {
            let able = able(options, &config, kind, world, (op, in_place))?;
            if !able.contains(&algorithm) {
                let asked = asked(options, &config, kind, algorithm, (op, in_place));
                let names: Vec<_> = able.iter().map(|a| a.name()).collect();
                let these = if names.is_empty() { "none does".into() } else { names.join(", ") };
                let text = format!(
                    "{} does not do {asked} by {world} ranks; these do: {these}",
                    algorithm.name()
                );
                return Ok(Some(text));
            }
        }
    }
    Ok(None)
}

/// What is asked for, with everything that an algorithm may depend on.
fn asked(
    options: &Options,
    config: &Config,
    kind: Kind,
    algorithm: Algorithm,
    (op, in_place): (ReduceOp, bool),
) -> String {
    let mut text = kind.name().to_owned();
    if op == ReduceOp::PreMulSum {
        text += " of pre_mul_sum";
    }
    if in_place && kind == Kind::Collective(Collective::AllToAll) {
        text += " in place";
    }
    if config.deterministic && kind.reduces() {
        text += " in the deterministic mode";
    }
    if matches!(algorithm, Algorithm::Direct | Algorithm::Staged) {
        let memory = if options.registered { "registered" } else { "plain" };
        text += &format!(" in {memory} memory over {}", options.link.name());
    }
    text
}

/// The algorithms that do it.
fn able(
    options: &Options,
    config: &Config,
    kind: Kind,
    world: u32,
    (op, in_place): (ReduceOp, bool),
) -> Result<Vec<Algorithm>, String> {
    let Kind::Collective(collective) = kind else {
        let all = Algorithm::ALL.iter().copied();
        let does = |a: &Algorithm| kind.calls(0, 2).iter().all(|&call| algo::offers(*a, call));
        return Ok(all.filter(does).collect());
    };
    let launched = ranks::is_rank() && !ranks::is_child();
    let (memory, shared) = match options.link {
        _ if launched => (Memory::Given, options.registered),
        Link::Mem => (Memory::All, true),
        Link::Shm => (Memory::Given, options.registered),
        Link::Tcp | Link::Rdma | Link::Rsocket | Link::Mpi => (Memory::Apart, false),
    };
    let mut call = Call { op, count: 1, ..Call::new(collective, Dtype::F32) };
    if !in_place {
        // Only whether they are the same matters.
        call.recv = ptr::NonNull::dangling().as_ptr();
    }
    // Ranks meet for direct when they are asked to, so that is what is asked here.
    let config = Config { algorithm: Some(Algorithm::Direct), ..config.clone() };
    let mut tuner = tuner(&config, world, memory)?;
    let reach = match tuner.route(&call) {
        Route::Meet if shared => Reach::Buffers,
        _ if memory == Memory::Apart => Reach::Messages,
        _ => Reach::Stages,
    };
    Ok(tuner.able(&call, reach))
}
