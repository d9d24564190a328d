//! Handles: what a C program holds, checked at every use.
//!
//! A communicator's handle points to a [`Block`] that is never freed and never used again:
//! destroying the communicator empties it, so a later use finds a tombstone and gets
//! `INVALID_HANDLE`. Blocks of the dead are chained, only so that leak checkers see where they are;
//! nothing reads the chain.
//!
//! A request's handle is the address of a 64-byte [`Cell`] with the cell's generation in its low
//! six bits. Cells belong to their communicator's block, and are used again: a handle kept too long
//! meets another generation (all but one in 64 times) and gets `INVALID_HANDLE`.
//!
//! So 128 bytes stay for each communicator ever destroyed, and its cells: 16 at the first request,
//! twice as many whenever those do not suffice, with 8 bytes each in lists.
//!
//! Thread rule: all of it from any thread. Whoever uses a communicator is counted; it is only
//! emptied by its only user. Whoever uses a request has it alone.

use std::cell::UnsafeCell;
use std::ops::{Deref, DerefMut};
use std::ptr;
use std::sync::Mutex;
use std::sync::atomic::AtomicPtr;
use std::time::{Duration, Instant};

use crate::capi::op::Ops;
use crate::comm::{Communicator, Request, lock};
use crate::error::{Code, Error, Result};
use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// One rank's place in a group of ranks. Opaque.
#[derive(Debug)]
pub struct Comm {
    _opaque: [u8; 0],
}

/// A call in progress. Opaque.
#[derive(Debug)]
pub struct RequestHandle {
    _opaque: [u8; 0],
}

const COMM_MAGIC: u64 = 0x6d6d_6f63_6f73_696e;
const CELL_MAGIC: u64 = 0x7473_6571_6572_696e;
/// Set in [`Block::state`] while the communicator lives; the rest counts its users.
const LIVE: u64 = 1 << 63;
/// How long a destroy waits for threads that are inside a call that does not block.
const LEAVE: Duration = Duration::from_millis(10);
/// What stays of a communicator; the head of the C header says so, too.
const BLOCK_BYTES: usize = 128;
/// No handle is below the first page.
const FIRST_PAGE: usize = 4096;

/// What a live handle stands for.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) comm: Communicator,
    pub(crate) ops: Mutex<Ops>,
}

/// The memory behind a communicator's handle.
#[derive(Debug)]
#[repr(C, align(64))]
struct Block {
    magic: u64,
    state: AtomicU64,
    /// On the heap, so that it goes with the communicator.
    inner: UnsafeCell<Option<Box<Inner>>>,
    cells: Cells,
    /// The tombstone laid before this one.
    before: AtomicPtr<Self>,
}

// SAFETY: `inner` changes hands by `state`: shared while LIVE, its taker's alone afterwards; the
// rest is atomic or locked.
unsafe impl Sync for Block {}

/// Where the chain of tombstones begins.
static TOMBSTONES: AtomicPtr<Block> = AtomicPtr::new(ptr::null_mut());

/// A communicator in use.
#[derive(Debug)]
pub(crate) struct Held {
    block: &'static Block,
}

impl Deref for Held {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        // SAFETY: `hold` has seen LIVE and counted us; it is emptied by its only user.
        let inner = unsafe { &*self.block.inner.get() };
        inner.as_ref().expect("a live handle is full")
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // ORDERING: release pairs with the acquire in `take`: our use comes before its end.
        self.block.state.fetch_sub(1, Ordering::Release);
    }
}

/// A new handle.
pub(crate) fn give(comm: Communicator) -> *mut Comm {
    let inner = Inner { comm, ops: Mutex::new(Ops::default()) };
    let block = Box::new(Block {
        magic: COMM_MAGIC,
        state: AtomicU64::new(LIVE),
        inner: UnsafeCell::new(Some(Box::new(inner))),
        cells: Cells::default(),
        before: AtomicPtr::new(ptr::null_mut()),
    });
    ptr::from_mut(Box::leak(block)).cast()
}

fn wrong(what: &str, at: usize, why: &str) -> Error {
    Error::new(Code::InvalidHandle, format!("{what} {at:#x} {why}"))
}

