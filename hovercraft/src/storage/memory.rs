//! The store of durability `memory`: log and snapshots in memory, only the hard state on disk.

use std::{
    any::Any,
    collections::VecDeque,
    io::{self, Read, Write},
    mem,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;

use super::{
    HardState, Loaded, LogStore, OpenSnapshot, SnapshotMeta, SnapshotSink, SnapshotSource,
    SnapshotStore, StoreError, Tail, Torn,
    directory::Directory,
    disk::Disk,
    hard_state::HardStateFile,
    health::Health,
    memory_image::{self, Image},
    record::WrittenBy,
};
use crate::entry::{Entry, Index};

/// Keeps the log and the snapshots in memory.
///
/// In a directory it keeps the hard state on disk, because term and vote are synced before they are
/// used in every durability (P37), and when a hard state is saved that says `clean`, the log and
/// the snapshot with it: so a cluster that was stopped in good order goes on where it was. After
/// any other end [`Loaded::torn`] is set.
///
/// Without a directory (unit tests, simulation) nothing outlives it.
#[derive(Debug)]
pub struct MemoryStore {
    home: Option<Home>,
    health: Arc<Health>,
    hard_state: Option<HardState>,
    first_index: Index,
    entries: VecDeque<Entry>,
    snapshots: Arc<MemorySnapshots>,
}

/// Where the hard state is on disk.
#[derive(Debug)]
struct Home {
    disk: Arc<dyn Disk>,
    /// None until it is loaded.
    hard_state: Option<HardStateFile>,
    /// None on a disk that is nobody else's.
    _directory: Option<Directory>,
}

impl Home {
    fn new(disk: Arc<dyn Disk>, directory: Option<Directory>) -> Self {
        Self { disk, hard_state: None, _directory: directory }
    }

    fn save(&mut self, state: &HardState) -> Result<(), StoreError> {
        self.hard_state.as_mut().expect("a store is loaded first").save(state)
    }
}

impl MemoryStore {
    /// A store of which nothing outlives the process.
    pub fn new() -> Self {
        Self::with_home(None)
    }

    /// A store whose hard state is in `directory`, which is created if it is not there.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        let directory = Directory::open(directory)?;
        Ok(Self::with_home(Some(Home::new(directory.disk(), Some(directory)))))
    }

    /// A store whose hard state is on a disk that nobody else uses.
    pub fn open_on(disk: &Arc<dyn Disk>) -> Self {
        Self::with_home(Some(Home::new(Arc::clone(disk), None)))
    }

    fn with_home(home: Option<Home>) -> Self {
        Self {
            home,
            health: Arc::default(),
            hard_state: None,
            first_index: 1,
            entries: VecDeque::new(),
            snapshots: Arc::default(),
        }
    }

    fn place(&self) -> PathBuf {
        let place = self.home.as_ref().map(|home| home.disk.path());
        place.unwrap_or(Path::new("memory")).to_owned()
    }

    /// Reads the hard state, and the rest if the last run ended clean; returns whether there was a
    /// log that is gone.
    fn load_home(&mut self) -> Result<bool, StoreError> {
        let Some(home) = &mut self.home else {
            return Ok(false);
        };
        let file = HardStateFile::open(Arc::clone(&home.disk), WrittenBy::Memory)?;
        let Some(record) = home.hard_state.insert(file).load() else {
            // What a stop in good order wrote before the hard state is void without it.
            memory_image::remove(&*home.disk)?;
            return Ok(false);
        };
        let clean = record.state.clean && record.written_by == WrittenBy::Memory;
        self.hard_state = Some(record.state);
        if !clean {
            memory_image::remove(&*home.disk)?;
            return Ok(true);
        }
        let image = memory_image::read(&*home.disk)?;
        self.first_index = image.first_index;
        self.entries = image.entries.into();
        self.snapshots.state().latest = image.snapshot.map(|(meta, data)| Latest { meta, data });
        Ok(false)
    }

    /// Brings the log and the snapshot together.
    fn settle(&mut self) -> Result<(), StoreError> {
        let (latest, place) = (self.snapshots.latest(), self.place());
        let entries = self.entries.make_contiguous();
        let tail = Tail::of(latest.as_ref(), self.first_index, entries)
            .map_err(|contradiction| contradiction.at(&place))?;
        match tail {
            Tail::Stays => {}
            Tail::Goes => {
                self.entries.clear();
                self.first_index = self.snapshots.next_uncovered();
            }
        }
        Ok(())
    }

    fn save_home(&mut self, state: &HardState) -> Result<(), StoreError> {
        let Some(home) = &mut self.home else {
            return Ok(());
        };
        if state.clean {
            // P37: the marker of a clean stop is written after everything is on disk.
            let latest = self.snapshots.state().latest.clone();
            let image = Image {
                first_index: self.first_index,
                entries: self.entries.make_contiguous(),
                snapshot: latest.map(|latest| (latest.meta, latest.data)),
            };
            memory_image::write(&*home.disk, &image)?;
            home.save(state)
        } else {
            home.save(state)?;
            memory_image::remove(&*home.disk)
        }
    }

    fn next_index(&self) -> Index {
        self.first_index + self.entries.len() as u64
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl LogStore for MemoryStore {
    fn load(&mut self) -> Result<Loaded, StoreError> {
        let health = Arc::clone(&self.health);
        health.guard(&self.place(), || {
            let torn = self.load_home()?;
            self.settle()?;
            Ok(Loaded {
                hard_state: self.hard_state.clone(),
                snapshot: self.snapshots.latest(),
                first_index: self.first_index,
                entries: self.entries.iter().cloned().collect(),
                torn: torn.then_some(Torn::Memory),
            })
        })
    }

    fn save_hard_state(&mut self, state: &HardState) -> Result<(), StoreError> {
        let health = Arc::clone(&self.health);
        health.guard(&self.place(), || {
            self.save_home(state)?;
            self.hard_state = Some(state.clone());
            Ok(())
        })
    }

    fn append(&mut self, first: Index, entries: &[Entry]) -> Result<(), StoreError> {
        let health = Arc::clone(&self.health);
        health.guard(&self.place(), || {
            if self.first_index <= first && first <= self.snapshots.next_uncovered() {
                // In the durability `memory` the log comes at a clean stop only. What came at an
                // earlier one may have been replaced since, below the snapshot as well: left in
                // place, it would look like a stale log to the next start.
                self.entries.clear();
                self.first_index = first;
            }
            assert!(
                (self.first_index..=self.next_index()).contains(&first),
                "append at {first} to a log of {}..{}",
                self.first_index,
                self.next_index(),
            );
            self.entries.truncate((first - self.first_index) as usize);
            // The reply has been given or the path is stale by the time that anybody reads this.
            self.entries
                .extend(entries.iter().map(|entry| Entry { return_path: None, ..entry.clone() }));
            Ok(())
        })
    }

    fn sync(&mut self) -> Result<(), StoreError> {
        self.health.guard(&self.place(), || Ok(()))
    }

    fn trim(&mut self, first: Index) -> Result<(), StoreError> {
        let health = Arc::clone(&self.health);
        health.guard(&self.place(), || {
            let first = first.min(self.snapshots.next_uncovered()).min(self.next_index());
            let count = first.saturating_sub(self.first_index);
            self.entries.drain(..count as usize);
            self.first_index += count;
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
        let health = Arc::clone(&self.health);
        health.guard(&self.place(), || {
            let part = part_of(snapshot);
            meta.check_written(part.written())?;
            let mut state = self.snapshots.state();
            state.installs += 1;
            state.latest = Some(Latest { meta: meta.clone(), data: part.into_data() });
            drop(state);
            // The tail is what follows the snapshot without a gap.
            let holds = self.first_index..=self.next_index();
            if keep_tail && holds.contains(&(meta.index + 1)) {
                let count = meta.index + 1 - self.first_index;
                self.entries.drain(..count as usize);
            } else {
                self.entries.clear();
            }
            self.first_index = meta.index + 1;
            Ok(())
        })
    }
}

/// The snapshots of a [`MemoryStore`].
#[derive(Debug, Default)]
struct MemorySnapshots {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    latest: Option<Latest>,
    /// Counts the installs: a snapshot that this replica began to take before one is void.
    installs: u64,
}

#[derive(Debug, Clone)]
struct Latest {
    meta: SnapshotMeta,
    data: Bytes,
}

impl MemorySnapshots {
    fn state(&self) -> MutexGuard<'_, State> {
        // A thread that panicked while it held the lock had changed nothing by halves.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn latest(&self) -> Option<SnapshotMeta> {
        self.state().latest.as_ref().map(|latest| latest.meta.clone())
    }

    /// The first index that no snapshot holds the effect of.
    fn next_uncovered(&self) -> Index {
        self.state().latest.as_ref().map_or(0, |latest| latest.meta.index) + 1
    }
}

impl SnapshotStore for MemorySnapshots {
    fn create(&self) -> Result<Box<dyn SnapshotSink>, StoreError> {
        let installs = self.state().installs;
        let hasher = crc32fast::Hasher::new();
        Ok(Box::new(Part { data: Vec::new(), read_back: None, hasher, installs }))
    }

    fn publish(&self, sink: Box<dyn SnapshotSink>, meta: &SnapshotMeta) -> Result<(), StoreError> {
        let part = part_of(sink);
        meta.check_written(part.written())?;
        let mut state = self.state();
        let newer = state.latest.as_ref().is_none_or(|latest| latest.meta.index < meta.index);
        if newer && part.installs == state.installs {
            state.latest = Some(Latest { meta: meta.clone(), data: part.into_data() });
        }
        Ok(())
    }

    fn open(&self) -> Result<Option<OpenSnapshot>, StoreError> {
        Ok(self.state().latest.clone().map(|Latest { meta, data }| OpenSnapshot {
            meta,
            source: Box::new(MemorySource { data, position: 0 }),
        }))
    }
}

/// A snapshot being written.
struct Part {
    data: Vec<u8>,
    /// All of the data, once it is being read.
    read_back: Option<Bytes>,
    hasher: crc32fast::Hasher,
    installs: u64,
}

impl Part {
    fn into_data(self) -> Bytes {
        self.read_back.unwrap_or_else(|| self.data.into())
    }
}

impl Write for Part {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.read_back.is_some() {
            return Err(io::Error::other("a snapshot that is read back is written no more"));
        }
        self.data.extend_from_slice(bytes);
        self.hasher.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl SnapshotSink for Part {
    fn written(&self) -> (u64, u32) {
        let count = self.read_back.as_ref().map_or(self.data.len(), Bytes::len);
        (count as u64, self.hasher.clone().finalize())
    }

    fn read_back(&mut self) -> io::Result<Box<dyn SnapshotSource>> {
        let data = self.read_back.take().unwrap_or_else(|| mem::take(&mut self.data).into());
        self.read_back = Some(data.clone());
        Ok(Box::new(MemorySource { data, position: 0 }))
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

/// The latest snapshot, open.
struct MemorySource {
    data: Bytes,
    position: u64,
}

impl SnapshotSource for MemorySource {
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(self.data.len());
        let count = buffer.len().min(self.data.len() - start);
        buffer[..count].copy_from_slice(&self.data[start..start + count]);
        Ok(count)
    }
}

impl Read for MemorySource {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.read_at(self.position, buffer)?;
        self.position += count as u64;
        Ok(count)
    }
}

fn part_of(sink: Box<dyn SnapshotSink>) -> Part {
    *sink.into_any().downcast().expect("a sink goes back to the store that made it")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::suite::sample::Sample;

    fn snapshot(store: &MemoryStore, index: Index) -> (Box<dyn SnapshotSink>, SnapshotMeta) {
        let mut sink = store.snapshots().create().unwrap();
        sink.write_all(b"some state").unwrap();
        (sink, Sample::new(index).meta(index, 1, b"some state"))
    }

    fn filled() -> MemoryStore {
        let mut store = MemoryStore::new();
        let entries = Sample::new(1).entries(1, 20);
        store.append(1, &entries).unwrap();
        store
    }

    fn range(store: &MemoryStore) -> (Index, Index) {
        (store.first_index, store.next_index())
    }

    #[test]
    fn only_what_a_snapshot_covers_is_trimmed() {
        let mut store = filled();
        store.trim(10).unwrap();
        assert_eq!(range(&store), (1, 21));
        let (sink, meta) = snapshot(&store, 12);
        store.snapshots().publish(sink, &meta).unwrap();
        store.trim(10).unwrap();
        assert_eq!(range(&store), (10, 21));
        store.trim(5).unwrap();
        store.trim(100).unwrap();
        assert_eq!(range(&store), (13, 21));
    }

    #[test]
    fn an_install_keeps_a_tail_that_follows_it() {
        for (index, keep_tail, expected) in [
            (7, true, (8, 21)),
            (20, true, (21, 21)),
            (21, true, (22, 22)),
            (7, false, (8, 8)),
            (40, false, (41, 41)),
        ] {
            let mut store = filled();
            let (sink, meta) = snapshot(&store, index);
            store.install(sink, &meta, keep_tail).unwrap();
            assert_eq!(range(&store), expected);
            assert_eq!(store.snapshots().open().unwrap().unwrap().meta, meta);
        }
    }

    #[test]
    #[should_panic(expected = "append at 22 to a log of 1..21")]
    fn a_gap_is_a_bug_of_the_caller() {
        filled().append(22, &[]).unwrap();
    }
}
