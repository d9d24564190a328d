//! A plan tied to one call: chunk numbers become addresses, types become kernels.
//!
//! Every address that steps work on comes from here. Invariant: each lies inside the call's buffers
//! (their lengths were checked when the call was validated), inside the scratch it was given, or
//! inside a peer's buffer whose place the board has checked, or inside a piece of a rank's area,
//! where the tuner saw to it that a block of tiles fits.

use std::ptr;

use crate::call::Call;
use crate::engine::area::{Next, Pieces, Taker, Way};
use crate::engine::tile::{Layout, Piece};
use crate::error::Result;
use crate::kernel::{self, Convert, Fold, Form, Kernels, Source, Stage};
use crate::plan::{PHASES_MAX, Plan, Region, Step, flag};
use crate::types::{Collective, Dtype, ReduceOp};

/// A stretch of elements in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operand {
    pub(crate) at: *mut u8,
    pub(crate) form: Form,
    pub(crate) count: usize,
}

/// The buffers of one rank, mapped here (memory links).
#[derive(Clone, Copy, Debug)]
pub(crate) struct PeerBuffers {
    pub(crate) input: *mut u8,
    pub(crate) output: *mut u8,
    /// Its area of the board.
    pub(crate) area: *mut u8,
}

/// The kernels of the last call that reduced, which most calls need again.
#[derive(Debug, Default)]
pub(crate) struct LastKernels(Option<(Dtype, ReduceOp, Kernels)>);

impl LastKernels {
    /// The kernels for `dtype` and `op`.
    pub(crate) fn of(&mut self, dtype: Dtype, op: ReduceOp) -> Result<Kernels> {
        match self.0 {
            Some((d, o, kernels)) if (d, o) == (dtype, op) => Ok(kernels),
            _ => {
                let kernels = kernel::select(dtype, op)?;
                self.0 = Some((dtype, op, kernels));
                Ok(kernels)
            }
        }
    }
}

/// What calls on the board have used up, the same on all ranks.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Before {
    /// Turns: the number of calls made over the board.
    pub(crate) turns: u64,
    /// Pieces of the areas.
    pub(crate) pieces: Next,
    /// Phases.
    pub(crate) phases: u64,
}

impl PeerBuffers {
    /// None known.
    pub(crate) const NONE: Self =
        Self { input: ptr::null_mut(), output: ptr::null_mut(), area: ptr::null_mut() };
}

/// A call's addresses, sizes and kernels.
#[derive(Debug)]
pub(crate) struct Bound {
    pub(crate) layout: Layout,
    /// Tiles in flight.
    pub(crate) window: u64,
    /// Tiles in all.
    pub(crate) tiles: u64,
    kernels: Option<Kernels>,
    native_bytes: usize,
    wide_bytes: usize,
    work: *mut u8,
    work_form: Form,
    work_chunks: u64,
    stage_chunks: u64,
    /// One for each block of tiles that is staged.
    pub(crate) pieces: Pieces,
    /// Phases that earlier calls may have posted.
    pub(crate) phases_before: u64,
    /// Outputs are larger than the caches, so stores to them had better pass those by.
    past_caches: bool,
    /// So had those to the own stage, of most blocks: see [`crate::engine::link::Board::past`].
    stages_past: bool,
    rank: u32,
    world: u32,
    scalar: kernel::Scalar,
}

/// Bytes of scratch that `plan` needs with `tile` elements and `window` tiles.
pub(crate) fn work_bytes(plan: &Plan, call: &Call, tile: u64, window: u64) -> u64 {
    let element = if call.collective.reduces() {
        call.dtype.accumulator().bytes()
    } else {
        call.dtype.bytes()
    };
    u64::from(plan.work_chunks) * tile * window * element as u64
}

/// From here on what all ranks of a host write in a call is more than their caches hold.
const PAST_CACHES_BYTES: u64 = 16 << 20;

/// Bytes that `world` ranks write in `call`, about.
fn written(call: &Call, world: u32) -> u64 {
    use Collective as C;
    let blocks = match call.collective {
        C::AllGather | C::AllToAll => u64::from(world),
        _ => 1,
    };
    let counts = call.recv_blocks.counts.iter().copied().fold(call.count, u64::max);
    [blocks, u64::from(world), call.dtype.bytes() as u64]
        .into_iter()
        .fold(counts, u64::saturating_mul)
}

