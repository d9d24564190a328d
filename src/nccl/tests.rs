//! The wrappers over the stand-in of `tests/standin`, and over a real NCCL where one is installed.
//!
//! NCCL, its settings and its last error belong to a process, so each of these tests runs in one of
//! its own, as a rank does.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{ptr, thread};

use super::find::Candidate;
use super::{
    Birth, BuiltIn, Call, Comm, Failure, Feature, Id, Kind, Library, Op, Progress, Registration,
    Stream, Type, Version, Window, Wishes, capability, reduces,
};
use crate::error::{Code, Error, Result};
use crate::kernel::{Convert, Fold, Form, Scalar, Source, Stage, select};
use crate::standin_nccl as standin;
use crate::types::{Dtype, Rank, ReduceOp};

/// Which test a process is for.
const ROLE: &str = "UNISONO_TEST_NCCL";
/// Ends whatever hangs. Never a measure of speed.
const WATCHDOG: Duration = Duration::from_secs(60);

const STREAM: Stream = Stream(ptr::null_mut());

/// A process that runs this test's body alone, with these variables.
fn start(test: &str, variables: &[(&str, &str)]) -> Child {
    let program = std::env::current_exe().expect("a program");
    let mut command = Command::new(program);
    command.args(["--exact", &format!("nccl::tests::{test}"), "--nocapture"]);
    command.env(ROLE, test).envs(variables.iter().copied());
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a process")
}

/// Whether this process is for this test.
fn is_for(test: &str) -> bool {
    std::env::var(ROLE).is_ok_and(|role| role == test)
}

fn finish(mut child: Child) {
    let begun = Instant::now();
    while child.try_wait().expect("a status").is_none() {
        if begun.elapsed() > WATCHDOG {
            child.kill().expect("it runs");
            let output = child.wait_with_output().expect("output");
            panic!("hangs: {}", String::from_utf8_lossy(&output.stderr));
        }
        thread::sleep(Duration::from_millis(2));
    }
    let output = child.wait_with_output().expect("output");
    let text =
        [&output.stdout[..], &output.stderr].map(|o| String::from_utf8_lossy(o).into_owned());
    assert!(output.status.success(), "{}", text.concat());
}

/// Runs `body` in a process of its own, with these variables, and sees that nothing of NCCL's is
/// left when it ends.
fn alone(test: &str, variables: &[(&str, &str)], body: impl FnOnce()) {
    if is_for(test) {
        return body();
    }
    let file = std::env::temp_dir().join(format!("unisono-{test}-{}", std::process::id()));
    let path = file.display().to_string();
    let mut all = vec![("STANDIN_NCCL_LEAKS", &*path)];
    all.extend(variables);
    finish(start(test, &all));
    let left = std::fs::read_to_string(&file).unwrap_or_default();
    let _ = std::fs::remove_file(&file);
    assert!(!left.is_empty(), "the stand-in was not there");
    for line in left.lines() {
        assert_eq!(line, "comms=0 registrations=0 windows=0 ops=0 memory=0");
    }
}

fn load(path: &Path) -> Result<Arc<Library>> {
    let name = path.as_os_str().to_owned();
    Library::load(&Candidate { name, why: "a test", binding: true }).map(Arc::new)
}

fn library() -> Arc<Library> {
    load(&standin::nccl()).expect("the stand-in")
}

/// Waits until the communicator is done.
fn settle(comm: &Comm) -> Result<()> {
    while comm.poll()? == Progress::Pending {
        thread::yield_now();
    }
    Ok(())
}

fn taken(parent: &Comm, birth: Birth) -> Result<Option<Comm>> {
    while parent.poll_birth(&birth)? == Progress::Pending {
        thread::yield_now();
    }
    Ok(parent.take(birth))
}

fn close(comm: Comm) {
    let _ = comm.finalize().expect("finalize");
    settle(&comm).expect("finalized");
    comm.destroy().expect("destroy");
}

fn at(rank: usize) -> Rank {
    Rank::at(rank)
}

/// Runs `body` as every rank of a world, each on a thread, and closes the communicators.
fn world(ranks: u32, body: impl Fn(&Comm, u32) + Sync) {
    world_of(ranks, |comm, rank| {
        body(&comm, rank);
        close(comm);
    });
}

