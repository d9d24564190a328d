//! The MPI that a communicator stands on: for its calls, or only so that its ranks meet.
//!
//! Ranks always meet by an id (`form`). On MPI the id travels by MPI, or the caller has given it as
//! usual; each rank's card says which rank of which MPI it is, and once all have met MPI makes a
//! communicator of exactly these ranks, in our order. So ranks of two different MPIs, or of two
//! jobs, are found before MPI is asked for anything.
//!
//! Manners: a program's own communicator is duplicated and then left alone; its error handler is
//! put back. MPI is initialised only where the program has not, and may be; what this library has
//! initialised it finalises when the process ends.

use std::ffi::{c_int, c_void};
use std::sync::{Arc, Mutex, PoisonError};

use crate::backend::Backend;
use crate::backend::mpi::{Mpi, Parts};
use crate::backend::native::Native;
use crate::boot::id::{ID_BYTES, UniqueId};
use crate::comm::card::Card;
use crate::comm::start::{encode_made, not_made, unique_id_on};
use crate::config::Config;
use crate::error::{Code, Error, Result};
use crate::mpi::{Handle, Kind, Level, Library, Lists, Primitive, Unit};
use crate::types::Rank;

/// The MPI that communicators of this process would use, in a line: its name, ABI and place. It is
/// loaded for that, and not initialised.
///
/// # Errors
/// `UNSUPPORTED` says why there is none.
pub fn mpi(config: &Config) -> Result<String> {
    crate::mpi::describe(config.mpi_lib.as_deref())
}

/// The NCCL that communicators of this process would use, in a line: its version, place and
/// features. It is loaded for that, and asked for no more.
///
/// # Errors
/// `UNSUPPORTED` says why there is none.
pub fn nccl(config: &Config) -> Result<String> {
    crate::nccl::describe(config.nccl_lib.as_deref())
}

/// Held while MPI is started. Global, as MPI is.
static STARTING: Mutex<()> = Mutex::new(());

/// A communicator of MPI, and this rank's place in it.
#[derive(Debug)]
pub(crate) struct Ground {
    library: Arc<Library>,
    comm: Handle,
    rank: u32,
    size: u32,
    /// Ours to free.
    owned: bool,
}

impl Ground {
    /// All ranks that were started together, where MPI is this library's own.
    ///
    /// # Errors
    /// `UNSUPPORTED` where there is no MPI; `INVALID_STATE` where the program has initialised it,
    /// or has not while this library must not, or on the wrong thread; MPI's own.
    pub(crate) fn world(config: &Config) -> Result<Self> {
        // One thread finds out whether MPI runs, and starts it.
        let _alone = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
        let library = Library::open(config.mpi_lib.as_deref())?;
        let state = |text: &str| Err(Error::new(Code::InvalidState, text));
        match (library.runs()?, library.is_ours()) {
            (true, true) => {}
            (true, false) => {
                return state(
                    "the program has initialised MPI: give unisono_comm_init_mpi the communicator \
                     whose ranks are meant",
                );
            }
            (false, _) if !config.mpi_init => {
                return state("MPI is not initialised, and UNISONO_MPI_INIT=0 forbids to do that");
            }
            (false, _) => library.start()?,
        }
        let comm = library.api().constants().comm_world;
        Self::new(library, comm, false)
    }

    /// A duplicate of the program's communicator: its handle, as an address.
    ///
    /// # Errors
    /// `INVALID_STATE` where MPI does not run, or this is the wrong thread; `INVALID_ARGUMENT`
    /// where the handle is none, or an inter-communicator; MPI's own.
    pub(crate) fn duplicate(comm: *mut c_void, config: &Config) -> Result<Self> {
        let library = Library::open(config.mpi_lib.as_deref())?;
        if !library.runs()? {
            let text = "MPI is not initialised, so there is no communicator to give";
            return Err(Error::new(Code::InvalidState, text));
        }
        let comm = Handle(comm);
        let api = library.api();
        if comm == Handle::NONE || comm == api.constants().comm_null {
            let text = format!("the communicator is none of {}", library.name);
            return Err(Error::new(Code::InvalidArgument, text));
        }
        may_call(&library)?;
        let made = library.quietly(comm, || {
            let mut inter = 0;
            library.check(api.comm_test_inter(comm, &mut inter), "MPI_Comm_test_inter")?;
            if inter != 0 {
                let text = "an inter-communicator has two groups of ranks: merge them first";
                return Err(Error::new(Code::InvalidArgument, text));
            }
            let mut made = api.constants().comm_null;
            library.check(api.comm_dup(comm, &mut made), "MPI_Comm_dup")?;
            Ok(made)
        })?;
        Self::new(library, made, true)
    }

    /// Refuses what [`Ground::shrink`] cannot do here.
    ///
    /// # Errors
    /// `UNSUPPORTED` where this MPI cannot, `INVALID_STATE` on the wrong thread.
    pub(crate) fn may_shrink(&self) -> Result<()> {
        may_call(&self.library)?;
        if !self.library.survives() {
            let text = format!(
                "{} cannot shrink a communicator here: that takes Open MPI 5 or later, started by \
                 mpirun --with-ft ulfm",
                self.library.name
            );
            return Err(Error::new(Code::Unsupported, text));
        }
        Ok(())
    }

