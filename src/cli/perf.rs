//! `unisono perf`: times collectives and verifies their results.
//!
//! A round is many calls back to back, its figure the slowest rank's mean time of one call; median
//! and minimum are over the rounds after those that warm up. Sizes, bus-bandwidth factors, columns
//! and verification follow nccl-tests, but for sizes that give a rank less than an element: there
//! nccl-tests times calls of nothing, and this moves one element a rank. In JSON `bytes` is the
//! size asked for, by which rows are matched, and `moved` what the figures are of. `--sweep-algos`
//! is [`sweep`]'s, `--kernels` is [`kernels`]'s, `--vs` is [`vs`]'s.

mod able;
mod kernels;
pub(super) mod measure;
mod parse;
mod report;
mod sweep;
mod vs;

use std::process::ExitCode;
use std::time::Duration;

use unisono::config::{Config, Device, Family};
use unisono::plan::Algorithm;
use unisono::{Collective, Communicator, Dtype, ReduceOp};

use super::data::shape::Kind;
use super::output;
use super::ranks::{self, Link};
use measure::Totals;
use parse::{parse_bandwidth, parse_ratio, parse_size, parse_step, pick};

/// Time collectives and verify their results
#[derive(clap::Args, Clone, Debug)]
#[command(
    after_help = "Exit status: 0 when all is well, 1 for wrong data, a failure or too little \
    bandwidth, 2 for a usage error, 141 when the reader of the output has gone away."
)]
pub(crate) struct Options {
    /// all_reduce, all_gather, reduce_scatter, broadcast, reduce, gather, scatter, all_to_all,
    /// their `_v` forms, sendrecv, pingpong (half a round trip), barrier, or all
    #[arg(value_parser = parse_kinds, required_unless_present = "kernels")]
    op: Option<Kinds>,
    /// Measure the CUDA kernels alone, beside copies on the GPU in the same run; a size is that of
    /// each source, or of a conversion's f32 side
    #[arg(long, requires = "device", conflicts_with_all = ["op", "ranks", "reduction", "dtype"])]
    #[arg(conflicts_with_all = ["root", "check", "link", "backend", "wait", "registered", "algo"])]
    #[arg(conflicts_with_all = ["sweep_algos", "deterministic", "in_place", "out_of_place"])]
    #[arg(conflicts_with_all = ["min_bw", "timeout", "bind"])]
    kernels: bool,
    /// With --kernels: fail when one of them has less than this share of the copy's bandwidth
    #[arg(long, requires = "kernels", value_parser = parse_ratio)]
    min_ratio: Option<f64>,
    /// Ranks to start (when no launcher has started this one)
    #[arg(short = 'n', long, default_value_t = 2)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1024))]
    ranks: u32,
    /// Smallest size, in bytes; K, M and G are powers of 1024. Each size is cut to whole elements,
    /// at least one a rank; JSON has the size asked for as `bytes`, the real one as `moved`. With
    /// --kernels 64M, if nothing is said
    #[arg(short = 'b', long, default_value = "8", value_parser = parse_size)]
    #[arg(default_value_if("kernels", "true", "64M"))]
    begin: u64,
    /// Largest size; with --kernels 1G, or what the GPU has memory for
    #[arg(short = 'e', long, default_value = "64M", value_parser = parse_size)]
    #[arg(default_value_if("kernels", "true", "1G"))]
    end: u64,
    /// Each size is this many times the one before [default: 8; with --kernels 4]
    #[arg(short = 'f', long, value_parser = clap::value_parser!(u64).range(2..), conflicts_with = "step")]
    factor: Option<u64>,
    /// Each size is this many bytes more than the one before
    #[arg(short = 'i', long, value_parser = parse_step)]
    step: Option<u64>,
    /// Calls in a round; 0: by size (500 up to 64 KiB, 100 to 1 MiB, 10 to 16 MiB, 3 above)
    #[arg(long, default_value_t = 0)]
    iters: u32,
    /// Rounds before those that count
    #[arg(short = 'w', long, default_value_t = 1)]
    warmup: u32,
    /// Rounds that count
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rounds: u32,
    /// Reduction: sum, prod, min, max, avg, pre_mul_sum, band, bor, bxor, land, lor, or all
    #[arg(short = 'o', long, default_value = "sum")]
    reduction: String,
    /// Element type, or all
    #[arg(short = 'd', long, default_value = "f32")]
    dtype: String,
    /// Root rank, or all
    #[arg(short = 'r', long, default_value = "0")]
    root: String,
    /// Calls whose every element is checked, per size; 0: none
    #[arg(short = 'c', long, default_value_t = 1)]
    check: u32,
    /// How the ranks that are started reach each other
    #[arg(long, value_enum, default_value = "shm")]
    link: Link,
    /// What carries out calls: auto, native, nccl, or mpi, for which every rank is started by
    /// `mpirun`
    #[arg(long, value_parser = super::check::parse_backend)]
    backend: Option<Family>,
    /// Measure on memory of this GPU, by its number; local_rank: one GPU a rank
    #[arg(long, value_parser = super::check::parse_device)]
    device: Option<Device>,
    /// On a GPU: calls that wait for their end, timed by the clock, not calls in a stream
    #[arg(long, requires = "device")]
    wait: bool,
    /// Use memory of the communicator, which local ranks can map, not plain memory
    #[arg(long)]
    registered: bool,
    /// Use this algorithm, and refuse what it does not do; `all` leaves out what it does not do
    #[arg(long, value_parser = parse_algorithm)]
    algo: Option<Algorithm>,
    /// Time every algorithm that can do it, in turn in one run, beside the one chosen
    #[arg(long, conflicts_with_all = ["algo", "min_bw"])]
    sweep_algos: bool,
    /// Result bits depend on inputs and rank numbers alone; checked with data that shows the order
    #[arg(long)]
    deterministic: bool,
    /// Only with input and output in one buffer
    #[arg(long, conflicts_with = "out_of_place")]
    in_place: bool,
    /// Only with input and output apart (what --json prints when nothing is said)
    #[arg(long)]
    out_of_place: bool,
    /// In and out of place (what is printed without --json when nothing is said)
    #[arg(long, conflicts_with_all = ["in_place", "out_of_place"])]
    both: bool,
    #[command(flatten)]
    versus: vs::Versus,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    /// Fail when the average bus bandwidth is below this many GB/s
    #[arg(long, value_parser = parse_bandwidth)]
    min_bw: Option<f64>,
    /// Deadline of a call, in seconds
    #[arg(short = 't', long, default_value_t = 600)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    timeout: u64,
    /// Keep each rank on one core: always, never, or when every rank can have its own
    #[arg(long, value_enum, default_value = "auto")]
    bind: Bind,
    /// Seed of the data
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// When ranks are kept on cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Bind {
    /// When every rank on this machine can have a core of its own.
    Auto,
    /// Rank r on core r, counted around.
    Always,
    /// The system decides.
    Never,
}

