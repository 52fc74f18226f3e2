//! The world over many seeds, and that a seed is one run wherever it runs.
//!
//! Built with `--cfg madsim` only; `cargo world-test` does that. `cargo world --seeds 0..20000` runs
//! others than these seeds.
#![cfg(madsim)]

use std::{
    collections::BTreeSet,
    env, fs,
    ops::Range,
    path::Path,
    process::{Command, Stdio},
    thread,
};

use hovercraft_sim::{FaultKind, Runner, Schedule, Sweep};

const SEEDS: Range<u64> = 0..600;

/// What must happen at least once, or the sweep proves little.
const COVERED: &[&str] = &[
    "aggregators found",
    "aggregators lost",
    "appends by the aggregator",
    "bodies recovered",
    "calls known not to be done",
    "calls of unknown outcome",
    "commands done",
    "cuts that eat packets",
    "disks refused because of damage",
    "elections won",
    "followers served directly",
    "incarnations recovered",
    "one-way cuts",
    "packets cut off",
    "packets damaged",
    "packets doubled",
    "packets late",
    "packets lost",
    "packets multicast",
    "packets of a switch heard again",
    "packets to nobody",
    "packets too large",
    "queries done",
    "retries answered from the session table",
    "snapshots installed",
    "snapshots taken",
    "starts",
    "two-way cuts",
];

fn world() -> Runner {
    Runner::registers().in_world()
}

#[test]
fn every_schedule_of_the_world_ends_well() {
    let report = Sweep::new(SEEDS).run(&world(), |_, _| ());
    assert!(report.failures.is_empty(), "{report}");
    println!("{report}");
    // Hosts of the world have one clock, and links without a rate; orders are damaged by bits of
    // whole packets. Older copies of directories: tests/lost_disk.rs of hovercraft.
    let is_here = |kind: &&(FaultKind, _)| {
        use FaultKind::{BitFlip, ClockDrift, ClockJump, Narrow, OldCopy};
        !matches!(kind.0, BitFlip | ClockDrift | ClockJump | Narrow | OldCopy)
    };
    let faults = FaultKind::ALL.iter().filter(is_here).map(|(_, name)| name);
    let missing: Vec<_> =
        COVERED.iter().chain(faults).filter(|what| report.coverage.count(what) == 0).collect();
    assert!(missing.is_empty(), "these never happened: {missing:?}");
}

/// Every planted bug that only real shells have: `cargo world-test --features planted`.
#[cfg(feature = "planted")]
#[test]
fn every_planted_bug_of_the_world_is_found() {
    use hovercraft_sim::bugs::{BUGS, Tier};

    let mut missed = Vec::new();
    for bug in BUGS.iter().filter(|bug| bug.tier == Tier::World) {
        let sweep = Sweep { first_only: true, ..Sweep::new(0..20_000) };
        let report = sweep.run(&world().with_bug(Some(bug)), |_, _| ());
        match report.failures.first() {
            Some(failure) => println!("{}: {failure}", bug.name),
            None => missed.push(bug.name),
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}

#[test]
fn beyond_what_is_promised_nothing_is_ever_wrong() {
    let sweep = Sweep { beyond: true, ..Sweep::new(0..20) };
    let report = sweep.run(&world(), |_, _| ());
    assert!(report.failures.is_empty(), "{report}");
}

/// Each has a line in the README.md beside it.
#[test]
fn what_once_broke_in_the_world_does_not_break_again() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/regressions");
    for entry in fs::read_dir(directory).expect("the directory is there") {
        let path = entry.expect("it can be read").path();
        if path.extension().is_some_and(|extension| extension == "json") {
            let schedule = Schedule::load(&path).expect("a regression is a schedule");
            if let Some(violation) = world().run(&schedule).violation {
                panic!("{} breaks again: {violation}", path.display());
            }
        }
    }
}

/// Run in a process of its own by `a_seed_is_one_run_alone_in_a_sweep_and_in_another_process`.
const DIGESTS: &str = "HOVERCRAFT_WORLD_DIGESTS";

fn digest(seed: u64) -> String {
    let run = world().run(&Schedule::from_seed(seed));
    assert_eq!(run.violation, None, "seed {seed}");
    format!("digest of {seed}: {:016x}", run.digest)
}

#[test]
fn a_seed_is_one_run_alone_in_a_sweep_and_in_another_process() {
    const SEEDS: Range<u64> = 0..4;
    let alone: Vec<_> = SEEDS.map(digest).collect();
    if env::var_os(DIGESTS).is_some() {
        for line in alone {
            println!("{line}");
        }
        return;
    }
    let together: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = SEEDS.map(|seed| scope.spawn(move || digest(seed))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(alone, together);
    let this = "a_seed_is_one_run_alone_in_a_sweep_and_in_another_process";
    let other = Command::new(env::current_exe().unwrap())
        .args(["--exact", this, "--nocapture"])
        .env(DIGESTS, "1")
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    let printed = String::from_utf8(other.stdout).unwrap();
    let digests: Vec<_> =
        printed.lines().filter_map(|line| line.find("digest of").map(|at| &line[at..])).collect();
    assert_eq!(alone, digests);
    assert_eq!(alone.iter().collect::<BTreeSet<_>>().len(), alone.len());
}
