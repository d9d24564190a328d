//! The tuner as ranks of this machine would have it: what `info` shows and `perf` asks first.

use std::sync::Arc;

use unisono::Rank;
use unisono::algo::Hosts;
use unisono::config::{Config, Tuning};
use unisono::link::capacity;
use unisono::tune::{Facts, Memory, Tuner};

/// The tuner of rank 0 of `world` ranks, all on one host, that can map `memory` of each other.
pub(crate) fn tuner(config: &Config, world: u32, memory: Memory) -> Result<Tuner, String> {
    // Ranks that share no memory do not know that they share a host.
    let host = |rank| if memory == Memory::Apart { rank } else { 0 };
    let marks: Vec<u32> = (0..world).map(host).collect();
    let hosts = Hosts::new(&marks).ok_or_else(|| format!("a world of {world}"))?;
    let table = config.tuning.as_ref().map(Tuning::table).transpose();
    Ok(Tuner::new(Facts {
        rank: Rank(0),
        world,
        hosts: Arc::new(hosts),
        deterministic: config.deterministic,
        algorithm: config.algorithm,
        tile_bytes: u64::from(config.tile_bytes),
        window: u64::from(config.window),
        capacity: capacity(memory == Memory::Apart) as u64,
        memory,
        table: table.map_err(|error| error.detail.into_string())?,
    }))
}