impl Bound {
    /// Binds `plan` to `call`; `work` must hold [`work_bytes`]. Takes from `before` what the call
    /// uses up of the board: the same on all ranks, since plans on the board have the same number
    /// of tiles everywhere.
    pub(crate) fn new(
        plan: &Plan,
        call: &Call,
        layout: Layout,
        window: u64,
        (work, kernels): (*mut u8, Option<Kernels>),
        before: &mut Before,
        stages_past: bool,
    ) -> Self {
        let reduces = call.collective.reduces();
        let native_bytes = call.dtype.bytes();
        let wide_bytes = if reduces { call.dtype.accumulator().bytes() } else { native_bytes };
        let tiles = layout.tiles(call);
        let blocks = tiles.div_ceil(window);
        let piece = window * u64::from(plan.stage_chunks) * layout.tile * native_bytes as u64;
        let taker = Taker { turn: before.turns, loose: false };
        let pieces = before.pieces.take(plan.key.world as usize, taker, piece, blocks);
        let phases_before = before.phases;
        if plan.has_phases() {
            before.phases += blocks * window * u64::from(PHASES_MAX);
        }
        Self {
            tiles,
            layout,
            window,
            kernels,
            native_bytes,
            wide_bytes,
            work,
            work_form: if reduces { Form::Wide } else { Form::Native },
            work_chunks: u64::from(plan.work_chunks),
            stage_chunks: u64::from(plan.stage_chunks),
            pieces,
            phases_before,
            stages_past,
            past_caches: plan.has_phases() && written(call, plan.key.world) > PAST_CACHES_BYTES,
            rank: plan.key.rank.0,
            world: plan.key.world,
            scalar: call.scalar,
        }
    }

    /// Bytes of one element in `form`.
    #[inline]
    pub(crate) fn bytes(&self, form: Form) -> usize {
        match form {
            Form::Native => self.native_bytes,
            Form::Wide => self.wide_bytes,
        }
    }

    /// The form of the messages a step takes.
    #[inline]
    pub(crate) fn incoming(step: &Step) -> Form {
        if step.has(flag::WIDE) { Form::Wide } else { Form::Native }
    }

    /// Whether messages of this form that are stored as they are may be placed: both ends must say
    /// the same, and wide ones may be rounded on arrival.
    #[inline]
    pub(crate) fn stores(&self, wire: Form) -> bool {
        wire == Form::Native || self.wide_bytes == self.native_bytes
    }

    /// The form of the messages a step gives.
    #[inline]
    pub(crate) fn outgoing(step: &Step) -> Form {
        if step.sends_wide() { Form::Wide } else { Form::Native }
    }

    /// What chunk `chunk` of `region` is at `tile`.
    #[inline]
    pub(crate) fn operand(
        &self,
        call: &Call,
        peers: &[PeerBuffers],
        (region, chunk): (Region, u32),
        peer: u32,
        tile: u64,
    ) -> Operand {
        let (base, cut, form) = match region {
            Region::Input => (call.send.cast_mut(), self.layout.input, Form::Native),
            Region::Output => (call.recv, self.layout.output, Form::Native),
            Region::PeerInput => (peers[peer as usize].input, self.layout.input, Form::Native),
            Region::PeerOutput => (peers[peer as usize].output, self.layout.output, Form::Native),
            Region::Work => return self.scratch(call, chunk, tile),
            Region::Stage => return self.stage(call, peers, (self.rank, chunk), tile),
            Region::PeerStage => return self.stage(call, peers, (peer, chunk), tile),
            Region::None => {
                return Operand { at: ptr::null_mut(), form: Form::Native, count: 0 };
            }
        };
        let Piece { offset, count } = self.layout.piece(cut, call, chunk, tile);
        // Offsets stay inside buffers whose byte length fits the address space (validated).
        #[expect(clippy::cast_possible_truncation, reason = "lengths fit usize: validated")]
        let (offset, count) = (offset as usize, count as usize);
        Operand { at: base.wrapping_add(offset * self.bytes(form)), form, count }
    }

    /// Elements of chunk `chunk` of `region`, over all tiles.
    pub(crate) fn whole_count(&self, call: &Call, region: Region, chunk: u32) -> u64 {
        let cut = if region == Region::Input { self.layout.input } else { self.layout.output };
        self.layout.chunk_count(cut, call, chunk)
    }

    /// How the stages of `tile` are stored.
    pub(crate) const fn way(&self, tile: u64) -> Way {
        self.pieces.way(tile / self.window, self.stages_past)
    }

