/* What kernels are launched with: one struct each, by value, in plain C layout.
 *
 * `src/kernel/cuda/arguments.rs` mirrors every struct and constant; both sides assert the layout.
 * Addresses are 64-bit numbers, so that the layout is the same for the host twin. All numbers are
 * checked by whoever fills them in: kernels trust them. Not here: what a kernel does with them.
 */
#ifndef UNISONO_CUDA_ARGUMENTS_H
#define UNISONO_CUDA_ARGUMENTS_H

#include <stddef.h>
#include <stdint.h>

/* Threads of a block, in every launch. */
#define UNISONO_BLOCK 256
/* The most sources, and the most targets, of one fold. */
#define UNISONO_FAN 16
/* The most entries of a pack that travel in its arguments. */
#define UNISONO_PACK_INLINE 64
/* What one block of threads copies at a time. */
#define UNISONO_PACK_PIECE_BYTES 32768

/* Targets are in wide form. */
#define UNISONO_TARGET_WIDE 1u
/* NaNs become canonical; `ranks` divides. */
#define UNISONO_FINISH 2u
/* The division is one of signed integers. */
#define UNISONO_SIGNED 4u
/* The source of a convert is in wide form. */
#define UNISONO_SOURCE_WIDE 8u
/* A convert multiplies by its factor. */
#define UNISONO_FACTOR 16u
/* A convert sees 1 where an element is not zero. */
#define UNISONO_TRUTH 32u
/* A checksum adds the term of the length. */
#define UNISONO_LENGTH 64u

/* Elements are cut in three: `head` of them, `vectors` whole vectors, and the rest. With no vectors
 * everything is done element by element.
 */
typedef struct unisono_fold_arguments {
    uint64_t sources[UNISONO_FAN];
    uint64_t targets[UNISONO_FAN];
    uint64_t count;
    uint64_t head;
    uint64_t vectors;
    uint32_t source_count;
    uint32_t target_count;
    /* Bit i: source i is in wide form. */
    uint32_t sources_wide;
    uint32_t flags;
    /* 0: no division. */
    uint32_t ranks;
    uint32_t reserved;
    /* One element in wide form each, in its first bytes. */
    uint32_t factors[UNISONO_FAN][4];
} unisono_fold_arguments;

typedef struct unisono_convert_arguments {
    uint64_t source;
    uint64_t target;
    uint64_t count;
    uint64_t head;
    uint64_t vectors;
    uint32_t flags;
    uint32_t ranks;
    uint32_t factor[4];
} unisono_convert_arguments;

typedef struct unisono_round_arguments {
    uint64_t source;
    uint64_t target;
    uint64_t count;
    uint64_t head;
    uint64_t vectors;
    uint64_t seed;
    /* The number that element 0 has in the stream of random bits. */
    uint64_t first;
} unisono_round_arguments;

/* `piece` is the number of pieces of all entries before this one. */
typedef struct unisono_block {
    uint64_t source;
    uint64_t target;
    uint64_t bytes;
    uint64_t piece;
} unisono_block;

typedef struct unisono_pack_arguments {
    /* The address of the entries; 0: they are `blocks`. */
    uint64_t table;
    uint64_t pieces;
    uint32_t block_count;
    uint32_t reserved;
    unisono_block blocks[UNISONO_PACK_INLINE];
} unisono_pack_arguments;

typedef struct unisono_checksum_arguments {
    uint64_t source;
    /* A 64-bit number that the sum is added to. */
    uint64_t target;
    uint64_t bytes;
    /* The number of the first word in what is summed up in all. */
    uint64_t first;
    /* Bytes of what is summed up in all, for its term. */
    uint64_t length;
    uint32_t flags;
    uint32_t reserved;
} unisono_checksum_arguments;

#ifdef __cplusplus
static_assert(sizeof(unisono_fold_arguments) == 560, "layout");
static_assert(offsetof(unisono_fold_arguments, targets) == 128, "layout");
static_assert(offsetof(unisono_fold_arguments, count) == 256, "layout");
static_assert(offsetof(unisono_fold_arguments, source_count) == 280, "layout");
static_assert(offsetof(unisono_fold_arguments, ranks) == 296, "layout");
static_assert(offsetof(unisono_fold_arguments, factors) == 304, "layout");
static_assert(sizeof(unisono_convert_arguments) == 64, "layout");
static_assert(offsetof(unisono_convert_arguments, flags) == 40, "layout");
static_assert(offsetof(unisono_convert_arguments, factor) == 48, "layout");
static_assert(sizeof(unisono_round_arguments) == 56, "layout");
static_assert(offsetof(unisono_round_arguments, seed) == 40, "layout");
static_assert(sizeof(unisono_block) == 32, "layout");
static_assert(sizeof(unisono_pack_arguments) == 2072, "layout");
static_assert(offsetof(unisono_pack_arguments, blocks) == 24, "layout");
static_assert(sizeof(unisono_checksum_arguments) == 48, "layout");
static_assert(offsetof(unisono_checksum_arguments, flags) == 40, "layout");
#endif

#endif
