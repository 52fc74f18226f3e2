//! The checker: is there an order of a history's operations, each between its invocation and its
//! completion, that a model allows?
//!
//! Keys are searched by turns, each turn twice as long as the one before, so that one hard key does
//! not hide what is easily seen in another. Everything is counted in steps, and a history with the same
//! limits on steps and memory has the same report every time; only the limit on time is the caller's.

mod counterexample;
mod list;
mod locks;
mod pending;
mod problem;
mod search;
mod states;
mod visited;

pub use counterexample::{Counterexample, PartialOrder};
pub use problem::CheckError;

use crate::{History, Model, Value};
use problem::problems;
use search::{Progress, Search};

/// How much a check may use.
#[derive(Clone, Copy)]
pub struct Limits<'a> {
    /// Steps of the search over all keys: an operation tried at a place is one.
    pub steps_max: u64,
    /// Memory in bytes, of the history too.
    pub bytes_max: usize,
    /// Asked again and again whether the time is up.
    pub is_time_up: &'a dyn Fn() -> bool,
}

impl std::fmt::Debug for Limits<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { steps_max, bytes_max, .. } = self;
        write!(f, "Limits {{ steps_max: {steps_max}, bytes_max: {bytes_max} }}")
    }
}

impl Limits<'_> {
    /// No limit on time, and so many steps: the same report every time.
    pub fn steps(steps_max: u64) -> Self {
        Self { steps_max, bytes_max: usize::MAX / 4, is_time_up: &|| false }
    }
}

/// What a check has run into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// The steps.
    Steps,
    /// The memory.
    Memory,
    /// The time.
    Time,
}

/// Whether a history is linearizable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is.
    Linearizable,
    /// It is not.
    NotLinearizable,
    /// A limit was reached first.
    Unknown(Limit),
}

/// What was found of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyReport {
    /// The key.
    pub key: Value,
    /// Its operations that matter, by their places in the history, in order of invocation.
    pub operations: Vec<usize>,
    /// What was found.
    pub finding: Finding,
}

/// What was found of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// This order of its operations, by their places in the history, explains everything.
    Linearizable(Vec<usize>),
    /// No order does.
    NotLinearizable(Box<Counterexample>),
    /// The check ended before it was known: by a limit, or because of what was found of another key.
    Unknown(Option<Limit>),
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Of the whole history.
    pub verdict: Verdict,
    /// Of each key, in order.
    pub keys: Vec<KeyReport>,
    /// The steps that were made.
    pub steps: u64,
}

/// Checks whether a history is linearizable.
pub fn check<M: Model>(
    model: &M,
    history: &History,
    limits: &Limits<'_>,
) -> Result<Report, CheckError> {
    let problems = problems(model, history)?;
    let mut check = Check { model, limits, bytes: history.bytes(), steps: 0, limit: None };
    let mut keys: Vec<Key<'_, M>> = problems.into_iter().map(|it| Key::new(model, it)).collect();
    check.bytes += keys.iter().map(Key::bytes).sum::<usize>();
    if check.bytes > limits.bytes_max {
        check.limit = Some(Limit::Memory);
    } else if (limits.is_time_up)() {
        check.limit = Some(Limit::Time);
    }
    let mut turn = FIRST_TURN;
    while check.limit.is_none() && keys.iter().any(|key| key.search.is_some()) {
        for at in 0..keys.len() {
            check.turn(&mut keys, at, turn);
        }
        if keys.iter().any(|key| matches!(key.report.finding, Finding::NotLinearizable(_))) {
            break;
        }
        turn = turn.saturating_mul(2);
    }
    Ok(check.report(keys))
}

/// The steps of each key's first turn.
const FIRST_TURN: u64 = 1 << 12;

/// After so many steps the time is looked at.
const STEPS_BETWEEN_LOOKS: u64 = 1 << 10;

