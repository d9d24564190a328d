//! What the protocol asks of a connection: the requests of one queue pair, or of one socket.
//!
//! A port carries out its requests in order. It never waits: whoever posts sees to it that there is
//! room. Its twin in memory is in the tests of [`super::pair`].

use super::frame::{FRAME_BYTES, Remote};
use super::regions::Held;
use crate::error::Result;

/// Keys of memory that a card can reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Keys {
    /// For requests of this rank.
    pub(super) local: u32,
    /// For the peer's writes; 0 where it must not write there.
    pub(super) remote: u32,
}

/// One queue pair or socket, connected to the peer's.
pub(super) trait Port {
    /// How many requests it takes now.
    fn room(&self) -> usize;

    /// Writes `bytes` bytes at an address, under a local key, to the peer's memory, and tells it
    /// the immediate, if there is one. With `waited` somebody waits until it has ended. Returns the
    /// number of the request; numbers grow by one or more.
    ///
    /// # Safety
    /// The address is readable for `bytes` bytes, under the key, until the request has ended.
    ///
    /// # Errors
    /// The connection is broken.
    unsafe fn write(
        &mut self,
        from: (*const u8, u32),
        bytes: usize,
        to: Remote,
        told: Option<u32>,
        waited: bool,
    ) -> Result<u64>;

    /// Sends a frame.
    ///
    /// # Errors
    /// The connection is broken.
    fn frame(&mut self, frame: &[u8; FRAME_BYTES]) -> Result<u64>;

    /// All requests up to this one have ended: what they read may change.
    fn ended(&self) -> u64;

    /// The keys of `bytes` bytes at `at`, where the card can reach them.
    fn keys(&self, at: *const u8, bytes: usize) -> Option<Held>;

    /// What the peer is to call `at`, which has these keys.
    fn address(&self, at: *const u8, _: Keys) -> u64 {
        at as u64
    }

    /// Whether requests are carried out while nobody looks.
    fn is_through(&self) -> bool {
        true
    }
}
