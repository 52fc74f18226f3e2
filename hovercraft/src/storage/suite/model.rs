//! What a store should hold: the simplest thing that keeps the promises of its trait.

use crate::{
    entry::{Entry, Index, Term},
    storage::{HardState, Loaded, SnapshotMeta},
};

/// All that a store was given.
#[derive(Debug, Default)]
pub(super) struct Model {
    pub(super) hard_state: Option<HardState>,
    pub(super) snapshot: Option<(SnapshotMeta, Vec<u8>)>,
    /// The logs that a crash may leave, the oldest one synced; the last is the present one.
    logs: Vec<Log>,
}

/// Entries from `first` on, those that were trimmed as well.
#[derive(Debug, Clone)]
struct Log {
    first: Index,
    entries: Vec<Entry>,
    /// A crash may cut the entries from this index on.
    cut_from: Index,
}

impl Log {
    fn empty(first: Index) -> Self {
        Self { first, entries: Vec::new(), cut_from: first }
    }

    fn next_index(&self) -> Index {
        self.first + self.entries.len() as u64
    }

    fn term(&self, index: Index) -> Option<Term> {
        let position = index.checked_sub(self.first)?;
        self.entries.get(position as usize).map(|entry| entry.term)
    }
}

impl Model {
    pub(super) fn new() -> Self {
        Self { logs: vec![Log::empty(1)], ..Self::default() }
    }

    /// The index after the last entry.
    pub(super) fn next_index(&self) -> Index {
        self.present().next_index()
    }

    /// The first index that a snapshot does not hold the effect of.
    pub(super) fn next_uncovered(&self) -> Index {
        self.snapshot.as_ref().map_or(0, |(meta, _)| meta.index) + 1
    }

    /// The term of the entry at an index, if the log holds it.
    pub(super) fn term(&self, index: Index) -> Option<Term> {
        self.present().term(index)
    }

    pub(super) fn append(&mut self, first: Index, entries: &[Entry]) {
        let mut log = self.present().clone();
        log.entries.truncate((first - log.first) as usize);
        log.entries
            .extend(entries.iter().cloned().map(|entry| Entry { return_path: None, ..entry }));
        log.cut_from = first;
        self.logs.push(log);
    }

    pub(super) fn sync(&mut self) {
        let mut log = self.present().clone();
        log.cut_from = log.next_index();
        self.logs = vec![log];
    }

    pub(super) fn restart_log(&mut self, next: Index) {
        self.logs = vec![Log::empty(next)];
    }

    fn present(&self) -> &Log {
        self.logs.last().expect("there is always a log")
    }

    /// Compares what was loaded after a clean stop, and goes on from it.
    pub(super) fn check(&mut self, loaded: &Loaded) -> Result<(), String> {
        self.sync();
        self.check_after_crash(loaded)
    }

    /// Compares what was loaded after a crash, and goes on from it.
    pub(super) fn check_after_crash(&mut self, loaded: &Loaded) -> Result<(), String> {
        if let Some(torn) = loaded.torn {
            return Err(format!("it says that {torn}"));
        }
        equal("the hard state", &loaded.hard_state, &self.hard_state)?;
        let meta = self.snapshot.as_ref().map(|(meta, _)| meta.clone());
        equal("the snapshot", &loaded.snapshot, &meta)?;
        loaded.check().map_err(|contradiction| format!("`load` returns {contradiction}"))?;
        if loaded.first_index > self.next_uncovered() {
            let (first, uncovered) = (loaded.first_index, self.next_uncovered());
            return Err(format!("the log begins at {first} instead of {uncovered} or below"));
        }
        let mut reasons = Vec::new();
        for log in self.logs.iter().rev() {
            match self.check_log(loaded, log) {
                Ok(log) => {
                    self.logs = vec![log];
                    return Ok(());
                }
                Err(reason) => reasons.push(reason),
            }
        }
        Err(format!("the log is none of those that there may be: {}", reasons.join("; ")))
    }

    /// Whether a log has reached the snapshot with another entry than the snapshot's.
    fn is_stale(&self, log: &Log) -> bool {
        let Some((meta, _)) = &self.snapshot else { return false };
        log.term(meta.index).is_some_and(|term| term != meta.term)
    }

    /// Compares the entries with those of `log`; returns the log to go on from.
    fn check_log(&self, loaded: &Loaded, log: &Log) -> Result<Log, String> {
        let uncovered = self.next_uncovered();
        let next = loaded.first_index + loaded.entries.len() as u64;
        if self.is_stale(log) {
            // None of it may come back, nor anything else be there.
            return if next == uncovered && loaded.entries.is_empty() {
                Ok(Log::empty(uncovered))
            } else {
                Err(format!("entries of a stale log are there, up to {}", next - 1))
            };
        }
        // A log that ends below the snapshot is left out, and looks as if it ended there.
        let end = next.min(log.next_index());
        if end < log.cut_from || end.max(uncovered) != next {
            let (low, high) = (log.cut_from, log.next_index());
            return Err(format!("it ends before {next} instead of {low}..={high}"));
        }
        let mut log = log.clone();
        log.entries.truncate((end - log.first) as usize);
        for (index, entry) in (loaded.first_index..).zip(&loaded.entries) {
            let expected = index.checked_sub(log.first).and_then(|at| log.entries.get(at as usize));
            if Some(entry) != expected {
                // Not shown whole: entries may be large.
                let terms = (entry.term, expected.map(|entry| entry.term));
                return Err(format!("entry {index} is another one, its term and ours {terms:?}"));
            }
        }
        if end < uncovered {
            log = Log::empty(uncovered);
        }
        log.cut_from = log.next_index();
        Ok(log)
    }
}

fn equal<T: PartialEq + std::fmt::Debug>(
    what: &str,
    found: &T,
    expected: &T,
) -> Result<(), String> {
    if found == expected {
        return Ok(());
    }
    Err(format!("{what} is {found:?} instead of {expected:?}"))
}
