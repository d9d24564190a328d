//! The report that `make bench` writes: medians, tables, charts and one small case. The tests stand
//! beside its code, in `benches/report/`, which no harness runs.
#![allow(missing_docs)]

#[path = "../benches/report/main.rs"]
mod report;
