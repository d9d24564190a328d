//! What must not hang or be lost, whatever goes wrong: a communicator of few ranks, or a backend
//! that misbehaves.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::core::Core;
use super::table::BLOCKING;
use super::{Args, Communicator, F8E4M3};
use crate::backend::Backend;
use crate::backend::drive::{Outcome, Patience, drive};
use crate::call::{Call, Ragged};
use crate::config::Config;
use crate::engine::{Hurried, Known, Progress};
use crate::error::{Code, Error, Result};
use crate::link::doze::Doze;
use crate::types::{Collective, Dtype, Rank, ReduceOp};

fn threads(world: i64, config: &Config) -> Vec<Communicator> {
    Communicator::init_all(world, config).expect("communicators")
}

fn alone(config: &Config) -> Communicator {
    threads(1, config).pop().expect("one rank")
}

fn message(comm: &Communicator, kind: Collective, at: &mut [u8], count: u64) -> Call {
    let mut args = Args::new(kind, Dtype::U8);
    (args.send, args.recv) = (at.as_ptr(), at.as_mut_ptr());
    args.count = count;
    comm.prepare(&args).expect("a valid call")
}

/// A test that would hang fails instead.
fn within<R: Send>(limit: Duration, what: impl FnOnce() -> R + Send) -> R {
    thread::scope(|scope| {
        let worker = scope.spawn(what);
        let until = Instant::now() + limit;
        while !worker.is_finished() {
            if Instant::now() >= until {
                eprintln!("still not done after {limit:?}");
                std::process::abort();
            }
            thread::sleep(Duration::from_millis(1));
        }
        worker.join().expect("no panic")
    })
}

const LIMIT: Duration = Duration::from_secs(20);

#[test]
fn both_ends_of_an_uneven_message_to_oneself_end() {
    let comm = alone(&Config { timeout: None, ..Config::default() });
    let (mut sent, mut received) = ([1u8; 2], [0u8; 1]);
    let send = message(&comm, Collective::Send, &mut sent, 2);
    let recv = message(&comm, Collective::Recv, &mut received, 1);
    let error = within(LIMIT, || {
        // SAFETY: both buffers outlive the calls.
        let mut first = unsafe { comm.start(send) }.expect("posted");
        // SAFETY: as above.
        let second = unsafe { comm.start(recv) }.expect("posted").wait(None);
        let second = second.expect_err("uneven");
        assert_eq!(second.code, Code::Mismatch);
        assert!(second.detail.contains("send u8 count 2"), "{second}");
        assert!(second.detail.contains("recv u8 count 1"), "{second}");
        first.wait(None).expect_err("uneven")
    });
    assert_eq!(error.code, Code::Mismatch);
}

/// What the deadline's error says of messages: no number of a call, and each that is posted.
#[test]
fn a_message_that_did_not_come_is_described() {
    let timeout = Some(Duration::from_millis(100));
    let config = Config { timeout, progress_thread: false, ..Config::default() };
    let comm = alone(&config);
    let error = comm.recv(&mut [0u8; 3], Rank(0)).expect_err("never sent");
    assert_eq!((error.code, error.peer, error.seq), (Code::TimedOut, None, None));
    let said = "a message of this rank to itself has no partner: recv of 3 u8";
    assert!(error.detail.contains(said), "{error}");

    let comms = threads(2, &config);
    let mut far = [0u8; 5];
    let pending = message(&comms[0], Collective::Recv, &mut far, 5);
    // SAFETY: the buffer outlives the communicators.
    let pending = unsafe { comms[0].start(pending) }.expect("posted");
    let error = comms[0].recv(&mut [0f32; 4], Rank(1)).expect_err("never sent");
    assert_eq!((error.code, error.peer, error.seq), (Code::TimedOut, Some(Rank(1)), None));
    assert!(error.detail.contains("waited for rank 1"), "{error}");
    assert!(error.detail.contains("recv from rank 1 of 4 f32"), "{error}");
    assert!(error.detail.contains("recv of 5 u8"), "{error}");
    let large = vec![0u8; 16 << 20];
    let comms = threads(2, &config);
    let error = comms[0].send(&large, Rank(1)).expect_err("never taken");
    assert_eq!((error.code, error.peer, error.seq), (Code::TimedOut, Some(Rank(1)), None));
    assert!(error.detail.contains("(send to rank 1, "), "{error}");
    drop(pending);
}

