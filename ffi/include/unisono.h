/* unisono.h: the C ABI of Unisono, collective communication for large language models.
 *
 * C99. Every function returns a status: UNISONO_OK (0) or one of the codes below; nothing in this
 * library ends the process. Outputs go through pointers and are written last: on error they are
 * untouched, unless a function says otherwise. Counts are in elements, sizes in bytes, times in
 * milliseconds.
 *
 * Threads: one thread at a time may be inside a call on a communicator; a second one gets UNISONO_BUSY.
 * Any number of communicators may be in use at once. unisono_comm_abort, unisono_comm_status,
 * unisono_last_error, and waiting for requests work from any thread at any time. A request is one
 * thread's at a time. Give threads at least 64 KiB of stack. After fork, a communicator is the
 * parent's alone: in the child its use is UNISONO_INVALID_STATE, and destroying it is silent. As
 * long as such a child neither ends nor calls exec, it keeps the parent's connections open.
 *
 * Calls: every rank makes the same calls in the same order on a communicator, blocking or not, with
 * the same counts, types, operations and roots; where they differ, all get UNISONO_MISMATCH with both
 * calls in the error's text. Two ranks that exchange no message in a rooted call (two roots of
 * broadcasts that only send) find out at their next common call, or when the later one of them
 * destroys its communicator. Buffers that a rank does not use may be NULL. Buffers must be aligned
 * to their element type and must not overlap, except in place as each function says. Requests that
 * are outstanding together must not depend on each other's data. A collective may end before other
 * ranks have begun it, or wait until all have begun it or the one before: no program may rely on
 * either.
 *
 * Errors: codes from 100 up leave the communicator usable, except UNISONO_MISMATCH and UNISONO_SYSTEM;
 * these and those from 300 up break it (unisono_comm_status tells) and it can only be destroyed.
 *
 * Handles: a destroyed communicator and a reported request are found out and refused with
 * UNISONO_INVALID_HANDLE; for that, 128 bytes stay behind for each communicator (about 250 with what
 * the C library's allocator adds), and 72 for each request it had room for: 16 from the first one
 * on, then 48, 112 and so on, as many as were outstanding at once.
 *
 * Generated from src/capi by cbindgen: change it there.
 */

#ifndef UNISONO_H
#define UNISONO_H

#include <stddef.h>
#include <stdint.h>

