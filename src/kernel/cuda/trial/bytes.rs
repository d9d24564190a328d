//! Packs and checksums beside plain copies and the checksum of host memory.

use super::random::{Random, fill};
use super::{Trial, Work};
use crate::kernel::Form;
use crate::kernel::cuda::arguments::Block;
use crate::kernel::cuda::{DeviceChecksum, Move, checksum};
use crate::types::Dtype;

const BYTE: (Dtype, Form) = (Dtype::U8, Form::Native);

/// A pack of `number` blocks of any size from random places of one buffer to such of another.
#[must_use]
pub fn pack_trial(random: &mut Random, number: usize) -> Trial {
    let mut trial = Trial::new(format!("{number} blocks"), Work::Pack(Vec::new(), 0));
    let (mut read, mut written) = (0, 0);
    let mut moves = Vec::with_capacity(number);
    for _ in 0..number {
        read += random.pick(&[0, 1, 4, 8, 16, 21]);
        written += random.pick(&[0, 1, 4, 8, 16, 21]);
        let bytes = match random.below(40) {
            0 => 32_768 + random.below(70_000),
            1..10 => 0,
            _ => random.below(300),
        };
        moves.push((read, written, bytes));
        (read, written) = (read + bytes, written + bytes);
    }
    let mut contents = vec![0; read];
    fill(random, Dtype::U8, &mut contents);
    let source = trial.place("the source", BYTE, &contents, random.below(16));
    let mut expected = vec![0x5a; written];
    let target = trial.place("the target", BYTE, &expected, random.below(16));
    let table = trial.place("the table", BYTE, &vec![0; number * size_of::<Block>()], 0);
    for &(from, to, bytes) in &moves {
        expected[to..to + bytes].copy_from_slice(&contents[from..from + bytes]);
    }
    trial.expect(target, &expected, false);
    let one = |&(from, to, bytes): &(usize, usize, usize)| Move {
        source: (source + from) as u64,
        target: (target + to) as u64,
        bytes: bytes as u64,
    };
    trial.work = Work::Pack(moves.iter().map(one).collect(), table);
    trial
}

/// A checksum of so many bytes, added to a number that is there.
#[must_use]
pub fn checksum_trial(random: &mut Random, bytes: usize) -> Trial {
    let (past, before) = (random.below(16), random.next());
    let what = format!("{bytes} bytes at {past}");
    let mut contents = vec![0; bytes];
    fill(random, Dtype::U8, &mut contents);
    let mut trial = Trial::new(what, Work::Pack(Vec::new(), 0));
    let source = trial.place("the source", BYTE, &contents, past);
    let kind = (Dtype::U64, Form::Native);
    let target = trial.place("the sum", kind, &before.to_le_bytes(), 0);
    let sum = before.wrapping_add(checksum(&contents));
    trial.expect(target, &sum.to_le_bytes(), false);
    trial.work = Work::Checksum(DeviceChecksum {
        source: source as u64,
        bytes: bytes as u64,
        target: target as u64,
        skip: 0,
        length: Some(bytes as u64),
    });
    trial
}
