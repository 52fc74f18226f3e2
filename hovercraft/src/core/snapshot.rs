//! Snapshots: when one is taken, what is trimmed, and how one comes from another replica (P36).

use r2p2::Time;

use crate::{
    core::{Core, Output, Timer, Write},
    entry::{Index, NodeId},
    messages::{Message, PART_BYTES_MAX},
    storage::SnapshotMeta,
};

/// What this replica knows of snapshots.
#[derive(Debug)]
pub(crate) struct Snapshots {
    /// The index of the latest complete one; 0 if there is none.
    latest: Index,
    is_taking: bool,
    receiving: Option<Receiving>,
    is_installing: bool,
}

/// A snapshot on its way here.
#[derive(Debug)]
struct Receiving {
    donor: NodeId,
    index: Index,
    /// Known from the first part on.
    meta: Option<SnapshotMeta>,
    /// Everything below this is here.
    offset: u64,
    attempts: u32,
}

impl Snapshots {
    pub(crate) fn new(latest: Index) -> Self {
        Self { latest, is_taking: false, receiving: None, is_installing: false }
    }

    pub(crate) fn latest(&self) -> Index {
        self.latest
    }

    pub(crate) fn is_taking(&self) -> bool {
        self.is_taking
    }

    pub(crate) fn is_receiving(&self) -> bool {
        self.receiving.is_some()
    }

    /// The log stands still while a snapshot replaces it.
    pub(crate) fn is_installing(&self) -> bool {
        self.is_installing
    }
}

impl Core {
    /// The snapshot that [`Output::TakeSnapshot`] asked for is complete and on disk; none if it
    /// could not be taken.
    pub fn handle_snapshot(&mut self, meta: Option<&SnapshotMeta>) {
        self.snapshots.is_taking = false;
        let Some(meta) = meta else { return };
        if meta.index <= self.snapshots.latest {
            return;
        }
        self.snapshots.latest = meta.index;
        self.counters.snapshots_taken += 1;
        // Half the bytes stay for replicas that are a little behind.
        let mut to = self.log.first() - 1;
        let mut bytes = self.log.size_bytes();
        for (index, entry) in self.log.entries_from(self.log.first()) {
            if index > meta.index || bytes <= self.settings.log_bytes_max / 2 {
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

    /// The snapshot that [`Output::InstallSnapshot`] named is in place, in the store and in the
    /// application; or it was not what it claimed, and nothing has changed.
    pub fn handle_installed(&mut self, now: Time, meta: Option<&SnapshotMeta>) {
        self.snapshots.is_installing = false;
        let Some(meta) = meta else { return };
        self.snapshots.latest = meta.index;
        self.counters.snapshots_installed += 1;
        let (index, term) = (meta.index, meta.term);
        let unordered = &mut self.unordered;
        self.binding.truncate(0, |request| unordered.insert_evicting(now, request, None));
        if self.log.term(index) == Some(term) {
            self.log.trim(index);
            self.configurations.trim(index);
        } else {
            self.log.reset(index, term, meta.log_time_us);
            self.configurations.reset(meta.configuration.clone().into());
        }
        self.commit.installed(index);
        (self.dispatched, self.applied) = (index, index);
        self.is_poisoned = false;
        self.recovery.forget_term();
        self.acknowledging.mark();
        self.report_applied(now);
    }

    /// Answers [`Output::ReadSnapshot`]: sends a part of the snapshot that `meta` stands for.
    pub fn send_snapshot_part(
        &mut self,
        to: NodeId,
        meta: SnapshotMeta,
        offset: u64,
        data: Vec<u8>,
    ) {
        self.counters.snapshot_parts_sent += 1;
        self.send(to, Message::SnapshotPart { meta, offset, data });
    }

    /// How many bytes [`Core::send_snapshot_part`] should be given at a time.
    pub const SNAPSHOT_PART_BYTES: usize = PART_BYTES_MAX;

    /// The log has grown to its bound: take a snapshot, so that it can be trimmed.
    pub(super) fn ask_for_snapshot(&mut self) {
        let (latest, applied) = (self.snapshots.latest, self.applied);
        // A snapshot that would let only a little be trimmed is not worth its cost.
        let gained = self.log.bytes_through(applied) - self.log.bytes_through(latest.min(applied));
        let is_due = self.log.size_bytes() > self.settings.log_bytes_max
            && gained > self.settings.log_bytes_max as u64 / 4;
        if is_due && !self.is_poisoned && !self.snapshots.is_taking && !self.snapshots.is_installing
        {
            self.snapshots.is_taking = true;
            self.outputs.push_back(Output::TakeSnapshot);
        }
    }

    /// A donor has trimmed what this replica lacks, and offers a snapshot.
    pub(super) fn snapshot_offered(&mut self, now: Time, from: NodeId, index: Index) {
        let is_useful = index > self.commit.index() && self.recovery.is_bulk();
        if !is_useful || self.snapshots.is_receiving() || self.snapshots.is_installing {
            return;
        }
        tracing::info!(index, donor = %from, "too far behind: fetching a snapshot");
        self.snapshots.receiving =
            Some(Receiving { donor: from, index, meta: None, offset: 0, attempts: 0 });
        self.ask_for_snapshot_part(now);
    }

    pub(super) fn snapshot_part_came(
        &mut self,
        now: Time,
        from: NodeId,
        meta: SnapshotMeta,
        offset: u64,
        data: Vec<u8>,
    ) {
        let Some(receiving) = &mut self.snapshots.receiving else {
            return;
        };
        if from != receiving.donor {
            return;
        }
        if receiving.meta.as_ref() != Some(&meta) {
            // The first part, or the donor has a newer snapshot by now: begin anew.
            if offset != 0 || meta.index <= self.commit.index() {
                return;
            }
            receiving.index = meta.index;
            receiving.offset = 0;
            receiving.meta = Some(meta.clone());
        }
        let end = receiving.offset + data.len() as u64;
        if offset != receiving.offset || end > meta.size_bytes {
            return;
        }
        receiving.offset = end;
        receiving.attempts = 0;
        self.outputs.push_back(Output::KeepSnapshotPart { offset, data });
        if end < meta.size_bytes {
            self.ask_for_snapshot_part(now);
            return;
        }
        self.snapshots.receiving = None;
        self.timers.stop(Timer::Snapshot);
        // One at or below the commit index is discarded (P36).
        if meta.index > self.commit.index() {
            self.snapshots.is_installing = true;
            self.write_changes();
            let keep_tail = self.log.term(meta.index) == Some(meta.term);
            self.outputs.push_back(Output::InstallSnapshot { meta, keep_tail });
        }
    }

    pub(super) fn snapshot_timeout(&mut self, now: Time) {
        const ATTEMPTS_MAX: u32 = 20;
        let Some(receiving) = &mut self.snapshots.receiving else {
            return;
        };
        receiving.attempts += 1;
        if receiving.attempts > ATTEMPTS_MAX || receiving.index <= self.commit.index() {
            // The donor is gone, or entries came another way; the next heartbeat decides anew.
            self.snapshots.receiving = None;
            self.recovery.forget_term();
            return;
        }
        self.ask_for_snapshot_part(now);
    }

    fn ask_for_snapshot_part(&mut self, now: Time) {
        let Some(receiving) = &self.snapshots.receiving else {
            return;
        };
        let (to, index, offset) = (receiving.donor, receiving.index, receiving.offset);
        self.timers.set(Timer::Snapshot, now + self.settings.timing.heartbeat);
        self.send(to, Message::FetchSnapshot { index, offset });
    }
}