/* The settings to start from: everything has its default. */
#define UNISONO_CONFIG_INIT { sizeof(unisono_config_t), 0, 0, -1, -1, NULL, NULL, NULL, NULL, NULL }
/* Major version of this header. */
#define UNISONO_VERSION_MAJOR 0
/* Minor version of this header. Before 1.0 ranks, header and library must share it. */
#define UNISONO_VERSION_MINOR 1
/* Patch version of this header. */
#define UNISONO_VERSION_PATCH 0
/* Success. */
#define UNISONO_OK 0
/* Not complete yet; no error. */
#define UNISONO_IN_PROGRESS 1
/* An argument is out of its range. */
#define UNISONO_INVALID_ARGUMENT 100
/* A pointer that must not be NULL is NULL. */
#define UNISONO_NULL_POINTER 101
/* A buffer is not aligned to its element type. */
#define UNISONO_MISALIGNED 102
/* Buffers overlap in a way the call does not allow. */
#define UNISONO_OVERLAP 103
/* Counts times element size exceed the address space. */
#define UNISONO_COUNT_OVERFLOW 104
/* A number names no known type, operation or option. */
#define UNISONO_UNKNOWN_VALUE 105
/* A root or peer is not a rank of the communicator. */
#define UNISONO_RANK_OUT_OF_RANGE 106
/* A handle is destroyed or was never one. */
#define UNISONO_INVALID_HANDLE 107
/* Another thread is inside a call on this communicator. */
#define UNISONO_BUSY 108
/* The combination has no meaning or is not available here. */
#define UNISONO_UNSUPPORTED 109
/* The call is not allowed in this state. */
#define UNISONO_INVALID_STATE 110
/* Environment variables are missing or contradict each other. */
#define UNISONO_INVALID_ENVIRONMENT 111
/* The unique id is damaged or not one. */
#define UNISONO_INVALID_ID 112
/* No launcher has set its environment variables. */
#define UNISONO_NO_LAUNCHER 113
/* Ranks made different calls. */
#define UNISONO_MISMATCH 120
/* The operating system refused. */
#define UNISONO_SYSTEM 200
/* Memory could not be had. */
#define UNISONO_OUT_OF_MEMORY 201
/* A configured or system limit is reached. */
#define UNISONO_LIMIT 202
/* No usable network address was found. */
#define UNISONO_NO_ADDRESS 203
/* A rank died or its connections broke. */
#define UNISONO_PEER_LOST 300
/* The deadline passed. */
#define UNISONO_TIMED_OUT 301
/* A peer sent what it must not. */
#define UNISONO_PROTOCOL 302
/* A peer runs another version. */
#define UNISONO_VERSION_MISMATCH 303
/* A peer does not know the job's key. */
#define UNISONO_UNAUTHENTICATED 304
/* Ranks did not arrive before the start-up deadline. */
#define UNISONO_MISSING_RANKS 305
/* The connection to a rank broke, and the rank may be well. */
#define UNISONO_LINK_LOST 306
/* The communicator was aborted. */
#define UNISONO_ABORTED 400
/* The communicator failed earlier. */
#define UNISONO_BROKEN 401
/* A peer belongs to another incarnation of the communicator. */
#define UNISONO_STALE_EPOCH 402
/* A foreign library failed. */
#define UNISONO_BACKEND 500
/* A bug in unisono. */
#define UNISONO_INTERNAL 900
/* A panic was stopped at the C boundary. */
#define UNISONO_PANIC 901
/* Signed 8-bit integer. */
#define UNISONO_I8 0
/* Unsigned 8-bit integer. */
#define UNISONO_U8 1
/* Signed 16-bit integer. */
#define UNISONO_I16 2
/* Unsigned 16-bit integer. */
#define UNISONO_U16 3
/* Signed 32-bit integer. */
#define UNISONO_I32 4
/* Unsigned 32-bit integer. */
#define UNISONO_U32 5
/* Signed 64-bit integer. */
#define UNISONO_I64 6
/* Unsigned 64-bit integer. */
#define UNISONO_U64 7
/* IEEE 754 binary16. */
#define UNISONO_F16 8
/* bfloat16: the upper half of a binary32. */
#define UNISONO_BF16 9
/* OCP 8-bit float E4M3: no infinities, NaN is 0x7f and 0xff, largest finite 448. */
#define UNISONO_F8E4M3 10
/* OCP 8-bit float E5M2: infinities and NaNs as IEEE 754, largest finite 57344. */
#define UNISONO_F8E5M2 11
/* IEEE 754 binary32. */
#define UNISONO_F32 12
/* IEEE 754 binary64. */
#define UNISONO_F64 13
/* Two binary32: real, then imaginary. */
#define UNISONO_COMPLEX64 14
/* Two binary64: real, then imaginary. */
#define UNISONO_COMPLEX128 15
/* The sum. Integers wrap. */
#define UNISONO_SUM 0
/* The product. Integers wrap. */
#define UNISONO_PROD 1
/* The smallest; -0 is below +0 and a NaN wins (IEEE 754-2019 `minimum`). */
#define UNISONO_MIN 2
/* The largest; +0 is above -0 and a NaN wins (IEEE 754-2019 `maximum`). */
#define UNISONO_MAX 3
/* The sum divided by the world size; integers truncate towards zero after a wrapping sum. */
#define UNISONO_AVG 4
/* The sum of each rank's input times that rank's own scalar: not passed itself, but made by
 * `unisono_op_create_pre_mul_sum`. */
#define UNISONO_PRE_MUL_SUM 5
/* Bitwise and. */
#define UNISONO_BAND 6
/* Bitwise or. */
#define UNISONO_BOR 7
/* Bitwise exclusive or. */
#define UNISONO_BXOR 8
/* Logical and of "is not zero"; the result is 0 or 1. */
#define UNISONO_LAND 9
/* Logical or of "is not zero"; the result is 0 or 1. */
#define UNISONO_LOR 10
/* The bytes of a unisono_unique_id_t. */
#define UNISONO_UNIQUE_ID_BYTES 128

/* One rank's place in a group of ranks. Opaque. */
typedef struct unisono_comm_t unisono_comm_t;

/* A call in progress. Opaque. */
typedef struct unisono_request_t unisono_request_t;

/* Addresses, version and random key of a job. A secret: who has it can join. */
typedef struct {
    /* Plain bytes: hand them to the other ranks by whatever means there is. */
    uint8_t bytes[UNISONO_UNIQUE_ID_BYTES];
} unisono_unique_id_t;

