//! The command lines of both sides.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use unisono::config::Family;
use unisono::{Collective, Dtype, ReduceOp};

use super::child::{self, Run};
use super::parse::{self, Line};
use super::{Against, Perf};
use crate::cli::check::number_of;
use crate::cli::data::shape::Kind;
use crate::cli::sys::Ended;

/// Lets NCCL 2.30 and later have ranks that share a GPU.
const SHARED: &str = "NCCL_MULTI_RANK_GPU_ENABLE";

/// nccl-tests' program for `kind`.
pub(super) fn program(kind: Kind) -> Option<&'static str> {
    use Collective as C;
    match kind {
        Kind::SendRecv => Some("sendrecv_perf"),
        Kind::PingPong => None,
        Kind::Collective(collective) => match collective {
            C::AllReduce => Some("all_reduce_perf"),
            C::AllGather => Some("all_gather_perf"),
            C::ReduceScatter => Some("reduce_scatter_perf"),
            C::Broadcast => Some("broadcast_perf"),
            C::Reduce => Some("reduce_perf"),
            C::Gather => Some("gather_perf"),
            C::Scatter => Some("scatter_perf"),
            C::AllToAll => Some("alltoall_perf"),
            _ => None,
        },
    }
}

/// nccl-tests' name of an element type.
pub(super) fn dtype(dtype: Dtype) -> Result<&'static str, String> {
    match dtype {
        Dtype::I8 => Ok("int8"),
        Dtype::U8 => Ok("uint8"),
        Dtype::I32 => Ok("int32"),
        Dtype::U32 => Ok("uint32"),
        Dtype::I64 => Ok("int64"),
        Dtype::U64 => Ok("uint64"),
        Dtype::F16 => Ok("half"),
        Dtype::F32 => Ok("float"),
        Dtype::F64 => Ok("double"),
        Dtype::Bf16 => Ok("bfloat16"),
        Dtype::F8E4M3 => Ok("f8e4m3"),
        Dtype::F8E5M2 => Ok("f8e5m2"),
        other => Err(format!("nccl-tests has no type {other}")),
    }
}

/// nccl-tests' name of a reduction.
pub(super) fn reduction(op: ReduceOp) -> Result<&'static str, String> {
    match op {
        ReduceOp::Sum => Ok("sum"),
        ReduceOp::Prod => Ok("prod"),
        ReduceOp::Min => Ok("min"),
        ReduceOp::Max => Ok("max"),
        ReduceOp::Avg => Ok("avg"),
        ReduceOp::PreMulSum => Ok("mulsum"),
        other => Err(format!("nccl-tests has no reduction {}", other.name())),
    }
}

/// What one side runs in each of its turns.
#[derive(Debug)]
pub(super) struct Side {
    /// As it is called in errors.
    name: String,
    /// As it is called above the table.
    pub(super) title: String,
    program: PathBuf,
    arguments: Vec<String>,
    variables: Vec<(&'static str, String)>,
    /// What to read its output as, and on how many ranks of how many bytes an element.
    reads: Reads,
    world: u32,
    element: u64,
}

#[derive(Clone, Copy, Debug)]
enum Reads {
    NcclTests,
    Ours,
}

impl Side {
    /// Runs it once; a line for each of `sizes`.
    ///
    /// # Errors
    /// What was wrong, by name.
    pub(super) fn turn(&self, limit: Duration, sizes: &[u64]) -> Result<Vec<Line>, String> {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments);
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        let named = |text: String| format!("{}: {text}", self.name);
        let run = child::run(command, limit).map_err(named)?;
        let read = self.read(&run, sizes);
        // Wrong data makes them fail, too, but has a table.
        let wrong = |lines: &Vec<Line>| lines.iter().any(Line::has_wrong);
        match (run.ended, read) {
            (Ended::Exited(0), Ok(lines)) => Ok(lines),
            (Ended::Exited(0), Err(text)) => Err(named(text)),
            (_, Ok(lines)) if wrong(&lines) => Ok(lines),
            (ended, _) => Err(named(format!("{}; {}", child::how(ended), run.tail()))),
        }
    }

    fn read(&self, run: &Run, sizes: &[u64]) -> Result<Vec<Line>, String> {
        let lines = match self.reads {
            Reads::Ours => parse::ours(&run.out)?,
            Reads::NcclTests => {
                let table = parse::nccl_tests(&run.out)?;
                if table.ranks.is_some_and(|ranks| ranks != self.world) {
                    let ranks = table.ranks.unwrap_or(0);
                    let text = "where mpirun started it, it was not built with MPI";
                    return Err(format!("it ran {ranks} ranks, not {}: {text}", self.world));
                }
                table.lines
            }
        };
        parse::fit(&lines, sizes, self.world, self.element)?;
        Ok(lines)
    }
}

