//! `hovercraft-jepsen check` from outside: its exit codes, what it says and what it writes.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Output},
};

use serde_json::Value;

fn data(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn check(arguments: &str, files: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hovercraft-jepsen"));
    command.arg("check").args(arguments.split_whitespace());
    command.args(files.iter().map(|name| data(name))).output().expect("the command was built")
}

fn code(arguments: &str, files: &[&str]) -> Option<i32> {
    check(arguments, files).status.code()
}

#[test]
fn the_verdict_is_the_exit_code() {
    let cas = "--model cas-register";
    let etcd = "--model cas-register --semantics etcd";
    let cases = [
        (etcd, "etcd-good.log", 0),
        (etcd, "etcd-not.log", 1),
        // What failed never happened, and nil is not known.
        (cas, "etcd-not.log", 0),
        (cas, "cas-register-good.edn", 0),
        (cas, "cas-register-not.edn", 1),
        ("--model kv", "kv-not.edn", 1),
        ("--model list-append", "list-append-not.edn", 1),
        ("--model kv", "bad.jsonl", 3),
        ("--model mutex", "kv-not.edn", 3),
        ("--model kv", "no-such-file", 3),
    ];
    for (arguments, file, expected) in cases {
        assert_eq!(code(arguments, &[file]), Some(expected), "{arguments} {file}");
    }
}

#[test]
fn of_many_files_the_worst_decides() {
    let (good, not, bad) = ("cas-register-good.edn", "cas-register-not.edn", "bad.jsonl");
    let cas = "--model cas-register";
    assert_eq!(code(cas, &[good, good]), Some(0));
    assert_eq!(code(cas, &[good, not]), Some(1));
    assert_eq!(code(cas, &[good, bad, not]), Some(3));
    let limited = "--model cas-register --memory-limit 100";
    assert_eq!(code(limited, &[good]), Some(2));
    assert_eq!(code("--model cas-register --time-limit 0s", &[good]), Some(2));
    assert_eq!(code("--model cas-register --step-limit 0", &[good]), Some(2));
}

#[test]
fn wrong_usage_is_bad_input() {
    let good = "cas-register-good.edn";
    for arguments in
        ["", "--model nonsense", "--model kv --time-limit soon", "--model kv --frobnicate"]
    {
        assert_eq!(code(arguments, &[good]), Some(3), "{arguments}");
    }
    assert_eq!(code("--model kv", &[]), Some(3));
    assert_eq!(code("--model kv --json no/such/directory/file", &[good]), Some(3));
    assert_eq!(code("--help", &[]), Some(0));
}

#[test]
fn people_are_told_why() {
    let said = |arguments: &str, file: &str| {
        String::from_utf8(check(arguments, &[file]).stdout).expect("text")
    };
    let text = said("--model kv", "kv-not.edn");
    assert!(text.contains("NOT linearizable"), "{text}");
    assert!(
        text.contains("Key \"4\": no order explains get → \"x 0 0 y\" (process 0, line 5)"),
        "{text}"
    );
    let text = said("--model kv", "bad.jsonl");
    assert!(text.contains("bad input: line 2: process 0 invokes while"), "{text}");
    let text = said("--model list-append", "list-append-not.edn");
    assert!(text.contains("G-single: "), "{text}");
}

#[test]
fn programs_and_browsers_are_told_too() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (json, html) = (directory.path().join("a.json"), directory.path().join("a.html"));
    let arguments =
        format!("--model cas-register --json {} --html {}", json.display(), html.display());
    let files = ["cas-register-not.edn", "cas-register-good.edn", "bad.jsonl"];
    assert_eq!(code(&arguments, &files), Some(3));
    let json: Value =
        serde_json::from_slice(&fs::read(json).expect("was asked for")).expect("JSON");
    let verdicts: Vec<_> = (0..3).map(|at| &json["files"][at]["verdict"]).collect();
    assert_eq!(verdicts, ["not linearizable", "linearizable", "bad input"]);
    assert_eq!((&json["verdict"], &json["exit_code"]), (&"bad input".into(), &3.into()));
    let found = &json["files"][0]["counterexamples"][0];
    assert_eq!((&found["stuck"]["line"], &found["stuck"]["text"]), (&5.into(), &"read 3".into()));
    assert_eq!(found["prefix_operations"], 3);
    let page = fs::read_to_string(html).expect("was asked for");
    assert!(page.starts_with("<!DOCTYPE html>") && page.contains("cas-register-not.edn"));
}
