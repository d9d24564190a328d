//! 64-bit ARM: NEON, which every such CPU has. The 8-bit floats are left to the compiler.
//!
//! Tests run elsewhere under an emulator:
//!
//! ```text
//! rustup target add aarch64-unknown-linux-gnu
//! apt-get install gcc-aarch64-linux-gnu qemu-user
//! export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
//! export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER='qemu-aarch64 -L /usr/aarch64-linux-gnu'
//! cargo test --release --target aarch64-unknown-linux-gnu --lib kernel
//! ```

mod neon;

use super::element::{Element, Op, Set};
use super::pass::{self, Pass};
use super::portable::Portable;
use super::vector::{bf16, float, integer};
use neon::NeonRegisters;

/// NEON.
#[derive(Debug)]
pub(super) enum Neon {}

impl Set for Neon {
    type I8 = integer::I8<NeonRegisters>;
    type U8 = integer::U8<NeonRegisters>;
    type I16 = integer::I16<NeonRegisters>;
    type U16 = integer::U16<NeonRegisters>;
    type I32 = integer::I32<NeonRegisters>;
    type U32 = integer::U32<NeonRegisters>;
    type I64 = integer::I64<NeonRegisters>;
    type U64 = integer::U64<NeonRegisters>;
    type F16 = float::F16<NeonRegisters>;
    type Bf16 = bf16::Bf16<NeonRegisters>;
    type F8E4M3 = <Portable as Set>::F8E4M3;
    type F8E5M2 = <Portable as Set>::F8E5M2;
    type F32 = float::F32<NeonRegisters>;
    type F64 = float::F64<NeonRegisters>;
    type Complex64 = float::Complex64<NeonRegisters>;
    type Complex128 = float::Complex128<NeonRegisters>;

    unsafe fn run<E: Element, O: Op<E>>(pass: &Pass<'_>) {
        // SAFETY: passed on; every CPU of the architecture has the instructions.
        unsafe { pass::body::<E, O>(pass) };
    }
}
