//! Shrinking: the smallest schedule that still breaks the same invariant, by delta debugging.
//!
//! First faults go, then operations, then time; and again, until nothing more goes.

use hovercraft::core::Limits;

use crate::{runner::Runner, schedule::Schedule};

/// What shrinking did.
#[derive(Debug, Clone)]
pub struct Shrunk {
    /// The smallest schedule that was found.
    pub schedule: Schedule,
    /// The invariant that it breaks.
    pub invariant: &'static str,
    /// How many schedules were tried.
    pub tried: u64,
}

/// No more schedules than this are tried.
const TRIES_MAX: u64 = 4000;

/// A person can read so much.
const READABLE_FAULTS: usize = 10;
const READABLE_OPERATIONS: usize = 20;

/// Under how many other seeds something is tried that is too long to be read.
const OTHER_SEEDS: u64 = 8;

struct Shrinker<'a> {
    runner: &'a Runner,
    best: Schedule,
    invariant: &'static str,
    tried: u64,
    progress: &'a mut dyn FnMut(&Schedule),
}

/// Shrinks a schedule; none if it does not fail. `progress` is shown every smaller one.
pub fn shrink(
    runner: &Runner,
    schedule: Schedule,
    progress: &mut dyn FnMut(&Schedule),
) -> Option<Shrunk> {
    let invariant = runner.run(&schedule).violation?.invariant;
    let mut shrinker = Shrinker { runner, best: schedule, invariant, tried: 1, progress };
    loop {
        let before = shrinker.best.clone();
        shrinker.faults();
        shrinker.operations();
        shrinker.simplify();
        shrinker.time();
        if shrinker.best == before || shrinker.tried >= TRIES_MAX {
            break;
        }
    }
    Some(Shrunk { schedule: shrinker.best, invariant, tried: shrinker.tried })
}

impl Shrinker<'_> {
    /// Keeps a candidate if it still breaks the same invariant.
    ///
    /// What is taken away moves what chance does to the rest: it may be that nothing is missing but
    /// luck. So what is too long to be read is tried under other seeds too.
    fn attempt(&mut self, candidate: &Schedule) -> bool {
        let Schedule { faults, operations, .. } = &self.best;
        let is_long = faults.len() > READABLE_FAULTS || operations.len() > READABLE_OPERATIONS;
        let seed = candidate.options.seed;
        let others = (1..=OTHER_SEEDS).filter(|_| is_long).map(|number| seed.wrapping_add(number));
        let mut seeds = std::iter::once(seed).chain(others);
        seeds.any(|seed| {
            let mut candidate = candidate.clone();
            candidate.options.seed = seed;
            self.attempt_as_it_is(candidate)
        })
    }

    fn attempt_as_it_is(&mut self, candidate: Schedule) -> bool {
        if self.tried >= TRIES_MAX || candidate == self.best {
            return false;
        }
        self.tried += 1;
        let violation = self.runner.run(&candidate).violation;
        let is_same = violation.is_some_and(|violation| violation.invariant == self.invariant);
        if is_same {
            self.best = candidate;
            (self.progress)(&self.best);
        }
        is_same
    }

    fn faults(&mut self) {
        self.remove(
            |schedule| schedule.faults.len(),
            |schedule, range| {
                schedule.faults.drain(range);
            },
        );
    }

    fn operations(&mut self) {
        self.remove(
            |schedule| schedule.operations.len(),
            |schedule, range| {
                schedule.operations.drain(range);
            },
        );
    }

    /// Removes runs of items, half of all at first, then ever shorter ones.
    fn remove(
        &mut self,
        len: impl Fn(&Schedule) -> usize,
        drain: impl Fn(&mut Schedule, std::ops::Range<usize>),
    ) {
        let mut chunk = len(&self.best);
        while chunk > 0 {
            let mut at = 0;
            while at < len(&self.best) {
                let mut candidate = self.best.clone();
                drain(&mut candidate, at..(at + chunk).min(len(&self.best)));
                if !self.attempt(&candidate) {
                    at += chunk;
                }
            }
            chunk /= 2;
        }
    }

    /// What makes operations and replicas harder to follow than they need to be.
    fn simplify(&mut self) {
        for at in 0..self.best.operations.len() {
            let mut candidate = self.best.clone();
            let planned = &mut candidate.operations[at];
            (planned.padding, planned.steals) = (0, false);
            self.attempt(&candidate);
        }
        let mut candidate = self.best.clone();
        candidate.options.pace.ballast_bytes = 0;
        candidate.options.drift_ppm_max = 0;
        self.attempt(&candidate);
        let mut candidate = self.best.clone();
        candidate.options.survivors = None;
        self.attempt(&candidate);
        let mut candidate = self.best.clone();
        (candidate.options.is_lasting, candidate.options.quiet_us) = (false, 0);
        self.attempt(&candidate);
        let mut candidate = self.best.clone();
        candidate.options.cluster.limits = Limits::DEFAULT;
        self.attempt(&candidate);
    }

    /// Nothing goes wrong after a shorter time, and what happens happens earlier.
    fn time(&mut self) {
        let last = |schedule: &Schedule| {
            let faults = schedule.faults.iter().map(|timed| timed.at_us);
            faults.max().unwrap_or_default()
        };
        let mut candidate = self.best.clone();
        candidate.options.chaos_us = last(&candidate) + 1;
        self.attempt(&candidate);
        for part in [2, 4, 8] {
            let mut candidate = self.best.clone();
            candidate.options.chaos_us -= candidate.options.chaos_us / part;
            self.attempt(&candidate);
        }
        for part in [2, 4] {
            let mut candidate = self.best.clone();
            for timed in &mut candidate.faults {
                timed.at_us -= timed.at_us / part;
            }
            for planned in &mut candidate.operations {
                planned.at_us -= planned.at_us / part;
            }
            self.attempt(&candidate);
        }
    }
}
