//! `unisono plan`: collectives as the library sees them.

use std::path::PathBuf;
use std::process::ExitCode;

use unisono::algo::{self, Hosts};
use unisono::plan::check::{Options as Thoroughness, Proof, check};
use unisono::plan::svg::svg;
use unisono::plan::{Algorithm, Key, Plan};
use unisono::types::WORLD_MAX;
use unisono::{Collective, Rank, ReduceOp};

use super::table::Table;
use super::{fail, output, print, usage};

/// The checker's limit.
const CHECKED_MAX: u32 = 128;
/// Worlds proved without being asked to: larger ones take a while.
const PROVED_MAX: u32 = 32;

/// Print, prove or draw the plan of a collective
///
/// A plan is a collective as data: the steps one rank takes on the chunks of its buffers. Without
/// --algo, the algorithms that do the collective are compared.
#[derive(clap::Args, Debug)]
#[command(verbatim_doc_comment)]
pub(crate) struct Options {
    /// all_reduce, broadcast, all_to_all, ...
    collective: String,
    /// Number of ranks
    #[arg(short = 'n', long, value_name = "N", required_unless_present = "hosts")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=i64::from(WORLD_MAX)))]
    ranks: Option<u32>,
    /// ring, pairwise, doubling, ...
    #[arg(short, long, value_name = "NAME")]
    algo: Option<String>,
    /// Root of a rooted collective, peer of send and recv [default: 0; of a peer: the next rank]
    #[arg(short, long, value_name = "RANK")]
    root: Option<u32>,
    /// Whose plan
    #[arg(long, default_value_t = 0, conflicts_with = "all")]
    rank: u32,
    /// Every rank's plan
    #[arg(long)]
    all: bool,
    /// Ranks on each host, such as 2,2,4 (for hierarchical)
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    hosts: Vec<u32>,
    /// Operation of a reduction; pre_mul_sum changes the plan
    #[arg(long, default_value = "sum", value_name = "OP")]
    op: String,
    /// Draw all ranks' plans into this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Prove the plans of worlds of more than 32 ranks too (up to 128)
    #[arg(long)]
    check: bool,
}

/// What is asked, checked.
struct Question {
    collective: Collective,
    world: u32,
    rank: Rank,
    root: Rank,
    hosts: Option<Hosts>,
    prepared: bool,
}

impl Question {
    fn read(options: &Options) -> Result<Self, String> {
        let names = |all: &[&str]| all.join(", ");
        let collective = Collective::from_name(&options.collective).ok_or_else(|| {
            let all: Vec<_> = Collective::ALL.iter().map(|c| c.name()).collect();
            format!("no collective \"{}\"; there are {}", options.collective, names(&all))
        })?;
        let op = ReduceOp::from_name(&options.op).ok_or_else(|| {
            let all: Vec<_> = ReduceOp::ALL.iter().map(|c| c.name()).collect();
            format!("no operation \"{}\"; there are {}", options.op, names(&all))
        })?;
        let hosts = hosts(&options.hosts)?;
        let world = match (options.ranks, &hosts) {
            (Some(ranks), Some(hosts)) if hosts.world() != ranks => {
                return Err(format!("the hosts have {} ranks, not {ranks}", hosts.world()));
            }
            (Some(ranks), _) => ranks,
            (None, Some(hosts)) => hosts.world(),
            (None, None) => return Err("--ranks is missing".to_owned()),
        };
        let peer = if collective.point_to_point() { (options.rank + 1) % world } else { 0 };
        let root = options.root.unwrap_or(peer);
        for (what, rank) in [("--rank", options.rank), ("--root", root)] {
            if rank >= world {
                return Err(format!("{what} {rank} is not a rank of a world of {world}"));
            }
        }
        Ok(Self {
            collective,
            world,
            rank: Rank(options.rank),
            root: Rank(root),
            hosts,
            prepared: op == ReduceOp::PreMulSum && collective.reduces(),
        })
    }

    fn plan(&self, algorithm: Algorithm, rank: Rank) -> Option<Plan> {
        let (mut collective, mut root) = (self.collective, self.root);
        if collective.point_to_point() && rank == self.root && rank != self.rank {
            // The other end.
            let other = [Collective::Send, Collective::Recv];
            collective = other[usize::from(collective == Collective::Send)];
            root = self.rank;
        }
        let (world, prepared) = (self.world, self.prepared);
        let key = Key { collective, algorithm, world, rank, root, prepared };
        algo::plan(&key, self.hosts.as_ref())
    }

    fn world(&self, algorithm: Algorithm) -> Option<Vec<Plan>> {
        (0..self.world).map(|rank| self.plan(algorithm, Rank(rank))).collect()
    }

    /// Algorithms that answer it.
    fn offered(&self) -> impl Iterator<Item = Algorithm> + '_ {
        Algorithm::ALL.iter().copied().filter(|&a| self.plan(a, self.rank).is_some())
    }

    /// Why `algorithm` does not answer it, and which do.
    fn refusal(&self, algorithm: Algorithm) -> String {
        let (kind, name, world) = (self.collective, algorithm.name(), self.world);
        let offered: Vec<_> = self.offered().map(Algorithm::name).collect();
        let instead = if offered.is_empty() { "none does".to_owned() } else { offered.join(", ") };
        let why = if !algo::offers(algorithm, kind) {
            format!("{name} does not do {kind}")
        } else if algorithm == Algorithm::Hierarchical && self.hosts.is_none() {
            return format!("{name} needs the ranks on each host: --hosts 2,2,4");
        } else if algorithm == Algorithm::Direct && self.prepared {
            format!("{name} does not do pre_mul_sum")
        } else {
            format!("{name} does not do {kind} in a world of {world}")
        };
        format!("{why}; these do: {instead}")
    }

    fn can_check(&self) -> bool {
        // Between two ranks of many, the others have no plans.
        self.world <= CHECKED_MAX && (!self.collective.point_to_point() || self.world == 2)
    }
}

