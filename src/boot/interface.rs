//! Chooses the addresses a rank is reached at, and says why.

use std::net::IpAddr;

use crate::config::Interface as Filter;
use crate::error::{Code, Error, Result, quoted};
use crate::sys::interface::{Interface, list, route_source};

/// Interfaces that lead to containers and virtual machines of this host, not to other hosts.
const VIRTUAL: &[&str] =
    &["docker", "br-", "virbr", "veth", "vnet", "cni", "flannel", "cali", "lxc", "lxd", "podman"];

/// Who may have asked for an interface.
const ASKED: &str = "which UNISONO_INTERFACE or config.interface asks for";

/// The addresses to listen at, best first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    /// At least one address of this host.
    pub addresses: Vec<IpAddr>,
    /// One sentence for the log and `unisono info`.
    pub reason: String,
}

/// Chooses by `spec`: a comma-separated list of interface names, addresses and networks such as
/// `10.0.0.0/8`. Without one, every address of an interface that is up and faces other hosts, or
/// loopback where there is none.
///
/// # Errors
/// `NoAddress`, with what there is, when nothing fits.
pub(crate) fn choose(spec: Option<&str>) -> Result<Choice> {
    choose_from(&list()?, spec)
}

fn choose_from(all: &[Interface], spec: Option<&str>) -> Result<Choice> {
    let usable: Vec<&Interface> =
        all.iter().filter(|one| one.up && !is_link_local(one.address)).collect();
    let choice = match spec.map(str::trim).filter(|spec| !spec.is_empty()) {
        Some(spec) => choose_named(&usable, spec)?,
        None => choose_default(&usable),
    };
    if choice.addresses.is_empty() {
        let text = format!("{}; there are: {}", choice.reason, describe(all));
        return Err(Error::new(Code::NoAddress, text));
    }
    Ok(choice)
}

fn choose_default(usable: &[&Interface]) -> Choice {
    let outward = |one: &&&Interface| !one.loopback && !is_virtual(&one.name);
    let chosen: Vec<&Interface> = usable.iter().filter(outward).copied().collect();
    let mut skipped: Vec<&str> =
        usable.iter().filter(|one| is_virtual(&one.name)).map(|one| one.name.as_str()).collect();
    skipped.dedup();
    let also = match skipped.as_slice() {
        [] => String::new(),
        names => format!(", left out as virtual: {}", names.join(", ")),
    };
    if chosen.is_empty() {
        let local: Vec<&Interface> = usable.iter().filter(|one| one.loopback).copied().collect();
        let reason = format!("loopback, since no interface leads to other hosts{also}");
        return Choice { addresses: addresses(&local), reason };
    }
    let reason = format!("every interface that is up: {}{also}", describe_refs(&chosen));
    Choice { addresses: addresses(&chosen), reason }
}

fn choose_named(usable: &[&Interface], spec: &str) -> Result<Choice> {
    let mut chosen: Vec<&Interface> = Vec::new();
    let mut unmatched = Vec::new();
    for item in spec.split(',').map(str::trim).filter(|item| !item.is_empty()) {
        let filter = Filter::parse(item).ok_or_else(|| {
            let text = format!("{} is no network such as 10.0.0.0/8, {ASKED}", quoted(item));
            Error::new(Code::InvalidArgument, text)
        })?;
        let before = chosen.len();
        for &one in usable {
            if takes(&filter, one) && !chosen.contains(&one) {
                chosen.push(one);
            }
        }
        if chosen.len() == before && !usable.iter().any(|one| takes(&filter, one)) {
            unmatched.push(item);
        }
    }
    let also = match unmatched.as_slice() {
        [] => String::new(),
        items => format!(", nothing fits {}", items.join(", ")),
    };
    let reason = match chosen.as_slice() {
        [] => format!("no address that is up fits {}, {ASKED}", quoted(spec)),
        _ => format!("asked for by {}: {}{also}", quoted(spec), describe_refs(&chosen)),
    };
    Ok(Choice { addresses: addresses(&chosen), reason })
}

fn takes(filter: &Filter<'_>, one: &Interface) -> bool {
    match filter {
        Filter::Name(name) => one.name == *name,
        Filter::Network(address, length) => same_network(*address, one.address, *length),
    }
}

fn same_network(one: IpAddr, two: IpAddr, length: u8) -> bool {
    match (one, two) {
        (IpAddr::V4(one), IpAddr::V4(two)) => {
            let differ = u32::from(one) ^ u32::from(two);
            differ.leading_zeros() >= u32::from(length)
        }
        (IpAddr::V6(one), IpAddr::V6(two)) => {
            let differ = u128::from(one) ^ u128::from(two);
            differ.leading_zeros() >= u32::from(length)
        }
        _ => false,
    }
}

/// An address that means nothing without its interface cannot be given to peers.
fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.segments()[0] & 0xffc0 == 0xfe80,
    }
}

fn is_virtual(name: &str) -> bool {
    VIRTUAL.iter().any(|prefix| name.starts_with(prefix))
}

fn addresses(interfaces: &[&Interface]) -> Vec<IpAddr> {
    interfaces.iter().map(|one| one.address).collect()
}

