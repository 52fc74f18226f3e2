//! A replica's disk: what the store has been told, and what a crash leaves of it.
//!
//! Keeps the promises of `LogStore`, and no more: operations take effect in order, and of those
//! that no sync follows a crash keeps a prefix of any length. In some runs the product's own store
//! stands beside it, over a disk that tears and reorders; it is held against this, and what it
//! hands back is what replicas start with.

mod image;
mod store;

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use hovercraft::{
    Incarnation, Index, Term,
    core::{Write, WriteNumber},
    storage::{Durability, HardState, Loaded, Room, SimDisk, SnapshotMeta, Torn},
};
use r2p2::Time;

use crate::{
    faults::Leaves,
    network::{happens, up_to_us},
    options::DiskOptions,
};

pub(crate) use self::store::Damage;
use self::{image::Image, store::Store};

/// The part of a full disk's room that is for what a leader makes itself, and for truncations.
const SPARE_BYTES: u64 = 4096;

/// Most bytes that the log reserves beyond that.
const ROOM_BYTES_MAX: u64 = 8 << 10;

/// A copy of a replica's directory.
#[derive(Debug)]
pub(crate) struct Copy {
    durable: Image,
    store: Option<SimDisk>,
}

impl Copy {
    /// Index of the last entry in it.
    pub(crate) fn last(&self) -> Index {
        let snapshot = self.durable.snapshot.as_ref().map_or(0, |latest| latest.meta.index);
        snapshot.max(self.durable.next() - 1)
    }

    pub(crate) fn incarnation(&self) -> Incarnation {
        self.durable.hard_state.incarnation
    }
}

/// The fate of a snapshot that a replica took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Published {
    /// It is the latest.
    Latest,
    /// The service could not write it.
    Spoiled,
    /// The disk is full.
    Postponed,
}

/// A snapshot and its bytes.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) meta: SnapshotMeta,
    pub(crate) data: Bytes,
}

/// What the storage role is asked to do.
#[derive(Debug, Clone)]
enum Job {
    Write(Write),
    Install {
        snapshot: Snapshot,
        keep_tail: bool,
    },
    /// An install that the disk had no room for.
    NoInstall,
    /// Checks what was received, for the service to read.
    Stage,
    /// Reads the latest snapshot again.
    ReadOwn,
    /// Syncs the log, and then begins to write this snapshot (P36).
    TakeSnapshot(Box<Snapshot>),
}

/// What it has done.
#[derive(Debug)]
pub(crate) enum Done {
    Stored(WriteNumber),
    /// The writes that this snapshot rests on are synced; it may be published from now on.
    SnapshotBegun(Box<Snapshot>),
    /// What was received; none if it is not what it should be.
    Staged(Option<Box<Snapshot>>),
    /// What was received is the latest snapshot.
    Installed,
    /// There was no room to install it, and it is gone.
    ReceivedPostponed,
    /// The latest snapshot, if there is one.
    Own(Option<Box<Snapshot>>),
}

#[derive(Debug)]
pub(crate) struct Disk {
    options: DiskOptions,
    durability: Durability,
    /// The product's own, beside the model of it.
    store: Option<Store>,
    /// What a crash leaves for certain.
    durable: Image,
    /// Jobs in order that are not in `durable` yet.
    jobs: VecDeque<Job>,
    /// How many of these are done, but for a sync (durability `interval`).
    done: usize,
    /// How many are being done now.
    under_way: usize,
    /// The snapshot that is being received; none if there was no room for it.
    parts: Option<Vec<u8>>,
    /// The one that was received, until it is installed or discarded.
    staged: Option<Snapshot>,
    /// How many times slower than usual it is.
    slowness: u32,
    /// End of the operation under way, unless the disk stands still.
    pub(crate) busy_until: Time,
    /// Number of snapshots of its replica's own that could not be written.
    pub(crate) spoiled: u64,
    /// It completes nothing before this, and has not since the stall began.
    pub(crate) stalled_until: Time,
    stalled_since: Time,
    /// Time at which it completed a batch last.
    completed: Time,
    /// When the batch under way began, if it writes the log or the hard state.
    pub(crate) writing_since: Option<Time>,
    /// When the snapshot that is being written was taken.
    pub(crate) snapshot_since: Option<Time>,
    /// Its next write fails.
    pub(crate) fails: bool,
    /// Bytes that the log reserves again after each batch, unless the disk is full.
    reserve_bytes: u64,
    /// Bytes that it has reserved and not used.
    left_bytes: u64,
    is_full: bool,
    /// What it holds is damaged before the tail: it is refused at the start.
    pub(crate) is_damaged: bool,
    /// Number of starts at which the log held another entry at the snapshot's index, since this
    /// was last asked.
    pub(crate) stale_logs: u64,
    rng: fastrand::Rng,
}

