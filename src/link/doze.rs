//! Waking a rank that sleeps in the kernel, at no cost while it does not.
//!
//! A rank that has polled in vain sets its flag, polls once more, and sleeps on its bell. Whoever
//! gives it something to do looks at the flag afterwards and rings the bell only when it is set.
//! Flag first, then look: either the sleeper sees the data or the waker sees the flag.

use std::ptr::NonNull;
use std::sync::Arc;

use crate::error::Result;
use crate::sync::{AtomicU32, Ordering, fence};
use crate::sys::bell::Bell;

/// The flag, as it stands in shared memory: 0 awake, 1 asleep.
pub(crate) type Flag = AtomicU32;

/// One rank's flag and bell.
#[derive(Debug)]
pub(crate) struct Doze {
    flag: NonNull<Flag>,
    bell: Bell,
    /// Owns the flag's memory.
    _keep: Arc<dyn std::any::Any + Send + Sync>,
}

// SAFETY: the flag is an atomic in memory that `_keep` keeps alive; the bell is a descriptor.
unsafe impl Send for Doze {}
// SAFETY: as above; every method takes `&self` and is atomic.
unsafe impl Sync for Doze {}

impl Doze {
    /// A flag of its own, for ranks of one process.
    pub(crate) fn new() -> Result<Self> {
        let flag = Arc::new(Flag::new(0));
        let at = NonNull::from(&*flag);
        Ok(Self { flag: at, bell: Bell::new()?, _keep: flag })
    }

    /// The flag at `flag`, in memory that `keep` keeps alive.
    ///
    /// # Safety
    /// `flag` must be aligned, valid as long as `keep` lives, and only ever used as a [`Flag`].
    pub(crate) unsafe fn at(
        flag: NonNull<Flag>,
        bell: Bell,
        keep: Arc<dyn std::any::Any + Send + Sync>,
    ) -> Self {
        Self { flag, bell, _keep: keep }
    }

    fn flag(&self) -> &Flag {
        // SAFETY: valid while `_keep` lives.
        unsafe { self.flag.as_ref() }
    }

    /// The bell to sleep on.
    pub(crate) fn bell(&self) -> &Bell {
        &self.bell
    }

    /// Announces sleep. Poll once more afterwards, and sleep only if that was in vain.
    pub(crate) fn lie_down(&self) {
        // ORDERING: the fence pairs with the one in `wake`: of our flag and the waker's data, at
        // least one side sees the other's. A swap, as in `get_up`.
        self.flag().swap(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Takes the announcement back.
    pub(crate) fn get_up(&self) {
        // ORDERING: a swap, so that it stands in one order with the wakers' swaps: one that took
        // our announcement comes before it, and cannot take the next.
        self.flag().swap(0, Ordering::Relaxed);
        self.bell.drain();
    }

    /// Rings the bell if the rank sleeps.
    pub(crate) fn wake(&self) {
        // ORDERING: pairs with `lie_down`.
        fence(Ordering::SeqCst);
        self.wake_fenced();
    }

    fn wake_fenced(&self) {
        if self.flag().load(Ordering::Relaxed) == 1 && self.flag().swap(0, Ordering::Relaxed) == 1 {
            self.bell.ring();
        }
    }
}

/// Wakes one rank.
#[derive(Clone, Debug)]
pub(crate) struct Waker(Arc<Doze>);

impl Waker {
    pub(crate) fn to(doze: Arc<Doze>) -> Self {
        Self(doze)
    }

    /// Call after giving the rank something to see.
    pub(crate) fn wake(&self) {
        self.0.wake();
    }

    /// Call after giving all these ranks something to see.
    pub(crate) fn wake_all<'a>(wakers: impl Iterator<Item = &'a Self>) {
        // ORDERING: as in [`Doze::wake`]: one fence stands before every look.
        fence(Ordering::SeqCst);
        wakers.for_each(|waker| waker.0.wake_fenced());
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use loom::thread;

    use super::*;

    /// Whoever lies down either sees what was given to it before or is rung: in every interleaving.
    #[test]
    fn loom_no_wake_up_is_lost() {
        loom::model(|| {
            let doze = Arc::new(Doze::new().expect("doze"));
            let gift = Arc::new(AtomicU32::new(0));
            let (theirs, given) = (doze.clone(), gift.clone());
            let waker = thread::spawn(move || {
                given.store(1, Ordering::Release);
                theirs.wake();
            });
            doze.lie_down();
            let seen = gift.load(Ordering::Acquire) == 1;
            waker.join().expect("the waker");
            assert!(seen || doze.bell().drain(), "asleep, and nobody rings");
        });
    }

    /// The same with two wakers: both gifts are seen or the bell has rung.
    #[test]
    fn loom_two_wakers_lose_nothing() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            let doze = Arc::new(Doze::new().expect("doze"));
            let gift = Arc::new(AtomicU32::new(0));
            let wakers: Vec<_> = (0..2)
                .map(|_| {
                    let (theirs, given) = (doze.clone(), gift.clone());
                    thread::spawn(move || {
                        given.fetch_add(1, Ordering::AcqRel);
                        theirs.wake();
                    })
                })
                .collect();
            doze.lie_down();
            let seen = gift.load(Ordering::Acquire) == 2;
            for waker in wakers {
                waker.join().expect("a waker");
            }
            assert!(seen || doze.bell().drain(), "asleep, and nobody rings");
        });
    }

    /// Up and down again: a bell of the first sleep does not make the second one deaf.
    #[test]
    fn loom_the_second_sleep_is_woken_too() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            let doze = Arc::new(Doze::new().expect("doze"));
            let gift = Arc::new(AtomicU32::new(0));
            let (theirs, given) = (doze.clone(), gift.clone());
            let waker = thread::spawn(move || {
                for _ in 0..2 {
                    given.fetch_add(1, Ordering::AcqRel);
                    theirs.wake();
                }
            });
            doze.lie_down();
            let first = gift.load(Ordering::Acquire);
            doze.get_up();
            doze.lie_down();
            let second = gift.load(Ordering::Acquire);
            waker.join().expect("the waker");
            assert!(first <= second);
            assert!(second == 2 || doze.bell().drain(), "asleep, and nobody rings");
        });
    }
}
