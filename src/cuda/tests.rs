//! The wrappers over the stand-in of `tests/standin`. Each test runs in a process of its own, whose
//! variables say what the stand-in does; when it has ended nothing may be left that was made.

use std::process::Command;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::abi::{self, CUstream};
use super::graph::{Graph, Mode};
use super::*;
use crate::alone::{self, succeeds};
use crate::error::{Code, Error, Result};
use crate::standin;

/// This program, to run one test alone.
fn program(test: &str) -> Command {
    alone::program(&format!("cuda::tests::{test}"))
}

macro_rules! alone {
    ($test:ident $(, $name:literal = $value:literal)*) => {
        alone!($test in standin::cuda() $(, $name = $value)*)
    };
    ($test:ident in $library:expr $(, $name:literal = $value:literal)*) => {
        let name = concat!("cuda::tests::", stringify!($test));
        if !alone::alone(name, &$library, &[$(($name, $value)),*]) {
            return;
        }
    };
}

fn open() -> Result<Arc<Driver>> {
    Driver::open(std::env::var("UNISONO_CUDA_LIB").ok().as_deref())
}

fn contexts<const N: usize>() -> [Arc<Context>; N] {
    let driver = open().expect("the stand-in");
    std::array::from_fn(|i| Context::retain(&driver, u32::try_from(i).expect("few")).expect("one"))
}

fn native<T: std::fmt::Debug>(outcome: Result<T>) -> i32 {
    outcome.expect_err("it is refused").native
}

/// A word that streams wait for, and the host sets.
struct Gate(PinnedMemory);

impl Gate {
    fn new(context: &Arc<Context>) -> Self {
        Self(PinnedMemory::new(context, 4).expect("pinned"))
    }

    fn word(&self) -> &AtomicU32 {
        // SAFETY: four bytes of pinned memory, which are 0.
        unsafe { AtomicU32::from_ptr(self.0.as_ptr().cast()) }
    }

    fn close(&self, stream: &StreamRef) {
        // SAFETY: the tests keep the gate until the stream has gone on.
        unsafe { stream.wait_value(self.0.device_address(), 1, Compare::AtLeast) }.expect("waits");
    }

    fn open(&self) {
        self.word().store(1, Ordering::Release);
    }
}

/// A test that fails ends, too: giving back waits for streams.
impl Drop for Gate {
    fn drop(&mut self) {
        self.open();
    }
}

fn fill(stream: &StreamRef, memory: &DeviceMemory, byte: u8) {
    // SAFETY: the whole of it; the tests wait before they give it back.
    unsafe { stream.fill(memory.address(), byte, memory.bytes()) }.expect("fill");
}

fn bytes(stream: &StreamRef, memory: &DeviceMemory) -> Vec<u8> {
    let mut read = vec![0u8; memory.bytes()];
    // SAFETY: as many bytes there as here, and plain memory is written when this returns.
    unsafe { stream.copy_out(read.as_mut_ptr(), memory.address(), read.len()) }.expect("copy");
    read
}

#[test]
fn devices_say_what_they_are() {
    alone!(devices_say_what_they_are, "STANDIN_CUDA_DEVICES" = "3");
    let driver = open().expect("the stand-in");
    assert_eq!(driver.version(), "13.0");
    assert_eq!(driver.device_count().expect("a count"), 3);
    let found = [0, 1].map(|ordinal| Device::find(&driver, ordinal).expect("a device"));
    assert_eq!(found[1].name, "Stand-in GPU");
    assert_eq!(found[1].pci, "0000:02:00.0");
    assert_eq!((found[1].capability, found[1].processors), ((9, 0), 4));
    assert_eq!(found[0].memory_bytes, 1 << 30);
    assert!(found[0].stream_values && found[0].unified_addressing && found[0].memory_pools);
    assert_ne!(found[0].uuid, found[1].uuid);
    assert!(found[0].can_reach(&found[1]).expect("an answer"));
    assert!(!found[0].can_reach(&found[0]).expect("an answer"));
    assert_eq!(native(Device::find(&driver, 3)), 101);
    let lines = describe(std::env::var("UNISONO_CUDA_LIB").ok().as_deref()).expect("lines");
    assert_eq!(lines.len(), 4);
    assert!(lines[3].contains("device 2: Stand-in GPU, compute capability 9.0"), "{}", lines[3]);
}

