//! The command from outside: what it refuses, and what it writes.

use std::{
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;

const BENCH: &str = env!("CARGO_BIN_EXE_hovercraft-bench");

fn bench(arguments: &[&str]) -> Output {
    Command::new(BENCH).args(arguments).output().expect("the command starts")
}

#[test]
fn bad_input_is_named_and_ends_with_3() {
    for (line, named) in [
        ("run --workload nothing", "nothing"),
        ("run --rate 0", "--rate"),
        ("run --rate 5 --outstanding 5", "--outstanding"),
        ("run --seconds 1e300", "--seconds"),
        ("run --clients 5 --outstanding 3", "--clients"),
        ("run --json none/of/these.json", "none/of/these.json"),
        ("run --svg picture.png", "--svg"),
        ("run --bin none/hovercraft", "none/hovercraft"),
        ("run --bin /dev/null", "/dev/null"),
        ("run --find-max --slo 500", "--slo"),
        ("run --attach here", "--attach"),
        ("run --workload failover --mode unreplicated", "failover"),
        ("run --mode raft --by-switch", "--by-switch"),
        ("run --mode hovercraft++ --by-switch --attach 127.0.0.1:9", "--attach"),
        ("switch nothing", "nothing"),
        ("switch table1 --scale 0", "--scale"),
        ("switch table1 --bin none/hovercraft", "none/hovercraft"),
        ("run --workload loss --attach 127.0.0.1:9", "--attach"),
        ("peers --seconds 0", "--seconds"),
        ("peers --bin none/hovercraft", "none/hovercraft"),
        ("floor --alone --directory none/such", "none/such"),
        ("model --floor none.json --run none.json", "none.json"),
        ("model --requests 1", "--requests"),
        ("count --baseline none.json", "none.json"),
        ("report none/such", "none/such"),
        ("self-test --runs 0", "--runs"),
    ] {
        let output = bench(&line.split(' ').collect::<Vec<_>>());
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{line}: {said}");
        assert!(said.contains(named), "{line}: {said}");
    }
}

#[test]
fn a_run_writes_what_its_readers_look_for() {
    // It is built with the workspace, not with this crate alone.
    if !Path::new(BENCH).with_file_name("hovercraft").exists() {
        eprintln!("skipped: there is no hovercraft command beside hovercraft-bench");
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name).to_str().expect("valid").to_owned();
    let (json, svg, trend) = (path("run.json"), path("run.svg"), path("trend.jsonl"));
    let output = bench(&[
        "run",
        "--workload",
        "tiny",
        "--mode",
        "raft",
        "--replicas",
        "3",
        "--outstanding",
        "7",
        "--clients",
        "3",
        "--seconds",
        "0.5",
        "--seconds-max",
        "0.5",
        "--json",
        &json,
        "--svg",
        &svg,
        "--trend",
        &trend,
    ]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    let text = std::fs::read_to_string(&json).expect("the figures");
    let figures: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(figures["workload"], "tiny");
    assert_eq!(figures["mode"], "raft");
    assert_eq!(figures["outstanding"], 7);
    assert_eq!(figures["clients"], 3);
    for key in [
        "/replicas",
        "/achieved_per_s",
        "/p50_us",
        "/p99_us",
        "/p999_us",
        "/cpu_us_per_op/leader",
        "/cpu_us_per_op/followers",
        "/cpu_us_per_op/client",
        "/cpu_us_per_op/replicas_total",
        "/leader/bytes_out_per_op",
        "/leader/datagrams_out_per_op",
        "/leader/datagrams_in_per_op",
    ] {
        let figure = figures.pointer(key).and_then(Value::as_f64);
        assert!(figure.is_some_and(|it| it > 0.0), "{key} is {figure:?}");
    }
    for key in ["durability", "offered_per_s", "p99_interval_us", "tests", "machine", "commit"] {
        assert!(figures.get(key).is_some(), "{key} is missing");
    }
    assert!(std::fs::read(&svg).expect("a picture").starts_with(b"<svg"));
    let png = svg.replace(".svg", ".png");
    assert!(std::fs::read(png).expect("the same").starts_with(b"\x89PNG"));
    let report = bench(&["report", directory.path().to_str().expect("valid")]);
    assert_eq!(report.status.code(), Some(0), "{}", String::from_utf8_lossy(&report.stderr));
    let markdown = std::fs::read_to_string(path("report.md")).expect("a summary");
    assert!(markdown.contains("| tiny, 24 B | raft | 3 |"), "{markdown}");
}

#[test]
fn a_run_behind_a_switch_says_what_that_cost() {
    // It is built with the workspace, not with this crate alone.
    if !Path::new(BENCH).with_file_name("hovercraft").exists() {
        eprintln!("skipped: there is no hovercraft command beside hovercraft-bench");
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let json = directory.path().join("run.json");
    let json = json.to_str().expect("valid");
    let line = "run --mode hovercraft++ --by-switch --outstanding 5 --seconds 0.5 --seconds-max 0.5 --json";
    let output = bench(&line.split(' ').chain([json]).collect::<Vec<_>>());
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    let text = std::fs::read_to_string(json).expect("the figures");
    let figures: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(figures["mode"], "hovercraft++");
    assert_eq!(figures["by_switch"], true);
    for key in
        ["/cpu_us_per_op/switch", "/switch/datagrams_in_per_op", "/switch/datagrams_out_per_op"]
    {
        let figure = figures.pointer(key).and_then(Value::as_f64);
        assert!(figure.is_some_and(|it| it > 0.0), "{key} is {figure:?}");
    }
}
