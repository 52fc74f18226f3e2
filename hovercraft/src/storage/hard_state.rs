//! The hard state in a small file of its own, written in place and synced at every change (P37).
//!
//! It is apart from the log because term and vote must be on disk before they are used in every
//! durability, `memory` too, and because a log that is damaged or thrown away must not take the
//! vote with it. It does not grow, so that an election works on a full disk.

use std::sync::Arc;

use super::{
    HardState, StoreError,
    directory::{damaged, sync_names},
    disk::Disk,
    record::{HardStateRecord, WrittenBy, decode_hard_state, encode_hard_state},
    slots::{Found, Layout, Slots},
};

/// The configuration of a cluster of 64 takes about a kilobyte.
const LAYOUT: Layout = Layout { name: "hard-state", slot_bytes: 16 << 10, copy_count: 2 };

/// The file `hard-state` in a data directory.
#[derive(Debug)]
pub(super) struct HardStateFile {
    slots: Slots,
    writer: WrittenBy,
    /// Number of the record that was written last; each has the next one.
    number: u64,
    /// The record that was there, until it is asked for.
    found: Option<HardStateRecord>,
}

impl HardStateFile {
    /// Opens the file, if there is one. `writer` is the store that saves hard states in it.
    pub(super) fn open(disk: Arc<dyn Disk>, writer: WrittenBy) -> Result<Self, StoreError> {
        // A crash may have come between the rename and the sync of the directory: the caller will
        // use what it is told here.
        sync_names(&*disk)?;
        let decode = |bytes: &[u8]| decode_hard_state(bytes).map(|record| (record.number, record));
        let (mut slots, found) = Slots::open(disk, LAYOUT, decode)?;
        slots.sync()?;
        let found = match found {
            Found::Nothing => None,
            Found::Newest(record) => Some(record),
            Found::Damaged(error) => return Err(error.at(&slots.path(), "the hard state")),
        };
        let number = found.as_ref().map_or(0, |record| record.number);
        Ok(Self { slots, writer, number, found })
    }

    /// Returns what was in the file when it was opened, once.
    pub(super) fn load(&mut self) -> Option<HardStateRecord> {
        self.found.take()
    }

    /// On disk when this returns.
    pub(super) fn save(&mut self, state: &HardState) -> Result<(), StoreError> {
        self.number += 1;
        let (number, written_by) = (self.number, self.writer);
        let record = HardStateRecord { written_by, number, state: state.clone() };
        self.slots.write(&encode_hard_state(&record), true)
    }

    /// The error for a directory that holds a log or a snapshot but no hard state. *Because* the
    /// vote is gone with it: to go on would be to vote twice in one term.
    pub(super) fn missing(&self) -> StoreError {
        damaged(&self.slots.path(), "the hard state of this log is missing: the directory")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        entry::{ClusterLimits, Configuration, Incarnation, MEMBERS_MAX, Member, NodeId},
        storage::{Birth, Durability, disk::FileDisk, suite::sample::Sample},
    };

    fn opened(path: &std::path::Path, writer: WrittenBy) -> Result<HardStateFile, StoreError> {
        HardStateFile::open(FileDisk::new(path), writer)
    }

    #[test]
    fn the_file_holds_the_last_state_and_who_wrote_it() {
        let directory = tempfile::tempdir().unwrap();
        let mut file = opened(directory.path(), WrittenBy::Sled).unwrap();
        assert_eq!(file.load(), None);
        let mut sample = Sample::new(1);
        for _ in 0..5 {
            let state = sample.hard_state();
            file.save(&state).unwrap();
            let found = opened(directory.path(), WrittenBy::Memory).unwrap().load().unwrap();
            assert_eq!((found.written_by, found.state), (WrittenBy::Sled, state));
        }
    }

    #[test]
    fn a_damaged_file_is_named() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("hard-state"), b"no record at all").unwrap();
        let error = opened(directory.path(), WrittenBy::Sled).unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
        assert!(error.to_string().contains("hard-state"), "{error}");
    }

    #[test]
    fn the_largest_cluster_that_may_be_has_room() {
        let members = (1..=MEMBERS_MAX as u16).map(|number| Member {
            id: NodeId(number),
            incarnation: Incarnation(u64::MAX),
            address: "127.0.0.1:9000".parse().unwrap(),
        });
        let configuration = Configuration::new(1, members.collect(), ClusterLimits::default());
        configuration.check().unwrap();
        let birth =
            Birth { cluster: 1, node: NodeId(1), configuration, digest_key: Sample::DIGEST_KEY };
        let state = HardState {
            term: 1,
            vote: None,
            incarnation: Incarnation(1),
            birth: Some(birth),
            durability: Durability::Sync,
            clean: false,
        };
        let directory = tempfile::tempdir().unwrap();
        opened(directory.path(), WrittenBy::Memory).unwrap().save(&state).unwrap();
        let found = opened(directory.path(), WrittenBy::Memory).unwrap().load().unwrap();
        assert_eq!(found.state, state);
    }
}
