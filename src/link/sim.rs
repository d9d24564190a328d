//! Links in virtual time: many ranks in one thread, every run repeatable from its seed.
//!
//! A [`World`] holds the clock and all links; each rank's engine gets a [`SimFabric`] of it, and
//! [`run`] polls the engines in a seeded random order until all are idle. When nobody moves, the
//! clock jumps to the next arrival; when nothing is under way either, the ranks wait for each other
//! for ever and [`run`] says where each stands.
//!
//! Every lane of every pair is a link of its own with random delays, so what goes over different
//! lanes and pairs is reordered freely; inside one link order is kept. A link holds
//! [`Options::capacity`] bytes and no more, from the writer's commit until the writer has *heard*
//! of the reader's release: room comes back late, as data does. Two kinds: [`Kind::Ring`] has the
//! wrap, the rounding and the thrifty publishing of [`crate::link::ring`]; [`Kind::Stream`] cuts
//! bytes anywhere, as sockets do.
//!
//! Not here: faults (loss, corruption, crashes), and a board, so no direct plans.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::rc::Rc;

use crate::call::Head;
use crate::engine::link::{Board, Fabric, Notice, Place, Rx, Tx, Window};
use crate::engine::wires::FABRIC_LANES;
use crate::engine::{Engine, Planner, Progress};
use crate::error::{Code, Error, Result};

/// Ring messages begin at multiples of this.
const LINE: u64 = crate::link::ring::LINE;
/// Polls after which a run is called endless.
const POLLS_MAX: u64 = 20_000_000;

/// How a link cuts its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// As rings in shared memory: windows end at the wrap, messages begin at whole lines.
    Ring,
    /// As sockets: any number of bytes at a time.
    Stream,
}

/// What the links of a world are like.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How bytes are cut.
    pub kind: Kind,
    /// Bytes a link holds. Rounded up to whole lines, at least four.
    pub capacity: usize,
    /// Shortest and longest delay of data and of room coming back, in nanoseconds.
    pub delay_ns: (u64, u64),
    /// Written bytes leave at the latest when so many have gathered, or when a message ends.
    pub publish: usize,
    /// One poll in so many puts its rank to sleep for up to eight longest delays; 0: never.
    pub stall_one_in: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            kind: Kind::Ring,
            capacity: 256 << 10,
            delay_ns: (100, 2000),
            publish: 8 << 10,
            stall_one_in: 64,
        }
    }
}

/// A small generator: SplitMix64.
#[derive(Clone, Debug)]
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.roll() % (high - low + 1)
    }

    fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.roll() % len.max(1) as u64).unwrap_or(0)
    }
}

/// The clock and what will happen at which time.
#[derive(Debug, Default)]
struct Time {
    now: Cell<u64>,
    arrivals: RefCell<BinaryHeap<Reverse<u64>>>,
}

impl Time {
    fn expect(&self, at: u64) {
        self.arrivals.borrow_mut().push(Reverse(at));
    }

    /// Jumps to the first arrival after `seen`, a time at which nobody could move; false when there
    /// is none.
    fn advance(&self, seen: u64) -> bool {
        let mut arrivals = self.arrivals.borrow_mut();
        while let Some(Reverse(at)) = arrivals.pop() {
            if at > seen {
                self.now.set(self.now.get().max(at));
                return true;
            }
        }
        false
    }
}

/// One directed link on one lane.
#[derive(Debug)]
struct Pipe {
    options: Options,
    dice: Dice,
    time: Rc<Time>,
    /// Stream positions: written, seen taken by the writer, taken, last shown as taken.
    written: u64,
    head: u64,
    taken: u64,
    shown: u64,
    /// What the writer's window points into.
    staging: Vec<u8>,
    unsent: Vec<u8>,
    flight: VecDeque<(u64, Vec<u8>)>,
    /// Positions of the reader on their way back.
    returns: VecDeque<(u64, u64)>,
    data_at: u64,
    return_at: u64,
    /// Arrived bytes not released, from `first`.
    ready: Vec<u8>,
    first: usize,
}

