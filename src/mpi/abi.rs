//! The ABIs, each with its bindings and its own idea of a handle.

use std::ffi::{c_int, c_longlong, c_void};
use std::ptr;

use super::{Api, Constants, Handle, Kind, Lists, Primitive, SUCCESS, Tested, UserFunction};
use crate::error::{Code, Error, Result};

macro_rules! bindings {
    ($module:ident, $file:literal) => {
        #[allow(
            missing_docs,
            non_camel_case_types,
            non_snake_case,
            unreachable_pub,
            unused_qualifications,
            dead_code,
            missing_debug_implementations,
            clippy::all,
            clippy::pedantic,
            clippy::undocumented_unsafe_blocks,
            clippy::ptr_as_ptr,
            clippy::use_self,
            unsafe_op_in_unsafe_fn,
            reason = "bindgen's"
        )]
        mod $module {
            include!(concat!(env!("OUT_DIR"), $file));
        }
    };
}

bindings!(openmpi, "/mpi_openmpi.rs");
bindings!(mpich, "/mpi_mpich.rs");
bindings!(standard, "/mpi_standard.rs");

/// What an ABI has for a handle.
trait Raw: Copy {
    fn of(handle: Handle) -> Self;
    fn handle(self) -> Handle;
}

impl Raw for c_int {
    fn of(handle: Handle) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "it was an int")]
        let bits = handle.0.addr() as u32;
        bits.cast_signed()
    }

    fn handle(self) -> Handle {
        Handle(ptr::without_provenance_mut(self.cast_unsigned() as usize))
    }
}

impl<T> Raw for *mut T {
    fn of(handle: Handle) -> Self {
        handle.0.cast()
    }

    fn handle(self) -> Handle {
        Handle(self.cast())
    }
}

/// How a header says what a constant handle is.
trait Constant {
    fn find<R: Raw>(self, library: &libloading::Library) -> Result<Handle>;
}

/// By its bits.
impl Constant for u32 {
    fn find<R: Raw>(self, _: &libloading::Library) -> Result<Handle> {
        Ok(Handle(ptr::without_provenance_mut(self as usize)))
    }
}

/// By the name of a variable, whose address it is. A program that was linked with the library may
/// have a copy of it, which is the one that counts (`R_X86_64_COPY`): the process is asked first.
impl<const N: usize> Constant for &[u8; N] {
    fn find<R: Raw>(self, library: &libloading::Library) -> Result<Handle> {
        let process = libloading::os::unix::Library::this();
        // SAFETY: only the address is taken, whatever stands there.
        let at = unsafe {
            let of_process = process.get::<*mut c_void>(self).map(|found| found.into_raw());
            of_process.or_else(|_| Ok(library.get::<*mut c_void>(self)?.into_raw().into_raw()))
        };
        let error = |error: libloading::Error| Error::new(Code::Backend, error.to_string());
        Ok(Handle(at.map_err(error)?))
    }
}

/// Counts as calls take them: `int`.
struct Narrow;

impl Narrow {
    #[expect(clippy::cast_possible_truncation, reason = "it fits")]
    fn count(&self, count: u64) -> c_int {
        count as c_int
    }

    fn counts(&self, lists: &Lists) -> *const c_int {
        lists.counts.as_ptr()
    }

    fn places(&self, lists: &Lists) -> *const c_int {
        lists.displacements.as_ptr()
    }
}

/// `MPI_Count` and `MPI_Aint`.
struct Wide;

impl Wide {
    #[expect(clippy::cast_possible_wrap, reason = "validated to fit the address space")]
    fn count(&self, count: u64) -> c_longlong {
        count as c_longlong
    }

    fn counts(&self, lists: &Lists) -> *const c_longlong {
        lists.wide_counts.as_ptr()
    }

    /// The bindings have `isize` or `long`, which are the same here.
    fn places<T>(&self, lists: &Lists) -> *const T {
        const { assert!(size_of::<T>() == size_of::<isize>()) };
        lists.wide_displacements.as_ptr().cast()
    }
}

