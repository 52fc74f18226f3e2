//! A register: `write`, `read`, and `cas` with `[expected, new]`.

use std::collections::HashMap;

use super::{ActionError, Model, Role, Semantics, Step, may_be_done, written};
use crate::{Operation, Outcome, Value};

/// A register, with compare-and-set or without.
#[derive(Debug, Clone, Copy)]
pub struct Register {
    /// What failures and nil mean.
    pub semantics: Semantics,
    /// Whether it has `cas`.
    pub has_cas: bool,
}

/// What an operation on a register does.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum RegisterAction {
    /// It saw this.
    Read(Value),
    /// It leaves this.
    Write(Value),
    /// It saw the first and left the second.
    Swapped(Value, Value),
    /// It may have left the second if there was the first.
    MaySwap(Value, Value),
    /// It saw something else than this.
    Differs(Value),
}

impl Model for Register {
    type State = Value;
    type Action = RegisterAction;

    fn action(&self, operation: &Operation) -> Result<Option<RegisterAction>, ActionError> {
        match &*operation.f {
            "read" => Ok(self.read(operation)),
            "write" => {
                let write = || RegisterAction::Write(written(operation).clone());
                Ok(may_be_done(operation).then(write))
            }
            "cas" if self.has_cas => self.cas(operation),
            _ if self.has_cas => Err(ActionError::unknown(operation, "read, write and cas")),
            _ => Err(ActionError::unknown(operation, "read and write")),
        }
    }

    fn initial(&self) -> Value {
        match self.semantics {
            Semantics::Knossos => Value::Int(0),
            Semantics::Etcd => Value::Nil,
        }
    }

    fn step(&self, state: &Value, action: &RegisterAction) -> Step<Value> {
        match action {
            RegisterAction::Read(seen) => Step::observes(seen == state),
            RegisterAction::Differs(value) => Step::observes(value != state),
            RegisterAction::Write(value) => Step::to(state, value.clone()),
            RegisterAction::Swapped(old, new) if old == state => Step::to(state, new.clone()),
            RegisterAction::Swapped(..) => Step::Refused,
            RegisterAction::MaySwap(old, new) if old == state => Step::to(state, new.clone()),
            RegisterAction::MaySwap(..) => Step::Unchanged,
        }
    }

    fn role(&self, action: &RegisterAction) -> Role {
        match action {
            RegisterAction::Read(_) | RegisterAction::Differs(_) => Role::Observes,
            RegisterAction::Write(_) => Role::Replaces,
            RegisterAction::Swapped(..) | RegisterAction::MaySwap(..) => Role::Overwrites,
        }
    }

    fn leads_to(&self, state: &Value, action: &RegisterAction) -> bool {
        match action {
            RegisterAction::Read(value) | RegisterAction::Swapped(value, _) => state == value,
            RegisterAction::Differs(value) => state != value,
            RegisterAction::Write(_) | RegisterAction::MaySwap(..) => true,
        }
    }

    fn sources(&self, actions: &[RegisterAction]) -> Vec<Option<Vec<u32>>> {
        let mut by_value: HashMap<&Value, Vec<u32>> = HashMap::new();
        for (number, action) in (0..).zip(actions) {
            if let RegisterAction::Write(value)
            | RegisterAction::Swapped(_, value)
            | RegisterAction::MaySwap(_, value) = action
            {
                by_value.entry(value).or_default().push(number);
            }
        }
        let sources = |action: &RegisterAction| match action {
            RegisterAction::Read(value)
            | RegisterAction::Swapped(value, _)
            | RegisterAction::MaySwap(value, _) => {
                Some(by_value.get(value).cloned().unwrap_or_default())
            }
            RegisterAction::Write(_) | RegisterAction::Differs(_) => None,
        };
        actions.iter().map(sources).collect()
    }

    fn describe(&self, state: &Value) -> String {
        state.to_string()
    }

    fn heap_bytes(&self, state: &Value) -> usize {
        state.heap_bytes()
    }
}

impl Register {
    fn read(self, operation: &Operation) -> Option<RegisterAction> {
        let Outcome::Ok(result) = &operation.outcome else { return None };
        let seen = match self.semantics {
            // As Knossos completes a history: some tell at the invocation already.
            Semantics::Knossos if result.is_nil() => &operation.argument,
            _ => result,
        };
        let is_known = self.semantics == Semantics::Etcd || !seen.is_nil();
        is_known.then(|| RegisterAction::Read(seen.clone()))
    }

    fn cas(self, operation: &Operation) -> Result<Option<RegisterAction>, ActionError> {
        let value = written(operation);
        let Some((old, new)) = value.as_pair() else {
            return Err(ActionError::bad(operation, value, "[expected new]"));
        };
        let (old, new) = (old.clone(), new.clone());
        Ok(match (&operation.outcome, self.semantics) {
            (Outcome::Ok(_), _) => Some(RegisterAction::Swapped(old, new)),
            (Outcome::Info, _) => Some(RegisterAction::MaySwap(old, new)),
            (Outcome::Fail, Semantics::Etcd) => Some(RegisterAction::Differs(old)),
            (Outcome::Fail, Semantics::Knossos) => None,
        })
    }
}