impl Disk {
    pub(crate) fn new(
        options: DiskOptions,
        durability: Durability,
        hard_state: HardState,
        entry_bytes_max: u64,
        mut rng: fastrand::Rng,
    ) -> Self {
        let entry_bytes_max =
            entry_bytes_max + Room::APPEND_BYTES as u64 + rng.u64(..ROOM_BYTES_MAX);
        let reserve_bytes = SPARE_BYTES + entry_bytes_max;
        // In `memory` there is no log on disk.
        let is_real = options.segmented && durability != Durability::Memory;
        let syncs_lie = options.syncs_lie && durability == Durability::Interval;
        let options = DiskOptions { syncs_lie, ..options };
        let store =
            is_real.then(|| Store::new(rng.fork(), &hard_state, (syncs_lie, reserve_bytes)));
        let durable = Image::new(hard_state);
        Self {
            store,
            spoiled: 0,
            options,
            durability,
            durable,
            jobs: VecDeque::new(),
            done: 0,
            under_way: 0,
            parts: None,
            staged: None,
            slowness: 1,
            busy_until: Time::ZERO,
            stalled_until: Time::ZERO,
            completed: Time::ZERO,
            stalled_since: Time::ZERO,
            writing_since: None,
            snapshot_since: None,
            fails: false,
            reserve_bytes,
            left_bytes: reserve_bytes,
            is_full: false,
            is_damaged: false,
            stale_logs: 0,
            rng,
        }
    }

    /// Takes a job of the log or the hard state.
    pub(crate) fn write(&mut self, write: Write) {
        self.jobs.push_back(Job::Write(write));
    }

    /// Keeps a part of a snapshot that is being received; false if there is no room for it.
    pub(crate) fn keep_part(&mut self, offset: u64, data: &[u8]) -> bool {
        if offset == 0 {
            self.parts = Some(Vec::new());
        }
        let Some(parts) = &mut self.parts else { return true };
        assert_eq!(offset, parts.len() as u64, "parts of a snapshot come in order");
        parts.extend_from_slice(data);
        let has_room = self.has_room();
        if !has_room {
            self.parts = None;
        }
        has_room
    }

    /// Takes the job to check what was received.
    pub(crate) fn stage(&mut self, meta: SnapshotMeta) {
        let data = Bytes::from(self.parts.take().unwrap_or_default());
        self.staged = Some(Snapshot { meta, data });
        self.jobs.push_back(Job::Stage);
    }

    /// Takes the job to install what was received, and read by the service.
    pub(crate) fn install(&mut self, keep_tail: bool) {
        // In `memory` no entries are handed over, so there is no tail.
        let keep_tail = keep_tail && self.durability != Durability::Memory;
        let snapshot = self.staged.take().expect("it was staged");
        self.jobs.push_back(Job::Install { snapshot, keep_tail });
    }

    /// Deletes what was received; takes the job to read the latest snapshot, if that is wanted.
    pub(crate) fn discard(&mut self, reads_own: bool) {
        self.staged = None;
        if reads_own {
            self.jobs.push_back(Job::ReadOwn);
        }
    }

    /// Whether the service cannot read a snapshot of another replica.
    pub(crate) fn spoils_reading(&mut self) -> bool {
        happens(&mut self.rng, self.options.unreadable_per_mille)
    }

    /// Takes the job to write a snapshot that this replica took.
    pub(crate) fn take_snapshot(&mut self, snapshot: Box<Snapshot>) {
        self.jobs.push_back(Job::TakeSnapshot(snapshot));
    }

    /// A snapshot that this replica took is complete, if it can be written.
    pub(crate) fn publish(&mut self, snapshot: Snapshot) -> Published {
        self.snapshot_since = None;
        if happens(&mut self.rng, self.options.spoiled_per_mille) {
            self.spoiled += 1;
            return Published::Spoiled;
        }
        if !self.has_room() {
            return Published::Postponed;
        }
        let latest = self.durable.snapshot.as_ref().map(|latest| latest.meta.index);
        if let Some(store) = &mut self.store {
            store.publish(&snapshot);
        }
        if latest.is_none_or(|latest| snapshot.meta.index > latest) {
            self.durable.snapshot = Some(snapshot);
        }
        Published::Latest
    }

