//! The statistics that decide whether a figure may be printed (after Lancet, ATC 2019).
//!
//! All of it is checked against what `SciPy` and statsmodels say of stored samples
//! (`tests/vectors/`).

mod anderson_darling;
mod dickey_fuller;
mod interval;
mod paired;
mod spearman;
mod verdict;

pub use anderson_darling::{AndersonDarling, anderson_darling};
pub use dickey_fuller::{DickeyFuller, dickey_fuller};
pub use interval::{Interval, quantile_interval, ranks};
pub use paired::{Spread, geometric_mean, median, spread};
pub use spearman::{Independence, independence, spearman};
pub use verdict::{Asked, Tests, examine};

#[cfg(test)]
pub(crate) fn reference(test: &str) -> Vec<serde_json::Value> {
    let text = include_str!("../../tests/vectors/reference.json");
    let all: serde_json::Value = serde_json::from_str(text).expect("written by generate.py");
    all[test].as_array().expect("a list for each test").clone()
}

#[cfg(test)]
pub(crate) fn sample(case: &serde_json::Value) -> Vec<f64> {
    let sample = case["sample"].as_array().expect("each case has a sample");
    sample.iter().map(|value| value.as_f64().expect("a number")).collect()
}
