//! Element types.

use std::ffi::c_int;

use super::{guard, output};
use crate::error::{Code, Error, Result};
use crate::types::Dtype;

/// Signed 8-bit integer.
pub const UNISONO_I8: c_int = 0;
/// Unsigned 8-bit integer.
pub const UNISONO_U8: c_int = 1;
/// Signed 16-bit integer.
pub const UNISONO_I16: c_int = 2;
/// Unsigned 16-bit integer.
pub const UNISONO_U16: c_int = 3;
/// Signed 32-bit integer.
pub const UNISONO_I32: c_int = 4;
/// Unsigned 32-bit integer.
pub const UNISONO_U32: c_int = 5;
/// Signed 64-bit integer.
pub const UNISONO_I64: c_int = 6;
/// Unsigned 64-bit integer.
pub const UNISONO_U64: c_int = 7;
/// IEEE 754 binary16.
pub const UNISONO_F16: c_int = 8;
/// bfloat16: the upper half of a binary32.
pub const UNISONO_BF16: c_int = 9;
/// OCP 8-bit float E4M3: no infinities, NaN is 0x7f and 0xff, largest finite 448.
pub const UNISONO_F8E4M3: c_int = 10;
/// OCP 8-bit float E5M2: infinities and NaNs as IEEE 754, largest finite 57344.
pub const UNISONO_F8E5M2: c_int = 11;
/// IEEE 754 binary32.
pub const UNISONO_F32: c_int = 12;
/// IEEE 754 binary64.
pub const UNISONO_F64: c_int = 13;
/// Two binary32: real, then imaginary.
pub const UNISONO_COMPLEX64: c_int = 14;
/// Two binary64: real, then imaginary.
pub const UNISONO_COMPLEX128: c_int = 15;

/// The type with this number.
pub(super) fn dtype(number: c_int) -> Result<Dtype> {
    Dtype::from_number(i64::from(number))
        .ok_or_else(|| Error::new(Code::UnknownValue, format!("element type {number}")))
}

/// The size of one element of a type, in bytes.
///
/// # Safety
/// `bytes` is valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisono_dtype_size(dtype: c_int, bytes: *mut usize) -> c_int {
    guard(|| {
        let size = self::dtype(dtype)?.bytes();
        let at = output(bytes, "bytes")?;
        // SAFETY: neither NULL nor misaligned; the caller promises that it is valid.
        unsafe { at.write(size) };
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_constant_is_the_number_of_its_type() {
        let constants = [
            (Dtype::I8, UNISONO_I8),
            (Dtype::U8, UNISONO_U8),
            (Dtype::I16, UNISONO_I16),
            (Dtype::U16, UNISONO_U16),
            (Dtype::I32, UNISONO_I32),
            (Dtype::U32, UNISONO_U32),
            (Dtype::I64, UNISONO_I64),
            (Dtype::U64, UNISONO_U64),
            (Dtype::F16, UNISONO_F16),
            (Dtype::Bf16, UNISONO_BF16),
            (Dtype::F8E4M3, UNISONO_F8E4M3),
            (Dtype::F8E5M2, UNISONO_F8E5M2),
            (Dtype::F32, UNISONO_F32),
            (Dtype::F64, UNISONO_F64),
            (Dtype::Complex64, UNISONO_COMPLEX64),
            (Dtype::Complex128, UNISONO_COMPLEX128),
        ];
        assert_eq!(constants.map(|(of, _)| of), Dtype::ALL);
        for (of, number) in constants {
            assert_eq!(c_int::from(of.number()), number);
        }
    }
}
