//! The same call as the last: programs make it again and again, and it need not be checked, nor
//! thought about, each time.

use std::ops::{Deref, DerefMut};

use crate::backend::Backend;
use crate::call::Call;
use crate::engine::Known;
use crate::error::Result;
use crate::types::Collective;

/// All that tells one call of a communicator from another, as the caller gave it: for calls without
/// lists of counts, and without a factor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) send: *const u8,
    pub(crate) recv: *mut u8,
    pub(crate) count: u64,
    pub(crate) root: i64,
    /// Numbers of the element type and of the operation, right or not: a key of a call that was
    /// found right has right ones.
    pub(crate) dtype: i32,
    pub(crate) op: i32,
    pub(crate) collective: Collective,
}

impl Key {
    /// The key, if calls of its kind have one.
    #[inline]
    pub(crate) fn of_plain(self) -> Option<Self> {
        let kind = self.collective;
        (!kind.ragged() && !kind.point_to_point()).then_some(self)
    }
}

// SAFETY: the addresses are compared, and nothing else is done with them.
unsafe impl Send for Key {}

/// A backend, and the last call that was made on it by its key, with what the backend knows of it.
#[derive(Debug)]
pub(crate) struct Driven {
    backend: Box<dyn Backend>,
    last: Option<(Key, Call, Known)>,
}

impl Driven {
    pub(crate) fn new(backend: Box<dyn Backend>) -> Self {
        Self { backend, last: None }
    }

    /// Knows no last call.
    pub(crate) fn forget(&mut self) {
        self.last = None;
    }

    /// The backend, and the call with this key: the last one if it has it, else what `prepare`
    /// makes.
    ///
    /// # Errors
    /// Those of `prepare`.
    #[inline]
    pub(crate) fn again(
        &mut self,
        key: Key,
        prepare: impl FnOnce() -> Result<Call>,
    ) -> Result<(&mut dyn Backend, &Call, &mut Known)> {
        let same = self.last.as_ref().is_some_and(|last| last.0 == key);
        let (_, call, known) = match (same, &mut self.last) {
            (true, Some(last)) => last,
            (_, other) => other.insert((key, prepare()?, Known::default())),
        };
        Ok((&mut *self.backend, call, known))
    }
}

impl Deref for Driven {
    type Target = dyn Backend;

    fn deref(&self) -> &Self::Target {
        &*self.backend
    }
}

impl DerefMut for Driven {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut *self.backend
    }
}
