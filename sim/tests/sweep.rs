//! Many hostile schedules, one a seed, with every invariant after every step.
//!
//! More than CI has time for: `cargo run --release -p hovercraft-sim -- sweep --seeds 0..1000000`.

use std::process::Command;

use hovercraft_sim::{FaultKind, Runner, Schedule, Sweep};

/// What must happen at least once, or the sweep proves little.
const COVERED: &[&str] = &[
    "aggregators found",
    "aggregators lost",
    "answers",
    "appends rejected",
    "bodies carried by entries",
    "bodies recovered",
    "bodies refused by the leader",
    "bodies sent by a follower",
    "bodies sent: many",
    "bodies sent: one",
    "bytes that narrow links lost",
    "bytes through narrow links",
    "bulk catch-ups",
    "cancellations that refused",
    "cuts that eat packets",
    "damaged disks refused",
    "damaged disks to recover from",
    "damaged disks with nothing hit",
    "duplicates refused",
    "elections won",
    "entries fetched in bulk",
    "entries truncated",
    "followers served directly",
    "histories judged",
    "identities reused",
    "incarnations recovered",
    "leaderships lost",
    "leftovers adopted",
    "metadata taken back",
    "one-way cuts",
    "orders with a bit flipped",
    "packets cut off",
    "packets damaged",
    "packets doubled",
    "packets late",
    "packets lost",
    "packets of aggregators heard again",
    "packets too large",
    "pre-votes refused",
    "queues full",
    "quorums lost",
    "reads executed",
    "requests by a switch",
    "requests dropped",
    "requests refused by a switch",
    "resends",
    "retries answered from the session table",
    "retries found in the log",
    "sessions lost",
    "snapshots installed",
    "snapshots refused",
    "snapshots taken",
    "starts refused by the disk",
    "stops because a write failed",
    "torn tails cut",
    "two-way cuts",
    "votes split",
];

#[test]
fn every_invariant_holds_in_every_schedule() {
    let report = Sweep::new(0..2400).run(&Runner::registers(), |_, _| ());
    println!("{report}");
    assert!(report.failures.is_empty(), "{report}");
    let faults = FaultKind::ALL.iter().map(|(_, name)| name);
    let missing: Vec<_> =
        COVERED.iter().chain(faults).filter(|what| report.coverage.count(what) == 0).collect();
    assert!(missing.is_empty(), "these never happened: {missing:?}");
    let rare = report.coverage.too_rare(report.seeds);
    assert!(rare.is_empty(), "{rare:?}");
}

#[test]
fn beyond_what_is_promised_nothing_is_ever_wrong() {
    let sweep = Sweep { beyond: true, ..Sweep::new(0..100) };
    let report = sweep.run(&Runner::registers(), |_, _| ());
    assert!(report.failures.is_empty(), "{report}");
    let unrecovered = "runs beyond the promises that did not recover";
    assert!(report.coverage.count(unrecovered) > 0, "{report}");
}

/// Run in a process of its own by `a_seed_repeats_exactly`.
const DIGEST_OF: &str = "HOVERCRAFT_SIM_DIGEST_OF";

#[test]
fn a_seed_repeats_exactly() {
    let runner = Runner::registers();
    let digest = |seed| runner.run(&Schedule::from_seed(seed)).digest;
    if let Ok(seed) = std::env::var(DIGEST_OF) {
        println!("digest {}", digest(seed.parse().expect("a seed")));
        return;
    }
    // Alone, among others, and in another process.
    let alone = digest(7);
    let among_others: Vec<_> = (0..10).map(digest).collect();
    assert_eq!(among_others[7], alone);
    let again: Vec<_> = (0..10).rev().map(digest).collect();
    assert!(among_others.iter().eq(again.iter().rev()));
    let this = std::env::current_exe().expect("a test has a file");
    let output = Command::new(this)
        .args(["a_seed_repeats_exactly", "--exact", "--nocapture"])
        .env(DIGEST_OF, "7")
        .output()
        .expect("the test can start itself");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains(&format!("digest {alone}\n")), "{text}");
}

#[test]
fn a_schedule_from_a_file_is_the_same_run() {
    let (schedule, runner) = (Schedule::from_seed(5), Runner::registers());
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("schedule.json");
    schedule.save(&path).expect("it can be written");
    let loaded = Schedule::load(&path).expect("it can be read");
    assert_eq!(runner.run(&loaded).digest, runner.run(&schedule).digest);
    let mut other = schedule.clone();
    other.operations.pop();
    assert_ne!(runner.run(&other).digest, runner.run(&schedule).digest);
}

#[test]
fn the_story_of_a_seed_is_told() {
    let run = Runner::registers().replay(&Schedule::from_seed(1), usize::MAX);
    let story: Vec<_> = run.story().collect();
    assert!(story.iter().any(|line| line.contains("I lead term")), "{}", story.join("\n"));
}
