/* job.h: this process as one rank of a training job. */
#ifndef LM_JOB_H
#define LM_JOB_H

#include <stdint.h>

#include <unisono.h>

struct job {
    unisono_comm_t *comm;
    int rank;
    int world;
    double comm_seconds; /* spent blocked in collective calls and waits */
};

/* Joins the job that a launcher started; alone, a world of 1, where there is no launcher. */
void job_start(struct job *job, int deterministic, int64_t timeout_ms);
void job_end(struct job *job);

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
