//! Reads the log back: puts the pieces together and follows the chain of runs.
//!
//! What one crash can leave is put right; all else is damage, and never skipped (P38):
//!
//! - a last run cut short, by an append that no sync followed, is left out;
//! - the rest of a run before the first whole one, by a trim, is left out;
//! - a gap, or a run that does not follow the one before it by index and number, is damage.

use std::{collections::VecDeque, path::Path};

use ::sled::Db;

use super::log::{Span, attempt};
use crate::{
    entry::{Entry, Index},
    storage::{
        StoreError,
        directory::damaged,
        record::{RecordError, decode_run},
    },
};

/// What was in sled.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// In order and without gaps.
    pub(super) runs: VecDeque<Span>,
    /// Of all runs.
    pub(super) entries: Vec<Entry>,
    /// Pieces of no whole run, to be removed.
    pub(super) strays: Vec<[u8; 12]>,
}

pub(super) fn read_runs(path: &Path, db: &Db) -> Result<Found, StoreError> {
    let mut reader = Reader { path, found: Found::default(), open: None };
    let mut pieces = db.iter();
    while let Some((key, piece)) = attempt(path, "read", || pieces.next().transpose())? {
        let key = key
            .as_ref()
            .try_into()
            .map_err(|_| damaged(path, format!("the key {:?}", key.as_ref())))?;
        reader.add(key, &piece)?;
    }
    reader.finish()
}

/// Takes the pieces in the order of their keys.
struct Reader<'a> {
    path: &'a Path,
    found: Found,
    open: Option<OpenRun>,
}

/// A run of which further pieces may come.
struct OpenRun {
    first: Index,
    piece_count: u32,
    record: Vec<u8>,
}

