//! Calls by their shape: which elements of which buffer each rank reads and must find afterwards.

use unisono::{Collective, Dtype, ReduceOp};

use super::pattern::Origin;

/// What is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// One collective.
    Collective(Collective),
    /// Each rank sends to the next and receives from the one before.
    SendRecv,
    /// Each even rank sends to the next, which sends as much back. A last one without a partner
    /// looks on.
    PingPong,
}

impl Kind {
    /// Every kind that can be named.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let collectives = Collective::ALL.iter().copied().filter(|c| !c.point_to_point());
        collectives.map(Self::Collective).chain([Self::SendRecv, Self::PingPong])
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Collective(collective) => collective.name(),
            Self::SendRecv => "sendrecv",
            Self::PingPong => "pingpong",
        }
    }

    /// The kind of this name, in this project's words or those of nccl-tests and MPI.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        let plain = |text: &str| text.to_lowercase().replace(['_', '-'], "");
        let name = plain(name);
        let name = match name.as_str() {
            "bcast" => "broadcast",
            name => name.strip_suffix("perf").unwrap_or(name),
        };
        Self::all().find(|kind| plain(kind.name()) == name)
    }

    /// The calls that rank `me` makes, in the order in which it makes them one by one.
    pub(crate) const fn calls(&self, me: usize, world: usize) -> &[Collective] {
        match self {
            Self::Collective(one) => std::slice::from_ref(one),
            Self::PingPong if self.looks_on(me, world) => &[],
            Self::PingPong if me % 2 == 1 => &[Collective::Recv, Collective::Send],
            Self::SendRecv | Self::PingPong => &[Collective::Send, Collective::Recv],
        }
    }

    /// How often the data crosses, one time after the other, in a call.
    pub(crate) const fn trips(self) -> f64 {
        if matches!(self, Self::PingPong) { 2.0 } else { 1.0 }
    }

    /// Not a collective.
    pub(crate) const fn point_to_point(self) -> bool {
        matches!(self, Self::SendRecv | Self::PingPong)
    }

    /// Whether rank `me` has nothing to do.
    pub(crate) const fn looks_on(self, me: usize, world: usize) -> bool {
        matches!(self, Self::PingPong) && me ^ 1 >= world
    }

    /// The ranks to which rank `me` sends, and from which it receives.
    fn neighbours(self, me: usize, world: usize) -> (usize, usize) {
        let partner = if me ^ 1 < world { me ^ 1 } else { me };
        match self {
            Self::PingPong => (partner, partner),
            _ => ((me + 1) % world, (me + world - 1) % world),
        }
    }

    pub(crate) fn reduces(self) -> bool {
        self.is(Collective::reduces)
    }

    pub(crate) fn rooted(self) -> bool {
        self.is(Collective::rooted)
    }

    pub(crate) fn ragged(self) -> bool {
        self.is(Collective::ragged)
    }

    fn is(self, property: fn(Collective) -> bool) -> bool {
        matches!(self, Self::Collective(collective) if property(collective))
    }

    /// Whether input and output may be the same memory.
    pub(crate) fn has_in_place(self) -> bool {
        !self.point_to_point() && self != Self::Collective(Collective::Barrier)
    }
}

/// A call, the same on every rank but for what rank numbers decide.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) kind: Kind,
    pub(crate) dtype: Dtype,
    pub(crate) op: ReduceOp,
    pub(crate) root: u32,
    /// Elements: of the buffer or of one block.
    pub(crate) count: usize,
    /// Elements of each rank's block in the `v` forms. Rank a sends `counts[(a + b) % n]` to rank
    /// b.
    pub(crate) counts: Vec<usize>,
    /// Elements between blocks of the `v` forms.
    pub(crate) gap: usize,
    pub(crate) in_place: bool,
    /// Elements by which buffers are off a page boundary.
    pub(crate) skew: usize,
}

