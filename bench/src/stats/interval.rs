//! Between which order statistics of a sample a quantile lies.

use serde::Serialize;
use statrs::distribution::{Binomial, DiscreteCDF as _};

/// A confidence interval; in JSON, a list of its two ends.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(into = "[f64; 2]")]
pub struct Interval {
    /// From here.
    pub low: f64,
    /// To here.
    pub high: f64,
}

impl From<Interval> for [f64; 2] {
    fn from(interval: Interval) -> Self {
        [interval.low, interval.high]
    }
}

impl Interval {
    /// Whether a value is inside.
    pub fn contains(&self, value: f64) -> bool {
        (self.low..=self.high).contains(&value)
    }

    /// How wide it is, as a share of `value`.
    pub fn relative_width(&self, value: f64) -> f64 {
        (self.high - self.low) / value
    }
}

/// The 95 % confidence interval of a quantile of the distribution that an independent sample is
/// from, whatever that distribution is. None if the sample is too small to have one.
pub fn quantile_interval(sorted: &[f64], quantile: f64) -> Option<Interval> {
    let (low, high) = ranks(sorted.len(), quantile)?;
    Some(Interval { low: sorted[low - 1], high: sorted[high - 1] })
}

/// The ranks, from 1, of the order statistics between which the quantile lies with a probability of
/// at least 95 %: how many samples are below it is binomial.
pub fn ranks(count: usize, quantile: f64) -> Option<(usize, usize)> {
    const TAIL: f64 = 0.025;
    let below = Binomial::new(quantile, count as u64).ok()?;
    let low = below.inverse_cdf(TAIL) as usize;
    let high = below.inverse_cdf(1.0 - TAIL) as usize + 1;
    (low >= 1 && high <= count).then_some((low, high))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::reference;

    #[test]
    fn agrees_with_scipy() {
        let cases = reference("order_statistics");
        assert_eq!(cases.len(), 12);
        for case in cases {
            let count = case["count"].as_u64().expect("a count") as usize;
            let quantile = case["quantile"].as_f64().expect("a number");
            let rank = |name: &str| case[name].as_u64().expect("a rank") as usize;
            let (low, high) = (rank("low"), rank("high"));
            let expected = (high <= count).then_some((low, high));
            assert_eq!(ranks(count, quantile), expected, "{case}");
        }
    }

    #[test]
    fn the_interval_holds_the_quantile_as_often_as_it_says() {
        let mut rng = fastrand::Rng::with_seed(11);
        let truth = -(0.01f64).ln();
        let covered = (0..400).filter(|_| {
            let mut sample: Vec<_> = (0..2000).map(|_| -(1.0 - rng.f64()).ln()).collect();
            sample.sort_by(f64::total_cmp);
            quantile_interval(&sample, 0.99).expect("enough").contains(truth)
        });
        let covered = covered.count();
        assert!((370..=396).contains(&covered), "{covered} of 400");
    }

    #[test]
    fn too_few_samples_have_no_interval() {
        assert_eq!(quantile_interval(&[], 0.99), None);
        assert_eq!(quantile_interval(&[1.0; 100], 0.999), None);
    }
}
