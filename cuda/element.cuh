// One element: widening, narrowing, combining, dividing, by the rules of `src/kernel/mod.rs`.
//
// A *unit* is the least number of whole 32-bit words that holds whole elements: four of 8
// bits, one complex128. Functions take units, since devices convert two numbers at a time.
//
//   Wide                    the accumulator
//   BYTES, ALIGN            of a native element
//   COUNT, WORDS            elements and words of a unit
//   NARROWER                native and wide form differ (the wide one is f32)
//   FLOAT                   has NaNs, which may have to become canonical
//   widen, narrow           a unit
//   scalar                  one wide element out of its bytes
//   sum, prod, least, greatest, canonical, truth
//   divide, or scale where the divisor is an inverse
//
// The code is plain C++17 with bit arithmetic; on a device with instructions for a conversion those
// do it, with NaNs mended: NVIDIA's are 0x7fff and 0x7fffffff, ours 0x7e00, 0x7fc0, 0x7fc00000.
// Compiled without contraction to fused operations, and without flushing of subnormals.
#pragma once

#include "platform.cuh"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
#define UNISONO_F8_CVT 1
#endif

namespace unisono {

constexpr uint32_t F32_INFINITY = 0x7f800000;
constexpr uint32_t F32_MAGNITUDE = 0x7fffffff;

// A float format of at most 16 bits, as in `src/kernel/rounding.rs`.
struct F16Format {
    static constexpr uint32_t MANTISSA = 10, BIAS = 15, LARGEST = 0x7c00, NAN_CODE = 0x7e00,
                              SIGN = 0x8000, BOUND = 143u << 23;
};
struct Bf16Format {
    static constexpr uint32_t MANTISSA = 7, BIAS = 127, LARGEST = 0x7f80, NAN_CODE = 0x7fc0,
                              SIGN = 0x8000, BOUND = F32_INFINITY;
};
struct E4M3Format {
    static constexpr uint32_t MANTISSA = 3, BIAS = 7, LARGEST = 0x7e, NAN_CODE = 0x7f, SIGN = 0x80,
                              BOUND = 0x43e00000;
};
struct E5M2Format {
    static constexpr uint32_t MANTISSA = 2, BIAS = 15, LARGEST = 0x7b, NAN_CODE = 0x7f, SIGN = 0x80,
                              BOUND = 0x47600000;
};

template <class F> struct Format : F {
    static constexpr uint32_t DROPPED = 23 - F::MANTISSA;
    // The bits of the smallest normal number.
    static constexpr uint32_t SMALLEST = (128 - F::BIAS) << 23;

    // Five steps: bound the magnitude; take its exponent, at least that of the smallest normal;
    // add a power of two so large that the adder rounds where the format ends; the sum's low bits
    // and the exponent then make the code. `rounding.rs` says why.
    static UNISONO_INLINE uint32_t narrow(float value) {
        constexpr uint32_t below = (0u - (SMALLEST >> DROPPED)) & (2 * F::SIGN - 1);
        constexpr uint32_t raise = (DROPPED << 23) + below;
        const uint32_t bits = bits_as<uint32_t>(value);
        const uint32_t magnitude = bits & F32_MAGNITUDE;
        const uint32_t bounded = magnitude < F::BOUND ? magnitude : F::BOUND;
        const uint32_t raw = bounded & F32_INFINITY;
        const uint32_t exponent = raw > SMALLEST ? raw : SMALLEST;
        const float sum = bits_as<float>(bounded) + bits_as<float>(exponent + raise);
        const uint32_t code = (bits_as<uint32_t>(sum) + (exponent >> DROPPED)) & (F::SIGN - 1);
        const uint32_t sign = (bits & ~F32_MAGNITUDE) != 0 ? F::SIGN : 0;
        return magnitude > F32_INFINITY ? F::NAN_CODE : code | sign;
    }

    static UNISONO_INLINE float widen(uint32_t code) {
        const uint32_t shifted = (code & (F::SIGN - 1)) << DROPPED;
        const uint32_t normal = shifted + ((127 - F::BIAS) << 23);
        // With an exponent of 1 put in, and its value taken away again, a subnormal is itself.
        const float subnormal = bits_as<float>(shifted + SMALLEST) - bits_as<float>(SMALLEST);
        uint32_t magnitude = shifted < 1u << 23 ? bits_as<uint32_t>(subnormal) : normal;
        if (F::MANTISSA == 3) {
            magnitude |= (code & 0x7f) == 0x7f ? F32_INFINITY : 0;
        } else {
            constexpr uint32_t top = ((F::SIGN - 1) >> F::MANTISSA) << F::MANTISSA;
            magnitude |= (code & top) == top ? F32_INFINITY : 0;
        }
        return bits_as<float>(magnitude | ((code & F::SIGN) != 0 ? ~F32_MAGNITUDE : 0));
    }

    // Rounds up with the probability of the distance: where what is dropped, as a fraction of 2^32,
    // is above 32 random bits.
    static UNISONO_INLINE uint32_t narrow_randomly(float value, uint32_t random) {
        const uint32_t bits = bits_as<uint32_t>(value);
        const uint32_t magnitude = bits & F32_MAGNITUDE;
        const uint32_t sign = (bits & ~F32_MAGNITUDE) != 0 ? F::SIGN : 0;
        if (magnitude > F32_INFINITY) {
            return F::NAN_CODE;
        }
        if (magnitude >= F::BOUND) {
            return sign | F::LARGEST;
        }
        const uint32_t exponent = magnitude >> 23;
        const uint32_t leading = exponent > 0 ? 1 : 0;
        const uint32_t mantissa = (magnitude & 0x7fffff) | leading << 23;
        // Exponents of a subnormal f32 and of the smallest normal one weigh the same.
        const uint32_t weight = exponent > 0 ? exponent : 1;
        const uint32_t smallest = SMALLEST >> 23;
        const bool normal = weight >= smallest;
        // Above 56 nothing is left of 24 bits, even as a fraction.
        const uint32_t below = normal ? 0 : smallest - weight;
        const uint32_t shift = DROPPED + (below < 40 ? below : 40);
        const uint64_t fixed = shift < 64 ? (uint64_t(mantissa) << 32) >> shift : 0;
        // Of a normal number the leading bit adds 1 to the exponent before it.
        const uint32_t base = normal ? (weight - smallest) << F::MANTISSA : 0;
        const uint32_t code = base + uint32_t(fixed >> 32) + (uint32_t(fixed) > random ? 1 : 0);
        return sign | code;
    }
};

UNISONO_INLINE bool is_nan(float value) { return value != value; }
UNISONO_INLINE bool is_nan(double value) { return value != value; }
UNISONO_INLINE float canonical_nan(float) { return bits_as<float>(uint32_t(0x7fc00000)); }
UNISONO_INLINE double canonical_nan(double) {
    return bits_as<double>(uint64_t(0x7ff8000000000000));
}
UNISONO_INLINE bool is_negative(float value) { return bits_as<uint32_t>(value) >> 31 != 0; }
UNISONO_INLINE bool is_negative(double value) { return bits_as<uint64_t>(value) >> 63 != 0; }

// `minimum` and `maximum` of IEEE 754-2019.
template <class T> UNISONO_INLINE T least(T a, T b) {
    if (is_nan(a) || is_nan(b)) {
        return canonical_nan(a);
    }
    return a < b || (a == b && is_negative(a)) ? a : b;
}

template <class T> UNISONO_INLINE T greatest(T a, T b) {
    if (is_nan(a) || is_nan(b)) {
        return canonical_nan(a);
    }
    return a > b || (a == b && !is_negative(a)) ? a : b;
}

#ifdef __CUDA_ARCH__
template <> UNISONO_INLINE float least(float a, float b) {
    float chosen;
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(chosen) : "f"(a), "f"(b));
    return chosen;
}

