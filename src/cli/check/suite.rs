//! The suite as data: sections of named cases, the same list on every rank and in the process that
//! watches them.

use unisono::algo;
use unisono::config::Config;
use unisono::plan::Algorithm;
use unisono::types::Class;
use unisono::{Collective, Dtype, ReduceOp, Result};

use super::event::Verdict;
use super::rank::Bench;
use super::{Depth, fault, late, sequence, special};
use crate::cli::data::memory::Source;
use crate::cli::data::pattern::Flavor;
use crate::cli::data::shape::{Kind, Shape};
use crate::cli::ranks::Link;

/// One call, filled, run and compared.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) shape: Shape,
    pub(super) flavor: Flavor,
    pub(super) source: Source,
    pub(super) repeats: u32,
}

/// A case that is more than one call.
pub(super) type Special = fn(&mut Bench<'_>) -> Result<Verdict>;

/// What a case does.
#[derive(Clone, Debug)]
pub(super) enum Act {
    Call(Call),
    Special(Special),
    /// Cannot be here, and why.
    Skip(&'static str),
}

/// One row of the suite.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) name: String,
    pub(super) act: Act,
}

/// Cases on one communicator.
#[derive(Clone, Debug)]
pub(super) struct Section {
    pub(super) name: String,
    pub(super) config: Config,
    pub(super) cases: Vec<Case>,
}

impl Section {
    /// Whether the case's full name contains `filter`.
    pub(super) fn selects(&self, case: &Case, filter: &str) -> bool {
        format!("{}: {}", self.name, case.name).contains(filter)
    }
}

/// Small tiles, so that small calls have many.
const TILE_BYTES: u32 = 256;

/// Where the sections are made.
#[derive(Clone, Copy, Debug)]
struct Place {
    world: u32,
    link: Link,
    depth: Depth,
}

/// The sections for a link and world, each made when its turn comes.
pub(super) fn sections(world: u32, link: Link, depth: Depth) -> impl Iterator<Item = Section> {
    let place = Place { world, link, depth };
    let tiled = Config { tile_bytes: TILE_BYTES, ..Config::default() };
    let first = [
        ("types", tiled.clone(), types as fn(Place) -> Vec<Case>),
        ("counts", tiled.clone(), counts),
        ("blocks", tiled.clone(), blocks),
        ("sizes", Config::default(), sizes),
        ("flat", Config::default(), flat),
        ("registered", tiled, registered),
        ("together", Config::default(), together),
        (
            "without progress thread",
            Config { progress_thread: false, ..Config::default() },
            together,
        ),
        ("communicators", Config::default(), communicators),
        ("errors", Config::default(), errors),
    ];
    let plain = first.into_iter().map(move |(name, config, cases)| Section {
        name: name.to_owned(),
        config,
        cases: cases(place),
    });
    let forced = Algorithm::ALL.iter().map(move |&algorithm| match link {
        Link::Mpi => foreign(algorithm),
        _ => algorithms(place, algorithm),
    });
    plain.chain(forced).chain(deterministic(place)).map(|mut section| {
        // In small worlds some shapes come to the same: one of each is enough.
        let mut seen = std::collections::HashSet::new();
        section.cases.retain(|case| seen.insert(case.name.clone()));
        section
    })
}

/// A case's name from what distinguishes it.
fn named(shape: &Shape, source: Source) -> String {
    let mut name = shape.kind.name().to_owned();
    if shape.kind != Kind::Collective(Collective::Barrier) {
        name += &format!(" {}", shape.dtype);
    }
    if shape.kind.reduces() {
        name += &format!(" {}", shape.op);
    }
    if shape.kind.ragged() {
        name += &format!(" counts {:?} gap {}", shape.counts, shape.gap);
    } else {
        name += &format!(" count {}", shape.count);
    }
    if shape.kind.rooted() {
        name += &format!(" root {}", shape.root);
    }
    if shape.skew > 0 {
        name += &format!(" off by {}", shape.skew);
    }
    if shape.in_place {
        name += " in place";
    }
    if source == Source::Registered {
        name += " registered";
    }
    name
}

fn call(shape: Shape, flavor: Flavor, source: Source) -> Case {
    let flavor = if shape.kind.reduces() { flavor } else { Flavor::Bits };
    let name = named(&shape, source);
    Case { name, act: Act::Call(Call { shape, flavor, source, repeats: 1 }) }
}

fn plain(shape: Shape) -> Case {
    call(shape, Flavor::Exact, Source::Plain)
}

/// Counts for the `v` forms: `most` at some ranks, nothing at others.
fn uneven(world: u32, most: usize) -> Vec<usize> {
    (0..world as usize).map(|r| [most, 0, most / 3 + 1, 1][(r + world as usize) % 4]).collect()
}

fn shape(kind: Kind, dtype: Dtype, count: usize, place: Place) -> Shape {
    let shape = Shape::new(kind, dtype, count, place.world as usize);
    if kind.ragged() { Shape { counts: uneven(place.world, count), ..shape } } else { shape }
}

fn placements(kind: Kind) -> &'static [bool] {
    if kind.has_in_place() { &[false, true] } else { &[false] }
}

