//! A number: `add` (or `incr`, `increment`) with what is added, `decr` (or `decrement`), and `read`.

use super::{ActionError, Model, Role, Semantics, Step, may_be_done, written};
use crate::{Operation, Outcome};

/// A counter, 0 in the beginning. What an addition returns is not looked at.
#[derive(Debug, Clone, Copy)]
pub struct Counter {
    /// What nil means: to Knossos a read of nil is unknown, to etcd it saw 0.
    pub semantics: Semantics,
}

/// What an operation on a counter does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CounterAction {
    /// It saw this.
    Read(i64),
    /// It adds this.
    Add(i64),
}

impl Model for Counter {
    type State = i128;
    type Action = CounterAction;

    fn action(&self, operation: &Operation) -> Result<Option<CounterAction>, ActionError> {
        match &*operation.f {
            "read" | "get" => self.read(operation),
            "add" | "incr" | "increment" | "inc" => amount(operation, 1),
            "decr" | "decrement" | "dec" => amount(operation, -1),
            _ => Err(ActionError::unknown(operation, "read, add, incr and decr")),
        }
    }

    fn initial(&self) -> i128 {
        0
    }

    fn step(&self, state: &i128, action: &CounterAction) -> Step<i128> {
        match action {
            CounterAction::Read(seen) => Step::observes(i128::from(*seen) == *state),
            // No history is long enough to overflow this.
            CounterAction::Add(amount) => Step::to(state, state + i128::from(*amount)),
        }
    }

    fn role(&self, action: &CounterAction) -> Role {
        match action {
            CounterAction::Read(_) => Role::Observes,
            CounterAction::Add(0..) => Role::Extends,
            CounterAction::Add(_) => Role::Overwrites,
        }
    }

    fn leads_to(&self, state: &i128, action: &CounterAction) -> bool {
        match action {
            CounterAction::Read(seen) => *state <= i128::from(*seen),
            CounterAction::Add(_) => true,
        }
    }

    fn describe(&self, state: &i128) -> String {
        state.to_string()
    }
}

impl Counter {
    fn read(self, operation: &Operation) -> Result<Option<CounterAction>, ActionError> {
        let Outcome::Ok(result) = &operation.outcome else { return Ok(None) };
        if result.is_nil() {
            let saw_nothing = self.semantics == Semantics::Etcd;
            return Ok(saw_nothing.then_some(CounterAction::Read(0)));
        }
        match result.as_int() {
            Some(seen) => Ok(Some(CounterAction::Read(seen))),
            None => Err(ActionError::bad(operation, result, "a whole number")),
        }
    }
}

fn amount(operation: &Operation, sign: i64) -> Result<Option<CounterAction>, ActionError> {
    let value = &operation.argument;
    let amount = if value.is_nil() { Some(1) } else { value.as_int() };
    match amount.and_then(|amount| amount.checked_mul(sign)) {
        Some(amount) => Ok(may_be_done(operation).then_some(CounterAction::Add(amount))),
        None => Err(ActionError::bad(operation, written(operation), "a whole number")),
    }
}
