//! Each rule of the module on cases small enough to check by hand, on every set.

use super::*;

const PLAIN: Stage = Stage::Plain;

fn finish(ranks: u32) -> Stage {
    Stage::Finish { ranks }
}

/// Native little-endian bytes of a few numbers.
macro_rules! bytes {
    ($type:ty: $($value:expr),+) => {{
        let values: &[$type] = &[$($value),+];
        values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>()
    }};
}

/// Folds on every set and compares with the bytes of the expected numbers.
#[track_caller]
fn folds(dtype: Dtype, op: ReduceOp, sources: &[Vec<u8>], stage: Stage, expected: &[u8]) {
    let sources: Vec<&[u8]> = sources.iter().map(Vec::as_slice).collect();
    for isa in Isa::available() {
        let got = fold(isa, dtype, op, &sources, Form::Native, stage);
        assert_eq!(got, expected, "{isa} {dtype} {op}");
    }
}

#[test]
fn order_is_the_tree_that_splits_at_the_largest_power_of_two_below() {
    // 1 is lost beside 2^24 in every order but the tree's.
    let big = 16_777_216.0;
    let five = [1.0, 1.0, big, -big, 1.0].map(|value| bytes!(f32: value));
    folds(Dtype::F32, ReduceOp::Sum, &five, PLAIN, &bytes!(f32: 3.0));
    let three = [big, 1.0, 1.0].map(|value| bytes!(f32: value));
    folds(Dtype::F32, ReduceOp::Sum, &three, PLAIN, &bytes!(f32: big));
    // ((0+1)+(2+3)) + (4+5): the pair 4+5 is added last.
    let six = [big, 0.0, 0.0, 0.0, 1.0, 1.0].map(|value| bytes!(f32: value));
    folds(Dtype::F32, ReduceOp::Sum, &six, PLAIN, &bytes!(f32: big + 2.0));
    // Seventeen: sixteen first, and the last alone.
    let mut many = vec![bytes!(f32: 0.0); 17];
    many[0] = bytes!(f32: big);
    many[15] = bytes!(f32: 1.0);
    many[16] = bytes!(f32: 1.0);
    folds(Dtype::F32, ReduceOp::Sum, &many, PLAIN, &bytes!(f32: big));
    // Eleven: 8, 9 and 10 are (8+9)+10.
    let mut eleven = vec![bytes!(f32: 0.0); 11];
    eleven[0] = bytes!(f32: big);
    eleven[8] = bytes!(f32: 1.0);
    eleven[10] = bytes!(f32: 1.0);
    folds(Dtype::F32, ReduceOp::Sum, &eleven, PLAIN, &bytes!(f32: big + 2.0));
}

#[test]
fn halves_fold_in_f32_and_round_once() {
    // In f16, 2048 + 1 is 2048; in f32 the two ones arrive together.
    let sources = [0x6800u16, 0x3c00, 0x3c00, 0].map(|code| bytes!(u16: code));
    folds(Dtype::F16, ReduceOp::Sum, &sources, PLAIN, &bytes!(u16: 0x6801));
    // The largest finite twice is infinity; as bfloat16 too.
    let sources = [0x7bffu16, 0x7bff].map(|code| bytes!(u16: code));
    folds(Dtype::F16, ReduceOp::Sum, &sources, PLAIN, &bytes!(u16: 0x7c00));
    let sources = [0x7f7fu16, 0x7f7f].map(|code| bytes!(u16: code));
    folds(Dtype::Bf16, ReduceOp::Sum, &sources, PLAIN, &bytes!(u16: 0x7f80));
    // The smallest subnormals of both survive.
    for dtype in [Dtype::F16, Dtype::Bf16] {
        let sources = [1u16, 1].map(|code| bytes!(u16: code));
        folds(dtype, ReduceOp::Sum, &sources, PLAIN, &bytes!(u16: 2));
    }
}

#[test]
fn f8_sums_saturate_and_keep_subnormals() {
    let sources = [bytes!(u8: 0x7e, 0xfe, 0x01), bytes!(u8: 0x7e, 0xfe, 0x01)];
    folds(Dtype::F8E4M3, ReduceOp::Sum, &sources, PLAIN, &bytes!(u8: 0x7e, 0xfe, 0x02));
    let sources = [bytes!(u8: 0x7b, 0x7c, 0xfc, 0x01), bytes!(u8: 0x7b, 0, 0, 0x01)];
    folds(Dtype::F8E5M2, ReduceOp::Sum, &sources, PLAIN, &bytes!(u8: 0x7b, 0x7b, 0xfb, 0x02));
    // inf - inf is NaN.
    let sources = [bytes!(u8: 0x7c), bytes!(u8: 0xfc)];
    folds(Dtype::F8E5M2, ReduceOp::Sum, &sources, PLAIN, &bytes!(u8: 0x7f));
}

