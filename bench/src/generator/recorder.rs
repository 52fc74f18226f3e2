//! What came of the requests of one generator; those of several are merged.

use std::time::Duration;

use hdrhistogram::Histogram;
use r2p2::Time;
use serde::Serialize;

/// How many latencies are kept one by one, for the tests; of more than that every second, and so on.
const SAMPLES_MAX: usize = 1 << 21;

/// How many gaps of the schedule are kept for its test.
const GAPS_MAX: usize = 100_000;

/// For latencies from a nanosecond to ten minutes, with three digits.
pub fn latencies() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 600_000_000_000, 3).expect("the bounds are fixed and valid")
}

/// What one generator has seen in the measured time.
#[derive(Debug, Clone)]
pub struct Record {
    /// Of every request that was meant to be sent in the measured time, in ns from then.
    pub latency_ns: Histogram<u64>,
    /// How late the generator handed requests over, in ns; empty in a closed loop.
    pub lateness_ns: Histogram<u64>,
    /// Requests answered in the measured time.
    pub completed: u64,
    /// Requests that failed or had no answer when the generator stopped waiting; their latencies
    /// count as the time that was waited.
    pub failed: u64,
    /// The first gaps of the intended schedule, in ns.
    pub gaps_ns: Vec<f64>,
    samples: Vec<Sample>,
    /// Every so many-th latency is kept.
    stride: u64,
    seen: u64,
}

/// A latency and when it began.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Sample {
    /// Since the measured time began.
    pub at_ns: u64,
    /// From then to the answer.
    pub latency_ns: u64,
}

impl Default for Record {
    fn default() -> Self {
        Self {
            latency_ns: latencies(),
            lateness_ns: latencies(),
            completed: 0,
            failed: 0,
            gaps_ns: Vec::new(),
            samples: Vec::new(),
            stride: 1,
            seen: 0,
        }
    }
}

impl Record {
    /// A request that was meant to be sent `at` after the measured time began has ended.
    pub(super) fn ended(&mut self, at: Duration, latency: Duration) {
        let latency_ns = nanos(latency).max(1);
        self.latency_ns.saturating_record(latency_ns);
        if self.seen.is_multiple_of(self.stride) {
            self.samples.push(Sample { at_ns: nanos(at), latency_ns });
            if self.samples.len() == SAMPLES_MAX {
                let mut place = 0;
                self.samples.retain(|_| {
                    place += 1;
                    place % 2 == 1
                });
                self.stride *= 2;
            }
        }
        self.seen += 1;
    }

    /// An arrival, how long after the one before it, and how late it was handed over.
    pub(super) fn arrived(&mut self, gap: Duration, lateness: Duration) {
        if self.gaps_ns.len() < GAPS_MAX {
            self.gaps_ns.push(nanos(gap) as f64);
        }
        self.lateness_ns.saturating_record(nanos(lateness).max(1));
    }

    /// Takes what another generator has seen in the same time into this one.
    pub fn merge(&mut self, other: Self) {
        // Both have the same bounds.
        self.latency_ns.add(&other.latency_ns).expect("equal bounds");
        self.lateness_ns.add(&other.lateness_ns).expect("equal bounds");
        self.completed += other.completed;
        self.failed += other.failed;
        // Of the schedules one after the other each gap is still of a Poisson process with the same
        // mean; merged by time they would be one of the double rate, and just as good.
        self.gaps_ns.extend(other.gaps_ns);
        self.samples.extend(other.samples);
    }

    /// Latencies one by one, in the order in which they began.
    pub fn samples(&self) -> Vec<Sample> {
        let mut samples = self.samples.clone();
        samples.sort_by_key(|sample| sample.at_ns);
        samples
    }

    /// A quantile of the latency, in µs.
    pub fn quantile_us(&self, quantile: f64) -> f64 {
        self.latency_ns.value_at_quantile(quantile) as f64 / 1000.0
    }

    /// A quantile of the lateness, in µs.
    pub fn lateness_us(&self, quantile: f64) -> f64 {
        self.lateness_ns.value_at_quantile(quantile) as f64 / 1000.0
    }
}

pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The part of a run that is measured.
#[derive(Debug, Clone, Copy)]
pub(super) struct Measured {
    pub(super) from: Time,
    pub(super) to: Time,
}

impl Measured {
    pub(super) fn contains(&self, time: Time) -> bool {
        self.from <= time && time < self.to
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_two_come_from_both_and_not_from_their_quantiles() {
        let (mut fast, mut slow) = (Record::default(), Record::default());
        for _ in 0..990 {
            fast.ended(Duration::ZERO, Duration::from_micros(10));
        }
        for _ in 0..10 {
            slow.ended(Duration::ZERO, Duration::from_millis(10));
        }
        fast.merge(slow);
        assert!(fast.quantile_us(0.99) < 10.1, "{}", fast.quantile_us(0.99));
        assert!(fast.quantile_us(0.995) > 9_900.0);
        assert_eq!(fast.samples().len(), 1000);
    }

    #[test]
    fn kept_samples_are_bounded_and_the_histogram_is_whole() {
        let mut record = Record::default();
        for at in 0..3 * SAMPLES_MAX as u64 {
            record.ended(Duration::from_nanos(at), Duration::from_nanos(at + 1));
        }
        assert!(record.samples.len() < SAMPLES_MAX);
        assert_eq!(record.latency_ns.len(), 3 * SAMPLES_MAX as u64);
        let samples = record.samples();
        assert!(samples.iter().all(|it| it.at_ns.is_multiple_of(record.stride)));
    }
}
