//! Both stores against the conformance suite.

use hovercraft::storage::{
    MemoryStore, SledStore,
    suite::{self, DirectoryPlace, Survives},
};

#[test]
fn the_memory_store_conforms() {
    let root = tempfile::tempdir().unwrap();
    suite::run(Survives::CleanStop, &mut |case| {
        Box::new(DirectoryPlace::new(root.path().join(case), |directory| {
            Ok(Box::new(MemoryStore::open(directory)?))
        }))
    });
}

#[test]
fn the_sled_store_conforms() {
    let root = tempfile::tempdir().unwrap();
    suite::run(Survives::Sync, &mut |case| {
        Box::new(DirectoryPlace::new(root.path().join(case), |directory| {
            Ok(Box::new(SledStore::open(directory)?))
        }))
    });
}
