// Bytes, whatever they mean: many blocks copied by one launch, and checksums.
//
// A pack cuts its blocks into pieces, which blocks of threads take in turn, so that blocks of any
// sizes keep the whole device busy. No target may overlap a source or another target.
//
// A checksum is the sum, modulo 2^64, of a term for each 8-byte word (little endian, the last one
// filled up with zeros) that depends on the word and its number, and of a term for the length. It
// does not depend on the grid, and parts may be summed up apart: the caller zeroes the result.
// It finds accidents, not attacks: there is no secret in it.
#pragma once

#include "fold.cuh"

namespace unisono {

// Moves of BYTES from `from` to `end` by the threads of this block, four under way.
template <int BYTES>
UNISONO_INLINE void copy_moves(uint64_t source, uint64_t target, uint64_t moves) {
    const uint64_t step = blockDim.x;
    uint64_t at = threadIdx.x;
    for (; at + 3 * step < moves; at += 4 * step) {
        uint32_t words[4][4];
        UNISONO_UNROLL
        for (int u = 0; u < 4; ++u) {
            load_whole<BYTES>(source + (at + u * step) * BYTES, words[u]);
        }
        UNISONO_UNROLL
        for (int u = 0; u < 4; ++u) {
            store_whole<BYTES>(target + (at + u * step) * BYTES, words[u]);
        }
    }
    for (; at < moves; at += step) {
        uint32_t words[4];
        load_whole<BYTES>(source + at * BYTES, words);
        store_whole<BYTES>(target + at * BYTES, words);
    }
}

// The whole moves of BYTES with single bytes around them.
template <int BYTES>
UNISONO_INLINE void copy_piece(uint64_t source, uint64_t target, uint64_t bytes) {
    const uint64_t past = (0 - source) % BYTES;
    const uint64_t head = past < bytes ? past : bytes;
    const uint64_t moves = (bytes - head) / BYTES;
    const uint64_t done = head + moves * BYTES;
    copy_moves<1>(source, target, head);
    copy_moves<BYTES>(source + head, target + head, moves);
    copy_moves<1>(source + done, target + done, bytes - done);
}

// Field FIELD of entry `index`.
template <int FIELD>
UNISONO_INLINE uint64_t field_of(const unisono_pack_arguments &a, uint64_t index) {
    if (a.table == 0) {
        const unisono_block &block = a.blocks[index];
        return FIELD == 0   ? block.source
               : FIELD == 1 ? block.target
               : FIELD == 2 ? block.bytes
                            : block.piece;
    }
    uint32_t words[2];
    load_whole<8>(a.table + index * sizeof(unisono_block) + FIELD * 8, words);
    return words[0] | uint64_t(words[1]) << 32;
}

// The last entry whose first piece is not above `piece`: empty ones share theirs with the next.
UNISONO_INLINE uint64_t entry_of(const unisono_pack_arguments &a, uint64_t piece) {
    uint64_t low = 0, high = a.block_count;
    while (high - low > 1) {
        const uint64_t middle = low + (high - low) / 2;
        if (field_of<3>(a, middle) <= piece) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

UNISONO_INLINE void pack(const unisono_pack_arguments &a) {
    for (uint64_t piece = blockIdx.x; piece < a.pieces; piece += gridDim.x) {
        const uint64_t entry = entry_of(a, piece);
        const uint64_t skip = (piece - field_of<3>(a, entry)) * UNISONO_PACK_PIECE_BYTES;
        const uint64_t source = field_of<0>(a, entry) + skip, target = field_of<1>(a, entry) + skip;
        const uint64_t left = field_of<2>(a, entry) - skip;
        const uint64_t bytes = left < UNISONO_PACK_PIECE_BYTES ? left : UNISONO_PACK_PIECE_BYTES;
        const uint64_t apart = source ^ target;
        if (apart % 16 == 0) {
            copy_piece<16>(source, target, bytes);
        } else if (apart % 4 == 0) {
            copy_piece<4>(source, target, bytes);
        } else {
            copy_piece<1>(source, target, bytes);
        }
    }
}

// What word `index` adds to a checksum.
UNISONO_INLINE uint64_t term(uint64_t word, uint64_t index) {
    return mixed(word ^ (index + 1) * 0x9e3779b97f4a7c15);
}

// What the length adds.
UNISONO_INLINE uint64_t length_term(uint64_t bytes) { return mixed(~bytes); }

UNISONO_INLINE uint64_t whole_word(uint64_t address) {
    uint32_t words[2];
    load_whole<8>(address, words);
    return words[0] | uint64_t(words[1]) << 32;
}

UNISONO_INLINE uint64_t word_of_bytes(uint64_t address, uint64_t count) {
    uint64_t word = 0;
    for (uint64_t i = 0; i < count; ++i) {
        uint32_t byte;
        load_whole<1>(address + i, &byte);
        word |= uint64_t(byte) << (8 * i);
    }
    return word;
}

UNISONO_INLINE void checksum(const unisono_checksum_arguments &a) {
    const uint64_t step = thread_count(), words = a.bytes / 8;
    uint64_t at = thread_index(), sum = 0;
    if (a.source % 8 == 0) {
        for (; at + 3 * step < words; at += 4 * step) {
            uint64_t word[4];
            UNISONO_UNROLL
            for (int u = 0; u < 4; ++u) {
                word[u] = whole_word(a.source + (at + u * step) * 8);
            }
            UNISONO_UNROLL
            for (int u = 0; u < 4; ++u) {
                sum += term(word[u], a.first + at + u * step);
            }
        }
        for (; at < words; at += step) {
            sum += term(whole_word(a.source + at * 8), a.first + at);
        }
    } else {
        for (; at < words; at += step) {
            sum += term(word_of_bytes(a.source + at * 8, 8), a.first + at);
        }
    }
    if (thread_index() == 0) {
        const uint64_t rest = a.bytes % 8;
        sum += rest > 0 ? term(word_of_bytes(a.source + words * 8, rest), a.first + words) : 0;
        sum += (a.flags & UNISONO_LENGTH) != 0 ? length_term(a.length) : 0;
    }
    add_all(a.target, sum);
}

} // namespace unisono
