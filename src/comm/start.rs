//! How communicators begin: by an id, from the environment, as threads of one process.

use std::time::{Duration, Instant};

use crate::boot::env::Launch;
use crate::boot::id::{ID_BYTES, UniqueId};
use crate::boot::interface::choose;
use crate::boot::key::Key;
use crate::boot::rendezvous::Rendezvous;
use crate::comm::call::Seat;
use crate::comm::form::Prepared;
use crate::comm::ground::Ground;
use crate::comm::{Communicator, form};
use crate::config::{Config, Family};
use crate::error::{Code, Error, Result};
use crate::obs::log::Level;
use crate::sync::{Ordering, StaticU32};
use crate::sys::affinity;
use crate::types::Rank;

/// Communicators this process has made from its environment: each needs a meeting place of its own.
static FROM_ENVIRONMENT: StaticU32 = StaticU32::new(0);

/// A new job: an id that carries its addresses and a random key, and a background thread where its
/// ranks will meet. Give the id to every rank; who has it can join.
///
/// # Errors
/// `NO_ADDRESS` when there is no usable network address, `SYSTEM` when sockets or memory run out.
pub fn unique_id() -> Result<UniqueId> {
    unique_id_on(Config::from_env()?.interface.as_deref())
}

/// As [`unique_id`], on the interface that `spec` names.
pub(super) fn unique_id_on(spec: Option<&str>) -> Result<UniqueId> {
    let choice = choose(spec)?;
    let addresses: Vec<_> =
        choice.addresses.iter().map(|&ip| std::net::SocketAddr::new(ip, 0)).collect();
    Rendezvous::listen(&addresses, Key::random()?)?.unique_id()
}

/// What one rank gives the others of the id it has made, if it was to make one: where it could not,
/// the code of its error stands in the id's place.
pub(super) fn encode_made(made: &Result<Option<UniqueId>>) -> [u8; ID_BYTES] {
    let mut bytes = [0; ID_BYTES];
    match made {
        Ok(Some(id)) => bytes = id.encode(),
        Ok(None) => {}
        Err(error) => bytes[..4].copy_from_slice(&(error.code as i32).to_le_bytes()),
    }
    bytes
}

/// The code of the error with which no id was made.
pub(super) fn not_made(bytes: &[u8]) -> Option<Code> {
    let number = bytes.first_chunk().map_or(0, |word| i32::from_le_bytes(*word));
    Code::from_number(number)
}

/// Lets the calling thread, and threads it starts later, run on one processor only: number `index`
/// of those it may use now, counted around.
///
/// A communicator counts the processors when it forms, to decide how to wait: bind after that.
///
/// # Errors
/// `SYSTEM` when the system refuses.
pub fn bind_to_core(index: usize) -> Result<()> {
    let allowed = affinity::allowed()?;
    affinity::set(&[allowed[index % allowed.len()]])
}

/// When all ranks must have come.
pub(super) fn deadline(config: &Config) -> Instant {
    let now = Instant::now();
    // Whoever asks for more time than there is gets a lifetime.
    now.checked_add(config.init_timeout).unwrap_or(now + Duration::from_secs(1 << 32))
}

/// Refuses an MPI that sees fewer ranks than were launched: it is not the launcher's, and each rank
/// would be a world of its own.
fn same_world(ground: &Ground) -> Result<()> {
    // Nothing that the launcher says is needed; so what is wrong with it is not, either.
    let Ok(launch) = Launch::from_env(0) else { return Ok(()) };
    let (_, world) = ground.place();
    if world == launch.world {
        return Ok(());
    }
    let text = format!(
        "{} started {} ranks, and {} sees {world}: is it the launcher's MPI? UNISONO_MPI_LIB names \
         another",
        launch.launcher,
        launch.world,
        ground.name()
    );
    Err(Error::new(Code::InvalidEnvironment, text))
}

impl Communicator {
    /// This rank's place in the job of `id`. Blocks until all `world` ranks have come.
    ///
    /// # Errors
    /// `MISSING_RANKS` names those that did not come in time; `UNAUTHENTICATED`,
    /// `VERSION_MISMATCH`, `RANK_OUT_OF_RANGE` and `INVALID_ARGUMENT` say what is wrong with whom.
    pub fn init_rank(id: &UniqueId, rank: i64, world: i64, config: &Config) -> Result<Self> {
        Self::with_epoch(id, rank, world, config, 0)
    }

