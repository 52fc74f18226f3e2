//! What durable appends cost, store beside store, in one run:
//! `cargo bench -p hovercraft-bench --bench store [-- --directory DIR --json FILE]`.
//!
//! Entries of 100 bytes are appended in batches, each batch synced. The floor is a bare file that
//! takes as many bytes in as many writes and syncs: once growing, once over bytes that are there.
//! Then a log of many entries is opened again, and trimmed to its last thousand.
//!
//! The disk's speed drifts: compare within a run, and look at the floor first.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Instant,
};

use bytes::Bytes;
use clap::Parser;
use hovercraft::{
    ClusterLimits, Configuration, DigestKey, Entry, Identity, Incarnation, Index, Kind, NodeId,
    Payload, Request,
    storage::{
        Durability, HardState, LogStore, MemoryStore, SegmentedStore, SledStore, SnapshotMeta,
        StoreError,
    },
};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

const BODY_BYTES: usize = 100;

/// What an entry takes in a segment, so that the floor moves as many bytes.
const STORED_BYTES: usize = 28 + 26 + BODY_BYTES;

type Failure = Box<dyn std::error::Error>;

/// What durable appends cost, store beside store.
#[derive(Debug, Parser)]
struct Arguments {
    /// Where to write: a directory on the disk in question. By default the present one.
    #[arg(long, default_value = ".")]
    directory: PathBuf,
    /// How many entries the log has that is opened again and trimmed; none if 0.
    #[arg(long, default_value_t = 1_000_000)]
    entries: u64,
    /// Each figure is the median of so many runs.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Where the figures are written as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Only what has one of these in its name: floor, segmented, sled, memory.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// What cargo passes.
    #[arg(long, hide = true)]
    bench: bool,
}

/// A figure of one store.
#[derive(Debug, Serialize)]
struct Row {
    store: &'static str,
    what: String,
    /// Microseconds an entry, or milliseconds in all, as `what` says.
    wall: f64,
    cpu: Option<f64>,
}

/// What is measured.
#[derive(Clone, Copy)]
enum Subject {
    /// A bare file, which grows or is written over.
    File {
        grows: bool,
    },
    Store(fn(&Path) -> Result<Box<dyn LogStore>, StoreError>),
}

const SUBJECTS: [(&str, Subject); 5] = [
    ("floor: a file that grows", Subject::File { grows: true }),
    ("floor: a file written over", Subject::File { grows: false }),
    ("segmented", Subject::Store(|path| Ok(Box::new(SegmentedStore::open(path)?)))),
    ("sled", Subject::Store(|path| Ok(Box::new(SledStore::open(path)?)))),
    (
        "memory (keeps no log on disk)",
        Subject::Store(|path| Ok(Box::new(MemoryStore::open(path)?))),
    ),
];

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help is no error; a usage error is 3 in every binary here.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 3 } else { 0 });
        }
    };
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("store: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    let mut rows = Vec::new();
    println!("{:<32} {:<40} {:>9} {:>9}", "store", "what", "wall", "CPU");
    for (batch, count) in [(1, 2_000), (32, 64_000), (256, 512_000)] {
        // In turns, so that what slows the disk down for a while slows all of them down.
        let mut runs: Vec<_> = chosen(arguments).map(|_| Vec::new()).collect();
        for _ in 0..arguments.runs {
            for ((_, subject), runs) in chosen(arguments).zip(&mut runs) {
                let root = tempfile::tempdir_in(&arguments.directory)?;
                runs.push(append(root.path(), subject, batch, count)?);
            }
        }
        for ((store, _), runs) in chosen(arguments).zip(runs) {
            report(&mut rows, store, format!("batch {batch}, us an entry"), runs);
        }
    }
    for (store, subject) in chosen(arguments) {
        if let Subject::Store(open) = subject
            && arguments.entries > 0
        {
            let root = tempfile::tempdir_in(&arguments.directory)?;
            reopen_and_trim(arguments, root.path(), store, open, &mut rows)?;
        }
    }
    if let Some(path) = &arguments.json {
        fs::write(path, serde_json::to_string_pretty(&rows)? + "\n")?;
    }
    Ok(())
}

fn chosen(arguments: &Arguments) -> impl Iterator<Item = (&'static str, Subject)> {
    let only = &arguments.only;
    let is_chosen = |store: &str| only.is_empty() || only.iter().any(|part| store.contains(part));
    SUBJECTS.into_iter().filter(move |(store, _)| is_chosen(store))
}

/// Wall time and CPU, of which the median by wall time counts.
fn report(
    rows: &mut Vec<Row>,
    store: &'static str,
    what: String,
    mut runs: Vec<(f64, Option<f64>)>,
) {
    runs.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (wall, cpu) = runs[runs.len() / 2];
    let shown = cpu.map_or("-".to_owned(), |cpu| format!("{cpu:.2}"));
    println!("{store:<32} {what:<40} {wall:>9.2} {shown:>9}");
    rows.push(Row { store, what, wall, cpu });
}

