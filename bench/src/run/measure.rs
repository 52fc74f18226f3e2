//! Runs the generators against a cluster, and takes what everybody costs at the same moments.

use std::{
    sync::{Arc, atomic::Ordering},
    thread::JoinHandle,
    time::Duration,
};

use indicatif::ProgressBar;

use super::{
    PerOperation, RunError, Spec,
    costs::{SwitchSpan, per_operation},
};
use crate::{
    Cluster,
    generator::{Cost, DriveError, Driven, Pace, Plan, Record, Route, Watch, drive},
    processes::Look,
    stats::{self, Interval, Tests},
    usage::Usage,
    workload::Requests,
};

pub use crate::stats::Asked;

/// What one run has measured.
#[derive(Debug)]
pub struct Measurement {
    /// Everything that the generators have seen.
    pub record: Record,
    /// How long was measured.
    pub duration: Duration,
    /// Answers a second.
    pub achieved_per_s: f64,
    /// How often requests were not admitted (P23).
    pub dropped: u64,
    /// Whether the figures may be believed.
    pub tests: Tests,
    /// The 95 % confidence interval of p99, in µs.
    pub p99_interval_us: Option<Interval>,
    /// What a request cost, by role.
    pub costs: PerOperation,
    /// The largest share of a core that a generator used.
    pub generator_share: f64,
    /// Why the generator was the bottleneck, if it was.
    pub bottleneck: Option<String>,
}

/// The generators at work.
pub(super) struct Generators {
    threads: Vec<JoinHandle<Result<Driven, DriveError>>>,
    watches: Vec<Arc<Watch>>,
    progress: ProgressBar,
}

/// How often they are looked at while they work. Each look takes time from them.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// A request may take this long before it counts as failed.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Requests of this first part are not counted.
const WARM_UP: Duration = Duration::from_millis(500);

impl Generators {
    pub(super) fn start(
        spec: &Spec,
        pace: Pace,
        duration: Duration,
        timeout: Duration,
        route: &Route,
        requests: Option<&Requests>,
    ) -> Self {
        let count = spec.generators.clamp(1, spec.clients);
        let (mut threads, mut watches) = (Vec::new(), Vec::new());
        for generator in 0..count {
            let seed = spec.seed.wrapping_mul(0x9E37_79B9).wrapping_add(generator as u64);
            let plan = Plan {
                // Several Poisson processes together are one.
                pace: match pace {
                    Pace::Open { per_second } => {
                        Pace::Open { per_second: per_second / count as f64 }
                    }
                    Pace::Closed { outstanding } => Pace::Closed {
                        // Exactly as many as were asked for, and no client without one.
                        outstanding: share(outstanding, spec.clients, count, generator),
                    },
                },
                clients: clients_of(spec.clients, count, generator),
                requests: requests
                    .cloned()
                    .unwrap_or_else(|| spec.workload.requests(spec.request_bytes, seed)),
                warm_up: WARM_UP,
                duration,
                timeout,
                seed,
            };
            let watch = Arc::new(Watch::default());
            let (route, watching) = (route.clone(), Arc::clone(&watch));
            threads.push(std::thread::spawn(move || drive(plan, &route, &watching)));
            watches.push(watch);
        }
        Self { threads, watches, progress: spec.progress.clone() }
    }

    /// Waits until all have come so far; false if one has ended before.
    pub(super) async fn reach(&self, stage: u64) -> bool {
        loop {
            if self.watches.iter().all(|watch| watch.stage.load(Ordering::Relaxed) >= stage) {
                return true;
            }
            if self.threads.iter().any(JoinHandle::is_finished) {
                return false;
            }
            self.pause().await;
        }
    }

    /// How many requests were answered in the measured time so far.
    pub(super) fn completed(&self) -> u64 {
        self.watches.iter().map(|watch| watch.completed.load(Ordering::Relaxed)).sum()
    }

