//! Two ends whose cards are a queue each: requests are carried out late, and in any order between
//! paths.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use proptest::prelude::*;

use super::super::port::Keys;
use super::super::regions::Held;
use super::*;

/// A key that lets a card read, and one that lets the peer write.
const LOCAL: u32 = 7;
const REMOTE: u32 = 9;

struct Request {
    number: u64,
    from: (usize, usize),
    to: u64,
    told: Option<u32>,
    frame: Option<[u8; FRAME_BYTES]>,
}

/// What reaches the other end.
enum Event {
    Told(u32),
    Frame([u8; FRAME_BYTES]),
}

#[derive(Default)]
struct Card {
    queue: VecDeque<Request>,
    posted: u64,
    ended: u64,
    /// What the peer has not taken yet: in its receive queue.
    events: VecDeque<Event>,
    /// What the card reaches besides rings and mirrors.
    memory: Vec<(usize, usize)>,
    requests_max: usize,
    /// Nothing is carried out any more.
    broken: bool,
}

#[derive(Clone)]
struct MemPort(Rc<RefCell<Card>>);

impl Port for MemPort {
    fn room(&self) -> usize {
        let card = self.0.borrow();
        card.requests_max - card.queue.len()
    }

    unsafe fn write(
        &mut self,
        (from, key): (*const u8, u32),
        bytes: usize,
        to: Remote,
        told: Option<u32>,
        _: bool,
    ) -> Result<u64> {
        assert!(self.room() > 0 && key == LOCAL && to.key == REMOTE && bytes > 0);
        let mut card = self.0.borrow_mut();
        card.posted += 1;
        let number = card.posted;
        let from = (from as usize, bytes);
        card.queue.push_back(Request { number, from, to: to.address, told, frame: None });
        Ok(number)
    }

    fn frame(&mut self, frame: &[u8; FRAME_BYTES]) -> Result<u64> {
        assert!(self.room() > 0);
        let mut card = self.0.borrow_mut();
        card.posted += 1;
        let number = card.posted;
        let frame = Some(*frame);
        card.queue.push_back(Request { number, from: (0, 0), to: 0, told: None, frame });
        Ok(number)
    }

    fn ended(&self) -> u64 {
        self.0.borrow().ended
    }

    fn keys(&self, at: *const u8, bytes: usize) -> Option<Held> {
        let at = at as usize;
        let card = self.0.borrow();
        let inside = |&(from, length): &(usize, usize)| at >= from && at + bytes <= from + length;
        let keys = Keys { local: LOCAL, remote: REMOTE };
        card.memory.iter().any(inside).then_some(Held { keys, region: None })
    }
}

/// Carries out the oldest request of a card.
fn carry_out(card: &Rc<RefCell<Card>>) -> bool {
    let mut card = card.borrow_mut();
    if card.broken {
        return false;
    }
    let Some(request) = card.queue.pop_front() else { return false };
    let (from, bytes) = request.from;
    let to = usize::try_from(request.to).expect("an address");
    if bytes > 0 {
        // SAFETY: both are memory of this test, which lives as long as it.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes) };
    }
    card.events.extend(request.told.map(Event::Told));
    card.events.extend(request.frame.map(Event::Frame));
    assert!(card.events.len() <= DEPTH as usize, "a receive queue has no place for what comes");
    card.ended = request.number;
    true
}

/// One end, with the cards that carry what it sends.
struct End {
    pair: Pair<MemPort>,
    cards: Vec<Rc<RefCell<Card>>>,
    _memory: Vec<u64>,
}

impl End {
    fn new(peer: u32, paths: usize, requests_max: usize) -> Self {
        let mut memory = vec![0u64; 2 * Memory::BYTES / 8];
        let rings = memory.as_mut_ptr().cast::<u8>();
        let reach = (rings as usize, 2 * Memory::BYTES);
        let card = |_| {
            let card = Card { requests_max, memory: vec![reach], ..Card::default() };
            Rc::new(RefCell::new(card))
        };
        let cards: Vec<_> = (0..paths).map(card).collect();
        let ports = cards.iter().map(|card| MemPort(card.clone())).collect();
        let mirrors = rings.wrapping_add(Memory::BYTES);
        // SAFETY: the memory is as long as rings and mirrors, zeroed, and kept beside the pair.
        let pair = unsafe { Pair::new(Rank(peer), Memory { rings, mirrors }, ports) };
        Self { pair: pair.expect("a pair"), cards, _memory: memory }
    }

