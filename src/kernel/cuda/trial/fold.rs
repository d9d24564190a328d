//! Folds and converts beside the scalar oracle.

use super::random::{Random, bytes_of, factor, fill, part_of, past};
use super::{Trial, Work};
use crate::kernel::cuda::{DeviceConvert, DeviceSource, FAN};
use crate::kernel::{Convert, Fold, Form, Isa, Kernels, Scalar, Source, Stage, select_for};
use crate::types::{Dtype, ReduceOp};

/// One operand.
#[derive(Clone, Debug)]
pub struct Operand {
    /// Its elements.
    pub bytes: Vec<u8>,
    /// Their form.
    pub form: Form,
    /// How far behind a line they begin.
    pub past: usize,
}

/// Which forms the operands of a trial have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forms {
    /// Whatever chance gives.
    Any,
    /// All native.
    Native,
    /// One at least is wide.
    Mixed,
}

/// One fold and what it starts from.
#[derive(Clone, Debug)]
pub struct FoldTrial {
    /// The type.
    pub dtype: Dtype,
    /// The operation.
    pub op: ReduceOp,
    /// Elements.
    pub count: usize,
    /// The sources.
    pub sources: Vec<Operand>,
    /// A factor for each, with `pre_mul_sum` only.
    pub factors: Option<Vec<Scalar>>,
    /// How far behind a line each target begins.
    pub targets: Vec<usize>,
    /// The form of all targets.
    pub target_form: Form,
    /// The source whose memory the first target is.
    pub in_place: Option<usize>,
    /// `Plain` or `Finish`.
    pub stage: Stage,
}

impl FoldTrial {
    /// A fold of `n` sources; all that is not said is chance's.
    pub fn new(
        random: &mut Random,
        (dtype, op): (Dtype, ReduceOp),
        n: usize,
        count: usize,
        forms: Forms,
    ) -> Self {
        let (forms, target_form) = forms.choose(random, n);
        let alike = (!random.chance(3)).then(|| random.below(16));
        let source = |(random, form): (&mut Random, Form)| {
            let mut bytes = vec![0; count * bytes_of(dtype, form)];
            fill(random, part_of(dtype, form), &mut bytes);
            Operand { bytes, form, past: past(random, dtype, form, alike) }
        };
        let sources: Vec<Operand> = forms.into_iter().map(|form| source((random, form))).collect();
        let targets = if random.chance(20) { FAN } else { 1 + random.below(3) };
        let fused = op == ReduceOp::PreMulSum && !random.chance(3);
        let ranks = u32::try_from(n).expect("few sources");
        let ranks = random.pick(&[ranks, 3, 1, 7, 64, 4_000_000_000]);
        Self {
            dtype,
            op,
            count,
            factors: fused.then(|| (0..n).map(|_| factor(random, dtype)).collect()),
            targets: (0..targets).map(|_| past(random, dtype, target_form, alike)).collect(),
            target_form,
            in_place: (0..n).find(|&s| sources[s].form == target_form && random.chance(4)),
            sources,
            stage: if random.chance(2) { Stage::Plain } else { Stage::Finish { ranks } },
        }
    }

    /// What the oracle makes of it.
    #[must_use]
    pub fn expected(&self) -> Vec<u8> {
        let kernels = oracle(self.dtype, self.op);
        let mut sources: Vec<(Vec<u8>, Form)> =
            self.sources.iter().map(|source| (source.bytes.clone(), source.form)).collect();
        for (source, factor) in sources.iter_mut().zip(self.factors.iter().flatten()) {
            let mut wide = vec![0; self.count * bytes_of(self.dtype, Form::Wide)];
            // SAFETY: both hold `count` elements of their forms.
            unsafe {
                (kernels.convert)(&Convert {
                    source: Source { at: source.0.as_ptr(), form: source.1 },
                    target: wide.as_mut_ptr(),
                    target_form: Form::Wide,
                    count: self.count,
                    stage: Stage::Prepare(*factor),
                });
            }
            *source = (wide, Form::Wide);
        }
        let operands: Vec<Source> = sources
            .iter()
            .map(|(bytes, form)| Source { at: bytes.as_ptr(), form: *form })
            .collect();
        let mut target = vec![0; self.count * bytes_of(self.dtype, self.target_form)];
        // SAFETY: all hold `count` elements of their forms and are apart.
        unsafe {
            (kernels.fold)(&Fold {
                sources: &operands,
                targets: &[target.as_mut_ptr()],
                target_form: self.target_form,
                count: self.count,
                stage: self.stage,
                streaming: 0,
            });
        }
        target
    }

    /// With memory, to be launched.
    #[must_use]
    pub fn trial(&self) -> Trial {
        let nothing = Work::Pack(Vec::new(), 0);
        let mut trial = Trial::new(self.what(), nothing);
        let mut sources = Vec::new();
        for (index, source) in self.sources.iter().enumerate() {
            let (name, kind) = (format!("source {index}"), (self.dtype, source.form));
            let at = trial.place(name, kind, &source.bytes, source.past) as u64;
            sources.push(DeviceSource { at, form: source.form });
        }
        let expected = self.expected();
        let poison = vec![0x5a; expected.len()];
        let mut targets = Vec::new();
        for (index, &past) in self.targets.iter().enumerate() {
            let (name, kind) = (format!("target {index}"), (self.dtype, self.target_form));
            targets.push(trial.place(name, kind, &poison, past) as u64);
        }
        if let Some(source) = self.in_place {
            targets[0] = sources[source].at;
        }
        let free = nan_is_free(self.dtype, self.target_form, self.stage);
        for &target in &targets {
            trial.expect(usize::try_from(target).expect("an offset"), &expected, free);
        }
        trial.work = Work::Fold {
            dtype: self.dtype,
            op: self.op,
            sources,
            factors: self.factors.clone(),
            targets,
            target_form: self.target_form,
            count: self.count as u64,
            stage: self.stage,
        };
        trial
    }

