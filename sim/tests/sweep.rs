//! Many hostile schedules, one a seed, with every invariant after every step.
//!
//! - `HOVERCRAFT_SIM_SEEDS=0..100000` runs other seeds than the default ones;
//! - `HOVERCRAFT_SIM_LINES=1000` shows more of the story of the seed that fails;
//! - `HOVERCRAFT_SIM_STORY=17` tells the whole story of one seed, whether it fails or not.

use std::{env, ops::Range, thread, time::Instant};

use hovercraft_sim::{Coverage, Options, Stepper, replay, run_seed};

const SEEDS: Range<u64> = 0..300;

/// What must happen at least once, or the sweep proves little.
const COVERED: &[&str] = &[
    "answers",
    "appends rejected",
    "blackouts",
    "bodies recovered",
    "bulk catch-ups",
    "cancellations that refused",
    "clock jumps",
    "cuts that eat packets",
    "elections won",
    "entries fetched in bulk",
    "entries truncated",
    "identities reused",
    "incarnations recovered",
    "kills",
    "leaderships lost",
    "leftovers adopted",
    "multicasts that do not reach all",
    "one-way cuts",
    "packets cut off",
    "packets damaged",
    "packets doubled",
    "packets lost",
    "pauses",
    "pre-votes refused",
    "queues full",
    "quorums lost",
    "reads executed",
    "requests dropped",
    "resends",
    "retries answered from the session table",
    "retries found in the log",
    "sessions lost",
    "slow disks",
    "snapshots installed",
    "snapshots refused",
    "snapshots taken",
    "stops in good order",
    "two-way cuts",
];

/// The seeds to run: of the environment, if it says so.
fn seeds() -> Option<Range<u64>> {
    let text = env::var("HOVERCRAFT_SIM_SEEDS").ok()?;
    let (from, to) = text.split_once("..").expect("HOVERCRAFT_SIM_SEEDS is FROM..TO");
    let number = |text: &str| text.parse().expect("HOVERCRAFT_SIM_SEEDS is FROM..TO");
    Some(number(from)..number(to))
}

/// Every `step`-th seed; the first one that fails ends it.
fn run_some(seeds: Range<u64>, offset: usize, step: usize) -> Coverage {
    let mut coverage = Coverage::default();
    for seed in seeds.skip(offset).step_by(step) {
        match run_seed(seed) {
            Ok(seen) => coverage.merge(&seen),
            Err(failure) => {
                let lines = env::var("HOVERCRAFT_SIM_LINES").ok();
                let lines = lines.and_then(|lines| lines.parse().ok());
                panic!("\n{}", lines.map_or(*failure, |lines| replay(seed, lines)));
            }
        }
    }
    coverage
}

#[test]
fn every_invariant_holds_in_every_schedule() {
    let chosen = seeds();
    let seeds = chosen.clone().unwrap_or(SEEDS);
    let count = seeds.end - seeds.start;
    let started = Instant::now();
    let jobs = thread::available_parallelism().map_or(1, usize::from).min(4);
    let mut coverage = Coverage::default();
    thread::scope(|scope| {
        let run = |offset| {
            let seeds = seeds.clone();
            scope.spawn(move || run_some(seeds, offset, jobs))
        };
        let threads: Vec<_> = (0..jobs).map(run).collect();
        for thread in threads {
            coverage.merge(&thread.join().expect("a seed failed: see above"));
        }
    });
    let per_second = count as f64 / started.elapsed().as_secs_f64();
    println!("{coverage}{count} seeds, {per_second:.1} a second");
    if chosen.is_none() {
        let missing: Vec<_> = COVERED.iter().filter(|what| coverage.count(what) == 0).collect();
        assert!(missing.is_empty(), "these never happened: {missing:?}");
    }
}

#[test]
fn a_seed_repeats_exactly() {
    for seed in 0..10 {
        let digest = || {
            let mut stepper = Stepper::new(Options::from_seed(seed));
            stepper.run().expect("the seeds of the sweep do not fail");
            stepper.digest()
        };
        assert_eq!(digest(), digest(), "seed {seed}");
    }
}

#[test]
fn the_story_of_a_seed_is_told() {
    let chosen = env::var("HOVERCRAFT_SIM_STORY").ok();
    let seed =
        chosen.as_ref().map_or(1, |seed| seed.parse().expect("HOVERCRAFT_SIM_STORY is a seed"));
    let told = replay(seed, usize::MAX);
    assert!(told.story.iter().any(|line| line.contains("I lead term")), "{told}");
    if chosen.is_some() {
        println!("{told}");
    }
}