fn hosts(sizes: &[u32]) -> Result<Option<Hosts>, String> {
    if sizes.is_empty() {
        return Ok(None);
    }
    let total: u64 = sizes.iter().map(|&n| u64::from(n)).sum();
    if sizes.contains(&0) || total > u64::from(WORLD_MAX) {
        return Err(format!("--hosts: each has at least 1 rank, all at most {WORLD_MAX}"));
    }
    let marks: Vec<u32> =
        (0..).zip(sizes).flat_map(|(host, &n)| std::iter::repeat_n(host, n as usize)).collect();
    Ok(Hosts::new(&marks))
}

/// Runs the subcommand.
pub(crate) fn main(options: &Options) -> ExitCode {
    let question = match Question::read(options) {
        Ok(question) => question,
        Err(what) => return usage(format_args!("plan: {what}")),
    };
    let Some(name) = &options.algo else {
        if options.svg.is_some() {
            return usage("plan: --svg draws the plans of one algorithm: name it with --algo");
        }
        return compare(&question);
    };
    let Some(algorithm) = Algorithm::from_name(name) else {
        let all: Vec<_> = Algorithm::ALL.iter().map(|a| a.name()).collect();
        return usage(format_args!("plan: no algorithm \"{name}\"; there are {}", all.join(", ")));
    };
    let Some(own) = question.plan(algorithm, question.rank) else {
        return usage(format_args!("plan: {}", question.refusal(algorithm)));
    };
    let prove = question.can_check() && (options.check || question.world <= PROVED_MAX);
    if options.check && !prove {
        return usage(format_args!("plan: the checker takes whole worlds of up to {CHECKED_MAX}"));
    }
    let wanted = prove || options.svg.is_some();
    let plans = if wanted { question.world(algorithm).unwrap_or_default() } else { Vec::new() };
    if options.all {
        show_all(&question, algorithm);
    } else {
        output::text(&own.to_string());
    }
    let mut text = String::new();
    let mut flawed = false;
    if prove {
        match check(&plans, Thoroughness::for_world(plans.len())) {
            Ok(proof) => text += &format!("\n{}\n", proved(&question, &proof)),
            Err(flaw) => {
                text += &format!("\nflaw: {flaw}\n");
                flawed = true;
            }
        }
    }
    if let Some(file) = &options.svg
        && let Err(error) = std::fs::write(file, svg(&plans))
    {
        return fail(format_args!("plan: writing {}: {error}", file.display()));
    }
    let code = print(&text);
    if flawed { ExitCode::FAILURE } else { code }
}

/// Every rank's plan, one after the other: together they need not fit into memory.
fn show_all(question: &Question, algorithm: Algorithm) {
    let mut between = "";
    for rank in (0..question.world).map(Rank) {
        if output::is_lost() {
            return;
        }
        if let Some(plan) = question.plan(algorithm, rank) {
            output::text(&format!("{between}{plan}"));
            between = "\n";
        }
    }
}

fn proved(question: &Question, proof: &Proof) -> String {
    let order = match (question.collective.reduces(), proof.ordered) {
        (false, _) => "",
        (true, true) => ", reduced in tree order",
        (true, false) => ", not reduced in tree order",
    };
    let count = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    format!(
        "proved for all {}: {} a tile, {}, at most {} sent and {} a rank{order}",
        count(question.world as usize, "rank"),
        count(proof.messages as usize, "message"),
        count(proof.rounds as usize, "round"),
        count(proof.sent_max as usize, "chunk"),
        count(proof.steps_max, "step"),
    )
}

/// The algorithms that do it, side by side.
fn compare(question: &Question) -> ExitCode {
    let mut table = Table::new(0, &[1, 2, 3, 4, 5]);
    let head = ["algorithm", "lanes", "chunks", "steps", "messages", "rounds", "order"];
    table.row(head);
    for algorithm in question.offered() {
        let Some(own) = question.plan(algorithm, question.rank) else {
            continue;
        };
        let mut cells = vec![algorithm.name().to_owned(), own.lanes().to_string()];
        cells.push(own.chunks.to_string());
        // All ranks' plans of a world have its square of steps: only what is checked is made.
        let plans = question.can_check().then(|| question.world(algorithm)).flatten();
        let thoroughness = Thoroughness { runs: 0, in_place: false, ..Thoroughness::default() };
        match plans.map(|plans| check(&plans, thoroughness)) {
            Some(Ok(proof)) => {
                let order = match (question.collective.reduces(), proof.ordered) {
                    (false, _) => "",
                    (true, true) => "tree",
                    (true, false) => "its own",
                };
                cells.push(proof.steps_max.to_string());
                cells.push(proof.messages.to_string());
                cells.push(proof.rounds.to_string());
                cells.push(order.to_owned());
            }
            Some(Err(flaw)) => return fail(format_args!("plan: {}: {flaw}", algorithm.name())),
            None => cells.push(own.steps.len().to_string()),
        }
        table.row(cells);
    }
    let (kind, world) = (question.collective, question.world);
    let text = format!(
        "{kind}, {world} ranks. Steps are the longest plan's, messages those of all ranks a tile.\n\n{}",
        table.text()
    );
    print(&text)
}