impl Pipe {
    fn new(options: Options, seed: u64, time: Rc<Time>) -> Self {
        Self {
            options,
            dice: Dice(seed),
            time,
            written: 0,
            head: 0,
            taken: 0,
            shown: 0,
            staging: Vec::new(),
            unsent: Vec::new(),
            flight: VecDeque::new(),
            returns: VecDeque::new(),
            data_at: 0,
            return_at: 0,
            ready: Vec::new(),
            first: 0,
        }
    }

    fn line(&self) -> u64 {
        if self.options.kind == Kind::Ring { LINE } else { 1 }
    }

    fn capacity(&self) -> u64 {
        self.options.capacity as u64
    }

    fn delay(&mut self) -> u64 {
        let (low, high) = self.options.delay_ns;
        self.dice.between(low, high)
    }

    /// Sends what has gathered: a ring at once, a stream in pieces.
    fn send(&mut self) {
        while !self.unsent.is_empty() {
            let whole = self.unsent.len();
            let count = match self.options.kind {
                Kind::Ring => whole,
                Kind::Stream => 1 + self.dice.index(whole),
            };
            let rest = self.unsent.split_off(count);
            let piece = std::mem::replace(&mut self.unsent, rest);
            self.data_at = self.data_at.max(self.time.now.get()) + self.delay();
            self.time.expect(self.data_at);
            self.flight.push_back((self.data_at, piece));
        }
    }

    /// Lets the writer know, in a while, how far the reader is.
    fn show(&mut self) {
        if self.shown != self.taken {
            self.shown = self.taken;
            self.return_at = self.return_at.max(self.time.now.get()) + self.delay();
            self.time.expect(self.return_at);
            self.returns.push_back((self.return_at, self.taken));
        }
    }

    fn room(&mut self) -> u64 {
        let now = self.time.now.get();
        while let Some(&(_, head)) = self.returns.front().filter(|(at, _)| *at <= now) {
            self.head = head;
            self.returns.pop_front();
        }
        let head = self.head - self.head % self.line();
        self.capacity().saturating_sub(self.written - head)
    }

    fn window(&mut self) -> Window {
        let mut bytes = self.room();
        if bytes == 0 {
            self.send();
            return Window::EMPTY;
        }
        if self.options.kind == Kind::Ring {
            bytes = bytes.min(self.capacity() - self.written % self.capacity());
        }
        let bytes = usize::try_from(bytes).unwrap_or(0);
        self.staging.resize(self.options.capacity, 0);
        Window { at: self.staging.as_mut_ptr(), bytes }
    }

    fn commit(&mut self, bytes: usize) {
        self.unsent.extend_from_slice(&self.staging[..bytes]);
        self.written += bytes as u64;
        if self.unsent.len() >= self.options.publish {
            self.send();
        }
    }

    fn peek(&mut self) -> Window {
        let now = self.time.now.get();
        self.ready.drain(..std::mem::take(&mut self.first));
        while let Some((_, piece)) = self.flight.front().filter(|(at, _)| *at <= now) {
            self.ready.extend_from_slice(piece);
            self.flight.pop_front();
        }
        let mut bytes = self.ready.len();
        if self.options.kind == Kind::Ring {
            let until_wrap = self.capacity() - self.taken % self.capacity();
            bytes = bytes.min(usize::try_from(until_wrap).unwrap_or(bytes));
        }
        Window { at: self.ready.as_mut_ptr(), bytes }
    }

    fn release(&mut self, bytes: usize) {
        self.first += bytes;
        self.taken += bytes as u64;
        let thrift = if self.options.kind == Kind::Ring { self.capacity() / 8 } else { 0 };
        if self.taken - self.shown >= thrift {
            self.show();
        }
    }
}

/// The sending end of a link.
#[derive(Debug)]
pub struct SimTx(Rc<RefCell<Pipe>>);

// SAFETY: windows lie in buffers of the end's own.
unsafe impl Tx for SimTx {
    fn window(&mut self) -> Result<Window> {
        Ok(self.0.borrow_mut().window())
    }

    fn commit(&mut self, bytes: usize) -> Result<()> {
        self.0.borrow_mut().commit(bytes);
        Ok(())
    }

    unsafe fn write(&mut self, from: *const u8, bytes: usize) -> Result<usize> {
        // SAFETY: the caller's promise is passed on.
        unsafe { self.stage(from, bytes) }
    }

