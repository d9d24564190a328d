//! What an address is: memory of the host, of a device, or of both.

use std::ffi::c_void;

use super::abi;
use super::{Driver, cu};
use crate::error::Result;

/// Whose memory it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Memory {
    /// The host's, which CUDA knows nothing of.
    Host,
    /// The host's, pinned by the context of this device.
    Pinned {
        /// Its number.
        device: u32,
    },
    /// A device's.
    Device {
        /// Its number.
        ordinal: u32,
    },
    /// It moves to whoever uses it.
    Managed,
}

impl Driver {
    /// What memory `at` is in. Of memory that CUDA does not know it is the host's, as all is where
    /// nobody has initialised the driver.
    ///
    /// # Errors
    /// The driver's own.
    pub(crate) fn recognise(&self, at: *const c_void) -> Result<Memory> {
        let mut asked = [
            abi::CU_POINTER_ATTRIBUTE_MEMORY_TYPE,
            abi::CU_POINTER_ATTRIBUTE_IS_MANAGED,
            abi::CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL,
        ];
        // The driver writes what each attribute's type is, four bytes at most.
        let (mut kind, mut managed, mut ordinal) = (0u32, 0u32, 0i32);
        let mut places: [*mut c_void; 3] =
            [(&raw mut kind).cast(), (&raw mut managed).cast(), (&raw mut ordinal).cast()];
        let address = at.addr() as u64;
        // SAFETY: three attributes and as many places, each as large as its attribute's type.
        let code = unsafe {
            cu!(
                self,
                ask cuPointerGetAttributes(3, asked.as_mut_ptr(), places.as_mut_ptr(), address)
            )
        }?;
        if code == abi::CUDA_ERROR_NOT_INITIALIZED {
            return Ok(Memory::Host);
        }
        self.check(code, "cuPointerGetAttributes")?;
        let ordinal = u32::try_from(ordinal).unwrap_or(0);
        Ok(match kind {
            _ if managed != 0 => Memory::Managed,
            abi::CU_MEMORYTYPE_HOST => Memory::Pinned { device: ordinal },
            abi::CU_MEMORYTYPE_DEVICE => Memory::Device { ordinal },
            abi::CU_MEMORYTYPE_UNIFIED => Memory::Managed,
            _ => Memory::Host,
        })
    }

    /// Address and bytes of the allocation of a device that `at` is in. A context must be current.
    ///
    /// # Errors
    /// The driver's own; `BACKEND` with `CUDA_ERROR_NOT_FOUND` where it is in none.
    pub(crate) fn range(&self, at: u64) -> Result<(u64, usize)> {
        let (mut base, mut bytes) = (0, 0usize);
        // SAFETY: the places are valid.
        unsafe { cu!(self, cuMemGetAddressRange_v2(&raw mut base, &raw mut bytes, at)) }?;
        Ok((base, bytes))
    }
}
