/* data.c: see data.h. */
#include "data.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"

/* Appends what is left of `file`; 0 where memory or the file fails, with errno set. */
static int append(struct data *data, size_t *capacity, FILE *file)
{
    for (;;) {
        if (data->count == *capacity) {
            size_t larger = *capacity ? 2 * *capacity : (size_t)1 << 20;
            uint8_t *bytes = realloc(data->bytes, larger);
            if (!bytes)
                return 0;
            data->bytes = bytes;
            *capacity = larger;
        }
        size_t got = fread(data->bytes + data->count, 1, *capacity - data->count, file);
        data->count += got;
        if (got == 0)
            return !ferror(file);
    }
}

int data_load(struct data *data, char **files, int file_count, int context, char *error,
              size_t error_bytes)
{
    size_t capacity = 0, needed = (size_t)context + 1;
    memset(data, 0, sizeof *data);
    for (int i = 0; i < file_count; i++) {
        errno = 0;
        FILE *file = fopen(files[i], "rb");
        int good = file && append(data, &capacity, file);
        if (!good)
            snprintf(error, error_bytes, "cannot read %s: %s", files[i], strerror(errno));
        if (file)
            fclose(file);
        if (!good)
            return 0;
    }
    size_t held_out = data->count / 20;
    data->train_count = data->count - held_out;
    if (held_out >= needed)
        return 1;
    snprintf(error, error_bytes,
             "the text has %zu bytes; with a context of %d bytes it needs at least %zu",
             data->count, context, 20 * needed);
    return 0;
}

void data_free(struct data *data)
{
    free(data->bytes);
    memset(data, 0, sizeof *data);
}

const uint8_t *data_train(const struct data *data, int context, uint64_t seed, int64_t step,
                          int64_t index)
{
    uint64_t starts = data->train_count - (size_t)context;
    return data->bytes + lm_random(~seed, (uint64_t)step, (uint64_t)index) % starts;
}

const uint8_t *data_held_out(const struct data *data, int context, int64_t index, int64_t total)
{
    uint64_t starts = data->count - data->train_count - (size_t)context;
    return data->bytes + data->train_count + starts * (uint64_t)index / (uint64_t)total;
}
