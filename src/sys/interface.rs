//! The network interfaces of this host and the route to a peer.

use std::ffi::CStr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use super::check;
use crate::error::Result;

/// One address of one interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Interface {
    /// The interface's name, such as `eth0`.
    pub name: String,
    /// The address.
    pub address: IpAddr,
    /// How many leading bits of the address name its network.
    pub prefix: u8,
    /// The interface is up and has a carrier.
    pub up: bool,
    /// It is the loopback interface.
    pub loopback: bool,
}

/// Every IPv4 and IPv6 address of this host.
pub(crate) fn list() -> Result<Vec<Interface>> {
    let mut head: *mut libc::ifaddrs = std::ptr::null_mut();
    // SAFETY: the call writes the head of a list that we free below.
    check(unsafe { libc::getifaddrs(&raw mut head) }, "getifaddrs")?;
    let mut found = Vec::new();
    let mut next = head;
    while !next.is_null() {
        // SAFETY: `next` is an entry of the list, which lives until freeifaddrs.
        let entry = unsafe { &*next };
        // SAFETY: the entry's pointers are null or point into the list.
        if let Some(address) = unsafe { address_of(entry.ifa_addr) } {
            // SAFETY: as above.
            let mask = unsafe { address_of(entry.ifa_netmask) };
            // SAFETY: the name is a NUL-terminated string inside the list.
            let name = unsafe { CStr::from_ptr(entry.ifa_name) }.to_string_lossy().into_owned();
            let has = |flag: libc::c_int| entry.ifa_flags & bits(flag) != 0;
            found.push(Interface {
                name,
                address,
                prefix: mask.map_or(0, prefix_of),
                up: has(libc::IFF_UP) && has(libc::IFF_RUNNING),
                loopback: has(libc::IFF_LOOPBACK),
            });
        }
        next = entry.ifa_next;
    }
    // SAFETY: `head` came from getifaddrs and no reference into the list is left.
    unsafe { libc::freeifaddrs(head) };
    Ok(found)
}

/// The IP address in a system address; `None` for null and for other families.
///
/// # Safety
/// `at` is null or points to a socket address as large as its family asks.
unsafe fn address_of(at: *const libc::sockaddr) -> Option<IpAddr> {
    if at.is_null() {
        return None;
    }
    // SAFETY: every socket address starts with its family; the caller vouches for the pointer.
    match i32::from(unsafe { (*at).sa_family }) {
        libc::AF_INET => {
            // SAFETY: an AF_INET address is a sockaddr_in.
            let v4 = unsafe { at.cast::<libc::sockaddr_in>().read_unaligned() };
            Some(IpAddr::V4(Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr))))
        }
        libc::AF_INET6 => {
            // SAFETY: an AF_INET6 address is a sockaddr_in6.
            let v6 = unsafe { at.cast::<libc::sockaddr_in6>().read_unaligned() };
            Some(IpAddr::V6(Ipv6Addr::from(v6.sin6_addr.s6_addr)))
        }
        _ => None,
    }
}

fn bits(flag: libc::c_int) -> libc::c_uint {
    libc::c_uint::try_from(flag).expect("flags are positive")
}

fn prefix_of(mask: IpAddr) -> u8 {
    let ones = match mask {
        IpAddr::V4(mask) => u32::from(mask).leading_ones(),
        IpAddr::V6(mask) => u128::from(mask).leading_ones(),
    };
    u8::try_from(ones).expect("at most 128 bits")
}

/// The address of ours that the route to `peer` leaves from; `None` when there is no route.
/// Connecting a datagram socket asks the routing table and sends nothing.
pub(crate) fn route_source(peer: IpAddr) -> Option<IpAddr> {
    let any: SocketAddr = match peer {
        IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).ok()?;
    // The discard port: no packet goes there anyway.
    socket.connect((peer, 9)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_is_listed_and_routes_to_itself() {
        let all = list().expect("list");
        let lo = all.iter().find(|one| one.address == Ipv4Addr::LOCALHOST).expect("lo");
        assert!(lo.up && lo.loopback);
        assert_eq!((lo.name.as_str(), lo.prefix), ("lo", 8));
        let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
        assert_eq!(route_source(local), Some(local));
    }
}
