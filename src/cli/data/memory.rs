//! Buffers between guard bytes, filled and compared piece by piece.

use std::borrow::Cow;

use unisono::comm::DeviceMemory;
use unisono::{Code, Communicator, Dtype, Error, Result};

use super::pattern::{Flavor, Origin, POISON, Patterns, differing, write};
use super::shape::{Piece, Shape};

/// Where buffers come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// Memory of the communicator's GPU, where it has one; else plain memory of this process.
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
    /// Where calls find it, if that is on a GPU: the memory at `base` is a copy then.
    device: Option<DeviceMemory>,
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
        let device = if registered { None } else { comm.device_memory(all)? };
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
        let mut made = Self { base, registered, device, all, at, bytes, size };
        made.show()?;
        Ok(made)
    }

    /// The address of element `index`, for calls.
    pub(crate) fn element(&self, index: usize) -> *mut u8 {
        let base = self.device.as_ref().map_or(self.base, DeviceMemory::at);
        base.wrapping_add(self.at + index * self.size)
    }

    fn copy(&self) -> &[u8] {
        // SAFETY: the allocation is this buffer's own, and no call is under way while it is looked
        // at.
        unsafe { std::slice::from_raw_parts(self.base, self.all) }
    }

    /// Brings what has been written to where calls find it.
    ///
    /// # Errors
    /// CUDA's own.
    fn show(&mut self) -> Result<()> {
        match &self.device {
            Some(device) => device.write(self.copy()),
            None => Ok(()),
        }
    }

    /// What calls have made of it, guards included.
    fn everything(&self) -> Result<Cow<'_, [u8]>> {
        let Some(device) = &self.device else { return Ok(Cow::Borrowed(self.copy())) };
        let mut bytes = vec![0; self.all];
        device.read(&mut bytes)?;
        Ok(Cow::Owned(bytes))
    }

    /// The elements' bytes, of memory that is not on a GPU.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.copy()[self.at..self.at + self.bytes]
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
    ///
    /// # Errors
    /// CUDA's own.
    pub(crate) fn fill(
        &mut self,
        pieces: &[Piece],
        patterns: &mut Patterns,
        shape: &Shape,
        flavor: Flavor,
        phase: usize,
    ) -> Result<()> {
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
        self.show()
    }

    /// Elements that differ from the pieces' patterns, and guard bytes that have changed.
    ///
    /// # Errors
    /// CUDA's own.
    pub(crate) fn wrong(
        &self,
        pieces: &[Piece],
        patterns: &mut Patterns,
        shape: &Shape,
        flavor: Flavor,
        phase: usize,
    ) -> Result<u64> {
        let all = self.everything()?;
        let guards = all[..self.at].iter().chain(&all[self.at + self.bytes..]);
        let mut wrong = guards.filter(|&&byte| byte != POISON).count() as u64;
        for piece in pieces {
            let pattern = patterns.get(shape.dtype, shape.op, flavor, piece.origin);
            let seen = &all[self.at..self.at + self.bytes][self.range(piece)];
            wrong += differing(&pattern, self.size, piece.start + phase, seen);
        }
        Ok(wrong)
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
