//! What this host offers to links and start-up, tried out rather than looked up: for `unisono
//! info`.

use std::net::IpAddr;

use super::interface::choose;
use crate::error::Result;
use crate::sys::interface::list;
use crate::sys::memory::Segment;
use crate::sys::process::Process;
use crate::sys::{affinity, limits};

/// One address of one network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Interface {
    /// Its name, such as `eth0`.
    pub name: String,
    /// The address.
    pub address: IpAddr,
    /// How many leading bits of the address name its network.
    pub prefix: u8,
    /// It is up and has a carrier.
    pub up: bool,
    /// Communicators would listen at this address.
    pub chosen: bool,
}

/// The interfaces of this host, and which of them communicators would use.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Interfaces {
    /// Every address.
    pub all: Vec<Interface>,
    /// Why those that are chosen are, in one sentence; or why none can be.
    pub reason: Result<String>,
}

/// Something that was tried.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// What.
    pub name: &'static str,
    /// It works.
    pub works: bool,
    /// What that is good for, or why it does not work.
    pub text: String,
}

/// The interfaces, and the choice that `spec` (as in `UNISONO_INTERFACE`) leads to.
///
/// # Errors
/// `SYSTEM` when the interfaces cannot be listed. A spec that fits nothing is told in the reason.
pub fn interfaces(spec: Option<&str>) -> Result<Interfaces> {
    let choice = choose(spec);
    let chosen = choice.as_ref().map(|c| c.addresses.as_slice()).unwrap_or_default();
    let seen = |one: crate::sys::interface::Interface| Interface {
        chosen: chosen.contains(&one.address),
        name: one.name,
        address: one.address,
        prefix: one.prefix,
        up: one.up,
    };
    let all = list()?.into_iter().map(seen).collect();
    Ok(Interfaces { all, reason: choice.map(|c| c.reason) })
}

/// Processors this thread may run on.
#[must_use]
pub fn cores() -> usize {
    affinity::count()
}

/// What links between the ranks of one host rely on, each tried.
#[must_use]
pub fn memory() -> Vec<Finding> {
    let finding = |name, tried: Result<()>, good: &str, otherwise: &str| Finding {
        name,
        works: tried.is_ok(),
        text: match tried {
            Ok(()) => good.to_owned(),
            Err(error) => format!("{}: {otherwise}", error.detail),
        },
    };
    let pid = i32::try_from(std::process::id()).unwrap_or(0);
    vec![
        finding(
            "memfd",
            Segment::create("unisono-probe", 4096).map(drop),
            "processes share memory segments that leave no names behind",
            "ranks of this host can only use tcp",
        ),
        finding(
            "pidfd",
            Process::open(pid).map(drop),
            "the end of a local rank is seen at once",
            "the end of a local rank is seen by its connections alone",
        ),
        finding(
            "open files",
            limits::raise_files().map(drop),
            "the soft limit is raised to the hard one",
            "large worlds may run out of descriptors",
        ),
    ]
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_chosen_interfaces_are_marked_and_a_spec_that_fits_nothing_is_told() {
        let found = super::interfaces(Some("lo")).expect("list");
        assert!(found.reason.is_ok());
        assert!(found.all.iter().all(|one| one.chosen == one.address.is_loopback()));
        let none = super::interfaces(Some("nosuch0")).expect("list");
        assert!(none.reason.is_err() && none.all.iter().all(|one| !one.chosen));
    }

    #[test]
    fn what_this_host_offers_is_tried() {
        assert!(super::cores() >= 1);
        assert!(super::memory().iter().any(|f| f.name == "memfd" && f.works));
    }
}
