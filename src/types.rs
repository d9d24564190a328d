//! The words every layer shares: ranks, element types, reduction operations, collectives.
//!
//! Owns no state. The numbers given to [`Dtype`], [`ReduceOp`] and [`Collective`] are part of the
//! C ABI and of the wire format: they are never reused and only grow at the end.

use std::fmt;

/// A process (or thread) taking part in a communicator, numbered from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Rank(pub u32);

impl Rank {
    /// The rank as an index into a table of the world's size.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// The rank at `index` of a table of the world's size.
    ///
    /// Panics when `index` does not fit 32 bits; worlds are bounded by [`WORLD_MAX`] long before.
    #[must_use]
    pub fn at(index: usize) -> Self {
        Self(u32::try_from(index).expect("rank index fits u32"))
    }
}

impl fmt::Display for Rank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The largest world a communicator may have. Tables per peer are bounded by it.
pub const WORLD_MAX: u32 = 16_384;

macro_rules! numbered {
    ($(#[$meta:meta])* $name:ident {
        $($(#[$doc:meta])* $variant:ident = $number:literal, $text:literal;)+
    }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum $name { $($(#[$doc])* $variant = $number,)+ }

        impl $name {
            /// Every value, in numeric order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The value with this number, or `None` for a number that means nothing.
            #[must_use]
            pub const fn from_number(number: i64) -> Option<Self> {
                match number { $($number => Some(Self::$variant),)+ _ => None }
            }

            /// The number that stands for this value in the C ABI and on the wire.
            #[must_use]
            pub const fn number(self) -> u8 { self as u8 }

            /// The name used in command lines, logs and errors.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }

            /// The value with this name.
            #[must_use]
            pub fn from_name(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|v| v.name() == name)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.pad(self.name()) }
        }
    };
}

numbered! {
    /// The type of one element.
    Dtype {
        /// Signed 8-bit integer.
        I8 = 0, "i8";
        /// Unsigned 8-bit integer.
        U8 = 1, "u8";
        /// Signed 16-bit integer.
        I16 = 2, "i16";
        /// Unsigned 16-bit integer.
        U16 = 3, "u16";
        /// Signed 32-bit integer.
        I32 = 4, "i32";
        /// Unsigned 32-bit integer.
        U32 = 5, "u32";
        /// Signed 64-bit integer.
        I64 = 6, "i64";
        /// Unsigned 64-bit integer.
        U64 = 7, "u64";
        /// IEEE 754 binary16.
        F16 = 8, "f16";
        /// bfloat16: the upper half of a binary32.
        Bf16 = 9, "bf16";
        /// OCP 8-bit float E4M3: no infinities, NaN is 0x7f and 0xff, largest finite 448.
        F8E4M3 = 10, "f8e4m3";
        /// OCP 8-bit float E5M2: infinities and NaNs as IEEE 754, largest finite 57344.
        F8E5M2 = 11, "f8e5m2";
        /// IEEE 754 binary32.
        F32 = 12, "f32";
        /// IEEE 754 binary64.
        F64 = 13, "f64";
        /// Two binary32: real, then imaginary.
        Complex64 = 14, "complex64";
        /// Two binary64: real, then imaginary.
        Complex128 = 15, "complex128";
    }
}

numbered! {
    /// How contributions are combined.
    ReduceOp {
        /// The sum. Integers wrap.
        Sum = 0, "sum";
        /// The product. Integers wrap.
        Prod = 1, "prod";
        /// The smallest; -0 is below +0 and a NaN wins (IEEE 754-2019 `minimum`).
        Min = 2, "min";
        /// The largest; +0 is above -0 and a NaN wins (IEEE 754-2019 `maximum`).
        Max = 3, "max";
        /// The sum divided by the world size; integers truncate towards zero after a wrapping sum.
        Avg = 4, "avg";
        /// The sum of each rank's input times that rank's own scalar.
        PreMulSum = 5, "pre_mul_sum";
        /// Bitwise and.
        Band = 6, "band";
        /// Bitwise or.
        Bor = 7, "bor";
        /// Bitwise exclusive or.
        Bxor = 8, "bxor";
        /// Logical and of "is not zero"; the result is 0 or 1.
        Land = 9, "land";
        /// Logical or of "is not zero"; the result is 0 or 1.
        Lor = 10, "lor";
    }
}

numbered! {
    /// What a call does.
    Collective {
        /// Every rank gets the reduction of all inputs.
        AllReduce = 0, "all_reduce";
        /// The root gets the reduction of all inputs.
        Reduce = 1, "reduce";
        /// Every rank gets the root's input.
        Broadcast = 2, "broadcast";
        /// Every rank gets every rank's block, in rank order.
        AllGather = 3, "all_gather";
        /// Rank r gets block r of the reduction.
        ReduceScatter = 4, "reduce_scatter";
        /// The root gets every rank's block, in rank order.
        Gather = 5, "gather";
        /// Rank r gets block r of the root's input.
        Scatter = 6, "scatter";
        /// Rank r's block s goes to rank s as its block r.
        AllToAll = 7, "all_to_all";
        /// [`Collective::AllGather`] with a count and displacement per rank.
        AllGatherV = 8, "all_gather_v";
        /// [`Collective::ReduceScatter`] with a count per rank.
        ReduceScatterV = 9, "reduce_scatter_v";
        /// [`Collective::Gather`] with a count and displacement per rank.
        GatherV = 10, "gather_v";
        /// [`Collective::Scatter`] with a count and displacement per rank.
        ScatterV = 11, "scatter_v";
        /// [`Collective::AllToAll`] with counts and displacements per rank.
        AllToAllV = 12, "all_to_all_v";
        /// No rank leaves before all have come.
        Barrier = 13, "barrier";
        /// One message to one peer.
        Send = 14, "send";
        /// One message from one peer.
        Recv = 15, "recv";
    }
}

/// The families that share rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Two's complement integers.
    Integer,
    /// Real floating point.
    Float,
    /// Pairs of floats.
    Complex,
}

impl Dtype {
    /// Bytes of one element. A power of two, at most 16.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::I8 | Self::U8 | Self::F8E4M3 | Self::F8E5M2 => 1,
            Self::I16 | Self::U16 | Self::F16 | Self::Bf16 => 2,
            Self::I32 | Self::U32 | Self::F32 => 4,
            Self::I64 | Self::U64 | Self::F64 | Self::Complex64 => 8,
            Self::Complex128 => 16,
        }
    }

    /// Alignment a caller's buffer must have, in bytes.
    #[must_use]
    pub const fn align(self) -> usize {
        match self {
            Self::Complex64 => 4,
            Self::Complex128 => 8,
            other => other.bytes(),
        }
    }

    /// The type partial results are held in: `F32` for the half and 8-bit floats, else the type
    /// itself.
    #[must_use]
    pub const fn accumulator(self) -> Self {
        match self {
            Self::F16 | Self::Bf16 | Self::F8E4M3 | Self::F8E5M2 => Self::F32,
            other => other,
        }
    }

    /// The family this type belongs to.
    #[must_use]
    pub const fn class(self) -> Class {
        match self {
            Self::I8
            | Self::U8
            | Self::I16
            | Self::U16
            | Self::I32
            | Self::U32
            | Self::I64
            | Self::U64 => Class::Integer,
            Self::Complex64 | Self::Complex128 => Class::Complex,
            _ => Class::Float,
        }
    }
}

impl ReduceOp {
    /// Whether the operation means something on `dtype`.
    ///
    /// Complex numbers have no order; bitwise and logical operations are for integers.
    #[must_use]
    pub const fn supports(self, dtype: Dtype) -> bool {
        match self {
            Self::Sum | Self::Prod | Self::Avg | Self::PreMulSum => true,
            Self::Min | Self::Max => !matches!(dtype.class(), Class::Complex),
            Self::Band | Self::Bor | Self::Bxor | Self::Land | Self::Lor => {
                matches!(dtype.class(), Class::Integer)
            }
        }
    }
}

impl Collective {
    /// Whether the call combines contributions, and so has a [`ReduceOp`].
    #[must_use]
    pub const fn reduces(self) -> bool {
        matches!(self, Self::AllReduce | Self::Reduce | Self::ReduceScatter | Self::ReduceScatterV)
    }

    /// Whether the call has a root rank.
    #[must_use]
    pub const fn rooted(self) -> bool {
        matches!(
            self,
            Self::Reduce
                | Self::Broadcast
                | Self::Gather
                | Self::Scatter
                | Self::GatherV
                | Self::ScatterV
        )
    }

    /// Whether counts differ per rank.
    #[must_use]
    pub const fn ragged(self) -> bool {
        matches!(
            self,
            Self::AllGatherV
                | Self::ReduceScatterV
                | Self::GatherV
                | Self::ScatterV
                | Self::AllToAllV
        )
    }

    /// Whether the call involves one peer only.
    #[must_use]
    pub const fn point_to_point(self) -> bool {
        matches!(self, Self::Send | Self::Recv)
    }
}
