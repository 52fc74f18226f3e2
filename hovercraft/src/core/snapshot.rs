//! Snapshots: when one is taken, what is trimmed, and how one comes from another replica (P36).
//! What becomes of one that is here is in [`install`](super::install).

use std::{collections::VecDeque, ops::Range, time::Duration};

use r2p2::Time;

use crate::{
    core::{
        Core, Output, SnapshotRead, Timer, Write,
        ahead::{AHEAD_BYTES_MAX, Ahead},
        install::Installs,
        pacing::Pacer,
    },
    entry::{Index, NodeId},
    messages::{Message, PART_BYTES_MAX},
    storage::SnapshotMeta,
};

/// A snapshot that could not be taken is tried again after this long, then after twice as long.
const TAKE_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// And so on, up to this many times twice as long.
const TAKE_AGAIN_DOUBLINGS_MAX: u32 = 6;

/// At the log's hard limit the pause is not longer than this.
const PAUSE_AT_LIMIT_MAX: Duration = Duration::from_secs(1);

/// A donor that has sent nothing for this long is given up; what it has sent is kept.
const DONOR_PATIENCE: Duration = Duration::from_secs(3);

/// Of a snapshot that was read this recently, the log keeps what comes after it.
const PIN_FOR: Duration = Duration::from_secs(5);

/// What this replica knows of snapshots.
#[derive(Debug)]
pub(crate) struct Snapshots {
    /// The index of the latest complete one; 0 if there is none.
    latest: Index,
    is_taking: bool,
    /// How many could not be taken since one was.
    failures: u32,
    /// The last one could not be taken.
    failed: Option<Failure>,
    /// None of another replica is kept before this time: the disk is full.
    receives_from: Time,
    /// Number of those that could not be kept since one was.
    refusals: u32,
    /// Index above which another replica needs the log, when it last asked, and which one it is.
    pinned: Option<(Index, Time, NodeId)>,
    receiving: Option<Receiving>,
    /// What the storage role keeps of a snapshot of others: this many bytes from its start.
    kept: Option<(SnapshotMeta, u64)>,
    pub(super) installs: Installs,
    /// The log is being trimmed, some entries a turn.
    is_trimming: bool,
}

/// A snapshot that could not be taken.
#[derive(Debug, Clone, Copy)]
struct Failure {
    at: Time,
    /// None is taken for so long.
    pause: Duration,
    /// The disk had no room for it.
    is_for_room: bool,
}

/// A snapshot on its way here.
#[derive(Debug)]
struct Receiving {
    donor: NodeId,
    index: Index,
    /// Questions whose answers are due, and the range of bytes that each asked for.
    asked: VecDeque<(u64, Range<u64>)>,
    /// When something last came.
    progressed: Time,
    pacer: Pacer,
    ahead: Ahead,
}

impl Snapshots {
    pub(crate) fn new(latest: Index) -> Self {
        Self {
            latest,
            is_taking: false,
            failures: 0,
            failed: None,
            receives_from: Time::ZERO,
            refusals: 0,
            pinned: None,
            receiving: None,
            kept: None,
            installs: Installs::default(),
            is_trimming: false,
        }
    }

    pub(crate) fn latest(&self) -> Index {
        self.latest
    }

    /// Number of failures to take one since one was taken.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    pub(crate) fn is_taking(&self) -> bool {
        self.is_taking
    }

    /// Returns whether the log will be shorter soon.
    pub(crate) fn makes_room(&self) -> bool {
        self.is_taking || self.is_trimming
    }

    /// Returns whether the last one of its own could not be taken, and is tried again.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed.is_some()
    }

    /// Returns whether one of its own waits for room on the disk.
    pub(crate) fn is_postponed(&self) -> bool {
        self.failed.as_ref().is_some_and(|failure| failure.is_for_room)
    }

    /// Returns whether one of another replica does.
    pub(crate) fn is_refused(&self) -> bool {
        self.refusals > 0
    }

    pub(crate) fn is_receiving(&self) -> bool {
        self.receiving.is_some()
    }

    /// The log stands still while a snapshot replaces it.
    pub(crate) fn is_installing(&self) -> bool {
        self.installs.is_under_way()
    }

    /// A snapshot of another replica is the latest one now.
    pub(super) fn installed(&mut self, index: Index) {
        (self.latest, self.pinned, self.refusals) = (index, None, 0);
    }

    /// Where the bytes that are here end.
    fn offset(&self) -> u64 {
        self.kept.as_ref().map_or(0, |(_, offset)| *offset)
    }
}

