/* options.h: the command line of train_lm. */
#ifndef LM_OPTIONS_H
#define LM_OPTIONS_H

#include <stdint.h>

#include "gpu.h"
#include "model.h"

enum mode { MODE_ALLREDUCE, MODE_LOCAL, MODE_SHARDED };

struct options {
    struct lm_shape shape;
    int64_t steps;
    int64_t batch; /* sequences a step, of all ranks together */
    int64_t average_every;
    int64_t bucket_kib;
    int64_t checkpoint_every; /* 0: at the end only */
    int64_t sample;           /* bytes to write after training */
    int64_t timeout_ms;
    uint64_t seed;
    double learning_rate;
    enum mode mode;
    int device; /* a number, DEVICE_AUTO or DEVICE_NONE; at first that of UNISONO_DEVICE */
    int deterministic;
    int resume;
    int quiet;
    int progress; /* a progress bar even where stderr is no terminal */
    int json;
    int self_test;
    const char *checkpoint; /* NULL: none */
    char **files;
    int file_count;
};

/* Fills `options`. Prints the help and ends the process on --help; names what is wrong and ends it
 * with status 2 on a bad command line. */
void options_parse(struct options *options, int argc, char **argv);

const char *mode_name(enum mode mode);

#endif
