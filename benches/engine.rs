//! What the engine costs by itself: all ranks of a world played by one thread, over links that are
//! plain queues in memory.
//!
//! `cargo bench --bench engine` times whole all_reduces of few bytes. An element of throughput is a
//! step of a plan on one tile, so its reciprocal is the cost of a step: with matching of heads,
//! with the queue's copies, and with polls that find nothing. `-- ring` measures less. Pin it to a
//! core: `taskset -c 1`.
//!
//! Not here: boards, so no calls by one exchange of lines; waiting, deadlines, system calls.
#![allow(missing_docs)]

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, Throughput};
use unisono::algo::{self, Hosts};
use unisono::call::Call;
use unisono::engine::link::{Fabric, Rx, Tx, Window};
use unisono::engine::wires::FABRIC_LANES;
use unisono::engine::{Engine, Progress};
use unisono::link::sim::NoBoard;
use unisono::plan::{Algorithm, Key};
use unisono::tune::{Facts, Memory, Tuner};
use unisono::types::{Collective, Dtype, Rank};

/// Bytes a queue takes on while nobody reads.
const CAPACITY: usize = 256 << 10;
const LINE: usize = 64;

/// Bytes in order, from `head` to `tail`; begins again when it has run empty.
struct Queue {
    bytes: Box<[Cell<u8>]>,
    head: Cell<usize>,
    tail: Cell<usize>,
}

impl Queue {
    fn new() -> Self {
        // What was read is room again only when all is read: twice is enough for calls this small.
        let bytes = (0..2 * CAPACITY).map(|_| Cell::new(0)).collect();
        Self { bytes, head: Cell::new(0), tail: Cell::new(0) }
    }

    fn window(&self, from: usize, to: usize) -> Window {
        Window { at: self.bytes[from..to].as_ptr().cast::<u8>().cast_mut(), bytes: to - from }
    }
}

struct QueueTx(Rc<Queue>);

// SAFETY: one thread has both ends, and a window of the writer lies behind all that was written.
unsafe impl Tx for QueueTx {
    fn window(&mut self) -> unisono::Result<Window> {
        if self.0.head == self.0.tail {
            self.0.head.set(0);
            self.0.tail.set(0);
        }
        Ok(self.0.window(self.0.tail.get(), self.0.bytes.len()))
    }

    fn commit(&mut self, bytes: usize) -> unisono::Result<()> {
        self.0.tail.set(self.0.tail.get() + bytes);
        Ok(())
    }

    unsafe fn write(&mut self, from: *const u8, bytes: usize) -> unisono::Result<usize> {
        // SAFETY: the caller's promise is passed on.
        unsafe { self.stage(from, bytes) }
    }

    fn end(&mut self) -> unisono::Result<()> {
        self.0.tail.set(self.0.tail.get().next_multiple_of(LINE));
        Ok(())
    }

    fn flush(&mut self) -> unisono::Result<bool> {
        Ok(true)
    }
}

struct QueueRx(Rc<Queue>);

// SAFETY: as of the sending end; a window of the reader lies in what was written.
unsafe impl Rx for QueueRx {
    fn peek(&mut self, _want: usize) -> unisono::Result<Window> {
        Ok(self.0.window(self.0.head.get(), self.0.tail.get()))
    }

    fn release(&mut self, bytes: usize) {
        self.0.head.set(self.0.head.get() + bytes);
    }

    unsafe fn read(&mut self, into: *mut u8, bytes: usize) -> unisono::Result<usize> {
        let window = self.peek(bytes)?;
        let count = window.bytes.min(bytes);
        // SAFETY: the window holds so many bytes; the caller promises the target.
        unsafe { std::ptr::copy_nonoverlapping(window.at, into, count) };
        self.release(count);
        Ok(count)
    }

    fn end(&mut self) {
        self.0.head.set(self.0.head.get().next_multiple_of(LINE));
    }
}

/// One rank's ends of all queues.
struct Queues {
    tx: Vec<QueueTx>,
    rx: Vec<QueueRx>,
}

impl Fabric for Queues {
    type Tx = QueueTx;
    type Rx = QueueRx;
    type Board = NoBoard;

    fn tx(&mut self, to: usize, lane: usize) -> &mut QueueTx {
        &mut self.tx[to * FABRIC_LANES + lane]
    }

    fn rx(&mut self, from: usize, lane: usize) -> &mut QueueRx {
        &mut self.rx[from * FABRIC_LANES + lane]
    }

    fn board(&mut self) -> Option<&mut NoBoard> {
        None
    }

    fn capacity(&self) -> usize {
        CAPACITY
    }
}

