//! A GPU with its kernels and no communicator: for those who check and measure the kernels.

use std::sync::Arc;

use crate::backend::gpu::kernels::{Kernels, are_for, without};
use crate::config::Config;
use crate::cuda::{
    Context, Device, DeviceMemory, Driver, Event, PinnedMemory, Stream, Timing, is_lost,
};
use crate::error::{Code, Error, Result};
use crate::kernel::cuda::Launch;
use crate::kernel::cuda::trial::{Fault, Trial};

/// A GPU and a stream on it, in which everything is done.
///
/// Whoever has it gives memory back by dropping it, after the work that uses it.
#[derive(Debug)]
pub struct DeviceKernels {
    facts: Device,
    context: Arc<Context>,
    stream: Stream,
    clock: [Event; 2],
    kernels: Arc<Kernels>,
    /// What trials run in, as large as the largest so far.
    room: Option<(DeviceMemory, PinnedMemory)>,
}

/// Memory of a GPU that is free to all its kernels.
#[derive(Debug)]
pub struct Room(DeviceMemory);

impl Room {
    /// Its first byte, at a multiple of 256.
    #[must_use]
    pub const fn address(&self) -> u64 {
        self.0.address()
    }

    /// How many there are.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.0.bytes()
    }
}

impl DeviceKernels {
    /// The GPU of this number; the driver is the one that `config` names, or the system's.
    ///
    /// # Errors
    /// `UNSUPPORTED` where this build has no kernels, or there is no driver; `INVALID_ARGUMENT`
    /// where there is no such device; CUDA's own.
    pub fn open(config: &Config, number: u32) -> Result<Self> {
        let driver = Driver::open(config.cuda_lib.as_deref())?;
        let count = driver.device_count()?;
        if number >= count {
            let text = format!("there is no device {number}: the CUDA driver has {count}, from 0");
            return Err(Error::new(Code::InvalidArgument, text));
        }
        let facts = Device::find(&driver, number)?;
        if !are_for(facts.capability) {
            return Err(without());
        }
        let context = Context::retain(&driver, number)?;
        let clock = [Event::new(&context, Timing::With)?, Event::new(&context, Timing::With)?];
        let stream = Stream::new(&context)?;
        let kernels = Kernels::of(&context)?;
        Ok(Self { facts, context, stream, clock, kernels, room: None })
    }

    /// What it is, in a line.
    #[must_use]
    pub fn describe(&self) -> String {
        self.facts.to_string()
    }

    /// Its multiprocessors.
    #[must_use]
    pub const fn processors(&self) -> u32 {
        self.facts.processors
    }

    /// Bytes of its memory that nobody has.
    ///
    /// # Errors
    /// CUDA's own.
    pub fn free_bytes(&self) -> Result<u64> {
        self.context.memory().map(|(left, _)| left as u64)
    }

    /// So many bytes of its memory, at least one.
    ///
    /// # Errors
    /// `OUT_OF_MEMORY`; CUDA's own.
    pub fn room(&self, bytes: usize) -> Result<Room> {
        DeviceMemory::new(&self.context, bytes).map(Room)
    }

    /// Copies `bytes` to the beginning of `room`, again and again until it is full.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for no bytes, or more than there is room for; CUDA's own.
    pub fn fill(&self, room: &Room, bytes: &[u8]) -> Result<()> {
        let (at, all) = (room.address(), room.bytes());
        if bytes.is_empty() || bytes.len() > all {
            let text = format!("{} bytes to fill {all} with", bytes.len());
            return Err(Error::new(Code::InvalidArgument, text));
        }
        let _entered = self.context.enter()?;
        // SAFETY: as many bytes are there, and are read before this returns.
        unsafe { self.stream.copy_in(at, bytes.as_ptr(), bytes.len())? };
        let mut done = bytes.len();
        while done < all {
            let more = done.min(all - done);
            // SAFETY: both ranges are inside the room, which lives until the stream is through.
            unsafe { self.stream.copy_across(at + done as u64, at, more)? };
            done += more;
        }
        self.stream.synchronize()
    }

    /// Enqueues a launch.
    ///
    /// # Errors
    /// CUDA's own.
    ///
    /// # Safety
    /// The addresses must be those of memory that lives until the stream has passed it.
    pub unsafe fn launch(&mut self, launch: &Launch) -> Result<()> {
        let _entered = self.context.enter()?;
        // SAFETY: the caller's promise.
        unsafe { self.kernels.launch(launch, &self.stream) }
    }

    /// Enqueues a copy on the device.
    ///
    /// # Errors
    /// CUDA's own.
    ///
    /// # Safety
    /// As for [`DeviceKernels::launch`].
    pub unsafe fn copy(&mut self, target: u64, source: u64, bytes: usize) -> Result<()> {
        let _entered = self.context.enter()?;
        // SAFETY: the caller's promise.
        unsafe { self.stream.copy_across(target, source, bytes) }
    }

    /// Starts the clock where the stream is now.
    ///
    /// # Errors
    /// CUDA's own.
    pub fn start(&self) -> Result<()> {
        let _entered = self.context.enter()?;
        self.stream.record(&self.clock[0])
    }

    /// Waits for all that is in the stream: how long it has taken since the clock was started, in
    /// seconds.
    ///
    /// # Errors
    /// CUDA's own.
    pub fn stop(&self) -> Result<f64> {
        let _entered = self.context.enter()?;
        let [from, to] = &self.clock;
        self.stream.record(to)?;
        to.synchronize()?;
        Ok(f64::from(to.elapsed_ms(from)?) / 1e3)
    }

    /// Runs a trial on so many of the multiprocessors: which kernel that was, and what was wrong.
    ///
    /// # Errors
    /// `OUT_OF_MEMORY`; CUDA's own; those of a launch.
    pub fn run(&mut self, trial: &mut Trial, sms: u32) -> Result<(Launch, Option<Fault>)> {
        let bytes = trial.before().len();
        if self.room.as_ref().is_none_or(|(room, _)| room.bytes() < bytes) {
            // The old one goes first: there may be no place for both.
            self.room = None;
            let most = bytes.next_power_of_two();
            let room = DeviceMemory::new(&self.context, most)?;
            self.room = Some((room, PinnedMemory::new(&self.context, most)?));
        }
        let Some((room, host)) = &self.room else { unreachable!("made above") };
        let (at, host) = (room.address(), host.as_ptr());
        let launch = trial.launch(at, sms)?;
        let _entered = self.context.enter()?;
        // SAFETY: both rooms have so many bytes, and are touched by nobody else until the stream is
        // through: a fault of the driver's ends that, too. The trial's addresses are in the room.
        unsafe {
            host.copy_from_nonoverlapping(trial.before().as_ptr(), bytes);
            self.stream.copy_in(at, host, bytes)?;
            self.kernels.launch(&launch, &self.stream)?;
            self.stream.copy_out(host, at, bytes)?;
        }
        self.stream.synchronize()?;
        // SAFETY: the copy is through.
        let seen = unsafe { std::slice::from_raw_parts(host, bytes) };
        Ok((launch, trial.fault(seen)))
    }

    /// Whether after this error every call on the device fails.
    #[must_use]
    pub fn is_lost(error: &Error) -> bool {
        is_lost(error)
    }
}