    fn end(&mut self) -> Result<()> {
        let mut pipe = self.0.borrow_mut();
        pipe.written = pipe.written.next_multiple_of(pipe.line());
        pipe.send();
        Ok(())
    }

    fn flush(&mut self) -> Result<bool> {
        self.0.borrow_mut().send();
        Ok(true)
    }
}

/// The receiving end of a link.
#[derive(Debug)]
pub struct SimRx(Rc<RefCell<Pipe>>);

// SAFETY: as of the sending end.
unsafe impl Rx for SimRx {
    fn peek(&mut self, _want: usize) -> Result<Window> {
        Ok(self.0.borrow_mut().peek())
    }

    fn release(&mut self, bytes: usize) {
        self.0.borrow_mut().release(bytes);
    }

    unsafe fn read(&mut self, into: *mut u8, bytes: usize) -> Result<usize> {
        let mut done = 0;
        while done < bytes {
            let window = self.0.borrow_mut().peek();
            let count = window.bytes.min(bytes - done);
            if count == 0 {
                break;
            }
            // SAFETY: the window holds `count` arrived bytes; the caller promises the target.
            unsafe { std::ptr::copy_nonoverlapping(window.at, into.add(done), count) };
            self.release(count);
            done += count;
        }
        Ok(done)
    }

    fn end(&mut self) {
        let mut pipe = self.0.borrow_mut();
        pipe.taken = pipe.taken.next_multiple_of(pipe.line());
        pipe.show();
    }
}

/// There is no board in virtual time.
#[derive(Clone, Copy, Debug)]
pub enum NoBoard {}

// SAFETY: it resolves nothing.
unsafe impl Board for NoBoard {
    fn place(&mut self, _at: *const u8, _bytes: usize) -> Place {
        match *self {}
    }

    fn publish(&mut self, _turn: u64, _notice: Notice<'_>) {
        match *self {}
    }

    fn notice(&mut self, _peer: usize, _turn: u64) -> Result<Option<u64>> {
        match *self {}
    }

    fn expect(&self, _peer: usize, _turn: u64) {
        match *self {}
    }

    fn words(&self, _peer: usize, _turn: u64, _words: &mut [u64]) {
        match *self {}
    }

    fn head(&self, _peer: usize, _turn: u64) -> Head {
        match *self {}
    }

    fn area(&self, _rank: usize) -> *mut u8 {
        match *self {}
    }

    fn past(&self) -> bool {
        match *self {}
    }

    fn clock(&self) -> u64 {
        match *self {}
    }

    fn took(&mut self, _past: bool, _bytes: usize, _nanoseconds: u64) {
        match *self {}
    }

    fn resolve(&mut self, _peer: usize, _place: Place) -> Result<*mut u8> {
        match *self {}
    }

    fn post(&mut self, _phase: u64) {
        match *self {}
    }

    fn reached(&mut self, _peer: usize) -> u64 {
        match *self {}
    }

    fn give_up(&mut self, _turn: u64) {
        match *self {}
    }

    fn given_up(&self, _peer: usize, _turn: u64) -> bool {
        match *self {}
    }
}

/// All links of one rank of a [`World`].
#[derive(Debug)]
pub struct SimFabric {
    tx: Box<[SimTx]>,
    rx: Box<[SimRx]>,
    capacity: usize,
}

impl Fabric for SimFabric {
    type Tx = SimTx;
    type Rx = SimRx;
    type Board = NoBoard;

    fn tx(&mut self, to: usize, lane: usize) -> &mut SimTx {
        &mut self.tx[to * FABRIC_LANES + lane]
    }

    fn rx(&mut self, from: usize, lane: usize) -> &mut SimRx {
        &mut self.rx[from * FABRIC_LANES + lane]
    }

    fn board(&mut self) -> Option<&mut NoBoard> {
        None
    }

    fn capacity(&self) -> usize {
        self.capacity
    }
}

/// A clock, and the links between some ranks.
#[derive(Debug)]
pub struct World {
    ranks: usize,
    time: Rc<Time>,
    pipes: Box<[Rc<RefCell<Pipe>>]>,
    dice: Dice,
    options: Options,
}