/// The pause before the next try, after so many in vain: drawn, so that replicas that share a disk
/// do not try at the same time.
fn pause(failures: u32, rng: &mut fastrand::Rng) -> Duration {
    let longest = TAKE_AGAIN_AFTER * 2u32.pow(failures.min(TAKE_AGAIN_DOUBLINGS_MAX));
    let longest_us = longest.as_micros() as u64;
    Duration::from_micros(rng.u64(longest_us / 2..=longest_us))
}

impl Core {
    /// The snapshot that [`Output::TakeSnapshot`] asked for is complete and on disk; none if it
    /// could not be taken.
    pub fn handle_snapshot(&mut self, now: Time, meta: Option<&SnapshotMeta>) {
        self.disk_moved(now);
        self.note_snapshot(now, meta);
        self.own_snapshot_ended(meta.is_some());
    }

    fn note_snapshot(&mut self, now: Time, meta: Option<&SnapshotMeta>) {
        let snapshots = &mut self.snapshots;
        snapshots.is_taking = false;
        let Some(meta) = meta else {
            let pause = pause(snapshots.failures, &mut self.rng);
            snapshots.failed = Some(Failure { at: now, pause, is_for_room: false });
            snapshots.failures += 1;
            return;
        };
        (snapshots.failures, snapshots.failed) = (0, None);
        if meta.index <= snapshots.latest {
            return;
        }
        snapshots.latest = meta.index;
        snapshots.is_trimming = true;
        self.counters.snapshots_taken += 1;
    }

    /// The snapshot that [`Output::TakeSnapshot`] asked for found the disk full. Nothing is lost:
    /// it is tried again after a while, the whole log stays until then (P38).
    pub fn handle_snapshot_postponed(&mut self, now: Time) {
        self.disk_moved(now);
        self.note_snapshot(now, None);
        self.snapshots.failed.iter_mut().for_each(|failure| failure.is_for_room = true);
        self.counters.snapshots_postponed += 1;
        self.acknowledging.mark();
        self.own_snapshot_postponed(now);
    }

    /// The snapshot of another replica found the disk full, when it came or when it was installed.
    /// What was kept of it is gone, nothing else has changed, and it is fetched again after a while
    /// (P38).
    pub fn handle_received_postponed(&mut self, now: Time) {
        self.disk_moved(now);
        if !self.install_lacks_room() {
            self.put_off_receiving(now);
        }
    }

    /// No snapshot of another replica is fetched for a while.
    pub(super) fn put_off_receiving(&mut self, now: Time) {
        let snapshots = &mut self.snapshots;
        (snapshots.receiving, snapshots.kept) = (None, None);
        snapshots.receives_from = now + pause(snapshots.refusals, &mut self.rng);
        snapshots.refusals += 1;
        self.counters.snapshots_postponed += 1;
        self.timers.stop(Timer::Snapshot);
        self.recovery.forget_term();
    }

    /// Returns whether a snapshot at the commit index would free a quarter of the log: while one is
    /// tried again the log need not grow on for want of something to wait for.
    pub(super) fn would_free_much(&self) -> bool {
        let through = |index| self.log.bytes_through(index);
        let commit = self.commit.index();
        let freed = through(commit) - through(self.snapshots.latest.min(commit));
        freed > self.log.size_bytes() as u64 / 4
    }

