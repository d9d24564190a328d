//! Cases that must end in an error: which one, what it names, and what stays usable.

use std::time::Duration;

use unisono::comm::Args;
use unisono::config::Config;
use unisono::{Code, Collective, Communicator, Dtype, Error, Rank, ReduceOp, Result};

use super::event::Verdict;
use super::rank::Bench;
use crate::cli::ranks::Link;

/// A call that can never end must be over by then.
const SHORT: Duration = Duration::from_secs(3);

fn failed(what: impl Into<String>) -> Result<Verdict> {
    Ok(Verdict::Failed(what.into()))
}

/// A communicator to break.
fn breakable(bench: &Bench<'_>) -> Result<Communicator> {
    bench.home.fresh(&Config { timeout: Some(SHORT), ..Config::default() })
}

/// Whether `outcome` is an error of `code` whose text has all of `words`.
pub(super) fn expect(outcome: Result<()>, code: Code, words: &[&str]) -> Verdict {
    match outcome {
        Ok(()) => Verdict::Failed(format!("the call succeeded, not {code}")),
        Err(error) if error.code != code => Verdict::Failed(format!("not {code} but {error}")),
        Err(error) => match words.iter().find(|word| !error.to_string().contains(**word)) {
            Some(word) => Verdict::Failed(format!("no \"{word}\" in: {error}")),
            None => Verdict::Passed,
        },
    }
}

fn args<'a>(collective: Collective, data: &'a mut [f64], count: usize) -> Args<'a> {
    let mut args = Args::new(collective, Dtype::F32);
    args.count = count as u64;
    let half = data.len() / 2;
    args.send = data.as_ptr().cast();
    args.recv = data[half..].as_mut_ptr().cast();
    args
}

pub(super) fn run(comm: &Communicator, args: &Args<'_>) -> Result<()> {
    let call = comm.prepare(args)?;
    // SAFETY: every caller's buffers are large enough for the call and live until it returns.
    unsafe { comm.run(call) }
}

pub(super) fn wrong_arguments(bench: &mut Bench<'_>) -> Result<Verdict> {
    use Collective as C;
    let comm = bench.comm;
    let world = i64::from(comm.world_size());
    let mut data = vec![0f64; 64 * bench.world() + 64];
    let mut seen: Vec<(&str, Result<()>, Code)> = Vec::new();
    let mut with = |what, code, change: &dyn Fn(&mut Args<'_>), kind| {
        let mut args = args(kind, &mut data, 8);
        change(&mut args);
        seen.push((what, run(comm, &args), code));
    };
    with("null input", Code::NullPointer, &|a| a.send = std::ptr::null(), C::AllReduce);
    with("null output", Code::NullPointer, &|a| a.recv = std::ptr::null_mut(), C::AllGather);
    with("misaligned input", Code::Misaligned, &|a| a.send = a.send.wrapping_add(1), C::AllReduce);
    with("misaligned output", Code::Misaligned, &|a| a.recv = a.recv.wrapping_add(2), C::AllReduce);
    let overlap = |a: &mut Args<'_>| a.recv = a.send.cast_mut().wrapping_add(4);
    with("overlapping buffers", Code::Overlap, &overlap, C::AllReduce);
    with("a count that overflows", Code::CountOverflow, &|a| a.count = u64::MAX / 2, C::AllReduce);
    with("a total that overflows", Code::CountOverflow, &|a| a.count = u64::MAX / 4, C::AllGather);
    with("a root too high", Code::RankOutOfRange, &|a| a.root = world, C::Broadcast);
    with("a negative root", Code::RankOutOfRange, &|a| a.root = -1, C::Reduce);
    with("a peer too high", Code::RankOutOfRange, &|a| a.root = world + 7, C::Send);
    with("too few counts", Code::InvalidArgument, &|a| a.recv_counts = &[], C::AllGatherV);
    for (what, outcome, code) in seen {
        if let Verdict::Failed(text) = expect(outcome, code, &[]) {
            return failed(format!("{what}: {text}"));
        }
    }
    comm.barrier()?;
    Ok(Verdict::Passed)
}

