//! The disk of a simulated replica: the product's own store on a simulated disk, and how long that
//! takes. It outlives the replica's processes.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use hovercraft::{
    Entry, Index,
    storage::{
        Crash, Durability, HardState, Loaded, LogStore, MemoryStore, OpenSnapshot, Room,
        SegmentedStore, SimDisk, SnapshotMeta, SnapshotSink, SnapshotStore, StoreError,
    },
};
use madsim::time::TimeHandle;

use crate::{faults::Leaves, network::up_to_us, options::DiskOptions};

/// The smallest segments that there are, so that logs have several.
const SEGMENT_BYTES: u64 = 64 << 10;

/// A disk that fails does so after fewer operations than this.
const GOOD_OPERATIONS: u64 = 8;

/// A disk.
#[derive(Clone)]
pub(super) struct Disk(Arc<Mutex<State>>);

struct State {
    disk: SimDisk,
    options: DiskOptions,
    durability: Durability,
    rng: fastrand::Rng,
    /// How many times slower than usual it is.
    slowness: u32,
    /// It completes nothing before this.
    stalled_until: Duration,
    trouble: Trouble,
    /// What it was like before it was damaged.
    before_damage: Option<SimDisk>,
    /// The last hard state that was saved says that everything is there.
    is_clean: bool,
    /// The lowest index that was appended since the last sync of the log.
    unsynced_from: Option<Index>,
    /// The last index that the process has appended, and the highest that it has synced.
    appended: Index,
    synced_max: Index,
}

/// What is wrong with a disk.
#[derive(Debug, Default)]
struct Trouble {
    /// Nothing can grow.
    is_full: bool,
    /// Some operation failed, or soon will, in the life of the present process: which ends of it.
    may_fail: bool,
    /// What is on it contradicts what is committed: nothing starts on it any more.
    is_condemned: bool,
}

impl Disk {
    pub(super) fn new(
        options: DiskOptions,
        durability: Durability,
        mut rng: fastrand::Rng,
    ) -> Self {
        Self(Arc::new(Mutex::new(State {
            disk: SimDisk::new(rng.u64(..)),
            options,
            durability,
            rng,
            slowness: 1,
            stalled_until: Duration::ZERO,
            trouble: Trouble::default(),
            before_damage: None,
            is_clean: false,
            unsynced_from: None,
            appended: 0,
            synced_max: 0,
        })))
    }

    /// The store of the next process.
    pub(super) fn open(&self) -> Result<Box<dyn LogStore>, StoreError> {
        let mut state = self.state();
        state.unsynced_from = None;
        let store = state.open()?;
        drop(state);
        Ok(Box::new(TimedStore { disk: self.clone(), store }))
    }

    /// The process that used it has died.
    pub(super) fn crash(&self, leaves: Leaves) {
        let mut state = self.state();
        let unsynced = state.disk.unsynced_count();
        let crash = match leaves {
            Leaves::Nothing => Crash::Prefix(0),
            Leaves::Everything => Crash::KeepAll,
            Leaves::Prefix => Crash::Prefix(state.rng.usize(..=unsynced)),
            Leaves::Torn | Leaves::Reordered => Crash::Random,
        };
        state.disk.crash(crash);
        state.trouble.may_fail = false;
        if state.trouble.is_full {
            state.fill();
        }
    }

    pub(super) fn set_slowness(&self, times: u32) {
        self.state().slowness = times;
    }

    /// Completes nothing for a while.
    pub(super) fn stall(&self, time: Duration) {
        self.state().stalled_until = TimeHandle::current().elapsed() + time;
    }

    /// One of the next operations fails, and all that follow, until the process has ended.
    pub(super) fn break_soon(&self) {
        let mut state = self.state();
        state.trouble.may_fail = true;
        let left = state.rng.u64(..GOOD_OPERATIONS);
        state.disk.break_after(left);
    }

    /// Nothing can grow until it is repaired.
    pub(super) fn fill(&self) {
        self.state().fill();
    }

