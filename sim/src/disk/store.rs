//! The product's own log store under a replica: the segmented log over a simulated disk.
//!
//! It is given what the model of the disk is given, at the same time, and what it hands back at a
//! start is what the replica goes on with. Before that it is held against the model: a crash leaves
//! everything that was synced, and of the rest a prefix (P37, P38).

use std::io::{Read, Write as _};

use bytes::Bytes;
use hovercraft::{
    core::Write,
    storage::{
        Crash, Durability, HardState, Loaded, LogStore, Room, SegmentedStore, SimDisk,
        SnapshotMeta, StoreError,
    },
};

use super::{Job, Snapshot, image::Image};
use crate::faults::Leaves;

/// The smallest there are, so that a short run has many.
const SEGMENT_BYTES: u64 = 64 << 10;

/// A batch of writes is broken off after up to so many operations of the disk.
const OPERATIONS_MAX: u64 = 16;

#[derive(Debug)]
pub(super) struct Store {
    disk: SimDisk,
    /// None while the process is down.
    open: Option<SegmentedStore>,
    rng: fastrand::Rng,
    /// Most syncs of the log put nothing on the disk.
    syncs_lie: bool,
    /// Bytes of entries that the log must have room for at any time.
    reserve_bytes: u64,
    /// The last word of the store.
    room: Room,
    is_full: bool,
    /// What the process was doing when it died, in order: some of it may be on the disk.
    begun: Vec<Job>,
}

/// What a process finds on a disk that was damaged while it was down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Damage {
    /// It refuses to start, and says why.
    Refused,
    /// It can start, and knows that it may have lost something.
    Recovering,
    /// Nothing that counts was hit.
    Harmless,
}

impl Damage {
    /// The name under which it is counted.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Refused => "damaged disks refused",
            Self::Recovering => "damaged disks to recover from",
            Self::Harmless => "damaged disks with nothing hit",
        }
    }
}

impl Store {
    /// On an empty disk that `init` has written to.
    pub(super) fn new(
        mut rng: fastrand::Rng,
        state: &HardState,
        (syncs_lie, reserve_bytes): (bool, u64),
    ) -> Self {
        let disk = SimDisk::new(rng.u64(..));
        let (open, begun) = (None, Vec::new());
        let (room, is_full) = (Room::UNLIMITED, false);
        let mut store = Self { disk, open, rng, syncs_lie, reserve_bytes, room, is_full, begun };
        store.load_whole();
        store.save(state);
        store.open = None;
        store
    }

    /// Saves a hard state before anything else happens.
    pub(super) fn save(&mut self, state: &HardState) {
        self.process().save_hard_state(state).unwrap_or_else(|error| failed(&error));
    }

