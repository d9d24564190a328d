//! What is known of a call under way, shared by whoever waits and whoever drives.
//!
//! A cell is taken when a call is submitted and given back when its end has been reported. Cell 0
//! is the blocking call's: there is one at a time.

use std::sync::Mutex;
use std::time::{Duration, Instant};

pub(crate) use crate::backend::BLOCKING;
use crate::error::{Code, Error, Result};
use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// Requests that may be outstanding on a communicator at a time.
#[cfg(not(loom))]
pub(crate) const REQUESTS_MAX: usize = 4096;
#[cfg(loom)]
pub(crate) const REQUESTS_MAX: usize = 3;

const FREE: u32 = 0;
const PENDING: u32 = 1;
const ENDED: u32 = 2;
/// Nobody will ask: the cell is given back when the request ends.
const DETACHED: u32 = 3;

/// One request.
#[derive(Debug)]
pub(crate) struct Cell {
    state: AtomicU32,
    /// Calls of a group that have not ended.
    left: AtomicU32,
    /// Nanoseconds after the table's birth; `u64::MAX`: none.
    deadline: AtomicU64,
    error: Mutex<Option<Error>>,
}

/// All cells of a communicator.
#[derive(Debug)]
pub(crate) struct Table {
    cells: Box<[Cell]>,
    free: Mutex<Vec<u32>>,
    /// Pending cells, the blocking one included.
    pending: AtomicU32,
    born: Instant,
}

impl Table {
    pub(crate) fn new() -> Self {
        let cell = || Cell {
            state: AtomicU32::new(FREE),
            left: AtomicU32::new(0),
            deadline: AtomicU64::new(u64::MAX),
            error: Mutex::new(None),
        };
        let last = u32::try_from(REQUESTS_MAX).unwrap_or(u32::MAX);
        Self {
            cells: (0..REQUESTS_MAX).map(|_| cell()).collect(),
            free: Mutex::new((1..last).rev().collect()),
            pending: AtomicU32::new(0),
            born: Instant::now(),
        }
    }

    fn cell(&self, ticket: u32) -> &Cell {
        &self.cells[ticket as usize]
    }

    /// A ticket for a non-blocking call.
    pub(crate) fn take(&self) -> Result<u32> {
        lock(&self.free).pop().ok_or_else(|| {
            Error::new(Code::Limit, format!("{} requests are outstanding", REQUESTS_MAX - 1))
        })
    }

    /// Begins the request `ticket` of `calls` calls.
    pub(crate) fn begin(&self, ticket: u32, calls: u32, timeout: Option<Duration>) {
        let cell = self.cell(ticket);
        let at = timeout.map(|t| self.born.elapsed().saturating_add(t).as_nanos());
        let at = at.and_then(|at| u64::try_from(at).ok());
        cell.deadline.store(at.unwrap_or(u64::MAX), Ordering::Relaxed);
        cell.left.store(calls, Ordering::Relaxed);
        // ORDERING: as in `end`: of this and a listener's look, one sees the other.
        self.pending.fetch_add(1, Ordering::SeqCst);
        // ORDERING: release pairs with the acquire in `is_pending`: the fields come before.
        cell.state.store(PENDING, Ordering::Release);
    }

    /// One call of the request has ended; true when it was the last.
    pub(crate) fn end(&self, ticket: u32, result: Result<()>) -> bool {
        let cell = self.cell(ticket);
        if let Err(error) = result {
            lock(&cell.error).get_or_insert(error);
        }
        // ORDERING: acquire and release: the last to come sees the others' errors.
        if cell.left.fetch_sub(1, Ordering::AcqRel) != 1 {
            return false;
        }
        self.pending.fetch_sub(1, Ordering::SeqCst);
        // ORDERING: pairs with `is_pending`; of this and `detach`, the second to come gives the
        // cell back. Sequentially consistent like a listener's count and its look at the state: it
        // sees the end, or whoever tells of ends sees that it listens.
        let ended =
            cell.state.compare_exchange(PENDING, ENDED, Ordering::SeqCst, Ordering::Acquire);
        if ended.is_err() {
            self.give_back(ticket);
        }
        true
    }

    /// Ends every request, however many of its calls have not; for a backend that has lost count.
    pub(crate) fn end_all(&self, error: &Error) {
        for ticket in self.tickets().filter(|&t| self.is_pending(t)) {
            self.cell(ticket).left.store(1, Ordering::Relaxed);
            self.end(ticket, Err(error.clone()));
        }
    }

    fn tickets(&self) -> impl Iterator<Item = u32> + use<> {
        0..u32::try_from(self.cells.len()).unwrap_or(u32::MAX)
    }

    /// Gives back a ticket that was taken and not used.
    pub(crate) fn untake(&self, ticket: u32) {
        self.give_back(ticket);
    }

