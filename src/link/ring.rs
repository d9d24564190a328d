//! A ring of bytes between one writer and one reader that see the same memory.
//!
//! ```text
//!  0          128        256                                256 + capacity
//!  | tail     | head     | data: capacity bytes, a multiple of 64           |
//!    written    taken      position p of the stream lies at p % capacity
//!    by writer  by reader
//! ```
//!
//! `tail` and `head` only grow. The writer owns `[tail, head + capacity)`, the reader
//! `[head, tail)`. Messages begin at multiples of [`LINE`], so a head or an element never straddles
//! the wrap; both ends round up at [`Tx::end`] and [`Rx::end`].
//!
//! Whatever the other end writes into the counters is checked before it bounds anything: a peer can
//! break its own stream, not our memory.
//!
//! One thread each side. Waking a sleeping peer is [`Waker`]'s.

use std::ptr::NonNull;
use std::sync::Arc;

use crate::engine::link::{Rx, Tx, Window};
use crate::error::{Code, Error, Result};
use crate::link::doze::Waker;
use crate::sync::{AtomicU64, Ordering};
use crate::types::Rank;

/// Messages begin at multiples of this.
pub(crate) const LINE: u64 = 64;
/// Bytes before the data.
pub(crate) const CONTROL_BYTES: usize = 256;
/// Written bytes are shown to the reader at least this often, so that both work at once.
const PUBLISH_BYTES: u64 = WRITE_BYTES as u64;
const WRITE_BYTES: usize = 8 << 10;

/// The two counters, each on cache lines of its own (two, for adjacent-line prefetch).
#[derive(Debug)]
#[repr(C, align(128))]
pub(crate) struct Control {
    tail: Counter,
    head: Counter,
}

#[derive(Debug)]
#[repr(C, align(128))]
struct Counter(AtomicU64);

#[cfg(not(loom))]
const _: () = assert!(size_of::<Control>() == CONTROL_BYTES);

/// Where a ring lies; keeps its memory alive.
#[derive(Clone, Debug)]
pub(crate) struct Memory {
    control: NonNull<Control>,
    data: NonNull<u8>,
    capacity: usize,
    /// Owns the bytes.
    _keep: Arc<dyn std::any::Any + Send + Sync>,
}

// SAFETY: the counters are atomics, and the data is split between the ends by the counters.
unsafe impl Send for Memory {}

impl Memory {
    /// The ring at `at`.
    ///
    /// # Safety
    /// `at` must point to [`CONTROL_BYTES`]` + capacity` bytes, aligned to 128, zero at first, kept
    /// alive by `keep`, and used by nothing but one writer and one reader of this ring. `capacity`
    /// is a multiple of [`LINE`] and at least four of them.
    pub(crate) unsafe fn at(
        at: NonNull<u8>,
        capacity: usize,
        keep: Arc<dyn std::any::Any + Send + Sync>,
    ) -> Self {
        assert!(
            (capacity as u64).is_multiple_of(LINE) && capacity as u64 >= 4 * LINE,
            "ring of {capacity}"
        );
        // SAFETY: the caller gives at least CONTROL_BYTES bytes there.
        let data = unsafe { at.add(CONTROL_BYTES) };
        Self { control: at.cast(), data, capacity, _keep: keep }
    }

    fn control(&self) -> &Control {
        // SAFETY: `at` promised a live, aligned control block (zero bytes are valid atomics).
        unsafe { self.control.as_ref() }
    }
}

/// The other end's counter makes no sense.
fn broken(peer: Rank, what: &str, ours: u64, theirs: u64) -> Error {
    let text = format!("rank {peer} set the {what} of a shared ring to {theirs}, not near {ours}");
    Error::new(Code::Protocol, text).with_peer(peer)
}

/// The writing end.
#[derive(Debug)]
pub(crate) struct RingTx {
    memory: Memory,
    /// Who reads.
    peer: Rank,
    waker: Waker,
    /// Stream position up to which bytes are written.
    written: u64,
    /// `written % capacity`.
    at: usize,
    /// Position the reader has been shown.
    published: u64,
    /// Last seen position of the reader.
    head: u64,
}

