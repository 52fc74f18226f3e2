//! What clients did and saw: operations with the times at which they began and ended.
//!
//! A history is a file of events. Jepsen's EDN is read, and JSON lines, which is what is written:
//!
//! ```json
//! {"process":0,"type":"invoke","f":"set","key":"r4","value":7,"time":1200}
//! {"process":0,"type":"ok","f":"set","key":"r4","value":7,"time":4500}
//! ```
//!
//! `type` is `invoke`, `ok` (it was done), `fail` (it was not and never will be) or `info` (it is
//! unknown); `time` is in nanoseconds. An `invoke` has the argument as its value, an `ok` what came
//! of it. A process has one operation at a time. The guide (docs/checking.md) tells all forms.

mod edn;
mod event;
mod json;
mod text;

use std::{
    io::{self, Read, Write},
    sync::Arc,
};

use serde::Serialize;

use crate::Value;

/// What came of an operation.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It was done, with this result.
    Ok(Value),
    /// It was not done, and never will be.
    Fail,
    /// It is unknown whether it was done; it may still be.
    Info,
}

/// One operation of one process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// Who did it.
    pub process: i64,
    /// What it does, by the name that a model knows.
    pub f: Arc<str>,
    /// What it does it to; nil if the history is of one thing only.
    pub key: Value,
    /// What it was given.
    pub argument: Value,
    /// When it began, in nanoseconds; in a history without times, the number of the event.
    pub invoked_ns: u64,
    /// When its outcome was known; none if it was still outstanding at the end.
    pub completed_ns: Option<u64>,
    /// What came of it.
    pub outcome: Outcome,
    /// The line of a file that says that it began, from 1; 0 if it is of no file.
    pub line: usize,
}

impl Operation {
    /// Whether it was done, as its process knows.
    pub fn is_acknowledged(&self) -> bool {
        matches!(self.outcome, Outcome::Ok(_))
    }

    /// What it has returned; nil if that is not known.
    pub fn result(&self) -> &Value {
        match &self.outcome {
            Outcome::Ok(result) => result,
            Outcome::Fail | Outcome::Info => &Value::Nil,
        }
    }
}

/// Operations of many processes. One comes before another in real time if it completed at an earlier
/// time than that at which the other was invoked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    /// The operations, those of each process in the order in which it did them.
    pub operations: Vec<Operation>,
    /// Whether the times are times, and not numbers of events.
    pub has_times: bool,
}

/// Why a history cannot be read. A line is that of the file, counted from 1.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HistoryError {
    /// The source of the bytes failed.
    #[error("cannot read the history: {0}")]
    Read(#[from] io::Error),
    /// The bytes are not text.
    #[error("line {line}: the history is not UTF-8 text")]
    NotText {
        /// Which line.
        line: usize,
    },
    /// The text is neither JSON nor EDN.
    #[error("line {line}: {what}")]
    Syntax {
        /// Which line.
        line: usize,
        /// What is wrong.
        what: String,
    },
    /// An event is none, or does not fit what its process did before.
    #[error("line {line}: {what}")]
    Event {
        /// Which line.
        line: usize,
        /// What is wrong.
        what: String,
    },
    /// It does not fit into memory.
    #[error(
        "line {line}: the history takes more than {bytes_max} bytes up to here; allow more memory"
    )]
    TooLarge {
        /// Which line.
        line: usize,
        /// How many it may take.
        bytes_max: usize,
    },
    /// There is nothing in it.
    #[error("the history has no events; an empty one is written as []")]
    Empty,
}

impl History {
    /// A history with real times.
    pub fn new(operations: Vec<Operation>) -> Self {
        Self { operations, has_times: true }
    }

    /// Writes an event a line, in order of time.
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let mut events: Vec<(u64, bool, &Operation)> = Vec::new();
        for operation in &self.operations {
            events.push((operation.invoked_ns, true, operation));
            events.extend(operation.completed_ns.map(|time| (time, false, operation)));
        }
        // A stable sort keeps the order of a process that invokes in the very nanosecond in which its
        // last operation completed.
        events.sort_by_key(|(time, ..)| *time);
        for (time, is_invocation, operation) in events {
            let event = WrittenEvent::new(operation, time, is_invocation);
            serde_json::to_writer(&mut *to, &event)?;
            to.write_all(b"\n")?;
        }
        to.flush()
    }

    /// Reads what [`Self::write`] wrote, and Jepsen's own formats. The operations come in order of
    /// their invocation.
    pub fn read(from: impl Read) -> Result<Self, HistoryError> {
        Self::read_within(from, usize::MAX)
    }

    /// Reads a history that may take so many bytes of memory.
    pub fn read_within(from: impl Read, bytes_max: usize) -> Result<Self, HistoryError> {
        let mut bytes = Vec::new();
        // One more, to see that there is more.
        from.take((bytes_max as u64).saturating_add(1)).read_to_end(&mut bytes)?;
        if bytes.len() > bytes_max {
            let line = line_behind(&bytes);
            return Err(HistoryError::TooLarge { line, bytes_max });
        }
        let text = str::from_utf8(&bytes).map_err(|error| HistoryError::NotText {
            line: line_behind(&bytes[..error.valid_up_to()]),
        })?;
        text::read(text, bytes_max - text.len())
    }

    /// About how many bytes it takes.
    pub fn bytes(&self) -> usize {
        let bytes = |it: &Operation| {
            let values = it.key.heap_bytes() + it.argument.heap_bytes() + it.result().heap_bytes();
            size_of::<Operation>() + values
        };
        self.operations.iter().map(bytes).sum()
    }
}

/// The number of the line on which these bytes end.
fn line_behind(bytes: &[u8]) -> usize {
    1 + bytes.split(|byte| *byte == b'\n').skip(1).count()
}

/// A line of the file.
#[derive(Debug, Serialize)]
struct WrittenEvent<'a> {
    process: i64,
    #[serde(rename = "type")]
    kind: &'static str,
    f: &'a str,
    #[serde(skip_serializing_if = "Value::is_nil")]
    key: &'a Value,
    value: &'a Value,
    time: u64,
}

impl<'a> WrittenEvent<'a> {
    fn new(operation: &'a Operation, time: u64, is_invocation: bool) -> Self {
        let Operation { process, f, key, argument, outcome, .. } = operation;
        let (kind, value) = match outcome {
            _ if is_invocation => ("invoke", argument),
            // What was done without a result echoes its argument, as in Jepsen.
            Outcome::Ok(Value::Nil) => ("ok", argument),
            Outcome::Ok(result) => ("ok", result),
            Outcome::Fail => ("fail", argument),
            Outcome::Info => ("info", argument),
        };
        Self { process: *process, kind, f, key, value, time }
    }
}

#[cfg(test)]
mod tests;
