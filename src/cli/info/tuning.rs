//! What the tuner chooses, by size, for the ranks of one host.

use serde_json::{Value, json};
use unisono::call::Call;
use unisono::config::Config;
use unisono::engine::{Planner, Reach, Route};
use unisono::tune::{Memory, Tuner};
use unisono::{Collective, Dtype};

use super::Part;
use crate::cli::table::{Table, bytes};
use crate::cli::tuner::tuner;

const SIZES: [u64; 9] =
    [8, 128, 1 << 10, 8 << 10, 64 << 10, 512 << 10, 4 << 20, 32 << 20, 128 << 20];

/// The ways ranks of a host can be connected: a name, what memory they can map of each other, and
/// whether the buffers lie in it.
const WAYS: [(&str, Memory, bool); 4] = [
    ("mem", Memory::All, true),
    ("shm registered", Memory::Given, true),
    ("shm", Memory::Given, false),
    ("tcp", Memory::Apart, false),
];

pub(super) fn part(ranks: u32, collective: &str) -> Result<Part, String> {
    let Some(collective) = Collective::from_name(collective) else {
        let all: Vec<_> = Collective::ALL.iter().map(|c| c.name()).collect();
        return Err(format!("no collective \"{collective}\"; there are {}", all.join(", ")));
    };
    if collective.point_to_point() || collective.ragged() {
        let why = if collective.ragged() { "the counts of all ranks" } else { "the pair of ranks" };
        return Err(format!("the way of {collective} depends on {why}; there is no table by size"));
    }
    let config = Config::from_env().map_err(|error| error.detail.into_string())?;
    let mut tuners = Vec::new();
    for (_, memory, _) in WAYS {
        tuners.push(tuner(&config, ranks, memory)?);
    }
    let mut table = Table::new(2, &[0]);
    table.row(["bytes"].into_iter().chain(WAYS.map(|(name, ..)| name)));
    let mut rows = Vec::new();
    for size in SIZES {
        let mut cells = vec![bytes(size)];
        let mut row = serde_json::Map::new();
        row.insert("bytes".to_owned(), size.into());
        for (tuner, (name, _, shared)) in tuners.iter_mut().zip(WAYS) {
            let (cell, value) = chosen(tuner, collective, size, shared)?;
            cells.push(cell);
            row.insert(name.to_owned(), value);
        }
        table.row(cells);
        rows.push(Value::Object(row));
    }
    let order = if config.deterministic { ", deterministic" } else { "" };
    let what = if collective.reduces() { " f32 sum" } else { "" };
    let notes = "\n  Algorithm, and tile x tiles in flight where the buffer is cut into tiles.\n  \
                 Flat: every rank shows all it has, in one step and without a plan.\n";
    Ok(Part {
        name: "tuning",
        title: format!("Chosen for {collective}{what} by {ranks} ranks of one host{order}"),
        text: table.text() + notes,
        value: json!({"collective": collective.name(), "ranks": ranks, "rows": rows}),
    })
}

fn chosen(
    tuner: &mut Tuner,
    collective: Collective,
    size: u64,
    shared: bool,
) -> Result<(String, Value), String> {
    let dtype = Dtype::F32;
    let element = dtype.bytes() as u64;
    let call = Call { count: size / element, ..Call::new(collective, dtype) };
    let route = tuner.route(&call);
    if route == Route::Flat {
        return Ok(("flat".to_owned(), json!({"algorithm": "flat"})));
    }
    // Buffers in shared memory are used only when ranks meet for it.
    let reach = match route {
        Route::Meet if shared => Reach::Buffers,
        Route::Meet | Route::Staged => Reach::Stages,
        Route::Links | Route::Flat => Reach::Messages,
    };
    let choice = tuner.choose(&call, reach).map_err(|error| error.detail.into_string())?;
    let algorithm = choice.plan.key.algorithm.name();
    let (tile, window) = (choice.tile.saturating_mul(element), choice.window);
    let chunks = u64::from(choice.plan.chunks.max(1));
    if choice.plan.direct || tile >= size / chunks {
        return Ok((algorithm.to_owned(), json!({"algorithm": algorithm})));
    }
    let value = json!({"algorithm": algorithm, "tile_bytes": tile, "window": window});
    Ok((format!("{algorithm} {} x {window}", bytes(tile)), value))
}