impl Bind {
    const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Always => "always",
            Self::Never => "never",
        }
    }
}

/// What to time.
#[derive(Clone, Debug)]
struct Kinds(Vec<Kind>);

fn parse_kinds(text: &str) -> Result<Kinds, String> {
    if text == "all" {
        return Ok(Kinds(Kind::all().collect()));
    }
    Kind::from_name(text).map(|kind| Kinds(vec![kind])).ok_or_else(|| {
        let names: Vec<_> = Kind::all().map(Kind::name).collect();
        format!("there are {} and all", names.join(", "))
    })
}

fn parse_algorithm(text: &str) -> Result<Algorithm, String> {
    Algorithm::from_name(text).ok_or_else(|| {
        let names: Vec<_> = Algorithm::ALL.iter().map(|a| a.name()).collect();
        format!("there are {}", names.join(", "))
    })
}

impl Options {
    fn dtypes(&self) -> Result<Vec<Dtype>, String> {
        let name = |dtype: Dtype| dtype.name();
        // nccl-tests' and C's words for some of them.
        let text = match self.dtype.as_str() {
            "float" => "f32",
            "double" => "f64",
            "half" => "f16",
            "bfloat16" => "bf16",
            "f8e5m2" | "fp8_e5m2" => "f8e5m2",
            "fp8_e4m3" => "f8e4m3",
            text => text,
        };
        pick(text, "element type", Dtype::ALL, name)
    }

