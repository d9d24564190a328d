//! The cases of `unisono check --kernels`, and the trials that each of them makes.

use unisono::kernel::cuda::trial::{
    ConvertTrial, FoldTrial, Forms, Random, RoundTrial, Trial, checksum_trial, factor, pack_trial,
};
use unisono::kernel::cuda::{BLOCK, FAN, checksum};
use unisono::kernel::{Form, Stage};
use unisono::types::{Dtype, ReduceOp};

use super::Depth;

/// Sources of the folds that are large: one for each way in which kernels are compiled.
const FANS: [usize; 3] = [2, 4, FAN];

/// Bytes of each operand of a fold that takes all of a device.
const LARGE_BYTES: usize = 4 << 20;

/// What a case is about.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Fold { dtype: Dtype, op: ReduceOp, sources: usize, forms: Forms, fused: bool },
    Large { dtype: Dtype },
    Convert { dtype: Dtype, op: ReduceOp, from: Form, to: Form },
    Round { dtype: Dtype },
    Pack { blocks: usize },
    Checksum,
}

/// Some trials with one name.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) name: String,
    kind: Kind,
}

/// The cases of one image of kernels.
#[derive(Clone, Debug)]
pub(super) struct Group {
    pub(super) name: &'static str,
    pub(super) cases: Vec<Case>,
}

/// Every case, by the image that has its kernels.
pub(super) fn groups(depth: Depth) -> Vec<Group> {
    let types = Dtype::ALL.iter().map(|&dtype| Group::of(dtype, depth));
    types.chain([Group::bytes()]).collect()
}

impl Group {
    fn of(dtype: Dtype, depth: Depth) -> Self {
        let small = dtype.accumulator() != dtype;
        let mut made = Self { name: dtype.name(), cases: Vec::new() };
        for &op in ReduceOp::ALL.iter().filter(|op| op.supports(dtype)) {
            for sources in 1..=FAN {
                made.folds(dtype, op, sources, small);
            }
            let forms: &[Form] = if small { &[Form::Native, Form::Wide] } else { &[Form::Native] };
            for &from in forms {
                for &to in forms {
                    let name = format!("{op} convert{}", words(small, from, to));
                    made.add(&name, Kind::Convert { dtype, op, from, to });
                }
            }
        }
        if small {
            made.add("stochastic rounding from f32", Kind::Round { dtype });
        }
        if depth > Depth::Quick {
            made.add("sum of 2, large", Kind::Large { dtype });
        }
        made
    }

    fn folds(&mut self, dtype: Dtype, op: ReduceOp, sources: usize, small: bool) {
        let forms: &[Forms] = if small { &[Forms::Native, Forms::Mixed] } else { &[Forms::Native] };
        let fused: &[bool] = if op == ReduceOp::PreMulSum { &[false, true] } else { &[false] };
        for &forms in forms {
            for &fused in fused {
                let mixed = if forms == Forms::Mixed { ", mixed forms" } else { "" };
                let factors = if fused { ", factors" } else { "" };
                let name = format!("{op} of {sources}{mixed}{factors}");
                self.add(&name, Kind::Fold { dtype, op, sources, forms, fused });
            }
        }
    }

    fn bytes() -> Self {
        let mut made = Self { name: "bytes", cases: Vec::new() };
        for blocks in [1, 2, 5, 64, 65, 300] {
            made.add(&format!("pack of {blocks}"), Kind::Pack { blocks });
        }
        made.add("checksum", Kind::Checksum);
        made
    }

    fn add(&mut self, name: &str, kind: Kind) {
        let name = format!("{}: {name}", self.name);
        self.cases.push(Case { name, kind });
    }
}

/// The forms of a convert, where a type has two.
fn words(small: bool, from: Form, to: Form) -> String {
    let word = |form| if form == Form::Wide { "f32" } else { "native" };
    if small { format!(" from {} to {}", word(from), word(to)) } else { String::new() }
}

/// Elements that the threads of one multiprocessor take in several turns.
fn turns(dtype: Dtype) -> usize {
    let vectors = 4 * 3 * BLOCK as usize;
    vectors * (16 / dtype.bytes())
}

/// How many elements a trial has, and on how many multiprocessors it runs.
type Size = (usize, u32);

impl Case {
    /// Runs `each` on the trials until one is found wrong, on a device of `processors`.
    pub(super) fn trials<E>(
        &self,
        (seed, depth): (u64, Depth),
        processors: u32,
        mut each: impl FnMut(&mut Trial, u32) -> Result<(), E>,
    ) -> Result<(), E> {
        // By its name, so that a case has the same data when it runs alone.
        let mut random = Random::new(seed ^ checksum(self.name.as_bytes()));
        for _ in 0..if depth == Depth::Full { 3 } else { 1 } {
            for (count, sms) in self.sizes(&mut random, depth, processors) {
                for mut trial in self.made(&mut random, count) {
                    each(&mut trial, sms)?;
                }
            }
        }
        Ok(())
    }

    fn sizes(&self, random: &mut Random, depth: Depth, processors: u32) -> Vec<Size> {
        let some = |random: &mut Random| random.pick(&[1, 2, processors]);
        let (dtype, several) = match self.kind {
            Kind::Large { dtype } => {
                return vec![(LARGE_BYTES / dtype.bytes() + 1 + random.below(40), processors)];
            }
            Kind::Pack { .. } => return vec![(0, some(random))],
            Kind::Checksum => (Dtype::U8, true),
            Kind::Fold { dtype, sources, .. } => (dtype, FANS.contains(&sources)),
            Kind::Convert { dtype, .. } | Kind::Round { dtype } => (dtype, true),
        };
        let counts: &[usize] =
            if depth == Depth::Quick { &[17] } else { &[0, 1, 3, 15, 16, 17, 257, 5003] };
        let mut sizes: Vec<Size> = counts.iter().map(|&count| (count, some(random))).collect();
        sizes.push((300 + random.below(700), some(random)));
        if several {
            sizes.push((turns(dtype) + random.below(100), 1));
        }
        sizes
    }

    fn made(&self, random: &mut Random, count: usize) -> Vec<Trial> {
        match self.kind {
            Kind::Fold { dtype, op, sources, forms, fused } => {
                let mut fold = FoldTrial::new(random, (dtype, op), sources, count, forms);
                let factors =
                    |random: &mut Random| (0..sources).map(|_| factor(random, dtype)).collect();
                fold.factors = fused.then(|| factors(random));
                vec![fold.trial()]
            }
            Kind::Large { dtype } => {
                let kind = (dtype, ReduceOp::Sum);
                let mut fold = FoldTrial::new(random, kind, 2, count, Forms::Native);
                // As training asks for it: all on a line, one target.
                fold.sources.iter_mut().for_each(|source| source.past = 0);
                (fold.targets, fold.in_place) = (vec![0], None);
                vec![fold.trial()]
            }
            Kind::Convert { dtype, op, from, to } => {
                let ranks = random.pick(&[1, 2, 3, 48, 300]);
                let stages =
                    [Stage::Plain, Stage::Finish { ranks }, Stage::Prepare(factor(random, dtype))];
                let made = |stage| {
                    ConvertTrial { dtype, op, forms: (from, to), stage }.trial(random, count)
                };
                stages.map(made).into()
            }
            Kind::Round { dtype } => vec![RoundTrial { dtype, count }.trial(random)],
            Kind::Pack { blocks } => vec![pack_trial(random, blocks)],
            Kind::Checksum => vec![checksum_trial(random, count)],
        }
    }
}
