//! What the segmented store does when its files are damaged, lost, full or failing: never silently
//! the wrong thing (P38).

mod stores;

use std::{fs, path::Path};

use hovercraft::{
    Entry, Index,
    storage::{
        Crash, HardState, Loaded, LogStore, MemoryStore, Room, SegmentedStore, SimDisk, SledStore,
        StoreError, StoreKind, inspect,
    },
};
use stores::{SEGMENT_BYTES, entries, entry, entry_of, hard_state, opened, publish};

/// A log of 1..=count of term 1, three entries an append, each synced.
fn filled(count: u64) -> SimDisk {
    let disk = SimDisk::new(1);
    let (mut store, _) = opened(&disk, 1).unwrap();
    store.save_hard_state(&hard_state(1)).unwrap();
    for first in (1..=count).step_by(3) {
        store.append(first, &entries(first, 3, 1)).unwrap();
        store.sync().unwrap();
    }
    disk
}

/// Where the records of a segment begin.
fn records(disk: &SimDisk) -> Vec<(u64, u64)> {
    // Only a real directory can be looked at, so the offsets are taken from a copy of it.
    let directory = tempfile::tempdir().unwrap();
    copy_out(disk, directory.path());
    let mut found = Vec::new();
    inspect(directory.path(), &mut |record| found.push((record.segment, record.offset))).unwrap();
    found
}

fn copy_out(disk: &SimDisk, to: &Path) {
    for directory in ["log", "snapshots"] {
        fs::create_dir_all(to.join(directory)).unwrap();
    }
    fs::write(to.join("lock"), "").unwrap();
    for (path, size) in disk.files() {
        let (directory, name) = path.split_once('/').map_or((None, &*path), |(d, n)| (Some(d), n));
        let root = disk.root();
        let at = directory.map_or(root.clone(), |directory| root.directory(directory).unwrap());
        let mut bytes = vec![0; size as usize];
        at.open(name).unwrap().read_at(0, &mut bytes).unwrap();
        fs::write(to.join(&path), bytes).unwrap();
    }
}

/// P38, P40: each bit flipped by itself is an error, a torn tail, or harmless; never another entry.
#[test]
fn damage_is_never_silently_wrong() {
    let good = filled(9);
    let whole = opened(&good.fork(1), 2).unwrap().1;
    assert_eq!((whole.entries.len(), whole.torn), (9, None));
    let starts = records(&good);
    let last = starts.last().unwrap().1;
    let size = 56
        + whole.entries[6..]
            .iter()
            .map(|entry| entry.request().unwrap().body().len() as u64 + 54)
            .sum::<u64>();
    let end = last + size.next_multiple_of(8);
    let mut counts = std::collections::BTreeMap::new();
    for (path, file_bytes) in good.files().into_iter().filter(|(_, bytes)| *bytes > 0) {
        let checked = match &*path {
            "log/segment-1" => end,
            // Two slots with two copies each: the rest of them is zeros.
            "hard-state" => 400,
            _ => file_bytes,
        };
        let copies = if path == "hard-state" { 1..4 } else { 0..0 };
        let copies = copies.map(|copy| copy * file_bytes / 4 + copy);
        for offset in (0..checked).chain(copies).chain([file_bytes - 1]) {
            let bad = good.fork(offset);
            assert!(bad.flip_bit(&path, offset, offset as u8));
            let outcome = match opened(&bad, 3) {
                Err(StoreError::Damaged { .. } | StoreError::Version { .. }) => "an error",
                Err(other) => panic!("{path} at {offset}: {other}"),
                Ok((_, found)) => judge(&found, &whole, &format!("{path} at {offset}")),
            };
            let expected = match &*path {
                // Each state is there twice, and beside the newest mark there is an older one.
                "hard-state" | "synced" => "all",
                _ if (48..4_096).contains(&offset) || offset >= end => "all",
                _ if (last..end).contains(&offset) => "a prefix, torn",
                _ => "an error",
            };
            assert_eq!(outcome, expected, "{path} at {offset}");
            *counts.entry(outcome).or_insert(0) += 1;
        }
    }
    println!("damage gave {counts:?}");
}

fn judge(found: &Loaded, whole: &Loaded, what: &str) -> &'static str {
    assert_eq!(found.hard_state, whole.hard_state, "{what}: the hard state is wrong");
    assert!(whole.entries.starts_with(&found.entries), "{what}: other entries");
    match (found.entries.len() == whole.entries.len(), found.torn.is_some()) {
        (true, false) => "all",
        (true, true) => "all, torn",
        (false, true) => "a prefix, torn",
        (false, false) => panic!("{what}: lost entries, and nobody is told"),
    }
}

