//! What happens to calls on device memory when something goes wrong, and in captures: each test in
//! a process of its own, over stand-ins for the CUDA driver and NCCL, whose ranks are threads.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use super::{Args, Communicator, DeviceMemory, DeviceStream};
use crate::config::{Config, Device, Family};
use crate::cuda::graph::{Graph, Mode};
use crate::cuda::{Driver, StreamRef};
use crate::error::{Code, Error, Result};
use crate::types::{Collective, Dtype, Rank};
use crate::{alone, standin, standin_nccl};

/// Whether this is the process of the test, with these variables; else it has been run there.
macro_rules! alone {
    ($test:ident $(, $name:literal = $value:expr)*) => {
        let name = concat!("comm::gpu_tests::", stringify!($test));
        if !alone::alone(name, &standin::cuda(), &[$(($name, $value)),*]) {
            return;
        }
    };
}

/// Far more than any of these calls takes.
const LONG: Duration = Duration::from_secs(30);
/// Elements of a call.
const COUNT: usize = 1000;

fn config(backend: Family, timeout: Duration) -> Config {
    let nccl = (backend == Family::Nccl).then(standin_nccl::nccl);
    Config {
        backend,
        device: Device::Number(0),
        timeout: Some(timeout),
        cuda_lib: std::env::var("UNISONO_CUDA_LIB").ok(),
        nccl_lib: nccl.map(|path| path.to_str().expect("UTF-8").to_owned()),
        ..Config::default()
    }
}

/// A rank with buffers on its device, and a stream that its calls have their place in.
struct Seat {
    comm: Communicator,
    send: DeviceMemory,
    recv: DeviceMemory,
    stream: DeviceStream,
}

impl Seat {
    fn new(comm: Communicator) -> Self {
        let memory = || comm.device_memory(4 * COUNT).expect("memory").expect("a GPU");
        let (send, recv) = (memory(), memory());
        let stream = comm.device_stream().expect("a stream").expect("a GPU");
        // SAFETY: the stream stays as long as the communicator.
        unsafe { comm.set_stream(Some(stream.raw())) }.expect("set");
        let made = Self { comm, send, recv, stream };
        made.fill(1.0 + f32::from(u16::try_from(made.me()).expect("few")));
        made
    }

    fn me(&self) -> u32 {
        self.comm.rank().0
    }

    fn fill(&self, value: f32) {
        self.send.write(bytemuck::cast_slice(&[value; COUNT])).expect("written");
    }

    fn all_reduce(&self, count: usize) -> Result<()> {
        let mut args = Args::new(Collective::AllReduce, Dtype::F32);
        (args.send, args.recv) = (self.send.at(), self.recv.at());
        args.count = count as u64;
        // SAFETY: the buffers outlive the communicator's calls: `settle` waits for the stream.
        unsafe { self.comm.run(self.comm.prepare(&args)?) }
    }

    fn call(&self, kind: Collective, root: i64, counts: (usize, &[u64])) -> Result<()> {
        let mut args = Args::new(kind, Dtype::F32);
        (args.send, args.recv) = (self.send.at(), self.recv.at());
        (args.count, args.recv_counts, args.root) = (counts.0 as u64, counts.1, root);
        // SAFETY: as above.
        unsafe { self.comm.run(self.comm.prepare(&args)?) }
    }

    /// Calls that have one place.
    fn group(&self, calls: impl FnOnce() -> Result<()>) -> Result<()> {
        self.comm.group_start()?;
        calls()?;
        self.comm.group_end()
    }

    fn received(&self) -> f32 {
        let mut read = [0f32; COUNT];
        self.recv.read(bytemuck::cast_slice_mut(&mut read)).expect("read");
        assert!(read.iter().all(|one| *one == read[0]));
        read[0]
    }

    /// Waits until the stream has passed everything, which it must, whatever became of the calls.
    fn settle(&self) -> Result<()> {
        self.stream.start()?;
        self.stream.stop().map(drop)
    }

