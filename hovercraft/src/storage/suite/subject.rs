//! One store under test, and the model of it.

use std::{
    io::{Read, Write},
    sync::Arc,
};

use super::{Place, Survives, model::Model, sample::Sample};
use crate::{
    entry::{Entry, Index, Term},
    storage::{HardState, Loaded, LogStore, SnapshotMeta, SnapshotSink, SnapshotStore, StoreError},
};

/// Makes every call to the store and to the model, and compares the two.
pub(super) struct Subject {
    case: &'static str,
    survives: Survives,
    store: Option<Box<dyn LogStore>>,
    place: Box<dyn Place>,
    pub(super) model: Model,
    pub(super) sample: Sample,
    /// Of the entries that are appended.
    term: Term,
}

impl Subject {
    /// Opens a new store, which must be empty, and saves a hard state.
    pub(super) fn new(case: &'static str, survives: Survives, mut place: Box<dyn Place>) -> Self {
        let store = place.open();
        let mut subject = Self {
            case,
            survives,
            store: None,
            place,
            model: Model::new(),
            sample: Sample::new(42),
            term: 1,
        };
        let loaded = subject.take(store);
        let checked = subject.model.check(&loaded);
        subject.expect("what a new store holds", checked);
        subject.save(false);
        subject
    }

    pub(super) fn survives_crashes(&self) -> bool {
        self.survives == Survives::Sync
    }

    /// Ends the case if `result` is an error.
    pub(super) fn expect<T, E: std::fmt::Display>(&self, what: &str, result: Result<T, E>) -> T {
        match result {
            Ok(value) => value,
            Err(error) => self.fail(&format!("{what}: {error}")),
        }
    }

    pub(super) fn fail(&self, what: &str) -> ! {
        panic!("the store breaks a promise in case {}: {what}", self.case)
    }

    pub(super) fn store(&mut self) -> &mut dyn LogStore {
        self.store.as_deref_mut().expect("open but while it is opened again")
    }

    pub(super) fn snapshots(&mut self) -> Arc<dyn SnapshotStore> {
        self.store().snapshots()
    }

    /// Takes a store that was opened, and what it holds.
    fn take(&mut self, store: Result<Box<dyn LogStore>, StoreError>) -> Loaded {
        self.store = Some(self.expect("open", store));
        let loaded = self.store().load();
        self.expect("load", loaded)
    }

    /// The term of the entries that were appended last.
    pub(super) fn term(&self) -> Term {
        self.term
    }

    /// An entry of that term with a body of `size` bytes.
    pub(super) fn large_entry(&mut self, size: usize) -> Entry {
        self.sample.large_entry(self.term, size)
    }

    /// Saves some hard state.
    pub(super) fn save(&mut self, clean: bool) {
        let state = HardState { clean, ..self.sample.hard_state() };
        let saved = self.store().save_hard_state(&state);
        self.expect("save_hard_state", saved);
        self.model.hard_state = Some(state);
    }

    /// Appends `count` entries of a new term at `first`.
    pub(super) fn append(&mut self, first: Index, count: u64) {
        self.term += 1;
        let entries = self.sample.entries(self.term, count);
        self.append_these(first, &entries);
    }

    /// Appends `count` entries at the end.
    pub(super) fn extend(&mut self, count: u64) {
        self.append(self.model.next_index(), count);
    }

    /// Entries to append next.
    pub(super) fn entries(&mut self, count: u64) -> Vec<Entry> {
        self.sample.entries(self.term, count)
    }

    pub(super) fn append_these(&mut self, first: Index, entries: &[Entry]) {
        let appended = self.store().append(first, entries);
        self.expect("append", appended);
        self.model.append(first, entries);
    }

    pub(super) fn sync(&mut self) {
        let synced = self.store().sync();
        self.expect("sync", synced);
        self.model.sync();
    }

    pub(super) fn trim(&mut self, first: Index) {
        let trimmed = self.store().trim(first);
        self.expect("trim", trimmed);
    }

    /// Some data for a snapshot at `index`, in a sink, and its meta.
    pub(super) fn snapshot(
        &mut self,
        index: Index,
        size: usize,
    ) -> (Box<dyn SnapshotSink>, SnapshotMeta, Vec<u8>) {
        let term = self.model.term(index).unwrap_or(self.term);
        self.snapshot_of((index, term), size)
    }

    /// The same at an index and a term, whatever the log holds there.
    pub(super) fn snapshot_of(
        &mut self,
        (index, term): (Index, Term),
        size: usize,
    ) -> (Box<dyn SnapshotSink>, SnapshotMeta, Vec<u8>) {
        let data = self.sample.bytes(size);
        let meta = self.sample.meta(index, term, &data);
        let created = self.snapshots().create();
        let mut sink = self.expect("create", created);
        // In two parts: a sink is written bit by bit.
        let (head, tail) = data.split_at(size / 3);
        let written = sink.write_all(head).and_then(|()| sink.write_all(tail));
        self.expect("write to the sink", written);
        if sink.written() != (meta.size_bytes, meta.checksum) {
            self.fail("the sink miscounts what was written");
        }
        (sink, meta, data)
    }

