//! Whole worlds in virtual time: every algorithm and collective over links as small as the tuner's
//! bound allows, in random order with random delays, against a plain oracle.
//!
//! Every failure prints its seed; `UNISONO_SIM_SEED=n` replays the fresh part from it, and
//! `UNISONO_SIM_ROUNDS=n` plays more of it.
#![allow(missing_docs)]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "cases are small whole numbers"
)]

use std::sync::Arc;

use unisono::algo::{self, Hosts};
use unisono::call::{Call, Ragged};
use unisono::engine::Engine;
use unisono::kernel::Scalar;
use unisono::link::sim::{Kind, Options, SimFabric, Story, World, run};
use unisono::plan::{Algorithm, Key};
use unisono::tune::{Facts, Memory, Tuner};
use unisono::types::{Collective, Dtype, Rank, ReduceOp};

/// One simulated call of one world.
#[derive(Clone, Debug)]
struct Case {
    collective: Collective,
    algorithm: Algorithm,
    world: usize,
    root: usize,
    hosts: Arc<Hosts>,
    /// Elements of the buffer, or of a block.
    count: usize,
    dtype: Dtype,
    op: ReduceOp,
    window: u64,
    tile_bytes: u64,
    /// Elements of a tile that just fit, with `window + 1` tiles in flight, the links' capacity.
    fit: u64,
    kind: Kind,
    in_place: bool,
    deterministic: bool,
    calls: usize,
    seed: u64,
}

fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn pick(seed: &mut u64, below: usize) -> usize {
    *seed = mix(*seed);
    usize::try_from(*seed % below as u64).expect("fits")
}

/// Elements of a rank's buffer, as bytes in aligned memory.
struct Buffer {
    words: Vec<u64>,
    dtype: Dtype,
}

const GUARD: u64 = 0xa5a5_a5a5_a5a5_a5a5;

impl Buffer {
    fn new(dtype: Dtype, elements: usize) -> Self {
        Self { words: vec![GUARD; (elements * dtype.bytes()).div_ceil(8) + 1], dtype }
    }

    fn at(&mut self) -> *mut u8 {
        self.words.as_mut_ptr().cast()
    }

    fn set(&mut self, index: usize, value: f32) {
        // SAFETY: tests stay inside what `new` was asked for.
        unsafe {
            match self.dtype {
                Dtype::I32 => self.at().cast::<i32>().add(index).write(value as i32),
                Dtype::F32 => self.at().cast::<f32>().add(index).write(value),
                Dtype::Bf16 => {
                    self.at().cast::<half::bf16>().add(index).write(half::bf16::from_f32(value));
                }
                Dtype::U8 => self.at().add(index).write(value as u8),
                other => panic!("{other} is not simulated"),
            }
        }
    }

    fn get(&mut self, index: usize) -> f32 {
        // SAFETY: as in `set`.
        unsafe {
            match self.dtype {
                Dtype::I32 => self.at().cast::<i32>().add(index).read() as f32,
                Dtype::F32 => self.at().cast::<f32>().add(index).read(),
                Dtype::Bf16 => self.at().cast::<half::bf16>().add(index).read().to_f32(),
                _ => f32::from(self.at().add(index).read()),
            }
        }
    }
}

/// Small whole numbers: sums over 64 ranks stay exact in bfloat16 and in 8 bits.
fn value(rank: usize, index: usize) -> f32 {
    ((rank * 5 + index * 7 + index / 11) % 4) as f32
}

/// Ragged block sizes with empty ones among them.
fn counts(case: &Case) -> Vec<u64> {
    (0..case.world).map(|r| (case.count * ((r + case.root) % 3)) as u64).collect()
}

/// all_to_all_v: elements from rank `from` to rank `to`.
fn parcel(case: &Case, from: usize, to: usize) -> usize {
    case.count * ((from + 2 * to) % 3) / 2
}

fn blocks(counts: &[u64], gap: u64) -> Ragged {
    let mut made = Ragged::default();
    let mut next = 0;
    let places: Vec<u64> = counts
        .iter()
        .map(|c| {
            let at = next;
            next += c + gap;
            at
        })
        .collect();
    made.set(counts, Some(&places));
    made
}

