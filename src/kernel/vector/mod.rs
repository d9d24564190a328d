//! Elements written once over the registers of an instruction set, whatever the architecture.

pub(super) mod bf16;
pub(super) mod float;
pub(super) mod integer;
pub(super) mod simd;
