//! The default store: the log in segments of our own, everything else in small files.
//!
//! | name in the directory | what it is |
//! |---|---|
//! | `lock` | held while the directory is in use |
//! | `hard-state` | the hard state, see [`record`](super::record) |
//! | `log/` | the segments, see [`segment`] and [`format`] |
//! | `synced` | the mark: how much of the log is known to be on disk, see [`mark`](super::mark) |
//! | `snapshots/` | the latest snapshot, see [`snapshots`](super::snapshots) |
//!
//! `docs/log.md` has all of it byte by byte, and what happens after a crash.

mod format;
mod fuzz;
mod inspect;
mod log;
mod recovery;
mod segment;

use std::{mem, path::Path, sync::Arc};

#[doc(hidden)]
pub use self::fuzz::fuzz_recovery;
pub use self::inspect::{Inspection, RecordView, inspect};
use self::log::{Opened, SegmentedLog};
use super::{
    HardState, Loaded, LogStore, Room, SnapshotMeta, SnapshotSink, SnapshotStore, StoreError,
    StoreKind, Tail, Torn,
    directory::{Directory, failed, full},
    disk::Disk,
    hard_state::HardStateFile,
    health::Health,
    mark::SyncedMark,
    record::{HardStateRecord, WrittenBy},
    snapshots::SnapshotFiles,
};
use crate::entry::{Entry, Index};

/// Keeps everything on disk, the log in segments.
///
/// An append is encoded into memory and costs no system call; a sync costs one write and one sync,
/// however many appends it follows. So it is worth while to sync once for many appends.
#[derive(Debug)]
pub struct SegmentedStore {
    log: SegmentedLog,
    mark: SyncedMark,
    hard_state: HardStateFile,
    snapshots: Arc<SnapshotFiles>,
    health: Arc<Health>,
    /// What `open` found, until `load` hands it out.
    found: Loaded,
    place: Arc<Path>,
    /// Last, because it is the last to go: its lock covers all the rest. None on a disk that is
    /// nobody else's.
    _directory: Option<Directory>,
}

impl SegmentedStore {
    /// The size of a segment, unless one entry is larger. What a trim gives back comes in these.
    pub const SEGMENT_BYTES: u64 = 16 << 20;

    /// Opens the store in `directory`, which is created if it is not there. Finishes what a crash
    /// cut: an install, an append that no sync followed.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        let directory = Directory::open(directory)?;
        let disk = directory.disk();
        let seed = fastrand::Rng::new().u64(..);
        Self::build(&disk, seed, Self::SEGMENT_BYTES, Some(directory))
    }

    /// Opens the store on a disk that nobody else uses, with segments of this size, at least 64
    /// KiB. The seed tells apart the records of different lives of a file: another one each time.
    pub fn open_on(
        disk: &Arc<dyn Disk>,
        seed: u64,
        segment_bytes: u64,
    ) -> Result<Self, StoreError> {
        Self::build(disk, seed, segment_bytes.max(64 << 10), None)
    }

    fn build(
        disk: &Arc<dyn Disk>,
        seed: u64,
        segment_bytes: u64,
        directory: Option<Directory>,
    ) -> Result<Self, StoreError> {
        let mut hard_state = HardStateFile::open(Arc::clone(disk), WrittenBy::Segmented)?;
        let record = hard_state.load();
        refuse_other_store(disk.path(), record.as_ref())?;
        let inner = |name| disk.directory(name).map_err(failed("create a directory", disk.path()));
        let health = Arc::new(Health::default());
        let snapshots = SnapshotFiles::open(inner("snapshots")?, Arc::clone(&health))?;
        let mark = SyncedMark::open(Arc::clone(disk))?;
        let synced = mark.number();
        let (log, opened) =
            SegmentedLog::open(inner("log")?, synced.unwrap_or(0), seed, segment_bytes)?;
        let mut store = Self {
            log,
            mark,
            hard_state,
            snapshots,
            health,
            found: nothing(),
            place: disk.path().into(),
            _directory: directory,
        };
        // P38: the mark is made before the first hard state is saved, so one that is missing in a
        // used directory was lost. What another store acknowledged is not in this log.
        let is_ours = record.as_ref().is_none_or(|it| it.written_by == WrittenBy::Segmented);
        let is_mark_lost = synced.is_none() && record.is_some();
        let torn = torn(is_ours, is_mark_lost, opened.torn);
        store.settle(opened, torn)?;
        store.found.snapshot = store.snapshots.latest();
        let is_empty = store.found.entries.is_empty() && store.found.snapshot.is_none();
        if record.is_none() && !is_empty {
            return Err(store.hard_state.missing());
        }
        if record.is_none() && store.mark.number().is_none() {
            return Err(full("make the mark", disk.path()));
        }
        store.found.hard_state = record.map(|record| record.state);
        Ok(store)
    }

    /// Brings the log and the snapshots together.
    fn settle(&mut self, opened: Opened, torn: Option<Torn>) -> Result<(), StoreError> {
        if let Some(index) = self.snapshots.unfinished_install() {
            // What the log held does not matter any more, nor that some of it is missing.
            let snapshots = Arc::clone(&self.snapshots);
            snapshots.finish_install(|| self.restart_log(index + 1))?;
            self.found.first_index = index + 1;
            return Ok(());
        }
        let latest = self.snapshots.latest();
        let next = latest.as_ref().map_or(0, |meta| meta.index) + 1;
        let Opened { first_index, entries, .. } = opened;
        self.found.torn = torn;
        match judge(&self.place, latest.as_ref(), first_index, &entries)? {
            Tail::Stays => {
                (self.found.first_index, self.found.entries) = (first_index, entries);
                if torn.is_some() {
                    return Ok(());
                }
                self.log.prepare()?;
                self.mark.record(self.log.last_number())
            }
            Tail::Goes => {
                self.found.first_index = next;
                if torn.is_some() {
                    // With the next record, so that a tail that is torn is found again until the
                    // caller has taken note of it.
                    self.log.skip_to(next);
                    Ok(())
                } else {
                    self.restart_log(next)
                }
            }
        }
    }

    /// Empties the log, durably; the next entry will have index `next`.
    fn restart_log(&mut self, next: Index) -> Result<(), StoreError> {
        self.log.restart(next)?;
        self.mark.record(self.log.last_number())
    }

    fn sync_log(&mut self) -> Result<(), StoreError> {
        if planted!("mark-before-sync") {
            self.mark.record(self.log.last_number())?;
        }
        if self.log.sync()? {
            self.mark.record(self.log.last_number())?;
        }
        Ok(())
    }

    fn guard<T>(
        &mut self,
        call: impl FnOnce(&mut Self) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let (health, place) = (Arc::clone(&self.health), Arc::clone(&self.place));
        health.guard(&place, || call(self))
    }
}

