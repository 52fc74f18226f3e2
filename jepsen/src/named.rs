//! Models by name, for histories of which only that is known.

use std::fmt;

use crate::{
    CheckError, History,
    check::{Limit, Limits, Report, Verdict, check},
    list_append::{ListAppendError, ListAppendReport, check_list_append},
    model::{Counter, Kv, Mutex, Queue, Register, Semantics, Set},
};

/// The models that have a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ModelName {
    /// `read` and `write`.
    Register,
    /// `read`, `write` and `cas`.
    CasRegister,
    /// `put`, `get`, `append` and `incr`.
    Kv,
    /// `acquire` and `release`.
    Mutex,
    /// `add`, `remove` and `read`.
    Set,
    /// `enqueue` and `dequeue`.
    Queue,
    /// `add`, `decr` and `read`.
    Counter,
    /// `txn` of appends to lists and reads.
    ListAppend,
}

impl ModelName {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Register,
        Self::CasRegister,
        Self::Kv,
        Self::Mutex,
        Self::Set,
        Self::Queue,
        Self::Counter,
        Self::ListAppend,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Register => "register",
            Self::CasRegister => "cas-register",
            Self::Kv => "kv",
            Self::Mutex => "mutex",
            Self::Set => "set",
            Self::Queue => "queue",
            Self::Counter => "counter",
            Self::ListAppend => "list-append",
        }
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What was found of a history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// By the search for an order, key by key.
    Orders(Report),
    /// By cycles.
    Anomalies(ListAppendReport),
}

/// Why a history cannot be checked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NamedError {
    /// The model does not understand an operation.
    #[error(transparent)]
    Check(#[from] CheckError),
    /// The same of list-append.
    #[error(transparent)]
    ListAppend(#[from] ListAppendError),
}

impl Found {
    /// Whether the history is linearizable; of transactions, strictly serializable.
    pub fn verdict(&self) -> Verdict {
        match self {
            Self::Orders(report) => report.verdict,
            Self::Anomalies(report) if !report.anomalies.is_empty() => Verdict::NotLinearizable,
            Self::Anomalies(report) => report.limit.map_or(Verdict::Linearizable, Verdict::Unknown),
        }
    }

    /// How many keys there are.
    pub fn keys(&self) -> usize {
        match self {
            Self::Orders(report) => report.keys.len(),
            Self::Anomalies(report) => report.keys,
        }
    }
}

/// The verdict in the words of the documentation.
impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Linearizable => "linearizable",
            Self::NotLinearizable => "not linearizable",
            Self::Unknown(_) => "unknown",
        })
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Steps => "steps",
            Self::Memory => "memory",
            Self::Time => "time",
        })
    }
}

/// Checks a history with a model that has a name.
pub fn check_named(
    name: ModelName,
    semantics: Semantics,
    history: &History,
    limits: &Limits<'_>,
) -> Result<Found, NamedError> {
    let report = match name {
        ModelName::ListAppend => {
            return Ok(Found::Anomalies(check_list_append(history, limits)?));
        }
        ModelName::Register => check(&Register { semantics, has_cas: false }, history, limits),
        ModelName::CasRegister => check(&Register { semantics, has_cas: true }, history, limits),
        ModelName::Kv => check(&Kv, history, limits),
        ModelName::Mutex => check(&Mutex, history, limits),
        ModelName::Set => check(&Set { semantics }, history, limits),
        ModelName::Queue => check(&Queue, history, limits),
        ModelName::Counter => check(&Counter { semantics }, history, limits),
    };
    Ok(Found::Orders(report?))
}
