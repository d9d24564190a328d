//! What which version of NCCL has. Facts of its releases: pure tables, no library.
//!
//! Source: `nccl.h` and the sources of the releases from 2.18.1 to 2.30.7.

use std::fmt;

use crate::types::{Dtype, ReduceOp};

/// A version by NCCL's own number for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version(pub(crate) u32);

/// The oldest that is used: the first whose communicators can be split, and begun and aborted
/// without waiting.
pub(super) const OLDEST: Version = Version::new(2, 18, 1);

/// The newest whose configuration is known here in full.
const NEWEST: Version = Version::new(2, 30, 7);

impl Version {
    /// The version of these numbers, 2.9 at least.
    pub(crate) const fn new(major: u32, minor: u32, patch: u32) -> Self {
        Self(major * 10_000 + minor * 100 + patch)
    }

    /// What a configuration for this version says of itself.
    pub(super) fn known(self) -> Self {
        self.min(NEWEST)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Up to 2.8 the major number counts thousands.
        let major = if self.0 < 10_000 { 1_000 } else { 10_000 };
        write!(f, "{}.{}.{}", self.0 / major, self.0 % major / 100, self.0 % 100)
    }
}

/// What not every version has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Feature {
    /// Memory registered with one communicator.
    Register,
    /// Memory of NCCL's own.
    Memory,
    /// Memory registered with all ranks at once.
    Window,
    /// A communicator of those that are left.
    Shrink,
    /// `all_to_all`, `gather` and `scatter` as calls.
    Blocks,
    /// Ends what runs on a communicator, which can then be shrunk.
    Revoke,
    /// Ranks that join a communicator.
    Grow,
    /// Several ranks on one GPU, where `NCCL_MULTI_RANK_GPU_ENABLE` is 1.
    SharedGpu,
}

impl Feature {
    /// Every one, the oldest first.
    pub(crate) const ALL: &'static [Self] = &[
        Self::Register,
        Self::Memory,
        Self::Shrink,
        Self::Window,
        Self::Blocks,
        Self::Revoke,
        Self::Grow,
        Self::SharedGpu,
    ];

    /// The name used in errors and reports.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Register => "registration",
            Self::Memory => "memory",
            Self::Window => "windows",
            Self::Shrink => "shrink",
            Self::Blocks => "all_to_all",
            Self::Revoke => "revoke",
            Self::Grow => "grow",
            Self::SharedGpu => "shared GPUs",
        }
    }

    /// The first release that has it.
    pub(crate) const fn since(self) -> Version {
        match self {
            Self::Register | Self::Memory => Version::new(2, 19, 1),
            Self::Shrink | Self::Window => Version::new(2, 27, 3),
            Self::Blocks => Version::new(2, 28, 3),
            Self::Revoke => Version::new(2, 28, 7),
            Self::Grow => Version::new(2, 29, 2),
            Self::SharedGpu => Version::new(2, 30, 3),
        }
    }

    /// The calls it consists of.
    pub(crate) const fn calls(self) -> &'static [&'static str] {
        match self {
            Self::Register => &["ncclCommRegister", "ncclCommDeregister"],
            Self::Memory => &["ncclMemAlloc", "ncclMemFree"],
            Self::Window => &["ncclCommWindowRegister", "ncclCommWindowDeregister"],
            Self::Shrink => &["ncclCommShrink"],
            Self::Blocks => &["ncclAlltoAll", "ncclGather", "ncclScatter"],
            Self::Revoke => &["ncclCommRevoke"],
            Self::Grow => &["ncclCommGrow", "ncclCommGetUniqueId"],
            Self::SharedGpu => &[],
        }
    }
}

/// NCCL's types of elements, by NCCL's numbers. What is only moved may go as bytes, [`Type::U8`]:
/// NCCL does the same with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Type {
    I8 = 0,
    U8 = 1,
    I32 = 2,
    U32 = 3,
    I64 = 4,
    U64 = 5,
    F16 = 6,
    F32 = 7,
    F64 = 8,
    Bf16 = 9,
    F8E4M3 = 10,
    F8E5M2 = 11,
}

/// NCCL's own operations, by NCCL's numbers. A `pre_mul_sum` is made for a communicator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum BuiltIn {
    Sum = 0,
    Prod = 1,
    Max = 2,
    Min = 3,
    Avg = 4,
}

impl BuiltIn {
    /// NCCL's number.
    pub(crate) const fn number(self) -> u32 {
        self as u32
    }