    /// Lets every rank out of MPI's calls on this, for good. Only where ranks can be shrunk.
    pub(crate) fn revoke(&self) {
        // What it says changes nothing.
        self.library.api().comm_revoke(self.comm);
    }

    /// The ranks of this one that live, in their order. All of them call this; whatever is under
    /// way on it ends.
    ///
    /// # Errors
    /// MPI's own.
    pub(crate) fn shrink(&self) -> Result<Self> {
        let library = &self.library;
        let mut made = library.api().constants().comm_null;
        library.check(library.api().comm_revoke(self.comm), "MPIX_Comm_revoke")?;
        library.check(library.api().comm_shrink(self.comm, &mut made), "MPIX_Comm_shrink")?;
        Self::new(library.clone(), made, true)
    }

    fn new(library: Arc<Library>, comm: Handle, owned: bool) -> Result<Self> {
        may_call(&library)?;
        let mut made = Self { library, comm, rank: 0, size: 0, owned };
        let api = made.library.api();
        if owned {
            let code = api.set_errhandler(comm, api.constants().errors_return);
            made.library.check(code, "MPI_Comm_set_errhandler")?;
        }
        let (mut rank, mut size) = (0, 0);
        made.library.check(api.comm_rank(comm, &mut rank), "MPI_Comm_rank")?;
        made.library.check(api.comm_size(comm, &mut size), "MPI_Comm_size")?;
        made.rank = u32::try_from(rank).unwrap_or(0);
        made.size = u32::try_from(size).unwrap_or(0);
        Ok(made)
    }

    /// Rank and number of ranks.
    pub(crate) fn place(&self) -> (u32, u32) {
        (self.rank, self.size)
    }

    /// What it is, in a few words.
    pub(crate) fn name(&self) -> &str {
        &self.library.name
    }

    /// What the other ranks are told.
    pub(crate) fn card(&self) -> (u32, String) {
        (self.rank, format!("{} ({})", self.library.name, self.library.abi))
    }

    /// An id that rank 0 makes and MPI takes to the others.
    ///
    /// # Errors
    /// As [`crate::unique_id`] on rank 0, and what it met with on the others; MPI's own.
    pub(crate) fn share_id(&self, interface: Option<&str>) -> Result<UniqueId> {
        let made = (self.rank == 0).then(|| unique_id_on(interface)).transpose();
        let mut bytes = encode_made(&made);
        let constants = self.library.api().constants();
        let whole = Primitive {
            kind: Kind::Broadcast,
            send: bytes.as_ptr().cast(),
            recv: bytes.as_mut_ptr().cast(),
            count: ID_BYTES as u64,
            unit: constants.units[Unit::U8 as usize],
            op: Handle::NONE,
            root: 0,
            tag: 0,
            wide: false,
        };
        self.library.quietly(self.comm, || {
            let none = [Lists::default(), Lists::default()];
            // SAFETY: the bytes live until the call has returned, and are as many as are said.
            let code = unsafe { self.library.api().call(&whole, &none, self.comm, None) };
            self.library.check(code, whole.kind.name())
        })?;
        if let Some(id) = made? {
            return Ok(id);
        }
        if let Some(code) = not_made(&bytes) {
            let text = format!("rank 0 could make no id: {}", code.text());
            return Err(Error::new(code, text).with_peer(Rank(0)));
        }
        UniqueId::decode(&bytes)
    }

    /// The backend of a communicator whose ranks are these ranks of MPI's, and what its splits
    /// stand on. All of them call this.
    pub(crate) fn build(
        &self,
        side: Native,
        ranks: &[c_int],
        (rank, id): (Rank, &UniqueId),
        (config, notes): (&mut Config, &mut Vec<String>),
    ) -> Result<(Box<dyn Backend>, Self)> {
        let library = &self.library;
        let comm = library.quietly(self.comm, || self.choose(ranks, id))?;
        let code = library.api().set_errhandler(comm, library.api().constants().errors_return);
        library.check(code, "MPI_Comm_set_errhandler")?;
        let level = library.thread()?.level;
        notes.push(format!("calls by {} ({}): {}", library.name, library.abi, library.place));
        if level < Level::Multiple && config.progress_thread {
            config.progress_thread = false;
            notes.push(format!(
                "MPI granted {} only, so non-blocking calls progress in test and wait alone",
                level.name()
            ));
        }
        if !config.check {
            notes.push("calls are not compared, and those that wait have no deadline".to_owned());
        }
        let world = u32::try_from(ranks.len()).unwrap_or(u32::MAX);
        let parts = Parts {
            library: library.clone(),
            comm,
            rank,
            world,
            deterministic: config.deterministic,
            checks: config.check,
            limit: u64::from(config.mpi_count_max),
            timeout: config.timeout,
        };
        let backend = Mpi::new(side, parts)?;
        let ground =
            Self { library: library.clone(), comm, rank: rank.0, size: world, owned: false };
        Ok((Box::new(backend), ground))
    }

