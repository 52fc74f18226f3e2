//! Whether a series is stationary (augmented Dickey–Fuller test, with a constant).
//!
//! As `statsmodels.tsa.stattools.adfuller(x, regression="c", autolag="AIC")`: the change of the
//! series is regressed on its last value, a constant, and as many earlier changes as Akaike's
//! criterion says; the null hypothesis is that it has a unit root, which means that it wanders.

use serde::Serialize;
use statrs::distribution::{ContinuousCDF as _, Normal};

/// What the test says.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct DickeyFuller {
    /// The t statistic of the last value's coefficient; very negative if the series is stationary.
    pub statistic: f64,
    /// How likely a series that wanders shows such a statistic (`MacKinnon` 1994).
    pub p: f64,
    /// How many earlier changes were taken into account.
    pub lags: usize,
    /// The 5 % critical value for this many observations (`MacKinnon` 2010).
    pub critical_5_percent: f64,
    /// Whether the series is stationary, at the level of 5 %.
    pub passed: bool,
}

/// None for a series that is too short to be tested, or does not change at all.
pub fn dickey_fuller(series: &[f64]) -> Option<DickeyFuller> {
    let changes: Vec<_> = series.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let lags_max = lags_max(series.len())?;
    let largest = Regression::new(series, &changes, lags_max);
    let by_criterion = |lags: &usize| largest.fit(*lags).map(|fit| fit.akaike);
    let lags = (0..=lags_max)
        .filter(|lags| by_criterion(lags).is_some())
        .min_by(|a, b| by_criterion(a).partial_cmp(&by_criterion(b)).expect("none is NaN"))?;
    // With fewer lags more observations can be used.
    let best = Regression::new(series, &changes, lags);
    let statistic = best.fit(lags)?.t_of_level;
    let p = mackinnon_p(statistic);
    let critical_5_percent = mackinnon_critical_5_percent(best.count as f64);
    Some(DickeyFuller {
        statistic,
        p,
        lags,
        critical_5_percent,
        passed: statistic < critical_5_percent,
    })
}

/// Schwert's rule.
fn lags_max(count: usize) -> Option<usize> {
    #[expect(clippy::cast_sign_loss, reason = "a root of a count is not negative")]
    let rule = (12.0 * (count as f64 / 100.0).powf(0.25)).ceil() as usize;
    Some(rule.min((count / 2).checked_sub(2)?))
}

/// The normal equations of the regression with the largest number of lags. Those with fewer lags are
/// leading parts of them, so all of them need one pass over the series.
struct Regression {
    count: usize,
    /// Of the columns constant, level, change 1 … change `lags`: the products of each two.
    products: Vec<Vec<f64>>,
    /// Of each column with the change that is explained.
    explained: Vec<f64>,
    /// The sum of the squares of what is explained.
    squares: f64,
}

struct Fit {
    t_of_level: f64,
    akaike: f64,
}

impl Regression {
    fn new(series: &[f64], changes: &[f64], lags: usize) -> Self {
        let count = changes.len() - lags;
        // The level is taken from its mean: that leaves its coefficient as it is, and the sums of
        // products small.
        let mean = series.iter().sum::<f64>() / series.len() as f64;
        let columns = lags + 2;
        let mut products = vec![vec![0.0; columns]; columns];
        let mut explained = vec![0.0; columns];
        let mut squares = 0.0;
        let mut row = vec![1.0; columns];
        for at in lags..changes.len() {
            row[1] = series[at] - mean;
            for lag in 1..=lags {
                row[lag + 1] = changes[at - lag];
            }
            let change = changes[at];
            squares += change * change;
            for (first, value) in row.iter().enumerate() {
                explained[first] += value * change;
                for (sum, other) in products[first].iter_mut().zip(&row[..=first]) {
                    *sum += value * other;
                }
            }
        }
        Self { count, products, explained, squares }
    }

    /// Of the first `lags` lags. None if the columns depend on each other.
    fn fit(&self, lags: usize) -> Option<Fit> {
        let columns = lags + 2;
        let factor = cholesky(&self.products, columns)?;
        let halfway = forward(&factor, &self.explained[..columns]);
        let coefficients = backward(&factor, &halfway);
        let residual = self.squares - halfway.iter().map(|value| value * value).sum::<f64>();
        let residual = residual.max(0.0);
        let count = self.count as f64;
        let freedom = count - columns as f64;
        if freedom < 1.0 || residual <= 1e-12 * self.squares {
            return None;
        }
        let mut unit = vec![0.0; columns];
        unit[1] = 1.0;
        // The inverse's diagonal element is the square of the length of the solved unit vector.
        let variance: f64 = forward(&factor, &unit).iter().map(|value| value * value).sum();
        let deviation = (residual / freedom * variance).sqrt();
        let likelihood =
            -count / 2.0 * ((2.0 * std::f64::consts::PI * residual / count).ln() + 1.0);
        Some(Fit {
            t_of_level: coefficients[1] / deviation,
            akaike: 2.0 * columns as f64 - 2.0 * likelihood,
        })
    }
}

