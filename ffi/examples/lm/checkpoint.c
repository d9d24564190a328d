/* checkpoint.c: see checkpoint.h. */
#define _POSIX_C_SOURCE 200809L
#include "checkpoint.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "job.h"

static const char magic[8] = {'U', 'N', 'I', 'S', 'O', 'L', 'M', '\n'};
static const uint32_t byte_order = 0x01020304;

static uint64_t header_checksum(const struct checkpoint *header)
{
    return fnv1a(FNV_START, header, offsetof(struct checkpoint, header_checksum));
}

struct checkpoint checkpoint_describe(const struct lm_shape *shape, int64_t batch, uint64_t seed,
                                      uint64_t weights)
{
    struct checkpoint header;
    memset(&header, 0, sizeof header);
    memcpy(header.magic, magic, sizeof magic);
    header.version = 1;
    header.byte_order = byte_order;
    header.context = shape->context;
    header.layers = shape->layers;
    header.heads = shape->heads;
    header.width = shape->width;
    header.batch = batch;
    header.seed = seed;
    header.weights = weights;
    return header;
}

/* ---- writing ---- */

static int write_all(FILE *file, const struct checkpoint *header, const float *const parts[3])
{
    if (fwrite(header, sizeof *header, 1, file) != 1)
        return 0;
    for (int i = 0; i < 3; i++)
        if (fwrite(parts[i], sizeof(float), header->weights, file) != header->weights)
            return 0;
    return fflush(file) == 0 && fsync(fileno(file)) == 0;
}

/* Makes the rename itself survive a crash. A file system that cannot is no reason to fail. */
static void sync_directory(const char *path)
{
    char *directory = allocate(strlen(path) + 2, 1);
    strcpy(directory, path);
    char *slash = strrchr(directory, '/');
    strcpy(slash ? slash + 1 : directory, ".");
    int descriptor = open(directory, O_RDONLY);
    if (descriptor >= 0) {
        fsync(descriptor);
        close(descriptor);
    }
    free(directory);
}

int checkpoint_write(const char *path, struct checkpoint header, int64_t step,
                     const float *const parts[3], char *error, size_t error_bytes)
{
    char *temporary = allocate(strlen(path) + 5, 1);
    sprintf(temporary, "%s.tmp", path);
    header.step = step;
    header.payload_checksum = FNV_START;
    for (int i = 0; i < 3; i++)
        header.payload_checksum =
            fnv1a(header.payload_checksum, parts[i], header.weights * sizeof(float));
    header.header_checksum = header_checksum(&header);

    FILE *file = fopen(temporary, "wb");
    int good = file && write_all(file, &header, parts);
    int reason = errno;
    if (file && fclose(file) != 0 && good) {
        good = 0;
        reason = errno;
    }
    if (good && rename(temporary, path) != 0) {
        good = 0;
        reason = errno;
    }
    if (good)
        sync_directory(path);
    else {
        snprintf(error, error_bytes, "cannot write checkpoint %s: %s", path, strerror(reason));
        if (file)
            remove(temporary);
    }
    free(temporary);
    return good;
}

/* ---- reading ---- */

/* The first way in which the file is not what the command line describes, or NULL. */
static const char *difference(const struct checkpoint *found, const struct checkpoint *wanted,
                              long long *was, long long *is)
{
    const struct {
        const char *flag;
        long long was, is;
    } pairs[] = {
        {"--context", found->context, wanted->context},
        {"--layers", found->layers, wanted->layers},
        {"--heads", found->heads, wanted->heads},
        {"--width", found->width, wanted->width},
        {"--batch", found->batch, wanted->batch},
        {"--seed", (long long)found->seed, (long long)wanted->seed},
    };
    for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++)
        if (pairs[i].was != pairs[i].is) {
            *was = pairs[i].was;
            *is = pairs[i].is;
            return pairs[i].flag;
        }
    return NULL;
}

/* 1 where the header is one of ours, unharmed and of the model wanted. */
static int check_header(const char *path, const struct checkpoint *found,
                        const struct checkpoint *wanted, char *error, size_t error_bytes)
{
    long long was = 0, is = 0;
    const char *flag = NULL;
    if (memcmp(found->magic, magic, sizeof magic) != 0)
        snprintf(error, error_bytes, "%s is no checkpoint of train_lm", path);
    else if (found->byte_order != byte_order)
        snprintf(error, error_bytes, "%s was written on a machine of other byte order", path);
    else if (found->version != wanted->version)
        snprintf(error, error_bytes, "%s has format version %u; this program reads version %u",
                 path, (unsigned)found->version, (unsigned)wanted->version);
    else if (found->header_checksum != header_checksum(found))
        snprintf(error, error_bytes, "%s is damaged: the header does not match its checksum", path);
    else if ((flag = difference(found, wanted, &was, &is)) != NULL)
        snprintf(error, error_bytes, "%s was trained with %s %lld, this run has %lld", path, flag,
                 was, is);
    else if (found->weights != wanted->weights || found->step < 0)
        snprintf(error, error_bytes, "%s does not fit this program's model", path);
    else
        return 1;
    return 0;
}

/* Reads and checks the open file. */
static int read_all(FILE *file, const char *path, const struct checkpoint *wanted, int64_t *step,
                    float *const parts[3], char *error, size_t error_bytes)
{
    struct checkpoint header;
    uint64_t checksum = FNV_START;
    memset(&header, 0, sizeof header);
    size_t got = fread(&header, 1, sizeof header, file);
    if (got < sizeof header && memcmp(header.magic, magic, sizeof magic) == 0) {
        snprintf(error, error_bytes, "%s is truncated: it ends in the header", path);
        return 0;
    }
    if (!check_header(path, &header, wanted, error, error_bytes))
        return 0;
    for (int i = 0; i < 3; i++) {
        if (fread(parts[i], sizeof(float), header.weights, file) != header.weights) {
            snprintf(error, error_bytes, "%s is truncated: weights or moments are missing", path);
            return 0;
        }
        checksum = fnv1a(checksum, parts[i], header.weights * sizeof(float));
    }
    if (checksum != header.payload_checksum || fgetc(file) != EOF) {
        snprintf(error, error_bytes, "%s is damaged: its contents do not match their checksum",
                 path);
        return 0;
    }
    *step = header.step;
    return 1;
}

int checkpoint_read(const char *path, struct checkpoint wanted, int64_t *step,
                    float *const parts[3], char *error, size_t error_bytes)
{
    FILE *file = fopen(path, "rb");
    if (!file) {
        snprintf(error, error_bytes, "cannot open checkpoint %s: %s", path, strerror(errno));
        return 0;
    }
    int good = read_all(file, path, &wanted, step, parts, error, error_bytes);
    fclose(file);
    return good;
}
