//! Periodic inputs and the results they must give, computed once a type and operation.
//!
//! Element i of a rank is element i modulo [`PERIOD`] of its pattern. The period is a prime, so
//! data that lands a tile, a block or a rank away from its place does not match.

use std::collections::HashMap;
use std::rc::Rc;

use unisono::kernel::{Convert, Fold, Form, Isa, Scalar, Source, Stage, select_for};
use unisono::{Dtype, ReduceOp};

use super::value::{Value, factor, input, random, reduced, store};

/// Elements after which a pattern begins again.
pub(crate) const PERIOD: usize = 4093;

/// What poisoned bytes hold.
pub(crate) const POISON: u8 = 0xa5;

/// What kind of data a call moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Flavor {
    /// Any bits, for calls that do not reduce.
    Bits,
    /// Reduces to a result that is exact in every order.
    Exact,
    /// Full mantissas: the result depends on the order, which must be the tree over ranks.
    Ordered,
}

/// Which pattern an element comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Origin {
    /// Nobody's: poison.
    Poison,
    /// The input of this rank.
    Rank(usize),
    /// The reduction over all ranks.
    Reduced,
}

type Key = (Dtype, ReduceOp, Flavor, Origin);

/// All patterns of a world, made when first asked for.
#[derive(Debug)]
pub(crate) struct Patterns {
    seed: u64,
    world: usize,
    made: HashMap<Key, Rc<[u8]>>,
}

impl Patterns {
    pub(crate) fn new(seed: u64, world: usize) -> Self {
        Self { seed, world, made: HashMap::new() }
    }

    /// One period of `origin`'s elements.
    pub(crate) fn get(
        &mut self,
        dtype: Dtype,
        op: ReduceOp,
        flavor: Flavor,
        origin: Origin,
    ) -> Rc<[u8]> {
        let op = if flavor == Flavor::Bits { ReduceOp::Sum } else { op };
        let key = (dtype, op, flavor, origin);
        if let Some(made) = self.made.get(&key) {
            return made.clone();
        }
        let made: Rc<[u8]> = self.make(key).into();
        self.made.insert(key, made.clone());
        made
    }

    fn make(&mut self, (dtype, op, flavor, origin): Key) -> Vec<u8> {
        let mut bytes = vec![POISON; PERIOD * dtype.bytes()];
        let elements = bytes.chunks_exact_mut(dtype.bytes()).enumerate();
        let (seed, world) = (self.seed, self.world);
        match (origin, flavor) {
            (Origin::Poison, _) => {}
            (Origin::Rank(rank), Flavor::Bits) => {
                for (index, at) in elements {
                    let low = random(seed, rank, 2 * index).to_le_bytes();
                    let high = random(seed, rank, 2 * index + 1).to_le_bytes();
                    at.copy_from_slice(&[low, high].concat()[..at.len()]);
                }
            }
            (Origin::Rank(rank), Flavor::Exact) => {
                for (index, at) in elements {
                    store(dtype, input((dtype, op), seed, (rank, world), index), at);
                }
            }
            (Origin::Rank(rank), Flavor::Ordered) => {
                for (index, at) in elements {
                    store(dtype, rough(dtype, random(seed, rank, index)), at);
                }
            }
            (Origin::Reduced, Flavor::Ordered) => self.fold(dtype, op, &mut bytes),
            (Origin::Reduced, _) => {
                for (index, at) in elements {
                    let inputs = (0..world).map(|r| input((dtype, op), seed, (r, world), index));
                    store(dtype, reduced(dtype, op, inputs), at);
                }
            }
        }
        bytes
    }

    /// The fold in tree order, by the plainest kernels.
    fn fold(&mut self, dtype: Dtype, op: ReduceOp, target: &mut [u8]) {
        let kernels = select_for(Isa::Scalar, dtype, op).expect("scalar kernels do everything");
        let ranks: Vec<_> = (0..self.world)
            .map(|r| self.get(dtype, op, Flavor::Ordered, Origin::Rank(r)))
            .collect();
        let wide = dtype.accumulator().bytes();
        let mut prepared = vec![vec![0u8; PERIOD * wide]; ranks.len()];
        let sources: Vec<Source> = (ranks.iter().zip(&mut prepared).enumerate())
            .map(|(rank, (native, wide))| {
                let source = Source { at: native.as_ptr(), form: Form::Native };
                if op != ReduceOp::PreMulSum {
                    return source;
                }
                let scalar: Scalar = factor(dtype, rank);
                let convert = Convert {
                    source,
                    target: wide.as_mut_ptr(),
                    target_form: Form::Wide,
                    count: PERIOD,
                    stage: Stage::Prepare(scalar),
                };
                // SAFETY: both buffers hold a period of elements in their form.
                unsafe { (kernels.convert)(&convert) };
                Source { at: wide.as_ptr(), form: Form::Wide }
            })
            .collect();
        let fold = Fold {
            sources: &sources,
            targets: &[target.as_mut_ptr()],
            target_form: Form::Native,
            count: PERIOD,
            stage: Stage::Finish { ranks: u32::try_from(self.world).expect("worlds are bounded") },
            streaming: 0,
        };
        // SAFETY: every source and the target hold a period of elements in their form.
        unsafe { (kernels.fold)(&fold) };
    }
}

/// A number with a full mantissa: sums of such depend on their order.
fn rough(dtype: Dtype, bits: u64) -> Value {
    let real = |bits: u64| {
        let mantissa = f64::from(u32::try_from(bits & 0x3fff_ffff).expect("30 bits"));
        let exponent = i32::try_from(bits >> 30 & 7).expect("3 bits") - 4;
        let sign = if bits >> 33 & 1 == 0 { 1.0 } else { -1.0 };
        sign * (1.0 + mantissa / f64::from(1u32 << 30)) * 2f64.powi(exponent)
    };
    match dtype.class() {
        unisono::types::Class::Integer => Value::Int(bits),
        unisono::types::Class::Float => Value::Real(real(bits)),
        unisono::types::Class::Complex => Value::Complex(real(bits), real(bits.rotate_left(30))),
    }
}

/// Writes `count` elements of a pattern from element `start` on.
pub(crate) fn write(pattern: &[u8], size: usize, start: usize, target: &mut [u8]) {
    let mut from = (start % PERIOD) * size;
    let mut rest = target;
    while !rest.is_empty() {
        let now = rest.len().min(pattern.len() - from);
        rest[..now].copy_from_slice(&pattern[from..from + now]);
        rest = &mut rest[now..];
        from = 0;
    }
}

/// Elements that differ from the pattern from element `start` on.
pub(crate) fn differing(pattern: &[u8], size: usize, start: usize, seen: &[u8]) -> u64 {
    let mut from = (start % PERIOD) * size;
    let mut rest = seen;
    let mut wrong = 0;
    while !rest.is_empty() {
        let now = rest.len().min(pattern.len() - from);
        let (seen, expected) = (&rest[..now], &pattern[from..from + now]);
        if seen != expected {
            let pairs = seen.chunks(size).zip(expected.chunks(size));
            wrong += pairs.filter(|(a, b)| a != b).count() as u64;
        }
        rest = &rest[now..];
        from = 0;
    }
    wrong
}
