//! What programs read. The keys are told in docs/checking.md.

use hovercraft_jepsen::{
    Operation, Value,
    check::{Counterexample, Finding, Limit, Verdict},
    explain,
    model::Described,
    named::Found,
};
use serde::Serialize;

use super::{Checked, FileResult, arguments::Check, exit_code};

#[derive(Serialize)]
struct Document<'a> {
    verdict: String,
    exit_code: u8,
    files: Vec<File<'a>>,
}

#[derive(Serialize)]
struct File<'a> {
    file: &'a str,
    model: &'a str,
    semantics: &'a str,
    verdict: String,
    operations: usize,
    keys: usize,
    seconds: f64,
    steps: u64,
    limit: Option<String>,
    error: Option<&'a str>,
    explanations: Vec<String>,
    counterexamples: Vec<Violation<'a>>,
    anomalies: Vec<AnomalyTold<'a>>,
}

#[derive(Serialize)]
struct Violation<'a> {
    key: &'a Value,
    stuck: Told<'a>,
    prefix_operations: usize,
    prefix: Vec<Told<'a>>,
    concurrent: Vec<Told<'a>>,
    orders: Vec<Order<'a>>,
}

/// Of a long list of operations the last ones are told.
const TOLD: usize = 200;

#[derive(Serialize)]
struct Order<'a> {
    length: usize,
    operations: Vec<Told<'a>>,
    state: &'a str,
}

#[derive(Serialize)]
struct AnomalyTold<'a> {
    kind: String,
    explanation: &'a str,
    operations: Vec<Told<'a>>,
}

#[derive(Serialize)]
struct Told<'a> {
    process: i64,
    line: usize,
    f: &'a str,
    key: &'a Value,
    text: String,
}

pub(super) fn render(check: &Check, checked: &[Checked]) -> String {
    let exit_code = exit_code(checked);
    let verdict = match exit_code {
        0 => Verdict::Linearizable.to_string(),
        1 => Verdict::NotLinearizable.to_string(),
        2 => Verdict::Unknown(Limit::Time).to_string(),
        _ => BAD_INPUT.to_owned(),
    };
    let files = checked.iter().map(|it| file(check, it)).collect();
    let document = Document { verdict, exit_code, files };
    let mut text = serde_json::to_string_pretty(&document).expect("names and numbers are JSON");
    text.push('\n');
    text
}

const BAD_INPUT: &str = "bad input";

fn file<'a>(check: &'a Check, checked: &'a Checked) -> File<'a> {
    let mut file = File {
        file: &checked.name,
        model: check.model.0.name(),
        semantics: check.semantics.name(),
        verdict: checked.verdict().map_or(BAD_INPUT.to_owned(), |verdict| verdict.to_string()),
        operations: 0,
        keys: 0,
        seconds: checked.took.as_secs_f64(),
        steps: 0,
        limit: None,
        error: None,
        explanations: Vec::new(),
        counterexamples: Vec::new(),
        anomalies: Vec::new(),
    };
    if let Some(Verdict::Unknown(limit)) = checked.verdict() {
        file.limit = Some(limit.to_string());
    }
    let (history, found) = match &checked.result {
        FileResult::Bad(why) | FileResult::TooLarge(why) => {
            file.error = Some(why);
            return file;
        }
        FileResult::Found { history, found } => (history, found),
    };
    let operations = &*history.operations;
    file.operations = operations.len();
    file.keys = found.keys();
    file.explanations = explain::explain(history, found);
    match found {
        Found::Orders(report) => {
            file.steps = report.steps;
            let violations = report.keys.iter().filter_map(|key| match &key.finding {
                Finding::NotLinearizable(found) => Some(violation(operations, &key.key, found)),
                _ => None,
            });
            file.counterexamples = violations.collect();
        }
        Found::Anomalies(report) => {
            let anomalies = report.anomalies.iter().map(|it| AnomalyTold {
                kind: it.kind.to_string(),
                explanation: &it.explanation,
                operations: told(operations, &it.operations),
            });
            file.anomalies = anomalies.collect();
        }
    }
    file
}

fn violation<'a>(
    operations: &'a [Operation],
    key: &'a Value,
    found: &'a Counterexample,
) -> Violation<'a> {
    let orders = found.orders.iter().map(|order| Order {
        length: order.operations.len(),
        operations: told(operations, &order.operations),
        state: &order.state,
    });
    Violation {
        key,
        stuck: tell(&operations[found.stuck]),
        prefix_operations: found.prefix.len(),
        prefix: told(operations, &found.prefix),
        concurrent: told(operations, &found.concurrent),
        orders: orders.collect(),
    }
}

fn told<'a>(operations: &'a [Operation], places: &[usize]) -> Vec<Told<'a>> {
    let last = &places[places.len().saturating_sub(TOLD)..];
    last.iter().map(|place| tell(&operations[*place])).collect()
}

fn tell(operation: &Operation) -> Told<'_> {
    let Operation { process, line, f, key, .. } = operation;
    Told { process: *process, line: *line, f, key, text: Described(operation).to_string() }
}
