//! A rank of the cases that are no sweep: `rank start | memory | idle SECONDS | overlap BYTES | mpi
//! LO HI STEP`. Prints JSON objects.

use std::hint::black_box;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::json;
use unisono::config::Config;
use unisono::{Communicator, Rank, ReduceOp};

use super::over;
use super::runner::median;

/// # Errors
/// What is not understood; whatever ended a call.
pub(super) fn main(arguments: &[String]) -> Result<(), String> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let number = |text: &str| text.parse::<u32>().map_err(|error| format!("{text}: {error}"));
    match words[..] {
        ["start"] => start(),
        ["memory"] => memory(),
        ["idle", seconds] => idle(&join()?, Duration::from_secs(number(seconds)?.into())),
        ["mpi", lo, hi, step] => {
            let size = |text| number(text).map(u64::from);
            over::main([size(lo)?, size(hi)?, size(step)?])
        }
        ["overlap", bytes] => overlap(&join()?, number(bytes)? as usize / size_of::<f32>()),
        _ => Err("rank start | memory | idle SECONDS | overlap BYTES | mpi LO HI STEP".to_owned()),
    }
}

fn join() -> Result<Communicator, String> {
    let config = Config::from_env().map_err(said)?;
    Communicator::init_env(&config).map_err(said)
}

/// An error as text.
#[expect(clippy::needless_pass_by_value, reason = "for `map_err`")]
fn said(error: unisono::Error) -> String {
    error.to_string()
}

/// When the first collective was over, by the clock that the command's start is taken from.
fn start() -> Result<(), String> {
    let comm = join()?;
    let mut values = [1.0f32, 2.0];
    comm.all_reduce_in_place(&mut values, ReduceOp::Sum).map_err(said)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(|error| error.to_string())?;
    let done_ns = u64::try_from(now.as_nanos()).map_err(|error| error.to_string())?;
    println!("{}", json!({ "rank": comm.rank().0, "done_ns": done_ns }));
    comm.destroy().map_err(said)
}

/// Resident memory in KiB: all that is mapped and backed, and the same with what n processes map
/// counted as an n-th.
fn resident() -> Result<[u64; 2], String> {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup");
    let text = text.map_err(|error| format!("/proc/self/smaps_rollup: {error}"))?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let value = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        value.ok_or_else(|| format!("no {name} in smaps_rollup"))
    };
    Ok([field("Rss:")?, field("Pss:")?])
}

/// Elements of a block: 128 KiB, so that every path of large calls is taken.
const BLOCK: usize = 32 << 10;

/// What each collective, run once, leaves behind.
fn memory() -> Result<(), String> {
    let world = std::env::var("UNISONO_WORLD").ok().and_then(|text| text.parse().ok());
    let world: usize = world.ok_or("started by no `unisono run`")?;
    // Written now, so that they are the program's own.
    let (mut send, mut recv) = (vec![1.0f32; BLOCK * world], vec![2.0f32; BLOCK * world]);
    let before = resident()?;
    let comm = join()?;
    every_collective(&comm, &mut send, &mut recv).map_err(said)?;
    // All are still there, and none has gone, while each looks.
    comm.barrier().map_err(said)?;
    let after = resident()?;
    comm.barrier().map_err(said)?;
    let [rss, pss] = [0, 1].map(|i| after[i].saturating_sub(before[i]));
    println!("{}", json!({ "rank": comm.rank().0, "rss_kib": rss, "pss_kib": pss }));
    comm.destroy().map_err(said)
}

/// All of them once, blocks of `send.len()` over the world.
fn every_collective(
    comm: &Communicator,
    send: &mut [f32],
    recv: &mut [f32],
) -> unisono::Result<()> {
    let (world, block) = (comm.world_size() as usize, send.len() / comm.world_size() as usize);
    let counts = vec![block as u64; world];
    let (root, sum) = (Rank(0), ReduceOp::Sum);
    comm.all_reduce(send, recv, sum)?;
    comm.reduce(send, recv, sum, root)?;
    comm.broadcast(recv, root)?;
    comm.all_gather(&send[..block], recv)?;
    comm.reduce_scatter(send, &mut recv[..block], sum)?;
    comm.gather(&send[..block], recv, root)?;
    comm.scatter(send, &mut recv[..block], root)?;
    comm.all_to_all(send, recv)?;
    comm.all_gather_v(&send[..block], recv, &counts)?;
    comm.reduce_scatter_v(send, &mut recv[..block], &counts, sum)?;
    comm.gather_v(&send[..block], recv, &counts, root)?;
    comm.scatter_v(send, &counts, &mut recv[..block], root)?;
    comm.all_to_all_v(send, &counts, recv, &counts)?;
    comm.barrier()?;
    let me = comm.rank().index();
    let (to, from) = (Rank::at((me + 1) % world), Rank::at((me + world - 1) % world));
    comm.send_recv(&send[..block], to, &mut recv[..block], from)
}