impl RingTx {
    pub(crate) fn new(memory: Memory, peer: Rank, waker: Waker) -> Self {
        Self { memory, peer, waker, written: 0, at: 0, published: 0, head: 0 }
    }

    fn room(&self) -> u64 {
        // Whole lines only, so that rounding up at the end of a message always has room.
        let taken = self.head - self.head % LINE;
        (self.memory.capacity as u64).saturating_sub(self.written.saturating_sub(taken))
    }

    fn publish(&mut self) {
        if self.published != self.written {
            self.published = self.written;
            // ORDERING: release pairs with the reader's acquire of `tail`: the bytes come before.
            self.memory.control().tail.0.store(self.written, Ordering::Release);
            self.waker.wake();
        }
    }

    fn advance(&mut self, bytes: usize) {
        self.written += bytes as u64;
        self.at += bytes;
        if self.at >= self.memory.capacity {
            self.at -= self.memory.capacity;
        }
    }
}

// SAFETY: windows lie in the ring between its counters, and the ring lives as long as this.
unsafe impl Tx for RingTx {
    fn window(&mut self) -> Result<Window> {
        let mut room = self.room();
        if room < PUBLISH_BYTES {
            // ORDERING: acquire pairs with the reader's release of `head`: it has finished reading.
            let head = self.memory.control().head.0.load(Ordering::Acquire);
            if head < self.head || head > self.written.next_multiple_of(LINE) {
                return Err(broken(self.peer, "head", self.written, head));
            }
            self.head = head;
            room = self.room();
        }
        if room == 0 {
            self.publish();
            return Ok(Window::EMPTY);
        }
        let until_wrap = self.memory.capacity - self.at;
        let bytes = until_wrap.min(usize::try_from(room).unwrap_or(until_wrap));
        // SAFETY: `at` is below the capacity, so inside the data.
        let at = unsafe { self.memory.data.add(self.at) }.as_ptr();
        Ok(Window { at, bytes })
    }

    fn commit(&mut self, bytes: usize) -> Result<()> {
        self.advance(bytes);
        if self.written - self.published >= PUBLISH_BYTES {
            self.publish();
        }
        Ok(())
    }

    unsafe fn write(&mut self, from: *const u8, bytes: usize) -> Result<usize> {
        let mut done = 0;
        while done < bytes {
            let window = self.window()?;
            let count = window.bytes.min(bytes - done).min(WRITE_BYTES);
            if count == 0 {
                break;
            }
            // SAFETY: the caller promises `bytes` readable bytes; the window is `count` bytes of
            // the ring that only the writer owns now.
            unsafe { std::ptr::copy_nonoverlapping(from.add(done), window.at, count) };
            self.commit(count)?;
            done += count;
        }
        Ok(done)
    }

    fn end(&mut self) -> Result<()> {
        let pad = self.written.next_multiple_of(LINE) - self.written;
        self.advance(usize::try_from(pad).unwrap_or(0));
        self.publish();
        Ok(())
    }

    fn flush(&mut self) -> Result<bool> {
        self.publish();
        Ok(true)
    }
}

/// The reading end.
#[derive(Debug)]
pub(crate) struct RingRx {
    memory: Memory,
    /// Who writes.
    peer: Rank,
    waker: Waker,
    /// Stream position up to which bytes are taken.
    taken: u64,
    /// `taken % capacity`.
    at: usize,
    /// Position the writer has been shown.
    published: u64,
    /// Last seen position of the writer.
    tail: u64,
}

impl RingRx {
    pub(crate) fn new(memory: Memory, peer: Rank, waker: Waker) -> Self {
        Self { memory, peer, waker, taken: 0, at: 0, published: 0, tail: 0 }
    }

    fn publish(&mut self) {
        if self.published != self.taken {
            self.published = self.taken;
            // ORDERING: release pairs with the writer's acquire of `head`: our reads come before.
            self.memory.control().head.0.store(self.taken, Ordering::Release);
            self.waker.wake();
        }
    }

