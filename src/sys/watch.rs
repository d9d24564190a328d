//! Pages that the program may give back: whether it has, since somebody began to watch them.
//!
//! A card that was told of pages keeps them, whatever the program does with the addresses: once
//! they are unmapped and mapped again, what the card reads and writes there is not the program's.
//! The kernel tells of that by userfaultfd(2): `munmap`, `mremap`, `madvise` that drops pages, and
//! mappings over others return only when somebody has read the event. A thread of its own reads
//! them.
//!
//! Owns the descriptor and that thread, for good, from the first [`Watch`] on. Invariant: events
//! are read, and what they say is noted, under the lock that [`Watch::holds`] takes. So when a
//! call that gives pages back has returned, nobody finds that they are still there. Under the
//! lock nothing is allocated or given back: the allocator may give back watched pages, which would
//! wait for the thread, which waits for the lock.
//!
//! Where the kernel does not have this or does not allow it, nothing can be watched.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use super::own;
use super::process::block_signals;
use crate::error::{Error, Result};

/// How many stretches of memory are watched at a time.
const SLOTS: usize = 4096;
/// Bytes of a page, at the least: ranges are given in pages.
const PAGE: usize = 4096;

// include/uapi/linux/userfaultfd.h; see userfaultfd(2), ioctl_userfaultfd(2).
const USER_MODE_ONLY: libc::c_int = 1;
const API: u64 = 0xAA;
const EVENTS: u64 = 1 << 2 | 1 << 3 | 1 << 6;
const MODE_WRITE_PROTECT: u64 = 2;
const UFFDIO_API: libc::Ioctl = 0xC018_AA3F;
const UFFDIO_REGISTER: libc::Ioctl = 0xC020_AA00;
const UFFDIO_UNREGISTER: libc::Ioctl = 0x8010_AA01;
const REMAP: u8 = 0x14;
const REMOVE: u8 = 0x15;
const UNMAP: u8 = 0x16;

#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct Range {
    start: u64,
    len: u64,
}

#[repr(C)]
struct Register {
    range: Range,
    mode: u64,
    ioctls: u64,
}

/// An event: of a remap the old and new address and the length, else first and last address.
#[repr(C)]
#[derive(Clone, Copy)]
struct Message {
    event: u8,
    _reserved: [u8; 7],
    words: [u64; 3],
}

const _: () = assert!(size_of::<Api>() == 24 && size_of::<Register>() == 32);
const _: () = assert!(size_of::<Message>() == 32);

/// A stretch that is watched, or was.
#[derive(Clone, Copy, Debug)]
struct Slot {
    from: u64,
    to: u64,
    taken: bool,
    gone: bool,
}

/// The process's watch.
#[derive(Debug)]
struct Watcher {
    fd: OwnedFd,
    /// A child that was forked has the descriptor, which tells of the parent's memory.
    process: u32,
    slots: Mutex<Box<[Slot]>>,
}

/// Memory that is watched as long as this lives.
#[derive(Debug)]
pub(crate) struct Watch {
    watcher: &'static Watcher,
    slot: usize,
}

impl Watch {
    /// Watches the pages that hold `bytes` bytes at `at`; `None` where that cannot be: memory of
    /// files, for one.
    pub(crate) fn new(at: usize, bytes: usize) -> Option<Self> {
        let watcher = Watcher::get()?;
        if !is_anonymous(at, at.checked_add(bytes)?) {
            return None;
        }
        let (from, to) = (at / PAGE * PAGE, at.checked_add(bytes)?.checked_next_multiple_of(PAGE)?);
        let (from, to) = (from as u64, to as u64);
        let mut slots = watcher.lock();
        let slot = slots.iter().position(|slot| !slot.taken)?;
        let range = Range { start: from, len: to - from };
        let mut register = Register { range, mode: MODE_WRITE_PROTECT, ioctls: 0 };
        if !watcher.control(UFFDIO_REGISTER, &mut register) {
            return None;
        }
        slots[slot] = Slot { from, to, taken: true, gone: false };
        Some(Self { watcher, slot })
    }

    /// Whether all of it is still there.
    pub(crate) fn holds(&self) -> bool {
        !self.watcher.lock()[self.slot].gone
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut slots = self.watcher.lock();
        let Slot { from, to, .. } = std::mem::replace(&mut slots[self.slot], Slot::FREE);
        let touches = |slot: &Slot| slot.taken && slot.from < to && from < slot.to;
        if !slots.iter().any(touches) {
            // Of pages that are gone, it fails.
            let _ =
                self.watcher.control(UFFDIO_UNREGISTER, &mut Range { start: from, len: to - from });
        }
    }
}

impl Slot {
    const FREE: Self = Self { from: 0, to: 0, taken: false, gone: false };
}

