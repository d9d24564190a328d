//! Which kernels there are, as `cuda/kernels.cu` names them.

use std::ffi::CString;

use super::image::{bytes_image, image};
use crate::types::{Class, Dtype, ReduceOp};

/// One kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kernel {
    /// Folds `fan` sources exactly if that is 2, else up to so many.
    Fold {
        /// The element; unsigned where the sign does not matter.
        dtype: Dtype,
        /// The operation; an average is a sum.
        op: ReduceOp,
        /// 2, 4 or 16.
        fan: u8,
        /// Some operand is in wide form.
        mixed: bool,
    },
    /// Changes form and applies a stage.
    Convert(Dtype),
    /// Rounds wide numbers at random.
    Round(Dtype),
    /// Copies blocks.
    Pack,
    /// Sums up bytes.
    Checksum,
}

impl Kernel {
    /// Every kernel.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let mut all = vec![Self::Pack, Self::Checksum];
        for &dtype in Dtype::ALL {
            let small = is_small(dtype);
            if element(dtype, ReduceOp::Sum) == dtype {
                all.push(Self::Convert(dtype));
            }
            if small {
                all.push(Self::Round(dtype));
            }
            for &op in ReduceOp::ALL.iter().filter(|op| op.supports(dtype)) {
                if op == ReduceOp::Avg || element(dtype, op) != dtype {
                    continue;
                }
                for fan in [2, 4, 16] {
                    for mixed in [false, true] {
                        if (fan > 2 || has_two(op)) && (small || !mixed) {
                            all.push(Self::Fold { dtype, op, fan, mixed });
                        }
                    }
                }
            }
        }
        all
    }

    /// The kernel that folds `sources` elements of `dtype`; `fused` says that `pre_mul_sum` has
    /// factors.
    pub(super) fn fold(
        dtype: Dtype,
        op: ReduceOp,
        sources: usize,
        mixed: bool,
        fused: bool,
    ) -> Self {
        let op = match op {
            ReduceOp::Avg => ReduceOp::Sum,
            ReduceOp::PreMulSum if !fused => ReduceOp::Sum,
            other => other,
        };
        let fan = match sources {
            2 if has_two(op) => 2,
            0..=4 => 4,
            _ => 16,
        };
        Self::Fold { dtype: element(dtype, op), op, fan, mixed }
    }

    /// The name by which the driver finds it in its image.
    #[must_use]
    pub fn name(self) -> CString {
        let name = match self {
            Self::Fold { dtype, op, fan, mixed } => {
                format!("unisono_fold_{dtype}_{op}_{fan}{}", if mixed { "_mixed" } else { "" })
            }
            Self::Convert(dtype) => format!("unisono_convert_{dtype}"),
            Self::Round(dtype) => format!("unisono_round_{dtype}"),
            Self::Pack => "unisono_pack".to_owned(),
            Self::Checksum => "unisono_checksum".to_owned(),
        };
        CString::new(name).expect("names hold no NUL")
    }

    /// The type whose image has it; `None` for those of bytes.
    #[must_use]
    pub fn dtype(self) -> Option<Dtype> {
        match self {
            Self::Fold { dtype, .. } | Self::Convert(dtype) | Self::Round(dtype) => Some(dtype),
            Self::Pack | Self::Checksum => None,
        }
    }

    /// The image it is in; `None` where the build has made none.
    #[must_use]
    pub fn image(self) -> Option<&'static [u8]> {
        match self {
            Self::Fold { dtype, .. } | Self::Convert(dtype) | Self::Round(dtype) => image(dtype),
            Self::Pack | Self::Checksum => bytes_image(),
        }
    }

    /// Blocks of it that fit a multiprocessor at once: what bounds its registers.
    pub(super) const fn resident(self) -> u32 {
        match self {
            Self::Fold { fan: 16, .. } => 2,
            _ => 4,
        }
    }
}

/// Whether the type's accumulator is another one.
pub(super) fn is_small(dtype: Dtype) -> bool {
    dtype.accumulator() != dtype
}

/// Whether the operation has kernels for exactly two sources.
const fn has_two(op: ReduceOp) -> bool {
    matches!(op, ReduceOp::Sum | ReduceOp::PreMulSum)
}

/// The type whose kernels do `op` on `dtype`: what does not depend on the sign is compiled once.
pub(super) const fn element(dtype: Dtype, op: ReduceOp) -> Dtype {
    let ordered = matches!(op, ReduceOp::Min | ReduceOp::Max);
    if ordered || !matches!(dtype.class(), Class::Integer) {
        return dtype;
    }
    match dtype.bytes() {
        1 => Dtype::U8,
        2 => Dtype::U16,
        4 => Dtype::U32,
        _ => Dtype::U64,
    }
}