fn roots(kind: Kind, place: Place) -> Vec<u32> {
    match (kind.rooted(), place.depth) {
        (false, _) => vec![0],
        (true, Depth::Quick) if place.world > 2 => vec![0, place.world - 1],
        (true, _) => (0..place.world).collect(),
    }
}

/// Every collective with every type and operation that means something.
fn types(place: Place) -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in Kind::all().filter(|kind| *kind != Kind::Collective(Collective::Barrier)) {
        for (number, &dtype) in Dtype::ALL.iter().enumerate() {
            let all = ReduceOp::ALL.iter().copied().filter(|op| op.supports(dtype));
            let ops: Vec<ReduceOp> = match (kind, place.depth) {
                (kind, _) if !kind.reduces() => vec![ReduceOp::Sum],
                (Kind::Collective(Collective::AllReduce), _) | (_, Depth::Usual | Depth::Full) => {
                    all.collect()
                }
                // The kernels are all_reduce's: one operation a type shows that they are reached.
                _ => all.skip(number % 4).take(1).collect(),
            };
            for op in ops {
                for &in_place in placements(kind) {
                    if place.depth == Depth::Quick && in_place != (number % 2 == 1) {
                        continue;
                    }
                    let root = (place.world - 1).min(1);
                    let made = shape(kind, dtype, 331, place);
                    cases.push(plain(Shape { op, in_place, root, ..made }));
                }
            }
        }
    }
    cases
}

/// Every collective with nothing, one element, odd primes, and around tiles; off by one element.
fn counts(place: Place) -> Vec<Case> {
    let tile = TILE_BYTES as usize / 4;
    let (tile_1, tile_2) = (tile - 1, tile + 1);
    let quick = [0, 1, 7, tile, 2 * tile + 3];
    let usual = [0, 1, 2, 3, 5, 13, tile_1, tile, tile_2, 2 * tile, 3 * tile + 1, 1009];
    let counts: &[usize] = if place.depth == Depth::Quick { &quick } else { &usual };
    let dtypes: &[Dtype] = match place.depth {
        Depth::Full => &[Dtype::F32, Dtype::I8, Dtype::Bf16, Dtype::Complex128],
        Depth::Usual => &[Dtype::F32, Dtype::I8],
        Depth::Quick => &[Dtype::F32],
    };
    let mut cases = Vec::new();
    for kind in Kind::all() {
        if kind == Kind::Collective(Collective::Barrier) {
            cases.push(plain(shape(kind, Dtype::U8, 0, place)));
            continue;
        }
        for &dtype in dtypes {
            for root in roots(kind, place) {
                for (number, &count) in counts.iter().enumerate() {
                    for &in_place in placements(kind) {
                        let skews: &[usize] = match place.depth {
                            Depth::Quick if number % 2 == 0 => &[0],
                            Depth::Quick => &[1],
                            _ => &[0, 1],
                        };
                        for &skew in skews {
                            let made = shape(kind, dtype, count, place);
                            cases.push(plain(Shape { root, in_place, skew, ..made }));
                        }
                    }
                }
            }
        }
    }
    cases
}

