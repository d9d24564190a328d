//! A listener at one RDMA card of a rank, for connections by sockets of librdmacm.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::doors::{Wanted, choose, reach};
use super::offer::Offer;
use crate::error::{Code, Error, Result};
use crate::rdma::{Card, Channel, Device, Library, Stream, cards};
use crate::sys::random;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;

/// A listener, and the card that it is at.
#[derive(Debug)]
pub(crate) struct Gate {
    pub(crate) library: Arc<Library>,
    pub(crate) offer: Offer,
    pub(crate) listener: Stream,
    pub(crate) address: IpAddr,
    /// The card, and its port.
    pub(crate) card: (Device, u8),
    /// Which card this is, and why.
    pub(crate) note: String,
}

/// Opens a listener at the first that is of use of the cards that [`super::doors::open`] would use.
///
/// # Errors
/// `UNSUPPORTED` where there is none, with the reason; `INVALID_ARGUMENT` where `wanted` names one
/// that is not there or cannot be used.
pub(crate) fn open(library: &Arc<Library>, wanted: Wanted<'_>, node: Option<u32>) -> Result<Gate> {
    let channel = Channel::new(library)?;
    let found = cards(library);
    let (chosen, why) = choose(&found, wanted, node)?;
    let mut refused = Error::new(Code::Unsupported, "no RDMA card has a port that is up");
    for card in chosen {
        match listen(library, &channel, card) {
            Ok((listener, address, own)) => {
                let addresses = vec![SocketAddr::new(address, listener.port()?)];
                let offer = Offer { nonce: random::bytes()?, addresses };
                let note = format!("rsocket by {} at {address}: {why}", card.name);
                let library = library.clone();
                return Ok(Gate { library, offer, listener, address, card: own, note });
            }
            Err(error) if matches!(wanted, Wanted::Named(_)) => {
                return Err(Error { code: Code::InvalidArgument, ..error });
            }
            Err(error) => refused = error,
        }
    }
    Err(refused)
}

/// A listener at an address of `card`.
fn listen(
    library: &Arc<Library>,
    channel: &Arc<Channel>,
    card: &Card,
) -> Result<(Stream, IpAddr, (Device, u8))> {
    let (id, device, address) = reach(channel, card)?.ok_or_else(|| {
        let text = format!("card {} has no address on an interface that is up", card.name);
        Error::new(Code::Unsupported, text)
    })?;
    let listener = Stream::listening(library, address, BACKLOG)?;
    Ok((listener, address, (device, id.device_port())))
}