    /// Takes and publishes a snapshot at `index`, which is newer than the latest.
    pub(super) fn publish(&mut self, index: Index) {
        let term = self.model.term(index).unwrap_or(self.term);
        self.publish_of((index, term));
    }

    /// The same at an index and a term, whatever the log holds there.
    pub(super) fn publish_of(&mut self, at: (Index, Term)) {
        let size = self.sample.between(0, 100_000) as usize;
        let (sink, meta, data) = self.snapshot_of(at, size);
        let published = self.snapshots().publish(sink, &meta);
        self.expect("publish", published);
        self.model.snapshot = Some((meta, data));
    }

    /// Tries to take and publish a snapshot, which the model does not have then.
    pub(super) fn try_publish(&mut self, index: Index) -> Result<(), StoreError> {
        let (sink, meta, _) = self.snapshot(index, 1_000);
        self.snapshots().publish(sink, &meta)
    }

    /// Makes the disk full, or not; false if the place cannot.
    pub(super) fn set_full(&mut self, is_full: bool) -> bool {
        self.place.set_full(is_full)
    }

    /// Installs a snapshot at `index`; with `keep_tail` the log must hold that index.
    pub(super) fn install(&mut self, index: Index, keep_tail: bool) {
        let size = self.sample.between(0, 100_000) as usize;
        let (sink, meta, data) = self.snapshot(index, size);
        let installed = self.store().install(sink, &meta, keep_tail);
        self.expect("install", installed);
        self.model.snapshot = Some((meta, data));
        if !keep_tail {
            self.model.restart_log(index + 1);
        }
    }

    /// Stops the store in good order, opens it again, and compares everything.
    pub(super) fn reopen(&mut self) {
        self.sync();
        if self.survives == Survives::CleanStop {
            self.save(true);
        }
        self.store = None;
        let opened = self.place.open();
        let loaded = self.take(opened);
        let checked = self.model.check(&loaded);
        self.expect("what is there after a stop", checked);
        self.check_snapshot();
        if self.survives == Survives::CleanStop {
            self.save(false);
        }
    }

    /// Opens the store again, which must refuse what it holds.
    pub(super) fn refuses_to_load(mut self, what: &str) {
        self.sync();
        if self.survives == Survives::CleanStop {
            self.save(true);
        }
        self.store = None;
        let loaded = self.place.open().and_then(|mut store| store.load());
        if let Ok(Loaded { first_index, entries, .. }) = loaded {
            let count = entries.len();
            self.fail(&format!("{what} is loaded: {count} entries from {first_index} on"));
        }
    }

    /// Crashes the store, opens what is left, and compares what must be there.
    pub(super) fn crash(&mut self) {
        let opened = self.place.open_after_crash();
        self.store = None;
        let loaded = self.take(opened);
        if self.survives == Survives::Sync {
            let checked = self.model.check_after_crash(&loaded);
            self.expect("what a crash left", checked);
            self.check_snapshot();
            return;
        }
        if loaded.hard_state != self.model.hard_state {
            self.fail("a crash took the hard state");
        }
        if loaded.torn.is_none() {
            self.fail("a crash took the log, and the store does not say so");
        }
        self.model = Model::new();
        self.model.hard_state = loaded.hard_state;
    }

    /// Reads the latest snapshot in both ways, and compares it.
    pub(super) fn check_snapshot(&mut self) {
        let opened = self.snapshots().open();
        let opened = self.expect("open the snapshot", opened);
        let (mut open, meta, data) = match (opened, &self.model.snapshot) {
            (None, None) => return,
            (Some(open), Some((meta, data))) => (open, meta.clone(), data.clone()),
            (Some(open), None) => self.fail(&format!("there is a snapshot: {:?}", open.meta)),
            (None, Some((meta, _))) => self.fail(&format!("there is no snapshot: {meta:?}")),
        };
        if open.meta != meta {
            self.fail(&format!("the snapshot is {:?} instead of {meta:?}", open.meta));
        }
        let offset = self.sample.between(0, data.len() as u64 + 1);
        let mut part = vec![0; self.sample.between(0, 5_000) as usize];
        let read = open.source.read_at(offset, &mut part);
        let count = self.expect("read_at", read);
        let tail = data.get(offset as usize..).unwrap_or_default();
        if count != part.len().min(tail.len()) || part[..count] != tail[..count] {
            self.fail(&format!("read_at({offset}) gives {count} bytes, or others"));
        }
        let mut whole = Vec::new();
        let read = open.source.read_to_end(&mut whole);
        self.expect("read the snapshot", read);
        if whole != data {
            self.fail("the snapshot's data is not what was written");
        }
    }
}