fn refused(named: &str) -> Error {
    Driver::open(Some(named)).expect_err("it is refused")
}

#[test]
fn a_library_that_is_not_there_or_no_driver_is_refused_by_name() {
    let error = refused("/no/libcuda.so");
    assert_eq!(error.code, Code::Unsupported);
    for word in ["/no/libcuda.so", "UNISONO_CUDA_LIB", "install NVIDIA's driver"] {
        assert!(error.detail.contains(word), "{error}");
    }
    let error = refused("libm.so.6");
    assert_eq!(error.code, Code::Unsupported);
    assert!(error.detail.contains("it is no CUDA driver: cuDriverGetVersion"), "{error}");
}

#[test]
fn a_driver_that_lacks_a_call_is_refused_by_the_call() {
    let library = standin::cuda_with(None, &["-DcuMemAllocAsync=another"]);
    alone!(a_driver_that_lacks_a_call_is_refused_by_the_call in library);
    let error = open().expect_err("it is refused");
    assert_eq!(error.code, Code::Unsupported);
    assert!(error.detail.contains("cuMemAllocAsync"), "{error}");
}

#[test]
fn an_old_driver_is_refused_with_both_versions() {
    alone!(an_old_driver_is_refused_with_both_versions, "STANDIN_CUDA_VERSION" = "11080");
    let error = open().expect_err("it is refused");
    assert_eq!(error.code, Code::Unsupported);
    assert!(error.detail.contains("11.8") && error.detail.contains("12.0"), "{error}");
}

#[test]
fn no_device_is_no_support() {
    alone!(no_device_is_no_support, "STANDIN_CUDA_DEVICES" = "0");
    let error = open().expect_err("it is refused");
    assert_eq!((error.code, error.native), (Code::Unsupported, 100));
    assert!(error.detail.contains("CUDA_ERROR_NO_DEVICE"), "{error}");
}

#[test]
fn errors_keep_the_drivers_code_and_text() {
    alone!(
        errors_keep_the_drivers_code_and_text,
        "STANDIN_CUDA_FAIL" = "cuInit:1:999,cuMemAlloc_v2:2:1,cuEventCreate:*:12345"
    );
    let error = open().expect_err("the first time");
    assert_eq!((error.code, error.native), (Code::Backend, 999));
    assert!(error.detail.contains("CUDA_ERROR_UNKNOWN, code 999"), "{error}");
    let [context] = contexts();
    let memory = DeviceMemory::new(&context, 64).expect("the first");
    let error = DeviceMemory::new(&context, 64).expect_err("the second");
    assert_eq!((error.code, error.native), (Code::Backend, 1));
    assert!(error.detail.contains("cuMemAlloc_v2 of CUDA 13.0"), "{error}");
    DeviceMemory::new(&context, 64).expect("the third");
    let error = Event::new(&context, Timing::Without).expect_err("every one");
    assert!(error.detail.contains("unknown to this driver, code 12345"), "{error}");
    drop(memory);
}

#[test]
fn the_programs_driver_is_found_and_not_loaded() {
    alone!(the_programs_driver_is_found_and_not_loaded);
    assert!(Driver::of_process().is_none());
    let path = std::env::var("UNISONO_CUDA_LIB").expect("set");
    // SAFETY: the stand-in, whose constructors do nothing.
    let loaded = unsafe { libloading::Library::new(&path) }.expect("the stand-in");
    let driver = Driver::of_process().expect("it is there");
    // Not initialised, so nothing is CUDA's.
    assert_eq!(driver.recognise(ptr::from_ref(&path).cast()).expect("an answer"), Memory::Host);
    assert_eq!(driver.current_device().expect("an answer"), None);
    // Whatever is named, the program's is taken.
    let opened = Driver::open(Some("/no/libcuda.so")).expect("the program's");
    assert!(opened.place.contains("loaded by the program"), "{}", opened.place);
    drop(loaded);
}

