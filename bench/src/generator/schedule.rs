//! When requests are meant to be sent.

use r2p2::Time;

/// A Poisson process: the times between arrivals are exponential, and nothing that happens to the
/// requests changes them. The schedule is never reset (evaluation.md's first rule for an open loop):
/// a generator that is late sends what is due at once, and the latency counts from the time meant.
#[derive(Debug, Clone)]
pub struct Poisson {
    rng: fastrand::Rng,
    mean_ns: f64,
    /// Fractions of a nanosecond are kept, or their rounding would change a high rate.
    next_ns: f64,
}

impl Poisson {
    /// From `start`, `per_second` arrivals in the mean.
    ///
    /// # Panics
    ///
    /// If the rate is not a positive number.
    pub fn new(start: Time, per_second: f64, seed: u64) -> Self {
        assert!(per_second.is_finite() && per_second > 0.0, "a rate is a positive number");
        let mut schedule = Self {
            rng: fastrand::Rng::with_seed(seed),
            mean_ns: 1e9 / per_second,
            next_ns: start.as_nanos() as f64,
        };
        schedule.advance();
        schedule
    }

    /// The next arrival.
    pub fn next(&self) -> Time {
        #[expect(clippy::cast_sign_loss, reason = "gaps are not negative")]
        Time::from_nanos(self.next_ns as u64)
    }

    /// Goes on to the one after it.
    pub fn advance(&mut self) {
        self.next_ns += -(1.0 - self.rng.f64()).ln() * self.mean_ns;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::anderson_darling;

    #[test]
    fn the_gaps_are_exponential_and_have_the_mean() {
        let mut schedule = Poisson::new(Time::ZERO, 50_000.0, 3);
        let mut previous = Time::ZERO;
        let gaps: Vec<_> = (0..50_000)
            .map(|_| {
                let next = schedule.next();
                schedule.advance();
                let gap = next.since(previous).as_nanos() as f64;
                previous = next;
                gap
            })
            .collect();
        assert!(anderson_darling(&gaps).passed);
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        assert!((mean - 20_000.0).abs() < 400.0, "{mean}");
    }
}
