//! Unisono: collective communication for training and serving large language models.
#![deny(rust_2018_idioms)]

pub mod algo;
mod backend;
pub mod boot;
pub mod call;
pub mod comm;
pub mod config;
pub mod engine;
pub mod error;
mod health;
pub mod kernel;
pub mod link;
mod obs;
pub mod plan;
pub mod sync;
mod sys;
pub mod tune;
pub mod types;

pub use comm::{Communicator, Request, unique_id};
pub use error::{Code, Error, Result};
pub use types::{Collective, Dtype, Rank, ReduceOp};