/// P38: damage before the tail is an error that names the place and the way out.
#[test]
fn damage_before_the_tail_names_the_record() {
    let disk = filled(600);
    let starts = records(&disk);
    assert!(starts.last().unwrap().0 > 2, "there are several segments");
    for &(segment, offset) in &[starts[4], starts[starts.len() - 2]] {
        let bad = disk.fork(1);
        bad.flip_bit(&format!("log/segment-{segment}"), offset + 60, 3);
        let text = opened(&bad, 2).unwrap_err().to_string();
        assert!(text.contains(&format!("log/segment-{segment}: ")), "{text}");
        assert!(text.contains("is damaged; leave the directory as it is"), "{text}");
    }
}

/// P38: what was synced and is gone from the end makes the replica recover, until it has noted it.
#[test]
fn a_lost_end_is_torn_until_it_is_noted() {
    for lost in ["the last segment", "the mark", "the log"] {
        let disk = filled(400);
        let segments: Vec<_> =
            disk.files().into_iter().filter(|(path, _)| path.starts_with("log/segment")).collect();
        let (root, log) = (disk.root(), disk.root().directory("log").unwrap());
        let name = |path: &str| path.trim_start_matches("log/").to_owned();
        match lost {
            "the mark" => root.remove("synced").unwrap(),
            "the last segment" => log.remove(&name(&segments.last().unwrap().0)).unwrap(),
            _ => segments.iter().for_each(|(path, _)| log.remove(&name(path)).unwrap()),
        }
        for seed in 2..4 {
            let (_, loaded) = opened(&disk, seed).unwrap();
            assert!(loaded.torn.is_some(), "{lost} is lost");
            let count = loaded.entries.len() as u64;
            assert_eq!(loaded.entries, entries(1, count, 1));
            disk.crash(Crash::KeepAll);
        }
        let (mut store, loaded) = opened(&disk, 4).unwrap();
        let next = loaded.first_index + loaded.entries.len() as Index;
        store.save_hard_state(&hard_state(2)).unwrap();
        store.append(next, &entries(next, 5, 2)).unwrap();
        store.sync().unwrap();
        let (_, loaded) = opened(&disk, 5).unwrap();
        assert!(loaded.torn.is_none(), "{lost} was lost, and it is noted");
        assert_eq!(loaded.entries.last(), Some(&entry(next + 4, 2)));
    }
}

#[test]
fn a_lost_segment_in_the_middle_or_a_lost_hard_state_is_damage() {
    for (directory, name, text) in
        [("log", "segment-2", "entry 1 (it is missing)"), (".", "hard-state", "hard-state")]
    {
        let disk = filled(600);
        let at = if directory == "." { disk.root() } else { disk.root().directory("log").unwrap() };
        at.remove(name).unwrap();
        let error = opened(&disk, 2).unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
        assert!(error.to_string().contains(text), "{error}");
    }
}

fn contents(disk: &SimDisk, name: &str) -> Vec<u8> {
    let file = disk.root().open(name).unwrap();
    let mut bytes = vec![0; file.size_bytes().unwrap() as usize];
    file.read_at(0, &mut bytes).unwrap();
    bytes
}

/// What was cut off and lies where the next record ends is not taken for what follows it, though
/// it names a record in that place.
#[test]
fn what_was_cut_off_never_comes_back() {
    let disk = filled(3);
    let old_mark = contents(&disk, "synced");
    let (mut store, _) = opened(&disk, 2).unwrap();
    store.append(4, &entries(4, 1, 1)).unwrap();
    store.append(5, &entries(5, 1, 1)).unwrap();
    store.sync().unwrap();
    drop(store);
    // As if that had not been synced: the first of the two is torn, the mark is an old one.
    let &(_, torn) = records(&disk).iter().rev().nth(1).unwrap();
    disk.flip_bit("log/segment-1", torn + 100, 0);
    disk.root().open("synced").unwrap().write_at(0, &old_mark).unwrap();

    let (mut store, loaded) = opened(&disk, 3).unwrap();
    assert_eq!((loaded.entries, loaded.torn), (entries(1, 3, 1), None));
    // As long as what was cut, to the byte.
    let again = Entry { log_time_us: 77, ..entry(4, 1) };
    store.append(4, std::slice::from_ref(&again)).unwrap();
    store.sync().unwrap();
    let (_, loaded) = opened(&disk, 4).unwrap();
    assert_eq!(loaded.entries.len(), 4);
    assert_eq!(loaded.entries[3], again);
}

/// Entries that a truncation has replaced are given up only when that is on disk.
#[test]
fn a_trim_gives_up_nothing_for_what_is_not_on_disk() {
    let disk = filled(600);
    let (mut store, _) = opened(&disk, 2).unwrap();
    publish(&store, (100, 1)).unwrap();
    store.append(101, &entries(101, 1, 2)).unwrap();
    store.trim(101).unwrap();
    drop(store);
    disk.crash(Crash::KeepAll);
    let (_, loaded) = opened(&disk, 3).unwrap();
    let next = loaded.first_index + loaded.entries.len() as Index;
    assert!(loaded.first_index <= 101 && loaded.torn.is_none());
    let is_cut = next == 102 && loaded.entries.last() == Some(&entry(101, 2));
    assert!(next == 601 || is_cut, "the log ends before {next}");
}