    /// Begins what waits, in one batch. Returns how long it will take; none if the disk is busy or
    /// has nothing to do.
    pub(crate) fn begin(&mut self, now: Time) -> Option<Duration> {
        let waiting = self.jobs.len() - self.done;
        if self.under_way > 0 || waiting == 0 {
            return None;
        }
        self.under_way = waiting;
        let is_told =
            |job: &Job| matches!(job, Job::Write(Write::HardState { .. } | Write::Append { .. }));
        self.writing_since = self.jobs.range(self.done..).any(is_told).then_some(now);
        Some(self.duration())
    }

    /// How long an operation takes now.
    pub(crate) fn duration(&mut self) -> Duration {
        let extra = up_to_us(&mut self.rng, self.options.sync_spread_us);
        (Duration::from_micros(self.options.sync_min_us) + extra) * self.slowness
    }

    /// The batch is done: what there is to be told.
    pub(crate) fn complete(&mut self, now: Time) -> Vec<Done> {
        (self.writing_since, self.completed) = (None, now);
        let mut news = Vec::new();
        let mut stored = None;
        let first = self.done;
        self.done += std::mem::take(&mut self.under_way);
        if !self.has_room() {
            let installs = self.jobs.range_mut(first..self.done);
            let installs = installs.filter(|job| matches!(job, Job::Install { .. }));
            // The last bytes of a received snapshot may be what has no room.
            installs.filter(|_| self.rng.bool()).for_each(|job| *job = Job::NoInstall);
        }
        if let Some(store) = &mut self.store {
            store
                .work(self.jobs.range(first..self.done), self.durability)
                .unwrap_or_else(|error| store::failed(&error));
        }
        let mut sync_to = if self.durability == Durability::Interval { 0 } else { self.done };
        for (position, job) in self.jobs.iter().enumerate().take(self.done).skip(first) {
            if let Job::Write(Write::Append { entries, .. }) = job {
                let bytes = entries.iter().map(|it| it.size_bytes() as u64).sum::<u64>();
                let left = self.left_bytes.checked_sub(bytes + Room::APPEND_BYTES as u64);
                self.left_bytes = left.expect("no entry is handed over without room for it (P38)");
            }
            match job {
                Job::Write(Write::HardState { number, state }) => {
                    // Synced whatever else is; the log is another file.
                    self.durable.set_hard_state(*number, HardState::clone(state));
                    stored = Some(*number);
                }
                Job::Write(Write::Append { number, .. }) => stored = Some(*number),
                Job::Write(Write::Trim { .. }) => {}
                Job::Stage => {
                    let staged = self.staged.clone().filter(Snapshot::is_whole);
                    news.push(Done::Staged(staged.map(Box::new)));
                }
                Job::ReadOwn => {
                    news.push(Done::Own(self.durable.snapshot.clone().map(Box::new)));
                }
                Job::Install { .. } => {
                    sync_to = sync_to.max(position + 1);
                    news.push(Done::Installed);
                }
                Job::NoInstall => news.push(Done::ReceivedPostponed),
                Job::TakeSnapshot(snapshot) => {
                    if !(self.options.syncs_lie && self.rng.u8(..16) > 0) {
                        sync_to = sync_to.max(position + 1);
                    }
                    news.push(Done::SnapshotBegun(snapshot.clone()));
                }
            }
        }
        self.sync(sync_to);
        if !self.is_full {
            self.left_bytes = self.reserve_bytes;
        }
        news.extend(stored.map(Done::Stored));
        news
    }

    /// In the durability `interval`: syncs what is done.
    pub(crate) fn sync_interval(&mut self) -> Duration {
        if let Some(store) = &mut self.store {
            store.sync();
        }
        if !(self.options.syncs_lie && self.rng.u8(..16) > 0) {
            self.sync(self.done);
        }
        Duration::from_micros(self.options.interval_us)
    }

    /// What the storage role does when it is stopped in good order: everything, then the log if it
    /// has been given none of it, and then this.
    pub(crate) fn stop(&mut self, log: Option<Write>, state: HardState) {
        if let Some(store) = &mut self.store {
            let rest = self.jobs.range(self.done..);
            store.work(rest, self.durability).unwrap_or_else(|error| store::failed(&error));
            store.save(&state);
            store.close();
        }
        self.sync(self.jobs.len());
        if let Some(Write::Append { first, entries, .. }) = log {
            self.durable.restart(first);
            self.durable.append(first, entries);
        }
        self.durable.hard_state = state;
        self.jobs.clear();
        self.parts = None;
        self.staged = None;
        (self.done, self.under_way, self.durable.hard_state_write) = (0, 0, 0);
        (self.writing_since, self.snapshot_since) = (None, None);
    }

