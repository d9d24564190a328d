//! Reduction operations, and those a program makes.

use std::collections::BTreeMap;
use std::ffi::{c_int, c_void};

use super::dtype::dtype;
use super::handle::{Comm, Inner};
use super::{input, on_comm, output};
use crate::comm::{Operation, lock};
use crate::error::{Code, Error, Result};
use crate::kernel::Scalar;
use crate::types::{Dtype, ReduceOp};

/// The sum. Integers wrap.
pub const UNISONO_SUM: c_int = 0;
/// The product. Integers wrap.
pub const UNISONO_PROD: c_int = 1;
/// The smallest; -0 is below +0 and a NaN wins (IEEE 754-2019 `minimum`).
pub const UNISONO_MIN: c_int = 2;
/// The largest; +0 is above -0 and a NaN wins (IEEE 754-2019 `maximum`).
pub const UNISONO_MAX: c_int = 3;
/// The sum divided by the world size; integers truncate towards zero after a wrapping sum.
pub const UNISONO_AVG: c_int = 4;
/// The sum of each rank's input times that rank's own scalar: not passed itself, but made by
/// `unisono_op_create_pre_mul_sum`.
pub const UNISONO_PRE_MUL_SUM: c_int = 5;
/// Bitwise and.
pub const UNISONO_BAND: c_int = 6;
/// Bitwise or.
pub const UNISONO_BOR: c_int = 7;
/// Bitwise exclusive or.
pub const UNISONO_BXOR: c_int = 8;
/// Logical and of "is not zero"; the result is 0 or 1.
pub const UNISONO_LAND: c_int = 9;
/// Logical or of "is not zero"; the result is 0 or 1.
pub const UNISONO_LOR: c_int = 10;

/// The first number of an operation a program has made.
pub(super) const MADE: c_int = 1000;

/// The operations made on a communicator. Numbers are not used again.
#[derive(Debug, Default)]
pub(crate) struct Ops {
    made: BTreeMap<c_int, (Dtype, Scalar)>,
    count: c_int,
}

/// The operation `number` stands for on elements of `dtype`.
pub(super) fn operation(inner: &Inner, number: c_int, dtype: Dtype) -> Result<Operation> {
    if number >= MADE {
        let ops = lock(&inner.ops);
        let (of, scalar) = ops.made.get(&number).ok_or_else(|| unknown(number))?;
        if *of != dtype {
            let text = format!("operation {number} was made for {of}, and the call is of {dtype}");
            return Err(Error::new(Code::InvalidArgument, text));
        }
        return Ok(Operation { op: ReduceOp::PreMulSum, scalar: *scalar });
    }
    match ReduceOp::from_number(i64::from(number)) {
        Some(ReduceOp::PreMulSum) => {
            let text = "operation pre_mul_sum needs its scalar: unisono_op_create_pre_mul_sum";
            Err(Error::new(Code::InvalidArgument, text))
        }
        Some(op) => Ok(op.into()),
        None => Err(unknown(number)),
    }
}

fn unknown(number: c_int) -> Error {
    Error::new(Code::UnknownValue, format!("operation {number}"))
}

/// Makes an operation that multiplies this rank's input by `*scalar` before summing: one element of
/// `dtype`, or of f32 for the half and 8-bit floats. Every rank makes its own. `*op` (1000 and up)
/// is valid on `comm`, for elements of `dtype`, until destroyed.
///
/// # Safety
/// `scalar` and `op` are valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisono_op_create_pre_mul_sum(
    comm: *mut Comm,
    dtype: c_int,
    scalar: *const c_void,
    op: *mut c_int,
) -> c_int {
    on_comm(comm, |held| {
        let dtype = self::dtype(dtype)?;
        let scalar = input(scalar.cast::<u8>(), "scalar")?;
        let op = output(op, "op")?;
        let mut bytes = [0; 16];
        // SAFETY: the caller promises one element of the accumulator's type, at most 16 bytes.
        unsafe { scalar.copy_to(bytes.as_mut_ptr(), dtype.accumulator().bytes()) };
        let mut ops = lock(&held.ops);
        let number = MADE.checked_add(ops.count).ok_or_else(|| {
            Error::new(Code::Limit, format!("{} operations were made", ops.count))
        })?;
        ops.count += 1;
        ops.made.insert(number, (dtype, Scalar(bytes)));
        // SAFETY: neither NULL nor misaligned; the caller promises that it is valid.
        unsafe { op.write(number) };
        Ok(())
    })
}

/// Ends an operation that `unisono_op_create_pre_mul_sum` has made. Calls under way keep it.
///
/// # Safety
/// `comm` is a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisono_op_destroy(comm: *mut Comm, op: c_int) -> c_int {
    on_comm(comm, |held| lock(&held.ops).made.remove(&op).map(drop).ok_or_else(|| unknown(op)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_constant_is_the_number_of_its_operation() {
        let constants = [
            (ReduceOp::Sum, UNISONO_SUM),
            (ReduceOp::Prod, UNISONO_PROD),
            (ReduceOp::Min, UNISONO_MIN),
            (ReduceOp::Max, UNISONO_MAX),
            (ReduceOp::Avg, UNISONO_AVG),
            (ReduceOp::PreMulSum, UNISONO_PRE_MUL_SUM),
            (ReduceOp::Band, UNISONO_BAND),
            (ReduceOp::Bor, UNISONO_BOR),
            (ReduceOp::Bxor, UNISONO_BXOR),
            (ReduceOp::Land, UNISONO_LAND),
            (ReduceOp::Lor, UNISONO_LOR),
        ];
        assert_eq!(constants.map(|(of, _)| of), ReduceOp::ALL);
        for (of, number) in constants {
            assert_eq!(c_int::from(of.number()), number);
            assert!(number < MADE);
        }
    }
}
