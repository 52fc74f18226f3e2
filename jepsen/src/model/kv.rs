//! A store of texts by keys: `put` (or `set`, `write`), `get` (or `read`), `append`, and `incr`, which
//! returns the sum.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use super::{ActionError, Model, Role, Step, Text, may_be_done, text::PrefixedText, written};
use crate::{Operation, Outcome, Value};

/// A key of a keyed store, empty in the beginning. An absent value, nil and "" are the same, and so
/// are a number and its digits.
#[derive(Debug, Clone, Copy)]
pub struct Kv;

/// What an operation on a key does.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum KvAction {
    /// It saw this.
    Get(PrefixedText),
    /// It leaves this.
    Put(Arc<str>),
    /// It puts this behind what is there.
    Append(Arc<str>),
    /// It adds to the number that is there, 0 if there is nothing, and saw this sum.
    Increment {
        /// What is added.
        by: i64,
        /// The sum; none if it is unknown.
        sum: Option<i64>,
    },
}

impl Model for Kv {
    type State = Text;
    type Action = KvAction;

    fn action(&self, operation: &Operation) -> Result<Option<KvAction>, ActionError> {
        let action = match &*operation.f {
            "get" | "read" => {
                let Outcome::Ok(result) = &operation.outcome else { return Ok(None) };
                KvAction::Get(PrefixedText::new(text_of(operation, result)?))
            }
            "put" | "set" | "write" => KvAction::Put(text_of(operation, written(operation))?),
            "append" => KvAction::Append(text_of(operation, written(operation))?),
            "incr" => {
                let by = if operation.argument.is_nil() {
                    1
                } else {
                    number_of(operation, &operation.argument)?
                };
                let sum = operation.result();
                let sum = if sum.is_nil() { None } else { Some(number_of(operation, sum)?) };
                KvAction::Increment { by, sum }
            }
            _ => return Err(ActionError::unknown(operation, "put, get, append and incr")),
        };
        Ok(may_be_done(operation).then_some(action))
    }

    fn initial(&self) -> Text {
        Text::default()
    }

    fn step(&self, state: &Text, action: &KvAction) -> Step<Text> {
        match action {
            KvAction::Get(seen) => {
                Step::observes(state.len() == seen.as_str().len() && state.is_prefix_of(seen))
            }
            KvAction::Put(text) => Step::to(state, Text::default().append(text)),
            KvAction::Append(text) => Step::to(state, state.append(text)),
            KvAction::Increment { by, sum } => {
                let is_empty = state.is_empty();
                let number = if is_empty { Some(0) } else { state.to_string().parse().ok() };
                let after = number.and_then(|number: i64| number.checked_add(*by));
                match (after, sum) {
                    (Some(after), Some(sum)) if after != *sum => Step::Refused,
                    (Some(after), _) => {
                        Step::to(state, Text::default().append(&after.to_string().into()))
                    }
                    // The store refuses to count what is no number.
                    (None, Some(_)) => Step::Refused,
                    (None, None) => Step::Unchanged,
                }
            }
        }
    }

    fn role(&self, action: &KvAction) -> Role {
        match action {
            KvAction::Get(_) => Role::Observes,
            KvAction::Append(_) => Role::Extends,
            KvAction::Put(_) => Role::Replaces,
            KvAction::Increment { .. } => Role::Overwrites,
        }
    }

    fn leads_to(&self, state: &Text, action: &KvAction) -> bool {
        match action {
            KvAction::Get(seen) => state.is_prefix_of(seen),
            _ => true,
        }
    }

    /// A text comes from what was put, if it begins with it.
    fn sources(&self, actions: &[KvAction]) -> Vec<Option<Vec<u32>>> {
        // By length and text, so that few beginnings have to be looked up.
        let mut puts: BTreeMap<usize, HashMap<&str, u32>> = BTreeMap::new();
        // These leave what they find out.
        let mut increments = Vec::new();
        for (number, action) in (0..).zip(actions) {
            match action {
                KvAction::Put(text) => {
                    puts.entry(text.len()).or_default().insert(text, number);
                }
                KvAction::Increment { .. } => increments.push(number),
                KvAction::Get(_) | KvAction::Append(_) => {}
            }
        }
        let sources = |action: &KvAction| {
            let KvAction::Get(seen) = action else { return None };
            let beginnings = puts.iter().map_while(|(length, puts)| {
                let beginning = seen.as_str().as_bytes().get(..*length)?;
                Some(str::from_utf8(beginning).ok().and_then(|it| puts.get(it)).copied())
            });
            Some(beginnings.flatten().chain(increments.iter().copied()).collect())
        };
        actions.iter().map(sources).collect()
    }

    fn describe(&self, state: &Text) -> String {
        format!("{:?}", state.to_string())
    }

    fn heap_bytes(&self, state: &Text) -> usize {
        // One piece, which points to those before it; the text is the history's.
        const PIECE: usize = 48;
        if state.is_empty() { 0 } else { PIECE }
    }
}

fn text_of(operation: &Operation, value: &Value) -> Result<Arc<str>, ActionError> {
    match value {
        Value::Nil => Ok(Arc::default()),
        Value::Text(text) | Value::Keyword(text) | Value::Literal(text) => Ok(Arc::clone(text)),
        Value::Int(number) => Ok(number.to_string().into()),
        Value::Bool(truth) => Ok(truth.to_string().into()),
        _ => Err(ActionError::bad(operation, value, "a text or a number")),
    }
}

fn number_of(operation: &Operation, value: &Value) -> Result<i64, ActionError> {
    let number = match value {
        Value::Text(text) => text.parse().ok(),
        value => value.as_int(),
    };
    number.ok_or_else(|| ActionError::bad(operation, value, "a whole number"))
}
