//! Sockets of librdmacm between the ranks of a communicator, where queue pairs are not to be had.

use std::time::Instant;

use crate::boot::gate::{self, Gate};
use crate::boot::mesh::Place;
use crate::boot::offer::Offer;
use crate::boot::rdma::agree;
use crate::boot::rendezvous::Joined;
use crate::boot::rsocket as boot;
use crate::comm::rdma::{LIMIT, greet, wanted};
use crate::config::Config;
use crate::error::{Code, Result};
use crate::link::ends::Ends;
use crate::link::rdma::{Fitted, Opened};
use crate::rdma::Library;
use crate::sys::affinity;
use crate::types::Rank;

/// The listener of this rank, or why there is none.
pub(crate) type Door = Gate;

/// Opens the listener of this rank.
///
/// # Errors
/// What was asked for and is not there.
pub(crate) fn prepare(config: &Config, local_rank: Option<u32>) -> Result<Result<Door, String>> {
    if !config.rsocket {
        return Ok(Err("rsocket is not among the links".to_owned()));
    }
    let wanted = wanted(config, local_rank);
    let opened = Library::open(config.ibverbs_lib.as_deref(), config.rdmacm_lib.as_deref())
        .and_then(|library| gate::open(&library, wanted, affinity::node()));
    match opened {
        Ok(gate) => Ok(Ok(gate)),
        Err(error) if error.code == Code::InvalidArgument => Err(error),
        Err(error) => Ok(Err(error.detail.into())),
    }
}

/// What a rank tells of its listener.
pub(crate) fn offer(door: &Door) -> Offer {
    door.offer.clone()
}

/// Connections to some of the ranks.
#[derive(Debug)]
pub(crate) struct Connected {
    pub(crate) opened: Opened,
    /// Which number each rank has that is connected.
    pub(crate) member: Vec<Option<usize>>,
}

/// As [`crate::comm::rdma::connect`], by sockets.
///
/// # Errors
/// What this rank lacks, and what others have failed by.
pub(crate) fn connect(
    place: &Place<'_>,
    door: Option<Door>,
    offers: &[Option<Offer>],
    wanted: &[bool],
    (ends, notes): (&Ends, &mut Vec<String>),
    joined: &mut Joined,
) -> Result<(Option<Connected>, bool)> {
    let world = offers.len();
    let mut fitted: Vec<Option<Fitted>> = (0..world).map(|_| None).collect();
    let mut card = None;
    if let Some(mut gate) = door {
        let peer = |rank: usize| offers[rank].clone().filter(|_| wanted[rank]);
        let peers: Vec<Option<Offer>> = (0..world).map(peer).collect();
        let place = Place { deadline: place.deadline.min(Instant::now() + LIMIT), ..*place };
        notes.push(std::mem::take(&mut gate.note));
        let (streams, failed) = boot::connect(&place, &mut gate, &peers, joined)?;
        notes.extend(failed.into_iter().map(|why| format!("not by rsocket (RDMA): {why}")));
        for (rank, stream) in streams.into_iter().enumerate() {
            match stream.map(|stream| Fitted::new(Rank::at(rank), stream)).transpose() {
                Ok(made) => fitted[rank] = made,
                // Too little memory may be locked, say: other links do without.
                Err(error) => notes.push(format!("not by rsocket (RDMA): {}", error.detail)),
            }
        }
        card = Some(gate.card);
    }
    let mine: Vec<usize> = fitted.iter().map(|made| usize::from(made.is_some())).collect();
    let (kept, any) = agree(joined, place.rank, &mine, place.deadline)?;
    let Some(card) = card else { return Ok((None, any)) };
    let (mut member, mut all) = (vec![None; world], Vec::new());
    for (rank, made) in fitted.into_iter().enumerate() {
        if let Some(made) = made.filter(|_| kept[rank] > 0) {
            member[rank] = Some(all.len());
            all.push(made);
        }
    }
    if all.is_empty() {
        return Ok((None, any));
    }
    let opened = Opened::launch(all, card, ends.clone())?;
    greet(|index| opened.is_open(index), "an rsocket", &member, place.deadline, joined)?;
    Ok((Some(Connected { opened, member }), any))
}