#[test]
fn a_message_may_not_overlap_the_one_received_beside_it() {
    let comm = alone(&Config::default());
    let mut both = [0u8; 8];
    let send = message(&comm, Collective::Send, &mut both[..6], 6);
    let recv = message(&comm, Collective::Recv, &mut both[4..], 4);
    // SAFETY: the buffer outlives the call, which is refused.
    let refused = unsafe { comm.run_pair(send, recv) }.expect_err("they overlap");
    assert_eq!(refused.code, Code::Overlap);
}

#[test]
fn a_rank_without_data_may_give_no_buffers() {
    for kind in [Collective::AllToAll, Collective::AllToAllV] {
        let comms = threads(2, &Config::default());
        let run = |comm: &Communicator| {
            let (sent, mut received) = ([0u8; 2], [0u8; 2]);
            let mut args = Args::new(kind, Dtype::U8);
            if comm.rank().0 == 1 {
                (args.send, args.recv) = (sent.as_ptr(), received.as_mut_ptr());
            }
            let none = [0, 0];
            (args.send_counts, args.recv_counts) = (&none, &none);
            let call = comm.prepare(&args)?;
            // SAFETY: no byte is touched.
            unsafe { comm.run(call) }
        };
        let ended: Vec<Result<()>> = thread::scope(|scope| {
            let ranks: Vec<_> = comms.iter().map(|comm| scope.spawn(move || run(comm))).collect();
            ranks.into_iter().map(|rank| rank.join().expect("no panic")).collect()
        });
        assert!(ended.iter().all(Result::is_ok), "{kind}: {ended:?}");
    }
}

#[test]
fn test_alone_keeps_a_calls_deadline() {
    let timeout = Some(Duration::from_millis(50));
    let comm = alone(&Config { timeout, progress_thread: false, ..Config::default() });
    let mut data = [0u8; 1];
    let recv = message(&comm, Collective::Recv, &mut data, 1);
    let error = within(LIMIT, || {
        // SAFETY: the buffer outlives the call.
        let mut request = unsafe { comm.start(recv) }.expect("posted");
        loop {
            if let Err(error) = request.test() {
                return error;
            }
        }
    });
    assert_eq!(error.code, Code::TimedOut);
}

/// Whichever rank gives up first, and whether the call's deadline or that of the destroy passes.
#[test]
fn a_destroy_that_ends_outstanding_calls_says_so_on_every_rank() {
    for progress_thread in [false, true] {
        let timeout = Some(Duration::from_millis(500));
        let config = Config { timeout, progress_thread, ..Config::default() };
        let posted = std::sync::Barrier::new(3);
        let end = |comm: Communicator| {
            let mut data = [0u8; 1];
            let mut args = Args::new(Collective::Recv, Dtype::U8);
            (args.recv, args.count) = (data.as_mut_ptr(), 1);
            args.root = i64::from((comm.rank().0 + 1) % 3);
            let recv = comm.prepare(&args).expect("a valid call");
            // SAFETY: the buffer outlives the call, which ends with the communicator at the latest.
            let mut request = unsafe { comm.start(recv) }.expect("posted");
            posted.wait();
            let destroyed = comm.destroy();
            (destroyed, request.wait(None).expect_err("never sent"))
        };
        let ended: Vec<_> = within(LIMIT, || {
            thread::scope(|scope| {
                let comms = threads(3, &config).into_iter();
                let ranks: Vec<_> = comms.map(|comm| scope.spawn(|| end(comm))).collect();
                ranks.into_iter().map(|rank| rank.join().expect("no panic")).collect()
            })
        });
        for (destroyed, request) in ended {
            assert_eq!(destroyed.expect_err("outstanding").code, Code::TimedOut);
            assert!([Code::TimedOut, Code::Aborted].contains(&request.code), "{request}");
        }
    }
    // What had ended before is no news.
    let comm = alone(&Config::default());
    comm.abort();
    comm.destroy().expect("nothing is outstanding");
}

#[test]
fn dropping_a_communicator_ends_a_wait_without_deadline() {
    let comm = alone(&Config { timeout: None, progress_thread: true, ..Config::default() });
    let mut data = [0u8; 1];
    let recv = message(&comm, Collective::Recv, &mut data, 1);
    // SAFETY: the buffer outlives the call.
    let mut request = unsafe { comm.start(recv) }.expect("posted");
    let error = within(LIMIT, move || {
        let waiter = thread::spawn(move || request.wait(Some(Duration::MAX)));
        thread::sleep(Duration::from_millis(50));
        drop(comm);
        waiter.join().expect("no panic").expect_err("dropped")
    });
    assert_eq!(error.code, Code::Aborted);
}