/* Settings of a communicator. Start from UNISONO_CONFIG_INIT. `size` tells versions of this struct
 * apart: it only grows at the end. What a program's older header lacks has its default; what a
 * newer header adds must be zero for an older library.
 *
 * Where a field leaves it open, the environment decides (UNISONO_TIMEOUT_MS and so on), then the
 * default. */
typedef struct {
    /* sizeof (unisono_config_t). */
    size_t size;
    /* Deadline of each call in milliseconds; 0: the default (600000); -1: none. It runs from the
     * call on, for a non-blocking one also while earlier ones hold it up. */
    int64_t timeout_ms;
    /* Deadline of start-up in milliseconds; 0: the default (60000). */
    int64_t init_timeout_ms;
    /* 1: the result's bits depend on inputs and rank numbers alone; 0: they need not; -1: default
     * (0). */
    int32_t deterministic;
    /* 1: non-blocking calls progress by themselves; 0: only while the program waits or tests; -1:
     * default (1). */
    int32_t progress_thread;
    /* Links that may be used, "shm,tcp"; NULL: all. */
    const char *links;
    /* Network interface by name, address or CIDR; NULL: the route to the peer. */
    const char *interface;
    /* The communicator's name in logs and errors, at most 255 bytes; NULL: none. */
    const char *name;
    /* What carries out calls: "auto", "native", "nccl" or "mpi"; NULL: auto, which is NCCL on
     * memory of GPUs where it can serve all ranks, else native. Every rank must have the same. */
    const char *backend;
    /* The GPU whose memory calls may be on: its number, "local_rank" for the one with the rank's
     * number on its host, counted around, or "none"; "auto" or NULL: that of the calling thread's
     * context, where the program uses CUDA. */
    const char *device;
} unisono_config_t;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/* major * 10000 + minor * 100 + patch of the library that runs. */
int unisono_version(void);

/* The name of a status, without `UNISONO_`: static text, never NULL. */
const char *unisono_status_name(int status);

/* What a status means, in a sentence: static text, never NULL. */
const char *unisono_status_text(int status);

/* Copies the text of the last error to `text`, NUL-terminated and cut at `bytes`: of a call on
 * `comm`, or, where `comm` is NULL, of any call of this thread. Empty where there was none. The
 * text names the offending value. The next error replaces it; success does not. */
int unisono_last_error(const unisono_comm_t *comm, char *text, size_t bytes);

/* The rank that the last error blames (see `unisono_last_error`), or -1 where it blames none. */
int unisono_last_error_rank(const unisono_comm_t *comm, int *rank);

/* The size of one element of a type, in bytes. */
int unisono_dtype_size(int dtype, size_t *bytes);

/* Makes an operation that multiplies this rank's input by `*scalar` before summing: one element of
 * `dtype`, or of f32 for the half and 8-bit floats. Every rank makes its own. `*op` (1000 and up)
 * is valid on `comm`, for elements of `dtype`, until destroyed. */
int unisono_op_create_pre_mul_sum(unisono_comm_t *comm, int dtype, const void *scalar, int *op);

/* Ends an operation that `unisono_op_create_pre_mul_sum` has made. Calls under way keep it. */
int unisono_op_destroy(unisono_comm_t *comm, int op);

/* Makes the id of a new job, and a background thread in this process where its ranks meet. One
 * rank calls it and hands the id to the others. An id serves one communicator. */
int unisono_get_unique_id(unisono_unique_id_t *id);

/* This process's place in the job of `id`, as rank `rank` of `world`. Blocks until all ranks have
 * called it with the same id, at most config->init_timeout_ms; UNISONO_MISSING_RANKS names those
 * that did not come. `config` may be NULL. */
int unisono_comm_init_rank(unisono_comm_t **comm,
                           int world,
                           const unisono_unique_id_t *id,
                           int rank,
                           const unisono_config_t *config);

/* `world` communicators for threads of this process: comms[r] is rank r's. `config` may be NULL. */
int unisono_comm_init_all(unisono_comm_t **comms, int world, const unisono_config_t *config);

/* This process's place as its launcher's environment tells it: rank, world, and where to meet.
 * UNISONO_NO_LAUNCHER where no launcher has set its variables, UNISONO_INVALID_ENVIRONMENT where
 * they are half set. `config` may be NULL. */
