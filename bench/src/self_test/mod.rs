//! Whether the instrument tells the truth: the generator against a server whose latencies are known.

mod real;
mod server;
mod virtual_time;

use std::time::Duration;

use serde::Serialize;

pub use server::{Behaviour, Latency};

use crate::{
    generator::{DriveError, Pace, Plan, Record},
    stats::{Asked, examine},
    workload::Requests,
};

/// The quantiles that are compared with the truth.
const QUANTILES: [f64; 3] = [0.5, 0.99, 0.999];

/// One way for a server to behave, and how it is asked.
#[derive(Debug, Clone)]
pub struct Case {
    /// For people.
    pub name: &'static str,
    /// What the server does.
    pub behaviour: Behaviour,
    /// How often it is asked in a second.
    pub per_second: f64,
    /// For how long.
    pub duration: Duration,
}

/// How a case came out over its runs.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// The case.
    pub case: String,
    /// How many runs.
    pub runs: usize,
    /// The true p99, in µs.
    pub p99_truth_us: f64,
    /// The median of the reported p99, in µs.
    pub p99_reported_us: f64,
    /// In how many runs the true p99 was inside the reported interval.
    pub p99_covered: usize,
    /// How far the reported quantiles 50 %, 99 % and 99.9 % were from the truth, in the median of the
    /// runs, as shares of it.
    pub errors: [f64; 3],
    /// In how many runs all tests of the sample passed.
    pub tests_passed: usize,
    /// What a generator that waits for each answer before it sends the next would have reported as
    /// p99, in µs.
    pub p99_closed_loop_us: f64,
}

/// The share of runs in which the truth must be inside its 95 % interval.
const COVERAGE_MIN: f64 = 0.93;

impl Outcome {
    /// Whether the instrument told the truth.
    pub fn passed(&self) -> bool {
        self.p99_covered as f64 >= COVERAGE_MIN * self.runs as f64
            && self.errors[0] < 0.05
            && self.errors[1] < 0.05
    }
}

/// What is tried: latencies alone, a server that loses requests, and one that stands still.
pub fn cases() -> Vec<Case> {
    let exponential = Latency { floor: Duration::from_micros(500), mean: Duration::from_millis(2) };
    let short = Latency { floor: Duration::from_micros(500), mean: Duration::from_micros(500) };
    let steady = Behaviour { latency: exponential, drops: 0.0, stall: None };
    let stall = Some((Duration::from_secs(1), Duration::from_millis(100)));
    let (per_second, duration) = (2500.0, Duration::from_secs(4));
    let case = |name, behaviour| Case { name, behaviour, per_second, duration };
    vec![
        case("exponential latencies", steady),
        case("2 % of the requests lost", Behaviour { latency: short, drops: 0.02, ..steady }),
        case("a stall of 100 ms each second", Behaviour { latency: short, stall, ..steady }),
    ]
}

/// Runs a case so many times in virtual time: the real generator, sessions and server endpoint, with
/// a clock and a network that are computed.
pub fn in_virtual_time(case: &Case, runs: usize) -> Outcome {
    let records =
        (0..runs as u64).map(|run| virtual_time::run(&plan(case, run), case.behaviour, run));
    judge(case, &records.collect::<Vec<_>>())
}

/// Runs a case so many times with real sockets and a real clock.
pub fn in_real_time(case: &Case, runs: usize) -> Result<Outcome, DriveError> {
    let mut records = Vec::new();
    for run in 0..runs as u64 {
        records.push(real::run(&plan(case, run), case.behaviour, run)?);
    }
    Ok(judge(case, &records))
}

fn plan(case: &Case, run: u64) -> Plan {
    Plan {
        pace: Pace::Open { per_second: case.per_second },
        clients: 4,
        requests: Requests::same(vec![0; 24].into(), false),
        warm_up: Duration::from_millis(200),
        duration: case.duration,
        timeout: Duration::from_secs(2),
        seed: 0xC0FF_EE00 + run,
    }
}

