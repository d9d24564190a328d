//! Where the connections of a rank note that they have ended.
//!
//! A connection that breaks or closes falls silent and notes it here: whether the peer is gone, and
//! whose fault that is, is heard on other ways ([`crate::health`]).

use std::sync::{Arc, OnceLock};

use crate::error::{Code, Error, Result};
use crate::types::Rank;

/// Where the connections of a rank note that they have ended; the first stays.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ends(Arc<OnceLock<Error>>);

impl Ends {
    /// The first end found, as the error it is if nothing better is heard.
    pub(crate) fn first(&self) -> Option<&Error> {
        self.0.get()
    }

    /// A peer's connection was closed.
    pub(super) fn closed(&self, peer: Rank) {
        self.0.get_or_init(|| {
            let text = format!("rank {peer} closed its connection");
            Error::new(Code::PeerLost, text).with_peer(peer)
        });
    }

    /// It has broken, as the system says.
    ///
    /// # Errors
    /// What is not the peer's fault.
    pub(super) fn broken(&self, peer: Rank, error: &std::io::Error) -> Result<()> {
        let native = error.raw_os_error().unwrap_or(0);
        let with_code = |code| {
            let text = format!("connection to rank {peer}: {error}");
            Error { native, ..Error::new(code, text) }
        };
        // Memory that our own system does not have is not the peer's fault.
        if matches!(native, libc::ENOBUFS | libc::ENOMEM) {
            return Err(with_code(Code::System));
        }
        self.0.get_or_init(|| with_code(Code::PeerLost).with_peer(peer));
        Ok(())
    }

    /// A connection has broken by what a peer did, or what this end could not do.
    pub(super) fn note(&self, error: Error, peer: Rank) {
        self.0.get_or_init(|| if error.peer.is_some() { error } else { error.with_peer(peer) });
    }

    /// A connection over RDMA has broken, as its card says: the rank may be well.
    pub(super) fn lost(&self, peer: Rank, native: i32, text: &str) {
        self.0.get_or_init(|| {
            let text = format!("the RDMA connection to rank {peer} broke: {text}");
            Error { native, ..Error::new(Code::LinkLost, text) }.with_peer(peer)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_happens_to_the_connection_blames_the_peer() {
        for errno in [libc::ENOMEM, libc::ENOBUFS] {
            let ends = Ends::default();
            let error = std::io::Error::from_raw_os_error(errno);
            let own = ends.broken(Rank(3), &error).expect_err("not the peer's");
            assert_eq!((own.code, own.peer, own.native), (Code::System, None, errno));
            assert!(ends.first().is_none());
        }
        let ends = Ends::default();
        let error = std::io::Error::from_raw_os_error(libc::ECONNRESET);
        ends.broken(Rank(3), &error).expect("silence");
        ends.closed(Rank(4));
        let first = ends.first().expect("an end");
        let reset = (Code::PeerLost, Some(Rank(3)), libc::ECONNRESET);
        assert_eq!((first.code, first.peer, first.native), reset, "the first end stays");
    }
}
