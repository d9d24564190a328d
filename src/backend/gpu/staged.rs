//! A call on device memory by way of host memory: each piece is copied to a stage, goes through a
//! native call there, and is copied back. Pieces overlap: while one is on its way between ranks,
//! the next comes from the device and the one before returns.
//!
//! ```text
//! piece   ready in the stream -> In (copy) -> Host (native call) -> Out (copy) -> over
//! ```
//!
//! Works for every call, wherever the ranks are; the bits are those of host memory.

use std::collections::VecDeque;

use super::piece::{self, Piece};
use super::tools::{Numbers, Tools};
use crate::backend::Backend;
use crate::backend::native::Native;
use crate::call::{Call, Head};
use crate::cuda::{Event, Registered, Timing};
use crate::error::Result;
use crate::types::{Collective, Dtype, ReduceOp};

/// Bytes of a stage: many times what a copy costs to begin, and few enough to stay in a cache.
pub(super) const STAGE_BYTES: usize = 4 << 20;

/// Pieces of a call on their way at a time: one in, one between ranks, one out.
const PIECES_MAX: usize = 3;

/// Stages of all calls together, beyond the one that each call may have.
const STAGES_MAX: usize = 16;

/// The smallest stage.
const STAGE_LEAST: usize = 64 << 10;

/// Host memory that the device copies from and to at full speed, and that local ranks can map.
#[derive(Debug)]
pub(super) struct Stage {
    at: *mut u8,
    bytes: usize,
    /// Until it is dropped the device knows the memory.
    _known: Registered,
}

impl Stage {
    /// # Errors
    /// No memory, or none that the device can be told of.
    fn new(bytes: usize, side: &mut Native, tools: &Tools) -> Result<Self> {
        let at = side.alloc(bytes)?;
        // SAFETY: the side keeps the memory until the communicator goes, later than this.
        match unsafe { Registered::new(&tools.context, at, bytes) } {
            Ok(known) => Ok(Self { at, bytes, _known: known }),
            Err(error) => {
                side.free(at)?;
                Err(error)
            }
        }
    }
}

/// How far a piece has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It is copied to the stage.
    In,
    /// A native call, by its number.
    Host(u32),
    /// It is copied from the stage.
    Out,
}

/// A piece on its way.
#[derive(Debug)]
struct Slot {
    stage: Stage,
    event: Event,
    piece: Piece,
    state: State,
}

/// What is kept from one call for the next, and when calls have failed until the device is done.
#[derive(Debug, Default)]
pub(super) struct Spare {
    slots: Vec<Slot>,
    /// Those that calls have.
    used: usize,
}

impl Spare {
    /// A slot with so many bytes; where none is free, one is made.
    fn take(
        &mut self,
        call: &Call,
        bytes: usize,
        side: &mut Native,
        tools: &Tools,
    ) -> Result<Slot> {
        let fits = |slot: &&Slot| slot.stage.bytes >= bytes;
        let best = self.slots.iter().filter(fits).map(|slot| slot.stage.bytes).min();
        let index = self.slots.iter().position(|slot| Some(slot.stage.bytes) == best);
        let slot = match index {
            Some(index) => self.slots.swap_remove(index),
            None => Slot {
                stage: Stage::new(bytes, side, tools)?,
                event: Event::new(&tools.context, Timing::Without)?,
                piece: Piece::new(call),
                state: State::In,
            },
        };
        self.used += 1;
        Ok(slot)
    }

    fn put_back(&mut self, slots: impl IntoIterator<Item = Slot>) {
        let before = self.slots.len();
        self.slots.extend(slots);
        self.used -= self.slots.len() - before;
    }
}

/// A call under way.
#[derive(Debug)]
pub(super) struct Staged {
    head: Head,
    /// Number of pieces, once the ranks have agreed on it.
    pieces: Option<u64>,
    /// What they agree by: the longest block, and the number of the call that finds it.
    longest: Box<[u64; 1]>,
    asked: Option<u32>,
    unit: u64,
    /// Bytes of a stage.
    bytes: usize,
    /// Had before the call took its place: to have one may take what waits for the call.
    early: Vec<Slot>,
    /// Pieces that have begun, that have gone to the other ranks, and that are over.
    begun: u64,
    sent: u64,
    over: u64,
    slots: VecDeque<Slot>,
}

impl Staged {
    pub(super) fn new(call: &Call, head: Head, tools: &Tools) -> Self {
        let longest = piece::longest(call);
        let unit = piece::unit(call, tools.world, STAGE_BYTES);
        let private = piece::is_private(call.collective);
        let mut first = Piece::new(call);
        first.cut(call, (tools.me, tools.world), 0, unit);
        Self {
            head,
            pieces: (!private).then(|| piece::count(longest, unit)),
            longest: Box::new([longest]),
            asked: None,
            unit,
            bytes: first.bytes.max(STAGE_LEAST).next_power_of_two(),
            early: Vec::new(),
            begun: 0,
            sent: 0,
            over: 0,
            slots: VecDeque::new(),
        }
    }

