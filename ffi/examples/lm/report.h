/* report.h: what rank 0 tells its user. Progress goes to stderr, the result to stdout. */
#ifndef LM_REPORT_H
#define LM_REPORT_H

#include <stddef.h>
#include <stdint.h>

struct job;

/* Where the ranks exchange, and by which backend. */
void report_place(const struct job *job);

struct progress {
    int64_t steps;       /* of the whole run */
    int bar;             /* redraw one line; else a new line now and then */
    int silent;
    double drawn;        /* when the bar was last drawn */
};

struct progress progress_start(int64_t steps, int silent, int force_bar);
/* After `step` steps. comm_share is between 0 and 1. */
void progress_show(struct progress *progress, int64_t step, double loss, double tokens_per_second,
                   double comm_share);
/* Ends the bar's line. */
void progress_end(struct progress *progress);

struct result {
    int64_t steps;
    const struct job *job;
    const char *mode;
    int trained;       /* 0: no step was run, so there is no loss to show */
    double loss;       /* mean over the last steps */
    double val_loss;
    double tokens_per_second;
    double comm_share;
    uint64_t checksum; /* of the weights */
};

void report_result(const struct result *result, int json);

/* Text that may hold any byte, made fit for a terminal. */
void report_sample(const uint8_t *text, size_t prompt, size_t count, int json);

#endif
