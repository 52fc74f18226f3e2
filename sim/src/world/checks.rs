//! What must be true of a run when it is over: no acknowledged write is lost, none is done twice,
//! what was refused was not done, and the history is linearizable.
//!
//! The log's order is the witness of that: every answer is what a service that executes the log
//! alone answers there, and no operation has a place before one that ended before it began.

use std::collections::BTreeMap;

use hovercraft::Index;
use r2p2::Time;

use super::{
    clients::Record,
    service::{OperationId, Seen},
};
use crate::{
    invariants::Violation,
    observed::{Answered, Observed},
    workload::{Command, Workload},
};

/// Checks a run, by the order of the log and without it. False if only the former could be done.
pub(super) fn check(
    records: &[Record],
    seen: &Seen,
    workload: &dyn Workload,
) -> Result<bool, Violation> {
    check_order(records, seen, workload)?;
    let observed: Vec<_> = records.iter().map(|record| record.seen.clone()).collect();
    workload.judge(&observed).map_err(unexplained)
}

/// Checks what was answered against what was executed, in the order of the log.
fn check_order(records: &[Record], seen: &Seen, workload: &dyn Workload) -> Result<(), Violation> {
    let mut model = workload.model();
    let mut queries: BTreeMap<OperationId, Vec<Index>> = BTreeMap::new();
    for (index, execution) in &seen.executions {
        if execution.is_query {
            queries.entry(execution.id).or_default().push(*index);
        }
        let command = Command { is_read: execution.is_query, body: execution.body.clone() };
        if let Err(problem) = model(&command, &execution.reply) {
            return Err(unexplained(format!("at {index}: {problem}; {execution:?}")));
        }
    }
    let mut ended: Vec<(Time, Index)> = Vec::new();
    for (record, places) in records.iter().map(|record| (record, places(record, seen, &queries))) {
        let Observed { began, ended: completed, answered, .. } = &record.seen;
        if let (Answered::With(_), Some(completed)) = (answered, completed) {
            let earlier = ended.iter().filter(|(completed, _)| completed < began);
            let floor = earlier.map(|(_, index)| *index).max().unwrap_or(0);
            // A retried query has several places, of which the first that will do serves best.
            let Some(index) = places?.into_iter().find(|index| *index > floor) else {
                let what = format!("{record:?} has no place in the log above {floor}");
                return Err(unexplained(what));
            };
            ended.push((*completed, index));
        } else if *answered == Answered::NotExecuted
            && let Some(index) = seen.commands.get(&record.id)
        {
            let what = format!("{record:?} was executed at {index}");
            return Err(Violation { invariant: "refused is not executed", rule: "P23", what });
        }
    }
    Ok(())
}

fn unexplained(what: String) -> Violation {
    Violation { invariant: "linearizable history", rule: "P17", what }
}

/// Where in the log an operation was executed with the reply that its caller got.
fn places(
    record: &Record,
    seen: &Seen,
    queries: &BTreeMap<OperationId, Vec<Index>>,
) -> Result<Vec<Index>, Violation> {
    let Answered::With(reply) = &record.seen.answered else { return Ok(Vec::new()) };
    let places = match seen.commands.get(&record.id) {
        Some(index) => vec![*index],
        None => queries.get(&record.id).cloned().unwrap_or_default(),
    };
    let fits = |index: &Index| seen.executions.get(index).is_some_and(|it| it.reply == *reply);
    let places: Vec<_> = places.into_iter().filter(fits).collect();
    if places.is_empty() {
        return Err(unexplained(format!("nobody executed {record:?} with that reply")));
    }
    Ok(places)
}
