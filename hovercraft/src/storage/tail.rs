//! Puts a log that was read back beside the latest snapshot (P36).
//!
//! A log and a snapshot are different files, so a crash may leave an older log beside a newer
//! snapshot. Every store, the suite and the node judge such a pair by the one rule here.

use std::path::Path;

use super::{Loaded, SnapshotMeta, StoreError, directory::damaged};
use crate::entry::{Entry, Index, Term};

/// The fate of a log beside the latest snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tail {
    /// The entries above the snapshot stay: the log holds the snapshot's last entry, or begins
    /// right behind it.
    Stays,
    /// All entries go, and the log goes on behind the snapshot: it ends below the snapshot, or
    /// holds another entry at the snapshot's index.
    Goes,
}

/// A log that cannot be one, or not one beside this snapshot. Its text names the entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Contradiction {
    /// Neither the log nor a snapshot holds an entry that must be there.
    #[error("entry {0} (it is missing)")]
    Missing(Index),
    /// The log holds an entry at an index that no entry has.
    #[error("entry {0} (no entry has this index)")]
    Impossible(Index),
    /// The terms of the log go back.
    #[error("entry {index} (its term is {term}, and the entry before it has term {before})")]
    TermGoesBack {
        /// The entry's index.
        index: Index,
        /// Its term.
        term: Term,
        /// The term of the entry before it.
        before: Term,
    },
    /// The log holds another entry than the snapshot at the snapshot's index.
    #[error("entry {index} (its term is {term}, and the snapshot has term {snapshot} there)")]
    NotTheSnapshots {
        /// The snapshot's index.
        index: Index,
        /// The term of the log's entry there.
        term: Term,
        /// The snapshot's term.
        snapshot: Term,
    },
    /// The log or the snapshot has a higher term than the hard state.
    #[error("the hard state (its term is {hard_state}, and the log has reached term {log})")]
    TermUnknown {
        /// The term of the hard state.
        hard_state: Term,
        /// The highest term of the log and the snapshot.
        log: Term,
    },
}

impl Tail {
    /// Judges the entries from `first_index` on, beside the latest snapshot.
    ///
    /// The terms alone do not tell a stale log: 18@4 and 19..105@5 ascend, and are another history
    /// than a snapshot at 18@5. So the entry at the snapshot's index is compared with it.
    pub fn of(
        snapshot: Option<&SnapshotMeta>,
        first_index: Index,
        entries: &[Entry],
    ) -> Result<Self, Contradiction> {
        let (covered, covered_term) = snapshot.map_or((0, 0), |meta| (meta.index, meta.term));
        if first_index == 0 {
            return Err(Contradiction::Impossible(0));
        }
        let next_index = first_index
            .checked_add(entries.len() as u64)
            .ok_or(Contradiction::Impossible(first_index))?;
        if first_index > covered.saturating_add(1) {
            return Err(Contradiction::Missing(covered + 1));
        }
        if next_index <= covered {
            return Ok(Self::Goes);
        }
        let mut before = covered_term;
        if first_index > covered {
            if planted!("tail-behind-snapshot-dropped") && !entries.is_empty() {
                return Ok(Self::Goes);
            }
        } else {
            let term = entries[(covered - first_index) as usize].term;
            if term != covered_term && !planted!("tail-terms-not-compared") {
                return Ok(Self::Goes);
            }
            before = entries[0].term;
        }
        for (index, entry) in (first_index..).zip(entries) {
            let term = entry.term;
            if term < before {
                return Err(Contradiction::TermGoesBack { index, term, before });
            }
            before = term;
        }
        Ok(Self::Stays)
    }
}

impl Contradiction {
    /// The error of a store that holds this log at `place`.
    pub(crate) fn at(self, place: &Path) -> StoreError {
        damaged(place, self.to_string())
    }
}

