//! Our kernels on a device: loaded whole, and once for all communicators of the process there.
//!
//! To load a kernel CUDA may wait for all that is in the context: for a stream, too, that waits for
//! a call which wants the kernel (CUDA C++ Programming Guide, lazy loading). So every function is
//! there before a communicator takes its first call.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};

use crate::cuda::{Context, Function, Module, StreamRef};
use crate::error::{Code, Error, Result};
use crate::kernel::cuda::{Arguments, Kernel, Launch, bytes_image};

/// Every kernel, in one context.
#[derive(Debug)]
pub(crate) struct Kernels(HashMap<Kernel, Function>);

/// What is loaded, by contexts.
static LOADED: Mutex<Vec<(usize, Weak<Kernels>)>> = Mutex::new(Vec::new());

impl Kernels {
    /// Those of `context`.
    ///
    /// # Errors
    /// `UNSUPPORTED` in a build without kernels; CUDA's own.
    pub(crate) fn of(context: &Arc<Context>) -> Result<Arc<Self>> {
        let key = context.id();
        let mut loaded = LOADED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        loaded.retain(|(_, kernels)| kernels.strong_count() > 0);
        let found = loaded.iter().find(|(of, _)| *of == key);
        if let Some(kernels) = found.and_then(|(_, kernels)| kernels.upgrade()) {
            return Ok(kernels);
        }
        let kernels = Arc::new(Self::load(context)?);
        loaded.push((key, Arc::downgrade(&kernels)));
        Ok(kernels)
    }

    fn load(context: &Arc<Context>) -> Result<Self> {
        let mut modules: HashMap<*const u8, Arc<Module>> = HashMap::new();
        let mut functions = HashMap::new();
        for kernel in Kernel::all() {
            let image = kernel.image().ok_or_else(without)?;
            let module = match modules.get(&image.as_ptr()) {
                Some(module) => module,
                None => {
                    // SAFETY: the build has made it.
                    let module = unsafe { Module::load(context, image)? };
                    modules.entry(image.as_ptr()).or_insert(module)
                }
            };
            functions.insert(kernel, module.function(&kernel.name())?);
        }
        Ok(Self(functions))
    }

    /// Puts a launch into `stream`.
    ///
    /// # Safety
    /// What the arguments name must be valid until the stream has passed it.
    ///
    /// # Errors
    /// CUDA's own.
    pub(crate) unsafe fn launch(&self, launch: &Launch, stream: &StreamRef) -> Result<()> {
        let function = self.0.get(&launch.kernel).ok_or_else(without)?;
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

/// The least compute capability that the images are for.
const CAPABILITY: (u32, u32) = (8, 0);

/// Whether this build has kernels for devices of this compute capability.
pub(crate) fn are_for(capability: (u32, u32)) -> bool {
    bytes_image().is_some() && capability >= CAPABILITY
}

/// Why a call that needs kernels cannot be made.
pub(crate) fn without() -> Error {
    let text = match bytes_image() {
        Some(_) => "the CUDA kernels are for devices of compute capability 8.0 or later",
        None => {
            "this library was built without CUDA kernels, for want of nvcc: install it (PyPI: \
             nvidia-cuda-nvcc and its kin, version 13.0) and build again"
        }
    };
    Error::new(Code::Unsupported, text)
}
