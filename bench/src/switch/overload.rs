//! More load than a cluster can do: with a bound on what is in the system, with the SLO policy, and
//! without any.

use std::{fmt::Write as _, path::PathBuf, time::Duration};

use hovercraft::Mode;
use hovercraft_apps::synthetic::{Distribution, SyntheticRequest};
use r2p2::Policy;
use serde::{Deserialize, Serialize};

use super::{SwitchError, ms};
use crate::{
    AdmissionSetup, Cluster, Setup, SwitchSetup,
    generator::{Cost, PlainPlan, PlainRecord},
    machine::{Machine, commit, unix_seconds},
    workload::Requests,
};

/// How it is measured.
#[derive(Debug, Clone)]
pub struct OverloadPlan {
    /// The `hovercraft` command.
    pub binary: PathBuf,
    /// How long each point is measured, after as long without.
    pub duration: Duration,
}

/// Who keeps load away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Keeper {
    /// Nobody.
    Nobody,
    /// The switch, by a bound on the requests in the system (P24).
    Threshold,
    /// The switch, by the SLO policy (P25).
    Slo,
}

/// What came of one offered load.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Who kept load away.
    pub keeper: Keeper,
    /// In units of the capacity.
    pub load: f64,
    /// Requests a second.
    pub offered_per_s: f64,
    /// Answered in time, a second.
    pub answered_per_s: f64,
    /// Refused, a second.
    pub refused_per_s: f64,
    /// Neither, a second.
    pub lost_per_s: f64,
    /// Of those that were answered in time, in ms, from when they were meant to be sent.
    pub p50_ms: f64,
    /// See `p50_ms`.
    pub p99_ms: f64,
    /// The share of a core that the generator used.
    pub generator_share: f64,
}

/// Everything.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Overload {
    /// What the replicas do when there is always something to do.
    pub capacity_per_s: f64,
    /// The service time, in µs.
    pub service_us: u32,
    /// How many requests may be in the system under the threshold policy.
    pub limit: usize,
    /// What 99 % are to take at most under the SLO policy, in ms.
    pub slo_ms: f64,
    /// An answer that takes longer is worth nothing, in ms.
    pub deadline_ms: f64,
    /// One for each policy and load.
    pub overload: Vec<Point>,
    /// Where.
    pub machine: Machine,
    /// Of what.
    pub commit: String,
    /// When, in seconds since 1970.
    pub unix_seconds: u64,
}

/// In units of the capacity.
const LOADS: [f64; 7] = [0.5, 0.8, 0.9, 1.0, 1.2, 1.5, 2.0];

/// Waited, not burned: then the capacity is that of the service, and not of the cores that all share.
const SERVICE_US: u32 = 250;

const LIMIT: usize = 200;

const SLO: Duration = Duration::from_millis(20);

const DEADLINE: Duration = Duration::from_millis(500);

/// So that no client has more than its share.
const CLIENTS: usize = 8;

/// Measures all points; `each` sees every one when it is there.
pub async fn overload(
    plan: &OverloadPlan,
    mut each: impl FnMut(&Point),
) -> Result<Overload, SwitchError> {
    let machine = Machine::here();
    let capacity_per_s = capacity(plan).await?;
    let mut points = Vec::new();
    for keeper in [Keeper::Nobody, Keeper::Threshold, Keeper::Slo] {
        let mut cluster = None;
        for load in LOADS {
            // What was offered too much and nobody kept away is still there.
            let is_clean = keeper != Keeper::Nobody || load < 1.0;
            let started = match cluster.take().filter(|_| is_clean) {
                Some(started) => started,
                None => start(plan, keeper).await?,
            };
            let run = Offered { per_second: load * capacity_per_s, duration: plan.duration };
            let (record, cost) = run.drive(&started).await?;
            let point = Point::new(keeper, load, plan.duration, &record, cost);
            each(&point);
            points.push(point);
            cluster = Some(started);
        }
    }
    Ok(Overload {
        capacity_per_s,
        service_us: SERVICE_US,
        limit: LIMIT,
        slo_ms: ms(SLO),
        deadline_ms: ms(DEADLINE),
        overload: points,
        machine,
        commit: commit(),
        unix_seconds: unix_seconds(),
    })
}

/// Under the threshold policy with far too much load, the replicas always have something to do.
async fn capacity(plan: &OverloadPlan) -> Result<f64, SwitchError> {
    let cluster = start(plan, Keeper::Threshold).await?;
    let at_most = 1e6 / f64::from(SERVICE_US);
    let run = Offered { per_second: 1.5 * at_most, duration: plan.duration };
    let (record, _) = run.drive(&cluster).await?;
    Ok(record.answered.completed.max(1) as f64 / plan.duration.as_secs_f64())
}

