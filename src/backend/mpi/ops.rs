//! Operations of our own, which MPI calls to combine two ranks' elements.
//!
//! `min` and `max` of floats let a NaN win and tell zeros apart, a product of complex numbers has
//! no special rules for infinities, and sums of small integers wrap (those of Open MPI 4 and 5
//! saturate, where the CPU has AVX); MPI promises none of that. All are our kernels: two inputs,
//! finished, so that a NaN is the canonical one. They commute, and no order changes their bits
//! (products apart, which only the deterministic mode orders).

use std::ffi::{c_int, c_void};

use crate::error::Result;
use crate::kernel::{self, Fold, Form, Source, Stage};
use crate::mpi::{Handle, Library, UserFunction};
use crate::types::{Dtype, ReduceOp};

macro_rules! own {
    ($($dtype:ident $op:ident,)+) => {
        &[$((
            Dtype::$dtype,
            ReduceOp::$op,
            combine::<{ Dtype::$dtype.number() }, { ReduceOp::$op.number() }>,
        ),)+]
    };
}

/// The operations that MPI does not have as we mean them.
const OWN: &[(Dtype, ReduceOp, UserFunction)] = own! {
    I8 Sum, U8 Sum, I16 Sum, U16 Sum,
    F16 Min, F16 Max, Bf16 Min, Bf16 Max, F8E4M3 Min, F8E4M3 Max, F8E5M2 Min, F8E5M2 Max,
    F32 Min, F32 Max, F64 Min, F64 Max,
    Complex64 Prod, Complex128 Prod,
};

/// MPI's handles for them.
#[derive(Debug)]
pub(super) struct Ops(Vec<Handle>);

impl Ops {
    /// Makes all of them.
    ///
    /// # Errors
    /// MPI's own.
    pub(super) fn new(library: &Library) -> Result<Self> {
        let mut made = Self(Vec::with_capacity(OWN.len()));
        for (_, _, function) in OWN {
            let mut op = Handle::NONE;
            library.check(library.api().op_create(*function, true, &mut op), "MPI_Op_create")?;
            made.0.push(op);
        }
        Ok(made)
    }

    /// The own operation for `op` on `dtype`, where there is one.
    #[inline]
    pub(super) fn of(&self, dtype: Dtype, op: ReduceOp) -> Option<Handle> {
        let op = match op {
            ReduceOp::Avg | ReduceOp::PreMulSum => ReduceOp::Sum,
            other => other,
        };
        let found = OWN.iter().position(|(d, o, _)| (*d, *o) == (dtype, op));
        found.map(|index| self.0[index])
    }

    /// Gives them back to MPI, which must still run.
    pub(super) fn free(&mut self, library: &Library) {
        for op in self.0.drain(..) {
            // What cannot be given back stays with MPI.
            library.api().op_free(op);
        }
    }
}

/// `inout[i] = input[i] op inout[i]` for `*len` elements, as MPI calls it.
///
/// # Safety
/// Both must be valid for `*len` elements, and apart.
unsafe extern "C" fn combine<const DTYPE: u8, const OP: u8>(
    input: *mut c_void,
    inout: *mut c_void,
    len: *mut c_int,
    _datatype: *mut c_void,
) {
    // SAFETY: MPI gives a valid length.
    let count = usize::try_from(unsafe { *len }).unwrap_or(0);
    let dtype = Dtype::from_number(i64::from(DTYPE));
    let op = ReduceOp::from_number(i64::from(OP));
    let (Some(dtype), Some(op)) = (dtype, op) else { return };
    // Every pair of `OWN` has kernels.
    let Ok(kernels) = kernel::select(dtype, op) else { return };
    let source = |at: *mut c_void| Source { at: at.cast_const().cast(), form: Form::Native };
    let fold = Fold {
        sources: &[source(input), source(inout)],
        targets: &[inout.cast()],
        target_form: Form::Native,
        count,
        stage: Stage::Finish { ranks: 1 },
        streaming: 0,
    };
    // SAFETY: the caller's promise; a target may be one of the sources.
    unsafe { (kernels.fold)(&fold) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nan_wins_and_zeros_are_told_apart() {
        let mut input = [f32::NAN, -0.0, 3.0];
        let mut inout = [1.0f32, 0.0, 2.0];
        let mut len = 3;
        let function = OWN.iter().find(|(d, o, _)| (*d, *o) == (Dtype::F32, ReduceOp::Min));
        let (_, _, function) = function.expect("it is our own");
        // SAFETY: three elements each.
        unsafe {
            function(
                input.as_mut_ptr().cast(),
                inout.as_mut_ptr().cast(),
                &raw mut len,
                std::ptr::null_mut(),
            );
        }
        assert_eq!(inout.map(f32::to_bits), [0x7fc0_0000, 0x8000_0000, 2f32.to_bits()]);
    }

    #[test]
    fn every_own_operation_has_kernels() {
        for (dtype, op, _) in OWN {
            assert!(kernel::select(*dtype, *op).is_ok(), "{op} of {dtype}");
        }
    }
}
