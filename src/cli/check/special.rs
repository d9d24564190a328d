//! Cases that are more than one call: many in flight, groups, messages, communicators beside each
//! other.

use std::time::Duration;

use unisono::kernel::{Fold, Form, Isa, Source as Operand, Stage, select_for};
use unisono::{Collective, Communicator, Dtype, Rank, ReduceOp, Request, Result};

use super::event::Verdict;
use super::rank::{Bench, describe};
use crate::cli::data::Case;
use crate::cli::data::memory::Source;
use crate::cli::data::shape::{Kind, Shape};

/// Calls in flight at once.
const MANY: usize = 24;

/// A few collectives of different kinds and sizes, in the same order on every rank.
fn menu(bench: &mut Bench<'_>, calls: usize) -> Result<Vec<(Case, Shape)>> {
    use Collective as C;
    let kinds =
        [C::AllReduce, C::AllGather, C::Broadcast, C::ReduceScatter, C::AllToAll, C::Reduce];
    let world = bench.world();
    let mut menu = Vec::new();
    for number in 0..calls {
        let kind = Kind::Collective(kinds[number % kinds.len()]);
        let count = [1, 100, 3000, 0][number % 4];
        let shape = Shape::new(kind, Dtype::F32, count, world);
        let root = u32::try_from(number % world).unwrap_or(0);
        let shape = Shape { root, ..shape };
        menu.push((bench.filled(&shape, Source::Plain)?, shape));
    }
    Ok(menu)
}

pub(super) fn compare(bench: &mut Bench<'_>, menu: &[(Case, Shape)]) -> Result<Verdict> {
    for (number, (case, shape)) in menu.iter().enumerate() {
        let wrong = case.wrong(bench.patterns)?;
        if wrong > 0 {
            return failed(format!("call {number}: {}", describe(shape, wrong)));
        }
    }
    Ok(Verdict::Passed)
}

fn failed(what: impl Into<String>) -> Result<Verdict> {
    Ok(Verdict::Failed(what.into()))
}

/// Buffers that requests still use must not go, whatever went wrong before.
pub(super) fn keep_on_error<T>(
    outcome: Result<T>,
    menu: Vec<(Case, Shape)>,
) -> Result<(T, Vec<(Case, Shape)>)> {
    match outcome {
        Ok(value) => Ok((value, menu)),
        Err(error) => {
            std::mem::forget(menu);
            Err(error)
        }
    }
}

pub(super) fn start_all(bench: &Bench<'_>, menu: &mut [(Case, Shape)]) -> Result<Vec<Request>> {
    let mut requests = Vec::new();
    for (case, _) in menu {
        requests.extend(case.start(bench.comm)?);
    }
    Ok(requests)
}

pub(super) fn reversed_waits(bench: &mut Bench<'_>) -> Result<Verdict> {
    let mut menu = menu(bench, MANY)?;
    let outcome = start_all(bench, &mut menu).and_then(|mut requests| {
        requests.iter_mut().rev().try_for_each(|request| request.wait(None).map(drop))
    });
    let ((), menu) = keep_on_error(outcome, menu)?;
    compare(bench, &menu)
}

pub(super) fn tests(bench: &mut Bench<'_>) -> Result<Verdict> {
    let mut menu = menu(bench, MANY)?;
    let outcome = start_all(bench, &mut menu).and_then(|mut requests| {
        // BOUND: each request has the communicator's deadline, which a test does not see: `wait`
        // below ends what tests alone do not.
        for _ in 0..2_000_000 {
            let mut all = true;
            for request in &mut requests {
                all &= request.test()?;
            }
            if all {
                return Ok(());
            }
        }
        requests.iter_mut().try_for_each(|request| request.wait(None).map(drop))
    });
    let ((), menu) = keep_on_error(outcome, menu)?;
    compare(bench, &menu)
}