    /// Does what is asked, in this order; synced where the durability asks for it.
    pub(super) fn work<'a>(
        &mut self,
        jobs: impl Iterator<Item = &'a Job>,
        durability: Durability,
    ) -> Result<(), StoreError> {
        for job in jobs {
            self.job(job)?;
        }
        if durability == Durability::Sync {
            self.process().sync()?;
        }
        self.reserve()
    }

    /// Nothing can grow any more, or there is room again.
    pub(super) fn limit(&mut self, is_full: bool) {
        self.is_full = is_full;
        let size_bytes = self.disk.size_bytes();
        self.disk.limit(is_full.then_some(size_bytes));
        if self.open.is_some() {
            // A disk that is about to break is not asked for long.
            let _ = self.reserve();
        }
    }

    /// Bytes of entries that the log has room for.
    pub(super) fn room_bytes(&self) -> u64 {
        self.room.bytes
    }

    fn reserve(&mut self) -> Result<(), StoreError> {
        let reserve_bytes = self.reserve_bytes;
        self.room = self.process().room(reserve_bytes)?;
        let is_there = self.room.is_full || self.room.bytes >= reserve_bytes;
        assert!(is_there, "what is reserved is there: {:?}", self.room);
        Ok(())
    }

    pub(super) fn sync(&mut self) {
        self.sync_log().unwrap_or_else(|error| failed(&error));
    }

    fn sync_log(&mut self) -> Result<(), StoreError> {
        if self.syncs_lie && self.rng.u8(..16) > 0 { Ok(()) } else { self.process().sync() }
    }

    /// A snapshot that this replica took becomes the latest.
    pub(super) fn publish(&mut self, snapshot: &Snapshot) {
        let snapshots = self.process().snapshots();
        let mut sink = snapshots.create().unwrap_or_else(|error| failed(&error));
        sink.write_all(&snapshot.data).expect("the disk is whole");
        snapshots.publish(sink, &snapshot.meta).unwrap_or_else(|error| failed(&error));
    }

    /// The process dies in the middle of these jobs, those that wait after them not begun.
    pub(super) fn crash(&mut self, begun: Vec<Job>, durability: Durability, leaves: Leaves) {
        let crash = match leaves {
            Leaves::Nothing => Crash::Prefix(0),
            Leaves::Everything => Crash::KeepAll,
            Leaves::Prefix | Leaves::Torn | Leaves::Reordered => Crash::Random,
        };
        if crash == Crash::Random {
            self.disk.break_after(self.rng.u64(..OPERATIONS_MAX));
        }
        if crash != Crash::Prefix(0) {
            // What breaks it off is an error, which nobody is left to hear of.
            let _ = self.work(begun.iter(), durability);
        }
        self.open = None;
        self.disk.crash(crash);
        self.begun = begun;
    }

    /// A copy of what is certainly on the disk.
    pub(super) fn copy(&mut self) -> SimDisk {
        let disk = self.disk.fork(self.rng.u64(..));
        disk.crash(Crash::Prefix(0));
        disk
    }

    /// Another disk takes the place of this one.
    pub(super) fn put_back(&mut self, disk: SimDisk) {
        self.disk = disk;
        self.begun.clear();
    }

    /// The process has stopped in good order.
    pub(super) fn close(&mut self) {
        self.open = None;
        self.disk.crash(Crash::KeepAll);
    }

    /// What a process that starts finds, if that is what a crash may leave of `durable`.
    pub(super) fn load(&mut self, durable: &Image, durability: Durability) -> Found {
        let found = self.load_whole();
        if durability == Durability::Sync {
            self.hold_against(durable, &found)
                .unwrap_or_else(|what| panic!("the store has not kept its promise: {what}"));
        }
        self.begun.clear();
        found
    }

    /// What a process would find if a bit of the disk were another: never something that is wrong
    /// without a word (P38). The disk stays as it is.
    pub(super) fn damaged(&mut self, durable: &Image, durability: Durability) -> Damage {
        let disk = self.disk.fork(self.rng.u64(..));
        let files: Vec<_> = disk.files().into_iter().filter(|(_, bytes)| *bytes > 0).collect();
        let of_log: Vec<_> =
            files.iter().filter(|(path, _)| path.starts_with("log/segment-")).collect();
        let (path, size_bytes) = if self.rng.bool() && !of_log.is_empty() {
            of_log[self.rng.usize(..of_log.len())]
        } else {
            &files[self.rng.usize(..files.len())]
        };
        // Most of a file is empty, and what was written last is what a crash might have torn.
        let end = written_bytes(&disk, path, *size_bytes);
        let start = if self.rng.bool() { 0 } else { end.saturating_sub(512) };
        let (offset, bit) = (self.rng.u64(start..end), self.rng.u8(..8));
        disk.flip_bit(path, offset, bit);
        match open(&disk, self.rng.u64(..)) {
            Err(_) => Damage::Refused,
            Ok((_, found)) if found.loaded.torn.is_some() => Damage::Recovering,
            Ok((_, found)) => {
                if durability == Durability::Sync {
                    self.hold_against(durable, &found).unwrap_or_else(|what| {
                        panic!("bit {bit} of byte {offset} of {path} flips, unnoticed: {what}")
                    });
                }
                Damage::Harmless
            }
        }
    }

    fn job(&mut self, job: &Job) -> Result<(), StoreError> {
        let store = self.open.as_mut().expect("only a process that runs writes");
        match job {
            Job::TakeSnapshot(_) => self.sync_log(),
            Job::Stage | Job::ReadOwn | Job::NoInstall => Ok(()),
            Job::Write(Write::HardState { state, .. }) => store.save_hard_state(state),
            Job::Write(Write::Append { first, entries, .. }) => store.append(*first, entries),
            Job::Write(Write::Trim { first }) => store.trim(*first),
            Job::Install { snapshot, keep_tail } => {
                // What was received is on the disk already, whether or not that is full since.
                self.disk.limit(None);
                let mut sink = store.snapshots().create()?;
                sink.write_all(&snapshot.data).map_err(|source| StoreError::Io {
                    action: "write a snapshot".to_owned(),
                    place: "the simulated disk".to_owned(),
                    source,
                })?;
                let installed = store.install(sink, &snapshot.meta, *keep_tail);
                self.limit(self.is_full);
                installed
            }
        }
    }

    fn process(&mut self) -> &mut SegmentedStore {
        self.open.as_mut().expect("only a process that runs writes")
    }

    fn load_whole(&mut self) -> Found {
        self.open = None;
        let (store, found) =
            open(&self.disk, self.rng.u64(..)).unwrap_or_else(|error| failed(&error));
        self.open = Some(store);
        self.reserve().unwrap_or_else(|error| failed(&error));
        found
    }

    /// Says what is there that no crash may leave, or what is missing.
    fn hold_against(&self, durable: &Image, found: &Found) -> Result<(), String> {
        let Loaded { hard_state, torn, .. } = &found.loaded;
        let hard_state = hard_state.as_ref().ok_or("the hard state is gone")?;
        let begun = self.begun.iter().filter_map(|job| match job {
            Job::Write(Write::HardState { state, .. }) => Some(&**state),
            _ => None,
        });
        if !std::iter::once(&durable.hard_state).chain(begun).any(|state| state == hard_state) {
            return Err(format!("{hard_state:?} was never saved, or not last"));
        }
        if let Some(torn) = torn {
            return Err(format!("it says that {torn}, and nothing can be lost"));
        }
        let mut image = durable.clone();
        let mut problem = image.differs(found, image.next());
        for job in &self.begun {
            if problem.is_none() {
                break;
            }
            // Of entries that no sync followed a prefix is there.
            let certain = match job {
                Job::Write(Write::Append { first, .. }) => Some(*first),
                _ => None,
            };
            image.job(job.clone());
            problem = image.differs(found, certain.unwrap_or(image.next()));
        }
        problem.map_or(Ok(()), Err)
    }
}

