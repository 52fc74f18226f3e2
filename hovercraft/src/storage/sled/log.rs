//! The log in sled: runs of entries, cut into pieces.
//!
//! | key | value |
//! |---|---|
//! | index of the run's first entry u64, number of the piece u32 (both big-endian) | the piece |
//!
//! The pieces of a run, one after another, are its record (kind 2 of
//! [`record`](crate::storage::record)). A run is what one append brought, so a small append costs
//! one insertion into sled, and a large one an insertion for every [`PIECE_BYTES`].
//!
//! There is always at least one run, the last: it says where the log ends and what its number is.
//! When entries are removed from the end and none take their place, the last run is an empty one.
//!
//! sled keeps the order of insertions through a crash: what is found is what a prefix of them
//! left. So an append that takes nothing away needs no transaction: a crash leaves a prefix of its
//! runs, and a last run cut short, which is removed at the start. An append that takes something
//! away is one transaction of sled (P37). Runs are removed from the front piece by piece, and the
//! rest of one that a crash left there is removed at the start.

use std::{
    collections::VecDeque,
    fmt,
    fs::{self, File},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use ::sled::{Batch, Db, IVec, Mode};

use super::load::{Found, read_runs};
use crate::{
    entry::{Entry, Index},
    storage::{
        StoreError,
        directory::{create_directory, damaged, failed, remove_directory, sync_directory},
        record::{Run, decode_run, encode_run, split_into_runs},
    },
};

/// sled keeps up to 20 values in a page, and writes a page of more than 128 KiB to a file that it
/// never syncs: 20 of ours, with their keys, stay below.
const PIECE_BYTES: usize = 6000;

/// What sled keeps of its pages in memory. Only the last pages of the log are ever used again.
const CACHE_BYTES: u64 = 64 << 20;

/// A run, without its entries.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    pub(super) first: Index,
    pub(super) entry_count: u64,
    pub(super) piece_count: u32,
    pub(super) number: u64,
}

impl Span {
    /// The index after its last entry.
    pub(super) fn end(&self) -> Index {
        self.first + self.entry_count
    }

    pub(super) fn keys(self) -> impl Iterator<Item = [u8; 12]> {
        (0..self.piece_count).map(move |piece| key(self.first, piece))
    }
}

/// The key of a piece of the run that begins at `first`.
pub(super) fn key(first: Index, piece: u32) -> [u8; 12] {
    let mut key = [0; 12];
    key[..8].copy_from_slice(&first.to_be_bytes());
    key[8..].copy_from_slice(&piece.to_be_bytes());
    key
}

/// A piece to be written, or removed.
struct Change {
    key: [u8; 12],
    piece: Option<IVec>,
}

/// The entries of one replica.
pub(super) struct SledLog {
    path: PathBuf,
    db: Db,
    /// sled's file, to sync what sled leaves out.
    file: File,
    /// In order, without gaps; never empty.
    runs: VecDeque<Span>,
    next_number: u64,
    /// Runs that end here or before are removed, a few with each append.
    trim_below: Index,
    /// Something was written since the last sync.
    dirty: bool,
}

impl SledLog {
    /// Reads back the log in `path`, and its entries; none if there is no log there.
    pub(super) fn open(path: &Path) -> Result<Option<(Self, Vec<Entry>)>, StoreError> {
        if !path.is_dir() {
            return Ok(None);
        }
        let (db, file) = open_sled(path)?;
        let Found { runs, entries, strays } = read_runs(path, &db)?;
        for key in strays {
            attempt(path, "remove", || db.remove(key))?;
        }
        let Some(last) = runs.back() else {
            return Ok(None);
        };
        let next_number = last.number + 1;
        let path = path.to_owned();
        let log = Self { path, db, file, runs, next_number, trim_below: 0, dirty: true };
        Ok(Some((log, entries)))
    }

