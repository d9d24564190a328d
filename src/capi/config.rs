//! Settings of a communicator, as C gives them.

use std::ffi::{CStr, c_char};

use super::input;
use crate::config::{Config, Device, Family};
use crate::error::{Code, Error, Result, quoted};
use std::time::Duration;

/// Settings of a communicator. Start from UNISONO_CONFIG_INIT. `size` tells versions of this struct
/// apart: it only grows at the end. What a program's older header lacks has its default; what a
/// newer header adds must be zero for an older library.
///
/// Where a field leaves it open, the environment decides (UNISONO_TIMEOUT_MS and so on), then the
/// default.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ConfigStruct {
    /// sizeof (unisono_config_t).
    pub size: usize,
    /// Deadline of each call in milliseconds; 0: the default (600000); -1: none. It runs from the
    /// call on, for a non-blocking one also while earlier ones hold it up.
    pub timeout_ms: i64,
    /// Deadline of start-up in milliseconds; 0: the default (60000).
    pub init_timeout_ms: i64,
    /// 1: the result's bits depend on inputs and rank numbers alone; 0: they need not; -1: default
    /// (0).
    pub deterministic: i32,
    /// 1: non-blocking calls progress by themselves; 0: only while the program waits or tests; -1:
    /// default (1).
    pub progress_thread: i32,
    /// Links that may be used, "shm,tcp"; NULL: all.
    pub links: *const c_char,
    /// Network interface by name, address or CIDR; NULL: the route to the peer.
    pub interface: *const c_char,
    /// The communicator's name in logs and errors, at most 255 bytes; NULL: none.
    pub name: *const c_char,
    /// What carries out calls: "auto", "native", "nccl" or "mpi"; NULL: auto, which is NCCL on
    /// memory of GPUs where it can serve all ranks, else native. Every rank must have the same.
    pub backend: *const c_char,
    /// The GPU whose memory calls may be on: its number, "local_rank" for the one with the rank's
    /// number on its host, counted around, or "none"; "auto" or NULL: that of the calling thread's
    /// context, where the program uses CUDA.
    pub device: *const c_char,
}

/// No version of the struct is longer.
const SIZE_MAX: usize = 4096;
const NAME_MAX: usize = 255;

const _: () =
    assert!(size_of::<ConfigStruct>().is_multiple_of(8) && align_of::<ConfigStruct>() == 8);

impl ConfigStruct {
    /// As UNISONO_CONFIG_INIT.
    pub(super) const INIT: Self = Self {
        size: size_of::<Self>(),
        timeout_ms: 0,
        init_timeout_ms: 0,
        deterministic: -1,
        progress_thread: -1,
        links: std::ptr::null(),
        interface: std::ptr::null(),
        name: std::ptr::null(),
        backend: std::ptr::null(),
        device: std::ptr::null(),
    };
}

/// The settings `given` asks for, over those of the environment.
///
/// # Safety
/// `given` is NULL or valid for as many bytes as its `size` says, and its texts are NUL-terminated.
pub(super) unsafe fn read(given: *const ConfigStruct) -> Result<Config> {
    let config = Config::from_env()?;
    if given.is_null() {
        return Ok(config);
    }
    let given = input(given, "config")?;
    // SAFETY: the caller promises at least the size.
    let size = unsafe { given.cast::<usize>().read() };
    if size < size_of::<usize>()
        || size > SIZE_MAX
        || !size.is_multiple_of(align_of::<ConfigStruct>())
    {
        let text = format!("config.size {size} is not the size of a unisono_config_t");
        return Err(Error::new(Code::InvalidArgument, text));
    }
    let own = size_of::<ConfigStruct>();
    let mut known = ConfigStruct::INIT;
    let bytes = given.cast::<u8>();
    // SAFETY: the caller promises `size` bytes, and any bytes make the integers and addresses
    // inside.
    unsafe { bytes.copy_to((&raw mut known).cast::<u8>(), size.min(own)) };
    // SAFETY: the caller promises `size` bytes.
    if let Some(at) = (own..size).find(|&at| unsafe { bytes.add(at).read() } != 0) {
        let text = format!(
            "byte {at} of config is set: a header newer than this library ({}) asks for what it \
             does not have",
            env!("CARGO_PKG_VERSION")
        );
        return Err(Error::new(Code::InvalidArgument, text));
    }
    // SAFETY: the caller promises NUL-terminated texts.
    unsafe { apply(&known, config) }
}