/// The same for a body that ends its communicator.
fn world_of(ranks: u32, body: impl Fn(Comm, u32) + Sync) {
    let library = library();
    let id = Id::new(&library).expect("an id");
    thread::scope(|scope| {
        for rank in 0..ranks {
            let (library, body) = (&library, &body);
            scope.spawn(move || {
                let comm = Comm::begin(library, &id, Rank(rank), ranks, &Wishes::default());
                let comm = comm.expect("begun");
                settle(&comm).expect("all have come");
                body(comm, rank);
            });
        }
    });
}

/// Makes a call and waits for it.
fn call<T>(
    comm: &Comm,
    kind: Kind,
    send: &[T],
    recv: &mut [T],
    count: usize,
    of: Type,
) -> Result<()> {
    let (send, recv) = (send.as_ptr().cast(), recv.as_mut_ptr().cast());
    let call = Call { kind, send, recv, count, of };
    // SAFETY: the stand-in takes host memory, and is done when the communicator is; both buffers
    // live until then. Each thread has a communicator of its own.
    let begun = unsafe { comm.call(&call, STREAM) };
    let _ = begun?;
    settle(comm)
}

fn f32s(comm: &Comm, kind: Kind, send: &[f32], recv: &mut [f32], count: usize) {
    call(comm, kind, send, recv, count, Type::F32).expect("a call");
}

fn refusal<T>(outcome: Result<T>) -> Error {
    match outcome {
        Ok(_) => panic!("it was not refused"),
        Err(error) => error,
    }
}

#[test]
fn three_ranks_make_every_call() {
    alone("three_ranks_make_every_call", &[], || {
        world(3, |comm, rank| {
            assert_eq!((comm.world().unwrap(), comm.rank().unwrap()), (3, Rank(rank)));
            assert_eq!(comm.device().unwrap(), rank);
            let sum = Op::from(BuiltIn::Sum);
            let mine = [rank as f32 + 1.0, 10.0 * (rank as f32 + 1.0)];
            let mut got = [0.0; 2];
            f32s(comm, Kind::AllReduce(sum), &mine, &mut got, 2);
            assert_eq!(got, [6.0, 60.0]);
            let mut got = [-1.0; 2];
            f32s(comm, Kind::Reduce(BuiltIn::Max.into(), 1), &mine, &mut got, 2);
            assert_eq!(got, if rank == 1 { [3.0, 30.0] } else { [-1.0; 2] });
            f32s(comm, Kind::Broadcast(2), &mine, &mut got, 2);
            assert_eq!(got, [3.0, 30.0]);
            let mut all = [0.0; 6];
            f32s(comm, Kind::AllGather, &mine, &mut all, 2);
            assert_eq!(all, [1.0, 10.0, 2.0, 20.0, 3.0, 30.0]);
            let mut got = [0.0; 2];
            f32s(comm, Kind::ReduceScatter(sum), &all, &mut got, 2);
            let wanted = [3.0 * (rank as f32 + 1.0), 30.0 * (rank as f32 + 1.0)];
            assert_eq!(got, wanted);
            let blocks: Vec<f32> = (0..3).map(|to| (10 * rank + to) as f32).collect();
            let mut got = [0.0; 3];
            f32s(comm, Kind::AllToAll, &blocks, &mut got, 1);
            assert_eq!(got, [0, 10, 20].map(|from| (from + rank) as f32));
            let mut got = [-1.0; 6];
            f32s(comm, Kind::Gather(0), &mine, &mut got, 2);
            assert_eq!(got, if rank == 0 { all } else { [-1.0; 6] });
            let mut got = [0.0; 2];
            f32s(comm, Kind::Scatter(0), &all, &mut got, 2);
            assert_eq!(got, mine);
        });
    });
}

#[test]
fn in_place_calls_have_the_same_results() {
    alone("in_place_calls_have_the_same_results", &[], || {
        world(3, |comm, rank| {
            let place = |buffer: &mut [i64], send: usize, recv: usize, kind, count| {
                let at = buffer.as_mut_ptr();
                let (send, recv) = (at.wrapping_add(send).cast(), at.wrapping_add(recv).cast());
                let call = Call { kind, send, recv, count, of: Type::I64 };
                // SAFETY: both places are in the buffer, which lives until the call is done.
                let begun = unsafe { comm.call(&call, STREAM) };
                let _ = begun.expect("a call");
                settle(comm).expect("done");
            };
            let sum = Op::from(BuiltIn::Sum);
            let mine = i64::from(rank);
            let mut buffer = [mine, 5];
            place(&mut buffer, 0, 0, Kind::AllReduce(sum), 2);
            assert_eq!(buffer, [3, 15]);
            let mut buffer = [-1; 3];
            buffer[rank as usize] = mine;
            place(&mut buffer, rank as usize, 0, Kind::AllGather, 1);
            assert_eq!(buffer, [0, 1, 2]);
            place(&mut buffer, 0, rank as usize, Kind::ReduceScatter(sum), 1);
            assert_eq!(buffer[rank as usize], 3 * mine);
        });
    });
}

