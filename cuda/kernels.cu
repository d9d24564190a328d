// The kernels of one unit, by name; `src/kernel/cuda/name.rs` makes the same names.
//
//   unisono_fold_TYPE_OPERATION_N[_mixed]   N: two sources exactly, up to 4, up to 16
//   unisono_convert_TYPE, unisono_round_TYPE, unisono_pack, unisono_checksum
//
// A unit, which UNISONO_UNIT_x chooses, is a fatbin: one element type, the two integers of a size
// together, or what works on bytes. Signed integers have kernels of their own only where the sign
// matters; an average's division asks a flag. The host twin compiles all units at once.
#include "bytes.cuh"

#if defined(UNISONO_ALL)
#define UNISONO_UNIT_i8
#define UNISONO_UNIT_i16
#define UNISONO_UNIT_i32
#define UNISONO_UNIT_i64
#define UNISONO_UNIT_f16
#define UNISONO_UNIT_bf16
#define UNISONO_UNIT_f8e4m3
#define UNISONO_UNIT_f8e5m2
#define UNISONO_UNIT_f32
#define UNISONO_UNIT_f64
#define UNISONO_UNIT_complex64
#define UNISONO_UNIT_complex128
#define UNISONO_UNIT_bytes
#endif

using namespace unisono;

#define KERNEL(N, RESIDENT, TYPE, ELEMENT, NAME, OP)                                               \
    UNISONO_KERNEL(unisono_fold_##TYPE##_##NAME##_##N, unisono_fold_arguments, RESIDENT,           \
                   fold<Native<ELEMENT>, OP, N>)

#define KERNEL_MIXED(N, RESIDENT, TYPE, ELEMENT, NAME, OP)                                         \
    KERNEL(N, RESIDENT, TYPE, ELEMENT, NAME, OP)                                                   \
    UNISONO_KERNEL(unisono_fold_##TYPE##_##NAME##_##N##_mixed, unisono_fold_arguments, RESIDENT,   \
                   fold<Mixed<ELEMENT>, OP, N>)

// The operations of training have a kernel for two sources, the others go without.
#define RARE(EACH, TYPE, ELEMENT, NAME, OP)                                                        \
    EACH(4, 4, TYPE, ELEMENT, NAME, OP)                                                            \
    EACH(16, 2, TYPE, ELEMENT, NAME, OP)

#define COMMON(EACH, TYPE, ELEMENT, NAME, OP)                                                      \
    EACH(2, 4, TYPE, ELEMENT, NAME, OP)                                                            \
    RARE(EACH, TYPE, ELEMENT, NAME, OP)

#define ORDERED(EACH, TYPE, ELEMENT)                                                               \
    RARE(EACH, TYPE, ELEMENT, min, Min)                                                            \
    RARE(EACH, TYPE, ELEMENT, max, Max)

#define ARITHMETIC(EACH, LAYOUT, TYPE, ELEMENT)                                                    \
    COMMON(EACH, TYPE, ELEMENT, sum, Sum)                                                          \
    COMMON(EACH, TYPE, ELEMENT, pre_mul_sum, PreMulSum)                                            \
    RARE(EACH, TYPE, ELEMENT, prod, Prod)                                                          \
    UNISONO_KERNEL(unisono_convert_##TYPE, unisono_convert_arguments, 4, convert<LAYOUT<ELEMENT>>)

#define INTEGER(BITS)                                                                              \
    ARITHMETIC(KERNEL, Native, u##BITS, Integer<uint##BITS##_t>)                                   \
    ORDERED(KERNEL, u##BITS, Integer<uint##BITS##_t>)                                              \
    ORDERED(KERNEL, i##BITS, Integer<int##BITS##_t>)                                               \
    RARE(KERNEL, u##BITS, Integer<uint##BITS##_t>, band, Band)                                     \
    RARE(KERNEL, u##BITS, Integer<uint##BITS##_t>, bor, Bor)                                       \
    RARE(KERNEL, u##BITS, Integer<uint##BITS##_t>, bxor, Bxor)                                     \
    RARE(KERNEL, u##BITS, Integer<uint##BITS##_t>, land, Land)                                     \
    RARE(KERNEL, u##BITS, Integer<uint##BITS##_t>, lor, Lor)

#define FLOAT(TYPE, ELEMENT)                                                                       \
    ARITHMETIC(KERNEL, Native, TYPE, ELEMENT)                                                      \
    ORDERED(KERNEL, TYPE, ELEMENT)

#define SMALL(TYPE, ELEMENT, FORMAT)                                                               \
    ARITHMETIC(KERNEL_MIXED, Mixed, TYPE, ELEMENT)                                                 \
    ORDERED(KERNEL_MIXED, TYPE, ELEMENT)                                                           \
    UNISONO_KERNEL(unisono_round_##TYPE, unisono_round_arguments, 4,                               \
                   round_randomly<FORMAT, ELEMENT>)

#ifdef UNISONO_UNIT_i8
INTEGER(8)
#endif
#ifdef UNISONO_UNIT_i16
INTEGER(16)
#endif
#ifdef UNISONO_UNIT_i32
INTEGER(32)
#endif
#ifdef UNISONO_UNIT_i64
INTEGER(64)
#endif
#ifdef UNISONO_UNIT_f16
SMALL(f16, F16, F16Format)
#endif
#ifdef UNISONO_UNIT_bf16
SMALL(bf16, Bf16, Bf16Format)
#endif
#ifdef UNISONO_UNIT_f8e4m3
SMALL(f8e4m3, E4M3, E4M3Format)
#endif
#ifdef UNISONO_UNIT_f8e5m2
SMALL(f8e5m2, E5M2, E5M2Format)
#endif
#ifdef UNISONO_UNIT_f32
FLOAT(f32, Real<float>)
#endif
#ifdef UNISONO_UNIT_f64
FLOAT(f64, Real<double>)
#endif
#ifdef UNISONO_UNIT_complex64
ARITHMETIC(KERNEL, Native, complex64, Complex<float>)
#endif
#ifdef UNISONO_UNIT_complex128
ARITHMETIC(KERNEL, Native, complex128, Complex<double>)
#endif
#ifdef UNISONO_UNIT_bytes
UNISONO_KERNEL(unisono_pack, unisono_pack_arguments, 4, pack)
UNISONO_KERNEL(unisono_checksum, unisono_checksum_arguments, 4, checksum)
#endif