/// # Safety
/// The texts of `given` are NULL or NUL-terminated.
unsafe fn apply(given: &ConfigStruct, mut config: Config) -> Result<Config> {
    match given.timeout_ms {
        0 => {}
        -1 => config.timeout = None,
        ms => {
            let wanted = "1 or more, 0 for the default or -1 for none";
            config.timeout = Some(millis(ms, "config.timeout_ms", wanted)?);
        }
    }
    if given.init_timeout_ms != 0 {
        let wanted = "1 or more, or 0 for the default";
        config.init_timeout = millis(given.init_timeout_ms, "config.init_timeout_ms", wanted)?;
    }
    if let Some(on) = switch(given.deterministic, "config.deterministic")? {
        config.deterministic = on;
    }
    if let Some(on) = switch(given.progress_thread, "config.progress_thread")? {
        config.progress_thread = on;
    }
    // SAFETY: the caller's promise.
    let text = |at, name| unsafe { text(at, name) };
    if let Some(links) = text(given.links, "config.links")? {
        config.set_links(links).ok_or_else(|| {
            let text = format!(
                "config.links {}: expected shm, rdma, rsocket, tcp or several",
                quoted(links)
            );
            Error::new(Code::UnknownValue, text)
        })?;
    }
    if let Some(interface) = text(given.interface, "config.interface")? {
        config.set_interface(interface).ok_or_else(|| {
            let wanted = "expected interface name, address or CIDR; several with commas";
            let text = format!("config.interface {}: {wanted}", quoted(interface));
            Error::new(Code::InvalidArgument, text)
        })?;
    }
    if let Some(name) = text(given.backend, "config.backend")? {
        config.backend = Family::from_name(name).ok_or_else(|| {
            let text =
                format!("config.backend {}: expected auto, native, nccl or mpi", quoted(name));
            Error::new(Code::UnknownValue, text)
        })?;
    }
    if let Some(name) = text(given.device, "config.device")? {
        config.device = Device::parse(name).ok_or_else(|| {
            let wanted = "expected auto, none, local_rank or a number";
            let text = format!("config.device {}: {wanted}", quoted(name));
            Error::new(Code::UnknownValue, text)
        })?;
    }
    if let Some(name) = text(given.name, "config.name")? {
        if name.len() > NAME_MAX {
            let text = format!("config.name of {} bytes, at most {NAME_MAX}", name.len());
            return Err(Error::new(Code::InvalidArgument, text));
        }
        name.clone_into(&mut config.name);
    }
    Ok(config)
}

fn millis(ms: i64, name: &str, wanted: &str) -> Result<Duration> {
    let ms = u64::try_from(ms).map_err(|_| {
        Error::new(Code::InvalidArgument, format!("{name} {ms}: expected {wanted}"))
    })?;
    Ok(Duration::from_millis(ms))
}

/// `None`: left open.
fn switch(value: i32, name: &str) -> Result<Option<bool>> {
    match value {
        -1 => Ok(None),
        0 | 1 => Ok(Some(value == 1)),
        _ => Err(Error::new(Code::UnknownValue, format!("{name} {value}: expected -1, 0 or 1"))),
    }
}

/// # Safety
/// `at` is NULL or a NUL-terminated text that outlives the result.
unsafe fn text<'a>(at: *const c_char, name: &str) -> Result<Option<&'a str>> {
    if at.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller's promise.
    let text = unsafe { CStr::from_ptr(at) };
    text.to_str().map(Some).map_err(|_| {
        let text = format!("{name} {} is not UTF-8", quoted(&text.to_string_lossy()));
        Error::new(Code::InvalidArgument, text)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[repr(C)]
    struct Newer {
        base: ConfigStruct,
        more: u64,
    }

    fn read_newer(size: usize, more: u64) -> Result<Config> {
        let mut given = Newer { base: ConfigStruct::INIT, more };
        given.base.size = size;
        given.base.timeout_ms = 77;
        given.base.deterministic = 1;
        // SAFETY: as long as it says in these tests, and no texts.
        unsafe { read((&raw const given).cast()) }
    }

    #[test]
    fn shorter_and_longer_structs_are_read_and_garbage_is_refused() {
        let own = size_of::<ConfigStruct>();
        let full = read_newer(own, 9).expect("own size");
        assert_eq!((full.timeout, full.deterministic), (Some(Duration::from_millis(77)), true));
        let shorter = read_newer(16, 9).expect("only the first field");
        assert_eq!((shorter.timeout, shorter.deterministic), (full.timeout, false));
        assert!(read_newer(own + 8, 0).expect("longer and zero").deterministic);
        let error = read_newer(own + 8, 1 << 40).expect_err("longer and set");
        assert_eq!(error.code, Code::InvalidArgument);
        assert!(error.detail.contains(&format!("byte {}", own + 5)), "{error}");
        for size in [0, 7, own + 1, own - 4, SIZE_MAX + 8, usize::MAX] {
            let error = read_newer(size, 0).expect_err("garbage");
            assert_eq!(error.code, Code::InvalidArgument);
            assert!(error.detail.contains(&size.to_string()), "{error}");
        }
    }

    #[test]
    fn each_field_is_checked_and_named() {
        let bad = |change: fn(&mut ConfigStruct)| {
            let mut given = ConfigStruct::INIT;
            change(&mut given);
            // SAFETY: of its own size; texts are literals.
            unsafe { read(&raw const given) }.expect_err("bad").to_string()
        };
        let said = bad(|c| c.timeout_ms = -2);
        assert!(said.contains("config.timeout_ms -2") && said.contains("-1 for none"), "{said}");
        let said = bad(|c| c.init_timeout_ms = -1);
        assert!(said.contains("config.init_timeout_ms -1") && !said.contains("for none"), "{said}");
        assert!(bad(|c| c.deterministic = 2).contains("config.deterministic 2"));
        assert!(bad(|c| c.progress_thread = -3).contains("config.progress_thread -3"));
        assert!(bad(|c| c.links = c"shm,smoke".as_ptr()).contains("shm,smoke"));
        assert!(
            bad(|c| c.interface = c"../../etc".as_ptr()).contains("config.interface \"../../etc\"")
        );
        assert!(bad(|c| c.name = c"\xff".as_ptr()).contains("UTF-8"));
        let long = std::ffi::CString::new("x".repeat(100_000)).expect("no NUL");
        let given = ConfigStruct { links: long.as_ptr(), ..ConfigStruct::INIT };
        // SAFETY: of its own size; the text lives until the end.
        let said = unsafe { read(&raw const given) };
        assert!(said.expect_err("no link").detail.len() < 200);
    }
}
