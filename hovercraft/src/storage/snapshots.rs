//! Snapshots as files: the latest one, complete and checked, through every crash (P36).
//!
//! The state of the directory is in the names of its files:
//!
//! | name | what it is | found at start |
//! |---|---|---|
//! | `snapshot-<n>.part` | being written | removed |
//! | `snapshot-<index>` | complete | the highest is the latest, older ones are removed |
//! | `installing-<index>` | complete, received; the log must begin anew behind it | finished |
//!
//! **Publish**: sync the part, rename it to `snapshot-<index>`, sync the directory, remove the
//! older ones. A crash before the rename leaves the old latest; after it, the new one.
//!
//! **Install that keeps the log's tail** is a publish: the entries at or below the snapshot are
//! the same in the log and in the snapshot, so either state of the log is right.
//!
//! **Install that drops the log**: (1) sync the part, rename it to `installing-<index>`, sync the
//! directory; (2) empty the log; (3) remove every `snapshot-*`, sync the directory; (4) rename to
//! `snapshot-<index>`, sync the directory. The rename of (1) is the moment of truth: a crash before
//! it leaves the old state whole; after it, the start repeats (2) to (4), each of which may be
//! done twice. (Nothing is appended before (4), so repeating (2) takes nothing away. (3) is before
//! (4) because an old snapshot may have a higher index, when a diverged replica reinstalls.)

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{
    OpenSnapshot, SnapshotMeta, SnapshotSink, SnapshotStore, StoreError,
    directory::{failed, rename_durably, sync_names},
    disk::Disk,
    health::Health,
    snapshot_file::{FileSource, Part, check},
};

/// The snapshots in one directory.
#[derive(Debug)]
pub(super) struct SnapshotFiles {
    disk: Arc<dyn Disk>,
    health: Arc<Health>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    latest: Option<SnapshotMeta>,
    /// A received snapshot for which the log is still to be emptied.
    installing: Option<SnapshotMeta>,
    /// Counts the parts, to name them.
    parts: u64,
    /// Counts the installs: a snapshot that this replica began to take before one is void.
    installs: u64,
}

impl SnapshotFiles {
    /// Finds and checks the latest snapshot; removes what crashes left behind.
    pub(super) fn open(disk: Arc<dyn Disk>, health: Arc<Health>) -> Result<Arc<Self>, StoreError> {
        let mut complete = Vec::new();
        let mut state = State::default();
        for name in list(&*disk)? {
            if name.strip_suffix(".part").is_some() {
                remove(&*disk, &name)?;
            } else if let Some(index) = index_in(&name, "snapshot-") {
                complete.push((index, name));
            } else if index_in(&name, "installing-").is_some() {
                state.installing = Some(check(&*disk, &name)?);
            }
        }
        complete.sort_unstable();
        let newest = complete.pop();
        // While an install is unfinished, what was there before it does not matter.
        if let Some((_, name)) = newest.filter(|_| state.installing.is_none()) {
            state.latest = Some(check(&*disk, &name)?);
            for (_, older) in complete {
                remove(&*disk, &older)?;
            }
        }
        // A crash may have come between a rename and this; the caller will trim by what it is told.
        sync_names(&*disk)?;
        Ok(Arc::new(Self { disk, health, state: Mutex::new(state) }))
    }

    /// Checks the latest snapshot in a directory, and changes nothing.
    pub(super) fn inspect(disk: &dyn Disk) -> Result<Option<SnapshotMeta>, StoreError> {
        let names = list(disk)?;
        let newest = names.iter().filter_map(|name| index_in(name, "snapshot-")).max();
        let installing = names.iter().find(|name| index_in(name, "installing-").is_some());
        // While an install is unfinished, what was there before it does not matter.
        let latest = installing.cloned().or(newest.map(complete_name));
        latest.map(|name| check(disk, &name)).transpose()
    }

    /// The latest snapshot, once no install is unfinished.
    pub(super) fn latest(&self) -> Option<SnapshotMeta> {
        self.state().latest.clone()
    }

    /// The index of the snapshot for which the log is still to be emptied, if a crash came between.
    pub(super) fn unfinished_install(&self) -> Option<u64> {
        self.state().installing.as_ref().map(|meta| meta.index)
    }

    /// Makes a received snapshot the latest, whatever its index. The tail of the log stays.
    pub(super) fn install_keeping(
        &self,
        sink: Box<dyn SnapshotSink>,
        meta: &SnapshotMeta,
    ) -> Result<(), StoreError> {
        let mut part = part_of(sink);
        part.seal(meta)?;
        let mut state = self.state();
        part.rename_to(&complete_name(meta.index))?;
        state.installs += 1;
        self.replace_latest(&mut state, meta)
    }

