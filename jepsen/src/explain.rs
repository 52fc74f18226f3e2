//! A violation in words.

use std::fmt::Write;

use crate::{
    History, Operation,
    check::{Counterexample, Finding},
    model::Described,
    named::Found,
};

/// How many operations at the end of an order are told.
const TOLD: usize = 6;

/// What is wrong with a history, a paragraph each; nothing if nothing is known to be wrong.
pub fn explain(history: &History, found: &Found) -> Vec<String> {
    match found {
        Found::Anomalies(report) => {
            let tell =
                |it: &crate::list_append::Anomaly| format!("{}: {}.", it.kind, it.explanation);
            report.anomalies.iter().map(tell).collect()
        }
        Found::Orders(report) => {
            let violations = report.keys.iter().filter_map(|key| match &key.finding {
                Finding::NotLinearizable(found) => Some((key, found)),
                _ => None,
            });
            violations
                .map(|(key, found)| {
                    let of_key =
                        if key.key.is_nil() { String::new() } else { format!("Key {}: ", key.key) };
                    of_key + &explain_counterexample(history, found)
                })
                .collect()
        }
    }
}

fn explain_counterexample(history: &History, found: &Counterexample) -> String {
    let operation = |place: usize| &history.operations[place];
    let stuck = operation(found.stuck);
    let mut text = format!(
        "no order explains {}. The {} operations that had begun when it completed are the shortest \
         beginning of the history without an order",
        told(stuck),
        found.prefix.len(),
    );
    if found.concurrent.is_empty() {
        text += "; nothing else was under way then.";
    } else {
        let concurrent: Vec<_> = last(&found.concurrent).map(|it| told(operation(it))).collect();
        let more = found.concurrent.len() - concurrent.len();
        let more = if more == 0 { String::new() } else { format!(", and {more} more") };
        let concurrent = concurrent.join(", ");
        let _ = write!(text, "; concurrent with it were {concurrent}{more}.");
    }
    // Writing to a text does not fail.
    for order in &found.orders {
        let before = if order.operations.len() > TOLD { "…, " } else { "" };
        let operations: Vec<_> =
            last(&order.operations).map(|it| Described(operation(it)).to_string()).collect();
        let operations =
            if operations.is_empty() { "nothing".to_owned() } else { operations.join(", ") };
        let _ = write!(text, "\n  after {before}{operations} the state is {}", order.state);
    }
    if !found.orders.is_empty() {
        let _ = write!(text, ",\n  and {} is possible in none of these.", Described(stuck));
    }
    text
}

fn last(places: &[usize]) -> impl Iterator<Item = usize> {
    places[places.len().saturating_sub(TOLD)..].iter().copied()
}

/// An operation with its process and its line.
fn told(operation: &Operation) -> String {
    let line = match operation.line {
        0 => String::new(),
        line => format!(", line {line}"),
    };
    format!("{} (process {}{line})", Described(operation), operation.process)
}
