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
use super::{Numbers, Tools};
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

/// Host memory that the device copies from and to at full speed, and that local ranks can map.
#[derive(Debug)]
pub(super) struct Stage {
    at: *mut u8,
    /// Until it is dropped the device knows the memory.
    _known: Registered,
}

impl Stage {
    /// # Errors
    /// No memory, or none that the device can be told of.
    pub(super) fn new(side: &mut Native, tools: &Tools) -> Result<Self> {
        let at = side.alloc(STAGE_BYTES)?;
        // SAFETY: the side keeps the memory until the communicator goes, later than this.
        match unsafe { Registered::new(&tools.context, at, STAGE_BYTES) } {
            Ok(known) => Ok(Self { at, _known: known }),
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

/// What is kept from one call for the next.
#[derive(Debug, Default)]
pub(super) struct Spare {
    slots: Vec<Slot>,
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
        Self {
            head,
            pieces: (!private).then(|| piece::count(longest, unit)),
            longest: Box::new([longest]),
            asked: None,
            unit,
            begun: 0,
            sent: 0,
            over: 0,
            slots: VecDeque::new(),
        }
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
            unsafe { tools.outward.copy_in(span.device as u64, from, span.bytes)? };
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
            spare.slots.extend(self.slots.pop_front());
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
            let mut slot = match spare.slots.pop() {
                Some(slot) => slot,
                None => Slot {
                    stage: Stage::new(side, tools)?,
                    event: Event::new(&tools.context, Timing::Without)?,
                    piece: Piece::new(call),
                    state: State::In,
                },
            };
            let from = self.begun * self.unit;
            slot.piece.cut(call, (tools.me, tools.world), from, self.unit);
            slot.state = State::In;
            for span in &slot.piece.ins {
                let to = slot.stage.at.wrapping_add(span.stage);
                // SAFETY: the span lies in the stage, and in the call's input, which its maker
                // promised.
                unsafe { tools.inward.copy_out(to, span.device as u64, span.bytes)? };
            }
            tools.inward.record(&slot.event)?;
            self.slots.push_back(slot);
            (self.begun, moved) = (self.begun + 1, true);
        }
        Ok(moved)
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

    /// Leaves what the device still copies from and to where it is, for good.
    pub(super) fn abandon(self) {
        let busy = |slot: &Slot| {
            !matches!(slot.state, State::Host(_)) && !slot.event.query().unwrap_or(false)
        };
        self.slots.into_iter().filter(busy).for_each(std::mem::forget);
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