int unisono_comm_init_env(unisono_comm_t **comm, const unisono_config_t *config);

/* The ranks of `mpi_comm`, a communicator of the MPI that this program has initialised: its
 * MPI_Comm as an address, `(void *)comm` or `(void *)(intptr_t)comm`. A collective call on it. A
 * duplicate is used, and `mpi_comm` left as it is. With the native backend MPI only brings the
 * ranks together. UNISONO_UNSUPPORTED where the library knows no MPI in this process,
 * UNISONO_INVALID_STATE where MPI is not running, or this thread must not call it. `config` may be
 * NULL. */
int unisono_comm_init_mpi(unisono_comm_t **comm, void *mpi_comm, const unisono_config_t *config);

/* Ranks with equal `color` form a communicator, ordered by `key`, then by old rank. A negative
 * color takes part and gets NULL. A collective call. Where a rank lacks files or memory for it,
 * the ranks of its color get its status; the other colors and `comm` go on. */
int unisono_comm_split(unisono_comm_t *comm, int color, int key, unisono_comm_t **split);

/* A communicator of the ranks that are left, in their order, once some have died or this one has
 * failed: all of them call this. What is under way on `comm` ends with UNISONO_ABORTED, and it
 * stays broken: destroy it. Where another rank dies meanwhile all that are left may call it again.
 * UNISONO_UNSUPPORTED on the native backend in this version, and where MPI does not go on when
 * ranks die (it takes Open MPI 5 or later, started by `mpirun --with-ft ulfm`). */
int unisono_comm_shrink(unisono_comm_t *comm, unisono_comm_t **shrunk);

/* Ends the communicator: outstanding requests complete first, at most for the communicator's
 * deadline; then they end with UNISONO_ABORTED (UNISONO_TIMED_OUT where their own deadline was the
 * first to pass) and the status is UNISONO_TIMED_OUT. It is that, too, where another rank gives up
 * first. When they end by another error, the status is that. Requests may still be waited for
 * afterwards. UNISONO_MISMATCH when a rank that ended its communicator before made other
 * collective calls than this one, which no call had shown. The handle is invalid from here on,
 * whatever the status, except UNISONO_BUSY: another thread is inside a call, and nothing has
 * happened. */
int unisono_comm_destroy(unisono_comm_t *comm);

/* Ends every pending call, and refuses every later one, with UNISONO_ABORTED, on every rank. From
 * any thread; a second time does nothing. The communicator must still be destroyed. */
int unisono_comm_abort(unisono_comm_t *comm);

/* From here on calls on device memory have their place in `stream`, a CUstream or cudaStream_t of
 * the communicator's device (NULL: the default stream): the blocking forms return at once, come
 * after what is in the stream before them, and what is put there later comes after them. Their
 * buffers belong to the library until the stream has passed them. An error of a call that has
 * returned shows in the next call's status and in unisono_comm_status; its stream goes on.
 * Non-blocking forms, and calls on host memory, are as before. UNISONO_UNSUPPORTED where the
 * communicator has no GPU, UNISONO_INVALID_ARGUMENT for a stream of another device. */
int unisono_comm_set_stream(unisono_comm_t *comm, void *stream);

/* From here on calls on device memory wait for their end, as they do at first. Those before keep
 * their place in their stream. */
int unisono_comm_clear_stream(unisono_comm_t *comm);

/* This rank, to `*rank`. */
int unisono_comm_rank(const unisono_comm_t *comm, int *rank);

/* The number of ranks, to `*world`. */
int unisono_comm_world_size(const unisono_comm_t *comm, int *world);

/* UNISONO_OK while the communicator is usable, else the status that broke it. From any thread. */
int unisono_comm_status(const unisono_comm_t *comm);

/* Copies what was chosen when the communicator formed, and why, to `text`: a line each,
 * NUL-terminated, cut at `bytes`. For logs and bug reports. */
int unisono_comm_describe(const unisono_comm_t *comm, char *text, size_t bytes);

/* Zeroed, page-aligned memory that the ranks of this host can map: calls on it copy nothing on the
 * way. It goes back by `unisono_mem_free`, or when the communicator ends. */
int unisono_mem_alloc(unisono_comm_t *comm, size_t bytes, void **memory);

/* Gives memory of `unisono_mem_alloc` back. No call may be using it. */
int unisono_mem_free(unisono_comm_t *comm, void *memory);

