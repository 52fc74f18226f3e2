//! All tests of one run together.

use serde::Serialize;

use super::{
    AndersonDarling, DickeyFuller, Independence, Interval, anderson_darling, dickey_fuller,
    independence, quantile_interval,
};

/// How many values the test of stationarity looks at: spread over the whole run.
const SERIES_MAX: usize = 20_000;

/// The tests that a run's figures have to pass, or are printed with.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Tests {
    /// Of the intended schedule; none in a closed loop, which has none.
    pub poisson: Option<AndersonDarling>,
    /// Of the latencies in order of time; none if there are too few to tell.
    pub stationary: Option<DickeyFuller>,
    /// Of the latencies, after thinning.
    pub independent: Independence,
    /// Whether the achieved throughput is the offered one, within the tolerance; none in a closed
    /// loop, where what is achieved is what is offered.
    pub throughput_reached: Option<bool>,
    /// The width of the 95 % confidence interval of p99, as a share of p99.
    pub p99_relative_width: Option<f64>,
    /// Whether that is as narrow as asked.
    pub p99_narrow: bool,
    /// Whether the generator had time to spare.
    pub generator_kept_up: bool,
    /// All of them.
    pub passed: bool,
    /// What failed, in words.
    pub failures: Vec<String>,
}

/// What a run is asked to reach.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    /// How far below the offered throughput the achieved one may be, as a share.
    pub tolerance: f64,
    /// How wide the interval of p99 may be, as a share of p99.
    pub p99_width: f64,
}

impl Default for Asked {
    fn default() -> Self {
        Self { tolerance: 0.02, p99_width: 0.1 }
    }
}

/// Tests a run: the gaps of its intended schedule, its latencies in order of time (µs), offered and
/// achieved requests a second, and why the generator did not keep up, if it did not.
///
/// Returns the 95 % confidence interval of p99 beside it.
pub fn examine(
    gaps: Option<&[f64]>,
    latencies_us: &[f64],
    throughput: (Option<f64>, f64),
    bottleneck: Option<&str>,
    asked: Asked,
) -> (Tests, Option<Interval>) {
    let poisson = gaps.map(anderson_darling);
    let stride = latencies_us.len().div_ceil(SERIES_MAX).max(1);
    let series: Vec<_> = latencies_us.iter().copied().step_by(stride).collect();
    let stationary = dickey_fuller(&series);
    let (mut left, independent) = independence(latencies_us);
    left.sort_by(f64::total_cmp);
    let interval = quantile_interval(&left, 0.99);
    let p99 = left.get((left.len() * 99 / 100).min(left.len().saturating_sub(1))).copied();
    let width = interval.zip(p99).map(|(interval, p99)| interval.relative_width(p99));
    let (offered, achieved) = throughput;
    let reached = offered.map(|offered| achieved >= offered * (1.0 - asked.tolerance));
    let p99_narrow = width.is_some_and(|width| width <= asked.p99_width);

    let mut failures = Vec::new();
    let mut expect = |passed: bool, failure: String| {
        if !passed {
            failures.push(failure);
        }
    };
    expect(poisson.is_none_or(|it| it.passed), "the schedule is not Poisson".to_owned());
    expect(
        reached != Some(false),
        format!("{achieved:.0} a second achieved of {:.0} offered", offered.unwrap_or_default()),
    );
    expect(
        stationary.is_some_and(|it| it.passed),
        "the latencies are not stationary: the system was not in a steady state".to_owned(),
    );
    expect(
        independent.passed,
        format!(
            "the latencies depend on those before them{}; intervals are too narrow",
            match independent.thinned_by {
                1 => String::new(),
                thinned => format!(", even if only every {thinned}th is taken"),
            }
        ),
    );
    expect(
        p99_narrow,
        width.map_or("too few samples for an interval of p99".to_owned(), |width| {
            format!("the interval of p99 is {:.0} % wide", width * 100.0)
        }),
    );
    expect(
        bottleneck.is_none(),
        format!("the generator was the bottleneck: {}", bottleneck.unwrap_or_default()),
    );
    let tests = Tests {
        poisson,
        stationary,
        independent,
        throughput_reached: reached,
        p99_relative_width: width,
        p99_narrow,
        generator_kept_up: bottleneck.is_none(),
        passed: failures.is_empty(),
        failures,
    };
    (tests, interval)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exponential(count: usize, seed: u64) -> Vec<f64> {
        let mut rng = fastrand::Rng::with_seed(seed);
        (0..count).map(|_| -100.0 * (1.0 - rng.f64()).ln()).collect()
    }

    #[test]
    fn a_good_run_passes() {
        let (gaps, latencies) = (exponential(20_000, 1), exponential(20_000, 2));
        let asked = Asked::default();
        let (tests, interval) = examine(Some(&gaps), &latencies, (Some(1e3), 995.0), None, asked);
        assert!(tests.passed, "{tests:?}");
        assert!(interval.expect("enough samples").contains(100.0 * 100f64.ln()));
    }

    #[test]
    fn each_failure_is_named() {
        let (mut gaps, mut latencies) = (exponential(20_000, 1), exponential(20_000, 2));
        gaps.fill(1.0);
        latencies.iter_mut().enumerate().for_each(|(at, it)| *it += at as f64);
        let throughput = (Some(1000.0), 900.0);
        let asked = Asked { p99_width: 1e-6, ..Asked::default() };
        let (tests, _) = examine(Some(&gaps), &latencies, throughput, Some("it slept"), asked);
        assert!(!tests.passed);
        let expected =
            ["not Poisson", "900 a second", "not stationary", "depend", "interval", "it slept"];
        assert_eq!(tests.failures.len(), expected.len(), "{:?}", tests.failures);
        for (failure, expected) in tests.failures.iter().zip(expected) {
            assert!(failure.contains(expected), "{failure}");
        }
    }
}
