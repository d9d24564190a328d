//! Communicators and unique ids.

use std::ffi::{c_char, c_int, c_void};
use std::fmt::Write;

use super::config::{self, ConfigStruct};
use super::handle::{self, Comm};
use super::{copy_text, guard, guard_status, input, on_comm, output};
use crate::boot::id::{ID_BYTES, UniqueId};
use crate::capi::error::UNISONO_OK;
use crate::comm::Communicator;
use crate::error::{Code, Error, Result};

/// The bytes of a unisono_unique_id_t.
pub const UNISONO_UNIQUE_ID_BYTES: usize = 128;

/// Addresses, version and random key of a job. A secret: who has it can join.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct UniqueIdBytes {
    /// Plain bytes: hand them to the other ranks by whatever means there is.
    pub bytes: [u8; UNISONO_UNIQUE_ID_BYTES],
}

impl std::fmt::Debug for UniqueIdBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The bytes hold the job's key.
        f.debug_struct("UniqueIdBytes").finish_non_exhaustive()
    }
}

const _: () = assert!(UNISONO_UNIQUE_ID_BYTES == ID_BYTES);

/// Makes the id of a new job, and a background thread in this process where its ranks meet. One
/// rank calls it and hands the id to the others. An id serves one communicator.
///
/// # Safety
/// `id` is valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisono_get_unique_id(id: *mut UniqueIdBytes) -> c_int {
    guard(|| {
        let id = output(id, "id")?;
        let bytes = crate::unique_id()?.encode();
        // SAFETY: not NULL; the caller promises that it is valid.
        unsafe { id.write(UniqueIdBytes { bytes }) };
        Ok(())
    })
}

/// This process's place in the job of `id`, as rank `rank` of `world`. Blocks until all ranks have
/// called it with the same id, at most config->init_timeout_ms; UNISONO_MISSING_RANKS names those
/// that did not come. `config` may be NULL.
///
/// # Safety
/// `comm`, `id` and `config` are valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisono_comm_init_rank(
    comm: *mut *mut Comm,
    world: c_int,
    id: *const UniqueIdBytes,
    rank: c_int,
    config: *const ConfigStruct,
) -> c_int {
    guard(|| {
        let comm = output(comm, "comm")?;
        let id = input(id, "id")?;
        // SAFETY: the caller's promise.
        let (config, id) = unsafe { (config::read(config)?, id.read()) };
        crate::comm::form::place(i64::from(rank), i64::from(world))?;
        let id = UniqueId::decode(&id.bytes)?;
        let made = Communicator::init_rank(&id, i64::from(rank), i64::from(world), &config)?;
        // SAFETY: neither NULL nor misaligned; the caller promises that it is valid.
        unsafe { comm.write(handle::give(made)) };
        Ok(())
    })
}

/// `world` communicators for threads of this process: comms[r] is rank r's. `config` may be NULL.
///
/// # Safety
/// `comms` has room for `world` handles; `config` is valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisono_comm_init_all(
    comms: *mut *mut Comm,
    world: c_int,
    config: *const ConfigStruct,
) -> c_int {
    guard(|| {
        let comms = output(comms, "comms")?;
        // SAFETY: the caller's promise.
        let config = unsafe { config::read(config)? };
        let made = Communicator::init_all(i64::from(world), &config)?;
        for (rank, made) in made.into_iter().enumerate() {
            // SAFETY: neither NULL nor misaligned; the caller promises room for `world` handles.
            unsafe { comms.add(rank).write(handle::give(made)) };
        }
        Ok(())
    })
}

/// This process's place as its launcher's environment tells it: rank, world, and where to meet.
/// UNISONO_NO_LAUNCHER where no launcher has set its variables, UNISONO_INVALID_ENVIRONMENT where
/// they are half set. `config` may be NULL.
///
/// # Safety
/// `comm` and `config` are valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisono_comm_init_env(
    comm: *mut *mut Comm,
    config: *const ConfigStruct,
) -> c_int {
    guard(|| {
        let comm = output(comm, "comm")?;
        // SAFETY: the caller's promise.
        let config = unsafe { config::read(config)? };
        let made = Communicator::init_env(&config)?;
        // SAFETY: neither NULL nor misaligned; the caller promises that it is valid.
        unsafe { comm.write(handle::give(made)) };
        Ok(())
    })
}

