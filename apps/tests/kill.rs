//! Replicas as processes with sync durability: killed with SIGKILL, restarted, late, wiped.

mod support;

use std::{fs, time::Duration};

use hovercraft::{admin::NodeStatus, core::RoleStatus};
use support::{Cluster, PATIENCE};

/// With so small a log, what a replica missed is soon to be had as a snapshot only.
const SMALL_LOG: &str = "log_bytes_max = 1048576";

#[tokio::test]
async fn twenty_kills_at_random_moments_lose_nothing() {
    const CYCLES: usize = 20;
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut cluster = Cluster::start(|_| SMALL_LOG.to_owned()).await;
    let workload = cluster.load(8);
    for _ in 0..CYCLES {
        cluster.progress(&workload, random.u64(1..500)).await;
        let victim = random.usize(..3);
        cluster.replicas.kill(victim).await.expect("it runs");
        cluster.progress(&workload, random.u64(1..500)).await;
        cluster.replicas.start(victim).expect("it runs again");
        let commit = cluster.commit().await;
        // Otherwise two may be down in the next cycle, and there is no service to wait for.
        let has_caught_up = |status: &NodeStatus| {
            status.protocol.as_ref().is_some_and(|protocol| protocol.applied >= commit)
        };
        cluster.until("catching up", victim, has_caught_up).await;
    }
    cluster.stop_and_check(workload).await;
}

#[tokio::test]
async fn all_replicas_are_killed_at_once_and_nothing_is_lost() {
    let mut cluster = Cluster::start(|_| String::new()).await;
    let workload = cluster.load(16);
    for _ in 0..2 {
        cluster.progress(&workload, 1000).await;
        for position in 0..3 {
            cluster.replicas.kill(position).await.expect("it runs");
        }
        for position in 0..3 {
            cluster.replicas.start(position).expect("it runs again");
        }
        cluster.replicas.leader(PATIENCE).await.expect("a new leader");
    }
    cluster.progress(&workload, 1000).await;
    cluster.stop_and_check(workload).await;
}

#[tokio::test]
async fn a_late_replica_catches_up_by_log_and_by_snapshot() {
    // More entries than a leader sends to one that is so far behind (P9).
    const MISSED: u64 = 10_000;
    for (log, by_snapshot) in [("", false), (SMALL_LOG, true)] {
        let mut cluster = Cluster::start(|_| log.to_owned()).await;
        let leader = cluster.replicas.leader(PATIENCE).await.expect("a leader");
        let late = (leader + 1) % 3;
        cluster.replicas.kill(late).await.expect("it runs");
        let workload = cluster.load(64);
        cluster.progress(&workload, MISSED).await;
        cluster.replicas.start(late).expect("it runs again");
        // While requests go on.
        let commit = cluster.commit().await;
        let caught_up = |status: &NodeStatus| {
            status.protocol.as_ref().is_some_and(|protocol| protocol.applied >= commit)
        };
        cluster.until("catching up", late, caught_up).await;
        // It is needed for what comes now, and knows what came before.
        cluster.replicas.kill((leader + 2) % 3).await.expect("it runs");
        cluster.progress(&workload, 1000).await;
        cluster.replicas.start((leader + 2) % 3).expect("it runs again");
        let is_as_expected =
            |status: &NodeStatus| (status.counters.snapshots_installed > 0) == by_snapshot;
        cluster.until("the expected way", late, is_as_expected).await;
        cluster.stop_and_check(workload).await;
    }
}

#[tokio::test]
async fn a_wiped_replica_does_not_vote() {
    // P39: an empty disk votes for nobody, or it could help to elect one that lacks what it itself
    // had acknowledged.
    let mut cluster = Cluster::start(|_| String::new()).await;
    let workload = cluster.load(4);
    cluster.progress(&workload, 100).await;
    let leader = cluster.replicas.leader(PATIENCE).await.expect("a leader");
    let (wiped, candidate) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.replicas.kill(wiped).await.expect("it runs");
    fs::remove_dir_all(cluster.replicas.data(wiped)).expect("it has data");
    cluster.replicas.start(wiped).expect("it runs again");
    cluster.until("waiting for init", wiped, |status| status.cluster.is_none()).await;
    // The two that are left go on, until the leader dies.
    cluster.progress(&workload, 100).await;
    cluster.replicas.kill(leader).await.expect("it runs");
    let asks_in_vain = |status: &NodeStatus| {
        let protocol = status.protocol.as_ref().expect("a member");
        assert_ne!(protocol.role, RoleStatus::Leader, "the wiped one has voted");
        status.counters.pre_votes_started >= 5
    };
    cluster.until("five attempts", candidate, asks_in_vain).await;
    let impatient = cluster.client.with_timeout(Duration::from_millis(100));
    impatient.call("anything").await.expect_err("no majority");
    cluster.until("waiting for init", wiped, |status| status.cluster.is_none()).await;
    // With the leader of before there is a majority of those that know.
    cluster.replicas.start(leader).expect("it runs again");
    cluster.progress(&workload, 100).await;
    let shared = workload.shared.clone();
    let history = workload.stop().await;
    cluster.check(history, &shared).await;
}
