//! Whether a sample's values are independent of those before them: Spearman's rank correlation of
//! the sample with itself at many lags, with Holm's correction for asking so often.

use serde::Serialize;
use statrs::function::beta::beta_reg;

/// The lags that are tested.
const LAGS_MAX: usize = 1000;

/// How many samples are tested at most: more would find dependences too small to matter.
const SAMPLES_MAX: usize = 100_000;

/// A sample shorter than this says nothing about the 99th percentile.
const SAMPLES_MIN: usize = 1000;

/// How likely independent samples are refused.
const LEVEL: f64 = 0.05;

/// What the test says.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Independence {
    /// Every so many-th sample was kept to make it independent.
    pub thinned_by: usize,
    /// How many are left.
    pub samples: usize,
    /// The largest correlation at any lag, up to the first that is significant.
    pub correlation_max: f64,
    /// The smallest of Holm's adjusted p values.
    pub p_min: f64,
    /// Whether what is left is independent.
    pub passed: bool,
}

/// Thins a sample by 1, 2, 4, … until it is independent, or too little is left, and returns what is
/// left with it.
pub fn independence(sample: &[f64]) -> (Vec<f64>, Independence) {
    let mut thinned_by = 1;
    loop {
        let left: Vec<_> = sample.iter().copied().step_by(thinned_by).collect();
        let result = test(&left, thinned_by);
        if result.passed || left.len() / 2 < SAMPLES_MIN {
            return (left, result);
        }
        thinned_by *= 2;
    }
}

fn test(sample: &[f64], thinned_by: usize) -> Independence {
    let tested = &sample[..sample.len().min(SAMPLES_MAX)];
    let lags = LAGS_MAX.min(tested.len() / 4);
    let (mut p_min, mut correlation_max) = (1.0f64, 0.0f64);
    for (rho, p) in Ranks::of(tested).correlations(lags) {
        // Holm's smallest adjusted p is the smallest p times the number of tests: if any is refused,
        // the smallest one is, and nothing that follows can change that.
        p_min = p_min.min(p * lags as f64);
        correlation_max = correlation_max.max(rho.abs());
        if p_min <= LEVEL {
            break;
        }
    }
    Independence {
        thinned_by,
        samples: sample.len(),
        correlation_max,
        p_min,
        passed: lags > 0 && p_min > LEVEL,
    }
}

/// Spearman's rank correlation of a sample with itself at the lags 1, 2, …, each with its two-sided
/// p value, as `scipy.stats.spearmanr` of the two parts.
pub fn spearman(sample: &[f64], lags: usize) -> Vec<(f64, f64)> {
    Ranks::of(sample).correlations(lags).collect()
}

/// The order of a sample, from which the ranks in each of its parts follow without sorting again.
struct Ranks {
    /// Positions in ascending order of their values.
    order: Vec<u32>,
    /// Whether the value at this place in the order equals the one before it.
    equals_previous: Vec<bool>,
}

impl Ranks {
    fn of(sample: &[f64]) -> Self {
        let mut order: Vec<u32> = (0..sample.len() as u32).collect();
        order.sort_by(|a, b| sample[*a as usize].total_cmp(&sample[*b as usize]));
        let value = |at: usize| sample[order[at] as usize];
        let equals_previous = (0..order.len())
            .map(|at| at > 0 && value(at).total_cmp(&value(at - 1)).is_eq())
            .collect();
        Self { order, equals_previous }
    }

    fn correlations(&self, lags: usize) -> impl Iterator<Item = (f64, f64)> {
        let count = self.order.len();
        let mut first = vec![0.0; count];
        let mut second = vec![0.0; count];
        (1..=lags.min(count.saturating_sub(2))).map(move |lag| {
            self.ranks(0, count - lag, &mut first);
            self.ranks(lag, count, &mut second);
            let rho = correlation(&first[..count - lag], &second[lag..]);
            (rho, p_value(rho, count - lag))
        })
    }