/// What a process finds on its disk.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) loaded: Loaded,
    /// The latest snapshot, with its bytes.
    pub(super) snapshot: Option<Snapshot>,
}

/// Returns where what was written to a file ends: behind it there are zeros. At least 1.
fn written_bytes(disk: &SimDisk, path: &str, size_bytes: u64) -> u64 {
    let (directory, name) = path.rsplit_once('/').unwrap_or((".", path));
    let root = disk.root();
    let inner = if directory == "." { Ok(root) } else { root.directory(directory) };
    let mut bytes = vec![0; size_bytes as usize];
    let read = inner.and_then(|inner| inner.open(name)?.read_at(0, &mut bytes));
    read.expect("the disk is whole");
    bytes.iter().rposition(|byte| *byte != 0).map_or(1, |at| at as u64 + 1)
}

fn open(disk: &SimDisk, seed: u64) -> Result<(SegmentedStore, Found), StoreError> {
    let mut store = SegmentedStore::open_on(&disk.root(), seed, SEGMENT_BYTES)?;
    let loaded = store.load()?;
    let snapshot = match store.snapshots().open()? {
        None => None,
        Some(mut opened) => {
            let mut data = Vec::new();
            opened.source.read_to_end(&mut data).map_err(|source| StoreError::Io {
                action: "read a snapshot".to_owned(),
                place: "the simulated disk".to_owned(),
                source,
            })?;
            let (meta, data): (SnapshotMeta, _) = (opened.meta, Bytes::from(data));
            Some(Snapshot { meta, data })
        }
    };
    Ok((store, Found { loaded, snapshot }))
}

/// The simulated disk fails only where it is told to.
pub(super) fn failed<T>(error: &StoreError) -> T {
    panic!("the store fails on a disk that does not: {error}")
}
