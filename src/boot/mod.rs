//! Start-up: who takes part, where they are, and connections that only they can open.
//!
//! [`mod@env`] reads what a launcher says, [`id`] names the job and its key, `rendezvous` brings
//! all ranks' cards together, `interface` picks addresses, `mesh` connects every pair over TCP and
//! `local` connects the ranks of one host through shared memory. Every connection opens with the
//! handshake of `auth`.
//!
//! Everything that arrives from outside is hostile until it is proved: sizes are checked before
//! memory is taken, every wait has a deadline, and strangers cost a bounded table entry for a few
//! seconds. Not here: what the ranks' cards say, which is `comm`'s.

pub(crate) mod auth;
pub(crate) mod conn;
#[cfg(unisono_rdma)]
pub(crate) mod doors;
pub mod env;
pub(crate) mod frame;
#[cfg(unisono_rdma)]
pub(crate) mod gate;
pub mod id;
pub(crate) mod interface;
pub(crate) mod key;
pub(crate) mod local;
pub(crate) mod meet;
pub(crate) mod mesh;
pub(crate) mod message;
pub(crate) mod missing;
pub(crate) mod nodelist;
pub(crate) mod offer;
pub(crate) mod porch;
#[cfg(unisono_rdma)]
pub(crate) mod rdma;
pub(crate) mod rendezvous;
#[cfg(unisono_rdma)]
pub(crate) mod rsocket;
pub(crate) mod server;
pub mod survey;
mod trade;
