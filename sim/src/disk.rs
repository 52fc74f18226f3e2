//! A replica's disk: what the store has been told, and what a crash leaves of it.
//!
//! Keeps the promises of `LogStore`, and no more: operations take effect in order, and of those
//! that no sync follows a crash keeps a prefix of any length.

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use hovercraft::{
    Entry, Index, Term,
    core::{Write, WriteNumber},
    storage::{Durability, HardState, Loaded, SnapshotMeta},
};
use r2p2::Time;

use crate::{
    faults::Leaves,
    network::{happens, up_to_us},
    options::DiskOptions,
};

/// A snapshot and its bytes.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) meta: SnapshotMeta,
    pub(crate) data: Bytes,
}

/// What the storage role is asked to do.
#[derive(Debug)]
enum Job {
    Write(Write),
    Install { snapshot: Snapshot, keep_tail: bool },
}

/// What it has done.
#[derive(Debug)]
pub(crate) enum Done {
    Stored(WriteNumber),
    /// None if what was received is not what it should be.
    Installed(Option<Snapshot>),
}

/// What is on the disk.
#[derive(Debug, Clone)]
struct Image {
    hard_state: HardState,
    /// The write that brought it, so that an older one does not come back.
    hard_state_write: WriteNumber,
    snapshot: Option<Snapshot>,
    /// The index of the first entry.
    first: Index,
    entries: VecDeque<Entry>,
}

#[derive(Debug)]
pub(crate) struct Disk {
    options: DiskOptions,
    durability: Durability,
    /// What a crash leaves for certain.
    durable: Image,
    /// Jobs in order that are not in `durable` yet.
    jobs: VecDeque<Job>,
    /// How many of these are done, but for a sync (durability `interval`).
    done: usize,
    /// How many are being done now.
    under_way: usize,
    /// The snapshot that is being received.
    parts: Vec<u8>,
    /// How many times slower than usual it is.
    slowness: u32,
    /// It completes nothing before this.
    pub(crate) stalled_until: Time,
    /// Its next write fails.
    pub(crate) fails: bool,
    /// Every write fails until there is room again.
    pub(crate) is_full: bool,
    /// What it holds is damaged before the tail: it is refused at the start.
    pub(crate) is_damaged: bool,
    rng: fastrand::Rng,
}

impl Disk {
    pub(crate) fn new(
        options: DiskOptions,
        durability: Durability,
        hard_state: HardState,
        rng: fastrand::Rng,
    ) -> Self {
        let durable = Image {
            hard_state,
            hard_state_write: 0,
            snapshot: None,
            first: 1,
            entries: VecDeque::new(),
        };
        Self {
            options,
            durability,
            durable,
            jobs: VecDeque::new(),
            done: 0,
            under_way: 0,
            parts: Vec::new(),
            slowness: 1,
            stalled_until: Time::ZERO,
            fails: false,
            is_full: false,
            is_damaged: false,
            rng,
        }
    }

    /// Takes a job of the log or the hard state.
    pub(crate) fn write(&mut self, write: Write) {
        self.jobs.push_back(Job::Write(write));
    }

    /// Keeps a part of a snapshot that is being received.
    pub(crate) fn keep_part(&mut self, offset: u64, data: &[u8]) {
        if offset == 0 {
            self.parts.clear();
        }
        assert_eq!(offset, self.parts.len() as u64, "parts of a snapshot come in order");
        self.parts.extend_from_slice(data);
    }

    /// Takes the job to install what was received.
    pub(crate) fn install(&mut self, meta: SnapshotMeta, keep_tail: bool) {
        // In `memory` no entries are handed over, so there is no tail.
        let keep_tail = keep_tail && self.durability != Durability::Memory;
        let data = Bytes::from(std::mem::take(&mut self.parts));
        self.jobs.push_back(Job::Install { snapshot: Snapshot { meta, data }, keep_tail });
    }