    fn what(&self) -> String {
        let sources: Vec<String> =
            self.sources.iter().map(|s| format!("{:?}+{}", s.form, s.past)).collect();
        let in_place = self.in_place.map_or_else(String::new, |s| format!(", 0 is source {s}"));
        let factors = if self.factors.is_some() { ", factors" } else { "" };
        let stage = stage_name(self.stage);
        let (target_form, targets) = (self.target_form, &self.targets);
        format!(
            "{} {}, {} elements from {} to {target_form:?} at {targets:?}{in_place}{stage}{factors}",
            self.dtype,
            self.op,
            self.count,
            sources.join(" ")
        )
    }
}

impl Forms {
    /// Those of `n` sources, and of the targets.
    fn choose(self, random: &mut Random, n: usize) -> (Vec<Form>, Form) {
        let form = |random: &mut Random, wide_one_in| {
            if random.chance(wide_one_in) { Form::Wide } else { Form::Native }
        };
        if self == Self::Native {
            return (vec![Form::Native; n], Form::Native);
        }
        let mixed = random.chance(3);
        let common = form(random, 4);
        let mut sources: Vec<Form> =
            (0..n).map(|_| if mixed { form(random, 2) } else { common }).collect();
        let target = if mixed { form(random, 2) } else { form(random, 6) };
        if self == Self::Mixed && target == Form::Native && !sources.contains(&Form::Wide) {
            sources[random.below(n)] = Form::Wide;
        }
        (sources, target)
    }
}

/// One convert and what it starts from.
#[derive(Clone, Debug)]
pub struct ConvertTrial {
    /// The type.
    pub dtype: Dtype,
    /// The operation.
    pub op: ReduceOp,
    /// The form of the source and of the target.
    pub forms: (Form, Form),
    /// Any stage.
    pub stage: Stage,
}

impl ConvertTrial {
    /// With memory and random elements, to be launched.
    #[must_use]
    pub fn trial(&self, random: &mut Random, count: usize) -> Trial {
        let &Self { dtype, op, forms: (from, to), stage } = self;
        let mut bytes = vec![0; count * bytes_of(dtype, from)];
        fill(random, part_of(dtype, from), &mut bytes);
        let mut expected = vec![0; count * bytes_of(dtype, to)];
        // SAFETY: both hold `count` elements of their forms.
        unsafe {
            (oracle(dtype, op).convert)(&Convert {
                source: Source { at: bytes.as_ptr(), form: from },
                target: expected.as_mut_ptr(),
                target_form: to,
                count,
                stage,
            });
        }
        let alike = (!random.chance(3)).then(|| random.below(16));
        let pasts = [past(random, dtype, from, alike), past(random, dtype, to, alike)];
        let in_place = bytes_of(dtype, from) == bytes_of(dtype, to) && random.chance(3);
        let what = format!(
            "{dtype} {op}, {count} elements from {from:?}+{} to {to:?}+{}{}{}",
            pasts[0],
            pasts[1],
            if in_place { ", in place" } else { "" },
            stage_name(stage)
        );
        let mut trial = Trial::new(what, Work::Pack(Vec::new(), 0));
        let source = trial.place("the source", (dtype, from), &bytes, pasts[0]);
        let poison = vec![0x5a; expected.len()];
        let mut target = trial.place("the target", (dtype, to), &poison, pasts[1]);
        if in_place {
            target = source;
        }
        // A copy has the payloads of its source.
        let copies = stage == Stage::Plain && bytes_of(dtype, from) == bytes_of(dtype, to);
        trial.expect(target, &expected, !copies && nan_is_free(dtype, to, stage));
        trial.work = Work::Convert(DeviceConvert {
            dtype,
            op,
            source: DeviceSource { at: source as u64, form: from },
            target: target as u64,
            target_form: to,
            count: count as u64,
            stage,
        });
        trial
    }
}

/// The plain code that says what is right.
fn oracle(dtype: Dtype, op: ReduceOp) -> Kernels {
    select_for(Isa::Scalar, dtype, op).expect("the operation has a meaning on the type")
}

/// Whether the rules leave NaN payloads open.
fn nan_is_free(dtype: Dtype, form: Form, stage: Stage) -> bool {
    let rounded = form == Form::Native && dtype != dtype.accumulator();
    !rounded && !matches!(stage, Stage::Finish { .. })
}

/// The stage at the end of a text; of a factor only that there is one.
fn stage_name(stage: Stage) -> String {
    match stage {
        Stage::Plain => String::new(),
        Stage::Prepare(_) => ", times a factor".to_owned(),
        Stage::Finish { ranks } => format!(", finished for {ranks} ranks"),
    }
}