    /// Whether the request has not ended.
    pub(crate) fn is_pending(&self, ticket: u32) -> bool {
        // ORDERING: pairs with `end`: the result and its data are there.
        let state = self.cell(ticket).state.load(Ordering::SeqCst);
        state == PENDING || state == DETACHED
    }

    /// The result of a request that has ended; gives the ticket back.
    pub(crate) fn result(&self, ticket: u32) -> Result<()> {
        let error = lock(&self.cell(ticket).error).take();
        self.give_back(ticket);
        error.map_or(Ok(()), Err)
    }

    fn give_back(&self, ticket: u32) {
        let cell = self.cell(ticket);
        lock(&cell.error).take();
        cell.state.store(FREE, Ordering::Release);
        if ticket != BLOCKING {
            lock(&self.free).push(ticket);
        }
    }

    /// Nobody will ask for the request's end any more.
    pub(crate) fn detach(&self, ticket: u32) {
        let state = &self.cell(ticket).state;
        // ORDERING: see `end`.
        if state.compare_exchange(PENDING, DETACHED, Ordering::AcqRel, Ordering::Acquire).is_err() {
            self.give_back(ticket);
        }
    }

    /// Requests that have not ended.
    pub(crate) fn pending(&self) -> u32 {
        self.pending.load(Ordering::SeqCst)
    }

    /// When the request must have ended.
    pub(crate) fn deadline(&self, ticket: u32) -> Option<Instant> {
        let at = self.cell(ticket).deadline.load(Ordering::Relaxed);
        (at != u64::MAX).then(|| self.born + Duration::from_nanos(at))
    }

    /// Puts a pending request's deadline off.
    pub(crate) fn extend(&self, ticket: u32, until: Instant) {
        let at = u64::try_from(until.saturating_duration_since(self.born).as_nanos());
        self.cell(ticket).deadline.store(at.unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// The earliest deadline of a pending request, with its ticket.
    pub(crate) fn next_deadline(&self) -> Option<(Instant, u32)> {
        let pending = self.tickets().filter(|&t| self.is_pending(t));
        pending.filter_map(|t| self.deadline(t).map(|d| (d, t))).min()
    }
}

/// A lock whose holder panicked guards plain values: go on with them.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(all(test, loom))]
mod loom_tests {
    use std::sync::Arc;

    use loom::cell::UnsafeCell;
    use loom::thread;

    use super::*;

    /// What the call has written, whose accesses loom checks.
    struct Data(UnsafeCell<u32>);

    // SAFETY: that the accesses are ordered is what loom checks.
    unsafe impl Sync for Data {}
    // SAFETY: as above.
    unsafe impl Send for Data {}

    /// Who sees that a request has ended sees what the call has written, and its error.
    #[test]
    fn loom_an_end_brings_the_data() {
        loom::model(|| {
            let table = Arc::new(Table::new());
            let data = Arc::new(Data(UnsafeCell::new(0)));
            let ticket = table.take().expect("a ticket");
            table.begin(ticket, 1, None);
            let (theirs, written) = (table.clone(), data.clone());
            let driver = thread::spawn(move || {
                // SAFETY: what loom checks.
                written.0.with_mut(|d| unsafe { *d = 7 });
                theirs.end(ticket, Err(Error::new(Code::Aborted, "on purpose")));
            });
            while table.is_pending(ticket) {
                thread::yield_now();
            }
            // SAFETY: what loom checks.
            assert_eq!(data.0.with(|d| unsafe { *d }), 7);
            assert_eq!(table.result(ticket).expect_err("its error").code, Code::Aborted);
            driver.join().expect("the driver");
        });
    }

    /// A request dropped while it ends gives its ticket back once: not twice, and not never.
    #[test]
    fn loom_a_dropped_request_gives_its_ticket_back_once() {
        loom::model(|| {
            let table = Arc::new(Table::new());
            let ticket = table.take().expect("a ticket");
            table.begin(ticket, 1, None);
            let theirs = table.clone();
            let driver = thread::spawn(move || theirs.end(ticket, Ok(())));
            table.detach(ticket);
            driver.join().expect("the driver");
            assert_eq!(table.pending(), 0);
            let mut free = lock(&table.free).clone();
            free.sort_unstable();
            assert_eq!(free, [1, 2]);
        });
    }

    /// Calls of one request that end on two threads end it once, with an error if one has failed.
    #[test]
    fn loom_a_group_ends_once() {
        loom::model(|| {
            let table = Arc::new(Table::new());
            let ticket = table.take().expect("a ticket");
            table.begin(ticket, 2, None);
            let theirs = table.clone();
            let other = thread::spawn(move || {
                theirs.end(ticket, Err(Error::new(Code::Aborted, "on purpose")))
            });
            let mine = table.end(ticket, Ok(()));
            let others = other.join().expect("the other");
            assert!(mine != others, "one of them is the last");
            assert!(!table.is_pending(ticket));
            assert_eq!(table.result(ticket).expect_err("its error").code, Code::Aborted);
        });
    }
}
