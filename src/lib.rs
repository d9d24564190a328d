//! Unisono: collective communication for training and serving large language models.
//!
//! Ranks (processes or threads) form a [`Communicator`] and make the same calls on it in the same
//! order. Each call ends with the result, or with an [`Error`] that names what went wrong and which
//! rank is to blame, before its deadline.
//!
//! ```
//! use unisono::config::Config;
//! use unisono::{Communicator, ReduceOp};
//!
//! // Two ranks as threads; processes use `Communicator::init_env` or `Communicator::init_rank`.
//! let ranks = Communicator::init_all(2, &Config::default())?;
//! std::thread::scope(|scope| {
//!     for comm in ranks {
//!         scope.spawn(move || {
//!             let mut values = [1.0f32, comm.rank().0 as f32];
//!             comm.all_reduce_in_place(&mut values, ReduceOp::Sum).expect("all_reduce");
//!             assert_eq!(values, [2.0, 1.0]);
//!         });
//!     }
//! });
//! # Ok::<(), unisono::Error>(())
//! ```
//!
//! # Where to look
//!
//! [`comm`] is what a program uses: communicators, requests, groups. [`config`] has the settings
//! and their environment variables, [`error`] the one table of errors, [`types`] the element types,
//! operations and collectives.
//!
//! The rest is how it works. [`algo`] makes plans, [`plan`] is what they are and proves them,
//! [`engine`] runs them over the links of [`link`] with the arithmetic of [`kernel`]; [`tune`]
//! chooses; [`boot`] brings the ranks together. These modules are open to the program `unisono` and
//! to tests, and may change between minor versions.
//!
//! # Rules
//!
//! - One thread at a time is inside a communicator; a second gets [`Code::Busy`]. Any number of
//!   communicators may be used at once.
//! - An error's [`scope`](Error::scope) says what it breaks: the call, or the communicator.
//! - Reductions follow the numeric rules in [`kernel`]. With [`Config::deterministic`] the bits
//!   depend on inputs and rank numbers alone.
//! - Nothing is encrypted. Connections prove the job's key when they open.
//!
//! The C ABI is declared in `ffi/include/unisono.h`. `ARCHITECTURE.md` says how all of it fits
//! together; `docs/` has the guides.
//!
//! [`Config::deterministic`]: config::Config::deterministic
#![allow(
    rustdoc::private_intra_doc_links,
    reason = "these texts are built with private items, for those who read the code"
)]
#![deny(rust_2018_idioms)]

#[cfg(test)]
#[path = "../tests/support/alone.rs"]
mod alone;
#[cfg(all(test, unisono_rdma))]
#[path = "../tests/support/bindings.rs"]
mod bindings;
#[cfg(test)]
#[path = "../tests/support/library.rs"]
mod library;
#[cfg(test)]
#[path = "../tests/support/standin.rs"]
mod standin;
#[cfg(test)]
#[path = "../tests/support/standin_nccl.rs"]
mod standin_nccl;
#[cfg(all(test, unisono_rdma))]
#[path = "../tests/support/standin_rdma.rs"]
mod standin_rdma;

pub mod algo;
mod backend;
pub mod boot;
pub mod call;
pub mod capi;
pub mod comm;
pub mod config;
#[allow(dead_code, unused_imports, reason = "what no backend calls yet is tested all the same")]
mod cuda;
pub mod engine;
pub mod error;
mod health;
pub mod kernel;
pub mod link;
mod mpi;
#[cfg_attr(
    not(all(test, unisono_nccl)),
    expect(dead_code, unused_imports, reason = "windows, shrink and grow have no caller yet")
)]
mod nccl;
mod obs;
pub mod plan;
#[cfg(unisono_rdma)]
mod rdma;
pub mod sync;
mod sys;
pub mod tune;
pub mod types;

pub use comm::{Communicator, Request, unique_id};
pub use error::{Code, Error, Result};
pub use types::{Collective, Dtype, Rank, ReduceOp};