/// A backend that panics once, or moves for ever.
#[derive(Debug)]
struct Odd {
    panics: bool,
    held: Vec<u32>,
    broken: Option<Error>,
    bell: Arc<Doze>,
}

impl Odd {
    fn new(panics: bool) -> Self {
        let bell = Arc::new(Doze::new().expect("a bell"));
        Self { panics, held: Vec::new(), broken: None, bell }
    }
}

impl Backend for Odd {
    unsafe fn submit(&mut self, _: Call, ticket: u32) {
        self.held.push(ticket);
    }
    unsafe fn hurry(&mut self, _: (&Call, &mut Known), _: u32, _: u32) -> Hurried {
        Hurried::Left
    }

    fn poll(&mut self) -> Progress {
        if self.broken.is_some() {
            return Progress::Idle;
        }
        assert!(!self.panics, "on purpose");
        Progress::Moved
    }
    fn take_ended(&mut self) -> Option<(u32, Result<()>)> {
        None
    }
    fn take_spent(&mut self) -> Option<Ragged> {
        None
    }
    fn watch(&mut self) {}

    fn watched(&self) -> Instant {
        Instant::now()
    }

    fn doze(&mut self, _: Duration) {}
    fn bell(&self) -> Arc<Doze> {
        self.bell.clone()
    }
    fn fail(&mut self, error: Error) {
        self.broken.get_or_insert(error);
    }
    fn broken(&self) -> Option<&Error> {
        self.broken.as_ref()
    }
    fn awaited(&mut self) -> Vec<Rank> {
        Vec::new()
    }
    fn standing(&self) -> String {
        String::new()
    }
    fn present(&self) -> Option<u64> {
        None
    }
    fn alloc(&mut self, _: usize) -> Result<*mut u8> {
        Err(Error::new(Code::Unsupported, "no memory"))
    }
    fn free(&mut self, _: *mut u8) -> Result<()> {
        Ok(())
    }
    fn prefer(&mut self, _: Option<crate::plan::Algorithm>) {}
    fn take_chosen(&mut self) -> Option<crate::plan::Algorithm> {
        None
    }
    fn compare_ends(&mut self) -> Result<()> {
        Ok(())
    }

    fn close(&mut self) {}
}

fn patience() -> Patience {
    Patience::new(false, None)
}

#[test]
fn after_a_panic_everything_pending_ends() {
    let core = Core::new(Box::new(Odd::new(true)), patience());
    let ticket = core.table.take().expect("a ticket");
    core.table.begin(ticket, 1, None);
    let barrier = || Call::new(Collective::Barrier, Dtype::U8);
    core.post(barrier(), ticket);
    assert!(catch_unwind(AssertUnwindSafe(|| core.run(barrier(), None))).is_err());
    let error = within(LIMIT, || {
        core.wait(ticket, None).expect("it ends");
        core.table.result(ticket).expect_err("the backend panicked")
    });
    assert_eq!(error.code, Code::Internal);
    assert!(!core.table.is_pending(BLOCKING));
    assert_eq!(core.broken().expect("it is broken").code, Code::Internal);
}

#[test]
fn a_deadline_holds_while_things_keep_moving() {
    let mut backend = Odd::new(false);
    let deadline = Some(Instant::now() + Duration::from_millis(20));
    let outcome = within(LIMIT, || drive(&mut backend, patience(), deadline, || false, |_| false));
    assert_eq!(outcome, Outcome::Deadline);
    let outcome = within(LIMIT, || drive(&mut backend, patience(), None, || true, |_| false));
    assert_eq!(outcome, Outcome::Interrupted);
}