/// The bytes of one element of rank `rank`: small numbers that every type has, none of them zero.
fn element(dtype: Dtype, rank: usize, i: usize) -> Vec<u8> {
    let value = [3.0f32, 1.5, 2.0, 0.5][(rank + i) % 4];
    let whole = i64::from([3i8, 7, 2, 5][(rank + i) % 4]);
    let bits = |bits: &[u8]| bits.to_vec();
    match dtype {
        Dtype::F16 => bits(&half::f16::from_f32(value).to_bits().to_ne_bytes()),
        Dtype::Bf16 => bits(&half::bf16::from_f32(value).to_bits().to_ne_bytes()),
        Dtype::F32 => bits(&value.to_ne_bytes()),
        Dtype::F64 => bits(&f64::from(value).to_ne_bytes()),
        // 3, 1.5, 2, 0.5.
        Dtype::F8E4M3 => vec![[0x44, 0x3c, 0x40, 0x30][(rank + i) % 4]],
        Dtype::F8E5M2 => vec![[0x42, 0x3e, 0x40, 0x38][(rank + i) % 4]],
        // All that are left are integers, and little-endian ones are cut at will.
        _ => whole.to_le_bytes()[..dtype.bytes()].to_vec(),
    }
}

/// One element of `dtype` in the form of its accumulator.
fn widened(dtype: Dtype, element: &[u8]) -> Scalar {
    let mut wide = Scalar([0; 16]);
    let kernels = select(dtype, ReduceOp::Sum).expect("kernels");
    let convert = Convert {
        source: Source { at: element.as_ptr(), form: Form::Native },
        target: wide.0.as_mut_ptr(),
        target_form: Form::Wide,
        count: 1,
        stage: Stage::Plain,
    };
    // SAFETY: one element of each form is there.
    unsafe { (kernels.convert)(&convert) };
    wide
}

/// What the kernels of this library make of the ranks' inputs.
fn expected(dtype: Dtype, op: ReduceOp, inputs: &[Vec<u8>], factors: &[Vec<u8>]) -> Vec<u8> {
    let count = inputs[0].len() / dtype.bytes();
    let kernels = select(dtype, op).expect("kernels");
    let wide_bytes = dtype.accumulator().bytes();
    let wide = inputs.iter().zip(factors).map(|(input, factor)| {
        let mut wide = vec![0u8; count * wide_bytes];
        let stage = match op {
            ReduceOp::PreMulSum => Stage::Prepare(widened(dtype, factor)),
            _ => Stage::Plain,
        };
        let convert = Convert {
            source: Source { at: input.as_ptr(), form: Form::Native },
            target: wide.as_mut_ptr(),
            target_form: Form::Wide,
            count,
            stage,
        };
        // SAFETY: both buffers hold `count` elements of their forms.
        unsafe { (kernels.convert)(&convert) };
        wide
    });
    let wide: Vec<Vec<u8>> = wide.collect();
    let sources: Vec<Source> =
        wide.iter().map(|w| Source { at: w.as_ptr(), form: Form::Wide }).collect();
    let mut out = vec![0u8; inputs[0].len()];
    let fold = Fold {
        sources: &sources,
        targets: &[out.as_mut_ptr()],
        target_form: Form::Native,
        count,
        stage: Stage::Finish { ranks: 3 },
        streaming: 0,
    };
    // SAFETY: sources and target hold `count` elements of their forms.
    unsafe { (kernels.fold)(&fold) };
    out
}