fn extent(blocks: &Ragged) -> usize {
    let ends = blocks.counts.iter().zip(&blocks.displacements);
    usize::try_from(ends.map(|(c, d)| c + d).max().unwrap_or(0)).expect("fits")
}

/// A rank's call with its buffers, and where each checked output element should come from.
struct Part {
    call: Call,
    send: Buffer,
    recv: Buffer,
    /// Output index and value.
    expect: Vec<(usize, f32)>,
}

fn part(case: &Case, rank: usize, turn: usize) -> Part {
    use Collective as C;
    let (n, c) = (case.world, case.count);
    let mut call = Call::new(case.collective, case.dtype);
    (call.op, call.root, call.count) = (case.op, Rank::at(case.root), c as u64);
    let factor = (rank % 2 + 1) as i32;
    if case.op == ReduceOp::PreMulSum {
        let mut bytes = [0; 16];
        match case.dtype {
            Dtype::I32 => bytes[..4].copy_from_slice(&factor.to_le_bytes()),
            _ => bytes[..4].copy_from_slice(&(factor as f32).to_le_bytes()),
        }
        call.scalar = Scalar(bytes);
    }
    let source = |r: usize, i: usize| value(r + turn, i);
    let reduced = |i: usize| -> f32 {
        let scale = |r: usize| {
            if case.op == ReduceOp::PreMulSum { (r % 2 + 1) as f32 } else { 1.0 }
        };
        (0..n).map(|r| scale(r) * source(r, i)).sum()
    };
    let root = rank == case.root;
    let sizes = counts(case);
    let own = usize::try_from(sizes[rank]).expect("fits");
    let (mut inputs, mut outputs) = (c, c);
    let mut expect = Vec::new();
    match case.collective {
        C::AllReduce => expect.extend((0..c).map(|i| (i, reduced(i)))),
        C::Reduce if root => expect.extend((0..c).map(|i| (i, reduced(i)))),
        C::Broadcast => expect.extend((0..c).map(|i| (i, source(case.root, i)))),
        C::AllGather | C::Gather => {
            outputs = n * c;
            if root || case.collective == C::AllGather {
                expect.extend((0..n * c).map(|i| (i, source(i / c.max(1), i % c.max(1)))));
            }
        }
        C::ReduceScatter => {
            inputs = n * c;
            expect.extend((0..c).map(|i| (i, reduced(rank * c + i))));
        }
        C::Scatter => {
            inputs = n * c;
            expect.extend((0..c).map(|i| (i, source(case.root, rank * c + i))));
        }
        C::AllToAll => {
            (inputs, outputs) = (n * c, n * c);
            let from = |i: usize| source(i / c.max(1), rank * c + i % c.max(1));
            expect.extend((0..n * c).map(|i| (i, from(i))));
        }
        C::AllGatherV | C::GatherV => {
            let all = blocks(&sizes, 3);
            (inputs, outputs) = (own, extent(&all));
            if root || case.collective == C::AllGatherV {
                for (r, (&size, &at)) in all.counts.iter().zip(&all.displacements).enumerate() {
                    let at = usize::try_from(at).expect("fits");
                    expect.extend((0..size as usize).map(|i| (at + i, source(r, i))));
                }
                call.recv_blocks = all;
            }
            call.count = own as u64;
        }
        C::ReduceScatterV => {
            let all = blocks(&sizes, 0);
            (inputs, outputs) = (extent(&all), own);
            let at = usize::try_from(all.displacements[rank]).expect("fits");
            expect.extend((0..own).map(|i| (i, reduced(at + i))));
            call.recv_blocks = all;
            call.count = own as u64;
        }
        C::ScatterV => {
            let all = blocks(&sizes, 2);
            (inputs, outputs) = (extent(&all), own);
            let at = usize::try_from(all.displacements[rank]).expect("fits");
            expect.extend((0..own).map(|i| (i, source(case.root, at + i))));
            if root {
                call.send_blocks = all;
            }
            call.count = own as u64;
        }
        C::AllToAllV => {
            let to = |a: usize| (0..n).map(|b| parcel(case, a, b) as u64).collect::<Vec<_>>();
            let from = (0..n).map(|a| parcel(case, a, rank) as u64).collect::<Vec<_>>();
            (call.send_blocks, call.recv_blocks) = (blocks(&to(rank), 1), blocks(&from, 2));
            (inputs, outputs) = (extent(&call.send_blocks), extent(&call.recv_blocks));
            for a in 0..n {
                let there = blocks(&to(a), 1).displacements[rank] as usize;
                let here = call.recv_blocks.displacements[a] as usize;
                let size = parcel(case, a, rank);
                expect.extend((0..size).map(|i| (here + i, source(a, there + i))));
            }
            call.count = 0;
        }
        C::Reduce => {}
        C::Barrier => (inputs, outputs, call.count) = (0, 0, 0),
        C::Send | C::Recv => unreachable!("messages have a test of their own"),
    }
    let mut send = Buffer::new(case.dtype, inputs);
    let mut recv = Buffer::new(case.dtype, outputs);
    for i in 0..inputs {
        send.set(i, source(rank, i));
    }
    (call.send, call.recv) = (send.at(), recv.at());
    place(case, rank, inputs, &mut call, &mut send, &mut recv);
    Part { call, send, recv, expect }
}

