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
        // least one side sees the other's.
        self.flag().store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Takes the announcement back.
    pub(crate) fn get_up(&self) {
        self.flag().store(0, Ordering::Relaxed);
        self.bell.drain();
    }

    /// Rings the bell if the rank sleeps.
    pub(crate) fn wake(&self) {
        // ORDERING: pairs with `lie_down`.
        fence(Ordering::SeqCst);
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
}
