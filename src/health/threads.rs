//! Health of ranks that are threads of one process: a shared slate.

use std::sync::{Arc, OnceLock};

use crate::error::Error;
use crate::health::{News, retold};
use crate::link::doze::Doze;
use crate::sync::{AtomicU32, Ordering};
use crate::types::Rank;

/// What all threads of a world see.
#[derive(Debug)]
pub(crate) struct Slate {
    /// The first fault, and who told it.
    fault: OnceLock<(Rank, Error)>,
    /// 1 for each rank that has left.
    left: Box<[AtomicU32]>,
    dozes: Box<[Arc<Doze>]>,
}

/// One thread's view.
#[derive(Debug)]
pub(crate) struct Thread {
    slate: Arc<Slate>,
    me: Rank,
}

impl Thread {
    /// The views of all ranks, whose flags and bells are `dozes`.
    pub(crate) fn all(dozes: Vec<Arc<Doze>>) -> Vec<Self> {
        let left = dozes.iter().map(|_| AtomicU32::new(0)).collect();
        let world = dozes.len();
        let slate = Arc::new(Slate { fault: OnceLock::new(), left, dozes: dozes.into() });
        (0..world).map(|r| Self { slate: slate.clone(), me: Rank::at(r) }).collect()
    }

    pub(crate) fn watch(&mut self, news: &mut News) {
        if news.fault.is_none()
            && let Some((teller, error)) = self.slate.fault.get()
            && *teller != self.me
        {
            news.fault = Some(retold(*teller, error.code, error.peer, &error.detail));
        }
        for (rank, left) in self.slate.left.iter().enumerate() {
            // ORDERING: acquire pairs with `leave`: what the rank wrote before leaving is seen.
            if left.load(Ordering::Acquire) == 1 && !news.left.contains(&Rank::at(rank)) {
                news.left.push(Rank::at(rank));
            }
        }
    }

    pub(crate) fn tell(&mut self, error: &Error) {
        // Later faults are consequences of the first.
        let _ = self.slate.fault.set((self.me, error.clone()));
        self.wake_all();
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
