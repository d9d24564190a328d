/* data.h: the text to train on: files read as bytes, one after the other. */
#ifndef LM_DATA_H
#define LM_DATA_H

#include <stddef.h>
#include <stdint.h>

struct data {
    uint8_t *bytes;
    size_t train_count; /* the first 95 % */
    size_t count;       /* the rest is held out to validate with */
};

/* Reads the files. A sequence is context + 1 bytes: both parts must have room for one. On failure
 * returns 0 and says why in error. */
int data_load(struct data *data, char **files, int file_count, int context, char *error,
              size_t error_bytes);
void data_free(struct data *data);

/* Sequence `index` of the global batch of a step: a function of its arguments alone, so the same on
 * any number of ranks. */
const uint8_t *data_train(const struct data *data, int context, uint64_t seed, int64_t step,
                          int64_t index);

/* Held-out sequence `index` of `total`, evenly spaced. */
const uint8_t *data_held_out(const struct data *data, int context, int64_t index, int64_t total);

#endif