impl Reader<'_> {
    fn add(&mut self, key: [u8; 12], piece: &[u8]) -> Result<(), StoreError> {
        let (first, number) = key.split_at(8);
        let first = Index::from_be_bytes(first.try_into().expect("eight bytes"));
        let number = u32::from_be_bytes(number.try_into().expect("four bytes"));
        if number == 0 {
            if let Some(run) = self.open.take() {
                self.close(&run)?;
            }
            self.open = Some(OpenRun { first, piece_count: 1, record: piece.to_vec() });
            return Ok(());
        }
        match &mut self.open {
            Some(run) if run.first == first && run.piece_count == number => {
                run.piece_count += 1;
                run.record.extend_from_slice(piece);
                Ok(())
            }
            None if self.found.runs.is_empty() => {
                self.found.strays.push(key);
                Ok(())
            }
            _ => Err(self.damaged(first, "a piece is missing")),
        }
    }

    /// Takes a run that should be whole.
    fn close(&mut self, open: &OpenRun) -> Result<(), StoreError> {
        let first = open.first;
        let run = decode_run(&open.record)
            .map_err(|error| error.at(self.path, &format!("the run of entry {first}")))?;
        if run.first != first {
            return Err(self.damaged(first, "it is another run"));
        }
        if let Some(last) = self.found.runs.back() {
            if last.end() != first {
                return Err(self.damaged(last.end(), "it is missing"));
            }
            if last.number != run.previous || last.number >= run.number {
                return Err(self.damaged(first, "an old version of the run before it came back"));
            }
        }
        let entry_count = run.entries.len() as u64;
        // No log gets there; what follows may count on from both.
        if first.max(run.number) > u64::MAX / 2 {
            return Err(self.damaged(first, "its index or number is out of range"));
        }
        let (piece_count, number) = (open.piece_count, run.number);
        self.found.runs.push_back(Span { first, entry_count, piece_count, number });
        self.found.entries.extend(run.entries);
        Ok(())
    }

    fn finish(mut self) -> Result<Found, StoreError> {
        if let Some(run) = self.open.take() {
            if matches!(decode_run(&run.record), Err(RecordError::Short)) {
                let cut = Span {
                    first: run.first,
                    entry_count: 0,
                    piece_count: run.piece_count,
                    number: 0,
                };
                self.found.strays.extend(cut.keys());
            } else {
                self.close(&run)?;
            }
        }
        Ok(self.found)
    }

    fn damaged(&self, first: Index, why: &str) -> StoreError {
        damaged(self.path, format!("the run of entry {first} ({why})"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{record::encode_run, suite::sample::Sample};

    /// Reads back runs, each (first, number, previous, count), cut into pieces of 1,000 bytes, of
    /// which some are missing.
    fn read(runs: &[(u64, u64, u64, u64)], missing: &[(u64, u32)]) -> Result<Found, StoreError> {
        let directory = tempfile::tempdir().unwrap();
        let db = ::sled::open(directory.path()).unwrap();
        for &(first, number, previous, count) in runs {
            let mut sample = Sample::new(first);
            let entries: Vec<_> = (0..count).map(|_| sample.large_entry(1, 500)).collect();
            let record = encode_run(first, number, previous, &entries);
            for (piece, bytes) in (0..).zip(record.chunks(1_000)) {
                if !missing.contains(&(first, piece)) {
                    db.insert(crate::storage::sled::log::key(first, piece), bytes).unwrap();
                }
            }
        }
        read_runs(directory.path(), &db)
    }

    fn refused(runs: &[(u64, u64, u64, u64)], missing: &[(u64, u32)], why: &str) {
        let error = read(runs, missing).unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
        assert!(error.to_string().contains(why), "{error}");
    }

    const GOOD: [(u64, u64, u64, u64); 3] = [(5, 2, 1, 4), (9, 3, 2, 4), (13, 7, 3, 4)];

    #[test]
    fn runs_are_put_together() {
        let found = read(&GOOD, &[]).unwrap();
        assert_eq!((found.runs.len(), found.entries.len(), found.strays.len()), (3, 12, 0));
        assert_eq!(found.runs[0].first, 5);
        let last = found.runs[2];
        assert_eq!((last.end(), last.number, last.piece_count), (17, 7, 3));
        let empty_at_the_end = [GOOD[0], (9, 3, 2, 0)];
        assert_eq!(read(&empty_at_the_end, &[]).unwrap().entries.len(), 4);
        assert!(read(&[], &[]).unwrap().runs.is_empty());
    }

    /// What one crash leaves: an append that was cut, and a trim that was.
    #[test]
    fn a_cut_at_either_end_is_left_out() {
        let found = read(&GOOD, &[(13, 2)]).unwrap();
        assert_eq!((found.runs.len(), found.entries.len(), found.strays.len()), (2, 8, 2));
        let found = read(&GOOD, &[(5, 0), (5, 1)]).unwrap();
        assert_eq!((found.runs.len(), found.entries.len(), found.strays.len()), (2, 8, 1));
    }

    /// P38: damage before the tail is never silently skipped.
    #[test]
    fn all_else_is_damage() {
        refused(&GOOD, &[(9, 0)], "the run of entry 9 (a piece is missing)");
        refused(&GOOD, &[(9, 1)], "the run of entry 9 (a piece is missing)");
        refused(&GOOD, &[(9, 2)], "the run of entry 9 (it is cut short)");
        refused(&GOOD, &[(5, 2)], "the run of entry 5 (it is cut short)");
        refused(&GOOD, &[(9, 0), (9, 1), (9, 2)], "the run of entry 9 (it is missing)");
        refused(&[GOOD[0], (10, 3, 2, 4)], &[], "the run of entry 9 (it is missing)");
        refused(&[GOOD[0], (8, 3, 2, 4)], &[], "the run of entry 9 (it is missing)");
        refused(&[(5, 2, 1, 0), (9, 3, 2, 4)], &[], "the run of entry 5 (it is missing)");
        let old = "an old version of the run before it came back";
        refused(&[(5, 2, 1, 4), (9, 4, 3, 4)], &[], old);
        refused(&[(5, 4, 1, 4), (9, 4, 4, 4)], &[], old);
        refused(&[(u64::MAX - 1, 4, 1, 4)], &[], "out of range");
    }
}