    pub(crate) fn with_epoch(
        id: &UniqueId,
        rank: i64,
        world: i64,
        config: &Config,
        epoch: u32,
    ) -> Result<Self> {
        let (number, size) = form::place(rank, world)?;
        let ground = match config.backend {
            Family::Mpi => Some(Ground::world(config)?),
            Family::Auto | Family::Native | Family::Nccl => None,
        };
        let formed = form::processes(id, rank, world, config, epoch, ground.as_ref())?;
        Ok(Self::new(formed, Seat { rank: Rank(number), world: size }))
    }

    /// The ranks of a communicator of MPI's, which the program has initialised: `comm` is its
    /// handle, as an address. A duplicate is used. With the native backend MPI only brings the
    /// ranks together.
    ///
    /// # Safety
    /// `comm` must be a communicator of the process's MPI, or none.
    ///
    /// # Errors
    /// `UNSUPPORTED` where no MPI can be used, `INVALID_STATE` where it does not run or this thread
    /// must not call it, `INVALID_ARGUMENT`; else as [`Communicator::init_rank`].
    pub unsafe fn init_mpi(comm: *mut std::ffi::c_void, config: &Config) -> Result<Self> {
        Self::on_ground(&Ground::duplicate(comm, config)?, config)
    }

    /// The ranks of `ground`, on the backend that `config` asks for.
    pub(super) fn on_ground(ground: &Ground, config: &Config) -> Result<Self> {
        let (rank, world) = ground.place();
        let id = ground.share_id(config.interface.as_deref())?;
        let under = (config.backend == Family::Mpi).then_some(ground);
        let formed = form::processes(&id, i64::from(rank), i64::from(world), config, 0, under)?;
        let mut made = Self::new(formed, Seat { rank: Rank(rank), world });
        made.say(Level::Info, format!("rank and world from {}", ground.name()));
        Ok(made)
    }

    /// As [`Communicator::init_rank`], with what this rank has got already.
    pub(super) fn with_prepared(
        id: &UniqueId,
        (rank, world): (u32, u32),
        config: &Config,
        prepared: (Prepared, Option<&Ground>),
    ) -> Result<Self> {
        let formed = form::gather(id, (rank, world), config, 0, prepared)?;
        Ok(Self::new(formed, Seat { rank: Rank(rank), world }))
    }

    /// This rank's place as the launcher's environment tells it; with backend or bootstrap MPI, as
    /// MPI does, which is initialised for that.
    ///
    /// # Errors
    /// `NO_LAUNCHER` when no launcher's variables are set, `INVALID_ENVIRONMENT` when they are half
    /// set; else as [`Communicator::init_rank`].
    pub fn init_env(config: &Config) -> Result<Self> {
        if config.backend == Family::Mpi || config.bootstrap_mpi {
            let ground = Ground::world(config)?;
            same_world(&ground)?;
            return Self::on_ground(&ground, config);
        }
        let instance = FROM_ENVIRONMENT.load(Ordering::Relaxed);
        let launch = Launch::from_env(instance)?;
        let deadline = deadline(config);
        let (id, hosted) = launch.unique_id(deadline)?;
        let made = Self::init_rank(&id, i64::from(launch.rank), i64::from(launch.world), config);
        // Everyone has joined, or nobody will: the meeting place may go.
        drop(hosted);
        let mut made = made?;
        // A failed attempt has used up no meeting place: this rank may try again where the others
        // are.
        FROM_ENVIRONMENT.fetch_add(1, Ordering::Relaxed);
        made.say(Level::Info, format!("rank and world from {}", launch.launcher));
        if let Some(warning) = launch.warning() {
            made.say(Level::Warn, warning);
        }
        Ok(made)
    }

    /// Communicators for `world` threads of this process, in rank order.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for a world of 0 or too large, `OUT_OF_MEMORY`, `SYSTEM`.
    pub fn init_all(world: i64, config: &Config) -> Result<Vec<Self>> {
        let (_, size) = form::place(0, world)?;
        let formed = form::threads(size, config)?;
        let seat = |rank| Seat { rank: Rank(rank), world: size };
        Ok((0..).zip(formed).map(|(rank, formed)| Self::new(formed, seat(rank))).collect())
    }
}
