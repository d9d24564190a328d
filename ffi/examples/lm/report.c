/* report.c: see report.h. */
#define _POSIX_C_SOURCE 200809L
#include "report.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "job.h"

#define BAR_CELLS 24
#define LINES 10           /* without a bar, about so many lines a run */
#define REDRAW_SECONDS 0.1

void report_place(const struct job *job)
{
    char place[40] = "host memory";
    if (job->gpu)
        snprintf(place, sizeof place, "memory of GPU %d", gpu_device(job->gpu));
    fprintf(stderr, "exchanging in %s, backend %s", place, job->backend);
    if (job->why[0])
        fprintf(stderr, " (%s%s)", job->gpu ? "" : "no GPU: ", job->why);
    fprintf(stderr, "\n");
}

struct progress progress_start(int64_t steps, int silent, int force_bar)
{
    struct progress progress = {.steps = steps, .silent = silent};
    progress.bar = force_bar || isatty(STDERR_FILENO);
    return progress;
}

void progress_show(struct progress *progress, int64_t step, double loss, double tokens_per_second,
                   double comm_share)
{
    char cells[BAR_CELLS + 1];
    int last = step == progress->steps;
    int64_t every = progress->steps / LINES ? progress->steps / LINES : 1;
    double now = now_seconds();
    if (progress->silent || (progress->bar && !last && now - progress->drawn < REDRAW_SECONDS) ||
        (!progress->bar && !last && step % every != 0))
        return;
    progress->drawn = now;
    int full = (int)(BAR_CELLS * step / progress->steps);
    memset(cells, '.', BAR_CELLS);
    memset(cells, '#', (size_t)full);
    cells[BAR_CELLS] = '\0';
    if (progress->bar)
        fprintf(stderr, "\r[%s] ", cells);
    fprintf(stderr, "step %" PRId64 "/%" PRId64 "  loss %.3f  %.1fk tokens/s  comm %.1f %%%s", step,
            progress->steps, loss, 1e-3 * tokens_per_second, 100.0 * comm_share,
            progress->bar ? "  " : "\n");
    fflush(stderr);
}

void progress_end(struct progress *progress)
{
    if (!progress->silent && progress->bar)
        fprintf(stderr, "\n");
}

void report_result(const struct result *result, int json)
{
    const struct job *job = result->job;
    char loss[32], device[16] = "null";
    if (json) {
        if (job->gpu)
            snprintf(device, sizeof device, "%d", gpu_device(job->gpu));
        snprintf(loss, sizeof loss, result->trained ? "%.6f" : "null", result->loss);
        printf("{\"ranks\":%d,\"mode\":\"%s\",\"steps\":%" PRId64 ",\"loss\":%s,\"val_loss\":%.6f,"
               "\"tokens_per_s\":%.1f,\"comm_share\":%.4f,\"backend\":\"%s\",\"device\":%s,"
               "\"checksum\":\"%016" PRIx64 "\"}\n",
               job->world, result->mode, result->steps, loss, result->val_loss,
               result->tokens_per_second, result->comm_share, job->backend, device,
               result->checksum);
    } else {
        snprintf(loss, sizeof loss, result->trained ? "%.4f" : "no step run", result->loss);
        printf("ranks              %d (%s)\n", job->world, result->mode);
        printf("steps              %" PRId64 "\n", result->steps);
        printf("train loss         %s\n", loss);
        printf("validation loss    %.4f\n", result->val_loss);
        printf("tokens per second  %.0f\n", result->tokens_per_second);
        printf("communicating      %.1f %% of the time\n", 100.0 * result->comm_share);
        snprintf(device, sizeof device, "GPU %d", job->gpu ? gpu_device(job->gpu) : 0);
        printf("backend            %s, %s\n", job->backend, job->gpu ? device : "host memory");
        printf("weights checksum: %016" PRIx64 "\n", result->checksum);
    }
    fflush(stdout);
}

void report_sample(const uint8_t *text, size_t prompt, size_t count, int json)
{
    FILE *out = json ? stderr : stdout; /* stdout is one line of JSON then */
    fprintf(out, "sample: ");
    for (size_t i = 0; i < count; i++) {
        int plain = (text[i] >= ' ' && text[i] <= '~') || text[i] == '\n' || text[i] == '\t';
        fputs(i == prompt ? " >> " : "", out);
        fputc(plain ? text[i] : '.', out);
    }
    fputc('\n', out);
    fflush(out);
}