#[test]
fn a_finished_nan_is_the_canonical_one() {
    let f32s = [bytes!(u32: 0xffa0_0001), bytes!(u32: 0)];
    folds(Dtype::F32, ReduceOp::Sum, &f32s, finish(1), &bytes!(u32: 0x7fc0_0000));
    let f64s = [bytes!(u64: 0xfff0_0000_0000_0001)];
    folds(Dtype::F64, ReduceOp::Max, &f64s, finish(1), &bytes!(u64: 0x7ff8_0000_0000_0000u64));
    let f16s = [bytes!(u16: 0xfd01)];
    folds(Dtype::F16, ReduceOp::Min, &f16s, finish(1), &bytes!(u16: 0x7e00));
    let bf16s = [bytes!(u16: 0xff81)];
    folds(Dtype::Bf16, ReduceOp::Prod, &bf16s, finish(1), &bytes!(u16: 0x7fc0));
    for dtype in [Dtype::F8E4M3, Dtype::F8E5M2] {
        folds(dtype, ReduceOp::Sum, &[bytes!(u8: 0xff)], finish(1), &bytes!(u8: 0x7f));
    }
    // Only the component that is a NaN.
    let pair = [bytes!(u32: 0xffc1_2345, 0x3f80_0000)];
    let expected = bytes!(u32: 0x7fc0_0000, 0x3f80_0000);
    folds(Dtype::Complex64, ReduceOp::Sum, &pair, finish(1), &expected);
}

#[test]
fn minimum_and_maximum_order_zeros_and_let_nan_win() {
    let a = bytes!(f32: 0.0, -0.0, -0.0, 1.0, f32::NEG_INFINITY);
    let b = bytes!(f32: -0.0, 0.0, -0.0, 2.0, f32::INFINITY);
    let least = bytes!(f32: -0.0, -0.0, -0.0, 1.0, f32::NEG_INFINITY);
    let most = bytes!(f32: 0.0, 0.0, -0.0, 2.0, f32::INFINITY);
    folds(Dtype::F32, ReduceOp::Min, &[a.clone(), b.clone()], PLAIN, &least);
    folds(Dtype::F32, ReduceOp::Max, &[a, b], PLAIN, &most);
    for op in [ReduceOp::Min, ReduceOp::Max] {
        let left = bytes!(f64: f64::NAN, 1.0, f64::NEG_INFINITY, f64::INFINITY);
        let right = bytes!(f64: 1.0, f64::NAN, f64::NAN, f64::NAN);
        let nan = 0x7ff8_0000_0000_0000u64;
        folds(Dtype::F64, op, &[left, right], finish(2), &bytes!(u64: nan, nan, nan, nan));
    }
}

#[test]
fn integers_wrap_and_averages_truncate_after_the_wrapping_sum() {
    let bytes = [bytes!(u8: 250), bytes!(u8: 10)];
    folds(Dtype::U8, ReduceOp::Sum, &bytes, PLAIN, &bytes!(u8: 4));
    folds(Dtype::U8, ReduceOp::Prod, &bytes, PLAIN, &bytes!(u8: 196));
    folds(Dtype::U8, ReduceOp::Avg, &bytes, finish(2), &bytes!(u8: 2));
    let signed = [bytes!(i8: -3, 100), bytes!(i8: -4, 100)];
    folds(Dtype::I8, ReduceOp::Avg, &signed, finish(2), &bytes!(i8: -3, -28));
    folds(Dtype::I8, ReduceOp::Avg, &signed, finish(1000), &bytes!(i8: 0, 0));
    let wide = [bytes!(i64: i64::MAX), bytes!(i64: 1)];
    folds(Dtype::I64, ReduceOp::Sum, &wide, PLAIN, &bytes!(i64: i64::MIN));
    folds(Dtype::U64, ReduceOp::Avg, &wide, finish(2), &bytes!(u64: 1u64 << 62));
    folds(Dtype::I64, ReduceOp::Min, &[wide[0].clone(), bytes!(i64: -1)], PLAIN, &bytes!(i64: -1));
    let all = [wide[0].clone(), bytes!(i64: -1)];
    folds(Dtype::U64, ReduceOp::Min, &all, PLAIN, &bytes!(i64: i64::MAX));
}

#[test]
fn logical_operations_give_0_or_1_with_one_source_too() {
    let a = bytes!(u16: 0, 2, 0x100, 0);
    let b = bytes!(u16: 0, 4, 0, 7);
    let both = [a.clone(), b];
    folds(Dtype::U16, ReduceOp::Land, &both, PLAIN, &bytes!(u16: 0, 1, 0, 0));
    folds(Dtype::U16, ReduceOp::Lor, &both, PLAIN, &bytes!(u16: 0, 1, 1, 1));
    folds(Dtype::I16, ReduceOp::Band, &both, PLAIN, &bytes!(u16: 0, 0, 0, 0));
    folds(Dtype::I16, ReduceOp::Bor, &both, PLAIN, &bytes!(u16: 0, 6, 0x100, 7));
    folds(Dtype::I16, ReduceOp::Bxor, &both, PLAIN, &bytes!(u16: 0, 6, 0x100, 7));
    for op in [ReduceOp::Land, ReduceOp::Lor] {
        let truth = bytes!(u16: 0, 1, 1, 0);
        folds(Dtype::U16, op, std::slice::from_ref(&a), PLAIN, &truth);
        for isa in Isa::available() {
            let source = (&a[..], Form::Native);
            let done = convert(isa, Dtype::U16, op, source, Form::Native, finish(1));
            assert_eq!(done, truth, "{isa} {op} finishes a world of one");
            let copied = convert(isa, Dtype::U16, op, source, Form::Native, PLAIN);
            assert_eq!(copied, a, "{isa} {op} copies");
        }
    }
}

