//! Groups of calls that are posted and end together, and groups of ranks.

use crate::boot::id::UniqueId;
use crate::call::Call;
use crate::comm::start::unique_id_on;
use crate::comm::table::lock;
use crate::comm::{Communicator, Request};
use crate::error::{Code, Error, Result};

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
        Ok(())
    }

    fn group_take(&self) -> Result<Vec<Call>> {
        lock(&self.group)
            .take()
            .ok_or_else(|| Error::new(Code::InvalidState, "no group was started"))
    }

    /// Posts the group's calls and waits for all of them.
    ///
    /// # Errors
    /// `INVALID_STATE` without a group; whatever ended the first call that failed.
    pub fn group_end(&self) -> Result<()> {
        if let Some(mut request) = self.group_start_all()? {
            request.wait(None)?;
        }
        Ok(())
    }

    /// Posts the group's calls; `None` when there are none.
    ///
    /// # Errors
    /// `INVALID_STATE` without a group, `BUSY`, `LIMIT`.
    pub fn group_start_all(&self) -> Result<Option<Request>> {
        let _inside = self.enter()?;
        let calls = self.group_take()?;
        if calls.is_empty() {
            return Ok(None);
        }
        // SAFETY: whoever put a call into the group promised its buffers until the group has ended.
        unsafe { self.post_all(&calls).map(Some) }
    }
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
    let world = parent.world_size() as usize;
    let mut words = vec![0i32; 2 * world];
    parent.all_gather(&[color, key], &mut words)?;
    let mut members: Vec<Member> = (0..)
        .zip(words.chunks_exact(2))
        .map(|(rank, pair)| Member { color: pair[0], key: pair[1], rank })
        .filter(|m| m.color == color && color >= 0)
        .collect();
    members.sort_unstable();
    let leads = members.first().is_some_and(|m| m.rank == parent.rank().0);
    // Everyone takes part in the exchange of ids, whatever its color, and even when it could make
    // none: then its members find that the id is none.
    let interface = parent.config().interface.as_deref();
    let made = leads.then(|| unique_id_on(interface)).transpose();
    let mine = made.as_ref().ok().and_then(Option::as_ref).map_or([0; 128], UniqueId::encode);
    let mut ids = vec![0u8; 128 * world];
    parent.all_gather(&mine, &mut ids)?;
    made?;
    let Some(first) = members.first() else {
        return Ok(None);
    };
    let at = 128 * first.rank as usize;
    let id = UniqueId::decode(&ids[at..at + 128])?;
    let rank = members.iter().position(|m| m.rank == parent.rank().0).unwrap_or(0);
    let (rank, world) = (i64::try_from(rank), i64::try_from(members.len()));
    let (Ok(rank), Ok(world)) = (rank, world) else {
        return Err(Error::new(Code::Internal, "a split of more ranks than there are"));
    };
    Communicator::init_rank(&id, rank, world, parent.config()).map(Some)
}