    async fn pause(&self) {
        if !self.progress.is_hidden() {
            self.progress.set_message(format!("{} answered", self.completed()));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }

    /// Waits for their ends, and merges what they have seen.
    pub(super) async fn join(mut self) -> Result<(Record, Vec<Cost>, u64), DriveError> {
        let (mut merged, mut costs, mut dropped) = (Record::default(), Vec::new(), 0);
        while !self.threads.iter().all(JoinHandle::is_finished) {
            self.pause().await;
        }
        for thread in self.threads.drain(..) {
            let driven = thread.join().expect("a generator does not panic")?;
            merged.merge(driven.record);
            costs.push(driven.cost);
            dropped += driven.dropped;
        }
        Ok((merged, costs, dropped))
    }
}

impl Drop for Generators {
    /// Whoever stops waiting stops them too.
    fn drop(&mut self) {
        for watch in &self.watches {
            watch.stop.store(true, Ordering::Relaxed);
        }
    }
}

/// How many of the clients one of the generators has.
fn clients_of(clients: usize, generators: usize, generator: usize) -> usize {
    (clients + generator) / generators
}

/// How many of the requests outstanding one of the generators has: each client has as many as the
/// others, and the first ones one more where it does not come out even.
fn share(outstanding: usize, clients: usize, generators: usize, generator: usize) -> usize {
    let before: usize = (0..generator).map(|it| clients_of(clients, generators, it)).sum();
    let own = clients_of(clients, generators, generator);
    let more = (outstanding % clients).saturating_sub(before).min(own);
    outstanding / clients * own + more
}

/// Measures until p99 is known as narrowly as asked, or the time is up: each further try takes twice
/// as long as the one before, and the last one counts.
pub async fn measure(cluster: &Cluster, spec: &Spec, pace: Pace) -> Result<Measurement, RunError> {
    let mut duration = spec.duration;
    let mut spent = Duration::ZERO;
    loop {
        let measurement = once(cluster, spec, pace, duration).await?;
        spent += duration;
        duration *= 2;
        if measurement.tests.p99_narrow || spent + duration > spec.duration_max {
            return Ok(measurement);
        }
    }
}

/// Measures for a time.
pub(super) async fn once(
    cluster: &Cluster,
    spec: &Spec,
    pace: Pace,
    duration: Duration,
) -> Result<Measurement, RunError> {
    let route = cluster.route();
    let generators = Generators::start(spec, pace, duration, TIMEOUT, &route, None);
    watch(cluster, spec, pace, duration, generators).await
}

/// Measures once, with other requests than those of the workload.
pub async fn closed_loop(
    cluster: &Cluster,
    spec: &Spec,
    requests: Requests,
    pace: Pace,
    duration: Duration,
) -> Result<Measurement, RunError> {
    let route = cluster.route();
    let generators = Generators::start(spec, pace, duration, TIMEOUT, &route, Some(&requests));
    watch(cluster, spec, pace, duration, generators).await
}

async fn watch(
    cluster: &Cluster,
    spec: &Spec,
    pace: Pace,
    duration: Duration,
    generators: Generators,
) -> Result<Measurement, RunError> {
    let mut span = Span::default();
    if generators.reach(1).await {
        span.begin(cluster).await;
        if generators.reach(2).await {
            span.end(cluster, &generators).await;
        }
    }
    let (record, costs, dropped) = generators.join().await?;
    Ok(judge(spec, pace, duration, record, (&costs, dropped), &span))
}

/// What the replicas and their processes did between two moments.
#[derive(Debug, Default)]
pub(super) struct Span {
    usages: Vec<Option<Usage>>,
    looks: (Vec<Look>, Vec<Look>),
    /// What each process took.
    spent: Vec<Option<Usage>>,
    /// Requests answered in it.
    completed: u64,
    switch: SwitchSpan,
}

impl Span {
    pub(super) async fn begin(&mut self, cluster: &Cluster) {
        self.usages = cluster.usages();
        self.switch.spent = cluster.switch_usage();
        self.looks.0 = cluster.look().await;
        self.switch.before = cluster.switch_status().await;
    }

    pub(super) async fn end(&mut self, cluster: &Cluster, generators: &Generators) {
        self.completed = generators.completed();
        let pairs = self.usages.iter().zip(cluster.usages());
        self.spent = pairs.map(|(before, after)| Some(after? - (*before)?)).collect();
        let switch = cluster.switch_usage().zip(self.switch.spent);
        self.switch.spent = switch.map(|(after, before)| after - before);
        self.looks.1 = cluster.look().await;
        self.switch.after = cluster.switch_status().await;
    }
}

/// What came of a run: the record of the generators, their costs and how often requests were not
/// admitted, and what the replicas did.
pub(super) fn judge(
    spec: &Spec,
    pace: Pace,
    duration: Duration,
    record: Record,
    (costs, dropped): (&[Cost], u64),
    span: &Span,
) -> Measurement {
    let achieved_per_s = record.completed as f64 / duration.as_secs_f64();
    let generator_share = costs.iter().map(Cost::share).fold(0.0, f64::max);
    let (offered, gaps) = match pace {
        Pace::Open { per_second } => (Some(per_second), Some(record.gaps_ns.as_slice())),
        Pace::Closed { .. } => (None, None),
    };
    let bottleneck = bottleneck(&record, generator_share, offered.is_some());
    let latencies: Vec<_> =
        record.samples().iter().map(|sample| sample.latency_ns as f64 / 1000.0).collect();
    let throughput = (offered, achieved_per_s);
    let (tests, interval) =
        stats::examine(gaps, &latencies, throughput, bottleneck.as_deref(), spec.asked);
    // The point that is printed comes from all samples, the interval from the thinned ones.
    let p99 = record.quantile_us(0.99);
    let p99_interval_us = interval
        .map(|interval| Interval { low: interval.low.min(p99), high: interval.high.max(p99) });
    let client_cpu: Duration = costs.iter().map(|cost| cost.cpu).sum();
    let client_us = client_cpu.as_secs_f64() * 1e6 / record.completed.max(1) as f64;
    let costs = per_operation(span.completed, client_us, &span.spent, &span.looks, &span.switch);
    Measurement {
        record,
        duration,
        achieved_per_s,
        dropped,
        tests,
        p99_interval_us,
        costs,
        generator_share,
        bottleneck,
    }
}

/// The share of a core above which a generator has no time to spare.
const SHARE_MAX: f64 = 0.9;

/// Being late by less than this is the scheduler's doing, and small.
const LATENESS_US: f64 = 200.0;

fn bottleneck(record: &Record, share: f64, open: bool) -> Option<String> {
    if share > SHARE_MAX {
        return Some(format!("it used {:.0} % of a core", share * 100.0));
    }
    let (late, half) = (record.lateness_us(0.99), record.quantile_us(0.5) / 2.0);
    let is_late = open && late > LATENESS_US && late > half;
    is_late.then(|| {
        format!("it was late by {late:.0} µs at p99, more than half of the median latency")
    })
}
