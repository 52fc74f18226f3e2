//! What clients did and saw: operations with the times at which they began and ended.
//!
//! As a file a history is JSON lines in the form of Jepsen's, an event a line, in order of time:
//!
//! ```json
//! {"process":0,"type":"invoke","f":"set","key":"r4","value":7,"time":1200}
//! {"process":0,"type":"ok","f":"set","key":"r4","value":7,"time":4500}
//! ```
//!
//! `type` is `invoke`, `ok` (it was done), `fail` (it was not and never will be) or `info` (it is
//! unknown); `f` is `get`, `set` or `incr`; `time` is in nanoseconds. An `invoke` has the argument as
//! its value, the completion of a `get` what was read (null: the key did not exist), that of an
//! `incr` the sum. As with Jepsen a process has one operation at a time, and one whose operation ended
//! as `info` does nothing more, because that operation may still take effect.

use std::{
    borrow::Cow,
    collections::HashMap,
    fmt,
    io::{self, BufRead, Write},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

/// What an operation does to its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Function {
    /// Reads the key.
    Get,
    /// Gives the key the argument as its value.
    Set,
    /// Adds the argument to the key's value, which is 0 if it does not exist.
    #[serde(rename = "incr")]
    Increment,
}

impl fmt::Display for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Get => "get",
            Self::Set => "set",
            Self::Increment => "incr",
        })
    }
}

/// What came of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It was done; of a get the value that was read, of an increment the sum.
    Ok(Option<i64>),
    /// It was not done, and never will be.
    Fail,
    /// It is unknown whether it was done; it may still be.
    Info,
}

/// One operation of one process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// Who did it.
    pub process: u32,
    /// What it does.
    pub function: Function,
    /// What it does it to.
    pub key: Arc<str>,
    /// What a set gives the key, and what an increment adds.
    pub argument: Option<i64>,
    /// When it began, in nanoseconds since the history did.
    pub invoked_ns: u64,
    /// When its outcome was known; none if it was still outstanding at the end.
    pub completed_ns: Option<u64>,
    /// What came of it.
    pub outcome: Outcome,
}

impl Operation {
    /// Whether it was done, as its process knows.
    pub fn is_acknowledged(&self) -> bool {
        matches!(self.outcome, Outcome::Ok(_))
    }

    /// Whether it may change its key.
    pub fn is_write(&self) -> bool {
        self.function != Function::Get
    }
}

/// Operations of many processes, those of each process in the order in which it did them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct History {
    /// The operations.
    pub operations: Vec<Operation>,
}

/// Why a history cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HistoryError {
    /// The source of the bytes failed.
    #[error("cannot read the history: {0}")]
    Read(#[from] io::Error),
    /// A line is not an event.
    #[error("line {line} of the history is not an event: {source}")]
    Syntax {
        /// Which, counted from 1.
        line: usize,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// A process completes what it did not invoke, or invokes while it has something outstanding.
    #[error("line {line} of the history does not fit what process {process} did before")]
    Order {
        /// Which, counted from 1.
        line: usize,
        /// Whose event.
        process: u32,
    },
}

impl History {
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
            let event = Event::new(operation, time, is_invocation);
            serde_json::to_writer(&mut *to, &event)?;
            to.write_all(b"\n")?;
        }
        to.flush()
    }

    /// Reads what [`Self::write`] wrote. The operations come in order of their completion, then those
    /// that were not completed.
    pub fn read(from: impl BufRead) -> Result<Self, HistoryError> {
        let mut keys = HashMap::new();
        let mut outstanding: HashMap<u32, Operation> = HashMap::new();
        let mut operations = Vec::new();
        for (number, line) in (1..).zip(from.lines()) {
            let line = line?;
            let event: Event<'_> = serde_json::from_str(&line)
                .map_err(|source| HistoryError::Syntax { line: number, source })?;
            let process = event.process;
            let out_of_order = HistoryError::Order { line: number, process };
            if event.kind == EventKind::Invoke {
                let operation = event.invocation(&mut keys);
                if outstanding.insert(process, operation).is_some() {
                    return Err(out_of_order);
                }
            } else {
                let operation = outstanding.remove(&process).ok_or(out_of_order)?;
                operations.push(event.complete(operation));
            }
        }
        let mut rest: Vec<_> = outstanding.into_values().collect();
        rest.sort_by_key(|operation| operation.process);
        operations.append(&mut rest);
        Ok(Self { operations })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum EventKind {
    Invoke,
    Ok,
    Fail,
    Info,
}

/// A line of the file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Event<'a> {
    process: u32,
    #[serde(rename = "type")]
    kind: EventKind,
    f: Function,
    #[serde(borrow)]
    key: Cow<'a, str>,
    value: Option<i64>,
    time: u64,
}

impl<'a> Event<'a> {
    fn new(operation: &'a Operation, time: u64, is_invocation: bool) -> Self {
        let Operation { process, function, key, argument, outcome, .. } = operation;
        let (kind, value) = match outcome {
            _ if is_invocation => (EventKind::Invoke, *argument),
            Outcome::Ok(_) if *function == Function::Set => (EventKind::Ok, *argument),
            Outcome::Ok(result) => (EventKind::Ok, *result),
            Outcome::Fail => (EventKind::Fail, *argument),
            Outcome::Info => (EventKind::Info, *argument),
        };
        Self { process: *process, kind, f: *function, key: (&**key).into(), value, time }
    }