template <> UNISONO_INLINE float greatest(float a, float b) {
    float chosen;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(chosen) : "f"(a), "f"(b));
    return chosen;
}
#endif

// A world size to divide by. The quotient by a power of two is the product with its inverse, which
// is exact, and so rounded the same.
template <class T> struct Divisor {
    bool inverse;
    T number;

    UNISONO_INLINE Divisor(uint32_t ranks, bool)
        : inverse((ranks & (ranks - 1)) == 0), number(inverse ? T(1) / T(ranks) : T(ranks)) {}
};

template <class T> struct Real {
    using Wide = T;
    using Part = T;
    using Divisor = unisono::Divisor<T>;
    static constexpr int BYTES = sizeof(T), ALIGN = sizeof(T), COUNT = 1, WORDS = sizeof(T) / 4;
    static constexpr bool NARROWER = false, FLOAT = true;

    static UNISONO_INLINE void widen(const uint32_t *words, T *wide) {
        memcpy(wide, words, sizeof(T));
    }
    static UNISONO_INLINE void narrow(const T *wide, uint32_t *words) {
        memcpy(words, wide, sizeof(T));
    }
    static UNISONO_INLINE T scalar(const uint32_t *words) {
        T value;
        memcpy(&value, words, sizeof(T));
        return value;
    }
    static UNISONO_INLINE T sum(T a, T b) { return a + b; }
    static UNISONO_INLINE T prod(T a, T b) { return a * b; }
    static UNISONO_INLINE T least(T a, T b) { return unisono::least(a, b); }
    static UNISONO_INLINE T greatest(T a, T b) { return unisono::greatest(a, b); }
    static UNISONO_INLINE T divide(T value, const Divisor &by) { return value / by.number; }
    static UNISONO_INLINE T scale(T value, const Divisor &by) { return value * by.number; }
    static UNISONO_INLINE T canonical(T value) {
        return is_nan(value) ? canonical_nan(value) : value;
    }
    static UNISONO_INLINE T truth(T value) { return value; }
};

