//! The cards of this host: names, ports, addresses; and those that connections are on.

use std::ffi::CStr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use super::abi::verbs as abi;
use super::library::{Library, check_errno};
use super::memory::Domain;
use super::queue::Completions;
use crate::error::Result;

/// What is known of a card without using it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Card {
    /// Its name, such as `mlx5_0`.
    pub(crate) name: String,
    pub(crate) ports: Vec<Port>,
    /// iWARP: writes tell nothing by themselves.
    pub(crate) iwarp: bool,
    /// The memory node it is at, where the system says.
    pub(crate) node: Option<u32>,
}

/// A port of a card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Port {
    pub(crate) number: u8,
    pub(crate) up: bool,
    pub(crate) ethernet: bool,
    /// Addresses in its table of GIDs.
    pub(crate) addresses: Vec<IpAddr>,
}

/// GIDs that are looked at: of a few addresses each has one for each version of RoCE.
const GIDS_MAX: i32 = 64;

/// The name of a device.
pub(super) fn name(library: &Library, device: *mut abi::ibv_device) -> String {
    // SAFETY: the device is one of the library's; its name lives as long.
    let name = unsafe { CStr::from_ptr(library.verbs.ibv_get_device_name(device)) };
    name.to_string_lossy().into_owned()
}

/// All cards.
pub(crate) fn cards(library: &Arc<Library>) -> Vec<Card> {
    let mut count = 0;
    // SAFETY: the call writes a number.
    let list = unsafe { library.verbs.ibv_get_device_list(&raw mut count) };
    if list.is_null() {
        return Vec::new();
    }
    let count = usize::try_from(count).unwrap_or(0);
    // SAFETY: the list has so many entries until it is freed.
    let devices = unsafe { std::slice::from_raw_parts(list, count) };
    let found = devices.iter().filter_map(|device| card(library, *device)).collect();
    // SAFETY: the list was got once, and no device of it is used any more.
    unsafe { library.verbs.ibv_free_device_list(list) };
    found
}

fn card(library: &Library, device: *mut abi::ibv_device) -> Option<Card> {
    // SAFETY: the device is in a list that is not freed.
    let (iwarp, context) = unsafe {
        let iwarp = (*device).transport_type == abi::IBV_TRANSPORT_IWARP;
        (iwarp, library.verbs.ibv_open_device(device))
    };
    if context.is_null() {
        return None;
    }
    let name = name(library, device);
    let node = std::fs::read_to_string(format!("/sys/class/infiniband/{name}/device/numa_node"));
    let node = node.ok().and_then(|text| text.trim().parse().ok());
    let mut attributes = abi::ibv_device_attr::default();
    // SAFETY: the context is open; the call writes the record.
    let asked = unsafe { library.verbs.ibv_query_device(context, &raw mut attributes) };
    let ports = if asked == 0 { attributes.phys_port_cnt } else { 0 };
    let mut ports: Vec<Port> =
        (1..=ports).filter_map(|number| port(library, context, number)).collect();
    if iwarp {
        // Its GIDs are hardware addresses.
        ports.iter_mut().for_each(|port| port.addresses.clear());
    }
    // SAFETY: opened above, and nothing uses it any more.
    unsafe { library.verbs.ibv_close_device(context) };
    Some(Card { name, ports, iwarp, node })
}

