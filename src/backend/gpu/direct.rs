//! A call that one device, or a few, carry out on all ranks' buffers where they lie.
//!
//! Ranks of one host tell each other where their buffers are. Of the ranks on each device the first
//! *leads*: it launches what its share of the call is in folds and copies, on memory that it
//! reaches by address (threads of one process) or has mapped (CUDA IPC). When the work is done all
//! ranks meet once more. So ranks on one device need no kernels that wait for each other, and every
//! byte is read and written once.
//!
//! ```text
//! Ready -> Telling (native all_gather) -> Working (leaders) -> Closing (native barrier) -> over
//!                                      -> by way of host memory, where some buffer is out of reach
//! ```
//!
//! Every decision follows from what all have been told, so all ranks decide alike.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::moves::{Copy, Moves, Share, Targets, has_moves};
use super::told::{ADDRESS, Area, HIDDEN, NOTHING, Rows, SHARED, Told};
use super::tools::{Events, Numbers, Tools, address};
use crate::backend::native::Native;
use crate::call::{Call, Head};
use crate::cuda::{Context, Event, HANDLE_BYTES, Imported, OrderedMemory};
use crate::error::{Code, Error, Result};
use crate::kernel::cuda::{DeviceFold, DeviceSource, FAN, Move, PACK_INLINE, pack};
use crate::kernel::{Form, Scalar, Stage};
use crate::types::{Collective, Dtype, Rank, ReduceOp};

/// Mappings of other ranks' memory that are kept.
const MAPPED_MAX: usize = 256;

/// Blocks in scratch begin at multiples of so many bytes.
const ALIGN: u64 = 256;

/// Bytes of scratch, at most: what is exchanged in place is read before any of it is written.
const SCRATCH_BYTES: u64 = 64 << 20;

/// How the ranks of a communicator reach each other's memory.
#[derive(Clone, Debug)]
pub(crate) struct Reach {
    /// For each rank, the first one with the same device.
    devices: Vec<usize>,
    /// For each rank, the first one in the same process.
    processes: Vec<usize>,
}

impl Reach {
    /// That of ranks with these devices, by their ids, in these processes, by their numbers.
    pub(crate) fn of(all: &[([u8; 16], u64)]) -> Self {
        let device = |own: [u8; 16]| all.iter().position(|(other, _)| *other == own);
        let process = |own: u64| all.iter().position(|(_, other)| *other == own);
        Self {
            devices: all.iter().map(|(own, _)| device(*own).unwrap_or(0)).collect(),
            processes: all.iter().map(|(_, own)| process(*own).unwrap_or(0)).collect(),
        }
    }
}

/// Whether all are the same.
fn is_one(all: &[usize]) -> bool {
    all.iter().all(|one| *one == all[0])
}

/// What a rank keeps to make such calls.
#[derive(Debug)]
pub(super) struct Direct {
    reach: Reach,
    /// Whether this rank leads, and its share.
    share: Option<Share>,
    mapped: HashMap<(u32, [u8; HANDLE_BYTES]), Imported>,
    moves: Moves,
    sources: Vec<DeviceSource>,
    factors: Vec<Scalar>,
    targets: Vec<u64>,
    blocks: Vec<Move>,
    window: Vec<Move>,
}

impl Direct {
    /// For rank `me`; `None` where ranks are too many for a fold.
    pub(super) fn new(reach: Reach, me: Rank) -> Option<Self> {
        if reach.devices.len() > FAN {
            return None;
        }
        let own = reach.devices[me.index()];
        let mut distinct = reach.devices.clone();
        distinct.sort_unstable();
        distinct.dedup();
        let index = distinct.iter().position(|device| *device == own).unwrap_or(0);
        let share = Share { index: Rank::at(index).0, of: Rank::at(distinct.len()).0 };
        let leads = own == me.index();
        Some(Self {
            reach,
            share: leads.then_some(share),
            mapped: HashMap::new(),
            moves: Moves::default(),
            sources: Vec::new(),
            factors: Vec::new(),
            targets: Vec::new(),
            blocks: Vec::new(),
            window: Vec::new(),
        })
    }

    /// Whether this rank launches for others.
    pub(super) fn leads(&self) -> bool {
        self.share.is_some()
    }

    /// Whether `call` can be made so, as far as every rank can tell.
    pub(super) fn takes(call: &Call) -> bool {
        has_moves(call.collective)
    }

    /// Gives back mappings where there are many. Nothing is under way: to give one back may take
    /// what waits for a call.
    pub(super) fn tidy(&mut self) {
        if self.mapped.len() > MAPPED_MAX {
            self.mapped.clear();
        }
    }

