//! Events, as all formats have them, and the operations that they make up.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use super::{History, HistoryError, Operation, Outcome};
use crate::Value;

/// What an event says of its operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Invoke,
    Ok,
    Fail,
    Info,
}

/// A process begins or ends an operation.
#[derive(Debug)]
pub(super) struct Event {
    pub(super) line: usize,
    pub(super) process: i64,
    pub(super) kind: Kind,
    pub(super) f: Arc<str>,
    pub(super) key: Value,
    pub(super) value: Value,
    pub(super) time: Option<i64>,
}

/// The process of transactions written down without one, as in papers: each is complete before the
/// next begins. A history where some have a process and others have none is a mistake.
const NOBODY: i64 = i64::MIN;

/// A list of lists: `[[:append 1 2] [:r 3 nil]]`.
fn is_transaction(value: &Value) -> bool {
    matches!(value, Value::List(steps) if !steps.is_empty()
        && steps.iter().all(|step| matches!(step, Value::List(_))))
}

/// Gathers the events of a history.
#[derive(Debug)]
pub(super) struct Events {
    events: Vec<Event>,
    names: HashSet<Arc<str>>,
    bytes: usize,
    bytes_max: usize,
}

impl Events {
    /// For a history that may take so much memory.
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { events: Vec::new(), names: HashSet::new(), bytes: 0, bytes_max }
    }

    /// Takes a map, or the short form `[process type f value]`.
    pub(super) fn push(&mut self, form: &Value, line: usize) -> Result<(), HistoryError> {
        match form {
            Value::Map(entries) => self.push_map(entries, line),
            Value::List(items) if items.len() >= 3 => {
                let value = items.get(3).unwrap_or(&Value::Nil);
                self.push_parts(line, [&items[0], &items[1], &items[2], &Value::Nil, value], None)
            }
            _ => Err(bad(line, format!("{form} is not an event"))),
        }
    }

    fn push_map(&mut self, entries: &[(Value, Value)], line: usize) -> Result<(), HistoryError> {
        let entry = |name: &str| {
            let named = entries.iter().find(|(key, _)| key.as_name() == Some(name));
            named.map(|(_, value)| value)
        };
        let or_nil = |name: &str| entry(name).unwrap_or(&Value::Nil);
        let nobody = Value::Int(NOBODY);
        let process = match entry("process") {
            Some(process) => process,
            None if is_transaction(or_nil("value")) => &nobody,
            None => return Err(bad(line, "the event has no process")),
        };
        let parts = [process, or_nil("type"), or_nil("f"), or_nil("key"), or_nil("value")];
        let time = match or_nil("time") {
            Value::Int(time) => Some(*time),
            Value::Literal(text) => text.parse::<f64>().ok().map(|time| time as i64),
            _ => None,
        };
        self.push_parts(line, parts, time)
    }

    fn push_parts(
        &mut self,
        line: usize,
        [process, kind, f, key, value]: [&Value; 5],
        time: Option<i64>,
    ) -> Result<(), HistoryError> {
        // Others than clients, as Jepsen's nemesis, have names; what they say is no operation.
        let Some(process) = process.as_int() else { return Ok(()) };
        let kind = match kind.as_name() {
            Some("invoke") => Kind::Invoke,
            Some("ok") => Kind::Ok,
            Some("fail") => Kind::Fail,
            Some("info") => Kind::Info,
            _ => return Err(bad(line, format!("the type {kind} is not invoke, ok, fail or info"))),
        };
        let f = match f {
            Value::Nil => "",
            name => name.as_name().ok_or_else(|| bad(line, format!("{name} is not an f")))?,
        };
        let f = self.name(f);
        let (key, value) = (key.clone(), value.clone());
        // An event, and its half of an operation.
        let bytes = size_of::<Event>() + size_of::<Operation>() / 2;
        self.bytes += bytes + key.heap_bytes() + value.heap_bytes();
        if self.bytes > self.bytes_max {
            return Err(HistoryError::TooLarge { line, bytes_max: self.bytes_max });
        }
        self.events.push(Event { line, process, kind, f, key, value, time });
        Ok(())
    }

    /// The same name, kept once.
    fn name(&mut self, name: &str) -> Arc<str> {
        if let Some(name) = self.names.get(name) {
            return Arc::clone(name);
        }
        let name: Arc<str> = name.into();
        self.names.insert(Arc::clone(&name));
        name
    }

    pub(super) fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// Makes operations of the events: in order of their invocation.
    pub(super) fn finish(self) -> Result<History, HistoryError> {
        let mut events = self.events;
        if let Some(event) = events.iter().find(|event| event.process == NOBODY) {
            if events.iter().any(|event| event.process != NOBODY) {
                return Err(bad(event.line, "the event has no process"));
            }
            for event in &mut events {
                event.process = 0;
            }
        }
        let has_times = set_times(&mut events);
        let has_tuples = are_tuples(&events);
        let mut operations: Vec<Operation> = Vec::new();
        // Of each process, where the operation is that it has begun, and whether its value told the key.
        let mut outstanding: BTreeMap<i64, (usize, bool)> = BTreeMap::new();
        for event in events {
            let Event { line, process, kind, .. } = event;
            if kind == Kind::Invoke {
                let (operation, has_tuple) = invocation(event, has_tuples);
                let place = (operations.len(), has_tuple);
                if let Some((earlier, _)) = outstanding.insert(process, place) {
                    let earlier = operations[earlier].line;
                    let what = format!(
                        "process {process} invokes while its operation of line {earlier} is \
                         outstanding"
                    );
                    return Err(bad(line, what));
                }
                operations.push(operation);
            } else if let Some((at, has_tuple)) = outstanding.remove(&process) {
                complete(&mut operations[at], event, has_tuple);
            } else if kind != Kind::Info {
                let what = format!("process {process} completes what it did not invoke");
                return Err(bad(line, what));
            }
        }
        Ok(History { operations, has_times })
    }
}

