//! Many seeds, on several threads, and what to show of those that fail.

use std::{
    fmt,
    ops::Range,
    sync::{
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use serde::Serialize;

use crate::{
    coverage::Coverage,
    faults::FaultKind,
    invariants::{self, Violation},
    runner::Runner,
};

/// How many lines of the story of a failed seed are shown.
const LINES_MAX: usize = 60;

/// A sweep ends after so many seeds that fail: the next ones say little that is new.
const FAILURES_MAX: usize = 100;

/// What a sweep is to do.
#[derive(Debug, Clone)]
pub struct Sweep {
    /// The seeds; the end is not among them.
    pub seeds: Range<u64>,
    /// Faults go beyond what the protocol promises to survive.
    pub beyond: bool,
    /// So many threads.
    pub jobs: usize,
    /// It ends after this long, whatever is left.
    pub time_max: Option<Duration>,
    /// It ends at the first seed that fails.
    pub first_only: bool,
}

/// A seed that fails, and how.
#[derive(Debug, Clone, Serialize)]
pub struct Failure {
    /// The seed: running it again fails again.
    pub seed: u64,
    /// Which invariant broke.
    pub invariant: String,
    /// The rule that it stands for.
    pub rule: String,
    /// What was found.
    pub message: String,
}

/// What a sweep found.
#[derive(Debug, Clone)]
pub struct Report {
    /// How many seeds were run.
    pub seeds: u64,
    /// Those that failed, by seed.
    pub failures: Vec<Failure>,
    /// What happened in all of them.
    pub coverage: Coverage,
    /// How long it took.
    pub took: Duration,
    /// The end of the story of the first one that failed.
    pub story: Vec<String>,
}

impl Sweep {
    /// A sweep on all cores.
    pub fn new(seeds: Range<u64>) -> Self {
        let jobs = thread::available_parallelism().map_or(1, usize::from);
        Self { seeds, beyond: false, jobs, time_max: None, first_only: false }
    }

    /// Runs it. `progress` is told how many seeds are done, and how many of them failed.
    ///
    /// Seeds are begun in order, and those begun are ended, so the first one that fails is the same
    /// for any number of threads.
    pub fn run(&self, runner: &Runner, mut progress: impl FnMut(u64, usize)) -> Report {
        let started = Instant::now();
        let next = AtomicU64::new(self.seeds.start);
        let is_over = AtomicBool::new(false);
        let mut report = Report {
            seeds: 0,
            failures: Vec::new(),
            coverage: Coverage::default(),
            took: Duration::ZERO,
            story: Vec::new(),
        };
        let (sender, results) = mpsc::sync_channel(1024);
        thread::scope(|scope| {
            for _ in 0..self.jobs.max(1) {
                let (sender, next, is_over) = (sender.clone(), &next, &is_over);
                let work = move || self.work(runner, next, is_over, &sender);
                thread::Builder::new()
                    .name(QUIET_THREAD.to_owned())
                    .spawn_scoped(scope, work)
                    .expect("the system has threads");
            }
            drop(sender);
            // A sort of fault that never comes up is to be seen too.
            for (_, name) in FaultKind::ALL {
                report.coverage.add(name, 0);
            }
            for (seed, coverage, violation) in results {
                report.seeds += 1;
                report.coverage.merge(&coverage);
                report.failures.extend(violation.map(|violation| Failure::new(seed, violation)));
                let is_late = self.time_max.is_some_and(|max| started.elapsed() >= max);
                let failed = report.failures.len();
                if is_late || failed >= FAILURES_MAX || (self.first_only && failed > 0) {
                    is_over.store(true, Ordering::Relaxed);
                }
                progress(report.seeds, failed);
            }
        });
        report.took = started.elapsed();
        report.failures.sort_by_key(|failure| failure.seed);
        if self.first_only {
            report.failures.truncate(1);
        }
        if let Some(first) = report.failures.first() {
            let schedule = runner.schedule(first.seed, self.beyond);
            report.story = runner.replay(&schedule, LINES_MAX).story().collect();
        }
        report
    }

    fn work(
        &self,
        runner: &Runner,
        next: &AtomicU64,
        is_over: &AtomicBool,
        results: &mpsc::SyncSender<(u64, Coverage, Option<Violation>)>,
    ) {
        while !is_over.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= self.seeds.end {
                return;
            }
            let run = runner.run(&runner.schedule(seed, self.beyond));
            if results.send((seed, run.coverage, run.violation)).is_err() {
                return;
            }
        }
    }
}

/// Threads of this name run seeds, whose panics are caught and reported as failures; a program that
/// installs a panic hook may leave them out.
pub const QUIET_THREAD: &str = "simulation";

impl Failure {
    fn new(seed: u64, violation: Violation) -> Self {
        let Violation { invariant, rule, what } = violation;
        Self { seed, invariant: invariant.to_owned(), rule: rule.to_owned(), message: what }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed {}: ", self.seed)?;
        invariants::tell(f, &self.invariant, &self.rule, &self.message)
    }
}

impl Report {
    /// Seeds a second, of all threads together.
    pub fn seeds_per_s(&self) -> f64 {
        self.seeds as f64 / self.took.as_secs_f64().max(1e-9)
    }

    /// Deliveries a second, of all threads together.
    pub fn deliveries_per_s(&self) -> f64 {
        self.coverage.count("deliveries") as f64 / self.took.as_secs_f64().max(1e-9)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.coverage)?;
        for line in &self.story {
            writeln!(f, "{line}")?;
        }
        for failure in &self.failures {
            writeln!(f, "{failure}")?;
        }
        write!(
            f,
            "{} seeds, {} failed, {:.1} seeds/s, {:.0} deliveries/s",
            self.seeds,
            self.failures.len(),
            self.seeds_per_s(),
            self.deliveries_per_s()
        )
    }
}
