//! Our modes, with the key-value service and requests of the size that the peers get.

use std::{path::Path, time::Duration};

use hovercraft::Mode;
use hovercraft_apps::kv::{self, Condition, encode_request};

use super::{Concurrency, PeerError, Sample};
use crate::{
    Cluster, Setup,
    generator::Pace,
    run::{Spec, closed_loop},
    workload::{Requests, Workload},
};

/// A mode with a durability, and what is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ours {
    MemoryWrite,
    MemoryRead,
    SyncWrite,
    Raft,
    Unreplicated,
}

impl Ours {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::MemoryWrite => "hovercraft write, memory",
            Self::MemoryRead => "hovercraft read, memory",
            Self::SyncWrite => "hovercraft write, sync",
            Self::Raft => "our raft write, memory",
            Self::Unreplicated => "our unreplicated write",
        }
    }

    pub(super) async fn start(self, binary: &Path) -> Result<Cluster, PeerError> {
        let (mode, replicas) = match self {
            Self::Raft => (Mode::Raft, 3),
            Self::Unreplicated => (Mode::Unreplicated, 1),
            _ => (Mode::HovercRaft, 3),
        };
        let durability = if self == Self::SyncWrite { "sync" } else { "memory" };
        let setup = Setup {
            mode,
            replicas,
            durability: durability.to_owned(),
            service: "kv".to_owned(),
            ..Setup::default()
        };
        Ok(Cluster::start(binary, &setup).await.map_err(crate::run::RunError::from)?)
    }

    pub(super) async fn measure(
        self,
        cluster: &Cluster,
        concurrency: Concurrency,
        duration: Duration,
    ) -> Result<Sample, PeerError> {
        let key = "key:0000".into();
        let operation = if self == Self::MemoryRead {
            kv::Operation::Get { key }
        } else {
            let value = "value-of-16-byte".into();
            kv::Operation::Set { key, value, condition: Condition::Always }
        };
        let body = encode_request(&kv::Request::One(operation));
        let requests = Requests::same(body, self == Self::MemoryRead);
        let mut spec = Spec::new(Workload::YcsbA, cluster.mode(), 3);
        spec.clients = concurrency.clients;
        let pace = Pace::Closed { outstanding: concurrency.outstanding };
        let measured = closed_loop(cluster, &spec, requests, pace, duration).await?;
        Ok(Sample {
            completed: measured.record.completed,
            latency_ns: measured.record.latency_ns.clone(),
            duration,
            replicas_cpu: per(measured.costs.replicas_cpu_us_per_op, measured.record.completed),
            client_cpu: per(measured.costs.client_cpu_us_per_op, measured.record.completed),
        })
    }
}

fn per(us: f64, count: u64) -> Duration {
    Duration::from_secs_f64(us * 1e-6 * count as f64)
}