impl Shape {
    pub(crate) fn new(kind: Kind, dtype: Dtype, count: usize, world: usize) -> Self {
        Self {
            kind,
            dtype,
            op: ReduceOp::Sum,
            root: 0,
            count,
            counts: vec![count; world],
            gap: 0,
            in_place: false,
            skew: 0,
        }
    }
}

/// Some elements and where they come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) at: usize,
    pub(crate) count: usize,
    pub(crate) origin: Origin,
    /// Index of the first in its pattern.
    pub(crate) start: usize,
}

/// The shape as one rank sees it. Positions are in elements.
#[derive(Debug, Default)]
pub(crate) struct Layout {
    pub(crate) send_elements: usize,
    /// In place: of the buffer that holds both.
    pub(crate) recv_elements: usize,
    pub(crate) send_before: Vec<Piece>,
    pub(crate) recv_before: Vec<Piece>,
    pub(crate) recv_after: Vec<Piece>,
    /// Where the arguments point.
    pub(crate) send_at: usize,
    pub(crate) recv_at: usize,
    pub(crate) count: u64,
    pub(crate) send_counts: Vec<u64>,
    pub(crate) send_displacements: Option<Vec<u64>>,
    pub(crate) recv_counts: Vec<u64>,
    pub(crate) recv_displacements: Option<Vec<u64>>,
    pub(crate) next: u32,
    pub(crate) previous: u32,
}

/// What a rank sends and receives, each in its own buffer.
#[derive(Debug, Default)]
struct Ends {
    send: Vec<Piece>,
    recv: Vec<Piece>,
    /// In place: where the arguments point in the common buffer.
    places: (usize, usize),
}

/// Data for different peers comes from places this far apart in a pattern.
const STRIDE: usize = 1009;

impl Layout {
    pub(crate) fn new(shape: &Shape, me: usize, world: usize) -> Self {
        let ends = ends(shape, me, world);
        let (next, previous) = shape.kind.neighbours(me, world);
        let mut layout = Self {
            next: number(next),
            previous: number(previous),
            count: shape.count as u64,
            ..Self::default()
        };
        layout.set_blocks(shape, me, world);
        let length = |pieces: &[Piece]| pieces.iter().map(|p| p.at + p.count).max().unwrap_or(0);
        let (send, recv) = (length(&ends.send), length(&ends.recv));
        if shape.in_place {
            let (send_at, recv_at) = ends.places;
            (layout.send_at, layout.recv_at) = ends.places;
            layout.recv_elements = (send_at + send).max(recv_at + recv);
            layout.recv_before = overlay(layout.recv_elements, &[(&ends.send, send_at)]);
            let both = [(&ends.send[..], send_at), (&ends.recv, recv_at)];
            layout.recv_after = overlay(layout.recv_elements, &both);
        } else {
            (layout.send_elements, layout.recv_elements) = (send, recv);
            layout.send_before = overlay(send, &[(&ends.send, 0)]);
            layout.recv_before = overlay(recv, &[]);
            layout.recv_after = overlay(recv, &[(&ends.recv, 0)]);
        }
        layout
    }

    /// Counts and displacements of the `v` forms.
    fn set_blocks(&mut self, shape: &Shape, me: usize, world: usize) {
        use Collective as C;
        let Kind::Collective(collective) = shape.kind else { return };
        if !collective.ragged() {
            return;
        }
        let counts = if collective == C::AllToAllV {
            (0..world).map(|peer| shape.counts[(me + peer) % world]).collect()
        } else {
            shape.counts.clone()
        };
        self.count = shape.counts[me] as u64;
        let displacements = (shape.gap > 0 && collective != C::ReduceScatterV)
            .then(|| places(&counts, shape.gap).map(|at| at as u64).collect::<Vec<_>>());
        let counts: Vec<u64> = counts.iter().map(|&c| c as u64).collect();
        if matches!(collective, C::ScatterV | C::AllToAllV) {
            (self.send_counts, self.send_displacements) = (counts.clone(), displacements.clone());
        }
        if collective != C::ScatterV {
            (self.recv_counts, self.recv_displacements) = (counts, displacements);
        }
    }
}

