//! The job's key and what is derived from it. A key never appears in a message or a log.

use std::fmt;

use crate::error::Result;
use crate::sys::random;

/// A 32-byte secret.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Key([u8; Self::BYTES]);

impl Key {
    /// The size of every key, nonce and tag.
    pub(crate) const BYTES: usize = 32;

    /// A fresh random key.
    pub(crate) fn random() -> Result<Self> {
        random::bytes().map(Self)
    }

    /// A key with these bytes.
    pub(crate) const fn new(bytes: [u8; Self::BYTES]) -> Self {
        Self(bytes)
    }

    /// The key that `text` stands for; the same on every rank.
    pub(crate) fn from_text(text: &[u8]) -> Self {
        Self(blake3::derive_key("unisono 2026 job key from text v1", text))
    }

    /// The bytes, for the unique id.
    pub(crate) const fn bytes(&self) -> &[u8; Self::BYTES] {
        &self.0
    }

    /// A key for one purpose only: `context` is a constant that no other use shares.
    pub(crate) fn derive(&self, context: &'static str) -> Self {
        Self(blake3::derive_key(context, &self.0))
    }

    /// The tag that proves knowledge of this key over the concatenated parts. The parts must have
    /// fixed sizes or carry them, or two messages could share a tag.
    pub(crate) fn tag(&self, parts: &[&[u8]]) -> [u8; Self::BYTES] {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        for part in parts {
            hasher.update(part);
        }
        *hasher.finalize().as_bytes()
    }

    /// Whether `tag` is right, in a time that does not depend on where it is wrong.
    pub(crate) fn verifies(&self, parts: &[&[u8]], tag: &[u8]) -> bool {
        subtle::ConstantTimeEq::ct_eq(self.tag(parts).as_slice(), tag).into()
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(secret)")
    }
}