    /// Returns whether the pause after a snapshot that could not be taken is over. At the hard
    /// limit of the log it is short, because requests wait for it.
    fn may_take(&self, now: Time) -> bool {
        let Some(Failure { at, pause, .. }) = self.snapshots.failed else { return true };
        let pause = if self.is_log_full() { pause.min(PAUSE_AT_LIMIT_MAX) } else { pause };
        now.since(at) >= pause
    }

    /// Returns whether a snapshot is on its way: its donor has sent something of it within the
    /// longest election time-out. Behind a silent donor a replica fetches meanwhile what others
    /// have, since a leader may need it for a quorum.
    pub(super) fn is_snapshot_coming(&self, now: Time) -> bool {
        let silence = self.settings.timing.election_max;
        let receiving = self.snapshots.receiving.as_ref();
        receiving.is_some_and(|receiving| now.since(receiving.progressed) < silence)
    }

    /// Removes what the latest snapshot holds and half the bytes do not need, in this turn and the
    /// next ones: the rest stays for replicas that are a little behind.
    fn trim_log(&mut self, now: Time) {
        // A service that went back has yet to apply again what a newer snapshot may hold.
        let until = self.pin(now).unwrap_or(Index::MAX).min(self.snapshots.latest);
        let until = until.min(self.dispatched);
        let mut to = self.log.first() - 1;
        let mut bytes = self.log.size_bytes();
        self.snapshots.is_trimming = false;
        for (count, (index, entry)) in self.log.entries_from(self.log.first()).enumerate() {
            if index > until || bytes <= self.settings.log_bytes_max / 2 {
                break;
            }
            if count == self.settings.limits.trim_count {
                self.snapshots.is_trimming = true;
                break;
            }
            bytes -= entry.size_bytes();
            to = index;
        }
        if to >= self.log.first() {
            self.log.trim(to);
            self.configurations.trim(to);
            self.outputs.push_back(Output::Write(Write::Trim { first: to + 1 }));
        }
    }

    /// The index above which the log is kept, because another replica is reading the snapshot there
    /// and will need what comes after it: without that a large snapshot is never followed by
    /// entries. It holds as long as there is room.
    fn pin(&self, now: Time) -> Option<Index> {
        let (index, at, _) = self.snapshots.pinned?;
        let has_room = self.log.size_bytes() < self.settings.log_bytes_max / 2 * 3;
        (has_room && now.since(at) < PIN_FOR).then_some(index)
    }

    /// Another replica reads a snapshot.
    pub(super) fn snapshot_asked(&mut self, now: Time, read: SnapshotRead) {
        if read.index <= self.snapshots.latest {
            self.keep_above(now, read.to, read.index);
        }
        let bytes = read.bytes.min(PART_BYTES_MAX as u32);
        self.outputs.push_back(Output::ReadSnapshot(SnapshotRead { bytes, ..read }));
    }

    /// Another replica fetches what is at or below an index, and will need what comes after it.
    pub(super) fn keep_above(&mut self, now: Time, reader: NodeId, index: Index) {
        let is_here = self.log.first() <= index + 1;
        // Of two readers the one further behind counts.
        let is_own = self.snapshots.pinned.is_some_and(|(_, _, node)| node == reader);
        if is_here && (is_own || self.pin(now).is_none_or(|pinned| pinned >= index)) {
            self.snapshots.pinned = Some((index, now, reader));
        }
    }

    /// Answers [`Output::ReadSnapshot`]: sends `data`, which lies at `offset` of the snapshot that
    /// `meta` stands for.
    pub fn send_snapshot_part(
        &mut self,
        read: SnapshotRead,
        meta: SnapshotMeta,
        offset: u64,
        data: Vec<u8>,
    ) {
        self.counters.snapshot_parts_sent += 1;
        let SnapshotRead { to, question, .. } = read;
        let meta = Box::new(meta);
        self.send(to, Message::SnapshotPart { meta, offset, data, question });
    }