fn port(library: &Library, context: *mut abi::ibv_context, number: u8) -> Option<Port> {
    let mut attributes = abi::ibv_port_attr::default();
    // SAFETY: the context is open; the record is all zeros, and the call writes it.
    let asked = unsafe {
        library.verbs.ibv_query_port(context, number, ptr::from_mut(&mut attributes).cast())
    };
    if asked != 0 {
        return None;
    }
    let mut addresses = Vec::new();
    for index in 0..attributes.gid_tbl_len.min(GIDS_MAX) {
        let mut gid = abi::ibv_gid::default();
        // SAFETY: the context is open; the call writes the GID.
        if unsafe { library.verbs.ibv_query_gid(context, number, index, &raw mut gid) } != 0 {
            continue;
        }
        // SAFETY: any bytes are a GID.
        let found = address_of(unsafe { gid.raw });
        addresses.extend(found.filter(|address| !addresses.contains(address)));
    }
    let up = attributes.state == abi::IBV_PORT_ACTIVE;
    let ethernet = u32::from(attributes.link_layer) == abi::IBV_LINK_LAYER_ETHERNET;
    Some(Port { number, up, ethernet, addresses })
}

/// A device that an id is on.
#[derive(Clone, Debug)]
pub(crate) struct Device {
    library: Arc<Library>,
    context: NonNull<abi::ibv_context>,
}

// SAFETY: libibverbs may be called from any thread.
unsafe impl Send for Device {}

impl Device {
    /// The one of an id.
    pub(super) const fn of(library: Arc<Library>, context: NonNull<abi::ibv_context>) -> Self {
        Self { library, context }
    }

    /// The library it was found by.
    pub(crate) const fn library(&self) -> &Arc<Library> {
        &self.library
    }

    /// Its name, such as `mlx5_0`.
    pub(crate) fn name(&self) -> String {
        // SAFETY: librdmacm keeps its devices open.
        name(&self.library, unsafe { (*self.context.as_ptr()).device })
    }

    /// Whether immediates come with writes: iWARP has none.
    pub(crate) fn has_immediates(&self) -> bool {
        // SAFETY: as above.
        let kind = unsafe { (*(*self.context.as_ptr()).device).transport_type };
        kind != abi::IBV_TRANSPORT_IWARP
    }

    /// The most requests of a queue, and completions.
    pub(crate) fn limits(&self) -> Result<(u32, u32)> {
        let mut attributes = abi::ibv_device_attr::default();
        // SAFETY: as above; the call writes the record.
        let done = unsafe {
            self.library.verbs.ibv_query_device(self.context.as_ptr(), &raw mut attributes)
        };
        check_errno(done, "the limits of an RDMA card")?;
        let number = |value: i32| u32::try_from(value).unwrap_or(0);
        Ok((number(attributes.max_qp_wr), number(attributes.max_cqe)))
    }

    /// Whether port `number` is up.
    pub(crate) fn is_up(&self, number: u8) -> bool {
        let mut attributes = abi::ibv_port_attr::default();
        let at = ptr::from_mut(&mut attributes).cast();
        // SAFETY: librdmacm keeps its devices open; the record is all zeros, and the call writes
        // it.
        let asked = unsafe { self.library.verbs.ibv_query_port(self.context.as_ptr(), number, at) };
        asked == 0 && attributes.state == abi::IBV_PORT_ACTIVE
    }

    /// A protection domain on it.
    pub(crate) fn domain(&self) -> Result<Arc<Domain>> {
        // SAFETY: librdmacm keeps its devices open.
        unsafe { Domain::new(self.library.clone(), self.context.as_ptr()) }
    }

    /// A queue for completions on it.
    pub(crate) fn completions(&self, room: u32) -> Result<Arc<Completions>> {
        // SAFETY: as above.
        unsafe { Completions::new(self.library.clone(), self.context.as_ptr(), room) }
    }
}

/// The addresses that a GID may be: those of RoCE are addresses of the network.
fn address_of(gid: [u8; 16]) -> Option<IpAddr> {
    let v6 = Ipv6Addr::from(gid);
    if let Some(v4) = v6.to_ipv4_mapped() {
        return Some(IpAddr::V4(v4)).filter(|v4| *v4 != Ipv4Addr::UNSPECIFIED);
    }
    // Link-local ones need their interface.
    let usable = !v6.is_unspecified() && !v6.is_unicast_link_local();
    usable.then_some(IpAddr::V6(v6))
}
