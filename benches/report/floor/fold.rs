//! Sums of floats, as fast as the processor at hand adds them.

/// Inputs that are added in one pass.
pub(super) const SOURCES_MAX: usize = 8;

/// Floats of a step: a cache line.
const STEP: usize = 16;
type Block = [f32; STEP];

/// Adds `count` floats of all `sources` and stores the sums to each of `targets`; `streaming`:
/// past the caches, where the processor and the targets' alignment allow.
///
/// # Safety
/// Sources must be readable and targets writable for `count` floats, and no target may overlap
/// anything but a source at the same address.
pub(super) unsafe fn fold(
    sources: &[*const f32],
    targets: &[*mut f32],
    count: usize,
    streaming: bool,
) {
    let aligned = targets.iter().all(|at| at.addr().is_multiple_of(64));
    // SAFETY: the caller's promise is passed on, for a number of sources that is their number.
    unsafe {
        match sources.len() {
            1 => best::<1>(sources, targets, count, streaming && aligned),
            2 => best::<2>(sources, targets, count, streaming && aligned),
            3 => best::<3>(sources, targets, count, streaming && aligned),
            4 => best::<4>(sources, targets, count, streaming && aligned),
            5 => best::<5>(sources, targets, count, streaming && aligned),
            6 => best::<6>(sources, targets, count, streaming && aligned),
            7 => best::<7>(sources, targets, count, streaming && aligned),
            8 => best::<8>(sources, targets, count, streaming && aligned),
            many => panic!("{many} sources"),
        }
    }
}

/// The widest instructions there are.
///
/// # Safety
/// As [`fold`], with `N` sources; targets at whole lines when `streaming`.
unsafe fn best<const N: usize>(
    sources: &[*const f32],
    targets: &[*mut f32],
    count: usize,
    streaming: bool,
) {
    let sources: &[*const f32; N] = sources.try_into().expect("as many as said");
    // SAFETY: the caller's promise is passed on; the processor has what it was asked for.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") {
                return x86::fold512(sources, targets, count, streaming);
            }
            if is_x86_feature_detected!("avx2") {
                return x86::fold256(sources, targets, count, streaming);
            }
        }
        let _ = streaming;
        body(sources, targets, count, |at, sums| at.cast::<Block>().write_unaligned(sums));
    }
}

/// The loop; `store` puts a block of sums at an address.
///
/// # Safety
/// As [`fold`].
#[inline(always)]
unsafe fn body<const N: usize>(
    sources: &[*const f32; N],
    targets: &[*mut f32],
    count: usize,
    store: impl Fn(*mut f32, Block),
) {
    let whole = count / STEP * STEP;
    // SAFETY: every access is inside the `count` floats that the caller promises.
    unsafe {
        for at in (0..whole).step_by(STEP) {
            let mut sums = sources[0].add(at).cast::<Block>().read_unaligned();
            for source in &sources[1..] {
                let more = source.add(at).cast::<Block>().read_unaligned();
                for (sum, more) in sums.iter_mut().zip(more) {
                    *sum += more;
                }
            }
            for target in targets {
                store(target.add(at), sums);
            }
        }
        for at in whole..count {
            let sum: f32 = sources.iter().map(|source| source.add(at).read()).sum();
            for target in targets {
                target.add(at).write(sum);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        _mm_sfence, _mm256_loadu_ps, _mm256_stream_ps, _mm512_loadu_ps, _mm512_stream_ps,
    };

    use super::{Block, body};

    /// # Safety
    /// As [`super::best`], on a processor with AVX-512.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn fold512<const N: usize>(
        sources: &[*const f32; N],
        targets: &[*mut f32],
        count: usize,
        streaming: bool,
    ) {
        // SAFETY: the caller's promise is passed on.
        unsafe {
            fold(sources, targets, count, streaming, |at, sums| {
                _mm512_stream_ps(at, _mm512_loadu_ps(sums.as_ptr()));
            });
        }
    }

    /// # Safety
    /// As [`super::best`], on a processor with AVX2.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn fold256<const N: usize>(
        sources: &[*const f32; N],
        targets: &[*mut f32],
        count: usize,
        streaming: bool,
    ) {
        // SAFETY: the caller's promise is passed on.
        unsafe {
            fold(sources, targets, count, streaming, |at, sums| {
                _mm256_stream_ps(at, _mm256_loadu_ps(sums.as_ptr()));
                _mm256_stream_ps(at.add(8), _mm256_loadu_ps(sums[8..].as_ptr()));
            });
        }
    }

    /// Stores by `stream` or as usual.
    ///
    /// # Safety
    /// As [`super::best`]; to be inlined into a function that enables what `stream` needs.
    #[inline(always)]
    unsafe fn fold<const N: usize>(
        sources: &[*const f32; N],
        targets: &[*mut f32],
        count: usize,
        streaming: bool,
        stream: impl Fn(*mut f32, Block),
    ) {
        // SAFETY: the caller's promise is passed on.
        unsafe {
            if streaming {
                body(sources, targets, count, stream);
                // Streamed stores are seen late: before others are told of them they must be done.
                _mm_sfence();
            } else {
                body(sources, targets, count, |at, sums| at.cast::<Block>().write_unaligned(sums));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::buffer::Buffer;
    use super::*;

    #[test]
    fn sums_of_all_counts_and_sources() {
        for sources in 1..=SOURCES_MAX {
            for count in [0, 1, 15, 16, 17, 100] {
                for streaming in [false, true] {
                    let inputs: Vec<Vec<f32>> =
                        (0..sources).map(|s| vec![1.0 + s as f32; count]).collect();
                    let outputs = [Buffer::new(4 * count), Buffer::new(4 * count)];
                    let from: Vec<_> = inputs.iter().map(Vec::as_ptr).collect();
                    let to: Vec<_> = outputs.iter().map(Buffer::floats).collect();
                    // SAFETY: all have `count` floats, each its own.
                    unsafe { fold(&from, &to, count, streaming) };
                    let wanted = (sources * (sources + 1) / 2) as f32;
                    for (at, i) in to.iter().flat_map(|&at| (0..count).map(move |i| (at, i))) {
                        // SAFETY: inside the buffer.
                        assert_eq!(unsafe { at.add(i).read() }.to_bits(), wanted.to_bits());
                    }
                }
            }
        }
    }
}
