// Folds, converts and stochastic rounding: loops over memory around element.cuh.
//
// A thread takes whole vectors, a grid apart; what the host found not to fit vectors (head, tail,
// operands that lie otherwise in their 16 bytes) goes element by element in the same loop.
//
//   |<- head ->|<------ vectors, 16 bytes each ------>|<- tail ->|
//
// All sources of a vector are in registers before the first is folded: their loads are under way
// at the same time. The tree of partial results is a binary counter: source i leaves its partial at
// the level of the first 0 bit of i, after combining those below.
//
// What is in flight. An H200 moves 4.8 TB/s and answers a load in about 0.8 us under that load, so
// 2/3 of its bandwidth (the loads of a fold of two) are 2.6 MB, 20 KB on each of 132
// multiprocessors. Two sources: 4 blocks of 256 threads (64 registers each) load 2 vectors of 2
// sources, 64 KB. Four: 4 blocks, one vector, 64 KB. Sixteen: 2 blocks (128 registers: 64 hold the
// sources), 128 KB. Instructions: at 92 % of the bandwidth a multiprocessor, with 4 of its 32-wide
// instructions a cycle at 1.9 GHz, has 22 for an f8 of a fold of two (3 bytes). Widening by pairs
// takes 3, the sum 1, narrowing by pairs half of one, the question for NaNs 1, the rest is words
// in and out, which 16 elements share. Conversions run at half speed or less: 3.5 count as 7 to 14.
// All this is reckoned, not measured.
//
// Not here: more than 16 sources (the host folds aligned blocks of 16 into wide partials, which is
// the same tree), and grids.
#pragma once

#include "element.cuh"