fn number(rank: usize) -> u32 {
    u32::try_from(rank).expect("worlds are bounded")
}

/// Where blocks begin, with a gap before each.
fn places(counts: &[usize], gap: usize) -> impl Iterator<Item = usize> {
    counts.iter().scan(0, move |next, &count| {
        let at = *next + gap;
        *next = at + count;
        Some(at)
    })
}

fn ends(shape: &Shape, me: usize, world: usize) -> Ends {
    use Collective as C;
    let root = shape.root as usize;
    let (at_root, count) = (me == root, shape.count);
    let own = Origin::Rank(me);
    let piece = |at, count, origin, start| Piece { at, count, origin, start };
    let mine = |count| vec![piece(0, count, own, 0)];
    let from = |rank: usize, count, start| vec![piece(0, count, Origin::Rank(rank), start)];
    let when = |condition: bool, pieces: Vec<Piece>| if condition { pieces } else { Vec::new() };
    let Kind::Collective(collective) = shape.kind else {
        let (_, before) = shape.kind.neighbours(me, world);
        let count = if shape.kind.looks_on(me, world) { 0 } else { count };
        return Ends { send: mine(count), recv: from(before, count, 0), places: (0, 0) };
    };
    // Blocks of every rank, all from the start of its pattern.
    let gathered = |counts: &[usize], gap| -> Vec<Piece> {
        let blocks = counts.iter().zip(places(counts, gap)).enumerate();
        blocks.map(|(r, (&count, at))| piece(at, count, Origin::Rank(r), 0)).collect()
    };
    // Blocks for every rank, each from its own place in the pattern.
    let scattered = |counts: &[usize], gap| -> Vec<Piece> {
        let blocks = counts.iter().zip(places(counts, gap)).enumerate();
        blocks.map(|(r, (&count, at))| piece(at, count, own, r * STRIDE)).collect()
    };
    let reduced = |count, start| vec![piece(0, count, Origin::Reduced, start)];
    let (equal, ragged, gap) = (vec![count; world], &shape.counts, shape.gap);
    let place = |counts: &[usize], gap| places(counts, gap).nth(me).unwrap_or(0);
    match collective {
        C::AllReduce => Ends { send: mine(count), recv: reduced(count, 0), places: (0, 0) },
        C::Reduce => {
            let recv = when(at_root, reduced(count, 0));
            Ends { send: mine(count), recv, places: (0, 0) }
        }
        C::Broadcast => {
            let send = when(at_root, mine(count));
            Ends { send, recv: from(root, count, 0), places: (0, 0) }
        }
        C::AllGather => {
            Ends { send: mine(count), recv: gathered(&equal, 0), places: (me * count, 0) }
        }
        C::Gather => Ends {
            send: mine(count),
            recv: when(at_root, gathered(&equal, 0)),
            places: if at_root { (me * count, 0) } else { (0, 0) },
        },
        C::AllGatherV => Ends {
            send: mine(ragged[me]),
            recv: gathered(ragged, gap),
            places: (place(ragged, gap), 0),
        },
        C::GatherV => Ends {
            send: mine(ragged[me]),
            recv: when(at_root, gathered(ragged, gap)),
            places: if at_root { (place(ragged, gap), 0) } else { (0, 0) },
        },
        C::ReduceScatter => Ends {
            send: mine(count * world),
            recv: reduced(count, me * count),
            places: (0, me * count),
        },
        C::ReduceScatterV => Ends {
            send: mine(ragged.iter().sum()),
            recv: reduced(ragged[me], place(ragged, 0)),
            places: (0, place(ragged, 0)),
        },
        C::Scatter => Ends {
            send: when(at_root, scattered(&equal, 0)),
            recv: from(root, count, me * STRIDE),
            places: if at_root { (0, me * count) } else { (0, 0) },
        },
        C::ScatterV => Ends {
            send: when(at_root, scattered(ragged, gap)),
            recv: from(root, ragged[me], me * STRIDE),
            places: if at_root { (0, place(ragged, gap)) } else { (0, 0) },
        },
        C::AllToAll => {
            Ends { send: scattered(&equal, 0), recv: exchanged(&equal, 0, me), places: (0, 0) }
        }
        C::AllToAllV => {
            let counts: Vec<usize> = (0..world).map(|peer| ragged[(me + peer) % world]).collect();
            let recv = exchanged(&counts, gap, me);
            Ends { send: scattered(&counts, gap), recv, places: (0, 0) }
        }
        C::Barrier | C::Send | C::Recv => Ends::default(),
    }
}

