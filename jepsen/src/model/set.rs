//! A set: `add`, `remove`, and `read` of all its elements.

use std::{
    hash::{BuildHasher, Hash, Hasher},
    sync::Arc,
};

use imbl::OrdSet;

use super::{ActionError, Model, Role, Semantics, Step, may_be_done, written};
use crate::{Operation, Outcome, Value};

/// A set, empty in the beginning.
#[derive(Debug, Clone, Copy)]
pub struct Set {
    /// What nil means: to Knossos a read of nil is unknown, to etcd it saw an empty set.
    pub semantics: Semantics,
}

/// What an operation on a set does.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SetAction {
    /// It saw these, sorted.
    Read(Arc<[Value]>),
    /// It saw something that no set is.
    ReadTwice,
    /// It puts this in.
    Add(Value),
    /// It takes this out.
    Remove(Value),
}

/// What a set holds, with a sum of the elements' hashes, by which states are told apart quickly.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SetState {
    sum: u64,
    items: OrdSet<Value>,
}

impl Hash for SetState {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.sum.hash(hasher);
    }
}

impl Model for Set {
    type State = SetState;
    type Action = SetAction;

    fn action(&self, operation: &Operation) -> Result<Option<SetAction>, ActionError> {
        let change = |action: fn(Value) -> SetAction| {
            Ok(may_be_done(operation).then(|| action(written(operation).clone())))
        };
        match &*operation.f {
            "add" => change(SetAction::Add),
            "remove" => change(SetAction::Remove),
            "read" => self.read(operation),
            _ => Err(ActionError::unknown(operation, "add, remove and read")),
        }
    }

    fn initial(&self) -> SetState {
        SetState::default()
    }

    fn step(&self, state: &SetState, action: &SetAction) -> Step<SetState> {
        match action {
            SetAction::Read(seen) => {
                let is_same = seen.len() == state.items.len() && seen.iter().eq(state.items.iter());
                Step::observes(is_same)
            }
            SetAction::ReadTwice => Step::Refused,
            SetAction::Add(value) if state.items.contains(value) => Step::Unchanged,
            SetAction::Add(value) => {
                let sum = state.sum.wrapping_add(hash(value));
                Step::Becomes(SetState { sum, items: state.items.update(value.clone()) })
            }
            SetAction::Remove(value) if !state.items.contains(value) => Step::Unchanged,
            SetAction::Remove(value) => {
                let sum = state.sum.wrapping_sub(hash(value));
                Step::Becomes(SetState { sum, items: state.items.without(value) })
            }
        }
    }

    fn role(&self, action: &SetAction) -> Role {
        match action {
            SetAction::Read(_) | SetAction::ReadTwice => Role::Observes,
            SetAction::Add(_) => Role::Extends,
            SetAction::Remove(_) => Role::Overwrites,
        }
    }

    fn leads_to(&self, state: &SetState, action: &SetAction) -> bool {
        match action {
            SetAction::Read(seen) => {
                let is_seen = |value: &Value| seen.binary_search(value).is_ok();
                state.items.len() <= seen.len() && state.items.iter().all(is_seen)
            }
            _ => true,
        }
    }

    fn describe(&self, state: &SetState) -> String {
        Value::Set(state.items.iter().cloned().collect()).to_string()
    }

    fn heap_bytes(&self, state: &SetState) -> usize {
        // States share most of what they hold; a change copies the path to a leaf, of nodes that always
        // have room for as many.
        const NODE: usize = 16;
        let mut branches = 0;
        let mut reached = NODE;
        while reached < state.items.len() {
            branches += 1;
            reached *= NODE / 2;
        }
        let leaf = NODE * size_of::<Value>() + 32;
        if state.items.is_empty() { 0 } else { leaf + branches * (leaf + NODE * 8 + 32) }
    }
}

impl Set {
    fn read(self, operation: &Operation) -> Result<Option<SetAction>, ActionError> {
        let Outcome::Ok(result) = &operation.outcome else { return Ok(None) };
        if result.is_nil() {
            let saw_nothing = self.semantics == Semantics::Etcd;
            return Ok(saw_nothing.then(|| SetAction::Read(Arc::default())));
        }
        let Some(items) = result.items() else {
            return Err(ActionError::bad(operation, result, "a set or a list"));
        };
        let mut sorted = items.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        let is_set = sorted.len() == items.len();
        Ok(Some(if is_set { SetAction::Read(sorted.into()) } else { SetAction::ReadTwice }))
    }
}

fn hash(value: &Value) -> u64 {
    foldhash::fast::FixedState::default().hash_one(value)
}
