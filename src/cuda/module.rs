//! Kernels: an image loaded into a context, and its functions by name.

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_void};
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};

use super::abi::{CUfunction, CUmodule};
use super::{Context, StreamRef, cu};
use crate::error::{Error, Result};

/// A loaded image. Giving it back waits for the device.
#[derive(Debug)]
pub(crate) struct Module {
    context: Arc<Context>,
    handle: CUmodule,
    functions: Mutex<HashMap<CString, CUfunction>>,
    /// What was loaded: the driver may read it again when a function is first asked for.
    _image: Vec<u64>,
}

// SAFETY: a module may be used on any thread; the driver sees to the rest.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

impl Module {
    /// Loads an image (cubin, fatbin or PTX) into `context`.
    ///
    /// # Errors
    /// The driver's own: it is no image, or none for this device.
    ///
    /// # Safety
    /// The image must be whole: it says itself how long it is.
    pub(crate) unsafe fn load(context: &Arc<Context>, image: &[u8]) -> Result<Arc<Self>> {
        // Aligned, and for PTX with a NUL behind it.
        let mut copy = vec![0u64; image.len() / 8 + 1];
        bytemuck::cast_slice_mut::<u64, u8>(&mut copy)[..image.len()].copy_from_slice(image);
        let mut handle: CUmodule = ptr::null_mut();
        let _here = context.enter_relaxed()?;
        // SAFETY: the place is valid, a context is current, and the image is whole.
        unsafe {
            cu!(context.driver(), cuModuleLoadData(&raw mut handle, copy.as_ptr().cast::<c_void>()))
        }?;
        let functions = Mutex::default();
        Ok(Arc::new(Self { context: context.clone(), handle, functions, _image: copy }))
    }

    /// The kernel of this name.
    ///
    /// # Errors
    /// The driver's own: there is none.
    pub(crate) fn function(self: &Arc<Self>, name: &CStr) -> Result<Function> {
        let mut known = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(&handle) = known.get(name) {
            return Ok(Function { module: self.clone(), handle });
        }
        let mut handle: CUfunction = ptr::null_mut();
        let _here = self.context.enter_relaxed()?;
        // SAFETY: the place is valid, the module loaded, the name ends with a NUL.
        let found = unsafe {
            cu!(
                self.context.driver(),
                cuModuleGetFunction(&raw mut handle, self.handle, name.as_ptr())
            )
        };
        found.map_err(|error| {
            let detail = format!("kernel {}: {}", name.to_string_lossy(), error.detail);
            Error { detail: detail.into_boxed_str(), ..error }
        })?;
        known.insert(name.to_owned(), handle);
        Ok(Function { module: self.clone(), handle })
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        let _here = self.context.enter_relaxed();
        // SAFETY: loaded once, unloaded once; functions keep it.
        let _ = unsafe { cu!(self.context.driver(), cuModuleUnload(self.handle)) };
    }
}

/// A kernel.
#[derive(Clone, Debug)]
pub(crate) struct Function {
    module: Arc<Module>,
    handle: CUfunction,
}

// SAFETY: as for its module.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

impl Function {
    /// Submits the kernel, in `grid` blocks of `block` threads, with one struct as its argument,
    /// which is copied.
    ///
    /// # Errors
    /// The driver's own.
    ///
    /// # Safety
    /// `T` must be laid out as the kernel's parameter is. What the arguments name must be valid
    /// until the kernel is done. The module must outlive that, as must the stream.
    pub(crate) unsafe fn launch<T: Copy>(
        &self,
        stream: &StreamRef,
        (grid, block): (u32, u32),
        arguments: &T,
    ) -> Result<()> {
        let driver = self.module.context.driver();
        let mut places = [ptr::from_ref(arguments).cast_mut().cast::<c_void>()];
        let (places, none) = (places.as_mut_ptr(), ptr::null_mut::<*mut c_void>());
        let (kernel, stream) = (self.handle, stream.handle());
        // SAFETY: promised by the caller; the driver reads the arguments before it returns.
        unsafe {
            cu!(driver, cuLaunchKernel(kernel, grid, 1, 1, block, 1, 1, 0, stream, places, none))
        }
    }
}