    #[inline]
    fn stage(
        &self,
        call: &Call,
        peers: &[PeerBuffers],
        (owner, chunk): (u32, u32),
        tile: u64,
    ) -> Operand {
        let index = (tile % self.window) * self.stage_chunks + u64::from(chunk);
        let inside = index * self.layout.tile * self.native_bytes as u64;
        let place = self.pieces.at(tile / self.window) + inside;
        #[expect(clippy::cast_possible_truncation, reason = "inside the area")]
        let (place, count) =
            (place as usize, self.layout.stage_count(call, owner, chunk, tile) as usize);
        let at = peers[owner as usize].area.wrapping_add(place);
        Operand { at, form: Form::Native, count }
    }

    #[inline]
    fn scratch(&self, call: &Call, chunk: u32, tile: u64) -> Operand {
        let form = self.work_form;
        let index = (tile % self.window) * self.work_chunks + u64::from(chunk);
        #[expect(clippy::cast_possible_truncation, reason = "inside the scratch allocation")]
        let offset = (index * self.layout.tile) as usize * self.bytes(form);
        #[expect(clippy::cast_possible_truncation, reason = "at most a tile")]
        let count = self.layout.work_count(call, chunk, tile) as usize;
        Operand { at: self.work.wrapping_add(offset), form, count }
    }

    fn stage_of(&self, step: &Step) -> Stage {
        if step.has(flag::FINISH) {
            Stage::Finish { ranks: self.world }
        } else if step.has(flag::PREPARE) {
            Stage::Prepare(self.scalar)
        } else {
            Stage::Plain
        }
    }

    /// Whether `region` of `tile` is stored past the caches.
    pub(crate) fn streams(&self, region: Region, tile: u64) -> bool {
        match region {
            Region::Output | Region::PeerOutput => self.past_caches,
            Region::Stage => self.way(tile).past,
            _ => false,
        }
    }

    /// Copies `count` elements, changing form and applying the step's stage; `streaming` past the
    /// caches, for which the two must be apart.
    pub(crate) fn copy(
        &self,
        step: &Step,
        (source, target): (Operand, Operand),
        count: usize,
        streaming: bool,
    ) {
        let stage = self.stage_of(step);
        let plain = source.form == target.form && stage == Stage::Plain;
        if !(streaming && plain) {
            return self.stored(source, target, count, stage);
        }
        let bytes = count * self.bytes(source.form);
        // SAFETY: both operands are `count` elements inside live buffers (module invariant), and
        // the caller promises that they are apart.
        unsafe { kernel::copy(target.at, source.at, bytes, true) };
    }

    fn stored(&self, source: Operand, target: Operand, count: usize, stage: Stage) {
        if source.form == target.form && stage == Stage::Plain {
            if source.at != target.at && count > 0 {
                // SAFETY: both operands are `count` elements inside live buffers (module
                // invariant); `copy` allows overlap, which a caller's in-place use may bring.
                unsafe { ptr::copy(source.at, target.at, count * self.bytes(source.form)) };
            }
            return;
        }
        self.convert(source, target, count, stage);
    }

    /// Copies `count` elements as they are but for their form.
    pub(crate) fn keep(&self, source: Operand, target: Operand, count: usize) {
        self.stored(source, target, count, Stage::Plain);
    }

    /// Converts `count` elements from one form to the other (a stage of plain keeps their values).
    pub(crate) fn convert(&self, source: Operand, target: Operand, count: usize, stage: Stage) {
        let Some(kernels) = &self.kernels else { return };
        let work = Convert {
            source: Source { at: source.at, form: source.form },
            target: target.at,
            target_form: target.form,
            count,
            stage,
        };
        // SAFETY: both operands are `count` elements inside live buffers (module invariant).
        unsafe { (kernels.convert)(&work) };
    }

    /// Folds `sources` (in order) into `targets`, applying the step's stage; into the first
    /// `streaming` of them past the caches.
    pub(crate) fn fold(
        &self,
        step: &Step,
        sources: &[Source],
        (targets, streaming): (&[*mut u8], usize),
        target_form: Form,
        count: usize,
    ) {
        let Some(kernels) = &self.kernels else { return };
        let stage = self.stage_of(step);
        let work = Fold { sources, targets, target_form, count, stage, streaming };
        // SAFETY: every operand is `count` elements inside live buffers (module invariant).
        unsafe { (kernels.fold)(&work) };
    }

    /// Folds two sources, the message first where the step says so.
    pub(crate) fn combine(
        &self,
        step: &Step,
        own: Source,
        message: Source,
        targets: &[*mut u8],
        target_form: Form,
        count: usize,
    ) {
        let order = if step.has(flag::INCOMING_FIRST) { [message, own] } else { [own, message] };
        self.fold(step, &order, (targets, 0), target_form, count);
    }
}