/// Moves the input to where in-place callers have it.
fn place(
    case: &Case,
    rank: usize,
    inputs: usize,
    call: &mut Call,
    send: &mut Buffer,
    recv: &mut Buffer,
) {
    use Collective as C;
    let root = rank == case.root;
    let offset = match case.collective {
        // Every rank of a broadcast has one buffer in the safe calls.
        C::Broadcast => 0,
        _ if !case.in_place => return,
        C::AllReduce | C::AllToAll => 0,
        C::Reduce if root => 0,
        C::AllGather => rank * case.count,
        C::Gather if root => rank * case.count,
        _ => return,
    };
    for i in 0..inputs {
        recv.set(offset + i, send.get(i));
    }
    call.send = call.recv.wrapping_add(offset * case.dtype.bytes());
}

/// What a played case left: its story, and every output's bytes.
type Played = (Story, Vec<Vec<u64>>);

fn engine(case: &Case, world: &World, rank: usize, capacity: u64) -> Engine<SimFabric, Tuner> {
    let facts = Facts {
        rank: Rank::at(rank),
        world: u32::try_from(case.world).expect("fits"),
        hosts: case.hosts.clone(),
        deterministic: case.deterministic,
        algorithm: Some(case.algorithm),
        tile_bytes: case.tile_bytes,
        window: case.window,
        capacity,
        memory: Memory::Apart,
        table: None,
    };
    let size = facts.world;
    let tuner = Tuner::new(facts);
    Engine::new(world.fabric(rank), tuner, Rank::at(rank), size, 0, case.deterministic)
}

/// The plan's longest range, or `None` when the algorithm does not do the case.
fn range(case: &Case) -> Option<u64> {
    let key = |rank: usize| Key {
        collective: case.collective,
        algorithm: case.algorithm,
        world: u32::try_from(case.world).expect("fits"),
        rank: Rank::at(rank),
        root: if case.collective.rooted() { Rank::at(case.root) } else { Rank(0) },
        prepared: case.collective.reduces() && case.op == ReduceOp::PreMulSum,
    };
    let ranges = (0..case.world)
        .map(|rank| algo::plan(&key(rank), Some(&case.hosts)).map(|p| u64::from(p.range_max)));
    let ranges: Option<Vec<u64>> = ranges.collect();
    let ranges = ranges?;
    assert!(ranges.iter().all(|r| *r == ranges[0]), "ranks plan different ranges: {case:?}");
    Some(ranges[0])
}

