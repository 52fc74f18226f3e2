//! What durable appends cost: `cargo run --release -p hovercraft --example store_bench [DIRECTORY]`.
//!
//! Appends entries of 100 bytes to the durable store, in batches, each synced; prints the time and
//! the CPU of the process per entry, beside those of a bare file that is appended to and synced:
//! the floor on this disk. Then the same with a log that is trimmed, to see what the disk keeps.

use std::{fs, io::Write, path::Path, sync::Arc, time::Instant};

use bytes::Bytes;
use hovercraft::{
    Entry, Identity, Incarnation, Kind, NodeId, Payload, Request,
    storage::{Durability, HardState, LogStore, SledStore, SnapshotMeta},
};
use rustix::time::{ClockId, clock_gettime};

const BODY_BYTES: usize = 100;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = match std::env::args_os().nth(1) {
        Some(directory) => tempfile::tempdir_in(directory)?,
        None => tempfile::tempdir_in(".")?,
    };
    println!("µs per entry of {BODY_BYTES} bytes   wall    CPU");
    for (batch, count) in [(1, 5_000), (32, 100_000), (256, 500_000)] {
        report(&format!("bare file, batch {batch}"), count, || {
            append_to_file(&root.path().join("file"), batch, count)
        })?;
        let directory = root.path().join(format!("sled-{batch}"));
        report(&format!("sled, batch {batch}"), count, || {
            append_to_sled(&directory, batch, count)
        })?;
        let disk_bytes = size_bytes(&directory)?;
        let opened = Instant::now();
        let mut store = SledStore::open(&directory)?;
        let loaded = store.load()?.entries.len() as u64;
        assert_eq!(loaded, count);
        println!(
            "    disk {} MB; opened again in {} ms",
            disk_bytes >> 20,
            opened.elapsed().as_millis()
        );
    }
    for (batch, count) in [(1, 20_000), (256, 2_000_000)] {
        let directory = root.path().join(format!("trimmed-{batch}"));
        report(&format!("sled, trimmed to 10,000, batch {batch}"), count, || {
            append_and_trim(&directory, batch, count)
        })?;
        println!("    disk {} MB", size_bytes(&directory)? >> 20);
    }
    Ok(())
}

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn report(what: &str, count: u64, run: impl FnOnce() -> Outcome) -> Outcome {
    let (wall, cpu) = (Instant::now(), cpu_us());
    run()?;
    let wall = wall.elapsed().as_secs_f64() * 1e6 / count as f64;
    let cpu = (cpu_us() - cpu) / count as f64;
    println!("{what:36} {wall:8.2} {cpu:8.2}");
    Ok(())
}

/// What all threads of this process have used so far.
fn cpu_us() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
}

fn append_to_file(path: &Path, batch: u64, count: u64) -> Outcome {
    let mut file = fs::File::create(path)?;
    let bytes = vec![7; BODY_BYTES * batch as usize];
    for _ in 0..count / batch {
        file.write_all(&bytes)?;
        file.sync_data()?;
    }
    Ok(())
}

fn append_to_sled(directory: &Path, batch: u64, count: u64) -> Outcome {
    let mut store = opened(directory)?;
    let entries = entries(batch);
    for first in (1..=count).step_by(batch as usize) {
        store.append(first, &entries[..batch.min(count + 1 - first) as usize])?;
        store.sync()?;
    }
    Ok(())
}

fn append_and_trim(directory: &Path, batch: u64, count: u64) -> Outcome {
    let mut store = opened(directory)?;
    let snapshots = store.snapshots();
    let entries = entries(batch);
    for first in (1..=count).step_by(batch as usize) {
        store.append(first, &entries)?;
        store.sync()?;
        let next = first + batch;
        if next % 10_240 < batch && next > 10_000 {
            let sink = snapshots.create()?;
            let meta = SnapshotMeta {
                index: next - 10_000,
                term: 1,
                configuration: hovercraft::Configuration {
                    id: 1,
                    members: Vec::new(),
                    limits: hovercraft::ClusterLimits::default(),
                },
                log_time_us: 0,
                size_bytes: 0,
                checksum: 0,
            };
            snapshots.publish(sink, &meta)?;
            store.trim(meta.index + 1)?;
        }
    }
    Ok(())
}

fn opened(directory: &Path) -> Result<SledStore, Box<dyn std::error::Error>> {
    let mut store = SledStore::open(directory)?;
    store.load()?;
    store.save_hard_state(&HardState {
        term: 1,
        vote: None,
        incarnation: Incarnation(1),
        birth: None,
        durability: Durability::Sync,
        clean: false,
    })?;
    Ok(store)
}

fn entries(count: u64) -> Vec<Entry> {
    (1..=count)
        .map(|sequence| {
            let identity = Identity::Session { client: 1, sequence };
            let body = Bytes::from(vec![7; BODY_BYTES]);
            let request = Arc::new(Request::new(identity, 1, Kind::Write, body));
            Entry {
                term: 1,
                log_time_us: sequence,
                session_delta_us: 1,
                payload: Payload::Request { replier: NodeId(1), request },
                return_path: None,
            }
        })
        .collect()
}

fn size_bytes(path: &Path) -> std::io::Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        sum += if metadata.is_dir() { size_bytes(&entry.path())? } else { metadata.len() };
    }
    Ok(sum)
}
