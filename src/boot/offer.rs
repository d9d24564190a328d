//! What a rank with RDMA cards tells the others: where those listen.
//!
//! ```text
//! nonce (32) | addresses (1) | each: family (1) port (2) ip (4, 16)
//! ```

use std::net::{IpAddr, SocketAddr};

use super::frame::Fields;
use crate::error::{Code, Error, Result};

/// Addresses that a rank may offer.
const ADDRESSES_MAX: usize = 8;

/// Where a rank's RDMA cards listen, in the order of paths, and a number for once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Offer {
    pub(crate) nonce: [u8; 32],
    pub(crate) addresses: Vec<SocketAddr>,
}

/// Appends an address.
pub(crate) fn put_address(bytes: &mut Vec<u8>, address: &SocketAddr) {
    bytes.push(if address.is_ipv4() { 4 } else { 6 });
    bytes.extend_from_slice(&address.port().to_le_bytes());
    match address.ip() {
        IpAddr::V4(ip) => bytes.extend_from_slice(&ip.octets()),
        IpAddr::V6(ip) => bytes.extend_from_slice(&ip.octets()),
    }
}

/// Up to `limit` addresses, after their number.
pub(crate) fn addresses(rest: &mut Fields<'_>, limit: usize) -> Result<Vec<SocketAddr>> {
    let bad = |what: &str| Error::new(Code::Protocol, what);
    let count = usize::from(rest.u8()?);
    if count > limit {
        return Err(bad("too many addresses"));
    }
    let mut found = Vec::with_capacity(count);
    for _ in 0..count {
        let (family, port) = (rest.u8()?, rest.u16()?);
        let ip = match family {
            4 => IpAddr::from(rest.array::<4>()?),
            6 => IpAddr::from(rest.array::<16>()?),
            _ => return Err(bad("an address of no known family")),
        };
        found.push(SocketAddr::new(ip, port));
    }
    Ok(found)
}

impl Offer {
    /// Appends it.
    pub(crate) fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&self.nonce);
        let addresses = &self.addresses[..self.addresses.len().min(ADDRESSES_MAX)];
        bytes.push(u8::try_from(addresses.len()).unwrap_or(0));
        addresses.iter().for_each(|address| put_address(bytes, address));
    }

    /// Reads it.
    pub(crate) fn read(rest: &mut Fields<'_>) -> Result<Self> {
        Ok(Self { nonce: rest.array()?, addresses: addresses(rest, ADDRESSES_MAX)? })
    }
}
