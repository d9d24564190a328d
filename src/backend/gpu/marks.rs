//! What streams of the program wait for: words in memory that both sides see.
//!
//! A stream that has come to a call waits until the call's word has the call's number or a later
//! one. The words are used in turn, so a word is set again only after many other calls; and a
//! stream that still looks at it then finds a later number, and goes on as well.

use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::sync::atomic::AtomicU32; // of a word that the device looks at: not loom's

use crate::cuda::{Compare, Context, PinnedMemory, StreamRef};
use crate::error::Result;
use crate::sync::Ordering;

/// Words in turn: more calls than streams of a program have under way.
const WORDS: u32 = 1024;

const WORD: usize = size_of::<u32>();

/// A call's word, and the number that it gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark(u32);

/// The words of a communicator.
#[derive(Debug)]
pub(super) struct Marks {
    words: ManuallyDrop<PinnedMemory>,
    /// The last mark taken.
    last: u32,
}

impl Marks {
    /// # Errors
    /// No memory.
    pub(super) fn new(context: &Arc<Context>) -> Result<Self> {
        Ok(Self {
            words: ManuallyDrop::new(PinnedMemory::new(context, WORDS as usize * WORD)?),
            last: 0,
        })
    }

    /// Lets `stream` wait, where it is now, for a mark of its own.
    ///
    /// # Errors
    /// CUDA's own.
    pub(super) fn take(&mut self, stream: &StreamRef) -> Result<Mark> {
        let mark = self.last.wrapping_add(1);
        let at = self.words.device_address() + u64::from(mark % WORDS) * WORD as u64;
        // SAFETY: the words stay until the communicator goes, and every mark is set before.
        unsafe { stream.wait_value(at, mark, Compare::AtLeast)? };
        self.last = mark;
        Ok(Mark(mark))
    }

    /// Lets what waits for `mark` go on.
    pub(super) fn set(&self, Mark(mark): Mark) {
        // SAFETY: it is one of the words, which only the device looks at besides.
        let word = unsafe {
            AtomicU32::from_ptr(self.words.as_ptr().cast::<u32>().add((mark % WORDS) as usize))
        };
        // Calls may end in another order than they began, and a word never goes back.
        if mark.wrapping_sub(word.load(Ordering::Relaxed)).cast_signed() > 0 {
            // ORDERING: release: the device, which looks at the word, sees what was written before.
            word.store(mark, Ordering::Release);
        }
    }
}

impl Drop for Marks {
    fn drop(&mut self) {
        // Every mark is set, but a stream that has not come so far still looks at its word: then
        // the words stay, a page for good.
        if self.last == 0 {
            // SAFETY: dropped once, and not used afterwards.
            unsafe { ManuallyDrop::drop(&mut self.words) };
        }
    }
}
