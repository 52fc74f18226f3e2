//! The first speed mark: three replicas as processes and the client, on one machine.

use std::{path::Path, time::Duration};

use hovercraft::Mode;
use serde::Serialize;

use crate::{
    Cluster, Setup,
    generator::Pace,
    peers::{Concurrency, PeerError, Redis},
    run::{RunError, Spec, closed_loop},
    workload::{Requests, Workload},
};

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
) -> Result<Vec<Row>, PeerError> {
    let mut rows = Vec::new();
    for (mode, durability, outstanding, request_bytes) in CASES {
        let system = format!("{mode} {durability}");
        if only
            .is_some_and(|only| !format!("{system} {outstanding} {request_bytes}").contains(only))
        {
            continue;
        }
        let setup = Setup {
            replicas: if *mode == Mode::Unreplicated { 1 } else { 3 },
            mode: *mode,
            durability: (*durability).to_owned(),
            spin_us,
            ..Setup::default()
        };
        let cluster = Cluster::start(binary, &setup).await.map_err(RunError::from)?;
        let mut row = one(&cluster, *outstanding, *request_bytes, duration).await?;
        row.system = system;
        each(&row);
        rows.push(row);
    }
    if only.is_none_or(|only| "redis".contains(only)) {
        match redis(duration).await {
            Ok(measured) => {
                measured.iter().for_each(&mut each);
                rows.extend(measured);
            }
            Err(PeerError::NotInstalled { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(rows)
}

async fn one(
    cluster: &Cluster,
    outstanding: usize,
    request_bytes: usize,
    duration: Duration,
) -> Result<Row, RunError> {
    let spec = Spec::new(Workload::Tiny, cluster.mode(), 3);
    let requests = Requests::same(synthetic(request_bytes), false);
    let pace = Pace::Closed { outstanding };
    let measured = closed_loop(cluster, &spec, requests, pace, duration).await?;
    let leader = measured.costs.leader;
    Ok(Row {
        system: String::new(),
        outstanding,
        request_bytes,
        per_second: measured.achieved_per_s,
        p50_us: measured.record.quantile_us(0.5),
        p99_us: measured.record.quantile_us(0.99),
        replicas_cpu_us: measured.costs.replicas_cpu_us_per_op,
        client_cpu_us: Some(measured.costs.client_cpu_us_per_op),
        leader_bytes_out: Some(leader.bytes_out_per_op),
        leader_datagrams_out: Some(leader.datagrams_out_per_op),
        failed: measured.record.failed,
    })
}

async fn redis(duration: Duration) -> Result<Vec<Row>, PeerError> {
    let redis = Redis::start(2).await?;
    let mut rows = Vec::new();
    for outstanding in [1, 50, 1000] {
        let concurrency = Concurrency { clients: outstanding, outstanding };
        let sample = redis.measure(true, concurrency, duration).await?;
        rows.push(Row {
            system: "Redis SET + WAIT 1".to_owned(),
            outstanding,
            request_bytes: 24,
            per_second: sample.ops_per_s(),
            p50_us: sample.quantile_us(0.5),
            p99_us: sample.quantile_us(0.99),
            replicas_cpu_us: sample.replicas_cpu_us(),
            client_cpu_us: Some(sample.client_cpu_us()),
            leader_bytes_out: None,
            leader_datagrams_out: None,
            failed: 0,
        });
    }
    Ok(rows)
}

/// A request of the synthetic service that takes no time, with a reply of 8 bytes.
fn synthetic(size: usize) -> bytes::Bytes {
    use hovercraft_apps::synthetic::{Distribution, SyntheticRequest};
    let request = SyntheticRequest {
        distribution: Distribution::Fixed,
        waits: false,
        mean_ns: 0,
        reply_bytes: 8,
    };
    request.encode(size)
}
