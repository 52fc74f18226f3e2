//! A replica that lost its disk: it is named as such, and no message leads to a second cluster.

mod support;

use std::{fs, time::Duration};

use hovercraft::{
    Client, ClusterLimits,
    admin::{self, AdminError, NodeStatus},
};
use support::{Cluster, PATIENT, copy_directory, is_level};

const TIMEOUT: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_lost_disk_is_named_and_no_init_makes_a_second_cluster() {
    let data = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(3, data.path(), |builder| builder).await;
    let client = Client::builder().members(cluster.addresses()).connect().await.unwrap();
    client.call(b"kept".to_vec()).await.unwrap();
    let number = cluster.status().await[0].cluster;

    cluster.stop(2);
    fs::remove_dir_all(data.path().join("3")).unwrap();
    cluster.restart(2);
    let is_counted = |status: &[NodeStatus]| status[2].counted_by == number;
    cluster.until("the empty replica hears its cluster", is_counted).await;

    // All of them: the birth of the others names another disk.
    let limits = ClusterLimits::default();
    let error = admin::init(&cluster.members, limits, TIMEOUT).await.unwrap_err();
    assert!(matches!(error, AdminError::LostDisk { cluster, .. } if Some(cluster) == number));
    // The lost one alone: it hears that a cluster counts it.
    let error = admin::init(&cluster.members[2..], limits, TIMEOUT).await.unwrap_err();
    assert!(matches!(error, AdminError::LostDisk { cluster, .. } if Some(cluster) == number));

    client.call(b"the cluster goes on".to_vec()).await.unwrap();
    assert_eq!(cluster.status().await[2].cluster, None);
}

#[tokio::test]
async fn a_lost_mark_is_told_by_every_replica_that_lost_it() {
    let data = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(3, data.path(), |builder| builder).await;
    let client = Client::builder().members(cluster.addresses()).connect().await.unwrap();
    client.call(b"kept".to_vec()).await.unwrap();
    for position in 0..3 {
        cluster.stop(position);
        fs::remove_file(data.path().join((position + 1).to_string()).join("synced")).unwrap();
    }
    for position in 0..3 {
        cluster.restart(position);
    }
    for status in cluster.status().await {
        let missing = status.missing.expect("it says what is missing");
        assert!(missing.contains("`synced` is missing"), "{missing}");
        assert!(status.protocol.unwrap().recovering);
    }
}

#[tokio::test]
async fn an_older_copy_of_a_directory_is_named_and_catches_up() {
    // P37: the leader that counted what is gone stays in office.
    let data = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(3, data.path(), |builder| builder.timing(PATIENT)).await;
    let client = Client::builder().members(cluster.addresses()).connect().await.unwrap();
    let leader = cluster.leader().await;
    let victim = (leader + 1) % 3;
    let directory = data.path().join((victim + 1).to_string());
    let older = data.path().join("older");

    client.call(b"in the copy".to_vec()).await.unwrap();
    cluster.stop(victim);
    copy_directory(&directory, &older);
    cluster.restart(victim);
    for _ in 0..20 {
        client.call(b"not in the copy".to_vec()).await.unwrap();
    }
    let holds_all = |status: &[NodeStatus]| {
        let leads = status[leader].protocol.as_ref().unwrap();
        let mut replicas = leads.replicas.iter();
        is_level(status) && replicas.all(|replica| replica.matched == leads.last)
    };
    cluster.until("everybody holds everything", holds_all).await;
    cluster.stop(victim);
    fs::remove_dir_all(&directory).unwrap();
    fs::rename(&older, &directory).unwrap();
    let before = cluster.status().await[0].protocol.as_ref().unwrap().term;
    cluster.restart(victim);

    let is_found = |status: &[NodeStatus]| status[leader].counters.restored_found == 1;
    cluster.until("the leader finds the older copy", is_found).await;
    let has_recovered = |status: &[NodeStatus]| {
        let (leads, late) = (&status[leader].counters, &status[victim]);
        let is_named = leads.recovered == 1 && late.missing.is_none();
        is_named && !late.protocol.as_ref().unwrap().recovering && is_level(status)
    };
    cluster.until("it has caught up and counts again", has_recovered).await;
    client.call(b"the cluster goes on".to_vec()).await.unwrap();
    let status = cluster.status().await;
    assert!(status.iter().all(|node| node.protocol.as_ref().unwrap().term == before));
}
