//! What NCCL is told of a new communicator, in the form that each version knows.

use std::ffi::c_int;
use std::ptr;

use super::abi::raw;
use super::version::Version;

/// What a configuration begins with, so that NCCL knows it for one.
const MAGIC: u32 = 0xcafe_beef;
/// Of a number in a configuration: NCCL's default.
const DEFAULT: c_int = c_int::MIN;

/// What is asked of a new communicator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wishes {
    /// At most so many blocks of threads work on a call; several ranks on one GPU need few.
    pub(crate) blocks_max: Option<u32>,
    /// What is split from it, or is left of it, may use its connections.
    pub(crate) share: bool,
}

/// Bytes of a configuration, by the first version in which it has them.
const CONFIG_BYTES: &[(Version, usize)] = &[
    (Version::new(2, 18, 1), 48),
    (Version::new(2, 27, 3), 72),
    (Version::new(2, 28, 3), 80),
    (Version::new(2, 29, 2), 88),
    (Version::new(2, 30, 3), 96),
];

/// How much of a configuration `version` knows.
pub(super) fn config_bytes(version: Version) -> usize {
    let (_, bytes) =
        CONFIG_BYTES.iter().rev().find(|(since, _)| *since <= version).unwrap_or(&CONFIG_BYTES[0]);
    *bytes
}

/// The configuration for a library of `version`: non-blocking, and otherwise as wished.
pub(super) fn config(version: Version, wishes: &Wishes) -> raw::ncclConfig_t {
    let blocks = wishes.blocks_max.map_or(DEFAULT, number);
    let share = if wishes.share { 1 } else { DEFAULT };
    raw::ncclConfig_t {
        size: config_bytes(version),
        magic: MAGIC,
        version: version.known().0,
        blocking: 0,
        cgaClusterSize: DEFAULT,
        minCTAs: DEFAULT,
        maxCTAs: blocks,
        netName: ptr::null(),
        splitShare: share,
        trafficClass: DEFAULT,
        commName: ptr::null(),
        collnetEnable: DEFAULT,
        CTAPolicy: DEFAULT,
        shrinkShare: share,
        nvlsCTAs: DEFAULT,
        nChannelsPerNetPeer: DEFAULT,
        nvlinkCentricSched: DEFAULT,
        graphUsageMode: DEFAULT,
        numRmaCtx: DEFAULT,
        maxP2pPeers: DEFAULT,
        graphStreamOrdering: DEFAULT,
    }
}

/// As NCCL counts; what does not fit it refuses.
pub(super) fn number(value: u32) -> c_int {
    c_int::try_from(value).unwrap_or(c_int::MAX)
}
