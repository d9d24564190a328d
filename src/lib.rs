//! Unisono: collective communication for training and serving large language models.
#![deny(rust_2018_idioms)]

pub mod algo;
pub mod error;
pub mod kernel;
pub mod plan;
pub mod types;

pub use error::{Code, Error, Result};
pub use types::{Collective, Dtype, Rank, ReduceOp};
