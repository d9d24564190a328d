//! Sockets of librdmacm in a build without its bindings: nobody has any.

use crate::boot::mesh::Place;
use crate::boot::offer::Offer;
use crate::boot::rendezvous::Joined;
use crate::comm::rdma::WITHOUT;
use crate::config::Config;
use crate::error::Result;
use crate::link::ends::Ends;
use crate::link::rdma::Opened;

/// Nobody has one.
#[derive(Debug)]
pub(crate) enum Door {}

/// Nobody is.
#[derive(Debug)]
pub(crate) struct Connected {
    pub(crate) opened: Opened,
    pub(crate) member: Vec<Option<usize>>,
}

pub(crate) fn prepare(_: &Config, _: Option<u32>) -> Result<Result<Door, String>> {
    Ok(Err(WITHOUT.to_owned()))
}

pub(crate) fn offer(door: &Door) -> Offer {
    match *door {}
}

pub(crate) fn connect(
    place: &Place<'_>,
    _: Option<Door>,
    offers: &[Option<Offer>],
    _: &[bool],
    _: (&Ends, &mut Vec<String>),
    joined: &mut Joined,
) -> Result<(Option<Connected>, bool)> {
    // Those that have it agree on it with everyone.
    joined.exchange(&vec![0; offers.len()], place.deadline)?;
    Ok((None, false))
}
