//! Our kernels on a rank's device: images are loaded when they are first needed.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use crate::cuda::{Context, Module, StreamRef};
use crate::error::{Code, Error, Result};
use crate::kernel::cuda::{Arguments, Launch, bytes_image, image};
use crate::types::Dtype;

/// The name of the image with copies.
const BYTES: &str = "bytes";

/// What has been loaded, by the images' names.
#[derive(Debug, Default)]
pub(crate) struct Kernels(HashMap<&'static str, Arc<Module>>);

impl Kernels {
    fn module(&mut self, dtype: Option<Dtype>, context: &Arc<Context>) -> Result<&Arc<Module>> {
        let name = dtype.map_or(BYTES, Dtype::name);
        Ok(match self.0.entry(name) {
            Entry::Occupied(there) => there.into_mut(),
            Entry::Vacant(empty) => {
                let image = dtype.map_or_else(bytes_image, image).ok_or_else(without)?;
                // SAFETY: the build has made it.
                empty.insert(unsafe { Module::load(context, image)? })
            }
        })
    }

    /// Enqueues a launch: of copies, or of a kernel for `dtype`.
    ///
    /// # Safety
    /// What the arguments name must be valid until the stream has passed it.
    ///
    /// # Errors
    /// `UNSUPPORTED` in a build without kernels; CUDA's own.
    pub(crate) unsafe fn launch(
        &mut self,
        launch: &Launch,
        dtype: Option<Dtype>,
        context: &Arc<Context>,
        stream: &StreamRef,
    ) -> Result<()> {
        let module = self.module(dtype, context)?;
        let function = module.function(&launch.kernel.name())?;
        let size = (launch.grid, launch.block);
        // SAFETY: the arguments are the kernel's, as whoever made the launch has checked; the rest
        // is the caller's promise.
        unsafe {
            match &launch.arguments {
                Arguments::Fold(arguments) => function.launch(stream, size, arguments),
                Arguments::Convert(arguments) => function.launch(stream, size, arguments),
                Arguments::Round(arguments) => function.launch(stream, size, arguments),
                Arguments::Pack(arguments) => function.launch(stream, size, arguments),
                Arguments::Checksum(arguments) => function.launch(stream, size, arguments),
            }
        }
    }
}

impl Kernels {
    /// Loads all images: later that could wait for calls which wait for the kernels.
    ///
    /// # Errors
    /// CUDA's own.
    pub(crate) fn load(&mut self, context: &Arc<Context>) -> Result<()> {
        let units = Dtype::ALL.iter().copied().map(Some).chain([None]);
        units.filter(|_| are_built()).try_for_each(|unit| self.module(unit, context).map(drop))
    }
}

/// Whether this build has kernels.
pub(crate) fn are_built() -> bool {
    bytes_image().is_some()
}

/// What a build without kernels says.
pub(crate) fn without() -> Error {
    let text = "this library was built without CUDA kernels, for want of nvcc: install it (PyPI: \
                nvidia-cuda-nvcc and its kin, version 13.0) and build again";
    Error::new(Code::Unsupported, text)
}