pub(super) fn no_meaning(bench: &mut Bench<'_>) -> Result<Verdict> {
    let mut data = vec![0f64; 64];
    for &dtype in Dtype::ALL {
        for &op in ReduceOp::ALL.iter().filter(|op| !op.supports(dtype)) {
            let mut args = args(Collective::AllReduce, &mut data, 1);
            (args.dtype, args.operation) = (dtype, op.into());
            let words = [op.name(), dtype.name()];
            let verdict = expect(run(bench.comm, &args), Code::Unsupported, &words);
            if verdict != Verdict::Passed {
                return Ok(verdict);
            }
        }
    }
    bench.comm.barrier()?;
    Ok(Verdict::Passed)
}

pub(super) fn group_state(bench: &mut Bench<'_>) -> Result<Verdict> {
    let comm = bench.comm;
    let verdict = expect(comm.group_end(), Code::InvalidState, &[]);
    if verdict != Verdict::Passed {
        return Ok(verdict);
    }
    comm.group_start()?;
    let nested = comm.group_start();
    let call = comm.prepare(&Args::new(Collective::Barrier, Dtype::U8))?;
    // SAFETY: a barrier has no buffers.
    let started = unsafe { comm.start(call) }.map(drop);
    comm.group_end()?;
    for outcome in [nested, started] {
        let verdict = expect(outcome, Code::InvalidState, &[]);
        if verdict != Verdict::Passed {
            return Ok(verdict);
        }
    }
    comm.barrier()?;
    Ok(Verdict::Passed)
}

/// Rank 0 blocks in a receive; a second thread sends until one of them is refused.
pub(super) fn busy(bench: &mut Bench<'_>) -> Result<Verdict> {
    let comm = bench.home.fresh(&Config::default())?;
    let control = bench.home.control;
    let mut sent = [0u64];
    let mut outcome = Ok(Verdict::Passed);
    if bench.me() == 0 {
        outcome = second_thread(&comm, &mut sent[0], || control.broadcast(&mut [0u8], Rank(0)));
        control.broadcast(&mut sent, Rank(0))?;
    } else {
        control.broadcast(&mut [0u8], Rank(0))?;
        if bench.me() == 1 {
            comm.send(&[9u32], Rank(0))?;
        }
        control.broadcast(&mut sent, Rank(0))?;
        for _ in 0..if bench.me() == 1 { sent[0] } else { 0 } {
            comm.recv(&mut [0u32], Rank(0))?;
        }
    }
    comm.barrier()?;
    comm.destroy()?;
    outcome
}

/// Receives in one thread and sends in another until one is refused, calls `answer`, which makes
/// rank 1 send, and receives that.
fn second_thread(
    comm: &Communicator,
    sent: &mut u64,
    answer: impl FnOnce() -> Result<()>,
) -> Result<Verdict> {
    std::thread::scope(|scope| {
        let receiver = scope.spawn(|| comm.recv(&mut [0u32], Rank(1)));
        // BOUND: messages wait in buffers of the link; far fewer than these fit.
        let refused = loop {
            if receiver.is_finished() || *sent == 1000 {
                break Ok(());
            }
            match comm.send(&[5u32], Rank(1)) {
                Ok(()) => *sent += 1,
                Err(error) => break Err(error),
            }
            // The receiver needs a turn to get inside.
            std::thread::sleep(Duration::from_millis(1));
        };
        answer()?;
        let received = receiver.join();
        let received = received.unwrap_or_else(|_| Err(Error::new(Code::Panic, "receiver")));
        match (refused, received) {
            // The receiver was the second to come.
            (Ok(()), Err(error)) => {
                let verdict = expect(Err(error), Code::Busy, &["rank 0"]);
                comm.recv(&mut [0u32], Rank(1)).map(|()| verdict)
            }
            (refused, received) => {
                received?;
                Ok(expect(refused, Code::Busy, &["rank 0"]))
            }
        }
    })
}

