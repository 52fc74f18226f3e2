//! The mark: how much of the log is known to be on disk (P38).
//!
//! A file that holds the number of the last write that a sync has covered. It is written after each
//! sync, in one of its two slots and without a sync of its own, which costs a microsecond: it
//! outlives the process at once, and the machine a little later. Whatever age it is found at, what
//! it says was synced before, so a log that ends earlier has lost something at its tail.

use std::sync::Arc;

use super::{
    StoreError,
    disk::Disk,
    record::{RecordError, decode_synced, encode_synced},
    slots::{Found, Layout, Slots},
};

const LAYOUT: Layout = Layout { name: "synced", slot_bytes: 512, copy_count: 1 };

/// The file `synced` in a data directory.
#[derive(Debug)]
pub(super) struct SyncedMark {
    slots: Slots,
    number: Option<u64>,
}

impl SyncedMark {
    /// Reads the mark; one that is damaged is as good as none.
    pub(super) fn open(disk: Arc<dyn Disk>) -> Result<Self, StoreError> {
        let decode = |record: &[u8]| decode_synced(record).map(|number| (number, number));
        let (slots, found) = Slots::open(disk, LAYOUT, decode)?;
        let number = match found {
            Found::Newest(number) => Some(number),
            Found::Damaged(error @ RecordError::Version(_)) => {
                return Err(error.at(&slots.path(), "the mark"));
            }
            Found::Nothing | Found::Damaged(_) => None,
        };
        Ok(Self { slots, number })
    }

    /// The number of the last write that was known to be on disk.
    pub(super) fn number(&self) -> Option<u64> {
        self.number
    }

    /// Notes that everything up to the write with this number is on disk. A mark that was lost, and
    /// for which the disk has no room now, stays lost until there is.
    pub(super) fn record(&mut self, number: u64) -> Result<(), StoreError> {
        match self.slots.write(&encode_synced(number), false) {
            Ok(()) => {
                self.number = Some(number);
                Ok(())
            }
            Err(StoreError::Full { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{disk::FileDisk, sim_disk::SimDisk};

    #[test]
    fn the_mark_is_read_back_and_a_damaged_one_is_none() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("synced");
        let disk = FileDisk::new(temporary.path());
        let mut mark = SyncedMark::open(disk.clone()).unwrap();
        assert_eq!(mark.number(), None);
        mark.record(7).unwrap();
        mark.record(9).unwrap();
        assert_eq!(mark.number(), Some(9));
        assert_eq!(SyncedMark::open(disk.clone()).unwrap().number(), Some(9));

        // Of two, the other one is as good as an older mark.
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[12] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert!(matches!(SyncedMark::open(disk.clone()).unwrap().number(), Some(7 | 9)));
        bytes[512 + 12] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let mut damaged = SyncedMark::open(disk.clone()).unwrap();
        assert_eq!(damaged.number(), None);
        damaged.record(10).unwrap();
        assert_eq!(SyncedMark::open(disk).unwrap().number(), Some(10));
    }

    #[test]
    fn a_lost_mark_stays_lost_while_the_disk_is_full() {
        let disk = SimDisk::new(1);
        let mut mark = SyncedMark::open(disk.root()).unwrap();
        disk.limit(Some(0));
        mark.record(7).unwrap();
        assert_eq!(SyncedMark::open(disk.root()).unwrap().number(), None);
        disk.limit(None);
        mark.record(8).unwrap();
        assert_eq!(SyncedMark::open(disk.root()).unwrap().number(), Some(8));
    }
}
