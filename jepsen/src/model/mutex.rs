//! A lock: `acquire` and `release`.

use super::{ActionError, Model, Step, may_be_done};
use crate::Operation;

/// A lock, free in the beginning. As Knossos's, it does not look at who holds it.
#[derive(Debug, Clone, Copy)]
pub struct Mutex;

/// What an operation on a lock does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MutexAction {
    /// It takes the free lock.
    Acquire,
    /// It frees the lock that is held.
    Release,
}

impl Model for Mutex {
    /// Whether it is held.
    type State = bool;
    type Action = MutexAction;

    fn action(&self, operation: &Operation) -> Result<Option<MutexAction>, ActionError> {
        let action = match &*operation.f {
            "acquire" => MutexAction::Acquire,
            "release" => MutexAction::Release,
            _ => return Err(ActionError::unknown(operation, "acquire and release")),
        };
        Ok(may_be_done(operation).then_some(action))
    }

    fn initial(&self) -> bool {
        false
    }

    fn step(&self, is_held: &bool, action: &MutexAction) -> Step<bool> {
        match (is_held, action) {
            (false, MutexAction::Acquire) => Step::Becomes(true),
            (true, MutexAction::Release) => Step::Becomes(false),
            _ => Step::Refused,
        }
    }

    fn describe(&self, is_held: &bool) -> String {
        if *is_held { "held" } else { "free" }.to_owned()
    }
}