#[test]
fn a_context_is_current_while_it_is_entered() {
    alone!(a_context_is_current_while_it_is_entered, "STANDIN_CUDA_DEVICES" = "2");
    let [first, second] = contexts();
    let driver = first.driver();
    assert_eq!(driver.current_device().expect("an answer"), None);
    {
        let _one = first.enter().expect("enter");
        assert_eq!(driver.current_device().expect("an answer"), Some(0));
        {
            let _two = second.enter().expect("enter");
            assert_eq!(driver.current_device().expect("an answer"), Some(1));
        }
        assert_eq!(driver.current_device().expect("an answer"), Some(0));
        let elsewhere = std::thread::scope(|s| s.spawn(|| driver.current_device()).join());
        assert_eq!(elsewhere.expect("a thread").expect("an answer"), None);
    }
    assert_eq!(driver.current_device().expect("an answer"), None);
    let stream = Stream::new(&second).expect("a stream");
    assert_eq!(stream.device().expect("an answer"), 1);
    assert_eq!(second.memory().expect("an answer"), (1 << 30, 1 << 30));
    second.synchronize().expect("nothing to wait for");
}

#[test]
fn streams_are_ordered_by_events_alone() {
    alone!(streams_are_ordered_by_events_alone, "STANDIN_CUDA_DELAY_US" = "500");
    let [context] = contexts();
    let streams = [0; 3].map(|_| Stream::new(&context).expect("a stream"));
    let memory = [0; 2].map(|_| DeviceMemory::new(&context, 4096).expect("memory"));
    let (gate, event) = (Gate::new(&context), Event::new(&context, Timing::Without).expect("one"));
    assert!(event.query().expect("an answer"), "never recorded is done");
    gate.close(&streams[0]);
    fill(&streams[0], &memory[0], 7);
    streams[0].record(&event).expect("record");
    streams[1].wait(&event).expect("wait");
    // SAFETY: both are as long.
    unsafe { streams[1].copy_across(memory[1].address(), memory[0].address(), 4096) }
        .expect("copy");
    fill(&streams[2], &memory[1], 1);
    streams[2].synchronize().expect("nothing holds it");
    assert_eq!(bytes(&streams[2], &memory[1]), [1; 4096]);
    assert!(!streams[0].query().expect("an answer") && !streams[1].query().expect("an answer"));
    assert!(!event.query().expect("an answer"));
    gate.open();
    event.synchronize().expect("done");
    streams[1].synchronize().expect("done");
    assert!(event.query().expect("an answer") && streams[1].query().expect("an answer"));
    assert_eq!(bytes(&streams[2], &memory[1]), [7; 4096]);
}

/// A stream as programs make them, which the legacy default stream waits for.
fn blocking_stream(context: &Context) -> CUstream {
    let mut handle: CUstream = ptr::null_mut();
    let _here = context.enter().expect("enter");
    // SAFETY: the place is valid; a context is current.
    unsafe { cu!(context.driver(), cuStreamCreateWithPriority(&raw mut handle, 0, 0)) }
        .expect("one");
    handle
}

#[test]
fn the_legacy_stream_orders_blocking_streams_only() {
    alone!(the_legacy_stream_orders_blocking_streams_only);
    let [context] = contexts();
    let handle = blocking_stream(&context);
    let _here = context.enter().expect("enter");
    let driver = context.driver();
    // SAFETY: a live stream, and the default one of the current context.
    let (theirs, legacy) =
        unsafe { (StreamRef::of(driver, handle.cast()), StreamRef::of(driver, ptr::null_mut())) };
    let (gate, own) = (Gate::new(&context), Stream::new(&context).expect("a stream"));
    let memory = DeviceMemory::new(&context, 16).expect("memory");
    gate.close(&legacy);
    fill(&theirs, &memory, 2);
    own.synchronize().expect("nothing holds it");
    assert!(!theirs.query().expect("an answer") && !legacy.query().expect("an answer"));
    assert_eq!(legacy.device().expect("an answer"), 0);
    gate.open();
    legacy.synchronize().expect("done");
    assert_eq!(bytes(&theirs, &memory), [2; 16]);
    // SAFETY: made above, and not used again.
    unsafe { cu!(driver, cuStreamDestroy_v2(handle)) }.expect("destroyed");
}