template <class T> struct Pair {
    T real, imaginary;
};

template <class T> struct Complex {
    using Wide = Pair<T>;
    using Part = Real<T>;
    using Divisor = unisono::Divisor<T>;
    static constexpr int BYTES = 2 * sizeof(T), ALIGN = sizeof(T), COUNT = 1, WORDS = BYTES / 4;
    static constexpr bool NARROWER = false, FLOAT = true;

    static UNISONO_INLINE void widen(const uint32_t *words, Wide *wide) {
        memcpy(wide, words, BYTES);
    }
    static UNISONO_INLINE void narrow(const Wide *wide, uint32_t *words) {
        memcpy(words, wide, BYTES);
    }
    static UNISONO_INLINE Wide scalar(const uint32_t *words) {
        Wide value;
        memcpy(&value, words, BYTES);
        return value;
    }
    static UNISONO_INLINE Wide sum(Wide a, Wide b) {
        return {a.real + b.real, a.imaginary + b.imaginary};
    }
    static UNISONO_INLINE Wide prod(Wide a, Wide b) {
        return {a.real * b.real - a.imaginary * b.imaginary,
                a.real * b.imaginary + a.imaginary * b.real};
    }
    static UNISONO_INLINE Wide divide(Wide value, const Divisor &by) {
        return {value.real / by.number, value.imaginary / by.number};
    }
    static UNISONO_INLINE Wide scale(Wide value, const Divisor &by) {
        return {value.real * by.number, value.imaginary * by.number};
    }
    static UNISONO_INLINE Wide canonical(Wide value) {
        return {Part::canonical(value.real), Part::canonical(value.imaginary)};
    }
    static UNISONO_INLINE Wide truth(Wide value) { return value; }
};

template <class T> struct Unsigned;
template <> struct Unsigned<int8_t> { using Type = uint8_t; };
template <> struct Unsigned<uint8_t> { using Type = uint8_t; };
template <> struct Unsigned<int16_t> { using Type = uint16_t; };
template <> struct Unsigned<uint16_t> { using Type = uint16_t; };
template <> struct Unsigned<int32_t> { using Type = uint32_t; };
template <> struct Unsigned<uint32_t> { using Type = uint32_t; };
template <> struct Unsigned<int64_t> { using Type = uint64_t; };
template <> struct Unsigned<uint64_t> { using Type = uint64_t; };