struct Check<'a, M> {
    model: &'a M,
    limits: &'a Limits<'a>,
    /// In use, over all keys.
    bytes: usize,
    steps: u64,
    /// That which has ended the whole check.
    limit: Option<Limit>,
}

struct Key<'m, M: Model> {
    /// None if it is over.
    search: Option<Search<'m, M>>,
    report: KeyReport,
}

impl<'m, M: Model> Key<'m, M> {
    fn new(model: &'m M, problem: problem::Problem<M>) -> Self {
        let report = KeyReport {
            key: problem.key.clone(),
            operations: problem.ops.iter().map(|op| op.place).collect(),
            finding: Finding::Unknown(None),
        };
        Self { search: Some(Search::new(model, problem)), report }
    }

    fn bytes(&self) -> usize {
        let report = size_of::<Self>() + self.report.operations.capacity() * size_of::<usize>();
        report + self.search.as_ref().map_or(0, Search::bytes)
    }
}

impl<M: Model> Check<'_, M> {
    /// Searches a key for so many steps.
    fn turn(&mut self, keys: &mut [Key<'_, M>], at: usize, steps: u64) {
        let mut left = steps;
        while left > 0 && self.limit.is_none() {
            let Some(search) = &mut keys[at].search else { return };
            let slice = left.min(STEPS_BETWEEN_LOOKS).min(self.limits.steps_max - self.steps);
            let (steps_before, bytes_before) = (search.steps(), search.bytes());
            let bytes_max = (self.limits.bytes_max + bytes_before).saturating_sub(self.bytes);
            let progress = search.run(steps_before + slice, bytes_max);
            let steps = search.steps() - steps_before;
            self.bytes = self.bytes + search.bytes() - bytes_before;
            self.steps += steps;
            left = left.saturating_sub(steps.max(1));
            match progress {
                Progress::Found | Progress::Exhausted => {
                    self.settle(&mut keys[at], progress);
                    return;
                }
                Progress::OutOfMemory => self.give_up_largest(keys),
                Progress::Paused => {}
            }
            if self.steps >= self.limits.steps_max {
                self.limit = Some(Limit::Steps);
            } else if (self.limits.is_time_up)() {
                self.limit = Some(Limit::Time);
            }
        }
    }

    fn settle(&mut self, key: &mut Key<'_, M>, progress: Progress) {
        let bytes = key.bytes();
        let search = key.search.take().expect("it has just made progress");
        key.report.finding = match progress {
            Progress::Found => Finding::Linearizable(search.order().operations),
            _ => {
                let found = counterexample::find(self.model, &search, self.limits);
                Finding::NotLinearizable(Box::new(found))
            }
        };
        drop(search);
        self.bytes = self.bytes + key.bytes() - bytes;
    }

    /// Ends the search that takes the most memory, so that the others can go on.
    fn give_up_largest(&mut self, keys: &mut [Key<'_, M>]) {
        let bytes = |key: &Key<'_, M>| key.search.as_ref().map_or(0, Search::bytes);
        let Some(largest) = keys.iter_mut().max_by_key(|key| bytes(key)) else { return };
        self.bytes -= bytes(largest);
        largest.search = None;
        largest.report.finding = Finding::Unknown(Some(Limit::Memory));
    }

    fn report(self, keys: Vec<Key<'_, M>>) -> Report {
        let mut verdict = Verdict::Linearizable;
        let mut reports = Vec::new();
        for Key { search, mut report } in keys {
            if search.is_some() {
                report.finding = Finding::Unknown(self.limit);
            }
            match &report.finding {
                Finding::NotLinearizable(_) => verdict = Verdict::NotLinearizable,
                Finding::Unknown(Some(limit)) if verdict == Verdict::Linearizable => {
                    verdict = Verdict::Unknown(*limit);
                }
                Finding::Unknown(_) | Finding::Linearizable(_) => {}
            }
            reports.push(report);
        }
        Report { verdict, keys: reports, steps: self.steps }
    }
}

#[cfg(test)]
mod tests;