/* Tells the communicator of memory, of the host or of its GPU, that calls will use often: what it
 * can gain by that it does now. Nothing else changes, and ranks need not do alike. The memory must
 * stay until `unisono_mem_deregister`, or until the communicator ends. `UNISONO_OVERLAP` where
 * some of it is registered already. */
int unisono_mem_register(unisono_comm_t *comm, void *memory, size_t bytes);

/* The memory that was registered at this address may go. No call may be using it. */
int unisono_mem_deregister(unisono_comm_t *comm, void *memory);

/* Every rank's `recv` = the reduction of all ranks' `send`, `count` elements each. In place: recv
 * == send. */
int unisono_all_reduce(const void *send,
                       void *recv,
                       uint64_t count,
                       int dtype,
                       int op,
                       unisono_comm_t *comm);

/* The root's `recv` = the reduction of all ranks' `send`, `count` elements each. Other ranks'
 * `recv` is not used and may be NULL. In place at the root: recv == send. */
int unisono_reduce(const void *send,
                   void *recv,
                   uint64_t count,
                   int dtype,
                   int op,
                   int root,
                   unisono_comm_t *comm);

/* Every rank's `recv` = the root's `send`, `count` elements. Other ranks' `send` is not used and
 * may be NULL; at the root `recv` may be NULL or equal to `send`. */
int unisono_broadcast(const void *send,
                      void *recv,
                      uint64_t count,
                      int dtype,
                      int root,
                      unisono_comm_t *comm);

/* Every rank's `recv` (world times `send_count` elements) = all ranks' `send`, in rank order. In
 * place: send == recv + rank * send_count elements. */
int unisono_all_gather(const void *send,
                       void *recv,
                       uint64_t send_count,
                       int dtype,
                       unisono_comm_t *comm);

/* `recv` = block `rank` of the reduction of all ranks' `send` (world times `recv_count` elements).
 * In place: recv == send + rank * recv_count elements; the rest of `send` is then undefined. */
int unisono_reduce_scatter(const void *send,
                           void *recv,
                           uint64_t recv_count,
                           int dtype,
                           int op,
                           unisono_comm_t *comm);

/* The root's `recv` (world times `send_count` elements) = all ranks' `send`, in rank order. Other
 * ranks' `recv` may be NULL. In place at the root: send == recv + rank * send_count elements. */
int unisono_gather(const void *send,
                   void *recv,
                   uint64_t send_count,
                   int dtype,
                   int root,
                   unisono_comm_t *comm);

/* `recv` = block `rank` of the root's `send` (world times `recv_count` elements). Other ranks'
 * `send` may be NULL. In place at the root: recv == send + rank * recv_count elements. */
int unisono_scatter(const void *send,
                    void *recv,
                    uint64_t recv_count,
                    int dtype,
                    int root,
                    unisono_comm_t *comm);

/* Block r of `recv` = this rank's block of rank r's `send`; blocks have `count` elements. In
 * place: recv == send, on all ranks or none. */
int unisono_all_to_all(const void *send,
                       void *recv,
                       uint64_t count,
                       int dtype,
                       unisono_comm_t *comm);

/* As unisono_all_gather, where rank r sends counts[r] elements, which lie from displacements[r] on
 * in every rank's `recv`. `counts` and `displacements` have an entry a rank, in elements; counts
 * may be 0. `displacements` may be NULL: blocks follow each other. The same on all ranks. */
int unisono_all_gather_v(const void *send,
                         void *recv,
                         const uint64_t *counts,
                         const uint64_t *displacements,
                         int dtype,
                         unisono_comm_t *comm);

/* As unisono_reduce_scatter, where rank r gets the next counts[r] elements. The same `counts` on
 * all ranks. */
int unisono_reduce_scatter_v(const void *send,
                             void *recv,
                             const uint64_t *counts,
                             int dtype,
                             int op,
                             unisono_comm_t *comm);

/* As unisono_gather, where rank r sends `send_count` = counts[r] elements, which lie from
 * displacements[r] on in the root's `recv`. `recv`, `counts` and `displacements` are only used at
 * the root; `displacements` may be NULL there: blocks follow each other. */
int unisono_gather_v(const void *send,
                     uint64_t send_count,
                     void *recv,
                     const uint64_t *counts,
                     const uint64_t *displacements,
                     int dtype,
                     int root,
                     unisono_comm_t *comm);