pub(super) fn waits_for_any(bench: &mut Bench<'_>) -> Result<Verdict> {
    let mut menu = menu(bench, MANY)?;
    let outcome = start_all(bench, &mut menu).and_then(|mut requests| {
        let mut ended = vec![0; requests.len()];
        let mut all: Vec<&mut Request> = requests.iter_mut().collect();
        while let Some(index) = Request::wait_any(&mut all, None)? {
            ended[index] += 1;
        }
        Ok(ended)
    });
    let (ended, menu) = keep_on_error(outcome, menu)?;
    if ended.iter().any(|&times| times != 1) {
        return failed(format!("wait_any told ends {ended:?} times"));
    }
    compare(bench, &menu)
}

pub(super) fn beside_blocking(bench: &mut Bench<'_>) -> Result<Verdict> {
    let mut menu = menu(bench, 8)?;
    let (comm, last) = (bench.comm, menu.len() - 1);
    let outcome = (|| {
        let mut requests = start_all(bench, &mut menu[..last])?;
        menu[last].0.run(comm)?;
        requests.iter_mut().try_for_each(|request| request.wait(None).map(drop))
    })();
    let ((), menu) = keep_on_error(outcome, menu)?;
    compare(bench, &menu)
}

pub(super) fn mixed_group(bench: &mut Bench<'_>) -> Result<Verdict> {
    let mut menu = menu(bench, 12)?;
    let comm = bench.comm;
    let outcome = (|| {
        comm.group_start()?;
        for (case, _) in &mut menu {
            case.collect(comm)?;
        }
        comm.group_end()
    })();
    let ((), menu) = keep_on_error(outcome, menu)?;
    compare(bench, &menu)
}

pub(super) fn empty_group(bench: &mut Bench<'_>) -> Result<Verdict> {
    bench.comm.group_start()?;
    bench.comm.group_end()?;
    bench.comm.barrier()?;
    Ok(Verdict::Passed)
}

/// Elements of the messages between pairs: `from` to `to`.
fn letter(from: usize, to: usize, count: usize) -> Vec<u32> {
    let word = |i: usize| u32::try_from((from * 1_000_003 + to * 10_007 + i) % 0xffff_fffb);
    (0..count).map(|i| word(i).unwrap_or(0)).collect()
}

fn message(
    comm: &Communicator,
    kind: Collective,
    peer: usize,
    data: &mut [u32],
) -> Result<unisono::call::Call> {
    let mut args = unisono::comm::Args::new(kind, Dtype::U32);
    args.root = i64::try_from(peer).unwrap_or(-1);
    args.count = data.len() as u64;
    (args.send, args.recv) = (data.as_ptr().cast(), data.as_mut_ptr().cast());
    comm.prepare(&args)
}

pub(super) fn all_pairs(bench: &mut Bench<'_>) -> Result<Verdict> {
    let (me, world, comm) = (bench.me(), bench.world(), bench.comm);
    for count in [0, 1, 5000, 100_000] {
        let mut sent: Vec<_> = (0..world).map(|peer| letter(me, peer, count)).collect();
        let mut received = vec![vec![0; count]; world];
        comm.group_start()?;
        for peer in (0..world).filter(|&peer| peer != me) {
            let send = message(comm, Collective::Send, peer, &mut sent[peer])?;
            let recv = message(comm, Collective::Recv, peer, &mut received[peer])?;
            // SAFETY: both vectors outlive the group, and nobody looks at them before its end.
            unsafe { comm.run(send).and_then(|()| comm.run(recv)) }?;
        }
        if let Err(error) = comm.group_end() {
            std::mem::forget((sent, received));
            return Err(error);
        }
        for peer in (0..world).filter(|&peer| peer != me) {
            if received[peer] != letter(peer, me, count) {
                return failed(format!("{count} elements from rank {peer} are wrong"));
            }
        }
    }
    Ok(Verdict::Passed)
}