#[test]
fn the_stand_in_reduces_as_the_kernels_do() {
    alone("the_stand_in_reduces_as_the_kernels_do", &[], || {
        world(3, |comm, rank| {
            for &dtype in Dtype::ALL {
                for &op in ReduceOp::ALL {
                    let Some(of) = reduces(comm.library.version, dtype, op) else { continue };
                    let inputs: Vec<Vec<u8>> = (0..3)
                        .map(|rank| (0..7).flat_map(|i| element(dtype, rank, i)).collect())
                        .collect();
                    let factors: Vec<Vec<u8>> = (0..3).map(|r| element(dtype, r, 1)).collect();
                    let own = (op == ReduceOp::PreMulSum).then(|| {
                        let mut scalar = [0; 8];
                        let factor = &factors[rank as usize];
                        scalar[..factor.len()].copy_from_slice(factor);
                        comm.make_op(of, &scalar).expect("an operation")
                    });
                    let chosen = own.or_else(|| BuiltIn::of(op).map(Op::from)).expect("one");
                    let mut got = vec![0u8; inputs[0].len()];
                    let input = &inputs[rank as usize];
                    call(comm, Kind::AllReduce(chosen), input, &mut got, 7, of).expect("a call");
                    assert_eq!(got, expected(dtype, op, &inputs, &factors), "{dtype} {op}");
                    if let Some(own) = own {
                        comm.free_op(own).expect("it was made");
                        assert!(comm.free_op(own).is_err());
                    }
                }
            }
        });
    });
}

#[test]
fn messages_of_a_group_go_on_together() {
    alone("messages_of_a_group_go_on_together", &[], || {
        world(3, |comm, rank| {
            let (next, before) = ((rank + 1) % 3, (rank + 2) % 3);
            let (mine, mut got) = ([rank as f32; 5], [0f32; 5]);
            let (send, recv) = (mine.as_ptr().cast(), got.as_mut_ptr().cast());
            let (of, count) = (Type::F32, 5);
            let out = Call { kind: Kind::Send(next), send, recv: ptr::null_mut(), count, of };
            let back = Call { kind: Kind::Recv(before), send: ptr::null(), recv, count, of };
            let group = comm.library.group(|| {
                // SAFETY: the buffers live until the communicator is done.
                let (one, other) = unsafe { (comm.call(&out, STREAM), comm.call(&back, STREAM)) };
                let _ = (one?, other?);
                Ok(())
            });
            let _ = group.expect("a group");
            settle(comm).expect("done");
            assert_eq!(got, [before as f32; 5]);
        });
    });
}

/// An error inside a group is told, the thread is out of the group after it, and the communicator
/// is good for nothing more.
#[test]
fn a_group_that_fails_is_closed() {
    alone("a_group_that_fails_is_closed", &[], || {
        world_of(1, |comm, _| {
            let failed = comm.library.group(|| {
                let bad = Kind::Broadcast(7);
                call(&comm, bad, &[1f32], &mut [0f32], 1, Type::F32)
            });
            let error = refusal(failed);
            assert_eq!(Failure::of(error.native), Failure::Argument, "{error}");
            assert_eq!(refusal(comm.poll()).native, error.native);
            comm.abort().expect("aborted");
        });
        world(1, |comm, _| assert_eq!(sum(comm, 7), 7));
    });
}

#[test]
fn a_start_that_waits_for_ranks_is_pending_and_takes_no_calls() {
    alone("a_start_that_waits_for_ranks_is_pending_and_takes_no_calls", &[], || {
        let library = library();
        let id = Id::new(&library).expect("an id");
        let begin =
            |rank| Comm::begin(&library, &id, at(rank), 2, &Wishes::default()).expect("begun");
        let first = begin(0);
        assert_eq!(first.poll().expect("no error"), Progress::Pending);
        let error = refusal(first.world());
        assert_eq!((error.code, Failure::of(error.native)), (Code::Backend, Failure::Argument));
        let second = begin(1);
        for comm in [&first, &second] {
            settle(comm).expect("all have come");
        }
        close(first);
        close(second);
    });
}

#[test]
fn a_start_that_never_ends_is_aborted() {
    let hang = [("STANDIN_NCCL_HANG", "ncclCommInitRankConfig")];
    alone("a_start_that_never_ends_is_aborted", &hang, || {
        let library = library();
        let id = Id::new(&library).expect("an id");
        let begin = || Comm::begin(&library, &id, at(0), 1, &Wishes::default()).expect("begun");
        let comm = begin();
        assert_eq!(comm.poll().expect("no error"), Progress::Pending);
        comm.abort().expect("aborted");
        // As dropping does.
        drop(begin());
    });
}