impl World {
    /// The links of `ranks` ranks; everything random follows from `seed`.
    #[must_use]
    pub fn new(ranks: usize, seed: u64, options: Options) -> Self {
        let lines = (options.capacity as u64).next_multiple_of(LINE).max(4 * LINE);
        let capacity = usize::try_from(lines).unwrap_or(usize::MAX);
        let options = Options { capacity, ..options };
        let mut dice = Dice(seed);
        let time = Rc::new(Time::default());
        let pipe = |_| Rc::new(RefCell::new(Pipe::new(options, dice.roll(), time.clone())));
        let pipes = (0..ranks * ranks * FABRIC_LANES).map(pipe).collect();
        Self { ranks, time, pipes, dice, options }
    }

    /// The links of `rank`. Ask once a rank.
    #[must_use]
    pub fn fabric(&self, rank: usize) -> SimFabric {
        let pipe = |from: usize, to: usize, lane: usize| {
            self.pipes[(from * self.ranks + to) * FABRIC_LANES + lane].clone()
        };
        let ports = || (0..self.ranks).flat_map(|p| (0..FABRIC_LANES).map(move |lane| (p, lane)));
        SimFabric {
            tx: ports().map(|(peer, lane)| SimTx(pipe(rank, peer, lane))).collect(),
            rx: ports().map(|(peer, lane)| SimRx(pipe(peer, rank, lane))).collect(),
            capacity: self.options.capacity,
        }
    }

    /// Nanoseconds since the world began.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.time.now.get()
    }
}

/// How a run went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Story {
    /// When it ended, in nanoseconds of virtual time.
    pub end_ns: u64,
    /// Polls of all engines together.
    pub polls: u64,
    /// A hash of who moved when: equal for equal runs.
    pub digest: u64,
}

/// Polls `engines` (rank by rank) until all are idle.
///
/// # Errors
/// `TIMED_OUT` when the ranks wait for each other for ever, with where each of them stands.
pub fn run<P: Planner>(world: &mut World, engines: &mut [Engine<SimFabric, P>]) -> Result<Story> {
    let mut order: Vec<usize> = (0..engines.len()).collect();
    let mut asleep = vec![0u64; engines.len()];
    let mut story = Story { end_ns: 0, polls: 0, digest: 0xcbf2_9ce4_8422_2325 };
    let time = world.time.clone();
    // BOUND: POLLS_MAX.
    loop {
        for i in (1..order.len()).rev() {
            order.swap(i, world.dice.index(i + 1));
        }
        let (mut moved, mut idle) = (false, 0);
        let began = time.now.get();
        for &rank in &order {
            if asleep[rank] > time.now.get() {
                continue;
            }
            let progress = engines[rank].poll();
            story.polls += 1;
            moved |= progress == Progress::Moved;
            idle += usize::from(progress == Progress::Idle);
            let word = (time.now.get() << 20) ^ ((rank as u64) << 2) ^ progress as u64;
            story.digest = (story.digest ^ word).wrapping_mul(0x0000_0100_0000_01b3);
            time.now.set(time.now.get() + world.dice.between(1, 20));
            if world.options.stall_one_in > 0
                && progress != Progress::Idle
                && world.dice.roll().is_multiple_of(world.options.stall_one_in)
            {
                let until = time.now.get() + world.dice.between(1, 8 * world.options.delay_ns.1);
                asleep[rank] = until;
                time.expect(until);
            }
        }
        if idle == engines.len() {
            story.end_ns = time.now.get();
            return Ok(story);
        }
        let endless = story.polls > POLLS_MAX;
        if (!moved && !time.advance(began)) || endless {
            let place = |(rank, e): (usize, &Engine<SimFabric, P>)| {
                let broken = e.broken().map(|b| format!(" [{b}]")).unwrap_or_default();
                format!("rank {rank}: {}{broken}", e.standing())
            };
            let places: Vec<String> = engines.iter().enumerate().map(place).collect();
            let what = if endless { "no end in sight" } else { "nobody can move" };
            return Err(Error::new(Code::TimedOut, format!("{what}\n{}", places.join("\n"))));
        }
    }
}
