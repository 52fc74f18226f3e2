//! Transactions, understood: what each appended and what it saw.

use std::collections::HashMap;

use super::ListAppendError;
use crate::{History, Operation, Outcome, Value};

/// A transaction that was done, or that may have been, or that was not.
#[derive(Debug)]
pub(super) struct Txn {
    /// Its place in the history.
    pub(super) place: usize,
    pub(super) status: Status,
    pub(super) steps: Vec<TxnStep>,
}

/// What became of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Committed,
    Aborted,
    Unknown,
}

/// A step of a transaction. Keys and elements are told by number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum TxnStep {
    Append {
        key: u32,
        element: u32,
    },
    /// What was seen; none if that is unknown.
    Read {
        key: u32,
        seen: Option<Vec<u32>>,
    },
}

/// An element of a list: no list has two that are equal.
#[derive(Debug)]
pub(super) struct Element {
    pub(super) value: Value,
    /// The transaction that appended it; none if nobody did.
    pub(super) appender: Option<u32>,
    /// Whether its transaction appended nothing to the list after it.
    pub(super) is_last_of_txn: bool,
}

/// All transactions of a history.
#[derive(Debug, Default)]
pub(super) struct Txns {
    pub(super) txns: Vec<Txn>,
    pub(super) keys: Vec<Value>,
    pub(super) elements: Vec<Element>,
    key_numbers: HashMap<Value, u32>,
    element_numbers: HashMap<(u32, Value), u32>,
}

impl Txns {
    pub(super) fn new(history: &History) -> Result<Self, ListAppendError> {
        let mut txns = Self::default();
        for (place, operation) in history.operations.iter().enumerate() {
            txns.push(place, operation)?;
        }
        txns.set_appenders(history)?;
        Ok(txns)
    }

    fn push(&mut self, place: usize, operation: &Operation) -> Result<(), ListAppendError> {
        let bad = |what: String| ListAppendError::Operation { line: operation.line, what };
        if !matches!(&*operation.f, "txn" | "") {
            return Err(bad(format!("list-append has no operation {:?}; it has txn", operation.f)));
        }
        let (status, value) = match &operation.outcome {
            Outcome::Ok(Value::Nil) => (Status::Committed, &operation.argument),
            Outcome::Ok(result) => (Status::Committed, result),
            Outcome::Fail => (Status::Aborted, &operation.argument),
            Outcome::Info => (Status::Unknown, &operation.argument),
        };
        let Value::List(items) = value else {
            return Err(bad(format!("the value {value} of txn is not a list of [f key value]")));
        };
        let mut steps = Vec::with_capacity(items.len());
        for item in items.iter() {
            let step = match item.items() {
                Some([f, key, value]) => self.step(f, key, value),
                _ => None,
            };
            let step = step.ok_or_else(|| {
                bad(format!("{item} is neither [:append key value] nor [:r key list]"))
            })?;
            // What a transaction saw that did not commit is not known.
            steps.push(match step {
                TxnStep::Read { key, .. } if status != Status::Committed => {
                    TxnStep::Read { key, seen: None }
                }
                step => step,
            });
        }
        self.txns.push(Txn { place, status, steps });
        Ok(())
    }

    fn step(&mut self, f: &Value, key: &Value, value: &Value) -> Option<TxnStep> {
        let key = self.key(key);
        match f.as_name()? {
            "append" => Some(TxnStep::Append { key, element: self.element(key, value) }),
            "r" => {
                let seen = match value {
                    // In a transaction that committed: there is no list yet.
                    Value::Nil => Vec::new(),
                    Value::List(items) => items.iter().map(|it| self.element(key, it)).collect(),
                    _ => return None,
                };
                Some(TxnStep::Read { key, seen: Some(seen) })
            }
            _ => None,
        }
    }

    fn key(&mut self, key: &Value) -> u32 {
        if let Some(number) = self.key_numbers.get(key) {
            return *number;
        }
        let number = u32::try_from(self.keys.len()).expect("fewer than 2^32 keys");
        self.keys.push(key.clone());
        self.key_numbers.insert(key.clone(), number);
        number
    }

    fn element(&mut self, key: u32, value: &Value) -> u32 {
        let named = (key, value.clone());
        if let Some(number) = self.element_numbers.get(&named) {
            return *number;
        }
        let number = u32::try_from(self.elements.len()).expect("fewer than 2^32 elements");
        let value = value.clone();
        self.elements.push(Element { value, appender: None, is_last_of_txn: true });
        self.element_numbers.insert(named, number);
        number
    }

    /// Finds out who appended what. Nothing is to be appended twice, or nobody can tell which one was
    /// seen.
    fn set_appenders(&mut self, history: &History) -> Result<(), ListAppendError> {
        let Self { txns, elements, keys, .. } = self;
        // Of each key, what the transaction appended last.
        let mut last: HashMap<u32, u32> = HashMap::new();
        for (number, txn) in (0..).zip(&*txns) {
            last.clear();
            for step in &txn.steps {
                let TxnStep::Append { key, element } = step else { continue };
                if let Some(before) = last.insert(*key, *element) {
                    elements[before as usize].is_last_of_txn = false;
                }
                let element = &mut elements[*element as usize];
                if let Some(other) = element.appender {
                    let earlier: &Txn = &txns[other as usize];
                    // A retry of what was not done is as good as the first one.
                    if txn.status == Status::Aborted && earlier.status != Status::Aborted {
                        continue;
                    }
                    if earlier.status != Status::Aborted {
                        return Err(ListAppendError::Operation {
                            line: history.operations[txn.place].line,
                            what: format!(
                                "{} was appended to {} before, on line {}; list-append needs \
                                 different values",
                                element.value,
                                keys[*key as usize],
                                history.operations[earlier.place].line,
                            ),
                        });
                    }
                }
                element.appender = Some(number);
            }
        }
        Ok(())
    }

    /// Who appended an element, if that may have been done.
    pub(super) fn appender(&self, element: u32) -> Option<u32> {
        let appender = self.elements[element as usize].appender?;
        let is_aborted = self.txns[appender as usize].status == Status::Aborted;
        (!is_aborted).then_some(appender)
    }
}
