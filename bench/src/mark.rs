//! The first speed mark: three replicas as processes and the client, on one machine.

use std::{io, path::Path, time::Duration};

use bytes::Bytes;
use hovercraft::{Mode, admin::AdminError};
use serde::Serialize;

use crate::{Cluster, ClusterError, Load, LoadError, Setup, redis::Redis};

/// One line of the result.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// What was measured.
    pub system: String,
    /// Requests outstanding.
    pub outstanding: usize,
    /// Bytes in a request.
    pub request_bytes: usize,
    /// Acknowledged requests a second.
    pub per_second: f64,
    /// Median latency, in microseconds.
    pub p50_us: f64,
    /// The 99th percentile of the latency, in microseconds.
    pub p99_us: f64,
    /// Processor time of all replicas for each request, in microseconds.
    pub replicas_cpu_us: f64,
    /// Processor time of the client for each request, in microseconds.
    pub client_cpu_us: Option<f64>,
    /// Bytes that the leader sent for each request.
    pub leader_bytes_out: Option<f64>,
    /// Datagrams that the leader sent for each request.
    pub leader_datagrams_out: Option<f64>,
    /// Requests that failed.
    pub failed: u64,
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MarkError {
    /// The replicas did not start.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The client did not connect.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A replica did not say how it is.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// Redis.
    #[error("Redis: {0}")]
    Redis(#[from] io::Error),
}

/// The requests in flight are at most replicas × B, so B must not be what is measured.
const QUEUE_BOUND: usize = 1024;

/// What is measured, in this order: mode, durability, outstanding, bytes in a request.
const CASES: &[(Mode, &str, usize, usize)] = &[
    (Mode::HovercRaft, "memory", 1, 24),
    (Mode::HovercRaft, "memory", 50, 24),
    (Mode::HovercRaft, "memory", 1000, 24),
    (Mode::HovercRaft, "memory", 1000, 1024),
    (Mode::Raft, "memory", 1000, 24),
    (Mode::Raft, "memory", 1000, 1024),
    (Mode::HovercRaft, "sync", 1, 24),
    (Mode::HovercRaft, "sync", 1000, 24),
    (Mode::Unreplicated, "memory", 1, 24),
    (Mode::Unreplicated, "memory", 1000, 24),
];

/// Measures everything, with the `hovercraft` command at `binary`, and hands each line to `each`
/// as it comes.
pub async fn run(
    binary: &Path,
    duration: Duration,
    spin_us: u32,
    only: Option<&str>,
    mut each: impl FnMut(&Row),
) -> Result<Vec<Row>, MarkError> {
    let mut rows = Vec::new();
    for (mode, durability, outstanding, request_bytes) in CASES {
        let system = format!("{mode} {durability}");
        if only
            .is_some_and(|only| !format!("{system} {outstanding} {request_bytes}").contains(only))
        {
            continue;
        }
        let replicas = if *mode == Mode::Unreplicated { 1 } else { 3 };
        let name = mode.to_string();
        let setup = Setup {
            replicas,
            mode: &name,
            durability,
            service: "synthetic",
            queue_bound: QUEUE_BOUND,
            spin_us,
        };
        let cluster = Cluster::start(binary, setup).await?;
        let mut row = one(&cluster, *mode, *outstanding, *request_bytes, duration).await?;
        row.system = system;
        each(&row);
        rows.push(row);
    }
    if only.is_none_or(|only| "redis".contains(only)) {
        for row in redis(duration).await? {
            each(&row);
            rows.push(row);
        }
    }
    Ok(rows)
}

async fn one(
    cluster: &Cluster,
    mode: Mode,
    outstanding: usize,
    request_bytes: usize,
    duration: Duration,
) -> Result<Row, MarkError> {
    let load = Load {
        outstanding,
        command: synthetic(request_bytes),
        warm_up: Duration::from_millis(500),
        duration,
    };
    let before = cluster.leader().await?.map(|leader| leader.network);
    let measured = load.run(cluster.addresses(), mode, || cluster.cpu_time()).await?;
    let after = cluster.leader().await?.map(|leader| (leader.network, leader.counters));
    // The leader counts from its start, the warm-up included: so it is divided by all requests.
    let all =
        after.map_or(1, |(_, counters)| counters.requests_ordered.max(counters.requests)) as f64;
    let sent = before.zip(after).map(|(before, (after, _))| {
        let bytes = (after.bytes_out - before.bytes_out) as f64 / all;
        (bytes, (after.datagrams_out - before.datagrams_out) as f64 / all)
    });
    let count = measured.count.max(1) as f64;
    Ok(Row {
        system: String::new(),
        outstanding,
        request_bytes,
        per_second: measured.per_second(),
        p50_us: measured.quantile_us(0.5),
        p99_us: measured.quantile_us(0.99),
        replicas_cpu_us: measured.replicas_cpu.as_secs_f64() * 1e6 / count,
        client_cpu_us: Some(measured.client_cpu.as_secs_f64() * 1e6 / count),
        leader_bytes_out: sent.map(|sent| sent.0),
        leader_datagrams_out: sent.map(|sent| sent.1),
        failed: measured.failed,
    })
}

async fn redis(duration: Duration) -> Result<Vec<Row>, MarkError> {
    let Some(redis) = Redis::start().await? else { return Ok(Vec::new()) };
    let mut rows = Vec::new();
    for outstanding in [1, 50, 1000] {
        let cpu = redis.cpu_time();
        let latency_ns = redis.run(outstanding, duration).await?;
        let count = latency_ns.len().max(1) as f64;
        let cpu = redis.cpu_time().saturating_sub(cpu);
        rows.push(Row {
            system: "Redis SET + WAIT 1".to_owned(),
            outstanding,
            request_bytes: 24,
            per_second: count / duration.as_secs_f64(),
            p50_us: latency_ns.value_at_quantile(0.5) as f64 / 1000.0,
            p99_us: latency_ns.value_at_quantile(0.99) as f64 / 1000.0,
            replicas_cpu_us: cpu.as_secs_f64() * 1e6 / count,
            client_cpu_us: None,
            leader_bytes_out: None,
            leader_datagrams_out: None,
            failed: 0,
        });
    }
    Ok(rows)
}

/// A request of the synthetic service that takes no time, with a reply of 8 bytes.
fn synthetic(size: usize) -> Bytes {
    let mut bytes = vec![0; size];
    bytes[0] = 1;
    bytes[6] = 8;
    bytes.into()
}
