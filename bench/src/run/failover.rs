//! Throughput and latency while the leader is killed (Figure 12).

use std::{path::Path, time::Duration};

use serde::Serialize;

use super::{
    Outcome, RunError, Spec,
    measure::{Generators, Span, judge, once},
    prepare,
};
use crate::{
    Cluster, Setup,
    generator::{Pace, Record, Sample},
    machine::Machine,
};

/// One slice of the run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Slice {
    /// Since the measured time began, in seconds.
    pub at_s: f64,
    /// Requests of this slice that were answered, a second.
    pub answered_per_s: f64,
    /// In µs, of the requests meant to be sent in this slice.
    pub p50_us: f64,
    /// In µs.
    pub p99_us: f64,
}

/// What the run showed beside its latencies. What a request cost is of the time before.
#[derive(Debug, Clone, Serialize)]
pub struct Failover {
    /// When the leader was killed, in seconds.
    pub killed_at_s: f64,
    /// Answered a second before it, in the mean.
    pub before_per_s: f64,
    /// In the last third.
    pub after_per_s: f64,
    /// The longest time without an answer, in ms.
    pub silent_ms: f64,
    /// The whole run in slices.
    pub slices: Vec<Slice>,
}

impl Failover {
    pub(super) fn describe(&self) -> String {
        format!(
            "the leader was killed after {:.1} s: {:.0} answered a second before, {:.0} in the last \
             third; the longest silence was {:.0} ms",
            self.killed_at_s, self.before_per_s, self.after_per_s, self.silent_ms
        )
    }
}

/// The paper's limit on requests in the system.
const ADMISSION_LIMIT: usize = 1000;

/// Slices of a run.
const SLICES: usize = 100;

/// The share of what a closed loop reaches that is offered if nobody says a rate.
const OFFERED: f64 = 0.7;

/// Kills the leader after a third of the time. Without a rate it is a share of what the replicas do
/// at most, measured first.
pub async fn failover(
    binary: &Path,
    spec: &Spec,
    per_second: Option<f64>,
) -> Result<Outcome, RunError> {
    let machine = Machine::here();
    let setup = Setup { admission_limit: ADMISSION_LIMIT, ..spec.setup.clone() };
    let mut cluster = Cluster::start(binary, &setup).await?;
    prepare(&cluster, spec.workload).await?;
    let per_second = match per_second {
        Some(rate) => rate,
        None => OFFERED * most(&cluster, spec).await?,
    };
    let pace = Pace::Open { per_second };
    // What is refused is tried again until then, and counts as failed.
    let timeout = Duration::from_secs(1);
    let generators = Generators::start(spec, pace, spec.duration, timeout, &cluster.route(), None);
    let killed_at = spec.duration / 3;
    let mut span = Span::default();
    if generators.reach(1).await {
        span.begin(&cluster).await;
        tokio::time::sleep(killed_at).await;
        span.end(&cluster, &generators).await;
        cluster.kill_leader().await?;
    }
    let (record, costs, dropped) = generators.join().await?;
    let failover = summary(&record, spec.duration, killed_at, timeout);
    let measurement = judge(spec, pace, spec.duration, record, (&costs, dropped), &span);
    let outcome = Outcome::new(spec, pace, &measurement, machine);
    Ok(Outcome { failover: Some(failover), ..outcome })
}

/// What the replicas do in a second, when there is always something to do.
async fn most(cluster: &Cluster, spec: &Spec) -> Result<f64, RunError> {
    const OUTSTANDING: usize = 256;
    let pace = Pace::Closed { outstanding: OUTSTANDING.max(spec.clients) };
    let measured = once(cluster, spec, pace, Duration::from_secs(1)).await?;
    Ok(measured.achieved_per_s.max(1.0))
}

fn summary(
    record: &Record,
    duration: Duration,
    killed_at: Duration,
    timeout: Duration,
) -> Failover {
    let samples = record.samples();
    let kept = samples.len().max(1) as f64 / record.latency_ns.len().max(1) as f64;
    let timeout_ns = timeout.as_nanos() as u64;
    let mut answers: Vec<_> = samples
        .iter()
        .filter(|sample| sample.latency_ns < timeout_ns)
        .map(|sample| sample.at_ns + sample.latency_ns)
        .collect();
    answers.sort_unstable();
    let silent_ns = answers.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0);
    let rate = |from: Duration, to: Duration| {
        let range = from.as_nanos() as u64..to.as_nanos() as u64;
        let count = answers.iter().filter(|at| range.contains(at)).count();
        count as f64 / kept / to.saturating_sub(from).as_secs_f64()
    };
    let width = duration / SLICES as u32;
    let slices = (0..SLICES as u32).map(|slice| {
        let (from, to) = (width * slice, width * (slice + 1));
        slice_of(&samples, from, to, rate(from, to))
    });
    Failover {
        killed_at_s: killed_at.as_secs_f64(),
        before_per_s: rate(Duration::ZERO, killed_at),
        after_per_s: rate(duration * 2 / 3, duration),
        silent_ms: silent_ns as f64 / 1e6,
        slices: slices.collect(),
    }
}

fn slice_of(samples: &[Sample], from: Duration, to: Duration, answered_per_s: f64) -> Slice {
    let range = from.as_nanos() as u64..to.as_nanos() as u64;
    let mut latencies: Vec<_> = samples
        .iter()
        .filter(|sample| range.contains(&sample.at_ns))
        .map(|sample| sample.latency_ns as f64 / 1000.0)
        .collect();
    latencies.sort_by(f64::total_cmp);
    let at = |quantile: f64| {
        #[expect(clippy::cast_sign_loss, reason = "a share of a count")]
        let place = (latencies.len() as f64 * quantile) as usize;
        latencies.get(place.min(latencies.len().saturating_sub(1))).copied().unwrap_or(0.0)
    };
    Slice { at_s: from.as_secs_f64(), answered_per_s, p50_us: at(0.5), p99_us: at(0.99) }
}