    /// Nothing can grow from here on, but the log within what it has reserved.
    pub(crate) fn fill(&mut self) {
        self.is_full = true;
        self.limit_store();
    }

    /// There is room again.
    pub(crate) fn empty(&mut self) {
        (self.is_full, self.left_bytes) = (false, self.reserve_bytes);
        self.limit_store();
    }

    pub(crate) fn is_full(&self) -> bool {
        self.is_full
    }

    /// The room that the log has.
    pub(crate) fn room(&self) -> Room {
        if self.durability == Durability::Memory {
            return Room::UNLIMITED;
        }
        // A crash may have taken what was reserved.
        let bytes = self.store.as_ref().map_or(u64::MAX, Store::room_bytes).min(self.left_bytes);
        Room { bytes, spare_bytes: SPARE_BYTES, is_full: self.is_full }
    }

    fn limit_store(&mut self) {
        if let Some(store) = &mut self.store {
            store.limit(self.is_full);
        }
    }

    /// Returns whether a snapshot can be written.
    fn has_room(&self) -> bool {
        !self.is_full || self.durability == Durability::Memory
    }

    /// The process dies. Of what was not synced some is there. What the log's recovery makes of it
    /// is a prefix, because no record counts behind one that is missing; the hard state is another
    /// file, which may have kept more or less. Returns whether a torn tail was cut.
    pub(crate) fn crash(&mut self, leaves: Leaves) -> bool {
        if let Some(store) = &mut self.store {
            // What waits is only in the memory of the process.
            let begun = self.jobs.drain(..self.done + self.under_way).skip(self.done);
            store.crash(begun.collect(), self.durability, leaves);
            self.limit_store();
            self.forget();
            return false;
        }
        let count = self.jobs.len();
        let survivors = match leaves {
            Leaves::Nothing => 0,
            Leaves::Everything => count,
            Leaves::Prefix | Leaves::Torn | Leaves::Reordered => self.rng.usize(..=count),
        };
        self.sync(survivors);
        let mut is_torn = false;
        if leaves == Leaves::Torn
            && let Some(Job::Write(Write::Append { first, entries, .. })) = self.jobs.front_mut()
        {
            // Of the last append the truncation, and a part of the entries.
            entries.truncate(self.rng.usize(..=entries.len()));
            let (first, entries) = (*first, std::mem::take(entries));
            self.durable.append(first, entries);
            is_torn = true;
        }
        if leaves == Leaves::Reordered {
            let rng = &mut self.rng;
            let states = self.jobs.iter().filter_map(|job| match job {
                Job::Write(Write::HardState { number, state }) => {
                    Some((*number, HardState::clone(state)))
                }
                _ => None,
            });
            for (number, state) in states.filter(|_| rng.bool()) {
                self.durable.set_hard_state(number, state);
            }
        }
        self.forget();
        is_torn
    }

    /// Copies what is certainly on it.
    pub(crate) fn copy(&mut self) -> Copy {
        let durable = Image { hard_state_write: 0, ..self.durable.clone() };
        Copy { durable, store: self.store.as_mut().map(Store::copy) }
    }

    /// Puts a copy in place of what is on it. No process runs.
    pub(crate) fn put_back(&mut self, copy: Copy) {
        self.durable = copy.durable;
        if let (Some(store), Some(disk)) = (&mut self.store, copy.store) {
            store.put_back(disk);
        }
    }

    /// Whether a process can start on it.
    pub(crate) fn is_usable(&self) -> bool {
        !self.is_damaged
    }

    /// Nothing is wrong with it any more, but for a stall that lasts longer.
    pub(crate) fn repair(&mut self) {
        (self.options.spoiled_per_mille, self.options.unreadable_per_mille) = (0, 0);
        self.slowness = 1;
        (self.fails, self.is_damaged) = (false, false);
        self.empty();
    }

