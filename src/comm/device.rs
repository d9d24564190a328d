//! The GPU of a rank: which it is, and which of a call's buffers are in its memory.
//!
//! A program that does not use CUDA has none, unless its settings name one: then nothing here costs
//! anything. Recognising a buffer is one question to the driver, asked once for calls that repeat.

use std::ffi::c_void;
use std::sync::{Arc, Mutex};

use crate::backend::gpu::{Reach, are_for};
use crate::call::{Call, Place};
use crate::comm::call::Seat;
use crate::comm::card::GpuCard;
use crate::comm::device_memory::Pool;
use crate::comm::nccl::Found;
use crate::comm::table::lock;
use crate::config::{Config, Device, Family};
use crate::cuda::{
    self as driver, Context, Driver, HANDLE_BYTES, Imported, Memory, Stream, StreamRef,
};
use crate::error::{Code, Error, Result};
use crate::nccl::Library;
use crate::sys::random;

/// CUDA's handle for the calling thread's own default stream.
const PER_THREAD: usize = 2;

/// The CUDA driver of this process in a line, and each of its devices in one more. The driver is
/// loaded and initialised for that.
///
/// # Errors
/// `UNSUPPORTED` says why there is none; `BACKEND` what the driver says.
pub fn cuda(config: &Config) -> Result<Vec<String>> {
    crate::cuda::describe(config.cuda_lib.as_deref())
}

/// A rank's GPU.
#[derive(Debug)]
pub(crate) struct Gpu {
    pub(super) context: Arc<Context>,
    facts: driver::Device,
    /// The NCCL that may serve it, or why there is none.
    nccl: Result<Arc<Library>>,
    /// Where the program's own copies are made, if it makes any by way of this library.
    pub(super) copies: Arc<Stream>,
    pub(super) pool: Arc<Pool>,
    /// The stream that calls have their place in, if one was set.
    stream: Mutex<Option<usize>>,
    /// A number of this process's.
    process: u64,
}

impl Gpu {
    /// The GPU that `config` means for a rank with the number `local` on its host, where that is
    /// known; `None` where it means none.
    ///
    /// # Errors
    /// `UNSUPPORTED` where there is no driver, `INVALID_ARGUMENT` where there is no such device;
    /// CUDA's own.
    pub(crate) fn of(config: &Config, local: Option<u32>) -> Result<Option<Self>> {
        let (driver, number) = match config.device {
            Device::None => return Ok(None),
            Device::LocalRank => {
                let driver = Driver::open(config.cuda_lib.as_deref())?;
                let number = counted_around(local, driver.device_count()?)?;
                (driver, number)
            }
            Device::Number(number) => (Driver::open(config.cuda_lib.as_deref())?, number),
            Device::Auto => {
                let Some(driver) = Driver::of_process() else { return Ok(None) };
                let Some(number) = driver.current_device()? else { return Ok(None) };
                (driver, number)
            }
        };
        let facts = driver::Device::find(&driver, number)?;
        let context = Context::retain(&driver, number)?;
        let nccl = match config.backend {
            Family::Auto | Family::Nccl => Library::open(config.nccl_lib.as_deref()),
            _ => Err(Error::new(Code::Unsupported, "another backend was asked for")),
        };
        let copies = Arc::new(Stream::new(&context)?);
        Ok(Some(Self {
            context,
            facts,
            nccl,
            copies,
            pool: Arc::default(),
            stream: Mutex::new(None),
            process: process()?,
        }))
    }

    /// The GPUs of `world` threads of this process; nobody's where `config` means none.
    ///
    /// # Errors
    /// As [`Gpu::of`].
    pub(crate) fn of_threads(config: &Config, world: u32) -> Result<Vec<Self>> {
        let Some(first) = Self::of(config, Some(0))? else { return Ok(Vec::new()) };
        let mut all = vec![first];
        for rank in 1..world {
            let gpu = match config.device {
                Device::LocalRank => Self::of(config, Some(rank))?,
                _ => Some(all[0].another()?),
            };
            all.extend(gpu);
        }
        Ok(all)
    }

    /// How they reach each other's memory, all of them of this process; `None` where they do not.
    pub(crate) fn join(all: &[Self]) -> Option<Reach> {
        let cards: Vec<GpuCard> = all.iter().map(Self::card).collect();
        let places: Vec<_> = cards.iter().map(GpuCard::place).collect();
        let joined = |gpu: &Self| gpu.reaches(&cards) && cards.iter().all(|card| gpu.enters(card));
        (!all.is_empty() && all.iter().all(joined)).then(|| Reach::of(&places))
    }

