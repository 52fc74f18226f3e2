//! Whether a sample is exponential (Anderson and Darling, 1954; the mean is estimated from it).

use serde::Serialize;

/// What the test says.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct AndersonDarling {
    /// A²; large if the sample is not exponential.
    pub statistic: f64,
    /// A sample that is exponential exceeds this in one of a hundred cases.
    pub critical_1_percent: f64,
    /// Whether it looks exponential.
    pub passed: bool,
}

/// Stephens' 1 % point for an exponential distribution whose mean is estimated, as `SciPy` has it.
const CRITICAL_1_PERCENT: f64 = 1.959;

/// Tests the gaps between arrivals, at the level of 1 %: what a generator draws anew for each run
/// would otherwise be refused in one run of twenty.
///
/// Fewer than two gaps, or gaps that are all zero, are not a sample that can pass.
pub fn anderson_darling(gaps: &[f64]) -> AndersonDarling {
    let count = gaps.len() as f64;
    let critical_1_percent = CRITICAL_1_PERCENT / (1.0 + 0.6 / count.max(1.0));
    let mean = gaps.iter().sum::<f64>() / count;
    if gaps.len() < 2 || mean <= 0.0 {
        return AndersonDarling { statistic: f64::INFINITY, critical_1_percent, passed: false };
    }
    let mut scaled: Vec<_> = gaps.iter().map(|gap| gap / mean).collect();
    scaled.sort_by(f64::total_cmp);
    let sum: f64 = (scaled.iter().zip(scaled.iter().rev()).enumerate())
        .map(|(position, (low, high))| {
            // log F(low) + log(1 − F(high)); a gap of 0, which a clock may show, is held off the
            // pole by its smallest positive neighbour.
            let log_cdf = (-(-low.max(f64::MIN_POSITIVE)).exp_m1()).ln();
            (2.0 * position as f64 + 1.0) / count * (log_cdf - high)
        })
        .sum();
    let statistic = -count - sum;
    AndersonDarling { statistic, critical_1_percent, passed: statistic < critical_1_percent }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::{reference, sample};

    #[test]
    fn agrees_with_scipy() {
        let cases = reference("anderson_darling");
        assert_eq!(cases.len(), 4);
        for case in cases {
            let result = anderson_darling(&sample(&case));
            let expected = case["statistic"].as_f64().expect("a number");
            assert!((result.statistic - expected).abs() < 1e-9 * expected.max(1.0), "{result:?}");
            let critical = case["critical"]["1.0"].as_f64().expect("a number");
            // SciPy rounds to three decimals.
            assert!((result.critical_1_percent - critical).abs() < 0.000_51, "{result:?}");
            assert_eq!(result.passed, expected < critical, "{}", case["name"]);
        }
    }

    #[test]
    fn what_is_no_sample_does_not_pass() {
        assert!(!anderson_darling(&[]).passed);
        assert!(!anderson_darling(&[1.0]).passed);
        assert!(!anderson_darling(&[0.0; 100]).passed);
        assert!(!anderson_darling(&[1.0; 100]).passed);
    }
}