    fn reductions(&self) -> Result<Vec<ReduceOp>, String> {
        let name = |op: ReduceOp| op.name();
        let text = if self.reduction == "mulsum" { "pre_mul_sum" } else { &self.reduction };
        pick(text, "reduction", ReduceOp::ALL, name)
    }

    fn roots(&self, world: u32) -> Result<Vec<u32>, String> {
        if self.root == "all" {
            return Ok((0..world).collect());
        }
        let root = self.root.parse().ok().filter(|&root| root < world);
        root.map(|root| vec![root])
            .ok_or_else(|| format!("root \"{}\" is no rank of a world of {world}", self.root))
    }

    fn sizes(&self) -> Vec<u64> {
        let mut sizes = Vec::new();
        let mut next = Some(self.begin);
        while let Some(size) = next.filter(|&size| size <= self.end) {
            sizes.push(size);
            next = match self.step {
                Some(step) => size.checked_add(step),
                // Nothing times anything stays nothing: go on with one.
                None => size.checked_mul(self.times()).map(|s| s.max(1)),
            };
        }
        sizes
    }

    fn times(&self) -> u64 {
        self.factor.unwrap_or(if self.kernels { 4 } else { 8 })
    }

    /// What to time.
    fn kinds(&self) -> &[Kind] {
        self.op.as_ref().map_or(&[], |kinds| &kinds.0)
    }

    /// Whether each rank measures on a GPU of its own.
    fn has_gpu_each(&self) -> bool {
        self.device == Some(Device::LocalRank)
    }

    fn placements(&self) -> &'static [bool] {
        let apart = self.out_of_place || (self.json || self.sweep_algos) && !self.both;
        match (self.in_place, apart) {
            (true, _) => &[true],
            (false, true) => &[false],
            (false, false) => &[false, true],
        }
    }

    fn config(&self, link: Option<Link>) -> unisono::Result<Config> {
        let mut config = Config::from_env()?;
        config.timeout = Some(Duration::from_secs(self.timeout));
        config.algorithm = self.algo.or(config.algorithm);
        config.deterministic |= self.deterministic;
        config.backend = self.backend.unwrap_or(config.backend);
        config.device = self.device.unwrap_or(config.device);
        // Whoever waits drives: there is nothing to overlap with. But calls in a stream return.
        config.progress_thread = self.device.is_some() && !self.wait;
        if let Some(link) = link {
            link.apply(&mut config);
        }
        Ok(config)
    }

    /// Says what is wrong with the options before any rank starts.
    fn validate(&self, world: u32) -> Result<(), String> {
        let (dtypes, ops) = (self.dtypes()?, self.reductions()?);
        self.roots(world)?;
        if self.begin > self.end {
            return Err(format!(
                "the smallest size {} is above the largest {}",
                self.begin, self.end
            ));
        }
        let reducing = self.kinds().iter().any(|kind| kind.reduces());
        let makes_sense = |op: &ReduceOp| dtypes.iter().any(|&dtype| op.supports(dtype));
        if reducing && !ops.iter().any(makes_sense) {
            let text = "has no meaning; `unisono info --types` lists what has";
            return Err(format!("{} on {} {text}", self.reduction, self.dtype));
        }
        if self.sweep_algos {
            let none = |&kind: &Kind| sweep::candidates(self, kind, world).is_empty();
            return match self.kinds().iter().all(none) {
                true => Err("there is no choice of algorithms to sweep".to_owned()),
                false => Ok(()),
            };
        }
        able::kinds(self, world).map(drop)
    }
}

