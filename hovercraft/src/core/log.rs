//! The log in memory: entries, indices, and what is durable (P6, P7, P37).
//!
//! Everything above the trim point is kept in memory, so that catch-up and execution never wait for
//! a disk. Its size is bounded by [`super::Settings::log_bytes_max`], with snapshots below it.

use std::collections::VecDeque;

use r2p2::Time;

use crate::{
    core::lookup::Lookup,
    entry::{Entry, Index, Term},
    request::{Key, ReturnPath},
};

/// Counts what was handed to the storage role; completions name it (P37).
pub type WriteNumber = u64;

/// An entry and what the core keeps beside it.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) entry: Entry,
    /// The write that carried it to the storage role.
    pub(crate) write: WriteNumber,
    /// How many entries that every replica executes there are up to this one, in all.
    write_count: u64,
    /// The bytes of the entries up to this one, in all.
    bytes_through: u64,
    /// A retry asked for it after it was ordered: the leader answers too (P18).
    pub(crate) asked_again: bool,
    /// When this replica, as leader, ordered it; for retries of reads (P18).
    pub(crate) ordered_at: Option<Time>,
    /// The same request was in the log before (P18).
    pub(crate) ordered_again: bool,
}

#[derive(Debug)]
pub(crate) struct Log {
    slots: VecDeque<Slot>,
    /// Index of the first slot.
    first: Index,
    /// Term of the entry before the first slot.
    term_before: Term,
    /// Log time of the entry before the first slot, in microseconds.
    log_time_before_us: u64,
    write_count_before: u64,
    bytes_before: u64,
    size_bytes: usize,
    /// The highest index of each request at or above `keys_from`. The keys of the whole log would
    /// not fit into a cache, and every request asks for its own.
    by_key: Lookup<Key, Index>,
    keys_from: Index,
    /// The highest index whose write, and every write before it, is complete.
    durable: Index,
}

impl Log {
    /// An empty log after an entry (`index`, `term`), which is in a snapshot, or 0, 0.
    pub(crate) fn new(index: Index, term: Term, log_time_us: u64, seed: u64) -> Self {
        Self {
            slots: VecDeque::new(),
            first: index + 1,
            term_before: term,
            log_time_before_us: log_time_us,
            write_count_before: 0,
            bytes_before: 0,
            size_bytes: 0,
            by_key: Lookup::new(seed),
            keys_from: index + 1,
            durable: index,
        }
    }

    /// Appends one entry, not handed over yet, and returns its index.
    pub(crate) fn append(&mut self, entry: Entry) -> Index {
        assert!(entry.term >= self.last_term(), "terms in the log never go back");
        let index = self.last() + 1;
        let is_write = entry.request().is_some_and(|request| request.kind().is_write());
        let before = entry.request().and_then(|request| self.by_key.insert(request.key(), index));
        self.size_bytes += entry.size_bytes();
        let bytes_through = self.bytes_through(self.last()) + entry.size_bytes() as u64;
        let write_count = self.write_count(self.last()) + u64::from(is_write);
        let write = WriteNumber::MAX;
        self.slots.push_back(Slot {
            entry,
            write,
            write_count,
            bytes_through,
            asked_again: false,
            ordered_at: None,
            ordered_again: before.is_some(),
        });
        index
    }

    /// Removes every entry at or above `from`, newest first, handing each to `each`.
    pub(crate) fn truncate(&mut self, from: Index, mut each: impl FnMut(Entry)) {
        assert!(from >= self.first, "what is in a snapshot is committed and never truncated");
        while self.last() >= from {
            self.forget_key(self.last());
            let slot = self.slots.pop_back().expect("last() is at or above first");
            self.size_bytes -= slot.entry.size_bytes();
            each(slot.entry);
        }
        self.keys_from = self.keys_from.min(from);
        if !planted!("replaced-sync-counts") {
            self.durable = self.durable.min(self.last());
        }
    }

    /// Removes every entry at or below `to`.
    pub(crate) fn trim(&mut self, to: Index) {
        self.forget_keys(to);
        while self.first <= to {
            let Some(slot) = self.slots.pop_front() else {
                break;
            };
            self.size_bytes -= slot.entry.size_bytes();
            self.term_before = slot.entry.term;
            self.log_time_before_us = slot.entry.log_time_us;
            self.write_count_before = slot.write_count;
            self.bytes_before = slot.bytes_through;
            self.first += 1;
        }
        // The snapshot that holds what was trimmed is on disk, whatever became of the entries.
        self.durable = self.durable.max(self.first - 1);
    }