#[test]
fn an_error_that_comes_later_is_told_when_polled() {
    let fault = [("STANDIN_NCCL_ASYNC", "0:2:6")];
    alone("an_error_that_comes_later_is_told_when_polled", &fault, || {
        let library = library();
        let id = Id::new(&library).expect("an id");
        let comm = Comm::begin(&library, &id, at(0), 1, &Wishes::default()).expect("begun");
        settle(&comm).expect("all have come");
        let kind = Kind::AllReduce(BuiltIn::Sum.into());
        let (mine, mut got) = ([1f32], [0f32]);
        f32s(&comm, kind, &mine, &mut got, 1);
        let (send, recv) = (mine.as_ptr().cast(), got.as_mut_ptr().cast());
        // SAFETY: the buffers outlive the communicator, which is aborted below.
        let begun =
            unsafe { comm.call(&Call { kind, send, recv, count: 1, of: Type::F32 }, STREAM) };
        assert!(begun.is_ok() || Failure::of(refusal(begun).native) == Failure::Remote);
        let error = loop {
            match comm.poll() {
                Ok(_) => thread::yield_now(),
                Err(error) => break error,
            }
        };
        assert_eq!(Failure::of(error.native), Failure::Remote);
        let text = "ncclCommGetAsyncError of NCCL 2.30.7: a rank has ended, or the network to it: \
                    something the test asked for (code 6)";
        assert_eq!(&*error.detail, text);
        assert_eq!(refusal(comm.world()).native, 6);
        comm.abort().expect("aborted");
    });
}

/// Every number of NCCL's has its own words, and the call that returned it.
#[test]
fn errors_say_call_version_words_and_number() {
    let faults =
        (1..=9).map(|code| format!("ncclAllReduce:{code}:{}", if code == 7 { 9 } else { code }));
    let faults = faults.collect::<Vec<_>>().join(",");
    let variables = [("STANDIN_NCCL_FAIL", &*faults), ("STANDIN_NCCL_VERSION", "22105")];
    alone("errors_say_call_version_words_and_number", &variables, || {
        world(1, |comm, _| {
            let words = [
                "unhandled CUDA error",
                "unhandled system error",
                "internal error",
                "invalid argument",
                "invalid usage",
                "a rank has ended, or the network to it",
                "unknown result code",
                "timeout",
            ];
            for (words, code) in words.into_iter().zip([1, 2, 3, 4, 5, 6, 9, 8]) {
                let kind = Kind::AllReduce(BuiltIn::Sum.into());
                let error = refusal(call(comm, kind, &[1f32], &mut [0f32], 1, Type::F32));
                assert_eq!((error.code, error.native), (Code::Backend, code));
                let text = format!(
                    "ncclAllReduce of NCCL 2.21.5: {words}: a fault that the test asked for (code \
                     {code})"
                );
                assert_eq!(&*error.detail, text);
            }
        });
    });
}

/// Two ranks on device 0: what NCCL says of it in every version, and the way out.
#[test]
fn ranks_on_one_gpu_are_refused_with_the_way_out() {
    let test = "ranks_on_one_gpu_are_refused_with_the_way_out";
    let body = || {
        let library = library();
        let id = Id::new(&library).expect("an id");
        let begin = |rank| Comm::begin(&library, &id, at(rank), 2, &Wishes::default());
        let ranks = [begin(0), begin(1)];
        let outcome = ranks.map(|comm| comm.and_then(|comm| settle(&comm).map(|()| comm)));
        if std::env::var("NCCL_MULTI_RANK_GPU_ENABLE").is_ok() {
            return outcome.into_iter().for_each(|comm| close(comm.expect("it is allowed")));
        }
        for error in outcome.map(refusal) {
            assert_eq!(Failure::of(error.native), Failure::Usage);
            let way = if library.has(Feature::SharedGpu) {
                "or set NCCL_MULTI_RANK_GPU_ENABLE=1, or use --backend native"
            } else {
                "or use --backend native, or NCCL 2.30 with NCCL_MULTI_RANK_GPU_ENABLE=1"
            };
            assert!(error.detail.ends_with(way), "{error}");
        }
    };
    let device = ("STANDIN_NCCL_DEVICE", "0");
    alone(test, &[device], body);
    alone(test, &[device, ("STANDIN_NCCL_VERSION", "22907")], body);
    alone(test, &[device, ("NCCL_MULTI_RANK_GPU_ENABLE", "1")], body);
}

