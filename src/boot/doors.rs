//! Listeners at the RDMA cards of a rank: which cards, at which addresses.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::offer::Offer;
use crate::error::{Code, Error, Result, quoted};
use crate::rdma::{Card, Channel, Device, Id, Library, cards};
use crate::sys::{interface, random};

/// Requests that may wait at a listener.
const BACKLOG: i32 = 1024;
/// Numbers of listeners' events: above those of connections.
pub(super) const LISTENERS: usize = 1 << 40;

/// Listeners at the cards of this rank.
#[derive(Debug)]
pub(crate) struct Doors {
    pub(crate) offer: Offer,
    pub(crate) channel: Arc<Channel>,
    /// Devices with the ports and addresses they are reached at, in the order of paths.
    pub(crate) bound: Vec<(Device, u8, IpAddr)>,
    _listeners: Vec<Id>,
    /// Which cards these are, and why.
    pub(crate) note: String,
}

/// Opens listeners at up to `paths` cards: those that are wanted, else those whose ports are up; of
/// these, where some are at the memory node `node` of this rank, these.
///
/// # Errors
/// `UNSUPPORTED` where there is no card, with the reason; `INVALID_ARGUMENT` where `wanted` names
/// one that is not there or cannot be used.
pub(crate) fn open(
    library: &Arc<Library>,
    wanted: Wanted<'_>,
    node: Option<u32>,
    paths: usize,
) -> Result<Doors> {
    let channel = Channel::new(library)?;
    let found = cards(library);
    let (chosen, why) = choose(&found, wanted, node)?;
    let (mut bound, mut listeners, mut addresses) = (Vec::new(), Vec::new(), Vec::new());
    let mut names = Vec::new();
    let mut refused = None;
    for card in chosen {
        let reached = reach(&channel, card).and_then(|found| {
            found.ok_or_else(|| {
                let text = format!("card {} has no address on an interface that is up", card.name);
                Error::new(Code::Unsupported, text)
            })
        });
        match reached {
            Ok((mut id, device, address)) => {
                id.renumber(LISTENERS + listeners.len());
                id.listen(BACKLOG)?;
                addresses.push(SocketAddr::new(address, id.port()));
                names.push(format!("{} at {address}", card.name));
                bound.push((device, id.device_port(), address));
                listeners.push(id);
            }
            Err(error) if matches!(wanted, Wanted::Named(_)) => {
                return Err(Error { code: Code::InvalidArgument, ..error });
            }
            Err(error) => refused = Some(error),
        }
        // What iWARP has brought is not known well enough for another card to take over.
        if bound.len() == if card.iwarp { 1 } else { paths } {
            break;
        }
    }
    if bound.is_empty() {
        let none = || Error::new(Code::Unsupported, "no RDMA card has a port that is up");
        return Err(refused.unwrap_or_else(none));
    }
    let offer = Offer { nonce: random::bytes()?, addresses };
    let note = format!("RDMA by {}: {why}", names.join(", "));
    Ok(Doors { offer, channel, bound, _listeners: listeners, note })
}

/// Which cards a rank is to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted<'a> {
    /// Any.
    Any,
    /// Those of these names: "mlx5_0,mlx5_1".
    Named(&'a str),
    /// The one with this number, counted around.
    Number(u32),
}

/// Which cards to use, and why these.
pub(super) fn choose<'a>(
    found: &'a [Card],
    wanted: Wanted<'_>,
    node: Option<u32>,
) -> Result<(Vec<&'a Card>, String)> {
    if let Wanted::Named(list) = wanted {
        let one = |name: &str| {
            found.iter().find(|card| card.name == name).ok_or_else(|| {
                let there: Vec<&str> = found.iter().map(|card| card.name.as_str()).collect();
                let text = format!(
                    "UNISONO_RDMA_DEVICE names {}; there are: {}",
                    quoted(name),
                    if there.is_empty() { "none".to_owned() } else { there.join(", ") }
                );
                Error::new(Code::InvalidArgument, text)
            })
        };
        let named: Vec<&Card> = list.split(',').map(str::trim).map(one).collect::<Result<_>>()?;
        return Ok((named, "asked for".to_owned()));
    }
    let up = |card: &&Card| card.ports.iter().any(|port| port.up);
    let usable: Vec<&Card> = found.iter().filter(up).collect();
    if let Wanted::Number(number) = wanted {
        let index = (number as usize).checked_rem(usable.len());
        let one = index.map(|index| usable[index]).into_iter().collect();
        return Ok((one, format!("that of local rank {number}")));
    }
    let near = |card: &&&Card| node.is_some() && card.node == node;
    let here: Vec<&Card> = usable.iter().filter(near).copied().collect();
    match (here.is_empty(), node) {
        (false, Some(node)) => Ok((here, format!("at this rank's memory node {node}"))),
        _ => Ok((usable, "up".to_owned())),
    }
}

/// Binds to an address of `card`.
pub(super) fn reach(channel: &Arc<Channel>, card: &Card) -> Result<Option<(Id, Device, IpAddr)>> {
    let all = interface::list()?;
    // Those in its table first: RoCE's. Others are found by trying.
    let own = card.ports.iter().filter(|port| port.up).flat_map(|port| port.addresses.clone());
    let mut up: Vec<_> = all.iter().filter(|one| one.up).collect();
    up.sort_by_key(|one| one.loopback);
    let up = up.into_iter().map(|one| one.address);
    let mut tried: Vec<IpAddr> = Vec::new();
    for address in own.chain(up) {
        if tried.contains(&address) {
            continue;
        }
        tried.push(address);
        let mut id = Id::new(channel, 0)?;
        if id.bind(SocketAddr::new(address, 0)).is_err() {
            continue;
        }
        if let Some(device) = id.device().filter(|device| device.name() == card.name) {
            return Ok(Some((id, device, address)));
        }
    }
    Ok(None)
}
