//! A queue: `enqueue` and `dequeue`, first in, first out.

use std::hash::{BuildHasher, Hash, Hasher};

use imbl::Vector;

use super::{ActionError, Model, Role, Step, may_be_done, written};
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

/// What a queue holds, from the front, with a number by which states are told apart quickly: the items'
/// hashes as the digits of a number.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct QueueState {
    number: u64,
    items: Vector<Value>,
}

/// The base of the number: odd, so that nothing is lost.
const BASE: u64 = 0x9e37_79b9_7f4a_7c15;

impl QueueState {
    fn with_last(&self, item: &Value) -> Self {
        let mut items = self.items.clone();
        items.push_back(item.clone());
        Self { number: self.number.wrapping_mul(BASE).wrapping_add(digit(item)), items }
    }

    fn without_first(&self) -> Self {
        let mut items = self.items.clone();
        let digit = items.pop_front().map_or(0, |first| digit(&first));
        let power = BASE.wrapping_pow(items.len() as u32);
        Self { number: self.number.wrapping_sub(digit.wrapping_mul(power)), items }
    }
}

impl Hash for QueueState {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.number.hash(hasher);
    }
}

fn digit(item: &Value) -> u64 {
    foldhash::fast::FixedState::default().hash_one(item)
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
            QueueAction::Enqueue(value) => Step::Becomes(state.with_last(value)),
            QueueAction::Dequeue(Value::Nil) => Step::observes(state.items.is_empty()),
            QueueAction::Dequeue(value) if state.items.front() != Some(value) => Step::Refused,
            QueueAction::DequeueUnknown if state.items.is_empty() => Step::Unchanged,
            QueueAction::Dequeue(_) | QueueAction::DequeueUnknown => {
                Step::Becomes(state.without_first())
            }
        }
    }

    fn role(&self, action: &QueueAction) -> Role {
        match action {
            QueueAction::Dequeue(Value::Nil) => Role::Observes,
            _ => Role::Extends,
        }
    }

    fn describe(&self, state: &QueueState) -> String {
        let items: Vec<_> = state.items.iter().map(ToString::to_string).collect();
        format!("[{}]", items.join(" "))
    }

    fn heap_bytes(&self, state: &QueueState) -> usize {
        // States share most of what they hold; a change copies a chunk, which always has room for as
        // many, and the path to it.
        const CHUNK: usize = 64;
        let paths = usize::from(state.items.len() > CHUNK);
        if state.items.is_empty() { 0 } else { CHUNK * (size_of::<Value>() + paths * 8) + 64 }
    }
}
