// What differs between a device and the host twin: loads, stores, the number of a thread, what a
// kernel is.
//
// Everything else is one text for both. Kernels use no shared memory and no barrier, so the twin
// may run their threads one after the other. Loads and stores keep the order they are written in:
// all sources of an element are loaded before a target of it is stored, so a target may be the
// memory of a source. Not here: arithmetic (element.cuh).
#pragma once

#include "arguments.h"

#ifdef __CUDACC__

#define UNISONO_INLINE __device__ __forceinline__
#define UNISONO_UNROLL _Pragma("unroll")
// RESIDENT: blocks that fit a multiprocessor at once, which bounds registers.
#define UNISONO_KERNEL(NAME, ARGUMENTS, RESIDENT, ...)                                             \
    extern "C" __global__ void __launch_bounds__(UNISONO_BLOCK, RESIDENT)                          \
        NAME(const __grid_constant__ ARGUMENTS arguments) {                                        \
        __VA_ARGS__(arguments);                                                                    \
    }

#else

#include <stdlib.h>
#include <string.h>

#define UNISONO_INLINE inline
#define UNISONO_UNROLL
#define UNISONO_KERNEL(NAME, ARGUMENTS, RESIDENT, ...)                                             \
    static void NAME(const void *arguments) {                                                      \
        __VA_ARGS__(*static_cast<const ARGUMENTS *>(arguments));                                   \
    }                                                                                              \
    static const ::unisono::twin::Entry NAME##_entry(#NAME, NAME, sizeof(ARGUMENTS));

namespace unisono {
namespace twin {

struct Dim {
    unsigned x;
};

// The thread that is run; streams of a stand-in driver run kernels at the same time.
static thread_local Dim blockIdx, threadIdx, blockDim, gridDim;

// A kernel by its name, in a list that the entries themselves make.
struct Entry {
    const char *name;
    void (*run)(const void *);
    size_t bytes;
    const Entry *next;

    static const Entry *&first() {
        static const Entry *list = nullptr;
        return list;
    }

    Entry(const char *name, void (*run)(const void *), size_t bytes)
        : name(name), run(run), bytes(bytes), next(first()) {
        first() = this;
    }
};

} // namespace twin
} // namespace unisono

#endif

namespace unisono {

#ifndef __CUDACC__
using twin::blockDim;
using twin::blockIdx;
using twin::gridDim;
using twin::threadIdx;
#endif

UNISONO_INLINE uint64_t thread_index() {
    return uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
}

UNISONO_INLINE uint64_t thread_count() { return uint64_t(gridDim.x) * blockDim.x; }

template <class To, class From> UNISONO_INLINE To bits_as(From from) {
    static_assert(sizeof(To) == sizeof(From), "as many bits");
    To to;
    memcpy(&to, &from, sizeof(to));
    return to;
}

// Loads that say that the address is global: through a number the compiler cannot know.
template <int BYTES> UNISONO_INLINE void load_whole(uint64_t address, uint32_t *words) {
    static_assert(BYTES == 1 || BYTES == 2 || BYTES == 4 || BYTES == 8 || BYTES == 16, "a move");
#ifdef __CUDA_ARCH__
    if constexpr (BYTES == 16) {
        asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                     : "l"(address));
    } else if constexpr (BYTES == 8) {
        asm volatile("ld.global.v2.u32 {%0, %1}, [%2];"
                     : "=r"(words[0]), "=r"(words[1])
                     : "l"(address));
    } else if constexpr (BYTES == 4) {
        asm volatile("ld.global.u32 %0, [%1];" : "=r"(words[0]) : "l"(address));
    } else if constexpr (BYTES == 2) {
        asm volatile("ld.global.u16 %0, [%1];" : "=r"(words[0]) : "l"(address));
    } else {
        asm volatile("ld.global.u8 %0, [%1];" : "=r"(words[0]) : "l"(address));
    }
#elif !defined(__CUDACC__)
    // A device faults where an address is not a multiple of what is moved; so does the twin.
    if (address % BYTES != 0) {
        abort();
    }
    words[0] = 0;
    memcpy(words, reinterpret_cast<const void *>(address), BYTES);
#endif
}

template <int BYTES> UNISONO_INLINE void store_whole(uint64_t address, const uint32_t *words) {
#ifdef __CUDA_ARCH__
    if constexpr (BYTES == 16) {
        asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(address), "r"(words[0]),
                     "r"(words[1]), "r"(words[2]), "r"(words[3]));
    } else if constexpr (BYTES == 8) {
        asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(address), "r"(words[0]),
                     "r"(words[1]));
    } else if constexpr (BYTES == 4) {
        asm volatile("st.global.u32 [%0], %1;" ::"l"(address), "r"(words[0]));
    } else if constexpr (BYTES == 2) {
        asm volatile("st.global.u16 [%0], %1;" ::"l"(address), "r"(words[0]));
    } else {
        asm volatile("st.global.u8 [%0], %1;" ::"l"(address), "r"(words[0]));
    }
#elif !defined(__CUDACC__)
    if (address % BYTES != 0) {
        abort();
    }
    memcpy(reinterpret_cast<void *>(address), words, BYTES);
#endif
}

// BYTES in moves of ALIGN: a complex number is only as aligned as its parts.
template <int BYTES, int ALIGN> UNISONO_INLINE void load(uint64_t address, uint32_t *words) {
    UNISONO_UNROLL
    for (int at = 0; at < BYTES; at += ALIGN) {
        load_whole<ALIGN>(address + at, words + at / 4);
    }
}

template <int BYTES, int ALIGN> UNISONO_INLINE void store(uint64_t address, const uint32_t *words) {
    UNISONO_UNROLL
    for (int at = 0; at < BYTES; at += ALIGN) {
        store_whole<ALIGN>(address + at, words + at / 4);
    }
}

// Adds the numbers of all threads to the one at `address`. Every thread must call it.
UNISONO_INLINE void add_all(uint64_t address, uint64_t number) {
#ifdef __CUDA_ARCH__
    // One atomic operation a warp: additions to one address are done one after the other.
    unsigned long long sum = number;
    UNISONO_UNROLL
    for (int distance = 16; distance > 0; distance /= 2) {
        sum += __shfl_down_sync(0xffffffffu, sum, distance);
    }
    if (threadIdx.x % 32 == 0) {
        atomicAdd(reinterpret_cast<unsigned long long *>(address), sum);
    }
#elif !defined(__CUDACC__)
    __atomic_fetch_add(reinterpret_cast<uint64_t *>(address), number, __ATOMIC_RELAXED);
#endif
}

} // namespace unisono