/* As unisono_scatter, where rank r gets `recv_count` = counts[r] elements, which lie from
 * displacements[r] on in the root's `send`. `send`, `counts` and `displacements` are only used at
 * the root; `displacements` may be NULL there: blocks follow each other. */
int unisono_scatter_v(const void *send,
                      const uint64_t *counts,
                      const uint64_t *displacements,
                      void *recv,
                      uint64_t recv_count,
                      int dtype,
                      int root,
                      unisono_comm_t *comm);

/* As unisono_all_to_all, where send_counts[r] elements from send_displacements[r] on go to rank r,
 * and recv_counts[r] elements from rank r lie from recv_displacements[r] on. Displacements may be
 * NULL: blocks follow each other. What one rank sends to another, that one must expect. */
int unisono_all_to_all_v(const void *send,
                         const uint64_t *send_counts,
                         const uint64_t *send_displacements,
                         void *recv,
                         const uint64_t *recv_counts,
                         const uint64_t *recv_displacements,
                         int dtype,
                         unisono_comm_t *comm);

/* Complete once every rank has called it. */
int unisono_barrier(unisono_comm_t *comm);

/* Sends `count` elements to rank `peer`, which must receive as many of the same type. Messages
 * between two ranks arrive in the order they were sent. */
int unisono_send(const void *send, uint64_t count, int dtype, int peer, unisono_comm_t *comm);

/* Receives `count` elements from rank `peer`. */
int unisono_recv(void *recv, uint64_t count, int dtype, int peer, unisono_comm_t *comm);

/* unisono_send to rank `to` and unisono_recv from rank `from` at the same time, so that rings of
 * them do not block each other. The buffers must not overlap. */
int unisono_send_recv(const void *send,
                      uint64_t send_count,
                      int to,
                      void *recv,
                      uint64_t recv_count,
                      int from,
                      int dtype,
                      unisono_comm_t *comm);

/* unisono_all_reduce as a request: returns at once; `*request` ends when the call has. Until then
 * its buffers belong to the library. Counts and displacements are copied here and may go at once. */
int unisono_iall_reduce(const void *send,
                        void *recv,
                        uint64_t count,
                        int dtype,
                        int op,
                        unisono_comm_t *comm,
                        unisono_request_t **request);

/* unisono_reduce as a request: returns at once; `*request` ends when the call has. */
int unisono_ireduce(const void *send,
                    void *recv,
                    uint64_t count,
                    int dtype,
                    int op,
                    int root,
                    unisono_comm_t *comm,
                    unisono_request_t **request);

/* unisono_broadcast as a request: returns at once; `*request` ends when the call has. */
int unisono_ibroadcast(const void *send,
                       void *recv,
                       uint64_t count,
                       int dtype,
                       int root,
                       unisono_comm_t *comm,
                       unisono_request_t **request);

/* unisono_all_gather as a request: returns at once; `*request` ends when the call has. */
int unisono_iall_gather(const void *send,
                        void *recv,
                        uint64_t send_count,
                        int dtype,
                        unisono_comm_t *comm,
                        unisono_request_t **request);

/* unisono_reduce_scatter as a request: returns at once; `*request` ends when the call has. */
int unisono_ireduce_scatter(const void *send,
                            void *recv,
                            uint64_t recv_count,
                            int dtype,
                            int op,
                            unisono_comm_t *comm,
                            unisono_request_t **request);

/* unisono_gather as a request: returns at once; `*request` ends when the call has. */
int unisono_igather(const void *send,
                    void *recv,
                    uint64_t send_count,
                    int dtype,
                    int root,
                    unisono_comm_t *comm,
                    unisono_request_t **request);

/* unisono_scatter as a request: returns at once; `*request` ends when the call has. */
int unisono_iscatter(const void *send,
                     void *recv,
                     uint64_t recv_count,
                     int dtype,
                     int root,
                     unisono_comm_t *comm,
                     unisono_request_t **request);

/* unisono_all_to_all as a request: returns at once; `*request` ends when the call has. */
int unisono_iall_to_all(const void *send,
                        void *recv,
                        uint64_t count,
                        int dtype,
                        unisono_comm_t *comm,
                        unisono_request_t **request);

/* unisono_all_gather_v as a request: returns at once; `*request` ends when the call has. */
int unisono_iall_gather_v(const void *send,
                          void *recv,
                          const uint64_t *counts,
                          const uint64_t *displacements,
                          int dtype,
                          unisono_comm_t *comm,
                          unisono_request_t **request);