/// The queues of every rank of a world.
fn queues(world: usize) -> Vec<Queues> {
    let all: Vec<Rc<Queue>> =
        (0..world * world * FABRIC_LANES).map(|_| Rc::new(Queue::new())).collect();
    let at = |from: usize, to: usize, lane: usize| {
        all[(from * world + to) * FABRIC_LANES + lane].clone()
    };
    let ports = || (0..world).flat_map(|peer| (0..FABRIC_LANES).map(move |lane| (peer, lane)));
    let ends = |me: usize| Queues {
        tx: ports().map(|(peer, lane)| QueueTx(at(me, peer, lane))).collect(),
        rx: ports().map(|(peer, lane)| QueueRx(at(peer, me, lane))).collect(),
    };
    (0..world).map(ends).collect()
}

/// What is timed.
struct Case {
    algorithm: Algorithm,
    world: u32,
    /// Floats of the buffer.
    count: u64,
    /// Bytes of a tile.
    tile_bytes: u64,
}

impl Case {
    fn engine(&self, rank: usize, fabric: Queues) -> Engine<Queues, Tuner> {
        let facts = Facts {
            rank: Rank::at(rank),
            world: self.world,
            hosts: Arc::new(Hosts::new(&vec![0; self.world as usize]).expect("one host")),
            deterministic: false,
            algorithm: Some(self.algorithm),
            tile_bytes: self.tile_bytes,
            window: 2,
            capacity: CAPACITY as u64,
            memory: Memory::Apart,
            table: None,
        };
        Engine::new(fabric, Tuner::new(facts), Rank::at(rank), self.world, 0, false)
    }

    /// Steps of all ranks' plans, once for each tile.
    fn steps(&self) -> u64 {
        let steps = |rank: u32| {
            let key = Key {
                collective: Collective::AllReduce,
                algorithm: self.algorithm,
                world: self.world,
                rank: Rank(rank),
                root: Rank(0),
                prepared: false,
            };
            let plan = algo::plan(&key, None).expect("every algorithm here does all_reduce");
            let chunk = self.count.div_ceil(u64::from(plan.chunks).max(1)) * 4;
            plan.steps.len() as u64 * chunk.div_ceil(self.tile_bytes)
        };
        (0..self.world).map(steps).sum()
    }

    fn measure(&self, criterion: &mut Criterion, group: &str) {
        let count = usize::try_from(self.count).expect("few");
        let mut buffers = vec![(vec![1.0f32; count], vec![0.0f32; count]); self.world as usize];
        let fabrics = queues(self.world as usize).into_iter().enumerate();
        let mut engines: Vec<_> = fabrics.map(|(rank, fabric)| self.engine(rank, fabric)).collect();
        let calls: Vec<Call> = buffers
            .iter_mut()
            .map(|(send, recv)| {
                let mut call = Call::new(Collective::AllReduce, Dtype::F32);
                (call.send, call.recv) = (send.as_ptr().cast(), recv.as_mut_ptr().cast());
                call.count = self.count;
                call
            })
            .collect();
        let mut once = || {
            for (engine, call) in engines.iter_mut().zip(&calls) {
                // SAFETY: the call is one of this world, and its buffers outlive the engines.
                unsafe { engine.submit(call.clone(), 0) };
            }
            // BOUND: every plan ends, as the checker has proved.
            while engines.iter_mut().fold(false, |busy, e| busy | (e.poll() != Progress::Idle)) {}
            for engine in &mut engines {
                engine.take_ended().expect("an end").1.expect("no error");
            }
        };
        once();
        let mut group = criterion.benchmark_group(group);
        group.throughput(Throughput::Elements(self.steps()));
        group.bench_function(BenchmarkId::new(self.algorithm.name(), self.world), |bencher| {
            bencher.iter(&mut once);
        });
        group.finish();
        drop(engines);
        let world = f32::from(u16::try_from(self.world).expect("few"));
        let right = |value: &f32| value.to_bits() == world.to_bits();
        assert!(buffers.iter().all(|(_, recv)| recv.iter().all(right)), "wrong sums");
    }
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    // Eight bytes: what a call costs.
    for (algorithm, world) in
        [(Algorithm::Doubling, 2), (Algorithm::Doubling, 8), (Algorithm::Pairwise, 8)]
    {
        let case = Case { algorithm, world, count: 2, tile_bytes: 64 << 10 };
        case.measure(&mut criterion, "8 bytes");
    }
    // An element a chunk: many steps, nothing to add.
    for world in [4, 8, 16] {
        let case =
            Case { algorithm: Algorithm::Ring, world, count: world.into(), tile_bytes: 64 << 10 };
        case.measure(&mut criterion, "steps");
    }
    // A line a tile: many tiles of few steps.
    let case = Case { algorithm: Algorithm::Ring, world: 2, count: 2 * 16 * 256, tile_bytes: 64 };
    case.measure(&mut criterion, "tiles");
    criterion.final_summary();
}
