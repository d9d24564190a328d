//! Buffers between guard bytes, filled and compared piece by piece.

use unisono::{Code, Communicator, Dtype, Error, Result};

use super::pattern::{Flavor, Origin, POISON, Patterns, differing, write};
use super::shape::{Piece, Shape};

/// Where buffers come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// Plain memory of this process.
    Plain,
    /// Memory of the communicator, which local ranks can map.
    Registered,
}

/// Bytes before and after the elements that nobody may touch.
const GUARD: usize = 4096;

/// Elements of one type between guards.
#[derive(Debug)]
pub(crate) struct Buffer {
    base: *mut u8,
    registered: bool,
    /// Bytes of everything.
    all: usize,
    /// First byte and number of bytes of the elements.
    at: usize,
    bytes: usize,
    size: usize,
}

impl Buffer {
    /// Room for `elements`, which begin `skew` elements after a page boundary.
    ///
    /// # Errors
    /// No memory.
    pub(crate) fn new(
        comm: &Communicator,
        source: Source,
        elements: usize,
        dtype: Dtype,
        skew: usize,
    ) -> Result<Self> {
        let size = dtype.bytes();
        let (at, bytes) = (GUARD + skew * size, elements * size);
        let all = (at + bytes + GUARD).next_multiple_of(GUARD);
        let registered = source == Source::Registered;
        let base = if registered {
            comm.alloc(all)?
        } else {
            // SAFETY: the layout has a size; a null result is dealt with.
            let made = unsafe { std::alloc::alloc(layout(all)) };
            if made.is_null() {
                let text = format!("{all} bytes for a buffer of {elements} {dtype}");
                return Err(Error::new(Code::OutOfMemory, text));
            }
            made
        };
        // SAFETY: `all` bytes were just allocated. This thread, which uses them, touches them
        // first.
        unsafe { base.write_bytes(POISON, all) };
        Ok(Self { base, registered, all, at, bytes, size })
    }

    /// The address of element `index`.
    pub(crate) fn element(&self, index: usize) -> *mut u8 {
        self.base.wrapping_add(self.at + index * self.size)
    }

    fn everything(&self) -> &[u8] {
        // SAFETY: the allocation is this buffer's own, and no call is under way while it is looked
        // at.
        unsafe { std::slice::from_raw_parts(self.base, self.all) }
    }

    /// The elements' bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.everything()[self.at..self.at + self.bytes]
    }

    /// The same, to be written.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `everything`, and the buffer is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.base.add(self.at), self.bytes) }
    }

    fn range(&self, piece: &Piece) -> std::ops::Range<usize> {
        piece.at * self.size..(piece.at + piece.count) * self.size
    }

    /// Writes the pieces' patterns.
    pub(crate) fn fill(
        &mut self,
        pieces: &[Piece],
        patterns: &mut Patterns,
        shape: &Shape,
        flavor: Flavor,
        phase: usize,
    ) {
        for piece in pieces {
            let range = self.range(piece);
            if piece.origin == Origin::Poison {
                self.bytes_mut()[range].fill(POISON);
                continue;
            }
            let pattern = patterns.get(shape.dtype, shape.op, flavor, piece.origin);
            let size = self.size;
            write(&pattern, size, piece.start + phase, &mut self.bytes_mut()[range]);
        }
    }

    /// Elements that differ from the pieces' patterns, and guard bytes that have changed.
    pub(crate) fn wrong(
        &self,
        pieces: &[Piece],
        patterns: &mut Patterns,
        shape: &Shape,
        flavor: Flavor,
        phase: usize,
    ) -> u64 {
        let all = self.everything();
        let guards = all[..self.at].iter().chain(&all[self.at + self.bytes..]);
        let mut wrong = guards.filter(|&&byte| byte != POISON).count() as u64;
        for piece in pieces {
            let pattern = patterns.get(shape.dtype, shape.op, flavor, piece.origin);
            let seen = &self.bytes()[self.range(piece)];
            wrong += differing(&pattern, self.size, piece.start + phase, seen);
        }
        wrong
    }

    /// Gives the memory back to where it came from.
    ///
    /// # Errors
    /// It was not the communicator's.
    pub(crate) fn free(self, comm: &Communicator) -> Result<()> {
        if !self.registered {
            return Ok(());
        }
        // SAFETY: no call is under way, and the buffer is gone after this.
        unsafe { comm.free(self.base) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if !self.registered {
            // SAFETY: allocated in `new` with the same layout.
            unsafe { std::alloc::dealloc(self.base, layout(self.all)) };
        }
    }
}

fn layout(bytes: usize) -> std::alloc::Layout {
    std::alloc::Layout::from_size_align(bytes, GUARD).expect("sizes are checked when parsed")
}
