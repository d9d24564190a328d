//! Small all_reduces of a group travel as one.
//!
//! Calls that follow each other with the same type and operation are packed into one buffer,
//! reduced by one call, and unpacked when it ends: n latencies become one. Which calls are fused
//! depends on values all ranks agree on. `pre_mul_sum` is left alone: its factor is each rank's
//! own.
//!
//! Bits stay as they are: a reduction treats every element by itself.

use crate::call::{Call, Guise, hash_counts};
use crate::types::{Collective, ReduceOp};

/// Larger calls gain nothing from company.
const CALL_BYTES_MAX: u64 = 64 << 10;
/// A pack grows up to here.
const PACK_BYTES_MAX: u64 = 1 << 20;

/// Packed calls under way.
#[derive(Debug)]
pub(crate) struct Pack {
    /// The request the calls belong to.
    pub(crate) parent: u32,
    /// The packed elements; words keep every type aligned.
    buffer: Vec<u128>,
    /// Where each call's result goes, and its bytes.
    results: Vec<(*mut u8, usize)>,
}

// SAFETY: the result addresses belong to calls whose makers promise them valid on any thread until
// the request has ended; the pack is unpacked before that.
unsafe impl Send for Pack {}

/// How many calls at the front of `calls` go into one pack; 1 when none do.
pub(crate) fn run_length(calls: &[Call]) -> usize {
    let Some(first) = calls.first() else { return 0 };
    let mut bytes = 0u64;
    let fits = |call: &&Call| {
        let size = call.count.saturating_mul(call.dtype.bytes() as u64);
        bytes = bytes.saturating_add(size.next_multiple_of(16));
        call.collective == Collective::AllReduce
            && call.place.is_host()
            && call.op != ReduceOp::PreMulSum
            && (call.dtype, call.op) == (first.dtype, first.op)
            && size <= CALL_BYTES_MAX
            && bytes <= PACK_BYTES_MAX
    };
    calls.iter().take_while(fits).count().max(1)
}

/// Packs `calls` (of one type and operation) for the request `parent`; also the call that reduces
/// them.
///
/// # Safety
/// The calls' buffers must be valid until the request has ended.
pub(crate) unsafe fn pack(calls: &[Call], parent: u32) -> (Pack, Call) {
    let dtype = calls[0].dtype;
    let total: u64 = calls.iter().map(|c| c.count).sum();
    #[expect(clippy::cast_possible_truncation, reason = "at most PACK_BYTES_MAX")]
    let bytes = |count: u64| count as usize * dtype.bytes();
    let mut pack = Pack {
        parent,
        buffer: vec![0; bytes(total).div_ceil(16)],
        results: Vec::with_capacity(calls.len()),
    };
    let base = pack.buffer.as_mut_ptr().cast::<u8>();
    let mut at = 0;
    for call in calls {
        let length = bytes(call.count);
        if length > 0 {
            // SAFETY: the input is `length` readable bytes (validated), the buffer has room for
            // all.
            unsafe { std::ptr::copy_nonoverlapping(call.send, base.add(at), length) };
        }
        pack.results.push((call.recv, length));
        at += length;
    }
    let mut whole = Call::new(Collective::AllReduce, dtype);
    (whole.op, whole.count) = (calls[0].op, total);
    whole.guise = Guise::Packed(hash_counts(calls.iter().map(|call| &call.count)));
    (whole.send, whole.recv) = (base.cast_const(), base);
    (pack, whole)
}

impl Pack {
    /// Number of calls inside.
    pub(crate) fn len(&self) -> usize {
        self.results.len()
    }

    /// Puts the results where the calls want them.
    pub(crate) fn unpack(&self) {
        let base = self.buffer.as_ptr().cast::<u8>();
        let mut at = 0;
        for &(to, bytes) in &self.results {
            if bytes > 0 {
                // SAFETY: the output is `bytes` writable bytes (validated, and promised until the
                // request has ended); the buffer holds the sum of all.
                unsafe { std::ptr::copy_nonoverlapping(base.add(at), to, bytes) };
            }
            at += bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Dtype;

    fn call(dtype: Dtype, op: ReduceOp, count: u64) -> Call {
        let mut call = Call::new(Collective::AllReduce, dtype);
        (call.op, call.count) = (op, count);
        call
    }

    #[test]
    fn only_like_small_calls_share_a_pack() {
        let sum = |count| call(Dtype::F32, ReduceOp::Sum, count);
        assert_eq!(run_length(&[sum(1), sum(2), sum(3)]), 3);
        assert_eq!(run_length(&[sum(1), call(Dtype::F64, ReduceOp::Sum, 1)]), 1);
        assert_eq!(run_length(&[sum(1), call(Dtype::F32, ReduceOp::Max, 1)]), 1);
        assert_eq!(run_length(&[sum(1), sum(1 << 20), sum(1)]), 1);
        let scaled = call(Dtype::F32, ReduceOp::PreMulSum, 1);
        assert_eq!(run_length(&[scaled.clone(), scaled]), 1);
        assert_eq!(run_length(&vec![sum(16 << 10); 40]), 16, "a pack ends at 1 MiB");
    }
}