/// P38: the log has room that was reserved before the disk was full; what has none is refused
/// before anything changes, and the store goes on when there is room again.
#[test]
fn a_full_disk_takes_what_was_reserved_and_the_store_goes_on() {
    let disk = filled(3);
    let (mut store, _) = opened(&disk, 2).unwrap();
    let room = store.room(1_000).unwrap();
    assert!(!room.is_full && room.bytes > room.spare_bytes + 1_000, "{room:?}");
    disk.limit(Some(disk.size_bytes()));
    let (mut next, mut taken_bytes) = (4, 0);
    let error = loop {
        let batch = entries(next, 20, 1);
        match store.append(next, &batch).and_then(|()| store.sync()) {
            Ok(()) => {
                next += 20;
                taken_bytes += Room::taken_by(&batch);
                let left = store.room(1_000).unwrap();
                assert!(left.bytes >= room.bytes.saturating_sub(taken_bytes), "{left:?}");
            }
            Err(error) => break error,
        }
    };
    assert!(matches!(error, StoreError::Full { .. }), "{error}");
    assert!(taken_bytes >= room.bytes, "{taken_bytes} of {room:?}");
    assert!(store.room(1_000).unwrap().is_full);
    // An election works, and a snapshot is put off.
    store.save_hard_state(&hard_state(7)).unwrap();
    assert!(matches!(publish(&store, (3, 1)), Err(StoreError::Full { .. })));
    assert!(!disk.files().iter().any(|(name, _)| name.contains(".part")), "{:?}", disk.files());
    let fork = disk.fork(9);
    fork.crash(Crash::Random);
    fork.limit(Some(fork.size_bytes()));
    let (_, loaded) = opened(&fork, 3).unwrap();
    assert!(loaded.torn.is_none() && loaded.hard_state == Some(hard_state(7)));
    assert_eq!(loaded.entries, entries(1, next - 1, 1));
    // There is room again.
    disk.limit(None);
    publish(&store, (3, 1)).unwrap();
    store.append(next, &entries(next, 20, 1)).unwrap();
    store.sync().unwrap();
    assert!(!store.room(1_000).unwrap().is_full);
    disk.crash(Crash::Prefix(0));
    assert_eq!(opened(&disk, 4).unwrap().1.entries.last(), Some(&entry(next + 19, 1)));
}

/// P38: what fits the room that was said is taken, small or larger than a segment, in any order.
#[test]
fn a_full_disk_takes_what_fits_the_room_in_any_order() {
    for seed in 0..100 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let count = rng.u64(1..60) * 3;
        let disk = filled(count);
        let (mut store, _) = opened(&disk, seed).unwrap();
        let largest = rng.u64(1_000..3 * SEGMENT_BYTES);
        let room = store.room(largest).unwrap();
        assert!(!room.is_full && room.bytes >= room.spare_bytes + largest, "{room:?}");
        disk.limit(Some(disk.size_bytes()));
        let (mut next, mut left) = (count + 1, room.bytes - room.spare_bytes);
        while left > 200 {
            let mut batch = Vec::new();
            left -= Room::APPEND_BYTES as u64;
            while batch.len() < 20 && left > 128 && rng.u8(..8) > 0 {
                let body_max = if rng.u8(..4) == 0 { largest } else { 300 };
                let bytes = rng.u64(..=body_max.min(left - 128));
                left -= 128 + bytes;
                batch.push(entry_of(next + batch.len() as Index, 1, vec![7; bytes as usize]));
            }
            let appended = store.append(next, &batch).and_then(|()| store.sync());
            appended.unwrap_or_else(|error| panic!("seed {seed}, {left} bytes left: {error}"));
            next += batch.len() as Index;
        }
    }
}

/// P38: after a failed sync nothing is synced again as if it had not failed.
#[test]
fn a_failed_sync_stops_the_store() {
    let disk = filled(3);
    let (mut store, _) = opened(&disk, 2).unwrap();
    store.append(4, &entries(4, 1, 1)).unwrap();
    disk.break_after(1);
    assert!(matches!(store.sync(), Err(StoreError::Io { .. })));
    assert!(matches!(store.sync(), Err(StoreError::Stopped { .. })));
    assert!(matches!(store.save_hard_state(&hard_state(2)), Err(StoreError::Stopped { .. })));
    assert!(matches!(store.snapshots().create(), Err(StoreError::Stopped { .. })));
}

