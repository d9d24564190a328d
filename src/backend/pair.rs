//! Counts that only two ranks know of: what each sends to, and expects of, the other.

use crate::call::Call;
use crate::types::Collective;

/// Whether counts of `call` are between two ranks.
pub(super) fn pairs(call: &Call) -> bool {
    use Collective as C;
    matches!(call.collective, C::GatherV | C::ScatterV | C::AllToAllV)
}

/// Elements that rank `me` sends to `peer`.
pub(super) fn sent(call: &Call, me: usize, peer: usize) -> u64 {
    let root = call.root.index();
    match call.collective {
        Collective::GatherV if peer == root => call.count,
        Collective::ScatterV if me != root => 0,
        _ => call.send_blocks.counts.get(peer).copied().unwrap_or(0),
    }
}

/// Elements that rank `me` expects of `peer`.
pub(super) fn expected(call: &Call, me: usize, peer: usize) -> u64 {
    let root = call.root.index();
    match call.collective {
        Collective::ScatterV if peer == root => call.count,
        Collective::GatherV if me != root => 0,
        _ => call.recv_blocks.counts.get(peer).copied().unwrap_or(0),
    }
}

/// The first of them in the buffer of rank `me`.
pub(super) fn sent_from(call: &Call, me: usize, peer: usize) -> u64 {
    if sent(call, me, peer) == 0 {
        return 0;
    }
    call.send_blocks.displacements.get(peer).copied().unwrap_or(0)
}

/// Where the first of them belongs in the buffer of rank `me`.
pub(super) fn expected_at(call: &Call, me: usize, peer: usize) -> u64 {
    if expected(call, me, peer) == 0 {
        return 0;
    }
    call.recv_blocks.displacements.get(peer).copied().unwrap_or(0)
}