fn bad(line: usize, what: impl Into<String>) -> HistoryError {
    HistoryError::Event { line, what: what.into() }
}

/// Puts events in order and gives each a time of its own: that which the file says, if every event
/// has one, else its place. Events with equal times stay as they stand, a nanosecond apart. Returns
/// whether the times are such.
fn set_times(events: &mut [Event]) -> bool {
    let has_times = !events.is_empty() && events.iter().all(|event| event.time.is_some());
    if has_times {
        events.sort_by_key(|event| event.time);
    }
    let first = events.first().and_then(|event| event.time).unwrap_or(0).min(0);
    let mut last = None;
    for (place, event) in (0..).zip(events) {
        let told = if has_times { event.time.unwrap_or(0).saturating_sub(first) } else { place };
        let time = last.map_or(told, |last: i64| told.max(last.saturating_add(1)));
        event.time = Some(time);
        last = Some(time);
    }
    has_times
}

/// Whether the values are the tuples [key value] of Jepsen's independent workloads: every one that
/// an operation begins with is a pair, and that of a compare-and-set has another pair in it.
fn are_tuples(events: &[Event]) -> bool {
    let mut invocations = events.iter().filter(|event| event.kind == Kind::Invoke).peekable();
    invocations.peek().is_some()
        && invocations.all(|event| {
            let pair = event.value.as_pair();
            event.key.is_nil()
                && match &*event.f {
                    "txn" | "" => false,
                    "cas" => pair.is_some_and(|(_, value)| value.as_pair().is_some()),
                    _ => pair.is_some(),
                }
        })
}

/// The operation that begins, and whether its value told the key.
fn invocation(event: Event, has_tuples: bool) -> (Operation, bool) {
    let Event { line, process, f, mut key, mut value, time, .. } = event;
    // What these do they do to a key, so that their values cannot be without.
    let is_of_key = matches!(&*f, "get" | "put" | "append" | "incr");
    let mut has_tuple = key.is_nil() && (has_tuples || is_of_key);
    if has_tuple {
        if let Some((of, inner)) = value.as_pair() {
            (key, value) = (of.clone(), inner.clone());
        } else if &*f == "get" {
            key = std::mem::take(&mut value);
        } else {
            has_tuple = false;
        }
    }
    let operation = Operation {
        process,
        f,
        key,
        argument: value,
        invoked_ns: time_of(time),
        completed_ns: None,
        outcome: Outcome::Info,
        line,
    };
    (operation, has_tuple)
}

fn complete(operation: &mut Operation, event: Event, has_tuple: bool) {
    operation.completed_ns = Some(time_of(event.time));
    operation.outcome = match event.kind {
        Kind::Ok => {
            let value = match event.value.as_pair() {
                // The tuple again. Of an operation that names its key otherwise it is a pair that was read.
                Some((key, inner)) if has_tuple && *key == operation.key => inner.clone(),
                _ => event.value,
            };
            Outcome::Ok(value)
        }
        Kind::Fail => Outcome::Fail,
        Kind::Invoke | Kind::Info => Outcome::Info,
    };
}

fn time_of(time: Option<i64>) -> u64 {
    let time = time.expect("every event was given one");
    u64::try_from(time).expect("times count from the first, which is not negative")
}
