//! A replica that lost its disk: it is named as such, and no message leads to a second cluster.

mod support;

use std::{fs, time::Duration};

use hovercraft::{
    Client, ClusterLimits,
    admin::{self, AdminError, NodeStatus},
};
use support::Cluster;

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
