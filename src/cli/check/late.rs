//! Cases in which a rank is late, or does not come at all.

use std::time::Duration;

use unisono::comm::Args;
use unisono::config::Config;
use unisono::{Code, Collective, Dtype, Rank, Result};

use super::event::Verdict;
use super::fault::{expect, run};
use super::rank::Bench;
use crate::cli::data::memory::{Buffer, Source};

/// How long the others wait for the one that is late.
const PATIENCE: Duration = Duration::from_millis(200);
/// So much later one comes than another.
const HEAD_START: Duration = Duration::from_millis(30);
/// Enough for ranks that share memory to load each other's buffers.
const COUNT: usize = 50_000;
/// What stands in the inputs while the call is made, and what the others write when it has failed.
const GIVEN: u8 = 1;
const LATER: u8 = 66;

/// The last rank comes when the others have their buffers back and have written to them. It must
/// not take that for their input, nor touch their output.
pub(super) fn after_a_failure(bench: &mut Bench<'_>) -> Result<Verdict> {
    let last = bench.world() - 1;
    let calls = [
        (Collective::Broadcast, 0),
        (Collective::Reduce, last),
        (Collective::AllReduce, 0),
        (Collective::Scatter, 0),
        (Collective::Gather, last),
    ];
    // Every rank makes all of them, whatever it finds.
    let mut verdict = Verdict::Passed;
    for (collective, root) in calls {
        if let Verdict::Failed(text) = late(bench, collective, root)? {
            verdict = Verdict::Failed(format!("{collective}: {text}"));
        }
    }
    Ok(verdict)
}

fn late(bench: &Bench<'_>, collective: Collective, root: usize) -> Result<Verdict> {
    let comm = bench.home.fresh(&Config { timeout: Some(PATIENCE), ..Config::default() })?;
    let is_late = bench.me() + 1 == bench.world();
    let wide = |whole: bool| if whole { COUNT * bench.world() } else { COUNT };
    let (input, output) =
        (wide(collective == Collective::Scatter), wide(collective == Collective::Gather));
    let mut send = Buffer::new(&comm, Source::Registered, input, Dtype::U8, 0)?;
    let mut recv = Buffer::new(&comm, Source::Registered, output, Dtype::U8, 0)?;
    send.bytes_mut().fill(GIVEN);
    let mut args = Args::new(collective, Dtype::U8);
    (args.count, args.root) = (COUNT as u64, i64::try_from(root).unwrap_or(0));
    (args.send, args.recv) = (send.element(0), recv.element(0));
    if !is_late {
        // Whoever need not wait for the late one may well have ended its call.
        let outcome = run(&comm, &args);
        send.bytes_mut().fill(LATER);
        recv.bytes_mut().fill(LATER);
        if let Err(error) = outcome
            && error.code != Code::TimedOut
        {
            bench.home.control.barrier()?;
            bench.home.control.barrier()?;
            return Ok(expect(Err(error), Code::TimedOut, &[]));
        }
    }
    bench.home.control.barrier()?;
    let outcome = if is_late { run(&comm, &args) } else { Ok(()) };
    bench.home.control.barrier()?;
    let sum = if collective.reduces() { bench.world() } else { 1 };
    let right = if is_late { GIVEN.saturating_mul(u8::try_from(sum).unwrap_or(0)) } else { LATER };
    let whole = recv.bytes().iter().all(|&byte| byte == right);
    Ok(match outcome {
        Ok(()) if whole => Verdict::Passed,
        Ok(()) if is_late => {
            Verdict::Failed("the late rank took what its peers wrote later".into())
        }
        Ok(()) => Verdict::Failed("the late rank wrote to an output given back before".into()),
        Err(error) => expect(Err(error), Code::TimedOut, &[]),
    })
}

/// Who waits in the next call, or for a message, is not misled by whom it waits for.
pub(super) fn who_waits_is_not_blamed(bench: &mut Bench<'_>) -> Result<Verdict> {
    if bench.world() != 3 {
        return Ok(Verdict::Skipped("made for three ranks".to_owned()));
    }
    let mut verdict = Verdict::Passed;
    for messages in [false, true] {
        // The news of who waits for whom comes after a second.
        let timeout = Some(Duration::from_millis(2500));
        let comm = bench.home.fresh(&Config { timeout, ..Config::default() })?;
        // Ranks have their communicators at different times; they begin to wait together.
        bench.home.control.barrier()?;
        let mut word = [1u32];
        let outcome = match (bench.me(), messages) {
            (2, _) => Ok(()),
            (0, true) => {
                std::thread::sleep(HEAD_START);
                comm.recv(&mut word, Rank(2))
            }
            (_, true) => comm.recv(&mut word, Rank(0)),
            (me, false) => {
                // The deadline of rank 1 is the first to pass, and it waits for rank 0.
                std::thread::sleep(if me == 0 { HEAD_START } else { Duration::ZERO });
                let mut all = [0u32; 3];
                let all = if me == 0 { &mut all[..] } else { &mut [] };
                comm.gather(&word, all, Rank(0)).and_then(|()| comm.broadcast(&mut word, Rank(0)))
            }
        };
        bench.home.control.barrier()?;
        if bench.me() < 2
            && let Verdict::Failed(text) = expect(outcome, Code::TimedOut, &["waited for rank 2 "])
        {
            // The others go on to the next.
            verdict = Verdict::Failed(format!("messages {messages}: {text}"));
        }
    }
    Ok(verdict)
}
