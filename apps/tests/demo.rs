//! `hovercraft demo` from outside: its verdict, its files, and that it leaves no process behind.

mod support;

use std::{
    collections::BTreeSet,
    fs,
    io::BufReader,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use hovercraft_jepsen::{History, Outcome};
use serde_json::Value;
use support::{PATIENCE, hovercraft, processes_with};

fn demo(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(hovercraft());
    command.arg("demo").args(arguments).current_dir(directory);
    command
}

#[test]
fn a_short_demo_ends_well() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let kept = directory.path().join("kept");
    let arguments = "--seconds 3 --json demo.json --history demo.jsonl --keep kept";
    let arguments: Vec<_> = arguments.split(' ').collect();
    let output = demo(directory.path(), &arguments).output().expect("the command was built");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(
        output.status.code(),
        Some(0),
        "{said}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(said.contains("with the leader dead") && said.trim_end().ends_with("ok"), "{said}");

    let json = fs::read(directory.path().join("demo.json")).expect("was asked for");
    let json: Value = serde_json::from_slice(&json).expect("JSON");
    let keys: BTreeSet<&str> =
        json.as_object().expect("an object").keys().map(String::as_str).collect();
    let documented = "mode replicas acknowledged unknown lost duplicated stale_reads \
                      throughput_per_s p50_us p99_us outage_ms verdict";
    assert_eq!(keys, documented.split_whitespace().collect());
    assert_eq!((&json["verdict"], &json["lost"]), (&"ok".into(), &0.into()));
    assert!(json["outage_ms"].as_u64().expect("a number") > 0, "{json}");

    let history = fs::File::open(directory.path().join("demo.jsonl")).expect("was asked for");
    let history = History::read(BufReader::new(history)).expect("a history");
    let acknowledged =
        history.operations.iter().filter(|operation| matches!(operation.outcome, Outcome::Ok(_)));
    let load = json["acknowledged"].as_u64().expect("a number");
    // The last of it are the reads of everything, which are not the load's.
    assert!(load > 0 && acknowledged.count() as u64 > load, "{json}");
    let picture = fs::read_to_string(kept.join("demo.svg")).expect("is always drawn");
    assert!(picture.contains("killed") && picture.contains("started again"));
    assert_eq!(processes_with(&kept), [0_u32; 0]);
}

#[test]
fn what_cannot_be_done_is_refused_before_anything_is_started() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    fs::write(directory.path().join("full"), "").expect("writable");
    for arguments in [
        &["--seconds", "1"][..],
        &["--replicas", "0"],
        &["--mode", "paxos"],
        &["--mode", "unreplicated", "--replicas", "3"],
        &["--keep", "."],
        &["--keep", "full"],
        &["--json", "no/such/directory"],
        &["--history", "no/such/directory"],
    ] {
        let output = demo(directory.path(), arguments).output().expect("the command was built");
        assert_eq!(output.status.code(), Some(3), "{arguments:?}");
        assert!(!output.stderr.is_empty(), "{arguments:?} says nothing");
    }
}

/// A demo that has just begun, with three replicas that run.
fn begun(directory: &Path) -> Child {
    let mut demo = demo(directory, &["--seconds", "60", "--keep", "kept"]);
    let demo = demo.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let demo = demo.expect("the command was built");
    wait_until(|| replicas(directory) == 3);
    demo
}

fn replicas(directory: &Path) -> usize {
    processes_with(Path::new("kept/replica-"))
        .into_iter()
        .filter(|number| {
            let at = fs::read_link(format!("/proc/{number}/cwd"));
            at.is_ok_and(|at| at == directory)
        })
        .count()
}

fn wait_until(condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "it did not come about");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn an_interrupted_demo_has_no_verdict_and_leaves_nothing_behind() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut demo = begun(directory.path());
    let interrupt = ["-INT", &demo.id().to_string()].map(str::to_owned);
    assert!(Command::new("kill").args(interrupt).status().expect("kill runs").success());
    assert_eq!(demo.wait().expect("a child").code(), Some(2));
    assert_eq!(replicas(directory.path()), 0);
}

#[test]
fn the_replicas_of_a_demo_that_is_killed_end_by_themselves() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut demo = begun(directory.path());
    demo.kill().expect("it runs");
    demo.wait().expect("a child");
    wait_until(|| replicas(directory.path()) == 0);
}
