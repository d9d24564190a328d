/* job.c: see job.h. */
#define _POSIX_C_SOURCE 200809L
#include "job.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

void job_start(struct job *job, int deterministic, int64_t timeout_ms)
{
    unisono_config_t config = UNISONO_CONFIG_INIT;
    config.timeout_ms = timeout_ms;
    config.deterministic = deterministic ? 1 : -1;
    config.name = "train_lm";

    memset(job, 0, sizeof *job);
    job->rank = -1; /* not known yet */
    int status = unisono_comm_init_env(&job->comm, &config);
    if (status == UNISONO_NO_LAUNCHER)
        CHECK(job, unisono_comm_init_all(&job->comm, 1, &config));
    else
        job_check(job, "unisono_comm_init_env", status);
    CHECK(job, unisono_comm_rank(job->comm, &job->rank));
    CHECK(job, unisono_comm_world_size(job->comm, &job->world));
}

void job_end(struct job *job)
{
    CHECK(job, unisono_comm_destroy(job->comm));
    job->comm = NULL;
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
