//! What the tuner chooses, by size, for the ranks of one host, and why.

use serde_json::{Value, json};
use unisono::call::Call;
use unisono::config::Config;
use unisono::engine::{Planner, Reach, Route};
use unisono::tune::{Memory, Reason, Tuner};
use unisono::{Collective, Dtype};

use super::{Options, Part};
use crate::cli::ranks::Link;
use crate::cli::table::{Table, bytes};
use crate::cli::tuner::tuner;

const SIZES: [u64; 9] =
    [8, 128, 1 << 10, 8 << 10, 64 << 10, 512 << 10, 4 << 20, 32 << 20, 128 << 20];

/// How a call of one size is carried out.
struct Choice {
    route: &'static str,
    algorithm: &'static str,
    /// In bytes, and how many are in flight, where the buffer is cut into tiles.
    tiles: Option<(u64, u64)>,
    /// Picoseconds.
    estimate: Option<u64>,
    why: String,
}

pub(super) fn part(options: &Options) -> Result<Part, String> {
    let (ranks, link) = (options.ranks, options.link);
    let config = Config::from_env().map_err(|error| error.detail.into_string())?;
    let memory = match link {
        Link::Mem => Memory::All,
        Link::Shm => Memory::Given,
        Link::Tcp | Link::Rdma | Link::Rsocket | Link::Mpi => Memory::Apart,
    };
    let shared = link == Link::Mem || link == Link::Shm && options.registered;
    let mut tuner = tuner(&config, ranks, memory)?;
    let (mut text, mut rows) = (String::new(), Vec::new());
    for collective in collectives(options.collective.as_deref())? {
        let what = if collective.reduces() { " f32 sum" } else { "" };
        text += &format!("\n  {collective}{what}\n");
        let mut table = Table::new(4, &[0, 3, 4]);
        table.row(["bytes", "route", "algorithm", "tile", "in flight", "why"]);
        for size in SIZES {
            let choice = choice(&mut tuner, collective, size, shared)?;
            let tile = choice.tiles.map_or_else(|| "-".to_owned(), |(tile, _)| bytes(tile));
            let window = choice.tiles.map_or_else(|| "-".to_owned(), |(_, n)| n.to_string());
            let Choice { route, algorithm, .. } = choice;
            let cells = [&bytes(size), route, algorithm, &tile, &window, &choice.why];
            table.row(cells.map(str::to_owned));
            rows.push(value(collective, size, &choice));
        }
        text += &table.text();
    }
    let order = if config.deterministic { ", deterministic" } else { "" };
    let memory = if shared { "memory all can map" } else { "plain memory" };
    let notes = "\n  bytes: of the buffer, or of one block where every rank has its own. Flat: every \
                 rank shows\n  all it has, in one step and without a plan. Meet: ranks learn first \
                 whose buffers all can map.\n  unisono perf --sweep-algos measures every algorithm.\n";
    Ok(Part {
        name: "tuning",
        title: format!(
            "Chosen by {ranks} ranks of one host, link {}, {memory}{order}",
            link.name()
        ),
        text: text + notes,
        value: json!({"ranks": ranks, "link": link.name(), "mapped": shared, "rows": rows}),
    })
}

/// The one asked for, or all whose choice depends on nothing but the size.
fn collectives(asked: Option<&str>) -> Result<Vec<Collective>, String> {
    let by_size = |c: &Collective| !c.point_to_point() && !c.ragged();
    let Some(name) = asked else {
        let all = Collective::ALL.iter().copied().filter(by_size);
        return Ok(all.filter(|&c| c != Collective::Barrier).collect());
    };
    let Some(collective) = Collective::from_name(name) else {
        let all: Vec<_> = Collective::ALL.iter().map(|c| c.name()).collect();
        return Err(format!("no collective \"{name}\"; there are {}", all.join(", ")));
    };
    if !by_size(&collective) {
        let why = if collective.ragged() { "the counts of all ranks" } else { "the pair of ranks" };
        return Err(format!("the way of {collective} depends on {why}; there is no table by size"));
    }
    Ok(vec![collective])
}

fn value(collective: Collective, size: u64, choice: &Choice) -> Value {
    #[expect(clippy::cast_precision_loss, reason = "a figure to show")]
    let estimate = choice.estimate.map(|ps| ps as f64 / 1e6);
    json!({
        "collective": collective.name(),
        "bytes": size,
        "route": choice.route,
        "algorithm": choice.algorithm,
        "tile_bytes": choice.tiles.map(|(tile, _)| tile),
        "window": choice.tiles.map(|(_, window)| window),
        "estimate_us": estimate,
        "why": choice.why,
    })
}

fn choice(
    tuner: &mut Tuner,
    collective: Collective,
    size: u64,
    shared: bool,
) -> Result<Choice, String> {
    let dtype = Dtype::F32;
    let element = dtype.bytes() as u64;
    let call = Call { count: size / element, ..Call::new(collective, dtype) };
    let route = tuner.route(&call);
    // Buffers in shared memory are used only when ranks meet for it.
    let reach = match route {
        Route::Meet if shared => Reach::Buffers,
        Route::Meet | Route::Staged | Route::Flat => Reach::Stages,
        Route::Links => Reach::Messages,
    };
    if route == Route::Flat {
        let why = "small".to_owned();
        return Ok(Choice { route: "flat", algorithm: "-", tiles: None, estimate: None, why });
    }
    let choice = tuner.choose(&call, reach).map_err(|error| error.detail.into_string())?;
    let chosen = tuner.take_chosen().ok_or("nothing was chosen")?;
    let (why, estimate) = match chosen.reason {
        Reason::Asked => ("asked for".to_owned(), None),
        Reason::Table(row) => (format!("table: {row}"), None),
        Reason::Mapped => ("all can map the buffers".to_owned(), None),
        Reason::Levels => ("there are hosts of several ranks".to_owned(), None),
        Reason::Estimate(ps) => (format!("estimated {}", time(ps)), Some(ps)),
    };
    let tile = choice.tile.saturating_mul(element);
    let chunks = u64::from(choice.plan.chunks.max(1));
    let cut = !choice.plan.direct && tile < size / chunks;
    Ok(Choice {
        route: match route {
            Route::Links => "links",
            Route::Meet => "meet",
            Route::Staged => "staged",
            Route::Flat => "flat",
        },
        algorithm: chosen.algorithm.name(),
        tiles: cut.then_some((tile, choice.window)),
        estimate,
        why,
    })
}

/// Picoseconds in microseconds, to a tenth below a thousand.
fn time(ps: u64) -> String {
    let tenths = ps.div_ceil(100_000);
    if tenths >= 10_000 {
        format!("{} us", tenths / 10)
    } else {
        format!("{}.{} us", tenths / 10, tenths % 10)
    }
}