fn play(case: &Case) -> Option<Played> {
    let range = range(case)?;
    let reduces = case.collective.reduces();
    let element = if reduces { case.dtype.accumulator() } else { case.dtype }.bytes() as u64;
    // The bound `tune` relies on, with nothing to spare.
    let capacity = (case.window + 1) * range * (128 + (case.fit * element).max(16));
    let options = Options {
        kind: case.kind,
        capacity: usize::try_from(capacity).expect("fits"),
        delay_ns: (50, 3000),
        publish: 1 << (case.seed % 12),
        stall_one_in: 32,
    };
    let mut world = World::new(case.world, case.seed, options);
    let mut engines: Vec<_> =
        (0..case.world).map(|rank| engine(case, &world, rank, capacity)).collect();
    let mut parts: Vec<Vec<Part>> = (0..case.calls)
        .map(|turn| (0..case.world).map(|rank| part(case, rank, turn)).collect())
        .collect();
    for (turn, ranks) in parts.iter().enumerate() {
        for (engine, part) in engines.iter_mut().zip(ranks) {
            let ticket = u32::try_from(turn).expect("few");
            // SAFETY: the buffers outlive the engines.
            unsafe { engine.submit(part.call.clone(), ticket) };
        }
    }
    let story = run(&mut world, &mut engines).unwrap_or_else(|e| panic!("{case:?}\n{e}"));
    for (rank, engine) in engines.iter_mut().enumerate() {
        for turn in 0..case.calls {
            let (ticket, result) = engine.take_ended().expect("every call ends");
            assert_eq!(ticket as usize, turn);
            result.unwrap_or_else(|e| panic!("{case:?}\nrank {rank}: {e}"));
        }
    }
    for ranks in &mut parts {
        for (rank, part) in ranks.iter_mut().enumerate() {
            for &(index, wanted) in &part.expect {
                let got = part.recv.get(index);
                assert!(got == wanted, "{case:?}\nrank {rank} at {index}: {got}, not {wanted}");
            }
        }
    }
    drop(engines);
    let outputs = parts.into_iter().flatten().map(|p| {
        drop(p.send);
        p.recv.words
    });
    Some((story, outputs.collect()))
}

fn hosts(world: usize, seed: u64) -> Arc<Hosts> {
    let mark = |r: usize| match seed % 3 {
        0 => r / 2,
        1 => r % 3,
        _ => usize::from(r > world / 3),
    };
    let marks: Vec<u32> = (0..world).map(|r| u32::try_from(mark(r)).expect("few")).collect();
    Arc::new(Hosts::new(&marks).expect("some ranks"))
}

const COLLECTIVES: [Collective; 14] = [
    Collective::AllReduce,
    Collective::Reduce,
    Collective::Broadcast,
    Collective::AllGather,
    Collective::ReduceScatter,
    Collective::Gather,
    Collective::Scatter,
    Collective::AllToAll,
    Collective::AllGatherV,
    Collective::ReduceScatterV,
    Collective::GatherV,
    Collective::ScatterV,
    Collective::AllToAllV,
    Collective::Barrier,
];

fn case(collective: Collective, algorithm: Algorithm, world: usize, seed: u64) -> Case {
    let mut dice = mix(seed ^ ((world as u64) << 32));
    let dice = &mut dice;
    let (dtype, op) = match pick(dice, 5) {
        0 => (Dtype::Bf16, ReduceOp::Sum),
        1 => (Dtype::F32, ReduceOp::PreMulSum),
        2 => (Dtype::U8, ReduceOp::Sum),
        3 => (Dtype::F32, ReduceOp::Sum),
        _ => (Dtype::I32, ReduceOp::Sum),
    };
    let op = if collective.reduces() { op } else { ReduceOp::Sum };
    let fit = [1, 2, 7, 64, 100][pick(dice, 5)];
    // Single elements a tile make long stories: few elements then.
    let sizes: &[usize] = match (world > 8, fit < 7) {
        (true, _) => &[0, 1, 5, 63, 130],
        (_, true) => &[0, 1, 5, 63, 130, 300],
        _ => &[0, 1, 5, 63, 130, 1000, 4099],
    };
    let direct_in_place = algo::in_place(algorithm, collective);
    Case {
        collective,
        algorithm,
        world,
        root: pick(dice, world),
        hosts: hosts(world, seed),
        count: sizes[pick(dice, sizes.len())],
        dtype,
        op,
        window: [1, 2, 3, 16][pick(dice, 4)],
        tile_bytes: [64, 128, 1024][pick(dice, 3)],
        fit,
        kind: [Kind::Ring, Kind::Stream][pick(dice, 2)],
        in_place: direct_in_place && pick(dice, 3) == 0,
        deterministic: false,
        calls: 1 + pick(dice, 3),
        seed: *dice,
    }
}

fn play_all(worlds: impl IntoIterator<Item = usize>, seeds: std::ops::Range<u64>) -> usize {
    let mut played = 0;
    for world in worlds {
        for collective in COLLECTIVES {
            for &algorithm in Algorithm::ALL {
                if algorithm == Algorithm::Direct || !algo::offers(algorithm, collective) {
                    continue;
                }
                for seed in seeds.clone() {
                    let case = case(collective, algorithm, world, seed);
                    played += usize::from(play(&case).is_some());
                }
            }
        }
    }
    played
}

