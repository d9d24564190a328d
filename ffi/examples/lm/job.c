/* job.c: see job.h. */
#define _POSIX_C_SOURCE 200809L
#include "job.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* ---- which GPU, and which backend ---- */

/* Whether calls on `comm` can have their place in the GPU's stream; else why not, in `job->why`. */
static int takes_stream(struct job *job, unisono_comm_t *comm)
{
    int status = unisono_comm_set_stream(comm, gpu_stream(job->gpu));
    if (status == UNISONO_OK)
        return 1;
    unisono_last_error(comm, job->why, sizeof job->why);
    return 0;
}

/* Whether this build of the library can use the GPU: tried alone, since a job whose ranks find out
 * while they form is lost. */
static int library_takes(struct job *job, unisono_config_t config)
{
    unisono_comm_t *alone = NULL;
    config.backend = "native";
    if (unisono_comm_init_all(&alone, 1, &config) != UNISONO_OK) {
        unisono_last_error(NULL, job->why, sizeof job->why);
        return 0;
    }
    int takes = takes_stream(job, alone);
    CHECK(job, unisono_comm_destroy(alone));
    return takes;
}

static void drop_gpu(struct job *job)
{
    gpu_close(job->gpu);
    job->gpu = NULL;
}

/* Opens the GPU that `device` means and tells the library its number. One that must not be missing
 * ends the process with its name where it is. */
static void choose_gpu(struct job *job, int device, unisono_config_t *config, char number[16])
{
    job->gpu = gpu_open(device, job, job->why, sizeof job->why);
    if (!job->gpu && device >= 0)
        job_fail(job, "--device %d: %s", device, job->why);
    config->device = "none";
    if (!job->gpu)
        return;
    snprintf(number, 16, "%d", gpu_device(job->gpu));
    config->device = number;
    if (device == DEVICE_AUTO && !library_takes(job, *config)) {
        drop_gpu(job);
        config->device = "none";
    }
}

/* All ranks use their GPUs, or none does: what they exchange must be in one kind of memory. */
static void agree_on_gpu(struct job *job, int device)
{
    int32_t usable = job->gpu && takes_stream(job, job->comm);
    if (job->gpu && !usable && device >= 0)
        job_fail(job, "--device %d: %s", device, job->why);
    if (usable)
        CHECK(job, unisono_comm_clear_stream(job->comm));
    int32_t by_all = usable;
    CHECK(job, unisono_all_reduce(&by_all, &by_all, 1, UNISONO_I32, UNISONO_MIN, job->comm));
    if (by_all)
        return;
    if (usable)
        snprintf(job->why, sizeof job->why, "another rank has none");
    drop_gpu(job);
}

/* Finds the backend, and what the library says of NCCL, among what it says it has chosen. */
static void read_choice(struct job *job)
{
    char text[4096];
    CHECK(job, unisono_comm_describe(job->comm, text, sizeof text));
    strcpy(job->backend, "native");
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
        int nccl = strncmp(line, "NCCL ", 5) == 0, none = strncmp(line, "not by NCCL", 11) == 0;
        if (nccl)
            strcpy(job->backend, "nccl");
        if (strncmp(line, "calls by ", 9) == 0) {
            strcpy(job->backend, "mpi");
            strcpy(job->why, "MPI has host memory alone here");
        }
        if (job->gpu && (nccl || none))
            snprintf(job->why, sizeof job->why, "%.*s", (int)strcspn(line, ";"), line);
    }
}

/* ---- joining and leaving ---- */

void job_start(struct job *job, int deterministic, int64_t timeout_ms, int device)
{
    char number[16];
    unisono_config_t config = UNISONO_CONFIG_INIT;
    config.timeout_ms = timeout_ms;
    config.deterministic = deterministic ? 1 : -1;
    config.name = "train_lm";

    memset(job, 0, sizeof *job);
    job->rank = -1; /* not known yet */
    choose_gpu(job, device, &config, number);
    int status = unisono_comm_init_env(&job->comm, &config);
    if (status == UNISONO_NO_LAUNCHER)
        CHECK(job, unisono_comm_init_all(&job->comm, 1, &config));
    else
        job_check(job, "unisono_comm_init_env", status);
    CHECK(job, unisono_comm_rank(job->comm, &job->rank));
    CHECK(job, unisono_comm_world_size(job->comm, &job->world));
    agree_on_gpu(job, device);
    read_choice(job);
}

void job_end(struct job *job)
{
    CHECK(job, unisono_comm_destroy(job->comm));
    job->comm = NULL;
    drop_gpu(job);
}

void job_stream_begin(struct job *job)
{
    if (job->gpu)
        CHECK(job, unisono_comm_set_stream(job->comm, gpu_stream(job->gpu)));
}

void job_stream_end(struct job *job)
{
    if (job->gpu)
        CHECK(job, unisono_comm_clear_stream(job->comm));
}

void job_stream_wait(struct job *job)
{
    double start = now_seconds();
    gpu_wait(job->gpu);
    job->comm_seconds += now_seconds() - start;
    if (unisono_comm_status(job->comm) != UNISONO_OK)
        CHECK(job, unisono_barrier(job->comm)); /* which fails, and says why */
}

int job_local_rank(void)
{
    static const char *const names[] = {"UNISONO_LOCAL_RANK", "LOCAL_RANK",
                                        "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID",
                                        "SLURM_LOCALID"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        const char *text = getenv(names[i]);
        int number = text ? atoi(text) : 0;
        if (number > 0)
            return number;
    }
    return 0;
}

void job_check(const struct job *job, const char *call, int status)
{
    char text[1024] = "";
    if (status == UNISONO_OK)
        return;
    if (unisono_last_error(job->comm, text, sizeof text) != UNISONO_OK || text[0] == '\0')
        snprintf(text, sizeof text, "%s", unisono_status_text(status));
    job_fail(job, "%.*s: %s (%d): %s", (int)strcspn(call, "("), call, unisono_status_name(status),
             status, text);
}

void job_fail(const struct job *job, const char *format, ...)
{
    char text[2048], rank[32] = "";
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (job->rank >= 0)
        snprintf(rank, sizeof rank, "rank %d: ", job->rank);
    fprintf(stderr, "train_lm: %s%s\n", rank, text);
    exit(1);
}

int job_agrees(struct job *job, uint64_t value)
{
    uint64_t extremes[2] = {value, ~value}; /* the largest complement is that of the smallest */
    TIMED(job, unisono_all_reduce(extremes, extremes, 2, UNISONO_U64, UNISONO_MAX, job->comm));
    return extremes[0] == value && extremes[1] == ~value;
}

double job_tree_sum(struct job *job, double *values, int count)
{
    for (int distance = 1; distance < count; distance *= 2)
        for (int i = 0; i + distance < count; i += 2 * distance)
            values[i] += values[i + distance];
    TIMED(job, unisono_all_reduce(values, values, 1, UNISONO_F64, UNISONO_SUM, job->comm));
    return values[0];
}

double now_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

void *allocate(size_t count, size_t size)
{
    void *memory = calloc(count ? count : 1, size);
    if (!memory) {
        fprintf(stderr, "train_lm: no memory for %zu times %zu bytes\n", count, size);
        exit(1);
    }
    return memory;
}

uint64_t fnv1a(uint64_t hash, const void *bytes, size_t count)
{
    const uint8_t *next = bytes;
    for (size_t i = 0; i < count; i++)
        hash = (hash ^ next[i]) * 0x100000001b3u;
    return hash;
}
