//! Conversions between `f32` and the smaller floats without branches, one number at a time.
//!
//! The vector sets do the same steps in registers; this form is for sets without instructions for
//! it.

/// A float format below 32 bits: how many bits, where its exponent starts, what it saturates to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Format {
    /// Bits of the mantissa that are stored.
    pub(super) mantissa: u32,
    /// What is added to an exponent to store it.
    pub(super) bias: u32,
    /// The code of the largest magnitude a number may become: infinity, or the largest finite.
    pub(super) largest: u32,
    /// The code of the canonical NaN.
    pub(super) nan: u32,
    /// The bit of the sign.
    pub(super) sign: u32,
}

/// IEEE 754 binary16.
pub(super) const F16: Format =
    Format { mantissa: 10, bias: 15, largest: 0x7c00, nan: 0x7e00, sign: 0x8000 };

/// OCP E4M3, saturating.
pub(super) const E4M3: Format =
    Format { mantissa: 3, bias: 7, largest: 0x7e, nan: 0x7f, sign: 0x80 };

/// OCP E5M2, saturating.
pub(super) const E5M2: Format =
    Format { mantissa: 2, bias: 15, largest: 0x7b, nan: 0x7f, sign: 0x80 };

/// The bits of `f32` infinity: any magnitude above is a NaN.
pub(super) const F32_INFINITY: u32 = 0x7f80_0000;

/// The bits of `f32` without the sign.
pub(super) const F32_MAGNITUDE: u32 = 0x7fff_ffff;

impl Format {
    /// Mantissa bits of `f32` that rounding drops.
    pub(super) const fn dropped(self) -> u32 {
        23 - self.mantissa
    }

    /// The bits of the smallest normal number as an `f32`.
    pub(super) const fn smallest_normal(self) -> u32 {
        (128 - self.bias) << 23
    }

    /// The bfloat16 of an 8-bit format's magnitude, which is exact.
    pub(super) const fn bf16(self, code: u8) -> u16 {
        let code = code as u32;
        if code > self.largest {
            let is_nan = code > self.largest + 1 || code == self.nan;
            return if is_nan { 0x7fc0 } else { 0x7f80 };
        }
        let (exponent, fraction) = (code >> self.mantissa, code & ((1 << self.mantissa) - 1));
        let bits = if exponent > 0 {
            ((exponent + 127 - self.bias) << 7) | (fraction << (7 - self.mantissa))
        } else if fraction > 0 {
            let first = fraction.ilog2();
            let exponent = 128 - self.bias - self.mantissa + first;
            (exponent << 7) | ((fraction << (7 - first)) & 0x7f)
        } else {
            0
        };
        #[expect(clippy::cast_possible_truncation, reason = "16 bits are made")]
        {
            bits as u16
        }
    }

    /// The largest finite number of an 8-bit format as the bits of an `f32`.
    pub(super) const fn widest(self) -> u32 {
        #[expect(clippy::cast_possible_truncation, reason = "the code has 8 bits")]
        let code = self.largest as u8;
        (self.bf16(code) as u32) << 16
    }
}

/// Constants of rounding an `f32` to a smaller format in five steps.
///
/// Bound the magnitude by the largest number. Take its exponent, but at least that of the smallest
/// normal. Add to the magnitude a power of two so large that the sum's last bit weighs as much as
/// the format's: the adder rounds, and the sum's low bits count such weights, 8 or more in a
/// normal E4M3, less in a subnormal. Each exponent above the smallest is worth as many codes as a
/// mantissa has, so that adding the exponent, shifted, makes the code in the low bits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rounding {
    /// The bits of the largest number; for binary16 those of 2^16, whose code is infinity's.
    pub(super) largest: u32,
    /// The bits of the smallest normal number.
    pub(super) smallest: u32,
    /// What makes the exponent the power of two to add. Its low bits take the smallest exponent's
    /// codes off; they are even, so that ties go where they would without them.
    pub(super) raise: u32,
    /// How far the exponent is shifted to the right.
    pub(super) shift: u32,
}

impl Rounding {
    /// For a format of at most 16 bits.
    pub(super) const fn of(format: Format) -> Self {
        let codes = format.smallest_normal() >> format.dropped();
        let below = codes.wrapping_neg() & (2 * format.sign - 1);
        assert!(below & 1 == 0);
        Self {
            largest: if format.mantissa == 10 { 143 << 23 } else { format.widest() },
            smallest: format.smallest_normal(),
            raise: (format.dropped() << 23) + below,
            shift: format.dropped(),
        }
    }
}

/// Rounds to nearest even; too large becomes `largest`, NaN the canonical one.
#[inline(always)]
pub(super) fn narrow(value: f32, format: Format) -> u32 {
    let rounding = Rounding::of(format);
    let bits = value.to_bits();
    // Comparisons of floats, which every CPU has a vector form of.
    let magnitude = f32::from_bits(bits & F32_MAGNITUDE);
    let largest = f32::from_bits(rounding.largest);
    let bounded = if magnitude < largest { magnitude } else { largest };
    let exponent = f32::from_bits(bounded.to_bits() & F32_INFINITY);
    let smallest = f32::from_bits(rounding.smallest);
    let exponent = if exponent > smallest { exponent } else { smallest }.to_bits();
    let counted = (bounded + f32::from_bits(exponent + rounding.raise)).to_bits();
    let code = counted.wrapping_add(exponent >> rounding.shift) & (format.sign - 1);
    let sign = (bits >> (31 - format.sign.trailing_zeros())) & format.sign;
    if value.is_nan() { format.nan } else { code | sign }
}

/// Rounds to the upper half, nearest even.
#[inline(always)]
pub(super) fn narrow_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let chosen = if value.is_nan() { 0x7fc0 } else { rounded };
    #[expect(clippy::cast_possible_truncation, reason = "16 bits are left")]
    {
        chosen as u16
    }
}

/// The exact value of a code that is finite.
#[inline(always)]
fn widen(code: u32, format: Format) -> f32 {
    let shifted = (code & (format.sign - 1)) << format.dropped();
    let normal = f32::from_bits(shifted + ((127 - format.bias) << 23));
    // With an exponent of 1 put in, and its value taken away again, a subnormal is itself.
    let base = format.smallest_normal();
    let subnormal = f32::from_bits(shifted + base) - f32::from_bits(base);
    let magnitude = if shifted < 1 << 23 { subnormal } else { normal };
    let sign = (code & format.sign) << (31 - format.sign.trailing_zeros());
    f32::from_bits(magnitude.to_bits() | sign)
}

/// With the exponent of infinities and NaNs where the format has it.
#[inline(always)]
fn widen_special(code: u32, format: Format) -> f32 {
    let value = widen(code, format);
    let top = ((format.sign - 1) >> format.mantissa) << format.mantissa;
    let special = if code & top == top { F32_INFINITY } else { 0 };
    f32::from_bits(value.to_bits() | special)
}

/// The exact value of a binary16.
#[inline(always)]
pub(super) fn widen_f16(code: u16) -> f32 {
    widen_special(u32::from(code), F16)
}

/// The exact value of an E5M2.
#[inline(always)]
pub(super) fn widen_e5m2(code: u8) -> f32 {
    widen_special(u32::from(code), E5M2)
}

/// The exact value of an E4M3.
#[inline(always)]
pub(super) fn widen_e4m3(code: u8) -> f32 {
    let value = widen(u32::from(code), E4M3);
    f32::from_bits(value.to_bits() | if code & 0x7f == 0x7f { F32_INFINITY } else { 0 })
}