fn judge(case: &Case, records: &[Record]) -> Outcome {
    let truth = QUANTILES.map(|quantile| case.behaviour.quantile_us(quantile));
    let mut covered = 0;
    let mut tests_passed = 0;
    for record in records {
        let latencies: Vec<_> =
            record.samples().iter().map(|it| it.latency_ns as f64 / 1000.0).collect();
        let achieved = record.completed as f64 / case.duration.as_secs_f64();
        let throughput = (Some(case.per_second), achieved);
        let asked = Asked { tolerance: 0.1, p99_width: 1.0 };
        let (tests, interval) = examine(Some(&record.gaps_ns), &latencies, throughput, None, asked);
        covered += usize::from(interval.is_some_and(|interval| interval.contains(truth[1])));
        tests_passed += usize::from(tests.passed);
    }
    let middle = |of: &dyn Fn(&Record) -> f64| {
        crate::stats::median(&records.iter().map(of).collect::<Vec<_>>()).unwrap_or(f64::NAN)
    };
    let error =
        |at: usize| middle(&|record| (record.quantile_us(QUANTILES[at]) / truth[at] - 1.0).abs());
    Outcome {
        case: case.name.to_owned(),
        runs: records.len(),
        p99_truth_us: truth[1],
        p99_reported_us: middle(&|record| record.quantile_us(0.99)),
        p99_covered: covered,
        errors: [error(0), error(1), error(2)],
        tests_passed,
        p99_closed_loop_us: closed_loop_p99_us(case),
    }
}

/// The trap that an open loop avoids: one request at a time, each counted from when it was sent.
fn closed_loop_p99_us(case: &Case) -> f64 {
    let plan = Plan { pace: Pace::Closed { outstanding: 1 }, clients: 1, ..plan(case, 0) };
    virtual_time::run(&plan, case.behaviour, 0).quantile_us(0.99)
}

#[cfg(test)]
mod tests {
    use r2p2::Time;

    use super::*;

    #[test]
    fn the_intervals_hold_the_truth_as_often_as_they_say() {
        let case = &cases()[0];
        let outcome = in_virtual_time(case, 12);
        // Of 12 runs 10 and more are covered with a probability of 98 %; `self-test` makes 100.
        assert!(outcome.p99_covered >= 10, "{outcome:?}");
        assert!(outcome.errors[1] < 0.05, "{outcome:?}");
        assert!(outcome.tests_passed >= 8, "{outcome:?}");
    }

    #[test]
    fn lost_requests_show_as_their_retries_do() {
        let outcome = in_virtual_time(&cases()[1], 5);
        assert!(outcome.p99_truth_us > 25_000.0, "{outcome:?}");
        assert!(outcome.p99_covered >= 4, "{outcome:?}");
        assert!(outcome.errors[0] < 0.05 && outcome.errors[1] < 0.05, "{outcome:?}");
    }

    #[test]
    fn a_stall_of_the_generator_shows_as_latency_and_as_lateness() {
        let case = &cases()[0];
        let stalls = |now: Time| {
            let into = now.as_nanos() % 1_000_000_000;
            if into < 100_000_000 {
                Time::from_nanos(now.as_nanos() - into + 100_000_000)
            } else {
                now
            }
        };
        let record = virtual_time::run_with(&plan(case, 1), case.behaviour, 1, stalls);
        assert!(record.quantile_us(0.99) > 80_000.0, "{}", record.quantile_us(0.99));
        assert!(record.lateness_us(0.99) > 80_000.0, "{}", record.lateness_us(0.99));
    }

    #[test]
    fn a_stall_shows_in_p99_as_it_does_to_users() {
        let outcome = in_virtual_time(&cases()[2], 5);
        assert!(outcome.passed(), "{outcome:?}");
        assert!((80_000.0..100_000.0).contains(&outcome.p99_reported_us), "{outcome:?}");
        // The trap: who waits for each answer sends one request into each stall.
        assert!(outcome.p99_closed_loop_us < 10_000.0, "{outcome:?}");
        assert_eq!(outcome.tests_passed, 0, "a system that stalls is not in a steady state");
    }
}