    /// The ranks among the positions `from` to `to`, equal values sharing the mean of theirs.
    fn ranks(&self, from: usize, to: usize, ranks: &mut [f64]) {
        let mut rank = 0usize;
        let mut tied: Vec<u32> = Vec::new();
        let mut settle = |tied: &mut Vec<u32>, rank: usize| {
            let mean = rank as f64 - (tied.len() as f64 - 1.0) / 2.0;
            for position in tied.drain(..) {
                ranks[position as usize] = mean;
            }
        };
        for (position, equals_previous) in self.order.iter().zip(&self.equals_previous) {
            if !equals_previous {
                settle(&mut tied, rank);
            }
            if (from..to).contains(&(*position as usize)) {
                rank += 1;
                tied.push(*position);
            }
        }
        settle(&mut tied, rank);
    }
}

/// Pearson's; 0 where nothing varies.
fn correlation(first: &[f64], second: &[f64]) -> f64 {
    let count = first.len() as f64;
    // Both are ranks of as many values: they have the same mean.
    let mean = f64::midpoint(count, 1.0);
    let (mut both, mut one, mut other) = (0.0, 0.0, 0.0);
    for (a, b) in first.iter().zip(second) {
        let (a, b) = (a - mean, b - mean);
        both += a * b;
        one += a * a;
        other += b * b;
    }
    if one == 0.0 || other == 0.0 { 0.0 } else { both / (one * other).sqrt() }
}

/// Two-sided, by Student's t with `count` − 2 degrees of freedom.
fn p_value(rho: f64, count: usize) -> f64 {
    let freedom = count as f64 - 2.0;
    // P(|T| > t) is the regularised incomplete beta function at freedom / (freedom + t²), and with
    // t² = rho² · freedom / (1 − rho²) that is 1 − rho².
    let at = (1.0 - rho * rho).clamp(0.0, 1.0);
    beta_reg(freedom / 2.0, 0.5, at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::{reference, sample};

    #[test]
    fn agrees_with_scipy_and_statsmodels() {
        let cases = reference("spearman");
        assert_eq!(cases.len(), 3);
        for case in cases {
            let list = |name: &str| -> Vec<f64> {
                let list = case[name].as_array().expect("a list");
                list.iter().map(|value| value.as_f64().expect("a number")).collect()
            };
            let (rho, p) = (list("rho"), list("p"));
            let results = spearman(&sample(&case), rho.len());
            assert_eq!(results.len(), rho.len());
            for ((ours, our_p), (theirs, their_p)) in results.iter().zip(rho.iter().zip(&p)) {
                assert!((ours - theirs).abs() < 1e-10, "{}: {ours} {theirs}", case["name"]);
                assert!((our_p - their_p).abs() < 1e-8 * their_p.max(1e-3), "{our_p} {their_p}");
            }
            let smallest = results.iter().map(|(_, p)| *p).fold(1.0, f64::min);
            let holm = list("holm").into_iter().fold(1.0, f64::min);
            let ours = (smallest * results.len() as f64).min(1.0);
            assert!((ours - holm).abs() < 1e-6 * holm.max(1e-3), "{ours} {holm}");
            assert_eq!(case["rejects"].as_bool(), Some(ours <= LEVEL));
        }
    }

    #[test]
    fn a_dependent_sample_is_thinned_until_it_is_not() {
        let mut rng = fastrand::Rng::with_seed(7);
        let mut last = 0.0;
        let sample: Vec<_> = (0..40_000)
            .map(|_| {
                last = 0.7 * last + rng.f64();
                last
            })
            .collect();
        let (left, result) = independence(&sample);
        assert!(result.passed, "{result:?}");
        assert!(result.thinned_by >= 4, "{result:?}");
        assert_eq!(left.len(), 40_000usize.div_ceil(result.thinned_by));
    }

    #[test]
    fn a_sample_that_only_grows_never_passes() {
        let sample: Vec<_> = (0..5000).map(f64::from).collect();
        assert!(!independence(&sample).1.passed);
        assert!(!independence(&[]).1.passed);
    }
}