    /// The error that broke the communicator, which somebody must notice while this rank waits.
    fn broken(&self) -> Error {
        let until = Instant::now() + LONG;
        loop {
            if let Some(error) = self.comm.broken() {
                return error;
            }
            assert!(Instant::now() < until, "nothing was noticed");
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn reference(&self) -> StreamRef {
        let driver = Driver::open(self.comm.config().cuda_lib.as_deref()).expect("the driver");
        // SAFETY: the stream outlives what is made of its handle.
        unsafe { StreamRef::of(&driver, self.stream.raw() as *mut std::ffi::c_void) }
    }
}

/// Runs `body` as every rank, each on a thread.
fn ranks(world: i64, config: &Config, body: impl Fn(&Seat) + Sync) {
    let comms = Communicator::init_all(world, config).expect("communicators");
    let seats: Vec<Seat> = comms.into_iter().map(Seat::new).collect();
    thread::scope(|scope| {
        let workers: Vec<_> = seats.iter().map(|seat| scope.spawn(|| body(seat))).collect();
        // All of them before any buffer goes, whatever became of one.
        let ends: Vec<_> = workers.into_iter().map(thread::ScopedJoinHandle::join).collect();
        assert!(ends.into_iter().all(|end| end.is_ok()), "a rank has failed");
    });
}

/// The communicator is whole, and so is what it computes.
fn goes_on(seat: &Seat) {
    seat.all_reduce(COUNT).expect("taken");
    seat.settle().expect("done");
    let world = seat.comm.world_size();
    let sum: u32 = (1..=world).sum();
    assert_eq!(seat.received().to_bits(), f32::from(u16::try_from(sum).expect("few")).to_bits());
}

#[test]
fn graphs_hold_calls_of_nccls_and_are_launched_again() {
    alone!(graphs_hold_calls_of_nccls_and_are_launched_again, "NCCL_MULTI_RANK_GPU_ENABLE" = "1");
    for world in [1, 2] {
        ranks(world, &config(Family::Nccl, LONG), |seat| {
            // The first call of a communicator of NCCL's may go on by itself.
            goes_on(seat);
            let stream = seat.reference();
            let graph = Graph::capture(&stream, Mode::ThreadLocal, || seat.all_reduce(COUNT));
            let graph = graph.expect("a graph");
            for value in [3.0, 5.0] {
                seat.fill(value);
                graph.launch(&stream).expect("launched");
                seat.settle().expect("done");
                let world = f32::from(u16::try_from(world).expect("few"));
                assert_eq!(seat.received().to_bits(), (world * value).to_bits());
            }
        });
    }
}

#[test]
fn the_native_backend_refuses_a_capture_and_goes_on() {
    alone!(the_native_backend_refuses_a_capture_and_goes_on);
    ranks(2, &config(Family::Native, LONG), |seat| {
        let captured =
            Graph::capture(&seat.reference(), Mode::ThreadLocal, || seat.all_reduce(COUNT));
        let error = captured.expect_err("refused");
        assert_eq!(error.code, Code::Unsupported, "{error}");
        assert!(error.detail.contains("captured"), "{error}");
        goes_on(seat);
    });
}

#[test]
fn an_error_that_nccl_notices_later_names_the_call() {
    alone!(
        an_error_that_nccl_notices_later_names_the_call,
        "NCCL_MULTI_RANK_GPU_ENABLE" = "1",
        "STANDIN_NCCL_ASYNC" = "1:2:6"
    );
    ranks(2, &config(Family::Nccl, LONG), |seat| {
        goes_on(seat);
        let _ = seat.all_reduce(COUNT);
        let error = seat.broken();
        seat.settle().expect("the stream goes on");
        // The next call tells of the one that had returned.
        assert_eq!(seat.all_reduce(COUNT).expect_err("broken").code, error.code);
        assert!(error.detail.contains("NCCL"), "{error}");
        if seat.me() == 1 {
            assert_eq!((error.code, error.native), (Code::Backend, 6), "{error}");
        }
    });
}

fn late(backend: Family) {
    ranks(2, &config(backend, Duration::from_millis(500)), |seat| {
        goes_on(seat);
        if seat.me() == 1 {
            // It is there, but does not come.
            thread::sleep(Duration::from_secs(2));
            let _ = seat.all_reduce(COUNT);
            assert_eq!(seat.broken().code, Code::TimedOut);
            return seat.settle().expect("the stream goes on");
        }
        let begun = Instant::now();
        seat.all_reduce(COUNT).expect("it has its place");
        seat.settle().expect("the stream goes on");
        assert!(begun.elapsed() < LONG / 3, "{:?}", begun.elapsed());
        let error = seat.broken();
        assert_eq!((error.code, error.peer), (Code::TimedOut, Some(Rank(1))), "{error}");
        assert!(error.detail.contains("all_reduce"), "{error}");
    });
}

#[test]
fn a_rank_that_does_not_come_is_named_and_the_stream_goes_on() {
    alone!(a_rank_that_does_not_come_is_named_and_the_stream_goes_on);
    late(Family::Native);
}

#[test]
fn a_rank_that_does_not_come_to_nccl_is_named_and_the_stream_goes_on() {
    alone!(
        a_rank_that_does_not_come_to_nccl_is_named_and_the_stream_goes_on,
        "NCCL_MULTI_RANK_GPU_ENABLE" = "1"
    );
    late(Family::Nccl);
}

fn differ(backend: Family) {
    ranks(2, &config(backend, LONG), |seat| {
        goes_on(seat);
        let _ = seat.all_reduce(if seat.me() == 0 { 4 } else { 5 });
        let error = seat.broken();
        seat.settle().expect("the stream goes on");
        assert_eq!(error.code, Code::Mismatch, "{error}");
        assert!(error.detail.contains("count 4") && error.detail.contains("count 5"), "{error}");
    });
}

#[test]
fn calls_that_differ_are_named_in_streams() {
    alone!(calls_that_differ_are_named_in_streams);
    differ(Family::Native);
}

#[test]
fn calls_that_differ_are_named_beside_nccl() {
    alone!(calls_that_differ_are_named_beside_nccl, "NCCL_MULTI_RANK_GPU_ENABLE" = "1");
    differ(Family::Nccl);
}

fn aborted(backend: Family) {
    ranks(2, &config(backend, LONG), |seat| {
        goes_on(seat);
        if seat.me() == 1 {
            thread::sleep(Duration::from_millis(50));
            seat.comm.abort();
        } else {
            let _ = seat.all_reduce(COUNT);
        }
        seat.settle().expect("the stream goes on");
        assert_eq!(seat.broken().code, Code::Aborted);
    });
}

#[test]
fn an_abort_lets_streams_go_on() {
    alone!(an_abort_lets_streams_go_on);
    aborted(Family::Native);
}

#[test]
fn an_abort_lets_streams_of_nccl_go_on() {
    alone!(an_abort_lets_streams_of_nccl_go_on, "NCCL_MULTI_RANK_GPU_ENABLE" = "1");
    aborted(Family::Nccl);
}

/// What follows in the stream waits for all of a group, and nothing of it for itself.
fn grouped(backend: Family) {
    ranks(2, &config(backend, LONG), |seat| {
        goes_on(seat);
        let other = i64::from(1 - seat.me());
        let from = seat.comm.device_memory(32).expect("memory").expect("a GPU");
        let to = seat.comm.device_memory(32).expect("memory").expect("a GPU");
        for round in 0..20u16 {
            let value = f32::from(round) + 0.5;
            from.write(bytemuck::cast_slice(&[value; 8])).expect("written");
            let exchange = || {
                for (kind, at) in [(Collective::Send, &from), (Collective::Recv, &to)] {
                    let mut args = Args::new(kind, Dtype::F32);
                    (args.send, args.recv) = (at.at().cast_const(), at.at());
                    (args.count, args.root) = (8, other);
                    // SAFETY: the memory is there until the stream has passed the group.
                    unsafe { seat.comm.run(seat.comm.prepare(&args)?) }?;
                }
                Ok(())
            };
            seat.group(|| match round % 3 {
                0 => seat.all_reduce(COUNT).and_then(|()| exchange()),
                1 => exchange().and_then(|()| seat.all_reduce(COUNT)),
                _ => exchange(),
            })
            .expect("taken");
            seat.settle().expect("done");
            let mut read = [0f32; 8];
            to.read(bytemuck::cast_slice_mut(&mut read)).expect("read");
            assert!(read.iter().all(|one| one.to_bits() == value.to_bits()), "{read:?}");
        }
        goes_on(seat);
    });
}

#[test]
fn groups_of_collectives_and_messages_have_one_place() {
    alone!(groups_of_collectives_and_messages_have_one_place);
    grouped(Family::Native);
}

#[test]
fn groups_of_collectives_and_messages_have_one_place_with_nccl() {
    alone!(
        groups_of_collectives_and_messages_have_one_place_with_nccl,
        "NCCL_MULTI_RANK_GPU_ENABLE" = "1"
    );
    grouped(Family::Nccl);
}

/// Ranks have different parts in each call, and must give NCCL the same at once.
#[test]
fn nccl_gets_the_same_of_a_group_on_every_rank() {
    alone!(nccl_gets_the_same_of_a_group_on_every_rank, "NCCL_MULTI_RANK_GPU_ENABLE" = "1");
    ranks(2, &config(Family::Nccl, Duration::from_secs(10)), |seat| {
        goes_on(seat);
        let me = usize::try_from(seat.me()).expect("few");
        for _ in 0..5 {
            let gathers = |first: [u64; 2], second: [u64; 2]| {
                let count = |counts: [u64; 2]| usize::try_from(counts[me]).expect("few");
                seat.group(|| {
                    seat.call(Collective::AllGatherV, 0, (count(first), &first))?;
                    seat.call(Collective::AllGatherV, 0, (count(second), &second))
                })
            };
            gathers([8, 0], [0, 8]).expect("taken");
            seat.settle().expect("done");
            seat.group(|| {
                for root in [0, 1] {
                    let counts: &[u64] = if root == i64::from(seat.me()) { &[400; 2] } else { &[] };
                    seat.call(Collective::GatherV, root, (400, counts))?;
                }
                Ok(())
            })
            .expect("taken");
            seat.settle().expect("done");
        }
        goes_on(seat);
    });
}

/// Stages are given back only when nothing in a stream waits any more.
#[test]
fn calls_that_fail_together_let_the_stream_go_on() {
    alone!(calls_that_fail_together_let_the_stream_go_on);
    ranks(2, &config(Family::Native, LONG), |seat| {
        goes_on(seat);
        if seat.me() == 0 {
            for _ in 0..4 {
                seat.call(Collective::Recv, 1, (10, &[])).expect("taken");
            }
            thread::sleep(Duration::from_millis(20));
        } else {
            thread::sleep(Duration::from_millis(60));
            seat.comm.abort();
        }
        seat.settle().expect("the stream goes on");
        if seat.me() == 0 {
            assert_eq!(seat.broken().code, Code::Aborted);
        }
    });
}

/// What goes on beside a capture of the program's is no part of it, and does not disturb it.
#[test]
fn captures_are_not_disturbed_by_calls_under_way() {
    alone!(captures_are_not_disturbed_by_calls_under_way);
    // What the test itself asks of CUDA on one thread would disturb the other's capture.
    let met = Barrier::new(2);
    ranks(2, &config(Family::Native, LONG), |seat| {
        goes_on(seat);
        met.wait();
        if seat.me() == 0 {
            seat.all_reduce(COUNT).expect("taken");
            let other = seat.comm.device_stream().expect("a stream").expect("a GPU");
            // SAFETY: it outlives what is made of its handle.
            let stream = unsafe {
                StreamRef::of(seat.reference().driver(), other.raw() as *mut std::ffi::c_void)
            };
            let memory = seat.comm.device_memory(64).expect("memory").expect("a GPU");
            let at = memory.at().addr() as u64;
            let graph = Graph::capture(&stream, Mode::Global, || {
                // SAFETY: the memory is there until the stream has passed it.
                unsafe { stream.fill(at, 7, 64) }?;
                thread::sleep(Duration::from_millis(50));
                Ok(())
            });
            met.wait();
            graph.expect("undisturbed").launch(&stream).expect("launched");
            other.start().and_then(|()| other.stop()).expect("done");
        } else {
            // In the middle of the capture.
            thread::sleep(Duration::from_millis(25));
            seat.all_reduce(COUNT).expect("taken");
            met.wait();
        }
        seat.settle().expect("done");
        goes_on(seat);
    });
}

/// More than there is scratch for: several rounds.
#[test]
fn long_calls_of_what_nccl_lacks_go_in_rounds() {
    alone!(long_calls_of_what_nccl_lacks_go_in_rounds, "NCCL_MULTI_RANK_GPU_ENABLE" = "1");
    let config = Config { deterministic: true, ..config(Family::Nccl, LONG) };
    ranks(2, &config, |seat| {
        let count = (40 << 20) / 4 + 3;
        let memory = || seat.comm.device_memory(4 * count).expect("memory").expect("a GPU");
        let (send, recv) = (memory(), memory());
        let value = |i: usize| ((i % 1021) as f32) + seat.me() as f32;
        let sent: Vec<f32> = (0..count).map(value).collect();
        send.write(bytemuck::cast_slice(&sent)).expect("written");
        let mut args = Args::new(Collective::AllReduce, Dtype::F32);
        (args.send, args.recv, args.count) = (send.at(), recv.at(), count as u64);
        // SAFETY: the memory is there until the stream has passed the call.
        unsafe { seat.comm.run(seat.comm.prepare(&args).expect("a call")) }.expect("taken");
        seat.settle().expect("done");
        let mut got = vec![0f32; count];
        recv.read(bytemuck::cast_slice_mut(&mut got)).expect("read");
        let wrong = got.iter().enumerate().find(|(i, x)| **x != 2.0 * ((i % 1021) as f32) + 1.0);
        assert_eq!(wrong, None);
    });
}

#[test]
fn a_kernel_that_fails_breaks_the_communicator_by_its_name() {
    alone!(
        a_kernel_that_fails_breaks_the_communicator_by_its_name,
        "STANDIN_CUDA_FAIL" = "@cuLaunchKernel:2:719"
    );
    ranks(2, &config(Family::Native, LONG), |seat| {
        goes_on(seat);
        let _ = seat.all_reduce(COUNT);
        let error = seat.broken();
        assert!(error.detail.contains("lost") || error.code == Code::Backend, "{error}");
        seat.settle().expect_err("the device is lost");
    });
}

#[test]
fn host_memory_on_one_rank_and_device_memory_on_the_other_is_a_mismatch() {
    alone!(host_memory_on_one_rank_and_device_memory_on_the_other_is_a_mismatch);
    ranks(2, &config(Family::Native, LONG), |seat| {
        goes_on(seat);
        // SAFETY: none takes its place.
        unsafe { seat.comm.set_stream(None) }.expect("cleared");
        let error = if seat.me() == 0 {
            seat.comm.all_reduce(&[1f32; COUNT], &mut [0f32; COUNT], crate::ReduceOp::Sum)
        } else {
            seat.all_reduce(COUNT)
        };
        let error = error.expect_err("they differ");
        assert_eq!(error.code, Code::Mismatch, "{error}");
        assert!(error.detail.contains("device"), "{error}");
    });
}

#[test]
fn what_is_on_no_or_another_device_is_refused() {
    alone!(what_is_on_no_or_another_device_is_refused, "STANDIN_CUDA_DEVICES" = "2");
    let config = config(Family::Native, LONG);
    let other = Config { device: Device::Number(1), ..config.clone() };
    let other = Communicator::init_all(1, &other).expect("one rank").pop().expect("one rank");
    let other = Seat::new(other);
    ranks(1, &config, |seat| {
        // SAFETY: it is refused.
        let error = unsafe { seat.comm.set_stream(Some(other.stream.raw())) }.expect_err("refused");
        assert_eq!(error.code, Code::InvalidArgument, "{error}");
        assert!(error.detail.contains("device 1"), "{error}");
        let run = |send: *const u8, recv: *mut u8| {
            let mut args = Args::new(Collective::AllReduce, Dtype::F32);
            (args.send, args.recv, args.count) = (send, recv, COUNT as u64);
            // SAFETY: it is refused.
            let error = unsafe { seat.comm.run(seat.comm.prepare(&args)?) }.expect_err("refused");
            assert_eq!(error.code, Code::InvalidArgument, "{error}");
            Err::<(), Error>(error)
        };
        let mut host = [0f32; COUNT];
        let host = host.as_mut_ptr().cast::<u8>();
        let said = |result: Result<()>| result.expect_err("refused").detail;
        assert!(said(run(other.send.at(), seat.recv.at())).contains("device 1"));
        assert!(said(run(seat.send.at(), host)).contains("host memory"));
        goes_on(seat);
        // On host memory calls are as before.
        let mut sum = [0f32];
        seat.comm.all_reduce(&[2.0], &mut sum, crate::ReduceOp::Sum).expect("done");
        assert_eq!(sum[0].to_bits(), 2f32.to_bits());
    });
}

#[test]
fn threads_with_a_device_each_reach_each_other() {
    alone!(threads_with_a_device_each_reach_each_other, "STANDIN_CUDA_DEVICES" = "2");
    let config = Config { device: Device::LocalRank, ..config(Family::Native, LONG) };
    ranks(3, &config, |seat| {
        let device = Device::Number(seat.me() % 2);
        assert_eq!(seat.comm.config().device, device);
        goes_on(seat);
    });
    let nccl = Config { device: Device::LocalRank, ..self::config(Family::Nccl, LONG) };
    ranks(2, &nccl, goes_on);
}

#[test]
fn registered_memory_is_given_back_to_nccl() {
    let left = std::env::temp_dir().join(format!("unisono-registered-{}", std::process::id()));
    let path = left.to_str().expect("UTF-8");
    let variables = [("NCCL_MULTI_RANK_GPU_ENABLE", "1"), ("STANDIN_NCCL_LEAKS", path)];
    let name = "comm::gpu_tests::registered_memory_is_given_back_to_nccl";
    if !alone::alone(name, &standin::cuda(), &variables) {
        let text = std::fs::read_to_string(&left).expect("what is left");
        std::fs::remove_file(&left).expect("it was there");
        assert_eq!(text.trim_end(), "comms=0 registrations=0 windows=0 ops=0 memory=0");
        return;
    }
    for backend in [Family::Nccl, Family::Native] {
        ranks(2, &config(backend, LONG), |seat| {
            // SAFETY: the memory stays longer than the communicator.
            let register = |at: *mut u8, bytes| unsafe { seat.comm.register(at, bytes) };
            let (send, bytes) = (seat.send.at(), 4 * COUNT);
            goes_on(seat);
            register(send, bytes).expect("registered");
            let again = register(send.wrapping_add(8), 1).expect_err("it is registered");
            assert_eq!(again.code, Code::Overlap, "{again}");
            goes_on(seat);
            seat.comm.deregister(send).expect("it was");
            assert_eq!(
                seat.comm.deregister(send).expect_err("no more").code,
                Code::InvalidArgument
            );
            // One goes with the communicator, and one is the host's.
            register(seat.recv.at(), bytes).expect("registered");
            let mut host = [0u8; 8];
            register(host.as_mut_ptr(), 8).expect("registered");
            goes_on(seat);
            seat.comm.deregister(host.as_mut_ptr()).expect("it was");
        });
    }
}
