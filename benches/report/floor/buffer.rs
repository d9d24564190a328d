//! Memory that all ranks see and that they divide among themselves by their own rules.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};

/// Zeroed bytes at a page's begin.
pub(super) struct Buffer {
    at: *mut u8,
    layout: Layout,
}

// SAFETY: the buffer is memory and no more; who reads and writes what, and when, is for the users
// of its address to keep.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

impl Buffer {
    pub(super) fn new(bytes: usize) -> Self {
        let layout = Layout::from_size_align(bytes.max(64), 4096).expect("a size that fits");
        // SAFETY: the layout is not empty.
        let at = unsafe { alloc_zeroed(layout) };
        if at.is_null() {
            handle_alloc_error(layout);
        }
        Self { at, layout }
    }

    pub(super) fn at(&self) -> *mut u8 {
        self.at
    }

    pub(super) fn floats(&self) -> *mut f32 {
        self.at.cast()
    }

    /// Writes the first `count` floats.
    pub(super) fn fill(&self, count: usize, value: impl Fn(usize) -> f32) {
        assert!(count * size_of::<f32>() <= self.layout.size(), "{count} floats");
        for i in 0..count {
            // SAFETY: inside the buffer, which no rank uses before it is filled.
            unsafe { self.floats().add(i).write(value(i)) };
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: made with this layout by `new`.
        unsafe { dealloc(self.at, self.layout) };
    }
}
