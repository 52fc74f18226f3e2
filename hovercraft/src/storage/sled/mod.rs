//! The durable store: the log in sled, everything else in files of our own.
//!
//! | name in the directory | what it is |
//! |---|---|
//! | `lock` | held while the directory is in use |
//! | `hard-state` | the hard state, see [`record`](super::record) |
//! | `sled/` | the log, see [`log`] |
//! | `synced` | the mark: how much of the log is known to be on disk, see [`mark`](super::mark) |
//! | `snapshots/` | the latest snapshot, see [`snapshots`](super::snapshots) |
//!
//! What sled 0.34.7 leaves to us:
//!
//! - its flush writes the pages of its file, and not the size and the extents without which they
//!   cannot be found after a power cut: `sync` adds an `fdatasync`;
//! - pages too large for its segments go to files that it never syncs: our values are cut into
//!   pieces so small that none does;
//! - a damaged tail is cut without a word, and a damaged segment before the tail brings back old
//!   versions of pages: the mark and the chain of runs find both out;
//! - it panics on some damage: panics become errors here.

mod load;
mod log;

use std::{mem, path::Path, sync::Arc};

use self::log::SledLog;
use super::{
    HardState, Loaded, LogStore, SnapshotMeta, SnapshotSink, SnapshotStore, StoreError, StoreKind,
    Tail, Torn,
    directory::{Directory, failed, full},
    hard_state::HardStateFile,
    health::Health,
    mark::SyncedMark,
    record::WrittenBy,
    snapshots::SnapshotFiles,
};
use crate::entry::{Entry, Index};

/// Keeps everything on disk, the log in sled.
///
/// An append costs one insertion into sled, or one for every 6 KB of entries, so it is worth while
/// to append many entries at once, and to sync once for many appends.
#[derive(Debug)]
pub struct SledStore {
    /// Always there but while the log is replaced; if that fails the health refuses every call.
    log: Option<SledLog>,
    mark: SyncedMark,
    hard_state: HardStateFile,
    snapshots: Arc<SnapshotFiles>,
    health: Arc<Health>,
    /// What `open` found, until `load` hands it out.
    found: Loaded,
    /// Last, because it is the last to go: its lock covers all the rest.
    directory: Directory,
}

