//! Scripts of reductions.

use std::ptr;

use super::{GATHER_BYTES, Move, SCRATCH_BYTES, Step, Writer, fill, number, pieces, places, unit};
use crate::error::Result;
use crate::kernel::{self, Form, Kernels, Stage};
use crate::mpi::{BuiltIn, Handle, Kind};
use crate::types::{Class, Collective, ReduceOp};

/// How MPI reduces.
#[derive(Clone, Copy, Debug)]
struct Way {
    op: Handle,
    unit: Handle,
    /// In which form, and the bytes of an element in it.
    form: Form,
    bytes: usize,
    /// Our own kernel: chunked, whatever MPI can count.
    own: bool,
}

impl Writer<'_> {
    fn way(&self) -> Way {
        let (dtype, op) = (self.call.dtype, self.call.op);
        let constants = self.rules.constants;
        let built_in = |op: BuiltIn| Way {
            op: constants.ops[op as usize],
            unit: constants.units[unit(dtype) as usize],
            form: Form::Native,
            bytes: dtype.bytes(),
            own: false,
        };
        let wide = |way: Way| Way {
            unit: constants.units[unit(dtype.accumulator()) as usize],
            form: Form::Wide,
            bytes: dtype.accumulator().bytes(),
            ..way
        };
        let way = match op {
            ReduceOp::Sum | ReduceOp::Avg | ReduceOp::PreMulSum => built_in(BuiltIn::Sum),
            ReduceOp::Prod => built_in(BuiltIn::Prod),
            ReduceOp::Min => built_in(BuiltIn::Min),
            ReduceOp::Max => built_in(BuiltIn::Max),
            ReduceOp::Band => built_in(BuiltIn::Band),
            ReduceOp::Bor => built_in(BuiltIn::Bor),
            ReduceOp::Bxor => built_in(BuiltIn::Bxor),
            ReduceOp::Land => built_in(BuiltIn::Land),
            ReduceOp::Lor => built_in(BuiltIn::Lor),
        };
        match self.rules.ops.of(dtype, op) {
            Some(op) => Way { op, own: true, ..way },
            None if dtype.accumulator() != dtype => wide(way),
            None => way,
        }
    }

    /// Whether bits depend on the order of ranks, and must not.
    fn ordered(&self) -> bool {
        let sums = !matches!(self.call.op, ReduceOp::Min | ReduceOp::Max);
        self.rules.deterministic && sums && self.call.dtype.class() != Class::Integer
    }

    fn scales(&self) -> Option<Stage> {
        (self.call.op == ReduceOp::PreMulSum).then_some(Stage::Prepare(self.call.scalar))
    }

    fn finish(&self) -> Stage {
        Stage::Finish { ranks: u32::try_from(self.rules.world).unwrap_or(u32::MAX) }
    }

    /// all_reduce and reduce.
    pub(super) fn whole(&mut self) -> Result<()> {
        if self.ordered() {
            return self.whole_in_order();
        }
        let (call, way) = (self.call, self.way());
        let all = call.collective == Collective::AllReduce;
        let gets = all || call.root.index() == self.rules.me;
        let kind = if all { Kind::AllReduce } else { Kind::Reduce };
        // Most calls need none of our own.
        let kernels = || kernel::select(call.dtype, call.op);
        let through = way.form == Form::Wide || self.scales().is_some();
        let counted = if way.own { self.rules.limit } else { self.most(call.count) };
        let piece = if through { (SCRATCH_BYTES / way.bytes) as u64 } else { counted };
        let piece = piece.min(counted);
        for (done, some) in pieces(call.count, piece) {
            let at = number(done) * self.bytes();
            let (from, to) = (call.send.wrapping_add(at), call.recv.wrapping_add(at));
            let mut one = self.primitive(kind, (from, to), some);
            (one.unit, one.op) = (way.unit, way.op);
            if through {
                let scratch = self.script.scratch(number(piece) * way.bytes)?;
                let widened = Move {
                    from,
                    form: Form::Native,
                    to: scratch,
                    to_form: Form::Wide,
                    count: number(some),
                };
                let stage = self.scales().unwrap_or(Stage::Plain);
                self.push(Step::Convert(widened, kernels()?, stage));
                one.send = if gets { self.in_place() } else { scratch.cast_const().cast() };
                one.recv = if gets { scratch.cast() } else { ptr::null_mut() };
                self.push(Step::Mpi { call: one, lists: 0 });
                if gets {
                    let back = Move {
                        from: scratch.cast_const(),
                        form: Form::Wide,
                        to,
                        to_form: Form::Native,
                        count: number(some),
                    };
                    self.push(Step::Convert(back, kernels()?, self.finish()));
                }
            } else {
                if gets && ptr::eq(from, to) {
                    one.send = self.in_place();
                }
                self.push(Step::Mpi { call: one, lists: 0 });
                if gets && call.op == ReduceOp::Avg {
                    self.finish_at(to, some, kernels()?);
                }
            }
        }
        Ok(())
    }

    /// Divides what `avg` has summed.
    fn finish_at(&mut self, at: *mut u8, count: u64, kernels: Kernels) {
        let one = Move {
            from: at.cast_const(),
            form: Form::Native,
            to: at,
            to_form: Form::Native,
            count: number(count),
        };
        self.push(Step::Convert(one, kernels, self.finish()));
    }

    /// The blocks of the input of a reduce_scatter: where each begins, and its elements.
    fn blocks(&self) -> Vec<(u64, u64)> {
        let call = self.call;
        if call.collective.ragged() {
            return places(&call.recv_blocks).collect();
        }
        (0..self.rules.world as u64).map(|r| (r * call.count, call.count)).collect()
    }

    /// reduce_scatter and reduce_scatter_v.
    pub(super) fn scattered(&mut self) -> Result<()> {
        if self.ordered() {
            return self.scattered_in_order();
        }
        let (call, way, me) = (self.call, self.way(), self.rules.me);
        let kernels = kernel::select(call.dtype, call.op)?;
        let own = if call.collective.ragged() {
            call.recv_blocks.displacements[me]
        } else {
            me as u64 * call.count
        };
        let in_place = ptr::eq(call.send.wrapping_add(number(own) * self.bytes()), call.recv);
        let through = way.form == Form::Wide || self.scales().is_some();
        let blocks = self.blocks();
        let total = blocks.iter().map(|b| b.1).sum();
        let counted = if way.own { total <= self.rules.limit } else { self.fits(total) };
        // Most calls are one call of MPI, whose output must lie apart.
        if !through && counted {
            let mut to = call.recv;
            if in_place {
                to = self.script.scratch(number(call.count) * self.bytes())?;
            }
            self.scatter_step((call.send, to), way, |_, count| count);
            self.copy(to.cast_const(), call.recv, call.count);
            if call.op == ReduceOp::Avg {
                self.finish_at(call.recv, call.count, kernels);
            }
            return Ok(());
        }
        let longest = blocks.iter().map(|b| b.1).max().unwrap_or(0);
        let world = self.rules.world as u64;
        let most = (SCRATCH_BYTES / way.bytes) as u64 / (world + 1);
        let piece = most.min(self.rules.limit / world).max(1).min(longest.max(1));
        let room = number(piece * (world + 1)) * way.bytes;
        let mut done = 0;
        while done < longest {
            let scratch = self.script.scratch(room)?;
            let part = |count: u64| count.saturating_sub(done).min(piece);
            let mut at = 0;
            for &(from, count) in &blocks {
                let one = Move {
                    from: call.send.wrapping_add(number(from + done) * self.bytes()),
                    form: Form::Native,
                    to: scratch.wrapping_add(at),
                    to_form: way.form,
                    count: number(part(count)),
                };
                at += one.count * way.bytes;
                self.push(Step::Convert(one, kernels, self.scales().unwrap_or(Stage::Plain)));
            }
            let out = scratch.wrapping_add(number(piece * world) * way.bytes);
            self.scatter_step((scratch.cast_const(), out), way, |_, count| part(count));
            let back = Move {
                from: out.cast_const(),
                form: way.form,
                to: call.recv.wrapping_add(number(done) * self.bytes()),
                to_form: Form::Native,
                count: number(part(blocks[me].1)),
            };
            let stage = if way.form == Form::Wide || call.op == ReduceOp::Avg {
                self.finish()
            } else {
                Stage::Plain
            };
            self.push(Step::Convert(back, kernels, stage));
            done += piece;
        }
        Ok(())
    }

    /// MPI's part of a reduce_scatter whose block of each rank has `part` of its elements.
    fn scatter_step(
        &mut self,
        buffers: (*const u8, *mut u8),
        way: Way,
        part: impl Fn(usize, u64) -> u64,
    ) {
        let call = self.call;
        let mut lists = 0;
        let mut one =
            self.primitive(Kind::ReduceScatterBlock, buffers, part(self.rules.me, call.count));
        if call.collective.ragged() {
            one.kind = Kind::ReduceScatter;
            let counts = call.recv_blocks.counts.iter().enumerate().map(|(r, &c)| part(r, c));
            let (index, filled) = self.script.list();
            let most = fill(&mut filled[1], counts.map(|c| (0, c)));
            (one.wide, lists) = (self.wide(most), index);
        }
        (one.unit, one.op) = (way.unit, way.op);
        self.push(Step::Mpi { call: one, lists });
    }

    /// all_reduce and reduce in tree order: everyone folds a part.
    fn whole_in_order(&mut self) -> Result<()> {
        let (call, world, me) = (self.call, self.rules.world, self.rules.me);
        let all = call.collective == Collective::AllReduce;
        let gets = all || call.root.index() == me;
        let kernels = kernel::select(call.dtype, call.op)?;
        let scales = self.scales();
        let (form, bytes) = self.sent();
        let total = number(call.count);
        let gathered = total * bytes * world <= GATHER_BYTES;
        // Scaled input, the parts of all ranks, the own result.
        let piece = (SCRATCH_BYTES / (bytes * 3)).min(number(self.rules.limit)).clamp(1, total);
        let mut done = 0;
        while done < total {
            let some = piece.min(total - done);
            let part = |rank: usize| some / world + usize::from(rank < some % world);
            let place = |rank: usize| rank * (some / world) + rank.min(some % world);
            let longest = if gathered { some } else { some.div_ceil(world) };
            let scratch = self.script.scratch((some + (world + 1) * longest) * bytes)?;
            let at = done * self.bytes();
            let (mut from, to) = (call.send.wrapping_add(at), call.recv.wrapping_add(at));
            if let Some(stage) = scales {
                let one =
                    Move { from, form: Form::Native, to: scratch, to_form: form, count: some };
                self.push(Step::Convert(one, kernels, stage));
                from = scratch.cast_const();
            }
            let inputs = scratch.wrapping_add(some * bytes);
            let result = inputs.wrapping_add(world * longest * bytes);
            let fold = |to, count, stride| Step::Fold {
                one: Move { from: inputs.cast_const(), form, to, to_form: Form::Native, count },
                kernels,
                stride: stride * bytes,
                sources: world,
            };
            if gathered {
                let kind = if all { Kind::AllGather } else { Kind::Gather };
                let mut one = self.primitive(kind, (from, inputs), some as u64);
                one.unit = self.unit_of(form);
                self.push(Step::Mpi { call: one, lists: 0 });
                if gets {
                    self.push(fold(to, some, some));
                }
            } else {
                let sends: Vec<_> = (0..world).map(|r| (place(r) as u64, part(r) as u64)).collect();
                let own = part(me);
                let recvs: Vec<_> = (0..world).map(|r| ((r * own) as u64, own as u64)).collect();
                self.exchange((from, inputs), form, &sends, &recvs);
                // The own part stands where it is gathered from.
                let result = if all { to.wrapping_add(place(me) * self.bytes()) } else { result };
                self.push(fold(result, own, own));
                self.gather_parts((result, to), &sends, all);
            }
            done += some;
        }
        Ok(())
    }

    /// The form in which an ordered reduction sends its input: as it is, unless it was scaled.
    fn sent(&self) -> (Form, usize) {
        if self.scales().is_some() {
            (Form::Wide, self.call.dtype.accumulator().bytes())
        } else {
            (Form::Native, self.bytes())
        }
    }

    fn unit_of(&self, form: Form) -> Handle {
        let dtype =
            if form == Form::Wide { self.call.dtype.accumulator() } else { self.call.dtype };
        self.rules.constants.units[unit(dtype) as usize]
    }

    /// Parts go to the ranks that fold them.
    fn exchange(
        &mut self,
        buffers: (*const u8, *mut u8),
        form: Form,
        sends: &[(u64, u64)],
        recvs: &[(u64, u64)],
    ) {
        let (index, lists) = self.script.list();
        let most = fill(&mut lists[0], sends.iter().copied());
        let most = fill(&mut lists[1], recvs.iter().copied()).max(most);
        let mut one = self.primitive(Kind::AllToAllV, buffers, 0);
        (one.unit, one.wide) = (self.unit_of(form), self.wide(most));
        self.push(Step::Mpi { call: one, lists: index });
    }

    /// Folded parts go to where they belong.
    fn gather_parts(&mut self, (part, to): (*mut u8, *mut u8), parts: &[(u64, u64)], all: bool) {
        let kind = if all { Kind::AllGatherV } else { Kind::GatherV };
        let (index, lists) = self.script.list();
        let most = fill(&mut lists[1], parts.iter().copied());
        let mut one = self.primitive(kind, (part.cast_const(), to), parts[self.rules.me].1);
        one.wide = self.wide(most);
        if all {
            one.send = self.in_place();
        }
        self.push(Step::Mpi { call: one, lists: index });
    }

    /// reduce_scatter and reduce_scatter_v in tree order.
    fn scattered_in_order(&mut self) -> Result<()> {
        let (call, world, me) = (self.call, self.rules.world, self.rules.me);
        let kernels = kernel::select(call.dtype, call.op)?;
        let (form, bytes) = self.sent();
        let blocks = self.blocks();
        let longest = number(blocks.iter().map(|b| b.1).max().unwrap_or(0));
        let most = (SCRATCH_BYTES / bytes).min(number(self.rules.limit)) / (2 * world);
        let piece = most.clamp(1, longest.max(1));
        let mut done = 0;
        while done < longest {
            let part = |count: u64| number(count).saturating_sub(done).min(piece);
            let scratch = self.script.scratch(2 * world * piece * bytes)?;
            let inputs = scratch.wrapping_add(world * piece * bytes);
            let mut sends: Vec<(u64, u64)> = Vec::with_capacity(world);
            let mut from = scratch.cast_const();
            let mut at = 0;
            // Displacements are from the piece's own start, so that they stay small.
            let packed = self.scales().is_some()
                || !self.fits(blocks.iter().map(|b| b.0 + b.1).max().unwrap_or(0));
            for &(start, count) in &blocks {
                let some = part(count);
                let source = call.send.wrapping_add((number(start) + done) * self.bytes());
                if packed {
                    let one = Move {
                        from: source,
                        form: Form::Native,
                        to: scratch.wrapping_add(at * bytes),
                        to_form: form,
                        count: some,
                    };
                    self.push(Step::Convert(one, kernels, self.scales().unwrap_or(Stage::Plain)));
                    sends.push((at as u64, some as u64));
                    at += some;
                } else {
                    from = call.send;
                    sends.push(((number(start) + done) as u64, some as u64));
                }
            }
            let own = part(blocks[me].1);
            let recvs: Vec<_> = (0..world).map(|r| ((r * own) as u64, own as u64)).collect();
            self.exchange((from, inputs), form, &sends, &recvs);
            let to = call.recv.wrapping_add(done * self.bytes());
            let one =
                Move { from: inputs.cast_const(), form, to, to_form: Form::Native, count: own };
            self.push(Step::Fold { one, kernels, stride: own * bytes, sources: world });
            done += piece;
        }
        Ok(())
    }
}