#[test]
fn uneven_blocks_on_slices() {
    let comms = threads(3, &Config::default());
    let counts = [2u64, 0, 1];
    thread::scope(|scope| {
        for comm in &comms {
            scope.spawn(move || {
                let me = comm.rank().0;
                let own = usize::try_from(counts[me as usize]).expect("small");
                let mine = vec![me; own];
                let mut all = [9; 3];
                comm.all_gather_v(&mine, &mut all, &counts).expect("all_gather_v");
                assert_eq!(all, [0, 0, 2]);
                let mut sum = vec![0; own];
                comm.reduce_scatter_v(&all, &mut sum, &counts, ReduceOp::Sum).expect("reduced");
                assert_eq!(sum, vec![3 * me; own]);
                let root = Rank(1);
                let mut gathered = [9; 3];
                comm.gather_v(&mine, &mut gathered, &counts, root).expect("gather_v");
                assert_eq!(gathered, if comm.rank() == root { [0, 0, 2] } else { [9; 3] });
                let mut back = vec![7; own];
                comm.scatter_v(&gathered, &counts, &mut back, root).expect("scatter_v");
                assert_eq!(back, mine);
                // Rank r sends r elements to each.
                let (given, taken) = ([u64::from(me); 3], [0u64, 1, 2]);
                let (sent, mut got) = (vec![me; 3 * me as usize], [9; 3]);
                comm.all_to_all_v(&sent, &given, &mut got, &taken).expect("all_to_all_v");
                assert_eq!(got, [1, 2, 2]);
                let wrong = comm.all_gather_v(&mine, &mut all[..2], &counts).expect_err("short");
                assert_eq!(wrong.code, Code::InvalidArgument);
            });
        }
    });
}

#[test]
fn gather_scatter_and_exchange_on_slices() {
    let comms = threads(3, &Config::default());
    thread::scope(|scope| {
        for comm in &comms {
            scope.spawn(move || {
                let (me, root) = (comm.rank().0, Rank(2));
                let mut all = [0u32; 3];
                comm.gather(&[me], &mut all, root).expect("gather");
                let mut own = [9];
                comm.scatter(&all, &mut own, root).expect("scatter");
                assert_eq!(own, [me]);
                let (next, last) = (Rank((me + 1) % 3), Rank((me + 2) % 3));
                comm.send_recv(&[me], next, &mut own, last).expect("send_recv");
                assert_eq!(own, [last.0]);
                comm.group_start().expect("a group");
                let refused = comm.send_recv(&[me], next, &mut own, last).expect_err("collected");
                assert_eq!(refused.code, Code::InvalidState);
                comm.group_end().expect("an empty group");
                let mut small = [F8E4M3(0x38); 4];
                comm.all_reduce_in_place(&mut small, ReduceOp::Sum).expect("all_reduce");
                assert_eq!(small, [F8E4M3(0x44); 4], "1 + 1 + 1 is 3");
            });
        }
    });
}

#[test]
fn a_scope_ends_all_it_started() {
    let comms = threads(3, &Config::default());
    thread::scope(|scope| {
        for comm in &comms {
            scope.spawn(move || {
                let me = comm.rank().0;
                let (mut sum, mut word, mut swapped) = ([0u32; 2], [me], [0; 3]);
                let (mine, blocks) = ([me; 2], [me; 3]);
                comm.scope(|scope| {
                    scope.reduce(&mine, &mut sum, ReduceOp::Sum, Rank(1))?;
                    scope.broadcast(&mut word, Rank(2))?;
                    scope.all_to_all(&blocks, &mut swapped)
                })
                .expect("all three end");
                assert_eq!(sum, if me == 1 { [3; 2] } else { [0; 2] });
                assert_eq!((word, swapped), ([2], [0, 1, 2]));
            });
        }
    });
}

#[test]
fn a_forked_child_cannot_use_its_parents_communicator() {
    let mut comms = threads(2, &Config::default());
    let (other, comm) = (comms.pop().expect("rank 1"), comms.pop().expect("rank 0"));
    comm.group_start().expect("a group");
    comm.group_end().expect("an empty group");
    // SAFETY: the child touches nothing another thread may hold, and ends at once.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let refused = comm.barrier().is_err_and(|e| e.code == Code::InvalidState);
        let memory = comm.alloc(64).is_err_and(|e| e.code == Code::InvalidState);
        comm.abort();
        let destroyed = comm.destroy().is_ok();
        // SAFETY: ends this process.
        unsafe { libc::_exit(i32::from(!(refused && memory && destroyed))) };
    }
    let mut status = 0;
    // SAFETY: the status is a local.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(status, 0, "the child was refused, and left in peace");
    within(LIMIT, || {
        thread::scope(|scope| {
            scope.spawn(|| other.barrier().expect("rank 1"));
            comm.barrier().expect("rank 0");
        });
    });
}
