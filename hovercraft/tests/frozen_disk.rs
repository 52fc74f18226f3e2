//! A leader whose file system is frozen gives way, and nothing is lost (P38). In `memory` it writes
//! nothing that anybody waits for, and stays.
//!
//! Needs root, and the tools `mkfs.ext4`, `mount` and `fsfreeze`; without them the test says so and
//! does nothing.

mod support;

use std::{
    fs::{self, File},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use hovercraft::{Client, NodeBuilder, NodeId, storage::Durability};
use support::{Cluster, PATIENCE, is_level};

const REPLICAS: u16 = 3;

const IMAGE_BYTES: u64 = 64 << 20;

/// Bodies of so many bytes: the smallest log is full after some tens of them.
const BODY_BYTES: usize = 1000;

/// So many calls are answered while the file system is frozen: more than a full log holds.
const CALLS: u64 = 500;

fn run(command: &str, arguments: &[&Path]) -> Result<(), String> {
    let output = Command::new(command).args(arguments).output();
    let output = output.map_err(|error| format!("{command}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

/// A file system in a file, thawed and unmounted when this is dropped.
struct FileSystem {
    mount: PathBuf,
}

impl FileSystem {
    fn new(directory: &Path, name: &str) -> Result<Self, String> {
        let (image, mount) = (directory.join(format!("{name}.image")), directory.join(name));
        let sized = File::create(&image).and_then(|file| file.set_len(IMAGE_BYTES));
        sized.and_then(|()| fs::create_dir(&mount)).map_err(|error| error.to_string())?;
        run("mkfs.ext4", &[Path::new("-q"), &image])?;
        run("mount", &[Path::new("-o"), Path::new("loop"), &image, &mount])?;
        Ok(Self { mount })
    }

    fn freeze(&self) {
        run("fsfreeze", &[Path::new("--freeze"), &self.mount]).expect("it is mounted");
    }

    fn thaw(&self) -> Result<(), String> {
        run("fsfreeze", &[Path::new("--unfreeze"), &self.mount])
    }
}

impl Drop for FileSystem {
    fn drop(&mut self) {
        // It is frozen only if the test failed in between.
        let _ = self.thaw();
        if let Err(problem) = run("umount", &[&self.mount]) {
            eprintln!("{problem}");
        }
    }
}

#[tokio::test]
async fn a_leader_whose_file_system_is_frozen_gives_way() {
    for (durability, log_bytes_max) in [
        (Durability::Sync, 64 << 20),
        (Durability::Interval, 1 << 16),
        (Durability::Memory, 1 << 16),
    ] {
        let data = tempfile::tempdir().unwrap();
        let mut disks = Vec::new();
        for id in 1..=REPLICAS {
            match FileSystem::new(data.path(), &format!("disk-{id}")) {
                Ok(disk) => disks.push(disk),
                Err(problem) => return println!("skipped: file systems need root ({problem})"),
            }
            // Beside what every file system has.
            let place = data.path().join(format!("disk-{id}/data"));
            fs::create_dir(&place).unwrap();
            symlink(place, data.path().join(id.to_string())).unwrap();
        }
        let built =
            |builder: NodeBuilder| builder.durability(durability).log_bytes_max(log_bytes_max);
        let mut cluster = Cluster::start(REPLICAS, data.path(), built).await;
        let gives_way = durability != Durability::Memory;
        let gap = freeze_leader(&cluster, &disks, gives_way).await;
        println!("{durability:?}: the longest time without an answer was {gap:?}");
        (0..usize::from(REPLICAS)).for_each(|position| cluster.stop(position));
    }
}

/// Returns the longest time without an answer.
async fn freeze_leader(cluster: &Cluster, disks: &[FileSystem], gives_way: bool) -> Duration {
    let client = Client::builder().members(cluster.addresses()).timeout(PATIENCE);
    let client = client.connect().await.unwrap();
    let mut count = 0_u64;
    let mut call = async || {
        count += 1;
        let reply = client.call(vec![b'x'; BODY_BYTES]).await.unwrap();
        assert_eq!(reply.as_ref(), count.to_be_bytes(), "nothing is lost, and nothing doubled");
    };
    for _ in 0..20 {
        call().await;
    }
    let leader = cluster.leader().await;
    let frozen = NodeId(leader as u16 + 1);
    disks[leader].freeze();
    let (mut answered, mut gap) = (Instant::now(), Duration::ZERO);
    for _ in 0..CALLS {
        call().await;
        gap = gap.max(answered.elapsed());
        answered = Instant::now();
    }
    if gives_way {
        cluster
            .until("another leader", |status| {
                status.iter().all(|node| {
                    let protocol = node.protocol.as_ref().expect("it is a member");
                    let stands = protocol.disk_stands_us > 0;
                    let follows_another = protocol.leader.is_some_and(|leader| leader != frozen);
                    follows_another && stands == (node.node == frozen)
                })
            })
            .await;
    }
    disks[leader].thaw().expect("it is frozen");
    for _ in 0..20 {
        call().await;
    }
    cluster.until("equal logs", is_level).await;
    gap
}
