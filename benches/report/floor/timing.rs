//! Rounds of one way, on threads.

use std::time::Instant;

use super::super::cases::calls;
use super::Way;
use super::line::Lines;

/// Seconds of a call in each round, that of the slowest rank; a round before them warms up.
pub(super) fn rounds(
    way: &dyn Way,
    ranks: usize,
    bytes: u64,
    rounds: usize,
) -> Result<Vec<f64>, String> {
    let start = Lines::new(ranks);
    let rank = |me: usize| -> Result<Vec<f64>, String> {
        // Unbound threads are slower, not wrong.
        let _ = unisono::comm::bind_to_core(me);
        let mut times = Vec::new();
        let mut turn = 0;
        for round in 0..=rounds as u64 {
            start.exchange(me, round + 1);
            let begun = Instant::now();
            for _ in 0..calls(bytes) {
                turn += 1;
                way.call(me, turn)?;
            }
            times.push(begun.elapsed().as_secs_f64() / f64::from(calls(bytes)));
        }
        Ok(times)
    };
    let rank = &rank;
    let all: Vec<Vec<f64>> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..ranks).map(|me| scope.spawn(move || rank(me))).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, Result<Vec<f64>, String>>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        running.into_iter().map(join).collect::<Result<_, _>>()
    })?;
    let slowest = |round: usize| all.iter().map(|times| times[round]).fold(0.0, f64::max);
    Ok((1..=rounds).map(slowest).collect())
}
