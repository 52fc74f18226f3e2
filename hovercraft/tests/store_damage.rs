//! What the durable store does when its files are damaged or lost: never silently the wrong thing.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use hovercraft::{
    ClusterLimits, Configuration, DigestKey, Entry, Identity, Incarnation, Index, Kind, NodeId,
    Payload, Request,
    storage::{
        Durability, HardState, Loaded, LogStore, MemoryStore, SledStore, SnapshotMeta, StoreError,
    },
};

/// The secret of the cluster that the log is of.
const DIGEST_KEY: DigestKey = DigestKey::new([1, 2]);

/// An entry that says where it belongs, so that one in another place is seen.
fn entry(index: Index, term: u64) -> Entry {
    let body = Bytes::from(format!("entry {index} of term {term} ").repeat(20));
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

fn entries(first: Index, count: u64, term: u64) -> Vec<Entry> {
    (first..first + count).map(|index| entry(index, term)).collect()
}

fn hard_state() -> HardState {
    HardState {
        term: 7,
        vote: Some(NodeId(2)),
        incarnation: Incarnation(99),
        birth: None,
        durability: Durability::Sync,
        clean: false,
    }
}

fn opened(directory: &Path) -> (SledStore, Loaded) {
    let mut store = SledStore::open(directory).unwrap();
    let loaded = store.load().unwrap();
    (store, loaded)
}

fn publish(store: &dyn LogStore, index: Index) {
    let mut sink = store.snapshots().create().unwrap();
    sink.write_all(&vec![index as u8; 3_000]).unwrap();
    let (size_bytes, checksum) = sink.written();
    let configuration = Configuration::new(1, Vec::new(), ClusterLimits::default());
    let meta = SnapshotMeta {
        index,
        term: 1,
        configuration,
        log_time_us: 5,
        size_bytes,
        checksum,
        digest_key: DIGEST_KEY,
    };
    store.snapshots().publish(sink, &meta).unwrap();
}

/// A store with a snapshot at 100 and a log of 1..=1300, parts of which were replaced, all synced.
fn fill(directory: &Path) {
    let (mut store, _) = opened(directory);
    store.save_hard_state(&hard_state()).unwrap();
    store.append(1, &entries(1, 400, 1)).unwrap();
    store.sync().unwrap();
    publish(&store, 100);
    store.append(350, &entries(350, 400, 2)).unwrap();
    store.sync().unwrap();
    for first in (750..1_000).step_by(5) {
        store.append(first, &entries(first, 5, 3)).unwrap();
        store.sync().unwrap();
    }
    store.append(900, &entries(900, 401, 4)).unwrap();
    store.sync().unwrap();
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for item in fs::read_dir(from).unwrap() {
        let item = item.unwrap();
        let target = to.join(item.file_name());
        if item.path().is_dir() {
            copy(&item.path(), &target);
        } else {
            fs::copy(item.path(), target).unwrap();
        }
    }
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for item in fs::read_dir(directory).unwrap() {
        let path = item.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if fs::metadata(&path).unwrap().len() > 0 {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// What may come of damage: an error, the same as before, or a torn prefix.
fn check(what: &str, found: Result<Loaded, StoreError>, whole: &Loaded) -> &'static str {
    let Ok(found) = found else {
        return "an error";
    };
    assert_eq!(found.hard_state, whole.hard_state, "{what}: the hard state is wrong");
    assert_eq!(found.snapshot, whole.snapshot, "{what}: the snapshot is wrong");
    if found.torn.is_none() {
        assert_eq!(found.first_index, whole.first_index, "{what}: the log begins elsewhere");
        assert_eq!(found.entries.len(), whole.entries.len(), "{what}: lost entries");
        assert!(found.entries == whole.entries, "{what}: other entries");
        return "nothing";
    }
    // The last writes are lost, and what they replaced is there again.
    for (index, found) in (found.first_index..).zip(&found.entries) {
        assert!((1..=4).any(|term| *found == entry(index, term)), "{what}: entry {index}");
    }
    "a torn tail"
}

fn reload(directory: &Path) -> Result<Loaded, StoreError> {
    SledStore::open(directory)?.load()
}

/// P38, P40: a flipped bit or a cut anywhere is an error, a torn tail, or harmless.
#[test]
fn damage_is_never_silently_wrong() {
    let root = tempfile::tempdir().unwrap();
    let good = root.path().join("good");
    fill(&good);
    let whole = reload(&good).unwrap();
    assert_eq!(whole.entries.len(), 1_300);
    assert!(whole.torn.is_none());

    let mut counts = std::collections::BTreeMap::new();
    let mut random = 1_u64;
    let mut between = |below: u64| {
        random =
            random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % below
    };
    let all = files(&good);
    for round in 0..90 {
        // sled's file is where most of the bytes are: every other round is spent on it.
        let file = if round % 2 == 0 {
            all.iter().find(|path| path.ends_with("sled/db")).unwrap()
        } else {
            &all[between(all.len() as u64) as usize]
        };
        let bad = root.path().join("bad");
        copy(&good, &bad);
        let name = file.strip_prefix(&good).unwrap();
        let mut bytes = fs::read(bad.join(name)).unwrap();
        let at = between(bytes.len() as u64) as usize;
        let bit = between(8);
        let what = if round % 3 == 0 {
            bytes.truncate(at);
            format!("{} cut at {at}", name.display())
        } else {
            bytes[at] ^= 1 << bit;
            format!("bit {bit} of byte {at} of {}", name.display())
        };
        fs::write(bad.join(name), bytes).unwrap();
        *counts.entry(check(&what, reload(&bad), &whole)).or_insert(0) += 1;
        fs::remove_dir_all(&bad).unwrap();
    }
    println!("damage gave {counts:?}");
    assert!(counts.len() >= 2, "the damage hit nothing that matters: {counts:?}");
}

/// P38: entries that were synced and are gone from the tail make the replica recover.
#[test]
fn a_tail_that_was_synced_and_is_gone_is_torn() {
    let root = tempfile::tempdir().unwrap();
    let (live, old) = (root.path().join("live"), root.path().join("old"));
    let (mut store, _) = opened(&live);
    store.save_hard_state(&hard_state()).unwrap();
    store.append(1, &entries(1, 400, 1)).unwrap();
    store.sync().unwrap();
    copy(&live, &old);
    store.append(401, &entries(401, 1, 1)).unwrap();
    store.sync().unwrap();
    drop(store);
    assert_eq!(opened(&live).1.entries.len(), 401);

    fs::remove_dir_all(live.join("sled")).unwrap();
    fs::rename(old.join("sled"), live.join("sled")).unwrap();
    // A crash right after the start must not make the replica forget.
    for _ in 0..2 {
        let (_, loaded) = opened(&live);
        assert!(loaded.torn.is_some());
        assert_eq!(loaded.entries, entries(1, 400, 1));
    }
}

/// P38: where it cannot be told whether the tail is whole, the replica recovers.
#[test]
fn a_lost_mark_or_a_lost_log_is_torn() {
    let root = tempfile::tempdir().unwrap();
    for lost in ["synced", "sled", "both"] {
        let directory = root.path().join(lost);
        {
            let (mut store, _) = opened(&directory);
            store.save_hard_state(&hard_state()).unwrap();
            store.append(1, &entries(1, 10, 1)).unwrap();
            store.sync().unwrap();
        }
        if lost != "sled" {
            fs::remove_file(directory.join("synced")).unwrap();
        }
        if lost != "synced" {
            fs::remove_dir_all(directory.join("sled")).unwrap();
        }
        for _ in 0..2 {
            let (_, loaded) = opened(&directory);
            assert!(loaded.torn.is_some(), "{lost} is lost");
            assert_eq!(loaded.entries.is_empty(), lost != "synced");
        }
        let (mut store, loaded) = opened(&directory);
        let next = loaded.first_index + loaded.entries.len() as u64;
        store.save_hard_state(&HardState { clean: true, ..hard_state() }).unwrap();
        store.append(next, &entries(next, 10, 2)).unwrap();
        store.sync().unwrap();
        drop(store);
        let (_, loaded) = opened(&directory);
        assert!(loaded.torn.is_none(), "{lost} was lost, and it is noted");
        assert_eq!(loaded.first_index + loaded.entries.len() as u64, next + 10);
    }
}

/// The same behind a snapshot: the replica recovers from there.
#[test]
fn a_log_lost_behind_a_snapshot_is_torn() {
    let root = tempfile::tempdir().unwrap();
    fill(root.path());
    fs::remove_dir_all(root.path().join("sled")).unwrap();
    for _ in 0..2 {
        let (_, loaded) = opened(root.path());
        assert!(loaded.torn.is_some() && loaded.entries.is_empty());
        assert_eq!((loaded.first_index, loaded.snapshot.unwrap().index), (101, 100));
    }
    let (mut store, _) = opened(root.path());
    store.append(101, &entries(101, 2, 9)).unwrap();
    store.sync().unwrap();
    drop(store);
    let (_, loaded) = opened(root.path());
    assert_eq!((loaded.entries, loaded.torn), (entries(101, 2, 9), None));
}

/// A log whose vote is lost must not be used: the replica could vote twice in one term.
#[test]
fn a_lost_hard_state_is_damage() {
    let root = tempfile::tempdir().unwrap();
    fill(root.path());
    fs::remove_file(root.path().join("hard-state")).unwrap();
    let error = SledStore::open(root.path()).unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
    assert!(error.to_string().contains("hard-state"), "{error}");
}

/// P38: damage before the tail is an error that names the place and the way out.
#[test]
fn a_damaged_snapshot_is_named() {
    let root = tempfile::tempdir().unwrap();
    fill(root.path());
    let path = root.path().join("snapshots/snapshot-100");
    let mut bytes = fs::read(&path).unwrap();
    bytes[1_000] ^= 4;
    fs::write(&path, bytes).unwrap();
    let text = SledStore::open(root.path()).unwrap_err().to_string();
    assert!(
        text.contains("snapshot-100") && text.contains("leave the directory as it is"),
        "{text}"
    );
}

/// A crash between the rename and the emptying of the log, and at every point after it.
#[test]
fn an_install_that_a_crash_cut_is_finished() {
    let root = tempfile::tempdir().unwrap();
    fill(root.path());
    let complete = root.path().join("snapshots/snapshot-100");
    let installing = root.path().join("snapshots/installing-100");
    // The second time the log has been emptied already, but the names say that it has not.
    for _ in 0..2 {
        fs::rename(&complete, &installing).unwrap();
        let (mut store, loaded) = opened(root.path());
        assert_eq!((loaded.first_index, loaded.entries.len()), (101, 0));
        assert_eq!(loaded.snapshot.unwrap().index, 100);
        assert!(loaded.torn.is_none() && complete.exists() && !installing.exists());
        store.append(101, &entries(101, 5, 5)).unwrap();
        store.sync().unwrap();
    }
    assert_eq!(opened(root.path()).1.entries, entries(101, 5, 5));

    // The log is half removed: sled alone would not open.
    fs::rename(&complete, &installing).unwrap();
    fs::remove_file(root.path().join("sled/db")).unwrap();
    let (_, loaded) = opened(root.path());
    assert_eq!((loaded.first_index, loaded.entries.len(), loaded.torn), (101, 0, None));
}

/// P38: the first failure stops the store, log and snapshots alike.
#[test]
fn after_an_error_every_call_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let (mut store, _) = opened(root.path());
    store.save_hard_state(&hard_state()).unwrap();
    store.append(1, &entries(1, 3, 1)).unwrap();
    fs::remove_dir_all(root.path().join("snapshots")).unwrap();
    let first = store.snapshots().create().err().unwrap();
    assert!(matches!(first, StoreError::Io { .. }), "{first}");
    let refused = |result: Result<(), StoreError>| {
        let error = result.unwrap_err();
        assert!(matches!(error, StoreError::Stopped { .. }), "{error}");
    };
    refused(store.append(4, &entries(4, 1, 1)));
    refused(store.sync());
    refused(store.trim(1));
    refused(store.save_hard_state(&hard_state()));
    refused(store.snapshots().open().map(drop));
}

/// P37: what a run in another durability acknowledged is not in this store's log.
#[test]
fn a_log_of_another_store_is_torn() {
    let root = tempfile::tempdir().unwrap();
    fill(root.path());
    {
        let mut store = MemoryStore::open(root.path()).unwrap();
        let loaded = store.load().unwrap();
        assert!(loaded.torn.is_some() && loaded.entries.is_empty());
        store.save_hard_state(&HardState { clean: true, ..hard_state() }).unwrap();
    }
    let (_, loaded) = opened(root.path());
    assert!(loaded.torn.is_some());
    assert_eq!(loaded.entries.len(), 1_300);
}

#[test]
fn a_directory_is_used_once() {
    let root = tempfile::tempdir().unwrap();
    let (store, _) = opened(root.path());
    let error = SledStore::open(root.path()).unwrap_err();
    assert!(matches!(error, StoreError::Locked { .. }), "{error}");
    assert!(matches!(MemoryStore::open(root.path()), Err(StoreError::Locked { .. })));
    drop(store);
    opened(root.path());
}

/// sled does not sync the files that it makes for large pages, so there must be none.
#[test]
fn no_page_is_so_large_that_sled_does_not_sync_it() {
    let root = tempfile::tempdir().unwrap();
    let (mut store, _) = opened(root.path());
    store.save_hard_state(&hard_state()).unwrap();
    let mut next = 1;
    for count in [1, 2_000, 3, 1_000, 1, 1, 500, 40] {
        store.append(next, &entries(next, count, 1)).unwrap();
        store.sync().unwrap();
        next += count;
    }
    for first in [3_000, 2_500, 1_111, 1_100, 4] {
        store.append(first, &entries(first, 300, 2)).unwrap();
        store.sync().unwrap();
    }
    assert_eq!(fs::read_dir(root.path().join("sled/blobs")).unwrap().count(), 0);
}

/// Trimmed runs go with later appends, and a crash in between leaves no damage.
#[test]
fn what_is_trimmed_goes() {
    let root = tempfile::tempdir().unwrap();
    let (mut store, _) = opened(root.path());
    store.save_hard_state(&hard_state()).unwrap();
    store.append(1, &entries(1, 900, 1)).unwrap();
    for index in 901..=1_000 {
        store.append(index, &entries(index, 1, 1)).unwrap();
    }
    publish(&store, 990);
    store.trim(991).unwrap();
    store.append(1_001, &entries(1_001, 1, 1)).unwrap();
    store.sync().unwrap();
    drop(store);
    let (mut store, loaded) = opened(root.path());
    assert!(loaded.first_index < 991, "one append does not pay for all");
    store.trim(991).unwrap();
    for index in 1_002..=1_200 {
        store.append(index, &entries(index, 1, 1)).unwrap();
    }
    store.sync().unwrap();
    drop(store);
    let (_, loaded) = opened(root.path());
    assert_eq!(loaded.first_index, 991);
    assert_eq!(loaded.entries, entries(991, 210, 1));
}