    fn area(&self, at: *const u8, used: bool, context: &Context) -> Area {
        let at = at as u64;
        let name = [0; HANDLE_BYTES];
        if !used {
            return Area { kind: NOTHING, at: 0, offset: 0, name };
        }
        let here = Area { kind: ADDRESS, at, offset: 0, name };
        let one_process = is_one(&self.reach.processes);
        if one_process && is_one(&self.reach.devices) {
            return here;
        }
        match context.share(at) {
            // Other devices get to what other processes could map, and to nothing else.
            Ok(_) if one_process => here,
            Ok(shared) => Area { kind: SHARED, offset: shared.offset, name: shared.handle, ..here },
            // Managed memory, a pool's, or host memory.
            Err(_) => Area { kind: HIDDEN, ..here },
        }
    }

    /// The address at which this rank's device finds `area` of `rank`.
    fn resolve(&mut self, rank: usize, area: &Area, tools: &Tools) -> Result<u64> {
        let processes = &self.reach.processes;
        match area.kind {
            NOTHING => Ok(0),
            ADDRESS | SHARED if processes[rank] == processes[tools.me.index()] => Ok(area.at),
            SHARED => {
                let key = (Rank::at(rank).0, area.name);
                let mapped = match self.mapped.entry(key) {
                    Entry::Occupied(there) => there.into_mut(),
                    Entry::Vacant(empty) => {
                        empty.insert(Imported::open(&tools.context, &area.name)?)
                    }
                };
                Ok(mapped.address() + area.offset)
            }
            kind => {
                let text = format!("a buffer of kind {kind}");
                Err(Error::new(Code::Protocol, text).with_peer(Rank::at(rank)))
            }
        }
    }
}

/// How far a call has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ready,
    /// A native call, by its number.
    Telling(u32),
    /// All have told; this rank's part of the work has not begun.
    Told,
    Working,
    Closing(u32),
    Over,
}

/// A call under way.
#[derive(Debug)]
pub(super) struct Led {
    head: Head,
    state: State,
    done: Option<Event>,
    told: Rows,
}

/// What became of a look at a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Waits,
    Moved,
    /// Some rank's buffer is out of reach.
    OutOfReach,
}

impl Led {
    pub(super) fn new(head: Head) -> Self {
        Self { head, state: State::Ready, done: None, told: Rows::default() }
    }

    pub(super) fn is_over(&self) -> bool {
        self.state == State::Over
    }

    pub(super) fn has_sent(&self) -> bool {
        matches!(self.state, State::Closing(_) | State::Over)
    }

    pub(super) fn is_on_device(&self) -> bool {
        self.state == State::Working
    }

    /// A native call of this one has ended; whether it was one.
    pub(super) fn ended(&mut self, number: u32) -> bool {
        self.state = match self.state {
            State::Telling(own) if own == number => State::Told,
            State::Closing(own) if own == number => State::Over,
            _ => return false,
        };
        true
    }

    /// Goes on as far as it can. `first`: nothing before it has calls to make.
    ///
    /// # Errors
    /// CUDA's own.
    pub(super) fn advance(
        &mut self,
        call: &Call,
        side: &mut Native,
        first: bool,
        (tools, direct, numbers, events): (&Tools, &mut Direct, &mut Numbers, &mut Events),
    ) -> Result<Step> {
        match self.state {
            State::Ready => {
                if !first {
                    return Ok(Step::Waits);
                }
                self.tell(call, side, (tools, direct, numbers));
            }
            State::Told => {
                self.told.agree(call, &self.head, tools.me)?;
                let hidden = |told: &Told| [told.send.kind, told.recv.kind].contains(&HIDDEN);
                if self.told.all().any(hidden) {
                    return Ok(Step::OutOfReach);
                }
                if let Some(share) = direct.share {
                    self.work(call, share, tools, direct)?;
                    self.done = Some(events.record(&tools.outward, &tools.context)?);
                    self.state = State::Working;
                } else {
                    self.close(side, numbers);
                }
            }
            State::Working => {
                if !self.done.as_ref().map_or(Ok(true), Event::query)? {
                    return Ok(Step::Waits);
                }
                events.put_back(self.done.take());
                self.close(side, numbers);
            }
            State::Telling(_) | State::Closing(_) | State::Over => return Ok(Step::Waits),
        }
        Ok(Step::Moved)
    }

    fn tell(
        &mut self,
        call: &Call,
        side: &mut Native,
        (tools, direct, numbers): (&Tools, &Direct, &mut Numbers),
    ) {
        let (sends, receives) = call.uses(tools.me);
        let exchanges = matches!(call.collective, Collective::AllToAll | Collective::AllToAllV);
        let told = Told {
            send: direct.area(call.send, sends, &tools.context),
            recv: direct.area(call.recv.cast_const(), receives, &tools.context),
            factor: call.scalar.0,
            in_place: u64::from(exchanges && sends && std::ptr::eq(call.send, call.recv)),
        };
        self.told.begin(call, tools.me, tools.world, told);
        let mut gather = Call::new(Collective::AllGather, Dtype::U64);
        let (words, all, own) = self.told.gathered(tools.me);
        (gather.count, gather.recv, gather.send) = (words, all.cast(), own.cast());
        // SAFETY: the list is this call's, which stays until it is over, or until the side is
        // broken and touches nothing any more.
        self.state = State::Telling(unsafe { numbers.pass(gather, self.head, side) });
    }