#[test]
fn averages_of_halves_divide_in_f32_and_round_once() {
    // 1 and the next f16 after it: the mean is a tie between the two, to even.
    let sources = [bytes!(u16: 0x3c00), bytes!(u16: 0x3c01)];
    folds(Dtype::F16, ReduceOp::Avg, &sources, finish(2), &bytes!(u16: 0x3c00));
    // A third is not a multiple of a reciprocal rounded before.
    let sources = [bytes!(f32: 5.0), bytes!(f32: 0.0), bytes!(f32: 0.0)];
    folds(Dtype::F32, ReduceOp::Avg, &sources, finish(3), &bytes!(f32: 5.0 / 3.0));
    // The sum of two largest would be infinite in f16, but not in f32.
    let sources = [bytes!(u16: 0x7bff), bytes!(u16: 0x7bff)];
    folds(Dtype::F16, ReduceOp::Avg, &sources, finish(2), &bytes!(u16: 0x7bff));
    let pairs = [bytes!(f64: 1.0, -3.0), bytes!(f64: 2.0, -4.0)];
    folds(Dtype::Complex128, ReduceOp::Avg, &pairs, finish(2), &bytes!(f64: 1.5, -3.5));
}

#[test]
fn prepare_multiplies_in_wide_form() {
    for isa in Isa::available() {
        let prepare = |dtype, source: &[u8], target_form, factor: &[u8]| {
            let stage = Stage::Prepare(scalar(factor));
            let op = ReduceOp::PreMulSum;
            convert(isa, dtype, op, (source, Form::Native), target_form, stage)
        };
        let half = prepare(Dtype::F16, &bytes!(u16: 0x7bff), Form::Wide, &bytes!(f32: 3.0));
        assert_eq!(half, bytes!(f32: 65504.0 * 3.0), "{isa}: not rounded to f16");
        let byte = prepare(Dtype::U8, &bytes!(u8: 100, 1), Form::Native, &bytes!(u8: 3));
        assert_eq!(byte, bytes!(u8: 44, 3), "{isa}: integers wrap");
        let factor = bytes!(f32: 0.0, 2.0);
        let pair = prepare(Dtype::Complex64, &bytes!(f32: 3.0, 5.0), Form::Native, &factor);
        assert_eq!(pair, bytes!(f32: -10.0, 6.0), "{isa}: complex times 2i");
    }
}

#[test]
fn complex_products_round_each_operation() {
    let factors = [bytes!(f64: 3.0, 2.0), bytes!(f64: 1.0, 7.0)];
    folds(Dtype::Complex128, ReduceOp::Prod, &factors, PLAIN, &bytes!(f64: -11.0, 23.0));
    // With a fused multiply-add the real part would be the rounding error of the square, not 0.
    let x = 1.0 + f32::EPSILON;
    let factors = [bytes!(f32: x, x), bytes!(f32: x, x)];
    let expected = bytes!(f32: 0.0, 2.0 * (x * x));
    folds(Dtype::Complex64, ReduceOp::Prod, &factors, PLAIN, &expected);
}

#[test]
fn a_plain_convert_between_equal_forms_keeps_every_bit() {
    for isa in Isa::available() {
        let nan = bytes!(u16: 0xfd01, 0x7e01);
        let source = (&nan[..], Form::Native);
        let copied = convert(isa, Dtype::F16, ReduceOp::Avg, source, Form::Native, PLAIN);
        assert_eq!(copied, nan, "{isa}");
    }
}

#[test]
fn what_an_operation_cannot_do_is_refused_by_name() {
    for isa in Isa::available() {
        for &dtype in Dtype::ALL {
            for &op in ReduceOp::ALL {
                let made = select_for(isa, dtype, op);
                assert_eq!(made.is_ok(), op.supports(dtype), "{isa} {dtype} {op}");
                if let Err(error) = made {
                    assert_eq!(error.code, crate::Code::Unsupported);
                    let named = error.detail.contains(dtype.name());
                    assert!(named && error.detail.contains(op.name()), "{error}");
                }
            }
        }
    }
    assert!(Isa::available().any(|isa| isa == Isa::best()));
    assert!(Isa::available().any(|isa| isa == Isa::Portable));
}
