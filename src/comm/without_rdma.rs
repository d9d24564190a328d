//! RDMA in a build without its bindings: nobody has any.

use crate::boot::mesh::Place;
use crate::boot::offer::Offer;
use crate::boot::rendezvous::Joined;
use crate::config::Config;
use crate::error::{Code, Error, Result};
use crate::link::ends::Ends;
use crate::link::rdma::Launched;

/// Why.
pub(crate) const WITHOUT: &str = "this library was built without RDMA, for want of libclang: install it \
                       (Debian: libclang-dev) and build again";

/// Of no message.
pub(crate) const PLACE_BYTES: usize = usize::MAX;

/// Nobody has any.
#[derive(Debug)]
pub(crate) enum Doors {}

/// Nobody is.
#[derive(Debug)]
pub(crate) struct Connected {
    pub(crate) launched: Launched,
    pub(crate) member: Vec<Option<usize>>,
}

/// The RDMA cards of this host: why there are none.
///
/// # Errors
/// `UNSUPPORTED`.
pub fn rdma(_: &Config) -> Result<(Vec<String>, String)> {
    Err(Error::new(Code::Unsupported, WITHOUT))
}

pub(crate) fn prepare(config: &Config, _: Option<u32>) -> Result<Result<Doors, String>> {
    if config.rdma && config.rdma_device.is_some() {
        return Err(Error::new(Code::Unsupported, WITHOUT));
    }
    Ok(Err(WITHOUT.to_owned()))
}

pub(crate) fn offer(doors: &Doors) -> Offer {
    match *doors {}
}

pub(crate) fn connect(
    place: &Place<'_>,
    _: Option<Doors>,
    offers: &[Option<Offer>],
    _: &[bool],
    _: (usize, &Ends, &mut Vec<String>),
    joined: &mut Joined,
) -> Result<(Option<Connected>, bool)> {
    // Those that have it agree on it with everyone.
    joined.exchange(&vec![0; offers.len()], place.deadline)?;
    Ok((None, false))
}
