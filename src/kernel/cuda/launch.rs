//! Folds, converts and roundings of device memory, as launches.
//!
//! Addresses are numbers: nothing here follows them. Not here: packs and checksums (`bytes`).

use super::arguments::{
    Arguments, BLOCK, ConvertArguments, FACTOR, FAN, FINISH, FoldArguments, RoundArguments, SIGNED,
    SOURCE_WIDE, TARGET_WIDE, TRUTH,
};
use super::bytes::{Move, pack};
use super::name::{Kernel, element, is_small};
use crate::error::{Code, Error, Result};
use crate::kernel::{Form, Scalar, Stage};
use crate::types::{Dtype, ReduceOp};

use bytemuck::Zeroable;

/// One launch, checked.
#[derive(Clone, Copy, Debug)]
pub struct Launch {
    /// What is launched.
    pub kernel: Kernel,
    /// Blocks, at least 1; a launch of nothing to do does nothing.
    pub grid: u32,
    /// Threads of a block.
    pub block: u32,
    /// The one argument.
    pub arguments: Arguments,
}

impl Launch {
    /// As many blocks as `items` threads need, at most those that run at once on `sms`
    /// multiprocessors: threads go on from there.
    pub(super) fn new(kernel: Kernel, items: u64, sms: u32, arguments: Arguments) -> Self {
        let most = sms.saturating_mul(kernel.resident()).max(1);
        let blocks = items.div_ceil(u64::from(BLOCK)).max(1);
        let grid = u32::try_from(blocks).map_or(most, |blocks| blocks.min(most));
        Self { kernel, grid, block: BLOCK, arguments }
    }
}

/// One operand of a fold or a convert in device memory.
#[derive(Clone, Copy, Debug)]
pub struct DeviceSource {
    /// Its first element, aligned to the element's parts.
    pub at: u64,
    /// The form of its elements.
    pub form: Form,
}

/// [`crate::kernel::Fold`] on a device.
#[derive(Clone, Copy, Debug)]
pub struct DeviceFold<'a> {
    /// The type.
    pub dtype: Dtype,
    /// The operation.
    pub op: ReduceOp,
    /// 1 to [`FAN`] of them.
    pub sources: &'a [DeviceSource],
    /// One for each source, which it is multiplied by first: `pre_mul_sum` only.
    pub factors: Option<&'a [Scalar]>,
    /// 1 to [`FAN`] of them; one may be the memory of a source of the same form.
    pub targets: &'a [u64],
    /// The form of all targets.
    pub target_form: Form,
    /// Elements.
    pub count: u64,
    /// `Plain` or `Finish`.
    pub stage: Stage,
}

/// [`crate::kernel::Convert`] on a device.
#[derive(Clone, Copy, Debug)]
pub struct DeviceConvert {
    /// The type.
    pub dtype: Dtype,
    /// The operation.
    pub op: ReduceOp,
    /// Where from.
    pub source: DeviceSource,
    /// Where to: the same memory (when forms agree) or apart from it.
    pub target: u64,
    /// The form of the target.
    pub target_form: Form,
    /// Elements.
    pub count: u64,
    /// Any stage.
    pub stage: Stage,
}

/// Rounds `f32` to a smaller float, up with the probability of the distance from the number below.
///
/// Saturation and NaN are those of the rules. The 32 random bits of element i are
/// `mix(mix(seed) + (first + i + 1) * 0x9e3779b97f4a7c15) >> 32` with the finaliser of SplitMix64
/// as `mix`: they depend on nothing else, so a buffer may be rounded in parts.
#[derive(Clone, Copy, Debug)]
pub struct DeviceRound {
    /// f16, bf16, f8e4m3 or f8e5m2.
    pub dtype: Dtype,
    /// The first `f32`.
    pub source: u64,
    /// The first rounded number; apart from the source.
    pub target: u64,
    /// Elements.
    pub count: u64,
    /// Chooses the random bits.
    pub seed: u64,
    /// The number of the first element.
    pub first: u64,
}

/// A range of device memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Range {
    pub(super) at: u64,
    pub(super) bytes: u64,
}

impl Range {
    /// `count` elements of `size` bytes at an address aligned to `align`.
    pub(super) fn new(what: &str, at: u64, count: u64, size: u64, align: u64) -> Result<Self> {
        if at == 0 && count > 0 {
            return Err(Error::new(Code::NullPointer, format!("{what} is null")));
        }
        if !at.is_multiple_of(align) {
            let detail = format!("{what} at {at:#x} is not aligned to {align} bytes");
            return Err(Error::new(Code::Misaligned, detail));
        }
        let bytes = count.checked_mul(size).filter(|bytes| at.checked_add(*bytes).is_some());
        let Some(bytes) = bytes else {
            let detail = format!("{count} elements of {size} bytes at {at:#x} end past 2^64");
            return Err(Error::new(Code::CountOverflow, detail));
        };
        Ok(Self { at, bytes })
    }