/// Uses the communicator of a handle.
pub(crate) fn hold(comm: *const Comm) -> Result<Held> {
    if comm.is_null() {
        return Err(Error::new(Code::NullPointer, "comm"));
    }
    let block = comm.cast::<Block>();
    if !block.is_aligned() || block.addr() < FIRST_PAGE {
        return Err(wrong("communicator", block.addr(), "was never one"));
    }
    // SAFETY: blocks are never freed. That a foreign address can be read is the caller's promise.
    let block = unsafe { &*block };
    if block.magic != COMM_MAGIC {
        return Err(wrong("communicator", comm.addr(), "was never one"));
    }
    // ORDERING: acquire: what the maker wrote is seen.
    if block.state.fetch_add(1, Ordering::Acquire) & LIVE == 0 {
        block.state.fetch_sub(1, Ordering::Release);
        return Err(wrong("communicator", comm.addr(), "is destroyed"));
    }
    Ok(Held { block })
}

/// Takes the communicator away from its handle.
pub(crate) fn take(comm: *mut Comm) -> Result<Communicator> {
    let held = hold(comm)?;
    let until = Instant::now() + LEAVE;
    // ORDERING: acquire pairs with the release of users that have left.
    while held.block.state.compare_exchange(LIVE | 1, 1, Ordering::Acquire, Ordering::Relaxed)
        != Ok(LIVE | 1)
    {
        // Threads that were inside at the fork do not exist in the child.
        if held.comm.is_copy() {
            held.block.state.store(1, Ordering::Relaxed);
            break;
        }
        // Another thread may have been faster.
        if held.block.state.load(Ordering::Relaxed) & LIVE == 0 {
            return Err(wrong("communicator", comm.addr(), "is destroyed"));
        }
        if Instant::now() >= until {
            let text = "another thread is inside a call on the communicator to be destroyed";
            return Err(Error::new(Code::Busy, text));
        }
        std::thread::yield_now();
    }
    // SAFETY: LIVE is gone and we were the only user.
    let inner = unsafe { (*held.block.inner.get()).take() };
    let block = ptr::from_ref(held.block).cast_mut();
    let mut before = TOMBSTONES.load(Ordering::Relaxed);
    // BOUND: fails only when another thread has got ahead.
    loop {
        held.block.before.store(before, Ordering::Relaxed);
        match TOMBSTONES.compare_exchange_weak(before, block, Ordering::Release, Ordering::Relaxed)
        {
            Ok(_) => break,
            Err(now) => before = now,
        }
    }
    Ok(inner.expect("a live handle is full").comm)
}

const FREE: u32 = 0;
const READY: u32 = 1;
const USED: u32 = 2;
/// [`Cell::state`] is a generation above one of the three.
const GENERATION: u32 = 2;
/// Generations a handle tells apart: what fits below a cell's alignment.
const TAGS: usize = 64;

/// The memory behind a request's handle.
#[derive(Debug)]
#[repr(C, align(64))]
struct Cell {
    magic: u64,
    state: AtomicU32,
    block: &'static Block,
    request: UnsafeCell<Option<Request>>,
}

const _: () = assert!(size_of::<Cell>() == TAGS && align_of::<Cell>() == TAGS);
const _: () = assert!(size_of::<Block>() == BLOCK_BYTES && align_of::<Block>() == TAGS);

/// A communicator's cells.
#[derive(Debug, Default)]
struct Cells(Mutex<Slab>);

#[derive(Debug, Default)]
struct Slab {
    /// Never freed before the process ends.
    chunks: Vec<&'static [Cell]>,
    free: Vec<&'static Cell>,
}

// SAFETY: a cell's request belongs to whoever has moved its state to USED, or from FREE.
unsafe impl Sync for Cell {}