impl SledStore {
    /// Opens the store in `directory`, which is created if it is not there. Finishes what a crash
    /// cut: an install, a trim, an append that no sync followed.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        let directory = Directory::open(directory)?;
        let disk = directory.disk();
        let snapshots =
            disk.directory("snapshots").map_err(failed("create a directory", disk.path()))?;
        let health = Arc::new(Health::default());
        let mut store = Self {
            log: None,
            mark: SyncedMark::open(directory.disk())?,
            hard_state: HardStateFile::open(directory.disk(), WrittenBy::Sled)?,
            snapshots: SnapshotFiles::open(snapshots, Arc::clone(&health))?,
            health,
            found: nothing(),
            directory,
        };
        let hard_state = store.hard_state.load();
        if hard_state.as_ref().is_some_and(|it| it.written_by == WrittenBy::Segmented) {
            let place = disk.path().display().to_string();
            return Err(StoreError::OtherStore { place, found: StoreKind::Segmented });
        }
        if let Some(index) = store.snapshots.unfinished_install() {
            // What the log held does not matter any more, nor that a crash left half of it.
            let snapshots = Arc::clone(&store.snapshots);
            snapshots.finish_install(|| store.restart_log(index + 1, None))?;
        } else {
            store.open_log(hard_state.is_some())?;
        }
        store.found.snapshot = store.snapshots.latest();
        if hard_state.is_none()
            && !(store.found.entries.is_empty() && store.found.snapshot.is_none())
        {
            return Err(store.hard_state.missing());
        }
        if hard_state.is_none() && store.mark.number().is_none() {
            return Err(full("make the mark", disk.path()));
        }
        // What another kind of store acknowledged is not in this log.
        if hard_state.as_ref().is_some_and(|it| it.written_by != WrittenBy::Sled) {
            store.found.torn = Some(Torn::OtherStore);
        }
        store.found.hard_state = hard_state.map(|record| record.state);
        Ok(store)
    }

    /// Reads the log back. `used` says that the directory has been used before.
    fn open_log(&mut self, used: bool) -> Result<(), StoreError> {
        let path = self.directory.path().join("sled");
        let synced = self.mark.number();
        let latest = self.snapshots.latest();
        let next = latest.as_ref().map_or(0, |meta| meta.index) + 1;
        let opened = SledLog::open(&path)?;
        // P38: what was synced and is not there is damage at the tail. The mark is made before the
        // first hard state is saved, so one that is missing in a used directory was lost.
        let last_number = opened.as_ref().map(|(log, _)| log.last_number());
        let torn = match synced {
            None => used.then_some(Torn::Mark),
            Some(synced) => last_number.is_none_or(|last| last < synced).then_some(Torn::Tail),
        };
        if let Some((mut log, entries)) = opened {
            log.number_above(synced.unwrap_or(0));
            let tail = Tail::of(latest.as_ref(), log.first_index(), &entries)
                .map_err(|contradiction| contradiction.at(&path))?;
            match tail {
                Tail::Stays => return self.use_log(log, entries, torn),
                Tail::Goes if torn.is_none() => {
                    log.skip_to(next)?;
                    return self.use_log(log, Vec::new(), torn);
                }
                Tail::Goes => {}
            }
        }
        self.restart_log(next, torn)
    }

    fn use_log(
        &mut self,
        mut log: SledLog,
        entries: Vec<Entry>,
        torn: Option<Torn>,
    ) -> Result<(), StoreError> {
        // What was found may have been written and not synced, and the caller will build on it.
        log.sync()?;
        if torn.is_none() {
            self.mark.record(log.last_number())?;
        }
        self.found.first_index = log.first_index();
        self.found.entries = entries;
        self.found.torn = torn;
        self.log = Some(log);
        Ok(())
    }

    /// Makes an empty log in place of the present one; the next entry will have index `next`.
    fn restart_log(&mut self, next: Index, torn: Option<Torn>) -> Result<(), StoreError> {
        // Closed before its directory goes.
        self.log = None;
        let synced = self.mark.number().unwrap_or(0);
        // The number 0 is below any mark, so that a loss is found again at the next start, if
        // there is one before the caller has taken note.
        let number = if torn.is_some() { 0 } else { synced + 1 };
        let mut log = SledLog::create(&self.directory.path().join("sled"), next, number)?;
        log.number_above(synced);
        if torn.is_none() {
            self.mark.record(number)?;
        }
        self.log = Some(log);
        self.found.first_index = next;
        self.found.torn = torn;
        Ok(())
    }

    fn sync_log(&mut self) -> Result<(), StoreError> {
        if self.log().sync()? {
            let number = self.log().last_number();
            self.mark.record(number)?;
        }
        Ok(())
    }

    fn log(&mut self) -> &mut SledLog {
        self.log.as_mut().expect("replaced whole, or the health refuses every call")
    }

    fn guard<T>(
        &mut self,
        call: impl FnOnce(&mut Self) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let health = Arc::clone(&self.health);
        let place = self.directory.path().to_owned();
        health.guard(&place, || call(self))
    }
}

impl LogStore for SledStore {
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
        self.guard(|store| store.log().append(first, entries))
    }

    fn sync(&mut self) -> Result<(), StoreError> {
        self.guard(Self::sync_log)
    }

    fn trim(&mut self, first: Index) -> Result<(), StoreError> {
        self.guard(|store| {
            let covered = store.snapshots.latest().map_or(0, |meta| meta.index);
            store.log().trim(first.min(covered + 1));
            Ok(())
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
            let log = store.log();
            // The tail is what follows the snapshot without a gap.
            if keep_tail && (log.first_index()..=log.next_index()).contains(&next) {
                store.sync_log()?;
                snapshots.install_keeping(snapshot, meta)?;
                store.log().trim(next);
                Ok(())
            } else {
                snapshots.install_dropping(snapshot, meta, || store.restart_log(next, None))
            }
        })
    }
}

fn nothing() -> Loaded {
    Loaded { hard_state: None, snapshot: None, first_index: 1, entries: Vec::new(), torn: None }
}