#[test]
fn what_a_version_lacks_is_refused_even_if_the_call_is_there() {
    let version = [("STANDIN_NCCL_VERSION", "22105")];
    alone("what_a_version_lacks_is_refused_even_if_the_call_is_there", &version, || {
        world_of(1, |comm, _| {
            let library = &comm.library;
            let has: Vec<_> = Feature::ALL.iter().filter(|f| library.has(**f)).collect();
            assert_eq!(has, [&Feature::Register, &Feature::Memory]);
            let error = refusal(comm.revoke());
            assert_eq!(error.code, Code::Unsupported);
            assert_eq!(&*error.detail, "NCCL 2.21.5 has no revoke: 2.28.7 and later have");
            let mut got = [0f32];
            assert!(call(&comm, Kind::AllToAll, &[1f32], &mut got, 1, Type::F32).is_err());
            assert!(comm.shrink(&[Rank(1)], false, &Wishes::default()).is_err());
            assert!(comm.grow_id().is_err());
            // SAFETY: refused before anything is done with the memory.
            assert!(unsafe { comm.open_window(ptr::null_mut(), 0) }.is_err());
            assert_eq!(reduces(library.version, Dtype::F8E4M3, ReduceOp::Sum), None);
            assert_eq!(capability(Dtype::F8E4M3), (9, 0));
            let unknown = call(&comm, Kind::AllGather, &[1u8], &mut [0u8], 1, Type::F8E4M3);
            assert_eq!(Failure::of(refusal(unknown).native), Failure::Argument);
            comm.abort().expect("aborted");
        });
    });
}

#[test]
fn what_is_too_old_is_refused_with_both_versions() {
    let version = [("STANDIN_NCCL_VERSION", "21701")];
    alone("what_is_too_old_is_refused_with_both_versions", &version, || {
        let error = refusal(load(&standin::nccl()));
        assert_eq!(error.code, Code::Unsupported);
        let text = "it is NCCL 2.17.1, and 2.18.1 is the oldest that can be used";
        assert!(error.detail.ends_with(text), "{error}");
    });
}

#[test]
fn what_is_no_nccl_is_refused() {
    let said = |path: &Path| refusal(load(path)).detail;
    let bare = said(&standin::nccl_bare());
    assert!(bare.ends_with("NCCL 2.30.7 without ncclGetErrorString"), "{bare}");
    let other = said(Path::new("libm.so.6"));
    assert!(other.contains("it is no NCCL: ncclGetVersion is missing"), "{other}");
    let none = said(Path::new("/no/libnccl.so.2"));
    assert!(none.contains("\"/no/libnccl.so.2\" (a test)"), "{none}");
}

/// What is named and cannot be used is not passed over; without a name the text says what to do.
#[test]
fn where_there_is_none_the_text_says_what_was_tried() {
    let none = [("PATH", "/no"), ("VIRTUAL_ENV", ""), ("NCCL_HOME", ""), ("CUDA_HOME", "")];
    alone("where_there_is_none_the_text_says_what_was_tried", &none, || {
        let error = refusal(Library::open(Some("/no/libnccl.so.2")));
        assert!(error.detail.contains("named by UNISONO_NCCL_LIB"), "{error}");
        match Library::open(None) {
            Ok(found) => assert!(found.place.contains("by the system's search"), "{found:?}"),
            Err(error) => {
                assert_eq!(error.code, Code::Unsupported);
                for word in ["nvidia-nccl-cu13", "libnccl2", "UNISONO_NCCL_LIB", "tried \"libnccl"]
                {
                    assert!(error.detail.contains(word), "{word}: {error}");
                }
            }
        }
        let named = standin::nccl().display().to_string();
        let found = Library::open(Some(&named)).expect("the stand-in");
        assert_eq!(found.version, Version::new(2, 30, 7));
    });
}

#[test]
fn communicators_are_split_shrunk_and_grown() {
    alone("communicators_are_split_shrunk_and_grown", &[], || {
        let wishes = Wishes { blocks_max: Some(2), share: true };
        let grown_id = std::sync::Mutex::new(None);
        let library = library();
        thread::scope(|scope| {
            scope.spawn(|| {
                let id = loop {
                    match *grown_id.lock().expect("a lock") {
                        Some(id) => break id,
                        None => thread::yield_now(),
                    }
                };
                let comm = Comm::join(&library, &id, at(3), 4, &wishes).expect("begun");
                settle(&comm).expect("joined");
                assert_eq!(sum(&comm, 3), 6);
                close(comm);
            });
            world(3, |comm, rank| {
                // The last one first; the middle one is not there.
                let color = (rank != 1).then_some(7);
                let birth = comm.split(color, 9 - rank, &wishes).expect("begun");
                let part = taken(comm, birth).expect("split");
                assert_eq!(part.is_some(), rank != 1);
                if let Some(part) = part {
                    let wanted = (2, Rank(if rank == 2 { 0 } else { 1 }));
                    assert_eq!((part.world().unwrap(), part.rank().unwrap()), wanted);
                    assert_eq!(sum(&part, rank), 2);
                    close(part);
                }
                let id = (rank == 0).then(|| comm.grow_id().expect("an id"));
                if id.is_some() {
                    *grown_id.lock().expect("a lock") = id;
                }
                let birth = comm.grow(4, id.as_ref(), &wishes).expect("begun");
                let grown = taken(comm, birth).expect("grown").expect("all are in it");
                assert_eq!((grown.world().unwrap(), grown.rank().unwrap()), (4, Rank(rank)));
                assert_eq!(sum(&grown, rank), 6);
                close(grown);
                if rank != 0 {
                    let birth = comm.shrink(&[Rank(0)], false, &wishes).expect("begun");
                    let left = taken(comm, birth).expect("shrunk").expect("this rank is in it");
                    assert_eq!((left.world().unwrap(), left.rank().unwrap()), (2, Rank(rank - 1)));
                    assert_eq!(sum(&left, rank), 3);
                    close(left);
                }
            });
        });
    });
}

