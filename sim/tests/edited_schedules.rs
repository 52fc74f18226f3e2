//! Schedules that somebody has edited: refused with a reason, or run like any other.
//!
//! What a run is judged by must not rest on how the schedules of seeds happen to look.

use std::{fs, path::Path};

use hovercraft_sim::{Run, Runner, Schedule, ScheduleError};
use serde_json::{Number, Value, json};

fn load(directory: &Path, schedule: &Value) -> Result<Schedule, ScheduleError> {
    let path = directory.join("schedule.json");
    fs::write(&path, schedule.to_string()).expect("it can be written");
    Schedule::load(&path)
}

fn value(seed: u64) -> Value {
    serde_json::to_value(Schedule::from_seed(seed)).expect("schedules are plain data")
}

fn judge(run: &Run) -> Result<(), String> {
    run.violation.as_ref().map_or(Ok(()), |violation| Err(violation.to_string()))
}

/// Every number and every flag.
fn leaves<'a>(value: &'a mut Value, found: &mut Vec<&'a mut Value>) {
    match value {
        Value::Object(fields) => {
            fields.iter_mut().for_each(|(_, field)| leaves(field, found));
        }
        Value::Array(items) => items.iter_mut().for_each(|item| leaves(item, found)),
        Value::Number(_) | Value::Bool(_) => found.push(value),
        Value::Null | Value::String(_) => {}
    }
}

fn change(value: &mut Value, rng: &mut fastrand::Rng) {
    if let Value::Bool(flag) = value {
        *flag = !*flag;
    } else if let Some(number) = value.as_u64() {
        let extreme = [0, 1, 2, 1000, 65_536, u64::from(u32::MAX), u64::MAX];
        *value = json!(match rng.u8(..12) {
            0 => extreme[rng.usize(..extreme.len())],
            1..=4 => number / rng.u64(2..10),
            _ => number.saturating_add(1).saturating_mul(rng.u64(1..20)),
        });
    } else if let Some(number) = value.as_number().and_then(Number::as_i64) {
        *value = json!(number / 2);
    }
}

#[test]
fn an_edited_schedule_is_refused_or_runs_like_any_other() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let runner = Runner::registers();
    let mut rng = fastrand::Rng::with_seed(7);
    let (mut refused, mut run) = (0, 0);
    for round in 0..600 {
        let mut schedule = value(round % 100);
        let mut found = Vec::new();
        leaves(&mut schedule, &mut found);
        for _ in 0..[1, 2, 5, 20][rng.usize(..4)] {
            let at = rng.usize(..found.len());
            change(found[at], &mut rng);
        }
        match load(directory.path(), &schedule) {
            Ok(schedule) => {
                run += 1;
                judge(&runner.run(&schedule)).unwrap_or_else(|what| {
                    panic!("round {round}: {what}\n{}", schedule.to_json());
                });
            }
            // Of numbers that are too large for their field, and of what cannot be.
            Err(ScheduleError::Json { .. } | ScheduleError::Impossible { .. }) => refused += 1,
            Err(error @ ScheduleError::File { .. }) => panic!("{error}"),
        }
    }
    assert!(refused > 100 && run > 100, "{refused} refused, {run} run");
}

/// An operation that comes up long after everything is well again is waited for.
#[test]
fn a_late_operation_is_waited_for() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    for beyond in [false, true] {
        let mut schedule = value(3);
        let operations = schedule["operations"].as_array_mut().expect("they are a list");
        operations[0]["at_us"] = json!(60_000_000);
        let count = operations.len() as u64;
        schedule["faults"] = json!([]);
        schedule["beyond"] = json!(beyond);
        let run = Runner::registers().run(&load(directory.path(), &schedule).expect("it can be"));
        assert_eq!(judge(&run), Ok(()));
        assert!(run.coverage.count("answers") >= count, "{count}, {}", run.coverage);
    }
}

/// A pause that outlasts the healing by more than the patience is waited for.
#[test]
fn a_long_pause_is_waited_for() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut schedule = value(3);
    schedule["faults"] = json!([
        {"at_us": 200_000, "fault": "pause", "target": "leader", "for_us": 30_000_000},
        {"at_us": 100_000, "fault": "sync_stall", "target": {"replica": 2}, "for_us": 30_000_000},
    ]);
    let run = Runner::registers().run(&load(directory.path(), &schedule).expect("it can be"));
    assert_eq!(judge(&run), Ok(()));
}

/// A query that carries a command answers nothing, and changes nothing.
#[test]
fn a_read_of_a_write_changes_nothing() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut schedule = value(3);
    let operations = schedule["operations"].as_array_mut().expect("they are a list");
    let writes = operations.iter_mut().filter(|it| it["read"] == json!(false));
    let mut changed = 0;
    for write in writes.step_by(2) {
        (write["read"], write["steals"]) = (json!(true), json!(false));
        changed += 1;
    }
    assert!(changed > 5, "{changed} of {}", operations.len());
    let run = Runner::registers().run(&load(directory.path(), &schedule).expect("it can be"));
    assert_eq!(judge(&run), Ok(()));
}