#[test]
fn host_functions_and_values_come_in_turn() {
    alone!(host_functions_and_values_come_in_turn);
    unsafe extern "C" fn count(data: *mut std::ffi::c_void) {
        // SAFETY: the word below.
        unsafe { (*data.cast::<AtomicU32>()).fetch_add(1, Ordering::Relaxed) };
    }
    let [context] = contexts();
    let stream = Stream::new(&context).expect("a stream");
    let (gate, written) = (Gate::new(&context), Gate::new(&context));
    let calls = AtomicU32::new(0);
    gate.close(&stream);
    // SAFETY: the words outlive the stream's work, which is waited for.
    unsafe {
        stream.host(count, ptr::from_ref(&calls).cast_mut().cast()).expect("host");
        stream.write_value(written.0.device_address(), 9).expect("write");
        stream.wait_value(written.0.device_address(), 9, Compare::Equal).expect("wait");
    }
    assert_eq!((calls.load(Ordering::Relaxed), written.word().load(Ordering::Acquire)), (0, 0));
    gate.open();
    stream.synchronize().expect("done");
    assert_eq!((calls.load(Ordering::Relaxed), written.word().load(Ordering::Acquire)), (1, 9));
    // SAFETY: no such word; the driver refuses it.
    assert_eq!(native(unsafe { stream.write_value(64, 1) }), 1);
}

#[test]
fn events_measure_time_if_they_are_made_for_it() {
    alone!(events_measure_time_if_they_are_made_for_it, "STANDIN_CUDA_DELAY_US" = "2000");
    let [context] = contexts();
    let stream = Stream::new(&context).expect("a stream");
    let [start, end] = [0; 2].map(|_| Event::new(&context, Timing::With).expect("an event"));
    stream.record(&start).expect("record");
    stream.record(&end).expect("record");
    assert_eq!(native(end.elapsed_ms(&start)), 600);
    stream.synchronize().expect("done");
    assert!(end.elapsed_ms(&start).expect("done") >= 2.0);
    let without = Event::new(&context, Timing::Without).expect("an event");
    assert_eq!(native(without.elapsed_ms(&start)), 400);
    assert_eq!(native(without.share()), 400);
}

#[test]
fn memory_is_recognised() {
    alone!(memory_is_recognised, "STANDIN_CUDA_DEVICES" = "2");
    let [first, second] = contexts();
    let driver = first.driver();
    let _here = first.enter().expect("enter");
    let is = |at: u64| {
        let at = usize::try_from(at).expect("an address");
        driver.recognise(ptr::without_provenance(at)).expect("an answer")
    };
    let memory = DeviceMemory::new(&second, 1000).expect("memory");
    assert_eq!(is(memory.address() + 999), Memory::Device { ordinal: 1 });
    assert_eq!(driver.range(memory.address() + 9).expect("a range"), (memory.address(), 1000));
    let pinned = PinnedMemory::new(&first, 100).expect("memory");
    assert_eq!(is(pinned.as_ptr().addr() as u64), Memory::Pinned { device: 0 });
    assert_eq!(pinned.bytes(), 100);
    let mut plain = vec![0u8; 8192];
    let at = plain.as_mut_ptr();
    assert_eq!(is(at.addr() as u64), Memory::Host);
    assert_eq!(is(0), Memory::Host);
    assert_eq!(native(driver.range(at.addr() as u64)), 500);
    {
        // SAFETY: the vector outlives this.
        let registered = unsafe { Registered::new(&second, at, 8192) }.expect("registered");
        assert_eq!(is(registered.device_address()), Memory::Pinned { device: 1 });
        // SAFETY: as above.
        assert_eq!(native(unsafe { Registered::new(&first, at, 10) }), 712);
    }
    assert_eq!(is(at.addr() as u64), Memory::Host);
    // SAFETY: nothing is there, which is seen.
    let error = unsafe { Registered::new(&first, ptr::null_mut(), 10) }.expect_err("refused");
    assert_eq!(error.code, Code::NullPointer);
    let mut managed = 0;
    // SAFETY: the place is valid; what is made is given back.
    unsafe {
        cu!(driver, cuMemAllocManaged(&raw mut managed, 8, abi::CU_MEM_ATTACH_GLOBAL))
            .expect("one");
        assert_eq!(is(managed), Memory::Managed);
        cu!(driver, cuMemFree_v2(managed)).expect("free");
    }
}