    fn close(&mut self, side: &mut Native, numbers: &mut Numbers) {
        let close = Call::new(Collective::Barrier, Dtype::U8);
        // SAFETY: there are no buffers.
        self.state = State::Closing(unsafe { numbers.pass(close, self.head, side) });
    }

    /// Launches this rank's share.
    fn work(&self, call: &Call, share: Share, tools: &Tools, direct: &mut Direct) -> Result<()> {
        let mut sends = [0u64; FAN];
        let mut recvs = [0u64; FAN];
        for (rank, told) in self.told.all().enumerate() {
            sends[rank] = direct.resolve(rank, &told.send, tools)?;
            recvs[rank] = direct.resolve(rank, &told.recv, tools)?;
        }
        let world = Rank(tools.world).index();
        let mut moves = std::mem::take(&mut direct.moves);
        moves.list(call, tools.world, share, |from, to| self.told.block(from, to));
        let element = call.dtype.bytes() as u64;
        let outcome = self
            .folds(call, &moves, (&sends[..world], &recvs[..world]), (tools, direct))
            .and_then(|()| {
                let there = |copy: &Copy| Move {
                    source: sends[copy.from.0.index()] + copy.from.1 * element,
                    target: recvs[copy.to.0.index()] + copy.to.1 * element,
                    bytes: copy.count * element,
                };
                direct.blocks.clear();
                let moved = moves.copies.iter().map(there);
                direct.blocks.extend(moved.filter(|one| one.source != one.target));
                if self.told.all().any(|told| told.in_place == 1) {
                    exchange(tools, direct)
                } else {
                    copies(tools, &direct.blocks)
                }
            });
        direct.moves = moves;
        outcome
    }

    fn folds(
        &self,
        call: &Call,
        moves: &Moves,
        (sends, recvs): (&[u64], &[u64]),
        (tools, direct): (&Tools, &mut Direct),
    ) -> Result<()> {
        let element = call.dtype.bytes() as u64;
        for fold in &moves.folds {
            let mut sources = std::mem::take(&mut direct.sources);
            let mut factors = std::mem::take(&mut direct.factors);
            let mut targets = std::mem::take(&mut direct.targets);
            sources.clear();
            factors.clear();
            targets.clear();
            let source =
                |at: &u64| DeviceSource { at: at + fold.from * element, form: Form::Native };
            sources.extend(sends.iter().map(source));
            factors.extend(self.told.all().map(|told| Scalar(told.factor)));
            let target = |at: &u64| at + fold.at * element;
            match fold.to {
                Targets::All => targets.extend(recvs.iter().map(target)),
                Targets::One(rank) => targets.push(target(&recvs[rank.index()])),
            }
            let launch = DeviceFold {
                dtype: call.dtype,
                op: call.op,
                sources: &sources,
                factors: (call.op == ReduceOp::PreMulSum).then_some(&factors[..]),
                targets: &targets,
                target_form: Form::Native,
                count: fold.count,
                stage: Stage::Finish { ranks: tools.world },
            }
            .launch(tools.processors);
            (direct.sources, direct.factors, direct.targets) = (sources, factors, targets);
            // SAFETY: the buffers are promised by the calls' makers until the call has ended.
            unsafe { tools.launch(&launch?, &tools.outward)? };
        }
        Ok(())
    }
}

/// Launches copies.
fn copies(tools: &Tools, blocks: &[Move]) -> Result<()> {
    blocks.chunks(PACK_INLINE).try_for_each(|some| {
        let launch = pack(some, tools.processors)?;
        // SAFETY: as for folds.
        unsafe { tools.launch(&launch, &tools.outward) }
    })
}

/// Launches the copies that are listed, where what one reads another may write: window by window,
/// by way of scratch. A window of what goes from one rank to another lies where the same window of
/// what returns does, so windows do not meet.
fn exchange(tools: &Tools, direct: &mut Direct) -> Result<()> {
    let (blocks, window) = (&direct.blocks, &mut direct.window);
    let longest = blocks.iter().map(|block| block.bytes).max().unwrap_or(0);
    let room = SCRATCH_BYTES / (blocks.len() as u64).max(1) / ALIGN * ALIGN;
    let length = room.min(longest.next_multiple_of(ALIGN));
    if length == 0 {
        return Ok(());
    }
    let step = address(length);
    let scratch = OrderedMemory::new(&tools.outward, step * blocks.len())?;
    for from in (0..longest).step_by(step) {
        for there in [true, false] {
            window.clear();
            for (block, at) in blocks.iter().zip((scratch.address()..).step_by(step)) {
                let bytes = block.bytes.saturating_sub(from).min(length);
                let (source, target) = (block.source + from, block.target + from);
                let half = if there { (source, at) } else { (at, target) };
                if bytes > 0 {
                    window.push(Move { source: half.0, target: half.1, bytes });
                }
            }
            copies(tools, window)?;
        }
    }
    Ok(())
}