    /// A bit flips somewhere while no process uses it; until it is repaired none can. Whatever the
    /// bit, the store must not take anything for something else.
    pub(super) fn damage(&self) -> Result<Damage, String> {
        let mut state = self.state();
        if state.before_damage.is_some() {
            return Ok(Damage::Harmless);
        }
        let seed = state.rng.u64(..);
        let intact = healthy(&state.disk, seed);
        state.before_damage = Some(intact.fork(seed));
        let whole =
            state.load(&intact).map_err(|error| format!("before it was damaged: {error}"))?;
        let files: Vec<_> = state.disk.files().into_iter().filter(|(_, size)| *size > 0).collect();
        if files.is_empty() {
            return Ok(Damage::Harmless);
        }
        let (name, size) = files[state.rng.usize(..files.len())].clone();
        // Most of a segment is nothing, and its records are at its beginning.
        let offset = state.rng.u64(..size.min(8192));
        let bit = state.rng.u8(..8);
        state.disk.flip_bit(&name, offset, bit);
        let damaged = healthy(&state.disk, seed);
        judge(&whole, state.load(&damaged)).map_err(|what| format!("{name}, byte {offset}: {what}"))
    }

    /// It is put right, but for what a running process cannot forget.
    pub(super) fn repair(&self) {
        let mut state = self.state();
        state.slowness = 1;
        state.stalled_until = Duration::ZERO;
        state.trouble.is_full = false;
        state.disk.limit(None);
        state.disk.break_after(u64::MAX);
        if let Some(disk) = state.before_damage.take() {
            state.disk = disk;
        }
    }

    /// Whether a process can start on it.
    pub(super) fn is_usable(&self) -> bool {
        let state = self.state();
        !state.trouble.is_condemned && state.before_damage.is_none()
    }

    /// No process starts on it any more.
    pub(super) fn condemn(&self) {
        self.state().trouble.is_condemned = true;
    }

    /// Whether a store that fails on it is right to do so.
    pub(super) fn may_fail(&self) -> bool {
        self.state().trouble.may_fail
    }

    /// Returns whether nothing more fits on it.
    pub(super) fn is_full(&self) -> bool {
        self.state().trouble.is_full
    }

    /// Whether the last process ended with everything on it.
    pub(super) fn is_clean(&self) -> bool {
        self.state().is_clean
    }