    /// A communicator of some of the ranks, in this order.
    fn choose(&self, ranks: &[c_int], id: &UniqueId) -> Result<Handle> {
        let (library, api) = (&self.library, self.library.api());
        // Groups that form at the same time are told apart by their id, whose end is a checksum.
        let bytes = id.encode();
        let tag = c_int::from(u16::from_le_bytes([bytes[ID_BYTES - 2], bytes[ID_BYTES - 1]]) >> 2);
        let (mut all, mut some) = (Handle::NONE, Handle::NONE);
        let mut made = api.constants().comm_null;
        library.check(api.comm_group(self.comm, &mut all), "MPI_Comm_group")?;
        library.check(api.group_incl(all, ranks, &mut some), "MPI_Group_incl")?;
        let created = api.comm_create_group(self.comm, some, tag, &mut made);
        library.check(created, "MPI_Comm_create_group")?;
        library.check(api.group_free(some), "MPI_Group_free")?;
        library.check(api.group_free(all), "MPI_Group_free")?;
        Ok(made)
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        if self.owned
            && !self.library.is_copy()
            && self.library.runs().unwrap_or(false)
            && may_call(&self.library).is_ok()
        {
            self.library.api().comm_free(self.comm);
        }
    }
}

/// Refuses a thread that must not call MPI.
fn may_call(library: &Library) -> Result<()> {
    let thread = library.thread()?;
    if thread.level >= Level::Serialized || thread.main {
        return Ok(());
    }
    let text = format!(
        "MPI was initialised with {}, and this is not the thread that did: form the communicator \
         on that thread, or initialise MPI with MPI_THREAD_MULTIPLE",
        thread.level.name()
    );
    Err(Error::new(Code::InvalidState, text))
}

/// The ranks of MPI's that the cards name, in our order; none on the native backend.
///
/// # Errors
/// `MISMATCH` names two ranks that cannot be in one communicator of MPI's, or of any.
pub(crate) fn agree(cards: &[Card], me: u32) -> Result<Vec<c_int>> {
    let own = &cards[Rank(me).index()];
    let differ =
        |rank: usize, text: String| Err(Error::new(Code::Mismatch, text).with_peer(Rank::at(rank)));
    for (rank, card) in cards.iter().enumerate() {
        match (&own.foreign, &card.foreign) {
            _ if own.family != card.family => {
                let (ours, theirs) = (own.family.name(), card.family.name());
                let text = format!("rank {me} has backend {ours}, rank {rank} has {theirs}");
                return differ(rank, text);
            }
            (Some((_, ours)), Some((_, theirs))) if ours == theirs => {}
            (Some((_, ours)), Some((_, theirs))) => {
                let text = format!("rank {me} runs {ours}, rank {rank} runs {theirs}");
                return differ(rank, text);
            }
            // One backend, and so all have an MPI or none.
            _ => {}
        }
    }
    let ranks: Vec<u32> =
        cards.iter().filter_map(|card| card.foreign.as_ref().map(|f| f.0)).collect();
    for (rank, theirs) in ranks.iter().enumerate() {
        if let Some(first) = ranks[..rank].iter().position(|one| one == theirs) {
            let text = format!(
                "ranks {first} and {rank} are both rank {theirs} of their MPI: they were not \
                 started by one mpirun"
            );
            return differ(rank, text);
        }
    }
    Ok(ranks.into_iter().map(|rank| c_int::try_from(rank).unwrap_or(c_int::MAX)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Family;

    fn card(foreign: Option<(u32, &str)>) -> Card {
        Card {
            hint: [0; 32],
            name: String::new(),
            addresses: Vec::new(),
            processors: Vec::new(),
            family: if foreign.is_some() { Family::Mpi } else { Family::Native },
            foreign: foreign.map(|(rank, text)| (rank, text.to_owned())),
            gpu: None,
            rdma: None,
            rsocket: None,
        }
    }

    #[test]
    fn ranks_of_one_mpi_agree_and_others_are_named() {
        let of = |cards: &[Option<(u32, &str)>]| {
            let cards: Vec<Card> = cards.iter().map(|c| card(*c)).collect();
            agree(&cards, 0).map_err(|error| (error.code, error.detail.into_string()))
        };
        assert_eq!(of(&[None, None]), Ok(vec![]));
        assert_eq!(of(&[Some((1, "A")), Some((0, "A"))]), Ok(vec![1, 0]));
        let said = |cards: &[Option<(u32, &str)>]| {
            let (code, text) = of(cards).expect_err("they differ");
            assert_eq!(code, Code::Mismatch);
            text
        };
        assert_eq!(said(&[Some((0, "A")), Some((1, "B"))]), "rank 0 runs A, rank 1 runs B");
        assert_eq!(said(&[Some((0, "A")), None]), "rank 0 has backend mpi, rank 1 has native");
        assert!(said(&[Some((0, "A")), Some((0, "A"))]).contains("not started by one mpirun"));
    }
}