    /// A snapshot that this replica took is complete; false if it could not be written.
    pub(crate) fn publish(&mut self, snapshot: Snapshot) -> bool {
        if happens(&mut self.rng, self.options.spoiled_per_mille) {
            return false;
        }
        let latest = self.durable.snapshot.as_ref().map_or(0, |latest| latest.meta.index);
        if snapshot.meta.index > latest {
            self.durable.snapshot = Some(snapshot);
        }
        true
    }

    /// Begins what waits, in one batch. Returns how long it will take; none if the disk is busy or
    /// has nothing to do.
    pub(crate) fn begin(&mut self) -> Option<Duration> {
        let waiting = self.jobs.len() - self.done;
        if self.under_way > 0 || waiting == 0 {
            return None;
        }
        self.under_way = waiting;
        Some(self.duration())
    }

    /// How long an operation takes now.
    pub(crate) fn duration(&mut self) -> Duration {
        let extra = up_to_us(&mut self.rng, self.options.sync_spread_us);
        (Duration::from_micros(self.options.sync_min_us) + extra) * self.slowness
    }

    /// The batch is done: what there is to be told.
    pub(crate) fn complete(&mut self) -> Vec<Done> {
        let mut news = Vec::new();
        let mut stored = None;
        let first = self.done;
        self.done += std::mem::take(&mut self.under_way);
        let mut sync_to = if self.durability == Durability::Interval { 0 } else { self.done };
        for (position, job) in self.jobs.iter().enumerate().take(self.done).skip(first) {
            match job {
                Job::Write(Write::HardState { number, state }) => {
                    // Synced whatever else is; the log is another file.
                    self.durable.set_hard_state(*number, state.clone());
                    stored = Some(*number);
                }
                Job::Write(Write::Append { number, .. }) => stored = Some(*number),
                Job::Write(Write::Trim { .. }) => {}
                Job::Install { snapshot, .. } => {
                    sync_to = sync_to.max(position + 1);
                    let is_whole = snapshot.is_whole();
                    news.push(Done::Installed(is_whole.then(|| snapshot.clone())));
                }
            }
        }
        self.sync(sync_to);
        news.extend(stored.map(Done::Stored));
        news
    }

    /// In the durability `interval`: syncs what is done.
    pub(crate) fn sync_interval(&mut self) -> Duration {
        self.sync(self.done);
        Duration::from_micros(self.options.interval_us)
    }

    /// What the storage role does when it is stopped in good order: everything, then the log if it
    /// has been given none of it, and then this.
    pub(crate) fn stop(&mut self, log: Option<Write>, state: HardState) {
        self.sync(self.jobs.len());
        if let Some(Write::Append { first, entries, .. }) = log {
            self.durable.skip_to(first);
            self.durable.append(first, entries);
        }
        self.durable.hard_state = state;
        self.jobs.clear();
        self.parts.clear();
        (self.done, self.under_way, self.durable.hard_state_write) = (0, 0, 0);
    }

