//! What the library says of itself. So far: lines on standard error.

pub(crate) mod log;
