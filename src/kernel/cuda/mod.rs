//! The kernels for CUDA devices: which there are, what they are launched with, their images.
//!
//! The code is in `cuda/`, compiled by `cuda/build.rs` into one image an element type, which holds
//! machine code for several architectures and PTX for later ones. Here is what a caller of the
//! driver needs: a described fold, convert, pack or checksum becomes a checked [`Launch`]. The
//! rules of [`super`] hold bit for bit.
//!
//! Pure data: nothing is loaded, allocated on a device or launched here. Owns nothing. Invariant: a
//! launch has addresses that are not null, aligned, in range and apart from each other; whether
//! memory is there is the caller's to know. Thread rule: none.
//!
//! Not here: the driver, streams, and folds of more than [`FAN`] sources. Those are made of aligned
//! blocks of [`FAN`], each folded into a wide partial with [`super::Stage::Plain`], and then of the
//! partials, with the last stage: that is the tree of rule 1.

mod arguments;
mod bytes;
mod image;
mod launch;
mod name;
#[cfg(test)]
mod tests;
pub mod trial;

pub use arguments::{
    Arguments, BLOCK, Block, ChecksumArguments, ConvertArguments, FAN, FoldArguments, PACK_INLINE,
    PACK_PIECE_BYTES, PackArguments, RoundArguments,
};
pub use bytes::{DeviceChecksum, Move, PackTable, checksum, pack};
pub use image::{ARCHITECTURES, bytes_image, image};
pub use launch::{DeviceConvert, DeviceFold, DeviceRound, DeviceSource, Launch};
pub use name::Kernel;
