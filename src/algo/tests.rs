//! The checker's proofs of every algorithm.
use super::*;