    fn advance(&mut self, bytes: usize) {
        self.taken += bytes as u64;
        self.at += bytes;
        if self.at >= self.memory.capacity {
            self.at -= self.memory.capacity;
        }
    }
}

// SAFETY: as of the sending end.
unsafe impl Rx for RingRx {
    fn peek(&mut self, want: usize) -> Result<Window> {
        if self.tail.saturating_sub(self.taken) < want as u64 {
            // ORDERING: acquire pairs with the writer's release of `tail`: the bytes are there.
            let tail = self.memory.control().tail.0.load(Ordering::Acquire);
            let most = self.taken + self.memory.capacity as u64;
            if tail < self.tail || tail > most {
                return Err(broken(self.peer, "tail", self.taken, tail));
            }
            self.tail = tail;
        }
        let until_wrap = self.memory.capacity - self.at;
        // The writer may still be rounding up a message we have already finished.
        let ready = self.tail.saturating_sub(self.taken);
        let bytes = until_wrap.min(usize::try_from(ready).unwrap_or(until_wrap));
        // SAFETY: `at` is below the capacity, so inside the data.
        let at = unsafe { self.memory.data.add(self.at) }.as_ptr();
        Ok(Window { at, bytes })
    }

    fn release(&mut self, bytes: usize) {
        self.advance(bytes);
        if self.taken - self.published >= self.memory.capacity as u64 / 8 {
            self.publish();
        }
    }

    unsafe fn read(&mut self, into: *mut u8, bytes: usize) -> Result<usize> {
        let mut done = 0;
        while done < bytes {
            let window = self.peek(bytes - done)?;
            let count = window.bytes.min(bytes - done);
            if count == 0 {
                break;
            }
            // SAFETY: the window holds `count` bytes that only the reader owns; the caller promises
            // `bytes` writable bytes.
            unsafe { std::ptr::copy_nonoverlapping(window.at, into.add(done), count) };
            self.release(count);
            done += count;
        }
        Ok(done)
    }