#[test]
fn memory_has_an_end_and_comes_back() {
    alone!(memory_has_an_end_and_comes_back, "STANDIN_CUDA_MEMORY" = "65536");
    let [context] = contexts();
    let memory = DeviceMemory::new(&context, 60_000).expect("memory");
    assert_eq!(context.memory().expect("an answer"), (5536, 65_536));
    let error = DeviceMemory::new(&context, 10_000).expect_err("too much");
    assert_eq!((error.code, error.native), (Code::OutOfMemory, 2));
    assert!(error.detail.contains("10000 bytes"), "{error}");
    drop(memory);
    let stream = Arc::new(Stream::new(&context).expect("a stream"));
    for _ in 0..3 {
        let ordered = OrderedMemory::new(&stream, 60_000).expect("memory");
        assert_eq!(ordered.bytes(), 60_000);
        // SAFETY: the whole of it, before it is given back on the same stream.
        unsafe { stream.fill(ordered.address(), 3, ordered.bytes()) }.expect("fill");
        drop(ordered);
        stream.synchronize().expect("done");
    }
    assert_eq!(DeviceMemory::new(&context, 0).expect_err("nothing").native, 1);
}

#[test]
fn copies_go_every_way() {
    alone!(copies_go_every_way, "STANDIN_CUDA_DEVICES" = "2", "STANDIN_CUDA_DELAY_US" = "200");
    let [first, second] = contexts();
    let stream = Stream::new(&first).expect("a stream");
    let one = DeviceMemory::new(&first, 5000).expect("memory");
    let two = DeviceMemory::new(&second, 5000).expect("memory");
    let pinned = PinnedMemory::new(&first, 5000).expect("memory");
    let mut plain: Vec<u8> = (0..5000u32).map(|i| i.to_le_bytes()[0]).collect();
    let wanted = plain.clone();
    let to_pinned = pinned.device_address();
    // SAFETY: every range has 5000 bytes, and is there until the stream is done.
    unsafe {
        stream.copy_in(one.address(), plain.as_ptr(), 5000).expect("copy");
        // It was read.
        plain.fill(0);
        stream.copy_between((two.address(), &second), (one.address(), &first), 5000).expect("copy");
        stream.fill(one.address(), 0, 5000).expect("fill");
        stream.copy_across(one.address(), two.address(), 5000).expect("copy");
        stream.copy(to_pinned, one.address(), 5000).expect("copy");
        stream.copy_out(plain.as_mut_ptr(), one.address(), 5000).expect("copy");
    }
    assert_eq!(plain, wanted);
    stream.synchronize().expect("done");
    // SAFETY: pinned, and nobody writes it now.
    assert_eq!(unsafe { std::slice::from_raw_parts(pinned.as_ptr(), 5000) }, &wanted[..]);
    // SAFETY: it would go past the end, or is another device's, and is refused.
    unsafe {
        assert_eq!(native(stream.copy_across(one.address(), two.address(), 5001)), 1);
        assert_eq!(native(stream.fill(one.address() + 1, 0, 5000)), 1);
        let (to, from) = ((two.address(), &*first), (one.address(), &*first));
        assert_eq!(native(stream.copy_between(to, from, 1)), 1);
    }
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn of_hex(name: &str) -> [u8; HANDLE_BYTES] {
    let text = std::env::var(name).expect("set");
    std::array::from_fn(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).expect("hex"))
}

#[test]
fn processes_share_memory_and_events() {
    alone!(processes_share_memory_and_events, "STANDIN_CUDA_DELAY_US" = "3000");
    let [context] = contexts();
    let stream = Stream::new(&context).expect("a stream");
    let memory = DeviceMemory::new(&context, 8192).expect("memory");
    let [filled, read] = [0; 2].map(|_| Event::new(&context, Timing::Shared).expect("an event"));
    let place = context.share(memory.address() + 4096).expect("shared");
    assert_eq!((place.offset, place.bytes), (4096, 4096));
    assert_eq!(native(Imported::open(&context, &place.handle)), 201, "it is our own");
    assert_eq!(native(Imported::open(&context, &[7; HANDLE_BYTES])), 1);
    assert_eq!(native(Event::open(&context, &[7; HANDLE_BYTES])), 1);
    let plain = [0u8; 4];
    assert_eq!(native(context.share(plain.as_ptr().addr() as u64)), 500);
    fill(&stream, &memory, 0x5a);
    stream.record(&filled).expect("record");
    let mut other = program("another_process_opens_what_is_shared");
    other.env("UNISONO_TEST_MEMORY", to_hex(&place.handle));
    other.env("UNISONO_TEST_FILLED", to_hex(&filled.share().expect("shared")));
    other.env("UNISONO_TEST_READ", to_hex(&read.share().expect("shared")));
    let path = std::env::var("STANDIN_CUDA_LEAKS").expect("set") + "-other";
    other.env("STANDIN_CUDA_LEAKS", &path);
    succeeds(other);
    stream.wait(&read).expect("wait");
    assert_eq!(bytes(&stream, &memory)[4096..], [0x77; 4096]);
    let text = std::fs::read_to_string(&path).expect("its leaks");
    std::fs::remove_file(&path).expect("it was there");
    assert!(text.lines().all(|line| line.ends_with(" 0")), "left over:\n{text}");
}