    /// The log has grown to its bound: take a snapshot, so that it can be trimmed.
    pub(super) fn ask_for_snapshot(&mut self, now: Time) {
        let is_full = self.log.size_bytes() > self.settings.log_bytes_max;
        // Perhaps it was pinned when the snapshot was taken.
        let is_trimmable =
            self.snapshots.is_trimming || is_full && self.log.first() <= self.snapshots.latest;
        if is_trimmable && !self.snapshots.is_installing() {
            self.trim_log(now);
        }
        let (latest, applied) = (self.snapshots.latest, self.applied.min(self.dispatched));
        // A snapshot that would let only a little be trimmed is not worth its cost.
        let gained = self.log.bytes_through(applied) - self.log.bytes_through(latest.min(applied));
        let is_due = self.log.size_bytes() > self.settings.log_bytes_max
            && gained > self.settings.log_bytes_max as u64 / 4;
        let Snapshots { is_taking, is_trimming, .. } = self.snapshots;
        let is_busy = is_taking || is_trimming || self.snapshots.is_installing();
        let is_wanted = is_due && !is_busy && !self.is_poisoned;
        let is_tried_again = self.waits_for_own() && !is_taking;
        if (is_wanted || is_tried_again) && self.may_take(now) {
            self.take_snapshot();
        }
    }

    pub(super) fn take_snapshot(&mut self) {
        self.snapshots.is_taking = true;
        self.outputs.push_back(Output::TakeSnapshot);
    }

    /// A donor has trimmed what this replica lacks, and offers a snapshot.
    pub(super) fn snapshot_offered(&mut self, now: Time, from: NodeId, index: Index) {
        let is_useful = index > self.commit.index()
            && self.recovery.is_bulk()
            && self.snapshots.receives_from <= now;
        let is_busy = self.snapshots.is_receiving() || self.snapshots.is_installing();
        if !is_useful || is_busy || !self.snapshots.installs.may_fetch(now) {
            return;
        }
        // What is here, perhaps of another donor, need not come again: whoever still has the same
        // one goes on with it, and anyone else begins with its own.
        let known = self.snapshots.kept.as_ref().map(|(meta, _)| meta.index);
        let known = known.filter(|known| *known > self.commit.index());
        if known.is_none() {
            self.snapshots.kept = None;
        }
        let pacer = Pacer::new(self.settings.timing.election_max);
        let (ahead, asked) = (Ahead::default(), VecDeque::new());
        let wanted = known.map_or(index, |known| known.min(index));
        tracing::info!(index, here = self.snapshots.offset(), donor = %from, "too far behind: fetching a snapshot");
        let (donor, progressed) = (from, now);
        let receiving = Receiving { donor, index: wanted, asked, progressed, pacer, ahead };
        self.snapshots.receiving = Some(receiving);
        self.ask_for_snapshot_parts(now);
    }

