//! A queue: `enqueue` and `dequeue`, first in, first out.

use std::hash::{Hash, Hasher};

use imbl::Vector;

use super::{ActionError, Model, Step, may_be_done, written};
use crate::{Operation, Outcome, Value};

/// A queue, empty in the beginning.
#[derive(Debug, Clone, Copy)]
pub struct Queue;

/// What an operation on a queue does.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum QueueAction {
    /// It puts this behind all others.
    Enqueue(Value),
    /// It took this from the front; nil if it found nothing.
    Dequeue(Value),
    /// It may have taken what was at the front.
    DequeueUnknown,
}

/// What a queue holds, from the front.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct QueueState {
    items: Vector<Value>,
}

impl Hash for QueueState {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        // Enough to tell most apart, at a cost that does not grow with the queue.
        (self.items.len(), self.items.front(), self.items.back()).hash(hasher);
        self.items.get(self.items.len() / 2).hash(hasher);
    }
}

impl Model for Queue {
    type State = QueueState;
    type Action = QueueAction;

    fn action(&self, operation: &Operation) -> Result<Option<QueueAction>, ActionError> {
        let action = match (&*operation.f, &operation.outcome) {
            ("enqueue", _) => QueueAction::Enqueue(written(operation).clone()),
            ("dequeue", Outcome::Ok(result)) => QueueAction::Dequeue(result.clone()),
            ("dequeue", _) => QueueAction::DequeueUnknown,
            _ => return Err(ActionError::unknown(operation, "enqueue and dequeue")),
        };
        Ok(may_be_done(operation).then_some(action))
    }

    fn initial(&self) -> QueueState {
        QueueState::default()
    }

    fn step(&self, state: &QueueState, action: &QueueAction) -> Step<QueueState> {
        match action {
            QueueAction::Enqueue(value) => {
                let mut items = state.items.clone();
                items.push_back(value.clone());
                Step::Becomes(QueueState { items })
            }
            QueueAction::Dequeue(Value::Nil) => Step::observes(state.items.is_empty()),
            QueueAction::Dequeue(value) if state.items.front() != Some(value) => Step::Refused,
            QueueAction::DequeueUnknown if state.items.is_empty() => Step::Unchanged,
            QueueAction::Dequeue(_) | QueueAction::DequeueUnknown => {
                let mut items = state.items.clone();
                items.pop_front();
                Step::Becomes(QueueState { items })
            }
        }
    }

    fn describe(&self, state: &QueueState) -> String {
        let items: Vec<_> = state.items.iter().map(ToString::to_string).collect();
        format!("[{}]", items.join(" "))
    }

    fn heap_bytes(&self, state: &QueueState) -> usize {
        // States share most of what they hold; a change copies a chunk and the path to it.
        const CHUNK: usize = 64;
        state.items.len().min(2 * CHUNK) * size_of::<Value>()
    }
}
