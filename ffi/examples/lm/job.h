/* job.h: this process as one rank of a training job, and its GPU where it has one. */
#ifndef LM_JOB_H
#define LM_JOB_H

#include <stdint.h>

#include <unisono.h>

#include "gpu.h"

struct job {
    unisono_comm_t *comm;
    int rank;
    int world;
    double comm_seconds; /* spent blocked in collective calls and waits */
    struct gpu *gpu;     /* through whose memory the ranks exchange; NULL: in host memory */
    char backend[8];     /* what carries out the calls: "native", "nccl" or "mpi" */
    char why[512];       /* why no GPU, or why not NCCL, or which */
};

/* Joins the job that a launcher started; alone, a world of 1, where there is no launcher. `device`:
 * that of --device. A GPU is used where all ranks can. */
void job_start(struct job *job, int deterministic, int64_t timeout_ms, int device);
void job_end(struct job *job);

/* Between these two, calls on memory of the GPU have their place in its stream, and return at once.
 * Nothing else is called meanwhile. Neither does anything without a GPU. */
void job_stream_begin(struct job *job);
void job_stream_end(struct job *job);

/* Waits for all that is in the GPU's stream; a call there that failed ends the process. Without a
 * GPU there is nothing to wait for. */
void job_stream_wait(struct job *job);

/* Ends the process with status 1 and the call's name and error text, unless status is OK. */
void job_check(const struct job *job, const char *call, int status);
#define CHECK(job, call) job_check((job), #call, (call))

/* The same for a call that may block on other ranks: counts its time as communication. */
#define TIMED(job, call)                                                                           \
    do {                                                                                           \
        double start_ = now_seconds();                                                             \
        CHECK(job, call);                                                                          \
        (job)->comm_seconds += now_seconds() - start_;                                             \
    } while (0)

/* Ends the process with status 1 and a message. */
void job_fail(const struct job *job, const char *format, ...);

/* This process's number among those of its host, as its launcher says; 0 where none does. */
int job_local_rank(void);

/* Whether all ranks passed the same value. Collective. */
int job_agrees(struct job *job, uint64_t value);

/* The sum of values[0 .. count) over all ranks and all values, in the order of a balanced binary
 * tree: the bits are the same however the values are spread. Collective. */
double job_tree_sum(struct job *job, double *values, int count);

double now_seconds(void);

/* Zeroed memory; ends the process where there is none. */
void *allocate(size_t count, size_t size);

/* 64-bit FNV-1a; pass FNV_START, or an earlier result to continue it. */
#define FNV_START 0xcbf29ce484222325u
uint64_t fnv1a(uint64_t hash, const void *bytes, size_t count);

#endif