impl Held {
    /// A new handle for a request of this communicator.
    pub(crate) fn give_request(&self, request: Request) -> *mut RequestHandle {
        let mut slab = lock(&self.block.cells.0);
        if slab.free.is_empty() {
            let count = slab.chunks.last().map_or(16, |c| 2 * c.len());
            let cell = |_| Cell {
                magic: CELL_MAGIC,
                state: AtomicU32::new(FREE),
                block: self.block,
                request: UnsafeCell::new(None),
            };
            let chunk: &'static [Cell] = Box::leak((0..count).map(cell).collect());
            slab.chunks.push(chunk);
            slab.free.extend(chunk);
        }
        let cell = slab.free.pop().expect("just filled");
        drop(slab);
        // SAFETY: a free cell that was taken off the list is ours alone.
        unsafe { *cell.request.get() = Some(request) };
        let generation = cell.state.load(Ordering::Relaxed) >> GENERATION;
        // ORDERING: release pairs with the acquire in `hold_request`.
        cell.state.store(generation << GENERATION | READY, Ordering::Release);
        let at = ptr::from_ref(cell).cast_mut().cast::<u8>();
        at.wrapping_add(generation as usize % TAGS).cast()
    }
}

/// A request in use by this thread alone.
#[derive(Debug)]
pub(crate) struct HeldRequest {
    cell: &'static Cell,
    generation: u32,
}

/// Uses the request of a handle; `index` is its place in a list, for the error.
pub(crate) fn hold_request(handle: *mut RequestHandle, index: usize) -> Result<HeldRequest> {
    let tag = handle.addr() % TAGS;
    let cell = handle.cast::<u8>().wrapping_sub(tag).cast::<Cell>();
    let wrong = |why| wrong(&format!("request {index}"), handle.addr(), why);
    if cell.addr() < FIRST_PAGE {
        return Err(wrong("was never one"));
    }
    // SAFETY: cells are never freed. That a foreign address can be read is the caller's promise.
    let cell = unsafe { &*cell };
    if cell.magic != CELL_MAGIC {
        return Err(wrong("was never one"));
    }
    let state = cell.state.load(Ordering::Relaxed);
    let generation = state >> GENERATION;
    if generation as usize % TAGS != tag || state & 3 == FREE {
        return Err(wrong("has been reported"));
    }
    let ready = generation << GENERATION | READY;
    let used = generation << GENERATION | USED;
    // ORDERING: acquire pairs with the release in `give_request` and in `drop`.
    match cell.state.compare_exchange(ready, used, Ordering::Acquire, Ordering::Relaxed) {
        Ok(_) => Ok(HeldRequest { cell, generation }),
        Err(_) => {
            let text = format!("request {index} is being waited for elsewhere, or is listed twice");
            Err(Error::new(Code::Busy, text))
        }
    }
}

impl HeldRequest {
    /// The request's communicator, if it lives.
    fn owner(&self) -> Option<Held> {
        hold(ptr::from_ref(self.cell.block).cast()).ok()
    }

    /// Keeps a failed request's error on its communicator, if that lives.
    pub(crate) fn note<T>(&self, result: Result<T>) -> Result<T> {
        match self.owner() {
            Some(held) => held.comm.note(result),
            None => result,
        }
    }

    /// Breaks the request's communicator, if that lives.
    pub(crate) fn abort(&self) {
        if let Some(held) = self.owner() {
            held.comm.abort();
        }
    }
}

impl Deref for HeldRequest {
    type Target = Request;

    fn deref(&self) -> &Request {
        // SAFETY: USED makes the cell ours.
        unsafe { (*self.cell.request.get()).as_ref() }.expect("a request in use is full")
    }
}

impl DerefMut for HeldRequest {
    fn deref_mut(&mut self) -> &mut Request {
        // SAFETY: USED makes the cell ours.
        unsafe { (*self.cell.request.get()).as_mut() }.expect("a request in use is full")
    }
}

impl Drop for HeldRequest {
    fn drop(&mut self) {
        if !self.reported() {
            let ready = self.generation << GENERATION | READY;
            // ORDERING: release pairs with the acquire in `hold_request`.
            self.cell.state.store(ready, Ordering::Release);
            return;
        }
        // SAFETY: USED makes the cell ours.
        unsafe { *self.cell.request.get() = None };
        let next = self.generation.wrapping_add(1) & (u32::MAX >> GENERATION);
        self.cell.state.store(next << GENERATION | FREE, Ordering::Release);
        lock(&self.cell.block.cells.0).free.push(self.cell);
    }
}