/// The sum of one number of each rank.
fn sum(comm: &Comm, mine: u32) -> u32 {
    let mut got = [0];
    call(comm, Kind::AllReduce(BuiltIn::Sum.into()), &[mine], &mut got, 1, Type::U32)
        .expect("a call");
    got[0]
}

/// A rank is missing from a call: who waits for it ends the call and goes on without it.
#[test]
fn what_is_revoked_or_aborted_is_shrunk() {
    alone("what_is_revoked_or_aborted_is_shrunk", &[], || {
        for revokes in [true, false] {
            world_of(3, |comm, rank| {
                if rank == 2 {
                    return close(comm);
                }
                let (mine, mut got) = ([rank], [0u32]);
                let kind = Kind::AllReduce(BuiltIn::Sum.into());
                let (send, recv) = (mine.as_ptr().cast(), got.as_mut_ptr().cast());
                let all = Call { kind, send, recv, count: 1, of: Type::U32 };
                // SAFETY: the buffers live until the call has ended below.
                let begun = unsafe { comm.call(&all, STREAM) };
                assert_eq!(begun.expect("begun"), Progress::Pending);
                if revokes {
                    let _ = comm.revoke().expect("revoked");
                    settle(&comm).expect("quiet");
                    let error = refusal(call(&comm, kind, &[1], &mut [0], 1, Type::U32));
                    assert_eq!(Failure::of(error.native), Failure::Usage);
                }
                let birth = comm.shrink(&[Rank(2)], !revokes, &Wishes::default()).expect("begun");
                let left = taken(&comm, birth).expect("shrunk").expect("this rank is in it");
                assert_eq!(sum(&left, rank + 1), 3);
                close(left);
                if revokes {
                    comm.destroy().expect("destroyed");
                } else {
                    close(comm);
                }
            });
        }
    });
}

/// What is being made when its parent ends is not left behind, taken or not.
#[test]
fn a_birth_ends_with_its_parent() {
    alone("a_birth_ends_with_its_parent", &[], || {
        let library = library();
        let id = Id::new(&library).expect("an id");
        let begin =
            |rank| Comm::begin(&library, &id, at(rank), 2, &Wishes::default()).expect("begun");
        let (first, second) = (begin(0), begin(1));
        settle(&first).and_then(|()| settle(&second)).expect("all have come");
        // One waits for the other, who never comes.
        let pending = first.split(Some(0), 0, &Wishes::default()).expect("begun");
        assert_eq!(first.poll_birth(&pending).expect("no error"), Progress::Pending);
        drop(first);
        drop(pending);
        drop(second);
        // One is ready and nobody takes it.
        let id = Id::new(&library).expect("an id");
        let comm = Comm::begin(&library, &id, at(0), 1, &Wishes::default()).expect("begun");
        settle(&comm).expect("all have come");
        let ready = comm.split(Some(0), 0, &Wishes::default()).expect("begun");
        while comm.poll_birth(&ready).expect("no error") == Progress::Pending {
            thread::yield_now();
        }
        comm.destroy().expect("destroyed");
    });
}

#[test]
fn memory_is_registered_and_given_back() {
    alone("memory_is_registered_and_given_back", &[], || {
        world(2, |comm, _| {
            let at = comm.library.mem_alloc(100).expect("memory");
            // SAFETY: the memory stays until it is given back below.
            let registration: Registration = unsafe { comm.register(at, 100) }.expect("registered");
            comm.deregister(registration).expect("given back");
            // SAFETY: as above.
            let (window, _): (Window, _) = unsafe { comm.open_window(at, 100) }.expect("begun");
            settle(comm).expect("registered");
            let _ = comm.close_window(window).expect("given back");
            settle(comm).expect("closed");
            // SAFETY: it was allocated above.
            unsafe { comm.library.mem_free(at) }.expect("given back");
        });
    });
}