/// The ranks of `mpi_comm`, a communicator of the MPI that this program has initialised: its
/// MPI_Comm as an address, `(void *)comm` or `(void *)(intptr_t)comm`. A collective call on it. A
/// duplicate is used, and `mpi_comm` left as it is. With the native backend MPI only brings the
/// ranks together. UNISONO_UNSUPPORTED where the library knows no MPI in this process,
/// UNISONO_INVALID_STATE where MPI is not running, or this thread must not call it. `config` may be
/// NULL.
///
/// # Safety
/// `comm` and `config` are valid; `mpi_comm` is a communicator of this process's MPI.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisono_comm_init_mpi(
    comm: *mut *mut Comm,
    mpi_comm: *mut c_void,
    config: *const ConfigStruct,
) -> c_int {
    guard(|| {
        let comm = output(comm, "comm")?;
        // SAFETY: the caller's promise.
        let config = unsafe { config::read(config)? };
        // SAFETY: the caller's promise.
        let made = unsafe { Communicator::init_mpi(mpi_comm, &config)? };
        // SAFETY: neither NULL nor misaligned; the caller promises that it is valid.
        unsafe { comm.write(handle::give(made)) };
        Ok(())
    })
}

/// Ranks with equal `color` form a communicator, ordered by `key`, then by old rank. A negative
/// color takes part and gets NULL. A collective call. Where a rank lacks files or memory for it,
/// the ranks of its color get its status; the other colors and `comm` go on.
///
/// # Safety
/// `split` is valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisono_comm_split(
    comm: *mut Comm,
    color: c_int,
    key: c_int,
    split: *mut *mut Comm,
) -> c_int {
    on_comm(comm, |held| {
        let split = output(split, "split")?;
        let made = held.comm.split(color, key)?;
        let made = made.map_or(std::ptr::null_mut(), handle::give);
        // SAFETY: neither NULL nor misaligned; the caller promises that it is valid.
        unsafe { split.write(made) };
        Ok(())
    })
}

/// A communicator of the ranks that are left, in their order, once some have died or this one has
/// failed: all of them call this. What is under way on `comm` ends with UNISONO_ABORTED, and it
/// stays broken: destroy it. Where another rank dies meanwhile all that are left may call it again.
/// UNISONO_UNSUPPORTED on the native backend in this version, and where MPI does not go on when
/// ranks die (it takes Open MPI 5 or later, started by `mpirun --with-ft ulfm`).
///
/// # Safety
/// `shrunk` is valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisono_comm_shrink(comm: *mut Comm, shrunk: *mut *mut Comm) -> c_int {
    on_comm(comm, |held| {
        let shrunk = output(shrunk, "shrunk")?;
        let made = held.comm.shrink()?;
        // SAFETY: neither NULL nor misaligned; the caller promises that it is valid.
        unsafe { shrunk.write(handle::give(made)) };
        Ok(())
    })
}

/// Ends the communicator: outstanding requests complete first, at most for the communicator's
/// deadline; then they end with UNISONO_ABORTED (UNISONO_TIMED_OUT where their own deadline was the
/// first to pass) and the status is UNISONO_TIMED_OUT. It is that, too, where another rank gives up
/// first. When they end by another error, the status is that. Requests may still be waited for
/// afterwards. UNISONO_MISMATCH when a rank that ended its communicator before made other
/// collective calls than this one, which no call had shown. The handle is invalid from here on,
/// whatever the status, except UNISONO_BUSY: another thread is inside a call, and nothing has
/// happened.
///
/// # Safety
/// `comm` is a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisono_comm_destroy(comm: *mut Comm) -> c_int {
    guard(|| handle::take(comm)?.destroy())
}

/// Ends every pending call, and refuses every later one, with UNISONO_ABORTED, on every rank. From
/// any thread; a second time does nothing. The communicator must still be destroyed.
///
/// # Safety
/// `comm` is a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisono_comm_abort(comm: *mut Comm) -> c_int {
    on_comm(comm, |held| {
        held.comm.abort();
        Ok(())
    })
}

/// From here on calls on device memory have their place in `stream`, a CUstream or cudaStream_t of
/// the communicator's device (NULL: the default stream): the blocking forms return at once, come
/// after what is in the stream before them, and what is put there later comes after them. Their
/// buffers belong to the library until the stream has passed them. An error of a call that has
/// returned shows in the next call's status and in unisono_comm_status; its stream goes on.
/// Non-blocking forms, and calls on host memory, are as before. UNISONO_UNSUPPORTED where the
/// communicator has no GPU, UNISONO_INVALID_ARGUMENT for a stream of another device.
///
/// # Safety
/// `stream` is a stream, and stays until the communicator has another, or none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisono_comm_set_stream(comm: *mut Comm, stream: *mut c_void) -> c_int {
    // SAFETY: the caller's promise.
    on_comm(comm, |held| unsafe { held.comm.set_stream(Some(stream as usize)) })
}

/// From here on calls on device memory wait for their end, as they do at first. Those before keep
/// their place in their stream.
///
/// # Safety
/// `comm` is a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisono_comm_clear_stream(comm: *mut Comm) -> c_int {
    // SAFETY: no stream is given.
    on_comm(comm, |held| unsafe { held.comm.set_stream(None) })
}