/// The other one of `processes_share_memory_and_events`.
#[test]
fn another_process_opens_what_is_shared() {
    if std::env::var("UNISONO_TEST_MEMORY").is_err() {
        return;
    }
    let [context] = contexts();
    let stream = Stream::new(&context).expect("a stream");
    let memory = Imported::open(&context, &of_hex("UNISONO_TEST_MEMORY")).expect("open");
    let again = Imported::open(&context, &of_hex("UNISONO_TEST_MEMORY")).expect("open");
    assert_eq!((memory.address(), memory.bytes().expect("bytes")), (again.address(), 8192));
    drop(again);
    let filled = Event::open(&context, &of_hex("UNISONO_TEST_FILLED")).expect("open");
    let read = Event::open(&context, &of_hex("UNISONO_TEST_READ")).expect("open");
    stream.wait(&filled).expect("wait");
    let mut found = vec![0u8; 8192];
    // SAFETY: both have so many bytes; plain memory is written when it returns.
    unsafe { stream.copy_out(found.as_mut_ptr(), memory.address(), 8192) }.expect("copy");
    assert_eq!(found, [0x5a; 8192]);
    // SAFETY: as above; it is waited for.
    unsafe { stream.fill(memory.address(), 0x77, 8192) }.expect("fill");
    stream.record(&read).expect("record");
    stream.synchronize().expect("done");
    let recognised = context
        .driver()
        .recognise(ptr::without_provenance(usize::try_from(memory.address()).expect("an address")));
    assert_eq!(recognised.expect("an answer"), Memory::Device { ordinal: 0 });
}

/// A kernel that adds a number to bytes.
const TWINS: &str = r#"
#include <cstddef>
#include <cstring>
struct Arguments { unsigned char *at; unsigned long count; unsigned add; };
extern "C" int unisono_twin_has(const char *name) { return strcmp(name, "add") == 0; }
extern "C" size_t unisono_twin_size(const char *) { return sizeof(Arguments); }
extern "C" int unisono_twin_launch(const char *, unsigned, unsigned, const void *arguments)
{
    Arguments a = *static_cast<const Arguments *>(arguments);
    for (unsigned long i = 0; i < a.count; i++) a.at[i] += a.add;
    return 0;
}
"#;

/// What that kernel takes.
#[derive(Clone, Copy)]
#[repr(C)]
struct Adding {
    at: u64,
    count: u64,
    add: u32,
}

#[test]
fn kernels_are_found_and_run_in_turn() {
    let library = standin::cuda_with(Some(TWINS), &[]);
    alone!(kernels_are_found_and_run_in_turn in library, "STANDIN_CUDA_DEVICES" = "2",
        "STANDIN_CUDA_DELAY_US" = "300");
    let [first, second] = contexts();
    let stream = Stream::new(&first).expect("a stream");
    // SAFETY: the stand-in does not read it.
    let module = unsafe { Module::load(&first, b"an image") }.expect("loaded");
    let error = module.function(c"subtract").expect_err("there is none");
    assert!(error.native == 500 && error.detail.contains("subtract"), "{error}");
    let kernel = module.function(c"add").expect("a kernel");
    module.function(c"add").expect("known by now");
    let memory = DeviceMemory::new(&first, 100).expect("memory");
    fill(&stream, &memory, 1);
    let mut arguments = Adding { at: memory.address(), count: 100, add: 4 };
    // SAFETY: the arguments are laid out as the kernel's, and name memory that is there.
    unsafe { kernel.launch(&stream, (1, 32), &arguments) }.expect("launch");
    // They were copied.
    arguments.add = 100;
    assert_eq!(bytes(&stream, &memory), [5; 100]);
    // SAFETY: refused for its shape.
    assert_eq!(native(unsafe { kernel.launch(&stream, (0, 32), &arguments) }), 1);

    // Another device's memory: first let in, then not.
    let theirs = DeviceMemory::new(&second, 100).expect("memory");
    first.reach(&second).expect("peers");
    first.reach(&second).expect("peers already");
    let arguments = Adding { at: theirs.address(), count: 100, add: 1 };
    // SAFETY: as above.
    unsafe { kernel.launch(&stream, (1, 32), &arguments) }.expect("launch");
    stream.synchronize().expect("done");
    let stream = Stream::new(&second).expect("a stream");
    // SAFETY: the stand-in does not read it.
    let module = unsafe { Module::load(&second, b"an image") }.expect("loaded");
    let kernel = module.function(c"add").expect("a kernel");
    let arguments = Adding { at: memory.address(), count: 100, add: 1 };
    // SAFETY: a fault, which the driver reports.
    unsafe { kernel.launch(&stream, (1, 32), &arguments) }.expect("launch");
    let error = stream.synchronize().expect_err("an illegal address");
    assert!(error.native == 700 && is_lost(&error), "{error}");
}