#[test]
fn ranks_that_are_processes_read_each_other() {
    let test = "ranks_that_are_processes_read_each_other";
    if is_for(test) {
        let number = |name: &str| std::env::var(name).expect("set").parse::<usize>().expect("one");
        let mut id = Id([0; 128]);
        let text = std::env::var("UNISONO_TEST_ID").expect("set");
        id.0[..text.len()].copy_from_slice(text.as_bytes());
        let rank = number("UNISONO_TEST_RANK");
        let comm = Comm::begin(&library(), &id, at(rank), 2, &Wishes::default()).expect("begun");
        settle(&comm).expect("all have come");
        let count = 100_003;
        let mine: Vec<u64> = (0..count).map(|i| (i * (rank + 1)) as u64).collect();
        let mut got = vec![0u64; count];
        let kind = Kind::AllReduce(BuiltIn::Sum.into());
        call(&comm, kind, &mine, &mut got, count, Type::U64).expect("a call");
        assert!(got.iter().enumerate().all(|(i, sum)| *sum == 3 * i as u64));
        return close(comm);
    }
    standin::nccl();
    let id = format!("{:032x}", u128::from(std::process::id()) << 64 | 0xfeed);
    let ranks = ["0", "1"]
        .map(|rank| start(test, &[("UNISONO_TEST_ID", &*id), ("UNISONO_TEST_RANK", rank)]));
    ranks.into_iter().for_each(finish);
}

#[test]
fn a_forked_child_does_not_call() {
    alone("a_forked_child_does_not_call", &[], || {
        world(1, |comm, _| {
            // SAFETY: the child looks at what it has a copy of, and ends without unwinding.
            let child = unsafe { libc::fork() };
            if child == 0 {
                let refused = |outcome: Result<u32>| {
                    outcome.is_err_and(|error| error.code == Code::InvalidState)
                };
                let bad = !refused(comm.world()) || comm.poll().is_ok();
                let bad = bad || comm.library.group(|| Ok(())).is_ok();
                // SAFETY: as above.
                unsafe { libc::_exit(bad.into()) };
            }
            let mut status = -1;
            // SAFETY: waits for the child made above.
            unsafe { libc::waitpid(child, &raw mut status, 0) };
            assert_eq!(status, 0);
        });
    });
}

/// Libraries of real NCCLs that the tests have installed.
fn real() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("build/venv");
    let environments = std::fs::read_dir(root).into_iter().flatten().flatten();
    let pythons = environments
        .flat_map(|e| std::fs::read_dir(e.path().join("lib")).into_iter().flatten().flatten());
    let file = "site-packages/nvidia/nccl/lib/libnccl.so.2";
    pythons.map(|p| p.path().join(file)).filter(|path| path.is_file()).collect()
}

/// The real library answers without a GPU, and says what is missing when asked for more.
#[test]
fn a_real_nccl_opens_and_names_what_it_lacks() {
    if real().is_empty() || Path::new("/dev/nvidiactl").exists() {
        eprintln!("skipped: no NCCL under build/venv, or a GPU is here");
        return;
    }
    let test = "a_real_nccl_opens_and_names_what_it_lacks";
    if !is_for(test) {
        return finish(start(test, &[]));
    }
    let library = load(&real()[0]).expect("NCCL");
    assert!(library.version >= Version::new(2, 18, 1), "{library:?}");
    let wanted = |f: &&Feature| library.version >= f.since();
    assert!(Feature::ALL.iter().filter(wanted).all(|f| library.has(*f)));
    let error = Id::new(&library)
        .and_then(|id| Comm::begin(&library, &id, at(0), 1, &Wishes::default()))
        .and_then(|comm| settle(&comm));
    let error = refusal(error);
    assert_eq!((error.code, Failure::of(error.native)), (Code::Backend, Failure::Cuda));
    let begins =
        format!("ncclCommInitRankConfig of NCCL {}: unhandled CUDA error: ", library.version);
    assert!(error.detail.starts_with(&begins), "{error}");
}

/// Threads may share both.
const _: fn() = || {
    fn shared<T: Send + Sync>() {}
    shared::<Comm>();
    shared::<Library>();
};