    pub(super) fn end(self) -> u64 {
        self.at + self.bytes
    }

    pub(super) fn overlaps(self, other: Self) -> bool {
        self.bytes > 0 && other.bytes > 0 && self.at < other.end() && other.at < self.end()
    }

    pub(super) fn apart(self, other: Self, what: &str) -> Result<()> {
        if self.overlaps(other) {
            let (one, two) = (self.at, other.at);
            let detail = format!("{what} at {one:#x} and {two:#x} overlap");
            return Err(Error::new(Code::Overlap, detail));
        }
        Ok(())
    }
}

/// Operands of one launch: their ranges, and how elements are cut in vectors.
struct Operands {
    count: u64,
    /// Elements of a vector.
    elements: u64,
    /// Each with the bytes of its elements.
    ranges: Vec<(Range, u64)>,
}

impl Operands {
    fn new(dtype: Dtype, count: u64, mixed: bool) -> Self {
        let elements = if mixed { 4 } else { 16 / dtype.bytes() as u64 };
        Self { count, elements, ranges: Vec::with_capacity(2 * FAN) }
    }

    fn add(&mut self, what: &str, at: u64, dtype: Dtype, form: Form) -> Result<Range> {
        let part = if form == Form::Wide { dtype.accumulator() } else { dtype };
        let size = part.bytes() as u64;
        let range = Range::new(what, at, self.count, size, part.align() as u64)?;
        self.ranges.push((range, size));
        Ok(range)
    }

    /// Elements before the vectors, and vectors: none where operands lie differently.
    fn cut(&self) -> (u64, u64) {
        let fits = |head: &u64| {
            let whole = |(range, size): &(Range, u64)| {
                (range.at % 16 + head * size).is_multiple_of(size * self.elements)
            };
            self.ranges.iter().all(whole)
        };
        match (0..self.elements).find(fits) {
            Some(head) if head < self.count => (head, (self.count - head) / self.elements),
            _ => (0, 0),
        }
    }

    /// Threads that have something to do.
    fn items(&self, vectors: u64) -> u64 {
        vectors.max(self.count - vectors * self.elements)
    }
}

fn supported(dtype: Dtype, op: ReduceOp) -> Result<()> {
    if op.supports(dtype) {
        return Ok(());
    }
    let detail = format!("{op} has no meaning on {dtype}; use another operation or type");
    Err(Error::new(Code::Unsupported, detail))
}

/// The form that matters: where the accumulator is the type itself both are the same.
fn form_of(dtype: Dtype, form: Form) -> Form {
    if is_small(dtype) { form } else { Form::Native }
}

/// Flags and divisor of a stage.
fn last(dtype: Dtype, op: ReduceOp, stage: Stage) -> Result<(u32, u32)> {
    let signed = matches!(dtype, Dtype::I8 | Dtype::I16 | Dtype::I32 | Dtype::I64);
    match stage {
        Stage::Plain => Ok((0, 0)),
        Stage::Prepare(_) => Ok((FACTOR, 0)),
        Stage::Finish { ranks: 0 } => {
            Err(Error::new(Code::InvalidArgument, "a world of 0 ranks; it has at least 1"))
        }
        Stage::Finish { ranks } => {
            let divides = op == ReduceOp::Avg && ranks > 1;
            let flags = FINISH | if signed { SIGNED } else { 0 };
            Ok((flags, if divides { ranks } else { 0 }))
        }
    }
}