/// Runs the subcommand.
pub(crate) fn main(options: &Options) -> ExitCode {
    if let (true, Some(device)) = (options.kernels, options.device.map(super::check::number_of)) {
        return kernels::main(options, device);
    }
    if let Some(against) = &options.versus.vs {
        return vs::main(options, against);
    }
    if ranks::is_rank() {
        return as_rank(options);
    }
    if let Err(text) = options.validate(options.ranks) {
        return super::usage(text);
    }
    let world = options.ranks as usize;
    if options.link == Link::Mem {
        let config = match options.config(None) {
            Ok(config) => config,
            Err(error) => return super::usage(error),
        };
        return match ranks::threads(world, &config, |comm| rank(&comm, options)) {
            Ok(codes) => codes.into_iter().find(|&code| code != 0).unwrap_or(0).into(),
            Err(error) => super::fail(error),
        };
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match ranks::Ranks::start(world, &arguments, false) {
        Ok(mut ranks) => {
            let statuses = ranks.wait(None);
            let code = |status: &std::process::ExitStatus| status.code().unwrap_or(1);
            let failed = statuses.iter().flatten().map(code).find(|&code| code != 0);
            u8::try_from(failed.unwrap_or(0)).unwrap_or(1).into()
        }
        Err(error) => super::fail(error),
    }
}

/// This process is a rank that somebody has started.
fn as_rank(options: &Options) -> ExitCode {
    ranks::follow_parent();
    // Under somebody else's launcher links are chosen as always.
    let link = ranks::is_child().then_some(options.link);
    let comm = options.config(link).and_then(|config| Communicator::init_env(&config));
    match comm {
        Ok(comm) => rank(&comm, options).into(),
        Err(error) => super::fail(error),
    }
}

/// What one rank does; its exit status.
fn rank(comm: &Communicator, options: &Options) -> u8 {
    let first = comm.rank().0 == 0;
    if let Err(text) = options.validate(comm.world_size()) {
        if first {
            output::complain(text);
        }
        return 2;
    }
    bind(comm, options);
    let measured = if options.sweep_algos { sweep::all } else { measure::all };
    match measured(comm, options) {
        Ok(totals) => verdict(comm, options, &totals),
        Err(error) => {
            output::complain(format_args!("rank {}: {error}", comm.rank()));
            1
        }
    }
}

fn bind(comm: &Communicator, options: &Options) {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let wanted = match options.bind {
        Bind::Auto => comm.world_size() as usize <= cores,
        Bind::Always => true,
        Bind::Never => false,
    };
    if wanted && let Err(error) = unisono::comm::bind_to_core(comm.rank().index()) {
        output::complain(format_args!("rank {} stays unbound: {error}", comm.rank()));
    }
}

fn verdict(comm: &Communicator, options: &Options, totals: &Totals) -> u8 {
    let average = totals.average();
    let slow = options.min_bw.is_some_and(|least| average < least);
    if comm.rank().0 == 0 && !options.json && !options.sweep_algos {
        report::footer(totals, options.check > 0);
    }
    if slow && comm.rank().0 == 0 {
        let least = options.min_bw.unwrap_or_default();
        output::complain(format_args!(
            "average bus bandwidth {average:.3} GB/s is below {least} GB/s"
        ));
    }
    u8::from(slow || totals.wrong > 0)
}

/// The factor from algorithm to bus bandwidth.
fn bus_factor(kind: Kind, world: u32) -> f64 {
    use Collective as C;
    let world = f64::from(world);
    match kind {
        Kind::Collective(C::AllReduce) => 2.0 * (world - 1.0) / world,
        Kind::SendRecv | Kind::PingPong | Kind::Collective(C::Broadcast | C::Reduce) => 1.0,
        Kind::Collective(_) => (world - 1.0) / world,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bus_factors_are_those_of_nccl_tests() {
        // all_reduce.cu, all_gather.cu, reduce_scatter.cu, alltoall.cu, gather.cu, scatter.cu,
        // broadcast.cu, reduce.cu, sendrecv.cu: the `factor` of each *GetBw.
        let share = |n: u32| f64::from(n - 1) / f64::from(n);
        for world in [1, 2, 3, 4, 8, 64] {
            for (name, factor) in [
                ("all_reduce", 2.0 * share(world)),
                ("all_gather", share(world)),
                ("reduce_scatter", share(world)),
                ("alltoall", share(world)),
                ("gather", share(world)),
                ("scatter", share(world)),
                ("broadcast", 1.0),
                ("reduce", 1.0),
                ("sendrecv", 1.0),
            ] {
                let kind = Kind::from_name(name).expect("a name of nccl-tests");
                let ours = bus_factor(kind, world);
                assert!((ours - factor).abs() < 1e-12, "{name} of {world}: {ours}, not {factor}");
            }
        }
    }
}
