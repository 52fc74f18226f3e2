//! One workload in one mode: start the replicas, load them, check the sample, say what it cost.

mod costs;
mod failover;
mod measure;
mod outcome;
mod search;

use std::time::Duration;

use hovercraft::{CallError, Mode, admin::AdminError};
use indicatif::ProgressBar;

pub use costs::{PerOperation, RoleCost};
pub use failover::{Failover, failover};
pub use measure::{Asked, Measurement, closed_loop, measure};
pub use outcome::Outcome;
pub use search::{Found, find_max};

use crate::{
    Cluster, ClusterError, Setup,
    generator::{DriveError, Pace},
    machine::Machine,
    workload::{Workload, loading},
};

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The replicas did not start.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The generator failed.
    #[error(transparent)]
    Drive(#[from] DriveError),
    /// A replica did not say how it is.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// The records could not be loaded.
    #[error("the records of the workload could not be loaded: {0}")]
    Loading(#[from] CallError),
    /// No session to load them.
    #[error("the records of the workload could not be loaded: {0}")]
    Connect(#[from] hovercraft::ConnectError),
}

/// What is to be run.
#[derive(Debug, Clone)]
pub struct Spec {
    /// What is asked.
    pub workload: Workload,
    /// How the replicas are set up.
    pub setup: Setup,
    /// Bytes of a request.
    pub request_bytes: usize,
    /// How many clients, each with a session and a socket.
    pub clients: usize,
    /// How many threads generate load.
    pub generators: usize,
    /// How long is measured, at first.
    pub duration: Duration,
    /// How long may be measured at most, if p99 is not narrow enough before.
    pub duration_max: Duration,
    /// What the sample has to reach.
    pub asked: Asked,
    /// Of all that is random.
    pub seed: u64,
    /// Where somebody may watch it; hidden by default.
    pub progress: ProgressBar,
}

impl Spec {
    /// A workload with what it needs, in a mode.
    pub fn new(workload: Workload, mode: Mode, replicas: u16) -> Self {
        let needs = workload.needs();
        let setup = Setup {
            replicas: if mode == Mode::Unreplicated { 1 } else { replicas },
            mode,
            durability: needs.durability.to_owned(),
            service: needs.service.to_owned(),
            policy: needs.policy.to_owned(),
            queue_bound: needs.queue_bound,
            ..Setup::default()
        };
        Self {
            workload,
            setup,
            request_bytes: needs.request_bytes,
            clients: 1,
            generators: 1,
            duration: Duration::from_secs(5),
            duration_max: Duration::from_secs(20),
            asked: Asked::default(),
            seed: 1,
            progress: ProgressBar::hidden(),
        }
    }
}

/// Loads the records that a workload needs.
pub async fn prepare(cluster: &Cluster, workload: Workload) -> Result<(), RunError> {
    if !workload.needs_records() {
        return Ok(());
    }
    let client = hovercraft::Client::builder()
        .members(cluster.addresses())
        .mode(cluster.mode())
        .connect()
        .await?;
    for command in loading() {
        client.call(command).await?;
    }
    Ok(())
}

/// Measures a prepared cluster at one pace.
pub async fn run(cluster: &Cluster, spec: &Spec, pace: Pace) -> Result<Outcome, RunError> {
    let machine = Machine::here();
    let measurement = measure(cluster, spec, pace).await?;
    Ok(Outcome::new(spec, pace, &measurement, machine))
}
