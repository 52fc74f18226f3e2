//! What a crash leaves for certain, as the log store's seam promises it.

use std::collections::VecDeque;

use hovercraft::{
    Entry, Index, Term,
    core::{Write, WriteNumber},
    storage::{HardState, Tail},
};

use super::{Job, Snapshot, store::Found};

/// What is on the disk.
#[derive(Debug, Clone)]
pub(super) struct Image {
    pub(super) hard_state: HardState,
    /// The write that brought it, so that an older one does not come back.
    pub(super) hard_state_write: WriteNumber,
    pub(super) snapshot: Option<Snapshot>,
    /// The index of the first entry.
    pub(super) first: Index,
    pub(super) entries: VecDeque<Entry>,
}

impl Image {
    /// Of a disk that `init` has written to.
    pub(super) fn new(hard_state: HardState) -> Self {
        Self { hard_state, hard_state_write: 0, snapshot: None, first: 1, entries: VecDeque::new() }
    }

    /// What a process found on its disk.
    pub(super) fn found(found: Found, hard_state: HardState) -> Self {
        let Found { loaded, snapshot } = found;
        let first = loaded.first_index;
        Self { snapshot, first, entries: loaded.entries.into(), ..Self::new(hard_state) }
    }

    /// How what a process found is not this, of which everything before `certain` must be there.
    pub(super) fn differs(&self, found: &Found, certain: Index) -> Option<String> {
        let index = |snapshot: &Option<Snapshot>| snapshot.as_ref().map_or(0, |it| it.meta.index);
        let (snapshot, found_snapshot) = (index(&self.snapshot), index(&found.snapshot));
        if snapshot != found_snapshot {
            return Some(format!("the snapshot is of {found_snapshot}, and was of {snapshot}"));
        }
        let first = found.loaded.first_index;
        let end = first + found.loaded.entries.len() as Index;
        let possible = certain.max(snapshot + 1)..=self.next().max(snapshot + 1);
        if first > snapshot + 1 || !possible.contains(&end) {
            return Some(format!(
                "the log is {first}..{end} above a snapshot of {snapshot}, and was {}..{}, of \
                 which what is below {certain} was synced",
                self.first,
                self.next()
            ));
        }
        let both = self.first.max(first)..end.min(self.next());
        let is_other = |index: &Index| {
            let before = &self.entries[(index - self.first) as usize];
            Self::without_path(before) != found.loaded.entries[(index - first) as usize]
        };
        both.into_iter().find(is_other).map(|index| format!("entry {index} is another one"))
    }

    /// Whether this entry is there, or a snapshot that holds its effect.
    pub(super) fn holds(&self, index: Index, term: Term) -> bool {
        let snapshot = self.snapshot.as_ref().map_or(0, |latest| latest.meta.index);
        if index <= snapshot {
            return true;
        }
        let position = index.checked_sub(self.first);
        let entry = position.and_then(|at| self.entries.get(at as usize));
        entry.is_some_and(|entry| entry.term == term)
    }

    /// A job is done, and synced.
    pub(super) fn job(&mut self, job: Job) {
        match job {
            Job::Write(write) => self.write(write),
            Job::Install { snapshot, keep_tail } => self.install(snapshot, keep_tail),
            Job::TakeSnapshot(_) | Job::Stage | Job::ReadOwn | Job::NoInstall => {}
        }
    }

    pub(super) fn next(&self) -> Index {
        self.first + self.entries.len() as Index
    }

    /// Puts the log beside the snapshot, as a store does when it is loaded. Returns whether the log
    /// was a stale one, which has reached the snapshot with other entries.
    pub(super) fn settle(&mut self) -> bool {
        let meta = self.snapshot.as_ref().map(|latest| &latest.meta);
        let snapshot = meta.map_or(0, |meta| meta.index);
        let tail = Tail::of(meta, self.first, self.entries.make_contiguous());
        match tail.unwrap_or_else(|what| panic!("a crash left what is no log: {what}")) {
            Tail::Stays => false,
            Tail::Goes => {
                let is_stale = self.next() > snapshot + 1;
                self.restart(snapshot + 1);
                is_stale
            }
        }
    }

    /// The log begins anew behind what a snapshot holds.
    pub(super) fn restart(&mut self, first: Index) {
        let snapshot = self.snapshot.as_ref().map_or(0, |latest| latest.meta.index);
        assert!(first <= snapshot + 1, "a log has no gaps");
        self.entries.clear();
        self.first = first;
    }

    fn write(&mut self, write: Write) {
        match write {
            Write::HardState { number, state } => self.set_hard_state(number, *state),
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

    pub(super) fn set_hard_state(&mut self, number: WriteNumber, state: HardState) {
        if number > self.hard_state_write {
            (self.hard_state_write, self.hard_state) = (number, state);
        }
    }

    pub(super) fn append(&mut self, first: Index, entries: Vec<Entry>) {
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

    pub(super) fn without_path(entry: &Entry) -> Entry {
        Entry { return_path: None, ..entry.clone() }
    }
}