    /// The process dies. Of what was not synced some is there. What the log's recovery makes of it
    /// is a prefix, because no record counts behind one that is missing; the hard state is another
    /// file, which may have kept more or less. Returns whether a torn tail was cut.
    pub(crate) fn crash(&mut self, leaves: Leaves) -> bool {
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
                Job::Write(Write::HardState { number, state }) => Some((*number, state.clone())),
                _ => None,
            });
            for (number, state) in states.filter(|_| rng.bool()) {
                self.durable.set_hard_state(number, state);
            }
        }
        self.forget();
        is_torn
    }

    /// Whether a process can start on it.
    pub(crate) fn is_usable(&self) -> bool {
        !self.is_full && !self.is_damaged
    }

    /// Nothing is wrong with it any more.
    pub(crate) fn repair(&mut self) {
        self.slowness = 1;
        self.stalled_until = Time::ZERO;
        (self.fails, self.is_full, self.is_damaged) = (false, false, false);
    }

    /// What a process that starts finds.
    pub(crate) fn load(&mut self) -> Loaded {
        let in_memory = self.durability == Durability::Memory;
        let clean = self.durable.hard_state.clean;
        self.durable.skip_to_snapshot();
        Loaded {
            hard_state: Some(self.durable.hard_state.clone()),
            snapshot: self.durable.snapshot.as_ref().map(|snapshot| snapshot.meta.clone()),
            first_index: self.durable.first,
            entries: self.durable.entries.iter().map(Image::without_path).collect(),
            torn: in_memory && !clean,
        }
    }

    /// Saves a hard state before anything else happens.
    pub(crate) fn save_hard_state(&mut self, state: &HardState) {
        self.durable.hard_state = state.clone();
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
        let snapshot = self.durable.snapshot.as_ref().map_or(0, |latest| latest.meta.index);
        if index <= snapshot {
            return true;
        }
        let position = index.checked_sub(self.durable.first);
        let entry = position.and_then(|at| self.durable.entries.get(at as usize));
        entry.is_some_and(|entry| entry.term == term)
    }

    /// Makes the first jobs durable.
    fn sync(&mut self, count: usize) {
        for job in self.jobs.drain(..count) {
            match job {
                Job::Write(write) => self.durable.write(write),
                Job::Install { snapshot, keep_tail } if snapshot.is_whole() => {
                    self.durable.install(snapshot, keep_tail);
                }
                Job::Install { .. } => {}
            }
        }
        self.done = self.done.saturating_sub(count);
    }

    /// The process is gone, and what was only in its memory with it.
    fn forget(&mut self) {
        self.jobs.clear();
        self.parts.clear();
        (self.done, self.under_way, self.durable.hard_state_write) = (0, 0, 0);
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

impl Image {
    fn next(&self) -> Index {
        self.first + self.entries.len() as Index
    }

    /// A log that ends below the snapshot goes on behind it.
    fn skip_to_snapshot(&mut self) {
        let snapshot = self.snapshot.as_ref().map_or(0, |latest| latest.meta.index);
        self.skip_to(snapshot + 1);
    }

    /// If the log ends before an index, it goes on there: a snapshot holds what is between.
    fn skip_to(&mut self, first: Index) {
        let snapshot = self.snapshot.as_ref().map_or(0, |latest| latest.meta.index);
        assert!(first <= snapshot + 1 || first <= self.next(), "a log has no gaps");
        if self.next() < first {
            self.entries.clear();
            self.first = first;
        }
    }

    fn write(&mut self, write: Write) {
        match write {
            Write::HardState { number, state } => self.set_hard_state(number, state),
            Write::Append { first, entries, .. } => self.append(first, entries),
            Write::Trim { first } => {
                let snapshot = self.snapshot.as_ref().map_or(0, |latest| latest.meta.index);
                assert!(first <= snapshot + 1, "only what a snapshot holds is trimmed");
                while self.first < first && self.entries.pop_front().is_some() {
                    self.first += 1;
                }
            }
        }
    }

    fn set_hard_state(&mut self, number: WriteNumber, state: HardState) {
        if number > self.hard_state_write {
            (self.hard_state_write, self.hard_state) = (number, state);
        }
    }

    fn append(&mut self, first: Index, entries: Vec<Entry>) {
        assert!(
            self.first <= first && first <= self.next(),
            "an append at {first} does not fit a log from {} to {}",
            self.first,
            self.next(),
        );
        self.entries.truncate((first - self.first) as usize);
        self.entries.extend(entries);
    }

    fn install(&mut self, snapshot: Snapshot, keep_tail: bool) {
        let index = snapshot.meta.index;
        if keep_tail {
            assert!(
                index < self.next(),
                "a log that keeps its tail holds the snapshot's last entry"
            );
            while self.first <= index && self.entries.pop_front().is_some() {
                self.first += 1;
            }
        } else {
            self.entries.clear();
            self.first = index + 1;
        }
        self.snapshot = Some(snapshot);
    }

    fn without_path(entry: &Entry) -> Entry {
        Entry { return_path: None, ..entry.clone() }
    }
}
