//! Memory and streams of a communicator's GPU, for those who check and measure.

use std::sync::{Arc, Mutex};

use crate::comm::device::Gpu;
use crate::comm::table::lock;
use crate::cuda::{self as driver, Context, Event, Stream, Timing};
use crate::error::{Code, Error, Result};

/// Memory of a communicator's GPU.
#[derive(Debug)]
pub struct DeviceMemory {
    /// There until it goes back to the pool.
    memory: Option<driver::DeviceMemory>,
    stream: Arc<Stream>,
    pool: Arc<Pool>,
}

/// Memory that nobody uses. CUDA waits for all of a context before it takes memory back: for calls
/// of other ranks of this process, too, which may wait for this one.
pub(super) type Pool = Mutex<Vec<driver::DeviceMemory>>;

/// The least that CUDA is asked for.
const BLOCK_BYTES: usize = 64 << 10;

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        lock(&self.pool).extend(self.memory.take());
    }
}

impl DeviceMemory {
    pub(crate) fn new(gpu: &Gpu, bytes: usize) -> Result<Self> {
        let bytes = bytes.max(BLOCK_BYTES).next_power_of_two();
        let mut free = lock(&gpu.pool);
        let memory = match free.iter().position(|memory| memory.bytes() == bytes) {
            Some(index) => free.swap_remove(index),
            None => driver::DeviceMemory::new(&gpu.context, bytes)?,
        };
        let (stream, pool) = (gpu.copies.clone(), gpu.pool.clone());
        Ok(Self { memory: Some(memory), stream, pool })
    }

    fn fits(&self, bytes: usize) -> Result<()> {
        let all = self.memory.as_ref().map_or(0, driver::DeviceMemory::bytes);
        if bytes <= all {
            return Ok(());
        }
        let text = format!("{bytes} bytes, and the memory has {all}");
        Err(Error::new(Code::InvalidArgument, text))
    }

    fn address(&self) -> u64 {
        self.memory.as_ref().map_or(0, driver::DeviceMemory::address)
    }

    /// Its first byte, for the device.
    #[must_use]
    pub fn at(&self) -> *mut u8 {
        self.address() as *mut u8
    }

    /// Copies `bytes` to its beginning.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` when they are too many; CUDA's own.
    pub fn write(&self, bytes: &[u8]) -> Result<()> {
        self.fits(bytes.len())?;
        let _entered = self.stream.context().enter()?;
        // SAFETY: as many bytes are there, and are read before this returns.
        unsafe { self.stream.copy_in(self.address(), bytes.as_ptr(), bytes.len())? };
        self.stream.synchronize()
    }

    /// Copies its beginning to `bytes`.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` when they are too many; CUDA's own.
    pub fn read(&self, bytes: &mut [u8]) -> Result<()> {
        self.fits(bytes.len())?;
        let _entered = self.stream.context().enter()?;
        // SAFETY: as many bytes are there, and are written before this returns.
        unsafe { self.stream.copy_out(bytes.as_mut_ptr(), self.address(), bytes.len())? };
        self.stream.synchronize()
    }
}

/// A stream of a communicator's GPU, with a clock in it.
#[derive(Debug)]
pub struct DeviceStream {
    context: Arc<Context>,
    stream: Stream,
    from: Event,
    to: Event,
}

impl DeviceStream {
    pub(crate) fn new(gpu: &Gpu) -> Result<Self> {
        let context = gpu.context.clone();
        let (from, to) = (Event::new(&context, Timing::With)?, Event::new(&context, Timing::With)?);
        Ok(Self { stream: Stream::new(&context)?, context, from, to })
    }

    /// Its handle, for [`crate::Communicator::set_stream`].
    #[must_use]
    pub fn raw(&self) -> usize {
        self.stream.raw() as usize
    }

    /// Starts the clock where the stream is now.
    ///
    /// # Errors
    /// CUDA's own.
    pub fn start(&self) -> Result<()> {
        let _entered = self.context.enter()?;
        self.stream.record(&self.from)
    }

    /// Waits for all that is in the stream: how long it has taken since the clock was started, in
    /// seconds.
    ///
    /// # Errors
    /// CUDA's own.
    pub fn stop(&self) -> Result<f64> {
        let _entered = self.context.enter()?;
        self.stream.record(&self.to)?;
        self.to.synchronize()?;
        Ok(f64::from(self.to.elapsed_ms(&self.from)?) / 1e3)
    }
}
