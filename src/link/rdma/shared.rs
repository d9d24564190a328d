//! A value that all ends of one rank's links have in common.

use std::cell::UnsafeCell;
use std::fmt;
use std::sync::Arc;

/// The value, by reference count. One thread at a time uses any of the ends that share it: they
/// belong to one [`crate::link::Links`], which its engine has by `&mut`. A lock would say the same
/// and cost two atomic operations for each look at a lane.
pub(super) struct Shared<T>(Arc<UnsafeCell<T>>);

// SAFETY: see `Shared::new`, whose caller promises that no two threads use the value at a time.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl<T> Shared<T> {
    /// Shares `value`.
    ///
    /// # Safety
    /// Whoever holds clones of it must see to it that one thread at a time calls [`Shared::with`],
    /// and never from inside another such call on the same value.
    pub(super) unsafe fn new(value: T) -> Self {
        Self(Arc::new(UnsafeCell::new(value)))
    }

    /// What `use_it` makes of the value.
    #[inline]
    pub(super) fn with<R>(&self, use_it: impl FnOnce(&mut T) -> R) -> R {
        // SAFETY: the promise given to `new`: no other reference is alive.
        use_it(unsafe { &mut *self.0.get() })
    }
}