    /// The same for another rank of this process.
    fn another(&self) -> Result<Self> {
        Ok(Self {
            context: self.context.clone(),
            facts: self.facts.clone(),
            nccl: self.nccl.clone(),
            copies: Arc::new(Stream::new(&self.context)?),
            pool: Arc::default(),
            stream: Mutex::new(None),
            process: self.process,
        })
    }

    /// What this rank says of it.
    pub(crate) fn card(&self) -> GpuCard {
        let driver::Device { uuid, capability, .. } = self.facts;
        let nccl = Found::of(self.nccl.as_deref().ok());
        GpuCard { uuid, process: self.process, capability, folds: are_for(capability), nccl }
    }

    /// The device of this process with that id.
    fn find(&self, uuid: &[u8; 16]) -> Option<driver::Device> {
        let driver = self.context.driver();
        let devices = 0..driver.device_count().ok()?;
        let mut found = devices.filter_map(|number| driver::Device::find(driver, number).ok());
        found.find(|device| device.uuid == *uuid)
    }

    /// Whether it has kernels, and may reach the memory of all of these.
    pub(crate) fn reaches(&self, all: &[GpuCard]) -> bool {
        let reaches = |card: &GpuCard| {
            card.uuid == self.facts.uuid
                || self
                    .find(&card.uuid)
                    .is_some_and(|peer| self.facts.can_reach(&peer).unwrap_or(false))
        };
        are_for(self.facts.capability) && all.iter().all(reaches)
    }

    /// Lets kernels of this device into the memory of one that another rank of this process has;
    /// whether they get there.
    fn enters(&self, card: &GpuCard) -> bool {
        if card.uuid == self.facts.uuid {
            return true;
        }
        let Some(peer) = self.find(&card.uuid) else { return false };
        let peer = Context::retain(self.context.driver(), peer.ordinal);
        peer.and_then(|peer| self.context.reach(&peer)).is_ok()
    }

    /// Memory that other ranks try to find, and its name between processes.
    ///
    /// # Errors
    /// CUDA's own.
    pub(crate) fn sample(&self) -> Result<(driver::DeviceMemory, [u8; HANDLE_BYTES])> {
        let memory = driver::DeviceMemory::new(&self.context, 1)?;
        let shared = self.context.share(memory.address())?;
        Ok((memory, shared.handle))
    }

    /// Whether it finds the memory that all of these have named.
    pub(crate) fn finds(&self, all: &[GpuCard], names: &[Vec<u8>]) -> bool {
        let finds = |(card, name): (&GpuCard, &Vec<u8>)| {
            let Ok(name) = <&[u8; HANDLE_BYTES]>::try_from(&name[..]) else { return false };
            if card.process == self.process {
                return self.enters(card);
            }
            Imported::open(&self.context, name).is_ok()
        };
        all.iter().zip(names).all(finds)
    }

    /// The setting that means this one.
    pub(crate) fn device(&self) -> Device {
        Device::Number(self.context.ordinal())
    }

    /// What it is, in a few words.
    pub(crate) fn describe(&self) -> String {
        format!("{} (device {})", self.facts.name, self.facts.ordinal)
    }

    pub(crate) fn nccl(&self) -> &Result<Arc<Library>> {
        &self.nccl
    }

    pub(crate) fn facts(&self) -> &driver::Device {
        &self.facts
    }

