//! `unisono demo`: what the library does, in a few seconds and without a compiler.

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use unisono::config::Config;
use unisono::kernel::Isa;
use unisono::plan::Algorithm;
use unisono::{Communicator, ReduceOp, Result};

use super::launch::{Launch, Output, launch};
use super::table::{Table, bytes};
use super::{fail, output};

/// Show in a few seconds what the library does
///
/// Sums buffers over threads and over processes, on every kind of link, and shows that the bits of
/// a deterministic result depend neither on the algorithm nor on the number of ranks. `make demo`
/// in the source tree goes further: it trains a small language model through the C interface.
#[derive(clap::Args, Debug)]
#[command(verbatim_doc_comment)]
pub(crate) struct Options {
    /// What a process started by the demo does
    #[arg(long, hide = true, value_name = "LINK")]
    part: Option<String>,
}

const THREADS: i64 = 4;
const PROCESSES: u32 = 2;
const SIZES: [usize; 4] = [8, 64 << 10, 1 << 20, 16 << 20];
/// A measurement's time, roughly.
const SLICE: Duration = Duration::from_millis(120);

/// Runs the subcommand.
pub(crate) fn main(options: &Options) -> ExitCode {
    let done = match &options.part {
        Some(link) => as_rank(link),
        None => show(),
    };
    match done {
        Ok(code) => code,
        Err(error) => fail(format_args!("demo: {error}")),
    }
}

fn config(algorithm: Option<Algorithm>, deterministic: bool) -> Result<Config> {
    let timeout = Some(Duration::from_secs(30));
    Ok(Config { algorithm, deterministic, timeout, ..Config::from_env()? })
}

/// Runs `body` as each rank of `world` threads; what rank 0 returns.
fn threads<T: Send>(
    world: i64,
    config: &Config,
    body: impl Fn(&Communicator) -> Result<T> + Sync,
) -> Result<T> {
    let comms = Communicator::init_all(world, config)?;
    let results: Vec<Result<T>> = std::thread::scope(|scope| {
        let body = &body;
        let started: Vec<_> = comms.iter().map(|comm| scope.spawn(move || body(comm))).collect();
        started.into_iter().map(|t| t.join().expect("a rank's thread")).collect()
    });
    let mut results = results.into_iter();
    let first = results.next().expect("a world has a rank")?;
    results.try_for_each(|result| result.map(drop))?;
    Ok(first)
}

/// A line's start and figures, the same for threads and processes.
fn line(name: &str, times: &[Duration], world: u32) {
    let mut text = format!("  {name:<26}");
    for (size, time) in SIZES.iter().zip(times) {
        let micros = time.as_secs_f64() * 1e6;
        if *size <= 1024 {
            text += &format!("{:>14}", format!("{micros:.1} us"));
        } else {
            let ranks = f64::from(world);
            let bandwidth = *size as f64 / micros / 1e3 * 2.0 * (ranks - 1.0) / ranks;
            text += &format!("{:>14}", format!("{bandwidth:.2} GB/s"));
        }
    }
    output::line(text);
}

fn show() -> Result<ExitCode> {
    let program = std::env::current_exe().map_err(|e| system(&e, "the path of this program"))?;
    output::line(format_args!("unisono {}, {} kernels\n", env!("CARGO_PKG_VERSION"), Isa::best()));
    output::line("all_reduce of f32, sum: time, then bus bandwidth (what each link would carry)");
    let sizes: String = SIZES.iter().map(|&s| format!("{:>14}", bytes(s as u64))).collect();
    output::line(format_args!("  {:<26}{sizes}", ""));
    let times = threads(THREADS, &config(None, false)?, measure)?;
    line(&format!("{THREADS} threads, mem"), &times, 4);
    for link in ["shm", "tcp"] {
        if output::is_lost() {
            return Ok(ExitCode::SUCCESS);
        }
        let job = Launch {
            args: ["demo", "--part", link].map(OsString::from).to_vec(),
            output: Output::Plain,
            env: vec![("UNISONO_LINKS".into(), link.into())],
            timeout: Some(Duration::from_secs(60)),
            ..Launch::new(PROCESSES, &program)
        };
        let status = launch(&job).map_err(|e| system(&e, "starting processes"))?;
        if status != 0 {
            return Ok(ExitCode::from(u8::try_from(status).unwrap_or(1)));
        }
    }
    let equal = bits()?;
    output::line(
        "\nNext: unisono perf all_reduce -n 2 measures, unisono check verifies this machine, and\n\
         make demo in the source tree trains a small language model over several ranks.",
    );
    Ok(if equal { ExitCode::SUCCESS } else { fail("demo: bits differ that must not") })
}

#[track_caller]
fn system(error: &std::io::Error, what: &str) -> unisono::Error {
    unisono::Error::new(unisono::Code::System, format!("{what}: {error}"))
}

