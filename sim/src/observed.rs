//! What clients saw, judged without a look at the log: is there an order of their operations, each
//! between its beginning and its end, that registers could have had?
//!
//! The invariants know the order of the log, and check that it explains every answer. This does not
//! even know that there is a log; so a mistake in the one is seen by the other.

use std::collections::BTreeSet;

use bytes::Bytes;
use hovercraft_jepsen::{
    History, Model, Operation as Event, Outcome, Value,
    check::{Finding, Limits, Verdict},
    model::{ActionError, Role, Step},
};
use r2p2::Time;

use crate::workload::{Command, Operation};

/// What came of an operation, as its client knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answered {
    /// This is the reply.
    With(Bytes),
    /// It is certain that it was not executed and never will be (P23).
    NotExecuted,
    /// It is unknown: its session expired, or the run ended.
    Unknown,
}

/// An operation of a client.
#[derive(Debug, Clone)]
pub struct Observed {
    /// Whose it is, counted from 0.
    pub client: usize,
    /// The client has no session: what it asks may be executed twice.
    pub plain: bool,
    /// What it asked.
    pub command: Command,
    /// When it first asked.
    pub began: Time,
    /// When it had its answer; none if it never had one.
    pub ended: Option<Time>,
    /// What it got.
    pub answered: Answered,
}

/// What is known of a history of registers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Judgement {
    Linearizable,
    /// The search ended before it was known.
    Undecided,
    NotLinearizable(String),
}

/// So many steps a run is worth; nearly all need fewer than they have operations.
const STEPS_MAX: u64 = 200_000;

/// Judges what clients saw of the registers.
pub(crate) fn judge(observed: &[Observed]) -> Judgement {
    // What may be executed twice is no operation of a register.
    let unsure: BTreeSet<_> =
        observed.iter().filter(|it| it.plain).filter_map(written_key).collect();
    let sure = observed.iter().filter(|it| key(it).is_some_and(|key| !unsure.contains(&key)));
    let history = History::new(sure.filter_map(event).collect());
    let report = hovercraft_jepsen::check(&Registers, &history, &Limits::steps(STEPS_MAX))
        .expect("the model knows every operation that event() makes");
    match report.verdict {
        Verdict::Linearizable => Judgement::Linearizable,
        Verdict::Unknown(_) => Judgement::Undecided,
        Verdict::NotLinearizable => Judgement::NotLinearizable(describe(&report.keys, &history)),
    }
}

fn describe(keys: &[hovercraft_jepsen::check::KeyReport], history: &History) -> String {
    let found = keys.iter().find_map(|key| match &key.finding {
        Finding::NotLinearizable(example) => Some((key, example)),
        _ => None,
    });
    let Some((key, example)) = found else { return "no order explains it".to_owned() };
    let event = &history.operations[example.stuck];
    let states: Vec<_> = example.orders.iter().map(|order| order.state.as_str()).collect();
    format!(
        "r{}: of {} operations no order explains that client {} got {} from {} {}: it could be {}",
        key.key,
        example.prefix.len(),
        event.process,
        event.result(),
        event.f,
        event.argument,
        states.join(" or ")
    )
}

fn key(observed: &Observed) -> Option<u8> {
    Operation::decode(&observed.command.body).map(Operation::key)
}

fn written_key(observed: &Observed) -> Option<u8> {
    if observed.command.is_read { None } else { key(observed) }
}

/// As the checker knows it; none if it is none of the registers'.
fn event(observed: &Observed) -> Option<Event> {
    let operation = Operation::decode(&observed.command.body)?;
    let (f, argument) = match operation {
        // A schedule may ask so; nothing comes of it.
        Operation::Set { .. } | Operation::Add { .. } if observed.command.is_read => return None,
        Operation::Set { value, .. } => ("set", number(value)),
        Operation::Add { value, .. } => ("add", number(value)),
        Operation::Get { .. } => ("read", Value::Nil),
    };
    let outcome = match &observed.answered {
        // A reply that is too short is no number: that is for the model to refuse.
        Answered::With(reply) => Outcome::Ok(
            reply.first_chunk().map_or(Value::Nil, |bytes| number(u64::from_be_bytes(*bytes))),
        ),
        Answered::NotExecuted => Outcome::Fail,
        Answered::Unknown => Outcome::Info,
    };
    Some(Event {
        process: (observed.client as u64).cast_signed(),
        f: f.into(),
        key: number(u64::from(operation.key())),
        argument,
        invoked_ns: observed.began.as_nanos(),
        completed_ns: observed.ended.map(Time::as_nanos),
        outcome,
        line: 0,
    })
}

