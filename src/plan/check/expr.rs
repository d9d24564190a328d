//! Symbolic values: which contributions a chunk holds and in which order they were combined.

/// An expression, by number. Equal expressions have equal numbers.
pub(super) type Expr = u32;

/// The number that stands for no expression.
pub(super) const NOTHING: Expr = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Node {
    /// The ranks whose contributions are in it, one bit each.
    ranks: u128,
    /// The chunk (of Input) that all of them come from.
    chunk: u32,
    /// Whether the contributions are multiplied by their factors.
    prepared: bool,
    /// Operands, or `NOTHING` for a leaf.
    operands: (Expr, Expr),
}

/// All expressions of one proof.
#[derive(Debug)]
pub(super) struct Exprs {
    world: u32,
    chunks: u32,
    nodes: Vec<Node>,
    /// Open addressing over `nodes`, a power of two of entries.
    table: Vec<Expr>,
}

impl Exprs {
    /// Leaves for `world` ranks (at most 128) of `chunks` Input chunks each.
    pub(super) fn new(world: u32, chunks: u32) -> Self {
        let leaf = |number: u32| Node {
            ranks: 1 << (number / chunks % world),
            chunk: number % chunks,
            prepared: number >= world * chunks,
            operands: (NOTHING, NOTHING),
        };
        let mut exprs = Self {
            world,
            chunks,
            nodes: (0..2 * world * chunks).map(leaf).collect(),
            table: Vec::new(),
        };
        exprs.grow(1024);
        exprs
    }

    /// Chunk `chunk` of the Input of `rank`.
    pub(super) fn leaf(&self, rank: u32, chunk: u32) -> Expr {
        rank * self.chunks + chunk
    }

    /// A leaf multiplied by its rank's factor.
    pub(super) fn prepare(&self, leaf: Expr) -> Result<Expr, String> {
        if leaf >= self.world * self.chunks {
            return Err(format!("prepares {}, which is no fresh contribution", self.text(leaf)));
        }
        Ok(leaf + self.world * self.chunks)
    }

    /// Whether the native form holds it without loss: a contribution as the caller gave it.
    pub(super) fn exact(&self, expr: Expr) -> bool {
        expr < self.world * self.chunks
    }

    pub(super) fn ranks(&self, expr: Expr) -> u128 {
        self.nodes[expr as usize].ranks
    }

    pub(super) fn chunk(&self, expr: Expr) -> u32 {
        self.nodes[expr as usize].chunk
    }

    pub(super) fn prepared(&self, expr: Expr) -> bool {
        self.nodes[expr as usize].prepared
    }

    /// `a` combined with `b`, in this order.
    pub(super) fn combine(&mut self, a: Expr, b: Expr) -> Result<Expr, String> {
        let (x, y) = (self.nodes[a as usize], self.nodes[b as usize]);
        if x.ranks & y.ranks != 0 {
            let rank = (x.ranks & y.ranks).trailing_zeros();
            let (a, b) = (self.text(a), self.text(b));
            return Err(format!("counts rank {rank} twice: {a} + {b}"));
        }
        if x.chunk != y.chunk || x.prepared != y.prepared {
            let (a, b) = (self.text(a), self.text(b));
            return Err(format!("combines what does not belong together: {a} + {b}"));
        }
        if self.nodes.len() * 2 > self.table.len() {
            self.grow(self.table.len() * 4);
        }
        let mask = self.table.len() - 1;
        let mut at = hash(a, b) & mask;
        loop {
            let found = self.table[at];
            if found == NOTHING {
                break;
            }
            if self.nodes[found as usize].operands == (a, b) {
                return Ok(found);
            }
            at = (at + 1) & mask;
        }
        let number = Expr::try_from(self.nodes.len()).expect("expressions are few");
        self.table[at] = number;
        self.nodes.push(Node { ranks: x.ranks | y.ranks, operands: (a, b), ..x });
        Ok(number)
    }

    /// The balanced tree over `parts`, which are in rank order.
    pub(super) fn tree(&mut self, parts: &[Expr]) -> Result<Expr, String> {
        if parts.len() == 1 {
            return Ok(parts[0]);
        }
        let (low, high) = parts.split_at(parts.len().next_power_of_two() / 2);
        let (low, high) = (self.tree(low)?, self.tree(high)?);
        self.combine(low, high)
    }

    fn grow(&mut self, entries: usize) {
        let entries = entries.max(self.nodes.len().next_power_of_two() * 4);
        self.table.clear();
        self.table.resize(entries, NOTHING);
        let leaves = 2 * (self.world * self.chunks) as usize;
        for (number, node) in self.nodes.iter().enumerate().skip(leaves) {
            let mut at = hash(node.operands.0, node.operands.1) & (entries - 1);
            while self.table[at] != NOTHING {
                at = (at + 1) & (entries - 1);
            }
            self.table[at] = Expr::try_from(number).expect("expressions are few");
        }
    }

    /// The expression as text, cut where it grows long: `((0+1)+2)[chunk]`.
    pub(super) fn text(&self, expr: Expr) -> String {
        if expr == NOTHING {
            return "nothing".into();
        }
        let node = &self.nodes[expr as usize];
        let mut text = String::new();
        self.write(expr, &mut text);
        let factor = if node.prepared { " multiplied" } else { "" };
        format!("{text}[{}]{factor}", node.chunk)
    }

    fn write(&self, expr: Expr, text: &mut String) {
        let node = &self.nodes[expr as usize];
        if node.operands.0 == NOTHING {
            text.push_str(&node.ranks.trailing_zeros().to_string());
        } else if text.len() > 60 {
            text.push_str("..");
        } else {
            text.push('(');
            self.write(node.operands.0, text);
            text.push('+');
            self.write(node.operands.1, text);
            text.push(')');
        }
    }
}

fn hash(a: Expr, b: Expr) -> usize {
    let key = (u64::from(a) << 32 | u64::from(b)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    usize::try_from(key >> 34).expect("30 bits")
}