/* unisono_reduce_scatter_v as a request: returns at once; `*request` ends when the call has. */
int unisono_ireduce_scatter_v(const void *send,
                              void *recv,
                              const uint64_t *counts,
                              int dtype,
                              int op,
                              unisono_comm_t *comm,
                              unisono_request_t **request);

/* unisono_gather_v as a request: returns at once; `*request` ends when the call has. */
int unisono_igather_v(const void *send,
                      uint64_t send_count,
                      void *recv,
                      const uint64_t *counts,
                      const uint64_t *displacements,
                      int dtype,
                      int root,
                      unisono_comm_t *comm,
                      unisono_request_t **request);

/* unisono_scatter_v as a request: returns at once; `*request` ends when the call has. */
int unisono_iscatter_v(const void *send,
                       const uint64_t *counts,
                       const uint64_t *displacements,
                       void *recv,
                       uint64_t recv_count,
                       int dtype,
                       int root,
                       unisono_comm_t *comm,
                       unisono_request_t **request);

/* unisono_all_to_all_v as a request: returns at once; `*request` ends when the call has. */
int unisono_iall_to_all_v(const void *send,
                          const uint64_t *send_counts,
                          const uint64_t *send_displacements,
                          void *recv,
                          const uint64_t *recv_counts,
                          const uint64_t *recv_displacements,
                          int dtype,
                          unisono_comm_t *comm,
                          unisono_request_t **request);

/* unisono_barrier as a request: returns at once; `*request` ends when the call has. */
int unisono_ibarrier(unisono_comm_t *comm, unisono_request_t **request);

/* unisono_send as a request: returns at once; `*request` ends when the call has. */
int unisono_isend(const void *send,
                  uint64_t count,
                  int dtype,
                  int peer,
                  unisono_comm_t *comm,
                  unisono_request_t **request);

/* unisono_recv as a request: returns at once; `*request` ends when the call has. */
int unisono_irecv(void *recv,
                  uint64_t count,
                  int dtype,
                  int peer,
                  unisono_comm_t *comm,
                  unisono_request_t **request);

/* unisono_send_recv as a request: returns at once; `*request` ends when the call has. */
int unisono_isend_recv(const void *send,
                       uint64_t send_count,
                       int to,
                       void *recv,
                       uint64_t recv_count,
                       int from,
                       int dtype,
                       unisono_comm_t *comm,
                       unisono_request_t **request);

/* Whether the call has ended, to `*done`: 1 once it has, and the status is the call's own then. A
 * NULL `*request` has ended. What has ended, well or not, is freed and `*request` becomes NULL. */
int unisono_test(unisono_request_t **request, int *done);

/* Waits for the call's end, at most `timeout_ms` (-1: the communicator's deadline alone), and
 * gives the call's status. UNISONO_IN_PROGRESS when the time ran out first: the call goes on, and
 * the request stays. A NULL `*request` has ended well. What has ended, well or not, is freed and
 * `*request` becomes NULL. */
int unisono_wait(unisono_request_t **request, int64_t timeout_ms);

/* Waits for one of `count` requests, at most `timeout_ms` (-1: their own deadlines alone). The
 * index of the one that ended goes to `*index`, also when its call failed: the status is the
 * call's. NULL entries are skipped; where all are NULL the status is UNISONO_INVALID_ARGUMENT,
 * since there is nothing to wait for. What has ended is freed and its entry becomes NULL.
 * UNISONO_IN_PROGRESS when the time ran out first. */
int unisono_wait_any(unisono_request_t **requests, size_t count, int64_t timeout_ms, size_t *index);

/* From here on the blocking calls on `comm` are only checked and collected; their buffers belong
 * to the library until the group has ended. Non-blocking calls are refused with
 * UNISONO_INVALID_STATE. A call that is refused is not part of the group. Groups do not nest. */
int unisono_group_start(unisono_comm_t *comm);

/* Posts the collected calls together and waits for all of them. Where some fail, the status is
 * that of the first. */
int unisono_group_end(unisono_comm_t *comm);

/* Posts the collected calls together; `*request` ends when all have, and is NULL where there are
 * none. */
int unisono_igroup_end(unisono_comm_t *comm, unisono_request_t **request);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* UNISONO_H */