/// This rank, to `*rank`.
///
/// # Safety
/// `rank` is valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisono_comm_rank(comm: *const Comm, rank: *mut c_int) -> c_int {
    // SAFETY: the caller's promise.
    on_comm(comm, |held| unsafe { write_number(held.comm.rank().0, rank, "rank") })
}

/// The number of ranks, to `*world`.
///
/// # Safety
/// `world` is valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisono_comm_world_size(comm: *const Comm, world: *mut c_int) -> c_int {
    // SAFETY: the caller's promise.
    on_comm(comm, |held| unsafe { write_number(held.comm.world_size(), world, "world") })
}

/// # Safety
/// `at` is NULL or valid.
unsafe fn write_number(value: u32, at: *mut c_int, name: &str) -> Result<()> {
    let at = output(at, name)?;
    let value = c_int::try_from(value)
        .map_err(|_| Error::new(Code::Internal, format!("{name} {value} is no int")))?;
    // SAFETY: neither NULL nor misaligned; the caller promises that it is valid.
    unsafe { at.write(value) };
    Ok(())
}

/// UNISONO_OK while the communicator is usable, else the status that broke it. From any thread.
///
/// # Safety
/// `comm` is a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisono_comm_status(comm: *const Comm) -> c_int {
    guard_status(|| {
        let broken = handle::hold(comm)?.comm.broken();
        Ok(broken.map_or(UNISONO_OK, |error| error.code as c_int))
    })
}

/// Copies what was chosen when the communicator formed, and why, to `text`: a line each,
/// NUL-terminated, cut at `bytes`. For logs and bug reports.
///
/// # Safety
/// `text` has room for `bytes` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisono_comm_describe(
    comm: *const Comm,
    text: *mut c_char,
    bytes: usize,
) -> c_int {
    on_comm(comm, |held| {
        // SAFETY: the caller's promise.
        unsafe { copy_text(&description(&held.comm), text, bytes) }
    })
}

fn description(comm: &Communicator) -> String {
    let config = comm.config();
    let mut text = format!("rank {} of {}", comm.rank(), comm.world_size());
    if !config.name.is_empty() {
        let _ = write!(text, " ({})", config.name);
    }
    let timeout = config.timeout.map_or_else(|| "none".to_owned(), |t| format!("{t:?}"));
    let _ = write!(
        text,
        "\ndeterministic {}, deadline {timeout}, progress thread {}",
        if config.deterministic { "yes" } else { "no" },
        if config.progress_thread { "yes" } else { "no" },
    );
    for note in comm.notes() {
        let _ = write!(text, "\n{note}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ptr::{null, null_mut};

    /// An id with a byte changed and a checksum that is right again.
    fn forged(mut id: UniqueIdBytes, at: usize) -> UniqueIdBytes {
        id.bytes[at] ^= 0x40;
        let sum = blake3::hash(&id.bytes[..112]);
        id.bytes[112..].copy_from_slice(&sum.as_bytes()[..16]);
        id
    }

    fn made() -> UniqueIdBytes {
        let mut id = UniqueIdBytes { bytes: [0; UNISONO_UNIQUE_ID_BYTES] };
        // SAFETY: the place is valid.
        assert_eq!(unsafe { unisono_get_unique_id(&raw mut id) }, UNISONO_OK);
        id
    }

    #[test]
    fn an_id_of_another_version_is_named() {
        let id = forged(made(), 6);
        let mut comm = null_mut();
        // SAFETY: the places are valid.
        let status = unsafe { unisono_comm_init_rank(&raw mut comm, 2, &raw const id, 0, null()) };
        assert_eq!(status, Code::VersionMismatch as c_int);
        let said = crate::capi::error::kept().expect("an error").detail;
        let theirs = format!("0.{}", id.bytes[6]);
        assert!(said.contains(&theirs) && said.contains("the unique id"), "{said}");
        assert!(comm.is_null());
    }

    #[test]
    fn a_rank_with_another_key_is_refused_and_missed() {
        let id = made();
        let join = |id: UniqueIdBytes, rank: c_int, timeout_ms: i64| {
            let config = ConfigStruct { init_timeout_ms: timeout_ms, ..ConfigStruct::INIT };
            let mut comm = null_mut();
            // SAFETY: the places are valid.
            let status = unsafe {
                unisono_comm_init_rank(&raw mut comm, 2, &raw const id, rank, &raw const config)
            };
            assert!(comm.is_null());
            (status, crate::capi::error::kept().expect("an error").detail)
        };
        std::thread::scope(|threads| {
            let honest = threads.spawn(|| join(id, 0, 1500));
            let stranger = join(forged(id, 9), 1, 1500);
            assert_eq!(stranger.0, Code::Unauthenticated as c_int, "{}", stranger.1);
            let honest = honest.join().expect("no panic");
            assert_eq!(honest.0, Code::MissingRanks as c_int, "{}", honest.1);
            assert!(honest.1.contains('1'), "{}", honest.1);
        });
    }
}
