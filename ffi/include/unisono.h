/* unisono.h: the C ABI of Unisono, collective communication for large language models.
 *
 * C99. Every function returns a status: UNISONO_OK (0) or one of the UNISONO_* codes below; nothing
 * in this library ends the process. Outputs go through pointers and are written last, so they are
 * untouched on error. Counts are in elements, sizes in bytes, times in milliseconds.
 */
#ifndef UNISONO_H
#define UNISONO_H

#include <stddef.h>
#include <stdint.h>

#define UNISONO_VERSION_MAJOR 0
#define UNISONO_VERSION_MINOR 1
#define UNISONO_VERSION_PATCH 0

#ifdef __cplusplus
extern "C" {
#endif

/* ---- status codes ---- */
#define UNISONO_OK 0
#define UNISONO_IN_PROGRESS 1
#define UNISONO_INVALID_ARGUMENT 100
#define UNISONO_NULL_POINTER 101
#define UNISONO_MISALIGNED 102
#define UNISONO_OVERLAP 103
#define UNISONO_COUNT_OVERFLOW 104
#define UNISONO_UNKNOWN_VALUE 105
#define UNISONO_RANK_OUT_OF_RANGE 106
#define UNISONO_INVALID_HANDLE 107
#define UNISONO_BUSY 108
#define UNISONO_UNSUPPORTED 109
#define UNISONO_INVALID_STATE 110
#define UNISONO_INVALID_ENVIRONMENT 111
#define UNISONO_INVALID_ID 112
#define UNISONO_MISMATCH 120
#define UNISONO_SYSTEM 200
#define UNISONO_OUT_OF_MEMORY 201
#define UNISONO_LIMIT 202
#define UNISONO_NO_ADDRESS 203
#define UNISONO_PEER_LOST 300
#define UNISONO_TIMED_OUT 301
#define UNISONO_PROTOCOL 302
#define UNISONO_VERSION_MISMATCH 303
#define UNISONO_UNAUTHENTICATED 304
#define UNISONO_MISSING_RANKS 305
#define UNISONO_ABORTED 400
#define UNISONO_BROKEN 401
#define UNISONO_STALE_EPOCH 402
#define UNISONO_BACKEND 500
#define UNISONO_INTERNAL 900
#define UNISONO_PANIC 901

/* ---- element types ---- */
#define UNISONO_I8 0
#define UNISONO_U8 1
#define UNISONO_I16 2
#define UNISONO_U16 3
#define UNISONO_I32 4
#define UNISONO_U32 5
#define UNISONO_I64 6
#define UNISONO_U64 7
#define UNISONO_F16 8
#define UNISONO_BF16 9
#define UNISONO_F8E4M3 10
#define UNISONO_F8E5M2 11
#define UNISONO_F32 12
#define UNISONO_F64 13
#define UNISONO_COMPLEX64 14
#define UNISONO_COMPLEX128 15

/* ---- reduction operations; UNISONO_PRE_MUL_SUM is made by unisono_op_create_pre_mul_sum ---- */
#define UNISONO_SUM 0
#define UNISONO_PROD 1
#define UNISONO_MIN 2
#define UNISONO_MAX 3
#define UNISONO_AVG 4
#define UNISONO_PRE_MUL_SUM 5
#define UNISONO_BAND 6
#define UNISONO_BOR 7
#define UNISONO_BXOR 8
#define UNISONO_LAND 9
#define UNISONO_LOR 10

typedef struct unisono_comm unisono_comm_t;
typedef struct unisono_request unisono_request_t;

/* Addresses, version and random key of a job. Secret: who has it can join. */
typedef struct unisono_unique_id {
    uint8_t bytes[128];
} unisono_unique_id_t;

/* Settings of a communicator. Start from UNISONO_CONFIG_INIT; `size` tells versions apart. */
typedef struct unisono_config {
    size_t size;
    int64_t timeout_ms;       /* deadline of each call; 0: the default (600000); -1: none */
    int64_t init_timeout_ms;  /* deadline of start-up; 0: the default (60000) */
    int32_t deterministic;    /* 1: result bits depend on inputs and rank numbers alone; -1: environment */
    int32_t progress_thread;  /* 1: non-blocking calls progress by themselves (default -1: yes) */
    const char *links;        /* "shm,tcp" in order of preference; NULL: all */
    const char *interface;    /* network interface by name, address or CIDR; NULL: route to the peer */
    const char *name;         /* in logs and errors; NULL: none */
} unisono_config_t;

#define UNISONO_CONFIG_INIT { sizeof(unisono_config_t), 0, 0, -1, -1, NULL, NULL, NULL }

/* ---- versions and errors ---- */

/* major * 10000 + minor * 100 + patch of the library that runs. */
int unisono_version(void);
/* Static text of a status code; never NULL. */
const char *unisono_status_name(int status);
const char *unisono_status_text(int status);
/* Copies the text of the last error into `text` (NUL-terminated, cut at `bytes`): of `comm`, or of the
 * calling thread where `comm` is NULL. */
int unisono_last_error(const unisono_comm_t *comm, char *text, size_t bytes);

/* ---- communicators ---- */

int unisono_get_unique_id(unisono_unique_id_t *id);
/* Blocks until all `world` ranks have called it with the same id. config may be NULL. */
int unisono_comm_init_rank(unisono_comm_t **comm, int world, const unisono_unique_id_t *id, int rank,
                           const unisono_config_t *config);
/* `world` communicators for threads of this process, comms[r] being rank r. */
int unisono_comm_init_all(unisono_comm_t **comms, int world, const unisono_config_t *config);
/* Rank, world and rendezvous from the launcher's environment variables. */
int unisono_comm_init_env(unisono_comm_t **comm, const unisono_config_t *config);
/* Ranks with equal `color` form a communicator, ordered by `key`, then by old rank. A negative color
 * takes part and gets NULL. */
int unisono_comm_split(unisono_comm_t *comm, int color, int key, unisono_comm_t **split);
/* Ends the communicator; outstanding requests are completed first. */
int unisono_comm_destroy(unisono_comm_t *comm);
/* From any thread: every pending and later call on every rank fails with UNISONO_ABORTED. */
int unisono_comm_abort(unisono_comm_t *comm);
int unisono_comm_rank(const unisono_comm_t *comm, int *rank);
int unisono_comm_world_size(const unisono_comm_t *comm, int *world);
/* UNISONO_OK while usable, else the status that broke it. */
int unisono_comm_status(const unisono_comm_t *comm);

/* Zeroed memory that local ranks can map: zero copies on shared memory. Page aligned. */
int unisono_mem_alloc(unisono_comm_t *comm, size_t bytes, void **memory);
int unisono_mem_free(unisono_comm_t *comm, void *memory);

/* An operation that multiplies this rank's input by *scalar (one element of `dtype`; of f32 for the half
 * and 8-bit floats) before summing. Every rank creates its own; *op is valid on `comm` until destroyed. */
int unisono_op_create_pre_mul_sum(unisono_comm_t *comm, int dtype, const void *scalar, int *op);
int unisono_op_destroy(unisono_comm_t *comm, int op);

/* ---- collectives ----
 *
 * Blocking. Each has a non-blocking twin `unisono_i*` with a request as its last argument. In place: send ==
 * recv for all_reduce, reduce, broadcast; send == recv + rank * count elements for all_gather (and gather
 * at the root); recv == send + rank * count elements for reduce_scatter (and scatter at the root);
 * send == recv for all_to_all. Requests outstanding at the same time must not depend on each other's data.
 */
int unisono_all_reduce(const void *send, void *recv, uint64_t count, int dtype, int op, unisono_comm_t *comm);
int unisono_reduce(const void *send, void *recv, uint64_t count, int dtype, int op, int root, unisono_comm_t *comm);
int unisono_broadcast(const void *send, void *recv, uint64_t count, int dtype, int root, unisono_comm_t *comm);
int unisono_all_gather(const void *send, void *recv, uint64_t send_count, int dtype, unisono_comm_t *comm);
int unisono_reduce_scatter(const void *send, void *recv, uint64_t recv_count, int dtype, int op, unisono_comm_t *comm);
int unisono_gather(const void *send, void *recv, uint64_t send_count, int dtype, int root, unisono_comm_t *comm);
int unisono_scatter(const void *send, void *recv, uint64_t recv_count, int dtype, int root, unisono_comm_t *comm);
int unisono_all_to_all(const void *send, void *recv, uint64_t count, int dtype, unisono_comm_t *comm);
/* v forms: `counts` and `displacements` have one entry a rank, in elements; zero counts are allowed;
 * displacements may be NULL for blocks that follow each other. */
int unisono_all_gather_v(const void *send, void *recv, const uint64_t *counts, const uint64_t *displacements,
                         int dtype, unisono_comm_t *comm);
int unisono_reduce_scatter_v(const void *send, void *recv, const uint64_t *counts, int dtype, int op,
                             unisono_comm_t *comm);
int unisono_gather_v(const void *send, uint64_t send_count, void *recv, const uint64_t *counts,
                     const uint64_t *displacements, int dtype, int root, unisono_comm_t *comm);
int unisono_scatter_v(const void *send, const uint64_t *counts, const uint64_t *displacements, void *recv,
                      uint64_t recv_count, int dtype, int root, unisono_comm_t *comm);
int unisono_all_to_all_v(const void *send, const uint64_t *send_counts, const uint64_t *send_displacements,
                         void *recv, const uint64_t *recv_counts, const uint64_t *recv_displacements, int dtype,
                         unisono_comm_t *comm);
int unisono_barrier(unisono_comm_t *comm);
int unisono_send(const void *send, uint64_t count, int dtype, int peer, unisono_comm_t *comm);
int unisono_recv(void *recv, uint64_t count, int dtype, int peer, unisono_comm_t *comm);
int unisono_send_recv(const void *send, uint64_t send_count, int to, void *recv, uint64_t recv_count, int from,
                      int dtype, unisono_comm_t *comm);

int unisono_iall_reduce(const void *send, void *recv, uint64_t count, int dtype, int op, unisono_comm_t *comm,
                        unisono_request_t **request);
int unisono_ireduce(const void *send, void *recv, uint64_t count, int dtype, int op, int root, unisono_comm_t *comm,
                    unisono_request_t **request);
int unisono_ibroadcast(const void *send, void *recv, uint64_t count, int dtype, int root, unisono_comm_t *comm,
                       unisono_request_t **request);
int unisono_iall_gather(const void *send, void *recv, uint64_t send_count, int dtype, unisono_comm_t *comm,
                        unisono_request_t **request);
int unisono_ireduce_scatter(const void *send, void *recv, uint64_t recv_count, int dtype, int op,
                            unisono_comm_t *comm, unisono_request_t **request);
int unisono_igather(const void *send, void *recv, uint64_t send_count, int dtype, int root, unisono_comm_t *comm,
                    unisono_request_t **request);
int unisono_iscatter(const void *send, void *recv, uint64_t recv_count, int dtype, int root, unisono_comm_t *comm,
                     unisono_request_t **request);
int unisono_iall_to_all(const void *send, void *recv, uint64_t count, int dtype, unisono_comm_t *comm,
                        unisono_request_t **request);
int unisono_iall_gather_v(const void *send, void *recv, const uint64_t *counts, const uint64_t *displacements,
                          int dtype, unisono_comm_t *comm, unisono_request_t **request);
int unisono_ireduce_scatter_v(const void *send, void *recv, const uint64_t *counts, int dtype, int op,
                              unisono_comm_t *comm, unisono_request_t **request);
int unisono_igather_v(const void *send, uint64_t send_count, void *recv, const uint64_t *counts,
                      const uint64_t *displacements, int dtype, int root, unisono_comm_t *comm,
                      unisono_request_t **request);
int unisono_iscatter_v(const void *send, const uint64_t *counts, const uint64_t *displacements, void *recv,
                       uint64_t recv_count, int dtype, int root, unisono_comm_t *comm, unisono_request_t **request);
int unisono_iall_to_all_v(const void *send, const uint64_t *send_counts, const uint64_t *send_displacements,
                          void *recv, const uint64_t *recv_counts, const uint64_t *recv_displacements, int dtype,
                          unisono_comm_t *comm, unisono_request_t **request);
int unisono_ibarrier(unisono_comm_t *comm, unisono_request_t **request);
int unisono_isend(const void *send, uint64_t count, int dtype, int peer, unisono_comm_t *comm,
                  unisono_request_t **request);
int unisono_irecv(void *recv, uint64_t count, int dtype, int peer, unisono_comm_t *comm,
                  unisono_request_t **request);

/* ---- requests ----
 *
 * A request is freed, and *request set to NULL, when its completion (or failure) is reported. */

/* *done = 1 once complete; returns the operation's status then. */
int unisono_test(unisono_request_t **request, int *done);
/* Waits at most timeout_ms (-1: the communicator's deadline alone); UNISONO_IN_PROGRESS when time ran out, the request stays. */
int unisono_wait(unisono_request_t **request, int64_t timeout_ms);
/* Waits for one of `count` requests (NULL entries are skipped); its index to *index. */
int unisono_wait_any(unisono_request_t **requests, size_t count, int64_t timeout_ms, size_t *index);

/* Calls between start and end are fused: they are posted together and complete together. */
int unisono_group_start(unisono_comm_t *comm);
int unisono_group_end(unisono_comm_t *comm);
int unisono_igroup_end(unisono_comm_t *comm, unisono_request_t **request);

#ifdef __cplusplus
}
#endif
#endif
