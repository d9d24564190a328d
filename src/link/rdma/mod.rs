//! The link between hosts whose network cards place bytes in each other's memory.
//!
//! `pair.rs`, `outward.rs`, `placing.rs` and `inward.rs` are the protocol (docs/ring-protocol.md),
//! which knows no card; `detour.rs` what it does when a card fails; `frame.rs` its bits; `port.rs`
//! what it asks of a connection, and `queue.rs` that of libibverbs. `yard.rs` opens cards and fits
//! connections to memory, `fleet.rs` has all those of a rank, `member.rs` a peer's of them,
//! `regions.rs` the program's memory that they reach, `worth.rs` what is worth registering.
//! `socket.rs` and `sockets.rs` are the same by sockets of librdmacm. `end.rs` is what the engine
//! sees. How ranks connect is [`crate::boot::rdma`]'s and [`crate::boot::rsocket`]'s.

mod detour;
mod end;
mod fleet;
mod frame;
mod inward;
mod member;
mod outward;
mod pair;
mod placing;
mod port;
mod queue;
mod regions;
mod shared;
mod socket;
mod sockets;
mod worth;
mod yard;

pub(crate) use self::end::{RdmaRx, RdmaTx, RsocketRx, RsocketTx, ends, ends_of};
pub(crate) use self::fleet::Launched;
pub(crate) use self::pair::{PATHS_MAX, PLACE_BYTES};
pub(crate) use self::sockets::{Fitted, Opened};
pub(crate) use self::yard::{Cards, Yard};

// What tiles are cut by.
const _: () = assert!(pair::CAPACITY >= super::capacity(false));
