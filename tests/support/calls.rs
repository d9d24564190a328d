//! Calls whose results are known, and one whose bits tell the order of its additions.

use unisono::comm::Communicator;
use unisono::types::{Rank, ReduceOp};
use unisono::{Error, Result};

/// Element `i` of what rank `from` gives to rank `to`.
fn value(from: u32, to: u32, i: usize) -> u32 {
    from * 1_000_003 + to * 10_007 + u32::try_from(i % 9973).expect("small")
}

fn block(from: u32, to: u32, count: usize) -> impl Iterator<Item = u32> {
    (0..count).map(move |i| value(from, to, i))
}

#[track_caller]
fn same(what: &str, found: &[u32], wanted: impl Iterator<Item = u32>) {
    let wanted: Vec<u32> = wanted.collect();
    assert_eq!(found.len(), wanted.len(), "{what}");
    for (i, (found, wanted)) in found.iter().zip(&wanted).enumerate() {
        assert_eq!(found, wanted, "{what}: element {i}");
    }
}

/// All kinds of calls, of `count` elements or blocks of so many, every element compared.
pub(crate) fn checked_calls(comm: &Communicator, count: usize) -> Result<()> {
    let (me, world) = (comm.rank().0, comm.world_size());
    let all = count * world as usize;
    super::checked_all_reduce(comm, count)?;

    let own: Vec<u32> = block(me, 0, count).collect();
    let mut gathered = vec![0; all];
    comm.all_gather(&own, &mut gathered)?;
    same("all_gather", &gathered, (0..world).flat_map(|from| block(from, 0, count)));

    let given: Vec<u32> = (0..world).flat_map(|to| block(me, to, count)).collect();
    let mut taken = vec![0; all];
    comm.all_to_all(&given, &mut taken)?;
    same("all_to_all", &taken, (0..world).flat_map(|from| block(from, me, count)));

    let mut sums = vec![0; count];
    comm.reduce_scatter(&given, &mut sums, ReduceOp::Sum)?;
    let sum = |i| (0..world).map(|from| value(from, me, i)).sum();
    same("reduce_scatter", &sums, (0..count).map(sum));

    for root in 0..world {
        let mut data = if me == root { own.clone() } else { vec![0; count] };
        comm.broadcast(&mut data, Rank(root))?;
        same("broadcast", &data, block(root, 0, count));
    }
    comm.barrier()
}

/// The bits of a sum that depends on the order of its additions.
pub(crate) fn ordered_sum(comm: &Communicator, count: usize) -> Result<String> {
    let me = comm.rank().0;
    // Magnitudes so far apart that every other order rounds otherwise somewhere.
    let part = |i: usize| {
        let mixed = (u64::from(value(me, 0, i)) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let scale = i32::try_from(mixed >> 59).expect("small") - 16;
        let digits = u32::try_from(mixed & 0xffff_ffff).expect("32 bits");
        (digits as f32 - 2e9) * 2f32.powi(scale)
    };
    let send: Vec<f32> = (0..count).map(part).collect();
    let mut recv = vec![0f32; count];
    comm.all_reduce(&send, &mut recv, ReduceOp::Sum)?;
    let bytes: Vec<u8> = recv.iter().flat_map(|x| x.to_bits().to_le_bytes()).collect();
    Ok(blake3::hash(&bytes).to_hex().as_str()[..16].to_owned())
}

/// What a rank says of [`ordered_sum`].
pub(crate) fn say_ordered(result: std::result::Result<String, Error>) {
    match result {
        Ok(bits) => super::say(&format!("bits {bits}")),
        Err(error) => super::say(&super::say_error(&error)),
    }
}