    /// Makes a received snapshot the latest, whatever its index; `empty_log` empties the log, and
    /// may be called again at the next start.
    pub(super) fn install_dropping(
        &self,
        sink: Box<dyn SnapshotSink>,
        meta: &SnapshotMeta,
        empty_log: impl FnOnce() -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut part = part_of(sink);
        part.seal(meta)?;
        let mut state = self.state();
        part.rename_to(&installing_name(meta.index))?;
        state.installs += 1;
        state.installing = Some(meta.clone());
        self.finish(&mut state, empty_log)
    }

    /// Repeats steps (2) to (4) of an install that a crash cut; nothing if none is unfinished.
    pub(super) fn finish_install(
        &self,
        empty_log: impl FnOnce() -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.finish(&mut self.state(), empty_log)
    }

    fn finish(
        &self,
        state: &mut State,
        empty_log: impl FnOnce() -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let Some(meta) = state.installing.clone() else {
            return Ok(());
        };
        empty_log()?;
        if !planted!("older-snapshots-stay") {
            self.remove_complete_except(None)?;
        }
        if !planted!("removals-not-synced") {
            sync_names(&*self.disk)?;
        }
        rename_durably(&*self.disk, &installing_name(meta.index), &complete_name(meta.index))?;
        state.installing = None;
        state.latest = Some(meta);
        Ok(())
    }

    fn replace_latest(&self, state: &mut State, meta: &SnapshotMeta) -> Result<(), StoreError> {
        state.latest = Some(meta.clone());
        self.remove_complete_except(Some(meta.index))
    }

