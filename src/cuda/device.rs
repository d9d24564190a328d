//! What is known of a device, asked once.

use std::ffi::{CStr, c_char, c_int};
use std::fmt;
use std::sync::Arc;

use super::abi::{self, CUdevice, CUuuid};
use super::{Driver, cu};
use crate::error::{Result, shown};

/// A device, and what the driver says of it.
#[derive(Clone, Debug)]
pub(crate) struct Device {
    driver: Arc<Driver>,
    /// Its number in this process.
    pub(crate) ordinal: u32,
    pub(crate) name: String,
    /// The same in every process of the machine.
    pub(crate) uuid: [u8; 16],
    /// Where it is on the bus: domain, bus, device, function.
    pub(crate) pci: String,
    /// Compute capability, major and minor.
    pub(crate) capability: (u32, u32),
    /// Streaming multiprocessors.
    pub(crate) processors: u32,
    pub(crate) memory_bytes: u64,
    /// Streams can wait for values and write them.
    pub(crate) stream_values: bool,
    /// An address means the same to host and device.
    pub(crate) unified_addressing: bool,
    /// Memory can be had and given back in a stream's order.
    pub(crate) memory_pools: bool,
}

impl Device {
    /// The device of this number.
    ///
    /// # Errors
    /// The driver's own; `BACKEND` where there is no such device.
    pub(crate) fn find(driver: &Arc<Driver>, ordinal: u32) -> Result<Self> {
        let device = handle(driver, ordinal)?;
        let mut uuid = CUuuid { bytes: [0; 16] };
        let mut bytes = 0usize;
        // SAFETY: the places are valid.
        unsafe {
            cu!(driver, cuDeviceGetUuid_v2(&raw mut uuid, device))?;
            cu!(driver, cuDeviceTotalMem_v2(&raw mut bytes, device))?;
        }
        let name = text(|at, room| {
            // SAFETY: there is room for so many bytes.
            unsafe { cu!(driver, cuDeviceGetName(at, room, device)) }
        })?;
        let pci = text(|at, room| {
            // SAFETY: there is room for so many bytes.
            unsafe { cu!(driver, cuDeviceGetPCIBusId(at, room, device)) }
        })?;
        let attribute = |number| {
            let mut value: c_int = 0;
            // SAFETY: the place is valid.
            unsafe { cu!(driver, cuDeviceGetAttribute(&raw mut value, number, device)) }?;
            Ok(u32::try_from(value).unwrap_or(0))
        };
        let flag = |number| attribute(number).map(|value| value != 0);
        Ok(Self {
            driver: driver.clone(),
            ordinal,
            name,
            uuid: uuid.bytes.map(|byte| byte.to_ne_bytes()[0]),
            pci,
            capability: (
                attribute(abi::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                attribute(abi::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ),
            processors: attribute(abi::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            memory_bytes: bytes as u64,
            stream_values: flag(abi::CU_DEVICE_ATTRIBUTE_CAN_USE_64_BIT_STREAM_MEM_OPS)?,
            unified_addressing: flag(abi::CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING)?,
            memory_pools: flag(abi::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED)?,
        })
    }

    /// Whether kernels on this device can be let into the memory of `peer`.
    ///
    /// # Errors
    /// The driver's own.
    pub(crate) fn can_reach(&self, peer: &Self) -> Result<bool> {
        let (one, other) =
            (handle(&self.driver, self.ordinal)?, handle(&self.driver, peer.ordinal)?);
        let mut can = 0;
        // SAFETY: the place is valid.
        unsafe { cu!(self.driver, cuDeviceCanAccessPeer(&raw mut can, one, other)) }?;
        Ok(can != 0)
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.capability;
        write!(
            f,
            "device {}: {}, compute capability {major}.{minor}, {} multiprocessors, {} MiB, at {}",
            self.ordinal,
            self.name,
            self.processors,
            self.memory_bytes >> 20,
            self.pci
        )
    }
}

/// The driver's handle of a device.
pub(super) fn handle(driver: &Driver, ordinal: u32) -> Result<CUdevice> {
    let mut device = 0;
    let number = c_int::try_from(ordinal).unwrap_or(-1);
    // SAFETY: the place is valid.
    unsafe { cu!(driver, cuDeviceGet(&raw mut device, number)) }?;
    Ok(device)
}

/// What the driver writes into a place of that many bytes.
fn text(write: impl FnOnce(*mut c_char, c_int) -> Result<()>) -> Result<String> {
    let mut room = [0u8; 256];
    // The last byte stays 0.
    write(room.as_mut_ptr().cast(), 255)?;
    Ok(CStr::from_bytes_until_nul(&room).map(|text| shown(text.to_bytes())).unwrap_or_default())
}