impl LogStore for SegmentedStore {
    fn load(&mut self) -> Result<Loaded, StoreError> {
        self.guard(|store| Ok(mem::replace(&mut store.found, nothing())))
    }

    fn save_hard_state(&mut self, state: &HardState) -> Result<(), StoreError> {
        self.guard(|store| {
            if state.clean {
                store.sync_log()?;
            }
            store.hard_state.save(state)
        })
    }

    fn append(&mut self, first: Index, entries: &[Entry]) -> Result<(), StoreError> {
        self.guard(|store| store.log.append(first, entries))
    }

    fn room(&mut self, entry_bytes_max: u64) -> Result<Room, StoreError> {
        self.guard(|store| store.log.room(entry_bytes_max))
    }

    fn sync(&mut self) -> Result<(), StoreError> {
        self.guard(Self::sync_log)
    }

    fn trim(&mut self, first: Index) -> Result<(), StoreError> {
        self.guard(|store| {
            let covered = store.snapshots.latest().map_or(0, |meta| meta.index);
            store.log.trim(first.min(covered + 1))
        })
    }

    fn snapshots(&self) -> Arc<dyn SnapshotStore> {
        Arc::clone(&self.snapshots) as Arc<dyn SnapshotStore>
    }

    fn install(
        &mut self,
        snapshot: Box<dyn SnapshotSink>,
        meta: &SnapshotMeta,
        keep_tail: bool,
    ) -> Result<(), StoreError> {
        self.guard(|store| {
            let snapshots = Arc::clone(&store.snapshots);
            let next = meta.index + 1;
            // To begin the log anew is a record, for which there must be room before anything
            // changes.
            store.log.make_room(&[])?;
            // The tail is what follows the snapshot without a gap.
            if keep_tail && (store.log.first_index()..=store.log.next_index()).contains(&next) {
                if !planted!("install-before-sync") {
                    store.sync_log()?;
                }
                snapshots.install_keeping(snapshot, meta)?;
                store.log.trim(next)
            } else {
                snapshots.install_dropping(snapshot, meta, || store.restart_log(next))
            }
        })
    }
}

/// Refuses a directory whose log is in a store that has to be asked for by name.
fn refuse_other_store(place: &Path, record: Option<&HardStateRecord>) -> Result<(), StoreError> {
    if record.is_some_and(|record| record.written_by == WrittenBy::Sled) {
        let place = place.display().to_string();
        return Err(StoreError::OtherStore { place, found: StoreKind::Sled });
    }
    Ok(())
}

/// Puts the log of a directory beside its latest snapshot.
fn judge(
    place: &Path,
    snapshot: Option<&SnapshotMeta>,
    first_index: Index,
    entries: &[Entry],
) -> Result<Tail, StoreError> {
    Tail::of(snapshot, first_index, entries)
        .map_err(|contradiction| contradiction.at(&place.join("log")))
}

/// What may be lost, most of it first.
fn torn(is_ours: bool, is_mark_lost: bool, is_tail_lost: bool) -> Option<Torn> {
    if !is_ours {
        Some(Torn::OtherStore)
    } else if is_mark_lost {
        Some(Torn::Mark)
    } else {
        is_tail_lost.then_some(Torn::Tail)
    }
}

fn nothing() -> Loaded {
    Loaded { hard_state: None, snapshot: None, first_index: 1, entries: Vec::new(), torn: None }
}
