//! Which kernels: the best instruction set of this CPU, a type and an operation.

use std::fmt;

use super::element::{
    Band, Bits, Bor, Bxor, Element, Land, Lor, Max, Min, Ordered, Prod, Set, Sum,
};
use super::portable::Portable;
use super::{Kernels, drive, scalar};
use crate::error::{Code, Error, Result};
use crate::types::{Dtype, ReduceOp};

/// A way to compile the kernels. All give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// One element at a time, in the plainest code: the definition the others are tested against.
    Scalar,
    /// What every CPU of the architecture has.
    Portable,
    /// AVX2 and F16C.
    Avx2,
    /// AVX-512 F, BW, DQ and VL; for the 8-bit floats VBMI where the CPU has it.
    Avx512,
    /// NEON.
    Neon,
}

impl Isa {
    /// Every one, slowest first.
    pub const ALL: &'static [Self] =
        &[Self::Scalar, Self::Portable, Self::Avx2, Self::Avx512, Self::Neon];

    /// Those this CPU can run, slowest first.
    pub fn available() -> impl Iterator<Item = Self> {
        Self::ALL.iter().copied().filter(|isa| isa.is_available())
    }

    /// The fastest this CPU can run.
    #[must_use]
    pub fn best() -> Self {
        Self::available().last().unwrap_or(Self::Portable)
    }

    /// Whether this CPU can run it. The answer is looked up once per process.
    #[must_use]
    pub fn is_available(self) -> bool {
        match self {
            Self::Scalar | Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => super::x86::has_avx2(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => super::x86::has_avx512(),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 | Self::Avx512 => false,
            Self::Neon => cfg!(target_arch = "aarch64"),
        }
    }

    /// The name used in command lines, logs and errors.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Neon => "neon",
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The fastest kernels of this CPU for `dtype` and `op`.
///
/// # Errors
/// [`Code::Unsupported`] where the operation has no meaning on the type.
pub fn select(dtype: Dtype, op: ReduceOp) -> Result<Kernels> {
    select_for(Isa::best(), dtype, op)
}

/// The kernels of one instruction set for `dtype` and `op`.
///
/// # Errors
/// [`Code::Unsupported`] where the operation has no meaning on the type or the CPU lacks the set.
pub fn select_for(isa: Isa, dtype: Dtype, op: ReduceOp) -> Result<Kernels> {
    if !op.supports(dtype) {
        let detail = format!("{op} has no meaning on {dtype}; use another operation or type");
        return Err(Error::new(Code::Unsupported, detail));
    }
    if !isa.is_available() {
        let best = Isa::best();
        let detail = format!("this CPU cannot run {isa} kernels; {best} is its best");
        return Err(Error::new(Code::Unsupported, detail));
    }
    Ok(match isa {
        Isa::Scalar => scalar::kernels(dtype, op),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => of_set::<super::x86::Avx2>(dtype, op),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 if is_f8(dtype) && super::x86::has_avx512_vbmi() => {
            of_f8::<super::x86::Avx512Vbmi>(dtype, op)
        }
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => of_set::<super::x86::Avx512>(dtype, op),
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => of_set::<super::arm::Neon>(dtype, op),
        _ => of_set::<Portable>(dtype, op),
    })
}

#[cfg(target_arch = "x86_64")]
const fn is_f8(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F8E4M3 | Dtype::F8E5M2)
}

fn of_f8<S: Set>(dtype: Dtype, op: ReduceOp) -> Kernels {
    if dtype == Dtype::F8E4M3 { float::<S, S::F8E4M3>(op) } else { float::<S, S::F8E5M2>(op) }
}

fn of_set<S: Set>(dtype: Dtype, op: ReduceOp) -> Kernels {
    match dtype {
        Dtype::I8 => integer::<S, S::I8, S::U8>(op),
        Dtype::U8 => integer::<S, S::U8, S::U8>(op),
        Dtype::I16 => integer::<S, S::I16, S::U16>(op),
        Dtype::U16 => integer::<S, S::U16, S::U16>(op),
        Dtype::I32 => integer::<S, S::I32, S::U32>(op),
        Dtype::U32 => integer::<S, S::U32, S::U32>(op),
        Dtype::I64 => integer::<S, S::I64, S::U64>(op),
        Dtype::U64 => integer::<S, S::U64, S::U64>(op),
        Dtype::F16 => float::<S, S::F16>(op),
        Dtype::Bf16 => float::<S, S::Bf16>(op),
        Dtype::F8E4M3 | Dtype::F8E5M2 => of_f8::<S>(dtype, op),
        Dtype::F32 => float::<S, S::F32>(op),
        Dtype::F64 => float::<S, S::F64>(op),
        Dtype::Complex64 => arithmetic::<S, S::Complex64>(op),
        Dtype::Complex128 => arithmetic::<S, S::Complex128>(op),
    }
}

/// `U` is the unsigned type of the same width: what does not depend on the sign is compiled once.
fn integer<S: Set, E: Bits, U: Bits>(op: ReduceOp) -> Kernels {
    match op {
        ReduceOp::Prod => drive::kernels::<S, U, Prod, false>(),
        ReduceOp::Band => drive::kernels::<S, U, Band, false>(),
        ReduceOp::Bor => drive::kernels::<S, U, Bor, false>(),
        ReduceOp::Bxor => drive::kernels::<S, U, Bxor, false>(),
        ReduceOp::Land => drive::kernels::<S, U, Land, false>(),
        ReduceOp::Lor => drive::kernels::<S, U, Lor, false>(),
        _ => float::<S, E>(op),
    }
}

fn float<S: Set, E: Ordered>(op: ReduceOp) -> Kernels {
    match op {
        ReduceOp::Min => drive::kernels::<S, E, Min, false>(),
        ReduceOp::Max => drive::kernels::<S, E, Max, false>(),
        _ => arithmetic::<S, E>(op),
    }
}

fn arithmetic<S: Set, E: Element>(op: ReduceOp) -> Kernels {
    match op {
        ReduceOp::Sum | ReduceOp::PreMulSum => drive::kernels::<S, E, Sum, false>(),
        ReduceOp::Avg => drive::kernels::<S, E, Sum, true>(),
        ReduceOp::Prod => drive::kernels::<S, E, Prod, false>(),
        _ => unreachable!("{op} is checked to be supported"),
    }
}
