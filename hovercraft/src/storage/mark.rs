//! The mark: how much of the log is known to be on disk (P38).
//!
//! A file that holds the number of the last write that a sync has covered. It is written after each
//! sync, in place and without a sync of its own, which costs a microsecond: it outlives the process
//! at once, and the machine a little later. Whatever age it is found at, what it says was synced
//! before, so a log that ends earlier has lost something at its tail.

use std::{path::PathBuf, sync::Arc};

use super::{
    StoreError,
    directory::{failed, read_small_file, replace_file},
    disk::{Disk, DiskFile},
    record::{RecordError, decode_synced, encode_synced},
};

const NAME: &str = "synced";

/// The file `synced` in a data directory.
#[derive(Debug)]
pub(super) struct SyncedMark {
    disk: Arc<dyn Disk>,
    /// None until there is a file with an intact record, which is then written over.
    file: Option<Box<dyn DiskFile>>,
    number: Option<u64>,
}

impl SyncedMark {
    /// Reads the mark; one that is damaged is as good as none.
    pub(super) fn open(disk: Arc<dyn Disk>) -> Result<Self, StoreError> {
        let number = match read_small_file(&*disk, NAME)?.map(|bytes| decode_synced(&bytes)) {
            // No log gets beyond; what follows may count on.
            Some(Ok(number)) => Some(number).filter(|&number| number <= u64::MAX / 2),
            Some(Err(error @ RecordError::Version(_))) => {
                return Err(error.at(&disk.path().join(NAME), "the mark"));
            }
            Some(Err(_)) | None => None,
        };
        let mut mark = Self { disk, file: None, number };
        if number.is_some() {
            mark.file = Some(mark.open_file()?);
        }
        Ok(mark)
    }

    /// The number of the last write that was known to be on disk.
    pub(super) fn number(&self) -> Option<u64> {
        self.number
    }

    /// Notes that everything up to the write with this number is on disk.
    pub(super) fn record(&mut self, number: u64) -> Result<(), StoreError> {
        let bytes = encode_synced(number);
        if let Some(file) = &mut self.file {
            let written = file.write_at(0, &bytes);
            written.map_err(|source| failed("write", &self.path())(source))?;
        } else {
            replace_file(&*self.disk, NAME, &bytes)?;
            self.file = Some(self.open_file()?);
        }
        self.number = Some(number);
        Ok(())
    }

    fn open_file(&self) -> Result<Box<dyn DiskFile>, StoreError> {
        self.disk.open(NAME).map_err(failed("open", &self.path()))
    }

    fn path(&self) -> PathBuf {
        self.disk.path().join(NAME)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::disk::FileDisk;

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

        let mut bytes = std::fs::read(&path).unwrap();
        bytes[12] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let mut damaged = SyncedMark::open(disk.clone()).unwrap();
        assert_eq!(damaged.number(), None);
        damaged.record(10).unwrap();
        assert_eq!(SyncedMark::open(disk).unwrap().number(), Some(10));
    }
}
