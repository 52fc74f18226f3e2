//! The log store seam: what a replica must still know after it was killed.
//!
//! A store holds the *hard state*, the log, and the latest snapshot. The storage role owns it and
//! calls it from one thread; its caller never waits on it.

mod directory;
mod disk;
mod hard_state;
mod health;
mod mark;
mod memory;
mod memory_image;
mod record;
mod segmented;
mod sim_disk;
mod sled;
mod slots;
mod snapshot_file;
mod snapshots;
pub mod suite;
mod tail;

use std::{
    fmt,
    io::{Read, Write},
    path::Path,
};

use rkyv::{Archive, Deserialize, Serialize};

pub(crate) use self::disk::is_full;
pub use self::{
    disk::{Disk, DiskFile, FileDisk},
    memory::MemoryStore,
    segmented::{Inspection, RecordView, SegmentedStore, inspect},
    sim_disk::{Crash, SimDisk, Work},
    sled::SledStore,
    tail::{Contradiction, Tail},
};
#[doc(hidden)]
pub use self::{record::fuzz_records, segmented::fuzz_recovery};
use crate::{
    digest::DigestKey,
    entry::{Configuration, Entry, Incarnation, Index, NodeId, Term},
};

/// How much a replica promises when it acknowledges an entry (P37).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum Durability {
    /// An entry is on disk before it is acknowledged.
    Sync,
    /// Entries are synced from time to time. After an unclean stop the replica is recovering.
    Interval,
    /// Entries are kept in memory, and written at a clean stop. After any other the replica is
    /// recovering.
    Memory,
}

/// Which store keeps the log in the durabilities `sync` and `interval`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StoreKind {
    /// [`SegmentedStore`].
    #[default]
    Segmented,
    /// [`SledStore`].
    Sled,
}

impl fmt::Display for StoreKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Segmented => "segmented",
            Self::Sled => "sled",
        })
    }
}

/// What a store is of: written once by `init`, except the incarnation (P39).
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Birth {
    /// The cluster, drawn at random by `init`.
    pub cluster: u64,
    /// This replica's number.
    pub node: NodeId,
    /// The first configuration, which stands before the log.
    pub configuration: Configuration,
    /// The cluster's secret, drawn at random by `init` (P2).
    pub digest_key: DigestKey,
}

/// What changes with elections and starts; small, and synced at every change.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct HardState {
    /// The highest term seen.
    pub term: Term,
    /// Whom this replica voted for in that term.
    pub vote: Option<NodeId>,
    /// This life of the disk (P39).
    pub incarnation: Incarnation,
    /// The cluster that this disk belongs to; none before `init`.
    pub birth: Option<Birth>,
    /// The durability of the last run, recorded before its first acknowledgement (P37).
    pub durability: Durability,
    /// The last run ended with everything synced. Removed before the next run takes part (P37).
    pub clean: bool,
}

/// What a snapshot stands for.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct SnapshotMeta {
    /// The last entry that it holds the effect of.
    pub index: Index,
    /// That entry's term.
    pub term: Term,
    /// The configuration in force at that entry.
    pub configuration: Configuration,
    /// Log time at that entry, in microseconds (P22).
    pub log_time_us: u64,
    /// The size of the snapshot's data, in bytes.
    pub size_bytes: u64,
    /// CRC-32 of the data.
    pub checksum: u32,
    /// The cluster's secret, as in the birth of its replicas: what restores a cluster from a
    /// snapshot takes it from here (P2).
    pub digest_key: DigestKey,
}

