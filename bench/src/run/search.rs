//! The highest throughput at which p99 keeps a bound: bisection, repeated, with an interval.

use std::time::Duration;

use serde::Serialize;

use super::{RunError, Spec, measure::once};
use crate::{
    Cluster,
    generator::Pace,
    stats::{Spread, spread},
};

/// What was tried.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Point {
    /// Arrivals a second.
    pub offered_per_s: f64,
    /// Answers a second.
    pub achieved_per_s: f64,
    /// In µs.
    pub p50_us: f64,
    /// In µs.
    pub p99_us: f64,
    /// Whether the bound was kept and what was offered was reached.
    pub kept: bool,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Found {
    /// The bound on p99, in µs.
    pub slo_us: f64,
    /// The highest throughput that kept it, over the repetitions; none if the bound was never kept.
    pub max_per_s: Option<Spread>,
    /// Everything that was tried, by offered throughput.
    pub points: Vec<Point>,
}

/// How close the bounds of the bisection come to each other, as a share.
const PRECISION: f64 = 0.04;

/// How often the search is repeated.
const REPETITIONS: usize = 3;

/// Searches from what a closed loop with many requests reaches.
pub async fn find_max(cluster: &Cluster, spec: &Spec, slo: Duration) -> Result<Found, RunError> {
    const OUTSTANDING: usize = 256;
    let closed = Pace::Closed { outstanding: OUTSTANDING.max(spec.clients) };
    let ceiling = once(cluster, spec, closed, spec.duration).await?.achieved_per_s * 1.25;
    let slo_us = slo.as_secs_f64() * 1e6;
    let (mut points, mut highest) = (Vec::new(), Vec::new());
    for repetition in 0..REPETITIONS as u64 {
        let spec = Spec { seed: spec.seed + 1000 * repetition, ..spec.clone() };
        let (mut low, mut high) = (0.0, ceiling.max(100.0));
        // The first half is found coarsely, from what is surely kept.
        while high - low > PRECISION * high && high > 50.0 {
            let rate = f64::midpoint(low, high);
            let point = try_one(cluster, &spec, rate, slo_us).await?;
            if point.kept {
                low = rate;
            } else {
                high = rate;
            }
            points.push(point);
        }
        if low > 0.0 {
            highest.push(low);
        }
    }
    points.sort_by(|a: &Point, b| a.offered_per_s.total_cmp(&b.offered_per_s));
    Ok(Found { slo_us, max_per_s: spread(&highest), points })
}

async fn try_one(
    cluster: &Cluster,
    spec: &Spec,
    rate: f64,
    slo_us: f64,
) -> Result<Point, RunError> {
    let pace = Pace::Open { per_second: rate };
    let measured = once(cluster, spec, pace, spec.duration).await?;
    let p99_us = measured.record.quantile_us(0.99);
    let reached = measured.tests.throughput_reached == Some(true);
    Ok(Point {
        offered_per_s: rate,
        achieved_per_s: measured.achieved_per_s,
        p50_us: measured.record.quantile_us(0.5),
        p99_us,
        kept: p99_us <= slo_us && reached && measured.record.failed == 0,
    })
}
