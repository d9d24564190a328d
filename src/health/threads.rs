//! Health of ranks that are threads of one process: a shared slate.
//!
//! Threads load and store each other's buffers. So a rank whose call fails may not return before
//! the others have let go of its memory: it raises the fault, then waits until no other thread is
//! at work. A thread marks each stretch of work (one poll of its engine), and begins none once it
//! sees a fault. The marks are plain stores; the one that fails pays for the order, with a barrier
//! that the kernel runs on every thread (membarrier(2)).

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crossbeam_utils::CachePadded;

use crate::call::Head;
use crate::error::Error;
use crate::health::{News, retold};
use crate::link::doze::Doze;
use crate::sync::{AtomicU32, Ordering, compiler_fence};
use crate::sys::barrier;
use crate::types::Rank;

/// A call that does not move, and the ranks it waits for.
type Ask = (Head, Box<[Rank]>);

/// What all threads of a world see.
#[derive(Debug)]
pub(crate) struct Slate {
    /// The first fault, and who told it.
    fault: OnceLock<(Rank, Error)>,
    /// 1 once there is a fault.
    faulty: AtomicU32,
    /// 1 for each rank that has left.
    left: Box<[AtomicU32]>,
    /// The call in which each rank waits, and for whom; counted in `asks`.
    asked: Mutex<Vec<Option<Ask>>>,
    asks: AtomicU32,
    /// 1 while a rank's engine is at work.
    working: Box<[CachePadded<AtomicU32>]>,
    dozes: Box<[Arc<Doze>]>,
}

/// One thread's view.
#[derive(Debug)]
pub(crate) struct Thread {
    slate: Arc<Slate>,
    me: Rank,
    /// Of the slate's `asks`, those looked at.
    heard: u32,
    /// Whether the kernel orders the others' marks for us; else every mark is a full fence.
    asymmetric: bool,
}

impl Thread {
    /// The views of all ranks, whose flags and bells are `dozes`.
    pub(crate) fn all(dozes: Vec<Arc<Doze>>) -> Vec<Self> {
        let world = dozes.len();
        let slate = Arc::new(Slate {
            fault: OnceLock::new(),
            faulty: AtomicU32::new(0),
            left: (0..world).map(|_| AtomicU32::new(0)).collect(),
            asked: Mutex::new(vec![None; world]),
            asks: AtomicU32::new(0),
            working: (0..world).map(|_| CachePadded::new(AtomicU32::new(0))).collect(),
            dozes: dozes.into(),
        });
        let asymmetric = barrier::register();
        let view = |r| Self { slate: slate.clone(), me: Rank::at(r), heard: 0, asymmetric };
        (0..world).map(view).collect()
    }

    /// Marks the beginning of work; false when there is a fault and none may begin.
    #[inline]
    pub(crate) fn begin(&self) -> bool {
        let mark = &self.slate.working[self.me.index()];
        // ORDERING: pairs with `quiesce`: of our mark and the failing thread's fault, at least one
        // side sees the other's. The barrier there (or the swap here) is the fence in between.
        if self.asymmetric {
            mark.store(1, Ordering::Relaxed);
            compiler_fence(Ordering::SeqCst);
        } else {
            mark.swap(1, Ordering::SeqCst);
        }
        if self.slate.faulty.load(Ordering::Relaxed) == 0 {
            return true;
        }
        self.end();
        false
    }

    /// Marks the end of work.
    #[inline]
    pub(crate) fn end(&self) {
        // ORDERING: release pairs with the acquire in `quiesce`: our stores come before.
        self.slate.working[self.me.index()].store(0, Ordering::Release);
    }

    /// Waits until no other thread works on anybody's buffers. There is a fault: none begins again.
    fn quiesce(&self) {
        if self.asymmetric {
            barrier::all_threads();
        }
        for (rank, mark) in self.slate.working.iter().enumerate() {
            // BOUND: one poll of the other's engine, which never blocks.
            while rank != self.me.index() && mark.load(Ordering::Acquire) == 1 {
                std::thread::yield_now();
            }
        }
    }

    pub(crate) fn watch(&mut self, news: &mut News) {
        if news.fault.is_none()
            && let Some((teller, error)) = self.slate.fault.get()
            && *teller != self.me
        {
            self.quiesce();
            news.fault = Some(retold(*teller, error.code, error.peer, &error.detail));
        }
        self.hear_asks(news);
        for (rank, left) in self.slate.left.iter().enumerate() {
            // ORDERING: acquire pairs with `leave`: what the rank wrote before leaving is seen.
            if left.load(Ordering::Acquire) == 1 && !news.left.contains(&Rank::at(rank)) {
                news.left.push(Rank::at(rank));
            }
        }
    }

    fn hear_asks(&mut self, news: &mut News) {
        // ORDERING: a hint; what it announces is read under the lock.
        let asks = self.slate.asks.load(Ordering::Relaxed);
        if asks == std::mem::replace(&mut self.heard, asks) {
            return;
        }
        let asked = self.slate.asked.lock().unwrap_or_else(PoisonError::into_inner);
        for (rank, ask) in asked.iter().enumerate() {
            if let Some((head, ranks)) = ask
                && ranks.contains(&self.me)
            {
                news.asks(Rank::at(rank), *head);
            }
        }
    }

    pub(crate) fn ask(&mut self, head: &Head, ranks: &[Rank]) {
        let mut asked = self.slate.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked[self.me.index()] = Some((*head, ranks.into()));
        drop(asked);
        self.slate.asks.fetch_add(1, Ordering::Relaxed);
        self.wake_all();
    }

    pub(crate) fn tell(&mut self, error: &Error) {
        // Later faults are consequences of the first.
        let _ = self.slate.fault.set((self.me, error.clone()));
        self.slate.faulty.store(1, Ordering::SeqCst);
        self.wake_all();
        self.quiesce();
    }

    pub(crate) fn leave(&mut self) {
        // ORDERING: release pairs with the acquire in `watch`.
        self.slate.left[self.me.index()].store(1, Ordering::Release);
        self.wake_all();
    }

    fn wake_all(&self) {
        self.slate.dozes.iter().for_each(|d| d.wake());
    }
}