/// The other side.
///
/// # Errors
/// There is no such program.
pub(super) fn theirs(options: &Perf, against: &Against, kind: Kind) -> Result<Side, String> {
    let Against::Tests(folder) = against else {
        return this_program(options, kind, Some(Family::Nccl), "perf --backend nccl");
    };
    let name = program(kind).unwrap_or("no program");
    let found = find(folder, name)?;
    let text = |value: &dyn std::fmt::Display| value.to_string();
    let calls = if options.iters == 0 { CALLS } else { options.iters };
    let factor = ("-f", options.factor.unwrap_or(8));
    let step = options.step.map_or(factor, |step| ("-i", step));
    let alone = options.ranks == 1 || options.versus.mpirun;
    let threads = if alone { 1 } else { options.ranks };
    let reduction = if kind.reduces() { reduction(options.reductions()?[0])? } else { "sum" };
    let mut arguments: Vec<String> = Vec::new();
    if options.versus.mpirun {
        arguments.extend(["-n".to_owned(), text(&options.ranks), path(&found)?]);
    }
    for (flag, value) in [
        ("-g", text(&threads)),
        ("-b", text(&options.begin)),
        ("-e", text(&options.end)),
        (step.0, text(&step.1)),
        ("-d", dtype(options.dtypes()?[0])?.to_owned()),
        ("-o", reduction.to_owned()),
        ("-r", options.root.clone()),
        ("-n", text(&calls)),
        ("-w", text(&options.warmup.saturating_mul(calls))),
        ("-c", text(&options.check)),
    ] {
        arguments.extend([flag.to_owned(), value]);
    }
    let mut variables = vec![("NCCL_TESTS_DEVICE", text(&options.device.map_or(0, number_of)))];
    variables.extend(shared(options));
    let program = if options.versus.mpirun { "mpirun".into() } else { found.clone() };
    Ok(Side {
        name: name.to_owned(),
        title: found.display().to_string(),
        program,
        arguments,
        variables,
        reads: Reads::NcclTests,
        world: options.ranks,
        element: options.dtypes()?[0].bytes() as u64,
    })
}

/// Calls of a size in nccl-tests when nothing is said.
const CALLS: u32 = 20;

/// Our side.
///
/// # Errors
/// This program is not found.
pub(super) fn ours(options: &Perf, against: &Against, kind: Kind) -> Result<Side, String> {
    match against {
        Against::Nccl => {
            let family = options.backend.unwrap_or(Family::Native);
            this_program(options, kind, Some(family), &format!("perf --backend {}", family.name()))
        }
        Against::Tests(_) => {
            let mut options = options.clone();
            // One loop of calls, as theirs.
            options.rounds = 1;
            options.iters = if options.iters == 0 { CALLS } else { options.iters };
            this_program(&options, kind, options.backend, "perf")
        }
    }
}

/// This program, as `options` say but on `backend`.
fn this_program(
    options: &Perf,
    kind: Kind,
    backend: Option<Family>,
    name: &str,
) -> Result<Side, String> {
    let program =
        std::env::current_exe().map_err(|error| format!("finding this program: {error}"))?;
    let text = |value: &dyn std::fmt::Display| value.to_string();
    let mut arguments: Vec<String> =
        ["perf", kind.name(), "--json", "--both"].map(str::to_owned).into();
    let pairs = [
        ("--ranks", Some(text(&options.ranks))),
        ("--begin", Some(text(&options.begin))),
        ("--end", Some(text(&options.end))),
        ("--factor", options.factor.map(|factor| text(&factor))),
        ("--step", options.step.map(|step| text(&step))),
        ("--iters", Some(text(&options.iters))),
        ("--warmup", Some(text(&options.warmup))),
        ("--rounds", Some(text(&options.rounds))),
        ("--reduction", Some(options.reduction.clone())),
        ("--dtype", Some(options.dtype.clone())),
        ("--root", Some(options.root.clone())),
        ("--check", Some(text(&options.check))),
        ("--link", Some(options.link.name().to_owned())),
        ("--backend", backend.map(|backend| backend.name().to_owned())),
        ("--device", options.device.map(|device| text(&device))),
        ("--algo", options.algo.map(|algorithm| algorithm.name().to_owned())),
        ("--timeout", Some(text(&options.timeout))),
        ("--bind", Some(options.bind.name().to_owned())),
        ("--seed", Some(text(&options.seed))),
    ];
    for (flag, value) in pairs {
        arguments.extend(value.into_iter().flat_map(|value| [flag.to_owned(), value]));
    }
    let flags = [
        ("--wait", options.wait),
        ("--registered", options.registered),
        ("--deterministic", options.deterministic),
    ];
    arguments.extend(flags.iter().filter(|(_, set)| *set).map(|(flag, _)| (*flag).to_owned()));
    let variables = if backend == Some(Family::Nccl) { shared(options) } else { None };
    Ok(Side {
        name: name.to_owned(),
        title: name.to_owned(),
        program,
        arguments,
        variables: variables.into_iter().collect(),
        reads: Reads::Ours,
        world: options.ranks,
        element: options.dtypes()?[0].bytes() as u64,
    })
}

/// Where ranks share a GPU and nobody has said whether NCCL may have that: it may.
fn shared(options: &Perf) -> Option<(&'static str, String)> {
    let shares = options.ranks > 1 && !options.has_gpu_each();
    (shares && std::env::var_os(SHARED).is_none()).then(|| (SHARED, "1".to_owned()))
}

/// The program `name` in `folder`, which may be a checkout that was built in `build`.
fn find(folder: &Path, name: &str) -> Result<PathBuf, String> {
    let places = [folder.join(name), folder.join("build").join(name)];
    let found = places.iter().find(|place| place.is_file());
    let found = found.ok_or_else(|| format!("there is no {name} in {}", folder.display()))?;
    // Without a folder the name would be looked up in PATH.
    std::path::absolute(found).map_err(|error| format!("{}: {error}", found.display()))
}

fn path(path: &Path) -> Result<String, String> {
    let text = path.to_str().map(str::to_owned);
    text.ok_or_else(|| format!("--mpirun: {} is not UTF-8", path.display()))
}
