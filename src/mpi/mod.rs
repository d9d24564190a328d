//! MPI as it is found at run time: one interface over the ABIs that exist.
//!
//! An MPI is a header and a library, and the headers differ: a communicator is a number for MPICH
//! and its family, an address for Open MPI and in the standard ABI of MPI 5. So each ABI has
//! bindings of its own (`abi`, from `ffi/mpi`), and above them all is [`Api`], where every
//! handle is a [`Handle`]. [`Library::open`] finds a library and asks it which ABI it has.
//!
//! Owns nothing but the open library, which is never closed: MPIs do not survive that. Thread rule:
//! MPI's own, as the thread level that was granted says.
//!
//! Source: the MPI 5.0 standard; `A.1` names the calls. Not here: what a collective of ours is in
//! calls of MPI (`backend/mpi`).

#[cfg(unisono_mpi)]
mod abi;
mod find;
mod library;

use std::ffi::{c_int, c_void};
use std::fmt;

pub(crate) use self::find::describe;
pub(crate) use self::library::{Level, Library};

/// A communicator, group, type, operation, request or error handler: a number or an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Handle(pub(crate) *mut c_void);

// SAFETY: a handle is a name; what may be done with it on which thread is MPI's to say.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

impl Handle {
    /// What C calls NULL or 0: no handle of any ABI, but for requests nobody has begun.
    pub(crate) const NONE: Self = Self(std::ptr::null_mut());
}

/// The types of MPI that ours are sent and reduced as, in the order of [`Constants::units`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    I8,
    U8,
    I16,
    U16,
    I32,
    U32,
    I64,
    U64,
    F32,
    F64,
    Complex64,
    Complex128,
}

/// The operations that MPI brings, in the order of [`Constants::ops`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BuiltIn {
    Sum,
    Prod,
    Min,
    Max,
    Band,
    Bor,
    Bxor,
    Land,
    Lor,
}

/// What calls of MPI return that have worked: the same in every ABI (MPI 5.0, 9.4).
pub(crate) const SUCCESS: c_int = 0;

/// What an ABI calls its constants.
#[derive(Debug)]
#[cfg_attr(not(unisono_mpi), expect(dead_code, reason = "no ABI is there to have them"))]
pub(crate) struct Constants {
    pub(crate) comm_world: Handle,
    pub(crate) comm_null: Handle,
    pub(crate) request_null: Handle,
    pub(crate) errors_return: Handle,
    /// By [`Unit`].
    pub(crate) units: [Handle; 12],
    /// By [`BuiltIn`].
    pub(crate) ops: [Handle; 9],
    pub(crate) in_place: *const c_void,
    /// The four levels of thread support, ascending.
    pub(crate) levels: [c_int; 4],
    /// The attribute of `comm_world` that says whether it goes on when ranks die, if there is one.
    pub(crate) survives: Option<c_int>,
}

// SAFETY: constants; the one address is a mark and is never followed.
unsafe impl Send for Constants {}
// SAFETY: as above.
unsafe impl Sync for Constants {}

/// What one call of MPI does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    AllReduce,
    Reduce,
    /// Blocks of the lengths in the second list.
    ReduceScatter,
    ReduceScatterBlock,
    Broadcast,
    AllGather,
    Gather,
    Scatter,
    AllToAll,
    AllGatherV,
    GatherV,
    ScatterV,
    AllToAllV,
    Barrier,
    /// To [`Primitive::root`], with [`Primitive::tag`]; it always only begins.
    Send,
    /// From [`Primitive::root`].
    Recv,
}

impl Kind {
    /// Whether it is between two ranks.
    pub(crate) const fn is_message(self) -> bool {
        matches!(self, Self::Send | Self::Recv)
    }

    /// The call's name in the standard, for errors.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::AllReduce => "MPI_Allreduce",
            Self::Reduce => "MPI_Reduce",
            Self::ReduceScatter => "MPI_Reduce_scatter",
            Self::ReduceScatterBlock => "MPI_Reduce_scatter_block",
            Self::Broadcast => "MPI_Bcast",
            Self::AllGather => "MPI_Allgather",
            Self::Gather => "MPI_Gather",
            Self::Scatter => "MPI_Scatter",
            Self::AllToAll => "MPI_Alltoall",
            Self::AllGatherV => "MPI_Allgatherv",
            Self::GatherV => "MPI_Gatherv",
            Self::ScatterV => "MPI_Scatterv",
            Self::AllToAllV => "MPI_Alltoallv",
            Self::Barrier => "MPI_Barrier",
            Self::Send => "MPI_Isend",
            Self::Recv => "MPI_Irecv",
        }
    }
}