/// The `v` forms: ranks without elements, one rank with all, gaps between blocks.
fn blocks(place: Place) -> Vec<Case> {
    let world = place.world as usize;
    let at =
        |rank: usize, count: usize| (0..world).map(|r| if r == rank { count } else { 0 }).collect();
    let distributions: Vec<Vec<usize>> = vec![
        vec![0; world],
        at(0, 777),
        at(world - 1, 777),
        (0..world).map(|r| 100 * r + 1).collect(),
        (0..world).map(|r| if r % 2 == 0 { 0 } else { 257 }).collect(),
    ];
    let mut cases = Vec::new();
    for kind in Kind::all().filter(|kind| kind.ragged()) {
        for counts in &distributions {
            for root in roots(kind, place) {
                for gap in [0, 3] {
                    for &in_place in placements(kind) {
                        if place.depth == Depth::Quick && gap > 0 && root > 0 {
                            continue;
                        }
                        let counts = counts.clone();
                        let made = Shape::new(kind, Dtype::I16, 0, world);
                        cases.push(plain(Shape { counts, gap, root, in_place, ..made }));
                    }
                }
            }
        }
    }
    cases
}

/// Sizes of use, with the tiles of use.
fn sizes(place: Place) -> Vec<Case> {
    let counts: &[usize] = match place.depth {
        Depth::Quick => &[30_011],
        Depth::Usual => &[4_099, 100_003, 1_000_003],
        Depth::Full => &[4_099, 65_536, 100_003, 1_000_003, 5_000_011],
    };
    let mut cases = Vec::new();
    for kind in Kind::all().filter(|kind| *kind != Kind::Collective(Collective::Barrier)) {
        for &count in counts {
            for &in_place in placements(kind) {
                for dtype in [Dtype::F32, Dtype::Bf16] {
                    if place.depth == Depth::Quick && in_place != (dtype == Dtype::Bf16) {
                        continue;
                    }
                    cases.push(plain(Shape { in_place, ..shape(kind, dtype, count, place) }));
                }
            }
        }
    }
    cases
}

/// Memory of the communicator, which local ranks can map.
/// Around the sizes at which small calls change their way: in a notice, in front of one, too large
/// for both. Each several times over, so that places are used again.
fn flat(place: Place) -> Vec<Case> {
    let quick = [1, 12, 13, 4097];
    let usual = [0, 1, 2, 11, 12, 13, 255, 1366, 2048, 4096, 4097, 8192, 8193];
    let counts: &[usize] = if place.depth == Depth::Quick { &quick } else { &usual };
    let mut cases = Vec::new();
    for kind in Kind::all() {
        for (number, &count) in counts.iter().enumerate() {
            for root in roots(kind, place) {
                for &in_place in placements(kind) {
                    let op = if number % 2 == 0 { ReduceOp::Sum } else { ReduceOp::Max };
                    let dtype = if in_place { Dtype::F16 } else { Dtype::F32 };
                    let made = Shape { root, in_place, op, ..shape(kind, dtype, count, place) };
                    let mut case = call(made, Flavor::Exact, Source::Plain);
                    if let Act::Call(call) = &mut case.act {
                        call.repeats = 3;
                    }
                    cases.push(case);
                }
            }
        }
    }
    cases
}

fn registered(place: Place) -> Vec<Case> {
    let counts: &[usize] =
        if place.depth == Depth::Quick { &[0, 1, 1009] } else { &[0, 1, 63, 64, 1009, 100_003] };
    let mut cases = Vec::new();
    for kind in Kind::all().filter(|kind| *kind != Kind::Collective(Collective::Barrier)) {
        for &count in counts {
            for root in roots(kind, place) {
                for &in_place in placements(kind) {
                    for dtype in [Dtype::F32, Dtype::F16] {
                        if place.depth == Depth::Quick && in_place != (dtype == Dtype::F16) {
                            continue;
                        }
                        let made = Shape { root, in_place, ..shape(kind, dtype, count, place) };
                        cases.push(call(made, Flavor::Exact, Source::Registered));
                    }
                }
            }
        }
    }
    cases
}

fn specials(list: &[(&str, Special)]) -> Vec<Case> {
    let case =
        |&(name, act): &(&str, Special)| Case { name: name.to_owned(), act: Act::Special(act) };
    list.iter().map(case).collect()
}

