//! The machine's own floor: the same movement of data with nothing else. No matching of calls, no
//! deadline, no error, no choice; ranks are threads on cores of their own that spin.
//!
//! - **mem**: two exchanges of cache lines, one after the other. In an *exchange* each rank writes
//!   a line of its own and reads those of all others.
//! - **shm**: every buffer is in memory that all ranks see. Either each rank copies what the others
//!   need into a letter, exchanges lines (which hold the letter if it has 56 bytes or less), and
//!   makes its output from the letters; or the ranks exchange lines, load what they need from each
//!   other's inputs where they lie, and exchange lines again. In the second way of an all_reduce
//!   each rank loads its share of all inputs, adds, and stores to all outputs; with ordinary stores
//!   or with streaming ones. The floor is the least of these at each size.
//! - **tcp**: each rank sends to its right neighbour and receives from its left one the bytes that
//!   the best all_reduce sends, 2(n-1)/n of the buffer, over loopback sockets, and adds nothing.
//!   The floor is the least over sizes of a system call's piece.
//!
//! A broadcast has none (its root waits for nobody), nor have ranks that share cores.

mod buffer;
mod fold;
mod line;
mod shm;
mod tcp;
mod timing;

use super::cases::{Link, Sweep, sizes};
use super::runner::median;

/// One way of doing a call, on every rank.
trait Way: Sync {
    /// The call, as rank `me` makes it the `turn`-th time, from 1.
    fn call(&self, me: usize, turn: u64) -> Result<(), String>;
}

/// A way, unless the system refused what it needs.
type Made = Result<Box<dyn Way>, String>;

/// Whether there is a floor under `sweep` on a machine with `cores`.
pub(super) fn exists(sweep: &Sweep, cores: usize) -> bool {
    sweep.op != "broadcast"
        && sweep.ranks <= cores.min(fold::SOURCES_MAX)
        && (sweep.link == Link::Shm || sweep.op == "all_reduce")
}

/// The contestant's arguments: `OP LINK RANKS LO HI STEP`.
///
/// # Errors
/// What is not understood; what the system refused.
pub(super) fn main(arguments: &[String]) -> Result<(), String> {
    let [op, link, rest @ ..] = arguments else {
        return Err("floor OP LINK RANKS LO HI STEP".to_owned());
    };
    let numbers: Vec<u64> = rest.iter().filter_map(|text| text.parse().ok()).collect();
    let [ranks, lo, hi, step] = numbers[..] else {
        return Err(format!("four numbers, not {rest:?}"));
    };
    let ranks = usize::try_from(ranks).map_err(|error| error.to_string())?;
    if lo == 0 || step < 2 {
        return Err("sizes from 1 byte, with a step of 2 or more".to_owned());
    }
    for bytes in sizes(lo, hi, step) {
        let us = floor(op, link, ranks, bytes, 7)? * 1e6;
        println!(r#"{{"bytes":{bytes},"median_us":{us:.3}}}"#);
    }
    Ok(())
}

/// Seconds of a call: the least over all ways.
fn floor(op: &str, link: &str, ranks: usize, bytes: u64, rounds: usize) -> Result<f64, String> {
    if !(2..=fold::SOURCES_MAX).contains(&ranks) {
        return Err(format!("2 to {} ranks, not {ranks}", fold::SOURCES_MAX));
    }
    let length = usize::try_from(bytes).map_err(|error| error.to_string())?;
    // Each is made when its turn comes: their buffers may be large.
    let ways: Box<dyn Iterator<Item = Made>> = match link {
        "mem" => Box::new(std::iter::once_with(|| line::twice(ranks))),
        "shm" => Box::new(shm::ways(shm::Op::from_name(op)?, ranks, length)),
        "tcp" => Box::new(tcp::ways(ranks, length)),
        _ => return Err(format!("links are mem, shm and tcp, not {link}")),
    };
    let mut least = f64::INFINITY;
    for way in ways {
        let times = timing::rounds(&*way?, ranks, bytes, rounds)?;
        least = least.min(median(&times).unwrap_or(f64::INFINITY));
    }
    Ok(least)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_floor_where_ranks_have_cores_and_wait_for_each_other() {
        let sweep = |op, ranks, link| Sweep { op, ranks, link, registered: false, most: None };
        assert!(exists(&sweep("all_reduce", 2, Link::Tcp), 2));
        assert!(exists(&sweep("all_gather", 2, Link::Shm), 4));
        assert!(!exists(&sweep("broadcast", 2, Link::Shm), 4));
        assert!(!exists(&sweep("all_reduce", 4, Link::Shm), 2));
    }

    /// Small, since the threads spin and may have to share a core here.
    #[test]
    fn every_link_has_a_floor_above_nothing() {
        for link in ["mem", "shm", "tcp"] {
            let seconds = floor("all_reduce", link, 2, 8, 1).expect("measured");
            assert!(seconds > 0.0 && seconds.is_finite(), "{link}: {seconds}");
        }
        assert!(floor("all_reduce", "none", 2, 8, 1).is_err());
        assert!(floor("all_reduce", "shm", 1, 8, 1).is_err());
    }
}
