//! Replicas as processes under load, for tests that kill them.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::{
    path::{Path, PathBuf},
    sync::atomic::Ordering,
    time::Duration,
};

use hovercraft::{Client, NodeId, admin::NodeStatus};
use hovercraft_apps::{
    demo::{
        replicas::Replicas,
        workload::{Shared, Workload, read_everything},
    },
    kv::Kv,
};
use hovercraft_jepsen::{History, versions::check};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

/// What a healthy cluster does is done within this time, however slow the machine is.
pub(crate) const PATIENCE: Duration = Duration::from_mins(2);

pub(crate) fn hovercraft() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_hovercraft"))
}

/// Three replicas of the kv service with sync durability, and a client of theirs.
pub(crate) struct Cluster {
    pub(crate) replicas: Replicas,
    pub(crate) client: Client,
    directory: TempDir,
}

impl Cluster {
    pub(crate) async fn start(settings: impl Fn(NodeId) -> String) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let settings = |id| format!("durability = \"sync\"\n{}", settings(id));
        let replicas = Replicas::prepare(&hovercraft(), directory.path(), 3, settings);
        let mut replicas = replicas.expect("free ports");
        replicas.start_and_initialise().await.expect("three replicas elect a leader");
        let members = replicas.members().into_iter().map(|(_, address)| address);
        let client = Client::builder().members(members).timeout(PATIENCE);
        let client = client.connect().await.expect("a cluster with a leader opens a session");
        Self { replicas, client, directory }
    }

    pub(crate) fn kv(&self) -> Kv<Client> {
        Kv::new(self.client.clone())
    }

    /// Starts callers that go on until [`Self::stop_and_check`].
    pub(crate) fn load(&self, callers: u32) -> Workload {
        Workload::start(&[self.kv()], callers, 2 * PATIENCE)
    }

    /// Ends the load, waits until all replicas have executed all of it, and checks it.
    pub(crate) async fn stop_and_check(&self, workload: Workload) {
        let shared = workload.shared.clone();
        let history = workload.stop().await;
        self.replicas.level(PATIENCE).await.expect("with all replicas up they become level");
        self.check(history, &shared).await;
    }

    /// Checks that everything is there once, and that nobody saw anything go back.
    pub(crate) async fn check(&self, mut history: History, shared: &Shared) {
        let state = read_everything(&self.kv(), 6, shared, &mut history).await;
        let findings = check(&history, &state.expect("the cluster can be read"));
        assert!(findings.is_clean(), "{findings:#?}; {}", self.logs());
    }

    /// Waits until a condition holds for the status of the replica at a position.
    pub(crate) async fn until(
        &self,
        what: &str,
        position: usize,
        condition: impl Fn(&NodeStatus) -> bool,
    ) {
        let (id, _) = self.replicas.members()[position];
        let come = until(async || {
            let status = self.replicas.status().await;
            status.iter().find(|status| status.node == id).is_some_and(&condition)
        });
        let status = match timeout(PATIENCE, come).await {
            Ok(()) => return,
            Err(_) => self.replicas.status().await,
        };
        panic!("{what} did not come about: {status:#?}; {}", self.logs());
    }

    /// Waits until the callers have been answered `count` times more.
    pub(crate) async fn progress(&self, workload: &Workload, count: u64) {
        let acknowledged = || workload.shared.acknowledged.load(Ordering::Relaxed);
        let enough = acknowledged() + count;
        if timeout(PATIENCE, until(async || acknowledged() >= enough)).await.is_err() {
            let status = self.replicas.status().await;
            panic!("no service: {status:#?}; {}", self.logs());
        }
    }

    /// The highest index that is committed.
    pub(crate) async fn commit(&self) -> u64 {
        let status = self.replicas.status().await;
        let commits = status.iter().filter_map(|status| Some(status.protocol.as_ref()?.commit));
        commits.max().unwrap_or(0)
    }

    /// The last lines that the replicas logged.
    fn logs(&self) -> String {
        let log = |id: &NodeId| {
            let path = self.directory.path().join(format!("replica-{id}/log.txt"));
            let text = std::fs::read_to_string(path).unwrap_or_default();
            let last: Vec<_> = text.lines().rev().take(12).collect();
            let last: Vec<_> = last.into_iter().rev().collect();
            format!("\nreplica {id}:\n{}", last.join("\n"))
        };
        self.replicas.members().iter().map(|(id, _)| log(id)).collect()
    }
}

/// Asks again and again, with time for others between, until the answer is yes.
pub(crate) async fn until(mut condition: impl AsyncFnMut() -> bool) {
    while !condition().await {
        sleep(Duration::from_millis(2)).await;
    }
}

/// The processes that have `path` on their command lines.
pub(crate) fn processes_with(path: &Path) -> Vec<u32> {
    let path = path.to_str().expect("a plain name");
    let processes = std::fs::read_dir("/proc").expect("a Linux");
    let numbers = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    numbers
        .filter(|number| {
            let line = std::fs::read_to_string(format!("/proc/{number}/cmdline"));
            line.is_ok_and(|line| line.contains(path))
        })
        .collect()
}