    /// Makes an empty log in place of any that is in `path`. Its next entry will have index
    /// `next`, its first run has this number. On disk when this returns.
    pub(super) fn create(path: &Path, next: Index, number: u64) -> Result<Self, StoreError> {
        remove_directory(path)?;
        let (db, file) = open_sled(path)?;
        let runs = VecDeque::new();
        let next_number = number;
        let path_buf = path.to_owned();
        let mut log =
            Self { path: path_buf, db, file, runs, next_number, trim_below: 0, dirty: true };
        let mut changes = Vec::new();
        log.push_run(next, &[], &mut changes);
        log.insert(changes)?;
        log.sync()?;
        // sled does not sync its small files, nor their names.
        for entry in fs::read_dir(path).map_err(failed("list", path))? {
            let file = entry.map_err(failed("list", path))?.path();
            File::open(&file).and_then(|file| file.sync_all()).map_err(failed("sync", &file))?;
        }
        sync_directory(path)?;
        Ok(log)
    }

    /// Removes everything; the next entry will have index `next`. On disk when this returns.
    pub(super) fn skip_to(&mut self, next: Index) -> Result<(), StoreError> {
        let keys = self.runs.drain(..).flat_map(Span::keys);
        let mut changes: Vec<_> = keys.map(|key| Change { key, piece: None }).collect();
        self.push_run(next, &[], &mut changes);
        self.dirty = true;
        self.apply(changes)?;
        self.sync().map(drop)
    }

    /// See [`LogStore::append`](crate::storage::LogStore::append).
    pub(super) fn append(&mut self, first: Index, entries: &[Entry]) -> Result<(), StoreError> {
        let (start, next) = (self.first_index(), self.next_index());
        assert!((start..=next).contains(&first), "append at {first} to a log of {start}..{next}");
        let mut changes = Vec::new();
        let number = self.next_number;
        self.truncate(first, &mut changes)?;
        let truncated = !changes.is_empty();
        if !entries.is_empty() {
            let mut at = first;
            for run in split_into_runs(entries) {
                self.push_run(at, run, &mut changes);
                at += run.len() as u64;
            }
        } else if truncated && number == self.next_number {
            // The end of the log has a number of its own, also where nothing follows.
            self.push_run(first, &[], &mut changes);
        }
        let change_count = changes.len();
        self.dirty |= change_count > 0;
        if truncated { self.apply(changes) } else { self.insert(changes) }?;
        // Twice what came, so that trimming keeps up however far behind it is.
        self.remove_trimmed(2 * change_count)
    }

    /// Removes every run from `first` on, and cuts the one that `first` is in the middle of.
    fn truncate(&mut self, first: Index, changes: &mut Vec<Change>) -> Result<(), StoreError> {
        while let Some(run) = self.runs.pop_back_if(|run| run.first >= first || run.end() > first) {
            changes.extend(run.keys().map(|key| Change { key, piece: None }));
            if run.first < first {
                let mut entries = self.read(run)?.entries;
                entries.truncate((first - run.first) as usize);
                self.push_run(run.first, &entries, changes);
                break;
            }
        }
        Ok(())
    }

    fn push_run(&mut self, first: Index, entries: &[Entry], changes: &mut Vec<Change>) {
        let previous = self.runs.back().map_or(0, |run| run.number);
        let number = self.next_number;
        let record = encode_run(first, number, previous, entries);
        let mut piece_count = 0;
        for piece in record.chunks(PIECE_BYTES) {
            changes.push(Change { key: key(first, piece_count), piece: Some(piece.into()) });
            piece_count += 1;
        }
        self.next_number += 1;
        let entry_count = entries.len() as u64;
        self.runs.push_back(Span { first, entry_count, piece_count, number });
    }

    /// Makes changes that only add, in order.
    fn insert(&self, changes: Vec<Change>) -> Result<(), StoreError> {
        for Change { key, piece } in changes {
            let piece = piece.expect("an append that removes is a transaction");
            attempt(&self.path, "append", || self.db.insert(key, piece))?;
        }
        Ok(())
    }

    /// Makes all changes in one transaction; the last change of a key counts.
    fn apply(&self, changes: Vec<Change>) -> Result<(), StoreError> {
        let mut batch = Batch::default();
        for Change { key, piece } in changes {
            match piece {
                Some(piece) => batch.insert(&key, piece),
                None => batch.remove(&key),
            }
        }
        attempt(&self.path, "truncate and append", || self.db.apply_batch(batch))
    }

