//! What a call of ours costs over the MPI call that it becomes: a rank of the case `mpi`, started
//! by some MPI's mpirun. `rank mpi LO HI STEP` prints a JSON object for each size on rank 0.
//!
//! In one process, on the same buffers, all_reduce of floats is made in turn by MPI itself, by us
//! with calls not compared, and by us with calls compared. A round is many calls of one of the
//! three back to back; what we add is the median over the rounds of its difference to MPI's own
//! round beside it.

use std::ffi::{c_int, c_void};
use std::ptr;
use std::time::Instant;

use libloading::os::unix::Library;
use serde_json::json;
use unisono::capi::coll::unisono_all_reduce;
use unisono::capi::comm::{unisono_comm_destroy, unisono_comm_init_env};
use unisono::capi::handle::Comm;
use unisono::config::Config;
use unisono::{Dtype, ReduceOp};

use super::cases::sizes;
use super::runner::median;

const ROUNDS: usize = 15;

/// Calls of a round: enough that differences of 10 ns can be seen.
fn calls(bytes: u64) -> u32 {
    match bytes {
        0..=4096 => 20_000,
        4097..=65_536 => 4_000,
        65_537..=1_048_576 => 400,
        _ => 20,
    }
}

/// A handle of MPI's. In the MPICH family it is a number, which the x86-64 and the AArch64 calling
/// convention pass in the register of an address.
type Handle = *mut c_void;
type AllReduce =
    unsafe extern "C" fn(*const c_void, *mut c_void, c_int, Handle, Handle, Handle) -> c_int;
type Barrier = unsafe extern "C" fn(Handle) -> c_int;
type Duplicate = unsafe extern "C" fn(Handle, *mut Handle) -> c_int;

/// The MPI of this process, called as a program does.
struct Mpi {
    all_reduce: AllReduce,
    barrier: Barrier,
    float: Handle,
    sum: Handle,
    comm: Handle,
}

impl Mpi {
    /// The MPI that our communicators have loaded and initialised.
    fn of_process() -> Result<Self, String> {
        let process = Library::this();
        let missing = |error: libloading::Error| error.to_string();
        // SAFETY: only the address is taken.
        let handle = |name: &str| unsafe { process.get::<Handle>(name.as_bytes()) };
        let handle = |name: &str, number: usize| match handle(name) {
            Ok(variable) => variable.into_raw(),
            Err(_) => ptr::without_provenance_mut(number),
        };
        // SAFETY: these are MPI's, with handles as wide as a register.
        let (all_reduce, barrier, duplicate) = unsafe {
            (
                process.get::<AllReduce>(b"MPI_Allreduce\0").map_err(missing)?,
                process.get::<Barrier>(b"MPI_Barrier\0").map_err(missing)?,
                process.get::<Duplicate>(b"MPI_Comm_dup\0").map_err(missing)?,
            )
        };
        let world = handle("ompi_mpi_comm_world\0", 0x4400_0000);
        let mut comm = ptr::null_mut();
        // SAFETY: MPI runs, on this thread; the place is as large as any handle.
        let code = unsafe { duplicate(world, &raw mut comm) };
        if code != 0 {
            return Err(format!("MPI_Comm_dup: {code}"));
        }
        Ok(Self {
            all_reduce: *all_reduce,
            barrier: *barrier,
            float: handle("ompi_mpi_float\0", 0x4c00_040a),
            sum: handle("ompi_mpi_op_sum\0", 0x5800_0003),
            comm,
        })
    }

    fn meet(&self) {
        // SAFETY: a communicator of MPI's, which runs.
        unsafe { (self.barrier)(self.comm) };
    }
}

/// A communicator on the MPI backend, with calls compared or not.
fn join(compared: bool) -> Result<*mut Comm, String> {
    // SAFETY: no other thread of this process looks at its environment.
    unsafe { std::env::set_var("UNISONO_CHECK", if compared { "1" } else { "0" }) };
    let mut comm = ptr::null_mut();
    // SAFETY: the place is valid.
    let status = unsafe { unisono_comm_init_env(&raw mut comm, ptr::null()) };
    if status == 0 { Ok(comm) } else { Err(format!("a communicator: {status}")) }
}

/// # Errors
/// What is not understood, and MPIs that fail.
pub(super) fn main(range: [u64; 3]) -> Result<(), String> {
    let [lo, hi, step] = range;
    let config = Config::from_env().map_err(|error| error.to_string())?;
    let found = unisono::comm::mpi(&config).map_err(|error| error.to_string())?;
    let name = found.split(" (").next().unwrap_or_default();
    let ours = [join(false)?, join(true)?];
    let mpi = Mpi::of_process()?;
    let first = std::env::var("PMI_RANK").or_else(|_| std::env::var("OMPI_COMM_WORLD_RANK"));
    let first = first.is_ok_and(|rank| rank == "0");
    for bytes in sizes(lo, hi, step) {
        let figures = measure(&mpi, ours, bytes)?;
        let [raw, off, on] = figures.times;
        let [adds_off, adds_on] = figures.adds;
        if first {
            println!(
                "{}",
                json!({ "mpi": name, "bytes": bytes, "raw_us": raw, "off_us": off, "on_us": on,
                        "adds_off_us": adds_off, "adds_on_us": adds_on })
            );
        }
    }
    for comm in ours {
        // SAFETY: a handle that nobody uses afterwards.
        unsafe { unisono_comm_destroy(comm) };
    }
    Ok(())
}

/// Microseconds of a call: MPI's own, ours unchecked, ours checked; and what ours add.
struct Figures {
    times: [f64; 3],
    adds: [f64; 2],
}

fn measure(mpi: &Mpi, ours: [*mut Comm; 2], bytes: u64) -> Result<Figures, String> {
    let count = usize::try_from(bytes).map_err(|error| error.to_string())? / size_of::<f32>();
    let (send, mut recv) = (vec![1.0f32; count], vec![0.0f32; count]);
    let number = c_int::try_from(count).map_err(|error| error.to_string())?;
    let (from, to) = (send.as_ptr().cast::<c_void>(), recv.as_mut_ptr().cast::<c_void>());
    let (dtype, op) = (c_int::from(Dtype::F32.number()), c_int::from(ReduceOp::Sum.number()));
    let calls = calls(bytes);
    let round = |who: Option<*mut Comm>| {
        mpi.meet();
        let begun = Instant::now();
        for _ in 0..calls {
            // SAFETY: both buffers have so many floats, and are apart.
            let code = unsafe {
                match who {
                    None => (mpi.all_reduce)(from, to, number, mpi.float, mpi.sum, mpi.comm),
                    Some(comm) => unisono_all_reduce(from, to, count as u64, dtype, op, comm),
                }
            };
            if code != 0 {
                return Err(format!("all_reduce: {code}"));
            }
        }
        Ok(begun.elapsed().as_secs_f64() * 1e6 / f64::from(calls))
    };
    let mut rounds = Vec::new();
    for _ in 0..=ROUNDS {
        rounds.push([round(None)?, round(Some(ours[0]))?, round(Some(ours[1]))?]);
    }
    let middle = |figure: &dyn Fn(&[f64; 3]) -> f64| {
        // The first only warms up.
        let all: Vec<f64> = rounds[1..].iter().map(figure).collect();
        median(&all).unwrap_or(f64::NAN)
    };
    Ok(Figures {
        times: [0, 1, 2].map(|who| middle(&|round| round[who])),
        adds: [1, 2].map(|who| middle(&|round| round[who] - round[0])),
    })
}