impl Watcher {
    /// The process's, made at first use.
    fn get() -> Option<&'static Self> {
        static ONE: OnceLock<Option<Watcher>> = OnceLock::new();
        let one = ONE.get_or_init(|| Self::new().ok()).as_ref()?;
        // The thread is started once the watcher has its place.
        static STARTED: OnceLock<bool> = OnceLock::new();
        let started = STARTED.get_or_init(|| {
            let thread = std::thread::Builder::new().name("unisono-memory".to_owned());
            thread.spawn(|| one.read_events()).is_ok()
        });
        (*started && one.process == std::process::id()).then_some(one)
    }

    fn new() -> Result<Self> {
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | USER_MODE_ONLY;
        // SAFETY: the call reads a plain integer.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
        let fd = own(i32::try_from(fd).unwrap_or(-1), "userfaultfd")?;
        let slots = Mutex::new(vec![Slot::FREE; SLOTS].into());
        let made = Self { fd, process: std::process::id(), slots };
        if !made.control(UFFDIO_API, &mut Api { api: API, features: EVENTS, ioctls: 0 }) {
            return Err(Error::last_os("userfaultfd"));
        }
        Ok(made)
    }

    fn lock(&self) -> MutexGuard<'_, Box<[Slot]>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request that reads and writes `argument`; whether it was carried out. An error would be
    /// allocated, which must not be under the lock.
    fn control<T>(&self, request: libc::Ioctl, argument: &mut T) -> bool {
        // SAFETY: each request above is passed its struct, which lives through the call.
        unsafe { libc::ioctl(self.fd.as_raw_fd(), request, &raw mut *argument) == 0 }
    }

    /// Notes what has gone, as long as the process lives.
    fn read_events(&self) {
        block_signals();
        let mut fd = libc::pollfd { fd: self.fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let empty = Message { event: 0, _reserved: [0; 7], words: [0; 3] };
        let mut messages = [empty; 16];
        // BOUND: none; each turn waits.
        loop {
            // SAFETY: one descriptor, which stays open.
            unsafe { libc::poll(&raw mut fd, 1, -1) };
            let mut slots = self.lock();
            let bytes = size_of_val(&messages);
            // SAFETY: the messages are ours, and any bytes are messages.
            let read =
                unsafe { libc::read(self.fd.as_raw_fd(), messages.as_mut_ptr().cast(), bytes) };
            let count = usize::try_from(read).unwrap_or(0) / size_of::<Message>();
            messages[..count].iter().for_each(|message| note(&mut slots, message));
        }
    }
}

/// Whether all of the process's mappings from `from` to `to` are its own and of no file: pages of
/// files and of memory that is shared may be dropped by other ways, of which nothing is told.
fn is_anonymous(from: usize, to: usize) -> bool {
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else { return false };
    let mut reached = from;
    for line in maps.lines() {
        let mut fields = line.split_ascii_whitespace();
        let Some((first, last)) = fields.next().and_then(|range| range.split_once('-')) else {
            return false;
        };
        let number = |text| usize::from_str_radix(text, 16);
        let (Ok(first), Ok(last)) = (number(first), number(last)) else { return false };
        if last <= reached {
            continue;
        }
        let private = fields.next().is_some_and(|access| access.ends_with('p'));
        let of_no_file = fields.nth(2) == Some("0");
        if first > reached || !private || !of_no_file {
            return false;
        }
        reached = last;
        if reached >= to {
            return true;
        }
    }
    false
}

/// Marks what a message says is gone.
fn note(slots: &mut [Slot], message: &Message) {
    let [first, second, third] = message.words;
    let (from, to) = match message.event {
        REMAP => (first, first.saturating_add(third)),
        REMOVE | UNMAP => (first, second),
        _ => return,
    };
    let touched = slots.iter_mut().filter(|slot| slot.taken && slot.from < to && from < slot.to);
    touched.for_each(|slot| slot.gone = true);
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::sys::memory::Pages;

    /// Fresh pages, written to, or `None` where nothing can be watched.
    fn watched(bytes: usize) -> Option<(Pages, Watch)> {
        let pages = Pages::new(bytes).expect("pages");
        let at = pages.at().as_ptr();
        // SAFETY: the pages are ours.
        unsafe { at.write_bytes(1, bytes) };
        let watch = Watch::new(at as usize, bytes);
        if watch.is_none() {
            println!("not watched: the kernel does not allow it");
        }
        Some((pages, watch?))
    }

    #[test]
    fn what_is_unmapped_is_gone_when_the_call_returns() {
        for _ in 0..100 {
            let Some((pages, watch)) = watched(1 << 20) else { return };
            assert!(watch.holds());
            drop(pages);
            assert!(!watch.holds());
        }
    }

    #[test]
    fn dropped_and_moved_pages_are_gone_and_others_are_not() {
        let Some((pages, whole)) = watched(8 * PAGE) else { return };
        let at = pages.at().as_ptr();
        let front = Watch::new(at as usize, 2 * PAGE).expect("as the whole");
        // SAFETY: the pages are ours; they read as zeros afterwards.
        let done =
            unsafe { libc::madvise(at.wrapping_add(4 * PAGE).cast(), PAGE, libc::MADV_DONTNEED) };
        assert_eq!(done, 0);
        assert!(!whole.holds() && front.holds());
        drop(whole);
        // Still watched: the range was not only the other's.
        // SAFETY: as above.
        let moved = unsafe { libc::mremap(at.cast(), PAGE, 2 * PAGE, libc::MREMAP_MAYMOVE) };
        assert_ne!(moved, libc::MAP_FAILED);
        assert!(!front.holds());
        // SAFETY: the pages are ours, from the call above.
        unsafe { libc::munmap(moved, 2 * PAGE) };
    }

    /// Its pages may be dropped through another mapping, or through the file.
    #[test]
    fn memory_that_is_shared_or_of_files_is_not_watched() {
        let segment = crate::sys::memory::Segment::create("unisono-test", 4 * PAGE).expect("one");
        assert!(Watch::new(segment.as_ptr() as usize, PAGE).is_none());
        let code = memory_that_is_shared_or_of_files_is_not_watched as fn() as usize;
        assert!(Watch::new(code, 16).is_none());
        assert!(!is_anonymous(0, PAGE), "nothing is mapped there");
    }

    #[test]
    fn threads_unmap_while_others_look() {
        let Some((_pages, watch)) = watched(PAGE) else { return };
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let (pages, watch) = watched(16 * PAGE).expect("as before");
                        drop(pages);
                        assert!(!watch.holds());
                    }
                });
            }
            (0..2000).for_each(|_| assert!(watch.holds()));
        });
    }
}