    fn reach(&self, buffer: &[u8]) {
        for card in &self.cards {
            card.borrow_mut().memory.push((buffer.as_ptr() as usize, buffer.len()));
        }
    }

    /// Gives up a path, when all that has come by it has been taken.
    fn lose(&mut self, path: usize, other: &Self) {
        self.hear(other);
        self.pair.lose(path).expect("another path");
    }

    /// Takes what the other end's cards have brought.
    fn hear(&mut self, other: &Self) -> bool {
        let mut heard = false;
        for (index, card) in other.cards.iter().enumerate() {
            loop {
                if self.pair.paths[index].condition != Condition::Up {
                    break;
                }
                let event = card.borrow_mut().events.pop_front();
                let Some(event) = event else { break };
                heard = true;
                match event {
                    Event::Told(bits) => self.pair.immediate(index, bits),
                    Event::Frame(frame) => self.pair.frame(index, &frame),
                }
                .expect("what a peer says");
            }
        }
        self.pair.tend().expect("a connection");
        heard
    }
}

/// One message, in the same words on both ends.
#[derive(Clone, Debug)]
struct Message {
    bytes: usize,
    /// It is folded on arrival: taken out of the ring, where it is.
    folded: bool,
    /// The sender needs its source back at once.
    staged: bool,
    source_reached: bool,
    target_reached: bool,
}

fn message() -> impl Strategy<Value = Message> {
    let bytes = prop_oneof![
        0..200usize,
        4000..20_000usize,
        Just(PLACE_BYTES),
        Just(PLACE_BYTES - 1),
        60_000..300_000usize,
    ];
    (bytes, any::<[bool; 4]>()).prop_map(|(bytes, [folded, staged, source, target])| Message {
        bytes,
        folded,
        staged: staged && source && bytes < CAPACITY / 2,
        source_reached: source,
        target_reached: target,
    })
}

/// A lane in one direction.
struct Stream {
    messages: Vec<Message>,
    sources: Vec<Vec<u8>>,
    targets: Vec<Vec<u8>>,
    sending: usize,
    given: usize,
    receiving: usize,
    taken: usize,
    /// Targets that have been told ahead.
    told: usize,
}

impl Stream {
    fn new(messages: Vec<Message>, salt: usize) -> Self {
        let byte = |index: usize, at: usize| u8::try_from((index * 31 + at * 7 + salt) % 251);
        let source = |(index, m): (usize, &Message)| {
            (0..m.bytes).map(|at| byte(index, at).expect("a byte")).collect()
        };
        let sources = messages.iter().enumerate().map(source).collect();
        let targets = messages.iter().map(|m| vec![0; m.bytes]).collect();
        let (sending, given, receiving, taken, told) = (0, 0, 0, 0, 0);
        Self { messages, sources, targets, sending, given, receiving, taken, told }
    }

    fn is_done(&self) -> bool {
        self.sending == self.messages.len() && self.receiving == self.messages.len()
    }

    fn send(&mut self, lane: usize, end: &mut End) -> bool {
        let Some(message) = self.messages.get(self.sending) else { return false };
        let source = &mut self.sources[self.sending];
        let (from, left) = (source[self.given..].as_ptr(), message.bytes - self.given);
        let mut moved = 0;
        if left > 0 {
            // SAFETY: the source lives as long as the test, and is not changed while it is read.
            moved = unsafe {
                match (message.folded, message.staged) {
                    (true, true) => end.pair.stage(lane, from, left),
                    (true, false) => end.pair.write(lane, from, left),
                    (false, staged) => end.pair.place(lane, from, left, staged),
                }
            }
            .expect("a connection");
        }
        self.given += moved;
        if self.given == message.bytes {
            end.pair.end_out(lane).expect("a connection");
            if !end.pair.reads(lane, source.as_ptr(), source.len()) {
                // Nobody reads it any more.
                source.fill(0xee);
            }
            (self.sending, self.given) = (self.sending + 1, 0);
            return true;
        }
        moved > 0
    }