/// Blocks from every rank, each from the place in its pattern that is for rank `me`.
fn exchanged(counts: &[usize], gap: usize, me: usize) -> Vec<Piece> {
    let blocks = counts.iter().zip(places(counts, gap)).enumerate();
    blocks
        .map(|(r, (&count, at))| Piece { at, count, origin: Origin::Rank(r), start: me * STRIDE })
        .collect()
}

/// A buffer of `length` poisoned elements with layers of pieces on it, each shifted; the pieces
/// that remain visible, in order, without holes.
fn overlay(length: usize, layers: &[(&[Piece], usize)]) -> Vec<Piece> {
    let ground = Piece { at: 0, count: length, origin: Origin::Poison, start: 0 };
    let mut visible = vec![ground];
    let tops = layers.iter().flat_map(|(pieces, shift)| {
        pieces.iter().map(move |piece| Piece { at: piece.at + shift, ..*piece })
    });
    for top in tops {
        let end = top.at + top.count;
        let cut = |old: Piece| {
            let old_end = old.at + old.count;
            let left = Piece { count: top.at.clamp(old.at, old_end) - old.at, ..old };
            let from = end.clamp(old.at, old_end);
            let right = Piece {
                at: from,
                count: old_end - from,
                start: old.start + (from - old.at),
                ..old
            };
            [left, right]
        };
        // A piece that the top covers leaves nothing, one it does not touch comes back whole.
        let touched = |old: &Piece| old.at < end && top.at < old.at + old.count;
        visible = visible
            .into_iter()
            .flat_map(|old| if touched(&old) { cut(old).to_vec() } else { vec![old] })
            .chain([top])
            .filter(|piece| piece.count > 0)
            .collect();
    }
    visible.sort_by_key(|piece| piece.at);
    visible
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_cover_each_other_and_leave_no_hole() {
        let piece = |at, count, rank, start| Piece { at, count, origin: Origin::Rank(rank), start };
        let seen = overlay(10, &[(&[piece(0, 6, 1, 0)], 2), (&[piece(0, 2, 2, 9)], 4)]);
        let poison = |at, count| Piece { at, count, origin: Origin::Poison, start: at };
        assert_eq!(
            seen,
            [poison(0, 2), piece(2, 2, 1, 0), piece(4, 2, 2, 9), piece(6, 2, 1, 4), poison(8, 2)]
        );
    }

    #[test]
    fn names_of_other_tests_are_understood() {
        for (name, kind) in [
            ("alltoall", Kind::Collective(Collective::AllToAll)),
            ("all_reduce_perf", Kind::Collective(Collective::AllReduce)),
            ("reduce-scatter", Kind::Collective(Collective::ReduceScatter)),
            ("bcast", Kind::Collective(Collective::Broadcast)),
            ("sendrecv", Kind::SendRecv),
            ("send_recv", Kind::SendRecv),
            ("ping-pong", Kind::PingPong),
        ] {
            assert_eq!(Kind::from_name(name), Some(kind), "{name}");
        }
        assert_eq!(Kind::from_name("send"), None);
    }
}
