//! The atomics of hand-offs between threads and processes, replaceable by loom's.
//!
//! `RUSTFLAGS="--cfg loom"` swaps in loom's types, which explore every interleaving and every
//! reordering the orderings allow.

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

// Loom has none; it orders what the compiler may do, which loom does not model.
/// For statics, which loom's types cannot initialise. Never part of a hand-off.
pub(crate) use std::sync::atomic::AtomicU32 as StaticU32;
pub(crate) use std::sync::atomic::compiler_fence;