/// Several calls in flight at once.
fn together(_: Place) -> Vec<Case> {
    specials(&[
        ("many requests, waited for in reverse order", special::reversed_waits),
        ("many requests, tested until all have ended", special::tests),
        ("many requests, ended by wait_any", special::waits_for_any),
        ("requests beside a blocking call", special::beside_blocking),
        ("a group of different collectives", special::mixed_group),
        ("a group of messages between all pairs", special::all_pairs),
        ("an empty group", special::empty_group),
        ("many messages to one peer keep their order", special::ordered_messages),
        ("messages beside collectives", special::messages_beside_collectives),
        ("a wait that is too short, then the end", special::short_wait),
        ("any calls in any order, with ranks that come late", sequence::any),
        ("small calls with a root, and ranks far ahead of others", sequence::ahead),
    ])
}

/// Communicators beside and inside each other.
fn communicators(_: Place) -> Vec<Case> {
    specials(&[
        ("split by parity, keys reversed", special::split_by_parity),
        ("a negative color gets none", special::split_without_some),
        ("a split of a split", special::split_twice),
        ("several in flight from several threads", special::from_many_threads),
        ("memory that comes and goes", special::memory_that_comes_and_goes),
        ("formed and ended ten times", special::formed_again_and_again),
    ])
}

/// Errors, what they name, and what they leave usable.
fn errors(place: Place) -> Vec<Case> {
    let mut cases = specials(&[
        ("wrong arguments are named and leave the communicator usable", fault::wrong_arguments),
        ("combinations without meaning are refused", fault::no_meaning),
        ("groups out of order are refused", fault::group_state),
    ]);
    let pairs: &[(&str, Special)] = &[
        ("a second thread gets BUSY", fault::busy),
        ("counts that differ are named on all ranks", fault::different_counts),
        ("types that differ are named on all ranks", fault::different_types),
        ("operations that differ are named on all ranks", fault::different_operations),
        ("roots that differ are named on all ranks", fault::different_roots),
        ("calls that differ are named on all ranks", fault::different_calls),
        ("counts of blocks that differ are named on all ranks", fault::different_blocks),
        ("calls that differ are named by ranks far ahead", fault::different_far_ahead),
        ("counts of pairs that differ are named on all ranks", fault::different_pairs),
        ("modes that differ are named on all ranks", fault::different_modes),
        ("all_to_all in place on one rank alone is named on all", fault::different_places),
        ("a message of another length is named on both ranks", fault::different_messages),
        ("abort ends a blocked call on every rank", fault::abort),
        ("a rank that does not come is named when time is up", fault::absent),
        ("a rank that has left is named", fault::left),
        ("a rank that only waits is not blamed when time is up", late::who_waits_is_not_blamed),
        ("a late rank is not given what was written after a failure", late::after_a_failure),
    ];
    if place.world > 1 {
        cases.extend(specials(pairs));
    } else {
        cases.extend(
            pairs.iter().map(|(name, _)| Case {
                name: (*name).to_owned(),
                act: Act::Skip("takes two ranks"),
            }),
        );
    }
    cases
}

/// An algorithm that is not ours to choose.
fn foreign(algorithm: Algorithm) -> Section {
    let reason = "MPI chooses its algorithms itself";
    let cases = vec![Case { name: "collectives".to_owned(), act: Act::Skip(reason) }];
    let name = format!("algorithm {}", algorithm.name());
    Section { name, config: Config::default(), cases }
}

/// Every collective an algorithm offers, by that algorithm.
fn algorithms(place: Place, algorithm: Algorithm) -> Section {
    let config = Config { algorithm: Some(algorithm), tile_bytes: TILE_BYTES, ..Config::default() };
    let direct = algorithm == Algorithm::Direct;
    let source = if direct { Source::Registered } else { Source::Plain };
    let counts: &[usize] =
        if place.depth == Depth::Quick { &[1, 331] } else { &[0, 1, 3, 64, 331, 5003] };
    let mut cases = Vec::new();
    for &collective in Collective::ALL.iter().filter(|c| !c.point_to_point()) {
        let kind = Kind::Collective(collective);
        let power = place.world.is_power_of_two();
        let skip = match (algorithm, collective) {
            (Algorithm::Direct | Algorithm::Staged, _) if place.link == Link::Tcp => {
                Some("the algorithm needs memory that all ranks can map")
            }
            (Algorithm::Doubling, Collective::AllGather | Collective::AllGatherV)
            | (Algorithm::Halving, Collective::ReduceScatter | Collective::ReduceScatterV)
                if !power =>
            {
                Some("this collective by this algorithm takes a power of two")
            }
            (algorithm, collective) if !algo::offers(algorithm, collective) => {
                Some("the algorithm does not offer this collective")
            }
            _ => None,
        };
        if let Some(reason) = skip {
            cases.push(Case { name: collective.name().to_owned(), act: Act::Skip(reason) });
            continue;
        }
        for &count in counts {
            for root in roots(kind, place) {
                for &in_place in placements(kind) {
                    let op = if count % 2 == 0 { ReduceOp::Sum } else { ReduceOp::Avg };
                    let dtype = if in_place { Dtype::Bf16 } else { Dtype::F32 };
                    let made = Shape { root, in_place, op, ..shape(kind, dtype, count, place) };
                    cases.push(call(made, Flavor::Exact, source));
                }
            }
        }
        if collective.reduces() {
            let made = shape(kind, Dtype::F32, 331, place);
            let op = ReduceOp::PreMulSum;
            cases.push(call(Shape { op, ..made }, Flavor::Exact, source));
        }
    }
    Section { name: format!("algorithm {}", algorithm.name()), config, cases }
}