/// Every algorithm of every collective, in every small world, over links that hold no more than the
/// tuner counts on: results as the oracle has them, and nobody waits for ever.
#[test]
fn small_worlds_on_the_smallest_links() {
    let played = play_all(1..=8, 0..8);
    assert!(played > 2000, "{played} cases");
}

/// The same in larger worlds.
#[test]
fn larger_worlds_on_the_smallest_links() {
    assert!(play_all([16, 33], 100..102) > 100);
}

/// Seeds nobody has seen before.
#[test]
fn fresh_seeds() {
    let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("clock");
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let first = number("UNISONO_SIM_SEED").unwrap_or(time.as_secs() % 1_000_000_000);
    let rounds = number("UNISONO_SIM_ROUNDS").unwrap_or(2);
    println!("UNISONO_SIM_SEED={first}");
    play_all([2, 3, 5, 6, 7, 8, 11], first..first + rounds);
}

/// The same seed plays the same story, poll by poll.
#[test]
fn a_seed_replays_identically() {
    for seed in [1, 77] {
        let case = case(Collective::AllReduce, Algorithm::Halving, 5, seed);
        let first = play(&case).expect("plays");
        assert_eq!(first, play(&case).expect("plays"));
        let other = play(&Case { seed: case.seed + 1, ..case }).expect("plays");
        assert_ne!(first.0.digest, other.0.digest);
    }
}

/// Order-sensitive data: in deterministic mode the bits are the same for every algorithm, tile,
/// window, kind of link, capacity and seed.
#[test]
fn deterministic_bits_are_one() {
    for world in [2usize, 3, 4, 5, 7, 8] {
        let mut all: Vec<Vec<u32>> = Vec::new();
        for &algorithm in Algorithm::ALL {
            let base = case(Collective::AllReduce, algorithm, world, 5);
            let one = Arc::new(Hosts::new(&vec![0; world]).expect("some"));
            let base = Case { hosts: one, dtype: Dtype::F32, op: ReduceOp::Sum, ..base };
            let hosts = Some(&*base.hosts);
            let size = u32::try_from(world).expect("few");
            if algorithm == Algorithm::Direct
                || !algo::ordered(algorithm, Collective::AllReduce, size, hosts)
            {
                continue;
            }
            for seed in 0..4u64 {
                let base =
                    Case { kind: [Kind::Ring, Kind::Stream][seed as usize % 2], ..base.clone() };
                let (window, fit) = (1 + seed, 1 + 40 * seed);
                let case = Case { seed, window, fit, deterministic: true, count: 700, ..base };
                all.push(order_sensitive(&case));
            }
        }
        assert!(all.len() >= 8, "{} runs in a world of {world}", all.len());
        assert!(all.iter().all(|bits| *bits == all[0]), "bits differ in a world of {world}");
    }
}

/// Bits of rank 0's sum of values of many sizes; those of all ranks are compared.
fn order_sensitive(case: &Case) -> Vec<u32> {
    let range = range(case).expect("offered");
    let capacity = (case.window + 1) * range * (128 + case.fit.max(4) * 4);
    let options = Options {
        kind: case.kind,
        capacity: usize::try_from(capacity).expect("fits"),
        ..Options::default()
    };
    let mut world = World::new(case.world, case.seed, options);
    let mut engines: Vec<_> =
        (0..case.world).map(|rank| engine(case, &world, rank, capacity)).collect();
    let input = |rank: usize, i: usize| {
        let bits = mix((rank * 100_003 + i) as u64);
        let sign = if bits & 1 == 0 { 1.0 } else { -1.0 };
        sign * (bits >> 40) as f32 * 2f32.powi(i32::try_from(bits % 24).expect("small") - 12)
    };
    let sends: Vec<Vec<f32>> =
        (0..case.world).map(|rank| (0..case.count).map(|i| input(rank, i)).collect()).collect();
    let mut recvs = vec![vec![0f32; case.count]; case.world];
    for (engine, (send, recv)) in engines.iter_mut().zip(sends.iter().zip(&mut recvs)) {
        let mut call = Call::new(Collective::AllReduce, Dtype::F32);
        (call.send, call.recv) = (send.as_ptr().cast(), recv.as_mut_ptr().cast());
        call.count = case.count as u64;
        // SAFETY: the buffers outlive the engines.
        unsafe { engine.submit(call, 0) };
    }
    run(&mut world, &mut engines).unwrap_or_else(|e| panic!("{case:?}\n{e}"));
    let bits = |v: &Vec<f32>| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert!(recvs.iter().all(|r| bits(r) == bits(&recvs[0])), "{case:?}: ranks differ");
    bits(&recvs[0])
}

