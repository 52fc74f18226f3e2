//! `hovercraft log` from outside, on the directories of stores.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
    sync::Arc,
};

use bytes::Bytes;
use hovercraft::{
    DigestKey, Entry, Identity, Incarnation, Index, Kind, NodeId, Payload, Request,
    storage::{Durability, HardState, LogStore, SegmentedStore, SledStore},
};
use serde_json::Value;

fn log(command: &str, directory: &Path, more: &[&str]) -> Output {
    let mut process = Command::new(env!("CARGO_BIN_EXE_hovercraft"));
    process.args(["log", command]).arg(directory).args(more).output().expect("it was built")
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("it was not killed")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn hard_state() -> HardState {
    HardState {
        term: 7,
        vote: Some(NodeId(2)),
        incarnation: Incarnation(1),
        birth: None,
        durability: Durability::Sync,
        clean: false,
    }
}

fn entries(first: Index, count: u64, term: u64) -> Vec<Entry> {
    let body = Bytes::from_static(b"twelve bytes");
    let entry = |sequence| {
        let identity = Identity::Session { client: 3, sequence };
        let request = Request::new(DigestKey::new([1, 2]), identity, 1, Kind::Write, body.clone());
        let payload = Payload::Request { replier: NodeId(1), request: Arc::new(request) };
        Entry { term, log_time_us: 5, session_delta_us: 0, payload, return_path: None }
    };
    (first..first + count).map(entry).collect()
}

/// A log of 1..=8, of which the last four replaced others.
fn fill(directory: &Path) -> SegmentedStore {
    let mut store = SegmentedStore::open(directory).unwrap();
    store.load().unwrap();
    store.save_hard_state(&hard_state()).unwrap();
    store.append(1, &entries(1, 6, 1)).unwrap();
    store.sync().unwrap();
    store.append(5, &entries(5, 4, 2)).unwrap();
    store.sync().unwrap();
    store
}

#[test]
fn a_log_is_shown_and_checked() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let store = fill(path);
    let running = log("check", path, &[]);
    assert_eq!(code(&running), 3);
    let said = text(&running.stderr);
    assert!(said.contains("is in use by another process"), "{said}");
    drop(store);

    let checked = log("check", path, &[]);
    assert_eq!(code(&checked), 0, "{}", text(&checked.stderr));
    let said = text(&checked.stdout);
    assert!(
        said.contains("entries 1 to 8 in 1 segments") && said.contains("all is there"),
        "{said}"
    );

    let dumped = text(&log("dump", path, &[]).stdout);
    assert!(dumped.contains("-- replaced or removed are the entries from 5"), "{dumped}");
    let dumped = text(&log("dump", path, &["--json"]).stdout);
    let lines: Vec<Value> =
        dumped.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let indices: Vec<_> = lines.iter().filter_map(|line| line["index"].as_u64()).collect();
    assert_eq!(indices, [1, 2, 3, 4, 5, 6, 5, 6, 7, 8]);
    assert_eq!((&lines[6]["cut"], &lines[7]["term"]), (&5.into(), &2.into()));
    assert_eq!((&lines[7]["identity"], &lines[7]["body_bytes"]), (&"3.5".into(), &12.into()));
    let summary = lines.last().unwrap();
    assert_eq!((&summary["next_index"], &summary["vote"]), (&9.into(), &2.into()));
    assert_eq!(summary["torn"], false);
}

/// The exit code says it, and nothing is changed by looking.
#[test]
fn damage_is_found_and_left_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    drop(fill(directory.path()));
    let file = directory.path().join("log/segment-1");
    let good = fs::read(&file).unwrap();
    let offset_of_the_last = good[..4_096 + 2_000].iter().rposition(|byte| *byte != 0).unwrap();
    for (offset, expected) in [
        (4_100, "segment-1: the record at offset 4096"),
        (offset_of_the_last, "are missing at the end of the log"),
        (3, "the header of this segment is damaged"),
    ] {
        let mut bad = good.clone();
        bad[offset] ^= 1;
        fs::write(&file, &bad).unwrap();
        for _ in 0..2 {
            let output = log("check", directory.path(), &["--json"]);
            let said = text(&output.stderr);
            assert_eq!(code(&output), 1, "{said}");
            assert!(said.contains(expected), "{said}");
        }
        assert!(fs::read(&file).unwrap() == bad);
    }
}

#[test]
fn what_is_no_log_is_bad_input() {
    let directory = tempfile::tempdir().unwrap();
    let output = log("dump", directory.path(), &[]);
    assert_eq!(code(&output), 3);
    assert!(text(&output.stderr).contains("is not the data directory"));
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0, "nothing is made by looking");

    SledStore::open(directory.path()).unwrap().save_hard_state(&hard_state()).unwrap();
    let output = log("check", directory.path(), &[]);
    assert_eq!(code(&output), 3);
    let said = text(&output.stderr);
    assert!(said.contains("was written by the store \"sled\""), "{said}");
}
