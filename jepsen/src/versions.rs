//! Checks of histories whose values are versions: fast, and exact enough to count what is wrong.
//!
//! Every key is one of two kinds, and begins as 0, which is also what a key that does not exist
//! counts as:
//!
//! - a *counter*: any processes add 1 to it (`incr`, which returns the sum), at any time;
//! - a *register*: one process sets it (`set`) to 1, 2, 3, …, one after another, and leaves the key
//!   alone after a set of which it does not know the outcome, because that may still take effect.
//!
//! Everything else is a read (`get`).
//!
//! So the values of a key never decrease, and every write has a version that says which it is. What
//! real time demands is then a comparison: an operation that began after another one had completed
//! sees at least what that one saw or wrote. These are necessary conditions of linearizability, by
//! which a lost, a doubled and a reordered write and a stale read show.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::{History, Operation, Outcome, Value};

/// The value of every key that exists when everything is over.
pub type FinalState = BTreeMap<Value, i64>;

/// What an operation does to its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Function {
    Get,
    Set,
    Increment,
}

impl Function {
    fn of(operation: &Operation) -> Self {
        match &*operation.f {
            "set" => Self::Set,
            "incr" => Self::Increment,
            _ => Self::Get,
        }
    }
}

/// What is wrong with a history.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Findings {
    /// Acknowledged writes whose effect is not there in the end.
    pub lost: u64,
    /// Effects in the end beyond one for each write that was acknowledged or is unknown.
    pub duplicated: u64,
    /// Operations that saw less than what was seen or acknowledged before they began.
    pub stale_reads: u64,
    /// Operations that saw what nobody had written yet, or what was reported as not done.
    pub impossible_reads: u64,
    /// The first few, in words.
    pub examples: Vec<String>,
}

impl Findings {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        *self == Self::default()
    }

    /// Keeps an example, if there are not enough yet.
    fn note(&mut self, example: impl FnOnce() -> String) {
        const EXAMPLES_MAX: usize = 5;
        if self.examples.len() < EXAMPLES_MAX {
            self.examples.push(example());
        }
    }
}

/// Checks a history of counters and registers against what is there in the end.
pub fn check(history: &History, final_state: &FinalState) -> Findings {
    let mut findings = Findings::default();
    check_real_time(&history.operations, &mut findings);
    check_effects(&history.operations, final_state, &mut findings);
    findings
}

/// What is known of a key at a moment.
#[derive(Default)]
struct Seen {
    /// The highest version that an operation saw or wrote that has completed.
    floor: i64,
    /// The highest version that may exist: increments, or the last set, that have begun.
    ceiling: i64,
}

/// Every operation sees at least what completed before it began, and at most what had begun before it
/// completed.
fn check_real_time(operations: &[Operation], findings: &mut Findings) {
    let refused: HashSet<_> = operations
        .iter()
        .filter(|it| Function::of(it) == Function::Set && it.outcome == Outcome::Fail)
        .map(|it| (&it.key, version(it)))
        .collect();
    let mut begun: Vec<usize> = (0..operations.len()).collect();
    begun.sort_by_key(|at| operations[*at].invoked_ns);
    let mut begun = begun.into_iter().peekable();
    let mut completed: Vec<(u64, usize)> = (operations.iter().enumerate())
        .filter(|(_, operation)| operation.is_acknowledged())
        .filter_map(|(at, operation)| Some((operation.completed_ns?, at)))
        .collect();
    completed.sort_unstable();

    let mut keys: HashMap<&Value, Seen> = HashMap::new();
    let mut floors = vec![0; operations.len()];
    for (time, at) in completed {
        // What begins at the time at which another completes is concurrent with it.
        while let Some(other) = begun.next_if(|other| operations[*other].invoked_ns <= time) {
            let operation = &operations[other];
            let seen = keys.entry(&operation.key).or_default();
            floors[other] = seen.floor;
            match Function::of(operation) {
                Function::Get => {}
                Function::Set => seen.ceiling = seen.ceiling.max(version(operation)),
                Function::Increment => seen.ceiling += 1,
            }
        }
        let operation = &operations[at];
        let Operation { process, key, f, .. } = operation;
        let seen = keys.entry(key).or_default();
        let (version, floor) = (version(operation), floors[at]);
        // A write makes a version of its own.
        if version < floor + i64::from(Function::of(operation) != Function::Get) {
            findings.stale_reads += 1;
            findings
                .note(|| format!("{f} of {key} by process {process} gave {version} after {floor}"));
        }
        if version > seen.ceiling || refused.contains(&(key, version)) {
            findings.impossible_reads += 1;
            findings.note(|| {
                format!("{f} of {key} by process {process} gave {version}, never written")
            });
        }
        seen.floor = seen.floor.max(version);
    }
}

/// The version that an operation saw or wrote.
fn version(operation: &Operation) -> i64 {
    let value = match Function::of(operation) {
        Function::Set => &operation.argument,
        Function::Get | Function::Increment => operation.result(),
    };
    value.as_int().unwrap_or(0)
}

/// What was written to a key.
#[derive(Default)]
struct Written {
    /// The versions that are acknowledged.
    versions: Vec<i64>,
    /// Whether it is a counter.
    is_counter: bool,
    /// How many writes may have been done.
    unknown: u64,
}

/// Every acknowledged write is there in the end, once.
fn check_effects(operations: &[Operation], final_state: &FinalState, findings: &mut Findings) {
    let mut keys: BTreeMap<&Value, Written> = BTreeMap::new();
    for operation in operations {
        let function = Function::of(operation);
        if function == Function::Get {
            continue;
        }
        let written = keys.entry(&operation.key).or_default();
        written.is_counter |= function == Function::Increment;
        match operation.outcome {
            Outcome::Ok(_) => written.versions.push(version(operation)),
            Outcome::Info => written.unknown += 1,
            Outcome::Fail => {}
        }
    }
    for (key, Written { mut versions, is_counter, unknown }) in keys {
        let last = final_state.get(key).copied().unwrap_or(0);
        let acknowledged = versions.len();
        // Two writes with the same version share one effect.
        versions.sort_unstable();
        versions.dedup();
        let there = versions.partition_point(|version| *version <= last);
        let lost = (acknowledged - there) as u64;
        if lost > 0 {
            findings.lost += lost;
            findings.note(|| format!("{lost} acknowledged writes of {key} are not in its {last}"));
        }
        // What increased a counter without being one of these. A register's versions have gaps,
        // where a set was refused.
        let others = u64::try_from(last).unwrap_or(0).saturating_sub(there as u64);
        if is_counter && others > unknown {
            let duplicated = others - unknown;
            findings.duplicated += duplicated;
            findings.note(|| format!("{key} was incremented {duplicated} times too often"));
        }
    }
}

#[cfg(test)]
mod tests;