#[test]
fn a_lost_device_says_so_in_every_call_and_leaves_nothing() {
    alone!(
        a_lost_device_says_so_in_every_call_and_leaves_nothing,
        "STANDIN_CUDA_FAIL" = "@cuMemsetD8Async:2:719",
        "STANDIN_CUDA_DEVICES" = "2"
    );
    let [first, second] = contexts();
    let stream = Arc::new(Stream::new(&first).expect("a stream"));
    let (gate, event) = (Gate::new(&first), Event::new(&first, Timing::Without).expect("an event"));
    let memory = DeviceMemory::new(&first, 64).expect("memory");
    fill(&stream, &memory, 1);
    fill(&stream, &memory, 2);
    // It would wait for ever.
    gate.close(&stream);
    stream.record(&event).expect("record");
    let error = stream.synchronize().expect_err("lost");
    assert_eq!((error.code, error.native), (Code::Backend, 719));
    assert!(is_lost(&error) && error.detail.contains("the device is lost"), "{error}");
    assert!(is_lost(&event.query().expect_err("lost")));
    assert!(is_lost(&event.synchronize().expect_err("lost")));
    assert!(is_lost(&DeviceMemory::new(&first, 1).expect_err("lost")));
    assert!(is_lost(&Stream::new(&first).expect_err("lost")));
    // SAFETY: refused.
    assert!(is_lost(&unsafe { stream.fill(memory.address(), 0, 1) }.expect_err("lost")));
    // The other one goes on.
    let other = Stream::new(&second).expect("a stream");
    let memory = DeviceMemory::new(&second, 64).expect("memory");
    // SAFETY: the whole of it.
    unsafe { other.fill(memory.address(), 3, 64) }.expect("fill");
    assert_eq!(bytes(&other, &memory), [3; 64]);
}

#[test]
fn a_forked_child_is_refused() {
    alone!(a_forked_child_is_refused);
    let [context] = contexts();
    let stream = Stream::new(&context).expect("a stream");
    // SAFETY: the child does nothing but ask, and ends.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let error = stream.query().map_err(|error| error.code);
        let refused = error == Err(Code::InvalidState) && context.driver().is_copy();
        // What it drops it does not give back.
        drop((stream, context));
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(i32::from(!refused)) };
    }
    let mut status = -1;
    // SAFETY: a child of ours; the place is valid.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    assert_eq!(status, 0);
    assert!(stream.query().expect("the parent goes on"));
}

#[test]
fn what_is_dropped_when_the_driver_is_gone_is_dropped_quietly() {
    alone!(
        what_is_dropped_when_the_driver_is_gone_is_dropped_quietly,
        "STANDIN_CUDA_FAIL" = "cuStreamDestroy_v2:1:4,cuEventDestroy_v2:1:4,cuMemFree_v2:1:4"
    );
    let [context] = contexts();
    let driver = context.driver().clone();
    let stream = Stream::new(&context).expect("a stream");
    let event = Event::new(&context, Timing::Without).expect("an event");
    let memory = DeviceMemory::new(&context, 64).expect("memory");
    let (handle, at, mark) = (stream.handle(), memory.address(), event.handle());
    drop((stream, event, memory));
    // SAFETY: they were not given back, and are now.
    unsafe {
        cu!(driver, cuStreamDestroy_v2(handle)).expect("destroyed");
        cu!(driver, cuEventDestroy_v2(mark)).expect("destroyed");
        cu!(driver, cuMemFree_v2(at)).expect("free");
    }
}