fn describe_refs(interfaces: &[&Interface]) -> String {
    let each = interfaces.iter().map(|one| {
        let down = if one.up { "" } else { " (down)" };
        format!("{} {}/{}{down}", one.name, one.address, one.prefix)
    });
    each.collect::<Vec<_>>().join(", ")
}

fn describe(interfaces: &[Interface]) -> String {
    describe_refs(&interfaces.iter().collect::<Vec<_>>())
}

/// How good the way to an address is; smaller is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Route {
    /// It is an address of this host.
    Host,
    /// It is on a network we are on.
    Direct,
    /// Over a router.
    Routed,
    /// The routing table knows no way.
    Unknown,
}

/// The way to `peer` and one clause about it.
pub(crate) fn route(all: &[Interface], peer: IpAddr) -> (Route, String) {
    let Some(source) = route_source(peer) else {
        return (Route::Unknown, "no known route".to_owned());
    };
    let from = all.iter().find(|one| one.address == source);
    let name = from.map_or("an unlisted interface", |one| one.name.as_str());
    if all.iter().any(|one| one.address == peer) || peer.is_loopback() {
        (Route::Host, "an address of this host".to_owned())
    } else if from.is_some_and(|one| same_network(source, peer, one.prefix)) {
        (Route::Direct, format!("on the network of {name} ({source})"))
    } else {
        (Route::Routed, format!("routed through {name} ({source})"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(name: &str, address: &str, prefix: u8, up: bool) -> Interface {
        let address: IpAddr = address.parse().expect("address");
        Interface { name: name.to_owned(), address, prefix, up, loopback: name == "lo" }
    }

    fn host() -> Vec<Interface> {
        vec![
            interface("lo", "127.0.0.1", 8, true),
            interface("eth0", "10.1.0.5", 16, true),
            interface("eth0", "2001:db8::5", 64, true),
            interface("eth0", "fe80::1", 64, true),
            interface("ib0", "192.168.9.5", 24, true),
            interface("eth1", "10.2.0.5", 16, false),
            interface("docker0", "172.17.0.1", 16, true),
        ]
    }

    fn chosen(spec: Option<&str>) -> Vec<String> {
        let choice = choose_from(&host(), spec).expect("choice");
        choice.addresses.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn by_default_every_interface_to_other_hosts_is_taken() {
        assert_eq!(chosen(None), ["10.1.0.5", "2001:db8::5", "192.168.9.5"]);
        assert_eq!(chosen(Some(" ")), chosen(None));
        let choice = choose_from(&host(), None).expect("choice");
        assert!(choice.reason.contains("virtual: docker0"), "{}", choice.reason);
    }

    #[test]
    fn loopback_is_taken_when_there_is_nothing_else() {
        let all = [host().remove(0), host().remove(6)];
        let choice = choose_from(&all, None).expect("choice");
        assert_eq!(choice.addresses.len(), 1);
        assert!(choice.addresses[0].is_loopback());
        assert!(choice.reason.contains("loopback"));
    }

    #[test]
    fn names_addresses_and_networks_are_understood_in_the_order_given() {
        assert_eq!(chosen(Some("ib0")), ["192.168.9.5"]);
        assert_eq!(chosen(Some("ib0,eth0")), ["192.168.9.5", "10.1.0.5", "2001:db8::5"]);
        assert_eq!(chosen(Some("10.0.0.0/8")), ["10.1.0.5"]);
        assert_eq!(chosen(Some("2001:db8::/32, 10.1.0.5")), ["2001:db8::5", "10.1.0.5"]);
        assert_eq!(chosen(Some("docker0")), ["172.17.0.1"]);
        assert_eq!(chosen(Some("lo")), ["127.0.0.1"]);
        assert_eq!(chosen(Some("0.0.0.0/0")).len(), 4);
    }

    #[test]
    fn what_fits_nothing_lists_what_there_is() {
        for spec in ["eth7", "eth1", "10.9.9.9", "11.0.0.0/8", "fe80::1"] {
            let error = choose_from(&host(), Some(spec)).expect_err(spec);
            assert_eq!(error.code, Code::NoAddress);
            assert!(error.detail.contains("eth1 10.2.0.5/16 (down)"), "{error}");
            assert!(error.detail.contains("UNISONO_INTERFACE"), "{error}");
        }
        assert_eq!(choose_from(&[], None).expect_err("none").code, Code::NoAddress);
    }

    #[test]
    fn a_malformed_network_is_named() {
        for spec in ["10.0.0.0/33", "eth0/8", "10.0.0.0/x", "::/129"] {
            let error = choose_from(&host(), Some(spec)).expect_err(spec);
            assert_eq!(error.code, Code::InvalidArgument);
            assert!(error.detail.contains(spec), "{error}");
        }
    }

    #[test]
    fn this_machine_has_an_address() {
        assert!(!choose(None).expect("choice").addresses.is_empty());
        assert!(choose(Some("lo")).expect("choice").addresses[0].is_loopback());
    }

    #[test]
    fn our_own_address_is_the_best_route() {
        let local = "127.0.0.1".parse().expect("address");
        assert_eq!(route(&host(), local).0, Route::Host);
        assert!(Route::Host < Route::Direct && Route::Routed < Route::Unknown);
    }
}