/// Processor time of this process.
fn processor_time() -> Result<Duration, String> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes the structure it is given.
    let status = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    let seconds = u64::try_from(time.tv_sec).ok().filter(|_| status == 0);
    let nanos = u32::try_from(time.tv_nsec).ok();
    seconds.zip(nanos).map(|(s, n)| Duration::new(s, n)).ok_or_else(|| "no clock".to_owned())
}

/// What waiting costs: rank 0 waits for all others, which come late.
fn idle(comm: &Communicator, late: Duration) -> Result<(), String> {
    comm.barrier().map_err(said)?;
    if comm.rank() != Rank(0) {
        std::thread::sleep(late);
        return comm.barrier().map_err(said);
    }
    let (begun, before) = (Instant::now(), processor_time()?);
    comm.barrier().map_err(said)?;
    let (waited, spent) = (begun.elapsed(), processor_time()?.saturating_sub(before));
    let share = spent.as_secs_f64() / waited.as_secs_f64();
    println!("{}", json!({ "waited_s": waited.as_secs_f64(), "processor": share }));
    Ok(())
}

/// Arithmetic in registers: nothing that a transfer could be slowed down by but the processor.
fn compute(steps: u64) {
    let mut values = [1.0f64, 1.1, 1.2, 1.3];
    for _ in 0..steps {
        for value in &mut values {
            *value = black_box(value.mul_add(0.999_999, 1e-7));
        }
    }
    black_box(values);
}

/// Seconds of `work`, those of the slowest rank; the median of a few times.
fn slowest(
    comm: &Communicator,
    mut work: impl FnMut() -> unisono::Result<()>,
) -> Result<f64, String> {
    let mut times = Vec::new();
    for _ in 0..5 {
        comm.barrier().map_err(said)?;
        let begun = Instant::now();
        work().map_err(said)?;
        let mut seconds = [begun.elapsed().as_secs_f64()];
        comm.all_reduce_in_place(&mut seconds, ReduceOp::Max).map_err(said)?;
        times.push(seconds[0]);
    }
    median(&times).ok_or_else(|| "no time".to_owned())
}

/// An all_reduce alone, a computation of twice its time alone, and both at once.
fn overlap(comm: &Communicator, count: usize) -> Result<(), String> {
    let send = vec![1.0f32; count];
    let mut recv = vec![0.0f32; count];
    comm.all_reduce(&send, &mut recv, ReduceOp::Sum).map_err(said)?;
    let call = slowest(comm, || comm.all_reduce(&send, &mut recv, ReduceOp::Sum))?;
    let probe: u64 = 1 << 16;
    let unit = slowest(comm, || {
        compute(probe);
        Ok(())
    })?;
    // All ranks have the same times, so they compute the same.
    let times = Duration::from_secs_f64(2.0 * call).as_nanos()
        / Duration::from_secs_f64(unit).as_nanos().max(1);
    let steps = probe * u64::try_from(times).unwrap_or(1).max(1);
    let alone = slowest(comm, || {
        compute(steps);
        Ok(())
    })?;
    let mut both = Vec::new();
    for _ in 0..3 {
        both.push(slowest(comm, || {
            comm.scope(|scope| {
                scope.all_reduce(&send, &mut recv, ReduceOp::Sum)?;
                compute(steps);
                Ok(())
            })
        })?);
    }
    let both = median(&both).unwrap_or(f64::NAN);
    if comm.rank() == Rank(0) {
        let figures =
            json!({ "call_ms": call * 1e3, "alone_ms": alone * 1e3, "both_ms": both * 1e3 });
        println!("{figures}");
    }
    Ok(())
}

/// The part of a call's time that a computation hid: 1 when both took no longer than the longer.
pub(super) fn hidden(call: f64, alone: f64, both: f64) -> f64 {
    ((call + alone - both) / call.min(alone)).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_is_between_nothing_and_all() {
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-9, "{a} {b}");
        near(hidden(10.0, 20.0, 20.0), 1.0);
        near(hidden(10.0, 20.0, 30.0), 0.0);
        near(hidden(10.0, 20.0, 25.0), 0.5);
        near(hidden(10.0, 20.0, 99.0), 0.0);
    }

    #[test]
    fn every_rank_s_work_runs_on_threads() {
        let ranks = Communicator::init_all(2, &Config::default()).expect("formed");
        std::thread::scope(|scope| {
            for comm in ranks {
                scope.spawn(move || {
                    let (mut send, mut recv) = (vec![1.0f32; 64], vec![0.0f32; 64]);
                    every_collective(&comm, &mut send, &mut recv).expect("all");
                    idle(&comm, Duration::from_millis(20)).expect("idle");
                    overlap(&comm, 1024).expect("overlap");
                });
            }
        });
        let [rss, pss] = resident().expect("smaps_rollup");
        assert!(rss >= pss && pss > 0, "{rss} {pss}");
    }
}