/// What a store held when it was opened.
#[derive(Debug)]
pub struct Loaded {
    /// None on an empty disk.
    pub hard_state: Option<HardState>,
    /// The latest complete snapshot.
    pub snapshot: Option<SnapshotMeta>,
    /// The index of the first entry; one past the last entry if there are none. At most one above
    /// the snapshot's index (1 without a snapshot), so entries and snapshot leave no gap; it may be
    /// below what was last given to [`LogStore::trim`].
    pub first_index: Index,
    /// The entries, contiguous. Return paths are not kept.
    pub entries: Vec<Entry>,
    /// Why entries may be lost that were acknowledged: the replica is recovering whatever the
    /// durability (P38). The caller saves a hard state with a new incarnation before it appends:
    /// until then the next `load` finds the same, after that perhaps not.
    pub torn: Option<Torn>,
}

/// Reason to believe that acknowledged entries are lost (P37, P38).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Torn {
    /// It cannot be told how much of the log was synced.
    Mark,
    /// Records are missing at the end of the log that were synced.
    Tail,
    /// The last run kept its log in another store.
    OtherStore,
    /// The log was in memory, and the last run did not end in good order.
    Memory,
}

impl fmt::Display for Torn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mark => {
                "the mark `synced` is missing or damaged, so that it cannot be told whether the \
                 end of the log was lost"
            }
            Self::Tail => "records that were synced are missing at the end of the log",
            Self::OtherStore => "the last run kept its log in another store, which is not read",
            Self::Memory => "the log was in memory, and the last run did not end in good order",
        })
    }
}

impl Loaded {
    /// Checks that log and snapshot are of the cluster that the hard state names: their digests are
    /// under its key (P2). A checksum does not tell, if a file of another replica was put here.
    pub(crate) fn check_digests(&self, place: &Path) -> Result<(), StoreError> {
        let birth = self.hard_state.as_ref().and_then(|state| state.birth.as_ref());
        let Some(Birth { digest_key, .. }) = birth else { return Ok(()) };
        if self.snapshot.as_ref().is_some_and(|meta| meta.digest_key != *digest_key) {
            let what = "the snapshot (it is of another cluster than the hard state)";
            return Err(directory::damaged(place, what));
        }
        for (index, entry) in (self.first_index..).zip(&self.entries) {
            if entry.request().is_some_and(|request| !request.has_digest_of(*digest_key)) {
                let what = format!("entry {index} (its digest is not that of its request)");
                return Err(directory::damaged(place, what));
            }
        }
        Ok(())
    }
}

/// Why a store failed. After any error of a running store the node stops (P38).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The disk, or the library above it, failed to do something.
    #[error("cannot {action} in {place}: {source}")]
    Io {
        /// What was tried, as a verb phrase: "append 12 entries".
        action: String,
        /// The directory or file.
        place: String,
        /// What the operating system or the library said.
        source: std::io::Error,
    },
    /// A record before the tail is damaged; it is never silently skipped.
    #[error("{place}: {what} is damaged; {way_out}")]
    Damaged {
        /// The directory or file, and the record in it.
        place: String,
        /// What is damaged: "entry 17".
        what: String,
        /// What the operator can do.
        way_out: String,
    },
    /// The directory was written by a version that this one does not read.
    #[error(
        "{place} has format version {found}, and this build reads version {expected}; run the \
         build that wrote it, and keep the directory"
    )]
    Version {
        /// The directory or file.
        place: String,
        /// The version found.
        found: u32,
        /// The version that this build reads.
        expected: u32,
    },
    /// The disk is full. Nothing has changed, and the store goes on (P38).
    #[error(
        "cannot {action} in {place}: the disk is full; nothing is lost: make room on it, and start \
             the replica again if it has ended"
    )]
    Full {
        /// The attempt, as a verb phrase.
        action: String,
        /// The directory or file.
        place: String,
    },
    /// Another process holds the directory.
    #[error("{place} is in use by another process; stop that one first")]
    Locked {
        /// The directory.
        place: String,
    },
    /// The directory belongs to a store of another kind.
    #[error("{place} was written by the store \"{found}\"; set store = \"{found}\"")]
    OtherStore {
        /// The directory.
        place: String,
        /// The store that wrote it.
        found: StoreKind,
    },
    /// There is nothing to look at.
    #[error("{place} is not the data directory of a replica with the store \"segmented\"")]
    NoLog {
        /// The directory.
        place: String,
    },
    /// An earlier call failed, and after the first error a store does nothing more (P38).
    #[error("{place} is out of use since an earlier error: {earlier}")]
    Stopped {
        /// The directory or file.
        place: String,
        /// The earlier error.
        earlier: String,
    },
    /// The data of a snapshot is not what its meta says. Nothing has changed, and the store goes
    /// on.
    #[error(
        "the snapshot at {index} should have {size_bytes} bytes with CRC-32 {checksum:08x}, and has \
         {written_bytes} with {written_checksum:08x}"
    )]
    SnapshotMismatch {
        /// The index in its meta.
        index: Index,
        /// The size in its meta.
        size_bytes: u64,
        /// The checksum in its meta.
        checksum: u32,
        /// The size of what was written.
        written_bytes: u64,
        /// The checksum of what was written.
        written_checksum: u32,
    },
}

