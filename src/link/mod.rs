//! The links: what moves bytes between two ranks.
//!
//! One file each for memory shared by threads ([`mem`]), by processes, TCP and virtual time. They
//! implement the traits of [`crate::engine::link`]; the engine sees nothing else of them.

pub(crate) mod board;
pub(crate) mod doze;
pub mod mem;
pub(crate) mod ring;