    /// The highest index that the process has synced, or found at its start.
    pub(super) fn synced_max(&self) -> Index {
        self.state().synced_max
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The one thread that there is panicked: whatever it was, the run has failed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What damage did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Damage {
    /// The store refuses the disk, or says that something is missing.
    Found,
    /// It is where nothing is.
    Harmless,
}

/// The same contents on a disk that neither fails nor is full.
fn healthy(disk: &SimDisk, seed: u64) -> SimDisk {
    let healthy = disk.fork(seed);
    healthy.limit(None);
    healthy.break_after(u64::MAX);
    healthy
}

/// Compares what a store reads with what it would have read. After a power cut the end of the log
/// may be taken for what was never synced (docs/log.md); nothing may be taken for something else.
fn judge(whole: &Loaded, damaged: Result<Loaded, StoreError>) -> Result<Damage, String> {
    let Ok(found) = damaged else { return Ok(Damage::Found) };
    if found.torn.is_some() && whole.torn.is_none() {
        return Ok(Damage::Found);
    }
    let common = found.entries.len().min(whole.entries.len());
    let is_prefix = found.first_index == whole.first_index
        && found.entries[..common] == whole.entries[..common]
        && common == found.entries.len();
    if is_prefix && found.hard_state == whole.hard_state && found.snapshot == whole.snapshot {
        return Ok(Damage::Harmless);
    }
    Err(format!("the store takes damage for data: {found:?} instead of {whole:?}"))
}

impl State {
    fn fill(&mut self) {
        self.trouble.is_full = true;
        // Only a stop in good order needs room there.
        self.trouble.may_fail |= self.durability == Durability::Memory;
        self.disk.limit(Some(self.disk.size_bytes()));
    }

    fn open(&mut self) -> Result<Box<dyn LogStore>, StoreError> {
        let disk = self.disk.clone();
        self.open_on(&disk)
    }

    fn open_on(&mut self, disk: &SimDisk) -> Result<Box<dyn LogStore>, StoreError> {
        let root = disk.root();
        Ok(match self.durability {
            Durability::Memory => Box::new(MemoryStore::open_on(&root)),
            Durability::Sync | Durability::Interval => {
                Box::new(SegmentedStore::open_on(&root, self.rng.u64(..), SEGMENT_BYTES)?)
            }
        })
    }

    fn load(&mut self, disk: &SimDisk) -> Result<Loaded, StoreError> {
        self.open_on(disk)?.load()
    }

    fn latency(&mut self) -> Duration {
        let stall = self.stalled_until.saturating_sub(TimeHandle::current().elapsed());
        let DiskOptions { sync_min_us, sync_spread_us, .. } = self.options;
        let extra = up_to_us(&mut self.rng, sync_spread_us);
        stall + (Duration::from_micros(sync_min_us) + extra) * self.slowness
    }
}

/// A process's store, which tells how long it takes.
struct TimedStore {
    disk: Disk,
    store: Box<dyn LogStore>,
}

impl LogStore for TimedStore {
    fn load(&mut self) -> Result<Loaded, StoreError> {
        let loaded = self.store.load()?;
        let last = loaded.first_index + loaded.entries.len() as Index - 1;
        let latest = loaded.snapshot.as_ref().map_or(0, |meta| meta.index);
        let mut state = self.disk.state();
        (state.appended, state.synced_max) = (last, last.max(latest));
        Ok(loaded)
    }

    fn save_hard_state(&mut self, state: &HardState) -> Result<(), StoreError> {
        self.store.save_hard_state(state)?;
        self.disk.state().is_clean = state.clean;
        Ok(())
    }

    fn append(&mut self, first: Index, entries: &[Entry]) -> Result<(), StoreError> {
        let mut state = self.disk.state();
        state.unsynced_from = Some(state.unsynced_from.map_or(first, |from| from.min(first)));
        drop(state);
        self.store.append(first, entries)?;
        self.disk.state().appended = first + entries.len() as Index - 1;
        Ok(())
    }

    fn sync(&mut self) -> Result<(), StoreError> {
        let mut state = self.disk.state();
        state.unsynced_from = None;
        let may_lie = state.options.syncs_lie && state.durability == Durability::Interval;
        let lies = may_lie && state.rng.u8(..16) > 0;
        drop(state);
        if lies {
            return Ok(());
        }
        self.store.sync()?;
        let mut state = self.disk.state();
        state.synced_max = state.synced_max.max(state.appended);
        Ok(())
    }

    fn room(&mut self, entry_bytes_max: u64) -> Result<Room, StoreError> {
        self.store.room(entry_bytes_max)
    }

    fn trim(&mut self, first: Index) -> Result<(), StoreError> {
        self.store.trim(first)
    }

    fn snapshots(&self) -> Arc<dyn SnapshotStore> {
        Arc::new(WatchedSnapshots { disk: self.disk.clone(), snapshots: self.store.snapshots() })
    }

    fn install(
        &mut self,
        snapshot: Box<dyn SnapshotSink>,
        meta: &SnapshotMeta,
        keep_tail: bool,
    ) -> Result<(), StoreError> {
        self.disk.state().unsynced_from = None;
        self.store.install(snapshot, meta, keep_tail)?;
        let mut state = self.disk.state();
        state.synced_max = state.synced_max.max(meta.index);
        Ok(())
    }

    fn simulated_latency(&mut self) -> Duration {
        self.disk.state().latency()
    }
}

/// The snapshots of a process's store: none is published before the log that it rests on is synced.
struct WatchedSnapshots {
    disk: Disk,
    snapshots: Arc<dyn SnapshotStore>,
}

impl SnapshotStore for WatchedSnapshots {
    fn create(&self) -> Result<Box<dyn SnapshotSink>, StoreError> {
        self.snapshots.create()
    }

    fn publish(&self, sink: Box<dyn SnapshotSink>, meta: &SnapshotMeta) -> Result<(), StoreError> {
        let index = meta.index;
        // In `memory` neither is on a disk: at a stop in good order the log is handed to the store,
        // which writes both, while a snapshot may be on its way there.
        let is_on_disk = self.disk.state().durability != Durability::Memory;
        let unsynced_from = self.disk.state().unsynced_from.filter(|_| is_on_disk);
        if let Some(from) = unsynced_from.filter(|from| *from <= index) {
            // The disk is in order, so this ends the run: see `ended`.
            return Err(StoreError::Io {
                action: format!("publish a snapshot at {index} before the write of {from} (P36)"),
                place: "the simulated disk".to_owned(),
                source: std::io::ErrorKind::Other.into(),
            });
        }
        self.snapshots.publish(sink, meta)
    }

    fn open(&self) -> Result<Option<OpenSnapshot>, StoreError> {
        self.snapshots.open()
    }
}