    fn invocation(self, keys: &mut HashMap<String, Arc<str>>) -> Operation {
        let key = match keys.get(&*self.key) {
            Some(key) => Arc::clone(key),
            None => {
                let key: Arc<str> = self.key.as_ref().into();
                keys.insert(self.key.into_owned(), Arc::clone(&key));
                key
            }
        };
        Operation {
            process: self.process,
            function: self.f,
            key,
            argument: self.value,
            invoked_ns: self.time,
            completed_ns: None,
            outcome: Outcome::Info,
        }
    }

    fn complete(&self, operation: Operation) -> Operation {
        let outcome = match self.kind {
            EventKind::Ok if self.f == Function::Set => Outcome::Ok(None),
            EventKind::Ok => Outcome::Ok(self.value),
            EventKind::Fail => Outcome::Fail,
            EventKind::Invoke | EventKind::Info => Outcome::Info,
        };
        Operation { completed_ns: Some(self.time), outcome, ..operation }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn operation(process: u32, function: Function, times: (u64, u64)) -> Operation {
        let (argument, outcome) = match function {
            Function::Get => (None, Outcome::Ok(None)),
            Function::Set => (Some(7), Outcome::Ok(None)),
            Function::Increment => (Some(1), Outcome::Ok(Some(4))),
        };
        let (invoked_ns, completed_ns) = (times.0, Some(times.1));
        let key = "k".into();
        Operation { process, function, key, argument, invoked_ns, completed_ns, outcome }
    }

    fn written(operations: Vec<Operation>) -> String {
        let mut bytes = Vec::new();
        History { operations }.write(&mut bytes).expect("memory does not fail");
        String::from_utf8(bytes).expect("JSON is text")
    }

    #[test]
    fn an_event_a_line_in_order_of_time() {
        let set = operation(0, Function::Set, (1, 30));
        let get = Operation { key: "q".into(), ..operation(1, Function::Get, (2, 20)) };
        let unknown = Operation {
            outcome: Outcome::Info,
            completed_ns: None,
            ..operation(2, Function::Increment, (3, 0))
        };
        let expected = "\
            {\"process\":0,\"type\":\"invoke\",\"f\":\"set\",\"key\":\"k\",\"value\":7,\"time\":1}\n\
            {\"process\":1,\"type\":\"invoke\",\"f\":\"get\",\"key\":\"q\",\"value\":null,\"time\":2}\n\
            {\"process\":2,\"type\":\"invoke\",\"f\":\"incr\",\"key\":\"k\",\"value\":1,\"time\":3}\n\
            {\"process\":1,\"type\":\"ok\",\"f\":\"get\",\"key\":\"q\",\"value\":null,\"time\":20}\n\
            {\"process\":0,\"type\":\"ok\",\"f\":\"set\",\"key\":\"k\",\"value\":7,\"time\":30}\n";
        assert_eq!(written(vec![set, get, unknown]), expected);
    }

    #[test]
    fn what_is_not_a_history_is_refused_with_its_line() {
        let invoke = "{\"process\":0,\"type\":\"invoke\",\"f\":\"get\",\"key\":\"k\",\"time\":1}\n";
        let ok = "{\"process\":0,\"type\":\"ok\",\"f\":\"get\",\"key\":\"k\",\"time\":2}\n";
        let refusal = |text: String| History::read(text.as_bytes()).unwrap_err().to_string();
        assert!(refusal(format!("{invoke}nonsense")).starts_with("line 2 of the history is not"));
        assert!(refusal(format!("{invoke}{invoke}")).starts_with("line 2 of the history does not"));
        assert!(refusal(format!("{invoke}{ok}{ok}")).starts_with("line 3 of the history does not"));
        assert!(refusal(ok.replace("time", "thyme")).contains("thyme"));
    }

    /// Operations of one process after another, each with any outcome.
    fn operations_of(process: u32) -> impl Strategy<Value = Vec<Operation>> {
        let function =
            prop_oneof![Just(Function::Get), Just(Function::Set), Just(Function::Increment)];
        let step = (function, "[a-c]|\"\\PC", any::<i64>(), 0..3_u64, 0..3_u64, 0..4_u8);
        prop::collection::vec(step, 0..20).prop_map(move |steps| {
            let mut now = 0;
            let mut operations = Vec::new();
            for (function, key, number, before, during, outcome) in steps {
                let invoked_ns = now + before;
                now = invoked_ns + during;
                let is_read = function == Function::Get;
                let outcome = match outcome {
                    0 => Outcome::Fail,
                    1 => Outcome::Info,
                    2 if is_read => Outcome::Ok(None),
                    _ => Outcome::Ok((function != Function::Set).then_some(number)),
                };
                operations.push(Operation {
                    process,
                    function,
                    key: key.into(),
                    argument: (!is_read).then_some(number),
                    invoked_ns,
                    completed_ns: Some(now),
                    outcome,
                });
            }
            operations
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            mut operations in operations_of(0),
            others in operations_of(1),
            outstanding: bool,
        ) {
            operations.extend(others);
            if outstanding {
                let never = operation(2, Function::Set, (5, 0));
                operations.push(Operation {
                    completed_ns: None,
                    outcome: Outcome::Info,
                    ..never
                });
            }
            let read = History::read(written(operations.clone()).as_bytes()).expect("as written");
            let of = |process: u32, all: &[Operation]| -> Vec<Operation> {
                all.iter().filter(|operation| operation.process == process).cloned().collect()
            };
            for process in 0..3 {
                prop_assert_eq!(of(process, &read.operations), of(process, &operations));
            }
        }

        #[test]
        fn arbitrary_text_does_not_panic(text: String) {
            let _ = History::read(text.as_bytes());
        }
    }
}