impl DeviceFold<'_> {
    /// The launch on a device of `sms` multiprocessors, or on so many of them.
    ///
    /// # Errors
    /// [`Code::Unsupported`] where the operation has no meaning on the type;
    /// [`Code::InvalidArgument`] for a wrong number of sources, targets, factors or ranks, or
    /// a stage that a fold does not have; [`Code::NullPointer`], [`Code::Misaligned`],
    /// [`Code::CountOverflow`] and [`Code::Overlap`] for addresses.
    pub fn launch(&self, sms: u32) -> Result<Launch> {
        self.check()?;
        let target_form = form_of(self.dtype, self.target_form);
        let forms = self.sources.iter().map(|source| form_of(self.dtype, source.form));
        let mixed = forms.clone().any(|form| form == Form::Wide) || target_form == Form::Wide;
        let mut operands = Operands::new(self.dtype, self.count, mixed);
        let mut arguments = FoldArguments::zeroed();
        for (index, (source, form)) in self.sources.iter().zip(forms).enumerate() {
            operands.add("a source", source.at, self.dtype, form)?;
            arguments.sources[index] = source.at;
            arguments.sources_wide |= u32::from(form == Form::Wide) << index;
        }
        for (index, &target) in self.targets.iter().enumerate() {
            let range = operands.add("a target", target, self.dtype, target_form)?;
            for (at, &(other, _)) in
                operands.ranges[..self.sources.len() + index].iter().enumerate()
            {
                let wide = arguments.sources_wide >> at & 1 != 0;
                let source = at < self.sources.len();
                if !(source && other.at == target && wide == (target_form == Form::Wide)) {
                    range.apart(other, "buffers")?;
                }
            }
            arguments.targets[index] = target;
        }
        for (into, factor) in arguments.factors.iter_mut().zip(self.factors.unwrap_or_default()) {
            *into = factor.0;
        }
        let fused = self.factors.is_some();
        let kernel = Kernel::fold(self.dtype, self.op, self.sources.len(), mixed, fused);
        let (flags, ranks) = last(self.dtype, self.op, self.stage)?;
        (arguments.head, arguments.vectors) = operands.cut();
        arguments.count = self.count;
        arguments.source_count = u32::try_from(self.sources.len()).expect("at most FAN");
        arguments.target_count = u32::try_from(self.targets.len()).expect("at most FAN");
        arguments.flags = flags | if target_form == Form::Wide { TARGET_WIDE } else { 0 };
        arguments.ranks = ranks;
        let items = operands.items(arguments.vectors);
        Ok(Launch::new(kernel, items, sms, Arguments::Fold(arguments)))
    }

    fn check(&self) -> Result<()> {
        supported(self.dtype, self.op)?;
        let wrong = |detail: String| Err(Error::new(Code::InvalidArgument, detail));
        for (what, number) in [("sources", self.sources.len()), ("targets", self.targets.len())] {
            if number == 0 || number > FAN {
                return wrong(format!("{number} {what}; a fold has 1 to {FAN}"));
            }
        }
        if let Some(factors) = self.factors {
            if self.op != ReduceOp::PreMulSum {
                return wrong(format!("factors with {}; only pre_mul_sum has them", self.op));
            }
            if factors.len() != self.sources.len() {
                let (factors, sources) = (factors.len(), self.sources.len());
                return wrong(format!("{factors} factors for {sources} sources"));
            }
        }
        if matches!(self.stage, Stage::Prepare(_)) {
            return wrong("a fold has no factor of its result; give one for each source".into());
        }
        Ok(())
    }
}

impl DeviceConvert {
    /// The launch on a device of `sms` multiprocessors, or on so many of them.
    ///
    /// # Errors
    /// As for [`DeviceFold::launch`].
    pub fn launch(&self, sms: u32) -> Result<Launch> {
        supported(self.dtype, self.op)?;
        let from = form_of(self.dtype, self.source.form);
        let to = form_of(self.dtype, self.target_form);
        let mut operands = Operands::new(self.dtype, self.count, is_small(self.dtype));
        let source = operands.add("the source", self.source.at, self.dtype, from)?;
        let target = operands.add("the target", self.target, self.dtype, to)?;
        if from != to || source.at != target.at {
            source.apart(target, "source and target")?;
        }
        if from == to && self.stage == Stage::Plain {
            return pack(
                &[Move { source: source.at, target: target.at, bytes: source.bytes }],
                sms,
            );
        }
        let (mut flags, ranks) = last(self.dtype, self.op, self.stage)?;
        let truth = matches!(self.op, ReduceOp::Land | ReduceOp::Lor);
        for (flag, set) in
            [(SOURCE_WIDE, from == Form::Wide), (TARGET_WIDE, to == Form::Wide), (TRUTH, truth)]
        {
            flags |= if set { flag } else { 0 };
        }
        let factor = if let Stage::Prepare(Scalar(factor)) = self.stage { factor } else { [0; 16] };
        let (head, vectors) = operands.cut();
        let arguments = ConvertArguments {
            source: self.source.at,
            target: self.target,
            count: self.count,
            head,
            vectors,
            flags,
            ranks,
            factor,
        };
        let kernel = Kernel::Convert(element(self.dtype, ReduceOp::Sum));
        let items = operands.items(vectors);
        Ok(Launch::new(kernel, items, sms, Arguments::Convert(arguments)))
    }
}

impl DeviceRound {
    /// The launch on a device of `sms` multiprocessors, or on so many of them.
    ///
    /// # Errors
    /// [`Code::Unsupported`] for a type that `f32` is not rounded to; addresses as for
    /// [`DeviceFold::launch`].
    pub fn launch(&self, sms: u32) -> Result<Launch> {
        if !is_small(self.dtype) {
            let detail = format!("nothing is rounded to {}; use a type below 32 bits", self.dtype);
            return Err(Error::new(Code::Unsupported, detail));
        }
        let mut operands = Operands::new(self.dtype, self.count, true);
        let source = operands.add("the source", self.source, self.dtype, Form::Wide)?;
        let target = operands.add("the target", self.target, self.dtype, Form::Native)?;
        source.apart(target, "source and target")?;
        let (head, vectors) = operands.cut();
        let arguments = RoundArguments {
            source: self.source,
            target: self.target,
            count: self.count,
            head,
            vectors,
            seed: self.seed,
            first: self.first,
        };
        let items = operands.items(vectors);
        Ok(Launch::new(Kernel::Round(self.dtype), items, sms, Arguments::Round(arguments)))
    }
}