    /// What a process that starts finds.
    pub(crate) fn load(&mut self) -> Loaded {
        if let Some(store) = &mut self.store {
            let found = store.load(&self.durable, self.durability);
            let (torn, hard_state) = (found.loaded.torn, found.loaded.hard_state.clone());
            let hard_state = hard_state.expect("init has saved one, and it is never lost");
            self.durable = Image::found(found, hard_state);
            return self.loaded(torn);
        }
        let in_memory = self.durability == Durability::Memory;
        let clean = self.durable.hard_state.clean;
        self.stale_logs += u64::from(self.durable.settle());
        self.loaded((in_memory && !clean).then_some(Torn::Memory))
    }

    fn loaded(&self, torn: Option<Torn>) -> Loaded {
        Loaded {
            hard_state: Some(self.durable.hard_state.clone()),
            snapshot: self.durable.snapshot.as_ref().map(|snapshot| snapshot.meta.clone()),
            first_index: self.durable.first,
            entries: self.durable.entries.iter().map(Image::without_path).collect(),
            torn,
        }
    }

    /// What a process makes of a damaged disk; none if there is no store that could say.
    pub(crate) fn look_at_damage(&mut self) -> Option<Damage> {
        let store = self.store.as_mut()?;
        Some(store.damaged(&self.durable, self.durability))
    }

    /// Saves a hard state before anything else happens.
    pub(crate) fn save_hard_state(&mut self, state: &HardState) {
        if let Some(store) = &mut self.store {
            store.save(state);
        }
        self.durable.hard_state = state.clone();
    }

    /// It completes nothing until then. A stall that follows another one before anything is
    /// completed goes on with it.
    pub(crate) fn stall(&mut self, now: Time, until: Time) {
        let has_moved = self.completed >= self.stalled_until;
        if has_moved || now >= self.stalled_until + self.longest() {
            self.stalled_since = now;
        }
        self.stalled_until = self.stalled_until.max(until);
    }

    /// Returns how long it has completed nothing, if it does so now.
    pub(crate) fn stood_for(&self, now: Time) -> Duration {
        let stands = now <= self.stalled_until && self.stalled_until > Time::ZERO;
        if stands { now.since(self.stalled_since) } else { Duration::ZERO }
    }

    /// Returns how long it has completed nothing, also if the stall is just over.
    pub(crate) fn has_stood_for(&self, now: Time) -> Duration {
        let ended = self.stalled_until.min(now);
        let is_known = now <= ended + self.longest() && ended > Time::ZERO;
        if is_known { ended.since(self.stalled_since) } else { Duration::ZERO }
    }

    /// Longest time from the end of a stall to the next thing that a replica hears of its disk: a
    /// sync of the log, and then a snapshot.
    fn longest(&self) -> Duration {
        let DiskOptions { sync_min_us, sync_spread_us, .. } = self.options;
        2 * Duration::from_micros(sync_min_us + sync_spread_us) * self.slowness
    }

    /// Returns whether it has not stood still for so long.
    pub(crate) fn has_moved_for(&self, now: Time, time: Duration) -> bool {
        self.stalled_until == Time::ZERO || now > self.stalled_until + time
    }

    pub(crate) fn set_slowness(&mut self, times: u32) {
        self.slowness = times;
    }

    /// The latest snapshot.
    pub(crate) fn snapshot(&self) -> Option<&Snapshot> {
        self.durable.snapshot.as_ref()
    }

    pub(crate) fn durability(&self) -> Durability {
        self.durability
    }

    /// The term and the vote that a crash now would leave.
    pub(crate) fn durable_hard_state(&self) -> &HardState {
        &self.durable.hard_state
    }

    /// Whether a crash now would leave this entry, or a snapshot that holds its effect.
    pub(crate) fn holds(&self, index: Index, term: Term) -> bool {
        self.durable.holds(index, term)
    }

    /// Makes the first jobs durable.
    fn sync(&mut self, count: usize) {
        self.jobs.drain(..count).for_each(|job| self.durable.job(job));
        self.done = self.done.saturating_sub(count);
    }

    /// The process is gone, and what was only in its memory with it.
    fn forget(&mut self) {
        self.jobs.clear();
        self.parts = None;
        self.staged = None;
        (self.done, self.under_way, self.durable.hard_state_write) = (0, 0, 0);
        (self.writing_since, self.snapshot_since) = (None, None);
        if self.durability == Durability::Memory {
            self.durable.snapshot = None;
            self.durable.entries.clear();
            self.durable.first = 1;
        }
    }
}

impl Snapshot {
    fn is_whole(&self) -> bool {
        self.data.len() as u64 == self.meta.size_bytes
            && crc32fast::hash(&self.data) == self.meta.checksum
    }
}