pub(super) fn ordered_messages(bench: &mut Bench<'_>) -> Result<Verdict> {
    let (me, world, comm) = (bench.me(), bench.world(), bench.comm);
    if world < 2 {
        return Ok(Verdict::Skipped("takes two ranks".to_owned()));
    }
    let (next, previous) = ((me + 1) % world, (me + world - 1) % world);
    let length = |number: usize| [1, 17, 2000, 0, 40_000][number % 5] + number;
    let mut sent: Vec<_> = (0..MANY).map(|k| letter(me, k, length(k))).collect();
    let mut received: Vec<_> = (0..MANY).map(|k| vec![0; length(k)]).collect();
    let outcome = (|| {
        let mut requests = Vec::new();
        for number in 0..MANY {
            let send = message(comm, Collective::Send, next, &mut sent[number])?;
            let recv = message(comm, Collective::Recv, previous, &mut received[number])?;
            // SAFETY: both vectors outlive the requests (they are forgotten on an error), and
            // nobody looks at them before their end.
            requests.push(unsafe { comm.start(send) }?);
            // SAFETY: as above.
            requests.push(unsafe { comm.start(recv) }?);
        }
        requests.iter_mut().try_for_each(|request| request.wait(None).map(drop))
    })();
    if let Err(error) = outcome {
        std::mem::forget((sent, received));
        return Err(error);
    }
    for (number, seen) in received.iter().enumerate() {
        if *seen != letter(previous, number, length(number)) {
            return failed(format!("message {number} from rank {previous} is wrong"));
        }
    }
    Ok(Verdict::Passed)
}

pub(super) fn messages_beside_collectives(bench: &mut Bench<'_>) -> Result<Verdict> {
    let world = bench.world();
    let mut menu = menu(bench, 6)?;
    for count in [1, 3000, 70_000] {
        let shape = Shape::new(Kind::SendRecv, Dtype::F32, count, world);
        if world == 1 {
            return Ok(Verdict::Skipped("takes two ranks".to_owned()));
        }
        menu.insert(menu.len() / 2, (bench.filled(&shape, Source::Plain)?, shape));
    }
    let outcome = start_all(bench, &mut menu).and_then(|mut requests| {
        requests.iter_mut().try_for_each(|request| request.wait(None).map(drop))
    });
    let ((), menu) = keep_on_error(outcome, menu)?;
    compare(bench, &menu)
}

/// What a link may know of memory does not outlive it.
pub(super) fn memory_that_comes_and_goes(bench: &mut Bench<'_>) -> Result<Verdict> {
    let world = bench.world();
    for round in 0..6 {
        let kind = [Kind::Collective(Collective::AllReduce), Kind::SendRecv][round % 2];
        // Large enough to be mapped by itself: the next is likely to be where this was.
        let shape = Shape::new(kind, Dtype::F32, 300_000 + round / 2, world);
        let mut case = bench.filled(&shape, Source::Plain)?;
        if kind == Kind::SendRecv && world == 1 {
            continue;
        }
        case.run(bench.comm)?;
        let wrong = case.wrong(bench.patterns)?;
        if wrong > 0 {
            return failed(format!("round {round}: {}", describe(&shape, wrong)));
        }
    }
    Ok(Verdict::Passed)
}

/// A wait that ends before the call does says so, and the call goes on.
pub(super) fn short_wait(bench: &mut Bench<'_>) -> Result<Verdict> {
    let mut menu = menu(bench, 1)?;
    let first = bench.me() == 0;
    let world = bench.world();
    let control = bench.home.control;
    let outcome = (|| {
        let mut early = false;
        let mut requests = if first { start_all(bench, &mut menu)? } else { Vec::new() };
        if let (Some(request), true) = (requests.first_mut(), world > 1) {
            early = request.wait(Some(Duration::from_millis(5)))?;
        }
        // The others come only now.
        control.barrier()?;
        if !first {
            requests = start_all(bench, &mut menu)?;
        }
        let late = requests.iter_mut().try_fold(true, |all, r| Ok(all & r.wait(None)?))?;
        Ok((early, late))
    })();
    let ((early, late), menu) = keep_on_error(outcome, menu)?;
    if early || !late {
        return failed(format!("the short wait said {early}, the long one {late}"));
    }
    compare(bench, &menu)
}