/// Counts and displacements of the ranks' blocks, in elements, as both widths of a call want them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lists {
    pub(crate) counts: Vec<c_int>,
    pub(crate) displacements: Vec<c_int>,
    pub(crate) wide_counts: Vec<i64>,
    pub(crate) wide_displacements: Vec<isize>,
}

/// One call of MPI, whatever the ABI.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Primitive {
    pub(crate) kind: Kind,
    /// [`Constants::in_place`] where the standard wants that.
    pub(crate) send: *const c_void,
    pub(crate) recv: *mut c_void,
    /// Elements: of the buffer, of the message, of the own block, or of every block.
    pub(crate) count: u64,
    pub(crate) unit: Handle,
    pub(crate) op: Handle,
    /// Root, or the other rank of a message.
    pub(crate) root: c_int,
    /// Of a message.
    pub(crate) tag: c_int,
    /// A count does not fit an `int`: the call of MPI 4.0 with large counts.
    pub(crate) wide: bool,
}

/// What a tested request says.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tested {
    pub(crate) done: bool,
    /// Elements received, where it was a receive and they fit an `int`.
    pub(crate) elements: Option<u64>,
}

/// A function that MPI calls to combine `*len` elements of `input` into `inout`.
pub(crate) type UserFunction =
    unsafe extern "C" fn(*mut c_void, *mut c_void, *mut c_int, *mut c_void);

/// The calls of MPI that we make. Each returns MPI's code: [`SUCCESS`], or an error's.
pub(crate) trait Api: Send + Sync + fmt::Debug {
    fn constants(&self) -> &Constants;

    fn initialized(&self, flag: &mut c_int) -> c_int;
    fn finalized(&self, flag: &mut c_int) -> c_int;
    fn init_thread(&self, required: c_int, provided: &mut c_int) -> c_int;
    fn finalize(&self) -> c_int;
    fn query_thread(&self, provided: &mut c_int) -> c_int;
    fn is_thread_main(&self, flag: &mut c_int) -> c_int;
    /// `text` must have room for 8,192 bytes.
    fn error_string(&self, code: c_int, text: &mut [u8], length: &mut c_int) -> c_int;

    fn comm_rank(&self, comm: Handle, rank: &mut c_int) -> c_int;
    fn comm_size(&self, comm: Handle, size: &mut c_int) -> c_int;
    fn comm_test_inter(&self, comm: Handle, flag: &mut c_int) -> c_int;
    fn comm_dup(&self, comm: Handle, made: &mut Handle) -> c_int;
    fn comm_free(&self, comm: Handle) -> c_int;
    fn comm_group(&self, comm: Handle, group: &mut Handle) -> c_int;
    fn group_incl(&self, group: Handle, ranks: &[c_int], made: &mut Handle) -> c_int;
    fn group_free(&self, group: Handle) -> c_int;
    fn comm_create_group(
        &self,
        comm: Handle,
        group: Handle,
        tag: c_int,
        made: &mut Handle,
    ) -> c_int;
    /// The number that an attribute of `comm` points to, if it is set.
    fn comm_attribute(&self, comm: Handle, key: c_int, value: &mut Option<c_int>) -> c_int;
    fn get_errhandler(&self, comm: Handle, handler: &mut Handle) -> c_int;
    fn set_errhandler(&self, comm: Handle, handler: Handle) -> c_int;
    fn errhandler_free(&self, handler: Handle) -> c_int;

    /// `commutes`: the order of ranks does not matter.
    fn op_create(&self, function: UserFunction, commutes: bool, op: &mut Handle) -> c_int;
    fn op_free(&self, op: Handle) -> c_int;
    /// Whether a request has ended; then it is [`Constants::request_null`]. With the type of a
    /// receive, also how much of it has come.
    fn test(&self, request: &mut Handle, unit: Option<Handle>, tested: &mut Tested) -> c_int;
    fn cancel(&self, request: &mut Handle) -> c_int;
    /// Lets MPI move on whatever it has to do for others.
    fn progress(&self, comm: Handle) -> c_int;

    /// Carries out a call; with `request` it only begins. A message always needs one.
    ///
    /// # Safety
    /// Buffers and lists must be valid for what `call` says until it has ended, here and elsewhere.
    unsafe fn call(
        &self,
        call: &Primitive,
        lists: &[Lists; 2],
        comm: Handle,
        request: Option<&mut Handle>,
    ) -> c_int;

    /// Whether every call has its form with large counts.
    fn has_large_counts(&self) -> bool;
    /// Whether there are [`Api::comm_revoke`] and [`Api::comm_shrink`].
    fn has_shrink(&self) -> bool;
    /// Ends whatever any rank does on `comm`, now and later.
    fn comm_revoke(&self, comm: Handle) -> c_int;
    /// A communicator of the ranks of `comm` that live, in their order. All of them call this.
    fn comm_shrink(&self, comm: Handle, made: &mut Handle) -> c_int;
}