/// Room that is reserved on the disk for the log, whatever else is written to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Appends that take no more than this in all, by [`Self::taken_by`], do not find the disk
    /// full.
    pub bytes: u64,
    /// Those of these bytes that are for what a leader makes itself, and for truncations.
    pub spare_bytes: u64,
    /// The disk had no more.
    pub is_full: bool,
}

impl Room {
    /// Room of a store that reserves nothing.
    pub const UNLIMITED: Self = Self { bytes: u64::MAX, spare_bytes: 0, is_full: false };

    /// Most bytes that an append takes beside its entries.
    pub const APPEND_BYTES: usize = 64;

    /// Returns the most bytes that an append of these entries takes.
    pub fn taken_by(entries: &[Entry]) -> u64 {
        let entries = entries.iter().map(Entry::size_bytes).sum::<usize>();
        (entries + Self::APPEND_BYTES) as u64
    }
}

/// Opens the store for a durability: [`MemoryStore`] for `memory`, else one of this kind.
pub fn open(
    directory: &Path,
    durability: Durability,
    kind: StoreKind,
) -> Result<Box<dyn LogStore>, StoreError> {
    Ok(match (durability, kind) {
        (Durability::Memory, _) => Box::new(MemoryStore::open(directory)?),
        (_, StoreKind::Segmented) => Box::new(SegmentedStore::open(directory)?),
        (_, StoreKind::Sled) => Box::new(SledStore::open(directory)?),
    })
}

/// The log, the hard state and the snapshots of one replica.
///
/// To ensure correctness, every store upholds the following; [`suite`] tests them.
///
/// - Calls take effect in the order in which they were made. What a `sync` follows is on disk when
///   `sync` returns; of what no sync follows, a crash keeps a prefix.
/// - `append` is atomic: after a crash its truncation and its entries are all there or none is, or
///   (only of entries that no sync follows) a prefix of the entries is there with the truncation.
/// - After an error the store refuses every further call (P38), but for
///   [`StoreError::SnapshotMismatch`] and [`StoreError::Full`], before which nothing has changed.
/// - A hard state is saved before anything is appended. A log without one is damaged, because the
///   vote is lost.
/// - `load` puts log and snapshot together by [`Tail::of`], and refuses a log that contradicts
///   itself: [`Loaded::check`] passes for everything that it returns.
pub trait LogStore: Send {
    /// Reads everything back; what it returns is on disk. Called once, before any other method.
    ///
    /// A log that ends below the snapshot is left out, because the snapshot holds all of it: the
    /// log then goes on behind the snapshot. So is a log that holds another entry at the snapshot's
    /// index ([`Tail::Goes`]): it is older than the snapshot, and none of it ever comes back.
    fn load(&mut self) -> Result<Loaded, StoreError>;

    /// Replaces the hard state; it is on disk when this returns. With one that says `clean`, so is
    /// everything else.
    fn save_hard_state(&mut self, state: &HardState) -> Result<(), StoreError>;

