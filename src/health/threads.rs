//! Health of ranks that are threads of one process: a shared slate.
//!
//! Threads load and store each other's buffers. So a rank whose call fails may not return before
//! the others have let go of its memory: it raises the fault, then waits until no other thread is
//! at work. A thread marks each stretch of work (one poll of its engine, or the few of a hurried
//! call), and begins none once it sees a fault. The marks are plain stores; the one that fails pays
//! for the order, with a barrier that the kernel runs on every thread (membarrier(2)).

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crossbeam_utils::CachePadded;

use crate::call::{Head, Tally};
use crate::error::{Code, Error};
use crate::health::{News, retold};
use crate::link::doze::Doze;
use crate::sync::{AtomicU32, Ordering, compiler_fence, fence};
use crate::sys::barrier;
use crate::types::Rank;

/// What a rank that waits tells.
#[derive(Debug)]
struct Asked {
    /// The collective in which it waits, if it is one.
    head: Option<Head>,
    /// It asks all ranks whether theirs is another, not only those it waits for.
    all: bool,
    /// Whom it waits for: nobody, when it goes on.
    awaited: Vec<Rank>,
}

impl Asked {
    fn new(world: usize) -> Self {
        Self { head: None, all: false, awaited: Vec::with_capacity(world) }
    }
}

/// What all threads of a world see.
#[derive(Debug)]
pub(crate) struct Slate {
    /// The first fault, and who told it.
    fault: OnceLock<(Rank, Error)>,
    /// 1 once there is a fault.
    faulty: AtomicU32,
    /// Set by each rank that has left, with what it called unless its communicator was broken.
    left: Box<[OnceLock<Option<Tally>>]>,
    /// What each rank that waits has told last; counted in `asks`.
    asked: Mutex<Vec<Asked>>,
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
            left: (0..world).map(|_| OnceLock::new()).collect(),
            asked: Mutex::new((0..world).map(|_| Asked::new(world)).collect()),
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
        // side sees the other's. The barrier there (or the fences) stand in between.
        if self.asymmetric {
            mark.store(1, Ordering::Relaxed);
            compiler_fence(Ordering::SeqCst);
        } else {
            mark.store(1, Ordering::Relaxed);
            fence(Ordering::SeqCst);
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
        // Whoever raised the fault may not have come so far as to say so to those who begin.
        self.slate.faulty.store(1, Ordering::SeqCst);
        // ORDERING: pairs with `begin`: who has not seen the store above is seen at work below.
        if self.asymmetric {
            barrier::all_threads();
        } else {
            fence(Ordering::SeqCst);
        }
        for (rank, mark) in self.slate.working.iter().enumerate() {
            // BOUND: a few polls of the other's engine, none of which blocks.
            while rank != self.me.index() && mark.load(Ordering::Acquire) == 1 {
                std::thread::yield_now();
            }
        }
    }

    pub(crate) fn watch(&mut self, news: &mut News) {
        if news.fault.is_none()
            && let Some((teller, error)) = self.slate.fault.get()
        {
            self.quiesce();
            news.fault = Some(retold(*teller, error));
        }
        self.hear_asks(news);
        for (rank, left) in self.slate.left.iter().enumerate() {
            if let Some(tally) = left.get()
                && !news.has_left(Rank::at(rank))
            {
                news.leaves(Rank::at(rank), *tally);
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
            news.stalls(Rank::at(rank), ask.awaited.iter().copied());
            if let Some(head) = ask.head
                && (ask.all || ask.awaited.contains(&self.me))
                && rank != self.me.index()
            {
                news.asks(Rank::at(rank), head);
            }
        }
    }

    pub(crate) fn ask(&mut self, head: Option<&Head>, awaited: &[Rank], all: bool) {
        let mut asked = self.slate.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let own = &mut asked[self.me.index()];
        (own.head, own.all) = (head.copied(), all);
        own.awaited.clear();
        own.awaited.extend_from_slice(awaited);
        drop(asked);
        self.slate.asks.fetch_add(1, Ordering::Relaxed);
        self.wake_all();
    }

    /// Takes back that this rank waits: to be seen when others look, which need not be now.
    pub(crate) fn go_on(&self) {
        let mut asked = self.slate.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked[self.me.index()].awaited.clear();
        drop(asked);
        self.slate.asks.fetch_add(1, Ordering::Relaxed);
    }

    /// Tells the others of `error`; then none of them works on our buffers any more.
    pub(crate) fn tell(&self, error: &Error) {
        // Later faults are consequences of the first.
        let _ = self.slate.fault.set((self.me, error.clone()));
        self.wake_all();
        self.quiesce();
    }

    /// This thread's work has panicked, and its buffers may go away with what unwinds.
    pub(crate) fn panicked(&self) {
        self.end();
        let text = format!("rank {} panicked", self.me);
        self.tell(&Error::new(Code::Panic, text).with_peer(self.me));
    }

    pub(crate) fn leave(&mut self, tally: Option<Tally>) {
        // A rank leaves once.
        let _ = self.slate.left[self.me.index()].set(tally);
        self.wake_all();
    }

    fn wake_all(&self) {
        self.slate.dozes.iter().for_each(|d| d.wake());
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;
    use crate::health::Health;
    use crate::types::Rank;

    fn views<const N: usize>(asymmetric: bool) -> [Thread; N] {
        let doze = || Arc::new(Doze::new().expect("doze"));
        let views = Thread::all((0..N).map(|_| doze()).collect());
        let views =
            views.into_iter().map(|v| Thread { asymmetric: asymmetric && v.asymmetric, ..v });
        views.collect::<Vec<_>>().try_into().expect("N of them")
    }

    /// A rank that has heard of a fault returns from its call, so nobody may begin from then on.
    #[test]
    fn none_begins_once_one_has_heard_of_a_fault() {
        for asymmetric in [true, false] {
            let [teller, mut hearer, third] = views(asymmetric);
            assert!(third.begin());
            third.end();
            // The teller is held up between raising its fault and saying so.
            let fault = Error::new(Code::Mismatch, "on purpose").with_seq(7);
            teller.slate.fault.set((teller.me, fault)).expect("the first");
            assert!(third.begin());
            third.end();
            let mut news = News::default();
            hearer.watch(&mut news);
            let heard = news.fault.expect("a fault");
            assert_eq!((heard.code, heard.seq), (Code::Mismatch, Some(7)));
            assert!(!third.begin());
        }
    }

    /// A panic in one rank's work is a fault like any other: nobody waits for the end of that work.
    #[test]
    fn a_panic_at_work_ends_the_work_and_is_told() {
        let [one, two] = views(true);
        let (one, mut two) = (Health::Threads(one), Health::Threads(two));
        let work = one.begin().expect("no fault");
        assert!(
            catch_unwind(AssertUnwindSafe(|| {
                let _at_work = work;
                panic!("on purpose");
            }))
            .is_err()
        );
        let mut news = News::default();
        two.watch(&mut news);
        let heard = news.fault.expect("a fault");
        assert_eq!((heard.code, heard.peer), (Code::Panic, Some(Rank(0))));
        assert!(one.begin().is_none() && two.begin().is_none());
    }
}