/// Messages between pairs, every rank with every rank, beside a collective on links that hold
/// little.
#[test]
fn messages_beside_a_collective() {
    for seed in 0..20u64 {
        let base = case(Collective::AllReduce, Algorithm::Pairwise, 4, seed);
        let case = Case { dtype: Dtype::I32, op: ReduceOp::Sum, count: 500, calls: 1, ..base };
        let capacity =
            (case.window + 1) * range(&case).expect("offered") * (128 + 4 * case.fit.max(4));
        let options = Options {
            kind: case.kind,
            capacity: usize::try_from(capacity).expect("fits"),
            ..Options::default()
        };
        let mut world = World::new(4, case.seed, options);
        let mut engines: Vec<_> =
            (0..4).map(|rank| engine(&case, &world, rank, capacity)).collect();
        let mut parts: Vec<Part> = (0..4).map(|rank| part(&case, rank, 0)).collect();
        let mut letters = vec![vec![0i32; 300]; 16];
        let mut arrived = vec![vec![0i32; 300]; 16];
        let total = 9;
        for rank in 0..4usize {
            for peer in 0..4usize {
                let (out, back) = (rank * 4 + peer, peer * 4 + rank);
                letters[out].fill(i32::try_from(out).expect("few"));
                let mut send = Call::new(Collective::Send, Dtype::I32);
                (send.send, send.count, send.root) =
                    (letters[out].as_ptr().cast(), 300, Rank::at(peer));
                let mut recv = Call::new(Collective::Recv, Dtype::I32);
                let into = arrived[back].as_mut_ptr().cast();
                (recv.recv, recv.count, recv.root) = (into, 300, Rank::at(peer));
                // SAFETY: the buffers outlive the engines.
                unsafe { engines[rank].submit(send, 1) };
                if peer == 1 {
                    // SAFETY: as above.
                    unsafe { engines[rank].submit(parts[rank].call.clone(), 2) };
                }
                // SAFETY: as above.
                unsafe { engines[rank].submit(recv, 3) };
            }
        }
        run(&mut world, &mut engines).unwrap_or_else(|e| panic!("{case:?}\n{e}"));
        for (engine, part) in engines.iter_mut().zip(&mut parts) {
            for _ in 0..total {
                engine.take_ended().expect("ended").1.expect("well");
            }
            for &(index, wanted) in &part.expect {
                assert_eq!(part.recv.get(index), wanted, "{case:?}");
            }
        }
        for (index, letter) in arrived.iter().enumerate() {
            let from = i32::try_from(index).expect("few");
            assert!(letter.iter().all(|&x| x == from), "{case:?}: letter {index}");
        }
    }
}

/// A rank that never calls: the others wait for ever, and the report says for whom.
#[test]
fn a_missing_rank_is_a_deadlock_with_a_report() {
    let case = Case { count: 100, calls: 1, ..case(Collective::AllReduce, Algorithm::Ring, 3, 1) };
    let mut world = World::new(3, 9, Options::default());
    let mut engines: Vec<_> = (0..3).map(|rank| engine(&case, &world, rank, 256 << 10)).collect();
    let parts: Vec<Part> = (0..2).map(|rank| part(&case, rank, 0)).collect();
    for (engine, part) in engines.iter_mut().zip(&parts) {
        // SAFETY: the buffers outlive the engines.
        unsafe { engine.submit(part.call.clone(), 0) };
    }
    let error = run(&mut world, &mut engines).expect_err("rank 2 never comes");
    assert!(error.detail.contains("rank 2: no collective is running"), "{error}");
    let mut awaited = Vec::new();
    let mut blamed = |rank: usize| {
        engines[rank].awaited(&mut awaited);
        awaited.contains(&Rank(2))
    };
    assert!(blamed(0) || blamed(1));
}
