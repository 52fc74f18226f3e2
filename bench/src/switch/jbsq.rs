//! An unreplicated service on several workers behind the router: the tail under each way to choose a
//! worker, beside that of a single queue.

use std::{path::PathBuf, time::Duration};

use hovercraft_apps::synthetic::{Distribution, SyntheticRequest};
use r2p2::Policy;
use serde::{Deserialize, Serialize};

use super::SwitchError;
use crate::{
    Routed, RoutedSetup,
    generator::{Cost, PlainPlan, PlainRecord},
    machine::{Machine, commit, unix_seconds},
    model::{
        queue::Check,
        routing::{Discipline, MEAN_US as MODELLED_MEAN_US, Routing, bimodal, checks, quantile},
    },
    workload::Requests,
};

/// How it is measured.
#[derive(Debug, Clone)]
pub struct JbsqPlan {
    /// The `hovercraft` command.
    pub binary: PathBuf,
    /// How long each point is measured.
    pub duration: Duration,
}

/// One policy at one load.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// As a switch's configuration has it.
    pub policy: String,
    /// The share of the time in which workers have something to do.
    pub load: f64,
    /// Requests a second.
    pub offered_per_s: f64,
    /// How many were answered.
    pub answered: u64,
    /// How many were not.
    pub lost: u64,
    /// In ms, from when a request was meant to be sent.
    pub p50_ms: f64,
    /// See `p50_ms`.
    pub p99_ms: f64,
    /// p99 of the same policy, simulated, where to choose and to send takes no time; in ms.
    pub simulated_p99_ms: f64,
    /// p99 of a single queue, simulated, in ms.
    pub ideal_p99_ms: f64,
    /// The share of a core that the generator used.
    pub generator_share: f64,
}

/// Everything.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Jbsq {
    /// How many workers.
    pub workers: u16,
    /// The mean service time, in ms.
    pub service_ms: f64,
    /// One for each policy and load.
    pub jbsq: Vec<Point>,
    /// What is known of queues, and what the simulation makes of it.
    pub checks: Vec<Check>,
    /// Where.
    pub machine: Machine,
    /// Of what.
    pub commit: String,
    /// When, in seconds since 1970.
    pub unix_seconds: u64,
}

const WORKERS: u16 = 4;

/// Long enough that the way to a worker and back is small beside it.
const MEAN_US: u32 = 2000;

const LOADS: [f64; 4] = [0.5, 0.7, 0.8, 0.9];

/// What is compared.
const POLICIES: [(&str, RoutedSetup, Discipline); 5] = [
    ("jbsq(1)", routed("jbsq", 1), Discipline::Jbsq(1)),
    ("jbsq(3)", routed("jbsq", 3), Discipline::Jbsq(3)),
    ("shortest-queue", routed("shortest-queue", 3), Discipline::ShortestQueue),
    ("round-robin", routed("round-robin", 3), Discipline::RoundRobin),
    ("random", routed("random", 3), Discipline::Random),
];

const fn routed(policy: &'static str, bound: u32) -> RoutedSetup {
    RoutedSetup { workers: WORKERS, policy, bound }
}

/// How many requests are simulated for a point, and for each known result.
const SIMULATED: usize = 1_000_000;
const CHECKED: usize = 4_000_000;

/// Measures all points; `each` sees every one when it is there.
pub async fn jbsq(plan: &JbsqPlan, mut each: impl FnMut(&Point)) -> Result<Jbsq, SwitchError> {
    let machine = Machine::here();
    let mut points = Vec::new();
    for (name, setup, discipline) in POLICIES {
        let routed = Routed::start(&plan.binary, setup).await?;
        for load in LOADS {
            let point = measure(plan, &routed, (name, discipline), load).await?;
            each(&point);
            points.push(point);
        }
    }
    Ok(Jbsq {
        workers: WORKERS,
        service_ms: f64::from(MEAN_US) / 1e3,
        jbsq: points,
        checks: checks(CHECKED),
        machine,
        commit: commit(),
        unix_seconds: unix_seconds(),
    })
}

