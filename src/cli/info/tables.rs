//! What this build offers: types and operations, collectives and algorithms, knobs.

use serde_json::{Map, Value, json};
use unisono::algo;
use unisono::config::KNOBS;
use unisono::plan::Algorithm;
use unisono::{Collective, Dtype, ReduceOp};

use super::Part;
use crate::cli::table::Table;

const RULES: &str = "
  Partial results are held in the accumulator and rounded once, at the end, to nearest even.
  Too large a number becomes infinity in f16 and bf16, the largest finite (448, 57344) in 8 bits.
  min and max: a NaN wins and -0 is below +0. A NaN result is the canonical NaN of its type.
  Integers wrap in sum and prod. avg divides the sum by the ranks; integers truncate towards zero.
  pre_mul_sum multiplies each rank's input by its factor in the accumulator's type first.
  land and lor give 0 or 1.
";

pub(super) fn types() -> Part {
    let mut table = Table::new(2, &[1]);
    let mut head = vec!["type", "bytes", "accumulator"];
    head.extend(ReduceOp::ALL.iter().map(|op| op.name()));
    table.row(head);
    let mut values = Map::new();
    for dtype in Dtype::ALL {
        let operations: Vec<_> =
            ReduceOp::ALL.iter().filter(|op| op.supports(*dtype)).map(|op| op.name()).collect();
        let mut cells = vec![dtype.name().to_owned(), dtype.bytes().to_string()];
        cells.push(dtype.accumulator().name().to_owned());
        let mark = |op: &ReduceOp| if op.supports(*dtype) { "yes" } else { "-" }.to_owned();
        cells.extend(ReduceOp::ALL.iter().map(mark));
        table.row(cells);
        let value = json!({
            "bytes": dtype.bytes(), "accumulator": dtype.accumulator().name(), "operations": operations
        });
        values.insert(dtype.name().to_owned(), value);
    }
    Part {
        name: "types",
        title: "Types and operations (-: no meaning, UNSUPPORTED)".to_owned(),
        text: table.text() + RULES,
        value: Value::Object(values),
    }
}

pub(super) fn plans() -> Part {
    let mut table = Table::new(2, &[]);
    let mut head = vec![""];
    head.extend(Algorithm::ALL.iter().map(|a| a.name()));
    table.row(head);
    let mut values = Map::new();
    for &collective in Collective::ALL {
        let mut cells = vec![collective.name().to_owned()];
        let mut offered = Map::new();
        for &algorithm in Algorithm::ALL {
            let tree = match algorithm {
                // It has its order from its hosts.
                Algorithm::Hierarchical => collective.reduces(),
                _ => algo::ordered(algorithm, collective, 64, None),
            };
            let mark = match (algo::offers(algorithm, collective), tree) {
                (false, _) => "-",
                (true, true) => "tree",
                (true, false) => "yes",
            };
            cells.push(mark.to_owned());
            if mark != "-" {
                offered.insert(algorithm.name().to_owned(), json!({"tree_order": tree}));
            }
        }
        table.row(cells);
        values.insert(collective.name().to_owned(), Value::Object(offered));
    }
    let notes = "
  tree: reduces in the order of the balanced tree over ranks, so the deterministic mode may use it
  (hierarchical: when hosts have consecutive ranks and one power-of-two size).
  direct needs memory all ranks can map. unisono plan shows the steps.
";
    Part {
        name: "plans",
        title: "Collectives and the algorithms that do them".to_owned(),
        text: table.text() + notes,
        value: Value::Object(values),
    }
}

pub(super) fn knobs() -> Part {
    let mut table = Table::new(2, &[]);
    table.row(["variable", "value", "default", "what it does, and its values"]);
    let mut values = Map::new();
    for knob in KNOBS {
        let value = std::env::var_os(knob.variable).map(|v| v.to_string_lossy().into_owned());
        let agreed = if knob.agreed { "; rank 0's holds for all" } else { "" };
        table.row([knob.variable, value.as_deref().unwrap_or("-"), knob.default, knob.text]);
        table.row(["", "", "", &format!("  {}{agreed}", knob.range)]);
        let entry = json!({
            "value": value, "default": knob.default, "range": knob.range, "agreed": knob.agreed,
            "text": knob.text
        });
        values.insert(knob.variable.to_owned(), entry);
    }
    Part {
        name: "knobs",
        title: "Settings".to_owned(),
        text: table.text(),
        value: Value::Object(values),
    }
}