    /// Empties the log: what comes next is above the snapshot at (`index`, `term`).
    pub(crate) fn reset(&mut self, index: Index, term: Term, log_time_us: u64) {
        self.slots.clear();
        self.by_key.clear();
        self.keys_from = index + 1;
        self.size_bytes = 0;
        self.first = index + 1;
        self.term_before = term;
        self.log_time_before_us = log_time_us;
        self.write_count_before = 0;
        self.durable = index;
    }

    /// The entries from `from` on are handed over as `write`.
    pub(crate) fn hand_over(&mut self, from: Index, write: WriteNumber) {
        let skip = from.saturating_sub(self.first) as usize;
        self.slots.iter_mut().skip(skip).for_each(|slot| slot.write = write);
    }

    /// Every write up to `write` is complete. Returns whether the durable index moved.
    pub(crate) fn complete(&mut self, write: WriteNumber) -> bool {
        let before = self.durable;
        // An entry that replaced another has a higher write number than the completion of the one
        // it replaced, which therefore cannot count for it (P37).
        while self.slot(self.durable + 1).is_some_and(|slot| slot.write <= write) {
            self.durable += 1;
        }
        self.durable > before
    }

    /// Marks everything as durable: it was read back from a disk.
    pub(crate) fn complete_all(&mut self) {
        self.durable = self.last();
    }

    /// A newer copy of a request came: its reply goes to where that copy came from (P5).
    pub(crate) fn set_return_path(&mut self, index: Index, path: ReturnPath) {
        if let Some(slot) = self.slot_mut(index) {
            slot.entry.return_path = Some(path);
        }
    }

    pub(crate) fn slot_mut(&mut self, index: Index) -> Option<&mut Slot> {
        let position = index.checked_sub(self.first)?;
        self.slots.get_mut(position as usize)
    }

    pub(crate) fn slot(&self, index: Index) -> Option<&Slot> {
        let position = index.checked_sub(self.first)?;
        self.slots.get(position as usize)
    }

    /// Whether the entry at an index is a read.
    pub(crate) fn is_read(&self, index: Index) -> bool {
        let request = self.entry(index).and_then(Entry::request);
        request.is_some_and(|request| !request.kind().is_write())
    }

    pub(crate) fn entry(&self, index: Index) -> Option<&Entry> {
        self.slot(index).map(|slot| &slot.entry)
    }

    /// The entries from `from` on.
    pub(crate) fn entries_from(&self, from: Index) -> impl Iterator<Item = (Index, &Entry)> {
        let skip = from.saturating_sub(self.first) as usize;
        let start = self.first.max(from);
        self.slots
            .iter()
            .skip(skip)
            .enumerate()
            .map(move |(offset, slot)| (start + offset as Index, &slot.entry))
    }

    /// The term of the entry at `index`; none below the trim point (but for the entry just before
    /// it) and above the last entry.
    pub(crate) fn term(&self, index: Index) -> Option<Term> {
        if index + 1 == self.first {
            return Some(self.term_before);
        }
        self.entry(index).map(|entry| entry.term)
    }

    /// The requests at and below `to` are not to be found any more.
    pub(crate) fn forget_keys(&mut self, to: Index) {
        while self.keys_from <= to.min(self.last()) {
            self.forget_key(self.keys_from);
            self.keys_from += 1;
        }
    }

    /// The highest index of this request in the log, unless it was forgotten.
    pub(crate) fn find(&self, key: &Key) -> Option<Index> {
        self.by_key.get(key).copied()
    }

    /// The first index that is here.
    pub(crate) fn first(&self) -> Index {
        self.first
    }

    /// The last index; the one before [`Self::first`] if the log is empty.
    pub(crate) fn last(&self) -> Index {
        self.first + self.slots.len() as Index - 1
    }

    pub(crate) fn last_term(&self) -> Term {
        self.slots.back().map_or(self.term_before, |slot| slot.entry.term)
    }

    /// Log time of the last entry, in microseconds (P22).
    pub(crate) fn last_log_time_us(&self) -> u64 {
        self.slots.back().map_or(self.log_time_before_us, |slot| slot.entry.log_time_us)
    }

