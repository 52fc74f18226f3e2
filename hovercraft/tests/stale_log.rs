//! A snapshot that overtakes the unsynced truncation it rests on: what is left starts, and goes on
//! without the stale entries (P36, P37).

mod stores;

use std::net::{Ipv4Addr, SocketAddrV4};

use hovercraft::{
    ClusterLimits, Configuration, Incarnation, Index, Member, NodeId, Term,
    core::{Core, Settings, Start},
    node::begin_run,
    storage::{Birth, Crash, Durability, HardState, Loaded, LogStore, SimDisk, StoreError, Torn},
};
use r2p2::Time;
use stores::{DIGEST_KEY, entries, opened, publish};

const DRAWN: Incarnation = Incarnation(1000);

fn configuration() -> Configuration {
    let member = |number: u16| Member {
        id: NodeId(number),
        incarnation: Incarnation(u64::from(number)),
        address: SocketAddrV4::new(Ipv4Addr::LOCALHOST, number),
    };
    let limits = ClusterLimits::default();
    Configuration::new(1, (1..=3).map(member).collect(), limits)
}

fn hard_state(term: Term, durability: Durability) -> HardState {
    let birth = Some(Birth {
        cluster: 7,
        node: NodeId(1),
        configuration: configuration(),
        digest_key: DIGEST_KEY,
    });
    HardState { term, vote: None, incarnation: Incarnation(1), birth, durability, clean: false }
}

/// Starts a core on what was loaded, and returns its incarnation and the bounds of its log.
fn start(loaded: Loaded, durability: Durability) -> (Incarnation, (Index, Index)) {
    let hard_state = begin_run(&loaded, durability, DRAWN);
    let settings = Settings { durability, ..Settings::default() };
    let core = Core::new(Start { hard_state, loaded, settings, seed: 1 }, Time::ZERO);
    (core.hard_state().incarnation, core.log_bounds())
}

fn range(loaded: &Loaded) -> (Index, Index) {
    loaded.check().unwrap();
    (loaded.first_index, loaded.first_index + loaded.entries.len() as Index)
}

#[test]
fn a_snapshot_may_overtake_the_truncation_that_it_rests_on() {
    let settled = [(Durability::Sync, Incarnation(1)), (Durability::Interval, DRAWN)];
    for (durability, incarnation) in settled {
        let disk = SimDisk::new(1);
        let (mut store, _) = opened(&disk, 1).unwrap();
        store.save_hard_state(&hard_state(2, durability)).unwrap();
        // 95..=100 were never committed, and the leader of term 2 replaces them by 95..=97.
        store.append(1, &entries(1, 100, 1)).unwrap();
        store.sync().unwrap();
        store.append(95, &entries(95, 3, 2)).unwrap();
        publish(&store, (97, 2)).unwrap();
        drop(store);
        disk.crash(Crash::Prefix(0));
        // It is found so again, should the process die before it has written anything.
        for seed in 2..4 {
            let (_, loaded) = opened(&disk, seed).unwrap();
            assert_eq!((range(&loaded), loaded.torn), ((98, 98), None));
            assert_eq!(start(loaded, durability), (incarnation, (98, 97)));
        }
        let (mut store, _) = opened(&disk, 4).unwrap();
        store.append(98, &entries(98, 2, 2)).unwrap();
        store.sync().unwrap();
        drop(store);
        disk.crash(Crash::Prefix(0));
        let (_, loaded) = opened(&disk, 5).unwrap();
        assert_eq!(range(&loaded), (98, 100));
        assert_eq!(start(loaded, durability).1, (98, 99));
    }
}

/// 18@4 and 19..=105@5 ascend, and are not what the snapshot of 18@5 comes before.
#[test]
fn a_stale_log_whose_terms_ascend_is_told_by_the_snapshots_own_entry() {
    let disk = SimDisk::new(1);
    let (mut store, _) = opened(&disk, 1).unwrap();
    store.save_hard_state(&hard_state(5, Durability::Sync)).unwrap();
    store.append(1, &entries(1, 18, 4)).unwrap();
    store.append(19, &entries(19, 87, 5)).unwrap();
    store.sync().unwrap();
    publish(&store, (18, 5)).unwrap();
    drop(store);
    let (_, loaded) = opened(&disk, 2).unwrap();
    assert_eq!(range(&loaded), (19, 19));
}

/// The damaged end of a log takes a truncation with it, which was synced: the replica is
/// recovering, and starts without the entries that come back (P38).
#[test]
fn a_torn_tail_may_bring_back_a_stale_log() {
    let disk = SimDisk::new(1);
    let (mut store, _) = opened(&disk, 1).unwrap();
    store.save_hard_state(&hard_state(2, Durability::Sync)).unwrap();
    store.append(1, &entries(1, 100, 1)).unwrap();
    store.sync().unwrap();
    let end = disk.fork(1);
    store.append(95, &entries(95, 3, 2)).unwrap();
    store.sync().unwrap();
    publish(&store, (97, 2)).unwrap();
    drop(store);
    // A bit of the last record flips: one that was not yet there before it.
    let (path, size) = segment(&disk);
    let offset = (0..size).find(|&at| byte(&disk, &path, at) != byte(&end, &path, at)).unwrap();
    disk.flip_bit(&path, offset + 60, 0);
    for seed in 2..4 {
        let (_, loaded) = opened(&disk, seed).unwrap();
        assert_eq!((range(&loaded), loaded.torn), ((98, 98), Some(Torn::Tail)));
        assert_eq!(start(loaded, Durability::Sync), (DRAWN, (98, 97)));
    }
    let (mut store, _) = opened(&disk, 4).unwrap();
    let state = HardState { incarnation: DRAWN, ..hard_state(2, Durability::Sync) };
    store.save_hard_state(&state).unwrap();
    store.append(98, &entries(98, 1, 2)).unwrap();
    store.sync().unwrap();
    drop(store);
    let (_, loaded) = opened(&disk, 5).unwrap();
    assert_eq!((range(&loaded), loaded.torn), ((98, 99), None));
}

fn segment(disk: &SimDisk) -> (String, u64) {
    let files = disk.files();
    files.into_iter().find(|(path, _)| path.contains("segment-")).expect("there is a log")
}

fn byte(disk: &SimDisk, path: &str, at: u64) -> [u8; 1] {
    let (directory, name) = path.split_once('/').expect("it is in a directory");
    let file = disk.root().directory(directory).unwrap().open(name).unwrap();
    let mut byte = [0];
    file.read_at(at, &mut byte).unwrap();
    byte
}

/// A log that contradicts itself is an error that says which entry, and what to do.
#[test]
fn a_log_whose_terms_go_back_is_refused() {
    let disk = SimDisk::new(1);
    let (mut store, _) = opened(&disk, 1).unwrap();
    store.save_hard_state(&hard_state(9, Durability::Sync)).unwrap();
    store.append(1, &entries(1, 3, 9)).unwrap();
    store.append(4, &entries(4, 3, 8)).unwrap();
    store.sync().unwrap();
    drop(store);
    let error = opened(&disk, 2).unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
    let what = "entry 4 (its term is 8, and the entry before it has term 9) is damaged; ";
    assert!(error.to_string().contains(what), "{error}");
}
