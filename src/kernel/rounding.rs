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

    /// What takes an `f32` exponent, shifted into place, to this format's.
    pub(super) const fn rebias(self) -> u32 {
        (127 - self.bias) << self.mantissa
    }

    /// The bits of the smallest normal number as an `f32`.
    pub(super) const fn smallest_normal(self) -> u32 {
        (128 - self.bias) << 23
    }

    /// An `f32` whose last bit weighs as much as this format's smallest subnormal: adding it to a
    /// subnormal makes the adder round at the right place.
    pub(super) const fn subnormal_magic(self) -> u32 {
        (128 - self.bias - self.mantissa + 23) << 23
    }
}

/// Rounds to nearest even; too large becomes `largest`, NaN the canonical one.
#[inline(always)]
pub(super) fn narrow(value: f32, format: Format) -> u32 {
    let bits = value.to_bits();
    let magnitude = bits & F32_MAGNITUDE;
    let odd = (magnitude >> format.dropped()) & 1;
    let half = (1 << (format.dropped() - 1)) - 1;
    let normal = ((magnitude + half + odd) >> format.dropped()).wrapping_sub(format.rebias());
    let magic = format.subnormal_magic();
    let raised = f32::from_bits(magnitude) + f32::from_bits(magic);
    let subnormal = raised.to_bits().wrapping_sub(magic);
    let rounded = if magnitude < format.smallest_normal() { subnormal } else { normal };
    let sign = (bits >> 31) * format.sign;
    if magnitude > F32_INFINITY { format.nan } else { rounded.min(format.largest) | sign }
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

/// The exact value of a binary16.
#[inline(always)]
pub(super) fn widen_f16(code: u16) -> f32 {
    let shifted = u32::from(code & 0x7fff) << 13;
    let exponent = shifted & (0x1f << 23);
    let normal = shifted + ((127 - 15) << 23);
    let special = normal + ((128 - 16) << 23);
    let base = f32::from_bits((127 - 14) << 23);
    let subnormal = f32::from_bits(shifted + ((127 - 14) << 23)) - base;
    let magnitude = if exponent == 0 {
        subnormal.to_bits()
    } else if exponent == 0x1f << 23 {
        special
    } else {
        normal
    };
    f32::from_bits(magnitude | (u32::from(code & 0x8000) << 16))
}

/// The exact value of an E5M2, which is the upper half of a binary16.
#[inline(always)]
pub(super) fn widen_e5m2(code: u8) -> f32 {
    widen_f16(u16::from(code) << 8)
}

/// The exact value of an E4M3: read as a binary16 it is 2^-8 of itself.
#[inline(always)]
pub(super) fn widen_e4m3(code: u8) -> f32 {
    let scaled = (u16::from(code & 0x80) << 8) | (u16::from(code & 0x7f) << 7);
    let value = widen_f16(scaled) * 256.0;
    if code & 0x7f == 0x7f { f32::from_bits(0x7fc0_0000) } else { value }
}