// Quotients are those of magnitudes, so signed and unsigned numbers share the kernel.
struct IntegerDivisor {
    static constexpr bool inverse = false;
    uint32_t ranks;
    bool is_signed;

    UNISONO_INLINE IntegerDivisor(uint32_t ranks, bool is_signed)
        : ranks(ranks), is_signed(is_signed) {}
};

template <class T> struct Integer {
    using Wide = T;
    using U = typename Unsigned<T>::Type;
    // Small numbers become `int`, whose products may overflow, unless they are made unsigned.
    using Big = decltype(U() + 0u);
    using Divisor = IntegerDivisor;
    static constexpr int BYTES = sizeof(T), ALIGN = sizeof(T), COUNT = BYTES < 4 ? 4 / BYTES : 1,
                         WORDS = BYTES < 4 ? 1 : BYTES / 4;
    static constexpr bool NARROWER = false, FLOAT = false;

    static UNISONO_INLINE void widen(const uint32_t *words, T *wide) {
        if constexpr (BYTES < 4) {
            UNISONO_UNROLL
            for (int i = 0; i < COUNT; ++i) {
                wide[i] = T(words[0] >> (8 * BYTES * i));
            }
        } else {
            memcpy(wide, words, BYTES);
        }
    }
    static UNISONO_INLINE void narrow(const T *wide, uint32_t *words) {
        if constexpr (BYTES < 4) {
            words[0] = 0;
            UNISONO_UNROLL
            for (int i = 0; i < COUNT; ++i) {
                words[0] |= uint32_t(U(wide[i])) << (8 * BYTES * i);
            }
        } else {
            memcpy(words, wide, BYTES);
        }
    }
    static UNISONO_INLINE T scalar(const uint32_t *words) {
        if constexpr (BYTES == 8) {
            return T(words[0] | uint64_t(words[1]) << 32);
        } else {
            return T(words[0]);
        }
    }
    static UNISONO_INLINE T sum(T a, T b) { return T(Big(a) + Big(b)); }
    static UNISONO_INLINE T prod(T a, T b) { return T(Big(a) * Big(b)); }
    static UNISONO_INLINE T least(T a, T b) { return a < b ? a : b; }
    static UNISONO_INLINE T greatest(T a, T b) { return a > b ? a : b; }
    static UNISONO_INLINE T divide(T value, const Divisor &by) {
        const U bits = U(value);
        const bool negative = by.is_signed && bits >> (8 * BYTES - 1) != 0;
        const Big magnitude = U(negative ? U(0u - Big(bits)) : bits);
        const Big quotient = magnitude / Big(by.ranks);
        return T(negative ? Big(0) - quotient : quotient);
    }
    static UNISONO_INLINE T scale(T value, const Divisor &) { return value; }
    static UNISONO_INLINE T canonical(T value) { return value; }
    static UNISONO_INLINE T truth(T value) { return T(value != 0); }
};

// Codes of a unit that are NaNs become canonical. Rare, so all are asked at once.
template <class F, int COUNT> UNISONO_INLINE uint32_t mend(const float *wide, uint32_t word) {
    constexpr int width = 32 / COUNT;
    bool any = false;
    UNISONO_UNROLL
    for (int i = 0; i < COUNT; ++i) {
        any |= is_nan(wide[i]);
    }
    if (any) {
        UNISONO_UNROLL
        for (int i = 0; i < COUNT; ++i) {
            const uint32_t mask = (2 * F::SIGN - 1) << (width * i);
            word = is_nan(wide[i]) ? (word & ~mask) | F::NAN_CODE << (width * i) : word;
        }
    }
    return word;
}