/// Microseconds an entry: of wall time, and of CPU of all threads.
fn append(
    root: &Path,
    subject: Subject,
    batch: usize,
    count: usize,
) -> Result<(f64, Option<f64>), Failure> {
    let rounds = count / batch;
    let mut step: Box<dyn FnMut(usize) -> Result<(), Failure>> = match subject {
        Subject::File { grows } => {
            let file = File::create(root.join("file"))?;
            let bytes = vec![7; STORED_BYTES * batch];
            if !grows {
                file.write_all_at(&vec![1; bytes.len() * rounds], 0)?;
                file.sync_all()?;
            }
            Box::new(move |round| {
                file.write_all_at(&bytes, (round * bytes.len()) as u64)?;
                Ok(file.sync_data()?)
            })
        }
        Subject::Store(open) => {
            let mut store = begun(open, root)?;
            let entries = entries(batch as u64);
            Box::new(move |round| {
                store.append((round * batch) as Index + 1, &entries)?;
                Ok(store.sync()?)
            })
        }
    };
    let (started, cpu) = (Instant::now(), cpu_us());
    for round in 0..rounds {
        step(round)?;
    }
    let cpu = (cpu_us() - cpu) / count as f64;
    Ok((started.elapsed().as_secs_f64() * 1e6 / count as f64, Some(cpu)))
}

fn reopen_and_trim(
    arguments: &Arguments,
    root: &Path,
    name: &'static str,
    open: fn(&Path) -> Result<Box<dyn LogStore>, StoreError>,
    rows: &mut Vec<Row>,
) -> Result<(), Failure> {
    const BATCH: u64 = 1_000;
    let count = arguments.entries / BATCH * BATCH;
    let mut store = begun(open, root)?;
    let entries = entries(BATCH);
    let started = Instant::now();
    for first in (1..=count).step_by(BATCH as usize) {
        store.append(first, &entries)?;
        store.sync()?;
    }
    let load = (started.elapsed().as_secs_f64() * 1e3, None);
    report(rows, name, format!("{count} entries in batches of 1000, ms"), vec![load]);
    report(rows, name, "its size on disk, MB".to_owned(), vec![(size_mb(root)?, None)]);
    store.save_hard_state(&hard_state(true))?;
    drop(store);

    let mut runs = Vec::new();
    for _ in 0..arguments.runs {
        let (started, cpu) = (Instant::now(), cpu_us());
        let mut store = open(root)?;
        let loaded = store.load()?;
        runs.push((started.elapsed().as_secs_f64() * 1e3, Some((cpu_us() - cpu) / 1e3)));
        if loaded.entries.len() as u64 != count {
            return Err(
                format!("{name} has lost entries: {} are left", loaded.entries.len()).into()
            );
        }
    }
    report(rows, name, "opened again, ms".to_owned(), runs);

    let mut store = open(root)?;
    store.load()?;
    publish(&*store, count)?;
    let (started, cpu) = (Instant::now(), cpu_us());
    store.trim(count - 999)?;
    let trimmed = (started.elapsed().as_secs_f64() * 1e3, Some((cpu_us() - cpu) / 1e3));
    report(rows, name, "trimmed to the last 1000, ms".to_owned(), vec![trimmed]);
    let started = Instant::now();
    for round in 0..100 {
        store.append(count + 1 + round, &entries[..1])?;
        store.sync()?;
    }
    let after = (started.elapsed().as_secs_f64() * 1e4, None);
    report(rows, name, "100 appends after that, us each".to_owned(), vec![after]);
    report(rows, name, "its size on disk then, MB".to_owned(), vec![(size_mb(root)?, None)]);
    Ok(())
}

/// A new store, with what a replica saves before it appends.
fn begun(
    open: fn(&Path) -> Result<Box<dyn LogStore>, StoreError>,
    root: &Path,
) -> Result<Box<dyn LogStore>, Failure> {
    let mut store = open(root)?;
    store.load()?;
    store.save_hard_state(&hard_state(false))?;
    Ok(store)
}

/// Key of no cluster.
const DIGEST_KEY: DigestKey = DigestKey::new([1, 2]);

fn hard_state(clean: bool) -> HardState {
    HardState {
        term: 1,
        vote: None,
        incarnation: Incarnation(1),
        birth: None,
        durability: Durability::Sync,
        clean,
    }
}

fn publish(store: &dyn LogStore, index: Index) -> Result<(), Failure> {
    let snapshots = store.snapshots();
    let sink = snapshots.create()?;
    let (size_bytes, checksum) = sink.written();
    let configuration = Configuration::new(1, Vec::new(), ClusterLimits::default());
    let meta = SnapshotMeta {
        index,
        term: 1,
        configuration,
        log_time_us: 0,
        size_bytes,
        checksum,
        digest_key: DIGEST_KEY,
    };
    Ok(snapshots.publish(sink, &meta)?)
}

fn entries(count: u64) -> Vec<Entry> {
    let entry = |sequence| {
        let identity = Identity::Session { client: 1, sequence };
        let body = Bytes::from(vec![7; BODY_BYTES]);
        let request = Arc::new(Request::new(DIGEST_KEY, identity, 1, Kind::Write, body));
        Entry {
            term: 1,
            log_time_us: sequence,
            session_delta_us: 1,
            payload: Payload::Request { replier: NodeId(1), request },
            return_path: None,
        }
    };
    (1..=count).map(entry).collect()
}

/// What all threads of this process have used so far.
fn cpu_us() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
}

fn size_mb(path: &Path) -> std::io::Result<f64> {
    let mut sum = 0.0;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        sum +=
            if metadata.is_dir() { size_mb(&entry.path())? } else { metadata.len() as f64 / 1e6 };
    }
    Ok(sum)
}
