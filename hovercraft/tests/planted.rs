//! The store tier finds the planted bugs that only a store sees: runs of the segmented store that
//! are cut off, one a seed. `sim/src/bugs.rs` lists them, with the tier that finds each.
#![cfg(feature = "planted")]

mod stores;

use std::panic;

use hovercraft::planted::plant;
use stores::crashes::cut_once;

/// It may take so many seeds.
const SEEDS: u64 = 20_000;

const BUGS: &[&str] = &[
    "install-before-sync",
    "older-snapshots-stay",
    "removals-not-synced",
    "restart-not-synced",
    "tail-terms-not-compared",
];

/// Returns the first seed that fails with a bug, and how.
fn first_failure(bug: &str) -> Option<(u64, String)> {
    plant(Some(bug));
    let found = (0..SEEDS).find_map(|seed| {
        let panic = panic::catch_unwind(|| cut_once(seed)).err()?;
        Some((seed, panic.downcast_ref::<String>().cloned().unwrap_or_default()))
    });
    plant(None);
    found
}

#[test]
fn every_planted_bug_of_the_store_is_found() {
    let usual = panic::take_hook();
    panic::set_hook(Box::new(|_| ()));
    let mut missed = Vec::new();
    for bug in BUGS {
        match first_failure(bug) {
            Some((seed, what)) => println!("{bug}: seed {seed}: {what}"),
            None => missed.push(bug),
        }
    }
    panic::set_hook(usual);
    assert!(missed.is_empty(), "not found: {missed:?}");
}

#[test]
fn without_a_bug_every_seed_ends_well() {
    (0..200).for_each(cut_once);
}