async fn measure(
    plan: &JbsqPlan,
    routed: &Routed,
    (name, discipline): (&str, Discipline),
    load: f64,
) -> Result<Point, SwitchError> {
    let request = SyntheticRequest {
        distribution: Distribution::Bimodal,
        waits: true,
        mean_ns: MEAN_US * 1000,
        reply_bytes: 8,
    };
    let per_second = load * f64::from(WORKERS) * 1e6 / f64::from(MEAN_US);
    let run = PlainPlan {
        per_second,
        clients: 4,
        policy: Policy::LoadBalance,
        requests: Requests::same(request.encode(24), false),
        warm_up: Duration::from_millis(500),
        duration: plan.duration,
        timeout: Duration::from_secs(2),
        // All policies get the same arrivals.
        seed: 1,
    };
    let (record, cost) = super::drive(run, routed.address()).await?;
    Ok(Point::new(name, (load, per_second), discipline, &record, cost))
}

impl Point {
    fn new(
        name: &str,
        (load, offered_per_s): (f64, f64),
        discipline: Discipline,
        record: &PlainRecord,
        cost: Cost,
    ) -> Self {
        let simulated = |discipline| {
            let servers = usize::from(WORKERS);
            let (service_us, mean_us) = (bimodal as fn(&mut _) -> f64, MODELLED_MEAN_US);
            let routing = Routing { discipline, servers, load, service_us, mean_us };
            let p99 = quantile(&routing.sojourns_us(SIMULATED, 1), 0.99);
            p99 / MODELLED_MEAN_US * f64::from(MEAN_US) / 1e3
        };
        Self {
            policy: name.to_owned(),
            load,
            offered_per_s,
            answered: record.answered.completed,
            lost: record.lost + record.refused,
            p50_ms: record.answered.quantile_us(0.5) / 1e3,
            p99_ms: record.answered.quantile_us(0.99) / 1e3,
            simulated_p99_ms: simulated(discipline),
            ideal_p99_ms: simulated(Discipline::SingleQueue),
            generator_share: cost.share(),
        }
    }

    /// The head of a table of lines.
    pub fn head() -> String {
        format!(
            "{:<16} {:>5} {:>9} {:>9} {:>6} {:>9} {:>9} {:>10} {:>9} {:>6}\n",
            "policy",
            "load",
            "offered/s",
            "answered",
            "lost",
            "p50 ms",
            "p99 ms",
            "simulated",
            "ideal",
            "gen."
        )
    }

    /// One of its lines.
    pub fn line(&self) -> String {
        format!(
            "{:<16} {:>5.2} {:>9.0} {:>9} {:>6} {:>9.2} {:>9.2} {:>10.2} {:>9.2} {:>5.0}%\n",
            self.policy,
            self.load,
            self.offered_per_s,
            self.answered,
            self.lost,
            self.p50_ms,
            self.p99_ms,
            self.simulated_p99_ms,
            self.ideal_p99_ms,
            self.generator_share * 100.0
        )
    }
}

impl Jbsq {
    /// Whether choosing by queues has the shorter tail at the higher loads, and the simulation is right.
    pub fn is_better(&self) -> bool {
        let p99 = |policy: &str, load: f64| {
            let at = |point: &&Point| point.policy == policy && (point.load - load).abs() < 1e-9;
            self.jbsq.iter().find(at).map(|point| point.p99_ms)
        };
        let beats = |other: &str| {
            let pairs = LOADS[1..].iter().map(|load| (p99("jbsq(3)", *load), p99(other, *load)));
            pairs.into_iter().all(|(ours, theirs)| ours < theirs)
        };
        beats("random") && beats("round-robin") && self.checks.iter().all(|it| it.error() < 0.02)
    }
}