    /// The one that is `op`.
    pub(crate) const fn of(op: ReduceOp) -> Option<Self> {
        match op {
            ReduceOp::Sum => Some(Self::Sum),
            ReduceOp::Prod => Some(Self::Prod),
            ReduceOp::Min => Some(Self::Min),
            ReduceOp::Max => Some(Self::Max),
            ReduceOp::Avg => Some(Self::Avg),
            _ => None,
        }
    }
}

impl Type {
    /// NCCL's number.
    pub(crate) const fn number(self) -> u32 {
        self as u32
    }

    /// The type that `dtype` is in `version`, if it is one there.
    pub(crate) fn of(dtype: Dtype, version: Version) -> Option<Self> {
        match dtype {
            Dtype::I8 => Some(Self::I8),
            Dtype::U8 => Some(Self::U8),
            Dtype::I32 => Some(Self::I32),
            Dtype::U32 => Some(Self::U32),
            Dtype::I64 => Some(Self::I64),
            Dtype::U64 => Some(Self::U64),
            Dtype::F16 => Some(Self::F16),
            Dtype::Bf16 => Some(Self::Bf16),
            Dtype::F32 => Some(Self::F32),
            Dtype::F64 => Some(Self::F64),
            Dtype::F8E4M3 if version >= EIGHT_BIT_FLOATS => Some(Self::F8E4M3),
            Dtype::F8E5M2 if version >= EIGHT_BIT_FLOATS => Some(Self::F8E5M2),
            _ => None,
        }
    }
}

/// The first release with 8-bit floats.
const EIGHT_BIT_FLOATS: Version = Version::new(2, 24, 3);

/// The type in which `version` reduces elements of `dtype` with `op`; `None` where it does not.
///
/// NCCL has no 16-bit integers, no complex numbers, no bitwise and no logical operations. Its
/// order of operands and its roundings are its own.
pub(crate) fn reduces(version: Version, dtype: Dtype, op: ReduceOp) -> Option<Type> {
    let of_nccl = BuiltIn::of(op).is_some() || op == ReduceOp::PreMulSum;
    Type::of(dtype, version).filter(|_| of_nccl)
}

/// The compute capability (major and minor) that a GPU must have for NCCL to reduce `dtype`.
pub(crate) const fn capability(dtype: Dtype) -> (u32, u32) {
    match dtype {
        Dtype::F8E4M3 | Dtype::F8E5M2 => (9, 0),
        _ => (0, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_written_as_people_write_them() {
        for (code, text) in [(21_801, "2.18.1"), (23_007, "2.30.7"), (2_708, "2.7.8"), (0, "0.0.0")]
        {
            assert_eq!(Version(code).to_string(), text);
        }
        assert_eq!(Version::new(2, 30, 7), Version(23_007));
        assert_eq!([Version(23_203).known(), Version(22_105).known()], [NEWEST, Version(22_105)]);
        assert!(Version(2_708) < OLDEST);
    }

    #[test]
    fn features_come_in_the_order_of_their_releases() {
        for pair in Feature::ALL.windows(2) {
            assert!(pair[0].since() <= pair[1].since(), "{pair:?}");
        }
    }

    /// What NCCL reduces, type by type, from the first version to the last.
    #[test]
    fn only_what_nccl_has_is_reduced() {
        use ReduceOp::{Avg, Max, Min, PreMulSum, Prod, Sum};
        let (old, new) = (OLDEST, NEWEST);
        for &dtype in Dtype::ALL {
            let always = matches!(
                dtype,
                Dtype::I8
                    | Dtype::U8
                    | Dtype::I32
                    | Dtype::U32
                    | Dtype::I64
                    | Dtype::U64
                    | Dtype::F16
                    | Dtype::Bf16
                    | Dtype::F32
                    | Dtype::F64
            );
            let lately = matches!(dtype, Dtype::F8E4M3 | Dtype::F8E5M2);
            for &op in ReduceOp::ALL {
                let known = matches!(op, Sum | Prod | Min | Max | Avg | PreMulSum);
                assert_eq!(reduces(old, dtype, op).is_some(), always && known, "{dtype} {op}");
                let now = (always || lately) && known;
                assert_eq!(reduces(new, dtype, op).is_some(), now, "{dtype} {op}");
            }
            assert_eq!(capability(dtype) > (0, 0), lately, "{dtype}");
        }
        assert_eq!(reduces(Version::new(2, 23, 4), Dtype::F8E5M2, Sum), None);
        assert_eq!(reduces(Version::new(2, 24, 3), Dtype::F8E5M2, Sum), Some(Type::F8E5M2));
    }
}