    pub(super) fn snapshot_part_came(
        &mut self,
        now: Time,
        (from, question): (NodeId, u64),
        meta: SnapshotMeta,
        offset: u64,
        data: Vec<u8>,
    ) {
        let commit = self.commit.index();
        let Some(receiving) = &self.snapshots.receiving else { return };
        // What is late may be of an older snapshot.
        if from != receiving.donor || meta.index < receiving.index || meta.index <= commit {
            return;
        }
        if self.snapshots.installs.refuses(now, from, &meta) {
            // It was of no use; another donor may have a better one.
            self.snapshots.receiving = None;
            self.timers.stop(Timer::Snapshot);
            self.recovery.ask_another_donor();
            return;
        }
        let Snapshots { receiving: Some(receiving), kept, .. } = &mut self.snapshots else {
            return;
        };
        // Only an answer to a question counts, and no longer one than was asked for.
        let is_asked = receiving.pacer.asked(question).is_some_and(|bytes| data.len() <= bytes);
        if !is_asked || (data.is_empty() && meta.size_bytes > 0) {
            self.counters.messages_refused += 1;
            return;
        }
        receiving.pacer.came(now, question, data.len(), true);
        if kept.as_ref().is_none_or(|(known, _)| *known != meta) {
            // The first part, or another snapshot than was known: begin anew.
            receiving.index = meta.index;
            receiving.pacer.forget();
            receiving.ahead = Ahead::default();
            *kept = (offset == 0).then(|| (meta.clone(), 0));
        }
        let end = offset + data.len() as u64;
        let Some((_, here)) = kept.as_mut().filter(|_| end <= meta.size_bytes) else {
            self.counters.snapshot_parts_unused += 1;
            self.ask_for_snapshot_parts(now);
            return;
        };
        // What came is not asked for again, in whatever order it came.
        if end > *here && receiving.ahead.keep(*here, offset, data) {
            receiving.progressed = now;
        } else {
            self.counters.snapshot_parts_unused += u64::from(end > 0);
        }
        while let Some(data) = receiving.ahead.take(*here) {
            let offset = std::mem::replace(here, *here + data.len() as u64);
            self.outputs.push_back(Output::KeepSnapshotPart { offset, data });
        }
        if *here == meta.size_bytes {
            (self.snapshots.receiving, self.snapshots.kept) = (None, None);
            self.timers.stop(Timer::Snapshot);
            self.begin_install(now, from, meta);
        } else {
            self.ask_for_snapshot_parts(now);
        }
    }

    pub(super) fn snapshot_timeout(&mut self, now: Time) {
        let commit = self.commit.index();
        let Some(receiving) = &mut self.snapshots.receiving else {
            return;
        };
        if receiving.index <= commit {
            // Entries came another way; the next heartbeat decides anew.
            self.snapshots.receiving = None;
            self.recovery.forget_term();
            return;
        }
        if now.since(receiving.progressed) >= DONOR_PATIENCE {
            // The donor is gone, or nothing large comes through from it: another one is asked.
            self.snapshots.receiving = None;
            self.recovery.ask_another_donor();
            return;
        }
        self.ask_for_snapshot_parts(now);
    }

    /// Asks for the next parts, as far as the pace allows.
    fn ask_for_snapshot_parts(&mut self, now: Time) {
        let size = self.snapshots.kept.as_ref().map(|(meta, _)| meta.size_bytes);
        let offset = self.snapshots.offset();
        let Some(receiving) = &mut self.snapshots.receiving else {
            return;
        };
        receiving.pacer.expire(now);
        receiving.pacer.drop_overtaken();
        let Receiving { donor, index, asked, pacer, ahead, .. } = receiving;
        // What was lost on its way is asked for again, and nothing else.
        asked.retain(|(question, _)| pacer.is_due(*question));
        let (to, index) = (*donor, *index);
        let mut reads = Vec::new();
        while pacer.room() > 0 {
            // Until the first part tells how long it is, nothing else is asked for.
            let unit = pacer.unit() as u64;
            let gap = ahead.gap(offset, asked.iter().map(|(_, range)| range.clone()));
            let end = gap.end.min(offset + AHEAD_BYTES_MAX as u64);
            let rest = match size {
                Some(size) => size.min(end).saturating_sub(gap.start),
                None if asked.is_empty() => unit,
                None => 0,
            };
            let bytes = rest.min(unit);
            if bytes == 0 {
                break;
            }
            let question = pacer.ask(now, bytes as usize);
            let (offset, bytes) = (gap.start, bytes as u32);
            asked.push_back((question, offset..offset + u64::from(bytes)));
            reads.push(Message::FetchSnapshot { index, offset, question, bytes });
        }
        let given_up = receiving.progressed + DONOR_PATIENCE;
        let next = receiving.pacer.deadline().map_or(given_up, |due| due.min(given_up));
        self.timers.set(Timer::Snapshot, next);
        for read in reads {
            self.send(to, read);
        }
    }
}

#[cfg(test)]
mod tests;
