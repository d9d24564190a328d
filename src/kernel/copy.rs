//! Copying, with stores that go past the caches where asked.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_stream_si128};

/// Below this many bytes a streaming store saves nothing.
#[cfg(target_arch = "x86_64")]
const STREAM_BYTES_MIN: usize = 4096;

/// Bytes of a cache line.
#[cfg(target_arch = "x86_64")]
const LINE_BYTES: usize = 64;

/// Copies `bytes` from `source` to `target`; `streaming` says that the target is larger than the
/// cache and not read soon.
///
/// # Safety
/// `source` must be readable and `target` writable for `bytes`, and they must not overlap.
pub unsafe fn copy(target: *mut u8, source: *const u8, bytes: usize, streaming: bool) {
    #[cfg(target_arch = "x86_64")]
    if streaming && bytes >= STREAM_BYTES_MIN {
        // SAFETY: passed on.
        unsafe { stream(target, source, bytes) };
        return;
    }
    let _ = streaming;
    // SAFETY: passed on.
    unsafe { target.copy_from_nonoverlapping(source, bytes) };
}

/// Whole lines past the caches, the ends as usual.
///
/// # Safety
/// As for [`copy`]; `bytes` must be at least a line.
#[cfg(target_arch = "x86_64")]
unsafe fn stream(target: *mut u8, source: *const u8, bytes: usize) {
    let head = (LINE_BYTES - target.addr() % LINE_BYTES) % LINE_BYTES;
    let body = (bytes - head) / LINE_BYTES * LINE_BYTES;
    // SAFETY: head, body and tail split `bytes`; `target + head` starts a line. The instructions
    // are part of every x86-64 CPU.
    unsafe {
        target.copy_from_nonoverlapping(source, head);
        let mut at = head;
        while at < head + body {
            let from = source.add(at).cast::<__m128i>();
            let to = target.add(at).cast::<__m128i>();
            let line = [
                _mm_loadu_si128(from),
                _mm_loadu_si128(from.add(1)),
                _mm_loadu_si128(from.add(2)),
                _mm_loadu_si128(from.add(3)),
            ];
            _mm_stream_si128(to, line[0]);
            _mm_stream_si128(to.add(1), line[1]);
            _mm_stream_si128(to.add(2), line[2]);
            _mm_stream_si128(to.add(3), line[3]);
            at += LINE_BYTES;
        }
        target.add(at).copy_from_nonoverlapping(source.add(at), bytes - at);
    }
    super::drive::fence();
}