/// The lower triangle whose product with its transpose is the leading part of `matrix`.
fn cholesky(matrix: &[Vec<f64>], size: usize) -> Option<Vec<Vec<f64>>> {
    let mut factor: Vec<Vec<f64>> = Vec::with_capacity(size);
    for (row, products) in matrix.iter().take(size).enumerate() {
        let mut values: Vec<f64> = Vec::with_capacity(row + 1);
        for (other, product) in factor.iter().zip(products) {
            let known: f64 = values.iter().zip(other).map(|(a, b)| a * b).sum();
            values.push((product - known) / other[values.len()]);
        }
        let known: f64 = values.iter().map(|value| value * value).sum();
        let left = products[row] - known;
        if left <= 1e-12 * products[row] {
            return None;
        }
        values.push(left.sqrt());
        factor.push(values);
    }
    Some(factor)
}

fn forward(factor: &[Vec<f64>], right: &[f64]) -> Vec<f64> {
    let mut solved: Vec<f64> = Vec::with_capacity(right.len());
    for (row, value) in factor.iter().zip(right) {
        let known: f64 = row.iter().zip(&solved).map(|(a, b)| a * b).sum();
        solved.push((value - known) / row[solved.len()]);
    }
    solved
}

fn backward(factor: &[Vec<f64>], right: &[f64]) -> Vec<f64> {
    let mut solved = right.to_vec();
    for row in (0..solved.len()).rev() {
        let known: f64 =
            (row + 1..solved.len()).map(|below| factor[below][row] * solved[below]).sum();
        solved[row] = (solved[row] - known) / factor[row][row];
    }
    solved
}

/// `MacKinnon` (1994), table 3, for a constant and one series.
fn mackinnon_p(statistic: f64) -> f64 {
    const LOWEST: f64 = -18.83;
    const HIGHEST: f64 = 2.74;
    const BREAK: f64 = -1.61;
    const SMALL: [f64; 3] = [2.1659, 1.4412, 0.038_269];
    const LARGE: [f64; 4] = [1.7339, 0.932_02, -0.127_45, -0.010_368];
    if statistic > HIGHEST {
        return 1.0;
    }
    if statistic < LOWEST {
        return 0.0;
    }
    let coefficients: &[f64] = if statistic <= BREAK { &SMALL } else { &LARGE };
    let z = coefficients.iter().rev().fold(0.0, |sum, coefficient| sum * statistic + coefficient);
    Normal::standard().cdf(z)
}

/// `MacKinnon` (2010), table 2, for a constant and one series.
fn mackinnon_critical_5_percent(count: f64) -> f64 {
    const COEFFICIENTS: [f64; 4] = [-2.861_54, -2.8903, -4.234, -40.04];
    COEFFICIENTS.iter().rev().fold(0.0, |sum, coefficient| sum / count + coefficient)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::{reference, sample};

    #[test]
    fn agrees_with_statsmodels() {
        let cases = reference("dickey_fuller");
        assert_eq!(cases.len(), 5);
        for case in cases {
            let result = dickey_fuller(&sample(&case)).expect("long enough");
            let number = |name: &str| case[name].as_f64().expect("a number");
            assert_eq!(Some(result.lags as u64), case["lags"].as_u64(), "{}", case["name"]);
            let close = |a: f64, b: f64| (a - b).abs() < 1e-6 * b.abs().max(1e-6);
            assert!(close(result.statistic, number("statistic")), "{result:?} {}", case["name"]);
            assert!(close(result.p, number("p")), "{result:?} {}", number("p"));
            let critical = case["critical"]["5%"].as_f64().expect("a number");
            assert!(close(result.critical_5_percent, critical), "{result:?}");
            assert_eq!(result.passed, number("statistic") < critical);
        }
    }

    #[test]
    fn what_is_no_series_has_no_result() {
        assert_eq!(dickey_fuller(&[]), None);
        assert_eq!(dickey_fuller(&[1.0, 2.0, 3.0]), None);
        assert_eq!(dickey_fuller(&[1.0; 100]), None);
    }
}