/// Sums ranks' numbers in `comm` and compares with what its size and `base` make of it.
fn sums_to(comm: &Communicator, value: u64, expected: u64) -> Result<Option<String>> {
    let mut sum = vec![0u64; 1000];
    comm.all_reduce(&vec![value; 1000], &mut sum, ReduceOp::Sum)?;
    let wrong = sum.iter().find(|&&seen| seen != expected);
    Ok(wrong.map(|seen| format!("a sum of {seen}, not {expected}")))
}

pub(super) fn split_by_parity(bench: &mut Bench<'_>) -> Result<Verdict> {
    let (me, world) = (bench.me(), bench.world());
    let color = i32::try_from(me % 2).unwrap_or(0);
    let key = -i32::try_from(me).unwrap_or(0);
    let Some(part) = bench.comm.split(color, key)? else {
        return failed("a rank with a color got no communicator");
    };
    let members: Vec<usize> = (0..world).rev().filter(|r| r % 2 == me % 2).collect();
    let place = members.iter().position(|&r| r == me).unwrap_or(0);
    if part.rank().index() != place || part.world_size() as usize != members.len() {
        let (rank, size) = (part.rank(), part.world_size());
        return failed(format!("rank {rank} of {size}, not {place} of {}", members.len()));
    }
    let expected = members.iter().map(|&r| r as u64 + 1).sum();
    if let Some(wrong) = sums_to(&part, me as u64 + 1, expected)? {
        return failed(wrong);
    }
    let mut from = [me as u64];
    part.broadcast(&mut from, Rank(0))?;
    part.destroy()?;
    if from[0] != members[0] as u64 {
        return failed(format!("rank 0 of the split is rank {}, not {}", from[0], members[0]));
    }
    Ok(Verdict::Passed)
}

pub(super) fn split_without_some(bench: &mut Bench<'_>) -> Result<Verdict> {
    let (me, world) = (bench.me(), bench.world());
    let stays = me + 1 == world;
    let part = bench.comm.split(if stays { -1 } else { 7 }, 0)?;
    let fine = part.is_some() != stays;
    if let Some(part) = part {
        if let Some(wrong) = sums_to(&part, 1, world as u64 - 1)? {
            return failed(wrong);
        }
        part.destroy()?;
    }
    // The parent is as usable as before.
    if let Some(wrong) = sums_to(bench.comm, 2, 2 * world as u64)? {
        return failed(wrong);
    }
    if fine { Ok(Verdict::Passed) } else { failed("a color and its communicator do not agree") }
}

pub(super) fn split_twice(bench: &mut Bench<'_>) -> Result<Verdict> {
    let (me, world) = (bench.me(), bench.world());
    let half = i32::from(me >= world.div_ceil(2));
    let Some(part) = bench.comm.split(half, 0)? else { return failed("no half") };
    let odd = i32::try_from(part.rank().0 % 2).unwrap_or(0);
    let Some(quarter) = part.split(odd, 0)? else { return failed("no quarter") };
    for (comm, what) in [(&part, "half"), (&quarter, "quarter")] {
        if let Some(wrong) = sums_to(comm, 3, 3 * u64::from(comm.world_size()))? {
            return failed(format!("{what}: {wrong}"));
        }
    }
    // Children outlive their parents.
    part.destroy()?;
    if let Some(wrong) = sums_to(&quarter, 1, u64::from(quarter.world_size()))? {
        return failed(format!("after its parent: {wrong}"));
    }
    quarter.destroy()?;
    Ok(Verdict::Passed)
}

