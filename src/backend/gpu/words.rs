//! Words in pinned memory by which streams and this backend wait for each other.
//!
//! A *mark* is a word that a stream waits for and the host writes; a *flag* one that a stream
//! writes and the host looks at. Both are numbers that only grow, in rings of words: a word that
//! has been passed by one number serves a later one, and never goes back. So neither side makes a
//! call of CUDA's to see or to say that something is done.
//!
//! ```text
//! page:   WORDS marks | WORDS flags
//! ```
//!
//! A page goes when all streams have passed it. One that a stream still looks at, when its
//! communicator ends, is kept for the next communicator of the context, whose numbers go on where
//! these end.

use std::collections::VecDeque;
use std::sync::atomic::AtomicU32; // of words that the device looks at: not loom's
use std::sync::{Arc, Mutex, PoisonError};

use crate::cuda::{Compare, Context, Event, PinnedMemory, StreamRef, Timing};
use crate::error::{Code, Error, Result};
use crate::sync::Ordering;

/// More than calls have places in streams at a time.
const WORDS: u32 = 2048;
const WORD: usize = size_of::<u32>();
/// Streams that are known to have been used; of more the page is kept.
const STREAMS_MAX: usize = 16;

/// What calls with one place in a stream wait for together: the number of a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark(u32);

/// Set when a stream comes to a place: the number of a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Flag(u32);

/// A page, and the last numbers that were used.
#[derive(Debug)]
struct Page {
    words: PinnedMemory,
    marks: u32,
    flags: u32,
}

/// Pages that some stream may still look at, by their contexts.
static KEPT: Mutex<Vec<(usize, Page)>> = Mutex::new(Vec::new());

/// The words of a communicator.
#[derive(Debug)]
pub(super) struct Words {
    context: Arc<Context>,
    /// `None` until something has its place in a stream.
    page: Option<Page>,
    /// Marks that are not set, oldest first, and how many calls each waits for.
    open: VecDeque<(Mark, usize)>,
    /// Streams by their handles, each with what comes after its last wait.
    passed: Vec<(usize, Event)>,
    /// There were more.
    crowded: bool,
}

impl Words {
    pub(super) fn new(context: &Arc<Context>) -> Self {
        let (open, passed) = (VecDeque::new(), Vec::new());
        Self { context: context.clone(), page: None, open, passed, crowded: false }
    }

    fn page(&mut self) -> Result<&mut Page> {
        if self.page.is_none() {
            let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
            let own = kept.iter().position(|(context, _)| *context == self.context.id());
            let page = match own {
                Some(index) => kept.swap_remove(index).1,
                None => {
                    let words = PinnedMemory::new(&self.context, 2 * WORDS as usize * WORD)?;
                    Page { words, marks: 0, flags: 0 }
                }
            };
            self.page = Some(page);
        }
        self.page.as_mut().ok_or_else(|| Error::new(Code::Internal, "no page of words"))
    }

    /// Lets `stream` write a flag where it is now.
    ///
    /// # Errors
    /// CUDA's own; no memory.
    pub(super) fn flag(&mut self, stream: &StreamRef) -> Result<Flag> {
        let page = self.page()?;
        let flag = page.flags.wrapping_add(1);
        // SAFETY: the page stays until the stream has passed it.
        unsafe { stream.write_value(page.at(WORDS + flag % WORDS), flag)? };
        page.flags = flag;
        self.pass(stream)?;
        Ok(Flag(flag))
    }

    /// Whether the stream has come to the place of `flag`.
    pub(super) fn is_up(&self, Flag(flag): Flag) -> bool {
        // ORDERING: acquire: what the stream did before is seen.
        let seen = |page: &Page| page.word(WORDS + flag % WORDS).load(Ordering::Acquire);
        self.page.as_ref().is_some_and(|page| seen(page).wrapping_sub(flag).cast_signed() >= 0)
    }

    /// Lets `stream` wait, where it is now, for the ends of so many calls.
    ///
    /// # Errors
    /// `LIMIT` where too many are waited for; CUDA's own.
    pub(super) fn mark(&mut self, stream: &StreamRef, calls: usize) -> Result<Mark> {
        if self.open.len() >= WORDS as usize - 1 {
            let text = format!("{} places in streams are waited for", self.open.len());
            return Err(Error::new(Code::Limit, text));
        }
        let oldest = self.open.front().map(|(mark, _)| mark.0);
        let page = self.page()?;
        let mark = page.marks.wrapping_add(1);
        if oldest.is_some_and(|oldest| mark.wrapping_sub(oldest) >= WORDS) {
            // Its word is still waited for by the oldest.
            return Err(Error::new(Code::Limit, "a place in a stream is too old"));
        }
        // SAFETY: the page stays until the stream has passed it, and every mark is set before.
        unsafe { stream.wait_value(page.at(mark % WORDS), mark, Compare::AtLeast)? };
        page.marks = mark;
        self.open.push_back((Mark(mark), calls));
        self.pass(stream)?;
        Ok(Mark(mark))
    }

    /// Notes how far `stream` looks at the page.
    fn pass(&mut self, stream: &StreamRef) -> Result<()> {
        let handle = stream.raw().addr();
        let known = self.passed.iter().position(|(other, _)| *other == handle);
        let index = match known {
            Some(index) => index,
            None if self.passed.len() >= STREAMS_MAX => {
                self.crowded = true;
                return Ok(());
            }
            None => {
                self.passed.push((handle, Event::new(&self.context, Timing::Without)?));
                self.passed.len() - 1
            }
        };
        stream.record(&self.passed[index].1)
    }

    /// One of the calls that `mark` stands for is over. What waits for it goes on with the last.
    pub(super) fn count(&mut self, mark: Mark) {
        let Some(index) = self.open.iter().position(|(open, _)| *open == mark) else { return };
        self.open[index].1 -= 1;
        if self.open[index].1 == 0 {
            self.open.remove(index);
            self.set(mark);
        }
    }

    /// Lets everything go on.
    pub(super) fn set_all(&mut self) {
        while let Some((mark, _)) = self.open.pop_front() {
            self.set(mark);
        }
    }

    fn set(&self, Mark(mark): Mark) {
        let Some(page) = &self.page else { return };
        let word = page.word(mark % WORDS);
        // Calls may end in another order than they began, and a word never goes back.
        if mark.wrapping_sub(word.load(Ordering::Relaxed)).cast_signed() > 0 {
            // ORDERING: release: the device, which looks at the word, sees what was written before.
            word.store(mark, Ordering::Release);
        }
    }
}

impl Page {
    /// The device's address of a word.
    fn at(&self, index: u32) -> u64 {
        self.words.device_address() + u64::from(index) * WORD as u64
    }

    fn word(&self, index: u32) -> &AtomicU32 {
        // SAFETY: one of the page's words, which host and device read and write whole; they stay as
        // long as the page, which is borrowed.
        unsafe { AtomicU32::from_ptr(self.words.as_ptr().cast::<u32>().add(index as usize)) }
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        self.set_all();
        let Some(page) = self.page.take() else { return };
        // Of a device that is lost nothing looks any more.
        let is_passed = |(_, event): &(usize, Event)| event.query().unwrap_or(true);
        if self.crowded || !self.passed.iter().all(is_passed) {
            let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
            kept.push((self.context.id(), page));
        }
    }
}
