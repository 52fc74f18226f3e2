//! A process that uses a durable store is killed at random moments: what it was told is on disk
//! must be there (P37), and nothing that it never wrote.

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use hovercraft::{
    ClusterLimits, Configuration, DigestKey, Entry, Identity, Incarnation, Index, Kind, NodeId,
    Payload, Request,
    storage::{self, Durability, HardState, Loaded, LogStore, SnapshotMeta, StoreKind},
};

const CYCLES: u64 = 12;

/// What the process does, step by step, the same for the process and for who checks it.
struct Script {
    random: u64,
    /// Counts the steps; the term of what a step appends and votes for.
    step: u64,
    /// The term of each entry, from index 1 on.
    terms: Vec<u64>,
    snapshot_index: Index,
}

enum Step {
    Append { first: Index, count: u64 },
    Sync,
    Snapshot { index: Index, term: u64 },
    Vote,
}

impl Script {
    /// Goes on from what is on disk.
    fn new(seed: u64, loaded: &Loaded) -> Self {
        // What was trimmed is never looked at again.
        let mut terms = vec![0; loaded.first_index as usize - 1];
        terms.extend(loaded.entries.iter().map(|entry| entry.term));
        Self {
            random: seed,
            step: 1_000 * seed,
            terms,
            snapshot_index: loaded.snapshot.as_ref().map_or(0, |meta| meta.index),
        }
    }

    fn between(&mut self, low: u64, high: u64) -> u64 {
        self.random = self
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        low + (self.random >> 33) % (high - low + 1)
    }

    fn next(&mut self) -> Step {
        self.step += 1;
        let last = self.terms.len() as u64;
        match self.between(0, 19) {
            0..12 => {
                let back = if self.between(0, 3) == 0 { self.between(0, 30) } else { 0 };
                let first = last.saturating_sub(back).max(self.snapshot_index) + 1;
                let count = self.between(1, 40);
                self.terms.truncate(first as usize - 1);
                self.terms.resize((first + count) as usize - 1, self.step);
                Step::Append { first, count }
            }
            12 if last > self.snapshot_index + 50 => {
                self.snapshot_index = last - 40;
                let term = self.terms[self.snapshot_index as usize - 1];
                Step::Snapshot { index: self.snapshot_index, term }
            }
            13..15 => Step::Vote,
            _ => Step::Sync,
        }
    }
}

/// The secret of the cluster that the log is of.
const DIGEST_KEY: DigestKey = DigestKey::new([1, 2]);

fn entry(index: Index, term: u64) -> Entry {
    let body = Bytes::from(vec![term as u8; (index % 700) as usize]);
    let identity = Identity::Session { client: 1, sequence: index };
    let request = Request::new(DIGEST_KEY, identity, 1, Kind::Write, body);
    Entry {
        term,
        log_time_us: index,
        session_delta_us: 0,
        payload: Payload::Request { replier: NodeId(1), request: Arc::new(request) },
        return_path: None,
    }
}

fn perform(store: &mut dyn LogStore, step: &Step, term: u64) {
    match *step {
        Step::Append { first, count } => {
            let entries: Vec<_> = (first..first + count).map(|index| entry(index, term)).collect();
            store.append(first, &entries).unwrap();
        }
        Step::Sync => store.sync().unwrap(),
        Step::Snapshot { index, term } => {
            let mut sink = store.snapshots().create().unwrap();
            sink.write_all(&vec![index as u8; 10_000]).unwrap();
            let (size_bytes, checksum) = sink.written();
            let configuration = Configuration::new(1, Vec::new(), ClusterLimits::default());
            let meta = SnapshotMeta {
                index,
                term,
                configuration,
                log_time_us: 0,
                size_bytes,
                checksum,
                digest_key: DIGEST_KEY,
            };
            // What it stands for is on disk before it, so that the log never ends below it.
            store.sync().unwrap();
            store.snapshots().publish(sink, &meta).unwrap();
            store.trim(index + 1).unwrap();
        }
        Step::Vote => store.save_hard_state(&hard_state(term)).unwrap(),
    }
}

fn hard_state(term: u64) -> HardState {
    HardState {
        term,
        vote: None,
        incarnation: Incarnation(1),
        birth: None,
        durability: Durability::Sync,
        clean: false,
    }
}