template <class F> struct Small : Real<float> {
    static constexpr int BYTES = F::SIGN == 0x8000 ? 2 : 1, ALIGN = BYTES, COUNT = 4 / BYTES,
                         WORDS = 1;
    static constexpr bool NARROWER = true, FLOAT = true;

    static UNISONO_INLINE void widen(const uint32_t *words, float *wide) {
        UNISONO_UNROLL
        for (int i = 0; i < COUNT; ++i) {
            wide[i] = Format<F>::widen(words[0] >> (8 * BYTES * i) & (2 * F::SIGN - 1));
        }
    }
    static UNISONO_INLINE void narrow(const float *wide, uint32_t *words) {
        words[0] = 0;
        UNISONO_UNROLL
        for (int i = 0; i < COUNT; ++i) {
            words[0] |= Format<F>::narrow(wide[i]) << (8 * BYTES * i);
        }
    }
};

struct F16 : Small<F16Format> {
#ifdef __CUDA_ARCH__
    static UNISONO_INLINE void widen(const uint32_t *words, float *wide) {
        asm("{.reg .b16 a, b; mov.b32 {a, b}, %2; cvt.f32.f16 %0, a; cvt.f32.f16 %1, b;}"
            : "=f"(wide[0]), "=f"(wide[1])
            : "r"(words[0]));
    }
    static UNISONO_INLINE void narrow(const float *wide, uint32_t *words) {
        uint32_t pair;
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(wide[1]), "f"(wide[0]));
        words[0] = mend<F16Format, 2>(wide, pair);
    }
#endif
};

struct Bf16 : Small<Bf16Format> {
    static UNISONO_INLINE void widen(const uint32_t *words, float *wide) {
        wide[0] = bits_as<float>(words[0] << 16);
        wide[1] = bits_as<float>(words[0] & 0xffff0000);
    }
#ifdef __CUDA_ARCH__
    static UNISONO_INLINE void narrow(const float *wide, uint32_t *words) {
        uint32_t pair;
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(wide[1]), "f"(wide[0]));
        words[0] = mend<Bf16Format, 2>(wide, pair);
    }
#else
    static UNISONO_INLINE void narrow(const float *wide, uint32_t *words) {
        words[0] = 0;
        for (int i = 0; i < 2; ++i) {
            const uint32_t bits = bits_as<uint32_t>(wide[i]);
            const uint32_t code = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
            words[0] |= (is_nan(wide[i]) ? 0x7fc0 : code) << (16 * i);
        }
    }
#endif
};

#ifdef UNISONO_F8_CVT
#define UNISONO_F8(NAME, FORMAT, PTX)                                                              \
    struct NAME : Small<FORMAT> {                                                                  \
        static UNISONO_INLINE void widen(const uint32_t *words, float *wide) {                     \
            asm("{.reg .b16 a, b, c, d, e, f; .reg .b32 g, h; mov.b32 {a, b}, %4;"                 \
                "cvt.rn.f16x2." PTX " g, a; cvt.rn.f16x2." PTX " h, b;"                            \
                "mov.b32 {c, d}, g; mov.b32 {e, f}, h;"                                            \
                "cvt.f32.f16 %0, c; cvt.f32.f16 %1, d; cvt.f32.f16 %2, e; cvt.f32.f16 %3, f;}"     \
                : "=f"(wide[0]), "=f"(wide[1]), "=f"(wide[2]), "=f"(wide[3])                       \
                : "r"(words[0]));                                                                  \
        }                                                                                          \
        static UNISONO_INLINE void narrow(const float *wide, uint32_t *words) {                    \
            uint32_t four;                                                                         \
            asm("{.reg .b16 a, b; cvt.rn.satfinite." PTX ".f32 a, %2, %1;"                         \
                "cvt.rn.satfinite." PTX ".f32 b, %4, %3; mov.b32 %0, {a, b};}"                     \
                : "=r"(four)                                                                       \
                : "f"(wide[0]), "f"(wide[1]), "f"(wide[2]), "f"(wide[3]));                         \
            words[0] = mend<FORMAT, 4>(wide, four);                                                \
        }                                                                                          \
    };
UNISONO_F8(E4M3, E4M3Format, "e4m3x2")
UNISONO_F8(E5M2, E5M2Format, "e5m2x2")
#undef UNISONO_F8
#else
struct E4M3 : Small<E4M3Format> {};
struct E5M2 : Small<E5M2Format> {};
#endif

} // namespace unisono
