//! Clients that know R2P2 and nothing of sessions, as the original ones.

mod support;

use std::time::Duration;

use r2p2::{CallSettings, Client, Policy};
use support::{Cluster, PATIENCE, PATIENT, is_level};

fn settings() -> CallSettings {
    CallSettings {
        timeout: PATIENCE,
        // What is only late must not be asked for twice: nothing tells a retry of a plain request.
        retry_after: Some(Duration::from_secs(5)),
        policy: Policy::Replicated,
        original_server: true,
    }
}

#[tokio::test]
async fn a_plain_client_of_the_leader_is_served() {
    let data = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(3, data.path(), |builder| builder.timing(PATIENT)).await;
    let leader = cluster.leader().await;
    // The request goes to the leader alone: the others fetch its body (P9).
    let client = Client::connect_with(cluster.members[leader].1, settings()).await.unwrap();
    for count in 1..=20_u64 {
        let reply = client.call(count.to_be_bytes().to_vec()).await.unwrap();
        assert_eq!(reply.as_ref(), count.to_be_bytes());
    }
    cluster.until("equal logs", is_level).await;
}

#[tokio::test]
async fn the_replicated_modes_refuse_plain_policies() {
    let data = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(1, data.path(), |builder| builder).await;
    let settings = CallSettings { policy: Policy::Fixed, ..settings() };
    let client = Client::connect_with(cluster.members[0].1, settings).await.unwrap();
    let error = client.call("x").await.unwrap_err();
    assert_eq!(error.outcome(), r2p2::Outcome::NotExecuted);
}
