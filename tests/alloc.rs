//! Calls that have been made before allocate nothing: a counting allocator watches the threads of a
//! job, on every link.
#![allow(missing_docs)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use unisono::comm::{Args, Communicator, Request};
use unisono::config::Config;
use unisono::types::{Collective, Dtype};

/// Counts while [`COUNTING`], from every thread of the process.
struct Counting;

static COUNTING: AtomicBool = AtomicBool::new(false);
static COUNT: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// Threads of the test itself are not counted.
    static EXEMPT: Cell<bool> = const { Cell::new(false) };
}

fn count() {
    if COUNTING.load(Ordering::Relaxed) && !EXEMPT.try_with(Cell::get).unwrap_or(true) {
        let seen = COUNT.fetch_add(1, Ordering::Relaxed);
        if seen == 0 && std::env::var_os("UNISONO_TEST_ALLOC_TRACE").is_some() {
            EXEMPT.with(|e| e.set(true));
            eprintln!("first: {}", std::backtrace::Backtrace::force_capture());
            EXEMPT.with(|e| e.set(false));
        }
    }
}

// SAFETY: every call is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(at, layout, bytes) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const SIZES: [usize; 3] = [8, 64 << 10, 4 << 20];
const WARM_UP: usize = 20;
const CALLS: usize = 30;

/// Rounds of calls; the best one counts: what a thread allocates once, late, is not steady.
const ROUNDS: usize = 3;

/// One rank: warms up, then calls while allocations are counted. The least of a round, at rank 0.
fn steady(
    comm: &Communicator,
    barrier: &Barrier,
    bytes: usize,
    call: impl Fn(&[f32], &mut [f32]),
) -> u64 {
    let send = vec![1f32; bytes / 4];
    let mut recv = vec![0f32; bytes / 4];
    for _ in 0..WARM_UP {
        call(&send, &mut recv);
    }
    let leads = comm.rank().0 == 0;
    let mut least = u64::MAX;
    for _ in 0..ROUNDS {
        barrier.wait();
        if leads {
            COUNT.store(0, Ordering::Relaxed);
            COUNTING.store(true, Ordering::Relaxed);
        }
        barrier.wait();
        for _ in 0..CALLS {
            call(&send, &mut recv);
        }
        barrier.wait();
        if leads {
            COUNTING.store(false, Ordering::Relaxed);
            least = least.min(COUNT.load(Ordering::Relaxed));
        }
    }
    assert!(recv.iter().all(|&x| x == comm.world_size() as f32));
    least
}

fn blocking(comm: &Communicator, send: &[f32], recv: &mut [f32]) {
    comm.all_reduce(send, recv, unisono::ReduceOp::Sum).expect("all_reduce");
}

fn waited(comm: &Communicator, send: &[f32], recv: &mut [f32]) {
    let mut args = Args::new(Collective::AllReduce, Dtype::F32);
    (args.send, args.recv) = (send.as_ptr().cast(), recv.as_mut_ptr().cast());
    args.count = send.len() as u64;
    let call = comm.prepare(&args).expect("a call");
    // SAFETY: the buffers outlive the request, which is waited for here.
    let mut request: Request = unsafe { comm.start(call) }.expect("started");
    assert!(request.wait(None).expect("all_reduce"));
}

type Kind = fn(&Communicator, &[f32], &mut [f32]);

fn measure(name: &str, comms: Vec<Communicator>) -> Vec<String> {
    let barrier = Barrier::new(comms.len());
    let mut faults = Vec::new();
    let kinds: [(&str, Kind); 2] = [("blocking", blocking), ("non-blocking", waited)];
    let calls = kinds.iter().flat_map(|kind| SIZES.map(|bytes| (kind, bytes)));
    let calls: Vec<_> = calls.collect();
    let counts = AtomicTable::new(calls.len());
    std::thread::scope(|scope| {
        for comm in comms {
            let (barrier, calls, counts) = (&barrier, &calls, &counts);
            scope.spawn(move || {
                for (index, ((_, call), bytes)) in calls.iter().enumerate() {
                    let one = |send: &[f32], recv: &mut [f32]| call(&comm, send, recv);
                    let least = steady(&comm, barrier, *bytes, one);
                    if comm.rank().0 == 0 {
                        counts.0[index].store(least, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    for (((kind, _), bytes), count) in calls.iter().zip(&counts.0) {
        let count = count.load(Ordering::Relaxed);
        println!("{name}, {kind}, {bytes} bytes: {count} allocations in {CALLS} calls");
        if count > 0 {
            faults.push(format!("{name}, {kind}, {bytes} bytes: {count}"));
        }
    }
    faults
}

struct AtomicTable(Vec<AtomicU64>);

impl AtomicTable {
    fn new(entries: usize) -> Self {
        Self((0..entries).map(|_| AtomicU64::new(0)).collect())
    }
}

fn through_id(links: &str, world: i64) -> Vec<Communicator> {
    let id = unisono::unique_id().expect("an id");
    let mut config = Config::default();
    config.set_links(links).expect("links");
    std::thread::scope(|scope| {
        let ranks: Vec<_> = (0..world)
            .map(|r| {
                let (id, config) = (&id, &config);
                scope.spawn(move || Communicator::init_rank(id, r, world, config).expect("init"))
            })
            .collect();
        ranks.into_iter().map(|r| r.join().expect("a rank")).collect()
    })
}

/// One test: the allocator counts for the whole process.
#[test]
fn steady_calls_allocate_nothing() {
    EXEMPT.with(|e| e.set(true));
    let mut faults = Vec::new();
    for world in [2i64, 3] {
        let comms = Communicator::init_all(world, &Config::default()).expect("init");
        faults.extend(measure(&format!("mem, {world} ranks"), comms));
        for links in ["shm", "tcp"] {
            let comms = through_id(links, world);
            // The rendezvous ends its thread in peace before anything is counted.
            std::thread::sleep(std::time::Duration::from_millis(300));
            faults.extend(measure(&format!("{links}, {world} ranks"), comms));
        }
    }
    assert!(faults.is_empty(), "{CALLS} calls allocated:\n{}", faults.join("\n"));
}
