//! The operations of one key, as the search needs them.

use std::collections::BTreeMap;

use super::states::Interned;
use crate::{
    History, Model, Operation, Outcome, Value,
    model::{ActionError, Role},
};

/// An operation that was done, or that may have been.
#[derive(Debug, Clone, Copy)]
pub(super) struct Op {
    /// Its place in the history.
    pub(super) place: usize,
    /// The number of its action.
    pub(super) action: u32,
    pub(super) invoked_ns: u64,
    /// None if its outcome is unknown, so that it may be done at any time after its invocation.
    pub(super) completed_ns: Option<u64>,
}

/// What is to be ordered: the operations of one key, in order of their invocation.
#[derive(Debug)]
pub(super) struct Problem<M: Model> {
    pub(super) key: Value,
    pub(super) ops: Vec<Op>,
    pub(super) actions: Interned<M::Action>,
    /// Of each action.
    pub(super) roles: Vec<Role>,
}

/// An operation that a model does not understand.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {source}")]
pub struct CheckError {
    /// The line of the file that says that it began, from 1; 0 if it is of no file.
    pub line: usize,
    /// Why not.
    pub source: ActionError,
}

/// Understands a history, key by key, in order of the keys.
pub(super) fn problems<M: Model>(
    model: &M,
    history: &History,
) -> Result<Vec<Problem<M>>, CheckError> {
    let mut keys: BTreeMap<&Value, Problem<M>> = BTreeMap::new();
    for (place, operation) in history.operations.iter().enumerate() {
        let action = model.action(operation);
        let action = action.map_err(|source| CheckError { line: operation.line, source })?;
        let Some(action) = action else { continue };
        let problem = keys.entry(&operation.key).or_insert_with(|| Problem {
            key: operation.key.clone(),
            ops: Vec::new(),
            actions: Interned::new(),
            roles: Vec::new(),
        });
        problem.push(model, place, operation, action);
    }
    let mut problems: Vec<_> = keys.into_values().collect();
    for problem in &mut problems {
        problem.ops.sort_by_key(|op| op.invoked_ns);
    }
    Ok(problems)
}

impl<M: Model> Problem<M> {
    fn push(&mut self, model: &M, place: usize, operation: &Operation, action: M::Action) {
        let is_known = operation.outcome != Outcome::Info;
        let completed_ns = operation.completed_ns.filter(|_| is_known);
        let invoked_ns = operation.invoked_ns;
        self.push_op(model, action, Op { place, action: 0, invoked_ns, completed_ns });
    }

    fn push_op(&mut self, model: &M, action: M::Action, op: Op) {
        let role = model.role(&action);
        let action = self.actions.number(action, |_| 0);
        if action as usize == self.roles.len() {
            self.roles.push(role);
        }
        self.ops.push(Op { action, ..op });
    }

    /// The order in which operations complete.
    pub(super) fn completions(&self) -> Vec<u32> {
        let completing = |(op, it): (u32, &Op)| Some((it.completed_ns?, op));
        let mut completions: Vec<_> = (0..).zip(&self.ops).filter_map(completing).collect();
        completions.sort_unstable();
        completions.into_iter().map(|(_, op)| op).collect()
    }

    /// What was known when an operation had completed: those that had begun, of which only those that
    /// had completed must be ordered.
    pub(super) fn prefix(&self, model: &M, last: u32) -> Self {
        let end = |op: u32, completed_ns: u64| (completed_ns, op);
        let completed_ns = self.ops[last as usize].completed_ns;
        let completed_ns = completed_ns.expect("an operation that has completed");
        let mut prefix = Self {
            key: self.key.clone(),
            ops: Vec::new(),
            actions: Interned::new(),
            roles: Vec::new(),
        };
        for (op, it) in (0..).zip(&self.ops).take_while(|(_, it)| it.invoked_ns <= completed_ns) {
            let is_completed = |at: &u64| end(op, *at) <= end(last, completed_ns);
            let completed_ns = it.completed_ns.filter(is_completed);
            prefix.push_op(model, self.actions.get(it.action).clone(), Op { completed_ns, ..*it });
        }
        prefix
    }

    pub(super) fn role(&self, op: u32) -> Role {
        self.role_of(self.ops[op as usize].action)
    }

    pub(super) fn role_of(&self, action: u32) -> Role {
        self.roles[action as usize]
    }

    pub(super) fn bytes(&self) -> usize {
        self.ops.capacity() * size_of::<Op>() + self.actions.bytes() + self.roles.capacity()
    }
}
