//! Conversions between `f32` and the smaller floats, against definitions of their own.

use half::{bf16, f16};

use super::super::scalar::{decode_e4m3, decode_e5m2};
use super::*;

/// What a code stands for.
type Decode<C> = fn(C) -> f32;

/// The code that stands for a number.
type Encode = fn(f32) -> u16;

/// Results of rounding `values` to `dtype` on every set.
fn narrowed(dtype: Dtype, values: &[f32]) -> Vec<(Isa, Vec<u8>)> {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    Isa::available()
        .map(|isa| {
            let source = (&bytes[..], Form::Wide);
            let target = convert(isa, dtype, ReduceOp::Sum, source, Form::Native, Stage::Plain);
            (isa, target)
        })
        .collect()
}

/// Values around every boundary that matters to `table`, and a sweep over all exponents.
fn probes(table: &[f32]) -> Vec<f32> {
    let mut values = vec![f32::NAN, -f32::NAN, f32::INFINITY, f32::MAX, f32::from_bits(1), 0.0];
    values.extend([f32::from_bits(0x7f80_0001), f32::from_bits(0xffff_ffff)]);
    for pair in table.windows(2) {
        let middle = f64::midpoint(f64::from(pair[0]), f64::from(pair[1]));
        #[expect(clippy::cast_possible_truncation, reason = "the middle has a bit more only")]
        let middle = middle as f32;
        let bits = middle.to_bits();
        values.extend([pair[0], middle]);
        values.extend([f32::from_bits(bits + 1), f32::from_bits(bits.saturating_sub(1))]);
    }
    let mut random = Random::new(7);
    for exponent in 0..=255u32 {
        for _ in 0..64 {
            let mantissa = u32::try_from(random.next() >> 41).expect("23 bits");
            values.push(f32::from_bits(exponent << 23 | mantissa));
        }
        values.push(f32::from_bits(exponent << 23));
    }
    let negative: Vec<f32> = values.iter().map(|value| -value).collect();
    values.extend(negative);
    values
}

/// The nearest code by looking at all of them; ties to the even code, too large to the largest.
fn nearest(value: f32, decode: fn(u8) -> f32, largest: u8) -> u8 {
    if value.is_nan() {
        return 0x7f;
    }
    // Beyond this all codes look equally far.
    let magnitude = f64::from(value.abs().min(1e6));
    let mut best = 0;
    for code in 1..=largest {
        let closer = (f64::from(decode(code)) - magnitude).abs();
        let so_far = (f64::from(decode(best)) - magnitude).abs();
        if closer < so_far || (closer == so_far && code % 2 == 0) {
            best = code;
        }
    }
    best | if value.is_sign_negative() { 0x80 } else { 0 }
}

#[test]
fn f8_rounds_to_the_nearest_code_of_the_whole_table() {
    let formats: [(Dtype, Decode<u8>, u8); 2] =
        [(Dtype::F8E4M3, decode_e4m3, 0x7e), (Dtype::F8E5M2, decode_e5m2, 0x7b)];
    for (dtype, decode, largest) in formats {
        let table: Vec<f32> = (0..=largest).map(decode).collect();
        let values = probes(&table);
        let expected: Vec<u8> =
            values.iter().map(|&value| nearest(value, decode, largest)).collect();
        for (isa, codes) in narrowed(dtype, &values) {
            for ((value, code), expected) in values.iter().zip(codes).zip(&expected) {
                assert_eq!(code, *expected, "{dtype} of {value:e} ({:#x}), {isa}", value.to_bits());
            }
        }
    }
}

#[test]
fn halves_round_as_the_half_crate_does_and_nans_become_canonical() {
    let table: Vec<f32> = (0..0x7c00u16).map(|bits| f16::from_bits(bits).to_f32()).collect();
    let mut values = probes(&table);
    values.extend([65504.0, 65519.0, 65519.996, 65520.0, 65536.0, -65520.0, 1e-45, 1e-40]);
    let table: Vec<f32> = (0..0x7f80u16).map(|bits| bf16::from_bits(bits).to_f32()).collect();
    values.extend(probes(&table));
    let to_f16 = |value: f32| match value {
        _ if value.is_nan() => 0x7e00,
        _ => f16::from_f32(value).to_bits(),
    };
    let to_bf16 = |value: f32| match value {
        _ if value.is_nan() => 0x7fc0,
        _ => bf16::from_f32(value).to_bits(),
    };
    let formats: [(Dtype, Encode); 2] = [(Dtype::F16, to_f16), (Dtype::Bf16, to_bf16)];
    for (dtype, expected) in formats {
        for (isa, bytes) in narrowed(dtype, &values) {
            for (value, code) in values.iter().zip(bytes.chunks_exact(2)) {
                let code = u16::from_le_bytes([code[0], code[1]]);
                let bits = value.to_bits();
                assert_eq!(code, expected(*value), "{dtype} of {value:e} ({bits:#x}), {isa}");
            }
        }
    }
}

