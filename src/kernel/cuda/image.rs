//! The images that the build has made, if it found nvcc.
//!
//! Not here: making them (`cuda/build.rs`) and loading them.

use crate::types::Dtype;

/// Images are read in place, as words.
#[cfg(unisono_cuda_kernels)]
#[repr(align(16))]
struct Aligned<T: ?Sized>(T);

#[cfg(unisono_cuda_kernels)]
include!(concat!(env!("OUT_DIR"), "/cuda_images.rs"));

#[cfg(not(unisono_cuda_kernels))]
const IMAGES: &[(&str, &[u8])] = &[];

/// What the images are for: `sm_90` is machine code, `compute_90` is PTX for later devices. Empty
/// where the build has made none.
#[cfg(not(unisono_cuda_kernels))]
pub const ARCHITECTURES: &[&str] = &[];

/// The image with the kernels of `dtype`, for the driver to load; `None` where the build has made
/// none. The two integers of a size have the same one.
#[must_use]
pub fn image(dtype: Dtype) -> Option<&'static [u8]> {
    of_unit(unit(dtype))
}

/// The image with the kernels of packs and checksums.
#[must_use]
pub fn bytes_image() -> Option<&'static [u8]> {
    of_unit("bytes")
}

fn of_unit(unit: &str) -> Option<&'static [u8]> {
    IMAGES.iter().find(|(name, _)| *name == unit).map(|(_, image)| *image)
}

/// The unit of `cuda/kernels.cu` that has the kernels of `dtype`.
const fn unit(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::U8 => Dtype::I8.name(),
        Dtype::U16 => Dtype::I16.name(),
        Dtype::U32 => Dtype::I32.name(),
        Dtype::U64 => Dtype::I64.name(),
        other => other.name(),
    }
}