    fn receive(&mut self, lane: usize, end: &mut End, ahead: bool) -> bool {
        let Some(message) = self.messages.get(self.receiving) else { return false };
        let target = &mut self.targets[self.receiving];
        let into = target[self.taken..].as_mut_ptr();
        let left = message.bytes - self.taken;
        let mut moved = 0;
        if message.folded {
            let window = end.pair.peek(lane);
            moved = window.bytes.min(left);
            if moved > 0 {
                // SAFETY: a window of the ring into a target as long.
                unsafe { std::ptr::copy_nonoverlapping(window.at, into, moved) };
                end.pair.release(lane, moved);
            }
        } else if left > 0 {
            // SAFETY: the target lives as long as the test.
            moved = unsafe { end.pair.take(lane, into, left) }.expect("a connection");
        }
        self.taken += moved;
        if self.taken == message.bytes {
            end.pair.end_in(lane).expect("a connection");
            (self.receiving, self.taken) = (self.receiving + 1, 0);
            return true;
        }
        if ahead {
            self.tell_ahead(lane, end);
        }
        moved > 0
    }

    /// Tells where the messages after the one at hand are wanted.
    fn tell_ahead(&mut self, lane: usize, end: &mut End) {
        let counts = |m: &Message| !m.folded && m.bytes > 0;
        let mut later = u32::from(counts(&self.messages[self.receiving]));
        for index in self.receiving + 1..self.messages.len().min(self.receiving + 4) {
            if !counts(&self.messages[index]) {
                continue;
            }
            let target = &mut self.targets[index];
            // SAFETY: the target lives as long as the test.
            unsafe { end.pair.expect(lane, later, target.as_mut_ptr(), target.len()) }
                .expect("a connection");
            later += 1;
            self.told += 1;
        }
    }
}

fn random(seed: &mut u64, below: usize) -> usize {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    usize::try_from(*seed % below as u64).expect("small")
}

/// A path breaks at both ends, in the middle of a write of which some may be there.
fn break_path(ends: &[End; 2], path: usize, seed: &mut u64) {
    for end in ends {
        let mut card = end.cards[path].borrow_mut();
        if let Some(request) = card.queue.front().filter(|_| random(seed, 2) == 0) {
            let ((from, bytes), to) = (request.from, request.to);
            let bytes = bytes.min(random(seed, bytes + 1));
            if bytes > 0 {
                let to = usize::try_from(to).expect("an address") as *mut u8;
                // SAFETY: both are memory of this test, which lives as long as it.
                unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to, bytes) };
            }
        }
        card.broken = true;
    }
}

/// Runs streams of both directions, each on its lane, until all are through; how much was copied.
/// After each number of steps that `breaks` has, a path breaks.
fn run(
    streams: [Vec<Vec<Message>>; 2],
    (paths, requests_max, lazy): (usize, usize, usize),
    breaks: &[(usize, usize)],
    mut seed: u64,
) -> [u64; 2] {
    let mut ends = [End::new(1, paths, requests_max), End::new(0, paths, requests_max)];
    let mut salt = 0;
    let mut streams = streams.map(|lanes| {
        let stream = |messages| {
            salt += 13;
            Stream::new(messages, salt)
        };
        lanes.into_iter().map(stream).collect::<Vec<_>>()
    });
    for (from, lanes) in streams.iter().enumerate() {
        for stream in lanes {
            for (index, message) in stream.messages.iter().enumerate() {
                if message.source_reached {
                    ends[from].reach(&stream.sources[index]);
                }
                if message.target_reached {
                    ends[1 - from].reach(&stream.targets[index]);
                }
            }
        }
    }
    let expected: Vec<Vec<Vec<Vec<u8>>>> = streams
        .iter()
        .map(|lanes| lanes.iter().map(|stream| stream.sources.clone()).collect())
        .collect();
    let (mut idle, mut steps) = (0, 0);
    while !streams.iter().flatten().all(Stream::is_done) {
        assert!(idle < 20_000, "nobody gets on");
        // Before HELLO there is no connection yet.
        steps += usize::from(ends.iter().all(|end| end.pair.is_open()));
        if let Some((path, _)) = breaks.iter().find(|(_, after)| *after == steps) {
            break_path(&ends, *path, &mut seed);
        }
        let side = random(&mut seed, 2);
        let [first, second] = &mut ends;
        let (me, other) = if side == 0 { (first, second) } else { (second, first) };
        let moved = match random(&mut seed, 4 + lazy) {
            0 => {
                for path in 0..paths {
                    let broken = me.cards[path].borrow().broken || me.pair.is_forsaken(path);
                    let up = me.pair.paths[path].condition == Condition::Up;
                    if broken && up && me.pair.is_open() && random(&mut seed, 8) == 0 {
                        me.lose(path, other);
                    }
                }
                me.hear(other)
            }
            1 if me.pair.is_open() => {
                let lane = random(&mut seed, streams[side].len());
                streams[side][lane].send(lane, me)
            }
            2 if me.pair.is_open() => {
                let lane = random(&mut seed, streams[1 - side].len());
                let ahead = random(&mut seed, 2) == 0;
                streams[1 - side][lane].receive(lane, me, ahead)
            }
            3 => {
                let lanes = streams[side].len();
                (0..lanes).for_each(|lane| drop(me.pair.publish(lane)));
                carry_out(&me.cards[random(&mut seed, paths)])
            }
            _ => false,
        };
        idle = if moved { 0 } else { idle + 1 };
    }
    for (side, lanes) in streams.iter().enumerate() {
        for (lane, stream) in lanes.iter().enumerate() {
            for (index, target) in stream.targets.iter().enumerate() {
                let wanted = &expected[side][lane][index];
                assert!(target == wanted, "message {index} of lane {lane} of end {side}");
            }
        }
    }
    let [first, second] = &ends;
    [first.pair.copied, second.pair.copied]
}