/// Runs the script until it is killed, and says which steps are on disk.
#[test]
#[ignore = "run by `cargo test -p hovercraft --test store_kill`: its tests start and kill it"]
fn victim() {
    let Some(directory) = std::env::var_os("STORE_KILL_DIRECTORY") else {
        return;
    };
    let seed = std::env::var("STORE_KILL_SEED").unwrap().parse().unwrap();
    let kind = match &*std::env::var("STORE_KILL_KIND").unwrap() {
        "sled" => StoreKind::Sled,
        _ => StoreKind::Segmented,
    };
    let mut store = open(Path::new(&directory), kind);
    let loaded = store.load().unwrap();
    if loaded.hard_state.is_none() {
        store.save_hard_state(&hard_state(0)).unwrap();
    }
    let mut script = Script::new(seed, &loaded);
    loop {
        let step = script.next();
        perform(&mut *store, &step, script.step);
        match step {
            Step::Append { .. } => {}
            Step::Sync | Step::Snapshot { .. } => println!("on disk: {}", script.step),
            Step::Vote => println!("voted: {}", script.step),
        }
    }
}

/// Lets the victim run for a while, kills it, and returns the last step that it said is on disk,
/// and the last vote.
fn run_and_kill(directory: &Path, kind: StoreKind, seed: u64) -> (u64, u64) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["victim", "--exact", "--ignored", "--nocapture"])
        .env("STORE_KILL_DIRECTORY", directory)
        .env("STORE_KILL_KIND", kind.to_string())
        .env("STORE_KILL_SEED", seed.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let (mut on_disk, mut voted) = (0, 0);
    let mut left = 1 + seed * 7 % 23;
    while let Some(Ok(line)) = lines.next() {
        if let Some((_, term)) = line.split_once("voted: ") {
            voted = term.parse().unwrap();
        } else if let Some((_, step)) = line.split_once("on disk: ") {
            on_disk = step.parse().unwrap();
            left = left.saturating_sub(1);
            if left == 0 {
                child.kill().unwrap();
            }
        }
    }
    let status = child.wait().unwrap();
    assert_eq!(status.code(), None, "the victim died by itself: {status}");
    (on_disk, voted)
}

/// Finds the step after which the log was as it was found, at or after `on_disk`.
fn check(mut script: Script, on_disk: u64, found: &Loaded) {
    const STEPS_AHEAD_MAX: u64 = 200;
    assert!(found.torn.is_none(), "nothing that was synced is lost");
    for (index, entry) in (found.first_index..).zip(&found.entries) {
        assert!(*entry == self::entry(index, entry.term), "entry {index} was never written");
    }
    let snapshot_index = found.snapshot.as_ref().map_or(0, |meta| meta.index);
    assert!(found.first_index <= snapshot_index + 1);
    let terms: Vec<_> = found.entries.iter().map(|entry| entry.term).collect();
    let mut tried = Vec::new();
    loop {
        let skipped = found.first_index as usize - 1;
        if script.step >= on_disk && script.terms.get(skipped..) == Some(&terms) {
            break;
        }
        if script.step >= on_disk {
            tried.push((script.step, script.terms.len()));
        }
        assert!(
            script.step < on_disk + STEPS_AHEAD_MAX,
            "entries {}..{} are not what any step from {on_disk} on left: {tried:?}",
            found.first_index,
            skipped + 1 + terms.len(),
        );
        script.next();
    }
    // A snapshot is on disk at once, so it may be ahead of the log.
    assert!(snapshot_index >= script.snapshot_index, "the snapshot is lost");
}

fn open(directory: &Path, kind: StoreKind) -> Box<dyn LogStore> {
    storage::open(directory, Durability::Sync, kind).unwrap()
}

/// A victim that is being forked holds, until it runs, what this process has locked.
static ONE_STORE: Mutex<()> = Mutex::new(());

fn survive_kills(kind: StoreKind) {
    let _alone = ONE_STORE.lock().unwrap_or_else(PoisonError::into_inner);
    let root = tempfile::tempdir().unwrap();
    for seed in 1..=CYCLES {
        let before = open(root.path(), kind).load().unwrap();
        let script = Script::new(seed, &before);
        let (on_disk, voted) = run_and_kill(root.path(), kind, seed);
        let after = open(root.path(), kind).load().unwrap();
        check(script, on_disk, &after);
        let term = after.hard_state.map_or(0, |state| state.term);
        assert!(term >= voted, "the vote in term {voted} is lost: {term}");
    }
}

#[test]
fn what_is_said_to_be_on_disk_survives_a_kill() {
    survive_kills(StoreKind::Segmented);
}

#[test]
fn what_sled_says_is_on_disk_survives_a_kill() {
    survive_kills(StoreKind::Sled);
}