#[test]
fn captured_work_is_done_when_it_is_launched() {
    alone!(captured_work_is_done_when_it_is_launched, "STANDIN_CUDA_DELAY_US" = "200");
    let [context] = contexts();
    let [one, two] = [0; 2].map(|_| Stream::new(&context).expect("a stream"));
    let [fork, join] = [0; 2].map(|_| Event::new(&context, Timing::Without).expect("an event"));
    let [from, to] = [0; 2].map(|_| DeviceMemory::new(&context, 512).expect("memory"));
    fill(&one, &to, 0);
    assert_eq!(one.capture().expect("an answer"), Capture::None);
    let graph = Graph::capture(&one, Mode::Global, || {
        assert!(matches!(one.capture()?, Capture::Active(_)));
        assert!(one.is_capturing()? && !two.is_capturing()?);
        fill(&one, &from, 6);
        one.record(&fork)?;
        two.wait(&fork)?;
        assert_eq!(two.capture()?, one.capture()?);
        // SAFETY: both are as long.
        unsafe { two.copy_across(to.address(), from.address(), 512) }?;
        two.record(&join)?;
        one.wait(&join)?;
        // No part of it, and it stays valid.
        DeviceMemory::new(&context, 512).map(drop)
    });
    let graph = graph.expect("a graph");
    assert!(!one.is_capturing().expect("an answer") && !two.is_capturing().expect("an answer"));
    assert_eq!(bytes(&one, &to), [0; 512]);
    for _ in 0..2 {
        fill(&one, &to, 0);
        graph.launch(&one).expect("launched");
        assert_eq!(bytes(&one, &to), [6; 512]);
    }
    assert_eq!(native(fork.query()), 907);
}

#[test]
fn captures_refuse_what_the_driver_refuses() {
    alone!(captures_refuse_what_the_driver_refuses);
    let [context] = contexts();
    let [one, two] = [0; 2].map(|_| Stream::new(&context).expect("a stream"));
    let event = Event::new(&context, Timing::Without).expect("an event");
    let other = Event::new(&context, Timing::Without).expect("an event");
    let memory = DeviceMemory::new(&context, 512).expect("memory");
    let code = |work: &dyn Fn() -> Result<()>| native(Graph::capture(&one, Mode::Global, work));
    assert_eq!(code(&|| one.synchronize()), 900);
    assert_eq!(code(&|| one.query().map(drop)), 900);
    assert_eq!(code(&|| one.record(&event).and_then(|()| event.synchronize())), 907);
    // An event of another stream disturbs a global capture, unless the thread says otherwise.
    two.record(&other).expect("record");
    two.synchronize().expect("done");
    assert_eq!(code(&|| other.query().map(drop)), 900);
    let relaxed = Graph::capture(&one, Mode::Global, || {
        let _own = context.driver().relax()?;
        assert!(other.query()?);
        Ok(())
    });
    drop(relaxed.expect("valid"));
    // One that was recorded outside.
    assert_eq!(code(&|| one.wait(&other)), 905);
    // A stream that joined and was not waited for.
    let unjoined = code(&|| {
        one.record(&event)?;
        two.wait(&event)?;
        fill(&two, &memory, 1);
        Ok(())
    });
    assert_eq!(unjoined, 904);
    // A program that gives up.
    assert_eq!(code(&|| Err(Error::new(Code::Internal, "of the test"))), 0);
    // What was refused shows at the end too.
    let late = code(&|| {
        assert_eq!(native(one.synchronize()), 900);
        assert_eq!(one.capture()?, Capture::Invalid);
        Ok(())
    });
    assert_eq!(late, 901);
    // The legacy stream would wait for a blocking one.
    let handle = blocking_stream(&context);
    let _here = context.enter().expect("enter");
    // SAFETY: a live stream, and the default one of the current context.
    let (theirs, legacy) = unsafe {
        let driver = context.driver();
        (StreamRef::of(driver, handle.cast()), StreamRef::of(driver, ptr::null_mut()))
    };
    let implied = Graph::capture(&theirs, Mode::ThreadLocal, || legacy.capture().map(drop));
    assert_eq!(native(implied), 906);
    assert_eq!(native(Graph::capture(&legacy, Mode::Relaxed, || Ok(()))), 900);
    // SAFETY: made above, and not used again.
    unsafe { cu!(context.driver(), cuStreamDestroy_v2(handle)) }.expect("destroyed");
}
