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
            last(&order.operations).map(|it| brief(&Described(operation(it)))).collect();
        let operations =
            if operations.is_empty() { "nothing".to_owned() } else { operations.join(", ") };
        let _ = write!(text, "\n  after {before}{operations} the state is {}", brief(&order.state));
    }
    if !found.orders.is_empty() {
        let _ = write!(text, ",\n  and {} is possible in none of these.", brief(&Described(stuck)));
    }
    text
}

fn last(places: &[usize]) -> impl Iterator<Item = usize> {
    places[places.len().saturating_sub(TOLD)..].iter().copied()
}

/// A text, of which the middle is left out if it is long.
fn brief(text: &impl ToString) -> String {
    const START: usize = 24;
    const END: usize = 56;
    let text = text.to_string();
    let count = text.chars().count();
    if count <= START + END + 1 {
        return text;
    }
    let start: String = text.chars().take(START).collect();
    let end: String = text.chars().skip(count - END).collect();
    format!("{start}…{end}")
}

/// An operation with its process and its line.
fn told(operation: &Operation) -> String {
    let line = match operation.line {
        0 => String::new(),
        line => format!(", line {line}"),
    };
    format!("{} (process {}{line})", brief(&Described(operation)), operation.process)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        check::Limits,
        model::Semantics,
        named::{ModelName, check_named},
    };

    fn explained(model: ModelName, text: &str) -> Vec<String> {
        let history = History::read(text.as_bytes()).expect("a history");
        let found = check_named(model, Semantics::Knossos, &history, &Limits::steps(1000));
        explain(&history, &found.expect("known"))
    }

    #[test]
    fn a_violation_is_told_with_what_was_tried() {
        let text = "[0 :invoke :write [5 1]]\n[0 :ok :write [5 1]]\n[1 :invoke :write [5 2]]\n\
                    [2 :invoke :read [5 nil]]\n[2 :ok :read [5 0]]";
        let expected = "Key 5: no order explains read → 0 (process 2, line 4). The 3 operations that had \
                        begun when it completed are the shortest beginning of the history without an \
                        order; concurrent with it were write 2 → unknown (process 1, line 3).\n  \
                        after write 1, write 2 → unknown the state is 2\n  \
                        after write 1 the state is 1,\n  \
                        and read → 0 is possible in none of these.";
        assert_eq!(explained(ModelName::Register, text), [expected]);
        assert_eq!(explained(ModelName::Register, "[]"), [""; 0]);
    }

    #[test]
    fn long_texts_are_told_in_brief() {
        let long = "x".repeat(1000);
        let text = format!("[0 :invoke :get \"k\"] [0 :ok :get {long:?}]");
        let [told] = &explained(ModelName::Kv, &text)[..] else { panic!("one violation") };
        assert!(told.len() < 600 && told.contains("xxx…xxx"), "{told}");
    }
}