/// One of the processes.
fn as_rank(link: &str) -> Result<ExitCode> {
    let comm = Communicator::init_env(&config(None, false)?)?;
    let times = measure(&comm)?;
    if comm.rank().0 == 0 {
        line(&format!("{} processes, {link}", comm.world_size()), &times, comm.world_size());
    }
    comm.destroy()?;
    Ok(ExitCode::SUCCESS)
}

/// The mean time of a call, for each size.
fn measure(comm: &Communicator) -> Result<Vec<Duration>> {
    SIZES.iter().map(|&size| measure_one(comm, size / 4)).collect()
}

fn measure_one(comm: &Communicator, count: usize) -> Result<Duration> {
    let send = vec![1f32; count];
    let mut recv = vec![0f32; count];
    let mut rounds = |rounds: u32| -> Result<Duration> {
        comm.barrier()?;
        let start = Instant::now();
        for _ in 0..rounds {
            comm.all_reduce(&send, &mut recv, ReduceOp::Sum)?;
        }
        // The slowest rank's time counts, and all must agree on the rounds to come.
        let mut seconds = [start.elapsed().as_secs_f64() / f64::from(rounds)];
        comm.all_reduce_in_place(&mut seconds, ReduceOp::Max)?;
        Ok(Duration::from_secs_f64(seconds[0]))
    };
    rounds(1)?;
    let once = rounds(3)?;
    let fit = SLICE.as_nanos() / once.as_nanos().max(1);
    let time = rounds(u32::try_from(fit.clamp(1, 5000)).unwrap_or(1))?;
    let world = comm.world_size() as f32;
    if recv.iter().any(|&sum| sum.to_bits() != world.to_bits()) {
        let text = format!("a sum of {count} ones over {world} ranks is wrong");
        return Err(unisono::Error::new(unisono::Code::Internal, text));
    }
    Ok(time)
}

/// The parts of the work whose sum depends on the order.
const PARTS: usize = 4;
const ELEMENTS: usize = 100_003;

/// Part `number`: numbers of very different sizes and both signs.
fn part(number: usize) -> Vec<f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ number as u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let value = |_| {
        let bits = next();
        // 40 powers of two around 1, and 16 random bits of fraction.
        let exponent = 107 + (bits >> 32) % 40;
        let sign = bits >> 63;
        let fraction = bits & 0xffff;
        f32::from_bits(u32::try_from(sign << 31 | exponent << 23 | fraction << 7).unwrap_or(0))
    };
    (0..ELEMENTS).map(value).collect()
}

fn add(mut one: Vec<f32>, two: &[f32]) -> Vec<f32> {
    one.iter_mut().zip(two).for_each(|(a, b)| *a += b);
    one
}

/// The sum of all parts over `world` ranks, each of which adds its own first.
fn total(world: i64, config: &Config) -> Result<u64> {
    threads(world, config, |comm| {
        let own = PARTS / comm.world_size() as usize;
        let first = comm.rank().index() * own;
        let mut sums: Vec<Vec<f32>> = (first..first + own).map(part).collect();
        while sums.len() > 1 {
            sums = sums.chunks(2).map(|pair| add(pair[0].clone(), &pair[1])).collect();
        }
        let mut data = sums.swap_remove(0);
        comm.all_reduce_in_place(&mut data, ReduceOp::Sum)?;
        Ok(checksum(&data))
    })
}

/// FNV-1a over the bits.
fn checksum(data: &[f32]) -> u64 {
    data.iter().fold(0xcbf2_9ce4_8422_2325, |hash, x| {
        (hash ^ u64::from(x.to_bits())).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Shows checksums over algorithms and worlds; true when the deterministic ones are equal.
fn bits() -> Result<bool> {
    output::line(
        "\nThe same order-sensitive work spread over 1, 2 and 4 ranks: checksum of the result",
    );
    let mut table = Table::new(2, &[]);
    table.row(["", "1 rank", "2 ranks", "4 ranks"]);
    let mut sums = Vec::new();
    let mut row = |name: &str, config: &Config| -> Result<Vec<u64>> {
        let sums = [1, 2, 4].map(|world| total(world, config));
        let sums = sums.into_iter().collect::<Result<Vec<u64>>>()?;
        let cells = sums.iter().map(|sum| format!("{sum:016x}"));
        table.row([name.to_owned()].into_iter().chain(cells));
        Ok(sums)
    };
    use Algorithm as A;
    for algorithm in [A::Direct, A::Pairwise, A::Doubling, A::Halving, A::Binomial] {
        let name = format!("deterministic, {}", algorithm.name());
        sums.extend(row(&name, &config(Some(algorithm), true)?)?);
    }
    row("fast, ring", &config(Some(A::Ring), false)?)?;
    output::text(&table.text());
    let equal = sums.iter().all(|sum| *sum == sums[0]);
    if equal {
        output::line(
            "  Deterministic results are equal to the last bit; the ring adds in its own order.",
        );
    }
    Ok(equal)
}