/// All codes of a type of `bytes` bytes, one after the other.
fn all_codes(bytes: usize) -> Vec<u8> {
    if bytes == 1 {
        return (0..=u8::MAX).collect();
    }
    (0..=u16::MAX).flat_map(u16::to_le_bytes).collect()
}

#[test]
fn every_code_widens_exactly_and_comes_back() {
    let decoders: [(Dtype, Decode<u16>, u16); 4] = [
        (Dtype::F16, |code| f16::from_bits(code).to_f32(), 0x7e00),
        (Dtype::Bf16, |code| bf16::from_bits(code).to_f32(), 0x7fc0),
        (Dtype::F8E4M3, |code| decode_e4m3(code.to_le_bytes()[0]), 0x7f),
        (Dtype::F8E5M2, |code| decode_e5m2(code.to_le_bytes()[0]), 0x7f),
    ];
    for (dtype, decode, nan) in decoders {
        let codes = all_codes(dtype.bytes());
        let op = ReduceOp::Sum;
        for isa in Isa::available() {
            let wide = convert(isa, dtype, op, (&codes, Form::Native), Form::Wide, Stage::Plain);
            let back = convert(isa, dtype, op, (&wide, Form::Wide), Form::Native, Stage::Plain);
            let numbers = codes.chunks_exact(dtype.bytes());
            for (index, (code, wide)) in numbers.zip(wide.chunks_exact(4)).enumerate() {
                let mut number = [0; 2];
                number[..code.len()].copy_from_slice(code);
                let number = u16::from_le_bytes(number);
                let wide = f32::from_le_bytes(wide.try_into().expect("4 bytes"));
                let mut returned = [0; 2];
                let bytes = dtype.bytes();
                returned[..bytes].copy_from_slice(&back[index * bytes..][..bytes]);
                let returned = u16::from_le_bytes(returned);
                let expected = decode(number);
                if expected.is_nan() {
                    assert!(wide.is_nan(), "{dtype} {number:#x} widens to a NaN, {isa}");
                    assert_eq!(returned, nan, "{dtype} {number:#x} becomes canonical, {isa}");
                    continue;
                }
                assert_eq!(wide.to_bits(), expected.to_bits(), "{dtype} {number:#x}, {isa}");
                let saturates = dtype == Dtype::F8E5M2 && expected.is_infinite();
                let same = if saturates { number - 1 } else { number };
                assert_eq!(returned, same, "{dtype} {number:#x} comes back, {isa}");
            }
        }
    }
}

#[test]
fn f8_tables_hold_the_values_of_the_specification() {
    let e4m3 = [
        (0x00, 0.0),
        (0x01, 0.001_953_125),
        (0x07, 0.013_671_875),
        (0x08, 0.015_625),
        (0x38, 1.0),
        (0x7e, 448.0),
        (0xb8, -1.0),
        (0xfe, -448.0),
    ];
    for (code, value) in e4m3 {
        assert_eq!(decode_e4m3(code), value, "e4m3 {code:#x}");
    }
    assert!(decode_e4m3(0x7f).is_nan() && decode_e4m3(0xff).is_nan());
    assert_eq!(decode_e4m3(0x80).to_bits(), 1 << 31, "-0 keeps its sign");
    let e5m2 = [
        (0x01, 2f32.powi(-16)),
        (0x03, 3.0 * 2f32.powi(-16)),
        (0x04, 2f32.powi(-14)),
        (0x3c, 1.0),
        (0x7b, 57344.0),
        (0x7c, f32::INFINITY),
        (0xfc, f32::NEG_INFINITY),
    ];
    for (code, value) in e5m2 {
        assert_eq!(decode_e5m2(code), value, "e5m2 {code:#x}");
    }
    assert!((0x7d..=0x7f).all(|code| decode_e5m2(code).is_nan()));
}
