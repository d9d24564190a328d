//! Groups of calls that are posted and end together, and groups of ranks.

use crate::boot::id::{ID_BYTES, UniqueId};
use crate::call::Call;
use crate::comm::form::prepare;
use crate::comm::start::{encode_made, not_made, unique_id_on};
use crate::comm::table::lock;
use crate::comm::{Communicator, Request};
use crate::error::{Code, Error, Result};
use crate::sync::Ordering;
use crate::types::Rank;

impl Communicator {
    /// From here on calls are collected, until the group ends.
    ///
    /// # Errors
    /// `INVALID_STATE` inside a group, `BUSY`.
    pub fn group_start(&self) -> Result<()> {
        let _inside = self.enter()?;
        let mut group = lock(&self.group);
        if group.is_some() {
            return Err(Error::new(Code::InvalidState, "a group is open: groups do not nest"));
        }
        *group = Some(Vec::new());
        self.collects.store(1, Ordering::Relaxed);
        Ok(())
    }

    fn group_take(&self) -> Result<Vec<Call>> {
        self.collects.store(0, Ordering::Relaxed);
        lock(&self.group)
            .take()
            .ok_or_else(|| Error::new(Code::InvalidState, "no group was started"))
    }

    /// Posts the group's calls and waits for all of them.
    ///
    /// # Errors
    /// `INVALID_STATE` without a group; whatever ended the first call that failed.
    pub fn group_end(&self) -> Result<()> {
        if let Some(mut request) = self.post_group(false)? {
            request.wait(None)?;
        }
        Ok(())
    }

    /// Posts the group's calls; `None` when there are none.
    ///
    /// # Errors
    /// `INVALID_STATE` without a group, `BUSY`, `LIMIT`.
    pub fn group_start_all(&self) -> Result<Option<Request>> {
        self.post_group(true)
    }

    /// As [`Communicator::group_start_all`]; `waits`: the request ends when the calls have, even if
    /// they could have their place in a stream.
    fn post_group(&self, waits: bool) -> Result<Option<Request>> {
        let _inside = self.enter()?;
        let mut calls = self.group_take()?;
        if waits {
            calls.iter_mut().for_each(|call| call.place = call.place.waiting());
        }
        if calls.is_empty() {
            return Ok(None);
        }
        // SAFETY: whoever put a call into the group promised its buffers until the group has ended.
        unsafe { self.post_all(&calls).map(Some) }
    }
}

/// Shrinks `parent`; see [`Communicator::shrink`].
pub(crate) fn shrink(parent: &Communicator) -> Result<Communicator> {
    let Some(ground) = parent.ground() else {
        let text = "the native backend cannot shrink a communicator in this version";
        return Err(Error::new(Code::Unsupported, text));
    };
    let _inside = parent.enter()?;
    parent.no_group()?;
    ground.may_shrink()?;
    parent.core.give_up(Error::new(Code::Aborted, "the communicator is being shrunk"));
    let left = ground.shrink()?;
    let made = Communicator::on_ground(&left, parent.config());
    if made.is_err() {
        // Others may wait in MPI for this rank.
        left.revoke();
    }
    made
}

/// A member of a split: what every rank says, in the order that sorts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Member {
    color: i32,
    key: i32,
    rank: u32,
}

/// Splits `parent`; see [`Communicator::split`].
pub(crate) fn split(parent: &Communicator, color: i32, key: i32) -> Result<Option<Communicator>> {
    let (me, world) = (parent.rank().0, parent.world_size() as usize);
    // What a rank may lack it finds out before the others wait for it, and tells them.
    let prepared = (color >= 0).then(|| prepare(parent.config(), false)).transpose();
    let lacks = prepared.as_ref().map_or_else(|error| error.code as i32, |_| 0);
    let mut words = vec![0i32; 3 * world];
    parent.all_gather(&[color, key, lacks], &mut words)?;
    let ours = (0..).zip(words.chunks_exact(3)).filter(|(_, w)| w[0] == color && color >= 0);
    let failed = ours.clone().find(|(_, words)| words[2] != 0);
    let mut members: Vec<Member> =
        ours.map(|(rank, words)| Member { color, key: words[1], rank }).collect();
    members.sort_unstable();
    let leads = failed.is_none() && members.first().is_some_and(|m| m.rank == me);
    // Everyone takes part in the exchange of ids, whatever its color, and even when it could make
    // none.
    let interface = parent.config().interface.as_deref();
    let made = leads.then(|| unique_id_on(interface)).transpose();
    let mine = encode_made(&made);
    let mut ids = vec![0u8; ID_BYTES * world];
    parent.all_gather(&mine, &mut ids)?;
    made?;
    let (Some(prepared), Some(first)) = (prepared?, members.first()) else {
        return Ok(None);
    };
    if let Some((rank, words)) = failed {
        return Err(not_split(rank, words[2]));
    }
    let at = ID_BYTES * first.rank as usize;
    let bytes = &ids[at..at + ID_BYTES];
    if let Some(code) = not_made(bytes) {
        return Err(not_split(first.rank, code as i32));
    }
    let id = UniqueId::decode(bytes)?;
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let rank = members.iter().position(|m| m.rank == me).unwrap_or(0);
    let place = (count(rank), count(members.len()));
    let formed = (prepared, parent.ground());
    let made = Communicator::with_prepared(&id, place, parent.config(), formed);
    made.map(Some).map_err(|error| in_parent(error, &members))
}

/// An error of the communicator that was to be, for its parent: ranks have other numbers there.
fn in_parent(mut error: Error, members: &[Member]) -> Error {
    let of_parent = |rank: Rank| members.get(rank.index()).map(|m| Rank(m.rank));
    error.peer = error.peer.and_then(of_parent);
    let culprit = error.peer.map_or(String::new(), |rank| format!(" at rank {rank}"));
    let text = format!("the split failed{culprit}; in its numbers: {}", error.detail);
    Error { detail: text.into(), ..error }
}

/// `rank` of the parent could not go on: what its members get.
fn not_split(rank: u32, number: i32) -> Error {
    let code = Code::from_number(number).unwrap_or(Code::Protocol);
    let text = format!("rank {rank} could not take part in the split: {}", code.text());
    Error::new(code, text).with_peer(Rank(rank))
}
