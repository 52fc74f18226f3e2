//! Transactions that append to lists and read them, checked by cycles.
//!
//! Every element of a list is appended once, so a list tells who wrote it, in which order; then what
//! came before what is known, and a history is strictly serializable exactly if nothing came before
//! itself (Kingsbury and Alvaro: Elle, VLDB 2020). The time does not grow with how much was concurrent,
//! so that long runs can be checked.

mod budget;
mod cycles;
mod graph;
mod lists;
mod names;
mod txn;

use std::fmt;

use crate::{
    History,
    check::{Limit, Limits},
};
use budget::Budget;
use names::Names;
use txn::Txns;

/// What is wrong with a history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Anomaly {
    /// What it is called.
    pub kind: AnomalyKind,
    /// The transactions that show it, by their places in the history.
    pub operations: Vec<usize>,
    /// Why, in words.
    pub explanation: String,
}

/// The names of anomalies, as in Adya's thesis and in Elle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum AnomalyKind {
    /// Lists were seen of which neither is the beginning of the other.
    IncompatibleOrder,
    /// A list has an element twice.
    DuplicateElements,
    /// A list has an element that nobody appended.
    NeverAppended,
    /// An element that was acknowledged is missing in every list that was read later.
    LostAppend,
    /// A transaction does not see what it has seen or appended itself.
    Internal,
    /// What an aborted transaction appended was seen.
    G1a,
    /// A list was seen in the middle of what a transaction appended to it.
    G1b,
    /// A cycle of appends.
    G0,
    /// A cycle of appends and reads that saw them.
    G1c,
    /// A cycle with one read that did not see an append.
    GSingle,
    /// A cycle with several such reads.
    G2,
    /// As G0, with the help of real time.
    G0RealTime,
    /// As G1c, with the help of real time.
    G1cRealTime,
    /// As G-single, with the help of real time.
    GSingleRealTime,
    /// As G2, with the help of real time.
    G2RealTime,
}

impl fmt::Display for AnomalyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::IncompatibleOrder => "incompatible-order",
            Self::DuplicateElements => "duplicate-elements",
            Self::NeverAppended => "never-appended",
            Self::LostAppend => "lost-append",
            Self::Internal => "internal",
            Self::G1a => "G1a",
            Self::G1b => "G1b",
            Self::G0 => "G0",
            Self::G1c => "G1c",
            Self::GSingle => "G-single",
            Self::G2 => "G2",
            Self::G0RealTime => "G0-realtime",
            Self::G1cRealTime => "G1c-realtime",
            Self::GSingleRealTime => "G-single-realtime",
            Self::G2RealTime => "G2-realtime",
        })
    }
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListAppendReport {
    /// What is wrong, by kind; nothing if the history is strictly serializable as far as its reads
    /// tell.
    pub anomalies: Vec<Anomaly>,
    /// How many lists there are.
    pub keys: usize,
    /// The limit that was reached before everything was looked at. The anomalies that were found by then
    /// are some all the same.
    pub limit: Option<Limit>,
}

/// Why a history cannot be checked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ListAppendError {
    /// An operation is not a transaction of appends and reads, or appends what was appended before.
    #[error("line {line}: {what}")]
    Operation {
        /// The line of the file that says that it began, from 1; 0 if it is of no file.
        line: usize,
        /// What is wrong.
        what: String,
    },
}

/// Checks whether a history is strictly serializable. A step is a transaction looked at in search of a
/// cycle.
pub fn check_list_append(
    history: &History,
    limits: &Limits<'_>,
) -> Result<ListAppendReport, ListAppendError> {
    let mut budget = Budget::new(history, limits);
    if budget.is_over() {
        return Ok(ListAppendReport { anomalies: Vec::new(), keys: 0, limit: budget.limit() });
    }
    let txns = Txns::new(history)?;
    let names = Names { history, txns: &txns };
    let mut anomalies = Vec::new();
    let lists = lists::Lists::new(&txns, &mut anomalies, &names);
    lists::check_reads(&txns, &mut anomalies, &names);
    lists::check_lost(&txns, &lists, &mut anomalies, &names);
    let graph = graph::Graph::new(&txns, &lists, history, &mut budget);
    anomalies
        .extend(cycles::find(&graph, &mut budget).into_iter().map(|cycle| names.cycle(&cycle)));
    anomalies.sort_by_key(|anomaly| anomaly.kind);
    Ok(ListAppendReport { anomalies, keys: txns.keys.len(), limit: budget.limit() })
}

#[cfg(test)]
mod tests;