fn lanes() -> impl Strategy<Value = Vec<Vec<Message>>> {
    prop::collection::vec(prop::collection::vec(message(), 1..30), 1..4)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever the order of things, with queues that are often full.
    #[test]
    fn every_message_comes_whole_and_in_order(
        one in lanes(),
        two in lanes(),
        paths in 1..4usize,
        requests_max in prop_oneof![Just(3usize), Just(8), Just(64)],
        lazy in 0..3usize,
        seed in 1u64..,
    ) {
        run([one, two], (paths, requests_max, lazy), &[], seed);
    }

    /// Paths break and one is left: by that everything comes, whole and in order.
    #[test]
    fn what_a_broken_path_did_not_bring_comes_by_another(
        one in lanes(),
        two in lanes(),
        paths in 2..5usize,
        requests_max in prop_oneof![Just(3usize), Just(8), Just(64)],
        after in prop::collection::vec(50..2000usize, 1..4),
        left in 0..4usize,
        seed in 1u64..,
    ) {
        let broken = (0..paths).filter(|path| *path != left % paths);
        let breaks: Vec<(usize, usize)> = broken.zip(after).collect();
        run([one, two], (paths, requests_max, 0), &breaks, seed);
    }

    /// From and into memory that the cards reach.
    #[test]
    fn nothing_large_is_copied_where_the_cards_reach(
        sizes in prop::collection::vec((PLACE_BYTES..200_000usize, any::<bool>()), 1..20),
        paths in 1..3usize,
        seed in 1u64..,
    ) {
        let (source_reached, target_reached, staged) = (true, true, false);
        let message = |&(bytes, folded): &(usize, bool)| Message {
            bytes, folded, staged, source_reached, target_reached,
        };
        let messages: Vec<Message> = sizes.iter().map(message).collect();
        let copied = run([vec![messages.clone()], vec![messages]], (paths, 16, 0), &[], seed);
        prop_assert_eq!(copied, [0, 0]);
    }

    /// Anything that a peer may send is taken or refused, and touches nothing but the rings.
    #[test]
    fn what_a_hostile_peer_says_is_refused(
        said in prop::collection::vec((any::<bool>(), any::<u32>(), any::<[u8; 24]>()), 1..200),
    ) {
        let mut end = End::new(1, 1, 64);
        let hello = Frame::Hello {
            path: 0,
            frames: 256,
            rings: Remote { address: 0, key: REMOTE },
            ring: RING_BYTES as u64,
        };
        end.pair.frame(0, &hello.encode()).expect("HELLO");
        for (frame, bits, bytes) in said {
            let mut whole = [0; FRAME_BYTES];
            whole[..24].copy_from_slice(&bytes);
            whole[0] %= 6;
            let told = if frame { end.pair.frame(0, &whole) } else { end.pair.immediate(0, bits) };
            if told.is_err() {
                break;
            }
            for lane in 0..FABRIC_LANES {
                let window = end.pair.peek(lane);
                prop_assert!(window.bytes <= RING_BYTES);
                let window = end.pair.window(lane);
                prop_assert!(window.bytes <= RING_BYTES);
            }
        }
    }
}

/// Two ends that both send far more than is taken: they go on as soon as one takes something.
#[test]
fn ends_that_are_full_of_each_other_go_on() {
    let small = Message {
        bytes: 40,
        folded: true,
        staged: false,
        source_reached: false,
        target_reached: false,
    };
    let many = vec![small; 2000];
    let lanes = vec![many; FABRIC_LANES];
    run([lanes.clone(), lanes], (1, 16, 0), &[], 0x5eed);
}