    fn end(&mut self) {
        let pad = self.taken.next_multiple_of(LINE) - self.taken;
        self.advance(usize::try_from(pad).unwrap_or(0));
        self.publish();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::link::doze::Doze;

    fn pair(capacity: usize) -> (RingTx, RingRx) {
        #[repr(align(128))]
        #[derive(Clone)]
        struct Block(#[expect(dead_code, reason = "only its bytes count")] [u8; 128]);
        let blocks = (CONTROL_BYTES + capacity).div_ceil(128);
        let memory: Arc<Box<[Block]>> = Arc::new(vec![Block([0; 128]); blocks].into());
        let at = NonNull::from(&memory[0]).cast::<u8>();
        // SAFETY: fresh, zero, aligned memory of the right size, kept alive by the Arc.
        let ring = unsafe { Memory::at(at, capacity, memory) };
        let doze = Arc::new(Doze::new().expect("doze"));
        let waker = Waker::to(doze);
        (RingTx::new(ring.clone(), Rank(1), waker.clone()), RingRx::new(ring, Rank(0), waker))
    }

    /// Messages of every length up to three rings keep their bytes, whichever way they are cut.
    #[test]
    fn messages_arrive_whole_and_in_order() {
        let (mut tx, mut rx) = pair(512);
        for length in [0usize, 1, 31, 32, 63, 64, 65, 200, 511, 512, 513, 1536] {
            let sent: Vec<u8> = (0..length).map(|i| (i * 7 + length).to_le_bytes()[0]).collect();
            let mut got = vec![0u8; length];
            let (mut out, mut inn) = (0, 0);
            while inn < length {
                let step = (length - out).min(97);
                // SAFETY: inside `sent`.
                out += unsafe { tx.write(sent.as_ptr().add(out), step) }.expect("write");
                if out == length {
                    tx.flush().expect("flush");
                }
                let step = (length - inn).min(41);
                // SAFETY: inside `got`.
                inn += unsafe { rx.read(got.as_mut_ptr().add(inn), step) }.expect("read");
            }
            rx.end();
            tx.end().expect("end");
            assert_eq!(sent, got);
        }
    }

    #[test]
    fn a_counter_from_nowhere_is_a_protocol_error() {
        let (mut tx, mut rx) = pair(512);
        tx.memory.control().tail.0.store(10_000, Ordering::Release);
        assert_eq!(rx.peek(1).expect_err("tail").code, Code::Protocol);
        tx.memory.control().head.0.store(10_000, Ordering::Release);
        assert_eq!(tx.window().expect_err("head").code, Code::Protocol);
    }

    #[test]
    fn two_threads_pass_a_megabyte() {
        let (mut tx, mut rx) = pair(4096);
        let data: Vec<u8> = (0..1u32 << 20).map(|i| (i % 251).to_le_bytes()[0]).collect();
        let copy = data.clone();
        let writer = std::thread::spawn(move || {
            let mut out = 0;
            while out < data.len() {
                // SAFETY: inside `data`.
                out +=
                    unsafe { tx.write(data.as_ptr().add(out), data.len() - out) }.expect("write");
                std::thread::yield_now();
            }
            tx.end().expect("end");
            tx
        });
        let mut got = vec![0u8; copy.len()];
        let mut inn = 0;
        while inn < got.len() {
            // SAFETY: inside `got`.
            inn += unsafe { rx.read(got.as_mut_ptr().add(inn), got.len() - inn) }.expect("read");
            std::thread::yield_now();
        }
        writer.join().expect("writer");
        assert_eq!(got, copy);
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use loom::cell::UnsafeCell;
    use loom::thread;

    use super::*;
    use crate::link::doze::Doze;

    const LINES: usize = 4;
    const CAPACITY: usize = LINES * 64;
    const MESSAGES: usize = 6;

    #[repr(C, align(128))]
    struct Ring {
        control: Control,
        data: [u8; CAPACITY],
    }

    /// For each line of data a cell whose accesses loom checks: two at once, or one that is not
    /// ordered after the other, is a failure.
    struct Shadow([UnsafeCell<usize>; LINES]);

    // SAFETY: that the accesses are ordered is what loom checks.
    unsafe impl Sync for Shadow {}
    // SAFETY: as above.
    unsafe impl Send for Shadow {}

    /// Six messages through a ring of four lines, both ends at full speed: no line is written while
    /// it is read or before, in every interleaving with at most two preemptions.
    #[test]
    fn loom_a_line_has_one_owner() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(2);
        model.max_branches = 20_000;
        model.check(|| {
            let counter = || Counter(AtomicU64::new(0));
            let control = Control { tail: counter(), head: counter() };
            let ring = Arc::new(Ring { control, data: [0; CAPACITY] });
            assert_eq!(size_of::<Control>(), CONTROL_BYTES);
            let at = NonNull::from(&*ring).cast::<u8>();
            // SAFETY: a control block and data of this size, kept alive by the Arc.
            let memory = unsafe { Memory::at(at, CAPACITY, ring) };
            let waker = Waker::to(Arc::new(Doze::new().expect("doze")));
            let mut tx = RingTx::new(memory.clone(), Rank(1), waker.clone());
            let mut rx = RingRx::new(memory, Rank(0), waker);
            let cells = || UnsafeCell::new(usize::MAX);
            let shadow = Arc::new(Shadow([cells(), cells(), cells(), cells()]));
            let seen = shadow.clone();
            let writer = thread::spawn(move || {
                for message in 0..MESSAGES {
                    while tx.window().expect("whole").bytes < 64 {
                        thread::yield_now();
                    }
                    // SAFETY: what loom checks.
                    shadow.0[message % LINES].with_mut(|cell| unsafe { *cell = message });
                    tx.commit(64).expect("whole");
                    tx.end().expect("whole");
                }
            });
            for message in 0..MESSAGES {
                while rx.peek(64).expect("whole").bytes < 64 {
                    thread::yield_now();
                }
                // SAFETY: what loom checks.
                let got = seen.0[message % LINES].with(|cell| unsafe { *cell });
                assert_eq!(got, message);
                rx.release(64);
                rx.end();
            }
            writer.join().expect("the writer");
        });
    }
}
