//! The hard state in a small file of its own, replaced whole and synced at every change (P37).
//!
//! It is apart from the log because term and vote must be on disk before they are used in every
//! durability, `memory` too, and because a log that is damaged or thrown away must not take the
//! vote with it.

use std::{path::PathBuf, sync::Arc};

use super::{
    HardState, StoreError,
    directory::{damaged, read_small_file, replace_file, sync_names},
    disk::Disk,
    record::{HardStateRecord, WrittenBy, decode_hard_state, encode_hard_state},
};

/// The file `hard-state` in a data directory.
#[derive(Debug)]
pub(super) struct HardStateFile {
    disk: Arc<dyn Disk>,
    writer: WrittenBy,
}

const NAME: &str = "hard-state";

impl HardStateFile {
    pub(super) fn new(disk: Arc<dyn Disk>, writer: WrittenBy) -> Self {
        Self { disk, writer }
    }

    /// None if there is no such file.
    pub(super) fn load(&self) -> Result<Option<HardStateRecord>, StoreError> {
        let Some(bytes) = read_small_file(&*self.disk, NAME)? else {
            return Ok(None);
        };
        // A crash may have come between the rename and the sync of the directory: the caller will
        // use what it is told here.
        sync_names(&*self.disk)?;
        decode_hard_state(&bytes)
            .map(Some)
            .map_err(|error| error.at(&self.path(), "the hard state"))
    }

    /// On disk when this returns.
    pub(super) fn save(&self, state: &HardState) -> Result<(), StoreError> {
        let record = HardStateRecord { written_by: self.writer, state: state.clone() };
        replace_file(&*self.disk, NAME, &encode_hard_state(&record))
    }

    /// The error for a directory that holds a log or a snapshot but no hard state. *Because* the
    /// vote is gone with it: to go on would be to vote twice in one term.
    pub(super) fn missing(&self) -> StoreError {
        damaged(&self.path(), "the hard state of this log is missing: the directory")
    }

    fn path(&self) -> PathBuf {
        self.disk.path().join(NAME)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{disk::FileDisk, suite::sample::Sample};

    #[test]
    fn the_file_holds_the_last_state_and_who_wrote_it() {
        let directory = tempfile::tempdir().unwrap();
        let file = HardStateFile::new(FileDisk::new(directory.path()), WrittenBy::Sled);
        assert_eq!(file.load().unwrap(), None);
        let mut sample = Sample::new(1);
        file.save(&sample.hard_state()).unwrap();
        let state = sample.hard_state();
        file.save(&state).unwrap();
        let other = HardStateFile::new(FileDisk::new(directory.path()), WrittenBy::Memory);
        let expected = HardStateRecord { written_by: WrittenBy::Sled, state };
        assert_eq!(other.load().unwrap(), Some(expected));
    }

    #[test]
    fn a_damaged_file_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let file = HardStateFile::new(FileDisk::new(directory.path()), WrittenBy::Sled);
        std::fs::write(file.path(), b"no record at all").unwrap();
        let error = file.load().unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
        assert!(error.to_string().contains("hard-state"), "{error}");
    }
}