/// Rank 1 makes another call than the others; all must hear of both.
fn differ(bench: &Bench<'_>, words: [&str; 2], change: impl Fn(&mut Args<'_>)) -> Result<Verdict> {
    let comm = breakable(bench)?;
    let mut data = vec![0f64; 400 * bench.world()];
    let mut args = args(Collective::AllReduce, &mut data, 100);
    if bench.me() == 1 {
        change(&mut args);
    }
    Ok(expect_mismatch(bench, &comm, run(&comm, &args), words))
}

/// A call that only gives may end before anybody disagrees; the next one tells then.
fn expect_mismatch(
    bench: &Bench<'_>,
    comm: &Communicator,
    outcome: Result<()>,
    words: [&str; 2],
) -> Verdict {
    let outcome = outcome.and_then(|()| comm.barrier());
    let verdict = expect(outcome, Code::Mismatch, &[words[0], words[1], "rank 1"]);
    // Nobody leaves before all have seen the error.
    match bench.home.control.barrier() {
        Ok(()) => verdict,
        Err(error) => Verdict::Failed(format!("the other communicator: {error}")),
    }
}

pub(super) fn different_counts(bench: &mut Bench<'_>) -> Result<Verdict> {
    differ(bench, ["count 100", "count 99"], |args| args.count = 99)
}

pub(super) fn different_types(bench: &mut Bench<'_>) -> Result<Verdict> {
    differ(bench, ["f32", "i32"], |args| args.dtype = Dtype::I32)
}

pub(super) fn different_operations(bench: &mut Bench<'_>) -> Result<Verdict> {
    differ(bench, ["sum", "max"], |args| args.operation = ReduceOp::Max.into())
}

pub(super) fn different_calls(bench: &mut Bench<'_>) -> Result<Verdict> {
    differ(bench, ["all_reduce", "all_gather"], |args| args.collective = Collective::AllGather)
}

pub(super) fn different_roots(bench: &mut Bench<'_>) -> Result<Verdict> {
    let comm = breakable(bench)?;
    let mut data = vec![0f64; 400];
    let mut args = args(Collective::Reduce, &mut data, 100);
    args.root = i64::from(bench.me() == 1);
    Ok(expect_mismatch(bench, &comm, run(&comm, &args), ["root 0", "root 1"]))
}

/// Rank 1 makes a call over links where the others, who need not wait for it, are many small calls
/// ahead on the board.
pub(super) fn different_far_ahead(bench: &mut Bench<'_>) -> Result<Verdict> {
    let comm = breakable(bench)?;
    let mut data = vec![0f64; 100 * bench.world()];
    let counts = vec![10; bench.world()];
    let mut args = args(Collective::Broadcast, &mut data, 10);
    let mut outcome = Ok(());
    if bench.me() == 1 {
        args.collective = Collective::ScatterV;
        args.send_counts = &counts;
        outcome = run(&comm, &args);
    } else {
        for _ in 0..100 {
            outcome = outcome.and_then(|()| run(&comm, &args));
        }
    }
    Ok(expect_mismatch(bench, &comm, outcome, ["broadcast f32", "scatter_v f32"]))
}

/// Rank 1 is wrong about rank 0's block, which all ranks must know.
pub(super) fn different_blocks(bench: &mut Bench<'_>) -> Result<Verdict> {
    let comm = breakable(bench)?;
    let mut counts = vec![10; bench.world()];
    counts[0] += u64::from(bench.me() == 1);
    let mut data = vec![0f64; 100 * bench.world()];
    let mut args = args(Collective::AllGatherV, &mut data, 10);
    args.recv_counts = &counts;
    let words = ["(all_gather_v f32 counts ", "rank 1 made call 1 ("];
    Ok(expect_mismatch(bench, &comm, run(&comm, &args), words))
}

/// Rank 1 is wrong about the block that rank 0 sends it, which no other rank knows.
pub(super) fn different_pairs(bench: &mut Bench<'_>) -> Result<Verdict> {
    let comm = breakable(bench)?;
    let given = vec![10; bench.world()];
    let mut taken = given.clone();
    taken[0] += u64::from(bench.me() == 1);
    let mut data = vec![0f64; 100 * bench.world()];
    let mut args = args(Collective::AllToAllV, &mut data, 0);
    (args.send_counts, args.recv_counts) = (&given, &taken);
    Ok(expect_mismatch(
        bench,
        &comm,
        run(&comm, &args),
        ["(all_to_all_v f32 block of 10)", "(all_to_all_v f32 block of 11)"],
    ))
}