pub(super) fn from_many_threads(bench: &mut Bench<'_>) -> Result<Verdict> {
    const THREADS: u64 = 3;
    const CALLS: u64 = 20;
    let (me, world) = (bench.me() as u64, bench.world() as u64);
    let key = i32::try_from(me).unwrap_or(0);
    let parts: Vec<Communicator> =
        (0..THREADS).filter_map(|_| bench.comm.split(0, key).transpose()).collect::<Result<_>>()?;
    let work = |number: u64, comm: Communicator| -> Result<Option<String>> {
        for call in 0..CALLS {
            let expected = world * (number + call) + world * (world - 1) / 2;
            if let Some(wrong) = sums_to(&comm, number + call + me, expected)? {
                return Ok(Some(format!("thread {number} call {call}: {wrong}")));
            }
            comm.barrier()?;
        }
        comm.destroy()?;
        Ok(None)
    };
    let outcomes: Vec<Result<Option<String>>> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..).zip(parts).map(|(k, comm)| scope.spawn(move || work(k, comm))).collect();
        let join = |t: std::thread::ScopedJoinHandle<'_, _>| {
            t.join().unwrap_or_else(|_| Ok(Some("a thread panicked".to_owned())))
        };
        threads.into_iter().map(join).collect()
    });
    for outcome in outcomes {
        if let Some(wrong) = outcome? {
            return failed(wrong);
        }
    }
    Ok(Verdict::Passed)
}

pub(super) fn formed_again_and_again(bench: &mut Bench<'_>) -> Result<Verdict> {
    for _ in 0..10 {
        let comm = bench.home.fresh(bench.config)?;
        if let Some(wrong) = sums_to(&comm, 1, bench.world() as u64)? {
            return failed(wrong);
        }
        comm.destroy()?;
    }
    Ok(Verdict::Passed)
}

/// Eight parts dealt out to the ranks; each adds its own in tree order, then all reduce.
pub(super) fn same_work(bench: &mut Bench<'_>) -> Result<Verdict> {
    const PARTS: usize = 8;
    const COUNT: usize = 3001;
    let (me, world) = (bench.me(), bench.world());
    let part = |number: usize| -> Vec<f32> {
        let value = |index: usize| {
            let bits = crate::cli::data::value::random(11, number, index);
            let mantissa = u16::try_from(bits & 0xffff).unwrap_or(0);
            let exponent = i32::try_from(bits >> 16 & 15).unwrap_or(0) - 8;
            (f32::from(mantissa) / 3.0 - 10_000.0) * 2f32.powi(exponent)
        };
        (0..COUNT).map(value).collect()
    };
    let parts: Vec<Vec<f32>> = (0..PARTS).map(part).collect();
    let share = PARTS / world;
    let own = tree_sum(&parts[me * share..(me + 1) * share], COUNT);
    let expected = tree_sum(&parts, COUNT);
    let mut sum = vec![0f32; COUNT];
    bench.comm.all_reduce(&own, &mut sum, ReduceOp::Sum)?;
    let pairs = sum.iter().zip(&expected);
    let wrong = pairs.filter(|(a, b)| a.to_bits() != b.to_bits()).count();
    if wrong > 0 {
        return failed(format!("{wrong} of {COUNT} sums differ from those of one rank"));
    }
    Ok(Verdict::Passed)
}

fn tree_sum(parts: &[Vec<f32>], count: usize) -> Vec<f32> {
    let mut sum = vec![0f32; count];
    let kernels = select_for(Isa::Scalar, Dtype::F32, ReduceOp::Sum);
    let kernels = kernels.expect("scalar kernels do everything");
    let sources: Vec<Operand> =
        parts.iter().map(|p| Operand { at: p.as_ptr().cast(), form: Form::Native }).collect();
    let fold = Fold {
        sources: &sources,
        targets: &[sum.as_mut_ptr().cast()],
        target_form: Form::Native,
        count,
        stage: Stage::Plain,
        streaming: 0,
    };
    // SAFETY: every source and the target hold `count` elements.
    unsafe { (kernels.fold)(&fold) };
    sum
}
