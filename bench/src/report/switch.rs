//! What `switch` has written, as tables and pictures.

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{
    Results,
    tables::{Table, number, number_whole, parts, text},
};
use crate::{
    count::Counted,
    switch::{Jbsq, Overload, Table1, instructions},
};

/// The files that are of a kind.
fn files<T: DeserializeOwned>(values: &[Value]) -> Vec<T> {
    values.iter().filter_map(|value| serde_json::from_value(value.clone()).ok()).collect()
}

pub(super) fn table1(results: &Results) -> Option<Table> {
    let columns = [
        "mode",
        "replicas",
        "durability",
        "outstanding",
        "a batch",
        "in",
        "the paper's",
        "out",
        "the paper's",
        "P14 out",
        "P15 in",
        "P32 out",
        "FEEDBACK out",
        "heartbeats",
        "recovery",
        "appends a batch",
        "acknowledgements a batch",
        "datagrams in",
        "own count",
        "datagrams out",
        "own count",
    ];
    let rows = parts(&results.switches, "table1", |row| {
        let mut cells = vec![text(&row["mode"]), number_whole(&row["replicas"])];
        cells.extend([text(&row["durability"]), number_whole(&row["outstanding"])]);
        let fields = [
            "requests_per_batch",
            "counted_in",
            "paper_in",
            "counted_out",
            "paper_out",
            "announcements",
            "reports",
            "durables",
            "feedback",
            "heartbeats",
            "recovery",
            "appends_per_batch",
            "acknowledgements_per_batch",
            "datagrams_in",
            "own_datagrams_in",
            "datagrams_out",
            "own_datagrams_out",
        ];
        cells.extend(fields.iter().map(|field| number(&row[*field])));
        cells
    });
    Table::new(&columns, rows)
}

pub(super) fn table1_pictures(results: &Results) -> Vec<String> {
    files::<Table1>(&results.switches).iter().map(Table1::draw).collect()
}

pub(super) fn counts_pictures(results: &Results) -> Vec<String> {
    let counted = files::<Counted>(&results.counts);
    counted.iter().map(|counted| instructions(&counted.instructions)).collect()
}

pub(super) fn overload(results: &Results) -> Option<Table> {
    let columns = [
        "admission",
        "load",
        "offered/s",
        "answered in time/s",
        "refused/s",
        "lost/s",
        "p50 ms",
        "p99 ms",
        "generator's core",
    ];
    let rows = parts(&results.switches, "overload", |row| {
        let fields = [
            "load",
            "offered_per_s",
            "answered_per_s",
            "refused_per_s",
            "lost_per_s",
            "p50_ms",
            "p99_ms",
            "generator_share",
        ];
        let figures = fields.iter().map(|field| number(&row[*field]));
        std::iter::once(text(&row["keeper"])).chain(figures).collect()
    });
    Table::new(&columns, rows)
}

pub(super) fn overload_pictures(results: &Results) -> Vec<String> {
    let files = files::<Overload>(&results.switches);
    files.iter().flat_map(|file| [file.draw(), file.draw_p99()]).collect()
}

pub(super) fn jbsq(results: &Results) -> Option<Table> {
    let columns = [
        "policy",
        "load",
        "offered/s",
        "answered",
        "lost",
        "p50 ms",
        "p99 ms",
        "p99 simulated",
        "p99 of a single queue",
    ];
    let rows = parts(&results.switches, "jbsq", |row| {
        let fields = [
            "load",
            "offered_per_s",
            "answered",
            "lost",
            "p50_ms",
            "p99_ms",
            "simulated_p99_ms",
            "ideal_p99_ms",
        ];
        let figures = fields.iter().map(|field| number(&row[*field]));
        std::iter::once(text(&row["policy"])).chain(figures).collect()
    });
    Table::new(&columns, rows)
}

pub(super) fn jbsq_pictures(results: &Results) -> Vec<String> {
    files::<Jbsq>(&results.switches).iter().map(Jbsq::draw).collect()
}

pub(super) fn checks(results: &Results) -> Option<Table> {
    let rows = parts(&results.switches, "checks", |row| {
        vec![text(&row["queue"]), number(&row["known"]), number(&row["simulated"])]
    });
    Table::new(&["queue", "known", "simulated"], rows)
}