pub(super) fn different_modes(bench: &mut Bench<'_>) -> Result<Verdict> {
    if bench.home.link == Link::Mem {
        return Ok(Verdict::Skipped("threads of one process have the same settings".into()));
    }
    let deterministic = bench.me() == 1;
    let config = Config { timeout: Some(SHORT), deterministic, ..Config::default() };
    let comm = bench.home.fresh(&config)?;
    let mut data = vec![0f64; 400];
    let args = args(Collective::AllReduce, &mut data, 100);
    let words = ["(all_reduce f32 sum count 100)", "(all_reduce f32 sum count 100 deterministic)"];
    Ok(expect_mismatch(bench, &comm, run(&comm, &args), words))
}

/// Rank 1's all_to_all is in place, which it cannot be alone.
pub(super) fn different_places(bench: &mut Bench<'_>) -> Result<Verdict> {
    let comm = breakable(bench)?;
    let mut data = vec![0f64; 400 * bench.world()];
    let mut args = args(Collective::AllToAll, &mut data, 100);
    if bench.me() == 1 {
        args.send = args.recv.cast_const();
    }
    let words = ["(all_to_all f32 count 100)", "(all_to_all f32 count 100 in place)"];
    Ok(expect_mismatch(bench, &comm, run(&comm, &args), words))
}

pub(super) fn different_messages(bench: &mut Bench<'_>) -> Result<Verdict> {
    let comm = breakable(bench)?;
    let outcome = match bench.me() {
        0 => comm.send(&[1u32; 5], Rank(1)),
        1 => comm.recv(&mut [0u32; 6], Rank(0)),
        _ => Ok(()),
    };
    Ok(expect_mismatch(bench, &comm, outcome, ["count 5", "count 6"]))
}

pub(super) fn abort(bench: &mut Bench<'_>) -> Result<Verdict> {
    let comm = bench.home.fresh(&Config::default())?;
    let world = bench.world();
    let outcome = if bench.me() == 0 {
        std::thread::scope(|scope| {
            let blocked = scope.spawn(|| comm.recv(&mut [0u32], Rank::at(world - 1)));
            comm.abort();
            comm.abort();
            blocked.join().unwrap_or_else(|_| Err(Error::new(Code::Panic, "receiver")))
        })
    } else {
        comm.barrier()
    };
    let verdict = expect(outcome, Code::Aborted, &[]);
    let later = expect(comm.barrier(), Code::Aborted, &[]);
    bench.home.control.barrier()?;
    Ok(if verdict == Verdict::Passed { later } else { verdict })
}

pub(super) fn absent(bench: &mut Bench<'_>) -> Result<Verdict> {
    let config = Config { timeout: Some(Duration::from_millis(300)), ..Config::default() };
    let comm = bench.home.fresh(&config)?;
    let last = bench.world() - 1;
    let verdict = if bench.me() == last {
        Verdict::Passed
    } else {
        let mut data = [1f32; 64];
        let outcome = comm.all_reduce_in_place(&mut data, ReduceOp::Sum);
        // Whoever is first to lose patience tells the others.
        expect(outcome, Code::TimedOut, &["rank"])
    };
    bench.home.control.barrier()?;
    Ok(verdict)
}

pub(super) fn left(bench: &mut Bench<'_>) -> Result<Verdict> {
    let comm = breakable(bench)?;
    let last = bench.world() - 1;
    let verdict = if bench.me() == last {
        comm.destroy()?;
        Verdict::Passed
    } else {
        let mut data = [1f32; 64];
        let outcome = comm.all_reduce_in_place(&mut data, ReduceOp::Sum);
        let name = format!("rank {last}");
        expect(outcome, Code::PeerLost, &[&name])
    };
    bench.home.control.barrier()?;
    Ok(verdict)
}