/// Order-sensitive data by every ordered algorithm and several tiles: bits as the tree order gives
/// them.
fn deterministic(place: Place) -> impl Iterator<Item = Section> {
    let ours: &[Algorithm] = if place.link == Link::Mpi { &[] } else { Algorithm::ALL };
    let algorithms = [None].into_iter().chain(ours.iter().copied().map(Some));
    algorithms.flat_map(move |algorithm| {
        let tiles: &[u32] = match (place.depth, algorithm) {
            (Depth::Quick, Some(_)) => &[192],
            (Depth::Quick, None) => &[64, 65_536],
            _ => &[64, 4_096, 65_536],
        };
        tiles.iter().map(move |&tile_bytes| {
            let config = Config { algorithm, tile_bytes, deterministic: true, ..Config::default() };
            let name = algorithm.map_or("chosen", Algorithm::name);
            Section {
                name: format!("deterministic, {name}, tiles of {tile_bytes}"),
                config,
                cases: ordered(place, algorithm),
            }
        })
    })
}

fn ordered(place: Place, algorithm: Option<Algorithm>) -> Vec<Case> {
    let mut cases = Vec::new();
    let reducing = Collective::ALL.iter().copied().filter(|c| c.reduces());
    for collective in reducing {
        let kind = Kind::Collective(collective);
        if algorithm.is_some_and(|a| !algo::offers(a, collective)) {
            let reason = "the algorithm does not offer this collective";
            cases.push(Case { name: collective.name().to_owned(), act: Act::Skip(reason) });
            continue;
        }
        let floats = Dtype::ALL.iter().filter(|d| d.class() != Class::Integer);
        for (number, &dtype) in floats.enumerate() {
            let ops = [ReduceOp::Sum, ReduceOp::Prod, ReduceOp::Avg, ReduceOp::PreMulSum];
            let all = place.depth > Depth::Quick || (algorithm.is_none() && number % 3 == 0);
            for (turn, &op) in ops.iter().enumerate() {
                if !all && turn != number % ops.len() {
                    continue;
                }
                // An algorithm that is not ordered must give way to one that is.
                let direct = algorithm == Some(Algorithm::Direct);
                let source = if direct { Source::Registered } else { Source::Plain };
                let root = place.world - 1;
                let made = Shape { op, root, ..shape(kind, dtype, 419, place) };
                let mut case = call(made, Flavor::Ordered, source);
                if let Act::Call(call) = &mut case.act {
                    call.repeats = 2;
                }
                cases.push(case);
            }
        }
    }
    if algorithm.is_none() {
        let name = "the same work on 1, 2, 4 and 8 ranks gives the same bits".to_owned();
        let act = if 8 % place.world == 0 {
            Act::Special(special::same_work)
        } else {
            Act::Skip("8 parts cannot be dealt out evenly")
        };
        cases.push(Case { name, act });
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_so_that_a_filter_finds_one_case() {
        for depth in [Depth::Quick, Depth::Full] {
            for world in [1, 2, 3, 4] {
                let mut seen = std::collections::HashSet::new();
                for section in sections(world, Link::Shm, depth) {
                    for case in &section.cases {
                        let name = format!("{}: {}", section.name, case.name);
                        assert!(seen.insert(name.clone()), "{world}: {name}");
                    }
                }
            }
        }
    }
}