    /// Removes every entry at or above `first`, then appends `entries` from `first` on. Return
    /// paths are not kept.
    ///
    /// # Panics
    ///
    /// If `first` is more than one past the last entry, or below the first one.
    fn append(&mut self, first: Index, entries: &[Entry]) -> Result<(), StoreError>;

    /// Puts everything that was appended on disk.
    fn sync(&mut self) -> Result<(), StoreError>;

    /// Reserves room for the log, so that the next entries, of which one may have this size, do not
    /// find the disk full. Says what there is; that the disk has no more is no error.
    fn room(&mut self, entry_bytes_max: u64) -> Result<Room, StoreError> {
        let _ = entry_bytes_max;
        Ok(Room::UNLIMITED)
    }

    /// Removes entries below `first`, as soon and as far as is cheap; those that no complete
    /// snapshot holds the effect of stay.
    fn trim(&mut self, first: Index) -> Result<(), StoreError>;

    /// Where snapshots are written and read, from other threads too.
    fn snapshots(&self) -> std::sync::Arc<dyn SnapshotStore>;

    /// Makes a snapshot that was received from another replica the state of this one: the snapshot
    /// becomes the latest, even if the one before has a higher index. With `keep_tail` the entries
    /// above its index stay, and everything that was appended is synced first; otherwise the whole
    /// log is removed. Atomic, and on disk when this returns (P36). A snapshot that this replica
    /// has begun to take itself is dropped after it.
    fn install(
        &mut self,
        snapshot: Box<dyn SnapshotSink>,
        meta: &SnapshotMeta,
        keep_tail: bool,
    ) -> Result<(), StoreError>;

    /// How long the next sync, saved hard state or snapshot takes of a simulation's time, which
    /// stands still while a store is called.
    #[cfg(madsim)]
    fn simulated_latency(&mut self) -> std::time::Duration {
        std::time::Duration::ZERO
    }
}

/// The snapshots of one replica; used from several threads.
pub trait SnapshotStore: Send + Sync {
    /// Begins a new snapshot, which replaces the latest one when it is published or installed.
    fn create(&self) -> Result<Box<dyn SnapshotSink>, StoreError>;

    /// Makes a snapshot that this replica took itself the latest one, atomically and durably. One
    /// that is not newer than the latest, or was begun before an install, is dropped.
    ///
    /// The caller has synced every write up to that of the snapshot's last entry. *Because* the
    /// disk may hold another entry at that index, whose truncation is not synced (P36).
    fn publish(&self, sink: Box<dyn SnapshotSink>, meta: &SnapshotMeta) -> Result<(), StoreError>;

    /// Opens the data of the latest snapshot, if there is one. It stays readable while it is open,
    /// even when a newer one is published.
    fn open(&self) -> Result<Option<OpenSnapshot>, StoreError>;
}

/// The latest snapshot, open for reading.
pub struct OpenSnapshot {
    /// What it stands for.
    pub meta: SnapshotMeta,
    /// Its data.
    pub source: Box<dyn SnapshotSource>,
}

/// A snapshot being written. Dropped unpublished, it leaves nothing behind.
pub trait SnapshotSink: Write + Send {
    /// The size in bytes and the CRC-32 of what has been written, for the meta.
    fn written(&self) -> (u64, u32);

    /// Opens what has been written. Nothing is written after this; the snapshot may still be
    /// published, installed or dropped, even while this source is open.
    fn read_back(&mut self) -> std::io::Result<Box<dyn SnapshotSource>>;

    /// For the store that made it to take back.
    fn into_any(self: Box<Self>) -> Box<dyn std::any::Any>;
}

/// The data of a snapshot: reads from the start, or at an offset.
pub trait SnapshotSource: Read + Send {
    /// Reads at `offset` until `buffer` is full or the end is reached; returns the bytes read.
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> std::io::Result<usize>;
}