/// A trim of a long log gives back its segments, but for some that are used again.
#[test]
fn a_trim_gives_back_whole_segments() {
    let disk = filled(900);
    let (mut store, _) = opened(&disk, 2).unwrap();
    publish(&store, (890, 1)).unwrap();
    store.trim(850).unwrap();
    for first in (901..=960).step_by(3) {
        store.append(first, &entries(first, 3, 1)).unwrap();
        store.sync().unwrap();
    }
    let log: Vec<_> =
        disk.files().into_iter().filter(|(path, _)| path.starts_with("log/")).collect();
    assert!(log.len() <= 5, "{log:?}");
    let (_, loaded) = opened(&disk, 3).unwrap();
    let first = loaded.first_index;
    assert!((600..=850).contains(&first), "it begins at {first}");
    assert_eq!(loaded.entries, entries(first, 961 - first, 1));
}

/// A log that never stops growing uses the same files again and again.
#[test]
fn segments_are_used_again_and_again() {
    let disk = SimDisk::new(1);
    let (mut store, _) = opened(&disk, 1).unwrap();
    store.save_hard_state(&hard_state(1)).unwrap();
    let mut most = 0;
    for first in (1..=20_000_u64).step_by(50) {
        store.append(first, &entries(first, 50, 1)).unwrap();
        store.sync().unwrap();
        if first % 500 == 1 && first > 500 {
            publish(&store, (first - 400, 1)).unwrap();
            store.trim(first - 400).unwrap();
        }
        most = most.max(disk.size_bytes());
    }
    assert!(most < 20 * SEGMENT_BYTES, "{most} bytes for a log of a thousand entries");
    let (_, loaded) = opened(&disk, 2).unwrap();
    let first = loaded.first_index;
    assert_eq!(loaded.entries, entries(first, 20_001 - first, 1));
}

/// The directory of one store is not taken for one of another.
#[test]
fn a_directory_of_another_store_is_refused_by_its_name() {
    let root = tempfile::tempdir().unwrap();
    let (ours, sleds) = (root.path().join("ours"), root.path().join("sleds"));
    SegmentedStore::open(&ours).unwrap().save_hard_state(&hard_state(1)).unwrap();
    SledStore::open(&sleds).unwrap().save_hard_state(&hard_state(1)).unwrap();
    let error = SegmentedStore::open(&sleds).unwrap_err();
    assert!(matches!(error, StoreError::OtherStore { found: StoreKind::Sled, .. }), "{error}");
    assert!(error.to_string().contains("set store = \"sled\""), "{error}");
    let error = SledStore::open(&ours).unwrap_err();
    assert!(error.to_string().contains("set store = \"segmented\""), "{error}");
    assert!(matches!(inspect(&sleds, &mut |_| ()), Err(StoreError::OtherStore { .. })));
    // Both go on as before.
    assert!(SegmentedStore::open(&ours).unwrap().load().unwrap().torn.is_none());
    assert!(SledStore::open(&sleds).unwrap().load().unwrap().torn.is_none());
}

/// P37: what a run in the durability `memory` acknowledged is not in this log.
#[test]
fn a_log_that_the_memory_store_passed_is_torn() {
    let root = tempfile::tempdir().unwrap();
    {
        let mut store = SegmentedStore::open(root.path()).unwrap();
        store.save_hard_state(&hard_state(1)).unwrap();
        store.append(1, &entries(1, 30, 1)).unwrap();
        store.sync().unwrap();
        assert!(matches!(inspect(root.path(), &mut |_| ()), Err(StoreError::Locked { .. })));
    }
    {
        let mut store = MemoryStore::open(root.path()).unwrap();
        assert!(store.load().unwrap().torn.is_some());
        store.save_hard_state(&HardState { clean: true, ..hard_state(1) }).unwrap();
    }
    assert!(inspect(root.path(), &mut |_| ()).unwrap().torn.is_some());
    let loaded = SegmentedStore::open(root.path()).unwrap().load().unwrap();
    assert!(loaded.torn.is_some());
    assert_eq!(loaded.entries, entries(1, 30, 1));
}

/// A directory of another format version is refused by name, and the way out destroys nothing.
#[test]
fn a_log_of_format_version_1_is_refused() {
    let root = tempfile::tempdir().unwrap();
    drop(SegmentedStore::open(root.path()).unwrap());
    let path = root.path().join("log/segment-1");
    let mut bytes = fs::read(&path).unwrap();
    bytes[8] = 1;
    let checksum = xxhash_rust::xxh3::xxh3_64(&bytes[..40]);
    bytes[40..48].copy_from_slice(&checksum.to_le_bytes());
    fs::write(&path, bytes).unwrap();
    let error = SegmentedStore::open(root.path()).unwrap_err();
    let what = "segment-1 has format version 1, and this build reads version 2; run the build that \
                wrote it, and keep the directory";
    assert!(error.to_string().ends_with(what), "{error}");
}