async fn start(plan: &OverloadPlan, keeper: Keeper) -> Result<Cluster, SwitchError> {
    let age = Duration::from_secs(1);
    let admission = match keeper {
        Keeper::Nobody => None,
        Keeper::Threshold => Some(AdmissionSetup { limit: LIMIT, age, slo: None }),
        // The bound is for what the policy is too slow for.
        Keeper::Slo => Some(AdmissionSetup { limit: 10 * LIMIT, age, slo: Some(SLO) }),
    };
    let setup = Setup {
        mode: Mode::HovercRaftPlusPlus,
        execution: "thread",
        queue_bound: 128,
        // The leader keeps nothing away.
        admission_limit: 1 << 24,
        switch: Some(SwitchSetup { disseminates: true, admission }),
        ..Setup::default()
    };
    let cluster = Cluster::start(&plan.binary, &setup).await?;
    // After its start a switch raises its limit from nothing over one age (P24).
    tokio::time::sleep(age).await;
    Ok(cluster)
}

/// A load for a time.
struct Offered {
    per_second: f64,
    duration: Duration,
}

impl Offered {
    async fn drive(&self, cluster: &Cluster) -> Result<(PlainRecord, Cost), SwitchError> {
        let request = SyntheticRequest {
            distribution: Distribution::Fixed,
            waits: true,
            mean_ns: SERVICE_US * 1000,
            reply_bytes: 8,
        };
        let plan = PlainPlan {
            per_second: self.per_second,
            clients: CLIENTS,
            policy: Policy::Replicated,
            requests: Requests::same(request.encode(24), false),
            warm_up: self.duration,
            duration: self.duration,
            timeout: DEADLINE,
            seed: 1,
        };
        let to = cluster.switch().expect("it was started with one");
        super::drive(plan, to).await
    }
}

impl Point {
    fn new(
        keeper: Keeper,
        load: f64,
        duration: Duration,
        record: &PlainRecord,
        cost: Cost,
    ) -> Self {
        let per_s = |count: u64| count as f64 / duration.as_secs_f64();
        Self {
            keeper,
            load,
            offered_per_s: per_s(record.offered),
            answered_per_s: per_s(record.answered.completed),
            refused_per_s: per_s(record.refused),
            lost_per_s: per_s(record.lost),
            p50_ms: record.answered.quantile_us(0.5) / 1e3,
            p99_ms: record.answered.quantile_us(0.99) / 1e3,
            generator_share: cost.share(),
        }
    }

    /// The head of a table of lines.
    pub fn head() -> String {
        format!(
            "{:<10} {:>5} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>6}\n",
            "admission",
            "load",
            "offered/s",
            "answered",
            "refused",
            "lost",
            "p50 ms",
            "p99 ms",
            "gen."
        )
    }

    /// One of its lines.
    pub fn line(&self) -> String {
        format!(
            "{:<10} {:>5.2} {:>9.0} {:>9.0} {:>9.0} {:>9.0} {:>9.2} {:>9.2} {:>5.0}%\n",
            self.keeper.name(),
            self.load,
            self.offered_per_s,
            self.answered_per_s,
            self.refused_per_s,
            self.lost_per_s,
            self.p50_ms,
            self.p99_ms,
            self.generator_share * 100.0
        )
    }
}

impl Keeper {
    /// For a legend.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nobody => "none",
            Self::Threshold => "threshold",
            Self::Slo => "slo",
        }
    }
}

/// What is asked of the figures.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Kept {
    /// Answered at twice the capacity, of the most that was answered at any load.
    pub threshold: f64,
    /// The same without admission.
    pub nobody: f64,
    /// p99 at twice the capacity under the SLO policy, in ms.
    pub slo_p99_ms: f64,
}

impl Overload {
    /// What is left at the highest load.
    pub fn kept(&self) -> Kept {
        let of = |keeper| self.overload.iter().filter(move |point| point.keeper == keeper);
        let last = |keeper| of(keeper).next_back().map_or(0.0, |point| point.answered_per_s);
        let most = |keeper| of(keeper).map(|point| point.answered_per_s).fold(1.0, f64::max);
        Kept {
            threshold: last(Keeper::Threshold) / most(Keeper::Threshold),
            nobody: last(Keeper::Nobody) / most(Keeper::Nobody),
            slo_p99_ms: of(Keeper::Slo).next_back().map_or(f64::INFINITY, |point| point.p99_ms),
        }
    }

    /// Whether throughput is kept (90 %), and the SLO too.
    pub fn is_held(&self) -> bool {
        let kept = self.kept();
        kept.threshold >= 0.9 && kept.slo_p99_ms <= self.slo_ms
    }

    /// What a person wants to know.
    pub fn summary(&self) -> String {
        let Kept { threshold, nobody, slo_p99_ms } = self.kept();
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = write!(
            text,
            "capacity {:.0}/s. At twice that: {:.1} % of the peak kept with the threshold policy, \
             p99 {slo_p99_ms:.1} ms of {:.0} ms with the SLO policy, {:.1} % kept without admission",
            self.capacity_per_s,
            threshold * 100.0,
            self.slo_ms,
            nobody * 100.0
        );
        text
    }
}
