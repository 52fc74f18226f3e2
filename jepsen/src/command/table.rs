//! What people read: a line a file, and why.

use std::{fmt::Write, time::Duration};

use hovercraft_jepsen::{check::Verdict, explain, named::Found};

use super::{Checked, FileResult, arguments::Check};

/// How many explanations of a file are printed.
const EXPLAINED: usize = 5;

pub(crate) fn render(check: &Check, checked: &[Checked]) -> String {
    let width =
        checked.iter().map(|it| it.name.chars().count()).max().unwrap_or(0).max("file".len());
    let mut text = String::new();
    line(&mut text, width, ["file", "model", "operations", "keys", "time", "verdict"]);
    for it in checked {
        let [operations, keys] = match &it.result {
            FileResult::Found { history, found } => {
                [history.operations.len(), found.keys()].map(with_commas)
            }
            _ => ["-", "-"].map(str::to_owned),
        };
        let model = check.model.0.name();
        line(
            &mut text,
            width,
            [&it.name, model, &operations, &keys, &seconds(it.took), &verdict(it)],
        );
    }
    for it in checked {
        let FileResult::Found { history, found } = &it.result else { continue };
        let explanations = explain::explain(history, found);
        if explanations.is_empty() {
            continue;
        }
        let _ = writeln!(text, "\n{}:", it.name);
        for explanation in explanations.iter().take(EXPLAINED) {
            let _ = writeln!(text, "  {}", explanation.replace('\n', "\n  "));
        }
        if explanations.len() > EXPLAINED {
            let more = explanations.len() - EXPLAINED;
            let _ = writeln!(text, "  … and {more} more; --json FILE has them all.");
        }
    }
    text
}

fn line(
    text: &mut String,
    width: usize,
    [name, model, operations, keys, time, verdict]: [&str; 6],
) {
    let _ = writeln!(
        text,
        "{name:width$}  {model:12}  {operations:>10}  {keys:>6}  {time:>8}  {verdict}"
    );
}

fn verdict(checked: &Checked) -> String {
    match (&checked.result, checked.verdict()) {
        (FileResult::Bad(why), _) => format!("bad input: {why}"),
        (FileResult::TooLarge(why), _) => format!("unknown: {why}"),
        (_, Some(Verdict::Unknown(limit))) => {
            format!("unknown: the limit on {limit} was reached; --{} raises it", flag(limit))
        }
        (FileResult::Found { found: Found::Anomalies(report), .. }, _) => {
            let mut kinds: Vec<_> = report.anomalies.iter().map(|it| it.kind.to_string()).collect();
            kinds.dedup();
            if kinds.is_empty() { "no anomaly found".to_owned() } else { kinds.join(", ") }
        }
        (_, Some(Verdict::NotLinearizable)) => "NOT linearizable".to_owned(),
        (_, verdict) => verdict.map(|verdict| verdict.to_string()).unwrap_or_default(),
    }
}

fn flag(limit: hovercraft_jepsen::check::Limit) -> &'static str {
    use hovercraft_jepsen::check::Limit;
    match limit {
        Limit::Steps => "step-limit",
        Limit::Memory => "memory-limit",
        Limit::Time => "time-limit",
    }
}

fn seconds(took: Duration) -> String {
    match took.as_secs_f64() {
        seconds if seconds < 1.0 => format!("{:.0} ms", seconds * 1e3),
        seconds => format!("{seconds:.1} s"),
    }
}

fn with_commas(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_in_threes() {
        let numbers = [0, 12, 999, 1000, 1_234_567].map(with_commas);
        assert_eq!(numbers, ["0", "12", "999", "1,000", "1,234,567"]);
    }
}
