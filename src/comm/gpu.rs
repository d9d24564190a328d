//! The GPUs that communicators of this process may find.

use crate::config::Config;
use crate::error::Result;

/// The CUDA driver of this process in a line, and each of its devices in one more. The driver is
/// loaded and initialised for that.
///
/// # Errors
/// `UNSUPPORTED` says why there is none; `BACKEND` what the driver says.
pub fn cuda(config: &Config) -> Result<Vec<String>> {
    crate::cuda::describe(config.cuda_lib.as_deref())
}