    /// Removes complete snapshots. A source that is open on one stays readable: the file lives
    /// until it is closed.
    fn remove_complete_except(&self, kept: Option<u64>) -> Result<(), StoreError> {
        for name in list(&*self.disk)? {
            let index = index_in(&name, "snapshot-");
            if index.is_some() && index != kept {
                remove(&*self.disk, &name)?;
            }
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A thread that panicked while it held the lock had changed nothing by halves.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SnapshotStore for SnapshotFiles {
    fn create(&self) -> Result<Box<dyn SnapshotSink>, StoreError> {
        self.health.guard(self.disk.path(), || {
            let mut state = self.state();
            state.parts += 1;
            let name = format!("snapshot-{}.part", state.parts);
            let part = Part::create(Arc::clone(&self.disk), name, state.installs)?;
            Ok(Box::new(part) as Box<dyn SnapshotSink>)
        })
    }

    fn publish(&self, sink: Box<dyn SnapshotSink>, meta: &SnapshotMeta) -> Result<(), StoreError> {
        self.health.guard(self.disk.path(), || {
            let mut part = part_of(sink);
            part.seal(meta)?;
            let mut state = self.state();
            let newer = state.latest.as_ref().is_none_or(|latest| latest.index < meta.index);
            if !newer || part.installs() != state.installs {
                return Ok(());
            }
            part.rename_to(&complete_name(meta.index))?;
            self.replace_latest(&mut state, meta)
        })
    }

    fn open(&self) -> Result<Option<OpenSnapshot>, StoreError> {
        self.health.guard(self.disk.path(), || {
            let state = self.state();
            let Some(meta) = state.latest.clone() else {
                return Ok(None);
            };
            let source =
                FileSource::open(&*self.disk, &complete_name(meta.index), meta.size_bytes)?;
            Ok(Some(OpenSnapshot { meta, source: Box::new(source) }))
        })
    }
}

fn part_of(sink: Box<dyn SnapshotSink>) -> Part {
    *sink.into_any().downcast().expect("a sink goes back to the store that made it")
}

fn complete_name(index: u64) -> String {
    format!("snapshot-{index}")
}

fn installing_name(index: u64) -> String {
    format!("installing-{index}")
}

fn list(disk: &dyn Disk) -> Result<Vec<String>, StoreError> {
    disk.list().map_err(failed("list", disk.path()))
}

fn remove(disk: &dyn Disk, name: &str) -> Result<(), StoreError> {
    disk.remove(name).map_err(failed("remove", &disk.path().join(name)))
}

/// The index in a file name of this kind.
fn index_in(name: &str, prefix: &str) -> Option<u64> {
    name.strip_prefix(prefix)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write, path::Path};

    use super::*;
    use crate::storage::{disk::FileDisk, suite::sample::Sample};

    fn opened(directory: &Path) -> Arc<SnapshotFiles> {
        SnapshotFiles::open(FileDisk::new(directory), Arc::default()).unwrap()
    }

    fn sink(files: &SnapshotFiles, index: u64) -> (Box<dyn SnapshotSink>, SnapshotMeta) {
        let data = Sample::new(index).bytes(1_000);
        let mut sink = files.create().unwrap();
        sink.write_all(&data).unwrap();
        (sink, Sample::new(index).meta(index, 1, &data))
    }

    fn publish(files: &SnapshotFiles, index: u64) {
        let (sink, meta) = sink(files, index);
        files.publish(sink, &meta).unwrap();
    }

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn only_the_latest_is_kept_and_a_dropped_part_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let files = opened(directory.path());
        publish(&files, 3);
        publish(&files, 12);
        publish(&files, 7);
        let (part, _) = sink(&files, 20);
        assert_eq!(names(directory.path()).len(), 2);
        drop(part);
        assert_eq!(names(directory.path()), ["snapshot-12"]);
    }

    /// The crashes of a publish: before the rename, and between the rename and the removal.
    #[test]
    fn what_a_crash_left_is_tidied() {
        let directory = tempfile::tempdir().unwrap();
        publish(&opened(directory.path()), 9);
        let path = |name: &str| directory.path().join(name);
        fs::write(path("snapshot-1.part"), b"half of it").unwrap();
        fs::copy(path("snapshot-9"), path("kept")).unwrap();
        publish(&opened(directory.path()), 10);
        fs::rename(path("kept"), path("snapshot-9")).unwrap();
        let files = opened(directory.path());
        assert_eq!(files.latest().unwrap().index, 10);
        assert_eq!(names(directory.path()), ["snapshot-10"]);
    }

    /// The crashes of an install that drops the log, at each of its steps.
    #[test]
    fn an_install_is_finished_after_a_crash_at_any_step() {
        let crash = || StoreError::Stopped { place: String::new(), earlier: "a crash".into() };
        for step in 0..4 {
            let directory = tempfile::tempdir().unwrap();
            let path = |name: &str| directory.path().join(name);
            let files = opened(directory.path());
            publish(&files, 50);
            let (part, meta) = sink(&files, 40);
            // In step 0 the crash comes before the rename, which only leaves the part.
            if step == 0 {
                std::mem::forget(part);
            } else {
                files.install_dropping(part, &meta, || Err(crash())).unwrap_err();
            }
            drop(files);
            if step == 3 {
                fs::remove_file(path("snapshot-50")).unwrap();
            }
            let files = opened(directory.path());
            if step == 0 {
                assert_eq!(files.unfinished_install(), None);
                assert_eq!(names(directory.path()), ["snapshot-50"]);
                continue;
            }
            assert_eq!((files.unfinished_install(), files.latest()), (Some(40), None));
            let mut emptied = false;
            files
                .finish_install(|| {
                    // In step 2 there is another crash behind the emptying of the log.
                    emptied = true;
                    if step == 2 { Err(crash()) } else { Ok(()) }
                })
                .unwrap_or_else(|_| opened(directory.path()).finish_install(|| Ok(())).unwrap());
            assert!(emptied);
            let files = opened(directory.path());
            assert_eq!((files.unfinished_install(), files.latest()), (None, Some(meta)));
            assert_eq!(names(directory.path()), ["snapshot-40"]);
            files.finish_install(|| panic!("there is none")).unwrap();
        }
    }

    #[test]
    fn damage_anywhere_is_found_and_no_older_one_takes_its_place() {
        let directory = tempfile::tempdir().unwrap();
        publish(&opened(directory.path()), 5);
        let path = directory.path().join("snapshot-5");
        let whole = fs::read(&path).unwrap();
        let refused = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            let error =
                SnapshotFiles::open(FileDisk::new(directory.path()), Arc::default()).unwrap_err();
            assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
            assert!(error.to_string().contains("snapshot-5"), "{error}");
        };
        for at in (0..whole.len()).step_by(7).chain(whole.len() - 12..whole.len()) {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x40;
            refused(&bytes);
            refused(&whole[..at]);
        }
        fs::write(&path, &whole).unwrap();
        fs::rename(&path, directory.path().join("snapshot-6")).unwrap();
        let error =
            SnapshotFiles::open(FileDisk::new(directory.path()), Arc::default()).unwrap_err();
        assert!(error.to_string().contains("it is of index 5"), "{error}");
    }
}