    /// Gets what it will need, as far as there is enough, before it has a place in a stream.
    ///
    /// # Errors
    /// No memory.
    pub(super) fn prepare(
        &mut self,
        call: &Call,
        side: &mut Native,
        (tools, spare): (&Tools, &mut Spare),
    ) -> Result<()> {
        let own = piece::count(piece::longest(call), self.unit);
        let wanted = usize::try_from(own).unwrap_or(PIECES_MAX).min(PIECES_MAX);
        while self.early.len() < wanted && (self.early.is_empty() || spare.used < STAGES_MAX) {
            self.early.push(spare.take(call, self.bytes, side, tools)?);
        }
        Ok(())
    }

    pub(super) fn is_over(&self) -> bool {
        self.pieces == Some(self.over)
    }

    /// Whether the native backend has been given all that it will be given.
    pub(super) fn has_sent(&self) -> bool {
        self.pieces == Some(self.sent)
    }

    /// Whether the device works for it.
    pub(super) fn is_on_device(&self) -> bool {
        self.slots.iter().any(|slot| !matches!(slot.state, State::Host(_)))
    }

    /// A native call of this one has ended; whether it was one.
    ///
    /// # Errors
    /// Those of copies.
    pub(super) fn ended(&mut self, number: u32, tools: &Tools) -> Result<bool> {
        if self.asked == Some(number) {
            self.asked = None;
            self.pieces = Some(piece::count(self.longest[0], self.unit));
            return Ok(true);
        }
        let Some(slot) = self.slots.iter_mut().find(|slot| slot.state == State::Host(number))
        else {
            return Ok(false);
        };
        slot.state = State::Out;
        for span in &slot.piece.outs {
            let from = slot.stage.at.wrapping_add(span.stage);
            // SAFETY: the span lies in the stage, and in the call's output, which its maker
            // promised.
            unsafe { tools.outward.copy(span.device as u64, from.addr() as u64, span.bytes)? };
        }
        tools.outward.record(&slot.event)?;
        Ok(true)
    }

    /// Goes on as far as it can; whether it moved. `first`: nothing before it has calls to make.
    ///
    /// # Errors
    /// Those of copies, and of memory.
    pub(super) fn advance(
        &mut self,
        call: &Call,
        side: &mut Native,
        first: bool,
        (tools, spare, numbers): (&Tools, &mut Spare, &mut Numbers),
    ) -> Result<bool> {
        let Some(pieces) = self.pieces else {
            if self.asked.is_none() && first {
                self.ask(side, numbers);
                return Ok(true);
            }
            return Ok(false);
        };
        let mut moved = false;
        while let Some(slot) = self.slots.front()
            && slot.state == State::Out
            && slot.event.query()?
        {
            spare.put_back(self.slots.pop_front());
            (self.over, moved) = (self.over + 1, true);
        }
        for slot in &mut self.slots {
            if slot.state == State::In {
                if !first || !slot.event.query()? {
                    break;
                }
                slot.state = State::Host(send(slot, self.head, side, numbers));
                (self.sent, moved) = (self.sent + 1, true);
            }
        }
        while self.begun < pieces && self.slots.len() < PIECES_MAX {
            let slot = match self.early.pop() {
                Some(slot) => slot,
                // Whoever is not its turn, or has one, leaves the last to others.
                None if self.slots.is_empty() && first || spare.used < STAGES_MAX => {
                    spare.take(call, self.bytes, side, tools)?
                }
                None => break,
            };
            self.slots.push_back(slot);
            self.begin(call, tools)?;
            moved = true;
        }
        Ok(moved)
    }

    /// Copies the next piece to the stage that was had last.
    fn begin(&mut self, call: &Call, tools: &Tools) -> Result<()> {
        let Some(slot) = self.slots.back_mut() else { return Ok(()) };
        slot.state = State::In;
        slot.piece.cut(call, (tools.me, tools.world), self.begun * self.unit, self.unit);
        for span in &slot.piece.ins {
            let to = slot.stage.at.wrapping_add(span.stage);
            // SAFETY: the span lies in the stage, and in the call's input, which its maker
            // promised.
            unsafe { tools.inward.copy(to.addr() as u64, span.device as u64, span.bytes)? };
        }
        tools.inward.record(&slot.event)?;
        self.begun += 1;
        Ok(())
    }

    /// Asks for the longest block of all ranks.
    fn ask(&mut self, side: &mut Native, numbers: &mut Numbers) {
        let mut ask = Call::new(Collective::AllReduce, Dtype::U64);
        (ask.op, ask.count, ask.recv) = (ReduceOp::Max, 1, self.longest.as_mut_ptr().cast());
        ask.send = ask.recv.cast_const();
        // SAFETY: the word is in a box of this call's, which stays until the call is over, or until
        // the side is broken and touches nothing any more.
        self.asked = Some(unsafe { numbers.pass(ask, self.head, side) });
    }

    /// Gives its stages back. After a failure the device may still copy: nobody uses them then, and
    /// they go when it has come to its end.
    pub(super) fn leave(self, spare: &mut Spare) {
        spare.put_back(self.slots.into_iter().chain(self.early));
    }
}

/// Gives a piece to the native backend; the call's number.
fn send(slot: &mut Slot, head: Head, side: &mut Native, numbers: &mut Numbers) -> u32 {
    let mut call = slot.piece.host.clone();
    call.send = slot.stage.at.cast_const();
    call.recv = slot.stage.at.wrapping_add(slot.piece.output);
    // SAFETY: the stage has room for all of the piece, and is this call's until it is over.
    unsafe { numbers.pass(call, head, side) }
}