    pub(crate) fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Gives calls on device memory their place in `stream`; with `None` they wait for their end.
    ///
    /// # Safety
    /// It must be a stream's handle, and the stream must stay until another takes its place.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for a stream of another device, or none.
    pub(crate) unsafe fn set_stream(&self, stream: Option<usize>) -> Result<()> {
        // SAFETY: the caller's promise.
        let of = |stream| unsafe { StreamRef::of(self.context.driver(), stream as *mut c_void) };
        let stream = stream.map(of);
        if let Some(stream) = &stream {
            let _context = self.context.enter()?;
            if stream.raw() as usize == PER_THREAD {
                let text = "the per-thread default stream is another one on each thread, and calls \
                            go on on threads of their own: make a stream";
                return Err(Error::new(Code::InvalidArgument, text));
            }
            let context = stream.context().map_err(|error| {
                let text = format!("a stream that CUDA does not know: {}", error.detail);
                Error { code: Code::InvalidArgument, detail: text.into(), ..error }
            })?;
            if context != self.context.id() {
                let device = stream.device()?;
                let own = self.context.ordinal();
                let what = if device == own { "another context" } else { "another device" };
                let text =
                    format!("a stream of {what} (device {device}); the communicator's is {own}");
                return Err(Error::new(Code::InvalidArgument, text));
            }
            if !self.facts.stream_values {
                let text = "streams of this device cannot wait for memory: make calls that wait";
                return Err(Error::new(Code::Unsupported, text));
            }
        }
        *lock(&self.stream) = stream.map(|stream| stream.raw() as usize);
        Ok(())
    }

    /// Where the buffers of `call` are.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for buffers that are not all in host memory, nor all where the device
    /// reaches them; and for such that it does not reach where the call has its place in a stream.
    pub(crate) fn place(&self, call: &Call, seat: &Seat) -> Result<Place> {
        let stream = *lock(&self.stream);
        let on_device = stream
            .map_or(Place::Device { more: false }, |handle| Place::Stream { handle, more: false });
        let (sends, receives) = call.uses(seat.rank);
        let send = sends.then(|| self.memory(call.send, "send")).transpose()?;
        let recv = receives.then(|| self.memory(call.recv, "receive")).transpose()?;
        let kinds = [send, recv].into_iter().flatten();
        let host = kinds.clone().filter(|kind| *kind == Memory::Host).count();
        let device = kinds.filter(|kind| is_on_device(*kind)).count();
        match (host, device, stream) {
            (0, 0, None) if sends || receives => Ok(Place::Host),
            (0, 0, None) => Ok(self.place_of_nothing(call)),
            (0, ..) => Ok(on_device),
            (_, 0, _) => Ok(Place::Host),
            _ => {
                let text = format!(
                    "{}: one buffer is in host memory, the other on device {}",
                    call.collective,
                    self.context.ordinal()
                );
                Err(Error::new(Code::InvalidArgument, text))
            }
        }
    }

    /// Where a call is made whose rank has no data: all ranks must make it in one place, so what
    /// the addresses say is the best guess.
    fn place_of_nothing(&self, call: &Call) -> Place {
        let on_device = |at: *const u8| !at.is_null() && self.recognise(at).is_ok_and(is_on_device);
        if on_device(call.send) || on_device(call.recv) {
            Place::Device { more: false }
        } else {
            Place::Host
        }
    }

    fn recognise(&self, at: *const u8) -> Result<Memory> {
        self.context.driver().recognise(at.cast())
    }

    fn memory(&self, at: *const u8, which: &str) -> Result<Memory> {
        let memory = self.recognise(at).map_err(|error| {
            let text = format!("the {which} buffer {at:p}: {}", error.detail);
            Error { code: Code::InvalidArgument, detail: text.into(), ..error }
        })?;
        if let Memory::Device { ordinal: number } = memory
            && number != self.context.ordinal()
        {
            let own = self.context.ordinal();
            let text = format!(
                "the {which} buffer {at:p} is on device {number}; the communicator's is {own}"
            );
            return Err(Error::new(Code::InvalidArgument, text));
        }
        Ok(memory)
    }
}

/// A random number that the ranks of this process have in common.
fn process() -> Result<u64> {
    static NUMBER: Mutex<Option<u64>> = Mutex::new(None);
    let mut number = lock(&NUMBER);
    if number.is_none() {
        *number = Some(u64::from_le_bytes(random::bytes()?));
    }
    Ok(number.unwrap_or_default())
}

/// The device of the rank with the number `local`, of so many.
fn counted_around(local: Option<u32>, devices: u32) -> Result<u32> {
    let local = local.ok_or_else(|| {
        let text = "device local_rank: no launcher says which rank of its host this is; \
                    UNISONO_LOCAL_RANK does, or give the device's number";
        Error::new(Code::InvalidArgument, text)
    })?;
    let number = local.checked_rem(devices);
    number.ok_or_else(|| Error::new(Code::Unsupported, "the CUDA driver has no device"))
}

fn is_on_device(memory: Memory) -> bool {
    matches!(memory, Memory::Device { .. } | Memory::Managed)
}
