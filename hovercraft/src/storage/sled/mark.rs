//! The mark: how much of the log is known to be on disk (P38).
//!
//! A file that holds the number of the last run that a sync has covered. It is written after each
//! sync, in place and without a sync of its own, which costs a microsecond: it outlives the process
//! at once, and the machine a little later. Whatever age it is found at, what it says was synced
//! before, so a log that ends earlier has lost something at its tail.

use std::{fs::File, os::unix::fs::FileExt, path::PathBuf};

use crate::storage::{
    StoreError,
    directory::{failed, read_small_file, replace_file},
    record::{RecordError, decode_synced, encode_synced},
};

/// The file `synced` in a data directory.
#[derive(Debug)]
pub(super) struct SyncedMark {
    path: PathBuf,
    /// None until there is a file with an intact record, which is then written over.
    file: Option<File>,
    number: Option<u64>,
}

impl SyncedMark {
    /// Reads the mark; one that is damaged is as good as none.
    pub(super) fn open(path: PathBuf) -> Result<Self, StoreError> {
        let number = match read_small_file(&path)?.map(|bytes| decode_synced(&bytes)) {
            // No log gets beyond; what follows may count on.
            Some(Ok(number)) => Some(number).filter(|&number| number <= u64::MAX / 2),
            Some(Err(error @ RecordError::Version(_))) => return Err(error.at(&path, "the mark")),
            Some(Err(_)) | None => None,
        };
        let mut mark = Self { path, file: None, number };
        if number.is_some() {
            mark.file = Some(mark.open_file()?);
        }
        Ok(mark)
    }

    /// The number of the last run that was known to be on disk.
    pub(super) fn number(&self) -> Option<u64> {
        self.number
    }

    /// Notes that everything up to the run with this number is on disk.
    pub(super) fn record(&mut self, number: u64) -> Result<(), StoreError> {
        let bytes = encode_synced(number);
        if let Some(file) = &self.file {
            file.write_all_at(&bytes, 0).map_err(failed("write", &self.path))?;
        } else {
            replace_file(&self.path, &bytes)?;
            self.file = Some(self.open_file()?);
        }
        self.number = Some(number);
        Ok(())
    }

    fn open_file(&self) -> Result<File, StoreError> {
        File::options().write(true).open(&self.path).map_err(failed("open", &self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_is_read_back_and_a_damaged_one_is_none() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("synced");
        let mut mark = SyncedMark::open(path.clone()).unwrap();
        assert_eq!(mark.number(), None);
        mark.record(7).unwrap();
        mark.record(9).unwrap();
        assert_eq!(mark.number(), Some(9));
        assert_eq!(SyncedMark::open(path.clone()).unwrap().number(), Some(9));

        let mut bytes = std::fs::read(&path).unwrap();
        bytes[12] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let mut damaged = SyncedMark::open(path.clone()).unwrap();
        assert_eq!(damaged.number(), None);
        damaged.record(10).unwrap();
        assert_eq!(SyncedMark::open(path).unwrap().number(), Some(10));
    }
}
