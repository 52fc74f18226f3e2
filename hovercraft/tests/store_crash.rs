//! Crash images of the segmented store: recorded runs are cut at every operation on the disk, and
//! what was not synced is lost, torn and reordered in many ways. What was promised is there, and
//! nothing that was never written (P37, P38).

mod stores;

use hovercraft::storage::{Crash, LogStore, MemoryStore, SimDisk};
use proptest::prelude::*;
use stores::{
    crashes::{Model, check, perform, run, script},
    opened,
};

/// Cuts the run of a script at every operation on the disk.
fn cut_everywhere(seed: u64, length: usize) -> (u64, u64) {
    let calls = script(seed, length);
    let mut images = 0;
    for operations in 0.. {
        let disk = SimDisk::new(seed);
        disk.break_after(operations);
        let mut model = Model::new();
        let ended = run(&disk, &calls, &mut model);
        let unsynced = disk.unsynced_count();
        // Every prefix, but where there are very many.
        let prefixes = (0..=unsynced).step_by(1 + unsynced / 8).map(Crash::Prefix);
        for (number, crash) in prefixes.chain([Crash::Random; 5]).enumerate() {
            let image = disk.fork(seed ^ (operations << 8) ^ number as u64);
            image.crash(crash);
            let what = format!("script {seed}, cut at {operations}, image {number} ({crash:?})");
            check(&image, &model, &what);
            images += 1;
        }
        if ended {
            return (operations, images);
        }
    }
    unreachable!("a run makes finitely many operations")
}

#[test]
fn every_cut_of_a_run_leaves_what_was_promised() {
    let (mut cuts, mut images) = (0, 0);
    for seed in 0..3 {
        let (operations, checked) = cut_everywhere(seed, 40);
        cuts += operations;
        images += checked;
    }
    println!("{images} crash images of {cuts} cuts");
    assert!(cuts > 100 && images > 1_000, "the scripts do too little: {cuts} cuts");
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 64,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Any calls, with restarts in between: the store holds what the memory store holds.
    #[test]
    fn it_holds_what_the_memory_store_holds(seed: u64, restart_every in 1..30_usize) {
        let disk = SimDisk::new(seed);
        let (mut store, _) = opened(&disk, 1).unwrap();
        let mut model = MemoryStore::new();
        for (step, call) in script(seed, 80).into_iter().enumerate() {
            perform(&mut store, call).unwrap();
            perform(&mut model, call).unwrap();
            if step % restart_every != 0 {
                continue;
            }
            store.sync().unwrap();
            drop(store);
            let loaded;
            (store, loaded) = opened(&disk, step as u64).unwrap();
            let expected = model.load().unwrap();
            prop_assert!(loaded.torn.is_none());
            prop_assert_eq!(&loaded.hard_state, &expected.hard_state);
            prop_assert_eq!(&loaded.snapshot, &expected.snapshot);
            // What was trimmed may still be there.
            prop_assert!(loaded.first_index <= expected.first_index);
            let more = (expected.first_index - loaded.first_index) as usize;
            prop_assert!(loaded.entries[more..] == expected.entries[..]);
        }
    }
}