    /// The highest index up to which everything is synced.
    pub(crate) fn durable(&self) -> Index {
        self.durable
    }

    /// How many entries up to `index` every replica executes, from an origin of the log's own.
    pub(crate) fn write_count(&self, index: Index) -> u64 {
        self.slot(index.min(self.last())).map_or(self.write_count_before, |slot| slot.write_count)
    }

    /// The bytes of the entries up to `index`, from an origin of the log's own.
    pub(crate) fn bytes_through(&self, index: Index) -> u64 {
        self.slot(index.min(self.last())).map_or(self.bytes_before, |slot| slot.bytes_through)
    }

    pub(crate) fn size_bytes(&self) -> usize {
        self.size_bytes
    }

    fn forget_key(&mut self, index: Index) {
        if let Some(request) = self.entry(index).and_then(Entry::request) {
            let key = request.key();
            self.by_key.remove_if(key, &index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::{noop, write};

    #[test]
    fn a_completion_of_a_replaced_entry_is_void() {
        // P37: 1@1 and 2@1 are handed over as writes 1 and 2; 2@1 is replaced by write 3.
        let mut log = Log::new(0, 0, 0, 0);
        log.append(noop(1));
        log.hand_over(1, 1);
        log.append(write(1, 1, 1));
        log.hand_over(2, 2);
        log.truncate(2, |_| ());
        log.append(write(2, 1, 2));
        log.hand_over(2, 3);
        assert!(log.complete(2));
        assert_eq!(log.durable(), 1);
        assert!(log.complete(3));
        assert_eq!(log.durable(), 2);
    }

    #[test]
    fn finding_a_request_follows_truncation_and_trim() {
        let mut log = Log::new(0, 0, 0, 0);
        log.append(noop(1));
        let entry = write(1, 7, 1);
        let key = entry.request().unwrap().key();
        log.append(entry.clone());
        log.append(entry);
        assert_eq!(log.find(&key), Some(3));
        log.trim(2);
        assert_eq!((log.first(), log.last(), log.find(&key)), (3, 3, Some(3)));
        assert_eq!(log.term(2), Some(1));
        log.truncate(3, |_| ());
        assert_eq!(log.find(&key), None);
        assert_eq!(log.size_bytes(), 0);
    }

    #[test]
    fn what_is_forgotten_is_not_found_and_what_replaces_it_is() {
        let mut log = Log::new(0, 0, 0, 0);
        let entries: Vec<_> = (1..=4).map(|sequence| write(1, 7, sequence)).collect();
        let keys: Vec<_> = entries.iter().map(|entry| entry.request().unwrap().key()).collect();
        for entry in &entries {
            log.append(entry.clone());
        }
        let found = |log: &Log| keys.iter().map(|key| log.find(key)).collect::<Vec<_>>();
        log.forget_keys(2);
        assert_eq!(found(&log), [None, None, Some(3), Some(4)]);
        log.append(entries[0].clone());
        log.forget_keys(3);
        assert_eq!(found(&log), [Some(5), None, None, Some(4)]);
        log.truncate(3, |_| ());
        log.append(entries[2].clone());
        assert_eq!(found(&log), [None, None, Some(3), None]);
        log.forget_keys(99);
        log.append(entries[3].clone());
        assert_eq!(found(&log), [None, None, None, Some(4)]);
    }

    #[test]
    fn what_is_trimmed_is_durable_though_its_write_is_not_complete() {
        // A follower whose disk is slow applies what a quorum without it has committed, and trims
        // that before its own write of it is complete.
        let mut log = Log::new(0, 0, 0, 0);
        for _ in 0..3 {
            log.append(noop(1));
        }
        log.hand_over(1, 1);
        log.trim(2);
        assert_eq!(log.durable(), 2);
        assert!(log.complete(1));
        assert_eq!(log.durable(), 3);
    }

    #[test]
    fn writes_are_counted_across_a_trim() {
        let mut log = Log::new(0, 0, 0, 0);
        log.append(noop(1));
        log.append(write(1, 1, 1));
        log.append(write(1, 1, 2));
        assert_eq!(log.write_count(3) - log.write_count(1), 2);
        log.trim(2);
        assert_eq!(log.write_count(3) - log.write_count(2), 1);
    }
}