    fn read(&self, run: Span) -> Result<Run, StoreError> {
        let what = || format!("the run of entry {}", run.first);
        let mut record = Vec::new();
        for key in run.keys() {
            let piece = attempt(&self.path, "read", || self.db.get(key))?;
            record.extend_from_slice(&piece.ok_or_else(|| damaged(&self.path, what()))?);
        }
        decode_run(&record).map_err(|error| error.at(&self.path, &what()))
    }

    /// Removes runs of which every entry is below `first`, but never the last, in time: a few with
    /// each append, because sled takes several seconds to remove a million.
    pub(super) fn trim(&mut self, first: Index) {
        self.trim_below = self.trim_below.max(first);
    }

    fn remove_trimmed(&mut self, piece_count_max: usize) -> Result<(), StoreError> {
        let mut piece_count = 0;
        while piece_count < piece_count_max && self.runs.len() > 1 {
            let Some(run) = self.runs.pop_front_if(|run| run.end() <= self.trim_below) else {
                break;
            };
            for key in run.keys() {
                attempt(&self.path, "trim", || self.db.remove(key))?;
                piece_count += 1;
            }
        }
        Ok(())
    }

    /// Puts everything on disk; returns whether there was anything to do.
    pub(super) fn sync(&mut self) -> Result<bool, StoreError> {
        if !self.dirty {
            return Ok(false);
        }
        attempt(&self.path, "sync", || self.db.flush())?;
        // sled asks for its pages to be written, not for the file's size and extents.
        self.file.sync_data().map_err(failed("sync", &self.path))?;
        self.dirty = false;
        Ok(true)
    }

    /// Gives further runs numbers above this one.
    pub(super) fn number_above(&mut self, number: u64) {
        self.next_number = self.next_number.max(number + 1);
    }

    /// The index of the first entry, or of the next one if there are none.
    pub(super) fn first_index(&self) -> Index {
        self.runs.front().expect("there is always a run").first
    }

    /// The index that comes after the last entry.
    pub(super) fn next_index(&self) -> Index {
        self.last().end()
    }

    /// The number of the last run.
    pub(super) fn last_number(&self) -> u64 {
        self.last().number
    }

    fn last(&self) -> &Span {
        self.runs.back().expect("there is always a last run")
    }
}

impl fmt::Debug for SledLog {
    /// Without the contents, which sled would print whole.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SledLog")
            .field("path", &self.path)
            .field("first", &self.runs.front())
            .field("last", &self.runs.back())
            .finish_non_exhaustive()
    }
}

/// Opens sled, and its file beside it.
fn open_sled(path: &Path) -> Result<(Db, File), StoreError> {
    create_directory(path)?;
    let file_path = path.join("db");
    // sled's threads may hold the file, locked, for a moment after its owner in this process has
    // dropped it. Nobody else can: the directory is ours.
    if file_path.exists() {
        File::open(&file_path).and_then(|file| file.lock()).map_err(failed("lock", &file_path))?;
    }
    let db = attempt(path, "open", || {
        ::sled::Config::new()
            .path(path)
            .cache_capacity(CACHE_BYTES)
            .mode(Mode::HighThroughput)
            .flush_every_ms(None)
            .open()
    })?;
    let file = File::open(&file_path).map_err(failed("open", &file_path))?;
    Ok((db, file))
}

/// Calls sled. Damage makes it panic in places, which must not take the process with it (P40).
pub(super) fn attempt<T>(
    path: &Path,
    action: &str,
    call: impl FnOnce() -> ::sled::Result<T>,
) -> Result<T, StoreError> {
    // After an error or a panic nothing of sled is used again, so nothing broken is seen.
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(::sled::Error::Io(source))) => Err(failed(action, path)(source)),
        Ok(Err(error @ ::sled::Error::Corruption { .. })) => {
            Err(damaged(path, format!("sled's file ({error})")))
        }
        Ok(Err(error)) => Err(failed(action, path)(std::io::Error::other(error))),
        Err(_) => Err(damaged(path, format!("sled's file (sled panicked on: {action})"))),
    }
}
