//! Three replicas on equal small file systems that become full: nobody exits, a leader is elected,
//! and the cluster answers again when there is room (P38).
//!
//! The file systems are of type tmpfs, which only root may mount; else the tests are left out.

mod support;

use std::{
    fs,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use hovercraft::{CallError, Client, NodeBuilder};
use support::{Cluster, PATIENCE};

const BODY_BYTES: usize = 64 << 10;

/// Three file systems of a few mebibytes, at the directories that a cluster gives its replicas.
struct SmallDisks {
    root: tempfile::TempDir,
    mounted: Vec<PathBuf>,
}

impl SmallDisks {
    /// None if they cannot be mounted here.
    fn mount(mebibytes: u32) -> Option<Self> {
        let mut disks = Self { root: tempfile::tempdir().unwrap(), mounted: Vec::new() };
        for number in 1..=3 {
            let path = disks.root.path().join(number.to_string());
            fs::create_dir(&path).unwrap();
            let size = format!("size={mebibytes}m");
            let arguments = ["-t", "tmpfs", "-o", &size, "none", path.to_str().unwrap()];
            if !Command::new("mount").args(arguments).status().is_ok_and(|status| status.success())
            {
                println!("left out: small file systems cannot be mounted here");
                return None;
            }
            disks.mounted.push(path);
        }
        Some(disks)
    }

    /// Uses up what is left, but for less than a page.
    fn fill(&self) {
        for path in &self.mounted {
            let mut bytes = 1 << 20;
            while bytes >= 4096 {
                let name = (0..).map(|number| path.join(format!("filler-{bytes}-{number}")));
                let written = name
                    .take(1000)
                    .find(|name| !name.exists() && fs::write(name, vec![7; bytes]).is_err());
                if let Some(name) = written {
                    let _ = fs::remove_file(name);
                }
                bytes /= 2;
            }
        }
    }

    /// Gives back what [`Self::fill`] has used up.
    fn empty(&self) {
        for path in &self.mounted {
            for entry in fs::read_dir(path).unwrap().map(Result::unwrap) {
                if entry.file_name().to_string_lossy().starts_with("filler-") {
                    fs::remove_file(entry.path()).unwrap();
                }
            }
        }
    }

    fn grow(&self, mebibytes: u32) {
        for path in &self.mounted {
            let size = format!("remount,size={mebibytes}m");
            let status = Command::new("mount").args(["-o", &size, path.to_str().unwrap()]).status();
            assert!(status.unwrap().success(), "{} cannot grow", path.display());
        }
    }
}

impl Drop for SmallDisks {
    fn drop(&mut self) {
        for path in &self.mounted {
            let _ = Command::new("umount").arg("-l").arg(path).status();
        }
    }
}

async fn client(cluster: &Cluster, timeout: Duration) -> Client {
    let members = Client::builder().members(cluster.addresses());
    members.timeout(timeout).connect().await.unwrap()
}

/// Writes until nothing more is admitted; returns how many writes were acknowledged.
async fn write_until_full(cluster: &Cluster) -> u64 {
    // It says soon that nothing is admitted.
    let client = client(cluster, Duration::from_secs(2)).await;
    let (since, mut acknowledged) = (Instant::now(), 0);
    loop {
        assert!(since.elapsed() < PATIENCE, "{acknowledged} writes, and the disks are not full");
        match client.call(vec![7; BODY_BYTES]).await {
            Ok(_) => acknowledged += 1,
            Err(CallError::NoRoom { .. }) => return acknowledged,
            // A replica may need longer than the client has patience, on a busy machine.
            Err(CallError::TimedOut(_)) => {}
            Err(error) => panic!("after {acknowledged} writes: {error}"),
        }
    }
}

/// The leader goes and comes back while all disks are full; nobody has ended.
async fn elect(cluster: &mut Cluster) {
    let before = cluster.leader().await;
    cluster.stop(before);
    let after = cluster.leader().await;
    assert_ne!(before, after);
    cluster.restart(before);
    cluster.leader().await;
    assert!(cluster.nodes.iter().flatten().all(|node| !node.has_ended()), "a replica has ended");
}

/// There is room again: the next write is answered, and everything that was acknowledged is there.
async fn goes_on(cluster: &Cluster, acknowledged: u64) {
    let (since, client) = (Instant::now(), client(cluster, PATIENCE).await);
    client.call(b"there is room".to_vec()).await.unwrap();
    println!("answered {:?} after there was room", since.elapsed());
    let count = client.query(Vec::new()).await.unwrap();
    let count = u64::from_be_bytes(count[..8].try_into().unwrap());
    assert!(count > acknowledged, "{count} commands are there, {acknowledged} were acknowledged");
    assert!(cluster.nodes.iter().flatten().all(|node| !node.has_ended()), "a replica has ended");
}

/// The log finds no room for its next segment.
#[tokio::test]
async fn a_log_that_finds_the_disk_full_waits_for_room() {
    let Some(disks) = SmallDisks::mount(80) else { return };
    let mut cluster = Cluster::start(3, disks.root.path(), |builder| builder).await;
    client(&cluster, PATIENCE).await.call(b"before".to_vec()).await.unwrap();
    disks.fill();
    let acknowledged = write_until_full(&cluster).await;
    println!("{acknowledged} writes found the room that was reserved");
    elect(&mut cluster).await;
    assert_eq!(write_until_full(&cluster).await, 0, "the new leader has no more room");
    disks.empty();
    goes_on(&cluster, acknowledged).await;
}

/// The disks have no room for a snapshot beside the one before.
#[tokio::test]
async fn a_snapshot_that_finds_the_disk_full_is_put_off() {
    // Two segments of the log, and less than two snapshots beside them.
    let Some(disks) = SmallDisks::mount(44) else { return };
    let with = |builder: NodeBuilder| builder.log_bytes_max(2 << 20);
    let mut cluster = Cluster::start(3, disks.root.path(), with).await;
    let acknowledged = write_until_full(&cluster).await;
    let postponed: u64 =
        cluster.status().await.iter().map(|node| node.counters.snapshots_postponed).sum();
    println!("{acknowledged} writes, and {postponed} snapshots put off");
    assert!(postponed > 0);
    elect(&mut cluster).await;
    disks.grow(200);
    goes_on(&cluster, acknowledged).await;
}