impl Loaded {
    /// Checks that this is a state that a replica can start from: a log without gaps, whose terms
    /// never go back, that fits the snapshot and the hard state.
    pub fn check(&self) -> Result<(), Contradiction> {
        let Self { hard_state, snapshot, first_index, entries, torn: _ } = self;
        let covered = snapshot.as_ref().map_or(0, |meta| meta.index);
        let at_snapshot = covered.checked_sub(*first_index).and_then(|at| entries.get(at as usize));
        if let (Some(meta), Some(entry)) = (snapshot, at_snapshot)
            && entry.term != meta.term
        {
            let (index, term, snapshot) = (meta.index, entry.term, meta.term);
            return Err(Contradiction::NotTheSnapshots { index, term, snapshot });
        }
        if Tail::of(snapshot.as_ref(), *first_index, entries)? == Tail::Goes {
            return Err(Contradiction::Missing(covered + 1));
        }
        let snapshot_term = snapshot.as_ref().map_or(0, |meta| meta.term);
        let log = entries.last().map_or(snapshot_term, |entry| entry.term);
        match hard_state {
            Some(state) if state.term < log => {
                Err(Contradiction::TermUnknown { hard_state: state.term, log })
            }
            Some(_) | None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::{DIGEST_KEY, configuration, noop};

    fn snapshot(index: Index, term: Term) -> SnapshotMeta {
        let configuration = configuration(3);
        SnapshotMeta {
            index,
            term,
            configuration,
            log_time_us: 0,
            size_bytes: 0,
            checksum: 0,
            digest_key: DIGEST_KEY,
        }
    }

    fn entries(terms: &[(Term, usize)]) -> Vec<Entry> {
        terms.iter().flat_map(|&(term, count)| vec![noop(term); count]).collect()
    }

    fn judged(at: (Index, Term), first: Index, terms: &[(Term, usize)]) -> Result<Tail, String> {
        let snapshot = (at.0 > 0).then(|| snapshot(at.0, at.1));
        Tail::of(snapshot.as_ref(), first, &entries(terms)).map_err(|error| error.to_string())
    }

    #[test]
    fn a_tail_stays_only_behind_the_snapshots_own_entry() {
        // The log holds the entry of the snapshot.
        assert_eq!(judged((18, 5), 1, &[(4, 17), (5, 88)]), Ok(Tail::Stays));
        assert_eq!(judged((18, 5), 18, &[(5, 1)]), Ok(Tail::Stays));
        // It holds another one there, whether the terms ascend or not.
        assert_eq!(judged((18, 5), 1, &[(4, 18), (5, 87)]), Ok(Tail::Goes));
        assert_eq!(judged((18, 5), 1, &[(4, 105)]), Ok(Tail::Goes));
        assert_eq!(judged((18, 5), 18, &[(6, 3)]), Ok(Tail::Goes));
        // It begins right behind it: after a dropping install, and a clean stop in `memory`.
        assert_eq!(judged((18, 5), 19, &[(5, 3), (7, 1)]), Ok(Tail::Stays));
        assert_eq!(judged((18, 5), 19, &[]), Ok(Tail::Stays));
        assert_eq!(judged((0, 0), 1, &[(1, 3)]), Ok(Tail::Stays));
        assert_eq!(judged((0, 0), 1, &[]), Ok(Tail::Stays));
        // It ends below.
        assert_eq!(judged((18, 5), 1, &[(4, 17)]), Ok(Tail::Goes));
        assert_eq!(judged((18, 5), 1, &[]), Ok(Tail::Goes));
        assert_eq!(judged((18, 5), 18, &[]), Ok(Tail::Goes));
    }

    #[test]
    fn a_log_that_contradicts_itself_is_named() {
        let missing = Err("entry 19 (it is missing)".to_owned());
        assert_eq!(judged((18, 5), 20, &[(5, 3)]), missing);
        assert_eq!(judged((18, 5), 20, &[]), missing);
        assert_eq!(judged((0, 0), 2, &[(5, 3)]), Err("entry 1 (it is missing)".to_owned()));
        let back = "entry 21 (its term is 4, and the entry before it has term 5)".to_owned();
        assert_eq!(judged((18, 5), 19, &[(5, 2), (4, 1)]), Err(back.clone()));
        assert_eq!(judged((18, 5), 18, &[(5, 3), (4, 1)]), Err(back));
        let back = "entry 19 (its term is 4, and the entry before it has term 5)".to_owned();
        assert_eq!(judged((18, 5), 19, &[(4, 1)]), Err(back));
        assert_eq!(judged((0, 0), 0, &[]), Err("entry 0 (no entry has this index)".to_owned()));
        judged((0, 0), u64::MAX, &[(1, 2)]).unwrap_err();
        judged((u64::MAX, 1), 1, &[(1, 2)]).unwrap();
    }

    #[test]
    fn what_was_loaded_is_checked_whole() {
        let loaded = |at: (Index, Term), first_index, terms: &[_]| Loaded {
            hard_state: None,
            snapshot: Some(snapshot(at.0, at.1)),
            first_index,
            entries: entries(terms),
            torn: None,
        };
        assert_eq!(loaded((18, 5), 1, &[(4, 17), (5, 3)]).check(), Ok(()));
        let error = loaded((18, 5), 1, &[(4, 18), (5, 3)]).check().unwrap_err();
        assert_eq!(error, Contradiction::NotTheSnapshots { index: 18, term: 4, snapshot: 5 });
        let error = loaded((18, 5), 1, &[(4, 17)]).check().unwrap_err();
        assert_eq!(error, Contradiction::Missing(19));
    }
}
