/* checkpoint.h: weights and optimiser state in a file that is whole or not there.
 *
 *   header     struct checkpoint, little-endian as the machine has it; its checksum last
 *   payload    weights, first moments, second moments: `weights` floats each
 *
 * It is written beside the target, flushed to disk and renamed over it, so a crash leaves the file
 * before or the file after. Nothing in it depends on the number of ranks.
 */
#ifndef LM_CHECKPOINT_H
#define LM_CHECKPOINT_H

#include <stddef.h>
#include <stdint.h>

#include "model.h"

struct checkpoint {
    char magic[8];
    uint32_t version;
    uint32_t byte_order; /* 0x01020304 */
    int32_t context, layers, heads, width;
    int64_t batch;
    int64_t step; /* steps done */
    uint64_t seed;
    uint64_t weights;          /* the number of weights */
    uint64_t payload_checksum; /* 64-bit FNV-1a */
    uint64_t header_checksum;  /* of the bytes before it */
};

/* What makes two runs comparable; the rest of the header is filled in on writing. */
struct checkpoint checkpoint_describe(const struct lm_shape *shape, int64_t batch, uint64_t seed,
                                      uint64_t weights);

/* Both return 0 and say why in `error` on failure. */
int checkpoint_write(const char *path, struct checkpoint header, int64_t step,
                     const float *const parts[3], char *error, size_t error_bytes);

/* `wanted` is what the command line describes: a file that differs is refused. */
int checkpoint_read(const char *path, struct checkpoint wanted, int64_t *step,
                    float *const parts[3], char *error, size_t error_bytes);

#endif