/// One of the four forms of a call: now or later, narrow or wide.
macro_rules! form {
    ($lib:expr, $wide:expr, $request:expr, |$w:ident|
     $now:ident $later:ident $now_c:ident $later_c:ident ($($arg:expr),*)) => {
        match ($wide, $request) {
            (false, None) => { let $w = Narrow; $lib.$now($($arg),*) }
            (false, Some(request)) => { let $w = Narrow; $lib.$later($($arg,)* request) }
            (true, None) => { let $w = Wide; $lib.$now_c($($arg),*) }
            (true, Some(request)) => { let $w = Wide; $lib.$later_c($($arg,)* request) }
        }
    };
}

/// Refuses a library that lacks one of the calls.
macro_rules! need {
    ($lib:expr; $($call:ident)+) => {
        $(if let Err(error) = &$lib.$call {
            let text = format!("{}: {error}", stringify!($call));
            return Err(Error::new(Code::Unsupported, text));
        })+
    };
}

macro_rules! implement {
    ($module:ident, $name:ident) => {
        /// The ABI of that name: its bindings, bound to a library.
        pub(super) struct $name {
            lib: $module::$name,
            constants: Constants,
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(stringify!($name))
            }
        }

        impl $name {
            /// Binds every call; those that a library may lack are looked for when asked about.
            pub(super) fn bind(library: libloading::Library) -> Result<Self> {
                use $module as m;
                const { assert!(m::UNISONO_SUCCESS == 0 && SUCCESS == 0) };
                let l = &library;
                let constants = Constants {
                    comm_world: Constant::find::<m::MPI_Comm>(m::UNISONO_COMM_WORLD, l)?,
                    comm_null: Constant::find::<m::MPI_Comm>(m::UNISONO_COMM_NULL, l)?,
                    request_null: Constant::find::<m::MPI_Request>(m::UNISONO_REQUEST_NULL, l)?,
                    errors_return: {
                        Constant::find::<m::MPI_Errhandler>(m::UNISONO_ERRORS_RETURN, l)?
                    },
                    units: [
                        Constant::find::<m::MPI_Datatype>(m::UNISONO_INT8_T, l)?,
                        Constant::find::<m::MPI_Datatype>(m::UNISONO_UINT8_T, l)?,
                        Constant::find::<m::MPI_Datatype>(m::UNISONO_INT16_T, l)?,
                        Constant::find::<m::MPI_Datatype>(m::UNISONO_UINT16_T, l)?,
                        Constant::find::<m::MPI_Datatype>(m::UNISONO_INT32_T, l)?,
                        Constant::find::<m::MPI_Datatype>(m::UNISONO_UINT32_T, l)?,
                        Constant::find::<m::MPI_Datatype>(m::UNISONO_INT64_T, l)?,
                        Constant::find::<m::MPI_Datatype>(m::UNISONO_UINT64_T, l)?,
                        Constant::find::<m::MPI_Datatype>(m::UNISONO_FLOAT, l)?,
                        Constant::find::<m::MPI_Datatype>(m::UNISONO_DOUBLE, l)?,
                        Constant::find::<m::MPI_Datatype>(m::UNISONO_C_FLOAT_COMPLEX, l)?,
                        Constant::find::<m::MPI_Datatype>(m::UNISONO_C_DOUBLE_COMPLEX, l)?,
                    ],
                    ops: [
                        Constant::find::<m::MPI_Op>(m::UNISONO_SUM, l)?,
                        Constant::find::<m::MPI_Op>(m::UNISONO_PROD, l)?,
                        Constant::find::<m::MPI_Op>(m::UNISONO_MIN, l)?,
                        Constant::find::<m::MPI_Op>(m::UNISONO_MAX, l)?,
                        Constant::find::<m::MPI_Op>(m::UNISONO_BAND, l)?,
                        Constant::find::<m::MPI_Op>(m::UNISONO_BOR, l)?,
                        Constant::find::<m::MPI_Op>(m::UNISONO_BXOR, l)?,
                        Constant::find::<m::MPI_Op>(m::UNISONO_LAND, l)?,
                        Constant::find::<m::MPI_Op>(m::UNISONO_LOR, l)?,
                    ],
                    in_place: mark(i64::from(m::UNISONO_IN_PLACE)),
                    levels: [
                        number(m::UNISONO_THREAD_SINGLE),
                        number(m::UNISONO_THREAD_FUNNELED),
                        number(m::UNISONO_THREAD_SERIALIZED),
                        number(m::UNISONO_THREAD_MULTIPLE),
                    ],
                    survives: c_int::try_from(m::UNISONO_FT).ok().filter(|key| *key >= 0),
                };
                // SAFETY: the library's constructors have run; the bindings are those of its ABI.
                let lib = unsafe { m::$name::from_library(library) };
                let lib = lib.map_err(|error| Error::new(Code::Backend, error.to_string()))?;
                let made = Self { lib, constants };
                made.complete()?;
                Ok(made)
            }

            /// Refuses a library that lacks a call we cannot do without.
            fn complete(&self) -> Result<()> {
                need! { self.lib;
                    MPI_Initialized MPI_Finalized MPI_Init_thread MPI_Finalize MPI_Query_thread
                    MPI_Is_thread_main MPI_Error_string MPI_Comm_rank MPI_Comm_size
                    MPI_Comm_test_inter MPI_Comm_dup MPI_Comm_free MPI_Comm_group MPI_Group_incl
                    MPI_Group_free MPI_Comm_create_group MPI_Comm_get_attr MPI_Comm_get_errhandler
                    MPI_Comm_set_errhandler MPI_Errhandler_free MPI_Op_create MPI_Op_free MPI_Test
                    MPI_Cancel MPI_Iprobe MPI_Get_count MPI_Isend MPI_Irecv MPI_Allreduce MPI_Reduce
                    MPI_Reduce_scatter MPI_Reduce_scatter_block MPI_Bcast MPI_Allgather MPI_Gather
                    MPI_Scatter MPI_Alltoall MPI_Allgatherv MPI_Gatherv MPI_Scatterv MPI_Alltoallv
                    MPI_Barrier MPI_Iallreduce MPI_Ireduce MPI_Ireduce_scatter
                    MPI_Ireduce_scatter_block MPI_Ibcast MPI_Iallgather MPI_Igather MPI_Iscatter
                    MPI_Ialltoall MPI_Iallgatherv MPI_Igatherv MPI_Iscatterv MPI_Ialltoallv
                    MPI_Ibarrier
                }
                Ok(())
            }
        }

        // Every call has been found (`complete`), and the others are asked for first.
        impl Api for $name {
            fn constants(&self) -> &Constants {
                &self.constants
            }

            fn initialized(&self, flag: &mut c_int) -> c_int {
                // SAFETY: allowed at any time.
                unsafe { self.lib.MPI_Initialized(flag) }
            }

            fn finalized(&self, flag: &mut c_int) -> c_int {
                // SAFETY: allowed at any time.
                unsafe { self.lib.MPI_Finalized(flag) }
            }

            fn init_thread(&self, required: c_int, provided: &mut c_int) -> c_int {
                let none = ptr::null_mut();
                // SAFETY: MPI takes no arguments where the program gives none.
                unsafe { self.lib.MPI_Init_thread(none, ptr::null_mut(), required, provided) }
            }

            fn finalize(&self) -> c_int {
                // SAFETY: plain values.
                unsafe { self.lib.MPI_Finalize() }
            }

            fn query_thread(&self, provided: &mut c_int) -> c_int {
                // SAFETY: the place is valid.
                unsafe { self.lib.MPI_Query_thread(provided) }
            }

            fn is_thread_main(&self, flag: &mut c_int) -> c_int {
                // SAFETY: the place is valid.
                unsafe { self.lib.MPI_Is_thread_main(flag) }
            }

            fn error_string(&self, code: c_int, text: &mut [u8], length: &mut c_int) -> c_int {
                assert!(text.len() >= super::library::TEXT_MAX);
                // SAFETY: no ABI writes more bytes.
                unsafe { self.lib.MPI_Error_string(code, text.as_mut_ptr().cast(), length) }
            }

            fn comm_rank(&self, comm: Handle, rank: &mut c_int) -> c_int {
                // SAFETY: the place is valid.
                unsafe { self.lib.MPI_Comm_rank(Raw::of(comm), rank) }
            }

            fn comm_size(&self, comm: Handle, size: &mut c_int) -> c_int {
                // SAFETY: the place is valid.
                unsafe { self.lib.MPI_Comm_size(Raw::of(comm), size) }
            }

            fn comm_test_inter(&self, comm: Handle, flag: &mut c_int) -> c_int {
                // SAFETY: the place is valid.
                unsafe { self.lib.MPI_Comm_test_inter(Raw::of(comm), flag) }
            }

            fn comm_dup(&self, comm: Handle, made: &mut Handle) -> c_int {
                let mut raw = Raw::of(self.constants.comm_null);
                // SAFETY: the place is valid.
                let code = unsafe { self.lib.MPI_Comm_dup(Raw::of(comm), &raw mut raw) };
                *made = raw.handle();
                code
            }

            fn comm_free(&self, comm: Handle) -> c_int {
                let mut raw = Raw::of(comm);
                // SAFETY: the place is valid.
                unsafe { self.lib.MPI_Comm_free(&raw mut raw) }
            }

            fn comm_group(&self, comm: Handle, group: &mut Handle) -> c_int {
                let mut raw: $module::MPI_Group = Raw::of(Handle::NONE);
                // SAFETY: the place is valid.
                let code = unsafe { self.lib.MPI_Comm_group(Raw::of(comm), &raw mut raw) };
                *group = raw.handle();
                code
            }

            fn group_incl(&self, group: Handle, ranks: &[c_int], made: &mut Handle) -> c_int {
                let mut raw: $module::MPI_Group = Raw::of(Handle::NONE);
                let count = c_int::try_from(ranks.len()).unwrap_or(c_int::MAX);
                // SAFETY: as many ranks as are said.
                let code = unsafe {
                    self.lib.MPI_Group_incl(Raw::of(group), count, ranks.as_ptr(), &raw mut raw)
                };
                *made = raw.handle();
                code
            }

            fn group_free(&self, group: Handle) -> c_int {
                let mut raw: $module::MPI_Group = Raw::of(group);
                // SAFETY: the place is valid.
                unsafe { self.lib.MPI_Group_free(&raw mut raw) }
            }

            fn comm_create_group(
                &self,
                comm: Handle,
                group: Handle,
                tag: c_int,
                made: &mut Handle,
            ) -> c_int {
                let mut raw = Raw::of(self.constants.comm_null);
                let (comm, group) = (Raw::of(comm), Raw::of(group));
                let lib = &self.lib;
                // SAFETY: the place is valid.
                let code = unsafe { lib.MPI_Comm_create_group(comm, group, tag, &raw mut raw) };
                *made = raw.handle();
                code
            }

            fn comm_attribute(
                &self,
                comm: Handle,
                key: c_int,
                value: &mut Option<c_int>,
            ) -> c_int {
                let (mut place, mut flag) = (ptr::null::<c_int>(), 0);
                let (at, lib) = ((&raw mut place).cast(), &self.lib);
                let comm = Raw::of(comm);
                // SAFETY: the places are valid, and an attribute is an address.
                let code = unsafe { lib.MPI_Comm_get_attr(comm, key, at, &raw mut flag) };
                let set = code == SUCCESS && flag != 0 && !place.is_null();
                // SAFETY: where it is set it points to a number of MPI's.
                *value = set.then(|| unsafe { place.read() });
                code
            }

            fn get_errhandler(&self, comm: Handle, handler: &mut Handle) -> c_int {
                let mut raw: $module::MPI_Errhandler = Raw::of(Handle::NONE);
                let lib = &self.lib;
                // SAFETY: the place is valid.
                let code = unsafe { lib.MPI_Comm_get_errhandler(Raw::of(comm), &raw mut raw) };
                *handler = raw.handle();
                code
            }

            fn set_errhandler(&self, comm: Handle, handler: Handle) -> c_int {
                // SAFETY: plain values.
                unsafe { self.lib.MPI_Comm_set_errhandler(Raw::of(comm), Raw::of(handler)) }
            }

            fn errhandler_free(&self, handler: Handle) -> c_int {
                let mut raw: $module::MPI_Errhandler = Raw::of(handler);
                // SAFETY: the place is valid.
                unsafe { self.lib.MPI_Errhandler_free(&raw mut raw) }
            }

            fn op_create(&self, function: UserFunction, commutes: bool, op: &mut Handle) -> c_int {
                let mut raw: $module::MPI_Op = Raw::of(Handle::NONE);
                // SAFETY: the two types differ in what the last address points to, and our
                // functions do not look there.
                let function = unsafe {
                    std::mem::transmute::<UserFunction, $module::MPI_User_function>(function)
                };
                // SAFETY: a function of the program, which outlives MPI.
                let code = unsafe {
                    self.lib.MPI_Op_create(function, c_int::from(commutes), &raw mut raw)
                };
                *op = raw.handle();
                code
            }

            fn op_free(&self, op: Handle) -> c_int {
                let mut raw: $module::MPI_Op = Raw::of(op);
                // SAFETY: the place is valid.
                unsafe { self.lib.MPI_Op_free(&raw mut raw) }
            }

            #[inline]
            fn test(
                &self,
                request: &mut Handle,
                unit: Option<Handle>,
                tested: &mut Tested,
            ) -> c_int {
                let mut raw: $module::MPI_Request = Raw::of(*request);
                let mut status = $module::MPI_Status::default();
                let mut flag = 0;
                let lib = &self.lib;
                // SAFETY: the places are valid.
                let code = unsafe { lib.MPI_Test(&raw mut raw, &raw mut flag, &raw mut status) };
                *request = raw.handle();
                *tested = Tested { done: flag != 0, elements: None };
                if let Some(unit) = unit
                    && flag != 0
                    && code == SUCCESS
                {
                    let (unit, mut count) = (Raw::of(unit), -1);
                    // SAFETY: the status is of a receive that has ended.
                    let got = unsafe { lib.MPI_Get_count(&raw const status, unit, &raw mut count) };
                    if got == SUCCESS {
                        tested.elements = u64::try_from(count).ok();
                    }
                }
                code
            }

            fn cancel(&self, request: &mut Handle) -> c_int {
                let mut raw: $module::MPI_Request = Raw::of(*request);
                // SAFETY: the place is valid.
                let code = unsafe { self.lib.MPI_Cancel(&raw mut raw) };
                *request = raw.handle();
                code
            }

            fn progress(&self, comm: Handle) -> c_int {
                let (mut flag, mut status) = (0, $module::MPI_Status::default());
                let (comm, lib) = (Raw::of(comm), &self.lib);
                // Whether rank 0 has sent something is not the question: asking is what moves MPI.
                // SAFETY: the places are valid, and every communicator has a rank 0.
                unsafe { lib.MPI_Iprobe(0, 0, comm, &raw mut flag, &raw mut status) }
            }

            #[inline]
            unsafe fn call(
                &self,
                call: &Primitive,
                lists: &[Lists; 2],
                comm: Handle,
                mut request: Option<&mut Handle>,
            ) -> c_int {
                let mut raw: $module::MPI_Request = Raw::of(self.constants.request_null);
                let later = request.is_some().then_some(&raw mut raw);
                // SAFETY: the caller's promise; the request's place is valid.
                let code = unsafe { self.form(call, lists, Raw::of(comm), later) };
                if let Some(request) = &mut request {
                    **request = raw.handle();
                }
                code
            }

            fn has_large_counts(&self) -> bool {
                let lib = &self.lib;
                // A library has all of them or none.
                lib.MPI_Allreduce_c.is_ok()
                    && lib.MPI_Ialltoallv_c.is_ok()
                    && lib.MPI_Irecv_c.is_ok()
                    && lib.MPI_Reduce_scatter_c.is_ok()
            }

            fn has_shrink(&self) -> bool {
                self.lib.MPIX_Comm_revoke.is_ok() && self.lib.MPIX_Comm_shrink.is_ok()
            }

            fn comm_revoke(&self, comm: Handle) -> c_int {
                // SAFETY: plain values.
                unsafe { self.lib.MPIX_Comm_revoke(Raw::of(comm)) }
            }

            fn comm_shrink(&self, comm: Handle, made: &mut Handle) -> c_int {
                let mut raw = Raw::of(self.constants.comm_null);
                // SAFETY: the place is valid.
                let code = unsafe { self.lib.MPIX_Comm_shrink(Raw::of(comm), &raw mut raw) };
                *made = raw.handle();
                code
            }
        }

        impl $name {
            /// # Safety
            /// As for [`Api::call`]; `later` is valid.
            #[inline]
            unsafe fn form(
                &self,
                call: &Primitive,
                [sends, recvs]: &[Lists; 2],
                comm: $module::MPI_Comm,
                later: Option<*mut $module::MPI_Request>,
            ) -> c_int {
                let &Primitive { kind, send, recv, count, root, tag, wide, .. } = call;
                let unit: $module::MPI_Datatype = Raw::of(call.unit);
                let op: $module::MPI_Op = Raw::of(call.op);
                let lib = &self.lib;
                // SAFETY: the caller's promise.
                unsafe {
                    match kind {
                        Kind::AllReduce => form!(lib, wide, later, |w|
                            MPI_Allreduce MPI_Iallreduce MPI_Allreduce_c MPI_Iallreduce_c
                            (send, recv, w.count(count), unit, op, comm)),
                        Kind::Reduce => form!(lib, wide, later, |w|
                            MPI_Reduce MPI_Ireduce MPI_Reduce_c MPI_Ireduce_c
                            (send, recv, w.count(count), unit, op, root, comm)),
                        Kind::ReduceScatter => form!(lib, wide, later, |w|
                            MPI_Reduce_scatter MPI_Ireduce_scatter MPI_Reduce_scatter_c
                            MPI_Ireduce_scatter_c (send, recv, w.counts(recvs), unit, op, comm)),
                        Kind::ReduceScatterBlock => form!(lib, wide, later, |w|
                            MPI_Reduce_scatter_block MPI_Ireduce_scatter_block
                            MPI_Reduce_scatter_block_c MPI_Ireduce_scatter_block_c
                            (send, recv, w.count(count), unit, op, comm)),
                        Kind::Broadcast => form!(lib, wide, later, |w|
                            MPI_Bcast MPI_Ibcast MPI_Bcast_c MPI_Ibcast_c
                            (recv, w.count(count), unit, root, comm)),
                        Kind::AllGather => form!(lib, wide, later, |w|
                            MPI_Allgather MPI_Iallgather MPI_Allgather_c MPI_Iallgather_c
                            (send, w.count(count), unit, recv, w.count(count), unit, comm)),
                        Kind::Gather => form!(lib, wide, later, |w|
                            MPI_Gather MPI_Igather MPI_Gather_c MPI_Igather_c
                            (send, w.count(count), unit, recv, w.count(count), unit, root, comm)),
                        Kind::Scatter => form!(lib, wide, later, |w|
                            MPI_Scatter MPI_Iscatter MPI_Scatter_c MPI_Iscatter_c
                            (send, w.count(count), unit, recv, w.count(count), unit, root, comm)),
                        Kind::AllToAll => form!(lib, wide, later, |w|
                            MPI_Alltoall MPI_Ialltoall MPI_Alltoall_c MPI_Ialltoall_c
                            (send, w.count(count), unit, recv, w.count(count), unit, comm)),
                        Kind::AllGatherV => form!(lib, wide, later, |w|
                            MPI_Allgatherv MPI_Iallgatherv MPI_Allgatherv_c MPI_Iallgatherv_c
                            (send, w.count(count), unit, recv, w.counts(recvs), w.places(recvs),
                             unit, comm)),
                        Kind::GatherV => form!(lib, wide, later, |w|
                            MPI_Gatherv MPI_Igatherv MPI_Gatherv_c MPI_Igatherv_c
                            (send, w.count(count), unit, recv, w.counts(recvs), w.places(recvs),
                             unit, root, comm)),
                        Kind::ScatterV => form!(lib, wide, later, |w|
                            MPI_Scatterv MPI_Iscatterv MPI_Scatterv_c MPI_Iscatterv_c
                            (send, w.counts(sends), w.places(sends), unit, recv, w.count(count),
                             unit, root, comm)),
                        Kind::AllToAllV => form!(lib, wide, later, |w|
                            MPI_Alltoallv MPI_Ialltoallv MPI_Alltoallv_c MPI_Ialltoallv_c
                            (send, w.counts(sends), w.places(sends), unit, recv, w.counts(recvs),
                             w.places(recvs), unit, comm)),
                        Kind::Barrier => match later {
                            None => lib.MPI_Barrier(comm),
                            Some(request) => lib.MPI_Ibarrier(comm, request),
                        },
                        Kind::Send | Kind::Recv => {
                            let Some(request) = later else { unreachable!("messages begin") };
                            self.message(call, (root, tag), comm, request)
                        }
                    }
                }
            }

            /// # Safety
            /// As for [`Api::call`].
            unsafe fn message(
                &self,
                call: &Primitive,
                (peer, tag): (c_int, c_int),
                comm: $module::MPI_Comm,
                request: *mut $module::MPI_Request,
            ) -> c_int {
                let unit: $module::MPI_Datatype = Raw::of(call.unit);
                let (lib, narrow, wide) = (&self.lib, Narrow, Wide);
                let (send, recv, count) = (call.send, call.recv, call.count);
                // SAFETY: the caller's promise.
                unsafe {
                    match (call.kind == Kind::Send, call.wide) {
                        (true, false) => {
                            lib.MPI_Isend(send, narrow.count(count), unit, peer, tag, comm, request)
                        }
                        (true, true) => {
                            lib.MPI_Isend_c(send, wide.count(count), unit, peer, tag, comm, request)
                        }
                        (false, false) => {
                            lib.MPI_Irecv(recv, narrow.count(count), unit, peer, tag, comm, request)
                        }
                        (false, true) => {
                            lib.MPI_Irecv_c(recv, wide.count(count), unit, peer, tag, comm, request)
                        }
                    }
                }
            }
        }
    };
}

implement!(openmpi, OpenMpi);
implement!(mpich, Mpich);
implement!(standard, Standard);

/// A constant that stands where an address would.
fn mark(value: i64) -> *const c_void {
    ptr::without_provenance(usize::from_ne_bytes(value.to_ne_bytes()))
}

fn number(value: u32) -> c_int {
    c_int::try_from(value).unwrap_or(c_int::MAX)
}

#[cfg(test)]
#[path = "abi_tests.rs"]
mod tests;