namespace unisono {

struct Sum {
    static constexpr bool DIVIDES = true, TRUTH = false, FACTORS = false;
    template <class E> static UNISONO_INLINE typename E::Wide
    combine(typename E::Wide a, typename E::Wide b) {
        return E::sum(a, b);
    }
};
// Each source times its factor, rounded, before it is summed.
struct PreMulSum : Sum {
    static constexpr bool FACTORS = true;
};

#define UNISONO_OP(NAME, TRUTH_, EXPRESSION)                                                       \
    struct NAME {                                                                                  \
        static constexpr bool DIVIDES = false, TRUTH = TRUTH_, FACTORS = false;                    \
        template <class E> static UNISONO_INLINE typename E::Wide                                  \
        combine(typename E::Wide a, typename E::Wide b) {                                          \
            return EXPRESSION;                                                                     \
        }                                                                                          \
    };
UNISONO_OP(Prod, false, E::prod(a, b))
UNISONO_OP(Min, false, E::least(a, b))
UNISONO_OP(Max, false, E::greatest(a, b))
UNISONO_OP(Band, false, typename E::Wide(a & b))
UNISONO_OP(Bor, false, typename E::Wide(a | b))
UNISONO_OP(Bxor, false, typename E::Wide(a ^ b))
UNISONO_OP(Land, true, typename E::Wide(a & b))
UNISONO_OP(Lor, true, typename E::Wide(a | b))
#undef UNISONO_OP

// How elements lie in vectors. GROUP elements are folded at a time.
//
// Native: every operand is in native form, a vector is 16 bytes of each.
template <class E_> struct Native {
    using E = E_;
    static constexpr int ELEMENTS = 16 / E::BYTES, GROUP = E::COUNT;

    template <bool WHOLE>
    static UNISONO_INLINE void read(uint64_t base, bool, uint64_t index, uint32_t *raw) {
        constexpr int bytes = WHOLE ? 16 : E::BYTES;
        load<bytes, WHOLE ? 16 : E::ALIGN>(base + index * E::BYTES, raw);
    }
    template <bool WHOLE>
    static UNISONO_INLINE void write(uint64_t base, bool, uint64_t index, const uint32_t *raw) {
        constexpr int bytes = WHOLE ? 16 : E::BYTES;
        store<bytes, WHOLE ? 16 : E::ALIGN>(base + index * E::BYTES, raw);
    }
    static UNISONO_INLINE void widen(const uint32_t *raw, bool, int at, typename E::Wide *wide) {
        E::widen(raw + at / GROUP * E::WORDS, wide);
    }
    static UNISONO_INLINE void narrow(const typename E::Wide *wide, bool, int at, uint32_t *raw) {
        E::narrow(wide, raw + at / GROUP * E::WORDS);
    }
};

// Mixed: each operand in its own form, a vector is four elements: 16 bytes of wide ones.
template <class E_> struct Mixed {
    using E = E_;
    static constexpr int ELEMENTS = 4, GROUP = 4;

    template <bool WHOLE>
    static UNISONO_INLINE void read(uint64_t base, bool wide, uint64_t index, uint32_t *raw) {
        constexpr int count = WHOLE ? 4 : 1;
        if (wide) {
            load<4 * count, 4 * count>(base + index * 4, raw);
        } else {
            load<E::BYTES * count, E::BYTES * count>(base + index * E::BYTES, raw);
        }
    }
    template <bool WHOLE>
    static UNISONO_INLINE void write(uint64_t base, bool wide, uint64_t index,
                                     const uint32_t *raw) {
        constexpr int count = WHOLE ? 4 : 1;
        if (wide) {
            store<4 * count, 4 * count>(base + index * 4, raw);
        } else {
            store<E::BYTES * count, E::BYTES * count>(base + index * E::BYTES, raw);
        }
    }
    static UNISONO_INLINE void widen(const uint32_t *raw, bool wide, int, float *out) {
        if (wide) {
            memcpy(out, raw, 16);
        } else {
            UNISONO_UNROLL
            for (int i = 0; i < 4 / E::COUNT; ++i) {
                E::widen(raw + i, out + i * E::COUNT);
            }
        }
    }
    static UNISONO_INLINE void narrow(const float *in, bool wide, int, uint32_t *raw) {
        if (wide) {
            memcpy(raw, in, 16);
        } else {
            UNISONO_UNROLL
            for (int i = 0; i < 4 / E::COUNT; ++i) {
                E::narrow(in + i * E::COUNT, raw + i);
            }
        }
    }
};

// What is done to a result before it is stored.
template <class E> struct Last {
    typename E::Divisor divisor;
    bool divides, canonical;

    UNISONO_INLINE Last(uint32_t flags, uint32_t ranks)
        : divisor(ranks > 0 ? ranks : 1, (flags & UNISONO_SIGNED) != 0), divides(ranks > 0),
          // Narrowing does it too.
          canonical((flags & UNISONO_FINISH) != 0 &&
                    !(E::NARROWER && (flags & UNISONO_TARGET_WIDE) == 0)) {}

    template <int COUNT> UNISONO_INLINE void apply(typename E::Wide *wide) const {
        if (divides && divisor.inverse) {
            UNISONO_UNROLL
            for (int k = 0; k < COUNT; ++k) {
                wide[k] = E::scale(wide[k], divisor);
            }
        } else if (divides) {
            UNISONO_UNROLL
            for (int k = 0; k < COUNT; ++k) {
                wide[k] = E::divide(wide[k], divisor);
            }
        }
        if (E::FLOAT && canonical) {
            UNISONO_UNROLL
            for (int k = 0; k < COUNT; ++k) {
                wide[k] = E::canonical(wide[k]);
            }
        }
    }
};

template <class E, int COUNT> UNISONO_INLINE void to_truth(typename E::Wide *wide) {
    UNISONO_UNROLL
    for (int k = 0; k < COUNT; ++k) {
        wide[k] = E::truth(wide[k]);
    }
}

template <class E, int COUNT>
UNISONO_INLINE void multiply(typename E::Wide *wide, const uint32_t *factor) {
    const typename E::Wide by = E::scalar(factor);
    UNISONO_UNROLL
    for (int k = 0; k < COUNT; ++k) {
        wide[k] = E::prod(wide[k], by);
    }
}

// Levels of the tree over at most N sources.
template <int N> constexpr int LEVELS_OF = N == 2 ? 2 : N == 4 ? 3 : 5;

// The sources of one group of elements, widened and combined with what they complete.
template <class L, class Op, int N, int LEVELS>
UNISONO_INLINE void gather(const unisono_fold_arguments &a, const uint32_t (&raw)[N][4], int at,
                           typename L::E::Wide (&partial)[LEVELS][L::GROUP]) {
    using E = typename L::E;
    UNISONO_UNROLL
    for (int i = 0; i < N; ++i) {
        // Two sources have a kernel of their own.
        if (N > 2 && i >= int(a.source_count)) {
            break;
        }
        typename E::Wide wide[L::GROUP];
        L::widen(raw[i], (a.sources_wide >> i & 1) != 0, at, wide);
        if constexpr (Op::TRUTH) {
            to_truth<E, L::GROUP>(wide);
        }
        if constexpr (Op::FACTORS) {
            multiply<E, L::GROUP>(wide, a.factors[i]);
        }
        UNISONO_UNROLL
        for (int level = 0; level < LEVELS; ++level) {
            if ((i >> level & 1) == 0) {
                UNISONO_UNROLL
                for (int k = 0; k < L::GROUP; ++k) {
                    partial[level][k] = wide[k];
                }
                break;
            }
            UNISONO_UNROLL
            for (int k = 0; k < L::GROUP; ++k) {
                wide[k] = Op::template combine<E>(partial[level][k], wide[k]);
            }
        }
    }
}

// Folds a group of the elements that `raw` holds.
template <class L, class Op, int N>
UNISONO_INLINE void fold_group(const unisono_fold_arguments &a, const Last<typename L::E> &last,
                               const uint32_t (&raw)[N][4], int at, uint32_t *out) {
    using E = typename L::E;
    constexpr int LEVELS = LEVELS_OF<N>;
    const int n = N == 2 ? 2 : int(a.source_count);
    typename E::Wide partial[LEVELS][L::GROUP] = {}, result[L::GROUP] = {};
    gather<L, Op>(a, raw, at, partial);
    bool any = false;
    UNISONO_UNROLL
    for (int level = 0; level < LEVELS; ++level) {
        if ((n >> level & 1) != 0) {
            UNISONO_UNROLL
            for (int k = 0; k < L::GROUP; ++k) {
                const typename E::Wide high = partial[level][k];
                result[k] = any ? Op::template combine<E>(high, result[k]) : high;
            }
            any = true;
        }
    }
    if constexpr (Op::DIVIDES) {
        last.template apply<L::GROUP>(result);
    } else if (E::FLOAT && last.canonical) {
        UNISONO_UNROLL
        for (int k = 0; k < L::GROUP; ++k) {
            result[k] = E::canonical(result[k]);
        }
    }
    L::narrow(result, (a.flags & UNISONO_TARGET_WIDE) != 0, at, out);
}

// The first element of an item: of a vector, or of what is left around the vectors.
template <class L, bool WHOLE, class A>
UNISONO_INLINE uint64_t first_of(const A &a, uint64_t item) {
    if constexpr (WHOLE) {
        return a.head + item * L::ELEMENTS;
    } else {
        return item < a.head ? item : item + a.vectors * L::ELEMENTS;
    }
}

// Items from `at` on, U at a time, a grid apart; `at` is left at the first that is not done.
template <class L, class Op, int N, int U, bool WHOLE>
UNISONO_INLINE void fold_items(const unisono_fold_arguments &a, const Last<typename L::E> &last,
                               uint64_t &at, uint64_t items) {
    const uint64_t step = thread_count();
    const bool target_wide = (a.flags & UNISONO_TARGET_WIDE) != 0;
    for (; at < items && (U - 1) * step < items - at; at += U * step) {
        uint32_t raw[U][N][4] = {};
        UNISONO_UNROLL
        for (int u = 0; u < U; ++u) {
            const uint64_t index = first_of<L, WHOLE>(a, at + u * step);
            UNISONO_UNROLL
            for (int i = 0; i < N; ++i) {
                if (N == 2 || i < int(a.source_count)) {
                    const bool wide = (a.sources_wide >> i & 1) != 0;
                    L::template read<WHOLE>(a.sources[i], wide, index, raw[u][i]);
                }
            }
        }
        UNISONO_UNROLL
        for (int u = 0; u < U; ++u) {
            const uint64_t index = first_of<L, WHOLE>(a, at + u * step);
            uint32_t out[4] = {};
            UNISONO_UNROLL
            for (int part = 0; part < (WHOLE ? L::ELEMENTS : 1); part += L::GROUP) {
                fold_group<L, Op, N>(a, last, raw[u], part, out);
            }
            for (uint32_t t = 0; t < a.target_count; ++t) {
                L::template write<WHOLE>(a.targets[t], target_wide, index, out);
            }
        }
    }
}

template <class L, class Op, int N> UNISONO_INLINE void fold(const unisono_fold_arguments &a) {
    const Last<typename L::E> last(a.flags, a.ranks);
    constexpr int U = N == 2 ? 2 : 1;
    uint64_t at = thread_index();
    fold_items<L, Op, N, U, true>(a, last, at, a.vectors);
    if constexpr (U > 1) {
        fold_items<L, Op, N, 1, true>(a, last, at, a.vectors);
    }
    at = thread_index();
    const uint64_t edges = a.count - a.vectors * L::ELEMENTS;
    fold_items<L, Op, N, 1, false>(a, last, at, edges);
}

template <class L, int U, bool WHOLE>
UNISONO_INLINE void convert_items(const unisono_convert_arguments &a,
                                  const Last<typename L::E> &last, uint64_t &at, uint64_t items) {
    using E = typename L::E;
    const uint64_t step = thread_count();
    const bool wide_in = (a.flags & UNISONO_SOURCE_WIDE) != 0;
    const bool wide_out = (a.flags & UNISONO_TARGET_WIDE) != 0;
    for (; at < items && (U - 1) * step < items - at; at += U * step) {
        uint32_t raw[U][4] = {};
        UNISONO_UNROLL
        for (int u = 0; u < U; ++u) {
            const uint64_t index = first_of<L, WHOLE>(a, at + u * step);
            L::template read<WHOLE>(a.source, wide_in, index, raw[u]);
        }
        UNISONO_UNROLL
        for (int u = 0; u < U; ++u) {
            uint32_t out[4] = {};
            UNISONO_UNROLL
            for (int part = 0; part < (WHOLE ? L::ELEMENTS : 1); part += L::GROUP) {
                typename E::Wide wide[L::GROUP];
                L::widen(raw[u], wide_in, part, wide);
                if (a.flags & UNISONO_TRUTH) {
                    to_truth<E, L::GROUP>(wide);
                }
                if (a.flags & UNISONO_FACTOR) {
                    multiply<E, L::GROUP>(wide, a.factor);
                }
                last.template apply<L::GROUP>(wide);
                L::narrow(wide, wide_out, part, out);
            }
            const uint64_t index = first_of<L, WHOLE>(a, at + u * step);
            L::template write<WHOLE>(a.target, wide_out, index, out);
        }
    }
}

template <class L> UNISONO_INLINE void convert(const unisono_convert_arguments &a) {
    const Last<typename L::E> last(a.flags, a.ranks);
    uint64_t at = thread_index();
    convert_items<L, 4, true>(a, last, at, a.vectors);
    convert_items<L, 1, true>(a, last, at, a.vectors);
    at = thread_index();
    convert_items<L, 1, false>(a, last, at, a.count - a.vectors * L::ELEMENTS);
}

// The finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): every bit of the result depends
// on every bit of `x`, and no two results are equal.
UNISONO_INLINE uint64_t mixed(uint64_t x) {
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
    x = (x ^ x >> 27) * 0x94d049bb133111eb;
    return x ^ x >> 31;
}

// The random bits of element `index`: the upper half of SplitMix64's number of that index, begun at
// the mixed seed. They depend on nothing else, so a buffer may be rounded in parts.
UNISONO_INLINE uint32_t random_bits(uint64_t start, uint64_t index) {
    return uint32_t(mixed(start + (index + 1) * 0x9e3779b97f4a7c15) >> 32);
}

template <class F, class E, bool WHOLE>
UNISONO_INLINE void round_items(const unisono_round_arguments &a, uint64_t items) {
    using L = Mixed<E>;
    constexpr int count = WHOLE ? 4 : 1;
    const uint64_t start = mixed(a.seed);
    for (uint64_t item = thread_index(); item < items; item += thread_count()) {
        const uint64_t index = first_of<L, WHOLE>(a, item);
        uint32_t raw[4], out[2] = {};
        L::template read<WHOLE>(a.source, true, index, raw);
        UNISONO_UNROLL
        for (int k = 0; k < count; ++k) {
            const uint32_t random = random_bits(start, a.first + index + k);
            const uint32_t code = Format<F>::narrow_randomly(bits_as<float>(raw[k]), random);
            out[k / E::COUNT] |= code << (8 * E::BYTES * (k % E::COUNT));
        }
        L::template write<WHOLE>(a.target, false, index, out);
    }
}

template <class F, class E> UNISONO_INLINE void round_randomly(const unisono_round_arguments &a) {
    round_items<F, E, true>(a, a.vectors);
    round_items<F, E, false>(a, a.count - a.vectors * 4);
}

} // namespace unisono
