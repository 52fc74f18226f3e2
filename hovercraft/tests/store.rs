//! Every store against the conformance suite.

use hovercraft::storage::{
    Crash, LogStore, MemoryStore, SegmentedStore, SimDisk, SledStore, StoreError,
    suite::{self, DirectoryPlace, Place, Survives},
};

#[test]
fn the_segmented_store_conforms() {
    let root = tempfile::tempdir().unwrap();
    suite::run(Survives::Sync, &mut |case| {
        Box::new(DirectoryPlace::new(root.path().join(case), |directory| {
            Ok(Box::new(SegmentedStore::open(directory)?))
        }))
    });
}

/// A store on a simulated disk, whose crashes lose, tear and reorder what was not synced.
struct SimPlace {
    disk: SimDisk,
    segment_bytes: u64,
    seed: u64,
}

impl Place for SimPlace {
    fn open(&mut self) -> Result<Box<dyn LogStore>, StoreError> {
        self.seed += 1;
        Ok(Box::new(SegmentedStore::open_on(&self.disk.root(), self.seed, self.segment_bytes)?))
    }

    fn open_after_crash(&mut self) -> Result<Box<dyn LogStore>, StoreError> {
        self.disk = self.disk.fork(self.seed);
        self.disk.crash(Crash::Random);
        self.open()
    }

    fn set_full(&mut self, is_full: bool) -> bool {
        self.disk.limit(is_full.then(|| self.disk.size_bytes()));
        true
    }
}

#[test]
fn the_segmented_store_conforms_on_a_disk_that_forgets() {
    for (seed, segment_bytes) in [(0, 64 << 10), (1_000, 256 << 10), (2_000, 16 << 20)] {
        suite::run(Survives::Sync, &mut |_| {
            Box::new(SimPlace { disk: SimDisk::new(seed), segment_bytes, seed })
        });
    }
}

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
