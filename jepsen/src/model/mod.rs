//! What operations mean: sequential specifications.
//!
//! A model says what an operation does to the state of one key, and which results it can have. An
//! operation is first understood, once, as an action: so a model's steps never look at names.

mod counter;
mod kv;
mod mutex;
mod queue;
mod register;
mod set;
mod text;

use std::{fmt, hash::Hash};

pub use counter::Counter;
pub use kv::Kv;
pub use mutex::Mutex;
pub use queue::Queue;
pub use register::Register;
pub use set::Set;
pub use text::Text;

use crate::{Operation, Outcome, Value};

/// A sequential specification of one key. Keys do not know of each other, so that each is checked by
/// itself (P-compositionality: Horn and Kroening, FORTE 2015).
///
/// To ensure that a verdict is right:
///
/// - `step` is a function: the same state and action give the same step, always.
/// - States are equal exactly if no sequence of actions tells them apart.
/// - An action of an operation with an unknown outcome takes any result.
pub trait Model {
    /// What a key holds.
    type State: Clone + fmt::Debug + Eq + Hash;
    /// What an operation does, and what came of it.
    type Action: Clone + fmt::Debug + Eq + Hash;

    /// Understands an operation. None if it tells nothing and does nothing, as one that failed or a
    /// read that was not answered.
    fn action(&self, operation: &Operation) -> Result<Option<Self::Action>, ActionError>;

    /// What a key holds in the beginning.
    fn initial(&self) -> Self::State;

    /// What an action does.
    fn step(&self, state: &Self::State, action: &Self::Action) -> Step<Self::State>;

    /// What the checker may know of an action, to search less; the default promises nothing.
    fn role(&self, action: &Self::Action) -> Role {
        let _ = action;
        Role::Extends
    }

    /// Whether an action may come to be possible from a state, by actions that extend only. To say yes
    /// is always right.
    fn leads_to(&self, state: &Self::State, action: &Self::Action) -> bool {
        let _ = (state, action);
        true
    }

    /// Of each of some different actions, which of them overwrite what is there with something that
    /// leads to it, in at least one state; none where that is not known, which is always right.
    fn sources(&self, actions: &[Self::Action]) -> Vec<Option<Vec<u32>>> {
        vec![None; actions.len()]
    }

    /// What a state says to people.
    fn describe(&self, state: &Self::State) -> String;

    /// About how many bytes a state takes beside itself.
    fn heap_bytes(&self, state: &Self::State) -> usize {
        let _ = state;
        0
    }
}

/// What an action does to a state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step<S> {
    /// It cannot have had this result here.
    Refused,
    /// It is possible and leaves the state as it is.
    Unchanged,
    /// It is possible and leaves another state.
    Becomes(S),
}

impl<S: Eq> Step<S> {
    /// An action that is possible, with what it leaves.
    pub fn to(before: &S, after: S) -> Self {
        if *before == after { Self::Unchanged } else { Self::Becomes(after) }
    }

    /// An action that leaves the state as it is, if it is possible.
    pub fn observes(is_possible: bool) -> Self {
        if is_possible { Self::Unchanged } else { Self::Refused }
    }
}

/// How an action relates to what others observe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Changes nothing, in any state, and sees what others left.
    Observes,
    /// Adds to what is there.
    Extends,
    /// May take away what is there.
    Overwrites,
    /// Is possible in any state, and leaves one that does not depend on it. A model that has such
    /// actions promises that all others that extend are possible in any state too.
    Replaces,
}

/// What a failed operation and an empty result mean, which differs between Jepsen's suites.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Semantics {
    /// Knossos: what failed never happened, a read of nil is unknown, and a register begins as 0.
    #[default]
    Knossos,
    /// The suite for etcd: a compare-and-set that failed did not match, a read of nil saw that there
    /// is nothing, and a register begins with nothing.
    Etcd,
}

/// Why a model cannot understand an operation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ActionError {
    /// It does something else.
    #[error("this model has no operation {f:?}; it has {known}")]
    UnknownFunction {
        /// What it does.
        f: String,
        /// What the model knows.
        known: &'static str,
    },
    /// Its argument or its result is of another kind.
    #[error("the value {value} of {f} is not {expected}")]
    BadValue {
        /// What it does.
        f: String,
        /// What it has.
        value: String,
        /// What it should have.
        expected: &'static str,
    },
}

impl ActionError {
    pub(crate) fn unknown(operation: &Operation, known: &'static str) -> Self {
        Self::UnknownFunction { f: operation.f.to_string(), known }
    }

    pub(crate) fn bad(operation: &Operation, value: &Value, expected: &'static str) -> Self {
        Self::BadValue { f: operation.f.to_string(), value: value.to_string(), expected }
    }
}

/// What an operation writes: as Knossos does it, what it was given, or what it says in the end if it
/// was given nothing.
fn written(operation: &Operation) -> &Value {
    if operation.argument.is_nil() { operation.result() } else { &operation.argument }
}

/// Whether an operation that changes something has to be looked at: it was done, or may have been.
fn may_be_done(operation: &Operation) -> bool {
    operation.outcome != Outcome::Fail
}

/// An operation for people, in one line without its process.
#[derive(Debug)]
pub struct Described<'a>(pub &'a Operation);

impl fmt::Display for Described<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Operation { f: function, argument, outcome, .. } = self.0;
        if matches!(&**function, "txn" | "") {
            // The result repeats the argument, with what was seen.
            let result = self.0.result();
            write!(f, "txn {}", if result.is_nil() { argument } else { result })?;
            return f.write_str(match outcome {
                Outcome::Ok(_) => "",
                Outcome::Fail => " → failed",
                Outcome::Info => " → unknown",
            });
        }
        f.write_str(function)?;
        if !argument.is_nil() {
            write!(f, " {argument}")?;
        }
        match outcome {
            // Most writes repeat what they wrote.
            Outcome::Ok(result) if result == argument || result.is_nil() && !argument.is_nil() => {
                Ok(())
            }
            Outcome::Ok(result) => write!(f, " → {result}"),
            Outcome::Fail => f.write_str(" → failed"),
            Outcome::Info => f.write_str(" → unknown"),
        }
    }
}

#[cfg(test)]
mod tests;