/// Registers wrap around at 2^64; the checker's numbers have a sign.
fn number(value: u64) -> Value {
    Value::Int(value.cast_signed())
}

/// A register that is set, increased and read, and answers what it holds then.
struct Registers;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Action {
    Set(i64),
    /// With the answer, if there was one.
    Add(i64, Option<i64>),
    Read(i64),
}

impl Model for Registers {
    type State = i64;
    type Action = Action;

    fn action(&self, event: &Event) -> Result<Option<Action>, ActionError> {
        let int = |value: &Value| match value {
            Value::Int(number) => Some(*number),
            _ => None,
        };
        let (argument, result) = (int(&event.argument), int(event.result()));
        if event.outcome == Outcome::Fail {
            return Ok(None);
        }
        Ok(match (&*event.f, argument) {
            ("set", Some(value)) => Some(Action::Set(value)),
            ("add", Some(value)) => Some(Action::Add(value, result)),
            _ => result.map(Action::Read),
        })
    }

    fn initial(&self) -> i64 {
        0
    }

    fn step(&self, state: &i64, action: &Action) -> Step<i64> {
        match action {
            Action::Set(value) => Step::to(state, *value),
            Action::Read(seen) => Step::observes(state == seen),
            Action::Add(value, seen) => {
                let after = state.wrapping_add(*value);
                if seen.is_some_and(|seen| seen != after) {
                    Step::Refused
                } else {
                    Step::to(state, after)
                }
            }
        }
    }

    fn role(&self, action: &Action) -> Role {
        match action {
            Action::Read(_) => Role::Observes,
            Action::Set(_) | Action::Add(..) => Role::Overwrites,
        }
    }

    fn describe(&self, state: &i64) -> String {
        state.cast_unsigned().to_string()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn observed(
        client: usize,
        operation: Operation,
        at: (u64, u64),
        reply: Option<u64>,
    ) -> Observed {
        let time = |ms| Time::ZERO + Duration::from_millis(ms);
        let answered = reply.map_or(Answered::Unknown, |value| {
            Answered::With(Bytes::copy_from_slice(&value.to_be_bytes()))
        });
        let ended = reply.map(|_| time(at.1));
        let command = operation.command();
        Observed { client, plain: false, command, began: time(at.0), ended, answered }
    }

    #[test]
    fn a_read_of_what_was_overwritten_is_seen_and_one_meanwhile_is_not() {
        let set = |value, at| observed(0, Operation::Set { key: 1, value }, at, Some(value));
        let read = |at, seen| observed(1, Operation::Get { key: 1 }, at, Some(seen));
        let early = [set(5, (0, 1)), set(6, (2, 9)), read((3, 4), 5)];
        assert_eq!(judge(&early), Judgement::Linearizable);
        let late = [set(5, (0, 1)), set(6, (2, 3)), read((4, 5), 5)];
        let Judgement::NotLinearizable(what) = judge(&late) else { panic!("it is stale") };
        assert!(what.contains("r1") && what.contains("client 1"), "{what}");
    }

    #[test]
    fn an_increase_that_happened_twice_is_seen_and_an_unknown_one_may_have_happened() {
        let add = |at, reply| observed(0, Operation::Add { key: 2, value: 3 }, at, reply);
        let read = |at, seen| observed(1, Operation::Get { key: 2 }, at, Some(seen));
        assert_eq!(judge(&[add((0, 1), None), read((2, 3), 3)]), Judgement::Linearizable);
        assert_eq!(judge(&[add((0, 1), None), read((2, 3), 0)]), Judgement::Linearizable);
        let twice = [add((0, 1), Some(3)), read((2, 3), 6)];
        assert!(matches!(judge(&twice), Judgement::NotLinearizable(_)));
        let plain = Observed { plain: true, ..add((0, 1), Some(3)) };
        assert_eq!(judge(&[plain, read((2, 3), 6)]), Judgement::Linearizable);
    }
}
